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
use common::load::{self, Client, Figures, Work};
use common::server::Server;
use common::{Plan, fresh_dir, machine, thousands};
use std::process::ExitCode;

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
    let mut measured: Vec<Vec<Figures>> = rows.iter().map(|_| Vec::new()).collect();
    let mut syncs = Vec::new();
    let mut held = Vec::new();
    for _ in 0..plan.repeats {
        for (row, figures) in rows.iter().zip(&mut measured) {
            figures.push(row.measure(plan)?);
        }
        if plan.wants("fdatasync") {
            syncs.push(floor::fdatasync(&plan.dir, if plan.test { 5 } else { 300 })?);
        }
        if plan.wants("held") {
            held.push(held::measure(&plan.dir, &plan.cores, sizes.locks, plan.time())?);
        }
    }
    for work in [Work::Cycle, Work::Get, Work::Echo] {
        let shown: Vec<_> = rows.iter().zip(&mut measured).filter(|(row, _)| row.work == work).collect();
        if !shown.is_empty() {
            print_heading(work);
            for (row, figures) in shown {
                print_row(row, figures);
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
    work: Work,
    durability: Option<&'static str>,
    clients: usize,
}

/// Everything that is wanted, in the order of the tables.
fn rows(plan: &Plan, sizes: &Sizes) -> Vec<Row> {
    let mut rows = Vec::new();
    for work in [Work::Cycle, Work::Get] {
        for durability in DURABILITIES {
            rows.extend(sizes.clients.map(|clients| Row { work, durability: Some(durability), clients }));
        }
    }
    rows.extend(sizes.clients.map(|clients| Row { work: Work::Echo, durability: None, clients }));
    rows.retain(|row| plan.wants(&row.name()));
    rows
}

impl Row {
    fn name(&self) -> String {
        match self.durability {
            Some(durability) => format!("{}-{durability}-{}", self.work.name(), self.clients),
            None => format!("{}-{}", self.work.name(), self.clients),
        }
    }

    fn measure(&self, plan: &Plan) -> Result<Figures, String> {
        let Some(durability) = self.durability else {
            return floor::echo(self.clients, plan.time(), &plan.cores);
        };
        let dir = fresh_dir(&plan.dir)?;
        let (server, _) = Server::start(dir.path(), durability, &plan.cores)?;
        let mut clients = (0..self.clients)
            .map(|number| Client::open(server.address(), self.work, number))
            .collect::<Result<Vec<_>, _>>()?;
        load::run(&mut clients, plan.time(), &|| server.cpu_micros())
    }
}

fn print_heading(work: Work) {
    match work {
        Work::Cycle => {
            println!("\n**Cycle**: acquire and release a lock of one's own, two round trips.\n");
            println!(
                "| durability | clients | round trips/s (lowest–highest) | cycles/s | p50 µs | p99 µs | p99.9 µs | cycle p50 \
                 µs | errors | server CPU µs/round trip | load core busy |"
            );
            println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
        }
        _ => {
            match work {
                Work::Get => println!("\n**Get**: read one small key; nothing is logged.\n"),
                _ => println!(
                    "\n**The floor**: the same load against a thread that only sends back what it receives.\n"
                ),
            }
            println!(
                "| durability | clients | round trips/s (lowest–highest) | p50 µs | p99 µs | p99.9 µs | errors | server CPU \
                 µs/round trip | load core busy |"
            );
            println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
        }
    }
}

fn print_row(row: &Row, figures: &mut [Figures]) {
    figures.sort_by(|one, other| one.rate().total_cmp(&other.rate()));
    let (lowest, highest) = (figures[0].rate(), figures[figures.len() - 1].rate());
    let middle = &figures[figures.len() / 2];
    let rate = format!("{} ({}–{})", thousands(middle.rate()), thousands(lowest), thousands(highest));
    let [p50, p99, p999] =
        [0.5, 0.99, 0.999].map(|part| thousands(load::quantile(&middle.round_trips, part)));
    let durability = row.durability.unwrap_or("(echo)");
    let ends = format!("{} | {:.1} | {:.0} %", middle.errors, middle.server_cpu, middle.load_busy * 100.0);
    if row.work == Work::Cycle {
        let (cycles, cycle) =
            (thousands(middle.cycle_rate()), thousands(load::quantile(&middle.cycles, 0.5)));
        println!(
            "| {durability} | {} | {rate} | {cycles} | {p50} | {p99} | {p999} | {cycle} | {ends} |",
            row.clients
        );
    } else {
        println!("| {durability} | {} | {rate} | {p50} | {p99} | {p999} | {ends} |", row.clients);
    }
}
