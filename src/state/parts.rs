//! The parts of a state: what a snapshot holds, in the order in which people read it.
//!
//! Whatever can be derived (which lock has which holder, which line, which deadline) is not a part: it is built anew by
//! [`State::from_parts`](super::State::from_parts), which refuses parts that contradict each other.

use crate::asks::Asks;
use crate::command::{Durability, EndReason, Terms};
use crate::identity::{Nonce, Op, SessionId, Term, Token};
use crate::limits::Limits;
use crate::name::Name;
use crate::outcome::{Asked, Loss, Offer, Outcome};
use crate::state::History;
use crate::time::Time;
use arcstr::ArcStr;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// A whole state.
#[derive(Clone, Debug)]
pub struct Parts {
    /// What is single.
    pub head: Head,
    /// In the order of their numbers.
    pub sessions: Vec<SessionPart>,
    /// In the order of their tokens.
    pub grants: Vec<GrantPart>,
    /// Locks that are closed, in the order of their names.
    pub delays: Vec<DelayPart>,
    /// In the order of their arrival.
    pub waits: Vec<WaitPart>,
    /// Lines that are not served to their end, in the order of their names.
    pub unserved: Vec<UnservedPart>,
    /// In the order of their names.
    pub keys: Vec<KeyPart>,
    /// In the order of their names.
    pub files: Vec<FilePart>,
    /// What happened lately, in the order in which it did.
    pub history: History,
    /// Locks that are waited for most, in the order of their names.
    pub contention: Vec<ContentionPart>,
    /// Other locks that were held lately, the oldest first.
    pub holds: Vec<HoldPart>,
}

/// What a state has one of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The last command applied.
    pub op: Op,
    /// The term.
    pub term: Term,
    /// The log time of the last command, in microseconds.
    pub at: Time,
    /// The token of the last grant.
    pub last_token: Token,
    /// The number of the last session.
    pub last_client: u64,
    /// The digest of all outcomes.
    pub digest: u32,
    /// What acknowledged meant in this term.
    pub durability: Durability,
    /// The caps in force.
    pub limits: Limits,
    /// How many waits were allowed because looking for a deadlock would have taken too long.
    pub unchecked_waits: u64,
    /// What happened up to this command is not in the history any more; all that came after it is.
    pub history_after: Op,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionPart {
    /// Its public number.
    pub client: u64,
    /// Its secret id.
    pub session: SessionId,
    /// The nonce that opened it.
    pub nonce: Nonce,
    /// Its client's name for itself.
    pub name: ArcStr,
    /// A note for people.
    pub label: ArcStr,
    /// TTL in milliseconds.
    pub ttl_ms: u64,
    /// When it was opened.
    pub opened: Time,
    /// Ids below this have no record any more and are stale.
    pub floor: u64,
    /// Whether its client has ever sent `ack`.
    pub acks: bool,
    /// When and why it ended, if it did.
    pub ended: Option<(Time, EndReason)>,
    /// Kept replies, in the order of their ids.
    pub replies: Vec<ReplyPart>,
    /// Waits, in the order of their ids.
    pub waits: Vec<WaitReplyPart>,
    /// Grants it lost.
    pub losses: Vec<Loss>,
}

/// A kept reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplyPart {
    /// The id of the request.
    pub id: u64,
    /// The hash of what it asked.
    pub fingerprint: u64,
    /// What was said.
    pub outcome: Outcome,
}

/// A wait as its session remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaitReplyPart {
    /// The id of the request.
    pub id: u64,
    /// The hash of what it asked; none if it was cancelled before it arrived.
    pub fingerprint: Option<u64>,
    /// What was said, once it was answered; none while it stands in line.
    pub outcome: Option<Outcome>,
    /// Whether the client has named it in `got`.
    pub got: bool,
}

/// A grant.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantPart {
    /// Its token.
    pub token: Token,
    /// The number of its session.
    pub client: u64,
    /// The owner inside it.
    pub owner: ArcStr,
    /// What it is like.
    pub terms: Terms,
    /// Its locks.
    pub asks: Asks,
    /// The command that made it.
    pub op: Op,
    /// When it was made.
    pub since: Time,
    /// When its own lease runs out.
    pub deadline: Option<Time>,
    /// When it ends whatever is renewed.
    pub hold_deadline: Option<Time>,
    /// That its holder is asked to let go, if so.
    pub asked: Option<Asked>,
    /// The session that may take it over, if one may.
    pub offered: Option<Offer>,
    /// What is staged under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section: Option<SectionPart>,
}

/// What is staged under an atomic grant.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SectionPart {
    /// Keys, in the order of their names.
    pub keys: Vec<StagedKeyPart>,
    /// Files, in the order of their names.
    pub files: Vec<StagedFilePart>,
}

/// A staged key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagedKeyPart {
    /// The key.
    pub key: Name,
    /// The command that staged it.
    pub version: Op,
    /// JSON text as it came; absent if the key is deleted.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub value: Option<Box<RawValue>>,
    /// For how many milliseconds it lives from the release, if not for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// Whether it lives only as long as the session.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bound: bool,
}

/// What is staged of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagedFilePart {
    /// The file.
    pub file: Name,
    /// Its generation; if it does not exist yet, the command that staged its first append.
    pub generation: Op,
    /// Where the staged bytes begin.
    pub offset: u64,
    /// The data of each append in base64, in order.
    pub data_b64: Vec<String>,
}

impl SectionPart {
    /// How many writes it is.
    pub fn writes(&self) -> usize {
        self.keys.len() + self.files.iter().map(|file| file.data_b64.len()).sum::<usize>()
    }
}

/// Reads a value that is there: `null` is a value like any other and not its absence.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

/// A wait in line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaitPart {
    /// The command that put it in line: the order of all lines.
    pub op: Op,
    /// The number of its session.
    pub client: u64,
    /// The id of the request.
    pub id: u64,
    /// The owner inside the session.
    pub owner: ArcStr,
    /// What the grant is to be like.
    pub terms: Terms,
    /// The locks it asks for.
    pub asks: Asks,
    /// When it was put in line.
    pub since: Time,
    /// When it gives up, if ever.
    pub deadline: Option<Time>,
    /// The grant that it converts, if it is a conversion.
    pub converts: Option<Token>,
}

/// A lock that is closed for the lock-delay of its last tenure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelayPart {
    /// The lock.
    pub key: Name,
    /// Until when.
    pub until: Time,
}

/// A line that had more to serve than one command may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnservedPart {
    /// The lock.
    pub key: Name,
    /// How many waits at the head of its line were found to fit so far.
    pub open: u64,
}

/// A key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPart {
    /// The key.
    pub key: Name,
    /// The command that set it.
    pub version: Op,
    /// JSON text as it came.
    pub value: Box<RawValue>,
    /// When it goes, if it has a TTL.
    pub deadline: Option<Time>,
    /// The number of the session that it goes with, if it is bound to one.
    pub bound: Option<u64>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilePart {
    /// The file.
    pub file: Name,
    /// The command that created it.
    pub generation: Op,
    /// Bytes committed.
    pub length: u64,
    /// CRC-32C of those bytes.
    pub checksum: u32,
    /// Why it is closed to appends, if it is.
    pub fault: Option<String>,
}

/// Figures of a lock that is or was waited for, see [`Figures`](super::Figures).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContentionPart {
    /// The lock.
    pub key: Name,
    /// How much it was waited for, with what it took over from the name that gave way, as of `hour`.
    pub weight: u64,
    /// The hour of log time in which the weight was last counted.
    pub hour: u64,
    /// Since when the other figures are counted.
    pub since: Time,
    /// Waits that began.
    pub waits: u64,
    /// Waits that ended.
    pub waits_ended: u64,
    /// For how long those stood in line, in microseconds.
    pub waited_us: u64,
    /// Tenures that ended.
    pub tenures: u64,
    /// How long those were, in microseconds.
    pub held_us: u64,
    /// How long a tenure usually is, in microseconds.
    pub hold_us: Option<u64>,
    /// Most waits that stood in its line at once.
    pub longest_queue: u64,
}

/// How long a lock is usually held for which nobody waited lately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldPart {
    /// The lock.
    pub key: Name,
    /// In microseconds.
    pub hold_us: u64,
}
