//! Sending: copies, their times, and what goes with each.

use super::{BEAT, BEATS_KEPT, Beat, Call, Engine, PROBE_MS, Purpose, RETRY_FIRST_MS, RETRY_MAX_MS, Stage};
use crate::client::lease::Span;
use crate::client::message::{self, Tag};
use crate::limits::GOT_MAX;
use crate::time::Time;
use crate::wire::{Int, Params};

impl Engine {
    pub(super) fn transmit(&mut self, now: Time, tag: Tag) -> Vec<u8> {
        let (ack, got) = (self.ack(), self.got_list());
        let session = self.session.map(|opened| opened.session);
        let cookie = self.cookie.clone();
        let delay = self.retry_delay(tag);
        self.sends.set(tag, now.after_us(delay));
        let call = self.calls.get_mut(&tag).expect("the caller has looked it up");
        if call.in_session {
            call.params.session = session;
            call.params.got = (!got.is_empty()).then(|| got.iter().map(|id| Int(*id)).collect());
            // At most its own id: a wait that `ack` has passed is still sent.
            call.params.ack = matches!(tag, Tag::Logged(_)).then(|| Int(ack.min(tag.number())));
        }
        call.params.cookie = cookie;
        call.cookie_number = self.cookie_number;
        if call.copies == 0 {
            call.first_sent = Some(now);
            call.got_named = got;
        }
        call.copies = call.copies.saturating_add(1);
        // Only an answered heartbeat tells how long a grant may have stood when its answer comes.
        let marks = matches!(call.purpose, Purpose::Acquire { pending: true, bounded: true, .. });
        let bytes = message::encode(tag, &call.method, &mut call.params, self.heard);
        if let (Purpose::Renew { token, lease_ms }, 1) = (&call.purpose, call.copies) {
            // From here on the server may have set the lease to the new end, and this client cannot know.
            let (token, span) = (*token, Span::proven(now, *lease_ms));
            self.set_lease(now, token, |lease| lease.and(span));
        }
        if marks && self.last_beat.is_none_or(|last| now >= last.after_ms(PROBE_MS)) {
            self.beat(now);
        }
        bytes
    }

    /// Microseconds until the next copy after one that is sent now.
    pub(super) fn retry_delay(&mut self, tag: Tag) -> u64 {
        let Some(call) = self.calls.get(&tag) else { return 0 };
        let base = match call.purpose {
            Purpose::Acquire { pending: true, .. } => PROBE_MS,
            _ => RETRY_FIRST_MS.saturating_mul(1 << call.copies.min(10)).min(RETRY_MAX_MS),
        };
        self.spread(base)
    }

    /// Up to a quarter more, so that clients that lost the same packet do not come back together. In microseconds.
    pub(super) fn spread(&mut self, base_ms: u64) -> u64 {
        // splitmix64: small, seeded, and good enough to keep clients apart.
        self.jitter = self.jitter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.jitter;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let base = base_ms.saturating_mul(1_000);
        base.saturating_add(bits % (base / 4 + 1))
    }

    /// The lowest id that may still be sent. A wait stands outside once the server is known to have it.
    pub(super) fn ack(&self) -> u64 {
        let open = |call: &Call| {
            !matches!(call.purpose, Purpose::Acquire { waits: true, pending: true, .. })
                && !crate::bug::planted("client_acks_too_early")
        };
        let logged = Tag::Logged(0)..=Tag::Logged(u64::MAX);
        match self.calls.range(logged).find(|(_, call)| open(call)) {
            Some((tag, _)) => tag.number(),
            None => self.last_id + 1,
        }
    }

    pub(super) fn got_list(&self) -> Vec<u64> {
        self.got.iter().copied().take(GOT_MAX).collect()
    }

    pub(super) fn transmit_beat(&mut self, now: Time) -> Option<Vec<u8>> {
        let session = match self.stage {
            Stage::Open => self.session?,
            _ => return None,
        };
        let number = self.next_echo();
        self.last_beat = Some(now);
        self.beats.insert(number, Beat { sent: now, cookie_number: self.cookie_number });
        if self.beats.len() > BEATS_KEPT {
            self.beats.pop_first();
        }
        let retry = RETRY_FIRST_MS.saturating_mul(1 << self.unanswered.min(10));
        let retry = retry.min((session.ttl_ms / 12).max(5)).min(RETRY_MAX_MS);
        self.unanswered = self.unanswered.saturating_add(1);
        let delay = self.spread(retry);
        self.sends.set(BEAT, now.after_us(delay));
        let got = self.got_list();
        // No `ack`: it says something only in logged requests.
        let mut params = Params {
            session: Some(session.session),
            after: Some(Int(self.after)),
            got: (!got.is_empty()).then(|| got.into_iter().map(Int).collect()),
            cookie: self.cookie.clone(),
            ..Params::default()
        };
        Some(message::encode(Tag::Beat(number), "heartbeat", &mut params, self.heard))
    }

    /// Sends a heartbeat now.
    pub(super) fn beat(&mut self, now: Time) {
        if matches!(self.stage, Stage::Open) {
            self.sends.set(BEAT, now);
        }
    }
}
