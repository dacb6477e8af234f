//! Keys: JSON values with versions.

use super::State;
use crate::identity::Op;
use crate::kind::{Detail, Kind, Refusal};
use crate::name::Name;
use crate::outcome::Outcome;
use crate::state::parts::KeyPart;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// A key's value and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// JSON text as it came.
    pub value: Arc<str>,
    /// The command that set it.
    pub version: Op,
}

impl Key {
    pub(super) fn part(&self, key: &Name) -> KeyPart {
        let value = RawValue::from_string(self.value.to_string()).expect("a value was JSON when it was set");
        KeyPart { key: key.clone(), version: self.version, value }
    }
}

impl State {
    /// The key, if it exists.
    pub fn key(&self, key: &str) -> Option<&Key> {
        self.keys.get(key)
    }

    /// Keys whose names begin with `prefix`, after the name `after`, in the order of their names.
    pub fn keys<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Name, &'a Key)> {
        names_from(&self.keys, prefix, after)
    }

    /// Keys from `from` to `to`, both included, after the name `after`, in the order of their names.
    pub fn key_range<'a>(
        &'a self,
        from: &'a str,
        to: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Name, &'a Key)> {
        names_between(&self.keys, from, to, after)
    }

    pub(super) fn set(
        &mut self,
        key: &Name,
        value: &Arc<str>,
        if_version: Option<Op>,
    ) -> Result<Outcome, Refusal> {
        let limits = &self.head.limits;
        self.check_value(value)?;
        let old = self.keys.get(key);
        check_version(key, old.map_or(0, |old| old.version), if_version)?;
        if old.is_none() && self.keys.len() as u64 >= limits.keys {
            return Err(too_many_keys(limits.keys));
        }
        let grown = self.key_bytes - old.map_or(0, |old| weight(key, old)) + (key.len() + value.len()) as u64;
        if grown > limits.key_bytes {
            return Err(too_many_key_bytes(limits.key_bytes));
        }
        self.put_key(key, value);
        Ok(Outcome::Set { version: self.head.op, staged: false })
    }

    pub(super) fn delete(&mut self, key: &Name, if_version: Option<Op>) -> Result<Outcome, Refusal> {
        check_version(key, self.keys.get(key).map_or(0, |key| key.version), if_version)?;
        Ok(Outcome::Deleted { version: self.remove_key(key), staged: false })
    }

    pub(super) fn check_value(&self, value: &Arc<str>) -> Result<(), Refusal> {
        let max = self.head.limits.value_bytes;
        if value.len() as u64 > max {
            let text = format!("the value has {} bytes; at most {max} are allowed", value.len());
            return Err(
                Refusal::new(Kind::TooLarge, text).with(Detail::Limit { limit: "value_bytes".into(), max })
            );
        }
        Ok(())
    }

    /// Sets a key, all checks done.
    pub(super) fn put_key(&mut self, name: &Name, value: &Arc<str>) {
        self.remove_key(name);
        let key = Key { value: value.clone(), version: self.head.op };
        self.key_bytes += weight(name, &key);
        self.keys.insert(name.clone(), key);
    }

    /// Removes a key, all checks done; gives the version that it had.
    pub(super) fn remove_key(&mut self, name: &Name) -> Option<Op> {
        let removed = self.keys.remove(name)?;
        self.key_bytes -= weight(name, &removed);
        Some(removed.version)
    }

    pub(super) fn add_key(&mut self, part: KeyPart) -> Result<(), String> {
        if part.version == 0 || part.version > self.head.op {
            return Err(format!("key {:?}: its version was never given", part.key));
        }
        let value: Box<str> = part.value.into();
        let key = Key { value: value.into(), version: part.version };
        self.key_bytes += weight(&part.key, &key);
        match self.keys.insert(part.key.clone(), key) {
            None => Ok(()),
            Some(_) => Err(format!("key {:?}: it stands twice", part.key)),
        }
    }
}

/// Entries whose names begin with `prefix`, after the name `after`, in order.
pub(super) fn names_from<'a, T>(
    map: &'a BTreeMap<Name, T>,
    prefix: &'a str,
    after: Option<&'a str>,
) -> impl Iterator<Item = (&'a Name, &'a T)> {
    let begin = match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        Some(_) | None => Bound::Included(prefix),
    };
    map.range::<str, _>((begin, Bound::Unbounded)).take_while(move |(name, _)| name.starts_with(prefix))
}

/// Entries from `from` to `to`, both included, after the name `after`, in order.
pub(super) fn names_between<'a, T>(
    map: &'a BTreeMap<Name, T>,
    from: &'a str,
    to: &'a str,
    after: Option<&'a str>,
) -> impl Iterator<Item = (&'a Name, &'a T)> {
    let begin = match after {
        Some(after) if after >= from => Bound::Excluded(after),
        Some(_) | None => Bound::Included(from),
    };
    map.range::<str, _>((begin, Bound::Unbounded)).take_while(move |(name, _)| name.as_str() <= to)
}

fn weight(name: &Name, key: &Key) -> u64 {
    (name.len() + key.value.len()) as u64
}

pub(super) fn too_many_keys(max: u64) -> Refusal {
    let text = format!("the server has its {max} keys; delete one, or raise --max-keys");
    Refusal::limit("keys", max, text)
}

pub(super) fn too_many_key_bytes(max: u64) -> Refusal {
    let text = format!("keys and values would have over {max} bytes; delete some, or raise --max-key-bytes");
    Refusal::limit("key_bytes", max, text)
}

/// Whether a key of that version, 0 if it does not exist, is the one asked for.
pub(super) fn check_version(name: &Name, version: Op, if_version: Option<Op>) -> Result<(), Refusal> {
    match if_version {
        Some(asked) if asked != version => {
            let text = match version {
                0 => format!("key {name:?} does not exist, so it does not have version {asked}"),
                _ => format!("key {name:?} has version {version}, not {asked}; read it again"),
            };
            Err(Refusal::new(Kind::VersionMismatch, text).with(Detail::Version { version }))
        }
        Some(_) | None => Ok(()),
    }
}
