//! How long it takes to find out whether a wait would close a cycle: one command applied to a state in this process.

use crate::common::thousands;
use crate::owners::{Owners, chain_lock};
use std::time::Instant;
use tenure::kind::{Detail, Kind};
use tenure::limits::DEADLOCK_STEPS_MAX;
use tenure::outcome::Outcome;

/// How often each wait is tried on one state.
const TRIES: usize = 21;

/// What is to come of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Deadlock,
    Waits,
    Unchecked,
}

/// A state, the wait that is tried on it, and what is to come of it.
struct Scene {
    name: String,
    owners: Owners,
    asker: usize,
    lock: String,
    verdict: Verdict,
}

/// What a scene took, in nanoseconds.
pub(crate) struct Figures {
    name: String,
    verdict: Verdict,
    took: Vec<u64>,
}

/// Tries every scene, with so many owners; a name that is not wanted is left out.
///
/// # Errors
/// A sentence, if a verdict is not the expected one.
pub(crate) fn measure(owners: usize, wants: &dyn Fn(&str) -> bool) -> Result<Vec<Figures>, String> {
    let scenes: [(&str, fn(usize) -> Scene); 5] = [
        ("detection-cycle", cycle),
        ("detection-chain", chain),
        ("detection-line", line),
        ("detection-idle", idle),
        ("detection-bound", bound),
    ];
    let wanted = scenes.into_iter().filter(|(name, _)| wants(name));
    wanted.map(|(_, scene)| attempt(scene(owners), owners)).collect()
}

/// The last of a chain asks for the lock of the first.
fn cycle(owners: usize) -> Scene {
    Scene {
        name: format!("the last of a chain of {} owners asks for the first's lock", thousands(owners as f64)),
        owners: Owners::chain(owners, 0),
        asker: owners - 1,
        lock: chain_lock(0),
        verdict: Verdict::Deadlock,
    }
}

/// An owner that somebody waits for asks for the lock of the first of a chain.
fn chain(owners: usize) -> Scene {
    let mut chain = Owners::chain(owners, 2);
    let asker = somebody_waits_for(&mut chain);
    Scene {
        name: format!("a wait at the end of a chain of {} owners", thousands(owners as f64)),
        owners: chain,
        asker,
        lock: chain_lock(0),
        verdict: Verdict::Waits,
    }
}

/// An owner that somebody waits for stands in a long line.
fn line(waits: usize) -> Scene {
    let mut owners = Owners::new(waits + 3);
    owners.hold(waits, "line");
    for owner in 0..waits {
        owners.wait(owner, "line");
    }
    let asker = somebody_waits_for(&mut owners);
    Scene {
        name: format!("a wait behind {} others for one lock", thousands(waits as f64)),
        owners,
        asker,
        lock: "line".to_owned(),
        verdict: Verdict::Waits,
    }
}

/// The same as [`chain`] by an owner that holds nothing anybody waits for: then there is nothing to look at.
fn idle(owners: usize) -> Scene {
    let chain = Owners::chain(owners, 1);
    Scene {
        name: "the same by an owner that nobody waits for".to_owned(),
        asker: chain.count() - 1,
        owners: chain,
        lock: chain_lock(0),
        verdict: Verdict::Waits,
    }
}

/// The last of a chain that is just too long asks for the lock of the first.
fn bound(_: usize) -> Scene {
    // Of each owner one lock's holder and its own place in line are looked at.
    let owners = DEADLOCK_STEPS_MAX / 2 + 1;
    Scene {
        name: format!("the last of {} owners asks for the first's: too far to see", thousands(owners as f64)),
        owners: Owners::chain(owners, 0),
        asker: owners - 1,
        lock: chain_lock(0),
        verdict: Verdict::Unchecked,
    }
}

/// Lets the last owner wait for the one before it, which is given.
fn somebody_waits_for(owners: &mut Owners) -> usize {
    let asker = owners.count() - 2;
    owners.hold(asker, "asker");
    owners.wait(asker + 1, "asker");
    asker
}

fn attempt(mut scene: Scene, owners: usize) -> Result<Figures, String> {
    let mut took = Vec::with_capacity(TRIES);
    for _ in 0..TRIES {
        let command = scene.owners.acquire(scene.asker, &scene.lock);
        let unchecked = scene.owners.unchecked_waits();
        let began = Instant::now();
        let outcome = scene.owners.apply(&command);
        took.push(began.elapsed().as_nanos() as u64);
        let verdict = verdict(&outcome, owners, scene.owners.unchecked_waits() > unchecked);
        if verdict != Some(scene.verdict) {
            return Err(format!("{}: {:?} was expected, and came {outcome:?}", scene.name, scene.verdict));
        }
        if scene.verdict != Verdict::Deadlock {
            scene.owners.give_up(scene.asker);
        }
    }
    Ok(Figures { name: scene.name, verdict: scene.verdict, took })
}

fn verdict(outcome: &Outcome, owners: usize, unchecked: bool) -> Option<Verdict> {
    match outcome {
        Outcome::Waiting(_) if unchecked => Some(Verdict::Unchecked),
        Outcome::Waiting(_) => Some(Verdict::Waits),
        Outcome::Refused(refusal) if refusal.kind == Kind::Deadlock => {
            let whole =
                matches!(refusal.detail, Detail::Cycle { cycle_total, .. } if cycle_total == owners as u64);
            whole.then_some(Verdict::Deadlock)
        }
        _ => None,
    }
}

/// Prints the table: of several passes, each with a state of its own.
#[expect(clippy::print_stdout, reason = "a benchmark prints its tables")]
pub(crate) fn print(mut passes: Vec<Vec<Figures>>) {
    let Some(mut all) = passes.pop().filter(|last| !last.is_empty()) else { return };
    for pass in passes {
        for (figures, more) in all.iter_mut().zip(pass) {
            figures.took.extend(more.took);
        }
    }
    println!("\n**Detection of deadlocks**: one command, applied in process.\n");
    println!("| wait | what comes of it | times | median ms | highest ms |\n|---|---|---:|---:|---:|");
    for Figures { name, verdict, mut took } in all {
        took.sort_unstable();
        let ms = |nanos: u64| nanos as f64 / 1e6;
        let said = match verdict {
            Verdict::Deadlock => "`deadlock`",
            Verdict::Waits => "it waits",
            Verdict::Unchecked => "it waits, counted in `unchecked_waits`",
        };
        let (median, highest) = (ms(took[took.len() / 2]), ms(took[took.len() - 1]));
        println!("| {name} | {said} | {} | {median:.3} | {highest:.3} |", took.len());
    }
}
