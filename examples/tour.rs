//! A first tour, from a free lock to an expired one, and the same between two machines.
//!
//! ```text
//! cargo run --release --example tour
//! ```
//!
//! Every step checks what it shows. `--addr` names a server that runs already; two machines are two clients, so the second
//! half works the same when each runs on a machine of its own.

#![allow(clippy::print_stdout, reason = "an example tells its story on stdout")]

mod harness;

use clap::Parser;
use harness::{Result, Server};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use tenure::client::{Attempt, Client};

/// A first tour of keys, locks and leases.
#[derive(Debug, Parser)]
struct Args {
    /// A server that runs already.
    #[arg(long)]
    addr: Option<SocketAddr>,
}

fn main() -> ExitCode {
    match harness::serve_if_asked().and_then(|()| tour(&Args::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the tour ended early: {error}");
            ExitCode::FAILURE
        }
    }
}

fn tour(args: &Args) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = match args.addr {
        Some(_) => None,
        None => Some(Server::start(&dir.path().join("data"))?),
    };
    let addr = args.addr.or(server.as_ref().map(Server::addr)).ok_or("there is no server")?;
    // Names of this run only, so that it can be repeated against one server.
    let place = format!("tour/{}", std::process::id());
    println!("on one machine");
    keys(addr, &place)?;
    one_holder(addr, &place)?;
    shared_counter(addr, &place)?;
    leases_end(addr, &place)?;
    println!("\nbetween two machines");
    two_machines(addr, &place)
}

/// Keys hold any JSON. A missing key is not null.
fn keys(addr: SocketAddr, place: &str) -> Result<()> {
    let client = Client::connect(addr)?;
    let user = format!("{place}/user:1");
    let alice = json!({"name": "Alice", "age": 30});
    client.set(&user, &alice)?;
    same("the value that was set", &client.get_as::<Value>(&user)?, &Some(alice))?;
    same("deleted", &client.delete(&user)?.is_some(), &true)?;
    same("deleted again", &client.delete(&user)?.is_some(), &false)?;
    same("what is there then", &client.get_as::<Value>(&user)?, &None)
}

/// One owner has the lock, the other is refused and told who has it.
fn one_holder(addr: SocketAddr, place: &str) -> Result<()> {
    let lock = format!("{place}/resource_1");
    let (one, two) = (named(addr, "owner_1")?, named(addr, "owner_2")?);
    let guard = one.lock(&lock).lease(Duration::from_secs(10)).acquire()?;
    println!("  owner_1 holds resource_1 with token {}", guard.token()?);
    match two.lock(&lock).try_acquire()? {
        Attempt::Refused(blocked) => println!("  owner_2 is refused: {blocked}"),
        Attempt::Granted(_) => return Err("two hold one lock".into()),
    }
    same("ms left when owner_1 has renewed", &guard.renew(Duration::from_secs(15))?.as_millis(), &15_000)?;
    guard.release()?;
    same("is it locked now", &two.is_locked(&lock)?, &false)
}

/// Three workers increment one number; all wait for their turn, and none gives up.
fn shared_counter(addr: SocketAddr, place: &str) -> Result<()> {
    let counter = format!("{place}/shared_counter");
    let work = |number: u32| -> Result<()> {
        let client = named(addr, &format!("worker_{number}"))?;
        let guard = client.lock(&counter).wait_forever().acquire()?;
        let now = guard.get(&counter)?.map_or(Ok(0), |entry| entry.parse::<u64>())?;
        thread::sleep(Duration::from_millis(20));
        guard.set_own(&(now + 1))?;
        println!("  worker_{number} counts {}", now + 1);
        Ok(guard.release()?)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (1..=3).map(|number| scope.spawn(move || work(number))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a worker panicked")?)
    })?;
    same("shared_counter", &named(addr, "reader")?.get_as::<u64>(&counter)?, &Some(3))
}

/// Leases end by themselves. `cleanup_expired_locks` finds nothing left to do; the server has counted what it ended.
fn leases_end(addr: SocketAddr, place: &str) -> Result<()> {
    let (forgetful, client) = (named(addr, "forgetful")?, named(addr, "watcher")?);
    let expired =
        || -> Result<u64> { Ok(client.status()?.counts.get("grants_expired").copied().unwrap_or_default()) };
    let before = expired()?;
    let locks = [format!("{place}/temporary_1"), format!("{place}/temporary_2")];
    for lock in &locks {
        forgetful.lock(lock).lease(Duration::from_secs(2)).acquire()?.into_token()?;
    }
    // It hangs: nobody renews or releases anything from here.
    forgetful.detach()?;
    same("is it locked at once", &client.is_locked(&locks[0])?, &true)?;
    thread::sleep(Duration::from_secs(3));
    same("is it locked after 3 s of a lease of 2 s", &client.is_locked(&locks[0])?, &false)?;
    same("cleaned up by hand", &client.cleanup_expired_locks()?, &0)?;
    same("had ended by themselves", &(expired()? - before), &2)
}

/// Two machines: one holds and renews, the other sees who does, is refused, and works on something else.
fn two_machines(addr: SocketAddr, place: &str) -> Result<()> {
    let (first, second) = (format!("{place}/database"), format!("{place}/cache"));
    let (one, two) = (named(addr, "machine-1")?, named(addr, "machine-2")?);
    let guard = one.lock(&first).lease(Duration::from_secs(10)).label("backup").acquire()?;
    let info = two.lock_info(&first)?;
    let holder = info.holders.first().ok_or("nobody holds it")?;
    println!(
        "  machine-2 sees: {:?} holds it for {} ms, {:?}, token {}, {} ms left",
        holder.name,
        holder.held_ms,
        holder.label,
        holder.token,
        holder.lease_left_ms.unwrap_or_default()
    );
    same("the holder", &holder.name, &"machine-1".to_owned())?;
    same("granted to machine-2", &matches!(two.lock(&first).try_acquire()?, Attempt::Granted(_)), &false)?;
    same("ms left when machine-1 has renewed", &guard.renew(Duration::from_secs(15))?.as_millis(), &15_000)?;
    let other = two.lock(&second).acquire()?;
    println!("  machine-2 holds another one meanwhile, with token {}", other.token()?);
    guard.release()?;
    other.release()?;
    let mine = two.lock(&first).acquire()?;
    println!("  released by machine-1, it goes to machine-2 with token {}", mine.token()?);
    Ok(mine.release()?)
}

fn named(addr: SocketAddr, name: &str) -> Result<Client> {
    Ok(Client::builder().name(name).connect(addr)?)
}

/// Shows a fact, and ends the tour if it is not so.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<()> {
    println!("  {what}: {found:?}");
    if found == expected { Ok(()) } else { Err(format!("{what} is not {expected:?}").into()) }
}
