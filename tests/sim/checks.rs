//! The judges. What clients saw is judged by rules of its own, which share nothing with the server's state machine; the one
//! exception is [`Oracle`], which replays the commands that the log was given to say what a recovery must come to.

use crate::lives::Word;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tenure::command::{Command, EndReason, Entry};
use tenure::log::Batch;
use tenure::outcome::Effect;
use tenure::snapshot::{self, ServerId, Snapshot};
use tenure::state::State;

/// What the log was given, and what of it was told to be durable.
pub(crate) struct Oracle {
    pub(crate) state: State,
    entries: VecDeque<(u64, Entry)>,
    /// Of what is not told to be durable, by batch: its sequence number, its last op, and how much time had passed.
    tags: VecDeque<(u64, u64, i64)>,
    acked: u64,
    /// How much time has passed for the server, and how much of that no kill takes back.
    pub(crate) passed: i64,
    pub(crate) passed_durably: i64,
    effects: Vec<Effect>,
    pub(crate) violations: Vec<String>,
    pub(crate) commands: u64,
    pub(crate) recoveries: u64,
    /// What the log was asked to do about sessions, to be judged.
    pub(crate) words: Vec<Word>,
    /// Where the last recovery ended.
    recovered: u64,
}

impl Oracle {
    pub(crate) fn new() -> Oracle {
        Oracle {
            state: State::new(),
            entries: VecDeque::new(),
            tags: VecDeque::new(),
            acked: 0,
            passed: 0,
            passed_durably: 0,
            effects: Vec::new(),
            violations: Vec::new(),
            commands: 0,
            recoveries: 0,
            words: Vec::new(),
            recovered: 0,
        }
    }

    pub(crate) fn submitted(&mut self, batch: &Batch) {
        self.words.extend(batch.entries.iter().filter_map(|entry| match entry.command {
            Command::OpenSession { session, ttl_ms, .. } => Some(Word::Opened { session, ttl_ms }),
            Command::EndSession { session, reason: EndReason::Expired, .. } => {
                Some(Word::Expired { session })
            }
            Command::EndSession { session, .. } => Some(Word::Closed { session }),
            _ => None,
        }));
        let ops = batch.first_op..;
        self.entries.extend(ops.zip(batch.entries.iter().cloned()));
        self.tags.push_back((batch.seq, batch.first_op + batch.entries.len() as u64 - 1, self.passed));
    }

    pub(crate) fn committed(&mut self, seq: u64) {
        let Some((tag, op, passed)) = self.tags.pop_front() else {
            return self.violations.push(format!("batch {seq} was committed twice"));
        };
        if tag != seq {
            self.violations.push(format!("batch {seq} was committed before batch {tag}"));
        }
        (self.acked, self.passed_durably) = (op, passed);
        self.apply_up_to(op);
    }

    fn apply_up_to(&mut self, last: u64) {
        while let Some((op, entry)) = self.entries.pop_front() {
            if op > last {
                self.entries.push_front((op, entry));
                return;
            }
            self.commands += 1;
            self.state.apply_entry(op, &entry, &mut self.effects);
            self.effects.clear();
        }
    }

    /// What a start has recovered: all that was told to be durable, perhaps more of what was submitted, nothing else.
    pub(crate) fn recovered(&mut self, state: &State, fresh: bool) {
        if let Some(fault) = self.judge(state) {
            self.violations.push(fault);
        }
        if fresh && self.acked > 0 {
            self.violations.push("a directory with a log was taken for a fresh one".into());
        }
        self.recoveries += 1;
        self.recovered = state.op();
    }

    /// The start is over: from here on what it recovered must be there again. Before, it may have read what no sync covered.
    pub(crate) fn started(&mut self) {
        self.apply_up_to(self.recovered);
        self.entries.clear();
        self.tags.clear();
        self.acked = self.acked.max(self.recovered);
    }

    fn judge(&self, state: &State) -> Option<String> {
        let op = state.op();
        if op < self.acked {
            return Some(format!("op {} was acknowledged, and recovery ends with op {op}", self.acked));
        }
        let last = self.entries.back().map_or(self.state.op(), |(op, _)| *op);
        if op > last {
            return Some(format!("recovery ends with op {op}, and the log was given ops up to {last} only"));
        }
        let mut expected = State::from_parts(self.state.parts()).expect("it is a state");
        for (of, entry) in self.entries.iter().take_while(|(of, _)| *of <= op) {
            expected.apply_entry(*of, entry, &mut Vec::new());
        }
        (shown(state) != shown(&expected))
            .then(|| format!("the state recovered at op {op} is not what the commands up to there give"))
    }

    /// Whether this could be the state recovered from a damaged disk, without taking it for that.
    pub(crate) fn could_be(&self, state: &State) -> Option<String> {
        self.judge(state)
    }
}

/// A state as text.
pub(crate) fn shown(state: &State) -> Vec<u8> {
    let snapshot = Snapshot { server: ServerId(0), clean: false, parts: state.parts(), redo: vec![] };
    let mut out = Vec::new();
    snapshot::encode(&snapshot, &mut out).expect("writing to memory");
    out
}

/// How a lock is held or asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    Exclusive,
    Shared,
    Slot { slots: u64, weight: u64 },
}

impl Mode {
    fn goes_with(self, other: Mode) -> bool {
        match (self, other) {
            (Mode::Shared, Mode::Shared) => true,
            (Mode::Slot { slots, weight }, Mode::Slot { weight: more, .. }) => weight + more <= slots,
            _ => false,
        }
    }
}

/// Who believes to hold a lock.
#[derive(Clone, Debug)]
pub(crate) struct Belief {
    pub(crate) client: usize,
    pub(crate) life: u64,
    pub(crate) token: u64,
    pub(crate) mode: Mode,
}

/// How long a key lives: for a time, or with the session of that client's life, or both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) ttl_ms: Option<u64>,
    pub(crate) bound: Option<(usize, u64)>,
}

/// A write of a key that does not live for ever.
#[derive(Debug)]
struct Mortal {
    span: Span,
    began: u64,
    /// Its version, once that is known, and when it was, in the server's time at least.
    version: Option<(u64, Passed)>,
}

impl Mortal {
    /// Whether its TTL may be over: the server's clock is at most a tenth faster, and nothing makes it pass more time.
    fn may_be_over(&self, now: u64) -> bool {
        self.span.ttl_ms.is_some_and(|ttl_ms| self.began + ttl_ms * 1_000 * 10 / 11 <= now)
    }
}

/// What is rounded, in microseconds.
const SLACK_US: i64 = 5_000;

/// Simulated time, and how much of it has passed for the server at least; its clock may be a tenth slower still.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passed {
    now: u64,
    passed: i64,
    /// How much of that no kill takes back: readers see nothing later.
    durably: i64,
    /// It stands still until then.
    stands_until: u64,
}

impl Passed {
    fn advance(&mut self, now: u64) {
        self.passed += now.saturating_sub(self.now.max(self.stands_until)) as i64;
        self.now = now;
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Open,
    Done,
    Maybe,
    Never,
}

#[derive(Debug, Default)]
struct Key {
    /// What was to be written, and what became of it.
    writes: BTreeMap<String, Fate>,
    versions: BTreeMap<u64, String>,
    /// The highest version known to have been written, and to have been removed.
    seen: u64,
    pub(crate) gone: u64,
    /// Deletes of which the outcome is not known.
    open_deletes: u64,
    /// Version expected, version made.
    swaps: Vec<(u64, u64)>,
    guarded: Vec<(u64, u64)>,
    staged: BTreeSet<String>,
    mortal: BTreeMap<String, Mortal>,
}

/// What is known of a key when a call begins.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Floor {
    pub(crate) token: u64,
    pub(crate) seen: u64,
    pub(crate) gone: u64,
    /// What time it was, and how many sessions were known to have ended.
    pub(crate) clock: Passed,
    pub(crate) ended: usize,
}

#[derive(Debug)]
struct Append {
    token: u64,
    fate: Fate,
    offset: Option<u64>,
}

#[derive(Debug, Default)]
struct File {
    appends: BTreeMap<String, Append>,
    reads: Vec<(u64, Vec<u8>)>,
}

/// A request for a lock that stood in line.
#[derive(Clone, Debug)]
pub(crate) struct Waited {
    pub(crate) keys: Vec<(String, Mode)>,
    pub(crate) began: u64,
    /// When it was known to stand in line.
    pub(crate) pending: Option<u64>,
    pub(crate) token: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) violations: Vec<String>,
    highest_token: u64,
    tokens: BTreeMap<u64, (usize, u64, String)>,
    pub(crate) beliefs: BTreeMap<String, Vec<Belief>>,
    keys: BTreeMap<String, Key>,
    files: BTreeMap<String, File>,
    waited: Vec<Waited>,
    /// Which lock was granted under which token, and when that was known.
    grants: Vec<(String, u64, u64)>,
    /// Which lock stays closed behind which token, and until when at least.
    closed: Vec<(String, u64, u64)>,
    watches: Vec<Watched>,
    clock: Passed,
    /// The sessions that are known to have ended, in that order, each as the life of a client.
    ended: Vec<(usize, u64)>,
    /// Grants that end after so many milliseconds, by token, and since when they are known.
    tenures: BTreeMap<u64, (u64, Passed)>,
    /// Sessions that must have ended by then, since a key that lives as long was gone.
    must_be_over: BTreeMap<(usize, u64), (u64, String)>,
    pub(crate) judged: BTreeMap<&'static str, u64>,
}

/// What a client was told by watches, each of which began where the one before ended.
#[derive(Debug)]
struct Watched {
    prefix: &'static str,
    /// All of what happened after the first of these ops, up to the second, was told.
    after: u64,
    upto: u64,
    /// The last op of which something was told.
    last: u64,
    set: BTreeSet<(String, u64)>,
}

impl Checks {
    fn judge(&mut self, what: &'static str, ok: bool, fault: impl FnOnce() -> String) {
        *self.judged.entry(what).or_default() += 1;
        if !ok {
            let fault = fault();
            self.violations.push(format!("{what}: {fault}"));
        }
    }

    pub(crate) fn lease(&mut self, ok: bool, fault: impl FnOnce() -> String) {
        self.judge("leases have their length", ok, fault);
    }

    pub(crate) fn floor(&self, key: Option<&str>) -> Floor {
        let key = key.and_then(|key| self.keys.get(key));
        Floor {
            token: self.highest_token,
            seen: key.map_or(0, |key| key.seen),
            gone: key.map_or(0, |key| key.gone),
            clock: self.clock,
            ended: self.ended.len(),
        }
    }

    /// It is that late, and so much time had passed for the server when it wrote the last record that is durable. Gives how
    /// much has passed.
    pub(crate) fn now(&mut self, now: u64, durably: i64) -> i64 {
        self.clock.advance(now);
        self.clock.durably = durably;
        self.clock.passed
    }

    /// The server stands still until then.
    pub(crate) fn stalls(&mut self, now: u64, until: u64) {
        self.clock.advance(now);
        self.clock.stands_until = self.clock.stands_until.max(until);
    }

    /// There is no server.
    pub(crate) fn down(&mut self, now: u64) {
        self.stalls(now, u64::MAX);
    }

    /// A server goes on where the last record was.
    pub(crate) fn up(&mut self, now: u64, passed: i64) {
        self.clock.advance(now);
        (self.clock.stands_until, self.clock.passed) = (now, passed);
    }

    /// The server has said that a session has ended.
    pub(crate) fn session_ended(&mut self, session: (usize, u64)) {
        self.ended.push(session);
    }

    /// A request in this session, which began then, has taken effect.
    pub(crate) fn session_acted(&mut self, session: (usize, u64), began: u64) {
        let fault = match self.must_be_over.get(&session) {
            Some((by, why)) if *by < began => Some(why.clone()),
            _ => None,
        };
        self.judge("bound keys stay", fault.is_none(), || fault.unwrap_or_default());
    }

    /// A grant was handed to a client.
    pub(crate) fn granted(&mut self, floor: Floor, token: u64, holder: (usize, u64, String)) {
        self.judge("tokens rise", token > floor.token, || {
            format!("{holder:?} got token {token} after {} was given out", floor.token)
        });
        let known = self.tokens.insert(token, holder.clone());
        self.judge("tokens are unique", known.is_none(), || {
            format!("token {token}: {known:?} and {holder:?}")
        });
        self.highest_token = self.highest_token.max(token);
    }

    /// Who asked for what it holds already was told so.
    pub(crate) fn granted_again(&mut self, token: u64, holder: (usize, u64, String)) {
        let known = self.tokens.entry(token).or_insert_with(|| holder.clone()).clone();
        self.judge("a token has one holder", known == holder, || {
            format!("token {token}: {known:?} and {holder:?}")
        });
        self.highest_token = self.highest_token.max(token);
    }

    /// A client believes from here on. `lives`: whether another one believes still.
    pub(crate) fn believe(&mut self, lock: &str, belief: Belief, lives: impl Fn(&Belief) -> bool) {
        let others = self.beliefs.entry(lock.into()).or_default();
        others.retain(|other| lives(other) && other.token != belief.token);
        let clash = others.iter().find(|other| !other.mode.goes_with(belief.mode)).cloned();
        let slots = others.iter().chain([&belief]).fold((0, u64::MAX), |(sum, most), one| match one.mode {
            Mode::Slot { slots, weight } => (sum + weight, most.min(slots)),
            Mode::Exclusive | Mode::Shared => (sum, most),
        });
        others.push(belief.clone());
        self.judge("exclusion", clash.is_none() && slots.0 <= slots.1, || {
            format!("{lock} is believed in by {belief:?} and {clash:?}; slots {slots:?}")
        });
    }

    pub(crate) fn disbelieve(&mut self, client: usize, life: u64, token: u64) {
        for beliefs in self.beliefs.values_mut() {
            beliefs.retain(|one| (one.client, one.life, one.token) != (client, life, token));
        }
    }

    /// A client has asked to hold less.
    pub(crate) fn weaken(&mut self, lock: &str, client: usize, life: u64, token: u64) {
        let beliefs = self.beliefs.get_mut(lock).into_iter().flatten();
        for one in beliefs.filter(|one| (one.client, one.life, one.token) == (client, life, token)) {
            one.mode = Mode::Shared;
        }
    }

    /// A client is no more.
    pub(crate) fn forget(&mut self, client: usize) {
        for beliefs in self.beliefs.values_mut() {
            beliefs.retain(|one| one.client != client);
        }
    }

    /// A grant goes on as another, or in other modes as the same.
    pub(crate) fn converted(&mut self, from: u64, token: u64, upgraded: bool) {
        self.judge("an upgrade has a token of its own", !upgraded || token > from, || {
            format!("token {from} was converted to more and became token {token}")
        });
    }

    /// A client was told of a new grant.
    pub(crate) fn granted_at(&mut self, keys: &[(String, Mode)], token: u64, now: u64) {
        self.grants.extend(keys.iter().map(|(key, _)| (key.clone(), token, now)));
    }

    /// A grant was abandoned, not before `began`, with a lock-delay by the server's clock, which may be a tenth faster.
    pub(crate) fn closed(&mut self, keys: &[(String, Mode)], token: u64, began: u64, delay_ms: u64) {
        let until = began + delay_ms * 1_000 * 10 / 11;
        let held = keys.iter().filter(|(_, mode)| *mode == Mode::Exclusive);
        self.closed.extend(held.map(|(key, _)| (key.clone(), token, until)));
    }

    /// A client begins to watch; gives the number of the watch.
    pub(crate) fn watch_begins(&mut self, prefix: &'static str, after: u64) -> usize {
        self.watches.push(Watched { prefix, after, upto: after, last: after, set: BTreeSet::new() });
        self.watches.len() - 1
    }

    /// A watch was answered, from where the answer before ended.
    pub(crate) fn watched(&mut self, chain: usize, answer: &Value) {
        let events = answer["events"].as_array().cloned().unwrap_or_default();
        let watch = &mut self.watches[chain];
        let mut fault = None;
        for event in &events {
            let (op, name) = (event["op"].as_u64().unwrap_or(0), event["name"].as_str().unwrap_or_default());
            if op < watch.last || op <= watch.after || !name.starts_with(watch.prefix) {
                fault = Some(format!("told of {event} after op {}", watch.last));
            }
            watch.last = watch.last.max(op);
            let set = event["event"] == "key_set";
            let version = event["version"].as_u64().unwrap_or(0);
            if set && !watch.set.insert((name.to_owned(), version)) {
                fault = Some(format!("told twice of {event}"));
            }
        }
        // A page may end in the middle of what one command did.
        watch.upto = match events.is_empty() {
            true => answer["op"].as_u64().unwrap_or(0).max(watch.upto),
            false => watch.last - 1,
        };
        self.judge("watches go on", fault.is_none(), || fault.unwrap_or_default());
    }

    pub(crate) fn waited(&mut self, waited: Waited) {
        self.waited.push(waited);
    }

    pub(crate) fn write_begins(&mut self, key: &str, value: &str, span: Option<Span>) {
        let began = self.clock.now;
        let entry = self.keys.entry(key.into()).or_default();
        entry.writes.insert(value.into(), Fate::Open);
        if let Some(span) = span {
            entry.mortal.insert(value.into(), Mortal { span, began, version: None });
        }
    }

    pub(crate) fn write_staged(&mut self, key: &str, value: &str) {
        self.keys.entry(key.into()).or_default().staged.insert(value.into());
    }

    /// A write got a version, or will not.
    pub(crate) fn write_ends(
        &mut self,
        key: &str,
        value: &str,
        floor: Floor,
        result: Result<(u64, Option<u64>, Option<u64>), Fate>,
    ) {
        let entry = self.keys.entry(key.into()).or_default();
        let fate = result.as_ref().map_or_else(|fate| *fate, |_| Fate::Done);
        entry.writes.insert(value.into(), fate);
        let Ok((version, expected, token)) = result else {
            if fate == Fate::Never {
                let seen = entry.versions.values().any(|known| known == value);
                self.judge("refused writes", !seen, || format!("{key}={value} was refused, and was read"));
            }
            return;
        };
        entry.swaps.extend(expected.map(|expected| (expected, version)));
        entry.guarded.extend(token.map(|token| (version, token)));
        let rises = version > floor.seen.max(floor.gone);
        self.judge("keys are linearizable", rises, || {
            format!("{key}={value} got version {version} after {floor:?} was known")
        });
        self.learn(key, version, value);
    }

    fn learn(&mut self, key: &str, version: u64, value: &str) {
        let entry = self.keys.entry(key.into()).or_default();
        entry.seen = entry.seen.max(version);
        if let Some(mortal) = entry.mortal.get_mut(value) {
            mortal.version.get_or_insert((version, self.clock));
        }
        let known = entry.versions.insert(version, value.into());
        let twice = entry.versions.iter().find(|(other, one)| **other != version && *one == value);
        let fault = match (known, twice) {
            (Some(known), _) if known != value => {
                Some(format!("{key} version {version}: {known} and {value}"))
            }
            (_, Some((other, _))) => Some(format!("{key}={value} has versions {other} and {version}")),
            _ => None,
        };
        self.judge("a version is one value", fault.is_none(), || fault.unwrap_or_default());
    }

    pub(crate) fn delete_begins(&mut self, key: &str) {
        self.keys.entry(key.into()).or_default().open_deletes += 1;
    }

    /// A delete is answered: the version removed, 0 if there was none; or it will not be, or may be.
    pub(crate) fn delete_ends(&mut self, key: &str, floor: Floor, removed: Result<u64, Fate>) {
        let entry = self.keys.entry(key.into()).or_default();
        match removed {
            Ok(0) => {
                entry.open_deletes -= 1;
                self.absent(key, floor);
            }
            Ok(version) => {
                entry.open_deletes -= 1;
                entry.gone = entry.gone.max(version);
                let fresh = version >= floor.seen && version > floor.gone;
                self.judge("keys are linearizable", fresh, || {
                    format!("version {version} of {key} was removed after {floor:?} was known")
                });
            }
            Err(Fate::Never) => entry.open_deletes -= 1,
            // It may take effect at any time.
            Err(_) => {}
        }
    }

    pub(crate) fn read(&mut self, key: &str, floor: Floor, found: Option<(u64, &str)>) {
        let Some((version, value)) = found else { return self.absent(key, floor) };
        let written = self.keys.get(key).and_then(|key| key.writes.get(value)).copied();
        self.judge(
            "reads are of what was written",
            matches!(written, Some(fate) if fate != Fate::Never),
            || format!("{key} is {value}, version {version}: {written:?}"),
        );
        let fresh = version >= floor.seen && version > floor.gone;
        self.judge("keys are linearizable", fresh, || {
            format!("{key} was read as version {version} after {floor:?} was known")
        });
        self.outlived(key, floor, value);
        self.learn(key, version, value);
    }

    /// Microseconds that have passed for the server at least, and that the log knew to have passed, between something known
    /// and the beginning of a call.
    fn lived_since(&self, since: Passed, floor: Floor) -> i64 {
        (floor.clock.durably - since.passed) * 9 / 10
    }

    /// A grant is known that ends after so long, whatever is renewed.
    pub(crate) fn tenure(&mut self, token: u64, max_hold_ms: u64) {
        self.tenures.insert(token, (max_hold_ms, self.clock));
    }

    /// Something was done under a grant.
    pub(crate) fn served(&mut self, token: u64, floor: Floor) {
        let Some((max_hold_ms, since)) = self.tenures.get(&token).copied() else { return };
        let lived = self.lived_since(since, floor);
        self.judge("no tenure is longer", lived <= max_hold_ms as i64 * 1_000 + SLACK_US, || {
            format!("the grant of {token} was to end after {max_hold_ms} ms, and served {lived} us later")
        });
    }

    /// A key that was read must not have outlived what it was to live for, when the read began. One that guards itself by a
    /// lock of the same name may, as long as that is held.
    fn outlived(&mut self, key: &str, floor: Floor, value: &str) {
        let Some(mortal) = self.keys.get(key).and_then(|key| key.mortal.get(value)) else { return };
        if key.starts_with('l') {
            return;
        }
        let mut fault = None;
        if let (Some(ttl_ms), Some((_, since))) = (mortal.span.ttl_ms, mortal.version) {
            let lived = self.lived_since(since, floor);
            if lived > ttl_ms as i64 * 1_000 + SLACK_US {
                fault =
                    Some(format!("{key}={value} was to live for {ttl_ms} ms, and was read {lived} us later"));
            }
        }
        if mortal.span.bound.is_some_and(|session| self.ended[..floor.ended].contains(&session)) {
            fault = Some(format!("{key}={value} was read after the end of the session it was bound to"));
        }
        self.judge("no key outlives its time", fault.is_none(), || fault.unwrap_or_default());
    }

    fn absent(&mut self, key: &str, floor: Floor) {
        let now = self.clock.now;
        let entry = self.keys.entry(key.into()).or_default();
        let never = floor.seen == 0 || entry.open_deletes > 0 || entry.gone >= floor.seen;
        // What may have stood there then, and need not any more.
        let current = |value: &String, mortal: &Mortal| {
            entry.writes.get(value) != Some(&Fate::Never)
                && mortal.version.is_none_or(|(version, _)| version >= floor.seen)
        };
        let mut over = entry.mortal.iter().filter(|(value, mortal)| {
            current(value, mortal) && (mortal.span.bound.is_some() || mortal.may_be_over(now))
        });
        let (one, another) = (over.next(), over.next());
        let by_itself = one.is_some();
        // Where the end of one session is the only reason that there can be, it must have come.
        let must_be_over = one.filter(|(_, mortal)| !never && another.is_none() && !mortal.may_be_over(now));
        if let Some((value, session)) =
            must_be_over.and_then(|(value, mortal)| mortal.span.bound.map(|session| (value, session)))
        {
            let why = format!("{key}={value} was gone, and the session it is bound to acted still");
            self.must_be_over.entry(session).or_insert((now, why));
        }
        let gone = entry.gone;
        // Versions rise: none that was known when the read began comes back.
        entry.gone = gone.max(floor.seen);
        if by_itself && !never {
            *self.judged.entry("keys gone by themselves").or_default() += 1;
        }
        self.judge("keys are linearizable", never || by_itself, || {
            format!(
                "{key} was read as absent after version {} was written and only {gone} was removed",
                floor.seen
            )
        });
    }

    /// Two keys that sections alone write, always together, were read in one page.
    pub(crate) fn pair(&mut self, one: Option<(u64, String)>, other: Option<(u64, String)>) {
        self.judge("sections are atomic", one == other, || {
            format!("half of a section: {one:?} and {other:?}")
        });
    }

    pub(crate) fn append_begins(&mut self, file: &str, data: &str, token: u64) {
        let append = Append { token, fate: Fate::Open, offset: None };
        self.files.entry(file.into()).or_default().appends.insert(data.into(), append);
    }

    pub(crate) fn append_ends(&mut self, file: &str, data: &str, result: Result<u64, Fate>) {
        let Some(append) = self.files.get_mut(file).and_then(|file| file.appends.get_mut(data)) else {
            return;
        };
        match result {
            Ok(offset) => (append.fate, append.offset) = (Fate::Done, Some(offset)),
            Err(fate) => append.fate = fate,
        }
    }

    pub(crate) fn file_read(&mut self, file: &str, offset: u64, bytes: Vec<u8>) {
        self.files.entry(file.into()).or_default().reads.push((offset, bytes));
    }

    pub(crate) fn cycle(&mut self, fault: Option<String>) {
        self.judge("deadlocks are cycles", fault.is_none(), || fault.unwrap_or_default());
    }

    pub(crate) fn lived(&mut self, early: Option<String>) {
        self.judge("nobody is expired early", early.is_none(), || early.unwrap_or_default());
    }

    pub(crate) fn caps(&mut self, fault: Option<String>) {
        self.judge("caps", fault.is_none(), || fault.unwrap_or_default());
    }

    pub(crate) fn live(&mut self, ok: bool, fault: impl FnOnce() -> String) {
        self.judge("liveness", ok, fault);
    }

    /// What only the whole history shows. `content`: what stands in the files.
    pub(crate) fn finish(&mut self, content: impl Fn(&str) -> Option<Vec<u8>>) {
        self.finish_keys();
        let files: Vec<String> = self.files.keys().cloned().collect();
        for file in files {
            if let Some(bytes) = content(&file) {
                let fault = self.files.get(&file).and_then(|known| judge_file(known, &bytes));
                self.judge("appends", fault.is_none(), || format!("{file}: {}", fault.unwrap_or_default()));
            }
        }
        self.finish_lines();
        self.finish_delays();
        self.finish_watches();
    }

    fn finish_delays(&mut self) {
        let mut faults = Vec::new();
        for (lock, token, until) in &self.closed {
            let mut later = self.grants.iter().filter(|(of, next, _)| of == lock && next > token);
            if let Some((_, next, at)) = later.find(|(.., at)| at < until) {
                faults.push(format!(
                    "{lock} is closed behind {token} until {until}, and {next} has it at {at}"
                ));
            }
        }
        *self.judged.entry("lock-delays").or_default() += self.closed.len() as u64;
        self.judge("a lock-delay is not shorter", faults.is_empty(), || faults.join("; "));
    }

    /// Each write that somebody was told of is told to whoever watched then.
    fn finish_watches(&mut self) {
        let mut faults = Vec::new();
        let mut told = 0;
        for watch in &self.watches {
            for (name, key) in self.keys.iter().filter(|(name, _)| name.starts_with(watch.prefix)) {
                for version in
                    key.versions.keys().filter(|version| (watch.after + 1..=watch.upto).contains(*version))
                {
                    told += 1;
                    if !watch.set.contains(&(name.clone(), *version)) {
                        faults.push(format!(
                            "version {version} of {name} was not told to a watch of ops {} to {}",
                            watch.after, watch.upto
                        ));
                    }
                }
            }
        }
        *self.judged.entry("writes told to watches").or_default() += told;
        self.judge("watches leave nothing out", faults.is_empty(), || faults.join("; "));
    }

    fn finish_keys(&mut self) {
        let mut faults = Vec::new();
        for (name, key) in &mut self.keys {
            for (expected, version) in key.swaps.iter().filter(|(expected, _)| *expected > 0) {
                let before = key.versions.range(..version).next_back().map(|(before, _)| *before);
                if before != Some(*expected) {
                    faults.push(format!(
                        "{name}: {version} replaced {expected}, but {before:?} came before it"
                    ));
                }
            }
            key.guarded.sort_unstable();
            for pair in key.guarded.windows(2) {
                if pair[0].1 > pair[1].1 {
                    faults.push(format!("{name}: (version, token) {:?} came before {:?}", pair[0], pair[1]));
                }
            }
            for (value, fate) in &key.writes {
                let read = key.versions.values().any(|known| known == value);
                if *fate == Fate::Never && read {
                    faults.push(format!("{name}={value} was refused, and was read"));
                }
            }
        }
        self.judge("stale tokens write nothing", faults.is_empty(), || faults.join("; "));
    }

    /// Who stood in line before another asked is served before it, if they cannot both be.
    fn finish_lines(&mut self) {
        let mut faults = Vec::new();
        let mut pairs = 0;
        self.waited.sort_by_key(|waited| waited.token);
        for (index, later) in self.waited.iter().enumerate() {
            for earlier in &self.waited[..index] {
                // `earlier` was granted first. Had `later` stood in line before it asked?
                let conflict = later.keys.iter().any(|(key, mode)| {
                    earlier.keys.iter().any(|(other, theirs)| key == other && !mode.goes_with(*theirs))
                });
                if !conflict {
                    continue;
                }
                pairs += 1;
                if later.pending.is_some_and(|pending| pending < earlier.began) {
                    faults.push(format!("{earlier:?} was served before {later:?}"));
                }
            }
        }
        *self.judged.entry("turns").or_default() += pairs;
        self.judge("turns are fair", faults.is_empty(), || faults.join("; "));
    }
}

/// Each append once, whole, where its reply said; nothing else; under tokens that never fall.
fn judge_file(file: &File, bytes: &[u8]) -> Option<String> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return Some(format!("it holds what nobody wrote: {error}")),
    };
    let (mut offset, mut found, mut token) = (0, BTreeSet::new(), 0);
    for line in text.split_inclusive('\n') {
        let Some(append) = file.appends.get(line) else {
            return Some(format!("at {offset} stands {line:?}, which nobody wrote"));
        };
        if !found.insert(line) {
            return Some(format!("{line:?} stands there twice, again at {offset}"));
        }
        if append.fate == Fate::Never {
            return Some(format!("{line:?} was refused and stands at {offset}"));
        }
        if append.offset.is_some_and(|told| told != offset) {
            return Some(format!("{line:?} stands at {offset}, its reply said {:?}", append.offset));
        }
        if append.token < token {
            return Some(format!("{line:?} of token {} stands behind token {token}", append.token));
        }
        token = append.token;
        offset += line.len() as u64;
    }
    let missing = file
        .appends
        .iter()
        .find(|(line, append)| append.fate == Fate::Done && !found.contains(line.as_str()));
    if let Some((line, append)) = missing {
        return Some(format!("{line:?} was acknowledged at {:?} and is not there", append.offset));
    }
    let wrong = file.reads.iter().find(|(at, read)| {
        let from = (*at as usize).min(bytes.len());
        !bytes[from..].starts_with(read)
    });
    wrong.map(|(at, read)| format!("{} bytes read at {at} are not what stands there", read.len()))
}
