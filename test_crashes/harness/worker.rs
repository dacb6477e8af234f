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
        let lock = self.locks[self.rng.usize(0..self.locks.len())].clone();
        let mut raw = match (life, self.raw.take()) {
            (Life::Long, Some(raw)) => raw,
            (Life::Long, None) => patient(self.to, 20_000),
            (Life::Short, kept) => {
                let raw = patient(self.to, 400);
                let ended = self.run(raw, &lock, life);
                self.raw = kept;
                // In a short life the lease may run out at any point; that is what it is for.
                drop(ended);
                return;
            }
        };
        raw.acks = true;
        match self.run(raw, &lock, life) {
            Ok(raw) => self.raw = Some(raw),
            Err(Lost(text)) => self.oracle.fault(format!("{lock}: a living client was refused: {text}")),
        }
    }

    fn run(&mut self, mut raw: Raw, lock: &str, life: Life) -> Result<Raw, Lost> {
        let steps = self.rng.u64(1..=3);
        let dies_at = if life == Life::Short { self.rng.u64(0..=steps) } else { u64::MAX };
        let grant = result(raw.call("acquire_lock", json!({"key": lock, "wait_ms": null})))?;
        let Some(token) = grant["token"].as_u64() else { return Err(Lost(grant.to_string())) };
        self.oracle.granted(token, grant["op"].as_u64().unwrap());
        if life == Life::Long {
            self.oracle.begins(lock, token);
        }
        for number in 1..=steps {
            self.oracle.sends(lock, token, number);
            let line = Oracle::line(token, number);
            let sent = raw.prepare("append_file", json!({"file": lock, "token": token, "data": line}));
            if number > dies_at {
                // Its last act may still arrive.
                raw.send(&sent);
                return Ok(raw);
            }
            let placed = result(raw.finish(&sent))?;
            let [offset, length] = ["offset", "length"].map(|name| placed[name].as_u64().unwrap());
            self.oracle.appended(lock, token, number, offset, length);
        }
        let read = result(raw.call("get", json!({"key": lock})))?;
        let count = read["value"].as_u64().unwrap_or(0);
        let version = read["version"].as_u64().unwrap_or(0);
        self.oracle.adds(lock);
        let params = json!({"key": lock, "value": count + 1, "if_version": version, "token": token});
        result(raw.call("set", params))?;
        self.oracle.added(lock);
        self.oracle.ends(lock, token);
        if life == Life::Long {
            result(raw.call("release_lock", json!({"token": token})))?;
            self.oracle.acked();
        }
        Ok(raw)
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
