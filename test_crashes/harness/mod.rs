//! What the crash tests are made of: a server as a process, clients as sockets and as processes, a bad network, and a
//! judge.

mod block;
mod crowd;
mod fuse;
mod namespace;
mod oracle;
mod process;
mod proxy;
mod raw;
mod server;
mod worker;

pub(crate) use block::Disk;
pub(crate) use crowd::{Ask, Crowd};
pub(crate) use fuse::DiskRack;
pub(crate) use namespace::{Lack, can_unshare, has, run_inside, skip};
pub(crate) use oracle::Oracle;
pub(crate) use process::ClientProcess;
pub(crate) use proxy::{Direction, Faults, Proxy};
pub(crate) use raw::{Answer, Beats, Raw, Sent, crc32c};
pub(crate) use server::{Exit, Server, Setup};
pub(crate) use worker::{Life, Worker};

use std::time::{Duration, Instant};

/// How long anything may take before a test gives up on it. Generous: the machine may be busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// Asks again and again until `ask` has an answer.
///
/// # Panics
/// If it has none for [`PATIENCE`].
pub(crate) fn poll_until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "gave up waiting: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Lets time pass, as the fault or the span that a test is about.
pub(crate) fn let_pass(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

/// The seed of a random test: `TENURE_SEED` if that is set, else a fresh one. Printed, so that a failure can be rerun.
pub(crate) fn seed() -> u64 {
    let seed = match std::env::var("TENURE_SEED") {
        Ok(text) => text.parse().expect("TENURE_SEED is a number"),
        Err(_) => fastrand::u64(0..1 << 32),
    };
    println!("seed: run again with TENURE_SEED={seed}");
    seed
}

/// The seed of a test that is to be the same run every time: `TENURE_SEED` if that is set, else this one.
pub(crate) fn seed_or(fixed: u64) -> u64 {
    match std::env::var_os("TENURE_SEED") {
        Some(_) => seed(),
        None => fixed,
    }
}

/// How many kills a random test makes: `TENURE_KILLS` if that is set, else so many.
pub(crate) fn kills(default: u64) -> u64 {
    std::env::var("TENURE_KILLS").map_or(default, |text| text.parse().expect("TENURE_KILLS is a number"))
}

/// Mixes numbers into one seed, so that each part of a test has random numbers of its own.
pub(crate) fn mix(parts: &[u64]) -> u64 {
    // The finalizer of SplitMix64, folded over the parts.
    parts.iter().fold(0x9e37_79b9_7f4a_7c15, |sum: u64, part| {
        let mut z = (sum ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// Whether the server under test has failpoints.
pub(crate) fn has_failpoints() -> bool {
    let has = cfg!(any(debug_assertions, feature = "failpoints"));
    if !has {
        println!("SKIP: a release build has failpoints with --features failpoints only");
    }
    has
}

/// Some places among so many, spread evenly and never the same residue: all of them if `TENURE_EVERY_BYTE` is set.
pub(crate) fn places(among: usize, wanted: usize) -> Vec<usize> {
    if std::env::var_os("TENURE_EVERY_BYTE").is_some() || among <= wanted {
        return (0..among).collect();
    }
    (0..wanted).map(|number| number * among / wanted).collect()
}
