//! The segment that is written, with those before it, and how a start comes to it.

use super::JournalConfig;
use super::segment_file::SegmentFile;
use crate::batch::{self, SegmentId};
use crate::disk::PAGE;
use crate::identity::Op;
use crate::recovery::{Known, Tail, random};
use crate::segment::{self, Segment};
use crate::storage::{DataDir, DiskError, Zeros};
use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;

/// The segment that is written.
pub(super) struct Opened {
    pub(super) file: SegmentFile,
    pub(super) number: u64,
    pub(super) id: SegmentId,
    /// The last batch written, and the last one synced.
    pub(super) seq: u64,
    pub(super) synced: u64,
    pub(super) last_op: Op,
    /// The segments before it.
    pub(super) closed: VecDeque<Known>,
    /// Whether the disk was found full.
    pub(super) short: bool,
}

impl Opened {
    /// Opens the journal for writing: everything that is in it is synced then, in a file whose pages were never part of
    /// a failed write.
    pub(super) fn open(dir: &DataDir, tail: &Tail, config: &JournalConfig) -> Result<Opened, DiskError> {
        match tail.segments.last() {
            Some(last) if tail.keep => Opened::renew(dir, tail, *last, config),
            last => {
                let number = last.map_or(1, |last| last.number + 1);
                // Nothing in them is needed: the snapshot has it all. But only that of a clean stop may stand without any
                // journal. (That one can be ahead of the journal, too: then no segment can be begun behind the last.)
                let follows = last.is_some_and(|last| last.last_op == tail.last_op);
                let begun = match follows.then(|| Opened::begin(dir, tail, number, config)) {
                    Some(Err(error)) if error.no_space => None,
                    begun => begun.transpose()?,
                };
                for known in &tail.segments {
                    dir.remove_segment(known.number)?;
                }
                begun.map_or_else(|| Opened::begin(dir, tail, number, config), Ok)
            }
        }
    }

    /// Begins an empty segment.
    fn begin(dir: &DataDir, tail: &Tail, number: u64, config: &JournalConfig) -> Result<Opened, DiskError> {
        let size = config.segment_bytes;
        if !dir.has_spare(size)? {
            dir.make_spare(size, Zeros::Written, &AtomicBool::new(false))?;
        }
        let id = SegmentId(random()?);
        let header = segment::Header::new(tail.server, number, id, tail.next_seq, tail.last_op, size);
        let file = SegmentFile::begin(dir, &header, config.way())?;
        Ok(Opened::at(tail, file, number, id, tail.next_seq.saturating_sub(1)))
    }

    /// Writes the last segment anew: its whole batches and a seal.
    fn renew(dir: &DataDir, tail: &Tail, last: Known, config: &JournalConfig) -> Result<Opened, DiskError> {
        let path = dir.segment(last.number);
        let bytes = dir.read_segment(last.number)?;
        let old = Segment::read(&bytes).map_err(|fault| crate::recovery::damaged(&path, &fault))?;
        if old.end as u64 != last.end || old.next_seq() != tail.next_seq {
            return Err(DiskError::new(format!("{} changed while it was read; try again", path.display())));
        }
        let id = SegmentId(random()?);
        let (content, seq) = sealed_copy(&old, &bytes, id, config.segment_bytes);
        let size = config.segment_bytes.max((content.len() as u64).next_multiple_of(PAGE as u64));
        let mut content = content;
        let header = segment::Header { id, size, ..old.header };
        content[..segment::HEADER_BYTES].copy_from_slice(&header.encode());
        match dir.replace_segment(last.number, &content, size) {
            Ok(file) => {
                let file = SegmentFile::new(file, path, &content, size, config.way());
                Ok(Opened::at(tail, file, last.number, id, seq))
            }
            Err(error) if error.no_space => {
                ::log::warn!("{error}; the tail of the journal is rewritten in its place");
                let end = old.end.min(bytes.len());
                let file = dir.rewrite_segment(last.number, &bytes[..end])?;
                let size = file.metadata().map_err(|error| DiskError::io("look at", &path, &error))?.len();
                let file = SegmentFile::new(file, path, &bytes[..end], size, config.way());
                let seq = tail.next_seq.saturating_sub(1);
                let at = Opened::at(tail, file, last.number, old.header.id, seq);
                Ok(Opened { short: true, ..at })
            }
            Err(error) => Err(error),
        }
    }

    fn at(tail: &Tail, file: SegmentFile, number: u64, id: SegmentId, seq: u64) -> Opened {
        let closed = if tail.keep {
            tail.segments.iter().copied().filter(|known| known.number != number).collect()
        } else {
            VecDeque::new()
        };
        Opened { file, number, id, seq, synced: seq, last_op: tail.last_op, closed, short: false }
    }
}

/// The whole batches of a segment under another id, with a seal behind them if there is room; and the number of the
/// last one.
fn sealed_copy(old: &Segment, bytes: &[u8], id: SegmentId, size: u64) -> (Vec<u8>, u64) {
    let mut out = old.header.encode().to_vec();
    for placed in &old.batches {
        let start = placed.offset + batch::HEADER_BYTES;
        let body = &bytes[start..start + placed.header.body_bytes as usize];
        batch::encode(id, &placed.header, body, &mut out);
    }
    let mut seq = old.next_seq().saturating_sub(1);
    let sealed = old.batches.last().is_none_or(|last| last.header.count == 0);
    if !sealed && out.len() as u64 + batch::bytes(0) as u64 <= size {
        batch::encode(id, &seal(seq + 1, old.last_op(), (0, 0)), &[], &mut out);
        seq += 1;
    }
    (out, seq)
}

/// The header of a seal: all before it is synced.
pub(super) fn seal(seq: u64, last_op: Op, digest: (Op, u32)) -> batch::Header {
    batch::Header {
        seq,
        first_op: last_op + 1,
        count: 0,
        synced: seq - 1,
        digest_op: digest.0,
        digest: digest.1,
        body_bytes: 0,
        body_crc: 0,
    }
}
