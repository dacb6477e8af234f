//! Tests of the journal, on a directory of their own.

use super::*;
use crate::command::Entry;
use crate::disk::{self, Change, PAGE, Step, Witness};
use crate::limits::Limits;
use crate::log::bytes_of;
use crate::recovery::tests::{SmallDisk, fill};
use crate::recovery::walk;
use crate::segment::Segment;
use crate::time::Time;
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

const SERVER: ServerId = ServerId(5);

fn config(durability: Durability) -> JournalConfig {
    JournalConfig { durability, segment_bytes: SEGMENT_BYTES_MIN, ..JournalConfig::default() }
}

/// What recovery would say of the journal, without a state: everything on the disk is kept.
fn tail(dir: &DataDir) -> Tail {
    let numbers = dir.segments().unwrap();
    let walked = walk(dir, &numbers, None, Some(SERVER), &mut |_, _, _| Ok(())).unwrap();
    Tail {
        server: SERVER,
        segments: walked.segments,
        keep: !numbers.is_empty(),
        next_seq: walked.next_seq,
        last_op: walked.last_op,
        snapshot_op: 0,
    }
}

fn start(dir: &Arc<DataDir>, durability: Durability) -> FileLog {
    FileLog::start(dir.clone(), &tail(dir), &config(durability), Box::new(|| ())).unwrap()
}

/// All entries on the disk, in order, with their ops.
fn entries(dir: &DataDir) -> Vec<(Op, Entry)> {
    let mut all = Vec::new();
    let numbers = dir.segments().unwrap();
    walk(dir, &numbers, None, Some(SERVER), &mut |_, segment, bytes| {
        for placed in &segment.batches {
            let entries = segment.entries(bytes, placed)?;
            all.extend((placed.header.first_op..).zip(entries));
        }
        Ok(())
    })
    .unwrap();
    all
}

fn event(log: &mut FileLog) -> LogEvent {
    let started = Instant::now();
    loop {
        if let Some(event) = log.poll() {
            return event;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "the journal said nothing for 30 s");
        thread::sleep(Duration::from_millis(1));
    }
}

fn committed(log: &mut FileLog, seq: u64) {
    loop {
        match event(log) {
            LogEvent::Committed { seq: found } if found == seq => return,
            LogEvent::Failed { sentence } => panic!("{sentence}"),
            _ => {}
        }
    }
}

/// A fault of a file: the only command of free length that needs no session.
fn command(bytes: usize) -> Command {
    let file = crate::name::Name::new("f").unwrap();
    Command::FileFault { file, generation: 1, reason: "x".repeat(bytes) }
}

fn batch(seq: u64, first_op: Op, count: u64, bytes: usize) -> Arc<Batch> {
    let entry = |op| Entry { at: Time::from_micros(op), ahead_us: 0, command: command(bytes) };
    let entries: Vec<_> = (first_op..first_op + count).map(entry).collect();
    Arc::new(Batch { seq, first_op, bytes: bytes_of(&entries), entries, digest_op: 0, digest: 0 })
}

fn fresh() -> (tempfile::TempDir, Arc<DataDir>) {
    let path = tempfile::tempdir().unwrap();
    let dir = Arc::new(DataDir::open(path.path()).unwrap());
    (path, dir)
}

/// A directory that a server left which had committed one batch of two commands, and its segment.
fn left_by_a_crash() -> (tempfile::TempDir, Arc<DataDir>, Vec<u8>) {
    let (path, dir) = fresh();
    let mut log = start(&dir, Durability::Sync);
    log.submit(batch(1, 1, 2, 10));
    committed(&mut log, 1);
    drop(log);
    let bytes = dir.read_segment(1).unwrap();
    (path, dir, bytes)
}

#[test]
fn no_batch_says_that_one_is_synced_which_is_written_together_with_it() {
    let (_path, dir) = fresh();
    let now = Instant::now();
    let (mut log, mut journal) =
        Stepped::start(dir.clone(), &tail(&dir), &config(Durability::Sync), now).unwrap();
    log.submit(batch(1, 1, 1, 10));
    journal.write(now).unwrap();
    log.submit(batch(2, 2, 1, 10));
    log.submit(batch(3, 3, 1, 10));
    journal.write(now).unwrap();
    let mut synced = Vec::new();
    walk(&dir, &dir.segments().unwrap(), None, Some(SERVER), &mut |_, segment, _| {
        synced.extend(segment.batches.iter().map(|placed| (placed.header.seq, placed.header.synced)));
        Ok(())
    })
    .unwrap();
    // A cut in the middle of the second write may leave the third batch without the second: that must not look like damage.
    let first = synced[0].0;
    assert_eq!(synced[1..], [(first + 1, first), (first + 2, first)]);
}

#[test]
fn an_error_of_the_keeper_that_is_no_lack_of_room_ends_the_journal() {
    for (blocked, jobs) in [("journal/spare.tmp", 1), ("snapshot.reserve.tmp", 2)] {
        let (path, dir) = fresh();
        let now = Instant::now();
        let (mut log, mut journal) =
            Stepped::start(dir.clone(), &tail(&dir), &config(Durability::Sync), now).unwrap();
        std::fs::create_dir(path.path().join(blocked)).unwrap();
        for _ in 0..jobs {
            journal.keep();
            journal.tell_kept();
        }
        journal.tell_written();
        let failed = std::iter::from_fn(|| log.poll()).any(|event| matches!(event, LogEvent::Failed { .. }));
        assert!(failed, "{blocked} is a directory");
    }
}

#[test]
fn what_was_committed_is_read_back_from_every_kind_of_stop() {
    for durability in [Durability::Sync, Durability::Os, Durability::None] {
        let (_path, dir) = fresh();
        let mut op = 1;
        for start_number in 0..4 {
            let mut log = start(&dir, durability);
            for seq in 1..=5 {
                log.submit(batch(seq, op, 3, 10));
                op += 3;
            }
            committed(&mut log, 5);
            match start_number % 2 {
                0 => log.close().unwrap(),
                _ if durability == Durability::None => log.close().unwrap(),
                _ => drop(log),
            }
            let ops: Vec<Op> = entries(&dir).iter().map(|(op, _)| *op).collect();
            assert_eq!(ops, (1..op).collect::<Vec<_>>(), "{durability:?}");
        }
    }
}

#[test]
fn a_journal_goes_on_over_many_segments_and_starts() {
    let (_path, dir) = fresh();
    let mut op = 1;
    for _ in 0..3 {
        let mut log = start(&dir, Durability::Sync);
        for seq in 1..=20 {
            log.submit(batch(seq, op, 2, 20_000));
            op += 2;
        }
        committed(&mut log, 20);
        log.close().unwrap();
    }
    assert!(dir.segments().unwrap().len() > 8);
    assert_eq!(entries(&dir).len() as u64, op - 1);
}

#[test]
fn a_close_right_behind_many_batches_waits_for_all_of_them() {
    for _ in 0..10 {
        let (_path, dir) = fresh();
        let mut log = start(&dir, Durability::Sync);
        for seq in 1..=30 {
            log.submit(batch(seq, seq * 2 - 1, 2, 20_000));
        }
        log.close().unwrap();
        assert_eq!(entries(&dir).len(), 60);
        let told =
            std::iter::from_fn(|| log.poll()).filter(|event| matches!(event, LogEvent::Committed { .. }));
        assert_eq!(told.count(), 30);
    }
}

#[test]
fn an_idle_journal_seals_its_last_batch() {
    let (_path, dir) = fresh();
    let mut log = start(&dir, Durability::Sync);
    log.submit(batch(1, 1, 1, 10));
    committed(&mut log, 1);
    let started = Instant::now();
    loop {
        let segment = Segment::read(&dir.read_segment(1).unwrap()).unwrap();
        if segment.batches.last().unwrap().header.count == 0 {
            assert_eq!(segment.batches.last().unwrap().header.synced, 1);
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "no seal was written");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_batch_that_begins_a_term_is_synced_before_it_is_told_in_every_durability() {
    let (_path, dir) = fresh();
    let mut log = start(&dir, Durability::None);
    let command =
        Command::NewTerm { term: 1, limits: Limits::default(), durability: Durability::None, raised: false };
    let entries = vec![Entry { at: Time::ZERO, ahead_us: 0, command }];
    log.submit(Arc::new(Batch {
        seq: 1,
        first_op: 1,
        bytes: bytes_of(&entries),
        entries,
        digest_op: 0,
        digest: 0,
    }));
    log.submit(batch(2, 2, 1, 10));
    assert_eq!(log.committed, 0, "neither it nor what stands behind it is told at once");
    committed(&mut log, 2);
    log.submit(batch(3, 3, 1, 10));
    assert_eq!(log.poll(), Some(LogEvent::Committed { seq: 3 }), "from here nothing waits");
}

#[test]
fn without_durability_a_slow_disk_slows_what_is_submitted_before_it_fills_the_memory() {
    let (_path, dir) = fresh();
    let mut log = start(&dir, Durability::None);
    // More than the bound, in memory at once: no disk writes and syncs a new segment for each two so fast.
    let (bytes, count) = (100_000, 400);
    let mut slowed = 0;
    for seq in 1..=count {
        let batch = batch(seq, seq, 1, bytes);
        let own = batch.bytes as u64;
        log.submit(batch);
        // Looked at afterwards, with the batch itself: what the journal has written meanwhile only makes it less.
        let unwritten = log.unwritten();
        match log.poll() {
            Some(LogEvent::Committed { seq: told }) if told == seq => {
                let most = AHEAD_BYTES_MAX + own;
                assert!(unwritten <= most, "batch {seq} was told with {unwritten} bytes unwritten");
            }
            _ => slowed += 1,
        }
    }
    assert!(slowed > 0);
    while log.committed < count {
        event(&mut log);
    }
    log.close().unwrap();
    assert_eq!(entries(&dir).len() as u64, count);
}

#[test]
fn a_start_rewrites_the_tail_under_a_new_id_and_cuts_what_is_torn() {
    let (_path, dir, mut bytes) = left_by_a_crash();
    let before = Segment::read(&bytes).unwrap();
    bytes[before.end + 5] = 1;
    fs::write(dir.segment(1), &bytes).unwrap();
    assert!(Segment::read(&bytes).unwrap().torn.is_some());
    drop(start(&dir, Durability::Sync));
    let after = Segment::read(&dir.read_segment(1).unwrap()).unwrap();
    assert_eq!(after.torn, None);
    assert_ne!(after.header.id, before.header.id);
    assert_eq!(after.batches.last().unwrap().header.count, 0, "the copy is sealed");
    assert_eq!(after.last_op(), 2);
}

#[test]
fn a_fully_written_tail_can_be_rewritten_in_its_place() {
    let (_path, dir, mut bytes) = left_by_a_crash();
    let end = Segment::read(&bytes).unwrap().end;
    bytes[end + 5] = 1;
    fs::write(dir.segment(1), &bytes).unwrap();
    dir.rewrite_segment(1, &bytes[..end]).unwrap();
    let after = Segment::read(&dir.read_segment(1).unwrap()).unwrap();
    assert_eq!((after.torn.clone(), after.last_op()), (None, 2));
}

#[test]
fn damage_in_a_closed_segment_is_named_with_its_file_and_offset() {
    let (_path, dir) = fresh();
    let mut log = start(&dir, Durability::Sync);
    for seq in 1..=20 {
        log.submit(batch(seq, seq * 2 - 1, 2, 20_000));
    }
    committed(&mut log, 20);
    log.close().unwrap();
    let bytes = dir.read_segment(1).unwrap();
    let segment = Segment::read(&bytes).unwrap();
    // The last batch of the segment: only the header of the next segment says that it was synced.
    let last = *segment.batches.last().unwrap();
    for at in [last.offset + 3, last.offset + batch::HEADER_BYTES + 7] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 4;
        fs::write(dir.segment(1), &damaged).unwrap();
        let numbers = dir.segments().unwrap();
        let error = walk(&dir, &numbers, None, None, &mut |_, _, _| Ok(())).err().unwrap().sentence;
        assert!(error.contains("00001.seg") && error.contains(&format!("offset {}", last.offset)), "{error}");
    }
    // An old segment in the place of a newer one.
    fs::write(dir.segment(1), &bytes).unwrap();
    let second = dir.read_segment(2).unwrap();
    fs::write(dir.segment(2), &bytes).unwrap();
    let numbers = dir.segments().unwrap();
    assert!(walk(&dir, &numbers, None, None, &mut |_, _, _| Ok(())).is_err());
    // One of another server.
    let header = segment::Header { server: ServerId(6), ..segment::Header::decode(&second).unwrap() };
    let foreign = [&header.encode(), &second[segment::HEADER_BYTES..]].concat();
    fs::write(dir.segment(2), foreign).unwrap();
    let error = walk(&dir, &numbers, None, None, &mut |_, _, _| Ok(())).err().unwrap().sentence;
    assert!(error.contains("belongs to server"), "{error}");
}

#[test]
fn the_room_counts_what_is_submitted_and_not_yet_written() {
    let gauge = Gauge::default();
    gauge.left.store(100_000, Ordering::Release);
    assert_eq!(gauge.room(0, 10_000), Room::Ok, "a full disk shows only when it was met");
    gauge.short.store(true, Ordering::Release);
    assert_eq!(gauge.room(0, 10_000), Room::Low);
    assert_eq!(gauge.room(90_000, 10_000), Room::Full);
    gauge.spare.store(true, Ordering::Release);
    assert_eq!(gauge.room(90_000, 10_000), Room::Low, "the spare holds a whole segment");
}

/// Watches what this thread does to the disk, and refuses what a test wants refused.
struct Probe {
    steps: RefCell<Vec<Step>>,
    refuse: RefCell<Box<dyn Fn(Step) -> Option<Errno>>>,
}

impl Witness for Probe {
    fn before(&self, step: Step) -> io::Result<()> {
        self.steps.borrow_mut().push(step);
        (self.refuse.borrow())(step).map_or(Ok(()), |errno| Err(errno.into()))
    }

    fn after(&self, _: Change<'_>) {}
}

/// Watched until it is dropped.
struct Watched(Rc<Probe>);

impl Watched {
    fn begin() -> Watched {
        let probe =
            Rc::new(Probe { steps: RefCell::new(Vec::new()), refuse: RefCell::new(Box::new(|_| None)) });
        disk::watch(Some(probe.clone()));
        Watched(probe)
    }

    /// From here on the disk answers so.
    fn refuse(&self, refuse: impl Fn(Step) -> Option<Errno> + 'static) {
        *self.0.refuse.borrow_mut() = Box::new(refuse);
    }

    /// What was done since this was last asked.
    fn steps(&self) -> Vec<Step> {
        self.0.steps.take()
    }

    /// How many files were synced since anything was last asked.
    fn syncs(&self) -> usize {
        self.steps().iter().filter(|step| matches!(step, Step::Sync { .. })).count()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        disk::watch(None);
    }
}

thread_local! {
    static SAID: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Keeps what each thread has for the log.
struct Listener;

impl ::log::Log for Listener {
    fn enabled(&self, _: &::log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &::log::Record<'_>) {
        SAID.with_borrow_mut(|said| said.push(record.args().to_string()));
    }

    fn flush(&self) {}
}

/// What this thread had for the log since this was last asked.
fn said() -> Vec<String> {
    let _ = ::log::set_logger(&Listener);
    ::log::set_max_level(::log::LevelFilter::Info);
    SAID.take()
}

fn no_room_for_files(step: Step) -> Option<Errno> {
    matches!(step, Step::Allocate { .. }).then_some(Errno::NOSPC)
}

fn failing_for_files(step: Step) -> Option<Errno> {
    matches!(step, Step::Allocate { .. }).then_some(Errno::IO)
}

/// A journal in steps, at one moment until the test says another, with the loop's side of it.
struct Steps {
    dir: Arc<DataDir>,
    log: FileLog,
    journal: Stepped,
    now: Instant,
    /// The last batch submitted, and its last op.
    seq: u64,
    op: Op,
}

impl Steps {
    fn start(dir: &Arc<DataDir>, config: &JournalConfig) -> Steps {
        let (now, tail) = (Instant::now(), tail(dir));
        let (log, journal) = Stepped::start(dir.clone(), &tail, config, now).unwrap();
        Steps { dir: dir.clone(), log, journal, now, seq: 0, op: tail.last_op }
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    /// Submits one command with a text of so many bytes.
    fn submit(&mut self, bytes: usize) {
        (self.seq, self.op) = (self.seq + 1, self.op + 1);
        self.log.submit(batch(self.seq, self.op, 1, bytes));
    }

    /// One turn of the journal; gives what the loop hears of it.
    fn turn(&mut self) -> Vec<LogEvent> {
        self.journal.write(self.now).unwrap();
        self.journal.tell_written();
        std::iter::from_fn(|| self.log.poll()).collect()
    }

    /// Submits, and gives what the loop hears of it beside the commit.
    fn write(&mut self, bytes: usize) -> Vec<LogEvent> {
        self.submit(bytes);
        let mut told = self.turn();
        assert_eq!(told.remove(0), LogEvent::Committed { seq: self.seq });
        told
    }

    /// The keeper does what it can, once over; gives what the loop hears of it.
    fn keep(&mut self) -> Vec<LogEvent> {
        self.journal.keep();
        while self.journal.can_keep() {
            self.journal.keep();
        }
        self.journal.tell_kept();
        self.journal.tell_written();
        std::iter::from_fn(|| self.log.poll()).collect()
    }

    /// A snapshot of all so far.
    fn fold(&mut self) -> Vec<LogEvent> {
        self.log.fold(Record::default(), None);
        let mut told = self.turn();
        self.journal.fold();
        self.journal.tell_folded();
        told.extend(self.turn());
        told
    }

    /// Writes until exactly so many bytes are left in the segment.
    fn fill_to(&mut self, left: u64) {
        loop {
            let rest = SEGMENT_BYTES_MIN - self.end() - left;
            // What a record takes beside its text, with the length of a text of this size.
            let mut record = Vec::new();
            record::encode(&batch(1, self.op + 1, 1, 20_000).entries[0], &mut record);
            let text = rest as usize - batch::HEADER_BYTES - (record.len() - 20_000);
            let most = 100_000;
            self.write(if text > most { most / 2 } else { text });
            if text <= most {
                break;
            }
        }
        assert_eq!(SEGMENT_BYTES_MIN - self.end(), left);
    }

    /// The number of the segment that is written.
    fn number(&self) -> u64 {
        *self.dir.segments().unwrap().last().unwrap()
    }

    fn segment(&self) -> Segment {
        Segment::read(&self.dir.read_segment(self.number()).unwrap()).unwrap()
    }

    /// Where the last batch of that segment ends.
    fn end(&self) -> u64 {
        self.segment().end as u64
    }
}

#[test]
fn without_durability_4_mib_may_wait_to_be_written() {
    let (_path, dir) = fresh();
    let config = JournalConfig { durability: Durability::None, ..JournalConfig::default() };
    let mut steps = Steps::start(&dir, &config);
    loop {
        let waiting = steps.log.unwritten();
        steps.submit(1_000_000);
        let told = steps.log.poll();
        assert_eq!(told.is_some(), waiting <= 4 << 20, "{waiting} bytes wait");
        if told.is_none() {
            break;
        }
    }
    steps.submit(1);
    assert_eq!(steps.log.poll(), None, "nor is what stands behind it");
}

#[test]
fn the_largest_batch_is_a_mebibyte_or_half_a_segment_less_room_for_a_seal() {
    for (segment_bytes, most) in [(SEGMENT_BYTES_MIN, 126_976), (16 << 20, 1 << 20)] {
        let (_path, dir) = fresh();
        let mut steps = Steps::start(&dir, &JournalConfig { segment_bytes, ..config(Durability::Sync) });
        assert_eq!(steps.log.batch_bytes_max(), most);
        steps.write(most - batch(1, 1, 1, 0).bytes);
        assert_eq!(entries(&dir).len(), 1);
    }
}

#[test]
fn one_write_takes_batches_until_they_are_4_mib() {
    for way in [Way::Cached, Way::Direct] {
        let (_path, dir) = fresh();
        let mut steps = Steps::start(&dir, &JournalConfig { way, ..JournalConfig::default() });
        let text = (1 << 20) - batch(1, 1, 1, 0).bytes;
        for bytes in [text, text, text, text, 1, 1] {
            steps.submit(bytes);
        }
        let count = |told: Vec<LogEvent>| {
            told.iter().filter(|event| matches!(event, LogEvent::Committed { .. })).count()
        };
        assert_eq!(count(steps.turn()), 4);
        assert_eq!(count(steps.turn()), 2);
        assert_eq!(entries(&dir).len(), 6, "{way:?}");
    }
}

#[test]
fn a_write_goes_in_two_halves_so_that_a_crash_can_come_between() {
    for way in [Way::Cached, Way::Direct] {
        let (_path, dir) = fresh();
        let mut steps = Steps::start(&dir, &JournalConfig { way, ..config(Durability::Sync) });
        let watched = Watched::begin();
        steps.write(1_000);
        let ends: Vec<u64> = watched
            .steps()
            .iter()
            .filter_map(|step| match step {
                Step::Write { end, .. } => Some(*end),
                _ => None,
            })
            .collect();
        let (start, end) = (segment::HEADER_BYTES as u64, steps.end());
        match way {
            Way::Direct => assert_eq!(ends, [PAGE as u64; 2]),
            Way::Cached | Way::BestKnown => assert_eq!(ends, [start + (end - start) / 2, end]),
        }
    }
}

#[test]
fn a_batch_is_synced_before_it_is_told_and_a_sync_that_fails_is_the_end() {
    for (way, syncs) in [(Way::Cached, 1), (Way::Direct, 2)] {
        let (_path, dir) = fresh();
        let mut steps = Steps::start(&dir, &JournalConfig { way, ..config(Durability::Sync) });
        let watched = Watched::begin();
        steps.write(10);
        assert_eq!(watched.syncs(), syncs, "each direct write is one, and there are two halves");
        watched.refuse(|step| matches!(step, Step::Sync { .. }).then_some(Errno::IO));
        steps.submit(10);
        assert!(steps.journal.write(steps.now).is_err());
        steps.journal.tell_written();
        let told: Vec<_> = std::iter::from_fn(|| steps.log.poll()).collect();
        assert!(matches!(told.as_slice(), [LogEvent::Failed { .. }]), "{told:?}");
    }
}

#[test]
fn what_is_written_directly_goes_through_the_page_cache_where_the_file_system_takes_no_such_pages() {
    for refused in [1, 2, 4] {
        let (_path, dir) = fresh();
        let mut steps = Steps::start(&dir, &JournalConfig { way: Way::Direct, ..config(Durability::Sync) });
        let watched = Watched::begin();
        let count = Cell::new(0);
        watched.refuse(move |step| {
            count.set(count.get() + u32::from(matches!(step, Step::Write { .. })));
            let refused = matches!(step, Step::Write { .. }) && count.get() == refused;
            refused.then_some(Errno::INVAL)
        });
        for _ in 0..3 {
            steps.write(3_000);
        }
        let steps_done = watched.steps();
        assert!(matches!(steps_done.last(), Some(Step::Sync { .. })), "{steps_done:?}");
        let pages = steps_done
            .iter()
            .filter(|step| matches!(step, Step::Write { end, .. } if end % PAGE as u64 == 0));
        assert_eq!(pages.count(), refused as usize, "no page is written behind the one that was refused");
        assert_eq!(entries(&dir).len(), 3);
    }
}

#[test]
fn what_is_written_directly_goes_on_behind_what_a_start_found() {
    let (_path, dir) = fresh();
    let mut written = 0;
    for way in [Way::Direct, Way::Cached, Way::Direct, Way::Direct] {
        let mut steps = Steps::start(&dir, &JournalConfig { way, ..config(Durability::Sync) });
        for bytes in [10, 5_000, 4_096, 1] {
            steps.write(bytes);
            written += 1;
        }
        assert_eq!(entries(&dir).len(), written, "{way:?}");
    }
}

#[test]
fn under_os_a_busy_journal_syncs_once_a_second_and_whenever_it_is_asked() {
    let (_path, dir) = fresh();
    let mut steps = Steps::start(&dir, &config(Durability::Os));
    let watched = Watched::begin();
    for second in 1..=3 {
        for _ in 0..19 {
            steps.pass(50);
            steps.write(10);
        }
        assert_eq!(watched.syncs(), 0, "before second {second} is over");
        steps.pass(50);
        steps.write(10);
        assert_eq!(watched.syncs(), 1, "after second {second}");
    }
    steps.write(10);
    for syncs in [1, 0] {
        steps.log.flush();
        steps.turn();
        assert_eq!(watched.syncs(), syncs, "what is synced is not synced again");
    }
    // The batch that begins a term.
    let command =
        Command::NewTerm { term: 1, limits: Limits::default(), durability: Durability::Os, raised: false };
    let entries = vec![Entry { at: Time::from_micros(steps.op + 1), ahead_us: 0, command }];
    let batch = Batch {
        seq: steps.seq + 1,
        first_op: steps.op + 1,
        bytes: bytes_of(&entries),
        entries,
        digest_op: 0,
        digest: 0,
    };
    steps.log.submit(Arc::new(batch));
    steps.turn();
    assert_eq!(watched.syncs(), 1);
}

#[test]
fn the_journal_wakes_by_itself_once_to_seal_and_then_sleeps() {
    for (durability, after) in [(Durability::Sync, 100), (Durability::Os, 1_000), (Durability::None, 1_000)] {
        let (_path, dir) = fresh();
        let mut steps = Steps::start(&dir, &config(durability));
        assert_eq!(steps.journal.deadline(), None, "there is nothing to seal");
        steps.write(10);
        assert_eq!(
            steps.journal.deadline(),
            Some(steps.now + Duration::from_millis(after)),
            "{durability:?}"
        );
        steps.pass(after - 1);
        steps.turn();
        assert_eq!(steps.segment().batches.len(), 1);
        steps.pass(1);
        steps.turn();
        assert_eq!(steps.segment().batches.last().unwrap().header.count, 0);
        assert_eq!((steps.segment().batches.len(), steps.journal.deadline()), (2, None), "{durability:?}");
        // A hundred milliseconds without a batch it always waits.
        steps.pass(950);
        steps.write(10);
        assert_eq!(steps.journal.deadline(), Some(steps.now + SEAL_AFTER), "{durability:?}");
    }
}

#[test]
fn a_segment_is_filled_to_the_last_byte_and_may_end_without_a_seal() {
    for durability in [Durability::Sync, Durability::Os] {
        let (_path, dir) = fresh();
        let mut steps = Steps::start(&dir, &config(durability));
        steps.fill_to(0);
        assert_eq!((steps.number(), steps.end()), (1, SEGMENT_BYTES_MIN));
        let due = steps.journal.deadline();
        assert_eq!(
            due.is_some(),
            durability == Durability::Os,
            "what is not synced is synced, without a seal"
        );
        steps.now = due.unwrap_or(steps.now);
        steps.turn();
        assert_eq!(steps.journal.deadline(), None);
        let before = steps.segment();
        // A start copies it as it is, and makes it no longer.
        let steps = Steps::start(&dir, &config(durability));
        let after = steps.segment();
        assert_eq!((after.batches.len(), after.end), (before.batches.len(), before.end));
        assert_eq!(after.header.size, SEGMENT_BYTES_MIN);
    }
}

#[test]
fn a_start_seals_what_it_copies_once() {
    let (_path, dir) = fresh();
    let mut steps = Steps::start(&dir, &config(Durability::Sync));
    steps.write(20_000);
    for larger in [1, 2, 2] {
        let segment_bytes = larger * SEGMENT_BYTES_MIN;
        let steps = Steps::start(&dir, &JournalConfig { segment_bytes, ..config(Durability::Sync) });
        let counts: Vec<_> = steps.segment().batches.iter().map(|placed| placed.header.count).collect();
        assert_eq!(counts, [1, 0]);
        let size = dir.read_segment(1).unwrap().len() as u64;
        assert_eq!((steps.segment().header.size, size), (segment_bytes, segment_bytes));
    }
}

#[test]
fn a_start_that_the_disk_fails_leaves_the_journal_as_it_was() {
    let (_path, dir) = fresh();
    let mut steps = Steps::start(&dir, &config(Durability::Sync));
    steps.write(10);
    drop(steps);
    let before = dir.read_segment(1).unwrap();
    let kept = tail(&dir);
    let watched = Watched::begin();
    watched.refuse(failing_for_files);
    for tail in [kept.clone(), Tail { keep: false, ..kept.clone() }] {
        let started = Stepped::start(dir.clone(), &tail, &config(Durability::Sync), Instant::now());
        assert!(started.is_err_and(|error| error.sentence.contains("the disk is failing")), "{tail:?}");
        assert_eq!(dir.segments().unwrap(), [1], "{tail:?}");
        assert!(dir.read_segment(1).unwrap() == before, "{tail:?}");
    }
    // Nor is a journal rewritten that is not the one that was read.
    watched.refuse(|_| None);
    let mut longer = kept.clone();
    longer.segments[0].end += 8;
    for tail in [longer, Tail { next_seq: kept.next_seq + 1, ..kept }] {
        let started = Stepped::start(dir.clone(), &tail, &config(Durability::Sync), Instant::now());
        assert!(started.is_err_and(|error| error.sentence.contains("changed while it was read")));
    }
}

#[test]
fn a_start_on_a_full_disk_knows_it_before_anybody_asks() {
    let (_path, dir) = fresh();
    let mut steps = Steps::start(&dir, &config(Durability::Sync));
    steps.write(10);
    drop(steps);
    let watched = Watched::begin();
    watched.refuse(no_room_for_files);
    let mut steps = Steps::start(&dir, &config(Durability::Sync));
    assert_eq!(steps.log.room(), Room::Low);
    assert!(steps.write(10).contains(&LogEvent::Room(Room::Low)));
    watched.refuse(|_| None);
    assert_eq!(steps.keep(), [LogEvent::Room(Room::Ok)]);
}

#[test]
fn a_journal_of_which_nothing_is_needed_makes_room_for_the_next() {
    let (_path, dir) = fresh();
    let mut steps = Steps::start(&dir, &config(Durability::Sync));
    steps.write(10);
    drop(steps);
    let watched = Watched::begin();
    let old = dir.segment(1);
    watched.refuse(move |step| no_room_for_files(step).filter(|_| old.exists()));
    let tail = Tail { keep: false, ..tail(&dir) };
    drop(Stepped::start(dir.clone(), &tail, &config(Durability::Sync), Instant::now()).unwrap());
    assert_eq!(dir.segments().unwrap(), [2]);
}

#[test]
fn the_reserve_holds_the_last_snapshot_twice_and_a_mebibyte_at_least() {
    let (_path, dir) = fresh();
    for (snapshot, reserve) in [(None, 1 << 20), (Some(1_000), 1 << 20), (Some(600_000), 1_200_000)] {
        if let Some(bytes) = snapshot {
            fs::write(dir.path().join(SNAPSHOT), vec![b' '; bytes]).unwrap();
        }
        Steps::start(&dir, &config(Durability::Sync)).keep();
        assert_eq!(fs::metadata(dir.path().join("snapshot.reserve")).unwrap().len(), reserve);
    }
}

#[test]
fn a_change_of_room_is_told_and_logged_once() {
    let (_path, dir) = fresh();
    let mut steps = Steps::start(&dir, &config(Durability::Sync));
    let watched = Watched::begin();
    watched.refuse(no_room_for_files);
    said();
    assert_eq!(steps.keep(), [LogEvent::Room(Room::Low)]);
    assert!(said()[0].ends_with("only what frees something is accepted"));
    assert_eq!((steps.keep(), said()), (vec![], vec![]));
    // Just what the largest batch and the seals take is left.
    let least = steps.log.batch_bytes_max() as u64 + SEAL_ROOM;
    steps.fill_to(least);
    assert_eq!((steps.log.room(), steps.keep()), (Room::Low, vec![]));
    assert_eq!(steps.write(1), [LogEvent::Room(Room::Full)]);
    watched.refuse(|_| None);
    assert_eq!(steps.keep(), [LogEvent::Room(Room::Low), LogEvent::Room(Room::Ok)], "a spare comes first");
    assert_eq!(said(), ["there is room on the disk again"]);
    assert_eq!((steps.keep(), said()), (vec![], vec![]));
}

#[test]
fn a_fold_is_due_after_as_many_commands_as_are_asked_for() {
    let (_path, dir) = fresh();
    let mut steps = Steps::start(&dir, &JournalConfig { fold_ops: 10, ..config(Durability::Sync) });
    assert_eq!(steps.write(10), [LogEvent::FoldDue], "each start begins with one");
    for _ in 0..20 {
        assert_eq!(steps.write(10), [], "it is told once");
    }
    assert_eq!(steps.fold(), [LogEvent::SnapshotDone { op: steps.op }]);
    for _ in 0..9 {
        assert_eq!(steps.write(10), []);
    }
    assert_eq!(steps.write(10), [LogEvent::FoldDue]);
    // While one is written no other is due nor begun, and none for nothing.
    steps.log.fold(Record::default(), None);
    steps.turn();
    steps.journal.fold();
    for _ in 0..10 {
        assert_eq!(steps.write(10), []);
    }
    steps.log.fold(Record::default(), None);
    steps.turn();
    assert!(!steps.journal.can_fold());
    steps.journal.tell_folded();
    assert_eq!(steps.turn(), [LogEvent::SnapshotDone { op: steps.op - 10 }]);
    assert!(!steps.journal.can_fold());
    assert_eq!(steps.write(10), [LogEvent::FoldDue]);
    assert_eq!(steps.fold(), [LogEvent::SnapshotDone { op: steps.op }]);
    assert_eq!(steps.fold(), []);
}

#[test]
fn a_fold_is_due_after_as_many_bytes_as_are_asked_for_and_a_segment_counts_whole() {
    // Where a fold ends and nine batches later, in a journal as one piece.
    let life = |fold_bytes: u64| {
        let (_path, dir) = fresh();
        let mut steps = Steps::start(&dir, &JournalConfig { fold_bytes, ..config(Durability::Sync) });
        let place = |steps: &Steps| (steps.number() - 1) * SEGMENT_BYTES_MIN + steps.end();
        steps.keep();
        steps.write(10);
        steps.fold();
        let from = place(&steps);
        let told: Vec<usize> = (1..=10)
            .filter(|_| {
                steps.keep();
                steps.write(100_000).contains(&LogEvent::FoldDue)
            })
            .collect();
        (place(&steps) - from, told)
    };
    let (bytes, told) = life(1 << 30);
    assert!(told.is_empty());
    assert_eq!(life(bytes), (bytes, vec![10]));
    assert_eq!(life(bytes + 1), (bytes, vec![]));
}

#[test]
fn a_fold_that_failed_is_asked_for_again_after_five_seconds() {
    let (path, dir) = fresh();
    let mut steps = Steps::start(&dir, &config(Durability::Sync));
    assert_eq!(steps.write(10), [LogEvent::FoldDue]);
    let blocked = path.path().join("server_state.json.tmp");
    fs::create_dir(&blocked).unwrap();
    assert!(matches!(steps.fold().as_slice(), [LogEvent::SnapshotFailed { .. }]));
    fs::remove_dir(&blocked).unwrap();
    assert_eq!(steps.write(10), [], "not with the next batch");
    let due = steps.now + Duration::from_secs(5);
    steps.pass(100);
    assert_eq!(steps.turn(), []);
    assert_eq!(steps.journal.deadline(), Some(due), "the last batch is sealed");
    steps.pass(4_899);
    assert_eq!(steps.turn(), []);
    steps.pass(1);
    assert_eq!(steps.turn(), [LogEvent::FoldDue]);
    assert_eq!(steps.fold(), [LogEvent::SnapshotDone { op: steps.op }]);
    assert_eq!(steps.journal.deadline(), None);
}

#[test]
fn a_full_disk_lets_go_of_what_a_snapshot_covers_and_asks_for_the_next_one() {
    let (_path, dir) = fresh();
    let mut steps = Steps::start(&dir, &config(Durability::Sync));
    steps.keep();
    steps.write(100_000);
    steps.write(100_000);
    steps.write(100_000);
    assert_eq!(steps.fold(), [LogEvent::SnapshotDone { op: 3 }]);
    let watched = Watched::begin();
    watched.refuse(no_room_for_files);
    steps.write(10);
    assert_eq!(dir.segments().unwrap(), [1, 2], "for one cycle more, in case that the snapshot is damaged");
    assert_eq!(steps.keep(), [LogEvent::Room(Room::Low)], "no snapshot would let go of more");
    steps.keep();
    assert_eq!(dir.segments().unwrap(), [2]);
    watched.refuse(|_| None);
    assert_eq!(steps.keep(), [LogEvent::Room(Room::Ok)]);
    steps.write(100_000);
    steps.write(100_000);
    assert_eq!(steps.number(), 3);
    watched.refuse(no_room_for_files);
    assert_eq!(steps.keep(), [LogEvent::FoldDue, LogEvent::Room(Room::Low)]);
    assert_eq!(steps.fold(), [LogEvent::SnapshotDone { op: steps.op }]);
    steps.keep();
    assert_eq!(dir.segments().unwrap(), [3]);
}

#[test]
fn a_closed_journal_is_sealed_once_and_nobody_holds_its_directory() {
    for idle in [false, true] {
        let (path, dir) = fresh();
        let mut log = start(&dir, Durability::Os);
        for seq in 1..=100 {
            log.submit(batch(seq, seq, 1, 10_000));
        }
        committed(&mut log, 100);
        let last = |dir: &DataDir| {
            let number = *dir.segments().unwrap().last().unwrap();
            Segment::read(&dir.read_segment(number).unwrap()).unwrap().batches
        };
        let started = Instant::now();
        while idle && last(&dir).last().unwrap().header.count > 0 {
            assert!(started.elapsed() < Duration::from_secs(30), "no seal was written");
            thread::sleep(Duration::from_millis(5));
        }
        // Also while it folds.
        log.fold(Record::default(), None);
        log.close().unwrap();
        let batches = last(&dir);
        let [.., before, seal] = batches.as_slice() else { panic!("{batches:?}") };
        assert!(before.header.count > 0 && seal.header.count == 0, "{before:?}, {seal:?}");
        assert_eq!((seal.header.synced, seal.header.seq), (before.header.seq, before.header.seq + 1));
        drop(log);
        drop(dir);
        DataDir::open(path.path()).unwrap();
    }
}

#[test]
fn a_dropped_journal_lets_go_of_its_directory() {
    let (path, dir) = fresh();
    let mut log = start(&dir, Durability::Sync);
    log.submit(batch(1, 1, 1, 10));
    drop(log);
    drop(dir);
    DataDir::open(path.path()).unwrap();
}

#[test]
fn a_keeper_that_fails_on_its_own_thread_is_heard() {
    let (path, dir) = fresh();
    fs::create_dir(path.path().join("snapshot.reserve.tmp")).unwrap();
    let mut log = start(&dir, Durability::Sync);
    let LogEvent::Failed { sentence } = event(&mut log) else { panic!("it went on") };
    assert!(sentence.contains("snapshot.reserve.tmp"), "{sentence}");
}

#[test]
fn what_waits_for_room_is_committed_once_there_is_some_and_a_close_does_not_wait_for_it() {
    let Some(disk) = SmallDisk::mount(8 << 20) else { return };
    for make_room in [true, false] {
        let path = disk.path().join(format!("data-{make_room}"));
        let dir = Arc::new(DataDir::open(&path).unwrap());
        let mut log = start(&dir, Durability::Sync);
        let wait_for = |what: &str, there: &dyn Fn() -> bool| {
            let started = Instant::now();
            while !there() {
                assert!(started.elapsed() < Duration::from_secs(30), "{what}");
                thread::sleep(Duration::from_millis(1));
            }
        };
        wait_for("the reserve is made", &|| path.join("snapshot.reserve").exists());
        fill(disk.path());
        // The spare becomes the second segment, and there is no third.
        for seq in 1..=5 {
            log.submit(batch(seq, seq, 1, 100_000));
        }
        committed(&mut log, 4);
        while event(&mut log) != LogEvent::Room(Room::Full) {}
        log.submit(batch(6, 6, 1, 10));
        if make_room {
            fs::remove_file(disk.path().join("filler")).unwrap();
            committed(&mut log, 6);
            log.close().unwrap();
            assert_eq!(entries(&dir).len(), 6);
        } else {
            let error = log.close().unwrap_err();
            assert!(error.contains("was full to the end"), "{error}");
            assert_eq!(entries(&dir).len(), 4);
        }
    }
}
