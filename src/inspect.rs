//! Inspection: what a stopped directory holds, whether it is whole, and how a backup becomes a server again.

use crate::storage::{DataDir, DiskError};
use std::io::Write;
use std::path::Path;

/// Explains what a stopped directory holds.
///
/// # Errors
/// A sentence.
pub fn show(_dir: &DataDir, _as_json: bool, _out: &mut dyn Write) -> Result<(), DiskError> {
    unimplemented!()
}

/// Verifies a stopped directory. Gives whether all is whole.
///
/// # Errors
/// A sentence.
pub fn check(_dir: &DataDir, _out: &mut dyn Write) -> Result<bool, DiskError> {
    unimplemented!()
}

/// Makes a directory that a server may serve from a backup.
///
/// # Errors
/// A sentence.
pub fn restore(
    _from: &Path,
    _to: Option<&Path>,
    _take_loss: bool,
    _out: &mut dyn Write,
) -> Result<(), DiskError> {
    unimplemented!()
}
