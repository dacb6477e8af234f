//! What the parts of a request cost without sockets, threads and disks: reading it, applying it, keeping it, answering it.
//!
//! `cargo bench --bench micro` runs all of it; `cargo bench --bench micro -- apply` what has `apply` in its name. Without
//! cargo's `--bench` each is run once, to show that it works.

use divan::Bencher;
use divan::counter::ItemsCount;
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use tenure::batch::{self, SegmentId};
use tenure::command::{Ask, Call, Command, Durability, Entry, Life, Mode, Patience, Request, Terms};
use tenure::identity::{Nonce, SessionId};
use tenure::limits::Limits;
use tenure::name::Name;
use tenure::node::Node;
use tenure::outcome::{Effect, Outcome};
use tenure::proof::Secrets;
use tenure::snapshot::{self, ServerId, Snapshot};
use tenure::state::State;
use tenure::time::Time;
use tenure::wire::{self, Id};
use tenure::{datagram, record};

fn main() {
    divan::main();
}

const SESSION: SessionId = SessionId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

/// Requests as the library sends them: names of 32 bytes, values of 100.
const REQUESTS: [&str; 5] = ["acquire_lock", "release_lock", "set", "get", "heartbeat"];

fn name(number: usize) -> Name {
    Name::new(&format!("bench/a-name-of-32-bytes/{number:08}")).expect("it is a name")
}

fn request(method: &str) -> String {
    let key = name(7);
    let session = format!("\"session\":\"{:032x}\"", SESSION.0);
    let params = match method {
        "acquire_lock" => format!("{session},\"ack\":41,\"key\":\"{key}\",\"wait_ms\":5000"),
        "release_lock" => format!("{session},\"ack\":41,\"token\":123456"),
        "set" => format!("{session},\"ack\":41,\"key\":\"{key}\",\"value\":\"{}\"", "x".repeat(100)),
        "get" => format!("\"key\":\"{key}\""),
        _ => session,
    };
    format!("{{\"jsonrpc\":\"2.0\",\"id\":42,\"method\":\"{method}\",\"params\":{{{params}}}}}")
}

mod read {
    use super::*;

    /// The trailer of a datagram: its checksum.
    #[divan::bench]
    fn checksum(bencher: Bencher<'_, '_>) {
        let mut bytes = request("acquire_lock").into_bytes();
        datagram::seal(&mut bytes);
        bencher.bench(|| datagram::open(black_box(&bytes)).map(|opened| opened.message.len()));
    }

    #[divan::bench(args = REQUESTS)]
    fn one(bencher: Bencher<'_, '_>, method: &str) {
        let bytes = request(method).into_bytes();
        bencher.bench(|| wire::decode(black_box(&bytes)));
    }

    /// By the reader of everything, where the one of the common requests gives up.
    #[divan::bench(args = REQUESTS)]
    fn generally(bencher: Bencher<'_, '_>, method: &str) {
        let bytes = request(method).into_bytes();
        bencher.bench(|| wire::decode_any(black_box(&bytes)));
    }

    #[divan::bench]
    fn batch_of_64(bencher: Bencher<'_, '_>) {
        let bytes = format!("[{}]", [request("acquire_lock").as_str(); 64].join(",")).into_bytes();
        bencher.counter(ItemsCount::new(64_usize)).bench(|| wire::decode(black_box(&bytes)));
    }
}

/// A state with a session, and a script of commands that leaves it as it was.
struct Rig {
    state: State,
    effects: Vec<Effect>,
    id: u64,
}

impl Rig {
    /// Of so many locks that are held by others.
    fn with(locks: usize) -> Rig {
        let mut rig = Rig { state: State::new(), effects: Vec::new(), id: 0 };
        let limits = Limits { grants: u64::MAX, ..Limits::default() };
        rig.apply(Command::NewTerm { term: 1, limits, durability: Durability::Sync, raised: false });
        for session in [SessionId(1), SESSION] {
            let nonce = Nonce(session.0);
            let name = String::new();
            rig.apply(Command::OpenSession { nonce, session, name, label: String::new(), ttl_ms: 10_000 });
        }
        for number in 0..locks {
            rig.call_of(SessionId(1), acquire(&name(1_000_000 + number)));
        }
        rig
    }

    fn apply(&mut self, command: Command) -> Outcome {
        self.effects.clear();
        self.state.apply(self.state.op() + 1, Time::from_millis(1), &command, &mut self.effects)
    }

    fn call_of(&mut self, session: SessionId, call: Call) -> Outcome {
        self.id += 1;
        let (id, ack) = (self.id, self.id);
        self.apply(Command::Request(Request { session, id, ack, got: Vec::new(), call }))
    }

    fn call(&mut self, call: Call) -> Outcome {
        self.call_of(SESSION, call)
    }

    fn grant(&mut self, key: &Name) -> u64 {
        match self.call(acquire(key)) {
            Outcome::Granted { token, .. } => token,
            other => panic!("{other:?}"),
        }
    }
}

fn acquire(key: &Name) -> Call {
    let asks = Ask { key: key.clone(), mode: Mode::Exclusive }.into();
    Call::Acquire { asks, wait: Patience::Try, owner: String::new(), terms: Terms::default() }
}

fn set(key: &Name) -> Call {
    let value = format!("\"{}\"", "x".repeat(100)).into();
    Call::Set { key: key.clone(), value, if_version: None, life: Life::default(), token: None, holder: None }
}

/// The state machine alone: two commands for each cycle, one for the others.
mod apply {
    use super::*;

    #[divan::bench(args = [0, 1_000, 100_000])]
    fn cycle_beside_held_locks(bencher: Bencher<'_, '_>, locks: usize) {
        let (mut rig, key) = (Rig::with(locks), name(7));
        bencher.bench_local(|| {
            let token = rig.grant(&key);
            rig.call(Call::Release { token, holder: None })
        });
    }

    #[divan::bench]
    fn put(bencher: Bencher<'_, '_>) {
        let (mut rig, key) = (Rig::with(0), name(7));
        let call = set(&key);
        bencher.bench_local(|| rig.call(call.clone()));
    }

    /// A wait that is put in line, and the release that hands the lock to the first of it.
    #[divan::bench(args = [1, 100, 1_000])]
    fn hand_off_in_a_line(bencher: Bencher<'_, '_>, waiters: usize) {
        let (mut rig, key) = (Rig::with(0), name(7));
        let limits = Limits { lock_waits: u64::MAX, waits: u64::MAX, ..Limits::default() };
        rig.apply(Command::NewTerm { term: 2, limits, durability: Durability::Sync, raised: false });
        let mut owner = 0_u64;
        let mut join = |rig: &mut Rig| {
            owner += 1;
            let asks = Ask { key: key.clone(), mode: Mode::Exclusive }.into();
            let (wait, owner) = (Patience::Forever, format!("o{owner}"));
            rig.call(Call::Acquire { asks, wait, owner, terms: Terms::default() })
        };
        let mut token = match join(&mut rig) {
            Outcome::Granted { token, .. } => token,
            other => panic!("{other:?}"),
        };
        for _ in 1..waiters {
            join(&mut rig);
        }
        bencher.bench_local(|| {
            join(&mut rig);
            let released = rig.call(Call::Release { token, holder: None });
            token += 1;
            released
        });
    }
}

mod answer {
    use super::*;

    fn encode(bencher: Bencher<'_, '_>, outcome: &Outcome) {
        let id = Id::number(42);
        let mut out = Vec::with_capacity(1_024);
        bencher.bench_local(|| {
            out.clear();
            wire::encode_outcome(&mut out, &id, black_box(outcome));
            datagram::seal(&mut out);
            out.len()
        });
    }

    #[divan::bench]
    fn granted(bencher: Bencher<'_, '_>) {
        encode(bencher, &Rig::with(0).call(acquire(&name(7))));
    }

    #[divan::bench]
    fn released(bencher: Bencher<'_, '_>) {
        let mut rig = Rig::with(0);
        let token = rig.grant(&name(7));
        encode(bencher, &rig.call(Call::Release { token, holder: None }));
    }

    #[divan::bench]
    fn held_by_another(bencher: Bencher<'_, '_>) {
        let mut rig = Rig::with(1);
        encode(bencher, &rig.call(acquire(&name(1_000_000))));
    }
}

/// The log: commands to bytes and back.
mod keep {
    use super::*;

    fn entry(call: Call) -> Entry {
        let request = Request { session: SESSION, id: 42, ack: 41, got: Vec::new(), call };
        Entry { at: Time::from_millis(1), ahead_us: 0, command: Command::Request(request) }
    }

    #[divan::bench]
    fn record_of_an_acquire(bencher: Bencher<'_, '_>) {
        let entry = entry(acquire(&name(7)));
        let mut out = Vec::with_capacity(256);
        bencher.bench_local(|| {
            out.clear();
            record::encode(black_box(&entry), &mut out);
            out.len()
        });
    }

    #[divan::bench]
    fn record_read_back(bencher: Bencher<'_, '_>) {
        let mut bytes = Vec::new();
        record::encode(&entry(acquire(&name(7))), &mut bytes);
        bencher.bench(|| record::decode(black_box(&bytes)).map(|(entry, _)| entry));
    }

    /// What is written for 64 commands that came together: records, padding and two checksums.
    #[divan::bench]
    fn batch_of_64(bencher: Bencher<'_, '_>) {
        let entry = entry(set(&name(7)));
        let header = batch::Header {
            seq: 7,
            first_op: 1,
            synced: 6,
            digest_op: 0,
            digest: 0,
            count: 64,
            body_bytes: 0,
            body_crc: 0,
        };
        let (mut body, mut out) = (Vec::new(), Vec::new());
        bencher.counter(ItemsCount::new(64_usize)).bench_local(|| {
            body.clear();
            out.clear();
            for _ in 0..64 {
                record::encode(black_box(&entry), &mut body);
            }
            batch::encode(SegmentId(1), &header, &body, &mut out);
            out.len()
        });
    }
}

/// The snapshot: JSON, one line a lock.
mod fold {
    use super::*;

    const LOCKS: usize = 10_000;

    fn written() -> Vec<u8> {
        let state = Rig::with(LOCKS).state;
        let mut out = Vec::new();
        let snapshot = Snapshot { server: ServerId(1), clean: true, parts: state.parts(), redo: Vec::new() };
        snapshot::encode(&snapshot, &mut out).expect("memory takes all");
        out
    }

    #[divan::bench]
    fn write_10_000_locks(bencher: Bencher<'_, '_>) {
        let state = Rig::with(LOCKS).state;
        bencher.counter(ItemsCount::new(LOCKS)).bench(|| {
            let mut out = Vec::new();
            let snapshot =
                Snapshot { server: ServerId(1), clean: true, parts: state.parts(), redo: Vec::new() };
            snapshot::encode(&snapshot, &mut out).expect("memory takes all");
            out
        });
    }

    /// As many locks as the loop copies for a snapshot, and a full history.
    #[divan::bench]
    fn copy_as_much_as_a_turn_may(bencher: Bencher<'_, '_>) {
        let things = tenure::turn::Pace::default().copied;
        let key = name(7);
        let mut rig = Rig::with(0);
        for _ in 0..Limits::default().history_events {
            let token = rig.grant(&key);
            rig.call(Call::Release { token, holder: None });
        }
        while rig.state.has_at_most(things) {
            rig.grant(&name(rig.id as usize));
        }
        bencher.bench_local(|| rig.state.parts());
    }

    #[divan::bench]
    fn read_10_000_locks(bencher: Bencher<'_, '_>) {
        let bytes = written();
        bencher.counter(ItemsCount::new(LOCKS)).bench(|| {
            let snapshot = snapshot::decode(&bytes).expect("it was just written");
            State::from_parts(snapshot.parts).expect("it is a state")
        });
    }
}

/// All that the loop does for a request between two calls to the kernel, the log's part left out.
mod node {
    use super::*;

    struct Loop {
        node: Node,
        session: String,
        id: u64,
    }

    impl Loop {
        fn new() -> Loop {
            let secrets = Secrets { cookie: [1; 16], session: [2; 16] };
            let durability = Durability::None;
            let state = State::new();
            let node = Node::new(Time::ZERO, state, Limits::default(), durability, false, secrets, 1 << 20);
            let mut rig = Loop { node, session: String::new(), id: 0 };
            rig.commit();
            let open = format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"open_session\",\"params\":{{\"nonce\":\"{:032x}\",\"ttl_ms\":86400000}}}}",
                1
            );
            let reply = rig.ask(open.into_bytes());
            rig.session = text_of(&reply, "\"session\":\"", 32);
            rig
        }

        fn commit(&mut self) {
            while let Some(batch) = self.node.poll_batch() {
                let batch: Arc<_> = batch;
                self.node.handle_committed(Time::ZERO, batch.seq);
            }
        }

        fn ask(&mut self, mut message: Vec<u8>) -> Vec<u8> {
            datagram::seal(&mut message);
            self.node.handle_datagram(Time::ZERO, SocketAddr::from(([127, 0, 0, 1], 7)), &message);
            self.commit();
            self.node.poll_transmit().expect("it is answered").bytes
        }

        fn call(&mut self, method: &str, params: &str) -> Vec<u8> {
            self.id += 1;
            let (id, session) = (self.id, &self.session);
            self.ask(
                format!(
                    "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"{method}\",\"params\":{{\"session\":\"{session}\",\"ack\":{id},{params}}}}}"
                )
                .into_bytes(),
            )
        }
    }

    /// What stands behind a mark in a reply, up to so many bytes, or up to what is no digit.
    fn text_of(reply: &[u8], mark: &str, most: usize) -> String {
        let text = String::from_utf8_lossy(reply);
        let (_, rest) = text.split_once(mark).unwrap_or_else(|| panic!("no {mark} in {text}"));
        rest.chars().take_while(char::is_ascii_hexdigit).take(most).collect()
    }

    #[divan::bench]
    fn cycle(bencher: Bencher<'_, '_>) {
        let mut rig = Loop::new();
        let key = format!("\"key\":\"{}\"", name(7));
        bencher.bench_local(|| {
            let granted = rig.call("acquire_lock", &key);
            let token = text_of(&granted, "\"token\":", 16);
            rig.call("release_lock", &format!("\"token\":{token}"))
        });
    }

    #[divan::bench]
    fn put(bencher: Bencher<'_, '_>) {
        let mut rig = Loop::new();
        let params = format!("\"key\":\"{}\",\"value\":\"{}\"", name(7), "x".repeat(100));
        bencher.bench_local(|| rig.call("set", &params));
    }

    #[divan::bench]
    fn get(bencher: Bencher<'_, '_>) {
        let mut rig = Loop::new();
        rig.call("set", &format!("\"key\":\"{}\",\"value\":\"{}\"", name(7), "x".repeat(100)));
        let request = request("get").into_bytes();
        bencher.bench_local(|| rig.ask(request.clone()));
    }

    #[divan::bench]
    fn heartbeat(bencher: Bencher<'_, '_>) {
        let mut rig = Loop::new();
        let request = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":\"h1\",\"method\":\"heartbeat\",\"params\":{{\"session\":\"{}\"}}}}",
            rig.session
        );
        bencher.bench_local(|| rig.ask(request.clone().into_bytes()));
    }
}
