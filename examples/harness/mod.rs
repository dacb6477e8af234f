//! A real server in a process of its own, for the examples to start, kill and start again; and what all recipes begin with.
//!
//! It is the binary `tenure` where that stands beside the example and is not older than it (`cargo build` makes it). Cargo
//! does not build it for `cargo run --example`; then the example runs itself again with `--serve`, which is the same server
//! code in a process that can be killed just as well.

// Each example uses a part of this.
#![allow(dead_code, reason = "each example is compiled with this module and uses a part of it")]

use clap::Parser;
use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use tenure::command::Durability;
use tenure::limits::Limits;
use tenure::server::{self, Config};

/// The first argument of an example that is to be the server.
const SERVE: &str = "--serve";

/// What an example gives: every error ends it, with its sentence.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A running server, or one that was killed. It ends with this value.
pub(crate) struct Server {
    child: Child,
    addr: SocketAddr,
    dir: PathBuf,
}

impl Server {
    /// Starts a server on a free port; its state goes to `dir`.
    pub(crate) fn start(dir: &Path) -> Result<Server> {
        let (child, addr) = spawn(SocketAddr::from(([127, 0, 0, 1], 0)), dir)?;
        Ok(Server { child, addr, dir: dir.into() })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Kills it with SIGKILL: it gets no chance to write or say anything.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again, on the same port and directory.
    pub(crate) fn restart(&mut self) -> Result<()> {
        (self.child, self.addr) = spawn(self.addr, &self.dir)?;
        Ok(())
    }

    /// Stops it as an operator would, with SIGTERM, and checks that it ended well.
    pub(crate) fn stop(mut self) -> Result<()> {
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        )?;
        let status = self.child.wait()?;
        if !status.success() {
            return Err(format!(
                "the server ended with {status}; its last words are in {}",
                log(&self.dir).display()
            )
            .into());
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail where it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Becomes the server if this process was started to be one; else returns. To be called first in `main`.
pub(crate) fn serve_if_asked() -> Result<()> {
    let mut args = env::args_os().skip(1);
    if args.next().is_none_or(|first| first != SERVE) {
        return Ok(());
    }
    let (Some(bind), Some(dir)) = (args.next(), args.next()) else { return Err("--serve ADDR DIR".into()) };
    env_logger::Builder::from_env(env_logger::Env::new().filter_or("TENURE_LOG", "info")).init();
    let config = Config {
        bind: bind.to_string_lossy().parse()?,
        data_dir: dir.into(),
        durability: Durability::Sync,
        limits: Limits::default(),
        segment_bytes: 1 << 20,
        fold_segments: 1,
        busy_poll: tenure::busy_poll::BusyPoll::Auto,
        give_memory_back: || (),
    };
    server::run(&config, &mut |addr| {
        let mut out = io::stdout();
        // Nobody is left to be told of a failure: who started this process reads the line or is gone.
        let _ = writeln!(out, "listening on {addr}").and_then(|()| out.flush());
    })?;
    std::process::exit(0)
}

/// One recipe for the use of locks.
#[derive(Debug, Parser)]
struct Args {
    /// A server that runs already; without it the recipe starts one of its own.
    #[arg(long, env = "TENURE_ADDR")]
    addr: Option<SocketAddr>,
}

/// The `main` of a recipe: tells its story to a server, under names of this run only (they begin with the second
/// argument), so that it can be repeated against one server. A story that ends otherwise than it should fails.
pub(crate) fn recipe(story: impl FnOnce(SocketAddr, &str) -> Result<()>) -> ExitCode {
    let told = serve_if_asked().and_then(|()| {
        let args = Args::parse();
        let dir = tempfile::tempdir()?;
        let server = match args.addr {
            Some(_) => None,
            None => Some(Server::start(&dir.path().join("data"))?),
        };
        let addr = args.addr.or(server.as_ref().map(Server::addr)).ok_or("there is no server")?;
        story(addr, &format!("recipe/{}", std::process::id()))?;
        server.map_or(Ok(()), Server::stop)
    });
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the recipe failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs `work` for each of the numbers, each in a thread of its own, and gives what they gave, in order.
pub(crate) fn together<T: Send>(
    numbers: std::ops::RangeInclusive<u32>,
    work: impl Fn(u32) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = numbers.map(|number| scope.spawn(move || work(number))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked")?).collect()
    })
}

/// Ends the story unless that is so.
pub(crate) fn expect(so: bool, what: &str) -> Result<()> {
    if so { Ok(()) } else { Err(format!("this is not so: {what}").into()) }
}

/// Starts the process and waits for the line with its address.
fn spawn(bind: SocketAddr, dir: &Path) -> Result<(Child, SocketAddr)> {
    let (program, mut args) = program()?;
    if args.is_empty() {
        args = ["serve", "--bind", &bind.to_string(), "--data-dir"].map(OsString::from).to_vec();
    } else {
        args.push(bind.to_string().into());
    }
    let words = File::options().create(true).append(true).open(log(dir))?;
    let mut child = Command::new(&program)
        .args(args)
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(words)
        .spawn()
        .map_err(|error| format!("{} could not be started: {error}", program.display()))?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    match line.trim_end().strip_prefix("listening on ").map(str::parse) {
        Some(Ok(addr)) => Ok((child, addr)),
        Some(Err(_)) | None => {
            let _ = child.kill();
            let status = child.wait()?;
            let words = std::fs::read_to_string(log(dir)).unwrap_or_default();
            Err(format!("the server did not start ({status}): {}", words.lines().last().unwrap_or_default())
                .into())
        }
    }
}

/// The program to run, and its arguments up to the address: none for the binary.
fn program() -> Result<(PathBuf, Vec<OsString>)> {
    let example = env::current_exe()?;
    // target/<profile>/examples/<this> and target/<profile>/tenure
    let sibling = example.parent().and_then(Path::parent).map(|dir| dir.join("tenure"));
    let age = |path: &Path| path.metadata().and_then(|found| found.modified());
    match sibling {
        Some(binary) if age(&binary).is_ok_and(|built| age(&example).is_ok_and(|mine| built >= mine)) => {
            Ok((binary, Vec::new()))
        }
        Some(_) | None => Ok((example, vec![SERVE.into()])),
    }
}

/// What the server writes to stderr goes here, beside its directory, so that the example's own story stays readable.
fn log(dir: &Path) -> PathBuf {
    dir.with_extension("log")
}
