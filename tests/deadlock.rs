//! Cycles and chains of very many owners: what is said of them, and how much is looked at, as a count and never as a time.

#[allow(dead_code, reason = "the benchmark lets owners give up as well")]
#[path = "../benches/richer_locks/owners.rs"]
mod owners;

use owners::{Owners, chain_lock};
use tenure::kind::{Detail, Kind};
use tenure::limits::{CYCLE_SHOWN, DEADLOCK_STEPS_MAX};
use tenure::outcome::Outcome;

/// What is looked at in vain before everything is: 64 grants and waits behind the asker, 512 ahead and 512 behind, and each
/// time the one that is too many.
const GLANCES: u64 = 65 + 513 + 513;

#[test]
fn a_cycle_of_ten_thousand_owners_is_found_with_three_steps_each() {
    let mut chain = Owners::chains(&[10_000]);
    let before = chain.deadlock_steps();
    let closing = chain.acquire(9_999, &chain_lock(0));
    let outcome = chain.apply(&closing);
    let Outcome::Refused(refusal) = outcome else { panic!("the wait was not refused: {outcome:?}") };
    assert_eq!(refusal.kind, Kind::Deadlock);
    let Detail::Cycle { cycle, cycle_total } = refusal.detail else { panic!("{:?}", refusal.detail) };
    assert_eq!((cycle.len(), cycle_total), (CYCLE_SHOWN, 10_000));
    assert_eq!((cycle[0].client, cycle[1].client), (10_000, 1), "the asker and who holds what it asks for");
    assert_eq!(chain.unchecked_waits(), 0);
    // Each holder and each own place in line; then each holder again, on the way back to the asker.
    assert_eq!(chain.deadlock_steps() - before, GLANCES + 29_999);
}

#[test]
fn a_long_chain_that_leads_nowhere_is_no_deadlock_and_is_checked_to_its_end() {
    // The last of one chain asks for the lock of the first of another: many wait for it, and it would wait for many.
    let mut chain = Owners::chains(&[1_000, 10_000]);
    let before = chain.deadlock_steps();
    chain.wait(999, &chain_lock(1_000));
    assert_eq!(chain.unchecked_waits(), 0);
    assert_eq!(chain.deadlock_steps() - before, GLANCES + 19_999);
}

#[test]
fn a_chain_is_built_with_few_steps_for_each_wait_whichever_end_it_grows_at() {
    const OWNERS: usize = 10_000;
    let mut shuffled: Vec<usize> = (1..OWNERS).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut shuffled);
    for (how, order) in [
        ("from its end, so that each wait is before all others", (1..OWNERS).collect()),
        ("from its beginning, so that each wait is behind all others", (1..OWNERS).rev().collect()),
        ("anywhere, so that chains become one", shuffled),
    ] {
        let mut chain = Owners::new(2 * OWNERS);
        for owner in 0..OWNERS {
            chain.hold(owner, &chain_lock(owner));
            // Somebody waits for each: whoever nobody waits for need not be looked at.
            chain.wait(OWNERS + owner, &chain_lock(owner));
        }
        let before = chain.deadlock_steps();
        for &owner in &order {
            chain.wait(owner - 1, &chain_lock(owner));
        }
        assert_eq!(chain.unchecked_waits(), 0, "{how}");
        let a_wait = (chain.deadlock_steps() - before) / OWNERS as u64;
        assert!(a_wait < 100, "{how}: {a_wait} steps for each wait");
    }
}

/// Of each owner of a chain its own place in line is looked at and the holder of the lock.
#[test]
fn a_wait_beyond_the_bound_is_allowed_and_counted() {
    for (owners, seen) in [(DEADLOCK_STEPS_MAX / 2, true), (DEADLOCK_STEPS_MAX / 2 + 1, false)] {
        let mut chain = Owners::chains(&[owners]);
        let closing = chain.acquire(owners - 1, &chain_lock(0));
        let outcome = chain.apply(&closing);
        assert_eq!(matches!(outcome, Outcome::Refused(_)), seen, "{owners} owners: {outcome:?}");
        assert_eq!(matches!(outcome, Outcome::Waiting(_)), !seen, "{owners} owners: {outcome:?}");
        assert_eq!(chain.unchecked_waits(), u64::from(!seen), "{owners} owners");
    }
}
