//! Forty owners and forty locks: the dining philosophers at a larger table. All finish, in turn, and nobody hangs.
//!
//! The owners are threads of eight sessions against one server in a process of its own. Each takes two or three locks,
//! drawn at random and asked for in random order: no rule of the clients keeps them from each other's way.
//!
//! What the server did is read from its log afterwards, and judged by rules that fit on a page (`Table`), not by clocks.
//! `TENURE_SEED=…` draws the same locks again; how the threads interleave is up to the machine.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::print_stdout, reason = "a failure shows its seed, and a run what it met")]

#[path = "protocol/server.rs"]
#[expect(
    dead_code,
    reason = "shared with the test of the protocol, which talks to the server without the library"
)]
mod server;

use fastrand::Rng;
use serde_json::Value;
use server::Server;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tenure::client::{Client, Error, Guard};

const OWNERS: usize = 40;
const SESSIONS: usize = 8;

/// How long all may take together on a slow and loaded machine. A hang is told after it, with who is missing.
const BOUND: Duration = Duration::from_secs(150);

/// One of the forty.
struct Owner {
    number: usize,
    client: Client,
    rng: Rng,
    /// Which locks are held, as the holders themselves know it.
    in_use: Arc<Vec<AtomicBool>>,
}

impl Owner {
    /// Two or three names, in no order.
    fn draw(&mut self) -> Vec<usize> {
        let many = self.rng.usize(2..=3);
        let mut forks = self.rng.choose_multiple(0..OWNERS, many);
        self.rng.shuffle(&mut forks);
        forks
    }

    /// Uses what it holds: nobody else does at the same time.
    fn eat(&self, forks: &[usize]) {
        for &fork in forks {
            assert!(!self.in_use[fork].swap(true, Ordering::SeqCst), "{} has two holders", name(fork));
        }
        for &fork in forks {
            self.in_use[fork].store(false, Ordering::SeqCst);
        }
    }
}

fn name(fork: usize) -> String {
    format!("fork/{fork:02}")
}

fn seed() -> u64 {
    let seed = std::env::var("TENURE_SEED").ok().map(|seed| seed.parse().expect("TENURE_SEED is a number"));
    let seed = seed.unwrap_or_else(|| fastrand::u64(0..1 << 32));
    println!("seed: run again with TENURE_SEED={seed}");
    seed
}

/// Lets each owner live its life in a thread of its own. Gives what they gave; fails if they do not come to an end.
fn dine<T: Send + 'static>(
    server: &Server,
    life: impl Fn(&mut Owner) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let mut rng = Rng::with_seed(seed());
    let in_use: Arc<Vec<AtomicBool>> = Arc::new((0..OWNERS).map(|_| AtomicBool::new(false)).collect());
    let connect =
        |number| Client::builder().name(format!("session {number}")).connect(server.address).unwrap();
    let clients: Vec<Client> = (0..SESSIONS).map(connect).collect();
    let (life, (tell, told)) = (Arc::new(life), mpsc::channel());
    for number in 0..OWNERS {
        let (client, in_use) = (clients[number % SESSIONS].clone(), Arc::clone(&in_use));
        let mut owner = Owner { number, client, rng: rng.fork(), in_use };
        let (life, tell) = (Arc::clone(&life), tell.clone());
        thread::spawn(move || tell.send((number, life(&mut owner))));
    }
    drop(tell);
    let (begun, mut done) = (Instant::now(), BTreeMap::new());
    while done.len() < OWNERS {
        match told.recv_timeout(BOUND.saturating_sub(begun.elapsed())) {
            Ok((number, gave)) => done.insert(number, gave),
            Err(error) => {
                let missing: Vec<usize> = (0..OWNERS).filter(|number| !done.contains_key(number)).collect();
                let waits: Vec<_> = clients[0].list_waits("").collect();
                panic!("{error}: {missing:?} came to no end; in line: {waits:#?}");
            }
        };
    }
    println!("{OWNERS} owners took {:.1} s", begun.elapsed().as_secs_f64());
    done.into_values().collect()
}

/// What the server's log tells of locks that are held exclusively, checked line by line: each has one holder at most, and
/// is given to the request that asked for it first. A request for several stands in all their lines from one moment.
#[derive(Default)]
struct Table {
    lines: BTreeMap<String, VecDeque<Request>>,
    holders: BTreeMap<String, u64>,
    /// Requests that stand in line or were just made, with their locks.
    waits: BTreeMap<Request, Vec<String>>,
    grants: BTreeMap<u64, Vec<String>>,
    /// How many were granted, how many of them after a wait, and how many waits were refused as deadlocks.
    granted: usize,
    waited: usize,
    deadlocks: usize,
}

/// The public number of a session, and the id of the request in it: `client 3, id 17`.
type Request = String;

impl Table {
    /// Reads the log of a server, which is killed for that: its journal holds all that it did.
    fn of(server: &mut Server) -> Table {
        let output = Command::new(env!("CARGO_BIN_EXE_tenure"))
            .args(["state", "events", "--output", "json", "--last", "1000000"])
            .arg(server.stopped())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let events: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(events[0]["op"], 1, "the journal goes back to the beginning");
        let mut table = Table::default();
        for event in &events {
            table.see(event["event"].as_str().unwrap());
        }
        assert!(table.waits.is_empty() && table.grants.is_empty(), "all waits and grants came to an end");
        table
    }

    /// One line, as in
    ///
    /// ```text
    /// op 4 client 2, id 1: acquire_lock "a" and "b", owner "t7": waits in place 1
    /// op 9 client 1, id 3: release_lock, token 1 of "a" and "c", owner "t4": released
    /// op 9 client 2, id 1, after its wait: granted token 2 of "a" and "b"
    /// ```
    fn see(&mut self, line: &str) {
        let (what, outcome) = line.rsplit_once(": ").unwrap();
        let by = || {
            let (_, request) = what.split_once("client ").unwrap();
            request.split([':', ',']).take(2).collect::<Vec<_>>().join(",")
        };
        if what.contains(": acquire_lock ") {
            if outcome == "refused, deadlock" {
                self.deadlocks += 1;
                return;
            }
            let locks = quoted(what.split_once("acquire_lock ").unwrap().1.split(", owner").next().unwrap());
            for lock in &locks {
                self.lines.entry(lock.clone()).or_default().push_back(by());
            }
            self.waits.insert(by(), locks);
            match outcome.strip_prefix("granted token ") {
                Some(granted) => self.grant(&by(), granted, line),
                None => assert!(outcome.starts_with("waits in place "), "{line}"),
            }
        } else if what.contains(", after its wait") {
            self.waited += 1;
            self.grant(
                &by(),
                outcome.strip_prefix("granted token ").unwrap_or_else(|| panic!("{line}")),
                line,
            );
        } else if what.contains(": release_lock, token ") {
            let token = what.split_once(", token ").unwrap().1.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(outcome, "released", "{line}");
            for lock in self.grants.remove(&token).unwrap() {
                assert_eq!(self.holders.remove(&lock), Some(token), "{line}");
            }
        } else {
            let known = ["new_term", "open_session", "end_session", "tick"];
            assert!(known.iter().any(|known| what.contains(known)), "{line}");
        }
    }

    fn grant(&mut self, request: &str, granted: &str, line: &str) {
        let token: u64 = granted.split(' ').next().unwrap().parse().unwrap();
        let locks = self.waits.remove(request).unwrap();
        assert_eq!(quoted(granted), locks, "{line}");
        assert!(self.grants.last_key_value().is_none_or(|(&last, _)| token > last), "tokens rise: {line}");
        for lock in &locks {
            assert_eq!(self.holders.insert(lock.clone(), token), None, "{lock} was held: {line}");
            let first = self.lines.get_mut(lock).and_then(VecDeque::pop_front);
            assert_eq!(first.as_deref(), Some(request), "another asked for {lock} before: {line}");
        }
        self.grants.insert(token, locks);
        self.granted += 1;
    }
}

/// What stands between quotation marks.
fn quoted(text: &str) -> Vec<String> {
    text.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn forty_owners_who_ask_for_their_locks_at_once_all_get_them_in_the_order_of_asking() {
    const ROUNDS: usize = 25;
    let mut server = Server::start(IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
    let tokens = dine(&server, |owner| {
        let mut tokens = Vec::new();
        for _ in 0..ROUNDS {
            let forks = owner.draw();
            // Whatever the order, and whatever others do: this is no deadlock, so any error fails the test.
            let all = owner.client.lock_all(forks.iter().copied().map(name));
            let guard = all.wait_forever().acquire().unwrap();
            owner.eat(&forks);
            tokens.push(guard.token().unwrap());
            guard.release().unwrap();
        }
        tokens
    });
    assert!(tokens.iter().all(|tokens| tokens.len() == ROUNDS && tokens.is_sorted()), "{tokens:?}");
    let different: BTreeSet<u64> = tokens.into_iter().flatten().collect();
    let table = Table::of(&mut server);
    assert_eq!((table.granted, different.len(), table.deadlocks), (OWNERS * ROUNDS, OWNERS * ROUNDS, 0));
    println!("{} of {} grants had to wait", table.waited, table.granted);
    assert!(table.waited > table.granted / 4, "they were in each other's way");
}

#[test]
fn forty_owners_who_take_one_lock_after_the_other_are_told_of_deadlocks_and_all_finish() {
    const ROUNDS: usize = 10;
    let mut server = Server::start(IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
    let all_sit = Barrier::new(OWNERS);
    let verdicts = dine(&server, move |owner| {
        // The old story first: each holds one and asks for its neighbour's. Whoever comes last closes the circle, which is
        // a deadlock for sure, and nobody before does.
        let left = owner.client.lock(name(owner.number)).acquire().unwrap();
        all_sit.wait();
        let right = owner.client.lock(name((owner.number + 1) % OWNERS)).wait_forever().acquire();
        let circle = match &right {
            Ok(_) => 0,
            Err(Error::Deadlock { cycle_total, .. }) => *cycle_total,
            Err(error) => panic!("{error}"),
        };
        left.release().unwrap();
        right.map_or(Ok(()), Guard::release).unwrap();

        let mut refused = 0;
        for _ in 0..ROUNDS {
            let forks = owner.draw();
            let taken = loop {
                match one_by_one(owner, &forks) {
                    Some(taken) => break taken,
                    None => refused += 1,
                }
            };
            owner.eat(&forks);
            for guard in taken {
                guard.release().unwrap();
            }
        }
        (circle, refused)
    });
    let circles: Vec<u64> = verdicts.iter().map(|(circle, _)| *circle).filter(|&circle| circle > 0).collect();
    assert_eq!(circles, [OWNERS as u64], "one was refused, and told of all forty");
    let refused: usize = verdicts.iter().map(|(_, refused)| refused).sum();
    let table = Table::of(&mut server);
    assert_eq!(table.deadlocks, 1 + refused, "each verdict of the log was told, and no other");
    println!("{} of {} grants had to wait; {} deadlocks", table.waited, table.granted, table.deadlocks);
}

/// Takes the locks one by one, in the order drawn. After a deadlock it lets go of all that it has.
fn one_by_one(owner: &Owner, forks: &[usize]) -> Option<Vec<Guard>> {
    let mut taken = Vec::new();
    for &fork in forks {
        match owner.client.lock(name(fork)).wait_forever().acquire() {
            Ok(guard) => taken.push(guard),
            Err(Error::Deadlock { cycle, cycle_total }) => {
                assert!(cycle_total >= 2 && !cycle.is_empty(), "{cycle:?}");
                for guard in taken {
                    guard.release().unwrap();
                }
                return None;
            }
            Err(error) => panic!("{error}"),
        }
    }
    Some(taken)
}

/// Reads lines as the log has them.
fn log_of(lines: &[&str]) {
    let mut table = Table::default();
    lines.iter().for_each(|line| table.see(line));
}

#[test]
#[should_panic(expected = "another asked for fork/01 before")]
fn the_table_sees_who_is_overtaken() {
    log_of(&[
        r#"op 3 client 1, id 1: acquire_lock "fork/00", owner "t1": granted token 1 of "fork/00""#,
        r#"op 4 client 2, id 1: acquire_lock "fork/01" and "fork/00", owner "t2": waits in place 1"#,
        r#"op 5 client 3, id 1: acquire_lock "fork/01", owner "t3": granted token 2 of "fork/01""#,
    ]);
}

#[test]
#[should_panic(expected = "fork/00 was held")]
fn the_table_sees_a_second_holder() {
    log_of(&[
        r#"op 3 client 1, id 1: acquire_lock "fork/00", owner "t1": granted token 1 of "fork/00""#,
        r#"op 4 client 2, id 1: acquire_lock "fork/00", owner "t2": waits in place 1"#,
        r#"op 4 client 2, id 1, after its wait: granted token 2 of "fork/00""#,
    ]);
}
