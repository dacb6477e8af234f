//! What locks are used for, in five short recipes: read from top to bottom, or run them.
//!
//! ```text
//! cargo run --release --example recipes
//! ```
//!
//! Each recipe is one function that works against any server; `--addr` names one that runs already.

#![allow(clippy::print_stdout, reason = "an example tells its story on stdout")]

mod harness;

use clap::Parser;
use harness::{Result, Server};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use tenure::client::{Attempt, Client, Error};

/// What locks are used for, in five short recipes.
#[derive(Debug, Parser)]
struct Args {
    /// A server that runs already.
    #[arg(long)]
    addr: Option<SocketAddr>,
}

/// A recipe, given a server and what its names begin with.
type Recipe = fn(SocketAddr, &str) -> Result<()>;

fn main() -> ExitCode {
    match harness::serve_if_asked().and_then(|()| cook(&Args::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("a recipe failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn cook(args: &Args) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = match args.addr {
        Some(_) => None,
        None => Some(Server::start(&dir.path().join("data"))?),
    };
    let addr = args.addr.or(server.as_ref().map(Server::addr)).ok_or("there is no server")?;
    // Names of this run only, so that it can be repeated against one server.
    let place = format!("recipes/{}", std::process::id());
    let recipes: [(&str, Recipe); 5] = [
        ("a lock by hand", lock_by_hand),
        ("claiming jobs", claim_jobs),
        ("electing a leader", elect_a_leader),
        ("migrating once", migrate_once),
        ("sharing a configuration", share_configuration),
    ];
    for (title, recipe) in recipes {
        println!("\n{title}");
        recipe(addr, &place)?;
    }
    Ok(())
}

/// Two clients and one lock: granted, refused, renewed, released, granted.
fn lock_by_hand(addr: SocketAddr, place: &str) -> Result<()> {
    let name = format!("{place}/printer");
    let (anna, ben) =
        (Client::builder().name("anna").connect(addr)?, Client::builder().name("ben").connect(addr)?);

    let guard = anna.lock(&name).lease(Duration::from_secs(10)).label("60 pages").acquire()?;
    println!("  anna holds the printer with token {}", guard.token()?);
    match ben.lock(&name).try_acquire()? {
        Attempt::Refused(blocked) => println!("  ben does not get it: {blocked}"),
        Attempt::Granted(_) => return Err("two hold one lock".into()),
    }
    println!("  anna renews: {} ms left", guard.renew(Duration::from_secs(15))?.as_millis());
    guard.release()?;
    let token = ben.lock(&name).with(|guard| guard.token())??;
    println!("  ben had it after her, with the greater token {token}");
    println!("  is it held now? {}", anna.is_locked(&name)?);
    Ok(())
}

/// Workers take jobs from a list. A job belongs to who holds its lock, and done is what its key says: a worker that dies
/// leaves the lock to the next one after its TTL, and one that was only slow cannot overwrite the result.
fn claim_jobs(addr: SocketAddr, place: &str) -> Result<()> {
    let jobs: Vec<String> = (1..=6).map(|number| format!("{place}/job {number}")).collect();
    let work = |worker: u32| -> Result<u32> {
        let client = Client::builder().name(format!("worker_{worker}")).connect(addr)?;
        let mut done = 0;
        for job in &jobs {
            // A job that somebody else works on is skipped and not waited for.
            let Attempt::Granted(guard) = client.lock(job).try_acquire()? else { continue };
            if guard.get(job)?.is_none() {
                thread::sleep(Duration::from_millis(10));
                guard.set_own(&format!("done by worker_{worker}"))?;
                done += 1;
            }
            guard.release()?;
        }
        Ok(done)
    };
    let done = thread::scope(|scope| -> Result<u32> {
        let workers: Vec<_> = (1..=3).map(|worker| scope.spawn(move || work(worker))).collect();
        workers
            .into_iter()
            .try_fold(0, |sum, worker| Ok(sum + worker.join().map_err(|_| "a worker panicked")??))
    })?;
    let client = Client::builder().lazy(true).connect(addr)?;
    for item in client.prefix(&format!("{place}/job ")) {
        let item = item?;
        println!("  {}: {}", item.key, item.value.get());
    }
    println!("  {done} jobs were done once each");
    if done == 6 { Ok(()) } else { Err(format!("{done} of 6 jobs were done").into()) }
}

/// Candidates stand in line for one lock; who holds it leads. The key of the same name says who that is, and only the
/// leader can write it. The library's heartbeats keep the grant; when they stop, the next in line leads.
fn elect_a_leader(addr: SocketAddr, place: &str) -> Result<()> {
    let seat = format!("{place}/leader");
    let lead = |candidate: String| -> Result<()> {
        let client = Client::builder().name(&candidate).ttl(Duration::from_secs(10)).connect(addr)?;
        let guard = client.lock(&seat).label("election").wait_forever().acquire()?;
        guard.set_own(&candidate)?;
        println!("  {candidate} leads with token {}", guard.token()?);
        // A leader works as long as it is sure of the grant, and stops at once when it is not.
        for _ in 0..3 {
            if guard.wait_lost(Duration::from_millis(20)).is_some() {
                println!("  {candidate} has lost the lead");
                return Ok(());
            }
        }
        println!("  {candidate} steps down");
        Ok(guard.release()?)
    };
    thread::scope(|scope| {
        let candidates: Vec<_> =
            (1..=3).map(|number| scope.spawn(move || lead(format!("candidate_{number}")))).collect();
        candidates
            .into_iter()
            .try_for_each(|candidate| candidate.join().map_err(|_| "a candidate panicked")?)
    })
}

/// Every instance of a service wants to migrate the database at its start; one does, and the others find it done.
fn migrate_once(addr: SocketAddr, place: &str) -> Result<()> {
    let schema = format!("{place}/schema");
    let migrate = |instance: u32| -> Result<bool> {
        let client = Client::builder().name(format!("instance_{instance}")).connect(addr)?;
        let guard = client.lock(&schema).wait(Duration::from_secs(30)).acquire()?;
        let version: u32 = guard.get(&schema)?.map_or(Ok(0), |entry| entry.parse())?;
        let mine = version < 7;
        if mine {
            thread::sleep(Duration::from_millis(20));
            guard.set_own(&7)?;
            println!("  instance_{instance} has migrated from {version} to 7");
        } else {
            println!("  instance_{instance} finds version {version}");
        }
        guard.release()?;
        Ok(mine)
    };
    let migrations = thread::scope(|scope| -> Result<usize> {
        let instances: Vec<_> = (1..=4).map(|instance| scope.spawn(move || migrate(instance))).collect();
        let mut count = 0;
        for instance in instances {
            count += usize::from(instance.join().map_err(|_| "an instance panicked")??);
        }
        Ok(count)
    })?;
    if migrations == 1 { Ok(()) } else { Err(format!("{migrations} instances migrated").into()) }
}

/// A configuration that many change: read, change, write if nobody else has. No lock is needed where the version of the key
/// tells; the loser reads again.
fn share_configuration(addr: SocketAddr, place: &str) -> Result<()> {
    #[derive(Default, Serialize, Deserialize)]
    struct Config {
        features: Vec<String>,
    }
    let key = format!("{place}/config");
    let add = |feature: String| -> Result<()> {
        let client = Client::builder().name(&feature).connect(addr)?;
        loop {
            let entry = client.get(&key)?;
            let version = entry.as_ref().map_or(0, |entry| entry.version);
            let mut config: Config = entry.map_or(Ok(Config::default()), |entry| entry.parse())?;
            config.features.push(feature.clone());
            match client.set_if(&key, &config, version) {
                Ok(version) => {
                    println!("  {feature} is added: version {version}");
                    return Ok(());
                }
                Err(Error::Refused { kind, .. }) if kind == "version_mismatch" => {
                    println!("  {feature}: somebody was faster, once more");
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    thread::scope(|scope| {
        let writers: Vec<_> =
            (1..=4).map(|number| scope.spawn(move || add(format!("feature_{number}")))).collect();
        writers.into_iter().try_for_each(|writer| writer.join().map_err(|_| "a writer panicked")?)
    })?;
    let config: Config = Client::builder().lazy(true).connect(addr)?.get_as(&key)?.unwrap_or_default();
    println!("  the configuration has {}", config.features.join(", "));
    if config.features.len() == 4 { Ok(()) } else { Err("a change was lost".into()) }
}
