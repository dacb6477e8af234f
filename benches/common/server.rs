//! The real server as a process: started, killed, stopped, and what the kernel says of it.

use super::machine::Cores;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use tenure::bench::process::{self, Cpu};

/// How long a start or a stop may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server; dropped, it is killed.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts a server whose data is in `data` below this directory; also the time from its start to `listening on`.
    ///
    /// # Errors
    /// A sentence with what it printed, if it does not say that it listens.
    pub(crate) fn start(dir: &Path, durability: &str, cores: &Cores) -> Result<(Server, Duration), String> {
        let errors = dir.join("stderr");
        let stderr = fs::File::create(&errors).map_err(|error| error.to_string())?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenure"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TENURE_") {
                command.env_remove(name);
            }
        }
        command.args(["serve", "--bind", "127.0.0.1:0", "--durability", durability, "--data-dir"]);
        command.arg(dir.join("data"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let began = Instant::now();
        let mut child = cores
            .on_the_servers(|| command.spawn())
            .map_err(|error| format!("the server did not start: {error}"))?;
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            // Reads on after the line it waits for, so that the server never writes into a closed pipe.
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("listening on ") {
                    let _ = tell.send((began.elapsed(), address.trim().parse::<SocketAddr>()));
                }
            }
        });
        match told.recv_timeout(PATIENCE) {
            Ok((took, Ok(address))) => Ok((Server { child, address }, took)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                let said = fs::read_to_string(&errors).unwrap_or_default();
                Err(format!("the server did not say `listening on ADDRESS:PORT`; it said: {said}"))
            }
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that all its threads have used since its start, user and system.
    pub(crate) fn cpu_micros(&self) -> f64 {
        process::cpu(self.pid()).map_or(f64::NAN, Cpu::since_the_start)
    }

    /// A figure in kilobytes of the kernel's about its memory: `VmRSS`, or `VmHWM` for the most it ever was.
    pub(crate) fn memory_kb(&self, figure: &str) -> f64 {
        process::memory(self.pid(), figure).map_or(f64::NAN, |bytes| bytes as f64 / 1024.0)
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    /// Asks it to stop; the time until it has.
    ///
    /// # Errors
    /// A sentence, if it does not, or not well.
    pub(crate) fn stop(mut self) -> Result<Duration, String> {
        let began = Instant::now();
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(|error| error.to_string())?;
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? {
                return if status.success() {
                    Ok(began.elapsed())
                } else {
                    Err(format!("the server stopped with {status}"))
                };
            }
            thread::sleep(Duration::from_millis(1));
        }
        Err("the server did not stop".into())
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}
