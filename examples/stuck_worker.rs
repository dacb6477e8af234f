//! A stuck worker: its process lives, its heartbeats go on, and yet it gets nowhere. Its lease catches it.
//!
//! ```text
//! cargo run --release --example stuck_worker
//! ```
//!
//! Heartbeats come from a thread of the library, so they prove that the process lives and not that the work goes on: a
//! worker in an endless loop would hold its lock for ever. `lease` gives the grant an end of its own, and the worker puts
//! it off each time that it got something done. Progress renews, life does not.

#![allow(clippy::print_stdout, reason = "an example tells its story on stdout")]

mod harness;

use harness::{Result, expect};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use tenure::client::{Client, Error, GrantState};
use tenure::kind::Kind;

/// Longer than the longest step of the work, with room to spare.
const LEASE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    harness::recipe(story)
}

fn story(addr: SocketAddr, place: &str) -> Result<()> {
    let job = format!("{place}/job");
    // The session lives for 10 s without a sign of life, far longer than the lease; and there are signs.
    let stuck = Client::builder().name("stuck").ttl(Duration::from_secs(10)).connect(addr)?;
    let heir = Client::builder().name("heir").connect(addr)?;

    thread::scope(|scope| {
        let guard = stuck.lock(&job).lease(LEASE).label("job").acquire()?;
        let first = guard.token()?;
        let fence = guard.fence()?;
        let waiting = scope.spawn(|| heir.lock(&job).lease(LEASE).wait(Duration::from_secs(30)).acquire());

        // Four steps, each shorter than the lease, all together longer: each renews, so nothing ends.
        for step in 1..=4 {
            thread::sleep(Duration::from_millis(600));
            guard.append(format!("step {step} by stuck\n"))?;
            let left = guard.renew(LEASE)?;
            println!("stuck has done step {step} and has {} ms for the next", left.as_millis());
        }
        expect(!waiting.is_finished(), "a worker that gets on keeps its lock")?;

        // The fifth hangs. The client learns of it by its own clock, a fifth of the lease before the server acts: where
        // the work can be stopped, this is when to stop it.
        let hangs = Instant::now();
        let loss = guard.wait_lost(Duration::from_secs(10)).ok_or("nothing ended the grant")?;
        println!("after {} ms without progress: {loss}", hangs.elapsed().as_millis());
        let guard_of_heir = waiting.join().map_err(|_| "the heir panicked")??;
        println!("after {} ms the heir has the job", hangs.elapsed().as_millis());
        expect(guard_of_heir.token()? > first, "the heir has a greater token")?;
        expect(guard_of_heir.state() == GrantState::Safe, "the heir is sure of it")?;

        // Unstuck, it goes on as though nothing had happened. Its guard knows better, and does not send that.
        let stopped = guard.append("step 5 by stuck\n");
        expect(matches!(stopped, Err(Error::Lost(_))), "the guard knows that it is over")?;
        // Whoever has only the token, or a clock that goes wrong, does send it. The server refuses the old token.
        let late = fence.append_file(&job, "step 5 by stuck\n");
        expect(late.is_err_and(|error| error.kind() == Some(Kind::NotHolder)), "a late write is refused")?;
        println!("its fifth step is refused, whoever sends it");

        // Its session is well: only the grant is lost, and it may stand in line again.
        expect(
            stuck.ping().is_ok() && stuck.lock(format!("{job} 2")).acquire().is_ok(),
            "the session lives",
        )?;

        guard_of_heir.append("step 5 by heir\n")?;
        guard_of_heir.release()?;
        let told = String::from_utf8(heir.read_all(&job)?)?;
        expect(told.lines().count() == 5 && told.ends_with("step 5 by heir\n"), "five steps, each once")
    })
}
