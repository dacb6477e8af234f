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
            match self.sweep_others(op, key, left, effects) {
                Swept::Nothing if *left > 0 => {}
                Swept::Something if *left > 0 => continue,
                Swept::Nothing | Swept::Something => return false,
            }
            *left -= 1;
            self.convert_wait(op, effects);
        }
        loop {
            let Some(lock) = self.locks.get(key) else { return true };
            let Some(&op) = lock.line().get(lock.open()) else { return true };
            // Before the last of its locks lets it through, what is over at the others goes: their lock-delay may begin now.
            if self.waits[&op].closed == 1 {
                match self.sweep_others(op, key, left, effects) {
                    Swept::Nothing => {}
                    Swept::Something if *left > 0 => continue,
                    Swept::Something => return false,
                }
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
        let lock = self.locks.get_mut(key).expect("a held lock has an entry");
        let alone = lock.is_plain();
        if alone {
            assert!(lock.holders() == [token], "a grant holds each of its locks");
            self.locks.remove(key);
        } else {
            let lock = lock.contended();
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
        let until = self.head.at.after_ms(delay_ms);
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
    use crate::command::{Ask, Call, Command, Patience, Request, Terms};
    use crate::identity::{Nonce, SessionId};
    use crate::outcome::Outcome;

    fn ask(key: &str, mode: Mode) -> Ask {
        Ask { key: Name::new(key).unwrap(), mode }
    }

    fn apply(state: &mut State, command: &Command) -> Outcome {
        let (op, at) = (state.op() + 1, state.at());
        state.apply(op, at, command, &mut Vec::new())
    }

    fn call(state: &mut State, session: u128, id: u64, call: Call) -> Outcome {
        let request = Request { session: SessionId(session), id, ack: 0, got: Vec::new(), call };
        apply(state, &Command::Request(request))
    }

    fn acquire(state: &mut State, session: u128, id: u64, asks: Vec<Ask>) -> Outcome {
        let (owner, terms) = (format!("owner {id}"), Terms::default());
        call(state, session, id, Call::Acquire { asks: asks.into(), wait: Patience::Forever, owner, terms })
    }

    fn shown(state: &State) -> String {
        format!("{:#?}", state.parts())
    }

    /// More readers than one command may serve wait for a writer, some of them for a second lock besides. A snapshot that
    /// is taken between the commands that serve them must say how far they came. (When that was left out of it on purpose,
    /// no other test minded, and the server would not have started from it.)
    #[test]
    fn a_line_that_one_command_cannot_serve_is_served_by_the_next_also_from_a_snapshot() {
        let mut state = State::new();
        for session in 1..=4 {
            let (nonce, name, label) = (Nonce(session), String::new(), String::new());
            let session = SessionId(session);
            let open = Command::OpenSession { nonce, session, name, label, ttl_ms: 10_000 };
            apply(&mut state, &open);
        }
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
}
