//! Many sessions behind one socket, with many requests on their way at once.

use super::PATIENCE;
use super::raw::{seal, unseal};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// How long a request waits for an answer until it is sent again.
const RESEND: Duration = Duration::from_millis(500);

/// What is asked of a crowd: by which of its sessions, with which method and params.
pub(crate) type Ask = (usize, &'static str, Value);

/// The crowd. Its requests have ids that no other of its sessions uses, so that replies find their askers.
pub(crate) struct Crowd {
    socket: UdpSocket,
    to: SocketAddr,
    /// The secret ids of its sessions.
    sessions: Vec<String>,
    next_id: u64,
    /// The requests that stand in line.
    waits: BTreeMap<u64, Vec<u8>>,
    /// Final answers that came while others were waited for.
    early: BTreeMap<u64, Value>,
    /// Requests that were sent again.
    pub(crate) resent: u64,
}

impl Crowd {
    /// Opens so many sessions. Those that are open meanwhile are kept alive.
    pub(crate) fn open(to: SocketAddr, sessions: usize, ttl_ms: u64) -> Crowd {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut crowd = Crowd {
            socket,
            to,
            sessions: Vec::new(),
            next_id: 1,
            waits: BTreeMap::new(),
            early: BTreeMap::new(),
            resent: 0,
        };
        let mut heard = Instant::now();
        while crowd.sessions.len() < sessions {
            let more = (sessions - crowd.sessions.len()).min(500);
            let asks = (0..more).map(|_| {
                let nonce = format!("{:032x}", fastrand::u128(..));
                (usize::MAX, "open_session", json!({"nonce": nonce, "ttl_ms": ttl_ms}))
            });
            let opened = crowd.ask(asks.collect(), 64);
            let ids = opened.iter().map(|answer| answer["result"]["session"].as_str().unwrap().to_owned());
            crowd.sessions.extend(ids.collect::<Vec<_>>());
            if heard.elapsed() > Duration::from_millis(ttl_ms / 4) {
                heard = Instant::now();
                crowd.beat(64);
            }
        }
        crowd
    }

    /// How many sessions there are.
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Every session gives a sign of life, so many at once, and is heard.
    pub(crate) fn beat(&mut self, at_once: usize) -> Vec<Value> {
        let beats = (0..self.len()).map(|of| (of, "heartbeat", json!({}))).collect();
        self.ask(beats, at_once)
    }

    /// Writes a request: its id and the datagram.
    fn prepare(&mut self, (of, method, mut params): Ask) -> (u64, Vec<u8>) {
        let id = self.next_id;
        self.next_id += 1;
        if let Some(session) = self.sessions.get(of) {
            params["session"] = json!(session);
        }
        let text = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string();
        (id, seal(text.as_bytes()))
    }

    /// Asks for what is to be waited for; gives the id. It stands in line when this returns.
    pub(crate) fn stand_in_line(&mut self, ask: Ask) -> u64 {
        let (id, bytes) = self.prepare(ask);
        let told = self.go(VecDeque::from([(id, bytes.clone())]), 1, true);
        assert_eq!(told[0].1["method"], "pending", "it was to be waited for");
        self.waits.insert(id, bytes);
        id
    }

    /// The final answers to all of these, so many on their way at once, in the order in which they were asked.
    pub(crate) fn ask(&mut self, asks: Vec<Ask>, at_once: usize) -> Vec<Value> {
        let requests = asks.into_iter().map(|ask| self.prepare(ask)).collect();
        self.go(requests, at_once, false).into_iter().map(|(_, answer)| answer).collect()
    }

    fn go(
        &mut self,
        mut left: VecDeque<(u64, Vec<u8>)>,
        at_once: usize,
        pending_will_do: bool,
    ) -> Vec<(u64, Value)> {
        let order: Vec<u64> = left.iter().map(|(id, _)| *id).collect();
        let mut on_their_way: BTreeMap<u64, (Vec<u8>, Instant)> = BTreeMap::new();
        let mut answers = BTreeMap::new();
        let mut last_answer = Instant::now();
        while answers.len() < order.len() {
            while on_their_way.len() < at_once
                && let Some((id, bytes)) = left.pop_front()
            {
                self.send(&bytes);
                on_their_way.insert(id, (bytes, Instant::now()));
            }
            for (id, answer, is_final) in self.receive(Duration::from_millis(50)) {
                if !(is_final || pending_will_do && answer["method"] == "pending") {
                    continue;
                }
                if on_their_way.remove(&id).is_some() {
                    answers.insert(id, answer);
                    last_answer = Instant::now();
                } else if is_final {
                    self.early.insert(id, answer);
                }
            }
            let mut again = Vec::new();
            for (bytes, sent) in on_their_way.values_mut().filter(|(_, sent)| sent.elapsed() > RESEND) {
                *sent = Instant::now();
                again.push(bytes.clone());
            }
            self.resent += again.len() as u64;
            again.iter().for_each(|bytes| self.send(bytes));
            assert!(last_answer.elapsed() < PATIENCE, "{} are not answered", on_their_way.len());
        }
        order.iter().map(|id| (*id, answers.remove(id).unwrap())).collect()
    }

    /// The final answer to a request of [`stand_in_line`](Crowd::stand_in_line).
    pub(crate) fn answer(&mut self, id: u64) -> Value {
        let bytes = self.waits.remove(&id).expect("it stands in line");
        let (start, mut sent) = (Instant::now(), Instant::now());
        loop {
            if let Some(answer) = self.early.remove(&id) {
                return answer;
            }
            let came = self.receive(Duration::from_millis(50));
            self.early.extend(came.into_iter().filter(|came| came.2).map(|(id, answer, _)| (id, answer)));
            if sent.elapsed() > RESEND {
                sent = Instant::now();
                self.resent += 1;
                self.send(&bytes);
            }
            assert!(start.elapsed() < PATIENCE, "request {id} is not answered");
        }
    }

    fn send(&self, bytes: &[u8]) {
        // A datagram that could not be sent is a lost datagram.
        let _ = self.socket.send_to(bytes, self.to);
    }

    /// What comes in that time: of which request, what, and whether it is final.
    fn receive(&self, span: Duration) -> Vec<(u64, Value, bool)> {
        let mut buffer = vec![0; 65_536];
        self.socket.set_read_timeout(Some(span)).unwrap();
        let Ok((length, _)) = self.socket.recv_from(&mut buffer) else { return Vec::new() };
        let messages = match unseal(&buffer[..length]) {
            Value::Array(messages) => messages,
            message => vec![message],
        };
        let told = messages.into_iter().filter_map(|message| {
            let id = message.get("id").or_else(|| message.pointer("/params/id"))?.as_u64()?;
            let for_now = message.pointer("/error/data/final") == Some(&json!(false));
            let is_final = message.get("method").is_none() && !for_now;
            Some((id, message, is_final))
        });
        told.collect()
    }
}
