//! A live server in a fresh directory, the sockets of its clients, and a bad line between them.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long an answer may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running server; dropped, it is killed and its directory goes.
pub(crate) struct Server {
    child: Child,
    directory: TempDir,
    /// Where clients reach it.
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts a server that its clients reach at this address of the machine.
    ///
    /// # Errors
    /// A sentence with what it printed, if it does not say that it listens.
    pub(crate) fn start(ip: IpAddr) -> Result<Server, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (child, address) = spawn(&directory, SocketAddr::new(ip, 0))?;
        Ok(Server { child, directory, address })
    }

    /// Kills the server with SIGKILL and starts it again on the same directory and port.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub(crate) fn restart(&mut self) -> Result<(), String> {
        self.kill();
        (self.child, self.address) = spawn(&self.directory, self.address)?;
        Ok(())
    }

    /// Kills the server with SIGKILL, for good. Gives its data directory, which goes with this value.
    #[allow(dead_code, reason = "for tests that read the journal")]
    pub(crate) fn stopped(&mut self) -> PathBuf {
        self.kill();
        self.directory.path().join("data")
    }

    /// The socket of a new client: it hears this server and nobody else.
    pub(crate) fn client(&self) -> UdpSocket {
        let socket = UdpSocket::bind((self.address.ip(), 0)).expect("a free port");
        socket.connect(self.address).expect("an address of this machine");
        socket
    }

    fn kill(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("the server is our own child");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(directory: &TempDir, address: SocketAddr) -> Result<(Child, SocketAddr), String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenure"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TENURE_") {
            command.env_remove(name);
        }
    }
    command.args(["serve", "--bind", &address.to_string(), "--data-dir"]).arg(directory.path().join("data"));
    if !address.ip().is_loopback() {
        command.arg("--insecure");
    }
    let errors = directory.path().join("stderr");
    let stderr = std::fs::File::create(&errors).map_err(|error| error.to_string())?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
    let mut child = command.spawn().map_err(|error| format!("the server did not start: {error}"))?;
    let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        // Reads on after the line it waits for, so that the server never writes into a closed pipe.
        for line in stdout.lines().map_while(Result::ok) {
            if let Some(address) = line.strip_prefix("listening on ") {
                let _ = tell.send(address.trim().parse::<SocketAddr>());
            }
        }
    });
    match told.recv_timeout(PATIENCE) {
        Ok(Ok(listening)) => Ok((child, SocketAddr::new(address.ip(), listening.port()))),
        _ => {
            let _ = child.kill();
            let ended = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
            let said = std::fs::read_to_string(&errors).unwrap_or_default();
            Err(format!("the server did not say `listening on ADDRESS:PORT` ({ended}); it said: {said}"))
        }
    }
}

/// The next datagram, if one comes in time.
pub(crate) fn receive(socket: &UdpSocket, time: Duration) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 65_535];
    socket.set_read_timeout(Some(time.max(Duration::from_millis(1)))).expect("a time above 0");
    let length = socket.recv(&mut bytes).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

/// The next datagram, waited for as long as is reasonable.
pub(crate) fn receive_soon(socket: &UdpSocket) -> Option<Vec<u8>> {
    receive(socket, PATIENCE)
}

/// Sends a request and gives the reply of the same id; notifications and late copies are passed over.
pub(crate) fn call(socket: &UdpSocket, request: &str) -> Value {
    socket.send(request.as_bytes()).expect("the server listens");
    let sent: Value = serde_json::from_str(request).expect("a request is JSON");
    let deadline = Instant::now() + PATIENCE;
    while let Some(bytes) = receive(socket, deadline.saturating_duration_since(Instant::now())) {
        let reply: Value = serde_json::from_slice(&bytes).expect("a reply is JSON");
        if reply.get("id") == sent.get("id") {
            return reply;
        }
    }
    panic!("no reply to {request}");
}

/// An address of this machine that is not a loopback address, if it has one. Nothing is sent to find out.
pub(crate) fn outside_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(203, 0, 113, 1), 9)).ok()?;
    socket
        .local_addr()
        .ok()
        .map(|address| address.ip())
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

/// A line between one client and the server that loses every other datagram and doubles the rest, both ways.
pub(crate) struct BadLine {
    /// What the client takes for the server.
    pub(crate) address: SocketAddr,
    cut: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl BadLine {
    /// Lays the line.
    pub(crate) fn to(server: SocketAddr) -> BadLine {
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
        let back = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
        let address = front.local_addr().expect("the socket is bound");
        let client = Arc::new(Mutex::new(None));
        let cut = Arc::new(AtomicBool::new(false));
        let carry = |from: &Arc<UdpSocket>, to: &Arc<UdpSocket>, to_server: bool| {
            let (from, to, client, cut) =
                (Arc::clone(from), Arc::clone(to), Arc::clone(&client), Arc::clone(&cut));
            from.set_read_timeout(Some(Duration::from_millis(20))).expect("a time above 0");
            thread::spawn(move || {
                let (mut bytes, mut lose) = (vec![0; 65_535], true);
                while !cut.load(Ordering::Relaxed) {
                    let Ok((length, sender)) = from.recv_from(&mut bytes) else { continue };
                    let mut client = client.lock().expect("the other thread does not panic");
                    let target = if to_server {
                        client.replace(sender).map_or(server, |_| server)
                    } else {
                        client.expect("the server answers nobody who has not asked")
                    };
                    for _ in 0..if lose { 0 } else { 2 } {
                        let _ = to.send_to(&bytes[..length], target);
                    }
                    lose = !lose;
                }
            })
        };
        let threads = vec![carry(&front, &back, true), carry(&back, &front, false)];
        BadLine { address, cut, threads }
    }
}

impl Drop for BadLine {
    fn drop(&mut self) {
        self.cut.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
