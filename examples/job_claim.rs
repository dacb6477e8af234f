//! Job claim: workers share a list of jobs, each job is done by one of them, and those of a dead worker by another.
//!
//! ```text
//! cargo run --release --example job_claim
//! ```
//!
//! A job belongs to whoever holds its lock, and is done when its key says so. The key is guarded by the lock of the same
//! name: a worker that was only slow cannot overwrite the result of the one who came after it.

#![allow(clippy::print_stdout, reason = "an example tells its story on stdout")]

mod harness;

use harness::{Result, expect, together};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use tenure::client::{Attempt, Client, Guard};

fn main() -> ExitCode {
    harness::recipe(story)
}

fn story(addr: SocketAddr, place: &str) -> Result<()> {
    let jobs: Vec<String> = (1..=6).map(|number| format!("{place}/job {number}")).collect();

    // A worker claims the fourth job and dies in the middle of it. The TTL is how long the job then lies there: short for
    // the story; in life a little more than the longest pause that a living worker may have.
    let doomed = Client::builder().name("doomed").ttl(Duration::from_secs(1)).connect(addr)?;
    doomed.lock(&jobs[3]).acquire()?.into_token()?;
    doomed.detach()?;
    println!("doomed has claimed job 4 and is gone");

    let done = together(1..=3, |number| work(addr, &jobs, &format!("worker_{number}")))?;
    println!("{done:?} jobs were done by the three workers");
    expect(done.iter().sum::<usize>() == jobs.len(), "each job was done once")?;

    // The same as the keys and files tell it: each job has a result, and its file has one line.
    let reader = Client::builder().lazy(true).connect(addr)?;
    for job in &jobs {
        let by: String = reader.get_as(job)?.ok_or("a job was not done")?;
        println!("  {}: {by}", job.rsplit('/').next().unwrap_or(job));
        expect(reader.read_all(job)? == format!("by {by}\n").as_bytes(), "the work was done once")?;
    }
    Ok(())
}

/// Goes through the list twice and tells how many jobs it did itself.
fn work(addr: SocketAddr, jobs: &[String], worker: &str) -> Result<usize> {
    let client = Client::builder().name(worker).connect(addr)?;
    let (mut done, mut left) = (0, Vec::new());

    // First what is free: a job that somebody else works on is not waited for, there are others.
    for job in jobs {
        match client.lock(job).try_acquire()? {
            Attempt::Granted(guard) => done += usize::from(finish(guard, job, worker)?),
            Attempt::Refused(blocked) => {
                println!("{worker} leaves it: {blocked}");
                left.push(job);
            }
        }
    }

    // Then what was not: its worker finishes it, or dies and leaves it to whoever stands in line. Waiting costs nothing,
    // and there is no sweeper that looks for lost jobs.
    for job in left {
        let guard = client.lock(job).wait(Duration::from_secs(30)).acquire()?;
        done += usize::from(finish(guard, job, worker)?);
    }
    Ok(done)
}

/// Does a claimed job, unless it is done already. Tells whether it did.
fn finish(guard: Guard, job: &str, worker: &str) -> Result<bool> {
    // The lock says that nobody else works on it now, not that nobody did before: look.
    let to_do = guard.get(job)?.is_none();
    if to_do {
        // A worker that dies between the work and the note leaves a job that is done twice. Where the work is a write
        // here, make both one with `.atomic()` (see `transfer`); where it is elsewhere, let it bear to be repeated, or
        // send `guard.token()` along, so that the other place can tell an old worker from a new one.
        thread::sleep(Duration::from_millis(30));
        guard.append(format!("by {worker}\n"))?;
        guard.set_own(worker)?;
    }
    guard.release()?;
    Ok(to_do)
}
