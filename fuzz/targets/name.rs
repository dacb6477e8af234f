//! Names: the rule against a second statement of it, and against the kernel's own idea of a path.
//!
//! The second statement goes by what the standard library and the kernel say of a path, and shares no line with the rule.
//! A file name that the rule takes is made in a directory of its own and must be found exactly there.

use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use tempfile::TempDir;
use tenure::image::tree::Tree;
use tenure::name::Name;
use tenure::wire;

/// Takes bytes as a name.
pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let name = Name::new(text);
    assert_eq!(name.is_ok(), is_name(text), "the rule of names and its second statement differ on {text:?}");
    if let Ok(name) = &name {
        assert_eq!(name.as_str(), text, "a name is taken as it is");
    }
    let file = Name::file(text);
    assert_eq!(
        file.is_ok(),
        is_name(text) && is_path(text),
        "the rule of files and its second statement differ on {text:?}"
    );
    on_the_wire("get", "key", text, name.is_ok());
    on_the_wire("file_info", "file", text, file.is_ok());
    let json = serde_json::to_string(text).expect("text is always JSON");
    assert_eq!(
        serde_json::from_str::<Name>(&json).is_ok(),
        name.is_ok(),
        "a snapshot takes another name than the wire"
    );
    match file {
        Ok(name) => on_disk(&name),
        Err(_) => astray(text),
    }
}

/// 1 to 256 bytes, no control characters, none of those that turn text around or break lines without being seen.
fn is_name(text: &str) -> bool {
    const UNSEEN: [u32; 15] = [
        0x061c, 0x200e, 0x200f, 0x2028, 0x2029, 0x202a, 0x202b, 0x202c, 0x202d, 0x202e, 0x2066, 0x2067,
        0x2068, 0x2069, 0xfeff,
    ];
    let control = |c: u32| c < 0x20 || (0x7f..0xa0).contains(&c);
    (1..=256).contains(&text.len()) && !text.chars().map(u32::from).any(|c| control(c) || UNSEEN.contains(&c))
}

/// A relative path, written as the standard library would write it after taking it apart.
fn is_path(text: &str) -> bool {
    let parts: Option<Vec<_>> = Path::new(text)
        .components()
        .map(|component| match component {
            Component::Normal(part) if part.len() <= 255 => part.to_str(),
            _ => None,
        })
        .collect();
    parts.is_some_and(|parts| !parts.is_empty() && parts.join("/") == text)
}

/// A request that names it is well formed if the name is good.
fn on_the_wire(method: &str, param: &str, text: &str, good: bool) {
    let message = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": {param: text}});
    let decoded = wire::decode(message.to_string().as_bytes()).expect("it is a request");
    assert_eq!(
        decoded.elements[0].request.is_ok(),
        good,
        "{method} takes another {param} than the rule: {text:?}"
    );
}

/// A directory for files, empty between two runs.
struct Room {
    dir: TempDir,
    tree: Tree,
}

fn room() -> &'static Mutex<Room> {
    static ROOM: OnceLock<Mutex<Room>> = OnceLock::new();
    ROOM.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory for files");
        let tree = Tree::open(dir.path()).expect("a directory for files");
        Mutex::new(Room { dir, tree })
    })
}

/// The file is made where its name says, is the only one there, and leaves nothing behind.
fn on_disk(name: &Name) {
    let room = room().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let root = room.dir.path().join("files");
    let made = room
        .tree
        .create_file(name)
        .unwrap_or_else(|obstacle| panic!("{name:?} cannot be made: {obstacle:?}"));
    drop(made);
    let mut found = Vec::new();
    below(&root, &mut found);
    assert_eq!(found, [root.join(name.as_str())], "{name:?} was made elsewhere");
    let real = found[0].canonicalize().expect("it is there");
    assert!(real.starts_with(root.canonicalize().expect("it is there")), "{name:?} lies outside");
    room.tree.remove(name).unwrap_or_else(|obstacle| panic!("{name:?} cannot be removed: {obstacle:?}"));
    room.tree.prune(name);
    assert!(root.read_dir().expect("it is there").next().is_none(), "{name:?} left something behind");
}

/// All files below a directory.
fn below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in directory.read_dir().expect("it is a directory") {
        let path = entry.expect("it can be read").path();
        match path.is_dir() {
            true => below(&path, found),
            false => found.push(path),
        }
    }
}

/// What the kernel would not resolve to a fresh file beneath the directory is refused by the rule; it may refuse more.
fn astray(text: &str) {
    use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
    // A name with a control character or too long is refused for other reasons than where it leads.
    if !is_name(text) {
        return;
    }
    let room = room().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let root =
        rustix::fs::open(room.dir.path().join("files"), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
            .expect("it is there");
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // Without any directory in it but the root, only `.` and what comes down to it resolve; whatever else the rule
    // refuses must lead out of it, be too long, or not be there.
    let opened = openat2(&root, text, OFlags::PATH, Mode::empty(), beneath);
    if let Ok(opened) = opened {
        let (one, other) = (rustix::fs::fstat(&opened), rustix::fs::fstat(&root));
        let (one, other) = (one.expect("it is open"), other.expect("it is open"));
        assert_eq!((one.st_dev, one.st_ino), (other.st_dev, other.st_ino), "{text:?} leads to something");
    }
}
