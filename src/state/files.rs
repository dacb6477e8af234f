//! Files: what the log says of them. The disk is only their image (`crate::image`).

use super::{State, What};
use crate::identity::Op;
use crate::kind::{Detail, Kind, Refusal};
use crate::name::Name;
use crate::outcome::{Effect, FileAct, FileEffect, Outcome};
use crate::state::parts::FilePart;
use std::ops::Bound;
use std::sync::Arc;

/// A file as the log has made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The command that gave its first append: no two files ever have the same.
    pub generation: Op,
    /// Bytes committed.
    pub length: u64,
    /// CRC-32C of those bytes.
    pub checksum: u32,
    /// Why it is closed to appends, if it is.
    pub fault: Option<String>,
}

impl File {
    pub(super) fn part(&self, file: &Name) -> FilePart {
        FilePart {
            file: file.clone(),
            generation: self.generation,
            length: self.length,
            checksum: self.checksum,
            fault: self.fault.clone(),
        }
    }
}

impl State {
    /// The file, if it exists.
    pub fn file(&self, file: &str) -> Option<&File> {
        self.files.get(file)
    }

    /// Files whose names begin with `prefix`, after the name `after`, in the order of their names.
    pub fn files<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Name, &'a File)> {
        super::keys::names_from(&self.files, prefix, after)
    }

    pub(super) fn append_file(
        &mut self,
        name: &Name,
        data: &Arc<[u8]>,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        self.check_data(data)?;
        self.check_append(name, data.len() as u64, 0)?;
        let length = self.put_append(name, self.head.op, data, effects);
        Ok(Outcome::Appended { offset: length - data.len() as u64, length, staged: false })
    }

    /// Whether the data of one append is within its cap.
    pub(super) fn check_data(&self, data: &[u8]) -> Result<(), Refusal> {
        let max = self.head.limits.append_bytes;
        if data.len() as u64 > max {
            let text = format!("the data has {} bytes; at most {max} are allowed", data.len());
            return Err(
                Refusal::new(Kind::TooLarge, text).with(Detail::Limit { limit: "append_bytes".into(), max })
            );
        }
        Ok(())
    }

    /// Whether so many bytes can be appended to a file, beside so many other files that are created with it.
    pub(super) fn check_append(&self, name: &Name, bytes: u64, beside: u64) -> Result<(), Refusal> {
        let limits = &self.head.limits;
        match self.files.get(name) {
            None => {
                self.may_create(name)?;
                if self.files.len() as u64 + beside >= limits.files {
                    let text = format!(
                        "the server has its {} files; delete one, or raise --max-files",
                        limits.files
                    );
                    return Err(Refusal::limit("files", limits.files, text));
                }
            }
            Some(File { fault: Some(fault), .. }) => return Err(at_fault(name, fault)),
            Some(_) => {}
        }
        let (old, max) = (self.files.get(name).map_or(0, |file| file.length), limits.file_bytes);
        if old + bytes > max {
            let text =
                format!("file {name:?} would have over {max} bytes; rotate it, or raise --max-file-bytes");
            return Err(Refusal::limit("file_bytes", max, text));
        }
        Ok(())
    }

    /// Appends to a file, all checks done; one that does not exist is created with that generation. Gives its length.
    pub(super) fn put_append(
        &mut self,
        name: &Name,
        generation: Op,
        data: &Arc<[u8]>,
        effects: &mut Vec<Effect>,
    ) -> u64 {
        let op = self.head.op;
        let file = self.files.entry(name.clone()).or_insert(File {
            generation,
            length: 0,
            checksum: 0,
            fault: None,
        });
        let offset = file.length;
        file.length += data.len() as u64;
        file.checksum = crc32c::crc32c_append(file.checksum, data);
        let (generation, length) = (file.generation, file.length);
        self.record(name, What::FileAppended { generation, offset, length });
        effects.push(Effect::File(FileEffect {
            op,
            file: name.clone(),
            generation,
            act: FileAct::Write { offset, data: data.clone() },
        }));
        length
    }

    pub(super) fn delete_file(&mut self, name: &Name, effects: &mut Vec<Effect>) -> Result<Outcome, Refusal> {
        let file = self.files.remove(name).ok_or_else(|| not_found(name))?;
        self.record(name, What::FileDeleted { generation: file.generation });
        self.file_effect(name, file.generation, FileAct::Delete, effects);
        Ok(Outcome::FileChanged { length: 0, generation: file.generation })
    }

    pub(super) fn rotate_file(
        &mut self,
        name: &Name,
        to: &Name,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        let file = self.files.get(name).ok_or_else(|| not_found(name))?;
        if let Some(fault) = &file.fault {
            return Err(at_fault(name, fault));
        }
        if self.files.contains_key(to) {
            return Err(Refusal::new(
                Kind::InvalidParams,
                format!("file {to:?} exists already; rotate to a new name"),
            ));
        }
        self.may_create(to)?;
        let file = self.files.remove(name).expect("it was found");
        let generation = file.generation;
        self.record(name, What::FileRotated { generation, to: to.clone() });
        self.file_effect(name, generation, FileAct::Rotate { to: to.clone() }, effects);
        self.files.insert(to.clone(), file);
        Ok(Outcome::FileChanged { length: 0, generation })
    }

    pub(super) fn repair_file(
        &mut self,
        name: &Name,
        generation: Op,
        length: u64,
        checksum: u32,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        let limit = self.head.limits.file_bytes;
        let file = self.files.get_mut(name).ok_or_else(|| not_found(name))?;
        let Some(fault) = &file.fault else {
            // Appends may have gone on since the file was looked at, so what was found says nothing about it now.
            return Ok(Outcome::FileChanged { length: file.length, generation: file.generation });
        };
        if file.generation != generation {
            let text = format!(
                "file {name:?} is closed to writes: {fault}; it could not be looked at, or changed while it was: repair it \
                 again"
            );
            return Err(Refusal::new(Kind::FileFault, text));
        }
        if length > limit {
            let text = format!(
                "file {name:?} has {length} bytes on disk, over its cap; delete it, or raise --max-file-bytes"
            );
            return Err(Refusal::limit("file_bytes", limit, text));
        }
        file.length = length;
        file.checksum = checksum;
        file.fault = None;
        self.record(name, What::FileRepaired { generation, length });
        self.file_effect(name, generation, FileAct::Repair { length, checksum }, effects);
        Ok(Outcome::FileChanged { length, generation })
    }

    pub(super) fn file_fault(&mut self, name: &Name, generation: Op, reason: &str) -> Outcome {
        match self.files.get_mut(name) {
            Some(file) if file.generation == generation && file.fault.is_none() => {
                file.fault = Some(reason.to_owned());
                self.record(name, What::FileFault { generation, reason: reason.into() });
                Outcome::Done
            }
            Some(_) | None => Outcome::Void,
        }
    }

    fn file_effect(&self, name: &Name, generation: Op, act: FileAct, effects: &mut Vec<Effect>) {
        effects.push(Effect::File(FileEffect { op: self.head.op, file: name.clone(), generation, act }));
    }

    /// Whether a file of that name can stand beside the others: no file is a directory of another.
    fn may_create(&self, name: &Name) -> Result<(), Refusal> {
        let above = name.parents().find(|parent| self.files.contains_key(*parent));
        let inside = format!("{name}/");
        let below = self
            .files
            .range::<str, _>((Bound::Included(inside.as_str()), Bound::Unbounded))
            .next()
            .filter(|(other, _)| other.starts_with(&inside));
        match (above, below) {
            (None, None) => Ok(()),
            (Some(parent), _) => Err(Refusal::new(
                Kind::BadName,
                format!("file {name:?} cannot exist: {parent:?} is a file, so it is no directory"),
            )),
            (None, Some((other, _))) => Err(Refusal::new(
                Kind::BadName,
                format!("file {name:?} cannot exist: it is a directory of file {other:?}"),
            )),
        }
    }

    pub(super) fn add_file(&mut self, part: FilePart) -> Result<(), String> {
        let name = part.file;
        let fault = |text: &str| format!("file {name:?}: {text}");
        Name::file(&name).map_err(|refusal| fault(&refusal.message))?;
        if part.generation == 0 || part.generation > self.head.op {
            return Err(fault("its generation was never given"));
        }
        self.may_create(&name).map_err(|refusal| fault(&refusal.message))?;
        let file = File {
            generation: part.generation,
            length: part.length,
            checksum: part.checksum,
            fault: part.fault,
        };
        match self.files.insert(name.clone(), file) {
            None => Ok(()),
            Some(_) => Err(fault("it stands twice")),
        }
    }
}

/// The refusal of a file that does not exist.
pub fn not_found(name: &Name) -> Refusal {
    Refusal::new(Kind::NotFound, format!("there is no file {name:?}"))
}

fn at_fault(name: &Name, fault: &str) -> Refusal {
    Refusal::new(
        Kind::FileFault,
        format!("file {name:?} is closed to writes: {fault}; repair_file opens it again"),
    )
}
