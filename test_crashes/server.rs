//! The server killed: before and after each durable step of acquire, append, release and hand-over, between the steps,
//! while it starts, while it snapshots and while it stops.
//!
//! The sweeps kill the server at the first, second, third … time that it comes to a failpoint, until it comes through
//! whole. So no test depends on how often a step passes a point, and none of the passes is left out. How often depends on
//! the time of day (a copy of a request is another reply), so a step that a test is about and that the counted kills
//! missed is then aimed at: the failpoint is armed when the step begins.

use crate::harness::{
    Answer, Exit, PATIENCE, Raw, Sent, Server, Setup, crc32c, has_failpoints, let_pass, mix, places,
    poll_until,
};
use rustix::process::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// More often than any failpoint is passed in one scenario.
pub(crate) const PASSES_MAX: u32 = 120;

/// A server that may fall at any time and is then started again, while clients go on with what they were doing.
pub(crate) struct Falling {
    pub(crate) server: Server,
    /// The step that the failpoint is armed for; if there is none, it is armed all the while.
    aim: Option<String>,
    /// The steps in which it fell.
    pub(crate) fell_in: BTreeSet<String>,
    /// Every request that has its final answer, with it.
    told: Vec<(String, Sent, Answer)>,
}

impl Falling {
    pub(crate) fn start(failpoint: String, aim: Option<&str>) -> Falling {
        println!("{failpoint} {}", aim.unwrap_or("anywhere"));
        let disarmed = aim.is_some();
        let server = Server::prepare(Setup { failpoint: Some(failpoint), disarmed, ..Setup::default() });
        let aim = aim.map(str::to_owned);
        let mut falling = Falling { server, aim, fell_in: BTreeSet::new(), told: Vec::new() };
        falling.begin("start");
        if let Err(exit) = falling.server.launch() {
            falling.falls("start", &exit);
        }
        falling.end("start");
        falling
    }

    /// A step begins: it may be the one to fall in.
    fn begin(&mut self, step: &str) {
        if self.aim.as_deref() == Some(step) {
            self.server.arm();
        }
    }

    /// A step is over; if it was the one to fall in, the server has fallen or is about to.
    fn end(&mut self, step: &str) {
        if self.aim.as_deref() == Some(step) {
            poll_until("the fall of the server in the step aimed at", || {
                self.care(step);
                self.fell_in.contains(step).then_some(())
            });
            self.aim = None;
        }
    }

    /// Starts it again if it has fallen.
    pub(crate) fn care(&mut self, step: &str) {
        if let Some(exit) = self.server.fallen() {
            self.falls(step, &exit);
        }
    }

    fn falls(&mut self, step: &str, exit: &Exit) {
        assert_eq!(exit.status.signal(), Some(9), "it ended otherwise than by its failpoint: {exit:?}");
        println!("  it falls in {step}");
        self.fell_in.insert(step.into());
        self.server.start_again();
    }

    /// A request, sent until it has its final answer, over any fall.
    pub(crate) fn call(&mut self, step: &str, raw: &mut Raw, sent: Sent) -> Answer {
        self.begin(step);
        let answer = raw.finish_with(&sent, || self.care(step));
        self.end(step);
        println!("  {step}: {}", answer.0);
        self.told.push((step.into(), sent, answer.clone()));
        answer
    }

    /// The same outcome each time it is told: sends everything again after a last kill, and once more.
    pub(crate) fn tell_all_again(&mut self, raws: &mut [&mut Raw]) {
        // From here without a failpoint.
        self.server.kill_and_restart();
        for round in 0..2 {
            for (step, sent, answer) in &self.told {
                // The step begins with the number of its client.
                let raw = &mut raws[step[..1].parse::<usize>().unwrap()];
                assert_eq!(
                    raw.finish(sent),
                    *answer,
                    "round {round}: {step} has another outcome than it had"
                );
            }
        }
    }
}

/// Client 0 takes the lock, appends, sets the key and releases, while client 1 waits, is served, appends and releases.
/// Gives the steps in which the server fell.
fn lock_changes_hands(failpoint: String, aim: Option<&str>) -> BTreeSet<String> {
    let mut falling = Falling::start(failpoint, aim);
    let to = falling.server.address();
    let (mut first, mut second) = (Raw::new(to), Raw::new(to));
    for raw in [&mut first, &mut second] {
        let nonce = format!("{:032x}", mix(&[u64::from(raw.from().port())]));
        let sent = raw.prepare("open_session", json!({"nonce": nonce, "ttl_ms": 60_000}));
        falling.begin("open");
        let answer = raw.finish_with(&sent, || falling.care("open"));
        falling.end("open");
        raw.session = answer.ok()["session"].as_str().map(str::to_owned);
        raw.client = answer.ok()["client"].as_u64().unwrap();
    }
    assert_ne!(first.client, second.client);

    let sent = first.prepare("acquire_lock", json!({"key": "f"}));
    let token = falling.call("0 acquire", &mut first, sent).token().expect("the lock is free");
    // Nobody else believes that it holds the lock, and a try is told who does.
    let sent = second.prepare("acquire_lock", json!({"key": "f", "owner": "a try"}));
    let refused = falling.call("1 try", &mut second, sent);
    assert_eq!((refused.token(), &refused.ok()["holders"][0]["token"]), (None, &json!(token)));

    let wait = second.prepare("acquire_lock", json!({"key": "f", "wait_ms": null}));
    let start = Instant::now();
    while second.notified("pending", Duration::from_millis(50)).is_none() {
        falling.care("1 wait");
        second.send(&wait);
        assert!(start.elapsed() < PATIENCE, "no place in line");
    }

    let sent = first.prepare("append_file", json!({"file": "f", "token": token, "data": "first\n"}));
    let placed = falling.call("0 append", &mut first, sent);
    assert_eq!(placed.ok(), &json!({"offset": 0, "length": 6}));
    let sent = first.prepare("set", json!({"key": "f", "token": token, "value": ["first"]}));
    let version = falling.call("0 set", &mut first, sent).ok()["version"].clone();
    let sent = first.prepare("release_lock", json!({"token": token}));
    assert_eq!(falling.call("0 release", &mut first, sent).ok()["released"], true);

    let next = falling.call("1 hand-over", &mut second, wait).token().expect("the lock was handed over");
    assert!(next > token, "token {next} after {token}");
    let sent = first.prepare("append_file", json!({"file": "f", "token": token, "data": "late\n"}));
    falling.call("0 late append", &mut first, sent).refused("not_holder");
    let sent = second.prepare("append_file", json!({"file": "f", "token": next, "data": "second\n"}));
    let placed = falling.call("1 append", &mut second, sent);
    assert_eq!(placed.ok(), &json!({"offset": 6, "length": 13}));
    let sent = second.prepare("release_lock", json!({"token": next}));
    falling.call("1 release", &mut second, sent).ok();

    // Time for what comes behind the replies: the files and the seal.
    for _ in 0..10 {
        falling.care("the end");
        let_pass(25);
    }
    falling.care("the end");
    falling.tell_all_again(&mut [&mut first, &mut second]);
    let mut raw = Raw::new(to);
    assert_eq!(raw.read("f"), "first\nsecond\n");
    assert!(!raw.is_locked("f") && raw.queue("f").is_empty());
    let read = raw.ok("get", json!({"key": "f"}));
    assert_eq!((&read["value"], &read["version"]), (&json!(["first"]), &version));
    // Tokens go on from where they were, over all the starts.
    let mut last = falling.server.client(60_000);
    assert!(last.acquire("another") > next);
    let exit = falling.server.terminate();
    assert!(exit.status.success(), "{exit:?}");
    let on_disk = fs::read_to_string(falling.server.file("f")).unwrap();
    assert_eq!(on_disk, "first\nsecond\n");
    falling.fell_in
}

/// Kills at each pass of a failpoint in turn, and in each of the steps named.
fn sweep(failpoint: &str, steps: &[&str]) {
    if !has_failpoints() {
        return;
    }
    let mut hit = BTreeSet::new();
    for pass in 1..=PASSES_MAX {
        let fell_in = lock_changes_hands(format!("{failpoint}=kill@{pass}"), None);
        if fell_in.is_empty() {
            break;
        }
        assert!(pass < PASSES_MAX, "{failpoint} is passed more often than the test allows for");
        hit.extend(fell_in);
    }
    println!("{failpoint}: the server fell in {hit:?}");
    for step in steps.iter().filter(|step| !hit.contains(**step)) {
        lock_changes_hands(format!("{failpoint}=kill@1"), Some(step));
    }
}

/// Steps with a record of their own in the journal.
const LOGGED: [&str; 7] = ["open", "0 acquire", "0 append", "0 set", "0 release", "1 append", "1 release"];

#[test]
fn killed_before_a_record_is_written_the_retry_is_executed_once() {
    sweep("journal.before_write", &LOGGED);
}

#[test]
fn killed_between_write_and_sync_the_record_counts_once_or_not_at_all() {
    sweep("journal.after_write", &LOGGED);
    sweep("journal.before_sync", &LOGGED);
}

#[test]
fn killed_after_the_sync_and_before_the_reply_the_retry_gets_the_first_outcome() {
    sweep("journal.after_sync", &LOGGED);
}

#[test]
fn killed_before_a_reply_leaves_the_retry_gets_the_first_outcome() {
    sweep("server.before_reply", &LOGGED);
}

#[test]
fn killed_after_a_reply_left_nothing_that_it_said_is_taken_back() {
    sweep("server.after_reply", &LOGGED);
}

#[test]
fn killed_before_a_file_is_written_its_bytes_come_from_the_journal() {
    sweep("image.before_write", &[]);
}

#[test]
fn killed_after_a_file_was_written_its_bytes_are_not_written_twice() {
    sweep("image.after_write", &[]);
}

#[test]
fn killed_at_any_step_of_a_new_segment_the_start_goes_on_with_or_without_it() {
    // The first segment, at the first start of a directory.
    for point in ["before_write", "before_sync", "before_rename", "after_rename", "after_dirsync"] {
        sweep(&format!("segment.{point}"), &["start"]);
    }
}

#[test]
fn killed_at_any_step_of_the_spare_segment_the_start_goes_on_with_or_without_it() {
    for point in ["before_create", "before_rename", "after_rename"] {
        lifecycle(&format!("spare.{point}"));
    }
}

#[test]
fn killed_at_any_step_of_a_snapshot_the_old_or_the_new_state_is_there() {
    for point in
        ["before_write", "before_sync", "after_sync", "before_rename", "after_rename", "after_dirsync"]
    {
        lifecycle(&format!("snapshot.{point}"));
    }
}

#[test]
fn killed_around_the_deletion_of_an_old_segment_nothing_is_missed() {
    for point in ["before_delete", "after_delete"] {
        journal_grows(&format!("segment.{point}"));
    }
}

#[test]
fn killed_at_any_step_of_the_next_segment_the_journal_goes_on_from_one_to_the_other() {
    for point in ["before_write", "before_sync", "before_rename", "after_rename", "after_dirsync"] {
        journal_grows(&format!("segment.{point}"));
    }
}

/// Kills at each pass of a failpoint while the journal grows over several segments and the old ones go.
fn journal_grows(failpoint: &str) {
    if !has_failpoints() {
        return;
    }
    let mut falls = 0;
    for pass in 1..=PASSES_MAX {
        assert!(pass < PASSES_MAX, "{failpoint} is passed more often than the test allows for");
        println!("{failpoint}=kill@{pass}");
        let mut server = Server::prepare(Setup {
            failpoint: Some(format!("{failpoint}=kill@{pass}")),
            log: "info",
            ..Setup::default()
        });
        let mut fell = server.launch().is_err();
        if fell {
            server.start_again();
        }
        let mut raw = Raw::new(server.address());
        raw.open_session_with(600_000, || fell |= rise(&mut server));
        let sent = raw.prepare("acquire_lock", json!({"key": "f"}));
        let token = raw.finish_with(&sent, || fell |= rise(&mut server)).token().expect("the lock is free");
        let oldest = server.segments().first().cloned();
        // A seventh of a segment each. The old segments go when two snapshots were made: until then there is always more.
        let mut lines = String::new();
        let mut number = 0;
        while server.segments().first().cloned() == oldest || number < 24 {
            number += 1;
            assert!(number < 2_000, "the oldest segment never goes");
            let line = format!("{number:0>36000}\n");
            let sent = raw.prepare("append_file", json!({"file": "f", "token": token, "data": line}));
            raw.finish_with(&sent, || fell |= rise(&mut server)).ok();
            lines.push_str(&line);
        }
        // It may be falling just now: whoever does not fall stops cleanly.
        fell |= !server.terminate().status.success();
        for stop in ["at the failpoint or cleanly", "by a kill", "cleanly"] {
            match stop {
                "by a kill" => server.kill(),
                "cleanly" => assert!(server.terminate().status.success()),
                _ => {}
            }
            server.start_again();
            assert!(
                raw.read("f") == lines,
                "pass {pass} of {failpoint}, stopped {stop}: the file is another"
            );
            assert_eq!(raw.held(), 1);
        }
        falls += u32::from(fell);
        if !fell {
            break;
        }
    }
    assert!(falls > 0, "{failpoint} was never passed");
    println!("{failpoint}: the server fell {falls} times");
}

#[test]
fn killed_at_any_step_of_writing_down_how_far_the_files_are_nothing_is_written_twice() {
    for point in ["before_sync", "before_record", "after_record"] {
        lifecycle(&format!("image.{point}"));
    }
    // While appends go on and the journal asks how far the files are.
    journal_grows("image.after_record");
}

#[test]
fn killed_while_a_file_is_rotated_or_deleted_each_is_done_once() {
    if !has_failpoints() {
        return;
    }
    for point in ["before_rename", "after_rename", "before_unlink", "after_unlink"] {
        let failpoint = format!("image.{point}");
        let mut falls = 0;
        for pass in 1..=PASSES_MAX {
            assert!(pass < PASSES_MAX, "{failpoint} is passed more often than the test allows for");
            let fell = file_is_rotated_and_deleted(format!("{failpoint}=kill@{pass}"));
            falls += u32::from(fell);
            if !fell {
                break;
            }
        }
        assert!(falls > 0, "{failpoint} was never passed");
    }
}

/// A file is written, rotated away and begun again; the rotated one and another are deleted. Whether the server fell.
fn file_is_rotated_and_deleted(failpoint: String) -> bool {
    let mut falling = Falling::start(failpoint, None);
    let mut raw = Raw::new(falling.server.address());
    raw.open_session(600_000);
    let [log, old, gone] = ["log", "log.1", "gone"].map(|name| {
        let sent = raw.prepare("acquire_lock", json!({"key": name}));
        falling.call("0 acquire", &mut raw, sent).token().unwrap()
    });
    for (step, method, params) in [
        ("0 append", "append_file", json!({"file": "log", "token": log, "data": "before\n"})),
        ("0 append", "append_file", json!({"file": "gone", "token": gone, "data": "gone\n"})),
        ("0 rotate", "rotate_file", json!({"file": "log", "to": "log.1", "token": log})),
        ("0 append", "append_file", json!({"file": "log", "token": log, "data": "after\n"})),
        ("0 append", "append_file", json!({"file": "log.1", "token": old, "data": "more\n"})),
        ("0 delete", "delete_file", json!({"file": "gone", "token": gone})),
    ] {
        let sent = raw.prepare(method, params);
        falling.call(step, &mut raw, sent).ok();
    }
    // Files are read behind all work for files that was handed over before: with the answer, every pass has been made.
    let sent = raw.prepare("read_file", json!({"file": "log.1"}));
    raw.finish_with(&sent, || falling.care("the end")).ok();
    falling.care("the end");
    falling.tell_all_again(&mut [&mut raw]);
    assert_eq!(
        (raw.read("log"), raw.read("log.1"), raw.read("gone")),
        ("after\n".into(), "before\nmore\n".into(), String::new())
    );
    let exit = falling.server.terminate();
    assert!(exit.status.success(), "{exit:?}");
    let on_disk = |name| fs::read_to_string(falling.server.file(name)).ok();
    assert_eq!(
        [on_disk("log"), on_disk("log.1"), on_disk("gone")],
        [Some("after\n".into()), Some("before\nmore\n".into()), None]
    );
    !falling.fell_in.is_empty()
}

/// Kills at each pass of a failpoint in a life of start, work, idleness and clean stop, on a directory with a history.
fn lifecycle(failpoint: &str) {
    if !has_failpoints() {
        return;
    }
    let mut server = Server::start();
    let mut holder = server.client(600_000);
    let token = holder.acquire("held");
    let mut waiter = server.client(600_000);
    let wait = waiter.stand_in_line("held");
    let mut lines = String::new();
    for number in 0..20 {
        let line = format!("{number}\n");
        holder.append("held", token, &line);
        lines.push_str(&line);
        holder.set(&format!("key_{number}"), json!(number));
    }
    server.terminate();
    let mut falls = 0;
    for pass in 1..=PASSES_MAX {
        println!("{failpoint}=kill@{pass}");
        assert!(pass < PASSES_MAX, "{failpoint} is passed more often than the test allows for");
        server.setup.failpoint = Some(format!("{failpoint}=kill@{pass}"));
        let mut fell = server.launch().is_err();
        if !fell {
            // Work until it falls; a snapshot may be on its way in the background.
            let line = format!("pass {pass}\n");
            let sent = holder.prepare("append_file", json!({"file": "held", "token": token, "data": line}));
            let server = &mut server;
            holder.finish_with(&sent, || fell |= rise(server)).ok();
            lines.push_str(&line);
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(200) {
                fell |= rise(server);
                let_pass(10);
            }
            fell |= !server.terminate().status.success();
        }
        if fell {
            falls += 1;
        }
        if !server.runs() {
            server.start_again();
        }
        assert_eq!(holder.read("held"), lines, "pass {pass} of {failpoint}");
        assert_eq!(holder.held(), 1);
        assert_eq!(holder.queue("held"), [waiter.client]);
        for number in 0..20 {
            assert_eq!(holder.value(&format!("key_{number}")), json!(number));
        }
        server.terminate();
        if !fell {
            break;
        }
    }
    assert!(falls > 0, "{failpoint} was never passed");
    println!("{failpoint}: the server fell {falls} times");
    server.start_again();
    holder.release(token);
    assert!(waiter.granted(&wait) > token);
}

/// Starts the server again if it has fallen by its failpoint; whether it had.
fn rise(server: &mut Server) -> bool {
    let Some(exit) = server.fallen() else { return false };
    assert_eq!(exit.status.signal(), Some(9), "it ended otherwise than by its failpoint: {exit:?}");
    server.start_again();
    true
}

#[test]
fn no_reply_and_no_read_shows_what_is_not_yet_synced() {
    if !has_failpoints() {
        return;
    }
    const SLOW: Duration = Duration::from_millis(800);
    let failpoint = format!("journal.before_sync=sleep:{}", SLOW.as_millis());
    let server = Server::with(Setup { failpoint: Some(failpoint), ..Setup::default() });
    let mut writer = server.client(600_000);
    let mut reader = Raw::new(server.address());
    assert_eq!(reader.value("k"), json!(null));
    let before = Instant::now();
    let sent = writer.start("set", json!({"key": "k", "value": "new"}));
    // The reader is answered all the while: a slow disk delays nobody who needs none.
    let mut answered_old = 0;
    loop {
        let asked = reader.start("get", json!({"key": "k"}));
        let Some(read) = reader.listen(&asked, PATIENCE) else { panic!("reads wait for the disk") };
        if read.ok()["value"] == "new" {
            break;
        }
        answered_old += 1;
        assert!(before.elapsed() < PATIENCE, "the write never shows");
        let_pass(20);
    }
    assert!(
        before.elapsed() >= SLOW,
        "a read showed after {:?} what takes {SLOW:?} to sync",
        before.elapsed()
    );
    assert!(answered_old > 0, "no read was answered during the sync");
    writer.finish(&sent).ok();
    // The reply waits as well.
    let before = Instant::now();
    writer.set("k", json!("newer"));
    assert!(before.elapsed() >= SLOW, "the reply came before the sync");
}

#[test]
fn a_holder_is_still_the_holder_after_kill_9_and_goes_on() {
    let mut server = Server::start();
    let mut first = server.client(60_000);
    let mut other = server.client(60_000);
    let token = first.acquire("f");
    assert_eq!(other.holder("f"), Some(first.client));
    server.kill_and_restart();
    assert_eq!(other.holder("f"), Some(first.client));
    assert_eq!(other.call("acquire_lock", json!({"key": "f"})).token(), None);
    assert_eq!(first.held(), 1);
    first.append("f", token, "x");
    first.release(token);
    assert!(other.acquire("f") > token);
}

#[test]
fn a_section_of_twenty_appends_stands_together_though_the_server_was_killed_in_it() {
    let mut server = Server::start();
    let mut first = server.client(60_000);
    let mut second = server.client(60_000);
    let token = first.acquire("f");
    let wait = second.stand_in_line("f");
    let mut expected = String::new();
    for number in 0..20 {
        let line = format!("{number}\n");
        let sent = first.prepare("append_file", json!({"file": "f", "token": token, "data": line}));
        if number == 10 {
            // On its way while the server dies: once, whenever it is executed.
            first.send(&sent);
            server.kill_and_restart();
        }
        first.finish(&sent).ok();
        expected.push_str(&line);
    }
    first.release(token);
    let next = second.granted(&wait);
    second.append("f", next, "second\n");
    expected.push_str("second\n");
    assert_eq!(second.read("f"), expected);
}

#[test]
fn waiters_keep_their_places_over_a_kill() {
    let mut server = Server::start();
    let mut first = server.client(60_000);
    let token = first.acquire("f");
    let mut waiting: Vec<_> = (0..5)
        .map(|_| {
            let mut raw = server.client(60_000);
            let wait = raw.stand_in_line("f");
            (raw, wait)
        })
        .collect();
    let order: Vec<u64> = waiting.iter().map(|(raw, _)| raw.client).collect();
    assert_eq!(first.queue("f"), order);
    server.kill_and_restart();
    assert_eq!(first.queue("f"), order, "the line is another after the restart");
    // The journal told it the order; after a clean stop the snapshot does.
    assert!(server.terminate().status.success());
    server.start_again();
    assert_eq!(first.queue("f"), order, "the line is another after a clean stop");
    first.release(token);
    // They ask again in the opposite order; the line does not care.
    for (raw, wait) in waiting.iter_mut().rev() {
        raw.send(wait);
    }
    let mut last = token;
    for (raw, wait) in &mut waiting {
        let next = raw.granted(wait);
        assert!(next > last, "served out of turn");
        last = next;
        raw.release(next);
    }
}

#[test]
fn a_stop_that_loses_patience_with_the_disk_leaves_what_it_committed_last_to_the_next_start() {
    if !has_failpoints() {
        return;
    }
    // One sync that takes longer than a stop waits. Each step below is two of them, the second for the seal.
    let slow = Setup { failpoint: Some("journal.before_sync=sleep:22000@7".into()), ..Setup::default() };
    let mut server = Server::with(slow);
    let_pass(400);
    let mut raw = server.client(600_000);
    let_pass(400);
    let token = raw.acquire("f");
    let_pass(400);
    let append = raw.start("append_file", json!({"file": "f", "token": token, "data": "late\n"}));
    let_pass(200);
    assert!(server.terminate().status.success());
    server.start_again();
    assert_eq!(*raw.finish(&append).ok(), json!({"offset": 0, "length": 5}));
    assert_eq!(raw.read("f"), "late\n");
    assert_eq!(raw.ok("file_info", json!({"file": "f"})).get("fault"), None);
}

#[test]
fn a_second_signal_ends_the_server_at_once_wherever_it_waits_for_its_disk() {
    if !has_failpoints() {
        return;
    }
    // While the first term is being begun, and while the last snapshot is written: the one at the start is the first.
    for (point, serves) in
        [("journal.before_sync=sleep:15000@1", false), ("snapshot.before_sync=sleep:15000@2", true)]
    {
        let mut server = Server::prepare(Setup { failpoint: Some(point.into()), ..Setup::default() });
        if serves {
            server.must_launch();
            let mut raw = server.client(600_000);
            raw.set("a", json!(1));
            let snapshot = server.snapshot();
            poll_until("the first snapshot", || snapshot.exists().then_some(()));
        } else {
            server.spawn();
            let_pass(1_000);
        }
        server.signal(Signal::TERM);
        let_pass(1_000);
        let began = Instant::now();
        let exit = server.terminate();
        assert_eq!(exit.status.code(), Some(128 + 15), "{point}: {}", exit.stderr);
        assert!(began.elapsed() < Duration::from_secs(5), "{point}: it took {:?}", began.elapsed());
        server.start_again();
        let mut raw = server.client(600_000);
        if serves {
            assert_eq!(raw.value("a"), json!(1));
        }
    }
}

#[test]
fn killed_while_it_stops_right_after_a_damaged_snapshot_was_passed_over_the_good_one_is_still_there() {
    if !has_failpoints() {
        return;
    }
    let mut server = Server::start();
    let mut raw = server.client(600_000);
    raw.set("a", json!(1));
    assert!(server.terminate().status.success());
    server.start_again();
    let previous = server.directory().join("server_state.json.previous");
    poll_until("a snapshot behind that of the stop", || previous.exists().then_some(()));
    // Its last step: the new one has its name.
    let_pass(300);
    server.kill();
    let mut bytes = fs::read(server.snapshot()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(server.snapshot(), bytes).unwrap();
    // Told to stop before the first snapshot of this start is begun, and killed in the middle of the last one.
    let point = "journal.before_sync=sleep:1500@1,snapshot.after_previous=kill";
    server.setup.failpoint = Some(point.into());
    server.spawn();
    let_pass(700);
    server.terminate();
    server.start_again();
    assert_eq!(raw.value("a"), json!(1));
}

#[test]
fn killed_while_a_journal_of_older_rules_goes_there_is_always_one() {
    if !has_failpoints() {
        return;
    }
    let mut server = Server::start();
    let mut raw = server.client(600_000);
    raw.set("a", json!(1));
    assert!(server.terminate().status.success());
    server.start_again();
    let previous = server.directory().join("server_state.json.previous");
    poll_until("a snapshot behind that of the stop", || previous.exists().then_some(()));
    let_pass(300);
    server.kill();
    // The snapshot has everything, and is not that of a clean stop; the journal says that other rules applied it.
    let segments = server.segments();
    let mut bytes = fs::read(&segments[0]).unwrap();
    bytes[12..16].copy_from_slice(&0u32.to_le_bytes());
    let sum = crc32c(&bytes[..124]);
    bytes[124..128].copy_from_slice(&sum.to_le_bytes());
    fs::write(&segments[0], bytes).unwrap();
    server.setup.failpoint = Some("segment.after_delete=kill".into());
    assert!(server.launch().is_err());
    server.start_again();
    assert_eq!(raw.value("a"), json!(1));
}

#[test]
fn a_server_that_is_down_for_longer_than_the_lease_gives_every_session_its_whole_lease_once() {
    let mut server = Server::start();
    let mut first = server.client(1_500);
    let mut second = server.client(60_000);
    let token = first.acquire("f");
    let wait = second.stand_in_line("f");
    // Of this one nothing is heard after the start: what it has is what the start gives it.
    let mut silent = server.client(1_500);
    silent.acquire("g");
    let behind = second.prepare("acquire_lock", json!({"key": "g", "wait_ms": null, "owner": "another"}));
    poll_until("a place in the second line", || {
        second.send(&behind);
        (second.queue("g") == [second.client]).then_some(())
    });
    server.kill();
    // The outage outlasts the lease.
    let_pass(2_500);
    let before = Instant::now();
    server.start_again();
    first.append("f", token, "first\n");
    assert_eq!(second.holder("f"), Some(first.client));
    second.granted(&behind);
    let lived = before.elapsed();
    assert!(lived >= Duration::from_millis(1_500), "the silent one had {lived:?} after the start");
    // From here the first is silent too.
    let next = second.granted(&wait);
    assert!(before.elapsed() >= Duration::from_millis(1_500));
    first.refused("append_file", json!({"file": "f", "token": token, "data": "late\n"}), "no_session");
    second.append("f", next, "second\n");
    assert_eq!(second.read("f"), "first\nsecond\n");
}

#[test]
fn a_lease_that_lapses_around_a_kill_ends_with_exactly_one_holder() {
    let seed = crate::harness::seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut server = Server::start();
    for round in 0..8 {
        let file = format!("f{round}");
        let mut dead = server.client(100);
        let old = dead.acquire(&file);
        let mut first = server.client(60_000);
        let mut second = server.client(60_000);
        let wait = first.stand_in_line(&file);
        let later = second.stand_in_line(&file);
        // Somewhere around the end of the lease.
        let_pass(rng.u64(20..140));
        server.kill_and_restart();
        let token = first.granted(&wait);
        assert!(token > old);
        assert_eq!(second.holder(&file), Some(first.client));
        assert_eq!(second.listen(&later, Duration::from_millis(100)), None, "two holders");
        dead.refused("append_file", json!({"file": file, "token": old, "data": "x"}), "no_session");
        first.append(&file, token, "y");
        first.release(token);
        assert!(second.granted(&later) > token);
        assert_eq!(second.read(&file), "y");
    }
}

#[test]
fn a_session_that_ended_stays_ended_over_a_restart_and_still_answers_its_retries() {
    let mut server = Server::start();
    let mut dead = server.client(200);
    let token = dead.acquire("f");
    let sent = dead.prepare("append_file", json!({"file": "f", "token": token, "data": "once\n"}));
    let told = dead.finish(&sent);
    let mut other = server.client(60_000);
    poll_until("the lease to run out", || (!other.is_locked("f")).then_some(()));
    assert_eq!(dead.finish(&sent), told);
    server.kill_and_restart();
    assert_eq!(dead.finish(&sent), told, "the kept reply of an ended session is another after the restart");
    dead.refused("set", json!({"key": "k", "value": 1}), "no_session");
    dead.refused("heartbeat", json!({}), "no_session");
    assert_eq!(other.read("f"), "once\n");
}

#[test]
fn a_clean_stop_and_a_start_leave_the_state_as_it_was() {
    let mut server = Server::start();
    let mut first = server.client(600_000);
    let mut second = server.client(600_000);
    let token = first.acquire("f");
    first.acquire("g");
    let wait = second.stand_in_line("f");
    first.append("f", token, "x\n");
    first.set("k", json!({"n": [1, null]}));
    for signal in [Signal::TERM, Signal::INT] {
        let version = first.ok("get", json!({"key": "k"}))["version"].clone();
        server.signal(signal);
        let exit = server.ended();
        assert!(exit.status.success(), "{signal:?}: {exit:?}");
        server.start_again();
        assert_eq!(first.held(), 2);
        assert_eq!(first.queue("f"), [second.client]);
        assert_eq!(first.read("f"), "x\n");
        assert_eq!(first.ok("get", json!({"key": "k"}))["version"], version);
    }
    first.release(token);
    assert!(second.granted(&wait) > token);
}

#[test]
fn a_second_signal_while_it_stops_does_not_spoil_the_stop() {
    let mut server = Server::start();
    let mut raw = server.client(60_000);
    raw.acquire("f");
    server.signal(Signal::INT);
    server.signal(Signal::INT);
    server.ended();
    server.start_again();
    assert_eq!(raw.held(), 1);
}

#[test]
fn a_hangup_ends_it_like_a_crash_and_loses_nothing() {
    let mut server = Server::start();
    let mut raw = server.client(60_000);
    let token = raw.acquire("f");
    raw.append("f", token, "x");
    server.signal(Signal::HUP);
    assert_eq!(server.ended().status.signal(), Some(1));
    server.start_again();
    assert_eq!((raw.held(), raw.read("f")), (1, "x".into()));
}

#[test]
fn too_few_open_files_are_a_sentence_and_never_half_a_server() {
    for most in [4, 8, 16, 64, 300] {
        let mut server = Server::prepare(Setup { open_files: Some(most), ..Setup::default() });
        let exit = server.launch().expect_err("it starts without the files that it needs");
        assert_eq!(exit.status.signal(), None, "{most} files: {exit:?}");
        assert!(!exit.status.success() && !exit.stderr.contains("panicked"), "{most} files: {}", exit.stderr);
        assert!(exit.stderr.contains("files"), "{most} files: {}", exit.stderr);
    }
}

#[test]
fn a_second_server_on_the_same_directory_is_refused_with_a_sentence_and_the_first_goes_on() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    raw.set("k", json!(1));
    let mut second = Server::prepare_in(server.directory().to_owned(), Setup::default());
    let exit = second.launch().expect_err("a second server runs on the same directory");
    assert!(!exit.status.success());
    let directory = server.directory().to_str().unwrap();
    assert!(exit.stderr.contains(directory) && exit.stderr.contains("uses"), "it said: {}", exit.stderr);
    raw.set("k", json!(2));
    assert_eq!(raw.value("k"), json!(2));
}

#[test]
fn a_second_server_on_the_same_port_is_refused_with_a_sentence_that_names_it() {
    let server = Server::start();
    let mut second = Server::prepare(Setup::default());
    let mut raw = server.client(60_000);
    let exit = second.launch_at(server.address()).expect_err("two servers share a port");
    assert!(!exit.status.success());
    assert!(exit.stderr.contains(&server.address().port().to_string()), "it said: {}", exit.stderr);
    raw.set("k", json!(2));
}

#[test]
fn tokens_and_versions_never_repeat_though_kill_9_lost_what_was_told() {
    if !has_failpoints() {
        return;
    }
    // Under `none` a reply does not wait for the journal: once it is armed, nothing reaches the disk any more.
    let setup = Setup { durability: "none", disarmed: true, ..Setup::default() };
    let mut server =
        Server::with(Setup { failpoint: Some("journal.before_write=sleep:600000".into()), ..setup });
    let mut raw = server.client(600_000);
    let (token, version) = (raw.acquire("f"), raw.set("k", json!(0)));
    let written = || fs::read(server.segments().pop().unwrap()).unwrap();
    // The seal behind it says that it is on the disk.
    let mut last = written();
    poll_until("the journal to be quiet", || {
        let_pass(300);
        let now = written();
        let quiet = now == last;
        last = now;
        quiet.then_some(())
    });
    server.arm();
    raw.release(token);
    let (lost_token, lost_version) = (raw.acquire("f"), raw.set("k", json!(1)));
    assert!(lost_token > token && lost_version > version);
    server.kill_and_restart();
    assert_eq!(raw.value("k"), json!(0), "what was told is lost, or this tests nothing");
    raw.release(token);
    let (next_token, next_version) = (raw.acquire("f"), raw.set("k", json!(2)));
    assert!(next_token > lost_token, "token {next_token} after {lost_token} was told");
    assert!(next_version > lost_version, "version {next_version} after {lost_version} was told");
}

#[test]
fn tokens_and_versions_never_repeat_though_a_power_cut_lost_what_was_told() {
    for durability in ["os", "none"] {
        let server = Server::with(Setup { durability, ..Setup::default() });
        let mut raw = server.client(600_000);
        let token = raw.acquire("f");
        raw.set("k", json!(0));
        // The directory as it is now is what a power cut leaves of all that follows.
        let mut left = server.copy_as_of_now();
        raw.release(token);
        let (lost_token, lost_version) = (raw.acquire("f"), raw.set("k", json!(1)));
        drop(server);
        left.must_launch();
        let mut after = left.client(600_000);
        let (next_token, next_version) = (after.acquire("g"), after.set("k", json!(2)));
        assert!(next_token > lost_token, "{durability}: token {next_token} after {lost_token} was told");
        assert!(next_version > lost_version, "{durability}: version {next_version} after {lost_version}");
    }
}

#[test]
fn tokens_and_versions_rise_over_deletes_kills_and_stops() {
    let mut server = Server::start();
    let mut raw = server.client(600_000);
    let (mut token, mut version) = (0, 0);
    for round in 0..4 {
        let next = raw.acquire("f");
        assert!(next > token, "token {next} after {token}");
        token = next;
        for _ in 0..2 {
            let next = raw.set("k", json!(round));
            assert!(next > version, "version {next} after {version}, though the key was deleted between");
            version = next;
            raw.ok("delete", json!({"key": "k"}));
        }
        raw.release(token);
        match round % 2 {
            0 => server.kill_and_restart(),
            _ => {
                server.terminate();
                server.start_again();
            }
        }
    }
}

#[test]
fn what_was_handed_to_the_kernel_survives_kill_9() {
    let mut server = Server::with(Setup { durability: "os", ..Setup::default() });
    let mut raw = server.client(60_000);
    let token = raw.acquire("f");
    for round in 0..10 {
        raw.append("f", token, &format!("{round}\n"));
        server.kill_and_restart();
    }
    assert_eq!(raw.read("f"), "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n");
    raw.release(token);
}

/// A stopped server with a history; what stands in it can be asked for by [`look`].
fn stopped_with_history() -> (Server, Raw) {
    let mut server = Server::start();
    let mut raw = server.client(600_000);
    let token = raw.acquire("f");
    raw.append("f", token, "x\n");
    raw.set("k", json!("v"));
    let exit = server.terminate();
    assert!(exit.status.success());
    (server, raw)
}

fn assert_history(raw: &mut Raw) {
    assert_eq!((raw.read("f"), raw.value("k"), raw.held()), ("x\n".into(), json!("v"), 1));
}

/// Damages something of a stopped server; it must refuse to start and name the file, or start with everything.
fn whole_or_refused(what: &str, damage: impl FnOnce(&Server)) {
    let (mut server, mut raw) = stopped_with_history();
    damage(&server);
    match server.launch() {
        Ok(()) => {
            println!("{what}: started");
            assert_history(&mut raw);
        }
        Err(exit) => {
            println!("{what}: refused");
            assert!(!exit.status.success());
            assert!(exit.status.signal().is_none(), "{what}: it crashed: {exit:?}");
            assert!(!exit.stderr.contains("panicked"), "{what}: {}", exit.stderr);
            let names = exit.stderr.contains("server_state.json") || exit.stderr.contains("journal");
            assert!(names, "{what}: it names no file: {}", exit.stderr);
        }
    }
}

/// A killed server whose journal has several segments, none of which a snapshot covers.
fn killed_with_segments() -> Server {
    let failpoint = Some("snapshot.before_write=error".into());
    let mut server = Server::with(Setup { failpoint, log: "info", ..Setup::default() });
    let mut raw = server.client(600_000);
    let token = raw.acquire("f");
    while server.segments().len() < 6 {
        raw.append("f", token, &"x".repeat(40_000));
    }
    server.kill();
    server.setup.failpoint = None;
    server
}

#[test]
fn missing_mixed_and_foreign_segments_are_refused_by_name() {
    if !has_failpoints() {
        return;
    }
    let (server, stranger) = (killed_with_segments(), killed_with_segments());
    let all: Vec<_> = server
        .segments()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    let name = |number: usize| all[number].file_name().unwrap().to_str().unwrap().to_owned();
    let there = |server: &Server, number: usize| server.directory().join("journal").join(name(number));
    let refused = |what: &str, damage: &dyn Fn(&Server), named: &[String]| {
        let mut copy = server.copy();
        damage(&copy);
        let exit = copy.launch().expect_err(what);
        assert_eq!(exit.status.signal(), None, "{what}: {exit:?}");
        assert!(!exit.stderr.contains("panicked"), "{what}: {}", exit.stderr);
        for name in named {
            assert!(exit.stderr.contains(name), "{what}: it does not name {name}: {}", exit.stderr);
        }
        println!("{what}: {}", exit.stderr.lines().last().unwrap_or_default());
    };
    refused("the first is missing", &|copy| fs::remove_file(there(copy, 0)).unwrap(), &[name(1)]);
    refused("one between is missing", &|copy| fs::remove_file(there(copy, 2)).unwrap(), &[name(1), name(3)]);
    let swap = |copy: &Server| {
        fs::rename(there(copy, 1), copy.file("kept")).unwrap();
        fs::rename(there(copy, 2), there(copy, 1)).unwrap();
        fs::rename(copy.file("kept"), there(copy, 2)).unwrap();
    };
    refused("two are swapped", &swap, &[name(1)]);
    let foreign = |copy: &Server| fs::rename(there(&stranger, 2), there(copy, 2)).unwrap();
    refused("one is another server's", &foreign, &[name(2)]);
    let cut = |copy: &Server| {
        fs::OpenOptions::new().write(true).open(there(copy, 1)).unwrap().set_len(60_000).unwrap()
    };
    refused("one between is cut", &cut, &[name(1)]);
    let empty = |copy: &Server| fs::write(there(copy, 1), "").unwrap();
    refused("one between is empty", &empty, &[name(1)]);
    // A backup of the snapshot of another time, or of another server.
    let mut other = Server::start();
    other.terminate();
    let snapshot = |copy: &Server| fs::rename(other.snapshot(), copy.snapshot()).unwrap();
    refused("the snapshot is another server's", &snapshot, &[]);
    // The journal of an earlier time under the snapshot of a later one, which is not that of a clean stop.
    let mut later = server.copy();
    later.must_launch();
    poll_until("a snapshot", || later.stderr().contains("a snapshot of op").then_some(()));
    later.kill();
    for path in later.segments() {
        fs::remove_file(path).unwrap();
    }
    fs::copy(&all[0], there(&later, 0)).unwrap();
    let exit = later.launch().expect_err("an old journal under a newer snapshot");
    assert!(exit.stderr.contains("newer than the journal"), "{}", exit.stderr);
}

fn rewrite(path: &Path, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, change(text)).unwrap();
}

#[test]
fn a_damaged_state_file_is_refused_by_name_or_made_up_for_and_never_an_empty_start() {
    whole_or_refused("empty", |server| fs::write(server.snapshot(), "").unwrap());
    whole_or_refused("missing", |server| fs::remove_file(server.snapshot()).unwrap());
    whole_or_refused("no JSON", |server| fs::write(server.snapshot(), "{]").unwrap());
    whole_or_refused("deep JSON", |server| fs::write(server.snapshot(), "[".repeat(1_000_000)).unwrap());
    whole_or_refused("cut in half", |server| {
        rewrite(&server.snapshot(), |text| text[..text.len() / 2].into())
    });
    whole_or_refused("a key twice", |server| {
        rewrite(&server.snapshot(), |text| text.replacen('{', "{\"format\": 1,", 1));
    });
    whole_or_refused("infinite", |server| {
        rewrite(&server.snapshot(), |text| text.replacen(":1", ":1e999", 1));
    });
    whole_or_refused("a directory", |server| {
        fs::remove_file(server.snapshot()).unwrap();
        fs::create_dir(server.snapshot()).unwrap();
    });
    whole_or_refused("journal missing", |server| {
        fs::remove_dir_all(server.directory().join("journal")).unwrap()
    });
    whole_or_refused("segments missing", |server| {
        for segment in server.segments() {
            fs::remove_file(segment).unwrap();
        }
    });
    whole_or_refused("snapshot and journal missing", |server| {
        fs::remove_file(server.snapshot()).unwrap();
        fs::remove_dir_all(server.directory().join("journal")).unwrap();
    });
}

#[test]
fn a_flipped_bit_anywhere_in_the_state_file_is_noticed() {
    let (server, mut raw) = stopped_with_history();
    let good = fs::read(server.snapshot()).unwrap();
    let (mut refused, mut started) = (0, 0);
    for at in places(good.len(), 30) {
        let mut copy = server.copy();
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(copy.snapshot(), &bad).unwrap();
        match copy.launch() {
            Ok(()) => {
                started += 1;
                raw.to = copy.address();
                assert_history(&mut raw);
            }
            Err(exit) => {
                refused += 1;
                assert!(
                    exit.status.signal().is_none() && !exit.stderr.contains("panicked"),
                    "byte {at}: {exit:?}"
                );
                assert!(
                    exit.stderr.contains("server_state.json"),
                    "byte {at}: it names no file: {}",
                    exit.stderr
                );
            }
        }
    }
    println!("a bit flipped in the state file: refused {refused}, started whole {started}");
}

#[test]
fn a_state_file_of_a_newer_version_is_refused_with_what_to_do() {
    let (mut server, _) = stopped_with_history();
    rewrite(&server.snapshot(), |text| {
        let at = text.find("\"format\"").expect("the snapshot says its format");
        let (before, rest) = text.split_at(at);
        let digit = rest.find(|c: char| c.is_ascii_digit()).unwrap();
        format!("{before}{}9{}", &rest[..digit], &rest[digit..])
    });
    let exit = server.launch().expect_err("a newer format was taken");
    assert!(!exit.status.success() && exit.stderr.contains("server_state.json"), "{}", exit.stderr);
}

#[test]
fn a_data_directory_that_cannot_be_made_is_a_sentence_and_not_a_crash() {
    let occupied = tempfile::NamedTempFile::new().unwrap();
    let mut server = Server::prepare_in(occupied.path().join("data"), Setup::default());
    let exit = server.launch().expect_err("a file was taken for a directory");
    assert_eq!(exit.status.signal(), None);
    assert!(!exit.status.success() && !exit.stderr.contains("panicked"), "{}", exit.stderr);
    let path = occupied.path().to_str().unwrap();
    assert!(exit.stderr.contains(path), "it names no path: {}", exit.stderr);
}
