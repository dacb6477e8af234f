//! The machine and the command, and which core is whose.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs;
use std::path::Path;

/// A core for the server and one for the load, or none named and the system places both.
pub(crate) struct Cores {
    split: Option<(usize, usize)>,
}

impl Cores {
    /// The system places both.
    pub(crate) fn free() -> Cores {
        Cores { split: None }
    }

    /// A core for each, if there are two; this thread moves to the load's.
    pub(crate) fn split() -> Cores {
        let Ok(mine) = sched_getaffinity(None) else { return Cores::free() };
        let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| mine.is_set(core));
        let (Some(server), Some(load)) = (cores.next(), cores.next()) else { return Cores::free() };
        move_to(load);
        Cores { split: Some((server, load)) }
    }

    /// Calls with this thread on the server's core: what it starts there stays there.
    pub(crate) fn on_the_servers<T>(&self, call: impl FnOnce() -> T) -> T {
        let Some((server, load)) = self.split else { return call() };
        move_to(server);
        let result = call();
        move_to(load);
        result
    }
}

fn move_to(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    if let Err(error) = sched_setaffinity(None, &cores) {
        eprintln!("{}: this thread cannot move to core {core}: {error}", env!("CARGO_CRATE_NAME"));
    }
}

/// Prints the machine and the command, which begins like this.
///
/// # Errors
/// A sentence, if there is no such directory.
#[expect(clippy::print_stdout, reason = "a benchmark prints what it ran on")]
pub(crate) fn describe(dir: &Path, cores: &Cores, runner: &str) -> Result<(), String> {
    let dir = dir.canonicalize().map_err(|error| format!("{} cannot be used: {error}", dir.display()))?;
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, m)| m);
    let count = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let memory = read("/proc/meminfo");
    let memory_kb = memory.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.split_ascii_whitespace().next()?.parse::<f64>().ok()
    });
    println!(
        "Machine: {}, {count} cores, {:.0} GiB, Linux {}, data on {}; {}.",
        model.unwrap_or("unknown processor"),
        memory_kb.unwrap_or(f64::NAN) / 1024.0 / 1024.0,
        read("/proc/sys/kernel/osrelease").trim(),
        filesystem(&dir, &read("/proc/self/mountinfo")),
        if cores.split.is_some() { "one core for the server, one for the load" } else { "no core chosen" }
    );
    println!("Command: `{}`", command(runner));
    Ok(())
}

/// The command of this run; what cargo adds, and where a directory is, is nobody's business.
fn command(runner: &str) -> String {
    let mut shown = runner.to_owned();
    let mut between = " --";
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        let argument = match argument.as_str() {
            "--dir" => {
                arguments.next();
                "--dir DIR"
            }
            "--tenure" => {
                arguments.next();
                "--tenure PROGRAM"
            }
            "--out" => {
                arguments.next();
                "--out DIR"
            }
            argument if argument.starts_with("--dir=") => "--dir DIR",
            argument if argument.starts_with("--out=") => "--out DIR",
            argument => argument,
        };
        shown.push_str(between);
        shown.push(' ');
        shown.push_str(argument);
        between = "";
    }
    shown
}

/// The type of the file system that holds a directory: that of the longest mount point above it (proc(5), mountinfo).
fn filesystem(dir: &Path, mounts: &str) -> String {
    let mount = |line: &str| -> Option<(usize, String)> {
        let (fields, rest) = line.split_once(" - ")?;
        let point = fields.split_ascii_whitespace().nth(4)?;
        dir.starts_with(point)
            .then(|| (point.len(), rest.split_ascii_whitespace().next().unwrap_or("?").to_owned()))
    };
    // Of two mounts at one point the later hides the earlier; `max_by_key` gives the last.
    mounts.lines().filter_map(mount).max_by_key(|(length, _)| *length).map_or("?".into(), |(_, name)| name)
}
