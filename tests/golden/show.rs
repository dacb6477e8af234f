//! What clients receive, in short lines that stay the same from run to run.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The names behind secrets and numbers.
#[derive(Default)]
pub(crate) struct Names {
    /// Session ids, cookies and addresses, and what to show for them.
    pub(crate) secrets: BTreeMap<String, String>,
    /// Public numbers of sessions, and the clients behind them.
    pub(crate) clients: BTreeMap<u64, String>,
}

/// A message as lines: one for a reply or notification, one an element for an array.
pub(crate) fn message(value: &Value, names: &Names) -> Vec<String> {
    match value {
        Value::Array(elements) => {
            let mut lines = vec![format!("an array of {}", elements.len())];
            lines.extend(elements.iter().map(|element| format!("  {}", one(element, names))));
            lines
        }
        value => vec![one(value, names)],
    }
}

fn one(value: &Value, names: &Names) -> String {
    let Value::Object(members) = value else { return value.to_string() };
    if let (Some(Value::String(method)), Some(Value::Object(params))) =
        (members.get("method"), members.get("params"))
    {
        return notification(method, params, names);
    }
    let id = match &members["id"] {
        Value::String(text) => text.clone(),
        id => id.to_string(),
    };
    match (members.get("result"), members.get("error")) {
        (Some(Value::Object(result)), None) => format!("{id}: {}", result_line(result, names)),
        (None, Some(error)) => format!("{id}: {}", error_line(error, names)),
        _ => format!("no JSON-RPC reply: {value}"),
    }
}

fn notification(method: &str, params: &Map<String, Value>, names: &Names) -> String {
    if method == "pending" {
        return format!("{}: pending, {}", params["id"], blocked(params, names));
    }
    format!("({method}) {}", members(params, names, &[]))
}

fn result_line(result: &Map<String, Value>, names: &Names) -> String {
    if let Some(Value::Array(events)) = result.get("events") {
        return events_line(result, events, names);
    }
    match (result.get("granted"), result.get("cancelled")) {
        (Some(Value::Bool(true)), _) => format!("granted, {}", members(result, names, &["granted"])),
        (Some(Value::Bool(false)), _) => format!("not granted, {}", blocked(result, names)),
        (None, Some(Value::Bool(true))) => "cancelled".into(),
        _ if result.is_empty() => "done".into(),
        _ => members(result, names, &[]),
    }
}

/// What a watch tells, with its cursor as the position that it stands for.
fn events_line(result: &Map<String, Value>, events: &[Value], names: &Names) -> String {
    let next = URL_SAFE_NO_PAD.decode(result["next"].as_str().unwrap_or_default()).unwrap_or_default();
    let mut line = format!("op={} next={}", result["op"], String::from_utf8_lossy(&next));
    if events.is_empty() {
        line += ", nothing";
    }
    for event in events.iter().filter_map(Value::as_object) {
        let (op, what) = (&event["op"], event["event"].as_str().unwrap_or_default());
        let name = plain(&event["name"], names);
        line +=
            format!("; {op} {what} {name} {}", members(event, names, &["op", "event", "name"])).trim_end();
    }
    line
}

fn blocked(members: &Map<String, Value>, names: &Names) -> String {
    let mut line = members["reason"].as_str().unwrap_or_default().to_owned();
    if let Some(key) = members.get("key") {
        line += &format!(" on {}", plain(key, names));
    }
    if let Some(position) = members.get("position") {
        line += &format!(", position={position}");
        // Most stand at the end of the line, as far as they know.
        let last = position.as_u64().map(|position| position.saturating_sub(1));
        if let Some(total) = members.get("queue_total").filter(|total| total.as_u64() != last) {
            line += &format!(" with {total} others in line");
        }
    }
    if let Some(ahead) = members.get("ahead") {
        line += &format!(", behind {}", plain(ahead, names));
    }
    if let Some(estimate) = members.get("estimate_ms") {
        line += &format!(", in about {estimate} ms");
    }
    if let Some(Value::Array(holders)) = members.get("holders") {
        let total = members.get("holders_total").and_then(Value::as_u64).unwrap_or_default();
        let shown: Vec<_> = holders.iter().map(|holder| plain(holder, names)).collect();
        if !shown.is_empty() {
            line += &format!(", held by {}", shown.join(" "));
        }
        if total != holders.len() as u64 {
            line += &format!(" and others, {total} in all");
        }
    }
    line
}

fn error_line(error: &Value, names: &Names) -> String {
    let data = error["data"].as_object().expect("an error has data");
    let told = members(data, names, &["kind", "final"]);
    let kind = data["kind"].as_str().expect("an error has a kind");
    let again = if data["final"] == Value::Bool(true) { "" } else { " (not final)" };
    let told = if told.is_empty() { String::new() } else { format!(" [{told}]") };
    format!("{kind}{again}: {}{told}", error["message"].as_str().expect("an error has a sentence"))
}

/// `name=value` for each member, in the order of their names.
fn members(members: &Map<String, Value>, names: &Names, without: &[&str]) -> String {
    // The cap on waits is shown where a script has set it.
    let shown = members.iter().filter(|(name, value)| *name != "queue_max" || **value != 100_000);
    let shown = shown.filter(|(name, _)| !without.contains(&name.as_str()));
    let shown: Vec<_> = shown
        .map(|(name, value)| match (name.as_str(), value) {
            ("client", Value::Number(number)) => {
                let number = number.as_u64().expect("clients have numbers");
                match names.clients.get(&number) {
                    Some(client) => format!("client={client}"),
                    None => format!("client={number}"),
                }
            }
            ("value", value) => {
                let text = value.to_string();
                if text.len() > 100 {
                    format!("value={}… ({} bytes)", &text[..10], text.len())
                } else {
                    format!("value={text}")
                }
            }
            (_, Value::Bool(true)) => name.clone(),
            (_, value) => format!("{name}={}", plain(value, names)),
        })
        .collect();
    shown.join(" ")
}

fn plain(value: &Value, names: &Names) -> String {
    match value {
        Value::String(text) => match names.secrets.get(text) {
            Some(name) => name.clone(),
            None if text.len() > 100 => format!("{:?}… ({} bytes)", &text[..10], text.len()),
            None if !text.is_empty()
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c)) =>
            {
                text.clone()
            }
            None => format!("{text:?}"),
        },
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| plain(item, names)).collect();
            format!("[{}]", items.join(", "))
        }
        // A lock and its mode as scripts write them.
        Value::Object(object)
            if object.contains_key("mode")
                && object.keys().all(|name| ["key", "mode", "slots", "weight"].contains(&&**name)) =>
        {
            let key = plain(&object["key"], names);
            match (object["mode"].as_str(), object.get("slots"), object.get("weight")) {
                (Some("exclusive"), None, None) => key,
                (_, Some(slots), None) => format!("{key}@1/{slots}"),
                (_, Some(slots), Some(weight)) => format!("{key}@{weight}/{slots}"),
                (mode, ..) => format!("{key}@{}", mode.unwrap_or_default()),
            }
        }
        Value::Object(object) => {
            let usual = object.get("mode").is_some_and(|mode| mode == "exclusive");
            format!("{{{}}}", members(object, names, if usual { &["mode"] } else { &[] }))
        }
        value => value.to_string(),
    }
}
