//! Batches: what one sync covers, as bytes.
//!
//! ```text
//!   byte   0 ┌───────────────────────┬───────────────────────┐
//!            │ magic "TBAT"          │ format (u32)          │
//!          8 ├───────────────────────┴───────────────────────┤
//!            │ id of the segment (u128)                      │
//!         24 ├───────────────────────────────────────────────┤
//!            │ seq: the number of this batch (u64)           │
//!         32 ├───────────────────────────────────────────────┤
//!            │ first op (u64)                                │
//!         40 ├───────────────────────────────────────────────┤
//!            │ synced: the last batch known to be synced     │
//!            │ when this one was written (u64)               │
//!         48 ├───────────────────────────────────────────────┤
//!            │ digest op (u64)                               │
//!         56 ├───────────────────────┬───────────────────────┤
//!            │ digest (u32)          │ count of records      │
//!         64 ├───────────────────────┼───────────────────────┤
//!            │ bytes of the body     │ CRC-32C of the body   │
//!         72 ├───────────────────────┼───────────────────────┤
//!            │ zero                  │ CRC-32C of bytes 0-75 │
//!         80 ├───────────────────────┴───────────────────────┤
//!            │ body: `count` records, then zeros up to a     │
//!            │ multiple of 8                                 │
//!            └───────────────────────────────────────────────┘
//! ```
//!
//! Numbers are little-endian. Header and body have checksums of their own, so that a torn body still has a header that
//! can be believed, and a length is never believed before the header's checksum is. The segment's random id stands in
//! the header and seeds the checksum of the body, so that a block that an older file left on the disk is never taken
//! for a batch of this one.
//!
//! `seq` rises by one with each batch over the whole journal, from segment to segment and from start to start. `synced`
//! is what tells corruption from a torn tail: a broken batch that a later header names, or a higher one, as synced was
//! once whole. An empty batch, count 0, is a seal: it says nothing but that.

use crate::identity::Op;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 80;

/// Batches begin at multiples of this, in bytes.
pub const ALIGN: usize = 8;

/// The version of this layout.
pub const FORMAT: u32 = 1;

/// The first bytes of a batch.
pub const MAGIC: [u8; 4] = *b"TBAT";

/// The random id of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentId(pub u128);

/// What the header of a batch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The number of this batch, from 1, rising by one over the whole journal.
    pub seq: u64,
    /// The op of its first record; of a seal the op that comes next.
    pub first_op: Op,
    /// How many records.
    pub count: u32,
    /// The last batch known to be synced when this one was written; 0 if none.
    pub synced: u64,
    /// The op up to which `digest` speaks; 0 if nothing was applied yet.
    pub digest_op: Op,
    /// The digest of all outcomes up to `digest_op`.
    pub digest: u32,
    /// Bytes of the records, padding not counted.
    pub body_bytes: u32,
    /// The checksum of the records, seeded with the segment's id and `seq`.
    pub body_crc: u32,
}

impl Header {
    /// The op after the last record.
    pub fn next_op(&self) -> Op {
        self.first_op.saturating_add(u64::from(self.count))
    }

    /// The last op after this batch.
    pub fn last_op(&self) -> Op {
        self.next_op().saturating_sub(1)
    }

    /// Bytes of the whole batch, header and padding included.
    pub fn bytes(&self) -> usize {
        bytes(self.body_bytes as usize)
    }
}

/// Bytes of a batch whose records take `body` bytes.
pub const fn bytes(body: usize) -> usize {
    HEADER_BYTES + body.next_multiple_of(ALIGN)
}

/// Adds a batch to `out`: header, records and padding. `body_bytes` and `body_crc` of the header given are not looked
/// at but computed.
pub fn encode(id: SegmentId, header: &Header, body: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    let body_bytes = u32::try_from(body.len()).expect("a batch fits its segment, which is below 4 GiB");
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&id.0.to_le_bytes());
    for number in [header.seq, header.first_op, header.synced, header.digest_op] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for number in [header.digest, header.count, body_bytes, body_crc(id, header.seq, body), 0] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    let crc = crc32c::crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
    assert_eq!(out.len() - start, HEADER_BYTES, "the header is as long as the drawing says");
    out.extend_from_slice(body);
    out.resize(start + bytes(body.len()), 0);
}

/// Reads the header at the start of `bytes`, which belongs to the segment `id`.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn decode_header(id: SegmentId, bytes: &[u8]) -> Result<Header, String> {
    let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(format!(
            "a batch is cut short: {} of the {HEADER_BYTES} bytes of its header",
            bytes.len()
        ));
    };
    if head[..4] != MAGIC {
        return Err("no batch begins here".into());
    }
    let claimed = u32_at(head, 76);
    let found = crc32c::crc32c(&head[..76]);
    if claimed != found {
        return Err(format!("the header of a batch says checksum {claimed:08x}, its bytes have {found:08x}"));
    }
    let format = u32_at(head, 4);
    if format != FORMAT {
        return Err(format!("a batch has format {format}; this version reads format {FORMAT}"));
    }
    let owner = u128::from_le_bytes(array_at(head, 8));
    if owner != id.0 {
        return Err("a batch belongs to another segment".into());
    }
    if u32_at(head, 72) != 0 {
        return Err("a header of a batch has bytes set that must be zero".into());
    }
    Ok(Header {
        seq: u64_at(head, 24),
        first_op: u64_at(head, 32),
        synced: u64_at(head, 40),
        digest_op: u64_at(head, 48),
        digest: u32_at(head, 56),
        count: u32_at(head, 60),
        body_bytes: u32_at(head, 64),
        body_crc: u32_at(head, 68),
    })
}

/// The records of the batch at the start of `bytes`, whose header was read before.
///
/// # Errors
/// A sentence, if they are cut short or damaged.
pub fn decode_body<'a>(id: SegmentId, header: &Header, bytes: &'a [u8]) -> Result<&'a [u8], String> {
    let Some(body) = bytes.get(HEADER_BYTES..header.bytes()) else {
        return Err(format!(
            "a batch is cut short: it has {} bytes and {} are left in the file",
            header.bytes(),
            bytes.len()
        ));
    };
    let (body, padding) = body.split_at(header.body_bytes as usize);
    let found = body_crc(id, header.seq, body);
    if found != header.body_crc && !crate::bug::planted("record_checksum_unread") {
        return Err(format!(
            "the records of a batch have checksum {found:08x}, its header says {:08x}",
            header.body_crc
        ));
    }
    if padding.iter().any(|&byte| byte != 0) {
        return Err("the bytes behind the records of a batch are not zero".into());
    }
    Ok(body)
}

/// The checksum of records: a record block of another segment, or of another batch, does not have it.
fn body_crc(id: SegmentId, seq: u64, body: &[u8]) -> u32 {
    let seed = crc32c::crc32c_append(crc32c::crc32c(&id.0.to_le_bytes()), &seq.to_le_bytes());
    crc32c::crc32c_append(seed, body)
}

/// The bytes from `at`; the caller has checked that they are there.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..].first_chunk().copied().expect("fields lie inside the header")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SegmentId = SegmentId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);

    fn header(count: u32) -> Header {
        Header {
            seq: 5,
            first_op: 40,
            count,
            synced: 4,
            digest_op: 39,
            digest: 0xdead_beef,
            body_bytes: 0,
            body_crc: 0,
        }
    }

    fn encoded(body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(ID, &header(body.len() as u32), body, &mut out);
        out
    }

    #[test]
    fn a_batch_survives_its_bytes() {
        for body in [&b""[..], b"1", b"12345678", b"123456789"] {
            let bytes = encoded(body);
            assert_eq!(bytes.len() % ALIGN, 0);
            let read = decode_header(ID, &bytes).unwrap();
            assert_eq!(
                read,
                Header { body_bytes: read.body_bytes, body_crc: read.body_crc, ..header(body.len() as u32) }
            );
            assert_eq!(read.bytes(), bytes.len());
            assert_eq!(decode_body(ID, &read, &bytes).unwrap(), body);
            assert_eq!(read.next_op(), 40 + body.len() as u64);
        }
    }

    #[test]
    fn any_bit_flipped_is_noticed() {
        let bytes = encoded(b"123456789");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let read =
                decode_header(ID, &damaged).and_then(|header| decode_body(ID, &header, &damaged).map(|_| ()));
            assert!(read.is_err(), "bit {bit} was flipped and not noticed");
        }
    }

    #[test]
    fn a_batch_cut_at_any_byte_is_refused() {
        let bytes = encoded(b"123456789");
        for end in 0..bytes.len() {
            let cut = &bytes[..end];
            assert!(
                decode_header(ID, cut).and_then(|header| decode_body(ID, &header, cut).map(|_| ())).is_err()
            );
        }
    }

    #[test]
    fn a_batch_of_another_segment_is_not_taken() {
        let bytes = encoded(b"123");
        assert!(decode_header(SegmentId(1), &bytes).unwrap_err().contains("another segment"));
        // Nor its body under a header of this segment.
        let mut other = Vec::new();
        encode(SegmentId(1), &header(3), b"123", &mut other);
        let mine = decode_header(ID, &bytes).unwrap();
        let theirs = decode_header(SegmentId(1), &other).unwrap();
        assert_ne!(mine.body_crc, theirs.body_crc);
    }
}
