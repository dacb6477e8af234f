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
//!
//! A conversion is a request for a lock too. What it was given takes the place of the grant that it converts, whether
//! anybody still waits for the answer or not: the token is then another one ([`Event::Converted`]), and what was to be sent
//! under the old one and could not yet (a release) goes out under the new one.

mod answers;
mod belief;
mod calls;
mod ends;
mod send;

use crate::client::handover::{Asking, Offer};
use crate::client::lease::{GrantState, LostCause, LostGrant, Span};
use crate::client::message::{self, Incoming, OpenedShown, Tag};
use crate::client::timers::Timers;
use crate::identity::{Nonce, SessionId};
use crate::time::Time;
use crate::wire::{ErrorShown, Int, KeyAsk, KeyShown, Params, Pending};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

/// Before the first repetition of a request, in milliseconds; doubles with each.
pub const RETRY_FIRST_MS: u64 = 200;

/// Longest time between two copies of a request, in milliseconds.
pub const RETRY_MAX_MS: u64 = 2_000;

/// Time between two copies of a request that is known to stand in line, in milliseconds: only for a server that forgot,
/// in a restart, where to send the answer.
pub const PROBE_MS: u64 = 1_000;

/// How long past its deadline a request for a lock waits to hear that it was taken back, in milliseconds.
pub const GRACE_MS: u64 = 2_000;

/// Heartbeats whose answers may still come.
const BEATS_KEPT: usize = 64;

/// The timer of the next heartbeat: each gets its number only when it is sent.
const BEAT: Tag = Tag::Beat(0);

/// Losses of tokens not heard of yet that are remembered while requests for locks are out.
const EARLY_LOSSES_MAX: usize = 1_024;

/// Answered heartbeats that are remembered to tell when a grant was made at the earliest.
const MARKS_KEPT: usize = 64;

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

impl fmt::Display for CallId {
    /// The id on the wire, unless it was held back behind another call: then it got one later.
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
        pending: Box<Pending>,
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
    /// A grant was converted: it is held in other modes now, and after an upgrade under another token.
    Converted {
        /// The grant as it was known before.
        from: u64,
        /// As it is known now.
        token: u64,
        /// Its locks.
        keys: Vec<KeyShown>,
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
    /// Somebody asks that a grant is released.
    Asked(Asking),
    /// A grant of another session may be taken over.
    Offered(Offer),
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
    pub keys: Vec<KeyShown>,
    /// What its own lease allows.
    pub span: Span,
    /// What the bound on its tenure allows.
    pub hold: Span,
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
        /// The id under which it was sent.
        id: u64,
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
    /// Of these: what ends a grant or a wait, and what must not be sent before such a one is answered.
    enders: BTreeSet<Tag>,
    blocked: BTreeSet<Tag>,
    /// And what converts a grant.
    converting: BTreeSet<Tag>,
    /// Waits whose answers have arrived and that no answered request has named yet.
    got: BTreeSet<u64>,
    grants: BTreeMap<u64, Grant>,
    /// Of these: what no call was given yet.
    proving: BTreeSet<u64>,
    early_losses: BTreeMap<u64, LostCause>,
    early_asked: BTreeMap<u64, Asking>,
    /// The last command of which an offer was told.
    offers_told: u64,
    /// Of answered heartbeats: the last place in the log that was given then, and when they were sent. What has a later
    /// place was asked for after that.
    marks: VecDeque<(u64, Time)>,
    last_beat: Option<Time>,
    /// The send of the last request that is known to have found the session alive, and what that allows.
    proven: Option<Time>,
    span: Span,
    /// What belief in the session was when every grant was last looked at.
    looked: GrantState,
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
    /// The handle it was given, if it was held back before it got its number.
    held_as: Option<CallId>,
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
    /// Asks for a grant, or for other modes of one.
    Acquire {
        makes: Makes,
        keys: Vec<String>,
        owner: Option<String>,
        waits: bool,
        /// It is known to stand in line.
        pending: bool,
        /// The grant ends some time after it is made whatever is renewed: it matters when that is.
        bounded: bool,
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

/// What a request for a lock makes, if it is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Makes {
    /// A grant of this session.
    New,
    /// That grant of this session, converted.
    Converted(u64),
    /// Something of another session: nothing to keep here.
    Foreign,
}

/// A grant of this session.
#[derive(Debug)]
struct Grant {
    keys: Vec<KeyShown>,
    /// Who asked for it.
    owner: Option<String>,
    op: u64,
    /// What its own lease allows.
    lease: Span,
    /// What the bound on its tenure allows, which nothing renews.
    hold: Span,
    /// That its release is asked for, if so.
    asked: Option<Asking>,
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
    call: CallId,
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
            enders: BTreeSet::new(),
            blocked: BTreeSet::new(),
            converting: BTreeSet::new(),
            got: BTreeSet::new(),
            grants: BTreeMap::new(),
            proving: BTreeSet::new(),
            early_losses: BTreeMap::new(),
            early_asked: BTreeMap::new(),
            offers_told: 0,
            marks: VecDeque::new(),
            last_beat: None,
            proven: None,
            span: Span::ENDLESS,
            looked: GrantState::Safe,
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
        if let Some(failure) = self.refuse(now, method, &params, in_session) {
            let call = CallId(Tag::Held(self.next_echo()));
            self.tell_done(call, Err(failure));
            return call;
        }
        let purpose = self.purpose(method, &params);
        if let Purpose::Release { token, .. } = &purpose {
            self.begin_release(now, *token);
        }
        let behind = self.find_behind(&purpose);
        let tag = match (logged, behind) {
            (true, None) => Tag::Logged(self.next_id()),
            (true, Some(_)) => Tag::Held(self.next_echo()),
            (false, _) => Tag::Read(self.next_echo()),
        };
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
        let Some(tag) = self.tag_of(call) else {
            if let Some(token) = self.proving_of(call) {
                self.give_up(now, token);
            }
            return;
        };
        if let Some(call) = self.calls.get_mut(&tag) {
            call.asked = false;
        }
        self.give_up_call(now, tag, "nobody waits for it any more");
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
            Incoming::About { token } => {
                // A hint, and anybody could send it: the heartbeat's answer decides.
                if self.grants.get(&token).is_some_and(|grant| grant.told != GrantState::Lost) {
                    self.beat(now);
                }
            }
            Incoming::Offered => self.beat(now),
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
            GrantState::Safe | GrantState::AtRisk => self.span.and(grant.own()).state(now),
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
        self.events.is_empty() && !self.calls.values().any(|call| call.asked) && self.proving.is_empty()
    }
}

impl Grant {
    /// What its lease and the bound on its tenure allow.
    fn own(&self) -> Span {
        self.lease.and(self.hold)
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
            held_as: None,
            copies: 0,
            first_sent: None,
            cookie_number: 0,
            got_named: Vec::new(),
            last_refusal: None,
            behind: None,
        }
    }

    /// What the caller knows it by.
    fn handle(&self, tag: Tag) -> CallId {
        self.held_as.unwrap_or(CallId(tag))
    }

    /// The grant that it converts, if it does.
    fn converts(&self) -> Option<u64> {
        match self.purpose {
            Purpose::Acquire { makes: Makes::Converted(token), .. } => Some(token),
            _ => None,
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
            | "hand_over"
            | "take_over"
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

impl Grant {
    fn names(&self) -> Vec<String> {
        self.keys.iter().map(|lock| lock.key.clone()).collect()
    }
}

/// The locks that a request asks for.
fn keys_of(params: &Params) -> Vec<String> {
    let several = params.keys.iter().flatten().map(|ask| match ask {
        KeyAsk::Name(name) => name.clone(),
        KeyAsk::Mode(mode) => mode.key.clone(),
    });
    params.key.iter().cloned().chain(several).collect()
}
