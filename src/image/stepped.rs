//! The image without a thread: what it does, done when the caller says so and at the moment that the caller says. For the
//! simulator, as [`crate::journal::Stepped`] is.

use super::{Event, Handle, Image, Worker};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::time::Instant;

/// The image at the caller's pace.
pub struct Stepped {
    worker: Worker,
    /// What the thread has told and the loop has not heard.
    told: Receiver<Event>,
    events: Sender<Event>,
}

impl Stepped {
    /// As [`Image::start`], without a thread. Gives the loop's side of it, too.
    pub fn start(image: Image, now: Instant) -> (Handle, Stepped) {
        let (outbox, told) = unbounded();
        let (events, heard) = unbounded();
        let (mut worker, handle) = image.staff(outbox, heard, Box::new(|| ()));
        worker.told_now = Some(now);
        (handle, Stepped { worker, told, events })
    }

    /// Whether the thread would have something to do.
    pub fn can_work(&self, now: Instant) -> bool {
        let tasks = !self.worker.inbox.is_empty() || self.worker.has_work();
        tasks || self.deadline().is_some_and(|due| due <= now)
    }

    /// When it would have something to do without being told.
    pub fn deadline(&self) -> Option<Instant> {
        self.worker.due()
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
        for event in self.told.try_iter() {
            let _ = self.events.send(event);
        }
    }
}
