//! Bad input: each is refused as documented, and the server goes on with its work. Half of the tests are about datagrams,
//! half about requests that are well formed and wrong.

use crate::harness::{Raw, Server, Setup, crc32c, mix, poll_until, seed};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

/// The server still serves: state that was there is there, and new work is done.
fn assert_serves(raw: &mut Raw) {
    let before = raw.value("pulse").as_u64().unwrap_or(0);
    raw.set("pulse", json!(before + 1));
    assert_eq!(raw.value("pulse"), json!(before + 1));
}

fn drops(raw: &mut Raw) -> u64 {
    raw.ok("status", json!({}))["drops"]
        .as_object()
        .unwrap()
        .values()
        .map(|count| count.as_u64().unwrap())
        .sum()
}

/// Waits until everything that was sent before has been read: the server reads in the order of arrival.
fn settle(raw: &mut Raw) {
    raw.ok("ping", json!({}));
}

#[test]
fn datagrams_that_are_no_requests_are_dropped_and_counted() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let before = drops(&mut raw);
    let lone = Raw::new(server.address());
    let junk: [&[u8]; 10] = [
        b"",
        b"{",
        b"1234567",
        b"\x00\x00\x00\x00\x00\x00\x00\x00",
        b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe",
        b"hello, server",
        b"GET / HTTP/1.1\r\n\r\n",
        b"             ",
        br#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n00000000",
    ];
    for bytes in junk {
        lone.send_bytes(bytes);
    }
    settle(&mut raw);
    let mut lone = lone;
    assert_eq!(lone.anything(Duration::from_millis(200)), None, "junk was answered");
    let counted = drops(&mut raw) - before;
    assert_eq!(counted, junk.len() as u64, "each is counted once");
    assert_serves(&mut raw);
}

#[test]
fn random_datagrams_do_nothing_but_count() {
    let server = Server::with(Setup { log: "warn", ..Setup::default() });
    let mut raw = server.client(60_000);
    let lone = Raw::new(server.address());
    let mut rng = fastrand::Rng::with_seed(seed());
    for round in 0..4_000 {
        let mut bytes = vec![0; rng.usize(0..200)];
        rng.fill(&mut bytes);
        if round % 4 == 0 && !bytes.is_empty() {
            bytes[0] = b'{';
        }
        lone.send_bytes(&bytes);
        if round % 64 == 0 {
            settle(&mut raw);
        }
    }
    assert_serves(&mut raw);
    let said = server.stderr().lines().count();
    assert!(said < 400, "{said} lines of log for 4,000 datagrams of noise");
}

#[test]
fn a_good_request_cut_at_every_byte_or_with_any_bit_flipped_does_no_harm() {
    let server = Server::with(Setup { log: "warn", ..Setup::default() });
    let mut raw = server.client(60_000);
    let token = raw.acquire("f");
    let sent = raw.prepare("append_file", json!({"file": "f", "token": token, "data": "exact\n"}));
    let mut lone = Raw::new(server.address());
    for cut in 0..sent.bytes.len() {
        // Without its last byte the request still says the same if only the trailer is hurt; the trailer tells.
        lone.send_bytes(&sent.bytes[..cut]);
        if cut % 32 == 0 {
            settle(&mut raw);
        }
    }
    for bit in 0..sent.bytes.len() * 8 {
        let mut damaged = sent.bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        lone.send_bytes(&damaged);
        if bit % 64 == 0 {
            settle(&mut raw);
        }
    }
    settle(&mut raw);
    while lone.datagram(Duration::from_millis(100)).is_some() {}
    // A cut that took the whole trailer leaves a good request, and so does a flip of the case of a hex digit: once.
    let content = raw.read("f");
    assert!(["", "exact\n"].contains(&content.as_str()), "{content:?}");
    assert_eq!(raw.finish(&sent).ok(), &json!({"offset": 0, "length": 6}));
    assert_eq!(raw.read("f"), "exact\n");
}

#[test]
fn the_largest_datagram_is_read_whole_or_refused_and_never_cut() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    // 65,507 bytes of payload is what UDP over IPv4 takes.
    let room = 65_507 - raw.prepare("set", json!({"key": "k", "value": ""})).bytes.len() - 8;
    for length in [100, 40_000, 48 * 1024 - 2, 48 * 1024, room] {
        let value = "v".repeat(length);
        let answer = raw.call("set", json!({"key": "k", "value": value}));
        match answer.kind() {
            None => assert_eq!(raw.value("k"), json!(value)),
            Some(kind) => {
                assert!(length > 48 * 1024 - 2, "{length} bytes were refused");
                assert!(["too_large", "limit"].contains(&kind), "{}", answer.0);
            }
        }
    }
    assert_serves(&mut raw);
}

#[test]
fn values_and_appends_at_their_limit_pass_and_one_byte_more_is_refused() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let limits = raw.ok("status", json!({}))["limits"].clone();
    let most = limits["append_bytes"].as_u64().unwrap() as usize;
    let token = raw.acquire("f");
    assert_eq!(raw.append("f", token, ""), (0, 0));
    assert_eq!(raw.append("f", token, &"x".repeat(most)), (0, most as u64));
    let over = json!({"file": "f", "token": token, "data": "x".repeat(most + 1)});
    let data = raw.call("append_file", over);
    assert!(["too_large", "limit"].contains(&data.kind().unwrap_or("none")), "{}", data.0);
    assert_eq!(raw.read("f").len(), most);
    let most = limits["value_bytes"].as_u64().unwrap() as usize;
    raw.set("k", json!("v".repeat(most - 2)));
    let over = raw.call("set", json!({"key": "k", "value": "v".repeat(most - 1)}));
    assert!(["too_large", "limit"].contains(&over.kind().unwrap_or("none")), "{}", over.0);
    assert_eq!(raw.value("k").as_str().unwrap().len(), most - 2);
}

#[test]
fn bytes_that_are_no_utf8_come_back_as_they_were() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let token = raw.acquire("f");
    // ff 00 0a 25 3a in base64.
    raw.ok("append_file", json!({"file": "f", "token": token, "data_b64": "/wAKJTo="}));
    let page = raw.ok("read_file", json!({"file": "f", "offset": 0}));
    assert_eq!((&page["data_b64"], page.get("data")), (&json!("/wAKJTo="), None));
}

#[test]
fn malformed_requests_are_answered_by_kind_and_the_session_goes_on() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let session = raw.session.clone().unwrap();
    let token = raw.acquire("f");
    let with = |params: &str| format!(r#"{{"session":"{session}"{params}}}"#);
    let deep = format!(r#","key":"k","value":{}{}"#, "[".repeat(20_000), "]".repeat(20_000));
    let cases: Vec<(&str, String, &str)> = vec![
        ("fetch", with(""), "unknown_method"),
        ("get", "{}".into(), "invalid_params"),
        ("get", r#"{"key":"a","colour":1}"#.into(), "invalid_params"),
        ("get", r#"["a"]"#.into(), "invalid_params"),
        ("get", r#"{"key":""}"#.into(), "bad_name"),
        ("get", r#"{"key":"a\u0000b"}"#.into(), "bad_name"),
        ("get", r#"{"key":"a\nb"}"#.into(), "bad_name"),
        ("get", r#"{"key":"\u001b[31m"}"#.into(), "bad_name"),
        ("get", r#"{"key":"\u202eabc"}"#.into(), "bad_name"),
        ("get", format!(r#"{{"key":"{}"}}"#, "x".repeat(257)), "bad_name"),
        ("set", r#"{"key":"k","value":1}"#.into(), "invalid_params"),
        ("set", r#"{"session":"12","key":"k","value":1}"#.into(), "invalid_params"),
        ("set", with(r#","key":"k","value":1,"tokn":7"#), "invalid_params"),
        ("set", with(r#","key":"k","value":1,"token":null"#), "invalid_params"),
        ("set", with(r#","key":"k","value":1,"token":-1"#), "invalid_params"),
        ("set", with(r#","key":"k","value":1,"token":1.5"#), "invalid_params"),
        ("set", with(r#","key":"k","value":1,"token":9007199254740992"#), "invalid_params"),
        ("set", with(r#","key":"k","value":01"#), "parse"),
        ("set", with(&deep), "too_large"),
        ("acquire_lock", with(r#","key":"k","lease_ms":0"#), "invalid_params"),
        ("acquire_lock", with(r#","key":"k","lease_ms":99"#), "invalid_params"),
        ("acquire_lock", with(r#","key":"k","lease_ms":86400001"#), "invalid_params"),
        ("acquire_lock", with(r#","key":"k","lease_ms":18446744073709551615"#), "invalid_params"),
        ("acquire_lock", with(r#","key":"k","wait_ms":99999999999"#), "invalid_params"),
        ("acquire_lock", with(r#","key":"k","mode":"exlusive""#), "invalid_params"),
        ("append_file", with(r#","file":"f","token":1,"data_b64":"%%""#), "invalid_params"),
        ("append_file", with(r#","file":"f","data":"x""#), "invalid_params"),
        ("release_lock", with(r#","token":0"#), "not_holder"),
        ("release_lock", with(r#","token":9007199254740991"#), "not_holder"),
    ];
    for (number, (method, params, kind)) in cases.iter().enumerate() {
        let id = 1_000 + number as u64;
        let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#);
        raw.send_bytes(text.as_bytes());
        let reply = raw
            .anything(Duration::from_secs(20))
            .unwrap_or_else(|| panic!("no answer to {method} {params:.80}"));
        assert_eq!(reply["error"]["data"]["kind"], *kind, "{method} {params:.80}: {reply}");
        assert!(reply["error"]["message"].as_str().is_some_and(|text| text.len() > 10), "{reply}");
    }
    assert_eq!(raw.held(), 1);
    raw.append("f", token, "x");
    assert_serves(&mut raw);
}

#[test]
fn what_is_almost_a_request_is_refused_as_such() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let nested = |open: &str, close: &str| [open.repeat(8_000), close.repeat(8_000)].concat();
    let with = |rest: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"get"{rest}}}"#);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (format!("{}xyz", with("")).into(), "parse"),
        (with("").repeat(2).into(), "parse"),
        (nested("[", "").into(), "parse"),
        (nested("[", "]").into(), "invalid_request"),
        (nested(r#"{"a":"#, "1}").into(), "parse"),
        (with(&format!(r#","params":{}"#, nested("[", "]"))).into(), "invalid_params"),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"get\",\"params\":{\"key\":\"a\xff\"}}".to_vec(),
            "parse",
        ),
        (with(r#","params":{"key":"\ud800"}"#).into(), "invalid_params"),
        (with(r#","params":{"key":"a","key":"b"}"#).into(), "invalid_params"),
        (with(r#","id":2"#).into(), "invalid_request"),
        (br#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#.to_vec(), "invalid_request"),
        (br#"{"jsonrpc":"2.0","method":"ping"}"#.to_vec(), "invalid_request"),
        (b"[]            ".to_vec(), "invalid_request"),
    ];
    for (bytes, kind) in cases {
        raw.send_bytes(&bytes);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        let reply = raw.anything(Duration::from_secs(20)).unwrap_or_else(|| panic!("no answer to {shown}"));
        assert_eq!(reply["error"]["data"]["kind"], kind, "{shown}: {reply}");
    }
    assert_serves(&mut raw);
}

#[test]
fn times_out_of_range_are_refused_and_the_ends_of_the_range_are_taken() {
    let server = Server::start();
    let mut raw = Raw::new(server.address());
    let mut open = |number: u64, ttl: &str| {
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"open_session","params":{{"nonce":"{number:032x}","ttl_ms":{ttl}}}}}"#
        );
        raw.send_bytes(text.as_bytes());
        raw.anything(Duration::from_secs(20)).unwrap_or_else(|| panic!("no answer to {ttl}"))
    };
    let wrong =
        ["0", "1", "99", "86400001", "18446744073709551615", "1e999", "1e3", "-1", "1.5", "null", r#""10s""#];
    for (number, ttl) in (1..).zip(wrong) {
        assert_eq!(open(number, ttl)["error"]["data"]["kind"], "invalid_params", "{ttl}");
    }
    assert_eq!(open(100, "NaN")["error"]["data"]["kind"], "parse");
    for (number, ttl) in (200..).zip(["100", "86400000"]) {
        assert_eq!(open(number, ttl)["result"]["ttl_ms"].to_string(), ttl);
    }
}

#[test]
fn a_batch_is_answered_element_by_element_and_an_error_does_not_stop_the_next() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let session = json!(raw.session);
    let elements = json!([
        {"jsonrpc": "2.0", "id": 801, "method": "set", "params": {"session": session, "key": "a", "value": 1}},
        {"jsonrpc": "2.0", "id": 802, "method": "nonsense"},
        {"jsonrpc": "2.0", "id": 803, "method": "set", "params": {"session": session, "key": "a", "value": 2}},
        {"jsonrpc": "2.0", "id": 804, "method": "get", "params": {"key": "a"}},
    ]);
    raw.send_bytes(elements.to_string().as_bytes());
    let mut replies: Vec<Value> =
        (0..4).map(|_| raw.anything(Duration::from_secs(20)).expect("four replies")).collect();
    replies.sort_by_key(|reply| reply["id"].as_u64());
    assert!(replies[0]["result"]["version"].as_u64() < replies[2]["result"]["version"].as_u64());
    assert_eq!(replies[1]["error"]["data"]["kind"], "unknown_method");
    assert_eq!(replies[3]["id"], 804);
    raw.send_bytes(
        format!("[{}]", vec![r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#; 65].join(",")).as_bytes(),
    );
    assert_eq!(raw.anything(Duration::from_secs(20)).unwrap()["error"]["data"]["kind"], "limit");
    assert_serves(&mut raw);
}

#[test]
fn a_request_repeated_a_thousand_times_has_one_effect_and_one_outcome() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let token = raw.acquire("f");
    let sent = raw.prepare("append_file", json!({"file": "f", "token": token, "data": "once\n"}));
    let told = raw.finish(&sent);
    for _ in 0..1_000 {
        assert_eq!(raw.finish(&sent), told);
    }
    assert_eq!(raw.read("f"), "once\n");
}

#[test]
fn an_id_used_again_for_something_else_is_refused_and_the_first_effect_stands() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let first = raw.prepare_as(50, "set", json!({"key": "k", "value": "first"}));
    let told = raw.finish(&first);
    let other = raw.prepare_as(50, "set", json!({"key": "k", "value": "second"}));
    raw.finish(&other).refused("request_reused");
    let other = raw.prepare_as(50, "delete", json!({"key": "k"}));
    raw.finish(&other).refused("request_reused");
    assert_eq!(raw.value("k"), json!("first"));
    assert_eq!(raw.finish(&first), told);
}

#[test]
fn an_id_below_what_was_acknowledged_is_stale_and_not_executed() {
    let mut server = Server::start();
    let mut raw = server.client(60_000);
    let old = raw.prepare_as(10, "set", json!({"key": "k", "value": "old"}));
    let unseen = raw.prepare_as(11, "set", json!({"key": "k", "value": "unseen"}));
    raw.finish(&old).ok();
    let later = raw.prepare_as(20, "set", json!({"key": "k", "value": "later", "ack": 20}));
    raw.finish(&later).ok();
    for _ in 0..2 {
        raw.finish(&old).refused("stale_request");
        raw.finish(&unseen).refused("stale_request");
        assert_eq!(raw.value("k"), json!("later"));
        server.kill_and_restart();
    }
}

#[test]
fn ids_of_zero_and_of_other_kinds_are_refused_and_the_greatest_is_taken() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let session = raw.session.clone().unwrap();
    for id in ["0", "\"a\"", "-1", "1.5", "null", "18446744073709551615", "9007199254740992", "[1]"] {
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"set","params":{{"session":"{session}","key":"k","value":1}}}}"#
        );
        raw.send_bytes(text.as_bytes());
        let reply = raw.anything(Duration::from_secs(20)).expect("an answer");
        assert_eq!(reply["error"]["data"]["kind"], "invalid_request", "{id}: {reply}");
    }
    assert_eq!(raw.value("k"), json!(null));
    let greatest = raw.prepare_as((1 << 53) - 1, "set", json!({"key": "k", "value": 1}));
    raw.finish(&greatest).ok();
    assert_eq!(raw.value("k"), json!(1));
}

#[test]
fn without_any_ack_the_window_of_kept_replies_slides_and_stays_bounded() {
    let server = Server::with(Setup { durability: "none", log: "warn", ..Setup::default() });
    let mut raw = server.client(60_000);
    let window = raw.ok("status", json!({}))["limits"]["replies"].as_u64().unwrap();
    let first = raw.prepare("set", json!({"key": "k", "value": 0}));
    raw.finish(&first).ok();
    for number in 1..=window + 50 {
        raw.set("k", json!(number));
    }
    raw.finish(&first).refused("stale_request");
    assert_eq!(raw.value("k"), json!(window + 50));
}

#[test]
fn unknown_ended_and_foreign_sessions_are_all_the_same_no_session() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let mut stranger = Raw::new(server.address());
    let unknown = format!("{:032x}", 1);
    for method in ["set", "acquire_lock"] {
        let params = json!({"session": unknown, "key": "k", "value": 1});
        let params = if method == "set" { params } else { json!({"session": unknown, "key": "k"}) };
        stranger.refused(method, params, "no_session");
    }
    stranger.refused("heartbeat", json!({"session": unknown}), "no_session");
    let token = raw.acquire("f");
    raw.ok("close_session", json!({}));
    raw.refused("append_file", json!({"file": "f", "token": token, "data": "x"}), "no_session");
    raw.refused("heartbeat", json!({}), "no_session");
    assert!(!stranger.is_locked("f"));
}

#[test]
fn a_lock_taken_twice_is_the_same_grant_and_a_foreign_token_is_nobodys() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let mut other = server.client(60_000);
    let token = raw.acquire("f");
    let again = raw.ok("acquire_lock", json!({"key": "f"}));
    assert_eq!((&again["token"], &again["again"]), (&json!(token), &json!(true)));
    for wrong in [0, token - 1, token + 1, (1 << 53) - 1] {
        for method in ["release_lock", "abandon"] {
            raw.refused(method, json!({"token": wrong}), "not_holder");
        }
    }
    other.refused("release_lock", json!({"token": token}), "not_holder");
    assert_eq!(raw.held(), 1);
    raw.release(token);
    raw.refused("release_lock", json!({"token": token}), "not_holder");
    assert_eq!(raw.ok("list_locks", json!({}))["items"], json!([]), "a refused release left a trace");
}

#[test]
fn writes_to_what_a_lock_guards_are_refused_to_all_but_its_holder() {
    let server = Server::start();
    let mut holder = server.client(60_000);
    let mut other = server.client(60_000);
    other.set("f", json!("free"));
    let token = holder.acquire("f");
    other.refused("set", json!({"key": "f", "value": 1}), "guarded");
    other.refused("delete", json!({"key": "f"}), "guarded");
    other.refused("set", json!({"key": "f", "value": 1, "token": token}), "not_holder");
    other.refused("append_file", json!({"file": "f", "token": token, "data": "x"}), "not_holder");
    holder.refused("set", json!({"key": "f", "value": 1}), "guarded");
    // A token that is not live counts for nothing, on an unguarded key too.
    holder.refused("set", json!({"key": "unguarded", "value": 1, "token": token + 1}), "not_holder");
    holder.ok("set", json!({"key": "f", "value": "held", "token": token}));
    assert_eq!(other.value("f"), json!("held"));
    holder.release(token);
    holder.refused("set", json!({"key": "f", "value": 1, "token": token}), "not_holder");
    holder.refused("append_file", json!({"file": "f", "token": token, "data": "x"}), "not_holder");
    other.set("f", json!("free again"));
}

#[test]
fn a_compare_and_set_with_another_version_is_refused_with_the_version_that_stands() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    raw.refused("set", json!({"key": "k", "value": 1, "if_version": 5}), "version_mismatch");
    let version = raw.ok("set", json!({"key": "k", "value": 1, "if_version": 0}))["version"].clone();
    let data = raw.refused("set", json!({"key": "k", "value": 2, "if_version": 0}), "version_mismatch");
    assert_eq!(data["version"], version);
    raw.ok("set", json!({"key": "k", "value": 2, "if_version": version}));
}

#[test]
fn a_cancel_and_a_grant_that_race_have_exactly_one_outcome() {
    let server = Server::start();
    let mut holder = server.client(60_000);
    let mut waiter = server.client(60_000);
    let mut seen = BTreeSet::new();
    for round in 0..40 {
        let token = holder.acquire("f");
        let wait = waiter.stand_in_line("f");
        let release = holder.prepare("release_lock", json!({"token": token}));
        let cancel = waiter.prepare("cancel_wait", json!({"wait": wait.id}));
        if round % 2 == 0 {
            holder.send(&release);
            waiter.send(&cancel);
        } else {
            waiter.send(&cancel);
            holder.send(&release);
        }
        holder.finish(&release).ok();
        let told = waiter.finish(&cancel).ok().clone();
        let outcome = waiter.finish(&wait);
        match told["cancelled"] == true {
            true => {
                assert_eq!(outcome.token(), None);
                assert!(!waiter.is_locked("f"));
            }
            false => {
                assert_eq!(outcome.ok()["token"], told["token"], "the cancel and the wait name two grants");
                waiter.release(outcome.token().unwrap());
            }
        }
        seen.insert(told["cancelled"] == true);
    }
    println!("outcomes seen: {seen:?}");
    // Cancelled before it arrived: it is not executed when it does.
    let ahead = waiter.prepare("acquire_lock", json!({"key": "f", "wait_ms": null}));
    assert_eq!(waiter.ok("cancel_wait", json!({"wait": ahead.id}))["cancelled"], true);
    let outcome = waiter.finish(&ahead);
    assert_eq!((outcome.token(), &outcome.ok()["reason"]), (None, &json!("cancelled")));
    assert!(!waiter.is_locked("f"));
}

#[test]
fn file_names_that_lead_elsewhere_are_refused_and_touch_nothing() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let long = "x".repeat(4_096);
    let component = "x".repeat(256);
    for name in
        ["../x", "/etc/x", "a/../../x", "a//b", ".", "..", "a/.", "a/", "", &long, &component, "a/\n", "a/\0"]
    {
        raw.refused("append_file", json!({"file": name, "token": 1, "data": "x"}), "bad_name");
        raw.refused("read_file", json!({"file": name, "offset": 0}), "bad_name");
    }
    let token = raw.acquire("a");
    raw.append("a", token, "a file\n");
    let below = raw.acquire("a/b");
    let answer = raw.call("append_file", json!({"file": "a/b", "token": below, "data": "x"}));
    assert_eq!(answer.kind(), Some("bad_name"), "no name is a directory of another: {}", answer.0);
    assert_eq!(raw.ok("list_files", json!({}))["items"].as_array().unwrap().len(), 1);
    let beside = server.directory().join("x");
    assert!(!beside.exists());
}

#[test]
fn one_session_cannot_have_more_waits_than_the_cap_and_the_error_names_it() {
    let server = Server::with(Setup { durability: "none", log: "warn", ..Setup::default() });
    let mut holder = server.client(60_000);
    let mut raw = server.client(60_000);
    let most = raw.ok("status", json!({}))["limits"]["session_waits"].as_u64().unwrap();
    holder.acquire("f");
    let waits: Vec<_> = (0..most)
        .map(|number| {
            raw.start("acquire_lock", json!({"key": "f", "wait_ms": null, "owner": format!("{number}")}))
        })
        .collect();
    let queue = |raw: &mut Raw| raw.ok("get_lock_info", json!({"key": "f"}))["queue_total"].as_u64().unwrap();
    poll_until("all to stand in line", || {
        // Datagrams may be lost in a full socket: copies are harmless.
        let there = queue(&mut raw);
        if there < most {
            waits.iter().for_each(|wait| raw.send(wait));
        }
        (there == most).then_some(())
    });
    let over = raw.start("acquire_lock", json!({"key": "f", "wait_ms": null, "owner": "one more"}));
    let refused = raw.listen(&over, Duration::from_secs(20)).unwrap();
    let data = refused.refused("limit");
    assert_eq!((data["max"].as_u64(), &data["final"]), (Some(most), &json!(false)));
    assert!(data["limit"].as_str().is_some_and(|name| name.contains("waits")), "{data}");
    assert_eq!(queue(&mut raw), most);
}

#[test]
fn names_no_longer_in_use_leave_no_trace() {
    // What is remembered of names has caps: the history, and how long locks were held lately.
    let args = ["--max-history-events", "8"].map(String::from).to_vec();
    let mut server = Server::with(Setup { durability: "none", log: "warn", args, ..Setup::default() });
    let mut raw = server.client(60_000);
    raw.acks = true;
    for number in 0..300 {
        let key = format!("passing {number}");
        let token = raw.acquire(&key);
        raw.ok("set", json!({"key": key, "value": 1, "token": token}));
        raw.ok("delete", json!({"key": key, "token": token}));
        raw.release(token);
    }
    assert_eq!(raw.ok("list_locks", json!({}))["items"], json!([]));
    assert_eq!(raw.ok("prefix", json!({"prefix": ""}))["items"], json!([]));
    let counts = raw.ok("status", json!({}))["counts"].clone();
    for (name, count) in counts.as_object().unwrap() {
        let about = ["locks", "grants", "keys", "key_bytes", "waits", "leaving"];
        assert!(!about.contains(&name.as_str()) || *count == json!(0), "{name} is {count}: {counts}");
    }
    server.terminate();
    let bytes = std::fs::metadata(server.snapshot()).unwrap().len();
    assert!(bytes < 8_000, "the snapshot of an empty state has {bytes} bytes");
}

#[test]
fn a_flood_of_one_client_does_not_cost_another_its_lease() {
    let server = Server::with(Setup { log: "warn", ..Setup::default() });
    let mut honest = server.client(2_000);
    let token = honest.acquire("f");
    let _beats = honest.beats(Duration::from_millis(100));
    let mut flooder = server.client(60_000);
    let flood: Vec<_> = (0..64)
        .map(|number| {
            flooder.prepare("set", json!({"key": format!("flood {number}"), "value": "x".repeat(500)}))
        })
        .collect();
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        flood.iter().for_each(|sent| flooder.send(sent));
        // As fast as one core gives it, with a breath: the machine has two.
        std::thread::sleep(Duration::from_millis(1));
    }
    honest.append("f", token, "still here\n");
    assert_eq!(honest.held(), 1);
}

/// An address of this machine that is not loopback, if it has one. Nothing is sent.
fn outward_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[test]
fn an_address_that_has_not_shown_that_it_receives_gets_no_work_done_and_little_sent() {
    let Some(outward) = outward_address() else {
        println!("SKIP: this machine has no address but loopback");
        return;
    };
    let mut server = Server::prepare(Setup { args: vec!["--insecure".into()], ..Setup::default() });
    server.launch_at(SocketAddr::new(outward, 0)).unwrap_or_else(|exit| panic!("{}", exit.stderr));
    let from = SocketAddr::new(outward, 0);
    let mut raw = Raw::bound(server.address(), from);
    let session = format!("{:032x}", 1);
    let nonce = format!("{:032x}", 7);
    let requests = [
        r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"method":"status"}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"method":"list_locks","params":{}}"#.to_owned(),
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"open_session","params":{{"nonce":"{nonce}"}}}}"#),
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"heartbeat","params":{{"session":"{session}"}}}}"#),
        r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1}"#.to_owned(),
        r#"{"a":1234}"#.to_owned(),
        "{{{{{{{{".to_owned(),
        format!("[{}]", vec![r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#; 64].join(",")),
        format!("[{}]", vec!["{}"; 64].join(",")),
        format!("[{}]", vec!["1"; 64].join(",")),
    ];
    let mut cookie = None;
    for text in &requests {
        raw.send_bytes(text.as_bytes());
        let mut back = 0;
        while let Some(bytes) = raw.datagram(Duration::from_millis(300)) {
            back += bytes.len();
            let reply: Value = serde_json::from_slice(&bytes).unwrap();
            if let Some(told) = reply.pointer("/error/data/cookie") {
                cookie = Some(told.as_str().unwrap().to_owned());
            }
            if text.contains("status") || text.contains("open_session") {
                assert_eq!(reply["error"]["data"]["kind"], "verify", "{reply}");
            }
        }
        assert!(back <= 3 * text.len(), "{} bytes got {back} back: {text:.80}", text.len());
    }
    let cookie = cookie.expect("one of them was told how to prove its address");
    let opened = raw.ok("open_session", json!({"nonce": nonce, "cookie": cookie}));
    assert_eq!(opened["session"].as_str().unwrap().len(), 32);
    // The proof is of the port as well: from another one it proves nothing.
    let mut other = Raw::bound(server.address(), from);
    let sent = other.start("status", json!({"cookie": cookie}));
    let answer = other.listen(&sent, Duration::from_secs(20)).expect("a long request is answered");
    answer.refused("verify");
    let status = raw.ok("status", json!({"cookie": cookie}));
    assert_eq!(status["counts"]["sessions"], 1, "something unproven was executed");
    // A proof is no password: what is for operators stays with loopback.
    raw.refused("list_sessions", json!({"cookie": cookie}), "forbidden");
}

#[test]
fn binding_to_the_world_needs_a_word_of_consent() {
    let mut server = Server::prepare(Setup::default());
    let exit = server
        .launch_at("0.0.0.0:0".parse().unwrap())
        .expect_err("it serves the world without being told to");
    assert!(!exit.status.success() && exit.stderr.contains("--insecure"), "{}", exit.stderr);
}

#[test]
fn a_checksum_is_mirrored_and_asked_for_nowhere() {
    let server = Server::start();
    let mut raw = Raw::new(server.address());
    let text = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    raw.send_bytes(text.as_bytes());
    let plain = raw.datagram(Duration::from_secs(20)).expect("an answer");
    assert_eq!(plain.last(), Some(&b'}'));
    raw.send_bytes(format!("{text}\n{:08X}", crc32c(text.as_bytes())).as_bytes());
    let sealed = raw.datagram(Duration::from_secs(20)).expect("an answer");
    assert_eq!(sealed[sealed.len() - 9], b'\n');
    // As typed by hand, with a line end.
    raw.send_bytes(format!("{text}\n").as_bytes());
    assert_eq!(raw.datagram(Duration::from_secs(20)).expect("an answer"), plain);
}

#[test]
fn requests_in_any_order_inside_the_window_are_each_executed_once() {
    let server = Server::start();
    let mut raw = server.client(60_000);
    let mut rng = fastrand::Rng::with_seed(seed());
    let token = raw.acquire("f");
    let mut sent: Vec<_> = (0..100)
        .map(|number| {
            raw.prepare("append_file", json!({"file": "f", "token": token, "data": format!("{number:02}\n")}))
        })
        .collect();
    rng.shuffle(&mut sent);
    let told: Vec<_> = sent.iter().map(|sent| raw.finish(sent)).collect();
    rng.shuffle(&mut sent);
    for sent in &sent {
        raw.finish(sent).ok();
    }
    let content = raw.read("f");
    let mut lines: Vec<&str> = content.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!((lines.len(), content.len(), told.len()), (100, 300, 100));
    let offsets: BTreeSet<u64> = told.iter().map(|told| told.ok()["offset"].as_u64().unwrap()).collect();
    assert_eq!(offsets.len(), 100);
}

#[test]
fn two_thousand_requests_in_reverse_order_are_each_executed_at_most_once() {
    let server = Server::with(Setup { durability: "none", log: "warn", ..Setup::default() });
    let mut raw = server.client(60_000);
    let token = raw.acquire("f");
    let sent: Vec<_> = (0..2_000)
        .map(|number| {
            let data = format!("{number:04}\n");
            raw.prepare("append_file", json!({"file": "f", "token": token, "data": data}))
        })
        .collect();
    let mut done = 0;
    for (number, sent) in sent.iter().enumerate().rev() {
        match raw.finish(sent).kind() {
            None => done += 1,
            Some(kind) => {
                assert_eq!(kind, "stale_request");
                // The window holds 1,024, so nothing above that is stale.
                assert!(number < 2_000 - 1_024, "request {number} was inside the window");
            }
        }
    }
    for sent in &sent {
        let again = raw.finish(sent);
        assert!(again.kind().is_none_or(|kind| kind == "stale_request"), "{}", again.0);
    }
    let content = raw.read("f");
    let lines: BTreeSet<&str> = content.lines().collect();
    assert_eq!((lines.len(), content.len()), (done, done * 5), "a line stands twice, or one is missing");
    println!("{done} of 2,000 were executed, the rest were stale");
}

#[test]
fn a_seeded_storm_of_wrong_and_right_requests_leaves_the_server_serving() {
    let server = Server::with(Setup { durability: "none", log: "warn", ..Setup::default() });
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(mix(&[seed, 5]));
    let (raw, mut fresh) = (server.client(60_000), server.client(60_000));
    let session = raw.session.clone().unwrap();
    let methods = [
        "ping",
        "status",
        "open_session",
        "heartbeat",
        "acquire_lock",
        "cancel_wait",
        "release_lock",
        "abandon",
        "renew_lease",
        "is_locked",
        "get_lock_info",
        "list_locks",
        "list_grants",
        "list_sessions",
        "list_files",
        "cleanup_expired_locks",
        "get",
        "set",
        "delete",
        "range",
        "prefix",
        "append_file",
        "read_file",
        "file_info",
        "delete_file",
        "rotate_file",
        "repair_file",
        "watch",
        "kill_session",
        "convert_lock",
        "nonsense",
    ];
    let names = [
        "session",
        "ack",
        "got",
        "holder",
        "token",
        "nonce",
        "ttl_ms",
        "after",
        "key",
        "wait_ms",
        "lease_ms",
        "owner",
        "wait",
        "value",
        "if_version",
        "from",
        "to",
        "prefix",
        "cursor",
        "limit",
        "file",
        "data",
        "offset",
        "client",
    ];
    for round in 0..6_000u32 {
        let method = methods[rng.usize(0..methods.len())];
        let mut params = serde_json::Map::new();
        params.insert("session".into(), json!(session));
        for _ in 0..rng.usize(0..5) {
            let name = names[rng.usize(1..names.len())];
            let value = match rng.u8(0..9) {
                0 => json!(null),
                1 => json!(rng.u64(..)),
                2 => json!(rng.u64(0..50)),
                3 => json!([1, 2]),
                4 => json!({}),
                5 => json!("a"),
                6 => json!("../a"),
                7 => json!(-1),
                _ => json!("\u{202e}\n"),
            };
            params.insert(name.into(), value);
        }
        if method == "kill_session" {
            params.remove("client");
        }
        let id = u64::from(round) + 10;
        let text = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string();
        raw.send_bytes(text.as_bytes());
        if round % 32 == 0 {
            settle(&mut fresh);
        }
    }
    assert_serves(&mut fresh);
    assert!(!server.stderr().contains("panicked"));
}
