//! What the image knows of each file, and the work on them: straight-line, on whatever thread calls it.
//!
//! A file's bytes are, from the left: safe (written and synced), unsynced (written, still held in memory), waiting (held
//! in memory because the disk had no room for them), kept (held in memory because the file is faulted). A fault turns
//! unsynced and waiting into kept: after a failed sync the kernel may have dropped what it took, and a file that
//! somebody else changed proves nothing.
//!
//! ```text
//!   0             safe                length             what the state has
//!   ├── on disk ───┼── unsynced ────────┤                   no fault
//!   ├── on disk ───┼── unsynced ────────┼── waiting ────────┤  no fault, no room
//!   ├── on disk ───┼── kept: not safe, perhaps partly on disk ─┤  fault
//! ```
//!
//! Lack of room is no fault: the effects of the file wait, in order, while other files go on, and are tried again. Of
//! the first of them a part may be on disk already; it is completed where it ends.

use super::record::{self, Kept, Record};
use super::tree::{self, Obstacle, Synced, Tree};
use super::{Event, Gauges, Look, Looked, describe, lack_of_room, point};
use crate::disk;
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
    /// Files with effects that wait for room.
    waiting: BTreeSet<Name>,
    /// Whether a delete, a rotate or the record was stopped by lack of room when it was tried last.
    pub(super) stopped: bool,
    /// Effects that the recovery could not come to, since one that nothing may overtake had no room.
    pub(super) behind: VecDeque<FileEffect>,
    /// Every effect up to this command was executed.
    pub(super) done: Op,
    pub(super) recorded: Record,
    /// The delete or rotate that is done but not yet recorded as done.
    acted: Option<Op>,
    pub(super) events: Vec<Event>,
    pub(super) gauges: Arc<Gauges>,
    checks: VecDeque<Name>,
    checking: Option<Checking>,
    /// Files that the state does not know, after a stop that may have lost the log's word of them. What is created in
    /// the place of one puts it aside.
    pub(super) lost: BTreeSet<Name>,
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
    pub(super) waiting: VecDeque<FileEffect>,
    /// So many bytes of the first waiting effect are on disk.
    partial: u64,
    /// After a crash or a failed sync: what stands past `length` is ours, but as much and as torn as it may be.
    pub(super) loose: bool,
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

    /// The length that the file has once nothing waits.
    pub(super) fn end(&self) -> u64 {
        match self.waiting.back() {
            Some(FileEffect { act: FileAct::Write { offset, data }, .. }) => offset + data.len() as u64,
            _ => self.length,
        }
    }

    /// Whether the file can have this length on disk if nobody else changed it.
    fn fits(&self, found: u64) -> bool {
        match self.loose {
            true => (self.length..=self.end()).contains(&found),
            false => found == self.length + self.partial,
        }
    }

    fn wrong_length(&self, found: u64) -> String {
        wrong_length(found, self.length + self.partial)
    }

    /// Whether nothing of it was ever on disk, its name included.
    fn is_unborn(&self) -> bool {
        self.identity.is_none() && self.length == 0 && !self.waiting.is_empty()
    }
}

/// Why a file did not take an effect.
#[derive(Debug)]
pub(super) enum Hitch {
    /// The disk has no room: nothing is wrong, the effect waits.
    Room(Errno),
    /// The file is closed, with a sentence.
    Fault(String),
}

impl From<Obstacle> for Hitch {
    fn from(obstacle: Obstacle) -> Hitch {
        match obstacle {
            Obstacle::Disk(errno @ (Errno::NOSPC | Errno::DQUOT)) => Hitch::Room(errno),
            obstacle => Hitch::Fault(clause(&obstacle)),
        }
    }
}

impl From<io::Error> for Hitch {
    fn from(error: io::Error) -> Hitch {
        lack_of_room(&error).map_or_else(|| Hitch::Fault(refused(error)), Hitch::Room)
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
            waiting: BTreeSet::new(),
            stopped: false,
            behind: VecDeque::new(),
            done: recorded.op,
            recorded,
            acted: None,
            events: Vec::new(),
            gauges: Arc::default(),
            checks: VecDeque::new(),
            checking: None,
            lost: BTreeSet::new(),
        })
    }

    /// Executes one effect of the running server.
    ///
    /// # Errors
    /// The record could not be written, or there was no room for a delete or rotate. The effect is not done; the same
    /// call again takes it up where it stopped, and nothing else may be executed before.
    pub(super) fn apply(&mut self, effect: FileEffect) -> io::Result<()> {
        match &effect.act {
            FileAct::Write { .. } => self.write(effect, true),
            FileAct::Repair { length, checksum } => self.repair(&effect, *length, *checksum),
            FileAct::Delete | FileAct::Rotate { .. } => {
                let (op, weight) = (effect.op, weight(&effect));
                self.barrier(op, |mirror| match &effect.act {
                    FileAct::Delete => mirror.delete(&effect.file, effect.generation),
                    FileAct::Rotate { to } => mirror.rotate(&effect.file, effect.generation, to),
                    FileAct::Write { .. } | FileAct::Repair { .. } => Ok(()),
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
    pub(super) fn barrier(
        &mut self,
        op: Op,
        act: impl FnOnce(&mut Mirror) -> Result<(), Errno>,
    ) -> io::Result<()> {
        if self.acted != Some(op) {
            self.reached(op.saturating_sub(1));
            self.sync()?;
            // Nothing later may be done before it, so a lack of room stops everything here.
            act(self).inspect_err(|_| self.stopped = true)?;
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
        let Some(file) = self.files.get(&name) else { return };
        if file.fault.is_some() {
            return self.keep(effect);
        }
        let end = file.end();
        if end != offset {
            self.keep(effect);
            return self.fault(&name, format!("the log writes at {offset}, the image is at {end}"));
        }
        if !file.waiting.is_empty() {
            return self.postpone(effect);
        }
        match self.try_write(&name, offset, &data, strict) {
            Ok(()) => self.took(&name, effect),
            Err(Hitch::Room(_)) => {
                if let Some(file) = self.files.get_mut(&name) {
                    file.loose = !strict;
                }
                self.postpone(effect);
            }
            Err(Hitch::Fault(reason)) => {
                self.keep(effect);
                self.fault(&name, reason);
            }
        }
    }

    /// Notes that a file took its next effect.
    fn took(&mut self, name: &Name, effect: FileEffect) {
        let Some(file) = self.files.get_mut(name) else { return };
        file.length += bytes(&effect);
        file.partial = 0;
        self.dirty_bytes += bytes(&effect);
        file.unsynced.push(effect);
        self.dirty.insert(name.clone());
    }

    /// Lets an effect wait for room, behind those of its file that wait already.
    pub(super) fn postpone(&mut self, effect: FileEffect) {
        if let Some(file) = self.files.get_mut(&effect.file) {
            self.waiting.insert(effect.file.clone());
            file.waiting.push_back(effect);
        }
    }

    /// After a crash: of what waits, anything may be on disk already.
    pub(super) fn loosen(&mut self) {
        for name in &self.waiting {
            let Some(file) = self.files.get_mut(name) else { continue };
            if let Ok(found) = self.tree.find(name) {
                file.identity.get_or_insert(found.identity);
            }
            file.loose = true;
            // Its name may not be durable: the next sync covers it.
            file.fresh = true;
        }
    }

    /// Tries again what waits for room: of each file as much as there is room for.
    pub(super) fn resume(&mut self) {
        // Between a delete or rotate and its record nothing may be written.
        if self.acted.is_some() {
            return;
        }
        for name in self.waiting.clone() {
            self.resume_file(&name);
        }
    }

    /// Tries again what waits of this file.
    pub(super) fn resume_file(&mut self, name: &Name) {
        while let Some(effect) = self.files.get(name).and_then(|file| file.waiting.front().cloned()) {
            let FileAct::Write { offset, data } = &effect.act else { return };
            match self.try_write(name, *offset, data, true) {
                Ok(()) => {
                    if let Some(file) = self.files.get_mut(name) {
                        file.waiting.pop_front();
                    }
                    self.took(name, effect);
                }
                Err(Hitch::Room(_)) => return,
                Err(Hitch::Fault(reason)) => return self.fault(name, reason),
            }
        }
        if self.waiting.remove(name)
            && let Some(file) = self.files.get_mut(name)
        {
            file.loose = false;
            if file.check.is_some() {
                self.checks.push_back(name.clone());
            }
        }
    }

    /// Whether effects of some file wait for room.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether anything stands still for lack of room.
    pub(super) fn lacks_room(&self) -> bool {
        self.stopped || self.is_waiting()
    }

    fn try_write(&mut self, name: &Name, offset: u64, data: &[u8], strict: bool) -> Result<(), Hitch> {
        point("image.before_write")?;
        let Some(file) = self.files.get(name) else { return Err(Hitch::Fault(gone())) };
        let fd = if file.identity.is_none() && offset == 0 {
            self.create(name)?
        } else {
            self.descriptor(name).map_err(|obstacle| Hitch::Fault(somebody(&obstacle)))?
        };
        let found = tree::look_again(&fd).map_err(|obstacle| Hitch::Fault(somebody(&obstacle)))?;
        let Some(file) = self.files.get_mut(name) else { return Err(Hitch::Fault(gone())) };
        if strict && !file.fits(found.length) {
            return Err(Hitch::Fault(file.wrong_length(found.length)));
        }
        file.touched = file.touched.max(offset + data.len() as u64);
        let rest =
            usize::try_from(file.partial).map_or(&[][..], |partial| data.get(partial..).unwrap_or(&[]));
        let (written, result) = disk::write_counted(&fd, rest, offset + file.partial);
        if strict && !file.loose {
            file.partial += written as u64;
        }
        result?;
        Ok(point("image.after_write")?)
    }

    /// Creates the file on disk, which must not have it.
    fn create(&mut self, name: &Name) -> Result<Arc<OwnedFd>, Hitch> {
        if self.lost.remove(name) {
            self.put_aside(name)?;
        }
        let (fd, found) = self.tree.create_file(name)?;
        if let Some(file) = self.files.get_mut(name) {
            file.identity = Some(found.identity);
            file.fresh = true;
        }
        Ok(self.cache(name, fd))
    }

    /// Gives another name to a file whose creation the log may have lost. It may be somebody else's all the same, so
    /// nothing of it is destroyed.
    fn put_aside(&mut self, name: &Name) -> Result<(), Hitch> {
        let generation = self.files.get(name).map_or(0, |file| file.generation);
        let Ok(aside) = Name::file(&format!("{name}.lost-{generation}")) else { return Ok(()) };
        match self.tree.rename(name, &aside) {
            Ok(()) => {
                log::warn!(
                    "file {name:?} is {aside:?} from now on: it is begun anew, and the log has lost the old one"
                );
                Ok(())
            }
            Err(Obstacle::Missing) => Ok(()),
            Err(obstacle) => Err(obstacle.into()),
        }
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
        self.waiting.remove(name);
        (file.partial, file.loose) = (0, false);
        for effect in file.unsynced.drain(..).chain(file.waiting.drain(..)).rev() {
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
        self.waiting.remove(name);
        let pending = file.unsynced.drain(..).chain(file.waiting.drain(..));
        self.gauges.pending.sub(pending.map(|effect| weight(&effect)).sum());
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

    /// Syncs every dirty file, then records how far the image is safe. A file that cannot be synced gets a fault; if it
    /// is for lack of room, its bytes wait to be written anew.
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
            Err(Hitch::Room(errno)) => self.unwrite(name, errno),
            Err(Hitch::Fault(reason)) => self.fault(name, reason),
        }
    }

    /// Takes back what was written since the last sync: the kernel may have dropped it, so it is written anew.
    fn unwrite(&mut self, name: &Name, errno: Errno) {
        self.clean(name);
        let Some(file) = self.files.get_mut(name) else { return };
        if file.unsynced.is_empty() {
            // Nothing to write anew, and a sync that failed proves nothing when it is tried again.
            return self.fault(name, unsynced(errno.into()));
        }
        for effect in file.unsynced.drain(..).rev() {
            file.waiting.push_front(effect);
        }
        (file.length, file.partial, file.loose) = (file.safe, 0, true);
        self.waiting.insert(name.clone());
    }

    fn try_sync(&mut self, name: &Name, synced: &mut Synced) -> Result<(), Hitch> {
        let failed = |error: io::Error| {
            lack_of_room(&error).map_or_else(|| Hitch::Fault(unsynced(error)), Hitch::Room)
        };
        let changed = |obstacle: Obstacle| Hitch::Fault(somebody(&obstacle));
        point("image.before_sync").map_err(failed)?;
        let fd = self.descriptor(name).map_err(changed)?;
        let Some(file) = self.files.get(name) else { return Err(Hitch::Fault(gone())) };
        let found = self.tree.find(name).map_err(changed)?;
        if Some(found.identity) != file.identity {
            return Err(changed(Obstacle::Foreign(REPLACED)));
        }
        if !file.fits(found.length) {
            return Err(Hitch::Fault(file.wrong_length(found.length)));
        }
        if !crate::bug::planted("file_safe_before_its_sync") {
            disk::sync_data(&fd).map_err(|error| failed(error.into()))?;
        }
        if file.fresh {
            self.tree.sync_parents(name, synced).map_err(|obstacle| {
                Hitch::Fault(format!("the disk refused to sync: the directory of the file {obstacle}"))
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
            if let Some(first) = file.kept.front().or(file.waiting.front()) {
                let (generation, waits) = (file.generation, file.fault.is_none());
                record.kept.push(Kept { file: name.clone(), generation, from: first.op, waits });
            }
        }
        if record == self.recorded {
            self.stopped = false;
            return Ok(());
        }
        let written = record.write(&self.directory);
        self.stopped = written.as_ref().is_err_and(|error| lack_of_room(error).is_some());
        written?;
        self.events.push(Event::Watermark(record.clone()));
        self.recorded = record;
        Ok(())
    }

    /// Removes the file. What cannot be removed is left behind and said; a new file of this name will find it.
    ///
    /// # Errors
    /// There is no room to remove it. Nothing has changed.
    pub(super) fn delete(&mut self, name: &Name, generation: u64) -> Result<(), Errno> {
        let done = match self.try_delete(name) {
            Err(Hitch::Room(errno)) => return Err(errno),
            Err(Hitch::Fault(reason)) => Err(reason),
            Ok(()) => Ok(()),
        };
        if let Some(file) = self.files.remove(name) {
            self.forget(name, file);
        }
        if let Err(reason) = done {
            let reason = format!("it was deleted, but what has its name on disk stays: {reason}");
            log::error!("file {name:?}: {reason}");
            self.events.push(Event::Fault { file: name.clone(), generation, reason });
        }
        Ok(())
    }

    fn try_delete(&mut self, name: &Name) -> Result<(), Hitch> {
        point("image.before_unlink")?;
        match self.tree.remove(name) {
            Ok(()) => {}
            Err(Obstacle::Missing) => {
                if self.files.get(name).is_none_or(|file| !file.is_unborn()) {
                    log::warn!("file {name:?} was to be deleted and was gone already");
                }
            }
            // It is gone, and it was its directory that could not be synced.
            Err(obstacle) if matches!(self.tree.find(name), Err(Obstacle::Missing)) => {
                return Err(Hitch::Fault(clause(&obstacle)));
            }
            Err(obstacle) => return Err(obstacle.into()),
        }
        point("image.after_unlink").map_err(|error| Hitch::Fault(refused(error)))
    }

    /// Gives the file its new name, with whatever fault it has. If that fails the new name has the fault.
    ///
    /// # Errors
    /// There is no room for the new name. Nothing has changed.
    pub(super) fn rotate(&mut self, from: &Name, generation: u64, to: &Name) -> Result<(), Errno> {
        let known = self.files.get(from).filter(|file| file.generation == generation);
        let (unborn, known) = (known.is_some_and(File::is_unborn), known.is_some());
        let found = self.tree.find(from);
        let renamed = match self.try_rename(from, to) {
            Err(Hitch::Room(errno)) => return Err(errno),
            // What waits for room will create it under the new name.
            Err(Hitch::Fault(_)) if unborn && matches!(found, Err(Obstacle::Missing)) => Ok(()),
            Err(Hitch::Fault(reason)) => Err(reason),
            Ok(()) => Ok(()),
        };
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
        if let Err(reason) = renamed {
            self.fault(to, format!("its content is still called {from:?}: {reason}"));
            return Ok(());
        }
        match (expected, found) {
            (Some(identity), Ok(found)) if identity == found.identity => {
                if let Some(file) = self.files.get(to)
                    && !file.fits(found.length)
                {
                    self.fault(to, file.wrong_length(found.length));
                }
            }
            (Some(_), Ok(_)) => self.fault(to, somebody(&Obstacle::Foreign(REPLACED))),
            (Some(_), Err(obstacle)) => self.fault(to, somebody(&obstacle)),
            // Never seen on disk by this process, or faulted already.
            (None, _) => {}
        }
        Ok(())
    }

    /// Moves what is known of a file to its new name; gives which file must be on disk, if that is known.
    pub(super) fn move_entry(&mut self, from: &Name, to: &Name) -> Option<(u64, u64)> {
        let file = self.files.remove(from)?;
        if let Some(old) = self.files.remove(to) {
            self.forget(to, old);
        }
        if let Some(open) = self.open.remove(from) {
            self.open.insert(to.clone(), open);
        }
        if self.waiting.remove(from) {
            self.waiting.insert(to.clone());
        }
        if file.check.is_some() {
            self.checks.push_back(to.clone());
        }
        let expected = file.identity.filter(|_| file.fault.is_none());
        self.files.insert(to.clone(), file);
        expected
    }

    /// Renames on disk, durably. For lack of room nothing was renamed.
    pub(super) fn try_rename(&mut self, from: &Name, to: &Name) -> Result<(), Hitch> {
        point("image.before_rename")?;
        self.tree.rename(from, to)?;
        point("image.after_rename").map_err(|error| Hitch::Fault(refused(error)))?;
        self.settle_rename(from, to).map_err(Hitch::Fault)
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

    /// Reads committed bytes: those of `[offset, offset + limit)` that lie below `length`. What waits for room is read
    /// from memory.
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
        let (on_disk, identity, unborn) = (file.length, file.identity, file.is_unborn());
        if file.end() < length {
            return Err(self.fault_and_say(name, wrong_length(file.end(), length)));
        }
        let end = offset.saturating_add(limit.min(READ_MAX)).min(length);
        let mut data = vec![0; usize::try_from(end.saturating_sub(offset)).unwrap_or(0)];
        let split =
            usize::try_from(on_disk.saturating_sub(offset)).map_or(data.len(), |it| it.min(data.len()));
        copy_waiting(file, &mut data[split..], offset + split as u64);
        if unborn {
            return Ok(data);
        }
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
        if let Some(file) = self.files.get(name)
            && !file.fits(found.length)
        {
            return Err(self.fault_and_say(name, file.wrong_length(found.length)));
        }
        let read = read_at(&fd, &mut data[..split], offset).map_err(refused)?;
        if read < split {
            return Err(self.fault_and_say(name, wrong_length(offset + read as u64, on_disk)));
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
        if self.waiting.contains(name) {
            return Err("nothing is wrong with the file: it waits for room on the disk".to_owned());
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
        disk::sync_all(&fd).map_err(|error| unsynced(error.into()))?;
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
                disk::write_at(fd, data, *offset).map_err(refused)?;
            }
        }
        disk::sync_all(fd).map_err(|error| unsynced(error.into()))?;
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
        // What waits for room is checked once it is written.
        if file.generation != checking.generation || file.fault.is_some() || file.length < length {
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

/// Fills the buffer with the bytes from `from` on that wait for room.
fn copy_waiting(file: &File, buffer: &mut [u8], from: u64) {
    let to = from + buffer.len() as u64;
    for effect in &file.waiting {
        let FileAct::Write { offset, data } = &effect.act else { continue };
        let (start, end) = (from.max(*offset), to.min(offset + data.len() as u64));
        if start < end {
            let at = |position: u64, base: u64| usize::try_from(position - base).unwrap_or(usize::MAX);
            buffer[at(start, from)..at(end, from)]
                .copy_from_slice(&data[at(start, *offset)..at(end, *offset)]);
        }
    }
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
