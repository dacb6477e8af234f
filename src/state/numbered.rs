//! Maps from, and sets of, numbers that are given out one after another, as tokens are.
//!
//! A B-tree into which only the greatest key is inserted keeps its nodes half empty. Here a run of numbers shares one entry of
//! a tree, so that a million values that live together take little more than themselves.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Index;

/// Numbers that share an entry: as many as a mask has bits.
const RUN: u64 = u32::BITS as u64;

/// A map in the order of its numbers.
#[derive(Debug)]
pub(super) struct Numbered<V> {
    runs: BTreeMap<u64, Run<V>>,
    len: usize,
}

#[derive(Debug)]
struct Run<V> {
    /// Which of the run's numbers are there.
    present: u32,
    /// Their values, in the order of the numbers: the first to come are often the first to go.
    values: VecDeque<V>,
}

impl<V> Run<V> {
    fn has(&self, number: u64) -> bool {
        self.present & bit(number) != 0
    }

    /// Where the value of a number is, or would be.
    fn place(&self, number: u64) -> usize {
        (self.present & (bit(number) - 1)).count_ones() as usize
    }

    fn iter(&self, run: u64) -> impl Iterator<Item = (u64, &V)> {
        let numbers = (0..RUN).filter(|number| self.has(*number));
        numbers.map(move |number| run * RUN + number).zip(&self.values)
    }
}

fn bit(number: u64) -> u32 {
    1 << (number % RUN)
}

impl<V> Default for Numbered<V> {
    fn default() -> Numbered<V> {
        Numbered { runs: BTreeMap::new(), len: 0 }
    }
}

impl<V> Numbered<V> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, number: u64) -> Option<&V> {
        let run = self.runs.get(&(number / RUN)).filter(|run| run.has(number))?;
        run.values.get(run.place(number))
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut V> {
        let run = self.runs.get_mut(&(number / RUN)).filter(|run| run.has(number))?;
        let place = run.place(number);
        run.values.get_mut(place)
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.get(number).is_some()
    }

    /// Puts a value there; gives the one that was there before.
    pub(super) fn insert(&mut self, number: u64, value: V) -> Option<V> {
        let run =
            self.runs.entry(number / RUN).or_insert_with(|| Run { present: 0, values: VecDeque::new() });
        let place = run.place(number);
        if run.has(number) {
            return Some(std::mem::replace(&mut run.values[place], value));
        }
        run.present |= bit(number);
        match place == run.values.len() {
            true => run.values.push_back(value),
            false => run.values.insert(place, value),
        }
        self.len += 1;
        None
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<V> {
        let Entry::Occupied(mut entry) = self.runs.entry(number / RUN) else { return None };
        let run = entry.get_mut();
        if !run.has(number) {
            return None;
        }
        let value = match run.place(number) {
            0 => run.values.pop_front(),
            place => run.values.remove(place),
        };
        run.present &= !bit(number);
        self.len -= 1;
        match run.values.len() {
            0 => drop(entry.remove()),
            // Those that outlive the rest of their run do not keep its room.
            len if len * 4 <= run.values.capacity() => run.values.shrink_to(len * 2),
            _ => {}
        }
        Some(value.expect("each bit that is set has its value"))
    }

    /// All, in the order of the numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        self.runs.iter().flat_map(|(run, values)| values.iter(*run))
    }

    /// All with greater numbers, in their order.
    pub(super) fn after(&self, number: u64) -> impl Iterator<Item = (u64, &V)> {
        let from = number.saturating_add(1);
        let runs = self.runs.range(from / RUN..);
        runs.flat_map(|(run, values)| values.iter(*run)).filter(move |(number, _)| *number >= from)
    }
}

impl<V> Index<u64> for Numbered<V> {
    type Output = V;

    fn index(&self, number: u64) -> &V {
        self.get(number).expect("a number that is known to be there")
    }
}

/// A set in the order of its numbers: a bit for each, in words of 64.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    words: BTreeMap<u64, u64>,
    len: usize,
}

/// The word of a number, and its bit there.
fn bit_of(number: u64) -> (u64, u64) {
    (number / u64::from(u64::BITS), 1 << (number % u64::from(u64::BITS)))
}

impl Numbers {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a number; gives whether it was not there.
    pub(super) fn insert(&mut self, number: u64) -> bool {
        let (word, bit) = bit_of(number);
        let bits = self.words.entry(word).or_default();
        let new = *bits & bit == 0;
        *bits |= bit;
        self.len += usize::from(new);
        new
    }

    /// Takes a number out; gives whether it was there.
    pub(super) fn remove(&mut self, number: u64) -> bool {
        let (word, bit) = bit_of(number);
        let Entry::Occupied(mut entry) = self.words.entry(word) else { return false };
        let bits = entry.get_mut();
        let there = *bits & bit != 0;
        *bits &= !bit;
        self.len -= usize::from(there);
        if *bits == 0 {
            entry.remove();
        }
        there
    }

    pub(super) fn first(&self) -> Option<u64> {
        self.iter().next()
    }

    /// All, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().flat_map(|(word, bits)| {
            let mut left = *bits;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(word * u64::from(u64::BITS) + u64::from(bit))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_set_does_what_a_tree_does() {
        for seed in 0..30 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut numbers, mut tree) = (Numbers::default(), BTreeSet::new());
            let most = [70, 500, u64::MAX][seed as usize % 3];
            for step in 0..3_000 {
                let number = random.u64(0..most);
                if random.u8(0..10) < [3, 6, 8][step / 500 % 3] {
                    assert_eq!(numbers.insert(number), tree.insert(number), "seed {seed}");
                } else {
                    let number = tree.iter().nth(random.usize(0..=tree.len())).copied().unwrap_or(number);
                    assert_eq!(numbers.remove(number), tree.remove(&number), "seed {seed}");
                }
                assert_eq!((numbers.len(), numbers.is_empty()), (tree.len(), tree.is_empty()), "seed {seed}");
                assert_eq!(numbers.first(), tree.first().copied(), "seed {seed}");
                if step % 50 == 0 {
                    assert!(numbers.iter().eq(tree.iter().copied()), "seed {seed}");
                }
            }
            for number in tree {
                assert!(numbers.remove(number));
            }
            assert!(numbers.words.is_empty());
        }
    }

    /// Against the tree that it stands for, over runs that are dense, sparse, emptied and filled again.
    #[test]
    fn it_does_what_a_tree_does() {
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut numbered, mut tree) = (Numbered::default(), BTreeMap::new());
            let most = [40, 300, 5_000][seed as usize % 3];
            for step in 0..4_000 {
                let number = random.u64(0..most);
                if random.u8(0..10) < [3, 6, 8][step / 500 % 3] {
                    assert_eq!(numbered.insert(number, step), tree.insert(number, step), "seed {seed}");
                } else {
                    assert_eq!(numbered.remove(number), tree.remove(&number), "seed {seed}");
                }
                let number = random.u64(0..most);
                assert_eq!(numbered.get(number), tree.get(&number), "seed {seed}");
                assert_eq!(numbered.len(), tree.len(), "seed {seed}");
                if let (Some(one), Some(other)) = (numbered.get_mut(number), tree.get_mut(&number)) {
                    (*one, *other) = (*one + 1, *other + 1);
                }
                let rooms = numbered.runs.values().map(|run| (run.values.len(), run.values.capacity()));
                assert!(rooms.into_iter().all(|(len, room)| room <= 4 * len.max(1)), "seed {seed}");
                if step % 100 == 0 {
                    assert!(numbered.iter().eq(tree.iter().map(|(number, value)| (*number, value))));
                    let after = tree.range(number + 1..).map(|(number, value)| (*number, value));
                    assert!(numbered.after(number).eq(after), "seed {seed}");
                }
            }
            for (number, _) in tree {
                assert!(numbered.remove(number).is_some());
            }
            assert!(numbered.runs.is_empty() && numbered.after(u64::MAX).next().is_none());
        }
    }
}
