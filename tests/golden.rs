//! Golden scripts of the core: each file in `tests/scripts` is a behaviour, named as a sentence, with its story above it.
//!
//! A script drives one real [`Node`](tenure::node::Node) with real datagrams, over a log and files in memory and a clock
//! that moves only by `advance`. What clients receive is printed; session ids and cookies appear as the names of the
//! clients they belong to. `UPDATE_GOLDENFILES=1 cargo test --test golden` writes the output anew: read every changed
//! line against what the server promises before keeping it.
//!
//! ```text
//! NAME open [ttl=10s] [name=…]           a client opens a session; every word with a capital first letter is a client
//! NAME acquire jobs [wait=5s|forever]    requests, in the short forms of `request.rs`; ids count up from 1 by themselves
//! NAME acquire a b@shared c@2/3 atomic   several locks, each with its mode: two of the three slots of c
//! NAME convert 7 a@shared [wait=5s]      and: hand_over 7 B, take_over 7, break 7 why, ask_release 7 why deadline=5s
//! NAME transaction a@3 set@b=1 delete@c  if a has version 3; also set@b@5s=1 (with a TTL) and set@b@bound=1
//! NAME watch jobs/ after=3 wait=5s       and: waits, contention limit=3
//! NAME batch "set a 1" "get a"           several requests in one datagram
//! NAME resend [ID]                       the same bytes again: the last datagram, or the one of that id
//! NAME lose [ID]                         the same request, but its reply is lost on the way
//! NAME from "192.0.2.1:7"                the client's address changes
//! NAME send '{…$NAME…}'                  any text as a datagram; $NAME is the session id of that client
//! NAME bytes "…"                         any bytes as a datagram
//! advance 5s                             time passes, stopping at each moment at which the node asks to be woken
//! late 5s                                time passes, and the alarm clock does not ring
//! log hold | commit | flow               batches wait for the disk; the oldest becomes durable; all do, at once, from here
//! crash | restart | snapshot             kill -9 and start again; stop and start again; what a start reads first
//! server [LIMIT=N …]                     a fresh server with these limits
//! room ok | low | full                   what the disk under the log can still take
//! files ok | full                        whether writes to files wait for room on their disk
//! drain                                  the server is asked to stop
//! disk [fail|heal|edit FILE …]           what stands in the files; or what happens to one behind the server's back
//! state                                  how much of everything there is
//! ```

#[path = "golden/disk.rs"]
mod disk;
#[path = "golden/memory_log.rs"]
mod memory_log;
#[path = "golden/request.rs"]
mod request;
#[path = "golden/show.rs"]
mod show;
#[path = "golden/world.rs"]
mod world;

use std::path::Path;
use world::World;

/// Runs every script, and tells the names of all that failed.
#[test]
fn scripts() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let only = std::env::var("TENURE_SCRIPT").unwrap_or_default();
    let mut paths: Vec<_> = directory
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no scripts in {}", directory.display());
    let mut failed = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.contains(&only) {
            continue;
        }
        // A script that does not match its output panics when the golden file is compared; the others still run.
        let run = std::panic::AssertUnwindSafe(|| goldenscript::run(&mut World::new(), &path));
        match std::panic::catch_unwind(run) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failed.push(format!("{name}: {error}")),
            Err(_) => failed.push(format!("{name}: see above")),
        }
    }
    assert!(failed.is_empty(), "these scripts failed:\n{}", failed.join("\n"));
}
