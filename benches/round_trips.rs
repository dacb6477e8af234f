//! How many round trips a second the real server makes, how long one takes, what a start and 100,000 held locks cost.
//!
//! `cargo bench --bench round_trips` runs everything (some three minutes) and prints the Markdown of
//! `docs/performance.md`; `cargo bench --bench round_trips -- --seconds 1 --repeats 1 --only sync-64` runs what has
//! `sync-64` in its name. Without cargo's `--bench`, or with `--test`, it only shows that it works, in a second.
//!
//! The load is closed-loop: each client waits for its reply before it sends again, so a slow server is asked less often,
//! and a pause of the server counts once a client. Every measurement has a fresh server in a fresh directory; repeats
//! go through all of them in turn, and the row of the median rate is shown.

#![expect(clippy::print_stdout, reason = "a benchmark prints its tables")]

#[allow(dead_code, reason = "each benchmark uses a part of what they share")]
mod common;
#[path = "round_trips/floor.rs"]
mod floor;
#[path = "round_trips/held.rs"]
mod held;

use clap::Parser;
use common::server::Server;
use common::{Plan, fresh_dir, machine, thousands};
use std::process::ExitCode;
use tenure::bench;
use tenure::bench::Workload;
use tenure::bench::report::Report;

const DURABILITIES: [&str; 3] = ["sync", "os", "none"];

#[derive(Parser)]
#[command(about = "Measures round trips, starts and memory of the real server, and prints Markdown")]
#[command(after_help = "Names: such as sync-64, get-none-1, echo, fdatasync or held")]
struct Options {
    #[command(flatten)]
    common: common::Options,
    /// Locks to hold.
    #[arg(long, default_value_t = 100_000)]
    locks: usize,
}

/// What is measured, and how many clients take part.
struct Sizes {
    locks: usize,
    clients: [usize; 2],
}

fn main() -> ExitCode {
    let (plan, sizes) = if Plan::is_test() {
        (Plan::test(), Sizes { locks: 256, clients: [1, 4] })
    } else {
        let Options { common, locks } = Options::parse();
        (Plan::of(common), Sizes { locks, clients: [1, 64] })
    };
    match run(&plan, &sizes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("round_trips: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn run(plan: &Plan, sizes: &Sizes) -> Result<(), String> {
    machine::describe(&plan.dir, &plan.cores, "cargo bench --bench round_trips")?;
    let rows = rows(plan, sizes);
    let mut measured: Vec<Vec<Report>> = rows.iter().map(|_| Vec::new()).collect();
    let mut syncs = Vec::new();
    let mut held = Vec::new();
    for _ in 0..plan.repeats {
        for (row, reports) in rows.iter().zip(&mut measured) {
            reports.push(row.measure(plan)?);
        }
        if plan.wants("fdatasync") {
            syncs.push(floor::fdatasync(&plan.dir, if plan.test { 5 } else { 300 })?);
        }
        if plan.wants("held") {
            held.push(held::measure(&plan.dir, &plan.cores, sizes.locks, plan.time())?);
        }
    }
    for work in [Workload::Cycle, Workload::Get, Workload::Ping] {
        let shown: Vec<_> = rows.iter().zip(&mut measured).filter(|(row, _)| row.work == work).collect();
        if !shown.is_empty() {
            print_heading(work);
            for (row, reports) in shown {
                print_row(row, reports);
            }
        }
    }
    if !syncs.is_empty() {
        syncs.sort_by(f64::total_cmp);
        println!(
            "\nOne write of 512 bytes and `fdatasync`, in place: {:.0} µs ({:.0}–{:.0}).",
            syncs[syncs.len() / 2],
            syncs[0],
            syncs[syncs.len() - 1]
        );
    }
    if !held.is_empty() {
        held::print(sizes.locks, &held);
    }
    Ok(())
}

/// One row of a table: work, durability (none for the echo), clients.
struct Row {
    work: Workload,
    durability: Option<&'static str>,
    clients: usize,
}

/// Everything that is wanted, in the order of the tables.
fn rows(plan: &Plan, sizes: &Sizes) -> Vec<Row> {
    let mut rows = Vec::new();
    for work in [Workload::Cycle, Workload::Get] {
        for durability in DURABILITIES {
            rows.extend(sizes.clients.map(|clients| Row { work, durability: Some(durability), clients }));
        }
    }
    rows.extend(sizes.clients.map(|clients| Row { work: Workload::Ping, durability: None, clients }));
    rows.retain(|row| plan.wants(&row.name()));
    rows
}

impl Row {
    fn name(&self) -> String {
        match (self.durability, self.work) {
            (Some(durability), Workload::Get) => format!("get-{durability}-{}", self.clients),
            (Some(durability), _) => format!("cycle-{durability}-{}", self.clients),
            (None, _) => format!("echo-{}", self.clients),
        }
    }

    fn measure(&self, plan: &Plan) -> Result<Report, String> {
        let Some(durability) = self.durability else {
            return floor::echo(self.clients, plan.time(), &plan.cores);
        };
        let dir = fresh_dir(&plan.dir)?;
        let (server, _) = Server::start(dir.path(), durability, &plan.cores)?;
        common::load(plan.time(), self.plan(&server))
    }

    fn plan(&self, server: &Server) -> bench::Plan {
        let (clients, server_pid) = (self.clients, Some(server.pid()));
        bench::Plan { clients, server_pid, ..bench::Plan::new(server.address(), self.work) }
    }
}

fn print_heading(work: Workload) {
    match work {
        Workload::Cycle => {
            println!("\n**Cycle**: acquire and release a lock of one's own, two round trips.\n");
            println!(
                "| durability | clients | round trips/s (lowest–highest) | cycles/s | p50 µs | p99 µs | p99.9 µs | cycle p50 \
                 µs | sent again | server CPU µs/round trip | load core busy |"
            );
            println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
        }
        _ => {
            match work {
                Workload::Get => println!("\n**Get**: read one small key; nothing is logged.\n"),
                _ => println!(
                    "\n**The floor**: pings of the same load, answered by a thread that does nothing else.\n"
                ),
            }
            println!(
                "| durability | clients | round trips/s (lowest–highest) | p50 µs | p99 µs | p99.9 µs | sent again | server CPU \
                 µs/round trip | load core busy |"
            );
            println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
        }
    }
}

fn print_row(row: &Row, reports: &mut [Report]) {
    let (middle, lowest, highest) = common::middle(reports);
    // Of a cycle of two round trips as of one round trip.
    let trips = if row.work == Workload::Cycle { 2.0 } else { 1.0 };
    let rate = format!(
        "{} ({}–{})",
        thousands(middle.rate * trips),
        thousands(lowest * trips),
        thousands(highest * trips)
    );
    let [p50, p99, p999] = common::times(middle.round_trip_us.or(middle.latency_us));
    let durability = row.durability.unwrap_or("(echo)");
    let cpu = middle.process.map_or(f64::NAN, |process| process.cpu_us) / trips;
    let ends = format!("{} | {cpu:.1} | {:.0} %", middle.resent, middle.load_busy * 100.0);
    if row.work == Workload::Cycle {
        let [cycle, ..] = common::times(middle.latency_us);
        let cycles = thousands(middle.rate);
        println!(
            "| {durability} | {} | {rate} | {cycles} | {p50} | {p99} | {p999} | {cycle} | {ends} |",
            row.clients
        );
    } else {
        println!("| {durability} | {} | {rate} | {p50} | {p99} | {p999} | {ends} |", row.clients);
    }
}
