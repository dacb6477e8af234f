//! The protocol of one session, without socket, clock, thread or randomness.
//!
//! Methods are of four kinds. **Commands** ([`open`](Engine::open), [`call`](Engine::call), [`forget`](Engine::forget),
//! [`close`](Engine::close)) say what is wanted. **`handle_*`** bring what happened: a datagram, or that time has passed.
//! **`poll_*`** take what is to be done: datagrams to send, events to tell, and when to come back. **Getters** change nothing.
//! `now` is an argument everywhere and never goes back. A turn is:
//!
//! ```text
//! every datagram that is there ─► handle_datagram ┐
//!                                                 ├─► handle_timeout ─► commands ─► poll_transmit ─► poll_event ─► sleep until
//!                                                 ┘                                  until None       until None    poll_timeout
//! ```
//!
//! Datagrams first: after a stall of the client, an answer that waited in the socket may prove what the clock alone gives up.
//! A datagram from [`poll_transmit`](Engine::poll_transmit) counts as sent at its `now`.
//!
//! What the engine sees to: each request is repeated under its id until its final answer or its deadline; a request for a
//! lock that is given up is taken back, so that no grant is left that nobody knows of; a grant is handed out only when
//! it is proven to live; heartbeats; and belief in grants ([`Span`]), where a loss is final and is told to the server.

use super::lease::{GrantState, LostCause, LostGrant, Span};
use super::message::{self, AcquiredShown, BeatShown, Incoming, OpenedShown, Tag};
use super::timers::Timers;
use crate::identity::{Nonce, SessionId};
use crate::limits::{DATAGRAM_MAX, GOT_MAX};
use crate::time::Time;
use crate::wire::{ErrorShown, Int, Params, Pending, WaitMs};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

/// Before the first repetition of a request, in milliseconds; doubles with each.
pub const RETRY_FIRST_MS: u64 = 200;

/// Longest time between two copies of a request, in milliseconds.
pub const RETRY_MAX_MS: u64 = 5_000;

/// Time between two copies of a request that is known to stand in line, in milliseconds: only for a server that forgot,
/// in a restart, where to send the answer.
pub const PROBE_MS: u64 = 2_000;

/// How long past its deadline a request for a lock waits to hear that it was taken back, in milliseconds.
pub const GRACE_MS: u64 = 2_000;

/// Heartbeats whose answers may still come.
const BEATS_KEPT: usize = 64;

/// Losses of tokens not heard of yet that are remembered while requests for locks are out.
const EARLY_LOSSES_MAX: usize = 1_024;

/// What a session is opened with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Drawn at random for each session.
    pub nonce: Nonce,
    /// The client's name for itself.
    pub name: String,
    /// A note for people.
    pub label: String,
    /// TTL in milliseconds; the server's default if `None`.
    pub ttl_ms: Option<u64>,
    /// The first id. A session whose socket may get answers meant for an earlier one begins above the ids of that.
    pub first_id: u64,
    /// Seeds the jitter of repetitions.
    pub seed: u64,
}

/// The handle of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(Tag);

impl CallId {
    /// The number of the request.
    pub fn number(self) -> u64 {
        self.0.number()
    }
}

impl fmt::Display for CallId {
    /// The id on the wire.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The session is open.
    Opened,
    /// A call stands in line.
    Pending {
        /// The call.
        call: CallId,
        /// Where, and who is in the way.
        pending: Pending,
    },
    /// A call has its result: its only one.
    Done {
        /// The call.
        call: CallId,
        /// The result.
        result: Result<Answered, Failure>,
    },
    /// Belief in a grant changed between safe and at risk.
    Changed {
        /// The grant.
        token: u64,
        /// What it is now.
        state: GrantState,
    },
    /// A grant's own lease changed.
    Lease {
        /// The grant.
        token: u64,
        /// What the lease allows.
        span: Span,
    },
    /// A grant is lost, for good.
    Lost(LostGrant),
    /// A grant was released, or nothing is known of it any more after the server's word that it is not held.
    Released {
        /// The grant.
        token: u64,
    },
    /// The session has ended; new calls fail.
    Ended {
        /// How that became known.
        why: String,
    },
    /// The engine is closed: nothing more will come.
    Closed {
        /// Whether the server said so.
        answered: bool,
    },
}

/// A call's result.
#[derive(Debug)]
pub struct Answered {
    /// As it came.
    pub raw: Box<RawValue>,
    /// The grant that it made, if it made a new one.
    pub granted: Option<Granted>,
}

/// A new grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The token.
    pub token: u64,
    /// The locks.
    pub keys: Vec<String>,
    /// What its own lease allows.
    pub span: Span,
}

/// Why a call has no result.
#[derive(Debug)]
pub enum Failure {
    /// The server refused it for good. Nothing changed.
    Refused(Box<ErrorShown>),
    /// The grant is lost. Nothing changed.
    Lost(LostGrant),
    /// It was sent, and whether it took effect is unknown. At most once, in any case.
    Unknown {
        /// What happened.
        why: String,
    },
    /// It was never sent. Nothing changed.
    NotSent {
        /// What happened.
        why: String,
    },
    /// A read, without an answer. Nothing changed.
    NoAnswer {
        /// What happened.
        why: String,
    },
    /// The session has ended before it. Nothing changed.
    SessionEnded {
        /// How that became known.
        why: String,
    },
    /// It does not fit a datagram. Nothing changed.
    TooLarge {
        /// How many bytes it has.
        bytes: usize,
    },
    /// The engine was closed before it. Nothing changed.
    Closed,
}

/// The state of the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was asked yet.
    Idle,
    /// Asked for, not answered yet.
    Opening,
    /// Open.
    Open,
    /// Ended by the server, or never given.
    Ended {
        /// How that became known.
        why: String,
    },
    /// To be closed, not answered yet.
    Closing,
    /// Closed.
    Closed,
}

/// One session's side of the protocol. The module's documentation says how it is driven.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    stage: Stage,
    session: Option<OpenedShown>,
    refusal: Option<Box<ErrorShown>>,
    /// The last logged id given out, and the last of the others.
    last_id: u64,
    last_echo: u64,
    jitter: u64,
    /// Whether the server was ever heard: then it needs no room to prove this address.
    heard: bool,
    cookie: Option<String>,
    /// Counts cookies, so that each `verify` for a copy with an older one is answered at once, and no other.
    cookie_number: u32,
    calls: BTreeMap<Tag, Call>,
    /// Waits whose answers have arrived and that no answered request has named yet.
    got: BTreeSet<u64>,
    grants: BTreeMap<u64, Grant>,
    early_losses: BTreeMap<u64, String>,
    /// The send of the last request that is known to have found the session alive, and what that allows.
    proven: Option<Time>,
    span: Span,
    /// Heartbeats sent and not answered, and how many since the last answer.
    beats: BTreeMap<u64, Beat>,
    unanswered: u32,
    after: u64,
    sends: Timers<Tag>,
    alarms: Timers<Alarm>,
    events: VecDeque<Event>,
}

/// A heartbeat on its way.
#[derive(Clone, Copy, Debug)]
struct Beat {
    sent: Time,
    cookie_number: u32,
}

/// What is looked at when a moment has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    /// A call's deadline.
    Deadline(Tag),
    /// A grant that is not proven yet is given up.
    Prove(u64),
    /// Belief in a grant's own lease changes.
    Lease(u64),
    /// Belief in the session changes.
    Session,
    /// Closing takes too long.
    Close,
}

/// A request on its way.
#[derive(Debug)]
struct Call {
    method: Box<str>,
    params: Params,
    purpose: Purpose,
    /// Whether somebody waits for the result.
    asked: bool,
    /// Whether it goes out in this engine's session, and not in one that the caller named, or in none.
    in_session: bool,
    deadline: Option<Time>,
    copies: u32,
    first_sent: Option<Time>,
    cookie_number: u32,
    /// The waits that the first copy named as answered: that copy may be the one that is executed.
    got_named: Vec<u64>,
    /// What the server last said instead of an answer.
    last_refusal: Option<Box<ErrorShown>>,
    /// What has to be answered before this may be sent.
    behind: Option<Tag>,
}

/// What a request means to the engine.
#[derive(Debug)]
enum Purpose {
    Plain,
    Acquire {
        keys: Vec<String>,
        owner: Option<String>,
        waits: bool,
        /// It is known to stand in line.
        pending: bool,
        /// The request that takes it back.
        cancel: Option<Tag>,
    },
    Cancel {
        wait: Tag,
    },
    Release {
        token: u64,
        keys: Vec<String>,
    },
    Renew {
        token: u64,
        lease_ms: u64,
    },
}

/// A grant of this session.
#[derive(Debug)]
struct Grant {
    keys: Vec<String>,
    op: u64,
    /// What its own lease allows.
    lease: Span,
    /// What was last told.
    told: GrantState,
    /// Why it is lost, if it is.
    cause: Option<LostCause>,
    /// The call that gets it as soon as it is proven to live.
    proving: Option<Proving>,
    /// A release is on its way: its absence is no loss.
    leaving: bool,
}

#[derive(Debug)]
struct Proving {
    call: Tag,
    raw: Box<RawValue>,
    /// Its own lease may have begun long ago: it is renewed first.
    renewing: bool,
}

/// Commands.
impl Engine {
    /// An engine with nothing to do yet.
    pub fn new(config: Config) -> Engine {
        let last = config.first_id.max(1) - 1;
        Engine {
            jitter: config.seed,
            config,
            stage: Stage::Idle,
            session: None,
            refusal: None,
            last_id: last,
            last_echo: last,
            heard: false,
            cookie: None,
            cookie_number: 0,
            calls: BTreeMap::new(),
            got: BTreeSet::new(),
            grants: BTreeMap::new(),
            early_losses: BTreeMap::new(),
            proven: None,
            span: Span::ENDLESS,
            beats: BTreeMap::new(),
            unanswered: 0,
            after: 0,
            sends: Timers::default(),
            alarms: Timers::default(),
            events: VecDeque::new(),
        }
    }

    /// Opens the session, if that was not asked for before.
    pub fn open(&mut self, now: Time) {
        if self.stage != Stage::Idle {
            return;
        }
        self.stage = Stage::Opening;
        let note = |text: &String| (!text.is_empty()).then(|| text.clone());
        let params = Params {
            nonce: Some(self.config.nonce),
            name: note(&self.config.name),
            label: note(&self.config.label),
            ttl_ms: self.config.ttl_ms.map(Int),
            ..Params::default()
        };
        let tag = Tag::Open(self.next_echo());
        self.insert(tag, Call::new("open_session", params, Purpose::Plain, false));
        self.sends.set(tag, now);
    }

    /// Asks the server, until `deadline` or without end. The session is opened first if the method needs one. The result
    /// comes as [`Event::Done`].
    pub fn call(&mut self, now: Time, method: &str, params: Params, deadline: Option<Time>) -> CallId {
        self.handle_timeout(now);
        let logged = is_logged(method);
        let in_session = params.session.is_none() && (logged || needs_session(method, &params));
        let tag = if logged { Tag::Logged(self.next_id()) } else { Tag::Read(self.next_echo()) };
        if let Some(failure) = self.refuse(now, method, &params, in_session) {
            self.tell_done(tag, Err(failure));
            return CallId(tag);
        }
        let purpose = self.purpose(method, &params);
        if let Purpose::Release { token, .. } = &purpose
            && let Some(grant) = self.grants.get_mut(token)
        {
            grant.leaving = true;
        }
        let behind = self.find_behind(&purpose);
        let mut call = Call::new(method, params, purpose, true);
        call.in_session = in_session;
        call.deadline = deadline;
        call.behind = behind;
        self.insert(tag, call);
        if let Some(deadline) = deadline {
            self.alarms.set(Alarm::Deadline(tag), deadline);
        }
        if in_session {
            self.open(now);
        }
        self.send_if_ready(tag, now);
        CallId(tag)
    }

    /// Nobody waits for the result of a call any more. A request for a lock is taken back.
    pub fn forget(&mut self, now: Time, call: CallId) {
        if let Some(call) = self.calls.get_mut(&call.0) {
            call.asked = false;
        } else if let Some(token) = self.proving_of(call.0) {
            self.give_up(now, token);
            return;
        }
        self.give_up_call(now, call.0, "nobody waits for it any more");
    }

    /// Closes the session: what was not sent fails, every grant is lost, and when releases on their way are answered the
    /// server is told, until it answers or `deadline` passes. [`Event::Closed`] is the last event.
    pub fn close(&mut self, now: Time, deadline: Time) {
        match &self.stage {
            Stage::Closing | Stage::Closed => return,
            Stage::Idle | Stage::Ended { .. } => return self.closed(true),
            Stage::Opening => {
                let sent =
                    self.calls.iter().any(|(tag, call)| matches!(tag, Tag::Open(_)) && call.copies > 0);
                if !sent {
                    return self.closed(true);
                }
            }
            Stage::Open => {}
        }
        self.stage = Stage::Closing;
        self.alarms.set(Alarm::Close, deadline.max(now));
        let unsent: Vec<Tag> = self
            .calls
            .iter()
            .filter(|(tag, call)| call.copies == 0 && call.asked && !matches!(tag, Tag::Open(_)))
            .map(|(tag, _)| *tag)
            .collect();
        for tag in unsent {
            self.end(tag, Err(Failure::Closed));
        }
        let tokens: Vec<u64> =
            self.grants.iter().filter(|(_, grant)| !grant.leaving).map(|(token, _)| *token).collect();
        for token in tokens {
            self.lose(now, token, LostCause::SessionEnded);
        }
        self.close_when_released(now);
    }
}

/// What happened.
impl Engine {
    /// A datagram has come from the server.
    pub fn handle_datagram(&mut self, now: Time, bytes: &[u8]) {
        let Some(incoming) = message::decode(bytes) else { return };
        if self.stage == Stage::Closed {
            return;
        }
        self.heard = true;
        match incoming {
            Incoming::Pending { client, id, shown } => self.on_pending(now, client, id, shown),
            Incoming::Lost { token } => {
                // A hint, and anybody could send it: the heartbeat's answer decides.
                if self.grants.get(&token).is_some_and(|grant| grant.told != GrantState::Lost) {
                    self.beat(now);
                }
            }
            Incoming::Reply(Tag::Beat(number), reply) => self.on_beat(now, number, reply),
            Incoming::Reply(tag, reply) => match self.calls.contains_key(&tag) {
                true => self.on_reply(now, tag, reply),
                // The answer to a wait comes again: the server has not heard yet that it arrived.
                false if self.got.contains(&tag.number()) && matches!(tag, Tag::Logged(_)) => self.beat(now),
                false => {}
            },
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(alarm) = self.alarms.take_due(now) {
            match alarm {
                Alarm::Deadline(tag) => {
                    if self.calls.contains_key(&tag) {
                        self.give_up_call(now, tag, "no answer came in time");
                    }
                }
                Alarm::Prove(token) => self.give_up(now, token),
                Alarm::Lease(token) => self.look_at(now, token),
                Alarm::Session => self.look_at_all(now),
                Alarm::Close => self.closed(false),
            }
        }
    }
}

/// What is to be done.
impl Engine {
    /// The next datagram to send. Counts as sent now.
    pub fn poll_transmit(&mut self, now: Time) -> Option<Vec<u8>> {
        while let Some(tag) = self.sends.take_due(now) {
            match tag {
                Tag::Beat(_) => {
                    if let Some(bytes) = self.transmit_beat(now) {
                        return Some(bytes);
                    }
                }
                _ => {
                    if self.calls.contains_key(&tag) {
                        return Some(self.transmit(now, tag));
                    }
                }
            }
        }
        None
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When something is to be sent or looked at, if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Time> {
        match (self.sends.first(), self.alarms.first()) {
            (Some(send), Some(alarm)) => Some(send.min(alarm)),
            (send, alarm) => send.or(alarm),
        }
    }
}

/// Getters.
impl Engine {
    /// The state of the session.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// The secret id, the public number and the TTL in milliseconds, once the session is open.
    pub fn session(&self) -> Option<(SessionId, u64, u64)> {
        self.session.map(|opened| (opened.session, opened.client, opened.ttl_ms))
    }

    /// Why the server gave no session, if it refused one.
    pub fn refusal(&self) -> Option<&ErrorShown> {
        self.refusal.as_deref()
    }

    /// What belief in the session allows, for all its grants.
    pub fn session_span(&self) -> Span {
        self.span
    }

    /// What a grant is now; `None` for one that this engine does not know or no longer keeps.
    pub fn grant_state(&self, now: Time, token: u64) -> Option<GrantState> {
        let grant = self.grants.get(&token)?;
        Some(match grant.told {
            GrantState::Lost => GrantState::Lost,
            GrantState::Safe | GrantState::AtRisk => self.span.and(grant.lease).state(now),
        })
    }

    /// Whether a datagram of the server has ever come.
    pub fn heard(&self) -> bool {
        self.heard
    }

    /// The first id that is certain not to be in use: where a session on the same socket can begin.
    pub fn free_id(&self) -> u64 {
        self.last_id.max(self.last_echo) + 1
    }

    /// Whether nothing is on its way that somebody waits for.
    pub fn is_idle(&self) -> bool {
        self.events.is_empty()
            && !self.calls.values().any(|call| call.asked)
            && !self.grants.values().any(|grant| grant.proving.is_some())
    }
}

/// Numbers and beginnings of calls.
impl Engine {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn next_echo(&mut self) -> u64 {
        self.last_echo += 1;
        self.last_echo
    }

    fn insert(&mut self, tag: Tag, call: Call) {
        let before = self.calls.insert(tag, call);
        assert!(before.is_none(), "each id is given out once: {tag}");
    }

    /// Begins a request that nobody waits for and that is repeated as long as the session lives.
    fn spawn(&mut self, now: Time, method: &str, params: Params, purpose: Purpose) -> Tag {
        let tag = Tag::Logged(self.next_id());
        let mut call = Call::new(method, params, purpose, false);
        call.in_session = true;
        self.insert(tag, call);
        self.send_if_ready(tag, now);
        tag
    }

    /// Ends a grant without anybody waiting for the answer.
    fn spawn_release(&mut self, now: Time, method: &str, token: u64, keys: Vec<String>) {
        if !matches!(self.stage, Stage::Open) {
            return;
        }
        let params = Params { token: Some(Int(token)), ..Params::default() };
        self.spawn(now, method, params, Purpose::Release { token, keys });
    }

    fn send_if_ready(&mut self, tag: Tag, now: Time) {
        let Some(call) = self.calls.get(&tag) else { return };
        let session =
            !call.in_session || matches!(self.stage, Stage::Open | Stage::Closing) && self.session.is_some();
        if session && call.behind.is_none() && call.copies == 0 {
            self.sends.set(tag, now);
        }
    }

    /// Why a call fails before it is sent, if it does.
    fn refuse(&self, now: Time, method: &str, params: &Params, in_session: bool) -> Option<Failure> {
        match &self.stage {
            Stage::Closing | Stage::Closed => return Some(Failure::Closed),
            Stage::Ended { why } if in_session => return Some(Failure::SessionEnded { why: why.clone() }),
            Stage::Ended { .. } | Stage::Idle | Stage::Opening | Stage::Open => {}
        }
        if let (Some(Int(token)), None) = (params.token, params.holder)
            && self.grant_state(now, token) == Some(GrantState::Lost)
        {
            return Some(Failure::Lost(self.loss_of(token)));
        }
        let bytes = message::size(method, params);
        (bytes > DATAGRAM_MAX).then_some(Failure::TooLarge { bytes })
    }

    fn purpose(&self, method: &str, params: &Params) -> Purpose {
        let own = params.token.filter(|_| params.holder.is_none()).map(|token| token.0);
        match (method, own) {
            ("acquire_lock", _) => Purpose::Acquire {
                keys: keys_of(params),
                owner: params.owner.clone(),
                waits: !matches!(params.wait_ms, None | Some(WaitMs(Some(Int(0))))),
                pending: false,
                cancel: None,
            },
            ("release_lock" | "abandon", Some(token)) => {
                let keys = self.grants.get(&token).map(|grant| grant.keys.clone()).unwrap_or_default();
                Purpose::Release { token, keys }
            }
            ("renew_lease", Some(token)) => {
                Purpose::Renew { token, lease_ms: params.lease_ms.map_or(0, |lease| lease.0) }
            }
            _ => Purpose::Plain,
        }
    }

    /// What is on its way and must come first: between datagrams there is no order, and a release that arrives after the
    /// owner's next request for the same lock would end what that request was given.
    fn find_behind(&self, purpose: &Purpose) -> Option<Tag> {
        let Purpose::Acquire { keys, owner, .. } = purpose else { return None };
        let blocks = |call: &Call| match &call.purpose {
            Purpose::Release { keys: leaving, .. } => leaving.iter().any(|key| keys.contains(key)),
            Purpose::Cancel { wait } => match self.calls.get(wait).map(|wait| &wait.purpose) {
                Some(Purpose::Acquire { owner: other, .. }) => other == owner,
                _ => false,
            },
            Purpose::Plain | Purpose::Acquire { .. } | Purpose::Renew { .. } => false,
        };
        self.calls.iter().find(|(_, call)| blocks(call)).map(|(tag, _)| *tag)
    }

    fn unblock(&mut self, now: Time, done: Tag) {
        let behind: Vec<Tag> =
            self.calls.iter().filter(|(_, call)| call.behind == Some(done)).map(|(tag, _)| *tag).collect();
        for tag in behind {
            let next = self.calls.get(&tag).and_then(|call| self.find_behind(&call.purpose));
            if let Some(call) = self.calls.get_mut(&tag) {
                call.behind = next;
            }
            self.send_if_ready(tag, now);
        }
    }
}

/// Sending.
impl Engine {
    fn transmit(&mut self, now: Time, tag: Tag) -> Vec<u8> {
        let (ack, got) = (self.ack(), self.got_list());
        let session = self.session.map(|opened| opened.session);
        let cookie = self.cookie.clone();
        let delay = self.retry_delay(tag);
        self.sends.set(tag, now.after_us(delay));
        let call = self.calls.get_mut(&tag).expect("the caller has looked it up");
        if call.in_session {
            call.params.session = session;
            call.params.got = (!got.is_empty()).then(|| got.iter().map(|id| Int(*id)).collect());
            call.params.ack = matches!(tag, Tag::Logged(_)).then_some(Int(ack));
        }
        call.params.cookie = cookie;
        call.cookie_number = self.cookie_number;
        if call.copies == 0 {
            call.first_sent = Some(now);
            call.got_named = got;
        }
        call.copies = call.copies.saturating_add(1);
        let bytes = message::encode(tag, &call.method, &mut call.params, self.heard);
        if let (Purpose::Renew { token, lease_ms }, 1) = (&call.purpose, call.copies) {
            // From here on the server may have set the lease to the new end, and this client cannot know.
            let (token, span) = (*token, Span::proven(now, *lease_ms));
            self.set_lease(now, token, |lease| lease.and(span));
        }
        bytes
    }

    /// Microseconds until the next copy after one that is sent now.
    fn retry_delay(&mut self, tag: Tag) -> u64 {
        let Some(call) = self.calls.get(&tag) else { return 0 };
        let base = match call.purpose {
            Purpose::Acquire { pending: true, .. } => PROBE_MS,
            _ => RETRY_FIRST_MS.saturating_mul(1 << call.copies.min(10)).min(RETRY_MAX_MS),
        };
        self.spread(base)
    }

    /// Up to a quarter more, so that clients that lost the same packet do not come back together. In microseconds.
    fn spread(&mut self, base_ms: u64) -> u64 {
        // splitmix64: small, seeded, and good enough to keep clients apart.
        self.jitter = self.jitter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.jitter;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let base = base_ms.saturating_mul(1_000);
        base.saturating_add(bits % (base / 4 + 1))
    }

    /// The lowest id that may still be sent. A wait stands outside once the server is known to have it.
    fn ack(&self) -> u64 {
        let open = |call: &Call| !matches!(call.purpose, Purpose::Acquire { waits: true, pending: true, .. });
        let logged = Tag::Logged(0)..=Tag::Logged(u64::MAX);
        match self.calls.range(logged).find(|(_, call)| open(call)) {
            Some((tag, _)) => tag.number(),
            None => self.last_id + 1,
        }
    }

    fn got_list(&self) -> Vec<u64> {
        self.got.iter().copied().take(GOT_MAX).collect()
    }

    fn transmit_beat(&mut self, now: Time) -> Option<Vec<u8>> {
        let session = match self.stage {
            Stage::Open => self.session?,
            _ => return None,
        };
        let number = self.next_echo();
        self.beats.insert(number, Beat { sent: now, cookie_number: self.cookie_number });
        if self.beats.len() > BEATS_KEPT {
            self.beats.pop_first();
        }
        let retry = RETRY_FIRST_MS.saturating_mul(1 << self.unanswered.min(10));
        let retry = retry.min((session.ttl_ms / 12).max(5)).min(RETRY_MAX_MS);
        self.unanswered = self.unanswered.saturating_add(1);
        let delay = self.spread(retry);
        self.sends.set(BEAT, now.after_us(delay));
        let got = self.got_list();
        // No `ack`: it says something only in logged requests.
        let mut params = Params {
            session: Some(session.session),
            after: Some(Int(self.after)),
            got: (!got.is_empty()).then(|| got.into_iter().map(Int).collect()),
            cookie: self.cookie.clone(),
            ..Params::default()
        };
        Some(message::encode(Tag::Beat(number), "heartbeat", &mut params, self.heard))
    }

    /// Sends a heartbeat now.
    fn beat(&mut self, now: Time) {
        if matches!(self.stage, Stage::Open) {
            self.sends.set(BEAT, now);
        }
    }
}

/// The timer of the next heartbeat: each gets its number only when it is sent.
const BEAT: Tag = Tag::Beat(0);

/// Answers.
impl Engine {
    fn on_pending(&mut self, now: Time, client: u64, id: u64, shown: Option<Pending>) {
        if self.session.is_none_or(|opened| opened.client != client) {
            return;
        }
        let tag = Tag::Logged(id);
        let Some(call) = self.calls.get_mut(&tag) else { return };
        let Purpose::Acquire { pending, cancel: None, .. } = &mut call.purpose else { return };
        if call.copies == 0 {
            return;
        }
        let news = !std::mem::replace(pending, true);
        if let (Some(pending), true) = (shown, call.asked) {
            self.events.push_back(Event::Pending { call: CallId(tag), pending });
        }
        if news {
            let delay = self.spread(PROBE_MS);
            self.sends.set(tag, now.after_us(delay));
        }
    }

    fn on_reply(&mut self, now: Time, tag: Tag, reply: Result<Box<RawValue>, Box<ErrorShown>>) {
        let Some(call) = self.calls.get(&tag) else { return };
        if call.copies == 0 {
            return;
        }
        match reply {
            Err(error) if !error.data.is_final => self.on_again(now, tag, error),
            Err(error) if error.data.kind == "no_session" && call.in_session => {
                self.on_no_session(now, tag, &error.message);
            }
            Err(error)
                if error.data.kind == "stale_request"
                    && call.copies > 1
                    && !matches!(call.purpose, Purpose::Cancel { .. }) =>
            {
                let why =
                    "a copy of it came too late to be looked up, and an earlier one was sent".to_owned();
                self.end(tag, Err(Failure::Unknown { why }));
                self.after_end(now, tag);
            }
            reply => self.on_final(now, tag, reply),
        }
    }

    /// Nothing was done: the same id goes out again.
    fn on_again(&mut self, now: Time, tag: Tag, error: Box<ErrorShown>) {
        if error.data.kind == "verify" {
            let sent_with = self.calls.get(&tag).map_or(0, |call| call.cookie_number);
            if self.take_cookie(error.data.cookie.as_ref(), sent_with) && !self.given_up(tag) {
                self.sends.set(tag, now);
            }
            return;
        }
        if let Some(retry_ms) = error.data.retry_ms {
            let delay = self.spread(retry_ms.clamp(1, RETRY_MAX_MS));
            if !self.given_up(tag) {
                self.sends.set(tag, now.after_us(delay));
            }
        }
        if let Some(call) = self.calls.get_mut(&tag) {
            call.last_refusal = Some(error);
        }
    }

    /// Keeps the cookie of a `verify`, and tells whether the copy that it answers went out without it.
    fn take_cookie(&mut self, cookie: Option<&String>, sent_with: u32) -> bool {
        let Some(cookie) = cookie else { return false };
        if self.cookie.as_ref() != Some(cookie) {
            self.cookie = Some(cookie.clone());
            self.cookie_number += 1;
        }
        sent_with != self.cookie_number
    }

    fn on_no_session(&mut self, now: Time, tag: Tag, message: &str) {
        let why = format!("the server knows the session no more: {message}");
        let call = self.calls.get(&tag).expect("the caller has looked it up");
        let failure = match (&call.purpose, call.copies) {
            // Of an earlier copy no grant can be left, and nothing else is what a request for a lock does.
            (Purpose::Acquire { .. }, _) | (_, 1) => Failure::SessionEnded { why: why.clone() },
            (
                Purpose::Plain | Purpose::Cancel { .. } | Purpose::Release { .. } | Purpose::Renew { .. },
                _,
            ) => Failure::Unknown { why: why.clone() },
        };
        self.end(tag, Err(failure));
        match tag {
            Tag::Close(_) => self.closed(true),
            _ => self.session_ended(now, why),
        }
    }

    fn on_final(&mut self, now: Time, tag: Tag, reply: Result<Box<RawValue>, Box<ErrorShown>>) {
        let call = self.calls.get(&tag).expect("the caller has looked it up");
        let sent = call.first_sent.unwrap_or(now);
        for id in &call.got_named {
            self.got.remove(id);
        }
        let proves = matches!(tag, Tag::Logged(_) | Tag::Open(_)) && reply.is_ok();
        match tag {
            Tag::Open(_) => self.on_opened(now, tag, reply),
            Tag::Close(_) => {
                self.end(tag, Ok(()));
                self.closed(true);
            }
            Tag::Logged(_) | Tag::Read(_) | Tag::Beat(_) => self.on_answer(now, tag, sent, reply),
        }
        if proves {
            self.prove(now, sent);
        }
    }

    fn on_answer(&mut self, now: Time, tag: Tag, sent: Time, reply: Result<Box<RawValue>, Box<ErrorShown>>) {
        let call = self.calls.get_mut(&tag).expect("the caller has looked it up");
        let not_holder = reply.as_ref().is_err_and(|error| error.data.kind == "not_holder");
        match std::mem::replace(&mut call.purpose, Purpose::Plain) {
            Purpose::Plain => {
                if not_holder && call.params.holder.is_none() {
                    // The token may be lost, or only not cover this name: the heartbeat's answer tells.
                    self.beat(now);
                }
                self.end_with(tag, reply);
            }
            Purpose::Acquire { waits, cancel, .. } => {
                if waits {
                    self.got.insert(tag.number());
                }
                if let Some(cancel) = cancel {
                    self.drop_call(cancel);
                }
                self.on_acquired(now, tag, sent, reply);
                if waits {
                    self.beat(now);
                }
            }
            Purpose::Cancel { wait } => {
                self.drop_call(tag);
                self.on_cancelled(now, wait, reply);
            }
            Purpose::Release { token, .. } => {
                if not_holder {
                    self.lose(now, token, LostCause::Gone);
                }
                self.remove_grant(token);
                self.events.push_back(Event::Released { token });
                self.end_with(tag, reply);
            }
            Purpose::Renew { token, lease_ms } => {
                match &reply {
                    Ok(_) => self.renewed(now, token, Span::proven(sent, lease_ms)),
                    Err(_) if not_holder => self.lose(now, token, LostCause::Gone),
                    Err(_) => {}
                }
                self.end_with(tag, reply);
            }
        }
        self.after_end(now, tag);
    }

    fn after_end(&mut self, now: Time, tag: Tag) {
        self.unblock(now, tag);
        self.close_when_released(now);
        let acquiring = self.calls.values().any(|call| matches!(call.purpose, Purpose::Acquire { .. }));
        if !acquiring {
            self.early_losses.clear();
        }
    }

    fn on_opened(&mut self, now: Time, tag: Tag, reply: Result<Box<RawValue>, Box<ErrorShown>>) {
        self.drop_call(tag);
        let opened = match reply {
            Ok(raw) => match serde_json::from_str::<OpenedShown>(raw.get()) {
                Ok(opened) => opened,
                Err(error) => {
                    return self.session_ended(
                        now,
                        format!("the answer to open_session is not understood: {error}"),
                    );
                }
            },
            Err(error) => {
                let queued: Vec<Tag> =
                    self.calls.iter().filter(|(_, call)| call.in_session).map(|(tag, _)| *tag).collect();
                for tag in queued {
                    self.end(tag, Err(Failure::Refused(error.clone())));
                }
                let why = format!("no session was opened: {}", error.message);
                self.refusal = Some(error);
                return self.session_ended(now, why);
            }
        };
        self.session = Some(opened);
        if self.stage == Stage::Closing {
            return self.close_when_released(now);
        }
        self.stage = Stage::Open;
        self.events.push_back(Event::Opened);
        let queued: Vec<Tag> = self.calls.keys().copied().collect();
        for tag in queued {
            self.send_if_ready(tag, now);
        }
        self.sends.set(BEAT, now.after_us(opened.ttl_ms.saturating_mul(1_000) / 3));
    }

    fn on_beat(&mut self, now: Time, number: u64, reply: Result<Box<RawValue>, Box<ErrorShown>>) {
        let Some(Beat { sent, cookie_number }) = self.beats.get(&number).copied() else { return };
        let raw = match reply {
            Ok(raw) => raw,
            Err(error) if error.data.kind == "verify" => {
                if self.take_cookie(error.data.cookie.as_ref(), cookie_number) {
                    self.beat(now);
                }
                return;
            }
            Err(error) if error.data.kind == "no_session" => {
                return self
                    .session_ended(now, format!("the server knows the session no more: {}", error.message));
            }
            Err(_) => return,
        };
        let Ok(shown) = serde_json::from_str::<BeatShown>(raw.get()) else { return };
        self.beats = self.beats.split_off(&(number + 1));
        self.unanswered = 0;
        let ttl_us = self.session.map_or(0, |opened| opened.ttl_ms).saturating_mul(1_000);
        if matches!(self.stage, Stage::Open) {
            self.sends.set(BEAT, sent.after_us(ttl_us / 3).max(now));
        }
        for lost in &shown.lost {
            if self.grants.contains_key(&lost.token) {
                self.lose(now, lost.token, LostCause::Told(lost.reason.clone()));
            } else if self.early_losses.len() < EARLY_LOSSES_MAX {
                self.early_losses.insert(lost.token, lost.reason.clone());
            }
        }
        if shown.more {
            self.after = self.after.max(shown.lost.last().map_or(0, |lost| lost.op));
            self.beat(now);
        } else {
            self.after = self.after.max(shown.op);
            self.count(now, &shown);
        }
        self.prove(now, sent);
    }

    /// With nothing held at all, what this client believes in was ended by somebody else, or by more losses than the
    /// server remembers.
    fn count(&mut self, now: Time, shown: &BeatShown) {
        if shown.held > 0 {
            return;
        }
        let gone = |grant: &Grant| !grant.leaving && grant.told != GrantState::Lost && grant.op <= shown.op;
        let tokens: Vec<u64> =
            self.grants.iter().filter(|(_, grant)| gone(grant)).map(|(token, _)| *token).collect();
        for token in tokens {
            self.lose(now, token, LostCause::Gone);
        }
    }

    fn on_cancelled(&mut self, now: Time, wait: Tag, reply: Result<Box<RawValue>, Box<ErrorShown>>) {
        let Some(call) = self.calls.get(&wait) else { return };
        let sent = call.first_sent.unwrap_or(now);
        match reply {
            Ok(raw) => {
                if matches!(call.purpose, Purpose::Acquire { waits: true, .. }) {
                    self.got.insert(wait.number());
                }
                self.on_acquired(now, wait, sent, Ok(raw));
            }
            Err(error) => {
                let why = format!("no answer came, and it could not be taken back: {}", error.message);
                self.end(wait, Err(Failure::Unknown { why }));
            }
        }
        self.after_end(now, wait);
    }

    /// What came of a request for a lock, by its own answer or by that to its taking back.
    fn on_acquired(
        &mut self,
        now: Time,
        tag: Tag,
        sent: Time,
        reply: Result<Box<RawValue>, Box<ErrorShown>>,
    ) {
        let shown = match &reply {
            Ok(raw) => serde_json::from_str::<AcquiredShown>(raw.get()).unwrap_or_default(),
            Err(_) => AcquiredShown::default(),
        };
        let (true, Some(token), Ok(raw)) = (shown.granted, shown.token, &reply) else {
            return self.end_with(tag, reply);
        };
        if self.grants.contains_key(&token) {
            return self.end_with(tag, reply);
        }
        let call = self.calls.get(&tag).expect("the caller has looked it up");
        let (asked, deadline) = (call.asked, call.deadline);
        let keys: Vec<String> = shown.keys.into_iter().map(|name| name.key).collect();
        if let Some(reason) = self.early_losses.remove(&token) {
            let lost = LostGrant { token, keys, cause: LostCause::Told(reason) };
            return self.end(tag, Err(Failure::Lost(lost)));
        }
        if !matches!(self.stage, Stage::Open) {
            // The answer to a retry, told by a session that has ended since.
            let lost = LostGrant { token, keys, cause: LostCause::SessionEnded };
            return self.end(tag, Err(Failure::Lost(lost)));
        }
        if !asked {
            // Nobody will hold it. It was never used, so it is a release and no loss.
            self.drop_call(tag);
            return self.spawn_release(now, "release_lock", token, keys);
        }
        let lease = shown.lease_ms.map_or(Span::ENDLESS, |lease_ms| Span::proven(sent, lease_ms));
        // After a wait nobody knows here when the lease began; a quarter of it is what a caller may find used up.
        let renewing =
            shown.lease_ms.is_some_and(|lease_ms| now.us_since(sent) > lease_ms.saturating_mul(250));
        let proving = Some(Proving { call: tag, raw: raw.clone(), renewing });
        let told = GrantState::Safe;
        self.drop_call(tag);
        self.grants
            .insert(token, Grant { keys, op: shown.op, lease, told, cause: None, proving, leaving: false });
        self.prove(now, sent);
        if let (true, Some(lease_ms)) = (renewing, shown.lease_ms) {
            let params =
                Params { token: Some(Int(token)), lease_ms: Some(Int(lease_ms)), ..Params::default() };
            self.spawn(now, "renew_lease", params, Purpose::Renew { token, lease_ms });
        }
        self.hand_out(now, token);
        if let Some(grant) = self.grants.get(&token)
            && grant.proving.is_some()
        {
            self.beat(now);
            if let Some(deadline) = deadline {
                self.alarms.set(Alarm::Prove(token), deadline.max(now.after_ms(GRACE_MS)));
            }
        }
    }
}

/// Belief.
impl Engine {
    /// The session was alive when a request sent then arrived.
    fn prove(&mut self, now: Time, sent: Time) {
        let Some(opened) = self.session else { return };
        if !matches!(self.stage, Stage::Open) || self.proven.is_some_and(|proven| proven >= sent) {
            return;
        }
        self.proven = Some(sent);
        self.span = Span::proven(sent, opened.ttl_ms);
        self.look_at_all(now);
        let proving: Vec<u64> = self
            .grants
            .iter()
            .filter(|(_, grant)| grant.proving.is_some())
            .map(|(token, _)| *token)
            .collect();
        for token in proving {
            self.hand_out(now, token);
        }
    }

    /// Gives a grant to the call that asked for it, if it is proven to live.
    fn hand_out(&mut self, now: Time, token: u64) {
        let session = self.span.state(now);
        let Some(grant) = self.grants.get_mut(&token) else { return };
        let ready = session == GrantState::Safe && grant.lease.state(now) == GrantState::Safe;
        let Some(proving) = grant.proving.take_if(|proving| ready && !proving.renewing) else { return };
        let granted = Granted { token, keys: grant.keys.clone(), span: grant.lease };
        self.alarms.clear(Alarm::Prove(token));
        let answered = Answered { raw: proving.raw, granted: Some(granted) };
        self.tell_done(proving.call, Ok(answered));
        self.look_at(now, token);
    }

    /// Sets what a grant's own lease allows.
    fn set_lease(&mut self, now: Time, token: u64, change: impl FnOnce(Span) -> Span) {
        let Some(grant) = self.grants.get_mut(&token) else { return };
        if grant.told == GrantState::Lost {
            return;
        }
        let span = change(grant.lease);
        if span != grant.lease {
            grant.lease = span;
            if grant.proving.is_none() {
                self.events.push_back(Event::Lease { token, span });
            }
        }
        self.look_at(now, token);
    }

    fn renewed(&mut self, now: Time, token: u64, span: Span) {
        // With another renewal on its way nobody knows which the server will do last.
        let others = self
            .calls
            .values()
            .any(|call| matches!(&call.purpose, Purpose::Renew { token: other, .. } if *other == token));
        self.set_lease(now, token, |lease| if others { lease.and(span) } else { span });
        if let Some(proving) = self.grants.get_mut(&token).and_then(|grant| grant.proving.as_mut()) {
            proving.renewing = false;
        }
        self.hand_out(now, token);
    }

    /// Looks at every grant, and sets the alarm for the next change of belief in the session.
    fn look_at_all(&mut self, now: Time) {
        let tokens: Vec<u64> = self.grants.keys().copied().collect();
        for token in tokens {
            self.look_at(now, token);
        }
        match self.span.next(now) {
            Some(at) => self.alarms.set(Alarm::Session, at),
            None => self.alarms.clear(Alarm::Session),
        }
    }

    /// Tells what has changed about a grant, and sets the alarm for its own lease.
    fn look_at(&mut self, now: Time, token: u64) {
        let session = self.span.state(now);
        let Some(grant) = self.grants.get_mut(&token) else { return };
        if grant.told == GrantState::Lost || grant.proving.is_some() {
            return;
        }
        let lease = grant.lease.state(now);
        match session.max(lease) {
            GrantState::Lost => {
                let cause =
                    if lease == GrantState::Lost { LostCause::LeaseOver } else { LostCause::Unproven };
                return self.lose(now, token, cause);
            }
            state if state != grant.told => {
                grant.told = state;
                self.events.push_back(Event::Changed { token, state });
            }
            GrantState::Safe | GrantState::AtRisk => {}
        }
        if let Some(at) = grant.lease.next(now) {
            self.alarms.set(Alarm::Lease(token), at);
        }
    }

    /// A grant is lost. What nobody has told the server is told.
    fn lose(&mut self, now: Time, token: u64, cause: LostCause) {
        let Some(grant) = self.grants.get_mut(&token) else { return };
        if grant.told == GrantState::Lost {
            return;
        }
        grant.told = GrantState::Lost;
        grant.cause = Some(cause.clone());
        let keys = grant.keys.clone();
        let lost = LostGrant { token, keys: keys.clone(), cause: cause.clone() };
        match grant.proving.take() {
            Some(proving) => self.tell_done(proving.call, Err(Failure::Lost(lost.clone()))),
            None => self.events.push_back(Event::Lost(lost.clone())),
        }
        self.alarms.clear(Alarm::Prove(token));
        self.alarms.clear(Alarm::Lease(token));
        let unsent: Vec<Tag> = self
            .calls
            .iter()
            .filter(|(_, call)| call.copies == 0 && call.asked && call.under() == Some(token))
            .map(|(tag, _)| *tag)
            .collect();
        for tag in unsent {
            self.end(tag, Err(Failure::Lost(lost.clone())));
        }
        let releasing =
            |call: &Call| matches!(call.purpose, Purpose::Release { token: of, .. } if of == token);
        match cause {
            LostCause::Unproven | LostCause::LeaseOver if self.calls.values().any(releasing) => {}
            LostCause::Unproven | LostCause::LeaseOver => self.spawn_release(now, "abandon", token, keys),
            LostCause::Told(_) | LostCause::SessionEnded | LostCause::Gone => self.remove_grant(token),
        }
    }

    /// A grant that could not be proven in time, or that nobody waits for any more, was never handed out.
    fn give_up(&mut self, now: Time, token: u64) {
        if self.grants.get(&token).is_some_and(|grant| grant.proving.is_some()) {
            self.lose(now, token, LostCause::Unproven);
        }
    }

    fn proving_of(&self, tag: Tag) -> Option<u64> {
        let proving = |grant: &Grant| grant.proving.as_ref().is_some_and(|proving| proving.call == tag);
        self.grants.iter().find(|(_, grant)| proving(grant)).map(|(token, _)| *token)
    }

    fn remove_grant(&mut self, token: u64) {
        self.grants.remove(&token);
        self.alarms.clear(Alarm::Lease(token));
        self.alarms.clear(Alarm::Prove(token));
    }

    fn loss_of(&self, token: u64) -> LostGrant {
        let grant = self.grants.get(&token);
        let keys = grant.map(|grant| grant.keys.clone()).unwrap_or_default();
        let cause = grant.and_then(|grant| grant.cause.clone()).unwrap_or(LostCause::Unproven);
        LostGrant { token, keys, cause }
    }
}

/// Ends.
impl Engine {
    fn tell_done(&mut self, tag: Tag, result: Result<Answered, Failure>) {
        self.events.push_back(Event::Done { call: CallId(tag), result });
    }

    /// Forgets a request without a word.
    fn drop_call(&mut self, tag: Tag) -> Option<Call> {
        self.sends.clear(tag);
        self.alarms.clear(Alarm::Deadline(tag));
        self.calls.remove(&tag)
    }

    /// Ends a request; a result without a value is for those that nobody asked for.
    fn end(&mut self, tag: Tag, result: Result<(), Failure>) {
        if let (Some(call), Err(failure)) = (self.drop_call(tag), result)
            && call.asked
        {
            self.tell_done(tag, Err(failure));
        }
    }

    fn end_with(&mut self, tag: Tag, reply: Result<Box<RawValue>, Box<ErrorShown>>) {
        let Some(call) = self.drop_call(tag) else { return };
        if call.asked {
            let result = reply.map(|raw| Answered { raw, granted: None }).map_err(Failure::Refused);
            self.tell_done(tag, result);
        }
    }

    fn given_up(&self, tag: Tag) -> bool {
        matches!(
            self.calls.get(&tag).map(|call| &call.purpose),
            Some(Purpose::Acquire { cancel: Some(_), .. })
        )
    }

    /// The deadline of a call has passed, or nobody waits for it.
    fn give_up_call(&mut self, now: Time, tag: Tag, what: &str) {
        let Some(call) = self.calls.get_mut(&tag) else { return };
        let why = match &call.last_refusal {
            Some(refusal) => format!("{what}; the server last said: {}", refusal.message),
            None => what.to_owned(),
        };
        if call.copies == 0 && !matches!(tag, Tag::Open(_)) {
            let releasing = matches!(call.purpose, Purpose::Release { .. });
            if !releasing {
                self.end(tag, Err(Failure::NotSent { why }));
                return self.after_end(now, tag);
            }
        }
        let asked = call.asked;
        match &mut call.purpose {
            Purpose::Plain | Purpose::Renew { .. } => {
                let failure = match tag {
                    Tag::Logged(_) => Failure::Unknown { why },
                    Tag::Read(_) | Tag::Open(_) | Tag::Close(_) | Tag::Beat(_) => Failure::NoAnswer { why },
                };
                self.end(tag, Err(failure));
                self.after_end(now, tag);
            }
            Purpose::Cancel { .. } | Purpose::Release { .. } => {
                // The server must hear of it in any case: it goes on for as long as the session lives.
                call.asked = false;
                if asked {
                    self.tell_done(tag, Err(Failure::Unknown { why }));
                }
            }
            Purpose::Acquire { cancel: Some(_), .. } => {
                call.asked = false;
                if asked {
                    self.tell_done(tag, Err(Failure::Unknown { why }));
                }
            }
            Purpose::Acquire { .. } => self.take_back(now, tag),
        }
    }

    /// Takes a request for a lock back. Its copies stop; what the server did first, or will not do any more, is its result.
    fn take_back(&mut self, now: Time, tag: Tag) {
        if !matches!(self.stage, Stage::Open) {
            // With its session it ends by itself.
            return self.end(
                tag,
                Err(Failure::SessionEnded { why: "no answer came before the session's end".into() }),
            );
        }
        self.sends.clear(tag);
        let params = Params { wait: Some(Int(tag.number())), ..Params::default() };
        let taking = self.spawn(now, "cancel_wait", params, Purpose::Cancel { wait: tag });
        let Some(call) = self.calls.get_mut(&tag) else { return };
        if let Purpose::Acquire { cancel, .. } = &mut call.purpose {
            *cancel = Some(taking);
        }
        if call.asked {
            self.alarms.set(Alarm::Deadline(tag), now.after_ms(GRACE_MS));
        }
    }

    /// The session is no more. What was sent still asks for its answer, which the server keeps for a while.
    fn session_ended(&mut self, now: Time, why: String) {
        match self.stage {
            Stage::Ended { .. } | Stage::Closed => return,
            Stage::Closing => return self.closed(true),
            Stage::Idle | Stage::Opening | Stage::Open => {}
        }
        self.stage = Stage::Ended { why: why.clone() };
        self.sends.clear(BEAT);
        self.alarms.clear(Alarm::Session);
        let tokens: Vec<u64> = self.grants.keys().copied().collect();
        for token in tokens {
            self.lose(now, token, LostCause::SessionEnded);
        }
        self.grants.clear();
        let over: Vec<Tag> = self
            .calls
            .iter()
            .filter(|(_, call)| call.in_session && (call.copies == 0 || !call.asked))
            .map(|(tag, _)| *tag)
            .collect();
        for tag in over {
            self.end(tag, Err(Failure::SessionEnded { why: why.clone() }));
        }
        self.events.push_back(Event::Ended { why });
    }

    /// Tells the server of the close once every release is answered: a section's release must not come second.
    fn close_when_released(&mut self, now: Time) {
        let busy = |tag: &Tag, call: &Call| {
            matches!(call.purpose, Purpose::Release { .. }) || matches!(tag, Tag::Open(_) | Tag::Close(_))
        };
        if self.stage != Stage::Closing || self.calls.iter().any(|(tag, call)| busy(tag, call)) {
            return;
        }
        let tag = Tag::Close(self.next_echo());
        let mut call = Call::new("close_session", Params::default(), Purpose::Plain, false);
        call.in_session = true;
        self.insert(tag, call);
        self.sends.set(tag, now);
    }

    fn closed(&mut self, answered: bool) {
        self.stage = Stage::Closed;
        let tags: Vec<Tag> = self.calls.keys().copied().collect();
        for tag in tags {
            // Of a request for a lock nothing is left after a close that was answered.
            let acquire =
                |call: &Call| matches!(call.purpose, Purpose::Acquire { .. } | Purpose::Cancel { .. });
            let sent =
                self.calls.get(&tag).is_some_and(|call| call.copies > 0 && !(answered && acquire(call)));
            let why = || "the client was closed before the answer came".to_owned();
            let failure = match (sent, tag) {
                (false, _) => Failure::Closed,
                (true, Tag::Logged(_)) => Failure::Unknown { why: why() },
                (true, Tag::Read(_) | Tag::Open(_) | Tag::Close(_) | Tag::Beat(_)) => {
                    Failure::NoAnswer { why: why() }
                }
            };
            self.end(tag, Err(failure));
        }
        let tokens: Vec<u64> = self.grants.keys().copied().collect();
        for token in tokens {
            let proving = self.grants.get_mut(&token).and_then(|grant| grant.proving.take());
            if let Some(proving) = proving {
                self.tell_done(proving.call, Err(Failure::Closed));
            }
        }
        self.grants.clear();
        self.sends = Timers::default();
        self.alarms = Timers::default();
        self.events.push_back(Event::Closed { answered });
    }
}

impl Call {
    fn new(method: &str, params: Params, purpose: Purpose, asked: bool) -> Call {
        Call {
            method: method.into(),
            params,
            purpose,
            asked,
            in_session: false,
            deadline: None,
            copies: 0,
            first_sent: None,
            cookie_number: 0,
            got_named: Vec::new(),
            last_refusal: None,
            behind: None,
        }
    }

    /// The token of this session that it acts under, if it does.
    fn under(&self) -> Option<u64> {
        self.params.token.filter(|_| self.params.holder.is_none()).map(|token| token.0)
    }
}

/// Whether a method changes the state, under an id with a number.
fn is_logged(method: &str) -> bool {
    matches!(
        method,
        "acquire_lock"
            | "cancel_wait"
            | "release_lock"
            | "abandon"
            | "renew_lease"
            | "convert_lock"
            | "break_lock"
            | "ask_release"
            | "set"
            | "delete"
            | "transaction"
            | "append_file"
            | "delete_file"
            | "rotate_file"
            | "repair_file"
    )
}

/// Whether a method that is not logged asks on behalf of the session.
fn needs_session(method: &str, params: &Params) -> bool {
    params.token.is_some() || matches!(method, "heartbeat" | "close_session")
}

/// The locks that a request asks for.
fn keys_of(params: &Params) -> Vec<String> {
    let several = params.keys.iter().flatten().map(|ask| match ask {
        crate::wire::KeyAsk::Name(name) => name.clone(),
        crate::wire::KeyAsk::Mode(mode) => mode.key.clone(),
    });
    params.key.iter().cloned().chain(several).collect()
}
