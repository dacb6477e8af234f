//! Segments: one file of the journal, as bytes.
//!
//! ```text
//!   byte   0 ┌───────────────────────────────────────────────┐
//!            │ magic "TENURSEG"                              │
//!          8 ├───────────────────────┬───────────────────────┤
//!            │ format (u32)          │ rules (u32)           │
//!         16 ├───────────────────────┴───────────────────────┤
//!            │ id of the server (u128)                       │
//!         32 ├───────────────────────────────────────────────┤
//!            │ number of the segment (u64)                   │
//!         40 ├───────────────────────────────────────────────┤
//!            │ random id of the segment (u128)               │
//!         56 ├───────────────────────────────────────────────┤
//!            │ first seq: the batch it begins with (u64)     │
//!         64 ├───────────────────────────────────────────────┤
//!            │ base op: the last op before it (u64)          │
//!         72 ├───────────────────────────────────────────────┤
//!            │ bytes of the file (u64)                       │
//!         80 ├───────────────────────────────────────────────┤
//!            │ zeros                 ┌───────────────────────┤
//!        124 │                       │ CRC-32C of bytes 0-123│
//!        128 ├───────────────────────┴───────────────────────┤
//!            │ batch, batch, batch, ...                      │
//!            │ zeros to the end of the file                  │
//!            └───────────────────────────────────────────────┘
//! ```
//!
//! A segment is begun only when every batch before it is synced, so its header says the same as a batch that names
//! `first seq - 1` as synced. The header is synced before the file gets its name: a segment with a broken header is
//! damage, never the mark of a crash.

use crate::batch::{self, ALIGN, SegmentId};
use crate::command::RULES;
use crate::identity::Op;
use crate::snapshot::ServerId;

/// Bytes of the header; the first batch begins here.
pub const HEADER_BYTES: usize = 128;

/// The version of this layout.
pub const FORMAT: u32 = 1;

const MAGIC: [u8; 8] = *b"TENURSEG";

/// What the header of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The number of the rules that applied its commands.
    pub rules: u32,
    /// The server it belongs to.
    pub server: ServerId,
    /// Its number, from 1.
    pub number: u64,
    /// Its random id.
    pub id: SegmentId,
    /// The number of its first batch; all before it are synced.
    pub first_seq: u64,
    /// The last op before it.
    pub base_op: Op,
    /// Bytes of the file.
    pub size: u64,
}

/// A batch inside a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Where it begins in the file, in bytes.
    pub offset: usize,
    /// Its header.
    pub header: batch::Header,
}

/// What stands behind the last whole batch, if that is not only zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The number of the batch that is broken.
    pub seq: u64,
    /// Where it begins in the file, in bytes.
    pub offset: usize,
    /// Bytes from there to the last that is not zero.
    pub bytes: usize,
    /// What is wrong with it.
    pub why: String,
}

/// A segment as it was read: its whole batches, and what comes behind them.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its header.
    pub header: Header,
    /// Its whole batches, in order.
    pub batches: Vec<Placed>,
    /// Where the last of them ends in the file, in bytes.
    pub end: usize,
    /// The torn tail, if there is one.
    pub torn: Option<Torn>,
}

impl Header {
    /// A header with the rules of this version.
    pub fn new(
        server: ServerId,
        number: u64,
        id: SegmentId,
        first_seq: u64,
        base_op: Op,
        size: u64,
    ) -> Header {
        Header { rules: RULES, server, number, id, first_seq, base_op, size }
    }

    /// The header as bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&self.rules.to_le_bytes());
        out.extend_from_slice(&self.server.0.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(&self.first_seq.to_le_bytes());
        out.extend_from_slice(&self.base_op.to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        out.resize(HEADER_BYTES - 4, 0);
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out.try_into().expect("the header is as long as the drawing says")
    }

    /// Reads the header at the start of a segment.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Header, String> {
        let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(format!("it has {} bytes, fewer than the {HEADER_BYTES} of a header", bytes.len()));
        };
        let (fields, crc) = head.split_at(HEADER_BYTES - 4);
        if fields[..8] != MAGIC {
            return Err("it does not begin like a segment of a journal".into());
        }
        let found = crc32c::crc32c(fields);
        if found.to_le_bytes() != crc {
            return Err("the checksum of its header is wrong".into());
        }
        let u32_at = |at: usize| u32::from_le_bytes(array_at(fields, at));
        let u64_at = |at: usize| u64::from_le_bytes(array_at(fields, at));
        if u32_at(8) != FORMAT {
            return Err(format!(
                "it has format {}, this version reads format {FORMAT}; use the version of tenure that wrote it",
                u32_at(8)
            ));
        }
        Ok(Header {
            rules: u32_at(12),
            server: ServerId(u128::from_le_bytes(array_at(fields, 16))),
            number: u64_at(32),
            id: SegmentId(u128::from_le_bytes(array_at(fields, 40))),
            first_seq: u64_at(56),
            base_op: u64_at(64),
            size: u64_at(72),
        })
    }
}

impl Segment {
    /// Reads a whole segment file and judges it: the first broken batch ends it. Records are not decoded.
    ///
    /// # Errors
    /// A sentence without the name of the file, if its header is broken, or if a batch is broken that a later header in
    /// it names as synced, or if batches stand in the wrong order.
    pub fn read(bytes: &[u8]) -> Result<Segment, String> {
        match Segment::salvage(bytes)? {
            (segment, None) => Ok(segment),
            (_, Some(fault)) => Err(fault),
        }
    }

    /// Reads what is whole at the start of a segment file, and says what speaks against taking it for all there was.
    ///
    /// # Errors
    /// A sentence, if its header is broken.
    pub fn salvage(bytes: &[u8]) -> Result<(Segment, Option<String>), String> {
        let header = Header::decode(bytes)?;
        let mut segment = Segment { header, batches: Vec::new(), end: HEADER_BYTES, torn: None };
        let why = loop {
            let rest = &bytes[segment.end..];
            let read = batch::decode_header(header.id, rest)
                .and_then(|found| batch::decode_body(header.id, &found, rest).map(|_| found));
            match read.map(|found| segment.push(found)) {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => return Ok((segment, Some(fault))),
                Err(why) => break why,
            }
        };
        let rest = &bytes[segment.end..];
        let mut fault = None;
        if let Some(last) = rest.iter().rposition(|&byte| byte != 0) {
            let torn = Torn { seq: segment.next_seq(), offset: segment.end, bytes: last + 1, why };
            fault = refute(header.id, rest, &torn).err();
            segment.torn = Some(torn);
        }
        Ok((segment, fault))
    }

    /// The number of the batch that comes next.
    pub fn next_seq(&self) -> u64 {
        self.batches.last().map_or(self.header.first_seq, |last| last.header.seq.saturating_add(1))
    }

    /// The last op in it, or before it if it has none.
    pub fn last_op(&self) -> Op {
        self.batches.last().map_or(self.header.base_op, |last| last.header.last_op())
    }

    /// The records of one of its batches, whose checksum [`Segment::read`] has checked.
    ///
    /// # Errors
    /// A sentence, if the records are not commands of this version.
    pub fn entries(&self, bytes: &[u8], placed: &Placed) -> Result<Vec<crate::command::Entry>, String> {
        let body = batch::decode_body(
            self.header.id,
            &placed.header,
            bytes.get(placed.offset..).unwrap_or_default(),
        )?;
        crate::record::decode_all(body, placed.header.count)
    }

    /// Takes a whole batch as the next one.
    fn push(&mut self, found: batch::Header) -> Result<(), String> {
        let (seq, op, offset) = (self.next_seq(), self.last_op().saturating_add(1), self.end);
        if found.seq != seq {
            return Err(format!("at offset {offset} stands batch {} where batch {seq} belongs", found.seq));
        }
        if found.synced >= seq {
            return Err(format!("batch {seq} at offset {offset} says of itself that it was synced"));
        }
        // A term that raised the counters jumps; that its first record says so is checked where records are decoded.
        if found.first_op != op
            && (found.count == 0 || found.first_op != op.saturating_add(crate::identity::RAISE))
        {
            return Err(format!(
                "batch {seq} at offset {offset} begins with op {} where op {op} belongs",
                found.first_op
            ));
        }
        if found.first_op.checked_add(u64::from(found.count)).is_none() {
            return Err(format!("batch {seq} at offset {offset} has ops beyond the end of numbers"));
        }
        self.batches.push(Placed { offset, header: found });
        self.end += found.bytes();
        Ok(())
    }
}

/// Looks for a later header that names the broken batch as synced, which makes the damage more than a torn tail.
fn refute(id: SegmentId, rest: &[u8], torn: &Torn) -> Result<(), String> {
    for at in (0..rest.len()).step_by(ALIGN) {
        if !rest[at..].starts_with(&batch::MAGIC) {
            continue;
        }
        if let Ok(later) = batch::decode_header(id, &rest[at..])
            && later.synced >= torn.seq
        {
            return Err(format!(
                "batch {} at offset {} is broken ({}), and batch {} at offset {} says that batch {} was synced before \
                 it: this is damage, not the trace of a crash",
                torn.seq,
                torn.offset,
                torn.why,
                later.seq,
                torn.offset + at,
                later.synced
            ));
        }
    }
    Ok(())
}

/// The bytes from `at`; all fields lie inside the header.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..].first_chunk().copied().expect("fields lie inside the header")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::command::{Command, Entry};
    use crate::record;
    use crate::time::Time;

    pub(crate) const ID: SegmentId = SegmentId(77);

    /// A small segment: batches of `counts` ticks, each naming the one before as synced; 0 is a seal.
    pub(crate) fn segment_of(counts: &[u32], size: usize) -> Vec<u8> {
        let header = Header::new(ServerId(9), 1, ID, 1, 0, size as u64);
        let mut bytes = header.encode().to_vec();
        let mut op = 1;
        for (index, &count) in counts.iter().enumerate() {
            let mut body = Vec::new();
            for tick in 0..count {
                let at = Time::from_micros(op + u64::from(tick));
                record::encode(&Entry { at, ahead_us: 0, command: Command::Tick }, &mut body);
            }
            let header = batch::Header {
                seq: index as u64 + 1,
                first_op: op,
                count,
                synced: index as u64,
                digest_op: 0,
                digest: 0,
                body_bytes: 0,
                body_crc: 0,
            };
            batch::encode(ID, &header, &body, &mut bytes);
            op += u64::from(count);
        }
        bytes.resize(size, 0);
        bytes
    }

    fn counts(segment: &Segment) -> Vec<u32> {
        segment.batches.iter().map(|placed| placed.header.count).collect()
    }

    #[test]
    fn a_segment_gives_back_its_batches() {
        let bytes = segment_of(&[1, 3, 0], 2_048);
        let segment = Segment::read(&bytes).unwrap();
        assert_eq!(counts(&segment), [1, 3, 0]);
        assert_eq!((segment.last_op(), segment.next_seq(), segment.torn.clone()), (4, 4, None));
        assert_eq!(segment.entries(&bytes, &segment.batches[1]).unwrap().len(), 3);
    }

    #[test]
    fn a_segment_cut_at_any_byte_gives_a_prefix_or_is_refused() {
        let bytes = segment_of(&[1, 3, 0, 2], 1_024);
        for end in 0..bytes.len() {
            match Segment::read(&bytes[..end]) {
                Ok(segment) => {
                    assert!(end >= HEADER_BYTES);
                    assert!([1, 3, 0, 2].starts_with(&counts(&segment)));
                    assert!(segment.end <= end);
                }
                Err(_) => assert!(end < HEADER_BYTES, "a cut at {end} is a torn tail"),
            }
        }
    }

    #[test]
    fn any_bit_flipped_below_the_last_seal_is_refused_and_above_it_cut() {
        let bytes = segment_of(&[1, 2, 0], 640);
        let whole = Segment::read(&bytes).unwrap();
        let seal = whole.batches[2].offset;
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            match Segment::read(&damaged) {
                Err(sentence) => assert!(bit / 8 < seal, "bit {bit} was refused: {sentence}"),
                Ok(segment) => {
                    assert!(bit / 8 >= seal, "bit {bit} below the seal was not noticed");
                    assert!([1, 2, 0].starts_with(&counts(&segment)) && segment.batches.len() >= 2);
                    assert!(segment.torn.is_some(), "bit {bit} was not reported");
                }
            }
        }
    }

    #[test]
    fn a_broken_batch_before_good_ones_that_do_not_name_it_is_a_torn_tail() {
        // Two batches in one write: the second does not know that the first is synced.
        let mut bytes = segment_of(&[1], 1_024);
        let mut end = Segment::read(&bytes).unwrap().end;
        let torn_at = end;
        for seq in [2, 3] {
            let header = batch::Header {
                seq,
                first_op: seq,
                count: 0,
                synced: 1,
                digest_op: 0,
                digest: 0,
                body_bytes: 0,
                body_crc: 0,
            };
            let mut out = Vec::new();
            batch::encode(ID, &header, &[], &mut out);
            bytes[end..end + out.len()].copy_from_slice(&out);
            end += out.len();
        }
        bytes[torn_at + 30] ^= 1;
        let segment = Segment::read(&bytes).unwrap();
        assert_eq!(counts(&segment), [1]);
        assert_eq!(segment.torn.unwrap().offset, torn_at);
    }

    #[test]
    fn batches_in_another_order_are_refused() {
        let bytes = segment_of(&[1, 1, 0, 0], 1_024);
        let segment = Segment::read(&bytes).unwrap();
        let (one, two) = (segment.batches[0], segment.batches[1]);
        let length = one.header.bytes();
        let mut swapped = bytes.clone();
        swapped[one.offset..one.offset + length].copy_from_slice(&bytes[two.offset..two.offset + length]);
        swapped[two.offset..two.offset + length].copy_from_slice(&bytes[one.offset..one.offset + length]);
        assert!(Segment::read(&swapped).unwrap_err().contains("where batch 1 belongs"));
    }

    #[test]
    fn the_blocks_of_an_older_segment_are_not_taken_for_batches() {
        let mut bytes = segment_of(&[1, 2, 2], 2_048);
        let fresh = Header::new(ServerId(9), 2, SegmentId(78), 4, 5, 2_048);
        bytes[..HEADER_BYTES].copy_from_slice(&fresh.encode());
        let segment = Segment::read(&bytes).unwrap();
        assert!(segment.batches.is_empty());
    }
}
