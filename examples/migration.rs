//! Exclusive migration: all instances of a service start at once, one migrates the database, and none runs meanwhile.
//!
//! ```text
//! cargo run --release --example migration
//! ```
//!
//! The lock `schema` is held shared by all who run and exclusively by the one who migrates: a migration waits until those
//! who use the old schema have left, and who comes meanwhile waits until it is over. The key `schema` says how far it is.

#![allow(clippy::print_stdout, reason = "an example tells its story on stdout")]

mod harness;

use harness::{Result, expect, together};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use tenure::client::{Client, Guard, LockRequest, Mode};

/// How many steps the new schema takes.
const STEPS: u32 = 4;

fn main() -> ExitCode {
    harness::recipe(story)
}

fn story(addr: SocketAddr, place: &str) -> Result<()> {
    let schema = format!("{place}/schema");

    // One begins, and dies in the middle of step 3: the step is done, its note is not written.
    let doomed = Client::builder().name("doomed").ttl(Duration::from_secs(2)).connect(addr)?;
    let guard = exclusive(&doomed, &schema).acquire()?;
    step(&guard, 1)?;
    step(&guard, 2)?;
    guard.append("step 3\n")?;
    guard.into_token()?;
    doomed.detach()?;
    println!("doomed has died after step 3, before it could note it");

    let steps = together(1..=4, |number| start(addr, &schema, number))?;
    expect(steps.iter().filter(|&&steps| steps > 0).count() == 1, "one instance migrated")?;
    expect(steps.iter().sum::<u32>() == 2, "it went on where the dead one stopped")?;

    let reader = Client::builder().lazy(true).connect(addr)?;
    let database = String::from_utf8(reader.read_all(&schema)?)?;
    println!("the database was told: {}", database.trim_end().replace('\n', ", "));
    // Step 3 is there twice, and that is the honest end of it: work and note are two things here, so a step must bear to
    // be repeated (CREATE TABLE IF NOT EXISTS). It is never there out of order, and never beside another's.
    expect(database == "step 1\nstep 2\nstep 3\nstep 3\nstep 4\n", "all steps, in order")?;
    expect(reader.get_as(&schema)? == Some(STEPS), "the schema is the new one")
}

/// What each instance does when it starts. Tells how many steps it took.
fn start(addr: SocketAddr, schema: &str, number: u32) -> Result<u32> {
    let client = Client::builder().name(format!("instance_{number}")).connect(addr)?;
    let mut steps = 0;
    let mut guard = client.lock(schema).shared().wait(Duration::from_secs(30)).acquire()?;
    if done(&guard, schema)? < STEPS {
        // The schema is old. Letting go and asking anew is right here: two that both hold it shared and both want to
        // upgrade would wait for each other, and one of them would be refused with `deadlock`.
        guard.release()?;
        guard = exclusive(&client, schema).wait(Duration::from_secs(30)).acquire()?;
        // Look again: somebody may have migrated while this one stood in line.
        for number in done(&guard, schema)? + 1..=STEPS {
            step(&guard, number)?;
            steps += 1;
        }
        // From exclusive to shared without letting go: no other migration can come in between.
        guard.convert(Mode::Shared).apply()?;
    }
    println!("instance_{number} took {steps} steps and runs on schema {}", done(&guard, schema)?);
    thread::sleep(Duration::from_millis(20));
    guard.release()?;
    Ok(steps)
}

/// The lock of a migration. After a holder's death it stays closed for a moment more: what the dead one sent to the
/// database last may still be on its way, and a database that knows no tokens cannot refuse it.
fn exclusive(client: &Client, schema: &str) -> LockRequest {
    client.lock(schema).lock_delay(Duration::from_millis(300)).label("migration")
}

/// How many steps are noted.
fn done(guard: &Guard, schema: &str) -> Result<u32> {
    Ok(guard.get(schema)?.map_or(Ok(0), |entry| entry.parse())?)
}

/// One step in the database (here it is a file), and then its note.
fn step(guard: &Guard, number: u32) -> Result<()> {
    guard.append(format!("step {number}\n"))?;
    guard.set_own(&number)?;
    Ok(())
}
