//! Bringing the image to the state after a stop, clean or not.
//!
//! What the record ([`Record`]) says decides for each effect of the log whether it is on disk. Let W be its `op`:
//!
//! | the effect X | what is known | what is done |
//! | --- | --- | --- |
//! | a write, X <= W | on disk and synced | nothing, unless its file is in `kept` |
//! | a write, X > W | absent, short, torn or whole | written again at its offset, whatever stands there |
//! | a delete or rotate, X <= W | done and synced | nothing |
//! | a delete or rotate, X = W + 1 | done or not done; nothing later is | a delete is done again; a rotate, if `file` is still there |
//! | a delete or rotate, X > W + 1 | not done: the record said X - 1 before it began | done |
//!
//! The crash points of a rotate `a` -> `b` at X, and of a delete:
//!
//! ```text
//!   sync all │ record X-1 │ rename │ sync directories │ record X │ a later write may create a new `a`
//!            1            2        3                  4          5
//! ```
//!
//! 1: W < X - 1, nothing was done. 2: W = X - 1 and `a` is there: done now. 3: W = X - 1, and the power may have taken
//! the rename back: either 2 or 4. 4: W = X - 1, `a` is missing and `b` is there: it was done. 5: W >= X, never looked
//! at again, so that a new `a` is safe. Recovery executes with the same barriers, so a crash in it is one of these.
//!
//! A write whose file is later deleted or repaired in the same log is not executed: its bytes no longer matter.
//! A file that is in `kept` but has no fault in the state lost its `file_fault` in the crash: it is restored with the
//! care of a repair, and gets its fault again if that fails. One that waited for room is written like any other.
//!
//! A start needs no room. A write that finds none waits, as in the running server. A delete or rotate that finds none
//! was not done before the stop either, nor was anything after it: all that is left to the running image.

use super::mirror::{File, Hitch, Mirror, somebody, weight, wrong_length};
use super::record::{Kept, Record};
use super::tree::Obstacle;
use super::{Cut, Event, Look, Recovery, lack_of_room};
use crate::identity::Op;
use crate::name::Name;
use crate::outcome::{FileAct, FileEffect};
use crate::state::FilePart;
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::Path;

/// See [`Image::recover`](super::Image::recover).
pub(super) fn recover(
    data_dir: &Path,
    parts: &[FilePart],
    redo: Vec<FileEffect>,
    trust_surplus: bool,
) -> io::Result<(Mirror, Recovery)> {
    let mut mirror = Mirror::open(data_dir)?;
    let mut redone = Redone {
        record: mirror.recorded.clone(),
        trust_surplus,
        taken: BTreeSet::new(),
        recovery: Recovery::default(),
    };
    let fates = fates(parts, &redo);
    let mut redo: VecDeque<(FileEffect, Fate<'_>)> = redo.into_iter().zip(fates).collect();
    while let Some((effect, fate)) = redo.pop_front() {
        match redone.redo(&mut mirror, effect.clone(), fate) {
            Ok(()) => {}
            Err(error) if lack_of_room(&error).is_some() => {
                log::warn!("the files' disk has no room for what the log did at op {}: {error}", effect.op);
                redo.push_front((effect, fate));
                break;
            }
            Err(error) => return Err(error),
        }
    }
    let left = leave(&mut mirror, redo);
    mirror.loosen();
    for part in parts.iter().filter(|part| !left.contains(&part.generation)) {
        redone.settle(&mut mirror, part);
    }
    match mirror.sync() {
        Err(error) if lack_of_room(&error).is_some() => {
            log::warn!("image.json cannot be written for lack of room: {error}");
        }
        other => other?,
    }
    mirror.stopped |= !mirror.behind.is_empty();
    let known = parts.iter().map(|part| part.file.as_str()).collect();
    let mut found = |name: &str| {
        if trust_surplus && mirror.lost.len() < LOST_MAX {
            mirror.lost.extend(Name::file(name));
        }
    };
    redone.recovery.unknown = mirror.tree.unknown(&known, UNKNOWN_SHOWN, &mut found);
    Ok((mirror, redone.recovery))
}

/// What becomes of a file after one of its effects.
#[derive(Clone, Copy, Debug)]
enum Fate<'a> {
    /// It is in the state, and no later effect says anew what its content is. The number is its length in bytes after
    /// the effect: where the next write of the redo begins, or what the state has.
    Stays(&'a FilePart, u64),
    /// It is in the state, and a later repair says what its content is.
    Repaired(&'a FilePart),
    /// It is gone from the state.
    Gone,
}

/// The fate of each effect, found from the end: the state says what the last effect left.
fn fates<'a>(parts: &'a [FilePart], redo: &[FileEffect]) -> Vec<Fate<'a>> {
    let mut last: BTreeMap<Name, Fate<'a>> =
        parts.iter().map(|part| (part.file.clone(), Fate::Stays(part, part.length))).collect();
    let mut fates = Vec::with_capacity(redo.len());
    for effect in redo.iter().rev() {
        let fate = match &effect.act {
            FileAct::Delete => {
                last.insert(effect.file.clone(), Fate::Gone);
                Fate::Gone
            }
            FileAct::Rotate { to } => {
                let fate = last.remove(to).unwrap_or(Fate::Gone);
                last.insert(effect.file.clone(), fate);
                fate
            }
            FileAct::Write { .. } | FileAct::Repair { .. } => {
                last.get(&effect.file).copied().unwrap_or(Fate::Gone)
            }
        };
        // A part of another generation is another file of the same name.
        let fate = match fate {
            Fate::Stays(part, _) | Fate::Repaired(part) if part.generation != effect.generation => Fate::Gone,
            fate => fate,
        };
        match (&effect.act, fate) {
            (FileAct::Repair { .. }, Fate::Stays(part, _)) => {
                last.insert(effect.file.clone(), Fate::Repaired(part));
            }
            (FileAct::Write { offset, .. }, Fate::Stays(part, _)) => {
                last.insert(effect.file.clone(), Fate::Stays(part, *offset));
            }
            _ => {}
        }
        fates.push(fate);
    }
    fates.reverse();
    fates
}

/// Leaves effects to the running image, to which they are new, and makes it know their files; gives their generations.
fn leave(mirror: &mut Mirror, effects: VecDeque<(FileEffect, Fate<'_>)>) -> BTreeSet<u64> {
    let mut left = BTreeSet::new();
    for (effect, fate) in effects {
        let (part, length) = match (fate, &effect.act) {
            (Fate::Stays(part, _), FileAct::Write { offset, .. }) => (part, *offset),
            (Fate::Stays(part, length), _) => (part, length),
            (Fate::Repaired(part), FileAct::Rotate { .. }) => (part, part.length),
            // Bytes that do not matter any more.
            (_, FileAct::Write { .. } | FileAct::Repair { .. }) => continue,
            (_, FileAct::Delete | FileAct::Rotate { .. }) => {
                mirror.gauges.pending.add(weight(&effect));
                mirror.behind.push_back(effect);
                continue;
            }
        };
        let name = &effect.file;
        let known = mirror.files.get(name).is_some_and(|file| file.generation == part.generation);
        if left.insert(part.generation) && !known && effect.op != part.generation {
            let identity = mirror.tree.find(name).ok().map(|found| found.identity);
            let mut file = File::safe(part.generation, length);
            file.identity = identity;
            mirror.files.insert(name.clone(), file);
            if let Some(reason) = &part.fault {
                carry(mirror, name, reason);
            }
        }
        mirror.gauges.pending.add(weight(&effect));
        mirror.behind.push_back(effect);
    }
    left
}

/// A recovery under way.
struct Redone {
    /// As it was found.
    record: Record,
    trust_surplus: bool,
    /// Names that a rotate could not free: what stands there is the content of another file.
    taken: BTreeSet<Name>,
    recovery: Recovery,
}

impl Redone {
    fn redo(&mut self, mirror: &mut Mirror, effect: FileEffect, fate: Fate<'_>) -> io::Result<()> {
        let done = effect.op <= self.record.op;
        match &effect.act {
            FileAct::Write { offset, .. } => {
                let kept = self.kept(effect.generation, effect.op);
                let Fate::Stays(part, _) = fate else { return Ok(()) };
                match kept {
                    None if done => return Ok(()),
                    Some(kept) if kept.waits && done => {
                        // Its file may have another name by now.
                        self.recovery.redone += 1;
                        let offset = *offset;
                        wait_again(mirror, effect, part, offset);
                        return Ok(());
                    }
                    _ => {}
                }
                let faulted = kept.is_some_and(|kept| !kept.waits);
                self.prepare(mirror, &effect.file, part, *offset, faulted);
                mirror.gauges.pending.add(weight(&effect));
                mirror.write(effect, false);
                self.recovery.redone += 1;
            }
            FileAct::Repair { length, .. } => {
                let Fate::Stays(part, _) = fate else { return Ok(()) };
                if done {
                    return Ok(());
                }
                // Safe up to here: it was synced before the command was logged. Later writes may stand after it.
                if let Some(file) = mirror.files.remove(&effect.file) {
                    mirror.forget(&effect.file, file);
                }
                self.prepare(mirror, &effect.file, part, *length, false);
                self.recovery.redone += 1;
            }
            FileAct::Delete if !done => {
                mirror.barrier(effect.op, |mirror| mirror.delete(&effect.file, effect.generation))?;
                self.recovery.redone += 1;
            }
            FileAct::Rotate { to } => {
                if done {
                    mirror.move_entry(&effect.file, to);
                    return Ok(());
                }
                let perhaps_done = self.record.op.checked_add(1) == Some(effect.op);
                mirror.barrier(effect.op, |mirror| {
                    rotate(mirror, &effect.file, effect.generation, to, perhaps_done, fate)
                })?;
                let failed = mirror.files.get(to).is_some_and(|file| file.fault.is_some());
                if failed && !matches!(mirror.tree.find(&effect.file), Err(Obstacle::Missing)) {
                    self.taken.insert(effect.file.clone());
                }
                self.recovery.redone += 1;
            }
            FileAct::Delete => {}
        }
        Ok(())
    }

    /// What the record says of this effect, if it was held back.
    fn kept(&self, generation: u64, op: Op) -> Option<&Kept> {
        self.record.kept.iter().find(|kept| kept.generation == generation && kept.from <= op)
    }

    /// Makes a file ready for its first write of the redo, which begins at `offset`: below it everything is safe.
    fn prepare(&mut self, mirror: &mut Mirror, name: &Name, part: &FilePart, offset: u64, kept: bool) {
        if mirror.files.get(name).is_some_and(|file| file.generation == part.generation) {
            return;
        }
        let generation = part.generation;
        mirror.files.insert(name.clone(), File::safe(generation, offset));
        if let Some(reason) = &part.fault {
            carry(mirror, name, reason);
        } else if kept {
            carry(mirror, name, LOST_FAULT);
        } else if self.taken.contains(name) {
            mirror.fault(
                name,
                "what has its name on disk is the content of a file that was rotated".to_owned(),
            );
        } else {
            match mirror.tree.find(name) {
                // Created by the write itself, which also judges what stands in its place: perhaps an empty directory.
                Err(Obstacle::Missing | Obstacle::Foreign(_)) if offset == 0 => {}
                Ok(found) if found.length >= offset => {
                    if let Some(file) = mirror.files.get_mut(name) {
                        file.identity = Some(found.identity);
                        // Its name may not be durable: this sync covers it.
                        file.mark_fresh();
                    }
                    self.cut_surplus(mirror, name, found.length, part.length);
                }
                Ok(found) => mirror.fault(name, wrong_length(found.length, offset)),
                Err(obstacle) => mirror.fault(name, somebody(&obstacle)),
            }
        }
    }

    /// Holds the file on disk against what the state has of it, once everything is redone.
    fn settle(&mut self, mirror: &mut Mirror, part: &FilePart) {
        let name = &part.file;
        let known = mirror.files.get(name).is_some_and(|file| file.generation == part.generation);
        if !known {
            mirror.files.insert(name.clone(), File::safe(part.generation, part.length));
        }
        let lost = mirror.files.get(name).is_some_and(|file| file.fault.as_deref() == Some(LOST_FAULT));
        match &part.fault {
            Some(reason) => return carry(mirror, name, reason),
            None if lost => return self.restore(mirror, part),
            None => {}
        }
        let Some(file) = mirror.files.get(name).filter(|file| file.fault.is_none()) else { return };
        let (on_disk, end, waits) = (file.length, file.end(), !file.waiting.is_empty());
        match mirror.tree.find(name) {
            Ok(found) if found.length >= on_disk => {
                if end != part.length {
                    let what = format!("the log writes {end} bytes of it, the state has {}", part.length);
                    return mirror.fault(name, what);
                }
                if let Some(file) = mirror.files.get_mut(name) {
                    file.identity.get_or_insert(found.identity);
                }
                self.cut_surplus(mirror, name, found.length, part.length);
            }
            // Created by what waits, as in `prepare`.
            Err(Obstacle::Missing | Obstacle::Foreign(_)) if waits && on_disk == 0 => {}
            Ok(found) => mirror.fault(name, wrong_length(found.length, on_disk)),
            Err(obstacle) => mirror.fault(name, somebody(&obstacle)),
        }
        mirror.check_later(name, part.length, part.checksum);
        if waits {
            mirror.resume_file(name);
        }
    }

    /// Bytes past what the state has: lost records of ours after an unclean stop that may lose some, else a stranger's.
    fn cut_surplus(&mut self, mirror: &mut Mirror, name: &Name, found: u64, length: u64) {
        if found <= length {
            return;
        }
        if !self.trust_surplus {
            return mirror.fault(name, wrong_length(found, length));
        }
        let cut = mirror.descriptor(name).and_then(|fd| {
            crate::disk::set_length(&fd, length)?;
            Ok(crate::disk::sync_all(&fd)?)
        });
        match cut {
            Ok(()) => {
                log::warn!("file {name:?} was cut from {found} to {length} bytes: the log has lost the rest");
                self.recovery.cut.push(Cut { file: name.clone(), from: found, to: length });
            }
            Err(obstacle) => mirror.fault(name, somebody(&obstacle)),
        }
    }

    /// A file whose fault never got into the log: what was kept may well fit now.
    fn restore(&mut self, mirror: &mut Mirror, part: &FilePart) {
        let look = Look {
            file: part.file.clone(),
            generation: part.generation,
            length: part.length,
            checksum: part.checksum,
        };
        mirror.events.retain(|event| !matches!(event, Event::Fault { file, .. } if *file == part.file));
        let looked = mirror.look(&look);
        if let Some(file) = mirror.files.get_mut(&part.file) {
            file.fault = None;
            mirror.gauges.faults.sub(1);
        }
        match looked {
            Ok(looked) if looked.restored => {}
            Ok(looked) => mirror.fault(&part.file, wrong_content(looked.length, part.length)),
            Err(reason) => mirror.fault(&part.file, reason),
        }
    }
}

/// A fault that the state has already, or that is about to be judged: nothing is told.
fn carry(mirror: &mut Mirror, name: &Name, reason: &str) {
    if let Some(file) = mirror.files.get_mut(name) {
        if file.fault.is_none() {
            mirror.gauges.faults.add(1);
        }
        file.fault = Some(reason.to_owned());
    }
    // What a redo wrote meanwhile is kept like the rest.
    mirror.fault(name, reason.to_owned());
    mirror.events.retain(|event| !matches!(event, Event::Fault { file, .. } if file == name));
}

/// An effect that waited for room before the stop waits again, until its file is settled.
fn wait_again(mirror: &mut Mirror, effect: FileEffect, part: &FilePart, offset: u64) {
    let name = &effect.file;
    if mirror.files.get(name).is_none_or(|file| file.generation != part.generation) {
        mirror.files.insert(name.clone(), File::safe(part.generation, offset));
        if let Some(reason) = &part.fault {
            carry(mirror, name, reason);
        }
    }
    mirror.gauges.pending.add(weight(&effect));
    if mirror.files.get(name).is_some_and(|file| file.fault.is_some()) {
        mirror.write(effect, false);
    } else {
        mirror.postpone(effect);
    }
}

fn rotate(
    mirror: &mut Mirror,
    from: &Name,
    generation: u64,
    to: &Name,
    perhaps_done: bool,
    fate: Fate<'_>,
) -> Result<(), Errno> {
    let missing = matches!(mirror.tree.find(from), Err(Obstacle::Missing));
    if missing && perhaps_done && mirror.tree.find(to).is_ok() {
        mirror.move_entry(from, to);
        if let Err(reason) = mirror.settle_rename(from, to) {
            fault_anew(mirror, to, generation, fate, reason);
        }
        return Ok(());
    }
    match fate {
        // What is deleted later need not be there: its writes were not redone.
        Fate::Gone if missing => {}
        Fate::Gone => {
            mirror.files.entry(from.clone()).or_insert_with(|| File::safe(generation, 0));
            mirror.rotate(from, generation, to)?;
            if let Some(file) = mirror.files.remove(to) {
                mirror.forget(to, file);
            }
            mirror.events.retain(|event| !matches!(event, Event::Fault { file, .. } if file == to));
        }
        Fate::Stays(..) | Fate::Repaired(_)
            if mirror.files.get(from).is_some_and(|file| file.generation == generation) =>
        {
            mirror.rotate(from, generation, to)?;
        }
        // Nothing of it was redone yet, so the next write or the end finds it under its new name and says how long it is.
        Fate::Stays(..) | Fate::Repaired(_) => match mirror.try_rename(from, to) {
            Ok(()) => {}
            Err(Hitch::Room(errno)) => return Err(errno),
            Err(Hitch::Fault(reason)) => {
                let reason = format!("its content is still called {from:?}: {reason}");
                fault_anew(mirror, to, generation, fate, reason);
            }
        },
    }
    Ok(())
}

/// A fault of a file of which perhaps nothing was redone yet.
fn fault_anew(mirror: &mut Mirror, name: &Name, generation: u64, fate: Fate<'_>, reason: String) {
    let length = match fate {
        Fate::Stays(_, length) => length,
        // What was written is nobody's concern any more.
        Fate::Repaired(_) | Fate::Gone => 0,
    };
    mirror.files.entry(name.clone()).or_insert_with(|| File::safe(generation, length));
    mirror.fault(name, reason);
}

fn wrong_content(found: u64, expected: u64) -> String {
    if found == expected {
        "somebody else changed the file: its bytes are not those that were written".to_owned()
    } else {
        wrong_length(found, expected)
    }
}

/// Stands in for the reason of a fault that the log lost, until the file has been looked at. Never told.
const LOST_FAULT: &str = "its fault was not logged before the stop";

/// Unknown files that are named.
const UNKNOWN_SHOWN: usize = 8;

/// How many files are remembered that the log may have lost.
const LOST_MAX: usize = 100_000;
