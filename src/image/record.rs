//! `image.json`: up to which command the files on disk are safe.
//!
//! The record is written whole to `image.json.tmp`, synced, and exchanged with `image.json`; then the directory is
//! synced. After the first two writes both files exist with room to spare (each is padded to 4 KiB), so that a full
//! disk does not stop the record, without which nothing may be deleted or rotated.

use crate::disk;
use crate::identity::Op;
use crate::name::Name;
use crate::outcome::FileEffect;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// The safe watermark.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Every effect of this command and of earlier ones is on disk and synced, those in `kept` aside.
    pub op: Op,
    /// Files with effects that are not, in the order of their names.
    pub kept: Vec<Kept>,
}

/// A file that could not be brought up to the watermark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The file.
    pub file: Name,
    /// Its generation.
    pub generation: u64,
    /// The first command whose effect on the file is not safe.
    pub from: Op,
    /// It waits for room on the disk: nothing is wrong with the file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits: bool,
}

impl Record {
    /// Reads the record of a data directory; one that has none yet gives the record of an empty log.
    ///
    /// # Errors
    /// What the system says, or `InvalidData` with a sentence if the record is damaged. Nothing has changed.
    pub fn read(data_dir: &Path) -> io::Result<Record> {
        let text = match std::fs::read_to_string(data_dir.join(NAME)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Record::default()),
            Err(error) => return Err(error),
        };
        let damaged = |what: &dyn std::fmt::Display| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{NAME} is damaged: {what}"))
        };
        let stored: Stored = serde_json::from_str(&text).map_err(|error| damaged(&error))?;
        if stored.format != FORMAT {
            return Err(damaged(&format_args!("its format is {}, not {FORMAT}", stored.format)));
        }
        let record = Record { op: stored.op, kept: stored.kept };
        let crc = record.checksum()?;
        if crc != stored.crc {
            return Err(damaged(&format_args!("its checksum is {crc:08x}, not {:08x}", stored.crc)));
        }
        Ok(record)
    }

    /// Whether a restart can do without this effect. Goes by the generation, not by the name: a file that is kept may
    /// have been rotated since, and its earlier effects stand under the name that it had.
    pub fn is_safe(&self, effect: &FileEffect) -> bool {
        let held = |kept: &Kept| kept.generation == effect.generation && kept.from <= effect.op;
        effect.op <= self.op && !self.kept.iter().any(held)
    }

    /// The first command whose effects a restart would need again: the journal keeps everything from it on.
    pub fn needed_from(&self) -> Op {
        let kept = self.kept.iter().map(|kept| kept.from).min();
        kept.unwrap_or(Op::MAX).min(self.op.saturating_add(1))
    }

    /// Writes the record so that it survives a power cut.
    ///
    /// # Errors
    /// What the system says; then either the old record stands or this one.
    pub(super) fn write(&self, directory: &OwnedFd) -> io::Result<()> {
        super::point("image.before_record")?;
        let stored = Stored { format: FORMAT, op: self.op, kept: self.kept.clone(), crc: self.checksum()? };
        let mut text = serde_json::to_vec(&stored)?;
        text.resize(text.len().next_multiple_of(ROOM), b' ');
        let how = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        let fd = disk::open_at(directory, SPARE, how, || rustix::fs::openat(directory, SPARE, how, mode))?;
        disk::write_at(&fd, &text, 0)?;
        disk::set_length(&fd, text.len() as u64)?;
        disk::sync_all(&fd)?;
        let (spare, name) = ((directory, SPARE), (directory, NAME));
        match disk::rename_at(spare, name, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            // There is none yet, or the file system cannot exchange.
            Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => {
                disk::rename_at(spare, name, RenameFlags::empty())?;
            }
            Err(error) => return Err(error.into()),
        }
        disk::sync_dir(directory)?;
        super::point("image.after_record")
    }

    /// Over the text of the record without its checksum.
    fn checksum(&self) -> io::Result<u32> {
        Ok(crc32c::crc32c(&serde_json::to_vec(self)?))
    }
}

/// Opens the data directory, where the record lives.
pub(super) fn open_directory(data_dir: &Path) -> io::Result<OwnedFd> {
    let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(data_dir, how, Mode::empty())?;
    // A spare of unknown age may be a link that somebody left; what is not a plain file goes.
    if let Ok(stat) = rustix::fs::statat(&directory, SPARE, AtFlags::SYMLINK_NOFOLLOW)
        && super::tree::regular(&stat).is_err()
    {
        disk::unlink_at(&directory, SPARE, AtFlags::empty())?;
    }
    Ok(directory)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    op: Op,
    kept: Vec<Kept>,
    crc: u32,
}

const FORMAT: u32 = 1;
const NAME: &str = "image.json";
const SPARE: &str = "image.json.tmp";
const ROOM: usize = 4096;
