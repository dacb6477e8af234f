//! Results of all methods, as the server writes them and the library reads them.
//!
//! Absent fields are left out. A client ignores fields that it does not know, so that results can grow.

use crate::identity::SessionId;
use crate::outcome::{LossReason, Reason};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fmt;

/// `ping`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ping {
    /// `tenure`
    pub server: String,
    /// As in `0.1.0`.
    pub server_version: String,
}

/// `open_session`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The secret id.
    pub session: SessionId,
    /// The public number.
    pub client: u64,
    /// TTL in milliseconds.
    pub ttl_ms: u64,
}

/// `heartbeat`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The last command applied: what the reply speaks of.
    pub op: u64,
    /// The last place in the log that was given when the heartbeat came, if that is beyond `op`: what has a later one was
    /// asked for later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_op: Option<u64>,
    /// Grants that the session holds.
    pub held: u64,
    /// Grants lost after the `after` of the request, in the order of their ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Lost>,
    /// Grants that the session was asked to release after that `after`, in the order of the askings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<AskedShown>,
    /// Grants of other sessions that it was offered after that `after`, in the order of the offers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub offered: Vec<OfferedShown>,
    /// Whether there are more of these than fit; ask again with the greatest `op` of them as `after`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub more: bool,
}

/// That the holder of a grant is asked to let go: in the reply to a heartbeat, and as the notification `asked`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedShown {
    /// The command that asked.
    pub op: u64,
    /// The grant.
    pub token: u64,
    /// Its locks.
    pub keys: Vec<String>,
    /// The public number of the session that asks.
    pub client: u64,
    /// Why.
    pub reason: String,
    /// In how many milliseconds the grant will be broken, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_ms: Option<u64>,
}

/// A grant that the session may take over: in the reply to a heartbeat, and as the notification `offered`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedShown {
    /// The command that offered it.
    pub op: u64,
    /// The grant.
    pub token: u64,
    /// Its locks.
    pub keys: Vec<KeyShown>,
    /// The public number of the session that holds it.
    pub client: u64,
    /// That session's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The owner inside it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// The grant's label.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// The grant's own lease in milliseconds, which begins anew when it is taken over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
    /// In how many milliseconds it ends whatever is renewed, if it has such a bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_left_ms: Option<u64>,
}

/// A grant that ended without a release: in the reply to a heartbeat, and as the notification `lost`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The command that ended it.
    pub op: u64,
    /// The grant.
    pub token: u64,
    /// Its locks.
    pub keys: Vec<String>,
    /// Why.
    pub reason: LossReason,
    /// What whoever ended it said of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// The notification `pending`: the request stands in line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pending {
    /// The public number of the session.
    pub client: u64,
    /// The id of the request.
    pub id: u64,
    /// The place in line, from 1.
    pub position: u64,
    /// Why it waits.
    pub reason: Reason,
    /// Who is in the way, at most 8.
    pub holders: Vec<HolderShown>,
    /// How many there are.
    pub holders_total: u64,
    /// The lock that is in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The nearest earlier request in the way, if that is why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<AheadShown>,
    /// How many wait in the longest of its lines, itself left out.
    #[serde(default)]
    pub queue_total: u64,
    /// In how many milliseconds it may be served, if that can be guessed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate_ms: Option<u64>,
    /// How many may wait in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_max: Option<u64>,
}

/// An earlier request in the way of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AheadShown {
    /// The public number of its session.
    pub client: u64,
    /// The session's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The owner inside it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// The label of the request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// How the lock is asked for.
    #[serde(flatten)]
    pub mode: ModeShown,
    /// The grant that it converts, if it is a conversion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub converts: Option<u64>,
    /// For how long it has waited, in milliseconds.
    pub waited_ms: u64,
}

/// How a lock is asked for or held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeShown {
    /// `exclusive`, `shared` or `slot`.
    pub mode: String,
    /// How many slots the lock has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// How many of them are taken or asked for, if not one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// `acquire_lock`, and what `cancel_wait` says beside `cancelled`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Acquired {
    /// In the reply to `cancel_wait`: whether the wait ended without a grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled: Option<bool>,
    /// Whether the grant was made. Absent where `cancelled` is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<bool>,
    /// The fencing token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    /// The locks of the grant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyShown>,
    /// The command that made the grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<u64>,
    /// The grant's own lease in milliseconds, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
    /// What was left when it was granted until it ends whatever is renewed, in milliseconds, if it has such a bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_left_ms: Option<u64>,
    /// In the reply to `take_over`: what is written under it is staged until its release.
    #[serde(default, skip_serializing_if = "is_false")]
    pub atomic: bool,
    /// The owner had this very grant before it asked.
    #[serde(default, skip_serializing_if = "is_false")]
    pub again: bool,
    /// What was left of its own lease then, in milliseconds, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_left_ms: Option<u64>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The place in line that it had, or would have had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// Who is in the way, at most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<HolderShown>,
    /// How many there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holders_total: Option<u64>,
    /// The lock that is in the way. (Here `key`, since `keys` are those of a grant.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The nearest earlier request in the way, if that is why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<AheadShown>,
    /// How many waited in the longest of its lines, itself left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_total: Option<u64>,
    /// In how many milliseconds it might have been served, if that could be guessed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate_ms: Option<u64>,
}

/// A lock of a grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyShown {
    /// The lock.
    pub key: String,
    /// How it is held.
    #[serde(flatten)]
    pub mode: ModeShown,
}

/// A holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderShown {
    /// The public number of its session.
    pub client: u64,
    /// The session's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The owner inside it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// The grant's label.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// How the lock is held.
    #[serde(flatten)]
    pub mode: ModeShown,
    /// The token.
    pub token: u64,
    /// For how long it has been held, in milliseconds.
    pub held_ms: u64,
    /// What is left without a sign of life or a renewal, in milliseconds. In an outcome: of the grant's own lease only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_left_ms: Option<u64>,
    /// What is left until the grant ends whatever is renewed, in milliseconds. Not in an outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_left_ms: Option<u64>,
    /// That it is asked to let go. Not in an outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<AskerShown>,
    /// The public number of the session that may take the grant over. Not in an outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered: Option<u64>,
}

/// Who asks a holder to let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskerShown {
    /// The public number of its session.
    pub client: u64,
    /// Why.
    pub reason: String,
    /// In how many milliseconds the grant will be broken, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_ms: Option<u64>,
}

/// A wait in line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaiterShown {
    /// The place, from 1.
    pub position: u64,
    /// The public number of its session.
    pub client: u64,
    /// The session's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The owner inside it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// The label of the request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// How the lock is asked for.
    #[serde(flatten)]
    pub mode: ModeShown,
    /// The id of the request.
    pub wait: u64,
    /// For how long it has waited, in milliseconds.
    pub waited_ms: u64,
    /// When it gives up, in milliseconds from now, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_left_ms: Option<u64>,
    /// Why it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The lock that is in its way, if it is another one: it asks for several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The grant that it converts, if it is a conversion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub converts: Option<u64>,
    /// In how many milliseconds it may be served, if that can be guessed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate_ms: Option<u64>,
}

/// `release_lock`, `abandon`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Released {
    /// Always true.
    pub released: bool,
    /// The command that released it: the version of every key that was staged under it.
    pub op: u64,
    /// How many staged writes took effect with it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub writes: u64,
}

/// `hand_over`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HandedOver {
    /// Whether another session may take the grant over now.
    pub offered: bool,
    /// The number of that session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<u64>,
}

/// `break_lock`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Broken {
    /// Always true.
    pub broken: bool,
    /// The command that broke it.
    pub op: u64,
}

/// `ask_release`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReleaseAsked {
    /// Always true: the holder is told.
    pub asked: bool,
    /// In how many milliseconds the grant will be broken, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// `transaction`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Applied {
    /// Always true.
    pub applied: bool,
    /// The version of every key that it set.
    pub version: u64,
    /// Whether it takes effect at the release of the grant only.
    #[serde(default, skip_serializing_if = "is_false")]
    pub staged: bool,
}

/// `renew_lease`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Renewed {
    /// What the lease has left now, in milliseconds.
    pub lease_left_ms: u64,
}

/// `is_locked`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Locked {
    /// Whether anybody holds it.
    pub locked: bool,
}

/// `get_lock_info`; the queue is paged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LockInfo {
    /// The lock.
    pub key: String,
    /// Whether anybody holds it.
    pub locked: bool,
    /// Who holds it, at most 8.
    #[serde(default)]
    pub holders: Vec<HolderShown>,
    /// How many hold it.
    pub holders_total: u64,
    /// Who waits, in the order in which they are served.
    #[serde(default)]
    pub queue: Vec<WaiterShown>,
    /// How many wait.
    pub queue_total: u64,
    /// How many may wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_max: Option<u64>,
    /// For how long it stays closed to everybody, in milliseconds: its last tenure did not end with a release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_ms: Option<u64>,
    /// How much it was waited for lately, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contention: Option<ContentionShown>,
    /// Where the next page of the queue begins, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The command up to which this is the state.
    pub op: u64,
}

/// How much a lock was waited for, since it came into the sketch that the server keeps of such locks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentionShown {
    /// For how long it has been counted, in milliseconds.
    pub counted_ms: u64,
    /// Waits that began.
    pub waits: u64,
    /// Waits that ended, with a grant or without.
    pub waits_ended: u64,
    /// For how long those stood in line, together, in microseconds.
    pub waited_us: u64,
    /// Most waits that stood in its line at once.
    pub longest_queue: u64,
    /// Tenures that ended.
    pub tenures: u64,
    /// How long those were, together, in microseconds.
    pub held_us: u64,
    /// How long a tenure usually is, the latest counting most, in microseconds, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_us: Option<u64>,
    /// Grants to waits, since the start of the server, that are known to have arrived.
    pub hand_offs: u64,
    /// How long those took, together, from the commit of the grant to the client's word that it has it, in microseconds.
    pub hand_off_us: u64,
}

/// An item of `list_contention`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentionItem {
    /// The lock.
    pub key: String,
    /// How many wait for it now.
    pub queue_total: u64,
    /// How much it was waited for.
    #[serde(flatten)]
    pub contention: ContentionShown,
}

/// A page of a list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Page<T> {
    /// Its items.
    pub items: Vec<T>,
    /// Where the next page begins, if there is one: give it back as `cursor`.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The command up to which this is the state.
    pub op: u64,
}

/// An item of `list_locks`: a lock that is held or waited for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LockItem {
    /// The lock.
    pub key: String,
    /// Whether anybody holds it.
    pub locked: bool,
    /// Its first holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<HolderShown>,
    /// How many hold it.
    pub holders_total: u64,
    /// How many wait.
    pub queue_total: u64,
}

/// An item of `list_grants`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GrantItem {
    /// The locks.
    pub keys: Vec<KeyShown>,
    /// Who holds them; its `mode` is that of the first.
    #[serde(flatten)]
    pub holder: HolderShown,
}

/// An item of `list_waits`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WaitItem {
    /// The command that put it in line.
    pub op: u64,
    /// The public number of its session.
    pub client: u64,
    /// The session's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The owner inside it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// The label of the request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// The id of the request.
    pub wait: u64,
    /// The locks that it asks for.
    pub keys: Vec<KeyShown>,
    /// The grant that it converts, if it is a conversion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub converts: Option<u64>,
    /// The place in the longest of its lines, from 1.
    pub position: u64,
    /// Why it waits.
    pub reason: Reason,
    /// The first of its locks that is in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Whom it waits for, at most 8.
    #[serde(default, rename = "for", skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<WaitsFor>,
    /// For how long it has waited, in milliseconds.
    pub waited_ms: u64,
    /// When it gives up, in milliseconds from now, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_left_ms: Option<u64>,
    /// In how many milliseconds it may be served, if that can be guessed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate_ms: Option<u64>,
}

/// Somebody for whom a wait waits: a holder, or an earlier request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitsFor {
    /// The public number of the session.
    pub client: u64,
    /// The session's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The owner inside it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// The label of the grant or of the request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// The lock over which it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The grant in the way, if it is a holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    /// It is an earlier request in line.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ahead: bool,
    /// The grant that the earlier request converts, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub converts: Option<u64>,
}

/// An item of `list_sessions`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionItem {
    /// The public number.
    pub client: u64,
    /// The client's name for itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// A note for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// TTL in milliseconds.
    pub ttl_ms: u64,
    /// What is left without a sign of life, in milliseconds.
    pub lease_left_ms: u64,
    /// How old it is, in milliseconds.
    pub open_ms: u64,
    /// Grants it holds.
    pub held: u64,
    /// Waits it has in line.
    pub waiting: u64,
    /// The address it last sent from, if this server has heard of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// An item of `list_files`; without `file`, the result of `file_info`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// The file.
    pub file: String,
    /// Bytes committed.
    pub length: u64,
    /// The command that created it.
    pub generation: u64,
    /// CRC-32C of the bytes committed, 8 hex digits.
    pub checksum: String,
    /// Why it is closed to appends, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Whether bytes are in it that are staged under the grant that was named, seen by its holder alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub staged: bool,
}

/// `cleanup_expired_locks`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cleaned {
    /// Grants that had expired and were cleaned up by this call.
    pub cleaned: u64,
}

/// `kill_session`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Killed {
    /// Whether there was such a live session.
    pub killed: bool,
}

/// How long a key lives: in the results of `get`, `range` and `prefix`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifeShown {
    /// What its TTL has left, in milliseconds, if it has one; 0 if only its lock keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_left_ms: Option<u64>,
    /// Whether it goes with a session.
    #[serde(default, skip_serializing_if = "is_false")]
    pub bound: bool,
    /// The public number of that session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<u64>,
}

/// `get`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Got {
    /// Whether the key exists.
    pub found: bool,
    /// Its value, as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Box<RawValue>>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// How long it lives.
    #[serde(flatten)]
    pub life: LifeShown,
    /// Whether that is what is staged under the grant that was named, seen by its holder alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub staged: bool,
}

/// `set`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Written {
    /// The key's version now; of a staged one, until the release gives it another.
    pub version: u64,
    /// Whether it takes effect at the release of the grant only.
    #[serde(default, skip_serializing_if = "is_false")]
    pub staged: bool,
}

/// `delete`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deleted {
    /// Whether the key existed.
    pub deleted: bool,
    /// The version that was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Whether it takes effect at the release of the grant only.
    #[serde(default, skip_serializing_if = "is_false")]
    pub staged: bool,
}

/// An item of `range` and `prefix`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeyItem {
    /// The key.
    pub key: String,
    /// Its value, as it came.
    pub value: Box<RawValue>,
    /// Its version.
    pub version: u64,
    /// How long it lives.
    #[serde(flatten)]
    pub life: LifeShown,
    /// Whether that is what is staged under the grant that was named, seen by its holder alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub staged: bool,
}

/// `watch`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// What happened, in order; empty if nothing did.
    pub events: Vec<EventShown>,
    /// Where the next `watch` goes on: give it back as `cursor`.
    pub next: String,
    /// The last command applied: what the reply speaks of.
    pub op: u64,
}

/// Something that happened. `event` and `reason` are text, since servers may know some that a client does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventShown {
    /// The command that did it.
    pub op: u64,
    /// What happened, as in `key_set`.
    pub event: String,
    /// To which key, lock or file.
    pub name: String,
    /// The grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    /// The grant that was converted, if the conversion made a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
    /// The public number of its session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<u64>,
    /// How the lock is held from here.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub mode: Option<ModeShown>,
    /// The version that the key got, or that was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The generation of the file: the command that created it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Where the appended bytes begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// How long the file is from here, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// The file's name from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether that is what is staged under the grant that was named, seen by its holder alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub staged: bool,
}

/// `append_file`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appended {
    /// Where the data begins in the file, in bytes.
    pub offset: u64,
    /// How long the file is with it.
    pub length: u64,
    /// Whether it takes effect at the release of the grant only.
    #[serde(default, skip_serializing_if = "is_false")]
    pub staged: bool,
}

/// `read_file`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FilePage {
    /// The bytes read, if they are UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The bytes read in base64, if they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_b64: Option<String>,
    /// How long the whole file is, in bytes.
    pub length: u64,
    /// Whether this page reaches the end.
    pub eof: bool,
    /// Whether `length` counts bytes that are staged under the grant that was named, seen by its holder alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub staged: bool,
}

/// `delete_file`, `rotate_file`, `repair_file`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FileChanged {
    /// The generation that was deleted, rotated or repaired.
    pub generation: u64,
    /// The length of the file now, in bytes.
    pub length: u64,
}

/// `status`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// As in `0.1.0`.
    pub server_version: String,
    /// The version of the protocol.
    pub protocol: u64,
    /// The term.
    pub term: u64,
    /// The last command applied.
    pub op: u64,
    /// For how long this term has lasted, in milliseconds, stalls left out.
    pub uptime_ms: u64,
    /// What acknowledged means: `sync`, `os` or `none`.
    pub durability: String,
    /// What there is now, by the name of its cap or gauge.
    pub counts: BTreeMap<String, u64>,
    /// The caps, by name.
    pub limits: BTreeMap<String, u64>,
    /// What was dropped or refused since the start, by cause.
    pub drops: BTreeMap<String, u64>,
}

/// An error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorShown {
    /// The code of its kind.
    pub code: i64,
    /// The sentence.
    pub message: String,
    /// What a program needs.
    pub data: ErrorData,
}

/// What a program needs to act on an error.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ErrorData {
    /// The kind, as in `not_holder`. Text, since servers may know kinds that a client does not.
    pub kind: String,
    /// Whether this is the final answer; if not, repeat the same id.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// After so many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_ms: Option<u64>,
    /// The cap that was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// Its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// The version that the key has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Tokens that the owner holds already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<u64>,
    /// The wait that the owner has already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<u64>,
    /// The cycle of owners that waiting would have closed, at most 8 of them, the asker first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cycle: Vec<CycleStepShown>,
    /// How many there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycle_total: Option<u64>,
    /// The number of slots in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// The key whose version is not the one compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The proof of address to send back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// The oldest op after which all events are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<u64>,
}

/// An owner in a cycle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CycleStepShown {
    /// The public number of its session.
    pub client: u64,
    /// The session's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The owner inside it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// The label of its request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// The lock it waits for, in whose way the next one is.
    pub key: String,
    /// The grant of the next one that is in the way; absent if the next one only stands before it in line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
}

impl fmt::Display for ModeShown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.slots, self.weight.unwrap_or(1)) {
            (None, _) => f.write_str(&self.mode),
            (Some(slots), 1) => write!(f, "1 slot of {slots}"),
            (Some(slots), weight) => write!(f, "{weight} slots of {slots}"),
        }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}
