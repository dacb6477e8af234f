//! What the benchmarks share: the real server on one core, a load on the other, and how figures are shown.

pub(crate) mod ask;
pub(crate) mod machine;
pub(crate) mod server;
mod thousands;

use machine::Cores;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tenure::bench::report::Report;
use tenure::bench::{self, Workload};

pub(crate) use thousands::thousands;

/// The options that every benchmark has.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Time of one measurement under load, after a warm-up of a quarter of it.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How often everything is measured; medians are shown.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Run only what has this in its name.
    #[arg(long, default_value = "")]
    only: String,
    /// Where the fresh data directories are made: a directory on the disk to measure [default: Cargo's target directory].
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"), hide_default_value = true)]
    dir: PathBuf,
    /// Let the system place server and load, in place of a core for each.
    #[arg(long)]
    no_pin: bool,
    /// Show that it works, with tiny numbers.
    #[arg(long)]
    test: bool,
    /// What `cargo bench` says.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured, how often, how long and where.
pub(crate) struct Plan {
    pub(crate) seconds: f64,
    pub(crate) repeats: usize,
    pub(crate) only: String,
    pub(crate) dir: PathBuf,
    pub(crate) cores: Cores,
    /// Whether it is only to be shown that everything works.
    pub(crate) test: bool,
}

impl Plan {
    /// Whether nothing was said but that it should be shown to work: without cargo's `--bench`, or with `--test`.
    pub(crate) fn is_test() -> bool {
        let said = |word: &str| std::env::args().any(|argument| argument == word);
        !said("--bench") || said("--test")
    }

    /// One short pass. Whatever else `cargo test` was told is for the other tests.
    pub(crate) fn test() -> Plan {
        Plan {
            seconds: 0.05,
            repeats: 1,
            only: String::new(),
            dir: PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
            cores: Cores::free(),
            test: true,
        }
    }

    /// What the options say.
    pub(crate) fn of(options: Options) -> Plan {
        let Options { seconds, repeats, only, dir, no_pin, .. } = options;
        let cores = if no_pin { Cores::free() } else { Cores::split() };
        Plan { seconds: seconds.max(0.01), repeats: repeats.max(1), only, dir, cores, test: false }
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }

    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// Runs a load after a warm-up of a quarter of its time.
///
/// # Errors
/// A sentence, if nothing was measured, or there were errors.
pub(crate) fn load(time: Duration, mut plan: bench::Plan) -> Result<Report, String> {
    (plan.time, plan.warm_up) = (time, time / 4);
    let report = plan.run().map_err(|failure| failure.sentence().to_owned())?;
    if report.errors.is_empty() {
        Ok(report)
    } else {
        Err(format!("the load met errors: {:?}", report.errors))
    }
}

/// Sessions that hold the locks of [`hold`] between them.
const SESSIONS: usize = 16;

/// Requests in one datagram.
const BATCH: usize = 64;

/// Acquires so many locks, or a few less, and leaves them held by sessions of this TTL; how many, and how many a second.
///
/// # Errors
/// A sentence, if they are not acquired.
pub(crate) fn hold(server: SocketAddr, locks: usize, ttl: Duration) -> Result<(u64, f64), String> {
    let plan = bench::Plan {
        clients: SESSIONS,
        names: locks / SESSIONS,
        in_flight: BATCH,
        batch: BATCH,
        every: Duration::from_millis(10),
        ttl,
        leave: true,
        ..bench::Plan::new(server, Workload::Heartbeat)
    };
    let acquired = load(Duration::from_millis(50), plan)?.acquired.ok_or("no locks were acquired")?;
    Ok((acquired.locks, acquired.rate))
}

/// The reports of a row: the one of the median rate, the lowest and the highest rate.
pub(crate) fn middle(reports: &mut [Report]) -> (&Report, f64, f64) {
    reports.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    let (lowest, highest) = (reports[0].rate, reports[reports.len() - 1].rate);
    (&reports[reports.len() / 2], lowest, highest)
}

/// Times as cells: half of all, 99 % and 99.9 % took no longer.
pub(crate) fn times(percentiles: Option<bench::report::Percentiles>) -> [String; 3] {
    percentiles.map_or([f64::NAN; 3], |times| [times.p50, times.p99, times.p999]).map(thousands)
}

/// A directory that goes when the measurement is over.
pub(crate) fn fresh_dir(parent: &std::path::Path) -> Result<tempfile::TempDir, String> {
    tempfile::Builder::new()
        .prefix(concat!(env!("CARGO_CRATE_NAME"), "-"))
        .tempdir_in(parent)
        .map_err(|error| format!("no fresh directory in {}: {error}", parent.display()))
}
