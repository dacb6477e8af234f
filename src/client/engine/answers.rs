//! What answers mean.

use super::{
    Alarm, BEAT, Beat, Call, EARLY_LOSSES_MAX, Engine, Event, Failure, GRACE_MS, Grant, MARKS_KEPT, Makes,
    PROBE_MS, Proving, Purpose, RETRY_MAX_MS, Stage,
};
use crate::client::handover::{Asking, Offer};
use crate::client::lease::{GrantState, LostCause, LostGrant, Span};
use crate::client::message::{AcquiredShown, BeatShown, KeyHeld, OpenedShown, Tag};
use crate::time::Time;
use crate::wire::{AskedShown, ErrorShown, Int, KeyShown, OfferedShown, Params, Pending};
use serde_json::value::RawValue;
use std::time::Duration;

impl Engine {
    pub(super) fn on_pending(&mut self, now: Time, client: u64, id: u64, shown: Option<Box<Pending>>) {
        if self.session.is_none_or(|opened| opened.client != client) {
            return;
        }
        let tag = Tag::Logged(id);
        let Some(call) = self.calls.get_mut(&tag) else { return };
        let Purpose::Acquire { pending, cancel: None, .. } = &mut call.purpose else { return };
        if call.copies == 0 {
            return;
        }
        let news = !std::mem::replace(pending, true);
        if let (Some(pending), true) = (shown, call.asked) {
            self.events.push_back(Event::Pending { call: call.handle(tag), pending });
        }
        if news {
            let delay = self.spread(PROBE_MS);
            self.sends.set(tag, now.after_us(delay));
        }
    }

    pub(super) fn on_reply(&mut self, now: Time, tag: Tag, reply: Result<Box<RawValue>, Box<ErrorShown>>) {
        let Some(call) = self.calls.get(&tag) else { return };
        if call.copies == 0 {
            return;
        }
        match reply {
            Err(error) if !error.data.is_final => self.on_again(now, tag, error),
            Err(error) if error.data.kind == "no_session" && call.in_session => {
                self.on_no_session(now, tag, &error.message);
            }
            Err(error)
                if error.data.kind == "stale_request"
                    && call.copies > 1
                    && !matches!(call.purpose, Purpose::Cancel { .. }) =>
            {
                let why =
                    "a copy of it came too late to be looked up, and an earlier one was sent".to_owned();
                self.end(tag, Err(Failure::Unknown { id: tag.number(), why }));
                self.after_end(now, tag);
            }
            reply => self.on_final(now, tag, reply),
        }
    }

    /// Nothing was done: the same id goes out again.
    pub(super) fn on_again(&mut self, now: Time, tag: Tag, error: Box<ErrorShown>) {
        if error.data.kind == "verify" {
            let sent_with = self.calls.get(&tag).map_or(0, |call| call.cookie_number);
            if self.take_cookie(error.data.cookie.as_ref(), sent_with) && !self.given_up(tag) {
                self.sends.set(tag, now);
            }
            return;
        }
        if let Some(retry_ms) = error.data.retry_ms {
            let delay = self.spread(retry_ms.clamp(1, RETRY_MAX_MS));
            if !self.given_up(tag) {
                self.sends.set(tag, now.after_us(delay));
            }
        }
        if let Some(call) = self.calls.get_mut(&tag) {
            call.last_refusal = Some(error);
        }
    }

    /// Keeps the cookie of a `verify`, and tells whether the copy that it answers went out without it.
    pub(super) fn take_cookie(&mut self, cookie: Option<&String>, sent_with: u32) -> bool {
        let Some(cookie) = cookie else { return false };
        if self.cookie.as_ref() != Some(cookie) {
            self.cookie = Some(cookie.clone());
            self.cookie_number += 1;
        }
        sent_with != self.cookie_number
    }

    pub(super) fn on_no_session(&mut self, now: Time, tag: Tag, message: &str) {
        let why = format!("the server knows the session no more: {message}");
        let call = self.calls.get(&tag).expect("the caller has looked it up");
        let failure = match (&call.purpose, call.copies) {
            // Of an earlier copy no grant can be left, and nothing else is what a request for a lock does.
            (Purpose::Acquire { .. }, _) | (_, 1) => Failure::SessionEnded { why: why.clone() },
            (
                Purpose::Plain | Purpose::Cancel { .. } | Purpose::Release { .. } | Purpose::Renew { .. },
                _,
            ) => Failure::Unknown { id: tag.number(), why: why.clone() },
        };
        self.end(tag, Err(failure));
        match tag {
            Tag::Close(_) => self.closed(true),
            _ => self.session_ended(now, why),
        }
    }

    pub(super) fn on_final(&mut self, now: Time, tag: Tag, reply: Result<Box<RawValue>, Box<ErrorShown>>) {
        let call = self.calls.get(&tag).expect("the caller has looked it up");
        let first_sent = call.first_sent.filter(|_| !crate::bug::planted("lease_counted_from_the_answer"));
        let sent = first_sent.unwrap_or(now);
        for id in &call.got_named {
            self.got.remove(id);
        }
        let proves = matches!(tag, Tag::Logged(_) | Tag::Open(_)) && reply.is_ok();
        match tag {
            Tag::Open(_) => self.on_opened(now, tag, reply),
            Tag::Close(_) => {
                self.end(tag, Ok(()));
                self.closed(true);
            }
            Tag::Logged(_) | Tag::Held(_) | Tag::Read(_) | Tag::Beat(_) => {
                self.on_answer(now, tag, sent, reply)
            }
        }
        if proves {
            self.prove(now, sent);
        }
    }

    pub(super) fn on_answer(
        &mut self,
        now: Time,
        tag: Tag,
        sent: Time,
        reply: Result<Box<RawValue>, Box<ErrorShown>>,
    ) {
        let call = self.calls.get_mut(&tag).expect("the caller has looked it up");
        let not_holder = reply.as_ref().is_err_and(|error| error.data.kind == "not_holder");
        match std::mem::replace(&mut call.purpose, Purpose::Plain) {
            Purpose::Plain => {
                if not_holder && call.params.holder.is_none() {
                    // The token may be lost, or only not cover this name: the heartbeat's answer tells.
                    self.beat(now);
                }
                self.end_with(tag, reply);
            }
            Purpose::Acquire { makes, owner, waits, cancel, .. } => {
                if waits {
                    self.got.insert(tag.number());
                }
                if let Some(cancel) = cancel {
                    self.drop_call(cancel);
                }
                self.on_settled(now, tag, sent, (makes, owner), reply);
                if let Some(cancel) = cancel {
                    self.unblock(now, cancel);
                }
                if waits {
                    self.beat(now);
                }
            }
            Purpose::Cancel { wait } => {
                self.drop_call(tag);
                self.on_cancelled(now, wait, reply);
            }
            Purpose::Release { token, .. } => {
                if not_holder {
                    self.lose(now, token, LostCause::Gone);
                }
                // A section that cannot take effect now is still there, and so is its grant.
                let refused =
                    |error: &ErrorShown| ["limit", "file_fault", "bad_name"].contains(&&*error.data.kind);
                let stays = reply.as_ref().is_err_and(|error| refused(error));
                if !stays {
                    self.remove_grant(token);
                    self.events.push_back(Event::Released { token });
                }
                let asked = self.calls.get(&tag).is_some_and(|call| call.asked);
                self.end_with(tag, reply);
                if stays {
                    self.stays(now, token, asked);
                }
            }
            Purpose::Renew { token, lease_ms } => {
                match &reply {
                    Ok(_) => self.renewed(now, token, Span::proven(sent, lease_ms)),
                    Err(_) if not_holder => self.lose(now, token, LostCause::Gone),
                    Err(_) => {}
                }
                self.end_with(tag, reply);
            }
        }
        self.after_end(now, tag);
    }

    /// A release was refused, and the grant is still there. If it was given up meanwhile, or whoever wanted it released has
    /// gone, then nobody but the server has it any more.
    fn stays(&mut self, now: Time, token: u64, asked: bool) {
        let Some(grant) = self.grants.get_mut(&token) else { return };
        grant.leaving = false;
        if grant.told == GrantState::Lost || !asked {
            let names = grant.names();
            self.spawn_release(now, "abandon", token, names);
        }
    }

    pub(super) fn after_end(&mut self, now: Time, tag: Tag) {
        self.unblock(now, tag);
        self.close_when_released(now);
        let acquiring = |call: &Call| matches!(call.purpose, Purpose::Acquire { .. });
        if !self.early_losses.is_empty() && !self.calls.values().any(acquiring) {
            self.early_losses.clear();
        }
        if !self.early_asked.is_empty() && !self.calls.values().any(acquiring) {
            self.early_asked.clear();
        }
    }

    pub(super) fn on_opened(&mut self, now: Time, tag: Tag, reply: Result<Box<RawValue>, Box<ErrorShown>>) {
        self.drop_call(tag);
        let opened = match reply {
            Ok(raw) => match serde_json::from_str::<OpenedShown>(raw.get()) {
                Ok(opened) => opened,
                Err(error) => {
                    return self.session_ended(
                        now,
                        format!("the answer to open_session is not understood: {error}"),
                    );
                }
            },
            Err(error) => {
                let queued: Vec<Tag> =
                    self.calls.iter().filter(|(_, call)| call.in_session).map(|(tag, _)| *tag).collect();
                for tag in queued {
                    self.end(tag, Err(Failure::Refused(error.clone())));
                }
                let why = format!("no session was opened: {}", error.message);
                self.refusal = Some(error);
                return self.session_ended(now, why);
            }
        };
        self.session = Some(opened);
        if self.stage == Stage::Closing {
            return self.close_when_released(now);
        }
        self.stage = Stage::Open;
        self.events.push_back(Event::Opened);
        let queued: Vec<Tag> = self.calls.keys().copied().collect();
        for tag in queued {
            self.send_if_ready(tag, now);
        }
        self.sends.set(BEAT, now.after_us(opened.ttl_ms.saturating_mul(1_000) / 3));
    }

    pub(super) fn on_beat(&mut self, now: Time, number: u64, reply: Result<Box<RawValue>, Box<ErrorShown>>) {
        let Some(Beat { sent, cookie_number }) = self.beats.get(&number).copied() else { return };
        let raw = match reply {
            Ok(raw) => raw,
            Err(error) if error.data.kind == "verify" => {
                if self.take_cookie(error.data.cookie.as_ref(), cookie_number) {
                    self.beat(now);
                }
                return;
            }
            Err(error) if error.data.kind == "no_session" => {
                return self
                    .session_ended(now, format!("the server knows the session no more: {}", error.message));
            }
            Err(_) => return,
        };
        let Ok(shown) = serde_json::from_str::<BeatShown>(raw.get()) else { return };
        self.beats = self.beats.split_off(&(number + 1));
        self.unanswered = 0;
        let ttl_us = self.session.map_or(0, |opened| opened.ttl_ms).saturating_mul(1_000);
        if matches!(self.stage, Stage::Open) {
            self.sends.set(BEAT, sent.after_us(ttl_us / 3).max(now));
        }
        self.mark(shown.log_op.unwrap_or(shown.op), sent);
        for lost in &shown.lost {
            let cause = LostCause::Told { reason: lost.reason.clone(), note: lost.note.clone() };
            if self.grants.contains_key(&lost.token) {
                self.lose(now, lost.token, cause);
            } else if self.early_losses.len() < EARLY_LOSSES_MAX {
                self.early_losses.insert(lost.token, cause);
            }
        }
        for asked in &shown.asked {
            self.on_asked(sent, asked);
        }
        for offered in &shown.offered {
            self.on_offered(offered);
        }
        if shown.more {
            self.after = self.after.max(shown.last());
            self.beat(now);
        } else {
            self.after = self.after.max(shown.op);
            self.count(now, &shown);
        }
        self.prove(now, sent);
    }

    /// The holder of a grant is asked to let go; `sent`: when the heartbeat was sent that was answered so.
    fn on_asked(&mut self, sent: Time, shown: &AskedShown) {
        let asking = Asking {
            token: shown.token,
            client: shown.client,
            reason: shown.reason.clone(),
            op: shown.op,
            deadline: shown.left_ms.map(|left| sent.after_ms(left)),
        };
        match self.grants.get_mut(&shown.token) {
            Some(grant) => {
                let known = grant.asked.as_ref().is_some_and(|known| known.op >= asking.op);
                if known || grant.told == GrantState::Lost {
                    return;
                }
                grant.asked = Some(asking.clone());
                if grant.proving.is_none() {
                    self.events.push_back(Event::Asked(asking));
                }
            }
            None if self.early_asked.len() < EARLY_LOSSES_MAX => {
                self.early_asked.insert(asking.token, asking);
            }
            None => {}
        }
    }

    fn on_offered(&mut self, shown: &OfferedShown) {
        // They come in their order, each until the client says that it knows; a command offers one grant.
        if shown.op <= self.offers_told {
            return;
        }
        self.offers_told = shown.op;
        self.events.push_back(Event::Offered(Offer {
            token: shown.token,
            keys: shown.keys.clone(),
            client: shown.client,
            name: shown.name.clone(),
            owner: shown.owner.clone(),
            label: shown.label.clone(),
            lease: shown.lease_ms.map(Duration::from_millis),
        }));
    }

    /// Remembers that what has a place in the log behind `op` was asked for after `sent`.
    fn mark(&mut self, op: u64, sent: Time) {
        match self.marks.back_mut() {
            Some((last, at)) if *last >= op => *at = sent.max(*at),
            _ => self.marks.push_back((op, sent)),
        }
        if self.marks.len() > MARKS_KEPT {
            self.marks.pop_front();
        }
    }

    /// The earliest moment at which the command `op` can have been asked for that was caused by a request first sent at
    /// `sent`.
    fn began(&self, sent: Time, op: u64) -> Time {
        let mark = self.marks.iter().rev().find(|(given, _)| *given < op);
        mark.map_or(sent, |(_, at)| sent.max(*at))
    }

    /// With nothing held at all, what this client believes in was ended by somebody else, or by more losses than the
    /// server remembers.
    pub(super) fn count(&mut self, now: Time, shown: &BeatShown) {
        if shown.held > 0 {
            return;
        }
        let gone = |grant: &Grant| !grant.leaving && grant.told != GrantState::Lost && grant.op <= shown.op;
        let tokens: Vec<u64> =
            self.grants.iter().filter(|(_, grant)| gone(grant)).map(|(token, _)| *token).collect();
        for token in tokens {
            self.lose(now, token, LostCause::Gone);
        }
    }

    pub(super) fn on_cancelled(
        &mut self,
        now: Time,
        wait: Tag,
        reply: Result<Box<RawValue>, Box<ErrorShown>>,
    ) {
        let Some(call) = self.calls.get(&wait) else { return };
        let sent = call.first_sent.unwrap_or(now);
        let Purpose::Acquire { makes, owner, waits, .. } = &call.purpose else { return };
        match reply {
            Ok(raw) => {
                let what = (*makes, owner.clone());
                if *waits {
                    self.got.insert(wait.number());
                }
                self.on_settled(now, wait, sent, what, Ok(raw));
            }
            Err(error) => {
                let why = format!("no answer came, and it could not be taken back: {}", error.message);
                self.end(wait, Err(Failure::Unknown { id: wait.number(), why }));
            }
        }
        self.after_end(now, wait);
    }

    /// What came of a request for a lock, by its own answer or by that to its taking back.
    fn on_settled(
        &mut self,
        now: Time,
        tag: Tag,
        sent: Time,
        (makes, owner): (Makes, Option<String>),
        reply: Result<Box<RawValue>, Box<ErrorShown>>,
    ) {
        match makes {
            Makes::New => self.on_acquired(now, tag, sent, owner, reply),
            Makes::Converted(token) => self.on_converted(now, tag, token, reply),
            Makes::Foreign => self.end_with(tag, reply),
        }
    }

    /// A grant was converted, or was not.
    fn on_converted(
        &mut self,
        now: Time,
        tag: Tag,
        from: u64,
        reply: Result<Box<RawValue>, Box<ErrorShown>>,
    ) {
        let shown = match &reply {
            Ok(raw) => serde_json::from_str::<AcquiredShown>(raw.get()).unwrap_or_default(),
            Err(_) => AcquiredShown::default(),
        };
        let ended = match &reply {
            Ok(_) => shown.reason.as_deref() == Some("grant_ended"),
            Err(error) => error.data.kind == "not_holder",
        };
        match (shown.granted, shown.token) {
            (true, Some(token)) => {
                let keys = shown.keys.into_iter().map(KeyHeld::shown).collect();
                self.adopt(now, from, token, keys, shown.op);
            }
            // Unless it was this client's own release that came first.
            _ if ended && self.grants.get(&from).is_some_and(|grant| !grant.leaving) => {
                self.lose(now, from, LostCause::Gone);
            }
            _ => {}
        }
        self.end_with(tag, reply);
    }

    fn on_acquired(
        &mut self,
        now: Time,
        tag: Tag,
        sent: Time,
        owner: Option<String>,
        reply: Result<Box<RawValue>, Box<ErrorShown>>,
    ) {
        let shown = match &reply {
            Ok(raw) => serde_json::from_str::<AcquiredShown>(raw.get()).unwrap_or_default(),
            Err(_) => AcquiredShown::default(),
        };
        let (true, Some(token), Ok(raw)) = (shown.granted, shown.token, &reply) else {
            return self.end_with(tag, reply);
        };
        let keys: Vec<KeyShown> = shown.keys.into_iter().map(KeyHeld::shown).collect();
        let names: Vec<String> = keys.iter().map(|lock| lock.key.clone()).collect();
        match self.grants.get(&token) {
            // Given up here for good, though the server does not know it yet.
            Some(Grant { cause: Some(cause), .. }) => {
                let lost = LostGrant { token, keys: names, cause: cause.clone() };
                return self.end(tag, Err(Failure::Lost(lost)));
            }
            Some(_) => return self.end_with(tag, reply),
            None => {}
        }
        let call = self.calls.get(&tag).expect("the caller has looked it up");
        let (asked, deadline, handle) = (call.asked, call.deadline, call.handle(tag));
        if let Some(cause) = self.early_losses.remove(&token) {
            let lost = LostGrant { token, keys: names, cause };
            return self.end(tag, Err(Failure::Lost(lost)));
        }
        if !matches!(self.stage, Stage::Open) {
            // The answer to a retry, told by a session that has ended since.
            let lost = LostGrant { token, keys: names, cause: LostCause::SessionEnded };
            return self.end(tag, Err(Failure::Lost(lost)));
        }
        if !asked {
            // Nobody will hold it. It was never used, so it is a release and no loss.
            self.drop_call(tag);
            return self.spawn_release(now, "release_lock", token, names);
        }
        let began = self.began(sent, shown.op);
        let span = |ms: Option<u64>| ms.map_or(Span::ENDLESS, |ms| Span::proven(began, ms));
        // What the owner had before it asked is told with what was left of it; no command of this request began it.
        let left = shown.lease_left_ms.or(shown.lease_ms);
        let (lease, hold) = (span(left), span(shown.hold_left_ms));
        // After a wait nobody knows here when exactly the lease began; a quarter of it is what a caller may find used up.
        let renewing = left.zip(shown.lease_ms).is_some_and(|(left, lease_ms)| {
            let used_ms = lease_ms.saturating_sub(left);
            now.us_since(began).saturating_add(used_ms.saturating_mul(1_000)) > lease_ms.saturating_mul(250)
        });
        let asked = self.early_asked.remove(&token);
        let proving = Some(Proving { call: handle, raw: raw.clone(), renewing });
        self.drop_call(tag);
        self.proving.insert(token);
        let grant = Grant {
            keys,
            owner,
            op: shown.op,
            lease,
            hold,
            asked,
            told: GrantState::Safe,
            cause: None,
            proving,
            leaving: false,
        };
        self.grants.insert(token, grant);
        self.prove(now, sent);
        if let (true, Some(lease_ms)) = (renewing, shown.lease_ms) {
            let params =
                Params { token: Some(Int(token)), lease_ms: Some(Int(lease_ms)), ..Params::default() };
            self.spawn(now, "renew_lease", params, Purpose::Renew { token, lease_ms });
        }
        self.hand_out(now, token);
        if let Some(grant) = self.grants.get(&token)
            && grant.proving.is_some()
        {
            self.beat(now);
            if let Some(deadline) = deadline {
                self.alarms.set(Alarm::Prove(token), deadline.max(now.after_ms(GRACE_MS)));
            }
        }
    }
}
