//! Deliberate bugs, to see whether the tests notice.
//!
//! Only in a build with `RUSTFLAGS="--cfg tenure_bugs"`, and there only if `plant` or the variable `TENURE_BUG` names it,
//! is a bug there. Anywhere else [`planted`] is a constant `false`, and the compiler drops what hangs on it. No release can
//! have them: such a build without debug assertions does not compile. `tests/sim/bugs.rs` plants one after the other, and
//! `docs/reliability.md` says what catches each.

#[cfg(all(tenure_bugs, not(debug_assertions)))]
compile_error!("deliberate bugs are for debug builds: `--cfg tenure_bugs` is not for a release");

/// Every bug: its name, and what is wrong with it there.
pub const BUGS: &[(&str, &str)] = &[
    // Exclusion, tokens, modes, turns.
    ("shared_beside_exclusive", "a reader is let in beside a writer"),
    ("one_slot_more", "one slot more is given out than there are"),
    ("token_reused", "a start counts tokens from the highest that is still held"),
    ("upgrade_keeps_its_token", "an upgrade that waited keeps the token of the weaker mode"),
    ("newcomer_passes_the_line", "who fits beside the holders is let in before those who wait"),
    ("no_lock_delay", "no lock stays closed after an end that was no release"),
    // What a lock guards.
    ("stale_token_sets", "a key is written under any token, whoever has it"),
    ("stale_token_appends", "a file is appended to under any token, whoever has it"),
    ("lost_section_applied", "a section takes effect when its grant ends without a release"),
    ("half_a_section", "of several keys of a section the first alone is written"),
    ("half_a_transaction", "of several keys of a transaction the first alone is written"),
    ("transaction_compares_nothing", "a transaction does not look at the versions that it asks for"),
    ("if_version_ignored", "`if_version` is not looked at"),
    ("bound_key_stays", "a key bound to a session outlives it"),
    ("key_without_end", "the TTL of a key is forgotten"),
    ("keys_without_cap", "there may be more keys than the cap"),
    // Exactly once.
    ("dedup_dropped", "no reply is kept, so each copy is executed"),
    ("ack_takes_one_too_many", "`ack` also lets go of the reply to the id that it names"),
    ("late_copy_executed", "a copy that comes when its reply is gone is executed"),
    ("damaged_datagram_taken", "the checksum of a datagram is not compared"),
    // Deadlocks.
    ("deadlock_missed", "nobody looks for cycles further than a glance"),
    ("deadlock_imagined", "for slots one way that leads back is a deadlock"),
    // Leases and time.
    ("heartbeat_extends_nothing", "a heartbeat is answered and extends nothing"),
    ("lapsed_session_told_it_lives", "a heartbeat behind the end of its session is answered"),
    ("quarter_ttl_after_restart", "after a restart a session gets a quarter of its TTL"),
    ("expire_while_stalled", "a sleep past the wake-up counts as time"),
    ("stall_in_a_turn_counts", "a turn that stands still counts as time"),
    ("lease_by_log_time", "what a command begins is counted from log time that is behind the clock"),
    ("renewal_forgotten", "a renewed lease ends when the old one did"),
    ("tenure_without_bound", "the longest tenure of a grant is forgotten"),
    // Watches.
    ("watch_begins_one_late", "a watch leaves out the first command behind its cursor"),
    ("history_lost_with_the_snapshot", "a start from a snapshot has no history, and does not say so"),
    // The journal and the snapshot.
    ("reply_before_sync", "a batch counts as committed before its sync"),
    ("error_of_a_sync_ignored", "an error of the journal's sync is passed over"),
    ("synced_ahead", "a batch names the one before it as synced, which it may not be"),
    ("record_checksum_unread", "the checksum of a batch's records is not compared"),
    ("directory_not_synced", "no directory is ever synced"),
    ("name_of_a_segment_not_synced", "the directory of a new segment is not synced"),
    ("tail_not_synced_at_start", "a start does not sync the tail that it has rewritten"),
    ("segments_deleted_before_the_snapshot", "segments go when a snapshot is begun, not when it is there"),
    ("snapshot_named_before_its_sync", "a snapshot gets its name before its content is synced"),
    // Recovery and files.
    ("files_not_redone", "what the files lack after a crash is not written again"),
    ("files_redone_backwards", "what the files lack is written again in the wrong order"),
    ("file_safe_before_its_sync", "a file counts as safe before its sync"),
    ("counters_not_raised", "an unclean stop that may have lost something does not raise the counters"),
    // The client.
    ("client_believes_too_long", "the client believes in a lease for one and a half times its length"),
    ("lease_counted_from_the_answer", "the client counts a lease from the answer, not from the request"),
    ("grant_handed_out_unproven", "a grant is handed out though nothing proves that it still lives"),
    ("client_acks_too_early", "the client acknowledges requests that it may still repeat"),
    ("wait_left_in_line", "a wait that is given up is not taken back"),
];

#[cfg(tenure_bugs)]
mod garden {
    use super::BUGS;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// The place of the planted bug on the list; none if it is not on it.
    static PLANTED: LazyLock<AtomicUsize> = LazyLock::new(|| {
        let name = std::env::var("TENURE_BUG").unwrap_or_default();
        AtomicUsize::new(if name.is_empty() { NONE } else { place(&name) })
    });

    const NONE: usize = usize::MAX;

    fn place(name: &str) -> usize {
        let place = BUGS.iter().position(|(known, _)| *known == name);
        place.unwrap_or_else(|| panic!("{name} is on the list of bugs"))
    }

    /// Plants a bug, and takes out the one before.
    pub fn plant(name: Option<&str>) {
        PLANTED.store(name.map_or(NONE, place), Ordering::SeqCst);
    }

    /// Whether this bug is to be there.
    pub fn planted(name: &str) -> bool {
        BUGS.get(PLANTED.load(Ordering::Relaxed)).is_some_and(|(planted, _)| *planted == name)
    }
}

#[cfg(tenure_bugs)]
pub use garden::{plant, planted};

/// Whether this bug is to be there: never, in this build.
#[cfg(not(tenure_bugs))]
#[inline(always)]
pub const fn planted(_name: &str) -> bool {
    false
}
