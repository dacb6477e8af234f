//! Atomic sections: what is written under an atomic grant, seen by its holder alone until the release.
//!
//! ```text
//!   set, delete, transaction, append_file ── judged by the own view ──► Section ── release ──► keys, files
//!                                                                          └── any other end of the grant: dropped
//! ```
//!
//! A write is judged when it is staged, against the section's own view: what is committed, with what is staged before it.
//! That view holds until the release, since every name that is staged is held exclusively by the grant, so nobody else
//! changes the key or the file of that name. What can change meanwhile is judged again, all of it before anything is
//! applied: caps that others have used up, a file that got a fault, a file that is now a directory of another. If
//! anything is in the way, the release is refused, and grant and section stay as they are.
//!
//! Until the release a staged key's version, and the generation of a file that the section creates, is the command that
//! staged it. The file keeps that generation, so that files created by one release have different ones; the keys all get
//! the command of the release as their version.

use super::keys::{names_between, names_from, version_mismatch};
use super::parts::{SectionPart, StagedFilePart, StagedKeyPart};
use super::{Grant, Key, State};
use crate::command::{Ask, Change, Compare, Life, Mode};
use crate::identity::{Op, SessionId, Token};
use crate::kind::{Detail, Kind, Refusal};
use crate::name::Name;
use crate::outcome::{Effect, Outcome};
use arcstr::ArcStr;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a staged write counts beside its name and its value or data, in bytes: about what it takes in memory.
const WRITE_WEIGHT: u64 = 64;

/// What was written under an atomic grant.
#[derive(Debug, Default)]
pub struct Section {
    keys: BTreeMap<Name, StagedKey>,
    files: BTreeMap<Name, StagedFile>,
    /// Appends of all files together.
    appends: u64,
    bytes: u64,
}

/// A key that is staged: the last write of it.
#[derive(Clone, Debug)]
pub struct StagedKey {
    /// What the release does to it; if it is to live for a time, that time begins then.
    pub change: Change,
    /// The command that staged it: its version until the release.
    pub version: Op,
}

/// A key as a reader sees it.
#[derive(Clone, Copy, Debug)]
pub enum KeySeen<'a> {
    /// As it is committed.
    Committed(&'a Key),
    /// As the section has it under whose grant it is read.
    Staged(&'a StagedKey),
}

/// What is staged of a file.
#[derive(Debug)]
pub struct StagedFile {
    /// The file's generation; if the section creates it, the command that staged its first append.
    pub generation: Op,
    /// Where the staged bytes begin: the committed length of the file.
    pub offset: u64,
    /// How many they are.
    bytes: u64,
    /// What each append gave.
    appends: Vec<Arc<[u8]>>,
}

impl Section {
    /// How many writes the release will apply: keys, and appends.
    pub fn writes(&self) -> u64 {
        self.keys.len() as u64 + self.appends
    }

    /// What it counts in the caps, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is staged of a key.
    pub fn key(&self, key: &str) -> Option<&StagedKey> {
        self.keys.get(key)
    }

    /// What is staged of keys, in the order of their names.
    fn changes(&self) -> impl Iterator<Item = &Change> {
        self.keys.values().map(|staged| &staged.change)
    }

    /// What is staged of a file.
    pub fn file(&self, file: &str) -> Option<&StagedFile> {
        self.files.get(file)
    }

    /// Whether the release will write to files.
    pub fn has_appends(&self) -> bool {
        self.appends > 0
    }

    fn put_key(&mut self, change: Change, version: Op) {
        self.bytes += key_weight(&change);
        if let Some(old) = self.keys.insert(change.key.clone(), StagedKey { change, version }) {
            self.bytes -= key_weight(&old.change);
        }
    }

    fn put_append(&mut self, file: &Name, generation: Op, offset: u64, data: &Arc<[u8]>) {
        self.bytes += append_weight(file, data.len());
        self.appends += 1;
        let staged = self.files.entry(file.clone()).or_insert_with(|| StagedFile {
            generation,
            offset,
            bytes: 0,
            appends: Vec::new(),
        });
        staged.bytes += data.len() as u64;
        staged.appends.push(data.clone());
    }

    pub(super) fn part(&self) -> SectionPart {
        let raw = |value: &ArcStr| {
            RawValue::from_string(value.to_string()).expect("a value was JSON when it was staged")
        };
        SectionPart {
            keys: self
                .keys
                .iter()
                .map(|(key, StagedKey { change, version })| StagedKeyPart {
                    key: key.clone(),
                    version: *version,
                    value: change.value.as_ref().map(raw),
                    ttl_ms: change.life.ttl_ms,
                    bound: change.life.bound,
                })
                .collect(),
            files: self
                .files
                .iter()
                .map(|(file, staged)| StagedFilePart {
                    file: file.clone(),
                    generation: staged.generation,
                    offset: staged.offset,
                    data_b64: staged.appends.iter().map(|data| STANDARD.encode(data)).collect(),
                })
                .collect(),
        }
    }

    /// Builds a section from its part; `op` is the last command applied.
    fn from_part(part: SectionPart, op: Op) -> Result<Section, String> {
        let mut section = Section::default();
        let given = |op_of: Op, name: &Name| match op_of {
            0 => Err(format!("{name:?} was staged by no command")),
            op_of if op_of > op => Err(format!("{name:?} was staged by a command that was never given")),
            _ => Ok(()),
        };
        for StagedKeyPart { key, version, value, ttl_ms, bound } in part.keys {
            given(version, &key)?;
            let value = value.map(|value| ArcStr::from(Box::<str>::from(value)));
            if section.key(&key).is_some() {
                return Err(format!("key {key:?} is staged twice"));
            }
            section.put_key(Change { key, value, life: Life { ttl_ms, bound } }, version);
        }
        for StagedFilePart { file, generation, offset, data_b64 } in part.files {
            given(generation, &file)?;
            if section.file(&file).is_some() {
                return Err(format!("file {file:?} is staged twice"));
            }
            if data_b64.is_empty() {
                return Err(format!("file {file:?} is staged without an append"));
            }
            for data in data_b64 {
                let data = STANDARD
                    .decode(data)
                    .map_err(|error| format!("the data staged of file {file:?} is no base64: {error}"))?;
                section.put_append(&file, generation, offset, &data.into());
            }
        }
        match section.writes() {
            0 => Err("nothing is staged in it".into()),
            _ => Ok(section),
        }
    }
}

impl StagedFile {
    /// How long the file is with what is staged, in bytes.
    pub fn length(&self) -> u64 {
        self.offset + self.bytes
    }

    /// The staged bytes of `[from, to)`, by their place in the file.
    pub fn slice(&self, from: u64, to: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = self.offset;
        for data in &self.appends {
            let end = at + data.len() as u64;
            let (begin, stop) = (from.clamp(at, end), to.clamp(at, end));
            if begin < stop {
                let place = |position: u64| usize::try_from(position - at).expect("it lies inside the data");
                out.extend_from_slice(&data[place(begin)..place(stop)]);
            }
            at = end;
        }
        out
    }

    /// The checksum that goes on from that of the bytes before.
    pub fn checksum(&self, before: u32) -> u32 {
        self.appends.iter().fold(before, |crc, data| crc32c::crc32c_append(crc, data))
    }

    /// All of it, to be written at once.
    fn joined(self) -> Arc<[u8]> {
        match <[Arc<[u8]>; 1]>::try_from(self.appends) {
            Ok([only]) => only,
            Err(appends) => appends.concat().into(),
        }
    }
}

impl State {
    /// What is staged under a grant.
    pub fn section(&self, token: Token) -> Option<&Section> {
        self.grants.get(token)?.section()
    }

    /// The key as who reads under that grant sees it, if it exists in that view.
    pub fn key_seen(&self, under: Option<Token>, key: &str) -> Option<KeySeen<'_>> {
        match under.and_then(|token| self.section(token)).and_then(|section| section.key(key)) {
            Some(staged) => staged.change.value.is_some().then_some(KeySeen::Staged(staged)),
            None => self.key(key).map(KeySeen::Committed),
        }
    }

    /// As [`keys`](State::keys), as who reads under that grant sees them.
    pub fn keys_seen<'a>(
        &'a self,
        under: Option<Token>,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Name, KeySeen<'a>)> {
        let section = under.and_then(|token| self.section(token));
        let staged = section.map(|section| names_from(&section.keys, prefix, after));
        merged(self.keys(prefix, after), staged.into_iter().flatten())
    }

    /// As [`key_range`](State::key_range), as who reads under that grant sees them.
    pub fn key_range_seen<'a>(
        &'a self,
        under: Option<Token>,
        from: &'a str,
        to: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Name, KeySeen<'a>)> {
        let section = under.and_then(|token| self.section(token));
        let staged = section.map(|section| names_between(&section.keys, from, to, after));
        merged(self.key_range(from, to, after), staged.into_iter().flatten())
    }

    /// The token, if what the caller writes under it is staged. What is wrong with the token is told elsewhere.
    pub(super) fn stages(
        &self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Option<Token>,
    ) -> Option<Token> {
        let grant = self.grant_of(session, holder, token?).ok()?;
        token.filter(|_| grant.terms().atomic)
    }

    /// Whether the caller may stage a write of that name: it holds it exclusively, and asks for no less.
    pub(super) fn may_stage(
        &self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Token,
        key: &Name,
    ) -> Result<(), Refusal> {
        self.holds(session, holder, token, key)?;
        let conversion = self.grants[token].conversion().map(|op| &self.waits[&op]);
        let less = |ask: &Ask| ask.key == *key && ask.mode != Mode::Exclusive;
        if conversion.is_some_and(|wait| wait.asks.iter().any(less)) {
            let text =
                format!("lock {key:?} is being converted to less than exclusive; cancel that wait first");
            return Err(super::not_holder(text));
        }
        Ok(())
    }

    /// Whether locks of a grant may be converted: where something is staged, the lock must stay exclusive.
    pub(super) fn keeps_staged(&self, token: Token, asks: &[Ask]) -> Result<(), Refusal> {
        let Some(section) = self.section(token) else { return Ok(()) };
        let staged = |key: &Name| section.key(key).is_some() || section.file(key).is_some();
        match asks.iter().find(|ask| ask.mode != Mode::Exclusive && staged(&ask.key)) {
            None => Ok(()),
            Some(Ask { key, .. }) => {
                let text = format!(
                    "writes of {key:?} are staged under token {token}, so its lock must stay exclusive until the release"
                );
                Err(Refusal::new(Kind::InvalidParams, text))
            }
        }
    }

    /// The version of a key in the view of a section, 0 if it does not exist there.
    fn staged_version(&self, token: Token, key: &str) -> Op {
        match self.section(token).and_then(|section| section.key(key)) {
            Some(StagedKey { change: Change { value: None, .. }, .. }) => 0,
            Some(staged) => staged.version,
            None => self.key(key).map_or(0, |key| key.version),
        }
    }

    /// `set` and `delete`, once it is clear that the caller may stage the key.
    pub(super) fn stage_change(
        &mut self,
        token: Token,
        change: Change,
        if_version: Option<Op>,
    ) -> Result<Outcome, Refusal> {
        self.check_value(&change)?;
        let version = self.staged_version(token, &change.key);
        if let Some(asked) = if_version.filter(|asked| *asked != version) {
            return Err(version_mismatch(&change.key, version, asked).with(Detail::Version { version }));
        }
        self.stage_keys(token, std::slice::from_ref(&change))?;
        Ok(match change.value {
            Some(_) => Outcome::Set { version: self.head.op, staged: true },
            None => Outcome::Deleted { version: Some(version).filter(|version| *version > 0), staged: true },
        })
    }

    /// Stages all changes of a transaction, or none. What it compares must not change before the release either, so the
    /// grant must hold it, exclusively or shared.
    pub(super) fn stage_transaction(
        &mut self,
        token: Token,
        compare: &[Compare],
        apply: &[Change],
    ) -> Result<Outcome, Refusal> {
        for Compare { key, version: asked } in compare {
            if !self.grants[token].keeps(key) {
                let text = format!(
                    "token {token} does not hold lock {key:?}, so the key could change before the release; acquire it \
                     with the others, or compare the key in a transaction of its own"
                );
                return Err(super::not_holder(text));
            }
            let version = self.staged_version(token, key);
            if version != *asked {
                return Err(version_mismatch(key, version, *asked)
                    .with(Detail::VersionOf { key: key.clone(), version }));
            }
        }
        for change in apply {
            self.check_value(change)?;
        }
        self.stage_keys(token, apply)?;
        Ok(Outcome::Applied { version: self.head.op, staged: true })
    }

    pub(super) fn stage_append(
        &mut self,
        token: Token,
        name: &Name,
        data: &Arc<[u8]>,
    ) -> Result<Outcome, Refusal> {
        self.check_data(data)?;
        let (op, none) = (self.head.op, Section::default());
        let section = self.section(token).unwrap_or(&none);
        let before = section.file(name).map_or(0, |staged| staged.bytes);
        let created = || section.files.keys().filter(|other| *other != name && self.file(other).is_none());
        self.check_append(name, before + data.len() as u64, created().count() as u64)?;
        let (generation, offset) = self.file(name).map_or((op, 0), |file| (file.generation, file.length));
        if self.file(name).is_none() {
            beside_each_other(name, created())?;
        }
        self.check_staging(section, 1, append_weight(name, data.len()), 0)?;
        let section = self.section_to_write(token, append_weight(name, data.len()), 0);
        section.put_append(name, generation, offset, data);
        let length = section.files[name].length();
        Ok(Outcome::Appended { offset: length - data.len() as u64, length, staged: true })
    }

    fn stage_keys(&mut self, token: Token, changes: &[Change]) -> Result<(), Refusal> {
        let none = Section::default();
        let section = self.section(token).unwrap_or(&none);
        let (mut writes, mut more, mut less) = (0, 0, 0);
        for change in changes {
            more += key_weight(change);
            match section.key(&change.key) {
                Some(old) => less += key_weight(&old.change),
                None => writes += 1,
            }
        }
        if changes.iter().any(|change| change.value.is_some()) {
            let stays =
                |staged: &&Change| changes.binary_search_by(|change| change.key.cmp(&staged.key)).is_err();
            self.check_caps(section.changes().filter(stays).chain(changes))?;
        }
        self.check_staging(section, writes, more, less)?;
        let version = self.head.op;
        let section = self.section_to_write(token, more, less);
        for change in changes {
            section.put_key(change.clone(), version);
        }
        Ok(())
    }

    /// The section of a grant, which from here weighs `more` and no longer `less`.
    fn section_to_write(&mut self, token: Token, more: u64, less: u64) -> &mut Section {
        self.staged_bytes = self.staged_bytes + more - less;
        self.grants.get_mut(token).expect("who stages holds").rare_mut().section.get_or_insert_default()
    }

    /// Whether a section can take more: so many writes, of which some bytes take the place of others.
    fn check_staging(&self, section: &Section, writes: u64, more: u64, less: u64) -> Result<(), Refusal> {
        let limits = &self.head.limits;
        if writes > 0 && section.writes() + writes > limits.section_writes {
            let max = limits.section_writes;
            let text = format!(
                "{max} writes are staged at most under one grant; release it and go on in another, or raise \
                 --max-section-writes"
            );
            return Err(Refusal::limit("section_writes", max, text));
        }
        if more > less && section.bytes + more - less > limits.section_bytes {
            let max = limits.section_bytes;
            let text = format!(
                "{max} bytes are staged at most under one grant; release it and go on in another, or raise \
                 --max-section-bytes"
            );
            return Err(Refusal::limit("section_bytes", max, text));
        }
        if more > less && self.staged_bytes + more - less > limits.staged_bytes {
            let max = limits.staged_bytes;
            let text = format!(
                "all grants together have staged {max} bytes; try again when some are released, or raise \
                 --max-staged-bytes"
            );
            return Err(Refusal::limit("staged_bytes", max, text));
        }
        Ok(())
    }

    /// Applies what is staged under a grant that is being released, all of it; gives the number of writes.
    ///
    /// # Errors
    /// What stands in the way of any of it. Nothing has changed.
    pub(super) fn commit_section(&mut self, token: Token, effects: &mut Vec<Effect>) -> Result<u64, Refusal> {
        let Some(section) = self.section(token) else { return Ok(0) };
        self.check_commit(token, section)?;
        let section = self.drop_section(token).expect("it was looked at");
        let writes = section.writes();
        // A key that is bound goes with the session that releases it, whoever staged it before a take-over.
        let client = self.sessions[&self.grants[token].session].client;
        let half = if crate::bug::planted("half_a_section") { 1 } else { usize::MAX };
        for staged in section.changes().take(half) {
            self.apply_change(staged, client);
        }
        for (file, staged) in section.files {
            let generation = staged.generation;
            self.put_append(&file, generation, &staged.joined(), effects);
        }
        Ok(writes)
    }

    fn check_commit(&self, token: Token, section: &Section) -> Result<(), Refusal> {
        let grant = &self.grants[token];
        let names = section.keys.keys().chain(section.files.keys());
        if let Some(name) = names.into_iter().find(|name| !grant.guards(name)) {
            let text = format!(
                "what is staged of {name:?} cannot be released, since token {token} does not hold that lock \
                 exclusively any more; abandon the grant"
            );
            return Err(super::not_holder(text));
        }
        self.check_caps(section.changes())?;
        let mut created = 0;
        for (name, staged) in &section.files {
            self.check_append(name, staged.bytes, created)?;
            let stands = match self.file(name) {
                None => {
                    created += 1;
                    staged.offset == 0
                }
                Some(file) => (file.generation, file.length) == (staged.generation, staged.offset),
            };
            if !stands {
                let text = format!(
                    "file {name:?} was changed since appends to it were staged; abandon the grant and begin anew"
                );
                return Err(Refusal::new(Kind::FileFault, text));
            }
        }
        Ok(())
    }

    /// Takes what is staged off a grant.
    pub(super) fn drop_section(&mut self, token: Token) -> Option<Box<Section>> {
        let section = self.grants.get_mut(token)?.rare_if_any()?.section.take()?;
        self.staged_bytes -= section.bytes;
        Some(section)
    }

    /// Whether a file may be deleted or rotated under a grant, or with `repair` repaired: an atomic one stages appends only.
    pub(super) fn may_change_file(&self, token: Token, file: &Name, repair: bool) -> Result<(), Refusal> {
        let grant = &self.grants[token];
        let staged = self.section(token).is_some_and(|section| section.file(file).is_some());
        if staged && repair {
            let text = format!(
                "appends to file {file:?} are staged under token {token}; abandon it, acquire the lock again, and \
                 repair the file before anything is staged"
            );
            return Err(Refusal::new(Kind::InvalidParams, text));
        }
        if grant.terms().atomic && !repair {
            let text = format!(
                "under an atomic grant a file can be appended to, but not be deleted or rotated; do that with {file:?} \
                 under a plain grant"
            );
            return Err(Refusal::new(Kind::Unsupported, text));
        }
        Ok(())
    }

    /// Puts the section of a part on a grant that is being built from one.
    pub(super) fn add_section(&mut self, part: SectionPart, grant: &mut Grant) -> Result<(), String> {
        let section = Section::from_part(part, self.head.op)?;
        if !grant.terms().atomic {
            return Err("it has a section and is not atomic".into());
        }
        let names = section.keys.keys().chain(section.files.keys());
        if let Some(name) = names.into_iter().find(|name| !grant.guards(name)) {
            return Err(format!("{name:?} is staged and its lock is not held exclusively"));
        }
        self.staged_bytes += section.bytes;
        grant.rare_mut().section = Some(Box::new(section));
        Ok(())
    }
}

impl Grant {
    /// How it holds a lock, if it does.
    fn held_as(&self, key: &Name) -> Option<Mode> {
        let place = self.asks.binary_search_by(|ask| ask.key.cmp(key)).ok()?;
        Some(self.asks[place].mode)
    }

    /// Whether it holds that lock exclusively.
    fn guards(&self, key: &Name) -> bool {
        self.held_as(key) == Some(Mode::Exclusive)
    }

    /// Whether nobody else writes the key of that name while it is held.
    fn keeps(&self, key: &Name) -> bool {
        matches!(self.held_as(key), Some(Mode::Exclusive | Mode::Shared))
    }
}

/// Two sorted runs of keys as one: what is staged takes the place of what is committed.
fn merged<'a>(
    committed: impl Iterator<Item = (&'a Name, &'a Key)>,
    staged: impl Iterator<Item = (&'a Name, &'a StagedKey)>,
) -> impl Iterator<Item = (&'a Name, KeySeen<'a>)> {
    let (mut committed, mut staged) = (committed.peekable(), staged.peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (committed.peek(), staged.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((committed, _)), Some((staged, _))) => committed.cmp(staged),
            };
            if order.is_lt() {
                return committed.next().map(|(name, key)| (name, KeySeen::Committed(key)));
            }
            if order.is_eq() {
                committed.next();
            }
            let (name, key) = staged.next()?;
            if key.change.value.is_some() {
                return Some((name, KeySeen::Staged(key)));
            }
        }
    })
}

/// Whether a file can be created beside others that will be: no file is a directory of another.
fn beside_each_other<'a>(name: &Name, others: impl Iterator<Item = &'a Name>) -> Result<(), Refusal> {
    let inside = |inner: &Name, outer: &Name| {
        inner.strip_prefix(outer.as_str()).is_some_and(|rest| rest.starts_with('/'))
    };
    for other in others {
        if inside(name, other) || inside(other, name) {
            let text = format!(
                "file {name:?} cannot exist beside {other:?}, which is staged: no file is a directory of another"
            );
            return Err(Refusal::new(Kind::BadName, text));
        }
    }
    Ok(())
}

fn key_weight(Change { key, value, .. }: &Change) -> u64 {
    WRITE_WEIGHT + key.len() as u64 + value.as_ref().map_or(0, |value| value.len() as u64)
}

fn append_weight(file: &Name, bytes: usize) -> u64 {
    WRITE_WEIGHT + file.len() as u64 + bytes as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Call, Command, Patience, Request, Terms};
    use crate::identity::Nonce;
    use crate::outcome::{FileAct, FileEffect};
    use crate::snapshot::{self, ServerId, Snapshot};
    use crate::state::GrantPart;
    use crate::time::Time;

    const ALICE: SessionId = SessionId(7);

    /// A state that is given one request after another.
    struct Rig {
        state: State,
        id: u64,
        effects: Vec<Effect>,
    }

    impl Rig {
        fn new() -> Rig {
            let open = Command::OpenSession {
                nonce: Nonce(1),
                session: ALICE,
                name: String::new(),
                label: String::new(),
                ttl_ms: 10_000,
            };
            let mut state = State::new();
            state.apply(1, Time::ZERO, &open, &mut Vec::new());
            Rig { state, id: 0, effects: Vec::new() }
        }

        fn call(&mut self, call: Call) -> Outcome {
            self.id += 1;
            let request = Request { session: ALICE, id: self.id, ack: 0, got: Vec::new(), call };
            let (op, at) = (self.state.op() + 1, self.state.at());
            self.state.apply(op, at, &Command::Request(request), &mut self.effects)
        }

        fn acquire(&mut self, keys: &[&str], atomic: bool) -> Token {
            let ask = |key: &&str| Ask { key: name(key), mode: Mode::Exclusive };
            let (asks, terms) = (keys.iter().map(ask).collect(), Terms { atomic, ..Terms::default() });
            match self.call(Call::Acquire { asks, wait: Patience::Try, owner: String::new(), terms }) {
                Outcome::Granted { token, .. } => token,
                other => panic!("{other:?}"),
            }
        }

        fn set(&mut self, token: Token, key: &str, value: &str, life: Life) -> Outcome {
            let (key, value) = (name(key), value.into());
            self.call(Call::Set { key, value, if_version: None, life, token: Some(token), holder: None })
        }

        fn append(&mut self, token: Token, file: &str, data: &str) -> Outcome {
            let data = data.as_bytes().into();
            self.call(Call::AppendFile { file: name(file), data, token, holder: None })
        }

        fn release(&mut self, token: Token) -> Outcome {
            self.call(Call::Release { token, holder: None })
        }

        /// A section with something of everything, on top of a file that was there.
        fn staged() -> (Rig, Token) {
            let mut rig = Rig::new();
            let token = rig.acquire(&["old"], false);
            rig.append(token, "old", "before ");
            rig.set(token, "old", "1", Life::default());
            rig.release(token);
            let token = rig.acquire(&["a", "b", "new", "old"], true);
            rig.set(token, "a", "null", Life { ttl_ms: Some(500), bound: false });
            rig.set(token, "b", "[1, 2.50]", Life { ttl_ms: None, bound: true });
            rig.append(token, "old", "one ");
            rig.append(token, "new", "");
            rig.append(token, "old", "two ");
            rig.append(token, "new", "\u{0}");
            let holder = None;
            rig.call(Call::Delete { key: name("old"), if_version: None, token: Some(token), holder });
            rig.effects.clear();
            (rig, token)
        }
    }

    fn name(text: &str) -> Name {
        Name::file(text).unwrap()
    }

    fn bytes(state: &State) -> Vec<u8> {
        let snapshot = Snapshot { server: ServerId(1), clean: true, parts: state.parts(), redo: Vec::new() };
        let mut out = Vec::new();
        snapshot::encode(&snapshot, &mut out).unwrap();
        out
    }

    #[test]
    fn a_section_that_was_in_a_snapshot_is_released_like_one_that_was_not() {
        let (mut rig, token) = Rig::staged();
        let first = bytes(&rig.state);
        let text = String::from_utf8(first.clone()).unwrap();
        assert!(text.contains("\"section\":{\"keys\":[{\"key\":\"a\""), "people can read it: {text}");
        let state = State::from_parts(snapshot::decode(&first).unwrap().parts).unwrap();
        assert_eq!(bytes(&state), first);
        assert_eq!(state.counts(), rig.state.counts());
        let mut other = Rig { state, id: rig.id, effects: Vec::new() };
        let released = rig.release(token);
        assert_eq!(released, other.release(token));
        assert!(matches!(released, Outcome::Released { writes: 7, .. }), "{released:?}");
        assert_eq!(rig.effects, other.effects);
        assert_eq!(bytes(&rig.state), bytes(&other.state));
        assert_eq!(rig.state.counts().iter().find(|(name, _)| *name == "staged_bytes").unwrap().1, 0);
    }

    #[test]
    fn a_release_writes_each_file_once_and_new_files_have_generations_of_their_own() {
        let (mut rig, token) = Rig::staged();
        rig.append(token, "a", "x");
        rig.release(token);
        let op = rig.state.op();
        let written = |effect: &Effect| match effect {
            Effect::File(FileEffect { op, file, generation, act: FileAct::Write { offset, data } }) => {
                (*op, file.to_string(), *generation, *offset, String::from_utf8(data.to_vec()).unwrap())
            }
            other => panic!("{other:?}"),
        };
        let written: Vec<_> = rig.effects.iter().map(written).collect();
        let [old, new, a] = ["old", "new", "a"].map(|file| rig.state.file(file).unwrap().generation);
        assert_eq!(
            written,
            [
                (op, "a".into(), a, 0, "x".into()),
                (op, "new".into(), new, 0, "\u{0}".into()),
                (op, "old".into(), old, 7, "one two ".into()),
            ]
        );
        assert!(old < new && new < a && a < op);
    }

    #[test]
    fn any_slice_of_what_is_staged_is_found_by_its_place_in_the_file() {
        let (rig, token) = Rig::staged();
        let staged = rig.state.section(token).unwrap().file("old").unwrap();
        let whole = b"before one two ";
        assert_eq!(staged.length(), whole.len() as u64);
        for from in 0..=whole.len() {
            for to in from..=whole.len() {
                assert_eq!(staged.slice(from as u64, to as u64), &whole[from.max(7)..to.max(7)]);
            }
        }
        let before = rig.state.file("old").unwrap().checksum;
        assert_eq!(staged.checksum(before), crc32c::crc32c(whole));
    }

    #[test]
    fn parts_that_contradict_a_section_are_refused() {
        let (rig, _) = Rig::staged();
        let refused = |change: &dyn Fn(&mut GrantPart), why: &str| {
            let mut parts = rig.state.parts();
            change(&mut parts.grants[0]);
            let fault = State::from_parts(parts).unwrap_err();
            assert!(fault.contains(why), "{fault:?} does not say {why:?}");
        };
        refused(&|grant| grant.terms.atomic = false, "is not atomic");
        refused(&|grant| grant.asks = grant.asks[..3].into(), "is not held exclusively");
        refused(&|grant| grant.asks[0].mode = Mode::Shared, "is not held exclusively");
        let section = |change: &dyn Fn(&mut SectionPart), why: &str| {
            refused(&|grant| change(grant.section.as_mut().unwrap()), why);
        };
        section(&|part| part.keys[0].version = 999, "never given");
        section(&|part| part.files[0].generation = 0, "by no command");
        section(&|part| part.files[0].data_b64[0] = "*".into(), "no base64");
        section(&|part| part.files[0].data_b64.clear(), "without an append");
        section(&|part| part.keys[1].key = name("a"), "staged twice");
        section(&|part| (part.keys.clear(), part.files.clear()).0, "nothing is staged");
    }
}
