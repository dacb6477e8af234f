//! The servers: each started in a directory of its own, on the servers' core, and ended by its process.

use crate::machine::Cores;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a start may take. A JVM on a busy core takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where Debian puts ZooKeeper.
const ZOOKEEPER_JAR: &str = "/usr/share/java/zookeeper.jar";

/// What can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// `always` syncs each write before its answer; else nothing is written at all.
    Redis { always: bool },
    /// Syncs each commit; it cannot be told otherwise.
    Etcd,
    /// Likewise, as it comes.
    ZooKeeper,
}

impl System {
    /// The package of Debian, and what it brings.
    fn package(self) -> (&'static str, &'static str) {
        match self {
            System::Redis { .. } => ("redis-server", "redis-server"),
            System::Etcd => ("etcd-server", "etcd"),
            System::ZooKeeper => ("zookeeper", "java"),
        }
    }

    /// Why it cannot be measured here, if it cannot.
    pub fn missing(self) -> Option<String> {
        let (package, program) = self.package();
        let is_there =
            find(program).is_some() && (self != System::ZooKeeper || Path::new(ZOOKEEPER_JAR).exists());
        (!is_there)
            .then(|| format!("{package} is not installed: apt-get install --no-install-recommends {package}"))
    }
}

/// A program on the path; Debian has daemons in `sbin`.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    places.map(|place| place.join(program)).find(|path| path.is_file())
}

/// A running server. Dropped, it is killed, and its directory goes.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    /// From the start of the process until it took requests.
    pub took: Duration,
    /// Where its data is; none if that belongs to somebody else.
    _dir: Option<TempDir>,
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts one of the peers.
    ///
    /// # Errors
    /// A sentence with what it printed, if it does not take requests.
    pub fn start(system: System, parent: &Path, cores: &Cores) -> Result<Server, String> {
        let dir = fresh_dir(parent)?;
        let address = free_address()?;
        let mut command = match system {
            System::Redis { always } => redis(address, dir.path(), always),
            System::Etcd => etcd(address, dir.path())?,
            System::ZooKeeper => zookeeper(address, dir.path())?,
        };
        let said = dir.path().join("said");
        let output = File::create(&said).and_then(|file| Ok((file.try_clone()?, file)));
        let (stdout, stderr) = output.map_err(|error| error.to_string())?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).current_dir(dir.path());
        let began = Instant::now();
        let child = cores.on_the_servers(|| command.spawn());
        let child = child.map_err(|error| format!("{system:?} did not start: {error}"))?;
        let mut server = Server { child, address, took: Duration::ZERO, _dir: Some(dir) };
        let (question, answer): (&[u8], &str) = match system {
            System::Redis { .. } => (b"PING\r\n", "+PONG"),
            System::Etcd => (b"GET /health HTTP/1.0\r\n\r\n", "\"true\""),
            System::ZooKeeper => (b"srvr", "Mode:"),
        };
        while !answers(address, question, answer) {
            let ended = server.child.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || began.elapsed() > PATIENCE {
                let said = fs::read_to_string(&said).unwrap_or_default();
                return Err(format!("{system:?} takes no requests; it said: {}", last(&said)));
            }
            thread::sleep(Duration::from_millis(10));
        }
        server.took = began.elapsed();
        Ok(server)
    }

    /// Starts Tenure with its data in `data`.
    ///
    /// # Errors
    /// A sentence with what it printed, if it does not say that it listens.
    pub fn tenure(program: &Path, data: &Path, flags: &[&str], cores: &Cores) -> Result<Server, String> {
        let mut command = Command::new(program);
        without_variables(&mut command);
        command.args(["serve", "--bind", "127.0.0.1:0", "--data-dir"]).arg(data).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let child = cores.on_the_servers(|| command.spawn());
        let mut child = child.map_err(|error| format!("{} did not start: {error}", program.display()))?;
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let (tell, told) = mpsc::channel();
        let tell_end = tell.clone();
        // Both are read to their ends, so that the server never writes into a full or closed pipe.
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("listening on ") {
                    let _ = tell.send((
                        began.elapsed(),
                        address.trim().parse::<SocketAddr>().map_err(|error| error.to_string()),
                    ));
                }
            }
        });
        thread::spawn(move || {
            let mut said = Vec::new();
            let _ = stderr.read_to_end(&mut said);
            let _ = tell_end.send((Duration::ZERO, Err(last(&String::from_utf8_lossy(&said)).to_owned())));
        });
        let mut server = Server {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            took: Duration::ZERO,
            _dir: None,
        };
        match told.recv_timeout(PATIENCE) {
            Ok((took, Ok(address))) => {
                (server.address, server.took) = (address, took);
                Ok(server)
            }
            Ok((_, Err(said))) => Err(format!("the server ended; it said: {said}")),
            Err(_) => Err(format!("the server did not say `listening on ADDRESS:PORT` for {PATIENCE:?}")),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory that goes when the measurement is over.
pub fn fresh_dir(parent: &Path) -> Result<TempDir, String> {
    tempfile::Builder::new()
        .prefix("peers-")
        .tempdir_in(parent)
        .map_err(|error| format!("no fresh directory in {}: {error}", parent.display()))
}

/// Variables of whoever runs this are not to change what is measured.
pub fn without_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TENURE_") {
            command.env_remove(name);
        }
    }
}

/// Where nobody listens right now.
fn free_address() -> Result<SocketAddr, String> {
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    address.map_err(|error| format!("no free port: {error}"))
}

fn answers(address: SocketAddr, question: &[u8], answer: &str) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(question)?;
        let mut read = Vec::new();
        let mut buffer = [0; 4_096];
        while !String::from_utf8_lossy(&read).contains(answer) {
            match stream.read(&mut buffer)? {
                0 => return Ok(false),
                length => read.extend_from_slice(&buffer[..length]),
            }
        }
        Ok(true)
    };
    ask().unwrap_or(false)
}

/// The end of what a server printed.
fn last(said: &str) -> &str {
    let from = said.char_indices().rev().nth(600).map_or(0, |(at, _)| at);
    &said[from..]
}

fn redis(address: SocketAddr, dir: &Path, always: bool) -> Command {
    let mut command = Command::new(find("redis-server").unwrap_or_else(|| "redis-server".into()));
    command.args([
        "--bind",
        "127.0.0.1",
        "--port",
        &address.port().to_string(),
        "--save",
        "",
        "--daemonize",
        "no",
    ]);
    command.arg("--dir").arg(dir);
    command.args(if always { ["--appendonly", "yes"] } else { ["--appendonly", "no"] });
    if always {
        command.args(["--appendfsync", "always"]);
    }
    command
}

fn etcd(address: SocketAddr, dir: &Path) -> Result<Command, String> {
    let client = format!("http://{address}");
    let peer = format!("http://{}", free_address()?);
    let mut command = Command::new(find("etcd").unwrap_or_else(|| "etcd".into()));
    command
        .args(["--name", "one", "--logger", "zap", "--log-level", "error", "--data-dir"])
        .arg(dir.join("data"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("one={peer}"), "--initial-cluster-state", "new"]);
    Ok(command)
}

fn zookeeper(address: SocketAddr, dir: &Path) -> Result<Command, String> {
    let file = dir.join("zoo.cfg");
    let configuration = format!(
        "tickTime=2000\ndataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\nmaxClientCnxns=0\n\
         admin.enableServer=false\n4lw.commands.whitelist=srvr\n",
        dir.join("data").display(),
        address.port()
    );
    fs::write(&file, configuration)
        .map_err(|error| format!("{} cannot be written: {error}", file.display()))?;
    let mut command = Command::new(find("java").unwrap_or_else(|| "java".into()));
    command.args(["-Xms512m", "-Xmx1g", "-cp", ZOOKEEPER_JAR]);
    command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(file);
    Ok(command)
}
