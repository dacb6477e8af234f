//! `run`: a command that runs while its locks are held, and not without them.
//!
//! ```text
//! acquire ─► spawn ─► the command ends ──► release ─► its exit code
//!               └──── the grant is lost ─► SIGTERM, after 5 s SIGKILL ─► 76
//! ```
//!
//! If this process is killed with SIGKILL, the command goes on, and its locks end with their TTL. What it writes to the
//! server under the token is refused then; for what it does elsewhere there is the token itself.

use super::context::Context;
use super::exit::{Failure, LOST, REFUSED, Result};
use super::keep::Kept;
use super::locks::{Acquire, connect, stand_in_line};
use super::modes::quoted;
use crossbeam_channel::{Receiver, Sender, bounded, select};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Read};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use tenure::client::{Client, LostGrant};
use tenure::kind::Kind;

/// How long a command that was told to stop, because its locks are lost, may take.
const STOP_WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    #[command(flatten)]
    acquire: Acquire,
    /// The command and its arguments. TENURE_TOKEN is the token, TENURE_NAMES the names of the locks, one a line.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How far the command is.
#[derive(Default)]
enum Stage {
    #[default]
    Before,
    Runs(Pid),
    Over,
}

type Running = Arc<Mutex<Stage>>;

/// `tenure run`
pub(crate) fn run(context: &Context, args: &Run) -> Result<()> {
    let locks = args.acquire.locks()?;
    let names: Vec<String> = locks.iter().map(|(name, _)| name.clone()).collect();
    let keep = context.keep()?;
    keep.prepare()?;
    let client = connect(context, &args.acquire, "tenure run")?;
    let running = Running::default();
    pass_signals_on(&client, &running)?;
    let guard = match stand_in_line(context, &client, &args.acquire, &locks) {
        Ok(guard) => guard,
        Err(failure) => {
            context.finish(&client);
            return Err(failure);
        }
    };
    let kept = Kept::new(client.server(), &names, guard.token()?, &client.session()?);
    // The commands inside find the lock by this, as they find one that `acquire` left held.
    keep.store(&kept)?;
    let done = spawn(&args.command, context, &kept, &running).map(|child| {
        let (sender, ended) = bounded(1);
        watch_over(child, Arc::clone(&running), sender);
        until_the_end(context, &running, &ended, &guard.lost())
    });
    keep.forget(&kept)?;
    let whole = matches!(&done, Ok((Ok(status), None)) if status.success());
    let released = if args.acquire.atomic && !whole { guard.abandon() } else { guard.release() };
    context.finish(&client);
    let (status, lost) = done?;
    if let Some(lost) = lost {
        return Err(Failure::new(LOST, format!("{lost}; the command was stopped")));
    }
    released.map_err(|error| match error.kind() {
        Some(Kind::FileFault | Kind::Limit | Kind::BadName) => Failure::new(
            REFUSED,
            format!(
                "the command has ended, but what it wrote could not take effect, and is thrown away: {error}"
            ),
        ),
        _ => Failure::new(LOST, format!("the command has ended, but {error}")),
    })?;
    let status = status.map_err(|error| Failure::new(REFUSED, format!("the command is lost: {error}")))?;
    match status.code().or(status.signal().map(|signal| 128 + signal)) {
        Some(0) => Ok(()),
        code => Err(Failure::new(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX), "")),
    }
}

fn spawn(command: &[OsString], context: &Context, kept: &Kept, running: &Running) -> Result<Child> {
    let (program, arguments) = command.split_first().expect("clap requires one");
    let mut command = Command::new(program);
    command.args(arguments).env("TENURE_TOKEN", kept.token.to_string());
    command.env("TENURE_NAMES", kept.all().join("\n")).env("TENURE_ADDR", kept.server.to_string());
    command.envs(context.home().map(|home| ("TENURE_HOME", home)));
    let mut stage = running.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn().map_err(|error| {
        let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
        Failure::new(code, format!("{} could not be run: {error}", program.display()))
    });
    child.inspect(|child| {
        *stage = Stage::Runs(Pid::from_child(child));
        context.detail(&format!("{} held with token {}", quoted(kept.all()), kept.token));
    })
}

/// Waits for the command in a thread of its own.
fn watch_over(mut child: Child, running: Running, ended: Sender<io::Result<ExitStatus>>) {
    thread::spawn(move || {
        let status = child.wait();
        *running.lock().unwrap_or_else(PoisonError::into_inner) = Stage::Over;
        // Nobody waits for it after a loss that it outlived.
        drop(ended.send(status));
    });
}

/// Waits until the command ends, or its locks are lost: then it is stopped.
fn until_the_end(
    context: &Context,
    running: &Running,
    ended: &Receiver<io::Result<ExitStatus>>,
    lost: &Receiver<LostGrant>,
) -> (io::Result<ExitStatus>, Option<LostGrant>) {
    let gone = || io::Error::other("nobody waited for it");
    let lost = select! {
        recv(ended) -> status => return (status.unwrap_or_else(|_| Err(gone())), None),
        recv(lost) -> lost => lost.ok(),
    };
    context.say("tenure: the lock is lost; stopping the command");
    signal(running, Signal::TERM);
    let status = ended.recv_timeout(STOP_WAIT).or_else(|_| {
        signal(running, Signal::KILL);
        ended.recv()
    });
    (status.unwrap_or_else(|_| Err(gone())), lost)
}

/// Sends a signal to the command, if it runs.
fn signal(running: &Running, signal: Signal) {
    let stage = running.lock().unwrap_or_else(PoisonError::into_inner);
    if let Stage::Runs(pid) = *stage
        && let Err(error) = kill_process(pid, signal)
    {
        log::debug!("the command got no signal: {error}");
    }
}

/// A signal to this process is one to the command. Before there is one, the session is closed and the process ends; when it is
/// over, the process is about to end by itself.
fn pass_signals_on(client: &Client, running: &Running) -> Result<()> {
    let broken = |error| Failure::new(REFUSED, format!("signals cannot be waited for: {error}"));
    for (number, name) in [(SIGINT, Signal::INT), (SIGTERM, Signal::TERM), (SIGHUP, Signal::HUP)] {
        let (mut woken, wake) = UnixStream::pair().map_err(broken)?;
        pipe::register(number, wake).map_err(broken)?;
        let (client, running) = (client.clone(), Arc::clone(running));
        thread::spawn(move || {
            while woken.read_exact(&mut [0]).is_ok() {
                // A terminal sends Ctrl-C to the command by itself.
                let by_terminal = number == SIGINT && io::stdin().is_terminal();
                if let Stage::Before = *running.lock().unwrap_or_else(PoisonError::into_inner) {
                    // Unanswered, the TTL ends the session. No command begins meanwhile: `running` is locked.
                    let _ = client.close();
                    std::process::exit(128 + number);
                }
                if !by_terminal {
                    signal(&running, name);
                }
            }
        });
    }
    Ok(())
}
