//! The server as a process.

use super::{PATIENCE, Raw, poll_until};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tempfile::TempDir;

/// How the server is started.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// `sync`, `os` or `none`.
    pub(crate) durability: &'static str,
    /// Arguments behind those of every server.
    pub(crate) args: Vec<String>,
    /// `TENURE_FAILPOINT`, for one start: [`Server::start_again`] clears it.
    pub(crate) failpoint: Option<String>,
    /// Whether the failpoint waits for [`Server::arm`].
    pub(crate) disarmed: bool,
    /// `TENURE_LOG`.
    pub(crate) log: &'static str,
    /// How many files the process may have open, if not as many as the tests.
    pub(crate) open_files: Option<u32>,
    /// A program with its arguments that runs the server in its own place.
    pub(crate) run_by: Vec<String>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            durability: "sync",
            args: Vec::new(),
            failpoint: None,
            disarmed: false,
            log: "debug",
            open_files: None,
            run_by: Vec::new(),
        }
    }
}

/// How a server ended.
#[derive(Debug)]
pub(crate) struct Exit {
    /// Its exit status.
    pub(crate) status: ExitStatus,
    /// What it said on stderr.
    pub(crate) stderr: String,
}

/// A server process on its own data directory and its own address. Killed when dropped.
pub(crate) struct Server {
    directory: PathBuf,
    /// Removes the directory, if it is ours.
    _owned: Option<TempDir>,
    address: SocketAddr,
    child: Option<Child>,
    stderr: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    /// How the next start is made.
    pub(crate) setup: Setup,
}

impl Server {
    /// Starts a server with the usual settings.
    pub(crate) fn start() -> Server {
        Server::with(Setup::default())
    }

    /// Starts a server.
    pub(crate) fn with(setup: Setup) -> Server {
        let mut server = Server::prepare(setup);
        server.must_launch();
        server
    }

    /// A server on a fresh directory that has not been started.
    pub(crate) fn prepare(setup: Setup) -> Server {
        let owned = tempfile::Builder::new().prefix("tenure-crash-").tempdir().unwrap();
        let mut server = Server::prepare_in(owned.path().join("data"), setup);
        server._owned = Some(owned);
        server
    }

    /// A server on a directory of the caller's that has not been started.
    pub(crate) fn prepare_in(directory: PathBuf, setup: Setup) -> Server {
        let stderr = Arc::new(Mutex::new(String::new()));
        let address = own_loopback();
        Server { directory, _owned: None, address, child: None, stderr, readers: Vec::new(), setup }
    }

    /// A server on a copy of the data directory as it is now. Not started.
    pub(crate) fn copy(&self) -> Server {
        let copy = Server::prepare(Setup { durability: self.setup.durability, ..Setup::default() });
        copy_directory(&self.directory, &copy.directory);
        copy
    }

    /// A server on the data directory as a power cut at this moment leaves it. Not started.
    pub(crate) fn copy_as_of_now(&self) -> Server {
        self.signal(Signal::STOP);
        let pid = self.child.as_ref().expect("it runs").id();
        // Copying what moves would find names that are gone.
        poll_until("the server to stand still", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')).then_some(())
        });
        let copy = self.copy();
        self.signal(Signal::CONT);
        copy
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its data directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A client with a session of its own.
    pub(crate) fn client(&self, ttl_ms: u64) -> Raw {
        Raw::open(self.address, ttl_ms)
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// How it ended, if it did before it served.
    pub(crate) fn launch(&mut self) -> Result<(), Exit> {
        match self.spawn().recv_timeout(PATIENCE) {
            Ok(line) => {
                let address = line.strip_prefix("listening on ").and_then(|text| text.trim().parse().ok());
                self.address = address.unwrap_or_else(|| panic!("the server's first line was {line:?}"));
                Ok(())
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.ended()),
            Err(RecvTimeoutError::Timeout) => panic!("the server neither serves nor ends"),
        }
    }

    /// Starts it and waits for nothing. The first line that it says on stdout will come from the channel.
    pub(crate) fn spawn(&mut self) -> mpsc::Receiver<String> {
        assert!(self.child.is_none(), "it runs already");
        const PROGRAM: &str = env!("CARGO_BIN_EXE_tenure");
        let mut command = match (self.setup.open_files, self.setup.run_by.split_first()) {
            (None, None) => Command::new(PROGRAM),
            (None, Some((runner, arguments))) => {
                let mut command = Command::new(runner);
                command.args(arguments).arg(PROGRAM);
                command
            }
            (Some(most), _) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {most} && exec \"$@\""), "sh", PROGRAM]);
                shell
            }
        };
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TENURE_")) {
            command.env_remove(name);
        }
        if let Some(failpoint) = &self.setup.failpoint {
            command.env("TENURE_FAILPOINT", failpoint);
            if self.setup.disarmed {
                command.env("TENURE_FAILPOINT_WHILE", self.armed());
            }
        }
        command
            .args(["serve", "--bind", &self.address.to_string(), "--durability", self.setup.durability])
            .arg("--data-dir")
            .arg(&self.directory)
            // The smallest: they are filled with zeros ahead, and no test writes much.
            .args(["--segment-bytes", "256KiB"])
            .args(&self.setup.args)
            .env("TENURE_LOG", self.setup.log)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server binary starts");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        self.child = Some(child);
        let (tell, told) = mpsc::channel();
        self.readers.push(std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody listens any more once the first line was read.
                let _ = tell.send(line);
            }
        }));
        let kept = Arc::clone(&self.stderr);
        self.readers.push(std::thread::spawn(move || keep(stderr, &kept)));
        told
    }

    /// Starts it on an address of the caller's.
    ///
    /// # Errors
    /// As [`launch`](Server::launch).
    pub(crate) fn launch_at(&mut self, address: SocketAddr) -> Result<(), Exit> {
        self.address = address;
        self.launch()
    }

    /// Starts it; it must come to serve.
    pub(crate) fn must_launch(&mut self) {
        if let Err(exit) = self.launch() {
            panic!("the server did not start: {}\n{}", exit.status, exit.stderr);
        }
    }

    /// Starts it again on the same address and directory, without a failpoint.
    pub(crate) fn start_again(&mut self) {
        self.setup.failpoint = None;
        self.must_launch();
    }

    /// From now on the failpoint acts.
    pub(crate) fn arm(&self) {
        fs::write(self.armed(), "").unwrap();
    }

    /// From now on it does not.
    pub(crate) fn disarm(&self) {
        fs::remove_file(self.armed()).unwrap();
    }

    /// The file that arms the failpoint, beside the data directory.
    fn armed(&self) -> PathBuf {
        self.directory.with_extension("armed")
    }

    /// SIGKILL, and a new start.
    pub(crate) fn kill_and_restart(&mut self) {
        self.kill();
        self.start_again();
    }

    /// SIGKILL. Returns when the process is gone.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ended();
    }

    /// SIGTERM. Returns how it ended.
    pub(crate) fn terminate(&mut self) -> Exit {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Whether it ended by itself, and how.
    pub(crate) fn fallen(&mut self) -> Option<Exit> {
        self.child.as_mut()?.try_wait().unwrap()?;
        Some(self.ended())
    }

    /// Whether a process is there.
    pub(crate) fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Waits for its end and gives how it was.
    pub(crate) fn ended(&mut self) -> Exit {
        let mut child = self.child.take().expect("it was started");
        let status = poll_until("the end of the server process", || child.try_wait().unwrap());
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        Exit { status, stderr: self.stderr.lock().unwrap().clone() }
    }

    /// The most memory that it has had so far, in KiB.
    pub(crate) fn memory_peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// The memory that it has now, in KiB.
    pub(crate) fn memory_now(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, line: &str) -> u64 {
        let pid = self.child.as_ref().expect("it runs").id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let kib = status.lines().find_map(|told| told.strip_prefix(line)).unwrap();
        kib.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// What it has said on stderr so far, over all its starts.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// The path of a file as the server keeps it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join("files").join(name)
    }

    /// The path of the snapshot.
    pub(crate) fn snapshot(&self) -> PathBuf {
        self.directory.join("server_state.json")
    }

    /// The segments of the journal, oldest first by name.
    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.directory.join("journal")).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended already; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let said = self.stderr();
            let from = said.char_indices().rev().nth(6_000).map_or(0, |(at, _)| at);
            println!("--- the end of what the server said ---\n{}", &said[from..]);
        }
    }
}

/// An address of 127.0.0.0/8 that no other server of this run has, so that its port is still free after a crash: clients
/// take their ports on 127.0.0.1.
fn own_loopback() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    let [.., high, low] = process.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 64 + high % 128, low, 1 + (number % 250) as u8), 0))
}

/// Keeps the last part of what a process says.
fn keep(mut from: impl Read, kept: &Mutex<String>) {
    const MOST: usize = 1 << 20;
    let mut buffer = [0; 8192];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut kept = kept.lock().unwrap();
        if kept.len() > MOST {
            kept.clear();
        }
        kept.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
}

/// Copies a directory with everything in it, permissions included.
fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_directory(&entry.path(), &target),
            false => {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}
