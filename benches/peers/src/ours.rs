//! Tenure: its own program as the server, and as the load (`tenure bench`).

use crate::figures::{Figures, Time};
use crate::machine::Cores;
use crate::process;
use crate::servers::{Server, fresh_dir, without_variables};
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Sessions that hold the many locks, and what each has on its way while it acquires them.
const HOLDERS: usize = 16;

/// Journal that one round of writes adds before its size is looked at again.
const WRITE_FOR: Duration = Duration::from_secs(2);

/// A server is quiet when its memory has not changed for so long; that is waited for so long at most.
const QUIET: Duration = Duration::from_secs(4);
const QUIET_WITHIN: Duration = Duration::from_secs(60);

/// Rounds of writes after which the journal should have grown.
const WRITE_ROUNDS: usize = 100;

/// The program, and what its server is told when it is to wait without sleeping.
pub struct Tenure {
    pub program: PathBuf,
    pub busy_poll: Vec<String>,
}

impl Tenure {
    /// Builds the program, if none is named.
    ///
    /// # Errors
    /// A sentence, if that fails.
    pub fn built(program: Option<PathBuf>, busy_poll: &str) -> Result<Tenure, String> {
        let program = match program {
            Some(program) => {
                program.canonicalize().map_err(|error| format!("{}: {error}", program.display()))?
            }
            None => build()?,
        };
        Ok(Tenure { program, busy_poll: busy_poll.split_ascii_whitespace().map(str::to_owned).collect() })
    }

    /// Whether its server can wait without sleeping.
    pub fn can_busy_poll(&self) -> bool {
        let Some(flag) = self.busy_poll.first() else { return false };
        let help = Command::new(&self.program).args(["serve", "--help"]).output();
        let name = flag.split('=').next().unwrap_or(flag);
        help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains(name))
    }

    /// A load on a fresh server.
    pub fn measure(
        &self,
        durability: &str,
        busy_poll: bool,
        load: &[&str],
        time: &Time,
        parent: &Path,
        cores: &Cores,
    ) -> Result<Figures, String> {
        let dir = fresh_dir(parent)?;
        let mut flags = vec!["--durability", durability];
        if busy_poll {
            flags.extend(self.busy_poll.iter().map(String::as_str));
        }
        let server = Server::tenure(&self.program, &dir.path().join("data"), &flags, cores)?;
        let report = self.load(&server, load, time)?;
        Ok(figures(&report))
    }

    /// Memory of a lock of a million that are held by few sessions, once the server is quiet: the snapshot of them written, and
    /// what that took given back.
    pub fn memory(&self, locks: usize, parent: &Path, cores: &Cores) -> Result<Figures, String> {
        let dir = fresh_dir(parent)?;
        let server =
            Server::tenure(&self.program, &dir.path().join("data"), &["--durability", "none"], cores)?;
        let look = || process::memory(server.pid(), "VmRSS");
        let before = look()?;
        self.hold(&server, locks)?;
        let (mut after, mut since, began) = (look()?, Instant::now(), Instant::now());
        while since.elapsed() < QUIET && began.elapsed() < QUIET_WITHIN {
            std::thread::sleep(Duration::from_millis(100));
            let now = look()?;
            if now.abs_diff(after) > after / 100 {
                (after, since) = (now, Instant::now());
            }
        }
        Ok(Figures { bytes: (after as f64 - before as f64) / locks as f64, ..Figures::NONE })
    }

    /// The time of a start with so many locks held and so many bytes of journal since the last snapshot.
    pub fn start(&self, locks: usize, journal: u64, parent: &Path, cores: &Cores) -> Result<Figures, String> {
        let dir = fresh_dir(parent)?;
        let data = dir.path().join("data");
        let flags = ["--durability", "sync", "--snapshot-segments", "1000"];
        let server = Server::tenure(&self.program, &data, &flags, cores)?;
        if locks > 0 {
            self.hold(&server, locks)?;
        }
        let time = Time { warm_up: Duration::ZERO, measured: WRITE_FOR, spin: false };
        let mut rounds = 0;
        while size(&data.join("journal"))? < journal {
            rounds += 1;
            if rounds > WRITE_ROUNDS {
                return Err(format!("the journal does not grow to {journal} bytes"));
            }
            self.load(&server, &["--workload", "put", "--value-bytes", "4KiB", "--names", "4"], &time)?;
        }
        drop(server);
        let server = Server::tenure(&self.program, &data, &flags, cores)?;
        let counts = self.counts(server.address)?;
        if counts["grants"].as_u64() != Some(locks as u64) {
            return Err(format!("of {locks} locks {} are held after the start", counts["grants"]));
        }
        Ok(Figures { seconds: server.took.as_secs_f64(), ..Figures::NONE })
    }

    /// Lets so many locks be held for a day, with nobody who heartbeats.
    fn hold(&self, server: &Server, locks: usize) -> Result<(), String> {
        let (clients, names) = (HOLDERS.to_string(), (locks / HOLDERS).to_string());
        let mut load = vec!["--workload", "heartbeat", "--clients", &clients, "--names", &names];
        load.extend(["--in-flight", "64", "--batch", "64", "--every", "50ms", "--ttl", "24h", "--leave"]);
        let time = Time { warm_up: Duration::ZERO, measured: Duration::from_millis(500), spin: false };
        self.load(server, &load, &time).map(drop)
    }

    /// Runs `tenure bench`, on this thread's core.
    fn load(&self, server: &Server, load: &[&str], time: &Time) -> Result<Value, String> {
        let mut command = Command::new(&self.program);
        without_variables(&mut command);
        command.args([
            "bench",
            "--output",
            "json",
            "--timeout",
            "60s",
            "--addr",
            &server.address.to_string(),
        ]);
        command.args(["--seconds", &time.measured.as_secs_f64().to_string()]);
        command.args(["--warm-up", &format!("{}ms", time.warm_up.as_millis())]);
        command.args(["--server-pid", &server.pid().to_string()]).args(load);
        if time.spin {
            command.arg("--spin");
        }
        let output =
            command.stdin(Stdio::null()).output().map_err(|error| format!("tenure bench: {error}"))?;
        if !output.status.success() {
            return Err(format!("tenure bench {load:?}: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| format!("the report of tenure bench: {error}"))
    }

    fn counts(&self, server: SocketAddr) -> Result<Value, String> {
        let mut command = Command::new(&self.program);
        without_variables(&mut command);
        command.args(["status", "--output", "json", "--timeout", "60s", "--addr", &server.to_string()]);
        let output = command.output().map_err(|error| format!("tenure status: {error}"))?;
        let status: Value =
            serde_json::from_slice(&output.stdout).map_err(|error| format!("tenure status: {error}"))?;
        Ok(status["counts"].clone())
    }
}

/// The program of this source, as it is released.
fn build() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--bin", "tenure", "--message-format=json-render-diagnostics"]);
    let output = command.current_dir(&root).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("cargo did not start: {error}"))?;
    if !output.status.success() {
        return Err("the program could not be built".into());
    }
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let built =
        messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
            let is_it = message["reason"] == "compiler-artifact" && message["target"]["name"] == "tenure";
            if is_it { message["executable"].as_str().map(PathBuf::from) } else { None }
        });
    built.ok_or_else(|| "cargo does not say where the program is".into())
}

fn figures(report: &Value) -> Figures {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    Figures {
        rate: number(&report["rate"]),
        p50_us: number(&report["latency_us"]["p50"]),
        p99_us: number(&report["latency_us"]["p99"]),
        cpu_us: number(&report["process"]["cpu_us"]),
        cpu: number(&report["process"]["cpu"]),
        load_busy: number(&report["load_busy"]),
        ..Figures::NONE
    }
}

/// The bytes of the files in a directory.
fn size(dir: &Path) -> Result<u64, String> {
    let size = || fs::read_dir(dir)?.map(|entry| Ok(entry?.metadata()?.len())).sum::<std::io::Result<u64>>();
    size().map_err(|error| format!("{}: {error}", dir.display()))
}
