//! Events: what a command did, as lines for people. A running server logs them at `debug` under the target [`TARGET`], and
//! what comes in at `trace`; `tenure state events` tells them from the journal of a stopped one.
//!
//! A line names the place in the log, the method, the client and the id of its request, what it is about, and how it ended.
//! Invariant: no value, no data of a file, no session id and no nonce is ever in it.

use crate::command::{Ask, Call, Command, EndReason, Request};
use crate::identity::{Op, SessionId, Token};
use crate::name::Name;
use crate::outcome::{Effect, LossReason, Outcome, Reason};
use crate::state::{Standing, State};
use crate::wire::Method;
use std::fmt::Write as _;

/// Under which name the lines are logged, so that they can be switched by themselves: `TENURE_LOG=info,tenure::event=debug`.
pub const TARGET: &str = "tenure::event";

/// How many locks of one session or grant a line names.
const LOCKS_MAX: usize = 8;

/// A command that is about to be applied: what it ends can still be looked up.
#[derive(Clone, Debug)]
pub struct Event {
    op: Op,
    what: String,
}

impl Event {
    /// Notes what a command is about, before it is applied.
    pub fn of(state: &State, op: Op, command: &Command) -> Event {
        let what = match command {
            Command::NewTerm { term, .. } => format!("new_term {term}"),
            Command::OpenSession { name, ttl_ms, .. } => format!("open_session {name:?}, TTL {ttl_ms} ms"),
            Command::EndSession { session, reason, .. } => ended(state, *session, *reason),
            Command::Tick => "tick".into(),
            Command::FileFault { file, reason, .. } => format!("file_fault {file:?} ({reason})"),
            Command::Request(request) => requested_call(state, request),
        };
        Event { op, what }
    }

    /// The lines, after it was applied: one for its outcome and one for whatever else it did to somebody.
    pub fn lines(&self, state: &State, outcome: &Outcome, effects: &[Effect]) -> Vec<String> {
        let op = self.op;
        let mut lines = vec![format!("op {op} {}: {}", self.what, told(outcome))];
        for effect in effects {
            match effect {
                Effect::Settled { session, id } => {
                    let settled = state.session(*session).map(|session| session.wait_standing(*id));
                    if let Some(Standing::Kept(outcome)) = settled {
                        let client = client(state, *session);
                        lines.push(format!("op {op} {client}, id {id}, after its wait: {}", told(outcome)));
                    }
                }
                Effect::Lost { session, loss } => {
                    let reason = match loss.reason {
                        LossReason::LeaseExpired => "its own lease ran out",
                        LossReason::HeldTooLong => "it was held for as long as it may be",
                        LossReason::Broken => "it was broken",
                        LossReason::TakenOver => "another session took it over",
                    };
                    let locks = names(loss.keys.iter());
                    let note = if loss.note.is_empty() { String::new() } else { format!(" ({})", loss.note) };
                    lines.push(format!(
                        "op {op} {}, token {} of {locks}: lost, {reason}{note}",
                        client(state, *session),
                        loss.token
                    ));
                }
                Effect::Asked { session, token } => {
                    let (client, under) = (client(state, *session), under(state, *token));
                    lines.push(format!("op {op} {client}{under}: is asked to release it"));
                }
                Effect::Offered { session, token } => {
                    let (client, under) = (client(state, *session), under(state, *token));
                    lines.push(format!("op {op} {client}{under}: may take it over"));
                }
                Effect::Opened { .. } | Effect::Ended { .. } | Effect::Renewed | Effect::File(_) => {}
            }
        }
        lines
    }
}

/// Who asks what in a logged request.
pub fn requested_call(state: &State, Request { session, id, call, .. }: &Request) -> String {
    format!("{}, id {id}: {}", client(state, *session), asked(state, *session, call))
}

/// What a request asks that came in, in few words.
pub fn requested(state: &State, session: Option<SessionId>, method: &Method) -> String {
    let what = match method {
        Method::Logged { id, call, .. } => {
            let call = session.map_or_else(String::new, |session| asked(state, session, call));
            format!("id {id}: {call}")
        }
        Method::RepairFile { id, file, token, .. } => format!("id {id}: repair_file {file:?}, token {token}"),
        Method::Ping => "ping".into(),
        Method::Status => "status".into(),
        Method::OpenSession { name, .. } => format!("open_session {name:?}"),
        Method::Heartbeat { .. } => "heartbeat".into(),
        Method::CloseSession => "close_session".into(),
        Method::KillSession { client } => format!("kill_session {client}"),
        Method::CleanupExpiredLocks => "cleanup_expired_locks".into(),
        Method::IsLocked { key } => format!("is_locked {key:?}"),
        Method::GetLockInfo { key, .. } => format!("get_lock_info {key:?}"),
        Method::ListLocks { page } => format!("list_locks {:?}", page.prefix),
        Method::ListGrants { page } => format!("list_grants {:?}", page.prefix),
        Method::ListWaits { page } => format!("list_waits {:?}", page.prefix),
        Method::ListContention { .. } => "list_contention".into(),
        Method::ListSessions { page } => format!("list_sessions {:?}", page.prefix),
        Method::ListFiles { page } => format!("list_files {:?}", page.prefix),
        Method::Get { key, .. } => format!("get {key:?}"),
        Method::Range { from, to, .. } => format!("range {from:?} to {to:?}"),
        Method::Prefix { page, .. } => format!("prefix {:?}", page.prefix),
        Method::ReadFile { file, offset, .. } => format!("read_file {file:?} from {offset}"),
        Method::FileInfo { file, .. } => format!("file_info {file:?}"),
        Method::Watch { ask } => format!("watch {:?}", ask.prefix),
    };
    match session {
        Some(session) => format!("{}, {what}", client(state, session)),
        None => what,
    }
}

/// A session by its public number.
fn client(state: &State, session: SessionId) -> String {
    match state.session(session) {
        Some(session) => format!("client {}", session.client),
        None => "an unknown client".into(),
    }
}

/// The end of a session, with what goes with it.
fn ended(state: &State, session: SessionId, reason: EndReason) -> String {
    let reason = match reason {
        EndReason::Expired => "no sign of life for its TTL",
        EndReason::Closed => "closed",
        EndReason::Killed => "killed by an operator",
    };
    let mut text = format!("end_session {} ({reason})", client(state, session));
    let grants = state.session(session).into_iter().flat_map(|session| session.grants());
    let asks = grants.filter_map(|token| state.live_grant(token)).flat_map(|grant| &grant.asks);
    let asks: Vec<&Ask> = asks.take(LOCKS_MAX + 1).collect();
    if !asks.is_empty() {
        let _ = write!(text, ", which held {}", locks(&asks));
    }
    text
}

fn asked(state: &State, session: SessionId, call: &Call) -> String {
    let under = |token: &Token| under(state, *token);
    let holder = |holder: &Option<SessionId>| match holder {
        Some(holder) if *holder != session => format!(", for {}", client(state, *holder)),
        Some(_) | None => String::new(),
    };
    match call {
        Call::Acquire { asks, owner, terms, .. } => {
            let owner = if owner.is_empty() { String::new() } else { format!(", owner {owner:?}") };
            let lease = terms.lease_ms.map_or(String::new(), |lease_ms| format!(", lease {lease_ms} ms"));
            format!("acquire_lock {}{owner}{lease}", locks(&asks.iter().collect::<Vec<_>>()))
        }
        Call::CancelWait { wait } => format!("cancel_wait {wait}"),
        Call::Release { token, holder: of } => format!("release_lock{}{}", under(token), holder(of)),
        Call::Abandon { token, holder: of } => format!("abandon{}{}", under(token), holder(of)),
        Call::RenewLease { token, holder: of, .. } => format!("renew_lease{}{}", under(token), holder(of)),
        Call::Set { key, token, holder: of, value, life, .. } => {
            let token = token.as_ref().map_or(String::new(), under);
            let ttl = life.ttl_ms.map_or(String::new(), |ttl_ms| format!(", TTL {ttl_ms} ms"));
            let bound = if life.bound { ", bound" } else { "" };
            format!("set {key:?}, {} bytes{ttl}{bound}{token}{}", value.len(), holder(of))
        }
        Call::Delete { key, token, holder: of, .. } => {
            format!("delete {key:?}{}{}", token.as_ref().map_or(String::new(), under), holder(of))
        }
        Call::AppendFile { file, data, token, holder: of } => {
            format!("append_file {file:?}, {} bytes{}{}", data.len(), under(token), holder(of))
        }
        Call::DeleteFile { file, token, holder: of } => {
            format!("delete_file {file:?}{}{}", under(token), holder(of))
        }
        Call::RotateFile { file, to, token, holder: of } => {
            format!("rotate_file {file:?} to {to:?}{}{}", under(token), holder(of))
        }
        Call::RepairFile { file, token, holder: of, .. } => {
            format!("repair_file {file:?}{}{}", under(token), holder(of))
        }
        Call::Convert { token, holder: of, asks, .. } => {
            let asks = locks(&asks.iter().collect::<Vec<_>>());
            format!("convert_lock {asks}{}{}", under(token), holder(of))
        }
        Call::HandOver { token, holder: of, client } => {
            let to = client.map_or("to nobody".into(), |client| format!("to client {client}"));
            format!("hand_over {to}{}{}", under(token), holder(of))
        }
        Call::TakeOver { token, holder: of, .. } => format!("take_over{}{}", under(token), holder(of)),
        Call::BreakLock { token, reason } => format!("break_lock{} ({reason})", under(token)),
        Call::AskRelease { token, reason, .. } => format!("ask_release{} ({reason})", under(token)),
        Call::Transaction { compare, apply, token, holder: of } => {
            let token = token.as_ref().map_or(String::new(), under);
            let keys = names(apply.iter().map(|change| &change.key));
            format!("transaction of {} compared, on {keys}{token}{}", compare.len(), holder(of))
        }
    }
}

/// A token, with its locks and owner while the grant is there.
fn under(state: &State, token: Token) -> String {
    let Some(grant) = state.live_grant(token) else { return format!(", token {token}") };
    let owner = if grant.owner.is_empty() { String::new() } else { format!(", owner {:?}", grant.owner) };
    format!(", token {token} of {}{owner}", locks(&grant.asks.iter().collect::<Vec<_>>()))
}

fn locks(asks: &[&Ask]) -> String {
    names(asks.iter().map(|ask| &ask.key))
}

fn names<'a>(names: impl Iterator<Item = &'a Name>) -> String {
    let mut shown: Vec<String> = names.take(LOCKS_MAX + 1).map(|name| format!("{name:?}")).collect();
    if shown.len() > LOCKS_MAX {
        shown[LOCKS_MAX] = "others".into();
    }
    shown.join(" and ")
}

/// The kind of an outcome, with the numbers that go with it.
fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done => "done".into(),
        Outcome::Opened { client, .. } => format!("client {client}"),
        Outcome::Granted { token, asks, again, .. } => {
            let again = if *again { ", as before" } else { "" };
            format!("granted token {token} of {}{again}", locks(&asks.iter().collect::<Vec<_>>()))
        }
        Outcome::Waiting(blocked) => format!("waits in place {}", blocked.position),
        Outcome::NotGranted(blocked) => {
            let reason = match blocked.reason {
                Reason::Held => "held",
                Reason::Queued => "queued",
                Reason::Timeout => "timeout",
                Reason::Cancelled => "cancelled",
                Reason::SessionEnded => "its session ended",
                Reason::Conversion => "a conversion waits",
                Reason::LockDelay => "lock-delay",
                Reason::GrantEnded => "its grant ended",
            };
            format!("not granted, {reason}")
        }
        Outcome::Cancelled => "cancelled".into(),
        Outcome::Released { writes: 0, .. } => "released".into(),
        Outcome::Released { writes, .. } => format!("released, with {writes} staged writes"),
        Outcome::Renewed { lease_left_ms } => format!("renewed, {lease_left_ms} ms left"),
        Outcome::Set { staged: true, .. }
        | Outcome::Deleted { staged: true, .. }
        | Outcome::Appended { staged: true, .. }
        | Outcome::Applied { staged: true, .. } => "staged".into(),
        Outcome::Set { version, .. } | Outcome::Applied { version, .. } => format!("version {version}"),
        Outcome::Deleted { version: Some(version), .. } => format!("deleted version {version}"),
        Outcome::Deleted { version: None, .. } => "was not there".into(),
        Outcome::Appended { offset, length, .. } => format!("at offset {offset}, length {length}"),
        Outcome::FileChanged { length, generation } => format!("length {length}, generation {generation}"),
        Outcome::Cleaned { cleaned } => format!("{cleaned} cleaned up"),
        Outcome::Refused(refusal) => format!("refused, {}", refusal.kind.as_str()),
        Outcome::Offered { client: Some(client) } => format!("offered to client {client}"),
        Outcome::Offered { client: None } => "offered to nobody".into(),
        Outcome::Broken { .. } => "broken".into(),
        Outcome::ReleaseAsked { deadline_ms: Some(ms) } => format!("asked, to be broken in {ms} ms"),
        Outcome::ReleaseAsked { deadline_ms: None } => "asked".into(),
        Outcome::Void => "no effect: a copy, or something that has ended".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Life, Mode, Patience, Terms};
    use crate::identity::Nonce;
    use crate::time::Time;
    use arcstr::ArcStr;
    use std::sync::Arc;

    /// Applies commands one after another and gives all their lines.
    fn life(commands: &[Command]) -> Vec<String> {
        let (mut state, mut lines) = (State::new(), Vec::new());
        for (op, command) in (1..).zip(commands) {
            let event = Event::of(&state, op, command);
            let mut effects = Vec::new();
            let outcome = state.apply(op, Time::from_millis(op), command, &mut effects);
            lines.extend(event.lines(&state, &outcome, &effects));
        }
        lines
    }

    fn request(session: u128, id: u64, call: Call) -> Command {
        Command::Request(Request { session: SessionId(session), id, ack: 0, got: Vec::new(), call })
    }

    #[test]
    fn a_line_tells_who_did_what_and_how_it_ended_and_nothing_secret() {
        let open = |number: u128, name: &str| Command::OpenSession {
            nonce: Nonce(0xabcdef << 64 | number),
            session: SessionId(0xfedcba98 << 96 | number),
            name: name.into(),
            label: String::new(),
            ttl_ms: 10_000,
        };
        let (a, b) = (0xfedcba98 << 96 | 1, 0xfedcba98 << 96 | 2);
        let jobs = Name::new("jobs").unwrap();
        let acquire = |wait, owner: &str| Call::Acquire {
            asks: Ask { key: jobs.clone(), mode: Mode::Exclusive }.into(),
            wait,
            owner: owner.into(),
            terms: Terms::default(),
        };
        let value: ArcStr = ArcStr::from("\"a secret value\"");
        let data: Arc<[u8]> = Arc::from(&b"secret data"[..]);
        let set = |token| Call::Set {
            key: jobs.clone(),
            value: value.clone(),
            if_version: None,
            life: Life::default(),
            token,
            holder: None,
        };
        let lines = life(&[
            open(1, "alice"),
            open(2, "bob"),
            request(a, 1, acquire(Patience::Try, "w1")),
            request(b, 1, acquire(Patience::Forever, "")),
            request(b, 2, set(None)),
            request(a, 2, set(Some(1))),
            request(a, 3, Call::AppendFile { file: jobs.clone(), data, token: 1, holder: None }),
            request(a, 4, Call::Release { token: 1, holder: None }),
            Command::EndSession { session: SessionId(b), term: 0, reason: EndReason::Expired },
        ]);
        let expected = [
            "op 1 open_session \"alice\", TTL 10000 ms: client 1",
            "op 2 open_session \"bob\", TTL 10000 ms: client 2",
            "op 3 client 1, id 1: acquire_lock \"jobs\", owner \"w1\": granted token 1 of \"jobs\"",
            "op 4 client 2, id 1: acquire_lock \"jobs\": waits in place 1",
            "op 5 client 2, id 2: set \"jobs\", 16 bytes: refused, guarded",
            "op 6 client 1, id 2: set \"jobs\", 16 bytes, token 1 of \"jobs\", owner \"w1\": version 6",
            "op 7 client 1, id 3: append_file \"jobs\", 11 bytes, token 1 of \"jobs\", owner \"w1\": at offset 0, length 11",
            "op 8 client 1, id 4: release_lock, token 1 of \"jobs\", owner \"w1\": released",
            "op 8 client 2, id 1, after its wait: granted token 2 of \"jobs\"",
            "op 9 end_session client 2 (no sign of life for its TTL), which held \"jobs\": done",
        ];
        assert_eq!(lines, expected);
        let all = lines.join("\n");
        assert!(!all.contains("secret") && !all.contains("fedcba98") && !all.contains("abcdef"), "{all}");
    }
}
