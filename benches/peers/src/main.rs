//! Tenure beside Redis, etcd and ZooKeeper from Debian: the same load on the same cores in one run, and the ratios.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml` builds the program, measures everything three times in turn
//! (some ten minutes), prints a line of JSON for each measurement and then the table of `docs/performance.md` as Markdown.
//! With `-- --seconds 0.5 --repeats 1 --only hand-off` it measures a part of it.
//!
//! Each measurement has a fresh server in a fresh directory, confined to one core; the load has another. Ours and theirs
//! follow each other within seconds, in each repeat, and the ratio is taken there. The peers are asked as barely as can be:
//! fixed bytes over one epoll for Redis and ZooKeeper, gRPC without a client library for etcd. What is not installed is
//! left out, and said.

#![allow(clippy::print_stdout, reason = "it prints its figures")]

mod disk;
mod etcd;
mod figures;
#[path = "../../common/machine.rs"]
mod machine;
mod ours;
#[allow(dead_code, reason = "shared with the load generator")]
#[path = "../../../src/bench/process.rs"]
mod process;
mod redis;
mod servers;
mod table;
mod tcp;
#[path = "../../common/thousands.rs"]
mod thousands;
mod zookeeper;

use clap::Parser;
use figures::{Figures, Time};
use machine::Cores;
use ours::Tenure;
use serde_json::json;
use servers::{Server, System};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use table::{Pass, ROWS, Row};

#[derive(Parser)]
#[command(about = "Measures Tenure beside Redis, etcd and ZooKeeper, and prints ratios as Markdown")]
struct Options {
    /// Time of one measurement, after a warm-up of half of it.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How often everything is measured; medians are shown.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Only rows that have this in a cell, or in the name of a measurement, such as sync-cycle or etcd.
    #[arg(long, default_value = "")]
    only: String,
    /// Where the fresh data directories are made: a directory on the disk to measure.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// The program to measure. [default: what `cargo build --release` makes of this source]
    #[arg(long)]
    tenure: Option<PathBuf>,
    /// What its server is told so that it waits without sleeping.
    #[arg(long, default_value = "--busy-poll", allow_hyphen_values = true)]
    busy_poll: String,
    /// Locks that are held for memory and the start.
    #[arg(long, default_value_t = 1_000_000)]
    locks: usize,
    /// Bytes of journal at the start.
    #[arg(long, default_value_t = 1 << 30)]
    journal: u64,
    /// Let the system place servers and load, in place of a core for each.
    #[arg(long)]
    no_pin: bool,
}

/// How one repeat is measured.
struct Setting {
    tenure: Tenure,
    dir: PathBuf,
    cores: Cores,
    time: Time,
    locks: usize,
    journal: u64,
}

/// Why there is no figure.
enum Absent {
    /// It cannot be measured here.
    Skipped(String),
    /// It went wrong.
    Failed(String),
}

impl From<String> for Absent {
    fn from(sentence: String) -> Absent {
        Absent::Failed(sentence)
    }
}

/// Every measurement, in the order in which they are taken: what is compared stands side by side.
const MEASUREMENTS: [&str; 36] = [
    "redis-cycle-64",
    "none-cycle-64",
    "redis-cycle-1",
    "none-cycle-1",
    "busy-cycle-1",
    "redis-cycle-1-spin",
    "busy-cycle-1-spin",
    "redis-pipelined-64",
    "none-peer-64",
    "redis-put",
    "none-put",
    "redis-get",
    "none-get",
    "redis-hand-off",
    "none-hand-off",
    "busy-hand-off",
    "etcd-hand-off",
    "sync-hand-off",
    "zookeeper-hand-off",
    "redis-always-cycle-64",
    "sync-cycle-64",
    "etcd-cycle-64",
    "redis-always-cycle-1",
    "sync-cycle-1",
    "disk-1",
    "sync-put-1",
    "disk-64",
    "sync-append",
    "sync-append-agent",
    "redis-keep-alive",
    "none-keep-alive",
    "none-keep-sessions",
    "redis-memory",
    "none-memory",
    "sync-start-empty",
    "sync-start",
];

impl Setting {
    fn measure(&self, name: &str) -> Result<Figures, Absent> {
        let time = &self.time;
        match name {
            "disk-1" => Ok(disk::group_commit(&self.dir, 1, 100, time)?),
            "disk-64" => Ok(disk::group_commit(&self.dir, 64, 100, time)?),
            "sync-start" => Ok(self.tenure.start(self.locks, self.journal, &self.dir, &self.cores)?),
            "sync-start-empty" => Ok(self.tenure.start(0, 0, &self.dir, &self.cores)?),
            "none-memory" => Ok(self.tenure.memory(self.locks, &self.dir, &self.cores)?),
            _ => match name.split_once('-') {
                Some(("redis", load)) => self.redis(load),
                Some(("etcd", load)) => {
                    let server = self.peer(System::Etcd)?;
                    let (clients, one_lock) = if load == "hand-off" { (16, true) } else { (64, false) };
                    Ok(etcd::run(server.address, clients, one_lock, time, server.pid())?)
                }
                Some(("zookeeper", _)) => {
                    let server = self.peer(System::ZooKeeper)?;
                    // A JVM that is not warm is another program.
                    let time = Time { warm_up: time.warm_up.max(time.measured * 2), ..*time };
                    Ok(zookeeper::hand_off(server.address, 16, &time, server.pid())?)
                }
                Some((mode, load)) => self.ours(mode, load),
                None => Err(Absent::Failed(format!("there is no measurement {name}"))),
            },
        }
    }

    fn peer(&self, system: System) -> Result<Server, Absent> {
        match system.missing() {
            Some(sentence) => Err(Absent::Skipped(sentence)),
            None => Ok(Server::start(system, &self.dir, &self.cores)?),
        }
    }

    fn redis(&self, load: &str) -> Result<Figures, Absent> {
        let (always, load) = load.strip_prefix("always-").map_or((false, load), |load| (true, load));
        let server = self.peer(System::Redis { always })?;
        let (address, pid, time) = (server.address, server.pid(), &self.time);
        let figures = match load {
            "cycle-64" => redis::cycles(address, 64, time, pid),
            "cycle-1" => redis::cycles(address, 1, time, pid),
            "cycle-1-spin" => redis::cycles(address, 1, &Time { spin: true, ..*time }, pid),
            "pipelined-64" => redis::pipelined(address, 64, time, pid),
            "hand-off" => redis::hand_off(address, 16, time, pid),
            "put" => redis::keys(address, 64, true, 100, time, pid),
            "get" => redis::keys(address, 64, false, 100, time, pid),
            "keep-alive" => redis::keep_alive(address, 64, 10_000, time, pid),
            "memory" => redis::memory(address, self.locks, pid),
            _ => Err(format!("there is no load {load} for Redis")),
        };
        Ok(figures?)
    }

    fn ours(&self, mode: &str, load: &str) -> Result<Figures, Absent> {
        let (durability, busy) = if mode == "busy" { ("none", true) } else { (mode, false) };
        if busy && !self.tenure.can_busy_poll() {
            return Err(Absent::Skipped(format!(
                "`tenure serve` of this build has no {}",
                self.tenure.busy_poll.join(" ")
            )));
        }
        let (load, spin) = load.strip_suffix("-spin").map_or((load, false), |load| (load, true));
        let arguments: &[&str] = match load {
            "cycle-64" => &[],
            "cycle-1" => &["--clients", "1"],
            "peer-64" => &["--clients", "1", "--in-flight", "64", "--batch", "64"],
            "hand-off" => &["--workload", "hand-off", "--clients", "16"],
            "put" => &["--workload", "put"],
            "put-1" => &["--workload", "put", "--clients", "1"],
            "get" => &["--workload", "get"],
            "append" => &["--workload", "append"],
            "append-agent" => &["--workload", "append", "--sockets", "one", "--batch", "64"],
            "keep-alive" => &[
                "--workload",
                "heartbeat",
                "--clients",
                "100",
                "--names",
                "100",
                "--in-flight",
                "10",
                "--batch",
                "10",
            ],
            "keep-sessions" => &["--workload", "heartbeat", "--clients", "10000"],
            _ => return Err(Absent::Failed(format!("there is no load {load} for Tenure"))),
        };
        let time = Time { spin, ..self.time };
        Ok(self.tenure.measure(durability, busy, arguments, &time, &self.dir, &self.cores)?)
    }
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(sentence) => {
            eprintln!("peers: {sentence}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and prints; whether everything that can be measured here was.
fn run(options: Options) -> Result<bool, String> {
    let seconds = options.seconds.clamp(0.05, 3_600.0);
    let time = Time {
        warm_up: Duration::from_secs_f64(seconds / 2.0),
        measured: Duration::from_secs_f64(seconds),
        spin: false,
    };
    let tenure = Tenure::built(options.tenure, &options.busy_poll)?;
    let dir = options.dir.canonicalize().map_err(|error| format!("{}: {error}", options.dir.display()))?;
    let cores = if options.no_pin { Cores::free() } else { Cores::split() };
    machine::describe(&dir, &cores, "cargo run --release --manifest-path benches/peers/Cargo.toml")?;
    let rows: Vec<&Row> = ROWS.iter().filter(|row| row.wants(&options.only)).collect();
    let wanted: BTreeSet<&str> = rows.iter().flat_map(|row| [row.ours, row.theirs]).collect();
    let setting = Setting { tenure, dir, cores, time, locks: options.locks, journal: options.journal };
    let mut passes = Vec::new();
    let mut skipped = BTreeSet::new();
    let mut well = true;
    println!();
    for repeat in 1..=options.repeats.max(1) {
        let mut pass = Pass::new();
        for name in MEASUREMENTS.into_iter().filter(|name| wanted.contains(name)) {
            match setting.measure(name) {
                Ok(figures) => {
                    println!("{}", json!({"repeat": repeat, "measurement": name, "figures": figures}));
                    if figures.load_busy > 0.95 && !name.contains("spin") {
                        eprintln!("peers: in {name} the load used its whole core: the server could do more");
                    }
                    pass.insert(name, figures);
                }
                Err(Absent::Skipped(sentence)) => {
                    skipped.insert(format!("{name} was left out: {sentence}"));
                }
                Err(Absent::Failed(sentence)) => {
                    well = false;
                    eprintln!("peers: {name}: {sentence}");
                }
            }
        }
        passes.push(pass);
    }
    println!("\n{}", table::markdown(&rows, &passes));
    for sentence in skipped {
        println!("- {sentence}");
    }
    Ok(well)
}
