//! The data directory: who may use it, where things are in it, and how a file gets there whole.
//!
//! ```text
//!   <data-dir>/                          0700; every file 0600
//!     lock                               one server a directory; holds its process id
//!     server_state.json                  the snapshot
//!     server_state.json.previous         the one before it
//!     server_state.json.damaged          one that the previous one had to serve for
//!     snapshot.reserve                   room for the next one on a disk that is full
//!     journal/00000000000000000001.seg   segments, by number
//!     journal/spare                      the next segment, allocated and filled with zeros
//!     files/                             the files that locks guard
//!     *.tmp                              unfinished; swept at the next start
//! ```
//!
//! A file is written under a `.tmp` name, synced, and renamed; each create, rename and unlink is followed by a sync of
//! its directory, so that what the next step relies on is on the disk before that step.

use crate::disk;
use crate::failpoint;
use crate::snapshot::{self, Snapshot};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The snapshot.
pub const SNAPSHOT: &str = "server_state.json";
/// The snapshot before it.
pub const PREVIOUS: &str = "server_state.json.previous";
/// A snapshot that was found damaged, kept for who wants to know why.
const DAMAGED: &str = "server_state.json.damaged";
const SNAPSHOT_TMP: &str = "server_state.json.tmp";
const PREVIOUS_TMP: &str = "server_state.json.previous.tmp";
const RESERVE: &str = "snapshot.reserve";
const RESERVE_TMP: &str = "snapshot.reserve.tmp";
const LOCK: &str = "lock";
const JOURNAL: &str = "journal";
const FILES: &str = "files";
const SPARE: &str = "spare";
const SPARE_TMP: &str = "spare.tmp";
const TAIL_TMP: &str = "tail.tmp";

/// Something that the disk, or what stands on it, did not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskError {
    /// What, where, what to do.
    pub sentence: String,
    /// Whether it is the lack of space (or of quota), which may pass.
    pub no_space: bool,
}

impl DiskError {
    /// An error that is not the lack of space.
    pub fn new(sentence: impl Into<String>) -> DiskError {
        DiskError { sentence: sentence.into(), no_space: false }
    }

    /// What the kernel said to `doing` something with `path`.
    pub(crate) fn io(doing: &str, path: &Path, error: &io::Error) -> DiskError {
        let errno = Errno::from_io_error(error);
        let no_space = matches!(errno, Some(Errno::NOSPC | Errno::DQUOT));
        let advice = match errno {
            Some(Errno::NOSPC | Errno::DQUOT) => "; free space on its file system",
            Some(Errno::ACCESS | Errno::PERM) => "; check the owner and the mode of it and of its directory",
            Some(Errno::ROFS) => "; its file system is mounted read-only",
            Some(Errno::IO) => "; the disk is failing: check the kernel's log before starting again",
            _ => "",
        };
        DiskError { sentence: format!("cannot {doing} {}: {error}{advice}", path.display()), no_space }
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for DiskError {}

impl From<String> for DiskError {
    fn from(sentence: String) -> DiskError {
        DiskError::new(sentence)
    }
}

/// A data directory that nobody else uses while this lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// The locked file; none if it was opened for reading and had none.
    _lock: Option<File>,
}

impl DataDir {
    /// Makes the directory if it is not there, takes its lock, and sweeps what an unfinished write left.
    ///
    /// # Errors
    /// A sentence; if another server has the directory, it names the process.
    pub fn open(path: &Path) -> Result<DataDir, DiskError> {
        make_dir(path)?;
        refuse_open_to_all(path)?;
        let lock = path.join(LOCK);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&lock).map_err(|error| DiskError::io("open the lock file", &lock, &error))?;
        take(&file, &lock, path)?;
        write_pid(&file);
        let dir = DataDir { path: path.into(), _lock: Some(file) };
        make_dir(&dir.journal())?;
        make_dir(&dir.files())?;
        // Whoever made or renamed something there before may have been killed before that was on the disk.
        sync_parent(path)?;
        sync_dir(path)?;
        sync_dir(&dir.journal())?;
        dir.sweep()?;
        Ok(dir)
    }

    /// Opens a stopped directory without changing it. Nobody can start a server on it while this lives, if it has ever
    /// had one.
    ///
    /// # Errors
    /// A sentence, if it is no data directory, or if a server has it.
    pub fn inspect(path: &Path) -> Result<DataDir, DiskError> {
        if !path.join(JOURNAL).is_dir() && !path.join(SNAPSHOT).is_file() {
            return Err(DiskError::new(format!(
                "{} holds neither {SNAPSHOT} nor {JOURNAL}/: it is not the data directory of a server",
                path.display()
            )));
        }
        let lock = path.join(LOCK);
        let file = match File::open(&lock) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(DiskError::io("open the lock file", &lock, &error)),
        };
        if let Some(file) = &file {
            take(file, &lock, path)?;
        }
        Ok(DataDir { path: path.into(), _lock: file })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the files are that locks guard.
    pub fn files(&self) -> PathBuf {
        self.path.join(FILES)
    }

    /// Where the segments are.
    pub fn journal(&self) -> PathBuf {
        self.path.join(JOURNAL)
    }

    /// The file of a segment.
    pub fn segment(&self, number: u64) -> PathBuf {
        self.journal().join(format!("{number:020}.seg"))
    }

    /// The numbers of the segments, from the oldest.
    ///
    /// # Errors
    /// A sentence, if the directory cannot be read, or numbers are missing between them.
    pub fn segments(&self) -> Result<Vec<u64>, DiskError> {
        let path = self.journal();
        let failed = |error: io::Error| DiskError::io("list", &path, &error);
        let mut numbers = Vec::new();
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(numbers),
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let digits =
                name.to_str().and_then(|name| name.strip_suffix(".seg")).filter(|name| name.len() == 20);
            numbers.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        match numbers.iter().zip(numbers.iter().skip(1)).find(|(one, next)| **one + 1 != **next) {
            Some((one, next)) => Err(DiskError::new(format!(
                "the journal has a gap: {} is followed by {}; put the missing segments back, or restore a backup with \
                 `tenure state restore`",
                self.segment(*one).display(),
                self.segment(*next).display()
            ))),
            None => Ok(numbers),
        }
    }

    /// The bytes of a segment.
    ///
    /// # Errors
    /// A sentence.
    pub fn read_segment(&self, number: u64) -> Result<Vec<u8>, DiskError> {
        let path = self.segment(number);
        fs::read(&path).map_err(|error| DiskError::io("read", &path, &error))
    }

    /// The bytes of a snapshot: [`SNAPSHOT`] or [`PREVIOUS`]. None if it is not there.
    ///
    /// # Errors
    /// A sentence.
    pub fn read_snapshot(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DiskError::io("read", &path, &error)),
        }
    }

    /// Puts a snapshot in the place of the last one, which becomes the previous one. Uses the reserve if the disk is
    /// full. Gives its size in bytes.
    ///
    /// # Errors
    /// A sentence; the last snapshot still stands.
    pub fn write_snapshot(&self, snapshot: &Snapshot) -> Result<u64, DiskError> {
        let tmp = self.path.join(SNAPSHOT_TMP);
        let bytes = match write_tmp(&tmp, snapshot) {
            Err(error)
                if Errno::from_io_error(&error).is_some_and(|e| e == Errno::NOSPC || e == Errno::DQUOT) =>
            {
                remove(&tmp)?;
                remove(&self.path.join(RESERVE))?;
                write_tmp(&tmp, snapshot)
            }
            other => other,
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => {
                // Half a snapshot is of no use, and takes room.
                remove(&tmp)?;
                return Err(DiskError::io("write", &tmp, &error));
            }
        };
        let (current, previous) = (self.path.join(SNAPSHOT), self.path.join(PREVIOUS));
        let previous_tmp = self.path.join(PREVIOUS_TMP);
        remove(&previous_tmp)?;
        match disk::link(&current, &previous_tmp) {
            Ok(()) => {
                sync_dir(&self.path)?;
                point("snapshot.after_link", &previous_tmp)?;
                rename(&previous_tmp, &previous)?;
                point("snapshot.after_previous", &previous)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // A file system without hard links: the last snapshot is not kept, which is a second line only.
            Err(error) => ::log::warn!("cannot keep {} as {PREVIOUS}: {error}", current.display()),
        }
        point("snapshot.before_rename", &tmp)?;
        disk::rename(&tmp, &current).map_err(|error| DiskError::io("rename", &tmp, &error))?;
        point("snapshot.after_rename", &current)?;
        sync_dir(&self.path)?;
        point("snapshot.after_dirsync", &current)?;
        Ok(bytes)
    }

    /// Puts a damaged snapshot aside, so that it does not become the previous one, which served in its place.
    ///
    /// # Errors
    /// A sentence; it may still be there.
    pub fn put_damaged_aside(&self) -> Result<(), DiskError> {
        let path = self.path.join(SNAPSHOT);
        if path.exists() { rename(&path, &self.path.join(DAMAGED)) } else { Ok(()) }
    }

    /// Removes the previous snapshot.
    ///
    /// # Errors
    /// A sentence; it may still be there.
    pub fn remove_previous(&self) -> Result<(), DiskError> {
        remove(&self.path.join(PREVIOUS))
    }

    /// Removes a segment.
    ///
    /// # Errors
    /// A sentence; it may still be there.
    pub fn remove_segment(&self, number: u64) -> Result<(), DiskError> {
        let path = self.segment(number);
        point("segment.before_delete", &path)?;
        remove(&path)?;
        point("segment.after_delete", &path)
    }

    /// Makes the reserve for a snapshot at least `bytes` long.
    ///
    /// # Errors
    /// A sentence; the reserve is as it was: a smaller one, or none.
    pub fn hold_reserve(&self, bytes: u64) -> Result<(), DiskError> {
        let (path, tmp) = (self.path.join(RESERVE), self.path.join(RESERVE_TMP));
        if let Ok(held) = fs::metadata(&path).map(|found| found.len()) {
            if held >= bytes {
                return Ok(());
            }
            // In its place: on a disk that has filled up meanwhile a smaller one is better than none.
            let file = open_for_writing(&path)?;
            let grown = reserve(&file, bytes).and_then(|()| Ok(disk::sync_all(&file)?));
            return grown.map_err(|error| {
                let _ = disk::set_length(&file, held);
                DiskError::io("make the reserve for a snapshot longer", &path, &error)
            });
        }
        let file = create(&tmp)?;
        let made = reserve(&file, bytes).and_then(|()| Ok(disk::sync_all(&file)?));
        if let Err(error) = made {
            remove(&tmp)?;
            return Err(DiskError::io("allocate the reserve for a snapshot", &tmp, &error));
        }
        rename(&tmp, &path)
    }

    /// Whether the spare segment is there, with exactly this size. One of another size is removed.
    ///
    /// # Errors
    /// A sentence.
    pub fn has_spare(&self, size: u64) -> Result<bool, DiskError> {
        let path = self.journal().join(SPARE);
        match fs::metadata(&path) {
            Ok(found) if found.len() == size => Ok(true),
            Ok(_) => remove(&path).map(|()| false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(DiskError::io("look at", &path, &error)),
        }
    }

    /// Makes the spare segment, of zeros. `stop` ends it early with an error.
    ///
    /// # Errors
    /// A sentence; there is no spare then.
    pub fn make_spare(&self, size: u64, zeros: Zeros, stop: &AtomicBool) -> Result<(), DiskError> {
        let (tmp, spare) = (self.journal().join(SPARE_TMP), self.journal().join(SPARE));
        point("spare.before_create", &tmp)?;
        drop(allocate(&tmp, size, zeros, stop)?);
        point("spare.before_rename", &tmp)?;
        rename(&tmp, &spare)?;
        point("spare.after_rename", &spare)
    }

    /// Makes the spare the segment `number`, with `content` at its start. Gives it opened for writing.
    ///
    /// # Errors
    /// A sentence; the segment may be there or not.
    pub fn begin_segment(&self, number: u64, content: &[u8]) -> Result<File, DiskError> {
        let (spare, path) = (self.journal().join(SPARE), self.segment(number));
        let file = open_for_writing(&spare)?;
        point("segment.before_write", &spare)?;
        disk::write_at(&file, content, 0).map_err(|error| DiskError::io("write", &spare, &error))?;
        point("segment.before_sync", &spare)?;
        disk::sync_data(&file).map_err(|error| DiskError::io("sync", &spare, &error.into()))?;
        point("segment.before_rename", &spare)?;
        disk::rename(&spare, &path).map_err(|error| DiskError::io("rename", &spare, &error))?;
        point("segment.after_rename", &path)?;
        if !crate::bug::planted("name_of_a_segment_not_synced") {
            sync_dir(&self.journal())?;
        }
        point("segment.after_dirsync", &path)?;
        Ok(file)
    }

    /// Puts `content`, and zeros up to `size`, in the place of the segment `number`, in a file of its own: the spare if
    /// it has that size, else a new one. Gives it opened for writing.
    ///
    /// # Errors
    /// A sentence; the segment is the old one or the new one.
    pub fn replace_segment(&self, number: u64, content: &[u8], size: u64) -> Result<File, DiskError> {
        let tmp = self.journal().join(TAIL_TMP);
        let never = AtomicBool::new(false);
        let file = if self.has_spare(size)? {
            // Under another name first: a spare must be all zeros, and this one may be left half written.
            rename(&self.journal().join(SPARE), &tmp)?;
            open_for_writing(&tmp)?
        } else {
            allocate(&tmp, size, Zeros::Written, &never)?
        };
        let path = self.segment(number);
        point("tail.before_write", &tmp)?;
        disk::write_at(&file, content, 0).map_err(|error| DiskError::io("write", &tmp, &error))?;
        point("tail.before_sync", &tmp)?;
        if !crate::bug::planted("tail_not_synced_at_start") {
            disk::sync_all(&file).map_err(|error| DiskError::io("sync", &tmp, &error.into()))?;
        }
        point("tail.before_rename", &tmp)?;
        disk::rename(&tmp, &path).map_err(|error| DiskError::io("rename", &tmp, &error))?;
        point("tail.after_rename", &path)?;
        sync_dir(&self.journal())?;
        point("tail.after_dirsync", &path)?;
        Ok(file)
    }

    /// Writes `content` over the segment `number`, which begins with the same bytes, and zeros behind it: for a start
    /// on a disk that has no room for another file.
    ///
    /// # Errors
    /// A sentence.
    pub fn rewrite_segment(&self, number: u64, content: &[u8]) -> Result<File, DiskError> {
        let path = self.segment(number);
        let file = open_for_writing(&path)?;
        let wrap = |error: io::Error| DiskError::io("rewrite", &path, &error);
        let size = file.metadata().map_err(wrap)?.len();
        disk::write_at(&file, content, 0).map_err(wrap)?;
        zero(&file, content.len() as u64, size, &AtomicBool::new(false)).map_err(wrap)?;
        disk::sync_all(&file).map_err(|error| wrap(error.into()))?;
        Ok(file)
    }

    /// Removes what unfinished writes left.
    fn sweep(&self) -> Result<(), DiskError> {
        for name in [SNAPSHOT_TMP, PREVIOUS_TMP, RESERVE_TMP] {
            remove(&self.path.join(name))?;
        }
        for name in [SPARE_TMP, TAIL_TMP] {
            remove(&self.journal().join(name))?;
        }
        Ok(())
    }
}

/// A failpoint as a disk error.
pub(crate) fn point(name: &str, path: &Path) -> Result<(), DiskError> {
    failpoint::hit(name).map_err(|error| DiskError::io("work on", path, &error))
}

/// Syncs a directory: what was created, renamed or unlinked in it is then on the disk.
///
/// # Errors
/// A sentence; what was done in it may be undone by a power cut.
pub fn sync_dir(path: &Path) -> Result<(), DiskError> {
    if crate::bug::planted("directory_not_synced") {
        return Ok(());
    }
    let synced = File::open(path).and_then(|dir| Ok(disk::sync_dir(&dir)?));
    synced.map_err(|error| DiskError::io("sync the directory", path, &error))
}

/// Syncs the directory that has `path` in it, if this user may look into it.
fn sync_parent(path: &Path) -> Result<(), DiskError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(parent) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            ::log::debug!("cannot sync {}: {error}", parent.display());
            Ok(())
        }
        _ => sync_dir(parent),
    }
}

/// Makes a directory with mode 0700, with those above it, if it is not there.
fn make_dir(path: &Path) -> Result<(), DiskError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dir(parent)?;
    match disk::make_dir(path, DirBuilder::new().mode(0o700)) {
        Ok(()) => sync_dir(parent),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(DiskError::new(format!(
            "{} is in the way: a directory is needed there, and it is something else",
            path.display()
        ))),
        Err(error) => Err(DiskError::io("make the directory", path, &error)),
    }
}

/// Others who may write here could put another state in the place of ours.
fn refuse_open_to_all(path: &Path) -> Result<(), DiskError> {
    let mode = fs::metadata(path).map_err(|error| DiskError::io("look at", path, &error))?.mode() & 0o777;
    if mode & 0o002 != 0 {
        return Err(DiskError::new(format!(
            "everybody may write to the data directory {} (mode {mode:04o}); do `chmod 700` on it",
            path.display()
        )));
    }
    if mode & 0o020 != 0 {
        ::log::warn!(
            "the group may write to the data directory {} (mode {mode:04o}); better 0700",
            path.display()
        );
    }
    Ok(())
}

/// Takes the lock of a directory, or says who has it.
fn take(file: &File, lock: &Path, dir: &Path) -> Result<(), DiskError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = file.take(32).read_to_string(&mut pid);
            let who = match pid.trim() {
                pid if !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()) => {
                    format!("process {pid}")
                }
                _ => "another process".into(),
            };
            Err(DiskError::new(format!(
                "{who} uses the data directory {}; stop it first, or name another directory",
                dir.display()
            )))
        }
        Err(error) => Err(DiskError::io("lock", lock, &error.into())),
    }
}

/// Writes the process id into the lock file. Only people read it: a disk that is full must not keep a server down.
fn write_pid(mut file: &File) {
    let written = file.seek(SeekFrom::Start(0)).and_then(|_| {
        let pid = format!("{:<10}\n", std::process::id());
        file.write_all(pid.as_bytes())
    });
    if let Err(error) = written {
        ::log::warn!("cannot write the process id into the lock file: {error}");
    }
}

/// Writes and syncs a snapshot; gives its size.
fn write_tmp(path: &Path, snapshot: &Snapshot) -> io::Result<u64> {
    failpoint::hit("snapshot.before_write")?;
    let file = disk::create(path, OpenOptions::new().write(true).create(true).truncate(true).mode(0o600))?;
    let mut out = BufWriter::with_capacity(64 * 1024, Polite(disk::Writing::new(&file)));
    snapshot::encode(snapshot, &mut out)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?;
    failpoint::hit("snapshot.before_sync")?;
    if !crate::bug::planted("snapshot_named_before_its_sync") {
        disk::sync_all(&file)?;
    }
    failpoint::hit("snapshot.after_sync")?;
    Ok(file.metadata()?.len())
}

/// A writer that lets other threads have the core before each piece, which is less than a millisecond's work to make: a time
/// slice, which they had to wait for else, is three.
struct Polite<W>(W);

impl<W: Write> Write for Polite<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        std::thread::yield_now();
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Renames and syncs the directory.
fn rename(from: &Path, to: &Path) -> Result<(), DiskError> {
    disk::rename(from, to).map_err(|error| DiskError::io("rename", from, &error))?;
    sync_dir(to.parent().unwrap_or(Path::new(".")))
}

/// Removes a file, if it is there, and syncs the directory.
fn remove(path: &Path) -> Result<(), DiskError> {
    match disk::unlink(path) {
        Ok(()) => sync_dir(path.parent().unwrap_or(Path::new("."))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(DiskError::io("remove", path, &error)),
    }
}

/// Creates an empty file, in the place of one that is there.
fn create(path: &Path) -> Result<File, DiskError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    disk::create(path, &options).map_err(|error| DiskError::io("create", path, &error))
}

fn open_for_writing(path: &Path) -> Result<File, DiskError> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| DiskError::io("open", path, &error))
}

/// How a file comes to be all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// They are written. A later write into them changes no metadata, so that its sync has one thing to wait for.
    Written,
    /// The file system has set blocks aside and says that they are zeros. That is a third of the work, and a later sync has the
    /// file system's own records to write, too.
    Promised,
}

/// A new file of `size` zeros, synced: later writes into it need no space. None is left behind if that fails.
fn allocate(path: &Path, size: u64, zeros: Zeros, stop: &AtomicBool) -> Result<File, DiskError> {
    let file = create(path)?;
    let zeroed = |()| match zeros {
        Zeros::Written => zero(&file, 0, size, stop),
        Zeros::Promised => Ok(()),
    };
    let made = reserve(&file, size).and_then(zeroed).and_then(|()| Ok(disk::sync_all(&file)?));
    match made {
        Ok(()) => {
            // A direct write would have to throw out what is there of its pages.
            disk::forget_cached(&file);
            Ok(file)
        }
        Err(error) => {
            remove(path)?;
            Err(DiskError::io("allocate", path, &error))
        }
    }
}

/// Gives a file its blocks, by writing zeros where the file system cannot do it otherwise.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    failpoint::hit("disk.allocate")?;
    match disk::allocate(file, size) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => zero(file, 0, size, &AtomicBool::new(false)),
        Err(error) => Err(error.into()),
    }
}

/// Writes zeros.
fn zero(file: &File, mut from: u64, to: u64, stop: &AtomicBool) -> io::Result<()> {
    let zeros = vec![0; 256 * 1024];
    while from < to {
        if stop.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "the server is stopping"));
        }
        let count = zeros.len().min(usize::try_from(to - from).unwrap_or(usize::MAX));
        disk::write_at(file, &zeros[..count], from)?;
        from += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_new_directory_is_closed_to_others() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let dir = DataDir::open(&path).unwrap();
        assert_eq!([mode(&path), mode(&dir.journal()), mode(&dir.files())], [0o700; 3]);
        assert_eq!(mode(&path.join(LOCK)), 0o600);
    }

    #[test]
    fn a_reserve_that_cannot_grow_stays_as_it_is() {
        let path = tempfile::tempdir().unwrap();
        let dir = DataDir::open(path.path()).unwrap();
        let held = || fs::metadata(path.path().join(RESERVE)).map(|found| found.len()).ok();
        assert!(dir.hold_reserve(1 << 60).is_err());
        assert_eq!(held(), None);
        dir.hold_reserve(8_192).unwrap();
        assert!(dir.hold_reserve(1 << 60).is_err());
        assert_eq!(held(), Some(8_192));
        dir.hold_reserve(16_384).unwrap();
        assert_eq!(held(), Some(16_384));
    }

    #[test]
    fn a_second_server_is_told_which_process_has_the_directory() {
        let path = tempfile::tempdir().unwrap();
        let first = DataDir::open(path.path()).unwrap();
        let pid = format!("process {} uses", std::process::id());
        assert!(DataDir::open(path.path()).unwrap_err().sentence.contains(&pid));
        assert!(DataDir::inspect(path.path()).unwrap_err().sentence.contains(&pid));
        drop(first);
        DataDir::open(path.path()).unwrap();
    }

    #[test]
    fn a_directory_that_everybody_may_write_to_is_refused() {
        let path = tempfile::tempdir().unwrap();
        fs::set_permissions(path.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(DataDir::open(path.path()).unwrap_err().sentence.contains("everybody may write"));
    }

    #[test]
    fn unfinished_writes_are_swept_and_nothing_else() {
        let path = tempfile::tempdir().unwrap();
        drop(DataDir::open(path.path()).unwrap());
        let left = [SNAPSHOT_TMP, PREVIOUS_TMP, RESERVE_TMP, "journal/spare.tmp", "journal/tail.tmp"];
        for name in left {
            fs::write(path.path().join(name), b"x").unwrap();
        }
        fs::write(path.path().join("notes.tmp"), b"mine").unwrap();
        drop(DataDir::open(path.path()).unwrap());
        assert!(left.iter().all(|name| !path.path().join(name).exists()));
        assert!(path.path().join("notes.tmp").exists());
    }

    #[test]
    fn the_spare_is_all_zeros_and_of_the_size_asked() {
        let path = tempfile::tempdir().unwrap();
        let dir = DataDir::open(path.path()).unwrap();
        for zeros in [Zeros::Promised, Zeros::Written] {
            dir.make_spare(300_000, zeros, &AtomicBool::new(false)).unwrap();
            assert_eq!(fs::read(dir.journal().join(SPARE)).unwrap(), vec![0; 300_000]);
            let blocks = fs::metadata(dir.journal().join(SPARE)).unwrap().blocks();
            assert!(blocks * 512 >= 300_000, "{zeros:?} zeros have their room on the disk");
            assert!(dir.has_spare(300_000).unwrap());
        }
        assert!(!dir.has_spare(400_000).unwrap(), "a spare of another size is not used");
        assert!(dir.make_spare(300_000, Zeros::Written, &AtomicBool::new(true)).is_err());
        assert!(!dir.journal().join(SPARE_TMP).exists());
    }

    #[test]
    fn a_gap_between_segments_is_refused() {
        let path = tempfile::tempdir().unwrap();
        let dir = DataDir::open(path.path()).unwrap();
        for number in [1, 2, 4] {
            fs::write(dir.segment(number), b"").unwrap();
        }
        assert!(dir.segments().unwrap_err().sentence.contains("00002.seg is followed by"));
    }
}
