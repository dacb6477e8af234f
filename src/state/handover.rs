//! Hand-over: how a grant goes to another session without a moment in which nobody holds its locks.
//!
//! The holder offers, the other takes; or the other knows the holder's session id, and needs no offer. What is taken is a
//! new grant under a new token, so that the old holder is fenced at once. The locks never come free in between: waits stay
//! where they stand, and no lock-delay begins. What bounds the tenure as a whole (the longest hold, an asking) goes along.

use super::grants::Grant;
use super::locks::shared_text;
use super::sessions::waits_already;
use super::{Standing, State, not_holder};
use crate::command::Terms;
use crate::identity::{SessionId, Token};
use crate::kind::{Detail, Kind, Refusal};
use crate::outcome::{Asked, Effect, LossReason, Offer, Outcome};
use std::sync::Arc;

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
        self.grant_of(session, holder, token, self.head.at)?;
        let to = match client {
            None => None,
            Some(client) => Some(self.live_client(client)?),
        };
        self.forget_offer(token);
        if let (Some(client), Some(to)) = (client, to) {
            let grant = self.grants.get_mut(&token).expect("it was found");
            grant.offered = Some(Offer { client, op: self.head.op });
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
        match holder {
            Some(_) => drop(self.grant_of(session, holder, token, self.head.at)?),
            None => self.is_offered_to(session, token)?,
        }
        self.waits_for_nothing(session, owner, effects)?;
        self.holds_none_of(session, owner, token)?;
        self.lose_grant(token, LossReason::TakenOver, Arc::default(), effects);
        let asked = self.grants[&token].asked.clone();
        let old = self.remove_grant(token);
        let at = self.head.at;
        let new = Grant {
            session,
            owner: shared_text(owner),
            terms: Terms { label: shared_text(label), ..old.terms },
            op: self.head.op,
            since: at,
            deadline: old.terms.lease_ms.map(|ms| at.after_ms(ms)),
            asked: asked.map(|asked| Asked { op: self.head.op, ..asked }),
            offered: None,
            ..old
        };
        Ok(self.enter_grant(new, effects))
    }

    /// Enters a grant in the place of one that was just taken out, under a token of its own.
    fn enter_grant(&mut self, grant: Grant, effects: &mut Vec<Effect>) -> Outcome {
        self.head.last_token += 1;
        let token = self.head.last_token;
        for ask in &grant.asks {
            let lock = self.locks.get_mut(&ask.key).expect("its lock was held a moment ago");
            lock.holders.push(token);
        }
        let (session, asked) = (grant.session, grant.asked.is_some());
        self.sessions.get_mut(&session).expect("it asks").grants.insert(token);
        self.due.extend(grant.dues(token));
        let outcome = self.granted(token, &grant, false);
        self.grants.insert(token, grant);
        self.note_asked(token);
        if asked {
            effects.push(Effect::Asked { session, token });
        }
        outcome
    }

    /// Whether the caller may take the grant over without knowing the session that holds it.
    fn is_offered_to(&self, session: SessionId, token: Token) -> Result<(), Refusal> {
        let client = self.sessions[&session].client;
        match self.live_grant(token, self.head.at).and_then(|grant| grant.offered) {
            Some(offer) if offer.client == client => Ok(()),
            Some(_) | None => Err(not_holder(format!(
                "token {token} is not that of a live grant that is offered to client {client}: let its holder hand it over, \
                 or name the session that holds it as `holder`"
            ))),
        }
    }

    /// Whether an owner has no live wait; one that is dead is cleaned up.
    fn waits_for_nothing(
        &mut self,
        session: SessionId,
        owner: &str,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let Some(&wait) = self.sessions[&session].waiting.get(owner) else { return Ok(()) };
        let op = match self.sessions[&session].wait_standing(wait) {
            Standing::InLine(op) => op,
            standing => panic!("a waiting owner has a wait that is {standing:?}"),
        };
        if self.wait_lives(&self.waits[&op], self.head.at) {
            return Err(waits_already(wait));
        }
        self.give_up(op, effects);
        Ok(())
    }

    /// Whether an owner holds none of the locks of a grant.
    fn holds_none_of(&self, session: SessionId, owner: &str, token: Token) -> Result<(), Refusal> {
        let mut tokens = Vec::new();
        for ask in &self.grants[&token].asks {
            for other in &self.locks[&ask.key].holders {
                let Some(grant) = self.live_grant(*other, self.head.at) else { continue };
                if grant.session == session && *grant.owner == *owner && !tokens.contains(other) {
                    tokens.push(*other);
                }
            }
        }
        if tokens.is_empty() {
            return Ok(());
        }
        let text =
            "this owner holds some of these locks already; release them first, or name another `owner`";
        Err(Refusal::new(Kind::AlreadyHeld, text).with(Detail::Held { tokens }))
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
        let Some(Offer { client, op }) = self.grants[&token].offered else { return };
        if let Some(session) = self.session_of(client) {
            let session = self.sessions.get_mut(&session).expect("a numbered session is known");
            session.offers.insert((op, token));
        }
    }

    /// Takes the offer of a grant back.
    pub(super) fn forget_offer(&mut self, token: Token) {
        let grant = self.grants.get_mut(&token).expect("an offer is that of a grant");
        let Some(Offer { client, op }) = grant.offered.take() else { return };
        // It may be an offer to a session that has ended, and was forgotten with what it was offered.
        if let Some(session) = self.session_of(client) {
            let session = self.sessions.get_mut(&session).expect("a numbered session is known");
            session.offers.remove(&(op, token));
        }
    }
}
