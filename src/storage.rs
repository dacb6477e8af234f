//! The data directory.

use std::fmt;
use std::path::Path;

/// Something that the disk, or what stands on it, did not allow.
#[derive(Clone, Debug)]
pub struct DiskError {
    /// What, where, what to do.
    pub sentence: String,
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// A data directory that nobody else uses while this lives.
#[derive(Debug)]
pub struct DataDir {}

impl DataDir {
    /// Opens a stopped directory without changing it.
    ///
    /// # Errors
    /// A sentence.
    pub fn inspect(_path: &Path) -> Result<DataDir, DiskError> {
        unimplemented!()
    }
}
