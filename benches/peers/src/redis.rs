//! Redis, as its own documentation says that locks are made with it, through fixed bytes.
//!
//! - A lock of one's own: `SET name me NX PX 30000`, and a script that deletes the key if it is still mine.
//! - A lock that many want: a token in a list. `BLPOP` takes it and queues who waits, `RPUSH` gives it back.
//! - A lock that is kept alive: `PEXPIRE` on each key.

use crate::figures::{Figures, Time};
use crate::process;
use crate::tcp::{self, Player, Rhythm, Taken};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Deletes a key that holds what the caller put there.
const RELEASE: &[u8] =
    b"if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0";

/// Requests in one write while keys are made.
const PIPELINED: usize = 1_000;

/// Steps that a client goes through again and again: each request with the one right answer.
struct Script {
    steps: Vec<(Vec<u8>, Vec<u8>)>,
    at: usize,
    /// Operations that end with the answer to each step.
    completes: fn(step: usize, steps: usize) -> u64,
    /// How many times that is, where a step is a pipeline.
    times: u64,
    /// Whether each step is an operation of its own.
    each: bool,
}

/// The last step is the end of the operation.
fn at_the_end(step: usize, steps: usize) -> u64 {
    u64::from(step + 1 == steps)
}

/// Each step is one.
fn at_each(_: usize, _: usize) -> u64 {
    1
}

/// The first step is: who has waited has what he waited for.
fn at_first(step: usize, _: usize) -> u64 {
    u64::from(step == 0)
}

impl Player for Script {
    fn begin(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.steps[self.at].0);
    }

    fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Taken, String> {
        let expected = &self.steps[self.at].1;
        if input.len() < expected.len() {
            return if expected.starts_with(input) { Ok(Taken::default()) } else { Err(told(input)) };
        }
        if !input.starts_with(expected) {
            return Err(told(input));
        }
        let completed = (self.completes)(self.at, self.steps.len()) * self.times;
        let length = expected.len();
        self.at = (self.at + 1) % self.steps.len();
        let over = self.each || self.at == 0;
        if !over {
            out.extend_from_slice(&self.steps[self.at].0);
        }
        Ok(Taken { length, completed, over })
    }
}

fn told(input: &[u8]) -> String {
    format!("Redis answered {:?}", String::from_utf8_lossy(&input[..input.len().min(200)]))
}

/// A command as Redis reads it.
fn command(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
    for part in parts {
        bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// A connection for what is done before anything is measured.
struct Setup(TcpStream);

impl Setup {
    fn connect(server: SocketAddr) -> Result<Setup, String> {
        connect(server).map(Setup)
    }

    /// Sends commands and reads so many bytes of answers.
    fn ask(&mut self, bytes: &[u8], answers: usize) -> Result<Vec<u8>, String> {
        let mut read = vec![0; answers];
        let asked = self.0.write_all(bytes).and_then(|()| self.0.read_exact(&mut read));
        asked.map(|()| read).map_err(|error| format!("Redis does not answer: {error}"))
    }
}

fn connect(server: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(server).map_err(|error| format!("Redis takes no connection: {error}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(|error| error.to_string())?;
    Ok(stream)
}

fn name(number: usize) -> Vec<u8> {
    format!("peers/lock/{number:021}").into_bytes()
}

fn client(number: usize) -> Vec<u8> {
    format!("client-{number:011}").into_bytes()
}

/// Acquire and release, step by step.
fn cycle(release: &[u8], number: usize) -> [(Vec<u8>, Vec<u8>); 2] {
    let (name, me) = (name(number), client(number));
    [
        (command(&[b"SET", &name, &me, b"NX", b"PX", b"30000"]), b"+OK\r\n".to_vec()),
        (command(&[b"EVALSHA", release, b"1", &name, &me]), b":1\r\n".to_vec()),
    ]
}

/// Stores the script; what it is called by.
fn release(server: SocketAddr) -> Result<Vec<u8>, String> {
    // `$40`, then 40 hex digits, each with its line end.
    let answer = Setup::connect(server)?.ask(&command(&[b"SCRIPT", b"LOAD", RELEASE]), 47)?;
    Ok(answer[5..45].to_vec())
}

/// Each client acquires and releases a lock of its own.
pub fn cycles(server: SocketAddr, clients: usize, time: &Time, pid: u32) -> Result<Figures, String> {
    let release = release(server)?;
    let players = (0..clients).map(|number| {
        let steps = cycle(&release, number).to_vec();
        Ok((connect(server)?, Script { steps, at: 0, completes: at_the_end, times: 1, each: false }))
    });
    tcp::run(players.collect::<Result<_, String>>()?, Rhythm::Loop, time, pid)
}

/// The cycles of many clients over one connection, all acquires in one write and then all releases, as an agent would.
pub fn pipelined(server: SocketAddr, in_flight: usize, time: &Time, pid: u32) -> Result<Figures, String> {
    let release = release(server)?;
    let mut steps = vec![(Vec::new(), Vec::new()); 2];
    for number in 0..in_flight {
        for (step, (request, answer)) in steps.iter_mut().zip(cycle(&release, number)) {
            step.0.extend(request);
            step.1.extend(answer);
        }
    }
    let script = Script { steps, at: 0, completes: at_the_end, times: in_flight as u64, each: false };
    tcp::run(vec![(connect(server)?, script)], Rhythm::Loop, time, pid)
}

/// All clients want the one token, in rounds.
pub fn hand_off(server: SocketAddr, clients: usize, time: &Time, pid: u32) -> Result<Figures, String> {
    Setup::connect(server)?.ask(&command(&[b"RPUSH", b"peers/wanted", b"token"]), 4)?;
    let steps = vec![
        (command(&[b"BLPOP", b"peers/wanted", b"0"]), command(&[b"peers/wanted", b"token"])),
        (command(&[b"RPUSH", b"peers/wanted", b"token"]), b":1\r\n".to_vec()),
    ];
    let players = (0..clients).map(|_| {
        Ok((
            connect(server)?,
            Script { steps: steps.clone(), at: 0, completes: at_first, times: 1, each: false },
        ))
    });
    tcp::run(players.collect::<Result<_, String>>()?, Rhythm::Rounds, time, pid)
}

/// Each client writes, or reads, a value of this many bytes under a key of its own.
pub fn keys(
    server: SocketAddr,
    clients: usize,
    put: bool,
    bytes: usize,
    time: &Time,
    pid: u32,
) -> Result<Figures, String> {
    let value = vec![b'x'; bytes];
    let mut setup = Setup::connect(server)?;
    let mut players = Vec::with_capacity(clients);
    for number in 0..clients {
        let (name, set) = (name(number), command(&[b"SET", &name(number), &value]));
        let step = if put {
            (set, b"+OK\r\n".to_vec())
        } else {
            setup.ask(&set, 5)?;
            let answer = [format!("${bytes}\r\n").as_bytes(), &value, b"\r\n"].concat();
            (command(&[b"GET", &name]), answer)
        };
        let script = Script { steps: vec![step], at: 0, completes: at_the_end, times: 1, each: false };
        players.push((connect(server)?, script));
    }
    tcp::run(players, Rhythm::Loop, time, pid)
}

/// Makes keys with a TTL, each held by a client.
fn make(server: SocketAddr, keys: usize) -> Result<(), String> {
    let mut setup = Setup::connect(server)?;
    let mut number = 0;
    while number < keys {
        let count = PIPELINED.min(keys - number);
        let sets = (number..number + count)
            .flat_map(|number| command(&[b"SET", &name(number), &client(number), b"NX", b"PX", b"3600000"]));
        setup.ask(&sets.collect::<Vec<u8>>(), 5 * count)?;
        number += count;
    }
    Ok(())
}

/// Keys that live for a minute, each asked to live on once a second over one of so many connections.
pub fn keep_alive(
    server: SocketAddr,
    clients: usize,
    locks: usize,
    time: &Time,
    pid: u32,
) -> Result<Figures, String> {
    make(server, locks)?;
    let mut players = Vec::with_capacity(clients);
    for client in 0..clients {
        let steps = (client..locks)
            .step_by(clients)
            .map(|number| (command(&[b"PEXPIRE", &name(number), b"60000"]), b":1\r\n".to_vec()));
        let script = Script { steps: steps.collect(), at: 0, completes: at_each, times: 1, each: true };
        players.push((connect(server)?, script));
    }
    let pace = Duration::from_secs_f64(clients as f64 / locks as f64);
    tcp::run(players, Rhythm::Every(pace), time, pid)
}

/// What a key with a holder and a TTL takes of memory.
pub fn memory(server: SocketAddr, locks: usize, pid: u32) -> Result<Figures, String> {
    let before = process::memory(pid, "VmRSS")?;
    make(server, locks)?;
    let after = process::memory(pid, "VmRSS")?;
    Ok(Figures { bytes: (after as f64 - before as f64) / locks as f64, ..Figures::NONE })
}
