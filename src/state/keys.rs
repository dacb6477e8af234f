//! Keys: JSON values with versions.

use super::{KeyEnd, State, What};
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
        let begin = match after {
            Some(after) if after >= from => Bound::Excluded(after),
            Some(_) | None => Bound::Included(from),
        };
        self.keys.range::<str, _>((begin, Bound::Unbounded)).take_while(move |(name, _)| name.as_str() <= to)
    }

    pub(super) fn set(
        &mut self,
        key: &Name,
        value: &Arc<str>,
        if_version: Option<Op>,
    ) -> Result<Outcome, Refusal> {
        let limits = &self.head.limits;
        if value.len() as u64 > limits.value_bytes {
            let text =
                format!("the value has {} bytes; at most {} are allowed", value.len(), limits.value_bytes);
            return Err(Refusal::new(Kind::TooLarge, text)
                .with(Detail::Limit { limit: "value_bytes".into(), max: limits.value_bytes }));
        }
        let old = self.keys.get(key);
        check_version(key, old, if_version)?;
        if old.is_none() && self.keys.len() as u64 >= limits.keys {
            let text = format!("the server has its {} keys; delete one, or raise --max-keys", limits.keys);
            return Err(Refusal::limit("keys", limits.keys, text));
        }
        let grown = self.key_bytes - old.map_or(0, |old| weight(key, old)) + (key.len() + value.len()) as u64;
        if grown > limits.key_bytes {
            let max = limits.key_bytes;
            let text =
                format!("keys and values would have over {max} bytes; delete some, or raise --max-key-bytes");
            return Err(Refusal::limit("key_bytes", max, text));
        }
        self.key_bytes = grown;
        let version = self.head.op;
        self.keys.insert(key.clone(), Key { value: value.clone(), version });
        self.record(key, What::KeySet { version });
        Ok(Outcome::Set { version, staged: false })
    }

    pub(super) fn delete(&mut self, key: &Name, if_version: Option<Op>) -> Result<Outcome, Refusal> {
        check_version(key, self.keys.get(key), if_version)?;
        let removed = self.keys.remove(key);
        if let Some(removed) = &removed {
            self.key_bytes -= weight(key, removed);
            self.record(key, What::KeyDeleted { version: removed.version, reason: KeyEnd::Deleted });
        }
        Ok(Outcome::Deleted { version: removed.map(|key| key.version), staged: false })
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

fn weight(name: &Name, key: &Key) -> u64 {
    (name.len() + key.value.len()) as u64
}

fn check_version(name: &Name, key: Option<&Key>, if_version: Option<Op>) -> Result<(), Refusal> {
    let version = key.map_or(0, |key| key.version);
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
