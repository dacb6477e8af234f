//! Atomic sections over kills: what was staged under a grant is there whole after its release, or not at all.

use crate::harness::{Raw, Server, has_failpoints, let_pass, mix, seed};
use crate::server::{Falling, PASSES_MAX};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const LOCKS: [&str; 4] = ["a", "b", "log", "new"];

/// What stands of a section that sets two keys and appends to two files, one of them new: one reply for the keys, and
/// each file from the server.
fn seen(raw: &mut Raw) -> (Value, String, String) {
    let keys = raw.ok("prefix", json!({"prefix": ""}))["items"].clone();
    let values: Vec<Value> = keys.as_array().unwrap().iter().map(|item| item["value"].clone()).collect();
    (json!(values), raw.read("log"), raw.read("new"))
}

/// Stages two keys and three appends to two files and releases them. Gives whether the server fell.
fn section_is_released(failpoint: String) -> bool {
    let nothing = (json!([]), "old\n".to_owned(), String::new());
    let all = (json!([1, 2]), "old\none\ntwo\n".to_owned(), "new\n".to_owned());
    let mut falling = Falling::start(failpoint, None);
    let to = falling.server.address();
    let (mut raw, mut other) = (Raw::new(to), Raw::new(to));
    raw.open_session_with(600_000, || falling.care("0 open"));
    let sent = raw.prepare("acquire_lock", json!({"key": "log"}));
    let token = falling.call("0 acquire", &mut raw, sent).token().unwrap();
    let sent = raw.prepare("append_file", json!({"file": "log", "data": "old\n", "token": token}));
    falling.call("0 append", &mut raw, sent).ok();
    let sent = raw.prepare("release_lock", json!({"token": token}));
    falling.call("0 release", &mut raw, sent).ok();

    let sent = raw.prepare("acquire_lock", json!({"keys": LOCKS, "atomic": true}));
    let token = falling.call("0 acquire all", &mut raw, sent).token().unwrap();
    for (method, params) in [
        ("set", json!({"key": "a", "value": 1, "token": token})),
        ("append_file", json!({"file": "log", "data": "one\n", "token": token})),
        ("append_file", json!({"file": "new", "data": "new\n", "token": token})),
        ("set", json!({"key": "b", "value": 2, "token": token})),
        ("append_file", json!({"file": "log", "data": "two\n", "token": token})),
    ] {
        let sent = raw.prepare(method, params);
        assert_eq!(falling.call("0 stage", &mut raw, sent).ok()["staged"], true);
    }
    let sent = raw.prepare("get", json!({"key": "a"}));
    assert_eq!(raw.finish_with(&sent, || falling.care("0 read")).ok()["found"], false);

    // A fall in the release: whoever asks then, before the retry, sees all of it or nothing.
    let release = raw.prepare("release_lock", json!({"token": token}));
    let mut falls = falling.fell_in.len();
    let answer = raw.finish_with(&release, || {
        falling.care("0 release all");
        if falling.fell_in.len() > falls {
            falls = falling.fell_in.len();
            let found = seen(&mut other);
            assert!(found == nothing || found == all, "a part of a section is there: {found:?}");
        }
    });
    assert_eq!((&answer.ok()["released"], &answer.ok()["writes"]), (&json!(true), &json!(5)));
    for _ in 0..10 {
        falling.care("the end");
        let_pass(25);
    }
    falling.care("the end");
    falling.tell_all_again(&mut [&mut raw]);
    assert_eq!(raw.finish(&release), answer);
    assert_eq!(seen(&mut other), all);
    let keys = other.ok("prefix", json!({"prefix": ""}))["items"].clone();
    assert!(keys.as_array().unwrap().iter().all(|item| item["version"] == answer.ok()["op"]), "{keys}");
    let exit = falling.server.terminate();
    assert!(exit.status.success(), "{exit:?}");
    let on_disk = |name| fs::read_to_string(falling.server.file(name)).unwrap();
    assert_eq!((on_disk("log"), on_disk("new")), (all.1, all.2));
    !falling.fell_in.is_empty()
}

#[test]
fn killed_at_any_step_of_a_release_the_section_is_there_whole_or_not_at_all() {
    if !has_failpoints() {
        return;
    }
    let points = ["journal.before_sync", "journal.after_sync", "server.before_reply", "image.before_write"];
    for point in points.iter().chain(&["image.after_write", "image.before_sync", "image.after_record"]) {
        let mut falls = 0;
        for pass in 1..=PASSES_MAX {
            assert!(pass < PASSES_MAX, "{point} is passed more often than the test allows for");
            if !section_is_released(format!("{point}=kill@{pass}")) {
                break;
            }
            falls += 1;
        }
        assert!(falls > 0, "{point} was never passed");
    }
}

/// What one worker did: the names of its sections, and whether each was released.
type Told = BTreeMap<String, bool>;

/// Sections of two keys and two files, one after another: some released, some abandoned, some left to die with their session.
fn worker(to: SocketAddr, number: u64, seed: u64, stop: &AtomicBool) -> Told {
    let mut rng = fastrand::Rng::with_seed(mix(&[seed, number]));
    let mut told = Told::new();
    let open = |ttl_ms| {
        let mut raw = Raw::new(to);
        raw.patience = Duration::from_secs(120);
        raw.acks = true;
        raw.open_session(ttl_ms);
        raw
    };
    let mut raw = open(60_000);
    for section in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{number}.{section}");
        let asked = raw.call("acquire_lock", json!({"keys": LOCKS, "atomic": true, "wait_ms": null}));
        let token = asked.token().unwrap_or_else(|| panic!("{name} was not granted: {asked:?}"));
        let mut writes = [
            ("set", json!({"key": "a", "value": name, "token": token})),
            ("set", json!({"key": "b", "value": name, "token": token})),
            ("append_file", json!({"file": "log", "data": format!("{name}\n"), "token": token})),
            ("append_file", json!({"file": "new", "data": format!("{name}\n"), "token": token})),
        ];
        rng.shuffle(&mut writes);
        let dies_at = if rng.u32(0..8) == 0 { rng.usize(0..5) } else { usize::MAX };
        for (index, (method, params)) in writes.into_iter().enumerate() {
            if index < dies_at {
                assert_eq!(raw.ok(method, params)["staged"], true);
            }
        }
        let released = dies_at == usize::MAX && rng.u32(0..4) > 0;
        if dies_at != usize::MAX {
            // As one that dies does, but without making the others wait for its lease.
            raw.ok("close_session", json!({}));
            raw = open(60_000);
        } else if released {
            assert_eq!(raw.ok("release_lock", json!({"token": token}))["writes"], 4);
        } else {
            raw.ok("abandon", json!({"token": token}));
        }
        told.insert(name, released);
    }
    told
}

#[test]
fn over_many_kills_each_section_of_two_keys_and_two_files_stands_whole_or_not_at_all() {
    let seed = seed();
    println!("TENURE_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut server = Server::start();
    let (to, stop) = (server.address(), AtomicBool::new(false));
    let told = thread::scope(|scope| {
        let stop = &stop;
        let workers: Vec<_> =
            (0..3).map(|number| scope.spawn(move || worker(to, number, seed, stop))).collect();
        let reader = scope.spawn(move || {
            let mut raw = Raw::new(to);
            raw.patience = Duration::from_secs(120);
            let mut looks = 0;
            while !stop.load(Ordering::Relaxed) {
                let items = raw.ok("prefix", json!({"prefix": ""}))["items"].clone();
                let items = items.as_array().unwrap();
                assert!(
                    items.is_empty() || items.len() == 2,
                    "one key of a section is there alone: {items:?}"
                );
                if let [a, b] = &items[..] {
                    let of = |item: &Value| (item["value"].clone(), item["version"].clone());
                    assert_eq!(of(a), of(b), "two sections are mixed");
                }
                looks += 1;
            }
            looks
        });
        for _ in 0..15 {
            let_pass(rng.u64(50..250));
            match rng.u32(0..4) {
                0 => {
                    server.signal(Signal::TERM);
                    server.ended();
                    server.start_again();
                }
                _ => server.kill_and_restart(),
            }
        }
        let_pass(300);
        stop.store(true, Ordering::Relaxed);
        let told: Told = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        println!("the reader looked {} times", reader.join().unwrap());
        told
    });
    let mut raw = Raw::new(to);
    let (log, new) = (raw.read("log"), raw.read("new"));
    assert_eq!(log, new, "the two files of some section differ");
    let stand: Vec<&str> = log.lines().collect();
    let mut counted: BTreeMap<&str, u32> = BTreeMap::new();
    for line in &stand {
        *counted.entry(line).or_default() += 1;
    }
    for (name, released) in &told {
        let times = counted.remove(name.as_str()).unwrap_or(0);
        assert_eq!(times, u32::from(*released), "section {name} stands {times} times");
    }
    assert!(counted.is_empty(), "nobody made these: {counted:?}");
    let last = stand.last().map(|line| json!(line));
    assert_eq!(Some(raw.value("a")), last);
    println!("{} sections, {} of them released", told.len(), stand.len());
    assert!(stand.len() > 20 && told.len() > stand.len(), "too few sections to say anything");
    assert!(server.terminate().status.success());
    let on_disk = |name| fs::read_to_string(server.file(name)).unwrap();
    assert_eq!((on_disk("log"), on_disk("new")), (log, new));
}
