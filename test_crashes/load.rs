//! Random SIGKILLs under load. `TENURE_KILLS` says how many; the figures are printed at the end:
//!
//! ```text
//! TENURE_KILLS=1000 cargo test --test crashes load -- --nocapture
//! ```

use crate::harness::{Life, Oracle, Server, Setup, Worker, kills, let_pass, mix, poll_until, seed};
use rustix::process::Signal;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const LOCKS: [&str; 3] = ["file_0", "file_1", "file_2"];
const WORKERS: u64 = 5;

#[test]
fn random_kills_under_load_lose_and_double_nothing() {
    run("sync", kills(8));
}

#[test]
fn random_kills_under_load_lose_nothing_that_was_handed_to_the_kernel() {
    run("os", kills(8) / 2);
}

/// Kills the server again and again while workers go on, then looks at everything.
fn run(durability: &'static str, kills: u64) {
    let seed = seed();
    let mut server = Server::with(Setup { durability, log: "info", ..Setup::default() });
    let oracle = Arc::new(Oracle::default());
    let stop = AtomicBool::new(false);
    let mut rng = fastrand::Rng::with_seed(mix(&[seed, 0]));
    std::thread::scope(|scope| {
        for number in 1..=WORKERS {
            let mut worker = Worker::new(server.address(), &oracle, &LOCKS, mix(&[seed, number]));
            let mut rng = fastrand::Rng::with_seed(mix(&[seed, number, 1]));
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    worker.section(if rng.u8(0..20) == 0 { Life::Short } else { Life::Long });
                }
            });
        }
        // If anything here fails, the workers must end too, or the scope waits for ever.
        let _guard = StopAtEnd(&stop);
        for _ in 0..kills {
            // A run in which nothing got done between two kills tests nothing.
            let before = oracle.acked_so_far();
            poll_until("progress between two kills", || (oracle.acked_so_far() > before + 5).then_some(()));
            std::thread::sleep(Duration::from_millis(rng.u64(0..150)));
            server.kill();
            std::thread::sleep(Duration::from_millis(rng.u64(0..50)));
            server.start_again();
        }
        let before = oracle.acked_so_far();
        poll_until("progress after the last kill", || (oracle.acked_so_far() > before + 20).then_some(()));
    });
    let mut raw = server.client(60_000);
    raw.acquire("the last request succeeds");
    let files = oracle.files().into_iter().map(|file| {
        let content = raw.read(&file);
        (file, content)
    });
    let files: BTreeMap<String, String> = files.collect();
    let keys = oracle.counters().into_iter().map(|key| {
        let value = raw.value(&key).as_u64().unwrap_or(0);
        (key, value)
    });
    let keys: BTreeMap<String, u64> = keys.collect();
    let verdict = oracle.judge(&files, &keys);
    println!("kills {kills}, durability {durability}");
    verdict.assert_clean();
    let exit = server.terminate();
    assert!(exit.status.success(), "{exit:?}");
    for (file, content) in &files {
        assert_eq!(
            fs::read_to_string(server.file(file)).unwrap(),
            *content,
            "{file} on disk differs from what it was read as"
        );
    }
    server.start_again();
    let mut raw = server.client(60_000);
    for (file, content) in &files {
        assert_eq!(raw.read(file), *content, "{file} is another after a clean stop");
    }
    assert_eq!(raw.ok("status", json!({}))["durability"], durability);
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn replies_a_thousand_times_as_large_as_their_requests_are_never_in_memory_together() {
    let server = Server::start();
    let mut raw = server.client(600_000);
    raw.set("k", json!("x".repeat(40_000)));
    let before = server.memory_peak();
    let get = json!({"jsonrpc": "2.0", "id": 0, "method": "get", "params": {"key": "k"}});
    server.signal(Signal::STOP);
    for number in 0..300 {
        // Reads alone, and reads that wait for a write.
        let mut batch = vec![get.clone(); 64];
        if number % 2 == 0 {
            let params = json!({"session": raw.session, "key": "other", "value": 1});
            batch[0] = json!({"jsonrpc": "2.0", "id": 1_000 + number, "method": "set", "params": params});
        }
        raw.send_bytes(json!(batch).to_string().as_bytes());
    }
    server.signal(Signal::CONT);
    poll_until("the last of them", || (raw.value("other") == json!(1)).then_some(()));
    let_pass(500);
    raw.ok("heartbeat", json!({}));
    let more = server.memory_peak() - before;
    assert!(more < 200_000, "{more} KiB for replies");
}
