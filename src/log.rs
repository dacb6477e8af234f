//! The seam between the loop and what makes commands durable: submit batches, poll for what became of them.
//!
//! One node puts the [journal](crate::journal) behind it, a cluster a replicated log. Everything is called from the
//! loop's thread and nothing waits, [`Log::close`] aside. A read needs no barrier of its own on one node: the loop shows
//! only what was committed, and no other server can have committed more.
//!
//! Order of calls: [`Log::submit`] batches with rising tags, [`Log::poll`] until it has nothing each time the waker
//! fired and before each submit; [`Log::fold`] when it says [`LogEvent::FoldDue`]; [`Log::close`] once at the end.

use crate::command::{Command, Entry};
use crate::identity::{Op, RAISE};
use crate::image::record::Record;
use crate::state::Parts;
use std::sync::Arc;

/// Commands that are to become durable together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The submitter's tag: 1 for the first batch of the process, then rising by one. (The journal numbers batches
    /// for itself.)
    pub seq: u64,
    /// The op of the first entry: that of [`next_op`].
    pub first_op: Op,
    /// The commands in their order; at least one.
    pub entries: Vec<Entry>,
    /// The last op that the submitter has applied.
    pub digest_op: Op,
    /// The digest of all outcomes up to it.
    pub digest: u32,
    /// [`bytes_of`] the entries.
    pub bytes: usize,
}

/// What became of what was submitted, and how the disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEvent {
    /// The batch with this tag is as durable as the configuration says. Tags come in order, each once.
    Committed {
        /// The tag.
        seq: u64,
    },
    /// The room on the disk has changed to this.
    Room(Room),
    /// It is time for [`Log::fold`].
    FoldDue,
    /// The snapshot up to `op` is durable.
    SnapshotDone {
        /// Up to here.
        op: Op,
    },
    /// No snapshot was written; the journal goes on and keeps its segments. It is asked for again later.
    SnapshotFailed {
        /// What, where, what to do.
        sentence: String,
    },
    /// The log cannot go on: nothing more will be committed. The process must end without another reply.
    Failed {
        /// What, where, what to do.
        sentence: String,
    },
}

/// What the disk can still take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// All.
    Ok,
    /// Only what frees something: the rest is to be refused with `no_space` before it gets its place in the log.
    Low,
    /// Nothing: all is to be refused with `no_space`.
    Full,
}

/// What makes commands durable, in order.
pub trait Log {
    /// Takes a batch. Must have at least one entry, fit [`Log::batch_bytes_max`], and not come while
    /// [`Log::room`] refuses what is in it.
    fn submit(&mut self, batch: Arc<Batch>);

    /// What has happened since; none when there is nothing more.
    fn poll(&mut self) -> Option<LogEvent>;

    /// What the disk can still take, with all that was submitted already counted.
    fn room(&self) -> Room;

    /// The largest batch that fits, in bytes as [`bytes_of`] counts them.
    fn batch_bytes_max(&self) -> usize;

    /// Asks for a sync of what was only handed over, as at a stop; answers come as for any batch.
    fn flush(&mut self);

    /// Asks for a snapshot of all that is durable now. Answered by `SnapshotDone` or `SnapshotFailed`; nothing if there is
    /// nothing new or one is being written already. Writes to files that are not `safe` in them are carried along.
    ///
    /// `state` is the state after a committed command, all of whose writes are safe in the files: a snapshot of that will do,
    /// where it can be had without replaying the log.
    fn fold(&mut self, safe: Record, state: Option<Box<Parts>>);

    /// Makes all that was submitted durable, seals the log, and ends its threads. Waits for that. What was committed is
    /// still there to be polled.
    ///
    /// # Errors
    /// The sentence of `Failed`, or that submitted batches found no room on the disk. What was not committed may be
    /// lost.
    fn close(&mut self) -> Result<(), String>;
}

/// The op that `command` gets behind `last`: the next one, or the next one raised for a term that says so.
pub fn next_op(last: Op, command: &Command) -> Op {
    last.saturating_add(step(command))
}

/// How far the op of `command` is from that of the command before it.
pub(crate) fn step(command: &Command) -> Op {
    match command {
        Command::NewTerm { raised: true, .. } => 1 + RAISE,
        Command::NewTerm { .. }
        | Command::OpenSession { .. }
        | Command::EndSession { .. }
        | Command::Tick
        | Command::FileFault { .. }
        | Command::Request(_) => 1,
    }
}

/// At least as many bytes as a batch of these entries takes in the log.
pub fn bytes_of(entries: &[Entry]) -> usize {
    256 + entries.iter().map(|entry| bytes_of_weight(entry.command.weight())).sum::<usize>()
}

/// What a command of that [weight](crate::command::Command::weight) adds to them.
pub fn bytes_of_weight(weight: usize) -> usize {
    64 + weight
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Call, Durability, Request};
    use crate::identity::SessionId;
    use crate::limits::Limits;
    use crate::name::Name;
    use crate::time::Time;

    #[test]
    fn a_batch_is_never_larger_than_it_was_counted() {
        let max = u64::MAX;
        let limits = Limits { keys: max, sessions: max, files: max, grants: max, ..Limits::default() };
        let commands = [
            Command::Tick,
            Command::NewTerm { term: max, limits, durability: Durability::None, raised: true },
            Command::Request(Request {
                session: SessionId(u128::MAX),
                id: max,
                ack: max,
                got: vec![max; 256],
                call: Call::AppendFile {
                    file: Name::new(&"f".repeat(256)).unwrap(),
                    data: Arc::from(vec![255; 4096]),
                    token: max,
                    holder: Some(SessionId(u128::MAX)),
                },
            }),
            Command::Request(Request {
                session: SessionId(u128::MAX),
                id: max,
                ack: max,
                got: vec![],
                call: Call::RepairFile {
                    file: Name::new("f").unwrap(),
                    generation: max,
                    length: max,
                    checksum: u32::MAX,
                    token: max,
                    holder: Some(SessionId(u128::MAX)),
                },
            }),
        ];
        for command in commands {
            let entries = vec![Entry { at: Time::from_micros(max), ahead_us: max, command }; 3];
            let mut body = Vec::new();
            entries.iter().for_each(|entry| crate::record::encode(entry, &mut body));
            assert!(crate::batch::bytes(body.len()) <= bytes_of(&entries), "{:?}", entries[0]);
        }
    }

    #[test]
    fn only_a_raised_term_jumps() {
        let term = |raised| Command::NewTerm {
            term: 2,
            limits: Limits::default(),
            durability: Durability::Sync,
            raised,
        };
        assert_eq!(next_op(5, &Command::Tick), 6);
        assert_eq!(next_op(5, &term(false)), 6);
        assert_eq!(next_op(5, &term(true)), 6 + RAISE);
    }
}
