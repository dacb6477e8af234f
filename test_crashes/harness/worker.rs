//! A client of the soaks: section after section under a lock, each with appends and a counted key, told to the judge.

use super::{Answer, Oracle, Raw};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How a worker ends its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It lives on: losing its session would be the server's fault.
    Long,
    /// It dies somewhere in a section, and the lease has to free the lock.
    Short,
}

/// How a worker comes to hold its locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It asks for them: one, or two at once.
    Acquire,
    /// It reads first, then asks to write.
    Convert,
    /// It asks for an atomic section.
    Atomic,
}

/// A worker with its own random numbers.
pub(crate) struct Worker {
    to: SocketAddr,
    oracle: Arc<Oracle>,
    rng: fastrand::Rng,
    locks: Vec<String>,
    raw: Option<Raw>,
}

/// A request that got no result: the session or the grant is gone.
struct Lost(String);

impl Worker {
    /// A worker on some locks; lock N guards file N and key N.
    pub(crate) fn new(to: SocketAddr, oracle: &Arc<Oracle>, locks: &[&str], seed: u64) -> Worker {
        let locks = locks.iter().map(|&lock| lock.to_owned()).collect();
        Worker { to, oracle: Arc::clone(oracle), rng: fastrand::Rng::with_seed(seed), locks, raw: None }
    }

    /// One section, whole or, in a short life, up to where it dies.
    pub(crate) fn section(&mut self, life: Life) {
        let way = [Way::Acquire, Way::Acquire, Way::Convert, Way::Atomic][self.rng.usize(0..4)];
        let many = if way == Way::Convert { 1 } else { self.rng.usize(1..=2.min(self.locks.len())) };
        self.rng.shuffle(&mut self.locks);
        let locks = self.locks[..many].to_vec();
        let mut raw = match (life, self.raw.take()) {
            (Life::Long, Some(raw)) => raw,
            (Life::Long, None) => patient(self.to, 20_000),
            (Life::Short, kept) => {
                let raw = patient(self.to, 400);
                let ended = self.run(raw, &locks, way, life);
                self.raw = kept;
                // In a short life the lease may run out at any point; that is what it is for.
                drop(ended);
                return;
            }
        };
        raw.acks = true;
        match self.run(raw, &locks, way, life) {
            Ok(raw) => self.raw = Some(raw),
            Err(Lost(text)) => {
                self.oracle.wrongly_expired(format!("{locks:?}: a living client was refused: {text}"))
            }
        }
    }

    /// Takes the locks for itself alone; none if it would wait for one that waits for it.
    fn take(raw: &mut Raw, locks: &[String], way: Way) -> Result<Option<Value>, Lost> {
        if way != Way::Convert {
            let params = json!({"keys": locks, "wait_ms": null, "atomic": way == Way::Atomic});
            return result(raw.call("acquire_lock", params)).map(Some);
        }
        let reads = json!({"keys": locks, "mode": "shared", "wait_ms": null});
        let read = result(raw.call("acquire_lock", reads))?;
        let asked = raw.call("convert_lock", json!({"token": read["token"], "keys": locks, "wait_ms": null}));
        if asked.kind() == Some("deadlock") {
            result(raw.call("release_lock", json!({"token": read["token"]})))?;
            return Ok(None);
        }
        result(asked).map(Some)
    }

    fn run(&mut self, mut raw: Raw, locks: &[String], way: Way, life: Life) -> Result<Raw, Lost> {
        let steps = self.rng.u64(1..=3);
        let dies_at = if life == Life::Short { self.rng.u64(0..=steps) } else { u64::MAX };
        let Some(grant) = Worker::take(&mut raw, locks, way)? else { return Ok(raw) };
        let Some(token) = grant["token"].as_u64() else { return Err(Lost(grant.to_string())) };
        for lock in locks {
            self.oracle.granted(lock, token, grant["op"].as_u64().unwrap());
            if life == Life::Long {
                self.oracle.begins(lock, token);
            }
        }
        // What is staged stands once it is released.
        let mut placed = Vec::new();
        for number in 1..=steps {
            for lock in locks {
                self.oracle.sends(lock, token, number);
                let line = Oracle::line(token, number);
                let sent = raw.prepare("append_file", json!({"file": lock, "token": token, "data": line}));
                if number > dies_at {
                    // Its last act may still arrive.
                    raw.send(&sent);
                    return Ok(raw);
                }
                let place = result(raw.finish(&sent))?;
                let [offset, length] = ["offset", "length"].map(|name| place[name].as_u64().unwrap());
                if way == Way::Atomic {
                    placed.push((lock, number, offset, length));
                } else {
                    self.oracle.appended(lock, token, number, offset, length);
                }
            }
        }
        self.count(&mut raw, locks, token)?;
        if way != Way::Atomic {
            locks.iter().for_each(|lock| self.oracle.added(lock));
        }
        locks.iter().for_each(|lock| self.oracle.ends(lock, token));
        if life == Life::Long {
            result(raw.call("release_lock", json!({"token": token})))?;
            self.oracle.acked();
            for (lock, number, offset, length) in placed {
                self.oracle.appended(lock, token, number, offset, length);
            }
            if way == Way::Atomic {
                locks.iter().for_each(|lock| self.oracle.added(lock));
            }
        }
        Ok(raw)
    }

    /// Adds one to the key of each lock: one after another, or all in one transaction.
    fn count(&mut self, raw: &mut Raw, locks: &[String], token: u64) -> Result<(), Lost> {
        let (mut compare, mut apply) = (Vec::new(), Vec::new());
        let together = self.rng.bool();
        for lock in locks {
            let read = result(raw.call("get", json!({"key": lock})))?;
            let count = read["value"].as_u64().unwrap_or(0);
            let version = read["version"].as_u64().unwrap_or(0);
            self.oracle.adds(lock);
            if together {
                compare.push(json!({"key": lock, "version": version}));
                apply.push(json!({"key": lock, "value": count + 1}));
            } else {
                let params = json!({"key": lock, "value": count + 1, "if_version": version, "token": token});
                result(raw.call("set", params))?;
            }
        }
        if together {
            let params = json!({"compare": compare, "apply": apply, "token": token});
            result(raw.call("transaction", params))?;
        }
        Ok(())
    }
}

fn patient(to: SocketAddr, ttl_ms: u64) -> Raw {
    let mut raw = Raw::new(to);
    raw.patience = Duration::from_secs(120);
    raw.open_session(ttl_ms);
    raw
}

fn result(answer: Answer) -> Result<Value, Lost> {
    match answer.0.get("result") {
        Some(result) => Ok(result.clone()),
        None => Err(Lost(answer.0.to_string())),
    }
}
