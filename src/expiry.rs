//! The expiry thread: the loop's alarm clock.
//!
//! It is told the earliest deadline when that has moved earlier, sleeps until then, says so over a channel and wakes the
//! loop. It decides nothing: the loop looks at the real deadlines, also at each request, so a late alarm delays a hand-over
//! and never lets an expired holder write.

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use std::io;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The thread and the way to set it.
#[derive(Debug)]
pub struct Alarm {
    settings: Sender<Instant>,
    rings: Receiver<()>,
    /// What it was last set to, until it rang.
    set: Option<Instant>,
    thread: Option<JoinHandle<()>>,
}

impl Alarm {
    /// Starts the thread. `wake` is called whenever it rings.
    ///
    /// # Errors
    /// The system has no thread for us.
    pub fn start(wake: Box<dyn Fn() + Send>) -> io::Result<Alarm> {
        let (settings, inbox) = unbounded::<Instant>();
        let (outbox, rings) = bounded(1);
        let thread =
            std::thread::Builder::new().name("expiry".into()).spawn(move || run(&inbox, &outbox, &*wake))?;
        Ok(Alarm { settings, rings, set: None, thread: Some(thread) })
    }

    /// Sets the alarm to ring `micros` from now, unless it rings earlier anyway.
    pub fn set(&mut self, micros: u64) {
        let at = Instant::now() + Duration::from_micros(micros);
        if self.set.is_none_or(|set| at < set) && self.settings.send(at).is_ok() {
            self.set = Some(at);
        }
    }

    /// Takes in that the alarm has rung, if it has.
    pub fn take_ring(&mut self) -> bool {
        let rang = self.rings.try_recv().is_ok();
        if rang {
            self.set = None;
        }
        rang
    }
}

impl Drop for Alarm {
    /// Ends the thread.
    fn drop(&mut self) {
        let (closed, _) = unbounded();
        drop(std::mem::replace(&mut self.settings, closed));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the expiry thread has panicked");
        }
    }
}

fn run(inbox: &Receiver<Instant>, outbox: &Sender<()>, wake: &dyn Fn()) {
    let mut next: Option<Instant> = None;
    loop {
        let heard = match next {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => inbox.recv_deadline(at),
        };
        match heard {
            Ok(at) => next = Some(next.map_or(at, |next| next.min(at))),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                next = None;
                // A ring that nobody has taken yet is as good as this one.
                let _ = outbox.try_send(());
                wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rings_at_the_earliest_of_its_settings() {
        let (rung, heard) = unbounded();
        let mut alarm = Alarm::start(Box::new(move || rung.send(Instant::now()).unwrap())).unwrap();
        let begun = Instant::now();
        alarm.set(60_000_000);
        alarm.set(20_000);
        alarm.set(50_000_000);
        let rang = heard.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(rang - begun >= Duration::from_millis(20), "it rang early");
        assert!(alarm.take_ring());
        assert!(!alarm.take_ring());
    }
}
