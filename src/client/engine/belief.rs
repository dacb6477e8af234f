//! Belief in grants: proofs, losses, and when a grant is handed out.

use super::{Alarm, Answered, Call, CallId, Engine, Event, Failure, Grant, Granted, Makes, Purpose, Stage};
use crate::client::lease::{GrantState, LostCause, LostGrant, Span};
use crate::client::message::Tag;
use crate::time::Time;
use crate::wire::{Int, KeyShown};

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
        let proven = session == GrantState::Safe && grant.lease.state(now) == GrantState::Safe;
        let ready = proven || crate::bug::planted("grant_handed_out_unproven");
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

    /// The server has converted a grant. It goes on under the token that it has now: with its lease, its release on the
    /// way, and whoever holds its guard. One that was given up meanwhile is given up under that token too.
    pub(super) fn adopt(&mut self, now: Time, from: u64, token: u64, keys: Vec<KeyShown>, op: u64) {
        let lives = self.grants.get(&from).is_some_and(|grant| grant.told != GrantState::Lost);
        if !lives {
            if token != from {
                let names = keys.iter().map(|lock| lock.key.clone()).collect();
                self.spawn_release(now, "abandon", token, names);
            }
            return;
        }
        let Some(mut grant) = self.grants.remove(&from) else { return };
        self.alarms.clear(Alarm::Lease(from));
        grant.op = op;
        if !keys.is_empty() {
            grant.keys = keys;
        }
        let keys = grant.keys.clone();
        self.grants.insert(token, grant);
        for call in self.calls.values_mut().filter(|call| call.copies == 0 && call.under() == Some(from)) {
            call.params.token = Some(Int(token));
            match &mut call.purpose {
                Purpose::Release { token: of, .. } | Purpose::Renew { token: of, .. } => *of = token,
                Purpose::Acquire { makes, .. } => *makes = Makes::Converted(token),
                Purpose::Plain | Purpose::Cancel { .. } => {}
            }
        }
        self.events.push_back(Event::Converted { from, token, keys });
        if let Some(asking) = self.early_asked.remove(&token) {
            if let Some(grant) = self.grants.get_mut(&token) {
                grant.asked = Some(asking.clone());
            }
            self.events.push_back(Event::Asked(asking));
        }
        match self.early_losses.remove(&token) {
            Some(cause) => self.lose(now, token, cause),
            None => self.look_at(now, token),
        }
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
        let keys = grant.names();
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
        for tag in &unsent {
            self.end(*tag, Err(Failure::Lost(lost.clone())));
        }
        let converting: Vec<Tag> = self.conversions(token).collect();
        for tag in converting {
            self.lose_conversion(now, tag, &lost);
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
        // What was held back behind them is held back behind what ends the grant now, or by nothing.
        for tag in unsent {
            self.unblock(now, tag);
        }
    }

    /// Whoever waits for a conversion of a lost grant is told of the loss. The request itself goes on, taken back: only its
    /// answer says under which token the grant has to be abandoned.
    fn lose_conversion(&mut self, now: Time, tag: Tag, lost: &LostGrant) {
        let taken_back = self.given_up(tag);
        let Some(call) = self.calls.get_mut(&tag) else { return };
        if std::mem::take(&mut call.asked) {
            self.alarms.clear(Alarm::Deadline(tag));
            let handle = call.handle(tag);
            self.tell_done(handle, Err(Failure::Lost(lost.clone())));
        }
        if !taken_back {
            self.take_back(now, tag);
        }
    }

    /// A grant that could not be proven in time, or that nobody waits for any more, was never handed out.
    pub(super) fn give_up(&mut self, now: Time, token: u64) {
        if self.grants.get(&token).is_some_and(|grant| grant.proving.is_some()) {
            self.lose(now, token, LostCause::Unproven);
        }
    }

    pub(super) fn proving_of(&self, call: CallId) -> Option<u64> {
        let proving = |grant: &Grant| grant.proving.as_ref().is_some_and(|proving| proving.call == call);
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
        let keys = grant.map(Grant::names).unwrap_or_default();
        let cause = grant.and_then(|grant| grant.cause.clone()).unwrap_or(LostCause::Unproven);
        LostGrant { token, keys, cause }
    }
}
