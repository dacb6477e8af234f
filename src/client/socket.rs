//! The background thread: it owns the socket, the clock and the engines.
//!
//! Callers hand it commands over a channel and a waker, and wait on channels of their own. There is one engine for each
//! session: the current one, and ended ones of which somebody still waits for an answer. All share the socket, and their ids
//! never overlap, so an answer meant for one is none to another.

use super::engine::{Answered, CallId, Config, Engine, Event, Failure, Stage};
use super::handover::Offer;
use super::lease::Span;
use super::tenure::{Clock, Tenure};
use super::{Builder, Detached, Error, Result, guard};
use crate::identity::Nonce;
use crate::limits::DATAGRAM_MAX;
use crate::time::Time;
use crate::wire::{Int, Params, Pending};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use log::{debug, info, warn};
use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token, Waker};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

/// How long the drop of a guard waits for the answer to its release. Enough for a server that is there.
const DROP_WAIT: Duration = Duration::from_millis(250);

/// How long the drop of the last client waits for the answer to the close.
const CLOSE_WAIT: Duration = Duration::from_millis(500);

/// Datagrams read in one turn, so that a flood does not keep timers and callers waiting.
const TURN_DATAGRAMS: usize = 512;

/// Offers that are remembered for whoever asks later, and that wait in the channel of a listener.
const OFFERS_KEPT: usize = 64;

/// Commands taken in one turn.
const TURN_COMMANDS: usize = 512;

const SOCKET: Token = Token(0);
const WAKE: Token = Token(1);

/// Microseconds of a clock that counts suspend and that nobody sets.
pub(super) fn boot_time() -> Time {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    // Elsewhere the monotonic clock is the nearest; on macOS it counts suspend too.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(CLOCK);
    let seconds = u64::try_from(now.tv_sec).expect("the time since boot is not negative");
    let nanos = u64::try_from(now.tv_nsec).expect("a part of a second is not negative");
    Time::from_micros(seconds * 1_000_000 + nanos / 1_000)
}

/// The caller's side of the background thread.
pub(super) struct Core {
    commands: Sender<Command>,
    waker: Waker,
    thread: ThreadId,
    /// Closes when the thread has ended.
    ended: Receiver<()>,
    server: Mutex<SocketAddr>,
    deadline: Duration,
}

/// The answer to a request.
#[derive(Debug)]
pub(super) struct Answer {
    /// The result, as it came.
    pub(super) raw: Box<RawValue>,
    /// The grant that it made, if it made one.
    pub(super) tenure: Option<Arc<Tenure>>,
}

impl Answer {
    /// Reads the result as a type.
    pub(super) fn read<T: DeserializeOwned>(&self, method: &str) -> Result<T> {
        serde_json::from_str(self.raw.get())
            .map_err(|error| Error::Protocol { method: method.into(), message: error.to_string() })
    }
}

/// What callers want.
enum Command {
    Call {
        method: String,
        params: Box<Params>,
        /// The grant that it is about: the token goes in when the request begins, since a conversion may change it.
        tenure: Option<Arc<Tenure>>,
        within: Option<Duration>,
        reply: Sender<Result<Answer>>,
        progress: Option<Sender<Pending>>,
    },
    Session {
        within: Duration,
        reply: Sender<Result<Detached>>,
    },
    Server(SocketAddr),
    Offers(Sender<Offer>),
    Detach,
    Close {
        within: Duration,
        reply: Sender<bool>,
    },
}

impl Core {
    pub(super) fn start(builder: Builder, server: SocketAddr) -> Result<Core> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let socket = bind(&poll, server)?;
        let (commands, inbox) = crossbeam_channel::unbounded();
        let (end, ended) = crossbeam_channel::bounded(0);
        let deadline = builder.deadline;
        let first_id = 1 + (random_u64()? & 0xff_ffff);
        let mut driver = Driver {
            socket,
            poll,
            inbox,
            server,
            reopen: builder.reopen,
            sessions: vec![Session::new(&builder, first_id)?],
            builder,
            waiting: BTreeMap::new(),
            session_waiters: Vec::new(),
            closing: Vec::new(),
            offers: VecDeque::new(),
            offer_watchers: Vec::new(),
            send_error: None,
            buffer: vec![0; DATAGRAM_MAX + 1],
        };
        let thread = std::thread::Builder::new().name("tenure-client".into()).spawn(move || {
            driver.run();
            drop(end);
        })?;
        let thread = thread.thread().id();
        Ok(Core { commands, waker, thread, ended, server: Mutex::new(server), deadline })
    }

    pub(super) fn server(&self) -> SocketAddr {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_server(&self, server: SocketAddr) -> Result<()> {
        self.send(Command::Server(server))?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = server;
        Ok(())
    }

    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(super) fn session(&self) -> Result<Detached> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.send(Command::Session { within: self.deadline, reply })?;
        self.answer(&answer)?
    }

    pub(super) fn offers(&self) -> Result<Receiver<Offer>> {
        self.session()?;
        let (sender, receiver) = crossbeam_channel::bounded(OFFERS_KEPT);
        self.send(Command::Offers(sender))?;
        Ok(receiver)
    }

    pub(super) fn close(&self) -> Result<()> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.send(Command::Close { within: self.deadline, reply })?;
        match self.answer(&answer)? {
            true => Ok(()),
            false => Err(Error::Unreachable {
                server: self.server(),
                method: "close_session".into(),
                why: "the session ends when its TTL has passed".into(),
            }),
        }
    }

    pub(super) fn detach(&self) -> Result<Detached> {
        let session = self.session()?;
        self.send(Command::Detach)?;
        // The thread has left nothing behind when this closes.
        let _ = self.ended.recv();
        Ok(session)
    }

    /// Asks, and waits for the answer; `progress` hears of standing in line.
    pub(super) fn request(
        &self,
        method: &str,
        params: Params,
        within: Option<Duration>,
        progress: Option<Sender<Pending>>,
    ) -> Result<Answer> {
        let answer = self.begin(method, params, None, within, progress)?;
        self.answer(&answer)?
    }

    /// Asks for something of a grant of this session.
    pub(super) fn request_of(
        &self,
        tenure: &Arc<Tenure>,
        method: &str,
        params: Params,
        within: Option<Duration>,
        progress: Option<Sender<Pending>>,
    ) -> Result<Answer> {
        let answer = self.begin(method, params, Some(Arc::clone(tenure)), within, progress)?;
        self.answer(&answer)?
    }

    /// For the drop of a guard; `abandon` throws away what is staged under the grant.
    pub(super) fn release_on_drop(&self, tenure: &Arc<Tenure>, abandon: bool) {
        let lost = tenure.loss().is_some();
        let method = if lost || abandon { "abandon" } else { "release_lock" };
        match self.begin(method, Params::default(), Some(Arc::clone(tenure)), None, None) {
            Ok(answer) if !lost && std::thread::current().id() != self.thread => {
                drop(answer.recv_timeout(DROP_WAIT));
            }
            Ok(_) => {}
            Err(error) => debug!("{method} of {}: {error}", tenure.token()),
        }
    }

    fn begin(
        &self,
        method: &str,
        params: Params,
        tenure: Option<Arc<Tenure>>,
        within: Option<Duration>,
        progress: Option<Sender<Pending>>,
    ) -> Result<Receiver<Result<Answer>>> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.send(Command::Call {
            method: method.into(),
            params: Box::new(params),
            tenure,
            within,
            reply,
            progress,
        })?;
        Ok(answer)
    }

    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| Error::Closed)?;
        self.waker.wake()?;
        Ok(())
    }

    fn answer<T>(&self, answer: &Receiver<T>) -> Result<T> {
        if std::thread::current().id() == self.thread {
            return Err(Error::Invalid("a callback must not wait for an answer of its own client".into()));
        }
        answer.recv().map_err(|_| Error::Closed)
    }
}

impl Drop for Core {
    /// Closes the session, and waits a moment for the answer.
    fn drop(&mut self) {
        let (reply, answer) = crossbeam_channel::bounded(1);
        let told = self.send(Command::Close { within: CLOSE_WAIT, reply }).is_ok();
        if told && std::thread::current().id() != self.thread {
            match answer.recv_timeout(CLOSE_WAIT * 2) {
                Ok(_) | Err(RecvTimeoutError::Disconnected) => {}
                Err(RecvTimeoutError::Timeout) => debug!("the close of the session took too long"),
            }
        }
    }
}

/// One session: its engine, and what its guards share with it.
struct Session {
    engine: Engine,
    clock: Arc<Clock>,
    tenures: BTreeMap<u64, Arc<Tenure>>,
    nonce: Nonce,
}

impl Session {
    fn new(builder: &Builder, first_id: u64) -> Result<Session> {
        let nonce = Nonce(u128::from(random_u64()?) << 64 | u128::from(random_u64()?));
        let engine = Engine::new(Config {
            nonce,
            name: builder.name.clone(),
            label: builder.label.clone(),
            ttl_ms: builder.ttl.map(guard::millis),
            first_id,
            seed: random_u64()?,
        });
        Ok(Session { engine, clock: Arc::new(Clock::new(Span::ENDLESS)), tenures: BTreeMap::new(), nonce })
    }

    fn detached(&self) -> Option<Detached> {
        let (session, client, ttl_ms) = self.engine.session()?;
        Some(Detached { session, client, nonce: self.nonce, ttl: Duration::from_millis(ttl_ms) })
    }
}

/// Who waits for a call.
struct Waiter {
    method: String,
    reply: Sender<Result<Answer>>,
    progress: Option<Sender<Pending>>,
}

/// The background thread.
struct Driver {
    socket: UdpSocket,
    poll: Poll,
    inbox: Receiver<Command>,
    server: SocketAddr,
    builder: Builder,
    reopen: bool,
    /// The current one is the last.
    sessions: Vec<Session>,
    waiting: BTreeMap<CallId, Waiter>,
    session_waiters: Vec<(Time, Sender<Result<Detached>>)>,
    closing: Vec<Sender<bool>>,
    /// What the current session was offered last.
    offers: VecDeque<Offer>,
    offer_watchers: Vec<Sender<Offer>>,
    /// Why the last datagram could not be sent.
    send_error: Option<String>,
    buffer: Vec<u8>,
}

impl Driver {
    fn run(&mut self) {
        let mut events = Events::with_capacity(16);
        let mut busy = false;
        loop {
            let timeout = if busy { Some(Duration::ZERO) } else { self.sleep() };
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    warn!("the client cannot wait for its socket and ends: {error}");
                    return;
                }
            }
            busy = self.receive();
            let now = boot_time();
            for session in &mut self.sessions {
                session.engine.handle_timeout(now);
            }
            match self.take_commands(now) {
                Some(more) => busy |= more,
                None => return,
            }
            self.expire_session_waiters(now);
            self.settle();
            if self.sessions.last().is_none_or(|session| *session.engine.stage() == Stage::Closed) {
                return;
            }
        }
    }

    fn sleep(&self) -> Option<Duration> {
        let engines = self.sessions.iter().filter_map(|session| session.engine.poll_timeout());
        let waiters = self.session_waiters.iter().map(|(deadline, _)| *deadline);
        let next = engines.chain(waiters).min()?;
        Some(Duration::from_micros(next.us_since(boot_time())))
    }

    /// Reads what is there; tells whether there may be more.
    fn receive(&mut self) -> bool {
        for _ in 0..TURN_DATAGRAMS {
            match self.socket.recv_from(&mut self.buffer) {
                Ok((length, from)) => {
                    // Whoever else sends here is no server of ours.
                    if from.ip() != self.server.ip() || from.port() != self.server.port() {
                        continue;
                    }
                    let now = boot_time();
                    for session in &mut self.sessions {
                        session.engine.handle_datagram(now, &self.buffer[..length]);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // An ICMP error for something sent earlier: repetition sees to it.
                Err(error) => debug!("receiving: {error}"),
            }
        }
        true
    }

    /// Does what callers want; tells whether there may be more, and `None` to end at once.
    fn take_commands(&mut self, now: Time) -> Option<bool> {
        for _ in 0..TURN_COMMANDS {
            let Ok(command) = self.inbox.try_recv() else { return Some(false) };
            match command {
                Command::Call { method, mut params, tenure, within, reply, progress } => {
                    if let Some(tenure) = tenure {
                        params.token = Some(Int(tenure.token()));
                    }
                    let deadline = within.map(|within| after(now, within));
                    self.renew_session();
                    let Some(session) = self.sessions.last_mut() else { continue };
                    let call = session.engine.call(now, &method, *params, deadline);
                    self.waiting.insert(call, Waiter { method, reply, progress });
                }
                Command::Session { within, reply } => {
                    self.renew_session();
                    let Some(session) = self.sessions.last_mut() else { continue };
                    session.engine.open(now);
                    self.session_waiters.push((after(now, within), reply));
                    self.answer_session_waiters();
                }
                Command::Server(server) => {
                    if server.is_ipv4() != self.server.is_ipv4() {
                        match bind(&self.poll, server) {
                            Ok(socket) => self.socket = socket,
                            Err(error) => warn!("no socket for {server}: {error}"),
                        }
                    }
                    self.server = server;
                }
                Command::Offers(watcher) => {
                    for offer in &self.offers {
                        // The channel has room for all that are kept.
                        drop(watcher.try_send(offer.clone()));
                    }
                    self.offer_watchers.push(watcher);
                }
                Command::Detach => return None,
                Command::Close { within, reply } => {
                    self.closing.push(reply);
                    for session in &mut self.sessions {
                        session.engine.close(now, after(now, within));
                    }
                }
            }
        }
        Some(true)
    }

    /// After the end of the session: a new one for new calls, if so wanted.
    fn renew_session(&mut self) {
        let Some(last) = self.sessions.last() else { return };
        if !self.reopen || !matches!(last.engine.stage(), Stage::Ended { .. }) {
            return;
        }
        match Session::new(&self.builder, last.engine.free_id()) {
            Ok(session) => {
                info!("opening a new session at {}", self.server);
                self.sessions.push(session);
            }
            Err(error) => warn!("no new session: {error}"),
        }
    }

    /// Sends what is to be sent, and tells what has happened.
    fn settle(&mut self) {
        for at in 0..self.sessions.len() {
            let now = boot_time();
            while let Some(bytes) = self.sessions[at].engine.poll_transmit(now) {
                match self.socket.send_to(&bytes, self.server) {
                    Ok(_) => self.send_error = None,
                    // Lost like one that the network loses.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => self.send_error = Some(error.to_string()),
                }
            }
            let session = &mut self.sessions[at];
            session.clock.set(session.engine.session_span());
            while let Some(event) = self.sessions[at].engine.poll_event() {
                self.tell(at, event);
            }
        }
        let current = self.sessions.len().saturating_sub(1);
        let mut at = 0;
        self.sessions.retain(|session| {
            at += 1;
            at > current || !(session.engine.is_idle() || *session.engine.stage() == Stage::Closed)
        });
    }

    fn tell(&mut self, at: usize, event: Event) {
        let session = &mut self.sessions[at];
        match event {
            Event::Done { call, result } => self.tell_done(at, call, result),
            Event::Pending { call, pending } => {
                if let Some(progress) = self.waiting.get(&call).and_then(|waiter| waiter.progress.as_ref()) {
                    // Whoever is slow to listen misses some.
                    let _ = progress.try_send(*pending);
                }
            }
            Event::Changed { token, state } => {
                if let Some(tenure) = session.tenures.get(&token) {
                    tenure.changed(state);
                }
            }
            Event::Converted { from, token, keys } => {
                if let Some(tenure) = session.tenures.remove(&from) {
                    tenure.converted(token, keys);
                    session.tenures.insert(token, tenure);
                }
            }
            Event::Lease { token, span } => {
                if let Some(tenure) = session.tenures.get(&token) {
                    tenure.set_lease(span);
                }
            }
            Event::Lost(lost) => {
                warn!("{lost}");
                if let Some(tenure) = session.tenures.remove(&lost.token) {
                    tenure.lose(lost);
                }
            }
            Event::Asked(asking) => {
                info!(
                    "client {} asks that the grant {} is released: {}",
                    asking.client, asking.token, asking.reason
                );
                if let Some(tenure) = session.tenures.get(&asking.token) {
                    tenure.ask(asking);
                }
            }
            Event::Offered(offer) => {
                debug!("client {} offers the grant {}", offer.client, offer.token);
                // Whoever is slow to listen misses some, and whoever is gone wants to know nothing.
                self.offer_watchers.retain(|watcher| {
                    !matches!(watcher.try_send(offer.clone()), Err(TrySendError::Disconnected(_)))
                });
                if self.offers.len() == OFFERS_KEPT {
                    self.offers.pop_front();
                }
                self.offers.push_back(offer);
            }
            Event::Released { token } => {
                if let Some(tenure) = session.tenures.remove(&token) {
                    tenure.released();
                }
            }
            Event::Opened => {
                debug!("the session at {} is open", self.server);
                self.answer_session_waiters();
            }
            Event::Ended { why } => {
                warn!("the session at {} has ended: {why}", self.server);
                self.offers.clear();
                self.offer_watchers.clear();
                self.answer_session_waiters();
            }
            // Those of sessions that had ended before say nothing about the last.
            Event::Closed { .. } if at + 1 < self.sessions.len() => {}
            Event::Closed { answered } => {
                for reply in self.closing.drain(..) {
                    // Who closed may not wait any more.
                    let _ = reply.try_send(answered);
                }
            }
        }
    }

    fn tell_done(&mut self, at: usize, call: CallId, result: std::result::Result<Answered, Failure>) {
        let waiter = self.waiting.remove(&call);
        let session = &mut self.sessions[at];
        let result = match result {
            Ok(Answered { raw, granted }) => {
                let tenure = granted.map(|granted| {
                    let clock = Arc::clone(&session.clock);
                    let tenure = Tenure::new(granted.token, granted.keys, clock, granted.span, granted.hold);
                    let tenure = Arc::new(tenure);
                    session.tenures.insert(granted.token, Arc::clone(&tenure));
                    tenure
                });
                Ok(Answer { raw, tenure })
            }
            Err(failure) => {
                let method = waiter.as_ref().map_or("", |waiter| &waiter.method);
                let heard = session.engine.heard();
                Err(self.explain(method, heard, failure))
            }
        };
        if let Some(waiter) = waiter {
            // The drop of a guard does not wait for long.
            drop(waiter.reply.try_send(result));
        }
    }

    fn explain(&self, method: &str, heard: bool, failure: Failure) -> Error {
        let method = method.to_owned();
        match failure {
            Failure::Refused(error) => Error::Refused {
                kind: error.data.kind.clone(),
                message: error.message,
                data: Box::new(error.data),
            },
            Failure::Lost(lost) => Error::Lost(lost),
            Failure::Unknown { id, why } => Error::OutcomeUnknown { method, id, why },
            Failure::NotSent { why } | Failure::NoAnswer { why } => {
                Error::Unreachable { server: self.server, method, why: self.unreachable(heard, &why) }
            }
            Failure::SessionEnded { why } => Error::SessionEnded { why },
            Failure::TooLarge { bytes } => Error::Invalid(format!(
                "{method} has {bytes} bytes and does not fit a datagram of at most {DATAGRAM_MAX}"
            )),
            Failure::Closed => Error::Closed,
        }
    }

    fn unreachable(&self, heard: bool, why: &str) -> String {
        match (&self.send_error, heard) {
            (Some(error), _) => format!("{why}; the last datagram could not be sent: {error}"),
            (None, true) => why.to_owned(),
            (None, false) => format!(
                "{why}; nothing has ever come from there: does the server run, is this its address, \
                 and does UDP pass on the way?"
            ),
        }
    }

    fn answer_session_waiters(&mut self) {
        let Some(session) = self.sessions.last() else { return };
        let result = || match (session.engine.stage(), session.detached()) {
            (Stage::Open, Some(detached)) => Some(Ok(detached)),
            (Stage::Ended { why }, _) => Some(Err(match session.engine.refusal() {
                Some(refusal) => Error::Refused {
                    kind: refusal.data.kind.clone(),
                    message: refusal.message.clone(),
                    data: Box::new(refusal.data.clone()),
                },
                None => Error::SessionEnded { why: why.clone() },
            })),
            (Stage::Closing | Stage::Closed, _) => Some(Err(Error::Closed)),
            (Stage::Idle | Stage::Opening | Stage::Open, _) => None,
        };
        self.session_waiters.retain(|(_, reply)| match result() {
            Some(result) => {
                // Who asked may not wait any more.
                drop(reply.try_send(result));
                false
            }
            None => true,
        });
    }

    fn expire_session_waiters(&mut self, now: Time) {
        let heard = self.sessions.last().is_some_and(|session| session.engine.heard());
        let why = self.unreachable(heard, "no session could be opened in time");
        let server = self.server;
        self.session_waiters.retain(|(deadline, reply)| {
            if *deadline > now {
                return true;
            }
            let why = why.clone();
            drop(reply.try_send(Err(Error::Unreachable { server, method: "open_session".into(), why })));
            false
        });
    }
}

fn after(now: Time, within: Duration) -> Time {
    now.after_us(u64::try_from(within.as_micros()).unwrap_or(u64::MAX))
}

/// A socket for a server: not connected, so that the kernel chooses the way, and so the source, for each datagram anew.
fn bind(poll: &Poll, server: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let mut socket = UdpSocket::bind(any)?;
    poll.registry().register(&mut socket, SOCKET, Interest::READABLE)?;
    Ok(socket)
}

fn random_u64() -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| Error::Io(io::Error::other(error.to_string())))?;
    Ok(u64::from_ne_bytes(bytes))
}
