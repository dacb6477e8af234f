//! Deadlock: a wait that could never be served, because its owner waits for itself over others.
//!
//! When a wait would start, all that it depends on is gathered: who holds its locks, who stands before it, and so on for
//! each of these that waits itself. If the asker is not found there, nothing can come back to it. If it is, the lines are
//! played through: every owner that does not wait lets go of everything one day, whoever can then be served is served and
//! lets go as well. Who is left is stuck. This is exact for slots too, where one of several ways to be served may lead back
//! and another not. (The reduction of a wait-for graph: R. C. Holt, "Some Deadlock Properties of Computer Systems", ACM
//! Computing Surveys 4 (3), 1972.)
//!
//! Every wait is checked before it starts, and who waits is given nothing by others, so a cycle is closed by a wait or
//! never: looking from the asker is enough. The work is bounded by [`DEADLOCK_STEPS_MAX`]; it grows with what the asker
//! depends on, each holder and each place in line looked at once.
//!
//! Most waits need no more than a glance: either little stands before the asker, or few wait for it and none of them is in
//! its way (`behind`). So a chain of waits is built without each wait walking all of it, whichever end it grows at.

use super::State;
use super::behind::{Behind, Look};
use super::lines::is_slot;
use super::lock::Lock;
use super::locks::Wanted;
use super::taken::{Taken, conflict};
use super::waits::mode_of;
use crate::command::{Ask, Mode};
use crate::identity::{Op, SessionId, Token};
use crate::kind::{CycleStep, Detail, Kind, Refusal};
use crate::limits::{CYCLE_SHOWN, DEADLOCK_STEPS_MAX};
use crate::name::Name;
use std::collections::VecDeque;
use std::collections::btree_map::{BTreeMap, Entry};
use std::fmt::Write as _;

/// Steps of the first look behind the asker. Most waits end here: nobody waits for who holds nothing.
const GLANCE: usize = 64;

/// Steps of the first look ahead, and of the second behind. Whoever needs more has many on both sides, or closes a cycle.
const LOOK: usize = 512;

/// The asker among the waiting owners.
const ASKER: usize = 0;

/// Too much to look at.
struct TooLong;

/// An owner that waits, and what for.
struct Waiting<'a> {
    session: SessionId,
    owner: &'a str,
    label: &'a str,
    asks: &'a [Ask],
    /// The command that put it in line; none for the asker.
    op: Option<Op>,
    /// The grant that it converts, if it does.
    converts: Option<Token>,
    /// In how many of its lines it does not fit yet.
    missing: usize,
    /// Whether it can be served, and then lets go of all it has.
    served: bool,
    /// What it holds of the locks gathered.
    holds: Vec<(usize, Mode)>,
    /// In which lines it stands, and where.
    stands: Vec<(usize, Mode, usize)>,
    /// Before which lines it waits to convert.
    converting: Vec<(usize, Mode)>,
}

/// A lock whose line is played through: those of its holders and waits who wait for something.
struct Played<'a> {
    key: &'a Name,
    /// The lock as it is, if there is one.
    real: Option<&'a Lock>,
    holders: Vec<(usize, Mode, Token)>,
    converting: Vec<Converting>,
    line: Vec<(usize, Mode)>,
    /// How much of the real line was gathered.
    gathered: usize,
    /// What holders take that were not served.
    held: Taken,
    /// What holders, conversions and the waits that fit take, as far as they were not served.
    taken: Taken,
    /// How many waits of the line fit.
    next: usize,
}

/// A conversion in a line that is played through.
struct Converting {
    who: usize,
    from: Mode,
    to: Mode,
    fits: bool,
}

/// That one owner waits for another: at which lock, and under which grant, if the other holds it.
#[derive(Clone, Copy)]
struct Edge {
    from: usize,
    lock: usize,
    token: Option<Token>,
}

struct Search<'a> {
    state: &'a State,
    waiting: Vec<Waiting<'a>>,
    by_op: BTreeMap<Op, usize>,
    locks: Vec<Played<'a>>,
    by_key: BTreeMap<&'a Name, usize>,
    steps: usize,
    /// How many steps may be taken.
    most: usize,
    /// Whether anybody gathered waits for the asker.
    leads_back: bool,
}

impl State {
    /// Refuses a wait, or the wait of a conversion, that would close a cycle. If that cannot be said within bounds the wait
    /// is allowed, and counted.
    pub(super) fn refuse_deadlock(
        &mut self,
        wanted: &Wanted<'_>,
        converts: Option<Token>,
    ) -> Result<(), Refusal> {
        let mut steps = 0;
        let verdict = self.judge(wanted, converts, &mut steps);
        self.deadlock_steps += steps as u64;
        match verdict {
            Ok(None) => Ok(()),
            Ok(Some(refusal)) => Err(refusal),
            Err(TooLong) => {
                self.head.unchecked_waits += 1;
                Ok(())
            }
        }
    }

    /// The refusal of a wait, if it would close a cycle; what was looked at is added to `steps`.
    fn judge(
        &self,
        wanted: &Wanted<'_>,
        converts: Option<Token>,
        steps: &mut usize,
    ) -> Result<Option<Refusal>, TooLong> {
        let mut glance = Behind::new(self, wanted, converts, GLANCE);
        let mut seen = glance.look();
        *steps += glance.steps();
        if seen == Look::Clear || crate::bug::planted("deadlock_missed") {
            return Ok(None);
        }
        let mut ahead = Search::new(self, wanted, converts, LOOK);
        let verdict = ahead.verdict();
        *steps += ahead.steps;
        if verdict.is_ok() {
            return verdict;
        }
        if seen == Look::TooFar {
            let mut behind = Behind::new(self, wanted, converts, LOOK);
            seen = behind.look();
            *steps += behind.steps();
            if seen == Look::Clear {
                return Ok(None);
            }
        }
        let mut ahead = Search::new(self, wanted, converts, DEADLOCK_STEPS_MAX);
        let verdict = ahead.verdict();
        *steps += ahead.steps;
        verdict
    }
}

impl<'a> Search<'a> {
    fn new(state: &'a State, wanted: &Wanted<'a>, converts: Option<Token>, most: usize) -> Search<'a> {
        let mut search = Search {
            state,
            waiting: Vec::new(),
            by_op: BTreeMap::new(),
            locks: Vec::new(),
            by_key: BTreeMap::new(),
            steps: 0,
            most,
            leads_back: false,
        };
        search.add_waiting(wanted.session, wanted.owner, &wanted.terms.label, wanted.asks, None, converts);
        search
    }

    fn add_waiting(
        &mut self,
        session: SessionId,
        owner: &'a str,
        label: &'a str,
        asks: &'a [Ask],
        op: Option<Op>,
        converts: Option<Token>,
    ) -> usize {
        self.waiting.push(Waiting {
            session,
            owner,
            label,
            asks,
            op,
            converts,
            missing: asks.len(),
            served: false,
            holds: Vec::with_capacity(1),
            stands: Vec::with_capacity(1),
            converting: Vec::new(),
        });
        self.waiting.len() - 1
    }

    /// The refusal of the asker's wait, if it would close a cycle.
    fn verdict(&mut self) -> Result<Option<Refusal>, TooLong> {
        let mut next = ASKER;
        while next < self.waiting.len() {
            self.gather(next)?;
            next += 1;
        }
        if !self.leads_back {
            return Ok(None);
        }
        if !crate::bug::planted("deadlock_imagined") {
            self.play();
        }
        if self.waiting[ASKER].served {
            return Ok(None);
        }
        let Some(cycle) = self.cycle()? else { return Ok(None) };
        let steps: Vec<CycleStep> = cycle.iter().take(CYCLE_SHOWN).map(|edge| self.step(*edge)).collect();
        let cycle_total = cycle.len() as u64;
        let text = sentence(&steps, cycle_total);
        Ok(Some(Refusal::new(Kind::Deadlock, text).with(Detail::Cycle { cycle: steps, cycle_total })))
    }

    fn count(&mut self) -> Result<(), TooLong> {
        self.steps += 1;
        if self.steps > self.most { Err(TooLong) } else { Ok(()) }
    }

    /// Gathers the locks that an owner waits for, with all who are in its way there.
    fn gather(&mut self, who: usize) -> Result<(), TooLong> {
        let Waiting { asks, op, converts, .. } = self.waiting[who];
        for ask in asks {
            let lock = self.lock(&ask.key)?;
            let real = self.locks[lock].real;
            match (converts, op) {
                (Some(_), Some(_)) => {}
                (Some(token), None) => {
                    let from = self.state.grants[token].mode_of(&ask.key);
                    self.add_converting(lock, who, from, ask.mode);
                }
                (None, Some(op)) => {
                    let line = real.map(|real| real.line().partition_point(|other| *other <= op));
                    self.gather_line(lock, line.unwrap_or(0))?;
                }
                (None, None) => {
                    self.gather_line(lock, real.map_or(0, |real| real.line().len()))?;
                    self.stand(lock, who, ask.mode);
                }
            }
        }
        Ok(())
    }

    /// The lock as it is played through, with its holders and conversions.
    fn lock(&mut self, key: &'a Name) -> Result<usize, TooLong> {
        let lock = self.locks.len();
        match self.by_key.entry(key) {
            Entry::Occupied(known) => return Ok(*known.get()),
            Entry::Vacant(unknown) => unknown.insert(lock),
        };
        let state = self.state;
        let real = state.locks.get(key);
        self.locks.push(Played {
            key,
            real,
            // Most have one.
            holders: Vec::with_capacity(1),
            converting: Vec::new(),
            line: Vec::with_capacity(1),
            gathered: 0,
            held: Taken::default(),
            taken: Taken::default(),
            next: 0,
        });
        let Some(real) = real else { return Ok(lock) };
        for token in real.holders() {
            self.count()?;
            let Some(grant) = state.live_grant(*token) else { continue };
            let asker = &self.waiting[ASKER];
            let who = if grant.session == asker.session && *grant.owner == *asker.owner {
                self.leads_back = true;
                ASKER
            } else {
                let wait = state.wait_of(grant.session, &grant.owner);
                // Who waits for nothing lets go one day.
                let Some(who) = wait.and_then(|(_, op)| self.who(op)) else { continue };
                who
            };
            let mode = grant.mode_of(key);
            self.locks[lock].holders.push((who, mode, *token));
            self.locks[lock].held.add(mode);
            self.locks[lock].taken.add(mode);
            self.waiting[who].holds.push((lock, mode));
        }
        for op in real.converting() {
            self.count()?;
            let wait = &state.waits[op];
            let token = wait.converts.expect("a conversion converts a grant");
            let (from, to) = (state.grants[token].mode_of(key), wait.mode_of(key));
            if let Some(who) = self.who(*op) {
                self.add_converting(lock, who, from, to);
            }
        }
        Ok(lock)
    }

    /// The owner of a wait that lives.
    fn who(&mut self, op: Op) -> Option<usize> {
        if let Some(who) = self.by_op.get(&op) {
            return Some(*who);
        }
        let state = self.state;
        let wait = state.waits.get(&op).filter(|wait| state.wait_lives(wait))?;
        let label = &wait.terms.label;
        let who = self.add_waiting(wait.session, &wait.owner, label, &wait.asks, Some(op), wait.converts);
        self.by_op.insert(op, who);
        Some(who)
    }

    fn gather_line(&mut self, lock: usize, upto: usize) -> Result<(), TooLong> {
        let Played { key, real: Some(real), .. } = self.locks[lock] else { return Ok(()) };
        while self.locks[lock].gathered < upto {
            self.count()?;
            let op = real.line()[self.locks[lock].gathered];
            self.locks[lock].gathered += 1;
            if let Some(who) = self.who(op) {
                let mode = mode_of(self.waiting[who].asks, key);
                self.stand(lock, who, mode);
            }
        }
        Ok(())
    }

    fn stand(&mut self, lock: usize, who: usize, mode: Mode) {
        let place = self.locks[lock].line.len();
        self.locks[lock].line.push((who, mode));
        self.waiting[who].stands.push((lock, mode, place));
    }

    fn add_converting(&mut self, lock: usize, who: usize, from: Mode, to: Mode) {
        self.locks[lock].converting.push(Converting { who, from, to, fits: false });
        self.locks[lock].taken.add(to);
        self.waiting[who].converting.push((lock, to));
    }

    /// Serves whoever can be served, until nobody is left or all who are left are stuck.
    fn play(&mut self) {
        let mut changed: Vec<usize> = (0..self.locks.len()).collect();
        while let Some(lock) = changed.pop() {
            for nth in 0..self.locks[lock].converting.len() {
                let Converting { who, from, to, fits } = self.locks[lock].converting[nth];
                if fits {
                    continue;
                }
                let mut taken = self.locks[lock].held;
                taken.remove(from);
                for earlier in &self.locks[lock].converting[..nth] {
                    if !self.waiting[earlier.who].served {
                        taken.add(earlier.to);
                    }
                }
                if taken.admits(to) {
                    self.locks[lock].converting[nth].fits = true;
                    self.fits(who, &mut changed);
                }
            }
            while let Some(&(who, mode)) = self.locks[lock].line.get(self.locks[lock].next) {
                if !self.locks[lock].taken.admits(mode) {
                    break;
                }
                self.locks[lock].taken.add(mode);
                self.locks[lock].next += 1;
                self.fits(who, &mut changed);
            }
        }
    }

    /// Notes that an owner fits in one more of its lines; when it fits in all, it is served and lets go of all it has.
    fn fits(&mut self, who: usize, changed: &mut Vec<usize>) {
        self.waiting[who].missing -= 1;
        if self.waiting[who].missing > 0 {
            return;
        }
        self.waiting[who].served = true;
        for (lock, mode) in &self.waiting[who].holds {
            self.locks[*lock].held.remove(*mode);
            self.locks[*lock].taken.remove(*mode);
            changed.push(*lock);
        }
        for (lock, mode, _) in &self.waiting[who].stands {
            self.locks[*lock].taken.remove(*mode);
            changed.push(*lock);
        }
        for (lock, mode) in &self.waiting[who].converting {
            self.locks[*lock].taken.remove(*mode);
            changed.push(*lock);
        }
    }

    /// The shortest cycle through the asker among those who are stuck, as who waits for whom.
    fn cycle(&mut self) -> Result<Option<Vec<Edge>>, TooLong> {
        // Finding the way back may take as many steps as finding that there is one.
        self.most += self.steps;
        let mut came_by: Vec<Option<Edge>> = vec![None; self.waiting.len()];
        // Of whom all who hold a lock and all up to a place in its line were looked at.
        let mut looked_at = vec![(false, 0); self.locks.len()];
        let mut next = VecDeque::from([ASKER]);
        while let Some(from) = next.pop_front() {
            for (lock, token, to) in self.in_the_way(from, &mut looked_at)? {
                let edge = Edge { from, lock, token };
                if to == ASKER {
                    let mut cycle = vec![edge];
                    while let Some(edge) = came_by[cycle[cycle.len() - 1].from] {
                        cycle.push(edge);
                    }
                    cycle.reverse();
                    return Ok(Some(cycle));
                }
                if to != from && came_by[to].is_none() {
                    came_by[to] = Some(edge);
                    next.push_back(to);
                }
            }
        }
        Ok(None)
    }

    /// Who is in the way of a stuck owner, and is stuck as well: holders first.
    fn in_the_way(
        &mut self,
        who: usize,
        looked_at: &mut [(bool, usize)],
    ) -> Result<Vec<(usize, Option<Token>, usize)>, TooLong> {
        let mut found = Vec::new();
        let stands = self.waiting[who].stands.iter().map(|(lock, mode, place)| (*lock, *mode, Some(*place)));
        let converting = self.waiting[who].converting.iter().map(|(lock, mode)| (*lock, *mode, None));
        let lines: Vec<_> = stands.chain(converting).collect();
        for (lock, mode, place) in lines {
            let Played { holders, line, converting, next, .. } = &self.locks[lock];
            let fits = match place {
                Some(place) => place < *next,
                None => converting.iter().any(|converting| converting.who == who && converting.fits),
            };
            if fits {
                continue;
            }
            let clashes = |other: Mode| conflict(other, mode) || is_slot(other) && is_slot(mode);
            // Who asks for all or for slots is kept out by everybody, so it need not be looked at again.
            let all = mode != Mode::Shared;
            let (holders_done, line_done) = looked_at[lock];
            let mut steps = 0;
            if !holders_done {
                let own = self.waiting[who].converts;
                for (other, held, token) in holders.iter().filter(|(.., token)| Some(*token) != own) {
                    steps += 1;
                    if !self.waiting[*other].served && clashes(*held) {
                        found.push((lock, Some(*token), *other));
                    }
                }
                looked_at[lock].0 = all && place.is_some();
            }
            for other in converting {
                steps += 1;
                if !self.waiting[other.who].served && other.who != who && clashes(other.to) {
                    found.push((lock, None, other.who));
                }
            }
            if let Some(place) = place {
                for (other, asked) in line.iter().take(place).skip(line_done) {
                    steps += 1;
                    if !self.waiting[*other].served && clashes(*asked) {
                        found.push((lock, None, *other));
                    }
                }
                if all {
                    looked_at[lock].1 = line_done.max(place);
                }
            }
            self.steps += steps;
            if self.steps > self.most {
                return Err(TooLong);
            }
        }
        Ok(found)
    }

    fn step(&self, edge: Edge) -> CycleStep {
        let who = &self.waiting[edge.from];
        let session = &self.state.sessions[&who.session];
        CycleStep {
            client: session.client,
            name: session.name.clone(),
            owner: who.owner.into(),
            label: who.label.into(),
            key: self.locks[edge.lock].key.clone(),
            token: edge.token,
        }
    }
}

/// The cycle as a sentence.
fn sentence(steps: &[CycleStep], total: u64) -> String {
    let mut text = String::from("waiting would never end:");
    for (nth, step) in steps.iter().enumerate() {
        let _ = write!(text, " client {}", step.client);
        if !step.name.is_empty() {
            let _ = write!(text, " {:?}", step.name);
        }
        if !step.owner.is_empty() {
            let _ = write!(text, " owner {:?}", step.owner);
        }
        if !step.label.is_empty() {
            let _ = write!(text, " ({})", step.label);
        }
        let who = if nth == 0 { "" } else { ", who" };
        let _ = match step.token {
            Some(token) => write!(text, "{who} waits for {:?}, held under token {token} by", step.key),
            None => write!(text, "{who} waits for {:?} behind", step.key),
        };
    }
    match total - steps.len() as u64 {
        0 => text.push_str(" the asker"),
        more => {
            let _ = write!(text, " {more} others, the last of whom waits for the asker");
        }
    }
    text.push_str("; release what is held first, or ask for all of it in one request");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Call, Command, Patience, Request, Terms};
    use crate::identity::Nonce;
    use crate::outcome::Outcome;
    use crate::time::Time;

    const SESSIONS: u128 = 3;
    const OWNERS: [&str; 3] = ["", "a", "b"];
    const MODES: [Mode; 4] = [
        Mode::Exclusive,
        Mode::Shared,
        Mode::Slot { slots: 3, weight: 1 },
        Mode::Slot { slots: 3, weight: 2 },
    ];

    /// Owners who hold and wait at random.
    struct Crowd {
        state: State,
        draw: fastrand::Rng,
        ids: [u64; SESSIONS as usize],
    }

    impl Crowd {
        fn new(seed: u64) -> Crowd {
            let mut state = State::new();
            for number in 0..SESSIONS {
                let (nonce, session) = (Nonce(number), SessionId(number));
                let (name, label) = (String::new(), String::new());
                let open = Command::OpenSession { nonce, session, name, label, ttl_ms: 10_000 };
                state.apply(state.op() + 1, Time::ZERO, &open, &mut Vec::new());
            }
            Crowd { state, draw: fastrand::Rng::with_seed(seed), ids: [0; SESSIONS as usize] }
        }

        fn request(&mut self, session: SessionId, call: Call) {
            let id = &mut self.ids[session.0 as usize];
            *id += 1;
            let request =
                Request { session, id: *id, ack: *id, got: (1..*id).rev().take(64).collect(), call };
            let op = self.state.op() + 1;
            self.state.apply(op, Time::ZERO, &Command::Request(request), &mut Vec::new());
        }

        fn owner(&mut self) -> (SessionId, &'static str) {
            (SessionId(self.draw.u128(..SESSIONS)), OWNERS[self.draw.usize(..OWNERS.len())])
        }

        fn asks(&mut self) -> Vec<Ask> {
            let mut asks = Vec::new();
            for key in ["p", "q", "r", "s", "t", "u"] {
                // One lock is for slots and the others are not, so that nobody is refused for that.
                let modes = if key == "u" { &MODES[2..] } else { &MODES[..2] };
                if self.draw.u8(..4) == 0 {
                    let key = Name::new(key).expect("the name is good");
                    asks.push(Ask { key, mode: modes[self.draw.usize(..modes.len())] });
                }
            }
            asks
        }

        fn grant(&mut self) -> Option<(Token, SessionId)> {
            let grants: Vec<_> =
                self.state.grants.iter().map(|(token, grant)| (token, grant.session)).collect();
            self.draw.choice(grants)
        }

        fn step(&mut self) {
            match self.draw.u8(..8) {
                0..5 => {
                    let ((session, owner), asks) = (self.owner(), self.asks());
                    if !asks.is_empty() {
                        let (owner, terms) = (owner.to_owned(), Terms::default());
                        self.request(
                            session,
                            Call::Acquire { asks: asks.into(), wait: Patience::Forever, owner, terms },
                        );
                    }
                }
                5 => {
                    if let Some((token, session)) = self.grant() {
                        let asks =
                            vec![Ask { mode: Mode::Exclusive, ..self.state.grants[token].asks[0].clone() }];
                        let wait = Patience::Forever;
                        self.request(session, Call::Convert { token, asks: asks.into(), wait, holder: None });
                    }
                }
                6 => {
                    if let Some((token, session)) = self.grant() {
                        self.request(session, Call::Release { token, holder: None });
                    }
                }
                _ => {
                    let waits: Vec<_> =
                        self.state.waits.values().map(|wait| (wait.session, wait.id)).collect();
                    if let Some((session, wait)) = self.draw.choice(waits) {
                        self.request(session, Call::CancelWait { wait });
                    }
                }
            }
        }

        /// A wait that could be asked for now: by an owner that does not wait, for what it does not hold, or for more of what
        /// it holds.
        fn wish(&mut self) -> Option<(SessionId, &'static str, Vec<Ask>, Option<Token>)> {
            let ((session, owner), asks) = (self.owner(), self.asks());
            if asks.is_empty() || self.state.wait_of(session, owner).is_some() {
                return None;
            }
            let held = self.state.held_of(session, owner, &asks);
            let Some(token) = held.first() else { return Some((session, owner, asks, None)) };
            let mut asks = self.state.grants[*token].asks.to_vec();
            asks.retain(|ask| ask.mode != Mode::Exclusive);
            asks.iter_mut().for_each(|ask| ask.mode = Mode::Exclusive);
            (!asks.is_empty()).then_some((session, owner, asks, Some(*token)))
        }
    }

    /// Looking behind may only ever spare the look ahead where that finds nothing.
    #[test]
    fn who_is_not_in_the_way_when_looking_behind_closes_no_cycle() {
        let (mut cycles, mut spared, mut long) = (0, 0, 0);
        for seed in 0..60 {
            let mut crowd = Crowd::new(seed);
            for _ in 0..300 {
                crowd.step();
                let Some((session, owner, asks, converts)) = crowd.wish() else { continue };
                let terms = Terms::default();
                let wanted = Wanted { session, id: 0, fingerprint: 0, asks: &asks, owner, terms: &terms };
                let mut behind = Behind::new(&crowd.state, &wanted, converts, DEADLOCK_STEPS_MAX);
                let look = behind.look();
                let Ok(verdict) = Search::new(&crowd.state, &wanted, converts, DEADLOCK_STEPS_MAX).verdict()
                else {
                    panic!("there is no bound")
                };
                cycles += u32::from(verdict.is_some());
                spared += u32::from(look == Look::Clear);
                long += u32::from(look == Look::Clear && behind.met() > 1);
                assert!(
                    look == Look::InTheWay || verdict.is_none(),
                    "seed {seed}: {owner:?} of {session:?} asks for {asks:?}: {look:?}, and {verdict:?}"
                );
            }
        }
        assert!(
            cycles > 500 && spared > 2_000 && long > 200,
            "{cycles}, {spared}, {long}: too little was tried"
        );
    }

    /// Owners, a hundred of them in each session, that ask for locks.
    struct Rig {
        state: State,
        /// How many requests each session has sent.
        sent: BTreeMap<u128, u64>,
    }

    impl Rig {
        fn new() -> Rig {
            Rig { state: State::new(), sent: BTreeMap::new() }
        }

        fn apply(&mut self, command: &Command) -> Outcome {
            let (op, at) = (self.state.op() + 1, self.state.at());
            self.state.apply(op, at, command, &mut Vec::new())
        }

        fn acquire(&mut self, owner: u64, asks: Vec<Ask>) -> Outcome {
            let number = u128::from(owner / 100) + 1;
            let session = SessionId(number);
            if !self.sent.contains_key(&number) {
                let (nonce, name, label) = (Nonce(number), String::new(), String::new());
                self.apply(&Command::OpenSession { nonce, session, name, label, ttl_ms: 10_000 });
            }
            let id = self.sent.entry(number).or_default();
            *id += 1;
            let call = Call::Acquire {
                asks: asks.into(),
                wait: Patience::Forever,
                owner: format!("{owner}"),
                terms: Terms::default(),
            };
            let request = Request { session, id: *id, ack: 0, got: Vec::new(), call };
            self.apply(&Command::Request(request))
        }
    }

    fn ask(key: &str, mode: Mode) -> Ask {
        Ask { key: Name::new(key).unwrap(), mode }
    }

    #[test]
    fn a_cycle_of_ten_thousand_owners_is_found() {
        const OWNERS: u64 = 10_000;
        let mut rig = Rig::new();
        let lock = |owner: u64| vec![ask(&format!("{owner:05}"), Mode::Exclusive)];
        for owner in 0..OWNERS {
            let outcome = rig.acquire(owner, lock(owner));
            assert!(matches!(outcome, Outcome::Granted { .. }), "{outcome:?}");
        }
        for owner in 0..OWNERS - 1 {
            let outcome = rig.acquire(owner, lock(owner + 1));
            assert!(matches!(outcome, Outcome::Waiting(_)), "{outcome:?}");
        }
        let outcome = rig.acquire(OWNERS - 1, lock(0));
        let Outcome::Refused(refusal) = outcome else { panic!("{outcome:?}") };
        let Detail::Cycle { cycle, cycle_total } = &refusal.detail else { panic!("{refusal:?}") };
        assert_eq!((refusal.kind, cycle.len(), *cycle_total), (Kind::Deadlock, CYCLE_SHOWN, OWNERS));
        assert_eq!((&*cycle[0].owner, &*cycle[1].owner), ("9999", "0"));
        assert_eq!(rig.state.head().unchecked_waits, 0);
    }

    /// The last of `readers` readers of 64 locks waits for who then asks to write them all.
    fn writer_behind(readers: u64) -> (Outcome, u64) {
        let mut rig = Rig::new();
        let all = |mode| (0..64).map(|lock| ask(&format!("{lock:02}"), mode)).collect::<Vec<_>>();
        let one = || vec![ask("one", Mode::Exclusive)];
        rig.acquire(0, one());
        for reader in 1..=readers {
            rig.acquire(reader, all(Mode::Shared));
        }
        let outcome = rig.acquire(readers, one());
        assert!(matches!(outcome, Outcome::Waiting(_)), "{outcome:?}");
        let outcome = rig.acquire(0, all(Mode::Exclusive));
        (outcome, rig.state.head().unchecked_waits)
    }

    #[test]
    fn what_is_too_much_to_look_at_is_allowed_and_counted() {
        let most = DEADLOCK_STEPS_MAX as u64 / 64;
        let (outcome, unchecked) = writer_behind(most);
        assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
        assert_eq!(unchecked, 0);
        let (outcome, unchecked) = writer_behind(most + 1);
        assert!(matches!(outcome, Outcome::Waiting(_)), "{outcome:?}");
        assert_eq!(unchecked, 1);
    }
}
