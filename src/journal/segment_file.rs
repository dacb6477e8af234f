//! The file of the segment that is written, and how bytes get behind what stands in it.
//!
//! Under `sync` each write is synced before anything else is done. So on file systems that are known to honour it, such a write
//! is direct: whole pages, past the page cache, durable when it returns. That is one call where a write and `fdatasync` are two,
//! and takes a third less CPU (docs/performance.md, "Steps"). Elsewhere bytes go into the page cache, and a sync of its own
//! follows when one is due.

use super::Way;
use super::pages::Pages;
use crate::disk::{self, PAGE};
use crate::segment::Header;
use crate::storage::{DataDir, DiskError};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// A segment that grows at its end, up to the size that was allocated for it.
pub(super) struct SegmentFile {
    file: File,
    path: PathBuf,
    /// Where the next bytes go.
    end: u64,
    size: u64,
    /// What stands in the last page, if writes are direct.
    direct: Option<Pages>,
}

impl SegmentFile {
    /// Makes the spare the segment with this header, which is synced.
    ///
    /// # Errors
    /// A sentence; the segment may be there or not.
    pub(super) fn begin(dir: &DataDir, header: &Header, way: Way) -> Result<SegmentFile, DiskError> {
        let content = header.encode();
        let file = dir.begin_segment(header.number, &content)?;
        Ok(SegmentFile::new(file, dir.segment(header.number), &content, header.size, way))
    }

    /// The file of `size` bytes that begins with `content`, which is synced, and goes on with zeros.
    pub(super) fn new(file: File, path: PathBuf, content: &[u8], size: u64, way: Way) -> SegmentFile {
        let direct = size.is_multiple_of(PAGE as u64)
            && match way {
                Way::Cached => false,
                Way::BestKnown => disk::honours_direct_syncs(&file) && disk::set_direct(&file, true).is_ok(),
                Way::Direct => {
                    // Where the page cache cannot be passed by, the pages are durable all the same.
                    let _ = disk::set_direct(&file, true);
                    true
                }
            };
        log::debug!(
            "{}: writes go {}",
            path.display(),
            if direct { "directly" } else { "through the page cache" }
        );
        let last = &content[content.len() / PAGE * PAGE..];
        SegmentFile { file, path, end: content.len() as u64, size, direct: direct.then(|| Pages::new(last)) }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the next bytes go.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Bytes of room.
    pub(super) fn left(&self) -> u64 {
        self.size - self.end
    }

    /// Hands bytes to the kernel, behind what is there.
    ///
    /// # Errors
    /// What is on the disk behind the end is not known any more.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        assert!(bytes.len() as u64 <= self.left(), "a segment is never written beyond its end");
        let Some(pages) = &mut self.direct else { return self.append_cached(bytes) };
        let mut rest = bytes;
        while !rest.is_empty() {
            let offset = self.end - pages.used() as u64;
            let taken = pages.take(rest);
            match disk::write_durably(&self.file, pages.whole(), offset) {
                Ok(()) => pages.forget_full(),
                Err(error) if disk::is_refusal(&error) => {
                    log::info!(
                        "{}: writes go through the page cache from here on: {error}",
                        self.path.display()
                    );
                    disk::set_direct(&self.file, false)?;
                    self.direct = None;
                    return self.append_cached(rest);
                }
                Err(error) => return Err(error),
            }
            (self.end, rest) = (self.end + taken as u64, &rest[taken..]);
        }
        Ok(())
    }

    fn append_cached(&mut self, bytes: &[u8]) -> io::Result<()> {
        disk::write_at(&self.file, bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Syncs what was appended; does nothing if it is durable already.
    ///
    /// # Errors
    /// What of it is on the disk is not known, and another sync would not tell.
    pub(super) fn sync(&self) -> io::Result<()> {
        match self.direct {
            Some(_) => Ok(()),
            None => Ok(disk::sync_data(&self.file)?),
        }
    }
}
