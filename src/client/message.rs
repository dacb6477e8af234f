//! Requests to text, and what comes back to types: leniently, since servers may say more than this library knows.

use crate::datagram;
use crate::identity::SessionId;
use crate::limits::DATAGRAM_MAX;
use crate::wire::{AskedShown, ErrorData, ErrorShown, KeyShown, ModeShown, OfferedShown, Params, Pending};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// What a request with an address that is not proven yet is filled up to: the server may answer three times as much, and
/// its `verify` has to fit.
const UNPROVEN_BYTES: usize = 192;

/// The id of a request. Only logged ones have numbers on the wire, so that no answer to anything else is taken for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tag {
    /// Changes the state.
    Logged(u64),
    /// Will be [`Tag::Logged`]: it is held back behind another request and gets its number when that is answered. So the
    /// server never waits, with all room for replies used up, for a number that waits here itself.
    Held(u64),
    /// Changes nothing, or may be done again without harm.
    Read(u64),
    /// `open_session`
    Open(u64),
    /// `close_session`
    Close(u64),
    /// `heartbeat`
    Beat(u64),
}

impl Tag {
    pub(super) fn number(self) -> u64 {
        match self {
            Tag::Logged(n) | Tag::Held(n) | Tag::Read(n) | Tag::Open(n) | Tag::Close(n) | Tag::Beat(n) => n,
        }
    }

    fn parse(json: &str) -> Option<Tag> {
        if let Ok(number) = json.parse() {
            return Some(Tag::Logged(number));
        }
        let text = json.strip_prefix('"')?.strip_suffix('"')?;
        let (letter, digits) = text.split_at_checked(1)?;
        let number = digits.parse().ok()?;
        match letter {
            "r" => Some(Tag::Read(number)),
            "o" => Some(Tag::Open(number)),
            "c" => Some(Tag::Close(number)),
            "h" => Some(Tag::Beat(number)),
            _ => None,
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tag::Logged(number) => write!(f, "{number}"),
            Tag::Held(number) => write!(f, "held{number}"),
            Tag::Read(number) => write!(f, "r{number}"),
            Tag::Open(number) => write!(f, "o{number}"),
            Tag::Close(number) => write!(f, "c{number}"),
            Tag::Beat(number) => write!(f, "h{number}"),
        }
    }
}

impl Serialize for Tag {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Tag::Logged(number) => serializer.serialize_u64(*number),
            Tag::Read(_) | Tag::Open(_) | Tag::Close(_) | Tag::Beat(_) => serializer.collect_str(self),
            Tag::Held(_) => unreachable!("{self} is sent without a number"),
        }
    }
}

#[derive(Serialize)]
struct Envelope<'a> {
    jsonrpc: &'static str,
    id: Tag,
    method: &'a str,
    params: &'a Params,
}

/// A request as a datagram. Without room for `got` it goes without: a later one says it.
pub(super) fn encode(tag: Tag, method: &str, params: &mut Params, proven: bool) -> Vec<u8> {
    let mut bytes = text(tag, method, params);
    if bytes.len() + datagram::TRAILER > DATAGRAM_MAX && params.got.take().is_some() {
        bytes = text(tag, method, params);
    }
    if !proven && bytes.len() < UNPROVEN_BYTES {
        bytes.resize(UNPROVEN_BYTES, b' ');
    }
    datagram::seal(&mut bytes);
    bytes
}

/// How many bytes a request takes at most, `got` aside.
pub(super) fn size(method: &str, params: &Params) -> usize {
    /// Session, `ack` and cookie, with their names.
    const ADDED: usize = 160;
    text(Tag::Logged(u64::MAX), method, params).len() + ADDED + datagram::TRAILER
}

fn text(tag: Tag, method: &str, params: &Params) -> Vec<u8> {
    serde_json::to_vec(&Envelope { jsonrpc: "2.0", id: tag, method, params })
        .expect("parameters are plain data with text for keys")
}

/// What a datagram from the server says.
pub(super) enum Incoming {
    /// The answer to a request.
    Reply(Tag, Result<Box<RawValue>, Box<ErrorShown>>),
    /// A request stands in line.
    Pending {
        /// The public number of the session.
        client: u64,
        /// The id of the request.
        id: u64,
        /// All of it, if this library understands it.
        shown: Option<Box<Pending>>,
    },
    /// A grant ended, or its holder is asked to let go.
    About {
        /// The grant.
        token: u64,
    },
    /// A grant of another session may be taken over.
    Offered,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(default)]
    result: Option<Box<RawValue>>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct PendingShown {
    client: u64,
    id: u64,
}

#[derive(Deserialize)]
struct AboutNotice {
    token: u64,
}

#[derive(Deserialize)]
struct BareError {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

/// Reads a datagram; `None` if it is damaged or none of ours. What this library sends has a checksum, so what the server
/// answers has one: without it, it has lost its end, and who knows what else.
pub(super) fn decode(bytes: &[u8]) -> Option<Incoming> {
    let opened = datagram::open(bytes).ok().filter(|opened| opened.sealed)?;
    let message: Message<'_> = serde_json::from_slice(opened.message).ok()?;
    if let Some(method) = message.method {
        let params = message.params?.get();
        return match method.as_ref() {
            "pending" => {
                let shown: PendingShown = serde_json::from_str(params).ok()?;
                let all = serde_json::from_str(params).ok();
                Some(Incoming::Pending { client: shown.client, id: shown.id, shown: all })
            }
            "lost" | "asked" => {
                let about: AboutNotice = serde_json::from_str(params).ok()?;
                Some(Incoming::About { token: about.token })
            }
            "offered" => Some(Incoming::Offered),
            _ => None,
        };
    }
    let tag = Tag::parse(message.id?.get())?;
    match (message.result, message.error) {
        (Some(result), None) => Some(Incoming::Reply(tag, Ok(result))),
        (None, Some(error)) => Some(Incoming::Reply(tag, Err(read_error(error.get())?))),
        (Some(_), Some(_)) | (None, None) => None,
    }
}

/// Reads an error; one without our `data` is final and of no known kind.
fn read_error(text: &str) -> Option<Box<ErrorShown>> {
    if let Ok(error) = serde_json::from_str::<ErrorShown>(text) {
        return Some(Box::new(error));
    }
    let bare: BareError = serde_json::from_str(text).ok()?;
    let data = ErrorData { kind: "unknown".into(), is_final: true, ..ErrorData::default() };
    Some(Box::new(ErrorShown { code: bare.code, message: bare.message, data }))
}

/// What the engine needs of the result of `open_session`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct OpenedShown {
    pub(super) session: SessionId,
    pub(super) client: u64,
    pub(super) ttl_ms: u64,
}

/// What the engine needs of the result of `acquire_lock`, `convert_lock` and `cancel_wait`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AcquiredShown {
    pub(super) granted: bool,
    pub(super) token: Option<u64>,
    pub(super) keys: Vec<KeyHeld>,
    pub(super) op: u64,
    pub(super) lease_ms: Option<u64>,
    pub(super) lease_left_ms: Option<u64>,
    pub(super) hold_left_ms: Option<u64>,
    pub(super) reason: Option<String>,
}

/// A lock of a grant. A grant with a mode that this library cannot read is still a grant.
#[derive(Debug, Deserialize)]
pub(super) struct KeyHeld {
    pub(super) key: String,
    #[serde(default)]
    mode: String,
    #[serde(default)]
    slots: Option<u32>,
    #[serde(default)]
    weight: Option<u32>,
}

impl KeyHeld {
    pub(super) fn shown(self) -> KeyShown {
        KeyShown {
            key: self.key,
            mode: ModeShown { mode: self.mode, slots: self.slots, weight: self.weight },
        }
    }
}

/// What the engine needs of the result of `heartbeat`.
#[derive(Debug, Deserialize)]
pub(super) struct BeatShown {
    pub(super) op: u64,
    #[serde(default)]
    pub(super) log_op: Option<u64>,
    pub(super) held: u64,
    #[serde(default)]
    pub(super) lost: Vec<LostShown>,
    #[serde(default)]
    pub(super) asked: Vec<AskedShown>,
    #[serde(default)]
    pub(super) offered: Vec<OfferedShown>,
    #[serde(default)]
    pub(super) more: bool,
}

/// A loss in it. The reason is text, since servers may know reasons that this library does not.
#[derive(Debug, Deserialize)]
pub(super) struct LostShown {
    pub(super) op: u64,
    pub(super) token: u64,
    pub(super) reason: String,
    #[serde(default)]
    pub(super) note: String,
}

impl BeatShown {
    /// The last command that this page tells of: where the next one goes on.
    pub(super) fn last(&self) -> u64 {
        let lost = self.lost.iter().map(|lost| lost.op);
        let asked = self.asked.iter().map(|asked| asked.op);
        let offered = self.offered.iter().map(|offered| offered.op);
        lost.chain(asked).chain(offered).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;

    #[test]
    fn ids_of_different_requests_are_never_confused() {
        for tag in [Tag::Logged(7), Tag::Read(7), Tag::Open(7), Tag::Close(7), Tag::Beat(7)] {
            let json = serde_json::to_string(&tag).unwrap();
            assert_eq!(Tag::parse(&json), Some(tag));
        }
        for other in ["null", "\"7\"", "7.0", "-7", "\"\"", "\"x7\"", "\"hé\"", "\"é7\""] {
            assert_eq!(Tag::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_request_with_an_unproven_address_has_room_for_the_servers_answer() {
        let bytes = encode(Tag::Read(1), "ping", &mut Params::default(), false);
        assert!(bytes.len() >= UNPROVEN_BYTES);
        let opened = datagram::open(&bytes).unwrap();
        assert!(opened.sealed);
        assert!(wire::decode(opened.message).unwrap().elements[0].request.is_ok());
    }

    #[test]
    fn an_error_without_our_data_is_still_an_answer() {
        let mut bytes = br#"{"jsonrpc":"2.0","id":4,"error":{"code":-32601,"message":"no"}}"#.to_vec();
        datagram::seal(&mut bytes);
        let Some(Incoming::Reply(Tag::Logged(4), Err(error))) = decode(&bytes) else { panic!("not read") };
        assert!(error.data.is_final);
        assert_eq!(error.message, "no");
    }

    /// Seed 28533 of the simulator: a reply cut just before its checksum, with a flipped bit in `version`.
    #[test]
    fn an_answer_without_its_checksum_is_no_answer() {
        let mut bytes =
            br#"{"jsonrpc":"2.0","id":"r4","result":{"found":true,"value":1,"verqion":309}}"#.to_vec();
        assert!(decode(&bytes).is_none());
        datagram::seal(&mut bytes);
        assert!(matches!(decode(&bytes), Some(Incoming::Reply(Tag::Read(4), Ok(_)))));
    }
}
