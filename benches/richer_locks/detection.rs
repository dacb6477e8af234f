//! What it takes to find out whether a wait would close a cycle: one command applied to a state in this process.
//!
//! CPU time of this thread is measured, since it is that of one command and does not grow when others use the machine.

use crate::common::thousands;
use crate::owners::{Owners, chain_lock};
use tenure::bench::process::own_cpu;
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

/// What a scene took, in nanoseconds of CPU time, and how much was looked at for each wait.
pub(crate) struct Figures {
    name: String,
    verdict: Verdict,
    took: Vec<u64>,
    steps: u64,
}

/// Makes a scene of so many owners.
type Build = fn(usize) -> Scene;

/// How many wait for the asker where many do.
pub(crate) fn many_behind(owners: usize) -> usize {
    owners / 10
}

/// Tries every scene, with so many owners; a name that is not wanted is left out.
///
/// # Errors
/// A sentence, if a verdict is not the expected one.
pub(crate) fn measure(owners: usize, wants: &dyn Fn(&str) -> bool) -> Result<Vec<Figures>, String> {
    let scenes: [(&str, Build); 6] = [
        ("detection-cycle", cycle),
        ("detection-chains", chains),
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
        owners: Owners::chains(&[owners]),
        asker: owners - 1,
        lock: chain_lock(0),
        verdict: Verdict::Deadlock,
    }
}

/// The last of one chain asks for the lock of the first of another: many on both sides, and everything is looked at.
fn chains(owners: usize) -> Scene {
    let behind = many_behind(owners);
    Scene {
        name: format!(
            "the last of a chain of {} asks for the lock of the first of another, of {}",
            thousands(behind as f64),
            thousands(owners as f64)
        ),
        owners: Owners::chains(&[behind, owners]),
        asker: behind - 1,
        lock: chain_lock(behind),
        verdict: Verdict::Waits,
    }
}

/// An owner that one other waits for asks for the lock of the first of a chain.
fn chain(owners: usize) -> Scene {
    Scene {
        name: format!(
            "an owner that one other waits for asks for the lock of the first of {}",
            thousands(owners as f64)
        ),
        owners: Owners::chains(&[2, owners]),
        asker: 1,
        lock: chain_lock(2),
        verdict: Verdict::Waits,
    }
}

/// An owner that one other waits for stands in a long line.
fn line(waits: usize) -> Scene {
    let mut owners = Owners::new(waits + 3);
    owners.hold(1, "asker");
    owners.wait(0, "asker");
    owners.hold(2, "line");
    for owner in 3..waits + 3 {
        owners.wait(owner, "line");
    }
    Scene {
        name: format!(
            "an owner that one other waits for stands behind {} others for one lock",
            thousands(waits as f64)
        ),
        owners,
        asker: 1,
        lock: "line".to_owned(),
        verdict: Verdict::Waits,
    }
}

/// An owner that holds nothing asks for the lock of the first of a chain.
fn idle(owners: usize) -> Scene {
    Scene {
        name: format!(
            "an owner that holds nothing asks for the lock of the first of {}",
            thousands(owners as f64)
        ),
        owners: Owners::chains(&[1, owners]),
        asker: 0,
        lock: chain_lock(1),
        verdict: Verdict::Waits,
    }
}

/// The last of a chain that is just too long asks for the lock of the first.
fn bound(_: usize) -> Scene {
    // Of each owner one lock's holder and its own place in line are looked at.
    let owners = DEADLOCK_STEPS_MAX / 2 + 1;
    Scene {
        name: format!("the last of {} owners asks for the first's: too far to see", thousands(owners as f64)),
        owners: Owners::chains(&[owners]),
        asker: owners - 1,
        lock: chain_lock(0),
        verdict: Verdict::Unchecked,
    }
}

fn attempt(mut scene: Scene, owners: usize) -> Result<Figures, String> {
    let mut took = Vec::with_capacity(TRIES);
    let steps = scene.owners.deadlock_steps();
    for _ in 0..TRIES {
        let command = scene.owners.acquire(scene.asker, &scene.lock);
        let unchecked = scene.owners.unchecked_waits();
        let began = own_cpu();
        let outcome = scene.owners.apply(&command);
        took.push(((own_cpu() - began) * 1e9) as u64);
        let verdict = verdict(&outcome, owners, scene.owners.unchecked_waits() > unchecked);
        if verdict != Some(scene.verdict) {
            return Err(format!("{}: {:?} was expected, and came {outcome:?}", scene.name, scene.verdict));
        }
        if scene.verdict != Verdict::Deadlock {
            scene.owners.give_up(scene.asker);
        }
    }
    let steps = (scene.owners.deadlock_steps() - steps) / TRIES as u64;
    Ok(Figures { name: scene.name, verdict: scene.verdict, took, steps })
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
    println!("\n**Detection of deadlocks**: CPU time of one command, applied in process.\n");
    println!("| wait | what comes of it | steps | median ms | lowest–highest ms | median ns a step |");
    println!("|---|---|---:|---:|---:|---:|");
    for Figures { name, verdict, mut took, steps } in all {
        took.sort_unstable();
        let ms = |nanos: u64| nanos as f64 / 1e6;
        let said = match verdict {
            Verdict::Deadlock => "`deadlock`",
            Verdict::Waits => "it waits",
            Verdict::Unchecked => "it waits, counted in `unchecked_waits`",
        };
        let (lowest, median, highest) = (took[0], took[took.len() / 2], took[took.len() - 1]);
        // Of a few steps the rest of the command is most.
        let a_step = if steps < 1_000 { "–".to_owned() } else { thousands(median as f64 / steps as f64) };
        println!(
            "| {name} | {said} | {} | {:.3} | {:.3}–{:.3} | {a_step} |",
            thousands(steps as f64),
            ms(median),
            ms(lowest),
            ms(highest)
        );
    }
}
