//! Numbers and beginnings of calls, and what must come first.

use super::{Alarm, Call, CallId, Engine, Failure, Makes, Purpose, Stage, keys_of};
use crate::client::lease::GrantState;
use crate::client::message::{self, Tag};
use crate::limits::DATAGRAM_MAX;
use crate::time::Time;
use crate::wire::{Int, Params, WaitMs};

impl Engine {
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn next_echo(&mut self) -> u64 {
        self.last_echo += 1;
        self.last_echo
    }

    pub(super) fn insert(&mut self, tag: Tag, call: Call) {
        if matches!(call.purpose, Purpose::Release { .. } | Purpose::Cancel { .. }) {
            self.enders.insert(tag);
        }
        if call.converts().is_some() {
            self.converting.insert(tag);
        }
        if call.behind.is_some() {
            self.blocked.insert(tag);
        }
        let before = self.calls.insert(tag, call);
        assert!(before.is_none(), "each id is given out once: {tag}");
    }

    /// Begins a request that nobody waits for and that is repeated as long as the session lives.
    pub(super) fn spawn(&mut self, now: Time, method: &str, params: Params, purpose: Purpose) -> Tag {
        let tag = Tag::Logged(self.next_id());
        let mut call = Call::new(method, params, purpose, false);
        call.in_session = true;
        self.insert(tag, call);
        self.send_if_ready(tag, now);
        tag
    }

    /// Ends a grant without anybody waiting for the answer.
    pub(super) fn spawn_release(&mut self, now: Time, method: &str, token: u64, keys: Vec<String>) {
        if !matches!(self.stage, Stage::Open) {
            return;
        }
        let params = Params { token: Some(Int(token)), ..Params::default() };
        self.spawn(now, method, params, Purpose::Release { token, keys });
    }

    pub(super) fn send_if_ready(&mut self, tag: Tag, now: Time) {
        let Some(call) = self.calls.get(&tag) else { return };
        let session =
            !call.in_session || matches!(self.stage, Stage::Open | Stage::Closing) && self.session.is_some();
        if session && call.behind.is_none() && call.copies == 0 {
            self.sends.set(tag, now);
        }
    }

    /// Why a call fails before it is sent, if it does.
    pub(super) fn refuse(
        &self,
        now: Time,
        method: &str,
        params: &Params,
        in_session: bool,
    ) -> Option<Failure> {
        match &self.stage {
            Stage::Closing | Stage::Closed => return Some(Failure::Closed),
            Stage::Ended { why } if in_session => return Some(Failure::SessionEnded { why: why.clone() }),
            Stage::Ended { .. } | Stage::Idle | Stage::Opening | Stage::Open => {}
        }
        if let (Some(Int(token)), None) = (params.token, params.holder)
            && self.grant_state(now, token) == Some(GrantState::Lost)
        {
            return Some(Failure::Lost(self.loss_of(token)));
        }
        let bytes = message::size(method, params);
        (bytes > DATAGRAM_MAX).then_some(Failure::TooLarge { bytes })
    }

    pub(super) fn purpose(&self, method: &str, params: &Params) -> Purpose {
        let own = params.token.filter(|_| params.holder.is_none()).map(|token| token.0);
        match (method, own) {
            // A take-over is as good as a request for a lock: it makes a grant, and must not leave one that nobody knows of.
            ("acquire_lock" | "take_over" | "convert_lock", _) => {
                let (makes, keys, owner) = match (method, own) {
                    ("acquire_lock" | "take_over", _) => (Makes::New, keys_of(params), params.owner.clone()),
                    // It asks for nothing that a release on its way could hold up: the grant has these locks.
                    (_, None) => (Makes::Foreign, Vec::new(), None),
                    (_, Some(token)) => {
                        let owner = self.grants.get(&token).and_then(|grant| grant.owner.clone());
                        (Makes::Converted(token), Vec::new(), owner)
                    }
                };
                let waits = !matches!(params.wait_ms, None | Some(WaitMs(Some(Int(0)))));
                let bounded = params.max_hold_ms.is_some();
                Purpose::Acquire { makes, keys, owner, waits, pending: false, bounded, cancel: None }
            }
            ("release_lock" | "abandon", Some(token)) => {
                let keys = self.grants.get(&token).map(|grant| grant.names()).unwrap_or_default();
                Purpose::Release { token, keys }
            }
            ("renew_lease", Some(token)) => {
                Purpose::Renew { token, lease_ms: params.lease_ms.map_or(0, |lease| lease.0) }
            }
            _ => Purpose::Plain,
        }
    }

    /// What is on its way and must come first: between datagrams there is no order. A release that arrives after the
    /// owner's next request for the same lock would end what that request was given; and the token to release is known
    /// only when no conversion of the grant is open.
    pub(super) fn find_behind(&self, purpose: &Purpose) -> Option<Tag> {
        match purpose {
            Purpose::Acquire { makes, keys, owner, .. } => {
                let own = |other: &Option<String>| other == owner && *makes != Makes::Foreign;
                let blocks = |call: &Call| match &call.purpose {
                    Purpose::Release { keys: leaving, .. } => leaving.iter().any(|key| keys.contains(key)),
                    Purpose::Cancel { wait } => match self.calls.get(wait).map(|wait| &wait.purpose) {
                        Some(Purpose::Acquire { owner: other, .. }) => own(other),
                        _ => false,
                    },
                    Purpose::Plain | Purpose::Acquire { .. } | Purpose::Renew { .. } => false,
                };
                self.enders.iter().copied().find(|tag| self.calls.get(tag).is_some_and(blocks))
            }
            Purpose::Release { token, .. } => self.conversions(*token).next(),
            Purpose::Plain | Purpose::Cancel { .. } | Purpose::Renew { .. } => None,
        }
    }

    /// Conversions of a grant that the server may have done or may still do.
    pub(super) fn conversions(&self, token: u64) -> impl Iterator<Item = Tag> {
        let open = move |tag: &Tag| self.calls.get(tag).is_some_and(|call| call.converts() == Some(token));
        self.converting.iter().copied().filter(open)
    }

    /// A grant is about to be released: conversions of it are not wanted any more.
    pub(super) fn begin_release(&mut self, now: Time, token: u64) {
        if let Some(grant) = self.grants.get_mut(&token) {
            grant.leaving = true;
        }
        let open: Vec<Tag> = self.conversions(token).collect();
        for tag in open {
            if !self.given_up(tag) {
                self.give_up_call(now, tag, "its grant is being released");
            }
        }
    }

    pub(super) fn unblock(&mut self, now: Time, done: Tag) {
        let behind = |tag: &Tag| self.calls.get(tag).is_some_and(|call| call.behind == Some(done));
        let freed: Vec<Tag> = self.blocked.iter().copied().filter(behind).collect();
        for tag in freed {
            let next = self.calls.get(&tag).and_then(|call| self.find_behind(&call.purpose));
            if let Some(call) = self.calls.get_mut(&tag) {
                call.behind = next;
            }
            if next.is_none() {
                let tag = self.give_number(tag);
                self.send_if_ready(tag, now);
            }
        }
    }

    /// A call that was held back gets its number.
    fn give_number(&mut self, held: Tag) -> Tag {
        let Some(mut call) = self.drop_call(held) else { return held };
        assert!(call.copies == 0 && matches!(held, Tag::Held(_)), "{held} was sent while it was held back");
        let tag = Tag::Logged(self.next_id());
        call.held_as = Some(CallId(held));
        for tag_behind in &self.blocked {
            if let Some(other) = self.calls.get_mut(tag_behind).filter(|other| other.behind == Some(held)) {
                other.behind = Some(tag);
            }
        }
        if let Some(deadline) = call.deadline.filter(|_| call.asked) {
            self.alarms.set(Alarm::Deadline(tag), deadline);
        }
        self.insert(tag, call);
        tag
    }

    /// Where a call is now.
    pub(super) fn tag_of(&self, call: CallId) -> Option<Tag> {
        if self.calls.contains_key(&call.0) {
            return Some(call.0);
        }
        self.calls.iter().find(|(_, known)| known.held_as == Some(call)).map(|(tag, _)| *tag)
    }
}
