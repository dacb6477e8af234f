//! The log in memory: what is committed survives a crash, what is in flight does not.

use std::collections::VecDeque;
use std::sync::Arc;
use tenure::command::Entry;
use tenure::identity::Op;
use tenure::log::Batch;
use tenure::state::{Parts, State};

/// Committed commands, batches in flight, and a second state that applies the same commands.
pub(crate) struct MemoryLog {
    /// Whether batches wait for `log commit`.
    pub(crate) held: bool,
    /// Batches handed over and not yet durable.
    pub(crate) in_flight: VecDeque<Arc<Batch>>,
    committed: Vec<(Op, Entry)>,
    /// What a start reads first, and how many commands stand in it.
    snapshot: Option<(Parts, usize)>,
    shadow: State,
}

impl MemoryLog {
    pub(crate) fn new() -> MemoryLog {
        MemoryLog {
            held: false,
            in_flight: VecDeque::new(),
            committed: Vec::new(),
            snapshot: None,
            shadow: State::new(),
        }
    }

    /// Takes a batch, and checks that the node that made it has the state that the log gives.
    pub(crate) fn submit(&mut self, batch: Arc<Batch>) {
        assert!(!batch.entries.is_empty(), "a batch has at least one command");
        assert_eq!(batch.digest_op, self.shadow.op(), "the node has applied what is committed");
        assert_eq!(batch.digest, self.shadow.digest(), "two states of one log differ");
        self.in_flight.push_back(batch);
    }

    /// Makes the oldest batch durable.
    pub(crate) fn commit(&mut self) -> Option<u64> {
        let batch = self.in_flight.pop_front()?;
        for (index, entry) in batch.entries.iter().enumerate() {
            let op = batch.first_op + index as u64;
            self.shadow.apply_entry(op, entry, &mut Vec::new());
            self.committed.push((op, entry.clone()));
        }
        Some(batch.seq)
    }

    /// Remembers the state as a snapshot: a start replays only what comes behind it.
    pub(crate) fn take_snapshot(&mut self) {
        self.snapshot = Some((self.shadow.parts(), self.committed.len()));
    }

    /// The state that a start finds: the snapshot and what stands behind it, which must be what the whole log gives.
    pub(crate) fn recover(&mut self) -> State {
        self.in_flight.clear();
        let replayed = self.replay(State::new(), 0);
        let (parts, behind) = match &self.snapshot {
            Some((parts, behind)) => (parts.clone(), *behind),
            None => (self.shadow.parts(), self.committed.len()),
        };
        let recovered =
            self.replay(State::from_parts(parts).expect("the parts of a state make a state"), behind);
        for other in [&replayed, &self.shadow] {
            assert_eq!(
                recovered.digest(),
                other.digest(),
                "a snapshot and the whole log give different outcomes"
            );
            let (a, b) = (format!("{:#?}", recovered.parts()), format!("{:#?}", other.parts()));
            assert_eq!(a, b, "a snapshot and the whole log give different states");
        }
        recovered
    }

    fn replay(&self, mut state: State, from: usize) -> State {
        for (op, entry) in &self.committed[from..] {
            state.apply_entry(*op, entry, &mut Vec::new());
        }
        state
    }
}
