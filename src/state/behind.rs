//! Who waits for an owner, over others too: the quick way to see that a wait of that owner closes no cycle.
//!
//! Looking ahead, from the asker to all that its wait depends on (`deadlock`), costs what stands before it, and that may be
//! ten thousand owners who have nothing to do with it. Most often few wait for the asker, directly or over others. If none of
//! them holds or waits for what the asker wants, nothing that stands before the asker leads back to it.
//!
//! Whoever is gone and not yet cleaned up is counted in: that can only make more of those who wait, never fewer.

use super::locks::Wanted;
use super::{Grant, State};
use crate::command::Ask;
use crate::identity::{Op, SessionId, Token};
use crate::name::Name;
use std::collections::{BTreeMap, BTreeSet};

/// An owner.
type Owner<'a> = (SessionId, &'a str);

/// The search for those who wait for the asker.
pub(super) struct Behind<'a> {
    state: &'a State,
    asker: Owner<'a>,
    /// What the asker wants, and whether it holds that already in another mode.
    asks: &'a [Ask],
    converts: bool,
    /// Sessions that were met, and what owners of them hold who were not followed yet.
    sessions: BTreeSet<SessionId>,
    held: BTreeMap<Owner<'a>, Vec<&'a Grant>>,
    /// Waits that were met, and those of them that are still to be followed.
    met: BTreeSet<Op>,
    next: Vec<Op>,
    /// From which place on all who stand in a line were met.
    lines: BTreeMap<&'a Name, usize>,
    steps: usize,
    most: usize,
}

/// What a look at those who wait for the asker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// None of them is in the asker's way.
    Clear,
    /// One of them may be.
    InTheWay,
    /// There are too many to look at.
    TooFar,
}

impl<'a> Behind<'a> {
    pub(super) fn new(
        state: &'a State,
        wanted: &Wanted<'a>,
        converts: Option<Token>,
        most: usize,
    ) -> Behind<'a> {
        Behind {
            state,
            asker: (wanted.session, wanted.owner),
            asks: wanted.asks,
            converts: converts.is_some(),
            sessions: BTreeSet::new(),
            held: BTreeMap::new(),
            met: BTreeSet::new(),
            next: Vec::new(),
            lines: BTreeMap::new(),
            steps: 0,
            most,
        }
    }

    /// Looks at those who wait for the asker.
    pub(super) fn look(&mut self) -> Look {
        self.follow_all().err().unwrap_or(Look::Clear)
    }

    /// How many grants and waits were looked at.
    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// How many waits were met.
    #[cfg(test)]
    pub(super) fn met(&self) -> usize {
        self.met.len()
    }

    fn follow_all(&mut self) -> Result<(), Look> {
        self.follow(self.asker)?;
        while let Some(op) = self.next.pop() {
            let wait = &self.state.waits[&op];
            self.follow((wait.session, &wait.owner))?;
            if wait.converts.is_none() {
                for ask in &wait.asks {
                    let line = self.state.locks[&ask.key].line();
                    self.meet_line(&ask.key, line.partition_point(|other| *other <= op))?;
                }
            }
        }
        Ok(())
    }

    /// Meets all who wait for what an owner holds.
    fn follow(&mut self, owner: Owner<'a>) -> Result<(), Look> {
        if self.sessions.insert(owner.0) {
            for token in self.state.sessions[&owner.0].grants.iter() {
                self.count()?;
                let grant = &self.state.grants[token];
                self.held.entry((owner.0, &grant.owner)).or_default().push(grant);
            }
        }
        for ask in self.held.remove(&owner).unwrap_or_default().iter().flat_map(|grant| &grant.asks) {
            self.count()?;
            if owner != self.asker && self.wants(&ask.key) {
                return Err(Look::InTheWay);
            }
            for op in self.state.locks[&ask.key].converting() {
                self.meet(*op)?;
            }
            self.meet_line(&ask.key, 0)?;
        }
        Ok(())
    }

    /// Meets all who stand in a line, from this place on.
    fn meet_line(&mut self, key: &'a Name, from: usize) -> Result<(), Look> {
        let line = self.state.locks[key].line();
        let upto = self.lines.get(key).copied().unwrap_or(line.len());
        for op in line.range(from.min(upto)..upto) {
            self.meet(*op)?;
        }
        self.lines.insert(key, from.min(upto));
        Ok(())
    }

    fn meet(&mut self, op: Op) -> Result<(), Look> {
        if !self.met.insert(op) {
            return Ok(());
        }
        self.count()?;
        // A conversion stands before all lines: only others who hold the lock are in its way, who are known by what they hold.
        let wait = &self.state.waits[&op];
        if !self.converts && wait.asks.iter().any(|ask| self.wants(&ask.key)) {
            return Err(Look::InTheWay);
        }
        self.next.push(op);
        Ok(())
    }

    fn wants(&self, key: &Name) -> bool {
        self.asks.binary_search_by(|ask| ask.key.cmp(key)).is_ok()
    }

    fn count(&mut self) -> Result<(), Look> {
        self.steps += 1;
        if self.steps > self.most { Err(Look::TooFar) } else { Ok(()) }
    }
}
