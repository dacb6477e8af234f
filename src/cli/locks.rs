//! `acquire`, `convert`, `release`, `renew`, `locks`.

use super::context::Context;
use super::exit::{Failure, LOST, NOT_ACQUIRED, REFUSED, Result};
use super::keep::{Keep, Kept};
use super::modes::{Asked, quoted};
use super::output::printable;
use super::{duration, parse_delay, parse_ttl, parse_wait};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tenure::client::{Attempt, Blocked, Client, Error, Guard, LockRequest, Mode};
use tenure::kind::Kind;
use tenure::outcome::Reason;
use tenure::wire::{HolderShown, LockItem, Params, Pending};

/// After so long without a grant the person is told who is in the way.
const TELL_AFTER: Duration = Duration::from_millis(300);

#[derive(Debug, clap::Args)]
pub(crate) struct Acquire {
    #[command(flatten)]
    asked: Asked,
    /// Stand in line for at most so long: a duration, `forever` or `no`. Without it, try once.
    #[arg(short, long, env = "TENURE_WAIT", value_name = "DURATION", value_parser = parse_wait)]
    wait: Option<Wait>,
    /// Stand in line until granted: --wait forever.
    #[arg(long, conflicts_with = "nonblock")]
    wait_forever: bool,
    /// Try once: --wait no.
    #[arg(short, long)]
    nonblock: bool,
    /// How long the lock lives without `tenure renew`.
    #[arg(long, env = "TENURE_TTL", value_name = "DURATION", default_value = "30s", value_parser = parse_ttl)]
    ttl: Duration,
    /// A lease of the grant's own on top: it ends after that, whatever keeps the session alive, unless renewed.
    #[arg(long, env = "TENURE_LEASE", value_name = "DURATION", value_parser = parse_ttl)]
    lease: Option<Duration>,
    #[command(flatten)]
    bounds: Bounds,
    /// Stage what is written under the lock: it takes effect together at the release, or not at all. `run` releases only if
    /// the command exits with 0, and throws it away otherwise.
    #[arg(long, env = "TENURE_ATOMIC")]
    pub(crate) atomic: bool,
    /// A note for those who ask who holds it.
    #[arg(long, env = "TENURE_LABEL", value_name = "TEXT", default_value = "")]
    label: String,
    /// The exit code if it was not acquired.
    #[arg(short = 'E', long, env = "TENURE_CONFLICT_EXIT_CODE", value_name = "CODE", default_value_t = NOT_ACQUIRED)]
    conflict_exit_code: u8,
}

/// What a grant is to be like at its end.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Bounds {
    /// The lock is held for so long at most, whatever is renewed.
    #[arg(long, env = "TENURE_MAX_HOLD", value_name = "DURATION", value_parser = parse_ttl)]
    pub(crate) max_hold: Option<Duration>,
    /// For so long nobody is granted the lock after any end of the tenure but a release.
    #[arg(long, env = "TENURE_LOCK_DELAY", value_name = "DURATION", value_parser = parse_delay)]
    pub(crate) lock_delay: Option<Duration>,
}

impl Bounds {
    /// Asks for a lock with these bounds.
    pub(crate) fn ask(self, mut request: LockRequest) -> LockRequest {
        if let Some(longest) = self.max_hold {
            request = request.max_hold(longest);
        }
        if let Some(delay) = self.lock_delay {
            request = request.lock_delay(delay);
        }
        request
    }
}

/// How long to stand in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all.
    No,
    /// At most so long.
    Within(Duration),
    /// Until granted.
    Forever,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Convert {
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    token: Token,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Release {
    /// The lock; of several that were acquired together, one or more. They are released together.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Throw away what was staged under a lock that was acquired with --atomic.
    #[arg(long, env = "TENURE_ABANDON")]
    abandon: bool,
    #[command(flatten)]
    token: Token,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Renew {
    /// The lock.
    name: String,
    /// The grant's own lease from now on. Without it, that of `tenure acquire --lease` again.
    #[arg(long, env = "TENURE_LEASE", value_name = "DURATION", value_parser = parse_ttl)]
    lease: Option<Duration>,
    #[command(flatten)]
    token: Token,
}

/// Which kept lock is meant.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Token {
    /// Act only under the kept lock that has this token, so that a script never acts under a later grant of its own user.
    #[arg(long, env = "TENURE_TOKEN", value_name = "N")]
    pub(crate) token: Option<u64>,
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Locks {
    #[command(subcommand)]
    verb: Option<LocksVerb>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, clap::Subcommand)]
enum LocksVerb {
    /// Clean up expired grants now. The server does so by itself; this gives their number.
    Cleanup,
}

/// Which part of a list.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct List {
    /// Only names that begin with this.
    #[arg(long, env = "TENURE_PREFIX", value_name = "TEXT", default_value = "")]
    pub(crate) prefix: String,
    #[command(flatten)]
    pub(crate) most: Most,
}

/// How much of a list.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Most {
    /// At most so many items; without it, all.
    #[arg(long, env = "TENURE_LIMIT", value_name = "N")]
    pub(crate) limit: Option<u64>,
}

/// `tenure acquire`: a session of its own that stays when the command ends.
pub(crate) fn acquire(context: &Context, args: &Acquire) -> Result<()> {
    let keep = context.keep()?;
    // Before anything is asked: a grant that cannot be written down would be lost to this user.
    keep.prepare()?;
    let locks = args.locks()?;
    let names: Vec<String> = locks.iter().map(|(name, _)| name.clone()).collect();
    let server = context.server()?;
    let client = connect(context, args, "tenure acquire")?;
    let interrupted = close_on_signal(&client)?;
    let guard = match stand_in_line(context, &client, args, &locks) {
        Ok(guard) => guard,
        Err(failure) => {
            interrupted.wait_for_the_end();
            context.finish(&client);
            return Err(failure);
        }
    };
    let token = guard.token()?;
    let held = guard.locks();
    let mut kept = Kept::new(server, &names, token, &client.session()?);
    kept.lease_ms = args.lease.map(|lease| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
    leave_held(context, &keep, &client, guard, &kept)?;
    let life = [args.lease, args.bounds.max_hold].into_iter().flatten().fold(args.ttl, Duration::min);
    context.detail(&format!(
        "{} held with token {token} for {} unless renewed",
        are(&names),
        duration::show(life)
    ));
    let shown = json!({
        "name": kept.name, "locks": held, "token": token, "client": kept.client, "ttl_ms": kept.ttl_ms,
        "lease_ms": kept.lease_ms,
    });
    context.output().one(&shown, &token.to_string())
}

/// Writes a grant down and leaves its session open.
pub(crate) fn leave_held(
    context: &Context,
    keep: &Keep,
    client: &Client,
    guard: Guard,
    kept: &Kept,
) -> Result<()> {
    if let Err(failure) = keep.store(kept) {
        let _ = guard.release();
        context.finish(client);
        return Err(failure);
    }
    let left = guard.into_token().and_then(|_| client.detach());
    if let Err(error) = left {
        keep.forget(kept)?;
        return Err(error.into());
    }
    Ok(())
}

/// A client with a session that is there for one grant.
pub(crate) fn connect(context: &Context, args: &Acquire, name: &str) -> Result<Client> {
    let builder = Client::builder().name(name).label(args.label.clone()).ttl(args.ttl);
    Ok(builder.deadline(context.timeout()).reopen(false).connect(context.server()?)?)
}

impl Acquire {
    /// The locks with their modes, in the order of their names.
    pub(crate) fn locks(&self) -> Result<Vec<(String, Mode)>> {
        self.asked.locks()
    }

    /// The flags win over the variable, and of two flags neither does (clap refuses them).
    fn wait(&self) -> Wait {
        match (self.nonblock, self.wait_forever) {
            (true, _) => Wait::No,
            (false, true) => Wait::Forever,
            (false, false) => self.wait.unwrap_or(Wait::No),
        }
    }
}

pub(crate) fn stand_in_line(
    context: &Context,
    client: &Client,
    args: &Acquire,
    locks: &[(String, Mode)],
) -> Result<Guard> {
    // The owner is the session itself: no thread of this process will be there to be one.
    let mut request = client.lock_all(locks.iter().cloned()).owner("").label(args.label.clone());
    if let Some(lease) = args.lease {
        request = request.lease(lease);
    }
    request = args.bounds.ask(request);
    if args.atomic {
        request = request.atomic();
    }
    request = match args.wait() {
        Wait::No => request,
        Wait::Within(limit) => request.wait(limit),
        Wait::Forever => request.wait_forever(),
    };
    let names: Vec<String> = locks.iter().map(|(name, _)| name.clone()).collect();
    if args.wait() != Wait::No && !context.is_quiet() {
        // The last word is enough, and word comes only when something has changed.
        let (sender, places) = crossbeam_channel::bounded(8);
        request = request.progress(sender);
        let names = names.clone();
        thread::spawn(move || tell_place(&names, &places));
    }
    match request.try_acquire() {
        Ok(Attempt::Granted(guard)) => Ok(guard),
        Ok(Attempt::Refused(blocked)) => {
            Err(Failure::new(args.conflict_exit_code, refusal(context, &names, &blocked)))
        }
        Err(error @ (Error::Deadlock { .. } | Error::AlreadyHeld { .. })) => {
            Err(Failure::new(args.conflict_exit_code, error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

fn refusal(context: &Context, names: &[String], blocked: &Blocked) -> String {
    let mut sentence = not_acquired(names, blocked);
    let by_this_user = |name: &String| {
        let kept = context.kept(name, None).ok().flatten();
        kept.is_some_and(|kept| blocked.holders.iter().any(|holder| holder.token == kept.token))
    };
    if names.iter().any(by_this_user) {
        sentence.push_str("; this user left it held: `tenure renew` or `tenure release` it");
    }
    sentence
}

/// `"a" is`, `"a", "b" are`.
fn are(names: &[String]) -> String {
    format!("{} {}", quoted(names), if names.len() == 1 { "is" } else { "are" })
}

/// Why locks were not acquired, and who is in the way.
pub(crate) fn not_acquired(names: &[String], blocked: &Blocked) -> String {
    let were = if names.len() == 1 { "was" } else { "were" };
    let mut sentence = format!("{} {were} not acquired", quoted(names));
    match blocked.reason {
        Reason::Held => {}
        Reason::Queued => sentence.push_str(": others stand in line"),
        Reason::Timeout => sentence.push_str(": the time to wait is over"),
        Reason::Cancelled => sentence.push_str(": the wait was cancelled"),
        Reason::SessionEnded => sentence.push_str(": the session ended"),
        Reason::Conversion => sentence.push_str(": a holder waits to convert its grant"),
        Reason::LockDelay => sentence.push_str(": it is closed for its lock-delay"),
        Reason::GrantEnded => sentence.push_str(": the grant to convert has ended"),
    }
    let which = match &blocked.key {
        Some(key) if names.len() > 1 => format!("{key:?} is "),
        Some(_) | None => String::new(),
    };
    if let Some(holder) = blocked.holders.first() {
        sentence.push_str(&format!("; {which}held by {}", holder_words(holder)));
        push_label(&mut sentence, &holder.label);
        if blocked.holders_total > 1 {
            sentence.push_str(&format!(" and {} more", blocked.holders_total - 1));
        }
    }
    if let Some(ahead) = &blocked.ahead {
        let who = printable(&who(ahead.client, &ahead.name, &ahead.owner));
        let waited = duration::show_ms(ahead.waited_ms);
        sentence.push_str(&format!("; behind client {who}, who has waited for {waited}"));
        push_label(&mut sentence, &ahead.label);
    }
    if let (Reason::Held | Reason::Queued, Some(position)) = (blocked.reason, blocked.position) {
        sentence.push_str(&format!("; with --wait it would stand in place {position}"));
    }
    sentence
}

/// Tells on stderr where in line the command stands, once, if it stands there for long enough to wonder.
fn tell_place(names: &[String], places: &Receiver<Pending>) {
    let until = Instant::now() + TELL_AFTER;
    let mut last = None;
    loop {
        match places.recv_deadline(until) {
            Ok(place) => last = Some(place),
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
    let Some(place) = last.or_else(|| places.recv().ok()) else { return };
    let which = place.key.filter(|_| names.len() > 1).map_or(String::new(), |key| format!("{key:?} is "));
    let holder = place.holders.first().map_or("nobody yet".into(), holder_words);
    eprintln!(
        "waiting for {} in place {} of {}; {which}held by {holder}",
        quoted(names),
        place.position,
        place.queue_total + 1
    );
}

/// Whether a signal has begun to end this command.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    /// Returns if there was no signal. After one another thread closes the session, which is how this one came to fail, and
    /// then ends the process, with the code that says so.
    pub(crate) fn wait_for_the_end(&self) {
        while self.0.load(Ordering::SeqCst) {
            thread::park();
        }
    }
}

/// Ctrl-C while in line, or just after the grant: the session is closed, so that nobody waits for one that has gone away.
/// Then the process ends.
pub(crate) fn close_on_signal(client: &Client) -> Result<Interrupted> {
    let interrupted = Interrupted::default();
    let broken = |error| Failure::new(REFUSED, format!("signals cannot be waited for: {error}"));
    for signal in [SIGINT, SIGTERM] {
        let (mut woken, wake) = UnixStream::pair().map_err(broken)?;
        pipe::register(signal, wake).map_err(broken)?;
        let (client, interrupted) = (client.clone(), interrupted.clone());
        thread::spawn(move || {
            if woken.read_exact(&mut [0]).is_ok() {
                interrupted.0.store(true, Ordering::SeqCst);
                // Unanswered, the TTL ends the session.
                let _ = client.close();
                std::process::exit(128 + signal);
            }
        });
    }
    Ok(interrupted)
}

/// `tenure convert`: other modes for locks that `acquire` left held, without letting go.
pub(crate) fn convert(context: &Context, args: &Convert) -> Result<()> {
    let locks = args.asked.locks()?;
    let names: Vec<String> = locks.iter().map(|(name, _)| name.clone()).collect();
    let kept = kept_of(context, &names, args.token)?;
    let client = context.client()?;
    let converted = context.under(&client, &kept, |fence| fence.convert(locks).apply());
    context.finish(&client);
    let converted = converted?;
    let kept = Kept { token: converted.token, ..kept };
    context.keep()?.store(&kept)?;
    let shown: Vec<_> = converted.locks.iter().map(|lock| format!("{:?} {}", lock.key, lock.mode)).collect();
    context.detail(&format!("held with token {} now: {}", kept.token, shown.join(", ")));
    let shown = json!({"name": kept.name, "locks": converted.locks, "token": kept.token});
    context.output().one(&shown, &kept.token.to_string())
}

/// The one kept grant that all these locks are of.
fn kept_of(context: &Context, names: &[String], token: Token) -> Result<Kept> {
    let kept = context.kept_surely(names.first().map_or("", String::as_str), token.token)?;
    for name in names {
        same_name(&kept, name)?;
    }
    Ok(kept)
}

/// `tenure release`
pub(crate) fn release(context: &Context, args: &Release) -> Result<()> {
    let kept = kept_of(context, &args.names, args.token)?;
    let client = context.client()?;
    let released = context.under(&client, &kept, |fence| match args.abandon {
        true => fence.abandon(),
        false => fence.release(),
    });
    if released.is_ok() {
        context.keep()?.forget(&kept)?;
        // Its session holds nothing now; if this fails, its TTL ends it.
        let close = Params { session: Some(kept.session), ..Params::default() };
        if let Err(error) = client.call("close_session", close) {
            log::debug!("the kept session was not closed: {error}");
        }
    }
    context.finish(&client);
    let op = released?;
    context.detail(&format!("{} released", are(kept.all())));
    let shown = json!({
        "name": kept.name, "names": kept.all(), "token": kept.token, "released": true, "op": op,
    });
    context.output().one(&shown, "")
}

/// `tenure renew`
pub(crate) fn renew(context: &Context, args: &Renew) -> Result<()> {
    let mut kept = context.kept_surely(&args.name, args.token.token)?;
    same_name(&kept, &args.name)?;
    let client = context.client()?;
    // One session holds one grant here, so a heartbeat that counts none says that it is lost.
    match client.heartbeat_for(kept.session) {
        Ok(beat) if beat.held > 0 && !beat.lost.iter().any(|lost| lost.token == kept.token) => {}
        Ok(_) => return Err(context.lost(&kept)),
        Err(error) if error.kind() == Some(Kind::NoSession) => return Err(context.lost(&kept)),
        Err(error) => return Err(error.into()),
    }
    let lease = args.lease.or(kept.lease_ms.map(Duration::from_millis));
    let left = match lease {
        None => None,
        Some(lease) => {
            let renewed = context.under(&client, &kept, |fence| fence.renew(lease));
            context.finish(&client);
            Some(renewed?)
        }
    };
    kept.lease_ms = lease.map(|lease| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
    // Also where nothing changed in it: the time of the file says that somebody still cares.
    context.keep()?.store(&kept)?;
    let life =
        left.map_or(kept.ttl_ms, |left| kept.ttl_ms.min(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)));
    let shown = json!({
        "name": kept.name, "token": kept.token, "ttl_ms": kept.ttl_ms,
        "lease_left_ms": left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
    });
    context.output().one(&shown, &duration::show_ms(life))
}

/// `--token` finds a grant by its token; the name says which one was meant. And names together are those of one grant.
pub(crate) fn same_name(kept: &Kept, name: &str) -> Result<()> {
    if kept.all().iter().any(|held| held == name) {
        return Ok(());
    }
    let of = quoted(kept.all());
    Err(Failure::new(LOST, format!("the token {} is of {of} and not of {name:?}", kept.token)))
}

/// `tenure locks`
pub(crate) fn locks(context: &Context, args: &Locks) -> Result<()> {
    let client = context.client()?;
    if let Some(LocksVerb::Cleanup) = args.verb {
        let cleaned = client.cleanup_expired_locks();
        context.finish(&client);
        let cleaned = cleaned?;
        return context.output().one(&json!({"cleaned": cleaned}), &cleaned.to_string());
    }
    context.output().list(
        &["LOCK", "HOLDER", "TOKEN", "MODE", "HELD", "LEFT", "WAITING", "LABEL"],
        client.list_locks(&args.list.prefix),
        args.list.most.limit,
        lock_row,
    )
}

fn lock_row(item: &LockItem) -> Vec<String> {
    let holder = item.holder.as_ref();
    let of = |show: &dyn Fn(&HolderShown) -> String| holder.map_or("-".into(), show);
    let others = match item.holders_total {
        0 | 1 => String::new(),
        total => format!(" and {} more", total - 1),
    };
    vec![
        item.key.clone(),
        of(&|holder| format!("{}{others}", who(holder.client, &holder.name, &holder.owner))),
        of(&|holder| holder.token.to_string()),
        of(&|holder| holder.mode.to_string()),
        of(&|holder| duration::show_ms(holder.held_ms)),
        of(&|holder| holder.lease_left_ms.map_or("-".into(), duration::show_ms)),
        item.queue_total.to_string(),
        of(&|holder| holder.label.clone()),
    ]
}

/// A session and its owner for people: `3 (worker/t1)`.
pub(crate) fn who(client: u64, name: &str, owner: &str) -> String {
    match (name.is_empty(), owner.is_empty()) {
        (true, true) => client.to_string(),
        (false, true) => format!("{client} ({name})"),
        (_, false) => format!("{client} ({name}/{owner})"),
    }
}

/// A holder for people: who, and for how long.
pub(crate) fn holder_words(holder: &HolderShown) -> String {
    let who = who(holder.client, &holder.name, &holder.owner);
    printable(&format!("client {who} for {}", duration::show_ms(holder.held_ms)))
}

/// Adds a label to a sentence about who has it.
pub(crate) fn push_label(line: &mut String, label: &str) {
    if !label.is_empty() {
        line.push_str(&format!(", label \"{}\"", printable(label)));
    }
}
