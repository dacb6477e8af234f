//! Outcomes: what the state machine said to a command. Kept, and told the same way each time.

use crate::command::{Ask, Mode};
use crate::identity::{Op, SessionId, Token};
use crate::kind::{Detail, Refusal};
use crate::name::Name;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What the state machine said to a command. New variants go to the end: digests and snapshots name them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done, and there is nothing to tell.
    Done,
    /// The session of `open_session`, new or found.
    Opened {
        /// Its id.
        session: SessionId,
        /// Its public number.
        client: u64,
        /// Its TTL in milliseconds.
        ttl_ms: u64,
    },
    /// The grant was made.
    Granted {
        /// Its token.
        token: Token,
        /// Its locks.
        asks: Vec<Ask>,
        /// The command that made it.
        op: Op,
        /// Its own lease in milliseconds, if it has one.
        lease_ms: Option<u64>,
        /// Whether the owner had it already.
        again: bool,
    },
    /// The acquire stands in line. Never kept: the final outcome takes its place.
    Waiting(Box<Blocked>),
    /// No grant was made and none will be.
    NotGranted(Box<Blocked>),
    /// The wait was cancelled, or was never going to be granted.
    Cancelled,
    /// The grant was released.
    Released {
        /// The command that released it.
        op: Op,
    },
    /// The lease of the grant was renewed.
    Renewed {
        /// What it has left now, in milliseconds.
        lease_left_ms: u64,
    },
    /// The key was set.
    Set {
        /// Its version: the command that set it.
        version: Op,
    },
    /// The key was deleted, or was not there.
    Deleted {
        /// The version that was removed, if the key was there.
        version: Option<Op>,
    },
    /// The bytes stand in the file.
    Appended {
        /// Where they begin.
        offset: u64,
        /// How long the file is with them, in bytes.
        length: u64,
    },
    /// The file was deleted, rotated or repaired.
    FileChanged {
        /// Its length now, in bytes; of a deleted or rotated one 0.
        length: u64,
        /// The generation that was deleted or rotated, or that was repaired.
        generation: u64,
    },
    /// So many expired grants were cleaned up.
    Cleaned {
        /// How many.
        cleaned: u64,
    },
    /// Refused for good.
    Refused(Box<Refusal>),
    /// The command took no effect: another copy of the request came before it, or its session is gone, or the term
    /// that judged has passed. Never kept: the edge answers from what it finds in the state.
    Void,
}

/// Why a grant was not made, and who stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// Why.
    pub reason: Reason,
    /// The place in line, from 1; 0 if it does not stand in line.
    pub position: u64,
    /// The holders in the way, at most [`HOLDERS_SHOWN`](crate::limits::HOLDERS_SHOWN).
    pub holders: Vec<Holder>,
    /// How many there are in all.
    pub holders_total: u64,
}

/// Why a grant was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Somebody holds the lock.
    Held,
    /// Nobody holds it, but earlier waits stand in line.
    Queued,
    /// Its limit on the wait passed.
    Timeout,
    /// `cancel_wait` took it out of the line.
    Cancelled,
    /// Its session ended.
    SessionEnded,
}

/// A holder, as told to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The session's public number.
    pub client: u64,
    /// The session's name.
    pub name: Arc<str>,
    /// The owner inside it.
    pub owner: Arc<str>,
    /// The grant's label.
    pub label: Arc<str>,
    /// How the lock is held.
    pub mode: Mode,
    /// The token.
    pub token: Token,
    /// For how long it has been held, in milliseconds.
    pub held_ms: u64,
    /// What the grant's own lease has left, in milliseconds, if it has one.
    pub lease_left_ms: Option<u64>,
}

/// A grant that a session lost without releasing it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// The command that ended it.
    pub op: Op,
    /// The grant.
    pub token: Token,
    /// Its locks.
    pub keys: Vec<Name>,
    /// Why.
    pub reason: LossReason,
}

/// Why a grant ended without a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossReason {
    /// Its own lease ran out.
    LeaseExpired,
}

/// What the disk has to do for a command that was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEffect {
    /// The command.
    pub op: Op,
    /// The file.
    pub file: Name,
    /// The generation of the file: the `op` of the append that created it.
    pub generation: u64,
    /// What to do.
    pub act: FileAct,
}

/// What to do to a file on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileAct {
    /// Write the bytes at the offset, which is where the file ends before them; at offset 0 the file is created.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Arc<[u8]>,
    },
    /// Remove it.
    Delete,
    /// Give it another name, which nothing has.
    Rotate {
        /// The name.
        to: Name,
    },
    /// Its content on disk was found good or accepted: from here it is this long, with this checksum.
    Repair {
        /// Length in bytes.
        length: u64,
        /// CRC-32C of the bytes.
        checksum: u32,
    },
}

/// What else a command caused, for the edge: hints to clients and work for the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A wait got its final outcome, which is in the state.
    Settled {
        /// The session.
        session: SessionId,
        /// The id of the wait.
        id: u64,
    },
    /// A session lost a grant.
    Lost {
        /// The session.
        session: SessionId,
        /// What.
        loss: Loss,
    },
    /// A session began.
    Opened {
        /// The session.
        session: SessionId,
    },
    /// A session ended.
    Ended {
        /// The session.
        session: SessionId,
    },
    /// Every live session was renewed once.
    Renewed,
    /// The disk has work.
    File(FileEffect),
}

impl Outcome {
    /// About how many bytes keeping it takes: what the window of kept replies is measured in.
    pub fn weight(&self) -> u64 {
        let bytes = match self {
            Outcome::NotGranted(blocked) | Outcome::Waiting(blocked) => blocked
                .holders
                .iter()
                .map(|holder| 96 + holder.name.len() + holder.owner.len() + holder.label.len())
                .sum(),
            Outcome::Granted { asks, .. } => asks.iter().map(|ask| 24 + ask.key.len()).sum(),
            Outcome::Refused(refusal) => {
                refusal.message.len()
                    + match &refusal.detail {
                        Detail::Held { tokens } => 8 * tokens.len(),
                        Detail::None
                        | Detail::Again { .. }
                        | Detail::Limit { .. }
                        | Detail::LimitAgain { .. }
                        | Detail::Version { .. }
                        | Detail::Waits { .. }
                        | Detail::Cookie { .. } => 32,
                    }
            }
            Outcome::Done
            | Outcome::Opened { .. }
            | Outcome::Cancelled
            | Outcome::Released { .. }
            | Outcome::Renewed { .. }
            | Outcome::Set { .. }
            | Outcome::Deleted { .. }
            | Outcome::Appended { .. }
            | Outcome::FileChanged { .. }
            | Outcome::Cleaned { .. }
            | Outcome::Void => 0,
        };
        64 + bytes as u64
    }
}
