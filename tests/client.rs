//! The client library against a live server: over a bad line, over restarts, and from an address that has to be proven.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "protocol/server.rs"]
#[expect(
    dead_code,
    reason = "shared with the test of the protocol, which talks to the server without the library"
)]
mod server;

use server::{BadLine, Server, outside_address};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tenure::bench::report::Report;
use tenure::bench::{Plan, Sockets, Workload};
use tenure::client::{Attempt, Client, Error, GrantState, LostCause, Mode, Transaction};
use tenure::kind::Kind;
use tenure::outcome::Reason;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn server() -> Server {
    Server::start(LOOPBACK).expect("the server starts")
}

#[test]
fn a_counter_and_a_file_under_one_lock_lose_nothing() {
    let server = server();
    let threads: Vec<_> = (0..3)
        .map(|number| {
            let client = Client::builder().name(format!("client_{number}")).connect(server.address).unwrap();
            std::thread::spawn(move || {
                for round in 0..10 {
                    let guard = client.lock("n").wait_forever().acquire().unwrap();
                    let seen: u64 = client.get_as("n").unwrap().unwrap_or(0);
                    guard.set_own(&(seen + 1)).unwrap();
                    guard.append(format!("{number}.{round}\n")).unwrap();
                    guard.release().unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let client = Client::connect(server.address).unwrap();
    assert_eq!(client.get_as::<u64>("n").unwrap(), Some(30));
    let text = String::from_utf8(client.read_all("n").unwrap()).unwrap();
    let lines: BTreeSet<&str> = text.lines().collect();
    assert_eq!((lines.len(), text.lines().count()), (30, 30));
    assert!(!client.is_locked("n").unwrap());
}

#[test]
fn over_a_line_that_loses_and_doubles_each_append_stands_once() {
    let server = server();
    let line = BadLine::to(server.address);
    let client = Client::builder().deadline(Duration::from_secs(30)).connect(line.address).unwrap();
    let guard = client.lock("f").acquire().unwrap();
    for number in 0..4 {
        guard.append(format!("{number}\n")).unwrap();
    }
    guard.release().unwrap();
    let text = String::from_utf8(Client::connect(server.address).unwrap().read_all("f").unwrap()).unwrap();
    let lines: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(lines, (0..4).collect::<Vec<_>>());
}

#[test]
fn a_holder_and_a_waiter_live_on_when_the_server_is_killed_and_started_again() {
    let mut server = server();
    let holder = Client::connect(server.address).unwrap();
    let waiter = Client::builder().deadline(Duration::from_secs(30)).connect(server.address).unwrap();
    let guard = holder.lock("a").acquire().unwrap();
    let token = guard.token().unwrap();
    guard.append("before\n").unwrap();
    let (places, place) = crossbeam_channel::unbounded();
    let waiting = std::thread::spawn(move || {
        let guard = waiter.lock("a").wait_forever().progress(places).acquire().unwrap();
        guard.append("waiter\n").unwrap();
        guard.token().unwrap()
    });
    assert_eq!(place.recv_timeout(Duration::from_secs(10)).unwrap().position, 1);
    server.restart().unwrap();
    assert_eq!((guard.state(), guard.token().unwrap()), (GrantState::Safe, token));
    guard.append("after\n").unwrap();
    guard.release().unwrap();
    assert!(waiting.join().unwrap() > token);
    assert_eq!(holder.read_all("a").unwrap(), b"before\nafter\nwaiter\n");
}

#[test]
fn a_write_that_was_on_its_way_when_the_server_was_killed_is_done_once() {
    let mut server = server();
    let client = Client::builder().deadline(Duration::from_secs(30)).connect(server.address).unwrap();
    let guard = client.lock("f").acquire().unwrap();
    let (done, written) = mpsc::channel();
    let writer = std::thread::spawn(move || {
        for number in 0..200 {
            guard.append(format!("{number}\n")).unwrap();
            done.send(number).unwrap();
        }
    });
    for at in [20, 90, 150] {
        while written.recv().unwrap() < at {}
        server.restart().unwrap();
    }
    writer.join().unwrap();
    let text = String::from_utf8(client.read_all("f").unwrap()).unwrap();
    let lines: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(lines, (0..200).collect::<Vec<_>>());
}

#[test]
fn an_address_that_has_to_be_proven_is() {
    let Some(ip) = outside_address() else {
        // Loopback is proven: there is nothing to see on such a machine.
        let _ = writeln!(std::io::stderr(), "skipped: this machine has no other address");
        return;
    };
    let server = Server::start(ip).unwrap();
    let lazy = Client::builder().lazy(true).connect(server.address).unwrap();
    assert_eq!(lazy.status().unwrap().protocol, 1);
    let client = Client::connect(server.address).unwrap();
    let guard = client.lock("a").acquire().unwrap();
    guard.set_own("value").unwrap();
    guard.release().unwrap();
    assert_eq!(client.get_as::<String>("a").unwrap().as_deref(), Some("value"));
}

#[test]
fn a_lease_of_its_own_ends_under_a_live_heartbeat_unless_it_is_renewed() {
    let server = server();
    let client = Client::connect(server.address).unwrap();
    let lease = Duration::from_millis(1_500);
    let guard = client.lock("a").lease(lease).acquire().unwrap();
    guard.renew(lease).unwrap();
    let lost = guard.wait_lost(Duration::from_secs(10)).unwrap();
    assert_eq!(lost.cause, LostCause::LeaseOver);
    assert!(matches!(guard.append("late"), Err(Error::Lost(_))));
    let other = Client::connect(server.address).unwrap();
    let next = other.lock("a").wait(Duration::from_secs(10)).acquire().unwrap();
    assert!(next.token().unwrap() > lost.token);
    // What the guard knows to be lost the server refuses too.
    let error = client.fence(lost.token).append_file("a", "late").unwrap_err();
    assert!(matches!(error, Error::Lost(_)) || error.kind() == Some(Kind::NotHolder), "{error}");
}

#[test]
fn an_owner_has_a_lock_once_and_another_owner_of_the_same_client_waits() {
    let server = server();
    let client = Client::connect(server.address).unwrap();
    let guard = client.lock("a").acquire().unwrap();
    assert!(matches!(client.lock("a").acquire(), Err(Error::AlreadyHeld { .. })));
    match client.lock("a").owner("other").try_acquire().unwrap() {
        Attempt::Refused(blocked) => assert_eq!(blocked.holders[0].token, guard.token().unwrap()),
        Attempt::Granted(_) => panic!("two owners hold one lock"),
    }
    // Dropped and asked for again at once: the release comes first, whatever the network does.
    for _ in 0..20 {
        drop(client.lock("b").acquire().unwrap());
    }
}

#[test]
fn a_wait_ends_at_its_limit_and_leaves_nothing_in_line() {
    let server = server();
    let (one, two) = (Client::connect(server.address).unwrap(), Client::connect(server.address).unwrap());
    let _guard = one.lock("a").acquire().unwrap();
    let error = two.lock("a").wait(Duration::from_millis(200)).acquire().unwrap_err();
    assert!(matches!(error, Error::NotGranted(_)), "{error}");
    let endless = two.lock("a").wait_forever();
    let (sender, receiver) = mpsc::channel();
    let closing = two.clone();
    std::thread::spawn(move || sender.send(endless.acquire().map(drop)));
    while one.lock_info("a").unwrap().queue_total == 0 {}
    closing.close().unwrap();
    assert!(matches!(receiver.recv().unwrap(), Err(Error::Closed)));
    assert_eq!(one.lock_info("a").unwrap().queue_total, 0);
}

#[test]
fn a_detached_grant_is_used_and_released_from_another_session() {
    let server = server();
    let client = Client::builder().ttl(Duration::from_secs(30)).connect(server.address).unwrap();
    let token = client.lock("a").acquire().unwrap().into_token().unwrap();
    let left = client.detach().unwrap();
    assert_eq!(left.ttl, Duration::from_secs(30));
    let other = Client::connect(server.address).unwrap();
    assert_eq!(other.heartbeat_for(left.session).unwrap().held, 1);
    let fence = other.fence_of(left.session, token);
    fence.append_file("a", "by another\n").unwrap();
    fence.renew(Duration::from_secs(20)).unwrap();
    fence.release().unwrap();
    assert_eq!(fence.release().unwrap_err().kind(), Some(Kind::NotHolder));
    assert!(!other.is_locked("a").unwrap());
}

#[test]
fn keys_are_set_under_conditions_and_listed_in_pages() {
    let server = server();
    let client = Client::connect(server.address).unwrap();
    let version = client.set_if("k", &serde_json::json!({"name": "Alice", "age": 30}), 0).unwrap();
    assert_eq!(client.set_if("k", &1, 0).unwrap_err().kind(), Some(Kind::VersionMismatch));
    assert_eq!(client.get("k").unwrap().unwrap().version, version);
    client.set_raw("null", "null", None).unwrap();
    assert_eq!(client.get("null").unwrap().unwrap().value.get(), "null");
    assert!(client.get("none").unwrap().is_none());
    for number in 0..100 {
        client.set(&format!("p/{number:03}"), &number).unwrap();
    }
    let keys: Vec<String> = client.prefix("p/").map(|item| item.unwrap().key).collect();
    assert_eq!(keys, (0..100).map(|number| format!("p/{number:03}")).collect::<Vec<_>>());
    let some: Vec<String> =
        client.range("p/010", "p/012").page_limit(2).map(|item| item.unwrap().key).collect();
    assert_eq!(some, ["p/010", "p/011", "p/012"]);
    assert_eq!(client.delete("k").unwrap(), Some(version));
    assert_eq!(client.delete("k").unwrap(), None);
    assert!(matches!(client.set_raw("k", "{", None), Err(Error::Invalid(_))));
    let control: String = "\u{1}".repeat(40_000);
    let guard = client.lock("f").acquire().unwrap();
    guard.append(&control).unwrap();
    assert_eq!(client.read_all("f").unwrap(), control.as_bytes());
}

#[test]
fn after_kill_session_grants_are_lost_and_the_next_call_opens_a_new_session() {
    let server = server();
    let one = Client::builder().ttl(Duration::from_millis(1_500)).connect(server.address).unwrap();
    let two = Client::connect(server.address).unwrap();
    let guard = one.lock("a").acquire().unwrap();
    assert!(two.kill_session(one.session().unwrap().client).unwrap());
    let lost = guard.wait_lost(Duration::from_secs(20)).unwrap();
    assert_eq!(lost.cause, LostCause::SessionEnded);
    one.set("k", &1).unwrap();
    let again = one.lock("a").acquire().unwrap();
    assert!(again.token().unwrap() > lost.token);
}

/// A line between one client and the server, each direction of which can be cut.
struct Line {
    address: SocketAddr,
    /// To the server; to the client.
    cut: [Arc<AtomicBool>; 2],
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Line {
    fn to(server: SocketAddr) -> Line {
        let (front, back) =
            (UdpSocket::bind((LOOPBACK, 0)).unwrap(), UdpSocket::bind((LOOPBACK, 0)).unwrap());
        for socket in [&front, &back] {
            socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        }
        back.connect(server).unwrap();
        let address = front.local_addr().unwrap();
        let cut = [Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false))];
        let stop = Arc::new(AtomicBool::new(false));
        let (hear, client) = mpsc::channel();
        let (fronts, backs) = (front.try_clone().unwrap(), back.try_clone().unwrap());
        let (to_server, stopped) = (Arc::clone(&cut[0]), Arc::clone(&stop));
        let up = std::thread::spawn(move || {
            let mut bytes = vec![0; 65_535];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = front.recv_from(&mut bytes) else { continue };
                let _ = hear.send(from);
                if !to_server.load(Ordering::Relaxed) {
                    let _ = back.send(&bytes[..length]);
                }
            }
        });
        let (to_client, stopped) = (Arc::clone(&cut[1]), Arc::clone(&stop));
        let down = std::thread::spawn(move || {
            let (mut bytes, mut to) = (vec![0; 65_535], None);
            while !stopped.load(Ordering::Relaxed) {
                let Ok(length) = backs.recv(&mut bytes) else { continue };
                to = client.try_iter().last().or(to);
                if let Some(to) = to.filter(|_| !to_client.load(Ordering::Relaxed)) {
                    let _ = fronts.send_to(&bytes[..length], to);
                }
            }
        });
        Line { address, cut, stop, threads: vec![up, down] }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[test]
fn a_client_that_hears_nothing_or_is_not_heard_has_given_up_before_another_is_granted() {
    const TTL: Duration = Duration::from_secs(2);
    for (direction, what) in [(0, "requests"), (1, "replies")] {
        let server = server();
        let line = Line::to(server.address);
        let one = Client::builder().ttl(TTL).connect(line.address).unwrap();
        let two = Client::connect(server.address).unwrap();
        let guard = Arc::new(one.lock("a").acquire().unwrap());
        let token = guard.token().unwrap();
        // Heartbeats go both ways for longer than the lease: it is kept.
        std::thread::sleep(TTL + TTL / 4);
        assert_eq!(guard.state(), GrantState::Safe);
        let (places, place) = crossbeam_channel::unbounded();
        let believed = Arc::clone(&guard);
        let waiting = std::thread::spawn(move || {
            let next = two.lock("a").wait_forever().progress(places).acquire().unwrap();
            (believed.state(), next.token().unwrap())
        });
        place.recv_timeout(Duration::from_secs(10)).unwrap();
        line.cut[direction].store(true, Ordering::Relaxed);
        let lost = guard.wait_lost(Duration::from_secs(20)).unwrap();
        assert_eq!(lost.cause, LostCause::Unproven, "{what}");
        assert!(matches!(guard.append("late"), Err(Error::Lost(_))));
        // Whether the lease ran out or the client's `abandon` arrived: when the other was granted, the first had given up.
        let (state, next) = waiting.join().unwrap();
        assert_eq!(state, GrantState::Lost, "both believed to hold it when {what} were lost");
        assert!(next > token);
        let error = Client::connect(server.address).unwrap().file_info("a").unwrap_err();
        assert_eq!(error.kind(), Some(Kind::NotFound), "the late append was not sent");
    }
}

#[test]
fn a_guard_is_released_when_the_work_under_it_fails() {
    let server = server();
    let client = Client::connect(server.address).unwrap();
    let other = Client::connect(server.address).unwrap();
    let fail = || -> Result<(), Error> {
        let guard = client.lock("f").acquire()?;
        guard.append_file("another file", "x")?;
        Ok(())
    };
    assert_eq!(fail().unwrap_err().kind(), Some(Kind::NotHolder));
    drop(other.lock("f").acquire().unwrap());
    let panicking = client.clone();
    let work = std::thread::spawn(move || {
        let _guard = panicking.lock("f").acquire().unwrap();
        std::panic::resume_unwind(Box::new("the work under the lock panics"));
    });
    assert!(work.join().is_err());
    drop(other.lock("f").acquire().unwrap());
    let result = client.lock("f").with(|guard| guard.append_file("another file", "x")).unwrap();
    assert!(result.is_err());
    assert!(!other.is_locked("f").unwrap());
}

#[test]
fn a_hundred_files_are_written_and_found_again_after_a_restart() {
    let mut server = server();
    let client = Client::builder().deadline(Duration::from_secs(30)).connect(server.address).unwrap();
    let names: Vec<String> = (0..100).map(|number| format!("file_{number}")).collect();
    for round in ["first", "second"] {
        for name in &names {
            let append = |guard: &tenure::client::Guard| guard.append(format!("{round} line of {name}\n"));
            client.lock(name).acquire().and_then(|guard| append(&guard)).unwrap();
        }
        server.restart().unwrap();
    }
    let listed: BTreeSet<String> = client.list_files("file_").map(|file| file.unwrap().file).collect();
    assert_eq!(listed, names.iter().cloned().collect());
    for name in &names {
        let text = format!("first line of {name}\nsecond line of {name}\n");
        assert_eq!(client.read_all(name).unwrap(), text.as_bytes());
    }
    // A file begins with its first append; to read what never began is an error of its own.
    assert_eq!(client.read_all("file_100").unwrap_err().kind(), Some(Kind::NotFound));
    for name in ["../x", "/file_0", "file_0/", ""] {
        assert_eq!(client.read_all(name).unwrap_err().kind(), Some(Kind::BadName), "{name}");
    }
}

#[test]
fn keys_live_as_long_as_they_were_set_for() {
    let server = server();
    let reader = Client::connect(server.address).unwrap();
    let client = Client::builder().name("short").connect(server.address).unwrap();
    let number = client.session().unwrap().client;
    client.put("quick", &1).ttl(Duration::from_millis(300)).if_version(0).send().unwrap();
    client.put("slow", &1).ttl(Duration::from_secs(1_000)).send().unwrap();
    client.put_raw("mine", "{\"n\": [1.50]}").bound().send().unwrap();
    let slow = reader.get("slow").unwrap().unwrap();
    assert!(slow.ttl_left.unwrap() > Duration::from_secs(900), "{slow:?}");
    let mine = reader.get("mine").unwrap().unwrap();
    assert_eq!((mine.value.get(), mine.bound_to, mine.ttl_left), ("{\"n\": [1.50]}", Some(number), None));
    let items: Vec<_> = reader.prefix("m").map(Result::unwrap).collect();
    assert_eq!((items[0].value.get(), items[0].life.client), ("{\"n\": [1.50]}", Some(number)));
    while reader.get("quick").unwrap().is_some() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let bad = client.put("x", &1).ttl(Duration::from_millis(1)).send().unwrap_err();
    assert_eq!(bad.kind(), Some(Kind::InvalidParams));
    assert!(matches!(client.put_raw("x", "{").ttl(Duration::from_secs(1)).send(), Err(Error::Invalid(_))));
    client.close().unwrap();
    assert!(reader.get("mine").unwrap().is_none());
    assert!(reader.get("slow").unwrap().is_some());
}

#[test]
fn a_transaction_changes_all_or_nothing() {
    let server = server();
    let client = Client::connect(server.address).unwrap();
    let version = client.transaction().compare("a", 0).set("a", &1).set("b", &"two").commit().unwrap();
    assert_eq!(client.get("a").unwrap().unwrap().version, version);
    let error = client.transaction().compare("a", version + 1).set("b", &3).delete("a").commit().unwrap_err();
    match &error {
        Error::Refused { data, .. } => {
            assert_eq!((data.key.as_deref(), data.version), (Some("a"), Some(version)), "{error}");
        }
        other => panic!("{other}"),
    }
    assert_eq!(client.get_as::<String>("b").unwrap().unwrap(), "two");
    let guard = client.lock("a").acquire().unwrap();
    let ttl = Duration::from_secs(60);
    let changes = |transaction: Transaction| transaction.set_for("a", &2, ttl).set_bound("c", &3).delete("b");
    let error = changes(client.transaction()).commit().unwrap_err();
    assert_eq!(error.kind(), Some(Kind::Guarded));
    changes(guard.fence().unwrap().transaction()).commit().unwrap();
    assert!(client.get("a").unwrap().unwrap().ttl_left.unwrap() <= ttl);
    assert!(client.get("b").unwrap().is_none());
    assert!(client.get("c").unwrap().unwrap().bound_to.is_some());
    let no_json = std::collections::BTreeMap::from([((1, 2), 3)]);
    assert!(matches!(client.transaction().set("x", &no_json).commit(), Err(Error::Invalid(_))));
    assert_eq!(client.transaction().commit().unwrap_err().kind(), Some(Kind::InvalidParams));
}

#[test]
fn every_operation_of_the_library_goes_over_one_session() {
    let server = server();
    let client = Client::builder().name("all").connect(server.address).unwrap();
    let session = client.session().unwrap();
    let guard = client.lock("a").label("all of it").lease(Duration::from_secs(60)).acquire().unwrap();
    let token = guard.token().unwrap();
    assert!(guard.renew(Duration::from_secs(30)).unwrap() <= Duration::from_secs(30));
    let version = guard.set_own(&1).unwrap();
    assert_eq!(guard.get("a").unwrap().unwrap().version, version);
    assert!(guard.set_raw("a", "2", Some(version)).is_ok());
    assert!(guard.delete("a").unwrap().is_some());
    guard.append("one\n").unwrap();
    assert_eq!(client.read_file("a", 0, Some(3)).unwrap().data, b"one");
    assert_eq!(client.file_info("a").unwrap().length, 4);
    guard.rotate_file("a", "a.1").unwrap();
    guard.append("two\n").unwrap();
    guard.repair_file("a").unwrap();
    guard.delete_file("a").unwrap();
    let info = client.lock_info("a").unwrap();
    assert_eq!((info.holders[0].token, info.holders[0].label.as_str()), (token, "all of it"));
    assert_eq!(client.list_locks("").count(), 1);
    assert_eq!(client.list_grants("a").next().unwrap().unwrap().holder.token, token);
    assert_eq!(client.list_sessions().next().unwrap().unwrap().client, session.client);
    assert_eq!(client.list_files("").map(|file| file.unwrap().file).collect::<Vec<_>>(), ["a.1"]);
    assert!(client.is_locked("a").unwrap());
    guard.fence().unwrap().set("b", &true).unwrap();
    assert_eq!(client.range("a", "z").count(), 1);
    assert_eq!(client.delete_if("b", 1).unwrap_err().kind(), Some(Kind::VersionMismatch));
    guard.release().unwrap();
    assert_eq!(client.cleanup_expired_locks().unwrap(), 0);
    assert_eq!(client.ping().unwrap().server, "tenure");
    assert_eq!(client.status().unwrap().counts["sessions"], 1);
    // Many requests later it is the same session.
    for number in 0..1_500 {
        client.set("n", &number).unwrap();
    }
    assert_eq!(client.session().unwrap(), session);
    client.close().unwrap();
    assert!(matches!(client.set("n", &0), Err(Error::Closed)));
}

#[test]
fn an_atomic_guard_commits_all_or_nothing_and_reads_its_own_writes() {
    let mut server = server();
    let client = Client::connect(server.address).unwrap();
    let other = Client::connect(server.address).unwrap();
    other.set("a", &"old").unwrap();
    let section = || client.lock_all(["a", "b", "log"]).atomic().acquire().unwrap();

    let guard = section();
    guard.set("a", &"new").unwrap();
    guard.delete("b").unwrap();
    let placed = guard.append_file("log", "one\n").unwrap();
    assert!(placed.staged);
    server.restart().unwrap();
    guard.append_file("log", "two\n").unwrap();
    assert_eq!(guard.get("a").unwrap().unwrap().parse::<String>().unwrap(), "new");
    assert_eq!(guard.read_all("log").unwrap(), b"one\ntwo\n");
    assert_eq!(guard.file_info("log").unwrap().length, 8);
    assert_eq!(guard.fence().unwrap().prefix("").count(), 1);
    assert_eq!(other.get_as::<String>("a").unwrap().as_deref(), Some("old"));
    assert_eq!(other.read_all("log").unwrap_err().kind(), Some(Kind::NotFound));
    let committed = guard.commit().unwrap();
    assert_eq!(committed.writes, 4);
    assert_eq!(other.get("a").unwrap().unwrap().version, committed.op);
    assert_eq!(other.read_all("log").unwrap(), b"one\ntwo\n");

    // Rolled back: by name, by a drop, by work that panics or fails on the way.
    let guard = section();
    guard.set("a", &"abandoned").unwrap();
    guard.abandon().unwrap();
    let guard = section();
    guard.set("a", &"dropped").unwrap();
    drop(guard);
    let work = std::thread::spawn({
        let client = client.clone();
        move || {
            let guard = client.lock("a").wait_forever().atomic().acquire().unwrap();
            guard.set("a", &"half").unwrap();
            std::panic::resume_unwind(Box::new("the work under the lock panics"));
        }
    });
    assert!(work.join().is_err());
    let guard = client.lock("a").wait_forever().acquire().unwrap();
    assert_eq!(other.get_as::<String>("a").unwrap().as_deref(), Some("new"));
    guard.release().unwrap();
    client.lock("a").atomic().with(|guard| guard.set("a", &"with").unwrap()).unwrap();
    assert_eq!(other.get_as::<String>("a").unwrap().as_deref(), Some("with"));
}

#[test]
fn a_commit_that_is_refused_is_rolled_back_and_lets_go() {
    let server = server();
    let client = Client::connect(server.address).unwrap();
    let other = Client::connect(server.address).unwrap();
    let guard = client.lock_all(["a", "d/f"]).atomic().acquire().unwrap();
    guard.set("a", &1).unwrap();
    guard.append_file("d/f", "x").unwrap();
    let taken = other.lock("d").acquire().unwrap();
    taken.append("a file, where a directory was to be").unwrap();
    assert_eq!(guard.commit().unwrap_err().kind(), Some(Kind::BadName));
    drop(client.lock("a").wait(Duration::from_secs(10)).acquire().unwrap());
    assert!(other.get("a").unwrap().is_none());
    // Who tries by hand keeps the grant and what is staged.
    taken.delete_file("d").unwrap();
    let guard = client.lock_all(["a", "d/f"]).atomic().acquire().unwrap();
    guard.append_file("d/f", "x").unwrap();
    taken.append("again").unwrap();
    assert_eq!(guard.fence().unwrap().release().unwrap_err().kind(), Some(Kind::BadName));
    taken.delete_file("d").unwrap();
    assert_eq!(guard.commit().unwrap().writes, 1);
}

#[test]
fn readers_share_a_lock_and_slots_run_out() {
    let server = server();
    let client = Client::connect(server.address).unwrap();
    let reader = |owner: &str| client.lock("map").shared().owner(owner);
    let (one, two) = (reader("r1").acquire().unwrap(), reader("r2").acquire().unwrap());
    assert_eq!(one.locks()[0].mode.to_string(), "shared");
    let Attempt::Refused(blocked) = client.lock("map").owner("w").try_acquire().unwrap() else {
        panic!("a writer beside readers")
    };
    assert_eq!((blocked.key.as_deref(), blocked.holders_total), (Some("map"), 2));
    assert!(one.set("map", &1).is_err(), "nobody writes what is held shared");
    two.release().unwrap();
    one.release().unwrap();

    let slots = |owner: &str| client.lock("pool").slots(3).owner(owner);
    let heavy = slots("h").weight(2).acquire().unwrap();
    let light = slots("l").acquire().unwrap();
    assert!(matches!(slots("m").try_acquire().unwrap(), Attempt::Refused(_)));
    drop(light);
    let error = client.lock("pool").slots(4).owner("m").acquire().unwrap_err();
    assert!(matches!(&error, Error::Refused { data, .. } if data.slots == Some(3)), "{error}");
    drop(heavy);
}

#[test]
fn several_locks_are_granted_whole_or_not_at_all() {
    let server = server();
    let client = Client::connect(server.address).unwrap();
    let other = client.lock("b").owner("other").acquire().unwrap();
    let both = || client.lock_all([("a", Mode::Shared), ("b", Mode::Exclusive)]);
    assert!(
        matches!(both().try_acquire().unwrap(), Attempt::Refused(blocked) if blocked.key.as_deref() == Some("b"))
    );
    assert!(!client.is_locked("a").unwrap(), "half of it is nothing");
    let waiting = {
        let client = client.clone();
        std::thread::spawn(move || {
            client.lock_all(["a", "b"]).wait_forever().owner("both").acquire().unwrap().into_token().unwrap()
        })
    };
    while client.lock_info("b").unwrap().queue_total == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!client.is_locked("a").unwrap(), "who waits for two holds neither");
    other.release().unwrap();
    let token = waiting.join().unwrap();
    client.fence(token).set("a", &1).unwrap();
    client.fence(token).set("b", &1).unwrap();
    client.fence(token).release().unwrap();
}

#[test]
fn an_upgrade_waits_for_other_readers_and_changes_the_token_and_two_upgrades_are_a_deadlock() {
    let server = server();
    let client = Client::connect(server.address).unwrap();
    let reader = |owner: &str| client.lock("map").shared().owner(owner).acquire().unwrap();
    let (mut one, mut two) = (reader("r1"), reader("r2"));
    let first = one.token().unwrap();
    assert!(matches!(one.convert(Mode::Exclusive).apply(), Err(Error::NotGranted(_))));
    let short = one.convert(Mode::Exclusive).wait(Duration::from_millis(50)).apply();
    assert!(matches!(short, Err(Error::NotGranted(blocked)) if blocked.reason == Reason::Timeout));
    assert_eq!(one.token().unwrap(), first, "as it was");
    let upgrade = std::thread::spawn(move || {
        let converted = one.convert(Mode::Exclusive).wait_forever().apply().unwrap();
        one.set("map", &2).unwrap();
        (one, converted)
    });
    while client.lock_info("map").unwrap().queue_total == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let error = two.convert(Mode::Exclusive).wait_forever().apply().unwrap_err();
    assert!(matches!(&error, Error::Deadlock { cycle, cycle_total: 2 } if cycle[0].owner == "r2"), "{error}");
    assert_eq!(two.state(), GrantState::Safe, "the refusal took nothing");
    two.release().unwrap();
    let (mut one, converted) = upgrade.join().unwrap();
    assert!(converted.token > first && one.token().unwrap() == converted.token);
    assert!(
        matches!(client.fence(first).set("map", &3), Err(Error::Refused { kind, .. }) if kind == "not_holder")
    );
    let weaker = one.convert(Mode::Shared).apply().unwrap();
    assert_eq!(weaker.token, converted.token, "a downgrade keeps it");
    reader("r3").release().unwrap();
    one.release().unwrap();
    assert!(!client.is_locked("map").unwrap());
}

#[test]
fn over_a_line_that_loses_and_doubles_upgrades_count_right_and_leave_nothing() {
    let server = server();
    let threads: Vec<_> = (0..3)
        .map(|number| {
            let line = BadLine::to(server.address);
            std::thread::spawn(move || {
                let line = line;
                let builder = Client::builder().name(format!("c{number}")).deadline(Duration::from_secs(30));
                let client = builder.connect(line.address).unwrap();
                let mut counted = 0;
                while counted < 5 {
                    let mut guard = client.lock("n").shared().wait_forever().acquire().unwrap();
                    match guard.convert(Mode::Exclusive).wait_forever().apply() {
                        Ok(_) => {
                            let seen: u64 = client.get_as("n").unwrap().unwrap_or(0);
                            guard.set_own(&(seen + 1)).unwrap();
                            counted += 1;
                        }
                        // Another reader upgrades too: one of the two has to let go.
                        Err(Error::Deadlock { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    guard.release().unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let client = Client::connect(server.address).unwrap();
    assert_eq!(client.get_as::<u64>("n").unwrap(), Some(15));
    assert!(!client.is_locked("n").unwrap());
}

#[test]
fn a_watch_over_a_bad_line_and_kills_of_the_server_tells_each_version_once_and_in_order() {
    let mut server = server();
    let line = BadLine::to(server.address);
    let lazy =
        |address| Client::builder().deadline(Duration::from_secs(30)).lazy(true).connect(address).unwrap();
    let watching = lazy(line.address);
    let mut watch = watching.watch("k/");
    let begun = watch.begin().unwrap();
    let writing = lazy(server.address);
    let (tell, told) = mpsc::channel();
    let writer = std::thread::spawn(move || {
        (0..150).for_each(|number| {
            tell.send(writing.set(&format!("k/{}", number % 3), &number).unwrap()).unwrap()
        });
    });
    let (mut written, mut seen) = (Vec::new(), Vec::new());
    for round in 0..150 {
        written.push(told.recv().unwrap());
        if round % 50 == 30 {
            server.restart().unwrap();
        }
    }
    writer.join().unwrap();
    for event in watch.by_ref().take(100) {
        seen.push(event.unwrap());
    }
    // Another program goes on where this one was, in the middle of a page.
    let place = watch.place().unwrap();
    drop((watch, watching));
    let mut other = lazy(line.address).watch("k/").resume(&place).unwrap();
    seen.extend(other.by_ref().take(50).map(|event| event.unwrap()));
    assert!(seen.iter().all(|event| event.event == "key_set" && event.op > begun));
    assert_eq!(seen.iter().map(|event| event.version.unwrap()).collect::<Vec<_>>(), written);
    assert_eq!(other.next_within(Duration::from_millis(50)).unwrap(), None);
}

#[test]
fn a_watch_says_what_it_cannot_tell_and_ends() {
    let server = server();
    let client = Client::connect(server.address).unwrap();
    let version = client.set("k", &1).unwrap();
    let mut watch = client.watch("").after(version + 1_000_000);
    let error = watch.next().unwrap().unwrap_err();
    assert!(matches!(error, Error::Compacted { oldest: 0, .. }), "{error}");
    assert_eq!(error.kind(), Some(Kind::Compacted));
    assert!(watch.next().is_none() && matches!(watch.next_within(Duration::ZERO), Err(Error::Closed)));
    assert!(matches!(client.watch("").resume("+x"), Err(Error::Invalid(_))));
    // A place inside what one command did: one event of two was given.
    let (mut several, guard) = (client.watch("a").after(version), client.lock("a1").acquire().unwrap());
    assert_eq!(several.next().unwrap().unwrap().event, "lock_granted");
    let place = several.place().unwrap();
    guard.release().unwrap();
    let events: Vec<_> =
        client.watch("a").resume(&place).unwrap().take(1).map(|event| event.unwrap().event).collect();
    assert_eq!(events, ["lock_released"]);
    // A watch that waits ends with its client.
    let closing = client.clone();
    let waiting = std::thread::spawn(move || client.watch("nothing").next().unwrap().unwrap_err());
    std::thread::sleep(Duration::from_millis(100));
    closing.close().unwrap();
    assert!(matches!(waiting.join().unwrap(), Error::Closed | Error::Unreachable { .. }));
}

#[test]
fn a_grant_goes_from_guard_to_guard_and_the_first_one_hears_why_it_is_lost() {
    let server = server();
    let (alice, bob) = (Client::connect(server.address).unwrap(), Client::connect(server.address).unwrap());
    let first = alice.lock("a").label("first").acquire().unwrap();
    let offers = bob.offers().unwrap();
    let token = first.token().unwrap();
    assert_eq!(bob.take_over(token).take().unwrap_err().kind(), Some(Kind::NotHolder));
    first.offer_to(bob.session().unwrap().client).unwrap();
    let offer = offers.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!((offer.token, offer.label.as_str(), offer.keys[0].key.as_str()), (token, "first", "a"));
    let second = bob.take_over(offer.token).label("second").take().unwrap();
    assert!(second.token().unwrap() > token);
    let lost = first.wait_lost(Duration::from_secs(10)).unwrap();
    assert_eq!(lost.cause, LostCause::Told { reason: "taken_over".into(), note: String::new() });
    assert!(matches!(first.set_own(&1), Err(Error::Lost(_))));
    second.set_own(&2).unwrap();
    // Who knows the session of the holder needs no offer.
    let held = second.token().unwrap();
    let third = alice.take_over(held).holder(bob.session().unwrap().session).take().unwrap();
    assert!(matches!(second.release(), Err(Error::Lost(_))));
    third.release().unwrap();
}

#[test]
fn a_holder_is_asked_to_let_go_and_then_broken_and_told_the_reason() {
    let server = server();
    let (holder, operator) =
        (Client::connect(server.address).unwrap(), Client::connect(server.address).unwrap());
    let guard = holder.lock("a").acquire().unwrap();
    let token = guard.token().unwrap();
    let (told, heard) = mpsc::channel();
    guard.on_asked(move |asking| told.send(asking.reason.clone()).unwrap());
    operator.ask_release(token, "when you can", None).unwrap();
    let asked = guard.asked();
    let asking = asked.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!((asking.reason.as_str(), asking.left()), ("when you can", None));
    assert_eq!(asking.client, operator.session().unwrap().client);
    operator.ask_release(token, "now", Some(Duration::from_millis(1_500))).unwrap();
    let asking = asked.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(asking.left().unwrap() <= Duration::from_millis(1_500));
    assert_eq!([heard.recv().unwrap(), heard.recv().unwrap()], ["when you can", "now"]);
    let lost = guard.wait_lost(Duration::from_secs(10)).unwrap();
    assert_eq!(lost.cause, LostCause::Told { reason: "broken".into(), note: "now".into() });
    assert!(asked.recv().is_err(), "nothing is asked of what is lost");

    let guard = holder.lock("a").acquire().unwrap();
    operator.break_lock(guard.token().unwrap(), "stuck").unwrap();
    let lost = guard.wait_lost(Duration::from_secs(10)).unwrap();
    assert_eq!(lost.cause, LostCause::Told { reason: "broken".into(), note: "stuck".into() });
    assert_eq!(operator.break_lock(token, "again").unwrap_err().kind(), Some(Kind::NotFound));
}

#[test]
fn a_guard_is_lost_at_its_longest_tenure_and_the_next_one_waits_for_the_lock_delay() {
    let server = server();
    let client = Client::connect(server.address).unwrap();
    let begun = std::time::Instant::now();
    let guard = client
        .lock("a")
        .max_hold(Duration::from_millis(500))
        .lock_delay(Duration::from_secs(1))
        .lease(Duration::from_secs(60))
        .acquire()
        .unwrap();
    assert!(guard.remaining() <= Duration::from_millis(400));
    let lost = guard.wait_lost(Duration::from_secs(10)).unwrap();
    assert_eq!(lost.cause, LostCause::HeldTooLong);
    let Ok(Attempt::Refused(blocked)) = client.lock("a").owner("other").try_acquire() else {
        panic!("granted in its lock-delay")
    };
    assert!(matches!(blocked.reason, tenure::outcome::Reason::LockDelay | tenure::outcome::Reason::Held));
    client.lock("a").owner("other").wait(Duration::from_secs(10)).acquire().unwrap().release().unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(1_400), "{:?}", begun.elapsed());
}

/// A load of some clients behind one socket.
fn load(server: SocketAddr, workload: Workload, clients: usize, time: Duration) -> Report {
    let (sockets, patience) = (Sockets::One, Duration::from_secs(60));
    let warm_up = Duration::ZERO;
    Plan { clients, sockets, time, warm_up, patience, ..Plan::new(server, workload) }.run().unwrap()
}

#[test]
fn a_load_over_a_line_that_loses_and_doubles_sends_again_and_does_nothing_twice() {
    let server = server();
    let line = BadLine::to(server.address);
    // Each append is looked at: were a copy taken for another request, the next one would stand elsewhere.
    // (One client: several can fall into step with the line, which loses every other datagram.)
    let report = load(line.address, Workload::Append, 1, Duration::from_secs(5));
    assert!(report.operations > 0 && report.errors.is_empty(), "{report:?}");
    assert!(report.resent > 0 && report.doubled > 0, "{report:?}");
}

#[test]
fn a_load_proves_its_address() {
    let Some(ip) = outside_address() else {
        let _ = writeln!(std::io::stderr(), "skipped: this machine has no other address");
        return;
    };
    let server = Server::start(ip).unwrap();
    let report = load(server.address, Workload::Mixed, 3, Duration::from_millis(200));
    assert!(report.operations > 0 && report.errors.is_empty(), "{report:?}");
}
