//! The image without a thread: what it does, done when the caller says so and at the moment that the caller says. For the
//! simulator, as [`crate::journal::Stepped`] is.

use super::{Event, Files, Gauges, Image, Look, Task, Worker, weight};
use crate::identity::Op;
use crate::name::Name;
use crate::outcome::FileEffect;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// The image at the caller's pace.
pub struct Stepped {
    worker: Worker,
    tasks: Sender<Task>,
    events: Receiver<Event>,
    told: VecDeque<Event>,
    gauges: Arc<Gauges>,
}

impl Stepped {
    /// As [`Image::start`], without a thread.
    pub fn start(mut image: Image, now: Instant) -> Stepped {
        let (tasks, inbox) = unbounded();
        let (outbox, events) = unbounded();
        let gauges = Arc::clone(&image.mirror.gauges);
        let backlog = image.mirror.behind.drain(..).map(Task::Apply).collect();
        let worker = Worker {
            mirror: image.mirror,
            inbox,
            outbox,
            wake: Box::new(|| ()),
            backlog,
            sync_at: None,
            retry_at: None,
            room_at: None,
            check_at: None,
            told_full: false,
            told_now: Some(now),
        };
        Stepped { worker, tasks, events, told: VecDeque::new(), gauges }
    }

    /// Whether the thread would have something to do.
    pub fn can_work(&self, now: Instant) -> bool {
        let tasks = !self.worker.inbox.is_empty()
            || (!self.worker.backlog.is_empty() && self.worker.retry_at.is_none());
        tasks || self.deadline().is_some_and(|due| due <= now)
    }

    /// When it would have something to do without being told.
    pub fn deadline(&self) -> Option<Instant> {
        let worker = &self.worker;
        match worker.retry_at {
            Some(at) => Some(at),
            None => [worker.sync_at, worker.room_at, worker.check_at].into_iter().flatten().min(),
        }
    }

    /// One turn of the thread: all tasks that are there, and what is due by the clock.
    pub fn work(&mut self, now: Instant) {
        self.worker.told_now = Some(now);
        while let Ok(task) = self.worker.inbox.try_recv() {
            self.worker.take(task);
        }
        self.worker.work();
        self.worker.housekeep();
        self.worker.tell();
    }

    /// The loop hears what the thread has told.
    pub fn tell(&mut self) {
        self.told.extend(self.events.try_iter());
    }
}

impl Files for Stepped {
    fn apply(&mut self, effect: FileEffect) {
        self.gauges.pending.add(weight(&effect));
        let _ = self.tasks.send(Task::Apply(effect));
    }

    fn read(&mut self, tag: u64, file: Name, generation: u64, offset: u64, limit: u64, length: u64) {
        let _ = self.tasks.send(Task::Read { tag, file, generation, offset, limit, length });
    }

    fn look(&mut self, tag: u64, look: Look) {
        let _ = self.tasks.send(Task::Look { tag, look });
    }

    fn sync(&mut self, op: Op) {
        let _ = self.tasks.send(Task::Sync { op });
    }

    fn next_event(&mut self) -> Option<Event> {
        self.told.pop_front()
    }

    fn pending_bytes(&self) -> u64 {
        self.gauges.pending.get() + self.gauges.kept.get()
    }

    fn kept_bytes(&self) -> u64 {
        self.gauges.kept.get()
    }
}
