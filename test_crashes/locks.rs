//! The richer locks over kills: several at once in mixed modes, conversions, deadlocks, hand-overs, breaks, bounds on
//! tenures; and transactions and keys bound to sessions.
//!
//! The random tests (`over_many_kills_...`) print their seed. `TENURE_KILLS` says how many kills each makes.

use crate::harness::{
    Answer, ClientProcess, Direction, Faults, PATIENCE, Proxy, Raw, Sent, Server, has_failpoints, kills,
    let_pass, mix, poll_until, seed,
};
use crate::server::{Falling, PASSES_MAX};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The points at which a request may be caught by a kill.
const POINTS: [&str; 5] = [
    "journal.before_write",
    "journal.before_sync",
    "journal.after_sync",
    "server.before_reply",
    "server.after_reply",
];

/// For sweeps: before the record is there, and when all is done and nobody was told.
const BEFORE_AND_BEHIND: [&str; 2] = ["journal.before_write", "server.before_reply"];

/// A network that loses, doubles and reorders a little.
fn bad_network(server: &Server, seed: u64) -> Proxy {
    let proxy = Proxy::start(server.address(), seed);
    let faults = Faults { loss: 4, double: 10, reorder: 10, delay_ms: (0, 2) };
    proxy.set(Direction::ToServer, faults);
    proxy.set(Direction::ToClient, faults);
    proxy
}

fn patient(to: SocketAddr) -> Raw {
    let mut raw = Raw::new(to);
    raw.patience = Duration::from_secs(120);
    raw.acks = true;
    raw.open_session(60_000);
    raw
}

/// What those know of each other who make kills and those who go on over them.
#[derive(Debug, Default)]
struct Storm {
    over: AtomicBool,
    /// How much was done so far: a run in which nothing got done between two kills tests nothing.
    done: AtomicU64,
}

impl Storm {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Something that the test is about was done.
    fn did(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// If a test fails, its workers must end too, or the scope waits for ever.
struct EndsWithThis<'a>(&'a Storm);

impl Drop for EndsWithThis<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// Kills the server again and again, at any moment and at failpoints, while workers go on; gives what they say.
fn storm<T: Send>(
    default_kills: u64,
    workers: u64,
    work: impl Fn(SocketAddr, fastrand::Rng, &Storm) -> T + Sync,
) -> (Server, Vec<T>) {
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(mix(&[seed, 0]));
    let mut server = Server::start();
    let proxy = bad_network(&server, seed);
    let (to, storm) = (proxy.address(), Storm::default());
    let told = thread::scope(|scope| {
        let (work, storm) = (&work, &storm);
        let workers: Vec<_> = (1..=workers)
            .map(|number| {
                let rng = fastrand::Rng::with_seed(mix(&[seed, number]));
                scope.spawn(move || {
                    // One that fails ends the others.
                    let guard = EndsWithThis(storm);
                    let told = work(to, rng, storm);
                    std::mem::forget(guard);
                    told
                })
            })
            .collect();
        let guard = EndsWithThis(storm);
        let wait_for = |more: u64| {
            let before = storm.done.load(Ordering::Relaxed);
            poll_until("progress between two kills", || {
                (!storm.goes_on() || storm.done.load(Ordering::Relaxed) >= before + more).then_some(())
            });
        };
        for _ in 0..kills(default_kills) {
            wait_for(4);
            let_pass(rng.u64(0..100));
            server.kill();
            let_pass(rng.u64(0..30));
            if has_failpoints() && rng.bool() {
                fall_somewhere(&mut server, &mut rng);
            }
            server.start_again();
        }
        wait_for(8);
        drop(guard);
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    proxy.assert_fired();
    (server, told)
}

/// Starts the server with a failpoint among [`POINTS`] and lets it fall there, or kills it after a while.
fn fall_somewhere(server: &mut Server, rng: &mut fastrand::Rng) {
    let point = POINTS[rng.usize(0..POINTS.len())];
    server.setup.failpoint = Some(format!("{point}=kill@{}", rng.u32(2..40)));
    if server.launch().is_err() {
        return;
    }
    let until = Instant::now() + Duration::from_millis(400);
    while server.fallen().is_none() {
        if Instant::now() > until {
            server.kill();
            return;
        }
        let_pass(2);
    }
}

/// At the end of a test nobody holds and nobody waits.
fn nothing_is_left(raw: &mut Raw) {
    for list in ["list_grants", "list_waits", "list_locks"] {
        assert_eq!(raw.ok(list, json!({}))["items"], json!([]), "{list}");
    }
}

fn granted(answer: &Answer) -> u64 {
    answer.token().unwrap_or_else(|| panic!("no grant: {}", answer.0))
}

/// Fails the test unless the token is nobody's.
fn is_dead(raw: &mut Raw, key: &str, token: u64) {
    raw.refused("set", json!({"key": key, "value": "late", "token": token}), "not_holder");
}

// Several locks in mixed modes.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Exclusive,
    Shared,
    Slot(u64),
}

const SLOTS: u64 = 3;

#[derive(Debug, Default)]
struct Believed {
    holders: BTreeMap<u64, Mode>,
    /// The greatest token seen so far: of exclusive holders, of readers, of holders of slots.
    last: [u64; 3],
}

/// Who holds what, as the clients believe: a tenure begins for them later than it began and ends before it ended, so what
/// overlaps here did overlap.
#[derive(Debug, Default)]
struct Judge(Mutex<BTreeMap<String, Believed>>);

impl Judge {
    fn begins(&self, asks: &[(String, Mode)], token: u64) {
        let mut locks = self.0.lock().unwrap();
        for (key, mode) in asks {
            let lock = locks.entry(key.clone()).or_default();
            let taken = |mode: &Mode| if let Mode::Slot(weight) = mode { *weight } else { 0 };
            let together: u64 = taken(mode) + lock.holders.values().map(taken).sum::<u64>();
            for other in lock.holders.values() {
                let fits = match (mode, other) {
                    (Mode::Shared, Mode::Shared) => true,
                    (Mode::Slot(_), Mode::Slot(_)) => together <= SLOTS,
                    _ => false,
                };
                assert!(fits, "{key} is held {mode:?} under {token} beside {:?}", lock.holders);
            }
            let kind = match mode {
                Mode::Exclusive => 0,
                Mode::Shared => 1,
                Mode::Slot(_) => 2,
            };
            for (other, last) in lock.last.iter().enumerate() {
                let together = other == kind && kind != 0;
                assert!(together || *last < token, "{key}: token {token} came after {last}");
            }
            lock.last[kind] = lock.last[kind].max(token);
            lock.holders.insert(token, *mode);
        }
    }

    fn ends(&self, asks: &[(String, Mode)], token: u64) {
        let mut locks = self.0.lock().unwrap();
        for (key, _) in asks {
            assert!(locks.get_mut(key).unwrap().holders.remove(&token).is_some());
        }
    }
}

/// Tenures of one to three locks in modes of their own, until it is told to stop. Gives how often each key was written.
fn mixed(
    judge: &Judge,
    to: SocketAddr,
    mut rng: fastrand::Rng,
    storm: &Storm,
) -> (u64, BTreeMap<String, u64>) {
    let (mut raw, mut tenures, mut written) = (patient(to), 0, BTreeMap::new());
    while storm.goes_on() {
        let mut names = ["a", "b", "c", "d"];
        rng.shuffle(&mut names);
        let asks: Vec<(String, Mode)> = names[..rng.usize(1..=3)]
            .iter()
            .map(|name| {
                let mode = [Mode::Exclusive, Mode::Shared, Mode::Slot(rng.u64(1..=SLOTS))][rng.usize(0..3)];
                ((*name).to_owned(), mode)
            })
            .collect();
        let keys: Vec<Value> = asks
            .iter()
            .map(|(key, mode)| match mode {
                Mode::Exclusive => json!(key),
                Mode::Shared => json!({"key": key, "mode": "shared"}),
                Mode::Slot(weight) => json!({"key": key, "mode": "slot", "slots": SLOTS, "weight": weight}),
            })
            .collect();
        let wait = [json!(null), json!(rng.u64(1..200)), json!(0)][rng.usize(0..3)].clone();
        let answer = raw.call("acquire_lock", json!({"keys": keys, "wait_ms": wait}));
        let Some(token) = answer.token() else {
            assert!(!wait.is_null(), "a wait without limit gave up: {}", answer.0);
            assert_eq!(answer.ok()["granted"], false);
            continue;
        };
        judge.begins(&asks, token);
        tenures += 1;
        storm.did();
        for (key, mode) in &asks {
            match mode {
                Mode::Exclusive => {
                    let read = raw.ok("get", json!({"key": key}));
                    let (count, version) = (read["value"].as_u64().unwrap_or(0), read["version"].as_u64());
                    // A second writer under the lock would be noticed here.
                    let params = json!({"key": key, "value": count + 1, "token": token,
                        "if_version": version.unwrap_or(0)});
                    assert!(raw.ok("set", params)["version"].is_u64());
                    raw.append(key, token, &format!("{token}\n"));
                    *written.entry(key.clone()).or_default() += 1;
                }
                Mode::Shared => {
                    let before = raw.ok("get", json!({"key": key}));
                    raw.refused("set", json!({"key": key, "value": 0, "token": token}), "not_holder");
                    let after = raw.ok("get", json!({"key": key}));
                    assert_eq!(before["version"], after["version"], "{key} was written among readers");
                }
                Mode::Slot(_) => {}
            }
        }
        judge.ends(&asks, token);
        match rng.u32(0..12) {
            0 => {
                raw.ok("close_session", json!({}));
                raw = patient(to);
            }
            1 => assert_eq!(raw.ok("abandon", json!({"token": token}))["released"], true),
            _ => raw.release(token),
        }
    }
    raw.ok("close_session", json!({}));
    (tenures, written)
}

#[test]
fn over_many_kills_several_locks_in_mixed_modes_exclude_whom_they_should() {
    let judge = Judge::default();
    let (server, told) = storm(7, 5, |to, rng, storm| mixed(&judge, to, rng, storm));
    let mut raw = server.client(60_000);
    let tenures: u64 = told.iter().map(|(tenures, _)| tenures).sum();
    println!("{tenures} tenures");
    assert!(tenures > 20, "too few tenures to say anything");
    for key in ["a", "b", "c", "d"] {
        let written: u64 = told.iter().filter_map(|(_, written)| written.get(key)).sum();
        assert_eq!(raw.value(key).as_u64().unwrap_or(0), written, "{key}");
        let file = raw.read(key);
        let tokens: Vec<u64> = file.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(tokens.len() as u64, written, "{key}");
        assert!(tokens.is_sorted_by(|one, two| one < two), "the tokens of {key} fall: {tokens:?}");
    }
    raw.ok("close_session", json!({}));
    nothing_is_left(&mut Raw::new(server.address()));
}

// Conversions.

/// What became of the conversions of a worker.
#[derive(Debug, Default)]
struct Conversions {
    up: u64,
    down: u64,
    deadlocks: u64,
}

fn converter(judge: &Judge, to: SocketAddr, mut rng: fastrand::Rng, storm: &Storm) -> Conversions {
    let (mut raw, mut told) = (patient(to), Conversions::default());
    let one = |mode| vec![("m".to_owned(), mode)];
    while storm.goes_on() {
        let shared = raw.call("acquire_lock", json!({"key": "m", "mode": "shared", "wait_ms": null}));
        let shared = granted(&shared);
        judge.begins(&one(Mode::Shared), shared);
        // From here on it may be exclusive: then nobody else is a reader any more.
        let upgrade = raw.prepare("convert_lock", json!({"token": shared, "key": "m", "wait_ms": null}));
        judge.ends(&one(Mode::Shared), shared);
        let answer = raw.finish(&upgrade);
        if answer.kind() == Some("deadlock") {
            told.deadlocks += 1;
            assert_eq!(raw.finish(&upgrade), answer, "the same request is told otherwise");
            raw.release(shared);
            continue;
        }
        let token = granted(&answer);
        assert!(token > shared, "an upgrade keeps its token");
        judge.begins(&one(Mode::Exclusive), token);
        told.up += 1;
        storm.did();
        assert_eq!(raw.finish(&upgrade), answer, "the same request is told otherwise");
        is_dead(&mut raw, "m", shared);
        let count = raw.value("m").as_u64().unwrap_or(0);
        raw.ok("set", json!({"key": "m", "value": count + 1, "token": token}));
        judge.ends(&one(Mode::Exclusive), token);
        if rng.bool() {
            let params = json!({"token": token, "key": "m", "mode": "shared"});
            let down = raw.prepare("convert_lock", params);
            let answer = raw.finish(&down);
            assert_eq!(granted(&answer), token, "a downgrade has another token");
            told.down += 1;
            raw.refused("set", json!({"key": "m", "value": 0, "token": token}), "not_holder");
        }
        raw.release(token);
    }
    raw.ok("close_session", json!({}));
    told
}

#[test]
fn over_many_kills_each_upgrade_is_made_once_and_nobody_hangs() {
    let judge = Judge::default();
    let (server, told) = storm(7, 4, |to, rng, storm| converter(&judge, to, rng, storm));
    let sum = |of: fn(&Conversions) -> u64| told.iter().map(of).sum::<u64>();
    let (up, down, deadlocks) = (sum(|told| told.up), sum(|told| told.down), sum(|told| told.deadlocks));
    println!("{up} up, {down} down, {deadlocks} refused");
    assert!(up > 10 && down > 0 && deadlocks > 0, "too few conversions to say anything");
    let mut raw = Raw::new(server.address());
    assert_eq!(raw.value("m"), json!(up), "an upgrade was counted twice or not at all");
    nothing_is_left(&mut raw);
    // So say the events, as far as they are kept.
    let (mut events, mut cursor) = (Vec::new(), json!({"after": 0}));
    loop {
        let answer = raw.call("watch", cursor);
        if answer.kind() == Some("compacted") {
            println!("SKIP: the history does not go back to the first conversion any more");
            return;
        }
        let page = answer.ok();
        let items = page["events"].as_array().unwrap();
        if items.is_empty() {
            break;
        }
        events.extend(items.iter().cloned());
        cursor = json!({"cursor": page["next"]});
    }
    let converted: Vec<_> = events.iter().filter(|event| event["event"] == "lock_converted").collect();
    let ups = converted.iter().filter(|event| event["before"].is_u64()).count() as u64;
    assert_eq!((ups, converted.len() as u64), (up, up + down));
}

// Deadlocks.

/// Sends a request that is to wait until the server has said that it does.
fn stands(falling: &mut Falling, raw: &mut Raw, sent: &Sent) {
    let start = Instant::now();
    while raw.notified("pending", Duration::from_millis(50)).is_none() {
        falling.care("a wait");
        raw.send(sent);
        assert!(start.elapsed() < PATIENCE, "no place in line");
    }
}

fn opened(falling: &mut Falling, raw: &mut Raw) {
    raw.open_session_with(600_000, || falling.care("open"));
}

/// Kills at each pass of each point in turn until the scenario comes through whole.
fn sweep(points: &[&str], scenario: impl Fn(String) -> bool) {
    if !has_failpoints() {
        return;
    }
    for point in points {
        let mut falls = 0;
        for pass in 1..=PASSES_MAX {
            assert!(pass < PASSES_MAX, "{point} is passed more often than the test allows for");
            if !scenario(format!("{point}=kill@{pass}")) {
                break;
            }
            falls += 1;
        }
        assert!(falls > 0, "{point} was never passed");
    }
}

/// Three who would wait for each other, over an exclusive lock, a shared one and slots. Gives whether the server fell.
fn a_cycle_is_refused(failpoint: String) -> bool {
    let mut falling = Falling::start(failpoint, None);
    let to = falling.server.address();
    let mut raws = [Raw::new(to), Raw::new(to), Raw::new(to)];
    for raw in &mut raws {
        opened(&mut falling, raw);
    }
    let [first, second, third] = &mut raws;
    let sent = first.prepare("acquire_lock", json!({"key": "x"}));
    falling.call("0 x", first, sent).token().unwrap();
    let sent = second.prepare("acquire_lock", json!({"key": "y", "mode": "shared"}));
    let reader = falling.call("1 y", second, sent).token().unwrap();
    let slot = |weight| json!({"key": "pool", "mode": "slot", "slots": 2, "weight": weight});
    let sent = third.prepare("acquire_lock", json!({"keys": [slot(1)]}));
    let pool = falling.call("2 pool", third, sent).token().unwrap();

    let on_y = first.prepare("acquire_lock", json!({"key": "y", "wait_ms": null}));
    stands(&mut falling, first, &on_y);
    let on_pool = second.prepare("acquire_lock", json!({"keys": ["z", slot(2)], "wait_ms": null}));
    stands(&mut falling, second, &on_pool);
    let closing = |third: &mut Raw| {
        third.prepare("acquire_lock", json!({"key": "x", "mode": "shared", "wait_ms": null}))
    };
    let sent = closing(third);
    let refused = falling.call("2 x", third, sent.clone());
    let cycle = refused.refused("deadlock").clone();
    let steps: Vec<&Value> = cycle["cycle"].as_array().unwrap().iter().map(|step| &step["key"]).collect();
    assert_eq!(steps, ["x", "y", "pool"]);
    assert_eq!(cycle["cycle"][2]["token"], json!(pool));

    // The same before and after, told again and asked anew.
    falling.server.kill_and_restart();
    assert_eq!(third.finish(&sent), refused);
    assert_eq!(third.call("acquire_lock", json!({"key": "x", "mode": "shared"})).ok()["reason"], "held");
    let sent = closing(third);
    assert_eq!(*falling.call("2 x again", third, sent).refused("deadlock"), cycle);

    // Nobody hangs: letting go of any one serves all.
    let sent = third.prepare("release_lock", json!({"token": pool}));
    falling.call("2 release", third, sent).ok();
    let both = falling.call("1 pool", second, on_pool).token().unwrap();
    let sent = second.prepare("release_lock", json!({"token": reader}));
    falling.call("1 release y", second, sent).ok();
    assert!(falling.call("0 y", first, on_y).token().unwrap() > both);
    !falling.fell_in.is_empty()
}

#[test]
fn killed_at_any_step_around_a_deadlock_the_verdict_is_the_same_and_nobody_hangs() {
    sweep(&BEFORE_AND_BEHIND, a_cycle_is_refused);
}

/// Takes one fork, then waits for another whoever has it; who is refused lays down what it has.
fn philosopher(to: SocketAddr, mut rng: fastrand::Rng, storm: &Storm) -> (u64, u64) {
    let (mut raw, mut meals, mut refused) = (patient(to), 0, 0);
    while storm.goes_on() {
        let mut forks = ["0", "1", "2", "3"];
        rng.shuffle(&mut forks);
        let mut held = Vec::new();
        for fork in &forks[..3] {
            let mode = if rng.u32(0..3) == 0 { "shared" } else { "exclusive" };
            let sent = raw.prepare("acquire_lock", json!({"key": fork, "mode": mode, "wait_ms": null}));
            let answer = raw.finish(&sent);
            if let Some(cycle) = answer.kind().map(|_| answer.refused("deadlock")) {
                refused += 1;
                assert!(cycle["cycle_total"].as_u64().unwrap() >= 2);
                assert_eq!(cycle["cycle"][0]["client"], json!(raw.client));
                assert_eq!(raw.finish(&sent), answer, "the same request is told otherwise");
                break;
            }
            held.push(granted(&answer));
        }
        if held.len() == 3 {
            meals += 1;
            storm.did();
        }
        for token in held {
            raw.release(token);
        }
    }
    raw.ok("close_session", json!({}));
    (meals, refused)
}

#[test]
fn over_many_kills_those_who_would_wait_for_each_other_are_told_and_all_the_others_finish() {
    let (server, told) = storm(7, 5, philosopher);
    let (meals, refused): (u64, u64) =
        told.iter().fold((0, 0), |sum, (meals, refused)| (sum.0 + meals, sum.1 + refused));
    println!("{meals} meals, {refused} refused");
    assert!(meals > 10 && refused > 0, "too few meals to say anything");
    nothing_is_left(&mut Raw::new(server.address()));
}

// Transactions, and keys that are bound to a session.

#[test]
fn over_many_kills_the_two_keys_of_a_transaction_are_always_equal() {
    let applied = AtomicU64::new(0);
    let (server, looks) = storm(7, 4, |to, mut rng, storm| {
        let (mut raw, mut looks) = (patient(to), 0);
        while storm.goes_on() {
            let items = raw.ok("prefix", json!({"prefix": "t"}))["items"].clone();
            let of = |field: &str| {
                let all: BTreeSet<u64> =
                    items.as_array().unwrap().iter().map(|item| item[field].as_u64().unwrap()).collect();
                assert!(all.len() <= 1, "a part of a transaction is there: {items}");
                all.first().copied().unwrap_or(0)
            };
            let (value, version) = (of("value"), of("version"));
            looks += 1;
            if rng.bool() {
                continue;
            }
            let sent = raw.prepare(
                "transaction",
                json!({
                    "compare": [{"key": "t1", "version": version}, {"key": "t2", "version": version}],
                    "apply": [{"key": "t1", "value": value + 1}, {"key": "t2", "value": value + 1}],
                }),
            );
            let answer = raw.finish(&sent);
            assert_eq!(raw.finish(&sent), answer, "the same request is told otherwise");
            match answer.kind() {
                Some(_) => {
                    answer.refused("version_mismatch");
                }
                None => {
                    assert!(answer.ok()["version"].as_u64().unwrap() > version);
                    applied.fetch_add(1, Ordering::Relaxed);
                    storm.did();
                }
            }
        }
        looks
    });
    let mut raw = Raw::new(server.address());
    let applied = applied.into_inner();
    println!("{applied} transactions, {} looks", looks.iter().sum::<u64>());
    assert!(applied > 20, "too few transactions to say anything");
    assert_eq!((raw.value("t1"), raw.value("t2")), (json!(applied), json!(applied)));
}

#[test]
fn keys_bound_to_a_session_outlive_kills_of_the_server_and_go_with_their_client() {
    let mut server = Server::start();
    let mut raw = server.client(600_000);
    let mut lives = ClientProcess::start(server.address(), 2_000, true);
    let mut dies = ClientProcess::start(server.address(), 2_000, true);
    for (client, key) in [(&mut lives, "here/lives"), (&mut dies, "here/dies")] {
        client.call("set", json!({"key": key, "value": 1, "bound": true})).ok();
    }
    raw.set("here/plain", json!(1));
    let names = |raw: &mut Raw| -> Vec<String> {
        let items = raw.ok("prefix", json!({"prefix": "here/"}))["items"].clone();
        items.as_array().unwrap().iter().map(|item| item["key"].as_str().unwrap().to_owned()).collect()
    };
    for _ in 0..3 {
        server.kill_and_restart();
        assert_eq!(names(&mut raw), ["here/dies", "here/lives", "here/plain"]);
    }
    // Its death and one of the server's: its lease begins anew once, and then its keys are gone, also over one more.
    dies.kill();
    server.kill_and_restart();
    let start = Instant::now();
    assert_eq!(names(&mut raw).len(), 3, "a session has its whole TTL after a restart");
    poll_until("the key of the dead to go", || (names(&mut raw).len() == 2).then_some(()));
    assert!(start.elapsed() > Duration::from_millis(1_500), "it went after {:?}", start.elapsed());
    for _ in 0..2 {
        assert_eq!(names(&mut raw), ["here/lives", "here/plain"]);
        server.kill_and_restart();
    }
    lives.call("close_session", json!({})).ok();
    server.kill_and_restart();
    assert_eq!(names(&mut raw), ["here/plain"]);
}

// Hand-overs and breaks.

/// Hands a grant over, takes it over and breaks it. Gives whether the server fell.
fn a_grant_goes_from_hand_to_hand(failpoint: String) -> bool {
    let mut falling = Falling::start(failpoint, None);
    let to = falling.server.address();
    let mut raws = [Raw::new(to), Raw::new(to), Raw::new(to)];
    for raw in &mut raws {
        opened(&mut falling, raw);
    }
    let mut watcher = Raw::new(to);
    let [first, second, third] = &mut raws;
    let sent = first.prepare("acquire_lock", json!({"key": "job", "label": "l"}));
    let token = falling.call("0 acquire", first, sent).token().unwrap();
    let wait = third.prepare("acquire_lock", json!({"key": "job", "wait_ms": null}));
    stands(&mut falling, third, &wait);
    let sent = first.prepare("hand_over", json!({"token": token, "client": second.client}));
    assert_eq!(falling.call("0 offer", first, sent).ok()["offered"], true);

    // A fall in the take-over: one of the two holds it, whoever looks and whenever.
    let take = second.prepare("take_over", json!({"token": token}));
    let clients = [first.client, second.client, third.client];
    let mut falls = falling.fell_in.len();
    let answer = second.finish_with(&take, || {
        falling.care("1 take-over");
        if falling.fell_in.len() > falls {
            falls = falling.fell_in.len();
            let info = watcher.ok("get_lock_info", json!({"key": "job"}));
            let holders = info["holders"].as_array().unwrap();
            assert_eq!(holders.len(), 1, "{info}");
            let holder = &holders[0];
            let old = holder["client"] == json!(clients[0]) && holder["token"] == json!(token);
            let new = holder["client"] == json!(clients[1]) && holder["token"].as_u64() > Some(token);
            assert!(old || new, "{info}");
            assert_eq!(info["queue"][0]["client"], json!(clients[2]), "the line moved");
        }
    });
    let taken = granted(&answer);
    assert!(taken > token);
    let sent = first.prepare("set", json!({"key": "job", "value": "late", "token": token}));
    falling.call("0 late", first, sent).refused("not_holder");
    let sent = second.prepare("set", json!({"key": "job", "value": "mine", "token": taken}));
    falling.call("1 set", second, sent).ok();

    let breaking = first.prepare("break_lock", json!({"token": taken, "reason": "stuck"}));
    let broken = falling.call("0 break", first, breaking.clone());
    assert_eq!(broken.ok()["broken"], true);
    let next = falling.call("2 granted", third, wait).token().unwrap();
    assert!(next > taken);
    let sent = second.prepare("set", json!({"key": "job", "value": "late", "token": taken}));
    falling.call("1 late", second, sent).refused("not_holder");
    let lost = |raw: &mut Raw, falling: &mut Falling| {
        let sent = raw.prepare("heartbeat", json!({"after": 0}));
        raw.finish_with(&sent, || falling.care("heartbeat")).ok()["lost"].clone()
    };
    let why = |lost: &Value| (lost[0]["reason"].clone(), lost[0]["note"].clone(), lost[0]["token"].clone());
    assert_eq!(why(&lost(first, &mut falling)), (json!("taken_over"), Value::Null, json!(token)));
    let told = lost(second, &mut falling);
    assert_eq!(why(&told), (json!("broken"), json!("stuck"), json!(taken)));
    for _ in 0..4 {
        falling.care("the end");
        let_pass(25);
    }
    falling.care("the end");
    falling.tell_all_again(&mut [first, second, third]);
    // A break that comes again, also after a kill, breaks nothing more.
    assert_eq!(first.finish(&breaking), broken);
    assert_eq!(second.finish(&take), answer);
    assert_eq!(watcher.holder("job"), Some(third.client));
    assert_eq!(watcher.value("job"), "mine");
    third.release(next);
    assert!(!watcher.is_locked("job"));
    !falling.fell_in.is_empty()
}

#[test]
fn killed_at_any_step_of_a_take_over_or_a_break_exactly_one_holds() {
    sweep(&BEFORE_AND_BEHIND, a_grant_goes_from_hand_to_hand);
}

#[test]
fn over_many_kills_a_grant_that_is_handed_round_has_exactly_one_holder() {
    // The grant goes round; the server is told of each round by a key, under the token of whoever has it.
    let rounds = AtomicU64::new(0);
    let (first, mut last) = (AtomicBool::new(true), None);
    let (server, told) = storm(6, 2, |to, mut rng, storm| {
        if !first.swap(false, Ordering::Relaxed) {
            // The observer: from the first holder on there is always one, and the tokens rise.
            let (mut raw, mut seen, mut looks) = (patient(to), 0, 0);
            while storm.goes_on() {
                let info = raw.ok("get_lock_info", json!({"key": "r"}));
                let total = info["holders_total"].as_u64().unwrap();
                assert!(total == 1 || total == 0 && seen == 0, "{total} hold it: {info}");
                let token = info["holders"][0]["token"].as_u64().unwrap_or(0);
                assert!(token >= seen, "token {token} after {seen}");
                (seen, looks) = (token, looks + 1);
            }
            assert!(looks > 20, "too few looks to say anything");
            return None;
        }
        let mut raws = [patient(to), patient(to), patient(to)];
        let (mut at, mut token) = (0, raws[0].acquire("r"));
        while storm.goes_on() {
            let next = (at + rng.usize(1..3)) % 3;
            let client = raws[next].client;
            let taken = if rng.bool() {
                raws[at].ok("hand_over", json!({"token": token, "client": client}));
                raws[next].prepare("take_over", json!({"token": token}))
            } else {
                let holder = raws[at].session.clone();
                raws[next].prepare("take_over", json!({"token": token, "holder": holder}))
            };
            let answer = raws[next].finish(&taken);
            assert_eq!(raws[next].finish(&taken), answer, "the same request is told otherwise");
            let new = granted(&answer);
            assert!(new > token);
            is_dead(&mut raws[at], "r", token);
            let round = rounds.fetch_add(1, Ordering::Relaxed) + 1;
            storm.did();
            raws[next].ok("set", json!({"key": "r", "value": round, "token": new}));
            (at, token) = (next, new);
        }
        Some(token)
    });
    for token in told.into_iter().flatten() {
        last = Some(token);
    }
    let mut raw = Raw::new(server.address());
    let rounds = rounds.into_inner();
    println!("{rounds} rounds");
    assert!(rounds > 10, "too few rounds to say anything");
    assert_eq!(raw.value("r"), json!(rounds));
    assert_eq!(raw.ok("get_lock_info", json!({"key": "r"}))["holders"][0]["token"], json!(last));
}

// Bounds of a tenure and of what comes behind it. They are counted in log time, which stands still while the server is down.

/// For how long the server has run, as somebody beside it measures: never less than log time has gone on.
struct Up {
    since: Instant,
    before: Duration,
}

impl Up {
    fn begin() -> Up {
        Up { since: Instant::now(), before: Duration::ZERO }
    }

    /// Ends the server in that way, lets time pass and starts it.
    fn outage(&mut self, server: &mut Server, signal: Signal) {
        server.signal(signal);
        server.ended();
        self.before += self.since.elapsed();
        let_pass(900);
        self.since = Instant::now();
        server.start_again();
    }

    fn time(&self) -> Duration {
        self.before + self.since.elapsed()
    }
}

/// A crash, after which the journal is read, and a stop, after which the snapshot is.
const OUTAGES: [Signal; 2] = [Signal::KILL, Signal::TERM];

#[test]
fn a_lock_delay_over_outages_is_not_shorter_than_asked_for() {
    let mut server = Server::start();
    let (mut first, mut second) = (server.client(600_000), server.client(600_000));
    let params = json!({"key": "d", "lock_delay_ms": 1_200});
    let token = granted(&first.call("acquire_lock", params));
    first.ok("set", json!({"key": "d", "value": 1, "token": token}));
    let wait = second.stand_in_line("d");
    let mut up = Up::begin();
    first.ok("abandon", json!({"token": token}));
    for signal in OUTAGES {
        up.outage(&mut server, signal);
        assert_eq!(second.listen(&wait, Duration::from_millis(1)), None);
        let tried = first.call("acquire_lock", json!({"key": "d"}));
        assert_eq!((tried.token(), &tried.ok()["reason"]), (None, &json!("lock_delay")));
        first.refused("set", json!({"key": "d", "value": 2}), "guarded");
        is_dead(&mut first, "d", token);
    }
    let next = second.granted(&wait);
    assert!(up.time() >= Duration::from_millis(1_200), "it was closed for {:?}", up.time());
    assert!(next > token);
    second.ok("set", json!({"key": "d", "value": 3, "token": next}));
}

#[test]
fn the_longest_tenure_over_outages_is_neither_cut_short_nor_prolonged() {
    let mut server = Server::start();
    let (mut first, mut second) = (server.client(600_000), server.client(600_000));
    let mut up = Up::begin();
    let token = granted(&first.call("acquire_lock", json!({"key": "h", "max_hold_ms": 1_200})));
    let wait = second.stand_in_line("h");
    let mut left = 1_200;
    for signal in OUTAGES {
        let_pass(50);
        first.ok("set", json!({"key": "h", "value": left, "token": token}));
        up.outage(&mut server, signal);
        let renewed = first.ok("renew_lease", json!({"token": token, "lease_ms": 60_000}));
        let now = renewed["lease_left_ms"].as_u64().unwrap();
        // Of the 50 ms at least; less for rounding and a server that was stalled.
        assert!(now + 25 < left, "{now} ms are left after {left}");
        left = now;
        assert_eq!(second.listen(&wait, Duration::from_millis(1)), None);
    }
    let start = Instant::now();
    let next = second.granted(&wait);
    assert!(up.time() >= Duration::from_millis(1_200), "it was held for {:?}", up.time());
    assert!(start.elapsed() < Duration::from_secs(10), "renewing prolonged it");
    assert!(next > token);
    is_dead(&mut first, "h", token);
    assert_eq!(first.ok("heartbeat", json!({"after": 0}))["lost"][0]["reason"], "held_too_long");
}

#[test]
fn the_deadline_of_an_asking_over_outages_is_kept_and_told_of() {
    let mut server = Server::start();
    let (mut first, mut second) = (server.client(600_000), server.client(600_000));
    let token = first.acquire("q");
    let wait = second.stand_in_line("q");
    let mut up = Up::begin();
    let mut operator = server.client(600_000);
    let params = json!({"token": token, "reason": "deploy", "deadline_ms": 1_200});
    let asking = operator.prepare("ask_release", params);
    let told = operator.finish(&asking);
    assert_eq!(told.ok()["asked"], true);
    let mut left = 1_200;
    for signal in OUTAGES {
        let_pass(50);
        first.ok("set", json!({"key": "q", "value": left, "token": token}));
        up.outage(&mut server, signal);
        // The same request again does not begin the deadline anew.
        assert_eq!(operator.finish(&asking), told);
        let asked = first.ok("heartbeat", json!({}))["asked"].clone();
        assert_eq!((&asked[0]["token"], &asked[0]["reason"]), (&json!(token), &json!("deploy")));
        let now = asked[0]["left_ms"].as_u64().unwrap();
        // Of the 50 ms at least; less for rounding and a server that was stalled.
        assert!(now + 25 < left, "{now} ms are left after {left}");
        left = now;
        assert_eq!(second.listen(&wait, Duration::from_millis(1)), None);
    }
    let start = Instant::now();
    let next = second.granted(&wait);
    assert!(up.time() >= Duration::from_millis(1_200), "it was broken after {:?}", up.time());
    assert!(start.elapsed() < Duration::from_secs(10), "asking again prolonged it");
    assert!(next > token);
    is_dead(&mut first, "q", token);
    let lost = first.ok("heartbeat", json!({"after": 0}))["lost"][0].clone();
    assert_eq!((&lost["reason"], &lost["note"]), (&json!("broken"), &json!("deploy")));
}
