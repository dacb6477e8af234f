//! `docs/protocol.md` is true: every example in it is run against a live server, and its tables are those of the code.

#[path = "protocol/document.rs"]
mod document;
#[path = "protocol/pattern.rs"]
mod pattern;
#[path = "protocol/server.rs"]
mod server;

use document::{Scope, Step};
use pattern::Bindings;
use serde_json::Value;
use server::{BadLine, Server, call, outside_address, receive, receive_soon};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tenure::datagram::{self, Dropped};
use tenure::kind::Kind;
use tenure::limits::{self, Limits};
use tenure::name;
use tenure::wire::{METHODS, PAGE_LIMIT_MAX, Params, decode};

const DOCUMENT: &str = include_str!("../docs/protocol.md");
const CLIENT: &str = include_str!("../docs/examples/client.py");
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// How long `<- nothing` looks for a datagram.
const NOTHING: Duration = Duration::from_millis(200);

#[test]
fn every_example_is_true() {
    let scopes = document::examples(DOCUMENT).unwrap();
    assert!(scopes.len() > 5, "the examples were not found");
    let mut mismatches = Vec::new();
    for scope in scopes {
        let ip = if scope.outside { outside_address() } else { Some(LOOPBACK) };
        match ip {
            Some(ip) => mismatches.extend(Run::start(ip, &scope).and_then(|run| run.all(&scope)).err()),
            None => skip(&format!(
                "docs/protocol.md:{}: this machine has no address but loopback addresses, which are proven",
                scope.line
            )),
        }
    }
    assert!(mismatches.is_empty(), "\n\n{}\n", mismatches.join("\n\n"));
}

/// One scope of examples while it runs.
struct Run {
    server: Server,
    sockets: BTreeMap<String, Peer>,
    current: String,
    bindings: Bindings,
}

/// A client socket and what it has received.
struct Peer {
    socket: UdpSocket,
    seen: Vec<Value>,
}

impl Run {
    fn start(ip: IpAddr, scope: &Scope) -> Result<Run, String> {
        let server = Server::start(ip).map_err(|error| at(scope.line, error))?;
        let mut run =
            Run { server, sockets: BTreeMap::new(), current: String::new(), bindings: Bindings::new() };
        run.switch("A");
        Ok(run)
    }

    /// Runs all steps; the first that is not true ends the scope, since the rest rests on it.
    fn all(mut self, scope: &Scope) -> Result<(), String> {
        for (line, step) in &scope.steps {
            self.step(step).map_err(|error| at(*line, error))?;
        }
        let last = scope.steps.last().map_or(scope.line, |(line, _)| *line);
        for name in self.sockets.keys().cloned().collect::<Vec<_>>() {
            self.switch(&name);
            self.nothing(Duration::ZERO).map_err(|error| at(last, error))?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Send(text) => {
                let text = pattern::fill(text, &self.bindings)?;
                self.peer().socket.send(text.as_bytes()).map_err(|error| error.to_string())?;
                Ok(())
            }
            Step::Expect(text, checksum) => self.expect(text, checksum.as_deref()),
            Step::Nothing => self.nothing(NOTHING),
            Step::Advance(time) => {
                thread::sleep(*time);
                Ok(())
            }
            Step::As(name) => {
                self.switch(name);
                Ok(())
            }
            Step::Restart => self.server.restart(),
            Step::Greater(greater, smaller) => {
                let number = |name: &str| self.bindings.get(name).and_then(Value::as_u64);
                match (number(greater), number(smaller)) {
                    (Some(one), Some(other)) if one > other => Ok(()),
                    (one, other) => Err(format!("${greater} is {one:?} and ${smaller} is {other:?}")),
                }
            }
        }
    }

    /// The next datagram is as the document says. What is not, but a copy of what came before, is passed over: the reply of a
    /// wait comes again until it is acknowledged.
    fn expect(&mut self, text: &str, checksum: Option<&str>) -> Result<(), String> {
        let expected = pattern::parse(text)?;
        loop {
            let bytes = receive_soon(&self.peer().socket)
                .ok_or_else(|| format!("nothing came\n  document: {}", one_line(text)))?;
            let came = read(&bytes)?;
            let mut bindings = self.bindings.clone();
            let matched = pattern::matches(&expected, &came.json, &mut bindings)
                .and_then(|()| came.check(checksum, &mut bindings));
            match matched {
                Ok(()) => {
                    self.bindings = bindings;
                    self.peer().seen.push(came.json);
                    return Ok(());
                }
                Err(_) if self.peer().seen.contains(&came.json) => {}
                Err(reason) => {
                    let text = one_line(text);
                    return Err(format!("{reason}\n  document: {text}\n  server:   {}", came.text));
                }
            }
        }
    }

    /// Nothing new comes for a while.
    fn nothing(&mut self, time: Duration) -> Result<(), String> {
        let deadline = Instant::now() + time;
        while let Some(bytes) =
            receive(&self.peer().socket, deadline.saturating_duration_since(Instant::now()))
        {
            let came = read(&bytes)?;
            if !self.peer().seen.contains(&came.json) {
                return Err(format!("a datagram that is not in the document\n  server:   {}", came.text));
            }
        }
        Ok(())
    }

    fn switch(&mut self, name: &str) {
        self.current = name.to_owned();
        let server = &self.server;
        self.sockets
            .entry(name.to_owned())
            .or_insert_with(|| Peer { socket: server.client(), seen: Vec::new() });
    }

    fn peer(&mut self) -> &mut Peer {
        self.sockets.get_mut(&self.current).expect("the current socket is open")
    }
}

/// A datagram of the server.
struct Came {
    text: String,
    json: Value,
    checksum: Option<String>,
}

impl Came {
    /// Compares the checksum, whose correctness [`read`] has checked, with what the document shows of it.
    fn check(&self, expected: Option<&str>, bindings: &mut Bindings) -> Result<(), String> {
        match (expected, &self.checksum) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err("a checksum came that is not in the document".into()),
            (Some(_), None) => Err("the checksum is missing".into()),
            (Some(expected), Some(came)) => {
                pattern::matches(&Value::from(expected), &Value::from(came.as_str()), bindings)
            }
        }
    }
}

fn read(bytes: &[u8]) -> Result<Came, String> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let opened =
        datagram::open(bytes).map_err(|dropped| format!("{}\n  server:   {text}", dropped.as_str()))?;
    let json =
        serde_json::from_slice(opened.message).map_err(|error| format!("{error}\n  server:   {text}"))?;
    let checksum = opened.sealed.then(|| text[text.trim_end().len() - 8..].trim_end().to_owned());
    Ok(Came { text, json, checksum })
}

fn at(line: usize, error: String) -> String {
    format!("docs/protocol.md:{line}: {error}")
}

fn one_line(text: &str) -> String {
    text.replace('\n', "")
}

/// Says what was not run and why, past the capture of the test runner.
fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIP {why}");
}

#[test]
fn the_table_of_errors_is_that_of_the_code() {
    let shown: Vec<(String, String)> = document::rows(DOCUMENT, "kind")
        .into_iter()
        .map(|row| (row[0].to_owned(), row[1].to_owned()))
        .filter(|(_, code)| code.starts_with('-'))
        .collect();
    let known: Vec<(String, String)> =
        Kind::ALL.iter().map(|kind| (kind.to_string(), kind.code().to_string())).collect();
    assert_eq!(shown, known);
}

#[test]
fn every_method_has_its_section_with_exactly_the_parameters_that_it_takes() {
    for method in METHODS {
        assert!(DOCUMENT.contains(&format!("`{method}`")), "{method} is not in the document");
        let takes = |param: &&&str| {
            // The wire says of a parameter that it is not taken, whatever else is wrong with the request.
            let request = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{"session":"{:032}","{param}":{}}}}}"#,
                1,
                sample(param)
            );
            let message = decode(request.as_bytes()).unwrap();
            let refusal = message.elements.into_iter().next().unwrap().request.err();
            !refusal.is_some_and(|refusal| refusal.message.contains(&format!("no parameter `{param}`")))
        };
        let common: BTreeSet<&str> =
            document::rows(DOCUMENT, "common param").into_iter().map(|row| row[0]).collect();
        let Some(section) = document::section(DOCUMENT, method) else {
            let later = document::rows(DOCUMENT, "later method");
            assert!(later.iter().any(|row| row[0] == method), "{method} has no section");
            continue;
        };
        let shown: BTreeSet<&str> = document::rows(section, "param").into_iter().map(|row| row[0]).collect();
        let taken: BTreeSet<&str> =
            Params::NAMES.iter().filter(takes).copied().filter(|name| !common.contains(name)).collect();
        assert_eq!(shown, taken, "parameters of {method}: document and code");
        assert!(section.contains("```jsonrpc"), "{method} has no example");
    }
}

/// A value of the type that the parameter has; the session is in every request already.
fn sample(param: &str) -> &'static str {
    match param {
        "session" => "\"00000000000000000000000000000001\",\"key\":\"a\"",
        "holder" | "nonce" => "\"00000000000000000000000000000001\"",
        "got" => "[1]",
        "keys" => "[\"a\"]",
        "atomic" | "bound" => "false",
        "compare" | "apply" => "[]",
        "cookie" | "name" | "label" | "key" | "mode" | "owner" | "from" | "to" | "prefix" | "cursor"
        | "reason" | "file" | "data" | "data_b64" => "\"exclusive\"",
        _ => "100",
    }
}

#[test]
fn every_limit_and_cause_of_a_drop_is_in_its_table() {
    let limits = serde_json::to_value(Limits::default()).unwrap();
    let known: BTreeMap<&str, u64> =
        limits.as_object().unwrap().iter().map(|(name, max)| (&**name, max.as_u64().unwrap())).collect();
    assert_eq!(numbers("limit"), known);
    let fixed = BTreeMap::from([
        ("batch_elements", limits::BATCH_ELEMENTS_MAX as u64),
        ("got", limits::GOT_MAX as u64),
        ("depth", limits::VALUE_DEPTH_MAX as u64),
        ("name", name::NAME_MAX as u64),
        ("component", name::COMPONENT_MAX as u64),
        ("text", limits::LABEL_MAX as u64),
        ("holders", limits::HOLDERS_SHOWN as u64),
        ("keys", limits::ASKS_MAX as u64),
        ("slots", u64::from(limits::SLOTS_MAX)),
        ("transaction", limits::TRANSACTION_MAX as u64),
        ("cycle", limits::CYCLE_SHOWN as u64),
        ("deadlock_steps", limits::DEADLOCK_STEPS_MAX as u64),
        ("reason", limits::REASON_MAX as u64),
        ("losses", limits::LOSSES_KEPT as u64),
        ("contention", limits::CONTENTION_NAMES as u64),
        ("looked_at", limits::WAITS_LOOKED_AT),
        ("ttl_min_ms", limits::TTL_MIN_MS),
        ("ttl_max_ms", limits::TTL_MAX_MS),
        ("key_ttl_max_ms", limits::KEY_TTL_MAX_MS),
        ("wait_max_ms", limits::WAIT_MAX_MS),
        ("watch_wait_max_ms", limits::WATCH_WAIT_MAX_MS),
        ("watches", limits::WATCHES_MAX as u64),
        ("address_watches", limits::ADDRESS_WATCHES_MAX as u64),
        ("watch_scan", limits::WATCH_SCAN_MAX as u64),
        ("afterlife_ms", limits::AFTERLIFE_MS),
        ("page_items", PAGE_LIMIT_MAX),
        ("datagram_bytes", limits::DATAGRAM_MAX as u64),
        ("reply_bytes", limits::REPLY_MAX as u64),
        ("page_bytes", limits::REPLY_PAGE as u64),
    ]);
    assert_eq!(numbers("fixed limit"), fixed);
    let drops: Vec<&str> = document::rows(DOCUMENT, "cause").into_iter().map(|row| row[0]).collect();
    assert_eq!(drops, Dropped::ALL.map(Dropped::as_str));
}

/// The numbers of a table, by the name in its first column.
fn numbers(heading: &str) -> BTreeMap<&'static str, u64> {
    let rows = document::rows(DOCUMENT, heading);
    rows.into_iter().map(|row| (row[0], row[1].parse().expect("the second column is a number"))).collect()
}

#[test]
fn the_line_for_nc_gets_its_answer() {
    let line = document::block(DOCUMENT, "sh").unwrap();
    let (request, rest) = line.strip_prefix("echo '").unwrap().split_once('\'').unwrap();
    assert_eq!(rest, " | nc -u -w1 127.0.0.1 5625\n");
    let server = Server::start(LOOPBACK).unwrap();
    let reply = call(&server.client(), &format!("{request}\n"));
    assert_eq!(reply, serde_json::json!({"jsonrpc": "2.0", "id": 1, "result": {"found": false}}));
}

#[test]
fn the_client_in_40_lines_is_the_one_in_the_document() {
    assert_eq!(document::block(DOCUMENT, "python"), Some(CLIENT));
    assert_eq!(CLIENT.lines().count(), 40);
}

#[test]
fn the_client_in_40_lines_appends_once_also_over_a_bad_line_and_after_a_wait() {
    if Command::new("python3").arg("--version").output().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "python3 is missing, and this is CI");
        return skip("docs/examples/client.py: there is no python3 on this machine");
    }
    let server = Server::start(LOOPBACK).unwrap();
    let socket = server.client();
    let session = call(
        &socket,
        r#"{"jsonrpc":"2.0","id":0,"method":"open_session","params":{"nonce":"00000000000000000000000000000001"}}"#,
    );
    let session = session["result"]["session"].as_str().expect("a session");
    let lock = call(
        &socket,
        &format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"acquire_lock","params":{{"session":"{session}","key":"greetings"}}}}"#
        ),
    );
    let mut waiting = Python::start(server.address, "first");
    let deadline = Instant::now() + Duration::from_secs(10);
    let info = r#"{"jsonrpc":"2.0","id":9,"method":"get_lock_info","params":{"key":"greetings"}}"#;
    while call(&socket, info)["result"]["queue_total"] == 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    let token = &lock["result"]["token"];
    call(
        &socket,
        &format!(
            r#"{{"jsonrpc":"2.0","id":2,"method":"release_lock","params":{{"session":"{session}","token":{token}}}}}"#
        ),
    );
    waiting.finish();
    let line = BadLine::to(server.address);
    Python::start(line.address, "second").finish();
    let file =
        call(&socket, r#"{"jsonrpc":"2.0","id":3,"method":"read_file","params":{"file":"greetings"}}"#);
    assert_eq!(file["result"]["data"], "first\nsecond\n", "{file}");
}

/// A run of `docs/examples/client.py`; dropped, it is killed.
struct Python(std::process::Child);

impl Python {
    fn start(server: std::net::SocketAddr, line: &str) -> Python {
        let child = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples/client.py"))
            .args([&server.ip().to_string(), &server.port().to_string(), "greetings", line])
            .stdout(Stdio::null())
            .spawn();
        Python(child.expect("python3 was there a moment ago"))
    }

    fn finish(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().expect("the process is our own child") {
                assert!(status.success(), "docs/examples/client.py ended with {status}");
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("docs/examples/client.py did not end");
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
