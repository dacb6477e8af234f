//! Lines: who is granted a lock next.
//!
//! Each lock has one line, in the order of arrival. A wait is *open* in a line if its mode goes with all holders and all
//! earlier waits of that line, as though these held too. So nobody is overtaken by somebody in whose way he stands, and
//! the open waits are the beginning of the line: behind the first that does not fit, nobody fits. A wait is granted the
//! moment it is open in the lines of all its locks. Waits that convert a grant stand before the line, among themselves in
//! the order of arrival, and the line treats them as though they had what they ask for.
//!
//! What is open is counted, not searched: each lock knows how many waits of its line are open and what they and the
//! holders take, each wait in how many lines it is not open yet. Letting go costs what it hands over.
//!
//! Invariants, between commands: `open` is as large as the rule allows, except for locks in `unserved`; a wait in line is
//! not open in at least one of its lines; nobody holds or waits for a lock without an entry, and no entry is without a
//! holder, a wait or a lock-delay.

use super::lock::Lock;
use super::{Due, State};
use crate::command::Mode;
use crate::identity::{Op, Token};
use crate::limits::SWEEP_MAX;
use crate::name::Name;
use crate::outcome::{Effect, Reason};
use std::collections::btree_map::Entry;

/// What was cleaned up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Swept {
    /// Nobody was gone.
    Nothing,
    /// Somebody was, and what was found before may not hold any more.
    Something,
}

impl State {
    /// Says that something of a lock was let go: its line is served before the command ends.
    pub(super) fn changed(&mut self, key: &Name) {
        self.unserved.insert(key.clone());
    }

    /// Serves the lines on which something was let go, at most [`SWEEP_MAX`] waits of them, so that applying a command
    /// never takes long. What is left is served by the next commands; a tick comes at once.
    pub(super) fn serve(&mut self, effects: &mut Vec<Effect>) {
        let mut left = SWEEP_MAX;
        while let Some(key) = self.unserved.first().cloned() {
            if !self.serve_lock(&key, &mut left, effects) {
                return;
            }
            self.unserved.remove(&key);
            self.tidy(&key);
        }
    }

    /// Lets go of what a lock does not need any more.
    fn tidy(&mut self, key: &Name) {
        let Some(lock) = self.locks.get_mut(key) else { return };
        if lock.leaves_no_trace() {
            self.locks.remove(key);
        } else if let Some(token) = lock.sole_holder() {
            let mode = self.grants[token].mode_of(key);
            if !is_slot(mode) {
                *lock = Lock::held_by(token, mode);
            }
        }
    }

    /// Serves one line. False if there is more than may be done now.
    fn serve_lock(&mut self, key: &Name, left: &mut usize, effects: &mut Vec<Effect>) -> bool {
        if !self.sweep_lock(key, left, effects) {
            return false;
        }
        let Some(lock) = self.locks.get(key) else { return true };
        if lock.is_plain() || lock.closed_until().is_some() {
            return true;
        }
        let mut next = 0;
        while let Some(&op) = self.locks[key].converting().get(next) {
            if !self.conversion_is_open(op) {
                next += 1;
                continue;
            }
            let swept = self.sweep_others(op, key, left, effects);
            if *left == 0 {
                return false;
            }
            if swept == Swept::Something {
                continue;
            }
            *left -= 1;
            self.convert_wait(op, effects);
        }
        loop {
            let Some(lock) = self.locks.get(key) else { return true };
            let Some(&op) = lock.line().get(lock.open()) else { return true };
            // Before the last of its locks lets it through, what is over at the others goes: their lock-delay may begin now.
            if self.waits[&op].closed == 1 && self.sweep_others(op, key, left, effects) == Swept::Something {
                if *left == 0 {
                    return false;
                }
                continue;
            }
            let Some(lock) = self.locks.get_mut(key).map(Lock::contended) else { return true };
            let wait = self.waits.get_mut(&op).expect("who stands in line waits");
            let mode = wait.mode_of(key);
            if !lock.taken.admits(mode) {
                return true;
            }
            if *left == 0 {
                return false;
            }
            *left -= 1;
            lock.taken.add(mode);
            lock.open += 1;
            wait.closed -= 1;
            if wait.closed > 0 {
                continue;
            }
            if self.wait_lives(&self.waits[&op]) {
                self.grant_wait(op, effects);
            } else {
                self.give_up(op, effects);
            }
        }
    }

    /// Cleans the other locks that a wait asks for of what is gone, before it is granted all of them.
    fn sweep_others(&mut self, op: Op, key: &Name, left: &mut usize, effects: &mut Vec<Effect>) -> Swept {
        if !self.may_be_dead() {
            return Swept::Nothing;
        }
        let (before, others) = (*left, self.waits[&op].asks.clone());
        for ask in others.iter().filter(|ask| ask.key != *key) {
            if !self.sweep_lock(&ask.key, left, effects) {
                break;
            }
        }
        if *left < before { Swept::Something } else { Swept::Nothing }
    }

    /// Whether anything may be past its time, or of an ended session, and not yet cleaned up.
    pub(super) fn may_be_dead(&self) -> bool {
        !self.leaving.is_empty() || self.due.first().is_some_and(|(time, _)| *time <= self.head.at)
    }

    /// Cleans a lock of holders and waits that are gone, and of a lock-delay that is over. False if there is more than may
    /// be done now. Nothing is served.
    pub(super) fn sweep_lock(&mut self, key: &Name, left: &mut usize, effects: &mut Vec<Effect>) -> bool {
        if !self.may_be_dead() {
            return true;
        }
        let now = self.head.at;
        let Some(lock) = self.locks.get(key) else { return true };
        let closed_until = lock.closed_until().filter(|until| *until <= now);
        let dead = |op: &&Op| !self.wait_lives(&self.waits[*op]);
        let holders: Vec<Token> = lock
            .holders()
            .iter()
            .filter(|token| self.live_grant(**token).is_none())
            .take(*left)
            .copied()
            .collect();
        *left -= holders.len();
        let waits: Vec<Op> =
            lock.converting().iter().chain(lock.line()).filter(dead).take(*left).copied().collect();
        *left -= waits.len();
        if let Some(until) = closed_until {
            self.due.remove(&(until, Due::LockDelay(key.clone())));
            self.reopen(key);
        }
        // Waits first: a conversion that is gone must not be told that its grant was.
        for op in waits {
            if self.waits.contains_key(&op) {
                self.give_up(op, effects);
            }
        }
        for token in holders {
            if self.grants.contains(token) {
                self.end_or_expire(token, effects);
            }
        }
        *left > 0
    }

    /// Cleans these locks of what is gone, and serves their lines.
    pub(super) fn clear(&mut self, keys: impl Iterator<Item = Name>, effects: &mut Vec<Effect>) {
        if self.may_be_dead() {
            let mut left = SWEEP_MAX;
            for key in keys {
                self.sweep_lock(&key, &mut left, effects);
            }
        }
        self.serve(effects);
    }

    /// Puts the hold of a newcomer's grant on one of its locks.
    pub(super) fn take(&mut self, key: &Name, mode: Mode, token: Token) {
        self.hold(key, mode, token);
        if mode == Mode::Exclusive {
            self.key_held(key);
        }
    }

    /// The same, before there are keys that it could guard.
    pub(super) fn hold(&mut self, key: &Name, mode: Mode, token: Token) {
        match self.locks.entry(key.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(Lock::held_by(token, mode));
            }
            Entry::Occupied(mut entry) => {
                let lock = entry.get_mut().contended();
                lock.hold(key, mode, token);
                lock.taken.add(mode);
            }
        }
    }

    /// Takes a grant's hold from one of its locks.
    pub(super) fn let_go(&mut self, key: &Name, mode: Mode, token: Token) {
        let Entry::Occupied(mut entry) = self.locks.entry(key.clone()) else {
            panic!("a held lock has an entry");
        };
        let alone = entry.get().is_plain();
        if alone {
            assert!(entry.get().holders() == [token], "a grant holds each of its locks");
            entry.remove();
        } else {
            let lock = entry.get_mut().contended();
            let place = lock.holders.binary_search(&token).expect("a grant holds each of its locks");
            lock.holders.remove(place);
            lock.held.remove(mode);
            lock.taken.remove(mode);
        }
        if mode == Mode::Exclusive {
            self.key_freed(key);
        }
        // Where nobody waits, nobody is to be served.
        if !alone {
            self.changed(key);
        }
    }

    /// Puts a wait at the end of a line; gives whether it is open there.
    pub(super) fn join(&mut self, key: &Name, mode: Mode, op: Op) -> bool {
        let lock = self.locks.entry(key.clone()).or_default();
        let open = lock.is_open(mode);
        let lock = lock.contended();
        lock.line.push_back(op);
        lock.slot_waits += u32::from(is_slot(mode));
        if open {
            lock.open += 1;
            lock.taken.add(mode);
        }
        open
    }

    /// Takes a wait out of a line. What it stood in the way of is served before the command ends.
    pub(super) fn leave(&mut self, key: &Name, mode: Mode, op: Op) {
        let lock = self.locks.get_mut(key).expect("a lock that is waited for has an entry").contended();
        let place = lock.line.binary_search(&op).expect("a wait stands in the line of each of its locks");
        lock.line.remove(place);
        lock.slot_waits -= u32::from(is_slot(mode));
        if place < lock.open {
            lock.open -= 1;
            lock.taken.remove(mode);
        }
        if place <= lock.open {
            self.changed(key);
        }
    }

    /// Makes the wait at `place` of an open line a holder: what is taken stays as it is.
    pub(super) fn step_in(&mut self, key: &Name, mode: Mode, op: Op, token: Token) {
        let lock = self.locks.get_mut(key).expect("a lock that is waited for has an entry").contended();
        let place = lock.line.binary_search(&op).expect("a wait stands in the line of each of its locks");
        assert!(place < lock.open, "a wait would be granted lock {key:?}, where it is not open");
        lock.line.remove(place);
        lock.open -= 1;
        lock.slot_waits -= u32::from(is_slot(mode));
        lock.hold(key, mode, token);
        if mode == Mode::Exclusive {
            self.key_held(key);
        }
    }

    /// Counts anew what is open in a line in which something new stands in the way. Nobody new becomes open.
    pub(super) fn recount(&mut self, key: &Name) {
        let Some(lock) = self.locks.get_mut(key).map(Lock::contended) else { return };
        let mut taken = lock.held;
        for op in &lock.converting {
            taken.add(self.waits[op].mode_of(key));
        }
        let (was, mut open) = (lock.open, 0);
        while lock.closed_until.is_none() && open < was {
            let mode = self.waits[&lock.line[open]].mode_of(key);
            if !taken.admits(mode) {
                break;
            }
            taken.add(mode);
            open += 1;
        }
        (lock.open, lock.taken) = (open, taken);
        for op in lock.line.iter().take(was).skip(open) {
            self.waits.get_mut(op).expect("who stands in line waits").closed += 1;
        }
    }

    /// Closes a lock for the lock-delay of a tenure that did not end with a release.
    pub(super) fn close(&mut self, key: &Name, delay_ms: u64) {
        if crate::bug::planted("no_lock_delay") {
            return;
        }
        let until = self.clock.after_ms(delay_ms);
        let lock = self.locks.entry(key.clone()).or_default().contended();
        let before = lock.closed_until;
        if before.is_some_and(|before| before >= until) {
            return;
        }
        lock.closed_until = Some(until);
        if let Some(before) = before {
            self.due.remove(&(before, Due::LockDelay(key.clone())));
        }
        self.due.insert((until, Due::LockDelay(key.clone())));
        self.recount(key);
    }

    /// Ends a lock-delay whose deadline the caller has taken off.
    pub(super) fn reopen(&mut self, key: &Name) {
        if let Some(lock) = self.locks.get_mut(key) {
            lock.contended().closed_until = None;
            self.changed(key);
        }
    }

    /// Dismisses the conversion of a grant that ends.
    pub(super) fn grant_ended(&mut self, op: Op, effects: &mut Vec<Effect>) {
        self.dismiss(op, Reason::GrantEnded, effects);
    }
}

pub(super) fn is_slot(mode: Mode) -> bool {
    matches!(mode, Mode::Slot { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Ask, Call, Command, EndReason, Patience, Request, Terms};
    use crate::identity::{Nonce, SessionId};
    use crate::outcome::Outcome;
    use crate::time::Time;
    use std::collections::BTreeSet;

    fn ask(key: &str, mode: Mode) -> Ask {
        Ask { key: Name::new(key).unwrap(), mode }
    }

    fn apply(state: &mut State, command: &Command) -> Outcome {
        let (op, at) = (state.op() + 1, state.at());
        state.apply(op, at, command, &mut Vec::new())
    }

    fn request(session: u128, id: u64, call: Call) -> Command {
        Command::Request(Request { session: SessionId(session), id, ack: 0, got: Vec::new(), call })
    }

    fn call(state: &mut State, session: u128, id: u64, call: Call) -> Outcome {
        apply(state, &request(session, id, call))
    }

    fn acquire(state: &mut State, session: u128, id: u64, asks: Vec<Ask>) -> Outcome {
        let (owner, terms) = (format!("owner {id}"), Terms::default());
        call(state, session, id, Call::Acquire { asks: asks.into(), wait: Patience::Forever, owner, terms })
    }

    fn open(state: &mut State, sessions: u128) {
        for session in 1..=sessions {
            let (nonce, name, label) = (Nonce(session), String::new(), String::new());
            let session = SessionId(session);
            apply(state, &Command::OpenSession { nonce, session, name, label, ttl_ms: 10_000 });
        }
    }

    fn shown(state: &State) -> String {
        format!("{:#?}", state.parts())
    }

    /// What is counted of each line and not searched for.
    fn counted(state: &State) -> String {
        let closed: Vec<_> = state.waits.iter().map(|(op, wait)| (op, wait.closed)).collect();
        let count = |(key, lock): (&Name, &Lock)| {
            let open = (lock.open(), lock.is_plain(), lock.slot_waits(), lock.held(), lock.taken());
            format!("{key:?} {:?} {:?} {:?} {open:?}", lock.holders(), lock.converting(), lock.line())
        };
        let locks: Vec<_> = state.locks.iter().map(count).collect();
        format!("{locks:#?} {closed:?}")
    }

    /// What is settled and lost by commands, each thing once.
    #[derive(Default)]
    struct Ends {
        waits: BTreeSet<(SessionId, u64)>,
        grants: BTreeSet<Token>,
    }

    impl Ends {
        /// Applies a command at that time; gives how much it ended.
        fn apply(&mut self, state: &mut State, at: Time, command: &Command) -> usize {
            let mut effects = Vec::new();
            state.apply(state.op() + 1, at, command, &mut effects);
            self.take(&effects)
        }

        fn take(&mut self, effects: &[Effect]) -> usize {
            let before = self.waits.len() + self.grants.len();
            for effect in effects {
                match effect {
                    Effect::Settled { session, id } => {
                        assert!(self.waits.insert((*session, *id)), "{effect:?}")
                    }
                    Effect::Lost { loss, .. } => assert!(self.grants.insert(loss.token), "{effect:?}"),
                    _ => {}
                }
            }
            self.waits.len() + self.grants.len() - before
        }
    }

    /// Readers of these locks whose leases end after a second, and as many writers behind them who wait no longer than
    /// that.
    fn soon_over(state: &mut State, keys: &[&str], count: u64) {
        for (place, key) in (0..).zip(keys) {
            for number in 1..=count {
                let id = place * count + number;
                let (owner, lease) =
                    (format!("owner {id}"), Terms { lease_ms: Some(1_000), ..Terms::default() });
                let asks = vec![ask(key, Mode::Shared)].into();
                let (wait, terms) = (Patience::Try, lease);
                call(state, 1, id, Call::Acquire { asks, wait, owner: owner.clone(), terms });
            }
        }
        for (place, key) in (0..).zip(keys) {
            for number in 1..=count {
                let id = place * count + number;
                let (owner, terms) = (format!("owner {id}"), Terms::default());
                let asks = vec![ask(key, Mode::Exclusive)].into();
                let session = 2 + u128::from(id % 16);
                call(state, session, id, Call::Acquire { asks, wait: Patience::Millis(1_000), owner, terms });
            }
        }
    }

    /// More readers than one command may serve wait for a writer, some of them for a second lock besides. A snapshot that
    /// is taken between the commands that serve them must say how far they came. (When that was left out of it on purpose,
    /// no other test minded, and the server would not have started from it.)
    #[test]
    fn a_line_that_one_command_cannot_serve_is_served_by_the_next_also_from_a_snapshot() {
        let mut state = State::new();
        open(&mut state, 4);
        for (id, key) in [(1, "lock"), (2, "other")] {
            acquire(&mut state, 1, id, vec![ask(key, Mode::Exclusive)]);
        }
        for session in 2..=4 {
            for id in 1..=200 {
                let mut asks = vec![ask("lock", Mode::Shared)];
                if id % 5 == 0 {
                    asks.push(ask("other", Mode::Shared));
                }
                let outcome = acquire(&mut state, session, id, asks);
                assert!(matches!(outcome, Outcome::Waiting(_)), "{outcome:?}");
            }
        }
        call(&mut state, 1, 3, Call::Release { token: 1, holder: None });
        let mut turns = 0;
        while state.next_due() == Some(state.at()) {
            turns += 1;
            let mut read = State::from_parts(state.parts()).unwrap();
            assert_eq!(shown(&read), shown(&state));
            assert_eq!(apply(&mut read, &Command::Tick), apply(&mut state, &Command::Tick));
            assert_eq!(shown(&read), shown(&state));
        }
        assert_eq!(turns, 2, "600 waits are more than two commands serve, and not more than three");
        let lock = &state.locks["lock"];
        assert_eq!((lock.holders().len(), lock.line().len(), lock.open()), (480, 120, 120));
        call(&mut state, 1, 4, Call::Release { token: 2, holder: None });
        assert_eq!((state.locks["lock"].holders().len(), state.waits.len()), (600, 0));
    }

    /// Conversions take no more than their share of a command either. What a command can serve to the end, it does: nothing
    /// is left that would call for a tick.
    #[test]
    fn conversions_that_one_command_cannot_serve_are_served_by_the_next() {
        for (count, turns) in [(SWEEP_MAX, 0), (SWEEP_MAX + 1, 1)] {
            let mut state = State::new();
            open(&mut state, 17);
            let key = |number: usize| format!("lock {number:03}");
            // Nobody waits for the last of them.
            let all = (0..=count).map(|number| ask(&key(number), Mode::Shared)).collect();
            acquire(&mut state, 1, 1, all);
            for number in 0..=count {
                let (session, id) = (2 + number as u128 % 16, 1 + number as u64);
                acquire(&mut state, session, id, vec![ask(&key(number), Mode::Shared)]);
            }
            for number in 0..count {
                let (session, id) = (2 + number as u128 % 16, 1_001 + number as u64);
                let asks = vec![ask(&key(number), Mode::Exclusive)].into();
                let (token, holder, wait) = (2 + number as u64, None, Patience::Forever);
                let outcome = call(&mut state, session, id, Call::Convert { token, holder, asks, wait });
                assert!(matches!(outcome, Outcome::Waiting(_)), "{outcome:?}");
            }
            call(&mut state, 1, 2, Call::Release { token: 1, holder: None });
            assert_eq!(state.waits.len(), count.saturating_sub(SWEEP_MAX));
            let mut ticks = 0;
            while state.next_due() == Some(Time::ZERO) {
                let read = State::from_parts(state.parts()).unwrap();
                assert_eq!(shown(&read), shown(&state));
                apply(&mut state, &Command::Tick);
                ticks += 1;
            }
            assert_eq!((ticks, state.waits.len(), state.unserved.len()), (turns, 0, 0));
        }
    }

    #[test]
    fn a_sweep_does_no_more_than_it_may_and_says_whether_that_was_all() {
        let mut state = State::new();
        open(&mut state, 17);
        soon_over(&mut state, &["lock"], 10);
        let mut ends = Ends::default();
        let later = Time::from_millis(1_000);
        ends.apply(&mut state, later, &request(1, 100, Call::CancelWait { wait: 101 }));
        let key = Name::new("lock").unwrap();
        for (may, left, all) in [(4, 0, false), (9, 0, false), (10, 3, true), (10, 10, true)] {
            let (mut budget, mut effects) = (may, Vec::new());
            assert_eq!(state.sweep_lock(&key, &mut budget, &mut effects), all);
            assert_eq!((budget, ends.take(&effects)), (left, may - left));
        }
        assert_eq!((ends.grants.len(), ends.waits.len()), (10, 10));
    }

    /// Far more holders and waits are over than one command may clean up. Whoever comes is served in its time, and all of
    /// them are told once.
    #[test]
    fn no_command_cleans_up_without_bound_and_nothing_is_left_or_told_twice() {
        let mut state = State::new();
        open(&mut state, 18);
        let keys = ["a", "b", "c"];
        soon_over(&mut state, &keys, 600);
        assert_eq!((state.grants.len(), state.waits.len()), (1_800, 1_800));
        let mut ends = Ends::default();
        let later = Time::from_millis(1_000);
        let asks: Vec<Ask> = keys.iter().map(|key| ask(key, Mode::Exclusive)).collect();
        let (owner, terms) = (String::new(), Terms::default());
        let newcomer = Call::Acquire { asks: asks.into(), wait: Patience::Forever, owner, terms };
        let mut command = request(18, 1, newcomer);
        while state.grants.len() > 1 || !state.waits.is_empty() {
            // What is due, what its end lets go of, and what a newcomer needs: each has its share.
            let ended = ends.apply(&mut state, later, &command);
            assert!(ended > 0 && ended <= 3 * SWEEP_MAX, "{ended} in one command");
            command = Command::Tick;
        }
        assert_eq!((ends.grants.len(), ends.waits.len()), (1_800, 1_801));
        assert_eq!((state.grants.len(), state.waits.len(), state.next_due()), (1, 0, None));
    }

    /// An ended session is cleaned up over several commands. Whoever needs one of its locks before that does not wait for
    /// them.
    #[test]
    fn a_lock_of_an_ended_session_is_free_before_the_session_is_cleaned_up() {
        let mut state = State::new();
        open(&mut state, 2);
        let count = 2 * SWEEP_MAX as u64;
        for id in 1..=count {
            acquire(&mut state, 1, id, vec![ask(&format!("lock {id}"), Mode::Exclusive)]);
        }
        let (session, term, reason) = (SessionId(1), 0, EndReason::Closed);
        apply(&mut state, &Command::EndSession { session, term, reason });
        assert_eq!((state.grants.len(), state.leaving.len()), (SWEEP_MAX, 1));
        let outcome = acquire(&mut state, 2, 1, vec![ask(&format!("lock {count}"), Mode::Exclusive)]);
        assert!(matches!(outcome, Outcome::Granted { .. }), "{outcome:?}");
    }

    /// Whatever happens in a line, its counters say what is there: those of a state built from parts are counted anew. A lock
    /// that nobody waits for any more is as small as before.
    #[test]
    fn what_is_counted_is_what_is_there() {
        let slot = |weight| Mode::Slot { slots: 3, weight };
        let mut state = State::new();
        open(&mut state, 4);
        let mut step = |session: u128, id: u64, what: Call| {
            let outcome = call(&mut state, session, id, what);
            assert!(!matches!(outcome, Outcome::Refused(_) | Outcome::Void), "{outcome:?}");
            assert_eq!(counted(&State::from_parts(state.parts()).unwrap()), counted(&state));
            state.locks.get("a").map(Lock::is_plain)
        };
        let acquire = |key: &str, mode: Mode| {
            let (asks, owner, terms) = (vec![ask(key, mode)].into(), String::new(), Terms::default());
            Call::Acquire { asks, wait: Patience::Forever, owner, terms }
        };
        let release = |token| Call::Release { token, holder: None };
        let convert = |token, mode| {
            let (asks, wait) = (vec![ask("a", mode)].into(), Patience::Forever);
            Call::Convert { token, holder: None, asks, wait }
        };
        assert_eq!(step(1, 1, acquire("a", Mode::Exclusive)), Some(true));
        assert_eq!(step(2, 1, acquire("a", slot(1))), Some(false));
        assert_eq!(step(3, 1, acquire("a", slot(2))), Some(false));
        assert_eq!(step(2, 2, Call::CancelWait { wait: 1 }), Some(false));
        assert_eq!(step(3, 2, Call::CancelWait { wait: 1 }), Some(true));
        assert_eq!(step(2, 3, acquire("a", slot(1))), Some(false));
        assert_eq!(step(3, 3, acquire("a", slot(2))), Some(false));
        assert_eq!(step(4, 1, acquire("a", slot(1))), Some(false));
        step(1, 2, release(1));
        step(2, 4, convert(2, slot(2)));
        step(3, 4, release(3));
        step(4, 2, release(5));
        step(2, 5, release(4));
        assert_eq!(step(1, 3, acquire("b", Mode::Shared)), None);
    }
}
