//! The hash maps of the loop.

use std::hash::Hash;
use std::ops::Index;

/// A hash map with a faster hash than the standard one. Its seed is drawn when the process starts, so a client cannot choose
/// names that fall together; nothing may hang on its order.
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

/// A map in which values are only looked up: whoever has it cannot see an order, so that the state may have it, too. Each value has
/// a place of its own: a map that grows moves words.
#[derive(Debug)]
pub(crate) struct Lookup<K, V>(HashMap<K, Box<V>>);

impl<K, V> Default for Lookup<K, V> {
    fn default() -> Lookup<K, V> {
        Lookup(HashMap::default())
    }
}

impl<K: Eq + Hash, V> Lookup<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.0.contains_key(key)
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key).map(Box::as_ref)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.0.get_mut(key).map(Box::as_mut)
    }

    /// Puts a value there. True if there was another one, which is gone.
    pub(crate) fn insert(&mut self, key: K, value: V) -> bool {
        self.0.insert(key, Box::new(value)).is_some()
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.0.remove(key).map(|value| *value)
    }
}

impl<K: Eq + Hash, V> Index<&K> for Lookup<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("a key that is known to be there")
    }
}
