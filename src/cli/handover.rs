//! `hand-over`, `take-over`, `ask-release`, `break`: how a lock goes from its holder to somebody else.

use super::context::Context;
use super::exit::{Failure, NOT_ACQUIRED, REFUSED, Result};
use super::keep::Kept;
use super::locks::{Token, Wait, close_on_signal, leave_held, same_name, who};
use super::output::printable;
use super::{duration, parse_delay, parse_ttl, parse_wait};
use crossbeam_channel::RecvTimeoutError;
use serde_json::json;
use std::time::{Duration, Instant};
use tenure::client::{Client, Guard, Offer};
use tenure::kind::Kind;
use tenure::wire::Params;

#[derive(Debug, clap::Args)]
pub(crate) struct HandOver {
    /// The lock.
    name: String,
    /// The number of the session that may take it, as `tenure take-over` and `tenure sessions` tell it.
    #[arg(long, env = "TENURE_TO", value_name = "CLIENT", required_unless_present = "take_back")]
    to: Option<u64>,
    /// Take an offer back that was not taken yet.
    #[arg(long, env = "TENURE_TAKE_BACK", value_parser = clap::builder::BoolishValueParser::new())]
    take_back: bool,
    #[command(flatten)]
    token: Token,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TakeOver {
    /// The lock. If a command of this user left it held it is taken at once, otherwise when its holder offers it.
    name: String,
    /// Wait for an offer for at most so long: a duration, `forever` or `no`.
    #[arg(short, long, env = "TENURE_WAIT", value_name = "DURATION", value_parser = parse_wait, default_value = "1m")]
    wait: Wait,
    /// How long the lock lives without `tenure renew`.
    #[arg(long, env = "TENURE_TTL", value_name = "DURATION", default_value = "30s", value_parser = parse_ttl)]
    ttl: Duration,
    /// A note for those who ask who holds it.
    #[arg(long, env = "TENURE_LABEL", value_name = "TEXT", default_value = "")]
    label: String,
    #[command(flatten)]
    token: Token,
}

/// Whose grant is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The lock, if it has one holder.
    #[arg(required_unless_present = "token")]
    name: Option<String>,
    /// The token of the grant. With the name of a lock too, only if that is the grant that holds it.
    #[arg(long, env = "TENURE_TOKEN", value_name = "N")]
    token: Option<u64>,
    /// Why: told to the holder and written to the log.
    #[arg(long, env = "TENURE_REASON", value_name = "TEXT")]
    reason: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AskRelease {
    #[command(flatten)]
    target: Target,
    /// Break the lock if it is not released by then. Without it, the holder may take its time.
    #[arg(long, env = "TENURE_DEADLINE", value_name = "DURATION", value_parser = parse_delay)]
    deadline: Option<Duration>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Break {
    #[command(flatten)]
    target: Target,
}

/// `tenure hand-over`
pub(crate) fn hand_over(context: &Context, args: &HandOver) -> Result<()> {
    let kept = context.kept_surely(&args.name, args.token.token)?;
    same_name(&kept, &args.name)?;
    let client = context.client()?;
    let to = args.to.filter(|_| !args.take_back);
    let offered = context.under(&client, &kept, |fence| match to {
        Some(to) => fence.offer_to(to),
        None => fence.take_offer_back(),
    });
    context.finish(&client);
    offered?;
    match to {
        Some(to) => context.detail(&format!("{:?} is held until client {to} takes it over", kept.name)),
        None => context.detail(&format!("{:?} is offered to nobody", kept.name)),
    }
    let shown = json!({"name": kept.name, "token": kept.token, "offered": to.is_some(), "client": to});
    context.output().one(&shown, "")
}

/// `tenure take-over`: a session of its own that stays when the command ends, as that of `tenure acquire`.
pub(crate) fn take_over(context: &Context, args: &TakeOver) -> Result<()> {
    let keep = context.keep()?;
    keep.prepare()?;
    let server = context.server()?;
    let client = Client::builder()
        .name("tenure take-over")
        .label(args.label.clone())
        .ttl(args.ttl)
        .deadline(context.timeout())
        .reopen(false)
        .connect(server)?;
    let interrupted = close_on_signal(&client)?;
    let before = context.kept(&args.name, None)?;
    let before = before.filter(|kept| args.token.token.is_none_or(|token| token == kept.token));
    let taken = match &before {
        Some(kept) => from_kept(context, &client, args, kept).map(|guard| (guard, kept.lease_ms)),
        None => from_offer(context, &client, args),
    };
    let (guard, lease_ms) = match taken {
        Ok(taken) => taken,
        Err(failure) => {
            interrupted.wait_for_the_end();
            context.finish(&client);
            return Err(failure);
        }
    };
    let token = guard.token()?;
    let mut kept = Kept::new(server, guard.keys(), token, &client.session()?);
    kept.lease_ms = lease_ms;
    leave_held(context, &keep, &client, guard, &kept)?;
    if let Some(before) = before {
        // Its session holds nothing now; if this fails, its TTL ends it.
        let close = Params { session: Some(before.session), ..Params::default() };
        if let Err(error) = context.client()?.call("close_session", close) {
            log::debug!("the kept session was not closed: {error}");
        }
    }
    let life = lease_ms.map_or(args.ttl, |lease| args.ttl.min(Duration::from_millis(lease)));
    context.detail(&format!(
        "{:?} is held with token {token} for {} unless renewed",
        args.name,
        duration::show(life)
    ));
    let shown = json!({
        "name": args.name, "token": token, "client": kept.client, "ttl_ms": kept.ttl_ms, "lease_ms": kept.lease_ms,
    });
    context.output().one(&shown, &token.to_string())
}

/// Takes what another command of this user left held: its session is known, so no offer is needed.
fn from_kept(context: &Context, client: &Client, args: &TakeOver, kept: &Kept) -> Result<Guard> {
    let request = client.take_over(kept.token).holder(kept.session).owner("").label(args.label.clone());
    request.take().map_err(|error| context.explain(client, kept, error))
}

/// Waits until the lock is offered, and takes it.
fn from_offer(context: &Context, client: &Client, args: &TakeOver) -> Result<(Guard, Option<u64>)> {
    let number = client.session()?.client;
    let offers = client.offers()?;
    if args.wait != Wait::No {
        context.say(&format!(
            "client {number} waits for an offer of {:?}: `tenure hand-over {} --to {number}`",
            args.name, args.name
        ));
    }
    let deadline = match args.wait {
        Wait::No => Some(Instant::now()),
        Wait::Within(limit) => Instant::now().checked_add(limit),
        Wait::Forever => None,
    };
    let meant = |offer: &Offer| {
        offer.keys.iter().any(|shown| shown.key == args.name)
            && args.token.token.is_none_or(|token| token == offer.token)
    };
    loop {
        let offer = match deadline {
            Some(deadline) => offers.recv_deadline(deadline),
            None => offers.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let offer = match offer {
            Ok(offer) if meant(&offer) => offer,
            Ok(_) => continue,
            Err(RecvTimeoutError::Timeout) => {
                let sentence = format!("{:?} was not offered to client {number} in time", args.name);
                return Err(Failure::new(NOT_ACQUIRED, sentence));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::new(NOT_ACQUIRED, format!("the session of client {number} has ended")));
            }
        };
        match client.take_over(offer.token).owner("").label(args.label.clone()).take() {
            Ok(guard) => {
                let lease = offer.lease.map(|lease| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
                return Ok((guard, lease));
            }
            // It was taken back, or ended, before this came: another offer may follow.
            Err(error) if error.kind() == Some(Kind::NotHolder) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// `tenure ask-release`
pub(crate) fn ask_release(context: &Context, args: &AskRelease) -> Result<()> {
    let client = context.client()?;
    let token = args.target.token(&client)?;
    let asked = client.ask_release(token, &args.target.reason, args.deadline);
    context.finish(&client);
    asked?;
    let deadline_ms = args.deadline.map(|deadline| u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX));
    match args.deadline {
        Some(deadline) => {
            let deadline = duration::show(deadline);
            context.detail(&format!("the holder is told; the grant {token} is broken in {deadline}"));
        }
        None => context.detail(&format!("the holder of the grant {token} is told")),
    }
    context.output().one(&json!({"token": token, "asked": true, "deadline_ms": deadline_ms}), "")
}

/// `tenure break`
pub(crate) fn break_lock(context: &Context, args: &Break) -> Result<()> {
    let client = context.client()?;
    let token = args.target.token(&client)?;
    let broken = client.break_lock(token, &args.target.reason);
    context.finish(&client);
    let op = broken?;
    context.detail(&format!("the grant {token} is broken"));
    context.output().one(&json!({"token": token, "broken": true, "op": op}), "")
}

impl Target {
    /// The token that is meant.
    fn token(&self, client: &Client) -> Result<u64> {
        let Some(name) = &self.name else {
            return self.token.ok_or_else(|| Failure::new(REFUSED, "name a lock or a token"));
        };
        let info = client.lock_info(name)?;
        let refused = |sentence: String| Err(Failure::new(REFUSED, sentence));
        match (&info.holders[..], self.token) {
            ([], _) => refused(format!("{name:?} is held by nobody")),
            (holders, Some(token)) if holders.iter().any(|holder| holder.token == token) => Ok(token),
            // Only the first are listed: the server knows the others.
            (holders, Some(token)) if info.holders_total > holders.len() as u64 => Ok(token),
            (_, Some(token)) => refused(format!("the grant {token} does not hold {name:?}")),
            ([holder], None) if info.holders_total == 1 => Ok(holder.token),
            (holders, None) => {
                let shown = holders.iter().map(|holder| {
                    let who = printable(&who(holder.client, &holder.name, &holder.owner));
                    format!("{} of client {who}", holder.token)
                });
                refused(format!(
                    "{name:?} is held by {}: say with --token which grant is meant: {}",
                    info.holders_total,
                    shown.collect::<Vec<_>>().join(", ")
                ))
            }
        }
    }
}
