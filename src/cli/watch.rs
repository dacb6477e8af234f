//! `watch`: what happens, one line or one JSON object an event, until Ctrl-C.

use super::context::Context;
use super::exit::{Failure, REFUSED, Result};
use super::output::{Format, printable};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use tenure::client::{Client, Error};
use tenure::wire::EventShown;

#[derive(Debug, clap::Args)]
pub(crate) struct Watch {
    /// What the names begin with; without it, all of them.
    #[arg(default_value = "")]
    prefix: String,
    /// Begin behind this op (the version of a key, the op of a list) and not now.
    #[arg(long, env = "TENURE_AFTER", value_name = "OP", conflicts_with = "place")]
    after: Option<u64>,
    /// Begin at the place that an earlier watch told when it ended.
    #[arg(long, env = "TENURE_PLACE", value_name = "PLACE")]
    place: Option<String>,
    /// End after so many events.
    #[arg(long, env = "TENURE_COUNT", value_name = "N")]
    count: Option<u64>,
}

/// `tenure watch`
pub(crate) fn watch(context: &Context, args: &Watch) -> Result<()> {
    // No session is opened: nothing is left at the server, however this ends.
    let client = context.client()?;
    let (signal, over) = closed_by_signals(&client)?;
    let mut watch = client.watch(&args.prefix);
    if let Some(op) = args.after {
        watch = watch.after(op);
    }
    if let Some(place) = &args.place {
        watch = watch.resume(place)?;
    }
    let (mut count, mut output) = (0, context.output());
    let done = loop {
        if args.count.is_some_and(|most| count >= most) {
            break Ok(());
        }
        let next = watch.next();
        if signal.load(Ordering::SeqCst) != 0 {
            break Ok(());
        }
        match next {
            Some(Ok(event)) => {
                count += 1;
                output.bytes(line(context.format(), &event)?.as_bytes())?;
                // Whoever reads this may act on it at once.
                output.flush()?;
            }
            // It is gone for now. What happens meanwhile is told when it is back.
            Some(Err(error @ Error::Unreachable { .. })) => {
                context.say(&format!("tenure: {error}; it goes on"))
            }
            Some(Err(error)) => break Err(error.into()),
            None => break Ok(()),
        }
    };
    if let Some(place) = watch.place() {
        context.detail(&format!("the place behind the last event: --place {place}"));
    }
    over.store(true, Ordering::SeqCst);
    match signal.load(Ordering::SeqCst) {
        0 => done,
        signal => Err(Failure::new(128 + u8::try_from(signal).unwrap_or(0), "")),
    }
}

/// One event: for programs an object a line, since a stream has no end that could close an array.
fn line(format: Format, event: &EventShown) -> Result<String> {
    if format == Format::Json {
        let text = serde_json::to_string(event).map_err(std::io::Error::from)?;
        return Ok(format!("{text}\n"));
    }
    let number = |name, value: Option<u64>| value.map(|value| format!("{name}={value}"));
    let more = [
        number("token", event.token),
        number("before", event.before),
        number("client", event.client),
        event.mode.as_ref().map(|mode| mode.to_string()),
        number("version", event.version),
        number("generation", event.generation),
        number("offset", event.offset),
        number("length", event.length),
        event.to.as_ref().map(|to| format!("to={}", printable(to))),
        event.reason.as_ref().map(|reason| printable(reason)),
    ];
    let more: Vec<String> = more.into_iter().flatten().collect();
    let (event, name, more) = (printable(&event.event), printable(&event.name), (event.op, more.join("  ")));
    Ok(format!("{:>8}  {event:<14}  {name}  {}\n", more.0, more.1))
}

/// SIGINT and SIGTERM close the client, which ends the wait for the next event: the line that is being written is whole. Gives
/// where the number of the signal will stand, and what makes the next signal end the program at once, as it does without this.
fn closed_by_signals(client: &Client) -> Result<(Arc<AtomicI32>, Arc<AtomicBool>)> {
    let (number, over) = (Arc::new(AtomicI32::new(0)), Arc::new(AtomicBool::new(false)));
    let failed = |error| Failure::new(REFUSED, format!("signals cannot be taken: {error}"));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&over)).map_err(failed)?;
        let (mut reader, writer) = UnixStream::pair().map_err(failed)?;
        signal_hook::low_level::pipe::register(signal, writer).map_err(failed)?;
        let (client, number, over) = (client.clone(), Arc::clone(&number), Arc::clone(&over));
        let wait = move || {
            if reader.read_exact(&mut [0]).is_ok() {
                number.store(signal, Ordering::SeqCst);
                over.store(true, Ordering::SeqCst);
                // A client without a session has nothing to say to the server.
                drop(client.close());
            }
        };
        std::thread::Builder::new().name("tenure-signals".into()).spawn(wait).map_err(failed)?;
    }
    Ok((number, over))
}
