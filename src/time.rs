//! Log time: the one clock of the pure rooms.
//!
//! A [`Time`] is a number of microseconds that only the I/O rooms make, from a monotonic clock that counts suspend. It
//! never goes back, and it stands still while no server runs and while the server is stalled (`docs/ARCHITECTURE.md`,
//! "Time"). Inside the pure rooms `now` is an argument.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A moment in log time, in microseconds since the log began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(u64);

impl Time {
    /// The moment at which a new log begins.
    pub const ZERO: Time = Time(0);

    /// A moment from its number of microseconds.
    pub const fn from_micros(micros: u64) -> Time {
        Time(micros)
    }

    /// A moment from its number of milliseconds.
    pub const fn from_millis(millis: u64) -> Time {
        Time(millis.saturating_mul(1_000))
    }

    /// Microseconds since the log began.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The moment `millis` milliseconds later. Saturates at the end of time.
    pub const fn after_ms(self, millis: u64) -> Time {
        Time(self.0.saturating_add(millis.saturating_mul(1_000)))
    }

    /// The moment `micros` microseconds later. Saturates at the end of time.
    pub const fn after_us(self, micros: u64) -> Time {
        Time(self.0.saturating_add(micros))
    }

    /// The last moment before this one.
    pub const fn just_before(self) -> Time {
        Time(self.0.saturating_sub(1))
    }

    /// Whole milliseconds from `earlier` to this moment, rounded down; 0 if `earlier` is later.
    pub const fn ms_since(self, earlier: Time) -> u64 {
        self.us_since(earlier) / 1_000
    }

    /// Microseconds from `earlier` to this moment; 0 if `earlier` is later.
    pub const fn us_since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Milliseconds from `now` until this moment, rounded up, so that a deadline still ahead never shows as 0.
    pub const fn ms_until(self, now: Time) -> u64 {
        self.us_since(now).div_ceil(1_000)
    }
}

impl fmt::Display for Time {
    /// Seconds with microseconds, as in `12.000345`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_still_ahead_never_shows_as_zero() {
        let now = Time::from_micros(1_000_001);
        assert_eq!(Time::from_micros(1_000_002).ms_until(now), 1);
        assert_eq!(now.ms_until(now), 0);
        assert_eq!(Time::ZERO.ms_until(now), 0, "a passed deadline has nothing left");
    }

    #[test]
    fn the_end_of_time_saturates() {
        assert_eq!(Time::from_micros(u64::MAX).after_ms(1), Time::from_micros(u64::MAX));
        assert_eq!(Time::from_millis(u64::MAX), Time::from_micros(u64::MAX));
    }
}
