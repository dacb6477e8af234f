//! What `src/lib.rs` promises of its pure rooms, looked for in their text: no clock, socket, file, thread or random
//! number; and in the state nothing whose order could differ from run to run.
//!
//! Wall clocks are forbidden everywhere, by `clippy.toml` and here.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use tenure::bug::BUGS;

/// What no pure room may name, and what the room would do with it.
const IMPURE: [(&str, &str); 13] = [
    ("Instant", "read a clock"),
    ("SystemTime", "read a wall clock"),
    ("clock_gettime", "read a clock"),
    ("crate::clock", "read the server's clock"),
    ("std::fs", "touch a disk"),
    ("std::os", "talk to the system"),
    ("rustix", "talk to the system"),
    ("mio::", "wait for the system"),
    ("UdpSocket", "use the network"),
    ("TcpStream", "use the network"),
    ("getrandom", "draw a random number"),
    ("thread::", "start or stop a thread"),
    ("std::env", "depend on where it runs"),
];

/// What the rooms that must come out the same, byte for byte, may not name either.
const UNORDERED: [(&str, &str); 3] = [
    ("HashMap", "iterate in an order that differs from run to run"),
    ("HashSet", "iterate in an order that differs from run to run"),
    ("f64", "compute with numbers that are rounded"),
];

const SAME_EVERYWHERE: [&str; 7] = ["state", "command", "outcome", "encoding", "record", "batch", "snapshot"];

/// Pure rooms that the tour only mentions: they are nobody else's.
const INNER: [&str; 3] = ["backlog", "encoding", "rising"];

/// The rooms that the tour lists as pure, and the words that all rooms share.
fn pure_rooms(tour: &str) -> Vec<String> {
    let part = |from: &str, to: &str| {
        let (_, rest) = tour.split_once(from).unwrap_or_else(|| panic!("the tour has no {from}"));
        rest.split_once(to).unwrap_or_else(|| panic!("the tour has no {to} behind {from}")).0.to_owned()
    };
    let listed = part("**Pure rooms**", "**I/O rooms**") + &part("**Words**", "[`failpoint`]");
    let names = listed.split("[`").skip(1).filter_map(|rest| rest.split_once('`'));
    names.map(|(name, _)| name.to_owned()).collect()
}

/// The files of a room, without its tests.
fn files(src: &Path, room: &str) -> Vec<PathBuf> {
    let path = src.join(room.replace("::", "/"));
    let mut files: Vec<PathBuf> = Vec::from([path.with_extension("rs")]);
    if let Ok(entries) = fs::read_dir(&path) {
        files.extend(entries.map(|entry| entry.unwrap().path()));
    }
    files.retain(|file| {
        file.extension().is_some_and(|extension| extension == "rs")
            && file.exists()
            && !file.ends_with("tests.rs")
    });
    files
}

/// The lines of a file that are neither comments nor tests, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let until_tests = text.lines().zip(1..).take_while(|(line, _)| !line.starts_with("#[cfg(test)]"));
    until_tests.filter(|(line, _)| !line.trim_start().starts_with("//")).map(|(line, number)| (number, line))
}

#[test]
fn pure_rooms_have_no_clock_socket_file_thread_or_random_number() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut rooms = pure_rooms(&fs::read_to_string(src.join("lib.rs")).unwrap());
    assert!(rooms.len() > 15 && rooms.iter().any(|room| room == "state"), "the tour lists {rooms:?}");
    rooms.extend(INNER.map(str::to_owned));
    let mut found = Vec::new();
    for room in &rooms {
        let files = files(&src, room);
        assert!(!files.is_empty(), "the tour lists {room}, and there is no such module");
        let strict = SAME_EVERYWHERE.contains(&room.as_str());
        let forbidden = || IMPURE.iter().chain(UNORDERED.iter().filter(|_| strict));
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for (number, line) in code(&text) {
                for (word, what) in forbidden().filter(|(word, _)| line.contains(word)) {
                    found.push(format!("{}:{number} could {what} ({word})", file.display()));
                }
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// All Rust files below a directory.
fn below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn nothing_names_a_wall_clock() {
    let mut sources = Vec::new();
    below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut sources);
    let mut found = Vec::new();
    for file in &sources {
        let text = fs::read_to_string(file).unwrap();
        for (number, line) in code(&text) {
            // `clippy.toml` knows the standard library's; the system's other ways to one are numbers of clocks.
            if ["SystemTime", "UNIX_EPOCH", "ClockId::Realtime", "ClockId::Tai"]
                .iter()
                .any(|word| line.contains(word))
            {
                found.push(format!("{}:{number}: {line}", file.display()));
            }
        }
    }
    assert!(sources.len() > 40 && found.is_empty(), "{found:#?}");
}

/// What stands between quotes behind `planted(` in the code.
fn planted(text: &str) -> impl Iterator<Item = &str> {
    text.split("bug::planted(\"").skip(1).filter_map(|rest| rest.split_once('"')).map(|(name, _)| name)
}

#[test]
fn each_deliberate_bug_is_planted_listed_and_written_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut sources, mut found) = (Vec::new(), BTreeSet::new());
    below(&root.join("src"), &mut sources);
    for file in &sources {
        let text = fs::read_to_string(file).unwrap();
        found.extend(planted(&text).map(str::to_owned));
    }
    let listed: BTreeSet<String> = BUGS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(listed.len(), BUGS.len(), "a bug is listed twice");
    assert_eq!(found, listed, "what the code plants, and what `src/bug.rs` lists");
    let page = fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let missing: Vec<_> = listed.iter().filter(|name| !page.contains(&format!("| `{name}` |"))).collect();
    assert!(missing.is_empty(), "docs/reliability.md says nothing of {missing:?}");
}

#[test]
fn comments_and_tests_are_no_code() {
    let text = "//! Instant\nlet now = Instant::now();\n    // std::fs\n#[cfg(test)]\nuse std::fs;\n";
    assert_eq!(code(text).collect::<Vec<_>>(), [(2, "let now = Instant::now();")]);
}
