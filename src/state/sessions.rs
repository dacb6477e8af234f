//! Sessions: who asks, which requests of theirs were answered, and what was said.

use super::numbered::Numbers;
use super::{Due, State};
use crate::command::EndReason;
use crate::identity::{Nonce, Op, SessionId, Term, Token};
use crate::kind::{Detail, Kind, Refusal};
use crate::limits::{AFTERLIFE_MS, LOSSES_KEPT, Limits, SWEEP_MAX};
use crate::name::Name;
use crate::outcome::{Effect, Loss, Outcome};
use crate::rising::Rising;
use crate::state::parts::{ReplyPart, SessionPart, WaitReplyPart};
use crate::time::Time;
use arcstr::ArcStr;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Add, Sub};

/// One client as the server knows it.
#[derive(Debug)]
pub struct Session {
    /// Its public number.
    pub client: u64,
    /// The nonce that opened it.
    pub(super) nonce: Nonce,
    /// Its client's name for itself.
    pub name: ArcStr,
    /// A note for people.
    pub label: ArcStr,
    /// TTL in milliseconds.
    pub ttl_ms: u64,
    /// When it was opened.
    pub opened: Time,
    /// When and why it ended, if it did.
    pub ended: Option<(Time, EndReason)>,
    /// Ids below this without a record are stale.
    floor: u64,
    /// Whether its client has ever sent `ack`. If not, the window of kept replies slides by itself.
    acks: bool,
    replies: Rising<Kept>,
    /// Weight of the kept replies.
    reply_bytes: u64,
    waits: BTreeMap<u64, WaitReply>,
    /// Owners that wait, with the ids of their waits.
    pub(super) waiting: BTreeMap<ArcStr, u64>,
    /// Its grants.
    pub(super) grants: Numbers,
    /// Keys that are bound to it, but those whose lock somebody holds exclusively.
    pub(super) bound: BTreeSet<Name>,
    losses: VecDeque<Loss>,
    /// Its grants that it is asked to release, by the command that asked.
    pub(super) asked: BTreeSet<(Op, Token)>,
    /// Grants of others that it may take over, by the command that offered them.
    pub(super) offers: BTreeSet<(Op, Token)>,
}

/// How many replies are kept, and how many bytes they take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeptReplies {
    pub(super) count: u64,
    pub(super) bytes: u64,
}

impl Add for KeptReplies {
    type Output = KeptReplies;
    fn add(self, more: KeptReplies) -> KeptReplies {
        KeptReplies { count: self.count + more.count, bytes: self.bytes + more.bytes }
    }
}

impl Sub for KeptReplies {
    type Output = KeptReplies;
    fn sub(self, less: KeptReplies) -> KeptReplies {
        KeptReplies { count: self.count - less.count, bytes: self.bytes - less.bytes }
    }
}

/// A kept reply.
#[derive(Debug)]
struct Kept {
    fingerprint: u64,
    outcome: Outcome,
}

/// A wait as its session remembers it.
#[derive(Debug)]
struct WaitReply {
    /// None if the wait was cancelled before it arrived: then any body is the same request.
    fingerprint: Option<u64>,
    /// None while it stands in line.
    outcome: Option<Outcome>,
    /// Where it stands in line; meaningless once it is answered.
    op: Op,
    /// Whether the client has said that it has the reply.
    got: bool,
}

/// The room for kept replies of a session.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Replies.
    pub replies: u64,
    /// Their bytes.
    pub reply_bytes: u64,
}

/// Where a request stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing<'a> {
    /// Not seen before.
    New,
    /// Answered: the outcome.
    Kept(&'a Outcome),
    /// In line since that command.
    InLine(Op),
    /// The id was used before with another body.
    Reused,
    /// The id is below what has been acknowledged or has slid out of the window.
    Stale,
}

impl Session {
    /// One that begins: it lives, and has asked for nothing.
    fn new(client: u64, nonce: Nonce, name: ArcStr, label: ArcStr, ttl_ms: u64, opened: Time) -> Session {
        Session {
            client,
            nonce,
            name,
            label,
            ttl_ms,
            opened,
            ended: None,
            floor: 1,
            acks: false,
            replies: Rising::default(),
            reply_bytes: 0,
            waits: BTreeMap::new(),
            waiting: BTreeMap::new(),
            grants: Numbers::default(),
            bound: BTreeSet::new(),
            losses: VecDeque::new(),
            asked: BTreeSet::new(),
            offers: BTreeSet::new(),
        }
    }

    /// Whether the session has not ended.
    pub fn is_live(&self) -> bool {
        self.ended.is_none()
    }

    /// Whether it has what must be cleaned up once it has ended.
    fn has_left_something(&self) -> bool {
        !self.grants.is_empty() || !self.waiting.is_empty() || !self.bound.is_empty()
    }

    /// Grants it has, those past their own lease and not yet cleaned up included.
    pub fn grants(&self) -> impl Iterator<Item = Token> + '_ {
        self.grants.iter()
    }

    /// How many waits it has in line.
    pub fn waiting(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// Grants it lost after command `after`, in order.
    pub fn losses_after(&self, after: Op) -> impl Iterator<Item = &Loss> {
        self.losses.iter().filter(move |loss| loss.op > after)
    }

    /// Its grants that it was asked to release after command `after`, in that order, with the commands.
    pub fn asked_after(&self, after: Op) -> impl Iterator<Item = (Op, Token)> + '_ {
        self.asked.range((after.saturating_add(1), 0)..).copied()
    }

    /// Grants that it was offered after command `after`, in that order, with the commands. Whose session has ended since
    /// is not left out: nobody can take it any more.
    pub fn offers_after(&self, after: Op) -> impl Iterator<Item = (Op, Token)> + '_ {
        self.offers.range((after.saturating_add(1), 0)..).copied()
    }

    /// Where request `id` with that fingerprint stands.
    pub fn standing(&self, id: u64, fingerprint: u64) -> Standing<'_> {
        if let Some(kept) = self.replies.get(id) {
            return if kept.fingerprint == fingerprint {
                Standing::Kept(&kept.outcome)
            } else {
                Standing::Reused
            };
        }
        if let Some(wait) = self.waits.get(&id) {
            return match &wait.outcome {
                _ if wait.fingerprint.is_some_and(|known| known != fingerprint) => Standing::Reused,
                Some(outcome) => Standing::Kept(outcome),
                None => Standing::InLine(wait.op),
            };
        }
        if id < self.floor && !crate::bug::planted("late_copy_executed") {
            Standing::Stale
        } else {
            Standing::New
        }
    }

    /// Where wait `id` stands, whatever it asked: [`Standing::New`] if there is no such wait.
    pub fn wait_standing(&self, id: u64) -> Standing<'_> {
        match self.waits.get(&id) {
            None => Standing::New,
            Some(WaitReply { outcome: Some(outcome), .. }) => Standing::Kept(outcome),
            Some(WaitReply { outcome: None, op, .. }) => Standing::InLine(*op),
        }
    }

    /// Answered waits that the client has not named in `got`.
    pub fn untold_waits(&self) -> impl Iterator<Item = u64> + '_ {
        self.waits.iter().filter(|(_, wait)| wait.outcome.is_some() && !wait.got).map(|(id, _)| *id)
    }

    /// The cap that leaves `window` no room for one more reply beside `in_flight` unanswered requests, once `ack` is taken
    /// in: its name and its number.
    pub fn full_window(&self, ack: u64, in_flight: u64, window: Window) -> Option<(&'static str, u64)> {
        if !self.acks && ack == 0 {
            return None;
        }
        let full = |count: u64, bytes: u64| match (count + in_flight, bytes) {
            (count, _) if count >= window.replies => Some(("replies", window.replies)),
            (_, bytes) if bytes >= window.reply_bytes => Some(("reply_bytes", window.reply_bytes)),
            _ => None,
        };
        full(self.replies.len() as u64, self.reply_bytes)?;
        let left = self.replies.from(ack);
        let (count, bytes) =
            left.fold((0, 0), |(count, bytes), (_, kept)| (count + 1, bytes + kept.outcome.weight()));
        full(count, bytes)
    }

    /// Its kept replies.
    pub(super) fn kept(&self) -> KeptReplies {
        KeptReplies { count: self.replies.len() as u64, bytes: self.reply_bytes }
    }

    /// Takes in `ack` and `got`: lets go of what the client says it has.
    pub(super) fn acknowledge(&mut self, ack: u64, got: &[u64]) {
        for id in got {
            if let Some(wait) = self.waits.get_mut(id) {
                wait.got |= wait.outcome.is_some();
            }
        }
        if ack > 0 {
            self.acks = true;
            self.floor = self.floor.max(ack);
            let gone = ack + u64::from(crate::bug::planted("ack_takes_one_too_many"));
            while let Some((_, oldest)) = self.replies.pop_first_if(|id| id < gone) {
                self.reply_bytes -= oldest.outcome.weight();
            }
        }
        if ack > 0 || !got.is_empty() {
            let floor = self.floor;
            self.waits.retain(|id, wait| !(wait.got && *id < floor));
        }
    }

    /// Keeps the outcome of request `id`.
    pub(super) fn keep(&mut self, id: u64, fingerprint: u64, outcome: Outcome, limits: &Limits) {
        if crate::bug::planted("dedup_dropped") {
            return;
        }
        self.reply_bytes += outcome.weight();
        self.replies.insert(id, Kept { fingerprint, outcome });
        while !self.acks
            && (self.replies.len() as u64 > limits.replies || self.reply_bytes > limits.reply_bytes)
        {
            let (oldest, kept) =
                self.replies.pop_first_if(|_| true).expect("the window is over its cap, so not empty");
            self.reply_bytes -= kept.outcome.weight();
            self.floor = self.floor.max(oldest + 1);
        }
    }

    /// Whether one more wait will find room beside `in_flight` ones on their way, once `ack` and `got` are taken in.
    pub fn has_wait_window(&self, ack: u64, got: &[u64], in_flight: u64, limits: &Limits) -> bool {
        if self.waits.len() as u64 + in_flight < limits.session_waits {
            return true;
        }
        let (slides, floor) = (!self.acks && ack == 0, self.floor.max(ack));
        let stays = |id: u64, wait: &WaitReply| match wait.outcome {
            None => true,
            Some(_) => !slides && !(id < floor && (wait.got || got.contains(&id))),
        };
        let left = self.waits.iter().filter(|(id, wait)| stays(**id, wait)).count() as u64;
        left + in_flight < limits.session_waits
    }

    /// Whether nothing is known of request `id`, so that cancelling it would be remembered like a wait.
    pub fn is_unseen(&self, id: u64) -> bool {
        matches!(self.record(id), Standing::New)
    }

    /// Whether one more wait can be remembered. For a client that never sends `ack` the oldest answered one makes room.
    pub(super) fn has_wait_room(&mut self, limits: &Limits) -> bool {
        if (self.waits.len() as u64) < limits.session_waits {
            return true;
        }
        if self.acks {
            return false;
        }
        let oldest = self.waits.iter().find(|(_, wait)| wait.outcome.is_some()).map(|(id, _)| *id);
        if let Some(id) = oldest {
            self.waits.remove(&id);
            self.floor = self.floor.max(id + 1);
        }
        oldest.is_some()
    }

    /// Remembers that wait `id` stands in line since command `op`.
    pub(super) fn begin_wait(&mut self, id: u64, fingerprint: u64, owner: ArcStr, op: Op) {
        self.waiting.insert(owner, id);
        let reply = WaitReply { fingerprint: Some(fingerprint), outcome: None, op, got: false };
        assert!(self.waits.insert(id, reply).is_none(), "wait {id} of client {} began twice", self.client);
    }

    /// Answers wait `id`.
    pub(super) fn end_wait(&mut self, id: u64, owner: &str, outcome: Outcome) {
        self.waiting.remove(owner);
        let wait = self.waits.get_mut(&id).expect("a wait in line is remembered by its session");
        assert!(wait.outcome.is_none(), "wait {id} of client {} was answered twice", self.client);
        // Where it stood means nothing any more, and a snapshot does not say it.
        (wait.outcome, wait.op) = (Some(outcome), 0);
    }

    /// Records an answer for a wait that has not arrived.
    pub(super) fn refuse_wait(&mut self, id: u64, outcome: Outcome) {
        let reply = WaitReply { fingerprint: None, outcome: Some(outcome), op: 0, got: false };
        assert!(self.waits.insert(id, reply).is_none(), "wait {id} of client {} was known", self.client);
    }

    /// Where request `id` stands, whatever it asked.
    pub(super) fn record(&self, id: u64) -> Standing<'_> {
        match self.replies.get(id) {
            Some(kept) => Standing::Kept(&kept.outcome),
            None => match self.wait_standing(id) {
                Standing::New if id < self.floor => Standing::Stale,
                standing => standing,
            },
        }
    }

    pub(super) fn lose(&mut self, loss: Loss) {
        if self.losses.len() == LOSSES_KEPT {
            self.losses.pop_front();
        }
        self.losses.push_back(loss);
    }

    /// How many waits and losses it remembers.
    pub(super) fn remembered(&self) -> usize {
        self.waits.len() + self.losses.len()
    }

    pub(super) fn part(&self, id: SessionId) -> SessionPart {
        SessionPart {
            client: self.client,
            session: id,
            nonce: self.nonce,
            name: self.name.clone(),
            label: self.label.clone(),
            ttl_ms: self.ttl_ms,
            opened: self.opened,
            floor: self.floor,
            acks: self.acks,
            ended: self.ended,
            replies: self
                .replies
                .iter()
                .map(|(id, kept)| ReplyPart {
                    id,
                    fingerprint: kept.fingerprint,
                    outcome: kept.outcome.clone(),
                })
                .collect(),
            waits: self
                .waits
                .iter()
                .map(|(id, wait)| WaitReplyPart {
                    id: *id,
                    fingerprint: wait.fingerprint,
                    outcome: wait.outcome.clone(),
                    got: wait.got,
                })
                .collect(),
            losses: self.losses.iter().cloned().collect(),
        }
    }
}

impl State {
    /// The session, if it is known; it may have ended.
    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id)
    }

    /// The id of the session with that public number.
    pub fn session_of(&self, client: u64) -> Option<SessionId> {
        self.clients.get(&client).copied()
    }

    /// The session that this nonce opened, with its id.
    pub fn session_by_nonce(&self, nonce: Nonce) -> Option<(SessionId, &Session)> {
        let id = *self.nonces.get(&nonce)?;
        Some((id, &self.sessions[&id]))
    }

    /// Sessions that are live, after the one with that number, in the order of their numbers.
    pub fn live_sessions(&self, after: u64) -> impl Iterator<Item = (SessionId, &Session)> {
        self.clients
            .range(after.saturating_add(1)..)
            .map(|(_, id)| (*id, &self.sessions[id]))
            .filter(|(_, session)| session.is_live())
    }

    pub(super) fn open_session(
        &mut self,
        nonce: Nonce,
        id: SessionId,
        name: &str,
        label: &str,
        ttl_ms: u64,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        if let Some((session, known)) = self.session_by_nonce(nonce) {
            return Outcome::Opened { session, client: known.client, ttl_ms: known.ttl_ms };
        }
        let max = self.head.limits.sessions;
        if self.sessions.len() as u64 >= max {
            let text = format!("the server has its {max} sessions; close one, or raise --max-sessions");
            return Outcome::Refused(Box::new(Refusal::limit("sessions", max, text)));
        }
        // Two servers cannot draw the same 128 bits; if they did, a stranger would get this session.
        assert!(!self.sessions.contains_key(&id), "a session id was drawn twice");
        self.head.last_client += 1;
        let client = self.head.last_client;
        self.clients.insert(client, id);
        self.nonces.insert(nonce, id);
        let session = Session::new(client, nonce, name.into(), label.into(), ttl_ms, self.head.at);
        self.sessions.insert(id, session);
        effects.push(Effect::Opened { session: id });
        Outcome::Opened { session: id, client, ttl_ms }
    }

    pub(super) fn end_session(
        &mut self,
        id: SessionId,
        term: Term,
        reason: EndReason,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        if term != self.head.term {
            return Outcome::Void;
        }
        // Copies are answered for so long from here, as those who ask count.
        let at = self.clock;
        let Some(session) = self.sessions.get_mut(&id).filter(|session| session.is_live()) else {
            return Outcome::Void;
        };
        session.ended = Some((at, reason));
        self.due.insert((at.after_ms(AFTERLIFE_MS), Due::Gone(session.client)));
        if session.has_left_something() {
            self.leaving.insert(session.client);
        }
        effects.push(Effect::Ended { session: id });
        self.sweep(effects);
        Outcome::Done
    }

    /// Hands over what ended sessions held, at most [`SWEEP_MAX`] grants, waits and keys.
    pub(super) fn sweep(&mut self, effects: &mut Vec<Effect>) {
        for _ in 0..SWEEP_MAX {
            let Some(&client) = self.leaving.first() else { return };
            let session = &self.sessions[&self.clients[&client]];
            // Waits first: a wait of the ended session must not be handed what the session held.
            let in_line = session.waiting.values().next().map(|id| session.wait_standing(*id));
            match (in_line, session.grants.first()) {
                (Some(Standing::InLine(op)), _) => self.give_up(op, effects),
                (Some(standing), _) => {
                    panic!("a waiting owner of client {client} has a wait that is {standing:?}")
                }
                (None, Some(token)) => {
                    let (_, reason) = session.ended.expect("a session that leaves has ended");
                    self.end_grant(token, reason.into(), effects);
                }
                (None, None) => match session.bound.first().cloned() {
                    Some(key) => self.expire_key(&key),
                    None => {
                        self.leaving.remove(&client);
                    }
                },
            }
        }
    }

    /// Lets go of an ended session for good.
    pub(super) fn forget_session(&mut self, client: u64) {
        let id = self.clients.remove(&client).expect("a session is forgotten once");
        let session = self.sessions.remove(&id).expect("a numbered session is known");
        assert!(!session.has_left_something(), "client {client} left something behind");
        self.nonces.remove(&session.nonce);
        self.kept = self.kept - session.kept();
    }

    pub(super) fn cancel_wait(
        &mut self,
        id: SessionId,
        wait: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        enum Found {
            InLine(Op),
            Unseen,
        }
        let session = &self.sessions[&id];
        let found = match session.record(wait) {
            Standing::InLine(op) => Found::InLine(op),
            Standing::New => Found::Unseen,
            Standing::Kept(grant @ Outcome::Granted { .. }) => return Ok(grant.clone()),
            Standing::Kept(Outcome::NotGranted(_) | Outcome::Refused(_)) => return Ok(Outcome::Cancelled),
            Standing::Kept(_) => {
                let text = format!("request {wait} is not an acquire_lock, so there is no wait to cancel");
                return Err(Refusal::new(Kind::InvalidParams, text));
            }
            Standing::Stale => {
                let text =
                    format!("request {wait} was acknowledged before, so its outcome is not kept any more");
                return Err(Refusal::new(Kind::StaleRequest, text));
            }
            Standing::Reused => unreachable!("a record is looked up without a body to compare"),
        };
        match found {
            Found::InLine(op) => self.cancel(op, effects),
            Found::Unseen => {
                let session = self.sessions.get_mut(&id).expect("it asks");
                let max = self.head.limits.session_waits;
                if !session.has_wait_room(&self.head.limits) {
                    let text = format!("the session has its {max} waits; name the answered ones in `got`");
                    return Err(Refusal::limit("session_waits", max, text));
                }
                session.refuse_wait(wait, super::blocked::cancelled());
            }
        }
        Ok(Outcome::Cancelled)
    }

    pub(super) fn add_session(&mut self, part: SessionPart) -> Result<(), String> {
        let client = part.client;
        let fault = |text: &str| format!("session of client {client}: {text}");
        if client == 0 || client > self.head.last_client {
            return Err(fault("its number was never given"));
        }
        let mut session = Session {
            ended: part.ended,
            floor: part.floor,
            acks: part.acks,
            losses: part.losses.into(),
            ..Session::new(client, part.nonce, part.name, part.label, part.ttl_ms, part.opened)
        };
        for reply in part.replies {
            session.reply_bytes += reply.outcome.weight();
            let kept = Kept { fingerprint: reply.fingerprint, outcome: reply.outcome };
            if session.replies.insert(reply.id, kept).is_some() {
                return Err(fault(&format!("request {} has two replies", reply.id)));
            }
        }
        for wait in part.waits {
            let reply =
                WaitReply { fingerprint: wait.fingerprint, outcome: wait.outcome, op: 0, got: wait.got };
            if session.waits.insert(wait.id, reply).is_some() || session.replies.contains(wait.id) {
                return Err(fault(&format!("request {} has two records", wait.id)));
            }
        }
        self.kept = self.kept + session.kept();
        if let Some((at, _)) = session.ended {
            self.due.insert((at.after_ms(AFTERLIFE_MS), Due::Gone(client)));
        }
        let id = part.session;
        if self.nonces.insert(session.nonce, id).is_some()
            || self.clients.insert(client, id).is_some()
            || self.sessions.insert(id, session)
        {
            return Err(fault("its number, id or nonce stands twice"));
        }
        Ok(())
    }

    /// Ties a wait that stands in line to its session.
    pub(super) fn tie_wait(&mut self, id: SessionId, wait: u64, owner: ArcStr, op: Op) -> Result<(), String> {
        let session = self.sessions.get_mut(&id).ok_or("it has no session")?;
        match session.waits.get_mut(&wait) {
            Some(reply) if reply.outcome.is_none() && reply.op == 0 => reply.op = op,
            Some(_) | None => return Err("its session does not remember it as in line".into()),
        }
        match session.waiting.insert(owner, wait) {
            None => Ok(()),
            Some(_) => Err("its owner waits twice".into()),
        }
    }

    /// Checks what can only be checked when everything is there, and finds who is leaving.
    pub(super) fn check_sessions(&mut self) -> Result<(), String> {
        for id in self.clients.values() {
            let session = &self.sessions[id];
            if session.waits.values().any(|wait| wait.outcome.is_none() && wait.op == 0) {
                return Err(format!("client {} remembers a wait that stands in no line", session.client));
            }
            if !session.is_live() && session.has_left_something() {
                self.leaving.insert(session.client);
            }
        }
        Ok(())
    }
}

/// The refusal of a request whose owner waits already.
pub(super) fn waits_already(wait: u64) -> Refusal {
    let text = format!(
        "this owner waits already, in request {wait}; cancel that wait first, or name another `owner` for this one"
    );
    Refusal::new(Kind::AlreadyHeld, text).with(Detail::Waits { wait })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Ask, Call, Command, Durability, Life, Mode, Patience, Request, Terms};

    const ID: SessionId = SessionId(1);

    /// A state with one session, beside one that holds lock "held".
    fn state(limits: Limits) -> State {
        let mut state = State::new();
        let (durability, raised) = (Durability::Sync, false);
        apply(&mut state, &Command::NewTerm { term: 1, limits, durability, raised });
        for number in [1, 2] {
            let (nonce, name, label) = (Nonce(number), String::new(), String::new());
            let session = SessionId(number);
            apply(&mut state, &Command::OpenSession { nonce, session, name, label, ttl_ms: 10_000 });
        }
        let request = Request { session: SessionId(2), ..request(1, 0, &[], wait("")) };
        apply(&mut state, &Command::Request(request));
        state
    }

    fn apply(state: &mut State, command: &Command) -> Outcome {
        state.apply(state.op() + 1, Time::ZERO, command, &mut Vec::new())
    }

    fn request(id: u64, ack: u64, got: &[u64], call: Call) -> Request {
        Request { session: ID, id, ack, got: got.to_vec(), call }
    }

    fn ask(state: &mut State, id: u64, ack: u64, got: &[u64], call: Call) -> Outcome {
        apply(state, &Command::Request(request(id, ack, got, call)))
    }

    fn wait(owner: &str) -> Call {
        let asks = Ask { key: Name::new("held").unwrap(), mode: Mode::Exclusive }.into();
        Call::Acquire { asks, wait: Patience::Forever, owner: owner.into(), terms: Terms::default() }
    }

    fn set() -> Call {
        let (key, value, life) = (Name::new("key").unwrap(), "1".into(), Life::default());
        Call::Set { key, value, if_version: None, life, token: None, holder: None }
    }

    fn session(state: &State) -> &Session {
        state.session(ID).unwrap()
    }

    /// Request 1 is a wait that the client has the answer to, if `got` says so; 2 one whose answer it may not have; 3 stands in
    /// line.
    fn with_waits(max: u64, ack: u64, got: &[u64]) -> State {
        let mut state = state(Limits { session_waits: max, ..Limits::default() });
        for (id, owner) in [(1, "one"), (2, "two"), (3, "three")] {
            ask(&mut state, id, 0, &[], wait(owner));
        }
        ask(&mut state, 4, 0, &[], Call::CancelWait { wait: 1 });
        ask(&mut state, 5, ack, got, Call::CancelWait { wait: 2 });
        state
    }

    #[test]
    fn a_wait_finds_room_if_and_only_if_it_was_told_so() {
        let mut told = [0, 0];
        for max in 3..=5 {
            for (acked, had) in [(0, &[][..]), (0, &[1]), (1, &[]), (1, &[1]), (2, &[])] {
                for (ack, got) in
                    (0..=4).flat_map(|ack| [&[][..], &[1], &[2], &[1, 2], &[3]].map(|got| (ack, got)))
                {
                    for in_flight in 0..=3 {
                        let mut state = with_waits(max, acked, had);
                        let limits = state.limits().clone();
                        let room = session(&state).has_wait_window(ack, got, in_flight, &limits);
                        let begins = |outcome| matches!(outcome, Outcome::Waiting(_));
                        let mut found = begins(ask(&mut state, 10, ack, got, wait("new")));
                        for id in 11..11 + in_flight {
                            found &= begins(ask(&mut state, id, 0, &[], wait(&id.to_string())));
                        }
                        let case =
                            format!("{max} waits, {acked} and {ack} acknowledged, {had:?} and {got:?} got");
                        assert_eq!(room, found, "{case}, {in_flight} in flight");
                        told[usize::from(room)] += 1;
                    }
                }
            }
        }
        assert!(told[0] > 50 && told[1] > 50, "{told:?}");
    }

    #[test]
    fn a_wait_that_made_room_for_another_is_not_executed_again() {
        let mut state = with_waits(3, 0, &[]);
        assert!(matches!(ask(&mut state, 6, 0, &[], wait("four")), Outcome::Waiting(_)));
        assert_eq!(session(&state).record(1), Standing::Stale);
        assert_eq!(ask(&mut state, 1, 0, &[], wait("one")), Outcome::Void);
        assert!(matches!(session(&state).record(2), Standing::Kept(_)));
    }

    #[test]
    fn unseen_is_what_has_no_record_and_was_not_acknowledged() {
        let mut state = with_waits(9, 0, &[]);
        ask(&mut state, 6, 5, &[1], Call::CancelWait { wait: 8 });
        let unseen: Vec<u64> = (1..=10).filter(|id| session(&state).is_unseen(*id)).collect();
        // 1 and 4 are acknowledged, 2 and 3 waits, 5 and 6 answered, 8 cancelled before it came.
        assert_eq!(unseen, [7, 9, 10]);
    }

    #[test]
    fn replies_are_kept_up_to_their_bytes_and_weighed_until_they_go() {
        let weight = Outcome::Done.weight();
        let mut state = state(Limits { reply_bytes: 3 * weight, ..Limits::default() });
        for (id, count) in [(1, 1), (2, 2), (3, 3), (4, 3)] {
            ask(&mut state, id, 0, &[], set());
            assert_eq!(session(&state).kept(), KeptReplies { count, bytes: count * weight });
        }
        assert_eq!(session(&state).record(1), Standing::Stale);
        ask(&mut state, 5, 4, &[], set());
        assert_eq!(session(&state).kept(), KeptReplies { count: 2, bytes: 2 * weight });
        let window = |bytes| Window { replies: 9, reply_bytes: bytes };
        assert_eq!(session(&state).full_window(0, 0, window(2 * weight)), Some(("reply_bytes", 2 * weight)));
        assert_eq!(session(&state).full_window(0, 0, window(2 * weight + 1)), None);
    }
}
