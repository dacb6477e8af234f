//! Belief in grants: proofs, losses, and when a grant is handed out.

use super::{Alarm, Answered, Call, Engine, Event, Failure, Grant, Granted, Purpose, Stage};
use crate::client::lease::{GrantState, LostCause, LostGrant, Span};
use crate::client::message::Tag;
use crate::time::Time;

impl Engine {
    /// The session was alive when a request sent then arrived.
    pub(super) fn prove(&mut self, now: Time, sent: Time) {
        let Some(opened) = self.session else { return };
        if !matches!(self.stage, Stage::Open) || self.proven.is_some_and(|proven| proven >= sent) {
            return;
        }
        self.proven = Some(sent);
        self.span = Span::proven(sent, opened.ttl_ms);
        match (self.looked, self.span.next(now)) {
            (GrantState::Safe, Some(at)) if self.span.state(now) == GrantState::Safe => {
                // It was safe and stays so: nothing has changed for any grant.
                self.alarms.set(Alarm::Session, at);
            }
            _ => self.look_at_all(now),
        }
        let proving: Vec<u64> = self.proving.iter().copied().collect();
        for token in proving {
            self.hand_out(now, token);
        }
    }

    /// Gives a grant to the call that asked for it, if it is proven to live.
    pub(super) fn hand_out(&mut self, now: Time, token: u64) {
        let session = self.span.state(now);
        let Some(grant) = self.grants.get_mut(&token) else { return };
        if grant.proving.is_some() && grant.hold.state(now) == GrantState::Lost {
            return self.lose(now, token, LostCause::HeldTooLong);
        }
        // A bound on the tenure is no question of proof: what is left of it is given, little as it may be.
        let ready = session == GrantState::Safe && grant.lease.state(now) == GrantState::Safe;
        let Some(proving) = grant.proving.take_if(|proving| ready && !proving.renewing) else { return };
        let granted = Granted { token, keys: grant.keys.clone(), span: grant.lease, hold: grant.hold };
        let asked = grant.asked.clone();
        self.proving.remove(&token);
        self.alarms.clear(Alarm::Prove(token));
        let answered = Answered { raw: proving.raw, granted: Some(granted) };
        self.tell_done(proving.call, Ok(answered));
        self.events.extend(asked.map(Event::Asked));
        self.look_at(now, token);
    }

    /// Sets what a grant's own lease allows.
    pub(super) fn set_lease(&mut self, now: Time, token: u64, change: impl FnOnce(Span) -> Span) {
        let Some(grant) = self.grants.get_mut(&token) else { return };
        if grant.told == GrantState::Lost {
            return;
        }
        let span = change(grant.lease);
        if span != grant.lease {
            grant.lease = span;
            if grant.proving.is_none() {
                self.events.push_back(Event::Lease { token, span });
            }
        }
        self.look_at(now, token);
    }

    pub(super) fn renewed(&mut self, now: Time, token: u64, span: Span) {
        // With another renewal on its way nobody knows which the server will do last.
        let others = self
            .calls
            .values()
            .any(|call| matches!(&call.purpose, Purpose::Renew { token: other, .. } if *other == token));
        self.set_lease(now, token, |lease| if others { lease.and(span) } else { span });
        if let Some(proving) = self.grants.get_mut(&token).and_then(|grant| grant.proving.as_mut()) {
            proving.renewing = false;
        }
        self.hand_out(now, token);
    }

    /// Looks at every grant, and sets the alarm for the next change of belief in the session.
    pub(super) fn look_at_all(&mut self, now: Time) {
        self.looked = self.span.state(now);
        let tokens: Vec<u64> = self.grants.keys().copied().collect();
        for token in tokens {
            self.look_at(now, token);
        }
        match self.span.next(now) {
            Some(at) => self.alarms.set(Alarm::Session, at),
            None => self.alarms.clear(Alarm::Session),
        }
    }

    /// Tells what has changed about a grant, and sets the alarm for its own lease.
    pub(super) fn look_at(&mut self, now: Time, token: u64) {
        let session = self.span.state(now);
        let Some(grant) = self.grants.get_mut(&token) else { return };
        if grant.told == GrantState::Lost || grant.proving.is_some() {
            return;
        }
        let own = grant.own();
        match session.max(own.state(now)) {
            GrantState::Lost => {
                let cause = match (grant.hold.state(now), grant.lease.state(now)) {
                    (GrantState::Lost, _) => LostCause::HeldTooLong,
                    (_, GrantState::Lost) => LostCause::LeaseOver,
                    _ => LostCause::Unproven,
                };
                return self.lose(now, token, cause);
            }
            state if state != grant.told => {
                grant.told = state;
                self.events.push_back(Event::Changed { token, state });
            }
            GrantState::Safe | GrantState::AtRisk => {}
        }
        if let Some(at) = own.next(now) {
            self.alarms.set(Alarm::Lease(token), at);
        }
    }

    /// A grant is lost. What nobody has told the server is told.
    pub(super) fn lose(&mut self, now: Time, token: u64, cause: LostCause) {
        let Some(grant) = self.grants.get_mut(&token) else { return };
        if grant.told == GrantState::Lost {
            return;
        }
        grant.told = GrantState::Lost;
        grant.cause = Some(cause.clone());
        let keys = grant.keys.clone();
        let lost = LostGrant { token, keys: keys.clone(), cause: cause.clone() };
        match grant.proving.take() {
            Some(proving) => self.tell_done(proving.call, Err(Failure::Lost(lost.clone()))),
            None => self.events.push_back(Event::Lost(lost.clone())),
        }
        self.proving.remove(&token);
        self.alarms.clear(Alarm::Prove(token));
        self.alarms.clear(Alarm::Lease(token));
        let unsent: Vec<Tag> = self
            .calls
            .iter()
            .filter(|(_, call)| call.copies == 0 && call.asked && call.under() == Some(token))
            .map(|(tag, _)| *tag)
            .collect();
        for tag in unsent {
            self.end(tag, Err(Failure::Lost(lost.clone())));
        }
        let releasing =
            |call: &Call| matches!(call.purpose, Purpose::Release { token: of, .. } if of == token);
        match cause {
            LostCause::Unproven | LostCause::LeaseOver | LostCause::HeldTooLong
                if self.calls.values().any(releasing) => {}
            LostCause::Unproven | LostCause::LeaseOver | LostCause::HeldTooLong => {
                self.spawn_release(now, "abandon", token, keys);
            }
            LostCause::Told { .. } | LostCause::SessionEnded | LostCause::Gone => self.remove_grant(token),
        }
    }

    /// A grant that could not be proven in time, or that nobody waits for any more, was never handed out.
    pub(super) fn give_up(&mut self, now: Time, token: u64) {
        if self.grants.get(&token).is_some_and(|grant| grant.proving.is_some()) {
            self.lose(now, token, LostCause::Unproven);
        }
    }

    pub(super) fn proving_of(&self, tag: Tag) -> Option<u64> {
        let proving = |grant: &Grant| grant.proving.as_ref().is_some_and(|proving| proving.call == tag);
        self.grants.iter().find(|(_, grant)| proving(grant)).map(|(token, _)| *token)
    }

    pub(super) fn remove_grant(&mut self, token: u64) {
        self.grants.remove(&token);
        self.proving.remove(&token);
        self.alarms.clear(Alarm::Lease(token));
        self.alarms.clear(Alarm::Prove(token));
    }

    pub(super) fn loss_of(&self, token: u64) -> LostGrant {
        let grant = self.grants.get(&token);
        let keys = grant.map(|grant| grant.keys.clone()).unwrap_or_default();
        let cause = grant.and_then(|grant| grant.cause.clone()).unwrap_or(LostCause::Unproven);
        LostGrant { token, keys, cause }
    }
}
