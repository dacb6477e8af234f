//! Replies as text: results, errors, outcomes and notifications.

use super::plain::{write_json, write_number, write_text};
use super::{
    Acquired, AheadShown, CycleStepShown, ErrorData, ErrorShown, EventShown, HolderShown, Id, KeyShown,
    ModeShown, result,
};
use crate::command::{Ask, Mode};
use crate::kind::{CycleStep, Detail, Refusal};
use crate::limits::REPLY_PAGE;
use crate::outcome::{Ahead, Blocked, Holder, Outcome};
use crate::state::{GrantEnd, KeyEnd, WatchEventRef, What};
use serde::Serialize;

/// Appends `{"jsonrpc":"2.0","id":…,"result":…}`.
pub fn encode_result<T: Serialize>(out: &mut Vec<u8>, id: &Id, result: &T) {
    open_result(out, id);
    write_json(out, result);
    out.push(b'}');
}

/// Appends `{"jsonrpc":"2.0","id":…,"error":…}`.
pub fn encode_error(out: &mut Vec<u8>, id: &Id, refusal: &Refusal) {
    open_reply(out, id);
    out.extend_from_slice(br#","error":"#);
    write_json(out, &error_shown(refusal));
    out.push(b'}');
}

/// Appends a message without an id.
pub fn encode_notification<T: Serialize>(out: &mut Vec<u8>, method: &str, params: &T) {
    out.extend_from_slice(br#"{"jsonrpc":"2.0","method":""#);
    out.extend_from_slice(method.as_bytes());
    out.extend_from_slice(br#"","params":"#);
    write_json(out, params);
    out.push(b'}');
}

/// Appends the reply that tells an outcome. [`Outcome::Waiting`] and [`Outcome::Void`] are no answers; asserted.
pub fn encode_outcome(out: &mut Vec<u8>, id: &Id, outcome: &Outcome) {
    match outcome {
        Outcome::Done => Members::reply(out, id, |_| {}),
        Outcome::Opened { session, client, ttl_ms } => {
            encode_result(out, id, &result::Opened { session: *session, client: *client, ttl_ms: *ttl_ms });
        }
        // As an `Acquired`.
        Outcome::Granted { token, asks, op, lease_ms, again, lease_left_ms, hold_left_ms, atomic } => {
            Members::reply(out, id, |result| {
                result.is_true("granted");
                result.number("token", *token);
                result.keys(asks);
                result.number("op", *op);
                result.some_number("lease_ms", *lease_ms);
                result.some_number("hold_left_ms", *hold_left_ms);
                result.true_if("atomic", *atomic);
                result.true_if("again", *again);
                result.some_number("lease_left_ms", *lease_left_ms);
            });
        }
        Outcome::NotGranted(blocked) => encode_result(out, id, &not_granted(blocked)),
        Outcome::Cancelled => {
            encode_result(out, id, &Acquired { cancelled: Some(true), ..Acquired::default() });
        }
        Outcome::Released { op, writes } => {
            Members::reply(out, id, |result| {
                result.is_true("released");
                result.number("op", *op);
                result.some_number("writes", (*writes > 0).then_some(*writes));
            });
        }
        Outcome::Renewed { lease_left_ms } => {
            encode_result(out, id, &result::Renewed { lease_left_ms: *lease_left_ms });
        }
        Outcome::Set { version, staged } => {
            Members::reply(out, id, |result| {
                result.number("version", *version);
                result.true_if("staged", *staged);
            });
        }
        Outcome::Deleted { version, staged } => {
            let deleted = result::Deleted { deleted: version.is_some(), version: *version, staged: *staged };
            encode_result(out, id, &deleted);
        }
        Outcome::Appended { offset, length, staged } => {
            Members::reply(out, id, |result| {
                result.number("offset", *offset);
                result.number("length", *length);
                result.true_if("staged", *staged);
            });
        }
        Outcome::Offered { client } => {
            encode_result(out, id, &result::HandedOver { offered: client.is_some(), client: *client });
        }
        Outcome::Broken { op } => encode_result(out, id, &result::Broken { broken: true, op: *op }),
        Outcome::ReleaseAsked { deadline_ms } => {
            encode_result(out, id, &result::ReleaseAsked { asked: true, deadline_ms: *deadline_ms });
        }
        Outcome::Applied { version, staged } => {
            encode_result(out, id, &result::Applied { applied: true, version: *version, staged: *staged });
        }
        Outcome::FileChanged { length, generation } => {
            encode_result(out, id, &result::FileChanged { generation: *generation, length: *length });
        }
        Outcome::Cleaned { cleaned } => encode_result(out, id, &result::Cleaned { cleaned: *cleaned }),
        Outcome::Refused(refusal) => encode_error(out, id, refusal),
        Outcome::Waiting(_) | Outcome::Void => {
            panic!("{outcome:?} is no final answer and was to be sent as one")
        }
    }
}

/// A holder as results show it.
pub fn holder_shown(holder: &Holder) -> HolderShown {
    HolderShown {
        client: holder.client,
        name: holder.name.to_string(),
        owner: holder.owner.to_string(),
        label: holder.label.to_string(),
        mode: mode_shown(holder.mode),
        token: holder.token,
        held_ms: holder.held_ms,
        lease_left_ms: holder.lease_left_ms,
        hold_left_ms: None,
        asked: None,
        offered: None,
    }
}

/// The locks of a grant as results show them.
pub(crate) fn keys_shown(asks: &[Ask]) -> Vec<KeyShown> {
    asks.iter().map(|ask| KeyShown { key: ask.key.to_string(), mode: mode_shown(ask.mode) }).collect()
}

/// A mode as results show it.
pub(crate) fn mode_shown(mode: Mode) -> ModeShown {
    let word = |mode: &str| ModeShown { mode: mode.into(), slots: None, weight: None };
    match mode {
        Mode::Exclusive => word("exclusive"),
        Mode::Shared => word("shared"),
        Mode::Slot { slots, weight } => {
            ModeShown { slots: Some(slots), weight: (weight != 1).then_some(weight), ..word("slot") }
        }
    }
}

/// An event as results show it.
pub(crate) fn event_shown(event: WatchEventRef<'_>) -> EventShown {
    let shown = |what: &str| EventShown {
        op: event.op,
        event: what.into(),
        name: event.name.to_string(),
        ..EventShown::default()
    };
    let of = |what, token: u64, client: u64| EventShown {
        token: Some(token),
        client: Some(client),
        ..shown(what)
    };
    let file = |what, generation: u64| EventShown { generation: Some(generation), ..shown(what) };
    match event.what {
        What::LockGranted { token, client, mode } => {
            EventShown { mode: Some(mode_shown(*mode)), ..of("lock_granted", *token, *client) }
        }
        What::LockReleased { token, client } => of("lock_released", *token, *client),
        What::LockLost { token, client, reason } => {
            let reason = match reason {
                GrantEnd::Abandoned => "abandoned",
                GrantEnd::LeaseExpired => "lease_expired",
                GrantEnd::HeldTooLong => "held_too_long",
                GrantEnd::Broken => "broken",
                GrantEnd::TakenOver => "taken_over",
                GrantEnd::SessionExpired => "session_expired",
                GrantEnd::SessionClosed => "session_closed",
                GrantEnd::SessionKilled => "session_killed",
            };
            EventShown { reason: Some(reason.into()), ..of("lock_lost", *token, *client) }
        }
        What::LockConverted { token, before, client, mode } => EventShown {
            before: (before != token).then_some(*before),
            mode: Some(mode_shown(*mode)),
            ..of("lock_converted", *token, *client)
        },
        What::KeySet { version } => EventShown { version: Some(*version), ..shown("key_set") },
        What::KeyDeleted { version, reason } => {
            let reason = match reason {
                KeyEnd::Deleted => None,
                KeyEnd::Expired => Some("expired".into()),
                KeyEnd::SessionEnded => Some("session_ended".into()),
            };
            EventShown { version: Some(*version), reason, ..shown("key_deleted") }
        }
        What::FileAppended { generation, offset, length } => {
            EventShown { offset: Some(*offset), length: Some(*length), ..file("file_appended", *generation) }
        }
        What::FileDeleted { generation } => file("file_deleted", *generation),
        What::FileRotated { generation, to } => {
            EventShown { to: Some(to.to_string()), ..file("file_rotated", *generation) }
        }
        What::FileRepaired { generation, length } => {
            EventShown { length: Some(*length), ..file("file_repaired", *generation) }
        }
        What::FileFault { generation, reason } => {
            EventShown { reason: Some(reason.to_string()), ..file("file_fault", *generation) }
        }
    }
}

/// An earlier request as results show it.
pub(crate) fn ahead_shown(ahead: &Ahead) -> AheadShown {
    AheadShown {
        client: ahead.client,
        name: ahead.name.to_string(),
        owner: ahead.owner.to_string(),
        label: ahead.label.to_string(),
        mode: mode_shown(ahead.mode),
        converts: ahead.converts,
        waited_ms: ahead.waited_ms,
    }
}

/// Whether a page that has so many bytes and gets so many more still fits a frame. The first item always does.
pub fn page_bytes(so_far: usize, more: usize) -> bool {
    so_far == 0 || so_far + more <= REPLY_PAGE
}

fn not_granted(blocked: &Blocked) -> Acquired {
    Acquired {
        granted: Some(false),
        reason: Some(blocked.reason),
        position: (blocked.position > 0).then_some(blocked.position),
        holders: blocked.holders.iter().map(holder_shown).collect(),
        holders_total: Some(blocked.holders_total),
        key: blocked.key.as_ref().map(|key| key.to_string()),
        ahead: blocked.ahead.as_ref().map(ahead_shown),
        queue_total: (blocked.position > 0).then_some(blocked.queue_total),
        estimate_ms: blocked.estimate_ms,
        ..Acquired::default()
    }
}

fn error_shown(refusal: &Refusal) -> ErrorShown {
    let mut data = ErrorData {
        kind: refusal.kind.as_str().into(),
        is_final: refusal.is_final(),
        ..ErrorData::default()
    };
    match &refusal.detail {
        Detail::None => {}
        Detail::Again { retry_ms } => data.retry_ms = Some(*retry_ms),
        Detail::Limit { limit, max } | Detail::LimitAgain { limit, max } => {
            data.limit = Some(limit.clone());
            data.max = Some(*max);
        }
        Detail::Version { version } => data.version = Some(*version),
        Detail::Held { tokens } => data.tokens = tokens.clone(),
        Detail::Waits { wait } => data.wait = Some(*wait),
        Detail::Cycle { cycle, cycle_total } => {
            let shown = |step: &CycleStep| CycleStepShown {
                client: step.client,
                name: step.name.to_string(),
                owner: step.owner.to_string(),
                label: step.label.to_string(),
                key: step.key.to_string(),
                token: step.token,
            };
            data.cycle = cycle.iter().map(shown).collect();
            data.cycle_total = Some(*cycle_total);
        }
        Detail::Slots { slots } => data.slots = Some(*slots),
        Detail::VersionOf { key, version } => {
            data.key = Some(key.to_string());
            data.version = Some(*version);
        }
        Detail::Compacted { oldest } => data.oldest = Some(*oldest),
        Detail::Cookie { cookie } => data.cookie = Some(cookie.clone()),
    }
    ErrorShown { code: i64::from(refusal.kind.code()), message: refusal.message.clone(), data }
}

fn open_reply(out: &mut Vec<u8>, id: &Id) {
    out.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    out.extend_from_slice(id.as_json().as_bytes());
}

fn open_result(out: &mut Vec<u8>, id: &Id) {
    open_reply(out, id);
    out.extend_from_slice(br#","result":"#);
}

/// A result written member by member, as serde would write it and several times faster.
struct Members<'a> {
    out: &'a mut Vec<u8>,
    /// What stands before the next member.
    before: u8,
}

impl Members<'_> {
    /// Appends a reply whose result has these members.
    fn reply(out: &mut Vec<u8>, id: &Id, write: impl FnOnce(&mut Members<'_>)) {
        open_result(out, id);
        let mut members = Members { out, before: b'{' };
        write(&mut members);
        if members.before == b'{' {
            members.out.push(b'{');
        }
        out.extend_from_slice(b"}}");
    }

    /// The name of the next member.
    fn name(&mut self, name: &str) {
        self.out.push(self.before);
        self.before = b',';
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn number(&mut self, name: &str, number: u64) {
        self.name(name);
        write_number(self.out, number);
    }

    fn some_number(&mut self, name: &str, number: Option<u64>) {
        if let Some(number) = number {
            self.number(name, number);
        }
    }

    fn is_true(&mut self, name: &str) {
        self.name(name);
        self.out.extend_from_slice(b"true");
    }

    fn true_if(&mut self, name: &str, is: bool) {
        if is {
            self.is_true(name);
        }
    }

    fn keys(&mut self, asks: &[Ask]) {
        self.name("keys");
        for (nth, ask) in asks.iter().enumerate() {
            self.out.extend_from_slice(if nth == 0 { br#"[{"key":"# } else { br#",{"key":"# });
            write_text(self.out, &ask.key);
            match ask.mode {
                Mode::Exclusive => self.out.extend_from_slice(br#","mode":"exclusive"}"#),
                Mode::Shared => self.out.extend_from_slice(br#","mode":"shared"}"#),
                Mode::Slot { slots, weight } => {
                    self.out.extend_from_slice(br#","mode":"slot""#);
                    self.number("slots", slots.into());
                    self.some_number("weight", (weight != 1).then_some(weight.into()));
                    self.out.push(b'}');
                }
            }
        }
        self.out.push(b']');
    }
}
