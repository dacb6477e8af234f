//! Closed-loop clients in one thread: each has a socket and a session of its own, and one request on its way.
//!
//! They know just enough of the protocol: they write requests from prepared pieces, with a checksum and `ack`, and look
//! for the fields they need in the reply.

use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{ClockId, clock_gettime};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A request without a reply is sent again after this, and counts as an error.
const RESEND_AFTER: Duration = Duration::from_secs(1);

/// How often requests without a reply are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long the replies that are still on their way get at the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many locks [`Work::Several`] asks for at once, and out of how many.
pub(crate) const TOGETHER: usize = 3;
/// See [`TOGETHER`].
pub(crate) const NAMES: usize = 1_000;

/// What a client asks for, again and again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Acquire and release a lock of its own.
    Cycle,
    /// Read one key.
    Get,
    /// Whatever comes back will do.
    Echo,
    /// Acquire several locks that are drawn anew each time, waiting for them, and release them at once.
    Several,
    /// Acquire the one lock that all want, waiting for it, and release it at once.
    HandOff,
}

impl Work {
    /// Its name in `--only`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Work::Cycle => "cycle",
            Work::Get => "get",
            Work::Echo => "echo",
            Work::Several => "several",
            Work::HandOff => "hand-off",
        }
    }
}

/// A client with at most one request on its way.
pub(crate) struct Client {
    socket: UdpSocket,
    work: Work,
    session: String,
    /// The parameter that names what it asks for.
    named: String,
    draw: fastrand::Rng,
    id: u64,
    /// The grant to release next.
    token: Option<u64>,
    request: Vec<u8>,
    /// When the request was sent for the first time, and last.
    sent: Instant,
    sent_last: Instant,
    cycle_began: Instant,
    waiting: bool,
    /// Whether the request stood in line.
    in_line: bool,
}

/// What a load has measured. Times in nanoseconds, sorted.
pub(crate) struct Figures {
    /// The time of each round trip.
    pub(crate) round_trips: Vec<u64>,
    /// The time of each cycle.
    pub(crate) cycles: Vec<u64>,
    /// The time to each grant that may have been waited for.
    pub(crate) grants: Vec<u64>,
    /// How many of those were told that they stand in line.
    pub(crate) stood_in_line: u64,
    /// The time from each release to the grant of whoever was next.
    pub(crate) hand_offs: Vec<u64>,
    /// Requests sent again after a second. (An error reply ends the run.)
    pub(crate) errors: u64,
    /// CPU time of the server for each round trip, in microseconds.
    pub(crate) server_cpu: f64,
    /// How much of its core the load used, 0 to 1.
    pub(crate) load_busy: f64,
    seconds: f64,
}

impl Figures {
    /// Round trips a second.
    pub(crate) fn rate(&self) -> f64 {
        self.round_trips.len() as f64 / self.seconds
    }

    /// Cycles a second.
    pub(crate) fn cycle_rate(&self) -> f64 {
        self.cycles.len() as f64 / self.seconds
    }

    /// Grants a second.
    pub(crate) fn grant_rate(&self) -> f64 {
        self.grants.len() as f64 / self.seconds
    }
}

/// The time below which this part of the sorted samples is, in microseconds.
pub(crate) fn quantile(sorted: &[u64], part: f64) -> f64 {
    let index = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(f64::NAN, |&nanos| nanos as f64 / 1e3)
}

impl Client {
    /// A client of the server there, with a session of its own.
    ///
    /// # Errors
    /// A sentence, if the server does not open one.
    pub(crate) fn open(server: SocketAddr, work: Work, number: usize) -> Result<Client, String> {
        let socket = connect(server)?;
        let session = match work {
            Work::Cycle | Work::Get | Work::Several | Work::HandOff => open_session(&socket, number, 60_000)?,
            Work::Echo => "0".repeat(32),
        };
        if work == Work::Get {
            let set = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"set","params":{{"session":"{session}","key":"bench/read","value":"blue"}}}}"#
            );
            call(&socket, &set)?;
        }
        socket.set_nonblocking(true).map_err(|error| error.to_string())?;
        let named = match work {
            Work::Cycle => format!(r#""key":"bench/own/{number}""#),
            Work::Get | Work::Echo => r#""key":"bench/read""#.to_owned(),
            Work::HandOff => r#""key":"bench/wanted""#.to_owned(),
            Work::Several => String::new(),
        };
        let now = Instant::now();
        Ok(Client {
            socket: UdpSocket::from_std(socket),
            work,
            session,
            named,
            draw: fastrand::Rng::with_seed(number as u64),
            id: 1,
            token: None,
            request: Vec::with_capacity(512),
            sent: now,
            sent_last: now,
            cycle_began: now,
            waiting: false,
            in_line: false,
        })
    }

    /// Writes the next request and sends it.
    fn ask(&mut self) -> io::Result<()> {
        self.id += 1;
        if self.work == Work::Several && self.token.is_none() {
            self.draw_locks();
        }
        let Client { id, session, named, request, .. } = self;
        request.clear();
        match (self.work, self.token) {
            (Work::Get | Work::Echo, _) => write!(
                request,
                r#"{{"jsonrpc":"2.0","id":{id},"method":"get","params":{{"session":"{session}",{named}}}}}"#
            ),
            (Work::Cycle, None) => write!(
                request,
                r#"{{"jsonrpc":"2.0","id":{id},"method":"acquire_lock","params":{{"session":"{session}","ack":{id},{named}}}}}"#
            ),
            (Work::Cycle, Some(token)) => write!(
                request,
                r#"{{"jsonrpc":"2.0","id":{id},"method":"release_lock","params":{{"session":"{session}","ack":{id},"token":{token}}}}}"#
            ),
            (Work::Several | Work::HandOff, None) => write!(
                request,
                r#"{{"jsonrpc":"2.0","id":{id},"method":"acquire_lock","params":{{"session":"{session}","ack":{id},{named},"wait_ms":60000}}}}"#
            ),
            // Also names the wait whose answer it has.
            (Work::Several | Work::HandOff, Some(token)) => write!(
                request,
                r#"{{"jsonrpc":"2.0","id":{id},"method":"release_lock","params":{{"session":"{session}","ack":{id},"got":[{}],"token":{token}}}}}"#,
                *id - 1
            ),
        }?;
        add_checksum(request)?;
        self.sent = Instant::now();
        self.sent_last = self.sent;
        self.waiting = true;
        self.in_line = false;
        if self.token.is_none() {
            self.cycle_began = self.sent;
        }
        self.send()
    }

    /// Draws the locks to ask for next, each once.
    fn draw_locks(&mut self) {
        let mut drawn = [0; TOGETHER];
        for nth in 0..TOGETHER {
            drawn[nth] = loop {
                let name = self.draw.usize(..NAMES);
                if !drawn[..nth].contains(&name) {
                    break name;
                }
            };
        }
        let names = drawn.map(|name| format!(r#""bench/several/{name:03}""#));
        self.named = format!(r#""keys":[{}]"#, names.join(","));
    }

    fn send(&self) -> io::Result<()> {
        match self.socket.send(&self.request) {
            // A full socket is a lost datagram: it is sent again after a second, and counts.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes a datagram. None if it is not the reply that is waited for; else whether it is what was asked for.
    fn take(&mut self, bytes: &[u8]) -> Option<bool> {
        if !self.waiting || number_after(bytes, br#""id":"#) != Some(self.id) {
            return None;
        }
        if matches!(self.work, Work::Several | Work::HandOff)
            && find(bytes, br#""method":"pending""#).is_some()
        {
            self.in_line = true;
            return None;
        }
        let good = match (self.work, self.token) {
            (Work::Echo, _) => true,
            (Work::Get, _) => find(bytes, br#""found":true"#).is_some(),
            (Work::Cycle | Work::Several | Work::HandOff, None) => {
                self.token = number_after(bytes, br#""token":"#);
                self.token.is_some() && find(bytes, br#""granted":true"#).is_some()
            }
            (Work::Cycle | Work::Several | Work::HandOff, Some(_)) => {
                self.token = None;
                find(bytes, br#""released":true"#).is_some()
            }
        };
        self.waiting = false;
        Some(good)
    }
}

/// Lets the clients work for a quarter of the time unmeasured, then for the time. `server_cpu` tells the CPU time that
/// the server has used, in microseconds.
///
/// # Errors
/// A sentence, if a socket fails or the server refuses.
pub(crate) fn run(
    clients: &mut [Client],
    time: Duration,
    server_cpu: &dyn Fn() -> f64,
) -> Result<Figures, String> {
    drive(clients, time, server_cpu).map_err(|error| format!("the load ended: {error}"))
}

fn drive(clients: &mut [Client], time: Duration, server_cpu: &dyn Fn() -> f64) -> io::Result<Figures> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(clients.len());
    for (number, client) in clients.iter_mut().enumerate() {
        poll.registry().register(&mut client.socket, Token(number), Interest::READABLE)?;
        client.ask()?;
    }
    let mut figures = Figures {
        round_trips: Vec::with_capacity(1 << 20),
        cycles: Vec::with_capacity(1 << 20),
        grants: Vec::new(),
        stood_in_line: 0,
        hand_offs: Vec::new(),
        errors: 0,
        server_cpu: 0.0,
        load_busy: 0.0,
        seconds: 0.0,
    };
    let mut buffer = [0; 2048];
    let mut began = Instant::now();
    let mut looked = began;
    let mut measured_from = None;
    let mut released = None;
    loop {
        poll.poll(&mut events, Some(LOOK_EVERY))?;
        for event in &events {
            let client = &mut clients[event.token().0];
            loop {
                let bytes = match client.socket.recv(&mut buffer) {
                    Ok(length) => &buffer[..length],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                let Some(good) = client.take(bytes) else { continue };
                if !good {
                    return Err(io::Error::other(format!(
                        "the server says {}",
                        String::from_utf8_lossy(bytes)
                    )));
                }
                let now = Instant::now();
                figures.round_trips.push((now - client.sent).as_nanos() as u64);
                if client.work == Work::Cycle && client.token.is_none() {
                    figures.cycles.push((now - client.cycle_began).as_nanos() as u64);
                }
                let fights = matches!(client.work, Work::Several | Work::HandOff);
                let granted = fights && client.token.is_some();
                if granted {
                    figures.grants.push((now - client.sent).as_nanos() as u64);
                    figures.stood_in_line += u64::from(client.in_line);
                }
                client.ask()?;
                if granted && client.work == Work::HandOff {
                    // What the client has just sent is its release.
                    if let Some(released) = released.replace(client.sent) {
                        figures.hand_offs.push((now - released).as_nanos() as u64);
                    }
                }
            }
        }
        let now = Instant::now();
        if now - looked >= LOOK_EVERY {
            looked = now;
            figures.errors += resend(clients, now)?;
        }
        match measured_from {
            None if now - began >= time / 4 => {
                figures.round_trips.clear();
                figures.cycles.clear();
                figures.grants.clear();
                figures.stood_in_line = 0;
                figures.hand_offs.clear();
                figures.errors = 0;
                began = now;
                measured_from = Some((server_cpu(), thread_cpu_seconds()));
            }
            Some((server_from, own_from)) if now - began >= time => {
                figures.seconds = (now - began).as_secs_f64();
                figures.server_cpu = (server_cpu() - server_from) / figures.round_trips.len() as f64;
                figures.load_busy = (thread_cpu_seconds() - own_from) / figures.seconds;
                break;
            }
            _ => {}
        }
    }
    figures.round_trips.sort_unstable();
    figures.cycles.sort_unstable();
    figures.grants.sort_unstable();
    figures.hand_offs.sort_unstable();
    Ok(figures)
}

/// Sends again what has waited for too long; how many those were.
fn resend(clients: &mut [Client], now: Instant) -> io::Result<u64> {
    let mut late = 0;
    for client in clients {
        if client.waiting && now.saturating_duration_since(client.sent_last) >= RESEND_AFTER {
            client.sent_last = now;
            client.send()?;
            late += 1;
        }
    }
    Ok(late)
}

/// CPU time that this thread has used.
pub(crate) fn thread_cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// A socket that hears this server and nobody else.
pub(crate) fn connect(server: SocketAddr) -> Result<std::net::UdpSocket, String> {
    let bind = || {
        let socket = std::net::UdpSocket::bind((server.ip(), 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(RESEND_AFTER))?;
        Ok(socket)
    };
    bind().map_err(|error: io::Error| format!("no socket for a client: {error}"))
}

/// Opens a session; its id.
pub(crate) fn open_session(
    socket: &std::net::UdpSocket,
    number: usize,
    ttl_ms: u64,
) -> Result<String, String> {
    let reply = call(
        socket,
        &format!(
            r#"{{"jsonrpc":"2.0","id":0,"method":"open_session","params":{{"nonce":"{:032x}","ttl_ms":{ttl_ms}}}}}"#,
            number + 1
        ),
    )?;
    let id = reply["result"]["session"].as_str().ok_or_else(|| format!("no session: {reply}"))?;
    Ok(id.to_owned())
}

/// Sends one request, or a batch, until a reply comes.
///
/// # Errors
/// A sentence, if none comes or it is an error.
pub(crate) fn call(socket: &std::net::UdpSocket, request: &str) -> Result<serde_json::Value, String> {
    let mut bytes = request.as_bytes().to_vec();
    add_checksum(&mut bytes).map_err(|error| error.to_string())?;
    let mut buffer = vec![0; 65_536];
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        socket.send(&bytes).map_err(|error| format!("the server cannot be asked: {error}"))?;
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let json = buffer[..length].split(|&byte| byte == b'\n').next().unwrap_or_default();
        let reply: serde_json::Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if reply.get("error").is_some() {
            return Err(format!("the server says {reply}"));
        }
        return Ok(reply);
    }
    Err(format!("no reply to {request}"))
}

/// Adds the checksum trailer.
fn add_checksum(datagram: &mut Vec<u8>) -> io::Result<()> {
    let checksum = crc32c::crc32c(datagram);
    write!(datagram, "\n{checksum:08x}")
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}

fn number_after(bytes: &[u8], text: &[u8]) -> Option<u64> {
    let digits = &bytes[find(bytes, text)? + text.len()..];
    let length = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    std::str::from_utf8(&digits[..length]).ok()?.parse().ok()
}
