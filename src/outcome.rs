//! Outcomes: what the state machine said to a command. Kept, and told the same way each time.

use crate::asks::Asks;
use crate::command::Mode;
use crate::identity::{Op, SessionId, Token};
use crate::kind::{CycleStep, Detail, Refusal};
use crate::name::Name;
use crate::time::Time;
use arcstr::ArcStr;
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
        asks: Asks,
        /// The command that made it.
        op: Op,
        /// Its own lease in milliseconds, if it has one.
        lease_ms: Option<u64>,
        /// Whether the owner had it already.
        again: bool,
        /// What is left of that lease, at the command, in milliseconds, if the owner had it already; else it is whole.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lease_left_ms: Option<u64>,
        /// What is left, at the command, until it ends whatever is renewed, in milliseconds; none if it has no such bound.
        hold_left_ms: Option<u64>,
        /// Whether it is an atomic one, where that is told: to who takes it over, and did not ask for it so.
        atomic: bool,
    },
    /// The acquire stands in line. Never kept: the final outcome takes its place.
    Waiting(Box<Blocked>),
    /// No grant was made and none will be.
    NotGranted(Box<Blocked>),
    /// The wait was cancelled, or was never going to be granted.
    Cancelled,
    /// The grant was released.
    Released {
        /// The command that released it: the version of every key that was staged under it.
        op: Op,
        /// How many staged writes took effect with it.
        writes: u64,
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
        /// Whether it takes effect at the release of the grant only.
        staged: bool,
    },
    /// The key was deleted, or was not there.
    Deleted {
        /// The version that was removed, if the key was there.
        version: Option<Op>,
        /// Whether it takes effect at the release of the grant only.
        staged: bool,
    },
    /// The bytes stand in the file.
    Appended {
        /// Where they begin.
        offset: u64,
        /// How long the file is with them, in bytes.
        length: u64,
        /// Whether it takes effect at the release of the grant only.
        staged: bool,
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
    /// The grant is offered to another session, or an offer was taken back.
    Offered {
        /// The number of the session that may take it over now, if one may.
        client: Option<u64>,
    },
    /// The grant was broken.
    Broken {
        /// The command that broke it.
        op: Op,
    },
    /// The holder of the grant is asked to let go.
    ReleaseAsked {
        /// When the grant will be broken, in milliseconds from the command, if ever.
        deadline_ms: Option<u64>,
    },
    /// The transaction took effect.
    Applied {
        /// The version of every key that it set: the command.
        version: Op,
        /// Whether it takes effect at the release of the grant only.
        staged: bool,
    },
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
    /// The first of the locks asked for that is in the way; none if the request was answered for another reason.
    pub key: Option<Name>,
    /// The nearest earlier request in the way, if that is why.
    pub ahead: Option<Ahead>,
    /// How many waits stand in the longest line that it joined or would have joined, itself left out.
    pub queue_total: u64,
    /// In how many milliseconds it may be served, from how long this lock was held lately; none if nothing is known.
    pub estimate_ms: Option<u64>,
}

/// An earlier request that is in the way of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ahead {
    /// The session's public number.
    pub client: u64,
    /// The session's name.
    pub name: ArcStr,
    /// The owner inside it.
    pub owner: ArcStr,
    /// The label of the request.
    pub label: ArcStr,
    /// How the lock is asked for.
    pub mode: Mode,
    /// The grant that it converts, if it is a conversion.
    pub converts: Option<Token>,
    /// For how long it has waited, in milliseconds.
    pub waited_ms: u64,
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
    /// A conversion of a grant of this lock waits, and stands before all others.
    Conversion,
    /// The last tenure did not end with a release, and the lock stays closed for its lock-delay.
    LockDelay,
    /// The grant that was to be converted ended.
    GrantEnded,
}

/// A holder, as told to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The session's public number.
    pub client: u64,
    /// The session's name.
    pub name: ArcStr,
    /// The owner inside it.
    pub owner: ArcStr,
    /// The grant's label.
    pub label: ArcStr,
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
    /// What whoever ended it said of it; may be empty.
    pub note: ArcStr,
}

/// That the holder of a grant is asked to let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The number of the session that asks.
    pub client: u64,
    /// Why.
    pub reason: ArcStr,
    /// When the grant will be broken, if ever.
    pub deadline: Option<Time>,
    /// The command that asked, or that gave the grant to the session that holds it now.
    pub op: Op,
}

/// That another session may take a grant over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// The number of that session.
    pub client: u64,
    /// The command that offered it.
    pub op: Op,
}

/// Why a grant ended without a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossReason {
    /// Its own lease ran out.
    LeaseExpired,
    /// It was held for as long as it may be.
    HeldTooLong,
    /// An operator broke it, or its holder was asked to let go and did not.
    Broken,
    /// Another session took it over.
    TakenOver,
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
    /// The holder of a grant is asked to let go; the asking is in the state.
    Asked {
        /// The session.
        session: SessionId,
        /// The grant.
        token: Token,
    },
    /// A grant was offered to a session; the offer is in the state.
    Offered {
        /// The session that may take it over.
        session: SessionId,
        /// The grant.
        token: Token,
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
                .chain(blocked.key.iter().map(|key| key.len()))
                .chain(
                    blocked
                        .ahead
                        .iter()
                        .map(|ahead| 96 + ahead.name.len() + ahead.owner.len() + ahead.label.len()),
                )
                .sum(),
            Outcome::Granted { asks, .. } => asks.iter().map(|ask| 24 + ask.key.len()).sum(),
            Outcome::Refused(refusal) => {
                refusal.message.len()
                    + match &refusal.detail {
                        Detail::Held { tokens } => 8 * tokens.len(),
                        Detail::Cycle { cycle, .. } => cycle.iter().map(CycleStep::weight).sum(),
                        Detail::VersionOf { key, .. } => key.len(),
                        Detail::None
                        | Detail::Again { .. }
                        | Detail::Limit { .. }
                        | Detail::LimitAgain { .. }
                        | Detail::Version { .. }
                        | Detail::Waits { .. }
                        | Detail::Slots { .. }
                        | Detail::Compacted { .. }
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
            | Outcome::Void
            | Outcome::Offered { .. }
            | Outcome::Broken { .. }
            | Outcome::ReleaseAsked { .. }
            | Outcome::Applied { .. } => 0,
        };
        64 + bytes as u64
    }
}
