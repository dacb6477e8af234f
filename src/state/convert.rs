//! Conversion: another mode for a lock that is held, without letting go.
//!
//! To less is done at once and keeps the token. To more waits until the other holders leave room, before all waits of the
//! lock, and gives a new token: the old one ends with the mode that it stood for.

use super::State;
use super::lines::is_slot;
use super::locks::Wanted;
use super::taken::weaker;
use crate::command::{Ask, Mode, Patience};
use crate::identity::{Op, SessionId, Token};
use crate::kind::{Kind, Refusal};
use crate::outcome::{Effect, Outcome};

/// What a conversion wants.
#[derive(Debug)]
pub(super) struct Conversion<'a> {
    pub session: SessionId,
    pub id: u64,
    pub fingerprint: u64,
    pub holder: Option<SessionId>,
    pub token: Token,
    pub asks: &'a [Ask],
}

impl State {
    pub(super) fn convert(
        &mut self,
        wanted: &Conversion<'_>,
        patience: Patience,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        let (token, now) = (wanted.token, self.head.at);
        let grant = self.grant_of(wanted.session, wanted.holder, token)?;
        let (owner, of) = (grant.owner.clone(), grant.session);
        let mut asks = Vec::new();
        for ask in wanted.asks {
            match grant.asks.binary_search_by(|held| held.key.cmp(&ask.key)) {
                Ok(place) if grant.asks[place].mode == ask.mode => {}
                Ok(_) => asks.push(ask.clone()),
                Err(_) => {
                    let text = format!(
                        "token {token} does not hold lock {:?}; convert_lock changes the modes of locks that are held",
                        ask.key
                    );
                    return Err(Refusal::new(Kind::InvalidParams, text));
                }
            }
        }
        if of != wanted.session && patience != Patience::Try {
            let text =
                "a conversion that waits is for the session of the grant; for another session only a try is";
            return Err(Refusal::new(Kind::InvalidParams, text));
        }
        self.keeps_staged(token, &asks)?;
        self.refuse_second_wait(of, &owner, effects)?;
        self.clear(asks.iter().map(|ask| ask.key.clone()), effects);
        for ask in &asks {
            self.same_slots(&ask.key, ask.mode, Some(token))?;
        }
        let held = &self.grants[token];
        if asks.iter().all(|ask| weaker(ask.mode, held.mode_of(&ask.key))) {
            self.change_modes(token, &asks);
            self.record_conversion(token, token, &asks);
            return Ok(self.converted(token, asks.is_empty()));
        }
        if asks.iter().all(|ask| self.admits_conversion(token, ask, None)) {
            self.change_modes(token, &asks);
            let before = token;
            let token = self.retoken(before, |_| {});
            self.record_conversion(before, token, &asks);
            return Ok(self.converted(token, false));
        }
        if patience != Patience::Try {
            // As long as it waited, the lock would be held with one number of slots and waited for with another.
            for ask in &asks {
                self.same_slots(&ask.key, ask.mode, None)?;
            }
        }
        let deadline = match patience {
            Patience::Try => {
                return Ok(Outcome::NotGranted(Box::new(self.why_not_converted(token, &asks, now))));
            }
            Patience::Millis(ms) => Some(self.clock.after_ms(ms)),
            Patience::Forever => None,
        };
        let terms = self.grants[token].terms().clone();
        let wait = Wanted {
            session: wanted.session,
            id: wanted.id,
            fingerprint: wanted.fingerprint,
            asks: &asks,
            owner: &owner,
            terms: &terms,
        };
        self.refuse_deadlock(&wait, Some(token))?;
        self.stand_in_line(&wait, deadline, Some(token))
    }

    /// Whether a conversion that waits may take effect: at all of its locks.
    pub(super) fn conversion_is_open(&self, op: Op) -> bool {
        let wait = &self.waits[&op];
        let token = wait.converts.expect("it converts a grant");
        wait.asks.iter().all(|ask| self.admits_conversion(token, ask, Some(op)))
    }

    /// Whether a lock has room for the new mode of one of its holders, beside the others and beside what conversions before
    /// `op`, or all of them, ask for.
    fn admits_conversion(&self, token: Token, ask: &Ask, op: Option<Op>) -> bool {
        let lock = &self.locks[&ask.key];
        let mut taken = lock.held();
        taken.remove(self.grants[token].mode_of(&ask.key));
        for earlier in lock.converting().iter().filter(|other| op.is_none_or(|op| **other < op)) {
            taken.add(self.waits[earlier].mode_of(&ask.key));
        }
        lock.closed_until().is_none() && taken.admits(ask.mode)
    }

    /// Does a conversion that has waited.
    pub(super) fn convert_wait(&mut self, op: Op, effects: &mut Vec<Effect>) {
        let wait = self.leave_line(op);
        let before = wait.converts.expect("it converts a grant");
        self.change_modes(before, &wait.asks);
        let kept = crate::bug::planted("upgrade_keeps_its_token");
        let token = if kept { before } else { self.retoken(before, |_| {}) };
        self.record_conversion(before, token, &wait.asks);
        let outcome = self.converted(token, false);
        self.settle(&wait, outcome, effects);
    }

    fn converted(&self, token: Token, again: bool) -> Outcome {
        self.granted(token, &self.grants[token], again)
    }

    /// Gives locks of a grant other modes, for which there is room.
    fn change_modes(&mut self, token: Token, asks: &[Ask]) {
        for ask in asks {
            let grant = self.grants.get_mut(token).expect("a grant that is converted is there");
            let held = grant.asks.iter_mut().find(|held| held.key == ask.key).expect("it holds the lock");
            let old = std::mem::replace(&mut held.mode, ask.mode);
            let lock = self.locks.get_mut(&ask.key).expect("a held lock has an entry").contended();
            lock.held.remove(old);
            assert!(
                lock.held.admits(ask.mode),
                "lock {:?} would be held by two who exclude each other",
                ask.key
            );
            lock.held.add(ask.mode);
            match (old, ask.mode) {
                (_, Mode::Exclusive) => self.key_held(&ask.key),
                (Mode::Exclusive, _) => self.key_freed(&ask.key),
                _ => {}
            }
            self.recount(&ask.key);
            self.changed(&ask.key);
        }
    }

    /// Puts a conversion before the lines of its locks.
    pub(super) fn join_converting(&mut self, token: Token, op: Op) {
        self.grants.get_mut(token).expect("it is converted").rare_mut().conversion = Some(op);
        for ask in &self.waits[&op].asks.clone() {
            let lock = self.locks.get_mut(&ask.key).expect("a held lock has an entry").contended();
            lock.converting.push(op);
            lock.slot_waits += u32::from(is_slot(ask.mode));
            self.recount(&ask.key);
        }
    }

    /// Takes a conversion, which is no wait any more, from before the lines of its locks.
    pub(super) fn leave_converting(&mut self, token: Token, asks: &[Ask], op: Op) {
        if let Some(rare) = self.grants.get_mut(token).and_then(|grant| grant.rare_if_any()) {
            rare.conversion = None;
        }
        for ask in asks {
            let lock = self.locks.get_mut(&ask.key).expect("a held lock has an entry").contended();
            lock.converting.retain(|other| *other != op);
            lock.slot_waits -= u32::from(is_slot(ask.mode));
            lock.taken.remove(ask.mode);
            self.changed(&ask.key);
        }
    }
}
