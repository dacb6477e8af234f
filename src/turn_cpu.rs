//! How much CPU time the loop's turns take: by the wall a turn seems long, too, when somebody else had the core meanwhile.
//!
//! To read the clock of a thread is a call to the kernel of half a microsecond and more, so it is read before a turn if that was
//! not done for a millisecond, and after each turn that lasted that long. Up to a millisecond of what came before a turn is
//! therefore counted with it.

use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// A turn that lasts so long is looked at, and the clock is read so often.
const LOOK_AT: Duration = Duration::from_millis(1);

/// CPU time that the calling thread has used.
pub(crate) fn of_this_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("no thread has used negative time");
    let nanos = u32::try_from(time.tv_nsec).expect("nanoseconds of a second fit");
    Duration::new(seconds, nanos)
}

/// The most CPU time that a turn has taken.
#[derive(Debug)]
pub(crate) struct TurnCpu {
    /// Tells how much the loop's thread has used.
    read: fn() -> Duration,
    read_at: Instant,
    used: Duration,
    longest: Duration,
}

impl TurnCpu {
    /// Of the calling thread's turns, from `now` on.
    pub(crate) fn new(now: Instant, read: fn() -> Duration) -> TurnCpu {
        TurnCpu { read, read_at: now, used: read(), longest: Duration::ZERO }
    }

    /// Takes in that a turn begins.
    pub(crate) fn begins(&mut self, now: Instant) {
        if now.duration_since(self.read_at) >= LOOK_AT {
            (self.read_at, self.used) = (now, (self.read)());
        }
    }

    /// Takes in that it is over, and lasted so long by the wall.
    pub(crate) fn worked(&mut self, took: Duration) {
        if took >= LOOK_AT {
            self.longest = self.longest.max(took.min((self.read)().saturating_sub(self.used)));
        }
    }

    /// The most so far, in microseconds; 0 if none lasted a millisecond.
    pub(crate) fn longest_us(&self) -> u64 {
        u64::try_from(self.longest.as_micros()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static USED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    #[test]
    fn a_turn_that_others_made_long_is_not_taken_for_work() {
        let ms = Duration::from_millis;
        let mut now = Instant::now();
        let mut cpu = TurnCpu::new(now, || USED.get());
        let mut turn = |took: Duration, of_it: Duration| {
            // Before each the loop looks for work, which is none.
            USED.set(USED.get() + ms(50));
            now += ms(50);
            cpu.begins(now);
            USED.set(USED.get() + of_it);
            now += took;
            cpu.worked(took);
            cpu.longest_us()
        };
        assert_eq!(turn(ms(40), ms(2)), 2_000, "it had the core for two of 40");
        assert_eq!(
            turn(Duration::from_micros(900), Duration::from_micros(900)),
            2_000,
            "short ones are not looked at"
        );
        assert_eq!(turn(ms(3), ms(3)), 3_000, "what is counted is at most what it lasted");
        assert_eq!(turn(ms(2), ms(2)), 3_000);
        assert_eq!(turn(ms(7), ms(6)), 6_000);
    }

    #[test]
    fn the_clock_of_a_thread_goes_on_while_it_works() {
        let before = of_this_thread();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(50) && of_this_thread() == before {}
        assert!(of_this_thread() > before);
    }
}
