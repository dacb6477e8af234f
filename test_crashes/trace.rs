//! What the server asks of the kernel, and in which order: a run under load is traced by `strace`, and the trace is read.
//!
//! - No reply leaves before the sync that covers the journal's record of its request has returned; nor does any value, told
//!   to anybody; nor do bytes reach a file before that.
//! - Each name that is made, changed or taken away is synced with its directory before the next step that counts on it:
//!   the next change of a name by the same thread, a record in a segment of that name, the deletion of segments.
//! - A file gets its name after its content is synced.
//! - The loop gives no memory back to the system: that takes long, and is done by the thread of the snapshot.
//!
//! A file under a `.tmp` name is nobody's yet: its rename is what has to be synced.

use crate::harness::{Lack, Raw, Server, Setup, has, poll_until, skip};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

const CALLS: &str = "open,creat,openat,openat2,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,mkdir,\
                     mkdirat,write,writev,pwrite64,pwritev,pwritev2,fallocate,ftruncate,fdatasync,fsync,sync_file_range,\
                     sendto,sendmsg,sendmmsg,recvfrom,recvmsg,recvmmsg";

/// Clients that work at once.
const CLIENTS: usize = 4;
/// What each does over and over: enough for some segments of 256 KiB.
const ROUNDS: usize = 120;

#[test]
fn no_reply_and_no_name_is_ahead_of_the_sync_that_covers_it() {
    let Some((text, server)) = traced("the order of syncs and replies in a trace", CALLS, load) else {
        return;
    };
    let directory = fs::canonicalize(server.directory()).unwrap();
    let mut reader = Reader { directory: directory.to_str().unwrap().to_owned(), ..Reader::default() };
    reader.read(&text);
    let Reader { seen, .. } = &reader;
    println!("{seen:?}");
    assert!(seen.replies >= CLIENTS * ROUNDS * 4, "not every reply was looked at");
    assert!(seen.values >= CLIENTS * ROUNDS, "hardly a value was looked at");
    assert!(seen.renames >= 10 && seen.unlinks >= 2 && seen.creates >= CLIENTS, "hardly a name changed");
    // Where the journal is written directly (`disk::honours_direct_syncs`): EXT4_SUPER_MAGIC and XFS_SUPER_MAGIC of statfs(2).
    let kind = rustix::fs::statfs(&directory).unwrap().f_type as u64;
    let direct = [0xef53, 0x5846_5342].contains(&kind);
    assert_eq!(seen.durable_writes > 0, direct, "file system {kind:x}");
    assert!(seen.segments >= 3 && seen.segments_deleted >= 1, "the journal did not go on in new segments");
}

/// To give a large piece of memory back takes the kernel milliseconds, in which the loop would answer nobody. What was freed
/// before the allocator was told to keep it was idle a second later, and the loop met it, with all that had been freed since.
#[test]
fn the_loop_gives_no_memory_back_while_it_works() {
    const LARGE: usize = 10_000;
    let writes = |server: &Server| {
        let (began, mut raw) = (Instant::now(), server.client(60_000));
        let mut writes = 0;
        while writes < 1_000 || began.elapsed() < Duration::from_secs(2) {
            raw.set(&format!("key-{}", writes % 50), json!("x".repeat(LARGE + writes % 1_000)));
            writes += 1;
        }
    };
    let Some((text, _)) = traced("who gives memory back", "execve,madvise,recvmmsg", writes) else { return };
    let main = format!("{} ", text.split(' ').next().unwrap());
    let calls: Vec<&str> = text.lines().filter(|line| line.starts_with(&main)).collect();
    let receives = |line: &&str| line.contains("recvmmsg");
    let first = calls.iter().position(receives).unwrap();
    let last = calls.iter().rposition(receives).unwrap();
    assert!(last - first >= 1_000, "the loop of the server is in another thread");
    let given: Vec<&&str> = calls[first..last].iter().filter(|line| line.contains("MADV_DONTNEED")).collect();
    assert!(given.is_empty(), "{given:?}");
}

/// What a server that is given something to do asks of the kernel, its main thread first, and the server, which has ended;
/// nothing if that cannot be seen here.
fn traced(what: &str, calls: &str, load: impl FnOnce(&Server)) -> Option<(String, Server)> {
    if let Err(lack) = has("strace") {
        skip(what, &lack);
        return None;
    }
    let tried = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output().unwrap();
    if !tried.status.success() {
        skip(what, &Lack::Forbidden(String::from_utf8_lossy(&tried.stderr).trim().to_owned()));
        return None;
    }
    let place = tempfile::Builder::new().prefix("tenure-trace-").tempdir().unwrap();
    let file = place.path().join("trace");
    let trace_calls = format!("trace={calls}");
    let out = file.to_str().unwrap();
    let strace = ["strace", "-D", "-f", "-y", "-x", "-s", "16384", "-e", &trace_calls, "-o", out];
    let run_by = strace.map(str::to_owned).to_vec();
    let mut server = Server::with(Setup { log: "warn", run_by, ..Setup::default() });
    load(&server);
    let exit = server.terminate();
    assert!(exit.status.success(), "{exit:?}");
    let text = poll_until("the end of the trace", || {
        let text = fs::read_to_string(&file).ok()?;
        let main = format!("{} ", text.split(' ').next()?);
        let ended =
            text.lines().rev().any(|line| line.starts_with(&main) && line.ends_with("+++ exited with 0 +++"));
        ended.then_some(text)
    });
    Some((text, server))
}

/// Gives the server something to do: each request carries a word of its own.
fn load(server: &Server) {
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let mut raw = server.client(60_000);
                raw.acks = true;
                (0..ROUNDS).for_each(|round| work(&mut raw, client, round));
            });
        }
    });
}

fn work(raw: &mut Raw, client: usize, round: usize) {
    let word = |what: &str| format!("#{what}-{client}-{round}#");
    let lock = format!("dir-{}/file-{client}", round / 20);
    let token = raw.acquire(&lock);
    raw.set(&lock_key(client), json!(word("set")));
    let data = format!("{}{}\n", word("append"), "x".repeat(1_500));
    raw.append(&lock, token, &data);
    assert_eq!(raw.value(&lock_key(client)), json!(word("set")));
    if round % 20 == 10 {
        raw.ok(
            "rotate_file",
            json!({"file": lock, "token": token, "to": format!("{lock}.{}", word("old").replace('#', "_"))}),
        );
    }
    if round % 20 == 19 {
        raw.ok("delete_file", json!({"file": lock, "token": token}));
    }
    raw.release(token);
}

fn lock_key(client: usize) -> String {
    format!("key-{client}")
}

/// How much was looked at.
#[derive(Debug, Default)]
struct Seen {
    /// Replies whose record had to be synced.
    replies: usize,
    /// Words that left in a reply or reached a file, and had to be synced.
    values: usize,
    creates: usize,
    renames: usize,
    unlinks: usize,
    syncs_of_directories: usize,
    /// Writes that were synced when they returned.
    durable_writes: usize,
    /// Segments that a record was written to.
    segments: usize,
    /// Segments that were deleted.
    segments_deleted: usize,
}

/// A change of a name that is not yet synced with its directory.
#[derive(Clone, Debug)]
struct Change {
    thread: String,
    directory: String,
    what: String,
    /// Creating alone: the next create may come before the sync, nobody counts on it yet.
    create: bool,
    /// Syncs of the directory that had begun when the change was made do not count.
    made: usize,
}

/// A request as it came in.
#[derive(Debug)]
struct Request {
    /// Words that its record carries; none if it has none.
    words: Vec<String>,
    method: String,
    came: usize,
}

/// Reads a trace from the first line to the last.
#[derive(Debug, Default)]
struct Reader {
    directory: String,
    /// The number of the line.
    line: usize,
    /// What a thread has begun: the call, whole if it returns, and in which line.
    begun: BTreeMap<String, (String, usize)>,
    /// By file: what was written to it and is not synced, each with its line.
    unsynced: BTreeMap<String, Vec<(usize, Vec<u8>)>>,
    /// By file: what was written directly.
    durable: BTreeMap<String, Vec<u8>>,
    /// Words in the journal that are safe.
    safe: BTreeSet<String>,
    /// The line of the last write to the journal whose sync has returned.
    safe_up_to: usize,
    segments: BTreeSet<String>,
    changes: Vec<Change>,
    names: BTreeSet<String>,
    requests: BTreeMap<(String, u64), Request>,
    seen: Seen,
}

/// Calls that keep a log, by method.
const LOGGED: [&str; 6] =
    ["set", "append_file", "acquire_lock", "release_lock", "rotate_file", "delete_file"];

impl Reader {
    fn read(&mut self, text: &str) {
        let tails = tails(text);
        for line in text.lines() {
            self.line += 1;
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            let rest = rest.trim_start();
            if let Some(resumed) = rest.strip_prefix("<... ") {
                assert!(resumed.contains(" resumed>"), "line {}: {resumed}", self.line);
                let (whole, begun) = self.begun.remove(thread).unwrap();
                self.ends(thread, &whole, begun);
            } else if let Some(head) = rest.strip_suffix(" <unfinished ...>") {
                // What a call for many datagrams sends is written where it has returned, and leaves where it begins.
                let whole = tails.get(&self.line).map_or(head.to_owned(), |tail| format!("{head}{tail}"));
                self.begins(thread, &whole);
                self.begun.insert(thread.to_owned(), (whole, self.line));
            } else if rest.contains('(') && !rest.starts_with("---") && !rest.starts_with("+++") {
                self.begins(thread, rest);
                self.ends(thread, rest, self.line);
            }
        }
        assert!(self.changes.is_empty(), "never synced: {:?}", self.changes);
        self.seen.segments = self.segments.len();
    }

    /// A call is made. What may leave, leaves now.
    fn begins(&mut self, thread: &str, call: &str) {
        let (name, arguments) = split(call);
        match name {
            "sendto" => self.sends(&bytes(arguments.get(1)), arguments.get(4).copied().unwrap_or_default()),
            "sendmmsg" => {
                for (datagram, to) in datagrams(arguments.get(1)) {
                    self.sends(&datagram, to);
                }
            }
            "sendmsg" | "writev" | "pwritev" | "recvmsg" => {
                panic!("line {}: this test cannot read {name} yet", self.line)
            }
            "rename" | "renameat" | "renameat2" | "unlink" | "unlinkat" | "rmdir" | "link" | "linkat" => {
                self.relies_on_names(thread, name, &arguments);
            }
            "pwrite64" | "write" | "pwritev2" => {
                let file = file_of(arguments.first());
                let content = written(name, &arguments);
                if file.starts_with(&format!("{}/files/", self.directory)) {
                    for word in words(&content) {
                        self.must_be_safe(&word, &format!("its bytes reach {file}"));
                    }
                }
                if file.ends_with(".seg") {
                    let open: Vec<&Change> = self.changes.iter().filter(|c| c.what.contains(&file)).collect();
                    assert!(open.is_empty(), "line {}: a record goes to {file} after {open:?}", self.line);
                }
            }
            _ => {}
        }
    }

    /// A call has returned.
    fn ends(&mut self, thread: &str, call: &str, begun: usize) {
        let (name, arguments) = split(call);
        let Some((_, result)) = call.rsplit_once(" = ") else { return };
        if result.starts_with("-1 ") || result.starts_with('?') {
            return;
        }
        match name {
            "recvfrom" => {
                self.receives(&bytes(arguments.get(1)), arguments.get(4).copied().unwrap_or_default())
            }
            "recvmmsg" => {
                for (datagram, from) in datagrams(arguments.get(1)) {
                    self.receives(&datagram, from);
                }
            }
            "pwrite64" | "write" | "pwritev2" | "ftruncate" | "fallocate" => {
                let file = file_of(arguments.first());
                if file.starts_with(&self.directory) {
                    let content = written(name, &arguments);
                    if file.ends_with(".seg") {
                        self.segments.insert(file.clone());
                    }
                    if arguments.get(4) == Some(&"RWF_DSYNC") {
                        let offset = arguments.get(3).and_then(|offset| offset.parse().ok()).unwrap();
                        self.written_durably(&file, offset, &content);
                    } else {
                        self.unsynced.entry(file).or_default().push((self.line, content));
                    }
                }
            }
            "fdatasync" | "fsync" => self.synced(&file_of(arguments.first()), begun),
            "open" | "openat" | "openat2" | "creat" if call.contains("O_CREAT") || name == "creat" => {
                let path = file_of(Some(&result));
                if self.names.insert(path.clone()) {
                    self.seen.creates += 1;
                    self.changed(thread, "create", &path, true);
                }
            }
            "mkdir" | "mkdirat" => {
                let path = paths(&arguments).pop().unwrap();
                self.changed(thread, "make", &path, true);
            }
            "link" | "linkat" => {
                let path = paths(&arguments).pop().unwrap();
                self.names.insert(path.clone());
                self.changed(thread, "link", &path, false);
            }
            "rename" | "renameat" | "renameat2" => {
                let [from, to]: [String; 2] = paths(&arguments).try_into().unwrap();
                self.seen.renames += 1;
                if !call.contains("RENAME_EXCHANGE") {
                    self.names.remove(&from);
                }
                self.names.insert(to.clone());
                let written = self.unsynced.remove(&from).unwrap_or_default();
                let open = written.len();
                assert!(open == 0, "line {}: {from} becomes {to} with {open} writes not synced", self.line);
                self.changes.retain(|change| !change.what.ends_with(&format!(" {from}")));
                self.changed(thread, &format!("rename {from} to"), &to, false);
                if directory_of(&from) != directory_of(&to) {
                    self.changed(thread, "rename away", &from, false);
                }
            }
            "unlink" | "unlinkat" | "rmdir" => {
                let path = paths(&arguments).pop().unwrap();
                self.seen.unlinks += 1;
                self.seen.segments_deleted += usize::from(path.ends_with(".seg"));
                self.names.remove(&path);
                self.unsynced.remove(&path);
                self.changes.retain(|change| !change.what.ends_with(&format!(" {path}")));
                self.changed(thread, "unlink", &path, false);
            }
            _ => {}
        }
    }

    /// A request came in from an address.
    fn receives(&mut self, datagram: &[u8], from: &str) {
        let Some(message) = message(datagram) else { return };
        let (Some(id), Some(method)) = (message["id"].as_u64(), message["method"].as_str()) else { return };
        let words = words(message["params"].to_string().as_bytes());
        let request = Request { words, method: method.to_owned(), came: self.line };
        // A copy is the same request.
        self.requests.entry((port(from), id)).or_insert(request);
    }

    /// A datagram leaves to an address.
    fn sends(&mut self, datagram: &[u8], to: &str) {
        let Some(message) = message(datagram) else { return };
        for word in words(message.to_string().as_bytes()) {
            self.must_be_safe(&word, "it is told");
        }
        let Some(id) = message["id"].as_u64() else { return };
        let Some(request) = self.requests.get(&(port(to), id)) else { return };
        if !LOGGED.contains(&request.method.as_str()) || message["error"]["data"]["final"] == false {
            return;
        }
        self.seen.replies += 1;
        let (method, came) = (&request.method, request.came);
        assert!(
            self.safe_up_to > came,
            "line {}: the reply to {method} {id} of line {came} leaves, and nothing written after that is synced",
            self.line
        );
        for word in &request.words {
            let line = self.line;
            assert!(
                self.safe.contains(word),
                "line {line}: the reply to {method} {id} leaves before {word} is synced"
            );
        }
    }

    fn must_be_safe(&mut self, word: &str, why: &str) {
        self.seen.values += 1;
        assert!(
            self.safe.contains(word),
            "line {}: {word} is not synced in the journal, and {why}",
            self.line
        );
    }

    /// A sync of a file or a directory, begun at a line, has returned.
    fn synced(&mut self, path: &str, begun: usize) {
        let before = self.changes.len();
        self.changes.retain(|change| change.directory != path || change.made >= begun);
        self.seen.syncs_of_directories += usize::from(self.changes.len() < before);
        let Some(written) = self.unsynced.get_mut(path) else { return };
        let (safe, open): (Vec<_>, Vec<_>) = written.drain(..).partition(|(line, _)| *line < begun);
        *written = open;
        if path.contains("/journal/") {
            // A batch comes in two writes, and a word may be in both.
            let content: Vec<u8> = safe.iter().flat_map(|(_, content)| content).copied().collect();
            self.safe_up_to = safe.iter().map(|(line, _)| *line).fold(self.safe_up_to, usize::max);
            self.safe.extend(words(&content));
        }
    }

    /// A direct write to the journal has returned, which is durable then.
    fn written_durably(&mut self, path: &str, offset: usize, pages: &[u8]) {
        assert!(path.ends_with(".seg"), "line {}: {path} is written like the journal", self.line);
        self.seen.durable_writes += 1;
        let content = self.durable.entry(path.to_owned()).or_default();
        content.resize(content.len().max(offset + pages.len()), 0);
        content[offset..offset + pages.len()].copy_from_slice(pages);
        // A word may begin in the page before.
        let words = words(&content[offset.saturating_sub(64)..]);
        self.safe_up_to = self.line;
        self.safe.extend(words);
    }

    fn changed(&mut self, thread: &str, what: &str, path: &str, create: bool) {
        if !path.starts_with(&self.directory) || path.ends_with(".tmp") {
            return;
        }
        self.changes.push(Change {
            thread: thread.to_owned(),
            directory: directory_of(path).to_owned(),
            what: format!("{what} {path}"),
            create,
            made: self.line,
        });
    }

    /// A thread is about to change a name: what it changed before must be synced, except that creates may gather.
    fn relies_on_names(&self, thread: &str, name: &str, arguments: &[&str]) {
        let touched = paths(arguments);
        if touched.iter().all(|path| path.ends_with(".tmp") || !path.starts_with(&self.directory)) {
            return;
        }
        for change in &self.changes {
            // Creates may gather until somebody writes down how far the files are.
            let gathers = change.create && !touched.iter().any(|path| path.ends_with("image.json"));
            let own = change.thread == thread && !gathers;
            let snapshot = touched[0].ends_with(".seg") && change.what.contains("server_state.json");
            assert!(
                !own && !snapshot,
                "line {}: {name} of {touched:?} comes before the sync of {}: {change:?}",
                self.line,
                change.directory
            );
        }
    }
}

/// What is written of calls where they have returned, by the line in which they begin.
fn tails(text: &str) -> BTreeMap<usize, &str> {
    let (mut begun, mut tails) = (BTreeMap::new(), BTreeMap::new());
    for (line, text) in (1..).zip(text.lines()) {
        let Some((thread, rest)) = text.split_once(' ') else { continue };
        if rest.ends_with(" <unfinished ...>") {
            begun.insert(thread, line);
        } else if let Some((_, tail)) =
            rest.trim_start().strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>"))
            && let Some(begun) = begun.remove(thread)
        {
            tails.insert(begun, tail);
        }
    }
    tails
}

/// A call as `strace` writes it: its name, and its arguments as text.
fn split(call: &str) -> (&str, Vec<&str>) {
    let Some((name, rest)) = call.split_once('(') else { return (call, Vec::new()) };
    let (mut arguments, mut from, mut depth, mut quoted, mut escaped) = (Vec::new(), 0, 0u32, false, false);
    for (at, letter) in rest.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '{' | '[' | '(' => depth += 1,
            ')' if depth == 0 => {
                arguments.push(rest[from..at].trim());
                return (name, arguments);
            }
            '}' | ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                arguments.push(rest[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    arguments.push(rest[from..].trim());
    (name, arguments)
}

/// A string as `strace` writes it, as bytes.
fn bytes(argument: Option<&&str>) -> Vec<u8> {
    let Some(text) = argument.and_then(|text| text.strip_prefix('"')) else { return Vec::new() };
    let text = text.strip_suffix("...").unwrap_or(text);
    let text = text.strip_suffix('"').expect("a string ends with a quote").as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(text.len()), 0);
    while at < text.len() {
        if text[at] != b'\\' {
            out.push(text[at]);
            at += 1;
            continue;
        }
        at += 2;
        match text[at - 1] {
            b'n' => out.push(b'\n'),
            b't' => out.push(b'\t'),
            b'r' => out.push(b'\r'),
            b'x' => {
                let digits = std::str::from_utf8(&text[at..at + 2]).unwrap();
                out.push(u8::from_str_radix(digits, 16).unwrap());
                at += 2;
            }
            other => out.push(other),
        }
    }
    out
}

/// What a call writes.
fn written(name: &str, arguments: &[&str]) -> Vec<u8> {
    match name {
        "pwrite64" | "write" => bytes(arguments.get(1)),
        "pwritev2" => {
            let (_, content) = arguments[1].split_once("iov_base=").expect("a vector has content");
            let (content, _) = content.split_once(", iov_len=").expect("and a length");
            assert!(!content.contains("iov_base="), "one vector is written at a time");
            bytes(Some(&content))
        }
        _ => Vec::new(),
    }
}

/// The datagrams of a call for many of them, each with its address.
fn datagrams<'a>(argument: Option<&&'a str>) -> Vec<(Vec<u8>, &'a str)> {
    let each = argument.map_or("", |text| text).split("{msg_hdr={").skip(1);
    each.map(|head| {
        let (address, rest) = head.split_once("iov_base=").expect("a datagram has content");
        let (content, _) = rest.split_once(", iov_len=").expect("and a length");
        (bytes(Some(&content)), address)
    })
    .collect()
}

/// The path of a descriptor: `8</data/lock>`.
fn file_of(argument: Option<&&str>) -> String {
    let path = argument.and_then(|text| text.split_once('<')).map_or("", |(_, path)| path);
    path.trim_end().trim_end_matches('>').trim_end_matches("(deleted)").to_owned()
}

/// The paths among arguments, each joined with the descriptor before it if it is not absolute.
fn paths(arguments: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (number, argument) in arguments.iter().enumerate() {
        if !argument.starts_with('"') {
            continue;
        }
        let path = String::from_utf8(bytes(Some(argument))).unwrap();
        let above = number.checked_sub(1).map(|before| file_of(Some(&arguments[before])));
        match above {
            Some(above) if !path.starts_with('/') => found.push(format!("{above}/{path}")),
            _ => found.push(path),
        }
    }
    found
}

fn directory_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// What tells a client from others.
fn port(address: &str) -> String {
    let port = address.split_once("htons(").map_or("", |(_, rest)| rest);
    port.split(')').next().unwrap_or_default().to_owned()
}

/// The words between two `#`.
fn words(content: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(content);
    let parts = text.split('#').filter(|part| part.starts_with("set-") || part.starts_with("append-"));
    parts.map(|part| format!("#{part}#")).collect()
}

/// A datagram without its checksum.
fn message(datagram: &[u8]) -> Option<Value> {
    let text = datagram.split(|byte| *byte == b'\n').next()?;
    serde_json::from_slice(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) {
        Reader { directory: "/d".into(), ..Reader::default() }.read(&lines.join("\n"));
    }

    const ASKED: &str = r##"1 recvfrom(3<s>, "{\"id\":1,\"method\":\"set\",\"params\":{\"v\":\"#set-1#\"}}\nabcdef01", 65508, 0, {sin_port=htons(7)}, [16]) = 60"##;
    const WRITTEN: &str =
        r##"2 pwrite64(8</d/journal/1.seg>, "\x01\x23\x73\x65\x74\x2d\x31\x23", 8, 0) = 8"##;
    const ASKED_TOGETHER: &str = r##"1 recvmmsg(3<s>, [{msg_hdr={msg_name={sin_port=htons(6)}, msg_namelen=16, msg_iov=[{iov_base="{\"id\":5,\"method\":\"get\"}\n01234567", iov_len=65508}], msg_iovlen=1}, msg_len=30}, {msg_hdr={msg_name={sin_port=htons(7)}, msg_namelen=16, msg_iov=[{iov_base="{\"id\":1,\"method\":\"set\",\"params\":{\"v\":\"#set-1#\"}}\nabcdef01", iov_len=65508}], msg_iovlen=1}, msg_len=60}], 32, MSG_DONTWAIT, NULL) = 2"##;
    const TOLD_TOGETHER: &str = r##"1 sendmmsg(3<s>, [{msg_hdr={msg_name={sin_port=htons(6)}, msg_namelen=16, msg_iov=[{iov_base="{\"id\":5,\"result\":{}}\n12345678", iov_len=30}], msg_iovlen=1}, msg_len=30}, {msg_hdr={msg_name={sin_port=htons(7)}, msg_namelen=16, msg_iov=[{iov_base="{\"id\":1,\"result\":{}}\n12345678", iov_len=30}], msg_iovlen=1}, msg_len=30}], 2, MSG_DONTWAIT) = 2"##;
    const SYNC: &str = "2 fdatasync(8</d/journal/1.seg>) = 0";
    const TOLD: &str =
        r##"1 sendto(3<s>, "{\"id\":1,\"result\":{}}\n12345678", 30, 0, {sin_port=htons(7)}, 16) = 30"##;

    #[test]
    fn a_reply_behind_its_sync_is_in_order() {
        read(&[ASKED, WRITTEN, SYNC, TOLD]);
        read(&[ASKED_TOGETHER, WRITTEN, SYNC, TOLD_TOGETHER]);
    }

    const WRITTEN_DURABLY: &str = r##"2 pwritev2(8</d/journal/1.seg>, [{iov_base="\x01\x23\x73\x65\x74\x2d\x31\x23", iov_len=8}], 1, 4096, RWF_DSYNC) = 8"##;

    #[test]
    fn a_reply_behind_a_durable_write_is_in_order() {
        read(&[ASKED, WRITTEN_DURABLY, TOLD]);
        let halves = [("\\x01\\x23\\x73\\x65", 4096), ("\\x74\\x2d\\x31\\x23", 4100)].map(|(half, at)| {
            format!(r##"2 pwritev2(8</d/journal/1.seg>, [{{iov_base="{half}", iov_len=4}}], 1, {at}, RWF_DSYNC) = 4"##)
        });
        read(&[ASKED, &halves[0], &halves[1], TOLD]);
    }

    #[test]
    #[should_panic(expected = "nothing written after that is synced")]
    fn a_reply_before_a_durable_write_has_returned_is_found() {
        let (begun, _) = WRITTEN_DURABLY.split_once(", RWF").unwrap();
        let begun = format!("{begun} <unfinished ...>");
        read(&[ASKED, &begun, TOLD, "2 <... pwritev2 resumed>, RWF_DSYNC) = 8"]);
    }

    #[test]
    #[should_panic(expected = "nothing written after that is synced")]
    fn a_reply_behind_a_write_of_that_kind_that_is_not_durable_is_found() {
        read(&[ASKED, &WRITTEN_DURABLY.replace("RWF_DSYNC", "0"), TOLD]);
    }

    #[test]
    #[should_panic(expected = "nothing written after that is synced")]
    fn a_reply_among_several_before_its_sync_is_found() {
        read(&[ASKED_TOGETHER, WRITTEN, TOLD_TOGETHER, SYNC]);
    }

    /// Half of the replies were not looked at: those of calls that did not return at once, whose datagrams `strace` writes
    /// behind what comes between.
    #[test]
    #[should_panic(expected = "nothing written after that is synced")]
    fn a_reply_of_a_call_that_returns_behind_the_sync_is_found() {
        let (begun, told) = TOLD_TOGETHER.split_once("[{").unwrap();
        let begun = format!("{begun}<unfinished ...>");
        let told = format!("1 <... sendmmsg resumed>[{{{told}");
        read(&[ASKED_TOGETHER, WRITTEN, &begun, SYNC, &told]);
    }

    #[test]
    #[should_panic(expected = "nothing written after that is synced")]
    fn a_reply_before_its_sync_is_found() {
        read(&[ASKED, WRITTEN, TOLD, SYNC]);
    }

    #[test]
    #[should_panic(expected = "nothing written after that is synced")]
    fn a_reply_before_its_sync_has_returned_is_found() {
        let begun = "2 fdatasync(8</d/journal/1.seg> <unfinished ...>";
        read(&[ASKED, WRITTEN, begun, TOLD, "2 <... fdatasync resumed>) = 0"]);
    }

    #[test]
    #[should_panic(expected = "before #set-1# is synced")]
    fn a_reply_behind_the_sync_of_something_else_is_found() {
        let other = r##"2 pwrite64(8</d/journal/1.seg>, "\x01\x23", 2, 0) = 2"##;
        read(&[ASKED, other, SYNC, TOLD]);
    }

    #[test]
    #[should_panic(expected = "is not synced in the journal, and it is told")]
    fn a_read_ahead_of_the_sync_is_found() {
        let told = r##"1 sendto(3<s>, "{\"id\":9,\"result\":{\"value\":\"#set-1#\"}}\n12345678", 30, 0, {sin_port=htons(8)}, 16) = 30"##;
        read(&[ASKED, WRITTEN, told, SYNC]);
    }

    const NAMED: &str = r#"2 rename("/d/journal/spare", "/d/journal/2.seg") = 0"#;

    #[test]
    fn a_name_whose_directory_is_synced_can_be_counted_on() {
        let next = r##"2 pwrite64(8</d/journal/2.seg>, "\x01", 1, 0) = 1"##;
        read(&[
            NAMED,
            "2 fsync(9</d/journal>) = 0",
            next,
            r#"2 unlink("/d/journal/1.seg") = 0"#,
            "2 fsync(9</d/journal>) = 0",
        ]);
    }

    #[test]
    #[should_panic(expected = "a record goes to /d/journal/2.seg")]
    fn a_record_in_a_segment_without_a_sure_name_is_found() {
        read(&[NAMED, r##"2 pwrite64(8</d/journal/2.seg>, "\x01", 1, 0) = 1"##]);
    }

    #[test]
    #[should_panic(expected = "comes before the sync of /d/journal")]
    fn a_second_change_before_the_sync_of_the_first_is_found() {
        read(&[NAMED, r#"2 unlink("/d/journal/1.seg") = 0"#]);
    }

    #[test]
    #[should_panic(expected = "comes before the sync of /d")]
    fn a_segment_that_goes_before_the_snapshot_has_its_name_is_found() {
        let renamed = r#"3 rename("/d/server_state.json.tmp", "/d/server_state.json") = 0"#;
        read(&[renamed, r#"2 unlink("/d/journal/1.seg") = 0"#]);
    }

    #[test]
    #[should_panic(expected = "with 1 writes not synced")]
    fn a_name_ahead_of_the_content_is_found() {
        read(&[r##"2 write(4</d/a.tmp>, "x", 1) = 1"##, r#"2 rename("/d/a.tmp", "/d/a") = 0"#]);
    }

    #[test]
    #[should_panic(expected = "never synced")]
    fn a_name_that_is_never_synced_is_found() {
        read(&[r#"2 openat(AT_FDCWD</>, "/d/files/f", O_RDWR|O_CREAT, 0600) = 5</d/files/f>"#]);
    }
}
