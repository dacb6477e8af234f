//! Datagrams: whatever comes is dropped, refused or read; what is read says what was written; and what is written again
//! is read as the same.
//!
//! The checks beside that come from a general reader of JSON, which knows nothing of the protocol.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::value::RawValue;
use tenure::command::{Ask, Call, Life, Patience};
use tenure::datagram::{self, Opened, TRAILER};
use tenure::limits::{DATAGRAM_MAX, REPLY_MAX};
use tenure::wire::{
    self, ChangeAsk, CompareAsk, Element, Int, KeyAsk, KeyMode, METHODS, Method, PageAsk, Params, Request,
    Under, WaitMs, encode_cursor,
};

/// Takes bytes as a datagram, of no more bytes than one can have.
pub(crate) fn run(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(DATAGRAM_MAX)];
    let opened = match datagram::open(bytes) {
        Ok(opened) => opened,
        Err(_) => return,
    };
    seal(bytes, opened);
    let read = wire::decode(opened.message);
    // The common requests have a reader of their own, which must say what the general one says.
    assert_eq!(format!("{read:?}"), format!("{:?}", wire::decode_any(opened.message)));
    let Ok(message) = read else { return };
    let json = serde_json::from_slice::<Value>(opened.message).ok();
    let values: Option<Vec<Value>> = json.map(|json| match json {
        Value::Array(values) if message.batch => values,
        json => vec![json],
    });
    // Elements that are replies are left out of a batch: then nobody can say which value is which.
    let values = values.filter(|values| values.len() == message.elements.len());
    for (index, element) in message.elements.iter().enumerate() {
        answered(element);
        let Ok(request) = &element.request else { continue };
        if let Some(values) = &values {
            says(element, request, &values[index]);
        }
        round_trip(element, request);
    }
}

/// What was taken as sealed has the right checksum, and sealing is undone by opening.
fn seal(bytes: &[u8], opened: Opened<'_>) {
    let trimmed = bytes.trim_ascii_end();
    if opened.sealed {
        let trailer = format!("\n{:08x}", crc32c::crc32c(opened.message));
        assert!(
            trimmed[trimmed.len() - TRAILER..].eq_ignore_ascii_case(trailer.as_bytes()),
            "a wrong trailer was taken"
        );
    }
    let mut sealed = opened.message.to_vec();
    datagram::seal(&mut sealed);
    assert_eq!(datagram::open(&sealed), Ok(Opened { message: opened.message, sealed: true }));
}

/// A refusal fits a datagram, is JSON, and is no request: two servers do not talk for ever.
fn answered(element: &Element) {
    let Err(refusal) = &element.request else { return };
    let mut out = Vec::new();
    wire::encode_error(&mut out, &element.id, refusal);
    assert!(out.len() <= REPLY_MAX, "a refusal of {} bytes", out.len());
    let told: Value = serde_json::from_slice(&out).expect("a reply is JSON");
    assert_eq!(told["error"]["data"]["kind"], refusal.kind.as_str());
    assert!(wire::decode(&out).is_err(), "a reply passes for a request");
}

/// A general reader of JSON finds the same in the message.
fn says(element: &Element, request: &Request, value: &Value) {
    let known = ["jsonrpc", "id", "method", "params"];
    let members = value.as_object().expect("a request is an object");
    assert!(members.keys().all(|key| known.contains(&key.as_str())), "{value}");
    assert_eq!(value["jsonrpc"], "2.0");
    assert_eq!(serde_json::from_str::<Value>(element.id.as_json()).ok().as_ref(), Some(&value["id"]));
    assert!(METHODS.contains(&value["method"].as_str().expect("a method is text")), "{value}");
    let none = Value::Null;
    let params = value.get("params").unwrap_or(&none);
    let session = request.session.map(|session| session.to_string());
    // Ids are read in both cases.
    let given = params.get("session").and_then(Value::as_str).map(str::to_ascii_lowercase);
    assert_eq!(given, session);
    assert_eq!(params.get("cookie").and_then(Value::as_str), element.cookie.as_deref());
    let got: Vec<u64> =
        params.get("got").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_u64).collect();
    assert_eq!(got, request.got);
}

/// The request written again is read as the same.
fn round_trip(element: &Element, request: &Request) {
    let (method, mut params) = written(&request.method);
    params.session = request.session;
    params.cookie = element.cookie.clone();
    params.got = (!request.got.is_empty()).then(|| request.got.iter().map(|id| Int(*id)).collect());
    if let Method::Logged { ack, .. } | Method::RepairFile { ack, .. } = request.method {
        params.ack = Some(Int(ack));
    }
    let params = serde_json::to_string(&params).expect("parameters are plain data");
    let text =
        format!(r#"{{"params":{params},"method":"{method}","id":{},"jsonrpc":"2.0"}}"#, element.id.as_json());
    let again = wire::decode(text.as_bytes()).expect("a request is one again");
    let again = &again.elements[0];
    let read = again.request.as_ref().unwrap_or_else(|refusal| panic!("{text} is refused: {refusal:?}"));
    assert_eq!((&again.id, &again.cookie), (&element.id, &element.cookie), "{text}");
    assert_eq!(
        (&read.session, &read.got, &read.method),
        (&request.session, &request.got, &request.method),
        "{text}"
    );
}

fn int(number: u64) -> Option<Int> {
    Some(Int(number))
}

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).expect("a value is JSON")
}

fn asked(asks: &[Ask]) -> Option<Vec<KeyAsk>> {
    Some(asks.iter().map(|ask| KeyAsk::Mode(KeyMode::new(ask.key.to_string(), ask.mode))).collect())
}

fn patience(wait: Patience) -> Option<WaitMs> {
    match wait {
        Patience::Try => None,
        Patience::Millis(ms) => Some(WaitMs(int(ms))),
        Patience::Forever => Some(WaitMs(None)),
    }
}

fn life(params: &mut Params, life: Life) {
    params.ttl_ms = life.ttl_ms.map(Int);
    params.bound = Some(life.bound);
}

fn page(params: &mut Params, page: &PageAsk) {
    if !page.prefix.is_empty() {
        params.prefix = Some(page.prefix.clone());
    }
    params.cursor = page.cursor.as_deref().map(encode_cursor);
    params.limit = page.limit.map(Int);
}

fn under(params: &mut Params, under: Under) {
    params.token = under.token.map(Int);
    params.holder = under.holder;
}

/// The name of the method, and its parameters.
fn written(method: &Method) -> (&'static str, Params) {
    let mut params = Params::default();
    let name = match method {
        Method::Logged { call, .. } => return written_call(call),
        Method::RepairFile { file, token, holder, .. } => {
            (params.file, params.token, params.holder) = (Some(file.to_string()), int(*token), *holder);
            "repair_file"
        }
        Method::Ping => "ping",
        Method::Status => "status",
        Method::OpenSession { nonce, name, label, ttl_ms } => {
            (params.nonce, params.ttl_ms) = (Some(*nonce), ttl_ms.map(Int));
            (params.name, params.label) = (Some(name.clone()), Some(label.clone()));
            "open_session"
        }
        Method::Heartbeat { after } => {
            params.after = int(*after);
            "heartbeat"
        }
        Method::CloseSession => "close_session",
        Method::KillSession { client } => {
            params.client = int(*client);
            "kill_session"
        }
        Method::CleanupExpiredLocks => "cleanup_expired_locks",
        Method::IsLocked { key } => {
            params.key = Some(key.to_string());
            "is_locked"
        }
        Method::GetLockInfo { key, page: ask } => {
            params.key = Some(key.to_string());
            page(&mut params, ask);
            "get_lock_info"
        }
        Method::ListLocks { page: ask } => {
            page(&mut params, ask);
            "list_locks"
        }
        Method::ListGrants { page: ask } => {
            page(&mut params, ask);
            "list_grants"
        }
        Method::ListSessions { page: ask } => {
            page(&mut params, ask);
            "list_sessions"
        }
        Method::ListFiles { page: ask } => {
            page(&mut params, ask);
            "list_files"
        }
        Method::ListWaits { page: ask } => {
            page(&mut params, ask);
            "list_waits"
        }
        Method::ListContention { page: ask } => {
            page(&mut params, ask);
            "list_contention"
        }
        Method::Get { key, under: grant } => {
            params.key = Some(key.to_string());
            under(&mut params, *grant);
            "get"
        }
        Method::Range { from, to, page: ask, under: grant } => {
            (params.from, params.to) = (Some(from.clone()), Some(to.clone()));
            page(&mut params, ask);
            under(&mut params, *grant);
            "range"
        }
        Method::Prefix { page: ask, under: grant } => {
            page(&mut params, ask);
            params.prefix = Some(ask.prefix.clone());
            under(&mut params, *grant);
            "prefix"
        }
        Method::ReadFile { file, offset, limit, under: grant } => {
            (params.file, params.offset, params.limit) =
                (Some(file.to_string()), int(*offset), limit.map(Int));
            under(&mut params, *grant);
            "read_file"
        }
        Method::FileInfo { file, under: grant } => {
            params.file = Some(file.to_string());
            under(&mut params, *grant);
            "file_info"
        }
        Method::Watch { ask } => {
            params.prefix = Some(ask.prefix.clone());
            params.cursor = ask.from.map(|from| encode_cursor(&from.to_string()));
            (params.wait_ms, params.limit) = (Some(WaitMs(int(ask.wait_ms))), ask.limit.map(Int));
            "watch"
        }
    };
    (name, params)
}

fn written_call(call: &Call) -> (&'static str, Params) {
    let mut params = Params::default();
    let mut grant = |token: u64, holder| under(&mut params, Under { token: Some(token), holder });
    let name = match call {
        Call::Acquire { asks, wait, owner, terms } => {
            (params.keys, params.wait_ms) = (asked(asks), patience(*wait));
            (params.owner, params.label) = (Some(owner.clone()), Some(terms.label.to_string()));
            (params.lease_ms, params.max_hold_ms) = (terms.lease_ms.map(Int), terms.max_hold_ms.map(Int));
            (params.atomic, params.lock_delay_ms) = (Some(terms.atomic), int(terms.lock_delay_ms));
            "acquire_lock"
        }
        Call::CancelWait { wait } => {
            params.wait = int(*wait);
            "cancel_wait"
        }
        Call::Release { token, holder } => {
            grant(*token, *holder);
            "release_lock"
        }
        Call::Abandon { token, holder } => {
            grant(*token, *holder);
            "abandon"
        }
        Call::RenewLease { token, holder, lease_ms } => {
            grant(*token, *holder);
            params.lease_ms = int(*lease_ms);
            "renew_lease"
        }
        Call::Set { key, value, if_version, life: lives, token, holder } => {
            under(&mut params, Under { token: *token, holder: *holder });
            (params.key, params.value) = (Some(key.to_string()), Some(raw(value)));
            params.if_version = if_version.map(Int);
            life(&mut params, *lives);
            "set"
        }
        Call::Delete { key, if_version, token, holder } => {
            under(&mut params, Under { token: *token, holder: *holder });
            (params.key, params.if_version) = (Some(key.to_string()), if_version.map(Int));
            "delete"
        }
        Call::AppendFile { file, data, token, holder } => {
            grant(*token, *holder);
            (params.file, params.data_b64) = (Some(file.to_string()), Some(STANDARD.encode(data)));
            "append_file"
        }
        Call::DeleteFile { file, token, holder } => {
            grant(*token, *holder);
            params.file = Some(file.to_string());
            "delete_file"
        }
        Call::RotateFile { file, to, token, holder } => {
            grant(*token, *holder);
            (params.file, params.to) = (Some(file.to_string()), Some(to.to_string()));
            "rotate_file"
        }
        // Read as `Method::RepairFile`, since it is logged with what was found.
        Call::RepairFile { .. } => panic!("no request is read as {call:?}"),
        Call::Convert { token, holder, asks, wait } => {
            grant(*token, *holder);
            (params.keys, params.wait_ms) = (asked(asks), patience(*wait));
            "convert_lock"
        }
        Call::HandOver { token, holder, client } => {
            grant(*token, *holder);
            params.client = client.map(Int);
            "hand_over"
        }
        Call::TakeOver { token, holder, owner, label } => {
            grant(*token, *holder);
            (params.owner, params.label) = (Some(owner.to_string()), Some(label.to_string()));
            "take_over"
        }
        Call::BreakLock { token, reason } => {
            (params.token, params.reason) = (int(*token), Some(reason.to_string()));
            "break_lock"
        }
        Call::AskRelease { token, reason, deadline_ms } => {
            (params.token, params.reason) = (int(*token), Some(reason.to_string()));
            params.deadline_ms = deadline_ms.map(Int);
            "ask_release"
        }
        Call::Transaction { compare, apply, token, holder } => {
            under(&mut params, Under { token: *token, holder: *holder });
            let compare =
                compare.iter().map(|one| CompareAsk { key: one.key.to_string(), version: Int(one.version) });
            params.compare = Some(compare.collect());
            let apply = apply.iter().map(|change| match &change.value {
                None => ChangeAsk { key: change.key.to_string(), delete: Some(true), ..ChangeAsk::default() },
                Some(value) => ChangeAsk {
                    key: change.key.to_string(),
                    value: Some(raw(value)),
                    ttl_ms: change.life.ttl_ms.map(Int),
                    bound: Some(change.life.bound),
                    ..ChangeAsk::default()
                },
            });
            params.apply = Some(apply.collect());
            "transaction"
        }
    };
    (name, params)
}
