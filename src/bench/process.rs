//! What the kernel says of a process: the CPU time and the memory that it uses.

use rustix::time::{ClockId, clock_gettime};
use std::fs;

/// Microseconds of one tick, the unit of proc(5): 100 a second, whatever the kernel itself counts in.
const TICK_US: f64 = 1e4;

/// CPU time, as far as one can tell.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// To the tick, of all threads that there ever were.
    coarse_us: f64,
    /// To the nanosecond, of the threads that there are.
    fine_us: f64,
}

impl Cpu {
    /// What has been used since the start of the process, in microseconds, to the tick.
    pub fn since_the_start(self) -> f64 {
        self.coarse_us
    }

    /// What has been used since then, in microseconds. Threads that ended in between are only in the coarse figure, so the
    /// fine one counts if it is near.
    pub fn since(self, earlier: Cpu) -> f64 {
        let coarse = self.coarse_us - earlier.coarse_us;
        let fine = self.fine_us - earlier.fine_us;
        if (coarse - fine).abs() <= 3.0 * TICK_US { fine } else { coarse }
    }
}

/// CPU time of a process, user and system.
///
/// # Errors
/// A sentence, if there is no such process, or its figures cannot be read.
pub fn cpu(pid: u32) -> Result<Cpu, String> {
    let stat = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&stat).map_err(|error| format!("{stat} cannot be read: {error}"))?;
    // The name in field 2 may hold blanks and parentheses; the last `)` ends it. User and system time are 14 and 15.
    let fields: Vec<&str> =
        text.rsplit_once(')').map_or(vec![], |(_, rest)| rest.split_ascii_whitespace().collect());
    let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<f64>().ok());
    let coarse = ticks(14).zip(ticks(15)).map(|(user, system)| (user + system) * TICK_US);
    let coarse_us = coarse.ok_or_else(|| format!("{stat} does not look like one"))?;
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanos = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse::<f64>().ok()
    });
    Ok(Cpu { coarse_us, fine_us: nanos.sum::<f64>() / 1e3 })
}

/// A figure about its memory in bytes: `VmRSS`, or `VmHWM` for the most it ever was.
///
/// # Errors
/// A sentence, if there is no such process, or it has no such figure.
pub fn memory(pid: u32, figure: &str) -> Result<u64, String> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path} cannot be read: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kilobytes.map(|kb| kb * 1024).ok_or_else(|| format!("{path} has no {figure}"))
}

/// CPU time that this thread has used, in seconds.
pub fn own_cpu() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_uses_is_seen() {
        let pid = std::process::id();
        let (before, own) = (cpu(pid).unwrap(), own_cpu());
        let mut sum = 0_u64;
        while own_cpu() - own < 0.05 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(cpu(pid).unwrap().since(before) > 20_000.0);
        assert!(memory(pid, "VmRSS").unwrap() > 100_000);
        assert!(memory(pid, "VmNone").is_err() && cpu(u32::MAX).is_err());
    }
}
