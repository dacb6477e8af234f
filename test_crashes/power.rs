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
    Disk, DiskRack, Lack, Life, Oracle, Raw, Server, Setup, Worker, can_unshare, has, mix, poll_until,
    run_inside, seed, skip,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

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

const WHAT: &str = "power cuts on a real file system";

#[test]
fn power_cuts_under_load_on_real_file_systems_lose_and_double_nothing() {
    in_namespaces("power::synced");
}

#[test]
fn power_cuts_where_nothing_is_synced_repeat_no_token_and_leave_a_beginning() {
    in_namespaces("power::unsynced");
}

fn in_namespaces(test: &str) {
    for file in ["/dev/fuse", "/dev/loop-control"] {
        if !Path::new(file).exists() {
            return skip(WHAT, &Lack::Forbidden(format!("there is no {file}")));
        }
    }
    match can_unshare(&[]).and_then(|()| has("mkfs.ext4")) {
        Ok(()) => run_inside(test, &[]),
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
    /// Files that were rotated or deleted.
    rotated: u64,
}

/// How many cuts are asked for.
fn cuts() -> u64 {
    std::env::var("TENURE_POWER_CUTS").map_or(6, |text| text.parse().expect("TENURE_POWER_CUTS is a number"))
}

/// The kinds of file systems that can be made here.
fn kinds() -> Vec<&'static Kind> {
    let mut kinds = Vec::new();
    for kind in &KINDS {
        match has(kind.mkfs[0]) {
            Ok(()) => kinds.push(kind),
            Err(lack) => skip(&format!("power cuts on {}", kind.name), &lack),
        }
    }
    kinds
}

/// Has all kinds of file systems go through the cuts asked for, one disk after another.
fn all_kinds(mut one_disk: impl FnMut(&Kind, u64, &mut fastrand::Rng, &mut Figures) -> Result<(), String>) {
    let (seed, kinds) = (seed(), kinds());
    let each = cuts().div_ceil(kinds.len() as u64);
    for (number, kind) in kinds.into_iter().enumerate() {
        let mut figures = Figures::default();
        let mut rng = fastrand::Rng::with_seed(mix(&[seed, number as u64]));
        while figures.cuts < each {
            let many = CUTS_A_DISK.min(each - figures.cuts);
            if let Err(why) = one_disk(kind, many, &mut rng, &mut figures) {
                return skip(WHAT, &Lack::Forbidden(why));
            }
        }
        println!("{} ({}): {figures:?}", kind.name, kind.options);
        // A cut may find the cache empty; many cannot.
        let enough = each < 20 || figures.sectors_lost > 0;
        assert!(
            enough && figures.unsynced_files_lost > 0,
            "the cuts lost nothing at all, so they show nothing: {figures:?}"
        );
    }
}

/// The inside of the first test, where mounts are nobody else's.
#[test]
#[ignore = "the tests above run it in namespaces of its own"]
fn synced() {
    all_kinds(one_disk);
}

/// The inside of the second.
#[test]
#[ignore = "the tests above run it in namespaces of its own"]
fn unsynced() {
    let mut lost = 0;
    for durability in ["os", "none"] {
        all_kinds(|kind, cuts, rng, figures| {
            lost += one_disk_unsynced(kind, durability, cuts, rng, figures)?;
            Ok(())
        });
    }
    println!("{lost} cuts lost what was told");
}

/// A mounted disk. Unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn mount(kind: &Kind, disk: &Path, at: &Path) -> Result<Mounted, String> {
        let mut command = Command::new("mount");
        command.args(["-t", kind.name, "-o", kind.options]).arg(disk).arg(at);
        let output = command.output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(Mounted(at.to_owned())),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.0).output();
        if !done.is_ok_and(|output| output.status.success()) {
            // Something is open on it still; it goes when that does.
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
}

/// A disk with a file system under power, and the server's directory on it.
struct Powered<'a> {
    kind: &'a Kind,
    /// Unmounted before the disk goes.
    mounted: Option<Mounted>,
    rack: DiskRack,
    disk: Arc<Disk>,
    path: PathBuf,
    at: PathBuf,
    _place: TempDir,
}

impl Powered<'_> {
    /// A fresh disk.
    fn on(kind: &Kind) -> Result<Powered<'_>, String> {
        let place = tempfile::Builder::new().prefix("tenure-power-").tempdir().unwrap();
        let (image, at) = (place.path().join("image"), place.path().join("mounted"));
        fs::create_dir(&at).unwrap();
        File::create(&image).unwrap().set_len(kind.megabytes << 20).unwrap();
        let made = Command::new(kind.mkfs[0]).args(&kind.mkfs[1..]).arg(&image).output().unwrap();
        assert!(made.status.success(), "{}: {}", kind.mkfs[0], String::from_utf8_lossy(&made.stderr));
        let mut rack = DiskRack::mount()?;
        let disk = Arc::new(Disk::new(&fs::read(&image).unwrap(), kind.sector));
        let path = rack.add(&disk);
        let mounted = Some(Mounted::mount(kind, &path, &at)?);
        Ok(Powered { kind, mounted, rack, disk, path, at, _place: place })
    }

    /// Cuts the power soon, after that time at the latest, and mounts what is left. The server has died; it is not started.
    fn cut(&mut self, server: &mut Server, rng: &mut fastrand::Rng, figures: &mut Figures, within_ms: u64) {
        let canaries = Canaries::write(&self.at, figures.cuts);
        let within = [8, 60, 400][rng.usize(0..3)];
        self.disk.cut_at(rng.u64(1..=within), rng.bool());
        self.disk.await_cut(Duration::from_millis(within_ms));
        server.kill();
        drop(self.mounted.take());
        figures.writes += self.disk.counts().writes;
        figures.flushes += self.disk.counts().flushes;
        let (after, lost) = self.disk.after_cut(rng);
        figures.sectors_lost += lost.lost;
        figures.sectors_kept += lost.kept;
        figures.writes_torn += lost.torn;
        self.rack.remove(&self.path);
        self.disk = Arc::new(after);
        self.path = self.rack.add(&self.disk);
        let mounted = Mounted::mount(self.kind, &self.path, &self.at);
        self.mounted = Some(mounted.expect("the file system is mounted after a cut"));
        figures.cuts += 1;
        figures.unsynced_files += 1;
        figures.unsynced_files_lost += u64::from(canaries.judge());
    }
}

/// Everything stands that was acknowledged, once, over so many cuts of one disk.
fn one_disk(kind: &Kind, cuts: u64, rng: &mut fastrand::Rng, figures: &mut Figures) -> Result<(), String> {
    let mut powered = Powered::on(kind)?;
    let setup = Setup { log: "info", ..Setup::default() };
    let mut server = Server::prepare_in(powered.at.join("data"), setup);
    server.must_launch();
    let oracle = Arc::new(Oracle::default());
    let stop = AtomicBool::new(false);
    let kept = std::thread::scope(|scope| {
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
        let (stop, to) = (&stop, server.address());
        let rotating = scope.spawn(move || rotate_again_and_again(to, stop));
        let _guard = StopAtEnd(stop);
        for _ in 0..cuts {
            let before = oracle.acked_so_far();
            poll_until("progress between two cuts", || (oracle.acked_so_far() > before + 20).then_some(()));
            powered.cut(&mut server, rng, figures, 5_000);
            server.start_again();
        }
        let before = oracle.acked_so_far();
        poll_until("progress after the last cut", || (oracle.acked_so_far() > before + 20).then_some(()));
        stop.store(true, Ordering::Relaxed);
        rotating.join().unwrap()
    });
    let mut raw = server.client(60_000);
    raw.acquire("the last request succeeds");
    for (file, content) in &kept {
        assert_eq!(raw.read(file), *content, "{file}, of {} that were rotated or deleted", kept.len());
    }
    figures.rotated += kept.len() as u64;
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
    Ok(())
}

/// Writes files and rotates or deletes each, until it is told to stop. Gives what each file must hold in the end.
fn rotate_again_and_again(to: SocketAddr, stop: &AtomicBool) -> BTreeMap<String, String> {
    let mut raw = Raw::new(to);
    raw.patience = Duration::from_secs(120);
    raw.open_session(60_000);
    raw.acks = true;
    let mut kept = BTreeMap::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let token = raw.acquire("log/now");
        let line = format!("{number}\n");
        raw.append("log/now", token, &line);
        raw.append("log/now", token, &line);
        if number % 3 == 0 {
            raw.ok("delete_file", json!({"file": "log/now", "token": token}));
            kept.insert("log/now".to_owned(), String::new());
        } else {
            let old = format!("log/{}", number % 50);
            if kept.contains_key(&old) {
                let other = raw.acquire(&old);
                raw.ok("delete_file", json!({"file": old, "token": other}));
                raw.release(other);
            }
            raw.ok("rotate_file", json!({"file": "log/now", "token": token, "to": old}));
            kept.insert(old, line.repeat(2));
        }
        raw.release(token);
    }
    kept
}

/// Where replies are not waited for by the disk a cut may lose what was told, but the server starts, what is left is a
/// beginning of what was done, and no token or version is told twice.
fn one_disk_unsynced(
    kind: &Kind,
    durability: &'static str,
    cuts: u64,
    rng: &mut fastrand::Rng,
    figures: &mut Figures,
) -> Result<u64, String> {
    let mut powered = Powered::on(kind)?;
    let setup = Setup { log: "info", durability, ..Setup::default() };
    let mut server = Server::prepare_in(powered.at.join("data"), setup);
    server.must_launch();
    let (mut last_token, mut last_version, mut acked) = (0, 0, 0);
    let (mut written, mut cuts_that_lost) = (0u64, 0);
    for _ in 0..cuts {
        let mut raw = server.client(1_000);
        raw.acks = true;
        // The release of the last cut may be lost: then the lease has to free the lock.
        let wait = raw.prepare("acquire_lock", json!({"key": "count", "wait_ms": null}));
        let token = raw.granted(&wait);
        raw.release(token);
        // What is there is what was written up to some moment: the key and the file tell of the same one, or of one
        // append more.
        let count = raw.value("count").as_u64().unwrap_or(0);
        let content = raw.read("count");
        let lines: Vec<u64> = content.lines().map(|line| line.parse().unwrap()).collect();
        assert!(lines.is_sorted_by(|one, next| one < next), "the file is out of order: {lines:?}");
        let last = lines.last().copied().unwrap_or(0);
        assert!(last == count || last == count + 1, "the key says {count}, the file ends with {last}");
        cuts_that_lost += u64::from(count < written);
        let begin = written.max(last);
        for number in begin + 1..=begin + rng.u64(20..400) {
            let token = raw.acquire("count");
            assert!(token > last_token, "token {token} after {last_token}");
            raw.append("count", token, &format!("{number}\n"));
            let set = json!({"key": "count", "token": token, "value": number});
            let version = raw.ok("set", set)["version"].as_u64().unwrap();
            assert!(version > last_version, "version {version} after {last_version}");
            raw.release(token);
            (last_token, last_version, written) = (token, version, number);
            acked += 4;
        }
        let within_ms = rng.u64(0..1_500);
        powered.cut(&mut server, rng, figures, within_ms);
        server.start_again();
    }
    println!(
        "{} ({}), durability {durability}, {cuts} cuts of one disk: acked {acked}, {cuts_that_lost} cuts lost some of it, \
         no token or version twice",
        kind.name, kind.options
    );
    Ok(cuts_that_lost)
}

/// Files of the test beside those of the server.
struct Canaries {
    synced: PathBuf,
    unsynced: PathBuf,
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
