//! What the image knows of each file, and the work on them: straight-line, on whatever thread calls it.
//!
//! A file's bytes are, from the left: safe (written and synced), unsynced (written, still held in memory), kept (held in
//! memory because the file is faulted). A fault turns unsynced into kept: after a failed sync the kernel may have
//! dropped what it took, and a file that somebody else changed proves nothing.
//!
//! ```text
//!   0             safe                length             what the state has
//!   ├── on disk ───┼── unsynced ────────┤                   no fault
//!   ├── on disk ───┼── kept: not safe, perhaps partly on disk ─┤  fault
//! ```

use super::record::{self, Kept, Record};
use super::tree::{self, Found, Obstacle, Synced, Tree};
use super::{Event, Gauges, Look, Looked, describe, point, write_at};
use crate::identity::Op;
use crate::name::Name;
use crate::outcome::{FileAct, FileEffect};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// All files of a data directory.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) tree: Tree,
    directory: OwnedFd,
    pub(super) files: BTreeMap<Name, File>,
    /// Open descriptors, at most [`OPEN_MAX`], with the turn in which each was used last.
    open: HashMap<Name, (Arc<OwnedFd>, u64)>,
    turn: u64,
    /// Files with something to sync.
    dirty: BTreeSet<Name>,
    dirty_bytes: u64,
    /// Every effect up to this command was executed.
    pub(super) done: Op,
    pub(super) recorded: Record,
    /// The delete or rotate that is done but not yet recorded as done.
    acted: Option<Op>,
    pub(super) events: Vec<Event>,
    pub(super) gauges: Arc<Gauges>,
    checks: VecDeque<Name>,
    checking: Option<Checking>,
}

/// One file.
#[derive(Clone, Debug, Default)]
pub(super) struct File {
    pub(super) generation: u64,
    /// What was written of it, in bytes: where the next write must begin.
    pub(super) length: u64,
    /// What of that is synced.
    pub(super) safe: u64,
    /// The end of the last write that was tried: bytes below it may be torn ones of ours.
    touched: u64,
    /// Device and inode, once seen.
    pub(super) identity: Option<(u64, u64)>,
    pub(super) fault: Option<String>,
    unsynced: Vec<FileEffect>,
    pub(super) kept: VecDeque<FileEffect>,
    /// Its directory does not durably name it yet.
    fresh: bool,
    /// Length and checksum to hold against the bytes on disk in the background.
    check: Option<(u64, u32)>,
}

/// A check under way.
#[derive(Debug)]
struct Checking {
    file: Name,
    generation: u64,
    at: u64,
    crc: u32,
}

impl File {
    /// A file of which so much is known to be on disk and safe.
    pub(super) fn safe(generation: u64, length: u64) -> File {
        File { generation, length, safe: length, touched: length, ..File::default() }
    }

    /// Lets the next sync of the file cover its directories too.
    pub(super) fn mark_fresh(&mut self) {
        self.fresh = true;
    }
}

impl Mirror {
    pub(super) fn open(data_dir: &Path) -> io::Result<Mirror> {
        let recorded = Record::read(data_dir)?;
        Ok(Mirror {
            tree: Tree::open(data_dir)?,
            directory: record::open_directory(data_dir)?,
            files: BTreeMap::new(),
            open: HashMap::new(),
            turn: 0,
            dirty: BTreeSet::new(),
            dirty_bytes: 0,
            done: recorded.op,
            recorded,
            acted: None,
            events: Vec::new(),
            gauges: Arc::default(),
            checks: VecDeque::new(),
            checking: None,
        })
    }

    /// Executes one effect of the running server.
    ///
    /// # Errors
    /// The record could not be written. The effect is not done; the same call again takes it up where it stopped, and
    /// nothing else may be executed before.
    pub(super) fn apply(&mut self, effect: FileEffect) -> io::Result<()> {
        match &effect.act {
            FileAct::Write { .. } => self.write(effect, true),
            FileAct::Repair { length, checksum } => self.repair(&effect, *length, *checksum),
            FileAct::Delete | FileAct::Rotate { .. } => {
                let (op, weight) = (effect.op, weight(&effect));
                self.barrier(op, |mirror| match &effect.act {
                    FileAct::Delete => mirror.delete(&effect.file, effect.generation),
                    FileAct::Rotate { to } => mirror.rotate(&effect.file, effect.generation, to),
                    FileAct::Write { .. } | FileAct::Repair { .. } => {}
                })?;
                self.gauges.pending.sub(weight);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Does something that cannot be done twice between two records: before it everything earlier is safe and the
    /// record says `op - 1`; after it the record says `op` before anything later is touched.
    ///
    /// # Errors
    /// As for [`apply`](Mirror::apply).
    pub(super) fn barrier(&mut self, op: Op, act: impl FnOnce(&mut Mirror)) -> io::Result<()> {
        if self.acted != Some(op) {
            self.reached(op.saturating_sub(1));
            self.sync()?;
            act(self);
            self.acted = Some(op);
        }
        self.reached(op);
        self.record()?;
        self.acted = None;
        Ok(())
    }

    /// Notes that every effect up to `op` has been executed.
    pub(super) fn reached(&mut self, op: Op) {
        self.done = self.done.max(op);
    }

    /// Writes, or keeps what cannot be written. `strict` asks that the file on disk ends where the write begins; after
    /// a crash it may not.
    pub(super) fn write(&mut self, effect: FileEffect, strict: bool) {
        self.reached(effect.op.saturating_sub(1));
        let FileAct::Write { offset, data } = &effect.act else { return };
        let (offset, data, name) = (*offset, Arc::clone(data), effect.file.clone());
        let known = self.files.get(&name).is_some_and(|file| file.generation == effect.generation);
        if !known {
            if let Some(old) = self.files.remove(&name) {
                self.forget(&name, old);
            }
            let file =
                File { generation: effect.generation, length: offset, safe: offset, ..File::default() };
            self.files.insert(name.clone(), file);
            if offset > 0 {
                self.keep(effect);
                self.fault(&name, "the file is not the one that the log speaks of".to_owned());
                return;
            }
        }
        if self.files.get(&name).is_some_and(|file| file.fault.is_some()) {
            self.keep(effect);
            return;
        }
        match self.try_write(&name, offset, &data, strict) {
            Ok(()) => {
                let Some(file) = self.files.get_mut(&name) else { return };
                file.length = offset + data.len() as u64;
                file.unsynced.push(effect);
                self.dirty_bytes += data.len() as u64;
                self.dirty.insert(name);
            }
            Err(reason) => {
                self.keep(effect);
                self.fault(&name, reason);
            }
        }
    }

    fn try_write(&mut self, name: &Name, offset: u64, data: &[u8], strict: bool) -> Result<(), String> {
        point("image.before_write").map_err(refused)?;
        let Some(file) = self.files.get(name) else { return Err(gone()) };
        if file.length != offset {
            return Err(format!("the log writes at {offset}, the image is at {}", file.length));
        }
        let fd = if file.identity.is_none() && offset == 0 {
            self.create(name)?
        } else {
            self.descriptor(name).map_err(|obstacle| somebody(&obstacle))?
        };
        let found = tree::look_again(&fd).map_err(|obstacle| somebody(&obstacle))?;
        if strict && found.length != offset {
            return Err(wrong_length(found.length, offset));
        }
        if let Some(file) = self.files.get_mut(name) {
            file.touched = file.touched.max(offset + data.len() as u64);
        }
        write_at(&fd, data, offset).map_err(refused)?;
        point("image.after_write").map_err(refused)
    }

    /// Creates the file on disk, which must not have it.
    pub(super) fn create(&mut self, name: &Name) -> Result<Arc<OwnedFd>, String> {
        let (fd, found) = self.tree.create_file(name).map_err(|obstacle| clause(&obstacle))?;
        if let Some(file) = self.files.get_mut(name) {
            file.identity = Some(found.identity);
            file.fresh = true;
        }
        Ok(self.cache(name, fd))
    }

    /// The open descriptor of a known file, which must be the same file as before.
    pub(super) fn descriptor(&mut self, name: &Name) -> Result<Arc<OwnedFd>, Obstacle> {
        self.turn += 1;
        if let Some((fd, turn)) = self.open.get_mut(name) {
            *turn = self.turn;
            return Ok(Arc::clone(fd));
        }
        let (fd, found) = self.tree.open_file(name)?;
        if let Some(file) = self.files.get_mut(name)
            && *file.identity.get_or_insert(found.identity) != found.identity
        {
            return Err(Obstacle::Foreign(REPLACED));
        }
        Ok(self.cache(name, fd))
    }

    fn cache(&mut self, name: &Name, fd: OwnedFd) -> Arc<OwnedFd> {
        if self.open.len() >= OPEN_MAX {
            let oldest = self.open.iter().min_by_key(|(_, (_, turn))| *turn).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                // Only the descriptor that wrote is sure to be told of an error of the write.
                if self.dirty.contains(&oldest) {
                    self.sync_file(&oldest, &mut Synced::new());
                }
                self.open.remove(&oldest);
            }
        }
        self.turn += 1;
        let fd = Arc::new(fd);
        self.open.insert(name.clone(), (Arc::clone(&fd), self.turn));
        fd
    }

    /// Closes the file to writes: what is not safe is kept. Told once.
    pub(super) fn fault(&mut self, name: &Name, reason: String) {
        self.clean(name);
        self.open.remove(name);
        let Some(file) = self.files.get_mut(name) else { return };
        for effect in file.unsynced.drain(..).rev() {
            self.gauges.pending.sub(weight(&effect));
            self.gauges.kept.add(weight(&effect));
            file.kept.push_front(effect);
        }
        if file.fault.is_none() {
            log::error!("file {name:?} is closed to appends: {reason}");
            file.fault = Some(reason.clone());
            self.gauges.faults.add(1);
            self.events.push(Event::Fault { file: name.clone(), generation: file.generation, reason });
        }
    }

    /// Takes the file out of what is to be synced.
    fn clean(&mut self, name: &Name) {
        if self.dirty.remove(name)
            && let Some(file) = self.files.get(name)
        {
            self.dirty_bytes -= file.unsynced.iter().map(bytes).sum::<u64>().min(self.dirty_bytes);
        }
    }

    /// Keeps an effect that cannot be executed now.
    fn keep(&mut self, effect: FileEffect) {
        self.gauges.pending.sub(weight(&effect));
        self.gauges.kept.add(weight(&effect));
        if let Some(file) = self.files.get_mut(&effect.file) {
            file.kept.push_back(effect);
        }
    }

    /// Drops what is held in memory of a file whose life is over.
    pub(super) fn forget(&mut self, name: &Name, mut file: File) {
        if self.dirty.remove(name) {
            self.dirty_bytes -= file.unsynced.iter().map(bytes).sum::<u64>().min(self.dirty_bytes);
        }
        self.open.remove(name);
        self.gauges.pending.sub(file.unsynced.drain(..).map(|effect| weight(&effect)).sum());
        self.gauges.kept.sub(file.kept.drain(..).map(|effect| weight(&effect)).sum());
        if file.fault.is_some() {
            self.gauges.faults.sub(1);
        }
    }

    /// Whether anything waits for a sync.
    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || self.done != self.recorded.op
    }

    /// Whether so much waits for a sync that it should not wait longer.
    pub(super) fn is_full(&self) -> bool {
        self.dirty_bytes > DIRTY_BYTES_MAX || self.dirty.len() > DIRTY_FILES_MAX
    }

    /// Syncs every dirty file, then records how far the image is safe. A file that cannot be synced gets a fault.
    ///
    /// # Errors
    /// The record could not be written. The files are synced; the same call again tries the record again.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        let mut synced = Synced::new();
        for name in self.dirty.clone() {
            self.sync_file(&name, &mut synced);
        }
        self.record()
    }

    fn sync_file(&mut self, name: &Name, synced: &mut Synced) {
        match self.try_sync(name, synced) {
            Ok(()) => {
                self.clean(name);
                let Some(file) = self.files.get_mut(name) else { return };
                file.safe = file.length;
                file.fresh = false;
                self.gauges.pending.sub(file.unsynced.drain(..).map(|effect| weight(&effect)).sum());
            }
            Err(reason) => self.fault(name, reason),
        }
    }

    fn try_sync(&mut self, name: &Name, synced: &mut Synced) -> Result<(), String> {
        point("image.before_sync").map_err(unsynced)?;
        let fd = self.descriptor(name).map_err(|obstacle| somebody(&obstacle))?;
        let Some(file) = self.files.get(name) else { return Err(gone()) };
        let found = self.tree.find(name).map_err(|obstacle| somebody(&obstacle))?;
        if Some(found.identity) != file.identity {
            return Err(somebody(&Obstacle::Foreign(REPLACED)));
        }
        if found.length != file.length {
            return Err(wrong_length(found.length, file.length));
        }
        rustix::fs::fdatasync(&fd).map_err(|error| unsynced(error.into()))?;
        if file.fresh {
            self.tree.sync_parents(name, synced).map_err(|obstacle| {
                format!("the disk refused to sync: the directory of the file {obstacle}")
            })?;
        }
        Ok(())
    }

    /// Makes the safe watermark durable and tells it, if it moved.
    fn record(&mut self) -> io::Result<()> {
        // What is dirty is not safe: the watermark must wait for it.
        if !self.dirty.is_empty() {
            return Err(io::Error::other("files are dirty while their safety is recorded"));
        }
        let mut record = Record { op: self.done, kept: Vec::new() };
        for (name, file) in &self.files {
            if let Some(first) = file.kept.front() {
                record.kept.push(Kept { file: name.clone(), generation: file.generation, from: first.op });
            }
        }
        if record == self.recorded {
            return Ok(());
        }
        record.write(&self.directory)?;
        self.events.push(Event::Watermark(record.clone()));
        self.recorded = record;
        Ok(())
    }

    /// Removes the file. What cannot be removed is left behind and said; a new file of this name will find it.
    pub(super) fn delete(&mut self, name: &Name, generation: u64) {
        if let Some(file) = self.files.remove(name) {
            self.forget(name, file);
        }
        let done = point("image.before_unlink")
            .map_err(refused)
            .and_then(|()| match self.tree.remove(name) {
                Ok(()) => Ok(()),
                Err(Obstacle::Missing) => {
                    log::warn!("file {name:?} was to be deleted and was gone already");
                    Ok(())
                }
                Err(obstacle) => Err(clause(&obstacle)),
            })
            .and_then(|()| point("image.after_unlink").map_err(refused));
        if let Err(reason) = done {
            let reason = format!("it was deleted, but what has its name on disk stays: {reason}");
            log::error!("file {name:?}: {reason}");
            self.events.push(Event::Fault { file: name.clone(), generation, reason });
        }
    }

    /// Gives the file its new name, with whatever fault it has. If that fails the new name has the fault.
    pub(super) fn rotate(&mut self, from: &Name, generation: u64, to: &Name) {
        let known = self.files.get(from).is_some_and(|file| file.generation == generation);
        let expected = known.then(|| self.move_entry(from, to)).flatten();
        // The log may have rotated before it was told of the fault, which it then could not place.
        if let Some(File { fault: Some(reason), .. }) = self.files.get(to) {
            let (file, reason) = (to.clone(), reason.clone());
            self.events.push(Event::Fault { file, generation, reason });
        }
        if !known {
            // The content is nobody's that we know; the name moves all the same, as the log says.
            self.files.insert(to.clone(), File { generation, ..File::default() });
            self.fault(to, "the file is not the one that the log speaks of".to_owned());
        }
        let found = self.tree.find(from);
        if let Err(reason) = self.try_rename(from, to) {
            self.fault(to, format!("its content is still called {from:?}: {reason}"));
            return;
        }
        match (expected, found) {
            (Some(expected), Ok(found)) if expected == found => {}
            (Some(expected), Ok(found)) if expected.identity == found.identity => {
                self.fault(to, wrong_length(found.length, expected.length));
            }
            (Some(_), Ok(_)) => self.fault(to, somebody(&Obstacle::Foreign(REPLACED))),
            (Some(_), Err(obstacle)) => self.fault(to, somebody(&obstacle)),
            // Never seen on disk by this process, or faulted already.
            (None, _) => {}
        }
    }

    /// Moves what is known of a file to its new name; gives what must be on disk, if that is known.
    pub(super) fn move_entry(&mut self, from: &Name, to: &Name) -> Option<Found> {
        let file = self.files.remove(from)?;
        if let Some(old) = self.files.remove(to) {
            self.forget(to, old);
        }
        if let Some(open) = self.open.remove(from) {
            self.open.insert(to.clone(), open);
        }
        if file.check.is_some() {
            self.checks.push_back(to.clone());
        }
        let healthy = file.fault.is_none();
        let expected = file.identity.map(|identity| Found { identity, length: file.length });
        self.files.insert(to.clone(), file);
        expected.filter(|_| healthy)
    }

    /// Renames on disk, durably.
    pub(super) fn try_rename(&mut self, from: &Name, to: &Name) -> Result<(), String> {
        point("image.before_rename").map_err(refused)?;
        self.tree.rename(from, to).map_err(|obstacle| clause(&obstacle))?;
        point("image.after_rename").map_err(refused)?;
        self.settle_rename(from, to)
    }

    /// Makes a rename durable and removes the directories that it left empty.
    pub(super) fn settle_rename(&mut self, from: &Name, to: &Name) -> Result<(), String> {
        let mut synced = Synced::new();
        self.tree
            .sync_parents(to, &mut synced)
            .and_then(|()| match self.tree.sync_parents(from, &mut synced) {
                // A redo finds them removed already.
                Err(Obstacle::Missing) => Ok(()),
                other => other,
            })
            .map_err(|obstacle| format!("the disk refused to sync: the directory {obstacle}"))?;
        self.tree.prune(from);
        Ok(())
    }

    /// Reads committed bytes: those of `[offset, offset + limit)` that lie below `length`.
    ///
    /// # Errors
    /// A sentence. A file that is not as long as the image left it has a fault from here on.
    pub(super) fn read(
        &mut self,
        name: &Name,
        generation: u64,
        offset: u64,
        limit: u64,
        length: u64,
    ) -> Result<Vec<u8>, String> {
        let Some(file) = self.files.get(name).filter(|file| file.generation == generation) else {
            return Err("the file has been deleted or rotated since".to_owned());
        };
        if let Some(reason) = &file.fault {
            return Err(reason.clone());
        }
        let (expected, identity) = (file.length, file.identity);
        let fd = match self.descriptor(name) {
            // A read-only mount still reads.
            Err(Obstacle::Disk(Errno::ROFS | Errno::PERM | Errno::ACCESS)) => {
                self.tree.open_to_read(name).map(|(fd, _)| Arc::new(fd))
            }
            other => other,
        };
        let looked = fd.and_then(|fd| tree::look_again(&fd).map(|found| (fd, found)));
        let (fd, found) = match looked {
            Ok(opened) => opened,
            Err(Obstacle::Disk(error)) => return Err(refused(error.into())),
            Err(obstacle) => return Err(self.fault_and_say(name, somebody(&obstacle))),
        };
        if identity.is_some_and(|identity| identity != found.identity) {
            return Err(self.fault_and_say(name, somebody(&Obstacle::Foreign(REPLACED))));
        }
        if found.length != expected || expected < length {
            return Err(self.fault_and_say(name, wrong_length(found.length, expected.max(length))));
        }
        let end = offset.saturating_add(limit.min(READ_MAX)).min(length);
        let mut data = vec![0; usize::try_from(end.saturating_sub(offset)).unwrap_or(0)];
        let read = read_at(&fd, &mut data, offset).map_err(refused)?;
        if read < data.len() {
            return Err(self.fault_and_say(name, wrong_length(offset + read as u64, expected)));
        }
        Ok(data)
    }

    fn fault_and_say(&mut self, name: &Name, reason: String) -> String {
        self.fault(name, reason.clone());
        reason
    }

    /// Tries to bring the file to what the state has, or says what is there instead: see [`Looked`].
    ///
    /// # Errors
    /// A sentence, if there is no file to speak of, or the disk refuses.
    pub(super) fn look(&mut self, look: &Look) -> Result<Looked, String> {
        let name = &look.file;
        if self.files.get(name).is_none_or(|file| file.generation != look.generation) {
            return Err("the file has been deleted or rotated since".to_owned());
        }
        if self.dirty.contains(name) {
            self.sync_file(name, &mut Synced::new());
        }
        // A file in the place of the old one may be accepted, so what is known of the old one does not count.
        self.open.remove(name);
        let Some(file) = self.files.get(name).cloned() else { return Err(gone()) };
        let (fd, found) = match self.tree.open_file(name) {
            Ok(opened) => opened,
            Err(Obstacle::Missing) if file.safe == 0 && self.completes(&file, 0, look) => {
                self.tree.create_file(name).map_err(|obstacle| clause(&obstacle))?
            }
            Err(Obstacle::Missing) => {
                return Err("the file is missing; put it back, or delete it by delete_file".to_owned());
            }
            Err(obstacle) => return Err(clause(&obstacle)),
        };
        let in_reach = file.safe <= found.length && found.length <= look.length;
        if in_reach {
            let prefix = checksum(&fd, file.safe).map_err(refused)?;
            if self.completes(&file, prefix, look) && is_ours(&fd, &file, found.length).map_err(refused)? {
                return self.restore(look, &fd, &file);
            }
        }
        // What is reported may become the truth, so it has to be on disk.
        rustix::fs::fsync(&fd).map_err(|error| unsynced(error.into()))?;
        let crc = checksum(&fd, found.length).map_err(refused)?;
        let restored = found.length == look.length && crc == look.checksum;
        Ok(Looked { length: found.length, checksum: crc, restored })
    }

    /// Whether the safe bytes, of which `prefix` is the checksum, and the kept ones are together what the state has.
    fn completes(&self, file: &File, prefix: u32, look: &Look) -> bool {
        let (mut at, mut crc) = (file.safe, prefix);
        for effect in &file.kept {
            let FileAct::Write { offset, data } = &effect.act else { return false };
            if *offset != at {
                return false;
            }
            at += data.len() as u64;
            crc = crc32c::crc32c_append(crc, data);
        }
        at == look.length && crc == look.checksum
    }

    /// Writes what is kept once more and syncs it. The fault stays until the log says that the file is repaired.
    fn restore(&mut self, look: &Look, fd: &OwnedFd, file: &File) -> Result<Looked, String> {
        for effect in &file.kept {
            if let FileAct::Write { offset, data } = &effect.act {
                write_at(fd, data, *offset).map_err(refused)?;
            }
        }
        rustix::fs::fsync(fd).map_err(|error| unsynced(error.into()))?;
        self.tree.sync_parents(&look.file, &mut Synced::new()).map_err(|obstacle| clause(&obstacle))?;
        let found = tree::look_again(fd).map_err(|obstacle| somebody(&obstacle))?;
        if found.length != look.length {
            return Err(wrong_length(found.length, look.length));
        }
        if let Some(file) = self.files.get_mut(&look.file) {
            self.gauges.kept.sub(file.kept.drain(..).map(|effect| weight(&effect)).sum());
            file.identity = Some(found.identity);
            file.length = look.length;
            file.safe = look.length;
            file.touched = look.length;
        }
        Ok(Looked { length: look.length, checksum: look.checksum, restored: true })
    }

    /// Takes what is on disk as the file's content: the log says so. What was kept is dropped with the fault.
    pub(super) fn repair(&mut self, effect: &FileEffect, length: u64, checksum: u32) {
        self.reached(effect.op.saturating_sub(1));
        self.gauges.pending.sub(weight(effect));
        let name = &effect.file;
        let Some(file) = self.files.remove(name) else {
            log::warn!("file {name:?} was repaired and is not known");
            return;
        };
        if file.generation != effect.generation {
            log::warn!(
                "file {name:?} was repaired in generation {}, not {}",
                effect.generation,
                file.generation
            );
            self.files.insert(name.clone(), file);
            return;
        }
        self.forget(name, file);
        let file = File { check: Some((length, checksum)), ..File::safe(effect.generation, length) };
        self.files.insert(name.clone(), file);
        match self.tree.find(name) {
            Ok(found) if found.length == length => {
                if let Some(file) = self.files.get_mut(name) {
                    file.identity = Some(found.identity);
                }
                self.checks.push_back(name.clone());
                self.dirty.insert(name.clone());
            }
            Ok(found) => self.fault(name, wrong_length(found.length, length)),
            Err(obstacle) => self.fault(name, somebody(&obstacle)),
        }
    }

    /// Lets the background check hold this against the bytes on disk.
    pub(super) fn check_later(&mut self, name: &Name, length: u64, checksum: u32) {
        if let Some(file) = self.files.get_mut(name) {
            file.check = Some((length, checksum));
            self.checks.push_back(name.clone());
        }
    }

    /// Whether files wait for their check.
    pub(super) fn has_checks(&self) -> bool {
        self.checking.is_some() || !self.checks.is_empty()
    }

    /// Checks some bytes of one file. A file whose bytes are not those that were committed gets a fault.
    pub(super) fn check_some(&mut self) {
        let Some(checking) = self.checking.take().or_else(|| self.next_check()) else { return };
        let Some(file) = self.files.get(&checking.file) else { return };
        let Some((length, expected)) = file.check else { return };
        if file.generation != checking.generation || file.fault.is_some() {
            return;
        }
        match self.check_slice(&checking, length) {
            Ok(Some(crc)) if checking.at + CHECK_SLICE < length => {
                self.checking = Some(Checking { at: checking.at + CHECK_SLICE, crc, ..checking });
            }
            Ok(Some(crc)) => {
                if let Some(file) = self.files.get_mut(&checking.file) {
                    file.check = None;
                }
                if crc != expected {
                    let reason = "its bytes on disk are not those that were written: the checksum differs";
                    self.fault(&checking.file, reason.to_owned());
                }
            }
            Ok(None) => self.fault(&checking.file, "somebody else made the file shorter".to_owned()),
            Err(Obstacle::Disk(error)) => {
                log::error!("file {:?} cannot be checked: {}", checking.file, describe(error));
            }
            Err(obstacle) => self.fault(&checking.file, somebody(&obstacle)),
        }
    }

    fn next_check(&mut self) -> Option<Checking> {
        let file = self.checks.pop_front()?;
        let generation = self.files.get(&file).map_or(0, |file| file.generation);
        Some(Checking { file, generation, at: 0, crc: 0 })
    }

    /// The checksum with the next slice, none if the file ends before it.
    fn check_slice(&self, checking: &Checking, length: u64) -> Result<Option<u32>, Obstacle> {
        // Not through the cache of descriptors: a check of all files would empty it.
        let (fd, _) = self.tree.open_to_read(&checking.file)?;
        let size = CHECK_SLICE.min(length.saturating_sub(checking.at));
        let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
        let read = read_at(&fd, &mut data, checking.at)
            .map_err(|error| Obstacle::Disk(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        Ok((read == data.len()).then(|| crc32c::crc32c_append(checking.crc, &data)))
    }
}

/// What an effect takes in memory, in bytes.
pub(super) fn weight(effect: &FileEffect) -> u64 {
    128 + effect.file.len() as u64 + bytes(effect)
}

fn bytes(effect: &FileEffect) -> u64 {
    match &effect.act {
        FileAct::Write { data, .. } => data.len() as u64,
        FileAct::Delete | FileAct::Rotate { .. } | FileAct::Repair { .. } => 0,
    }
}

/// Whether what stands on disk past the safe bytes can only be from writes of ours: below `touched` anything, past it
/// what is kept, or the zeros that a crash leaves.
fn is_ours(fd: &OwnedFd, file: &File, length: u64) -> io::Result<bool> {
    for effect in &file.kept {
        let FileAct::Write { offset, data } = &effect.act else { return Ok(false) };
        let from = (*offset).max(file.touched);
        let to = length.min(offset + data.len() as u64);
        if from >= to {
            continue;
        }
        let mut there = vec![0; usize::try_from(to - from).unwrap_or(0)];
        let read = read_at(fd, &mut there, from)?;
        let skip = usize::try_from(from - offset).unwrap_or(0);
        let same = there.iter().zip(&data[skip..]).all(|(there, ours)| there == ours || *there == 0);
        if read < there.len() || !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The CRC-32C of the first `length` bytes.
fn checksum(fd: &OwnedFd, length: u64) -> io::Result<u32> {
    let (mut at, mut crc) = (0, 0);
    let mut buffer = vec![0; usize::try_from(CHECK_SLICE.min(length)).unwrap_or(0)];
    while at < length {
        let size = usize::try_from(CHECK_SLICE.min(length - at)).unwrap_or(0);
        let read = read_at(fd, &mut buffer[..size], at)?;
        if read < size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter meanwhile"));
        }
        crc = crc32c::crc32c_append(crc, &buffer[..size]);
        at += size as u64;
    }
    Ok(crc)
}

/// Fills the buffer from the file as far as the file goes; gives the number of bytes.
fn read_at(fd: &OwnedFd, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match rustix::io::pread(fd, &mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(read)
}

fn refused(error: io::Error) -> String {
    match Errno::from_io_error(&error) {
        Some(error) => format!("the disk refused: {}", describe(error)),
        None => format!("the disk refused: {error}"),
    }
}

fn unsynced(error: io::Error) -> String {
    match Errno::from_io_error(&error) {
        Some(error) => format!("the disk refused to sync: {}", describe(error)),
        None => format!("the disk refused to sync: {error}"),
    }
}

/// An obstacle as a sentence.
fn clause(obstacle: &Obstacle) -> String {
    format!("the file {obstacle}")
}

/// An obstacle where the server had a file: somebody else has been here, unless it is the disk.
pub(super) fn somebody(obstacle: &Obstacle) -> String {
    match obstacle {
        Obstacle::Missing | Obstacle::Foreign(_) => format!("somebody else changed the file: it {obstacle}"),
        Obstacle::Disk(_) => clause(obstacle),
    }
}

pub(super) fn wrong_length(found: u64, expected: u64) -> String {
    format!("somebody else changed the file: it has {found} bytes, not {expected}")
}

fn gone() -> String {
    "the file is not known".to_owned()
}

const REPLACED: &str = "is another file than before";

/// Descriptors kept open.
const OPEN_MAX: usize = 256;

/// Unsynced bytes, and files with any, after which a sync does not wait for its time.
const DIRTY_BYTES_MAX: u64 = 8 << 20;
const DIRTY_FILES_MAX: usize = 1024;

/// The most that one read gives, in bytes.
const READ_MAX: u64 = 1 << 20;

/// What one step of the background check reads, in bytes.
const CHECK_SLICE: u64 = 256 << 10;
