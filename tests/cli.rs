//! The command line, end to end: the real binary against a real server, in processes of their own.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; the lint's own exception ends at functions marked #[test]"
)]

use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const TENURE: &str = env!("CARGO_BIN_EXE_tenure");

/// A program with none of the variables of whoever runs the tests.
fn tenure() -> Command {
    let mut command = Command::new(TENURE);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TENURE_") {
            command.env_remove(name);
        }
    }
    command
}

/// A server, and the private directory of one user.
struct Bench {
    server: Child,
    addr: String,
    data: TempDir,
    home: TempDir,
}

impl Bench {
    fn start() -> Bench {
        Bench::start_with(&[])
    }

    /// A server with more arguments.
    fn start_with(more: &[&str]) -> Bench {
        let data = tempfile::tempdir().unwrap();
        let home = tempfile::tempdir().unwrap();
        let (server, addr) = serve_with(data.path(), "127.0.0.1:0", more, "warn", Stdio::inherit());
        Bench { server, addr, data, home }
    }

    /// Kills the server as a power cut of its process would, and starts it again where it was.
    fn kill_and_restart(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
        (self.server, self.addr) = serve(self.data.path(), &self.addr);
    }

    /// The private directory, which the first `acquire` makes.
    fn private(&self) -> PathBuf {
        self.home.path().join("kept")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = tenure();
        command.args(args).env("TENURE_ADDR", &self.addr).env("TENURE_HOME", self.private());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a command that must do what it is asked. Gives what it wrote to stdout, the last line feed aside.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", told(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        text.strip_suffix('\n').unwrap_or(&text).to_owned()
    }

    /// Runs a command that must fail so. Gives its sentence; nothing is on stdout.
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", told(&output));
        assert!(output.stdout.is_empty(), "{args:?} wrote to stdout: {}", told(&output));
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    fn token(&self, args: &[&str]) -> u64 {
        self.ok(args).parse().unwrap()
    }

    fn kept(&self) -> usize {
        let names = fs::read_dir(self.private()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().ends_with(".json")).count()
    }

    /// Waits until something is so. Not a measure of time: the limit only keeps a broken test from hanging.
    fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !is_so() {
            assert!(begin.elapsed() < Duration::from_secs(30), "never: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn waiting(&self, lock: &str) -> u64 {
        self.json(&["explain", lock])["queue_total"].as_u64().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Starts a server and waits for its one line.
fn serve(data: &Path, bind: &str) -> (Child, String) {
    serve_with(data, bind, &[], "warn", Stdio::inherit())
}

/// Starts a server with more arguments, that logs from a level on.
fn serve_with(data: &Path, bind: &str, more: &[&str], log: &str, stderr: Stdio) -> (Child, String) {
    let mut server = tenure()
        .args(["serve", "--bind", bind, "--data-dir"])
        .arg(data)
        .args(more)
        .env("TENURE_LOG", log)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let addr =
        line.trim_end().strip_prefix("listening on ").unwrap_or_else(|| panic!("the server said {line:?}"));
    (server, addr.to_owned())
}

fn told(output: &Output) -> String {
    format!(
        "{}, stdout {:?}, stderr {:?}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_lock_outlives_its_command_and_later_commands_renew_and_release_it() {
    let bench = Bench::start();
    let token = bench.token(&["acquire", "deploy", "--ttl", "60s", "--label", "nightly"]);
    assert_eq!(bench.kept(), 1);
    let info = bench.json(&["explain", "deploy"]);
    assert_eq!(info["holders"][0]["token"], token);
    assert_eq!(info["holders"][0]["label"], "nightly");
    assert!(bench.ok(&["explain", "deploy"]).starts_with("deploy is held\n  by client "));
    assert_eq!(bench.ok(&["renew", "deploy"]), "1m 0s");
    assert_eq!(bench.ok(&["release", "deploy"]), "");
    assert_eq!(bench.kept(), 0);
    assert_eq!(bench.ok(&["explain", "deploy"]), "deploy is free");
    let next = bench.token(&["acquire", "deploy"]);
    assert!(next > token, "a later grant has a greater token");
    assert_eq!(bench.json(&["sessions"]).as_array().unwrap().len(), 1, "short commands leave no session");
}

#[test]
fn a_second_acquire_is_refused_with_75_and_says_who_holds() {
    let bench = Bench::start();
    let token = bench.ok(&["acquire", "a", "--label", "first"]);
    let sentence = bench.fails(75, &["acquire", "a"]);
    assert!(sentence.contains("client ") && sentence.contains("first"), "{sentence}");
    bench.fails(75, &["acquire", "a", "--nonblock"]);
    bench.fails(75, &["acquire", "a", "--wait", "200ms"]);
    bench.fails(9, &["acquire", "a", "-E", "9"]);
    assert_eq!(bench.json(&["explain", "a"])["holders"][0]["token"].to_string(), token, "nothing changed");
    assert_eq!(bench.waiting("a"), 0, "nobody is left in line");
}

#[test]
fn who_waits_for_whom_is_told_as_sentences_as_a_graph_and_as_figures() {
    let bench = Bench::start();
    assert_eq!(bench.ok(&["explain", "--graph"]), "nobody waits");
    assert_eq!(bench.json(&["explain", "--graph"]), serde_json::json!([]));
    bench.ok(&["acquire", "a", "--label", "nightly"]);
    let holder = bench.json(&["explain", "a"])["holders"][0].clone();
    let waiting = bench.command(&["acquire", "a", "--wait-forever"]).stdout(Stdio::piped()).spawn().unwrap();
    bench.until("it stands in line", || bench.waiting("a") == 1);
    let (client, token) = (&holder["client"], &holder["token"]);
    let waiter = bench.json(&["explain", "a"])["queue"][0]["client"].clone();
    let line = format!(
        "client {waiter} (tenure acquire) waits for \"a\", held by client {client} (tenure acquire), token {token}, label \"nightly\""
    );
    assert_eq!(bench.ok(&["explain", "--graph"]), line);
    assert_eq!(bench.ok(&["explain", "--graph", "--prefix", "b"]), "nobody waits");
    assert_eq!(bench.json(&["explain", "--graph"])[0]["for"][0]["token"], *token);
    let dot = bench.ok(&["explain", "--graph", "--dot"]);
    let arrow = format!("\"client {waiter} (tenure acquire)\" -> \"client {client} (tenure acquire)\"");
    assert!(dot.starts_with("digraph waits {") && dot.contains(&arrow), "{dot}");
    let explained = bench.ok(&["explain", "a"]);
    assert!(explained.contains(&format!(", without limit: held by token {token}")), "{explained}");
    bench.ok(&["release", "a"]);
    assert!(waiting.wait_with_output().unwrap().status.success());
    let top = bench.json(&["top"]);
    assert_eq!((&top[0]["key"], &top[0]["waits"], &top[0]["tenures"]), (&"a".into(), &1.into(), &1.into()));
    let row: Vec<String> =
        bench.ok(&["top"]).lines().nth(1).unwrap().split_whitespace().map(Into::into).collect();
    assert_eq!((row[0].as_str(), row[1].as_str(), row[3].as_str()), ("a", "0", "1"), "{row:?}");
    bench.fails(64, &["explain"]);
    bench.fails(64, &["explain", "a", "--graph"]);
    bench.fails(64, &["explain", "a", "--dot"]);
}

#[test]
fn several_locks_are_acquired_and_released_as_one() {
    let bench = Bench::start();
    let token = bench.token(&["acquire", "a", "-l", "b=shared", "-l", "pool=2/3"]);
    assert_eq!(bench.kept(), 3, "each is found by its name");
    for (lock, mode) in [("a", "exclusive"), ("b", "shared"), ("pool", "2 slots of 3")] {
        assert!(bench.ok(&["explain", lock]).contains(&format!(", {mode}, token {token},")), "{lock}");
    }
    bench.ok(&["append", "a", "x"]);
    bench.ok(&["renew", "b"]);
    bench.fails(76, &["release", "a", "c", "--token", &token.to_string()]);
    let shown = bench.json(&["release", "b"]);
    assert_eq!((&shown["names"], &shown["token"]), (&serde_json::json!(["a", "b", "pool"]), &token.into()));
    assert_eq!(bench.kept(), 0);
    bench.ok(&["acquire", "pool"]);
    let sentence = bench.fails(75, &["acquire", "other", "pool"]);
    assert!(sentence.contains("\"other\", \"pool\" were not acquired; \"pool\" is held by"), "{sentence}");
    assert_eq!(bench.ok(&["explain", "other"]), "other is free", "half of it is nothing");
}

#[test]
fn a_shared_lock_is_upgraded_when_nobody_else_shares_it_and_the_token_changes() {
    let bench = Bench::start();
    let stranger = tempfile::tempdir().unwrap();
    let of_stranger = |args: &[&str]| {
        let output = bench.command(args).env("TENURE_HOME", stranger.path().join("kept")).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", told(&output));
    };
    let first = bench.token(&["acquire", "a", "--shared"]);
    of_stranger(&["acquire", "a", "-s"]);
    let sentence = bench.fails(75, &["convert", "a", "-x"]);
    assert!(sentence.contains("held"), "{sentence}");
    of_stranger(&["release", "a"]);
    let shown = bench.json(&["convert", "a"]);
    let second = shown["token"].as_u64().unwrap();
    assert!(second > first, "{shown}");
    assert_eq!(shown["locks"], serde_json::json!([{"key": "a", "mode": "exclusive"}]));
    bench.ok(&["set", "a", "1"]);
    bench.fails(76, &["renew", "a", "--token", &first.to_string()]);
    assert_eq!(bench.token(&["convert", "a", "--mode", "1/4"]), second, "that is weaker, and keeps it");
    bench.fails(64, &["acquire", "b", "-l", "a=1/4", "-l", "b=1/4"]);
    let sentence = bench.fails(64, &["acquire", "a", "--slots", "5"]);
    assert!(sentence.contains('4'), "it says how many there are: {sentence}");
    bench.ok(&["release", "a"]);
}

#[test]
fn a_command_runs_under_its_locks_and_knows_their_names_and_the_token() {
    let bench = Bench::start();
    let script = "echo \"$TENURE_TOKEN\"; echo \"$TENURE_NAMES\"; \"$0\" set a 7 >/dev/null && \"$0\" explain b >&2; exit 3";
    let output = bench.run(&["run", "a", "-l", "b=shared", "--", "sh", "-c", script, TENURE]);
    assert_eq!(output.status.code(), Some(3), "{}", told(&output));
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let (token, names) = out.split_once('\n').unwrap();
    assert_eq!(names, "a\nb\n");
    assert!(err.contains("b is held") && err.contains(&format!("shared, token {token},")), "{err}");
    assert_eq!(bench.ok(&["get", "a"]), "7");
    assert_eq!(bench.ok(&["explain", "a"]), "a is free");
    assert_eq!(bench.kept(), 0);
    bench.ok(&["acquire", "a"]);
    bench.fails(75, &["run", "a", "b", "--", "true"]);
    bench.fails(127, &["run", "b", "--", "/no/such/program"]);
    assert_eq!(bench.ok(&["explain", "b"]), "b is free");
}

#[test]
fn a_command_whose_lock_is_lost_is_stopped() {
    let bench = Bench::start();
    let running = bench.command(&["run", "a", "--", "sleep", "600"]).stderr(Stdio::piped()).spawn().unwrap();
    bench.until("it holds the lock", || bench.json(&["explain", "a"])["locked"] == true);
    let client = bench.json(&["explain", "a"])["holders"][0]["client"].to_string();
    bench.ok(&["sessions", "kill", &client]);
    let output = running.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(76), "{}", told(&output));
    let ends = bench.command(&["run", "a", "--", "sleep", "600"]).spawn();
    let mut ends = ends.unwrap();
    bench.until("it holds the lock", || bench.json(&["explain", "a"])["locked"] == true);
    bench.until("its command runs", || {
        let pid = rustix::process::Pid::from_child(&ends);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        ends.try_wait().unwrap().is_some()
    });
    assert_eq!(ends.wait().unwrap().code(), Some(143));
    bench.until("it is free", || bench.json(&["explain", "a"])["locked"] == false);
}

#[test]
fn a_waiting_acquire_gets_the_lock_when_it_is_released_and_the_file_is_its_own() {
    let bench = Bench::start();
    let first = bench.token(&["acquire", "a"]);
    let waiting = bench.command(&["acquire", "a", "--wait-forever"]).stdout(Stdio::piped()).spawn().unwrap();
    bench.until("it stands in line", || bench.waiting("a") == 1);
    bench.ok(&["release", "a"]);
    let output = waiting.wait_with_output().unwrap();
    let second: u64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    assert!(second > first);
    assert_eq!(bench.kept(), 1);
    bench.fails(76, &["release", "a", "--token", &first.to_string()]);
    bench.ok(&["release", "a", "--token", &second.to_string()]);
}

#[test]
fn ctrl_c_in_line_leaves_the_line_at_once() {
    let bench = Bench::start();
    bench.ok(&["acquire", "a", "--ttl", "1h"]);
    let stranger = tempfile::tempdir().unwrap();
    for args in [
        &["-q", "acquire", "a", "--wait-forever", "--ttl", "1h"][..],
        &["-q", "append", "a", "x", "--wait", "forever"],
    ] {
        let mut waiting =
            bench.command(args).env("TENURE_HOME", stranger.path().join("kept")).spawn().unwrap();
        bench.until("it stands in line", || bench.waiting("a") == 1);
        let pid = rustix::process::Pid::from_child(&waiting);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        assert_eq!(waiting.wait().unwrap().code(), Some(130));
        bench.until("it has left", || bench.waiting("a") == 0);
    }
}

#[test]
fn a_file_that_somebody_else_changed_is_repaired_under_its_lock() {
    let bench = Bench::start();
    bench.ok(&["append", "f", "one"]);
    let path = bench.data.path().join("files/f");
    bench.until("it is on disk", || fs::read(&path).is_ok_and(|text| text == b"one\n"));
    fs::write(&path, "changed by hand\n").unwrap();
    bench.until("it is noticed", || {
        bench.run(&["append", "f", "two"]);
        bench.json(&["files", "info", "f"])["fault"].is_string()
    });
    let sentence = bench.fails(1, &["append", "f", "three"]);
    assert!(sentence.contains("repair"), "{sentence}");
    let length: u64 = bench.ok(&["files", "repair", "f"]).parse().unwrap();
    assert_eq!(bench.ok(&["append", "f", "four"]).parse::<u64>().unwrap(), length);
    assert!(bench.ok(&["cat", "f"]).starts_with("changed by hand\n"));
}

#[test]
fn a_lost_lock_is_said_with_76_and_forgotten() {
    let bench = Bench::start();
    bench.ok(&["acquire", "a", "--ttl", "100ms"]);
    bench.until("it expires", || bench.ok(&["explain", "a"]) == "a is free");
    let sentence = bench.fails(76, &["renew", "a"]);
    assert!(sentence.contains("lost"), "{sentence}");
    assert_eq!(bench.kept(), 0);
    bench.fails(76, &["release", "a"]);

    bench.ok(&["acquire", "b", "--ttl", "100ms"]);
    bench.until("it expires", || bench.ok(&["explain", "b"]) == "b is free");
    bench.fails(76, &["set", "b", "1"]);
    assert_eq!(bench.kept(), 0);
    bench.fails(1, &["get", "b"]);
}

#[test]
fn a_lease_of_the_grants_own_ends_it_unless_it_is_renewed() {
    let bench = Bench::start();
    bench.ok(&["acquire", "a", "--ttl", "1h", "--lease", "30s"]);
    let left = bench.json(&["renew", "a", "--lease", "10m"])["lease_left_ms"].as_u64().unwrap();
    assert!((590_000..=600_000).contains(&left), "{left}");
    bench.ok(&["renew", "a", "--lease", "100ms"]);
    bench.until("it expires", || bench.ok(&["explain", "a"]) == "a is free");
    bench.fails(76, &["renew", "a"]);
}

#[test]
fn nothing_is_forgotten_when_the_server_is_killed_between_acquire_and_release() {
    let mut bench = Bench::start();
    let token = bench.token(&["acquire", "a", "--ttl", "1h"]);
    bench.ok(&["append", "a", "before"]);
    bench.ok(&["set", "a", "1"]);
    bench.kill_and_restart();
    bench.fails(75, &["acquire", "a"]);
    bench.ok(&["renew", "a"]);
    bench.ok(&["append", "a", "after"]);
    assert_eq!(bench.ok(&["cat", "a"]), "before\nafter");
    assert_eq!(bench.ok(&["get", "a"]), "1");
    bench.ok(&["release", "a"]);
    assert!(bench.token(&["acquire", "a"]) > token);
}

#[test]
fn appends_take_the_lock_by_themselves_or_use_the_kept_one() {
    let bench = Bench::start();
    assert_eq!(bench.ok(&["append", "file_0", "one"]), "0");
    assert_eq!(bench.json(&["append", "file_0", "two"])["offset"], 4);
    assert_eq!(bench.ok(&["explain", "file_0"]), "file_0 is free", "the lock was given back");
    bench.fails(76, &["append", "file_0", "three", "--no-lock"]);
    let token = bench.ok(&["acquire", "file_0"]);
    bench.ok(&["append", "file_0", "three", "--no-lock", "--token", &token]);
    bench.ok(&["append", "file_0", "-n", "end"]);
    assert_eq!(bench.ok(&["cat", "file_0"]), "one\ntwo\nthree\nend");
    assert_eq!(bench.ok(&["cat", "file_0", "--offset", "4"]), "two\nthree\nend");
    assert_eq!(bench.json(&["explain", "file_0"])["holders"][0]["token"].to_string(), token, "still held");
    let other = tempfile::tempdir().unwrap();
    let stranger =
        bench.command(&["append", "file_0", "x", "--wait", "no"]).env("TENURE_HOME", other.path()).output();
    assert_eq!(stranger.unwrap().status.code(), Some(75));
    bench.fails(77, &["append", "file_1", "x", "--token", &token]);
    assert_eq!(bench.kept(), 1, "a token used on another file is not a lost lock");
}

#[test]
fn stdin_is_appended_as_the_bytes_that_it_is() {
    let bench = Bench::start();
    let data: Vec<u8> = (0..=255).collect();
    let mut child = bench
        .command(&["append", "bytes", "-n"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&data).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(bench.run(&["cat", "bytes"]).stdout, data);
}

#[test]
fn files_are_listed_rotated_and_deleted() {
    let bench = Bench::start();
    bench.ok(&["append", "logs/a", "one"]);
    bench.ok(&["append", "logs/b", "two"]);
    let names: Vec<Value> =
        bench.json(&["files"]).as_array().unwrap().iter().map(|file| file["file"].clone()).collect();
    assert_eq!(names, ["logs/a", "logs/b"]);
    assert!(bench.ok(&["files", "--prefix", "logs/b"]).starts_with("FILE "));
    assert_eq!(bench.json(&["files", "info", "logs/a"])["length"], 4);
    bench.ok(&["files", "rotate", "logs/a", "logs/a.1"]);
    assert_eq!(bench.ok(&["cat", "logs/a.1"]), "one");
    bench.fails(1, &["cat", "logs/a"]);
    bench.ok(&["files", "delete", "logs/a.1"]);
    bench.fails(1, &["files", "info", "logs/a.1"]);
    assert_eq!(bench.json(&["files", "list", "--limit", "1"]).as_array().unwrap().len(), 1);
    bench.fails(64, &["append", "../x", "no"]);
}

#[test]
fn a_reader_that_goes_away_ends_cat_quietly() {
    let bench = Bench::start();
    let line = "x".repeat(40_000);
    for _ in 0..5 {
        bench.ok(&["append", "long", &line]);
    }
    let mut child =
        bench.command(&["cat", "long"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert!(output.stderr.is_empty(), "{}", told(&output));
}

#[test]
fn values_are_json_and_come_back_as_they_were() {
    let bench = Bench::start();
    for value in ["\"text\"", "0", "false", "null", "[1, 2]", r#"{"name": "Alice",  "age": 30}"#, "-1.50"] {
        bench.ok(&["set", "key", value]);
        assert_eq!(bench.ok(&["get", "key"]), value);
    }
    for key in ["with space", "a:b", "a/b/c", "schlüssel"] {
        bench.ok(&["set", "--string", key, "it's \"text\"\n"]);
        assert_eq!(bench.json(&["get", key])["value"], "it's \"text\"\n");
        assert_eq!(bench.ok(&["get", "--raw", key]), "it's \"text\"\n");
    }
    let sentence = bench.fails(64, &["set", "key", "text"]);
    assert!(sentence.contains("--string"), "{sentence}");
}

#[test]
fn absent_is_not_null_and_not_unreachable() {
    let mut bench = Bench::start();
    bench.ok(&["set", "null", "null"]);
    assert_eq!(bench.ok(&["get", "null"]), "null");
    bench.fails(1, &["get", "absent"]);
    bench.fails(1, &["delete", "absent"]);
    bench.server.kill().unwrap();
    bench.server.wait().unwrap();
    bench.fails(69, &["get", "null", "--timeout", "300ms"]);
    bench.fails(69, &["ping", "--timeout", "300ms"]);
}

#[test]
fn a_key_has_a_ttl_or_goes_with_the_kept_session() {
    let bench = Bench::start();
    bench.ok(&["set", "short", "1", "--ttl", "200ms"]);
    bench.until("the key has gone", || bench.run(&["get", "short"]).status.code() == Some(1));
    bench.ok(&["set", "long", "1", "--ttl", "365d"]);
    assert!(bench.json(&["get", "long"])["ttl_left_ms"].as_u64().unwrap() > 364 * 86_400_000);
    bench.fails(64, &["set", "k", "1", "--ttl", "366d"]);
    let sentence = bench.fails(64, &["set", "leader", "1", "--bound"]);
    assert!(sentence.contains("tenure acquire"), "{sentence}");
    let token = bench.ok(&["acquire", "leader"]);
    bench.ok(&["set", "leader", "1", "--bound"]);
    bench.ok(&["set", "beside", "2", "--bound", "--token", &token]);
    let client = bench.json(&["get", "leader"])["bound_to"].clone();
    assert!(client.is_u64());
    assert_eq!(bench.json(&["get", "beside"])["bound_to"], client);
    bench.ok(&["release", "leader"]);
    bench.fails(1, &["get", "leader"]);
    bench.fails(1, &["get", "beside"]);
}

#[test]
fn a_transaction_is_given_as_flags_or_as_json() {
    let bench = Bench::start();
    let version = bench.ok(&["txn", "--compare", "a=0", "--set", "a=1", "--set", "b={\"n\": 2}"]);
    assert_eq!(bench.json(&["get", "b"])["version"].to_string(), version);
    let sentence = bench.fails(1, &["txn", "--compare", "a=0", "--set", "a=2", "--delete", "b"]);
    assert!(sentence.contains("\"a\" has version"), "{sentence}");
    let asked =
        format!(r#"{{"compare":[{{"key":"a","version":{version}}}],"apply":[{{"key":"b","delete":true}}]}}"#);
    let mut child =
        bench.command(&["txn", "-o", "json"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(asked.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["applied"], true);
    bench.fails(1, &["get", "b"]);
    bench.ok(&["txn", r#"{"apply":[{"key":"c","value":null,"ttl_ms":60000}]}"#]);
    assert!(bench.json(&["get", "c"])["ttl_left_ms"].is_u64());
    for (args, words) in [
        (&["txn", "{"][..], "txn --help"),
        (&["txn", r#"{"aply":[]}"#], "aply"),
        (&["txn", "--set", "a"], "KEY=VALUE"),
        (&["txn", "--set", "a=text"], "quote it"),
        (&["txn", "--compare", "a=x"], "KEY=VERSION"),
        (&["txn", "{}"], "at least one key"),
        (&["txn", "--set", "z=1", "--bound"], "tenure acquire"),
    ] {
        let sentence = bench.fails(64, args);
        assert!(sentence.contains(words), "{args:?}: {sentence}");
    }
    // Under a kept lock it acts with its token; under two it must be told which.
    let token = bench.ok(&["acquire", "a"]);
    bench.ok(&["txn", "--set", "a=5", "--set", "free=6"]);
    bench.ok(&["txn", "--set", "d=1", "--ttl", "1m", "--bound", "--token", &token]);
    bench.ok(&["acquire", "b"]);
    let sentence = bench.fails(64, &["txn", "--set", "a=7", "--set", "b=7"]);
    assert!(sentence.contains("--token"), "{sentence}");
    assert_eq!(bench.ok(&["get", "a"]), "5");
    bench.ok(&["release", "a"]);
    bench.fails(1, &["get", "d"]);
}

#[test]
fn versions_guard_a_key_and_a_held_lock_guards_it_more() {
    let bench = Bench::start();
    let version = bench.ok(&["set", "k", "1", "--if-version", "0"]);
    bench.fails(1, &["set", "k", "2", "--if-version", "0"]);
    let second = bench.ok(&["set", "k", "2", "--if-version", &version]);
    bench.fails(1, &["delete", "k", "--if-version", &version]);
    bench.ok(&["acquire", "k"]);
    let other = tempfile::tempdir().unwrap();
    for args in [&["set", "k", "9"][..], &["delete", "k"]] {
        let output = bench.command(args).env("TENURE_HOME", other.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(77), "{}", told(&output));
    }
    assert_eq!(bench.json(&["get", "k"])["version"].to_string(), second);
    bench.ok(&["set", "k", "3"]);
    assert_eq!(bench.ok(&["get", "k"]), "3");
    bench.ok(&["delete", "k"]);
    bench.fails(1, &["get", "k"]);
}

#[test]
fn ranges_and_prefixes_are_sorted_whole_and_limited() {
    let bench = Bench::start();
    for n in [3, 1, 2] {
        bench.ok(&["set", &format!("session:user{n}"), &n.to_string()]);
    }
    let keys = |args: &[&str]| bench.ok(&[args, &["--keys-only"]].concat());
    assert_eq!(
        keys(&["range", "session:user1", "session:user3"]),
        "session:user1\nsession:user2\nsession:user3"
    );
    assert_eq!(keys(&["range", "z", "a"]), "");
    assert_eq!(keys(&["prefix", "session:user", "--limit", "2"]), "session:user1\nsession:user2");
    bench.ok(&["delete", "session:user2"]);
    assert_eq!(keys(&["prefix", "session:"]), "session:user1\nsession:user3");
    let items = bench.json(&["prefix"]);
    assert_eq!(items[1]["value"], 3);
    assert_eq!(bench.json(&["prefix", "none"]), Value::Array(vec![]));
    assert!(bench.ok(&["prefix"]).starts_with("KEY "), "a table has a header");
}

#[test]
fn lists_go_on_over_all_pages() {
    let bench = Bench::start();
    let value = format!("\"{}\"", "v".repeat(400));
    for n in 0..12 {
        bench.ok(&["set", &format!("k{n:02}"), &value]);
    }
    assert_eq!(bench.json(&["prefix", "k"]).as_array().unwrap().len(), 12);
    for n in 0..8 {
        bench.ok(&["acquire", &format!("lock {n} {}", "x".repeat(150)), "--ttl", "1h"]);
    }
    assert_eq!(bench.json(&["locks"]).as_array().unwrap().len(), 8);
    assert_eq!(bench.json(&["locks", "--prefix", "lock 3"]).as_array().unwrap().len(), 1);
    assert_eq!(bench.json(&["sessions"]).as_array().unwrap().len(), 8);
}

#[test]
fn an_operator_ends_a_session() {
    let bench = Bench::start();
    let client = bench.json(&["acquire", "a", "--ttl", "1h"])["client"].to_string();
    bench.ok(&["sessions", "kill", &client]);
    bench.until("its lock is free", || bench.ok(&["explain", "a"]) == "a is free");
    bench.fails(1, &["sessions", "kill", "999999"]);
    bench.fails(76, &["renew", "a"]);
}

#[test]
fn status_ping_and_version_answer_in_both_formats() {
    let bench = Bench::start();
    let status = bench.json(&["status"]);
    assert!(status["term"].as_u64().unwrap() >= 1);
    assert!(status["limits"]["sessions"].is_u64() || status["limits"]["max_sessions"].is_u64(), "{status}");
    assert!(bench.ok(&["status"]).contains("durability sync"));
    assert_eq!(bench.json(&["ping"])["server"], "tenure");
    assert!(bench.ok(&["ping"]).contains("answered in"));
    assert_eq!(bench.json(&["version"])["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn secrets_stay_in_private_files() {
    let bench = Bench::start();
    bench.ok(&["acquire", "a"]);
    let file = fs::read_dir(bench.private())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "json"))
        .unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let kept: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let secret = kept["session"].as_str().unwrap();
    assert_eq!(secret.len(), 32);
    for args in [&["locks"][..], &["sessions"], &["explain", "a"], &["renew", "a", "-vv"], &["status"]] {
        let output = bench.run(&[args, &["-o", "json"]].concat());
        assert!(!told(&output).contains(secret), "{args:?} shows the session id");
    }
}

#[test]
fn a_server_logs_each_operation_at_debug_and_never_what_is_written() {
    for (level, detailed, requests) in
        [("info", false, false), ("info,tenure::event=debug", true, false), ("trace", true, true)]
    {
        let (data, home, log) = (
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
            tempfile::NamedTempFile::new().unwrap(),
        );
        let stderr = Stdio::from(log.reopen().unwrap());
        let (server, addr) = serve_with(data.path(), "127.0.0.1:0", &[], level, stderr);
        let bench = Bench { server, addr, data, home };
        let token = bench.ok(&["acquire", "file_0", "--ttl", "1h"]);
        bench.ok(&["append", "file_0", "the bytes"]);
        bench.ok(&["set", "file_0", "\"the value\""]);
        let stranger = tempfile::tempdir().unwrap();
        let refused =
            bench.command(&["set", "file_0", "1"]).env("TENURE_HOME", stranger.path()).output().unwrap();
        assert_eq!(refused.status.code(), Some(77));
        bench.ok(&["get", "file_0"]);
        let kept = fs::read_dir(bench.private()).unwrap().map(|entry| entry.unwrap().path());
        let kept: Vec<String> = kept.filter_map(|path| fs::read_to_string(path).ok()).collect();
        let secret = kept.iter().find_map(|text| {
            serde_json::from_str::<Value>(text).ok()?["session"].as_str().map(str::to_owned)
        });
        bench.ok(&["release", "file_0"]);
        let text = fs::read_to_string(log.path()).unwrap();
        for (expected, wanted) in [
            ("serving 127.0.0.1:".to_owned(), true),
            (format!("acquire_lock \"file_0\": granted token {token} of \"file_0\""), detailed),
            (format!("append_file \"file_0\", 10 bytes, token {token} of \"file_0\""), detailed),
            ("at offset 0, length 10".to_owned(), detailed),
            ("set \"file_0\", 1 bytes: refused, guarded".to_owned(), detailed),
            (format!("release_lock, token {token} of \"file_0\""), detailed),
            ("end_session client ".to_owned(), detailed),
            ("get \"file_0\"".to_owned(), requests),
        ] {
            assert_eq!(text.contains(&expected), wanted, "{level}: {expected}: {text}");
        }
        // When: each line begins with the time of day, to the second or better.
        assert!(text.lines().all(|line| line.starts_with("[20")), "{text}");
        for hidden in ["the bytes", "the value", &secret.unwrap()] {
            assert!(!text.contains(hidden), "{level}: {hidden} is logged: {text}");
        }
    }
}

#[test]
fn usage_errors_are_64_and_say_what_to_write() {
    let bench = Bench::start();
    for args in [
        &[][..],
        &["lock"],
        &["acquire"],
        &["acquire", "a", "--ttl", "1ms"],
        &["acquire", "a", "--wait", "1s", "--nonblock"],
        &["acquire", "a", "--wait-forever", "--nonblock"],
        &["acquire", "a", "a"],
        &["acquire", "a", "-s", "-x"],
        &["acquire", "a", "-s", "--mode", "shared"],
        &["acquire", "a", "--slots", "3", "--weight", "4"],
        &["acquire", "a", "-l", "b"],
        &["run", "a"],
        &["run", "--", "true"],
        &["get", "a", "-o", "xml"],
        &["get", ""],
        &["serve", "--bind", "localhost"],
    ] {
        bench.fails(64, args);
    }
    assert!(bench.fails(64, &["acquire", "a", "--wait", "10"]).contains("10s"));
    assert!(bench.fails(64, &["serve", "--bind", "0.0.0.0:0"]).contains("--insecure"));
    assert!(bench.ok(&["--help"]).contains("Exit codes"));
}

#[test]
fn a_flag_wins_over_its_variable() {
    let bench = Bench::start();
    bench.ok(&["set", "k", "1"]);
    let run = |args: &[&str], name: &str, value: &str| bench.command(args).env(name, value).output().unwrap();
    assert!(run(&["get", "k"], "TENURE_OUTPUT", "json").stdout.starts_with(b"{"));
    assert_eq!(run(&["get", "k", "-o", "table"], "TENURE_OUTPUT", "json").stdout, b"1\n");
    bench.ok(&["acquire", "a"]);
    assert_eq!(run(&["acquire", "a", "-n"], "TENURE_WAIT", "forever").status.code(), Some(75));
    assert_eq!(run(&["acquire", "a"], "TENURE_CONFLICT_EXIT_CODE", "3").status.code(), Some(3));
}

#[test]
fn the_shell_runs_a_command_a_line_and_goes_on_after_a_failure_and_a_restart() {
    let mut bench = Bench::start();
    let mut child = bench
        .command(&["shell"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut say = |line: &str| {
        writeln!(stdin, "{line}").unwrap();
        let mut answer = String::new();
        stdout.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    };
    let version = say("SET k '{\"a\": 1}'");
    assert_eq!(say("get k"), "{\"a\": 1}");
    bench.kill_and_restart();
    assert_eq!(
        say("get none\nGET k -o json"),
        format!("{{\"key\":\"k\",\"value\":{{\"a\": 1}},\"version\":{version}}}")
    );
    writeln!(stdin, "shell\nget none\nquit\nget k").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "the code of the last command: {}", told(&output));
}

#[test]
fn a_second_server_on_the_same_directory_or_port_says_so() {
    let bench = Bench::start();
    let run = |bind: &str, data: &Path| {
        let output = tenure().args(["serve", "--bind", bind, "--data-dir"]).arg(data).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", told(&output));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{}", told(&output));
    };
    run("127.0.0.1:0", bench.data.path());
    run(&bench.addr, tempfile::tempdir().unwrap().path());
    bench.ok(&["ping"]);
}

#[test]
fn a_stopped_directory_is_shown_checked_and_restored() {
    let mut bench = Bench::start();
    bench.ok(&["acquire", "a", "--ttl", "1h"]);
    let version: u64 = bench.ok(&["set", "k", "1"]).parse().unwrap();
    bench.ok(&["append", "f", "line"]);
    let data = bench.data.path().to_str().unwrap().to_owned();
    bench.fails(1, &["state", "show", &data]);
    bench.server.kill().unwrap();
    bench.server.wait().unwrap();
    assert!(bench.ok(&["state", "show", &data]).contains("\"k\""));
    assert!(bench.json(&["state", "show", &data])["keys"].is_array());
    let events = bench.ok(&["state", "events", &data]);
    for event in ["acquire_lock \"a\": granted token 1 of \"a\"", "set \"k\"", "append_file \"f\", 5 bytes"] {
        assert!(events.contains(event), "{event}: {events}");
    }
    assert!(!events.contains("line\n"), "data is told: {events}");
    assert_eq!(bench.ok(&["state", "events", &data, "--last", "2"]).lines().count(), 2);
    assert!(bench.json(&["state", "events", &data])[0]["event"].as_str().unwrap().contains("new_term 1"));
    bench.ok(&["state", "check", &data]);
    let fresh = tempfile::tempdir().unwrap();
    let to = fresh.path().join("restored");
    bench.ok(&["state", "restore", &data, to.to_str().unwrap()]);
    (bench.server, bench.addr) = serve(&to, "127.0.0.1:0");
    assert_eq!(bench.ok(&["cat", "f"]), "line");
    assert_eq!(bench.ok(&["explain", "a"]), "a is free", "sessions were ended");
    assert!(bench.ok(&["set", "k", "2"]).parse::<u64>().unwrap() > version + (1 << 32));
    bench.fails(1, &["state", "check", fresh.path().to_str().unwrap()]);
}

#[test]
fn a_watch_prints_what_happens_line_by_line_and_ends_cleanly() {
    let mut bench = Bench::start();
    let version = bench.ok(&["set", "k/a", "1"]);
    let shown = bench.ok(&["watch", "k/", "--after", "0", "--count", "1", "-o", "json"]);
    let event: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(event["event"], "key_set");
    assert_eq!(event["version"].to_string(), version);
    let spawn = |args: &[&str]| {
        bench
            .command(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    // Each line comes when it happens, also after a kill of the server.
    let mut child = spawn(&["watch", "k/", "--after", &version, "-v"]);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let second = bench.ok(&["set", "k/b", "2"]);
    assert_eq!(next(), [&second, "key_set", "k/b", &format!("version={second}")]);
    bench.kill_and_restart();
    let third = bench.ok(&["delete", "k/b"]);
    let line = next();
    assert_eq!((line[1].as_str(), line[3].as_str()), ("key_deleted", format!("version={third}").as_str()));
    // Ctrl-C ends it, with the place at which another goes on.
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", told(&output));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let place = stderr.split("--place ").nth(1).unwrap().trim().to_owned();
    bench.ok(&["set", "k/c", "3"]);
    let shown = bench.ok(&["watch", "k/", "--place", &place, "--count", "1"]);
    assert!(shown.contains("k/c"), "{shown}");
    bench.fails(1, &["watch", "k/", "--after", "999999"]);
    bench.fails(64, &["watch", "k/", "--after", "1", "--place", &place]);
}

#[test]
fn a_lock_goes_from_hand_to_hand_and_an_operator_takes_it_away() {
    let bench = Bench::start();
    let other = tempfile::tempdir().unwrap();
    let home = other.path().join("kept");
    let first = bench.token(&["acquire", "a"]);
    // Somebody else waits for the offer, in another home: it does not know the session that holds the lock.
    let mut taking = bench.command(&["take-over", "a", "--wait", "30s"]);
    let mut taking =
        taking.env("TENURE_HOME", &home).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(taking.stderr.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let number = line.strip_prefix("client ").and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
    bench.ok(&["hand-over", "a", "--to", &number]);
    let taken = taking.wait_with_output().unwrap();
    assert!(taken.status.success(), "{}", told(&taken));
    let second: u64 = String::from_utf8(taken.stdout).unwrap().trim().parse().unwrap();
    assert!(second > first);
    assert!(bench.fails(76, &["release", "a"]).contains("lost"));
    // The same user takes over what one of its commands left held, without an offer.
    let taken = bench.command(&["take-over", "a"]).env("TENURE_HOME", &home).output().unwrap();
    assert!(taken.status.success(), "{}", told(&taken));
    bench.ok(&["ask-release", "a", "--reason", "deploy", "--deadline", "1h"]);
    let explained = bench.ok(&["explain", "a"]);
    assert!(explained.contains("asked to let go") && explained.contains("deploy"), "{explained}");
    let broken = bench.json(&["break", "a", "--reason", "deploy"]);
    assert_eq!(broken["broken"], true);
    assert!(bench.fails(1, &["break", "a", "--reason", "again"]).contains("held by nobody"));
    assert!(bench.fails(1, &["break", "--token", "1", "--reason", "again"]).contains("no live grant"));
    bench.fails(75, &["take-over", "a", "--wait", "no"]);
    bench.ok(&["acquire", "a", "--max-hold", "1h", "--lock-delay", "1s"]);
    assert!(bench.ok(&["explain", "a"]).contains("more at most"));
    bench.ok(&["release", "a"]);
}

#[test]
fn what_a_command_wrote_under_an_atomic_lock_takes_effect_only_if_it_ends_well() {
    let bench = Bench::start();
    let atomic = |script: &str| bench.run(&["run", "--atomic", "a", "log", "--", "sh", "-c", script, TENURE]);
    let writes = "\"$0\" set a 1 >/dev/null && echo line | \"$0\" append log >/dev/null && \"$0\" get a";
    let output = atomic(&format!("{writes}; exit 3"));
    assert_eq!(output.status.code(), Some(3), "{}", told(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n", "it reads what it wrote itself");
    bench.fails(1, &["get", "a"]);
    let output = atomic(writes);
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert_eq!(bench.ok(&["get", "a"]), "1");
    assert_eq!(bench.ok(&["cat", "log"]), "line");
    // Command by command.
    bench.ok(&["acquire", "--atomic", "a"]);
    bench.ok(&["set", "a", "2"]);
    bench.ok(&["release", "--abandon", "a"]);
    assert_eq!(bench.ok(&["get", "a"]), "1");
    bench.ok(&["acquire", "--atomic", "a"]);
    bench.ok(&["set", "a", "3"]);
    bench.ok(&["release", "a"]);
    assert_eq!(bench.ok(&["get", "a"]), "3");
    assert_eq!(bench.kept(), 0);
}

/// Hardly more replies are kept for a client than it has requests on their way. What is refused for now must come with a later
/// `ack`, or would be refused for ever.
#[test]
fn a_load_that_is_told_of_a_full_window_says_what_has_arrived() {
    let bench = Bench::start_with(&["--max-replies", "10"]);
    let args =
        ["bench", "--workload", "put", "--clients", "1", "--in-flight", "8", "--seconds", "2", "--json"];
    let output = bench.run(&args);
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", told(&output)));
    let errors = report["errors"].as_object().unwrap();
    assert!(errors.contains_key("limit"), "nothing was refused: {report}");
    assert_eq!(errors.len(), 1, "{report}");
    assert!(report["operations"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(bench.json(&["status"])["counts"]["keys"], 0);
}

/// A load of a fraction of a second; its report.
fn load(bench: &Bench, workload: &str, more: &[&str]) -> Value {
    let args = ["bench", "--workload", workload, "--clients", "3", "--seconds", "0.4", "--warm-up", "20ms"];
    bench.json(&[&args, more].concat())
}

#[test]
fn every_workload_of_the_load_does_its_work_and_leaves_nothing_behind() {
    let bench = Bench::start();
    let pid = bench.server.id().to_string();
    for (workload, more) in [
        ("cycle", &["--names", "5"][..]),
        ("cycle", &["--in-flight", "8", "--batch", "8", "--sockets", "one"]),
        ("hand-off", &[]),
        ("several", &["--names", "4", "--in-flight", "2"]),
        ("put", &["--names", "2", "--value-bytes", "1KiB"]),
        ("get", &["--names", "2"]),
        ("append", &[]),
        ("mixed", &["--names", "2"]),
        ("heartbeat", &["--names", "20", "--every", "10ms", "--in-flight", "4", "--batch", "4"]),
        ("ping", &["--spin"]),
    ] {
        let told = load(&bench, workload, &[more, &["--server-pid", &pid]].concat());
        let number =
            |name: &str| told[name].as_f64().unwrap_or_else(|| panic!("{workload} has no {name}: {told}"));
        assert_eq!(
            (&told["workload"], &told["errors"]),
            (&workload.into(), &serde_json::json!({})),
            "{told}"
        );
        assert!(number("operations") > 0.0 && number("rate") > 0.0 && number("seconds") >= 0.4, "{told}");
        let times = &told["latency_us"];
        let [p50, p99, p999, max] = ["p50", "p99", "p999", "max"].map(|name| times[name].as_f64().unwrap());
        assert!(0.0 < p50 && p50 <= p99 && p99 <= p999 && p999 <= max, "{told}");
        assert!(told["process"]["rss_ready"].as_u64().unwrap() > 1 << 20, "{told}");
        match workload {
            "hand-off" => {
                assert!(told["hand_off_us"]["p50"].is_number() && number("stood_in_line") > 0.0, "{told}")
            }
            "several" => assert!(number("stood_in_line") > 0.0, "{told}"),
            "heartbeat" => assert_eq!(told["acquired"]["locks"], 60, "{told}"),
            "cycle" | "mixed" => {
                assert!(number("round_trips") >= 2.0 * number("operations") - 64.0, "{told}")
            }
            _ => {}
        }
    }
    let counts = &bench.json(&["status"])["counts"];
    for what in ["grants", "locks", "keys", "files", "waits"] {
        assert_eq!(counts[what], 0, "{what} are left: {counts}");
    }
    // What is left on purpose stays as long as the sessions live.
    load(&bench, "heartbeat", &["--names", "2", "--every", "10ms", "--leave", "--ttl", "1h"]);
    assert_eq!(bench.json(&["status"])["counts"]["grants"], 6);
    let plain = bench.ok(&["bench", "--clients", "1", "--seconds", "0.4"]);
    assert!(plain.starts_with("cycle: ") && plain.contains("p99.9") && plain.contains("0 errors"), "{plain}");
}

#[test]
fn a_load_with_a_rate_begins_by_the_clock_and_tells_what_never_began() {
    let bench = Bench::start();
    let told = load(&bench, "cycle", &["--rate", "50"]);
    let number = |name: &str| told[name].as_f64().unwrap_or_else(|| panic!("no {name}: {told}"));
    assert_eq!((&told["due_rate"], &told["errors"]), (&50.0.into(), &serde_json::json!({})), "{told}");
    let due = 50.0 * number("seconds");
    assert!((1.0..=due + 3.0).contains(&number("operations")), "it is no closed loop: {told}");
    // While the server stands still the only client is busy with one operation.
    let mut command =
        bench.command(&["bench", "--clients", "1", "--rate", "200", "--seconds", "2", "--json"]);
    let running = command.stdout(Stdio::piped()).spawn().unwrap();
    bench.until("the load works", || bench.json(&["status"])["counts"]["commands"].as_u64() > Some(400));
    let signal = |signal| {
        rustix::process::kill_process(rustix::process::Pid::from_child(&bench.server), signal).unwrap();
    };
    signal(rustix::process::Signal::STOP);
    std::thread::sleep(Duration::from_millis(400));
    signal(rustix::process::Signal::CONT);
    let output = running.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["not_begun"].as_u64().unwrap() >= 20, "{report}");
    assert!(report["latency_us"]["max"].as_f64().unwrap() > 100_000.0, "{report}");
}

#[test]
fn a_load_that_makes_no_sense_or_finds_no_server_says_so() {
    let bench = Bench::start();
    for (args, told) in [
        (&["--workload", "sleep"][..], "hand-off"),
        (&["--clients", "0"], "from 1 to 10000"),
        (&["--in-flight", "300"], "from 1 to 256"),
        (&["--batch", "65"], "from 1 to 64"),
        (&["--seconds", "0"], "seconds as a number"),
        (&["--seconds", "1s"], "seconds as a number"),
        (&["--warm-up", "1"], "needs a unit"),
        (&["--value-bytes", "1GiB"], "a size from 1"),
        (&["--workload", "append", "--names", "2"], "one file"),
        (&["--rate", "0"], "from 0.1 to"),
        (&["--workload", "hand-off", "--rate", "9"], "rhythm"),
        (&["--workload", "heartbeat", "--every", "10s"], "80 %"),
        (&["--server-pid", "4000000000"], "cannot be read"),
    ] {
        let sentence = bench.fails(64, &[&["bench"], args].concat());
        assert!(sentence.contains(told), "{args:?}: {sentence}");
    }
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = nobody.local_addr().unwrap().to_string();
    let sentence = bench.fails(69, &["bench", "--addr", &addr, "--timeout", "300ms"]);
    assert!(sentence.contains("no answer"), "{sentence}");
}

#[test]
fn a_load_that_meets_errors_counts_them_by_kind_and_fails() {
    let bench = Bench::start();
    let mut command =
        bench.command(&["bench", "--workload", "append", "--clients", "2", "--seconds", "1", "--json"]);
    let load = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let name = || {
        let locks = bench.json(&["locks"]);
        locks.as_array()?.first().map(|lock| lock["key"].as_str().unwrap().to_owned())
    };
    bench.until("the load holds a lock", || name().is_some());
    bench.ok(&["break", &name().unwrap(), "--reason", "a test"]);
    let output = load.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["errors"]["not_holder"].as_u64().unwrap() > 0, "{report}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("not_holder"), "{}", told(&output));
}
