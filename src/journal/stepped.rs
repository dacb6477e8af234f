//! The journal without threads: what its threads do, done when the caller says so and at the moment that the caller says.
//!
//! For the simulator (`tests/sim.rs`), which decides how long each piece of work takes and what a crash in the middle of it
//! leaves. It is the same journal: only who calls whom is another. A piece of work is done at once, and what it tells is
//! kept back until [`Stepped::tell_written`] and its like, so that the caller can let time pass between the two.

use super::{
    FileLog, Helpers, JournalConfig, Keep, Keeper, Kept, Message, Opened, Outbox, SEAL_ROOM, Writer,
    zeros_for,
};
use crate::fold::{self, Order};
use crate::log::{LogEvent, Room};
use crate::recovery::Tail;
use crate::storage::{DataDir, DiskError};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The three threads of a journal, as three kinds of steps.
pub struct Stepped {
    writer: Writer,
    keeper: Keeper,
    inbox: Sender<Message>,
    jobs: Receiver<Keep>,
    orders: Receiver<Order>,
    /// What the keeper and the fold have told and the journal has not heard.
    kept: Receiver<Message>,
    folded: Option<Message>,
    /// What the journal has told and the loop has not heard.
    written: Receiver<LogEvent>,
    outbox: Sender<LogEvent>,
    failed: bool,
}

impl Stepped {
    /// Opens the journal as [`FileLog::start`] does, with segments as small as the caller likes. Gives the loop's side of it,
    /// too.
    ///
    /// # Errors
    /// As [`FileLog::start`].
    pub fn start(
        dir: Arc<DataDir>,
        tail: &Tail,
        config: &JournalConfig,
        now: Instant,
    ) -> Result<(FileLog, Stepped), DiskError> {
        let opened = Opened::open(&dir, tail, config)?;
        let (inbox, messages) = unbounded();
        let (events_in, written) = unbounded();
        let (outbox, events) = unbounded();
        let (keep, jobs) = unbounded();
        let (order, orders) = unbounded();
        let (keeper_out, kept) = unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let helpers =
            Helpers { stop: stop.clone(), keep: Some(keep), fold: Some(order), threads: Vec::new() };
        let keeper = Keeper {
            dir: dir.clone(),
            segment_bytes: config.segment_bytes,
            zeros: zeros_for(config.durability),
            stop,
            inbox: keeper_out,
            spare: None,
            reserve: None,
        };
        let told = Outbox { events: events_in, wake: Box::new(|| ()), told_room: Room::Ok };
        let mut writer = Writer::new(dir, tail, config, opened, messages, helpers, told, now);
        writer.told_now = Some(now);
        let log = FileLog::beside(&writer, inbox.clone(), events);
        let stepped = Stepped {
            writer,
            keeper,
            inbox,
            jobs,
            orders,
            kept,
            folded: None,
            written,
            outbox,
            failed: false,
        };
        Ok((log, stepped))
    }

    /// Whether the journal thread would have something to do.
    pub fn can_write(&self, now: Instant) -> bool {
        let due = self.writer.deadline().is_some_and(|due| due <= now);
        !self.failed && (due || !self.writer.backlog.is_empty() || !self.writer.messages.is_empty())
    }

    /// Whether it might have to wait for the keeper, which must then have its turn first.
    pub fn wants_spare(&self, log: &FileLog) -> bool {
        let gauge = &self.writer.gauge;
        let left = gauge.left.load(Ordering::Acquire);
        !gauge.spare.load(Ordering::Acquire) && log.unwritten() > 0 && left < log.unwritten() + SEAL_ROOM
    }

    /// When the journal thread would have something to do without being told.
    pub fn deadline(&self) -> Option<Instant> {
        self.writer.deadline().filter(|_| !self.failed)
    }

    /// One turn of the journal thread: a message, and what is due by the clock.
    ///
    /// # Errors
    /// The thread has ended, and told why.
    pub fn write(&mut self, now: Instant) -> Result<(), DiskError> {
        self.writer.told_now = Some(now);
        let message = self.writer.backlog.pop_front().or_else(|| self.writer.messages.try_recv().ok());
        let done = message
            .map_or(Ok(true), |message| self.writer.take(message))
            .and_then(|_| self.writer.when_due());
        if let Err(error) = &done {
            self.fail(error);
        }
        done
    }

    /// The loop hears what the journal thread has told.
    pub fn tell_written(&mut self) {
        for event in self.written.try_iter() {
            let _ = self.outbox.send(event);
        }
    }

    /// Whether the keeper has a job.
    pub fn can_keep(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Whether the keeper waits for room, and would try again after a second.
    pub fn keeper_waits(&self) -> bool {
        self.keeper.spare.is_some() || self.keeper.reserve.is_some()
    }

    /// One turn of the keeper.
    pub fn keep(&mut self) {
        let job = self.jobs.try_recv().ok();
        if let Err(error) = self.keeper.work(job) {
            self.keeper.tell(Kept::Failed(error));
        }
    }

    /// The journal hears what the keeper has told, before anything else: it may be waiting for that. What it has to say to
    /// that is told with [`Stepped::tell_written`].
    pub fn tell_kept(&mut self) {
        let kept: Vec<Message> = self.kept.try_iter().collect();
        for message in kept {
            if let Err(error) = self.writer.take(message) {
                self.fail(&error);
            }
        }
    }

    fn fail(&mut self, error: &DiskError) {
        self.failed = true;
        self.writer.outbox.tell(LogEvent::Failed { sentence: error.sentence.clone() });
    }

    /// Whether a fold was ordered.
    pub fn can_fold(&self) -> bool {
        !self.orders.is_empty() && self.folded.is_none()
    }

    /// Writes the snapshot that was ordered.
    pub fn fold(&mut self) {
        let Ok(order) = self.orders.try_recv() else { return };
        let folded = fold::fold(&self.writer.dir, order, &AtomicBool::new(false));
        self.folded = Some(Message::Folded(folded));
    }

    /// The journal hears what became of the fold.
    pub fn tell_folded(&mut self) {
        if let Some(message) = self.folded.take() {
            let _ = self.inbox.send(message);
        }
    }
}
