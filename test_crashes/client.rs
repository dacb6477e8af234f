//! Clients that die: while holding, while waiting, after an append. To the server a dead client is a silent one, so its
//! lease must free what it held, not sooner than promised, and nobody else may pay for it.

use crate::harness::{ClientProcess, PATIENCE, Raw, Server, let_pass, poll_until};
use serde_json::json;
use std::time::{Duration, Instant};

const TTL: u64 = 500;

#[test]
fn a_lock_whose_holder_was_killed_passes_on_after_its_lease_and_not_before() {
    let server = Server::start();
    let mut second = server.client(60_000);
    let mut first = ClientProcess::start(server.address(), TTL, false);
    let before = Instant::now();
    let token = first.acquire("file_0");
    first.kill();
    let wait = second.stand_in_line("file_0");
    let next = second.granted(&wait);
    assert!(
        before.elapsed() >= Duration::from_millis(TTL),
        "the lease was cut short: {:?}",
        before.elapsed()
    );
    assert!(next > token);
    assert_eq!(second.read("file_0"), "", "nobody has appended");
    second.append("file_0", next, "second\n");
    assert_eq!(second.read("file_0"), "second\n");
}

#[test]
fn after_the_death_of_the_only_client_the_state_shows_no_holder() {
    let server = Server::start();
    let mut holder = ClientProcess::start(server.address(), TTL, true);
    holder.acquire("a");
    let mut other = Raw::new(server.address());
    assert_eq!(other.holder("a"), Some(holder.client));
    holder.kill();
    poll_until("the lock to be free", || (!other.is_locked("a")).then_some(()));
    assert_eq!(other.holder("a"), None);
    let mut next = server.client(60_000);
    next.acquire("a");
}

#[test]
fn what_a_killed_holder_had_appended_stands_exactly_once() {
    let server = Server::start();
    let mut second = server.client(60_000);
    let mut first = ClientProcess::start(server.address(), TTL, true);
    let token = first.acquire("f");
    first.call("append_file", json!({"file": "f", "token": token, "data": "A\n"})).ok();
    let wait = second.stand_in_line("f");
    first.kill();
    let next = second.granted(&wait);
    assert_eq!(second.append("f", next, "B\n"), (2, 4));
    assert_eq!(second.read("f"), "A\nB\n");
}

#[test]
fn a_waiter_that_was_killed_is_passed_over() {
    let server = Server::start();
    let mut first = server.client(60_000);
    let mut third = server.client(60_000);
    let token = first.acquire("f");
    let mut second = ClientProcess::start(server.address(), TTL, false);
    second.begin("acquire_lock", json!({"key": "f", "wait_ms": null}));
    poll_until("the second to stand in line", || (first.queue("f") == [second.client]).then_some(()));
    let wait = third.stand_in_line("f");
    assert_eq!(first.queue("f"), [second.client, third.client]);
    second.kill();
    first.release(token);
    let next = third.granted(&wait);
    assert!(next > token);
    third.append("f", next, "C\n");
    assert_eq!(third.read("f"), "C\n");
}

#[test]
fn a_waiter_that_was_killed_leaves_the_line_when_its_lease_runs_out() {
    let server = Server::start();
    let mut first = server.client(60_000);
    first.acquire("f");
    let mut second = ClientProcess::start(server.address(), TTL, true);
    second.begin("acquire_lock", json!({"key": "f", "wait_ms": null}));
    poll_until("the second to stand in line", || (first.queue("f") == [second.client]).then_some(()));
    second.kill();
    poll_until("the line to be empty", || first.queue("f").is_empty().then_some(()));
    assert_eq!(first.held(), 1);
}

#[test]
fn waiters_are_served_in_the_order_of_their_arrival_when_the_holder_dies() {
    let server = Server::start();
    let mut first = ClientProcess::start(server.address(), TTL, true);
    first.acquire("f");
    let mut waiting: Vec<_> = (0..4)
        .map(|_| {
            let mut raw = server.client(60_000);
            let wait = raw.stand_in_line("f");
            (raw, wait)
        })
        .collect();
    first.kill();
    let mut last = 0;
    for (number, (raw, wait)) in waiting.iter_mut().enumerate() {
        let token = raw.granted(wait);
        assert!(token > last);
        last = token;
        raw.append("f", token, &format!("{number}\n"));
        raw.release(token);
    }
    assert_eq!(waiting[0].0.read("f"), "0\n1\n2\n3\n");
}

#[test]
fn a_client_that_starts_again_is_a_new_one_and_its_old_grant_runs_out() {
    let server = Server::start();
    let mut before = ClientProcess::start(server.address(), TTL, true);
    let token = before.acquire("f");
    before.kill();
    // The same name, the same machine, another session.
    let mut after = server.client(60_000);
    assert_ne!(after.client, before.client);
    after.refused("append_file", json!({"file": "f", "token": token, "data": "x"}), "not_holder");
    after.refused("release_lock", json!({"token": token}), "not_holder");
    let wait = after.prepare("acquire_lock", json!({"key": "f", "wait_ms": null}));
    assert!(after.granted(&wait) > token);
    assert_eq!(after.read("f"), "");
}

#[test]
fn a_session_that_never_says_anything_lives_for_its_whole_ttl() {
    let server = Server::start();
    let mut watcher = server.client(60_000);
    let before = Instant::now();
    let silent = server.client(700);
    poll_until("the end of the silent session", || {
        let sessions = watcher.ok("list_sessions", json!({}));
        let there = sessions["items"].as_array().unwrap().iter().any(|item| item["client"] == silent.client);
        (!there).then_some(())
    });
    let lived = before.elapsed();
    assert!(lived >= Duration::from_millis(700), "it lived for {lived:?}");
}

#[test]
fn a_holder_without_heartbeats_loses_its_lock_and_one_with_them_keeps_it() {
    let server = Server::start();
    let mut with = server.client(1_000);
    let mut without = server.client(300);
    let kept = with.acquire("with");
    let _beats = with.beats(Duration::from_millis(50));
    let gone = without.acquire("without");
    let mut watcher = server.client(60_000);
    poll_until("the silent one's lock to be free", || (!watcher.is_locked("without")).then_some(()));
    // Three leases of the one that sends heartbeats.
    let_pass(3_000);
    assert_eq!(watcher.holder("with"), Some(with.client));
    with.append("with", kept, "still here\n");
    // The silent one is told so, whatever it tries.
    without.refused("append_file", json!({"file": "without", "token": gone, "data": "x"}), "no_session");
    without.refused("heartbeat", json!({}), "no_session");
    assert_eq!(watcher.read("without"), "");
}

#[test]
fn a_grants_own_lease_ends_a_stuck_worker_behind_live_heartbeats() {
    let server = Server::start();
    let mut stuck = server.client(60_000);
    let mut next = server.client(60_000);
    let before = Instant::now();
    let token = stuck.ok("acquire_lock", json!({"key": "f", "lease_ms": 400}))["token"].clone();
    let wait = next.stand_in_line("f");
    let _beats = stuck.beats(Duration::from_millis(30));
    let later = next.granted(&wait);
    assert!(before.elapsed() >= Duration::from_millis(400));
    stuck.refused("append_file", json!({"file": "f", "token": token, "data": "x"}), "not_holder");
    let beat = poll_until("the loss to be told", || {
        let beat = stuck.ok("heartbeat", json!({"after": 0}));
        beat.get("lost").is_some().then_some(beat)
    });
    assert_eq!((&beat["lost"][0]["token"], &beat["held"]), (&token, &json!(0)));
    next.append("f", later, "y");
    assert_eq!(next.read("f"), "y");
}

#[test]
fn a_lease_that_is_renewed_in_time_goes_on() {
    let server = Server::start();
    let mut worker = server.client(60_000);
    let token = worker.ok("acquire_lock", json!({"key": "f", "lease_ms": 2_000}))["token"].as_u64().unwrap();
    for _ in 0..8 {
        let_pass(500);
        let left = worker.ok("renew_lease", json!({"token": token, "lease_ms": 2_000}));
        assert_eq!(left["lease_left_ms"], 2_000);
    }
    worker.append("f", token, "x");
    worker.release(token);
}

#[test]
fn a_heartbeat_that_comes_after_one_and_a_half_leases_revives_nothing() {
    let server = Server::start();
    let mut first = server.client(TTL);
    let mut second = server.client(60_000);
    let token = first.acquire("f");
    // Written in time, on the way for one and a half leases.
    let late = first.prepare("heartbeat", json!({}));
    let wait = second.stand_in_line("f");
    let_pass(TTL * 3 / 2);
    let next = second.granted(&wait);
    first.send(&late);
    first.listen(&late, PATIENCE).unwrap().refused("no_session");
    assert_eq!(second.holder("f"), Some(second.client), "the late heartbeat changed the holder");
    first.refused("append_file", json!({"file": "f", "token": token, "data": "x"}), "no_session");
    second.append("f", next, "y");
    assert_eq!(second.read("f"), "y");
}

#[test]
fn an_expired_holder_cannot_write_in_the_gap_before_anybody_cleans_up() {
    let server = Server::start();
    let mut holder = server.client(60_000);
    // Each round aims at the moment at which the lease ends; whichever side of it the write falls on, the answer and
    // what stands in the file must agree.
    let mut written = String::new();
    for round in 0..20 {
        let file = "f";
        let params = json!({"key": file, "lease_ms": 100, "wait_ms": null});
        let before = Instant::now();
        let token = holder.ok("acquire_lock", params)["token"].as_u64().unwrap();
        let got = Instant::now();
        let_pass(95 + round % 10);
        let line = format!("{round}\n");
        let sent_at = Instant::now();
        let answer = holder.call("append_file", json!({"file": file, "token": token, "data": line}));
        let arrived = Instant::now();
        match answer.kind() {
            None => {
                written.push_str(&line);
                // Sent after the lease had surely ended: the grant is older than `got`, stalls of the server aside.
                let age = sent_at - got;
                assert!(
                    age < Duration::from_millis(600),
                    "written {age:?} after the grant of a lease of 100 ms"
                );
            }
            Some(kind) => {
                assert_eq!(kind, "not_holder");
                let age = arrived - before;
                assert!(
                    age >= Duration::from_millis(100),
                    "refused {age:?} after the request for a lease of 100 ms"
                );
            }
        }
        holder.call("release_lock", json!({"token": token}));
    }
    assert_eq!(holder.read("f"), written);
}

#[test]
fn a_session_that_is_closed_frees_everything_at_once() {
    let server = Server::start();
    let mut first = server.client(60_000);
    let mut second = server.client(60_000);
    let before = first.acquire("a");
    first.acquire("b");
    let wait = second.stand_in_line("a");
    first.ok("close_session", json!({}));
    assert!(second.granted(&wait) > before);
    second.acquire("b");
    first.refused("append_file", json!({"file": "a", "token": before, "data": "x"}), "no_session");
    assert_eq!(first.ok("close_session", json!({})), json!({}), "closing twice is closing");
}
