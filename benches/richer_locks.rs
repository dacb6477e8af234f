//! What the richer locks cost: several locks in one request, detection of deadlocks, and the hand-off of a wanted lock.
//!
//! `cargo bench --bench richer_locks` runs everything (some 40 seconds) and prints the Markdown of
//! `docs/performance.md`; `cargo bench --bench richer_locks -- --repeats 1 --only detection` runs what has `detection` in
//! its name. Without cargo's `--bench`, or with `--test`, it only shows that it works, in a second.
//!
//! Grants and hand-offs are measured like the round trips of `round_trips.rs`: from outside, with the real server on one
//! core and all clients in one thread on the other, each in a closed loop. Detection is measured inside, as the time that
//! the state machine takes for the one command, during which a server does nothing else, and outside, as the time until
//! the answer.

#![expect(clippy::print_stdout, reason = "a benchmark prints its tables")]

#[path = "richer_locks/asked.rs"]
mod asked;
#[allow(dead_code, reason = "each benchmark uses a part of what they share")]
mod common;
#[path = "richer_locks/detection.rs"]
mod detection;
#[path = "richer_locks/owners.rs"]
mod owners;

use clap::Parser;
use common::server::Server;
use common::{Plan, fresh_dir, machine, thousands};
use std::process::ExitCode;
use tenure::bench;
use tenure::bench::report::Report;
use tenure::bench::{TOGETHER, Workload};

const DURABILITIES: [&str; 2] = ["sync", "none"];

#[derive(Parser)]
#[command(
    about = "Measures several locks at once, hand-offs and detection of deadlocks, and prints Markdown"
)]
#[command(after_help = "Names: such as several-sync, hand-off-none, detection, detection-line or asked")]
struct Options {
    #[command(flatten)]
    common: common::Options,
}

fn main() -> ExitCode {
    let plan = if Plan::is_test() { Plan::test() } else { Plan::of(Options::parse().common) };
    match run(&plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("richer_locks: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn run(plan: &Plan) -> Result<(), String> {
    machine::describe(&plan.dir, &plan.cores, "cargo bench --bench richer_locks")?;
    let (fighters, contenders, owners) = if plan.test { (4, 4, 200) } else { (64, 16, 10_000) };
    let rows: Vec<Row> = [(Workload::Several, fighters), (Workload::HandOff, contenders)]
        .into_iter()
        .flat_map(|(work, clients)| DURABILITIES.map(|durability| Row { work, durability, clients }))
        .filter(|row| plan.wants(&row.name()))
        .collect();
    let mut measured: Vec<Vec<Report>> = rows.iter().map(|_| Vec::new()).collect();
    let (mut passes, mut asked) = (Vec::new(), Vec::new());
    for _ in 0..plan.repeats {
        for (row, reports) in rows.iter().zip(&mut measured) {
            reports.push(row.measure(plan)?);
        }
        // The bound is as far away in a test.
        let wants = |name: &str| plan.wants(name) && !(plan.test && name == "detection-bound");
        passes.push(detection::measure(owners, &wants)?);
        if plan.wants("asked") {
            asked.push(asked::measure(&plan.dir, &plan.cores, owners)?);
        }
    }
    for work in [Workload::Several, Workload::HandOff] {
        let shown: Vec<_> = rows.iter().zip(&mut measured).filter(|(row, _)| row.work == work).collect();
        let Some((first, _)) = shown.first() else { continue };
        print_heading(work, first.clients);
        for (row, reports) in shown {
            print_row(row, reports);
        }
    }
    detection::print(passes);
    asked::print(asked);
    Ok(())
}

/// One row of a table.
struct Row {
    work: Workload,
    durability: &'static str,
    clients: usize,
}

impl Row {
    fn name(&self) -> String {
        let work = if self.work == Workload::HandOff { "hand-off" } else { "several" };
        format!("{work}-{}", self.durability)
    }

    fn measure(&self, plan: &Plan) -> Result<Report, String> {
        let dir = fresh_dir(&plan.dir)?;
        let (server, _) = Server::start(dir.path(), self.durability, &plan.cores)?;
        let (clients, server_pid) = (self.clients, Some(server.pid()));
        let load = bench::Plan { clients, server_pid, ..bench::Plan::new(server.address(), self.work) };
        common::load(plan.time(), load)
    }
}

fn print_heading(work: Workload, clients: usize) {
    if work == Workload::HandOff {
        println!(
            "\n**Hand-off**: {clients} clients want one lock, in rounds; from the send of a release to the reply of whoever is next.\n"
        );
        println!(
            "| durability | hand-offs/s (lowest–highest) | p50 µs | p99 µs | p99.9 µs | sent again | load core busy |"
        );
        println!("|---|---:|---:|---:|---:|---:|---:|");
    } else {
        println!(
            "\n**Several locks**: {clients} clients acquire {TOGETHER} of {} locks in one request, waiting for them, and \
             release them.\n",
            thousands(Workload::Several.usual_names() as f64)
        );
        println!(
            "| durability | grants/s (lowest–highest) | stood in line | grant p50 µs | p99 µs | p99.9 µs | sent again | server \
             CPU µs/grant and release | load core busy |"
        );
        println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    }
}

fn print_row(row: &Row, reports: &mut [Report]) {
    let (middle, lowest, highest) = common::middle(reports);
    let rate = format!("{} ({}–{})", thousands(middle.rate), thousands(lowest), thousands(highest));
    let hand_off = row.work == Workload::HandOff;
    let [p50, p99, p999] = common::times(if hand_off { middle.hand_off_us } else { middle.latency_us });
    let (durability, resent, busy) = (row.durability, middle.resent, middle.load_busy * 100.0);
    if hand_off {
        println!("| {durability} | {rate} | {p50} | {p99} | {p999} | {resent} | {busy:.0} % |");
    } else {
        let in_line = middle.stood_in_line as f64 / middle.operations as f64 * 100.0;
        let cpu = middle.process.map_or(f64::NAN, |process| process.cpu_us);
        println!(
            "| {durability} | {rate} | {in_line:.0} % | {p50} | {p99} | {p999} | {resent} | {cpu:.1} | {busy:.0} % |"
        );
    }
}
