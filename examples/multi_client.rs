//! Five clients, three files, one server that is killed in the middle: every line must stand exactly once.
//!
//! ```text
//! cargo run --release --example multi_client
//! cargo run --release --example multi_client -- --clients 40 --rounds 5 --kills 5 --pace-ms 5 --stagger-ms 0 --quiet
//! ```
//!
//! Read `main` first, then `write_line`, which is all that a client has to do.

#![allow(clippy::print_stdout, reason = "an example tells its story on stdout")]

mod harness;

use clap::Parser;
use harness::{Result, Server};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tenure::client::{Attempt, Client, Error, GrantState, Guard};
use tenure::kind::Kind;

/// Clients append to shared files under locks while their server is killed and started again.
#[derive(Debug, Parser)]
struct Args {
    /// How many clients. Five are the cast: 1 and 3 write to file_0, 2 to file_2, 4 and 5 to file_3. More repeat it with
    /// files of their own.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    clients: u64,
    /// How many lines each client writes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rounds: u64,
    /// How often the server is killed.
    #[arg(long, default_value_t = 1)]
    kills: u64,
    /// A server that runs already. It is not killed, and the files get a directory of their own there.
    #[arg(long, conflicts_with = "kills")]
    addr: Option<SocketAddr>,
    /// How long a client works before and after it writes, while it holds the lock.
    #[arg(long, default_value_t = 300)]
    pace_ms: u64,
    /// How long after each other the clients start.
    #[arg(long, default_value_t = 100)]
    stagger_ms: u64,
    /// Tell only what the server goes through, and the result.
    #[arg(long)]
    quiet: bool,
}

/// What the clients share: the stage they play on, not the locks, which they know only from the server.
struct Stage {
    args: Args,
    addr: SocketAddr,
    /// What the names of all files begin with.
    place: String,
    begin: Instant,
    appended: AtomicU64,
    ended: AtomicU64,
}

fn main() -> ExitCode {
    match harness::serve_if_asked().and_then(|()| play(Args::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demo failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn play(args: Args) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("tenure-demo-").tempdir()?;
    let data = dir.path().join("data");
    let mut server = match args.addr {
        Some(_) => None,
        None => Some(Server::start(&data)?),
    };
    let addr = args.addr.or(server.as_ref().map(Server::addr)).ok_or("there is no server")?;
    let place = if server.is_some() { String::new() } else { format!("demo-{:08x}/", std::process::id()) };
    let (appended, ended) = (AtomicU64::new(0), AtomicU64::new(0));
    let stage = Stage { args, addr, place, begin: Instant::now(), appended, ended };
    stage.tell("demo", &format!("a server listens on {addr}; {} clients come", stage.args.clients));

    let done = act_one(&stage, server.as_mut()).and_then(|()| act_two(&stage)).and_then(|()| judge(&stage));
    let done = done.and_then(|()| match server.take() {
        None => Ok(()),
        Some(server) => {
            server.stop()?;
            compare_disk(&stage, &data)
        }
    });
    if done.is_err() {
        // Whoever looks for the reason needs what the server wrote.
        eprintln!("the server's state and words are kept in {}", dir.keep().display());
    }
    done
}

/// Act one: the clients write, and the server is killed in the middle.
fn act_one(stage: &Stage, server: Option<&mut Server>) -> Result<()> {
    thread::scope(|scope| {
        let clients: Vec<_> = (1..=stage.args.clients)
            .map(|number| {
                scope.spawn(move || {
                    let done = client(stage, number);
                    stage.ended.fetch_add(1, Ordering::Relaxed);
                    done
                })
            })
            .collect();
        let killed = server.map_or(Ok(()), |server| kill_in_the_middle(stage, server));
        for (number, client) in (1..).zip(clients) {
            match client.join() {
                Ok(done) => done.map_err(|error| format!("client_{number}: {error}"))?,
                Err(_) => return Err(format!("client_{number} panicked").into()),
            }
        }
        killed
    })
}

/// One client: a session, as many lines as there are rounds, and goodbye.
fn client(stage: &Stage, number: u64) -> Result<()> {
    let name = format!("client_{number}");
    thread::sleep(Duration::from_millis(stage.args.stagger_ms * (number - 1)));
    // The TTL is what others wait at most if this client dies. The deadline is how long a call goes on asking a server that
    // does not answer: longer than the server is ever down here.
    let client = Client::builder()
        .name(&name)
        .ttl(Duration::from_secs(10))
        .deadline(Duration::from_secs(60))
        .connect(stage.addr)?;
    let session = client.session()?;
    stage.tell(&name, &format!("opens a session: it is client {} of the server", session.client));
    for round in 1..=stage.args.rounds {
        write_line(stage, &client, &name, &stage.file_of(number), &stage.line(number, round))?;
    }
    client.close()?;
    stage.tell(&name, "closes its session");
    Ok(())
}

/// Appends one line under the lock of its file, exactly once, whatever happens to the server meanwhile.
fn write_line(stage: &Stage, client: &Client, name: &str, file: &str, line: &str) -> Result<()> {
    let mut in_doubt = false;
    loop {
        let guard = acquire(stage, client, name, file)?;
        if in_doubt
            && client.read_all(file)?.split(|&byte| byte == b'\n').any(|found| found == line.as_bytes())
        {
            stage.tell(name, &format!("finds its line in {file}: only the answer had been lost"));
            return Ok(());
        }
        stage.work();
        match guard.append_file(file, format!("{line}\n")) {
            Ok(appended) => {
                stage.appended.fetch_add(1, Ordering::Relaxed);
                stage.tell(name, &format!("has appended to {file} at offset {}", appended.offset));
            }
            // The server was silent for too long to be sure. The append was not sent, or was refused: begin again.
            Err(Error::Lost(lost)) => {
                stage.tell(name, &format!("begins again: {lost}"));
                continue;
            }
            // Sent, and never answered. Under the lock nobody else writes, so the file tells.
            Err(Error::OutcomeUnknown { why, .. }) => {
                stage.tell(name, &format!("does not know whether it has written, and will look: {why}"));
                in_doubt = true;
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        stage.work();
        match guard.release() {
            Ok(()) => stage.tell(name, &format!("releases {file}")),
            Err(error) => {
                stage.tell(name, &format!("could not release {file}, but its line stands: {error}"))
            }
        }
        return Ok(());
    }
}

/// Stands in line for the lock of a file, and tells about it.
fn acquire(stage: &Stage, client: &Client, name: &str, file: &str) -> Result<Guard> {
    let guard = match client.lock(file).label("multi_client").try_acquire()? {
        Attempt::Granted(guard) => guard,
        Attempt::Refused(blocked) => {
            let place = blocked.position.map_or(String::new(), |position| format!(" in place {position}"));
            let holder = blocked.holders.first().map_or("nobody".into(), |holder| {
                format!("{}, for {} ms with token {}", holder.name, holder.held_ms, holder.token)
            });
            stage.tell(name, &format!("waits for {file}{place}; it is held by {holder}"));
            client.lock(file).label("multi_client").wait_forever().acquire()?
        }
    };
    let sure = guard.remaining().as_millis();
    stage.tell(name, &format!("is granted {file} with token {}, sure of it for {sure} ms", guard.token()?));
    if !stage.args.quiet {
        let (name, file, begin) = (name.to_owned(), file.to_owned(), stage.begin);
        guard.on_change(move |state| match state {
            GrantState::Safe => tell(begin, &name, &format!("is sure of {file} again")),
            GrantState::AtRisk => tell(begin, &name, &format!("hears nothing: {file} is at risk")),
            GrantState::Lost => tell(begin, &name, &format!("has lost {file}")),
        });
    }
    Ok(guard)
}

/// Kills the server and starts it again, spread over the lines that are to be written.
fn kill_in_the_middle(stage: &Stage, server: &mut Server) -> Result<()> {
    let total = stage.args.clients * stage.args.rounds;
    for kill in 1..=stage.args.kills {
        let due = total * kill / (stage.args.kills + 1);
        while stage.appended.load(Ordering::Relaxed) < due
            && stage.ended.load(Ordering::Relaxed) < stage.args.clients
        {
            thread::sleep(Duration::from_millis(1));
        }
        let lines = stage.appended.load(Ordering::Relaxed);
        stage.event(&format!("kill -9 to the server, after {lines} of {total} lines"));
        server.kill()?;
        stage.event("it is down: clients keep their grants and go on asking");
        thread::sleep(Duration::from_millis(500));
        let begin = Instant::now();
        server.restart()?;
        let took = begin.elapsed().as_millis();
        let status = Client::builder().lazy(true).connect(stage.addr)?.status()?;
        let count = |name| status.counts.get(name).copied().unwrap_or_default();
        stage.event(&format!(
            "it is back after {took} ms in term {}: {} sessions, {} grants and {} waits as they were",
            status.term,
            count("sessions"),
            count("grants"),
            count("waits")
        ));
    }
    Ok(())
}

/// Act two: what a lease is for. A client hangs while it holds a lock; the lock passes on, and its late write is refused.
fn act_two(stage: &Stage) -> Result<()> {
    let file = stage.slow_file();
    let sleeper = Client::builder().name("sleeper").ttl(Duration::from_secs(1)).connect(stage.addr)?;
    let old = sleeper.lock(&file).acquire()?.into_token()?;
    // From here nothing is heard of this session, as of a process that hangs or a machine that is gone.
    let asleep = sleeper.detach()?;
    stage.tell("sleeper", &format!("holds {file} with token {old} and hangs; its session's TTL is 1 s"));

    let heir = Client::builder().name("heir").connect(stage.addr)?;
    stage.tell("heir", &format!("waits for {file}"));
    let guard = heir.lock(&file).wait(Duration::from_secs(20)).acquire()?;
    let new = guard.token()?;
    stage.tell("heir", &format!("is granted {file} with token {new}: the lease ran out"));
    guard.append_file(&file, format!("{HEIRS_LINE}\n"))?;

    let awake = Client::builder().name("sleeper").connect(stage.addr)?;
    match awake.fence_of(asleep.session, old).append_file(&file, "too late\n") {
        Err(error) if error.kind() == Some(Kind::NotHolder) => {
            stage.tell("sleeper", &format!("wakes and writes with token {old}; the server refuses: {error}"));
        }
        Err(error) => return Err(error.into()),
        Ok(_) => return Err(format!("the server took a write with the old token {old}").into()),
    }
    guard.release()?;
    stage.tell("heir", &format!("releases {file}"));
    Ok(())
}

const HEIRS_LINE: &str = "Log entry from heir";

/// Prints each file and compares it with what the clients were to write: every line once, and no other line.
fn judge(stage: &Stage) -> Result<()> {
    let client = Client::builder().lazy(true).connect(stage.addr)?;
    println!();
    for (file, lines) in stage.expected() {
        let text = String::from_utf8(client.read_all(&file)?)?;
        println!("{file}:");
        for line in text.lines().filter(|_| !stage.args.quiet) {
            println!("    {line}");
        }
        let mut missing = lines.clone();
        for line in text.lines() {
            if !missing.remove(line) {
                let fault = if lines.contains(line) { "stands twice" } else { "was written by nobody" };
                return Err(format!("{file}: the line {line:?} {fault}").into());
            }
        }
        if let Some(line) = missing.first() {
            return Err(format!("{file}: {} lines are missing, as {line:?}", missing.len()).into());
        }
        println!("    {} of {} lines, each exactly once", lines.len(), lines.len());
    }
    Ok(())
}

/// After the server has stopped, its files on disk are what it told.
fn compare_disk(stage: &Stage, data: &Path) -> Result<()> {
    for (file, lines) in stage.expected() {
        let text = std::fs::read_to_string(data.join("files").join(&file))?;
        let found: BTreeSet<String> = text.lines().map(str::to_owned).collect();
        if found != lines || text.lines().count() != lines.len() {
            return Err(format!("{file} on disk is not what the server told").into());
        }
    }
    println!(
        "\nThe files on disk are the same. kill -9: {}; lines lost: 0; lines doubled: 0.",
        stage.args.kills
    );
    Ok(())
}

impl Stage {
    /// The cast of five, and as many more with files of their own: 1 and 3, 2, 4 and 5.
    fn file_of(&self, number: u64) -> String {
        let (group, place) = ((number - 1) / 5, (number - 1) % 5);
        let file = match place {
            0 | 2 => 0,
            1 => 2,
            _ => 3,
        };
        format!("{}file_{}", self.place, 4 * group + file)
    }

    /// The file of act two, which no client of act one uses.
    fn slow_file(&self) -> String {
        format!("{}file_1", self.place)
    }

    fn line(&self, number: u64, round: u64) -> String {
        let file = self.file_of(number);
        let file = file.strip_prefix(&self.place).unwrap_or(&file);
        match round {
            1 => format!("Log entry from client_{number} writing to {file}"),
            _ => format!("Log entry from client_{number} writing to {file}, round {round}"),
        }
    }

    /// The lines that each file must have, whoever was first.
    fn expected(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut files: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for number in 1..=self.args.clients {
            let lines = (1..=self.args.rounds).map(|round| self.line(number, round));
            files.entry(self.file_of(number)).or_default().extend(lines);
        }
        files.entry(self.slow_file()).or_default().insert(HEIRS_LINE.into());
        files
    }

    /// Whatever the lock protects: here it is only time.
    fn work(&self) {
        thread::sleep(Duration::from_millis(self.args.pace_ms));
    }

    fn tell(&self, who: &str, what: &str) {
        if !self.args.quiet {
            tell(self.begin, who, what);
        }
    }

    /// What everybody should see.
    fn event(&self, what: &str) {
        tell(self.begin, "demo", &format!("---- {what}"));
    }
}

fn tell(begin: Instant, who: &str, what: &str) {
    println!("[{:7.3} s] {who:<9} {what}", begin.elapsed().as_secs_f64());
}
