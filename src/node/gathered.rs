//! What is gathered for the log: commands in their order, and who is to be told of each.

use super::{BATCH_COMMANDS_MAX, READS_BEHIND_MAX, Tag};
use crate::command::{Command, Entry};
use crate::log::{bytes_of, bytes_of_weight};
use std::collections::VecDeque;

/// Commands that have no place in the log yet, those of the same index in each queue being one: so a batch takes the entries as
/// they are.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    entries: VecDeque<Entry>,
    tags: VecDeque<Tag>,
    /// [`Command::weight`] of each.
    weights: VecDeque<usize>,
    /// Of all of them together.
    weight: usize,
}

/// What goes to the log together.
pub(super) struct Taken {
    pub entries: Vec<Entry>,
    pub tags: Vec<Tag>,
    /// [`bytes_of`] the entries.
    pub bytes: usize,
}

impl Gathered {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many commands.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// About how many bytes their records will have.
    pub(super) fn bytes(&self) -> usize {
        self.weight
    }

    pub(super) fn first(&self) -> Option<&Command> {
        self.entries.front().map(|entry| &entry.command)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Command, &Tag)> {
        self.entries.iter().map(|entry| &entry.command).zip(&self.tags)
    }

    pub(super) fn push(&mut self, entry: Entry, tag: Tag) {
        let weight = entry.command.weight();
        self.weight += weight;
        self.weights.push_back(weight);
        self.tags.push_back(tag);
        self.entries.push_back(entry);
    }

    /// Takes out what satisfies the condition; the rest stays in its order.
    pub(super) fn take_if(&mut self, condition: impl Fn(&Command, &Tag) -> bool) -> Vec<(Entry, Tag)> {
        let Gathered { entries, tags, .. } = std::mem::take(self);
        let mut taken = Vec::new();
        for (entry, tag) in entries.into_iter().zip(tags) {
            match condition(&entry.command, &tag) {
                true => taken.push((entry, tag)),
                false => self.push(entry, tag),
            }
        }
        taken
    }

    /// Takes from the front what goes together: at least one command if there is one, and at most so many bytes. `reads_behind`
    /// tells how many reads wait for the outcome of a command.
    pub(super) fn take_batch(&mut self, bytes_max: usize, reads_behind: impl Fn(&Tag) -> usize) -> Taken {
        let (mut bytes, mut reads, mut count) = (bytes_of(&[]), 0, 0);
        for (weight, tag) in self.weights.iter().zip(&self.tags).take(BATCH_COMMANDS_MAX) {
            let (more, behind) = (bytes_of_weight(*weight), reads_behind(tag));
            if count > 0 && (bytes + more > bytes_max || reads + behind > READS_BEHIND_MAX) {
                break;
            }
            bytes += more;
            reads += behind;
            count += 1;
        }
        self.weight -= self.weights.drain(..count).sum::<usize>();
        Taken {
            entries: take_first(&mut self.entries, count),
            tags: take_first(&mut self.tags, count),
            bytes,
        }
    }
}

/// Takes out the first items; all of them without moving any. There is room for as many again.
fn take_first<T>(queue: &mut VecDeque<T>, count: usize) -> Vec<T> {
    match count == queue.len() {
        true => std::mem::replace(queue, VecDeque::with_capacity(count)).into(),
        false => queue.drain(..count).collect(),
    }
}
