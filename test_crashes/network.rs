//! A bad network: datagrams lost, doubled, late and out of order. First one fault at a time, sent by hand so that it
//! happens for certain; then all of them together, by a seed, through the proxy.

use crate::harness::{
    Direction, Faults, Life, Oracle, PATIENCE, Proxy, Raw, Server, Setup, Worker, has_failpoints, let_pass,
    mix, poll_until, seed, seed_or,
};
use rustix::process::Signal;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn a_late_copy_of_an_acquire_that_was_released_makes_no_ghost_holder() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let sent = raw.prepare("acquire_lock", json!({"key": "f"}));
    let told = raw.finish(&sent);
    raw.release(told.token().unwrap());
    assert_eq!(raw.finish(&sent), told, "the copy has another outcome");
    assert!(!raw.is_locked("f"));
    let mut other = server.client(60_000);
    other.acquire("f");
}

#[test]
fn a_late_copy_of_a_release_does_not_touch_the_next_tenure() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let first = raw.acquire("f");
    let sent = raw.prepare("release_lock", json!({"token": first}));
    let told = raw.finish(&sent);
    let second = raw.acquire("f");
    assert!(second > first);
    assert_eq!(raw.finish(&sent), told);
    // Nor does a new request with the old token.
    raw.refused("release_lock", json!({"token": first}), "not_holder");
    assert_eq!(raw.held(), 1);
    raw.append("f", second, "mine\n");
}

#[test]
fn a_late_copy_of_an_append_is_not_applied_again_in_this_tenure_or_the_next() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let first = raw.acquire("f");
    let sent = raw.prepare("append_file", json!({"file": "f", "token": first, "data": "once\n"}));
    let told = raw.finish(&sent);
    assert_eq!(raw.finish(&sent), told);
    raw.release(first);
    assert_eq!(raw.finish(&sent), told);
    raw.acquire("f");
    assert_eq!(raw.finish(&sent), told);
    assert_eq!(raw.read("f"), "once\n");
}

#[test]
fn a_release_that_overtakes_an_append_leaves_the_append_refused() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let token = raw.acquire("f");
    let append = raw.prepare("append_file", json!({"file": "f", "token": token, "data": "late\n"}));
    let release = raw.prepare("release_lock", json!({"token": token}));
    raw.finish(&release).ok();
    raw.finish(&append).refused("not_holder");
    assert_eq!(raw.read("f"), "");
}

#[test]
fn an_append_that_overtakes_its_acquire_is_refused_and_not_kept_for_later() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let acquire = raw.prepare("acquire_lock", json!({"key": "f"}));
    let append = raw.prepare("append_file", json!({"file": "f", "token": 1, "data": "early\n"}));
    raw.finish(&append).refused("not_holder");
    let token = raw.finish(&acquire).token().unwrap();
    raw.append("f", token, "right\n");
    assert_eq!(raw.read("f"), "right\n");
}

#[test]
fn a_socket_that_the_system_does_not_tell_of_is_looked_into_until_it_does() {
    if !has_failpoints() {
        return;
    }
    let failpoint = Some("server.register=nospace".into());
    let mut server = Server::prepare(Setup { failpoint, disarmed: true, ..Setup::default() });
    server.arm();
    server.must_launch();
    let mut raw = server.client(1_000);
    let _beats = raw.beats(Duration::from_millis(100));
    let token = raw.acquire("f");
    let_pass(1_500);
    raw.append("f", token, "heard\n");
    let said = |what: &str| server.stderr().matches(what).count();
    assert_eq!((said("looks for them each 1ms"), said("of datagrams again")), (1, 0), "{}", server.stderr());
    server.disarm();
    raw.append("f", token, "told\n");
    poll_until("the server to be told again", || (said("of datagrams again") == 1).then_some(()));
    raw.append("f", token, "still\n");
    assert_eq!((raw.read("f"), said("looks for them")), ("heard\ntold\nstill\n".into(), 1));
}

#[test]
fn copies_of_a_request_in_progress_are_executed_once_and_each_gets_the_one_outcome() {
    if !has_failpoints() {
        return;
    }
    let setup = Setup { failpoint: Some("journal.before_sync=sleep:300".into()), ..Setup::default() };
    let server = Server::with(setup);
    let mut raw = server.client(60_000);
    let token = raw.acquire("f");
    let sent = raw.prepare("append_file", json!({"file": "f", "token": token, "data": "once\n"}));
    for _ in 0..20 {
        raw.send(&sent);
        std::thread::sleep(Duration::from_millis(20));
    }
    let told = raw.finish(&sent);
    assert_eq!(told.ok(), &json!({"offset": 0, "length": 5}));
    while let Some(again) = raw.listen(&sent, Duration::from_millis(400)) {
        assert_eq!(again, told);
    }
    assert_eq!(raw.read("f"), "once\n");
}

#[test]
fn a_request_that_waited_in_the_socket_of_a_stopped_server_is_executed_once() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let token = raw.acquire("f");
    server.signal(Signal::STOP);
    let sent = raw.prepare("append_file", json!({"file": "f", "token": token, "data": "once\n"}));
    for _ in 0..10 {
        raw.send(&sent);
    }
    assert_eq!(raw.listen(&sent, Duration::from_millis(200)), None);
    server.signal(Signal::CONT);
    assert_eq!(raw.finish(&sent).ok(), &json!({"offset": 0, "length": 5}));
    assert_eq!(raw.read("f"), "once\n");
}

#[test]
fn a_lock_survives_half_of_the_heartbeats_and_is_freed_when_all_are_lost() {
    let server = Server::start();
    let proxy = Proxy::start(server.address(), seed());
    let mut holder = Raw::open(proxy.address(), 1_500);
    let token = holder.acquire("f");
    let mut other = server.client(60_000);
    let wait = other.stand_in_line("f");
    let _beats = holder.beats(Duration::from_millis(40));
    proxy.set(Direction::ToServer, Faults { loss: 50, ..Faults::default() });
    // Two leases with every second heartbeat lost.
    let_pass(3_000);
    assert_eq!(other.holder("f"), Some(holder.client));
    holder.append("f", token, "kept\n");
    proxy.cut(Direction::ToServer);
    let cut = Instant::now();
    let next = other.granted(&wait);
    println!("served {:?} after the cut", cut.elapsed());
    proxy.set(Direction::ToServer, Faults::default());
    holder.refused("append_file", json!({"file": "f", "token": token, "data": "late\n"}), "no_session");
    other.append("f", next, "next\n");
    assert_eq!(other.read("f"), "kept\nnext\n");
    proxy.assert_fired();
}

#[test]
fn a_client_whose_requests_arrive_lives_and_one_that_only_hears_does_not() {
    let server = Server::start();
    let (deaf, mute) = (Proxy::start(server.address(), 1), Proxy::start(server.address(), 2));
    let mut hears_nothing = Raw::open(deaf.address(), 800);
    let mut says_nothing = Raw::open(mute.address(), 800);
    hears_nothing.acquire("deaf");
    says_nothing.acquire("mute");
    let mut other = server.client(60_000);
    let _beats =
        (hears_nothing.beats(Duration::from_millis(50)), says_nothing.beats(Duration::from_millis(50)));
    deaf.cut(Direction::ToClient);
    mute.cut(Direction::ToServer);
    poll_until("the mute one's lock to be free", || (!other.is_locked("mute")).then_some(()));
    let_pass(1_600);
    // The server cannot know that it is deaf; the client counts from its last proof and gives up by itself.
    assert_eq!(other.holder("deaf"), Some(hears_nothing.client));
    deaf.assert_fired();
    mute.assert_fired();
}

#[test]
fn an_append_whose_replies_were_all_lost_ends_exactly_once_when_it_is_repeated_later() {
    let server = Server::start();
    let proxy = Proxy::start(server.address(), 1);
    let mut raw = Raw::open(proxy.address(), 60_000);
    let token = raw.acquire("f");
    proxy.cut(Direction::ToClient);
    let sent = raw.prepare("append_file", json!({"file": "f", "token": token, "data": "once\n"}));
    for _ in 0..5 {
        raw.send(&sent);
        assert_eq!(raw.listen(&sent, Duration::from_millis(60)), None);
    }
    let mut other = server.client(60_000);
    poll_until("the append to be applied", || (other.read("f") == "once\n").then_some(()));
    proxy.set(Direction::ToClient, Faults::default());
    assert_eq!(raw.finish(&sent).ok(), &json!({"offset": 0, "length": 5}));
    assert_eq!(raw.read("f"), "once\n");
    proxy.assert_fired();
}

#[test]
fn each_reply_carries_the_id_of_its_request_however_they_arrive() {
    let server = Server::start();
    let proxy = Proxy::start(server.address(), seed());
    let faults = Faults { reorder: 40, delay_ms: (0, 20), ..Faults::default() };
    proxy.set(Direction::ToServer, faults);
    proxy.set(Direction::ToClient, faults);
    let mut raw = Raw::open(proxy.address(), 60_000);
    let sent: Vec<_> = (0..60)
        .map(|number| raw.start("set", json!({"key": format!("k{number}"), "value": number})))
        .collect();
    let versions: Vec<u64> =
        sent.iter().map(|sent| raw.finish(sent).ok()["version"].as_u64().unwrap()).collect();
    for (number, version) in versions.iter().enumerate() {
        let read = raw.ok("get", json!({"key": format!("k{number}")}));
        assert_eq!((read["value"].as_u64(), read["version"].as_u64()), (Some(number as u64), Some(*version)));
    }
    proxy.assert_fired();
}

#[test]
fn a_session_goes_on_from_another_address_with_everything_it_had() {
    let server = Server::start();
    let mut first = server.client(60_000);
    let mut holder = server.client(60_000);
    let taken = holder.acquire("wanted");
    let token = first.acquire("f");
    let sent = first.prepare("append_file", json!({"file": "f", "token": token, "data": "once\n"}));
    let told = first.finish(&sent);
    let wait = first.stand_in_line("wanted");
    let mut moved = first.moved();
    assert_eq!(moved.finish(&sent), told, "the copy from the new address is not known");
    assert_eq!(moved.held(), 1);
    holder.release(taken);
    // Nobody asks: the reply to the wait finds the new address.
    assert!(moved.listen(&wait, PATIENCE).unwrap().token().unwrap() > taken);
    moved.append("f", token, "twice\n");
    assert_eq!(moved.read("f"), "once\ntwice\n");
}

#[test]
fn the_reply_to_a_wait_is_sent_again_until_it_has_arrived() {
    let server = Server::start();
    let proxy = Proxy::start(server.address(), 1);
    let mut first = server.client(60_000);
    let mut second = Raw::open(proxy.address(), 60_000);
    let token = first.acquire("f");
    let wait = second.stand_in_line("f");
    proxy.cut(Direction::ToClient);
    first.release(token);
    poll_until("the hand-over", || (first.holder("f") == Some(second.client)).then_some(()));
    // The first copies are lost.
    let_pass(300);
    proxy.set(Direction::ToClient, Faults::default());
    let told = second.listen(&wait, PATIENCE).expect("the reply comes again, without being asked for");
    assert!(told.token().unwrap() > token);
    proxy.assert_fired();
}

#[test]
fn two_clients_of_the_same_name_are_two_sessions_and_share_nothing() {
    let server = Server::start();
    let (mut first, mut second) = (server.client(60_000), server.client(60_000));
    assert_ne!((first.client, &first.session), (second.client, &second.session));
    let token = first.acquire("f");
    assert_eq!(second.call("acquire_lock", json!({"key": "f"})).token(), None);
    second.refused("append_file", json!({"file": "f", "token": token, "data": "x"}), "not_holder");
    second.refused("release_lock", json!({"token": token}), "not_holder");
    // The same id in both sessions is two requests.
    let (one, two) = (
        first.prepare_as(500, "set", json!({"key": "a", "value": 1})),
        second.prepare_as(500, "set", json!({"key": "b", "value": 2})),
    );
    first.finish(&one).ok();
    second.finish(&two).ok();
    assert_eq!((first.value("a"), first.value("b")), (json!(1), json!(2)));
}

#[test]
fn the_same_nonce_opens_the_same_session_however_often_it_arrives() {
    let mut server = Server::start();
    let mut raw = Raw::new(server.address());
    let params = json!({"nonce": format!("{:032x}", 42), "ttl_ms": 60_000});
    let first = raw.ok("open_session", params.clone());
    assert_eq!(raw.ok("open_session", params.clone()), first);
    server.kill_and_restart();
    assert_eq!(raw.ok("open_session", params), first);
    assert_eq!(raw.ok("list_sessions", json!({}))["items"].as_array().unwrap().len(), 1);
}

#[test]
fn through_loss_doubling_delay_and_reordering_every_append_stands_exactly_once() {
    let faults = Faults { loss: 20, double: 10, reorder: 15, delay_ms: (2, 25) };
    soak(&Soak { faults, sections: 6, ..Soak::of_five(seed()) });
}

/// A third of loss, and each datagram 100 to 200 ms on its way.
const SLOW_AND_LOSSY: Faults = Faults { loss: 30, double: 10, reorder: 10, delay_ms: (100, 200) };

#[test]
fn through_a_third_of_loss_and_a_slow_network_every_append_stands_exactly_once() {
    for seed in [1, 2] {
        soak(&Soak { faults: SLOW_AND_LOSSY, sections: 1, ..Soak::of_five(seed_or(seed)) });
    }
}

#[test]
fn through_a_third_of_loss_fifty_clients_end_in_bounded_time_with_every_append_exactly_once() {
    let soak_of_fifty =
        Soak { faults: SLOW_AND_LOSSY, sections: 1, clients: 50, locks: 25, ..Soak::of_five(seed_or(3)) };
    soak(&soak_of_fifty);
}

#[test]
fn through_a_bad_network_and_kills_of_the_server_every_append_stands_exactly_once() {
    let faults = Faults { loss: 15, double: 15, reorder: 15, delay_ms: (0, 15) };
    soak(&Soak { faults, sections: 6, kills: &[400, 900, 1_500], ..Soak::of_five(seed()) });
}

/// Clients that work through a bad network.
struct Soak {
    seed: u64,
    clients: u64,
    /// How many locks they share, each with its file and its counted key.
    locks: u64,
    /// How many sections each client writes.
    sections: u32,
    faults: Faults,
    /// When the server is killed, in milliseconds.
    kills: &'static [u64],
}

impl Soak {
    fn of_five(seed: u64) -> Soak {
        Soak { seed, clients: 5, locks: 2, sections: 1, faults: Faults::default(), kills: &[] }
    }
}

/// How long a soak may take at all. Far more than any needs: what it finds is a client that is never served.
const BOUND: Duration = Duration::from_secs(300);

fn soak(soak: &Soak) {
    let begin = Instant::now();
    let mut server = Server::with(Setup { log: "info", ..Setup::default() });
    let proxy = Proxy::start(server.address(), soak.seed);
    proxy.set(Direction::ToServer, soak.faults);
    proxy.set(Direction::ToClient, soak.faults);
    let oracle = Arc::new(Oracle::default());
    let locks: Vec<String> = (0..soak.locks).map(|number| format!("f{number}")).collect();
    let locks: Vec<&str> = locks.iter().map(String::as_str).collect();
    std::thread::scope(|scope| {
        for number in 1..=soak.clients {
            let mut worker = Worker::new(proxy.address(), &oracle, &locks, mix(&[soak.seed, number]));
            scope.spawn(move || (0..soak.sections).for_each(|_| worker.section(Life::Long)));
        }
        let start = Instant::now();
        for (number, at) in soak.kills.iter().enumerate() {
            std::thread::sleep(Duration::from_millis(*at).saturating_sub(start.elapsed()));
            if number == 1 {
                proxy.change_ports();
            }
            server.kill_and_restart();
        }
    });
    println!("{} clients took {:?}", soak.clients, begin.elapsed());
    assert!(begin.elapsed() < BOUND, "{:?} is no bounded time", begin.elapsed());
    proxy.assert_fired();
    let mut raw = server.client(60_000);
    let files: BTreeMap<String, String> =
        oracle.files().into_iter().map(|file| (file.clone(), raw.read(&file))).collect();
    let keys: BTreeMap<String, u64> = oracle
        .counters()
        .into_iter()
        .map(|key| (key.clone(), raw.value(&key).as_u64().unwrap_or(0)))
        .collect();
    oracle.judge(&files, &keys).assert_clean();
}
