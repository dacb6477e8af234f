//! What a load has measured.

use super::{Plan, Sockets, Workload};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// The longest time that is told apart from longer ones.
const LONGEST: u64 = 600 * 1_000_000_000;

/// Times, in a histogram of three digits.
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Times {
        Times::new()
    }
}

impl Times {
    /// None yet.
    pub fn new() -> Times {
        Times(
            Histogram::new_with_bounds(1, LONGEST, 3)
                .expect("the bounds are in order, three digits are allowed"),
        )
    }

    /// One more.
    pub fn add(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(LONGEST));
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// What there is to say of them; nothing if there are none.
    pub fn percentiles(&self) -> Option<Percentiles> {
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let at = |part| micros(self.0.value_at_quantile(part));
        (self.count() > 0).then(|| Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(self.0.max()),
            mean: self.0.mean() / 1e3,
        })
    }
}

/// Times in microseconds: half of all are at most `p50`, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names are the field's")]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    pub mean: f64,
}

/// What a load has measured. Fields that have nothing to say are left out of the JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was asked.
    pub workload: Workload,
    /// Of whom.
    pub server: SocketAddr,
    /// Sessions.
    pub clients: usize,
    /// Whether each had a socket of its own.
    pub sockets: Sockets,
    /// Requests that each client has on their way.
    pub in_flight: usize,
    /// Requests in one datagram, at most.
    pub batch: usize,
    /// Distinct names of each request in flight; for heartbeats, locks that each client holds.
    pub names: usize,
    /// Locks that one request asks for, where it asks for several.
    pub together: usize,
    /// Bytes of a value, or of an append.
    pub value_bytes: usize,
    /// How long was measured.
    pub seconds: f64,
    /// Operations that ended in that time: cycles, grants, puts, gets, appends, heartbeats, rounds of the mixture, pings.
    pub operations: u64,
    /// Operations a second.
    pub rate: f64,
    /// Operations a second that were due, if they began by the clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_rate: Option<f64>,
    /// Those of them that never began, since every client was still busy with another one.
    pub not_begun: u64,
    /// How long an operation took, from when it was due; of a lock that is waited for, how long the wait was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<Percentiles>,
    /// Requests that were answered in that time.
    pub round_trips: u64,
    /// How long those took, where an operation is more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip_us: Option<Percentiles>,
    /// From the send of a release to the grant of whoever was next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hand_off_us: Option<Percentiles>,
    /// Requests that were told to stand in line.
    pub stood_in_line: u64,
    /// Heartbeats that were answered, measured or not.
    pub heartbeats: u64,
    /// Requests that were sent again since no answer came: lost datagrams, or a pause.
    pub resent: u64,
    /// Answers to what was answered before.
    pub doubled: u64,
    /// Datagrams with a wrong checksum.
    pub damaged: u64,
    /// Heartbeats that were due while the one before had no answer.
    pub skipped: u64,
    /// Errors by their kind; and `unanswered`, `not_granted`, `unexpected`, `lost`.
    pub errors: BTreeMap<String, u64>,
    /// How much of its core the load used, 0 to 1. Near 1 the load is what was measured.
    pub load_busy: f64,
    /// Locks that were acquired beforehand, a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acquired: Option<Acquired>,
    /// What the server used, if its process was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
}

/// Locks that were acquired before anything was measured, to be held.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Acquired {
    /// How many.
    pub locks: u64,
    /// How many a second.
    pub rate: f64,
}

/// What the process of the server used.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Process {
    /// CPU time an operation, in microseconds.
    pub cpu_us: f64,
    /// CPU time for each second, of one core: 1 is all of it.
    pub cpu: f64,
    /// Resident memory before the first session, in bytes.
    pub rss_before: u64,
    /// When the load began.
    pub rss_ready: u64,
    /// At its end.
    pub rss_after: u64,
}

impl Report {
    /// A report of nothing yet.
    pub(super) fn of(plan: &Plan) -> Report {
        Report {
            workload: plan.workload,
            server: plan.server,
            clients: plan.clients,
            sockets: plan.sockets,
            in_flight: plan.in_flight,
            batch: plan.batch,
            names: plan.names,
            together: plan.together,
            value_bytes: plan.value_bytes,
            seconds: 0.0,
            operations: 0,
            rate: 0.0,
            due_rate: plan.rate,
            not_begun: 0,
            latency_us: None,
            round_trips: 0,
            round_trip_us: None,
            hand_off_us: None,
            stood_in_line: 0,
            heartbeats: 0,
            resent: 0,
            doubled: 0,
            damaged: 0,
            skipped: 0,
            errors: BTreeMap::new(),
            load_busy: 0.0,
            acquired: None,
            process: None,
        }
    }

    /// Memory that a held lock costs, in bytes: what the server grew by while they were acquired.
    pub fn bytes_per_lock(&self) -> Option<f64> {
        let (process, acquired) = self.process.zip(self.acquired)?;
        Some((process.rss_ready as f64 - process.rss_before as f64) / acquired.locks as f64)
    }

    /// How many errors of whatever kind.
    pub fn errors_total(&self) -> u64 {
        self.errors.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_times() {
        let mut times = Times::new();
        assert!(times.percentiles().is_none());
        (1..=1_000).for_each(|micros| times.add(Duration::from_micros(micros)));
        let told = times.percentiles().unwrap();
        for (told, expected) in [(told.p50, 500.0), (told.p90, 900.0), (told.p99, 990.0), (told.max, 1_000.0)]
        {
            assert!((told - expected).abs() <= expected / 500.0, "{told} and not {expected}");
        }
        times.clear();
        assert_eq!(times.count(), 0);
    }
}
