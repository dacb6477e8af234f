//! What can go wrong for a caller, by what the caller should do about it.

use super::blocked::Person;
use super::{Blocked, LostGrant};
use crate::kind::Kind;
use crate::wire::{CycleStepShown, ErrorData};
use std::fmt;
use std::io;
use std::net::SocketAddr;

/// Why a call did not give what was asked for. Each variant says whether the server's state has changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The lock was not granted: somebody is in the way, or the wait ended. Nothing changed. Try later, or wait.
    NotGranted(Box<Blocked>),
    /// The owner holds or waits for what it asks for; two guards never share a grant. Nothing changed. Use the guard that
    /// there is, or name another [`owner`](super::LockRequest::owner).
    AlreadyHeld {
        /// Tokens of the grants that the owner holds already.
        tokens: Vec<u64>,
        /// The id of the wait that the owner has already.
        wait: Option<u64>,
    },
    /// Waiting would have closed a cycle of owners that wait for each other, so it could never have ended. Nothing changed.
    /// Release what the others wait for, then try again; ask for several locks in one request, or always in one order.
    Deadlock {
        /// The asker first; each waits for the next, the last for the asker. At most 8 of them.
        cycle: Vec<CycleStepShown>,
        /// How many there are.
        cycle_total: u64,
    },
    /// The server refused the request for good. Nothing changed. The kind says what to do.
    Refused {
        /// The kind, as in `not_holder`. Text, since servers may know kinds that this library does not.
        kind: String,
        /// The sentence for a person.
        message: String,
        /// What a program needs.
        data: Box<ErrorData>,
    },
    /// The grant is lost, or may be: the lease ran out or the server ended it. The call itself was not sent or was
    /// refused, so it changed nothing. Stop the work that the lock protects, and acquire again.
    Lost(LostGrant),
    /// The request was sent and no answer came in time: it may have taken effect or not, once at most. A later request
    /// of this session that is answered settles it: what had no effect by then never will. Read the state to see which.
    OutcomeUnknown {
        /// The method.
        method: String,
        /// The id of the request in its session.
        id: u64,
        /// What happened.
        why: String,
    },
    /// The server did not answer in time, and nothing that changes the state was sent. Nothing changed. Look at the
    /// address, whether the server runs, and whether UDP passes.
    Unreachable {
        /// Where the requests went.
        server: SocketAddr,
        /// The method.
        method: String,
        /// What happened, and what to check.
        why: String,
    },
    /// The session has ended and the request was not executed: all its grants are lost. Nothing changed. Open a new
    /// session: with [`reopen`](super::Builder::reopen) the next call does.
    SessionEnded {
        /// How that became known.
        why: String,
    },
    /// What was asked for cannot be sent: too large, or not JSON. Nothing was sent and nothing changed.
    Invalid(String),
    /// The server answered with something that this library does not understand. The request took effect.
    Protocol {
        /// The method.
        method: String,
        /// What was not understood.
        message: String,
    },
    /// What a watch was to tell is not in the server's history any more, or the server's log has not come so far. Nothing
    /// changed. Read anew what is there, and watch from the `op` of that.
    Compacted {
        /// The oldest op after which the server has all events.
        oldest: u64,
        /// The sentence for a person.
        message: String,
    },
    /// The client was closed or detached. Nothing was sent and nothing changed.
    Closed,
    /// The socket failed at its making, or the address could not be resolved. Nothing was sent and nothing changed.
    Io(io::Error),
}

impl Error {
    /// The kind of a refusal, if this is one and this library knows it.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Error::Refused { kind, .. } => Kind::ALL.into_iter().find(|known| known.as_str() == kind),
            Error::AlreadyHeld { .. } => Some(Kind::AlreadyHeld),
            Error::Deadlock { .. } => Some(Kind::Deadlock),
            Error::Compacted { .. } => Some(Kind::Compacted),
            _ => None,
        }
    }

    /// Whether the state may have changed although the call failed.
    pub fn may_have_changed(&self) -> bool {
        matches!(self, Error::OutcomeUnknown { .. } | Error::Protocol { .. })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotGranted(blocked) => write!(f, "not granted: {blocked}"),
            Error::AlreadyHeld { tokens, wait: None } => {
                write!(f, "this owner holds it already (tokens {tokens:?})")
            }
            Error::AlreadyHeld { wait: Some(wait), .. } => {
                write!(f, "this owner already waits for a lock (request {wait})")
            }
            Error::Deadlock { cycle, cycle_total } => show_cycle(f, cycle, *cycle_total),
            Error::Refused { kind, message, .. } => write!(f, "{message} ({kind})"),
            Error::Lost(lost) => write!(f, "{lost}"),
            Error::OutcomeUnknown { method, id, why } => {
                write!(f, "the outcome of {method} (request {id}) is unknown: {why}")
            }
            Error::Unreachable { server, method, why } => {
                write!(f, "{method}: {server} gave no answer: {why}")
            }
            Error::SessionEnded { why } => {
                write!(f, "the session has ended and its grants are lost: {why}; open a new one")
            }
            Error::Invalid(what) => f.write_str(what),
            Error::Protocol { method, message } => {
                write!(f, "the answer to {method} was not understood: {message}")
            }
            Error::Compacted { oldest, message } => {
                write!(f, "{message} (compacted; the history begins behind op {oldest})")
            }
            Error::Closed => f.write_str("the client is closed"),
            Error::Io(error) => write!(f, "{error}"),
        }
    }
}

/// Each in the cycle, what it waits for, and under which token the next one has that.
fn show_cycle(f: &mut fmt::Formatter<'_>, cycle: &[CycleStepShown], total: u64) -> fmt::Result {
    f.write_str("waiting would be a deadlock, nothing was changed: ")?;
    for (at, step) in cycle.iter().enumerate() {
        let before = if at == 0 { "" } else { ", who " };
        if at == 0 {
            write!(f, "{} ", Person(step.client, &step.name, &step.owner, &step.label))?;
        }
        write!(f, "{before}waits for {:?} ", step.key)?;
        match step.token {
            Some(token) => write!(f, "held under token {token} by ")?,
            None => f.write_str("behind ")?,
        }
        match cycle.get(at + 1) {
            Some(next) => write!(f, "{}", Person(next.client, &next.name, &next.owner, &next.label))?,
            None if total > cycle.len() as u64 => {
                write!(f, "the next of {} more, the last of whom waits for", total - cycle.len() as u64)?;
                f.write_str(" the first")?;
            }
            None => f.write_str("the first")?,
        }
    }
    Ok(())
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}
