//! The server: one mio loop that owns the socket and the node, and the threads beside it.
//!
//! ```text
//!  socket ──► loop ◄── waker ◄── expiry thread (deadlines), journal (commits), image (files), signals
//!               │
//!               ├─► journal thread      batches: write, sync
//!               └─► image thread        files: write, read, sync
//! ```
//!
//! One turn: wait; read what has come (at most a buffer of it, all at one moment of log time); take in commits and what
//! became of files; let time pass; hand over the next batch and work for the files; send. Nothing here waits but the poll.
//!
//! Time moves past a deadline only when the socket was found empty, or a whole buffer of it was read, after the deadline
//! had come: so a sign of life that waited in the socket is heard before anything expires. What is heard gives life from
//! the moment at which it was read, however long that time stood.

use crate::clock::LogClock;
use crate::command::Durability;
use crate::expiry::Alarm;
use crate::failpoint;
use crate::fold;
use crate::identity::Op;
use crate::image::record::Record;
use crate::image::{Event as ImageEvent, Handle as ImageHandle, Image, Look};
use crate::journal::{FileLog, JournalConfig};
use crate::limits::{DATAGRAM_MAX, Limits};
use crate::log::{Log, LogEvent};
use crate::node::{FileWork, Node};
use crate::proof::Secrets;
use crate::recovery;
use crate::snapshot::ServerId;
use crate::storage::DataDir;
use crate::time::Time;
use mio::net::{UdpSocket, UnixStream};
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SOCKET: Token = Token(0);
const WAKER: Token = Token(1);
const SIGNALS: Token = Token(2);

/// What the socket's receive buffer should hold: some 10,000 small datagrams, so that a stall of a second with a thousand
/// clients loses no heartbeat. (The default of 212,992 bytes holds 256.)
const RECEIVE_BUFFER: usize = 4 << 20;

/// At least so much of the buffer is taken by a datagram, however short it is. (832 bytes of a buffer that the kernel
/// makes twice as large as it was asked.)
const DATAGRAM_SHARE: usize = 256;

/// Datagrams read in one turn before the log and the clock get theirs.
const DATAGRAMS_A_TURN: usize = 512;

/// How long a stop waits for what is on its way.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// Files that must be allowed to be open: the image keeps 256, the rest is the server's own.
const OPEN_FILES_MIN: u64 = 320;

/// How often figures that cost something to read are read.
const GAUGES_EVERY: Duration = Duration::from_secs(1);

/// How to run a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to serve; port 0 lets the system choose one.
    pub bind: SocketAddr,
    /// Where everything durable is.
    pub data_dir: PathBuf,
    /// What acknowledged means.
    pub durability: Durability,
    /// The caps.
    pub limits: Limits,
    /// Bytes of a journal segment.
    pub segment_bytes: u64,
    /// A new snapshot is written when the journal has grown by so many segments' worth of bytes.
    pub fold_segments: u64,
}

/// Runs a server until SIGTERM or SIGINT; `on_ready` is called once, with the address, when it answers.
///
/// # Errors
/// A sentence that says what, where, what to do. A server that could not start has changed nothing; one that had to stop
/// has told nobody anything that its disk does not hold.
pub fn run(config: &Config, on_ready: &mut dyn FnMut(SocketAddr)) -> Result<(), String> {
    let socket = bind(config.bind)?;
    let address =
        socket.local_addr().map_err(|error| format!("cannot tell the address of the socket: {error}"))?;
    let mut server = Server::start(config, socket)?;
    // The first batch holds `new_term`; until it is committed nothing else wakes the loop.
    server.hand_over()?;
    server.ends_at_once.store(false, Ordering::SeqCst);
    while !server.node.is_serving() && server.stopping.is_none() {
        server.turn(false)?;
    }
    if !server.node.is_serving() {
        return server.stop();
    }
    log::info!(
        "serving {address}, data in {}, durability {:?}, term {}, op {}",
        config.data_dir.display(),
        config.durability,
        server.node.state().head().term,
        server.node.state().op()
    );
    on_ready(address);
    while server.stopping.is_none() {
        server.turn(true)?;
    }
    server.stop()
}

/// Binds the socket, with as large a receive buffer as the system gives.
fn bind(address: SocketAddr) -> Result<UdpSocket, String> {
    let socket = std::net::UdpSocket::bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("{address} is in use: another server runs there; stop it, or choose another --bind")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{address} is not an address of this machine; choose another --bind")
        }
        io::ErrorKind::PermissionDenied => {
            format!("{address} may not be bound by this user (ports below 1024 belong to root); choose another --bind")
        }
        _ => format!("cannot bind {address}: {error}"),
    })?;
    let buffer = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)
        .or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER))
        .and_then(|()| rustix::net::sockopt::socket_recv_buffer_size(&socket));
    match buffer {
        Ok(bytes) if bytes >= RECEIVE_BUFFER => {}
        Ok(bytes) => log::warn!(
            "the socket buffers {bytes} bytes only, {RECEIVE_BUFFER} were asked for: raise net.core.rmem_max, or heartbeats \
             may be lost in bursts"
        ),
        Err(error) => log::warn!("the socket's receive buffer could not be set: {error}"),
    }
    socket
        .set_nonblocking(true)
        .map_err(|error| format!("cannot use the socket without waiting: {error}"))?;
    Ok(UdpSocket::from_std(socket))
}

/// The loop and all that it owns.
struct Server {
    poll: Poll,
    events: Events,
    socket: UdpSocket,
    /// The kernel's number of the socket, to find its drops by.
    socket_inode: Option<u64>,
    signals: UnixStream,
    /// Whether a signal ends the process where it is: before the loop runs, and once a stop is asked for. Whatever the disk
    /// keeps waiting then, nothing acknowledged is lost.
    ends_at_once: Arc<AtomicBool>,
    alarm: Alarm,
    clock: LogClock,
    node: Node,
    log: FileLog,
    image: ImageHandle,
    dir: Arc<DataDir>,
    server: ServerId,
    /// Log time of this turn.
    now: Time,
    /// Whether the socket may have more.
    readable: bool,
    /// How much of the socket's buffer was read since it was last found empty, at least.
    read_since_empty: usize,
    safe: Record,
    /// The last command that had work for the files.
    last_file_op: Op,
    gauges_read: Instant,
    /// Since when a stop is asked for.
    stopping: Option<Instant>,
    buffer: Vec<u8>,
}

impl Server {
    fn start(config: &Config, mut socket: UdpSocket) -> Result<Server, String> {
        let start_failed = |error: io::Error| format!("the server cannot start: {error}");
        allow_open_files()?;
        let dir = Arc::new(DataDir::open(&config.data_dir).map_err(|error| error.sentence)?);
        let began = Instant::now();
        let recovered = recovery::recover(&dir).map_err(|error| error.sentence)?;
        for note in &recovered.notes {
            log::warn!("{note}");
        }
        if let Some(cut) = &recovered.cut {
            log::warn!("{cut}");
        }
        if !recovered.fresh {
            log::info!(
                "recovered op {} of term {} in {} ms ({} stop; snapshot at op {})",
                recovered.state.op(),
                recovered.term,
                began.elapsed().as_millis(),
                if recovered.clean { "clean" } else { "unclean" },
                recovered.snapshot_op
            );
        }

        let poll = Poll::new().map_err(start_failed)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).map_err(start_failed)?);
        let wake = || -> Box<dyn Fn() + Send> {
            let waker = waker.clone();
            Box::new(move || {
                if let Err(error) = waker.wake() {
                    log::error!("the loop cannot be woken: {error}");
                }
            })
        };
        poll.registry().register(&mut socket, SOCKET, Interest::READABLE).map_err(start_failed)?;
        let ends_at_once = Arc::new(AtomicBool::new(true));
        let mut signals = signals(&ends_at_once).map_err(start_failed)?;
        poll.registry().register(&mut signals, SIGNALS, Interest::READABLE).map_err(start_failed)?;

        let journal = JournalConfig {
            durability: config.durability,
            segment_bytes: config.segment_bytes,
            fold_bytes: config.fold_segments.max(1).saturating_mul(config.segment_bytes),
            ..JournalConfig::default()
        };
        // The journal's tail is made durable before files are written from it.
        let log =
            FileLog::start(dir.clone(), &recovered.tail, &journal, wake()).map_err(|error| error.sentence)?;
        if recovered.fell_back {
            // Before any snapshot is written: it must not become the previous one, which is the good one.
            dir.put_damaged_aside().map_err(|error| error.sentence)?;
        }
        let files = recovered.state.parts().files;
        let (image, redone) = Image::recover(dir.path(), &files, recovered.redo, recovered.must_raise)
            .map_err(|error| {
                format!("the files in {} cannot be recovered: {error}", dir.files().display())
            })?;
        report_files(&redone);
        let image = image.start(wake()).map_err(start_failed)?;

        let clock = LogClock::new(recovered.state.at());
        let now = clock.now();
        let node = Node::new(
            now,
            recovered.state,
            config.limits.clone(),
            config.durability,
            recovered.must_raise,
            secrets()?,
            log.batch_bytes_max(),
        );
        let last_file_op = node.state().op();
        Ok(Server {
            poll,
            events: Events::with_capacity(16),
            socket_inode: socket_inode(&socket),
            socket,
            signals,
            ends_at_once,
            alarm: Alarm::start(wake()).map_err(start_failed)?,
            clock,
            node,
            log,
            image,
            dir,
            server: recovered.server,
            now,
            readable: false,
            read_since_empty: 0,
            safe: Record::default(),
            last_file_op,
            gauges_read: began,
            stopping: None,
            buffer: vec![0; DATAGRAM_MAX + 1],
        })
    }

    /// One turn of the loop. `read`: whether datagrams are read; before the term has begun they wait in the socket.
    fn turn(&mut self, read: bool) -> Result<(), String> {
        let asked = self.wait(read)?;
        let began = self.clock.now();
        if read {
            self.hear(began, asked)?;
        } else {
            self.now = self.now.max(began);
        }
        self.take_log_events()?;
        self.take_image_events();
        self.node.handle_timeout(self.now);
        self.hand_over()?;
        self.send()?;
        self.read_gauges();
        self.clock.worked(began);
        Ok(())
    }

    /// Waits until there is something to do. Gives the wake-up that was asked for.
    fn wait(&mut self, read: bool) -> Result<Option<Time>, String> {
        let asked = self.node.poll_timeout();
        let timeout = match asked {
            _ if read && self.readable => Some(Duration::ZERO),
            None => None,
            Some(asked) if asked <= self.clock.now() => Some(Duration::ZERO),
            Some(asked) => {
                let micros = self.clock.micros_until(asked);
                self.alarm.set(micros);
                // The alarm rings in time; this is for a thread that was starved.
                Some(Duration::from_micros(micros) + Duration::from_millis(5))
            }
        };
        // A stop waits for nothing longer than its patience.
        let patience = self.stopping.map(|since| STOP_PATIENCE.saturating_sub(since.elapsed()));
        let timeout = [timeout, patience].into_iter().flatten().min();
        let slept_from = self.clock.now();
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("the server cannot wait for input: {error}")),
        }
        // A deadline that had passed before the sleep is no reason to stop the clock.
        self.clock.slept(asked.map(|asked| asked.max(slept_from)));
        self.alarm.take_ring();
        let mut signalled = false;
        for event in &self.events {
            match event.token() {
                SOCKET => self.readable = true,
                SIGNALS => signalled = drain(&mut self.signals),
                _ => {}
            }
        }
        if signalled && self.stopping.is_none() {
            log::info!(
                "a signal asks the server to stop; another one ends it at once, and loses nothing acknowledged"
            );
            self.stopping = Some(Instant::now());
            self.ends_at_once.store(true, Ordering::SeqCst);
        }
        Ok(asked)
    }

    /// Reads what has come, and lets time pass up to `began`, when this turn did. If a deadline has come meanwhile, time
    /// stays just before it until the socket was read.
    fn hear(&mut self, began: Time, asked: Option<Time>) -> Result<(), String> {
        // It may have become readable between the waking up and now.
        self.readable |= asked.is_some_and(|asked| asked <= began);
        if self.read_since_empty == 0 {
            let up_to = asked.map_or(began, |asked| began.min(asked.just_before()));
            self.now = self.now.max(up_to);
        }
        if self.readable {
            self.read(began)?;
        }
        if self.read_since_empty == 0 || self.read_since_empty >= RECEIVE_BUFFER {
            self.now = self.now.max(began);
            self.read_since_empty = 0;
        }
        Ok(())
    }

    fn read(&mut self, began: Time) -> Result<(), String> {
        for _ in 0..DATAGRAMS_A_TURN {
            match self.socket.recv_from(&mut self.buffer) {
                Ok((bytes, from)) => {
                    self.read_since_empty += bytes.max(DATAGRAM_SHARE);
                    self.node.set_heard(self.clock.now_in_turn(began));
                    self.node.handle_datagram(self.now, from, &self.buffer[..bytes]);
                    // What is answered at once goes at once: a turn's replies together could be large.
                    self.send()?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    self.read_since_empty = 0;
                    return Ok(());
                }
                // What the network says of a datagram that was sent (ECONNREFUSED and the like) is no news: clients resend.
                Err(error) => log::debug!("the socket says: {error}"),
            }
        }
        Ok(())
    }

    fn take_log_events(&mut self) -> Result<(), String> {
        while let Some(event) = self.log.poll() {
            match event {
                LogEvent::Committed { seq } => {
                    self.node.handle_committed(self.now, seq);
                    self.send()?;
                }
                LogEvent::Room(room) => {
                    log::warn!("room on the disk for the journal: {room:?}");
                }
                LogEvent::FoldDue => {
                    // The image takes this for everything up to that command.
                    self.hand_over_files();
                    self.image.sync(self.node.state().op());
                    self.log.fold(self.safe.clone());
                }
                LogEvent::SnapshotDone { op } => {
                    log::info!("a snapshot of op {op} is written");
                    self.node.set_gauge("snapshot_op", op);
                }
                LogEvent::SnapshotFailed { sentence } => log::warn!("no snapshot was written: {sentence}"),
                LogEvent::Failed { sentence } => return Err(sentence),
            }
        }
        self.node.set_room(self.now, self.log.room());
        Ok(())
    }

    fn take_image_events(&mut self) {
        while let Some(event) = self.image.next_event() {
            take_image_event(&mut self.node, &mut self.safe, self.now, event);
        }
        self.node.set_file_bytes_pending(self.image.pending_bytes().saturating_sub(self.image.kept_bytes()));
    }

    /// Hands batches to the log and work to the files, as long as one leads to the other.
    fn hand_over(&mut self) -> Result<(), String> {
        loop {
            self.hand_over_files();
            match self.node.poll_batch() {
                Some(batch) => {
                    self.log.submit(batch);
                    // Tells the room that is left, too, before the next batch.
                    self.take_log_events()?;
                }
                None => return Ok(()),
            }
        }
    }

    fn hand_over_files(&mut self) {
        while let Some(work) = self.node.poll_file_work() {
            match work {
                FileWork::Apply(effect) => {
                    self.last_file_op = effect.op;
                    self.image.apply(effect);
                }
                FileWork::Read { tag, file, generation, offset, count, length } => {
                    self.image.read(tag, file, generation, offset, count, length);
                }
                FileWork::Look { tag, file, generation, length, checksum } => {
                    self.image.look(tag, Look { file, generation, length, checksum });
                }
            }
        }
    }

    fn send(&mut self) -> Result<(), String> {
        while let Some(transmit) = self.node.poll_transmit() {
            let hit = |point| failpoint::hit(point).map_err(|error| error.to_string());
            hit("server.before_reply")?;
            // A reply that the kernel does not take is a datagram lost: the client sends its request again.
            if let Err(error) = self.socket.send_to(&transmit.bytes, transmit.to) {
                log::debug!("a reply to {} was not sent: {error}", transmit.to);
            }
            hit("server.after_reply")?;
        }
        Ok(())
    }

    fn read_gauges(&mut self) {
        if self.gauges_read.elapsed() < GAUGES_EVERY {
            return;
        }
        self.gauges_read = Instant::now();
        self.node.set_gauge("stalls", self.clock.stalls());
        self.node.set_gauge("stalled_ms", self.clock.stalled_ms());
        self.node.set_gauge("file_bytes_pending", self.image.pending_bytes());
        self.node.set_gauge("file_bytes_kept", self.image.kept_bytes());
        self.node.set_gauge("file_faults", self.image.faults());
        if let Some(drops) = self.socket_inode.and_then(socket_drops) {
            self.node.set_socket_drops(drops);
        }
    }

    /// Stops: finishes what is on its way, refuses what is new, and leaves a snapshot of everything.
    fn stop(mut self) -> Result<(), String> {
        let asked = self.stopping.unwrap_or_else(Instant::now);
        self.node.drain();
        self.send()?;
        while !self.node.is_idle() && asked.elapsed() < STOP_PATIENCE {
            self.turn(true)?;
        }
        let Server { mut node, mut log, image, dir, server, now, mut safe, last_file_op, .. } = self;
        image.sync(node.state().op());
        let (events, ended) = image.stop(STOP_PATIENCE);
        for event in events {
            take_image_event(&mut node, &mut safe, now, event);
        }
        while let Some(batch) = node.poll_batch() {
            log.submit(batch);
        }
        log.close()?;
        while let Some(event) = log.poll() {
            if let LogEvent::Committed { seq } = event {
                node.handle_committed(now, seq);
            }
        }
        // What was committed only now has work that nobody does any more: the next start does it, from the journal.
        let late = node.poll_file_work().is_some();
        let files_safe = ended && !late && safe.kept.is_empty() && safe.op >= last_file_op;
        if !node.is_idle() || !files_safe {
            log::warn!(
                "stopped without a last snapshot, since some files are behind: the journal holds everything"
            );
            return Ok(());
        }
        let op = node.state().op();
        match fold::write_final(&dir, server, node.state(), Vec::new()) {
            Ok(()) => log::info!("stopped at op {op}; the snapshot holds everything"),
            Err(error) => log::warn!("stopped at op {op} without a last snapshot: {}", error.sentence),
        }
        Ok(())
    }
}

fn take_image_event(node: &mut Node, safe: &mut Record, now: Time, event: ImageEvent) {
    match event {
        ImageEvent::ReadDone { tag, result } => node.handle_file_read(tag, result),
        ImageEvent::Looked { tag, result } => {
            node.handle_file_look(now, tag, result.map(|looked| (looked.length, looked.checksum)));
        }
        ImageEvent::Fault { file, generation, reason } => {
            log::warn!("file {file:?}: {reason}");
            node.handle_file_fault(now, file, generation, reason);
        }
        ImageEvent::Room { full } => {
            match full {
                true => log::warn!(
                    "the files' disk is full: writes to them wait, and new appends are refused, until there is room"
                ),
                false => log::info!("the files' disk has room again: all that waited is written"),
            }
            node.set_files_full(full);
            node.set_gauge("files_full", full.into());
        }
        ImageEvent::Watermark(record) => *safe = record,
    }
}

fn report_files(redone: &crate::image::Recovery) {
    if redone.redone > 0 {
        log::info!("{} writes to files were done again", redone.redone);
    }
    for cut in &redone.cut {
        log::warn!(
            "file {:?} had {} bytes and was cut to the {} that the journal has: the last stop was unclean, and the \
             durability was not sync",
            cut.file,
            cut.from,
            cut.to
        );
    }
}

/// Takes as many open files as the system gives. Too few would show in the middle of the work, as a disk that fails.
fn allow_open_files() -> Result<(), String> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let most = Rlimit { current: limit.maximum, ..limit };
        match setrlimit(Resource::Nofile, most) {
            Ok(()) => limit = most,
            Err(error) => log::debug!("the limit on open files stays as it is: {error}"),
        }
    }
    match limit.current {
        Some(files @ ..OPEN_FILES_MIN) => Err(format!(
            "this process may have {files} files open, and the server needs {OPEN_FILES_MIN}: raise the limit (`ulimit -n`, \
             LimitNOFILE= of a service)"
        )),
        Some(_) | None => Ok(()),
    }
}

/// A stream that has a byte for each SIGTERM and SIGINT, as long as they do not end the process.
fn signals(end_at_once: &Arc<AtomicBool>) -> io::Result<UnixStream> {
    let (reader, writer) = std::os::unix::net::UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    for signal in [SIGTERM, SIGINT] {
        // As a shell tells of whom a signal ended.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, end_at_once.clone())?;
        signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
    }
    Ok(UnixStream::from_std(reader))
}

/// Empties a stream; whether there was anything in it.
fn drain(stream: &mut UnixStream) -> bool {
    let mut bytes = [0; 16];
    let mut any = false;
    while stream.read(&mut bytes).is_ok_and(|read| read > 0) {
        any = true;
    }
    any
}

fn secrets() -> Result<Secrets, String> {
    let mut secrets = Secrets { cookie: [0; 16], session: [0; 16] };
    for secret in [&mut secrets.cookie, &mut secrets.session] {
        getrandom::fill(secret).map_err(|error| format!("the system gives no random numbers: {error}"))?;
    }
    Ok(secrets)
}

/// The kernel's number of the socket.
fn socket_inode(socket: &UdpSocket) -> Option<u64> {
    rustix::fs::fstat(socket).ok().map(|stat| stat.st_ino)
}

/// How many datagrams the kernel has dropped at the socket: the last column of its line in /proc/net/udp.
fn socket_drops(inode: u64) -> Option<u64> {
    for table in ["/proc/net/udp", "/proc/net/udp6"] {
        let Ok(text) = std::fs::read_to_string(table) else { continue };
        for line in text.lines().skip(1) {
            let columns: Vec<&str> = line.split_ascii_whitespace().collect();
            if columns.get(9).and_then(|column| column.parse().ok()) == Some(inode) {
                return columns.last().and_then(|column| column.parse().ok());
            }
        }
    }
    None
}
