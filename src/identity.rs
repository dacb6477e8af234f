//! Who and which: session ids, nonces, and the numbers of clients, grants and commands.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// The number of a command in the log, from 1. Also the version of a key that the command changed.
pub type Op = u64;

/// A place in the order of events: behind those of all commands before `op`, and behind the first `seen` of `op` itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The command.
    pub op: Op,
    /// How many of its events lie behind.
    pub seen: u64,
}

impl Position {
    /// Behind everything that a command did.
    pub const fn behind(op: Op) -> Position {
        Position { op: op + 1, seen: 0 }
    }
}

impl fmt::Display for Position {
    /// As in `17.0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.op, self.seen)
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| digits.parse().ok().filter(|number| *number <= INTEGER_MAX + 1);
        text.split_once('.')
            .and_then(|(op, seen)| Some(Position { op: number(op)?, seen: number(seen)? }))
            .ok_or_else(|| format!("{text:?} is no position"))
    }
}

/// The number that marks one grant: greater than that of every earlier grant of this server.
pub type Token = u64;

/// The number of one reign of one server over the log; each start is a new term.
pub type Term = u64;

/// The greatest integer on the wire, 2^53 - 1: what every JSON reader can hold exactly (RFC 8259, section 6).
pub const INTEGER_MAX: u64 = (1 << 53) - 1;

/// By how much [`Op`] and [`Token`] are raised when what was told may have been lost: after an unclean stop under
/// `os` or `none`, and by a restore. More than a server could have told and lost.
pub const RAISE: u64 = 1 << 32;

/// The number that 8 hex digits are, all of them looked at together: each byte of a word is one of them.
fn hex_8(digits: [u8; 8]) -> Option<u32> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let word = u64::from_be_bytes(digits);
    // Letters have a bit that digits lack, and count from 9 on.
    let letters = word >> 6 & ONES;
    let values = (word & (ONES * 0x0f)) + letters * 9;
    // Whatever is no digit does not come back from its value.
    let above_9 = (values + ONES * 6) >> 4 & ONES;
    let lower_case = values + ONES * u64::from(b'0') + above_9 * u64::from(b'a' - b'0' - 10);
    if values & (ONES * 0xf0) != 0 || lower_case != word | letters << 5 {
        return None;
    }
    let by_two = (values | values >> 4) & 0x00ff_00ff_00ff_00ff;
    let by_four = (by_two | by_two >> 8) & 0x0000_ffff_0000_ffff;
    Some((by_four | by_four >> 16) as u32)
}

/// The number that exactly 32 hex digits are.
fn hex(text: &[u8]) -> Option<u128> {
    let digits: &[u8; 32] = text.try_into().ok()?;
    let (eights, _) = digits.as_chunks::<8>();
    eights.iter().try_fold(0, |number, eight| Some(number << 32 | u128::from(hex_8(*eight)?)))
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = String;

            /// Reads exactly 32 hex digits, lower case or upper.
            fn from_str(text: &str) -> Result<Self, String> {
                hex(text.as_bytes()).map($name).ok_or_else(|| {
                    format!(concat!("a ", $what, " is 32 hex digits, not {} bytes"), text.len())
                })
            }
        }

        impl Serialize for $name {
            /// Hex digits where people read, bytes where they do not.
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.to_be_bytes().serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                    text.parse().map_err(de::Error::custom)
                } else {
                    <[u8; 16]>::deserialize(deserializer).map(|bytes| $name(u128::from_be_bytes(bytes)))
                }
            }
        }
    };
}

hex_id!(
    /// The secret name of a session: who knows it, acts for it. Never logged, masked where state is shown.
    SessionId,
    "session id"
);

hex_id!(
    /// What a client draws at random to open a session, so that a retry opens the same one. As secret as the session.
    Nonce,
    "nonce"
);

impl fmt::Debug for SessionId {
    /// The first 8 digits only: enough to tell sessions apart in a log, not enough to act for one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}…", self.0 >> 96)
    }
}

impl fmt::Debug for Nonce {
    /// The first 8 digits only, as for a session id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}…", self.0 >> 96)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_as_json_and_as_bytes() {
        let id = SessionId(0x00ab << 100 | 7);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json.len(), 34);
        assert_eq!(serde_json::from_str::<SessionId>(&json).unwrap(), id);
        let bytes = postcard::to_stdvec(&id).unwrap();
        assert_eq!(bytes.len(), 16);
        assert_eq!(postcard::from_bytes::<SessionId>(&bytes).unwrap(), id);
    }

    /// Each byte in each place, and what the standard library says of it.
    #[test]
    fn an_id_is_32_hex_digits_of_either_case() {
        let digits = *b"0123456789abcdefFEDCBA9876543210";
        for place in 0..32 {
            for byte in 0..128 {
                let mut text = digits;
                text[place] = byte;
                let text = std::str::from_utf8(&text).unwrap();
                let known = u128::from_str_radix(text, 16).ok().filter(|_| !text.contains('+'));
                assert_eq!(text.parse::<SessionId>().ok().map(|id| id.0), known, "{text:?}");
            }
        }
        for text in ["ÿ".repeat(16), "\u{10ffff}".repeat(8)] {
            assert!(text.parse::<SessionId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_id_of_another_length_or_alphabet_is_refused() {
        for text in ["", "12", "+0000000000000000000000000000001", &"g".repeat(32), &"0".repeat(33)] {
            assert!(text.parse::<SessionId>().is_err(), "{text:?} was taken for an id");
        }
    }

    #[test]
    fn debug_output_does_not_give_the_secret_away() {
        let shown = format!("{:?}", SessionId(u128::MAX));
        assert!(shown.len() < 16, "{shown}");
    }
}
