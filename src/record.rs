//! Records: a command as bytes.
//!
//! ```text
//!   ┌──────────────┬───────────────────────────────┐
//!   │ length (u32) │ the entry, as postcard has it │
//!   └──────────────┴───────────────────────────────┘
//! ```
//!
//! The length is little-endian and counts the bytes behind it. Postcard names the variants of an enum by number, which
//! is why new commands go to the end of [`Command`](crate::command::Command). Records have no checksum of their own:
//! the [batch](crate::batch) around them has.

use crate::command::Entry;
use crate::encoding;

/// Bytes of the length before each record.
const PREFIX: usize = 4;

/// Adds the record of an entry to `out`.
pub fn encode(entry: &Entry, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX]);
    encoding::entry(out, entry);
    let length =
        u32::try_from(out.len() - start - PREFIX).expect("an entry is far below 4 GiB: requests are capped");
    out[start..start + PREFIX].copy_from_slice(&length.to_le_bytes());
}

/// Reads the first record; gives its entry and the bytes behind it.
///
/// # Errors
/// A sentence, if the record is cut short, has bytes too many, or is no entry. Never panics, and never allocates what a
/// damaged length claims.
pub fn decode(bytes: &[u8]) -> Result<(Entry, &[u8]), String> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
        return Err(format!("a record is cut short: {} bytes where its length should stand", bytes.len()));
    };
    let length = u32::from_le_bytes(*prefix) as usize;
    let Some((body, rest)) = rest.split_at_checked(length) else {
        return Err(format!("a record is cut short: it claims {length} bytes and {} are left", rest.len()));
    };
    let (entry, over) = postcard::take_from_bytes::<Entry>(body)
        .map_err(|error| format!("a record of {length} bytes is not a command of this version: {error}"))?;
    if !over.is_empty() {
        return Err(format!("a record has {} bytes too many behind its command", over.len()));
    }
    Ok((entry, rest))
}

/// Reads exactly `count` records that fill `bytes`.
///
/// # Errors
/// A sentence, as for [`decode`], or if there are fewer or more records than `count`.
pub fn decode_all(mut bytes: &[u8], count: u32) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    for number in 0..count {
        let (entry, rest) = decode(bytes).map_err(|fault| format!("record {number} of {count}: {fault}"))?;
        entries.push(entry);
        bytes = rest;
    }
    if !bytes.is_empty() {
        return Err(format!("{} bytes stand behind the last of {count} records", bytes.len()));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Ask, Call, Command, EndReason, Mode, Patience, Request, Terms};
    use crate::identity::{Nonce, SessionId};
    use crate::name::Name;
    use crate::time::Time;
    use std::sync::Arc;

    fn some_entries() -> Vec<Entry> {
        let name = |text| Name::new(text).unwrap();
        let request =
            |call| Command::Request(Request { session: SessionId(7), id: 3, ack: 2, got: vec![1], call });
        [
            Command::Tick,
            Command::EndSession { session: SessionId(7), term: 4, reason: EndReason::Expired },
            Command::OpenSession {
                nonce: Nonce(1),
                session: SessionId(2),
                name: "näme".into(),
                label: String::new(),
                ttl_ms: 10_000,
            },
            request(Call::Acquire {
                asks: Ask { key: name("a"), mode: Mode::Exclusive }.into(),
                wait: Patience::Millis(5),
                owner: "o".into(),
                terms: Terms { label: "l".into(), lease_ms: Some(100), ..Terms::default() },
            }),
            request(Call::AppendFile {
                file: name("f"),
                data: Arc::from(&b"\0\xff"[..]),
                token: 9,
                holder: None,
            }),
        ]
        .into_iter()
        .map(|command| Entry { at: Time::from_millis(12), ahead_us: 500, command })
        .collect()
    }

    #[test]
    fn entries_survive_their_records() {
        let entries = some_entries();
        let mut bytes = Vec::new();
        for entry in &entries {
            encode(entry, &mut bytes);
        }
        assert_eq!(decode_all(&bytes, entries.len() as u32).unwrap(), entries);
        assert!(decode_all(&bytes, entries.len() as u32 - 1).unwrap_err().contains("behind the last"));
        assert!(decode_all(&bytes, u32::MAX).unwrap_err().contains("cut short"));
    }

    #[test]
    fn a_record_cut_at_any_byte_is_refused() {
        for entry in some_entries() {
            let mut bytes = Vec::new();
            encode(&entry, &mut bytes);
            for end in 0..bytes.len() {
                assert!(decode(&bytes[..end]).is_err(), "{entry:?} cut to {end} bytes was taken");
            }
        }
    }

    #[test]
    fn a_record_with_any_bit_flipped_never_panics() {
        for entry in some_entries() {
            let mut bytes = Vec::new();
            encode(&entry, &mut bytes);
            for bit in 0..bytes.len() * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                let _ = decode(&damaged);
            }
        }
    }

    #[test]
    fn a_claimed_length_is_not_allocated() {
        let claim = [&u32::MAX.to_le_bytes()[..], &[0; 8]].concat();
        assert!(decode(&claim).unwrap_err().contains("claims"));
        // A name that claims 2^60 bytes, inside a record of an honest length.
        let mut body = vec![0, 1];
        body.extend_from_slice(&[0; 32]);
        body.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]);
        let record = [&(body.len() as u32).to_le_bytes()[..], &body].concat();
        assert!(decode(&record).is_err());
    }

    #[test]
    fn bytes_behind_the_command_are_refused() {
        let mut bytes = Vec::new();
        encode(&Entry { at: Time::ZERO, ahead_us: 0, command: Command::Tick }, &mut bytes);
        bytes.push(0);
        bytes[0] += 1;
        assert!(decode(&bytes).unwrap_err().contains("too many"));
    }
}
