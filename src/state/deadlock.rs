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

use super::State;
use super::lines::is_slot;
use super::locks::Wanted;
use super::taken::{Taken, conflict};
use crate::command::{Ask, Mode};
use crate::identity::{Op, SessionId, Token};
use crate::kind::{CycleStep, Detail, Kind, Refusal};
use crate::limits::{CYCLE_SHOWN, DEADLOCK_STEPS_MAX};
use crate::name::Name;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

/// How many grants of an owner's session are looked at to see that nobody waits for the owner.
const OWN_GRANTS_MAX: usize = 64;

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
        if self.nobody_waits_for(wanted.session, wanted.owner) {
            return Ok(());
        }
        match Search::new(self, wanted, converts).verdict() {
            Ok(None) => Ok(()),
            Ok(Some(refusal)) => Err(refusal),
            Err(TooLong) => {
                self.head.unchecked_waits += 1;
                Ok(())
            }
        }
    }

    /// Whether it is plain that no owner waits for this one: nobody stands in line for what it holds.
    fn nobody_waits_for(&self, session: SessionId, owner: &str) -> bool {
        let grants = &self.sessions[&session].grants;
        let idle = |ask: &Ask| self.locks[&ask.key].queue_len() == 0;
        grants.len() <= OWN_GRANTS_MAX
            && grants
                .iter()
                .map(|token| &self.grants[token])
                .all(|grant| *grant.owner != *owner || grant.asks.iter().all(idle))
    }
}

impl<'a> Search<'a> {
    fn new(state: &'a State, wanted: &Wanted<'a>, converts: Option<Token>) -> Search<'a> {
        let mut search = Search {
            state,
            waiting: Vec::new(),
            by_op: BTreeMap::new(),
            locks: Vec::new(),
            by_key: BTreeMap::new(),
            steps: 0,
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
            holds: Vec::new(),
            stands: Vec::new(),
            converting: Vec::new(),
        });
        self.waiting.len() - 1
    }

    /// The refusal of the asker's wait, if it would close a cycle.
    fn verdict(mut self) -> Result<Option<Refusal>, TooLong> {
        let mut next = ASKER;
        while next < self.waiting.len() {
            self.gather(next)?;
            next += 1;
        }
        if !self.leads_back {
            return Ok(None);
        }
        self.play();
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
        if self.steps > DEADLOCK_STEPS_MAX { Err(TooLong) } else { Ok(()) }
    }

    /// Gathers the locks that an owner waits for, with all who are in its way there.
    fn gather(&mut self, who: usize) -> Result<(), TooLong> {
        let Waiting { asks, op, converts, .. } = self.waiting[who];
        for ask in asks {
            let lock = self.lock(&ask.key)?;
            let real = self.state.locks.get(&ask.key);
            match (converts, op) {
                (Some(_), Some(_)) => {}
                (Some(token), None) => {
                    let from = self.state.grants[&token].mode_of(&ask.key);
                    self.add_converting(lock, who, from, ask.mode);
                }
                (None, Some(op)) => {
                    let line = real.map(|real| real.line.partition_point(|other| *other <= op));
                    self.gather_line(lock, line.unwrap_or(0))?;
                }
                (None, None) => {
                    self.gather_line(lock, real.map_or(0, |real| real.line.len()))?;
                    self.stand(lock, who, ask.mode);
                }
            }
        }
        Ok(())
    }

    /// The lock as it is played through, with its holders and conversions.
    fn lock(&mut self, key: &'a Name) -> Result<usize, TooLong> {
        if let Some(lock) = self.by_key.get(key) {
            return Ok(*lock);
        }
        let lock = self.locks.len();
        self.by_key.insert(key, lock);
        self.locks.push(Played {
            key,
            holders: Vec::new(),
            converting: Vec::new(),
            line: Vec::new(),
            gathered: 0,
            held: Taken::default(),
            taken: Taken::default(),
            next: 0,
        });
        let (state, now) = (self.state, self.state.head.at);
        let Some(real) = state.locks.get(key) else { return Ok(lock) };
        for token in &real.holders {
            self.count()?;
            let Some(grant) = state.live_grant(*token, now) else { continue };
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
        for op in &real.converting {
            self.count()?;
            let wait = &state.waits[op];
            let token = wait.converts.expect("a conversion converts a grant");
            let (from, to) = (state.grants[&token].mode_of(key), wait.mode_of(key));
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
        let wait = state.waits.get(&op).filter(|wait| state.wait_lives(wait, state.head.at))?;
        let label = &wait.terms.label;
        let who = self.add_waiting(wait.session, &wait.owner, label, &wait.asks, Some(op), wait.converts);
        self.by_op.insert(op, who);
        Some(who)
    }

    fn gather_line(&mut self, lock: usize, upto: usize) -> Result<(), TooLong> {
        let Some(real) = self.state.locks.get(self.locks[lock].key) else { return Ok(()) };
        while self.locks[lock].gathered < upto {
            self.count()?;
            let op = real.line[self.locks[lock].gathered];
            self.locks[lock].gathered += 1;
            if let Some(who) = self.who(op) {
                let mode = self.state.waits[&op].mode_of(self.locks[lock].key);
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
        self.steps = 0;
        let mut came_by: BTreeMap<usize, Edge> = BTreeMap::new();
        // Of whom all who hold a lock and all up to a place in its line were looked at.
        let mut looked_at = vec![(false, 0); self.locks.len()];
        let mut next = VecDeque::from([ASKER]);
        while let Some(from) = next.pop_front() {
            for (lock, token, to) in self.in_the_way(from, &mut looked_at)? {
                let edge = Edge { from, lock, token };
                if to == ASKER {
                    let mut cycle = vec![edge];
                    while let Some(edge) = came_by.get(&cycle[cycle.len() - 1].from) {
                        cycle.push(*edge);
                    }
                    cycle.reverse();
                    return Ok(Some(cycle));
                }
                if to != from && !came_by.contains_key(&to) {
                    came_by.insert(to, edge);
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
            if self.steps > DEADLOCK_STEPS_MAX {
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
                asks,
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
