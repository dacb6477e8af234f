//! Power cuts on real file systems: ext4, XFS and Btrfs, each on a disk whose cache a cut empties (`harness/block.rs`).
//!
//! ```text
//! TENURE_POWER_CUTS=500 cargo test --test crashes power -- --nocapture
//! ```
//!
//! The server's directory is on the file system; five clients work without pause. The power goes in the place of some
//! operation of the disk; the server dies with it. What the cut left of the disk is mounted, the server started on it, and
//! the clients, who know nothing of all that, go on: whatever was acknowledged must stand, once. To show that the cuts do
//! lose what was not synced, the test writes a file each time that it does not sync, and one that it does.

use crate::harness::{
    Disk, DiskRack, Lack, Life, Oracle, Server, Setup, Worker, can_unshare, has, mix, poll_until, run_inside,
    seed, skip,
};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const LOCKS: [&str; 3] = ["file_0", "file_1", "file_2"];
const WORKERS: u64 = 5;

/// How many cuts one disk goes through before a fresh one, and a judgement.
const CUTS_A_DISK: u64 = 25;

/// A kind of file system.
struct Kind {
    name: &'static str,
    mkfs: &'static [&'static str],
    options: &'static str,
    megabytes: u64,
    /// What the disk writes whole or not at all. Btrfs counts on its blocks.
    sector: usize,
}

const KINDS: [Kind; 4] = [
    Kind { name: "ext4", mkfs: &["mkfs.ext4", "-q"], options: "loop", megabytes: 64, sector: 512 },
    Kind {
        name: "ext4",
        mkfs: &["mkfs.ext4", "-q"],
        options: "loop,data=writeback",
        megabytes: 64,
        sector: 512,
    },
    Kind { name: "xfs", mkfs: &["mkfs.xfs", "-q"], options: "loop", megabytes: 320, sector: 512 },
    Kind { name: "btrfs", mkfs: &["mkfs.btrfs", "-q"], options: "loop", megabytes: 128, sector: 4096 },
];

#[test]
fn power_cuts_under_load_on_real_file_systems_lose_and_double_nothing() {
    const WHAT: &str = "power cuts on a real file system";
    for file in ["/dev/fuse", "/dev/loop-control"] {
        if !Path::new(file).exists() {
            return skip(WHAT, &Lack::Forbidden(format!("there is no {file}")));
        }
    }
    match can_unshare(&[]).and_then(|()| has("mkfs.ext4")) {
        Ok(()) => run_inside("power::in_its_own_namespaces", &[]),
        Err(lack) => skip(WHAT, &lack),
    }
}

/// What happened to all disks.
#[derive(Debug, Default)]
struct Figures {
    cuts: u64,
    writes: u64,
    flushes: u64,
    sectors_lost: u64,
    sectors_kept: u64,
    writes_torn: u64,
    unsynced_files: u64,
    unsynced_files_lost: u64,
    acked: u64,
}

/// The inside of the test, where mounts are nobody else's.
#[test]
#[ignore = "the test above runs it in namespaces of its own"]
fn in_its_own_namespaces() {
    let cuts: u64 = std::env::var("TENURE_POWER_CUTS")
        .map_or(6, |text| text.parse().expect("TENURE_POWER_CUTS is a number"));
    let seed = seed();
    let kinds: Vec<&Kind> = KINDS.iter().filter(|kind| has(kind.mkfs[0]).is_ok()).collect();
    for kind in KINDS.iter().filter(|kind| has(kind.mkfs[0]).is_err()) {
        println!("SKIP: power cuts on {}: {} is not installed", kind.name, kind.mkfs[0]);
    }
    let each = cuts.div_ceil(kinds.len() as u64);
    for (number, kind) in kinds.into_iter().enumerate() {
        let mut figures = Figures::default();
        let mut rng = fastrand::Rng::with_seed(mix(&[seed, number as u64]));
        while figures.cuts < each {
            let many = CUTS_A_DISK.min(each - figures.cuts);
            if let Err(why) = one_disk(kind, many, &mut rng, &mut figures) {
                println!("SKIP: power cuts on {}: this machine does not allow it: {why}", kind.name);
                return;
            }
        }
        println!("{} ({}): {figures:?}", kind.name, kind.options);
        // A cut may find the cache empty; many cannot.
        let enough = each < 20 || (figures.sectors_lost > 0 && figures.writes_torn > 0);
        assert!(
            enough && figures.unsynced_files_lost > 0,
            "the cuts lost nothing at all, so they show nothing: {figures:?}"
        );
    }
}

/// A mounted disk. Unmounted when dropped.
struct Mounted<'a>(&'a Path);

impl Mounted<'_> {
    fn mount<'a>(kind: &Kind, disk: &Path, at: &'a Path) -> Result<Mounted<'a>, String> {
        let mut command = Command::new("mount");
        command.args(["-t", kind.name, "-o", kind.options]).arg(disk).arg(at);
        let output = command.output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(Mounted(at)),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(self.0).output();
        if !done.is_ok_and(|output| output.status.success()) {
            // Something is open on it still; it goes when that does.
            let _ = Command::new("umount").arg("-l").arg(self.0).status();
        }
    }
}

fn one_disk(kind: &Kind, cuts: u64, rng: &mut fastrand::Rng, figures: &mut Figures) -> Result<(), String> {
    let place = tempfile::Builder::new().prefix("tenure-power-").tempdir().unwrap();
    let (image, at) = (place.path().join("image"), place.path().join("mounted"));
    fs::create_dir(&at).unwrap();
    File::create(&image).unwrap().set_len(kind.megabytes << 20).unwrap();
    let made = Command::new(kind.mkfs[0]).args(&kind.mkfs[1..]).arg(&image).output().unwrap();
    assert!(made.status.success(), "{}: {}", kind.mkfs[0], String::from_utf8_lossy(&made.stderr));
    let mut rack = DiskRack::mount()?;
    let mut disk = Arc::new(Disk::new(&fs::read(&image).unwrap(), kind.sector));
    let mut path = rack.add(&disk);
    let mut mounted = Some(Mounted::mount(kind, &path, &at)?);
    let mut server = Server::prepare_in(at.join("data"), Setup { log: "info", ..Setup::default() });
    server.must_launch();
    let oracle = Arc::new(Oracle::default());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            let mut worker = Worker::new(server.address(), &oracle, &LOCKS, rng.u64(..));
            let mut own = rng.fork();
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    worker.section(if own.u8(0..20) == 0 { Life::Short } else { Life::Long });
                }
            });
        }
        let _guard = StopAtEnd(&stop);
        for cut in 0..cuts {
            let before = oracle.acked_so_far();
            poll_until("progress between two cuts", || (oracle.acked_so_far() > before + 20).then_some(()));
            let canaries = Canaries::write(&at, cut);
            let within = [8, 60, 400][rng.usize(0..3)];
            disk.cut_at(rng.u64(1..=within), rng.bool());
            disk.await_cut(Duration::from_secs(5));
            server.kill();
            drop(mounted.take());
            figures.writes += disk.counts().writes;
            figures.flushes += disk.counts().flushes;
            let (after, lost) = disk.after_cut(rng);
            rack.remove(&path);
            (figures.sectors_lost, figures.sectors_kept) =
                (figures.sectors_lost + lost.lost, figures.sectors_kept + lost.kept);
            figures.writes_torn += lost.torn;
            disk = Arc::new(after);
            path = rack.add(&disk);
            mounted = Some(Mounted::mount(kind, &path, &at).expect("the file system is mounted after a cut"));
            figures.cuts += 1;
            figures.unsynced_files += 1;
            figures.unsynced_files_lost += u64::from(canaries.judge());
            server.start_again();
        }
        let before = oracle.acked_so_far();
        poll_until("progress after the last cut", || (oracle.acked_so_far() > before + 20).then_some(()));
    });
    let mut raw = server.client(60_000);
    raw.acquire("the last request succeeds");
    let files: BTreeMap<String, String> =
        oracle.files().into_iter().map(|file| (file.clone(), raw.read(&file))).collect();
    let counted = oracle.counters().into_iter();
    let keys = counted.map(|key| (key.clone(), raw.value(&key).as_u64().unwrap_or(0))).collect();
    let verdict = oracle.judge(&files, &keys);
    print!("{} ({}), {cuts} cuts of one disk: ", kind.name, kind.options);
    verdict.assert_clean();
    figures.acked += verdict.acked;
    let exit = server.terminate();
    assert!(exit.status.success(), "{exit:?}");
    for (file, content) in &files {
        assert_eq!(fs::read_to_string(server.file(file)).unwrap(), *content, "{file} on disk");
    }
    drop(mounted);
    Ok(())
}

/// Files of the test beside those of the server.
struct Canaries {
    synced: std::path::PathBuf,
    unsynced: std::path::PathBuf,
}

const SONG: &[u8] = &[b's'; 5_000];

impl Canaries {
    fn write(at: &Path, number: u64) -> Canaries {
        let canaries = Canaries {
            synced: at.join(format!("synced-{number}")),
            unsynced: at.join(format!("unsynced-{number}")),
        };
        let mut file = File::create(&canaries.synced).unwrap();
        file.write_all(SONG).unwrap();
        file.sync_all().unwrap();
        File::open(at).unwrap().sync_all().unwrap();
        fs::write(&canaries.unsynced, SONG).unwrap();
        canaries
    }

    /// Whether what was not synced is lost. What was must not be.
    fn judge(&self) -> bool {
        let synced = fs::read(&self.synced).unwrap_or_default();
        assert!(synced == SONG, "the disk lost what was synced: {} bytes", synced.len());
        let lost = fs::read(&self.unsynced).unwrap_or_default() != SONG;
        fs::remove_file(&self.synced).unwrap();
        let _ = fs::remove_file(&self.unsynced);
        lost
    }
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
