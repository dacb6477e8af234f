//! Datagrams: bytes as received or sent, and the trailer that tells damage from content.
//!
//! ```text
//! {"jsonrpc":"2.0",...}            a message
//! {"jsonrpc":"2.0",...}\nXXXXXXXX  a message with its CRC-32C, eight hex digits
//! ```
//!
//! The trailer covers every byte before the line feed. JSON that is an object or an array cannot end in hex digits, so
//! the two forms cannot be confused.

/// Bytes of the trailer: a line feed and eight hex digits.
pub const TRAILER: usize = 9;

/// A datagram that may be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// The message, without the trailer.
    pub message: &'a [u8],
    /// Whether there was a trailer; the reply mirrors it.
    pub sealed: bool,
}

/// Why a datagram was dropped without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropped {
    /// Under 8 bytes: nothing that could be a request.
    Short,
    /// The first byte is reserved for later framings.
    Reserved,
    /// Neither an object nor an array.
    NotJson,
    /// The checksum is wrong: damaged on the way.
    Damaged,
    /// A reply or notification, which a server does not answer, so that two servers cannot talk for ever.
    NotARequest,
    /// From an address that has not shown that it receives, and too short to answer without amplifying.
    Unproven,
    /// More came than could be done; whoever sent it asks again.
    Overload,
}

impl Dropped {
    /// Every cause, in order.
    pub const ALL: [Dropped; 7] = [
        Dropped::Short,
        Dropped::Reserved,
        Dropped::NotJson,
        Dropped::Damaged,
        Dropped::NotARequest,
        Dropped::Unproven,
        Dropped::Overload,
    ];

    /// The name of the cause in `status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Dropped::Short => "short",
            Dropped::Reserved => "reserved",
            Dropped::NotJson => "not_json",
            Dropped::Damaged => "damaged",
            Dropped::NotARequest => "not_a_request",
            Dropped::Unproven => "unproven",
            Dropped::Overload => "overload",
        }
    }
}

/// Takes the trailer off and checks it.
///
/// # Errors
/// Why the datagram is to be dropped.
pub fn open(bytes: &[u8]) -> Result<Opened<'_>, Dropped> {
    if bytes.len() < 8 {
        return Err(Dropped::Short);
    }
    match bytes.iter().find(|byte| !is_space(**byte)) {
        Some(b'{' | b'[') => {}
        Some(0x00..=0x1f | 0x80..=0xff) => return Err(Dropped::Reserved),
        Some(_) | None => return Err(Dropped::NotJson),
    }
    let trimmed = bytes.trim_ascii_end();
    let Some(at) = trimmed.len().checked_sub(TRAILER) else {
        return Ok(Opened { message: trimmed, sealed: false });
    };
    let (message, trailer) = trimmed.split_at(at);
    if trailer[0] != b'\n' || !trailer[1..].iter().all(u8::is_ascii_hexdigit) {
        return Ok(Opened { message: trimmed, sealed: false });
    }
    let told = trailer[1..].iter().fold(0u32, |sum, digit| sum << 4 | hex_digit(*digit));
    if told != crc32c::crc32c(message) && !crate::bug::planted("damaged_datagram_taken") {
        return Err(Dropped::Damaged);
    }
    Ok(Opened { message, sealed: true })
}

/// Adds the trailer to a message.
pub fn seal(message: &mut Vec<u8>) {
    let sum = crc32c::crc32c(message);
    let digits = (0..8).rev().map(|place| b"0123456789abcdef"[(sum >> (4 * place)) as usize & 15]);
    message.push(b'\n');
    message.extend(digits);
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn hex_digit(digit: u8) -> u32 {
    char::from(digit).to_digit(16).expect("the caller has checked that it is a hex digit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_message_opens_and_shows_that_it_was_sealed() {
        let mut bytes = br#"{"jsonrpc":"2.0"}"#.to_vec();
        assert_eq!(open(&bytes).unwrap(), Opened { message: &bytes, sealed: false });
        seal(&mut bytes);
        assert_eq!(open(&bytes).unwrap(), Opened { message: br#"{"jsonrpc":"2.0"}"#, sealed: true });
    }

    #[test]
    fn every_single_flipped_bit_of_a_sealed_message_is_noticed_or_leaves_no_valid_request() {
        let mut bytes = br#"{"jsonrpc":"2.0","id":1,"method":"get","params":{"key":"a"}}"#.to_vec();
        seal(&mut bytes);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Ok(Opened { message, sealed }) = open(&damaged) {
                // Damage to the trailer itself can make it part of the text, which then is no JSON; damage to the case of
                // a hex digit changes nothing.
                let same = sealed && message == &bytes[..bytes.len() - TRAILER];
                assert!(same || serde_json::from_slice::<serde_json::Value>(message).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn what_cannot_be_a_request_is_dropped() {
        assert_eq!(open(b""), Err(Dropped::Short));
        assert_eq!(open(b"{}\n"), Err(Dropped::Short));
        assert_eq!(open(b"\x01{\"jsonrpc\""), Err(Dropped::Reserved));
        assert_eq!(open(b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe"), Err(Dropped::Reserved));
        assert_eq!(open(b"hello world"), Err(Dropped::NotJson));
        assert_eq!(open(b"           "), Err(Dropped::NotJson));
    }
}
