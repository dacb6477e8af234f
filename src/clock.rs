//! The clock of the server: monotonic, counting suspend, and turned into log time that stands still during stalls.

use crate::time::Time;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// A turn of the loop may work so long before the rest counts as a stall, in microseconds.
const TURN_US: u64 = 100_000;

/// A turn longer than this is counted, in microseconds, since whoever waits meanwhile notices. `status` shows how many there were.
const LONG_TURN_US: u64 = 5_000;

/// Microseconds since the machine started, suspend included (CLOCK_BOOTTIME). Only differences mean anything.
pub fn boot_micros() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).expect("CLOCK_BOOTTIME counts from the start of the machine");
    let nanos = u64::try_from(time.tv_nsec).expect("nanoseconds of a second are not negative");
    seconds * 1_000_000 + nanos / 1_000
}

/// Log time, as far as one run of a server makes it.
///
/// It runs with CLOCK_BOOTTIME, less the stalls: sleep past the wake-up that was asked for, and work beyond 100 ms in one
/// turn. So no lease runs out while the server could not have heard the sign of life.
pub struct LogClock {
    /// Tells boot time, in microseconds.
    source: Box<dyn Fn() -> u64>,
    /// Log time at the start of this run.
    base: Time,
    /// Boot time then, in microseconds.
    started: u64,
    /// Stalls so far, in microseconds.
    stalled: u64,
    stalls: u64,
    long_turns: u64,
    longest_turn_us: u64,
}

impl std::fmt::Debug for LogClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogClock")
            .field("now", &self.now())
            .field("stalled", &self.stalled)
            .finish_non_exhaustive()
    }
}

impl LogClock {
    /// A clock that goes on from `base`, the log time of the last command.
    pub fn new(base: Time) -> LogClock {
        LogClock::with_source(base, Box::new(boot_micros))
    }

    /// The same, over another clock: `source` tells microseconds that never go back.
    pub fn with_source(base: Time, source: Box<dyn Fn() -> u64>) -> LogClock {
        let started = source();
        LogClock { source, base, started, stalled: 0, stalls: 0, long_turns: 0, longest_turn_us: 0 }
    }

    /// Log time now.
    pub fn now(&self) -> Time {
        self.at((self.source)())
    }

    /// Log time now, in a turn that began at `began`, as it will have been when the turn is over: without its stall.
    pub fn now_in_turn(&self, began: Time) -> Time {
        self.now().min(began.after_us(TURN_US))
    }

    /// How long until that log time, in microseconds.
    pub fn micros_until(&self, time: Time) -> u64 {
        time.us_since(self.now())
    }

    /// Takes in that the loop slept, having asked to be woken at `asked`. If it slept longer, time stood still just before
    /// `asked`, so that the input that waited is read before anything expires.
    pub fn slept(&mut self, asked: Option<Time>) {
        let Some(asked) = asked else { return };
        let over = self.now().us_since(asked);
        if over > 0 && !crate::bug::planted("expire_while_stalled") {
            self.stall(over + 1);
        }
    }

    /// Takes in that a turn began at `began` and is over; gives how long it took.
    pub fn worked(&mut self, began: Time) -> Duration {
        let took = self.now().us_since(began);
        self.longest_turn_us = self.longest_turn_us.max(took);
        if took > LONG_TURN_US {
            self.long_turns += 1;
            log::debug!("a turn of the loop took {took} us");
        }
        let over = took.saturating_sub(TURN_US);
        if over > 0 && !crate::bug::planted("stall_in_a_turn_counts") {
            self.stall(over);
        }
        Duration::from_micros(took)
    }

    /// Stalls of 10 ms or more so far.
    pub fn stalls(&self) -> u64 {
        self.stalls
    }

    /// All stalls together, in milliseconds.
    pub fn stalled_ms(&self) -> u64 {
        self.stalled / 1_000
    }

    /// Turns of more than 5 ms so far, by the wall: a core that was busy with others counts too.
    pub fn long_turns(&self) -> u64 {
        self.long_turns
    }

    /// The longest turn so far, in microseconds.
    pub fn longest_turn_us(&self) -> u64 {
        self.longest_turn_us
    }

    fn stall(&mut self, micros: u64) {
        self.stalled += micros;
        if micros >= 10_000 {
            self.stalls += 1;
        }
        if micros >= 1_000_000 {
            log::warn!("the server stood still for {} ms; every lease is extended by that", micros / 1_000);
        }
    }

    fn at(&self, boot: u64) -> Time {
        self.base.after_us((boot - self.started).saturating_sub(self.stalled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_past_the_wake_up_leaves_time_just_before_it() {
        let mut clock = LogClock::new(Time::from_millis(5_000));
        clock.started -= 60_000_000;
        let asked = Time::from_millis(6_000);
        assert!(clock.now() > asked);
        clock.slept(Some(asked));
        assert!(
            asked.us_since(clock.now()) <= 1,
            "time stands just before the wake-up, and runs on from there"
        );
        assert_eq!((clock.stalls(), clock.stalled_ms() / 1_000), (1, 59));
    }

    #[test]
    fn a_sleep_in_time_is_no_stall() {
        let mut clock = LogClock::new(Time::ZERO);
        clock.slept(Some(Time::from_millis(1_000_000)));
        clock.slept(None);
        assert_eq!(clock.stalled_ms(), 0);
    }

    #[test]
    fn only_the_part_of_a_turn_beyond_100_ms_is_a_stall() {
        let mut clock = LogClock::new(Time::ZERO);
        clock.started -= 350_000;
        assert_eq!(
            clock.now_in_turn(Time::ZERO),
            Time::from_micros(TURN_US),
            "what is read now gives no more"
        );
        clock.worked(Time::ZERO);
        assert_eq!((clock.long_turns(), clock.longest_turn_us() / 1_000), (1, 350));
        clock.worked(clock.now());
        assert_eq!(
            (clock.long_turns(), clock.longest_turn_us() / 1_000),
            (1, 350),
            "a short one says nothing"
        );
        assert!((250..260).contains(&clock.stalled_ms()), "{}", clock.stalled_ms());
    }
}
