//! A full disk, and a disk that fails.

use crate::harness::{Raw, Server, Setup, has_failpoints, let_pass, poll_until};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// A file system of its own, small enough to fill. Unmounted when dropped.
struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    /// Mounts one; `None`, with the reason printed, where that is not allowed. In CI that is a failure.
    fn mount(megabytes: u32) -> Option<SmallDisk> {
        let directory = tempfile::Builder::new().prefix("tenure-disk-").tempdir().unwrap();
        let options = format!("size={megabytes}m,mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tenure-test"])
            .arg(directory.path())
            .output();
        let why = match mounted {
            Ok(output) if output.status.success() => return Some(SmallDisk { directory }),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must be able to mount a small disk: {why}");
        println!("SKIP: no small disk could be mounted: {}", why.trim());
        None
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn filler(&self) -> PathBuf {
        self.directory.path().join("filler")
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut filler = fs::OpenOptions::new().append(true).create(true).open(self.filler()).unwrap();
        for size in [1 << 20, 4_096, 512, 1] {
            while filler.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }

    /// Gives it back.
    fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the server that runs on it is killed before or after.
        let _ = Command::new("umount").arg("-l").arg(self.directory.path()).status();
    }
}

/// Room for the journal, its reserve and some data.
const MEGABYTES: u32 = 256;

/// Appends until the disk has no room for more; gives how many bytes were acknowledged.
fn append_until_full(raw: &mut Raw, token: u64) -> (u64, crate::harness::Sent) {
    let data = format!("{}\n", "x".repeat(40_000));
    loop {
        let sent = raw.prepare("append_file", json!({"file": "f", "token": token, "data": data}));
        raw.send(&sent);
        let answer = loop {
            if let Some(answer) = raw.listen(&sent, Duration::from_millis(200)) {
                break answer;
            }
            raw.send(&sent);
        };
        match answer.kind() {
            None => assert!(
                answer.ok()["length"].as_u64().unwrap() < u64::from(MEGABYTES) << 20,
                "the disk never fills"
            ),
            Some(kind) => {
                assert_eq!(kind, "no_space", "{}", answer.0);
                assert_eq!(answer.0["error"]["data"]["final"], false, "the same id may be repeated");
                let length = raw.ok("file_info", json!({"file": "f"}))["length"].as_u64().unwrap();
                return (length, sent);
            }
        }
    }
}

#[test]
fn a_full_disk_refuses_new_work_lets_go_of_old_and_resumes_by_itself() {
    let Some(disk) = SmallDisk::mount(MEGABYTES) else { return };
    let mut server = Server::prepare_in(disk.data(), Setup { log: "info", ..Setup::default() });
    server.must_launch();
    let mut raw = server.client(600_000);
    let mut other = server.client(600_000);
    let mut dying = server.client(2_000);
    let token = raw.acquire("f");
    let spare = raw.acquire("spare");
    let leased = raw.ok("acquire_lock", json!({"key": "leased", "lease_ms": 600_000}))["token"].clone();
    raw.set("k", json!("v"));
    let wait = other.stand_in_line("spare");
    {
        let _beats = dying.beats(Duration::from_millis(100));
        dying.acquire("dying");
        disk.fill();
        let (length, refused) = append_until_full(&mut raw, token);
        // What frees goes on: a release and the hand-over behind it, a renewal, a heartbeat, an expiry, reads.
        raw.release(spare);
        assert!(other.granted(&wait) > spare);
        raw.ok("renew_lease", json!({"token": leased, "lease_ms": 300_000}));
        assert_eq!(raw.held(), 2);
        assert_eq!(raw.value("k"), json!("v"));
        assert_eq!(raw.ok("file_info", json!({"file": "f"}))["length"], length);
        assert!(server.fallen().is_none(), "a full disk is no reason to stop");
        drop(_beats);
        poll_until("a lease to run out on a full disk", || (!raw.is_locked("dying")).then_some(()));
        // Killed and started on the full disk: a start needs no room.
        server.kill();
        disk.fill();
        server.start_again();
        assert_eq!(raw.held(), 2);
        let info = raw.ok("file_info", json!({"file": "f"}));
        assert_eq!((&info["length"], info.get("fault")), (&json!(length), None));
        // With room it goes on by itself: the very request that was refused is executed, once.
        disk.make_room();
        let whole = raw.finish(&refused).ok().clone();
        assert_eq!(whole["offset"], length);
        let path = server.file("f");
        poll_until("all bytes on disk", || {
            (fs::metadata(&path).ok()?.len() == whole["length"]).then_some(())
        });
        let line = format!("{}\n", "x".repeat(40_000));
        assert!(fs::read(&path).unwrap().chunks(line.len()).all(|chunk| chunk == line.as_bytes()));
        assert_eq!(raw.ok("file_info", json!({"file": "f"})).get("fault"), None);
    }
    raw.release(token);
    let exit = server.terminate();
    assert!(exit.status.success(), "{exit:?}");
    drop(server);
}

/// Sends an append that the server must refuse for lack of room, and that may be sent again.
fn refused_for_room(raw: &mut Raw, file: &str, token: u64) -> crate::harness::Sent {
    poll_until("the lack of room to be noticed", || {
        (raw.ok("status", json!({}))["counts"]["files_full"] == 1).then_some(())
    });
    let sent = raw.prepare("append_file", json!({"file": file, "token": token, "data": "refused\n"}));
    poll_until("the lack of room to be said", || {
        raw.send(&sent);
        let answer = raw.listen(&sent, Duration::from_millis(200))?;
        assert_eq!(answer.refused("no_space")["final"], false, "{}", answer.0);
        Some(())
    });
    sent
}

#[test]
fn a_file_without_room_waits_for_it_and_nothing_is_at_fault() {
    if !has_failpoints() {
        return;
    }
    // One write of a file finds no room; a second later there is some.
    let setup = Setup { failpoint: Some("image.before_write=nospace@2".into()), ..Setup::default() };
    let server = Server::with(setup);
    let mut raw = server.client(600_000);
    let token = raw.acquire("f");
    raw.append("f", token, "first\n");
    poll_until("the file on disk", || fs::read(server.file("f")).ok().filter(|bytes| bytes == b"first\n"));
    assert_eq!(raw.append("f", token, "second\n"), (6, 13));
    assert_eq!(raw.read("f"), "first\nsecond\n", "what waits is read");
    poll_until("what waits on disk", || {
        fs::read(server.file("f")).ok().filter(|bytes| bytes == b"first\nsecond\n")
    });
    assert_eq!(raw.append("f", token, "third\n"), (13, 19));
    assert_eq!(raw.ok("file_info", json!({"file": "f"})).get("fault"), None);
}

#[test]
fn what_waited_for_room_is_written_after_a_kill_and_after_a_clean_stop() {
    if !has_failpoints() {
        return;
    }
    for clean in [false, true] {
        let setup = Setup { failpoint: Some("image.before_write=nospace".into()), ..Setup::default() };
        let mut server = Server::with(setup);
        let mut raw = server.client(600_000);
        let (token, other) = (raw.acquire("f"), raw.acquire("g"));
        raw.append("f", token, "first\n");
        let refused = refused_for_room(&mut raw, "f", token);
        // Another file has no room either, and all else goes on.
        refused_for_room(&mut raw, "g", other);
        raw.set("k", json!("v"));
        assert_eq!(raw.read("f"), "first\n");
        raw.ok("rotate_file", json!({"file": "f", "to": "f.1", "token": token}));
        assert_eq!((raw.read("f.1"), raw.read("f")), ("first\n".into(), String::new()));
        assert_eq!(raw.ok("file_info", json!({"file": "f.1"})).get("fault"), None);
        assert_eq!(fs::read(server.file("f.1")).ok(), None);
        if clean {
            assert!(server.terminate().status.success());
        } else {
            server.kill();
        }
        server.start_again();
        poll_until("what waited on disk", || {
            fs::read(server.file("f.1")).ok().filter(|bytes| bytes == b"first\n")
        });
        assert_eq!(raw.finish(&refused).ok()["offset"], 0, "the very request that was refused");
        assert_eq!((raw.read("f.1"), raw.read("f")), ("first\n".into(), "refused\n".into()));
    }
}

#[test]
fn a_failed_write_or_sync_ends_the_server_before_any_reply() {
    if !has_failpoints() {
        return;
    }
    // Write and sync of a batch, at any pass: the requests before it are done, that one is not answered.
    for point in ["journal.before_write", "journal.before_sync"] {
        let mut failed = 0;
        for pass in 1..=8 {
            let setup = Setup { failpoint: Some(format!("{point}=error@{pass}")), ..Setup::default() };
            let mut server = Server::prepare(setup);
            if let Err(exit) = server.launch() {
                assert!(!exit.status.success() && exit.status.signal().is_none(), "{exit:?}");
                failed += 1;
                continue;
            }
            failed += u32::from(fails_honestly(&mut server));
        }
        assert!(failed >= 4, "{point}: only {failed} of 8 passes failed");
    }
}

/// Works until the disk fails, then looks what is left; whether it failed.
fn fails_honestly(server: &mut Server) -> bool {
    let mut raw = Raw::new(server.address());
    let mut acked = Vec::new();
    let mut failed = None;
    let open = raw.start("open_session", json!({"nonce": format!("{:032x}", 7), "ttl_ms": 60_000}));
    'work: for number in 0..12 {
        let sent = match number {
            0 => open.clone(),
            _ => raw.start("set", json!({"key": format!("key_{number}"), "value": number})),
        };
        let answer = loop {
            // The end first: whatever it had sent before is in the socket by then.
            failed = server.fallen();
            if let Some(answer) = raw.listen(&sent, Duration::from_millis(20)) {
                break answer;
            }
            if failed.is_some() {
                break 'work;
            }
        };
        if number == 0 {
            raw.session = answer.ok()["session"].as_str().map(str::to_owned);
        } else {
            answer.ok();
            acked.push(number);
        }
    }
    if failed.is_none() {
        // It may have failed in what comes behind the replies, such as the seal.
        let_pass(400);
        failed = server.fallen();
    }
    let Some(exit) = failed else { return false };
    assert!(!exit.status.success() && exit.status.signal().is_none(), "{exit:?}");
    server.start_again();
    for number in acked {
        assert_eq!(raw.value(&format!("key_{number}")), json!(number), "an acknowledged write is gone");
    }
    true
}

#[test]
fn a_file_that_was_changed_by_somebody_else_is_closed_and_said_and_all_else_goes_on() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("longer", |path| {
            fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"not ours\n").unwrap();
        }),
        ("shorter", |path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(3).unwrap()),
        ("gone", |path| fs::remove_file(path).unwrap()),
        ("another", |path| {
            fs::remove_file(path).unwrap();
            fs::write(path, "first\n").unwrap();
        }),
    ];
    let server = Server::start();
    let mut raw = server.client(600_000);
    for (what, change) in changes {
        let token = raw.acquire(what);
        raw.append(what, token, "first\n");
        let path = server.file(what);
        poll_until("the file on disk", || fs::read(&path).ok().filter(|bytes| bytes == b"first\n"));
        change(&path);
        // The append that meets it may still stand: its bytes are in the journal.
        let met = raw.call("append_file", json!({"file": what, "token": token, "data": "second\n"}));
        assert!(met.kind().is_none_or(|kind| kind == "file_fault"), "{}", met.0);
        let fault = poll_until("the fault to be said", || {
            raw.ok("file_info", json!({"file": what}))["fault"].as_str().map(str::to_owned)
        });
        assert!(!fault.is_empty());
        raw.refused("append_file", json!({"file": what, "token": token, "data": "third\n"}), "file_fault");
        // All else goes on.
        let other = format!("beside {what}");
        let beside = raw.acquire(&other);
        assert_eq!(raw.append(&other, beside, "fine\n"), (0, 5));
        // The holder opens it again as it is.
        raw.ok("repair_file", json!({"file": what, "token": token}));
        let (offset, length) = raw.append(what, token, "fourth\n");
        assert_eq!(length, offset + 7);
        poll_until("the bytes on disk", || {
            fs::read_to_string(&path)
                .ok()
                .filter(|text| text.ends_with("fourth\n") && text.len() as u64 == length)
        });
    }
}

#[test]
fn a_file_that_the_disk_refuses_is_closed_and_said_and_its_appends_stand() {
    if !has_failpoints() {
        return;
    }
    let setup = Setup { failpoint: Some("image.before_write=error@2".into()), ..Setup::default() };
    let mut server = Server::with(setup);
    let mut raw = server.client(600_000);
    let token = raw.acquire("f");
    raw.append("f", token, "first\n");
    poll_until("the file on disk", || fs::read(server.file("f")).ok().filter(|bytes| bytes == b"first\n"));
    // Its bytes are in the journal, so it stands, whatever the disk says later.
    assert_eq!(raw.append("f", token, "second\n"), (6, 13));
    poll_until("the fault to be said", || raw.ok("file_info", json!({"file": "f"})).get("fault").map(|_| ()));
    raw.refused("append_file", json!({"file": "f", "token": token, "data": "third\n"}), "file_fault");
    let beside = raw.acquire("beside");
    raw.append("beside", beside, "fine\n");
    // The next start has a disk that works.
    server.kill_and_restart();
    raw.ok("repair_file", json!({"file": "f", "token": token}));
    assert_eq!(raw.append("f", token, "third\n"), (13, 19));
    assert_eq!(raw.read("f"), "first\nsecond\nthird\n");
}

#[test]
fn a_link_a_device_or_a_directory_in_the_place_of_a_file_is_never_written_through() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let server = Server::start();
    let mut raw = server.client(600_000);
    let files = server.file("");
    fs::create_dir_all(&files).unwrap();
    std::os::unix::fs::symlink(&victim, server.file("link")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("nothing"), server.file("dangling")).unwrap();
    std::os::unix::fs::symlink(outside.path(), server.file("linked")).unwrap();
    fs::hard_link(&victim, server.file("hard")).expect("both are on the same file system");
    // An empty directory may be what a deleted file left behind; this one is not.
    fs::create_dir(server.file("directory")).unwrap();
    fs::write(server.file("directory/inside"), "untouched").unwrap();
    let fifo = Command::new("mkfifo").arg(server.file("fifo")).status().unwrap();
    assert!(fifo.success());
    let _socket = std::os::unix::net::UnixListener::bind(server.file("socket")).unwrap();
    let mut names =
        vec!["link", "dangling", "linked/victim", "linked/new", "hard", "directory", "fifo", "socket"];
    // The device that swallows everything: only a superuser can make one.
    let device = Command::new("mknod").arg(server.file("device")).args(["c", "1", "3"]).output();
    if device.is_ok_and(|made| made.status.success()) {
        names.push("device");
    }
    for name in names {
        let token = raw.acquire(name);
        let answer = raw.call("append_file", json!({"file": name, "token": token, "data": "x"}));
        println!("{name}: {}", answer.0);
        let refused = ["file_fault", "bad_name"];
        match answer.kind() {
            Some(kind) => assert!(refused.contains(&kind), "{name}: {}", answer.0),
            // The bytes are in the journal; the disk could not take them, and that is said.
            None => {
                poll_until("the fault to be said", || {
                    raw.ok("file_info", json!({"file": name})).get("fault").map(|_| ())
                });
            }
        }
        raw.release(token);
    }
    for path in [&victim, &server.file("directory/inside")] {
        assert_eq!(fs::read_to_string(path).unwrap(), "untouched");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "something was made outside");
    let token = raw.acquire("fine");
    raw.append("fine", token, "x");
    poll_until("the file on disk", || fs::read(server.file("fine")).ok().filter(|bytes| bytes == b"x"));
}
