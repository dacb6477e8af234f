//! The same as `detection`, asked of a real server: from the send of a request to its refusal, or to the word that it waits.

use crate::common::server::Server;
use crate::common::{ask, fresh_dir, machine::Cores, thousands};
use crate::detection::many_behind;
use crate::owners::chain_lock;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often each wait is tried on one server.
const TRIES: usize = 21;

/// Owners of one session: their waits must fit.
const SESSION_OWNERS: usize = 250;

/// Requests in one datagram.
const BATCH: usize = 50;

/// Far longer than a run: nobody sends heartbeats.
const TTL_MS: u64 = 3_600_000;

/// How long what was sent may take to be done, and how long until it is sent again.
const PATIENCE: Duration = Duration::from_secs(30);
const RESEND_AFTER: Duration = Duration::from_secs(2);

/// What a scene took, in nanoseconds.
pub(crate) struct Figures {
    name: String,
    answer: &'static str,
    took: Vec<u64>,
}

/// Two chains of owners in sessions of some hundred each: what `detection` calls `chains`.
struct Chains<'a> {
    server: &'a Server,
    status: UdpSocket,
    sessions: Vec<Session>,
    lengths: [usize; 2],
}

struct Session {
    socket: UdpSocket,
    session: String,
    id: u64,
}

/// Builds the chains at a fresh server and tries each wait.
///
/// # Errors
/// A sentence, if anything does not work or an answer is not the expected one.
pub(crate) fn measure(dir: &Path, cores: &Cores, owners: usize) -> Result<Vec<Figures>, String> {
    let dir = fresh_dir(dir)?;
    let (server, _) = Server::start(dir.path(), "none", cores)?;
    let behind = many_behind(owners);
    let mut chains = Chains::build(&server, [behind, owners])?;
    let deadlock = format!(r#""cycle_total":{owners}"#);
    let (many, few) = (thousands(owners as f64), thousands(behind as f64));
    let mut figures = Vec::new();
    for (name, asker, answer, sign) in [
        (
            format!("the last of a chain of {many} owners asks for the first's lock"),
            Some(behind + owners - 1),
            "`deadlock`",
            deadlock.as_str(),
        ),
        (
            format!("the last of a chain of {few} asks for the lock of the first of another, of {many}"),
            Some(behind - 1),
            "`pending`",
            r#""method":"pending""#,
        ),
        (
            format!("an owner that holds nothing asks for the lock of the first of {many}"),
            None,
            "`pending`",
            r#""method":"pending""#,
        ),
    ] {
        figures.push(Figures { name, answer, took: chains.attempt(asker, sign)? });
    }
    Ok(figures)
}

impl Chains<'_> {
    fn build(server: &Server, lengths: [usize; 2]) -> Result<Chains<'_>, String> {
        let owners: usize = lengths.iter().sum();
        // One more for an owner that holds nothing.
        let sessions = (0..=owners.div_ceil(SESSION_OWNERS))
            .map(|number| Session::open(server.address(), number))
            .collect::<Result<Vec<_>, _>>()?;
        let mut chains = Chains { server, status: ask::connect(server.address())?, sessions, lengths };
        let holds: Vec<(usize, String)> = (0..owners).map(|owner| (owner, chain_lock(owner))).collect();
        chains.ask(&holds, "0", "grants", owners as u64)?;
        let first_of_second = lengths[0];
        let waits: Vec<(usize, String)> = (1..owners)
            .filter(|owner| *owner != first_of_second)
            .map(|owner| (owner - 1, chain_lock(owner)))
            .collect();
        chains.ask(&waits, "null", "waits", waits.len() as u64)?;
        Ok(chains)
    }

    /// Lets owners ask for a lock each, until the server counts so many of what comes of it.
    fn ask(
        &mut self,
        asks: &[(usize, String)],
        wait_ms: &str,
        count: &str,
        expected: u64,
    ) -> Result<(), String> {
        let mut done = expected - asks.len() as u64;
        let mut rest = asks;
        while let Some((owner, _)) = rest.first() {
            // All of a session at once, in the order of the chain.
            let nth = owner / SESSION_OWNERS;
            let here = rest.iter().take_while(|(owner, _)| owner / SESSION_OWNERS == nth).count();
            let (now, later) = rest.split_at(here);
            rest = later;
            done += here as u64;
            let session = &mut self.sessions[nth];
            let datagrams: Vec<String> = now.chunks(BATCH).map(|some| session.batch(some, wait_ms)).collect();
            let began = Instant::now();
            let mut sent: Option<Instant> = None;
            while counted(&self.status, count)? < done {
                if began.elapsed() > PATIENCE {
                    return Err(format!("the server does not have {done} {count}"));
                }
                if sent.is_none_or(|sent| sent.elapsed() > RESEND_AFTER) {
                    sent = Some(Instant::now());
                    for datagram in &datagrams {
                        session.socket.send(datagram.as_bytes()).map_err(|error| error.to_string())?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Lets an owner ask for the lock of the first of the second chain, again and again; what its answer is known by.
    fn attempt(&mut self, asker: Option<usize>, sign: &str) -> Result<Vec<u64>, String> {
        let nth = asker.map_or(self.sessions.len() - 1, |owner| owner / SESSION_OWNERS);
        // A socket of its own: in that of the session lies what nobody has read.
        let socket = ask::connect(self.server.address())?;
        let Session { session, id, .. } = &mut self.sessions[nth];
        let owner = asker.map_or("idle".to_owned(), owner_name);
        let key = chain_lock(self.lengths[0]);
        let mut took = Vec::with_capacity(TRIES);
        for _ in 0..TRIES {
            *id += 1;
            let (wait, got) = (*id, *id - 2);
            let request = format!(
                r#"{{"jsonrpc":"2.0","id":{wait},"method":"acquire_lock","params":{{"session":"{session}","got":[{got}],"key":"{key}","wait_ms":null,"owner":"{owner}"}}}}"#
            );
            took.push(answer_to(&socket, &request, wait, sign)?);
            *id += 1;
            // After a refusal this cancels nothing.
            let request = format!(
                r#"{{"jsonrpc":"2.0","id":{id},"method":"cancel_wait","params":{{"session":"{session}","wait":{wait}}}}}"#
            );
            answer_to(&socket, &request, *id, r#""jsonrpc""#)?;
        }
        Ok(took)
    }
}

impl Session {
    fn open(server: SocketAddr, number: usize) -> Result<Session, String> {
        let socket = ask::connect(server)?;
        let session = ask::open_session(&socket, number, TTL_MS)?;
        // Whatever `got` names two below must be an id.
        Ok(Session { socket, session, id: 2 })
    }

    fn batch(&mut self, asks: &[(usize, String)], wait_ms: &str) -> String {
        let requests: Vec<String> = asks
            .iter()
            .map(|(owner, key)| {
                self.id += 1;
                let (id, session, owner) = (self.id, &self.session, owner_name(*owner));
                format!(
                    r#"{{"jsonrpc":"2.0","id":{id},"method":"acquire_lock","params":{{"session":"{session}","key":"{key}","wait_ms":{wait_ms},"owner":"{owner}"}}}}"#
                )
            })
            .collect();
        format!("[{}]", requests.join(","))
    }
}

fn owner_name(owner: usize) -> String {
    format!("o{owner}")
}

/// What the server counts under that name.
fn counted(socket: &UdpSocket, count: &str) -> Result<u64, String> {
    let reply = ask::call(socket, r#"{"jsonrpc":"2.0","id":1,"method":"status"}"#)?;
    let found = reply["result"]["counts"][count].as_u64();
    found.ok_or_else(|| format!("the server does not count {count}: {reply}"))
}

/// Sends a request; the time until the datagram with its id comes, in nanoseconds, which must have `sign` in it.
fn answer_to(socket: &UdpSocket, request: &str, id: u64, sign: &str) -> Result<u64, String> {
    let mut buffer = vec![0; 65_536];
    let named = format!(r#""id":{id},"#);
    let began = Instant::now();
    socket.send(request.as_bytes()).map_err(|error| error.to_string())?;
    loop {
        let length = socket.recv(&mut buffer).map_err(|error| format!("no answer to {request}: {error}"))?;
        let took = began.elapsed().as_nanos() as u64;
        let text = String::from_utf8_lossy(&buffer[..length]);
        if text.contains(&named) {
            return if text.contains(sign) {
                Ok(took)
            } else {
                Err(format!("{request} was answered {text}"))
            };
        }
    }
}

/// Prints the table: of several passes, each with a server of its own.
#[expect(clippy::print_stdout, reason = "a benchmark prints its tables")]
pub(crate) fn print(mut passes: Vec<Vec<Figures>>) {
    let Some(mut all) = passes.pop().filter(|last| !last.is_empty()) else { return };
    for pass in passes {
        for (figures, more) in all.iter_mut().zip(pass) {
            figures.took.extend(more.took);
        }
    }
    println!(
        "\n**The same asked of a server** (`none`): from the send of the request to its answer, the owners in sessions of \
         {SESSION_OWNERS}.\n"
    );
    println!("| wait | answer | times | median ms | lowest–highest ms |\n|---|---|---:|---:|---:|");
    for Figures { name, answer, mut took } in all {
        took.sort_unstable();
        let ms = |nanos: u64| nanos as f64 / 1e6;
        let (lowest, median, highest) = (took[0], took[took.len() / 2], took[took.len() - 1]);
        println!(
            "| {name} | {answer} | {} | {:.3} | {:.3}–{:.3} |",
            took.len(),
            ms(median),
            ms(lowest),
            ms(highest)
        );
    }
}
