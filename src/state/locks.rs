//! Locks: grants, waits, and the lines they stand in.

use super::sessions::waits_already;
use super::{Due, State, not_holder};
use crate::command::{Ask, Patience};
use crate::identity::{Op, SessionId, Token};
use crate::kind::{Detail, Kind, Refusal};
use crate::limits::HOLDERS_SHOWN;
use crate::name::Name;
use crate::outcome::{Blocked, Effect, Holder, Loss, LossReason, Outcome, Reason};
use crate::state::parts::{GrantPart, WaitPart};
use crate::time::Time;
use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

/// One tenure of a lock, or of several at once, by an owner.
#[derive(Debug)]
pub struct Grant {
    /// Its session.
    pub session: SessionId,
    /// The owner inside it; empty is the session itself.
    pub owner: Arc<str>,
    /// A note for people.
    pub label: Arc<str>,
    /// Its locks, sorted by name.
    pub asks: Vec<Ask>,
    /// The command that made it.
    pub op: Op,
    /// When it was made.
    pub since: Time,
    /// Its own lease in milliseconds, if it has one.
    pub lease_ms: Option<u64>,
    /// When that lease runs out.
    pub deadline: Option<Time>,
}

/// A request for a grant that stands in line.
#[derive(Debug)]
pub struct Wait {
    /// Its session.
    pub session: SessionId,
    /// The id of the request.
    pub id: u64,
    /// The owner inside the session.
    pub owner: Arc<str>,
    /// A note for people.
    pub label: Arc<str>,
    /// The locks it asks for, sorted by name.
    pub asks: Vec<Ask>,
    /// When it was put in line.
    pub since: Time,
    /// When it gives up, if ever.
    pub deadline: Option<Time>,
    /// The lease that the grant is to have, in milliseconds.
    pub lease_ms: Option<u64>,
}

/// A lock that is held or waited for.
#[derive(Debug, Default)]
pub(super) struct Lock {
    /// Its holders, in the order of their tokens.
    holders: Vec<Token>,
    /// Its line: waits in the order of their arrival.
    line: VecDeque<Op>,
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
    pub lease_ms: Option<u64>,
    pub owner: &'a str,
    pub label: &'a str,
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

    /// A grant as it is told to others.
    pub fn holder(&self, token: Token, grant: &Grant, now: Time) -> Holder {
        let session = &self.sessions[&grant.session];
        Holder {
            client: session.client,
            name: session.name.clone(),
            owner: grant.owner.clone(),
            label: grant.label.clone(),
            mode: grant.asks[0].mode,
            token,
            held_ms: now.ms_since(grant.since),
            lease_left_ms: grant.deadline.map(|deadline| deadline.ms_until(now)),
        }
    }

    fn grant_lives(&self, grant: &Grant, now: Time) -> bool {
        grant.deadline.is_none_or(|deadline| now < deadline) && self.sessions[&grant.session].is_live()
    }

    fn wait_lives(&self, wait: &Wait, now: Time) -> bool {
        wait.deadline.is_none_or(|deadline| now < deadline) && self.sessions[&wait.session].is_live()
    }

    /// Why a request for `asks` is not granted at `now`: as wait `op` in its place, or as a newcomer at the end.
    fn blocked(&self, asks: &[Ask], op: Option<Op>, now: Time) -> Blocked {
        let locks = || asks.iter().filter_map(|ask| self.locks.get(&ask.key));
        let (holders, holders_total) = self.holders(locks(), now);
        let place = |lock: &Lock| match op.map(|op| lock.line.binary_search(&op)) {
            Some(Ok(place)) => place + 1,
            Some(Err(_)) | None => lock.line.len() + 1,
        };
        let position = locks().map(place).max().unwrap_or(1) as u64;
        let reason = if holders_total > 0 { Reason::Held } else { Reason::Queued };
        Blocked { reason, position, holders, holders_total }
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
                let grant = &self.grants[&token];
                Ok(Some(Outcome::Granted {
                    token,
                    asks: grant.asks.clone(),
                    op: grant.op,
                    lease_ms: grant.lease_ms,
                    again: true,
                }))
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

    fn grant(&mut self, wanted: &Wanted<'_>) -> Outcome {
        self.head.last_token += 1;
        let token = self.head.last_token;
        let deadline = wanted.lease_ms.map(|ms| self.head.at.after_ms(ms));
        if let Some(deadline) = deadline {
            self.due.insert((deadline, Due::Lease(token)));
        }
        for ask in wanted.asks {
            let lock = self.locks.entry(ask.key.clone()).or_default();
            assert!(lock.holders.is_empty(), "lock {:?} would have two exclusive holders", ask.key);
            lock.holders.reserve_exact(1);
            lock.holders.push(token);
        }
        let session = self.sessions.get_mut(&wanted.session).expect("a grant goes to a session that asks");
        assert!(session.is_live(), "a grant would go to an ended session");
        session.grants.insert(token);
        let op = self.head.op;
        self.grants.insert(
            token,
            Grant {
                session: wanted.session,
                owner: shared_text(wanted.owner),
                label: shared_text(wanted.label),
                asks: wanted.asks.to_vec(),
                op,
                since: self.head.at,
                lease_ms: wanted.lease_ms,
                deadline,
            },
        );
        Outcome::Granted { token, asks: wanted.asks.to_vec(), op, lease_ms: wanted.lease_ms, again: false }
    }

    fn stand_in_line(&mut self, wanted: &Wanted<'_>, deadline: Option<Time>) -> Result<Outcome, Refusal> {
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
                label: shared_text(wanted.label),
                asks: wanted.asks.to_vec(),
                since: self.head.at,
                deadline,
                lease_ms: wanted.lease_ms,
            },
        );
        Ok(Outcome::Waiting(Box::new(self.blocked(wanted.asks, Some(op), self.head.at))))
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
    fn serve(&mut self, key: &str, effects: &mut Vec<Effect>) {
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
                lease_ms: wait.lease_ms,
                owner: &wait.owner,
                label: &wait.label,
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

    /// Takes a wait out of every line.
    fn leave_line(&mut self, op: Op) -> Wait {
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
    fn settle(&mut self, wait: &Wait, outcome: Outcome, effects: &mut Vec<Effect>) {
        self.note(&outcome);
        let session = self.sessions.get_mut(&wait.session).expect("a wait has a session");
        session.end_wait(wait.id, &wait.owner, outcome);
        effects.push(Effect::Settled { session: wait.session, id: wait.id });
    }

    /// Takes wait `op` out of its line, answers it, and serves whoever it stood in the way of.
    fn dismiss(&mut self, op: Op, reason: Reason, effects: &mut Vec<Effect>) {
        let blocked = self.blocked(&self.waits[&op].asks, Some(op), self.head.at);
        let wait = self.leave_line(op);
        let outcome = match reason {
            Reason::Cancelled => cancelled(),
            Reason::Held | Reason::Queued | Reason::Timeout | Reason::SessionEnded => {
                Outcome::NotGranted(Box::new(Blocked { reason, ..blocked }))
            }
        };
        self.settle(&wait, outcome, effects);
        for ask in &wait.asks {
            self.serve_if_free(&ask.key, effects);
        }
    }

    /// Serves a line unless somebody holds the lock; keeps the depth of the stack bounded, since serving dismisses the
    /// dead in a loop and each dismissal comes back here with the lock as the loop will find it.
    fn serve_if_free(&mut self, key: &str, effects: &mut Vec<Effect>) {
        let Some(lock) = self.locks.get(key) else { return };
        match (lock.holders.is_empty(), lock.line.front()) {
            (true, None) => {
                self.locks.remove(key);
            }
            (true, Some(op)) if self.wait_lives(&self.waits[op], self.head.at) => self.serve(key, effects),
            (true, Some(_)) | (false, _) => {}
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

    fn end_or_expire(&mut self, token: Token, effects: &mut Vec<Effect>) {
        if self.sessions[&self.grants[&token].session].is_live() {
            self.expire_grant(token, effects);
        } else {
            self.end_grant(token, effects);
        }
    }

    /// Ends a grant whose own lease ran out, and remembers the loss for its client.
    pub(super) fn expire_grant(&mut self, token: Token, effects: &mut Vec<Effect>) {
        let grant = &self.grants[&token];
        let loss = Loss {
            op: self.head.op,
            token,
            keys: grant.asks.iter().map(|ask| ask.key.clone()).collect(),
            reason: LossReason::LeaseExpired,
        };
        let id = grant.session;
        let session = self.sessions.get_mut(&id).expect("a grant has a session");
        if session.is_live() {
            session.lose(loss.clone());
            effects.push(Effect::Lost { session: id, loss });
        }
        self.end_grant(token, effects);
    }

    /// Ends a grant and hands its locks to whoever is next.
    pub(super) fn end_grant(&mut self, token: Token, effects: &mut Vec<Effect>) {
        let grant = self.grants.remove(&token).expect("a grant ends once");
        if let Some(deadline) = grant.deadline {
            self.due.remove(&(deadline, Due::Lease(token)));
        }
        self.sessions.get_mut(&grant.session).expect("a grant has a session").grants.remove(&token);
        for ask in &grant.asks {
            let lock = self.locks.get_mut(&ask.key).expect("a held lock has an entry");
            lock.holders.retain(|holder| *holder != token);
        }
        for ask in &grant.asks {
            self.serve(&ask.key, effects);
        }
    }

    pub(super) fn release(
        &mut self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Token,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        self.grant_of(session, holder, token, self.head.at)?;
        self.end_grant(token, effects);
        Ok(Outcome::Released { op: self.head.op })
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
        grant.lease_ms = Some(lease_ms);
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

    /// The token of the live grant that holds the lock exclusively.
    fn exclusive_holder(&self, key: &str) -> Option<Token> {
        let lock = self.locks.get(key)?;
        lock.holders.iter().copied().find(|token| self.live_grant(*token, self.head.at).is_some())
    }

    /// Whether the caller may write what the lock guards only under it: it holds it exclusively.
    pub(super) fn holds(
        &self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Token,
        key: &Name,
    ) -> Result<(), Refusal> {
        self.grant_of(session, holder, token, self.head.at)?;
        if self.exclusive_holder(key) == Some(token) {
            return Ok(());
        }
        Err(not_holder(format!("token {token} does not hold lock {key:?}; acquire it exclusively first")))
    }

    /// Whether the caller may write key `key`: it holds the lock of that name, or nobody does.
    pub(super) fn may_write_key(
        &self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Option<Token>,
        key: &Name,
    ) -> Result<(), Refusal> {
        if let Some(token) = token {
            self.grant_of(session, holder, token, self.head.at)?;
        }
        match (self.exclusive_holder(key), token) {
            (None, _) => Ok(()),
            (Some(holder), Some(token)) if holder == token => Ok(()),
            (Some(_), Some(token)) => Err(not_holder(format!(
                "lock {key:?} is held under another token than {token}; only its holder may write the key"
            ))),
            (Some(token), None) => {
                let held_by = self.holder(token, &self.grants[&token], self.head.at);
                Err(Refusal::new(
                    Kind::Guarded,
                    format!(
                        "key {key:?} is guarded: client {} holds its lock; only the holder may write it, with its token",
                        held_by.client
                    ),
                ))
            }
        }
    }

    /// Whether the caller may give a file the name `to`: nobody else holds the lock of that name.
    pub(super) fn may_take_name(
        &self,
        session: SessionId,
        holder: Option<SessionId>,
        to: &Name,
    ) -> Result<(), Refusal> {
        let whose = holder.unwrap_or(session);
        match self.exclusive_holder(to) {
            Some(token) if self.grants[&token].session != whose => {
                Err(Refusal::new(Kind::Guarded, format!("lock {to:?} is held by another session")))
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn grant_part(&self, token: Token, grant: &Grant) -> GrantPart {
        GrantPart {
            token,
            client: self.sessions[&grant.session].client,
            owner: grant.owner.clone(),
            label: grant.label.clone(),
            asks: grant.asks.clone(),
            op: grant.op,
            since: grant.since,
            lease_ms: grant.lease_ms,
            deadline: grant.deadline,
        }
    }

    pub(super) fn wait_part(&self, op: Op, wait: &Wait) -> WaitPart {
        WaitPart {
            op,
            client: self.sessions[&wait.session].client,
            id: wait.id,
            owner: wait.owner.clone(),
            label: wait.label.clone(),
            asks: wait.asks.clone(),
            since: wait.since,
            deadline: wait.deadline,
            lease_ms: wait.lease_ms,
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
            if !lock.holders.is_empty() {
                return Err(fault(&format!("lock {:?} has another exclusive holder", ask.key)));
            }
            lock.holders.push(token);
        }
        if let Some(deadline) = part.deadline {
            self.due.insert((deadline, Due::Lease(token)));
        }
        self.sessions.get_mut(&session).expect("it has a number").grants.insert(token);
        let grant = Grant {
            session,
            owner: part.owner,
            label: part.label,
            asks: part.asks,
            op: part.op,
            since: part.since,
            lease_ms: part.lease_ms,
            deadline: part.deadline,
        };
        match self.grants.insert(token, grant) {
            None => Ok(()),
            Some(_) => Err(fault("it stands twice")),
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
            label: part.label,
            asks: part.asks,
            since: part.since,
            deadline: part.deadline,
            lease_ms: part.lease_ms,
        };
        self.waits.insert(op, wait);
        Ok(())
    }
}

/// A text to keep. Most owners and labels are empty; those take no memory of their own.
fn shared_text(text: &str) -> Arc<str> {
    if text.is_empty() { Arc::default() } else { text.into() }
}

/// The outcome of a wait that was cancelled.
pub(super) fn cancelled() -> Outcome {
    Outcome::NotGranted(Box::new(Blocked {
        reason: Reason::Cancelled,
        position: 0,
        holders: Vec::new(),
        holders_total: 0,
    }))
}
