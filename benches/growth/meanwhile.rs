//! What a bystander notices: one client that reads a key again and again while others go through something.

use crate::common::server::Server;
use crate::common::{self, Plan, ask, fresh_dir, thousands};
use crate::curve::Noticed;
use crate::measure::{Turns, turns, write_keys};
use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tenure::bench::report::Times;
use tenure::bench::{self, Sockets, Workload};

/// How long a snapshot may take until the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Each of them in turn.
///
/// # Errors
/// A sentence, if anything does not work.
pub(crate) fn run(plan: &Plan) -> Result<Vec<Noticed>, String> {
    let (locks, keys, clients) = if plan.test { (64, 1, 4) } else { (1_000_000, 300, 1_000) };
    Ok(vec![
        plan.cores.on_the_servers(|| no_server(plan))?,
        calm(plan)?,
        snapshot(plan, keys)?,
        mass_expiry(plan, locks)?,
        reconnect(plan, clients)?,
    ])
}

/// Prints the table.
pub(crate) fn print(noticed: &[Noticed]) {
    println!("\n**What one client notices that reads a key again and again**\n");
    println!(
        "| meanwhile | reads | p50 µs | p99 µs | p99.9 µs | longest µs | longest turn µs | its CPU µs |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    for row in noticed {
        let times = [row.p50, row.p99, row.p999, row.max].map(thousands).join(" | ");
        let reads = thousands(row.reads as f64);
        let turns = [row.longest_turn_us, row.longest_turn_cpu_us].map(|us| thousands(us as f64)).join(" | ");
        println!("| {} | {reads} | {times} | {turns} |", row.meanwhile);
    }
}

/// Reads while `happen` goes on, and says what that was like.
fn watch(
    server: &Server,
    meanwhile: String,
    happen: impl FnOnce() -> Result<(), String>,
) -> Result<Noticed, String> {
    let over = AtomicBool::new(false);
    let address = server.address();
    let times = thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<Times, String> {
            let socket = ask::connect(address)?;
            let mut times = Times::new();
            while times.count() == 0 || !over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                ask::call(
                    &socket,
                    r#"{"jsonrpc":"2.0","id":1,"method":"get","params":{"key":"bench/read"}}"#,
                )?;
                times.add(asked.elapsed());
                thread::sleep(Duration::from_micros(200));
            }
            Ok(times)
        });
        let happened = happen();
        over.store(true, Ordering::Relaxed);
        let times = reader.join().map_err(|_| "the reader failed".to_owned())??;
        happened.map(|()| times)
    })?;
    noticed(meanwhile, &times, turns(server)?)
}

fn noticed(meanwhile: String, times: &Times, turns: Turns) -> Result<Noticed, String> {
    let Turns { longest: longest_turn_us, cpu: longest_turn_cpu_us } = turns;
    let shown = times.percentiles().ok_or("nothing was read")?;
    let (p50, p99, p999, max) = (shown.p50, shown.p99, shown.p999, shown.max);
    let reads = times.count();
    Ok(Noticed { meanwhile, reads, p50, p99, p999, max, longest_turn_us, longest_turn_cpu_us })
}

/// What the machine adds to all that follows: a thread that only reads its clocks meets pauses, too, and some of them count as its
/// CPU time, since the system does not see that its host had the core.
fn no_server(plan: &Plan) -> Result<Noticed, String> {
    let (mut times, mut longest, began) = (Times::new(), Turns::default(), Instant::now());
    let read = || (Instant::now(), clock_gettime(ClockId::ThreadCPUTime));
    let mut last = read();
    while last.0 - began < plan.time() * 10 {
        let next = read();
        let (gap, cpu) = (next.0 - last.0, next.1 - last.1);
        times.add(gap);
        longest.longest = longest.longest.max(micros(gap));
        longest.cpu = longest.cpu.max(micros(cpu.try_into().map_err(|_| "a thread's clock went back")?));
        last = next;
    }
    noticed("no server: a thread reads the clock on the server's core".into(), &times, longest)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn calm(plan: &Plan) -> Result<Noticed, String> {
    let dir = fresh_dir(&plan.dir)?;
    let (server, _) = Server::start(dir.path(), "sync", &plan.cores)?;
    watch(&server, "nothing".into(), || {
        thread::sleep(plan.time());
        Ok(())
    })
}

/// Waits until something is so, at most so long.
fn until(patience: Duration, mut is_so: impl FnMut() -> Result<bool, String>) -> Result<(), String> {
    let began = Instant::now();
    while !is_so()? {
        if began.elapsed() > patience {
            return Err("it does not come to an end".into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Keys are written until a snapshot of all of them is there: it is written because the journal has grown.
fn snapshot(plan: &Plan, megabytes: usize) -> Result<Noticed, String> {
    let dir = fresh_dir(&plan.dir)?;
    let (server, _) = Server::start(dir.path(), "os", &plan.cores)?;
    write_keys(plan, &server, megabytes)?;
    let seen = ask::count(server.address(), "snapshot_op").unwrap_or(0);
    watch(
        &server,
        format!("keys of 10,000 bytes are written and a snapshot of {megabytes} MB or more"),
        || {
            let of = bench::Plan {
                clients: 8,
                names: 100,
                value_bytes: 10_000,
                ..bench::Plan::new(server.address(), Workload::Put)
            };
            if plan.test {
                return common::load(plan.time(), of).map(drop);
            }
            until(PATIENCE, || {
                common::load(Duration::from_millis(500), of.clone())?;
                Ok(ask::count(server.address(), "snapshot_op").unwrap_or(0) > seen)
            })
        },
    )
}

fn mass_expiry(plan: &Plan, locks: usize) -> Result<Noticed, String> {
    let dir = fresh_dir(&plan.dir)?;
    let (server, _) = Server::start(dir.path(), "sync", &plan.cores)?;
    let ttl = Duration::from_secs(if plan.test { 1 } else { 60 });
    common::hold(server.address(), locks, ttl)?;
    let (locks, what) = (ask::count(server.address(), "grants")?, "leases end at once");
    watch(&server, format!("{} {what}", thousands(locks as f64)), || {
        until(ttl * 3, || Ok(ask::count(server.address(), "grants")? == 0))
    })
}

/// A server with as many held locks is killed; the next one finds all these clients at its door, with sessions to open.
fn reconnect(plan: &Plan, clients: usize) -> Result<Noticed, String> {
    let dir = fresh_dir(&plan.dir)?;
    let (server, _) = Server::start(dir.path(), "sync", &plan.cores)?;
    common::hold(server.address(), clients.max(16), Duration::from_secs(600))?;
    server.kill();
    let (server, _) = Server::start(dir.path(), "sync", &plan.cores)?;
    let meanwhile = format!(
        "{} clients come at once after kill -9, beside as many held locks",
        thousands(clients as f64)
    );
    watch(&server, meanwhile, || {
        let of = bench::Plan {
            clients,
            sockets: Sockets::Each,
            ..bench::Plan::new(server.address(), Workload::Cycle)
        };
        common::load(plan.time(), of).map(drop)
    })
}
