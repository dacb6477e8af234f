use super::*;
use crate::command::Durability;
use crate::image::record::Kept;
use crate::image::{Image, Stepped};
use crate::limits::Limits;
use crate::log::Room;
use crate::name::Name;
use crate::proof::Secrets;
use crate::state::State;
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// A turn in a world where the test is the network, the clock and the disk: what is submitted is committed when it says so.
struct Rig {
    turn: Turn,
    world: World,
    micros: Rc<Cell<u64>>,
    /// How often the clock was looked at.
    looks: Rc<Cell<u64>>,
    session: Value,
    id: u64,
    _image: (Stepped, tempfile::TempDir),
}

struct World {
    inbox: VecDeque<Vec<u8>>,
    /// Whether all of it was read together.
    together: bool,
    sent: Vec<Value>,
    log: Disk,
    files: Handle,
}

struct Disk {
    submitted: Vec<u64>,
    events: VecDeque<LogEvent>,
    /// Of each snapshot that was asked for: up to which command a copy of the state was offered.
    folds: Vec<Option<Op>>,
}

fn client() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7))
}

impl Outside for World {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let bytes = self.inbox.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok((bytes.len(), client()))
    }

    fn read_together(&self) -> bool {
        self.together
    }

    fn send(&mut self, transmit: Transmit) -> Result<(), String> {
        self.sent.push(serde_json::from_slice(&transmit.bytes).unwrap());
        Ok(())
    }

    fn flush(&mut self) {}

    fn log(&mut self) -> &mut dyn Log {
        &mut self.log
    }

    fn files(&mut self) -> &Handle {
        &self.files
    }
}

impl Log for Disk {
    fn submit(&mut self, batch: Arc<crate::log::Batch>) {
        self.submitted.push(batch.seq);
    }

    fn poll(&mut self) -> Option<LogEvent> {
        self.events.pop_front()
    }

    fn room(&self) -> Room {
        Room::Ok
    }

    fn batch_bytes_max(&self) -> usize {
        1 << 20
    }

    fn flush(&mut self) {}

    fn fold(&mut self, _safe: Record, state: Option<Box<Parts>>) {
        self.folds.push(state.map(|parts| parts.head.op));
    }

    fn close(&mut self) -> Result<(), String> {
        Ok(())
    }
}

impl Rig {
    /// A server that serves one session, with a TTL of a second.
    fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let (image, _) = Image::recover(dir.path(), &[], Vec::new(), false).unwrap();
        let (files, stepped) = Stepped::start(image, Instant::now());
        let micros = Rc::new(Cell::new(0));
        let looks = Rc::new(Cell::new(0));
        let (source, looked) = (micros.clone(), looks.clone());
        let tell = move || {
            looked.set(looked.get() + 1);
            source.get()
        };
        let clock = LogClock::with_source(Time::ZERO, Box::new(tell));
        let secrets = Secrets { cookie: [1; 16], session: [2; 16] };
        let (limits, durability) = (Limits::default(), Durability::Sync);
        let node = Node::new(Time::ZERO, State::new(), limits, durability, false, secrets, 1 << 20);
        let log = Disk { submitted: Vec::new(), events: VecDeque::new(), folds: Vec::new() };
        let mut rig = Rig {
            turn: Turn::new(node, clock, Time::ZERO),
            world: World { inbox: VecDeque::new(), together: false, sent: Vec::new(), log, files },
            micros,
            looks,
            session: Value::Null,
            id: 0,
            _image: (stepped, dir),
        };
        rig.turn.hand_over(&mut rig.world).unwrap();
        rig.commit();
        rig.turn(0);
        rig.ask("open_session", json!({"nonce": "0".repeat(32), "ttl_ms": 1_000}));
        rig.turn(0);
        rig.commit();
        let opened = rig.turn(0);
        rig.session = opened[0]["result"]["session"].clone();
        rig
    }

    /// Puts a request into the socket; its id.
    fn ask(&mut self, method: &str, mut params: Value) -> u64 {
        self.id += 1;
        if !self.session.is_null() && method != "ping" {
            params["session"] = self.session.clone();
        }
        let message = json!({"jsonrpc": "2.0", "id": self.id, "method": method, "params": params});
        self.world.inbox.push_back(message.to_string().into_bytes());
        self.turn.readable = true;
        self.id
    }

    fn commit(&mut self) {
        let seqs = std::mem::take(&mut self.world.log.submitted);
        self.world.log.events.extend(seqs.into_iter().map(|seq| LogEvent::Committed { seq }));
    }

    /// A turn at that moment; what it sends.
    fn turn(&mut self, ms: u64) -> Vec<Value> {
        self.micros.set(ms * 1_000);
        let asked = self.turn.node.poll_timeout();
        self.turn.work(&mut self.world, asked, self.turn.node.is_serving()).unwrap();
        std::mem::take(&mut self.world.sent)
    }

    /// A turn at that moment; the ids of what it answers.
    fn answered(&mut self, ms: u64) -> Vec<u64> {
        self.turn(ms).iter().filter_map(|reply| reply["id"].as_u64()).collect()
    }

    /// What a turn offers for a snapshot, if it copies at most so many things.
    fn offer(&mut self, copied: u64) -> Option<Op> {
        self.turn.pace.copied = copied;
        self.world.log.events.push_back(LogEvent::FoldDue);
        self.turn.take_log_events(&mut self.world).unwrap();
        self.world.log.folds.pop().unwrap()
    }

    /// The least number of things that may be copied for the state to be offered.
    fn things(&mut self) -> u64 {
        (0..1_000).find(|copied| self.offer(*copied).is_some()).expect("the state is small")
    }

    fn pace(self, datagrams: usize, commands: usize) -> Rig {
        Rig { turn: self.turn.with_pace(Pace { datagrams, commands, copied: 0 }), ..self }
    }
}

#[test]
fn a_heartbeat_is_taken_in_before_what_waits_in_front_of_it() {
    let mut rig = Rig::new().pace(1, 1);
    let [one, two, three] = [(); 3].map(|()| rig.ask("ping", json!({})));
    let beat = rig.ask("heartbeat", json!({}));
    assert_eq!(rig.answered(1), [one, beat]);
    assert!(rig.turn.is_behind(true));
    assert_eq!((rig.answered(2), rig.answered(3)), (vec![two], vec![three]));
    assert!(!rig.turn.is_behind(true));
}

#[test]
fn what_is_committed_is_applied_in_parts_and_before_anything_else_is_taken_in() {
    let mut rig = Rig::new().pace(2, 1);
    let sets = ["a", "b", "c"].map(|key| rig.ask("set", json!({"key": key, "value": 1})));
    assert!(rig.answered(1).is_empty());
    rig.commit();
    assert_eq!(rig.answered(2), [sets[0]]);
    assert!(rig.turn.is_behind(false), "a command is committed and not applied");
    let ping = rig.ask("ping", json!({}));
    assert_eq!(rig.answered(3), [sets[1]]);
    assert_eq!(rig.answered(4), [ping], "and the third write is on its way");
    rig.commit();
    assert_eq!(rig.answered(5), [sets[2]]);
    assert!(rig.turn.node.is_idle());
}

#[test]
fn nothing_expires_that_was_heard_and_waits() {
    let mut rig = Rig::new().pace(1, 1);
    for _ in 0..3 {
        rig.ask("ping", json!({}));
    }
    let sign = rig.ask("get", json!({"key": "k"}));
    for ms in [990, 1_100, 1_200] {
        assert_eq!(rig.answered(ms).len(), 1);
    }
    assert_eq!(rig.answered(1_300), [sign]);
    // It lives from when it was heard.
    let beat = rig.ask("heartbeat", json!({}));
    let reply = rig.turn(1_900).pop().unwrap();
    assert_eq!((&reply["id"], &reply["error"]), (&json!(beat), &Value::Null), "{reply}");
    assert!(rig.world.log.submitted.is_empty(), "no end of a session is on its way");
}

#[test]
fn of_what_was_read_together_the_clock_is_looked_at_for_each_4_kib_or_8_datagrams() {
    let looks_for = |together: bool, count: usize, bytes: usize| {
        let mut rig = Rig::new();
        rig.world.together = together;
        for _ in 0..count {
            rig.ask("ping", json!({}));
            rig.world.inbox.back_mut().unwrap().resize(bytes, b' ');
        }
        let before = rig.looks.get();
        assert_eq!(rig.answered(1).len(), count);
        rig.looks.get() - before
    };
    let none = looks_for(false, 0, 100);
    for (count, bytes, together) in
        [(1, 100, 1), (8, 100, 1), (9, 100, 2), (9, 1_024, 3), (5, 4_096, 5), (5, 8_000, 5)]
    {
        assert_eq!(looks_for(false, count, bytes) - none, count as u64);
        assert_eq!(looks_for(true, count, bytes) - none, together, "{count} of {bytes} bytes");
    }
}

#[test]
fn what_finds_no_room_among_what_waits_is_dropped_and_counted() {
    let mut rig = Rig::new().pace(20, 1);
    for _ in 0..100 {
        rig.ask("ping", json!({}));
        rig.world.inbox.back_mut().unwrap().resize(60_000, b' ');
    }
    let fit = RECEIVE_BUFFER / 60_000;
    let answered: usize = (1..20).map(|ms| rig.answered(ms).len()).sum();
    assert_eq!(answered, 20 + fit);
    rig.ask("status", json!({}));
    assert_eq!(rig.turn(20)[0]["result"]["drops"]["overload"], 80 - fit);
}

#[test]
fn a_copy_of_the_state_is_offered_for_a_snapshot_if_it_is_small() {
    let mut rig = Rig::new();
    rig.turn.safe.op = rig.turn.last_file_op;
    let empty = rig.things();
    rig.ask("acquire_lock", json!({"keys": ["a", "b", "c"]}));
    rig.turn(1);
    rig.commit();
    assert_eq!(rig.turn(2).len(), 1);
    // A grant, its three locks twice, the reply that is kept; and less than 256 bytes.
    assert_eq!(rig.things(), empty + 1 + 3 + 3 + 1);
    rig.ask("set", json!({"key": "k", "value": "v".repeat(2_560)}));
    rig.turn(3);
    rig.commit();
    assert_eq!(rig.turn(4).len(), 1);
    assert!(rig.things() >= empty + 8 + 1 + 1 + 10);
    assert_eq!(rig.offer(u64::MAX), Some(rig.turn.node.state().op()));
}

#[test]
fn no_copy_of_the_state_is_offered_as_long_as_a_file_is_behind() {
    let mut rig = Rig::new();
    let op = rig.turn.node.state().op();
    (rig.turn.last_file_op, rig.turn.safe.op) = (op, op);
    assert_eq!(rig.offer(100), Some(op));
    rig.turn.safe.op = op - 1;
    assert_eq!(rig.offer(100), None);
    let kept = Kept { file: Name::new("f").unwrap(), generation: 1, from: 1, waits: false };
    rig.turn.safe = Record { op, kept: vec![kept] };
    assert_eq!(rig.offer(100), None);
}
