//! Grants: the tenures of locks, their ends, and what they guard.

use super::locks::{Wanted, own_terms, shared_text};
use super::waits::mode_of;
use super::{Due, GrantEnd, Section, State, not_holder};
use crate::command::{Ask, Mode, Terms};
use crate::identity::{Op, SessionId, Token};
use crate::kind::Refusal;
use crate::name::Name;
use crate::outcome::{Effect, Holder, Loss, LossReason, Outcome};
use crate::state::parts::GrantPart;
use crate::time::Time;
use std::ops::Bound;
use std::sync::Arc;

/// One tenure of a lock, or of several at once, by an owner.
#[derive(Debug)]
pub struct Grant {
    /// Its session.
    pub session: SessionId,
    /// The owner inside it; empty is the session itself.
    pub owner: Arc<str>,
    /// What it is like.
    pub terms: Terms,
    /// Its locks, sorted by name.
    pub asks: Vec<Ask>,
    /// The command that made it.
    pub op: Op,
    /// When it was made.
    pub since: Time,
    /// When its own lease runs out.
    pub deadline: Option<Time>,
    /// The wait that converts it, if one does.
    pub(super) conversion: Option<Op>,
    /// What is staged under it, if anything is.
    pub(super) section: Option<Box<Section>>,
}

impl Grant {
    /// How it holds a lock, which is one of its own.
    pub fn mode_of(&self, key: &Name) -> Mode {
        mode_of(&self.asks, key)
    }
}

impl State {
    /// The grant with that token, if it lives at `now`.
    pub fn live_grant(&self, token: Token, now: Time) -> Option<&Grant> {
        self.grants.get(&token).filter(|grant| self.grant_lives(grant, now))
    }

    /// Grants that live at `now`, after that token, in the order of their tokens.
    pub fn live_grants(&self, after: Token, now: Time) -> impl Iterator<Item = (Token, &Grant)> {
        self.grants
            .range((Bound::Excluded(after), Bound::Unbounded))
            .map(|(token, grant)| (*token, grant))
            .filter(move |(_, grant)| self.grant_lives(grant, now))
    }

    /// How many grants of that session live at `now`.
    pub fn held_by(&self, session: SessionId, now: Time) -> u64 {
        let Some(session) = self.sessions.get(&session) else { return 0 };
        session.grants.iter().filter(|token| self.live_grant(**token, now).is_some()).count() as u64
    }

    /// A grant as it is told to others, as a holder of one of its locks.
    pub fn holder(&self, token: Token, grant: &Grant, key: &Name, now: Time) -> Holder {
        let session = &self.sessions[&grant.session];
        Holder {
            client: session.client,
            name: session.name.clone(),
            owner: grant.owner.clone(),
            label: grant.terms.label.clone(),
            mode: grant.mode_of(key),
            token,
            held_ms: now.ms_since(grant.since),
            lease_left_ms: grant.deadline.map(|deadline| deadline.ms_until(now)),
        }
    }

    pub(super) fn grant_lives(&self, grant: &Grant, now: Time) -> bool {
        grant.deadline.is_none_or(|deadline| now < deadline) && self.sessions[&grant.session].is_live()
    }

    /// Makes a grant to a newcomer who is open everywhere.
    pub(super) fn grant(&mut self, wanted: &Wanted<'_>) -> Outcome {
        let (token, outcome) = self.new_grant(wanted.session, wanted.owner, wanted.terms, wanted.asks);
        for ask in wanted.asks {
            self.hold(&ask.key, ask.mode, token);
            let lock = self.locks.get_mut(&ask.key).expect("it is held");
            lock.taken.add(ask.mode);
        }
        outcome
    }

    /// Makes a grant under the next token. The caller puts its hold on its locks.
    pub(super) fn new_grant(
        &mut self,
        id: SessionId,
        owner: &str,
        terms: &Terms,
        asks: &[Ask],
    ) -> (Token, Outcome) {
        self.head.last_token += 1;
        let (token, op) = (self.head.last_token, self.head.op);
        let deadline = terms.lease_ms.map(|ms| self.head.at.after_ms(ms));
        if let Some(deadline) = deadline {
            self.due.insert((deadline, Due::Lease(token)));
        }
        let session = self.sessions.get_mut(&id).expect("a grant goes to a session that asks");
        assert!(session.is_live(), "a grant would go to an ended session");
        session.grants.insert(token);
        self.grants.insert(
            token,
            Grant {
                session: id,
                owner: shared_text(owner),
                terms: own_terms(terms),
                asks: asks.to_vec(),
                op,
                since: self.head.at,
                deadline,
                conversion: None,
                section: None,
            },
        );
        self.record_grant(token);
        (token, Outcome::Granted { token, asks: asks.to_vec(), op, lease_ms: terms.lease_ms, again: false })
    }

    pub(super) fn end_or_expire(&mut self, token: Token, effects: &mut Vec<Effect>) {
        if self.sessions[&self.grants[&token].session].is_live() {
            self.expire_grant(token, effects);
        } else {
            self.end_grant(token, GrantEnd::SessionExpired, effects);
        }
    }

    /// Ends a grant whose own lease ran out, and remembers the loss for its client.
    pub(super) fn expire_grant(&mut self, token: Token, effects: &mut Vec<Effect>) {
        let grant = &self.grants[&token];
        let id = grant.session;
        let loss = Loss {
            op: self.head.op,
            token,
            keys: grant.asks.iter().map(|ask| ask.key.clone()).collect(),
            reason: LossReason::LeaseExpired,
            note: Arc::default(),
        };
        let session = self.sessions.get_mut(&id).expect("a grant has a session");
        if session.is_live() {
            session.lose(loss.clone());
            effects.push(Effect::Lost { session: id, loss });
        }
        self.end_grant(token, GrantEnd::LeaseExpired, effects);
    }

    /// Ends a grant in any way but a release: its locks stay closed for its lock-delay, and are then handed on.
    pub(super) fn end_grant(&mut self, token: Token, why: GrantEnd, effects: &mut Vec<Effect>) {
        self.record_end(token, Some(why));
        let grant = self.take_grant(token, effects);
        if grant.terms.lock_delay_ms > 0 {
            for ask in &grant.asks {
                self.close(&ask.key, grant.terms.lock_delay_ms);
            }
        }
    }

    /// Takes a grant away. Its locks are handed on before the command ends; what is still staged leaves no trace.
    pub(super) fn take_grant(&mut self, token: Token, effects: &mut Vec<Effect>) -> Grant {
        if let Some(op) = self.grants[&token].conversion {
            self.grant_ended(op, effects);
        }
        self.drop_section(token);
        let grant = self.grants.remove(&token).expect("a grant ends once");
        self.note_tenure(&grant);
        if let Some(deadline) = grant.deadline {
            self.due.remove(&(deadline, Due::Lease(token)));
        }
        self.sessions.get_mut(&grant.session).expect("a grant has a session").grants.remove(&token);
        for ask in &grant.asks {
            self.let_go(&ask.key, ask.mode, token);
        }
        grant
    }

    /// Gives a grant the next token: it goes on as another tenure, of what it has now. The locks' holders follow.
    pub(super) fn retoken(&mut self, old: Token) -> Token {
        self.head.last_token += 1;
        let token = self.head.last_token;
        let mut grant = self.grants.remove(&old).expect("a grant is there to be renumbered");
        self.note_tenure(&grant);
        if let Some(deadline) = grant.deadline {
            self.due.remove(&(deadline, Due::Lease(old)));
            self.due.insert((deadline, Due::Lease(token)));
        }
        let session = self.sessions.get_mut(&grant.session).expect("a grant has a session");
        session.grants.remove(&old);
        session.grants.insert(token);
        for ask in &grant.asks {
            let lock = self.locks.get_mut(&ask.key).expect("a held lock has an entry");
            let place = lock.holders.binary_search(&old).expect("a grant holds each of its locks");
            lock.holders.remove(place);
            lock.holders.push(token);
        }
        (grant.op, grant.since) = (self.head.op, self.head.at);
        self.grants.insert(token, grant);
        token
    }

    pub(super) fn release(
        &mut self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Token,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        self.grant_of(session, holder, token, self.head.at)?;
        let writes = self.commit_section(token, effects)?;
        self.record_end(token, None);
        self.take_grant(token, effects);
        Ok(Outcome::Released { op: self.head.op, writes })
    }

    pub(super) fn abandon(
        &mut self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Token,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        self.grant_of(session, holder, token, self.head.at)?;
        self.end_grant(token, GrantEnd::Abandoned, effects);
        Ok(Outcome::Released { op: self.head.op, writes: 0 })
    }

    pub(super) fn renew_lease(
        &mut self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Token,
        lease_ms: u64,
    ) -> Result<Outcome, Refusal> {
        self.grant_of(session, holder, token, self.head.at)?;
        let deadline = self.head.at.after_ms(lease_ms);
        let grant = self.grants.get_mut(&token).expect("it was found");
        if let Some(old) = grant.deadline.replace(deadline) {
            self.due.remove(&(old, Due::Lease(token)));
        }
        grant.terms.lease_ms = Some(lease_ms);
        self.due.insert((deadline, Due::Lease(token)));
        Ok(Outcome::Renewed { lease_left_ms: lease_ms })
    }

    /// The grant that the caller acts on: live at `now`, and of the session that asks or that it names as `holder`.
    ///
    /// # Errors
    /// `not_holder`.
    pub fn grant_of(
        &self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Token,
        now: Time,
    ) -> Result<&Grant, Refusal> {
        let whose = holder.unwrap_or(session);
        match self.live_grant(token, now).filter(|grant| grant.session == whose) {
            Some(grant) => Ok(grant),
            None => Err(not_holder(format!(
                "token {token} is not that of a live grant of the caller: it was released, it expired, or it belongs to \
                 another session"
            ))),
        }
    }

    pub(super) fn grant_part(&self, token: Token, grant: &Grant) -> GrantPart {
        GrantPart {
            token,
            client: self.sessions[&grant.session].client,
            owner: grant.owner.clone(),
            terms: grant.terms.clone(),
            asks: grant.asks.clone(),
            op: grant.op,
            since: grant.since,
            deadline: grant.deadline,
            section: grant.section.as_ref().map(|section| section.part()),
        }
    }

    pub(super) fn add_grant(&mut self, part: GrantPart) -> Result<(), String> {
        let token = part.token;
        let fault = |text: &str| format!("grant {token}: {text}");
        if token == 0 || token > self.head.last_token {
            return Err(fault("its token was never given"));
        }
        let session = *self.clients.get(&part.client).ok_or_else(|| fault("it has no session"))?;
        if part.asks.is_empty() || !part.asks.is_sorted_by(|a, b| a.key < b.key) {
            return Err(fault("its locks are none, out of order or twice the same"));
        }
        for ask in &part.asks {
            let lock = self.locks.entry(ask.key.clone()).or_default();
            if !lock.held.admits(ask.mode) {
                return Err(fault(&format!("lock {:?} has another holder who excludes it", ask.key)));
            }
            lock.held.add(ask.mode);
            lock.holders.push(token);
        }
        if let Some(deadline) = part.deadline {
            self.due.insert((deadline, Due::Lease(token)));
        }
        self.sessions.get_mut(&session).expect("it has a number").grants.insert(token);
        let mut grant = Grant {
            session,
            owner: part.owner,
            terms: part.terms,
            asks: part.asks,
            op: part.op,
            since: part.since,
            deadline: part.deadline,
            conversion: None,
            section: None,
        };
        if let Some(section) = part.section {
            self.add_section(section, &mut grant).map_err(|text| fault(&text))?;
        }
        match self.grants.insert(token, grant) {
            None => Ok(()),
            Some(_) => Err(fault("it stands twice")),
        }
    }
}
