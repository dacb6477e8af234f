//! The simulator: whole servers and clients under one seed, one queue of events and simulated time, with everything that
//! can go wrong going wrong (`docs/reliability.md`, "The simulator").
//!
//! `TENURE_SEED=n` runs one seed again, `TENURE_SEEDS=n` so many from `TENURE_FROM` (1), `TENURE_HISTORY=dir` writes what
//! clients asked and were told. The same seed does the same, to the last byte.

#[cfg(tenure_bugs)]
#[path = "sim/bugs.rs"]
mod bugs;
#[path = "sim/checks.rs"]
mod checks;
#[path = "sim/client.rs"]
mod client;
#[path = "sim/disk.rs"]
mod disk;
#[path = "sim/history.rs"]
mod history;
#[path = "sim/lives.rs"]
mod lives;
#[path = "sim/plan.rs"]
mod plan;
#[path = "sim/server.rs"]
mod server;
#[path = "sim/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use world::Outcome;

/// Seeds that found something once, in the server, the client or the judges. What they draw changes with the simulator; each
/// fault has a test of its own beside.
const REGRESSIONS: &[u64] = &[
    1046, 1529, 1866, 1974, 2160, 2454, 3018, 3892, 4228, 7676, 7969, 9777, 10789, 25682, 28533, 33397,
    59687, 69381, 71177, 73514,
];

/// Seeds that CI runs.
const SEEDS: u64 = 40;

/// How many seeds must have a fault on before its absence is a fault of the simulator.
const ENOUGH: u64 = 25;

fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()),
        false => tempfile::tempdir(),
    }
    .expect("a directory for the server's files")
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn run(seed: u64, dir: &Path) -> Result<Outcome, String> {
    let history = std::env::var_os("TENURE_HISTORY").map(PathBuf::from);
    let root = dir.join(format!("{seed}"));
    let ran = catch_unwind(AssertUnwindSafe(|| world::run(seed, &root, history.is_some())));
    tenure::disk::watch(None);
    let _ = std::fs::remove_dir_all(&root);
    let outcome = ran.map_err(|_| format!("seed {seed}: a panic (above)"))?;
    if let Some(history) = history {
        history::write(&history, seed, &outcome.history);
    }
    Ok(outcome)
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    failures: Vec<String>,
    counts: BTreeMap<&'static str, u64>,
    judged: BTreeMap<&'static str, u64>,
    enabled: BTreeMap<&'static str, u64>,
    simulated_us: u64,
    commands: u64,
    longest: u64,
}

impl Sum {
    fn add(&mut self, seed: u64, ran: Result<Outcome, String>) {
        self.seeds += 1;
        let outcome = match ran {
            Ok(outcome) => outcome,
            Err(why) => return self.failures.push(why),
        };
        if let Some(first) = outcome.violations.first() {
            self.failures.push(format!("seed {seed}: {first}"));
        }
        for (what, count) in outcome.counts {
            match what {
                "longest way to rest (ms)" => self.longest = self.longest.max(count),
                _ => *self.counts.entry(what).or_default() += count,
            }
        }
        for (what, count) in outcome.judged {
            *self.judged.entry(what).or_default() += count;
        }
        for what in outcome.enabled {
            *self.enabled.entry(what).or_default() += 1;
        }
        self.simulated_us += outcome.simulated_us;
        self.commands += outcome.commands;
    }

    fn show(&self, took: f64) -> String {
        let list = |counts: &BTreeMap<&'static str, u64>| {
            counts.iter().map(|(what, count)| format!("    {count:>12}  {what}\n")).collect::<String>()
        };
        format!(
            "{} seeds in {took:.1} s: {:.2} simulated hours, {} commands, longest way to rest {} ms\n  what happened\n{}  \
             judged\n{}",
            self.seeds,
            self.simulated_us as f64 / 3.6e9,
            self.commands,
            self.longest,
            list(&self.counts),
            list(&self.judged)
        )
    }
}

#[test]
fn whatever_goes_wrong_what_was_promised_holds() {
    let dir = scratch();
    let seeds: Vec<u64> = match number("TENURE_SEED") {
        Some(seed) => vec![seed],
        None => {
            let (from, count) = (number("TENURE_FROM").unwrap_or(1), number("TENURE_SEEDS").unwrap_or(SEEDS));
            REGRESSIONS.iter().copied().chain(from..from + count).collect()
        }
    };
    let began = Instant::now();
    let sum = Mutex::new(Sum::default());
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let threads = number("TENURE_THREADS")
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64));
    let many = seeds.len() > 1_000;
    std::thread::scope(|scope| {
        for _ in 0..threads.min(seeds.len() as u64) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(&seed) = seeds.get(index) else { return };
                    let ran = run(seed, dir.path());
                    let mut sum = sum.lock().expect("no thread fails with it");
                    let failed = sum.failures.len();
                    sum.add(seed, ran);
                    for failure in &sum.failures[failed..] {
                        println!("{failure}");
                    }
                    if many && sum.seeds.is_multiple_of(1_000) {
                        println!(
                            "{} seeds, {} failed, {:.0} s",
                            sum.seeds,
                            sum.failures.len(),
                            began.elapsed().as_secs_f64()
                        );
                    }
                    stop.fetch_or(sum.failures.len() >= 20, Ordering::Relaxed);
                }
            });
        }
    });
    let sum = sum.into_inner().expect("no thread fails with it");
    println!("{}", sum.show(began.elapsed().as_secs_f64()));
    assert!(
        sum.failures.is_empty(),
        "{} of {} seeds failed; TENURE_SEED=n cargo test --test sim runs one again\n{}",
        sum.failures.len(),
        sum.seeds,
        sum.failures.join("\n")
    );
    if seeds.len() > 1 {
        let absent: Vec<_> = sum
            .enabled
            .iter()
            .filter(|(what, seeds)| **seeds >= ENOUGH && !sum.counts.contains_key(*what))
            .collect();
        assert!(absent.is_empty(), "faults that were on never happened: {absent:?}");
        let grants = sum.counts.get("grants").copied().unwrap_or(0);
        assert!(grants > 20 * sum.seeds, "{grants} grants in {} seeds prove little", sum.seeds);
    }
}

#[test]
fn the_same_seed_does_the_same() {
    let dir = scratch();
    for seed in 1..=4 {
        let hash =
            |_| run(seed, dir.path()).map(|outcome| (outcome.hash, outcome.commands, outcome.simulated_us));
        let (one, other) = (hash(1), hash(2));
        assert_eq!(one, other, "seed {seed}");
    }
}
