//! Deliberate bugs, to see whether the tests notice.
//!
//! Only in a build with `RUSTFLAGS="--cfg tenure_bugs"`, which no release has, and there only if `TENURE_BUG` names it, is a
//! bug there. Anywhere else [`planted`] is `false`, and the compiler drops what hangs on it. `docs/reliability.md` lists them
//! with what catches each.

/// Every bug, by name.
pub const BUGS: &[&str] = &[
    "reply_before_sync",
    "token_reused",
    "expire_while_stalled",
    "dedup_dropped",
    "directory_not_synced",
    "half_a_section",
];

/// Whether this bug is to be there.
#[inline]
pub fn planted(name: &str) -> bool {
    #[cfg(tenure_bugs)]
    {
        static BUG: std::sync::LazyLock<String> =
            std::sync::LazyLock::new(|| std::env::var("TENURE_BUG").unwrap_or_default());
        debug_assert!(BUGS.contains(&name), "{name} is on the list");
        BUG.as_str() == name
    }
    #[cfg(not(tenure_bugs))]
    {
        let _ = name;
        false
    }
}
