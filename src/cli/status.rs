//! `status`, `ping`, `version`.

use super::context::Context;
use super::duration::show_ms;
use super::exit::Result;
use super::output::{Format, printable};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Instant;
use tenure::wire::{PROTOCOL, Status};

/// `tenure status`
pub(crate) fn status(context: &Context) -> Result<()> {
    let client = context.client()?;
    let status = client.status()?;
    if context.format() == Format::Json {
        return context.output().one(&status, "");
    }
    context.output().one(&(), &summary(&client.server().to_string(), &status))?;
    type Row = std::result::Result<Vec<String>, super::exit::Failure>;
    context.output().list(
        &["NAME", "NOW", "AT MOST"],
        counts(&status).into_iter().map(Row::Ok),
        None,
        Vec::clone,
    )?;
    if status.drops.is_empty() {
        return Ok(());
    }
    context.output().one(&(), "\nsince the start")?;
    let drops = status.drops.iter().map(|(cause, count)| Row::Ok(vec![cause.clone(), count.to_string()]));
    context.output().list(&["DROPPED", "TIMES"], drops, None, Vec::clone)
}

fn summary(server: &str, status: &Status) -> String {
    printable(&format!(
        "tenure {} at {server}: term {}, op {}, up {}, durability {}",
        status.server_version,
        status.term,
        status.op,
        show_ms(status.uptime_ms),
        status.durability
    )) + "\n"
}

/// Each count beside the cap of that name; a cap without a count and a count without a cap have a line too.
fn counts(status: &Status) -> Vec<Vec<String>> {
    let names: BTreeSet<&String> = status.counts.keys().chain(status.limits.keys()).collect();
    let cell = |number: Option<&u64>| number.map_or("-".into(), u64::to_string);
    names
        .into_iter()
        .map(|name| vec![name.clone(), cell(status.counts.get(name)), cell(status.limits.get(name))])
        .collect()
}

/// `tenure ping`
pub(crate) fn ping(context: &Context) -> Result<()> {
    let client = context.client()?;
    let begin = Instant::now();
    let ping = client.ping()?;
    let micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
    let server = client.server().to_string();
    let shown = json!({
        "server": ping.server, "server_version": ping.server_version, "address": server, "round_trip_us": micros,
    });
    let (name, version) = (printable(&ping.server), printable(&ping.server_version));
    let plain =
        format!("{name} {version} at {server} answered in {}.{:03} ms", micros / 1_000, micros % 1_000);
    context.output().one(&shown, &plain)
}

/// `tenure version`: of this program. That of a server is in `tenure status`.
pub(crate) fn version(context: &Context) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let rules = tenure::command::RULES;
    let shown = json!({"version": version, "protocol": PROTOCOL, "rules": rules});
    context.output().one(&shown, &format!("tenure {version} (protocol {PROTOCOL}, rules {rules})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_caps_of_one_name_share_a_line() {
        let status: Status = serde_json::from_value(json!({
            "server_version": "0.1.0", "protocol": 1, "term": 2, "op": 9, "uptime_ms": 61_000, "durability": "sync",
            "counts": {"keys": 3, "journal_bytes": 10}, "limits": {"keys": 100, "value_bytes": 5}, "drops": {},
        }))
        .unwrap();
        assert_eq!(
            counts(&status),
            [["journal_bytes", "10", "-"], ["keys", "3", "100"], ["value_bytes", "-", "5"]]
        );
        assert!(summary("127.0.0.1:1", &status).contains("term 2, op 9, up 1m 1s"));
    }
}
