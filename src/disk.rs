//! The one way to change what stands on the disk, so that a test can watch each step of it.
//!
//! Every create, write, sync, rename and unlink of the server goes through here. In a debug build, or with the feature
//! `failpoints`, a [`Witness`] may be set for a thread: it is asked before each [`Step`], which it may refuse with an
//! error of its choice, and told of each [`Change`] that was made. The simulator (`tests/sim.rs`) keeps a second disk that
//! way, one that knows what was synced and what a power cut may take back. In any other build nothing is watched, and
//! this is no more than the system calls.

use rustix::fd::AsFd;
use rustix::fs::{Advice, AtFlags, FallocateFlags, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, ReadWriteFlags};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::path::Path;
use std::rc::Rc;

/// A name in a directory: the directory's inode, and the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The inode of the directory.
    pub dir: u64,
    /// The last component.
    pub name: String,
}

/// What is about to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A file or a directory is to be created.
    Create,
    /// Bytes are to be written to the file with this inode, up to this end.
    Write {
        /// The file.
        inode: u64,
        /// Where the bytes end.
        end: u64,
    },
    /// A file is to get so many bytes of room.
    Allocate {
        /// The file.
        inode: u64,
        /// How long it is then.
        length: u64,
    },
    /// A file is to be synced.
    Sync {
        /// The file.
        inode: u64,
    },
    /// A name is to be made, moved or removed.
    Name,
    /// A directory is to be synced.
    SyncDir {
        /// The directory.
        inode: u64,
    },
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// A file was created, or one that was there was emptied.
    Created {
        /// Its name.
        place: Place,
        /// The file.
        inode: u64,
    },
    /// A directory was made.
    DirMade {
        /// Its name.
        place: Place,
        /// The directory.
        inode: u64,
    },
    /// Bytes were written.
    Written {
        /// The file.
        inode: u64,
        /// Where.
        offset: u64,
        /// What.
        bytes: &'a [u8],
    },
    /// A file has another length now; what is new is zeros.
    Resized {
        /// The file.
        inode: u64,
        /// Its length.
        length: u64,
    },
    /// A file was synced, or that failed, and what was written may be lost.
    Synced {
        /// The file.
        inode: u64,
    },
    /// A name moved, over another one that was there or not.
    Renamed {
        /// Before.
        from: Place,
        /// After.
        to: Place,
    },
    /// Two names were exchanged.
    Exchanged {
        /// One.
        one: Place,
        /// The other.
        other: Place,
    },
    /// A file has a second name.
    Linked {
        /// The first.
        from: Place,
        /// The second.
        to: Place,
    },
    /// A name was removed.
    Unlinked {
        /// The name.
        place: Place,
    },
    /// A directory was synced.
    DirSynced {
        /// The directory.
        inode: u64,
    },
}

/// Who watches a thread change the disk.
pub trait Witness {
    /// Before each step.
    ///
    /// # Errors
    /// The step is not done, and fails with this.
    fn before(&self, step: Step) -> io::Result<()>;

    /// After each change.
    fn after(&self, change: Change<'_>);
}

#[cfg(any(debug_assertions, feature = "failpoints"))]
thread_local! {
    static WITNESS: std::cell::RefCell<Option<Rc<dyn Witness>>> = const { std::cell::RefCell::new(None) };
}

/// Sets who watches this thread from here on. Does nothing where nothing is watched.
pub fn watch(witness: Option<Rc<dyn Witness>>) {
    #[cfg(any(debug_assertions, feature = "failpoints"))]
    WITNESS.with(|cell| *cell.borrow_mut() = witness);
    #[cfg(not(any(debug_assertions, feature = "failpoints")))]
    drop(witness);
}

#[cfg(any(debug_assertions, feature = "failpoints"))]
fn witness() -> Option<Rc<dyn Witness>> {
    WITNESS.with(|cell| cell.borrow().clone())
}

#[cfg(not(any(debug_assertions, feature = "failpoints")))]
#[inline]
fn witness() -> Option<Rc<dyn Witness>> {
    None
}

fn inode(fd: impl AsFd) -> u64 {
    rustix::fs::fstat(fd).map_or(0, |stat| stat.st_ino)
}

fn place(path: &Path) -> Place {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = rustix::fs::stat(parent).map_or(0, |stat| stat.st_ino);
    Place { dir, name: path.file_name().unwrap_or(OsStr::new("")).to_string_lossy().into_owned() }
}

fn place_at(dir: impl AsFd, name: &str) -> Place {
    Place { dir: inode(dir), name: name.into() }
}

/// Does a step, watched.
fn watched<T, E: From<io::Error>>(
    step: impl FnOnce() -> Step,
    act: impl FnOnce() -> Result<T, E>,
    change: impl FnOnce(&T) -> Option<Change<'static>>,
) -> Result<T, E> {
    let Some(witness) = witness() else { return act() };
    witness.before(step())?;
    let done = act()?;
    if let Some(change) = change(&done) {
        witness.after(change);
    }
    Ok(done)
}

/// The same for what speaks in errors of the kernel.
fn watched_errno<T>(
    step: impl FnOnce() -> Step,
    act: impl FnOnce() -> rustix::io::Result<T>,
    change: impl FnOnce(&T) -> Option<Change<'static>>,
) -> rustix::io::Result<T> {
    watched(step, || act().map_err(io::Error::from), change).map_err(errno)
}

fn errno(error: io::Error) -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)
}

/// Opens a file for writing that is empty then, whether it was there or not.
pub(crate) fn create(path: &Path, options: &OpenOptions) -> io::Result<File> {
    watched(
        || Step::Create,
        || options.open(path),
        |file| Some(Change::Created { place: place(path), inode: inode(file) }),
    )
}

/// Creates or opens a file below a directory.
pub(crate) fn open_at(
    dir: impl AsFd + Copy,
    name: &str,
    how: OFlags,
    open: impl FnOnce() -> rustix::io::Result<rustix::fd::OwnedFd>,
) -> rustix::io::Result<rustix::fd::OwnedFd> {
    if !how.contains(OFlags::CREATE) || witness().is_none() {
        return open();
    }
    let there = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    watched_errno(
        || Step::Create,
        open,
        |file| (!there).then(|| Change::Created { place: place_at(dir, name), inode: inode(file) }),
    )
}

/// Makes a directory.
pub(crate) fn make_dir(path: &Path, builder: &fs::DirBuilder) -> io::Result<()> {
    watched(
        || Step::Create,
        || builder.create(path),
        |()| {
            let inode = rustix::fs::stat(path).map_or(0, |stat| stat.st_ino);
            Some(Change::DirMade { place: place(path), inode })
        },
    )
}

/// Makes a directory below a directory.
pub(crate) fn make_dir_at(dir: impl AsFd + Copy, name: &str, mode: Mode) -> rustix::io::Result<()> {
    watched_errno(
        || Step::Create,
        || rustix::fs::mkdirat(dir, name, mode),
        |()| {
            let inode =
                rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_or(0, |stat| stat.st_ino);
            Some(Change::DirMade { place: place_at(dir, name), inode })
        },
    )
}

/// Writes some bytes at the offset; gives how many.
fn write_some(fd: impl AsFd + Copy, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let Some(witness) = witness() else { return Ok(rustix::io::pwrite(fd, bytes, offset)?) };
    let inode = inode(fd);
    witness.before(Step::Write { inode, end: offset + bytes.len() as u64 })?;
    let written = rustix::io::pwrite(fd, bytes, offset)?;
    witness.after(Change::Written { inode, offset, bytes: &bytes[..written] });
    Ok(written)
}

/// Writes all bytes at the offset, however many calls it takes.
pub(crate) fn write_at(fd: impl AsFd + Copy, bytes: &[u8], offset: u64) -> io::Result<()> {
    write_counted(fd, bytes, offset).1
}

/// The same; tells how many bytes were written before an error, too.
pub(crate) fn write_counted(fd: impl AsFd + Copy, bytes: &[u8], offset: u64) -> (usize, io::Result<()>) {
    let mut done = 0;
    while done < bytes.len() {
        match write_some(fd, &bytes[done..], offset + done as u64) {
            Ok(0) => return (done, Err(io::ErrorKind::WriteZero.into())),
            Ok(more) => done += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (done, Err(error)),
        }
    }
    (done, Ok(()))
}

/// Direct writes begin and end at multiples of this, in the file and in memory: it is a multiple of the logical block of
/// every disk in use, which has 512 or 4,096 bytes.
pub(crate) const PAGE: usize = 4_096;

/// Whether a direct write that is to be durable ([`write_durably`]) is known to be that when it returns. ext4 and XFS hand such a
/// write to the disk with the order to keep it, or let it be followed by one to the disk to keep everything, as they do for
/// `fdatasync`. (Others may well do so, too. FUSE leaves it to a program; on Btrfs it is no cheaper, since it never writes in
/// place.)
pub(crate) fn honours_direct_syncs(fd: impl AsFd) -> bool {
    // statfs(2): EXT4_SUPER_MAGIC, which ext2 and ext3 have as well, and XFS_SUPER_MAGIC.
    const EXT4: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    rustix::fs::fstatfs(fd).is_ok_and(|found| matches!(found.f_type as u64, EXT4 | XFS))
}

/// Lets writes to a file go past the page cache, or through it.
///
/// # Errors
/// The file system cannot; nothing has changed.
pub(crate) fn set_direct(fd: impl AsFd + Copy, direct: bool) -> rustix::io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(fd)?;
    flags.set(OFlags::DIRECT, direct);
    rustix::fs::fcntl_setfl(fd, flags)
}

/// Writes whole pages at the offset, however many calls it takes; they are durable when this returns.
///
/// # Errors
/// [`is_refusal`] tells those after which the same bytes may be written in another way. After any other, what is on the disk is
/// not known.
pub(crate) fn write_durably(fd: impl AsFd + Copy, pages: &[u8], offset: u64) -> io::Result<()> {
    assert_eq!((pages.len() % PAGE, offset % PAGE as u64), (0, 0), "whole pages are written");
    let durable = match crate::bug::planted("reply_before_sync") {
        true => ReadWriteFlags::empty(),
        false => ReadWriteFlags::DSYNC,
    };
    if witness().is_some() {
        write_at(fd, pages, offset)?;
        let synced = if durable.is_empty() { Ok(()) } else { sync_data(fd) };
        return if crate::bug::planted("error_of_a_sync_ignored") { Ok(()) } else { Ok(synced?) };
    }
    let mut done = 0;
    while done < pages.len() {
        let rest = [IoSlice::new(&pages[done..])];
        match rustix::io::pwritev2(fd, &rest, offset + done as u64, durable) {
            // Less than a page: to go on behind it is not to be had.
            Ok(..PAGE) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(more) => done += more / PAGE * PAGE,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether [`write_durably`] was refused, and nothing that was asked for was done: the file system takes no such pages (`EINVAL`),
/// or the kernel no such call (`EOPNOTSUPP` before Linux 4.7, `ENOSYS` in some sandboxes).
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS))
}

/// Lets the page cache forget what it has of a file and is synced.
pub(crate) fn forget_cached(file: &File) {
    // It is advice: where it is not taken, memory is used for longer.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
}

/// Gives a file its blocks.
pub(crate) fn allocate(file: &File, length: u64) -> rustix::io::Result<()> {
    watched_errno(
        || Step::Allocate { inode: inode(file), length },
        || rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length),
        |()| {
            let length = rustix::fs::fstat(file).map_or(length, |stat| stat.st_size as u64);
            Some(Change::Resized { inode: inode(file), length })
        },
    )
}

/// Cuts or lengthens a file.
pub(crate) fn set_length(fd: impl AsFd + Copy, length: u64) -> rustix::io::Result<()> {
    watched_errno(
        || Step::Allocate { inode: inode(fd), length },
        || rustix::fs::ftruncate(fd, length),
        |()| Some(Change::Resized { inode: inode(fd), length }),
    )
}

/// Syncs what a file holds, and as much of what is known of it as is needed to read that.
pub(crate) fn sync_data(fd: impl AsFd + Copy) -> rustix::io::Result<()> {
    watched_errno(
        || Step::Sync { inode: inode(fd) },
        || rustix::fs::fdatasync(fd),
        |()| Some(Change::Synced { inode: inode(fd) }),
    )
}

/// Syncs a file.
pub(crate) fn sync_all(fd: impl AsFd + Copy) -> rustix::io::Result<()> {
    watched_errno(
        || Step::Sync { inode: inode(fd) },
        || rustix::fs::fsync(fd),
        |()| Some(Change::Synced { inode: inode(fd) }),
    )
}

/// Syncs a directory.
pub(crate) fn sync_dir(fd: impl AsFd + Copy) -> rustix::io::Result<()> {
    watched_errno(
        || Step::SyncDir { inode: inode(fd) },
        || rustix::fs::fsync(fd),
        |()| Some(Change::DirSynced { inode: inode(fd) }),
    )
}

/// Renames.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    watched(
        || Step::Name,
        || fs::rename(from, to),
        |()| Some(Change::Renamed { from: place(from), to: place(to) }),
    )
}

/// Renames from one directory to another; nothing changes if the kernel refuses.
pub(crate) fn rename_at(
    from: (impl AsFd + Copy, &str),
    to: (impl AsFd + Copy, &str),
    how: RenameFlags,
) -> rustix::io::Result<()> {
    watched_errno(
        || Step::Name,
        || match how.is_empty() {
            true => rustix::fs::renameat(from.0, from.1, to.0, to.1),
            false => rustix::fs::renameat_with(from.0, from.1, to.0, to.1, how),
        },
        |()| {
            let (one, other) = (place_at(from.0, from.1), place_at(to.0, to.1));
            Some(match how.contains(RenameFlags::EXCHANGE) {
                true => Change::Exchanged { one, other },
                false => Change::Renamed { from: one, to: other },
            })
        },
    )
}

/// Gives a file a second name.
pub(crate) fn link(from: &Path, to: &Path) -> io::Result<()> {
    watched(
        || Step::Name,
        || fs::hard_link(from, to),
        |()| Some(Change::Linked { from: place(from), to: place(to) }),
    )
}

/// Removes a file.
pub(crate) fn unlink(path: &Path) -> io::Result<()> {
    watched(|| Step::Name, || fs::remove_file(path), |()| Some(Change::Unlinked { place: place(path) }))
}

/// Removes a name from a directory.
pub(crate) fn unlink_at(dir: impl AsFd + Copy, name: &str, how: AtFlags) -> rustix::io::Result<()> {
    watched_errno(
        || Step::Name,
        || rustix::fs::unlinkat(dir, name, how),
        |()| Some(Change::Unlinked { place: place_at(dir, name) }),
    )
}

/// A file that is written from its start to its end.
#[derive(Debug)]
pub(crate) struct Writing<'a> {
    file: &'a File,
    offset: u64,
}

impl Writing<'_> {
    /// Begins at the start.
    pub(crate) fn new(file: &File) -> Writing<'_> {
        Writing { file, offset: 0 }
    }
}

impl Write for Writing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = write_some(self.file, bytes, self.offset)?;
        self.offset += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
