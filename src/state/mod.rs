//! The state machine: sessions, grants, waits, keys and files, changed by nothing but [`State::apply`].
//!
//! Pure: no clock, socket, file, thread or random number. The same commands give the same state and the same outcomes,
//! byte for byte; the running digest of the outcomes lets recovery check that.
//!
//! Three rules hold everywhere:
//! - A grant lives while its session has not ended and its own deadline is still ahead: `at < deadline`. At the very
//!   instant of the deadline it is gone. A grant that is gone but not yet cleaned up counts as held by nobody. So do keys and
//!   waits with theirs. `at` is the log time of the last command, for readers too: the clock runs ahead of it, but a crash
//!   would take back what it alone says to be over.
//! - Ending a session is one mark that fences all its tokens at once. What it held is handed over at most
//!   [`SWEEP_MAX`] grants and waits a command.
//! - Every outcome of a request is kept until the client has acknowledged it, so that a copy of the request takes no
//!   effect and is told the same.
//!
//! One file a noun: `sessions` (requests, kept replies), `locks` (asking for them), `lock` (one of them), `taken` (which
//! modes go together), `lines` (who is next), `numbered` (maps by token), `waits`, `grants`, `convert`, `deadlock`, `behind`
//! (who waits for an owner), `blocked` (why not), `contention` (what is waited for most), `guards` (who may write what),
//! `keys`, `transactions`, `files`, `sections` (what is staged under atomic grants), `history` (what happened lately, for
//! whoever watches), and `parts` (what a snapshot holds).

mod behind;
mod blocked;
mod breaks;
mod contention;
mod convert;
mod deadlock;
mod files;
mod grants;
mod guards;
mod handover;
mod history;
mod keys;
mod lines;
mod lock;
mod locks;
mod numbered;
mod parts;
mod sections;
mod sessions;
mod taken;
mod transactions;
mod waits;

pub use contention::Figures;
pub use files::{File, not_found};
pub use grants::Grant;
pub use history::{GrantEnd, History, KeyEnd, WatchEvent, WatchEventRef, What};
pub use keys::Key;
pub use locks::LockView;
pub use parts::*;
pub use sections::{KeySeen, Section, StagedFile, StagedKey};
use sessions::KeptReplies;
pub use sessions::{Session, Standing, Window};
pub use waits::Wait;

use crate::command::{Call, Change, Command, Durability, Entry, Life, Request};
use crate::encoding;
use crate::identity::{Nonce, Op, RAISE, SessionId, Term, Token};
use crate::kind::{Kind, Refusal};
use crate::limits::{Limits, SWEEP_MAX};
use crate::map::Lookup;
use crate::name::Name;
use crate::outcome::{Effect, Outcome};
use crate::time::Time;
use lock::Lock;
use numbered::Numbered;
use std::collections::{BTreeMap, BTreeSet};

/// The state: what the committed commands have made of it.
#[derive(Debug)]
pub struct State {
    head: Head,
    sessions: Lookup<SessionId, Session>,
    /// Sessions by their public number, which is the order in which they are shown and swept.
    clients: BTreeMap<u64, SessionId>,
    nonces: BTreeMap<Nonce, SessionId>,
    grants: Numbered<Grant>,
    /// Waits in line, by the command that put them there: arrival order.
    waits: BTreeMap<Op, Wait>,
    /// Locks that are held or waited for. A lock with neither has no entry.
    locks: BTreeMap<Name, Lock>,
    keys: BTreeMap<Name, Key>,
    /// Bytes of all keys and values together.
    key_bytes: u64,
    /// How many keys have a deadline.
    ttl_keys: u64,
    /// Kept replies of all sessions together.
    kept: KeptReplies,
    files: BTreeMap<Name, File>,
    /// What all sections together count, in bytes.
    staged_bytes: u64,
    /// What happened lately, for whoever watches.
    history: History,
    /// What is due when.
    due: BTreeSet<(Time, Due)>,
    /// Locks on which something was let go and whose lines are not served to their end.
    unserved: BTreeSet<Name>,
    /// Ended sessions, by number, that still have grants or waits to clean up.
    leaving: BTreeSet<u64>,
    /// Which locks are waited for most.
    contention: contention::Contention,
    /// What the clock showed when the last command was given: what it begins is counted from there.
    clock: Time,
    /// Steps of all looks for deadlocks. Work done, not something that was decided: no part of a snapshot.
    deadlock_steps: u64,
    /// An outcome as bytes, while it is taken into the digest.
    scratch: Vec<u8>,
}

/// What a deadline in log time ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// The own lease of a grant.
    Lease(Token),
    /// The limit on a wait.
    Wait(Op),
    /// The lock-delay of a lock.
    LockDelay(Name),
    /// The afterlife of an ended session, by its number.
    Gone(u64),
    /// The TTL of a key whose lock nobody holds exclusively.
    Key(Name),
    /// The longest tenure of a grant.
    Hold(Token),
    /// The patience of whoever asked the holder of a grant to let go.
    Break(Token),
}

impl Default for State {
    fn default() -> State {
        State::new()
    }
}

impl State {
    /// The state before the first command.
    pub fn new() -> State {
        State {
            head: Head {
                op: 0,
                term: 0,
                at: Time::ZERO,
                last_token: 0,
                last_client: 0,
                digest: 0,
                durability: Durability::Sync,
                limits: Limits::default(),
                unchecked_waits: 0,
                history_after: 0,
            },
            sessions: Lookup::default(),
            clients: BTreeMap::new(),
            nonces: BTreeMap::new(),
            grants: Numbered::default(),
            waits: BTreeMap::new(),
            locks: BTreeMap::new(),
            keys: BTreeMap::new(),
            key_bytes: 0,
            ttl_keys: 0,
            kept: KeptReplies::default(),
            files: BTreeMap::new(),
            staged_bytes: 0,
            history: History::default(),
            due: BTreeSet::new(),
            unserved: BTreeSet::new(),
            leaving: BTreeSet::new(),
            contention: contention::Contention::default(),
            clock: Time::ZERO,
            deadlock_steps: 0,
            scratch: Vec::new(),
        }
    }

    /// Applies command `op`, given at `at` by a clock that showed the same; what it causes beside its outcome is added to
    /// `effects`.
    ///
    /// # Panics
    /// If `op` does not rise or `at` goes back: the log has an order, and breaking it would corrupt the state.
    pub fn apply(&mut self, op: Op, at: Time, command: &Command, effects: &mut Vec<Effect>) -> Outcome {
        self.apply_known(op, (at, at), command, None, effects)
    }

    /// Applies an entry of the log, which has the place `op`.
    ///
    /// # Panics
    /// As [`State::apply`].
    pub fn apply_entry(&mut self, op: Op, entry: &Entry, effects: &mut Vec<Effect>) -> Outcome {
        self.apply_known(op, (entry.at, entry.clock()), &entry.command, None, effects)
    }

    /// The same, for whoever has the fingerprint of the request, if it is one, already. `at`: log time, and what the clock
    /// showed.
    pub(crate) fn apply_known(
        &mut self,
        op: Op,
        (at, clock): (Time, Time),
        command: &Command,
        fingerprint: Option<u64>,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        assert!(op > self.head.op, "command {op} after command {}", self.head.op);
        assert!(at >= self.head.at, "log time {at} of command {op} after {}", self.head.at);
        self.head.op = op;
        self.head.at = at;
        self.clock = clock;
        let outcome = match command {
            Command::NewTerm { term, limits, durability, raised } => {
                self.new_term(*term, limits, *durability, *raised, effects)
            }
            Command::OpenSession { nonce, session, name, label, ttl_ms } => {
                self.open_session(*nonce, *session, name, label, *ttl_ms, effects)
            }
            Command::EndSession { session, term, reason } => {
                self.end_session(*session, *term, *reason, effects)
            }
            Command::Tick => self.tick(effects),
            Command::FileFault { file, generation, reason } => self.file_fault(file, *generation, reason),
            Command::Request(request) => {
                let fingerprint = fingerprint.unwrap_or_else(|| request.call.fingerprint());
                self.request(request, fingerprint, effects)
            }
        };
        self.serve(effects);
        self.note(&outcome);
        outcome
    }

    /// Takes an outcome into the digest.
    fn note(&mut self, outcome: &Outcome) {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        encoding::number(&mut bytes, self.head.op);
        encoding::outcome(&mut bytes, outcome);
        self.head.digest = crc32c::crc32c_append(self.head.digest, &bytes);
        self.scratch = bytes;
    }

    fn new_term(
        &mut self,
        term: Term,
        limits: &Limits,
        durability: Durability,
        raised: bool,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        assert!(term > self.head.term, "term {term} after term {}", self.head.term);
        self.head.term = term;
        self.head.limits = limits.clone();
        self.head.durability = durability;
        self.trim_history();
        if raised {
            self.head.last_token += RAISE;
            self.forget_history();
        }
        effects.push(Effect::Renewed);
        Outcome::Done
    }

    fn request(&mut self, request: &Request, fingerprint: u64, effects: &mut Vec<Effect>) -> Outcome {
        debug_assert_eq!(fingerprint, request.call.fingerprint());
        let Some(session) = self.sessions.get_mut(&request.session).filter(|session| session.is_live())
        else {
            return Outcome::Void;
        };
        match session.standing(request.id, fingerprint) {
            Standing::New => {}
            Standing::Kept(_) | Standing::InLine(_) | Standing::Reused | Standing::Stale => {
                return Outcome::Void;
            }
        }
        let before = session.kept();
        session.acknowledge(request.ack, &request.got);
        let outcome = match self.call(request, fingerprint, effects) {
            Ok(outcome) => outcome,
            Err(refusal) => Outcome::Refused(Box::new(refusal)),
        };
        let limits = &self.head.limits;
        let session = self.sessions.get_mut(&request.session).expect("it was there before the call");
        if !matches!(outcome, Outcome::Waiting(_)) {
            session.keep(request.id, fingerprint, outcome.clone(), limits);
        }
        self.kept = self.kept - before + session.kept();
        outcome
    }

    fn call(
        &mut self,
        request: &Request,
        fingerprint: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        let session = request.session;
        match &request.call {
            Call::Acquire { asks, wait, owner, terms } => {
                let wanted = locks::Wanted { session, id: request.id, fingerprint, asks, owner, terms };
                self.acquire(&wanted, *wait, effects)
            }
            Call::CancelWait { wait } => self.cancel_wait(session, *wait, effects),
            Call::Release { token, holder } => self.release(session, *holder, *token, effects),
            Call::Abandon { token, holder } => self.abandon(session, *holder, *token, effects),
            Call::RenewLease { token, holder, lease_ms } => {
                self.renew_lease(session, *holder, *token, *lease_ms)
            }
            Call::Set { key, value, if_version, life, token, holder } => {
                let change = Change { key: key.clone(), value: Some(value.clone()), life: *life };
                self.set_or_delete(session, *holder, *token, change, *if_version)
            }
            Call::Delete { key, if_version, token, holder } => {
                let change = Change { key: key.clone(), value: None, life: Life::default() };
                self.set_or_delete(session, *holder, *token, change, *if_version)
            }
            Call::AppendFile { file, data, token, holder } => {
                if let Some(token) = self.stages(session, *holder, Some(*token)) {
                    self.may_stage(session, *holder, token, file)?;
                    return self.stage_append(token, file, data);
                }
                if !crate::bug::planted("stale_token_appends") {
                    self.holds(session, *holder, *token, file)?;
                }
                self.append_file(file, data, effects)
            }
            Call::DeleteFile { file, token, holder } => {
                self.holds(session, *holder, *token, file)?;
                self.may_change_file(*token, file, false)?;
                self.delete_file(file, effects)
            }
            Call::RotateFile { file, to, token, holder } => {
                self.holds(session, *holder, *token, file)?;
                self.may_change_file(*token, file, false)?;
                self.may_take_name(session, *holder, to)?;
                self.rotate_file(file, to, effects)
            }
            Call::RepairFile { file, generation, length, checksum, token, holder } => {
                self.holds(session, *holder, *token, file)?;
                self.may_change_file(*token, file, true)?;
                self.repair_file(file, *generation, *length, *checksum, effects)
            }
            Call::Convert { token, holder, asks, wait } => {
                let wanted = convert::Conversion {
                    session,
                    id: request.id,
                    fingerprint,
                    holder: *holder,
                    token: *token,
                    asks,
                };
                self.convert(&wanted, *wait, effects)
            }
            Call::HandOver { token, holder, client } => {
                self.hand_over(session, *holder, *token, *client, effects)
            }
            Call::TakeOver { token, holder, owner, label } => {
                self.take_over(session, *holder, *token, owner, label, effects)
            }
            Call::BreakLock { token, reason } => self.break_lock(*token, reason, effects),
            Call::AskRelease { token, reason, deadline_ms } => {
                self.ask_release(session, *token, reason, *deadline_ms, effects)
            }
            Call::Transaction { compare, apply, token, holder } => {
                let Some(token) = self.stages(session, *holder, *token) else {
                    return self.transaction(session, *holder, *token, compare, apply);
                };
                for change in apply {
                    self.may_stage(session, *holder, token, &change.key)?;
                }
                self.stage_transaction(token, compare, apply)
            }
        }
    }

    fn set_or_delete(
        &mut self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Option<Token>,
        change: Change,
        if_version: Option<Op>,
    ) -> Result<Outcome, Refusal> {
        if let Some(token) = self.stages(session, holder, token) {
            self.may_stage(session, holder, token, &change.key)?;
            return self.stage_change(token, change, if_version);
        }
        self.may_write_key(session, holder, token, &change.key)?;
        self.change_key(session, holder, &change, if_version)
    }

    /// Lets what is due take effect and cleans up after ended sessions, a bounded number of each.
    fn tick(&mut self, effects: &mut Vec<Effect>) -> Outcome {
        let mut cleaned = 0;
        for _ in 0..SWEEP_MAX {
            match self.due.first() {
                // Who is still leaving is forgotten by the next tick, which comes at once. What is due stays as it is until
                // then: a deadline moved here could not be built anew from parts.
                Some((_, Due::Gone(client))) if self.leaving.contains(client) => break,
                Some((time, _)) if *time <= self.head.at => {
                    let (_, due) = self.due.pop_first().expect("it was looked at");
                    match due {
                        Due::Lease(token) | Due::Hold(token) | Due::Break(token) => {
                            cleaned += 1;
                            self.expire_grant(token, effects);
                        }
                        Due::Wait(op) => self.give_up(op, effects),
                        Due::LockDelay(key) => self.reopen(&key),
                        Due::Gone(client) => self.forget_session(client),
                        Due::Key(name) => self.expire_key(&name),
                    }
                }
                Some(_) | None => break,
            }
        }
        self.sweep(effects);
        Outcome::Cleaned { cleaned }
    }

    /// The last command applied.
    pub fn op(&self) -> Op {
        self.head.op
    }

    /// The log time of that command.
    pub fn at(&self) -> Time {
        self.head.at
    }

    /// The digest of all outcomes so far.
    pub fn digest(&self) -> u32 {
        self.head.digest
    }

    /// What there is one of.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The caps in force.
    pub fn limits(&self) -> &Limits {
        &self.head.limits
    }

    /// How many grants, holders and places in line were looked at for deadlocks since this state was built. It tells what the
    /// looking costs, and is no part of a snapshot.
    pub fn deadlock_steps(&self) -> u64 {
        self.deadlock_steps
    }

    /// When the next deadline in log time is due; at once, if ended sessions wait to be cleaned up.
    pub fn next_due(&self) -> Option<Time> {
        if !self.leaving.is_empty() || !self.unserved.is_empty() {
            return Some(Time::ZERO);
        }
        self.due.first().map(|(time, _)| *time)
    }

    /// The first deadline behind `now`, whatever is due and waits to be cleaned up.
    pub fn next_due_after(&self, now: Time) -> Option<Time> {
        // The first in the order of `Due` is at or before everything of that moment.
        let behind = self.due.range((now.after_us(1), Due::Lease(0))..);
        behind.map(|(time, _)| *time).next()
    }

    /// Whether any deadline stands, so that log time must be written down as it passes: also that of a key which is only
    /// due when its lock is free.
    pub fn has_deadlines(&self) -> bool {
        self.next_due().is_some() || self.ttl_keys > 0
    }

    /// What there is now, under the names that `status` shows.
    pub fn counts(&self) -> [(&'static str, u64); 12] {
        [
            ("sessions", self.sessions.len() as u64),
            ("grants", self.grants.len() as u64),
            ("waits", self.waits.len() as u64),
            ("locks", self.locks.len() as u64),
            ("keys", self.keys.len() as u64),
            ("key_bytes", self.key_bytes),
            ("files", self.files.len() as u64),
            ("leaving", self.leaving.len() as u64),
            ("unchecked_waits", self.head.unchecked_waits),
            ("kept_replies", self.kept.count),
            ("kept_reply_bytes", self.kept.bytes),
            ("staged_bytes", self.staged_bytes),
        ]
    }

    /// Whether [`State::parts`] copies at most so many things, which is found out in no more steps than that. Figures of
    /// contention are left out, which have a small cap; 16 events of the history, and 256 bytes of values, are one thing.
    pub fn has_at_most(&self, things: u64) -> bool {
        let bytes = self.kept.bytes + self.key_bytes + self.staged_bytes;
        let tables = [
            self.sessions.len(),
            self.grants.len(),
            self.locks.len(),
            self.waits.len(),
            self.keys.len(),
            self.files.len(),
            self.history.len() / 16,
        ];
        let outer = tables.iter().sum::<usize>() as u64 + self.kept.count + bytes / 256;
        let sessions = self.clients.values().map(|id| self.sessions[id].remembered());
        let grants = self.grants.iter().map(|(_, grant)| grant.asks.len());
        let waits = self.waits.values().map(|wait| wait.asks.len());
        outer <= things && outer + sessions.chain(grants).chain(waits).sum::<usize>() as u64 <= things
    }

    /// Everything that a snapshot holds.
    pub fn parts(&self) -> Parts {
        Parts {
            head: self.head.clone(),
            sessions: self.clients.values().map(|id| self.sessions[id].part(*id)).collect(),
            grants: self.grants.iter().map(|(token, grant)| self.grant_part(token, grant)).collect(),
            delays: self.delay_parts(),
            unserved: self.unserved_parts(),
            waits: self.waits.iter().map(|(op, wait)| self.wait_part(*op, wait)).collect(),
            keys: self.keys.iter().map(|(name, key)| key.part(name)).collect(),
            files: self.files.iter().map(|(name, file)| file.part(name)).collect(),
            history: self.history.clone(),
            contention: self.contention.parts(),
            holds: self.contention.hold_parts(),
        }
    }

    /// Builds a state from its parts.
    ///
    /// # Errors
    /// A sentence, if parts contradict each other. Nothing is repaired: such parts were not written by this program.
    pub fn from_parts(parts: Parts) -> Result<State, String> {
        let mut state = State::new();
        state.head = parts.head;
        if crate::bug::planted("token_reused") {
            state.head.last_token = parts.grants.iter().map(|grant| grant.token).max().unwrap_or(0);
        }
        for part in parts.sessions {
            state.add_session(part)?;
        }
        for part in parts.grants {
            state.add_grant(part)?;
        }
        for part in parts.delays {
            state.add_delay(part)?;
        }
        for part in parts.waits {
            state.add_wait(part)?;
        }
        state.check_lines(parts.unserved)?;
        for part in parts.keys {
            state.add_key(part)?;
        }
        for part in parts.files {
            state.add_file(part)?;
        }
        if !crate::bug::planted("history_lost_with_the_snapshot") {
            state.add_history(parts.history)?;
        }
        state.contention = contention::Contention::from_parts(parts.contention, parts.holds)?;
        state.check_sessions()?;
        Ok(state)
    }
}

/// The refusal of a token.
fn not_holder(text: String) -> Refusal {
    Refusal::new(Kind::NotHolder, text)
}

#[cfg(test)]
mod tests;
