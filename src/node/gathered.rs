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

    /// About how many bytes their records will have: the sum of their [weights](Command::weight).
    pub(super) fn weight(&self) -> usize {
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

/// Takes out the first items: all of them, which is the rule, mostly without moving any. There is room for as many again.
fn take_first<T>(queue: &mut VecDeque<T>, count: usize) -> Vec<T> {
    if count < queue.len() {
        return queue.drain(..count).collect();
    }
    let mut all: Vec<T> = std::mem::replace(queue, VecDeque::with_capacity(count)).into();
    // A log that is behind keeps thousands of batches: their spare room would be as large as they are.
    all.shrink_to_fit();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Call, Request};
    use crate::identity::SessionId;
    use crate::name::Name;
    use crate::time::Time;
    use std::sync::Arc;

    fn append(id: u64, bytes: usize) -> Entry {
        let (file, data) = (Name::new("f").unwrap(), Arc::from(vec![0; bytes]));
        let call = Call::AppendFile { file, data, token: 1, holder: None };
        let request = Request { session: SessionId(1), id, ack: 0, got: Vec::new(), call };
        Entry { at: Time::ZERO, ahead_us: 0, command: Command::Request(request) }
    }

    /// The number of a command, and the one that its tag was given.
    fn numbers(entry: &Entry, tag: &Tag) -> (u64, u64) {
        (id_of(&entry.command), tag_of(tag))
    }

    fn id_of(command: &Command) -> u64 {
        match command {
            Command::Request(request) => request.id,
            other => panic!("{other:?}"),
        }
    }

    fn tag_of(tag: &Tag) -> u64 {
        match tag.asked {
            super::super::Asked::Request { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    /// Whatever is put in, taken out and refused: the order stays, each command keeps its tag, and every cap holds.
    #[test]
    fn batches_are_cut_from_the_front_at_every_cap() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut gathered, mut queue, mut id) = (Gathered::default(), VecDeque::new(), 0);
        let mut cut_by = [0; 3];
        for _ in 0..3_000 {
            let (few, large) = (random.bool(), random.bool());
            for _ in 0..random.usize(..if few { 20 } else { 900 }) {
                id += 1;
                let entry = append(id, if large { random.usize(..2_000) } else { 0 });
                queue.push_back((id, entry.command.weight()));
                let asked = super::super::Asked::Request { session: SessionId(1), id, fingerprint: 0 };
                gathered.push(entry, Tag { place: None, asked });
            }
            if random.u8(..4) == 0 {
                let refused = |id: u64| id.is_multiple_of(5);
                let taken = gathered.take_if(|command, tag| {
                    assert_eq!(id_of(command), tag_of(tag));
                    refused(id_of(command))
                });
                let gone = queue.iter().map(|(id, _)| *id).filter(|id| refused(*id));
                assert!(taken.iter().map(|(entry, tag)| numbers(entry, tag)).eq(gone.map(|id| (id, id))));
                queue.retain(|(id, _)| !refused(*id));
            }
            // Every 50th has reads behind it.
            let reads = |id: u64| if id.is_multiple_of(50) { READS_BEHIND_MAX / 2 } else { 0 };
            let bytes_max = random.usize(500..200_000);
            let Taken { entries, tags, bytes } = gathered.take_batch(bytes_max, |tag| reads(tag_of(tag)));
            assert_eq!(entries.is_empty(), queue.is_empty());
            assert_eq!(bytes, bytes_of(&entries));
            let taken: Vec<_> = queue.drain(..entries.len()).collect();
            let numbers = entries.iter().zip(&tags).map(|(entry, tag)| numbers(entry, tag));
            assert!(numbers.eq(taken.iter().map(|(id, _)| (*id, *id))));
            let behind: usize = taken.iter().map(|(id, _)| reads(*id)).sum();
            assert!(entries.len() <= BATCH_COMMANDS_MAX && behind <= READS_BEHIND_MAX);
            assert!(bytes <= bytes_max || entries.len() == 1);
            if let Some((id, weight)) = queue.front() {
                let caps = [
                    entries.len() == BATCH_COMMANDS_MAX,
                    behind + reads(*id) > READS_BEHIND_MAX,
                    bytes + bytes_of_weight(*weight) > bytes_max,
                ];
                assert!(caps.contains(&true), "the next one had room");
                cut_by.iter_mut().zip(caps).for_each(|(cut, by)| *cut += usize::from(by));
            }
            let left: usize = queue.iter().map(|(_, weight)| weight).sum();
            assert_eq!((gathered.len(), gathered.weight()), (queue.len(), left));
            if queue.len() > 5_000 {
                gathered.take_if(|_, _| true);
                queue.clear();
            }
        }
        assert!(cut_by.iter().all(|cuts| *cuts > 10), "{cut_by:?} cuts by each cap");
    }
}
