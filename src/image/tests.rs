//! Tests of the image on a real directory: the state is played by a model that shares no code with it.

use super::mirror::Mirror;
use super::*;
use crate::outcome::FileAct;
use rustix::fs::{CWD, FileType, Mode};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::rc::Rc;
use tempfile::TempDir;

type Hook = Box<dyn FnMut(&str) -> io::Result<()>>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Called by the image at each of its points.
pub(super) fn at(point: &str) -> io::Result<()> {
    HOOK.with_borrow_mut(|hook| hook.as_mut().map_or(Ok(()), |hook| hook(point)))
}

fn with_hook<T>(hook: impl FnMut(&str) -> io::Result<()> + 'static, work: impl FnOnce() -> T) -> T {
    HOOK.set(Some(Box::new(hook)));
    let result = work();
    HOOK.set(None);
    result
}

/// Fails with `errno` at the point, every time.
fn failing<T>(point: &'static str, errno: Errno, work: impl FnOnce() -> T) -> T {
    with_hook(move |at| if at == point { Err(errno.into()) } else { Ok(()) }, work)
}

fn name(text: &str) -> Name {
    Name::file(text).unwrap()
}

/// What the state would hold, and the effects that led there.
#[derive(Clone, Default)]
struct Model {
    op: Op,
    files: BTreeMap<Name, (u64, Vec<u8>)>,
    faults: BTreeMap<Name, String>,
    effects: Vec<FileEffect>,
}

impl Model {
    fn push(&mut self, file: &str, generation: u64, act: FileAct) -> FileEffect {
        let effect = FileEffect { op: self.op, file: name(file), generation, act };
        self.effects.push(effect.clone());
        effect
    }

    fn append(&mut self, file: &str, data: &str) -> FileEffect {
        self.op += 2; // between any two there may be commands that have no effect on files
        let (generation, bytes) = self.files.entry(name(file)).or_insert_with(|| (self.op, Vec::new()));
        let (generation, offset) = (*generation, bytes.len() as u64);
        bytes.extend_from_slice(data.as_bytes());
        self.push(file, generation, FileAct::Write { offset, data: data.as_bytes().into() })
    }

    /// A release: appends to several files under one op. One that does not exist yet has the generation of the command that
    /// staged its first append.
    fn release(&mut self, appends: &[(&str, &str)]) -> Vec<FileEffect> {
        let staged = self.op + 1;
        self.op = staged + appends.len() as u64;
        let effects = (staged..).zip(appends).map(|(staged, (file, data))| {
            let (generation, bytes) = self.files.entry(name(file)).or_insert_with(|| (staged, Vec::new()));
            let (generation, offset) = (*generation, bytes.len() as u64);
            bytes.extend_from_slice(data.as_bytes());
            let act = FileAct::Write { offset, data: data.as_bytes().into() };
            FileEffect { op: self.op, file: name(file), generation, act }
        });
        let effects: Vec<FileEffect> = effects.collect();
        self.effects.extend(effects.clone());
        effects
    }

    fn delete(&mut self, file: &str) -> FileEffect {
        self.op += 2;
        let (generation, _) = self.files.remove(&name(file)).unwrap();
        self.push(file, generation, FileAct::Delete)
    }

    fn rotate(&mut self, file: &str, to: &str) -> FileEffect {
        self.op += 2;
        let moved = self.files.remove(&name(file)).unwrap();
        let generation = moved.0;
        assert!(self.files.insert(name(to), moved).is_none());
        self.push(file, generation, FileAct::Rotate { to: name(to) })
    }

    fn repair(&mut self, file: &str, content: &[u8]) -> FileEffect {
        self.op += 2;
        let held = self.files.get_mut(&name(file)).unwrap();
        held.1 = content.to_vec();
        self.faults.remove(&name(file));
        let (generation, length, checksum) = (held.0, content.len() as u64, crc32c::crc32c(content));
        self.push(file, generation, FileAct::Repair { length, checksum })
    }

    fn parts(&self) -> Vec<FilePart> {
        let part = |(file, (generation, bytes)): (&Name, &(u64, Vec<u8>))| FilePart {
            file: file.clone(),
            generation: *generation,
            length: bytes.len() as u64,
            checksum: crc32c::crc32c(bytes),
            fault: self.faults.get(file).cloned(),
        };
        self.files.iter().map(part).collect()
    }

    fn look(&self, file: &str) -> Look {
        let part = self.parts().into_iter().find(|part| &*part.file == file).unwrap();
        Look { file: part.file, generation: part.generation, length: part.length, checksum: part.checksum }
    }
}

/// A data directory with the image of a model.
struct Room {
    dir: TempDir,
    model: Model,
    mirror: Mirror,
}

impl Room {
    fn new() -> Room {
        let dir = tempfile::tempdir().unwrap();
        let mirror = recover::recover(dir.path(), &[], Vec::new(), false).unwrap().0;
        Room { dir, model: Model::default(), mirror }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join("files").join(file)
    }

    fn apply(&mut self, effect: FileEffect) {
        self.mirror.gauges.pending.add(weight(&effect));
        self.mirror.apply(effect).unwrap();
    }

    fn append(&mut self, file: &str, data: &str) {
        let effect = self.model.append(file, data);
        self.apply(effect);
    }

    fn sync(&mut self) {
        self.mirror.reached(self.model.op);
        self.mirror.sync().unwrap();
    }

    fn read(&mut self, file: &str) -> Result<Vec<u8>, String> {
        let look = self.model.look(file);
        self.mirror.read(&look.file, look.generation, 0, u64::MAX, look.length)
    }

    fn faults(&mut self) -> Vec<(String, String)> {
        faults(&mut self.mirror)
    }

    /// Looks, and logs the repair with what was found.
    fn repair(&mut self, file: &str) -> Looked {
        let looked = self.mirror.look(&self.model.look(file)).unwrap();
        let content = fs::read(self.path(file)).unwrap();
        assert_eq!((looked.length, looked.checksum), (content.len() as u64, crc32c::crc32c(&content)));
        let effect = self.model.repair(file, &content);
        self.apply(effect);
        looked
    }

    /// Stops without a word and recovers from what the log has to keep.
    fn restart(&mut self, trust_surplus: bool) -> Recovery {
        let record = Record::read(self.dir.path()).unwrap();
        let effects = self.model.effects.iter();
        let redo = effects.filter(|effect| !record.is_safe(effect)).cloned().collect();
        let (mirror, recovery) =
            recover::recover(self.dir.path(), &self.model.parts(), redo, trust_surplus).unwrap();
        self.mirror = mirror;
        recovery
    }

    fn check(&self) {
        assert_same(self.dir.path(), &self.model);
    }
}

fn faults(mirror: &mut Mirror) -> Vec<(String, String)> {
    let fault = |event| match event {
        Event::Fault { file, reason, .. } => Some((file.to_string(), reason)),
        _ => None,
    };
    mirror.events.drain(..).filter_map(fault).collect()
}

/// All files on disk, by path.
fn disk(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let root = dir.join("files");
    let mut todo = vec![root.clone()];
    while let Some(path) = todo.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap().path();
            if entry.is_dir() {
                todo.push(entry);
            } else {
                let key = entry.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.insert(key, fs::read(entry).unwrap());
            }
        }
    }
    found
}

fn assert_same(dir: &Path, model: &Model) {
    let expected: BTreeMap<String, Vec<u8>> =
        model.files.iter().map(|(name, (_, bytes))| (name.to_string(), bytes.clone())).collect();
    assert_eq!(disk(dir), expected);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn appends_stand_where_the_log_says_and_are_read_after_they_were_written() {
    let mut room = Room::new();
    room.append("a", "one ");
    assert_eq!(room.read("a").unwrap(), b"one ", "before any sync");
    room.append("a", "");
    room.append("deep/er/b", "x");
    room.append("a", "two");
    room.sync();
    assert_eq!(room.read("a").unwrap(), b"one two");
    let look = room.model.look("a");
    assert_eq!(room.mirror.read(&look.file, look.generation, 4, 2, 7).unwrap(), b"tw");
    assert_eq!(room.mirror.read(&look.file, look.generation, 9, 2, 7).unwrap(), b"");
    assert!(room.mirror.read(&look.file, 999, 0, 2, 7).is_err(), "another generation");
    room.check();
    assert_eq!(room.faults(), []);
    assert_eq!(room.mirror.gauges.pending.get(), 0);
    assert_eq!(fs::metadata(room.path("a")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(room.path("deep/er")).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(Record::read(room.dir.path()).unwrap(), Record { op: room.model.op, kept: vec![] });
}

#[test]
fn no_path_leads_out_of_the_directory_or_to_anything_but_a_plain_file() {
    for walked in [false, true] {
        let mut room = Room::new();
        if walked {
            room.mirror.tree.forget_openat2();
        }
        let outside = room.dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        let files = room.path("");
        symlink(&outside, files.join("link_dir")).unwrap();
        symlink(outside.join("secret"), files.join("link")).unwrap();
        symlink(outside.join("new"), files.join("dangling")).unwrap();
        symlink("/proc/self/root", files.join("magic")).unwrap();
        fs::hard_link(outside.join("secret"), files.join("hard")).unwrap();
        fs::create_dir(files.join("dir")).unwrap();
        fs::write(files.join("dir/inside"), "x").unwrap();
        rustix::fs::mknodat(CWD, files.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(files.join("socket")).unwrap();
        let attacks = [
            "link_dir/secret",
            "link_dir/new",
            "link",
            "dangling",
            "magic/tmp/x",
            "hard",
            "fifo",
            "socket",
            "dir",
            "hard/below",
            "fifo/below",
        ];
        for attack in attacks {
            room.append(attack, "owned");
            let faults = room.faults();
            assert_eq!(faults.len(), 1, "{attack}: {faults:?}");
            assert_eq!(faults[0].0, attack);
            let look = room.mirror.look(&room.model.look(attack));
            assert!(look.is_err(), "{attack} could be accepted: {look:?}");
            let found = room.mirror.tree.open_to_read(&name(attack));
            assert!(found.is_err(), "{attack} could be opened");
        }
        // What the parser refuses is refused here too.
        for attack in ["../outside/secret", "/etc/passwd", "dir/../../outside/secret", "."] {
            let bad = Name::new(attack).unwrap();
            assert!(room.mirror.tree.open_file(&bad).is_err(), "{attack} could be opened");
            assert!(room.mirror.tree.create_file(&bad).is_err(), "{attack} could be created");
        }
        let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"], "something was created outside");
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
        room.append("good", "still served");
        assert_eq!(room.read("good").unwrap(), b"still served");
    }
}

#[test]
fn a_device_is_not_touched() {
    let mut room = Room::new();
    let device = rustix::fs::makedev(1, 3);
    let mode = Mode::from_raw_mode(0o600);
    let made = rustix::fs::mknodat(CWD, room.path("null"), FileType::CharacterDevice, mode, device);
    if let Err(error) = made {
        println!("SKIP: no device can be made here: {error}");
        return;
    }
    room.append("null", "x");
    assert_eq!(room.faults().len(), 1);
    assert_eq!(
        room.mirror.look(&room.model.look("null")).unwrap_err(),
        "the file is a device",
        "it was opened or misjudged"
    );
}

/// A small tmpfs, gone at the end of the test.
struct Mount(PathBuf);

impl Mount {
    fn new(path: PathBuf) -> Option<Mount> {
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=128k", "tenure-test"])
            .arg(&path)
            .stderr(std::process::Stdio::null())
            .status();
        match mounted {
            Ok(status) if status.success() => Some(Mount(path)),
            _ => {
                println!("SKIP: nothing can be mounted here");
                None
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "the test left a mount behind");
    }
}

#[test]
fn another_file_system_mounted_inside_is_not_written_to() {
    for walked in [false, true] {
        let mut room = Room::new();
        if walked {
            room.mirror.tree.forget_openat2();
        }
        fs::create_dir(room.path("mnt")).unwrap();
        let Some(mount) = Mount::new(room.path("mnt")) else { return };
        room.append("mnt/x", "x");
        assert_eq!(room.faults()[0].1, "the file leads to another file system");
        assert_eq!(fs::read_dir(&mount.0).unwrap().count(), 0);
        let recovery = room.restart(false);
        assert_eq!(recovery.unknown.count, 0);
    }
}

#[test]
fn an_edit_by_somebody_else_is_noticed_and_nothing_of_it_is_overwritten() {
    type Edit = fn(&Path);
    let edits: [(&str, Edit, &str); 6] = [
        ("append", |p| fs::write(p, "hello, theirs").unwrap(), "it has 13 bytes, not 5"),
        ("truncate", |p| fs::write(p, "he").unwrap(), "it has 2 bytes, not 5"),
        ("delete", |p| fs::remove_file(p).unwrap(), "it is missing"),
        (
            "replace",
            |p| {
                fs::write(p.with_extension("new"), "other").unwrap();
                fs::rename(p.with_extension("new"), p).unwrap();
            },
            "it ",
        ),
        ("link", |p| fs::hard_link(p, p.with_extension("link")).unwrap(), "it has another name as well"),
        (
            "swap for a symlink",
            |p| {
                fs::rename(p, p.with_extension("moved")).unwrap();
                symlink(p.with_extension("moved"), p).unwrap();
            },
            "it ",
        ),
    ];
    for (what, edit, reason) in edits {
        // Noticed at the next write, at the sync, or at a read, with the descriptor open or not.
        for (way, reopened) in [("write", false), ("write", true), ("sync", false), ("read", true)] {
            let mut room = Room::new();
            room.append("f", "hello");
            if way != "sync" {
                room.sync();
            }
            if reopened {
                room.restart(false);
            }
            edit(&room.path("f"));
            let after = disk(room.dir.path());
            match way {
                "write" => room.append("f", " world"),
                "read" => assert!(room.read("f").is_err(), "{what}"),
                _ => {}
            }
            room.sync();
            let faults = room.faults();
            assert_eq!(faults.len(), 1, "{what} at {way}: {faults:?}");
            assert!(faults[0].1.starts_with("somebody else changed the file"), "{what}: {faults:?}");
            assert!(faults[0].1.contains(reason), "{what} at {way}: {faults:?}");
            // With the old inode open and moved, a write may still reach it before the name is looked at again.
            if way != "write" || reopened || what != "swap for a symlink" {
                assert_eq!(disk(room.dir.path()), after, "{what} at {way}: somebody's bytes were touched");
            }
            room.append("g", "others go on");
            assert_eq!(room.read("g").unwrap(), b"others go on");
        }
    }
}

#[test]
fn a_repair_accepts_what_is_there_or_restores_what_was_kept() {
    let mut room = Room::new();
    room.append("f", "hello");
    room.sync();
    fs::write(room.path("f"), "hello, theirs").unwrap();
    room.append("f", " ours");
    assert_eq!(room.faults().len(), 1);
    let looked = room.repair("f");
    assert!(!looked.restored);
    room.append("f", " and on");
    room.sync();
    assert_eq!(fs::read(room.path("f")).unwrap(), b"hello, theirs and on");
    room.check();

    // The edit was taken back: then what was kept can be written.
    fs::write(room.path("f"), "hello, theirs and on?").unwrap();
    room.append("f", "!");
    assert_eq!(room.faults().len(), 1);
    fs::write(room.path("f"), "hello, theirs and on").unwrap();
    assert!(room.repair("f").restored);
    room.check();

    // A missing file cannot be accepted; put back, it can be.
    fs::remove_file(room.path("f")).unwrap();
    assert!(room.read("f").is_err());
    assert!(room.mirror.look(&room.model.look("f")).is_err());
    fs::write(room.path("f"), "new").unwrap();
    assert!(!room.repair("f").restored);
    room.append("f", "er");
    room.sync();
    room.check();
    room.restart(false);
    room.check();
    assert_eq!(room.faults(), [], "the repaired file is as good as any");
}

#[test]
fn a_repair_whose_file_changed_again_since_the_look_is_a_fault() {
    let mut room = Room::new();
    room.append("f", "hello");
    room.sync();
    fs::write(room.path("f"), "jello!").unwrap();
    room.append("f", "x");
    let looked = room.mirror.look(&room.model.look("f")).unwrap();
    assert_eq!((looked.length, looked.restored), (6, false));
    fs::write(room.path("f"), "jello!!").unwrap();
    let effect = room.model.repair("f", b"jello!");
    room.apply(effect);
    assert_eq!(room.faults().len(), 2);
}

#[test]
fn a_failed_sync_is_not_tried_again_and_its_writes_are_kept() {
    let mut room = Room::new();
    room.append("f", "one");
    room.sync();
    room.append("f", "two");
    room.append("g", "g");
    let mut first = true;
    let once = move |point: &str| match point {
        "image.before_sync" if std::mem::take(&mut first) => Err(Errno::IO.into()),
        _ => Ok(()),
    };
    with_hook(once, || room.sync());
    assert_eq!(room.faults(), [("f".into(), "the disk refused to sync: an input/output error".into())]);
    room.sync();
    let record = Record::read(room.dir.path()).unwrap();
    assert_eq!((record.op, record.kept.len(), record.kept[0].from), (room.model.op, 1, 4));
    assert_eq!(record.needed_from(), 4);
    // The kernel dropped the page.
    fs::write(room.path("f"), "one\0\0\0").unwrap();
    assert!(room.repair("f").restored);
    room.check();
}

#[test]
fn a_fault_that_the_log_lost_is_found_again_or_healed_by_the_restart() {
    for heals in [false, true] {
        let mut room = Room::new();
        room.append("f", "one");
        room.sync();
        let effect = room.model.append("f", "two");
        failing("image.before_write", Errno::IO, || room.apply(effect));
        room.append("f", "three");
        room.append("g", "x");
        room.sync();
        assert_eq!(disk(room.dir.path())["f"], b"one");
        if !heals {
            fs::write(room.path("f"), "onethem").unwrap();
        }
        room.restart(false);
        if heals {
            assert_eq!(room.faults(), []);
            room.check();
            room.append("f", "four");
            room.sync();
            room.check();
        } else {
            assert_eq!(room.faults().len(), 1);
            assert_eq!(disk(room.dir.path())["f"], b"onethem");
            assert_eq!(Record::read(room.dir.path()).unwrap().kept.len(), 1);
        }
    }
}

#[test]
fn a_fault_in_the_state_keeps_its_effects_over_restarts_and_renames() {
    let mut room = Room::new();
    room.append("f", "one");
    room.sync();
    let effect = room.model.append("f", "two");
    failing("image.before_write", Errno::ROFS, || room.apply(effect));
    room.model.faults.insert(name("f"), "the disk refused: the file system is read-only".to_owned());
    room.sync();
    room.restart(false);
    assert_eq!(room.faults(), [], "the state knows it already");
    assert_eq!(disk(room.dir.path())["f"], b"one");
    let effect = room.model.rotate("f", "old/f");
    let fault = room.model.faults.remove(&name("f")).unwrap();
    room.model.faults.insert(name("old/f"), fault);
    room.apply(effect);
    room.append("f", "anew");
    room.sync();
    room.restart(false);
    assert_eq!(room.faults(), []);
    assert_eq!(disk(room.dir.path())["old/f"], b"one");
    assert_eq!(Record::read(room.dir.path()).unwrap().kept[0].file, name("old/f"));
    assert!(room.repair("old/f").restored);
    room.check();
    room.restart(false);
    room.check();
    assert_eq!(room.faults(), []);
}

#[test]
fn a_faulted_file_can_be_deleted_and_made_anew() {
    let mut room = Room::new();
    room.append("f", "one");
    fs::write(room.path("f"), "theirs").unwrap();
    room.append("f", "two");
    assert_eq!(room.faults().len(), 1);
    let effect = room.model.delete("f");
    room.apply(effect);
    room.append("f", "anew");
    room.sync();
    room.check();
    assert_eq!(room.faults(), []);
    assert_eq!((room.mirror.gauges.kept.get(), room.mirror.gauges.faults.get()), (0, 0));
}

#[test]
fn empty_directories_go_and_their_names_can_be_files() {
    let mut room = Room::new();
    room.append("a/b/c", "x");
    room.append("a/d", "y");
    let effect = room.model.delete("a/b/c");
    room.apply(effect);
    assert!(room.path("a").is_dir() && !room.path("a/b").exists());
    room.append("a/b", "a file now");
    let effect = room.model.rotate("a/b", "z/b");
    room.apply(effect);
    let effect = room.model.rotate("a/d", "z/d");
    room.apply(effect);
    fs::create_dir_all(room.path("a/left/behind")).unwrap();
    room.append("a", "a file too");
    room.sync();
    assert_eq!(room.faults(), []);
    room.check();
}

#[test]
fn a_name_that_a_rotate_needs_is_never_overwritten() {
    let mut room = Room::new();
    room.append("f", "ours");
    fs::write(room.path("to"), "theirs").unwrap();
    let effect = room.model.rotate("f", "to");
    room.apply(effect);
    let faults = room.faults();
    assert_eq!(faults[0].0, "to");
    assert!(faults[0].1.contains("its content is still called \"f\""), "{faults:?}");
    assert_eq!(disk(room.dir.path())["to"], b"theirs");
    assert_eq!(disk(room.dir.path())["f"], b"ours");
}

/// A log that meets every kind of effect, with names that come back.
fn story() -> Vec<(&'static str, &'static str, &'static str)> {
    vec![
        ("append", "a", "first"),
        ("append", "dir/b", "bees"),
        ("append", "a", " second"),
        ("rotate", "a", "a.1"),
        ("append", "a", "third"),
        ("append", "a.1", " more"),
        ("delete", "dir/b", ""),
        ("append", "dir", "was a directory"),
        ("rotate", "a", "old/a"),
        ("release", "a.1 new/c", " as one"),
        ("rotate", "a.1", "a"),
        ("append", "a", " again"),
        ("delete", "a", ""),
        ("append", "a", "last"),
        ("append", "old/a", " fourth"),
        ("delete", "new/c", ""),
        ("rotate", "old/a", "older/a"),
        ("append", "a", " of all"),
    ]
}

fn tell(model: &mut Model, (what, file, arg): (&str, &str, &str)) -> Vec<FileEffect> {
    match what {
        "append" => vec![model.append(file, arg)],
        "rotate" => vec![model.rotate(file, arg)],
        "delete" => vec![model.delete(file)],
        "release" => {
            let appends: Vec<_> = file.split(' ').map(|file| (file, arg)).collect();
            model.release(&appends)
        }
        _ => panic!("no such thing in the story"),
    }
}

/// What a power cut may leave of bytes past the watermark of this copy.
fn tear(dir: &Path, model: &Model, how: &str) {
    let record = Record::read(dir).unwrap();
    let mut safe = Model::default();
    let mut lengths: BTreeMap<Name, u64> = BTreeMap::new();
    safe.effects.clone_from(&model.effects);
    for effect in safe.effects.iter().filter(|effect| effect.op <= record.op) {
        match &effect.act {
            FileAct::Write { offset, data } => {
                lengths.insert(effect.file.clone(), offset + data.len() as u64);
            }
            FileAct::Delete => {
                lengths.remove(&effect.file);
            }
            FileAct::Rotate { to } => {
                let length = lengths.remove(&effect.file).unwrap();
                lengths.insert(to.clone(), length);
            }
            FileAct::Repair { .. } => {}
        }
    }
    for (path, bytes) in disk(dir) {
        // Between two records a rotate may have moved it already.
        let moved = model.effects.iter().find_map(|effect| match &effect.act {
            FileAct::Rotate { to } if effect.op == record.op + 1 && &**to == path.as_str() => {
                Some(&effect.file)
            }
            _ => None,
        });
        let known = lengths.get(path.as_str()).or_else(|| moved.and_then(|from| lengths.get(from)));
        let keep = usize::try_from(known.copied().unwrap_or(0)).unwrap().min(bytes.len());
        let mut torn = bytes.clone();
        match how {
            "whole" => {}
            "zeros" => torn[keep..].fill(0),
            "short" => torn.truncate(keep),
            "garbage" => torn[keep..].fill(b'#'),
            "half" => torn.truncate(keep + (bytes.len() - keep) / 2),
            "absent" if known.is_none() => {
                fs::remove_file(dir.join("files").join(path)).unwrap();
                continue;
            }
            _ => {}
        }
        fs::write(dir.join("files").join(path), torn).unwrap();
    }
}

#[test]
fn a_crash_at_any_point_is_healed_by_the_log() {
    for sync_every in [1, 3, 100] {
        let mut room = Room::new();
        let base = tempfile::tempdir().unwrap();
        let crashes = Rc::new(RefCell::new(Vec::<(String, PathBuf, Model)>::new()));
        for (index, line) in story().into_iter().enumerate() {
            let effects = tell(&mut room.model, line);
            let (at, from, to, model) =
                (Rc::clone(&crashes), room.dir.path().to_owned(), base.path().to_owned(), room.model.clone());
            let hook = move |point: &str| {
                let target = to.join(at.borrow().len().to_string());
                copy(&from, &target);
                at.borrow_mut().push((format!("{index} {line:?} {point}"), target, model.clone()));
                Ok(())
            };
            with_hook(hook, || {
                let several = effects.len() > 1;
                for effect in effects {
                    room.apply(effect);
                    // Under load a sync may come between two files of one release.
                    if several && sync_every == 3 {
                        room.mirror.sync().unwrap();
                    }
                }
                if index % sync_every == sync_every - 1 {
                    room.sync();
                }
            });
        }
        room.sync();
        room.check();
        assert_eq!(room.faults(), []);
        assert!(crashes.borrow().len() > 40);
        for (index, (point, dir, model)) in crashes.borrow().iter().enumerate() {
            for how in ["whole", "zeros", "short", "garbage", "half", "absent"] {
                let torn = tempfile::tempdir().unwrap();
                copy(dir, torn.path());
                tear(torn.path(), model, how);
                let parts = model.parts();
                // And perhaps a second crash, in the middle of the recovery, each time at another of its points.
                for second in [0, 1 + index % 5] {
                    let half = tempfile::tempdir().unwrap();
                    copy(torn.path(), half.path());
                    let mut left = second * 3;
                    let dies = move |_: &str| match left {
                        0 => Err(Errno::IO.into()),
                        _ => {
                            left -= 1;
                            Ok(())
                        }
                    };
                    if second > 0 {
                        let snapshot = with_hook(dies_with_copy(half.path(), dies), || {
                            recover::recover(half.path(), &parts, model.effects.clone(), false).map(|_| ())
                        });
                        drop(snapshot);
                        let frozen = half.path().join("frozen");
                        if frozen.exists() {
                            let again = tempfile::tempdir().unwrap();
                            copy(&frozen, again.path());
                            heal(again.path(), model, &format!("{point}, {how}, twice at {second}"));
                            continue;
                        }
                    }
                    if second == 0 {
                        heal(half.path(), model, &format!("{point}, {how}"));
                        if !["whole", "absent"].contains(&how) || index % 3 > 0 {
                            continue;
                        }
                        // The log may have been ahead of the files by any number of commands.
                        let ahead = tempfile::tempdir().unwrap();
                        copy(torn.path(), ahead.path());
                        heal(ahead.path(), &room.model, &format!("{point}, {how}, with the whole log"));
                    }
                }
            }
        }
    }
}

/// At the first failure of `dies` the directory is copied as it is then: what a crash would leave.
fn dies_with_copy(
    dir: &Path,
    mut dies: impl FnMut(&str) -> io::Result<()> + 'static,
) -> impl FnMut(&str) -> io::Result<()> + 'static {
    let dir = dir.to_owned();
    move |point| {
        let frozen = dir.join("frozen");
        if dies(point).is_err() && !frozen.exists() {
            let aside = tempfile::tempdir().unwrap();
            copy(&dir, aside.path());
            copy(aside.path(), &frozen);
        }
        Ok(())
    }
}

fn heal(dir: &Path, model: &Model, what: &str) {
    let (mut mirror, recovery) = recover::recover(dir, &model.parts(), model.effects.clone(), false).unwrap();
    assert_eq!(faults(&mut mirror), [], "{what}");
    assert_eq!(recovery.cut, [], "{what}");
    assert_eq!(recovery.unknown.count, 0, "{what}: {:?}", recovery.unknown);
    let expected: BTreeMap<String, Vec<u8>> =
        model.files.iter().map(|(name, (_, bytes))| (name.to_string(), bytes.clone())).collect();
    assert_eq!(disk(dir), expected, "{what}");
    assert_eq!(mirror.gauges.pending.get(), 0, "{what}");
    while mirror.has_checks() {
        mirror.check_some();
    }
    assert_eq!(faults(&mut mirror), [], "{what}");
}

#[test]
fn bytes_that_the_log_lost_are_cut_only_where_the_log_may_lose_some() {
    for trusted in [false, true] {
        let mut room = Room::new();
        room.append("f", "kept");
        room.append("g", "g");
        let before = room.model.clone();
        room.append("f", " lost");
        room.sync();
        room.model = before;
        let recovery = room.restart(trusted);
        if trusted {
            assert_eq!(recovery.cut, [Cut { file: name("f"), from: 9, to: 4 }]);
            assert_eq!(room.faults(), []);
            room.check();
        } else {
            assert_eq!(recovery.cut, []);
            assert_eq!(room.faults(), [("f".into(), wrong("9", "4"))]);
            assert_eq!(disk(room.dir.path())["f"], b"kept lost");
        }
        assert_eq!(room.read("g").unwrap(), b"g");
    }
}

#[test]
fn a_file_whose_creation_the_log_lost_gives_way_only_where_the_log_may_lose_some() {
    // Found by power cuts under `--durability os`: the first append to the file was synced before its record was, the
    // record was lost, and the next append closed the file, since "the server did not make it".
    for trusted in [false, true] {
        let mut room = Room::new();
        room.append("g", "g");
        let before = room.model.clone();
        room.append("d/f", "lost");
        room.sync();
        room.model = before;
        // What is lost is never counted again.
        room.model.op += 1 << 32;
        let recovery = room.restart(trusted);
        assert_eq!(recovery.unknown.first, ["d/f"]);
        room.append("d/f", "new");
        room.sync();
        let (faults, disk) = (room.faults(), disk(room.dir.path()));
        if trusted {
            assert_eq!(faults, []);
            let aside = format!("d/f.lost-{}", room.model.op);
            assert_eq!((disk["d/f"].as_slice(), disk[&aside].as_slice()), (&b"new"[..], &b"lost"[..]));
        } else {
            assert_eq!(faults.len(), 1);
            assert!(faults[0].1.contains("already there"), "{faults:?}");
            assert_eq!(disk["d/f"], b"lost");
        }
        assert_eq!(room.read("g").unwrap(), b"g");
    }
}

fn wrong(found: &str, expected: &str) -> String {
    format!("somebody else changed the file: it has {found} bytes, not {expected}")
}

#[test]
fn a_start_notices_what_happened_to_files_while_no_server_ran() {
    let mut room = Room::new();
    for file in ["short", "missing", "longer", "edited", "fine"] {
        room.append(file, "0123456789");
    }
    room.sync();
    fs::write(room.path("short"), "012").unwrap();
    fs::remove_file(room.path("missing")).unwrap();
    fs::write(room.path("longer"), "0123456789!").unwrap();
    fs::write(room.path("edited"), "0123X56789").unwrap();
    fs::write(room.path("unknown"), "left alone").unwrap();
    let recovery = room.restart(false);
    assert_eq!((recovery.unknown.count, recovery.unknown.first), (1, vec!["unknown".to_owned()]));
    let found: Vec<String> = room.faults().into_iter().map(|(file, _)| file).collect();
    assert_eq!(found, ["longer", "missing", "short"]);
    while room.mirror.has_checks() {
        room.mirror.check_some();
    }
    let faults = room.faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!(faults[0].0, "edited");
    assert_eq!(fs::read(room.path("unknown")).unwrap(), b"left alone");
    assert_eq!(room.read("fine").unwrap(), b"0123456789");
}

#[test]
fn more_files_than_descriptors_can_be_open_are_written_in_turns() {
    let mut room = Room::new();
    for round in 0..2 {
        for file in 0..300 {
            room.append(&format!("many/{file}"), &round.to_string());
        }
    }
    room.sync();
    assert_eq!(room.faults(), []);
    room.check();
    assert_eq!(room.mirror.gauges.pending.get(), 0);
}

#[test]
fn a_record_that_cannot_be_written_stops_a_delete_until_it_can() {
    let mut room = Room::new();
    room.append("f", "x");
    let effect = room.model.delete("f");
    room.mirror.gauges.pending.add(weight(&effect));
    failing("image.before_record", Errno::IO, || room.mirror.apply(effect.clone()).unwrap_err());
    assert!(room.path("f").exists(), "it was removed before the record allowed it");
    let mut left = 1;
    let second = move |point: &str| match point {
        "image.before_record" if left == 0 => Err(Errno::IO.into()),
        "image.before_record" => {
            left -= 1;
            Ok(())
        }
        _ => Ok(()),
    };
    with_hook(second, || room.mirror.apply(effect.clone()).unwrap_err());
    assert!(!room.path("f").exists());
    fs::write(room.path("f"), "somebody's").unwrap();
    room.mirror.apply(effect).unwrap();
    assert!(room.path("f").exists(), "the delete was done twice");
    assert_eq!(room.mirror.gauges.pending.get(), 0);
}

#[test]
fn a_damaged_record_stops_the_start_with_a_sentence() {
    let mut room = Room::new();
    room.append("f", "x");
    room.sync();
    let path = room.dir.path().join("image.json");
    let text = fs::read_to_string(&path).unwrap();
    for damage in
        [text.replace("\"op\":2", "\"op\":3"), String::new(), "{}".to_owned(), text[..20].to_owned()]
    {
        fs::write(&path, damage).unwrap();
        let error = recover::recover(room.dir.path(), &[], Vec::new(), false).unwrap_err();
        assert!(error.to_string().starts_with("image.json is damaged"), "{error}");
    }
}

#[test]
fn the_thread_does_all_this_in_order_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (image, _) = Image::recover(dir.path(), &[], Vec::new(), false).unwrap();
    let (woken, wakes) = crossbeam_channel::unbounded();
    let handle = image.start(Box::new(move || woken.send(()).unwrap_or(()))).unwrap();
    let mut model = Model::default();
    let mut bytes = 0;
    for turn in 0..200_u64 {
        handle.apply(model.append("log", &format!("line {turn}\n")));
        let look = model.look("log");
        bytes = look.length;
        handle.read(turn, look.file, look.generation, 0, u64::MAX, look.length);
    }
    handle.apply(model.rotate("log", "log.1"));
    handle.look(1000, model.look("log.1"));
    handle.apply(model.append("log", "after"));
    handle.sync(model.op);
    let (mut reads, mut looks, mut watermark) = (0, 0, 0);
    while watermark < model.op {
        match handle.events().recv_timeout(Duration::from_secs(30)).unwrap() {
            Event::ReadDone { tag, result } => {
                assert_eq!(tag, reads);
                let text = String::from_utf8(result.unwrap()).unwrap();
                assert!(text.ends_with(&format!("line {tag}\n")), "a read saw what was not yet or no longer");
                reads += 1;
            }
            Event::Looked { result, .. } => {
                let looked = result.unwrap();
                assert_eq!((looked.length, looked.restored), (bytes, true));
                looks += 1;
            }
            Event::Watermark(record) => {
                assert!(record.op > watermark && record.kept.is_empty());
                assert_eq!(record.needed_from(), record.op + 1);
                watermark = record.op;
            }
            Event::Fault { file, reason, .. } => panic!("{file}: {reason}"),
            Event::Room { .. } => panic!("there is room"),
        }
    }
    assert_eq!((reads, looks), (200, 1));
    assert_eq!(handle.pending_bytes(), 0);
    assert!(!wakes.is_empty() && handle.is_running());
    handle.apply(model.append("log", " the end"));
    let (events, ended) = handle.stop(Duration::from_secs(30));
    assert!(ended);
    assert!(matches!(events.last(), Some(Event::Watermark(_))), "{events:?}");
    assert_same(dir.path(), &model);
}

#[test]
fn a_file_made_read_only_by_hand_still_reads() {
    let mut room = Room::new();
    room.append("f", "x");
    room.sync();
    fs::set_permissions(room.path("f"), fs::Permissions::from_mode(0o400)).unwrap();
    room.restart(false);
    assert_eq!(room.read("f").unwrap(), b"x");
    let opened = fs::OpenOptions::new().write(true).mode(0o600).open(room.path("f"));
    if opened.is_ok() {
        println!("SKIP: this user may write to anything");
        return;
    }
    room.append("f", "y");
    assert_eq!(room.faults().len(), 1);
}

#[test]
fn a_file_under_the_new_name_is_not_taken_for_a_rotate_that_cannot_have_begun() {
    let mut room = Room::new();
    room.append("f", "ours");
    room.sync();
    room.model.rotate("f", "to"); // logged, but the stop came before the record that a rotate waits for
    fs::remove_file(room.path("f")).unwrap();
    fs::write(room.path("to"), "them").unwrap();
    room.restart(false);
    let faults = room.faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!(faults[0].0, "to");
    assert_eq!(disk(room.dir.path())["to"], b"them");
}

#[test]
fn a_fault_that_a_rotate_overtook_in_the_log_is_told_again_under_the_new_name() {
    let mut room = Room::new();
    room.append("f", "one");
    room.sync();
    let effect = room.model.append("f", "two");
    failing("image.before_write", Errno::IO, || room.apply(effect));
    let effect = room.model.rotate("f", "to");
    room.apply(effect);
    room.append("to", "three");
    let names: Vec<String> = room.faults().into_iter().map(|(file, _)| file).collect();
    assert_eq!(names, ["f", "to"]);
    room.sync();
    room.restart(false);
    assert_eq!(room.faults(), [], "the disk works again, so the restart wrote what was kept");
    room.check();
}

#[test]
fn a_rotate_that_the_crash_forestalled_leaves_the_file_as_long_as_it_was_then() {
    for first in ["before\n", ""] {
        // Killed before the rename, killed after it, and a rename that the restart cannot do either.
        for (renamed, blocked) in [(false, false), (true, false), (false, true)] {
            let mut room = Room::new();
            room.append("log", first);
            let rotate = room.model.rotate("log", "log.1");
            // What a rotate waits for: everything before it is safe, and the record says so.
            room.mirror.reached(rotate.op - 1);
            room.mirror.sync().unwrap();
            room.model.append("log", "after\n");
            room.model.append("log.1", "more\n");
            if renamed {
                fs::rename(room.path("log"), room.path("log.1")).unwrap();
            }
            if blocked {
                fs::write(room.path("log.1"), "theirs").unwrap();
            }
            room.restart(false);
            if blocked {
                let faults = room.faults();
                assert!(faults[0].1.starts_with("its content is still called \"log\""), "{faults:?}");
                assert_eq!(faults[1].0, "log", "the new file has no place either");
                assert_eq!(disk(room.dir.path())["log.1"], b"theirs");
                assert_eq!(
                    disk(room.dir.path())["log"],
                    first.as_bytes(),
                    "committed bytes were overwritten"
                );
                // The operator does what the rename could not, and a repair writes what was kept behind it.
                fs::remove_file(room.path("log.1")).unwrap();
                fs::write(room.path("log.1"), first).unwrap();
                fs::remove_file(room.path("log")).unwrap();
                assert!(room.repair("log.1").restored);
                assert_eq!(fs::read_to_string(room.path("log.1")).unwrap(), format!("{first}more\n"));
                continue;
            }
            assert_eq!(room.faults(), [], "{first:?}, renamed: {renamed}");
            room.check();
            while room.mirror.has_checks() {
                room.mirror.check_some();
            }
            assert_eq!(room.faults(), []);
        }
    }
}

#[test]
fn what_the_log_says_of_an_earlier_file_never_reaches_a_later_one_of_its_name() {
    for offset in [0, 3] {
        let mut room = Room::new();
        room.append("f", "new");
        room.sync();
        // Of a generation that the state has forgotten: whoever hands over more than is needed does no harm.
        let act = FileAct::Write { offset, data: b"old bytes".as_slice().into() };
        room.model.effects = vec![FileEffect { op: 99, file: name("f"), generation: 1, act }];
        let recovery = room.restart(false);
        assert_eq!(recovery.redone, 0);
        assert_eq!(room.faults(), []);
        room.check();
    }
}

/// A room on a disk of its own, of 128 KiB, whose record has its place already. With the time of a mount.
fn small_room() -> Option<(Room, Mount, TempDir)> {
    let place = tempfile::tempdir().unwrap();
    let mount = Mount::new(place.path().to_owned())?;
    let dir = tempfile::Builder::new().tempdir_in(&mount.0).unwrap();
    let mirror = recover::recover(dir.path(), &[], Vec::new(), false).unwrap().0;
    let mut room = Room { dir, model: Model::default(), mirror };
    room.append("small", "x");
    room.sync();
    room.append("small", "y");
    room.sync();
    Some((room, mount, place))
}

impl Mount {
    fn grow(&self) {
        let grown = std::process::Command::new("mount").args(["-o", "remount,size=1m"]).arg(&self.0).status();
        assert!(grown.unwrap().success());
    }
}

/// Fails with `ENOSPC` at the point as long as the result says so.
fn full_at<T>(point: &'static str, work: impl FnOnce() -> T) -> T {
    failing(point, Errno::NOSPC, work)
}

#[test]
fn on_a_full_disk_a_file_waits_in_order_while_others_go_on_and_nothing_is_at_fault() {
    for restarts in [0, 1, 3] {
        let Some((mut room, mount, _place)) = small_room() else { return };
        room.append("big", &"b".repeat(60 << 10));
        room.sync();
        room.append("big", &"c".repeat(60 << 10));
        assert!(
            fs::metadata(room.path("big")).unwrap().len() > 60 << 10,
            "it was not cut short: a weaker test"
        );
        assert!(room.mirror.lacks_room());
        room.append("big", "later");
        room.append("small", "z"); // fits its page
        room.append("new/file", "no room for this one at all");
        room.sync();
        for _ in 0..restarts {
            let recovery = room.restart(false);
            assert_eq!(recovery.cut, []);
            assert!(room.mirror.lacks_room(), "it waits again");
        }
        room.mirror.resume();
        room.sync();
        assert_eq!(room.faults(), []);
        assert_eq!(room.read("small").unwrap(), b"xyz");
        let record = Record::read(room.dir.path()).unwrap();
        assert_eq!(record.op, room.model.op);
        assert!(record.kept.iter().all(|kept| kept.waits), "{record:?}");
        let safe: Vec<bool> = room.model.effects.iter().map(|effect| record.is_safe(effect)).collect();
        assert_eq!(safe[3..6], [false, false, true], "what waits is not safe, what does not is");
        // Reads see what waits, across the border and by themselves.
        let expected = [&"b".repeat(60 << 10), &"c".repeat(60 << 10), "later"].concat();
        assert_eq!(room.read("big").unwrap(), expected.as_bytes());
        assert_eq!(room.read("new/file").unwrap(), b"no room for this one at all");
        let look = room.model.look("big");
        for (offset, limit) in [(0, 7), (61_435, 10), (100_000, 5), (122_880, 3), (122_884, 9), (122_885, 1)]
        {
            let found = room.mirror.read(&look.file, look.generation, offset, limit, look.length).unwrap();
            let from = usize::try_from(offset).unwrap();
            let to = expected.len().min(from + usize::try_from(limit).unwrap());
            assert_eq!(found, &expected.as_bytes()[from..to], "{offset} {limit}");
        }
        mount.grow();
        room.mirror.resume();
        assert!(!room.mirror.lacks_room());
        room.append("big", "!");
        room.sync();
        room.check();
        assert_eq!(Record::read(room.dir.path()).unwrap(), Record { op: room.model.op, kept: vec![] });
        assert_eq!((room.mirror.gauges.pending.get(), room.mirror.gauges.kept.get()), (0, 0));
        while room.mirror.has_checks() {
            room.mirror.check_some();
        }
        assert_eq!(room.faults(), []);
    }
}

#[test]
fn a_file_that_waits_for_room_can_be_rotated_and_deleted_and_begun_anew() {
    // When the room comes back: never stopped; after a stop; or only with the stop itself.
    for restarts in [0, 1, 2] {
        let mut room = Room::new();
        room.append("log", "one ");
        room.append("gone", "gone");
        room.sync();
        full_at("image.before_write", || {
            room.append("log", "two ");
            room.append("unborn", "first ");
            room.append("gone", "too");
            let effects = [
                room.model.rotate("log", "old/log"),
                room.model.rotate("unborn", "born"),
                room.model.delete("gone"),
            ];
            effects.into_iter().for_each(|effect| room.apply(effect));
            room.append("log", "anew");
            room.append("old/log", "three");
            room.append("born", "second");
            room.append("unborn", "another");
            assert_eq!(room.read("old/log").unwrap(), b"one two three");
            assert_eq!(room.read("born").unwrap(), b"first second");
            if restarts == 1 {
                room.sync();
                room.restart(false);
                assert!(room.mirror.is_waiting());
                assert_eq!(room.read("old/log").unwrap(), b"one two three");
            }
        });
        if restarts == 2 {
            room.restart(false);
        }
        assert_eq!(room.faults(), []);
        room.mirror.resume();
        assert!(!room.mirror.lacks_room());
        room.sync();
        assert_eq!(room.faults(), []);
        room.check();
        assert_eq!(room.mirror.gauges.pending.get(), 0);
    }
}

#[test]
fn what_waits_for_room_is_not_written_over_what_somebody_else_put_there() {
    for after_restart in [false, true] {
        let mut room = Room::new();
        room.append("f", "one");
        room.sync();
        full_at("image.before_write", || room.append("f", "two"));
        room.sync();
        fs::write(room.path("f"), "one, and theirs").unwrap();
        if after_restart {
            room.restart(false);
        } else {
            room.mirror.resume();
        }
        assert_eq!(room.faults().len(), 1);
        assert_eq!(disk(room.dir.path())["f"], b"one, and theirs");
        assert!(!room.mirror.is_waiting());
        room.append("f", "three");
        fs::write(room.path("f"), "one").unwrap();
        assert!(room.repair("f").restored, "what waited is kept");
        room.check();
        assert_eq!(room.mirror.gauges.kept.get(), 0);
    }
}

#[test]
fn a_sync_that_finds_no_room_has_its_bytes_written_anew() {
    let mut room = Room::new();
    room.append("f", "one");
    room.sync();
    room.append("f", "two");
    room.append("f", "three");
    full_at("image.before_sync", || room.sync());
    assert_eq!(room.faults(), []);
    assert!(room.mirror.is_waiting());
    let record = Record::read(room.dir.path()).unwrap();
    assert_eq!((record.kept[0].from, record.kept[0].waits), (4, true));
    // The kernel dropped some of it.
    fs::write(room.path("f"), "one\0\0").unwrap();
    room.mirror.resume();
    room.sync();
    assert_eq!(room.faults(), []);
    room.check();
    assert_eq!(room.mirror.gauges.pending.get(), 0);
}

#[test]
fn a_crash_while_files_wait_for_room_is_healed_by_the_log() {
    // Room comes and goes with every second write; the restart has it, or the first restart lacks it too.
    let mut room = Room::new();
    let mut models = Vec::new();
    let base = tempfile::tempdir().unwrap();
    for (index, line) in story().into_iter().enumerate() {
        for (place, effect) in tell(&mut room.model, line).into_iter().enumerate() {
            if (index + place) % 2 == 0 {
                full_at("image.before_write", || room.apply(effect));
            } else {
                room.mirror.resume();
                room.apply(effect);
            }
        }
        if index % 3 == 2 {
            room.sync();
        }
        let copied = base.path().join(index.to_string());
        copy(room.dir.path(), &copied);
        models.push((copied, room.model.clone()));
    }
    for (dir, model) in &models {
        for (model, lacks) in [(model, false), (model, true), (&room.model, false), (&room.model, true)] {
            let again = tempfile::tempdir().unwrap();
            copy(dir, again.path());
            if lacks {
                full_at("image.before_write", || {
                    let found = recover::recover(again.path(), &model.parts(), model.effects.clone(), false);
                    assert_eq!(faults(&mut found.unwrap().0), [], "{dir:?}");
                });
            }
            heal(again.path(), model, &format!("{dir:?}, lacking before: {lacks}"));
        }
    }
}

#[test]
fn a_rotate_or_delete_without_room_holds_up_the_rest_and_is_done_when_there_is_room() {
    for point in ["image.before_rename", "image.before_unlink"] {
        for stops in [0, 1, 2] {
            let dir = tempfile::tempdir().unwrap();
            let mut room = Room {
                mirror: recover::recover(dir.path(), &[], Vec::new(), false).unwrap().0,
                dir,
                model: Model::default(),
            };
            room.append("a", "first");
            room.append("b", "bee");
            room.append("a", "");
            room.sync();
            let mut effects = vec![
                room.model.rotate("a", "new/dir/a"),
                room.model.delete("b"),
                room.model.append("a", "again"),
                room.model.append("new/dir/a", " more"),
            ];
            effects.extend(room.model.release(&[("c", "one "), ("new/dir/a", " "), ("d", "one ")]));
            effects.push(room.model.rotate("new/dir/a", "a.1"));
            effects.extend(room.model.release(&[("d", "two"), ("a.1", " and more"), ("c", "two")]));
            effects.push(room.model.append("b", "b"));
            for _ in 0..stops {
                full_at(point, || {
                    room.restart(false);
                });
                assert!(room.mirror.lacks_room() && !room.mirror.behind.is_empty());
                assert_eq!(room.faults(), []);
            }
            let mut left: VecDeque<FileEffect> = if stops > 0 {
                std::mem::take(&mut room.mirror.behind)
            } else {
                room.mirror.gauges.pending.add(effects.iter().map(weight).sum());
                VecDeque::from(effects)
            };
            full_at(point, || {
                while let Some(effect) = left.front().cloned() {
                    if room.mirror.apply(effect).is_err() {
                        break;
                    }
                    left.pop_front();
                }
            });
            assert!(room.mirror.lacks_room(), "{point}");
            for effect in left {
                room.mirror.apply(effect).unwrap();
            }
            room.sync();
            assert_eq!(room.faults(), [], "{point}, {stops} stops");
            assert!(!room.mirror.lacks_room());
            room.check();
            assert_eq!(room.mirror.gauges.pending.get(), 0);
        }
    }
}

#[test]
fn the_thread_says_when_room_is_gone_and_when_it_is_back_and_reads_go_on_meanwhile() {
    let Some((room, mount, _place)) = small_room() else { return };
    let Room { dir, mut model, mirror } = room;
    drop(mirror);
    let (image, _) = Image::recover(dir.path(), &model.parts(), model.effects.clone(), false).unwrap();
    let handle = image.start(Box::new(|| ())).unwrap();
    let next = || loop {
        match handle.events().recv_timeout(Duration::from_secs(30)).unwrap() {
            Event::Watermark(_) => {}
            event => return event,
        }
    };
    handle.apply(model.append("big", &"b".repeat(200 << 10)));
    assert_eq!(next(), Event::Room { full: true });
    let look = model.look("big");
    handle.read(1, look.file, look.generation, 199 << 10, 3, look.length);
    assert_eq!(next(), Event::ReadDone { tag: 1, result: Ok(b"bbb".to_vec()) });
    // A rotate into a new directory needs room too; what is behind it waits, reads of others do not.
    handle.apply(model.rotate("small", "new/small"));
    handle.apply(model.append("small", "anew"));
    let look = model.look("big");
    handle.read(2, look.file, look.generation, 0, 2, look.length);
    assert_eq!(next(), Event::ReadDone { tag: 2, result: Ok(b"bb".to_vec()) });
    mount.grow();
    handle.sync(model.op); // at once, not in a second
    assert_eq!(next(), Event::Room { full: false });
    let (events, ended) = handle.stop(Duration::from_secs(30));
    assert!(ended);
    assert!(events.iter().all(|event| matches!(event, Event::Watermark(_))), "{events:?}");
    assert_same(dir.path(), &model);
    assert_eq!(Record::read(dir.path()).unwrap(), Record { op: model.op, kept: vec![] });
}

#[test]
fn a_stop_on_a_full_disk_ends_and_leaves_what_waits_to_the_next_start() {
    let Some((room, mount, _place)) = small_room() else { return };
    let Room { dir, mut model, mirror } = room;
    drop(mirror);
    for times in 0..2 {
        let (image, _) = Image::recover(dir.path(), &model.parts(), model.effects.clone(), false).unwrap();
        let handle = image.start(Box::new(|| ())).unwrap();
        if times == 0 {
            handle.apply(model.append("big", &"b".repeat(200 << 10)));
            handle.apply(model.append("big", "c"));
        }
        handle.sync(model.op);
        let (events, ended) = handle.stop(Duration::from_secs(30));
        assert!(ended);
        assert!(events.contains(&Event::Room { full: true }), "{events:?}");
        assert!(!events.iter().any(|event| matches!(event, Event::Fault { .. })), "{events:?}");
    }
    mount.grow();
    heal(dir.path(), &model, "with room");
}
