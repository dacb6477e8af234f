//! The wire: JSON-RPC text to requests, and replies to text. `docs/protocol.md` is the norm.
//!
//! Bytes become types once, here: what comes out of [`decode`] has every name checked, every number in its range and every
//! parameter known. Nothing is allocated from a length that a message claims.

mod common;
mod params;
mod plain;
mod reply;
mod result;

pub use params::{ChangeAsk, CompareAsk, Int, KeyAsk, KeyMode, Params, WaitMs};
pub(crate) use reply::{ahead_shown, event_shown, keys_shown, mode_shown};
pub use reply::{encode_error, encode_notification, encode_outcome, encode_result, holder_shown, page_bytes};
pub use result::*;

use crate::asks::Asks;
use crate::command::{Ask, Call, Change, Compare, Life, Mode, Patience, Terms};
use crate::datagram::Dropped;
use crate::identity::{INTEGER_MAX, Nonce, Position, SessionId, Token};
use crate::kind::{Kind, Refusal};
use crate::limits::{
    ASKS_MAX, BATCH_ELEMENTS_MAX, GOT_MAX, KEY_TTL_MAX_MS, LABEL_MAX, REASON_MAX, SLOTS_MAX, TRANSACTION_MAX,
    TTL_MAX_MS, TTL_MIN_MS, VALUE_DEPTH_MAX, WAIT_MAX_MS, WATCH_WAIT_MAX_MS,
};
use crate::name::{NAME_MAX, Name};
use arcstr::ArcStr;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use compact_str::{CompactString, ToCompactString};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// The version of the protocol, as in `status`.
pub const PROTOCOL: u64 = 1;

/// Most items, or bytes of a file, that one page gives.
pub const PAGE_LIMIT_MAX: u64 = 10_000;

/// Every method that this version knows by name, in the order of `docs/protocol.md`.
pub const METHODS: [&str; 38] = [
    "ping",
    "status",
    "open_session",
    "heartbeat",
    "close_session",
    "list_sessions",
    "kill_session",
    "acquire_lock",
    "cancel_wait",
    "release_lock",
    "abandon",
    "renew_lease",
    "convert_lock",
    "hand_over",
    "take_over",
    "ask_release",
    "break_lock",
    "is_locked",
    "get_lock_info",
    "list_locks",
    "list_grants",
    "list_waits",
    "list_contention",
    "cleanup_expired_locks",
    "get",
    "set",
    "delete",
    "transaction",
    "range",
    "prefix",
    "append_file",
    "read_file",
    "file_info",
    "list_files",
    "delete_file",
    "rotate_file",
    "repair_file",
    "watch",
];

/// The `id` of a request as its JSON text: what the reply echoes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(CompactString);

impl Id {
    /// The id of a reply to what had none that could be read.
    pub fn null() -> Id {
        Id(CompactString::const_new("null"))
    }

    /// The id of a logged request.
    pub fn number(id: u64) -> Id {
        Id(id.to_compact_string())
    }

    /// The JSON text.
    pub fn as_json(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A message: one request or a batch.
#[derive(Debug)]
pub struct Message {
    /// Its elements, in order.
    pub elements: Vec<Element>,
    /// Whether it was an array, so that replies come in arrays.
    pub batch: bool,
}

/// An element of a message: a request, or what is wrong with it.
#[derive(Debug)]
pub struct Element {
    /// What the reply echoes.
    pub id: Id,
    /// The proof of address that it carries.
    pub cookie: Option<String>,
    /// The request.
    pub request: Result<Request, Refusal>,
}

/// A request that is well formed.
#[derive(Clone, Debug)]
pub struct Request {
    /// The session that asks, if it named one.
    pub session: Option<SessionId>,
    /// Ids of waits whose replies the client has.
    pub got: Vec<u64>,
    /// What it asks.
    pub method: Method,
}

/// What a request asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// Something that changes the state, in a session, under an id.
    Logged {
        /// The id.
        id: u64,
        /// Ids below this are never sent again; 0 if it said nothing.
        ack: u64,
        /// What.
        call: Call,
    },
    /// `repair_file`: the file is looked at before the request is logged with what was found.
    RepairFile {
        /// The id.
        id: u64,
        /// Ids below this are never sent again; 0 if it said nothing.
        ack: u64,
        /// The file.
        file: Name,
        /// The grant.
        token: Token,
        /// Whose.
        holder: Option<SessionId>,
    },
    /// `ping`
    Ping,
    /// `status`
    Status,
    /// `open_session`
    OpenSession {
        /// Drawn by the client.
        nonce: Nonce,
        /// Its name for itself.
        name: String,
        /// A note for people.
        label: String,
        /// TTL in milliseconds; the server's default if absent.
        ttl_ms: Option<u64>,
    },
    /// `heartbeat`
    Heartbeat {
        /// Losses up to this `op` are known.
        after: u64,
    },
    /// `close_session`
    CloseSession,
    /// `kill_session`
    KillSession {
        /// The number of the session.
        client: u64,
    },
    /// `cleanup_expired_locks`
    CleanupExpiredLocks,
    /// `is_locked`
    IsLocked {
        /// The lock.
        key: Name,
    },
    /// `get_lock_info`
    GetLockInfo {
        /// The lock.
        key: Name,
        /// Which part of the queue.
        page: PageAsk,
    },
    /// `list_locks`
    ListLocks {
        /// Which.
        page: PageAsk,
    },
    /// `list_grants`
    ListGrants {
        /// Which.
        page: PageAsk,
    },
    /// `list_sessions`
    ListSessions {
        /// Which.
        page: PageAsk,
    },
    /// `list_files`
    ListFiles {
        /// Which.
        page: PageAsk,
    },
    /// `get`
    Get {
        /// The key.
        key: Name,
        /// On behalf of which grant.
        under: Under,
    },
    /// `range`
    Range {
        /// First key.
        from: String,
        /// Last key.
        to: String,
        /// Which part.
        page: PageAsk,
        /// On behalf of which grant.
        under: Under,
    },
    /// `prefix`
    Prefix {
        /// Which.
        page: PageAsk,
        /// On behalf of which grant.
        under: Under,
    },
    /// `read_file`
    ReadFile {
        /// The file.
        file: Name,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes at most.
        limit: Option<u64>,
        /// On behalf of which grant.
        under: Under,
    },
    /// `file_info`
    FileInfo {
        /// The file.
        file: Name,
        /// On behalf of which grant.
        under: Under,
    },
    /// `list_waits`
    ListWaits {
        /// Which.
        page: PageAsk,
    },
    /// `list_contention`
    ListContention {
        /// Which.
        page: PageAsk,
    },
    /// `watch`
    Watch {
        /// What, and from where.
        ask: WatchAsk,
    },
}

/// What a `watch` asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchAsk {
    /// What names begin with; empty for all.
    pub prefix: String,
    /// From where; from now, if absent.
    pub from: Option<Position>,
    /// How long to wait for something to happen, in milliseconds; 0 for not at all.
    pub wait_ms: u64,
    /// Most events.
    pub limit: Option<u64>,
}

/// The grant on whose behalf something is read, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Under {
    /// The grant.
    pub token: Option<Token>,
    /// Whose.
    pub holder: Option<SessionId>,
}

/// Which part of a list is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageAsk {
    /// What names begin with; empty for all.
    pub prefix: String,
    /// The last item of the page before, if this is not the first.
    pub cursor: Option<String>,
    /// Most items.
    pub limit: Option<u64>,
}

/// Reads a message.
///
/// # Errors
/// `Err` if it is no request at all and gets no answer. What is wrong with a request is in its element.
pub fn decode(message: &[u8]) -> Result<Message, Dropped> {
    decode_into(Vec::new(), message)
}

/// The same; where the common reader reads it, its elements are in `room`, which is empty and may have been used before.
///
/// # Errors
/// As [`decode`].
pub fn decode_into(room: Vec<Element>, message: &[u8]) -> Result<Message, Dropped> {
    match common::decode(room, message) {
        Some(message) => Ok(message),
        None => decode_any(message),
    }
}

/// The general reader, which is the norm: whatever [`decode`] makes of a message, this makes of it.
///
/// # Errors
/// As [`decode`].
pub fn decode_any(message: &[u8]) -> Result<Message, Dropped> {
    let first = message.iter().find(|byte| !byte.is_ascii_whitespace());
    let single = |element| Message { elements: vec![element], batch: false };
    let refused = |refusal| single(Element { id: Id::null(), cookie: None, request: Err(refusal) });
    let broken = |kind, text: String| refused(Refusal::new(kind, text));
    if first != Some(&b'[') {
        return match serde_json::from_slice::<&RawValue>(message) {
            Ok(raw) => decode_element(raw).map(single),
            Err(error) => Ok(broken(Kind::Parse, format!("the datagram is not JSON: {}", told(&error)))),
        };
    }
    let elements = match serde_json::from_slice::<Vec<&RawValue>>(message) {
        Ok(elements) => elements,
        Err(error) => return Ok(broken(Kind::Parse, format!("the datagram is not JSON: {}", told(&error)))),
    };
    if elements.is_empty() {
        return Ok(broken(Kind::InvalidRequest, "a batch must not be empty".into()));
    }
    if elements.len() > BATCH_ELEMENTS_MAX {
        let text =
            format!("the batch has {} elements; at most {BATCH_ELEMENTS_MAX} are allowed", elements.len());
        return Ok(refused(Refusal::limit("batch_elements", BATCH_ELEMENTS_MAX as u64, text)));
    }
    let elements: Vec<Element> = elements.into_iter().filter_map(|raw| decode_element(raw).ok()).collect();
    if elements.is_empty() {
        return Err(Dropped::NotARequest);
    }
    Ok(Message { elements, batch: true })
}

/// The members of a request object.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Envelope<'a> {
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

/// What tells a reply from a broken request, and an id to answer the latter under.
#[derive(Deserialize)]
struct Glimpse<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

fn decode_element(raw: &RawValue) -> Result<Element, Dropped> {
    let refused =
        |id, kind, text: String| Element { id, cookie: None, request: Err(Refusal::new(kind, text)) };
    let envelope = match serde_json::from_str::<Envelope<'_>>(raw.get()) {
        Ok(envelope) => envelope,
        Err(error) => {
            let glimpse = serde_json::from_str::<Glimpse<'_>>(raw.get()).ok();
            if let Some(Glimpse { method: None, result, error, .. }) = &glimpse
                && (result.is_some() || error.is_some())
            {
                return Err(Dropped::NotARequest);
            }
            let id = glimpse.and_then(|glimpse| glimpse.id).and_then(echo).unwrap_or_else(Id::null);
            return Ok(refused(
                id,
                Kind::InvalidRequest,
                format!("not a JSON-RPC 2.0 request: {}", told(&error)),
            ));
        }
    };
    let Some(id) = envelope.id.and_then(echo) else {
        let text = "a request needs an `id`: an integer from 0 to 2^53 - 1, or a string of at most 64 bytes; \
                    this server takes no notifications";
        return Ok(refused(Id::null(), Kind::InvalidRequest, text.into()));
    };
    if envelope.jsonrpc != "2.0" {
        let text = format!("`jsonrpc` must be \"2.0\", not {:?}", shorten(&envelope.jsonrpc));
        return Ok(refused(id, Kind::InvalidRequest, text));
    }
    let params = match envelope.params.map(|raw| (raw, serde_json::from_str::<Params>(raw.get()))) {
        None => Params::default(),
        Some((raw, _)) if !raw.get().starts_with('{') => {
            return Ok(refused(
                id,
                Kind::InvalidParams,
                "`params` must be an object: parameters go by name".into(),
            ));
        }
        Some((_, Err(error))) => {
            return Ok(refused(
                id,
                Kind::InvalidParams,
                format!("{}: {}", shorten(&envelope.method), told(&error)),
            ));
        }
        Some((_, Ok(params))) => params,
    };
    let cookie = params.cookie.clone();
    let request = read(&envelope.method, &id, params);
    Ok(Element { id, cookie, request })
}

/// The id as the reply echoes it, if it is one that this protocol allows.
fn echo(raw: &RawValue) -> Option<Id> {
    let text = raw.get();
    let allowed = match text.as_bytes().first()? {
        b'"' => text.len() <= 66,
        _ => text.parse::<u64>().is_ok_and(|number| number <= INTEGER_MAX),
    };
    allowed.then(|| Id(text.into()))
}

/// As much of a client's text as an error repeats.
fn shorten(text: &str) -> &str {
    match text.char_indices().nth(40) {
        Some((at, _)) => &text[..at],
        None => text,
    }
}

/// What serde says is wrong. It repeats a name that it does not know whole, which alone can be longer than a reply may be:
/// the middle of that is left out.
fn told(error: &serde_json::Error) -> String {
    /// Bytes kept of the beginning, and of the end, where all that would have been right is listed.
    const KEPT: (usize, usize) = (160, 1_000);
    let text = error.to_string();
    if text.len() <= KEPT.0 + KEPT.1 {
        return text;
    }
    let boundary = |at: usize| (at..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    format!("{} … {}", &text[..boundary(KEPT.0)], &text[boundary(text.len() - KEPT.1)..])
}

fn invalid(text: impl Into<String>) -> Refusal {
    Refusal::new(Kind::InvalidParams, text)
}

/// Reads the parameters of one method.
fn read(name: &str, id: &Id, params: Params) -> Result<Request, Refusal> {
    let reader = Reader { name, params: &params };
    let logged = |call| {
        let id = reader.logged_id(id)?;
        Ok(Method::Logged { id, ack: reader.ack(id)?, call })
    };
    let method = match name {
        "ping" => reader.only(&[])?.done(Method::Ping),
        "status" => reader.only(&[])?.done(Method::Status),
        "open_session" => {
            reader.only(&["name", "ttl_ms", "nonce", "label"])?;
            Ok(Method::OpenSession {
                nonce: reader.need("nonce", params.nonce)?,
                name: reader.note("name", &params.name)?,
                label: reader.note("label", &params.label)?,
                ttl_ms: reader.span("ttl_ms", params.ttl_ms)?,
            })
        }
        "heartbeat" => {
            reader.only(&["after"])?.session()?;
            Ok(Method::Heartbeat { after: params.after.map_or(0, |after| after.0) })
        }
        "close_session" => reader.only(&[])?.session()?.done(Method::CloseSession),
        "kill_session" => {
            Ok(Method::KillSession { client: reader.only(&["client"])?.need("client", params.client)?.0 })
        }
        "cleanup_expired_locks" => reader.only(&[])?.done(Method::CleanupExpiredLocks),
        "acquire_lock" => {
            reader.only(&[
                "key",
                "keys",
                "mode",
                "slots",
                "weight",
                "wait_ms",
                "lease_ms",
                "owner",
                "label",
                "atomic",
                "lock_delay_ms",
                "max_hold_ms",
            ])?;
            reader.session()?;
            logged(reader.acquire()?)
        }
        "cancel_wait" => {
            reader.only(&["wait"])?.session()?;
            let wait = reader.need("wait", params.wait)?.0;
            if wait == 0 || wait >= reader.logged_id(id)? {
                let text =
                    "`wait` is the id of an earlier acquire_lock: from 1, and below the id of this request";
                return Err(invalid(text));
            }
            logged(Call::CancelWait { wait })
        }
        "release_lock" | "abandon" => {
            reader.only(&["token", "holder"])?.session()?;
            let (token, holder) = (reader.token()?, params.holder);
            logged(match name {
                "release_lock" => Call::Release { token, holder },
                _ => Call::Abandon { token, holder },
            })
        }
        "renew_lease" => {
            reader.only(&["token", "lease_ms", "holder"])?.session()?;
            logged(Call::RenewLease {
                token: reader.token()?,
                holder: params.holder,
                lease_ms: reader.need("lease_ms", reader.span("lease_ms", params.lease_ms)?)?,
            })
        }
        "set" => {
            reader.only(&["key", "value", "if_version", "ttl_ms", "bound", "token", "holder"])?.session()?;
            logged(Call::Set {
                key: reader.key()?,
                value: reader.value()?,
                if_version: params.if_version.map(|version| version.0),
                life: reader.life(params.ttl_ms, params.bound)?,
                token: reader.under().token,
                holder: params.holder,
            })
        }
        "convert_lock" => {
            reader
                .only(&["token", "key", "keys", "mode", "slots", "weight", "wait_ms", "holder"])?
                .session()?;
            logged(Call::Convert {
                token: reader.token()?,
                holder: params.holder,
                asks: reader.asks()?,
                wait: reader.patience()?,
            })
        }
        "hand_over" => {
            reader.only(&["token", "client", "holder"])?.session()?;
            logged(Call::HandOver {
                token: reader.token()?,
                holder: params.holder,
                client: params.client.map(|client| client.0),
            })
        }
        "take_over" => {
            reader.only(&["token", "holder", "owner", "label"])?.session()?;
            logged(Call::TakeOver {
                token: reader.token()?,
                holder: params.holder,
                owner: reader.note("owner", &params.owner)?,
                label: reader.note("label", &params.label)?,
            })
        }
        "break_lock" => {
            reader.only(&["token", "reason"])?.session()?;
            logged(Call::BreakLock { token: reader.token()?, reason: reader.reason()? })
        }
        "ask_release" => {
            reader.only(&["token", "reason", "deadline_ms"])?.session()?;
            let deadline_ms = params.deadline_ms.map(|deadline| deadline.0);
            if deadline_ms.is_some_and(|ms| ms > TTL_MAX_MS) {
                let text = format!("`deadline_ms` goes up to {TTL_MAX_MS} milliseconds (24 h)");
                return Err(invalid(text));
            }
            logged(Call::AskRelease { token: reader.token()?, reason: reader.reason()?, deadline_ms })
        }
        "transaction" => {
            reader.only(&["compare", "apply", "token", "holder"])?.session()?;
            let (compare, apply) = (reader.compare()?, reader.changes()?);
            if compare.is_empty() && apply.is_empty() {
                return Err(invalid("a transaction names at least one key in `compare` or `apply`"));
            }
            logged(Call::Transaction { compare, apply, token: reader.under().token, holder: params.holder })
        }
        "delete" => {
            reader.only(&["key", "if_version", "token", "holder"])?.session()?;
            logged(Call::Delete {
                key: reader.key()?,
                if_version: params.if_version.map(|version| version.0),
                token: reader.under().token,
                holder: params.holder,
            })
        }
        "append_file" => {
            reader.only(&["file", "data", "data_b64", "token", "holder"])?.session()?;
            logged(Call::AppendFile {
                file: reader.file()?,
                data: reader.data()?,
                token: reader.token()?,
                holder: params.holder,
            })
        }
        "delete_file" => {
            reader.only(&["file", "token", "holder"])?.session()?;
            logged(Call::DeleteFile { file: reader.file()?, token: reader.token()?, holder: params.holder })
        }
        "rotate_file" => {
            reader.only(&["file", "to", "token", "holder"])?.session()?;
            logged(Call::RotateFile {
                file: reader.file()?,
                to: Name::file(reader.need("to", params.to.as_deref())?)?,
                token: reader.token()?,
                holder: params.holder,
            })
        }
        "repair_file" => {
            reader.only(&["file", "token", "holder"])?.session()?;
            let id = reader.logged_id(id)?;
            Ok(Method::RepairFile {
                id,
                ack: reader.ack(id)?,
                file: reader.file()?,
                token: reader.token()?,
                holder: params.holder,
            })
        }
        "is_locked" => {
            reader.only(&["key"])?;
            Ok(Method::IsLocked { key: reader.key()? })
        }
        "get_lock_info" => {
            reader.only(&["key", "cursor", "limit"])?;
            Ok(Method::GetLockInfo { key: reader.key()?, page: reader.page()? })
        }
        "list_locks" | "list_grants" | "list_waits" | "list_sessions" | "list_files" => {
            reader.only(&["prefix", "cursor", "limit"])?;
            let page = reader.page()?;
            Ok(match name {
                "list_locks" => Method::ListLocks { page },
                "list_grants" => Method::ListGrants { page },
                "list_waits" => Method::ListWaits { page },
                "list_sessions" => Method::ListSessions { page },
                _ => Method::ListFiles { page },
            })
        }
        "list_contention" => {
            reader.only(&["cursor", "limit"])?;
            Ok(Method::ListContention { page: reader.page()? })
        }
        "get" => {
            reader.only(&["key", "token", "holder"])?;
            Ok(Method::Get { key: reader.key()?, under: reader.under() })
        }
        "range" => {
            reader.only(&["from", "to", "cursor", "limit", "token", "holder"])?;
            Ok(Method::Range {
                from: reader.need("from", params.from.clone())?,
                to: reader.need("to", params.to.clone())?,
                page: reader.page()?,
                under: reader.under(),
            })
        }
        "prefix" => {
            reader.only(&["prefix", "cursor", "limit", "token", "holder"])?;
            reader.need("prefix", params.prefix.as_ref())?;
            Ok(Method::Prefix { page: reader.page()?, under: reader.under() })
        }
        "read_file" => {
            reader.only(&["file", "offset", "limit", "token", "holder"])?;
            Ok(Method::ReadFile {
                file: reader.file()?,
                offset: params.offset.map_or(0, |offset| offset.0),
                limit: params.limit.map(|limit| limit.0),
                under: reader.under(),
            })
        }
        "file_info" => {
            reader.only(&["file", "token", "holder"])?;
            Ok(Method::FileInfo { file: reader.file()?, under: reader.under() })
        }
        "watch" => {
            reader.only(&["prefix", "after", "cursor", "wait_ms", "limit"])?;
            Ok(Method::Watch { ask: reader.watch()? })
        }
        _ => Err(Refusal::new(
            Kind::UnknownMethod,
            format!("there is no method {:?}; docs/protocol.md lists them", shorten(name)),
        )),
    }?;
    debug_assert!(METHODS.contains(&name), "{name} is read but not listed in METHODS");
    Ok(Request { session: params.session, got: reader.got()?, method })
}

/// Reads the parameters of the method at hand, with errors that name both.
struct Reader<'a> {
    name: &'a str,
    params: &'a Params,
}

impl Reader<'_> {
    fn only(&self, takes: &[&str]) -> Result<&Self, Refusal> {
        self.params.only(self.name, takes)?;
        Ok(self)
    }

    fn done(&self, method: Method) -> Result<Method, Refusal> {
        Ok(method)
    }

    fn session(&self) -> Result<&Self, Refusal> {
        self.need("session", self.params.session)?;
        Ok(self)
    }

    fn need<T>(&self, name: &str, value: Option<T>) -> Result<T, Refusal> {
        value.ok_or_else(|| invalid(format!("{} needs the parameter `{name}`", self.name)))
    }

    fn logged_id(&self, id: &Id) -> Result<u64, Refusal> {
        id.as_json().parse::<u64>().ok().filter(|id| *id >= 1).ok_or_else(|| {
            let text = format!(
                "{} changes the state: its `id` must be an integer from 1, rising in the session",
                self.name
            );
            Refusal::new(Kind::InvalidRequest, text)
        })
    }

    fn ack(&self, id: u64) -> Result<u64, Refusal> {
        match self.params.ack {
            Some(Int(ack)) if ack > id => Err(invalid(format!(
                "`ack` is {ack}: it says that ids below it are never sent again, and this is {id}"
            ))),
            ack => Ok(ack.map_or(0, |ack| ack.0)),
        }
    }

    fn got(&self) -> Result<Vec<u64>, Refusal> {
        let got = self.params.got.as_deref().unwrap_or_default();
        if got.len() > GOT_MAX {
            return Err(invalid(format!("`got` names {} ids; at most {GOT_MAX} are allowed", got.len())));
        }
        Ok(got.iter().map(|id| id.0).collect())
    }

    fn key(&self) -> Result<Name, Refusal> {
        Name::new(self.need("key", self.params.key.as_deref())?)
    }

    fn file(&self) -> Result<Name, Refusal> {
        Name::file(self.need("file", self.params.file.as_deref())?)
    }

    fn token(&self) -> Result<Token, Refusal> {
        Ok(self.need("token", self.params.token)?.0)
    }

    fn under(&self) -> Under {
        Under { token: self.params.token.map(|token| token.0), holder: self.params.holder }
    }

    /// A text for people: bounded, and harmless where it is shown.
    fn note(&self, name: &str, text: &Option<String>) -> Result<String, Refusal> {
        let text = text.as_deref().unwrap_or_default();
        if text.len() > LABEL_MAX {
            return Err(invalid(format!(
                "`{name}` has {} bytes; at most {LABEL_MAX} are allowed",
                text.len()
            )));
        }
        if !text.is_empty() {
            Name::new(text).map_err(|refusal| invalid(format!("`{name}`: {}", refusal.message)))?;
        }
        Ok(text.to_owned())
    }

    /// A TTL or lease in milliseconds, inside its bounds.
    fn span(&self, name: &str, span: Option<Int>) -> Result<Option<u64>, Refusal> {
        match span {
            None => Ok(None),
            Some(Int(ms)) if (TTL_MIN_MS..=TTL_MAX_MS).contains(&ms) => Ok(Some(ms)),
            Some(Int(ms)) => Err(invalid(format!(
                "`{name}` is {ms}; it goes from {TTL_MIN_MS} to {TTL_MAX_MS} milliseconds (100 ms to 24 h)"
            ))),
        }
    }

    fn acquire(&self) -> Result<Call, Refusal> {
        let params = self.params;
        let lock_delay_ms = match params.lock_delay_ms {
            Some(Int(ms)) if ms > TTL_MAX_MS => {
                return Err(invalid(format!(
                    "`lock_delay_ms` is {ms}; it goes up to {TTL_MAX_MS} milliseconds (24 h)"
                )));
            }
            ms => ms.map_or(0, |ms| ms.0),
        };
        Ok(Call::Acquire {
            asks: self.asks()?,
            wait: self.patience()?,
            owner: self.note("owner", &params.owner)?,
            terms: Terms {
                label: self.note("label", &params.label)?.into(),
                lease_ms: self.span("lease_ms", params.lease_ms)?,
                atomic: params.atomic.unwrap_or(false),
                lock_delay_ms,
                max_hold_ms: self.span("max_hold_ms", params.max_hold_ms)?,
            },
        })
    }

    fn patience(&self) -> Result<Patience, Refusal> {
        match self.params.wait_ms {
            None | Some(WaitMs(Some(Int(0)))) => Ok(Patience::Try),
            Some(WaitMs(None)) => Ok(Patience::Forever),
            Some(WaitMs(Some(Int(ms)))) if ms <= WAIT_MAX_MS => Ok(Patience::Millis(ms)),
            Some(WaitMs(Some(Int(ms)))) => Err(invalid(format!(
                "`wait_ms` is {ms}; at most {WAIT_MAX_MS} (30 days) are allowed, null waits without limit"
            ))),
        }
    }

    /// The locks asked for: `key`, or `keys` with a mode each, sorted by name.
    fn asks(&self) -> Result<Asks, Refusal> {
        let params = self.params;
        let whole = (params.mode.as_deref(), params.slots, params.weight);
        let Some(keys) = &params.keys else {
            return Ok(Asks::from(Ask { key: self.key()?, mode: mode(whole)? }));
        };
        if params.key.is_some() {
            return Err(invalid(format!("{} takes `key` or `keys`, not both", self.name)));
        }
        if keys.is_empty() || keys.len() > ASKS_MAX {
            let text = format!("`keys` names {} locks; it goes from 1 to {ASKS_MAX}", keys.len());
            return Err(match keys.len() {
                0 => invalid(text),
                _ => Refusal::limit("keys", ASKS_MAX as u64, text),
            });
        }
        let mut asks = Vec::with_capacity(keys.len());
        for ask in keys {
            asks.push(match ask {
                KeyAsk::Name(key) => Ask { key: Name::new(key)?, mode: mode(whole)? },
                KeyAsk::Mode(KeyMode { key, mode: None, slots: None, weight: None }) => {
                    Ask { key: Name::new(key)?, mode: mode(whole)? }
                }
                KeyAsk::Mode(KeyMode { key, mode: own, slots, weight }) => {
                    Ask { key: Name::new(key)?, mode: mode((own.as_deref(), *slots, *weight))? }
                }
            });
        }
        asks.sort();
        match asks.windows(2).find(|pair| pair[0].key == pair[1].key) {
            None => Ok(asks.into()),
            Some(pair) => Err(invalid(format!("`keys` names {:?} twice", pair[0].key))),
        }
    }

    /// How long a key is to live.
    fn life(&self, ttl_ms: Option<Int>, bound: Option<bool>) -> Result<Life, Refusal> {
        match ttl_ms {
            Some(Int(ms)) if !(TTL_MIN_MS..=KEY_TTL_MAX_MS).contains(&ms) => Err(invalid(format!(
                "`ttl_ms` is {ms}; for a key it goes from {TTL_MIN_MS} to {KEY_TTL_MAX_MS} milliseconds (100 ms to 365 days)"
            ))),
            ttl_ms => Ok(Life { ttl_ms: ttl_ms.map(|ms| ms.0), bound: bound.unwrap_or(false) }),
        }
    }

    /// Why somebody's grant is ended: a sentence for its holder and for the log.
    fn reason(&self) -> Result<String, Refusal> {
        let reason = self.need("reason", self.params.reason.as_deref())?;
        if reason.is_empty() || reason.len() > REASON_MAX {
            return Err(invalid(format!(
                "`reason` has {} bytes; it goes from 1 to {REASON_MAX}",
                reason.len()
            )));
        }
        match reason.chars().any(char::is_control) {
            true => Err(invalid("`reason` has a control character, which is not allowed")),
            false => Ok(reason.to_owned()),
        }
    }

    fn compare(&self) -> Result<Vec<Compare>, Refusal> {
        let asked = self.params.compare.as_deref().unwrap_or_default();
        within("compare", asked.len())?;
        let mut compare = Vec::with_capacity(asked.len());
        for CompareAsk { key, version } in asked {
            compare.push(Compare { key: Name::new(key)?, version: version.0 });
        }
        compare.sort_by(|a, b| a.key.cmp(&b.key));
        match compare.windows(2).find(|pair| pair[0].key == pair[1].key) {
            None => Ok(compare),
            Some(pair) => Err(invalid(format!("`compare` names {:?} twice", pair[0].key))),
        }
    }

    fn changes(&self) -> Result<Vec<Change>, Refusal> {
        let asked = self.params.apply.as_deref().unwrap_or_default();
        within("apply", asked.len())?;
        let mut changes = Vec::with_capacity(asked.len());
        for ChangeAsk { key, value, delete, ttl_ms, bound } in asked {
            let value = match (value, delete.unwrap_or(false)) {
                (Some(value), false) => Some(checked(value)?),
                (None, true) if ttl_ms.is_none() && bound.is_none() => None,
                _ => {
                    let text = format!(
                        "an element of `apply` has a `value`, and with it maybe `ttl_ms` and `bound`, or `delete: true` \
                         alone; that of {:?} has neither or both",
                        shorten(key)
                    );
                    return Err(invalid(text));
                }
            };
            changes.push(Change { key: Name::new(key)?, value, life: self.life(*ttl_ms, *bound)? });
        }
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        match changes.windows(2).find(|pair| pair[0].key == pair[1].key) {
            None => Ok(changes),
            Some(pair) => Err(invalid(format!("`apply` names {:?} twice", pair[0].key))),
        }
    }

    fn value(&self) -> Result<ArcStr, Refusal> {
        checked(self.need("value", self.params.value.as_ref())?)
    }

    fn data(&self) -> Result<Arc<[u8]>, Refusal> {
        match (&self.params.data, &self.params.data_b64) {
            (Some(text), None) => Ok(Arc::from(text.as_bytes())),
            (None, Some(text)) => match STANDARD.decode(text) {
                Ok(bytes) => Ok(Arc::from(bytes)),
                Err(error) => Err(invalid(format!("`data_b64` is not base64: {error}"))),
            },
            (None, None) => Err(invalid("append_file needs the parameter `data` or `data_b64`")),
            (Some(_), Some(_)) => Err(invalid("append_file takes `data` or `data_b64`, not both")),
        }
    }

    fn watch(&self) -> Result<WatchAsk, Refusal> {
        let PageAsk { prefix, cursor, limit } = self.page()?;
        let from = match (cursor, self.params.after) {
            (Some(_), Some(_)) => return Err(invalid("watch takes `after` or `cursor`, not both")),
            (Some(cursor), None) => Some(cursor.parse().map_err(|_| bad_cursor())?),
            (None, after) => after.map(|after| Position::behind(after.0)),
        };
        let wait_ms = match self.params.wait_ms {
            None => 0,
            Some(WaitMs(Some(Int(ms)))) if ms <= WATCH_WAIT_MAX_MS => ms,
            Some(WaitMs(_)) => {
                return Err(invalid(format!(
                    "`wait_ms` of watch goes from 0 to {WATCH_WAIT_MAX_MS} (60 s); ask again to wait longer"
                )));
            }
        };
        if prefix.len() > NAME_MAX {
            let text = format!("`prefix` has {} bytes, and no name has more than {NAME_MAX}", prefix.len());
            return Err(invalid(text));
        }
        Ok(WatchAsk { prefix, from, wait_ms, limit })
    }

    fn page(&self) -> Result<PageAsk, Refusal> {
        let limit = match self.params.limit {
            Some(Int(limit)) if limit == 0 || limit > PAGE_LIMIT_MAX => {
                return Err(invalid(format!("`limit` is {limit}; it goes from 1 to {PAGE_LIMIT_MAX}")));
            }
            limit => limit.map(|limit| limit.0),
        };
        let cursor = self.params.cursor.as_ref().map(|cursor| decode_cursor(cursor)).transpose()?;
        Ok(PageAsk { prefix: self.params.prefix.clone().unwrap_or_default(), cursor, limit })
    }
}

/// How a lock is asked for, from the mode, the slots and the weight that were given.
fn mode(given: (Option<&str>, Option<Int>, Option<Int>)) -> Result<Mode, Refusal> {
    match given {
        (None | Some("exclusive"), None, None) => Ok(Mode::Exclusive),
        (Some("shared"), None, None) => Ok(Mode::Shared),
        (None | Some("slot"), Some(Int(slots)), weight) => {
            let (weight, max) = (weight.map_or(1, |weight| weight.0), u64::from(SLOTS_MAX));
            if slots == 0 || slots > max {
                return Err(invalid(format!("`slots` is {slots}; it goes from 1 to {max}")));
            }
            if weight == 0 || weight > slots {
                return Err(invalid(format!("`weight` is {weight}; it goes from 1 to the {slots} slots")));
            }
            Ok(Mode::Slot { slots: slots as u32, weight: weight as u32 })
        }
        (Some("slot"), None, _) => Err(invalid("`mode` slot needs `slots`: how many the lock has")),
        (Some("exclusive" | "shared"), ..) => Err(invalid("`slots` and `weight` go with `mode` slot only")),
        (None, None, Some(_)) => Err(invalid("`weight` goes with `slots`: how many the lock has")),
        (Some(mode), ..) => {
            Err(invalid(format!("`mode` is {:?}; it is exclusive, shared or slot", shorten(mode))))
        }
    }
}

/// The text of a value, if it is not nested too deeply.
fn checked(value: &RawValue) -> Result<ArcStr, Refusal> {
    let text = value.get();
    if depth(text) > VALUE_DEPTH_MAX {
        let text = format!("the value is nested deeper than {VALUE_DEPTH_MAX} arrays and objects");
        return Err(Refusal::new(Kind::TooLarge, text));
    }
    Ok(ArcStr::from(text))
}

/// Refuses a transaction that names too many keys.
fn within(name: &str, count: usize) -> Result<(), Refusal> {
    if count <= TRANSACTION_MAX {
        return Ok(());
    }
    let text = format!("`{name}` names {count} keys; at most {TRANSACTION_MAX} are allowed");
    Err(Refusal::limit("transaction", TRANSACTION_MAX as u64, text))
}

/// Makes the cursor that stands behind an item. Opaque to clients; lives as long as the state has an order.
pub fn encode_cursor(last: &str) -> String {
    URL_SAFE_NO_PAD.encode(last)
}

fn decode_cursor(cursor: &str) -> Result<String, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(bad_cursor)
}

fn bad_cursor() -> Refusal {
    invalid("`cursor` is none that this server gave: repeat the list from its beginning")
}

/// How deep the arrays and objects of a JSON text are nested. The text is known to be JSON.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in text.bytes() {
        match (in_string, escaped, byte) {
            (true, true, _) => escaped = false,
            (true, false, b'\\') => escaped = true,
            (true, false, b'"') => in_string = false,
            (true, false, _) => {}
            (false, _, b'"') => in_string = true,
            (false, _, b'[' | b'{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, _, b']' | b'}') => depth = depth.saturating_sub(1),
            (false, _, _) => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests;
