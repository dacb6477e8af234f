//! `explain`, `top`: why locks are waited for.

use super::context::Context;
use super::duration::{show_ms, show_us};
use super::exit::Result;
use super::locks::{Most, holder_words, push_label, who};
use super::output::{Format, items_at_most, printable};
use std::fmt::Write as _;
use tenure::outcome::Reason;
use tenure::wire::{ContentionItem, ContentionShown, HolderShown, LockInfo, WaitItem, WaiterShown, WaitsFor};

#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// The lock.
    #[arg(required_unless_present = "graph")]
    name: Option<String>,
    /// Tell of all waits who waits for whom, and why.
    #[arg(
        long, env = "TENURE_GRAPH", conflicts_with = "name", value_parser = clap::builder::BoolishValueParser::new()
    )]
    graph: bool,
    /// With --graph: in the language of Graphviz, for `dot -Tsvg`.
    #[arg(
        long, env = "TENURE_DOT", requires = "graph", conflicts_with = "name",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    dot: bool,
    /// With --graph: only waits for locks whose names begin with this.
    #[arg(long, env = "TENURE_PREFIX", value_name = "TEXT", default_value = "")]
    prefix: String,
    #[command(flatten)]
    most: Most,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Top {
    #[command(flatten)]
    most: Most,
}

/// `tenure explain`: who holds a lock, and who waits; or who waits for whom.
pub(crate) fn explain(context: &Context, args: &Explain) -> Result<()> {
    match &args.name {
        Some(name) => explain_lock(context, name, args.most.limit),
        None => graph(context, args),
    }
}

fn explain_lock(context: &Context, name: &str, limit: Option<u64>) -> Result<()> {
    let client = context.client()?;
    let limit = items_at_most(limit);
    let mut info = client.lock_info(name)?;
    let mut next = info.next.take();
    while let Some(cursor) = next
        && info.queue.len() < limit
    {
        let mut page = client.lock_info_page(name, Some(&cursor))?;
        next = page.next.take();
        info.queue.append(&mut page.queue);
    }
    info.queue.truncate(limit);
    let plain = if context.format() == Format::Table { explained(&info) } else { String::new() };
    context.output().one(&info, &plain)
}

/// What may end a tenure beside its lease, one line each.
fn ends_words(holder: &HolderShown) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(left) = holder.hold_left_ms {
        lines.push(format!("    for {} more at most, whatever is renewed", show_ms(left)));
    }
    if let Some(asked) = &holder.asked {
        let broken = asked.left_ms.map_or(String::new(), |left| format!(", broken in {}", show_ms(left)));
        let reason = printable(&asked.reason);
        lines.push(format!("    asked to let go by client {}: \"{reason}\"{broken}", asked.client));
    }
    if let Some(client) = holder.offered {
        lines.push(format!("    offered to client {client}"));
    }
    lines
}

/// The words for people.
fn explained(info: &LockInfo) -> String {
    let mut lines = Vec::new();
    let key = printable(&info.key);
    match (info.holders.is_empty(), info.closed_ms, info.queue_total) {
        (true, Some(_), _) => lines.push(format!("{key} is held by nobody")),
        (true, None, 0) => lines.push(format!("{key} is free")),
        (true, None, _) => lines.push(format!("{key} is held by nobody now; the first in line is next")),
        (false, ..) => lines.push(format!("{key} is held")),
    }
    for holder in &info.holders {
        let mut line = format!("  by {}, {}, token {}", holder_words(holder), holder.mode, holder.token);
        if let Some(left) = holder.lease_left_ms {
            line.push_str(&format!(", {} left", show_ms(left)));
        }
        push_label(&mut line, &holder.label);
        lines.push(line);
        lines.extend(ends_words(holder));
    }
    if info.holders_total > info.holders.len() as u64 {
        lines.push(format!("  and {} more", info.holders_total - info.holders.len() as u64));
    }
    if let Some(closed) = info.closed_ms {
        let left = show_ms(closed);
        lines.push(format!("closed for another {left}: lock-delay, since a tenure ended without a release"));
    }
    match info.queue_total {
        0 if info.holders.is_empty() => {}
        0 => lines.push("nobody waits".into()),
        1 => lines.push("1 waits".into()),
        total => lines.push(format!("{total} wait")),
    }
    lines.extend(info.queue.iter().map(|waiter| waiter_words(info, waiter)));
    lines.extend(info.contention.as_ref().map(contention_words));
    lines.join("\n")
}

fn waiter_words(info: &LockInfo, waiter: &WaiterShown) -> String {
    let who = printable(&who(waiter.client, &waiter.name, &waiter.owner));
    let mut line =
        format!("  {}. client {who} for {}, {}", waiter.position, show_ms(waiter.waited_ms), waiter.mode);
    match waiter.wait_left_ms {
        Some(left) => line.push_str(&format!(", gives up in {}", show_ms(left))),
        None => line.push_str(", without limit"),
    }
    if let Some(token) = waiter.converts {
        line.push_str(&format!(", to convert its grant {token}"));
    }
    if let Some(reason) = waiter.reason {
        line.push_str(": ");
        line.push_str(&match (&waiter.key, reason) {
            (Some(key), reason) => format!("{} at {}", cause(reason), printable(key)),
            (None, Reason::Held) if info.holders.len() == 1 => {
                format!("held by token {}", info.holders[0].token)
            }
            (None, reason) => cause(reason).into(),
        });
    }
    if let Some(estimate) = waiter.estimate_ms {
        line.push_str(&format!(", its turn in about {}", show_ms(estimate)));
    }
    push_label(&mut line, &waiter.label);
    line
}

/// Why one waits, in few words.
fn cause(reason: Reason) -> &'static str {
    match reason {
        Reason::Held => "held",
        Reason::Queued => "behind an earlier request",
        Reason::Conversion => "behind a holder that converts its grant",
        Reason::LockDelay => "closed for its lock-delay",
        Reason::Timeout | Reason::Cancelled | Reason::SessionEnded | Reason::GrantEnded => "about to leave",
    }
}

fn contention_words(it: &ContentionShown) -> String {
    let usual = it.hold_us.map_or(String::new(), |hold| format!(", usually held for {}", show_us(hold)));
    let hand_off = mean(it.hand_off_us, it.hand_offs);
    let hand_off = hand_off.map_or(String::new(), |took| format!(", handed on in {}", show_us(took)));
    let waited = mean(it.waited_us, it.waits_ended);
    let waited = waited.map_or(String::new(), |waited| format!(" of {}", show_us(waited)));
    format!("in the last {}: {} waits{waited}{usual}{hand_off}", show_ms(it.counted_ms), it.waits)
}

fn mean(total: u64, count: u64) -> Option<u64> {
    total.checked_div(count)
}

/// `tenure explain --graph`
fn graph(context: &Context, args: &Explain) -> Result<()> {
    let client = context.client()?;
    let waits = client.list_waits(&args.prefix);
    if context.format() == Format::Json && !args.dot {
        return context.output().list(&[], waits, args.most.limit, |_| Vec::new());
    }
    let waits: Vec<WaitItem> =
        waits.take(items_at_most(args.most.limit)).collect::<std::result::Result<_, _>>()?;
    let text = if args.dot { dot(&waits) } else { lines(&waits) };
    let mut output = context.output();
    output.bytes(text.as_bytes())?;
    output.flush()
}

/// One line for each pair of who waits and whom it waits for.
fn lines(waits: &[WaitItem]) -> String {
    let mut text = String::new();
    for wait in waits {
        let waiter = format!("client {}", who(wait.client, &wait.name, &wait.owner));
        let begin = format!("{waiter} waits for {:?}", lock_of(wait, None));
        if wait.waits_for.is_empty() {
            let _ = writeln!(text, "{}, {}", printable(&begin), cause(wait.reason));
        }
        for other in &wait.waits_for {
            let mut line =
                format!("{waiter} waits for {:?}, {}", lock_of(wait, Some(other)), in_the_way(other));
            push_label(&mut line, &other.label);
            let _ = writeln!(text, "{}", printable(&line));
        }
    }
    if text.is_empty() { "nobody waits\n".into() } else { text }
}

/// The lock over which somebody waits for somebody.
fn lock_of(wait: &WaitItem, other: Option<&WaitsFor>) -> String {
    let key = other.and_then(|other| other.key.as_ref()).or(wait.key.as_ref());
    match (key, &wait.keys[..]) {
        (Some(key), _) => key.clone(),
        (None, [only]) => only.key.clone(),
        (None, keys) => format!("{} locks", keys.len()),
    }
}

fn in_the_way(other: &WaitsFor) -> String {
    let who = who(other.client, &other.name, &other.owner);
    match (other.token, other.converts) {
        (Some(token), _) => format!("held by client {who}, token {token}"),
        (None, Some(token)) => format!("behind client {who}, which waits to convert token {token}"),
        (None, None) => format!("behind client {who}, which waits too"),
    }
}

/// The graph for Graphviz: a node for each owner, an arrow from who waits to whom it waits for.
fn dot(waits: &[WaitItem]) -> String {
    let mut text = String::from("digraph waits {\n  node [shape=box];\n");
    for wait in waits {
        let waiter = quoted(&format!("client {}", who(wait.client, &wait.name, &wait.owner)));
        if wait.waits_for.is_empty() {
            let _ = writeln!(text, "  {waiter} [xlabel={}];", quoted(cause(wait.reason)));
        }
        for other in &wait.waits_for {
            let other_node = quoted(&format!("client {}", who(other.client, &other.name, &other.owner)));
            let style = if other.token.is_some() { "" } else { ", style=dashed" };
            let lock = quoted(&lock_of(wait, Some(other)));
            let _ = writeln!(text, "  {waiter} -> {other_node} [label={lock}{style}];");
        }
    }
    text.push_str("}\n");
    text
}

/// Text inside quotes of Graphviz, where a backslash begins an escape.
fn quoted(text: &str) -> String {
    let text = printable(text).replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{text}\"")
}

/// `tenure top`: the locks that are waited for most.
pub(crate) fn top(context: &Context, args: &Top) -> Result<()> {
    context.output().list(
        &["LOCK", "WAITING", "MOST", "WAITS", "WAITED", "TENURES", "HELD", "HAND-OFF", "COUNTED"],
        context.client()?.list_contention(),
        args.most.limit,
        top_row,
    )
}

/// Times are means, of all that was counted.
fn top_row(item: &ContentionItem) -> Vec<String> {
    let it = &item.contention;
    let span = |total, count| mean(total, count).map_or("-".into(), show_us);
    vec![
        item.key.clone(),
        item.queue_total.to_string(),
        it.longest_queue.to_string(),
        it.waits.to_string(),
        span(it.waited_us, it.waits_ended),
        it.tenures.to_string(),
        span(it.held_us, it.tenures),
        span(it.hand_off_us, it.hand_offs),
        show_ms(it.counted_ms),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_lock_is_explained_with_holder_and_line_and_why_each_one_waits() {
        let info: LockInfo = serde_json::from_value(json!({
            "key": "deploy", "locked": true, "holders_total": 1, "queue_total": 4, "op": 9,
            "holders": [{"client": 3, "name": "ci", "label": "night\u{1b}", "mode": "exclusive", "token": 17,
                         "held_ms": 2_100, "lease_left_ms": 9_000, "hold_left_ms": 60_000, "offered": 8,
                         "asked": {"client": 9, "reason": "deploy\u{1b}", "left_ms": 1_500}}],
            "queue": [{"position": 1, "client": 5, "owner": "t1", "mode": "exclusive", "wait": 2, "waited_ms": 300,
                       "wait_left_ms": 9_700, "reason": "held", "estimate_ms": 1_400},
                      {"position": 2, "client": 6, "mode": "exclusive", "wait": 1, "waited_ms": 10},
                      {"position": 3, "client": 7, "mode": "shared", "wait": 1, "waited_ms": 10, "reason": "queued"},
                      {"position": 4, "client": 8, "mode": "exclusive", "wait": 4, "waited_ms": 9, "reason": "lock_delay",
                       "key": "other", "converts": 12}],
            "contention": {"counted_ms": 60_000, "waits": 5, "waits_ended": 2, "waited_us": 3_000_000, "longest_queue": 3,
                           "tenures": 2, "held_us": 7_000_000, "hold_us": 3_500_000, "hand_offs": 4, "hand_off_us": 2_000},
        }))
        .unwrap();
        let expected = "\
deploy is held
  by client 3 (ci) for 2.1s, exclusive, token 17, 9s left, label \"night\\u{1b}\"
    for 1m 0s more at most, whatever is renewed
    asked to let go by client 9: \"deploy\\u{1b}\", broken in 1.5s
    offered to client 8
4 wait
  1. client 5 (/t1) for 300ms, exclusive, gives up in 9.7s: held by token 17, its turn in about 1.4s
  2. client 6 for 10ms, exclusive, without limit
  3. client 7 for 10ms, shared, without limit: behind an earlier request
  4. client 8 for 9ms, exclusive, without limit, to convert its grant 12: closed for its lock-delay at other
in the last 1m 0s: 5 waits of 1.5s, usually held for 3.5s, handed on in 500us";
        assert_eq!(explained(&info), expected);
    }

    #[test]
    fn a_free_lock_is_one_line_and_a_closed_one_says_for_how_long() {
        let mut info = LockInfo {
            key: "a".into(),
            locked: false,
            holders: vec![],
            holders_total: 0,
            queue: vec![],
            queue_total: 0,
            queue_max: None,
            closed_ms: None,
            contention: None,
            next: None,
            op: 1,
        };
        assert_eq!(explained(&info), "a is free");
        info.closed_ms = Some(2_000);
        assert_eq!(
            explained(&info),
            "a is held by nobody\nclosed for another 2s: lock-delay, since a tenure ended without a release"
        );
    }

    fn waits() -> Vec<WaitItem> {
        let key = |key: &str| json!({"key": key, "mode": "exclusive"});
        serde_json::from_value(json!([
            {"op": 4, "client": 5, "name": "w\"x\\", "owner": "t1", "wait": 2, "keys": [key("a"), key("b")], "position": 1,
             "reason": "held", "key": "a", "waited_ms": 3, "for": [
                {"client": 3, "name": "ci", "label": "nightly", "key": "b", "token": 17},
                {"client": 6, "key": "a", "ahead": true}]},
            {"op": 5, "client": 6, "wait": 1, "keys": [key("a")], "position": 1, "reason": "lock_delay", "key": "a",
             "waited_ms": 2},
            {"op": 6, "client": 7, "wait": 1, "keys": [key("c")], "position": 2, "reason": "conversion", "key": "c",
             "waited_ms": 1, "for": [{"client": 8, "key": "c", "ahead": true, "converts": 21}]},
        ]))
        .unwrap()
    }

    #[test]
    fn the_graph_has_a_line_for_each_pair_of_who_waits_and_for_whom() {
        let expected = "\
client 5 (w\"x\\/t1) waits for \"b\", held by client 3 (ci), token 17, label \"nightly\"
client 5 (w\"x\\/t1) waits for \"a\", behind client 6, which waits too
client 6 waits for \"a\", closed for its lock-delay
client 7 waits for \"c\", behind client 8, which waits to convert token 21
";
        assert_eq!(lines(&waits()), expected);
        assert_eq!(lines(&[]), "nobody waits\n");
    }

    #[test]
    fn the_graph_for_graphviz_has_quoted_names_and_dashes_where_nobody_holds() {
        let expected = r#"digraph waits {
  node [shape=box];
  "client 5 (w\"x\\/t1)" -> "client 3 (ci)" [label="b"];
  "client 5 (w\"x\\/t1)" -> "client 6" [label="a", style=dashed];
  "client 6" [xlabel="closed for its lock-delay"];
  "client 7" -> "client 8" [label="c", style=dashed];
}
"#;
        assert_eq!(dot(&waits()), expected);
        assert_eq!(dot(&[]), "digraph waits {\n  node [shape=box];\n}\n");
    }

    #[test]
    fn a_line_of_top_shows_means_and_dashes_where_nothing_is_known() {
        let contention = ContentionShown {
            counted_ms: 90_000,
            waits: 3,
            waits_ended: 2,
            waited_us: 5_000,
            longest_queue: 2,
            ..ContentionShown::default()
        };
        let item = ContentionItem { key: "a".into(), queue_total: 1, contention };
        assert_eq!(top_row(&item), ["a", "1", "2", "3", "2.5ms", "0", "-", "-", "1m 30s"]);
    }
}
