//! The snapshot: a state as JSON that people can read.
//!
//! ```text
//!   {"format":1,                                  the version of this layout: always the first line
//!   "server":"00112233445566778899aabbccddeeff",  the id of the server, made with its directory
//!   "clean":true,                                 written at a clean stop: nothing follows it
//!   "head":{"op":17,"term":2,...},
//!   "sessions":[
//!   {"client":1,...},                             one element a line, in the order of `Parts`
//!   {"client":2,...}
//!   ],
//!   "grants":[], "delays":[], "waits":[], "unserved":[], "keys":[], "files":[], "history":[],
//!   "contention":[], "holds":[],                  (as above)
//!   "redo":[                                      work for the disk that may not be safe in the files yet
//!   {"op":16,"file":"log","generation":16,"act":{"write":{"offset":0,"data_b64":"aGk="}}}
//!   ],
//!   "crc32c":"1a2b3c4d"}                          over all bytes before this line: always the last line
//! ```
//!
//! The same snapshot gives the same bytes, and reading and writing it again changes none. It holds the secrets of
//! sessions: it is a file for its server and its operator, and `tenure state show` masks them.

use crate::identity::Op;
use crate::limits::VALUE_DEPTH_MAX;
use crate::name::Name;
use crate::outcome::{FileAct, FileEffect};
use crate::state::{
    ContentionPart, DelayPart, FilePart, GrantPart, Head, HoldPart, KeyPart, Parts, SessionPart,
    UnservedPart, WaitPart, WatchEvent,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

/// The version of this layout.
pub const FORMAT: u32 = 2;

/// The id of a server: drawn at random when its data directory is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerId(pub u128);

/// A snapshot: a state, and what its directory must know beside it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The server it belongs to.
    pub server: ServerId,
    /// Whether it was written at a clean stop, so that nothing follows it. A start does not change it: it was a clean
    /// stop if the journal has no op beyond the snapshot's.
    pub clean: bool,
    /// The state.
    pub parts: Parts,
    /// Work for the disk up to the snapshot's op that may not be safe in the files yet, in the order of ops.
    pub redo: Vec<FileEffect>,
}

/// Why bytes are no snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Another version wrote it. An older snapshot must not be taken in its place.
    OtherFormat {
        /// The version of its layout.
        format: u64,
    },
    /// It is damaged; what is wrong, as a sentence.
    Damaged(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::OtherFormat { format } if *format > u64::from(FORMAT) => write!(
                f,
                "it has format {format}, written by a newer version of tenure; this version reads format {FORMAT}: \
                 use the newer version"
            ),
            Fault::OtherFormat { format } => write!(
                f,
                "it has format {format}, of a version of tenure that was never released; this version reads format \
                 {FORMAT}: use the version that wrote it, or begin with an empty data directory"
            ),
            Fault::Damaged(sentence) => f.write_str(sentence),
        }
    }
}

/// Writes a snapshot.
///
/// # Errors
/// Those of `out`.
pub fn encode(snapshot: &Snapshot, out: &mut dyn Write) -> io::Result<()> {
    let Parts { head, sessions, grants, delays, waits, unserved, keys, files, history, contention, holds } =
        &snapshot.parts;
    let mut out = Summed { out, crc: 0 };
    writeln!(out, "{{\"format\":{FORMAT},")?;
    writeln!(out, "\"server\":\"{}\",", snapshot.server)?;
    writeln!(out, "\"clean\":{},", snapshot.clean)?;
    write!(out, "\"head\":")?;
    serde_json::to_writer(&mut out, head)?;
    writeln!(out, ",")?;
    section(&mut out, "sessions", sessions)?;
    section(&mut out, "grants", grants)?;
    section(&mut out, "delays", delays)?;
    section(&mut out, "waits", waits)?;
    section(&mut out, "unserved", unserved)?;
    section(&mut out, "keys", keys)?;
    section(&mut out, "files", files)?;
    section(&mut out, "history", history.iter())?;
    section(&mut out, "contention", contention)?;
    section(&mut out, "holds", holds)?;
    section(&mut out, "redo", snapshot.redo.iter().map(Redo::from))?;
    let crc = out.crc;
    out.write_all(&last_line(crc))
}

/// Looks whether bytes are those that were written as a snapshot: at their format and checksum, not at what they mean.
///
/// # Errors
/// [`Fault`].
pub fn check(bytes: &[u8]) -> Result<(), Fault> {
    let format = format_of(bytes)?;
    if format != u64::from(FORMAT) {
        return Err(Fault::OtherFormat { format });
    }
    let damaged = |sentence: String| Err(Fault::Damaged(sentence));
    let Some((body, last)) = bytes.split_last_chunk::<LAST_LINE>() else {
        return damaged(format!("it is cut short: {} bytes", bytes.len()));
    };
    let found = crc32c::crc32c(body);
    if *last != last_line(found) {
        return damaged(format!(
            "its checksum is wrong: the bytes have {found:08x}, the last line is {:?}; it was damaged, cut or edited",
            String::from_utf8_lossy(last)
        ));
    }
    Ok(())
}

/// Reads a snapshot.
///
/// # Errors
/// [`Fault`]. Never panics, and never recurses deeper than a value may be nested.
pub fn decode(bytes: &[u8]) -> Result<Snapshot, Fault> {
    check(bytes)?;
    let document: Document = serde_json::from_slice(bytes)
        .map_err(|error| Fault::Damaged(format!("its content is not that of a snapshot: {error}")))?;
    document.check().map_err(Fault::Damaged)?;
    let Document {
        format: _,
        server,
        clean,
        head,
        sessions,
        grants,
        delays,
        waits,
        unserved,
        keys,
        files,
        history,
        contention,
        holds,
        redo,
        crc32c: _,
    } = document;
    let history = history.into_iter().collect();
    let redo =
        redo.into_iter().map(FileEffect::try_from).collect::<Result<_, _>>().map_err(Fault::Damaged)?;
    let parts =
        Parts { head, sessions, grants, delays, waits, unserved, keys, files, history, contention, holds };
    Ok(Snapshot { server, clean, parts, redo })
}

/// The version on the first line.
fn format_of(bytes: &[u8]) -> Result<u64, Fault> {
    let start = &bytes[..bytes.len().min(64)];
    let digits = start.strip_prefix(b"{\"format\":").map(|rest| {
        let end = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        &rest[..end]
    });
    digits
        .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
        .ok_or_else(|| Fault::Damaged("it does not begin with the format of a snapshot".into()))
}

/// Bytes of the last line.
const LAST_LINE: usize = b"\"crc32c\":\"00000000\"}\n".len();

/// The last line for a checksum.
fn last_line(crc: u32) -> [u8; LAST_LINE] {
    let line = format!("\"crc32c\":\"{crc:08x}\"}}\n");
    line.into_bytes().try_into().expect("eight digits are always eight digits")
}

/// Writes one array, one element a line.
fn section(out: &mut Summed<'_>, name: &str, items: impl IntoIterator<Item: Serialize>) -> io::Result<()> {
    write!(out, "\"{name}\":[")?;
    let mut before: &[u8] = b"\n";
    for item in items {
        out.write_all(before)?;
        serde_json::to_writer(&mut *out, &item)?;
        before = b",\n";
    }
    if before != b"\n" {
        out.write_all(b"\n")?;
    }
    out.write_all(b"],\n")
}

/// A writer that sums what passes.
struct Summed<'a> {
    out: &'a mut dyn Write,
    crc: u32,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The file as serde reads it. Fields unknown, missing or given twice are refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[expect(dead_code, reason = "it was judged before the rest was parsed")]
    format: u32,
    server: ServerId,
    clean: bool,
    head: Head,
    sessions: Vec<SessionPart>,
    grants: Vec<GrantPart>,
    delays: Vec<DelayPart>,
    waits: Vec<WaitPart>,
    unserved: Vec<UnservedPart>,
    keys: Vec<KeyPart>,
    files: Vec<FilePart>,
    history: Vec<WatchEvent>,
    contention: Vec<ContentionPart>,
    holds: Vec<HoldPart>,
    redo: Vec<Redo>,
    #[expect(dead_code, reason = "its bytes were checked before they were parsed")]
    crc32c: String,
}

impl Document {
    /// What serde does not see: order, and with it elements given twice; depth of values; names of files.
    fn check(&self) -> Result<(), String> {
        rising("sessions", self.sessions.iter().map(|part| part.client))?;
        rising("grants", self.grants.iter().map(|part| part.token))?;
        rising("delays", self.delays.iter().map(|part| &part.key))?;
        rising("unserved", self.unserved.iter().map(|part| &part.key))?;
        rising("waits", self.waits.iter().map(|part| part.op))?;
        rising("keys", self.keys.iter().map(|part| &part.key))?;
        rising("files", self.files.iter().map(|part| &part.file))?;
        rising("contention", self.contention.iter().map(|part| &part.key))?;
        for session in &self.sessions {
            rising("replies", session.replies.iter().map(|part| part.id))?;
            rising("waits", session.waits.iter().map(|part| part.id))?;
        }
        let staged = || self.grants.iter().filter_map(|part| part.section.as_ref());
        for section in staged() {
            rising("section.keys", section.keys.iter().map(|part| &part.key))?;
            rising("section.files", section.files.iter().map(|part| &part.file))?;
        }
        let values = self.keys.iter().map(|part| (&part.key, &part.value));
        let staged_values =
            staged().flat_map(|part| &part.keys).filter_map(|part| Some((&part.key, part.value.as_ref()?)));
        for (key, value) in values.chain(staged_values) {
            if depth(value.get()) > VALUE_DEPTH_MAX {
                return Err(format!("the value of key {key:?} is nested deeper than {VALUE_DEPTH_MAX}"));
            }
        }
        let files = self.files.iter().map(|part| &part.file).chain(self.redo.iter().map(|part| &part.file));
        for file in files.chain(staged().flat_map(|part| &part.files).map(|part| &part.file)) {
            Name::file(file)
                .map_err(|refusal| format!("the file {file:?} has a bad name: {}", refusal.message))?;
        }
        let mut last = 0;
        for part in &self.redo {
            if part.op < last || part.op > self.head.op {
                return Err(format!("the work of op {} in `redo` stands out of order", part.op));
            }
            last = part.op;
        }
        Ok(())
    }
}

/// Refuses elements out of order or given twice.
fn rising<T: PartialOrd + fmt::Debug>(section: &str, items: impl Iterator<Item = T>) -> Result<(), String> {
    let mut last: Option<T> = None;
    for item in items {
        if let Some(last) = last.as_ref().filter(|last| **last >= item) {
            return Err(format!(
                "in `{section}` {item:?} stands behind {last:?}: out of order, or given twice"
            ));
        }
        last = Some(item);
    }
    Ok(())
}

/// How deep arrays and objects are nested in a JSON text, without recursion.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut inside, mut escaped) = (0usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            b'[' | b'{' if !inside => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !inside => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Work for the disk as the snapshot has it: data as base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Redo {
    op: Op,
    file: Name,
    generation: u64,
    act: RedoAct,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum RedoAct {
    Write { offset: u64, data_b64: String },
    Delete,
    Rotate { to: Name },
    Repair { length: u64, checksum: u32 },
}

impl From<&FileEffect> for Redo {
    fn from(effect: &FileEffect) -> Redo {
        let act = match &effect.act {
            FileAct::Write { offset, data } => {
                RedoAct::Write { offset: *offset, data_b64: STANDARD.encode(data) }
            }
            FileAct::Delete => RedoAct::Delete,
            FileAct::Rotate { to } => RedoAct::Rotate { to: to.clone() },
            FileAct::Repair { length, checksum } => RedoAct::Repair { length: *length, checksum: *checksum },
        };
        Redo { op: effect.op, file: effect.file.clone(), generation: effect.generation, act }
    }
}

impl TryFrom<Redo> for FileEffect {
    type Error = String;

    fn try_from(redo: Redo) -> Result<FileEffect, String> {
        let act = match redo.act {
            RedoAct::Write { offset, data_b64 } => {
                let data = STANDARD
                    .decode(&data_b64)
                    .map_err(|error| format!("the data of op {} in `redo` is no base64: {error}", redo.op))?;
                FileAct::Write { offset, data: data.into() }
            }
            RedoAct::Delete => FileAct::Delete,
            RedoAct::Rotate { to } => {
                let to = Name::file(&to).map_err(|refusal| {
                    format!("the file {to:?} in `redo` has a bad name: {}", refusal.message)
                })?;
                FileAct::Rotate { to }
            }
            RedoAct::Repair { length, checksum } => FileAct::Repair { length, checksum },
        };
        Ok(FileEffect { op: redo.op, file: redo.file, generation: redo.generation, act })
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for ServerId {
    type Err = String;

    /// Reads exactly 32 hex digits in lower case.
    fn from_str(text: &str) -> Result<ServerId, String> {
        let digits = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match u128::from_str_radix(text, 16) {
            Ok(id) if digits => Ok(ServerId(id)),
            _ => Err("the id of a server is 32 hex digits in lower case".into()),
        }
    }
}

impl Serialize for ServerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ServerId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Ask, Durability, EndReason, Mode, Terms};
    use crate::identity::{Nonce, SessionId};
    use crate::limits::Limits;
    use crate::outcome::{Asked, Offer, Outcome};
    use crate::state::{ReplyPart, SectionPart, StagedFilePart, StagedKeyPart, What};
    use crate::time::Time;
    use arcstr::ArcStr;
    use std::sync::Arc;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn raw(text: &str) -> Box<serde_json::value::RawValue> {
        serde_json::value::RawValue::from_string(text.into()).unwrap()
    }

    fn sample() -> Snapshot {
        let head = Head {
            op: 17,
            term: 2,
            at: Time::from_micros(5_000_001),
            last_token: 3,
            last_client: 1,
            digest: 0xfeed_f00d,
            durability: Durability::Sync,
            limits: Limits::default(),
            unchecked_waits: 0,
            history_after: 11,
        };
        let session = SessionPart {
            client: 1,
            session: SessionId(0xabc),
            nonce: Nonce(0xdef),
            name: ArcStr::from("worker \"1\"\n"),
            label: ArcStr::from(""),
            ttl_ms: 10_000,
            opened: Time::ZERO,
            floor: 1,
            acks: false,
            ended: Some((Time::from_millis(7), EndReason::Closed)),
            replies: vec![ReplyPart {
                id: 1,
                fingerprint: u64::MAX,
                outcome: Outcome::Set { version: 9, staged: false },
            }],
            waits: vec![],
            losses: vec![],
        };
        let grant = GrantPart {
            token: 3,
            client: 1,
            owner: ArcStr::from("o"),
            terms: Terms { label: ArcStr::from("l"), ..Terms::default() },
            asks: Ask { key: name("a"), mode: Mode::Exclusive }.into(),
            op: 12,
            since: Time::from_millis(6),
            deadline: None,
            hold_deadline: Some(Time::from_millis(60)),
            asked: Some(Asked {
                client: 1,
                reason: ArcStr::from("r"),
                deadline: Some(Time::from_millis(50)),
                op: 12,
            }),
            offered: Some(Offer { client: 1, op: 13 }),
            section: Some(SectionPart {
                keys: vec![
                    StagedKeyPart {
                        key: name("a"),
                        version: 13,
                        value: Some(raw("null")),
                        ttl_ms: Some(5),
                        bound: true,
                    },
                    StagedKeyPart { key: name("b"), version: 14, value: None, ttl_ms: None, bound: false },
                ],
                files: vec![StagedFilePart {
                    file: name("a"),
                    generation: 15,
                    offset: 0,
                    data_b64: vec!["aGk=".into(), String::new()],
                }],
            }),
        };
        let keys = ["{\"b\": [1,\n 2.50]}", "1e999", "null"].map(raw).into_iter().enumerate();
        let keys = keys.map(|(i, value)| KeyPart {
            key: name(&format!("k{i}")),
            version: 9,
            value,
            deadline: (i == 1).then_some(Time::from_millis(8)),
            bound: (i == 2).then_some(1),
        });
        let file = FilePart { file: name("logs/f"), generation: 13, length: 2, checksum: 7, fault: None };
        let set = WatchEvent { op: 12, name: name("k0"), what: What::KeySet { version: 12 } };
        let act = FileAct::Write { offset: 0, data: Arc::from(&b"\xff\0"[..]) };
        let effects = [act, FileAct::Delete, FileAct::Rotate { to: name("g") }].map(|act| FileEffect {
            op: 13,
            file: name("logs/f"),
            generation: 13,
            act,
        });
        Snapshot {
            server: ServerId(0x11),
            clean: true,
            parts: Parts {
                head,
                sessions: vec![session],
                grants: vec![grant],
                delays: vec![],
                waits: vec![],
                unserved: vec![],
                keys: keys.collect(),
                files: vec![file],
                history: [set].into_iter().collect(),
                contention: vec![],
                holds: vec![],
            },
            redo: effects.to_vec(),
        }
    }

    fn bytes(snapshot: &Snapshot) -> Vec<u8> {
        let mut out = Vec::new();
        encode(snapshot, &mut out).unwrap();
        out
    }

    /// The text with its last line made right again.
    fn resealed(text: &str) -> Vec<u8> {
        let body = &text.as_bytes()[..text.len() - LAST_LINE];
        [body, &last_line(crc32c::crc32c(body))].concat()
    }

    #[test]
    fn a_snapshot_read_and_written_again_has_the_same_bytes() {
        let first = bytes(&sample());
        let read = decode(&first).unwrap();
        assert_eq!(String::from_utf8(bytes(&read)).unwrap(), String::from_utf8(first).unwrap());
        assert_eq!(read.redo, sample().redo);
    }

    #[test]
    fn any_bit_flipped_and_any_cut_is_noticed() {
        let good = bytes(&sample());
        for end in 0..good.len() {
            assert!(decode(&good[..end]).is_err(), "a cut to {end} bytes was taken");
        }
        for bit in 0..good.len() * 8 {
            let mut damaged = good.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged).is_err(), "bit {bit} was flipped and not noticed");
        }
    }

    #[test]
    fn another_format_is_named_whatever_else_it_holds() {
        for format in [u64::from(FORMAT) + 1, 1] {
            let text = format!("{{\"format\":{format},\n\"new\":[]}}");
            assert_eq!(decode(text.as_bytes()).unwrap_err(), Fault::OtherFormat { format });
        }
        assert!(decode(b"{\"format\":99999999999999999999,").is_err());
    }

    #[test]
    fn nested_a_million_deep_is_refused_without_a_stack_overflow() {
        let text = String::from_utf8(bytes(&sample())).unwrap();
        let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        for hostile in [
            text.replace("null}", &format!("{deep}}}")),
            text.replace("\"head\":{", &format!("\"head\":{deep},{{")),
        ] {
            assert_ne!(hostile, text);
            assert!(matches!(decode(&resealed(&hostile)), Err(Fault::Damaged(_))));
        }
    }

    /// Found by fuzzing: the replies of a session and what is staged in a section were taken in any order, unlike all else,
    /// and written in another.
    #[test]
    fn what_stands_inside_a_session_or_a_section_is_in_order_too() {
        let refused = |change: fn(&mut Parts)| {
            let mut snapshot = sample();
            change(&mut snapshot.parts);
            match decode(&bytes(&snapshot)) {
                Err(Fault::Damaged(sentence)) => assert!(sentence.contains("out of order"), "{sentence}"),
                other => panic!("it was taken: {other:?}"),
            }
        };
        refused(|parts| {
            let reply = parts.sessions[0].replies[0].clone();
            parts.sessions[0].replies = vec![ReplyPart { id: 2, ..reply.clone() }, reply];
        });
        refused(|parts| {
            let section = parts.grants[0].section.as_mut().unwrap();
            section.keys.insert(0, section.keys.last().unwrap().clone());
        });
        refused(|parts| {
            let section = parts.grants[0].section.as_mut().unwrap();
            section.files.insert(0, section.files.last().unwrap().clone());
        });
    }

    #[test]
    fn what_is_given_twice_or_unknown_or_out_of_order_is_refused() {
        let text = String::from_utf8(bytes(&sample())).unwrap();
        for (from, to, why) in [
            ("\"clean\":true,", "\"clean\":true,\"clean\":true,", "duplicate field"),
            ("\"clean\":true,", "\"clean\":true,\"x\":1,", "unknown field"),
            ("\"key\":\"k1\"", "\"key\":\"k0\"", "given twice"),
            (
                "\"file\":\"logs/f\",\"generation\":13,\"length\"",
                "\"file\":\"../f\",\"generation\":13,\"length\"",
                "bad name",
            ),
            ("\"to\":\"g\"", "\"to\":\"/g\"", "bad name"),
            ("{\"op\":13,", "{\"op\":18,", "out of order"),
            ("\"data_b64\":\"", "\"data_b64\":\"*", "no base64"),
        ] {
            let hostile = text.replace(from, to);
            assert_ne!(hostile, text, "{from} was not found in {text}");
            match decode(&resealed(&hostile)) {
                Err(Fault::Damaged(sentence)) => assert!(sentence.contains(why), "{sentence}"),
                other => panic!("{to} was taken: {other:?}"),
            }
        }
    }
}
