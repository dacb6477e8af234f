//! Grants: the tenures of locks, their ends, and what they guard.

use super::locks::Wanted;
use super::waits::mode_of;
use super::{Due, GrantEnd, Section, State, not_holder};
use crate::asks::Asks;
use crate::command::{Ask, Mode, Terms};
use crate::identity::{Op, SessionId, Token};
use crate::kind::Refusal;
use crate::name::Name;
use crate::outcome::{Asked, Effect, Holder, Loss, LossReason, Offer, Outcome};
use crate::state::parts::GrantPart;
use crate::time::Time;
use arcstr::ArcStr;

/// One tenure of a lock, or of several at once, by an owner.
#[derive(Debug)]
pub struct Grant {
    /// Its session.
    pub session: SessionId,
    /// The owner inside it; empty is the session itself.
    pub owner: ArcStr,
    /// Its locks, sorted by name.
    pub asks: Asks,
    /// The command that made it.
    pub op: Op,
    /// When it was made.
    pub since: Time,
    rare: Option<Box<Rare>>,
}

/// What most grants do without. It is kept apart, so that those take less memory.
#[derive(Debug)]
pub(super) struct Rare {
    /// What it is like.
    pub(super) terms: Terms,
    /// When its own lease runs out.
    pub(super) deadline: Option<Time>,
    /// When it ends whatever is renewed.
    pub(super) hold_deadline: Option<Time>,
    /// That its holder is asked to let go, if so.
    pub(super) asked: Option<Asked>,
    /// The session that may take it over, if one may.
    pub(super) offered: Option<Offer>,
    /// The wait that converts it, if one does.
    pub(super) conversion: Option<Op>,
    /// What is staged under it, if anything is.
    pub(super) section: Option<Box<Section>>,
}

impl Rare {
    const NONE: Rare = Rare {
        terms: Terms::PLAIN,
        deadline: None,
        hold_deadline: None,
        asked: None,
        offered: None,
        conversion: None,
        section: None,
    };

    fn is_none(&self) -> bool {
        let Rare { terms, deadline, hold_deadline, asked, offered, conversion, section } = self;
        *terms == Terms::PLAIN
            && deadline.is_none()
            && hold_deadline.is_none()
            && asked.is_none()
            && offered.is_none()
            && conversion.is_none()
            && section.is_none()
    }
}

/// What a grant has that is like most.
static NOTHING_RARE: Rare = Rare::NONE;

impl Grant {
    /// What it is like.
    pub fn terms(&self) -> &Terms {
        &self.rare().terms
    }

    /// When it ends whatever is renewed.
    pub fn hold_deadline(&self) -> Option<Time> {
        self.rare().hold_deadline
    }

    /// That its holder is asked to let go, if so.
    pub fn asked(&self) -> Option<&Asked> {
        self.rare().asked.as_ref()
    }

    /// The session that may take it over, if one may.
    pub fn offered(&self) -> Option<Offer> {
        self.rare().offered
    }

    /// The wait that converts it, if one does.
    pub(super) fn conversion(&self) -> Option<Op> {
        self.rare().conversion
    }

    /// What is staged under it, if anything is.
    pub(super) fn section(&self) -> Option<&Section> {
        self.rare().section.as_deref()
    }

    fn rare(&self) -> &Rare {
        self.rare.as_deref().unwrap_or(&NOTHING_RARE)
    }

    /// What is rare about it, if anything is, to be taken back.
    pub(super) fn rare_if_any(&mut self) -> Option<&mut Rare> {
        self.rare.as_deref_mut()
    }

    /// What is rare about it, to be changed; makes room for it.
    pub(super) fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_with(|| Box::new(Rare::NONE))
    }

    /// How it holds a lock, which is one of its own.
    pub fn mode_of(&self, key: &Name) -> Mode {
        mode_of(&self.asks, key)
    }

    /// What of its lease and its longest tenure is left at `now`, in milliseconds, if it has either.
    pub fn lease_left_ms(&self, now: Time) -> Option<u64> {
        [self.rare().deadline, self.rare().hold_deadline]
            .into_iter()
            .flatten()
            .min()
            .map(|deadline| deadline.ms_until(now))
    }

    /// When it ends by itself, and why: the earliest of its deadlines.
    pub(super) fn end(&self) -> Option<(Time, LossReason)> {
        let Rare { deadline, hold_deadline, asked, .. } = self.rare();
        let broken = asked.as_ref().and_then(|asked| asked.deadline);
        let ends = [
            (*deadline, LossReason::LeaseExpired),
            (*hold_deadline, LossReason::HeldTooLong),
            (broken, LossReason::Broken),
        ];
        // Of several at one moment the first: in the order in which `Due` has them.
        ends.into_iter().filter_map(|(at, reason)| Some((at?, reason))).min_by_key(|(at, _)| *at)
    }

    /// Its deadlines, as they stand among what is due.
    pub(super) fn dues(&self, token: Token) -> impl Iterator<Item = (Time, Due)> + use<> {
        let Rare { deadline, hold_deadline, asked, .. } = self.rare();
        let broken = asked.as_ref().and_then(|asked| asked.deadline);
        let dues =
            [(*deadline, Due::Lease(token)), (*hold_deadline, Due::Hold(token)), (broken, Due::Break(token))];
        dues.into_iter().filter_map(|(at, due)| Some((at?, due)))
    }
}

impl State {
    /// The grant with that token, if it lives.
    pub fn live_grant(&self, token: Token) -> Option<&Grant> {
        self.grants.get(token).filter(|grant| self.grant_lives(grant))
    }

    /// Grants that live, after that token, in the order of their tokens.
    pub fn live_grants(&self, after: Token) -> impl Iterator<Item = (Token, &Grant)> {
        self.grants.after(after).filter(move |(_, grant)| self.grant_lives(grant))
    }

    /// How many grants of that session live.
    pub fn held_by(&self, session: SessionId) -> u64 {
        let Some(session) = self.sessions.get(&session) else { return 0 };
        // As long as nothing is due, whatever is there lives.
        if session.is_live() && self.due.first().is_none_or(|(at, _)| self.head.at < *at) {
            return session.grants.len() as u64;
        }
        session.grants.iter().filter(|token| self.live_grant(*token).is_some()).count() as u64
    }

    /// A grant as it is told to others, as a holder of one of its locks.
    pub fn holder(&self, token: Token, grant: &Grant, key: &Name, now: Time) -> Holder {
        let session = &self.sessions[&grant.session];
        Holder {
            client: session.client,
            name: session.name.clone(),
            owner: grant.owner.clone(),
            label: grant.terms().label.clone(),
            mode: grant.mode_of(key),
            token,
            held_ms: now.ms_since(grant.since),
            lease_left_ms: grant.lease_left_ms(now),
        }
    }

    pub(super) fn grant_lives(&self, grant: &Grant) -> bool {
        grant.end().is_none_or(|(at, _)| self.head.at < at) && self.sessions[&grant.session].is_live()
    }

    /// Makes a grant to a newcomer who is open everywhere.
    pub(super) fn grant(&mut self, wanted: &Wanted<'_>) -> Outcome {
        let (token, outcome) = self.new_grant(wanted.session, wanted.owner, wanted.terms, wanted.asks);
        for ask in wanted.asks {
            self.take(&ask.key, ask.mode, token);
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
        let (token, at, clock) = (self.head.last_token, self.head.at, self.clock);
        let rare = (*terms != Terms::PLAIN).then(|| {
            let hold_ms = terms.max_hold_ms.filter(|_| !crate::bug::planted("tenure_without_bound"));
            Box::new(Rare {
                terms: terms.clone(),
                deadline: terms.lease_ms.map(|ms| clock.after_ms(ms)),
                hold_deadline: hold_ms.map(|ms| clock.after_ms(ms)),
                ..Rare::NONE
            })
        });
        let grant =
            Grant { session: id, owner: owner.into(), asks: asks.into(), op: self.head.op, since: at, rare };
        self.due.extend(grant.dues(token));
        let session = self.sessions.get_mut(&id).expect("a grant goes to a session that asks");
        assert!(session.is_live(), "a grant would go to an ended session");
        session.grants.insert(token);
        let outcome = self.granted(token, &grant, false);
        self.grants.insert(token, grant);
        self.record_grant(token);
        (token, outcome)
    }

    /// The answer to whoever has that grant now.
    pub(super) fn granted(&self, token: Token, grant: &Grant, again: bool) -> Outcome {
        let lease_ms = grant.terms().lease_ms;
        let left = grant.rare().deadline.map(|deadline| deadline.ms_until(self.clock));
        Outcome::Granted {
            token,
            asks: grant.asks.clone(),
            op: grant.op,
            lease_ms,
            again,
            lease_left_ms: left.filter(|_| again || left != lease_ms),
            hold_left_ms: grant.hold_deadline().map(|deadline| deadline.ms_until(self.clock)),
            atomic: false,
        }
    }

    pub(super) fn end_or_expire(&mut self, token: Token, effects: &mut Vec<Effect>) {
        if self.sessions[&self.grants[token].session].is_live() {
            self.expire_grant(token, effects);
        } else {
            self.end_grant(token, GrantEnd::SessionExpired, effects);
        }
    }

    /// Ends a grant one of whose deadlines has passed, and remembers the loss for its client.
    pub(super) fn expire_grant(&mut self, token: Token, effects: &mut Vec<Effect>) {
        let grant = &self.grants[token];
        let (_, reason) = grant.end().expect("a grant that ends by itself has a deadline");
        let note = match (reason, grant.asked()) {
            (LossReason::Broken, Some(asked)) => asked.reason.clone(),
            _ => ArcStr::new(),
        };
        self.lose_grant(token, reason, note, effects);
        self.end_grant(token, reason.into(), effects);
    }

    /// Tells the session of a grant that it loses it, and remembers that for its client. The caller ends the grant.
    pub(super) fn lose_grant(
        &mut self,
        token: Token,
        reason: LossReason,
        note: ArcStr,
        effects: &mut Vec<Effect>,
    ) {
        let grant = &self.grants[token];
        let keys = grant.asks.iter().map(|ask| ask.key.clone()).collect();
        let loss = Loss { op: self.head.op, token, keys, reason, note };
        let id = grant.session;
        let session = self.sessions.get_mut(&id).expect("a grant has a session");
        if session.is_live() {
            session.lose(loss.clone());
            effects.push(Effect::Lost { session: id, loss });
        }
    }

    /// Ends a grant in any way but a release: its locks stay closed for its lock-delay, and are then handed on.
    pub(super) fn end_grant(&mut self, token: Token, why: GrantEnd, effects: &mut Vec<Effect>) {
        self.record_end(token, Some(why));
        if crate::bug::planted("lost_section_applied") {
            let _ = self.commit_section(token, effects);
        }
        let grant = self.take_grant(token, effects);
        if grant.terms().lock_delay_ms > 0 {
            for ask in &grant.asks {
                self.close(&ask.key, grant.terms().lock_delay_ms);
            }
        }
    }

    /// Takes a grant away. Its locks are handed on before the command ends; what is still staged leaves no trace.
    pub(super) fn take_grant(&mut self, token: Token, effects: &mut Vec<Effect>) -> Grant {
        // Most grants have none of all this, and one look tells.
        if let Some(rare) = &self.grants[token].rare {
            if let Some(op) = rare.conversion {
                self.grant_ended(op, effects);
            }
            self.forget_asked(token);
            self.forget_offer(token);
            self.drop_section(token);
            for due in self.grants[token].dues(token) {
                self.due.remove(&due);
            }
        }
        let grant = self.grants.remove(token).expect("a grant ends once");
        self.note_tenure(&grant);
        self.sessions.get_mut(&grant.session).expect("a grant has a session").grants.remove(token);
        for ask in &grant.asks {
            self.let_go(&ask.key, ask.mode, token);
        }
        grant
    }

    /// Gives a grant the next token: it goes on as another tenure, of what `change` makes of it. The locks' holders follow.
    /// An asking goes along; an offer does not, since it named the old token.
    pub(super) fn retoken(&mut self, old: Token, change: impl FnOnce(&mut Grant)) -> Token {
        self.forget_offer(old);
        self.head.last_token += 1;
        let token = self.head.last_token;
        let mut grant = self.grants.remove(old).expect("a grant is there to be renumbered");
        self.note_tenure(&grant);
        for due in grant.dues(old) {
            self.due.remove(&due);
        }
        let session = self.sessions.get_mut(&grant.session).expect("a grant has a session");
        session.grants.remove(old);
        if let Some(asked) = grant.rare_if_any().and_then(|rare| rare.asked.as_mut()) {
            session.asked.remove(&(asked.op, old));
            // Its holder hears of it again, under the new token.
            asked.op = self.head.op;
        }
        for ask in &grant.asks {
            self.locks.get_mut(&ask.key).expect("a held lock has an entry").rename(old, token);
        }
        (grant.op, grant.since) = (self.head.op, self.head.at);
        change(&mut grant);
        self.due.extend(grant.dues(token));
        let session = self.sessions.get_mut(&grant.session).expect("a grant has a session");
        session.grants.insert(token);
        self.grants.insert(token, grant);
        self.note_asked(token);
        token
    }

    pub(super) fn release(
        &mut self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Token,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        self.grant_of(session, holder, token)?;
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
        self.grant_of(session, holder, token)?;
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
        self.grant_of(session, holder, token)?;
        let deadline = self.clock.after_ms(lease_ms);
        let grant = self.grants.get_mut(token).expect("it was found");
        if crate::bug::planted("renewal_forgotten") {
            return Ok(Outcome::Renewed { lease_left_ms: lease_ms });
        }
        let rare = grant.rare_mut();
        if let Some(old) = rare.deadline.replace(deadline) {
            self.due.remove(&(old, Due::Lease(token)));
        }
        rare.terms.lease_ms = Some(lease_ms);
        // A bound on the whole tenure stands where it is.
        let left = grant.lease_left_ms(self.clock).expect("it has a lease now");
        self.due.insert((deadline, Due::Lease(token)));
        Ok(Outcome::Renewed { lease_left_ms: left })
    }

    /// The grant that the caller acts on: live, and of the session that asks or that it names as `holder`.
    ///
    /// # Errors
    /// `not_holder`.
    pub fn grant_of(
        &self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Token,
    ) -> Result<&Grant, Refusal> {
        let whose = holder.unwrap_or(session);
        match self.live_grant(token).filter(|grant| grant.session == whose) {
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
            terms: grant.terms().clone(),
            asks: grant.asks.clone(),
            op: grant.op,
            since: grant.since,
            deadline: grant.rare().deadline,
            hold_deadline: grant.hold_deadline(),
            asked: grant.asked().cloned(),
            offered: grant.offered(),
            section: grant.section().map(Section::part),
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
            if self.locks.get(&ask.key).is_some_and(|lock| !lock.held().admits(ask.mode)) {
                return Err(fault(&format!("lock {:?} has another holder who excludes it", ask.key)));
            }
            self.hold(&ask.key, ask.mode, token);
        }
        let last = |client: u64, op: Op| client > self.head.last_client || op > self.head.op;
        if part.asked.as_ref().is_some_and(|asked| last(asked.client, asked.op))
            || part.offered.is_some_and(|offer| last(offer.client, offer.op))
        {
            return Err(fault("it was asked back by, or offered to, a session that never was"));
        }
        self.sessions.get_mut(&session).expect("it has a number").grants.insert(token);
        let rare = Rare {
            terms: part.terms,
            deadline: part.deadline,
            hold_deadline: part.hold_deadline,
            asked: part.asked,
            offered: part.offered,
            conversion: None,
            section: None,
        };
        let mut grant = Grant {
            session,
            owner: part.owner,
            asks: part.asks,
            op: part.op,
            since: part.since,
            rare: (!rare.is_none()).then(|| Box::new(rare)),
        };
        if let Some(section) = part.section {
            self.add_section(section, &mut grant).map_err(|text| fault(&text))?;
        }
        self.due.extend(grant.dues(token));
        if self.grants.insert(token, grant).is_some() {
            return Err(fault("it stands twice"));
        }
        self.note_asked(token);
        self.note_offer(token);
        Ok(())
    }
}
