//! A map from ids that rise, as those of a session's requests do.
//!
//! What comes is nearly always the greatest, and what goes the least: both are the ends of a queue. An id that comes late moves
//! those on its nearer side, of which a session has as many as its window (1,024).

use std::collections::VecDeque;

/// A map in the order of its ids.
#[derive(Debug)]
pub(crate) struct Rising<V>(VecDeque<(u64, V)>);

impl<V> Default for Rising<V> {
    fn default() -> Rising<V> {
        Rising(VecDeque::new())
    }
}

impl<V> Rising<V> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where an id is, or would be.
    fn place(&self, id: u64) -> Result<usize, usize> {
        match (self.0.front(), self.0.back()) {
            (Some((first, _)), _) if *first == id => Ok(0),
            (_, Some((last, _))) if *last >= id => self.0.binary_search_by_key(&id, |(known, _)| *known),
            _ => Err(self.0.len()),
        }
    }

    pub(crate) fn get(&self, id: u64) -> Option<&V> {
        self.place(id).ok().map(|place| &self.0[place].1)
    }

    pub(crate) fn contains(&self, id: u64) -> bool {
        self.place(id).is_ok()
    }

    /// Puts a value there; gives the one that was there before.
    pub(crate) fn insert(&mut self, id: u64, value: V) -> Option<V> {
        match self.place(id) {
            Ok(place) => Some(std::mem::replace(&mut self.0[place].1, value)),
            Err(place) => {
                // At the ends `VecDeque::insert` and `remove` move nothing, too, but take several times as long to find that out.
                match place == self.0.len() {
                    true => self.0.push_back((id, value)),
                    false => self.0.insert(place, (id, value)),
                }
                None
            }
        }
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<V> {
        let removed = match self.place(id).ok()? {
            0 => self.0.pop_front(),
            place => self.0.remove(place),
        };
        self.give_back();
        removed.map(|(_, value)| value)
    }

    /// Takes out the least id, if there is one that satisfies the condition.
    pub(crate) fn pop_first_if(&mut self, condition: impl FnOnce(u64) -> bool) -> Option<(u64, V)> {
        let (first, _) = self.0.front()?;
        if !condition(*first) {
            return None;
        }
        let popped = self.0.pop_front();
        self.give_back();
        popped
    }

    /// All from this id on, in the order of the ids.
    pub(crate) fn from(&self, id: u64) -> impl Iterator<Item = (u64, &V)> {
        let place = match self.place(id) {
            Ok(place) | Err(place) => place,
        };
        self.0.range(place..).map(|(id, value)| (*id, value))
    }

    /// All, in the order of the ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        self.from(0)
    }

    /// Room that was needed once is not kept for good.
    fn give_back(&mut self) {
        if self.0.len() * 8 <= self.0.capacity() && self.0.capacity() > 16 {
            self.0.shrink_to(self.0.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Whatever is done to it, it has what a tree has.
    #[test]
    fn it_is_a_map_in_the_order_of_its_ids() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut rising, mut tree) = (Rising::default(), BTreeMap::new());
        for step in 0..20_000_u64 {
            // Grows and shrinks, so that room is given back.
            let growing = step / 1_000 % 2 == 0;
            let id = step.saturating_sub(random.u64(..8) * random.u64(..40));
            match random.u8(..4) {
                0 if !growing => {
                    let least = tree.first_key_value().map(|(id, _)| *id);
                    let may = random.bool();
                    let popped = if may { tree.pop_first() } else { None };
                    let same = rising.pop_first_if(|first| {
                        assert_eq!(Some(first), least);
                        may
                    });
                    assert_eq!(same, popped);
                }
                1 if !growing => {
                    let id = random.u64(..=step);
                    assert_eq!(rising.remove(id), tree.remove(&id));
                    while tree.len() > 300 {
                        assert_eq!(rising.pop_first_if(|_| true), tree.pop_first());
                    }
                }
                _ => assert_eq!(rising.insert(id, step), tree.insert(id, step)),
            }
            assert_eq!((rising.len(), rising.is_empty()), (tree.len(), tree.is_empty()));
            let asked = random.u64(..=step);
            assert_eq!(rising.get(asked), tree.get(&asked));
            assert_eq!(rising.contains(asked), tree.contains_key(&asked));
            assert!(rising.from(asked).eq(tree.range(asked..).map(|(id, value)| (*id, value))));
        }
        assert!(rising.iter().eq(tree.iter().map(|(id, value)| (*id, value))));
        while rising.pop_first_if(|_| true).is_some() {}
        assert!(rising.0.capacity() <= 16, "{}", rising.0.capacity());
    }
}
