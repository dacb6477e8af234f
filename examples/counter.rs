//! Many workers increment one counter under its lock: it ends at exactly workers times increments.
//!
//! ```text
//! cargo run --release --example counter -- --workers 8 --increments 25
//! ```
//!
//! Reading and writing are two requests, so without the lock increments would overwrite each other. The lock `counter`
//! guards the key `counter`: the server refuses a write of it by anybody but the holder.

#![allow(clippy::print_stdout, reason = "an example tells its story on stdout")]

mod harness;

use clap::Parser;
use harness::{Result, Server};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;
use tenure::client::{Client, Guard};

/// Workers increment one counter under its lock.
#[derive(Debug, Parser)]
struct Args {
    /// How many workers, each a client of its own.
    #[arg(long, default_value_t = 4)]
    workers: u64,
    /// How often each increments.
    #[arg(long, default_value_t = 25)]
    increments: u64,
    /// A server that runs already.
    #[arg(long)]
    addr: Option<SocketAddr>,
}

/// The lock, and the key that it guards.
const COUNTER: &str = "counter";

fn main() -> ExitCode {
    match harness::serve_if_asked().and_then(|()| count(&Args::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the count failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn count(args: &Args) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = match args.addr {
        Some(_) => None,
        None => Some(Server::start(&dir.path().join("data"))?),
    };
    let addr = args.addr.or(server.as_ref().map(Server::addr)).ok_or("there is no server")?;
    let reader = Client::builder().lazy(true).connect(addr)?;
    let before: u64 = reader.get_as(COUNTER)?.unwrap_or(0);
    let begin = Instant::now();

    thread::scope(|scope| {
        let workers: Vec<_> =
            (1..=args.workers).map(|number| scope.spawn(move || work(addr, number, args))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a worker panicked")?)
    })?;

    let counted = reader.get_as::<u64>(COUNTER)?.unwrap_or(0) - before;
    let due = args.workers * args.increments;
    println!("{counted} of {due} increments counted in {:.2} s", begin.elapsed().as_secs_f64());
    if counted == due { Ok(()) } else { Err("increments were lost or doubled".into()) }
}

fn work(addr: SocketAddr, number: u64, args: &Args) -> Result<()> {
    let client = Client::builder().name(format!("worker_{number}")).connect(addr)?;
    for _ in 0..args.increments {
        client.lock(COUNTER).wait_forever().with(increment)??;
    }
    println!("worker_{number} is done");
    Ok(client.close()?)
}

/// Reads and writes under the lock; the write carries the token of the grant.
fn increment(guard: &mut Guard) -> Result<()> {
    let now: u64 = guard.get(COUNTER)?.map_or(Ok(0), |entry| entry.parse())?;
    guard.set(COUNTER, &(now + 1))?;
    Ok(())
}
