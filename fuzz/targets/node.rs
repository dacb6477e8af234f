//! The whole server without its socket and disk: the bytes choose datagrams (made to be meant, repeated, damaged, or
//! raw), how time passes, when the log commits, and crashes.
//!
//! Every command that commits goes to the model of `tests/model` as well, and the node must have the state that came of it.
//! Beside that: what a request was answered once it is answered each time, no reply is too long or passes for a request,
//! who has not shown where it is gets at most three times what it sent, and the node never asks to be woken in vain.

use crate::reference::keys;
use crate::reference::model::Model;
use crate::reference::random::{Draw, NAMES, Random};
use crate::reference::run::Run;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use tenure::command::{Call, Durability};
use tenure::datagram;
use tenure::identity::SessionId;
use tenure::limits::{DATAGRAM_MAX, Limits};
use tenure::log::{Batch, Room};
use tenure::name::Name;
use tenure::node::{FileWork, Node, Transmit};
use tenure::proof::Secrets;
use tenure::time::Time;
use tenure::wire::{self, METHODS, Method};

/// Steps of one input.
const STEPS_MAX: usize = 300;

/// How often the node may ask to be woken at one moment before that counts as spinning.
const SPINS_MAX: usize = 1_000;

/// Where the clients are; the last is not on this machine and never shows that it receives.
const ADDRESSES: [([u8; 4], u16); 4] =
    [([127, 0, 0, 1], 1001), ([127, 0, 0, 1], 1002), ([127, 0, 0, 1], 1003), ([192, 0, 2, 1], 1004)];

/// Takes bytes as the choices of a run.
pub(crate) fn run(bytes: &[u8]) {
    let mut world = World::new(bytes);
    for step in 0..STEPS_MAX {
        if world.shadow.draw.random.is_drawn() {
            break;
        }
        world.step();
        if step % 16 == 0 {
            world.shadow.check_all();
        }
    }
    world.flow();
    world.shadow.check_all();
}

struct World {
    /// The commands that committed, in a state of their own, and the model.
    shadow: Run,
    node: Node,
    now: Time,
    starts: u8,
    limits: Limits,
    held: bool,
    in_flight: VecDeque<Arc<Batch>>,
    clients: Vec<Client>,
    next_id: u64,
    /// What was sent, to be sent again.
    sent: Vec<(usize, Vec<u8>)>,
    tokens: Vec<u64>,
    /// Sessions in which an id was used.
    used: BTreeMap<u64, BTreeSet<SessionId>>,
    /// What a request was told.
    told: BTreeMap<(SessionId, u64), Value>,
    /// Bytes that may yet be sent to the address that has proven nothing.
    unproven: usize,
}

#[derive(Default)]
struct Client {
    session: Option<String>,
    number: u64,
}

impl World {
    fn new(bytes: &[u8]) -> World {
        let mut shadow = Run::new("an input of the fuzzer".into(), Draw::new(Random::of_bytes(bytes)));
        let limits = shadow.draw.limits();
        let node = start(Time::ZERO, &shadow, &limits, false, 1);
        let clients = ADDRESSES.iter().map(|_| Client::default()).collect();
        let mut world = World {
            shadow,
            node,
            now: Time::ZERO,
            starts: 1,
            limits,
            held: false,
            in_flight: VecDeque::new(),
            clients,
            next_id: 1,
            sent: Vec::new(),
            tokens: Vec::new(),
            used: BTreeMap::new(),
            told: BTreeMap::new(),
            unproven: 0,
        };
        world.drain();
        world
    }

    fn below(&mut self, n: u64) -> u64 {
        self.shadow.draw.random.below(n)
    }

    fn step(&mut self) {
        let client = self.below(8) as usize % ADDRESSES.len();
        match self.below(32) {
            0..18 => {
                let bytes = self.request(client);
                self.send(client, bytes);
            }
            18..21 => self.again(client),
            21 | 22 => self.damaged(client),
            23 => {
                let count = self.below(64);
                let bytes = (0..count).map(|_| self.below(256) as u8).collect();
                self.send(client, bytes);
            }
            24 => self.held = true,
            25 | 26 => {
                if !self.commit() {
                    self.held = false;
                }
                self.drain();
            }
            27 => self.advance(),
            28 => {
                let due = self.node.poll_timeout();
                self.now = self.shadow.draw.time(self.now, due);
                self.node.handle_timeout(self.now);
                self.drain();
            }
            29 => {
                let room = [Room::Ok, Room::Ok, Room::Low, Room::Full][self.below(4) as usize];
                self.node.set_room(self.now, room);
                self.drain();
            }
            30 => self.trouble(),
            _ => self.shadow.trouble(),
        }
    }

    /// A request that is meant, mostly; sometimes several at once, and sometimes sealed.
    fn request(&mut self, client: usize) -> Vec<u8> {
        let mut bytes = match self.below(12) {
            0 => {
                let count = 1 + self.below(4);
                let elements: Vec<Value> = (0..count).map(|_| self.element(client)).collect();
                json!(elements).to_string()
            }
            _ => self.element(client).to_string(),
        }
        .into_bytes();
        if self.below(8) == 0 {
            datagram::seal(&mut bytes);
        }
        bytes
    }

    fn element(&mut self, client: usize) -> Value {
        let mut params = serde_json::Map::new();
        let method = match &self.clients[client].session {
            None => "open_session",
            Some(_) => {
                // Half of all are about what is most often done.
                const OFTEN: [&str; 8] = [
                    "acquire_lock",
                    "acquire_lock",
                    "acquire_lock",
                    "release_lock",
                    "release_lock",
                    "set",
                    "append_file",
                    "heartbeat",
                ];
                match self.below(2) {
                    0 => OFTEN[self.below(8) as usize],
                    _ => METHODS[self.below(METHODS.len() as u64) as usize],
                }
            }
        };
        let mine = match self.below(16) {
            0 => self.below(ADDRESSES.len() as u64) as usize,
            _ => client,
        };
        if let Some(session) = self.clients[mine].session.clone().filter(|_| method != "open_session") {
            params.insert("session".into(), session.into());
        }
        for name in takes(method) {
            if let Some(value) = self.param(method, name) {
                params.insert((*name).into(), value);
            }
        }
        let id = self.next_id;
        self.next_id += 1;
        match self.below(12) {
            0 => drop(params.insert("ack".into(), json!(id.saturating_sub(self.below(8))))),
            1 => {
                let got: Vec<u64> =
                    (0..self.below(4)).map(|_| id.saturating_sub(1 + self.below(16))).collect();
                params.insert("got".into(), json!(got));
            }
            _ => {}
        }
        json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
    }

    /// A value for a parameter, or none.
    fn param(&mut self, method: &str, name: &str) -> Option<Value> {
        let random = &mut self.shadow.draw.random;
        // What may be left out is, half of the time.
        let needed = [
            "token", "key", "file", "data", "value", "to", "from", "nonce", "client", "wait", "reason",
            "apply",
        ];
        let maybe = !needed.contains(&name)
            || (name == "token" && ["set", "get", "delete", "range"].contains(&method));
        if maybe && random.one_in(2) {
            return None;
        }
        let span = |random: &mut Random| json!(100 + 100 * random.below(20));
        Some(match name {
            "nonce" => json!(format!("{:032x}", random.below(9))),
            "key" | "file" | "to" | "from" => json!(random.pick(&NAMES)),
            "prefix" => json!(random.pick(&["", "a", "b"])),
            "keys" => {
                let keys: Vec<Value> = (0..1 + random.below(3))
                    .map(|_| {
                        let key = random.pick(&NAMES);
                        match random.below(3) {
                            0 => json!(key),
                            1 => json!({"key": key, "mode": "shared"}),
                            _ => json!({"key": key, "slots": 3, "weight": 1 + random.below(3)}),
                        }
                    })
                    .collect();
                json!(keys)
            }
            "token" => match self.tokens.len() {
                0 => json!(1),
                count => {
                    let back = random.below(8) as usize;
                    json!(self.tokens[count - 1 - back.min(count - 1)])
                }
            },
            "holder" => {
                let other = random.below(3) as usize;
                json!(self.clients[other].session.clone()?)
            }
            "owner" => json!(random.pick(&["", "w1", "w2"])),
            "wait_ms" if method == "watch" => json!(random.below(2_000)),
            "wait_ms" => match random.below(3) {
                0 => Value::Null,
                _ => span(random),
            },
            "ttl_ms" | "lease_ms" | "max_hold_ms" | "lock_delay_ms" | "deadline_ms" => span(random),
            "atomic" | "bound" => json!(true),
            "value" => json!(random.below(1_000)),
            "data" => json!("x".repeat(random.below(11) as usize)),
            "if_version" | "after" | "offset" => json!(random.below(40)),
            "limit" => json!(1 + random.below(8)),
            "reason" => json!("stuck"),
            "label" | "name" => json!("n"),
            "wait" => json!(self.next_id.saturating_sub(random.below(8)).max(1)),
            "client" => {
                let other = random.below(4) as usize;
                json!(self.clients[other].number)
            }
            "compare" => json!([{"key": random.pick(&NAMES), "version": random.below(3)}]),
            "apply" => {
                let (one, other) = (random.below(5) as usize, random.below(5) as usize);
                let mut apply = vec![json!({"key": NAMES[one], "value": random.below(100)})];
                if other != one {
                    apply.push(json!({"key": NAMES[other], "delete": true}));
                }
                json!(apply)
            }
            other => panic!("nobody draws `{other}`"),
        })
    }

    fn again(&mut self, client: usize) {
        if self.sent.is_empty() {
            return;
        }
        let back = self.below(self.sent.len().min(200) as u64) as usize;
        let (sender, bytes) = self.sent[self.sent.len() - 1 - back].clone();
        // Mostly from where it came; a client may have moved.
        let moved = self.below(4) == 0;
        self.send(if moved { client } else { sender }, bytes);
    }

    /// Something that was sent, with bytes changed, cut or put in.
    fn damaged(&mut self, client: usize) {
        if self.sent.is_empty() {
            return;
        }
        let back = self.below(self.sent.len().min(200) as u64) as usize;
        let mut bytes = self.sent[self.sent.len() - 1 - back].1.clone();
        for _ in 0..1 + self.below(3) {
            let at = self.below(bytes.len().clamp(1, 60_000) as u64) as usize;
            let byte = self.below(256) as u8;
            match self.below(4) {
                0 | 1 if at < bytes.len() => bytes[at] = byte,
                2 => bytes.truncate(at),
                _ => bytes.insert(at.min(bytes.len()), byte),
            }
        }
        self.send(client, bytes);
    }

    fn send(&mut self, client: usize, bytes: Vec<u8>) {
        if let Ok(opened) = datagram::open(&bytes)
            && let Ok(message) = wire::decode(opened.message)
        {
            for request in message.elements.iter().filter_map(|element| element.request.as_ref().ok()) {
                if let (Some(session), Method::Logged { id, .. } | Method::RepairFile { id, .. }) =
                    (request.session, &request.method)
                {
                    self.used.entry(*id).or_default().insert(session);
                    // A cancel that comes before its wait makes a record under the id of the wait.
                    if let Method::Logged { call: Call::CancelWait { wait }, .. } = &request.method {
                        self.used.entry(*wait).or_default().insert(session);
                    }
                }
            }
        }
        // Nothing is kept for whoever has proven nothing: what it gets, it gets at once.
        self.unproven = if client == 3 { 3 * bytes.len() } else { 0 };
        self.sent.push((client, bytes.clone()));
        self.node.handle_datagram(self.now, address(client), &bytes);
        self.drain();
    }

    /// Time passes, and the node is woken when it asks to be.
    fn advance(&mut self) {
        let span = [1, 50, 400, 2_000, 11_000, 70_000][self.below(6) as usize];
        let target = self.now.after_ms(span);
        let mut spins = 0;
        while let Some(wake) = self.node.poll_timeout().filter(|wake| *wake <= target) {
            spins = if wake > self.now { 0 } else { spins + 1 };
            assert!(spins < SPINS_MAX, "the node asks again and again to be woken at {}", self.now);
            self.now = self.now.max(wake);
            self.node.handle_timeout(self.now);
            self.drain();
            if self.held && !self.in_flight.is_empty() && spins > 4 {
                break; // it waits for the log
            }
        }
        self.now = target;
    }

    /// A file is found changed, the server is killed, or it stops and starts.
    fn trouble(&mut self) {
        match self.below(4) {
            0 => {
                let name = NAMES[self.below(5) as usize];
                if let Some(file) = self.node.state().file(name) {
                    let (name, generation) = (Name::file(name).expect("the names are good"), file.generation);
                    self.node.handle_file_fault(self.now, name, generation, "somebody edited it".into());
                    self.drain();
                }
            }
            1 => {
                self.node.drain();
                self.node.set_room(self.now, Room::Ok);
                self.flow();
                assert!(self.node.is_idle(), "a server that stops has finished what it took in");
                self.start(false);
            }
            2 => self.start(false),
            _ => self.start(true),
        }
    }

    fn start(&mut self, raised: bool) {
        self.in_flight.clear();
        self.now = self.shadow.state.at();
        self.starts = self.starts.wrapping_add(1);
        self.held = false;
        if self.below(4) == 0 {
            self.limits = self.shadow.draw.limits();
        }
        self.node = start(self.now, &self.shadow, &self.limits, raised, self.starts);
        self.drain();
    }

    /// Whatever is on its way gets there.
    fn flow(&mut self) {
        self.held = false;
        self.drain();
    }

    /// Makes the oldest batch durable, if there is one.
    fn commit(&mut self) -> bool {
        let Some(batch) = self.in_flight.pop_front() else { return false };
        for (op, entry) in (batch.first_op..).zip(&batch.entries) {
            self.shadow.apply(op, entry);
        }
        self.node.handle_committed(self.now, batch.seq);
        let (node, shadow) = (self.node.state(), &self.shadow.state);
        assert_eq!((node.op(), node.digest()), (shadow.op(), shadow.digest()), "the node has another state");
        true
    }

    /// Takes everything out of the node and does it.
    fn drain(&mut self) {
        loop {
            if let Some(batch) = self.node.poll_batch() {
                let shadow = &self.shadow.state;
                assert!(!batch.entries.is_empty(), "a batch has at least one command");
                assert_eq!(
                    (batch.digest_op, batch.digest),
                    (shadow.op(), shadow.digest()),
                    "a batch tells another state"
                );
                self.in_flight.push_back(batch);
                if !self.held {
                    self.commit();
                }
            } else if let Some(work) = self.node.poll_file_work() {
                self.work(work);
            } else if let Some(transmit) = self.node.poll_transmit() {
                self.receive(transmit);
            } else if self.held || !self.commit() {
                return;
            }
        }
    }

    fn work(&mut self, work: FileWork) {
        match work {
            FileWork::Apply(_) => {} // the shadow has done it
            FileWork::Read { tag, file, offset, count, .. } => {
                let bytes = self.shadow.image.get(file.as_str()).map_or(&[][..], Vec::as_slice);
                let read = bytes.get(offset as usize..(offset + count) as usize).map(<[u8]>::to_vec);
                self.node.handle_file_read(tag, read.ok_or_else(|| "the file is gone".into()));
            }
            FileWork::Look { tag, .. } => {
                // The model knows the bytes of a repair by their number.
                let found = Model::found_on_disk(self.below(45));
                let found = match self.below(4) {
                    0 => Err("the disk reports an input/output error".into()),
                    _ => Ok((found.len() as u64, keys::crc32c(&found))),
                };
                self.node.handle_file_look(self.now, tag, found);
            }
        }
    }

    fn receive(&mut self, transmit: Transmit) {
        assert!(transmit.bytes.len() <= DATAGRAM_MAX, "a reply of {} bytes", transmit.bytes.len());
        let opened = datagram::open(&transmit.bytes).expect("the server sends what it would read itself");
        let value: Value = serde_json::from_slice(opened.message).expect("the server sends JSON");
        let client = (0..ADDRESSES.len()).find(|client| address(*client) == transmit.to);
        let client = client.expect("the server sends to where something came from");
        if client == 3 {
            let left = self.unproven.checked_sub(transmit.bytes.len());
            self.unproven = left.unwrap_or_else(|| {
                let (came, sent) = (self.sent.last(), String::from_utf8_lossy(&transmit.bytes));
                panic!("to {came:?}, who has proven nothing, more than three times as much is sent: {sent}")
            });
        }
        match &value {
            Value::Array(replies) => replies.iter().for_each(|reply| self.learn(client, reply)),
            reply => self.learn(client, reply),
        }
    }

    /// What a client remembers of a reply, and whether it was told something else before.
    fn learn(&mut self, client: usize, reply: &Value) {
        assert_eq!(reply["jsonrpc"], "2.0");
        if reply.get("method").is_some() {
            return;
        }
        assert!(wire::decode(reply.to_string().as_bytes()).is_err(), "a reply passes for a request: {reply}");
        let result = &reply["result"];
        if let (Some(session), Some(number)) = (result["session"].as_str(), result["client"].as_u64()) {
            self.clients[client] = Client { session: Some(session.into()), number };
        }
        if let Some(token) = result["token"].as_u64() {
            self.tokens.push(token);
        }
        assert!(
            client != 3 || result.is_null() || result["server"].is_string(),
            "unproven, and told {reply}"
        );
        let Some(id) = reply["id"].as_u64() else { return };
        let session = match self.used.get(&id) {
            Some(sessions) if sessions.len() == 1 => *sessions.first().expect("it is one"),
            _ => return,
        };
        match self.told.get(&(session, id)) {
            None if result.is_null() => {}
            None => drop(self.told.insert((session, id), result.clone())),
            Some(told) if result.is_null() => {
                let kind = reply["error"]["data"]["kind"].as_str().unwrap_or_default();
                let about_this_copy = [
                    "no_session",
                    "stale_request",
                    "request_reused",
                    "parse",
                    "invalid_request",
                    "invalid_params",
                ];
                let again = reply["error"]["data"]["final"] == json!(false);
                assert!(again || about_this_copy.contains(&kind), "{id} was told {told}, and then {reply}");
            }
            Some(told) => {
                let same = || format!("request {id} of {session} was told {told}, and then {result}");
                self.shadow.check(told == result, same);
            }
        }
    }
}

fn address(client: usize) -> SocketAddr {
    SocketAddr::from(ADDRESSES[client])
}

fn start(now: Time, shadow: &Run, limits: &Limits, raised: bool, starts: u8) -> Node {
    let secrets = Secrets { cookie: [starts; 16], session: [starts; 16] };
    let state = shadow.rebuilt(shadow.state.parts());
    Node::new(now, state, limits.clone(), Durability::Sync, raised, secrets, 1 << 20)
}

/// What a method takes, beside what all take.
fn takes(method: &str) -> &'static [&'static str] {
    match method {
        "open_session" => &["nonce", "name", "label", "ttl_ms"],
        "heartbeat" => &["after"],
        "kill_session" => &["client"],
        "acquire_lock" => {
            &["keys", "wait_ms", "lease_ms", "owner", "atomic", "lock_delay_ms", "max_hold_ms", "label"]
        }
        "cancel_wait" => &["wait"],
        "release_lock" | "abandon" => &["token", "holder"],
        "renew_lease" => &["token", "lease_ms", "holder"],
        "convert_lock" => &["token", "keys", "wait_ms", "holder"],
        "hand_over" => &["token", "client", "holder"],
        "take_over" => &["token", "holder", "owner"],
        "ask_release" => &["token", "reason", "deadline_ms"],
        "break_lock" => &["token", "reason"],
        "is_locked" => &["key"],
        "get_lock_info" => &["key", "limit"],
        "list_locks" | "list_grants" | "list_sessions" | "list_files" | "list_waits" => &["prefix", "limit"],
        "list_contention" => &["limit"],
        "get" => &["key", "token"],
        "set" => &["key", "value", "if_version", "ttl_ms", "bound", "token", "holder"],
        "delete" => &["key", "if_version", "token"],
        "transaction" => &["compare", "apply", "token"],
        "range" => &["from", "to", "limit", "token"],
        "prefix" => &["prefix", "limit"],
        "append_file" => &["file", "data", "token", "holder"],
        "read_file" => &["file", "offset", "limit"],
        "file_info" => &["file"],
        "delete_file" => &["file", "token"],
        "rotate_file" => &["file", "to", "token"],
        "repair_file" => &["file", "token"],
        "watch" => &["prefix", "after", "wait_ms", "limit"],
        _ => &[],
    }
}
