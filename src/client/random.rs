//! Engines against a small model of a server, over a network that loses, doubles, delays and reorders, with clients that
//! stall. Every call must end, every effect happen once at most, no lock be believed in by two, and no grant be left that
//! nobody knows of. `TENURE_SEED=n` runs one seed again.

use super::engine::{Config, Engine, Event, Failure, Stage};
use super::lease::GrantState;
use crate::datagram;
use crate::identity::{Nonce, SessionId};
use crate::time::Time;
use crate::wire::{Int, Params, WaitMs};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const TTL_MS: u64 = 2_000;
const STEP_MS: u64 = 5;
const RUN_MS: u64 = 40_000;
const CLIENTS: usize = 3;
const LOCKS: [&str; 2] = ["a", "b"];

/// A small generator of its own: the test shares none with the engine.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What the model keeps of a session.
pub(super) struct Held {
    id: String,
    nonce: String,
    client: usize,
    pub(super) deadline: u64,
    pub(super) ended: bool,
    ack: u64,
    /// Replies by id; for waits whether they were named in `got`.
    replies: BTreeMap<u64, (Value, Option<bool>)>,
    lost: Vec<Value>,
}

/// The model: locks with lines, and keys of which only the number of sets counts.
#[derive(Default)]
pub(super) struct Model {
    pub(super) now: u64,
    op: u64,
    pub(super) sessions: Vec<Held>,
    pub(super) locks: BTreeMap<String, (u64, usize)>,
    lines: BTreeMap<String, Vec<(usize, u64)>>,
    /// Conversions that wait: session, request, grant, and when they are done.
    conversions: Vec<(usize, u64, u64, u64)>,
    /// What became of tokens that were converted.
    moved: BTreeMap<u64, u64>,
    pub(super) sets: BTreeMap<String, u32>,
    pub(super) out: Vec<(usize, Value)>,
    next_resend: u64,
}

impl Model {
    pub(super) fn handle(&mut self, from: usize, request: &Value, busy: bool) {
        let (id, params) = (&request["id"], &request["params"]);
        let method = request["method"].as_str().unwrap();
        if method == "open_session" {
            let nonce = params["nonce"].as_str().unwrap();
            let at = match self.sessions.iter().position(|session| session.nonce == nonce) {
                Some(at) => at,
                None => {
                    let id = SessionId(1_000 + self.sessions.len() as u128).to_string();
                    self.sessions.push(Held {
                        id,
                        nonce: nonce.into(),
                        client: from,
                        deadline: self.now + TTL_MS,
                        ended: false,
                        ack: 0,
                        replies: BTreeMap::new(),
                        lost: Vec::new(),
                    });
                    self.sessions.len() - 1
                }
            };
            let result = json!({"session": self.sessions[at].id, "client": at, "ttl_ms": TTL_MS});
            return self.out.push((from, json!({"jsonrpc": "2.0", "id": id, "result": result})));
        }
        let session = params["session"].as_str().unwrap();
        let at = self.sessions.iter().position(|known| known.id == session).unwrap();
        let number = id.as_u64();
        if let Some((reply, _)) = number.and_then(|number| self.sessions[at].replies.get(&number)) {
            let reply = reply.clone();
            return self.out.push((from, reply));
        }
        if self.sessions[at].ended {
            return self.refuse(from, id, "no_session", true);
        }
        self.sessions[at].deadline = self.now + TTL_MS;
        assert!(number.is_none() || params["ack"].as_u64() <= number, "`ack` above the id that carries it");
        let Some(number) = number else {
            let after = params["after"].as_u64().unwrap();
            let held = self.locks.values().filter(|(_, owner)| *owner == at).count();
            let lost: Vec<&Value> =
                self.sessions[at].lost.iter().filter(|lost| lost["op"].as_u64().unwrap() > after).collect();
            let result = json!({"op": self.op, "held": held, "lost": lost});
            for got in params["got"].as_array().into_iter().flatten() {
                self.hear(at, got.as_u64().unwrap());
            }
            return self.out.push((from, json!({"jsonrpc": "2.0", "id": id, "result": result})));
        };
        let converts = self.conversions.iter().any(|waits| (waits.0, waits.1) == (at, number));
        if converts || self.lines.values().flatten().any(|waits| *waits == (at, number)) {
            return self.pend(at, number);
        }
        if number < self.sessions[at].ack {
            return self.refuse(from, id, "stale_request", true);
        }
        if busy {
            return self.refuse(from, id, "busy", false);
        }
        self.op += 1;
        let got: Vec<u64> =
            params["got"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        for got in got {
            self.hear(at, got);
        }
        let session = &mut self.sessions[at];
        session.ack = session.ack.max(params["ack"].as_u64().unwrap());
        let ack = session.ack;
        session.replies.retain(|id, (_, got)| *id >= ack || *got == Some(false));
        assert!(number >= ack, "the engine acknowledged what it still sends");
        self.execute(at, number, method, params);
    }

    /// The client has the answer to this wait. It goes with the next `ack` past it.
    fn hear(&mut self, at: usize, id: u64) {
        if let Some((_, got)) = self.sessions[at].replies.get_mut(&id) {
            *got = Some(true);
        }
    }

    fn execute(&mut self, at: usize, id: u64, method: &str, params: &Value) {
        match method {
            "set" => {
                *self.sets.entry(params["key"].as_str().unwrap().into()).or_default() += 1;
                self.reply(at, id, json!({"version": self.op}), None);
            }
            "acquire_lock" => {
                let key = params["key"].as_str().unwrap().to_owned();
                let waits = params.get("wait_ms").is_some();
                if self.locks.contains_key(&key) || self.lines.get(&key).is_some_and(|line| !line.is_empty())
                {
                    if waits {
                        self.lines.entry(key).or_default().push((at, id));
                        self.pend(at, id);
                    } else {
                        self.reply(at, id, json!({"granted": false, "reason": "held"}), None);
                    }
                } else {
                    self.grant(&key, at, id, waits);
                }
            }
            "cancel_wait" => {
                let wait = params["wait"].as_u64().unwrap();
                for line in self.lines.values_mut() {
                    line.retain(|waits| *waits != (at, wait));
                }
                self.conversions.retain(|waits| (waits.0, waits.1) != (at, wait));
                let known = self.sessions[at].replies.get(&wait).map(|(reply, _)| reply["result"].clone());
                if known.is_none() {
                    self.reply(at, wait, json!({"granted": false, "reason": "cancelled"}), Some(false));
                }
                let result = known.filter(|known| known["granted"] == json!(true));
                self.reply(at, id, result.unwrap_or(json!({"cancelled": true})), None);
            }
            "release_lock" | "abandon" => {
                let token = params["token"].as_u64().unwrap();
                let key =
                    self.locks.iter().find(|(_, held)| **held == (token, at)).map(|(key, _)| key.clone());
                match key {
                    Some(key) => {
                        self.locks.remove(&key);
                        self.reply(at, id, json!({"released": true, "op": self.op}), None);
                        self.end_conversions(token);
                        self.serve();
                    }
                    None => self.fail(at, id, "not_holder"),
                }
            }
            "convert_lock" => {
                let token = params["token"].as_u64().unwrap();
                let waiting = self.conversions.iter().any(|waits| waits.2 == token);
                match (self.locks.values().any(|held| *held == (token, at)), waiting) {
                    (false, _) => self.fail(at, id, "not_holder"),
                    (true, true) => self.fail(at, id, "already_held"),
                    (true, false) if params.get("wait_ms").is_some() && !self.op.is_multiple_of(3) => {
                        self.conversions.push((at, id, token, self.now + self.op % 7 * 500));
                        self.pend(at, id);
                    }
                    // Every second one is a downgrade, as far as this model goes.
                    (true, false) => self.convert(at, id, token, self.op.is_multiple_of(2), None),
                }
            }
            _ => panic!("the test asks for no {method}"),
        }
    }

    fn convert(&mut self, at: usize, id: u64, token: u64, same: bool, wait: Option<bool>) {
        let (key, held) = self.locks.iter_mut().find(|(_, held)| held.0 == token).unwrap();
        if !same {
            held.0 = self.op;
            self.moved.insert(token, self.op);
        }
        let keys = json!([{"key": key, "mode": "exclusive"}]);
        let result = json!({"granted": true, "token": held.0, "op": self.op, "keys": keys});
        self.reply(at, id, result, wait);
    }

    /// A grant has ended, and with it what was to convert it.
    fn end_conversions(&mut self, token: u64) {
        let ended = self.conversions.extract_if(.., |waits| waits.2 == token).collect::<Vec<_>>();
        for (at, id, ..) in ended {
            self.reply(at, id, json!({"granted": false, "reason": "grant_ended"}), Some(false));
        }
    }

    fn fail(&mut self, at: usize, id: u64, kind: &str) {
        let error = json!({"code": -1, "message": "no", "data": {"kind": kind, "final": true}});
        self.record(at, id, json!({"jsonrpc": "2.0", "id": id, "error": error}), None);
    }

    fn grant(&mut self, key: &str, at: usize, id: u64, waits: bool) {
        // The number of the command, which rises: one grant a command, as `serve` sees to.
        let token = self.op;
        self.locks.insert(key.into(), (token, at));
        let keys = json!([{"key": key, "mode": "exclusive"}]);
        let result = json!({"granted": true, "token": token, "op": token, "keys": keys});
        self.reply(at, id, result, waits.then_some(false));
    }

    fn serve(&mut self) {
        for key in LOCKS {
            let next = self.lines.get(key).and_then(|line| line.first()).copied();
            if let (Some((at, id)), false) = (next, self.locks.contains_key(key)) {
                self.op += 1;
                self.lines.get_mut(key).unwrap().remove(0);
                self.grant(key, at, id, true);
            }
        }
    }

    fn reply(&mut self, at: usize, id: u64, result: Value, wait: Option<bool>) {
        self.record(at, id, json!({"jsonrpc": "2.0", "id": id, "result": result}), wait);
    }

    fn record(&mut self, at: usize, id: u64, reply: Value, wait: Option<bool>) {
        let session = &mut self.sessions[at];
        assert!(session.replies.insert(id, (reply.clone(), wait)).is_none(), "{id} was executed twice");
        self.out.push((session.client, reply));
    }

    fn refuse(&mut self, to: usize, id: &Value, kind: &str, is_final: bool) {
        let data = json!({"kind": kind, "final": is_final, "retry_ms": 50});
        let error = json!({"code": -1, "message": kind, "data": data});
        self.out.push((to, json!({"jsonrpc": "2.0", "id": id, "error": error})));
    }

    fn pend(&mut self, at: usize, id: u64) {
        let params = json!({"client": at, "id": id});
        self.out.push((
            self.sessions[at].client,
            json!({"jsonrpc": "2.0", "method": "pending", "params": params}),
        ));
    }

    pub(super) fn tick(&mut self) {
        for at in 0..self.sessions.len() {
            if self.sessions[at].ended || self.sessions[at].deadline > self.now {
                continue;
            }
            self.op += 1;
            self.sessions[at].ended = true;
            let held: Vec<String> = self
                .locks
                .iter()
                .filter(|(_, (_, owner))| *owner == at)
                .map(|(key, _)| key.clone())
                .collect();
            for key in held {
                self.locks.remove(&key);
            }
            for line in self.lines.values_mut() {
                line.retain(|(owner, _)| *owner != at);
            }
            self.conversions.retain(|waits| waits.0 != at);
        }
        let now = self.now;
        for (at, id, token, _) in self.conversions.extract_if(.., |waits| waits.3 <= now).collect::<Vec<_>>()
        {
            self.op += 1;
            self.convert(at, id, token, false, Some(false));
        }
        self.serve();
        if self.now >= self.next_resend {
            self.next_resend = self.now + 500;
            for session in self.sessions.iter().filter(|session| !session.ended) {
                for (reply, got) in session.replies.values() {
                    if *got == Some(false) {
                        self.out.push((session.client, reply.clone()));
                    }
                }
            }
        }
    }

    /// Now and then a single grant is taken away, as an operator does.
    pub(super) fn take_away(&mut self, key: &str) {
        if let Some((token, at)) = self.locks.remove(key) {
            self.op += 1;
            let lost = json!({"op": self.op, "token": token, "keys": [key], "reason": "broken"});
            self.sessions[at].lost.push(lost);
            self.end_conversions(token);
            self.serve();
        }
    }
}

/// What a call was for.
#[derive(Clone, Debug)]
enum Asked {
    Set(String),
    Acquire,
    Convert,
    Release,
}

struct Client {
    /// The current one is the last.
    engines: Vec<Engine>,
    asked: BTreeMap<(usize, String), (Asked, u64)>,
    /// Grants handed out and not given back: engine, token and lock.
    held: BTreeSet<(usize, u64, String)>,
    stalled_until: u64,
    inbox: Vec<Vec<u8>>,
    drawn: u64,
}

impl Client {
    fn engine(number: usize, life: usize, first_id: u64, seed: u64) -> Engine {
        let nonce = Nonce((number * 1_000 + life) as u128 + 1);
        Engine::new(Config { nonce, name: String::new(), label: String::new(), ttl_ms: None, first_id, seed })
    }
}

fn at(now: u64) -> Time {
    Time::from_millis(now)
}

fn run(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut model = Model::default();
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|number| Client {
            engines: vec![Client::engine(number, 0, 1, seed)],
            asked: BTreeMap::new(),
            held: BTreeSet::new(),
            stalled_until: 0,
            inbox: Vec::new(),
            drawn: 0,
        })
        .collect();
    // Datagrams on their way: when, to whom (the server is CLIENTS), from whom.
    let mut network: Vec<(u64, usize, usize, Vec<u8>)> = Vec::new();
    let mut sets: BTreeMap<String, Result<(), bool>> = BTreeMap::new();
    let (mut granted, mut converted, mut lost) = (0u64, 0u64, 0u64);
    let mut cut: Option<(u64, usize)> = None;
    let mut now = 1_000;
    let end = now + RUN_MS;
    // Past the end nothing new is asked, the network is whole, and everything has to come to rest.
    while now < end + 40_000 {
        now += STEP_MS;
        model.now = now;
        let rough = now < end;
        if rough && random.below(1_000) == 0 {
            cut = Some((now + random.below(3_000), random.below(CLIENTS as u64) as usize));
        }
        cut = cut.filter(|(until, _)| *until > now && rough);
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut network).into_iter().partition(|one| one.0 <= now);
        network = later;
        for (_, to, from, bytes) in due {
            if to == CLIENTS {
                let message = datagram::open(&bytes).unwrap().message;
                model.handle(from, &serde_json::from_slice(message).unwrap(), rough && random.chance(3));
            } else {
                clients[to].inbox.push(bytes);
            }
        }
        model.tick();
        if rough && random.below(2_000) == 0 {
            model.take_away(LOCKS[random.below(2) as usize]);
        }
        let mut send = |random: &mut Random, to: usize, from: usize, bytes: Vec<u8>| {
            let severed = cut.is_some_and(|(_, client)| client == to || client == from);
            if severed || rough && random.chance(20) {
                return;
            }
            for _ in 0..if rough && random.chance(10) { 2 } else { 1 } {
                let delay = if random.chance(10) { random.below(900) } else { random.below(40) };
                network.push((now + delay, to, from, bytes.clone()));
            }
        };
        for (to, value) in std::mem::take(&mut model.out) {
            let mut bytes = serde_json::to_vec(&value).unwrap();
            datagram::seal(&mut bytes);
            send(&mut random, to, CLIENTS, bytes);
        }
        for (number, client) in clients.iter_mut().enumerate() {
            if client.stalled_until > now {
                continue;
            }
            if rough && random.below(3_000) == 0 {
                client.stalled_until = now + random.below(TTL_MS * 2);
                continue;
            }
            for bytes in std::mem::take(&mut client.inbox) {
                for engine in &mut client.engines {
                    engine.handle_datagram(at(now), &bytes);
                }
            }
            for engine in &mut client.engines {
                engine.handle_timeout(at(now));
            }
            if rough {
                ask(&mut random, number, client, now);
            }
            for life in 0..client.engines.len() {
                while let Some(bytes) = client.engines[life].poll_transmit(at(now)) {
                    send(&mut random, CLIENTS, number, bytes);
                }
                while let Some(event) = client.engines[life].poll_event() {
                    match event {
                        Event::Done { call, result } => {
                            let (asked, deadline) =
                                client.asked.remove(&(life, call.to_string())).expect("each call ends once");
                            if let Err(Failure::Unknown { why, .. }) = &result {
                                // A release of its grant takes a conversion back before its deadline.
                                let ended = matches!(client.engines[life].stage(), Stage::Ended { .. })
                                    || matches!(asked, Asked::Convert);
                                assert!(
                                    now >= deadline || ended,
                                    "seed {seed}: {asked:?} unknown too early: {why}"
                                );
                            }
                            match (asked, result) {
                                (Asked::Set(key), Ok(_)) => drop(sets.insert(key, Ok(()))),
                                (Asked::Set(key), Err(failure)) => {
                                    let maybe = matches!(failure, Failure::Unknown { .. });
                                    sets.insert(key, Err(maybe));
                                }
                                (Asked::Acquire, Ok(answered)) => {
                                    if let Some(new) = answered.granted {
                                        granted += 1;
                                        client.held.insert((life, new.token, new.keys[0].key.clone()));
                                    }
                                }
                                (Asked::Convert, Ok(_)) => converted += 1,
                                (Asked::Acquire | Asked::Convert | Asked::Release, _) => {}
                            }
                        }
                        Event::Converted { from, token, keys } => {
                            let key = keys[0].key.clone();
                            if client.held.remove(&(life, from, key.clone())) {
                                client.held.insert((life, token, key));
                            }
                        }
                        Event::Lost(loss) => {
                            lost += 1;
                            client.held.retain(|(of, token, _)| (*of, *token) != (life, loss.token));
                        }
                        Event::Opened
                        | Event::Pending { .. }
                        | Event::Changed { .. }
                        | Event::Lease { .. }
                        | Event::Released { .. }
                        | Event::Asked(_)
                        | Event::Offered(_)
                        | Event::Ended { .. }
                        | Event::Closed { .. } => {}
                    }
                }
            }
        }
        for lock in LOCKS {
            let believers: Vec<(usize, u64)> = clients
                .iter()
                .enumerate()
                .flat_map(|(number, client)| client.held.iter().map(move |held| (number, client, held)))
                .filter(|(_, client, (life, token, key))| {
                    let state = client.engines[*life].grant_state(at(now), *token);
                    key == lock && matches!(state, Some(GrantState::Safe | GrantState::AtRisk))
                })
                // A grant that was taken away is not given back by its holder before it hears of it.
                .filter(|(_, _, (_, token, _))| {
                    let mut now = *token;
                    while let Some(next) = model.moved.get(&now) {
                        now = *next;
                    }
                    !model
                        .sessions
                        .iter()
                        .flat_map(|session| &session.lost)
                        .any(|lost| lost["token"] == json!(now))
                })
                .map(|(number, _, (_, token, _))| (number, *token))
                .collect();
            assert!(believers.len() <= 1, "seed {seed} at {now}: {lock} is believed in by {believers:?}");
        }
    }
    for (number, client) in clients.iter().enumerate() {
        assert!(client.asked.is_empty(), "seed {seed}: client {number} never got {:?}", client.asked);
    }
    for (key, outcome) in &sets {
        let times = model.sets.get(key).copied().unwrap_or(0);
        match outcome {
            Ok(()) => assert_eq!(times, 1, "seed {seed}: {key} was acknowledged"),
            Err(true) => assert!(times <= 1, "seed {seed}: {key} was done {times} times"),
            Err(false) => assert_eq!(times, 0, "seed {seed}: {key} was told not to be done"),
        }
    }
    let known: BTreeSet<u64> = clients.iter().flat_map(|client| &client.held).map(|held| held.1).collect();
    for (lock, (token, at)) in &model.locks {
        assert!(
            known.contains(token),
            "seed {seed}: nobody knows of grant {token} of {lock} in session {at}"
        );
    }
    for (number, client) in clients.iter().enumerate() {
        for (life, token, lock) in &client.held {
            let state = client.engines[*life].grant_state(at(now), *token);
            let holds = model.locks.get(lock).is_some_and(|(held, _)| held == token);
            assert!(
                holds || state.is_none(),
                "seed {seed}: client {number} still believes in {token} of {lock}"
            );
        }
    }
    let done = sets.values().filter(|outcome| outcome.is_ok()).count();
    assert!(
        done > 50 && granted > 10 && converted > 3,
        "seed {seed}: {done} sets, {granted} grants and {converted} conversions show little ({lost} lost)"
    );
}

/// Asks for something at random.
fn ask(random: &mut Random, number: usize, client: &mut Client, now: u64) {
    if random.below(20) != 0 {
        return;
    }
    let mut life = client.engines.len() - 1;
    if matches!(client.engines[life].stage(), Stage::Ended { .. }) {
        let first_id = client.engines[life].free_id();
        life += 1;
        client.engines.push(Client::engine(number, life, first_id, random.below(u64::MAX)));
    }
    client.drawn += 1;
    let deadline = now + 500 + random.below(8_000);
    let key = LOCKS[random.below(2) as usize];
    let (asked, method, params) = match random.below(5) {
        0 | 1 => {
            let key = format!("k{number}.{}", client.drawn);
            let value = serde_json::value::to_raw_value(&client.drawn).unwrap();
            let params = Params { key: Some(key.clone()), value: Some(value), ..Params::default() };
            (Asked::Set(key), "set", params)
        }
        2 => {
            let owner = Some(format!("o{}", client.drawn));
            let wait_ms = random.chance(70).then_some(WaitMs(None));
            (
                Asked::Acquire,
                "acquire_lock",
                Params { key: Some(key.into()), wait_ms, owner, ..Params::default() },
            )
        }
        3 => {
            let Some(held) = client.held.iter().find(|held| held.0 == life) else { return };
            let wait_ms = random.chance(70).then_some(WaitMs(None));
            let (token, mode) = (Some(Int(held.1)), Some("exclusive".into()));
            let params = Params { key: Some(held.2.clone()), token, mode, wait_ms, ..Params::default() };
            (Asked::Convert, "convert_lock", params)
        }
        _ => {
            let Some(held) = client.held.iter().find(|held| held.0 == life).cloned() else { return };
            client.held.remove(&held);
            let params = Params { token: Some(Int(held.1)), ..Params::default() };
            (Asked::Release, "release_lock", params)
        }
    };
    let call = client.engines[life].call(at(now), method, params, Some(at(deadline)));
    client.asked.insert((life, call.to_string()), (asked, deadline));
}

#[test]
fn over_a_bad_network_every_call_ends_and_every_effect_happens_at_most_once() {
    let seeds = match std::env::var("TENURE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (1..=40).collect(),
    };
    for seed in seeds {
        println!("seed {seed}");
        run(seed);
    }
}
