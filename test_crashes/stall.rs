//! Stalls: SIGSTOP of the server for longer than the leases, SIGSTOP of a client past its lease.

use crate::harness::{ClientProcess, PATIENCE, Raw, Server, Setup, has_failpoints, let_pass};
use rustix::process::Signal;
use serde_json::json;
use std::time::{Duration, Instant};

#[test]
fn a_server_that_was_stopped_for_longer_than_the_leases_expires_none_of_those_who_kept_sending() {
    let mut server = Server::start();
    let mut holders: Vec<_> = (0..10)
        .map(|number| {
            let mut raw = server.client(1_000);
            let token = raw.acquire(&format!("lock_{number}"));
            let beats = raw.beats(Duration::from_millis(100));
            (raw, token, beats)
        })
        .collect();
    for round in 0..2 {
        server.signal(Signal::STOP);
        // The stall: their heartbeats wait in the server's socket meanwhile.
        let_pass(2_500);
        server.signal(Signal::CONT);
        for (number, (raw, token, _)) in holders.iter_mut().enumerate() {
            assert_eq!(
                raw.held(),
                1,
                "round {round}: lock_{number} was taken from a client that sent heartbeats"
            );
            raw.append(&format!("lock_{number}"), *token, &format!("{round}\n"));
        }
    }
    assert!(server.fallen().is_none());
}

#[test]
fn a_sign_of_life_at_the_end_of_a_full_socket_is_heard_before_anything_expires() {
    let server = Server::start();
    let mut holder = server.client(1_000);
    let token = holder.acquire("f");
    let crowd = Raw::new(server.address());
    // More than the loop reads in a turn, if the system lets the socket buffer that much.
    let room = !server.stderr().contains("the socket buffers");
    let ahead = if room { 2_000 } else { 60 };
    server.signal(Signal::STOP);
    for number in 0..ahead {
        crowd.send_bytes(format!(r#"{{"jsonrpc":"2.0","id":{number},"method":"ping"}}"#).as_bytes());
    }
    let sent = holder.start("heartbeat", json!({}));
    let_pass(2_500);
    server.signal(Signal::CONT);
    let heard = holder.listen(&sent, PATIENCE).expect("the heartbeat is answered");
    assert_eq!(heard.ok()["held"], 1);
    holder.append("f", token, "alive\n");
}

#[test]
fn the_first_heartbeat_of_all_that_waited_in_the_socket_of_a_stopped_server_is_in_time() {
    let server = Server::start();
    for _ in 0..3 {
        // Nothing was heard of it since: the wake-up that the server asks for is the very end of its lease.
        let mut raw = server.client(400);
        server.signal(Signal::STOP);
        let waiting = raw.start("heartbeat", json!({}));
        let_pass(1_000);
        server.signal(Signal::CONT);
        raw.finish(&waiting).ok();
        raw.ok("close_session", json!({}));
    }
}

#[test]
fn the_time_of_a_stall_is_added_to_the_lease_of_every_grant() {
    let server = Server::start();
    // Somebody whose lease is short, so that the server asks to be woken soon: that is what tells a stall from a sleep.
    let brisk = server.client(400);
    let _beats = brisk.beats(Duration::from_millis(40));
    let mut holder = server.client(60_000);
    let token = holder.ok("acquire_lock", json!({"key": "f", "lease_ms": 2_500}))["token"].as_u64().unwrap();
    server.signal(Signal::STOP);
    let_pass(3_500);
    server.signal(Signal::CONT);
    // One turn of the server, in which it could judge.
    let_pass(200);
    holder.append("f", token, "alive\n");
    let left =
        holder.ok("get_lock_info", json!({"key": "f"}))["holders"][0]["lease_left_ms"].as_u64().unwrap();
    assert!(left > 0 && left <= 2_500, "{left} ms are left");
    assert_eq!(holder.ok("release_lock", json!({"token": token}))["released"], true);
}

#[test]
fn a_disk_that_is_slower_than_the_leases_expires_nobody() {
    if !has_failpoints() {
        return;
    }
    let slow = Setup { failpoint: Some("journal.before_sync=sleep:1500".into()), ..Setup::default() };
    let server = Server::with(slow);
    let mut raw = server.client(1_000);
    let _beats = raw.beats(Duration::from_millis(100));
    let token = raw.acquire("f");
    for number in 0..3 {
        raw.append("f", token, &format!("{number}\n"));
        assert_eq!(raw.held(), 1);
    }
    assert_eq!(raw.read("f"), "0\n1\n2\n");
}

#[test]
fn a_heartbeat_behind_the_end_of_its_session_is_not_answered_and_changes_nothing() {
    if !has_failpoints() {
        return;
    }
    const TTL: u64 = 1_000;
    let failpoint = Some("journal.before_sync=sleep:1500".into());
    let server = Server::with(Setup { failpoint, disarmed: true, ..Setup::default() });
    let mut second = server.client(60_000);
    let mut holder = server.client(TTL);
    holder.acquire("f");
    let wait = second.stand_in_line("f");
    server.arm();
    // Its end is decided after one TTL and committed 1.5 s or more later; heartbeats fall between, if nothing was late.
    let_pass(TTL * 3 / 2);
    let (begun, mut last_answered) = (Instant::now(), None);
    while second.listen(&wait, Duration::from_millis(1)).is_none() {
        assert!(begun.elapsed() < PATIENCE, "the lock never goes");
        let sent_at = Instant::now();
        if begun.elapsed() < Duration::from_millis(2_500) {
            let beat = holder.start("heartbeat", json!({}));
            let answer = holder.listen(&beat, Duration::from_millis(50));
            if answer.is_some_and(|answer| answer.kind().is_none()) {
                last_answered = Some(sent_at);
            }
        }
    }
    // One that was answered came in time, and then the session had its whole TTL from there.
    let lived = last_answered.map(|sent_at: Instant| sent_at.elapsed());
    assert!(
        lived.is_none_or(|lived| lived >= Duration::from_millis(TTL)),
        "the lock went {lived:?} after a heartbeat that was answered"
    );
    holder.refused("heartbeat", json!({}), "no_session");
}

#[test]
fn a_client_that_was_stopped_past_its_lease_is_refused_everything_when_it_wakes() {
    let server = Server::start();
    let mut first = ClientProcess::start(server.address(), 500, true);
    let mut second = server.client(60_000);
    let token = first.acquire("f");
    first.call("append_file", json!({"file": "f", "token": token, "data": "first\n"})).ok();
    let wait = second.stand_in_line("f");
    first.signal(Signal::STOP);
    let next = second.granted(&wait);
    second.append("f", next, "second\n");
    first.signal(Signal::CONT);
    for (method, params) in [
        ("append_file", json!({"file": "f", "token": token, "data": "stale\n"})),
        ("release_lock", json!({"token": token})),
        ("heartbeat", json!({})),
        ("acquire_lock", json!({"key": "f", "wait_ms": null})),
    ] {
        first.call(method, params).refused("no_session");
        assert_eq!(
            second.holder("f"),
            Some(second.client),
            "{method} of the client that was stopped did something"
        );
    }
    assert_eq!(second.read("f"), "first\nsecond\n");
    second.append("f", next, "third\n");
    assert_eq!(second.read("f"), "first\nsecond\nthird\n");
}

#[test]
fn a_client_that_was_stopped_for_less_than_its_lease_has_lost_nothing() {
    let server = Server::start();
    let mut first = ClientProcess::start(server.address(), 20_000, true);
    let mut second = server.client(60_000);
    let token = first.acquire("f");
    let wait = second.stand_in_line("f");
    first.signal(Signal::STOP);
    let_pass(700);
    first.signal(Signal::CONT);
    first.call("append_file", json!({"file": "f", "token": token, "data": "first\n"})).ok();
    first.call("release_lock", json!({"token": token})).ok();
    let next = second.granted(&wait);
    second.append("f", next, "second\n");
    assert_eq!(second.read("f"), "first\nsecond\n");
}
