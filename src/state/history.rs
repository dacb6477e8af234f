//! The history: what happened to keys, locks and files lately, for whoever watches.
//!
//! An event stands under the command that did it, and the events of one command in the order in which it did them: that
//! order follows from the state and the command alone. The history has caps. What is over them goes from the old end, and
//! only whole commands go, so that what is left has no holes:
//!
//! ```text
//!   ops      … 17   18          21   22   22   22   25
//!   events    gone | a  a       b    c    d    a    b
//!                  └ history_after = 17: who knows everything up to 17 or later can be told all that came since
//! ```
//!
//! An event says what happened and never what was written: it holds no value and no data.

use super::{Head, State};
use crate::command::{Ask, EndReason, Mode};
use crate::identity::{Op, Position, Token};
use crate::kind::{Detail, Kind, Refusal};
use crate::name::Name;
use crate::outcome::LossReason;
use arcstr::ArcStr;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;

/// Something that happened to a key, a lock or a file, as a snapshot is read.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchEvent {
    /// The command that did it.
    pub op: Op,
    /// To what.
    pub name: Name,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum What {
    /// Somebody holds the lock from here.
    LockGranted {
        /// The grant.
        token: Token,
        /// The number of its session.
        client: u64,
        /// How it is held.
        mode: Mode,
    },
    /// The holder released the lock.
    LockReleased {
        /// The grant.
        token: Token,
        /// The number of its session.
        client: u64,
    },
    /// The grant of the lock ended without a release.
    LockLost {
        /// The grant.
        token: Token,
        /// The number of its session.
        client: u64,
        /// Why.
        reason: GrantEnd,
    },
    /// The holder holds the lock in another mode from here.
    LockConverted {
        /// The grant.
        token: Token,
        /// The grant before; the same if the conversion was to a weaker mode.
        before: Token,
        /// The number of its session.
        client: u64,
        /// How it is held from here.
        mode: Mode,
    },
    /// The key was set.
    KeySet {
        /// Its version.
        version: Op,
    },
    /// The key was removed.
    KeyDeleted {
        /// The version that was removed.
        version: Op,
        /// Why.
        reason: KeyEnd,
    },
    /// Bytes were appended to the file.
    FileAppended {
        /// The generation of the file.
        generation: Op,
        /// Where they begin.
        offset: u64,
        /// How long the file is with them, in bytes.
        length: u64,
    },
    /// The file was deleted.
    FileDeleted {
        /// Its generation.
        generation: Op,
    },
    /// The file got another name.
    FileRotated {
        /// Its generation.
        generation: Op,
        /// Its name from here.
        to: Name,
    },
    /// The file was closed to appends, and takes them again.
    FileRepaired {
        /// Its generation.
        generation: Op,
        /// How long it is now, in bytes.
        length: u64,
    },
    /// The file is closed to appends.
    FileFault {
        /// Its generation.
        generation: Op,
        /// What was found, as a sentence.
        reason: ArcStr,
    },
}

/// Why a grant ended without a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantEnd {
    /// Its client did not know whether it still held it.
    Abandoned,
    /// Its own lease ran out.
    LeaseExpired,
    /// It was held for as long as it may be.
    HeldTooLong,
    /// An operator broke it, or its holder was asked to let go and did not.
    Broken,
    /// Another session took it over.
    TakenOver,
    /// Its session gave no sign of life for its TTL.
    SessionExpired,
    /// Its session was closed.
    SessionClosed,
    /// An operator ended its session.
    SessionKilled,
}

/// Why a key was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyEnd {
    /// Somebody deleted it.
    Deleted,
    /// Its TTL passed.
    Expired,
    /// The session that it was bound to ended.
    SessionEnded,
}

/// The same where it is kept, as it is shown and written.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct WatchEventRef<'a> {
    /// The command that did it.
    pub op: Op,
    /// To what.
    pub name: &'a str,
    /// What.
    pub what: &'a What,
}

/// The events that are kept, in order.
///
/// Their names lie behind each other. A name that is shared would be let go with the last event about it, long after anybody
/// looked at it (docs/performance.md, "Steps").
#[derive(Clone, Default)]
pub struct History {
    events: VecDeque<Kept>,
    /// The names of the events, in their order, with nothing between them, behind those that are let go.
    names: String,
    /// How many bytes those are.
    let_go: usize,
    /// Bytes of names that are gone.
    gone: u64,
    bytes: u64,
}

/// Names that were let go go together, if they are as many bytes as this and half of all.
const TOGETHER: usize = 4_096;

/// An event whose name lies elsewhere.
#[derive(Clone)]
struct Kept {
    op: Op,
    /// Where its name begins, in bytes of all names that ever were.
    name_at: u64,
    name_len: usize,
    what: What,
}

impl History {
    /// The events, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = WatchEventRef<'_>> {
        self.events.iter().map(|event| self.shown(event))
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    /// Remembers what the last command did to something.
    fn record(&mut self, head: &mut Head, name: &Name, what: What) {
        let op = head.op;
        if op <= head.history_after {
            // Its own events have filled the history already: the rest of them would look whole and not be.
            return;
        }
        self.push(op, name, what);
        self.trim(head);
    }

    fn push(&mut self, op: Op, name: &Name, what: What) {
        let name_at = self.gone + self.names.len() as u64;
        let event = Kept { op, name_at, name_len: name.len(), what };
        self.bytes += event.weight();
        self.names.push_str(name);
        self.events.push_back(event);
    }

    /// Lets the oldest events go until the caps are kept.
    fn trim(&mut self, head: &mut Head) {
        while self.events.len() as u64 > head.limits.history_events || self.bytes > head.limits.history_bytes
        {
            let op = self.events.front().expect("nothing is under every cap").op;
            while self.events.front().is_some_and(|event| event.op == op) {
                let event = self.events.pop_front().expect("it was looked at");
                self.bytes -= event.weight();
                self.let_go += event.name_len;
            }
            head.history_after = op;
        }
        if self.let_go >= TOGETHER.max(self.names.len() / 2) {
            self.names.drain(..self.let_go);
            self.gone += std::mem::take(&mut self.let_go) as u64;
        }
    }

    /// An event with its name.
    fn shown<'a>(&'a self, Kept { op, name_at, name_len, what }: &'a Kept) -> WatchEventRef<'a> {
        let begin = (name_at - self.gone) as usize;
        WatchEventRef { op: *op, name: &self.names[begin..begin + name_len], what }
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl FromIterator<WatchEvent> for History {
    fn from_iter<T: IntoIterator<Item = WatchEvent>>(events: T) -> History {
        let mut history = History::default();
        events.into_iter().for_each(|event| history.push(event.op, &event.name, event.what));
        history
    }
}

impl Kept {
    /// About how many bytes keeping it takes: what `history_bytes` is measured in.
    fn weight(&self) -> u64 {
        let more = match &self.what {
            What::FileRotated { to, .. } => to.len(),
            What::FileFault { reason, .. } => reason.len(),
            What::LockGranted { .. }
            | What::LockReleased { .. }
            | What::LockLost { .. }
            | What::LockConverted { .. }
            | What::KeySet { .. }
            | What::KeyDeleted { .. }
            | What::FileAppended { .. }
            | What::FileDeleted { .. }
            | What::FileRepaired { .. } => 0,
        };
        96 + (self.name_len + more) as u64
    }
}

impl<'a> WatchEventRef<'a> {
    /// The names that it is about: of a rotated file both.
    pub fn names(self) -> impl Iterator<Item = &'a str> {
        let other = match self.what {
            What::FileRotated { to, .. } => Some(to.as_str()),
            What::LockGranted { .. }
            | What::LockReleased { .. }
            | What::LockLost { .. }
            | What::LockConverted { .. }
            | What::KeySet { .. }
            | What::KeyDeleted { .. }
            | What::FileAppended { .. }
            | What::FileDeleted { .. }
            | What::FileRepaired { .. }
            | What::FileFault { .. } => None,
        };
        std::iter::once(self.name).chain(other)
    }
}

impl From<LossReason> for GrantEnd {
    fn from(reason: LossReason) -> GrantEnd {
        match reason {
            LossReason::LeaseExpired => GrantEnd::LeaseExpired,
            LossReason::HeldTooLong => GrantEnd::HeldTooLong,
            LossReason::Broken => GrantEnd::Broken,
            LossReason::TakenOver => GrantEnd::TakenOver,
        }
    }
}

impl From<EndReason> for GrantEnd {
    fn from(reason: EndReason) -> GrantEnd {
        match reason {
            EndReason::Expired => GrantEnd::SessionExpired,
            EndReason::Closed => GrantEnd::SessionClosed,
            EndReason::Killed => GrantEnd::SessionKilled,
        }
    }
}

impl State {
    /// The events from that position on, each with its own position.
    ///
    /// # Errors
    /// `compacted`, if some of them are gone, or if this log has not come so far: then it is not the log that the position
    /// was told of.
    pub fn events_from(
        &self,
        from: Position,
    ) -> Result<impl Iterator<Item = (Position, WatchEventRef<'_>)>, Refusal> {
        let (oldest, last) = (self.head.history_after, self.head.op);
        let text = if from.op <= oldest {
            format!(
                "what happened up to op {oldest} is not kept any more: read anew what is there, and watch from the `op` \
                 of that reply"
            )
        } else if from.op > last + 1 || (from.seen > 0 && from.op > last) {
            format!(
                "the log ends at op {last}, before the position asked for: it is of another server, or of a state that was \
                 replaced; read anew what is there, and watch from the `op` of that reply"
            )
        } else {
            let one = u64::from(crate::bug::planted("watch_begins_one_late"));
            let begin = self.history.events.partition_point(|event| event.op < from.op + one);
            let mut place = Position { op: 0, seen: 0 };
            let events = self.history.events.range(begin..).map(move |event| {
                let seen = if place.op == event.op { place.seen + 1 } else { 0 };
                place = Position { op: event.op, seen };
                (place, event)
            });
            let events = events.skip_while(move |(place, _)| *place < from);
            return Ok(events.map(|(place, event)| (place, self.history.shown(event))));
        };
        Err(Refusal::new(Kind::Compacted, text).with(Detail::Compacted { oldest }))
    }

    /// The events of the last command, the last first.
    pub fn events_of_last(&self) -> impl Iterator<Item = WatchEventRef<'_>> {
        let op = self.head.op;
        let events = self.history.events.iter().rev().take_while(move |event| event.op == op);
        events.map(|event| self.history.shown(event))
    }

    /// How many events are kept, and how many bytes they take.
    pub fn history_size(&self) -> (u64, u64) {
        (self.history.events.len() as u64, self.history.bytes)
    }

    /// Remembers what the command that is being applied did to something.
    pub(super) fn record(&mut self, name: &Name, what: What) {
        self.history.record(&mut self.head, name, what);
    }

    /// Remembers that a grant was made.
    pub(super) fn record_grant(&mut self, token: Token) {
        let grant = &self.grants[token];
        let client = self.sessions[&grant.session].client;
        for ask in &grant.asks {
            let what = What::LockGranted { token, client, mode: ask.mode };
            self.history.record(&mut self.head, &ask.key, what);
        }
    }

    /// Remembers that locks of a grant are held in other modes; under a new token, all of its locks.
    pub(super) fn record_conversion(&mut self, before: Token, token: Token, changed: &[Ask]) {
        let grant = &self.grants[token];
        let client = self.sessions[&grant.session].client;
        let asks = if before == token { changed } else { &*grant.asks };
        for Ask { key, mode } in asks {
            let what = What::LockConverted { token, before, client, mode: *mode };
            self.history.record(&mut self.head, key, what);
        }
    }

    /// Remembers that a grant, which is still there, ends: with a release, or with a reason. The end of its session comes
    /// before any other reason.
    pub(super) fn record_end(&mut self, token: Token, reason: Option<GrantEnd>) {
        let grant = &self.grants[token];
        let session = &self.sessions[&grant.session];
        let (client, reason) = (session.client, session.ended.map(|(_, reason)| reason.into()).or(reason));
        for ask in &grant.asks {
            let what = match reason {
                None => What::LockReleased { token, client },
                Some(reason) => What::LockLost { token, client, reason },
            };
            self.history.record(&mut self.head, &ask.key, what);
        }
    }

    /// Lets the oldest events go until the caps are kept.
    pub(super) fn trim_history(&mut self) {
        self.history.trim(&mut self.head);
    }

    /// Lets all events go: what was told of later ones than these may have been lost, so no earlier position can be trusted.
    pub(super) fn forget_history(&mut self) {
        self.history = History::default();
        self.head.history_after = self.head.op;
    }

    pub(super) fn add_history(&mut self, history: History) -> Result<(), String> {
        let fault = |text: String| Err(format!("the history: {text}"));
        let (mut last, after, limits) = (0, self.head.history_after, &self.head.limits);
        if after > self.head.op {
            return fault(format!("`history_after` is {after}, which was never given"));
        }
        for event in history.iter() {
            if event.op < last || event.op <= after || event.op > self.head.op {
                return fault(format!("the event of op {} of {:?} is out of order", event.op, event.name));
            }
            last = event.op;
        }
        let (count, bytes) = (history.events.len(), history.bytes);
        if count as u64 > limits.history_events || bytes > limits.history_bytes {
            return fault(format!("{count} events of {bytes} bytes are over their caps"));
        }
        self.history = history;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Call, Command, Durability, Life, Patience, Request, Terms};
    use crate::identity::{Nonce, SessionId};
    use crate::limits::Limits;
    use crate::time::Time;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn new_term(term: u64, raised: bool, events: u64, bytes: u64) -> Command {
        let limits = Limits { history_events: events, history_bytes: bytes, ..Limits::default() };
        Command::NewTerm { term, limits, durability: Durability::Sync, raised }
    }

    fn request(id: u64, call: Call) -> Command {
        Command::Request(Request { session: SessionId(1), id, ack: id, got: Vec::new(), call })
    }

    fn set(id: u64, key: &str) -> Command {
        let (value, life) = (ArcStr::from("1"), Life::default());
        request(id, Call::Set { key: name(key), value, if_version: None, life, token: None, holder: None })
    }

    fn open() -> Command {
        let (name, label) = (String::new(), String::new());
        Command::OpenSession { nonce: Nonce(1), session: SessionId(1), name, label, ttl_ms: 10_000 }
    }

    fn apply(state: &mut State, command: &Command) {
        let op = state.op() + 1;
        state.apply(op, Time::from_millis(op), command, &mut Vec::new());
    }

    fn told(state: &State, from: Position) -> Result<Vec<(Position, String)>, u64> {
        match state.events_from(from) {
            Ok(events) => Ok(events.map(|(place, event)| (place, event.name.to_string())).collect()),
            Err(Refusal { detail: Detail::Compacted { oldest }, .. }) => Err(oldest),
            Err(other) => panic!("{other}"),
        }
    }

    /// Keys, and grants of several locks at once.
    fn life(mut state: State) -> Vec<State> {
        let mut commands = vec![open()];
        for id in (1..60).step_by(3) {
            let asks = ["a", "b", "c"].map(|key| Ask { key: name(key), mode: Mode::Exclusive }).to_vec();
            let (wait, owner, terms) = (Patience::Try, String::new(), Terms::default());
            commands.push(set(id, &format!("k{id}")));
            commands.push(request(id + 1, Call::Acquire { asks: asks.into(), wait, owner, terms }));
            commands.push(request(id + 2, Call::Abandon { token: id.div_ceil(3), holder: None }));
        }
        let mut states = Vec::new();
        for command in &commands {
            apply(&mut state, command);
            states.push(State::from_parts(state.parts()).unwrap());
            let (built, now) = (states.last().unwrap(), &state);
            assert_eq!(built.history_size(), now.history_size());
            assert_eq!(format!("{:?}", built.parts()), format!("{:?}", now.parts()));
        }
        states
    }

    #[test]
    fn what_is_kept_is_whole_and_under_its_caps_at_every_step() {
        for (events, bytes) in [(0, 1 << 20), (2, 1 << 20), (7, 1 << 20), (1_000, 700), (1_000, 1 << 20)] {
            let mut state = State::new();
            apply(&mut state, &new_term(1, false, events, bytes));
            let mut all: Vec<(Position, String)> = Vec::new();
            for state in life(state) {
                let (count, size) = state.history_size();
                assert!(count <= events && size <= bytes, "{count} events of {size} bytes");
                let oldest = state.head().history_after;
                let kept = told(&state, Position::behind(oldest)).unwrap();
                assert_eq!(kept.len() as u64, count);
                // Of all that ever happened exactly what came after `oldest` is there: no command in part.
                all.extend(kept.iter().filter(|(place, _)| place.op == state.op()).cloned());
                let expected: Vec<_> = all.iter().filter(|(place, _)| place.op > oldest).cloned().collect();
                assert_eq!(kept, expected);
                if oldest > 0 {
                    assert_eq!(told(&state, Position::behind(oldest - 1)), Err(oldest));
                    assert_eq!(told(&state, Position { op: oldest, seen: 1 }), Err(oldest));
                }
                for place in kept.iter().map(|(place, _)| *place) {
                    let rest: Vec<_> = kept.iter().filter(|(other, _)| *other >= place).cloned().collect();
                    assert_eq!(told(&state, place), Ok(rest));
                }
                assert_eq!(told(&state, Position::behind(state.op())), Ok(Vec::new()));
                assert_eq!(told(&state, Position::behind(state.op() + 1)), Err(oldest));
            }
        }
    }

    #[test]
    fn names_that_were_let_go_take_no_room_for_long_and_the_others_stay_what_they_are() {
        let mut state = State::new();
        apply(&mut state, &new_term(1, false, 10, 1 << 20));
        apply(&mut state, &open());
        let names: Vec<String> = (1..=500).map(|id| format!("ü{}", "k".repeat(id * 37 % 250))).collect();
        for (id, name) in (1..).zip(&names) {
            apply(&mut state, &set(id, name));
            let kept = &names[(id as usize).saturating_sub(10)..id as usize];
            let told = told(&state, Position::behind(state.head().history_after)).unwrap();
            assert!(told.iter().map(|(_, name)| name).eq(kept), "after {id}");
            assert!(state.history.names.len() <= 2 * 10 * 256 + TOGETHER);
        }
        assert!(state.history.gone > 0);
    }

    #[test]
    fn an_event_weighs_96_bytes_and_the_text_that_it_keeps() {
        let (to, reason) = (name("abc"), ArcStr::from("gone"));
        for (what, text) in [
            (What::KeySet { version: 1 }, 2),
            (What::FileRotated { generation: 1, to }, 2 + 3),
            (What::FileFault { generation: 1, reason }, 2 + 4),
        ] {
            let mut history = History::default();
            history.push(1, &name("ab"), what);
            assert_eq!(history.bytes, 96 + text);
        }
    }

    #[test]
    fn lower_caps_let_go_of_what_is_over_them_and_a_raise_of_everything() {
        let mut state = State::new();
        apply(&mut state, &new_term(1, false, 100, 1 << 20));
        apply(&mut state, &open());
        (1..=5).for_each(|id| apply(&mut state, &set(id, "k")));
        apply(&mut state, &new_term(2, false, 2, 1 << 20));
        assert_eq!((state.history_size().0, state.head().history_after), (2, 5));
        apply(&mut state, &new_term(3, true, 100, 1 << 20));
        assert_eq!((state.history_size(), state.head().history_after), ((0, 0), state.op()));
        assert_eq!(told(&state, Position::behind(7)), Err(state.op()));
    }

    #[test]
    fn parts_that_contradict_each_other_are_refused() {
        let mut state = State::new();
        apply(&mut state, &new_term(1, false, 3, 1 << 20));
        apply(&mut state, &open());
        (1..=4).for_each(|id| apply(&mut state, &set(id, "k")));
        let spoilt = |spoil: fn(&mut crate::state::Parts)| {
            let mut parts = state.parts();
            spoil(&mut parts);
            State::from_parts(parts).map(|_| ()).unwrap_err()
        };
        assert!(spoilt(|parts| parts.history.events.swap(0, 1)).contains("out of order"));
        assert!(spoilt(|parts| parts.history.events[2].op = 99).contains("out of order"));
        assert!(spoilt(|parts| parts.head.history_after = 4).contains("out of order"));
        assert!(spoilt(|parts| parts.head.history_after = 99).contains("never given"));
        assert!(spoilt(|parts| parts.head.limits.history_events = 2).contains("over their caps"));
    }
}
