//! A client that is nothing but a socket: it sends what it is told and reads what comes.

use super::PATIENCE;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// After how long a request without an answer is sent again.
const RESEND: Duration = Duration::from_millis(100);

/// A request as it was sent: it can be sent again, byte for byte.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    /// Its id.
    pub(crate) id: u64,
    /// Its method.
    pub(crate) method: String,
    /// The datagram.
    pub(crate) bytes: Vec<u8>,
}

/// The reply to a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer(pub(crate) Value);

impl Answer {
    /// The result; an error fails the test.
    pub(crate) fn ok(&self) -> &Value {
        self.0.get("result").unwrap_or_else(|| panic!("expected a result and got {}", self.0))
    }

    /// The kind of the error, if it is one.
    pub(crate) fn kind(&self) -> Option<&str> {
        self.0.pointer("/error/data/kind").and_then(Value::as_str)
    }

    /// Fails the test unless it is an error of this kind; gives its data.
    pub(crate) fn refused(&self, kind: &str) -> &Value {
        assert_eq!(self.kind(), Some(kind), "expected the error {kind} and got {}", self.0);
        &self.0["error"]["data"]
    }

    /// The token, if a grant was made.
    pub(crate) fn token(&self) -> Option<u64> {
        (self.0.pointer("/result/granted")? == &json!(true))
            .then(|| self.0["result"]["token"].as_u64().unwrap())
    }

    /// Whether the same id is to be sent again.
    fn is_for_now(&self) -> bool {
        self.0.pointer("/error/data/final") == Some(&json!(false))
    }
}

/// The client: a socket and, once it is open, a session.
#[derive(Debug)]
pub(crate) struct Raw {
    socket: UdpSocket,
    /// Where requests go: the server, or a proxy before it.
    pub(crate) to: SocketAddr,
    /// The secret id of its session.
    pub(crate) session: Option<String>,
    /// The public number of its session.
    pub(crate) client: u64,
    /// Whether requests say that all earlier ones are answered.
    pub(crate) acks: bool,
    /// How long [`finish`](Raw::finish) waits for the final answer.
    pub(crate) patience: Duration,
    /// The proof of its address, once the server has asked for one.
    cookie: Option<String>,
    next_id: u64,
    got: VecDeque<u64>,
    inbox: VecDeque<Value>,
}

impl Raw {
    /// A client without a session.
    pub(crate) fn new(to: SocketAddr) -> Raw {
        let from = if to.ip().is_loopback() { "127.0.0.1:0" } else { "0.0.0.0:0" };
        Raw::bound(to, from.parse().unwrap())
    }

    /// A client without a session that sends from an address of its choice.
    pub(crate) fn bound(to: SocketAddr, from: SocketAddr) -> Raw {
        let socket = UdpSocket::bind(from).unwrap();
        Raw {
            socket,
            to,
            session: None,
            client: 0,
            acks: false,
            patience: PATIENCE,
            cookie: None,
            next_id: 1,
            got: VecDeque::new(),
            inbox: VecDeque::new(),
        }
    }

    /// A client with a session.
    pub(crate) fn open(to: SocketAddr, ttl_ms: u64) -> Raw {
        let mut raw = Raw::new(to);
        raw.open_session(ttl_ms);
        raw
    }

    /// Opens a session, in place of the one that it may have.
    pub(crate) fn open_session(&mut self, ttl_ms: u64) {
        self.open_session_with(ttl_ms, || {});
    }

    /// Opens a session, doing `between` before each copy of the request.
    pub(crate) fn open_session_with(&mut self, ttl_ms: u64, between: impl FnMut()) {
        let nonce = format!("{:032x}", fastrand::u128(..));
        self.session = None;
        let sent = self.prepare("open_session", json!({"nonce": nonce, "ttl_ms": ttl_ms, "name": "raw"}));
        let answer = self.finish_with(&sent, between);
        let opened = answer.ok();
        self.session = Some(opened["session"].as_str().unwrap().to_owned());
        self.client = opened["client"].as_u64().unwrap();
    }

    /// The same session from another socket, as after a restart of the client's network.
    pub(crate) fn moved(&self) -> Raw {
        let mut moved = Raw::new(self.to);
        moved.session.clone_from(&self.session);
        moved.client = self.client;
        moved.next_id = self.next_id;
        moved
    }

    /// The address that it sends from.
    pub(crate) fn from(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// Writes a request without sending it.
    pub(crate) fn prepare(&mut self, method: &str, params: Value) -> Sent {
        let id = self.next_id;
        self.next_id += 1;
        self.prepare_as(id, method, params)
    }

    /// Writes a request under an id of the caller's choice without sending it.
    pub(crate) fn prepare_as(&mut self, id: u64, method: &str, params: Value) -> Sent {
        let mut params: Map<String, Value> = params.as_object().expect("params are an object").clone();
        if let Some(session) = &self.session {
            params.entry("session").or_insert_with(|| json!(session));
            if !self.got.is_empty() {
                params.insert("got".into(), json!(self.got));
            }
            if self.acks {
                params.insert("ack".into(), json!(id));
            }
        }
        if let Some(cookie) = &self.cookie {
            params.entry("cookie").or_insert_with(|| json!(cookie));
        }
        let text = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string();
        Sent { id, method: method.into(), bytes: seal(text.as_bytes()) }
    }

    /// Sends a request, for the first time or again.
    pub(crate) fn send(&self, sent: &Sent) {
        self.send_bytes(&sent.bytes);
    }

    /// Sends a datagram.
    pub(crate) fn send_bytes(&self, bytes: &[u8]) {
        // A datagram that could not be sent is a lost datagram.
        let _ = self.socket.send_to(bytes, self.to);
    }

    /// Sends a request for the first time.
    pub(crate) fn start(&mut self, method: &str, params: Value) -> Sent {
        let sent = self.prepare(method, params);
        self.send(&sent);
        sent
    }

    /// Waits for an answer without sending the request again; `None` if there is none in that time.
    pub(crate) fn listen(&mut self, sent: &Sent, span: Duration) -> Option<Answer> {
        let id = json!(sent.id);
        let found = self.receive(span, |message| message.get("method").is_none() && message["id"] == id)?;
        if ["acquire_lock", "convert_lock"].contains(&sent.method.as_str()) {
            self.got.push_back(sent.id);
            while self.got.len() > 32 {
                self.got.pop_front();
            }
        }
        Some(Answer(found))
    }

    /// Sends a request, and again until its final answer is there, doing `between` before each copy.
    pub(crate) fn finish_with(&mut self, sent: &Sent, mut between: impl FnMut()) -> Answer {
        let start = Instant::now();
        let mut last = None;
        let mut proven = sent.clone();
        loop {
            between();
            self.send(&proven);
            match self.listen(sent, RESEND) {
                Some(answer) if answer.kind() == Some("verify") => {
                    self.cookie = answer.0["error"]["data"]["cookie"].as_str().map(str::to_owned);
                    let mut message = unseal(&sent.bytes);
                    message["params"]["cookie"] = json!(self.cookie);
                    proven.bytes = seal(message.to_string().as_bytes());
                }
                Some(answer) if answer.is_for_now() => {
                    last = Some(answer);
                    std::thread::sleep(Duration::from_millis(10));
                }
                Some(answer) => return answer,
                None => {}
            }
            let late = start.elapsed() > self.patience;
            assert!(!late, "no final answer to {} {}; the last for now was {last:?}", sent.method, sent.id);
        }
    }

    /// Sends a request, and again until its final answer is there.
    pub(crate) fn finish(&mut self, sent: &Sent) -> Answer {
        self.finish_with(sent, || {})
    }

    /// A new request and its final answer.
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Answer {
        let sent = self.prepare(method, params);
        self.finish(&sent)
    }

    /// A new request that must have a result.
    pub(crate) fn ok(&mut self, method: &str, params: Value) -> Value {
        self.call(method, params).ok().clone()
    }

    /// A new request that must be refused; gives the error's data.
    pub(crate) fn refused(&mut self, method: &str, params: Value, kind: &str) -> Value {
        self.call(method, params).refused(kind).clone()
    }

    /// Waits for a notification and gives its params; `None` if there is none in that time.
    pub(crate) fn notified(&mut self, method: &str, span: Duration) -> Option<Value> {
        let found = self.receive(span, |message| message["method"] == method)?;
        Some(found["params"].clone())
    }

    /// Whatever comes next; `None` if nothing does in that time.
    pub(crate) fn anything(&mut self, span: Duration) -> Option<Value> {
        self.receive(span, |_| true)
    }

    /// The next datagram as it came; `None` if there is none in that time.
    pub(crate) fn datagram(&mut self, span: Duration) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        self.socket.set_read_timeout(Some(span.max(Duration::from_millis(1)))).unwrap();
        match self.socket.recv_from(&mut buffer) {
            Ok((length, _)) => {
                buffer.truncate(length);
                Some(buffer)
            }
            Err(error) => {
                let known = [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::Interrupted];
                assert!(known.contains(&error.kind()), "receiving failed: {error}");
                None
            }
        }
    }

    fn receive(&mut self, span: Duration, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let deadline = Instant::now() + span;
        loop {
            if let Some(at) = self.inbox.iter().position(&wanted) {
                return self.inbox.remove(at);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            if let Some(bytes) = self.datagram(left) {
                match unseal(&bytes) {
                    Value::Array(elements) => self.inbox.extend(elements),
                    // Replies to the heartbeats of `beats` are nobody's.
                    Value::Object(message) if message.get("id") == Some(&json!("beat")) => {}
                    other => self.inbox.push_back(other),
                }
                while self.inbox.len() > 4_096 {
                    self.inbox.pop_front();
                }
            }
        }
    }

    /// Keeps the session alive with heartbeats until what it returns is dropped.
    pub(crate) fn beats(&self, every: Duration) -> Beats {
        let mut params = json!({"session": self.session.as_ref().expect("a session is open")});
        if let Some(cookie) = &self.cookie {
            params["cookie"] = json!(cookie);
        }
        let text =
            json!({"jsonrpc": "2.0", "id": "beat", "method": "heartbeat", "params": params}).to_string();
        let (bytes, to) = (seal(text.as_bytes()), self.to);
        // The same socket: heartbeats from another one would move the session's address there.
        let socket = self.socket.try_clone().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let _ = socket.send_to(&bytes, to);
                std::thread::sleep(every);
            }
        });
        Beats { stop, thread: Some(thread) }
    }
}

/// What most tests ask.
impl Raw {
    /// Tries for a lock that is free; gives the token.
    pub(crate) fn acquire(&mut self, key: &str) -> u64 {
        let answer = self.call("acquire_lock", json!({"key": key}));
        answer.token().unwrap_or_else(|| panic!("{key} was not granted: {}", answer.0))
    }

    /// Stands in line without limit; returns when the server has said that it does.
    pub(crate) fn stand_in_line(&mut self, key: &str) -> Sent {
        let sent = self.prepare("acquire_lock", json!({"key": key, "wait_ms": null}));
        let start = Instant::now();
        loop {
            self.send(&sent);
            let id = json!(sent.id);
            let told = self.receive(RESEND, |message| {
                message["method"] == "pending" && message["params"]["id"] == id || message["id"] == id
            });
            if let Some(told) = told {
                assert_eq!(told["method"], "pending", "{key} was to be waited for");
                return sent;
            }
            assert!(start.elapsed() < self.patience, "no place in the line of {key}");
        }
    }

    /// The token of the grant that a wait was for.
    pub(crate) fn granted(&mut self, wait: &Sent) -> u64 {
        let answer = self.finish(wait);
        answer.token().unwrap_or_else(|| panic!("the wait ended without a grant: {}", answer.0))
    }

    /// Releases a grant.
    pub(crate) fn release(&mut self, token: u64) {
        assert_eq!(self.ok("release_lock", json!({"token": token}))["released"], true);
    }

    /// Appends to a file; gives offset and length.
    pub(crate) fn append(&mut self, file: &str, token: u64, data: &str) -> (u64, u64) {
        let result = self.ok("append_file", json!({"file": file, "token": token, "data": data}));
        (result["offset"].as_u64().unwrap(), result["length"].as_u64().unwrap())
    }

    /// The whole content of a file; empty if there is none.
    pub(crate) fn read(&mut self, file: &str) -> String {
        let mut content = String::new();
        loop {
            let answer = self.call("read_file", json!({"file": file, "offset": content.len()}));
            if answer.kind() == Some("not_found") {
                return content;
            }
            let page = answer.ok();
            content.push_str(page["data"].as_str().expect("the tests write text"));
            if page["eof"] == true {
                return content;
            }
        }
    }

    /// The value of a key; `null` if there is none.
    pub(crate) fn value(&mut self, key: &str) -> Value {
        self.ok("get", json!({"key": key}))["value"].clone()
    }

    /// Sets a key; gives its version.
    pub(crate) fn set(&mut self, key: &str, value: Value) -> u64 {
        self.ok("set", json!({"key": key, "value": value}))["version"].as_u64().unwrap()
    }

    /// Whether anybody holds a lock.
    pub(crate) fn is_locked(&mut self, key: &str) -> bool {
        self.ok("is_locked", json!({"key": key}))["locked"].as_bool().unwrap()
    }

    /// The public number of the session that holds a lock.
    pub(crate) fn holder(&mut self, key: &str) -> Option<u64> {
        self.ok("get_lock_info", json!({"key": key}))["holders"].get(0)?["client"].as_u64()
    }

    /// The public numbers of the sessions in the line of a lock, in order.
    pub(crate) fn queue(&mut self, key: &str) -> Vec<u64> {
        let info = self.ok("get_lock_info", json!({"key": key}));
        info["queue"].as_array().unwrap().iter().map(|wait| wait["client"].as_u64().unwrap()).collect()
    }

    /// How many grants the session holds.
    pub(crate) fn held(&mut self) -> u64 {
        self.ok("heartbeat", json!({}))["held"].as_u64().unwrap()
    }
}

/// Heartbeats that go on until this is dropped.
pub(crate) struct Beats {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Beats {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// CRC-32C, bit by bit: slow, and nobody else's code.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()))
    })
}

/// Adds the trailer.
pub(super) fn seal(text: &[u8]) -> Vec<u8> {
    let mut bytes = text.to_vec();
    bytes.extend_from_slice(format!("\n{:08x}", crc32c(text)).as_bytes());
    bytes
}

/// Reads a datagram of the server, which must be whole.
pub(super) fn unseal(bytes: &[u8]) -> Value {
    let mut message = bytes;
    if bytes.len() > 9 && bytes[bytes.len() - 9] == b'\n' {
        let (text, trailer) = bytes.split_at(bytes.len() - 9);
        let told = std::str::from_utf8(&trailer[1..]).unwrap();
        assert_eq!(told, format!("{:08x}", crc32c(text)), "the server's checksum is wrong");
        message = text;
    }
    serde_json::from_slice(message)
        .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_client_takes_the_reply_with_its_id_and_keeps_the_rest() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut raw = Raw::new(server.local_addr().unwrap());
        let sent = raw.start("ping", json!({}));
        for text in [
            r#"{"jsonrpc":"2.0","id":"beat","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":99,"result":{}}"#,
            r#"{"jsonrpc":"2.0","method":"lost","params":{"token":7}}"#,
            r#"[{"jsonrpc":"2.0","id":1,"result":{"server":"tenure"}}]"#,
        ] {
            server.send_to(&seal(text.as_bytes()), raw.from()).unwrap();
        }
        assert_eq!(raw.listen(&sent, PATIENCE).unwrap().ok()["server"], "tenure");
        assert_eq!(raw.notified("lost", PATIENCE).unwrap()["token"], 7);
        assert_eq!(raw.anything(PATIENCE).unwrap()["id"], 99);
    }

    #[test]
    fn a_client_sends_the_same_bytes_until_the_final_answer_is_there() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut raw = Raw::new(server.local_addr().unwrap());
        let serving = std::thread::spawn(move || {
            let mut buffer = [0; 2_000];
            let mut copies = Vec::new();
            for reply in [
                None,
                Some(r#"{"jsonrpc":"2.0","id":1,"error":{"data":{"kind":"busy","final":false}}}"#),
                Some(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#),
            ] {
                let (length, from) = server.recv_from(&mut buffer).unwrap();
                copies.push(buffer[..length].to_vec());
                if let Some(text) = reply {
                    server.send_to(text.as_bytes(), from).unwrap();
                }
            }
            copies
        });
        assert_eq!(raw.call("ping", json!({})).ok(), &json!({}));
        let copies = serving.join().unwrap();
        assert!(copies.iter().all(|copy| *copy == copies[0]));
    }
}
