//! Hand-over: how a grant goes to another session without a moment in which nobody holds its locks.
//!
//! The holder offers, the other takes; or the other knows the holder's session id, and needs no offer. What is taken is a
//! new grant under a new token, so that the old holder is fenced at once. The locks never come free in between: waits stay
//! where they stand, and no lock-delay begins. What bounds the tenure as a whole (the longest hold, an asking) goes along.

use super::{State, not_holder};
use crate::identity::{SessionId, Token};
use crate::kind::{Detail, Kind, Refusal};
use crate::outcome::{Effect, LossReason, Offer, Outcome};
use arcstr::ArcStr;

impl State {
    /// Offers a grant to a session, or takes the offer back.
    pub(super) fn hand_over(
        &mut self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Token,
        client: Option<u64>,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        self.grant_of(session, holder, token)?;
        let to = match client {
            None => None,
            Some(client) => Some(self.live_client(client)?),
        };
        self.forget_offer(token);
        if let (Some(client), Some(to)) = (client, to) {
            let grant = self.grants.get_mut(token).expect("it was found");
            grant.rare_mut().offered = Some(Offer { client, op: self.head.op });
            self.note_offer(token);
            effects.push(Effect::Offered { session: to, token });
        }
        Ok(Outcome::Offered { client })
    }

    /// Makes a grant the caller's, if it was offered to it or it knows the session that holds it.
    pub(super) fn take_over(
        &mut self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Token,
        owner: &str,
        label: &str,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        let known = holder.is_some() && self.grant_of(session, holder, token).is_ok();
        if !known {
            self.is_offered_to(session, token)?;
        }
        self.refuse_second_wait(session, owner, effects)?;
        let tokens = self.held_of(session, owner, &self.grants[token].asks);
        if !tokens.is_empty() {
            let text =
                "this owner holds some of these locks already; release them first, or name another `owner`";
            return Err(Refusal::new(Kind::AlreadyHeld, text).with(Detail::Held { tokens }));
        }
        self.sweep_locks_of(token, effects);
        if let Some(op) = self.grants[token].conversion() {
            self.grant_ended(op, effects);
        }
        self.lose_grant(token, LossReason::TakenOver, ArcStr::new(), effects);
        self.record_end(token, Some(LossReason::TakenOver.into()));
        let clock = self.clock;
        let token = self.retoken(token, |grant| {
            grant.session = session;
            grant.owner = owner.into();
            let rare = grant.rare_mut();
            rare.terms.label = label.into();
            rare.deadline = rare.terms.lease_ms.map(|ms| clock.after_ms(ms));
        });
        self.record_grant(token);
        let grant = &self.grants[token];
        if grant.asked().is_some() {
            effects.push(Effect::Asked { session, token });
        }
        let mut outcome = self.granted(token, grant, false);
        if let Outcome::Granted { atomic, .. } = &mut outcome {
            *atomic = grant.terms().atomic;
        }
        Ok(outcome)
    }

    /// Whether the caller may take the grant over without knowing the session that holds it.
    fn is_offered_to(&self, session: SessionId, token: Token) -> Result<(), Refusal> {
        let client = self.sessions[&session].client;
        match self.live_grant(token).and_then(super::Grant::offered) {
            Some(offer) if offer.client == client => Ok(()),
            Some(_) | None => Err(not_holder(format!(
                "token {token} is not that of a live grant that is offered to client {client}: let its holder hand it over, \
                 or name the session that holds it as `holder`"
            ))),
        }
    }

    /// The live session with that public number.
    fn live_client(&self, client: u64) -> Result<SessionId, Refusal> {
        let live = |id: &SessionId| self.sessions[id].is_live();
        self.session_of(client).filter(live).ok_or_else(|| {
            let text = format!("there is no live session of client {client}: nothing is offered to it");
            Refusal::new(Kind::NotFound, text)
        })
    }

    /// Puts the offer of a grant into the index of the session that may take it, while the server knows that one.
    pub(super) fn note_offer(&mut self, token: Token) {
        let Some(Offer { client, op }) = self.grants[token].offered() else { return };
        if let Some(session) = self.session_of(client) {
            let session = self.sessions.get_mut(&session).expect("a numbered session is known");
            session.offers.insert((op, token));
        }
    }

    /// Takes the offer of a grant back.
    pub(super) fn forget_offer(&mut self, token: Token) {
        let grant = self.grants.get_mut(token).expect("an offer is that of a grant");
        let offered = grant.rare_if_any().and_then(|rare| rare.offered.take());
        let Some(Offer { client, op }) = offered else { return };
        // It may be an offer to a session that has ended, and was forgotten with what it was offered.
        if let Some(session) = self.session_of(client) {
            let session = self.sessions.get_mut(&session).expect("a numbered session is known");
            session.offers.remove(&(op, token));
        }
    }
}
