//! Timers by what they are for: each at one time, or not at all.

use crate::time::Time;
use std::collections::{BTreeMap, BTreeSet};

/// A set of timers. Those due at the same moment come in the order of what they are for.
#[derive(Debug)]
pub(super) struct Timers<K> {
    by_time: BTreeSet<(Time, K)>,
    at: BTreeMap<K, Time>,
}

impl<K> Default for Timers<K> {
    fn default() -> Timers<K> {
        Timers { by_time: BTreeSet::new(), at: BTreeMap::new() }
    }
}

impl<K: Copy + Ord> Timers<K> {
    /// Sets a timer, in place of what it was set to.
    pub(super) fn set(&mut self, key: K, at: Time) {
        self.clear(key);
        self.by_time.insert((at, key));
        self.at.insert(key, at);
    }

    /// Unsets a timer.
    pub(super) fn clear(&mut self, key: K) {
        if let Some(at) = self.at.remove(&key) {
            self.by_time.remove(&(at, key));
        }
    }

    /// When the first is due.
    pub(super) fn first(&self) -> Option<Time> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes the first that is due.
    pub(super) fn take_due(&mut self, now: Time) -> Option<K> {
        let (at, key) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.clear(key);
        Some(key)
    }
}
