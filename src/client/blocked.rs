//! Why a lock was not granted.

use crate::outcome::Reason;
use crate::wire::{Acquired, AheadShown, HolderShown};
use std::fmt;

/// Why a lock was not granted, or a grant not converted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Blocked {
    /// Why.
    pub reason: Reason,
    /// The lock that is in the way, of those asked for.
    pub key: Option<String>,
    /// Who is in the way, at most 8.
    pub holders: Vec<HolderShown>,
    /// How many there are.
    pub holders_total: u64,
    /// The nearest earlier request in the way, if that is why.
    pub ahead: Option<AheadShown>,
    /// The place in line that the request had or would have had, from 1.
    pub position: Option<u64>,
    /// How many others stood in that line.
    pub queue_total: Option<u64>,
    /// In how many milliseconds it might have been served, if the server could guess.
    pub estimate_ms: Option<u64>,
}

impl Blocked {
    pub(super) fn new(acquired: Acquired) -> Blocked {
        Blocked {
            reason: acquired.reason.unwrap_or(Reason::Cancelled),
            key: acquired.key,
            holders_total: acquired.holders_total.unwrap_or(acquired.holders.len() as u64),
            holders: acquired.holders,
            ahead: acquired.ahead,
            position: acquired.position,
            queue_total: acquired.queue_total,
            estimate_ms: acquired.estimate_ms,
        }
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(f, "{key:?} ")?,
            None => f.write_str("it ")?,
        }
        f.write_str(match self.reason {
            Reason::Held => "is held",
            Reason::Queued => "has others in line",
            Reason::Timeout => "was not free before the wait was over",
            Reason::Cancelled => "is not waited for any more: the wait was cancelled",
            Reason::SessionEnded => "is not waited for any more: the session ended",
            Reason::Conversion => "has a holder that waits to convert its grant",
            Reason::LockDelay => "is closed for its lock-delay",
            Reason::GrantEnded => "cannot be converted: its grant has ended",
        })?;
        if let Some(holder) = self.holders.first() {
            let by = if self.reason == Reason::Held { " by" } else { "; held by" };
            write!(f, "{by} {}", Person(holder.client, &holder.name, &holder.owner, &holder.label))?;
            write!(f, " ({}, token {}) for {} ms", holder.mode, holder.token, holder.held_ms)?;
            match self.holders_total {
                0 | 1 => {}
                total => write!(f, " and {} more", total - 1)?,
            }
        }
        if let Some(ahead) = &self.ahead {
            let person = Person(ahead.client, &ahead.name, &ahead.owner, &ahead.label);
            write!(f, "; behind {person} ({}), who has waited for {} ms", ahead.mode, ahead.waited_ms)?;
        }
        if let Some(position) = self.position {
            write!(f, "; position {position}")?;
            if let Some(total) = self.queue_total.filter(|total| *total > 0) {
                write!(f, " beside {total} others")?;
            }
        }
        match self.estimate_ms {
            Some(estimate) => write!(f, ", in about {estimate} ms"),
            None => Ok(()),
        }
    }
}

/// Somebody, in the words of errors: number, name and owner, label.
pub(super) struct Person<'a>(pub(super) u64, pub(super) &'a str, pub(super) &'a str, pub(super) &'a str);

impl fmt::Display for Person<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Person(client, name, owner, label) = self;
        write!(f, "client {client}")?;
        if !name.is_empty() {
            write!(f, " {name:?}")?;
        }
        if !owner.is_empty() {
            write!(f, " owner {owner:?}")?;
        }
        match label.is_empty() {
            true => Ok(()),
            false => write!(f, " label {label:?}"),
        }
    }
}
