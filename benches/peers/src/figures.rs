//! What one measurement gives, and how it is taken.

use crate::process::{self, Cpu};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::{Duration, Instant};

/// How long, and how.
#[derive(Clone, Copy)]
pub struct Time {
    pub warm_up: Duration,
    pub measured: Duration,
    /// Whether the load asks for answers without ever sleeping.
    pub spin: bool,
}

/// What one measurement gives. What it does not know is not a number.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    /// Operations a second.
    pub rate: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// CPU time of the server for each operation.
    pub cpu_us: f64,
    /// How much of a core the server used.
    pub cpu: f64,
    /// How much of its core the load used.
    pub load_busy: f64,
    /// Memory of a lock.
    pub bytes: f64,
    /// Time of a start.
    pub seconds: f64,
}

impl Figures {
    pub const NONE: Figures = Figures {
        rate: f64::NAN,
        p50_us: f64::NAN,
        p99_us: f64::NAN,
        cpu_us: f64::NAN,
        cpu: f64::NAN,
        load_busy: f64::NAN,
        bytes: f64::NAN,
        seconds: f64::NAN,
    };
}

/// Counts operations between the end of the warm-up and the end.
pub struct Meter {
    opens: Instant,
    measured: Duration,
    pid: u32,
    window: Option<(Instant, Cpu, f64)>,
    times: Histogram<u64>,
    done: Option<Figures>,
}

impl Meter {
    pub fn new(time: &Time, pid: u32) -> Meter {
        let times = Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("the bounds are in order");
        Meter {
            opens: Instant::now() + time.warm_up,
            measured: time.measured,
            pid,
            window: None,
            times,
            done: None,
        }
    }

    /// So many operations ended, each after this time.
    pub fn add(&mut self, time: Duration, count: u64) {
        if self.window.is_some() && count > 0 {
            self.times.saturating_record_n(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), count);
        }
    }

    /// Opens and closes the window; whether it is closed.
    pub fn is_over(&mut self, now: Instant) -> Result<bool, String> {
        match self.window {
            None if now >= self.opens => {
                let cpu = process::cpu(self.pid)?;
                self.window = Some((Instant::now(), cpu, process::own_cpu()));
            }
            Some((began, cpu, own)) if now - began >= self.measured => {
                let seconds = began.elapsed().as_secs_f64();
                let used = process::cpu(self.pid)?.since(cpu);
                let count = self.times.len();
                if count == 0 {
                    return Err("nothing was done in the time measured".into());
                }
                let at = |part| self.times.value_at_quantile(part) as f64 / 1e3;
                self.done = Some(Figures {
                    rate: count as f64 / seconds,
                    p50_us: at(0.5),
                    p99_us: at(0.99),
                    cpu_us: used / count as f64,
                    cpu: used / 1e6 / seconds,
                    load_busy: (process::own_cpu() - own) / seconds,
                    ..Figures::NONE
                });
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    /// What was measured.
    pub fn figures(self) -> Result<Figures, String> {
        self.done.ok_or_else(|| "the measurement was not finished".into())
    }
}
