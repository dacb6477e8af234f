//! How a command fails: a sentence on stderr, and an exit code that a script can act on.
//!
//! The codes are those of `flock` and `sysexits.h` where those have one. The help of the program lists them.

use std::fmt;
use std::io;
use std::process::ExitCode;
use tenure::client::Error;
use tenure::kind::Kind;

/// Refused for another reason than those below: not found, another version, a cap, a full disk.
pub(crate) const REFUSED: u8 = 1;
/// The command line, or a name or number in it, is wrong.
pub(crate) const USAGE: u8 = 64;
/// No server answers, or it takes no work now. Nothing changed.
pub(crate) const UNREACHABLE: u8 = 69;
/// The program or the server broke its own rules.
pub(crate) const INTERNAL: u8 = 70;
/// A change was sent and no answer came: it may have taken effect.
pub(crate) const UNKNOWN: u8 = 74;
/// The lock was not acquired.
pub(crate) const NOT_ACQUIRED: u8 = 75;
/// The lock is not held, or not any more.
pub(crate) const LOST: u8 = 76;
/// Somebody else's lock guards it, or the server does not allow it.
pub(crate) const NOT_PERMITTED: u8 = 77;

/// The codes, as the help shows them.
pub(crate) const HELP: &str = "\
Exit codes:
   0  done
   1  refused: not found, another version, a cap, a full disk; or the server could not start
  64  the command line, or a name or number in it, is wrong
  69  no server answers, or it takes no work now; nothing changed
  70  the program or the server broke its own rules
  74  a change was sent and no answer came: it may have taken effect
  75  the lock was not acquired (-E gives another code)
  76  the lock is not held, or not any more
  77  somebody else's lock guards it, or the server does not allow it

`tenure run` ends with the code of its command: 128 and the number of the signal that ended it, 127 if it was not found.

Durations have a unit: 500ms, 10s, 1.5m, 3h, 1d. Every flag has a variable; the flag wins.
Results go to stdout, everything else to stderr.";

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// The sentence for stderr; empty if there is nothing to say.
    pub(crate) sentence: String,
}

/// What a command gives.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub(crate) fn new(code: u8, sentence: impl Into<String>) -> Failure {
        Failure { code, sentence: sentence.into() }
    }

    /// Tells on stderr, and gives the code for `main`.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.sentence.is_empty() {
            eprintln!("tenure: {}", self.sentence);
        }
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let code = match &error {
            Error::NotGranted(_) | Error::AlreadyHeld { .. } => NOT_ACQUIRED,
            Error::Lost(_) | Error::SessionEnded { .. } => LOST,
            Error::OutcomeUnknown { .. } => UNKNOWN,
            Error::Unreachable { .. } | Error::Io(_) => UNREACHABLE,
            Error::Invalid(_) => USAGE,
            Error::Protocol { .. } | Error::Closed => INTERNAL,
            Error::Compacted { .. } => REFUSED,
            Error::Refused { .. } => error.kind().map_or(REFUSED, refused),
            // The library may learn more errors than this program knows.
            _ => REFUSED,
        };
        Failure::new(code, error.to_string())
    }
}

/// The code of a refusal.
fn refused(kind: Kind) -> u8 {
    match kind {
        Kind::Internal => INTERNAL,
        Kind::BadName | Kind::InvalidParams | Kind::TooLarge => USAGE,
        Kind::NotHolder | Kind::NoSession => LOST,
        Kind::AlreadyHeld | Kind::Deadlock => NOT_ACQUIRED,
        Kind::Guarded | Kind::Forbidden => NOT_PERMITTED,
        Kind::Busy | Kind::Draining | Kind::Verify => UNREACHABLE,
        Kind::Parse
        | Kind::InvalidRequest
        | Kind::UnknownMethod
        | Kind::StaleRequest
        | Kind::RequestReused
        | Kind::VersionMismatch
        | Kind::NotFound
        | Kind::Compacted
        | Kind::Limit
        | Kind::NoSpace
        | Kind::FileFault
        | Kind::Unsupported => REFUSED,
    }
}

/// An error of stdout. A reader that has gone away (`tenure cat x | head -1`) has what it wanted: that is quiet and no
/// failure.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::new(0, "");
        }
        Failure::new(REFUSED, format!("the output could not be written: {error}"))
    }
}
