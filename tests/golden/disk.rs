//! The files in memory: does what the node asks of the disk, and what the script does behind its back.

use std::collections::{BTreeMap, BTreeSet};
use tenure::outcome::{FileAct, FileEffect};

/// Files by name.
#[derive(Default)]
pub(crate) struct Disk {
    files: BTreeMap<String, Vec<u8>>,
    failing: BTreeSet<String>,
    /// Writes that failed, with their offsets: the journal still has their bytes.
    owed: BTreeMap<String, Vec<(u64, Vec<u8>)>>,
}

impl Disk {
    /// Does what a command said.
    ///
    /// # Errors
    /// A sentence, if the disk fails or holds something else than the log says.
    pub(crate) fn apply(&mut self, effect: &FileEffect) -> Result<(), String> {
        let name = effect.file.to_string();
        if self.failing.contains(&name) {
            if let FileAct::Write { offset, data } = &effect.act {
                self.owed.entry(name).or_default().push((*offset, data.to_vec()));
            }
            return Err("the disk reports an input/output error".into());
        }
        match &effect.act {
            FileAct::Write { offset, data } => {
                let file = self.files.entry(name).or_default();
                if file.len() as u64 != *offset {
                    return Err(format!("the file has {} bytes on disk, not {offset}", file.len()));
                }
                file.extend_from_slice(data);
            }
            FileAct::Delete => {
                self.files.remove(&name);
            }
            FileAct::Rotate { to } => {
                let file = self.files.remove(&name).expect("a file is written before it is rotated");
                assert!(self.files.insert(to.to_string(), file).is_none(), "a rotation writes over a file");
            }
            FileAct::Repair { length, checksum } => {
                assert_eq!(self.look(&name), (*length, *checksum), "a repair accepts what is on disk");
            }
        }
        Ok(())
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// A sentence, if the disk fails or has too few of them.
    pub(crate) fn read(&self, name: &str, offset: u64, count: u64) -> Result<Vec<u8>, String> {
        if self.failing.contains(name) {
            return Err("the disk reports an input/output error".into());
        }
        let file = self.files.get(name).ok_or("the file is gone from the disk")?;
        let (begin, end) = (offset as usize, (offset + count) as usize);
        file.get(begin..end)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| format!("the file has {} bytes on disk", file.len()))
    }

    /// Does what is owed, and tells length and checksum of what is there.
    pub(crate) fn mend(&mut self, name: &str) -> (u64, u32) {
        for (offset, data) in self.owed.remove(name).unwrap_or_default() {
            let file = self.files.entry(name.to_owned()).or_default();
            if file.len() as u64 == offset {
                file.extend_from_slice(&data);
            }
        }
        self.look(name)
    }

    fn look(&self, name: &str) -> (u64, u32) {
        let file = self.files.get(name).map_or(&[][..], Vec::as_slice);
        (file.len() as u64, crc32c::crc32c(file))
    }

    /// Whether reading and writing that file fails.
    pub(crate) fn is_failing(&self, name: &str) -> bool {
        self.failing.contains(name)
    }

    pub(crate) fn fail(&mut self, name: &str) {
        self.failing.insert(name.to_owned());
    }

    pub(crate) fn heal(&mut self, name: &str) {
        self.failing.remove(name);
    }

    /// Changes a file behind the server's back.
    pub(crate) fn edit(&mut self, name: &str, text: &str) {
        self.files.insert(name.to_owned(), text.as_bytes().to_vec());
    }

    /// What stands where.
    pub(crate) fn show(&self) -> String {
        if self.files.is_empty() {
            return "no files".into();
        }
        let lines: Vec<_> = self
            .files
            .iter()
            .map(|(name, bytes)| match bytes.len() {
                0..=80 => format!("{name}: {:?}", String::from_utf8_lossy(bytes)),
                length => format!("{name}: {length} bytes"),
            })
            .collect();
        lines.join("\n")
    }
}
