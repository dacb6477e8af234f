//! What many held locks cost: memory, starts after a kill and after a clean stop, and the work of others meanwhile.

use crate::common::machine::Cores;
use crate::common::server::Server;
use crate::common::{self, ask, fresh_dir, thousands};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use tenure::bench::{Plan, Workload};

/// Far longer than a run: nobody sends heartbeats.
const TTL: Duration = Duration::from_secs(3_600);

/// Rows of the table, in the order of [`measure`]'s figures.
const ROWS: [(&str, usize); 19] = [
    ("locks acquired a second, 64 a datagram, 16 sessions, `sync`", 0),
    ("memory before, MB (VmRSS)", 1),
    ("memory with the locks, MB", 1),
    ("**memory a lock, bytes** (the difference)", 0),
    ("cycle of one more client, none held: p50 µs", 0),
    ("the same with the locks held: p50 µs", 0),
    ("journal on the disk, with what is allocated ahead, MB", 1),
    ("start, empty directory, ms", 1),
    ("**start after kill -9, ms**", 1),
    ("CPU time of that start, ms", 0),
    ("memory after it, MB", 1),
    ("most memory until then, MB (VmHWM)", 1),
    ("longest `get` in the time after it, while the snapshot is written, ms", 1),
    ("clean stop, ms", 0),
    ("snapshot, MB", 1),
    ("**start after a clean stop, ms**", 1),
    ("CPU time of that start, ms", 0),
    ("memory after it, MB", 1),
    ("most memory until then, MB (VmHWM)", 1),
];

/// One pass through it all.
///
/// # Errors
/// A sentence, if anything does not work; also if a lock that was granted is not held after a start.
pub(crate) fn measure(
    parent: &Path,
    cores: &Cores,
    locks: usize,
    time: Duration,
) -> Result<[f64; ROWS.len()], String> {
    let dir = fresh_dir(parent)?;
    let data = dir.path().join("data");
    let (server, empty_start) = Server::start(dir.path(), "sync", cores)?;
    let cycle_empty = median_cycle(&server, time)?;
    let before = server.memory_kb("VmRSS");
    let (locks, rate) = common::hold(server.address(), locks, TTL)?;
    let with = server.memory_kb("VmRSS");
    let cycle_held = median_cycle(&server, time)?;
    server.kill();
    let journal = megabytes(&data.join("journal"))?;

    let (server, killed_start) = Server::start(dir.path(), "sync", cores)?;
    let killed_cpu = server.cpu_micros();
    let longest_get = longest_get(&server, time)?;
    count_held(server.address(), locks)?;
    let (killed_memory, killed_peak) = (server.memory_kb("VmRSS"), server.memory_kb("VmHWM"));
    let stop = server.stop()?;
    let snapshot = megabytes(&data.join("server_state.json"))?;

    let (server, clean_start) = Server::start(dir.path(), "sync", cores)?;
    let clean_cpu = server.cpu_micros();
    let (clean_memory, clean_peak) = (server.memory_kb("VmRSS"), server.memory_kb("VmHWM"));
    count_held(server.address(), locks)?;

    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mb = |kb: f64| kb * 1024.0 / 1e6;
    Ok([
        rate,
        mb(before),
        mb(with),
        (with - before) * 1024.0 / locks as f64,
        cycle_empty,
        cycle_held,
        journal,
        ms(empty_start),
        ms(killed_start),
        killed_cpu / 1e3,
        mb(killed_memory),
        mb(killed_peak),
        longest_get,
        ms(stop),
        snapshot,
        ms(clean_start),
        clean_cpu / 1e3,
        mb(clean_memory),
        mb(clean_peak),
    ])
}

/// Prints the table: medians, and the lowest and highest of several passes.
#[expect(clippy::print_stdout, reason = "a benchmark prints its tables")]
pub(crate) fn print(locks: usize, passes: &[[f64; ROWS.len()]]) {
    println!("\n**{} held locks**, names of 32 bytes.\n", thousands(locks as f64));
    println!("| what | median | lowest–highest |\n|---|---:|---:|");
    for (row, (name, decimals)) in ROWS.iter().enumerate() {
        let mut figures: Vec<f64> = passes.iter().map(|pass| pass[row]).collect();
        figures.sort_by(f64::total_cmp);
        let show = |figure: f64| {
            if *decimals == 0 { thousands(figure) } else { format!("{figure:.*}", *decimals) }
        };
        let (lowest, highest) = (show(figures[0]), show(figures[figures.len() - 1]));
        println!("| {name} | {} | {lowest}–{highest} |", show(figures[figures.len() / 2]));
    }
}

/// All that was granted is held, whatever happened to the server.
fn count_held(server: SocketAddr, locks: u64) -> Result<(), String> {
    let held = ask::count(server, "grants")?;
    if held == locks { Ok(()) } else { Err(format!("{held} of {locks} locks are held after a start")) }
}

fn median_cycle(server: &Server, time: Duration) -> Result<f64, String> {
    let report = common::load(time, Plan { clients: 1, ..Plan::new(server.address(), Workload::Cycle) })?;
    Ok(report.latency_us.map_or(f64::NAN, |times| times.p50))
}

/// The longest of the reads of one client, in milliseconds; the warm-up is not left out.
fn longest_get(server: &Server, time: Duration) -> Result<f64, String> {
    let socket = ask::connect(server.address())?;
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    while began.elapsed() < time {
        let asked = Instant::now();
        ask::call(&socket, r#"{"jsonrpc":"2.0","id":1,"method":"get","params":{"key":"bench/read"}}"#)?;
        longest = longest.max(asked.elapsed());
    }
    Ok(longest.as_secs_f64() * 1e3)
}

/// The size of a file, or of the files in a directory, in units of 10^6 bytes.
fn megabytes(path: &Path) -> Result<f64, String> {
    let size = || -> std::io::Result<u64> {
        if path.is_file() {
            return Ok(path.metadata()?.len());
        }
        std::fs::read_dir(path)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
    };
    size().map(|bytes| bytes as f64 / 1e6).map_err(|error| format!("{}: {error}", path.display()))
}
