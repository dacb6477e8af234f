//! Cycles of very many owners, and those that are too far to see.

#[path = "../benches/richer_locks/owners.rs"]
mod owners;

use owners::{Owners, chain_lock};
use tenure::kind::{Detail, Kind};
use tenure::limits::{CYCLE_SHOWN, DEADLOCK_STEPS_MAX};
use tenure::outcome::Outcome;

#[test]
fn a_cycle_of_ten_thousand_owners_is_found() {
    let mut chain = Owners::chain(10_000, 0);
    let closing = chain.acquire(9_999, &chain_lock(0));
    let outcome = chain.apply(&closing);
    let Outcome::Refused(refusal) = outcome else { panic!("the wait was not refused: {outcome:?}") };
    assert_eq!(refusal.kind, Kind::Deadlock);
    let Detail::Cycle { cycle, cycle_total } = refusal.detail else { panic!("{:?}", refusal.detail) };
    assert_eq!((cycle.len(), cycle_total), (CYCLE_SHOWN, 10_000));
    assert_eq!((cycle[0].client, cycle[1].client), (10_000, 1), "the asker and who holds what it asks for");
    assert_eq!(chain.unchecked_waits(), 0);
}

#[test]
fn a_long_chain_that_leads_nowhere_is_no_deadlock_and_is_checked_to_its_end() {
    let mut chain = Owners::chain(10_000, 2);
    chain.hold(10_000, "asker");
    chain.wait(10_001, "asker");
    chain.wait(10_000, &chain_lock(0));
    assert_eq!(chain.unchecked_waits(), 0);
}

/// Of each owner of a chain its own place in line is looked at and the holder of the lock.
#[test]
fn a_wait_beyond_the_bound_is_allowed_and_counted() {
    for (owners, seen) in [(DEADLOCK_STEPS_MAX / 2, true), (DEADLOCK_STEPS_MAX / 2 + 1, false)] {
        let mut chain = Owners::chain(owners, 0);
        let closing = chain.acquire(owners - 1, &chain_lock(0));
        let outcome = chain.apply(&closing);
        assert_eq!(matches!(outcome, Outcome::Refused(_)), seen, "{owners} owners: {outcome:?}");
        assert_eq!(matches!(outcome, Outcome::Waiting(_)), !seen, "{owners} owners: {outcome:?}");
        assert_eq!(chain.unchecked_waits(), u64::from(!seen), "{owners} owners");
    }
}
