//! Clients under simulation: the real engine, and owners who ask at random and remember what they were told.

use crate::checks::{Belief, Checks, Fate, Floor, Mode, Span, Waited};
use crate::plan::Plan;
use fastrand::Rng;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use tenure::client::GrantState;
use tenure::client::engine::{Config, Engine, Event, Failure, Stage};
use tenure::command;
use tenure::identity::Nonce;
use tenure::time::Time;
use tenure::wire::{ChangeAsk, CompareAsk, Int, KeyAsk, KeyMode, Params, WaitMs};

/// What a call is for, as far as its answer must be judged.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    Acquire { keys: Vec<(String, Mode)>, atomic: bool, waits: bool, delay_ms: u64, max_hold_ms: Option<u64> },
    Convert { token: u64 },
    Release { token: u64, abandon: bool },
    Renew { token: u64 },
    Set { key: String, value: String, expected: Option<u64>, token: Option<u64>, staged: bool },
    Transaction { writes: Vec<(String, String)>, expected: Option<u64> },
    Delete { key: String },
    Get { key: String },
    Pair,
    Append { file: String, data: String, token: u64, staged: bool },
    ReadFile { file: String, offset: u64 },
    Repair { file: String },
    Watch { chain: usize, cursor: Option<String> },
}

impl What {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            What::Acquire { .. } => "acquire",
            What::Convert { .. } => "convert",
            What::Release { .. } => "release",
            What::Renew { .. } => "renew",
            What::Set { .. } => "set",
            What::Transaction { .. } => "transaction",
            What::Delete { .. } => "delete",
            What::Get { .. } => "get",
            What::Pair => "range",
            What::Append { .. } => "append",
            What::ReadFile { .. } => "read_file",
            What::Repair { .. } => "repair_file",
            What::Watch { .. } => "watch",
        }
    }

    /// What was asked, by the names of its parts, and what came of it.
    fn line(&self, more: Option<(&str, Value)>) -> Value {
        let mut shown = match serde_json::to_value(self).expect("it is plain data") {
            Value::Object(named) => named.into_iter().next().map_or(Value::Null, |(_, parts)| parts),
            _ => json!({}),
        };
        if let Some((name, value)) = more {
            shown[name] = value;
        }
        shown
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) what: What,
    owner: usize,
    pub(crate) began: u64,
    pending: Option<u64>,
    floors: BTreeMap<String, Floor>,
}

#[derive(Clone, Debug)]
struct Held {
    life: u64,
    token: u64,
    keys: Vec<(String, Mode)>,
    atomic: bool,
    lease: bool,
    delay_ms: u64,
    /// It was held in other modes than it is, or may be.
    converted: bool,
    staged: Vec<(String, String)>,
    appends: Vec<(String, String)>,
    leaving: bool,
    /// Something that was to be staged may be or not: it is abandoned, not released.
    tainted: bool,
}

#[derive(Debug)]
pub(crate) struct Owner {
    name: String,
    busy: Option<(u64, String)>,
    held: Vec<Held>,
    pub(crate) think_at: u64,
}

/// A line of the history.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) at: u64,
    pub(crate) process: u64,
    pub(crate) kind: &'static str,
    pub(crate) what: &'static str,
    /// What was asked, and what was answered to it.
    pub(crate) value: Value,
}

/// The lease of a grant, from the send of the request that proves it.
pub(crate) struct Proven {
    pub(crate) token: u64,
    /// Simulated time.
    pub(crate) sent: u64,
    pub(crate) lease_ms: u64,
}

/// What is the same for all clients.
pub(crate) struct Scene<'a> {
    pub(crate) now: u64,
    pub(crate) plan: &'a Plan,
    pub(crate) rough: bool,
    pub(crate) checks: &'a mut Checks,
    /// Leases of grants that were proven to a client.
    pub(crate) proven: &'a mut Vec<Proven>,
    pub(crate) counts: &'a mut BTreeMap<&'static str, u64>,
    pub(crate) history: Option<&'a mut Vec<Line>>,
}

impl Scene<'_> {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn line(&mut self, process: u64, kind: &'static str, what: &'static str, value: Value) {
        if let Some(history) = &mut self.history {
            history.push(Line { at: self.now, process, kind, what, value });
        }
    }
}

pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) rng: Rng,
    pub(crate) address: SocketAddr,
    engines: Vec<(u64, Engine)>,
    life: u64,
    rate: u64,
    offset: u64,
    pub(crate) paused_until: u64,
    pub(crate) inbox: Vec<Vec<u8>>,
    pub(crate) owners: Vec<Owner>,
    pub(crate) calls: BTreeMap<(u64, String), Call>,
    ttl_ms: u64,
    drawn: u64,
    pub(crate) wake_at: Option<u64>,
    /// When its next turn is due.
    pub(crate) due_at: Option<u64>,
    pub(crate) closing: bool,
    pub(crate) last_done: u64,
    generations: BTreeMap<String, u64>,
    /// The watch that goes on, and from where; it has no cursor before its first answer.
    watching: Option<(usize, Option<String>)>,
    /// Owners whose request for locks ended without an answer: it may stand in line still.
    unsettled: BTreeSet<String>,
    /// The public numbers of its sessions: an answer may come late, when the next one is open.
    numbers: BTreeSet<u64>,
}

impl Client {
    pub(crate) fn new(number: usize, plan: &Plan, rng: &mut Rng, address: SocketAddr) -> Client {
        let mut rng = rng.fork();
        let rate = if plan.clock_rates { rng.u64(900_000..=1_100_000) } else { 1_000_000 };
        let owners = (0..plan.owners)
            .map(|owner| Owner {
                name: format!("o{owner}"),
                busy: None,
                held: Vec::new(),
                think_at: rng.u64(0..=plan.think_us),
            })
            .collect();
        let ttl_ms = rng.u64(plan.ttl_ms.0..=plan.ttl_ms.1);
        let mut client = Client {
            number,
            address,
            engines: Vec::new(),
            life: 0,
            rate,
            offset: rng.u64(0..=1_000_000_000),
            paused_until: 0,
            inbox: Vec::new(),
            owners,
            calls: BTreeMap::new(),
            ttl_ms,
            drawn: 0,
            wake_at: None,
            due_at: None,
            closing: false,
            last_done: 0,
            generations: BTreeMap::new(),
            watching: None,
            unsettled: BTreeSet::new(),
            numbers: BTreeSet::new(),
            rng,
        };
        client.begin_process();
        client
    }

    /// As the library does: a new process may be given the address of an old one, and get answers meant for that.
    fn begin_process(&mut self) {
        let first_id = 1 + self.rng.u64(0..=0xff_ffff);
        self.begin_session(first_id);
    }

    fn begin_session(&mut self, first_id: u64) {
        self.life += 1;
        let nonce = Nonce((self.number as u128 + 1) << 64 | u128::from(self.life));
        let config = Config {
            nonce,
            name: format!("c{}", self.number),
            label: String::new(),
            ttl_ms: Some(self.ttl_ms),
            first_id,
            seed: self.rng.u64(..),
        };
        self.engines.push((self.life, Engine::new(config)));
    }

    /// The process is killed; another one begins later.
    pub(crate) fn kill(&mut self, scene: &mut Scene<'_>, back_at: u64) {
        scene.checks.forget(self.number);
        for (_, call) in std::mem::take(&mut self.calls) {
            ends_unknown(scene, &call, Fate::Maybe);
        }
        self.engines.clear();
        self.inbox.clear();
        self.watching = None;
        for owner in &mut self.owners {
            // What was staged and not released is gone, or was released by a request of which nothing is known.
            (owner.busy, owner.held) = (None, Vec::new());
            owner.think_at = back_at;
        }
        self.paused_until = back_at;
        self.begin_process();
    }

    fn local(&self, now: u64) -> Time {
        Time::from_micros(self.offset + now * self.rate / 1_000_000)
    }

    fn simulated(&self, local: Time) -> u64 {
        (local.as_micros().saturating_sub(self.offset)).saturating_mul(1_000_000) / self.rate + 1
    }

    /// What a client believes of the lease of a grant; none if it has none.
    fn proven(&self, token: u64, span: tenure::client::Span) -> Option<Proven> {
        // At risk from two thirds, lost from four fifths: between them lie two fifteenths.
        let lease_us = span.lost.us_since(span.at_risk) * 15 / 2;
        let sent = span
            .lost
            .as_micros()
            .checked_sub(lease_us / 5 * 4)
            .filter(|_| span != tenure::client::Span::ENDLESS)?;
        let sent = self.simulated(Time::from_micros(sent));
        Some(Proven { token, sent, lease_ms: (lease_us + 500) / 1_000 })
    }

    fn engine(&mut self) -> &mut Engine {
        &mut self.engines.last_mut().expect("there is always one").1
    }

    /// Whether its clock and what it was told let it believe in a grant.
    pub(crate) fn believes(&self, now: u64, belief: &Belief) -> bool {
        let engine = self.engines.iter().find(|(life, _)| *life == belief.life);
        let state = engine.and_then(|(_, engine)| engine.grant_state(self.local(now), belief.token));
        matches!(state, Some(GrantState::Safe | GrantState::AtRisk))
    }

    /// Whether somebody believes so, this client or another.
    fn lives(&self, now: u64, others: &[Client], belief: &Belief) -> bool {
        others.iter().chain([self]).any(|one| one.number == belief.client && one.believes(now, belief))
    }

    pub(crate) fn public_number(&self) -> Option<u64> {
        self.engines.last().and_then(|(_, engine)| engine.session()).map(|(_, number, _)| number)
    }

    /// Whether an owner has asked for this lock and not been answered, as far as this client knows, or was answered since.
    pub(crate) fn asks_for(&self, owner: &str, key: &str) -> bool {
        self.unsettled.contains(owner)
            || self.calls.values().any(|call| {
                let named = self.owners.get(call.owner).is_some_and(|known| known.name == owner);
                named
                    && match &call.what {
                        What::Acquire { keys, .. } => keys.iter().any(|(name, _)| name == key),
                        What::Convert { .. } => true,
                        _ => false,
                    }
            })
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.calls.is_empty() && self.owners.iter().all(|owner| owner.held.is_empty() && owner.busy.is_none())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.engines.last().is_none_or(|(_, engine)| {
            matches!(engine.stage(), Stage::Closed | Stage::Ended { .. } | Stage::Idle)
        })
    }

    pub(crate) fn close(&mut self, now: u64) {
        let (local, deadline) = (self.local(now), self.local(now + 10_000_000));
        self.closing = true;
        self.engine().close(local, deadline);
    }

    /// One turn of the client's thread. Gives what it sends, and whom it needs to compare beliefs with.
    pub(crate) fn turn(&mut self, scene: &mut Scene<'_>, others: &[Client]) -> Vec<Vec<u8>> {
        let local = self.local(scene.now);
        let mut out = Vec::new();
        for bytes in std::mem::take(&mut self.inbox) {
            for (_, engine) in &mut self.engines {
                engine.handle_datagram(local, &bytes);
            }
        }
        for (_, engine) in &mut self.engines {
            engine.handle_timeout(local);
        }
        self.take_events(scene, others);
        if !self.closing {
            self.think(scene);
        }
        for (_, engine) in &mut self.engines {
            while let Some(bytes) = engine.poll_transmit(local) {
                out.push(bytes);
            }
        }
        self.take_events(scene, others);
        let last = self.life;
        let calls = &self.calls;
        self.engines.retain(|(life, engine)| {
            *life == last || !engine.is_idle() || calls.keys().any(|(of, _)| of == life)
        });
        let timers = self.engines.iter().filter_map(|(_, engine)| engine.poll_timeout());
        let engine_at = timers.min().map(|at| self.simulated(at));
        let think_at =
            self.owners.iter().filter(|owner| owner.busy.is_none()).map(|owner| owner.think_at).min();
        let think_at = think_at.filter(|_| !self.closing && (scene.rough || !self.is_quiet()));
        self.wake_at = engine_at.into_iter().chain(think_at).min().map(|at| at.max(scene.now + 1));
        out
    }

    fn take_events(&mut self, scene: &mut Scene<'_>, others: &[Client]) {
        for index in 0..self.engines.len() {
            let life = self.engines[index].0;
            while let Some(event) = self.engines[index].1.poll_event() {
                self.take_event(scene, others, life, event);
            }
        }
    }

    fn take_event(&mut self, scene: &mut Scene<'_>, others: &[Client], life: u64, event: Event) {
        match event {
            Event::Pending { call, .. } => {
                if let Some(call) = self.calls.get_mut(&(life, call.to_string())) {
                    call.pending.get_or_insert(scene.now);
                    scene.count("waits");
                }
            }
            Event::Done { call, result } => {
                let Some(call) = self.calls.remove(&(life, call.to_string())) else {
                    scene.checks.live(false, || format!("call {call} of client {} ended twice", self.number));
                    return;
                };
                self.last_done = scene.now;
                let owner = &mut self.owners[call.owner];
                owner.busy = None;
                let pace = if scene.rough { scene.plan.think_us } else { 1_000 };
                owner.think_at = scene.now + self.rng.u64(0..=pace);
                let process = (self.number * 100 + call.owner) as u64;
                match result {
                    Ok(answered) => {
                        let value: Value =
                            serde_json::from_str(answered.raw.get()).expect("answers are JSON");
                        scene.count("answered");
                        scene.line(
                            process,
                            "ok",
                            call.what.name(),
                            call.what.line(Some(("answer", value.clone()))),
                        );
                        let granted = answered.granted.map(|granted| {
                            scene.proven.extend(self.proven(granted.token, granted.span));
                            granted.token
                        });
                        self.answered(scene, others, life, call, &value, granted);
                    }
                    Err(failure) => {
                        let fate = match &failure {
                            Failure::Unknown { .. } => Fate::Maybe,
                            _ => Fate::Never,
                        };
                        let kind = if fate == Fate::Maybe { "info" } else { "fail" };
                        let why = match &failure {
                            Failure::Refused(error) => {
                                json!({"kind": error.data.kind, "message": error.message})
                            }
                            other => json!({"message": format!("{other:?}")}),
                        };
                        scene.line(process, kind, call.what.name(), call.what.line(Some(("error", why))));
                        self.failed(scene, others, call, &failure, fate);
                    }
                }
            }
            Event::Lost(loss) => {
                scene.count("losses");
                scene.checks.disbelieve(self.number, life, loss.token);
                self.lose(scene, life, loss.token);
            }
            Event::Converted { from, token, keys } => {
                let keys: Vec<(String, Mode)> =
                    keys.iter().map(|key| (key.key.clone(), mode_of(&key.mode))).collect();
                scene.checks.disbelieve(self.number, life, from);
                let mode = Mode::Exclusive;
                let believed = self.believes(scene.now, &Belief { client: self.number, life, token, mode });
                // A release that is on its way follows its grant.
                for ((of, _), call) in &mut self.calls {
                    match &mut call.what {
                        What::Release { token: leaving, .. } if (*of, *leaving) == (life, from) => {
                            *leaving = token
                        }
                        _ => {}
                    }
                }
                let mut believed_in = Vec::new();
                for owner in &mut self.owners {
                    if let Some(held) =
                        owner.held.iter_mut().find(|held| (held.life, held.token) == (life, from))
                    {
                        let upgraded = held.keys.iter().any(|(name, mode)| {
                            *mode == Mode::Shared && keys.contains(&(name.clone(), Mode::Exclusive))
                        });
                        scene.checks.converted(from, token, upgraded);
                        (held.token, held.keys, held.converted) = (token, keys.clone(), true);
                        if token != from {
                            let holder = (self.number, life, owner.name.clone());
                            scene.checks.granted(Floor { token: from, ..Floor::default() }, token, holder);
                        }
                        // What came late may be lost already, as the next event then says.
                        if believed && !held.leaving {
                            believed_in = keys.clone();
                        }
                    }
                }
                for (key, mode) in &believed_in {
                    let belief = Belief { client: self.number, life, token, mode: *mode };
                    scene.checks.believe(key, belief, |other| self.lives(scene.now, others, other));
                }
            }
            Event::Ended { .. } if life == self.life && !self.closing => {
                scene.checks.session_ended((self.number, life));
                let first = self.engine().free_id();
                self.begin_session(first);
                scene.count("sessions ended");
            }
            Event::Closed { answered: true } => scene.checks.session_ended((self.number, life)),
            Event::Opened => {
                scene.count("sessions");
                let opened =
                    self.engines.iter().find(|(of, _)| *of == life).and_then(|(_, engine)| engine.session());
                self.numbers.extend(opened.map(|(_, number, _)| number));
            }
            Event::Lease { token, span } => scene.proven.extend(self.proven(token, span)),
            Event::Changed { .. }
            | Event::Asked(_)
            | Event::Offered(_)
            | Event::Released { .. }
            | Event::Ended { .. }
            | Event::Closed { .. } => {}
        }
    }

    /// A grant is no more, and nothing that was staged under it takes effect, unless a release is on its way.
    fn lose(&mut self, scene: &mut Scene<'_>, life: u64, token: u64) {
        for owner in &mut self.owners {
            if let Some(at) = owner.held.iter().position(|held| (held.life, held.token) == (life, token)) {
                let held = owner.held.remove(at);
                if !held.leaving {
                    drop_staged(scene, &held, Fate::Never);
                }
            }
        }
    }

    fn answered(
        &mut self,
        scene: &mut Scene<'_>,
        others: &[Client],
        life: u64,
        call: Call,
        value: &Value,
        granted: Option<u64>,
    ) {
        let floor = |key: &str| call.floors.get(key).copied().unwrap_or_default();
        if !matches!(call.what, What::Get { .. } | What::Pair | What::ReadFile { .. } | What::Watch { .. }) {
            scene.checks.session_acted((self.number, life), call.began);
        }
        if let What::Set { token: Some(token), .. } | What::Append { token, .. } | What::Renew { token } =
            call.what
        {
            scene.checks.served(token, floor(""));
        }
        match &call.what {
            What::Acquire { keys, atomic, waits, delay_ms, max_hold_ms } => {
                let Some(token) = granted else { return };
                scene.count("grants");
                let holder = (self.number, life, self.owners[call.owner].name.clone());
                // Who has given a lease up by its own clock, and asks again while the server still keeps it, is told its grant.
                let again = value["again"] == Value::Bool(true);
                if again {
                    scene.count("grants told again");
                    scene.checks.granted_again(token, holder);
                } else {
                    scene.checks.granted(floor(""), token, holder);
                }
                if !again {
                    scene.checks.granted_at(keys, token, scene.now);
                    if let Some(max_hold_ms) = max_hold_ms {
                        scene.checks.tenure(token, *max_hold_ms);
                    }
                }
                if !again && (*waits || call.pending.is_none()) {
                    let keys = keys.clone();
                    scene.checks.waited(Waited { keys, began: call.began, pending: call.pending, token });
                }
                for (key, mode) in keys {
                    let belief = Belief { client: self.number, life, token, mode: *mode };
                    scene.checks.believe(key, belief, |other| self.lives(scene.now, others, other));
                }
                self.owners[call.owner].held.push(Held {
                    life,
                    token,
                    keys: keys.clone(),
                    atomic: *atomic,
                    lease: value["lease_ms"].is_u64(),
                    // What it had already, it has on the terms of the request that made it.
                    delay_ms: if again { 0 } else { *delay_ms },
                    converted: false,
                    staged: Vec::new(),
                    appends: Vec::new(),
                    leaving: false,
                    tainted: again,
                });
            }
            What::Release { token, abandon } => {
                scene.count("releases");
                let version = value["op"].as_u64().unwrap_or(0);
                let owner = &mut self.owners[call.owner];
                if let Some(at) = owner.held.iter().position(|held| (held.life, held.token) == (life, *token))
                {
                    let held = owner.held.remove(at);
                    if *abandon && held.delay_ms > 0 && !held.converted {
                        scene.checks.closed(&held.keys, held.token, call.began, held.delay_ms);
                    }
                    self.commit(scene, &held, &call, version);
                }
            }
            What::Set { key, value: text, expected, token, staged } => {
                scene.count("writes");
                let version = value["version"].as_u64().unwrap_or(0);
                if *staged {
                    self.stage(life, *token, (key.clone(), text.clone()), false);
                } else {
                    scene.checks.write_ends(key, text, floor(key), Ok((version, *expected, *token)));
                }
            }
            What::Transaction { writes, expected } => {
                scene.count("writes");
                let version = value["version"].as_u64().unwrap_or(0);
                for (key, text) in writes {
                    let expected = expected.filter(|_| key == "k1");
                    scene.checks.write_ends(key, text, floor(key), Ok((version, expected, None)));
                }
            }
            What::Delete { key } => {
                let removed = value["version"].as_u64().unwrap_or(0);
                scene.checks.delete_ends(key, floor(key), Ok(removed));
            }
            What::Get { key } => {
                scene.count("reads");
                let found = value["found"] == Value::Bool(true);
                let shown = value["value"].as_str().unwrap_or_default();
                let version = value["version"].as_u64().unwrap_or(0);
                scene.checks.read(key, floor(key), found.then_some((version, shown)));
            }
            What::Pair => {
                scene.count("reads");
                let item = |key: &str| {
                    let items = value["items"].as_array().cloned().unwrap_or_default();
                    items.iter().find(|item| item["key"] == key).map(|item| {
                        let text = item["value"].as_str().unwrap_or_default().to_owned();
                        (item["version"].as_u64().unwrap_or(0), text)
                    })
                };
                let (one, other) = (item("pa"), item("pb"));
                for (key, found) in [("pa", &one), ("pb", &other)] {
                    let found = found.as_ref().map(|(version, text)| (*version, text.as_str()));
                    scene.checks.read(key, floor(key), found);
                }
                scene.checks.pair(one, other);
            }
            What::Append { file, data, token, staged } => {
                scene.count("appends");
                let offset = value["offset"].as_u64().unwrap_or(u64::MAX);
                if *staged {
                    self.stage(life, Some(*token), (file.clone(), data.clone()), true);
                } else {
                    scene.checks.append_ends(file, data, Ok(offset));
                }
            }
            What::ReadFile { file, offset } => {
                scene.count("reads");
                if let Some(data) = value["data"].as_str() {
                    scene.checks.file_read(file, *offset, data.as_bytes().to_vec());
                }
            }
            What::Convert { .. } => scene.count("conversions"),
            What::Renew { .. } => scene.count("renewals"),
            What::Repair { .. } => scene.count("repairs"),
            What::Watch { chain, cursor } => {
                scene.count("watches");
                if self.watching.as_ref() == Some(&(*chain, cursor.clone())) {
                    scene.checks.watched(*chain, value);
                    self.watching = Some((*chain, value["next"].as_str().map(str::to_owned)));
                }
            }
        }
    }

    fn stage(&mut self, life: u64, token: Option<u64>, what: (String, String), append: bool) {
        let mut helds = self.owners.iter_mut().flat_map(|owner| &mut owner.held);
        if let Some(held) = helds.find(|held| held.life == life && Some(held.token) == token) {
            if append {
                held.appends.push(what);
            } else {
                held.staged.retain(|(key, _)| *key != what.0);
                held.staged.push(what);
            }
        }
    }

    /// A section was released.
    fn commit(&mut self, scene: &mut Scene<'_>, held: &Held, call: &Call, version: u64) {
        if !held.staged.is_empty() || !held.appends.is_empty() {
            scene.count("sections");
        }
        for (key, text) in &held.staged {
            let floor = call.floors.get(key).copied().unwrap_or_default();
            scene.checks.write_ends(key, text, floor, Ok((version, None, Some(held.token))));
        }
        for (file, data) in &held.appends {
            scene.checks.append_ends(file, data, Err(Fate::Done));
        }
    }

    fn failed(
        &mut self,
        scene: &mut Scene<'_>,
        others: &[Client],
        call: Call,
        failure: &Failure,
        fate: Fate,
    ) {
        let kind = match failure {
            Failure::Refused(error) => error.data.kind.as_str(),
            _ => "",
        };
        match failure {
            Failure::Unknown { .. } => scene.count("unknown"),
            _ => scene.count("refused"),
        }
        if let Failure::Refused(error) = failure
            && kind == "deadlock"
        {
            scene.count("deadlocks");
            let mut fault = (error.data.cycle.len() < 2).then(|| format!("{:?}", error.data.cycle));
            if error.data.cycle.first().is_none_or(|step| !self.numbers.contains(&step.client)) {
                fault = Some(format!("the asker is not first: {:?}", error.data.cycle));
            }
            for step in error.data.cycle.iter().skip(1) {
                let mut all = others.iter().chain([&*self]);
                let who = all.find(|other| other.public_number() == Some(step.client));
                // A client that was killed, or has another session by now, says nothing.
                if who
                    .is_some_and(|who| who.paused_until <= scene.now && !who.asks_for(&step.owner, &step.key))
                {
                    // It may have been answered since; then it would have been answered after this was asked.
                    let late = who.is_some_and(|who| who.last_done >= call.began);
                    if !late {
                        fault = Some(format!("{} does not wait for {}: {step:?}", step.owner, step.key));
                    }
                }
            }
            scene.checks.cycle(fault);
        }
        if !matches!(failure, Failure::Refused(_))
            && matches!(call.what, What::Acquire { .. } | What::Convert { .. })
        {
            self.unsettled.insert(self.owners[call.owner].name.clone());
        }
        if kind == "file_fault"
            && let What::Append { file, .. } = &call.what
        {
            self.generations.insert(file.clone(), 1);
        }
        if let What::Set { token: Some(token), staged: true, .. } = &call.what {
            for held in self.owners.iter_mut().flat_map(|owner| &mut owner.held) {
                held.tainted |= held.token == *token && fate == Fate::Maybe;
            }
        }
        if let What::Watch { cursor, .. } = &call.what
            && (cursor.is_none() || kind == "compacted")
        {
            // What comes is another history.
            self.watching = None;
        }
        if let What::Release { token, .. } = &call.what {
            let owner = &mut self.owners[call.owner];
            if let Some(at) = owner.held.iter().position(|held| held.token == *token) {
                // A section that cannot take effect leaves its grant.
                let stays = matches!(kind, "limit" | "file_fault" | "bad_name");
                if stays {
                    (owner.held[at].leaving, owner.held[at].tainted) = (false, true);
                } else {
                    let held = owner.held.remove(at);
                    drop_staged(scene, &held, fate);
                }
            }
        }
        ends_unknown(scene, &call, fate);
    }

    fn think(&mut self, scene: &mut Scene<'_>) {
        for index in 0..self.owners.len() {
            if self.owners[index].busy.is_none() && self.owners[index].think_at <= scene.now {
                self.act(scene, index);
            }
        }
    }

    fn names(&mut self, plan: &Plan) -> String {
        format!("l{}", self.rng.usize(0..plan.names))
    }

    fn value(&mut self) -> String {
        self.drawn += 1;
        format!("{}.{}.{}", self.number, self.life, self.drawn)
    }

    fn act(&mut self, scene: &mut Scene<'_>, index: usize) {
        let holds = self.owners[index].held.iter().find(|held| !held.leaving).cloned();
        let chance = self.rng.u8(0..100);
        match holds {
            Some(held) if !scene.rough => self.release(scene, index, &held),
            None if !scene.rough => {}
            Some(held) => self.act_holding(scene, index, held, chance),
            None => self.act_free(scene, index, chance),
        }
        let owner = &mut self.owners[index];
        if owner.busy.is_none() {
            owner.think_at = scene.now + 1 + self.rng.u64(0..=scene.plan.think_us);
        }
    }

    fn act_free(&mut self, scene: &mut Scene<'_>, index: usize, chance: u8) {
        match chance {
            0..55 => self.acquire(scene, index, false),
            55..65 => {
                let key = self.free_key(scene.plan);
                self.set(scene, index, key, None);
            }
            65..75 => {
                let key = self.free_key(scene.plan);
                self.call(scene, index, What::Get { key: key.clone() }, "get", key_params(&key), &[&key]);
            }
            75..80 => {
                let key = self.free_key(scene.plan);
                scene.checks.delete_begins(&key);
                self.call(
                    scene,
                    index,
                    What::Delete { key: key.clone() },
                    "delete",
                    key_params(&key),
                    &[&key],
                );
            }
            80..85 => {
                let keys: Vec<String> = (0..2).map(|at| format!("k{at}")).collect();
                let writes: Vec<(String, String)> =
                    keys.iter().map(|key| (key.clone(), self.value())).collect();
                let apply = writes.iter().map(|(key, text)| {
                    let value = Some(raw(text));
                    ChangeAsk { key: key.clone(), value, ..ChangeAsk::default() }
                });
                let expected = self.rng.bool().then(|| scene.checks.floor(Some("k1")).seen);
                let compare =
                    expected.map(|version| vec![CompareAsk { key: "k1".into(), version: Int(version) }]);
                let params = Params { apply: Some(apply.collect()), compare, ..Params::default() };
                for (key, text) in &writes {
                    scene.checks.write_begins(key, text, None);
                }
                let floors: Vec<&str> = keys.iter().map(String::as_str).collect();
                let what = What::Transaction { writes, expected };
                self.call(scene, index, what, "transaction", params, &floors);
            }
            85..93 => {
                let params = Params { from: Some("pa".into()), to: Some("pb".into()), ..Params::default() };
                self.call(scene, index, What::Pair, "range", params, &["pa", "pb"]);
            }
            93..96 => {
                let file = self.names(scene.plan);
                let offset = self.rng.u64(0..200);
                let params =
                    Params { file: Some(file.clone()), offset: Some(Int(offset)), ..Params::default() };
                self.call(scene, index, What::ReadFile { file, offset }, "read_file", params, &[]);
            }
            96..98 => {
                let wait_ms = Some(WaitMs(Some(Int(self.rng.u64(0..2_000)))));
                self.watch(scene, index, wait_ms);
            }
            _ => {
                // The whole session, now and then.
                if self.rng.u8(0..4) == 0 && self.calls.is_empty() && self.is_quiet() {
                    let (local, deadline) = (self.local(scene.now), self.local(scene.now + 5_000_000));
                    let first = self.engine().free_id();
                    self.engine().close(local, deadline);
                    self.begin_session(first);
                    scene.count("closes");
                }
            }
        }
    }

    fn act_holding(&mut self, scene: &mut Scene<'_>, index: usize, held: Held, chance: u8) {
        let exclusive: Vec<String> = held
            .keys
            .iter()
            .filter(|(_, mode)| *mode == Mode::Exclusive)
            .map(|(key, _)| key.clone())
            .collect();
        let name = (!exclusive.is_empty()).then(|| exclusive[self.rng.usize(0..exclusive.len())].clone());
        match (chance, name) {
            // A pair is written whole: both keys, one value.
            (0..50, Some(_)) if held.keys[0].0 == "pa" && held.staged.len() < 2 && held.atomic => {
                let key = if held.staged.is_empty() { "pa" } else { "pb" };
                let text = held.staged.first().map_or_else(|| self.value(), |(_, text)| text.clone());
                self.set_value(scene, index, key.into(), text, Some(&held));
            }
            (0..25, Some(key)) if held.keys[0].0 != "pa" => self.set(scene, index, key, Some(&held)),
            (25..50, Some(file)) if held.keys[0].0 != "pa" => self.append(scene, index, file, &held),
            (50..58, _) if held.lease => {
                let lease_ms = Some(Int(self.rng.u64(200..3_000)));
                let params = Params { token: Some(Int(held.token)), lease_ms, ..Params::default() };
                self.call(scene, index, What::Renew { token: held.token }, "renew_lease", params, &[]);
            }
            (58..66, _) if scene.plan.modes && held.keys[0].0 != "pa" && !held.atomic => {
                let (key, mode) = &held.keys[0];
                let to = match mode {
                    Mode::Exclusive => "shared",
                    Mode::Shared => "exclusive",
                    Mode::Slot { .. } => return,
                };
                if to == "shared" {
                    // From here on nobody may rely on more.
                    scene.checks.weaken(key, self.number, held.life, held.token);
                }
                for known in &mut self.owners[index].held {
                    known.converted |= known.token == held.token;
                }
                let wait_ms = Some(WaitMs(Some(Int(self.rng.u64(0..3_000)))));
                let params = Params {
                    token: Some(Int(held.token)),
                    key: Some(key.clone()),
                    mode: Some(to.into()),
                    wait_ms,
                    ..Params::default()
                };
                self.call(scene, index, What::Convert { token: held.token }, "convert_lock", params, &[]);
            }
            (66..78, _) if scene.plan.nested && self.owners[index].held.len() < 3 => {
                self.acquire(scene, index, true);
            }
            (78..82, Some(key)) => {
                self.call(scene, index, What::Get { key: key.clone() }, "get", key_params(&key), &[&key]);
            }
            (82..85, Some(file)) if self.generations.remove(&file).is_some() => {
                let params =
                    Params { token: Some(Int(held.token)), file: Some(file.clone()), ..Params::default() };
                self.call(scene, index, What::Repair { file }, "repair_file", params, &[]);
            }
            (78..100, _) => self.release(scene, index, &held),
            _ => {}
        }
    }

    fn free_key(&mut self, plan: &Plan) -> String {
        match self.rng.u8(0..3) {
            0 => self.names(plan),
            _ => format!("k{}", self.rng.u8(0..2)),
        }
    }

    fn acquire(&mut self, scene: &mut Scene<'_>, index: usize, nested: bool) {
        let plan = scene.plan;
        let pair = plan.sections && !nested && self.rng.u8(0..3) == 0;
        let mut names = match (pair, plan.several && self.rng.u8(0..4) == 0) {
            (true, _) => vec!["pa".to_owned(), "pb".to_owned()],
            (false, true) => vec![self.names(plan), self.names(plan)],
            (false, false) => vec![self.names(plan)],
        };
        names.sort();
        names.dedup();
        let taken = self.owners[index].held.iter().flat_map(|held| &held.keys);
        if taken.clone().any(|(key, _)| names.contains(key)) {
            return;
        }
        let keys: Vec<(String, Mode)> = names
            .into_iter()
            .map(|name| {
                let mode = match self.rng.u8(0..10) {
                    0..2 if plan.modes && !pair => Mode::Shared,
                    // Slots on one lock only: their number must be the same for all.
                    2..6 if plan.modes && name == "l1" => {
                        Mode::Slot { slots: 3, weight: self.rng.u64(1..=2) }
                    }
                    _ if plan.modes && name == "l1" && !pair => Mode::Shared,
                    _ => Mode::Exclusive,
                };
                (name, mode)
            })
            .collect();
        let atomic = pair || (plan.sections && self.rng.u8(0..5) == 0);
        let wait_ms = match self.rng.u8(0..10) {
            0..2 => None,
            2..6 => Some(WaitMs(Some(Int(self.rng.u64(10..5_000))))),
            _ => Some(WaitMs(None)),
        };
        let lease_ms = (plan.leases && self.rng.bool()).then(|| Int(self.rng.u64(200..5_000)));
        let lock_delay_ms = (plan.leases && self.rng.u8(0..4) == 0).then(|| Int(self.rng.u64(1..200)));
        let max_hold_ms = (plan.mortal && self.rng.u8(0..4) == 0).then(|| self.rng.u64(100..4_000));
        let asks = keys.iter().map(|(key, mode)| KeyAsk::Mode(KeyMode::new(key.clone(), wire_mode(*mode))));
        let params = Params {
            keys: Some(asks.collect()),
            owner: Some(self.owners[index].name.clone()),
            wait_ms,
            lease_ms,
            lock_delay_ms,
            max_hold_ms: max_hold_ms.map(Int),
            atomic: atomic.then_some(true),
            ..Params::default()
        };
        let (waits, delay_ms) = (wait_ms.is_some(), lock_delay_ms.map_or(0, |delay| delay.0));
        let what = What::Acquire { keys, atomic, waits, delay_ms, max_hold_ms };
        self.call(scene, index, what, "acquire_lock", params, &[]);
    }

    /// Goes on with the watch that there is, or begins one at the last change of a key that is known.
    fn watch(&mut self, scene: &mut Scene<'_>, index: usize, wait_ms: Option<WaitMs>) {
        let prefix = ["l", "k", ""][self.number % 3];
        let (chain, cursor, after) = match &self.watching {
            Some((chain, Some(cursor))) => (*chain, Some(cursor.clone()), None),
            // The first answer is not there yet.
            Some((_, None)) => return,
            None => {
                let after = scene.checks.floor(Some("k0")).seen;
                let chain = scene.checks.watch_begins(prefix, after);
                self.watching = Some((chain, None));
                (chain, None, Some(Int(after)))
            }
        };
        let prefix = Some(prefix.to_owned());
        let params = Params { prefix, cursor: cursor.clone(), after, wait_ms, ..Params::default() };
        self.call(scene, index, What::Watch { chain, cursor }, "watch", params, &[]);
    }

    /// How long a key lives that is set now; None: for ever, as those do that are written together.
    fn span(&mut self, scene: &Scene<'_>, key: &str) -> Option<Span> {
        if !scene.plan.mortal || key.starts_with('p') {
            return None;
        }
        let ttl_ms = (self.rng.u8(0..4) == 0).then(|| self.rng.u64(100..6_000));
        let bound = (self.rng.u8(0..4) == 0).then_some((self.number, self.life));
        (ttl_ms.is_some() || bound.is_some()).then_some(Span { ttl_ms, bound })
    }

    fn set(&mut self, scene: &mut Scene<'_>, index: usize, key: String, held: Option<&Held>) {
        let text = self.value();
        self.set_value(scene, index, key, text, held);
    }

    fn set_value(
        &mut self,
        scene: &mut Scene<'_>,
        index: usize,
        key: String,
        text: String,
        held: Option<&Held>,
    ) {
        let staged = held.is_some_and(|held| held.atomic);
        let floor = scene.checks.floor(Some(&key));
        let expected = (!staged && self.rng.u8(0..4) == 0).then_some(floor.seen);
        let token = held.map(|held| held.token);
        let span = self.span(scene, &key);
        let params = Params {
            key: Some(key.clone()),
            value: Some(raw(&text)),
            if_version: expected.map(Int),
            ttl_ms: span.and_then(|span| span.ttl_ms).map(Int),
            bound: span.and_then(|span| span.bound).map(|_| true),
            token: token.map(Int),
            ..Params::default()
        };
        scene.checks.write_begins(&key, &text, span);
        if staged {
            scene.checks.write_staged(&key, &text);
        }
        let what = What::Set { key: key.clone(), value: text, expected, token, staged };
        self.call(scene, index, what, "set", params, &[&key]);
    }

    fn append(&mut self, scene: &mut Scene<'_>, index: usize, file: String, held: &Held) {
        let data = format!("{} {}{}\n", self.value(), held.token, "x".repeat(self.rng.usize(0..300)));
        let token = held.token;
        let params = Params {
            file: Some(file.clone()),
            data: Some(data.clone()),
            token: Some(Int(token)),
            ..Params::default()
        };
        scene.checks.append_begins(&file, &data, token);
        let what = What::Append { file, data, token, staged: held.atomic };
        self.call(scene, index, what, "append_file", params, &[]);
    }

    fn release(&mut self, scene: &mut Scene<'_>, index: usize, held: &Held) {
        let half = held.keys[0].0 == "pa" && held.staged.len() == 1;
        let abandon = half || held.tainted || self.rng.u8(0..8) == 0;
        let method = if abandon { "abandon" } else { "release_lock" };
        scene.checks.disbelieve(self.number, held.life, held.token);
        for known in &mut self.owners[index].held {
            if known.token == held.token && known.life == held.life {
                known.leaving = true;
                if abandon {
                    drop_staged(scene, known, Fate::Never);
                    (known.staged, known.appends) = (Vec::new(), Vec::new());
                }
            }
        }
        let keys: Vec<String> = held.staged.iter().map(|(key, _)| key.clone()).collect();
        let floors: Vec<&str> = keys.iter().map(String::as_str).collect();
        let params = Params { token: Some(Int(held.token)), ..Params::default() };
        self.call(scene, index, What::Release { token: held.token, abandon }, method, params, &floors);
    }

    fn call(
        &mut self,
        scene: &mut Scene<'_>,
        index: usize,
        what: What,
        method: &str,
        params: Params,
        keys: &[&str],
    ) {
        let local = self.local(scene.now);
        let deadline = match &what {
            What::Acquire { waits: true, .. } if scene.rough && self.rng.u8(0..3) == 0 => {
                Some(local.after_ms(self.rng.u64(100..20_000)))
            }
            What::Acquire { waits: true, .. } => None,
            _ => Some(local.after_ms(self.rng.u64(1_000..20_000))),
        };
        let mut floors: BTreeMap<String, Floor> =
            keys.iter().map(|key| ((*key).to_owned(), scene.checks.floor(Some(key)))).collect();
        floors.insert(String::new(), scene.checks.floor(None));
        let process = (self.number * 100 + index) as u64;
        scene.line(process, "invoke", what.name(), what.line(None));
        scene.count("calls");
        let life = self.life;
        let id = self.engine().call(local, method, params, deadline).to_string();
        let call = Call { what, owner: index, began: scene.now, pending: None, floors };
        self.calls.insert((life, id.clone()), call);
        self.owners[index].busy = Some((life, id));
    }
}

/// What was staged under a grant that has ended.
fn drop_staged(scene: &mut Scene<'_>, held: &Held, fate: Fate) {
    for (key, text) in &held.staged {
        scene.checks.write_ends(key, text, Floor::default(), Err(fate));
    }
    for (file, data) in &held.appends {
        scene.checks.append_ends(file, data, Err(fate));
    }
}

/// A call has ended without an answer that says what it did.
fn ends_unknown(scene: &mut Scene<'_>, call: &Call, fate: Fate) {
    match &call.what {
        What::Set { key, value, staged: false, .. } => {
            scene.checks.write_ends(key, value, Floor::default(), Err(fate));
        }
        What::Transaction { writes, .. } => {
            for (key, value) in writes {
                scene.checks.write_ends(key, value, Floor::default(), Err(fate));
            }
        }
        What::Delete { key } => scene.checks.delete_ends(key, Floor::default(), Err(fate)),
        What::Append { file, data, staged: false, .. } => scene.checks.append_ends(file, data, Err(fate)),
        // What may have been staged may be written by the release.
        What::Append { file, data, .. } if fate == Fate::Maybe => {
            scene.checks.append_ends(file, data, Err(fate));
        }
        _ => {}
    }
}

fn raw(text: &str) -> Box<serde_json::value::RawValue> {
    serde_json::value::to_raw_value(text).expect("a string is JSON")
}

fn key_params(key: &str) -> Params {
    Params { key: Some(key.into()), ..Params::default() }
}

fn wire_mode(mode: Mode) -> command::Mode {
    match mode {
        Mode::Exclusive => command::Mode::Exclusive,
        Mode::Shared => command::Mode::Shared,
        Mode::Slot { slots, weight } => command::Mode::Slot { slots: slots as u32, weight: weight as u32 },
    }
}

fn mode_of(shown: &tenure::wire::ModeShown) -> Mode {
    match shown.mode.as_str() {
        "exclusive" => Mode::Exclusive,
        "shared" => Mode::Shared,
        _ => {
            Mode::Slot { slots: shown.slots.map_or(1, u64::from), weight: shown.weight.map_or(1, u64::from) }
        }
    }
}
