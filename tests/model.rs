//! A random test of the state machine against a model of what it promises.
//!
//! Random commands of a few sessions, with few names and tiny limits, go to the state and to [`Model`], which was written
//! from the design and shares no code with the state: plain lists, searched from the front. Every outcome must be the one
//! that the model says, and so must every lock, line, key, file, loss and kept reply. Beside it run a twin, which is taken
//! apart and built anew again and again, and a snapshot with the commands behind it, which replaces the state at a crash.
//!
//! `TENURE_COMMANDS=1000000` runs longer, `TENURE_SEED=…` repeats a run.

#[path = "model/model.rs"]
mod model;
#[path = "model/random.rs"]
mod random;

use model::{Model, told};
use random::Draw;
use std::collections::{BTreeMap, VecDeque};
use tenure::command::{Command, Request};
use tenure::identity::{Op, SessionId};
use tenure::outcome::{Effect, FileAct};
use tenure::state::{Parts, Standing, State};
use tenure::time::Time;

/// How many commands a run has if nothing is said.
const COMMANDS: u64 = 20_000;

#[test]
fn the_state_machine_does_what_the_model_says() {
    let seed = std::env::var("TENURE_SEED").ok().map(|seed| seed.parse().expect("TENURE_SEED is a number"));
    let seed = seed.unwrap_or_else(random::fresh_seed);
    let commands =
        std::env::var("TENURE_COMMANDS").ok().map(|n| n.parse().expect("TENURE_COMMANDS is a number"));
    println!("TENURE_SEED={seed}");
    let mut run = Run::new(seed);
    for number in 0..commands.unwrap_or(COMMANDS) {
        run.step(number);
    }
    println!("drawn: {}\nsaid: {:?}", run.draw.summary(), run.said);
}

/// A state that has more to sweep than one command may, when its afterlife is over, and one built from its parts at that
/// moment: both must forget the session at the same command.
#[test]
fn a_state_built_from_parts_forgets_an_ended_session_when_the_original_does() {
    let mut original = State::new();
    let mut op = 0;
    let mut apply = |state: &mut State, ms: u64, command: &Command| {
        op += 1;
        state.apply(op, Time::from_millis(ms), command, &mut Vec::new())
    };
    for command in random::many_grants(300) {
        apply(&mut original, 0, &command);
    }
    apply(&mut original, 0, &random::end_of_first_session());
    apply(&mut original, 60_000, &Command::Tick);
    let mut rebuilt = State::from_parts(original.parts()).unwrap();
    for _ in 0..3 {
        assert_eq!(original.next_due(), rebuilt.next_due(), "they wake up at other times");
        op += 1;
        original.apply(op, Time::from_millis(60_000), &Command::Tick, &mut Vec::new());
        rebuilt.apply(op, Time::from_millis(60_000), &Command::Tick, &mut Vec::new());
        assert_eq!(format!("{:?}", original.parts()), format!("{:?}", rebuilt.parts()));
    }
}

struct Run {
    seed: u64,
    draw: Draw,
    model: Model,
    state: State,
    /// Applies the same, and is built anew from its parts now and then.
    twin: State,
    /// A snapshot, and what was applied since.
    snapshot: Parts,
    behind: Vec<(Op, Time, Command)>,
    op: Op,
    at: Time,
    /// The files as their effects make them.
    image: BTreeMap<String, Vec<u8>>,
    last: VecDeque<String>,
    /// How often the state said what.
    said: BTreeMap<String, u64>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let state = State::new();
        Run {
            seed,
            draw: Draw::new(seed),
            model: Model::default(),
            snapshot: state.parts(),
            twin: State::new(),
            state,
            behind: Vec::new(),
            op: 0,
            at: Time::ZERO,
            image: BTreeMap::new(),
            last: VecDeque::new(),
            said: BTreeMap::new(),
        }
    }

    fn step(&mut self, number: u64) {
        self.at = self.draw.time(self.at, self.state.next_due());
        let command = self.draw.command(&self.model, self.at.as_micros());
        self.op = tenure::log::next_op(self.op, &command);
        if self.last.len() == 30 {
            self.last.pop_front();
        }
        self.last.push_back(format!("{} at {}: {command:?}", self.op, self.at));

        let mut effects = Vec::new();
        let outcome = self.state.apply(self.op, self.at, &command, &mut effects);
        let twin = self.twin.apply(self.op, self.at, &command, &mut Vec::new());
        self.behind.push((self.op, self.at, command.clone()));
        let expected = self.model.apply(self.op, self.at.as_micros(), &command);
        self.check(told(&outcome) == expected, || format!("{outcome:?}\nbut the model says {expected:?}"));
        self.check(outcome == twin, || format!("{outcome:?}\nbut the twin says {twin:?}"));
        self.check(self.state.digest() == self.twin.digest(), || "the digests differ".into());
        *self.said.entry(expected.word()).or_default() += 1;
        self.take_effects(effects);
        self.check_settled();
        if let Command::Request(request) = &command {
            self.check_standing(request);
        }
        if number.is_multiple_of(16) {
            self.check_all();
        }
        self.trouble();
    }

    /// Now and then: the twin is built anew, a snapshot is taken, the state is lost and recovered.
    fn trouble(&mut self) {
        if self.draw.random.one_in(20) {
            self.twin = self.rebuilt(self.twin.parts());
        }
        if self.draw.random.one_in(150) || self.behind.len() > 2_000 {
            self.snapshot = self.state.parts();
            self.behind.clear();
        }
        if self.draw.random.one_in(100) {
            let mut recovered = self.rebuilt(self.snapshot.clone());
            for (op, at, command) in &self.behind {
                recovered.apply(*op, *at, command, &mut Vec::new());
            }
            self.check(recovered.digest() == self.state.digest(), || "a recovery has another digest".into());
            self.check_same(&recovered, &self.state, "a recovery");
            self.state = recovered;
        }
    }

    fn rebuilt(&self, parts: Parts) -> State {
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
        let expected = std::mem::take(&mut self.model.settled);
        self.check(settled == expected, || {
            format!("{settled:?} were settled, and the model says {expected:?}")
        });
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
    fn check_all(&self) {
        let at = self.at.as_micros();
        // Reads may come later than the last command, while the command that cleans up is still on its way.
        for now in [at, at + 1, at + 350_000] {
            let held: Vec<_> = self
                .state
                .live_grants(0, Time::from_micros(now))
                .map(|(token, grant)| (token, grant.asks[0].key.to_string(), grant.owner.to_string()))
                .collect();
            let expected = self.model.live_grants(now);
            self.check(held == expected, || {
                format!("at {now} held: {held:?}\nbut the model says {expected:?}")
            });
            let mut keys: Vec<_> = held.iter().map(|(_, key, _)| key).collect();
            keys.sort();
            keys.dedup();
            self.check(keys.len() == held.len(), || format!("two holders: {held:?}"));
            for key in random::NAMES {
                let line: Vec<_> = self.state.line(key, Time::from_micros(now)).map(|(op, _)| op).collect();
                let expected = self.model.live_line(key, now);
                self.check(line == expected, || {
                    format!("line of {key} at {now}: {line:?}, not {expected:?}")
                });
            }
        }
        let keys: Vec<_> = self
            .state
            .keys("", None, self.state.at())
            .map(|(name, key)| (name.to_string(), key.value.to_string(), key.version))
            .collect();
        let expected = self.model.keys();
        self.check(keys == expected, || format!("keys: {keys:?}\nbut the model says {expected:?}"));
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
            let losses: Vec<_> = session.losses_after(0).map(|loss| (loss.op, loss.token)).collect();
            let told: Vec<_> = expected.losses.iter().copied().collect();
            self.check(losses == told, || format!("{id} lost {losses:?}, not {told:?}"));
        }
        let counts: BTreeMap<_, _> = self.state.counts().into_iter().collect();
        let expected = self.model.counts();
        for (name, count) in expected {
            self.check(counts[name] == count, || format!("{} {name}, not {count}", counts[name]));
        }
    }

    fn check_same(&self, one: &State, other: &State, what: &str) {
        let (one, other) = (format!("{:#?}", one.parts()), format!("{:#?}", other.parts()));
        self.check(one == other, || {
            let differs = one.lines().zip(other.lines()).find(|(one, other)| one != other);
            format!("{what} has other parts: {differs:?}")
        });
    }

    fn check(&self, holds: bool, told: impl FnOnce() -> String) {
        if !holds {
            self.fail(&told());
        }
    }

    fn fail(&self, text: &str) -> ! {
        let last: Vec<_> = self.last.iter().cloned().collect();
        panic!("TENURE_SEED={}\n{}\n{text}", self.seed, last.join("\n"));
    }
}
