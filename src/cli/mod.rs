//! The command line: one file for each group of commands, and what they share.
//!
//! ```text
//! main ─► Cli (flags, variables) ─► one of: serve | locks | explain | keys | files | sessions | status | state | bench
//!                                     │        └─ context: server, client, format, the kept lock
//!                                     │             └─ keep: the private files
//!                                     └─ Failure ─► a sentence on stderr, an exit code
//! ```

mod bench;
mod context;
mod duration;
mod exit;
mod explain;
mod files;
mod handover;
mod keep;
mod keys;
mod locks;
mod modes;
mod output;
mod run;
mod serve;
mod sessions;
mod shell;
mod state;
mod status;
mod watch;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use context::Context;
use exit::USAGE;
use locks::Wait;
use output::Format;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tenure::limits::{KEY_TTL_MAX_MS, TTL_MAX_MS, TTL_MIN_MS, WAIT_MAX_MS};

/// A lock server that protects what it guards: leases, fencing tokens and exactly-once requests over UDP.
#[derive(Debug, Parser)]
#[command(name = "tenure", version, after_help = exit::HELP, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Flags of every command")]
struct Global {
    /// The server: host:port.
    #[arg(long, global = true, env = "TENURE_ADDR", value_name = "ADDR", default_value = "127.0.0.1:5625")]
    addr: String,
    /// How results are written.
    #[arg(
        short,
        long,
        global = true,
        env = "TENURE_OUTPUT",
        value_enum,
        value_name = "FORMAT",
        default_value = "table"
    )]
    output: Format,
    /// How long to go on without an answer. Waits for locks come on top.
    #[arg(
        long, global = true, env = "TENURE_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = parse_timeout
    )]
    timeout: Duration,
    /// The private directory that remembers which locks `acquire` left held. [default: in XDG_RUNTIME_DIR or HOME]
    #[arg(long, global = true, env = "TENURE_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
    /// Say nothing on stderr but errors.
    #[arg(short, long, global = true, env = "TENURE_QUIET", value_parser = clap::builder::BoolishValueParser::new())]
    quiet: bool,
    /// Say more on stderr; twice for more yet.
    #[arg(short, long, global = true, env = "TENURE_VERBOSE", action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server.
    Serve(Box<serve::Serve>),
    /// Acquire a lock, or several at once, and leave them held when this command ends; print the token.
    Acquire(Box<locks::Acquire>),
    /// Give locks that `acquire` left held another mode, without letting go; print the token, which an upgrade changes.
    Convert(Box<locks::Convert>),
    /// Run a command while locks are held: `tenure run NAME -- COMMAND`. Ends with its exit code; stops it after a loss.
    Run(Box<run::Run>),
    /// Release a lock that `acquire` left held.
    Release(locks::Release),
    /// Keep a lock that `acquire` left held; print how long it lives from now.
    Renew(locks::Renew),
    /// Offer a lock that `acquire` left held to another session, or take the offer back.
    HandOver(handover::HandOver),
    /// Take over a lock that another session holds, without a moment in which it is free, and leave it held; print its token.
    TakeOver(handover::TakeOver),
    /// Ask the holder of a lock to let go, by a deadline or not. Only from the machine of the server.
    AskRelease(handover::AskRelease),
    /// Take a lock away from its holder. Only from the machine of the server.
    Break(handover::Break),
    /// List the locks that are held or waited for.
    Locks(locks::Locks),
    /// Tell who holds a lock since when, and who waits in which place and why; or of all waits who waits for whom.
    Explain(explain::Explain),
    /// List the locks that are waited for most: how many waits, how long they took, how long the lock is held.
    Top(explain::Top),
    /// Print the value of a key.
    Get(keys::Get),
    /// Set a key, under the lock of that name if `acquire` left it held; print its version.
    Set(keys::Set),
    /// Delete a key, under the lock of that name if `acquire` left it held; print the version removed.
    Delete(keys::Delete),
    /// Compare and change several keys: all of it takes effect, or nothing; print the version.
    Txn(keys::Txn),
    /// List the keys from one to another, both included.
    Range(keys::Range),
    /// List the keys that begin alike.
    Prefix(keys::Prefix),
    /// Print what happens to the keys, locks and files that begin alike, as it happens.
    Watch(watch::Watch),
    /// Append to a file under its lock, whole and once; print where.
    Append(files::Append),
    /// Print a file, as bytes.
    Cat(files::Cat),
    /// List files; show, delete, rotate or repair one.
    Files(files::Files),
    /// List the sessions; end one.
    Sessions(sessions::Sessions),
    /// Show the server's counts, caps and drops.
    Status,
    /// Ask whether a server is there.
    Ping,
    /// Look into a stopped server's directory, verify it, or restore it.
    #[command(subcommand)]
    State(state::State),
    /// Put a load on the server and tell what it took: rates, percentiles, errors.
    Bench(Box<bench::Bench>),
    /// Read commands from stdin, one a line, until `quit`.
    Shell,
    /// Print the version of this program.
    Version,
}

/// The program.
pub(crate) fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => {
            // The help and the version come this way too; if nobody reads them, nobody misses them.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    log_to_stderr(&cli);
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(cli: Cli) -> exit::Result<()> {
    let context = Context::new(cli.global);
    match &cli.command {
        Command::Serve(args) => serve::serve(args),
        Command::Acquire(args) => locks::acquire(&context, args),
        Command::Run(args) => run::run(&context, args),
        Command::Convert(args) => locks::convert(&context, args),
        Command::Release(args) => locks::release(&context, args),
        Command::Renew(args) => locks::renew(&context, args),
        Command::HandOver(args) => handover::hand_over(&context, args),
        Command::TakeOver(args) => handover::take_over(&context, args),
        Command::AskRelease(args) => handover::ask_release(&context, args),
        Command::Break(args) => handover::break_lock(&context, args),
        Command::Locks(args) => locks::locks(&context, args),
        Command::Explain(args) => explain::explain(&context, args),
        Command::Top(args) => explain::top(&context, args),
        Command::Get(args) => keys::get(&context, args),
        Command::Set(args) => keys::set(&context, args),
        Command::Delete(args) => keys::delete(&context, args),
        Command::Txn(args) => keys::txn(&context, args),
        Command::Range(args) => keys::range(&context, args),
        Command::Prefix(args) => keys::prefix(&context, args),
        Command::Watch(args) => watch::watch(&context, args),
        Command::Append(args) => files::append(&context, args),
        Command::Cat(args) => files::cat(&context, args),
        Command::Files(args) => files::files(&context, args),
        Command::Sessions(args) => sessions::sessions(&context, args),
        Command::Status => status::status(&context),
        Command::Ping => status::ping(&context),
        Command::State(verb) => state::state(&context, verb),
        Command::Bench(args) => bench::bench(&context, args),
        Command::Shell => shell::shell(&context, run),
        Command::Version => status::version(&context),
    }
}

fn parse() -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches()?;
    refuse_two_waits(&matches)?;
    refuse_two_modes(&matches)?;
    Cli::from_arg_matches(&matches)
}

/// `--wait` beside `--nonblock` or `--wait-forever` is a contradiction, but the variable of `--wait` beside them is not:
/// the flag wins. Clap's own conflicts do not tell the two apart.
fn refuse_two_waits(matches: &ArgMatches) -> Result<(), clap::Error> {
    let Some(("acquire" | "run", acquire)) = matches.subcommand() else { return Ok(()) };
    let given = |flag| acquire.value_source(flag) == Some(ValueSource::CommandLine);
    if given("wait") && (given("nonblock") || given("wait_forever")) {
        return Err(Cli::command().error(
            ErrorKind::ArgumentConflict,
            "--wait cannot be used with --nonblock or --wait-forever: say one of them",
        ));
    }
    Ok(())
}

/// Nor is `--mode` beside its shorthands one where it comes from the variable.
fn refuse_two_modes(matches: &ArgMatches) -> Result<(), clap::Error> {
    let Some(("acquire" | "convert" | "run", command)) = matches.subcommand() else { return Ok(()) };
    let given = |flag| command.value_source(flag) == Some(ValueSource::CommandLine);
    if given("mode") && modes::SHORTHANDS.into_iter().any(given) {
        return Err(Cli::command().error(
            ErrorKind::ArgumentConflict,
            "--mode cannot be used with --shared, --exclusive, --slots or --weight: say one of them",
        ));
    }
    Ok(())
}

/// Events of the library and the server go to stderr: from `info` on for a server, from `warn` on for other commands.
/// `TENURE_LOG` says otherwise, also for single modules.
fn log_to_stderr(cli: &Cli) {
    let level = match (&cli.command, cli.global.quiet, cli.global.verbose) {
        (_, true, _) => "error",
        (Command::Serve(_), false, 0) => "info",
        (Command::Serve(_), false, 1) => "debug",
        (_, false, 0) => "warn",
        (_, false, 1) => "info",
        (_, false, 2) => "debug",
        (_, false, _) => "trace",
    };
    let env = env_logger::Env::new().filter_or("TENURE_LOG", level).write_style("TENURE_LOG_STYLE");
    env_logger::Builder::from_env(env).target(env_logger::Target::Stderr).init();
}

/// A TTL or lease: 100 ms to 24 h.
fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration::parse_duration(text)?;
    if (TTL_MIN_MS..=TTL_MAX_MS).contains(&(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))) {
        return Ok(ttl);
    }
    Err("a lease is 100ms to 24h long".into())
}

/// A delay or a deadline: up to 24 h, or none of it.
fn parse_delay(text: &str) -> Result<Duration, String> {
    let delay = duration::parse_duration(text)?;
    if delay <= Duration::from_millis(TTL_MAX_MS) {
        return Ok(delay);
    }
    Err("it is at most 24h".into())
}

/// A TTL of a key: 100 ms to 365 days.
fn parse_key_ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration::parse_duration(text)?;
    if (TTL_MIN_MS..=KEY_TTL_MAX_MS).contains(&(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))) {
        return Ok(ttl);
    }
    Err("the TTL of a key is 100ms to 365d long".into())
}

/// A time to wait: `no`, `forever`, or a duration up to 30 days.
fn parse_wait(text: &str) -> Result<Wait, String> {
    match text {
        "no" => return Ok(Wait::No),
        "forever" => return Ok(Wait::Forever),
        _ => {}
    }
    let wait = duration::parse_duration(text)?;
    match u64::try_from(wait.as_millis()) {
        Ok(0) => Ok(Wait::No),
        Ok(millis) if millis <= WAIT_MAX_MS => Ok(Wait::Within(wait)),
        Ok(_) | Err(_) => Err("a wait is at most 30d long; `forever` has no limit".into()),
    }
}

/// A deadline of a call: more than nothing, at most a day.
fn parse_timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration::parse_duration(text)?;
    if timeout.is_zero() || timeout > Duration::from_secs(24 * 60 * 60) {
        return Err("a timeout is longer than 0 and at most 1d".into());
    }
    Ok(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_of_commands_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable_of_its_own_name() {
        /// Short for a value of another flag, or clap's own.
        const SHORTHANDS: [&str; 6] = ["wait_forever", "nonblock", "no_lock", "json", "help", "version"];
        fn check(command: &clap::Command) {
            for arg in command.get_arguments().filter(|arg| arg.get_long().is_some()) {
                let id = arg.get_id().as_str();
                let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned());
                let shorthand = SHORTHANDS.contains(&id) || modes::SHORTHANDS.contains(&id);
                let expected = (!shorthand).then(|| format!("TENURE_{}", id.to_uppercase()));
                assert_eq!(variable, expected, "{} {id}", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn waits_leases_and_timeouts_have_bounds() {
        assert_eq!(parse_wait("no"), Ok(Wait::No));
        assert_eq!(parse_wait("0s"), Ok(Wait::No));
        assert_eq!(parse_wait("forever"), Ok(Wait::Forever));
        assert_eq!(parse_wait("30d"), Ok(Wait::Within(Duration::from_secs(30 * 86_400))));
        assert!(parse_wait("31d").is_err());
        assert!(parse_ttl("99ms").is_err() && parse_ttl("100ms").is_ok());
        assert!(parse_ttl("24h").is_ok() && parse_ttl("25h").is_err());
        assert!(parse_delay("0s").is_ok() && parse_delay("24h").is_ok() && parse_delay("25h").is_err());
        assert!(parse_timeout("0s").is_err() && parse_timeout("2s").is_ok());
    }
}
