//! One turn of the loop, whatever is outside: the server's socket and threads, or a simulator's.
//!
//! A turn reads what has come (at most a buffer of it, all at one moment of log time); takes in commits and what became of
//! files; lets time pass; hands over the next batch and work for the files; sends. If that is more than a turn should do, the
//! rest is done in the next: what is committed first, then what was read before. Meanwhile it goes on reading for signs of
//! life (`backlog`).
//!
//! Time moves past a deadline only when the socket was found empty, or a whole buffer of it was read, after the deadline
//! had come, and not past a datagram that was read and waits: so a sign of life that waited is heard before anything
//! expires. What is heard gives life from the moment at which it was read, however long that time stood.

use crate::backlog::{Backlog, Waiting, is_sign_of_life};
use crate::clock::LogClock;
use crate::datagram::Dropped;
use crate::identity::Op;
use crate::image::record::Record;
use crate::image::{Event as ImageEvent, Handle, Look};
use crate::limits::DATAGRAM_MAX;
use crate::log::{Log, LogEvent};
use crate::node::{FileWork, Node, Transmit};
use crate::state::Parts;
use crate::time::Time;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// What the socket's receive buffer should hold: some 10,000 small datagrams, so that a stall of a second with a thousand
/// clients loses no heartbeat. (The default of 212,992 bytes holds 256.)
pub const RECEIVE_BUFFER: usize = 4 << 20;

/// At least so much of the buffer is taken by a datagram, however short it is. (832 bytes of a buffer that the kernel
/// makes twice as large as it was asked.)
const DATAGRAM_SHARE: usize = 256;

/// What one turn does at most, in numbers; it is bounded in time, too.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Datagrams taken in before the log and the clock get theirs. As many again, four times over, are read and wait.
    pub datagrams: usize,
    /// Committed commands applied; the others wait for the next turn.
    pub commands: usize,
    /// Things copied for a snapshot, as [`has_at_most`](crate::state::State::has_at_most) counts them; that of a larger state is
    /// made from the journal.
    pub copied: u64,
}

/// The server's.
impl Default for Pace {
    fn default() -> Pace {
        Pace { datagrams: 512, commands: 1_024, copied: 4_096 }
    }
}

/// How long a turn takes in what was read, in microseconds. Whoever waits for the end of a turn is to notice little of it: all
/// of it together stays within 5 ms, as long as no single command takes long (docs/performance.md, "How cost grows").
const READ_US: u64 = 1_500;

/// How long it goes on reading behind that, only to see whether there are signs of life.
const LOOK_US: u64 = 1_000;

/// How long it applies what is committed.
const APPLY_US: u64 = 1_500;

/// Bytes taken in between two looks at the clock, of datagrams that were read together.
const BYTES_A_LOOK: usize = 4_096;

/// And datagrams, however short: what a short one asks for may be long.
const DATAGRAMS_A_LOOK: usize = 8;

/// Commands applied between two looks at the clock: with 100 locks each they take some 200 us.
const COMMANDS_A_LOOK: usize = 8;

/// What a turn works with.
pub trait Outside {
    /// The next datagram that waits in the socket.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; any other is the socket's word on something that was sent.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)>;

    /// Whether the next datagram was read from the socket together with the one that was received last.
    fn read_together(&self) -> bool {
        false
    }

    /// Sends a datagram, at the latest with the next [`Outside::flush`]; one that cannot be sent is lost.
    ///
    /// # Errors
    /// A sentence: the server must end before this reply.
    fn send(&mut self, transmit: Transmit) -> Result<(), String>;

    /// Lets nothing that was sent wait any longer.
    fn flush(&mut self);

    /// The room of a datagram that was sent, if it is there to be used again.
    fn take_room(&mut self) -> Option<Vec<u8>> {
        None
    }

    /// The log.
    fn log(&mut self) -> &mut dyn Log;

    /// The files.
    fn files(&mut self) -> &Handle;
}

/// The node and its time.
pub struct Turn {
    /// The node.
    pub node: Node,
    /// The clock behind log time.
    pub clock: LogClock,
    /// Log time of this turn.
    pub now: Time,
    /// Whether the socket may have more.
    pub readable: bool,
    /// What of the files is safe.
    pub safe: Record,
    /// The last command that had work for the files.
    pub last_file_op: Op,
    /// How long the last turn took.
    pub took: Duration,
    /// How much of the socket's buffer was read since it was last found empty, at least.
    read_since_empty: usize,
    backlog: Backlog,
    pace: Pace,
    /// How many commands this turn still applies, and until when.
    commands_left: usize,
    apply_until: Time,
    buffer: Vec<u8>,
}

impl Turn {
    /// Turns of a node that begins now.
    pub fn new(node: Node, clock: LogClock, now: Time) -> Turn {
        let last_file_op = node.state().op();
        Turn {
            node,
            clock,
            now,
            readable: false,
            safe: Record::default(),
            last_file_op,
            took: Duration::ZERO,
            read_since_empty: 0,
            backlog: Backlog::default(),
            pace: Pace::default(),
            commands_left: 0,
            apply_until: now,
            buffer: vec![0; DATAGRAM_MAX + 1],
        }
    }

    /// The same turns in smaller or larger steps.
    pub fn with_pace(self, pace: Pace) -> Turn {
        Turn { pace, ..self }
    }

    /// Whether there is something to do at once. `read`: whether datagrams are read.
    pub fn is_behind(&self, read: bool) -> bool {
        self.node.has_committed() || read && (self.readable || !self.backlog.is_empty())
    }

    /// Takes in that the loop has slept since `slept_from`, having asked to be woken at `asked`.
    pub fn woke(&mut self, asked: Option<Time>, slept_from: Time) {
        // A deadline that had passed before the sleep is no reason to stop the clock.
        self.clock.slept(asked.map(|asked| asked.max(slept_from)));
    }

    /// The turn itself, after a sleep that was to end at `asked`. `read`: whether datagrams are read; before the term has
    /// begun they wait in the socket.
    ///
    /// # Errors
    /// A sentence: the server must end.
    pub fn work(&mut self, outside: &mut dyn Outside, asked: Option<Time>, read: bool) -> Result<(), String> {
        let began = self.clock.now();
        if read {
            self.hear(outside, began, asked)?;
        } else {
            self.now = self.now.max(began);
        }
        let read = self.clock.now_in_turn(began);
        self.node.set_heard(read);
        (self.commands_left, self.apply_until) = (self.pace.commands, read.after_us(APPLY_US));
        self.take_log_events(outside)?;
        self.take_image_events(outside);
        self.node.handle_timeout(self.now);
        self.hand_over(outside)?;
        self.send(outside)?;
        outside.flush();
        self.took = self.clock.worked(began);
        Ok(())
    }

    /// Reads what has come, and lets time pass up to `began`, when this turn did, or to when the oldest datagram was read that
    /// waits. If a deadline has come meanwhile, time stays just before it until the socket was read.
    fn hear(&mut self, outside: &mut dyn Outside, began: Time, asked: Option<Time>) -> Result<(), String> {
        // It may have become readable between the waking up and now.
        self.readable |= asked.is_some_and(|asked| asked <= began);
        if self.read_since_empty == 0 && self.backlog.is_empty() {
            let up_to = asked.map_or(began, |asked| began.min(asked.just_before()));
            self.now = self.now.max(up_to);
        }
        self.read(outside, began)?;
        if self.read_since_empty == 0 || self.read_since_empty >= RECEIVE_BUFFER {
            let heard_up_to = self.backlog.since().map_or(began, |since| since.min(began));
            self.now = self.now.max(heard_up_to);
            self.read_since_empty = 0;
        }
        Ok(())
    }

    /// Takes in what waits and what comes. What is committed goes first; and when this has taken long enough, only signs of
    /// life are taken in and the rest waits.
    fn read(&mut self, outside: &mut dyn Outside, began: Time) -> Result<(), String> {
        let mut left = if self.node.has_committed() { 0 } else { self.pace.datagrams };
        while left > 0
            && let Some(Waiting { heard, from, bytes }) = self.backlog.pop()
        {
            left = left_at(self.clock.now_in_turn(began), left, began);
            self.take_in(outside, heard, from, &bytes)?;
        }
        if !self.readable {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = self.read_socket(outside, began, left, &mut buffer);
        self.buffer = buffer;
        read
    }

    fn read_socket(
        &mut self,
        outside: &mut dyn Outside,
        began: Time,
        mut left: usize,
        buffer: &mut [u8],
    ) -> Result<(), String> {
        let (mut heard, mut bytes_since) = (began, BYTES_A_LOOK);
        for _ in 0..self.pace.datagrams * 5 {
            let read_together = outside.read_together();
            match outside.receive(buffer) {
                Ok((bytes, from)) => {
                    self.read_since_empty += bytes.max(DATAGRAM_SHARE);
                    if !read_together || bytes_since >= BYTES_A_LOOK {
                        (heard, bytes_since) = (self.clock.now_in_turn(began), 0);
                    }
                    bytes_since += bytes.max(BYTES_A_LOOK / DATAGRAMS_A_LOOK);
                    let datagram = &buffer[..bytes];
                    if left > 0 || is_sign_of_life(datagram) {
                        left = left_at(heard, left, began);
                        self.take_in(outside, heard, from, datagram)?;
                    } else if !self.backlog.push(heard, from, datagram) {
                        self.node.drop_datagram(Dropped::Overload);
                    }
                    if heard.us_since(began) > READ_US + LOOK_US {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    self.read_since_empty = 0;
                    outside.flush();
                    return Ok(());
                }
                // What the network says of a datagram that was sent (ECONNREFUSED and the like) is no news: clients resend.
                Err(error) => log::debug!("the socket says: {error}"),
            }
        }
        Ok(())
    }

    fn take_in(
        &mut self,
        outside: &mut dyn Outside,
        heard: Time,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), String> {
        self.node.set_heard(heard);
        self.node.handle_datagram(self.now, from, datagram);
        // What is answered at once goes at once: a turn's replies together could be large.
        self.send(outside)
    }

    /// Takes in what the log tells.
    ///
    /// # Errors
    /// A sentence: the server must end.
    pub fn take_log_events(&mut self, outside: &mut dyn Outside) -> Result<(), String> {
        while self.apply(outside)?
            && let Some(event) = outside.log().poll()
        {
            match event {
                LogEvent::Committed { seq } => self.node.begin_committed(seq),
                LogEvent::Room(room) => {
                    log::warn!("room on the disk for the journal: {room:?}");
                }
                LogEvent::FoldDue => {
                    // The image takes this for everything up to that command.
                    self.hand_over_files(outside);
                    outside.files().sync(self.node.state().op());
                    outside.log().fold(self.safe.clone(), self.copy());
                }
                LogEvent::SnapshotDone { op } => {
                    log::info!("a snapshot of op {op} is written");
                    self.node.set_gauge("snapshot_op", op);
                }
                LogEvent::SnapshotFailed { sentence } => log::warn!("no snapshot was written: {sentence}"),
                LogEvent::Failed { sentence } => return Err(sentence),
            }
        }
        self.node.set_room(self.now, outside.log().room());
        Ok(())
    }

    /// Whether the files have all that was committed for them and handed over.
    pub fn files_are_safe(&self) -> bool {
        self.safe.kept.is_empty() && self.safe.op >= self.last_file_op
    }

    /// The state for a snapshot, if it is small and no file lacks anything of it.
    fn copy(&self) -> Option<Box<Parts>> {
        let state = self.node.state();
        (self.files_are_safe() && state.has_at_most(self.pace.copied)).then(|| Box::new(state.parts()))
    }

    /// Applies what is committed, as far as this turn goes. True if nothing is left.
    fn apply(&mut self, outside: &mut dyn Outside) -> Result<bool, String> {
        while self.node.has_committed() {
            if self.commands_left == 0 || self.clock.now() > self.apply_until {
                return Ok(false);
            }
            let most = self.commands_left.min(COMMANDS_A_LOOK);
            self.commands_left -= most;
            self.node.apply_committed(self.now, most);
            self.send(outside)?;
        }
        Ok(true)
    }

    fn take_image_events(&mut self, outside: &mut dyn Outside) {
        while let Some(event) = outside.files().next_event() {
            self.take_image_event(event);
        }
        let files = outside.files();
        let pending = files.pending_bytes().saturating_sub(files.kept_bytes());
        self.node.set_file_bytes_pending(pending);
    }

    /// Takes in what the image tells.
    pub fn take_image_event(&mut self, event: ImageEvent) {
        match event {
            ImageEvent::ReadDone { tag, result } => self.node.handle_file_read(tag, result),
            ImageEvent::Looked { tag, result } => {
                let found = result.map(|looked| (looked.length, looked.checksum));
                self.node.handle_file_look(self.now, tag, found);
            }
            ImageEvent::Fault { file, generation, reason } => {
                log::warn!("file {file:?}: {reason}");
                self.node.handle_file_fault(self.now, file, generation, reason);
            }
            ImageEvent::Room { full } => {
                match full {
                    true => log::warn!(
                        "the files' disk is full: writes to them wait, and new appends are refused, until there is room"
                    ),
                    false => log::info!("the files' disk has room again: all that waited is written"),
                }
                self.node.set_files_full(full);
                self.node.set_gauge("files_full", full.into());
            }
            ImageEvent::Watermark(record) => self.safe = record,
        }
    }

    /// Hands batches to the log and work to the files, as long as one leads to the other.
    ///
    /// # Errors
    /// A sentence: the server must end.
    pub fn hand_over(&mut self, outside: &mut dyn Outside) -> Result<(), String> {
        loop {
            self.hand_over_files(outside);
            match self.node.poll_batch() {
                Some(batch) => {
                    outside.log().submit(batch);
                    // Tells the room that is left, too, before the next batch.
                    self.take_log_events(outside)?;
                }
                None => return Ok(()),
            }
        }
    }

    fn hand_over_files(&mut self, outside: &mut dyn Outside) {
        let files = outside.files();
        while let Some(work) = self.node.poll_file_work() {
            match work {
                FileWork::Apply(effect) => {
                    self.last_file_op = effect.op;
                    files.apply(effect);
                }
                FileWork::Read { tag, file, generation, offset, count, length } => {
                    files.read(tag, file, generation, offset, count, length);
                }
                FileWork::Look { tag, file, generation, length, checksum } => {
                    files.look(tag, Look { file, generation, length, checksum });
                }
            }
        }
    }

    /// Sends what is to be sent.
    ///
    /// # Errors
    /// A sentence: the server must end.
    pub fn send(&mut self, outside: &mut dyn Outside) -> Result<(), String> {
        while let Some(transmit) = self.node.poll_transmit() {
            outside.send(transmit)?;
        }
        while let Some(room) = outside.take_room() {
            self.node.put_room(room);
        }
        Ok(())
    }
}

/// How many datagrams a turn that began at `began` takes in behind the one that it takes in now.
fn left_at(now: Time, left: usize, began: Time) -> usize {
    if now.us_since(began) > READ_US { 0 } else { left.saturating_sub(1) }
}

#[cfg(test)]
mod tests;
