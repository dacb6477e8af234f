//! Folding: the journal so far becomes the next snapshot, on a thread of low priority.
//!
//! A large state goes from disk to disk. The loop's own is not touched, so a heartbeat never waits for a snapshot; and the fold
//! replays what a restart would replay, so damage is found while the state still lives in memory.
//!
//! Replaying costs a third of what it costs to do it the first time. A state that is copied in a moment is copied, and the
//! copy written: what is damaged on the disk by then is replaced by what is right.

use crate::identity::Op;
use crate::image::record::Record;
use crate::outcome::FileEffect;
use crate::recovery::{self, Known, Replay};
use crate::snapshot::{self, ServerId, Snapshot};
use crate::state::{Parts, State};
use crate::storage::{DataDir, DiskError, SNAPSHOT};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Up to where to fold.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) server: ServerId,
    /// The segments, from the oldest; the last one up to its `end`, which is synced.
    pub(crate) segments: Vec<Known>,
    pub(crate) safe: Record,
    /// The state behind the last snapshot and not ahead of what is synced, if the loop has copied it; all of its writes are
    /// safe in the files.
    pub(crate) state: Option<Box<Parts>>,
    /// The op of the last snapshot.
    pub(crate) snapshot_op: Op,
}

/// What was folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    /// The op of the new snapshot.
    pub(crate) op: Op,
    /// The op of the one that became the previous.
    pub(crate) previous_op: Op,
    /// The size of the new one.
    pub(crate) bytes: u64,
}

/// How much lower than the loop's the priority of folding is (`nice`).
const NICE: i32 = 10;

/// Lets the calling thread, and only it, go behind the others. (On Linux a priority belongs to a thread.)
pub(crate) fn lower_priority() {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        ::log::debug!("the snapshot thread keeps its priority: {error}");
    }
}

/// How long after a fold, or a start, its memory is given back, if no other fold has begun: folds that follow one another use the
/// same.
pub(crate) const MEMORY_IDLE: Duration = Duration::from_millis(1_500);

/// How long after that what was freed meanwhile is given back: what a million locks took that have gone, for one.
pub(crate) const MEMORY_AGAIN: Duration = Duration::from_secs(30);

/// Writes the next snapshot: the copy of the state that the order has, or what its segments give.
///
/// # Errors
/// A sentence; the last snapshot still stands.
pub(crate) fn fold(dir: &DataDir, mut order: Order, stop: &AtomicBool) -> Result<Done, DiskError> {
    let state = order.state.take();
    match state {
        // What is about to become the previous snapshot must be one. If it is not, there is more to do than writing.
        Some(parts) if is_whole(dir)? => {
            let (op, previous_op) = (parts.head.op, order.snapshot_op);
            let snapshot = Snapshot { server: order.server, clean: false, parts: *parts, redo: Vec::new() };
            Ok(Done { op, previous_op, bytes: dir.write_snapshot(&snapshot)? })
        }
        Some(_) | None => replay(dir, &order, stop),
    }
}

/// Whether the last snapshot is there and undamaged.
fn is_whole(dir: &DataDir) -> Result<bool, DiskError> {
    Ok(dir.read_snapshot(SNAPSHOT)?.is_some_and(|bytes| snapshot::check(&bytes).is_ok()))
}

/// Folds the segments of the order into the next snapshot.
fn replay(dir: &DataDir, order: &Order, stop: &AtomicBool) -> Result<Done, DiskError> {
    let mut notes = Vec::new();
    let base = recovery::load(dir, &mut notes)?;
    notes.iter().for_each(|note| ::log::warn!("{note}"));
    let mut replay = Replay::new(base)?;
    let previous_op = replay.state.op();
    let needed = order.segments.iter().filter(|known| known.last_op > previous_op);
    let numbers: Vec<u64> = needed.map(|known| known.number).collect();
    let limit = order.segments.last().map(|last| last.end);
    recovery::walk(dir, &numbers, limit, Some(order.server), &mut |path, segment, bytes| {
        segment.batches.iter().try_for_each(|placed| {
            if stop.load(Ordering::Relaxed) {
                return Err("the server is stopping".into());
            }
            // A batch takes less than a millisecond; a time slice, which else must end before another thread gets the core, three.
            std::thread::yield_now();
            replay.feed(path, segment, bytes, placed)
        })
    })?;
    let expected = order.segments.last().map_or(previous_op, |last| last.last_op);
    if replay.state.op() < expected {
        return Err(DiskError::new(format!(
            "the journal in {} ends with op {} on the disk, but was written up to op {expected}: it is being changed by \
             somebody else; stop the server with SIGTERM, so that it writes its state from memory",
            dir.journal().display(),
            replay.state.op()
        )));
    }
    let Replay { state, mut redo, .. } = replay;
    redo.retain(|work| !order.safe.is_safe(work));
    let op = state.op();
    let parts = state.parts();
    drop(state);
    if stop.load(Ordering::Relaxed) {
        return Err(DiskError::new("the server is stopping"));
    }
    if !notes.is_empty() {
        dir.put_damaged_aside()?;
    }
    let bytes = dir.write_snapshot(&Snapshot { server: order.server, clean: false, parts, redo })?;
    Ok(Done { op, previous_op, bytes })
}

/// Writes the snapshot of a clean stop from the loop's own state. The log must be closed. `redo` is the work for the
/// disk that is not safe in the files, in the order of ops.
///
/// # Errors
/// A sentence; the last snapshot still stands, and with the journal it holds the same state.
pub fn write_final(
    dir: &DataDir,
    server: ServerId,
    state: &State,
    redo: Vec<FileEffect>,
) -> Result<(), DiskError> {
    dir.write_snapshot(&Snapshot { server, clean: true, parts: state.parts(), redo }).map(|_| ())
}
