//! Inspection: what a stopped directory holds, whether it is whole, and how a backup becomes a server again.
//!
//! [`show`], [`events`] and [`check`] change nothing. [`restore`] makes a state that can never be taken for the one it came from:
//! token counter and `op` are raised by 2^32 and every session is ended, so that whatever the lost time told to
//! anybody, no token and no version of it comes again.

use crate::command::{Command, EndReason, RULES};
use crate::event::Event;
use crate::identity::{Op, RAISE};
use crate::log::next_op;
use crate::outcome::{Effect, FileAct, FileEffect};
use crate::recovery::{Replay, recover, walk};
use crate::segment::Segment;
use crate::snapshot::{self, ServerId, Snapshot};
use crate::state::{GrantPart, KeyPart, Parts, SessionPart, State};
use crate::storage::{DataDir, DiskError, PREVIOUS, SNAPSHOT, sync_dir};
use crate::time::Time;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

/// What was found to be wrong, or that what was found could not be written out.
fn unwritten(error: io::Error) -> DiskError {
    DiskError::new(format!("cannot write the output: {error}"))
}

/// Explains what a stopped directory holds, for people or, with `as_json`, for programs. Secrets are masked.
///
/// # Errors
/// The sentence with which a start would refuse it, or that `out` takes no more.
pub fn show(dir: &DataDir, as_json: bool, out: &mut dyn Write) -> Result<(), DiskError> {
    let found = recover(dir)?;
    let parts = found.state.parts();
    let mut journal = Vec::new();
    walk(dir, &dir.segments()?, None, Some(found.server), &mut |path, segment, _| {
        journal.push(segment_shown(path, segment));
        Ok(())
    })?;
    let stop = match (found.fresh, found.clean) {
        (true, _) => "nothing was ever started here",
        (false, true) => "clean",
        (false, false) => "not clean: the server was killed, or is to be started again",
    };
    if as_json {
        let shown = Shown {
            server: found.server,
            clean: found.clean,
            snapshot_op: found.snapshot_op,
            cut: found.cut.as_ref().map(ToString::to_string),
            notes: &found.notes,
            head: &parts.head,
            sessions: parts.sessions.iter().map(masked).collect(),
            grants: &parts.grants,
            waits: &parts.waits,
            keys: &parts.keys,
            files: &parts.files,
            redo: found.redo.iter().map(work_shown).collect(),
            journal,
        };
        serde_json::to_writer_pretty(&mut *out, &shown).map_err(|error| unwritten(error.into()))?;
        return writeln!(out).map_err(unwritten);
    }
    let mut text = || -> io::Result<()> {
        let head = &parts.head;
        writeln!(out, "server      {}", found.server)?;
        writeln!(out, "last stop   {stop}")?;
        writeln!(out, "op          {} in term {}, at log time {} s", head.op, head.term, head.at)?;
        writeln!(out, "snapshot    up to op {}; the rest is in the journal", found.snapshot_op)?;
        writeln!(out, "last token  {}", head.last_token)?;
        writeln!(out, "durability  {}", json!(head.durability).as_str().unwrap_or_default())?;
        for note in &found.notes {
            writeln!(out, "note        {note}")?;
        }
        if let Some(cut) = &found.cut {
            writeln!(out, "torn tail   {cut}")?;
        }
        sections(out, &parts)?;
        writeln!(out, "\nwork for files that may not be done: {}", found.redo.len())?;
        for work in &found.redo {
            writeln!(out, "  {}", work_shown(work))?;
        }
        writeln!(out, "\njournal: {} segments", journal.len())?;
        for segment in &journal {
            segment_text(out, segment)?;
        }
        Ok(())
    };
    text().map_err(unwritten)
}

/// The state for programs.
#[derive(Serialize)]
struct Shown<'a> {
    server: ServerId,
    clean: bool,
    snapshot_op: Op,
    cut: Option<String>,
    notes: &'a [String],
    head: &'a crate::state::Head,
    sessions: Vec<Value>,
    grants: &'a [GrantPart],
    waits: &'a [crate::state::WaitPart],
    keys: &'a [KeyPart],
    files: &'a [crate::state::FilePart],
    redo: Vec<Value>,
    journal: Vec<Value>,
}

/// The parts of a state for people.
fn sections(out: &mut dyn Write, parts: &Parts) -> io::Result<()> {
    let locks = |asks: &[crate::command::Ask]| {
        let shown: Vec<String> =
            asks.iter().map(|ask| format!("{:?} {}", ask.key, shown_as_word(&ask.mode))).collect();
        shown.join(", ")
    };
    writeln!(out, "\nsessions: {}", parts.sessions.len())?;
    for part in &parts.sessions {
        let life = match &part.ended {
            None => "live".into(),
            Some((at, reason)) => format!("{} at {at} s", shown_as_word(reason)),
        };
        writeln!(
            out,
            "  client {} {:?}: session {:?}, TTL {} ms, {life}; {} replies kept, {} waits, {} losses",
            part.client,
            part.name,
            part.session,
            part.ttl_ms,
            part.replies.len(),
            part.waits.len(),
            part.losses.len()
        )?;
    }
    writeln!(out, "\ngrants: {}", parts.grants.len())?;
    for part in &parts.grants {
        let lease = part.deadline.map_or(String::new(), |at| format!(", lease until {at} s"));
        let staged =
            part.section.as_ref().map_or(String::new(), |it| format!(", {} staged writes", it.writes()));
        writeln!(
            out,
            "  token {}: {} to client {} owner {:?} since {} s{lease}{staged}",
            part.token,
            locks(&part.asks),
            part.client,
            part.owner,
            part.since
        )?;
    }
    writeln!(out, "\nwaits: {}", parts.waits.len())?;
    for part in &parts.waits {
        let (asks, owner) = (locks(&part.asks), &part.owner);
        writeln!(
            out,
            "  op {}: client {} owner {owner:?} for {asks} since {} s",
            part.op, part.client, part.since
        )?;
    }
    writeln!(out, "\nkeys: {}", parts.keys.len())?;
    for part in &parts.keys {
        writeln!(out, "  {:?} version {}: {} bytes", part.key, part.version, part.value.get().len())?;
    }
    writeln!(out, "\nfiles: {}", parts.files.len())?;
    for part in &parts.files {
        let fault =
            part.fault.as_ref().map_or(String::new(), |fault| format!(", closed to appends: {fault:?}"));
        writeln!(
            out,
            "  {:?} generation {}: {} bytes, CRC-32C {:08x}{fault}",
            part.file, part.generation, part.length, part.checksum
        )?;
    }
    Ok(())
}

/// The word under which serde knows a unit variant.
fn shown_as_word<T: Serialize>(value: &T) -> String {
    json!(value).as_str().unwrap_or("?").to_string()
}

/// A session without its secrets.
fn masked(part: &SessionPart) -> Value {
    let mut value = json!(part);
    mask(&mut value);
    value
}

/// Keeps the first 8 digits of every secret in a value.
fn mask(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                match field {
                    Value::String(secret) if name == "session" || name == "nonce" => {
                        *secret = format!("{}…", secret.get(..8).unwrap_or_default());
                    }
                    other => mask(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(mask),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn work_shown(work: &FileEffect) -> Value {
    let act = match &work.act {
        FileAct::Write { offset, data } => format!("write {} bytes at {offset}", data.len()),
        FileAct::Delete => "delete".into(),
        FileAct::Rotate { to } => format!("rotate to {to:?}"),
        FileAct::Repair { length, checksum } => format!("repair to {length} bytes, CRC-32C {checksum:08x}"),
    };
    json!({"op": work.op, "file": work.file, "generation": work.generation, "act": act})
}

fn segment_shown(path: &Path, segment: &Segment) -> Value {
    let batches: Vec<Value> = segment
        .batches
        .iter()
        .map(|placed| {
            let header = &placed.header;
            json!({
                "seq": header.seq, "offset": placed.offset, "first_op": header.first_op, "count": header.count,
                "synced": header.synced, "bytes": header.bytes(),
            })
        })
        .collect();
    json!({
        "file": path.file_name().map(|name| name.to_string_lossy()), "rules": segment.header.rules,
        "base_op": segment.header.base_op, "last_op": segment.last_op(), "used": segment.end,
        "bytes": segment.header.size, "batches": batches,
    })
}

fn segment_text(out: &mut dyn Write, segment: &Value) -> io::Result<()> {
    let batches = segment["batches"].as_array().map_or(&[][..], Vec::as_slice);
    writeln!(
        out,
        "  {} after op {} up to op {}: {} batches, {} of {} bytes, rules {}",
        segment["file"].as_str().unwrap_or_default(),
        segment["base_op"],
        segment["last_op"],
        batches.len(),
        segment["used"],
        segment["bytes"],
        segment["rules"]
    )?;
    for batch in batches {
        match batch["count"].as_u64() {
            Some(0) => writeln!(
                out,
                "    batch {} at {}: seals batch {}",
                batch["seq"], batch["offset"], batch["synced"]
            )?,
            _ => writeln!(
                out,
                "    batch {} at {}: {} commands from op {}, {} bytes",
                batch["seq"], batch["offset"], batch["count"], batch["first_op"], batch["bytes"]
            )?,
        }
    }
    Ok(())
}

/// Tells what the commands in the journal of a stopped directory did, oldest first: the last `most` lines, for people or,
/// with `as_json`, as objects for programs. The journal goes back to the snapshot before the last one; older commands are
/// gone with their segments. No values, data or secrets are told.
///
/// # Errors
/// The sentence with which a start would refuse the directory, or that `out` takes no more.
pub fn events(dir: &DataDir, most: usize, as_json: bool, out: &mut dyn Write) -> Result<(), DiskError> {
    let server = recover(dir)?.server;
    let numbers = dir.segments()?;
    let mut told: VecDeque<(Time, Op, String)> = VecDeque::new();
    let mut begun: Option<State> = None;
    walk(dir, &numbers, None, Some(server), &mut |path, segment, bytes| {
        let state = match &mut begun {
            Some(state) => state,
            none => none.insert(state_at_least(dir, segment.header.base_op)?),
        };
        for placed in &segment.batches {
            if placed.header.last_op() <= state.op() {
                continue;
            }
            if segment.header.rules != RULES {
                return Err(format!(
                    "{} was written under other rules than those of this version",
                    path.display()
                ));
            }
            let entries = segment.entries(bytes, placed)?;
            for (op, entry) in (placed.header.first_op..).zip(&entries) {
                if op <= state.op() {
                    continue;
                }
                let (event, mut effects) = (Event::of(state, op, &entry.command), Vec::new());
                let outcome = state.apply_entry(op, entry, &mut effects);
                for line in event.lines(state, &outcome, &effects) {
                    told.push_back((entry.at, op, line));
                    if told.len() > most {
                        told.pop_front();
                    }
                }
            }
        }
        Ok(())
    })?;
    if as_json {
        let events: Vec<Value> =
            told.iter().map(|(at, op, line)| json!({"at_us": at, "op": op, "event": line})).collect();
        serde_json::to_writer_pretty(&mut *out, &events).map_err(|error| unwritten(error.into()))?;
        return writeln!(out).map_err(unwritten);
    }
    told.iter().try_for_each(|(at, _, line)| writeln!(out, "{at} s {line}")).map_err(unwritten)
}

/// The oldest state on the disk from which the journal goes on, if it begins behind `base_op`.
fn state_at_least(dir: &DataDir, base_op: Op) -> Result<State, String> {
    if base_op == 0 {
        return Ok(State::new());
    }
    for name in [PREVIOUS, SNAPSHOT] {
        let bytes = dir.read_snapshot(name).map_err(|error| error.sentence)?;
        match bytes.map(|bytes| snapshot::decode(&bytes)) {
            Some(Ok(found)) if found.parts.head.op >= base_op => return State::from_parts(found.parts),
            Some(Ok(_) | Err(_)) | None => {}
        }
    }
    Err(format!("no snapshot reaches to op {base_op}, where the journal begins"))
}

/// Verifies a stopped directory, writing a line for each thing looked at. Gives whether all is whole.
///
/// # Errors
/// That `out` takes no more. What is wrong with the directory is no error but `false`.
pub fn check(dir: &DataDir, out: &mut dyn Write) -> Result<bool, DiskError> {
    let mut good = true;
    let mut line = |fine: bool, text: String| {
        good &= fine;
        writeln!(out, "{} {text}", if fine { "ok  " } else { "BAD " }).map_err(unwritten)
    };
    for name in [SNAPSHOT, PREVIOUS] {
        match dir.read_snapshot(name).map(|bytes| bytes.map(|bytes| snapshot::decode(&bytes))) {
            Ok(None) => line(true, format!("{name}: there is none"))?,
            Ok(Some(Ok(found))) => line(true, format!("{name}: whole, up to op {}", found.parts.head.op))?,
            Ok(Some(Err(fault))) => line(false, format!("{name}: {fault}"))?,
            Err(error) => line(false, error.sentence)?,
        }
    }
    let mut lines = Vec::new();
    let walked = dir.segments().and_then(|numbers| {
        walk(dir, &numbers, None, None, &mut |path, segment, bytes| {
            let rules = segment.header.rules;
            if rules != RULES {
                let text = "its batches are whole; its records are of another version, which wrote rules";
                lines.push(format!("{}: {text} {rules}", path.display()));
                return Ok(());
            }
            for placed in &segment.batches {
                segment.entries(bytes, placed).map_err(|fault| format!("{}: {fault}", path.display()))?;
            }
            lines.push(format!("{}: whole, up to op {}", path.display(), segment.last_op()));
            Ok(())
        })
    });
    lines.into_iter().try_for_each(|text| line(true, text))?;
    if let Err(error) = walked {
        line(false, error.sentence)?;
    }
    match recover(dir) {
        Err(error) => line(false, format!("a start would be refused: {error}"))?,
        Ok(found) => {
            for note in found.notes.iter().cloned().chain(found.cut.as_ref().map(ToString::to_string)) {
                line(true, format!("note: {note}"))?;
            }
            line(
                true,
                format!("a start would go on from op {} in term {}", found.state.op(), found.term + 1),
            )?;
            let parts = found.state.parts();
            for part in &parts.files {
                let pending = found.redo.iter().any(|work| work.file == part.file);
                let (fine, text) = file_checked(dir, part, pending);
                line(fine, text)?;
            }
        }
    }
    Ok(good)
}

/// Compares a file with what the state says of it.
fn file_checked(dir: &DataDir, part: &crate::state::FilePart, pending: bool) -> (bool, String) {
    let path = dir.files().join(part.file.as_str());
    let found = match sum(&path) {
        Ok((length, crc)) if length == part.length && crc == part.checksum => {
            return (true, format!("{}: whole, {length} bytes", path.display()));
        }
        Ok((length, crc)) => format!("{length} bytes with CRC-32C {crc:08x}"),
        Err(error) => error.to_string(),
    };
    let expected = format!("the state has {} bytes with CRC-32C {:08x}", part.length, part.checksum);
    match (&part.fault, pending) {
        (None, false) => (
            false,
            format!(
                "{}: {found}; {expected}: somebody else changed it; `repair_file` accepts it",
                path.display()
            ),
        ),
        (Some(fault), _) => {
            (true, format!("{}: {found}; closed to appends before: {fault:?}", path.display()))
        }
        (None, true) => (true, format!("{}: {found}; the next start brings it to its state", path.display())),
    }
}

/// Length and CRC-32C of a plain file.
fn sum(path: &Path) -> io::Result<(u64, u32)> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    let (mut file, mut bytes) = (File::open(path)?, vec![0; 256 * 1024]);
    let (mut length, mut crc) = (0, 0);
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok((length, crc)),
            count => {
                length += count as u64;
                crc = crc32c::crc32c_append(crc, &bytes[..count]);
            }
        }
    }
}

/// Makes a directory that a server may serve from a backup: from the stopped directory `from` into the empty or new
/// directory `to`, or in its place without one. Raises token counter and `op` by 2^32, ends every session, keeps the
/// server's id, and writes what it did to `out`.
///
/// With `take_loss`, what a start would refuse is taken as far as it is whole.
///
/// # Errors
/// A sentence. `from` is as it was; in its place it is so until the new snapshot stands.
pub fn restore(
    from: &Path,
    to: Option<&Path>,
    take_loss: bool,
    out: &mut dyn Write,
) -> Result<(), DiskError> {
    let source = DataDir::inspect(from)?;
    let mut notes = Vec::new();
    let (server, mut replay, highest) = match recover(&source) {
        Ok(found) if found.fresh => {
            return Err(DiskError::new(format!("{} holds no state to restore", from.display())));
        }
        Ok(found) => (found.server, Replay::resume(found.state, found.redo), 0),
        Err(error) if take_loss => {
            notes.push(format!("a start would be refused: {error}"));
            salvage(&source, &mut notes)?
        }
        Err(error) => {
            return Err(DiskError::new(format!(
                "{error}. With --take-loss, what is whole before that is restored"
            )));
        }
    };
    let before = (replay.state.op(), replay.state.head().last_token);
    let ended = retire(&mut replay.state, &mut replay.redo, highest)?;
    let (op, token) = (replay.state.op(), replay.state.head().last_token);
    assert!(op >= before.0 + RAISE && token >= before.1 + RAISE, "a restore raises op and token");
    let dir = match to {
        None => {
            drop(source);
            DataDir::open(from)?
        }
        Some(to) => {
            let empty = fs::read_dir(to).map_or(true, |mut entries| entries.next().is_none());
            if !empty {
                return Err(DiskError::new(format!("{} is not empty; name a new directory", to.display())));
            }
            let dir = DataDir::open(to)?;
            let copied = copy_tree(&source.files(), &dir.files(), &mut notes)?;
            let image = source.path().join(IMAGE);
            if image.is_file() {
                copy_file(&image, &dir.path().join(IMAGE))?;
            }
            sync_dir(dir.path())?;
            notes.push(format!("{copied} files were copied"));
            dir
        }
    };
    let (parts, redo) = (replay.state.parts(), replay.redo);
    dir.write_snapshot(&Snapshot { server, clean: true, parts, redo })?;
    // Neither may ever be taken for what goes before the new state.
    dir.remove_previous()?;
    for number in dir.segments()? {
        dir.remove_segment(number)?;
    }
    let mut text = || -> io::Result<()> {
        for note in &notes {
            writeln!(out, "{note}")?;
        }
        writeln!(out, "restored server {server} in {} from op {}", dir.path().display(), before.0)?;
        writeln!(
            out,
            "op was raised from {} to {op}, the token counter from {} to {token}",
            before.0, before.1
        )?;
        writeln!(out, "{ended} sessions were ended; their clients open new ones")
    };
    text().map_err(unwritten)
}

/// The watermark of the files, beside them.
const IMAGE: &str = "image.json";

/// Begins a raised term, ends every live session in it, and hands over what they held. Gives how many were ended.
///
/// `highest` is the highest op that is known to have been. If raised terms were lost, as many are begun here: each
/// raises `op` and the token counter alike, so neither falls behind.
fn retire(state: &mut State, redo: &mut Vec<FileEffect>, highest: Op) -> Result<u64, DiskError> {
    let head = state.head().clone();
    let mut effects = Vec::new();
    let mut run = |state: &mut State, command: Command| {
        state.apply(next_op(state.op(), &command), state.at(), &command, &mut effects);
    };
    let mut term = head.term;
    while term == head.term || state.op() < highest.saturating_add(RAISE) {
        term += 1;
        let limits = head.limits.clone();
        run(state, Command::NewTerm { term, limits, durability: head.durability, raised: true });
    }
    let live: Vec<_> = state.live_sessions(0).map(|(session, _)| session).collect();
    for &session in &live {
        run(state, Command::EndSession { session, term, reason: EndReason::Killed });
    }
    let mut left = u64::MAX;
    loop {
        let now: u64 = state
            .counts()
            .iter()
            .filter(|(name, _)| ["grants", "waits"].contains(name))
            .map(|(_, n)| n)
            .sum();
        if now == 0 {
            break;
        }
        if now >= left {
            return Err(DiskError::new("what ended sessions held was not handed over; please report it"));
        }
        left = now;
        run(state, Command::Tick);
    }
    redo.extend(effects.into_iter().filter_map(|effect| match effect {
        Effect::File(work) => Some(work),
        _ => None,
    }));
    Ok(live.len() as u64)
}

/// Takes what is whole: a snapshot, and batches behind it up to the first that is not. Gives also the highest op that
/// any header names, lost or not.
fn salvage(dir: &DataDir, notes: &mut Vec<String>) -> Result<(ServerId, Replay, Op), DiskError> {
    let base = [SNAPSHOT, PREVIOUS].into_iter().find_map(|name| {
        let bytes = dir.read_snapshot(name).ok()??;
        snapshot::decode(&bytes).ok().inspect(|_| notes.push(format!("{name} was used")))
    });
    let mut server = base.as_ref().map(|base| base.server);
    let mut replay = Replay::new(base)?;
    let (mut highest, mut lost) = (0, false);
    for number in segment_numbers(dir)? {
        let path = dir.segment(number);
        let bytes = dir.read_segment(number)?;
        let stopped = match Segment::salvage(&bytes) {
            Ok((segment, _)) if *server.get_or_insert(segment.header.server) != segment.header.server => {
                Some("it belongs to another server".into())
            }
            Ok((segment, fault)) => {
                highest = highest.max(segment.last_op());
                let mut batches = segment.batches.iter().filter(|_| !lost);
                batches.try_for_each(|placed| replay.feed(&path, &segment, &bytes, placed)).err().or(fault)
            }
            Err(fault) => Some(fault),
        };
        if let Some(fault) = stopped.filter(|_| !lost) {
            notes.push(format!("what follows op {} is lost: {}: {fault}", replay.state.op(), path.display()));
            lost = true;
        }
    }
    match server {
        Some(server) if replay.state.op() > 0 => Ok((server, replay, highest)),
        _ => Err(DiskError::new(format!(
            "nothing in {} is whole; restore another backup",
            dir.path().display()
        ))),
    }
}

/// The numbers of the segments, gaps or not.
fn segment_numbers(dir: &DataDir) -> Result<Vec<u64>, DiskError> {
    dir.segments().or_else(|_| {
        let mut numbers: Vec<u64> = fs::read_dir(dir.journal())
            .map_err(|error| DiskError::io("list", &dir.journal(), &error))?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".seg")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    })
}

/// Copies plain files and directories; says what else there was.
fn copy_tree(from: &Path, to: &Path, notes: &mut Vec<String>) -> Result<u64, DiskError> {
    let mut copied = 0;
    let entries = match fs::read_dir(from) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(DiskError::io("list", from, &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| DiskError::io("list", from, &error))?;
        let kind = entry.file_type().map_err(|error| DiskError::io("look at", &entry.path(), &error))?;
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            use std::os::unix::fs::DirBuilderExt;
            let made = fs::DirBuilder::new().mode(0o700).create(&target);
            made.map_err(|error| DiskError::io("make the directory", &target, &error))?;
            copied += copy_tree(&entry.path(), &target, notes)?;
        } else if kind.is_file() {
            copy_file(&entry.path(), &target)?;
            copied += 1;
        } else {
            notes.push(format!("{} was not copied: it is not a plain file", entry.path().display()));
        }
    }
    sync_dir(to)?;
    Ok(copied)
}

/// Copies a file and syncs the copy; the caller syncs its directory.
fn copy_file(from: &Path, to: &Path) -> Result<(), DiskError> {
    use std::os::unix::fs::OpenOptionsExt;
    let copied = File::open(from).and_then(|mut source| {
        let mut target = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        io::copy(&mut source, &mut target)?;
        target.sync_all()
    });
    copied.map_err(|error| DiskError::io("copy to", to, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Ask, Call, Durability, Mode, Patience, Terms};
    use crate::log::Log;
    use crate::name::Name;
    use crate::recovery::tests::{Rig, fresh};

    fn filled() -> (tempfile::TempDir, Op) {
        let (path, dir) = fresh();
        let mut rig = Rig::start(&dir, Durability::Sync);
        rig.set("k", 5);
        rig.fold();
        let asks = vec![Ask { key: Name::new("a").unwrap(), mode: Mode::Exclusive }];
        let (owner, terms) = (String::new(), Terms::default());
        rig.call(Call::Acquire { asks: asks.into(), wait: Patience::Try, owner, terms });
        let op = rig.state.op();
        rig.log.close().unwrap();
        (path, op)
    }

    fn text(work: impl FnOnce(&mut dyn Write) -> Result<(), DiskError>) -> String {
        let mut out = Vec::new();
        work(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_directory_is_shown_without_its_secrets() {
        let (path, op) = filled();
        let dir = DataDir::inspect(path.path()).unwrap();
        let secret = "0000000000abcdef";
        for as_json in [false, true] {
            let shown = text(|out| show(&dir, as_json, out));
            assert!(!shown.contains(secret), "{shown}");
            assert!(shown.contains(&op.to_string()) && shown.contains("00000000000000000001.seg"), "{shown}");
        }
        let shown: Value = serde_json::from_str(&text(|out| show(&dir, true, out))).unwrap();
        assert_eq!(shown["grants"][0]["token"], 1);
    }

    #[test]
    fn a_check_tells_whole_from_damaged() {
        let (path, _) = filled();
        let dir = DataDir::inspect(path.path()).unwrap();
        let mut out = Vec::new();
        assert!(check(&dir, &mut out).unwrap(), "{}", String::from_utf8(out).unwrap());
        let mut bytes = dir.read_segment(1).unwrap();
        bytes[crate::segment::HEADER_BYTES + 90] ^= 1;
        fs::write(dir.segment(1), bytes).unwrap();
        let mut out = Vec::new();
        assert!(!check(&dir, &mut out).unwrap());
        assert!(String::from_utf8(out).unwrap().contains("BAD  the journal is damaged"));
    }

    #[test]
    fn a_restore_raises_the_counters_and_ends_every_session() {
        for elsewhere in [false, true] {
            let (path, op) = filled();
            fs::write(path.path().join("files/f"), b"content").unwrap();
            let (parent, from) = (tempfile::tempdir().unwrap(), path.path());
            let to = if elsewhere { Some(parent.path().join("new")) } else { None };
            let said = text(|out| restore(from, to.as_deref(), false, out));
            assert!(said.contains("1 sessions were ended"), "{said}");
            let dir = std::sync::Arc::new(DataDir::open(to.as_deref().unwrap_or(from)).unwrap());
            let found = recover(&dir).unwrap();
            assert!(found.clean && !found.must_raise && found.state.op() > op + RAISE);
            let parts = found.state.parts();
            assert!(parts.head.last_token > RAISE && parts.grants.is_empty());
            assert!(parts.sessions.iter().all(|session| session.ended.is_some()));
            assert_eq!(fs::read(dir.files().join("f")).unwrap(), b"content");
            drop(Rig::start(&dir, Durability::Sync));
            assert_eq!(recover(&dir).unwrap().term, parts.head.term + 1);
        }
    }

    #[test]
    fn a_loss_is_taken_only_when_that_is_asked_for() {
        let (path, op) = filled();
        {
            let dir = DataDir::inspect(path.path()).unwrap();
            let mut bytes = dir.read_segment(1).unwrap();
            let last = *Segment::read(&bytes)
                .unwrap()
                .batches
                .iter()
                .rfind(|placed| placed.header.count > 0)
                .unwrap();
            bytes[last.offset + 90] ^= 1;
            fs::write(dir.segment(1), bytes).unwrap();
        }
        let mut out = Vec::new();
        assert!(restore(path.path(), None, false, &mut out).unwrap_err().sentence.contains("--take-loss"));
        let said = text(|out| restore(path.path(), None, true, out));
        assert!(said.contains(&format!("what follows op {} is lost", op - 1)), "{said}");
        let dir = DataDir::open(path.path()).unwrap();
        assert!(recover(&dir).unwrap().state.op() > op + RAISE);
    }

    #[test]
    fn a_restore_never_goes_into_a_directory_in_use() {
        let (path, _) = filled();
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("x"), b"").unwrap();
        let mut out = Vec::new();
        let refused = restore(path.path(), Some(other.path()), false, &mut out).unwrap_err();
        assert!(refused.sentence.contains("not empty"));
        let _server = DataDir::open(path.path()).unwrap();
        assert!(
            restore(path.path(), None, false, &mut out)
                .unwrap_err()
                .sentence
                .contains("uses the data directory")
        );
    }
}
