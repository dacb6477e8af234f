//! The server: one mio loop that owns the socket and the node, and the threads beside it.
//!
//! ```text
//!  socket ──► loop ◄── waker ◄── expiry thread (deadlines), journal (commits), image (files), signals
//!               │
//!               ├─► journal thread      batches: write, sync
//!               └─► image thread        files: write, read, sync
//! ```
//!
//! One turn: wait; and then what [`turn`](crate::turn) says. Nothing here waits but the poll.

use crate::busy_poll::{BusyPoll, Looking};
use crate::clock::LogClock;
use crate::command::Durability;
use crate::expiry::Alarm;
use crate::failpoint;
use crate::fold;
use crate::image::{Handle as ImageHandle, Image};
use crate::journal::{FileLog, JournalConfig};
use crate::limits::Limits;
use crate::log::{Log, LogEvent};
use crate::node::{Node, Transmit};
use crate::proof::Secrets;
use crate::recovery;
use crate::snapshot::ServerId;
use crate::socket::Socket;
use crate::storage::DataDir;
use crate::time::Time;
use crate::turn::{Outside, RECEIVE_BUFFER, Turn};
use crate::turn_cpu::{self, TurnCpu};
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

/// How long a stop waits for what is on its way.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// Files that must be allowed to be open: the image keeps 256, the rest is the server's own.
const OPEN_FILES_MIN: u64 = 320;

/// How often the loop looks into its socket while the system does not tell it of what comes.
const UNTOLD: Duration = Duration::from_millis(1);

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
    /// For how long the loop looks for something to do before it sleeps.
    pub busy_poll: BusyPoll,
    /// Gives free memory back to the system, as far as the program's allocator does not do so by itself at any moment, also in
    /// the middle of a turn of the loop. It is called on a thread that nobody waits for: some time after a start or a snapshot,
    /// and each half minute.
    pub give_memory_back: fn(),
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
    server.turn.hand_over(&mut server.outside)?;
    server.ends_at_once.store(false, Ordering::SeqCst);
    while !server.turn.node.is_serving() && server.stopping.is_none() {
        server.turn(false)?;
    }
    if !server.turn.node.is_serving() {
        return server.stop();
    }
    log::info!(
        "serving {address}, data in {}, durability {:?}, term {}, op {}",
        config.data_dir.display(),
        config.durability,
        server.turn.node.state().head().term,
        server.turn.node.state().op()
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
    /// The kernel's number of the socket, to find its drops by.
    socket_inode: Option<u64>,
    signals: UnixStream,
    /// Whether a signal ends the process where it is: before the loop runs, and once a stop is asked for. Whatever the disk
    /// keeps waiting then, nothing acknowledged is lost.
    ends_at_once: Arc<AtomicBool>,
    alarm: Alarm,
    turn: Turn,
    outside: Threads,
    dir: Arc<DataDir>,
    server: ServerId,
    gauges_read: Instant,
    /// Since when a stop is asked for.
    stopping: Option<Instant>,
    /// Whether the system refused to tell of the socket.
    untold: bool,
    /// Whether the loop looks for something to do before it sleeps.
    looking: Looking,
    turn_cpu: TurnCpu,
}

/// What a turn works with: the socket, and the threads beside the loop.
struct Threads {
    socket: Socket,
    log: FileLog,
    image: ImageHandle,
}

impl Outside for Threads {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (bytes, from) = self.socket.receive()?;
        buffer[..bytes.len()].copy_from_slice(bytes);
        Ok((bytes.len(), from))
    }

    fn read_together(&self) -> bool {
        self.socket.read_together()
    }

    fn send(&mut self, transmit: Transmit) -> Result<(), String> {
        let hit = |point| failpoint::hit(point).map_err(|error| error.to_string());
        hit("server.before_reply")?;
        // A reply that the kernel does not take is a datagram lost: the client sends its request again.
        self.socket.send(transmit);
        if failpoint::is_armed() {
            // What dies behind a reply must have sent it.
            self.socket.flush();
        }
        hit("server.after_reply")
    }

    fn flush(&mut self) {
        self.socket.flush();
    }

    fn take_room(&mut self) -> Option<Vec<u8>> {
        self.socket.take_room()
    }

    fn log(&mut self) -> &mut dyn Log {
        &mut self.log
    }

    fn files(&mut self) -> &ImageHandle {
        &self.image
    }
}

impl Server {
    fn start(config: &Config, socket: UdpSocket) -> Result<Server, String> {
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
        let ends_at_once = Arc::new(AtomicBool::new(true));
        let mut signals = signals(&ends_at_once).map_err(start_failed)?;
        poll.registry().register(&mut signals, SIGNALS, Interest::READABLE).map_err(start_failed)?;

        let journal = JournalConfig {
            durability: config.durability,
            segment_bytes: config.segment_bytes,
            fold_bytes: config.fold_segments.max(1).saturating_mul(config.segment_bytes),
            give_memory_back: config.give_memory_back,
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

        let registry = poll.registry().try_clone().map_err(start_failed)?;
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
        Ok(Server {
            poll,
            events: Events::with_capacity(16),
            socket_inode: socket_inode(&socket),
            signals,
            ends_at_once,
            alarm: Alarm::start(wake()).map_err(start_failed)?,
            turn: Turn::new(node, clock, now),
            outside: Threads { socket: Socket::new(socket, registry, SOCKET), log, image },
            dir,
            server: recovered.server,
            gauges_read: began,
            stopping: None,
            untold: false,
            looking: Looking::new(config.busy_poll),
            turn_cpu: TurnCpu::new(Instant::now(), turn_cpu::of_this_thread),
        })
    }

    /// One turn of the loop. `read`: whether datagrams are read; before the term has begun they wait in the socket.
    fn turn(&mut self, read: bool) -> Result<(), String> {
        let asked = self.wait(read)?;
        self.turn_cpu.begins(Instant::now());
        self.turn.work(&mut self.outside, asked, read)?;
        self.turn_cpu.worked(self.turn.took);
        self.read_gauges();
        Ok(())
    }

    /// Waits until there is something to do. Gives the wake-up that was asked for.
    fn wait(&mut self, read: bool) -> Result<Option<Time>, String> {
        let told = self.turn.readable || self.register();
        let asked = self.turn.node.poll_timeout();
        let timeout = match asked {
            _ if self.turn.is_behind(read) => Some(Duration::ZERO),
            None => None,
            Some(asked) if asked <= self.turn.clock.now() => Some(Duration::ZERO),
            Some(asked) => {
                let micros = self.turn.clock.micros_until(asked);
                self.alarm.set(micros);
                // The alarm rings in time; this is for a thread that was starved.
                Some(Duration::from_micros(micros) + Duration::from_millis(5))
            }
        };
        // A stop waits for nothing longer than its patience.
        let patience = self.stopping.map(|since| STOP_PATIENCE.saturating_sub(since.elapsed()));
        let look = (!told).then_some(UNTOLD);
        let timeout = [timeout, patience, look].into_iter().flatten().min();
        let slept_from = self.turn.clock.now();
        self.look_or_sleep(timeout)?;
        self.turn.readable |= !told;
        self.turn.woke(asked, slept_from);
        self.alarm.take_ring();
        let mut signalled = false;
        for event in &self.events {
            match event.token() {
                SOCKET => self.turn.readable = true,
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

    /// Lets the poll tell of the socket; false if the system has no room for that now.
    fn register(&mut self) -> bool {
        let registered = failpoint::hit("server.register").and_then(|()| self.outside.socket.register());
        match &registered {
            Ok(()) if self.untold => log::info!("the system tells the server of datagrams again"),
            Err(error) if !self.untold => log::warn!(
                "the system does not tell the server of datagrams, which looks for them each {UNTOLD:?}: {error}; raise \
                 fs.epoll.max_user_watches, or see what uses up the memory"
            ),
            Ok(()) | Err(_) => {}
        }
        self.untold = registered.is_err();
        !self.untold
    }

    /// Looks for something to do, if that is worth while, and else sleeps until there is, so long at most.
    fn look_or_sleep(&mut self, timeout: Option<Duration>) -> Result<(), String> {
        let by_itself = self.looking.is_auto();
        // What it waits for is mostly the disk then, and takes longer than it would look.
        if timeout == Some(Duration::ZERO) || by_itself && self.turn.node.awaits_log() {
            return self.poll_for(timeout);
        }
        let time = self.looking.how_long(self.turn.took);
        if time.is_zero() {
            let began = Instant::now();
            self.poll_for(timeout)?;
            self.looking.slept(began.elapsed());
            return Ok(());
        }
        if self.look(timeout.map_or(time, |timeout| timeout.min(time)))? {
            self.looking.found();
            return Ok(());
        }
        self.looking.in_vain();
        self.poll_for(timeout)
    }

    /// Looks for something to do for so long, without sleeping; gives whether there is something.
    fn look(&mut self, looking: Duration) -> Result<bool, String> {
        let began = Instant::now();
        while began.elapsed() < looking {
            self.poll_for(Some(Duration::ZERO))?;
            if !self.events.is_empty() {
                return Ok(true);
            }
            // Others may need this core: the log's thread too, which is perhaps what this waits for.
            std::thread::yield_now();
        }
        Ok(false)
    }

    fn poll_for(&mut self, timeout: Option<Duration>) -> Result<(), String> {
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(format!("the server cannot wait for input: {error}")),
        }
    }

    fn read_gauges(&mut self) {
        if self.gauges_read.elapsed() < GAUGES_EVERY {
            return;
        }
        self.gauges_read = Instant::now();
        self.turn.node.set_gauge("stalls", self.turn.clock.stalls());
        self.turn.node.set_gauge("stalled_ms", self.turn.clock.stalled_ms());
        self.turn.node.set_gauge("long_turns", self.turn.clock.long_turns());
        self.turn.node.set_gauge("longest_turn_us", self.turn.clock.longest_turn_us());
        self.turn.node.set_gauge("longest_turn_cpu_us", self.turn_cpu.longest_us());
        self.turn.node.set_gauge("file_bytes_pending", self.outside.image.pending_bytes());
        self.turn.node.set_gauge("file_bytes_kept", self.outside.image.kept_bytes());
        self.turn.node.set_gauge("file_faults", self.outside.image.faults());
        if let Some(drops) = self.socket_inode.and_then(socket_drops) {
            self.turn.node.set_socket_drops(drops);
        }
    }

    /// Stops: finishes what is on its way, refuses what is new, and leaves a snapshot of everything.
    fn stop(mut self) -> Result<(), String> {
        let asked = self.stopping.unwrap_or_else(Instant::now);
        self.turn.node.drain();
        self.turn.send(&mut self.outside)?;
        self.outside.flush();
        while !self.turn.node.is_idle() && asked.elapsed() < STOP_PATIENCE {
            self.turn(true)?;
        }
        let Server { mut turn, outside, dir, server, .. } = self;
        let Threads { mut log, image, .. } = outside;
        image.sync(turn.node.state().op());
        let (events, ended) = image.stop(STOP_PATIENCE);
        for event in events {
            turn.take_image_event(event);
        }
        let handed_over_is_safe = turn.files_are_safe();
        let Turn { mut node, now, .. } = turn;
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
        let files_safe = ended && !late && handed_over_is_safe;
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
