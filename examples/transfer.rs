//! A transfer between two accounts, by clerks that are killed in the middle: money is neither lost nor made.
//!
//! ```text
//! cargo run --release --example transfer
//! ```
//!
//! Both accounts and the audit file are locked in one request, all or none, in whatever order they are named: so there is
//! nothing to be sorted and no deadlock to be met. The grant is an atomic section: what is written under it is seen by
//! nobody else until `commit`, and then all of it is. A clerk is this program in a process of its own; it dies by SIGKILL.

#![allow(clippy::print_stdout, reason = "an example tells its story on stdout")]

mod harness;

use harness::{Result, expect};
use std::env;
use std::io::{BufRead as _, BufReader, Lines};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;
use tenure::client::{Client, LockRequest};

/// Who has an account, and what they have at first.
const ACCOUNTS: [(&str, i64); 2] = [("anna", 100), ("ben", 100)];

/// What one transfer moves.
const AMOUNT: i64 = 20;

/// The first argument of this program when it is to be a clerk.
const CLERK: &str = "--clerk";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.as_slice() {
        [clerk, addr, place, stops_in] if clerk == CLERK => match work(addr, place, stops_in.parse().ok()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("the clerk failed: {error}");
                ExitCode::FAILURE
            }
        },
        _ => harness::recipe(story),
    }
}

fn story(addr: SocketAddr, place: &str) -> Result<()> {
    let bank = Client::builder().name("bank").connect(addr)?;
    let mut opening = bank.transaction();
    for (name, money) in ACCOUNTS {
        opening = opening.set(&format!("{place}/{name}"), &money);
    }
    opening.commit()?;

    // Two clerks, one after the other, do two transfers and are killed in their third: the money has left one account,
    // the audit has its line, and nothing has come to the other account.
    for number in 1..=2 {
        let mut clerk = Clerk::start(addr, place, "3")?;
        clerk.hear("in the middle")?;
        clerk.kill()?;
        println!("clerk {number} was killed in the middle of a transfer");
        sum(&bank, place)?;
        expect(
            audit(&bank, place)? == 2 * number,
            "two transfers of each clerk happened, the third did not",
        )?;
    }

    // Two more at the same time, and one of them is killed wherever it happens to be. The other waits until the session
    // of the dead one has ended, and goes on.
    let (mut third, mut fourth) = (Clerk::start(addr, place, "never")?, Clerk::start(addr, place, "never")?);
    third.hear("done")?;
    fourth.hear("done")?;
    third.kill()?;
    println!("clerk 3 was killed somewhere");
    sum(&bank, place)?;
    let before = audit(&bank, place)?;
    expect(before >= 6, "each transfer that was told as done is in the audit")?;

    // All together have done that many so far. When the fourth alone has told of more, it has gone on.
    for _ in 0..before {
        fourth.hear("done")?;
    }
    fourth.kill()?;
    println!("clerk 4 has gone on, and was killed too");
    sum(&bank, place)?;
    expect(audit(&bank, place)? > before, "a clerk's death holds up the others, and not for ever")
}

/// What both accounts have: at once, without any lock, and with the dead clerk's section still open. A page of a list is
/// one state of the server.
fn sum(bank: &Client, place: &str) -> Result<()> {
    let mut sum = 0;
    for item in bank.prefix(&format!("{place}/")) {
        sum += serde_json::from_str::<i64>(item?.value.get())?;
    }
    println!("  the accounts have {sum} together");
    expect(sum == 200, "no money is lost or made")
}

/// The two accounts of a transfer and the audit file, exclusively and as one. All transfers meet at the audit file here;
/// one for each account instead (a file of the account's name) would let transfers between other accounts pass.
fn books(client: &Client, place: &str, from: &str, to: &str) -> LockRequest {
    client.lock_all([from, to, "audit"].map(|name| format!("{place}/{name}"))).atomic().wait_forever()
}

/// A clerk moves money to and fro. In transfer `stops_in` it stops in the middle, to be killed.
fn work(addr: &str, place: &str, stops_in: Option<u64>) -> Result<()> {
    // The TTL is how long its death keeps the others waiting.
    let client = Client::builder().name("clerk").ttl(Duration::from_secs(2)).connect(addr)?;
    for number in 1.. {
        let (from, to) = if number % 3 == 0 { ("ben", "anna") } else { ("anna", "ben") };
        let guard = books(&client, place, from, to).acquire()?;
        let balance = |name: &str| -> Result<i64> {
            Ok(guard.get(&format!("{place}/{name}"))?.ok_or("no such account")?.parse()?)
        };
        let (left, gained) = (balance(from)? - AMOUNT, balance(to)? + AMOUNT);
        guard.append_file(&format!("{place}/audit"), format!("{AMOUNT} {from} {to}\n"))?;
        guard.set(&format!("{place}/{from}"), &left)?;
        if stops_in == Some(number) {
            println!("in the middle");
            thread::sleep(Duration::from_secs(60));
        }
        guard.set(&format!("{place}/{to}"), &gained)?;
        if left < 0 {
            // Second thoughts cost nothing: all that was written is forgotten, the line in the audit too.
            guard.abandon()?;
        } else {
            // If no answer to this comes (`OutcomeUnknown`), the audit tells whether it was done.
            guard.commit()?;
            println!("done");
        }
    }
    Ok(())
}

/// Goes through the audit from the beginning: it must lead to what the accounts have. Tells how many transfers there were.
fn audit(client: &Client, place: &str) -> Result<u64> {
    let guard = books(client, place, "anna", "ben").acquire()?;
    let text = String::from_utf8(guard.read_all(&format!("{place}/audit"))?)?;
    for (name, begin) in ACCOUNTS {
        let mut money = begin;
        for line in text.lines() {
            let [amount, from, to] = line.split(' ').collect::<Vec<_>>()[..] else { return Err(line.into()) };
            let amount: i64 = amount.parse()?;
            if from == name {
                money -= amount;
            }
            if to == name {
                money += amount;
            }
        }
        let has: i64 = guard.get(&format!("{place}/{name}"))?.ok_or("no such account")?.parse()?;
        println!("  {name} has {has}, and the audit says {money}");
        expect(has == money, "the audit has a line for each transfer that happened, and no other")?;
    }
    guard.release()?;
    Ok(text.lines().count() as u64)
}

/// A clerk in a process of its own. It ends with this value.
struct Clerk {
    process: Child,
    says: Lines<BufReader<ChildStdout>>,
}

impl Clerk {
    fn start(addr: SocketAddr, place: &str, stops_in: &str) -> Result<Clerk> {
        let mut process = Command::new(env::current_exe()?)
            .args([CLERK, &addr.to_string(), place, stops_in])
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = process.stdout.take().ok_or("the clerk has no voice")?;
        Ok(Clerk { process, says: BufReader::new(stdout).lines() })
    }

    /// Waits until it says so.
    fn hear(&mut self, line: &str) -> Result<()> {
        for said in &mut self.says {
            if said? == line {
                return Ok(());
            }
        }
        Err(format!("the clerk ended without saying {line:?}").into())
    }

    /// SIGKILL: it can finish nothing and tell nobody.
    fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Clerk {
    fn drop(&mut self) {
        // Fails where it was killed already, which is what is wanted.
        let _ = self.kill();
    }
}
