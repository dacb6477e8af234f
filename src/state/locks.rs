//! Locks: grants, waits, and the lines they stand in.

use super::sessions::waits_already;
use super::{State, Wait};
use crate::command::{Ask, Patience, Terms};
use crate::identity::{Op, SessionId, Token};
use crate::kind::{Detail, Kind, Refusal};
use crate::limits::HOLDERS_SHOWN;
use crate::name::Name;
use crate::outcome::{Blocked, Effect, Holder, Outcome, Reason};
use crate::time::Time;
use std::collections::VecDeque;
use std::sync::Arc;

/// A lock that is held or waited for.
#[derive(Debug, Default)]
pub(super) struct Lock {
    /// Its holders, in the order of their tokens.
    pub(super) holders: Vec<Token>,
    /// Its line: waits in the order of their arrival.
    pub(super) line: VecDeque<Op>,
}

/// A lock as it is shown: live holders only.
#[derive(Debug)]
pub struct LockView<'a> {
    /// The lock.
    pub key: &'a Name,
    /// Live holders, at most [`HOLDERS_SHOWN`].
    pub holders: Vec<Holder>,
    /// How many live holders there are.
    pub holders_total: u64,
    /// How many waits stand in line.
    pub queue_total: u64,
}

/// What an acquire wants.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub session: SessionId,
    pub id: u64,
    pub fingerprint: u64,
    pub asks: &'a [Ask],
    pub owner: &'a str,
    pub terms: &'a Terms,
}

impl State {
    /// The lock as it is at `now`; none if nobody holds it or waits for it.
    pub fn lock(&self, key: &str, now: Time) -> Option<LockView<'_>> {
        let (key, lock) = self.locks.get_key_value(key)?;
        Some(self.view(key, lock, now))
    }

    /// Locks whose names begin with `prefix`, after the name `after`, in the order of their names.
    pub fn locks<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        now: Time,
    ) -> impl Iterator<Item = LockView<'a>> {
        super::keys::names_from(&self.locks, prefix, after).map(move |(key, lock)| self.view(key, lock, now))
    }

    /// The line of a lock, in the order in which it is served, without waits that are dead at `now`.
    pub fn line<'a>(&'a self, key: &str, now: Time) -> impl Iterator<Item = (Op, &'a Wait)> {
        let line = self.locks.get(key).map(|lock| lock.line.iter());
        line.into_iter()
            .flatten()
            .map(|op| (*op, &self.waits[op]))
            .filter(move |(_, wait)| self.wait_lives(wait, now))
    }

    /// Why wait `op` is not served, and its place in line, at `now`.
    pub fn why_waiting(&self, op: Op, now: Time) -> Option<Blocked> {
        let wait = self.waits.get(&op)?;
        Some(self.blocked(&wait.asks, Some(op), now))
    }

    fn view<'a>(&'a self, key: &'a Name, lock: &Lock, now: Time) -> LockView<'a> {
        let (holders, holders_total) = self.holders(std::iter::once(lock), now);
        LockView { key, holders, holders_total, queue_total: lock.line.len() as u64 }
    }

    fn holders<'a>(&self, locks: impl Iterator<Item = &'a Lock>, now: Time) -> (Vec<Holder>, u64) {
        let (mut shown, mut total) = (Vec::new(), 0);
        for token in locks.flat_map(|lock| lock.holders.iter()) {
            let Some(grant) = self.live_grant(*token, now) else { continue };
            total += 1;
            if shown.len() < HOLDERS_SHOWN {
                shown.push(self.holder(*token, grant, now));
            }
        }
        (shown, total)
    }

    /// Why a request for `asks` is not granted at `now`: as wait `op` in its place, or as a newcomer at the end.
    pub(super) fn blocked(&self, asks: &[Ask], op: Option<Op>, now: Time) -> Blocked {
        let locks = || asks.iter().filter_map(|ask| self.locks.get(&ask.key));
        let (holders, holders_total) = self.holders(locks(), now);
        let place = |lock: &Lock| match op.map(|op| lock.line.binary_search(&op)) {
            Some(Ok(place)) => place + 1,
            Some(Err(_)) | None => lock.line.len() + 1,
        };
        let position = locks().map(place).max().unwrap_or(1) as u64;
        let reason = if holders_total > 0 { Reason::Held } else { Reason::Queued };
        Blocked {
            reason,
            position,
            holders,
            holders_total,
            key: None,
            ahead: None,
            queue_total: position - 1,
            estimate_ms: None,
        }
    }

    pub(super) fn acquire(
        &mut self,
        wanted: &Wanted<'_>,
        patience: Patience,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        let now = self.head.at;
        if let Some(&wait) = self.sessions[&wanted.session].waiting.get(wanted.owner) {
            let op = match self.sessions[&wanted.session].wait_standing(wait) {
                super::Standing::InLine(op) => op,
                standing => panic!("a waiting owner has a wait that is {standing:?}"),
            };
            if self.wait_lives(&self.waits[&op], now) {
                return Err(waits_already(wait));
            }
            self.give_up(op, effects);
        }
        for ask in wanted.asks {
            self.clear(&ask.key, effects);
        }
        if let Some(outcome) = self.held_already(wanted)? {
            return Ok(outcome);
        }
        if self.is_free(wanted.asks, None) {
            let max = self.head.limits.grants;
            if self.grants.len() as u64 >= max {
                let text = format!("the server has its {max} grants; release one, or raise --max-grants");
                return Err(Refusal::limit("grants", max, text));
            }
            return Ok(self.grant(wanted));
        }
        let deadline = match patience {
            Patience::Try => {
                return Ok(Outcome::NotGranted(Box::new(self.blocked(wanted.asks, None, now))));
            }
            Patience::Millis(ms) => Some(now.after_ms(ms)),
            Patience::Forever => None,
        };
        self.stand_in_line(wanted, deadline)
    }

    /// The answer to an owner that holds some of what it asks for; none if it holds nothing of it.
    fn held_already(&self, wanted: &Wanted<'_>) -> Result<Option<Outcome>, Refusal> {
        let mut tokens = Vec::new();
        for ask in wanted.asks {
            let Some(lock) = self.locks.get(&ask.key) else { continue };
            for token in &lock.holders {
                let Some(grant) = self.live_grant(*token, self.head.at) else { continue };
                if grant.session == wanted.session && *grant.owner == *wanted.owner && !tokens.contains(token)
                {
                    tokens.push(*token);
                }
            }
        }
        match tokens[..] {
            [] => Ok(None),
            [token] if self.grants[&token].asks == wanted.asks => {
                Ok(Some(self.granted(token, &self.grants[&token], true)))
            }
            _ => {
                let text = "this owner holds some of these locks already; release them first, or name another `owner`";
                Err(Refusal::new(Kind::AlreadyHeld, text).with(Detail::Held { tokens }))
            }
        }
    }

    /// Whether `asks` can be granted now: to wait `op` in its place, or to a newcomer behind every line. The caller has
    /// cleared the locks of dead holders and dead waits.
    fn is_free(&self, asks: &[Ask], op: Option<Op>) -> bool {
        asks.iter().filter_map(|ask| self.locks.get(&ask.key)).all(|lock| {
            let ahead = lock.line.front().copied();
            lock.holders.is_empty() && (ahead.is_none() || ahead == op)
        })
    }

    /// Cleans a lock of holders that are gone and serves its line.
    fn clear(&mut self, key: &str, effects: &mut Vec<Effect>) {
        let Some(lock) = self.locks.get(key) else { return };
        let now = self.head.at;
        let gone: Vec<Token> =
            lock.holders.iter().copied().filter(|token| self.live_grant(*token, now).is_none()).collect();
        for token in gone {
            self.end_or_expire(token, effects);
        }
        self.serve(key, effects);
    }

    /// Serves the line of a lock: from its head, as long as there is somebody to grant to.
    pub(super) fn serve(&mut self, key: &str, effects: &mut Vec<Effect>) {
        loop {
            let Some((key, lock)) = self.locks.get_key_value(key) else { return };
            let Some(&op) = lock.line.front() else {
                if lock.holders.is_empty() {
                    let key = key.clone();
                    self.locks.remove(&key);
                }
                return;
            };
            if !self.wait_lives(&self.waits[&op], self.head.at) {
                self.give_up(op, effects);
                continue;
            }
            // Holders that are gone but not yet swept stand in nobody's way: the grant sweeps them first.
            if let Some(token) = self.gone_holder(&self.waits[&op].asks) {
                self.end_or_expire(token, effects);
                continue;
            }
            if !self.is_free(&self.waits[&op].asks, Some(op)) {
                return;
            }
            let wait = self.leave_line(op);
            let wanted = Wanted {
                session: wait.session,
                id: wait.id,
                fingerprint: 0,
                asks: &wait.asks,
                owner: &wait.owner,
                terms: &wait.terms,
            };
            let outcome = self.grant(&wanted);
            self.settle(&wait, outcome, effects);
        }
    }
}

impl State {
    /// A holder of one of these locks that is gone but not yet cleaned up.
    fn gone_holder(&self, asks: &[Ask]) -> Option<Token> {
        let locks = asks.iter().filter_map(|ask| self.locks.get(&ask.key));
        let mut holders = locks.flat_map(|lock| lock.holders.iter().copied());
        holders.find(|token| self.live_grant(*token, self.head.at).is_none())
    }

    /// Serves a line unless somebody holds the lock; keeps the depth of the stack bounded, since serving dismisses the
    /// dead in a loop and each dismissal comes back here with the lock as the loop will find it.
    pub(super) fn serve_if_free(&mut self, key: &str, effects: &mut Vec<Effect>) {
        let Some(lock) = self.locks.get(key) else { return };
        match (lock.holders.is_empty(), lock.line.front()) {
            (true, None) => {
                self.locks.remove(key);
            }
            (true, Some(op)) if self.wait_lives(&self.waits[op], self.head.at) => self.serve(key, effects),
            (true, Some(_)) | (false, _) => {}
        }
    }
}

/// A text to keep. Most owners and labels are empty; those take no memory of their own.
pub(super) fn shared_text(text: &str) -> Arc<str> {
    if text.is_empty() { Arc::default() } else { text.into() }
}

/// The outcome of a wait that was cancelled.
pub(super) fn cancelled() -> Outcome {
    Outcome::NotGranted(Box::new(Blocked {
        reason: Reason::Cancelled,
        position: 0,
        holders: Vec::new(),
        holders_total: 0,
        key: None,
        ahead: None,
        queue_total: 0,
        estimate_ms: None,
    }))
}
