//! Leader election: of many candidates one leads; when it dies, the next in line does.
//!
//! ```text
//! cargo run --release --example leader_election
//! ```
//!
//! The seat is a lock. Candidates stand in its line, the library's heartbeats keep the leader in it, and when they stop
//! for the session's TTL the seat goes to the next. A leader that was only paused does not know that yet: its orders carry
//! its token, and the server refuses them. That last part is what most elections lack.

#![allow(clippy::print_stdout, reason = "an example tells its story on stdout")]

mod harness;

use harness::{Result, expect, together};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use tenure::client::{Client, Guard};
use tenure::kind::Kind;

fn main() -> ExitCode {
    harness::recipe(story)
}

fn story(addr: SocketAddr, place: &str) -> Result<()> {
    let seat = format!("{place}/leader");

    // The first leader takes the seat, does some work, and hangs: no release, no heartbeat, no good-bye. The TTL is how
    // long it then keeps the seat: short for the story; in life longer, since a short one is lost to every hiccup.
    let first = Client::builder().name("candidate_0").ttl(Duration::from_secs(2)).connect(addr)?;
    let guard = first.lock(&seat).wait_forever().acquire()?;
    lead(&guard, "candidate_0")?;
    let old = guard.into_token()?;
    let hung = first.detach()?;
    let silent = Instant::now();
    println!("candidate_0 falls silent");

    // The others stand in line, as long as it takes. Nobody polls. The first of them comes to the seat a TTL after the
    // last sign of life, which is a little before the silence began.
    together(1..=3, |number| {
        let name = format!("candidate_{number}");
        let client = Client::builder().name(&name).connect(addr)?;
        let guard = client.lock(&seat).label("election").wait_forever().acquire()?;
        println!("{name} has the seat {} ms after the silence began", silent.elapsed().as_millis());
        expect(guard.token()? > old, "each leader has a greater token than those before it")?;
        lead(&guard, &name)?;

        // candidate_0 wakes up and gives an order, as it would have done before, with its session and its token. (Its
        // client is gone, so the order is sent from here.) It comes too late, and changes nothing.
        let late = client.fence_of(hung.session, old).set(&seat, "candidate_0");
        expect(late.is_err_and(|error| error.kind() == Some(Kind::NotHolder)), "a late order is refused")?;
        println!("  a late order of candidate_0 is refused");

        // Whoever steps down takes its name off the door, and then lets the next one in.
        guard.delete(&seat)?;
        Ok(guard.release()?)
    })?;

    // Each led once; the chronicle was written under the seat, in the order of the tokens.
    let reader = Client::builder().lazy(true).connect(addr)?;
    let chronicle = String::from_utf8(reader.read_all(&seat)?)?;
    let terms: Vec<u64> = chronicle.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
    println!("the chronicle:\n  {}", chronicle.trim_end().replace('\n', "\n  "));
    expect(terms.len() == 4 && terms.is_sorted(), "four led, one after the other")?;
    expect(reader.get(&seat)?.is_none(), "nobody leads any more, and the door says so")
}

/// What a leader does: it says who it is, and works as long as it is sure of the seat.
fn lead(guard: &Guard, name: &str) -> Result<()> {
    // The key of the seat's own name: only the holder can write it. `bound` lets it go with the leader's session, so that
    // nobody looks for a leader that is dead.
    guard.fence()?.put(&guard.keys()[0], name).bound().send()?;
    guard.append(format!("{} {name}\n", guard.token()?))?;
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(20));
        // By the client's own clock, ahead of the server's: it stops before another can begin. Ask before each order;
        // for what the order changes elsewhere, send the token along and let that place refuse a smaller one.
        guard.token()?;
    }
    Ok(())
}
