//! The hash map of the loop.

/// A hash map with a faster hash than the standard one. Its seed is drawn when the process starts, so a client cannot choose
/// names that fall together; nothing may hang on its order.
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;
