//! Commands: requests and the server's own decisions once they have their place in the log.

use crate::asks::Asks;
use crate::encoding::{self, Out};
use crate::identity::{INTEGER_MAX, Nonce, SessionId, Term, Token};
use crate::limits::Limits;
use crate::name::Name;
use crate::time::Time;
use arcstr::ArcStr;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use std::sync::Arc;

/// The number of the rules that [`State::apply`](crate::state::State::apply) follows. It rises with every change that
/// lets the same commands give another state or outcome; a journal written under other rules is not replayed.
pub const RULES: u32 = 3;

/// A command with the moment it was given: what the log orders and the journal keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The log time at which it was submitted; never smaller than that of the entry before.
    pub at: Time,
    /// How far the clock was ahead of log time then, in microseconds: while requests that were read wait, log time waits with
    /// them (`src/turn.rs`). What is over is judged by log time, what begins is counted by the clock.
    pub ahead_us: u64,
    /// The command.
    pub command: Command,
}

impl Entry {
    /// What the clock showed when it was submitted, as log time.
    pub fn clock(&self) -> Time {
        self.at.after_us(self.ahead_us)
    }
}

/// A command. New variants go to the end: the journal names them by number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// The first command of a term: renews every live session once.
    NewTerm {
        /// The term, greater than every earlier one.
        term: Term,
        /// The caps in force from here.
        limits: Limits,
        /// What acknowledged means from here: decides whether the next start must raise the counters.
        durability: Durability,
        /// Whether the log's `op` was raised by [`RAISE`](crate::identity::RAISE) before this command, and the token
        /// counter must be.
        raised: bool,
    },
    /// Opens a session, or finds the one that the same nonce opened.
    OpenSession {
        /// Drawn by the client.
        nonce: Nonce,
        /// The id that the session gets if it is new, drawn by the server.
        session: SessionId,
        /// The client's name for itself; may be empty.
        name: String,
        /// A note for people; may be empty.
        label: String,
        /// TTL in milliseconds.
        ttl_ms: u64,
    },
    /// Ends a session: all its tokens are fenced by this one mark.
    EndSession {
        /// The session.
        session: SessionId,
        /// The term that judged it; void in another.
        term: Term,
        /// Why.
        reason: EndReason,
    },
    /// Lets log time pass: deadlines that are due take effect, and what ended sessions left is cleaned up, at most
    /// [`SWEEP_MAX`](crate::limits::SWEEP_MAX) of each.
    Tick,
    /// The disk could not take what the log says of a file, or somebody else changed it: closes it to later appends.
    FileFault {
        /// The file.
        file: Name,
        /// Its generation; void if the file has another by now.
        generation: u64,
        /// What was found, as a sentence.
        reason: String,
    },
    /// A request of a session.
    Request(Request),
}

/// A logged request of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The session that asks.
    pub session: SessionId,
    /// Its number for the request, from 1.
    pub id: u64,
    /// The client will never again send an id below this, waits excepted; 0 if it said nothing.
    pub ack: u64,
    /// Ids of waits whose replies the client has.
    pub got: Vec<u64>,
    /// What it asks.
    pub call: Call,
}

/// What a logged request asks. New variants go to the end: the journal names them by number.
///
/// `holder` is the session whose grant is meant, where that is not the session that asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// `acquire_lock`
    Acquire {
        /// The locks, all or none of them; sorted by name, each name once.
        asks: Asks,
        /// Whether and how long to stand in line.
        wait: Patience,
        /// The owner inside the session; empty is the session itself.
        owner: String,
        /// What the grant is to be like.
        terms: Terms,
    },
    /// `cancel_wait`
    CancelWait {
        /// The id of the wait.
        wait: u64,
    },
    /// `release_lock`
    Release {
        /// The grant.
        token: Token,
        /// Whose.
        holder: Option<SessionId>,
    },
    /// `abandon`
    Abandon {
        /// The grant.
        token: Token,
        /// Whose.
        holder: Option<SessionId>,
    },
    /// `renew_lease`
    RenewLease {
        /// The grant.
        token: Token,
        /// Whose.
        holder: Option<SessionId>,
        /// From now on so many milliseconds.
        lease_ms: u64,
    },
    /// `set`
    Set {
        /// The key.
        key: Name,
        /// JSON text as it came.
        value: ArcStr,
        /// The version that the key must have; 0: it must not exist.
        if_version: Option<u64>,
        /// How long the key lives.
        life: Life,
        /// The grant.
        token: Option<Token>,
        /// Whose.
        holder: Option<SessionId>,
    },
    /// `delete`
    Delete {
        /// The key.
        key: Name,
        /// The version that the key must have.
        if_version: Option<u64>,
        /// The grant.
        token: Option<Token>,
        /// Whose.
        holder: Option<SessionId>,
    },
    /// `append_file`
    AppendFile {
        /// The file.
        file: Name,
        /// The bytes.
        data: Arc<[u8]>,
        /// The grant.
        token: Token,
        /// Whose.
        holder: Option<SessionId>,
    },
    /// `delete_file`
    DeleteFile {
        /// The file.
        file: Name,
        /// The grant.
        token: Token,
        /// Whose.
        holder: Option<SessionId>,
    },
    /// `rotate_file`
    RotateFile {
        /// The file.
        file: Name,
        /// Its name from here; must not exist.
        to: Name,
        /// The grant.
        token: Token,
        /// Whose.
        holder: Option<SessionId>,
    },
    /// `repair_file`
    RepairFile {
        /// The file.
        file: Name,
        /// The generation that was looked at, or 0 if nothing was: then the request repairs nothing, and is refused if the
        /// file is closed.
        generation: u64,
        /// The length found on disk, in bytes.
        length: u64,
        /// The CRC-32C of the bytes found.
        checksum: u32,
        /// The grant.
        token: Token,
        /// Whose.
        holder: Option<SessionId>,
    },
    /// `convert_lock`
    Convert {
        /// The grant.
        token: Token,
        /// Whose.
        holder: Option<SessionId>,
        /// The locks of the grant whose mode is to change, with the new mode; sorted by name, each name once.
        asks: Asks,
        /// Whether and how long to wait for it, the grant held meanwhile as it is.
        wait: Patience,
    },
    /// `hand_over`: offers a grant to another session, which may then take it over. The grant stays where it is until then.
    HandOver {
        /// The grant.
        token: Token,
        /// Whose.
        holder: Option<SessionId>,
        /// The number of the session that may take it; none takes an offer back.
        client: Option<u64>,
    },
    /// `take_over`: makes a grant that was offered the caller's, under a new token.
    TakeOver {
        /// The grant.
        token: Token,
        /// Whose, if the caller knows that session's id; then no offer is needed.
        holder: Option<SessionId>,
        /// The owner that gets it, inside the caller's session.
        owner: String,
        /// The label that it has from here; may be empty.
        label: String,
    },
    /// `break_lock`: ends a grant whether its holder agrees or not.
    BreakLock {
        /// The grant.
        token: Token,
        /// Why, for its holder and for the log.
        reason: String,
    },
    /// `ask_release`: asks the holder of a grant to let go.
    AskRelease {
        /// The grant.
        token: Token,
        /// Why, for its holder and for the log.
        reason: String,
        /// After so many milliseconds the grant is broken; never, if absent.
        deadline_ms: Option<u64>,
    },
    /// `transaction`: if every key has the version that it is compared with, all changes take effect, else none.
    Transaction {
        /// What is compared; sorted by key, each key once.
        compare: Vec<Compare>,
        /// What changes; sorted by key, each key once.
        apply: Vec<Change>,
        /// The grant.
        token: Option<Token>,
        /// Whose.
        holder: Option<SessionId>,
    },
}

/// What a grant is to be like beside its locks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// A note for people; may be empty.
    pub label: ArcStr,
    /// The grant's own lease in milliseconds, if it is to have one.
    pub lease_ms: Option<u64>,
    /// Whether what is written under it is staged, and takes effect together at its release or not at all.
    pub atomic: bool,
    /// For how many milliseconds its locks stay closed after any end of it but a release; 0 for not at all.
    pub lock_delay_ms: u64,
    /// After how many milliseconds it ends whatever is renewed, if ever.
    pub max_hold_ms: Option<u64>,
}

impl Terms {
    /// Those of a grant that lives as long as its session, with nothing said about it.
    pub const PLAIN: Terms =
        Terms { label: ArcStr::new(), lease_ms: None, atomic: false, lock_delay_ms: 0, max_hold_ms: None };
}

/// How long a key lives that is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// For so many milliseconds; for ever, if absent.
    pub ttl_ms: Option<u64>,
    /// Only as long as the session that set it.
    pub bound: bool,
}

/// What a key must be for a transaction to take effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// The key.
    pub key: Name,
    /// The version that it must have; 0: it must not exist.
    pub version: u64,
}

/// One change of a key in a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key.
    pub key: Name,
    /// The JSON text that it gets, as it came; none deletes it.
    pub value: Option<ArcStr>,
    /// How long it lives.
    pub life: Life,
}

/// One lock that an acquire asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ask {
    /// The lock.
    pub key: Name,
    /// How.
    pub mode: Mode,
}

/// How a lock is asked for or held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// By one holder alone.
    Exclusive,
    /// By any number of holders that all hold it so.
    Shared,
    /// As a semaphore: by holders whose weights together are at most its slots.
    Slot {
        /// How many slots it has; all who ask must say the same.
        slots: u32,
        /// How many of them this holder takes.
        weight: u32,
    },
}

/// How long an acquire stands in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Patience {
    /// Not at all.
    Try,
    /// At most so many milliseconds.
    Millis(u64),
    /// Until it is served.
    Forever,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// No sign of life for its TTL.
    Expired,
    /// Its client closed it.
    Closed,
    /// An operator ended it.
    Killed,
}

/// What acknowledged means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Synced to the disk: survives kill -9 and a power cut.
    Sync,
    /// Handed to the kernel: survives kill -9, not a power cut.
    Os,
    /// Written behind the reply: survives neither.
    None,
}

impl Ask {
    /// About how many bytes it takes in a record.
    fn weight(&self) -> usize {
        self.key.len() + 12
    }
}

/// Hashes what is encoded, without keeping it. What comes byte by byte is gathered first: it hashes the same, and faster.
struct Hashing {
    hasher: SipHasher13,
    gathered: [u8; 128],
    length: usize,
}

impl Hashing {
    fn new() -> Hashing {
        Hashing { hasher: SipHasher13::new(), gathered: [0; 128], length: 0 }
    }

    fn flush(&mut self) {
        self.hasher.write(&self.gathered[..self.length]);
        self.length = 0;
    }
}

impl Out for Hashing {
    #[inline]
    fn byte(&mut self, byte: u8) {
        if self.length == self.gathered.len() {
            self.flush();
        }
        self.gathered[self.length] = byte;
        self.length += 1;
    }

    fn bytes(&mut self, bytes: &[u8]) {
        if bytes.len() > self.gathered.len() - self.length {
            self.flush();
        }
        match self.gathered[self.length..].get_mut(..bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.length += bytes.len();
            }
            None => self.hasher.write(bytes),
        }
    }
}

impl Call {
    /// A hash of what is asked, of 53 bits so that every reader of a snapshot can hold it: two requests of one id are the
    /// same request if these agree.
    pub fn fingerprint(&self) -> u64 {
        // What was found on the disk is not asked by the client, and differs from copy to copy.
        let asked = match self {
            Call::RepairFile { file, token, holder, .. } => &Call::RepairFile {
                file: file.clone(),
                generation: 0,
                length: 0,
                checksum: 0,
                token: *token,
                holder: *holder,
            },
            call => call,
        };
        let mut hashing = Hashing::new();
        encoding::call(&mut hashing, asked);
        hashing.flush();
        hashing.hasher.finish() & INTEGER_MAX
    }

    /// Whether the request frees something, so that it may use the room held in reserve on a full disk.
    pub fn frees(&self) -> bool {
        match self {
            Call::Release { .. }
            | Call::Abandon { .. }
            | Call::RenewLease { .. }
            | Call::CancelWait { .. }
            | Call::Delete { .. }
            | Call::DeleteFile { .. }
            | Call::BreakLock { .. } => true,
            Call::Acquire { .. }
            | Call::Set { .. }
            | Call::AppendFile { .. }
            | Call::RotateFile { .. }
            | Call::RepairFile { .. }
            | Call::Convert { .. }
            | Call::HandOver { .. }
            | Call::TakeOver { .. }
            | Call::AskRelease { .. }
            | Call::Transaction { .. } => false,
        }
    }
}

impl Command {
    /// Whether the command may use the room held in reserve on a full disk.
    pub fn frees(&self) -> bool {
        match self {
            Command::Request(request) => request.call.frees(),
            Command::OpenSession { .. } => false,
            Command::NewTerm { .. }
            | Command::EndSession { .. }
            | Command::Tick
            | Command::FileFault { .. } => true,
        }
    }

    /// About how many bytes the record will have: what batches and the queue before the log are measured in.
    pub fn weight(&self) -> usize {
        64 + match self {
            Command::Request(request) => match &request.call {
                Call::Set { key, value, .. } => key.len() + value.len(),
                Call::AppendFile { file, data, .. } => file.len() + data.len(),
                Call::Acquire { asks, owner, terms, .. } => {
                    asks.iter().map(Ask::weight).sum::<usize>() + owner.len() + terms.label.len() + 24
                }
                Call::Convert { asks, .. } => asks.iter().map(Ask::weight).sum(),
                Call::TakeOver { owner, label, .. } => owner.len() + label.len(),
                Call::BreakLock { reason, .. } | Call::AskRelease { reason, .. } => reason.len(),
                Call::Transaction { compare, apply, .. } => {
                    let change = |change: &Change| {
                        change.key.len() + change.value.as_ref().map_or(0, |value| value.len()) + 24
                    };
                    compare.iter().map(|compare| compare.key.len() + 12).sum::<usize>()
                        + apply.iter().map(change).sum::<usize>()
                }
                Call::RotateFile { file, to, .. } => file.len() + to.len(),
                Call::Delete { key: name, .. }
                | Call::DeleteFile { file: name, .. }
                | Call::RepairFile { file: name, .. } => name.len(),
                Call::CancelWait { .. }
                | Call::Release { .. }
                | Call::Abandon { .. }
                | Call::RenewLease { .. }
                | Call::HandOver { .. } => 0,
            }
            .saturating_add(request.got.len() * 10),
            Command::OpenSession { name, label, .. } => name.len() + label.len() + 32,
            Command::FileFault { file, reason, .. } => file.len() + reason.len(),
            Command::NewTerm { .. } => 128,
            Command::EndSession { .. } | Command::Tick => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_tells_bodies_apart() {
        let release = |token| Call::Release { token, holder: None };
        assert_eq!(release(1).fingerprint(), release(1).fingerprint());
        assert_ne!(release(1).fingerprint(), release(2).fingerprint());
        assert_ne!(release(1).fingerprint(), Call::Abandon { token: 1, holder: None }.fingerprint());
    }

    /// Snapshots hold them: a later version must get the same ones. (`encoding.rs` tests those of other calls.)
    #[test]
    fn a_fingerprint_stays_what_it_is() {
        assert_eq!(Call::Release { token: 1, holder: None }.fingerprint(), 5_071_037_530_574_111);
    }

    #[test]
    fn an_entry_survives_its_record() {
        let entry = Entry {
            at: Time::from_micros(77),
            ahead_us: 300_000,
            command: Command::Request(Request {
                session: SessionId(5),
                id: 9,
                ack: 3,
                got: vec![1, 2],
                call: Call::AppendFile {
                    file: Name::new("file_0").unwrap(),
                    data: Arc::from(&b"\xff\x00 line\n"[..]),
                    token: 4,
                    holder: Some(SessionId(8)),
                },
            }),
        };
        let bytes = postcard::to_stdvec(&entry).unwrap();
        assert_eq!(postcard::from_bytes::<Entry>(&bytes).unwrap(), entry);
    }
}
