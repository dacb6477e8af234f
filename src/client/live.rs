//! The blocking client on a real socket, against the model server of [`random`](super::random) and against scripts.

use super::random::{Model, TTL_MS};
use super::socket::boot_time;
use super::{Attempt, Client, Error, GrantState, LostCause, Mode};
use crate::datagram;
use crate::identity::SessionId;
use crossbeam_channel::{Receiver, Sender};
use serde_json::{Value, json};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a script answers to a request: any number of messages.
type Script = Box<dyn FnMut(&Value) -> Vec<Value> + Send>;

/// A server on a socket of its own.
struct Fake {
    address: SocketAddr,
    /// While this is set nothing is read as sent or sent: a server that hangs.
    silent: Arc<AtomicBool>,
    model: Arc<Mutex<Model>>,
    seen: Receiver<Value>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    /// The model, which a script can answer in place of.
    fn new(mut script: Script) -> Fake {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let address = socket.local_addr().unwrap();
        let (silent, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let model = Arc::new(Mutex::new(Model::default()));
        let (seen_sender, seen): (Sender<Value>, _) = crossbeam_channel::unbounded();
        let shared = (Arc::clone(&silent), Arc::clone(&stop), Arc::clone(&model));
        let thread = std::thread::spawn(move || {
            let (silent, stop, model) = shared;
            let mut addresses: Vec<SocketAddr> = Vec::new();
            let mut buffer = vec![0; 70_000];
            while !stop.load(Ordering::Relaxed) {
                let mut model = match socket.recv_from(&mut buffer) {
                    Ok(_) if silent.load(Ordering::Relaxed) => continue,
                    Ok((length, from)) => {
                        let number = addresses.iter().position(|known| *known == from).unwrap_or_else(|| {
                            addresses.push(from);
                            addresses.len() - 1
                        });
                        let message = datagram::open(&buffer[..length]).unwrap().message;
                        let request: Value = serde_json::from_slice(message).unwrap();
                        let answers = script(&request);
                        let mut model = model.lock().unwrap();
                        model.now = boot_time().as_micros() / 1_000;
                        if answers.is_empty() {
                            model.handle(number, &request, false);
                        }
                        model.out.extend(answers.into_iter().map(|answer| (number, answer)));
                        let _ = seen_sender.send(request);
                        model
                    }
                    Err(_) => model.lock().unwrap(),
                };
                model.now = boot_time().as_micros() / 1_000;
                model.tick();
                for (to, value) in std::mem::take(&mut model.out) {
                    if silent.load(Ordering::Relaxed) {
                        continue;
                    }
                    let mut bytes = serde_json::to_vec(&value).unwrap();
                    datagram::seal(&mut bytes);
                    let _ = socket.send_to(&bytes, addresses[to]);
                }
            }
        });
        Fake { address, silent, model, seen, stop, thread: Some(thread) }
    }

    fn model() -> Fake {
        Fake::new(Box::new(canned))
    }

    fn client(&self) -> Client {
        Client::builder().name("test").deadline(Duration::from_secs(5)).connect(self.address).unwrap()
    }

    /// Waits for a request of a method.
    fn wait_for(&self, method: &str) -> Value {
        loop {
            let request = self.seen.recv_timeout(Duration::from_secs(5)).expect("no such request came");
            if request["method"] == method {
                return request;
            }
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the fake is that of its test.
            if thread.join().is_err() && !std::thread::panicking() {
                panic!("the fake server panicked");
            }
        }
    }
}

fn result(request: &Value, result: Value) -> Vec<Value> {
    vec![json!({"jsonrpc": "2.0", "id": request["id"], "result": result})]
}

/// What the model does not know.
fn canned(request: &Value) -> Vec<Value> {
    match request["method"].as_str().unwrap() {
        "ping" => result(request, json!({"server": "tenure", "server_version": "0"})),
        "close_session" => result(request, json!({})),
        "get" => result(request, json!({"found": true, "value": null, "version": 3})),
        "renew_lease" => result(request, json!({"lease_left_ms": request["params"]["lease_ms"]})),
        "append_file" => result(request, json!({"offset": 0, "length": 3})),
        _ => Vec::new(),
    }
}

#[test]
fn a_guard_gives_its_token_to_what_is_written_and_releases_at_the_end() {
    let fake = Fake::model();
    let client = fake.client();
    let guard = client.lock("a").acquire().unwrap();
    let token = guard.token().unwrap();
    assert_eq!((guard.keys(), guard.state()), (["a".to_owned()].as_slice(), GrantState::Safe));
    assert!(guard.remaining() > Duration::from_millis(TTL_MS / 2));
    guard.set("a", &[1, 2]).unwrap();
    assert_eq!(fake.wait_for("set")["params"]["token"], json!(token));
    assert_eq!(guard.append(b"\xff").unwrap().length, 3);
    assert_eq!(fake.wait_for("append_file")["params"]["data_b64"], json!("/w=="));
    assert_eq!(guard.get("a").unwrap().unwrap().value.get(), "null");
    let lost = guard.lost();
    guard.release().unwrap();
    assert!(fake.model.lock().unwrap().locks.is_empty());
    assert!(lost.recv_timeout(Duration::from_secs(5)).is_err(), "a release is no loss");
    let next = client.lock("a").acquire().unwrap();
    assert!(next.token().unwrap() > token);
    drop(next);
    assert!(fake.model.lock().unwrap().locks.is_empty());
    drop(client);
    fake.wait_for("close_session");
}

#[test]
fn a_held_lock_is_refused_with_a_reason_and_waited_for_on_request() {
    let fake = Fake::model();
    let (one, two) = (fake.client(), fake.client());
    let guard = one.lock("a").acquire().unwrap();
    assert!(
        matches!(two.lock("a").try_acquire().unwrap(), Attempt::Refused(blocked) if blocked.position.is_none())
    );
    assert!(matches!(two.lock("a").acquire(), Err(Error::NotGranted(_))));
    let waiting =
        std::thread::spawn(move || two.lock("a").wait_forever().acquire().unwrap().token().unwrap());
    let first = guard.token().unwrap();
    loop {
        let request = fake.wait_for("acquire_lock");
        if request["params"].get("wait_ms").is_some() {
            break;
        }
    }
    guard.release().unwrap();
    assert!(waiting.join().unwrap() > first);
}

#[test]
fn threads_that_share_a_client_exclude_each_other() {
    let fake = Fake::model();
    let client = fake.client();
    let counter = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (client, counter) = (client.clone(), Arc::clone(&counter));
            std::thread::spawn(move || {
                for _ in 0..25 {
                    let add = || {
                        let seen = counter.load(Ordering::Relaxed);
                        std::thread::yield_now();
                        counter.store(seen + 1, Ordering::Relaxed);
                    };
                    client.lock("a").wait_forever().with(|_| add()).unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(counter.load(Ordering::Relaxed), 100);
}

#[test]
fn a_server_that_hangs_costs_the_grant_and_the_guard_says_so_before_it_writes() {
    let fake = Fake::model();
    let client = fake.client();
    let guard = client.lock("a").acquire().unwrap();
    let (changes, changed) = crossbeam_channel::unbounded();
    guard.on_change(move |state| changes.send(state).unwrap());
    let begun = Instant::now();
    fake.silent.store(true, Ordering::Relaxed);
    let lost = guard.wait_lost(Duration::from_secs(10)).unwrap();
    assert!(begun.elapsed() < Duration::from_millis(TTL_MS));
    assert_eq!(lost.cause, LostCause::Unproven);
    assert_eq!((guard.state(), guard.remaining()), (GrantState::Lost, Duration::ZERO));
    assert!(matches!(guard.token(), Err(Error::Lost(_))));
    assert!(matches!(guard.set("a", &1), Err(Error::Lost(_))));
    let told = [changed.recv_timeout(Duration::from_secs(1)), changed.recv_timeout(Duration::from_secs(1))];
    assert_eq!(told, [Ok(GrantState::AtRisk), Ok(GrantState::Lost)]);
    assert_eq!(guard.lost().try_recv(), Ok(lost), "who asks later is told too");
    fake.silent.store(false, Ordering::Relaxed);
    fake.wait_for("abandon");
    assert!(matches!(guard.release(), Err(Error::Lost(_))));
}

#[test]
fn a_drop_without_a_server_is_short() {
    let fake = Fake::model();
    let client = fake.client();
    let guard = client.lock("a").acquire().unwrap();
    fake.silent.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    drop(guard);
    drop(client);
    assert!(begun.elapsed() < Duration::from_millis(1_500), "{:?}", begun.elapsed());
}

#[test]
fn a_grant_taken_away_by_an_operator_is_lost_within_a_heartbeat() {
    let fake = Fake::model();
    let client = fake.client();
    let guard = client.lock("a").acquire().unwrap();
    fake.model.lock().unwrap().take_away("a");
    let lost = guard.wait_lost(Duration::from_secs(5)).unwrap();
    assert_eq!(lost.cause, LostCause::Told { reason: "broken".into(), note: String::new() });
}

#[test]
fn after_the_end_of_the_session_a_call_opens_a_new_one_and_grants_do_not_carry_over() {
    let fake = Fake::model();
    let client = fake.client();
    let before = client.session().unwrap();
    let guard = client.lock("a").acquire().unwrap();
    fake.model.lock().unwrap().sessions[0].deadline = 0;
    let lost = guard.wait_lost(Duration::from_secs(5)).unwrap();
    assert_eq!(lost.cause, LostCause::SessionEnded);
    assert!(matches!(guard.release(), Err(Error::Lost(_))));
    client.set("k", &1).unwrap();
    assert_ne!(client.session().unwrap().session, before.session);

    let client = Client::builder().reopen(false).connect(fake.address).unwrap();
    let guard = client.lock("b").acquire().unwrap();
    for session in &mut fake.model.lock().unwrap().sessions {
        session.deadline = 0;
    }
    guard.wait_lost(Duration::from_secs(5)).unwrap();
    assert!(matches!(client.set("k", &2), Err(Error::SessionEnded { .. })));
}

#[test]
fn a_detached_session_goes_on_and_can_be_kept_alive_by_its_id() {
    let fake = Fake::new(Box::new(|request| match request["params"]["session"].as_str() {
        Some(session)
            if session == SessionId(1_000).to_string()
                && request["id"].as_str().is_some_and(|id| id.starts_with('r')) =>
        {
            result(request, json!({"op": 1, "held": 1}))
        }
        _ => canned(request),
    }));
    let client = fake.client();
    let token = client.lock("a").acquire().unwrap().into_token().unwrap();
    let left = client.detach().unwrap();
    assert!(matches!(client.ping(), Err(Error::Closed)));
    drop(client);
    {
        let model = fake.model.lock().unwrap();
        assert_eq!(model.locks["a"].0, token);
        assert!(!model.sessions[0].ended);
    }
    let other = fake.client();
    assert_eq!(other.heartbeat_for(left.session).unwrap().held, 1);
}

#[test]
fn nobody_at_the_address_is_said_in_time_with_what_to_check() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let builder = || Client::builder().deadline(Duration::from_millis(300));
    let error = builder().connect(address).unwrap_err();
    assert!(matches!(&error, Error::Unreachable { server, .. } if *server == address), "{error}");
    assert!(error.to_string().contains("does the server run"), "{error}");
    assert!(!error.may_have_changed());
    let lazy = builder().lazy(true).connect(address).unwrap();
    assert!(matches!(lazy.ping(), Err(Error::Unreachable { .. })));
    assert!(matches!(lazy.set("k", &1), Err(Error::Unreachable { .. })), "it was never sent");
    // Nobody listens at all: the kernel's own answer to that changes nothing.
    drop(silent);
    assert!(matches!(lazy.ping(), Err(Error::Unreachable { .. })));
}

#[test]
fn an_unanswered_write_has_an_unknown_outcome() {
    let fake = Fake::model();
    let client = Client::builder().deadline(Duration::from_millis(300)).connect(fake.address).unwrap();
    fake.silent.store(true, Ordering::Relaxed);
    let error = client.set("k", &1).unwrap_err();
    assert!(matches!(&error, Error::OutcomeUnknown { method, .. } if method == "set"), "{error}");
    assert!(error.may_have_changed());
}

#[test]
fn two_guards_never_share_a_grant() {
    let fake = Fake::new(Box::new(|request| match request["method"].as_str() {
        Some("acquire_lock") => {
            let keys = json!([{"key": "a", "mode": "exclusive"}]);
            result(request, json!({"granted": true, "token": 5, "op": 5, "keys": keys, "again": true}))
        }
        Some("release_lock") => result(request, json!({"released": true, "op": 6})),
        _ => canned(request),
    }));
    let error = fake.client().lock("a").acquire().unwrap_err();
    assert!(matches!(error, Error::AlreadyHeld { tokens, wait: None } if tokens == [5]));
}

#[test]
fn lists_are_fetched_page_by_page() {
    let fake = Fake::new(Box::new(|request| match request["params"]["cursor"].as_str() {
        None if request["method"] == "prefix" => {
            let items =
                json!([{"key": "k1", "value": 1, "version": 1}, {"key": "k2", "value": [2], "version": 2}]);
            result(request, json!({"items": items, "next": "c", "op": 9}))
        }
        Some("c") => result(request, json!({"items": [{"key": "k3", "value": "x", "version": 3}], "op": 9})),
        _ => canned(request),
    }));
    let client = fake.client();
    let keys: Vec<String> = client.prefix("k").map(|item| item.unwrap().key).collect();
    assert_eq!(keys, ["k1", "k2", "k3"]);
}

#[test]
fn a_refusal_keeps_its_kind_its_words_and_its_data() {
    let fake = Fake::new(Box::new(|request| match request["method"].as_str() {
        Some("set") => {
            let data = json!({"kind": "version_mismatch", "final": true, "version": 7});
            vec![
                json!({"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32009, "message": "it is 7", "data": data}}),
            ]
        }
        _ => canned(request),
    }));
    let error = fake.client().set_if("k", &1, 6).unwrap_err();
    assert_eq!(error.kind(), Some(crate::kind::Kind::VersionMismatch));
    assert!(matches!(error, Error::Refused { data, .. } if data.version == Some(7)));
}

#[test]
fn who_waits_hears_of_its_place_in_line() {
    let fake = Fake::new(Box::new(|request| match request["method"].as_str() {
        Some("acquire_lock") => {
            let params = json!({"client": 0, "id": request["id"], "position": 2, "reason": "held", "holders": [], "holders_total": 1});
            vec![json!({"jsonrpc": "2.0", "method": "pending", "params": params})]
        }
        Some("cancel_wait") => result(request, json!({"cancelled": true})),
        _ => canned(request),
    }));
    let client = Client::builder().deadline(Duration::from_millis(200)).connect(fake.address).unwrap();
    let (sender, places) = crossbeam_channel::unbounded();
    let attempt = client.lock("a").wait(Duration::from_millis(100)).progress(sender).try_acquire().unwrap();
    assert!(matches!(attempt, Attempt::Refused(_)));
    assert_eq!(places.try_recv().unwrap().position, 2);
}

#[test]
fn a_release_of_what_is_gone_is_a_loss() {
    let fake = Fake::model();
    let guard = fake.client().lock("a").acquire().unwrap();
    fake.model.lock().unwrap().locks.clear();
    assert!(matches!(guard.release(), Err(Error::Lost(lost)) if lost.cause == LostCause::Gone));
}

#[test]
fn clients_and_guards_may_go_from_thread_to_thread() {
    fn free<T: Send + Sync>() {}
    free::<Client>();
    free::<super::Guard>();
    free::<super::Fence>();
    free::<Error>();
}

#[test]
fn several_locks_go_out_in_one_request_each_with_its_mode() {
    let fake = Fake::new(Box::new(|request| match request["method"].as_str() {
        Some("acquire_lock") => {
            let keys = json!([{"key": "a", "mode": "shared"}, {"key": "b", "mode": "slot", "slots": 3, "weight": 2}]);
            result(request, json!({"granted": true, "token": 5, "op": 5, "keys": keys}))
        }
        Some("release_lock") => result(request, json!({"released": true, "op": 6})),
        _ => canned(request),
    }));
    let client = fake.client();
    let guard = client.lock_all([("a", Mode::Shared), ("b", Mode::Slot { slots: 3, weight: 2 })]);
    let guard = guard.acquire().unwrap();
    let asked = fake.wait_for("acquire_lock");
    assert_eq!(
        asked["params"]["keys"],
        json!([{"key": "a", "mode": "shared"}, {"key": "b", "mode": "slot", "slots": 3, "weight": 2}])
    );
    assert_eq!(guard.keys(), ["a", "b"]);
    let shown: Vec<_> = guard.locks().iter().map(|lock| format!("{} {}", lock.key, lock.mode)).collect();
    assert_eq!(shown, ["a shared", "b 2 slots of 3"]);
    guard.release().unwrap();
    drop(client.lock_all(["a", "b"]).slots(4).weight(2).acquire());
    let asked = fake.wait_for("acquire_lock");
    let params = &asked["params"];
    assert_eq!(
        (&params["keys"], &params["mode"], &params["slots"], &params["weight"]),
        (&json!(["a", "b"]), &json!("slot"), &json!(4), &json!(2))
    );
}

#[test]
fn a_guard_carries_the_token_that_a_conversion_gave_it() {
    let fake = Fake::model();
    let client = fake.client();
    let mut guard = client.lock("a").acquire().unwrap();
    let (lost, first) = (guard.lost(), guard.token().unwrap());
    let mut tokens = vec![first];
    for _ in 0..4 {
        let converted = guard.convert(Mode::Exclusive).apply().unwrap();
        assert_eq!(guard.token().unwrap(), converted.token);
        tokens.push(converted.token);
    }
    assert!(tokens.is_sorted() && tokens[4] > first, "{tokens:?}");
    guard.set("k", &1).unwrap();
    assert_eq!(fake.wait_for("set")["params"]["token"], json!(tokens[4]));
    guard.release().unwrap();
    assert!(fake.model.lock().unwrap().locks.is_empty());
    assert!(lost.recv_timeout(Duration::from_secs(5)).is_err(), "none of it is a loss");
}

#[test]
fn a_loss_after_a_conversion_reaches_whoever_watched_before_it() {
    let fake = Fake::model();
    let client = fake.client();
    let mut guard = client.lock("a").acquire().unwrap();
    let lost = guard.lost();
    let token = guard.convert(Mode::Exclusive).apply().unwrap().token;
    fake.model.lock().unwrap().take_away("a");
    assert_eq!(lost.recv_timeout(Duration::from_secs(5)).unwrap().token, token);
    assert!(matches!(guard.convert(Mode::Shared).apply(), Err(Error::Lost(_))));
}

#[test]
fn a_deadlock_is_told_with_its_cycle_in_words() {
    let fake = Fake::new(Box::new(|request| match request["method"].as_str() {
        Some("acquire_lock") => {
            let cycle = json!([{"client": 1, "name": "w", "owner": "t1", "key": "b", "token": 7},
                               {"client": 2, "label": "nightly", "key": "a", "token": 6}]);
            let data = json!({"kind": "deadlock", "final": true, "cycle": cycle, "cycle_total": 2});
            vec![
                json!({"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32008, "message": "no", "data": data}}),
            ]
        }
        _ => canned(request),
    }));
    let error = fake.client().lock("b").wait_forever().acquire().unwrap_err();
    assert_eq!(error.kind(), Some(crate::kind::Kind::Deadlock));
    assert!(matches!(&error, Error::Deadlock { cycle, cycle_total: 2 } if cycle[1].client == 2));
    assert_eq!(
        error.to_string(),
        "waiting would be a deadlock, nothing was changed: client 1 \"w\" owner \"t1\" waits for \"b\" held under \
         token 7 by client 2 label \"nightly\", who waits for \"a\" held under token 6 by the first"
    );
}

#[test]
fn who_is_in_the_way_is_told_in_a_sentence() {
    let fake = Fake::new(Box::new(|request| match request["method"].as_str() {
        Some("acquire_lock") => {
            let holder = json!({"client": 2, "name": "ci", "mode": "shared", "token": 4, "held_ms": 30});
            let ahead = json!({"client": 3, "mode": "exclusive", "waited_ms": 20});
            result(
                request,
                json!({"granted": false, "reason": "held", "key": "b", "position": 2, "queue_total": 1,
                       "holders": [holder], "holders_total": 3, "ahead": ahead, "estimate_ms": 500}),
            )
        }
        _ => canned(request),
    }));
    let error = fake.client().lock_all(["a", "b"]).acquire().unwrap_err();
    assert_eq!(
        error.to_string(),
        "not granted: \"b\" is held by client 2 \"ci\" (shared, token 4) for 30 ms and 2 more; behind client 3 \
         (exclusive), who has waited for 20 ms; position 2 beside 1 others, in about 500 ms"
    );
}
