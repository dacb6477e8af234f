//! Disks as files, so that the kernel can put a file system on each: a file system in user space (FUSE) with one directory
//! of them, as little of the protocol as a loop device needs. Spoken by hand over `/dev/fuse`.

use super::block::Disk;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tempfile::TempDir;

/// The most that one write may carry.
const MOST: usize = 128 << 10;
const HEADER: usize = 40;

const EIO: i32 = 5;
const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;

type Disks = Arc<Mutex<BTreeMap<u64, Arc<Disk>>>>;

/// The directory of disks. Unmounted when dropped.
pub(crate) struct DiskRack {
    directory: TempDir,
    disks: Disks,
    next: u64,
    thread: Option<JoinHandle<()>>,
}

impl DiskRack {
    /// Mounts it.
    ///
    /// # Errors
    /// Why the machine does not allow that.
    pub(crate) fn mount() -> Result<DiskRack, String> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let device = device.map_err(|error| format!("/dev/fuse: {error}"))?;
        let directory = tempfile::Builder::new().prefix("tenure-fuse-").tempdir().unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let options = CString::new(options).unwrap();
        mount("tenure-disks", directory.path(), "fuse", MountFlags::NOSUID, options.as_c_str())
            .map_err(|error| format!("mount of FUSE: {error}"))?;
        let disks = Disks::default();
        let served = Arc::clone(&disks);
        let thread = Some(std::thread::spawn(move || serve(device, &served)));
        Ok(DiskRack { directory, disks, next: 2, thread })
    }

    /// Puts a disk there; gives its path.
    pub(crate) fn add(&mut self, disk: &Arc<Disk>) -> PathBuf {
        let node = self.next;
        self.next += 1;
        self.disks.lock().unwrap().insert(node, Arc::clone(disk));
        self.directory.path().join(node.to_string())
    }

    /// Takes a disk away that nobody uses any more.
    pub(crate) fn remove(&self, path: &std::path::Path) {
        let node: u64 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        self.disks.lock().unwrap().remove(&node);
    }
}

impl Drop for DiskRack {
    fn drop(&mut self) {
        // Lazily: if a test fails, something may still be mounted on it.
        let _ = unmount(self.directory.path(), UnmountFlags::DETACH);
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            let _ = thread.join();
        }
    }
}

/// Answers the kernel until the directory is unmounted.
fn serve(mut device: File, disks: &Disks) {
    let mut request = vec![0; MOST + 8192];
    while let Ok(length) = device.read(&mut request) {
        let (head, body) = request[..length].split_at(HEADER);
        let (opcode, unique, node) = (u32_at(head, 4), u64_at(head, 8), u64_at(head, 16));
        // FORGET, INTERRUPT and BATCH_FORGET have no reply.
        if [2, 36, 42].contains(&opcode) {
            continue;
        }
        let disk = disks.lock().unwrap().get(&node).cloned();
        let (error, data) = match answer(opcode, node, body, disk.as_deref(), disks) {
            Ok(data) => (0, data),
            Err(errno) => (-errno, Vec::new()),
        };
        let mut reply = Vec::with_capacity(16 + data.len());
        reply.extend_from_slice(&(16 + data.len() as u32).to_ne_bytes());
        reply.extend_from_slice(&error.to_ne_bytes());
        reply.extend_from_slice(&unique.to_ne_bytes());
        reply.extend_from_slice(&data);
        // Who asked may be gone.
        let _ = device.write_all(&reply);
    }
}

fn answer(opcode: u32, node: u64, body: &[u8], disk: Option<&Disk>, disks: &Disks) -> Result<Vec<u8>, i32> {
    let dead = EIO;
    match opcode {
        // INIT
        26 => {
            const BIG_WRITES: u32 = 1 << 5;
            const MAX_PAGES: u32 = 1 << 22;
            let mut out = Vec::new();
            for word in [7, 31, u32_at(body, 8), BIG_WRITES | MAX_PAGES] {
                out.extend_from_slice(&word.to_ne_bytes());
            }
            for half in [16u16, 12] {
                out.extend_from_slice(&half.to_ne_bytes());
            }
            for word in [MOST as u32, 1] {
                out.extend_from_slice(&word.to_ne_bytes());
            }
            out.extend_from_slice(&((MOST / 4096) as u16).to_ne_bytes());
            out.resize(64, 0);
            Ok(out)
        }
        // LOOKUP
        1 => {
            let name = body.split(|byte| *byte == 0).next().unwrap_or_default();
            let node =
                std::str::from_utf8(name).ok().and_then(|name| name.parse::<u64>().ok()).ok_or(ENOENT)?;
            let disk = disks.lock().unwrap().get(&node).cloned().ok_or(ENOENT)?;
            let mut out = Vec::new();
            for word in [node, 0, 3600, 3600, 0] {
                out.extend_from_slice(&word.to_ne_bytes());
            }
            attributes(&mut out, node, Some(&disk));
            Ok(out)
        }
        // GETATTR, SETATTR
        3 | 4 => {
            let mut out = Vec::new();
            for word in [3600u64, 0] {
                out.extend_from_slice(&word.to_ne_bytes());
            }
            attributes(&mut out, node, disk);
            Ok(out)
        }
        // OPEN, OPENDIR: what the kernel has cached of it stays good, for nobody else writes it.
        14 | 27 => Ok([0u64.to_ne_bytes(), (1u64 << 1).to_ne_bytes()].concat()),
        // READ
        15 => {
            let disk = disk.ok_or(EIO)?;
            disk.read(u64_at(body, 8) as usize, u32_at(body, 16) as usize).ok_or(dead)
        }
        // WRITE
        16 => {
            let (disk, size) = (disk.ok_or(EIO)?, u32_at(body, 16));
            disk.write(u64_at(body, 8) as usize, &body[40..40 + size as usize]).ok_or(dead)?;
            Ok(u64::from(size).to_ne_bytes().to_vec())
        }
        // FSYNC
        20 => disk.ok_or(EIO)?.flush().map(|()| Vec::new()).ok_or(dead),
        // FLUSH, RELEASE, RELEASEDIR, DESTROY
        25 | 18 | 29 | 38 => Ok(Vec::new()),
        _ => Err(ENOSYS),
    }
}

fn attributes(out: &mut Vec<u8>, node: u64, disk: Option<&Disk>) {
    let size = disk.map_or(0, Disk::size) as u64;
    for word in [node, size, size / 512, 0, 0, 0] {
        out.extend_from_slice(&word.to_ne_bytes());
    }
    let mode: u32 = if disk.is_some() { 0o100_600 } else { 0o040_700 };
    for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        out.extend_from_slice(&word.to_ne_bytes());
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}
