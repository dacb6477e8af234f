//! Busy polling: whether the loop looks for work for a moment before it sleeps.
//!
//! Waking a core that sleeps takes 25 to 50 us on a virtual machine (docs/performance.md, "Busy poll"): most of what a request
//! takes that finds the server idle. Looking keeps a core busy. So by itself the loop looks only while that pays: after some waits
//! in a row that were over soon, after little work, and for a moment. The more often it looked in vain, the more waits it takes.

use std::time::Duration;

/// Before it sleeps, how long the loop looks for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusyPoll {
    /// A moment, as long as that pays.
    Auto,
    /// So long each time; zero: never.
    For(Duration),
}

/// How long it looks by itself: a client that is woken by a reply and asks again at once needs 20 to 100 us.
const LOOK: Duration = Duration::from_micros(100);

/// A sleep is short if looking would have found its end: it holds two wakings, the client's and the server's.
const SHORT: Duration = Duration::from_micros(200);

/// After a turn that took longer the loop does not look: being woken is not most of what its clients wait for then.
const LONG_WORK: Duration = Duration::from_micros(30);

/// So many waits in a row must have been short at least.
const SHORT_WAITS: u32 = 8;

/// And so many at most, however often it was in vain: in a wait each, looking then adds a thousandth of [`LOOK`].
const SHORT_WAITS_MAX: u32 = 1_024;

/// What the loop has learned from its waits.
#[derive(Debug)]
pub(crate) struct Looking {
    busy_poll: BusyPoll,
    /// Waits in a row that were short.
    short: u32,
    /// How many of them it takes.
    needed: u32,
}

impl Looking {
    pub(crate) fn new(busy_poll: BusyPoll) -> Looking {
        Looking { busy_poll, short: 0, needed: SHORT_WAITS }
    }

    /// Whether the loop decides by itself.
    pub(crate) fn is_auto(&self) -> bool {
        self.busy_poll == BusyPoll::Auto
    }

    /// How long to look before the next sleep, after a turn that took so long.
    pub(crate) fn how_long(&self, turn: Duration) -> Duration {
        match self.busy_poll {
            BusyPoll::Auto if self.short >= self.needed && turn <= LONG_WORK => LOOK,
            BusyPoll::Auto => Duration::ZERO,
            BusyPoll::For(time) => time,
        }
    }

    /// Takes in that looking found something.
    pub(crate) fn found(&mut self) {
        self.needed = (self.needed - self.needed / 8).max(SHORT_WAITS);
    }

    /// Takes in that looking found nothing.
    pub(crate) fn in_vain(&mut self) {
        self.short = 0;
        self.needed = (self.needed * 2).min(SHORT_WAITS_MAX);
    }

    /// Takes in that the loop slept so long, without having looked.
    pub(crate) fn slept(&mut self, time: Duration) {
        self.short = if time <= SHORT { self.short.saturating_add(1) } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(60);
    const LATE: Duration = Duration::from_millis(2);
    const WORK: Duration = Duration::from_micros(10);

    fn after_short_waits(waits: u32) -> Looking {
        let mut looking = Looking::new(BusyPoll::Auto);
        (0..waits).for_each(|_| looking.slept(SOON));
        looking
    }

    #[test]
    fn by_itself_it_looks_only_after_some_waits_in_a_row_that_were_over_soon() {
        assert_eq!(after_short_waits(SHORT_WAITS - 1).how_long(WORK), Duration::ZERO);
        assert_eq!(after_short_waits(SHORT_WAITS).how_long(WORK), LOOK);
        let mut looking = after_short_waits(SHORT_WAITS - 1);
        looking.slept(LATE);
        looking.slept(SOON);
        assert_eq!(looking.how_long(WORK), Duration::ZERO);
    }

    #[test]
    fn it_does_not_look_after_much_work() {
        let looking = after_short_waits(SHORT_WAITS);
        assert_eq!(looking.how_long(LONG_WORK), LOOK);
        assert_eq!(looking.how_long(LONG_WORK + Duration::from_micros(1)), Duration::ZERO);
        let looking = Looking::new(BusyPoll::For(LOOK));
        assert_eq!(looking.how_long(2 * LONG_WORK), LOOK);
    }

    #[test]
    fn it_goes_on_while_it_finds_something_and_not_when_it_looked_in_vain() {
        let mut looking = after_short_waits(SHORT_WAITS);
        looking.found();
        assert_eq!(looking.how_long(WORK), LOOK);
        looking.in_vain();
        assert_eq!(looking.how_long(WORK), Duration::ZERO);
    }

    #[test]
    fn the_more_often_it_looked_in_vain_the_more_waits_it_takes_until_it_looks_again() {
        let mut looking = Looking::new(BusyPoll::Auto);
        let mut waits_until_it_looks = || {
            let mut waits = 0;
            while looking.how_long(WORK).is_zero() {
                looking.slept(SOON);
                waits += 1;
            }
            looking.in_vain();
            waits
        };
        let waits: Vec<u32> = (0..9).map(|_| waits_until_it_looks()).collect();
        assert_eq!(waits, [8, 16, 32, 64, 128, 256, 512, 1_024, 1_024]);
    }

    #[test]
    fn finding_something_makes_up_for_what_was_in_vain() {
        let mut looking = Looking::new(BusyPoll::Auto);
        (0..10).for_each(|_| looking.in_vain());
        (0..100).for_each(|_| looking.found());
        (0..SHORT_WAITS).for_each(|_| looking.slept(SOON));
        assert_eq!(looking.how_long(WORK), LOOK);
    }

    #[test]
    fn a_length_that_was_asked_for_is_the_length_whatever_happens() {
        for time in [Duration::ZERO, Duration::from_millis(1)] {
            let mut looking = Looking::new(BusyPoll::For(time));
            looking.slept(LATE);
            looking.in_vain();
            assert_eq!(looking.how_long(WORK), time);
        }
    }
}
