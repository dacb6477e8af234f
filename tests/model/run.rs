//! One run: commands to the state, its twin and the model, and everything compared.

use super::keys;
use super::model::{self, Model, Seen, Why, told};
use super::random::{self, Draw};
use std::collections::{BTreeMap, VecDeque};
use tenure::command::{Command, Entry, Request};
use tenure::identity::{Op, Position, SessionId};
use tenure::outcome::{Effect, FileAct};
use tenure::state::{KeySeen, Parts, Standing, State, What};
use tenure::time::Time;

/// After how many commands everything that can be seen is compared.
const CHECK_EVERY: u64 = 16;

pub(crate) struct Run {
    /// How to repeat it.
    name: String,
    pub(crate) draw: Draw,
    pub(crate) model: Model,
    pub(crate) state: State,
    /// Applies the same, and is built anew from its parts now and then.
    twin: State,
    /// A snapshot, and what was applied since.
    snapshot: Parts,
    behind: Vec<(Op, Entry)>,
    pub(crate) op: Op,
    /// What was applied last.
    pub(crate) last_command: Option<(Op, Entry)>,
    at: Time,
    /// The files as their effects make them.
    pub(crate) image: BTreeMap<String, Vec<u8>>,
    last: VecDeque<String>,
    /// How often the state said what.
    pub(crate) said: BTreeMap<String, u64>,
}

impl Run {
    pub(crate) fn new(name: String, draw: Draw) -> Run {
        let state = State::new();
        Run {
            name,
            draw,
            model: Model::default(),
            snapshot: state.parts(),
            twin: State::new(),
            state,
            behind: Vec::new(),
            op: 0,
            last_command: None,
            at: Time::ZERO,
            image: BTreeMap::new(),
            last: VecDeque::new(),
            said: BTreeMap::new(),
        }
    }

    pub(crate) fn step(&mut self, number: u64) {
        let at = self.draw.time(self.at, self.state.next_due());
        let command = self.draw.command(&self.model);
        let op = tenure::log::next_op(self.op, &command);
        // One in three is given while log time is behind the clock.
        let ahead_us = if op.is_multiple_of(3) { op * 7_919 % 400_000 } else { 0 };
        self.apply(op, &Entry { at, ahead_us, command });
        if number.is_multiple_of(CHECK_EVERY) {
            self.check_all();
        }
        self.trouble();
    }

    /// Applies a command, and compares what it did.
    pub(crate) fn apply(&mut self, op: Op, entry: &Entry) {
        let Entry { at, command, .. } = entry;
        (self.op, self.at) = (op, *at);
        self.last_command = Some((op, entry.clone()));
        if self.last.len() == 30 {
            self.last.pop_front();
        }
        self.last.push_back(format!("{op} at {at}: {command:?}"));

        let mut effects = Vec::new();
        let forgotten = self.state.head().history_after;
        let outcome = self.state.apply_entry(op, entry, &mut effects);
        let twin = self.twin.apply_entry(op, entry, &mut Vec::new());
        self.behind.push((op, entry.clone()));
        let seen = Seen::new(&self.state, &outcome, &effects);
        let expected = self.model.apply(op, entry, seen);
        let faults = std::mem::take(&mut self.model.faults);
        self.check(faults.is_empty(), || format!("{outcome:?}\n{faults:#?}"));
        self.check(told(&outcome) == expected, || format!("{outcome:?}\nbut the model says {expected:?}"));
        self.check(outcome == twin, || format!("{outcome:?}\nbut the twin says {twin:?}"));
        self.check(self.state.digest() == self.twin.digest(), || "the digests differ".into());
        *self.said.entry(expected.word()).or_default() += 1;
        self.take_effects(effects);
        self.check_settled();
        self.check_history(forgotten, command);
        if let Command::Request(request) = command {
            self.check_standing(request);
        }
    }

    /// Now and then: the twin is built anew, a snapshot is taken, the state is lost and recovered.
    pub(crate) fn trouble(&mut self) {
        if self.draw.random.one_in(20) {
            self.twin = self.rebuilt(self.twin.parts());
        }
        if self.draw.random.one_in(150) || self.behind.len() > 2_000 {
            self.snapshot = self.state.parts();
            self.behind.clear();
        }
        if self.draw.random.one_in(100) {
            let mut recovered = self.rebuilt(self.snapshot.clone());
            for (op, entry) in &self.behind {
                recovered.apply_entry(*op, entry, &mut Vec::new());
            }
            self.check(recovered.digest() == self.state.digest(), || "a recovery has another digest".into());
            self.check_same(&recovered, &self.state, "a recovery");
            self.state = recovered;
        }
    }

    pub(crate) fn rebuilt(&self, parts: Parts) -> State {
        match State::from_parts(parts) {
            Ok(state) => state,
            Err(fault) => self.fail(&format!("the parts of a state make none: {fault}")),
        }
    }

    /// Does to the image what the disk would do.
    fn take_effects(&mut self, effects: Vec<Effect>) {
        let mut settled = Vec::new();
        for effect in effects {
            match effect {
                Effect::Settled { session, id } => settled.push((session, id)),
                Effect::Lost { .. }
                | Effect::Opened { .. }
                | Effect::Ended { .. }
                | Effect::Asked { .. }
                | Effect::Offered { .. }
                | Effect::Renewed => {}
                Effect::File(effect) => match effect.act {
                    FileAct::Write { offset, data } => {
                        let file = self.image.entry(effect.file.to_string()).or_default();
                        let length = file.len() as u64;
                        file.extend_from_slice(&data);
                        self.check(length == offset, || {
                            format!("a write at {offset} of a file of {length} bytes")
                        });
                    }
                    FileAct::Delete => {
                        self.image.remove(effect.file.as_str());
                    }
                    FileAct::Rotate { to } => {
                        let file = self.image.remove(effect.file.as_str()).expect("a rotated file is there");
                        let old = self.image.insert(to.to_string(), file);
                        self.check(old.is_none(), || format!("a rotation writes over {to}"));
                    }
                    FileAct::Repair { .. } => {
                        // The disk was found with these bytes: the model knows them.
                        let found = self.model.files[effect.file.as_str()].bytes.clone();
                        self.image.insert(effect.file.to_string(), found);
                    }
                },
            }
        }
        settled.sort();
        let mut expected = std::mem::take(&mut self.model.settled);
        expected.sort();
        self.check(settled == expected, || {
            let told = |(session, id): &(SessionId, u64)| {
                let session = self.state.session(*session)?;
                Some(format!("client {}, id {id}: {:?}", session.client, session.wait_standing(*id)))
            };
            let told: Vec<_> = settled.iter().map(told).collect();
            format!("{told:#?} were settled, and the model says {expected:?}\n{:#?}", self.model.lines)
        });
    }

    /// What is kept of what happened is the end of all that happened, command by command, and as long as may be.
    fn check_history(&self, forgotten: Op, command: &Command) {
        let after = self.state.head().history_after;
        let from = Position { op: after + 1, seen: 0 };
        let kept = self.state.events_from(from).unwrap_or_else(|refusal| self.fail(&refusal.message));
        let mut kept: Vec<_> =
            kept.map(|(_, event)| (event.op, event.name.to_string(), format!("{:?}", event.what))).collect();
        self.check(kept.is_sorted_by_key(|(op, ..)| *op), || format!("{kept:?} are out of order"));
        let all = |(op, name, what): &(Op, String, What)| (*op, name.clone(), format!("{what:?}"));
        let mut expected: Vec<_> = self.model.events.iter().filter(|(op, ..)| *op > after).map(all).collect();
        // In which order one command does several things follows from the state's own lists.
        kept.sort();
        expected.sort();
        self.check(kept == expected, || {
            format!("what happened: {kept:#?}\nbut the model says {expected:#?}")
        });
        let (count, bytes) = self.state.history_size();
        let limits = self.model.limits();
        let fits =
            |more: u64| count + more <= limits.history_events && bytes + 150 * more <= limits.history_bytes;
        self.check(count <= limits.history_events && bytes <= limits.history_bytes, || {
            format!("the history has {count} events of {bytes} bytes")
        });
        if after > forgotten && !matches!(command, Command::NewTerm { .. }) {
            let gone = self.model.events.iter().filter(|(op, ..)| *op == after).count() as u64;
            self.check(gone > 0 && !fits(gone), || {
                format!("{gone} events of {after} are forgotten too early")
            });
        }
    }

    /// A wait that was settled has exactly one outcome, which never changes: the model keeps the first.
    fn check_settled(&self) {
        for (id, session) in &self.model.sessions {
            for (wait, answer) in &session.waits {
                let standing = self.state.session(*id).map(|session| session.wait_standing(*wait));
                let same = match (standing, &answer.outcome) {
                    (Some(Standing::Kept(outcome)), Some(expected)) => told(outcome) == *expected,
                    (Some(Standing::InLine(op)), None) => op == answer.op,
                    _ => false,
                };
                self.check(same, || format!("wait {wait} of {id}: the model says {answer:?}"));
            }
        }
    }

    /// A copy of the request is told what the first was told, and takes no effect.
    fn check_standing(&self, request: &Request) {
        let expected = self.model.standing(request);
        let standing = match self.state.session(request.session) {
            None => "none".into(),
            Some(session) => match session.standing(request.id, request.call.fingerprint()) {
                Standing::New => "new".into(),
                Standing::Kept(outcome) => format!("{:?}", told(outcome)),
                Standing::InLine(op) => format!("in line since {op}"),
                Standing::Reused => "reused".into(),
                Standing::Stale => "stale".into(),
            },
        };
        self.check(standing == expected, || {
            format!("request {} stands {standing}, not {expected}", request.id)
        });
    }

    /// Everything that can be seen from outside.
    pub(crate) fn check_all(&self) {
        // Nothing is over before a record says so, however late it is by the clock of a reader.
        let now = self.state.at().as_micros();
        let held: Vec<_> = self
            .state
            .live_grants(0)
            .map(|(token, grant)| (token, grant.asks.to_vec(), grant.owner.to_string()))
            .collect();
        let expected = self.model.live_grants(now);
        self.check(held == expected, || format!("at {now} held: {held:?}\nbut the model says {expected:?}"));
        for key in random::NAMES {
            let line: Vec<_> = self.state.line(key).map(|(op, _)| op).collect();
            let expected = self.model.live_line(key, now);
            self.check(line == expected, || format!("line of {key} at {now}: {line:?}, not {expected:?}"));
        }
        for grant in &self.model.lines.grants {
            let seen = self.state.keys_seen(Some(grant.token), "", None);
            let seen: Vec<_> = seen
                .map(|(name, key)| match key {
                    KeySeen::Committed(key) => (name.to_string(), key.value.to_string(), key.version),
                    KeySeen::Staged(key) => {
                        let value = key.change.value.as_ref().map(|value| value.to_string());
                        (name.to_string(), value.unwrap_or_default(), key.version)
                    }
                })
                .collect();
            let view = self.model.view(Some(grant.token));
            let told = |(name, key): (String, keys::MKey)| (name, key.value, key.version);
            let expected: Vec<_> = view.keys.into_iter().map(told).collect();
            self.check(seen == expected, || {
                format!("under {} are seen {seen:?}\nbut the model says {expected:?}", grant.token)
            });
            let section = self.state.section(grant.token);
            for (name, file) in view.files {
                let staged = section.and_then(|section| section.file(&name));
                let seen = match (staged, self.state.file(&name)) {
                    (Some(staged), file) => {
                        let before = file.map_or(0, |file| file.checksum);
                        Some((staged.generation, staged.length(), staged.checksum(before)))
                    }
                    (None, file) => file.map(|file| (file.generation, file.length, file.checksum)),
                };
                let expected = (file.generation, file.bytes.len() as u64, keys::crc32c(&file.bytes));
                self.check(seen == Some(expected), || {
                    format!("under {} {name} is {seen:?}, not {expected:?}", grant.token)
                });
            }
        }
        let keys: Vec<_> = self
            .state
            .keys("", None)
            .map(|(name, key)| {
                let until = key.deadline.map(Time::as_micros);
                (name.to_string(), key.value.to_string(), key.version, until, key.bound)
            })
            .collect();
        let expected = self.model.keys_told(now);
        self.check(keys == expected, || format!("keys at {now}: {keys:?}\nbut the model says {expected:?}"));
        let files: Vec<_> = self
            .state
            .files("", None)
            .map(|(name, file)| {
                (name.to_string(), file.generation, file.length, file.checksum, file.fault.is_some())
            })
            .collect();
        let expected = self.model.files();
        self.check(files == expected, || format!("files: {files:?}\nbut the model says {expected:?}"));
        for (name, file) in &self.model.files {
            self.check(self.image.get(name) == Some(&file.bytes), || {
                format!("{name} has other bytes on disk")
            });
        }
        self.check(self.image.len() == self.model.files.len(), || "the disk has other files".into());
        self.check_sessions();
        self.check_same(&self.twin, &self.state, "the twin");
    }

    fn check_sessions(&self) {
        let known: Vec<_> = self.state.parts().sessions.iter().map(|session| session.session).collect();
        let mut expected: Vec<_> =
            self.model.sessions.iter().map(|(id, session)| (session.client, *id)).collect();
        expected.sort();
        let expected: Vec<SessionId> = expected.into_iter().map(|(_, id)| id).collect();
        self.check(known == expected, || format!("sessions {known:?}, not {expected:?}"));
        for (id, expected) in &self.model.sessions {
            let session = self.state.session(*id).expect("it is known");
            self.check(session.is_live() == expected.ended.is_none(), || format!("{id}: is it live?"));
            let mut losses: Vec<_> = session
                .losses_after(0)
                .map(|loss| {
                    let keys = loss.keys.iter().map(|key| key.to_string()).collect();
                    (loss.op, loss.token, loss.reason, keys, loss.note.to_string())
                })
                .collect();
            let mut told: Vec<_> = expected.losses.iter().cloned().collect();
            // What one command ends, it ends in the order of the state's own lists.
            let place = |loss: &model::MLoss| (loss.0, loss.1);
            losses.sort_by_key(place);
            told.sort_by_key(place);
            self.check(losses == told, || format!("{id} lost {losses:?}, not {told:?}"));
        }
        for (id, expected) in &self.model.sessions {
            let session = self.state.session(*id).expect("it is known");
            let grants = || self.model.lines.grants.iter();
            let own = grants().filter(|grant| grant.session == *id);
            let mut asked: Vec<_> =
                own.filter_map(|grant| Some((grant.asked.as_ref()?.op, grant.token))).collect();
            asked.sort_unstable();
            let told: Vec<_> = session.asked_after(0).collect();
            self.check(told == asked, || format!("{id} is asked for {told:?}, not {asked:?}"));
            let offered = grants().filter_map(|grant| Some((grant.offered?, grant.token)));
            let mut offered: Vec<_> = offered
                .filter(|((client, _), _)| *client == expected.client)
                .map(|((_, op), token)| (op, token))
                .collect();
            offered.sort_unstable();
            let told: Vec<_> = session.offers_after(0).collect();
            self.check(told == offered, || format!("{id} is offered {told:?}, not {offered:?}"));
        }
        let waits = self.model.lines.waits.iter().filter(|_| self.model.is_clean());
        for wait in waits {
            let blocked = self.state.why_waiting(wait.op, self.at).expect("it waits");
            let (why, expected) = (Why::of(&blocked), self.model.why(wait));
            let ahead = self.model.stands_ahead(wait, &expected, blocked.ahead.as_ref());
            self.check(why == expected && ahead, || {
                format!("wait {}: {blocked:?}\nbut the model says {expected:?}", wait.op)
            });
        }
        let counts: BTreeMap<_, _> = self.state.counts().into_iter().collect();
        let expected = self.model.counts();
        for (name, count) in expected {
            self.check(counts[name] == count, || format!("{} {name}, not {count}", counts[name]));
        }
        let locks: Vec<String> =
            self.state.locks("", None, self.at).map(|lock| lock.key.to_string()).collect();
        self.check((counts["keys"], counts["key_bytes"]) == self.model.key_counts(), || {
            format!("{} keys, not {:?}", counts["keys"], self.model.key_counts())
        });
        let (least, most) = (self.model.locks(false), self.model.locks(true));
        let right = least.iter().all(|key| locks.contains(key)) && locks.iter().all(|key| most.contains(key));
        self.check(right, || format!("{locks:?} leave a trace, not {least:?} to {most:?}"));
    }

    fn check_same(&self, one: &State, other: &State, what: &str) {
        let (one, other) = (format!("{:#?}", one.parts()), format!("{:#?}", other.parts()));
        self.check(one == other, || {
            let differs = one.lines().zip(other.lines()).find(|(one, other)| one != other);
            format!("{what} has other parts: {differs:?}")
        });
    }

    pub(crate) fn check(&self, holds: bool, told: impl FnOnce() -> String) {
        if !holds {
            self.fail(&told());
        }
    }

    fn fail(&self, text: &str) -> ! {
        let last: Vec<_> = self.last.iter().cloned().collect();
        panic!("{}\n{}\n{text}", self.name, last.join("\n"));
    }
}
