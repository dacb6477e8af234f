//! The directory of files: every path below it is opened here, and by no way that leaves it.
//!
//! A name was checked when it was parsed ([`Name::file`]), but what stands on disk may have been put there by anybody
//! who may write to the directory. So each path is resolved by `openat2` beneath an open directory, never through a
//! symbolic link, a magic link of `/proc` or a mount point, and only a regular file with a single link is opened. Where
//! the kernel has no `openat2`, components are walked one by one; then a bind mount of the same file system is not
//! noticed.
//!
//! Nothing here blocks on what it finds: the type is looked at through `O_PATH` before anything is opened for reading
//! or writing, so that no device is touched and no fifo waited for.

use crate::disk;
use crate::name::Name;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// The open directory of files.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    device: u64,
    openat2: bool,
}

/// What a name leads to, without having opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Device and inode: what the file is, whatever it is called.
    pub identity: (u64, u64),
    /// Length in bytes.
    pub length: u64,
}

/// Why a name cannot be used. Nothing has changed on disk, parent directories aside.
#[derive(Debug)]
pub enum Obstacle {
    /// Nothing is there.
    Missing,
    /// Something is there that the server did not make; a clause without a subject, such as `is a symbolic link`.
    Foreign(&'static str),
    /// The disk or its rights say no.
    Disk(Errno),
}

/// Files on disk that the state does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unknown {
    /// How many.
    pub count: u64,
    /// The paths of the first of them, escaped for people.
    pub first: Vec<String>,
}

impl Tree {
    /// Opens `<data_dir>/files`, which it makes (0700) if it is not there.
    ///
    /// # Errors
    /// What the system says; a symbolic link in its place is refused. At most the directory was made.
    pub fn open(data_dir: &Path) -> std::io::Result<Tree> {
        let path = data_dir.join("files");
        match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                let above = rustix::fs::open(data_dir, DIRECTORY, Mode::empty())?;
                disk::sync_dir(&above)?;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let root = rustix::fs::open(&path, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        let device = device(&rustix::fs::fstat(&root)?);
        // Old sandboxes answer EPERM to system calls that they do not know, where a kernel says ENOSYS.
        let openat2 = match rustix::fs::openat2(&root, ".", DIRECTORY, Mode::empty(), BENEATH) {
            Ok(_) => true,
            Err(Errno::NOSYS | Errno::PERM) => false,
            Err(error) => return Err(error.into()),
        };
        Ok(Tree { root, device, openat2 })
    }

    /// Opens a file that is there, to read and to write it.
    ///
    /// # Errors
    /// An [`Obstacle`]. Nothing has changed.
    pub fn open_file(&self, name: &Name) -> Result<(OwnedFd, Found), Obstacle> {
        self.open_as(name, OFlags::RDWR)
    }

    /// Opens a file that is there, to read it only: also where the file system is mounted read-only.
    ///
    /// # Errors
    /// An [`Obstacle`]. Nothing has changed.
    pub fn open_to_read(&self, name: &Name) -> Result<(OwnedFd, Found), Obstacle> {
        self.open_as(name, OFlags::RDONLY)
    }

    fn open_as(&self, name: &Name, access: OFlags) -> Result<(OwnedFd, Found), Obstacle> {
        let (parent, last) = self.parent(name)?;
        let found = self.look(&parent, last)?;
        let fd = self.step(&parent, last, access | FILE, Mode::empty())?;
        let opened = regular(&rustix::fs::fstat(&fd)?)?;
        // Swapped between the look and the opening: whoever did that is at work here.
        if opened.identity != found.identity {
            return Err(Obstacle::Foreign("was replaced while it was being opened"));
        }
        Ok((fd, opened))
    }

    /// Creates a file (0600) and the directories above it (0700). What was made is on disk only after
    /// [`sync_parents`](Tree::sync_parents). An empty directory in its place is removed first: names of files that
    /// are gone may leave one behind.
    ///
    /// # Errors
    /// An [`Obstacle`]; `Foreign` if anything is there. At most parent directories were made.
    pub fn create_file(&self, name: &Name) -> Result<(OwnedFd, Found), Obstacle> {
        for parent in name.parents() {
            let (above, last) = self.parent_of(parent)?;
            match disk::make_dir_at(&above, last, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (parent, last) = self.parent(name)?;
        let how = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | FILE;
        let mode = Mode::from_raw_mode(0o600);
        let fd = match self.step(&parent, last, how, mode) {
            Err(Errno::EXIST) => {
                self.clear_empty(&parent, last, 0);
                self.step(&parent, last, how, mode)?
            }
            other => other?,
        };
        let found = regular(&rustix::fs::fstat(&fd)?)?;
        Ok((fd, found))
    }

    /// What the name leads to, if that is a file that the server may use. Opens nothing for reading or writing.
    ///
    /// # Errors
    /// An [`Obstacle`]. Nothing has changed.
    pub fn find(&self, name: &Name) -> Result<Found, Obstacle> {
        let (parent, last) = self.parent(name)?;
        self.look(&parent, last)
    }

    /// Removes what has the name, unless it is a directory; a link is removed, never followed. Then the directory that
    /// held it is synced, and directories that this left empty are removed as far as that goes.
    ///
    /// # Errors
    /// An [`Obstacle`]; `Missing` if nothing was there. After an error of the sync the name is gone, perhaps not for good.
    pub fn remove(&self, name: &Name) -> Result<(), Obstacle> {
        let (parent, last) = self.parent(name)?;
        disk::unlink_at(&parent, last, AtFlags::empty()).map_err(|error| match error {
            Errno::ISDIR | Errno::PERM if self.is_directory(&parent, last) => {
                Obstacle::Foreign("is a directory")
            }
            error => error.into(),
        })?;
        disk::sync_dir(&parent)?;
        self.prune(name);
        Ok(())
    }

    /// Gives the file another name, which nothing may have, in directories that are made as needed. Nothing is synced:
    /// see [`sync_parents`](Tree::sync_parents).
    ///
    /// # Errors
    /// An [`Obstacle`]; `Foreign` if `to` is taken. At most directories were made.
    pub fn rename(&self, from: &Name, to: &Name) -> Result<(), Obstacle> {
        let (old, old_last) = self.parent(from)?;
        self.look(&old, old_last)?;
        for parent in to.parents() {
            let (above, last) = self.parent_of(parent)?;
            match disk::make_dir_at(&above, last, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (new, new_last) = self.parent(to)?;
        self.clear_empty(&new, new_last, 0);
        match disk::rename_at((&old, old_last), (&new, new_last), RenameFlags::NOREPLACE) {
            // A file system without this flag: look first, which leaves a gap of an instant.
            Err(Errno::INVAL | Errno::NOSYS) => {
                match rustix::fs::statat(&new, new_last, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => {
                        Ok(disk::rename_at((&old, old_last), (&new, new_last), RenameFlags::empty())?)
                    }
                    Err(error) => Err(error.into()),
                    Ok(_) => Err(Errno::EXIST.into()),
                }
            }
            other => other.map_err(Obstacle::from),
        }
    }

    /// Syncs every directory from the top to the one that holds the name. `done` are the answers of earlier calls
    /// in the same round: a directory is synced once a round, and a failed sync is never tried again in it.
    ///
    /// # Errors
    /// An [`Obstacle`]. What was made or renamed may not be on disk.
    pub fn sync_parents(&self, name: &str, done: &mut Synced) -> Result<(), Obstacle> {
        let parents = name.match_indices('/').map(|(at, _)| &name[..at]);
        for directory in std::iter::once("").chain(parents) {
            let answer = match done.get(directory) {
                Some(answer) => *answer,
                None => {
                    let answer = self.directory(directory).and_then(|dir| disk::sync_dir(&dir));
                    done.insert(directory.to_owned(), answer);
                    answer
                }
            };
            answer?;
        }
        Ok(())
    }

    /// Removes the directories above the name that are empty, from the bottom, and syncs the last one that stays.
    /// As far as that goes: an empty directory left behind does no harm.
    pub fn prune(&self, name: &Name) {
        let parents: Vec<&str> = name.parents().collect();
        let mut removed = None;
        for parent in parents.into_iter().rev() {
            let gone = self
                .parent_of(parent)
                .and_then(|(above, last)| disk::unlink_at(&above, last, AtFlags::REMOVEDIR));
            match gone {
                Ok(()) | Err(Errno::NOENT) => removed = Some(parent),
                Err(_) => break,
            }
        }
        if let Some(path) = removed
            && let Ok((above, _)) = self.parent_of(path)
            && let Err(error) = disk::sync_dir(&above)
        {
            log::warn!("the directory above {path:?} could not be synced: {error}");
        }
    }

    /// Whatever stands on disk that is not in `known`, directories aside, each also told to `found`. Reads names only. At
    /// most `shown` are in what is returned.
    pub fn unknown(&self, known: &BTreeSet<&str>, shown: usize, found: &mut impl FnMut(&str)) -> Unknown {
        let mut unknown = Unknown::default();
        let mut todo = vec![String::new()];
        while let Some(path) = todo.pop() {
            let Ok(entries) = self.directory(&path).and_then(Dir::read_from) else { continue };
            for entry in entries.flatten() {
                let bytes = entry.file_name().to_bytes();
                if bytes == b"." || bytes == b".." {
                    continue;
                }
                let last = String::from_utf8_lossy(bytes);
                let full = if path.is_empty() { last.into_owned() } else { format!("{path}/{last}") };
                // A path longer than any name of ours is nobody's we know; it is not walked further.
                if entry.file_type() == FileType::Directory && full.len() < crate::name::NAME_MAX {
                    todo.push(full);
                } else if !known.contains(full.as_str()) {
                    unknown.count += 1;
                    found(&full);
                    if unknown.first.len() < shown {
                        unknown.first.push(full.escape_debug().to_string());
                    }
                }
            }
        }
        unknown.first.sort();
        unknown
    }

    /// Walks paths from here on, as on a kernel without `openat2`.
    #[cfg(test)]
    pub(super) fn forget_openat2(&mut self) {
        self.openat2 = false;
    }

    /// The directory that holds the name, and the last component.
    fn parent<'a>(&self, name: &'a Name) -> rustix::io::Result<(OwnedFd, &'a str)> {
        self.parent_of(name.as_str())
    }

    fn parent_of<'a>(&self, path: &'a str) -> rustix::io::Result<(OwnedFd, &'a str)> {
        let (above, last) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.directory(above)?, last))
    }

    /// Opens a directory below the root; the empty path is the root itself.
    fn directory(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        if path.is_empty() {
            return rustix::fs::openat(&self.root, ".", DIRECTORY, Mode::empty());
        }
        if self.openat2 {
            return self.beneath(&self.root, path, DIRECTORY, Mode::empty());
        }
        let mut at = rustix::fs::openat(&self.root, ".", DIRECTORY, Mode::empty())?;
        for component in path.split('/') {
            at = self.step(&at, component, DIRECTORY, Mode::empty())?;
        }
        Ok(at)
    }

    /// Opens one component inside a directory.
    fn step(&self, at: &OwnedFd, last: &str, how: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        // The names are checked where they are parsed; this is where a mistake there would do harm.
        if matches!(last, "" | "." | "..") || last.contains('/') {
            return Err(Errno::INVAL);
        }
        if self.openat2 {
            return self.beneath(at, last, how, mode);
        }
        let fd = disk::open_at(at, last, how, || rustix::fs::openat(at, last, how | OFlags::NOFOLLOW, mode))?;
        if device(&rustix::fs::fstat(&fd)?) != self.device {
            return Err(Errno::XDEV);
        }
        Ok(fd)
    }

    fn beneath(&self, at: &OwnedFd, path: &str, how: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        // EAGAIN: somebody renamed something meanwhile (openat2(2)). Trying again without end would let him stall us.
        for _ in 0..16 {
            let opened = disk::open_at(at, path, how, || {
                rustix::fs::openat2(at, path, how | OFlags::NOFOLLOW, mode, BENEATH)
            });
            match opened {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Looks at one component inside a directory.
    fn look(&self, at: &OwnedFd, last: &str) -> Result<Found, Obstacle> {
        let fd = self.step(at, last, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        regular(&rustix::fs::fstat(fd)?)
    }

    fn is_directory(&self, at: &OwnedFd, last: &str) -> bool {
        rustix::fs::statat(at, last, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    /// Removes a directory that holds nothing but directories, as far as that goes. Anything else stays untouched.
    fn clear_empty(&self, at: &OwnedFd, last: &str, depth: usize) {
        if depth > crate::name::NAME_MAX || !self.is_directory(at, last) {
            return;
        }
        if let Ok(fd) = self.step(at, last, DIRECTORY, Mode::empty())
            && let Ok(entries) = Dir::read_from(&fd)
        {
            for entry in entries.flatten() {
                match entry.file_name().to_str() {
                    Ok("." | "..") => {}
                    Ok(below) if entry.file_type() == FileType::Directory => {
                        self.clear_empty(&fd, below, depth + 1);
                    }
                    _ => return,
                }
            }
        }
        // Fails if anything is left in it, which is the point.
        if let Err(error) = disk::unlink_at(at, last, AtFlags::REMOVEDIR) {
            log::debug!("a directory in the way stays: {error}");
        }
    }
}

/// The answers of one round of syncing directories, by path below the root.
pub type Synced = BTreeMap<String, rustix::io::Result<()>>;

impl From<Errno> for Obstacle {
    fn from(error: Errno) -> Obstacle {
        match error {
            Errno::NOENT => Obstacle::Missing,
            Errno::LOOP | Errno::MLINK => Obstacle::Foreign("leads through a symbolic link"),
            Errno::XDEV => Obstacle::Foreign("leads to another file system"),
            Errno::NOTDIR => Obstacle::Foreign("leads through something that is not a directory"),
            Errno::ISDIR => Obstacle::Foreign("is a directory"),
            Errno::NXIO => Obstacle::Foreign("is not a regular file"),
            Errno::EXIST => Obstacle::Foreign("is already there, and the server did not make it"),
            error => Obstacle::Disk(error),
        }
    }
}

impl fmt::Display for Obstacle {
    /// A clause that follows the name of the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Missing => f.write_str("is missing"),
            Obstacle::Foreign(what) => f.write_str(what),
            Obstacle::Disk(error) => write!(f, "was refused by the disk: {}", describe(*error)),
        }
    }
}

/// An error of the disk in words that say what to do about it.
pub fn describe(error: Errno) -> String {
    match error {
        Errno::NOSPC => "no space left".to_owned(),
        Errno::DQUOT => "the quota is used up".to_owned(),
        Errno::ROFS => "the file system is read-only".to_owned(),
        Errno::PERM | Errno::ACCESS => "not permitted".to_owned(),
        Errno::IO => "an input/output error".to_owned(),
        error => error.to_string(),
    }
}

/// What a file that the server may use is; anything else is an obstacle.
pub(super) fn regular(stat: &rustix::fs::Stat) -> Result<Found, Obstacle> {
    let what = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => None,
        FileType::Directory => Some("is a directory"),
        FileType::Symlink => Some("is a symbolic link"),
        FileType::Fifo => Some("is a fifo"),
        FileType::Socket => Some("is a socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("is a device"),
        _ => Some("is not a regular file"),
    };
    if let Some(what) = what {
        return Err(Obstacle::Foreign(what));
    }
    match links(stat) {
        0 => return Err(Obstacle::Missing),
        1 => {}
        _ => return Err(Obstacle::Foreign("has another name as well (a hard link)")),
    }
    Ok(Found { identity: (device(stat), stat.st_ino), length: u64::try_from(stat.st_size).unwrap_or(0) })
}

#[expect(clippy::unnecessary_cast, reason = "the width differs between platforms")]
fn links(stat: &rustix::fs::Stat) -> u64 {
    stat.st_nlink as u64
}

#[expect(clippy::unnecessary_cast, reason = "the width differs between platforms")]
fn device(stat: &rustix::fs::Stat) -> u64 {
    stat.st_dev as u64
}

/// Looks at what an open descriptor leads to now.
///
/// # Errors
/// An [`Obstacle`]; `Missing` if the file has no name any more. Nothing has changed.
pub(super) fn look_again(fd: impl AsFd) -> Result<Found, Obstacle> {
    regular(&rustix::fs::fstat(fd)?)
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
