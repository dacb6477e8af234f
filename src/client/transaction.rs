//! Transactions: several keys compared and changed by one request, or none of them.

use super::guard::millis;
use super::keys::to_raw;
use super::{Error, Fence, Result};
use crate::wire::{Applied, ChangeAsk, CompareAsk, Int, Params};
use serde::Serialize;
use serde_json::value::RawValue;
use std::time::Duration;

/// A transaction while it is put together: nothing is asked before [`commit`](Transaction::commit).
///
/// If every key compared has its version when the server comes to it, all changes take effect at once and get one version;
/// if not, none does. Each key is compared at most once and changed at most once.
#[derive(Debug)]
#[must_use = "nothing is asked before `commit`"]
pub struct Transaction {
    fence: Fence,
    compare: Vec<CompareAsk>,
    apply: Vec<ChangeAsk>,
    /// The first value that cannot be written as JSON.
    fault: Option<Error>,
}

impl Transaction {
    pub(super) fn new(fence: Fence) -> Transaction {
        Transaction { fence, compare: Vec::new(), apply: Vec::new(), fault: None }
    }

    /// Only if the key has this version; 0: only if it does not exist.
    pub fn compare(mut self, key: &str, version: u64) -> Transaction {
        self.compare.push(CompareAsk { key: key.into(), version: Int(version) });
        self
    }

    /// Sets a key that stays until it is changed.
    pub fn set<T: Serialize + ?Sized>(self, key: &str, value: &T) -> Transaction {
        self.change(key, value, |change| change)
    }

    /// Sets a key that goes after `ttl`: in whole milliseconds, 100 ms to 365 days.
    pub fn set_for<T: Serialize + ?Sized>(self, key: &str, value: &T, ttl: Duration) -> Transaction {
        self.change(key, value, |change| ChangeAsk { ttl_ms: Some(Int(millis(ttl))), ..change })
    }

    /// Sets a key that goes with this session.
    pub fn set_bound<T: Serialize + ?Sized>(self, key: &str, value: &T) -> Transaction {
        self.change(key, value, |change| ChangeAsk { bound: Some(true), ..change })
    }

    /// Deletes a key; it is no error if it does not exist.
    pub fn delete(self, key: &str) -> Transaction {
        self.apply(ChangeAsk { key: key.into(), delete: Some(true), ..ChangeAsk::default() })
    }

    /// A change as it goes over the wire.
    pub fn apply(mut self, change: ChangeAsk) -> Transaction {
        self.apply.push(change);
        self
    }

    /// Asks for it. Gives the version of every key that it set.
    ///
    /// # Errors
    /// [`Error::Refused`] with `version_mismatch` (its `data` names the key and the version found), `guarded`,
    /// `not_holder` or `limit`; [`Error::Invalid`] if a value cannot be written as JSON. Nothing changed.
    pub fn commit(self) -> Result<u64> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let params = Params { compare: Some(self.compare), apply: Some(self.apply), ..Params::default() };
        self.fence.ask("transaction", params).map(|applied: Applied| applied.version)
    }

    fn change<T: Serialize + ?Sized>(
        mut self,
        key: &str,
        value: &T,
        with_life: impl FnOnce(ChangeAsk) -> ChangeAsk,
    ) -> Transaction {
        match to_raw(value) {
            Ok(value) => self.apply(with_life(change_to(key, value))),
            Err(error) => {
                self.fault.get_or_insert(error);
                self
            }
        }
    }
}

fn change_to(key: &str, value: Box<RawValue>) -> ChangeAsk {
    ChangeAsk { key: key.into(), value: Some(value), ..ChangeAsk::default() }
}
