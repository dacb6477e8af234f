//! The image: the files of a data directory, kept as the state says, off the event loop.
//!
//! The state decides everything about files when a command is applied: which exist, how long they are, what they
//! hold. The disk is an image of that, written in log order by one thread that nothing waits for. A write that fails
//! changes no outcome: its bytes are in the journal. The file gets a fault, which the loop puts into the log, and
//! everything else goes on.
//!
//! Lack of room is no fault. A write that finds none waits, the later writes of its file behind it, and is tried again
//! every second and at each sync; other files go on. Reads see what waits. A delete or a rotate that finds none holds up
//! all later effects, since nothing may be done before it; reads of files that none of them is about go on. The loop is
//! told, so that it takes no more appends, and told again when all is written: nobody has to do anything but make room.
//!
//! ```text
//!   loop ── Apply, Read, Look, Sync, Stop ────────► image ──► files/..., image.json
//!    ▲                                                │
//!    └── ReadDone, Looked, Fault, Room, Watermark ◄───┘   and one call of `wake` for each bunch of them
//! ```
//!
//! - [`tree`] opens paths, and by no way that leaves the directory.
//! - [`record`] is the safe watermark in `image.json`.
//! - `mirror` knows each file and does the work; `recover` brings it to the state at start, and says what is known
//!   after a crash at each point.
//!
//! Invariants: a file is only ever written at its recorded offset, and only if it ends there (after a crash: if what
//! stands past its safe length can be ours). Bytes of somebody else are never overwritten, cut or hidden by the
//! running server; `delete_file` alone removes them, since it names the file, not its bytes. A failed sync is never
//! tried again as if nothing had been. Not noticed: an edit in place that keeps the length, until the next start, when
//! all checksums are checked in the background.

mod mirror;
pub mod record;
mod recover;
mod stepped;
pub mod tree;

use crate::identity::Op;
use crate::name::Name;
use crate::outcome::{FileAct, FileEffect};
use crate::state::FilePart;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use mirror::{Mirror, weight};
use record::Record;
use rustix::io::Errno;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tree::describe;

pub use stepped::Stepped;

/// The image at rest: recovered, not yet running.
#[derive(Debug)]
pub struct Image {
    mirror: Mirror,
}

/// What a recovery did and found. Faults come as [`Event::Fault`] once the image runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Effects that were executed again.
    pub redone: u64,
    /// Files that were cut to what the state has.
    pub cut: Vec<Cut>,
    /// Files on disk that the state does not know. They were left alone.
    pub unknown: tree::Unknown,
}

/// A file that was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The file.
    pub file: Name,
    /// Its length before, in bytes.
    pub from: u64,
    /// Its length after, in bytes.
    pub to: u64,
}

/// What the loop asks about a file that has a fault: is it, or can it be made, what the state has?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// The file.
    pub file: Name,
    /// Its generation.
    pub generation: u64,
    /// Its length in the state, in bytes.
    pub length: u64,
    /// The CRC-32C of its bytes in the state.
    pub checksum: u32,
}

/// What was found on disk, and is synced: what `repair_file` may make the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looked {
    /// Length in bytes.
    pub length: u64,
    /// CRC-32C of the bytes.
    pub checksum: u32,
    /// Whether that is what the state has: nothing was lost and nobody else's bytes are in it.
    pub restored: bool,
}

/// What the image tells the loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A read is done.
    ReadDone {
        /// Which.
        tag: u64,
        /// The bytes, fewer than asked for at the end of the file; or why there are none, as a sentence.
        result: Result<Vec<u8>, String>,
    },
    /// A look is done.
    Looked {
        /// Which.
        tag: u64,
        /// What was found; or why nothing can be said, as a sentence.
        result: Result<Looked, String>,
    },
    /// The file can take no more: to be logged as `file_fault`. Void if the state has another generation by now.
    Fault {
        /// The file.
        file: Name,
        /// Its generation.
        generation: u64,
        /// Why, as a sentence.
        reason: String,
    },
    /// Lack of room holds up effects on files, or does so no longer.
    Room {
        /// Whether it does.
        full: bool,
    },
    /// The safe watermark moved, durably: what [`Record::is_safe`] says of an effect now holds over any crash.
    Watermark(Record),
}

/// The running image. All methods return at once, however slow the disk is.
#[derive(Debug)]
pub struct Handle {
    tasks: Sender<Task>,
    events: Receiver<Event>,
    gauges: Arc<Gauges>,
    /// None where the caller does its work.
    thread: Option<JoinHandle<()>>,
}

/// Numbers to watch.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pending: Gauge,
    kept: Gauge,
    faults: Gauge,
}

impl Image {
    /// Brings the files to the state after a stop. `files` is the state; `redo` are the effects of the log in
    /// order, at least those that [`Record::is_safe`] does not know to be safe, up to the state's `op`; others do no
    /// harm. `trust_surplus`: the log may have lost records whose bytes had reached the files (an
    /// unclean stop under `--durability os` or `none`), so bytes past the state's length are cut, not refused.
    ///
    /// Lengths are checked here, checksums in the background once the image runs. No state of a file makes this fail.
    ///
    /// # Errors
    /// The data directory or `image.json` cannot be used, with a sentence. What was redone so far is safe to redo.
    pub fn recover(
        data_dir: &Path,
        files: &[FilePart],
        redo: Vec<FileEffect>,
        trust_surplus: bool,
    ) -> io::Result<(Image, Recovery)> {
        let (mirror, recovery) = recover::recover(data_dir, files, redo, trust_surplus)?;
        Ok((Image { mirror }, recovery))
    }

    /// Starts the thread. `wake` is called after events were put into the channel; it must not block.
    ///
    /// # Errors
    /// The system has no thread for us. Nothing has changed.
    pub fn start(self, wake: Box<dyn Fn() + Send>) -> io::Result<Handle> {
        let (outbox, events) = crossbeam_channel::unbounded();
        let (worker, mut handle) = self.staff(outbox, events, wake);
        let thread = std::thread::Builder::new().name("image".to_owned()).spawn(move || worker.run())?;
        handle.thread = Some(thread);
        Ok(handle)
    }

    /// Who does the work, and the loop's side of it, which hears `events`.
    fn staff(
        mut self,
        outbox: Sender<Event>,
        events: Receiver<Event>,
        wake: Box<dyn Fn() + Send>,
    ) -> (Worker, Handle) {
        let (tasks, inbox) = crossbeam_channel::unbounded();
        let gauges = Arc::clone(&self.mirror.gauges);
        let backlog = self.mirror.behind.drain(..).map(Task::Apply).collect();
        let worker = Worker {
            mirror: self.mirror,
            inbox,
            outbox,
            wake,
            backlog,
            sync_at: None,
            retry_at: None,
            room_at: None,
            check_at: None,
            told_full: false,
            told_now: None,
        };
        (worker, Handle { tasks, events, gauges, thread: None })
    }
}

impl Handle {
    /// Hands over an effect of a committed command. Effects go in the order of the log; a delete or rotate is the only
    /// effect of its command.
    pub fn apply(&self, effect: FileEffect) {
        self.gauges.pending.add(weight(&effect));
        self.send(Task::Apply(effect));
    }

    /// Asks for the bytes `[offset, offset + limit)`, at most 1 MiB, of a file that the state has with this generation
    /// and `length`. Sees every effect handed over before. Answered by [`Event::ReadDone`].
    pub fn read(&self, tag: u64, file: Name, generation: u64, offset: u64, limit: u64, length: u64) {
        self.send(Task::Read { tag, file, generation, offset, limit, length });
    }

    /// Asks what a faulted file holds, after trying to make it what the state has: writing again what is kept, if all
    /// that stands on disk is ours. The fault stays until a [`FileAct::Repair`] with
    /// what was found. Reads the whole file. Answered by [`Event::Looked`].
    pub fn look(&self, tag: u64, look: Look) {
        self.send(Task::Look { tag, look });
    }

    /// Asks for a sync now, and to try again what waits for room; says that every effect up to `op` has been handed over: the watermark may rise that far
    /// although later commands had no effects on files. Answered by [`Event::Watermark`] if it moved.
    pub fn sync(&self, op: Op) {
        self.send(Task::Sync { op });
    }

    /// The next event, if there is one.
    pub fn next_event(&self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    /// The channel of events, for a `select!`.
    pub fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    /// Bytes of effects in memory: those not yet synced, and those kept for files with a fault. The loop answers
    /// `busy` to appends above [`PENDING_BYTES_MAX`].
    pub fn pending_bytes(&self) -> u64 {
        self.gauges.pending.get() + self.gauges.kept.get()
    }

    /// The part of [`pending_bytes`](Handle::pending_bytes) that goes only with a repair or a delete.
    pub fn kept_bytes(&self) -> u64 {
        self.gauges.kept.get()
    }

    /// Files with a fault.
    pub fn faults(&self) -> u64 {
        self.gauges.faults.get()
    }

    /// Whether the thread still runs. It ends by [`stop`](Handle::stop) alone; anything else is a bug.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Executes what was handed over, syncs, records, and ends the thread; waits for that at most `patience`. Gives the
    /// events that nobody has taken yet, and whether the thread ended in time. What was not done is in the journal.
    pub fn stop(self, patience: Duration) -> (Vec<Event>, bool) {
        self.send(Task::Stop);
        let deadline = Instant::now() + patience;
        let mut events = Vec::new();
        // The channel closes when the thread ends.
        loop {
            match self.events.recv_deadline(deadline) {
                Ok(event) => events.push(event),
                Err(RecvTimeoutError::Timeout) => return (events, false),
                Err(RecvTimeoutError::Disconnected) => {
                    return (events, self.thread.is_none_or(|thread| thread.join().is_ok()));
                }
            }
        }
    }

    fn send(&self, task: Task) {
        if self.tasks.send(task).is_err() {
            log::error!("the image thread has ended");
        }
    }
}

/// Above this many [`pending_bytes`](Handle::pending_bytes) appends are to be answered `busy`.
pub const PENDING_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug)]
enum Task {
    Apply(FileEffect),
    Read { tag: u64, file: Name, generation: u64, offset: u64, limit: u64, length: u64 },
    Look { tag: u64, look: Look },
    Sync { op: Op },
    Stop,
}

/// The thread.
struct Worker {
    mirror: Mirror,
    inbox: Receiver<Task>,
    outbox: Sender<Event>,
    wake: Box<dyn Fn() + Send>,
    /// Tasks taken from the channel, in order.
    backlog: VecDeque<Task>,
    sync_at: Option<Instant>,
    /// When to try again what the record or a lack of room stopped; until then nothing is executed but some reads.
    retry_at: Option<Instant>,
    /// When to try again the writes that wait for room.
    room_at: Option<Instant>,
    check_at: Option<Instant>,
    /// What the loop was told of the room.
    told_full: bool,
    /// The moment that it is, where no thread runs and the caller says so.
    told_now: Option<Instant>,
}

impl Worker {
    fn now(&self) -> Instant {
        self.told_now.unwrap_or_else(Instant::now)
    }

    fn run(mut self) {
        self.housekeep();
        self.tell();
        loop {
            let open = self.gather();
            // A stop does not wait for a record that cannot be written: the journal has everything.
            let given_up = self.retry_at.is_some() && matches!(self.backlog.back(), Some(Task::Stop));
            if !open || given_up || self.work() {
                break;
            }
            self.housekeep();
            self.tell();
        }
        if self.retry_at.is_none() {
            self.mirror.resume();
            if let Err(error) = self.mirror.sync() {
                log::error!("image.json cannot be written at the stop: {error}");
            }
        }
        self.tell();
    }

    /// Whether tasks that were taken can be executed.
    fn has_work(&self) -> bool {
        !self.backlog.is_empty() && self.retry_at.is_none()
    }

    /// When there is something to do by the clock.
    fn due(&self) -> Option<Instant> {
        let due = || [self.sync_at, self.room_at, self.check_at].into_iter().flatten().min();
        self.retry_at.or_else(due)
    }

    /// Waits for tasks until something else is due; false once nobody can send any more.
    fn gather(&mut self) -> bool {
        let due = if self.has_work() { Some(Instant::now()) } else { self.due() };
        let first = match due {
            Some(due) => self.inbox.recv_deadline(due),
            None => self.inbox.recv().map_err(RecvTimeoutError::from),
        };
        match first {
            Ok(task) => self.take(task),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return self.has_work();
            }
        }
        while self.backlog.len() < GATHER_MAX {
            match self.inbox.try_recv() {
                Ok(task) => self.take(task),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        true
    }

    fn take(&mut self, task: Task) {
        if matches!(task, Task::Sync { .. }) && self.retry_at.is_some() {
            self.retry_at = Some(self.now());
        }
        self.backlog.push_back(task);
    }

    /// Executes tasks; true if one of them is the stop.
    fn work(&mut self) -> bool {
        if let Some(at) = self.retry_at {
            if self.now() < at {
                self.read_beside();
                return false;
            }
            self.mirror.resume();
        }
        while let Some(task) = self.backlog.pop_front() {
            match self.execute(&task) {
                Ok(stop) if stop => return true,
                Ok(_) => self.retry_at = None,
                Err(error) => {
                    if lack_of_room(&error).is_none() {
                        log::error!("image.json cannot be written, so files stand still: {error}");
                    }
                    self.backlog.push_front(task);
                    self.retry_at = Some(self.now() + RETRY);
                    self.read_beside();
                    return false;
                }
            }
            if self.mirror.is_full() {
                self.sync_at = Some(self.now());
                return false;
            }
        }
        false
    }

    /// While files stand still, answers the reads of those that no earlier task is about.
    fn read_beside(&mut self) {
        let mut named = BTreeSet::new();
        let mut rest = VecDeque::with_capacity(self.backlog.len());
        for task in std::mem::take(&mut self.backlog) {
            match &task {
                Task::Apply(effect) => {
                    named.insert(effect.file.clone());
                    if let FileAct::Rotate { to } = &effect.act {
                        named.insert(to.clone());
                    }
                }
                Task::Read { tag, file, generation, offset, limit, length } if !named.contains(file) => {
                    let result = self.mirror.read(file, *generation, *offset, *limit, *length);
                    self.mirror.events.push(Event::ReadDone { tag: *tag, result });
                    continue;
                }
                Task::Read { .. } | Task::Look { .. } | Task::Sync { .. } | Task::Stop => {}
            }
            rest.push_back(task);
        }
        self.backlog = rest;
    }

    fn execute(&mut self, task: &Task) -> io::Result<bool> {
        match task {
            Task::Apply(effect) => self.mirror.apply(effect.clone())?,
            Task::Read { tag, file, generation, offset, limit, length } => {
                let result = self.mirror.read(file, *generation, *offset, *limit, *length);
                self.mirror.events.push(Event::ReadDone { tag: *tag, result });
                self.tell();
            }
            Task::Look { tag, look } => {
                let result = self.mirror.look(look);
                self.mirror.events.push(Event::Looked { tag: *tag, result });
                self.tell();
            }
            Task::Sync { op } => {
                self.mirror.reached(*op);
                self.mirror.resume();
                // Only a delete or rotate has to wait for the record; this one is tried again by the clock.
                self.sync_or_later();
            }
            Task::Stop => return Ok(true),
        }
        Ok(false)
    }

    /// What is due by the clock: syncs, and the check of files that the start did not read.
    fn housekeep(&mut self) {
        if self.retry_at.is_some() {
            return;
        }
        let now = self.now();
        if !self.mirror.is_waiting() {
            self.room_at = None;
        } else if *self.room_at.get_or_insert(now + RETRY) <= now {
            self.mirror.resume();
            self.room_at = Some(self.now() + RETRY);
        }
        if !self.mirror.is_dirty() {
            self.sync_at = None;
        } else if *self.sync_at.get_or_insert(now + SYNC_PERIOD) <= now {
            self.sync_at = None;
            self.sync_or_later();
        }
        if !self.mirror.has_checks() {
            self.check_at = None;
        } else if *self.check_at.get_or_insert(now + CHECK_PERIOD) <= now {
            self.mirror.check_some();
            self.check_at = Some(self.now() + CHECK_PERIOD);
        }
    }

    fn sync_or_later(&mut self) {
        if let Err(error) = self.mirror.sync() {
            if lack_of_room(&error).is_none() {
                log::error!("image.json cannot be written: {error}");
            }
            self.sync_at = Some(self.now() + RETRY);
        }
    }

    /// Passes events on, and wakes the loop if there were any.
    fn tell(&mut self) {
        let full = self.mirror.lacks_room();
        if full != self.told_full {
            self.told_full = full;
            self.mirror.events.push(Event::Room { full });
        }
        if self.mirror.events.is_empty() {
            return;
        }
        for event in self.mirror.events.drain(..) {
            if self.outbox.send(event).is_err() {
                log::debug!("nobody listens to the image any more");
            }
        }
        (self.wake)();
    }
}

/// A number that one side raises and the other lowers.
#[derive(Debug, Default)]
struct Gauge(AtomicU64);

impl Gauge {
    fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn sub(&self, less: u64) {
        let before = self.0.fetch_sub(less, Ordering::Relaxed);
        debug_assert!(before >= less, "the image gave back more than it was given: {before} < {less}");
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the system said, if it was that there is no room.
fn lack_of_room(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error).filter(|errno| matches!(*errno, Errno::NOSPC | Errno::DQUOT))
}

/// A point at which a test may stop or fail the image.
fn point(name: &str) -> io::Result<()> {
    #[cfg(test)]
    tests::at(name)?;
    crate::failpoint::hit(name)
}

/// Under load, files are synced this often.
const SYNC_PERIOD: Duration = Duration::from_millis(200);

/// What found no room, and a record that could not be written, is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// A slice of the background check is read this often: 256 KiB each, so about 12 MiB a second.
const CHECK_PERIOD: Duration = Duration::from_millis(20);

/// Tasks taken from the channel at a time, so that syncs come in between.
const GATHER_MAX: usize = 1024;

#[cfg(test)]
mod tests;
