//! Short commands to requests, as JSON text.

use std::collections::BTreeMap;
use tenure::identity::SessionId;

/// A short command: its word, what stands behind it, and what is named.
#[derive(Clone, Debug, Default)]
pub(crate) struct Short {
    pub(crate) word: String,
    pub(crate) places: Vec<String>,
    pub(crate) named: BTreeMap<String, Vec<String>>,
}

/// A request on its way to text.
pub(crate) struct Built {
    /// The id as JSON text.
    pub(crate) id: String,
    pub(crate) text: String,
}

/// What a request needs to know of its client.
pub(crate) struct Asker<'a> {
    pub(crate) session: Option<SessionId>,
    pub(crate) nonce: String,
    pub(crate) cookie: Option<String>,
    pub(crate) next_id: &'a mut u64,
    /// The last `next` that a page told.
    pub(crate) cursor: Option<String>,
    pub(crate) sessions: BTreeMap<String, (SessionId, u64)>,
}

/// Word, method, what stands behind the word, and whether the method takes its turn in the session's ids. Behind `key…`
/// stands any number of locks, each maybe with its mode: `a b@shared c@1/3 d@2/3` (one and two slots of three).
const METHODS: [(&str, &str, &[&str], bool); 36] = [
    ("open", "open_session", &[], false),
    ("heartbeat", "heartbeat", &[], false),
    ("close", "close_session", &[], false),
    ("kill", "kill_session", &["client"], false),
    ("acquire", "acquire_lock", &["key…"], true),
    ("release", "release_lock", &["token"], true),
    ("abandon", "abandon", &["token"], true),
    ("renew", "renew_lease", &["token"], true),
    ("cancel", "cancel_wait", &["wait"], true),
    ("convert", "convert_lock", &["token", "key…"], true),
    ("hand_over", "hand_over", &["token", "client"], true),
    ("take_over", "take_over", &["token"], true),
    ("ask_release", "ask_release", &["token", "reason"], true),
    ("break", "break_lock", &["token", "reason"], true),
    ("set", "set", &["key", "value"], true),
    ("delete", "delete", &["key"], true),
    ("transaction", "transaction", &["change…"], true),
    ("append", "append_file", &["file", "data"], true),
    ("delete_file", "delete_file", &["file"], true),
    ("rotate", "rotate_file", &["file", "to"], true),
    ("repair", "repair_file", &["file"], true),
    ("get", "get", &["key"], false),
    ("range", "range", &["from", "to"], false),
    ("prefix", "prefix", &["prefix"], false),
    ("read", "read_file", &["file"], false),
    ("info", "file_info", &["file"], false),
    ("locked", "is_locked", &["key"], false),
    ("lock", "get_lock_info", &["key"], false),
    ("locks", "list_locks", &["prefix"], false),
    ("grants", "list_grants", &["prefix"], false),
    ("sessions", "list_sessions", &["prefix"], false),
    ("files", "list_files", &["prefix"], false),
    ("waits", "list_waits", &["prefix"], false),
    ("contention", "list_contention", &[], false),
    ("watch", "watch", &["prefix"], false),
    ("cleanup", "cleanup_expired_locks", &[], false),
];

/// Words that are a parameter by themselves: which one, and of which command.
const FLAGS: [(&str, &str); 2] = [("acquire", "atomic"), ("set", "bound")];

/// Splits the text of an element of a batch: `set a '{"n": 1}' token=3`.
pub(crate) fn split(text: &str) -> Short {
    let mut words: Vec<String> = Vec::new();
    let (mut quoted, mut open) = (false, false);
    for c in text.chars() {
        match (c, quoted) {
            ('\'', _) => {
                quoted = !quoted;
                if !open {
                    words.push(String::new());
                    open = true;
                }
            }
            (' ', false) => open = false,
            (c, _) => {
                if !open {
                    words.push(String::new());
                    open = true;
                }
                words.last_mut().expect("a word was opened").push(c);
            }
        }
    }
    let mut short = Short::default();
    for (index, word) in words.into_iter().enumerate() {
        match word.split_once('=') {
            _ if index == 0 => short.word = word,
            Some((name, value))
                if !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_') =>
            {
                short.named.entry(name.into()).or_default().push(value.into());
            }
            Some(_) | None => short.places.push(word),
        }
    }
    short
}

/// Writes a short command as a request.
///
/// # Errors
/// A sentence about the command.
pub(crate) fn build(short: &Short, asker: &mut Asker<'_>) -> Result<Built, String> {
    let known = METHODS.iter().find(|(word, ..)| *word == short.word);
    let (method, places, logged) = match known {
        Some((_, method, places, logged)) => (*method, *places, *logged),
        None => (short.word.as_str(), &[][..], false),
    };
    let mut named = short.named.clone();
    let (flags, values): (Vec<_>, Vec<_>) =
        short.places.iter().cloned().partition(|place| FLAGS.contains(&(&short.word, place)));
    for flag in flags {
        named.insert(flag, vec!["true".into()]);
    }
    let mut params = Vec::new();
    for (index, value) in values.iter().enumerate() {
        match places.get(index) {
            Some(&"key…") => {
                params.extend(locks(&values[index..])?);
                break;
            }
            Some(&"change…") => {
                params.extend(changes(&values[index..])?);
                break;
            }
            Some(name) => named.entry(name.to_string()).or_default().insert(0, value.clone()),
            None => return Err(format!("{} takes no {value:?}", short.word)),
        }
    }
    let id = match named.remove("id").and_then(|ids| ids.into_iter().next()) {
        Some(id) => id,
        None if logged => {
            *asker.next_id += 1;
            (*asker.next_id - 1).to_string()
        }
        None => format!("\"{}\"", short.word),
    };
    if let Ok(number) = id.parse::<u64>() {
        *asker.next_id = (*asker.next_id).max(number.saturating_add(1));
    }
    let speaks = logged || ["heartbeat", "close"].contains(&short.word.as_str());
    let speaks = speaks || ["token", "holder", "got", "ack"].iter().any(|name| named.contains_key(*name));
    match named.remove("session").map(|mut names| names.remove(0)) {
        Some(name) if name == "none" => {}
        Some(name) => params.push(("session".into(), quote(&session_of(asker, &name)?.to_string()))),
        None if speaks => {
            let session = asker.session.ok_or("the client has no session yet")?;
            params.push(("session".into(), quote(&session.to_string())));
        }
        None => {}
    }
    if short.word == "open" && !named.contains_key("nonce") {
        params.push(("nonce".into(), quote(&asker.nonce)));
    }
    let pad = named
        .remove("pad")
        .map_or(Ok(0), |pads| pads[0].parse::<usize>())
        .map_err(|error| error.to_string())?;
    let size = named.remove("size").map(|sizes| sizes[0].parse::<usize>().map_err(|error| error.to_string()));
    let size = size.transpose()?;
    for (name, values) in named {
        params.push(param(&name, &values, asker)?);
    }
    if let Some(size) = size {
        let (name, text) = if short.word == "set" { ("value", size - 2) } else { ("data", size) };
        params.push((name.into(), quote(&"x".repeat(text))));
    }
    let text = format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":{},"params":{}{}}}"#,
        quote(method),
        object(&params),
        " ".repeat(pad)
    );
    Ok(Built { id, text })
}

/// The locks of a request: one as `key`, several as `keys` with the mode of each.
fn locks(places: &[String]) -> Result<Vec<(String, String)>, String> {
    let members = |place: &str| {
        let (key, mode) = place.split_once('@').unwrap_or((place, ""));
        let mut members = vec![("key".to_owned(), quote(key))];
        match (mode, mode.split_once('/')) {
            ("", _) => {}
            (_, Some((weight, slots))) => {
                members.push(("mode".into(), quote("slot")));
                members.push(("slots".into(), slots.into()));
                members.extend((weight != "1").then(|| ("weight".into(), weight.into())));
            }
            (mode, None) => members.push(("mode".into(), quote(mode))),
        }
        members
    };
    match places {
        [one] => Ok(members(one)),
        places => {
            let keys: Vec<_> = places
                .iter()
                .map(|place| if place.contains('@') { object(&members(place)) } else { quote(place) })
                .collect();
            Ok(vec![("keys".into(), format!("[{}]", keys.join(",")))])
        }
    }
}

/// A transaction: `a@7` compares a version, `set@b=1`, `set@b@5s=1` and `set@b@bound=1` set a key, `delete@c` deletes one.
fn changes(places: &[String]) -> Result<Vec<(String, String)>, String> {
    let (mut compare, mut apply) = (Vec::new(), Vec::new());
    for place in places {
        let (what, value) = match place.split_once('=') {
            Some((what, value)) => (what, Some(value)),
            None => (place.as_str(), None),
        };
        let parts: Vec<_> = what.split('@').collect();
        match (&parts[..], value) {
            (["set", key, life @ ..], Some(value)) => {
                let mut members = vec![("key".to_owned(), quote(key)), ("value".into(), value.into())];
                for word in life {
                    members.push(match *word {
                        "bound" => ("bound".into(), "true".into()),
                        ttl => ("ttl_ms".into(), span(ttl)?),
                    });
                }
                apply.push(object(&members));
            }
            (["delete", key], None) => {
                apply.push(object(&[("key".into(), quote(key)), ("delete".into(), "true".into())]));
            }
            ([key, version], None) => {
                compare.push(object(&[("key".into(), quote(key)), ("version".into(), (*version).into())]));
            }
            _ => return Err(format!("{place:?} is no part of a transaction")),
        }
    }
    let lists = [("compare", compare), ("apply", apply)].into_iter().filter(|(_, list)| !list.is_empty());
    Ok(lists.map(|(name, list)| (name.to_owned(), format!("[{}]", list.join(",")))).collect())
}

/// Members with JSON texts as a JSON object.
fn object(members: &[(String, String)]) -> String {
    let members: Vec<_> = members.iter().map(|(name, value)| format!("{}:{value}", quote(name))).collect();
    format!("{{{}}}", members.join(","))
}

fn param(name: &str, values: &[String], asker: &Asker<'_>) -> Result<(String, String), String> {
    let value = &values[0];
    Ok(match name {
        "wait" if !value.chars().all(|c| c.is_ascii_digit()) => ("wait_ms".into(), span(value)?),
        "ttl" => ("ttl_ms".into(), span(value)?),
        "lease" | "max_hold" | "lock_delay" | "deadline" => (format!("{name}_ms"), span(value)?),
        "holder" => ("holder".into(), quote(&session_of(asker, value)?.to_string())),
        "client" => match asker.sessions.get(value) {
            Some((_, number)) => ("client".into(), number.to_string()),
            None => ("client".into(), value.clone()),
        },
        "nonce" => ("nonce".into(), quote(&format!("{value:0>32}"))),
        "cookie" => {
            let cookie = asker.cookie.clone().ok_or("the client was told no cookie")?;
            ("cookie".into(), quote(if value == "yes" { &cookie } else { value }))
        }
        "cursor" if value == "next" => {
            let cursor = asker.cursor.clone().ok_or("no page told a next one")?;
            ("cursor".into(), quote(&cursor))
        }
        "got" => ("got".into(), format!("[{}]", values.join(","))),
        "value" => ("value".into(), value.clone()),
        "token" | "ack" | "after" | "if_version" | "limit" | "offset" | "wait" | "wait_ms" | "lease_ms"
        | "ttl_ms" | "keys" | "slots" | "weight" | "atomic" | "bound" | "max_hold_ms" | "lock_delay_ms"
        | "deadline_ms" | "compare" | "apply" => (name.into(), value.clone()),
        _ => (name.into(), quote(value)),
    })
}

fn session_of(asker: &Asker<'_>, name: &str) -> Result<SessionId, String> {
    asker.sessions.get(name).map(|(session, _)| *session).ok_or_else(|| format!("{name} has no session"))
}

/// `5s`, `100ms`, `2m` as milliseconds; `forever` as null.
fn span(text: &str) -> Result<String, String> {
    if text == "forever" {
        return Ok("null".into());
    }
    Ok((micros(text)? / 1_000).to_string())
}

/// `5s`, `100ms`, `7us`, `2m` as microseconds.
///
/// # Errors
/// A sentence, if it is no span of time.
pub(crate) fn micros(text: &str) -> Result<u64, String> {
    let units = [("ms", 1_000), ("us", 1), ("s", 1_000_000), ("m", 60_000_000), ("h", 3_600_000_000)];
    let (number, unit) = units
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
        .ok_or_else(|| format!("{text:?} is no span of time"))?;
    number.parse::<u64>().map(|number| number * unit).map_err(|error| format!("{text:?}: {error}"))
}

/// Text as JSON.
pub(crate) fn quote(text: &str) -> String {
    serde_json::to_string(text).expect("text is always JSON")
}
