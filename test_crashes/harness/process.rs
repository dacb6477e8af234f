//! A client as a process of its own, so that it can be killed and stopped as clients are.
//!
//! The process is this test program again, running only [`as_a_client`]: it reads commands as lines on stdin and answers
//! each with a line on stdout. With heartbeats on, a thread of the process sends them, and stops when the process does.

use super::{PATIENCE, Raw};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

/// A client process. Killed when dropped.
pub(crate) struct ClientProcess {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<Value>,
    /// The public number of its session.
    pub(crate) client: u64,
}

impl ClientProcess {
    /// Starts a client with a session; with `beats` it sends heartbeats at a quarter of its TTL.
    pub(crate) fn start(to: SocketAddr, ttl_ms: u64, beats: bool) -> ClientProcess {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "harness::process::as_a_client",
                "--exact",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // What else stands on stdout is the test runner's.
                if let Some(text) = line.strip_prefix('@') {
                    let _ = tell.send(serde_json::from_str(text).unwrap());
                }
            }
        });
        let mut process = ClientProcess { child, stdin, lines, client: 0 };
        process.tell(&json!({"to": to.to_string(), "ttl_ms": ttl_ms, "beats": beats}));
        process.client = process.hear()["client"].as_u64().unwrap();
        process
    }

    /// A request and its final answer.
    pub(crate) fn call(&mut self, method: &str, params: Value) -> super::Answer {
        self.begin(method, params);
        self.end()
    }

    /// Has a request sent without waiting for its answer.
    pub(crate) fn begin(&mut self, method: &str, params: Value) {
        self.tell(&json!({"method": method, "params": params}));
    }

    /// The final answer to the request that was begun.
    pub(crate) fn end(&mut self) -> super::Answer {
        super::Answer(self.hear())
    }

    /// Takes a lock that is free; gives the token.
    pub(crate) fn acquire(&mut self, key: &str) -> u64 {
        self.call("acquire_lock", json!({"key": key})).token().expect("the lock was free")
    }

    /// SIGKILL. Returns when the process is gone.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn tell(&mut self, command: &Value) {
        writeln!(self.stdin, "{command}").unwrap();
        self.stdin.flush().unwrap();
    }

    fn hear(&self) -> Value {
        self.lines.recv_timeout(PATIENCE).expect("the client process answers")
    }
}

impl Drop for ClientProcess {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a client process does. No test: [`ClientProcess::start`] runs it.
#[test]
#[ignore = "it is the inside of a client process and reads its commands on stdin"]
fn as_a_client() {
    let answer = |value: &Value| println!("\n@{value}");
    let mut lines = std::io::stdin().lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let start: Value = serde_json::from_str(&first).unwrap();
    let ttl_ms = start["ttl_ms"].as_u64().unwrap();
    let mut raw = Raw::open(start["to"].as_str().unwrap().parse().unwrap(), ttl_ms);
    let _beats = (start["beats"] == true).then(|| raw.beats(Duration::from_millis(ttl_ms / 4)));
    answer(&json!({"client": raw.client}));
    for line in lines {
        let command: Value = serde_json::from_str(&line).unwrap();
        let reply = raw.call(command["method"].as_str().unwrap(), command["params"].clone());
        answer(&reply.0);
    }
}
