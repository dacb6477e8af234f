//! Tests of the journal, on a directory of their own.

use super::*;
use crate::command::Entry;
use crate::limits::Limits;
use crate::recovery::walk;
use crate::time::Time;

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
    let entry = |op| Entry { at: Time::from_micros(op), command: command(bytes) };
    let entries = (first_op..first_op + count).map(entry).collect();
    Arc::new(Batch { seq, first_op, entries, digest_op: 0, digest: 0 })
}

fn fresh() -> (tempfile::TempDir, Arc<DataDir>) {
    let path = tempfile::tempdir().unwrap();
    let dir = Arc::new(DataDir::open(path.path()).unwrap());
    (path, dir)
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
    let entries = vec![Entry { at: Time::ZERO, command }];
    log.submit(Arc::new(Batch { seq: 1, first_op: 1, entries, digest_op: 0, digest: 0 }));
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
        let own = bytes_of(&batch.entries) as u64;
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
    let (_path, dir) = fresh();
    let mut log = start(&dir, Durability::Sync);
    log.submit(batch(1, 1, 2, 10));
    committed(&mut log, 1);
    drop(log);
    let mut bytes = dir.read_segment(1).unwrap();
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
    let (_path, dir) = fresh();
    let mut log = start(&dir, Durability::Sync);
    log.submit(batch(1, 1, 2, 10));
    committed(&mut log, 1);
    drop(log);
    let mut bytes = dir.read_segment(1).unwrap();
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
