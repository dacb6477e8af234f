//! `bench`: the flags of the load generator, and its report.

use super::context::Context;
use super::duration::{parse_bytes, parse_duration};
use super::exit::{Failure, REFUSED, Result, UNREACHABLE, USAGE};
use super::output::{Format, Output};
use super::parse_ttl;
use std::time::Duration;
use tenure::bench::report::{Percentiles, Report};
use tenure::bench::{self, Plan, Sockets, Workload};

/// The longest run, in seconds: a day.
const SECONDS_MAX: f64 = 86_400.0;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
One thread plays all clients, over the public protocol: sessions, heartbeats, acknowledgements, datagrams sent again. Each
request waits for its answer before the next (but heartbeats go by the clock), so a slow server is asked less often; with
--rate it does not wait. What a run makes is named bench/... and removed at its end. Ends with code 1 if there was an error,
or nothing was done.

    tenure bench                                                     64 clients, each with a socket and a lock of its own
    tenure bench --workload hand-off --clients 16                    16 clients that want one lock
    tenure bench --clients 1 --in-flight 64 --batch 64               one peer with 64 requests on their way
    tenure bench --clients 1000 --rate 20000                         20,000 cycles a second, come what may
    tenure bench --workload heartbeat --clients 100 --names 100      10,000 locks, each kept alive by a heartbeat a second")]
pub(crate) struct Bench {
    /// What each client does again and again.
    #[arg(long, env = "TENURE_WORKLOAD", value_enum, value_name = "WHAT", default_value = "cycle")]
    workload: Workload,
    /// Clients, each with a session: 1 to 10,000.
    #[arg(long, env = "TENURE_CLIENTS", value_name = "N", default_value_t = 64)]
    clients: usize,
    /// Whose the sockets are.
    #[arg(long, env = "TENURE_SOCKETS", value_enum, value_name = "WHOSE", default_value = "each")]
    sockets: Sockets,
    /// Requests that each client has on their way: 1 to 256.
    #[arg(long, env = "TENURE_IN_FLIGHT", value_name = "N", default_value_t = 1)]
    in_flight: usize,
    /// Requests that share a datagram, at most, if several of one socket are due at once: 1 to 64.
    #[arg(long, env = "TENURE_BATCH", value_name = "N", default_value_t = 1)]
    batch: usize,
    /// How long is measured, in seconds.
    #[arg(long, env = "TENURE_SECONDS", value_name = "SECONDS", default_value = "2", value_parser = parse_seconds)]
    seconds: Duration,
    /// How long the load runs before that.
    #[arg(long, env = "TENURE_WARM_UP", value_name = "DURATION", default_value = "500ms", value_parser = parse_duration)]
    warm_up: Duration,
    /// Bytes of a value, or of an append, at most 49,150.
    #[arg(long, env = "TENURE_VALUE_BYTES", value_name = "SIZE", default_value = "100", value_parser = parse_value)]
    value_bytes: usize,
    /// Names that each request in flight uses in turn; for `heartbeat` locks that each client holds, for `several` all
    /// locks. [default: 1, for `several` 1000]
    #[arg(long, env = "TENURE_NAMES", value_name = "N")]
    names: Option<usize>,
    /// Locks that one request asks for, for `several`: 1 to 128.
    #[arg(long, env = "TENURE_TOGETHER", value_name = "N", default_value_t = bench::TOGETHER)]
    together: usize,
    /// The time from heartbeat to heartbeat of a session, for `heartbeat`. Else they come as the TTL asks.
    #[arg(long, env = "TENURE_EVERY", value_name = "DURATION", default_value = "1s", value_parser = parse_every)]
    every: Duration,
    /// Operations a second that begin by the clock, whether or not earlier ones are done: an open loop. A time then runs from
    /// when an operation was due. [default: each client asks again when it has its answer]
    #[arg(long, env = "TENURE_RATE", value_name = "N")]
    rate: Option<f64>,
    /// TTL of the sessions.
    #[arg(long, env = "TENURE_TTL", value_name = "DURATION", default_value = "10s", value_parser = parse_ttl)]
    ttl: Duration,
    /// Ask for answers without a pause, in place of sleeping until there is one: a core for the load.
    #[arg(long, env = "TENURE_SPIN", value_parser = clap::builder::BoolishValueParser::new())]
    spin: bool,
    /// Leave sessions, locks, keys and files as they are at the end; the sessions end by their TTL.
    #[arg(long, env = "TENURE_LEAVE", value_parser = clap::builder::BoolishValueParser::new())]
    leave: bool,
    /// The process of the server, if it is on this machine: shows its CPU time and memory.
    #[arg(long, env = "TENURE_SERVER_PID", value_name = "PID")]
    server_pid: Option<u32>,
    /// The report as JSON: short for `--output json`.
    #[arg(long)]
    json: bool,
}

fn parse_seconds(text: &str) -> std::result::Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= SECONDS_MAX => Ok(Duration::from_secs_f64(seconds)),
        Ok(_) | Err(_) => Err("write seconds as a number above 0 and up to 86400, as in 2 or 0.5".into()),
    }
}

fn parse_every(text: &str) -> std::result::Result<Duration, String> {
    let every = parse_duration(text)?;
    if every < Duration::from_millis(1) { Err("it is at least 1ms".into()) } else { Ok(every) }
}

fn parse_value(text: &str) -> std::result::Result<usize, String> {
    match usize::try_from(parse_bytes(text)?) {
        Ok(bytes) if (1..=bench::VALUE_BYTES_MAX).contains(&bytes) => Ok(bytes),
        Ok(_) | Err(_) => Err("write a size from 1 to 49150 bytes".into()),
    }
}

impl Bench {
    fn plan(&self, context: &Context) -> Result<Plan> {
        Ok(Plan {
            server: context.server()?,
            workload: self.workload,
            clients: self.clients,
            sockets: self.sockets,
            in_flight: self.in_flight,
            batch: self.batch,
            names: self.names.unwrap_or_else(|| self.workload.usual_names()),
            together: self.together,
            value_bytes: self.value_bytes,
            time: self.seconds,
            warm_up: self.warm_up,
            every: self.every,
            rate: self.rate,
            ttl: self.ttl,
            patience: context.timeout(),
            spin: self.spin,
            leave: self.leave,
            server_pid: self.server_pid,
        })
    }
}

/// `tenure bench`
pub(crate) fn bench(context: &Context, args: &Bench) -> Result<()> {
    let report = args.plan(context)?.run().map_err(|failure| {
        let code = match failure {
            bench::Failure::Plan(_) => USAGE,
            bench::Failure::Unreachable(_) => UNREACHABLE,
            bench::Failure::Refused(_) => REFUSED,
        };
        Failure::new(code, failure.sentence())
    })?;
    let format = if args.json { Format::Json } else { context.format() };
    Output::stdout(format).one(&report, &told(&report))?;
    verdict(&report)
}

/// A load that met errors, or did nothing, has not measured what it says.
fn verdict(report: &Report) -> Result<()> {
    let errors: Vec<String> = report.errors.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    if !errors.is_empty() {
        return Err(Failure::new(REFUSED, format!("there were errors: {}", errors.join(", "))));
    }
    if report.operations == 0 {
        return Err(Failure::new(
            REFUSED,
            "nothing was done in that time: measure for longer, or look at the server",
        ));
    }
    Ok(())
}

/// The report for people.
fn told(report: &Report) -> String {
    let mut lines = vec![format!(
        "{}: {} in {:.2} s, {:.0} a second; {} clients, sockets: {}, in flight: {}, batch: {}",
        name(report.workload),
        report.operations,
        report.seconds,
        report.rate,
        report.clients,
        match report.sockets {
            Sockets::Each => "each",
            Sockets::One => "one",
        },
        report.in_flight,
        report.batch
    )];
    let mut times = |what: &str, times: Option<Percentiles>| {
        if let Some(Percentiles { p50, p90, p99, p999, max, mean }) = times {
            lines.push(format!(
                "{what}: p50 {p50:.1} us, p90 {p90:.1}, p99 {p99:.1}, p99.9 {p999:.1}, max {max:.1}, mean {mean:.1}"
            ));
        }
    };
    times(if report.hand_off_us.is_some() { "wait" } else { "latency" }, report.latency_us);
    times("round trip", report.round_trip_us);
    times("hand-off", report.hand_off_us);
    if let Some(acquired) = report.acquired {
        lines.push(format!("acquired before: {} locks, {:.0} a second", acquired.locks, acquired.rate));
    }
    if let Some(process) = report.process {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        lines.push(format!(
            "server: {:.2} us of CPU each, {:.1} % of a core; {:.1} MB before, {:.1} MB ready, {:.1} MB after",
            process.cpu_us,
            process.cpu * 100.0,
            mb(process.rss_before),
            mb(process.rss_ready),
            mb(process.rss_after)
        ));
    }
    if let Some(bytes) = report.bytes_per_lock() {
        lines.push(format!("memory: {bytes:.0} bytes for each lock held"));
    }
    lines.push(format!(
        "{} round trips, {} heartbeats, {} stood in line, {} sent again, {} doubled, {} damaged; {} errors",
        report.round_trips,
        report.heartbeats,
        report.stood_in_line,
        report.resent,
        report.doubled,
        report.damaged,
        report.errors_total()
    ));
    if let Some(due) = report.due_rate {
        lines.push(format!(
            "{due:.0} operations a second were due; {} never began, since every client was busy",
            report.not_begun
        ));
    }
    if report.skipped > 0 {
        lines.push(format!("{} heartbeats were due before the one before was answered", report.skipped));
    }
    lines.push(format!("the load used {:.0} % of its core", report.load_busy * 100.0));
    lines.join("\n")
}

fn name(workload: Workload) -> String {
    use clap::ValueEnum;
    workload.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_bounds() {
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "1s", "NaN", "inf", "86401", ""] {
            assert!(parse_seconds(text).is_err(), "{text:?}");
        }
        assert_eq!(parse_value("1KiB"), Ok(1_024));
        assert!(parse_value("0").is_err() && parse_value("48KiB").is_err());
        assert!(parse_every("0s").is_err() && parse_every("1ms").is_ok());
    }
}
