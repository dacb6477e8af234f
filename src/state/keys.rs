//! Keys: JSON values with versions, and how long they live.
//!
//! A key goes at its deadline, or with the session that it is bound to: from that moment it is found by nobody, and a
//! command behind it cleans up. Only while its lock is held exclusively does it stay beyond that, and goes when that tenure
//! ends. So its ends are *armed* (its deadline in `due`, its name in its session) exactly as long as no grant, live or not
//! yet swept, holds its lock exclusively; whoever begins such a tenure says [`State::key_held`], whoever ends it
//! [`State::key_freed`].
//!
//! Writing is in two steps, so that several changes take effect together or not at all: `check_…` looks and changes
//! nothing, [`State::apply_change`] cannot fail. Every key that is set goes through `put_key`, every one that goes through
//! `drop_key`.

use super::{Due, KeyEnd, State, What, not_holder};
use crate::command::{Change, Mode};
use crate::identity::{Op, SessionId, Token};
use crate::kind::{Detail, Kind, Refusal};
use crate::name::Name;
use crate::outcome::Outcome;
use crate::state::parts::KeyPart;
use crate::time::Time;
use arcstr::ArcStr;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::ops::Bound;

/// A key's value and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// JSON text as it came.
    pub value: ArcStr,
    /// The command that set it.
    pub version: Op,
    /// When it goes, if it has a TTL.
    pub deadline: Option<Time>,
    /// The number of the session that it goes with, if it is bound to one.
    pub bound: Option<u64>,
}

impl Key {
    pub(super) fn part(&self, key: &Name) -> KeyPart {
        let value = RawValue::from_string(self.value.to_string()).expect("a value was JSON when it was set");
        KeyPart { key: key.clone(), version: self.version, value, deadline: self.deadline, bound: self.bound }
    }
}

/// Reading.
impl State {
    /// The key, if it exists.
    pub fn key(&self, key: &str) -> Option<&Key> {
        let (name, key) = self.keys.get_key_value(key)?;
        self.key_lives(name, key).then_some(key)
    }

    /// Keys that exist, whose names begin with `prefix`, after the name `after`, in the order of their names.
    pub fn keys<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Name, &'a Key)> {
        names_from(&self.keys, prefix, after).filter(move |(name, key)| self.key_lives(name, key))
    }

    /// Keys that exist, from `from` to `to`, both included, after the name `after`, in the order of their names.
    pub fn key_range<'a>(
        &'a self,
        from: &'a str,
        to: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Name, &'a Key)> {
        names_between(&self.keys, from, to, after).filter(move |(name, key)| self.key_lives(name, key))
    }

    fn key_lives(&self, name: &Name, key: &Key) -> bool {
        if self.key_end(key).is_none() {
            return true;
        }
        self.exclusive_entry(name).is_some_and(|token| self.live_grant(token).is_some())
    }

    /// Why the key is over, if it is, whatever keeps it.
    fn key_end(&self, key: &Key) -> Option<KeyEnd> {
        if key.deadline.is_some_and(|deadline| deadline <= self.head.at) {
            return Some(KeyEnd::Expired);
        }
        let bound = key.bound?;
        let lives = self.clients.get(&bound).is_some_and(|id| self.sessions[id].is_live());
        (!lives).then_some(KeyEnd::SessionEnded)
    }

    /// The grant that holds the lock exclusively; it may be over and not yet swept.
    fn exclusive_entry(&self, name: &str) -> Option<Token> {
        // Who holds exclusively holds alone.
        let &[token] = self.locks.get(name)?.holders() else { return None };
        let asks = &self.grants[token].asks;
        let place = asks.binary_search_by(|ask| ask.key.as_str().cmp(name)).ok()?;
        (asks[place].mode == Mode::Exclusive).then_some(token)
    }
}

/// Checks, which change nothing.
impl State {
    /// Whether the key has the version that it is to have, now; 0: it does not exist.
    pub(super) fn check_version(&self, name: &Name, if_version: Option<Op>) -> Result<(), Refusal> {
        let version = self.key(name).map_or(0, |key| key.version);
        match if_version {
            Some(asked) if asked != version && !crate::bug::planted("if_version_ignored") => {
                Err(version_mismatch(name, version, asked).with(Detail::Version { version }))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the value of one change is within its cap.
    pub(super) fn check_value(&self, change: &Change) -> Result<(), Refusal> {
        let max = self.head.limits.value_bytes;
        match &change.value {
            Some(value) if value.len() as u64 > max => {
                let text = format!("the value has {} bytes; at most {max} are allowed", value.len());
                Err(Refusal::new(Kind::TooLarge, text)
                    .with(Detail::Limit { limit: "value_bytes".into(), max }))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether changes that take effect together leave keys within their caps. Each key is named at most once.
    pub(super) fn check_caps<'a>(
        &self,
        changes: impl IntoIterator<Item = &'a Change>,
    ) -> Result<(), Refusal> {
        let limits = &self.head.limits;
        let (before, bytes_before) = (self.keys.len() as u64, self.key_bytes);
        let (mut added, mut added_bytes, mut gone, mut gone_bytes) = (0, 0, 0, 0);
        for change in changes {
            if let Some(old) = self.keys.get(&change.key) {
                gone += 1;
                gone_bytes += weight(&change.key, &old.value);
            }
            if let Some(value) = &change.value {
                added += 1;
                added_bytes += weight(&change.key, value);
            }
        }
        let (count, bytes) = (before - gone + added, bytes_before - gone_bytes + added_bytes);
        if count > limits.keys && count > before && !crate::bug::planted("keys_without_cap") {
            let max = limits.keys;
            let text = format!("the server has its {max} keys; delete one, or raise --max-keys");
            return Err(Refusal::limit("keys", max, text));
        }
        if bytes > limits.key_bytes && added > 0 {
            let max = limits.key_bytes;
            let text =
                format!("keys and values would have over {max} bytes; delete some, or raise --max-key-bytes");
            return Err(Refusal::limit("key_bytes", max, text));
        }
        Ok(())
    }

    /// The number of the session that keys are bound to which these changes set: that of the session acted for.
    pub(super) fn binding(
        &self,
        session: SessionId,
        holder: Option<SessionId>,
        changes: &[Change],
    ) -> Result<u64, Refusal> {
        let whose = match holder {
            Some(holder) if changes.iter().any(|change| change.life.bound) => holder,
            Some(_) | None => session,
        };
        match self.sessions.get(&whose).filter(|session| session.is_live()) {
            Some(session) => Ok(session.client),
            None => Err(not_holder(
                "the session named as `holder` has ended or never was, so no key can be bound to it".into(),
            )),
        }
    }
}

/// Changes.
impl State {
    /// `set` and `delete`, once it is clear that the caller may write the key.
    pub(super) fn change_key(
        &mut self,
        session: SessionId,
        holder: Option<SessionId>,
        change: &Change,
        if_version: Option<Op>,
    ) -> Result<Outcome, Refusal> {
        self.check_value(change)?;
        self.check_version(&change.key, if_version)?;
        self.check_caps([change])?;
        let client = self.binding(session, holder, std::slice::from_ref(change))?;
        let removed = self.apply_change(change, client);
        Ok(match change.value {
            Some(_) => Outcome::Set { version: self.head.op, staged: false },
            None => Outcome::Deleted { version: removed, staged: false },
        })
    }

    /// Sets or deletes a key; `client` is the number of the session that it is bound to, if it asks for that. Gives the
    /// version that the key had. The caller has checked everything.
    pub(super) fn apply_change(&mut self, change: &Change, client: u64) -> Option<Op> {
        let (name, clock) = (&change.key, self.clock);
        if let Some(old) = self.keys.get(name)
            && !self.key_lives(name, old)
        {
            let end = self.key_end(old).expect("a key that does not live has an end");
            self.drop_key(name, end);
        }
        let version = self.keys.get(name).map(|key| key.version);
        match &change.value {
            Some(value) => self.put_key(
                name,
                Key {
                    value: value.clone(),
                    version: self.head.op,
                    deadline: change
                        .life
                        .ttl_ms
                        .filter(|_| !crate::bug::planted("key_without_end"))
                        .map(|ms| clock.after_ms(ms)),
                    bound: change.life.bound.then_some(client),
                },
            ),
            None if version.is_some() => self.drop_key(name, KeyEnd::Deleted),
            None => {}
        }
        if change.value.is_some() {
            self.record(name, What::KeySet { version: self.head.op });
        }
        version
    }

    /// Somebody begins to hold the lock of that name exclusively: what is over goes now, and what is not stays until the
    /// tenure ends.
    pub(super) fn key_held(&mut self, name: &Name) {
        let Some(key) = self.keys.get(name) else { return };
        match self.key_end(key) {
            Some(end) => self.drop_key(name, end),
            None => self.disarm_key(name),
        }
    }

    /// Nobody holds the lock of that name exclusively any more: a key that was only kept by that goes. Called before the
    /// line is served.
    pub(super) fn key_freed(&mut self, name: &Name) {
        let Some(key) = self.keys.get(name) else { return };
        match self.key_end(key) {
            Some(end) => self.drop_key(name, end),
            None => self.arm_key(name),
        }
    }

    /// The deadline of a key has come, or its session has ended, or both.
    pub(super) fn expire_key(&mut self, name: &Name) {
        let key = self.keys.get(name).expect("a key whose end comes is there");
        let end = self.key_end(key).expect("it comes in its time");
        self.drop_key(name, end);
    }

    /// Gives a key its value: the one place where keys are set.
    fn put_key(&mut self, name: &Name, key: Key) {
        self.disarm_key(name);
        self.key_bytes += weight(name, &key.value);
        self.ttl_keys += u64::from(key.deadline.is_some());
        if let Some(old) = self.keys.insert(name.clone(), key) {
            self.key_bytes -= weight(name, &old.value);
            self.ttl_keys -= u64::from(old.deadline.is_some());
        }
        if self.exclusive_entry(name).is_none() {
            self.arm_key(name);
        }
    }

    /// Takes a key away: the one place where keys go.
    fn drop_key(&mut self, name: &Name, end: KeyEnd) {
        self.disarm_key(name);
        let key = self.keys.remove(name).expect("a key goes once");
        assert!(
            end == KeyEnd::Deleted || self.key_end(&key) == Some(end),
            "key {name:?} went before its time"
        );
        self.key_bytes -= weight(name, &key.value);
        self.ttl_keys -= u64::from(key.deadline.is_some());
        self.record(name, What::KeyDeleted { version: key.version, reason: end });
    }

    /// Lets the ends of a key come: its deadline, and that of its session.
    fn arm_key(&mut self, name: &Name) {
        let Some(key) = self.keys.get(name) else { return };
        if let Some(deadline) = key.deadline {
            self.due.insert((deadline, Due::Key(name.clone())));
        }
        if let Some(client) = key.bound.filter(|_| !crate::bug::planted("bound_key_stays")) {
            let id = self.clients.get(&client).expect("a key is bound to a session that is known");
            let session = self.sessions.get_mut(id).expect("a numbered session is known");
            session.bound.insert(name.clone());
        }
    }

    fn disarm_key(&mut self, name: &Name) {
        let Some(key) = self.keys.get(name) else { return };
        if let Some(deadline) = key.deadline {
            self.due.remove(&(deadline, Due::Key(name.clone())));
        }
        // A key that a tenure keeps can outlive all that is known of its session.
        if let Some(id) = key.bound.and_then(|client| self.clients.get(&client))
            && let Some(session) = self.sessions.get_mut(id)
        {
            session.bound.remove(name);
        }
    }

    /// Adds a key of a snapshot, after sessions and grants.
    pub(super) fn add_key(&mut self, part: KeyPart) -> Result<(), String> {
        let fault = |text: &str| format!("key {:?}: {text}", part.key);
        if part.version == 0 || part.version > self.head.op {
            return Err(fault("its version was never given"));
        }
        if part.bound.is_some_and(|client| client == 0 || client > self.head.last_client) {
            return Err(fault("the session that it is bound to was never there"));
        }
        if self.keys.contains_key(&part.key) {
            return Err(fault("it stands twice"));
        }
        if part.bound.is_some_and(|client| !self.clients.contains_key(&client))
            && self.exclusive_entry(&part.key).is_none()
        {
            return Err(fault("the session that it is bound to is gone, and nobody holds its lock"));
        }
        let value: Box<str> = part.value.into();
        let key =
            Key { value: value.into(), version: part.version, deadline: part.deadline, bound: part.bound };
        self.put_key(&part.key, key);
        Ok(())
    }
}

/// Entries whose names begin with `prefix`, after the name `after`, in order.
pub(super) fn names_from<'a, T>(
    map: &'a BTreeMap<Name, T>,
    prefix: &'a str,
    after: Option<&'a str>,
) -> impl Iterator<Item = (&'a Name, &'a T)> {
    let begin = match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        Some(_) | None => Bound::Included(prefix),
    };
    map.range::<str, _>((begin, Bound::Unbounded)).take_while(move |(name, _)| name.starts_with(prefix))
}

/// Entries from `from` to `to`, both included, after the name `after`, in order.
pub(super) fn names_between<'a, T>(
    map: &'a BTreeMap<Name, T>,
    from: &'a str,
    to: &'a str,
    after: Option<&'a str>,
) -> impl Iterator<Item = (&'a Name, &'a T)> {
    let begin = match after {
        Some(after) if after >= from => Bound::Excluded(after),
        Some(_) | None => Bound::Included(from),
    };
    map.range::<str, _>((begin, Bound::Unbounded)).take_while(move |(name, _)| name.as_str() <= to)
}

fn weight(name: &Name, value: &str) -> u64 {
    (name.len() + value.len()) as u64
}

/// The refusal of a change of a key that has another version than it was to have; the caller adds the detail.
pub(super) fn version_mismatch(name: &Name, version: Op, asked: Op) -> Refusal {
    let text = match version {
        0 => format!("key {name:?} does not exist, so it does not have version {asked}"),
        _ => format!("key {name:?} has version {version}, not {asked}; read it again"),
    };
    Refusal::new(Kind::VersionMismatch, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Ask, Call, Command, Compare, EndReason, Life, Patience, Request, Terms};
    use crate::identity::Nonce;
    use crate::limits::Limits;
    use std::collections::BTreeSet;

    const NAMES: [&str; 4] = ["a", "b", "c", "d"];

    /// Numbers from a seed.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            ((mixed ^ (mixed >> 27)) >> 11) % n
        }

        fn one<T: Copy>(&mut self, of: &[T]) -> Option<T> {
            if of.is_empty() { None } else { Some(of[self.below(of.len() as u64) as usize]) }
        }
    }

    /// A key as anybody would write it down: it is over at its deadline or with its session, unless somebody holds its lock
    /// from before on.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Plain {
        version: Op,
        deadline: Option<Time>,
        bound: Option<SessionId>,
        /// Who held its lock when it was last seen before its end.
        keeper: Option<Token>,
    }

    struct Run {
        state: State,
        plain: BTreeMap<String, Plain>,
        live: BTreeSet<SessionId>,
        at: Time,
        next: BTreeMap<SessionId, u64>,
    }

    impl Run {
        fn new() -> Run {
            let mut run = Run {
                state: State::new(),
                plain: BTreeMap::new(),
                live: BTreeSet::new(),
                at: Time::ZERO,
                next: BTreeMap::new(),
            };
            let durability = run.state.head.durability;
            run.apply(Command::NewTerm { term: 1, limits: Limits::default(), durability, raised: false });
            run
        }

        fn apply(&mut self, command: Command) -> Outcome {
            self.pass();
            let outcome = self.state.apply(self.state.op() + 1, self.at, &command, &mut Vec::new());
            self.pass();
            outcome
        }

        /// What is over by now goes, unless the grant that held its lock before it was over still does.
        fn pass(&mut self) {
            let (state, live, at) = (&self.state, &self.live, self.at);
            self.plain.retain(|name, key| {
                let over = key.deadline.is_some_and(|deadline| deadline <= at)
                    || key.bound.is_some_and(|session| !live.contains(&session));
                let mut grants = state.grants.iter().filter(|(_, grant)| {
                    grant.end().is_none_or(|(end, _)| at < end) && live.contains(&grant.session)
                });
                let holder = grants.find(|(_, grant)| grant.asks.iter().any(|ask| ask.key.as_str() == name));
                let holder = holder.map(|(token, _)| token);
                if !over {
                    key.keeper = holder;
                }
                !over || (holder.is_some() && holder == key.keeper)
            });
        }

        fn ask(&mut self, session: SessionId, call: Call) -> Outcome {
            let id = self.next.entry(session).or_default();
            *id += 1;
            let (id, ack) = (*id, *id);
            self.apply(Command::Request(Request { session, id, ack, got: Vec::new(), call }))
        }

        fn check(&mut self) {
            // Readers see what the last record says.
            if self.state.at() < self.at {
                self.apply(Command::Tick);
            }
            self.pass();
            let found: BTreeMap<String, Plain> = self
                .state
                .keys("", None)
                .map(|(name, key)| {
                    let bound = key.bound.map(|client| {
                        let known = self.state.clients.get(&client);
                        // A session that is forgotten: any that is not live will do.
                        known.copied().unwrap_or(SessionId(0))
                    });
                    (
                        name.to_string(),
                        Plain { version: key.version, deadline: key.deadline, bound, keeper: None },
                    )
                })
                .collect();
            let plain = self.plain.iter().map(|(name, key)| {
                let known = |id: &SessionId| self.state.sessions.contains_key(id);
                let bound = key.bound.map(|id| if known(&id) { id } else { SessionId(0) });
                (name.clone(), Plain { bound, keeper: None, ..key.clone() })
            });
            assert_eq!(found, plain.collect());
            let bytes: u64 = self.state.keys.iter().map(|(name, key)| weight(name, &key.value)).sum();
            assert_eq!(self.state.key_bytes, bytes);
            // Whatever is derived is derived again, to the last deadline.
            let again = State::from_parts(self.state.parts()).unwrap();
            let derived = |state: &State| {
                let bound: Vec<_> =
                    state.clients.values().map(|id| state.sessions[id].bound.clone()).collect();
                (state.due.clone(), state.leaving.clone(), state.ttl_keys, state.key_bytes, bound)
            };
            assert_eq!(derived(&again), derived(&self.state));
        }

        fn step(&mut self, dice: &mut Dice) {
            if dice.below(3) == 0 {
                self.at = self.at.after_ms(100 * dice.below(30));
                self.pass();
            }
            let sessions: Vec<_> = self.live.iter().copied().collect();
            let name = Name::new(NAMES[dice.below(4) as usize]).unwrap();
            let Some(session) = dice.one(&sessions).filter(|_| dice.below(12) > 0) else {
                let (session, nonce) =
                    (SessionId(u128::from(self.state.op()) + 1), Nonce(self.state.op().into()));
                let name = String::new();
                let open = Command::OpenSession { nonce, session, name, label: String::new(), ttl_ms: 1_000 };
                self.live.insert(session);
                self.apply(open);
                return;
            };
            let tokens: Vec<_> = self.state.grants.iter().map(|(token, _)| token).collect();
            let token = dice.one(&tokens).filter(|_| dice.below(3) > 0);
            let holder = token.and_then(|token| self.state.grants.get(token)).map(|grant| grant.session);
            let life = Life {
                ttl_ms: (dice.below(2) == 0).then(|| 100 * (1 + dice.below(40))),
                bound: dice.below(3) == 0,
            };
            match dice.below(10) {
                0 => {
                    self.apply(Command::Tick);
                }
                1 => {
                    self.pass();
                    self.live.remove(&session);
                    self.apply(Command::EndSession { session, term: 1, reason: EndReason::Killed });
                }
                2 | 3 => {
                    let lease_ms = (dice.below(2) == 0).then(|| 100 * (1 + dice.below(30)));
                    self.ask(
                        session,
                        Call::Acquire {
                            asks: Ask { key: name, mode: Mode::Exclusive }.into(),
                            wait: [Patience::Try, Patience::Forever, Patience::Millis(500)]
                                [dice.below(3) as usize],
                            owner: String::new(),
                            terms: Terms { lease_ms, ..Terms::default() },
                        },
                    );
                }
                4 => {
                    if let Some(token) = token {
                        self.ask(session, Call::Release { token, holder });
                    }
                }
                5 => {
                    let if_version = self.plain.get(name.as_str()).map(|key| key.version);
                    let delete = Call::Delete { key: name.clone(), if_version, token, holder };
                    if let Outcome::Deleted { version, .. } = self.ask(session, delete) {
                        assert_eq!(version, self.plain.remove(name.as_str()).map(|key| key.version));
                    }
                }
                6 | 7 => {
                    let version = self.plain.get(name.as_str()).map_or(0, |key| key.version);
                    let compare = vec![Compare { key: name.clone(), version }];
                    let other = Name::new(if name.as_str() == "a" { "b" } else { "a" }).unwrap();
                    let change = |key: &Name, value| Change { key: key.clone(), value, life };
                    let apply = vec![change(&name, Some("1".into())), change(&other, Some("22".into()))];
                    let outcome = self.ask(session, Call::Transaction { compare, apply, token, holder });
                    match outcome {
                        Outcome::Applied { version, .. } => {
                            for name in [name, other] {
                                self.wrote(&name, version, life, holder.unwrap_or(session));
                            }
                        }
                        Outcome::Refused(refusal) => assert_ne!(refusal.kind, Kind::VersionMismatch),
                        other => panic!("{other:?}"),
                    }
                }
                _ => {
                    let if_version = self.plain.get(name.as_str()).map_or(0, |key| key.version);
                    let value = "333".into();
                    let set = Call::Set {
                        key: name.clone(),
                        value,
                        if_version: Some(if_version),
                        life,
                        token,
                        holder,
                    };
                    match self.ask(session, set) {
                        Outcome::Set { version, .. } => {
                            self.wrote(&name, version, life, holder.unwrap_or(session));
                        }
                        Outcome::Refused(refusal) => assert_ne!(refusal.kind, Kind::VersionMismatch),
                        other => panic!("{other:?}"),
                    }
                }
            }
        }

        fn wrote(&mut self, name: &Name, version: Op, life: Life, session: SessionId) {
            let deadline = life.ttl_ms.map(|ms| self.at.after_ms(ms));
            let bound = life.bound.then_some(session);
            self.plain.insert(name.to_string(), Plain { version, deadline, bound, keeper: None });
        }
    }

    #[test]
    fn keys_live_as_long_as_they_were_set_for_and_a_snapshot_knows_it_to_the_last_deadline() {
        for seed in 0..150 {
            let (mut run, mut dice) = (Run::new(), Dice(seed));
            for step in 0..200 {
                let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    run.step(&mut dice);
                    run.check();
                }));
                assert!(ran.is_ok(), "seed {seed}, step {step}");
            }
            // Once everybody has gone, nothing is left but what was to stay.
            for session in std::mem::take(&mut run.live) {
                run.apply(Command::EndSession { session, term: 1, reason: EndReason::Closed });
            }
            run.at = run.at.after_ms(10_000_000);
            while run.state.has_deadlines() {
                run.apply(Command::Tick);
            }
            run.check();
            assert!(run.state.keys.values().all(|key| key.deadline.is_none() && key.bound.is_none()));
        }
    }
}
