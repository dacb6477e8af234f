//! Why a request is not granted, for whoever asked.

use super::lock::Lock;
use super::taken::{Taken, conflict};
use super::{State, Wait};
use crate::command::Ask;
use crate::identity::{Op, Token};
use crate::limits::{AHEAD_LOOKED_AT, HOLDERS_SHOWN};
use crate::name::Name;
use crate::outcome::{Ahead, Blocked, Holder, Outcome, Reason};
use crate::time::Time;

/// Who asks why: a wait in its place, a newcomer behind all lines, or one who would convert a grant.
#[derive(Clone, Copy)]
enum Asker {
    Newcomer,
    Waits(Op),
    Converts,
}

impl State {
    /// Why wait `op` is not served, and its place in line, at `now`.
    pub fn why_waiting(&self, op: Op, now: Time) -> Option<Blocked> {
        let wait = self.waits.get(&op)?;
        Some(self.blocked(&wait.asks, Asker::Waits(op), wait.converts, now))
    }

    /// Why a newcomer is not granted `asks` at `now`.
    pub(super) fn why_not(&self, asks: &[Ask], now: Time) -> Blocked {
        self.blocked(asks, Asker::Newcomer, None, now)
    }

    /// Why a grant may not have the modes `asks` at `now`.
    pub(super) fn why_not_converted(&self, token: Token, asks: &[Ask], now: Time) -> Blocked {
        self.blocked(asks, Asker::Converts, Some(token), now)
    }

    fn blocked(&self, asks: &[Ask], asker: Asker, converts: Option<Token>, now: Time) -> Blocked {
        let locks = || asks.iter().filter_map(|ask| Some((ask, self.locks.get(&ask.key)?)));
        let place = |lock: &Lock| match (asker, converts) {
            (Asker::Waits(op), None) => match lock.line().binary_search(&op) {
                Ok(place) | Err(place) => lock.converting().len() + place,
            },
            (Asker::Waits(op), Some(_)) => lock.converting().iter().take_while(|other| **other < op).count(),
            (Asker::Converts, _) => lock.converting().len(),
            (Asker::Newcomer, _) => lock.queue_len(),
        };
        let position = locks().map(|(_, lock)| place(lock) + 1).max().unwrap_or(1) as u64;
        let itself = usize::from(matches!(asker, Asker::Waits(_)));
        let queue_total = locks().map(|(_, lock)| lock.queue_len().saturating_sub(itself)).max();
        let (holders, holders_total) = self.holders_in_the_way(asks, converts, now);
        let found = locks().find_map(|(ask, lock)| {
            let (reason, ahead) = self.in_the_way(ask, lock, asker, converts, now)?;
            Some((reason, ask.key.clone(), ahead))
        });
        let (reason, key, ahead) = match found {
            Some((reason, key, ahead)) => {
                let ahead = ahead.map(|op| self.ahead(op, &key, now));
                (reason, Some(key), ahead)
            }
            // Only who is gone and not cleaned up is in the way: the tick that is due removes it.
            None => (Reason::Queued, None, None),
        };
        Blocked {
            reason,
            position,
            holders,
            holders_total,
            key,
            ahead,
            queue_total: queue_total.unwrap_or(0) as u64,
            estimate_ms: self.estimate_ms(asks, converts, place, now),
        }
    }

    /// What is in the way at one lock, and the nearest earlier wait, if that is what is; none if nothing is.
    fn in_the_way(
        &self,
        ask: &Ask,
        lock: &Lock,
        asker: Asker,
        converts: Option<Token>,
        now: Time,
    ) -> Option<(Reason, Option<Op>)> {
        if lock.closed_until().is_some_and(|until| now < until) {
            return Some((Reason::LockDelay, None));
        }
        let mut taken = lock.held();
        if let Some(token) = converts {
            taken.remove(self.grants[token].mode_of(&ask.key));
        }
        if !taken.admits(ask.mode) && self.is_held_against(ask, lock, converts) {
            return Some((Reason::Held, None));
        }
        let converting = match (asker, converts) {
            (Asker::Waits(op), Some(_)) => lock.converting().partition_point(|other| *other < op),
            _ => lock.converting().len(),
        };
        for op in &lock.converting()[..converting] {
            taken.add(self.waits[op].mode_of(&ask.key));
            if !taken.admits(ask.mode) {
                return Some((Reason::Conversion, Some(*op)));
            }
        }
        let before = match (asker, converts) {
            (_, Some(_)) => return None,
            (Asker::Waits(op), None) => lock.line().partition_point(|other| *other < op),
            (Asker::Newcomer | Asker::Converts, None) => lock.line().len(),
        };
        let open = match asker {
            Asker::Waits(_) => before < lock.open(),
            Asker::Newcomer | Asker::Converts => lock.is_open(ask.mode),
        };
        let line = || lock.line().iter().take(before).rev().take(AHEAD_LOOKED_AT);
        let live = |op: &&Op| self.wait_lives(&self.waits[*op]);
        let stands = |op: &&Op| {
            let mode = self.waits[*op].mode_of(&ask.key);
            conflict(mode, ask.mode) || super::lines::is_slot(mode)
        };
        if open {
            return None;
        }
        // Far back nobody is searched for: then the first of the line stands for them all.
        let nearest = line().filter(live).find(stands).or_else(|| lock.line().front().filter(|_| before > 0));
        nearest.map(|op| (Reason::Queued, Some(*op)))
    }

    /// Whether live holders alone keep the asker out.
    fn is_held_against(&self, ask: &Ask, lock: &Lock, converts: Option<Token>) -> bool {
        let mut taken = Taken::default();
        for token in lock.holders().iter().filter(|token| Some(**token) != converts) {
            let Some(grant) = self.live_grant(*token) else { continue };
            taken.add(grant.mode_of(&ask.key));
            if !taken.admits(ask.mode) {
                return true;
            }
        }
        false
    }

    /// Live holders of these locks who keep the asker out, at most [`HOLDERS_SHOWN`], and how many there are.
    fn holders_in_the_way(&self, asks: &[Ask], converts: Option<Token>, now: Time) -> (Vec<Holder>, u64) {
        let (mut shown, mut total) = (Vec::<Holder>::new(), 0);
        let mut looked_at: Vec<&Ask> = Vec::new();
        for ask in asks {
            let Some(lock) = self.locks.get(&ask.key) else { continue };
            let mut taken = lock.held();
            if let Some(token) = converts {
                taken.remove(self.grants[token].mode_of(&ask.key));
            }
            if taken.admits(ask.mode) {
                continue;
            }
            for token in lock.holders().iter().filter(|token| Some(**token) != converts) {
                let Some(grant) = self.live_grant(*token) else { continue };
                // A grant that is in the way at several of these locks is counted at the first.
                let counted =
                    |other: &Ask| grant.asks.binary_search_by(|ask| ask.key.cmp(&other.key)).is_ok();
                if looked_at.iter().any(|other| counted(other)) {
                    continue;
                }
                total += 1;
                if shown.len() < HOLDERS_SHOWN {
                    shown.push(self.holder(*token, grant, &ask.key, now));
                }
            }
            looked_at.push(ask);
        }
        (shown, total)
    }

    /// An earlier wait as it is told to those in whose way it is at a lock.
    fn ahead(&self, op: Op, key: &Name, now: Time) -> Ahead {
        let wait: &Wait = &self.waits[&op];
        let session = &self.sessions[&wait.session];
        Ahead {
            client: session.client,
            name: session.name.clone(),
            owner: wait.owner.clone(),
            label: wait.terms.label.clone(),
            mode: wait.mode_of(key),
            converts: wait.converts,
            waited_ms: now.ms_since(wait.since),
        }
    }
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
