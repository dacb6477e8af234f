//! Tests that need namespaces of their own: mounts, processes and networks that vanish with the test, however it ends.
//!
//! The test program is run again in them, with one of its ignored tests, by `unshare`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Why a test cannot run here.
#[derive(Debug)]
pub(crate) enum Lack {
    /// Something that can be installed. In CI that is a failure.
    Tool(String),
    /// The machine does not allow it.
    Forbidden(String),
}

/// Says what cannot run and why, also where the output of tests that pass is not shown.
///
/// # Panics
/// In CI, if it could be made to run.
pub(crate) fn skip(what: &str, lack: &Lack) {
    let ci = std::env::var("CI").as_deref() == Ok("true");
    let why = match lack {
        Lack::Tool(tool) => {
            assert!(!ci, "{what}: CI must have {tool}");
            format!("{tool} is not installed")
        }
        Lack::Forbidden(why) => format!("this machine does not allow it: {why}"),
    };
    say(&format!("SKIP: {what}: {why}"));
}

/// Prints past the capture of the test runner.
fn say(line: &str) {
    // Nobody may be listening.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Whether a program is there.
///
/// # Errors
/// That it is not.
pub(crate) fn has(tool: &str) -> Result<(), Lack> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut places = path.split(':').chain(["/usr/sbin", "/sbin"]);
    match places.any(|place| Path::new(place).join(tool).is_file()) {
        true => Ok(()),
        false => Err(Lack::Tool(tool.into())),
    }
}

/// Whether namespaces of these kinds (flags of `unshare`) can be had.
///
/// # Errors
/// Why not.
pub(crate) fn can_unshare(kinds: &[&str]) -> Result<(), Lack> {
    has("unshare")?;
    let tried = unshare(kinds).arg("true").output().map_err(|error| Lack::Forbidden(error.to_string()))?;
    match tried.status.success() {
        true => Ok(()),
        false => Err(Lack::Forbidden(String::from_utf8_lossy(&tried.stderr).trim().to_owned())),
    }
}

/// Runs what is appended in new namespaces: its mounts are nobody else's, and its processes end with the first of them.
///
/// A process of a session of its own keeps the mounts until all others are gone. Without it the last to go might be the
/// one that serves a mounted disk; killed, it would wait for the disk to be written, for ever.
fn unshare(kinds: &[&str]) -> Command {
    const SCRIPT: &str = r#"
        kinds=$1; shift
        setsid sh -c "while kill -0 $$; do sleep 1; done; sleep 3" </dev/null >/dev/null 2>&1 &
        exec unshare --pid --fork --kill-child $kinds sh -c 'mount -t proc proc /proc && exec "$@"' sh "$@"
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT, "sh", &kinds.join(" ")]);
    command
}

/// Runs an ignored test of this program in new namespaces and passes on what it says.
///
/// # Panics
/// If it fails.
pub(crate) fn run_inside(test: &str, kinds: &[&str]) {
    let mut child = unshare(kinds)
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        match line.starts_with("SKIP") {
            true => say(&line),
            false => println!("{line}"),
        }
    }
    let status = child.wait().unwrap();
    assert!(status.success(), "{test} failed: {status}");
}
