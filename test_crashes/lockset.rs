//! The workload by which Jepsen found that etcd 3.4.3 loses some 18 % of what a lock was to protect: a lock guards a set,
//! clients add to it in critical sections of 0 to 2 s, sessions live for 2 s, and client processes are paused every 5 s.
//!
//! ```text
//! TENURE_LOCKSET_SECONDS=120 cargo test --test crashes lock_set -- --nocapture
//! ```
//!
//! Each set is kept twice on the server, guarded by its lock: in a file that is appended to, and in a key that is read at
//! the beginning of a section and written with one element more at its end. Half of the clients lose their session when they
//! are paused for too long, half only their grant, which has a lease of its own. Beside it, under locks of the same server and
//! with the same pauses, other clients keep sets in plain files: they read, and write back, with nobody to check whether
//! the lock is still theirs. What those lose is printed, to show what the check is for.

use crate::harness::{Raw, Server, Setup, let_pass, mix, seed};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const TTL_MS: u64 = 2_000;
const LONGEST_SECTION_MS: u64 = 2_000;
/// Every other client has a session that outlives its pauses, and a grant with a lease of its own.
const LONG_TTL_MS: u64 = 60_000;
const LEASE_MS: u64 = 2_500;
const PAUSE_EVERY_MS: u64 = 5_000;
/// How long a pause is: some end within the lease, some do not.
const PAUSES_MS: (u64, u64) = (500, 4_000);

#[test]
fn the_lock_set_of_jepsen_with_paused_clients_loses_and_doubles_nothing() {
    let seconds: u64 = std::env::var("TENURE_LOCKSET_SECONDS")
        .map_or(15, |text| text.parse().expect("TENURE_LOCKSET_SECONDS is a number"));
    let (sets, members) = if seconds < 60 { (4, 4) } else { (8, 5) };
    let seed = seed();
    let server = Server::with(Setup { log: "info", ..Setup::default() });
    let place = tempfile::Builder::new().prefix("tenure-plain-").tempdir().unwrap();
    let mut all = Vec::new();
    for (way, number) in
        [Way::Guarded, Way::Plain].into_iter().flat_map(|way| (0..sets).map(move |n| (way, n)))
    {
        for member in 0..members {
            all.push(Member::start(server.address(), way, number, member, seed, place.path()));
        }
    }
    let (stop, pauses) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for (number, member) in all.iter().enumerate() {
            let (stop, pauses, rng) =
                (&stop, &pauses, fastrand::Rng::with_seed(mix(&[seed, number as u64, 9])));
            scope.spawn(move || pause_again_and_again(member, rng, stop, pauses));
        }
        let_pass(seconds * 1000);
        stop.store(true, Ordering::Relaxed);
    });
    let heard: Vec<(Way, u64, Heard)> = all.into_iter().map(|m| (m.way, m.set, m.end())).collect();
    let mut raw = server.client(60_000);
    let mut totals: BTreeMap<&str, Verdict> = BTreeMap::new();
    for (way, number) in
        [Way::Guarded, Way::Plain].into_iter().flat_map(|way| (0..sets).map(move |n| (way, n)))
    {
        let of_set = || heard.iter().filter(|(w, n, _)| (*w, *n) == (way, number)).map(|(_, _, heard)| heard);
        let name = way.name(number);
        if way == Way::Plain {
            let content = fs::read_to_string(place.path().join(&name)).unwrap_or_default();
            totals.entry("plain file, no check").or_default().add(of_set(), "file", &lines(&content));
            continue;
        }
        let content = raw.read(&name);
        let file = totals.entry("file").or_default();
        file.add(of_set(), "file", &lines(&content));
        file.stale += behind_their_time(&content);
        let value = raw.value(&name);
        let elements: Vec<u64> =
            value.as_array().into_iter().flatten().map(|element| element.as_u64().unwrap()).collect();
        totals.entry("key").or_default().add(of_set(), "key", &elements);
    }
    println!("{seconds} s, {sets} sets of {members} clients each way, {} pauses", pauses.into_inner());
    for (name, verdict) in &totals {
        println!("{name}: {verdict:?}");
    }
    for name in ["file", "key"] {
        let verdict = &totals[name];
        assert!(verdict.acknowledged >= sets * seconds / 6, "too little was done to show anything");
        let wrong = [verdict.lost, verdict.doubled, verdict.strange, verdict.stale];
        assert_eq!(wrong, [0; 4], "{name}: {verdict:?}");
        assert!(verdict.refused > 0, "no pause outlasted a lease in a section");
    }
}

/// Who checks that the lock is still held when the set is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The server.
    Guarded,
    /// Nobody.
    Plain,
}

impl Way {
    fn name(self, set: u64) -> String {
        match self {
            Way::Guarded => format!("set-{set}"),
            Way::Plain => format!("plain-{set}"),
        }
    }
}

/// What a client said.
#[derive(Debug, Default)]
struct Heard {
    /// By store and element: whether it was acknowledged; none if the client was ended before it knew.
    adds: BTreeMap<(String, u64), Option<bool>>,
}

#[derive(Debug, Default)]
struct Verdict {
    acknowledged: u64,
    /// Refused, since the grant was over.
    refused: u64,
    /// Acknowledged and not there.
    lost: u64,
    /// There more than once.
    doubled: u64,
    /// There although refused or never sent.
    strange: u64,
    /// Appended under a token after one under a greater token.
    stale: u64,
}

impl Verdict {
    fn add<'a>(&mut self, heard: impl Iterator<Item = &'a Heard>, store: &str, elements: &[u64]) {
        let known: BTreeMap<u64, Option<bool>> = heard
            .flat_map(|heard| &heard.adds)
            .filter(|((of, _), _)| of == store)
            .map(|((_, element), fate)| (*element, *fate))
            .collect();
        let there: BTreeSet<u64> = elements.iter().copied().collect();
        self.doubled += (elements.len() - there.len()) as u64;
        for (element, fate) in &known {
            self.acknowledged += u64::from(*fate == Some(true));
            self.refused += u64::from(*fate == Some(false));
            self.lost += u64::from(*fate == Some(true) && !there.contains(element));
            self.strange += u64::from(*fate == Some(false) && there.contains(element));
        }
        self.strange += there.iter().filter(|element| !known.contains_key(element)).count() as u64;
    }
}

/// The elements of a file: the first word of each line.
fn lines(content: &str) -> Vec<u64> {
    content.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect()
}

/// How many lines stand behind one of a later holder. The second word is the token.
fn behind_their_time(content: &str) -> u64 {
    let tokens: Vec<u64> =
        content.lines().map(|line| line.split_once(' ').unwrap().1.parse().unwrap()).collect();
    tokens.windows(2).filter(|pair| pair[0] >= pair[1]).count() as u64
}

fn pause_again_and_again(member: &Member, mut rng: fastrand::Rng, stop: &AtomicBool, pauses: &AtomicU64) {
    let start = Instant::now();
    let mut next = Duration::from_millis(rng.u64(500..PAUSE_EVERY_MS));
    while !stop.load(Ordering::Relaxed) {
        if start.elapsed() < next {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        member.signal(Signal::STOP);
        std::thread::sleep(Duration::from_millis(rng.u64(PAUSES_MS.0..PAUSES_MS.1)));
        member.signal(Signal::CONT);
        pauses.fetch_add(1, Ordering::Relaxed);
        next += Duration::from_millis(PAUSE_EVERY_MS);
    }
}

/// A client as a process. Killed when dropped.
struct Member {
    way: Way,
    set: u64,
    child: Child,
    reader: Option<JoinHandle<Heard>>,
}

impl Member {
    fn start(to: SocketAddr, way: Way, set: u64, number: u64, seed: u64, place: &Path) -> Member {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["lockset::as_a_member", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let plain = (way == Way::Plain).then(|| place.join(way.name(set)));
        let start = json!({
            "to": to.to_string(), "lock": way.name(set), "plain": plain, "number": number,
            "seed": mix(&[seed, way as u64, set, number]),
        });
        writeln!(child.stdin.take().unwrap(), "{start}").unwrap();
        let stdout = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut heard = Heard::default();
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // What else stands on stdout is the test runner's.
                let Some(told) = line.strip_prefix('@') else { continue };
                // The last line may be cut by the kill.
                let Ok(told) = serde_json::from_str::<Value>(told) else { continue };
                let add = (told["store"].as_str().unwrap().to_owned(), told["element"].as_u64().unwrap());
                heard.adds.insert(add, told["acknowledged"].as_bool());
            }
            heard
        });
        Member { way, set, child, reader: Some(reader) }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends it and gives what it said.
    fn end(mut self) -> Heard {
        assert!(self.child.try_wait().unwrap().is_none(), "a client ended by itself");
        self.signal(Signal::KILL);
        self.reader.take().unwrap().join().unwrap()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a client process does. No test: [`Member::start`] runs it.
#[test]
#[ignore = "it is the inside of a client process and reads what to do on stdin"]
fn as_a_member() {
    let Some(Ok(first)) = std::io::stdin().lines().next() else { return };
    let start: Value = serde_json::from_str(&first).unwrap();
    let mut rng = fastrand::Rng::with_seed(start["seed"].as_u64().unwrap());
    let (lock, number) = (start["lock"].as_str().unwrap(), start["number"].as_u64().unwrap());
    let mut raw = Raw::new(start["to"].as_str().unwrap().parse().unwrap());
    raw.patience = Duration::from_secs(600);
    let mut elements = (1..).map(|count| count * 100 + number);
    let (ttl, lease) = if number % 2 == 0 { (TTL_MS, None) } else { (LONG_TTL_MS, Some(LEASE_MS)) };
    let ask = json!({"key": lock, "wait_ms": null, "lease_ms": lease});
    // Who lost its session opens another and goes on.
    loop {
        raw.open_session(ttl);
        raw.acks = true;
        let _beats = raw.beats(Duration::from_millis(TTL_MS / 4));
        while let Some(token) = raw.call("acquire_lock", ask.clone()).token() {
            let (element, hold) = (elements.next().unwrap(), rng.u64(0..=LONGEST_SECTION_MS));
            let kept = match start["plain"].as_str() {
                None => add(&mut raw, lock, token, element, hold),
                Some(path) => {
                    add_to_plain(Path::new(path), element, hold);
                    true
                }
            };
            let released = raw.call("release_lock", json!({"token": token}));
            if (!kept || released.kind().is_some()) && lease.is_none() {
                break;
            }
        }
    }
}

/// Adds under the guard; gives whether the grant was still good.
fn add(raw: &mut Raw, lock: &str, token: u64, element: u64, hold: u64) -> bool {
    let read = raw.value(lock);
    let mut all = read.as_array().cloned().unwrap_or_default();
    all.push(json!(element));
    let_pass(hold);
    let file = json!({"file": lock, "token": token, "data": format!("{element} {token}\n")});
    let key = json!({"key": lock, "token": token, "value": all});
    let mut good = true;
    for (store, method, params) in [("file", "append_file", file), ("key", "set", key)] {
        tell(store, element, None);
        let answer = raw.call(method, params);
        let told = answer.kind().is_none();
        assert!(
            told || ["not_holder", "guarded", "no_session"].contains(&answer.kind().unwrap()),
            "{}",
            answer.0
        );
        tell(store, element, Some(told));
        good &= told;
    }
    good
}

/// Adds to a file that nobody guards, in the belief that the lock is held.
fn add_to_plain(path: &Path, element: u64, hold: u64) {
    let mut all = fs::read_to_string(path).unwrap_or_default();
    let_pass(hold);
    tell("file", element, None);
    all.push_str(&format!("{element}\n"));
    let own = path.with_extension(std::process::id().to_string());
    fs::write(&own, all).unwrap();
    fs::rename(&own, path).unwrap();
    tell("file", element, Some(true));
}

fn tell(store: &str, element: u64, acknowledged: Option<bool>) {
    println!("\n@{}", json!({"store": store, "element": element, "acknowledged": acknowledged}));
}
