//! Recovery: from what stands on the disk to the state that was committed, or to a sentence why not.
//!
//! The snapshot is read, the segments behind it are replayed in order. Nothing is written here: [`FileLog::start`]
//! (crate::journal::FileLog::start) rewrites the tail before anything is answered. What recovery insists on:
//!
//! - The journal is one chain: segment numbers, batch numbers and ops follow one another without a gap, from an op that
//!   the snapshot has to an op that the snapshot does not exceed (that of a clean stop excepted).
//! - A broken batch is the torn tail only if it is the last thing written: no later header and no later segment says
//!   that it was synced.
//! - The digests that headers name are the digests that the replay gives.
//! - Commands are replayed only by the rules that applied them.
//!
//! The previous snapshot takes the place of a damaged one only if the journal still has everything since.

use crate::batch;
use crate::command::{Command, Durability, Entry, RULES};
use crate::identity::{Op, Term};
use crate::log::next_op;
use crate::outcome::{Effect, FileEffect};
use crate::segment::{Placed, Segment, Torn};
use crate::snapshot::{self, Fault, ServerId, Snapshot};
use crate::state::State;
use crate::storage::{DataDir, DiskError, PREVIOUS, SNAPSHOT};
use std::collections::VecDeque;
use std::path::Path;

/// What a directory held.
pub struct Recovered {
    /// The state after the last command.
    pub state: State,
    /// The server's id; of a fresh directory a new one, which is on the disk once the journal was started.
    pub server: ServerId,
    /// Work for the disk that may not be safe in the files, in the order of ops.
    pub redo: Vec<FileEffect>,
    /// The last term; 0 if there was none. The next start is term + 1.
    pub term: Term,
    /// What acknowledged meant in it.
    pub durability: Option<Durability>,
    /// Whether there was nothing yet.
    pub fresh: bool,
    /// Whether the last stop was a clean one. True for a fresh directory.
    pub clean: bool,
    /// Whether the first command of the new term must raise the counters: what was told may have been lost.
    pub must_raise: bool,
    /// The op of the snapshot that the replay began from; 0 if there was none.
    pub snapshot_op: Op,
    /// The torn tail that was cut, to be reported.
    pub cut: Option<Cut>,
    /// What else the operator should hear, as sentences.
    pub notes: Vec<String>,
    /// How the journal goes on.
    pub tail: Tail,
}

/// A torn tail: never acknowledged under `sync`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The file.
    pub file: std::path::PathBuf,
    /// Where the first broken batch begins, in bytes.
    pub offset: usize,
    /// Bytes from there to the last that is not zero.
    pub bytes: usize,
    /// What is wrong with it.
    pub why: String,
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the last write before the stop was not finished: {} bytes from offset {} of {} are cut ({}); nothing in \
             them was known to be synced",
            self.bytes,
            self.offset,
            self.file.display(),
            self.why
        )
    }
}

/// How the journal goes on: what [`FileLog::start`](crate::journal::FileLog::start) needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The server.
    pub server: ServerId,
    /// The segments, from the oldest.
    pub segments: Vec<Known>,
    /// Whether the batches of the last one go on; else it is replaced by an empty one, after all others are removed.
    pub keep: bool,
    /// The number of the next batch.
    pub next_seq: u64,
    /// The last op.
    pub last_op: Op,
    /// The op of the snapshot.
    pub snapshot_op: Op,
}

/// A segment on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its number.
    pub number: u64,
    /// The last op in it, or before it if it has none.
    pub last_op: Op,
    /// Where its last batch ends, in bytes.
    pub end: u64,
}

/// Reads a directory without changing it.
///
/// # Errors
/// A sentence that says what, where, what to do. Nothing was changed.
pub fn recover(dir: &DataDir) -> Result<Recovered, DiskError> {
    let mut notes = Vec::new();
    let base = load(dir, &mut notes)?;
    let numbers = dir.segments()?;
    let (snapshot_op, clean) = base.as_ref().map_or((0, false), |base| (base.parts.head.op, base.clean));
    let server = base.as_ref().map(|base| base.server);
    let had_snapshot = base.is_some();
    if numbers.is_empty() && had_snapshot && !clean {
        return Err(DiskError::new(format!(
            "the journal in {} is gone, and {SNAPSHOT} (op {snapshot_op}) is not that of a clean stop: what came after \
             it would be lost. Put the journal back, or take the loss with `tenure state restore`",
            dir.journal().display()
        )));
    }
    let mut replay = Replay::new(base)?;
    let mut base_op = None;
    let walked = walk(dir, &numbers, None, server, &mut |path, segment, bytes| {
        let starts = *base_op.get_or_insert(segment.header.base_op);
        if starts > snapshot_op {
            return Err(gap(path, starts, snapshot_op, had_snapshot));
        }
        segment.batches.iter().try_for_each(|placed| replay.feed(path, segment, bytes, placed))
    })?;
    if !numbers.is_empty() && walked.last_op < snapshot_op && !clean {
        return Err(DiskError::new(format!(
            "the snapshot is newer than the journal: {SNAPSHOT} ends with op {snapshot_op}, the journal in {} with op {}. \
             Put the missing segments back, or take the loss with `tenure state restore`",
            dir.journal().display(),
            walked.last_op
        )));
    }
    let fresh = numbers.is_empty() && !had_snapshot;
    let server = match server.or(walked.server) {
        Some(server) => server,
        None => new_server_id()?,
    };
    let last_op = replay.state.op();
    let clean = fresh || (clean && last_op == snapshot_op);
    let unsafe_term = matches!(replay.durability, Some(Durability::Os | Durability::None));
    let keep = walked.rules == Some(RULES) && walked.last_op == last_op;
    let tail =
        Tail { server, segments: walked.segments, keep, next_seq: walked.next_seq, last_op, snapshot_op };
    Ok(Recovered {
        server,
        redo: replay.redo,
        term: replay.term,
        durability: replay.durability,
        fresh,
        clean,
        must_raise: unsafe_term && !clean,
        snapshot_op,
        cut: walked.cut,
        notes,
        tail,
        state: replay.state,
    })
}

/// Loads the snapshot: the current one, or the previous one in its place with a note. None if there is none at all.
pub(crate) fn load(dir: &DataDir, notes: &mut Vec<String>) -> Result<Option<Snapshot>, DiskError> {
    let path = dir.path().join(SNAPSHOT);
    let fault = match dir.read_snapshot(SNAPSHOT)? {
        Some(bytes) => match snapshot::decode(&bytes) {
            Ok(snapshot) => return Ok(Some(snapshot)),
            Err(Fault::Damaged(fault)) => fault,
            Err(newer @ Fault::Newer { .. }) => {
                return Err(DiskError::new(format!("cannot use {}: {newer}", path.display())));
            }
        },
        None => "it is missing".into(),
    };
    let Some(bytes) = dir.read_snapshot(PREVIOUS)? else {
        return match dir.read_snapshot(SNAPSHOT)? {
            None => Ok(None),
            Some(_) => Err(DiskError::new(format!(
                "cannot use {}: {fault}; there is no {PREVIOUS} to fall back to. Restore a backup with \
                 `tenure state restore`",
                path.display()
            ))),
        };
    };
    let previous = snapshot::decode(&bytes).map_err(|previous| {
        DiskError::new(format!(
            "cannot use {}: {fault}; nor {PREVIOUS} beside it: {previous}. Restore a backup with \
             `tenure state restore`",
            path.display()
        ))
    })?;
    let (op, missing) = (previous.parts.head.op, dir.segments()?.is_empty());
    if missing {
        return Err(DiskError::new(format!(
            "cannot use {}: {fault}; {PREVIOUS} beside it ends with op {op}, and there is no journal that goes on from \
             there. Restore a backup with `tenure state restore`",
            path.display()
        )));
    }
    notes
        .push(format!("{} was not used: {fault}; {PREVIOUS} (op {op}) and the journal were", path.display()));
    // Whatever follows it was not a clean stop of its own.
    Ok(Some(Snapshot { clean: false, ..previous }))
}

fn gap(path: &Path, starts: Op, snapshot_op: Op, had_snapshot: bool) -> String {
    let (path, missing) = (path.display(), starts.saturating_add(1));
    if had_snapshot {
        format!(
            "the journal does not reach back to the snapshot: {path} begins with op {missing}, the snapshot used ends with \
             op {snapshot_op}. Put the missing segments or the right snapshot back, or restore a backup with \
             `tenure state restore`"
        )
    } else {
        format!(
            "{SNAPSHOT} is missing: the journal begins with op {missing} in {path}, and what came before was only in it. \
             Put it back, or restore a backup with `tenure state restore`"
        )
    }
}

fn new_server_id() -> Result<ServerId, DiskError> {
    random().map(ServerId)
}

/// A random number of the kernel.
pub(crate) fn random() -> Result<u128, DiskError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| DiskError::new(format!("the kernel gives no random numbers: {error}")))?;
    Ok(u128::from_le_bytes(bytes))
}

/// What a walk over segments found.
pub(crate) struct Walked {
    pub(crate) segments: Vec<Known>,
    pub(crate) server: Option<ServerId>,
    /// The rules of the last segment.
    pub(crate) rules: Option<u32>,
    pub(crate) next_seq: u64,
    pub(crate) last_op: Op,
    pub(crate) cut: Option<Cut>,
}

/// Reads segments in order, checks the chain, and shows each to `visit`. With a limit, the last one is read only up to
/// that many bytes: behind them it may be changing.
pub(crate) fn walk(
    dir: &DataDir,
    numbers: &[u64],
    limit: Option<u64>,
    mut server: Option<ServerId>,
    visit: &mut dyn FnMut(&Path, &Segment, &[u8]) -> Result<(), String>,
) -> Result<Walked, DiskError> {
    let mut before: Option<(Segment, std::path::PathBuf)> = None;
    let mut segments = Vec::new();
    for (index, &number) in numbers.iter().enumerate() {
        let path = dir.segment(number);
        let mut bytes = dir.read_segment(number)?;
        if let Some(limit) = limit.filter(|_| index + 1 == numbers.len()) {
            bytes.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        let segment = Segment::read(&bytes).map_err(|fault| damaged(&path, &fault))?;
        if segment.header.number != number {
            let fault = format!("its header says that it is segment {}", segment.header.number);
            return Err(damaged(&path, &fault));
        }
        let of = *server.get_or_insert(segment.header.server);
        if of != segment.header.server {
            return Err(DiskError::new(format!(
                "{} belongs to server {}, this directory to server {of}: files of two servers were mixed. Put each back \
                 where it came from, or restore a backup with `tenure state restore`",
                path.display(),
                segment.header.server
            )));
        }
        if let Some((before, before_path)) = &before {
            chained(before, before_path, &segment, &path)?;
        }
        visit(&path, &segment, &bytes)?;
        segments.push(Known { number, last_op: segment.last_op(), end: segment.end as u64 });
        before = Some((segment, path));
    }
    let cut = before.as_ref().and_then(|(segment, path)| {
        let Torn { offset, bytes, why, .. } = segment.torn.clone()?;
        Some(Cut { file: path.clone(), offset, bytes, why })
    });
    let last = before.map(|(segment, _)| segment);
    Ok(Walked {
        segments,
        server,
        rules: last.as_ref().map(|segment| segment.header.rules),
        next_seq: last.as_ref().map_or(1, Segment::next_seq),
        last_op: last.as_ref().map_or(0, Segment::last_op),
        cut,
    })
}

/// Checks that a segment goes on where the one before it ends. It was begun when that was synced: what is missing there
/// is damage.
fn chained(before: &Segment, before_path: &Path, segment: &Segment, path: &Path) -> Result<(), DiskError> {
    if before.next_seq() < segment.header.first_seq {
        let why = before.torn.as_ref().map_or("only zeros stand there", |torn| torn.why.as_str());
        let fault = format!(
            "batch {} is missing or broken at offset {} ({why}), and {} begins with batch {}, which says that all before \
             it were synced: this is damage, not the trace of a crash",
            before.next_seq(),
            before.end,
            path.display(),
            segment.header.first_seq
        );
        return Err(damaged(before_path, &fault));
    }
    if before.next_seq() != segment.header.first_seq || before.last_op() != segment.header.base_op {
        let fault = format!(
            "it goes on from batch {} and op {}, but {} ends with batch {} and op {}: an old segment was put back",
            segment.header.first_seq.saturating_sub(1),
            segment.header.base_op,
            before_path.display(),
            before.next_seq() - 1,
            before.last_op()
        );
        return Err(damaged(path, &fault));
    }
    Ok(())
}

pub(crate) fn damaged(path: &Path, fault: &str) -> DiskError {
    DiskError::new(format!(
        "the journal is damaged in {}: {fault}. Look at it with `tenure state check`; put a good copy back, or restore a \
         backup with `tenure state restore`",
        path.display()
    ))
}

/// A state that takes batches and checks what their headers say of it.
pub(crate) struct Replay {
    pub(crate) state: State,
    pub(crate) redo: Vec<FileEffect>,
    pub(crate) term: Term,
    pub(crate) durability: Option<Durability>,
    /// The digests after the last ops, in the order of ops.
    digests: VecDeque<(Op, u32)>,
    effects: Vec<Effect>,
}

/// How many ops back a header may name a digest: more than a loop can have in flight. An older one goes unchecked,
/// which costs nothing: each digest covers all before it.
const DIGESTS_KEPT: usize = 65_536;

impl Replay {
    /// Begins from a snapshot, or from nothing.
    pub(crate) fn new(base: Option<Snapshot>) -> Result<Replay, DiskError> {
        let Some(Snapshot { parts, redo, .. }) = base else {
            return Ok(Replay::of(State::new(), Vec::new(), 0, None));
        };
        let (term, durability) = (parts.head.term, parts.head.durability);
        let state = State::from_parts(parts).map_err(|fault| {
            DiskError::new(format!("the state in the snapshot contradicts itself: {fault}. Please report it"))
        })?;
        Ok(Replay::of(state, redo, term, Some(durability)))
    }

    fn of(state: State, redo: Vec<FileEffect>, term: Term, durability: Option<Durability>) -> Replay {
        let digests = VecDeque::from([(state.op(), state.digest())]);
        Replay { state, redo, term, durability, digests, effects: Vec::new() }
    }

    /// Takes one batch; what the state has already is passed over.
    pub(crate) fn feed(
        &mut self,
        path: &Path,
        segment: &Segment,
        bytes: &[u8],
        placed: &Placed,
    ) -> Result<(), String> {
        let header = &placed.header;
        let place = || format!("{}, batch {} at offset {}", path.display(), header.seq, placed.offset);
        self.check_digest(header).map_err(|fault| format!("{}: {fault}", place()))?;
        if header.last_op() <= self.state.op() {
            return Ok(());
        }
        if segment.header.rules != RULES {
            return Err(format!(
                "{} was written under rules {}, this version has rules {RULES}: start the version that wrote it once and \
                 stop it cleanly, then start this one",
                path.display(),
                segment.header.rules
            ));
        }
        let entries = segment.entries(bytes, placed).map_err(|fault| format!("{}: {fault}", place()))?;
        for (op, entry) in (header.first_op..).zip(&entries) {
            if op > self.state.op() {
                self.apply(op, entry).map_err(|fault| format!("{}: {fault}", place()))?;
            }
        }
        Ok(())
    }

    /// Applies one command behind the last.
    fn apply(&mut self, op: Op, entry: &Entry) -> Result<(), String> {
        let (last, at) = (self.state.op(), self.state.at());
        if op != next_op(last, &entry.command) {
            return Err(format!("op {op} stands behind op {last}"));
        }
        if entry.at < at {
            return Err(format!("op {op} was given at {}, before op {last} at {at}", entry.at));
        }
        if let Command::NewTerm { term, durability, .. } = &entry.command {
            (self.term, self.durability) = (*term, Some(*durability));
        }
        self.state.apply(op, entry.at, &entry.command, &mut self.effects);
        for effect in self.effects.drain(..) {
            if let Effect::File(work) = effect {
                self.redo.push(work);
            }
        }
        if self.digests.len() == DIGESTS_KEPT {
            self.digests.pop_front();
        }
        self.digests.push_back((op, self.state.digest()));
        Ok(())
    }

    /// Compares the digest that a header names with the one that the replay gave.
    fn check_digest(&self, header: &batch::Header) -> Result<(), String> {
        if header.digest_op == 0 {
            return Ok(());
        }
        if header.digest_op > self.state.op() {
            return Err(format!(
                "it speaks of the outcome of op {}, but the journal before it ends with op {}",
                header.digest_op,
                self.state.op()
            ));
        }
        match self.digests.binary_search_by_key(&header.digest_op, |&(op, _)| op) {
            Ok(index) if self.digests[index].1 != header.digest => Err(format!(
                "the outcomes up to op {} had digest {:08x} when they were told and have {:08x} now: the journal, the \
                 snapshot or the memory was damaged, or the rules changed without their number; please report it",
                header.digest_op, header.digest, self.digests[index].1
            )),
            _ => Ok(()),
        }
    }
}
