//! The load generator behind `tenure bench`: many clients in one thread, over the public protocol alone.
//!
//! ```text
//!  plan ─► load: one stage after the other, open ─► prepare ─► work ─► tidy ─► close
//!            │
//!            ├─ request: bytes from pieces          ──► port: a socket, one call or a batch in a datagram
//!            └─ reply: the few fields that matter  ◄──┘
//!                 └─► report: histograms, counts, what the server's process used (process)
//! ```
//!
//! The load is a closed loop: a client asks again when it has its answer, so a slow server is asked less often, and a pause
//! counts once for each request on its way. With a rate it is an open one: operations begin by the clock, and their times run
//! from when they were due. Heartbeats always go out by the clock. Every session sends them, in every
//! workload; every reply is looked at; a datagram that gets no answer is sent again under the same id. What a run makes has
//! names of its own (`bench/NUMBER/...`) and is removed at its end.
//!
//! # Caveats
//! One thread: [`Report::load_busy`] says when the load is what was measured. Datagrams are sent one by one; requests share
//! one only as a batch of the protocol.

mod load;
mod port;
pub mod process;
mod reply;
pub mod report;
mod request;

use crate::limits::{ASKS_MAX, BATCH_ELEMENTS_MAX};
use report::Report;
use serde::Serialize;
use std::net::SocketAddr;
use std::time::Duration;

/// Clients of one run.
pub const CLIENTS_MAX: usize = 10_000;

/// Requests that one client has on their way: a session may have so many waits.
pub const IN_FLIGHT_MAX: usize = 256;

/// Names that one run uses.
pub const NAMES_MAX: usize = 10_000_000;

/// Bytes of a value or an append: with its quotes what a server takes unless it was told to take less.
pub const VALUE_BYTES_MAX: usize = 48 * 1024 - 2;

/// Operations a second that may begin by the clock.
pub const RATES: std::ops::RangeInclusive<f64> = 0.1..=10_000_000.0;

/// Locks that [`Workload::Several`] asks for at once, if nothing else is said.
pub const TOGETHER: usize = 3;

/// What each client does again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Acquire and release a lock that nobody else wants.
    Cycle,
    /// Acquire the one lock that all want, and release it at once; all ask again when all have had it.
    HandOff,
    /// Acquire some of many locks at once, drawn anew each time, waiting for them, and release them.
    Several,
    /// Write a key of its own.
    Put,
    /// Read a key of its own.
    Get,
    /// Append to a file of its own, whose lock it holds.
    Append,
    /// Hold locks, and keep them alive by a heartbeat each time that `every` has passed.
    Heartbeat,
    /// Acquire a lock, write and read its key, append to its file, release it.
    Mixed,
    /// Ask whether the server is there: no session, nothing logged.
    Ping,
}

/// Whose the sockets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Sockets {
    /// Each client has its own, as programs on their own would.
    Each,
    /// All share one, as they would behind an agent.
    One,
}

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the server is.
    pub server: SocketAddr,
    /// What each client does.
    pub workload: Workload,
    /// Clients, each with a session.
    pub clients: usize,
    /// Whose the sockets are.
    pub sockets: Sockets,
    /// Requests that each client has on their way.
    pub in_flight: usize,
    /// Requests in one datagram, at most.
    pub batch: usize,
    /// Distinct names of each request in flight, used in turn; for [`Workload::Heartbeat`] locks that each client holds, for
    /// [`Workload::Several`] all that there are.
    pub names: usize,
    /// Locks that one request of [`Workload::Several`] asks for.
    pub together: usize,
    /// Bytes of a value, or of an append.
    pub value_bytes: usize,
    /// How long is measured.
    pub time: Duration,
    /// How long the load runs before that.
    pub warm_up: Duration,
    /// The time from heartbeat to heartbeat of a session, for [`Workload::Heartbeat`]; else they come as the TTL asks.
    pub every: Duration,
    /// So many operations a second begin by the clock, whether or not earlier ones are done (an open loop); their times run
    /// from when they were due. None: each client asks again when it has its answer.
    pub rate: Option<f64>,
    /// TTL of the sessions.
    pub ttl: Duration,
    /// After so long without any answer there is no server. So long, too, is waited at the end for what is still on its way.
    pub patience: Duration,
    /// Ask for answers without a pause, in place of sleeping until there is one.
    pub spin: bool,
    /// Leave the sessions and what they hold to their TTL, and the keys and files as they are.
    pub leave: bool,
    /// The process of the server, if it is on this machine.
    pub server_pid: Option<u32>,
}

/// Why nothing was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// What was asked makes no sense.
    Plan(String),
    /// No server answers.
    Unreachable(String),
    /// The server refuses, or a socket fails.
    Refused(String),
}

impl Failure {
    /// The sentence for a person.
    pub fn sentence(&self) -> &str {
        match self {
            Failure::Plan(sentence) | Failure::Unreachable(sentence) | Failure::Refused(sentence) => sentence,
        }
    }
}

impl Workload {
    /// The names that it uses if nothing else is said.
    pub fn usual_names(self) -> usize {
        if self == Workload::Several { 1_000 } else { 1 }
    }

    /// Whether all clients begin together, again and again.
    fn in_rounds(self) -> bool {
        self == Workload::HandOff
    }

    /// Whether a lock is waited for: then the wait is what is measured.
    fn waits(self) -> bool {
        matches!(self, Workload::HandOff | Workload::Several)
    }
}

impl Plan {
    /// A plan with everything at its usual: 64 clients on sockets of their own, one request each, 2 s after 0.5 s.
    pub fn new(server: SocketAddr, workload: Workload) -> Plan {
        Plan {
            server,
            workload,
            clients: 64,
            sockets: Sockets::Each,
            in_flight: 1,
            batch: 1,
            names: workload.usual_names(),
            together: TOGETHER,
            value_bytes: 100,
            time: Duration::from_secs(2),
            warm_up: Duration::from_millis(500),
            every: Duration::from_secs(1),
            rate: None,
            ttl: Duration::from_secs(10),
            patience: Duration::from_secs(10),
            spin: false,
            leave: false,
            server_pid: None,
        }
    }

    /// Measures it.
    ///
    /// # Errors
    /// Why nothing was measured. What went wrong while measuring is in the report.
    pub fn run(&self) -> Result<Report, Failure> {
        self.check().map_err(Failure::Plan)?;
        load::run(self)
    }

    fn check(&self) -> Result<(), String> {
        let within = |what: &str, number: usize, most: usize| {
            if (1..=most).contains(&number) {
                Ok(())
            } else {
                Err(format!("{what} is from 1 to {most}, not {number}"))
            }
        };
        within("the number of clients", self.clients, CLIENTS_MAX)?;
        within("the number of requests in flight", self.in_flight, IN_FLIGHT_MAX)?;
        within("the number of requests in a datagram", self.batch, BATCH_ELEMENTS_MAX)?;
        within("the number of locks together", self.together, ASKS_MAX)?;
        within("the number of bytes of a value", self.value_bytes, VALUE_BYTES_MAX)?;
        let (names, slots) = (self.names, self.clients * self.in_flight);
        match self.workload {
            Workload::HandOff | Workload::Append | Workload::Ping if names != 1 => {
                let why = match self.workload {
                    Workload::HandOff => "all want one lock",
                    Workload::Append => "each client appends to one file",
                    _ => "a ping names nothing",
                };
                return Err(format!("more names are of no use to this workload: {why}"));
            }
            Workload::Several if names < self.together => {
                return Err(format!(
                    "this workload asks for {} locks at once: give it that many names",
                    self.together
                ));
            }
            Workload::Several => within("the number of names", names, NAMES_MAX)?,
            Workload::Heartbeat => {
                within("the number of locks", names.saturating_mul(self.clients), NAMES_MAX)?
            }
            _ => within("the number of names of all clients", names.saturating_mul(slots), NAMES_MAX)?,
        }
        if self.rate.is_some_and(|rate| !RATES.contains(&rate)) {
            return Err(format!(
                "the number of operations a second is from {} to {}",
                RATES.start(),
                RATES.end()
            ));
        }
        if self.rate.is_some() && matches!(self.workload, Workload::HandOff | Workload::Heartbeat) {
            return Err("this workload has a rhythm of its own: a rate is for the others".into());
        }
        if self.time.is_zero() {
            return Err("nothing can be measured in no time".into());
        }
        if self.workload == Workload::Heartbeat && self.every.as_secs_f64() > self.ttl.as_secs_f64() * 0.8 {
            return Err("heartbeats as rare as that let sessions end: make the time between them less than 80 % of the TTL".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_sent() {
        let nobody = "127.0.0.1:1".parse().unwrap();
        let refused = |workload, change: fn(&mut Plan)| {
            let mut plan = Plan::new(nobody, workload);
            change(&mut plan);
            match plan.run() {
                Err(Failure::Plan(sentence)) => sentence,
                other => panic!("{other:?}"),
            }
        };
        assert!(refused(Workload::Cycle, |plan| plan.clients = 0).contains("from 1 to 10000"));
        assert!(refused(Workload::Cycle, |plan| plan.in_flight = 257).contains("256"));
        assert!(refused(Workload::Cycle, |plan| plan.batch = 65).contains("64"));
        assert!(refused(Workload::Cycle, |plan| plan.names = NAMES_MAX).contains("all clients"));
        assert!(refused(Workload::Append, |plan| plan.names = 2).contains("one file"));
        assert!(refused(Workload::Several, |plan| plan.names = 2).contains("3 locks"));
        assert!(refused(Workload::Several, |plan| plan.together = 129).contains("128"));
        assert!(refused(Workload::Heartbeat, |plan| plan.every = plan.ttl).contains("80 %"));
        assert!(refused(Workload::Cycle, |plan| plan.rate = Some(0.0)).contains("from 0.1"));
        assert!(refused(Workload::HandOff, |plan| plan.rate = Some(1.0)).contains("rhythm"));
        assert!(refused(Workload::Ping, |plan| plan.time = Duration::ZERO).contains("no time"));
    }
}
