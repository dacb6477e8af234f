//! Recovery: from what stands on the disk to the state that was committed, or to a sentence why not.
//!
//! The snapshot is read, the segments behind it are replayed in order. Nothing is written here:
//! [`FileLog::start`](crate::journal::FileLog::start) rewrites the tail before anything is answered. What recovery insists
//! on:
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
    /// Whether the previous snapshot had to serve, since the current one is damaged or missing.
    pub fell_back: bool,
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
    let fell_back = !notes.is_empty();
    let numbers = dir.segments()?;
    let (snapshot_op, clean) = base.as_ref().map_or((0, false), |base| (base.parts.head.op, base.clean));
    let server = base.as_ref().map(|base| base.server);
    let had_snapshot = base.is_some();
    if numbers.is_empty() && had_snapshot && !clean {
        return Err(DiskError::new(format!(
            "the journal in {} is gone, and {SNAPSHOT} (op {snapshot_op}) is not that of a clean stop: what came after \
             it would be lost. Put the journal back, or take the loss with `tenure state restore --take-loss`",
            dir.journal().display()
        )));
    }
    let mut replay = Replay::new(base)?;
    let mut base_op = None;
    let walked = walk(dir, &numbers, None, server, &mut |path, segment, bytes| {
        let starts = *base_op.get_or_insert(segment.header.base_op);
        if starts > snapshot_op {
            // What is damaged stands first: it is the cause.
            let why = [notes.as_slice(), &[gap(path, starts, snapshot_op, had_snapshot)]].concat();
            return Err(why.join("; "));
        }
        segment.batches.iter().try_for_each(|placed| replay.feed(path, segment, bytes, placed))
    })?;
    if !numbers.is_empty() && walked.last_op < snapshot_op && !clean {
        return Err(DiskError::new(format!(
            "the snapshot is newer than the journal: {SNAPSHOT} ends with op {snapshot_op}, the journal in {} with op {}. \
             Put the missing segments back, or take the loss with `tenure state restore --take-loss`",
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
    let head = replay.state.head();
    let unsafe_term = matches!(head.durability, Durability::Os | Durability::None);
    if crate::bug::planted("files_redone_backwards") {
        replay.redo.reverse();
    }
    let keep = walked.rules == Some(RULES) && walked.last_op == last_op;
    let tail =
        Tail { server, segments: walked.segments, keep, next_seq: walked.next_seq, last_op, snapshot_op };
    Ok(Recovered {
        server,
        redo: replay.redo,
        term: head.term,
        fresh,
        clean,
        must_raise: unsafe_term && !clean && !crate::bug::planted("counters_not_raised"),
        snapshot_op,
        cut: walked.cut,
        fell_back,
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
            Err(other @ Fault::OtherFormat { .. }) => {
                return Err(DiskError::new(format!("cannot use {}: {other}", path.display())));
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

/// What a walk does with each segment: its file, what was read, and the bytes.
pub(crate) type Visit<'a> = dyn FnMut(&Path, &Segment, &[u8]) -> Result<(), String> + 'a;

/// Reads segments in order, checks the chain, and shows each to `visit`. With a limit, the last one is read only up to
/// that many bytes: behind them it may be changing.
pub(crate) fn walk(
    dir: &DataDir,
    numbers: &[u64],
    limit: Option<u64>,
    mut server: Option<ServerId>,
    visit: &mut Visit<'_>,
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
            before.next_seq().saturating_sub(1),
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
            return Ok(Replay::of(State::new(), Vec::new()));
        };
        let state = State::from_parts(parts).map_err(|fault| {
            DiskError::new(format!("the state in the snapshot contradicts itself: {fault}. Please report it"))
        })?;
        Ok(Replay::of(state, redo))
    }

    /// Goes on from a state that was recovered.
    pub(crate) fn resume(state: State, redo: Vec<FileEffect>) -> Replay {
        Replay::of(state, redo)
    }

    fn of(state: State, redo: Vec<FileEffect>) -> Replay {
        let digests = VecDeque::from([(state.op(), state.digest())]);
        Replay { state, redo, digests, effects: Vec::new() }
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
        if let Command::NewTerm { term, .. } = &entry.command
            && *term <= self.state.head().term
        {
            return Err(format!("op {op} begins term {term} in term {}", self.state.head().term));
        }
        self.state.apply_entry(op, entry, &mut self.effects);
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::command::{Call, Request};
    use crate::fold;
    use crate::identity::{Nonce, RAISE, SessionId};
    use crate::image::record::{Kept, Record};
    use crate::journal::{FileLog, JournalConfig, SEGMENT_BYTES_MIN};
    use crate::limits::Limits;
    use crate::log::{Batch, Log, LogEvent, bytes_of};
    use crate::name::Name;
    use crate::segment;
    use crate::state::Parts;
    use std::fs;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    /// A server without a socket: submits commands, applies them once they are committed.
    pub(crate) struct Rig {
        pub(crate) dir: Arc<DataDir>,
        pub(crate) log: FileLog,
        pub(crate) state: State,
        pub(crate) server: ServerId,
        seq: u64,
        request: u64,
        effects: Vec<Effect>,
        fold_due: bool,
    }

    const SESSION: SessionId = SessionId(0xabcdef);

    impl Rig {
        /// Recovers and begins a term.
        pub(crate) fn start(dir: &Arc<DataDir>, durability: Durability) -> Rig {
            let recovered = recover(dir).unwrap();
            let config =
                JournalConfig { durability, segment_bytes: SEGMENT_BYTES_MIN, ..JournalConfig::default() };
            let log = FileLog::start(dir.clone(), &recovered.tail, &config, Box::new(|| ())).unwrap();
            let mut rig = Rig {
                dir: dir.clone(),
                log,
                server: recovered.server,
                request: recovered.state.op(),
                state: recovered.state,
                seq: 0,
                effects: Vec::new(),
                fold_due: false,
            };
            let term = recovered.term + 1;
            let limits = Limits::default();
            rig.run(vec![Command::NewTerm { term, limits, durability, raised: recovered.must_raise }]);
            if recovered.fresh {
                rig.run(vec![Command::OpenSession {
                    nonce: Nonce(1),
                    session: SESSION,
                    name: "rig".into(),
                    label: String::new(),
                    ttl_ms: 10_000,
                }]);
            }
            rig
        }

        /// Commits commands as one batch and applies them.
        pub(crate) fn run(&mut self, commands: Vec<Command>) {
            let first_op = next_op(self.state.op(), &commands[0]);
            let at = self.state.at().after_us(1);
            let entries: Vec<Entry> =
                commands.into_iter().map(|command| Entry { at, ahead_us: 0, command }).collect();
            self.seq += 1;
            let (digest_op, digest) = (self.state.op(), self.state.digest());
            let batch =
                Batch { seq: self.seq, first_op, bytes: bytes_of(&entries), entries, digest_op, digest };
            self.log.submit(Arc::new(batch.clone()));
            self.until(|event| *event == LogEvent::Committed { seq: batch.seq });
            for (op, entry) in (first_op..).zip(&batch.entries) {
                self.state.apply_entry(op, entry, &mut self.effects);
            }
        }

        pub(crate) fn until(&mut self, wanted: impl Fn(&LogEvent) -> bool) {
            let started = Instant::now();
            loop {
                match self.log.poll() {
                    Some(event) if wanted(&event) => return,
                    Some(LogEvent::Failed { sentence } | LogEvent::SnapshotFailed { sentence }) => {
                        panic!("{sentence}")
                    }
                    Some(LogEvent::FoldDue) => self.fold_due = true,
                    Some(_) => {}
                    None => std::thread::sleep(Duration::from_millis(1)),
                }
                assert!(started.elapsed() < Duration::from_secs(30), "nothing was said for 30 s");
            }
        }

        pub(crate) fn call(&mut self, call: Call) {
            self.request += 1;
            let id = self.request;
            let request = Request { session: SESSION, id, ack: id, got: vec![], call };
            self.run(vec![Command::Request(request)]);
        }

        pub(crate) fn set(&mut self, key: &str, bytes: usize) {
            let value = format!("\"{}\"", "v".repeat(bytes));
            let key = Name::new(key).unwrap();
            let (life, value) = (crate::command::Life::default(), value.into());
            self.call(Call::Set { key, value, if_version: None, life, token: None, holder: None });
        }

        pub(crate) fn fold(&mut self) {
            self.fold_with(None);
        }

        /// Offers a copy of the state, and waits for a snapshot.
        pub(crate) fn fold_with(&mut self, state: Option<Box<Parts>>) {
            self.log.fold(Record::default(), state);
            self.until(|event| matches!(event, LogEvent::SnapshotDone { .. }));
        }

        pub(crate) fn stop(mut self) {
            self.log.close().unwrap();
            fold::write_final(&self.dir, self.server, &self.state, vec![]).unwrap();
        }

        pub(crate) fn shown(&self) -> String {
            shown(&self.state)
        }
    }

    /// A state as bytes.
    pub(crate) fn shown(state: &State) -> String {
        let snapshot = Snapshot { server: ServerId(0), clean: false, parts: state.parts(), redo: vec![] };
        let mut out = Vec::new();
        snapshot::encode(&snapshot, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    pub(crate) fn fresh() -> (tempfile::TempDir, Arc<DataDir>) {
        let path = tempfile::tempdir().unwrap();
        let dir = Arc::new(DataDir::open(path.path()).unwrap());
        (path, dir)
    }

    fn refusal(dir: &DataDir) -> String {
        recover(dir).err().expect("recovery refuses").sentence
    }

    #[test]
    fn a_killed_server_comes_back_with_the_state_it_had() {
        let (_path, dir) = fresh();
        let first = recover(&dir).unwrap();
        assert!(first.fresh && first.clean && !first.must_raise);
        let mut rig = Rig::start(&dir, Durability::Sync);
        for round in 0..20 {
            rig.set(&format!("k{}", round % 7), 20_000);
        }
        let (before, server) = (rig.shown(), rig.server);
        drop(rig);
        let found = recover(&dir).unwrap();
        assert_eq!(shown(&found.state), before);
        assert_eq!((found.server, found.clean, found.cut.clone()), (server, false, None));
        assert!(!found.fell_back && !found.fresh);
        assert!(dir.segments().unwrap().len() > 1);
    }

    /// Recovers beside a running journal, which may remove an old segment while it is read.
    fn recover_beside(dir: &DataDir) -> Recovered {
        (0..1_000)
            .find_map(|_| recover(dir).ok())
            .expect("segments are removed a few times, not all the time")
    }

    #[test]
    fn no_fold_is_due_before_as_many_bytes_were_written_as_are_asked_for() {
        let (_path, dir) = fresh();
        let mut rig = Rig::start(&dir, Durability::Sync);
        rig.fold();
        rig.fold_due = false;
        for _ in 0..60 {
            rig.set("k", 20_000);
        }
        assert!(dir.segments().unwrap().len() > 4);
        assert!(!rig.fold_due, "16 MiB were asked for");
    }

    #[test]
    fn folding_gives_the_same_state_and_lets_old_segments_go_one_cycle_later() {
        let (_path, dir) = fresh();
        let mut rig = Rig::start(&dir, Durability::Sync);
        for cycle in 0..3 {
            for _ in 0..20 {
                rig.set(&format!("k{cycle}"), 20_000);
            }
            rig.fold();
            let found = recover_beside(&dir);
            assert_eq!(found.snapshot_op, rig.state.op());
            assert_eq!(shown(&found.state), rig.shown());
        }
        assert!(rig.fold_due, "the loop was told that a fold is due");
        rig.set("last", 1);
        let before = rig.shown();
        drop(rig);
        assert!(dir.segments().unwrap()[0] > 1, "old segments are gone");
        // Without the snapshot the previous one serves, since the journal still reaches back to it.
        fs::write(dir.path().join(SNAPSHOT), b"{}").unwrap();
        let found = recover(&dir).unwrap();
        assert_eq!(shown(&found.state), before);
        assert!(found.fell_back && found.notes.len() == 1);
        // And it stays the previous one when the next snapshot is written.
        let previous = dir.read_snapshot(PREVIOUS).unwrap();
        let mut rig = Rig::start(&dir, Durability::Sync);
        rig.fold();
        let before = rig.shown();
        drop(rig);
        assert_eq!(dir.read_snapshot(PREVIOUS).unwrap(), previous);
        assert_eq!(fs::read(dir.path().join("server_state.json.damaged")).unwrap(), b"{}");
        fs::remove_file(dir.path().join(SNAPSHOT)).unwrap();
        assert_eq!(shown(&recover(&dir).unwrap().state), before);
        fs::remove_file(dir.path().join(PREVIOUS)).unwrap();
        let sentence = refusal(&dir);
        assert!(sentence.contains("is missing: the journal begins with op"), "{sentence}");
    }

    #[test]
    fn a_copy_of_the_state_becomes_the_snapshot_as_it_is() {
        let (_path, dir) = fresh();
        let mut rig = Rig::start(&dir, Durability::Sync);
        rig.fold();
        rig.set("a", 1);
        let (parts, copied) = (rig.state.parts(), rig.shown());
        rig.set("b", 1);
        let before = rig.shown();
        rig.fold_with(Some(Box::new(parts)));
        drop(rig);
        let snapshot = crate::snapshot::decode(&dir.read_snapshot(SNAPSHOT).unwrap().unwrap()).unwrap();
        assert_eq!(shown(&State::from_parts(snapshot.parts).unwrap()), copied);
        assert_eq!(shown(&recover(&dir).unwrap().state), before, "the rest is in the journal");
    }

    #[test]
    fn a_copy_behind_the_last_snapshot_or_ahead_of_the_journal_is_not_written() {
        let (_path, dir) = fresh();
        let mut rig = Rig::start(&dir, Durability::Sync);
        rig.set("a", 1);
        let behind = Box::new(rig.state.parts());
        rig.set("b", 1);
        rig.fold();
        rig.set("c", 1);
        rig.fold_with(Some(behind));
        assert_eq!(recover(&dir).unwrap().snapshot_op, rig.state.op());
        rig.set("d", 1);
        let mut ahead = Box::new(rig.state.parts());
        ahead.head.op += 1;
        rig.fold_with(Some(ahead));
        assert_eq!(recover(&dir).unwrap().snapshot_op, rig.state.op());
    }

    #[test]
    fn a_damaged_snapshot_does_not_become_the_previous_one_behind_a_copy() {
        let (_path, dir) = fresh();
        let mut rig = Rig::start(&dir, Durability::Sync);
        rig.fold();
        rig.set("a", 1);
        rig.fold();
        let previous = dir.read_snapshot(PREVIOUS).unwrap();
        fs::write(dir.path().join(SNAPSHOT), b"{}").unwrap();
        rig.set("b", 1);
        let copy = Box::new(rig.state.parts());
        let before = rig.shown();
        rig.fold_with(Some(copy));
        drop(rig);
        assert_eq!(dir.read_snapshot(PREVIOUS).unwrap(), previous);
        assert_eq!(shown(&recover(&dir).unwrap().state), before);
    }

    #[test]
    fn a_newer_snapshot_is_refused_and_never_replaced_by_the_previous() {
        let (_path, dir) = fresh();
        let mut rig = Rig::start(&dir, Durability::Sync);
        rig.fold();
        rig.set("k", 1);
        rig.fold();
        drop(rig);
        let newer = crate::snapshot::FORMAT + 1;
        fs::write(dir.path().join(SNAPSHOT), format!("{{\"format\":{newer},\n")).unwrap();
        assert!(refusal(&dir).contains("newer version of tenure"));
    }

    #[test]
    fn only_an_unclean_stop_without_syncs_raises_the_counters() {
        for durability in [Durability::Sync, Durability::Os, Durability::None] {
            let (_path, dir) = fresh();
            let mut rig = Rig::start(&dir, durability);
            rig.set("k", 1);
            rig.stop();
            let found = recover(&dir).unwrap();
            assert!(found.clean && !found.must_raise, "{durability:?}");
            // The first command of the next term alone makes it unclean.
            let rig = Rig::start(&dir, durability);
            let op = rig.state.op();
            drop(rig);
            let found = recover(&dir).unwrap();
            assert!(!found.clean);
            assert_eq!(found.must_raise, durability != Durability::Sync);
            let mut rig = Rig::start(&dir, durability);
            assert_eq!(rig.state.op() > op + RAISE, durability != Durability::Sync);
            rig.set("k", 2);
            let before = rig.shown();
            rig.fold();
            drop(rig);
            assert_eq!(shown(&recover(&dir).unwrap().state), before);
        }
    }

    /// A small journal, the states after each of its batches, and the file cut to what is used and a little more.
    fn small() -> (tempfile::TempDir, Arc<DataDir>, Vec<u8>, Vec<String>) {
        let (path, dir) = fresh();
        let mut states = vec![shown(&State::new())];
        let mut rig = Rig::start(&dir, Durability::Sync);
        states.push(rig.shown());
        for round in 0..3 {
            rig.set(&format!("k{round}"), 3);
            states.push(rig.shown());
        }
        rig.log.close().unwrap();
        drop(rig);
        let bytes = dir.read_segment(1).unwrap();
        let end = Segment::read(&bytes).unwrap().end;
        (path, dir, bytes[..end + 64].to_vec(), states)
    }

    /// Whether the state is one of those that were committed, the one after `OpenSession` aside.
    fn is_prefix(found: &Recovered, states: &[String]) -> bool {
        found.state.op() == 1 || states.contains(&shown(&found.state))
    }

    #[test]
    fn a_journal_cut_at_any_byte_gives_a_committed_state_or_is_refused() {
        let (_path, dir, bytes, states) = small();
        let mut last_op = 0;
        for end in 0..=bytes.len() {
            fs::write(dir.segment(1), &bytes[..end]).unwrap();
            match recover(&dir) {
                Ok(found) => {
                    assert!(is_prefix(&found, &states), "cut to {end} bytes");
                    assert!(found.state.op() >= last_op, "a longer journal never says less");
                    last_op = found.state.op();
                }
                Err(_) => assert!(end < segment::HEADER_BYTES, "cut to {end} bytes"),
            }
        }
        assert_eq!(last_op, 5);
    }

    #[test]
    fn a_journal_with_any_bit_flipped_gives_the_last_state_or_is_refused() {
        let (_path, dir, bytes, states) = small();
        let mut refused = 0;
        // Each bit of a segment is flipped in the tests of `segment`; here, with a replay for each, one of each byte.
        for at in 0..bytes.len() {
            let bit = at * 8 + at % 8;
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (bit % 8);
            fs::write(dir.segment(1), &damaged).unwrap();
            match recover(&dir) {
                Ok(found) => {
                    assert_eq!(
                        Some(&shown(&found.state)),
                        states.last(),
                        "bit {bit}: silently another state"
                    );
                    assert!(found.cut.is_some(), "bit {bit}: not reported");
                }
                Err(error) => {
                    assert!(error.sentence.contains("00001.seg"), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > bytes.len() / 2);
    }

    #[test]
    fn what_does_not_fit_together_is_refused_with_the_reason() {
        let (_path, dir) = fresh();
        let mut rig = Rig::start(&dir, Durability::Sync);
        rig.set("k", 1);
        rig.fold();
        rig.set("k", 2);
        rig.fold();
        drop(rig);
        let bytes = dir.read_segment(1).unwrap();
        // The journal is gone.
        fs::remove_file(dir.segment(1)).unwrap();
        assert!(refusal(&dir).contains("is gone"));
        // The journal ends before the snapshot.
        let cut = Segment::read(&bytes).unwrap().batches[1].offset;
        fs::write(dir.segment(1), &bytes[..cut]).unwrap();
        assert!(refusal(&dir).contains("the snapshot is newer than the journal"));
        // Other rules: nothing is replayed that this version did not apply.
        let header = segment::Header { rules: RULES + 1, ..segment::Header::decode(&bytes).unwrap() };
        let foreign = [&header.encode(), &bytes[segment::HEADER_BYTES..]].concat();
        fs::write(dir.segment(1), &foreign).unwrap();
        recover(&dir).unwrap();
        fs::remove_file(dir.path().join(SNAPSHOT)).unwrap();
        let reason = format!("written under rules {}", RULES + 1);
        assert!(refusal(&dir).contains(&reason), "{}", refusal(&dir));
    }

    #[test]
    fn after_a_clean_stop_other_rules_go_on_in_an_empty_journal() {
        let (_path, dir) = fresh();
        let mut rig = Rig::start(&dir, Durability::Sync);
        rig.set("k", 1);
        rig.stop();
        let bytes = dir.read_segment(1).unwrap();
        let old = Segment::read(&bytes).unwrap();
        let header = segment::Header { rules: RULES + 1, ..old.header };
        let mut foreign = header.encode().to_vec();
        for placed in &old.batches {
            let body: &[u8] = if placed.header.count == 0 { b"" } else { b"records of another layout" };
            batch::encode(header.id, &placed.header, body, &mut foreign);
        }
        fs::write(dir.segment(1), &foreign).unwrap();
        let mut told = Vec::new();
        assert!(crate::inspect::check(&dir, &mut told).unwrap(), "{}", String::from_utf8_lossy(&told));
        let rig = Rig::start(&dir, Durability::Sync);
        let before = rig.shown();
        drop(rig);
        assert_eq!(dir.segments().unwrap(), [2]);
        assert_eq!(shown(&recover(&dir).unwrap().state), before);
    }

    /// What recovery says of a journal whose last batch has this entry and names this digest.
    fn refusal_of(entry: impl FnOnce(&State) -> Entry, digest: impl FnOnce(&State) -> (Op, u32)) -> String {
        let (_path, dir) = fresh();
        let mut rig = Rig::start(&dir, Durability::Sync);
        rig.set("k", 1);
        let (digest_op, digest) = digest(&rig.state);
        let (first_op, entries) = (rig.state.op() + 1, vec![entry(&rig.state)]);
        rig.log.submit(Arc::new(Batch {
            seq: rig.seq + 1,
            first_op,
            bytes: bytes_of(&entries),
            entries,
            digest_op,
            digest,
        }));
        rig.log.close().unwrap();
        drop(rig);
        refusal(&dir)
    }

    #[test]
    fn outcomes_that_differ_from_what_was_told_are_noticed() {
        let tick = |state: &State| Entry { at: state.at(), ahead_us: 0, command: Command::Tick };
        for back in [0, 2] {
            let sentence = refusal_of(tick, |state| (state.op() - back, state.digest() ^ 1));
            assert!(sentence.contains("had digest"), "{sentence}");
        }
        let sentence = refusal_of(tick, |state| (state.op() + 1, state.digest()));
        assert!(sentence.contains("speaks of the outcome of op 4, but"), "{sentence}");
    }

    #[test]
    fn time_and_terms_that_go_back_are_refused() {
        let told = |state: &State| (state.op(), state.digest());
        let early =
            |state: &State| Entry { at: state.at().just_before(), ahead_us: 0, command: Command::Tick };
        let sentence = refusal_of(early, told);
        assert!(sentence.contains("op 4 was given at"), "{sentence}");
        let again = |state: &State| {
            let (term, limits) = (state.head().term, Limits::default());
            let command = Command::NewTerm { term, limits, durability: Durability::Sync, raised: false };
            Entry { at: state.at(), ahead_us: 0, command }
        };
        let sentence = refusal_of(again, told);
        assert!(sentence.contains("op 4 begins term 1 in term 1"), "{sentence}");
    }

    #[test]
    fn a_snapshot_may_end_in_the_middle_of_a_batch_of_one_moment() {
        let (_path, dir) = fresh();
        let mut rig = Rig::start(&dir, Durability::Sync);
        let mut half = State::from_parts(rig.state.parts()).unwrap();
        rig.run(vec![Command::Tick, Command::Tick]);
        half.apply(half.op() + 1, rig.state.at(), &Command::Tick, &mut Vec::new());
        fold::write_final(&dir, rig.server, &half, vec![]).unwrap();
        let before = rig.shown();
        drop(rig);
        let found = recover(&dir).unwrap();
        assert_eq!((shown(&found.state), found.clean), (before, false));
    }

    #[test]
    fn a_clean_stop_needs_no_journal() {
        let (_path, dir) = fresh();
        let mut rig = Rig::start(&dir, Durability::Os);
        rig.set("k", 1);
        let before = rig.shown();
        rig.stop();
        let bytes = dir.read_segment(1).unwrap();
        let cut = Segment::read(&bytes).unwrap().batches[1].offset;
        fs::write(dir.segment(1), &bytes[..cut]).unwrap();
        let found = recover(&dir).unwrap();
        assert_eq!((shown(&found.state), found.clean, found.fresh), (before.clone(), true, false));
        // What is left of it is not gone on with.
        drop(Rig::start(&dir, Durability::Os));
        assert_eq!(dir.segments().unwrap(), [2]);
        fs::remove_file(dir.segment(2)).unwrap();
        let found = recover(&dir).unwrap();
        assert_eq!((shown(&found.state), found.clean, found.fresh), (before, true, false));
    }

    #[test]
    fn a_clean_stop_before_the_last_start_makes_nothing_clean() {
        let (_path, dir) = fresh();
        let mut rig = Rig::start(&dir, Durability::Os);
        rig.set("k", 1);
        rig.stop();
        let stopped = dir.read_segment(1).unwrap();
        let mut rig = Rig::start(&dir, Durability::Os);
        rig.set("k", 2);
        rig.fold();
        drop(rig);
        // The snapshot is damaged, and of the journal is left what there was at the stop.
        fs::write(dir.path().join(SNAPSHOT), b"{}").unwrap();
        fs::write(dir.segment(1), stopped).unwrap();
        let found = recover(&dir).unwrap();
        assert!(found.fell_back && !found.clean && found.must_raise, "what was told since may be lost");
    }

    #[test]
    fn a_walk_with_a_limit_does_not_look_behind_it() {
        let (_path, dir, mut bytes, _) = small();
        let limit = Segment::read(&bytes).unwrap().batches[2].offset;
        bytes[limit + 3] ^= 1;
        fs::write(dir.segment(1), &bytes).unwrap();
        let walk_to = |limit| walk(&dir, &[1], limit, None, &mut |_, _, _| Ok(()));
        assert!(walk_to(None).is_err());
        let walked = walk_to(Some(limit as u64)).unwrap();
        assert_eq!((walked.segments[0].end, walked.last_op, walked.cut), (limit as u64, 2, None));
    }

    #[test]
    fn a_segment_goes_on_where_the_one_before_it_ends() {
        let (_path, dir, bytes, _) = small();
        let before = Segment::read(&bytes).unwrap();
        let (seq, op) = (before.next_seq(), before.last_op());
        let walk_with = |first_seq, base_op| {
            let header = segment::Header { number: 2, first_seq, base_op, ..before.header };
            fs::write(dir.segment(2), header.encode()).unwrap();
            let walked = walk(&dir, &[1, 2], None, None, &mut |_, _, _| Ok(()));
            walked.err().map(|error| error.sentence).unwrap_or_default()
        };
        assert_eq!(walk_with(seq, op), "");
        assert!(walk_with(seq + 1, op).contains("missing or broken"));
        for (seq, op) in [(seq - 1, op), (seq, op - 1), (seq, op + 1)] {
            assert!(walk_with(seq, op).contains("an old segment was put back"), "batch {seq}, op {op}");
        }
    }

    #[test]
    fn work_for_files_is_carried_until_it_is_safe() {
        let (_path, dir) = fresh();
        let mut rig = Rig::start(&dir, Durability::Sync);
        let name = |text: &str| Name::new(text).unwrap();
        for (index, file) in ["a", "b"].into_iter().enumerate() {
            let asks = vec![crate::command::Ask { key: name(file), mode: crate::command::Mode::Exclusive }];
            rig.call(Call::Acquire {
                asks: asks.into(),
                wait: crate::command::Patience::Try,
                owner: String::new(),
                terms: crate::command::Terms::default(),
            });
            let (token, data) = (index as u64 + 1, Arc::from(&b"line\n"[..]));
            rig.call(Call::AppendFile { file: name(file), data, token, holder: None });
        }
        rig.fold();
        let files = |dir: &DataDir| -> Vec<String> {
            recover(dir).unwrap().redo.iter().map(|work| work.file.to_string()).collect()
        };
        assert_eq!(files(&dir), ["a", "b"], "nothing was said to be safe");
        rig.set("k", 1);
        let from = rig.state.file("b").unwrap().generation;
        let kept = vec![Kept { file: name("b"), generation: from, from, waits: false }];
        rig.log.fold(Record { op: rig.state.op(), kept }, None);
        rig.until(|event| matches!(event, LogEvent::SnapshotDone { .. }));
        assert_eq!(files(&dir), ["b"], "what is safe went, what is not stayed");
        rig.call(Call::AppendFile { file: name("a"), data: Arc::from(&b"2"[..]), token: 1, holder: None });
        drop(rig);
        assert_eq!(files(&dir), ["b", "a"], "and what came since is in the journal");
    }

    /// A small file system of its own, unmounted when dropped. None where that cannot be had, which only CI minds.
    pub(crate) struct SmallDisk(tempfile::TempDir);

    impl SmallDisk {
        pub(crate) fn mount(bytes: u64) -> Option<SmallDisk> {
            let path = tempfile::tempdir().unwrap();
            let size = format!("size={bytes},mode=0700");
            let mounted = std::process::Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
                .arg(path.path())
                .output();
            match mounted {
                Ok(output) if output.status.success() => Some(SmallDisk(path)),
                failed => {
                    assert!(std::env::var("CI").is_err(), "no small file system can be mounted: {failed:?}");
                    println!("SKIP: no small file system can be mounted: {failed:?}");
                    None
                }
            }
        }

        pub(crate) fn path(&self) -> &Path {
            self.0.path()
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(self.path()).status();
        }
    }

    /// Takes all the room there is, and lets none of it go in between.
    pub(crate) fn fill(path: &Path) {
        use std::io::Write;
        let mut file = fs::File::options().create(true).append(true).open(path.join("filler")).unwrap();
        for size in [65_536, 4_096, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
    }

    #[test]
    fn a_full_disk_stops_nothing_that_frees_and_all_resumes_by_itself() {
        use crate::log::Room;
        let Some(disk) = SmallDisk::mount(4 << 20) else { return };
        let dir = Arc::new(DataDir::open(&disk.path().join("data")).unwrap());
        let mut rig = Rig::start(&dir, Durability::Sync);
        // The spare and the reserve are there.
        let started = Instant::now();
        while !(dir.has_spare(SEGMENT_BYTES_MIN).unwrap() && dir.path().join("snapshot.reserve").exists()) {
            assert!(started.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(5));
        }
        fill(disk.path());
        assert_eq!(rig.log.room(), Room::Ok);
        // Writes on a full disk until the room is as wanted. Where nothing is known to be short and there is no spare, its
        // keeper is at work: on a busy machine a writer that does not wait for its word could use up the segment.
        let write_until = |rig: &mut Rig, wanted: Room, bytes: usize| {
            let started = Instant::now();
            while rig.log.room() != wanted {
                assert!(started.elapsed() < Duration::from_secs(30), "{wanted:?} does not come");
                fill(disk.path());
                match rig.log.room() == Room::Ok && !dir.has_spare(SEGMENT_BYTES_MIN).unwrap() {
                    true => std::thread::sleep(Duration::from_millis(1)),
                    false => rig.set("k", bytes),
                }
            }
        };
        write_until(&mut rig, Room::Low, 20_000);
        // A snapshot still finds room, in its reserve. What it lets go of may become a spare.
        rig.fold();
        write_until(&mut rig, Room::Full, 1_000);
        // What frees had the segment up to where one more batch of the largest size ends.
        let last = *dir.segments().unwrap().last().unwrap();
        let end =
            Segment::read(&dir.read_segment(last).unwrap()).unwrap().batches.last().unwrap().offset as u64;
        let limit = SEGMENT_BYTES_MIN / 2;
        assert!((limit - 2_500..=limit).contains(&end), "the last batch begins at {end}");
        let before = rig.shown();
        drop(rig);
        // A start needs no free space, not even the spare's: the tail is rewritten in its place.
        let _ = fs::remove_file(dir.journal().join("spare"));
        fill(disk.path());
        let id = |dir: &DataDir| Segment::read(&dir.read_segment(last).unwrap()).unwrap().header.id;
        let found = id(&dir);
        let mut rig = Rig::start(&dir, Durability::Sync);
        assert_eq!(id(&dir), found);
        assert_ne!(rig.log.room(), Room::Ok, "a disk found full at the start is known to be full");
        assert_eq!(shown(&recover(&dir).unwrap().state), rig.shown());
        assert_ne!(before, rig.shown(), "a new term began");
        fs::remove_file(disk.path().join("filler")).unwrap();
        let started = Instant::now();
        while rig.log.room() != Room::Ok || !dir.has_spare(SEGMENT_BYTES_MIN).unwrap() {
            assert!(started.elapsed() < Duration::from_secs(30), "the room comes back");
            rig.log.poll();
            std::thread::sleep(Duration::from_millis(20));
        }
        for _ in 0..20 {
            rig.set("k", 20_000);
        }
        let before = rig.shown();
        drop(rig);
        assert_eq!(shown(&recover(&dir).unwrap().state), before);
    }

    /// Every failpoint of the disk, in the order in which [`life`] passes them.
    const POINTS: [&str; 29] = [
        "disk.allocate",
        "spare.before_create",
        "spare.before_rename",
        "spare.after_rename",
        "segment.before_write",
        "segment.before_sync",
        "segment.before_rename",
        "segment.after_rename",
        "segment.after_dirsync",
        "segment.before_delete",
        "segment.after_delete",
        "journal.before_write",
        "journal.half_write",
        "journal.after_write",
        "journal.before_sync",
        "journal.after_sync",
        "snapshot.before_write",
        "snapshot.before_sync",
        "snapshot.after_sync",
        "snapshot.before_rename",
        "snapshot.after_rename",
        "snapshot.after_dirsync",
        "tail.before_write",
        "tail.before_sync",
        "tail.before_rename",
        "tail.after_rename",
        "tail.after_dirsync",
        "snapshot.after_link",
        "snapshot.after_previous",
    ];

    /// What a process does that is to die on the way: two lives of a server with folds, telling each op and digest
    /// that it could have told a client.
    #[test]
    #[ignore = "run by `a_kill_at_any_point_loses_nothing_that_was_told`, in a process of its own"]
    fn life() {
        let path = std::env::var("TENURE_TEST_DIR").unwrap();
        let dir = Arc::new(DataDir::open(Path::new(&path)).unwrap());
        for round in 0..2 {
            let mut rig = Rig::start(&dir, Durability::Sync);
            for count in 0..36 {
                rig.set(&format!("k{}", count % 5), 20_000);
                println!("told {} {}", rig.state.op(), rig.state.digest());
                if count % 12 == 11 {
                    rig.fold();
                }
            }
            if round == 1 {
                rig.stop();
            }
        }
        println!("survived");
    }

    #[test]
    fn a_kill_at_any_point_loses_nothing_that_was_told() {
        let mut survived = Vec::new();
        for (point, at) in POINTS.iter().flat_map(|point| [(point, 1), (point, 3)]) {
            let path = tempfile::tempdir().unwrap();
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "recovery::tests::life", "--ignored", "--nocapture"])
                .env("TENURE_TEST_DIR", path.path())
                .env("TENURE_FAILPOINT", format!("{point}=kill@{at}"))
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            if said.contains("survived") {
                survived.push((point, at));
            } else {
                use std::os::unix::process::ExitStatusExt;
                assert_eq!(output.status.signal(), Some(9), "{point}@{at}: {said}");
            }
            let told =
                said.lines().filter_map(|line| line.strip_prefix("told ")?.split_once(' ')).next_back();
            let (op, digest): (Op, u32) =
                told.map_or((0, 0), |(op, digest)| (op.parse().unwrap(), digest.parse().unwrap()));
            // What a kill leaves of an unfinished line is not whole, and never was told.
            let dir = Arc::new(DataDir::open(path.path()).unwrap());
            let found = recover(&dir).unwrap_or_else(|error| panic!("{point}@{at}: {error}"));
            assert!(found.state.op() >= op, "{point}@{at}: op {op} was told, {} is left", found.state.op());
            if found.state.op() == op {
                assert_eq!(found.state.digest(), digest, "{point}@{at}");
            }
            let mut rig = Rig::start(&dir, Durability::Sync);
            rig.set("k", 1);
            rig.stop();
            assert!(recover(&dir).unwrap().clean);
        }
        let first: Vec<_> = survived.iter().filter(|(_, at)| *at == 1).collect();
        assert!(first.is_empty(), "these points were never passed: {first:?}");
    }

    #[test]
    fn a_failed_sync_ends_the_journal_before_anything_is_told() {
        for (point, wanted) in [("journal.before_sync", "injected"), ("journal.before_write", "injected")] {
            let path = tempfile::tempdir().unwrap();
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "recovery::tests::life", "--ignored", "--nocapture"])
                .env("TENURE_TEST_DIR", path.path())
                .env("TENURE_FAILPOINT", format!("{point}=error@5"))
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let panicked = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && (panicked + &said).contains(wanted), "{point}");
            let told = said.lines().filter(|line| line.starts_with("told ")).count();
            assert!(told <= 4, "{told} batches were told");
            recover(&DataDir::open(path.path()).unwrap()).unwrap();
        }
    }
}
