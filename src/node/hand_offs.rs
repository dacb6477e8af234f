//! Hand-offs: how long it takes from the commit that grants a lock to the next in line until that client shows that it has
//! the reply.
//!
//! Known only here: the state does not know what was heard. Kept for the names of the state's sketch of contention and for
//! no others, so that it is bounded as that is.

use crate::identity::{INTEGER_MAX, SessionId};
use crate::limits::CONTENTION_NAMES;
use crate::name::Name;
use crate::outcome::Outcome;
use crate::state::{Standing, State};
use std::collections::BTreeMap;

/// What is known of a lock's hand-offs since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HandOff {
    /// How many were seen.
    pub(super) count: u64,
    /// How long they took together, in microseconds.
    pub(super) total_us: u64,
}

#[derive(Debug, Default)]
pub(super) struct HandOffs {
    names: BTreeMap<Name, HandOff>,
}

impl HandOffs {
    /// A client has shown that it has the outcome of wait `id`, so long after it was committed. Only grants are hand-offs.
    pub(super) fn note(&mut self, state: &State, session: SessionId, id: u64, took_us: u64) {
        let standing = state.session(session).map(|session| session.wait_standing(id));
        let Some(Standing::Kept(Outcome::Granted { asks, .. })) = standing else { return };
        for ask in asks.iter().filter(|ask| state.contention(&ask.key).is_some()) {
            if !self.names.contains_key(&ask.key) && self.names.len() >= CONTENTION_NAMES {
                self.names.retain(|name, _| state.contention(name).is_some());
            }
            let hand_off = self.names.entry(ask.key.clone()).or_default();
            hand_off.count += 1;
            hand_off.total_us = hand_off.total_us.saturating_add(took_us).min(INTEGER_MAX);
        }
    }

    pub(super) fn get(&self, key: &str) -> HandOff {
        self.names.get(key).copied().unwrap_or_default()
    }
}
