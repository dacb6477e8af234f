//! Contention: figures of the locks that are waited for most, and the estimates that rest on them.
//!
//! A table of names would grow with names no longer in use, so this is a sketch, after the fashion of SpaceSaving
//! (Metwally, Agrawal, El Abbadi, 2005): at most [`CONTENTION_NAMES`] names. Where a new name finds no room, the one
//! with the least weight gives way and leaves its weight to the new one, so that a name with more than its share of
//! all waits is always in it. Weights count waits begun and are halved each hour of log time: what was waited for last
//! week gives way to what is waited for now. All other figures are exact since the name came in ([`Figures::since`]).
//!
//! How long a lock is held matters from the first wait on, before the name is in the sketch. So the last
//! [`HOLDS_KEPT`] other names that a tenure of ended are remembered with that alone.

use super::{Grant, Lock, State, Wait};
use crate::command::{Ask, Mode};
use crate::identity::{INTEGER_MAX, Token};
use crate::limits::{AHEAD_LOOKED_AT, CONTENTION_NAMES, ESTIMATE_WAITS_MAX, HOLDS_KEPT};
use crate::name::Name;
use crate::state::parts::{ContentionPart, HoldPart};
use crate::time::Time;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

/// After how much log time the weight of a name counts half, in microseconds.
const HALVING_US: u64 = 3_600 * 1_000_000;

/// The newest tenure counts for one in so many in the usual length of a tenure (as RFC 6298 smooths round trips).
const SMOOTHING: u64 = 8;

/// The sketch.
#[derive(Debug, Default)]
pub(super) struct Contention {
    names: BTreeMap<Name, Figures>,
    /// Names that nobody waited for lately, the oldest first.
    holds: VecDeque<Hold>,
    /// The checksum of each of them: one comparison tells most names apart, also those that begin alike, and eight are compared
    /// at a time.
    sums: VecDeque<u32>,
}

/// How long a lock is usually held.
#[derive(Debug)]
struct Hold {
    name: Name,
    /// In microseconds.
    usual_us: u64,
}

/// What is known of a lock that is or was waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// How much it was waited for, with what it took over from the name that gave way, as of `hour`.
    weight: u64,
    /// The hour of log time in which the weight was last counted.
    hour: u64,
    /// Since when the other figures are counted.
    pub since: Time,
    /// Waits that began.
    pub waits: u64,
    /// Waits that ended, with a grant or without.
    pub waits_ended: u64,
    /// For how long those stood in line, in microseconds of log time.
    pub waited_us: u64,
    /// Tenures that ended.
    pub tenures: u64,
    /// How long those were, in microseconds of log time.
    pub held_us: u64,
    /// How long a tenure usually is, the latest counting most, in microseconds; none if none was seen to end.
    pub hold_us: Option<u64>,
    /// Most waits that stood in its line at once.
    pub longest_queue: u64,
}

impl Figures {
    fn new(weight: u64, hour: u64, since: Time, hold_us: Option<u64>) -> Figures {
        Figures {
            weight,
            hour,
            since,
            waits: 0,
            waits_ended: 0,
            waited_us: 0,
            tenures: 0,
            held_us: 0,
            hold_us,
            longest_queue: 0,
        }
    }

    fn weight_in(&self, hour: u64) -> u64 {
        let halvings = hour.saturating_sub(self.hour);
        if halvings < u64::from(u64::BITS) { self.weight >> halvings } else { 0 }
    }
}

impl Contention {
    /// A wait for the lock began, whose line now has so many.
    pub(super) fn wait_began(&mut self, key: &Name, queue: usize, at: Time) {
        let hour = hour_of(at);
        if !self.names.contains_key(key) {
            let hold_us = self.hold(key).and_then(|index| self.forget(index)).map(|hold| hold.usual_us);
            let weight = self.make_room(hour);
            self.names.insert(key.clone(), Figures::new(weight, hour, at, hold_us));
        }
        let figures = self.names.get_mut(key).expect("it was put there");
        (figures.weight, figures.hour) = (figures.weight_in(hour) + 1, hour);
        figures.waits += 1;
        figures.longest_queue = figures.longest_queue.max(queue as u64);
    }

    /// A wait for the lock ended, with a grant or without.
    pub(super) fn wait_ended(&mut self, key: &str, began: Time, at: Time) {
        if let Some(figures) = self.names.get_mut(key) {
            figures.waits_ended += 1;
            figures.waited_us = sum(figures.waited_us, at.us_since(began));
        }
    }

    /// A tenure of the lock ended.
    pub(super) fn tenure_ended(&mut self, key: &Name, began: Time, at: Time) {
        let held_us = at.us_since(began).min(INTEGER_MAX);
        if let Some(figures) = self.names.get_mut(key) {
            figures.tenures += 1;
            figures.held_us = sum(figures.held_us, held_us);
            figures.hold_us = Some(figures.hold_us.map_or(held_us, |usual| smoothed(usual, held_us)));
            return;
        }
        match self.hold(key) {
            Some(index) => self.holds[index].usual_us = smoothed(self.holds[index].usual_us, held_us),
            None => self.remember(key.clone(), held_us),
        }
    }

    /// Where it stands how long the lock is usually held, if nobody waited for it lately.
    fn hold(&self, key: &str) -> Option<usize> {
        let sum = checksum(key);
        let (older, newer) = self.sums.as_slices();
        let is = |place: usize| *self.holds[place].name == *key;
        place_of(older, sum, is)
            .or_else(|| Some(older.len() + place_of(newer, sum, |place| is(older.len() + place))?))
    }

    fn forget(&mut self, index: usize) -> Option<Hold> {
        self.sums.remove(index);
        self.holds.remove(index)
    }

    /// What is known of a lock.
    pub(super) fn get(&self, key: &str) -> Option<&Figures> {
        self.names.get(key)
    }

    /// How long a tenure of the lock usually is, in microseconds.
    fn hold_us(&self, key: &str) -> Option<u64> {
        match self.names.get(key) {
            Some(figures) => figures.hold_us,
            None => self.hold(key).map(|index| self.holds[index].usual_us),
        }
    }

    /// Lets the name with the least weight give way if there is no room. Gives the weight that it leaves.
    fn make_room(&mut self, hour: u64) -> u64 {
        if self.names.len() < CONTENTION_NAMES {
            return 0;
        }
        let least = self.names.iter().min_by_key(|(_, figures)| figures.weight_in(hour));
        let name = least.map(|(name, _)| name.clone()).expect("a full sketch has names");
        let figures = self.names.remove(&name).expect("it was found");
        if let Some(hold_us) = figures.hold_us {
            self.remember(name, hold_us);
        }
        figures.weight_in(hour)
    }

    pub(super) fn parts(&self) -> Vec<ContentionPart> {
        let part = |(key, it): (&Name, &Figures)| ContentionPart {
            key: key.clone(),
            weight: it.weight,
            hour: it.hour,
            since: it.since,
            waits: it.waits,
            waits_ended: it.waits_ended,
            waited_us: it.waited_us,
            tenures: it.tenures,
            held_us: it.held_us,
            hold_us: it.hold_us,
            longest_queue: it.longest_queue,
        };
        self.names.iter().map(part).collect()
    }

    pub(super) fn hold_parts(&self) -> Vec<HoldPart> {
        let part = |hold: &Hold| HoldPart { key: hold.name.clone(), hold_us: hold.usual_us };
        self.holds.iter().map(part).collect()
    }

    pub(super) fn from_parts(names: Vec<ContentionPart>, holds: Vec<HoldPart>) -> Result<Contention, String> {
        if names.len() > CONTENTION_NAMES || holds.len() > HOLDS_KEPT {
            return Err("there are more figures of contention than are ever kept".into());
        }
        let mut contention = Contention::default();
        for part in names {
            let figures = Figures {
                weight: part.weight,
                hour: part.hour,
                since: part.since,
                waits: part.waits,
                waits_ended: part.waits_ended,
                waited_us: part.waited_us,
                tenures: part.tenures,
                held_us: part.held_us,
                hold_us: part.hold_us,
                longest_queue: part.longest_queue,
            };
            let spans = [part.waited_us, part.held_us, part.hold_us.unwrap_or(0)];
            if spans.iter().any(|span| *span > INTEGER_MAX) {
                return Err(format!("the contention of lock {:?} has a span that is too long", part.key));
            }
            if let Some(twice) = contention.names.insert(part.key, figures) {
                return Err(format!("the contention of a lock stands twice: {twice:?}"));
            }
        }
        for HoldPart { key, hold_us } in holds {
            let known = contention.names.contains_key(&key) || contention.hold_us(&key).is_some();
            if known || hold_us > INTEGER_MAX {
                return Err(format!("how long lock {key:?} is held stands twice, or is too long"));
            }
            contention.remember(key, hold_us);
        }
        Ok(contention)
    }

    fn remember(&mut self, name: Name, hold_us: u64) {
        if self.holds.len() >= HOLDS_KEPT {
            self.forget(0);
        }
        self.sums.push_back(checksum(&name));
        self.holds.push_back(Hold { name, usual_us: hold_us });
    }
}

/// The first place of this checksum that `is` the one looked for. Eight are compared at a time, without a branch for each.
fn place_of(sums: &[u32], sum: u32, is: impl Fn(usize) -> bool) -> Option<usize> {
    let (eights, rest) = sums.as_chunks::<8>();
    for (nth, eight) in eights.iter().enumerate() {
        if eight.iter().fold(false, |any, known| any | (*known == sum))
            && let Some(place) = (8 * nth..8 * nth + 8).find(|place| sums[*place] == sum && is(*place))
        {
            return Some(place);
        }
    }
    (sums.len() - rest.len()..sums.len()).find(|place| sums[*place] == sum && is(*place))
}

fn checksum(name: &str) -> u32 {
    crc32c::crc32c(name.as_bytes())
}

fn hour_of(at: Time) -> u64 {
    at.as_micros() / HALVING_US
}

/// A sum that stays a number that every reader can hold.
fn sum(so_far: u64, more: u64) -> u64 {
    so_far.saturating_add(more).min(INTEGER_MAX)
}

/// The usual length of a tenure after one more: both are at most [`INTEGER_MAX`], so nothing overflows.
fn smoothed(usual: u64, newest: u64) -> u64 {
    (usual * (SMOOTHING - 1) + newest) / SMOOTHING
}

/// Who is served together, while an estimate goes through a line: holders, or waits that will hold at one time.
struct Turn {
    mode: Mode,
    /// When the last that was looked at is served, in microseconds from now.
    begins: u64,
    /// When all of it is over.
    ends: u64,
    /// Slots that are free at `begins`.
    free: u64,
    /// When slots become free after that, and how many.
    freed: BinaryHeap<Reverse<(u64, u64)>>,
}

impl Turn {
    /// The turn of those who hold until then, slots aside.
    fn new(mode: Mode, begins: u64, ends: u64) -> Turn {
        Turn { mode, begins, ends, free: 0, freed: BinaryHeap::new() }
    }

    /// The turn that is the last after a request of that mode, which is served when that one `begins`.
    fn then(mut self, mode: Mode, hold_us: u64) -> Turn {
        match (self.mode, mode) {
            (Mode::Shared, Mode::Shared) => return self,
            (Mode::Slot { .. }, Mode::Slot { .. }) => {}
            (_, Mode::Slot { slots, .. }) => {
                self = Turn { free: u64::from(slots), ..Turn::new(mode, self.ends, self.ends) };
            }
            (_, Mode::Exclusive | Mode::Shared) => {
                return Turn::new(mode, self.ends, self.ends + hold_us);
            }
        }
        if let Mode::Slot { weight, .. } = mode {
            let weight = u64::from(weight);
            while self.free < weight {
                // Without holders that were looked at, all slots are free at the end.
                let (at, slots) = self.freed.pop().map_or((self.ends, weight), |Reverse(freed)| freed);
                (self.begins, self.free) = (self.begins.max(at), self.free + slots);
            }
            self.free -= weight;
            self.freed.push(Reverse((self.begins + hold_us, weight)));
            self.ends = self.ends.max(self.begins + hold_us);
        }
        self
    }
}

/// `part / whole` of a span.
fn share(span: u64, part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(span) * u128::from(part) / u128::from(whole)).unwrap_or(INTEGER_MAX)
}

impl State {
    /// What is known of the contention for a lock; none if nobody waited for it lately.
    pub fn contention(&self, key: &str) -> Option<&Figures> {
        self.contention.get(key)
    }

    /// The locks that are waited for most at `now`, with their weights, behind the one of that weight and name.
    pub fn contended(&self, after: Option<(u64, &str)>, now: Time) -> Vec<(u64, &Name, &Figures)> {
        let hour = hour_of(now);
        let ranked = self.contention.names.iter().map(|(name, it)| (it.weight_in(hour), name, it));
        let behind = |weight: u64, name: &str| match after {
            None => true,
            Some((last, last_name)) => (Reverse(weight), name) > (Reverse(last), last_name),
        };
        let mut ranked: Vec<_> = ranked.filter(|(weight, name, _)| behind(*weight, name)).collect();
        ranked.sort_by_key(|(weight, name, _)| (Reverse(*weight), (*name).clone()));
        ranked
    }

    /// How many holders and waits are looked at, at most, to say why somebody waits for these locks.
    pub fn looks_of(&self, asks: &[Ask]) -> u64 {
        let waits = |lock: &Lock| lock.line().len().min(ESTIMATE_WAITS_MAX + AHEAD_LOOKED_AT);
        let locks = asks.iter().filter_map(|ask| self.locks.get(&ask.key));
        locks.map(|lock| (lock.holders().len() + lock.converting().len() + waits(lock)) as u64).sum()
    }

    /// Counts a wait that stands in line since this command.
    pub(super) fn note_wait(&mut self, asks: &[Ask]) {
        for ask in asks {
            let queue = self.locks.get(&ask.key).map_or(0, |lock| lock.queue_len());
            self.contention.wait_began(&ask.key, queue, self.head.at);
        }
    }

    /// Counts a wait that got its final outcome.
    pub(super) fn note_wait_end(&mut self, wait: &Wait) {
        for ask in &wait.asks {
            self.contention.wait_ended(&ask.key, wait.since, self.head.at);
        }
    }

    /// Counts a grant that has ended.
    pub(super) fn note_tenure(&mut self, grant: &Grant) {
        for ask in &grant.asks {
            self.contention.tenure_ended(&ask.key, grant.since, self.head.at);
        }
    }

    /// In how many milliseconds a request may be served that has so many waits `before` it in the line of a lock, and that
    /// converts that grant, if any: each turn before it is expected to take as long as tenures of that lock usually do.
    /// None if nothing is known of a lock that is in the way. Looks at [`ESTIMATE_WAITS_MAX`] waits of each line; longer
    /// lines are taken to go on like that.
    pub(super) fn estimate_ms(
        &self,
        asks: &[Ask],
        converts: Option<Token>,
        before: impl Fn(&Lock) -> usize,
        now: Time,
    ) -> Option<u64> {
        let mut longest = 0;
        for ask in asks {
            if let Some(lock) = self.locks.get(&ask.key) {
                longest = longest.max(self.estimate_us(ask, lock, converts, before(lock), now)?);
            }
        }
        Some(longest.div_ceil(1_000).min(INTEGER_MAX))
    }

    fn estimate_us(
        &self,
        ask: &Ask,
        lock: &Lock,
        converts: Option<Token>,
        before: usize,
        now: Time,
    ) -> Option<u64> {
        let closed_us = lock.closed_until().map_or(0, |until| until.us_since(now));
        let mut held = lock.held();
        if let Some(token) = converts {
            held.remove(self.grants[token].mode_of(&ask.key));
        }
        if before == 0 && held.admits(ask.mode) {
            return Some(closed_us);
        }
        let hold_us = self.contention.hold_us(&ask.key)?;
        let mut turn = self.turn_of_holders(ask, lock, converts, hold_us, now);
        (turn.begins, turn.ends) = (closed_us, turn.ends.max(closed_us));
        let looked = before.min(ESTIMATE_WAITS_MAX);
        for op in lock.converting().iter().chain(lock.line()).take(looked) {
            let wait = &self.waits[op];
            if self.wait_lives(wait) {
                turn = turn.then(wait.mode_of(&ask.key), hold_us);
            }
        }
        let served = turn.then(ask.mode, hold_us).begins;
        Some(if looked < before { share(served, before as u64, looked as u64) } else { served })
    }
}

impl State {
    /// The holders of a lock, a grant that is to be converted aside, as the first turn.
    fn turn_of_holders(
        &self,
        ask: &Ask,
        lock: &Lock,
        converts: Option<Token>,
        hold_us: u64,
        now: Time,
    ) -> Turn {
        let grants = || {
            let tokens = lock.holders().iter().filter(|token| Some(**token) != converts);
            tokens.take(ESTIMATE_WAITS_MAX).filter_map(|token| self.live_grant(*token))
        };
        // All holders hold in modes that go together.
        let mode = grants().next().map_or(Mode::Exclusive, |grant| grant.mode_of(&ask.key));
        let mut turn = Turn::new(mode, 0, 0);
        for grant in grants() {
            let left_us = left_of(hold_us, now.us_since(grant.since));
            turn.ends = turn.ends.max(left_us);
            if let Mode::Slot { weight, .. } = grant.mode_of(&ask.key) {
                turn.freed.push(Reverse((left_us, u64::from(weight))));
            }
        }
        if let Mode::Slot { slots, .. } = mode {
            let own = converts.map_or(0, |token| slots_of(self.grants[token].mode_of(&ask.key)));
            turn.free = u64::from(slots).saturating_sub(lock.held().slots() - own);
        }
        turn
    }
}

fn slots_of(mode: Mode) -> u64 {
    if let Mode::Slot { weight, .. } = mode { u64::from(weight) } else { 0 }
}

/// What is left of a tenure: of the usual length, or another usual one where it took longer than that already.
fn left_of(hold_us: u64, held_us: u64) -> u64 {
    if held_us < hold_us { hold_us - held_us } else { hold_us }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn ms(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    fn again(contention: &Contention) -> Contention {
        Contention::from_parts(contention.parts(), contention.hold_parts()).unwrap()
    }

    #[test]
    fn ten_thousand_names_stay_bounded_and_the_hot_one_stays_known() {
        let mut contention = Contention::default();
        let hot = name("hot");
        for n in 0..10_000 {
            let (other, at) = (name(&format!("cold-{n}")), ms(n));
            contention.wait_began(&other, 1, at);
            contention.wait_ended(&other, at, at.after_ms(1));
            contention.tenure_ended(&other, at, at.after_ms(1));
            contention.tenure_ended(&name(&format!("quiet-{n}")), at, at.after_ms(1));
            if n % 50 == 0 {
                contention.wait_began(&hot, 3, at);
                contention.wait_ended(&hot, at, at.after_ms(7));
            }
        }
        assert_eq!((contention.names.len(), contention.holds.len()), (CONTENTION_NAMES, HOLDS_KEPT));
        let figures = contention.get("hot").expect("it has more than its share of all waits");
        assert_eq!((figures.waits, figures.waits_ended, figures.waited_us), (200, 200, 1_400_000));
        assert_eq!((figures.longest_queue, figures.since), (3, Time::ZERO), "it never gave way");
        let mut read = again(&contention);
        assert_eq!((read.parts(), read.hold_parts()), (contention.parts(), contention.hold_parts()));
        // What is read back goes on in the same way, who gives way included.
        for n in 0..500 {
            for it in [&mut read, &mut contention] {
                it.wait_began(&name(&format!("late-{n}")), 1, ms(20_000 + n));
                it.tenure_ended(&name(&format!("cold-{n}")), ms(n), ms(20_000));
            }
        }
        assert_eq!((read.parts(), read.hold_parts()), (contention.parts(), contention.hold_parts()));
    }

    /// As a search from the front finds it: also where the queue goes round its end, or two names have one checksum.
    #[test]
    fn how_long_a_lock_is_held_is_found_wherever_it_stands() {
        let mut contention = Contention::default();
        for n in 0..HOLDS_KEPT as u64 * 3 {
            contention.tenure_ended(&name(&format!("n{n}")), ms(0), ms(n));
            if n % 7 == 0 {
                // One from the middle is waited for, and leaves.
                contention.wait_began(&name(&format!("n{}", n.saturating_sub(20))), 1, ms(n));
            }
            let sums = contention.holds.iter().map(|hold| checksum(&hold.name));
            assert!(sums.eq(contention.sums.iter().copied()), "after {n}");
            for (place, hold) in contention.holds.iter().enumerate() {
                assert_eq!(contention.hold(&hold.name), Some(place), "after {n}");
            }
            assert_eq!(contention.hold("never held"), None);
        }
        let wrapped = contention.sums.as_slices();
        assert!(!wrapped.0.is_empty() && !wrapped.1.is_empty(), "nothing shows what happens behind the end");
        let mut random = fastrand::Rng::with_seed(7);
        for length in (0..40).cycle().take(2_000) {
            let sums: Vec<u32> = (0..length).map(|_| random.u32(..4)).collect();
            let (sum, right) = (random.u32(..4), random.usize(..40));
            let found = sums.iter().zip(0..).position(|(known, place)| *known == sum && place == right);
            assert_eq!(place_of(&sums, sum, |place| place == right), found, "{sums:?}");
        }
    }

    #[test]
    fn what_was_waited_for_last_week_gives_way_to_what_is_waited_for_now() {
        let mut contention = Contention::default();
        let old = name("old");
        for _ in 0..1_000 {
            contention.wait_began(&old, 1, Time::ZERO);
        }
        let week = ms(7 * 24 * 3_600 * 1_000);
        for n in 0..CONTENTION_NAMES {
            contention.wait_began(&name(&format!("new-{n}")), 1, week);
        }
        assert!(contention.get("old").is_none());
        assert_eq!(contention.names.len(), CONTENTION_NAMES);
    }

    #[test]
    fn how_long_a_lock_is_held_is_known_before_the_first_wait_and_follows_the_latest_tenures() {
        let mut contention = Contention::default();
        let a = name("a");
        assert_eq!(contention.hold_us("a"), None);
        contention.tenure_ended(&a, ms(0), ms(8));
        assert_eq!(contention.hold_us("a"), Some(8_000));
        contention.wait_began(&a, 1, ms(8));
        assert_eq!((contention.hold_us("a"), contention.holds.len()), (Some(8_000), 0), "it moved along");
        contention.tenure_ended(&a, ms(8), ms(32));
        assert_eq!(contention.hold_us("a"), Some(10_000), "an eighth of the way from 8 ms to 24 ms");
    }

    #[test]
    fn figures_that_were_never_written_are_refused() {
        let mut contention = Contention::default();
        contention.wait_began(&name("a"), 1, ms(1));
        contention.tenure_ended(&name("b"), ms(1), ms(2));
        let (names, holds) = (contention.parts(), contention.hold_parts());
        let twice = |of: &[ContentionPart]| [of, of].concat();
        assert!(Contention::from_parts(twice(&names), holds.clone()).is_err());
        assert!(Contention::from_parts(names.clone(), vec![holds[0].clone(); 2]).is_err());
        let long = ContentionPart { held_us: INTEGER_MAX + 1, ..names[0].clone() };
        assert!(Contention::from_parts(vec![long], holds.clone()).is_err());
        let both = HoldPart { key: name("a"), hold_us: 1 };
        assert!(Contention::from_parts(names, vec![both]).is_err(), "a name is in one of the two");
    }

    #[test]
    fn turns_take_as_long_as_tenures_and_readers_and_slots_share_them() {
        let slot = |weight| Mode::Slot { slots: 4, weight };
        // Who holds since now, who stands before, how the request asks, and when it is served if a tenure takes 100.
        for (held, ahead, mode, expected) in [
            (Mode::Exclusive, vec![], Mode::Exclusive, 100),
            (Mode::Exclusive, vec![Mode::Exclusive; 3], Mode::Exclusive, 400),
            (Mode::Exclusive, vec![Mode::Shared; 3], Mode::Shared, 100),
            (Mode::Exclusive, vec![Mode::Shared; 3], Mode::Exclusive, 200),
            (Mode::Shared, vec![Mode::Exclusive, Mode::Shared, Mode::Shared], Mode::Shared, 200),
            (Mode::Exclusive, vec![slot(1); 3], slot(1), 100),
            (Mode::Exclusive, vec![slot(1); 4], slot(1), 200),
            (Mode::Exclusive, vec![slot(4); 2], slot(2), 300),
            (Mode::Exclusive, vec![slot(3), slot(2), slot(1), slot(2)], slot(1), 300),
            (Mode::Exclusive, vec![slot(1); 4], Mode::Exclusive, 200),
        ] {
            let mut turn = Turn::new(held, 0, 100);
            for mode in &ahead {
                turn = turn.then(*mode, 100);
            }
            assert_eq!(turn.then(mode, 100).begins, expected, "{mode:?} behind {ahead:?}, held {held:?}");
        }
        let freed = BinaryHeap::from([Reverse((40, 1)), Reverse((10, 2)), Reverse((70, 1))]);
        let turn = || Turn { free: 0, freed: freed.clone(), ..Turn::new(slot(1), 0, 70) };
        assert_eq!(turn().then(slot(2), 100).begins, 10, "the first two are free");
        assert_eq!(turn().then(slot(2), 100).then(slot(2), 100).begins, 70);
        assert_eq!(turn().then(slot(4), 100).then(slot(1), 100).begins, 170);
    }
}
