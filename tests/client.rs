//! The client library against a live server: over a bad line, over restarts, and from an address that has to be proven.

#[path = "protocol/server.rs"]
#[expect(
    dead_code,
    reason = "shared with the test of the protocol, which talks to the server without the library"
)]
mod server;

use server::{BadLine, Server, outside_address};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc;
use std::time::Duration;
use tenure::client::{Attempt, Client, Error, GrantState, LostCause};
use tenure::kind::Kind;

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
