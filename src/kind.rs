//! Kinds of errors: the word a program tests, the code on the wire, and the sentence for a person.

use crate::identity::Token;
use crate::name::Name;
use arcstr::ArcStr;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a request was refused. The codes are frozen: a number is never given to another kind (`docs/protocol.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The datagram is not JSON.
    Parse,
    /// JSON, but not a JSON-RPC 2.0 request as this protocol has it.
    InvalidRequest,
    /// No such method.
    UnknownMethod,
    /// A parameter is missing, unknown, of the wrong type or out of its range.
    InvalidParams,
    /// The server broke its own rules; please report it.
    Internal,
    /// A name of a lock, key or file is against the rules.
    BadName,
    /// The session is unknown or has ended. Speaks of this copy of the request only.
    NoSession,
    /// The id is below what the client has acknowledged. This copy was not executed; an earlier one may have been.
    StaleRequest,
    /// The same id was used before with another body.
    RequestReused,
    /// The token is not that of a live grant of the caller, or the request needs a grant and has none.
    NotHolder,
    /// The key is guarded by a lock that is held, and the request names no token.
    Guarded,
    /// The owner holds or waits for what it asks for.
    AlreadyHeld,
    /// Waiting would close a cycle of owners that wait for each other.
    Deadlock,
    /// `if_version` is not the version of the key.
    VersionMismatch,
    /// No such thing.
    NotFound,
    /// The position asked for is older than the history kept.
    Compacted,
    /// A cap was reached; `limit` names it, `max` is its number.
    Limit,
    /// What was sent, or would be sent back, is over the size allowed.
    TooLarge,
    /// The disk has no room for new work. Nothing was done; repeat the same id later.
    NoSpace,
    /// The file on disk could not be written or was changed by somebody else; `repair_file` opens it again.
    FileFault,
    /// Too much work at once. Nothing was done; repeat the same id after `retry_ms`.
    Busy,
    /// The server is stopping. Nothing was done; repeat the same id when it is back.
    Draining,
    /// The address has not shown that it receives; repeat the same id with the `cookie` given.
    Verify,
    /// The caller may not do this.
    Forbidden,
    /// Known, but not built in this version.
    Unsupported,
}

impl Kind {
    /// Every kind, in the order of [`Kind`].
    pub const ALL: [Kind; 25] = [
        Kind::Parse,
        Kind::InvalidRequest,
        Kind::UnknownMethod,
        Kind::InvalidParams,
        Kind::Internal,
        Kind::BadName,
        Kind::NoSession,
        Kind::StaleRequest,
        Kind::RequestReused,
        Kind::NotHolder,
        Kind::Guarded,
        Kind::AlreadyHeld,
        Kind::Deadlock,
        Kind::VersionMismatch,
        Kind::NotFound,
        Kind::Compacted,
        Kind::Limit,
        Kind::TooLarge,
        Kind::NoSpace,
        Kind::FileFault,
        Kind::Busy,
        Kind::Draining,
        Kind::Verify,
        Kind::Forbidden,
        Kind::Unsupported,
    ];

    /// The JSON-RPC error code. The first five are the standard's own, the rest count down from -32001.
    pub const fn code(self) -> i32 {
        match self {
            Kind::Parse => -32700,
            Kind::InvalidRequest => -32600,
            Kind::UnknownMethod => -32601,
            Kind::InvalidParams => -32602,
            Kind::Internal => -32603,
            Kind::BadName => -32001,
            Kind::NoSession => -32002,
            Kind::StaleRequest => -32003,
            Kind::RequestReused => -32004,
            Kind::NotHolder => -32005,
            Kind::Guarded => -32006,
            Kind::AlreadyHeld => -32007,
            Kind::Deadlock => -32008,
            Kind::VersionMismatch => -32009,
            Kind::NotFound => -32010,
            Kind::Compacted => -32011,
            Kind::Limit => -32012,
            Kind::TooLarge => -32013,
            Kind::NoSpace => -32014,
            Kind::FileFault => -32015,
            Kind::Busy => -32016,
            Kind::Draining => -32017,
            Kind::Verify => -32018,
            Kind::Forbidden => -32019,
            Kind::Unsupported => -32020,
        }
    }

    /// The word on the wire, as in `not_holder`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Parse => "parse",
            Kind::InvalidRequest => "invalid_request",
            Kind::UnknownMethod => "unknown_method",
            Kind::InvalidParams => "invalid_params",
            Kind::Internal => "internal",
            Kind::BadName => "bad_name",
            Kind::NoSession => "no_session",
            Kind::StaleRequest => "stale_request",
            Kind::RequestReused => "request_reused",
            Kind::NotHolder => "not_holder",
            Kind::Guarded => "guarded",
            Kind::AlreadyHeld => "already_held",
            Kind::Deadlock => "deadlock",
            Kind::VersionMismatch => "version_mismatch",
            Kind::NotFound => "not_found",
            Kind::Compacted => "compacted",
            Kind::Limit => "limit",
            Kind::TooLarge => "too_large",
            Kind::NoSpace => "no_space",
            Kind::FileFault => "file_fault",
            Kind::Busy => "busy",
            Kind::Draining => "draining",
            Kind::Verify => "verify",
            Kind::Forbidden => "forbidden",
            Kind::Unsupported => "unsupported",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal: the kind, a sentence that says what, where and what to do, and what a program needs to act on it.
///
/// As an outcome of the log it is kept and told again like any other; before the log it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The kind.
    pub kind: Kind,
    /// The sentence for a person.
    pub message: String,
    /// What a program needs.
    pub detail: Detail,
}

/// What a program needs to act on a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detail {
    /// Nothing beside the kind. The refusal is for good.
    None,
    /// Nothing was done: repeat the same id, after so many milliseconds if more than 0.
    Again {
        /// How long to wait before the same id is sent again, in milliseconds.
        retry_ms: u64,
    },
    /// A cap of the configuration was reached; for good.
    Limit {
        /// Its name, as in `status`.
        limit: String,
        /// Its number.
        max: u64,
    },
    /// A cap on what may be outstanding was reached: repeat the same id when something has been acknowledged.
    LimitAgain {
        /// Its name, as in `status`.
        limit: String,
        /// Its number.
        max: u64,
    },
    /// The version that the key has, 0 if it does not exist.
    Version {
        /// The version.
        version: u64,
    },
    /// What the owner holds already.
    Held {
        /// The tokens of its grants that overlap with what it asked for.
        tokens: Vec<Token>,
    },
    /// What the owner waits for already.
    Waits {
        /// The id of its wait.
        wait: u64,
    },
    /// The proof of address to send back.
    Cookie {
        /// 32 hex digits.
        cookie: String,
    },
    /// The cycle of owners that waiting would have closed.
    Cycle {
        /// The asker first; each waits for the next, the last for the asker. At most
        /// [`CYCLE_SHOWN`](crate::limits::CYCLE_SHOWN) of them.
        cycle: Vec<CycleStep>,
        /// How many there are in all.
        cycle_total: u64,
    },
    /// The number of slots in force.
    Slots {
        /// The number.
        slots: u32,
    },
    /// The version that a key of a transaction has, 0 if it does not exist.
    VersionOf {
        /// The key.
        key: Name,
        /// The version.
        version: u64,
    },
    /// How far back the history goes.
    Compacted {
        /// The oldest op after which all events are kept.
        oldest: u64,
    },
}

/// An owner in a cycle of owners that wait for each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CycleStep {
    /// The public number of its session.
    pub client: u64,
    /// The session's name.
    pub name: ArcStr,
    /// The owner inside it.
    pub owner: ArcStr,
    /// The label of its request.
    pub label: ArcStr,
    /// The lock it waits for, in whose way the next one is.
    pub key: Name,
    /// The grant of the next one that is in the way; none if the next one only stands before it in line.
    pub token: Option<Token>,
}

impl CycleStep {
    /// About how many bytes keeping it takes.
    pub fn weight(&self) -> usize {
        64 + self.name.len() + self.owner.len() + self.label.len() + self.key.len()
    }
}

impl Refusal {
    /// A refusal for good with nothing beside the sentence.
    pub fn new(kind: Kind, message: impl Into<String>) -> Refusal {
        Refusal { kind, message: message.into(), detail: Detail::None }
    }

    /// The same refusal with what a program needs.
    pub fn with(mut self, detail: Detail) -> Refusal {
        self.detail = detail;
        self
    }

    /// A refusal for a cap of the configuration.
    pub fn limit(limit: &str, max: u64, message: impl Into<String>) -> Refusal {
        Refusal::new(Kind::Limit, message).with(Detail::Limit { limit: limit.into(), max })
    }

    /// Whether this is the final answer to the request, or the same id may be repeated.
    pub fn is_final(&self) -> bool {
        !matches!(self.detail, Detail::Again { .. } | Detail::LimitAgain { .. } | Detail::Cookie { .. })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.kind)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_kind_has_one_word_and_one_code_of_its_own() {
        let codes: BTreeSet<i32> = Kind::ALL.iter().map(|kind| kind.code()).collect();
        assert_eq!(codes.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        }
    }
}
