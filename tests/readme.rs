//! The README's sessions, run as they stand there: each command prints what the page says, spans of time aside.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "protocol/server.rs"]
#[expect(
    dead_code,
    reason = "shared with the test of the protocol, which talks to the server without the library"
)]
mod server;

use server::{Server, receive_soon};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};

/// A command of the page, and what it prints there.
struct Step {
    command: String,
    printed: String,
}

/// What the page tells, in its order.
enum Part {
    Session(Vec<Step>),
    Prose(String),
}

/// The page, cut at its blocks of commands; other code is passed over.
fn parts(page: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    for (number, text) in page.split("```").enumerate() {
        match text.strip_prefix("console\n") {
            Some(session) if number % 2 == 1 => parts.push(Part::Session(steps(session))),
            Some(_) | None if number % 2 == 1 => {}
            Some(_) | None => parts.push(Part::Prose(text.into())),
        }
    }
    parts
}

/// Commands follow a `$`; what stands before the first is for a reader to type.
fn steps(session: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in session.lines() {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push(Step { command: command.into(), printed: String::new() }),
            (None, Some(step)) => step.printed += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    steps
}

/// The text with one word for every span of time.
fn timeless(text: &str) -> String {
    let is_span = |word: &str| {
        let word = word.trim_end_matches([',', ';']);
        let number = word.trim_end_matches(['m', 's']);
        number.len() < word.len() && number.parse::<f64>().is_ok()
    };
    let word = |word| if is_span(word) { "SPAN" } else { word };
    text.trim_end().split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// Runs a command in a shell. Gives what it printed and its exit code.
fn shell(command: &str, before: i32, server: &Server, home: &Path) -> (String, i32) {
    let programs = Path::new(env!("CARGO_BIN_EXE_tenure")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!("exec 2>&1; (exit {before}); {command}"))
        .env_clear()
        .env("PATH", path)
        .env("HOME", home)
        .env("TENURE_ADDR", server.address.to_string())
        .current_dir(home)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
}

#[test]
fn the_sessions_of_the_readme_go_as_they_stand_there() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let home = tempfile::tempdir().unwrap();
    let mut server = Server::start(IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
    let (mut code, mut run) = (0, 0);
    for part in parts(&page) {
        let steps = match part {
            Part::Session(steps) => steps,
            Part::Prose(prose) => {
                if prose.contains("kill the server with `kill -9`, start it again") {
                    server.restart().unwrap();
                }
                continue;
            }
        };
        for Step { command, printed } in steps {
            let told = if command == "tenure serve" {
                // One runs already, on a port of its own: on that of the page there may be somebody else's.
                "listening on 127.0.0.1:5625".into()
            } else if let Some((datagram, _)) = command.split_once(" | nc -u") {
                let (datagram, _) = shell(datagram, code, &server, home.path());
                let socket = server.client();
                socket.send(datagram.as_bytes()).unwrap();
                String::from_utf8(receive_soon(&socket).unwrap()).unwrap()
            } else {
                let told;
                (told, code) = shell(&command, code, &server, home.path());
                told
            };
            assert_eq!(timeless(&told), timeless(&printed), "{command}");
            run += 1;
        }
    }
    assert!(run > 20, "only {run} commands were found");
}
