//! The cap on everything: its name, its number, and what the numbers rest on.
//!
//! A [`Limits`] is part of the command that begins a term, so that a replay refuses exactly what was refused then.
//! Constants are caps that no configuration moves.

use serde::{Deserialize, Serialize};

/// The largest payload of a UDP datagram over IPv4: 65,535 less 20 bytes of IP and 8 of UDP header (RFC 768, RFC 791).
pub const DATAGRAM_MAX: usize = 65_507;

/// Reply size that fits an Ethernet frame with room to spare (RFC 9000, section 14: 1,200 bytes pass nearly everywhere).
pub const REPLY_PAGE: usize = 1_200;

/// The largest reply: pages stop here, whatever a single item weighs.
pub const REPLY_MAX: usize = 60 * 1024;

/// Elements of one batch.
pub const BATCH_ELEMENTS_MAX: usize = 64;

/// Ids that one `got` may name.
pub const GOT_MAX: usize = 256;

/// Depth of nested arrays and objects in a value.
pub const VALUE_DEPTH_MAX: usize = 64;

/// Bytes of a session's name, an owner, a label.
pub const LABEL_MAX: usize = 128;

/// Holders that one reply names; the rest is a number.
pub const HOLDERS_SHOWN: usize = 8;

/// Locks that one request may ask for.
pub const ASKS_MAX: usize = 128;

/// Slots of one lock.
pub const SLOTS_MAX: u32 = 1_000_000;

/// Keys that one transaction may compare, and keys that it may change.
pub const TRANSACTION_MAX: usize = 128;

/// Owners of a cycle that one error lists; the rest is a number.
pub const CYCLE_SHOWN: usize = 8;

/// Earlier waits that are looked at for the nearest one in the way of another.
pub const AHEAD_LOOKED_AT: usize = 64;

/// Holders and waits that are looked at to find out whether a wait would close a cycle: at least so many owners are found.
pub const DEADLOCK_STEPS_MAX: usize = 50_000;

/// Bytes of the reason for a break or for asking a holder to let go.
pub const REASON_MAX: usize = 256;

/// Locks in the sketch of those that are waited for most.
pub const CONTENTION_NAMES: usize = 128;

/// Other locks of which it is remembered how long they are usually held.
pub const HOLDS_KEPT: usize = 64;

/// Waits of one line that an estimate looks at; a longer line is taken to go on like that.
pub const ESTIMATE_WAITS_MAX: usize = 128;

/// Waits, and holders of the locks they ask for, that one page of waits looks at: then the page ends, however few it has.
pub const WAITS_LOOKED_AT: u64 = 10_000;

/// Longest time that a `watch` waits for something to happen, in milliseconds: 60 s.
pub const WATCH_WAIT_MAX_MS: u64 = 60_000;

/// Watches that wait, of all clients.
pub const WATCHES_MAX: usize = 4_096;

/// Watches that wait, of one address.
pub const ADDRESS_WATCHES_MAX: usize = 256;

/// Events that are looked at for one reply to a `watch`: the client goes on behind them.
pub const WATCH_SCAN_MAX: usize = 10_000;

/// Losses that a session remembers for its client.
pub const LOSSES_KEPT: usize = 64;

/// Shortest and longest TTL of a session or a grant, in milliseconds: 100 ms to 24 h.
pub const TTL_MIN_MS: u64 = 100;
/// See [`TTL_MIN_MS`].
pub const TTL_MAX_MS: u64 = 24 * 60 * 60 * 1_000;

/// Longest TTL of a key, in milliseconds: 365 days. A key that is to stay longer has none.
pub const KEY_TTL_MAX_MS: u64 = 365 * 24 * 60 * 60 * 1_000;

/// Longest limit on a wait, in milliseconds: 30 days. `null` waits without limit.
pub const WAIT_MAX_MS: u64 = 30 * 24 * 60 * 60 * 1_000;

/// How long the kept replies of an ended session still answer retries, in milliseconds.
pub const AFTERLIFE_MS: u64 = 60_000;

/// Grants, waits and keys that one `tick` cleans up, so that applying it never takes long.
pub const SWEEP_MAX: usize = 256;

/// The configured caps, each under the name that errors and `status` show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// TTL of a session that asks for none, in milliseconds.
    pub default_ttl_ms: u64,
    /// Live sessions, and ended ones whose replies are still kept.
    pub sessions: u64,
    /// Kept replies of one session.
    pub replies: u64,
    /// Bytes of kept replies of one session.
    pub reply_bytes: u64,
    /// Waits of one session: those in line, and those answered but not yet named in `got`.
    pub session_waits: u64,
    /// Waits of all sessions.
    pub waits: u64,
    /// Waits in the line of one lock.
    pub lock_waits: u64,
    /// Live grants of all sessions. A wait that was accepted is served beyond it, so there may be `waits` more.
    pub grants: u64,
    /// Keys.
    pub keys: u64,
    /// Bytes of one value.
    pub value_bytes: u64,
    /// Bytes of all keys and values together.
    pub key_bytes: u64,
    /// Files.
    pub files: u64,
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Bytes of the data of one append.
    pub append_bytes: u64,
    /// Writes staged under one atomic grant.
    pub section_writes: u64,
    /// Bytes staged under one atomic grant: names, values, data, and 64 for each write.
    pub section_bytes: u64,
    /// Bytes staged under all atomic grants.
    pub staged_bytes: u64,
    /// Events that are kept for `watch`.
    pub history_events: u64,
    /// Bytes of the events that are kept for `watch`.
    pub history_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            default_ttl_ms: 10_000,
            sessions: 100_000,
            replies: 1_024,
            reply_bytes: 256 * 1024,
            session_waits: 256,
            waits: 1_000_000,
            lock_waits: 100_000,
            grants: 2_000_000,
            keys: 1_000_000,
            value_bytes: 48 * 1024,
            key_bytes: 1 << 30,
            files: 100_000,
            file_bytes: 1 << 40,
            append_bytes: 48 * 1024,
            section_writes: 1_024,
            section_bytes: 1 << 20,
            staged_bytes: 256 << 20,
            history_events: 10_000,
            history_bytes: 4 << 20,
        }
    }
}

/// A value or the data of an append must fit a request, and a reply with it must fit a reply.
const _: () = assert!(48 * 1024 < REPLY_MAX && REPLY_MAX < DATAGRAM_MAX);
