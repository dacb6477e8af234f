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
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;
use tenure::client::{Client, LockRequest};

/// Who has an account, and what they have at first.
const ACCOUNTS: [(&str, i64); 2] = [("anna", 100), ("ben", 100)];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.as_slice() {
        [clerk, addr, place, until] if clerk == "--clerk" => match work(addr, place, until.parse().ok()) {
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
    let opening = bank.transaction();
    ACCOUNTS
        .iter()
        .fold(opening, |all, (name, money)| all.set(&format!("{place}/{name}"), money))
        .commit()?;

    // Two clerks do two transfers each, and are killed in their third: the money has left one account, the audit has its
    // line, and nothing has come to the other account. A third clerk is killed wherever it happens to be.
    for (number, until, line) in [(1, "3", "in the middle"), (2, "3", "in the middle"), (3, "never", "done")]
    {
        let mut clerk = Command::new(env::current_exe()?)
            .args(["--clerk", &addr.to_string(), place, until])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = BufReader::new(clerk.stdout.take().ok_or("the clerk has no voice")?).lines();
        let heard = said.any(|said| said.is_ok_and(|said| said == line));
        if until == "never" {
            thread::sleep(Duration::from_millis(25));
        }
        clerk.kill()?;
        clerk.wait()?;
        expect(heard, "the clerk came as far as that")?;

        // At once, without any lock, and with the dead clerk's section still open: a page of a list is one state.
        let sum: i64 = bank
            .prefix(&format!("{place}/"))
            .map(|item| Ok(serde_json::from_str::<i64>(item?.value.get())?))
            .sum::<Result<i64>>()?;
        println!("clerk {number} was killed; the accounts have {sum} together");
        expect(sum == 200, "no money is lost or made")?;
        let transfers = audit(&bank, place)?;
        expect(
            if until == "never" { transfers > 4 } else { transfers == 2 * number },
            "no transfer is lost",
        )?;
    }
    Ok(())
}

/// The accounts and the audit file, exclusively and as one. All transfers meet at the audit file here; one for each
/// account instead (a file of the account's name) would let transfers between other accounts pass.
fn books(client: &Client, place: &str) -> LockRequest {
    client.lock_all(["audit", "ben", "anna"].map(|name| format!("{place}/{name}"))).atomic().wait_forever()
}

/// A clerk moves money to and fro. In transfer `until` it stops in the middle, to be killed.
fn work(addr: &str, place: &str, until: Option<u64>) -> Result<()> {
    // The TTL is how long its death keeps the others waiting.
    let client = Client::builder().name("clerk").ttl(Duration::from_millis(1_500)).connect(addr)?;
    for number in 1.. {
        let (from, to) = if number % 3 == 0 { ("ben", "anna") } else { ("anna", "ben") };
        let guard = books(&client, place).acquire()?;
        let balance = |name: &str| -> Result<i64> {
            Ok(guard.get(&format!("{place}/{name}"))?.ok_or("no such account")?.parse()?)
        };
        let amount = 20;
        let (has, gets) = (balance(from)? - amount, balance(to)? + amount);
        guard.append_file(&format!("{place}/audit"), format!("{amount} {from} {to}\n"))?;
        guard.set(&format!("{place}/{from}"), &has)?;
        if until == Some(number) {
            println!("in the middle");
            thread::sleep(Duration::from_secs(60));
        }
        guard.set(&format!("{place}/{to}"), &gets)?;
        if has < 0 {
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
    let guard = books(client, place).acquire()?;
    let text = String::from_utf8(guard.read_all(&format!("{place}/audit"))?)?;
    for (name, begin) in ACCOUNTS {
        let mut money = begin;
        for line in text.lines() {
            let [amount, from, to] = line.split(' ').collect::<Vec<_>>()[..] else { return Err(line.into()) };
            let amount: i64 = amount.parse()?;
            money += if to == name { amount } else { 0 } - if from == name { amount } else { 0 };
        }
        let has: i64 = guard.get(&format!("{place}/{name}"))?.ok_or("no such account")?.parse()?;
        println!("  {name} has {has}, and the audit says {money}");
        expect(has == money, "the audit has a line for each transfer that happened, and no other")?;
    }
    guard.release()?;
    Ok(text.lines().count() as u64)
}
