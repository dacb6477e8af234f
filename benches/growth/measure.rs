//! What grows, and what is measured at each size.

use crate::common::server::Server;
use crate::common::{self, Plan, ask, fresh_dir};
use crate::curve::{Curve, Point, Row};
use std::net::SocketAddr;
use std::time::Duration;
use tenure::bench::report::Report;
use tenure::bench::{self, Sockets, Workload};

/// Far longer than a run.
const TTL: Duration = Duration::from_secs(3_600);

/// Bytes of a value of [`state`].
const VALUE: usize = 10_000;

/// A curve that can be measured.
pub(crate) struct Measured {
    pub(crate) name: &'static str,
    title: &'static str,
    of: &'static str,
    columns: &'static [&'static str],
    sizes: &'static [usize],
    /// The only size where it is just shown to work.
    tiny: usize,
    at: fn(&Plan, usize) -> Result<Row, String>,
}

const WORK: &[&str] =
    &["operations/s", "p50 µs", "p99 µs", "server CPU µs an operation", "longest turn µs", "its CPU µs"];

pub(crate) const CURVES: &[Measured] = &[
    Measured {
        name: "locks",
        title: "64 clients acquire and release locks of their own, beside locks that others hold (`sync`)",
        of: "held locks",
        columns: WORK,
        sizes: &[1, 1_000, 10_000, 100_000, 1_000_000],
        tiny: 64,
        at: locks,
    },
    Measured {
        name: "sessions",
        title: "Sessions that hold two locks each send a heartbeat a second",
        of: "sessions",
        columns: WORK,
        sizes: &[10, 100, 1_000, 10_000],
        tiny: 4,
        at: sessions,
    },
    Measured {
        name: "waiters",
        title: "Clients that all want one lock, each let go at once (`none`)",
        of: "clients",
        columns: WORK,
        sizes: &[1, 10, 100, 1_000, 10_000],
        tiny: 4,
        at: waiters,
    },
    Measured {
        name: "together",
        title: "16 clients acquire so many of 10,000 locks in one request, and release them (`none`)",
        of: "locks in a request",
        columns: WORK,
        sizes: &[1, 3, 10, 30, 100],
        tiny: 3,
        at: together,
    },
    Measured {
        name: "overload",
        title: "Clients write keys at so many percent of the peak, beside 1,000 sessions that hold a lock each with a TTL of 2 s (`sync`)",
        of: "due, % of the peak",
        columns: &[
            "done/s",
            "due/s",
            "of the peak %",
            "p50 µs",
            "p99 µs",
            "sent again/s",
            "told to wait/s",
            "longest heartbeat ms",
            "leases lost",
            "longest turn µs",
            "its CPU µs",
            "load core busy %",
        ],
        sizes: &[50, 80, 100, 150, 200, 300],
        tiny: 200,
        at: overload,
    },
    Measured {
        name: "state",
        title: "Keys of 10,000 bytes: a start after kill -9, memory, and 64 clients with locks of their own meanwhile (`os`)",
        of: "MB of keys",
        columns: &[
            "start ms",
            "memory MB",
            "operations/s",
            "p50 µs",
            "p99 µs",
            "longest turn µs",
            "its CPU µs",
        ],
        sizes: &[10, 100, 900],
        tiny: 1,
        at: state,
    },
];

impl Measured {
    /// Measures the curve: of several repeats the one in the middle by the first figure.
    ///
    /// # Errors
    /// A sentence, if anything does not work.
    pub(crate) fn run(&self, plan: &Plan) -> Result<Curve, String> {
        let tiny = [self.tiny];
        let sizes = if plan.test { &tiny } else { self.sizes };
        let mut points = Vec::new();
        for size in sizes {
            let mut repeats = Vec::new();
            for _ in 0..plan.repeats {
                let figures = (self.at)(plan, *size)
                    .map_err(|sentence| format!("{} at {size}: {sentence}", self.name))?;
                repeats.push(figures);
            }
            repeats.sort_by(|one, other| one[0].unwrap_or(f64::NAN).total_cmp(&other[0].unwrap_or(f64::NAN)));
            points.push(Point { at: *size as f64, figures: repeats.swap_remove(repeats.len() / 2) });
        }
        let columns = self.columns.iter().map(|column| (*column).to_owned()).collect();
        Ok(Curve { title: self.title.into(), of: self.of.into(), columns, points })
    }
}

/// The longest turn of the loop so far, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turns {
    /// By the wall.
    pub(crate) longest: u64,
    /// The most CPU time that one took; 0 if none lasted a millisecond.
    pub(crate) cpu: u64,
}

/// What the loop says of its turns.
pub(crate) fn turns(server: &Server) -> Result<Turns, String> {
    // The loop looks at its own figures once a second.
    std::thread::sleep(Duration::from_millis(1_100));
    // The first answer ends the turn that reads the figures; before it there may be none.
    ask::count(server.address(), "grants")?;
    let longest = ask::count(server.address(), "longest_turn_us")?;
    Ok(Turns { longest, cpu: ask::count(server.address(), "longest_turn_cpu_us")? })
}

fn work(report: &Report, server: &Server) -> Result<Row, String> {
    let turns = turns(server)?;
    Ok(vec![
        Some(report.rate),
        report.latency_us.map(|times| times.p50),
        report.latency_us.map(|times| times.p99),
        report.process.map(|process| process.cpu_us),
        Some(turns.longest as f64),
        Some(turns.cpu as f64),
    ])
}

fn load(plan: &Plan, server: &Server, of: bench::Plan) -> Result<Report, String> {
    common::load(plan.time(), bench::Plan { server_pid: Some(server.pid()), ..of })
}

/// A load on a fresh server.
fn fresh(plan: &Plan, durability: &str, of: impl FnOnce(SocketAddr) -> bench::Plan) -> Result<Row, String> {
    let dir = fresh_dir(&plan.dir)?;
    let (server, _) = Server::start(dir.path(), durability, &plan.cores)?;
    work(&load(plan, &server, of(server.address()))?, &server)
}

fn locks(plan: &Plan, held: usize) -> Result<Row, String> {
    let dir = fresh_dir(&plan.dir)?;
    let (server, _) = Server::start(dir.path(), "sync", &plan.cores)?;
    if held >= 64 {
        common::hold(server.address(), held, TTL)?;
    }
    let report = load(plan, &server, bench::Plan::new(server.address(), Workload::Cycle))?;
    work(&report, &server)
}

fn sessions(plan: &Plan, sessions: usize) -> Result<Row, String> {
    let every = if plan.test { Duration::from_millis(10) } else { Duration::from_secs(1) };
    fresh(plan, "sync", |server| bench::Plan {
        clients: sessions,
        sockets: Sockets::One,
        names: 2,
        every,
        ttl: TTL,
        ..bench::Plan::new(server, Workload::Heartbeat)
    })
}

fn waiters(plan: &Plan, clients: usize) -> Result<Row, String> {
    fresh(plan, "none", |server| bench::Plan {
        clients,
        sockets: Sockets::One,
        ttl: TTL,
        ..bench::Plan::new(server, Workload::HandOff)
    })
}

fn together(plan: &Plan, together: usize) -> Result<Row, String> {
    fresh(plan, "none", |server| bench::Plan {
        clients: 16,
        together,
        names: 10_000,
        ..bench::Plan::new(server, Workload::Several)
    })
}

/// Overload: what a server does of what is due, and whether leases live that are kept alive.
fn overload(plan: &Plan, percent: usize) -> Result<Row, String> {
    let dir = fresh_dir(&plan.dir)?;
    let (server, _) = Server::start(dir.path(), "sync", &plan.cores)?;
    let peak = load(plan, &server, bench::Plan::new(server.address(), Workload::Put))?.rate;
    let (clients, in_flight, keepers) = if plan.test { (8, 4, 4) } else { (1_000, 32, 1_000) };
    let due = peak * percent as f64 / 100.0;
    let time = plan.time() * 2;
    let keeping = bench::Plan {
        clients: keepers,
        sockets: Sockets::One,
        every: Duration::from_millis(500),
        ttl: Duration::from_secs(2),
        // It begins before the load, and ends after it.
        time: time * 2 + Duration::from_secs(2),
        warm_up: Duration::ZERO,
        ..bench::Plan::new(server.address(), Workload::Heartbeat)
    };
    let writing = bench::Plan {
        clients,
        in_flight,
        rate: Some(due),
        time,
        warm_up: time / 4,
        ttl: TTL,
        leave: true,
        ..bench::Plan::new(server.address(), Workload::Put)
    };
    let (kept, report) = std::thread::scope(|scope| {
        let keeper = scope.spawn(|| keeping.run());
        std::thread::sleep(Duration::from_millis(500));
        let report = writing.run();
        (keeper.join(), report)
    });
    let told = |failure: bench::Failure| failure.sentence().to_owned();
    let kept = kept.map_err(|_| "the heartbeats failed".to_owned())?.map_err(told)?;
    let mut report = report.map_err(told)?;
    // The second is for clients that have as many replies unacknowledged as are kept, since one request was long in coming through.
    // (A cap on keys would say the same; there are far fewer.)
    let told_to_wait: u64 = ["busy", "limit"].iter().filter_map(|kind| report.errors.remove(*kind)).sum();
    if !report.errors.is_empty() {
        return Err(format!("the load met errors: {:?}", report.errors));
    }
    let turns = turns(&server)?;
    Ok(vec![
        Some(report.rate),
        Some(due),
        Some(report.rate / peak * 100.0),
        report.latency_us.map(|times| times.p50),
        report.latency_us.map(|times| times.p99),
        Some(report.resent as f64 / report.seconds),
        Some(told_to_wait as f64 / report.seconds),
        kept.latency_us.map(|times| times.max / 1e3),
        Some(kept.errors.values().sum::<u64>() as f64),
        Some(turns.longest as f64),
        Some(turns.cpu as f64),
        Some(report.load_busy * 100.0),
    ])
}

fn state(plan: &Plan, megabytes: usize) -> Result<Row, String> {
    let dir = fresh_dir(&plan.dir)?;
    let (server, _) = Server::start(dir.path(), "os", &plan.cores)?;
    write_keys(plan, &server, megabytes)?;
    server.kill();
    let (server, took) = Server::start(dir.path(), "os", &plan.cores)?;
    let memory = server.memory_kb("VmRSS") * 1_024.0 / 1e6;
    let report = load(plan, &server, bench::Plan::new(server.address(), Workload::Cycle))?;
    let turns = turns(&server)?;
    Ok(vec![
        Some(took.as_secs_f64() * 1e3),
        Some(memory),
        Some(report.rate),
        report.latency_us.map(|times| times.p50),
        report.latency_us.map(|times| times.p99),
        Some(turns.longest as f64),
        Some(turns.cpu as f64),
    ])
}

/// Writes keys until there are so many megabytes of them.
pub(crate) fn write_keys(plan: &Plan, server: &Server, megabytes: usize) -> Result<(), String> {
    loop {
        let there = ask::count(server.address(), "key_bytes")?;
        let missing = (megabytes as u64 * 1_000_000).saturating_sub(there);
        if missing < 8 * VALUE as u64 {
            return Ok(());
        }
        // Each run has names of its own, and each of its clients uses so many in turn.
        let names = (missing as usize / VALUE / 8).clamp(1, 1_000);
        let of = bench::Plan {
            clients: 8,
            names,
            value_bytes: VALUE,
            leave: true,
            ttl: TTL,
            ..bench::Plan::new(server.address(), Workload::Put)
        };
        common::load(plan.time().min(Duration::from_millis(500)), of)?;
    }
}
