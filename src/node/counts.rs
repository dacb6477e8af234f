//! What is counted since the start, for `status`.

/// Something that is counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Count {
    Commands,
    Datagrams,
    Duplicates,
    GrantsBroken,
    GrantsExpired,
    GrantsTakenOver,
    Refused,
    Sent,
    SessionsExpired,
    Verify,
}

/// The names that `status` shows, in the order of [`Count`].
const NAMES: [&str; 10] = [
    "commands",
    "datagrams",
    "duplicates",
    "grants_broken",
    "grants_expired",
    "grants_taken_over",
    "refused",
    "sent",
    "sessions_expired",
    "verify",
];

/// How often each thing was counted.
#[derive(Debug, Default)]
pub(super) struct Counts([u64; NAMES.len()]);

impl Counts {
    pub(super) fn count(&mut self, what: Count) {
        self.0[what as usize] += 1;
    }

    /// Those that were counted at all, by their names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.into_iter().zip(self.0).filter(|(_, times)| *times > 0)
    }
}
