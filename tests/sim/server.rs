//! The server under simulation: the real node, loop turn, journal, fold, image and recovery, each thread's work as a turn
//! that takes simulated time.

use crate::checks::Oracle;
use crate::disk::Disk;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tenure::clock::LogClock;
use tenure::command::Durability;
use tenure::image::record::Record;
use tenure::image::{self, Image};
use tenure::journal::{self, FileLog, JournalConfig, Way};
use tenure::limits::Limits;
use tenure::log::{Batch, Log, LogEvent, Room};
use tenure::node::{Node, Transmit};
use tenure::proof::Secrets;
use tenure::recovery::{self, Recovered};
use tenure::state::Parts;
use tenure::storage::DataDir;
use tenure::time::Time;
use tenure::turn::{Outside, Pace, Turn};

/// What the server is started with.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) limits: Limits,
    pub(crate) durability: Durability,
    pub(crate) way: Way,
    pub(crate) segment_bytes: u64,
    pub(crate) fold_ops: u64,
    pub(crate) buffer: usize,
    pub(crate) pace: Pace,
}

/// The log, with an ear at it.
pub(crate) struct Tap {
    log: FileLog,
    oracle: Rc<RefCell<Oracle>>,
}

impl Tap {
    pub(crate) fn file_log(&self) -> &FileLog {
        &self.log
    }
}

impl Log for Tap {
    fn submit(&mut self, batch: Arc<Batch>) {
        self.oracle.borrow_mut().submitted(&batch);
        self.log.submit(batch);
    }

    fn poll(&mut self) -> Option<LogEvent> {
        let event = self.log.poll();
        if let Some(LogEvent::Committed { seq }) = &event {
            self.oracle.borrow_mut().committed(*seq);
        }
        event
    }

    fn room(&self) -> Room {
        self.log.room()
    }

    fn batch_bytes_max(&self) -> usize {
        self.log.batch_bytes_max()
    }

    fn flush(&mut self) {
        self.log.flush();
    }

    fn fold(&mut self, safe: Record, state: Option<Box<Parts>>) {
        self.log.fold(safe, state);
    }

    fn close(&mut self) -> Result<(), String> {
        self.log.close()
    }
}

/// What the loop works with.
pub(crate) struct Out {
    pub(crate) inbox: VecDeque<(Vec<u8>, SocketAddr)>,
    pub(crate) sent: Vec<Transmit>,
    pub(crate) log: Tap,
    files: image::Handle,
    /// The process stands still for so long at the next datagram.
    pub(crate) stop_at_next: u64,
    clock: Rc<ServerClock>,
}

impl Outside for Out {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.clock.stop(std::mem::take(&mut self.stop_at_next));
        let (bytes, from) = self.inbox.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        Ok((count, from))
    }

    fn send(&mut self, transmit: Transmit) -> Result<(), String> {
        self.sent.push(transmit);
        Ok(())
    }

    fn flush(&mut self) {}

    fn log(&mut self) -> &mut dyn Log {
        &mut self.log
    }

    fn files(&mut self) -> &image::Handle {
        &self.files
    }
}

/// The server's own clock: it runs at a rate of its own, and a process that is stopped in a turn sees it jump.
pub(crate) struct ServerClock {
    pub(crate) now: Rc<Cell<u64>>,
    pub(crate) rate: u64,
    pub(crate) offset: u64,
    extra: Cell<u64>,
}

impl ServerClock {
    pub(crate) fn new(now: Rc<Cell<u64>>, rate: u64, offset: u64) -> ServerClock {
        ServerClock { now, rate, offset, extra: Cell::new(0) }
    }

    fn boot(&self) -> u64 {
        self.offset + (self.now.get() + self.extra.get()) * self.rate / 1_000_000
    }

    fn stop(&self, micros: u64) {
        self.extra.set(self.extra.get() + micros);
    }

    /// How long the turn that is over stood still.
    pub(crate) fn take_stop(&self) -> u64 {
        self.extra.take()
    }
}

/// The threads beside the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Thread {
    Journal,
    Keeper,
    Fold,
    Image,
}

pub(crate) const THREADS: [Thread; 4] = [Thread::Journal, Thread::Keeper, Thread::Fold, Thread::Image];

/// One run of the server.
pub(crate) struct Server {
    pub(crate) turn: Turn,
    pub(crate) out: Out,
    pub(crate) journal: journal::Stepped,
    image: image::Stepped,
    pub(crate) clock: Rc<ServerClock>,
    /// The turn on the disk that each thread is in.
    pub(crate) busy: [Option<u64>; 4],
    /// When the loop runs next, and what it asked for when it went to sleep.
    pub(crate) loop_at: Option<u64>,
    pub(crate) slept: (Option<Time>, Time),
    pub(crate) keeper_retry: u64,
    pub(crate) loops: u64,
    /// When the threads are looked at next.
    pub(crate) threads_at: Option<u64>,
    pub(crate) errors_before: u64,
    origin: Instant,
    _dir: Arc<DataDir>,
    pub(crate) path: PathBuf,
}

/// Why there is no server.
pub(crate) struct Refused(pub(crate) String);

/// Reads a directory as a start does, and changes nothing.
pub(crate) fn look(path: &Path) -> Result<Recovered, Refused> {
    let dir = DataDir::open(path).map_err(|error| Refused(error.sentence))?;
    recovery::recover(&dir).map_err(|error| Refused(error.sentence))
}

impl Server {
    /// Starts a server as `server.rs` does. `check` sees what was recovered.
    pub(crate) fn start(
        path: &Path,
        disk: &Disk,
        settings: &Settings,
        clock: Rc<ServerClock>,
        oracle: &Rc<RefCell<Oracle>>,
        origin: Instant,
        secrets: Secrets,
    ) -> Result<Server, Refused> {
        let errors_before = disk.errors();
        let refused = |error: tenure::storage::DiskError| Refused(error.sentence);
        let dir = Arc::new(DataDir::open(path).map_err(refused)?);
        let recovered = recovery::recover(&dir).map_err(refused)?;
        oracle.borrow_mut().recovered(&recovered.state, recovered.fresh);
        let config = JournalConfig {
            durability: settings.durability,
            segment_bytes: settings.segment_bytes,
            fold_ops: settings.fold_ops,
            fold_bytes: 4 * settings.segment_bytes,
            way: settings.way,
            give_memory_back: || (),
        };
        let now = origin + Duration::from_micros(clock.now.get());
        let (log, journal) =
            journal::Stepped::start(dir.clone(), &recovered.tail, &config, now).map_err(refused)?;
        if recovered.fell_back {
            dir.put_damaged_aside().map_err(refused)?;
        }
        let files = recovered.state.parts().files;
        let (image, _) = Image::recover(dir.path(), &files, recovered.redo, recovered.must_raise)
            .map_err(|error| Refused(format!("the files cannot be recovered: {error}")))?;
        let (files, image) = image::Stepped::start(image, now);
        let source = clock.clone();
        let log_clock = LogClock::with_source(recovered.state.at(), Box::new(move || source.boot()));
        let log_now = log_clock.now();
        let node = Node::new(
            log_now,
            recovered.state,
            settings.limits.clone(),
            settings.durability,
            recovered.must_raise,
            secrets,
            log.batch_bytes_max(),
        );
        Ok(Server {
            turn: Turn::new(node, log_clock, log_now).with_pace(settings.pace),
            out: Out {
                inbox: VecDeque::new(),
                sent: Vec::new(),
                log: Tap { log, oracle: oracle.clone() },
                files,
                stop_at_next: 0,
                clock: clock.clone(),
            },
            journal,
            image,
            clock,
            busy: [None; 4],
            loop_at: None,
            slept: (None, log_now),
            keeper_retry: 0,
            loops: 0,
            threads_at: None,
            errors_before,
            origin,
            _dir: dir,
            path: path.into(),
        })
    }

    pub(crate) fn instant(&self) -> Instant {
        self.origin + Duration::from_micros(self.clock.now.get())
    }

    fn micros_of(&self, instant: Instant) -> u64 {
        u64::try_from(instant.saturating_duration_since(self.origin).as_micros()).unwrap_or(u64::MAX)
    }

    /// One turn of the loop.
    ///
    /// # Errors
    /// Why the process ends.
    pub(crate) fn run_loop(&mut self) -> Result<(), String> {
        let serving = self.turn.node.is_serving();
        let (asked, slept_from) = self.slept;
        self.turn.readable |= !self.out.inbox.is_empty();
        self.turn.woke(asked, slept_from);
        // What a turn takes at least.
        self.clock.stop(3);
        let done = self.turn.work(&mut self.out, asked, serving);
        self.slept = (self.turn.node.poll_timeout(), self.turn.clock.now());
        done
    }

    /// How long until the loop wants to be woken, in simulated microseconds.
    pub(crate) fn wake_in(&self) -> Option<u64> {
        if self.turn.is_behind(self.turn.node.is_serving()) {
            return Some(20);
        }
        let micros = self.turn.clock.micros_until(self.slept.0?);
        Some(micros.saturating_mul(1_000_000) / self.clock.rate + 1)
    }

    /// How long until the moment at which it last asked to be woken; from then on it oversleeps.
    pub(crate) fn asked_in(&self) -> Option<u64> {
        let (asked, slept_from) = self.slept;
        // In a stall its clock has not come to where the stall began.
        let from = self.turn.clock.now().max(slept_from);
        let micros = asked?.us_since(from);
        Some(micros.saturating_mul(1_000_000) / self.clock.rate + 1)
    }

    pub(crate) fn can_run(&self, thread: Thread) -> bool {
        if self.busy[thread as usize].is_some() {
            return false;
        }
        match thread {
            Thread::Journal => {
                self.journal.can_write(self.instant()) && !self.journal.wants_spare(self.out.log.file_log())
            }
            Thread::Keeper => {
                self.journal.can_keep()
                    || (self.journal.keeper_waits() && self.keeper_retry <= self.clock.now.get())
            }
            Thread::Fold => self.journal.can_fold(),
            Thread::Image => self.image.can_work(self.instant()),
        }
    }

    /// Lets a thread do what it has to do; what it tells is kept back until [`Server::tell`].
    pub(crate) fn run(&mut self, thread: Thread) {
        let now = self.instant();
        match thread {
            // Why it failed is told to the loop.
            Thread::Journal => drop(self.journal.write(now)),
            Thread::Keeper => {
                self.journal.keep();
                self.keeper_retry = self.clock.now.get() + 1_000_000;
            }
            Thread::Fold => self.journal.fold(),
            Thread::Image => self.image.work(now),
        }
    }

    /// A thread's turn is over.
    pub(crate) fn tell(&mut self, thread: Thread) {
        self.busy[thread as usize] = None;
        match thread {
            Thread::Journal => self.journal.tell_written(),
            Thread::Keeper => {
                self.journal.tell_kept();
                if self.busy[Thread::Journal as usize].is_none() {
                    self.journal.tell_written();
                }
            }
            Thread::Fold => self.journal.tell_folded(),
            Thread::Image => self.image.tell(),
        }
    }

    /// When a thread has something to do without being told.
    pub(crate) fn threads_due(&self) -> Option<u64> {
        let waits = self.journal.wants_spare(self.out.log.file_log());
        let journal =
            self.journal.deadline().filter(|_| self.busy[Thread::Journal as usize].is_none() && !waits);
        let image = self.image.deadline().filter(|_| self.busy[Thread::Image as usize].is_none());
        let keeper = (self.journal.keeper_waits() && self.busy[Thread::Keeper as usize].is_none())
            .then_some(self.keeper_retry);
        let due = journal.into_iter().chain(image).map(|due| self.micros_of(due) + 1);
        due.chain(keeper).min()
    }

    /// Whether an error of the disk was injected since it began.
    pub(crate) fn saw_error(&self, disk: &Disk) -> bool {
        disk.errors() > self.errors_before
    }
}
