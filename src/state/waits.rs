//! Waits: requests for a grant that stand in line.

use super::locks::{Wanted, cancelled, shared_text};
use super::{Due, State};
use crate::command::{Ask, Terms};
use crate::identity::{Op, SessionId};
use crate::kind::Refusal;
use crate::outcome::{Blocked, Effect, Outcome, Reason};
use crate::state::parts::WaitPart;
use crate::time::Time;
use std::sync::Arc;

/// A request for a grant that stands in line.
#[derive(Debug)]
pub struct Wait {
    /// Its session.
    pub session: SessionId,
    /// The id of the request.
    pub id: u64,
    /// The owner inside the session.
    pub owner: Arc<str>,
    /// What the grant is to be like.
    pub terms: Terms,
    /// The locks it asks for, sorted by name.
    pub asks: Vec<Ask>,
    /// When it was put in line.
    pub since: Time,
    /// When it gives up, if ever.
    pub deadline: Option<Time>,
}

impl State {
    /// Waits that live at `now`, after the one that began with that command, in the order of their arrival.
    pub fn live_waits(&self, after: Op, now: Time) -> impl Iterator<Item = (Op, &Wait)> {
        let waits = self.waits.range(after.saturating_add(1)..).map(|(op, wait)| (*op, wait));
        waits.filter(move |(_, wait)| self.wait_lives(wait, now))
    }

    pub(super) fn wait_lives(&self, wait: &Wait, now: Time) -> bool {
        wait.deadline.is_none_or(|deadline| now < deadline) && self.sessions[&wait.session].is_live()
    }

    pub(super) fn stand_in_line(
        &mut self,
        wanted: &Wanted<'_>,
        deadline: Option<Time>,
    ) -> Result<Outcome, Refusal> {
        let limits = &self.head.limits;
        if self.waits.len() as u64 >= limits.waits {
            let text =
                format!("the server has its {} waits; try again later, or raise --max-waits", limits.waits);
            return Err(Refusal::limit("waits", limits.waits, text));
        }
        let longest =
            wanted.asks.iter().filter_map(|ask| self.locks.get(&ask.key)).map(|lock| lock.line.len()).max();
        if longest.unwrap_or(0) as u64 >= limits.lock_waits {
            let text = format!(
                "{} waits stand in this line already; try again later, or raise --max-lock-waits",
                limits.lock_waits
            );
            return Err(Refusal::limit("lock_waits", limits.lock_waits, text));
        }
        let session = self.sessions.get_mut(&wanted.session).expect("it asks");
        if !session.has_wait_room(limits) {
            let max = limits.session_waits;
            let text = format!("the session has its {max} waits; name the answered ones in `got`");
            return Err(Refusal::limit("session_waits", max, text));
        }
        let (op, owner) = (self.head.op, shared_text(wanted.owner));
        session.begin_wait(wanted.id, wanted.fingerprint, owner.clone(), op);
        if let Some(deadline) = deadline {
            self.due.insert((deadline, Due::Wait(op)));
        }
        for ask in wanted.asks {
            self.locks.entry(ask.key.clone()).or_default().line.push_back(op);
        }
        self.waits.insert(
            op,
            Wait {
                session: wanted.session,
                id: wanted.id,
                owner,
                terms: Terms { label: shared_text(&wanted.terms.label), ..wanted.terms.clone() },
                asks: wanted.asks.to_vec(),
                since: self.head.at,
                deadline,
            },
        );
        self.note_wait(wanted.asks);
        Ok(Outcome::Waiting(Box::new(self.blocked(wanted.asks, Some(op), self.head.at))))
    }

    /// Takes a wait out of every line.
    pub(super) fn leave_line(&mut self, op: Op) -> Wait {
        let wait = self.waits.remove(&op).expect("a wait leaves its line once");
        if let Some(deadline) = wait.deadline {
            self.due.remove(&(deadline, Due::Wait(op)));
        }
        for ask in &wait.asks {
            let lock = self.locks.get_mut(&ask.key).expect("a lock that is waited for has an entry");
            let place = lock.line.binary_search(&op).expect("a wait stands in the line of each of its locks");
            lock.line.remove(place);
        }
        wait
    }

    /// Gives a wait its final outcome.
    pub(super) fn settle(&mut self, wait: &Wait, outcome: Outcome, effects: &mut Vec<Effect>) {
        self.note(&outcome);
        self.note_wait_end(wait);
        let session = self.sessions.get_mut(&wait.session).expect("a wait has a session");
        session.end_wait(wait.id, &wait.owner, outcome);
        effects.push(Effect::Settled { session: wait.session, id: wait.id });
    }

    /// Takes wait `op` out of its line, answers it, and serves whoever it stood in the way of.
    pub(super) fn dismiss(&mut self, op: Op, reason: Reason, effects: &mut Vec<Effect>) {
        let blocked = self.blocked(&self.waits[&op].asks, Some(op), self.head.at);
        let wait = self.leave_line(op);
        let outcome = match reason {
            Reason::Cancelled => cancelled(),
            _ => Outcome::NotGranted(Box::new(Blocked { reason, estimate_ms: None, ..blocked })),
        };
        self.settle(&wait, outcome, effects);
        for ask in &wait.asks {
            self.serve_if_free(&ask.key, effects);
        }
    }

    /// Ends a wait whose limit passed or whose session ended.
    pub(super) fn give_up(&mut self, op: Op, effects: &mut Vec<Effect>) {
        let live = self.sessions[&self.waits[&op].session].is_live();
        self.dismiss(op, if live { Reason::Timeout } else { Reason::SessionEnded }, effects);
    }

    /// Ends a wait because its client says so.
    pub(super) fn cancel(&mut self, op: Op, effects: &mut Vec<Effect>) {
        self.dismiss(op, Reason::Cancelled, effects);
    }

    pub(super) fn wait_part(&self, op: Op, wait: &Wait) -> WaitPart {
        WaitPart {
            op,
            client: self.sessions[&wait.session].client,
            id: wait.id,
            owner: wait.owner.clone(),
            terms: wait.terms.clone(),
            asks: wait.asks.clone(),
            since: wait.since,
            deadline: wait.deadline,
        }
    }

    pub(super) fn add_wait(&mut self, part: WaitPart) -> Result<(), String> {
        let op = part.op;
        let fault = |text: &str| format!("wait {op}: {text}");
        if op == 0 || op > self.head.op || self.waits.last_key_value().is_some_and(|(last, _)| *last >= op) {
            return Err(fault("it is out of order"));
        }
        if part.asks.is_empty() || !part.asks.is_sorted_by(|a, b| a.key < b.key) {
            return Err(fault("its locks are none, out of order or twice the same"));
        }
        let session = *self.clients.get(&part.client).ok_or_else(|| fault("it has no session"))?;
        self.tie_wait(session, part.id, part.owner.clone(), op).map_err(|text| fault(&text))?;
        for ask in &part.asks {
            self.locks.entry(ask.key.clone()).or_default().line.push_back(op);
        }
        if let Some(deadline) = part.deadline {
            self.due.insert((deadline, Due::Wait(op)));
        }
        let wait = Wait {
            session,
            id: part.id,
            owner: part.owner,
            terms: part.terms,
            asks: part.asks,
            since: part.since,
            deadline: part.deadline,
        };
        self.waits.insert(op, wait);
        Ok(())
    }
}
