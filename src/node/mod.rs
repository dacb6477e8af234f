//! The node: joins wire, session, log and state into one server without a clock, a socket or a disk.
//!
//! Four kinds of methods, after quinn-proto's fashion:
//! - getters, `&self`;
//! - `handle_*(now, …)`: what came from outside (a datagram, a committed batch, a file that was read, time itself);
//! - `poll_*`: what is to be done outside (datagrams to send, a batch for the log, work for the files, when to wake up);
//! - `set_*`: how the world is (room on the disk, gauges to show).
//!
//! After any `handle_*`, drain every `poll_*` before waiting. `now` is log time, and never goes back.
//!
//! ```text
//! datagram ─► wire ─► admission ─┬─ done before: the kept reply
//!                                ├─ in line: `pending`
//!                                ├─ read: from the state, at once
//!                                └─ new: gathered ─► batch ─► log ══ committed ══► state ─► outcome ─► reply
//! ```
//!
//! Invariants: nothing is answered before the `new_term` of this start is applied; no reply leaves before the batch that
//! it tells of is committed; a request of one (session, id) is in flight at most once.

mod admission;
mod answers;
mod assembly;
mod counts;
mod explain;
mod gathered;
mod hand_offs;
mod reads;
mod spare;
mod telling;
mod watches;

use crate::command::{Call, Command, Durability, EndReason, Entry, Request};
use crate::datagram::{self, Dropped};
use crate::event::{self, Event};
use crate::identity::{Op, SessionId};
use crate::kind::{Detail, Kind, Refusal};
use crate::lease::LeaseTable;
use crate::limits::Limits;
use crate::log::{Batch, Room, next_op};
use crate::map::HashMap;
use crate::name::Name;
use crate::outcome::{Effect, FileEffect};
use crate::proof::{Secrets, is_loopback};
use crate::rising::Rising;
use crate::state::State;
use crate::time::Time;
use crate::wire::{self, Element, Id, Method, encode_error, encode_result};
use assembly::{Assemblies, Finished, MessageKey, Place};
use counts::{Count, Counts};
use gathered::{Gathered, Taken};
use hand_offs::HandOffs;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use telling::Tellings;
use watches::Watches;

/// Batches handed to the log and not yet committed: one being synced, one behind it.
const BATCHES_IN_FLIGHT: usize = 2;

/// Commands in one batch: to hand over more would take a turn of the loop too long. A disk that syncs a hundred times a second
/// still takes 100,000 of them, with two batches on their way.
const BATCH_COMMANDS_MAX: usize = 512;

/// Reads that may wait for the outcomes of one batch: all of them are answered when it is committed.
const READS_BEHIND_MAX: usize = 256;

/// Bytes that may be gathered for the log before new work is told `busy`.
const GATHERED_BYTES_MAX: usize = 32 << 20;

/// Commands that may be: a tenth of a second of work for a core, some sixteen batches for the disk.
const GATHERED_MAX: usize = 8_192;

/// Bytes of appends that may wait for their files before new appends are told `busy`.
const FILE_BYTES_PENDING_MAX: u64 = 64 << 20;

/// Reads of files that may be under way before new ones are told `busy`.
const FILE_READS_MAX: usize = 1_024;

/// After how much log time without a record a `tick` is logged while a deadline stands, in milliseconds: so much log
/// time, at most, is lived again after a crash.
const TICK_MS: u64 = 5_000;

/// For how many sessions without requests in flight room is kept for the next ones.
const SPARE_FLIGHTS: usize = 64;

/// The room a reply gets at first: most fit, with their checksum.
const REPLY_ROOM: usize = 192;

/// How long `busy` tells a client to wait, in milliseconds.
const BUSY_RETRY_MS: u64 = 50;

/// A datagram to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where.
    pub to: SocketAddr,
    /// What, with its trailer if it has one.
    pub bytes: Vec<u8>,
}

/// Work for the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileWork {
    /// Do what a command said.
    Apply(FileEffect),
    /// Read bytes; answered by [`Node::handle_file_read`].
    Read {
        /// To be given back.
        tag: u64,
        /// The file.
        file: Name,
        /// Its generation.
        generation: Op,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes, all of them committed.
        count: u64,
        /// How long the file is, in bytes.
        length: u64,
    },
    /// Look what is on disk and bring it right if that is possible; answered by [`Node::handle_file_look`].
    Look {
        /// To be given back.
        tag: u64,
        /// The file.
        file: Name,
        /// Its generation.
        generation: Op,
        /// How long it should be, in bytes.
        length: u64,
        /// The CRC-32C that it should have.
        checksum: u32,
    },
}

/// What is known of a session beside the state: where it is, and what of it is under way.
#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    sealed: bool,
}

/// Requests of one session between their arrival and their outcome.
#[derive(Debug, Default)]
struct InFlight {
    requests: Rising<Flight>,
    waits: u64,
}

/// A request on its way through the log.
#[derive(Debug)]
struct Flight {
    fingerprint: u64,
    /// The message that will answer it.
    message: MessageKey,
    /// Whether it may become a wait.
    may_wait: bool,
}

/// Who is to be told the outcome of a command.
#[derive(Debug, Default)]
struct Tag {
    place: Option<Place>,
    asked: Asked,
}

/// What was asked, as far as the answer depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Asked {
    /// Nobody asked: the server's own decision.
    #[default]
    Nobody,
    /// A request of a session.
    Request { session: SessionId, id: u64, fingerprint: u64 },
    /// `open_session`, `cleanup_expired_locks`: the outcome is the answer.
    Outcome,
    /// `close_session`: done, whatever the outcome.
    Close,
    /// `kill_session`
    Kill,
}

/// A batch that the log has.
#[derive(Debug)]
struct Submitted {
    batch: Arc<Batch>,
    tags: Vec<Tag>,
}

/// A batch that is committed, and the tags of what of it is not applied.
struct Committed {
    batch: Arc<Batch>,
    tags: std::vec::IntoIter<Tag>,
}

/// Something that waits for the files.
#[derive(Debug)]
enum FileTag {
    /// `tail`: what is staged behind the bytes that are read.
    Read {
        place: Place,
        offset: u64,
        count: u64,
        length: u64,
        tail: Option<Vec<u8>>,
    },
    Repair {
        place: Place,
        looked_at: Op,
        request: Request,
    },
}

/// One server, as far as it can be one without a clock, a socket and a disk.
pub struct Node {
    state: State,
    leases: LeaseTable,
    secrets: Secrets,
    /// Whether `new_term` of this start has been applied.
    serving: bool,
    /// When it was applied.
    serving_since: Time,
    /// When the datagram that is taken in was read, or the commit heard of.
    heard: Time,
    /// The latest of those moments: a client that counts from when it sent began no later.
    clock: Time,
    /// When it was last looked at what is due.
    looked: Time,
    /// Without any room: the first end of a session's lease behind that.
    lapse_without_room: Option<Time>,
    draining: bool,
    room: Room,
    batch_bytes_max: usize,

    gathered: Gathered,
    submitted: VecDeque<Submitted>,
    committed: Option<Committed>,
    last_op: Op,
    last_at: Time,
    last_seq: u64,
    tick_in_flight: bool,

    /// Room for the elements of a message that is taken in, to be used again.
    elements: Vec<Element>,
    in_flight: HashMap<SessionId, InFlight>,
    /// Room for requests in flight, to be used again.
    spare_flights: Vec<InFlight>,
    peers: HashMap<SessionId, Peer>,
    assemblies: Assemblies,
    tellings: Tellings,
    hand_offs: HandOffs,
    watches: Watches,
    file_tags: HashMap<u64, FileTag>,
    last_file_tag: u64,
    /// How many session ids were drawn.
    last_draw: u64,
    file_bytes_pending: u64,
    files_full: bool,
    /// Files that are looked at for a repair that is not applied yet.
    repairing: BTreeSet<Name>,

    transmits: VecDeque<Transmit>,
    file_work: VecDeque<FileWork>,
    drops: BTreeMap<&'static str, u64>,
    counts: Counts,
    gauges: BTreeMap<&'static str, u64>,
}

impl Node {
    /// A node that goes on from `state`. It begins a term of its own: the first batch that it polls holds `new_term`,
    /// and it answers nothing before that is committed. `raised` says that what was told may have been lost.
    pub fn new(
        now: Time,
        state: State,
        limits: Limits,
        durability: Durability,
        raised: bool,
        secrets: Secrets,
        batch_bytes_max: usize,
    ) -> Node {
        let term = state.head().term + 1;
        let (last_op, last_at) = (state.op(), state.at());
        let mut node = Node {
            state,
            leases: LeaseTable::default(),
            secrets,
            serving: false,
            serving_since: now,
            heard: now,
            clock: now,
            looked: now,
            lapse_without_room: None,
            draining: false,
            room: Room::Ok,
            batch_bytes_max,
            gathered: Gathered::default(),
            submitted: VecDeque::new(),
            committed: None,
            last_op,
            last_at,
            last_seq: 0,
            tick_in_flight: false,
            elements: Vec::new(),
            in_flight: HashMap::default(),
            spare_flights: Vec::new(),
            peers: HashMap::default(),
            assemblies: Assemblies::default(),
            tellings: Tellings::default(),
            hand_offs: HandOffs::default(),
            watches: Watches::default(),
            file_tags: HashMap::default(),
            last_file_tag: 0,
            last_draw: 0,
            file_bytes_pending: 0,
            files_full: false,
            repairing: BTreeSet::new(),
            transmits: VecDeque::new(),
            file_work: VecDeque::new(),
            drops: BTreeMap::new(),
            counts: Counts::default(),
            gauges: BTreeMap::new(),
        };
        node.gather(now, Command::NewTerm { term, limits, durability, raised }, Tag::default());
        node
    }

    /// The state: what the committed commands have made of it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether the term has begun, so that datagrams are answered.
    pub fn is_serving(&self) -> bool {
        self.serving
    }

    /// Whether nothing is on its way through the log or the files' readers.
    pub fn is_idle(&self) -> bool {
        self.gathered.is_empty()
            && self.submitted.is_empty()
            && self.committed.is_none()
            && self.file_tags.is_empty()
    }

    /// Whether the log is being waited for.
    pub fn awaits_log(&self) -> bool {
        !self.submitted.is_empty()
    }

    /// From here on, what would change the state is refused with `draining`; what is on its way is finished, and watches that
    /// wait are answered.
    pub fn drain(&mut self) {
        self.draining = true;
        self.answer_all_watches();
    }

    /// Says how much room the log's disk has. What was gathered and has no room any more is refused for now, batches
    /// whole: it has no place in the log yet.
    pub fn set_room(&mut self, now: Time, room: Room) {
        let short = room != self.room && room != Room::Ok;
        self.room = room;
        if !short {
            return;
        }
        if room == Room::Full {
            self.lapse(now);
        }
        let Some(refusal) = self.refuse_all(false) else { return };
        let without_room = |command: &Command, tag: &Tag| match command {
            Command::Request(_) | Command::OpenSession { .. } => tag.place.map(|place| place.key),
            Command::NewTerm { .. }
            | Command::EndSession { .. }
            | Command::Tick
            | Command::FileFault { .. } => None,
        };
        let keys: BTreeSet<MessageKey> = self
            .gathered
            .iter()
            .filter(|(command, _)| !command.frees())
            .filter_map(|(command, tag)| without_room(command, tag))
            .collect();
        let refused = self
            .gathered
            .take_if(|command, tag| without_room(command, tag).is_some_and(|key| keys.contains(&key)));
        for (entry, tag) in refused {
            let place = tag.place.expect("only what has a place is refused");
            if let Command::Request(Request { call: Call::RepairFile { file, .. }, .. }) = &entry.command {
                self.repairing.remove(file);
            }
            if let Asked::Request { session, id, .. } = tag.asked {
                self.land(session, id);
            }
            self.resolve_with(place, |out, id| encode_error(out, id, &refusal));
            self.go_on(now, place);
        }
    }

    /// Says how many bytes of appends wait for their files.
    pub fn set_file_bytes_pending(&mut self, bytes: u64) {
        self.file_bytes_pending = bytes;
    }

    /// Says when the datagrams taken in from here on were read, or commits heard of, if that is later than the `now` at which
    /// they are judged: a session's lease runs from there, and what a command begins is counted from the latest of these moments.
    pub fn set_heard(&mut self, heard: Time) {
        self.heard = heard;
        self.clock = self.clock.max(heard);
    }

    /// From when a sign of life counts that is judged at `now`.
    fn heard_at(&self, now: Time) -> Time {
        now.max(self.heard)
    }

    /// Says whether writes to files wait for room on the disk: then new appends are refused.
    pub fn set_files_full(&mut self, full: bool) {
        self.files_full = full;
    }

    /// Sets a figure that `status` shows under `counts`.
    pub fn set_gauge(&mut self, name: &'static str, value: u64) {
        self.gauges.insert(name, value);
    }

    /// Sets how many datagrams the kernel has dropped for want of room in the socket's buffer.
    pub fn set_socket_drops(&mut self, drops: u64) {
        self.drops.insert("socket_full", drops);
    }

    /// Takes in a datagram.
    pub fn handle_datagram(&mut self, now: Time, from: SocketAddr, bytes: &[u8]) {
        if !self.serving {
            return;
        }
        self.counts.count(Count::Datagrams);
        self.lapse(now);
        let opened = match datagram::open(bytes) {
            Ok(opened) => opened,
            Err(cause) => return self.drop_datagram(cause),
        };
        let mut message = match wire::decode_into(std::mem::take(&mut self.elements), opened.message) {
            Ok(message) => message,
            Err(cause) => return self.drop_datagram(cause),
        };
        let cookies = message.elements.iter().filter_map(|element| element.cookie.as_deref());
        let proven = is_loopback(from)
            || cookies.into_iter().any(|cookie| self.secrets.is_proven(from, Some(cookie), now));
        if !proven {
            return self.ask_for_proof(
                now,
                from,
                bytes.len(),
                opened.sealed,
                &message.elements,
                message.batch,
            );
        }
        // The requests of a batch are mostly of one session, which is heard once.
        let mut last = None;
        for request in message.elements.iter().filter_map(|element| element.request.as_ref().ok()) {
            let Some(session) = request.session else { continue };
            let lives = match last {
                Some((known, lives)) if known == session => lives,
                _ => self.hear(now, from, opened.sealed, session),
            };
            last = Some((session, lives));
            if lives {
                self.hear_got(now, session, &request.got);
            }
        }
        let refusal = self.refuse_batch(&message.elements);
        let ids = message.elements.iter().map(|element| element.id.clone());
        let key = self.assemblies.begin(from, opened.sealed, message.batch, ids);
        let alone = message.elements.len() == 1;
        for (index, element) in message.elements.drain(..).enumerate() {
            let place = Place { key, index };
            self.handle_element(now, from, place, element.request, refusal.as_ref(), alone);
        }
        self.elements = message.elements;
        self.finish(key);
    }

    /// Takes in that the batch with this tag is committed: applies it and answers.
    pub fn handle_committed(&mut self, now: Time, seq: u64) {
        self.begin_committed(seq);
        self.apply_committed(now, usize::MAX);
    }

    /// Takes in that the batch with this tag is committed; [`Node::apply_committed`] does the rest, as far as it is asked to,
    /// and must be done with one batch before the next.
    pub fn begin_committed(&mut self, seq: u64) {
        let Submitted { batch, tags } =
            self.submitted.pop_front().expect("the log commits what it was given");
        assert_eq!(batch.seq, seq, "the log commits in order");
        assert!(self.committed.is_none(), "one batch is applied before the next");
        self.committed = Some(Committed { batch, tags: tags.into_iter() });
    }

    /// Whether something is committed and not applied.
    pub fn has_committed(&self) -> bool {
        self.committed.is_some()
    }

    /// Applies what is committed, so many commands at most, and answers.
    pub fn apply_committed(&mut self, now: Time, most: usize) {
        let Some(Committed { batch, mut tags }) = self.committed.take() else { return };
        let applied = batch.entries.len() - tags.len();
        let mut effects = Vec::new();
        let ops = batch.first_op + applied as u64..;
        for ((op, entry), tag) in ops.zip(&batch.entries[applied..]).zip(tags.by_ref().take(most)) {
            self.apply(now, op, entry, tag, &mut effects);
        }
        if tags.len() > 0 {
            self.committed = Some(Committed { batch, tags });
        }
        self.answer_woken_watches();
    }

    fn apply(&mut self, now: Time, op: Op, entry: &Entry, tag: Tag, effects: &mut Vec<Effect>) {
        let event = log::log_enabled!(target: event::TARGET, log::Level::Debug)
            .then(|| Event::of(&self.state, op, &entry.command));
        let fingerprint = match tag.asked {
            Asked::Request { fingerprint, .. } => Some(fingerprint),
            Asked::Nobody | Asked::Outcome | Asked::Close | Asked::Kill => None,
        };
        let outcome =
            self.state.apply_known(op, (entry.at, entry.clock()), &entry.command, fingerprint, effects);
        for line in event.iter().flat_map(|event| event.lines(&self.state, &outcome, effects)) {
            log::debug!(target: event::TARGET, "{line}");
        }
        self.wake_watches(op);
        self.counts.count(Count::Commands);
        if let Command::NewTerm { .. } = entry.command {
            self.serving = true;
            self.serving_since = now;
        }
        if let Command::Tick = entry.command {
            self.tick_in_flight = false;
        }
        if let Command::Request(Request { call: Call::RepairFile { file, .. }, .. }) = &entry.command {
            self.repairing.remove(file);
        }
        for effect in effects.drain(..) {
            self.take_effect(now, effect);
        }
        self.answer(now, tag, outcome);
    }

    /// Takes in that time has passed: ends sessions whose lease ran out, resends what was not heard, lets what is due in
    /// log time take effect.
    pub fn handle_timeout(&mut self, now: Time) {
        if !self.serving {
            return;
        }
        self.looked = now;
        self.lapse(now);
        let due = self.state.next_due().is_some_and(|due| due <= now);
        let quiet = self.state.has_deadlines() && now >= self.last_at.after_ms(TICK_MS);
        if (due || quiet) && !self.tick_in_flight && self.room != Room::Full {
            self.tick_in_flight = true;
            self.gather(now, Command::Tick, Tag::default());
        }
        while let Some((session, id)) = self.tellings.pop_due(now) {
            self.tell(now, session, id);
        }
        self.answer_due_watches(now);
    }

    /// Takes in what was read for [`FileWork::Read`]; an error is a sentence.
    pub fn handle_file_read(&mut self, tag: u64, read: Result<Vec<u8>, String>) {
        match self.file_tags.remove(&tag) {
            Some(FileTag::Read { place, offset, count, length, tail }) => {
                let reply = match read {
                    Ok(mut bytes) => {
                        bytes.extend(tail.iter().flatten());
                        Ok(reads::file_page(bytes, offset, count, length, tail.is_some()))
                    }
                    Err(fault) => Err(Refusal::new(Kind::FileFault, fault)),
                };
                self.resolve_with(place, |out, id| match &reply {
                    Ok(page) => encode_result(out, id, page),
                    Err(refusal) => encode_error(out, id, refusal),
                });
                self.finish(place.key);
            }
            tag => panic!("a file was read for {tag:?}"),
        }
    }

    /// Takes in what was found for [`FileWork::Look`], length and CRC-32C; an error is a sentence.
    pub fn handle_file_look(&mut self, now: Time, tag: u64, found: Result<(u64, u32), String>) {
        match self.file_tags.remove(&tag) {
            Some(FileTag::Repair { place, looked_at, mut request }) => {
                match (found, &mut request.call) {
                    (
                        Ok((found_length, found_checksum)),
                        Call::RepairFile { generation, length, checksum, .. },
                    ) => {
                        (*generation, *length, *checksum) = (looked_at, found_length, found_checksum);
                    }
                    // Logged all the same: the refusal is the one final answer, and no later copy repairs anything.
                    (Err(fault), call) => log::warn!("{call:?}: {fault}"),
                    (Ok(_), call) => panic!("a file was looked at for {call:?}"),
                }
                let (session, id, fingerprint) = (request.session, request.id, request.call.fingerprint());
                let asked = Asked::Request { session, id, fingerprint };
                self.gather(now, Command::Request(request), Tag { place: Some(place), asked });
            }
            tag => panic!("a file was looked at for {tag:?}"),
        }
    }

    /// Takes in that the disk could not take what the log says of a file, or that somebody else changed it.
    pub fn handle_file_fault(&mut self, now: Time, file: Name, generation: Op, reason: String) {
        self.gather(now, Command::FileFault { file, generation, reason }, Tag::default());
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// Keeps the room of a datagram that was sent, for others.
    pub fn put_room(&mut self, room: Vec<u8>) {
        self.assemblies.put_room(room);
    }

    /// The next work for the files, in order.
    pub fn poll_file_work(&mut self) -> Option<FileWork> {
        self.file_work.pop_front()
    }

    /// The next batch for the log, if something was gathered and the log can take it.
    pub fn poll_batch(&mut self) -> Option<Arc<Batch>> {
        let first = self.gathered.first()?;
        // A start needs no free room; all else waits for it.
        if self.submitted.len() >= BATCHES_IN_FLIGHT || (self.room == Room::Full && self.serving) {
            return None;
        }
        let first_op = next_op(self.last_op, first);
        let reads_behind = |tag: &Tag| tag.place.map_or(0, |place| self.assemblies.reads_behind(place.key));
        let Taken { entries, tags, bytes } = self.gathered.take_batch(self.batch_bytes_max, reads_behind);
        self.last_op = first_op + entries.len() as u64 - 1;
        self.last_seq += 1;
        let batch = Arc::new(Batch {
            seq: self.last_seq,
            first_op,
            entries,
            bytes,
            digest_op: self.state.op(),
            digest: self.state.digest(),
        });
        self.submitted.push_back(Submitted { batch: batch.clone(), tags });
        Some(batch)
    }

    /// When to call [`Node::handle_timeout`] at the latest.
    pub fn poll_timeout(&self) -> Option<Time> {
        if !self.serving {
            return None;
        }
        // Without any room nothing can be decided, and waking up for what is due would only spin. For what will be due it does
        // wake up: a sleep past that counts as a stall, and stalls are no reason to end anything.
        let may_tick = !self.tick_in_flight && self.room != Room::Full;
        let due = if may_tick { self.state.next_due() } else { self.state.next_due_after(self.looked) };
        let quiet = (may_tick && self.state.has_deadlines()).then(|| self.last_at.after_ms(TICK_MS));
        let full = self.room == Room::Full;
        let lapse = if full { self.lapse_without_room } else { self.leases.next_look() };
        [lapse, due, quiet, self.tellings.next(), self.watches.next_due()].into_iter().flatten().min()
    }

    /// Takes a sign of life. False if there is no such session, or it lapses.
    fn hear(&mut self, now: Time, from: SocketAddr, sealed: bool, session: SessionId) -> bool {
        let heard = self.heard_at(now);
        if !self.leases.renew(session, now, heard) {
            return false;
        }
        if self.peers.insert(session, Peer { address: from, sealed }).is_none() {
            let untold =
                self.state.session(session).map(|session| session.untold_waits().collect::<Vec<_>>());
            for id in untold.unwrap_or_default() {
                self.tellings.begin_late(session, id, now);
            }
        }
        true
    }

    /// Takes in which replies to waits have arrived.
    fn hear_got(&mut self, now: Time, session: SessionId, got: &[u64]) {
        let heard = self.heard_at(now);
        for id in got {
            if let Some(since) = self.tellings.heard(session, *id) {
                self.hand_offs.note(&self.state, session, *id, heard.us_since(since));
            }
        }
    }

    /// Ends sessions whose lease has run out at `now`: each request is judged by what is true when it is looked at, not
    /// when the alarm clock rings.
    fn lapse(&mut self, now: Time) {
        if self.room == Room::Full {
            self.lapse_without_room = self.leases.pass(now);
            return;
        }
        while let Some(session) = self.leases.pop_lapsed(now) {
            let term = self.state.head().term;
            self.counts.count(Count::SessionsExpired);
            self.gather(
                now,
                Command::EndSession { session, term, reason: EndReason::Expired },
                Tag::default(),
            );
        }
    }

    /// The last place in the log that is given, or will be to what was gathered: what comes now gets a later one.
    fn given_op(&self) -> Op {
        self.last_op + self.gathered.len() as u64
    }

    fn gather(&mut self, now: Time, command: Command, tag: Tag) {
        self.last_at = self.last_at.max(now);
        let ahead_us = match crate::bug::planted("lease_by_log_time") {
            true => 0,
            false => self.clock.us_since(self.last_at),
        };
        self.gathered.push(Entry { at: self.last_at, ahead_us, command }, tag);
    }

    /// Answers an address that has not shown that it receives: `ping` as asked, everything else with the cookie to show,
    /// and nothing at all where that would be more than three times what came.
    fn ask_for_proof(
        &mut self,
        now: Time,
        from: SocketAddr,
        received: usize,
        sealed: bool,
        elements: &[Element],
        batch: bool,
    ) {
        let cookie = self.secrets.cookie(from, now);
        let text = "show that this address receives: repeat the request with this `cookie`";
        let refusal = Refusal::new(Kind::Verify, text).with(Detail::Cookie { cookie });
        let mut slots = Vec::new();
        for element in elements {
            let mut out = Vec::new();
            match &element.request {
                Ok(wire::Request { method: Method::Ping, .. }) => {
                    encode_result(&mut out, &element.id, &reads::ping());
                }
                Ok(_) | Err(_) => encode_error(&mut out, &element.id, &refusal),
            }
            slots.push(out);
        }
        let mut bytes = slots.join(&b","[..]);
        if batch {
            bytes.insert(0, b'[');
            bytes.push(b']');
        }
        let trailer = if sealed { datagram::TRAILER } else { 0 };
        if bytes.len() + trailer > 3 * received {
            return self.drop_datagram(Dropped::Unproven);
        }
        self.counts.count(Count::Verify);
        self.send(from, sealed, bytes);
    }

    fn resolve_with(&mut self, place: Place, encode: impl FnOnce(&mut Vec<u8>, &Id)) {
        self.assemblies.reply(place, encode);
    }

    /// Sends the replies of a message if all of them are there.
    fn finish(&mut self, key: MessageKey) {
        let Some(Finished { to, sealed, alone, arrays }) = self.assemblies.finish(key) else { return };
        for bytes in alone.into_iter().chain(arrays) {
            self.send(to, sealed, bytes);
        }
    }

    fn send(&mut self, to: SocketAddr, sealed: bool, mut bytes: Vec<u8>) {
        if sealed {
            datagram::seal(&mut bytes);
        }
        self.counts.count(Count::Sent);
        self.transmits.push_back(Transmit { to, bytes });
    }

    fn file_tag(&mut self, tag: FileTag) -> u64 {
        self.last_file_tag += 1;
        self.file_tags.insert(self.last_file_tag, tag);
        self.last_file_tag
    }

    /// Counts a datagram that is not taken in.
    pub fn drop_datagram(&mut self, cause: Dropped) {
        *self.drops.entry(cause.as_str()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A node that serves, and a client on its machine. The log commits at once, files are left to the test.
    struct Rig {
        node: Node,
        session: Value,
        id: u64,
    }

    impl Rig {
        fn new() -> Rig {
            Rig::with(Limits::default())
        }

        fn with(limits: Limits) -> Rig {
            let secrets = Secrets { cookie: [1; 16], session: [2; 16] };
            let durability = Durability::Sync;
            let node = Node::new(Time::ZERO, State::new(), limits, durability, false, secrets, 1 << 20);
            let mut rig = Rig { node, session: Value::Null, id: 0 };
            rig.commit();
            let opened = rig.call("open_session", json!({"nonce": "0".repeat(32)}));
            rig.session = opened.unwrap()["result"]["session"].clone();
            rig
        }

        fn commit(&mut self) {
            while let Some(batch) = self.node.poll_batch() {
                self.node.handle_committed(Time::ZERO, batch.seq);
            }
        }

        /// Sends a request; gives the reply if there is one yet.
        fn call(&mut self, method: &str, mut params: Value) -> Option<Value> {
            self.id += 1;
            if !self.session.is_null() {
                params["session"] = self.session.clone();
            }
            let message = json!({"jsonrpc": "2.0", "id": self.id, "method": method, "params": params});
            let from = SocketAddr::from(([127, 0, 0, 1], 7));
            self.node.handle_datagram(Time::ZERO, from, message.to_string().as_bytes());
            self.commit();
            self.node.poll_transmit().map(|transmit| serde_json::from_slice(&transmit.bytes).unwrap())
        }
    }

    #[test]
    fn a_commit_answers_only_so_many_reads_that_wait_behind_it() {
        let mut rig = Rig::new();
        let of = |rig: &Rig, id: usize| {
            let params = json!({"session": rig.session, "key": "k", "value": "v"});
            let mut elements = vec![json!({"jsonrpc": "2.0", "id": id, "method": "set", "params": params})];
            let read = json!({"jsonrpc": "2.0", "id": 0, "method": "get", "params": {"key": "k"}});
            elements.resize(64, read);
            json!(elements).to_string()
        };
        let from = SocketAddr::from(([127, 0, 0, 1], 7));
        for id in 10..110 {
            let message = of(&rig, id);
            rig.node.handle_datagram(Time::ZERO, from, message.as_bytes());
        }
        let mut sets = 0;
        while let Some(batch) = rig.node.poll_batch() {
            assert!(batch.entries.len() <= READS_BEHIND_MAX / 63);
            sets += batch.entries.len();
            rig.node.handle_committed(Time::ZERO, batch.seq);
            let replies = std::iter::from_fn(|| rig.node.poll_transmit()).count();
            assert_eq!(replies, batch.entries.len(), "each message has its answer");
        }
        assert_eq!(sets, 100);
    }

    /// A batch is heard for each session that it names, whoever stands before it.
    #[test]
    fn every_session_of_a_batch_is_heard() {
        let mut rig = Rig::new();
        let first = std::mem::replace(&mut rig.session, Value::Null);
        let opened = rig.call("open_session", json!({"nonce": "1".repeat(32)}));
        let second = opened.unwrap()["result"]["session"].clone();
        let heartbeat = |session: &Value| json!({"jsonrpc": "2.0", "id": 0, "method": "heartbeat", "params": {"session": session}});
        let nobody = json!("f".repeat(32));
        let batch = json!([&nobody, &first, &first, &second].map(heartbeat)).to_string();
        let from = SocketAddr::from(([127, 0, 0, 1], 7));
        let ttl_ms = Limits::default().default_ttl_ms;
        let heard = Time::from_millis(ttl_ms - 1);
        rig.node.handle_datagram(heard, from, batch.as_bytes());
        let mut live_at = |now| {
            rig.node.handle_timeout(now);
            while let Some(batch) = rig.node.poll_batch() {
                rig.node.handle_committed(now, batch.seq);
            }
            rig.node.state().live_sessions(0).count()
        };
        assert_eq!((live_at(heard.after_ms(ttl_ms - 1)), live_at(heard.after_ms(ttl_ms))), (2, 0));
    }

    /// Whichever sessions a batch names, in whichever order, it has as many requests of each as it has.
    #[test]
    fn a_batch_counts_what_it_asks_for_each_session() {
        let mut rig = Rig::with(Limits { replies: 4, ..Limits::default() });
        let first = std::mem::replace(&mut rig.session, Value::Null);
        let opened = rig.call("open_session", json!({"nonce": "1".repeat(32)}));
        let second = opened.unwrap()["result"]["session"].clone();
        let mut taken_of = |sessions: &[&Value]| {
            let set = |(id, session)| {
                let params = json!({"session": session, "ack": 1, "key": "k", "value": 1});
                json!({"jsonrpc": "2.0", "id": id, "method": "set", "params": params})
            };
            let batch: Vec<Value> = (10..).zip(sessions).map(set).collect();
            let from = SocketAddr::from(([127, 0, 0, 1], 7));
            rig.node.handle_datagram(Time::ZERO, from, json!(batch).to_string().as_bytes());
            rig.commit();
            let replies: Value = serde_json::from_slice(&rig.node.poll_transmit().unwrap().bytes).unwrap();
            let replies = replies.as_array().unwrap();
            assert_eq!(replies.len(), sessions.len());
            let refused = |reply: &&Value| reply["error"]["data"]["kind"] == "limit";
            sessions.len() - replies.iter().filter(refused).count()
        };
        let (a, b) = (&first, &second);
        assert_eq!(taken_of(&[a, a, b, a, b, b, a, b, b]), 0, "the window of the second has room for four");
        assert_eq!(taken_of(&[b, a, b, a, a, b, b, a, a]), 0, "so has that of the first");
        assert_eq!(taken_of(&[a, b, a, b, b, a, b, a]), 8);
    }

    /// The heartbeat's reply says that what gets a later place in the log came later. So a grant does that got one then, whenever
    /// its request was read.
    #[test]
    fn a_command_is_given_with_the_latest_moment_that_was_heard_of() {
        let mut rig = Rig::new();
        let mut ahead_after = |heard: u64, now: u64| {
            rig.node.set_heard(Time::from_millis(heard));
            let set = json!({"jsonrpc": "2.0", "id": heard, "method": "set",
                "params": {"session": rig.session, "key": "k", "value": 1}});
            let from = SocketAddr::from(([127, 0, 0, 1], 7));
            rig.node.handle_datagram(Time::from_millis(now), from, set.to_string().as_bytes());
            let batch = rig.node.poll_batch().unwrap();
            rig.node.handle_committed(Time::from_millis(now), batch.seq);
            let entry = &batch.entries[0];
            (entry.at.as_micros() / 1_000, entry.ahead_us / 1_000)
        };
        assert_eq!(ahead_after(300, 10), (10, 290));
        assert_eq!(ahead_after(20, 10), (10, 290), "it was read before, and waited");
        assert_eq!(ahead_after(301, 301), (301, 0), "log time has caught up");
        assert_eq!(ahead_after(302, 400), (400, 0));
        rig.node.set_heard(Time::from_millis(500));
        let params = json!({"session": rig.session, "key": "l", "lease_ms": 1_000});
        let acquire = json!({"jsonrpc": "2.0", "id": 500, "method": "acquire_lock", "params": params});
        let now = Time::from_millis(420);
        rig.node.handle_datagram(now, SocketAddr::from(([127, 0, 0, 1], 7)), acquire.to_string().as_bytes());
        let batch = rig.node.poll_batch().unwrap();
        rig.node.handle_committed(now, batch.seq);
        let (token, grant) = rig.node.state().live_grants(0).next().unwrap();
        assert_eq!(grant.lease_left_ms(now), Some(1_080), "so it is applied");
        // What is told of it is what is left from when the question was read.
        while rig.node.poll_transmit().is_some() {}
        let holder = std::mem::replace(&mut rig.session, Value::Null);
        let opened = rig.call("open_session", json!({"nonce": "1".repeat(32)}));
        let other = opened.unwrap()["result"]["session"].clone();
        let ask = json!({"jsonrpc": "2.0", "id": 501, "method": "ask_release",
            "params": {"session": other, "token": token, "reason": "why", "deadline_ms": 2_000}});
        rig.node.handle_datagram(now, SocketAddr::from(([127, 0, 0, 1], 7)), ask.to_string().as_bytes());
        let batch = rig.node.poll_batch().unwrap();
        rig.node.handle_committed(now, batch.seq);
        while rig.node.poll_transmit().is_some() {}
        rig.node.set_heard(Time::from_millis(700));
        let beat = json!({"jsonrpc": "2.0", "id": 502, "method": "heartbeat", "params": {"session": holder}});
        rig.node.handle_datagram(now, SocketAddr::from(([127, 0, 0, 1], 7)), beat.to_string().as_bytes());
        let told: Value = serde_json::from_slice(&rig.node.poll_transmit().unwrap().bytes).unwrap();
        assert_eq!(told["result"]["asked"][0]["left_ms"], 1_800, "{told}");
    }

    #[test]
    fn reads_of_files_that_wait_for_a_slow_disk_have_a_cap() {
        let mut rig = Rig::new();
        let token = rig.call("acquire_lock", json!({"key": "f"})).unwrap()["result"]["token"].clone();
        rig.call("append_file", json!({"file": "f", "token": token, "data": "x"})).unwrap();
        while rig.node.poll_file_work().is_some() {}
        let mut tags = Vec::new();
        for _ in 0..FILE_READS_MAX {
            assert_eq!(rig.call("read_file", json!({"file": "f"})), None);
            match rig.node.poll_file_work() {
                Some(FileWork::Read { tag, .. }) => tags.push(tag),
                other => panic!("{other:?}"),
            }
        }
        let refused = rig.call("read_file", json!({"file": "f"})).unwrap();
        assert_eq!(refused["error"]["data"]["kind"], "busy");
        assert!(rig.node.poll_file_work().is_none());
        rig.node.handle_file_read(tags[0], Ok(b"x".to_vec()));
        assert!(rig.node.poll_transmit().is_some());
        assert_eq!(rig.call("read_file", json!({"file": "f"})), None, "there is room again");
    }
}
