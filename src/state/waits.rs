//! Waits: requests for a grant that stand in line.

use super::blocked::cancelled;
use super::lines::is_slot;
use super::lock::Lock;
use super::locks::Wanted;
use super::{Due, State};
use crate::asks::Asks;
use crate::command::{Ask, Mode, Terms};
use crate::identity::{Op, SessionId, Token};
use crate::kind::Refusal;
use crate::name::Name;
use crate::outcome::{Blocked, Effect, Outcome, Reason};
use crate::state::parts::{UnservedPart, WaitPart};
use crate::time::Time;
use arcstr::ArcStr;
use std::collections::BTreeMap;

/// A request for a grant that stands in line.
#[derive(Debug)]
pub struct Wait {
    /// Its session.
    pub session: SessionId,
    /// The id of the request.
    pub id: u64,
    /// The owner inside the session.
    pub owner: ArcStr,
    /// What the grant is to be like.
    pub terms: Terms,
    /// The locks it asks for, sorted by name.
    pub asks: Asks,
    /// When it was put in line.
    pub since: Time,
    /// When it gives up, if ever.
    pub deadline: Option<Time>,
    /// The grant that it converts, if it is a conversion: then it asks only for the locks whose mode changes.
    pub converts: Option<Token>,
    /// In how many of its lines it is not open yet. Not counted for a conversion.
    pub(super) closed: usize,
}

impl Wait {
    /// How it asks for a lock, which is one of its own.
    pub fn mode_of(&self, key: &Name) -> Mode {
        mode_of(&self.asks, key)
    }
}

/// How these ask for a lock, which is one of them.
pub(super) fn mode_of(asks: &[Ask], key: &Name) -> Mode {
    let place = asks.binary_search_by(|ask| ask.key.cmp(key)).expect("a lock is asked for in some mode");
    asks[place].mode
}

impl State {
    /// Waits that live, after the one that began with that command, in the order of their arrival.
    pub fn live_waits(&self, after: Op) -> impl Iterator<Item = (Op, &Wait)> {
        let waits = self.waits.range(after.saturating_add(1)..).map(|(op, wait)| (*op, wait));
        waits.filter(move |(_, wait)| self.wait_lives(wait))
    }

    pub(super) fn wait_lives(&self, wait: &Wait) -> bool {
        wait.deadline.is_none_or(|deadline| self.head.at < deadline)
            && self.sessions[&wait.session].is_live()
            // A conversion ends with its grant.
            && wait.converts.is_none_or(|token| self.live_grant(token).is_some())
    }

    pub(super) fn stand_in_line(
        &mut self,
        wanted: &Wanted<'_>,
        deadline: Option<Time>,
        converts: Option<Token>,
    ) -> Result<Outcome, Refusal> {
        let limits = &self.head.limits;
        if self.waits.len() as u64 >= limits.waits {
            let text =
                format!("the server has its {} waits; try again later, or raise --max-waits", limits.waits);
            return Err(Refusal::limit("waits", limits.waits, text));
        }
        let locks = wanted.asks.iter().filter_map(|ask| self.locks.get(&ask.key));
        let longest = locks.map(Lock::queue_len).max();
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
        let (op, owner) = (self.head.op, ArcStr::from(wanted.owner));
        session.begin_wait(wanted.id, wanted.fingerprint, owner.clone(), op);
        if let Some(deadline) = deadline {
            self.due.insert((deadline, Due::Wait(op)));
        }
        let mut wait = Wait {
            session: wanted.session,
            id: wanted.id,
            owner,
            terms: wanted.terms.clone(),
            asks: wanted.asks.into(),
            since: self.head.at,
            deadline,
            converts,
            closed: 0,
        };
        match converts {
            None => {
                let closed = wanted.asks.iter().filter(|ask| !self.join(&ask.key, ask.mode, op)).count();
                assert!(closed > 0, "a request that could be granted would stand in line");
                wait.closed = closed;
                self.waits.insert(op, wait);
            }
            Some(token) => {
                self.waits.insert(op, wait);
                self.join_converting(token, op);
            }
        }
        self.note_wait(wanted.asks);
        Ok(Outcome::Waiting(Box::new(self.why_waiting(op, self.head.at).expect("it waits"))))
    }

    /// Takes a wait out of every line.
    pub(super) fn leave_line(&mut self, op: Op) -> Wait {
        let wait = self.waits.remove(&op).expect("a wait leaves its line once");
        if let Some(deadline) = wait.deadline {
            self.due.remove(&(deadline, Due::Wait(op)));
        }
        match wait.converts {
            None => {
                for ask in &wait.asks {
                    self.leave(&ask.key, ask.mode, op);
                }
            }
            Some(token) => self.leave_converting(token, &wait.asks, op),
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

    /// Takes wait `op` out of its line and answers it; whoever it stood in the way of is served before the command ends.
    pub(super) fn dismiss(&mut self, op: Op, reason: Reason, effects: &mut Vec<Effect>) {
        let blocked = self.why_waiting(op, self.head.at).expect("it waits");
        let wait = self.leave_line(op);
        let outcome = match reason {
            Reason::Cancelled => cancelled(),
            _ => Outcome::NotGranted(Box::new(Blocked { reason, estimate_ms: None, ..blocked })),
        };
        self.settle(&wait, outcome, effects);
    }

    /// Makes a wait that is open in all its lines a grant.
    pub(super) fn grant_wait(&mut self, op: Op, effects: &mut Vec<Effect>) {
        let wait = self.waits.remove(&op).expect("a wait is granted once");
        if let Some(deadline) = wait.deadline {
            self.due.remove(&(deadline, Due::Wait(op)));
        }
        let (token, outcome) = self.new_grant(wait.session, &wait.owner, &wait.terms, &wait.asks);
        for ask in &wait.asks {
            self.step_in(&ask.key, ask.mode, op, token);
        }
        self.settle(&wait, outcome, effects);
    }

    /// Ends a wait whose limit passed or whose session ended.
    pub(super) fn give_up(&mut self, op: Op, effects: &mut Vec<Effect>) {
        let wait = &self.waits[&op];
        let reason = if !self.sessions[&wait.session].is_live() {
            Reason::SessionEnded
        } else if wait.deadline.is_some_and(|deadline| deadline <= self.head.at) {
            Reason::Timeout
        } else {
            Reason::GrantEnded
        };
        self.dismiss(op, reason, effects);
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
            converts: wait.converts,
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
            let lock = self.locks.entry(ask.key.clone()).or_default().contended();
            lock.slot_waits += u32::from(is_slot(ask.mode));
            match part.converts {
                None => lock.line.push_back(op),
                Some(_) => lock.converting.push(op),
            }
        }
        if let Some(token) = part.converts {
            let grant = self.grants.get_mut(token).filter(|grant| grant.session == session);
            let grant = grant.ok_or_else(|| fault("it converts a grant that is not its session's"))?;
            if grant.rare_mut().conversion.replace(op).is_some() {
                return Err(fault("its grant is converted twice"));
            }
            if !part.asks.iter().all(|ask| grant.asks.iter().any(|held| held.key == ask.key)) {
                return Err(fault("it converts locks that its grant does not have"));
            }
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
            converts: part.converts,
            closed: 0,
        };
        self.waits.insert(op, wait);
        Ok(())
    }

    /// Counts what is open where, once all holders, waits and lock-delays are there.
    pub(super) fn check_lines(&mut self, unserved: Vec<UnservedPart>) -> Result<(), String> {
        for wait in self.waits.values_mut().filter(|wait| wait.converts.is_none()) {
            wait.closed = wait.asks.len();
        }
        let open: BTreeMap<&Name, u64> = unserved.iter().map(|part| (&part.key, part.open)).collect();
        for (key, lock) in &mut self.locks {
            if lock.is_plain() {
                continue;
            }
            let lock = lock.contended();
            lock.taken = lock.held;
            for op in &lock.converting {
                lock.taken.add(self.waits[op].mode_of(key));
            }
            let most = open.get(key).map_or(usize::MAX, |open| *open as usize);
            while let Some(op) = lock.line.get(lock.open).filter(|_| lock.open < most) {
                let wait = self.waits.get_mut(op).expect("who stands in line waits");
                if lock.closed_until.is_some() || !lock.taken.admits(wait.mode_of(key)) {
                    break;
                }
                lock.taken.add(wait.mode_of(key));
                lock.open += 1;
                wait.closed -= 1;
            }
        }
        if let Some((op, _)) = self.waits.iter().find(|(_, wait)| wait.converts.is_none() && wait.closed == 0)
        {
            return Err(format!("wait {op}: nothing stands in its way"));
        }
        self.unserved = unserved.into_iter().map(|part| part.key).collect();
        Ok(())
    }

    /// The lines that are not served to their end.
    pub(super) fn unserved_parts(&self) -> Vec<UnservedPart> {
        let open = |key: &Name| self.locks.get(key).map_or(0, |lock| lock.open() as u64);
        self.unserved.iter().map(|key| UnservedPart { key: key.clone(), open: open(key) }).collect()
    }
}
