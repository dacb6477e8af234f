//! Bad input is refused with a sentence; good input comes through whole.

use super::*;
use crate::outcome::Outcome;
use arcstr::ArcStr;

fn one(text: &str) -> Element {
    let mut message = decode(text.as_bytes()).unwrap();
    assert_eq!(message.elements.len(), 1);
    message.elements.remove(0)
}

fn call(method: &str, params: &str) -> Result<Method, Refusal> {
    one(&format!(r#"{{"jsonrpc":"2.0","id":7,"method":"{method}","params":{params}}}"#))
        .request
        .map(|request| request.method)
}

fn kind(method: &str, params: &str) -> Kind {
    call(method, params).unwrap_err().kind
}

const S: &str = "00000000000000000000000000000001";

#[test]
fn a_request_comes_through_whole() {
    let params =
        format!(r#"{{"session":"{S}","key":"a","value":{{"n":[1,null]}},"if_version":0,"ack":3,"got":[2]}}"#);
    let element = one(&format!(r#"{{"jsonrpc":"2.0","id":7,"method":"set","params":{params}}}"#));
    let request = element.request.unwrap();
    assert_eq!(request.got, [2]);
    assert_eq!(
        request.method,
        Method::Logged {
            id: 7,
            ack: 3,
            call: Call::Set {
                key: Name::new("a").unwrap(),
                value: ArcStr::from(r#"{"n":[1,null]}"#),
                if_version: Some(0),
                life: Life::default(),
                token: None,
                holder: None
            }
        }
    );
}

#[test]
fn what_is_no_request_is_answered_under_its_id_where_it_has_one() {
    let element = one(r#"{"jsonrpc":"2.0","id":5,"method":"get","parms":{}}"#);
    assert_eq!((element.id.as_json(), element.request.unwrap_err().kind), ("5", Kind::InvalidRequest));
    let element = one(r#"{"jsonrpc":"1.0","id":"x","method":"ping"}"#);
    assert_eq!((element.id.as_json(), element.request.unwrap_err().kind), ("\"x\"", Kind::InvalidRequest));
    assert_eq!(one(r#"{"jsonrpc":"2.0","method":"ping"}"#).request.unwrap_err().kind, Kind::InvalidRequest);
    assert_eq!(
        one(r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#).request.unwrap_err().kind,
        Kind::InvalidRequest
    );
    assert_eq!(one(r#"{"jsonrpc":"2.0","id":1,"method":"ping"} x"#).request.unwrap_err().kind, Kind::Parse);
    assert_eq!(one(r#"{"jsonrpc":"2.0","id":1,"#).request.unwrap_err().kind, Kind::Parse);
    assert_eq!(one("[]       ").request.unwrap_err().kind, Kind::InvalidRequest);
}

#[test]
fn replies_and_notifications_are_dropped_so_that_two_servers_cannot_talk_for_ever() {
    assert_eq!(decode(br#"{"jsonrpc":"2.0","id":1,"result":{}}"#).unwrap_err(), Dropped::NotARequest);
    assert_eq!(decode(br#"[{"jsonrpc":"2.0","id":null,"error":{}}]"#).unwrap_err(), Dropped::NotARequest);
}

/// Found by fuzzing: the refusal repeated the name of a parameter whole, and with all names that are known behind it grew
/// longer than a datagram can be. It could not be sent, and the client asked again for ever.
#[test]
fn a_refusal_is_short_whatever_it_is_about() {
    let long = "é".repeat(32_600);
    for text in [
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"get","params":{{"{long}":1}}}}"#),
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"get","{long}":1}}"#),
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{long}"}}"#),
        format!(r#"{{"jsonrpc":"{long}","id":1,"method":"get"}}"#),
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"get","params":{{"session":"{long}"}}}}"#),
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"get","params":{{"key":"{long}"}}}}"#),
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"acquire_lock","params":{{"keys":[{{"{long}":1}}]}}}}"#),
    ] {
        let element = one(&text);
        let mut out = Vec::new();
        encode_error(&mut out, &element.id, &element.request.unwrap_err());
        assert!(out.len() < 2_000, "{} bytes: {}", out.len(), String::from_utf8_lossy(&out));
    }
    let refusal = call("get", &format!(r#"{{"{long}":1}}"#)).unwrap_err();
    assert!(refusal.message.contains("expected one of") && refusal.message.contains("`apply`"), "{refusal}");
}

#[test]
fn methods_refuse_what_they_do_not_take_and_ask_for_what_they_need() {
    assert_eq!(kind("get", r#"{"key":"a","value":1}"#), Kind::InvalidParams);
    assert_eq!(kind("get", "{}"), Kind::InvalidParams);
    assert_eq!(kind("get", r#"["a"]"#), Kind::InvalidParams);
    assert_eq!(kind("set", r#"{"key":"a","value":1}"#), Kind::InvalidParams, "set needs a session");
    assert_eq!(kind("fetch", "{}"), Kind::UnknownMethod);
    assert_eq!(kind("watch", r#"{"after":1,"cursor":"MS4w"}"#), Kind::InvalidParams);
    assert_eq!(kind("watch", &format!(r#"{{"prefix":"{}"}}"#, "x".repeat(257))), Kind::InvalidParams);
    assert_eq!(kind("get", r#"{"key":""}"#), Kind::BadName);
    assert_eq!(kind("file_info", r#"{"file":"../x"}"#), Kind::BadName);
    let session = format!(r#""session":"{S}""#);
    assert_eq!(
        kind("set", &format!(r#"{{{session},"key":"a","value":1,"ttl_ms":99}}"#)),
        Kind::InvalidParams
    );
    for wrong in [
        r#""key":"a","keys":["b"]"#,
        r#""keys":[]"#,
        r#""keys":["a","a"]"#,
        r#""key":"a","slots":0"#,
        r#""key":"a","slots":2,"weight":3"#,
        r#""key":"a","weight":2"#,
        r#""key":"a","mode":"shared","slots":2"#,
        r#""key":"a","max_hold_ms":0"#,
        r#""key":"a","atomic":1"#,
    ] {
        assert_eq!(kind("acquire_lock", &format!("{{{session},{wrong}}}")), Kind::InvalidParams, "{wrong}");
    }
    assert_eq!(
        kind("acquire_lock", &format!(r#"{{{session},"key":"a","mode":"exlusive"}}"#)),
        Kind::InvalidParams
    );
}

#[test]
fn every_listed_method_is_known_and_no_other_is() {
    let known = |name| call(name, "{}").map_or_else(|refusal| refusal.kind != Kind::UnknownMethod, |_| true);
    for name in METHODS {
        assert!(known(name), "{name}");
    }
    assert!(!known("fetch"));
}

#[test]
fn spans_of_time_have_bounds() {
    for (ttl, good) in [("99", false), ("100", true), ("86400000", true), ("86400001", false), ("0", false)] {
        let params = format!(r#"{{"nonce":"{S}","ttl_ms":{ttl}}}"#);
        assert_eq!(call("open_session", &params).is_ok(), good, "{ttl}");
    }
}

#[test]
fn the_id_of_a_logged_request_is_an_integer_from_one() {
    for id in ["0", "\"a\"", "\"1\""] {
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"release_lock","params":{{"session":"{S}","token":1}}}}"#
        );
        assert_eq!(one(&text).request.unwrap_err().kind, Kind::InvalidRequest, "{id}");
    }
}

#[test]
fn values_may_be_64_deep_and_no_deeper() {
    let nested = |depth: usize| {
        let value = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        call("set", &format!(r#"{{"session":"{S}","key":"a","value":{value}}}"#))
    };
    assert!(nested(VALUE_DEPTH_MAX).is_ok());
    assert_eq!(nested(VALUE_DEPTH_MAX + 1).unwrap_err().kind, Kind::TooLarge);
    assert_eq!(nested(20_000).unwrap_err().kind, Kind::TooLarge, "deep nesting is counted, not followed");
    assert_eq!(depth(r#""[[[\"[[""#), 0, "brackets in a string are text");
}

#[test]
fn a_batch_has_at_most_64_elements_and_keeps_its_order() {
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let batch = |n: usize| decode(format!("[{}]", vec![ping; n].join(",")).as_bytes()).unwrap();
    assert_eq!(batch(64).elements.len(), 64);
    assert_eq!(batch(65).elements[0].request.as_ref().unwrap_err().kind, Kind::Limit);
}

#[test]
fn a_valid_message_cut_at_any_byte_is_refused_and_never_panics() {
    let text = format!(
        r#"[{{"jsonrpc":"2.0","id":7,"method":"append_file","params":{{"session":"{S}","file":"a","data":"ü\n","token":1}}}}]"#
    );
    for cut in 0..text.len() {
        if let Ok(message) = decode(&text.as_bytes()[..cut]) {
            assert!(message.elements[0].request.is_err(), "cut at {cut}");
        }
    }
}

#[test]
fn cursors_round_trip_and_others_are_refused() {
    assert_eq!(decode_cursor(&encode_cursor("a/ü")).unwrap(), "a/ü");
    assert!(decode_cursor("!").is_err());
}

/// Messages that clients send all day, as `common` reads them, and some that it leaves to the general reader.
fn usual() -> Vec<String> {
    let request = |id: &str, method: &str, params: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{{params}}}}}"#)
    };
    let session = format!(r#""session":"{S}","ack":3"#);
    let mut all = vec![
        request("7", "acquire_lock", &format!(r#"{session},"key":"a","wait_ms":null,"owner":"o""#)),
        request(
            "7",
            "acquire_lock",
            &format!(
                r#"{session},"keys":[{{"key":"b","mode":"exclusive"}},{{"key":"a","mode":"shared"}}],"wait_ms":500"#
            ),
        ),
        request(
            "7",
            "acquire_lock",
            &format!(r#"{session},"key":"a","mode":"shared","lease_ms":1000,"wait_ms":0"#),
        ),
        request("7", "release_lock", &format!(r#"{session},"got":[1,2],"token":12"#)),
        request("7", "abandon", &format!(r#"{session},"token":12"#)),
        request("7", "cancel_wait", &format!(r#"{session},"wait":5"#)),
        request("7", "renew_lease", &format!(r#"{session},"token":5,"lease_ms":9000"#)),
        request("7", "set", &format!(r#"{session},"key":"a","value":"text","token":5"#)),
        request("7", "set", &format!(r#"{session},"key":"a","value": 17 ,"if_version":0"#)),
        request("7", "set", &format!(r#"{session},"key":"a","value":null"#)),
        request("7", "delete", &format!(r#"{session},"key":"a","if_version":4"#)),
        request("7", "append_file", &format!(r#"{session},"file":"logs/a","data":"a line ÿ","token":5"#)),
        request(r#""h7""#, "heartbeat", &format!(r#""session":"{S}","after":8"#)),
        request(r#""r8""#, "get", r#""key":"a","token":5"#),
        request("9", "is_locked", r#""key":"a""#),
    ];
    all.push(format!("[{},{}]", all[0], all[3]));
    all.push(format!(" [ {} ]\n", all[5].replace(',', " ,\n ").replace(':', "\t: ")));
    all
}

#[test]
fn the_common_reader_reads_what_is_usual_as_the_general_one_does() {
    for text in usual() {
        let read =
            common::decode(Vec::new(), text.as_bytes()).unwrap_or_else(|| panic!("it is not read: {text}"));
        assert!(read.elements.iter().all(|element| element.request.is_ok()), "{text}");
        assert_eq!(format!("{read:?}"), format!("{:?}", decode_any(text.as_bytes()).unwrap()), "{text}");
    }
}

#[test]
fn the_common_reader_says_what_the_general_one_says_or_nothing() {
    /// What is put in and put in place of something, so that much of it is nearly right.
    const PIECES: &[&str] = &[
        "\"session\":\"00000000000000000000000000000000\",",
        "\"",
        "\\",
        "\\u0061",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "0",
        "00",
        "-1",
        "1.5",
        "1e3",
        "9007199254740992",
        "9007199254740991",
        "null",
        "true",
        "truex",
        " ",
        "\n",
        "\u{0}",
        "\u{202e}",
        "ÿ",
        "..",
        "/",
        "exclusive",
        "\"key\":\"b\",",
        "\"token\":5,",
        "\"ack\":3,",
        "\"id\":7,",
        "\"params\":{},",
        "\"got\":[],",
        "\"key\":\"b\"",
        "\"ack\":9",
        "\"holder\":1",
        "\"mode\":\"slot\"",
        "\"owner\":\"\"",
        "\"got\":[]",
        "\"jsonrpc\":\"2.0\"",
        "\"id\":8",
        "\"params\":{}",
        "\"method\":\"get\"",
        "acquire_lock",
        "set",
        "ping",
    ];
    let usual = usual();
    let (mut read, mut rounds) = (0, 0);
    for seed in 0..400u64 {
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..250 {
            let mut text = usual[random.usize(0..usual.len())].clone();
            for _ in 0..random.usize(1..=2) {
                let edge =
                    |at: usize| (at..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
                // Half the time where a member begins.
                let members = text.match_indices(['{', ',']).map(|(at, _)| at + 1).collect::<Vec<_>>();
                let from = match random.bool() {
                    true => members[random.usize(0..members.len())],
                    false => edge(random.usize(0..=text.len())),
                };
                let to = edge((from + random.usize(0..4)).min(text.len()));
                let piece = if random.bool() { PIECES[random.usize(0..PIECES.len())] } else { "" };
                text.replace_range(from..to, piece);
            }
            rounds += 1;
            let Some(common) = common::decode(Vec::new(), text.as_bytes()) else { continue };
            read += 1;
            let general = decode_any(text.as_bytes());
            assert_eq!(
                format!("{:?}", Ok::<_, Dropped>(common)),
                format!("{general:?}"),
                "seed {seed}: {text}"
            );
        }
    }
    assert!(read > rounds / 50, "{read} of {rounds} messages were read at all: that shows little");
}

/// The common outcomes are written by hand: what comes out is what serde writes of the types that clients read.
#[test]
fn the_common_replies_are_as_the_types_that_clients_read_them_with() {
    fn is<T: serde::Serialize>(outcome: Outcome, shown: &T) {
        let (id, mut written, mut general) = (Id::number(7), Vec::new(), Vec::new());
        encode_outcome(&mut written, &id, &outcome);
        encode_result(&mut general, &id, shown);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert_eq!(text(written), text(general), "{outcome:?}");
    }
    let ask = |key: &str, mode| Ask { key: Name::new(key).unwrap(), mode };
    let slot = |weight| Mode::Slot { slots: 4, weight };
    let several = vec![ask("a \"b\" \\ ÿ", Mode::Shared), ask("b", slot(1)), ask("c", slot(3))];
    for asks in [Asks::from(ask("a", Mode::Exclusive)), several.into()] {
        for (lease_ms, hold_left_ms) in [(None, None), (Some(100), None), (None, Some(0)), (Some(1), Some(2))]
        {
            for (again, atomic) in [(false, false), (true, false), (false, true), (true, true)] {
                let (token, op, lease_left_ms) = (INTEGER_MAX, 12, lease_ms.filter(|_| again));
                let shown = Acquired {
                    granted: Some(true),
                    token: Some(token),
                    keys: keys_shown(&asks),
                    op: Some(op),
                    lease_ms,
                    hold_left_ms,
                    atomic,
                    again,
                    lease_left_ms,
                    ..Acquired::default()
                };
                let asks = asks.clone();
                is(
                    Outcome::Granted {
                        token,
                        asks,
                        op,
                        lease_ms,
                        again,
                        lease_left_ms,
                        hold_left_ms,
                        atomic,
                    },
                    &shown,
                );
            }
        }
    }
    is(Outcome::Done, &serde_json::Map::new());
    for writes in [0, 3] {
        is(Outcome::Released { op: 5, writes }, &Released { released: true, op: 5, writes });
    }
    for staged in [false, true] {
        is(Outcome::Set { version: 0, staged }, &Written { version: 0, staged });
        let (offset, length) = (10, 110);
        is(Outcome::Appended { offset, length, staged }, &Appended { offset, length, staged });
    }
}
