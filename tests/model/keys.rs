//! Keys, files, what guards them, and what is staged for them.

use super::model::{Model, Out, Said, refused};
use arcstr::ArcStr;
use std::collections::BTreeMap;
use tenure::command::{Ask, Call, Change, Compare, Life, Mode};
use tenure::identity::SessionId;
use tenure::state::{KeyEnd, What as Happened};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MKey {
    pub(crate) value: String,
    pub(crate) version: u64,
    /// When its own time is over.
    pub(crate) until: Option<u64>,
    /// The number of the session that it is bound to.
    pub(crate) bound: Option<u64>,
    /// It is over for everybody, for good, and was not cleaned up yet.
    pub(crate) gone: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct MFile {
    pub(crate) generation: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) fault: bool,
}

/// One write of a section, which takes effect at the release or not at all.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Staged {
    pub(crate) op: u64,
    pub(crate) what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    Set {
        key: String,
        value: String,
        life: Life,
    },
    Delete {
        key: String,
    },
    /// With the length of the file before everything that is staged, and its generation if it is there.
    Append {
        file: String,
        data: Vec<u8>,
        offset: u64,
        generation: Option<u64>,
    },
}

impl What {
    pub(crate) fn name(&self) -> &str {
        match self {
            What::Set { key: name, .. } | What::Delete { key: name } | What::Append { file: name, .. } => {
                name
            }
        }
    }

    fn is_of_key(&self) -> bool {
        matches!(self, What::Set { .. } | What::Delete { .. })
    }

    fn bytes(&self) -> u64 {
        let content = match self {
            What::Set { value, .. } => value.len(),
            What::Delete { .. } => 0,
            What::Append { data, .. } => data.len(),
        };
        64 + (self.name().len() + content) as u64
    }
}

/// CRC-32C, bit by bit (RFC 3720, appendix B.4).
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()))
    })
}

/// What somebody sees: the committed state, or a section's own view of it.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) keys: BTreeMap<String, MKey>,
    pub(crate) files: BTreeMap<String, MFile>,
}

/// A key as readers see it: name, value, version, deadline and the number of the session that it is bound to.
pub(crate) type KeyTold = (String, String, u64, Option<u64>, Option<u64>);

impl Model {
    /// Why a key is over at `now`, if it is, whatever keeps it.
    fn key_end(&self, key: &MKey, now: u64) -> Option<KeyEnd> {
        let live = |number| {
            self.sessions.values().any(|session| session.client == number && session.ended.is_none())
        };
        if key.until.is_some_and(|until| until <= now) {
            return Some(KeyEnd::Expired);
        }
        key.bound.is_some_and(|number| !live(number)).then_some(KeyEnd::SessionEnded)
    }

    /// Whether a key is there at `now`: its time and its session have not ended, or they did while its lock was held
    /// exclusively, and it still is.
    fn key_lives(&self, name: &str, key: &MKey, now: u64) -> bool {
        !key.gone && (self.key_end(key, now).is_none() || self.exclusive_holder(name, now).is_some())
    }

    /// Keys that are over by now do not come back, whatever happens to their locks.
    pub(crate) fn let_keys_go(&mut self) {
        let over: Vec<String> = self
            .keys
            .iter()
            .filter(|(name, key)| !self.key_lives(name, key, self.at))
            .map(|(name, _)| name.clone())
            .collect();
        for name in over {
            self.keys.get_mut(&name).expect("it was found").gone = true;
        }
    }

    /// Takes away those of some keys that are over.
    fn drop_keys(&mut self, which: impl Fn(&str, &MKey) -> bool) {
        for (name, key) in self.keys.clone() {
            if which(&name, &key) && !self.key_lives(&name, &key, self.at) {
                let reason = self.key_end(&key, self.at).expect("a key that is gone has an end");
                self.keys.remove(&name);
                self.happened(&name, Happened::KeyDeleted { version: key.version, reason });
            }
        }
    }

    /// An exclusive tenure of these locks begins or is over: keys that are over are cleaned up.
    pub(crate) fn change_hands(&mut self, asks: &[Ask]) {
        self.drop_keys(|name, _| asks.iter().any(|ask| ask.key.as_str() == name));
    }

    /// A tick cleans up all keys that are over.
    pub(crate) fn tick_keys(&mut self) {
        self.drop_keys(|_, _| true);
    }

    /// The end of a session cleans up the keys that are bound to it, but those whose locks somebody holds.
    pub(crate) fn drop_bound_keys(&mut self, number: u64) {
        let held =
            |name: &str| self.lines.grants.iter().any(|grant| grant.mode(name) == Some(Mode::Exclusive));
        let bound = |(name, key): &(&String, &MKey)| key.bound == Some(number) && !held(name);
        let bound: Vec<String> = self.keys.iter().filter(bound).map(|(name, _)| name.clone()).collect();
        self.drop_keys(|name, _| bound.iter().any(|bound| bound == name));
    }

    /// The committed keys at `now`.
    pub(crate) fn keys_at(&self, now: u64) -> BTreeMap<&str, &MKey> {
        let live = self.keys.iter().filter(|(name, key)| self.key_lives(name, key, now));
        live.map(|(name, key)| (name.as_str(), key)).collect()
    }

    /// The same, as they are told: value, version, deadline, and the session that each is bound to.
    pub(crate) fn keys_told(&self, now: u64) -> Vec<KeyTold> {
        let told = |(name, key): (&str, &MKey)| {
            (name.to_owned(), key.value.clone(), key.version, key.until, key.bound)
        };
        self.keys_at(now).into_iter().map(told).collect()
    }

    /// The keys that are there or not cleaned up yet, and the bytes of all: what the caps are about.
    pub(crate) fn key_counts(&self) -> (u64, u64) {
        let bytes: usize = self.keys.iter().map(|(name, key)| name.len() + key.value.len()).sum();
        (self.keys.len() as u64, bytes as u64)
    }

    pub(crate) fn exclusive_holder(&self, key: &str, now: u64) -> Option<u64> {
        let mut holders = self.holders(key, now).into_iter();
        holders.find(|(_, mode)| *mode == Mode::Exclusive).map(|(grant, _)| grant.token)
    }

    /// Files and what is staged may be written by the exclusive holder alone.
    fn holds(&self, me: SessionId, holder: Option<SessionId>, token: u64, key: &str) -> Result<bool, Out> {
        let grant = self.mine(me, holder, token)?;
        match grant.mode(key) {
            Some(Mode::Exclusive) => Ok(grant.terms.atomic),
            _ => Err(refused("not_holder", "")),
        }
    }

    /// The same, and who asks for less with a conversion stages nothing any more.
    fn may_stage(
        &self,
        me: SessionId,
        holder: Option<SessionId>,
        token: u64,
        key: &str,
    ) -> Result<bool, Out> {
        let staged = self.holds(me, holder, token, key)?;
        let conversion = self.lines.waits.iter().find(|wait| wait.converts == Some(token));
        let asked = conversion.and_then(|wait| wait.mode(key));
        match staged && asked.is_some_and(|mode| mode != Mode::Exclusive) {
            true => Err(refused("not_holder", "")),
            false => Ok(staged),
        }
    }

    /// Who may write a key, and whether it is staged.
    fn may_write(
        &self,
        me: SessionId,
        holder: Option<SessionId>,
        token: Option<u64>,
        key: &str,
    ) -> Result<bool, Out> {
        let mut atomic = false;
        if let Some(token) = token {
            atomic = self.mine(me, holder, token)?.terms.atomic;
        }
        if let Some(token) = token.filter(|_| atomic) {
            return self.may_stage(me, holder, token, key);
        }
        let no = if token.is_some() { "not_holder" } else { "guarded" };
        let held = self.holders(key, self.at);
        if held.iter().any(|(_, mode)| *mode == Mode::Shared) {
            return Err(refused(no, ""));
        }
        if let Some((grant, _)) = held.iter().find(|(_, mode)| *mode == Mode::Exclusive) {
            return if Some(grant.token) == token { Ok(false) } else { Err(refused(no, "")) };
        }
        match self.is_closed(key, self.at) {
            true => Err(refused(no, "")),
            false => Ok(false),
        }
    }

    pub(crate) fn is_staged(&self, token: u64, name: &str) -> bool {
        let grant = self.lines.grants.iter().find(|grant| grant.token == token);
        grant.is_some_and(|grant| grant.section.iter().any(|staged| staged.what.name() == name))
    }

    /// What a reader sees; with a token also what is staged under it. A staged key has as version the command that staged it.
    pub(crate) fn view(&self, token: Option<u64>) -> View {
        let keys =
            self.keys_at(self.at).into_iter().map(|(name, key)| (name.to_owned(), key.clone())).collect();
        let mut view = View { keys, files: self.files.clone() };
        let grant = self.lines.grants.iter().find(|grant| Some(grant.token) == token);
        if let Some(grant) = grant {
            for staged in &grant.section {
                self.put(&mut view, &staged.what, staged.op, self.sessions[&grant.session].client);
            }
        }
        view
    }

    /// Does one write to a view.
    fn put(&self, view: &mut View, what: &What, version: u64, client: u64) {
        match what {
            What::Set { key, value, life } => {
                let until = life.ttl_ms.map(|ms| self.clock + ms * 1_000);
                let bound = life.bound.then_some(client);
                let value = value.clone();
                view.keys.insert(key.clone(), MKey { value, version, until, bound, gone: false });
            }
            What::Delete { key } => {
                view.keys.remove(key);
            }
            What::Append { file, data, .. } => {
                let file = view.files.entry(file.clone());
                let file = file.or_insert(MFile { generation: version, bytes: Vec::new(), fault: false });
                file.bytes.extend_from_slice(data);
            }
        }
    }

    /// Whether keys are within their caps with these changes; those that are over and not cleaned up count.
    fn fits_keys(&self, view: &View, what: &[What]) -> Result<(), Out> {
        if !what.iter().any(|what| matches!(what, What::Set { .. })) {
            return Ok(());
        }
        let mut all = view.keys.clone();
        for (name, key) in self.keys.iter().filter(|(_, key)| key.gone) {
            if !what.iter().any(|what| what.name() == name) {
                all.insert(name.clone(), key.clone());
            }
        }
        if all.len() > self.keys.len() && all.len() as u64 > self.limits().keys {
            return Err(refused("limit", "keys"));
        }
        let bytes: usize = all.iter().map(|(name, key)| name.len() + key.value.len()).sum();
        match bytes as u64 > self.limits().key_bytes {
            true => Err(refused("limit", "key_bytes")),
            false => Ok(()),
        }
    }

    /// Does one write for good.
    fn commit(&mut self, what: &What, client: u64) {
        let mut view = View { keys: self.keys.clone(), files: self.files.clone() };
        if what.is_of_key() {
            let name = what.name().to_owned();
            self.drop_keys(|key, _| key == name);
            view.keys = self.keys.clone();
        }
        self.put(&mut view, what, self.op, client);
        let happened = match what {
            What::Set { .. } => Some(Happened::KeySet { version: self.op }),
            What::Delete { key } => self
                .keys
                .get(key)
                .map(|key| Happened::KeyDeleted { version: key.version, reason: KeyEnd::Deleted }),
            What::Append { file, data, .. } => {
                let file = &view.files[file];
                let length = file.bytes.len() as u64;
                let offset = length - data.len() as u64;
                Some(Happened::FileAppended { generation: file.generation, offset, length })
            }
        };
        (self.keys, self.files) = (view.keys, view.files);
        if let Some(happened) = happened {
            self.happened(what.name(), happened);
        }
    }

    fn has_version(view: &View, key: &str, if_version: Option<u64>) -> Result<(), Out> {
        let version = view.keys.get(key).map_or(0, |key| key.version);
        match if_version {
            Some(asked) if asked != version => Err(refused("version_mismatch", version.to_string())),
            _ => Ok(()),
        }
    }

    /// Stages writes under a grant, if they find room in its section. Of each key only the last is kept.
    fn stage(&mut self, token: u64, what: Vec<What>) -> Result<(), Out> {
        let bytes = |section: &[Staged]| section.iter().map(|staged| staged.what.bytes()).sum::<u64>();
        let op = self.op;
        let before = self.section(token).to_vec();
        let all: u64 = self.lines.grants.iter().map(|grant| bytes(&grant.section)).sum();
        let mut section = before.clone();
        section.retain(|staged| {
            let again = |what: &What| what.is_of_key() && what.name() == staged.what.name();
            !staged.what.is_of_key() || !what.iter().any(again)
        });
        section.extend(what.into_iter().map(|what| Staged { op, what }));
        let (old, new) = (bytes(&before), bytes(&section));
        let limits = self.limits();
        if section.len() > before.len() && section.len() as u64 > limits.section_writes {
            return Err(refused("limit", "section_writes"));
        }
        if new > old && new > limits.section_bytes {
            return Err(refused("limit", "section_bytes"));
        }
        if new > old && all - old + new > limits.staged_bytes {
            return Err(refused("limit", "staged_bytes"));
        }
        self.grant_mut(token).section = section;
        Ok(())
    }

    /// What is staged under a grant.
    pub(crate) fn section(&self, token: u64) -> &[Staged] {
        let grant = self.lines.grants.iter().find(|grant| grant.token == token);
        grant.map_or(&[], |grant| &grant.section)
    }

    /// The bytes that are staged under all grants.
    pub(crate) fn staged_bytes(&self) -> u64 {
        self.lines.grants.iter().flat_map(|grant| &grant.section).map(|staged| staged.what.bytes()).sum()
    }

    pub(crate) fn write(&mut self, me: SessionId, call: &Call) -> Said {
        match call {
            Call::Set { key, value, if_version, life, token, holder } => {
                let staged = self.may_write(me, *holder, *token, key)?;
                if value.len() as u64 > self.limits().value_bytes {
                    return Err(refused("too_large", "value_bytes"));
                }
                let view = self.view(token.filter(|_| staged));
                Model::has_version(&view, key, *if_version)?;
                let what = What::Set { key: key.to_string(), value: value.to_string(), life: *life };
                self.change_keys(me, *holder, token.filter(|_| staged), view, vec![what], life.bound)?;
                Ok(Out::Set { version: self.op, staged })
            }
            Call::Delete { key, if_version, token, holder } => {
                let staged = self.may_write(me, *holder, *token, key)?;
                let view = self.view(token.filter(|_| staged));
                Model::has_version(&view, key, *if_version)?;
                let version = view.keys.get(key.as_str()).map(|key| key.version);
                let what = What::Delete { key: key.to_string() };
                self.change_keys(me, *holder, token.filter(|_| staged), view, vec![what], false)?;
                Ok(Out::Deleted { version, staged })
            }
            Call::Transaction { compare, apply, token, holder } => {
                self.transaction(me, compare, apply, *token, *holder)
            }
            Call::AppendFile { file, data, token, holder } => {
                let staged = self.may_stage(me, *holder, *token, file)?;
                self.append(file, data, staged.then_some(*token))
            }
            Call::DeleteFile { file, token, holder } => {
                if self.holds(me, *holder, *token, file)? {
                    return Err(refused("unsupported", ""));
                }
                let name = file.as_str();
                let generation = match self.files.remove(name) {
                    Some(file) => file.generation,
                    None => return Err(refused("not_found", "")),
                };
                self.happened(name, Happened::FileDeleted { generation });
                Ok(Out::FileChanged { length: 0, generation })
            }
            Call::RotateFile { file, to, token, holder } => {
                if self.holds(me, *holder, *token, file)? {
                    return Err(refused("unsupported", ""));
                }
                let whose = holder.unwrap_or(me);
                let own = |(grant, mode): &(&super::lines::MGrant, Mode)| {
                    *mode == Mode::Exclusive && grant.session == whose
                };
                let held = self.holders(to, self.at);
                let free = held.iter().all(|(_, mode)| matches!(mode, Mode::Slot { .. }))
                    && !self.is_closed(to, self.at);
                let staged = held.iter().any(|(grant, _)| self.is_staged_append(grant.token, to));
                if staged || !held.iter().any(own) && !free {
                    return Err(refused("guarded", ""));
                }
                let out = self.rotate(file, to)?;
                if let Out::FileChanged { generation, .. } = out {
                    self.happened(file, Happened::FileRotated { generation, to: to.clone() });
                }
                Ok(out)
            }
            Call::RepairFile { file, generation, length, checksum, token, holder } => {
                if self.holds(me, *holder, *token, file)? && self.is_staged_append(*token, file) {
                    return Err(refused("invalid_params", ""));
                }
                self.repair(file, *generation, *length, *checksum)
            }
            _ => panic!("{call:?} writes nothing"),
        }
    }

    /// Changes keys, or stages that they will be changed.
    fn change_keys(
        &mut self,
        me: SessionId,
        holder: Option<SessionId>,
        section: Option<u64>,
        mut view: View,
        what: Vec<What>,
        bound: bool,
    ) -> Result<(), Out> {
        let whose = holder.filter(|_| bound).unwrap_or(me);
        let client = self.sessions.get(&whose).map_or(0, |session| session.client);
        for what in &what {
            self.put(&mut view, what, self.op, client);
        }
        if let Some(token) = section {
            if what.iter().any(|what| matches!(what, What::Set { .. })) {
                let before = self.section(token).iter().map(|staged| staged.what.clone());
                let all: Vec<What> = before.filter(What::is_of_key).chain(what.clone()).collect();
                self.fits_keys(&view, &all)?;
            }
            return self.stage(token, what);
        }
        self.fits_keys(&view, &what)?;
        if !self.is_live(whose) {
            return Err(refused("not_holder", ""));
        }
        what.iter().for_each(|what| self.commit(what, client));
        Ok(())
    }

    fn transaction(
        &mut self,
        me: SessionId,
        compare: &[Compare],
        apply: &[Change],
        token: Option<u64>,
        holder: Option<SessionId>,
    ) -> Said {
        let section = match token {
            Some(token) => self.mine(me, holder, token)?.terms.atomic.then_some(token),
            None => None,
        };
        let view = self.view(section);
        if section.is_some() {
            for change in apply {
                self.may_write(me, holder, token, &change.key)?;
            }
        }
        for Compare { key, version } in compare {
            // What is compared must not change before the release either.
            let grant = section.and_then(|token| self.lines.grants.iter().find(|grant| grant.token == token));
            let keeps = |mode| matches!(mode, Some(Mode::Exclusive | Mode::Shared));
            if grant.is_some_and(|grant| !keeps(grant.mode(key))) {
                return Err(refused("not_holder", ""));
            }
            let found = view.keys.get(key.as_str()).map_or(0, |key| key.version);
            if found != *version {
                return Err(refused("version_mismatch", format!("{key} {found}")));
            }
        }
        for change in apply {
            self.may_write(me, holder, token, &change.key)?;
        }
        let long = |value: &ArcStr| value.len() as u64 > self.limits().value_bytes;
        if apply.iter().filter_map(|change| change.value.as_ref()).any(long) {
            return Err(refused("too_large", "value_bytes"));
        }
        let what = apply.iter().map(|change| match &change.value {
            Some(value) => {
                What::Set { key: change.key.to_string(), value: value.to_string(), life: change.life }
            }
            None => What::Delete { key: change.key.to_string() },
        });
        let bound = apply.iter().any(|change| change.life.bound);
        self.change_keys(me, holder, section, view, what.collect(), bound)?;
        Ok(Out::Applied { version: self.op, staged: section.is_some() })
    }

    /// Lets everything that is staged under a grant take effect, or says why it cannot.
    pub(crate) fn apply_section(&mut self, token: u64) -> Result<u64, Out> {
        let grant = self.lines.grants.iter().find(|grant| grant.token == token).expect("it is mine").clone();
        let client = self.sessions[&grant.session].client;
        let (keys, appends): (Vec<_>, Vec<_>) =
            grant.section.iter().partition(|staged| staged.what.is_of_key());
        let keys: Vec<What> = keys.into_iter().map(|staged| staged.what.clone()).collect();
        let mut view = self.view(None);
        keys.iter().for_each(|what| self.put(&mut view, what, self.op, client));
        self.fits_keys(&view, &keys)?;
        let mut files: BTreeMap<&str, (u64, u64, Vec<u8>)> = BTreeMap::new();
        for Staged { op, what } in appends {
            let What::Append { file, data, offset, generation } = what else { continue };
            let file = files.entry(file).or_insert((generation.unwrap_or(*op), *offset, Vec::new()));
            file.2.extend_from_slice(data);
        }
        let mut created = 0;
        for (name, (generation, offset, data)) in &files {
            let length = self.fits_file(&[], created, name, data.len() as u64)?;
            let stands = match self.files.get(*name) {
                None => *offset == 0,
                Some(file) => (file.generation, length) == (*generation, *offset),
            };
            if !stands {
                return Err(refused("file_fault", ""));
            }
            created += u64::from(!self.files.contains_key(*name));
        }
        keys.iter().for_each(|what| self.commit(what, client));
        for (name, (generation, offset, data)) in files {
            let file = self.files.entry(name.to_owned());
            let file = file.or_insert(MFile { generation, bytes: Vec::new(), fault: false });
            file.bytes.extend_from_slice(&data);
            let (generation, length) = (file.generation, file.bytes.len() as u64);
            self.happened(name, Happened::FileAppended { generation, offset, length });
        }
        Ok(grant.section.len() as u64)
    }

    fn is_staged_append(&self, token: u64, name: &str) -> bool {
        let grant = self.lines.grants.iter().find(|grant| grant.token == token);
        let append = |staged: &Staged| staged.what.name() == name && !staged.what.is_of_key();
        grant.is_some_and(|grant| grant.section.iter().any(append))
    }

    /// Whether a file of that name can stand beside others: none is a directory of another.
    fn may_stand<'a>(name: &str, mut others: impl Iterator<Item = &'a str>) -> Result<(), Out> {
        let clash = |other: &str| {
            other.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'))
                || name.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'))
        };
        match others.any(clash) {
            true => Err(refused("bad_name", "")),
            false => Ok(()),
        }
    }

    fn file_names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Whether so many bytes can be appended to a committed file, beside so many that are created with it, and beside others
    /// that are staged; how long it is before.
    fn fits_file(&self, staged: &[String], created: u64, name: &str, bytes: u64) -> Result<u64, Out> {
        let file = self.files.get(name);
        match file {
            Some(file) if file.fault => return Err(refused("file_fault", "")),
            Some(_) => {}
            None => {
                Model::may_stand(name, self.file_names())?;
                if self.files.len() as u64 + created >= self.limits().files {
                    return Err(refused("limit", "files"));
                }
            }
        }
        let length = file.map_or(0, |file| file.bytes.len()) as u64;
        if length + bytes > self.limits().file_bytes {
            return Err(refused("limit", "file_bytes"));
        }
        if file.is_none() {
            Model::may_stand(name, staged.iter().map(String::as_str))?;
        }
        Ok(length)
    }

    fn append(&mut self, name: &str, data: &[u8], section: Option<u64>) -> Said {
        if data.len() as u64 > self.limits().append_bytes {
            return Err(refused("too_large", "append_bytes"));
        }
        let before = self.section(section.unwrap_or(0)).iter().filter(|staged| !staged.what.is_of_key());
        let mut staged: Vec<String> = before.clone().map(|staged| staged.what.name().to_owned()).collect();
        staged.retain(|other| other != name && !self.files.contains_key(other));
        staged.sort();
        staged.dedup();
        let of_file = before.filter(|staged| staged.what.name() == name).map(|staged| &staged.what);
        let more: u64 = of_file
            .map(|what| if let What::Append { data, .. } = what { data.len() } else { 0 } as u64)
            .sum();
        let length = self.fits_file(&staged, staged.len() as u64, name, more + data.len() as u64)?;
        let generation = self.files.get(name).map(|file| file.generation);
        let what = What::Append { file: name.into(), data: data.to_vec(), offset: length, generation };
        let offset = length + more;
        let length = offset + data.len() as u64;
        match section {
            Some(token) => self.stage(token, vec![what])?,
            None => self.commit(&what, 0),
        }
        Ok(Out::Appended { offset, length, staged: section.is_some() })
    }

    fn rotate(&mut self, name: &str, to: &str) -> Said {
        match self.files.get(name) {
            None => return Err(refused("not_found", "")),
            Some(file) if file.fault => return Err(refused("file_fault", "")),
            Some(_) if self.files.contains_key(to) => return Err(refused("invalid_params", "")),
            Some(_) => Model::may_stand(to, self.file_names())?,
        }
        let file = self.files.remove(name).expect("it was found");
        let generation = file.generation;
        self.files.insert(to.into(), file);
        Ok(Out::FileChanged { length: 0, generation })
    }

    fn repair(&mut self, name: &str, generation: u64, length: u64, checksum: u32) -> Said {
        let max = self.limits().file_bytes;
        let file = self.files.get_mut(name).ok_or_else(|| refused("not_found", ""))?;
        if !file.fault {
            return Ok(Out::FileChanged { length: file.bytes.len() as u64, generation: file.generation });
        }
        if file.generation != generation {
            return Err(refused("file_fault", ""));
        }
        if length > max {
            return Err(refused("limit", "file_bytes"));
        }
        file.bytes = Model::found_on_disk(length);
        assert_eq!(crc32c(&file.bytes), checksum, "the test finds on disk what it says");
        file.fault = false;
        self.happened(name, Happened::FileRepaired { generation, length });
        Ok(Out::FileChanged { length, generation })
    }

    /// The bytes that a repair of that length finds.
    pub(crate) fn found_on_disk(length: u64) -> Vec<u8> {
        (0..length).map(|index| index as u8 ^ 0x55).collect()
    }

    /// The committed files: generation, length, checksum, and whether it is closed.
    pub(crate) fn files(&self) -> Vec<(String, u64, u64, u32, bool)> {
        let files = self.files.iter();
        files
            .map(|(name, file)| {
                (name.clone(), file.generation, file.bytes.len() as u64, crc32c(&file.bytes), file.fault)
            })
            .collect()
    }
}
