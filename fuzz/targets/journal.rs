//! Segments of the journal: the reader against a second one, written from the drawing in `docs` of `segment` and `batch`,
//! bit by bit and without any haste.
//!
//! A random change never has the right checksums, so the bytes are read three times: as they are; with checksums put
//! right wherever a header allows a guess at what was meant; and that cut and damaged at a place that the bytes choose.

use tenure::batch::SegmentId;
use tenure::record;
use tenure::segment::Segment;

/// Takes bytes as a segment.
pub(crate) fn run(bytes: &[u8]) {
    compare(bytes);
    let mut mended = bytes.to_vec();
    mend(&mut mended);
    compare(&mended);
    if let [a, b, c, ..] = *bytes {
        let at = usize::from(u16::from_le_bytes([a, b]));
        damage(&mended, at, c);
    }
}

/// What the second reader says.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// The header of the segment is no good.
    NoSegment,
    /// These batches (where, how long, seq, count), and whether there is a fault beyond a torn tail.
    Batches(Vec<(usize, usize, u64, u32)>, bool),
}

fn compare(bytes: &[u8]) {
    let expected = read(bytes);
    let salvaged = Segment::salvage(bytes);
    let found = match &salvaged {
        Err(_) => Verdict::NoSegment,
        Ok((segment, fault)) => Verdict::Batches(
            segment
                .batches
                .iter()
                .map(|placed| (placed.offset, placed.header.bytes(), placed.header.seq, placed.header.count))
                .collect(),
            fault.is_some(),
        ),
    };
    assert_eq!(found, expected, "the reader and the second reader differ");
    match (Segment::read(bytes), &salvaged) {
        (Err(fault), Err(said)) => assert_eq!(fault, *said),
        (Err(fault), Ok((_, said))) => assert_eq!(Some(fault), *said),
        (Ok(read), Ok((segment, None))) => assert_eq!(read.batches, segment.batches),
        (Ok(_), _) => panic!("read takes what salvage has a fault for"),
    }
    let Ok((segment, fault)) = salvaged else { return };
    let end = segment.batches.last().map_or(128, |last| last.offset + last.header.bytes());
    assert_eq!(segment.end, end, "the whole batches end where the last of them ends");
    let behind = bytes[end..].iter().rposition(|byte| *byte != 0).map(|last| last + 1);
    match segment.torn.as_ref().map(|torn| torn.bytes) {
        // A whole batch that stands where it does not belong is a fault and no torn tail.
        None => assert!(behind.is_none() || fault.is_some(), "a tail that is not zero is passed over"),
        torn => assert_eq!(torn, behind, "a torn tail is what is not zero"),
    }
    for placed in &segment.batches {
        if let Ok(entries) = segment.entries(bytes, placed) {
            assert_eq!(entries.len(), placed.header.count as usize, "as many records as the header says");
            let mut body = Vec::new();
            entries.iter().for_each(|entry| record::encode(entry, &mut body));
            let again = record::decode_all(&body, placed.header.count);
            assert_eq!(again.as_ref(), Ok(&entries), "records that were read are written and read again");
        }
    }
}

/// A cut or a changed byte takes away nothing that stands before it, and never lets a batch pass that it touches.
fn damage(bytes: &[u8], at: usize, with: u8) {
    let Ok((whole, _)) = Segment::salvage(bytes) else { return };
    let at = at % bytes.len().max(1);
    if at < 128 {
        return;
    }
    let before = |end: usize| {
        whole
            .batches
            .iter()
            .take_while(|placed| placed.offset + placed.header.bytes() <= end)
            .copied()
            .collect::<Vec<_>>()
    };
    let (cut, _) = Segment::salvage(&bytes[..at]).expect("the header is there");
    assert_eq!(cut.batches, before(at), "a segment that was cut at {at} has other batches");
    let mut damaged = bytes.to_vec();
    damaged[at] ^= with.max(1);
    let (damaged, _) = Segment::salvage(&damaged).expect("the header is there");
    // Behind the last batch a change may be anything but a batch, which has a checksum.
    assert_eq!(damaged.batches, before(at), "a segment with a changed byte at {at} has other batches");
}

fn number(bytes: &[u8], at: usize, count: usize) -> u128 {
    bytes[at..at + count].iter().rev().fold(0, |sum, byte| sum << 8 | u128::from(*byte))
}

/// CRC-32C, bit by bit (RFC 3720, appendix B.4).
fn crc(parts: &[&[u8]]) -> u32 {
    !parts.concat().iter().fold(!0u32, |sum, byte| {
        (0..8).fold(
            sum ^ u32::from(*byte),
            |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 },
        )
    })
}

/// Whether bytes from `at` are the header of a batch of this segment.
fn is_header(bytes: &[u8], at: usize, id: u128) -> bool {
    bytes.len() >= at + 80
        && bytes[at..at + 4] == *b"TBAT"
        && number(bytes, at + 4, 4) == 1
        && number(bytes, at + 8, 16) == id
        && number(bytes, at + 72, 4) == 0
        && number(bytes, at + 76, 4) == u128::from(crc(&[&bytes[at..at + 76]]))
}

/// The second reader.
fn read(bytes: &[u8]) -> Verdict {
    let good = bytes.len() >= 128
        && bytes[..8] == *b"TENURSEG"
        && number(bytes, 8, 4) == 1
        && number(bytes, 124, 4) == u128::from(crc(&[&bytes[..124]]));
    if !good {
        return Verdict::NoSegment;
    }
    let id = number(bytes, 40, 16);
    let (mut seq, mut op) = (number(bytes, 56, 8), number(bytes, 64, 8));
    let (mut at, mut batches) = (128, Vec::new());
    while is_header(bytes, at, id) {
        let count = number(bytes, at + 60, 4);
        let length = number(bytes, at + 64, 4) as usize;
        let end = at + 80 + length.div_ceil(8) * 8;
        if end > bytes.len() {
            break;
        }
        let found = number(bytes, at + 24, 8);
        let body =
            crc(&[&id.to_le_bytes(), &(found as u64).to_le_bytes(), &bytes[at + 80..at + 80 + length]]);
        let padded = bytes[at + 80 + length..end].iter().all(|byte| *byte == 0);
        if number(bytes, at + 68, 4) != u128::from(body) || !padded {
            break;
        }
        let first = number(bytes, at + 32, 8);
        let most = u128::from(u64::MAX);
        let next = (op + 1).min(most);
        let raised = count > 0 && first == (next + (1 << 32)).min(most);
        let follows =
            found == seq.min(most) && number(bytes, at + 40, 8) < found && (first == next || raised);
        if !follows || first + count > most {
            return Verdict::Batches(batches, true);
        }
        batches.push((at, end - at, found as u64, count as u32));
        (seq, op, at) = (found + 1, (first + count).max(1) - 1, end);
    }
    let later = (at..bytes.len())
        .step_by(8)
        .any(|at| is_header(bytes, at, id) && number(bytes, at + 40, 8) >= seq.min(most()));
    Verdict::Batches(batches, later)
}

fn most() -> u128 {
    u128::from(u64::MAX)
}

/// Puts checksums right, so that changes reach what lies behind them: those of the segment's header, and of each batch
/// as far as one follows the other. A batch whose field for the digest ends in 7 keeps its broken checksum.
fn mend(bytes: &mut [u8]) {
    if bytes.len() < 128 {
        return;
    }
    bytes[..8].copy_from_slice(b"TENURSEG");
    bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
    let sum = crc(&[&bytes[..124]]);
    bytes[124..128].copy_from_slice(&sum.to_le_bytes());
    let id = SegmentId(number(bytes, 40, 16));
    let mut at = 128;
    while bytes.len() >= at + 80 && bytes[at..at + 4] == *b"TBAT" {
        bytes[at + 4..at + 8].copy_from_slice(&1u32.to_le_bytes());
        bytes[at + 8..at + 24].copy_from_slice(&id.0.to_le_bytes());
        bytes[at + 72..at + 76].fill(0);
        let length = number(bytes, at + 64, 4) as usize;
        let end = at + 80 + length.div_ceil(8) * 8;
        let Some(body) = bytes.get(at + 80..at + 80 + length) else { return };
        let sum = crc(&[&id.0.to_le_bytes(), &bytes[at + 24..at + 32], body]);
        if bytes[at + 56] & 7 != 7 {
            bytes[at + 68..at + 72].copy_from_slice(&sum.to_le_bytes());
        }
        let sum = crc(&[&bytes[at..at + 76]]);
        bytes[at + 76..at + 80].copy_from_slice(&sum.to_le_bytes());
        at = end;
    }
}
