//! Many at once: sessions, locks, waits, a flood beside them, and all of them back after a kill. Figures are printed.
//!
//! `TENURE_CROWD` says how many sessions or waits there are, `TENURE_SOAK_SECONDS` how long the flood lasts:
//!
//! ```text
//! TENURE_CROWD=10000 TENURE_SOAK_SECONDS=600 cargo test --test crashes crowd -- --nocapture --test-threads 1
//! ```

use crate::harness::{Ask, Crowd, Server, Setup};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The TTL of the sessions of the crowd, milliseconds.
const TTL_MS: u64 = 20_000;

/// Locks that each session holds.
const LOCKS: usize = 2;

/// Requests of the crowd on their way at once.
const AT_ONCE: usize = 64;

/// Sessions that come back at once after a kill.
const BACK_AT_ONCE: usize = 1_000;

/// Waits of one session: below the cap, 256.
const WAITS: usize = 200;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

fn quiet() -> Setup {
    Setup { log: "warn", ..Setup::default() }
}

/// Whether every session still holds all its locks, and was told of no loss.
fn holds_all(beats: &[Value]) {
    for beat in beats {
        assert_eq!(beat["result"]["held"], LOCKS, "a session that was kept alive lost a lock: {beat}");
        assert_eq!(beat["result"].get("lost"), None, "{beat}");
    }
}

#[test]
fn a_crowd_keeps_its_locks_through_a_flood_and_comes_back_at_once_after_a_kill() {
    let sessions = number("TENURE_CROWD", 300);
    let seconds = number("TENURE_SOAK_SECONDS", 3);
    let mut server = Server::with(quiet());
    let mut crowd = Crowd::open(server.address(), sessions, TTL_MS);
    let mut tokens = Vec::new();
    for first in (0..sessions).step_by(500) {
        let asks = (first..sessions.min(first + 500)).flat_map(|of| {
            (0..LOCKS).map(move |lock| -> Ask {
                (of, "acquire_lock", json!({"key": format!("crowd/{of}/{lock}"), "owner": lock.to_string()}))
            })
        });
        let granted = crowd.ask(asks.collect(), AT_ONCE);
        tokens.extend(granted.iter().map(|answer| answer["result"]["token"].as_u64().expect("it is free")));
        crowd.beat(AT_ONCE);
    }

    let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut rounds, mut longest, mut cycles, mut slowest) = (0, Duration::ZERO, 0, Duration::ZERO);
    let mut memory = Vec::new();
    std::thread::scope(|scope| {
        let mut flooder = server.client(TTL_MS);
        let (over, sent) = (&over, &sent);
        scope.spawn(move || {
            let flood: Vec<_> = (0..64)
                .map(|of| {
                    flooder.prepare("set", json!({"key": format!("flood/{of}"), "value": "x".repeat(500)}))
                })
                .collect();
            while !over.load(Ordering::Relaxed) {
                flood.iter().for_each(|request| flooder.send(request));
                sent.fetch_add(flood.len() as u64, Ordering::Relaxed);
                // As fast as one core gives it, with a breath: the machine has two.
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        // If anything here fails, the flood must end too, or the scope waits for ever.
        let _guard = Over(over);
        let mut honest = server.client(TTL_MS);
        let began = Instant::now();
        while rounds < 3 || began.elapsed() < Duration::from_secs(seconds as u64) {
            let round = Instant::now();
            holds_all(&crowd.beat(AT_ONCE));
            longest = longest.max(round.elapsed());
            rounds += 1;
            for _ in 0..3 {
                let section = Instant::now();
                let token = honest.acquire("honest");
                honest.append("honest", token, "one line\n");
                honest.release(token);
                slowest = slowest.max(section.elapsed());
                cycles += 1;
            }
            memory.push(server.memory_now());
        }
    });
    let (first, last) = (memory[memory.len() / 4], *memory.last().unwrap());
    println!(
        "{sessions} sessions with {} locks for {seconds} s: {rounds} rounds of heartbeats, the longest {longest:?}, {} \
         sent again; beside a flood of {} datagrams {cycles} honest sections, the slowest {slowest:?}; memory {first} KiB, then {last} KiB",
        tokens.len(),
        crowd.resent,
        sent.load(Ordering::Relaxed)
    );
    // What a journal and a snapshot may hold for a while, and no more.
    assert!(last < first + first / 2 + 32 * 1024, "memory grows: {memory:?}");

    server.kill();
    let down = Instant::now();
    server.start_again();
    let up = down.elapsed();
    let resent = crowd.resent;
    holds_all(&crowd.beat(BACK_AT_ONCE));
    println!(
        "killed: serving after {up:?}, all {sessions} heard after {:?}, {BACK_AT_ONCE} at once, {} sent again",
        down.elapsed(),
        crowd.resent - resent
    );
    // Not only as many locks as before: the same grants.
    let mut asks: Vec<Ask> = Vec::new();
    for of in 0..sessions {
        let next = |lock: usize| tokens[of * LOCKS + lock];
        asks.extend((0..LOCKS).map(|lock| (of, "release_lock", json!({"token": next(lock)}))));
    }
    for answers in asks.chunks(1_000) {
        for answer in crowd.ask(answers.to_vec(), AT_ONCE) {
            assert_eq!(answer["result"]["released"], true, "{answer}");
        }
        crowd.beat(AT_ONCE);
    }
}

#[test]
fn a_long_line_is_served_in_order_over_a_kill_in_the_middle() {
    let waits = number("TENURE_CROWD", 400);
    let mut server = Server::with(quiet());
    let mut holder = server.client(3_600_000);
    let mut token = holder.acquire("one");
    let sessions = waits.div_ceil(WAITS);
    let mut crowd = Crowd::open(server.address(), sessions, 3_600_000);
    let of = |wait: usize| wait % sessions;
    let began = Instant::now();
    let mut line = Vec::new();
    for wait in 0..waits {
        let params = json!({"key": "one", "wait_ms": null, "owner": wait.to_string()});
        line.push(crowd.stand_in_line((of(wait), "acquire_lock", params)));
    }
    let stood = began.elapsed();
    let info = holder.ok("get_lock_info", json!({"key": "one", "limit": 1}));
    assert_eq!(info["queue_total"], waits, "{info}");
    holder.release(token);
    let began = Instant::now();
    for (wait, id) in line.iter().enumerate() {
        if wait == waits / 2 {
            server.kill();
            server.start_again();
            crowd.beat(AT_ONCE);
        }
        let answer = crowd.answer(*id);
        let next = answer["result"]["token"].as_u64().unwrap_or_else(|| panic!("wait {wait}: {answer}"));
        assert!(next > token, "wait {wait} has token {next} after {token}");
        token = next;
        let info = (wait % 50 == 0).then(|| holder.ok("get_lock_info", json!({"key": "one", "limit": 1})));
        if let Some(info) = info {
            assert_eq!(info["holders"][0]["token"], token, "{info}");
            assert_eq!(info["queue_total"], waits - wait - 1, "{info}");
        }
        let released = crowd.ask(vec![(of(wait), "release_lock", json!({"token": token, "got": [id]}))], 1);
        assert_eq!(released[0]["result"]["released"], true, "wait {wait}: {}", released[0]);
    }
    println!(
        "{waits} waits of {sessions} sessions for one lock: all stood after {stood:?}, all served in order after {:?}, a \
         kill included",
        began.elapsed()
    );
    assert!(!holder.is_locked("one"));
}

/// Ends the flood, whatever happens.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
