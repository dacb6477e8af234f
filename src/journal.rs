//! The journal: batches, written and synced in order by a thread of their own.
//!
//! ```text
//!  loop ── submit ──► journal thread ── write, fdatasync ──► segment
//!    ▲                  │        ▲  ▲
//!    └── poll, waker ◄──┘        │  └── keeper: makes the spare and the reserve, removes old segments
//!                                └───── fold:   segments into the next snapshot, low in priority
//! ```
//!
//! (Where it can be had, the write and the sync of a batch are one call: see `journal/segment_file.rs`.)
//!
//! One write and one sync are in flight at a time; the batches that come meanwhile go together into the next. Any error
//! of a write or a sync is the end: [`LogEvent::Failed`], nothing is tried again, since the kernel may call pages clean
//! that it could not write. Only the lack of space for *another* file is no failure: it shows as [`Room`].
//!
//! What is acknowledged when, by [`Durability`]:
//!
//! | durability | a batch is committed when | synced |
//! | --- | --- | --- |
//! | `sync` | it is synced | always |
//! | `os` | the kernel has it | at most once a second, and at the end of a segment |
//! | `none` | it was submitted, unless 4 MiB wait to be written | as `os` |
//!
//! The batch with `new_term` is synced whatever the durability: it is what tells the next start that this one was not a
//! clean stop, before anything is answered.

mod opened;
mod pages;
mod segment_file;
mod stepped;

pub use stepped::Stepped;

use crate::batch::{self, SegmentId};
use crate::command::{Command, Durability};
use crate::fold::{self, Done, Order};
use crate::identity::Op;
use crate::image::record::Record;
use crate::log::{Batch, Log, LogEvent, Room, bytes_of, step};
use crate::record;
use crate::recovery::{Known, Tail, random};
use crate::segment;
use crate::snapshot::ServerId;
use crate::state::Parts;
use crate::storage::{DataDir, DiskError, SNAPSHOT, Zeros, point};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, unbounded};
use opened::{Opened, seal};
use segment_file::SegmentFile;
use std::collections::VecDeque;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The smallest segment, in bytes.
pub const SEGMENT_BYTES_MIN: u64 = 256 * 1024;
/// The largest segment, in bytes: recovery reads a whole one into memory.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// The largest batch, in bytes, if segments are large enough.
const BATCH_BYTES_MAX: u64 = 1 << 20;
/// Batches that go together into one write, in bytes.
const MERGE_BYTES_MAX: usize = 4 << 20;
/// So much may be committed ahead of its writing under `none`, in bytes: a disk that is slower than the clients must slow
/// them down before it fills the memory.
const AHEAD_BYTES_MAX: u64 = 4 << 20;
/// The smallest reserve for a snapshot, in bytes.
const RESERVE_BYTES_MIN: u64 = 1 << 20;
/// What a full segment keeps for seals, in bytes.
const SEAL_ROOM: u64 = 4_096;

/// Nobody waits for a batch that was told ahead (`none`): so long more of them may come, and are written with it. Without this
/// the loop wakes this thread for each batch, which costs both more than the batch does.
const LINGER: Duration = Duration::from_millis(5);

/// Commands of batches that nobody waits for between two moments at which others may have the core: the loop on the same one
/// has clients that wait.
const POLITE: u32 = 64;

/// After so long without a batch the last one is sealed.
const SEAL_AFTER: Duration = Duration::from_millis(100);
/// Under `os` and `none`, at most one sync in this time while all is quiet or busy.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How often the keeper asks a full disk again.
const SPACE_RETRY: Duration = Duration::from_secs(1);
/// How long after a failed fold the next one is asked for.
const FOLD_RETRY: Duration = Duration::from_secs(5);

const _: () =
    assert!(SEGMENT_BYTES_MIN / 2 > 2 * (48 * 1024 + 1_024), "an append and its seal fit half a segment");

/// How the journal is kept.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// What acknowledged means.
    pub durability: Durability,
    /// Bytes of a segment: [`SEGMENT_BYTES_MIN`] to [`SEGMENT_BYTES_MAX`].
    pub segment_bytes: u64,
    /// A fold is due after so many commands, ...
    pub fold_ops: u64,
    /// ... or so many bytes of segments.
    pub fold_bytes: u64,
    /// How what is synced at once gets to the disk.
    pub way: Way,
    /// Gives back what a start or a fold has used; see [`Config`](crate::server::Config).
    pub give_memory_back: fn(),
}

/// How what is synced at once gets to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Directly, where the file system is known to honour that; else through the page cache.
    BestKnown,
    /// Into the page cache, with a sync of its own.
    Cached,
    /// In whole pages that are durable when their write returns; past the page cache where that can be had. For tests: whether
    /// the file system honours it is not asked.
    Direct,
}

impl JournalConfig {
    /// How batches get to the disk: what is synced later is better left in the page cache.
    fn way(&self) -> Way {
        match self.durability {
            Durability::Sync => self.way,
            Durability::Os | Durability::None => Way::Cached,
        }
    }
}

impl Default for JournalConfig {
    fn default() -> JournalConfig {
        JournalConfig {
            durability: Durability::Sync,
            segment_bytes: 16 << 20,
            fold_ops: 1_000_000,
            fold_bytes: 16 << 20,
            way: Way::BestKnown,
            give_memory_back: || (),
        }
    }
}

/// The log of one node.
///
/// Dropped without [`Log::close`] it leaves the disk as a crash would.
pub struct FileLog {
    inbox: Sender<Message>,
    events: Receiver<LogEvent>,
    /// Events that needed no thread.
    own: VecDeque<LogEvent>,
    gauge: Arc<Gauge>,
    durability: Durability,
    batch_bytes_max: usize,
    /// All that was ever submitted, in bytes as [`bytes_of`] counts them.
    submitted_bytes: u64,
    submitted: u64,
    committed: u64,
    thread: Option<JoinHandle<Result<(), String>>>,
}

/// What the loop's side reads of the journal's side without asking it.
#[derive(Debug, Default)]
struct Gauge {
    /// Bytes left in the segment.
    left: AtomicU64,
    /// All that was ever written, in bytes as [`bytes_of`] counts them.
    written_bytes: AtomicU64,
    /// Whether the spare is there.
    spare: AtomicBool,
    /// Whether the disk had no room for the spare or the reserve when last asked.
    short: AtomicBool,
}

enum Message {
    Batch(Encoded),
    Flush,
    Fold(Record, Option<Box<Parts>>),
    Close,
    /// The log was dropped: end, and leave the disk as it is.
    Abandon,
    Kept(Kept),
    Folded(Result<Done, DiskError>),
}

/// A batch on its way to the disk. The loop encodes it: it has just made it, so all of it is in the caches, and frees what it
/// allocated.
struct Encoded {
    /// The submitter's tag.
    seq: u64,
    first_op: Op,
    /// How far that is from the op before it.
    step: Op,
    count: u32,
    begins_term: bool,
    /// Whether it is committed already.
    told: bool,
    digest_op: Op,
    digest: u32,
    /// What it was counted as, in bytes as [`bytes_of`] counts them.
    counted: usize,
    /// The records.
    body: Vec<u8>,
}

impl Encoded {
    fn of(batch: &Batch, told: bool) -> Encoded {
        let mut body = Vec::with_capacity(batch.bytes);
        batch.entries.iter().for_each(|entry| record::encode(entry, &mut body));
        assert!(batch::bytes(body.len()) <= batch.bytes, "a batch is not larger than it was counted");
        Encoded {
            seq: batch.seq,
            first_op: batch.first_op,
            step: step(&batch.entries[0].command),
            count: u32::try_from(batch.entries.len()).expect("a batch is capped in bytes"),
            begins_term: begins_term(batch),
            told,
            digest_op: batch.digest_op,
            digest: batch.digest,
            counted: batch.bytes,
            body,
        }
    }
}

/// What the keeper tells.
enum Kept {
    Spare,
    Short(DiskError),
    Enough,
    Failed(DiskError),
}

/// What the keeper is asked for.
enum Keep {
    Spare,
    Reserve(u64),
    Remove(Vec<u64>),
}

impl FileLog {
    /// Rewrites the tail that recovery found, and starts the threads. `wake` is called, on a thread of the journal,
    /// whenever there may be something to poll.
    ///
    /// # Errors
    /// A sentence. The directory holds the same state as before.
    pub fn start(
        dir: Arc<DataDir>,
        tail: &Tail,
        config: &JournalConfig,
        wake: Box<dyn Fn() + Send>,
    ) -> Result<FileLog, DiskError> {
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&config.segment_bytes) {
            return Err(DiskError::new(format!(
                "a segment of {} bytes is out of range: {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}",
                config.segment_bytes
            )));
        }
        let opened = Opened::open(&dir, tail, config)?;
        let (inbox, messages) = unbounded();
        let (events_in, events) = unbounded();
        let helpers = Helpers::start(&dir, config, &inbox)?;
        let outbox = Outbox { events: events_in, wake, told_room: Room::Ok };
        let writer = Writer::new(dir, tail, config, opened, messages, helpers, outbox, Instant::now());
        let mut log = FileLog::beside(&writer, inbox, events);
        log.thread = Some(spawn("journal", move || writer.run())?);
        Ok(log)
    }

    /// The loop's side of a journal.
    fn beside(writer: &Writer, inbox: Sender<Message>, events: Receiver<LogEvent>) -> FileLog {
        FileLog {
            inbox,
            events,
            own: VecDeque::new(),
            gauge: writer.gauge.clone(),
            durability: writer.config.durability,
            batch_bytes_max: batch_bytes_max(writer.config.segment_bytes) as usize,
            submitted_bytes: 0,
            submitted: 0,
            committed: 0,
            thread: None,
        }
    }
}

impl FileLog {
    /// Bytes that were submitted and are not known to be written.
    fn unwritten(&self) -> u64 {
        self.submitted_bytes - self.gauge.written_bytes.load(Ordering::Acquire)
    }
}

fn batch_bytes_max(segment_bytes: u64) -> u64 {
    BATCH_BYTES_MAX.min(segment_bytes / 2 - SEAL_ROOM)
}

/// Where nobody waits for a sync, its own speed is worth nothing.
fn zeros_for(durability: Durability) -> Zeros {
    match durability {
        Durability::Sync => Zeros::Written,
        Durability::Os | Durability::None => Zeros::Promised,
    }
}

fn reserve_for(snapshot_bytes: u64) -> u64 {
    RESERVE_BYTES_MIN.max(snapshot_bytes.saturating_mul(2))
}

/// The size of the last snapshot, 0 if there is none.
fn snapshot_bytes(dir: &DataDir) -> u64 {
    fs::metadata(dir.path().join(SNAPSHOT)).map_or(0, |found| found.len())
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, DiskError> {
    let spawned = thread::Builder::new().name(name.into()).spawn(work);
    spawned.map_err(|error| {
        DiskError::new(format!("cannot start the {name} thread: {error}; check the limit on threads"))
    })
}

impl Log for FileLog {
    fn submit(&mut self, batch: Arc<Batch>) {
        assert!(!batch.entries.is_empty(), "a batch has at least one entry");
        assert_eq!(batch.seq, self.submitted + 1, "tags rise by one");
        let bytes = batch.bytes;
        debug_assert_eq!(bytes, bytes_of(&batch.entries));
        assert!(
            bytes <= self.batch_bytes_max,
            "a batch of {bytes} bytes is larger than {}",
            self.batch_bytes_max
        );
        let seq = batch.seq;
        let told = self.durability == Durability::None
            && self.committed == self.submitted
            && self.unwritten() <= AHEAD_BYTES_MAX
            && !begins_term(&batch);
        self.submitted = seq;
        self.submitted_bytes += bytes as u64;
        if told {
            self.committed = seq;
            self.own.push_back(LogEvent::Committed { seq });
        }
        // A journal that has ended has told why; poll gives it.
        let _ = self.inbox.send(Message::Batch(Encoded::of(&batch, told)));
    }

    fn poll(&mut self) -> Option<LogEvent> {
        if let Some(event) = self.own.pop_front() {
            return Some(event);
        }
        match self.events.try_recv() {
            Ok(event) => {
                if let LogEvent::Committed { seq } = event {
                    assert_eq!(seq, self.committed + 1, "batches are committed in order, each once");
                    self.committed = seq;
                }
                Some(event)
            }
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                let panicked = self.thread.take().is_some_and(|thread| thread.join().is_err());
                let sentence = "the journal thread broke one of its own rules; please report it".into();
                panicked.then_some(LogEvent::Failed { sentence })
            }
        }
    }

    fn room(&self) -> Room {
        // In this order: what is written meanwhile is counted twice rather than not at all.
        let unwritten = self.unwritten();
        self.gauge.room(unwritten, self.batch_bytes_max as u64)
    }

    fn batch_bytes_max(&self) -> usize {
        self.batch_bytes_max
    }

    fn flush(&mut self) {
        let _ = self.inbox.send(Message::Flush);
    }

    fn fold(&mut self, safe: Record, state: Option<Box<Parts>>) {
        let _ = self.inbox.send(Message::Fold(safe, state));
    }

    fn close(&mut self) -> Result<(), String> {
        let _ = self.inbox.send(Message::Close);
        match self.thread.take().map(JoinHandle::join) {
            None => Err("the log was closed or had failed before".into()),
            Some(Ok(ended)) => ended,
            Some(Err(_)) => Err("the journal thread broke one of its own rules; please report it".into()),
        }
    }
}

impl Drop for FileLog {
    fn drop(&mut self) {
        let _ = self.inbox.send(Message::Abandon);
        if let Some(thread) = self.thread.take() {
            // It has told what it had to tell.
            let _ = thread.join();
        }
    }
}

fn begins_term(batch: &Batch) -> bool {
    batch.entries.iter().any(|entry| matches!(entry.command, Command::NewTerm { .. }))
}

impl Gauge {
    /// The room, when so many bytes are submitted and not yet written.
    fn room(&self, outstanding: u64, batch_bytes_max: u64) -> Room {
        if !self.short.load(Ordering::Acquire) {
            return Room::Ok;
        }
        let left = self.left.load(Ordering::Acquire).saturating_sub(outstanding);
        match self.spare.load(Ordering::Acquire) {
            false if left < batch_bytes_max + SEAL_ROOM => Room::Full,
            _ => Room::Low,
        }
    }
}

/// Writes bytes; where failpoints are compiled in, in two parts with one of them between.
fn append_in_halves(file: &mut SegmentFile, bytes: &[u8]) -> std::io::Result<()> {
    if cfg!(any(debug_assertions, feature = "failpoints")) {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        file.append(first)?;
        crate::failpoint::hit("journal.half_write")?;
        file.append(second)
    } else {
        file.append(bytes)
    }
}

/// The way back to the loop.
struct Outbox {
    events: Sender<LogEvent>,
    wake: Box<dyn Fn() + Send>,
    told_room: Room,
}

impl Outbox {
    fn tell(&self, event: LogEvent) {
        // A loop that is gone needs no news.
        let _ = self.events.send(event);
        (self.wake)();
    }
}

/// The journal thread.
struct Writer {
    dir: Arc<DataDir>,
    config: JournalConfig,
    server: ServerId,
    at: Opened,
    messages: Receiver<Message>,
    /// Messages that came while something else was waited for; they go first.
    backlog: VecDeque<Message>,
    helpers: Helpers,
    outbox: Outbox,
    gauge: Arc<Gauge>,
    /// Whether something was written and not synced.
    dirty: bool,
    /// Whether the last batch is named as synced by one behind it.
    sealed: bool,
    last_write: Instant,
    last_sync: Instant,
    /// What the last batch said of the outcomes.
    digest: (Op, u32),
    snapshot_op: Op,
    folding: bool,
    /// Whether the loop was told that a fold is due and has not asked for it yet.
    fold_told: bool,
    /// Whether a fold is due with the next commit, whatever was written since.
    fold_due: bool,
    fold_ops: u64,
    fold_bytes: u64,
    fold_again: Option<Instant>,
    /// The moment that it is, where no thread runs and the caller says so.
    told_now: Option<Instant>,
}

impl Writer {
    /// A journal that goes on at `opened`. The keeper gets its first jobs.
    #[expect(clippy::too_many_arguments, reason = "the parts of a struct, once")]
    fn new(
        dir: Arc<DataDir>,
        tail: &Tail,
        config: &JournalConfig,
        opened: Opened,
        messages: Receiver<Message>,
        helpers: Helpers,
        outbox: Outbox,
        now: Instant,
    ) -> Writer {
        let gauge = Arc::new(Gauge::default());
        gauge.left.store(opened.file.left(), Ordering::Release);
        gauge.short.store(opened.short, Ordering::Release);
        helpers.keep(Keep::Spare);
        helpers.keep(Keep::Reserve(reserve_for(snapshot_bytes(&dir))));
        Writer {
            dir,
            config: config.clone(),
            server: tail.server,
            at: opened,
            messages,
            backlog: VecDeque::new(),
            helpers,
            outbox,
            gauge,
            dirty: false,
            sealed: true,
            last_write: now,
            last_sync: now,
            digest: (0, 0),
            snapshot_op: tail.snapshot_op,
            folding: false,
            fold_told: false,
            fold_due: true,
            fold_ops: 0,
            fold_bytes: 0,
            fold_again: None,
            told_now: None,
        }
    }

    fn now(&self) -> Instant {
        self.told_now.unwrap_or_else(Instant::now)
    }

    fn run(mut self) -> Result<(), String> {
        let ended = self.serve().map_err(|error| error.sentence);
        if let Err(sentence) = &ended {
            self.outbox.tell(LogEvent::Failed { sentence: sentence.clone() });
        }
        self.helpers.stop();
        ended
    }

    fn serve(&mut self) -> Result<(), DiskError> {
        loop {
            match self.next_message() {
                Next::Message(message) => {
                    if let Message::Batch(Encoded { told: true, .. }) = message {
                        thread::sleep(LINGER);
                    }
                    if !self.take(message)? {
                        return Ok(());
                    }
                }
                Next::Idle => {}
                Next::Gone => return Ok(()),
            }
            self.when_due()?;
        }
    }

    /// Does what a message asks for; false if that is to end.
    fn take(&mut self, message: Message) -> Result<bool, DiskError> {
        match message {
            Message::Batch(batch) => {
                let batches = self.gather(batch);
                self.write(&batches)?;
            }
            Message::Flush => self.sync()?,
            Message::Fold(safe, state) => self.fold(safe, state)?,
            Message::Close => {
                self.finish()?;
                return Ok(false);
            }
            Message::Abandon => return Ok(false),
            Message::Kept(kept) => self.kept(kept)?,
            Message::Folded(folded) => self.folded(folded),
        }
        Ok(true)
    }

    fn next_message(&mut self) -> Next {
        if let Some(message) = self.backlog.pop_front() {
            return Next::Message(message);
        }
        let received = match self.deadline() {
            Some(due) => self.messages.recv_deadline(due),
            None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(message) => Next::Message(message),
            Err(RecvTimeoutError::Timeout) => Next::Idle,
            Err(RecvTimeoutError::Disconnected) => Next::Gone,
        }
    }

    /// When there is something to do without a message.
    fn deadline(&self) -> Option<Instant> {
        [self.seal_due(), self.fold_again].into_iter().flatten().min()
    }

    /// When the last batch is to be synced, if it is not, and sealed.
    fn seal_due(&self) -> Option<Instant> {
        let quiet = self.last_write + SEAL_AFTER;
        match self.config.durability {
            _ if !self.dirty && (self.sealed || !self.has_room(batch::bytes(0))) => None,
            Durability::Sync => Some(quiet),
            Durability::Os | Durability::None => Some(quiet.max(self.last_sync + SYNC_EVERY)),
        }
    }

    /// Does what is due by the clock.
    fn when_due(&mut self) -> Result<(), DiskError> {
        let now = self.now();
        if self.seal_due().is_some_and(|due| due <= now) {
            self.sync()?;
            self.seal()?;
        } else if self.dirty && now.duration_since(self.last_sync) >= SYNC_EVERY {
            self.sync()?;
        }
        if self.fold_again.is_some_and(|due| due <= now) {
            self.fold_again = None;
            self.tell_fold_due();
        }
        Ok(())
    }

    /// The batch with those that came behind it meanwhile.
    fn gather(&mut self, batch: Encoded) -> Vec<Encoded> {
        let mut bytes = batch.counted;
        let mut batches = vec![batch];
        while bytes < MERGE_BYTES_MAX {
            let next = match self.backlog.pop_front() {
                Some(message) => message,
                None => match self.messages.try_recv() {
                    Ok(message) => message,
                    Err(_) => break,
                },
            };
            match next {
                Message::Batch(batch) => {
                    bytes += batch.counted;
                    batches.push(batch);
                }
                other => {
                    self.backlog.push_front(other);
                    break;
                }
            }
        }
        batches
    }

    /// Writes batches, makes them as durable as configured, and tells.
    fn write(&mut self, batches: &[Encoded]) -> Result<(), DiskError> {
        let bytes = batches.iter().map(|batch| batch::bytes(batch.body.len())).sum();
        let (mut out, mut done, mut since_polite) = (Vec::with_capacity(bytes), 0, 0);
        for (index, batch) in batches.iter().enumerate() {
            since_polite += batch.count;
            if batch.told && since_polite > POLITE {
                since_polite = 0;
                thread::yield_now();
            }
            let expected = self.at.last_op.saturating_add(batch.step);
            assert_eq!(batch.first_op, expected, "ops follow one another, op {} here", self.at.last_op);
            if !self.has_room(out.len() + batch::bytes(batch.body.len())) {
                self.put(&mut out)?;
                self.commit(&batches[done..index])?;
                done = index;
                self.rotate()?;
            }
            self.at.seq += 1;
            let header = batch::Header {
                seq: self.at.seq,
                first_op: batch.first_op,
                count: batch.count,
                synced: if crate::bug::planted("synced_ahead") { self.at.seq - 1 } else { self.at.synced },
                digest_op: batch.digest_op,
                digest: batch.digest,
                body_bytes: 0,
                body_crc: 0,
            };
            batch::encode(self.at.id, &header, &batch.body, &mut out);
            self.at.last_op = header.last_op();
            self.digest = (batch.digest_op, batch.digest);
            self.fold_ops += u64::from(batch.count);
        }
        self.put(&mut out)?;
        self.commit(&batches[done..])
    }

    fn has_room(&self, bytes: usize) -> bool {
        bytes as u64 <= self.at.file.left()
    }

    /// Hands bytes to the kernel.
    fn put(&mut self, out: &mut Vec<u8>) -> Result<(), DiskError> {
        if out.is_empty() {
            return Ok(());
        }
        point("journal.before_write", self.at.file.path())?;
        append_in_halves(&mut self.at.file, out)
            .map_err(|error| DiskError::io("write", self.at.file.path(), &error))?;
        point("journal.after_write", self.at.file.path())?;
        self.fold_bytes += out.len() as u64;
        self.gauge.left.store(self.at.file.left(), Ordering::Release);
        (self.dirty, self.sealed, self.last_write) = (true, false, self.now());
        out.clear();
        Ok(())
    }

    /// Tells that batches which were put are committed, once they are.
    fn commit(&mut self, batches: &[Encoded]) -> Result<(), DiskError> {
        if batches.is_empty() {
            return Ok(());
        }
        let term = batches.iter().any(|batch| batch.begins_term);
        let late = crate::bug::planted("reply_before_sync");
        if (term || self.config.durability == Durability::Sync) && !late {
            self.sync()?;
        }
        let bytes: usize = batches.iter().map(|batch| batch.counted).sum();
        self.gauge.written_bytes.fetch_add(bytes as u64, Ordering::AcqRel);
        // While room is short, what is written makes room in the eyes of the loop.
        let mut news = self.gauge.short.load(Ordering::Acquire);
        for batch in batches.iter().filter(|batch| !batch.told) {
            let _ = self.outbox.events.send(LogEvent::Committed { seq: batch.seq });
            news = true;
        }
        if news {
            (self.outbox.wake)();
        }
        self.tell_room();
        if self.fold_due || self.fold_ops >= self.config.fold_ops || self.fold_bytes >= self.config.fold_bytes
        {
            self.tell_fold_due();
        }
        Ok(())
    }

    /// Syncs what was written. Never tried again: an error is the end.
    fn sync(&mut self) -> Result<(), DiskError> {
        if !self.dirty {
            return Ok(());
        }
        point("journal.before_sync", self.at.file.path())?;
        let synced = self.at.file.sync().map_err(|error| DiskError::io("sync", self.at.file.path(), &error));
        if !crate::bug::planted("error_of_a_sync_ignored") {
            synced?;
        }
        point("journal.after_sync", self.at.file.path())?;
        (self.dirty, self.last_sync, self.at.synced) = (false, self.now(), self.at.seq);
        Ok(())
    }

    /// Seals the last batch, which is synced, if it is not sealed and there is room.
    fn seal(&mut self) -> Result<(), DiskError> {
        if self.sealed || !self.has_room(batch::bytes(0)) {
            return Ok(());
        }
        assert!(!self.dirty, "a seal says that all before it is synced");
        let mut out = Vec::new();
        self.at.seq += 1;
        batch::encode(self.at.id, &seal(self.at.seq, self.at.last_op, self.digest), &[], &mut out);
        self.put(&mut out)?;
        self.sync()?;
        self.sealed = true;
        Ok(())
    }

    /// Goes on in the next segment, which says by its header that all before it is synced.
    fn rotate(&mut self) -> Result<(), DiskError> {
        self.sync()?;
        self.await_spare()?;
        let (number, size) = (self.at.number + 1, self.config.segment_bytes);
        let id = SegmentId(random()?);
        let header = segment::Header::new(self.server, number, id, self.at.seq + 1, self.at.last_op, size);
        let file = SegmentFile::begin(&self.dir, &header, self.config.way())?;
        self.at.closed.push_back(Known {
            number: number - 1,
            last_op: self.at.last_op,
            end: self.at.file.end(),
        });
        // A segment counts whole: what no batch fits into, and the header of the next.
        self.fold_bytes += self.at.file.left() + segment::HEADER_BYTES as u64;
        (self.at.file, self.at.number, self.at.id) = (file, number, id);
        self.gauge.spare.store(false, Ordering::Release);
        self.gauge.left.store(self.at.file.left(), Ordering::Release);
        self.sealed = true;
        self.helpers.keep(Keep::Spare);
        Ok(())
    }

    /// Waits for the spare if it must: batches that wait with it are not committed, and not refused either. Messages
    /// that came before are heard first, since the keeper's word may be among them; what must wait keeps its order.
    fn await_spare(&mut self) -> Result<(), DiskError> {
        let mut before = std::mem::take(&mut self.backlog);
        let mut closing = false;
        while !self.gauge.spare.load(Ordering::Acquire) {
            if closing && self.gauge.short.load(Ordering::Acquire) {
                return Err(DiskError::new(format!(
                    "the disk of {} was full to the end: what waited for room was neither committed nor answered",
                    self.dir.path().display()
                )));
            }
            if self.told_now.is_some() {
                return Err(DiskError::new(
                    "without threads, the keeper must have its turn before the segment is full",
                ));
            }
            match before.pop_front().or_else(|| self.messages.recv().ok()) {
                Some(Message::Kept(kept)) => self.kept(kept)?,
                Some(Message::Folded(folded)) => self.folded(folded),
                Some(Message::Fold(safe, state)) => self.fold(safe, state)?,
                Some(Message::Close) => {
                    closing = true;
                    self.backlog.push_back(Message::Close);
                }
                Some(message @ (Message::Batch(..) | Message::Flush)) => self.backlog.push_back(message),
                Some(Message::Abandon) | None => {
                    return Err(DiskError::new("the log was dropped while it waited for room on the disk"));
                }
            }
        }
        self.backlog.append(&mut before);
        Ok(())
    }

    /// Hears from the keeper.
    fn kept(&mut self, kept: Kept) -> Result<(), DiskError> {
        match kept {
            Kept::Spare => self.gauge.spare.store(true, Ordering::Release),
            Kept::Short(error) => {
                if !self.gauge.short.swap(true, Ordering::AcqRel) {
                    ::log::warn!("{error}; until there is room, only what frees something is accepted");
                }
                self.remove_covered(self.snapshot_op);
                if !self.at.closed.is_empty() {
                    self.tell_fold_due();
                }
            }
            Kept::Enough => {
                if self.gauge.short.swap(false, Ordering::AcqRel) {
                    ::log::info!("there is room on the disk again");
                }
            }
            Kept::Failed(error) => return Err(error),
        }
        self.tell_room();
        Ok(())
    }

    /// Tells the room if it changed. (The loop counts what is outstanding for itself, see [`Log::room`].)
    fn tell_room(&mut self) {
        let room = self.gauge.room(0, batch_bytes_max(self.config.segment_bytes));
        if room != self.outbox.told_room {
            self.outbox.told_room = room;
            self.outbox.tell(LogEvent::Room(room));
        }
    }

    fn tell_fold_due(&mut self) {
        let nothing_new = self.at.last_op == self.snapshot_op;
        if !(self.fold_told || self.folding || nothing_new || self.fold_again.is_some()) {
            self.fold_told = true;
            self.outbox.tell(LogEvent::FoldDue);
        }
    }

    /// Sends the fold thread off, up to what is synced now.
    fn fold(&mut self, safe: Record, state: Option<Box<Parts>>) -> Result<(), DiskError> {
        self.fold_told = false;
        if self.folding || self.at.last_op == self.snapshot_op {
            return Ok(());
        }
        self.sync()?;
        let current = Known { number: self.at.number, last_op: self.at.last_op, end: self.at.file.end() };
        let segments = self.at.closed.iter().copied().chain([current]).collect();
        if crate::bug::planted("segments_deleted_before_the_snapshot") {
            self.remove_covered(self.at.last_op);
        }
        (self.folding, self.fold_due, self.fold_ops, self.fold_bytes) = (true, false, 0, 0);
        // It may be behind the last snapshot, which has what was written and not yet applied; and where room is waited for,
        // it may have come before batches that it has.
        let state = state.filter(|parts| (self.snapshot_op + 1..=self.at.last_op).contains(&parts.head.op));
        self.helpers.fold(Order {
            server: self.server,
            segments,
            safe,
            state,
            snapshot_op: self.snapshot_op,
        });
        Ok(())
    }

    /// Hears from the fold thread.
    fn folded(&mut self, folded: Result<Done, DiskError>) {
        self.folding = false;
        match folded {
            Ok(done) => {
                self.snapshot_op = done.op;
                // One cycle longer, so that the previous snapshot is of use; unless the disk is short.
                let short = self.gauge.short.load(Ordering::Acquire);
                self.remove_covered(if short { done.op } else { done.previous_op });
                self.helpers.keep(Keep::Reserve(reserve_for(done.bytes)));
                self.outbox.tell(LogEvent::SnapshotDone { op: done.op });
            }
            Err(error) => {
                self.fold_due = true;
                // The reserve may have been spent on the attempt.
                self.helpers.keep(Keep::Reserve(reserve_for(snapshot_bytes(&self.dir))));
                self.fold_again = Some(self.now() + FOLD_RETRY);
                self.outbox.tell(LogEvent::SnapshotFailed { sentence: error.sentence });
            }
        }
    }

    /// Lets go of closed segments that a durable snapshot covers.
    fn remove_covered(&mut self, op: Op) {
        let mut numbers = Vec::new();
        while let Some(known) = self.at.closed.front().filter(|known| known.last_op <= op) {
            numbers.push(known.number);
            self.at.closed.pop_front();
        }
        if !numbers.is_empty() {
            self.helpers.keep(Keep::Remove(numbers));
        }
    }

    /// Makes all durable, and seals.
    fn finish(&mut self) -> Result<(), DiskError> {
        self.sync()?;
        self.seal()
    }
}

enum Next {
    Message(Message),
    Idle,
    Gone,
}

/// The threads beside the journal thread. They hear that they are to end from `stop` and from their queue.
struct Helpers {
    stop: Arc<AtomicBool>,
    keep: Option<Sender<Keep>>,
    fold: Option<Sender<Order>>,
    threads: Vec<JoinHandle<()>>,
}

impl Helpers {
    fn start(
        dir: &Arc<DataDir>,
        config: &JournalConfig,
        inbox: &Sender<Message>,
    ) -> Result<Helpers, DiskError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (keep, jobs) = unbounded();
        let (fold, orders) = unbounded::<Order>();
        let keeper = Keeper {
            dir: dir.clone(),
            segment_bytes: config.segment_bytes,
            zeros: zeros_for(config.durability),
            stop: stop.clone(),
            inbox: inbox.clone(),
            spare: None,
            reserve: None,
        };
        let keeper = spawn("keeper", move || keeper.run(&jobs))?;
        let (dir, halt, inbox) = (dir.clone(), stop.clone(), inbox.clone());
        let give_memory_back = config.give_memory_back;
        let folder = spawn("snapshot", move || {
            fold::lower_priority();
            // The start has used memory, too.
            let mut quiet = fold::MEMORY_IDLE;
            loop {
                match orders.recv_timeout(quiet) {
                    Ok(order) => {
                        if inbox.send(Message::Folded(fold::fold(&dir, order, &halt))).is_err() {
                            return;
                        }
                        quiet = fold::MEMORY_IDLE;
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        give_memory_back();
                        quiet = fold::MEMORY_AGAIN;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok(Helpers { stop, keep: Some(keep), fold: Some(fold), threads: vec![keeper, folder] })
    }

    fn keep(&self, job: Keep) {
        if let Some(keep) = &self.keep {
            let _ = keep.send(job);
        }
    }

    fn fold(&self, order: Order) {
        if let Some(fold) = &self.fold {
            let _ = fold.send(order);
        }
    }

    /// Ends the threads and waits for them.
    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        (self.keep, self.fold) = (None, None);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                ::log::error!("a thread beside the journal broke one of its own rules; please report it");
            }
        }
    }
}

/// The keeper thread: what takes long and is needed later.
struct Keeper {
    dir: Arc<DataDir>,
    segment_bytes: u64,
    zeros: Zeros,
    stop: Arc<AtomicBool>,
    inbox: Sender<Message>,
    /// What is still to be made.
    spare: Option<()>,
    reserve: Option<u64>,
}

impl Keeper {
    fn run(mut self, jobs: &Receiver<Keep>) {
        loop {
            let wait = self.spare.is_some() || self.reserve.is_some();
            let job = match wait {
                true => jobs.recv_timeout(SPACE_RETRY),
                false => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let job = match job {
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => None,
                Ok(job) => Some(job),
            };
            if let Err(error) = self.work(job) {
                if !self.stop.load(Ordering::Relaxed) {
                    self.tell(Kept::Failed(error));
                }
                return;
            }
        }
    }

    /// Does a job, and what still waits for room.
    fn work(&mut self, job: Option<Keep>) -> Result<(), DiskError> {
        match job {
            None => {}
            Some(Keep::Spare) => self.spare = Some(()),
            Some(Keep::Reserve(bytes)) => self.reserve = Some(bytes),
            Some(Keep::Remove(numbers)) => {
                numbers.iter().try_for_each(|&number| self.dir.remove_segment(number))?;
            }
        }
        self.make()
    }

    /// Makes what is missing, as far as there is room.
    fn make(&mut self) -> Result<(), DiskError> {
        let mut lack = None;
        if self.spare.is_some() {
            let made = match self.dir.has_spare(self.segment_bytes)? {
                true => Ok(()),
                false => self.dir.make_spare(self.segment_bytes, self.zeros, &self.stop),
            };
            match made {
                Ok(()) => {
                    self.spare = None;
                    self.tell(Kept::Spare);
                }
                Err(error) if error.no_space => lack = Some(error),
                Err(error) => return Err(error),
            }
        }
        if let Some(bytes) = self.reserve {
            match self.dir.hold_reserve(bytes) {
                Ok(()) => self.reserve = None,
                Err(error) if error.no_space => lack = Some(error),
                Err(error) => return Err(error),
            }
        }
        self.tell(lack.map_or(Kept::Enough, Kept::Short));
        Ok(())
    }

    fn tell(&self, kept: Kept) {
        let _ = self.inbox.send(Message::Kept(kept));
    }
}

#[cfg(test)]
mod tests;
