//! A bounded pool: however many workers there are, on however many machines, at most four units are in use at a time.
//!
//! ```text
//! cargo run --release --example worker_pool
//! ```
//!
//! The pool is a lock with slots, a semaphore that forgets nobody: a worker that dies gives its slots back after its TTL.
//! A counter in a database would leak them.

#![allow(clippy::print_stdout, reason = "an example tells its story on stdout")]

mod harness;

use harness::{Result, expect, together};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use tenure::client::Client;
use tenure::kind::Kind;

/// What the pool holds: connections, licences, cores. All who ask must say the same number.
const SLOTS: u32 = 4;

fn main() -> ExitCode {
    harness::recipe(story)
}

fn story(addr: SocketAddr, place: &str) -> Result<()> {
    let pool = format!("{place}/pool");

    // One takes two of the four and dies with them.
    let doomed = Client::builder().name("doomed").ttl(Duration::from_secs(1)).connect(addr)?;
    doomed.lock(&pool).slots(SLOTS).weight(2).acquire()?.into_token()?;
    doomed.detach()?;
    println!("doomed is gone with two slots");

    // What is in use by living workers, counted by themselves; the server does not see this.
    let (used, most) = (AtomicU32::new(0), AtomicU32::new(0));
    together(1..=12, |number| {
        let client = Client::builder().name(format!("worker_{number}")).connect(addr)?;
        // Every third job is a big one, and takes three slots at once. It is not passed by small ones that come after it
        // and would fit: the line is first come, first served, so the big ones do not starve. The price is that slots
        // stand empty while the first in line waits for more.
        let weight = if number % 3 == 0 { 3 } else { 1 };
        let guard = client.lock(&pool).slots(SLOTS).weight(weight).wait(Duration::from_secs(30)).acquire()?;
        let now = used.fetch_add(weight, Ordering::SeqCst) + weight;
        most.fetch_max(now, Ordering::SeqCst);
        println!("worker_{number} works with {weight}; {now} of {SLOTS} slots are in use");
        thread::sleep(Duration::from_millis(40));
        used.fetch_sub(weight, Ordering::SeqCst);
        // Slots guard no key and no file: there is no single holder whose word could count. What the workers share beside
        // the pool needs a lock of its own.
        Ok(guard.release()?)
    })?;
    let most = most.into_inner();
    println!("at most {most} slots were in use at a time");
    expect(most <= SLOTS, "the pool was never overdrawn")?;

    // All slots at once, without waiting: those of the dead one are back, too.
    let client = Client::builder().name("auditor").connect(addr)?;
    client.lock(&pool).slots(SLOTS).weight(SLOTS).acquire()?.release()?;
    println!("all {SLOTS} slots are there in the end");

    // A worker with another idea of the pool is told, and does not silently enlarge it. The size can be changed when
    // nobody holds or waits: restart the workers with the new number.
    let client = Client::builder().name("misconfigured").connect(addr)?;
    let held = client.lock(&pool).slots(SLOTS).owner("one").acquire()?;
    match client.lock(&pool).slots(SLOTS + 4).owner("two").try_acquire() {
        Err(error) if error.kind() == Some(Kind::InvalidParams) => println!("misconfigured is told: {error}"),
        other => return Err(format!("another number of slots was taken: {other:?}").into()),
    }
    Ok(held.release()?)
}
