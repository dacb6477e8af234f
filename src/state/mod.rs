//! The state machine: sessions, grants, waits, keys and files, changed by nothing but [`State::apply`].
//!
//! Pure: no clock, socket, file, thread or random number. The same commands give the same state and the same outcomes,
//! byte for byte; the running digest of the outcomes lets recovery check that.
//!
//! Three rules hold everywhere:
//! - A grant lives while its session has not ended and its own deadline is still ahead: `at < deadline`. At the very
//!   instant of the deadline it is gone. A grant that is gone but not yet cleaned up counts as held by nobody.
//! - Ending a session is one mark that fences all its tokens at once. What it held is handed over at most
//!   [`SWEEP_MAX`] grants and waits a command.
//! - Every outcome of a request is kept until the client has acknowledged it, so that a copy of the request takes no
//!   effect and is told the same.
//!
//! One file a noun: `sessions` (requests, kept replies), `locks` (grants, waits, lines), `keys`, `files`, and `parts`
//! (what a snapshot holds).

mod breaks;
mod files;
mod grants;
mod guards;
mod handover;
mod keys;
mod locks;
mod parts;
mod sessions;
mod waits;

pub use files::{File, not_found};
pub use grants::Grant;
pub use keys::Key;
pub use locks::LockView;
pub use parts::*;
use sessions::KeptReplies;
pub use sessions::{Session, Standing};
pub use waits::Wait;

use crate::command::{Call, Command, Durability, Request};
use crate::identity::{Nonce, Op, RAISE, SessionId, Term, Token};
use crate::kind::{Kind, Refusal};
use crate::limits::{Limits, SWEEP_MAX};
use crate::name::Name;
use crate::outcome::{Effect, Outcome};
use crate::time::Time;
use locks::Lock;
use std::collections::{BTreeMap, BTreeSet};

/// The state: what the committed commands have made of it.
#[derive(Debug)]
pub struct State {
    head: Head,
    sessions: BTreeMap<SessionId, Session>,
    /// Sessions by their public number, which is the order in which they are shown and swept.
    clients: BTreeMap<u64, SessionId>,
    nonces: BTreeMap<Nonce, SessionId>,
    grants: BTreeMap<Token, Grant>,
    /// Waits in line, by the command that put them there: arrival order.
    waits: BTreeMap<Op, Wait>,
    /// Locks that are held or waited for. A lock with neither has no entry.
    locks: BTreeMap<Name, Lock>,
    keys: BTreeMap<Name, Key>,
    /// Bytes of all keys and values together.
    key_bytes: u64,
    /// Kept replies of all sessions together.
    kept: KeptReplies,
    files: BTreeMap<Name, File>,
    /// What is due when.
    due: BTreeSet<(Time, Due)>,
    /// Ended sessions, by number, that still have grants or waits to clean up.
    leaving: BTreeSet<u64>,
}

/// What a deadline in log time ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// The own lease of a grant.
    Lease(Token),
    /// The limit on a wait.
    Wait(Op),
    /// The afterlife of an ended session, by its number.
    Gone(u64),
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
            },
            sessions: BTreeMap::new(),
            clients: BTreeMap::new(),
            nonces: BTreeMap::new(),
            grants: BTreeMap::new(),
            waits: BTreeMap::new(),
            locks: BTreeMap::new(),
            keys: BTreeMap::new(),
            key_bytes: 0,
            kept: KeptReplies::default(),
            files: BTreeMap::new(),
            due: BTreeSet::new(),
            leaving: BTreeSet::new(),
        }
    }

    /// Applies command `op`, given at `at`; what it causes beside its outcome is added to `effects`.
    ///
    /// # Panics
    /// If `op` does not rise or `at` goes back: the log has an order, and breaking it would corrupt the state.
    pub fn apply(&mut self, op: Op, at: Time, command: &Command, effects: &mut Vec<Effect>) -> Outcome {
        assert!(op > self.head.op, "command {op} after command {}", self.head.op);
        assert!(at >= self.head.at, "log time {at} of command {op} after {}", self.head.at);
        self.head.op = op;
        self.head.at = at;
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
            Command::Request(request) => self.request(request, effects),
        };
        self.note(&outcome);
        outcome
    }

    /// Takes an outcome into the digest.
    fn note(&mut self, outcome: &Outcome) {
        let bytes = postcard::to_stdvec(&(self.head.op, outcome))
            .expect("an outcome always encodes: it has no maps of unknown length");
        self.head.digest = crc32c::crc32c_append(self.head.digest, &bytes);
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
        if raised {
            self.head.last_token += RAISE;
        }
        effects.push(Effect::Renewed);
        Outcome::Done
    }

    fn request(&mut self, request: &Request, effects: &mut Vec<Effect>) -> Outcome {
        let fingerprint = request.call.fingerprint();
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
            Call::Abandon { token, holder } => self.release(session, *holder, *token, effects),
            Call::RenewLease { token, holder, lease_ms } => {
                self.renew_lease(session, *holder, *token, *lease_ms)
            }
            Call::Set { key, value, if_version, life: _, token, holder } => {
                self.may_write_key(session, *holder, *token, key)?;
                self.set(key, value, *if_version)
            }
            Call::Delete { key, if_version, token, holder } => {
                self.may_write_key(session, *holder, *token, key)?;
                self.delete(key, *if_version)
            }
            Call::AppendFile { file, data, token, holder } => {
                self.holds(session, *holder, *token, file)?;
                self.append_file(file, data, effects)
            }
            Call::DeleteFile { file, token, holder } => {
                self.holds(session, *holder, *token, file)?;
                self.delete_file(file, effects)
            }
            Call::RotateFile { file, to, token, holder } => {
                self.holds(session, *holder, *token, file)?;
                self.may_take_name(session, *holder, to)?;
                self.rotate_file(file, to, effects)
            }
            Call::RepairFile { file, generation, length, checksum, token, holder } => {
                self.holds(session, *holder, *token, file)?;
                self.repair_file(file, *generation, *length, *checksum, effects)
            }
            Call::Convert { .. } => Err(unsupported("convert_lock")),
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
            Call::Transaction { .. } => Err(unsupported("transaction")),
        }
    }

    /// Lets what is due take effect and cleans up after ended sessions, a bounded number of each.
    fn tick(&mut self, effects: &mut Vec<Effect>) -> Outcome {
        let mut cleaned = 0;
        for _ in 0..SWEEP_MAX {
            match self.due.first() {
                // Who is still leaving is forgotten by the next tick, which comes at once. What is due stays as it is until
                // then: a deadline moved here could not be built anew from parts.
                Some((_, Due::Gone(client))) if self.leaving.contains(client) => break,
                Some(&(time, due)) if time <= self.head.at => {
                    self.due.pop_first();
                    match due {
                        Due::Lease(token) | Due::Hold(token) | Due::Break(token) => {
                            cleaned += 1;
                            self.expire_grant(token, effects);
                        }
                        Due::Wait(op) => self.give_up(op, effects),
                        Due::Gone(client) => self.forget_session(client),
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

    /// When the next deadline in log time is due; at once, if ended sessions wait to be cleaned up.
    pub fn next_due(&self) -> Option<Time> {
        if !self.leaving.is_empty() {
            return Some(Time::ZERO);
        }
        self.due.first().map(|(time, _)| *time)
    }

    /// What there is now, under the names that `status` shows.
    pub fn counts(&self) -> [(&'static str, u64); 10] {
        [
            ("sessions", self.sessions.len() as u64),
            ("grants", self.grants.len() as u64),
            ("waits", self.waits.len() as u64),
            ("locks", self.locks.len() as u64),
            ("keys", self.keys.len() as u64),
            ("key_bytes", self.key_bytes),
            ("files", self.files.len() as u64),
            ("leaving", self.leaving.len() as u64),
            ("kept_replies", self.kept.count),
            ("kept_reply_bytes", self.kept.bytes),
        ]
    }

    /// Everything that a snapshot holds.
    pub fn parts(&self) -> Parts {
        Parts {
            head: self.head.clone(),
            sessions: self.clients.values().map(|id| self.sessions[id].part(*id)).collect(),
            grants: self.grants.iter().map(|(token, grant)| self.grant_part(*token, grant)).collect(),
            waits: self.waits.iter().map(|(op, wait)| self.wait_part(*op, wait)).collect(),
            keys: self.keys.iter().map(|(name, key)| key.part(name)).collect(),
            files: self.files.iter().map(|(name, file)| file.part(name)).collect(),
        }
    }

    /// Builds a state from its parts.
    ///
    /// # Errors
    /// A sentence, if parts contradict each other. Nothing is repaired: such parts were not written by this program.
    pub fn from_parts(parts: Parts) -> Result<State, String> {
        let mut state = State::new();
        state.head = parts.head;
        for part in parts.sessions {
            state.add_session(part)?;
        }
        for part in parts.grants {
            state.add_grant(part)?;
        }
        for part in parts.waits {
            state.add_wait(part)?;
        }
        for part in parts.keys {
            state.add_key(part)?;
        }
        for part in parts.files {
            state.add_file(part)?;
        }
        state.check_sessions()?;
        Ok(state)
    }
}

fn unsupported(name: &str) -> Refusal {
    Refusal::new(Kind::Unsupported, format!("{name} is not built in this version of the server"))
}

/// The refusal of a token.
fn not_holder(text: String) -> Refusal {
    Refusal::new(Kind::NotHolder, text)
}

#[cfg(test)]
mod tests;
