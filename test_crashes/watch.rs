//! Watchers over kills of the server: every change is told once, in order, or the watcher is told that it is not.

use crate::harness::{PATIENCE, Raw, Server, Setup, has_failpoints, kills, mix, poll_until, seed};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const WRITERS: u64 = 3;

/// Versions of keys as somebody saw them, in the order in which they did.
type Versions = BTreeMap<String, Vec<u64>>;

#[test]
fn a_watcher_over_kills_of_the_server_is_told_each_version_once_and_in_order() {
    watched("sync", kills(12));
}

#[test]
fn a_watcher_over_kills_of_a_server_that_syncs_nothing_is_told_nothing_twice_and_knows_of_gaps() {
    watched("os", kills(12) / 2);
}

/// Kills the server again and again while writers set and delete keys, and watchers count what they are told.
fn watched(durability: &'static str, kills: u64) {
    let seed = seed();
    let args = ["--max-history-events", "1000000"];
    let mut server =
        Server::with(Setup { durability, args: args.map(String::from).to_vec(), ..Setup::default() });
    let (stop, written) = (AtomicBool::new(false), Mutex::new(Versions::new()));
    let mut rng = fastrand::Rng::with_seed(mix(&[seed, 0]));
    let sees = std::thread::scope(|scope| {
        let address = server.address();
        let (stop, written) = (&stop, &written);
        // Two that wait at the server and one that asks for one event at a time, to stand inside what one op did.
        let watchers: Vec<_> = [(1_000, 1_000), (200, 7), (300, 1)]
            .map(|(wait_ms, limit)| scope.spawn(move || watch(address, wait_ms, limit, stop)))
            .into_iter()
            .collect();
        let writers: Vec<_> =
            (0..WRITERS).map(|number| scope.spawn(move || write(address, number, stop, written))).collect();
        let _guard = StopAtEnd(stop);
        let done = || written.lock().unwrap().values().map(Vec::len).sum::<usize>();
        for _ in 0..kills {
            let before = done();
            poll_until("progress between two kills", || (done() > before + 20).then_some(()));
            std::thread::sleep(Duration::from_millis(rng.u64(0..100)));
            server.kill();
            std::thread::sleep(Duration::from_millis(rng.u64(0..30)));
            server.start_again();
        }
        stop.store(true, Ordering::SeqCst);
        for writer in writers {
            writer.join().unwrap();
        }
        // What ends a watcher: the key that comes behind everything.
        server.client(60_000).set("w/end", json!(1));
        watchers.into_iter().map(|watcher| watcher.join().unwrap()).collect::<Vec<_>>()
    });
    let written = written.into_inner().unwrap();
    let count: usize = written.values().map(Vec::len).sum();
    println!("{kills} kills, {count} versions written, durability {durability}");
    for (number, seen) in sees.into_iter().enumerate() {
        match durability {
            // Nothing that was acknowledged is lost, so each watcher sees what the writers saw.
            "sync" => {
                assert_eq!(seen.gaps, 0, "watcher {number} was told of a gap");
                assert_eq!(seen.versions, written, "watcher {number} saw other versions than the writers");
            }
            // Each kill raises the counters and refuses every place from before: the watcher knows.
            _ => {
                assert!((1..=kills).contains(&seen.gaps), "watcher {number}: {} gaps", seen.gaps);
                for (key, versions) in &seen.versions {
                    let known = &written[key];
                    assert!(versions.is_sorted_by(|a, b| a < b), "{key} went back: {versions:?}");
                    assert!(
                        versions.iter().all(|version| known.contains(version)),
                        "{key}: {versions:?} {known:?}"
                    );
                }
            }
        }
    }
}

/// Sets and deletes keys of its own, and notes the versions that it is told.
fn write(address: SocketAddr, number: u64, stop: &AtomicBool, written: &Mutex<Versions>) {
    let mut raw = Raw::open(address, 600_000);
    let mut round = 0;
    while !stop.load(Ordering::SeqCst) {
        round += 1;
        let key = format!("w/{number}/{}", round % 5);
        let version = raw.set(&key, json!(round));
        written.lock().unwrap().entry(key.clone()).or_default().push(version);
        if round % 7 == 0 {
            raw.ok("delete", json!({"key": key}));
        }
    }
}

/// What a watcher was told.
#[derive(Debug, Default)]
struct Seen {
    versions: Versions,
    gaps: u64,
}

/// Watches from the beginning of the log until the last key comes, through one socket, with its cursor and nothing else.
fn watch(address: SocketAddr, wait_ms: u64, limit: u64, stop: &AtomicBool) -> Seen {
    let (mut raw, mut seen, mut last) = (Raw::new(address), Seen::default(), (0, 0));
    let mut place = json!({"after": 0});
    let mut ending: Option<Instant> = None;
    loop {
        let mut params = json!({"prefix": "w/", "wait_ms": wait_ms, "limit": limit});
        params.as_object_mut().unwrap().extend(place.as_object().unwrap().clone());
        let answer = raw.call("watch", params);
        if stop.load(Ordering::SeqCst) {
            let since = *ending.get_or_insert_with(Instant::now);
            assert!(since.elapsed() < PATIENCE * 3, "the end never came; the last answer was {}", answer.0);
        }
        if answer.kind() == Some("compacted") {
            seen.gaps += 1;
            let oldest = &answer.refused("compacted")["oldest"];
            place = json!({"after": oldest});
            continue;
        }
        let result = answer.ok();
        for event in result["events"].as_array().unwrap() {
            let op = event["op"].as_u64().unwrap();
            last = if op == last.0 { (op, last.1 + 1) } else { (op, 0) };
            assert!(op >= last.0, "events go back: {event}");
            if event["name"] == "w/end" {
                return seen;
            }
            note(&mut seen, event);
        }
        place = json!({"cursor": result["next"]});
    }
}

fn note(seen: &mut Seen, event: &Value) {
    let (name, version) = (event["name"].as_str().unwrap(), event["version"].as_u64().unwrap());
    let versions = seen.versions.entry(name.to_owned()).or_default();
    match event["event"].as_str().unwrap() {
        "key_set" => {
            assert_eq!(event["op"], event["version"]);
            versions.push(version);
        }
        // What is deleted is the version that was told last.
        "key_deleted" if seen.gaps == 0 => assert_eq!(versions.last(), Some(&version), "{event}"),
        "key_deleted" => {}
        other => panic!("{other} happens to no key"),
    }
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_watcher_is_told_nothing_that_is_not_yet_synced() {
    if !has_failpoints() {
        return;
    }
    const SLOW: Duration = Duration::from_millis(500);
    let failpoint = format!("journal.before_sync=sleep:{}", SLOW.as_millis());
    let server = Server::with(Setup { failpoint: Some(failpoint), ..Setup::default() });
    let mut writer = server.client(600_000);
    let mut watcher = Raw::new(server.address());
    let place = watcher.ok("watch", json!({"prefix": "k"}))["next"].clone();
    let waits = watcher.start("watch", json!({"prefix": "k", "cursor": place, "wait_ms": 30_000}));
    let before = Instant::now();
    let sent = writer.start("set", json!({"key": "k", "value": 1}));
    let told = watcher.listen(&waits, PATIENCE).expect("the watch is answered");
    assert!(before.elapsed() >= SLOW, "told after {:?} what takes {SLOW:?} to sync", before.elapsed());
    assert_eq!(told.ok()["events"][0]["version"], writer.finish(&sent).ok()["version"]);
}

#[test]
fn a_watcher_of_a_server_that_stops_is_answered_and_goes_on_at_the_next_start() {
    let mut server = Server::start();
    let mut writer = server.client(600_000);
    let mut watcher = Raw::new(server.address());
    let first = writer.set("k", json!(1));
    let waits = watcher.start("watch", json!({"prefix": "k", "after": first, "wait_ms": 60_000}));
    // The server has taken it in when it has answered what was sent behind it.
    watcher.ok("ping", json!({}));
    let exit = server.terminate();
    assert!(exit.status.success(), "{exit:?}");
    let told = watcher.listen(&waits, PATIENCE).expect("a stop answers who waits").ok().clone();
    assert_eq!(told["events"], json!([]));
    server.start_again();
    let second = writer.set("k", json!(2));
    let told = watcher.ok("watch", json!({"prefix": "k", "cursor": told["next"], "wait_ms": 10_000}));
    assert_eq!(told["events"], json!([{"op": second, "event": "key_set", "name": "k", "version": second}]));
}
