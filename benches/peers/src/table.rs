//! The rows: what is compared with what, and whether what was set as a goal is reached.

use crate::figures::Figures;
use crate::thousands::thousands;
use std::collections::BTreeMap;

/// The figures of one repeat, by measurement.
pub type Pass = BTreeMap<&'static str, Figures>;

/// How ours and theirs make one number, and which is better.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// How many times as many operations a second.
    Rate,
    /// How many times as fast, by half of all.
    Time,
    /// How many times less CPU time of the server an operation.
    CpuEach,
    /// How many times less of a core.
    CpuAll,
    /// The slowest of a hundred, in times of half of all. Less is better, and theirs is only shown.
    Spread,
    /// Bytes. Less is better, and theirs is only shown.
    Bytes,
    /// Seconds. Less is better.
    Seconds,
}

/// One row. Without a goal it is shown for the sake of the others.
pub struct Row {
    pub what: &'static str,
    pub against: &'static str,
    pub ours: &'static str,
    /// Empty for none.
    pub theirs: &'static str,
    pub compare: Compare,
    pub must: Option<f64>,
    pub aim: Option<f64>,
}

const fn row(
    what: &'static str,
    (ours, against, theirs): (&'static str, &'static str, &'static str),
    compare: Compare,
    goals: (f64, f64),
) -> Row {
    Row { what, against, ours, theirs, compare, must: Some(goals.0), aim: Some(goals.1) }
}

const fn beside(
    what: &'static str,
    (ours, against, theirs): (&'static str, &'static str, &'static str),
    compare: Compare,
) -> Row {
    Row { what, against, ours, theirs, compare, must: None, aim: None }
}

/// All rows, in the order of the table.
pub const ROWS: [Row; 27] = [
    row(
        "cycles/s, 64 clients on 64 sockets, `none`",
        ("none-cycle-64", "Redis without persistence", "redis-cycle-64"),
        Compare::Rate,
        (1.5, 2.0),
    ),
    beside(
        "server CPU a cycle, the same",
        ("none-cycle-64", "Redis without persistence", "redis-cycle-64"),
        Compare::CpuEach,
    ),
    row(
        "cycles/s, 64 clients, `sync`",
        ("sync-cycle-64", "Redis `appendfsync always`", "redis-always-cycle-64"),
        Compare::Rate,
        (1.8, 3.0),
    ),
    row(
        "cycles/s, 64 clients, `sync`",
        ("sync-cycle-64", "etcd, one node", "etcd-cycle-64"),
        Compare::Rate,
        (15.0, 25.0),
    ),
    row(
        "p50 of a cycle, 1 client, `none`",
        ("none-cycle-1", "Redis without persistence", "redis-cycle-1"),
        Compare::Time,
        (1.0, 1.5),
    ),
    Row {
        what: "p50 of a cycle, 1 client, `none`, busy poll of the server",
        against: "Redis without persistence",
        ours: "busy-cycle-1",
        theirs: "redis-cycle-1",
        compare: Compare::Time,
        must: None,
        aim: Some(5.0),
    },
    beside(
        "the same, the load does not sleep either",
        ("busy-cycle-1-spin", "Redis, the load likewise", "redis-cycle-1-spin"),
        Compare::Time,
    ),
    row(
        "p50 of a cycle, 1 client, `sync`",
        ("sync-cycle-1", "Redis `appendfsync always`", "redis-always-cycle-1"),
        Compare::Time,
        (1.2, 2.0),
    ),
    row(
        "server CPU a cycle, one peer with 64 in flight",
        ("none-peer-64", "Redis pipelined", "redis-pipelined-64"),
        Compare::CpuEach,
        (1.5, 3.0),
    ),
    beside("cycles/s, the same", ("none-peer-64", "Redis pipelined", "redis-pipelined-64"), Compare::Rate),
    row(
        "grants/s, 16 clients on one lock, `none`",
        ("none-hand-off", "Redis BLPOP queue", "redis-hand-off"),
        Compare::Rate,
        (1.2, 1.5),
    ),
    Row {
        what: "the same, busy poll of the server",
        against: "Redis BLPOP queue",
        ours: "busy-hand-off",
        theirs: "redis-hand-off",
        compare: Compare::Rate,
        must: None,
        aim: Some(5.0),
    },
    row(
        "grants/s, 16 clients on one lock, `none`",
        ("none-hand-off", "etcd", "etcd-hand-off"),
        Compare::Rate,
        (50.0, 200.0),
    ),
    row(
        "grants/s, 16 clients on one lock, `none`",
        ("none-hand-off", "ZooKeeper", "zookeeper-hand-off"),
        Compare::Rate,
        (8.0, 30.0),
    ),
    beside("the same, `sync`: both durable", ("sync-hand-off", "etcd", "etcd-hand-off"), Compare::Rate),
    beside(
        "the same, `sync`: both durable",
        ("sync-hand-off", "ZooKeeper", "zookeeper-hand-off"),
        Compare::Rate,
    ),
    row(
        "p99 over p50 of the wait, the same load, `none`",
        ("none-hand-off", "Redis BLPOP", "redis-hand-off"),
        Compare::Spread,
        (2.0, 1.5),
    ),
    row(
        "server CPU to keep 10,000 locks alive",
        ("none-keep-alive", "Redis PEXPIRE, each lock once a second", "redis-keep-alive"),
        Compare::CpuAll,
        (10.0, 100.0),
    ),
    beside(
        "the same, each lock in a session of its own",
        ("none-keep-sessions", "Redis PEXPIRE, each lock once a second", "redis-keep-alive"),
        Compare::CpuAll,
    ),
    row(
        "memory a held lock, 32-byte names",
        ("none-memory", "a key of Redis", "redis-memory"),
        Compare::Bytes,
        (250.0, 120.0),
    ),
    row(
        "put/s of 100 bytes, 64 clients, `none`",
        ("none-put", "Redis without persistence", "redis-put"),
        Compare::Rate,
        (1.0, 1.5),
    ),
    row(
        "get/s of 100 bytes, 64 clients, `none`",
        ("none-get", "Redis without persistence", "redis-get"),
        Compare::Rate,
        (1.0, 1.5),
    ),
    row(
        "appends/s of 100 bytes, 64 clients, 64 files, `sync`",
        ("sync-append", "group commit of the disk: 64 records a sync", "disk-64"),
        Compare::Rate,
        (0.5, 0.8),
    ),
    beside(
        "the same, the clients behind one socket",
        ("sync-append-agent", "group commit of the disk: 64 records a sync", "disk-64"),
        Compare::Rate,
    ),
    beside(
        "writes/s and syncs, one at a time, `sync`",
        ("sync-put-1", "one record a sync of the disk", "disk-1"),
        Compare::Rate,
    ),
    row(
        "start with all locks and the journal, seconds",
        ("sync-start", "–", ""),
        Compare::Seconds,
        (10.0, 3.0),
    ),
    beside("start, empty directory, seconds", ("sync-start-empty", "–", ""), Compare::Seconds),
];

impl Row {
    pub fn wants(&self, only: &str) -> bool {
        [self.what, self.against, self.ours, self.theirs].iter().any(|text| text.contains(only))
    }

    /// The row over all repeats: the medians of both, and of their ratio in each repeat. None if either is missing.
    fn judged(&self, passes: &[Pass]) -> Option<Judged> {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        let mut scores = Vec::new();
        for pass in passes {
            let one = self.compare.figure(pass.get(self.ours)?);
            let other = pass.get(self.theirs).map(|figures| self.compare.figure(figures));
            scores.push(match (self.compare, other) {
                (Compare::Rate, Some(other)) => one / other,
                (Compare::Time | Compare::CpuEach | Compare::CpuAll, Some(other)) => other / one,
                (Compare::Spread | Compare::Bytes | Compare::Seconds, _) => one,
                (_, None) => return None,
            });
            ours.push(one);
            theirs.extend(other);
        }
        let (lowest, highest) =
            (scores.iter().copied().reduce(f64::min)?, scores.iter().copied().reduce(f64::max)?);
        Some(Judged { ours: median(ours)?, theirs: median(theirs), score: median(scores)?, lowest, highest })
    }

    fn holds(&self, goal: Option<f64>, score: f64) -> &'static str {
        let less = matches!(self.compare, Compare::Spread | Compare::Bytes | Compare::Seconds);
        match goal {
            None => "",
            Some(goal) if less && score <= goal || !less && score >= goal => "yes",
            Some(_) => "**no**",
        }
    }
}

struct Judged {
    ours: f64,
    theirs: Option<f64>,
    score: f64,
    lowest: f64,
    highest: f64,
}

impl Compare {
    fn figure(self, figures: &Figures) -> f64 {
        match self {
            Compare::Rate => figures.rate,
            Compare::Time => figures.p50_us,
            Compare::CpuEach => figures.cpu_us,
            Compare::CpuAll => figures.cpu,
            Compare::Spread => figures.p99_us / figures.p50_us,
            Compare::Bytes => figures.bytes,
            Compare::Seconds => figures.seconds,
        }
    }

    fn shown(self, figure: f64) -> String {
        match self {
            Compare::Rate => format!("{}/s", thousands(figure)),
            Compare::Time => format!("{figure:.0} µs"),
            Compare::CpuEach => format!("{figure:.2} µs"),
            Compare::CpuAll => format!("{:.3} % of a core", figure * 100.0),
            Compare::Spread => format!("{figure:.2}"),
            Compare::Bytes => format!("{figure:.0} B"),
            Compare::Seconds => format!("{figure:.2} s"),
        }
    }

    fn goal(self, goal: Option<f64>) -> String {
        match goal {
            None => String::new(),
            Some(goal) if matches!(self, Compare::Spread) => format!("{goal}"),
            Some(goal) if matches!(self, Compare::Bytes) => format!("{goal} B"),
            Some(goal) if matches!(self, Compare::Seconds) => format!("{goal} s"),
            Some(goal) => format!("{goal}x"),
        }
    }
}

/// The table as Markdown.
pub fn markdown(rows: &[&Row], passes: &[Pass]) -> String {
    let mut text = String::from(
        "| what | against | theirs | Tenure | ratio (lowest–highest) | must | holds | aim | holds |\n\
         |---|---|---:|---:|---:|---:|---|---:|---|\n",
    );
    for row in rows {
        let compare = row.compare;
        let (must, aim) = (compare.goal(row.must), compare.goal(row.aim));
        let Some(judged) = row.judged(passes) else {
            text += &format!("| {} | {} | | | not measured | {must} | | {aim} | |\n", row.what, row.against);
            continue;
        };
        let theirs = judged.theirs.map_or_else(String::new, |theirs| compare.shown(theirs));
        let score = if matches!(compare, Compare::Spread | Compare::Bytes | Compare::Seconds) {
            format!("({}–{})", compare.shown(judged.lowest), compare.shown(judged.highest))
        } else {
            format!("{:.2}x ({:.2}–{:.2})", judged.score, judged.lowest, judged.highest)
        };
        text += &format!(
            "| {} | {} | {theirs} | {} | {score} | {must} | {} | {aim} | {} |\n",
            row.what,
            row.against,
            compare.shown(judged.ours),
            row.holds(row.must, judged.score),
            row.holds(row.aim, judged.score)
        );
    }
    text
}

/// The one in the middle; of an even number the lower.
fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_in_each_repeat_and_goals_know_which_is_better() {
        let pass = |ours: f64, theirs: f64| {
            let figures = |rate| Figures { rate, p50_us: 1e6 / rate, bytes: rate, ..Figures::NONE };
            Pass::from([("a", figures(ours)), ("b", figures(theirs))])
        };
        let passes = [pass(100.0, 50.0), pass(300.0, 100.0), pass(90.0, 60.0)];
        let told = |compare, must, aim| {
            let row = Row {
                what: "w",
                against: "a",
                ours: "a",
                theirs: "b",
                compare,
                must: Some(must),
                aim: Some(aim),
            };
            markdown(&[&row], &passes).lines().last().unwrap_or_default().to_owned()
        };
        assert_eq!(
            told(Compare::Rate, 2.0, 2.5),
            "| w | a | 60/s | 100/s | 2.00x (1.50–3.00) | 2x | yes | 2.5x | **no** |"
        );
        assert!(told(Compare::Time, 1.5, 3.0).contains("2.00x (1.50–3.00) | 1.5x | yes | 3x | **no**"));
        assert!(told(Compare::Bytes, 120.0, 90.0).contains("| 120 B | yes | 90 B | **no** |"));
        let row = Row {
            what: "w",
            against: "a",
            ours: "a",
            theirs: "c",
            compare: Compare::Rate,
            must: None,
            aim: None,
        };
        assert!(markdown(&[&row], &passes).contains("not measured"));
    }
}
