//! The judge of the soaks: at most one live tenure of a lock, tokens that strictly rise, every acknowledged append exactly
//! once, whole, in its section's order, and sections that stand together.
//!
//! Clients report what they believe: a tenure begins for them when they have read the grant, which is later than it began,
//! and ends before they send the release, which is earlier than it ended. So two tenures that overlap here did overlap.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

/// A line of a file, as one append wrote it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    token: u64,
    /// Its number in the section, from 1.
    number: u64,
}

#[derive(Debug)]
struct Placed {
    offset: u64,
    length: u64,
}

#[derive(Debug, Default)]
struct File {
    /// Every line that was sent; with its place once that was acknowledged.
    lines: BTreeMap<Line, Option<Placed>>,
}

#[derive(Debug, Default)]
struct History {
    /// Who holds, as the clients believe.
    live: BTreeMap<String, u64>,
    /// The last token that a lock was seen under.
    last: BTreeMap<String, u64>,
    /// The token of each grant by the command that made it and the lock: one command may serve several lines.
    grants: BTreeMap<(u64, String), u64>,
    files: BTreeMap<String, File>,
    /// For each key: increments acknowledged, increments sent.
    counters: BTreeMap<String, (u64, u64)>,
    acked: u64,
    expired: u64,
    faults: Vec<String>,
}

/// What was lost and doubled in the end, and how much was looked at.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Operations that were acknowledged.
    pub(crate) acked: u64,
    /// Acknowledged appends that do not stand where they were said to.
    pub(crate) lost: u64,
    /// Appends that stand more than once.
    pub(crate) doubled: u64,
    /// Clients that kept their sessions alive and were refused.
    pub(crate) expired: u64,
    /// What else is wrong, as sentences.
    pub(crate) faults: Vec<String>,
}

impl Verdict {
    /// Prints the figures and fails the test if any is not nothing.
    pub(crate) fn assert_clean(&self) {
        let Verdict { acked, lost, doubled, expired, faults } = self;
        println!("acked {acked}, lost {lost}, doubled {doubled}, wrongly expired {expired}");
        assert!(*lost == 0 && *doubled == 0 && *expired == 0 && faults.is_empty(), "{self:#?}");
    }
}

/// The judge. Shared by all clients of a test.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    history: Mutex<History>,
}

impl Oracle {
    /// The text of a line.
    pub(crate) fn line(token: u64, number: u64) -> String {
        format!("{token}.{number}\n")
    }

    /// A client has read that it was granted a lock by the command `op`.
    pub(crate) fn granted(&self, lock: &str, token: u64, op: u64) {
        let mut history = self.history.lock().unwrap();
        history.acked += 1;
        let before = history.grants.insert((op, lock.into()), token);
        if let Some(before) = before.filter(|before| *before != token) {
            history.faults.push(format!("command {op} granted {lock} under {before} and under {token}"));
        }
    }

    /// A client believes from now on that it holds a lock.
    pub(crate) fn begins(&self, lock: &str, token: u64) {
        let mut history = self.history.lock().unwrap();
        if let Some(other) = history.live.insert(lock.into(), token) {
            history.faults.push(format!("{lock} is held under {other} and under {token}"));
        }
        if let Some(before) = history.last.insert(lock.into(), token).filter(|before| *before >= token) {
            history.faults.push(format!("{lock} had the token {before} and then {token}"));
        }
    }

    /// A client stops believing that it holds a lock: it is about to release it, or it dies.
    pub(crate) fn ends(&self, lock: &str, token: u64) {
        let mut history = self.history.lock().unwrap();
        if history.live.get(lock) == Some(&token) {
            history.live.remove(lock);
        }
    }

    /// A client is about to append a line.
    pub(crate) fn sends(&self, file: &str, token: u64, number: u64) {
        let mut history = self.history.lock().unwrap();
        history.files.entry(file.into()).or_default().lines.insert(Line { token, number }, None);
    }

    /// The append of a line was acknowledged.
    pub(crate) fn appended(&self, file: &str, token: u64, number: u64, offset: u64, length: u64) {
        let mut history = self.history.lock().unwrap();
        history.acked += 1;
        let place = Some(Placed { offset, length });
        history.files.entry(file.into()).or_default().lines.insert(Line { token, number }, place);
    }

    /// A client is about to add one to a key that counts.
    pub(crate) fn adds(&self, key: &str) {
        self.history.lock().unwrap().counters.entry(key.into()).or_default().1 += 1;
    }

    /// That was acknowledged.
    pub(crate) fn added(&self, key: &str) {
        let mut history = self.history.lock().unwrap();
        history.acked += 1;
        history.counters.entry(key.into()).or_default().0 += 1;
    }

    /// Some other request was acknowledged.
    pub(crate) fn acked(&self) {
        self.history.lock().unwrap().acked += 1;
    }

    /// How many operations were acknowledged so far.
    pub(crate) fn acked_so_far(&self) -> u64 {
        self.history.lock().unwrap().acked
    }

    /// A client that kept its session alive was refused as though it had not.
    pub(crate) fn wrongly_expired(&self, text: String) {
        self.history.lock().unwrap().expired += 1;
        self.fault(text);
    }

    /// Something that must not happen did.
    pub(crate) fn fault(&self, text: String) {
        self.history.lock().unwrap().faults.push(text);
    }

    /// The files that were written to.
    pub(crate) fn files(&self) -> Vec<String> {
        self.history.lock().unwrap().files.keys().cloned().collect()
    }

    /// The keys that count.
    pub(crate) fn counters(&self) -> Vec<String> {
        self.history.lock().unwrap().counters.keys().cloned().collect()
    }

    /// Judges the whole run by the files as they stand and the keys as they are.
    pub(crate) fn judge(&self, files: &BTreeMap<String, String>, keys: &BTreeMap<String, u64>) -> Verdict {
        let history = self.history.lock().unwrap();
        let mut verdict = Verdict {
            acked: history.acked,
            expired: history.expired,
            faults: history.faults.clone(),
            ..Verdict::default()
        };
        // The command of the last token, the greatest token of earlier commands, and the greatest of this one.
        let (mut last, mut before, mut most) = (0, 0, 0);
        for ((op, _), token) in &history.grants {
            if *op != last {
                (last, before) = (*op, most);
            }
            if *token <= before {
                verdict.faults.push(format!("command {op} granted token {token} after token {before}"));
            }
            most = most.max(*token);
        }
        for (name, file) in &history.files {
            judge_file(name, file, files.get(name).map_or("", String::as_str), &mut verdict);
        }
        for (key, (acked, sent)) in &history.counters {
            let value = keys.get(key).copied().unwrap_or(0);
            if !(acked..=sent).contains(&&value) {
                let text = format!("{key} counts {value}; {acked} additions were acknowledged, {sent} sent");
                verdict.faults.push(text);
            }
        }
        verdict
    }
}

fn judge_file(name: &str, file: &File, content: &str, verdict: &mut Verdict) {
    let mut seen: BTreeSet<Line> = BTreeSet::new();
    let mut last: Option<Line> = None;
    let mut offset = 0u64;
    for text in content.split_inclusive('\n') {
        let Some(line) = parse(text).filter(|line| file.lines.contains_key(line)) else {
            verdict.faults.push(format!("{name}: at {offset} stands {text:?}, which nobody appended"));
            offset += text.len() as u64;
            continue;
        };
        if !seen.insert(line.clone()) {
            verdict.doubled += 1;
            verdict.faults.push(format!("{name}: {text:?} stands twice"));
        }
        if let Some(Some(place)) = file.lines.get(&line)
            && (place.offset, place.length) != (offset, offset + text.len() as u64)
        {
            verdict
                .faults
                .push(format!("{name}: {text:?} stands at {offset} and was said to be at {place:?}"));
        }
        if last.as_ref().is_some_and(|last| *last >= line) {
            verdict.faults.push(format!("{name}: {text:?} stands behind {last:?}"));
        }
        offset += text.len() as u64;
        last = Some(line);
    }
    for (line, place) in &file.lines {
        if place.is_some() && !seen.contains(line) {
            verdict.lost += 1;
            verdict.faults.push(format!("{name}: {line:?} was acknowledged and is not there"));
        }
    }
}

fn parse(text: &str) -> Option<Line> {
    let (token, number) = text.strip_suffix('\n')?.split_once('.')?;
    Some(Line { token: token.parse().ok()?, number: number.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> Oracle {
        let oracle = Oracle::default();
        for (token, op) in [(1, 10), (2, 20)] {
            oracle.granted("a", token, op);
            oracle.begins("a", token);
            for number in 1..=2 {
                oracle.sends("a", token, number);
                let offset = (token - 1) * 8 + (number - 1) * 4;
                oracle.appended("a", token, number, offset, offset + 4);
            }
            oracle.ends("a", token);
        }
        oracle
    }

    fn judged(oracle: &Oracle, content: &str) -> Verdict {
        oracle.judge(&BTreeMap::from([("a".into(), content.into())]), &BTreeMap::new())
    }

    #[test]
    fn a_good_history_is_clean() {
        judged(&history(), "1.1\n1.2\n2.1\n2.2\n").assert_clean();
    }

    #[test]
    fn lost_doubled_mixed_and_unknown_lines_are_found() {
        let oracle = history();
        assert_eq!(judged(&oracle, "1.1\n1.2\n2.1\n").lost, 1);
        assert_eq!(judged(&oracle, "1.1\n1.1\n1.2\n2.1\n2.2\n").doubled, 1);
        assert!(!judged(&oracle, "1.1\n2.1\n1.2\n2.2\n").faults.is_empty(), "sections are mixed");
        assert!(!judged(&oracle, "1.1\n1.2\n2.1\n2.2\n9.9\n").faults.is_empty(), "a line is nobody's");
        assert!(!judged(&oracle, "1.1\n1.2\n2.1\n2.2\n2.").faults.is_empty(), "a line is torn");
    }

    #[test]
    fn a_line_that_was_sent_and_never_acknowledged_may_stand_or_not() {
        let oracle = history();
        oracle.sends("a", 2, 3);
        judged(&oracle, "1.1\n1.2\n2.1\n2.2\n").assert_clean();
        judged(&oracle, "1.1\n1.2\n2.1\n2.2\n2.3\n").assert_clean();
        assert_eq!(judged(&oracle, "1.1\n1.2\n2.1\n2.2\n2.3\n2.3\n").doubled, 1);
    }

    #[test]
    fn two_holders_and_falling_tokens_are_found() {
        let oracle = Oracle::default();
        oracle.begins("a", 5);
        oracle.begins("a", 6);
        assert_eq!(judged(&oracle, "").faults.len(), 1);
        let oracle = Oracle::default();
        oracle.granted("a", 5, 1);
        oracle.granted("b", 4, 2);
        assert_eq!(judged(&oracle, "").faults.len(), 1);
        let oracle = Oracle::default();
        oracle.begins("a", 5);
        oracle.ends("a", 5);
        oracle.begins("a", 5);
        assert_eq!(judged(&oracle, "").faults.len(), 1);
    }

    #[test]
    fn a_counter_that_missed_or_repeated_an_addition_is_found() {
        let oracle = Oracle::default();
        oracle.adds("n");
        oracle.added("n");
        oracle.adds("n");
        let judged =
            |value| oracle.judge(&BTreeMap::new(), &BTreeMap::from([("n".into(), value)])).faults.len();
        assert_eq!([judged(0), judged(1), judged(2), judged(3)], [1, 0, 0, 1]);
    }
}
