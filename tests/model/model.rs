//! What the state machine promises, as plainly as it can be written: lists, searched from the front.
//!
//! Nothing is swept in portions here: the runs are so small that one command of the state sweeps all there is.

use std::collections::{BTreeMap, VecDeque};
use tenure::command::{Call, Command, Patience, Request};
use tenure::identity::{Nonce, SessionId};
use tenure::kind::Detail;
use tenure::limits::Limits;
use tenure::outcome::{Outcome, Reason};

/// What an outcome comes down to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Out {
    Done,
    Void,
    Opened {
        session: SessionId,
        client: u64,
    },
    Granted {
        token: u64,
        key: String,
        op: u64,
        lease_ms: Option<u64>,
        again: bool,
    },
    Waiting {
        position: u64,
        held_by: Vec<u64>,
    },
    NotGranted {
        reason: Reason,
        position: u64,
        held_by: Vec<u64>,
    },
    Cancelled,
    Released {
        op: u64,
    },
    Renewed {
        left_ms: u64,
    },
    Set {
        version: u64,
    },
    Deleted {
        version: Option<u64>,
    },
    Appended {
        offset: u64,
        length: u64,
    },
    FileChanged {
        length: u64,
        generation: u64,
    },
    Cleaned {
        cleaned: u64,
    },
    /// The kind, and what goes with it.
    Refused(String, String),
}

impl Out {
    /// What was said, in a word or two.
    pub(crate) fn word(&self) -> String {
        match self {
            Out::Refused(kind, detail) if kind == "limit" || kind == "too_large" => {
                format!("{kind} {detail}")
            }
            Out::Refused(kind, _) => kind.clone(),
            Out::NotGranted { reason, .. } => format!("not granted, {reason:?}"),
            Out::Granted { again: true, .. } => "granted again".into(),
            other => format!("{other:?}").split([' ', '{']).next().unwrap_or_default().to_lowercase(),
        }
    }
}

/// What an outcome of the state comes down to.
pub(crate) fn told(outcome: &Outcome) -> Out {
    match outcome.clone() {
        Outcome::Done => Out::Done,
        Outcome::Void => Out::Void,
        Outcome::Opened { session, client, .. } => Out::Opened { session, client },
        Outcome::Granted { token, asks, op, lease_ms, again, hold_left_ms: _, atomic: _ } => {
            Out::Granted { token, key: asks[0].key.to_string(), op, lease_ms, again }
        }
        Outcome::Waiting(blocked) => Out::Waiting {
            position: blocked.position,
            held_by: blocked.holders.iter().map(|holder| holder.token).collect(),
        },
        Outcome::NotGranted(blocked) => Out::NotGranted {
            reason: blocked.reason,
            position: blocked.position,
            held_by: blocked.holders.iter().map(|holder| holder.token).collect(),
        },
        Outcome::Offered { .. }
        | Outcome::Broken { .. }
        | Outcome::ReleaseAsked { .. }
        | Outcome::Applied { .. } => panic!("the model does not know {outcome:?} yet"),
        Outcome::Cancelled => Out::Cancelled,
        Outcome::Released { op, .. } => Out::Released { op },
        Outcome::Renewed { lease_left_ms } => Out::Renewed { left_ms: lease_left_ms },
        Outcome::Set { version, .. } => Out::Set { version },
        Outcome::Deleted { version, .. } => Out::Deleted { version },
        Outcome::Appended { offset, length, .. } => Out::Appended { offset, length },
        Outcome::FileChanged { length, generation } => Out::FileChanged { length, generation },
        Outcome::Cleaned { cleaned } => Out::Cleaned { cleaned },
        Outcome::Refused(refusal) => Out::Refused(
            refusal.kind.as_str().into(),
            match refusal.detail {
                Detail::Limit { limit, .. } => limit,
                Detail::Version { version } => version.to_string(),
                Detail::Waits { wait } => format!("wait {wait}"),
                Detail::None => String::new(),
                other => format!("{other:?}"),
            },
        ),
    }
}

/// CRC-32C, bit by bit (RFC 3720, appendix B.4).
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()))
    })
}

#[derive(Debug, Default)]
pub(crate) struct Model {
    op: u64,
    at: u64,
    term: u64,
    limits: Option<Limits>,
    pub(crate) last_token: u64,
    last_client: u64,
    pub(crate) sessions: BTreeMap<SessionId, MSession>,
    /// In the order of their tokens.
    grants: Vec<MGrant>,
    /// In the order of their arrival.
    waits: Vec<MWait>,
    pub(crate) keys: BTreeMap<String, (String, u64)>,
    pub(crate) files: BTreeMap<String, MFile>,
    /// Waits that the last command answered.
    pub(crate) settled: Vec<(SessionId, u64)>,
}

#[derive(Debug)]
pub(crate) struct MSession {
    pub(crate) client: u64,
    nonce: Nonce,
    pub(crate) ended: Option<u64>,
    floor: u64,
    acks: bool,
    replies: BTreeMap<u64, (Call, Out)>,
    pub(crate) waits: BTreeMap<u64, MAnswer>,
    pub(crate) losses: VecDeque<(u64, u64)>,
}

/// A wait as its session remembers it.
#[derive(Debug)]
pub(crate) struct MAnswer {
    /// None for an id that was cancelled before it was seen.
    call: Option<Call>,
    pub(crate) outcome: Option<Out>,
    pub(crate) op: u64,
    got: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct MGrant {
    pub(crate) token: u64,
    pub(crate) session: SessionId,
    pub(crate) owner: String,
    pub(crate) key: String,
    op: u64,
    lease_ms: Option<u64>,
    deadline: Option<u64>,
}

#[derive(Clone, Debug)]
struct MWait {
    op: u64,
    session: SessionId,
    id: u64,
    owner: String,
    key: String,
    lease_ms: Option<u64>,
    deadline: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct MFile {
    pub(crate) generation: u64,
    pub(crate) bytes: Vec<u8>,
    fault: bool,
}

type Said = Result<Out, Out>;

fn refused(kind: &str, detail: impl Into<String>) -> Out {
    Out::Refused(kind.into(), detail.into())
}

impl Model {
    pub(crate) fn apply(&mut self, op: u64, at: u64, command: &Command) -> Out {
        (self.op, self.at) = (op, at);
        match command {
            Command::NewTerm { term, limits, raised, .. } => {
                self.term = *term;
                self.limits = Some(limits.clone());
                if *raised {
                    self.last_token += 1 << 32;
                }
                Out::Done
            }
            Command::OpenSession { nonce, session, .. } => self.open(*nonce, *session),
            Command::EndSession { session, term, .. } => self.end(*session, *term),
            Command::Tick => self.tick(),
            Command::FileFault { file, generation, .. } => match self.files.get_mut(file.as_str()) {
                Some(file) if file.generation == *generation && !file.fault => {
                    file.fault = true;
                    Out::Done
                }
                _ => Out::Void,
            },
            Command::Request(request) => self.request(request),
        }
    }

    fn limits(&self) -> &Limits {
        self.limits.as_ref().expect("a term comes first")
    }

    fn is_live(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|session| session.ended.is_none())
    }

    /// A lease ends at the very instant of its deadline.
    fn grant_lives(&self, grant: &MGrant, now: u64) -> bool {
        grant.deadline.is_none_or(|deadline| now < deadline) && self.is_live(grant.session)
    }

    fn wait_lives(&self, wait: &MWait, now: u64) -> bool {
        wait.deadline.is_none_or(|deadline| now < deadline) && self.is_live(wait.session)
    }

    fn open(&mut self, nonce: Nonce, id: SessionId) -> Out {
        if let Some((id, known)) = self.sessions.iter().find(|(_, session)| session.nonce == nonce) {
            return Out::Opened { session: *id, client: known.client };
        }
        if self.sessions.len() as u64 >= self.limits().sessions {
            return refused("limit", "sessions");
        }
        self.last_client += 1;
        let client = self.last_client;
        let session = MSession {
            client,
            nonce,
            ended: None,
            floor: 1,
            acks: false,
            replies: BTreeMap::new(),
            waits: BTreeMap::new(),
            losses: VecDeque::new(),
        };
        self.sessions.insert(id, session);
        Out::Opened { session: id, client }
    }

    /// Ends a session: its waits leave their lines, in the order of their owners, then its grants end.
    fn end(&mut self, id: SessionId, term: u64) -> Out {
        if term != self.term || !self.is_live(id) {
            return Out::Void;
        }
        self.sessions.get_mut(&id).expect("it is live").ended = Some(self.at);
        let mut waits: Vec<_> = self.waits.iter().filter(|wait| wait.session == id).cloned().collect();
        waits.sort_by(|a, b| a.owner.cmp(&b.owner));
        for wait in waits {
            self.leave_line(wait.op, Reason::SessionEnded);
        }
        let grants: Vec<_> = self.grants.iter().filter(|grant| grant.session == id).cloned().collect();
        for grant in grants {
            self.end_grant(grant.token);
        }
        Out::Done
    }

    /// What is due takes effect in the order of the deadlines: leases, then waits, then what is forgotten.
    fn tick(&mut self) -> Out {
        let mut cleaned = 0;
        loop {
            let leases = self.grants.iter().filter_map(|grant| Some((grant.deadline?, 0, grant.token)));
            let waits = self.waits.iter().filter_map(|wait| Some((wait.deadline?, 1, wait.op)));
            let gone = self
                .sessions
                .values()
                .filter_map(|session| Some((session.ended? + 60_000_000, 2, session.client)));
            let Some((due, what, number)) = leases.chain(waits).chain(gone).min() else { break };
            if due > self.at {
                break;
            }
            match what {
                0 => {
                    cleaned += 1;
                    self.expire(number);
                }
                1 => self.leave_line(number, Reason::Timeout),
                _ => self.sessions.retain(|_, session| session.client != number),
            }
        }
        Out::Cleaned { cleaned }
    }

    /// Where a request stands, in words.
    pub(crate) fn standing(&self, request: &Request) -> String {
        let Some(session) = self.sessions.get(&request.session) else { return "none".into() };
        if let Some((call, out)) = session.replies.get(&request.id) {
            return if same(call, &request.call) { format!("{out:?}") } else { "reused".into() };
        }
        if let Some(wait) = session.waits.get(&request.id) {
            return match (&wait.call, &wait.outcome) {
                (Some(call), _) if !same(call, &request.call) => "reused".into(),
                (_, Some(out)) => format!("{out:?}"),
                (_, None) => format!("in line since {}", wait.op),
            };
        }
        if request.id < session.floor { "stale".into() } else { "new".into() }
    }

    fn request(&mut self, request: &Request) -> Out {
        if !self.is_live(request.session) || self.standing(request) != "new" {
            return Out::Void;
        }
        let replies = self.limits().replies;
        let session = self.sessions.get_mut(&request.session).expect("it is live");
        for id in &request.got {
            if let Some(wait) = session.waits.get_mut(id).filter(|wait| wait.outcome.is_some()) {
                wait.got = true;
            }
        }
        if request.ack > 0 {
            session.acks = true;
            session.floor = session.floor.max(request.ack);
            session.replies.retain(|id, _| *id >= request.ack);
        }
        // A window that slid past a wait lets go of it with the next word about what has arrived.
        if request.ack > 0 || !request.got.is_empty() {
            let floor = session.floor;
            session.waits.retain(|id, wait| !wait.got || *id >= floor);
        }
        let out = self.call(request).unwrap_or_else(|refusal| refusal);
        if !matches!(out, Out::Waiting { .. }) {
            let session = self.sessions.get_mut(&request.session).expect("it is live");
            session.replies.insert(request.id, (request.call.clone(), out.clone()));
            if !session.acks && session.replies.len() as u64 > replies {
                while session.replies.len() as u64 > replies {
                    let (oldest, _) = session.replies.pop_first().expect("it has some");
                    session.floor = session.floor.max(oldest + 1);
                }
            }
        }
        out
    }

    fn call(&mut self, request: &Request) -> Said {
        let me = request.session;
        match &request.call {
            Call::Acquire { .. } => self.acquire(request),
            Call::CancelWait { wait } => self.cancel(me, *wait),
            Call::Release { token, holder } | Call::Abandon { token, holder } => {
                self.mine(me, *holder, *token)?;
                self.end_grant(*token);
                Ok(Out::Released { op: self.op })
            }
            Call::RenewLease { token, holder, lease_ms } => {
                self.mine(me, *holder, *token)?;
                let deadline = Some(self.at + lease_ms * 1_000);
                let grant = self.grants.iter_mut().find(|grant| grant.token == *token).expect("it is mine");
                (grant.lease_ms, grant.deadline) = (Some(*lease_ms), deadline);
                Ok(Out::Renewed { left_ms: *lease_ms })
            }
            Call::Convert { .. }
            | Call::HandOver { .. }
            | Call::TakeOver { .. }
            | Call::BreakLock { .. }
            | Call::AskRelease { .. }
            | Call::Transaction { .. } => panic!("the model does not know {:?} yet", request.call),
            Call::Set { key, value, if_version, token, holder, .. } => {
                self.may_write(me, *holder, *token, key)?;
                self.set(key, value, *if_version)
            }
            Call::Delete { key, if_version, token, holder } => {
                self.may_write(me, *holder, *token, key)?;
                self.has_version(key, *if_version)?;
                Ok(Out::Deleted { version: self.keys.remove(key.as_str()).map(|(_, version)| version) })
            }
            Call::AppendFile { file, data, token, holder } => {
                self.holds(me, *holder, *token, file)?;
                self.append(file, data)
            }
            Call::DeleteFile { file, token, holder } => {
                self.holds(me, *holder, *token, file)?;
                match self.files.remove(file.as_str()) {
                    Some(file) => Ok(Out::FileChanged { length: 0, generation: file.generation }),
                    None => Err(refused("not_found", "")),
                }
            }
            Call::RotateFile { file, to, token, holder } => {
                self.holds(me, *holder, *token, file)?;
                if self.holder_of(to).is_some_and(|grant| grant.session != holder.unwrap_or(me)) {
                    return Err(refused("guarded", ""));
                }
                self.rotate(file, to)
            }
            Call::RepairFile { file, generation, length, checksum, token, holder } => {
                self.holds(me, *holder, *token, file)?;
                self.repair(file, *generation, *length, *checksum)
            }
        }
    }

    fn acquire(&mut self, request: &Request) -> Said {
        let Call::Acquire { asks, wait, owner, terms } = &request.call else { panic!("no acquire") };
        let lease_ms = &terms.lease_ms;
        let key = asks[0].key.to_string();
        let me = request.session;
        if let Some(wait) = self.waits.iter().find(|wait| wait.session == me && wait.owner == *owner) {
            if self.wait_lives(wait, self.at) {
                return Err(refused("already_held", format!("wait {}", wait.id)));
            }
            self.leave_line(wait.op, Reason::Timeout);
        }
        self.sweep(&key);
        if let Some(grant) = self.holder_of(&key).filter(|grant| grant.session == me && grant.owner == *owner)
        {
            return Ok(Out::Granted {
                token: grant.token,
                key,
                op: grant.op,
                lease_ms: grant.lease_ms,
                again: true,
            });
        }
        let in_line = self.waits.iter().filter(|wait| wait.key == key).count() as u64;
        if self.holder_of(&key).is_none() && in_line == 0 {
            if self.grants.len() as u64 >= self.limits().grants {
                return Err(refused("limit", "grants"));
            }
            return Ok(self.grant(me, owner, &key, *lease_ms));
        }
        let held_by = self.held_by(&key);
        let deadline = match wait {
            Patience::Try => {
                return Ok(Out::NotGranted { reason: Reason::Held, position: in_line + 1, held_by });
            }
            Patience::Millis(ms) => Some(self.at + ms * 1_000),
            Patience::Forever => None,
        };
        if self.waits.len() as u64 >= self.limits().waits {
            return Err(refused("limit", "waits"));
        }
        if in_line >= self.limits().lock_waits {
            return Err(refused("limit", "lock_waits"));
        }
        self.make_room_for_a_wait(me)?;
        let op = self.op;
        let answer = MAnswer { call: Some(request.call.clone()), outcome: None, op, got: false };
        self.sessions.get_mut(&me).expect("it asks").waits.insert(request.id, answer);
        self.waits.push(MWait {
            op,
            session: me,
            id: request.id,
            owner: owner.clone(),
            key,
            lease_ms: *lease_ms,
            deadline,
        });
        Ok(Out::Waiting { position: in_line + 1, held_by })
    }

    /// Whoever never sends `ack` gets room by letting go of the oldest answered wait.
    fn make_room_for_a_wait(&mut self, me: SessionId) -> Result<(), Out> {
        let max = self.limits().session_waits;
        let session = self.sessions.get_mut(&me).expect("it asks");
        if (session.waits.len() as u64) < max {
            return Ok(());
        }
        let oldest = session.waits.iter().find(|(_, wait)| wait.outcome.is_some()).map(|(id, _)| *id);
        match oldest {
            Some(id) if !session.acks => {
                session.waits.remove(&id);
                session.floor = session.floor.max(id + 1);
                Ok(())
            }
            _ => Err(refused("limit", "session_waits")),
        }
    }

    fn cancel(&mut self, me: SessionId, id: u64) -> Said {
        let session = &self.sessions[&me];
        let outcome = match (session.replies.get(&id), session.waits.get(&id)) {
            (Some((_, out)), _) => Some(out.clone()),
            (None, Some(wait)) => match &wait.outcome {
                Some(out) => Some(out.clone()),
                None => {
                    let op = wait.op;
                    self.leave_line(op, Reason::Cancelled);
                    return Ok(Out::Cancelled);
                }
            },
            (None, None) if id < session.floor => return Err(refused("stale_request", "")),
            (None, None) => None,
        };
        match outcome {
            Some(Out::Granted { .. }) => Ok(outcome.expect("it is one")),
            Some(Out::NotGranted { .. } | Out::Refused(..)) => Ok(Out::Cancelled),
            Some(_) => Err(refused("invalid_params", "")),
            None => {
                self.make_room_for_a_wait(me)?;
                let session = self.sessions.get_mut(&me).expect("it asks");
                let answer = MAnswer { call: None, outcome: Some(cancelled()), op: 0, got: false };
                session.waits.insert(id, answer);
                Ok(Out::Cancelled)
            }
        }
    }

    fn grant(&mut self, session: SessionId, owner: &str, key: &str, lease_ms: Option<u64>) -> Out {
        self.last_token += 1;
        let (token, op) = (self.last_token, self.op);
        self.grants.push(MGrant {
            token,
            session,
            owner: owner.into(),
            key: key.into(),
            op,
            lease_ms,
            deadline: lease_ms.map(|ms| self.at + ms * 1_000),
        });
        Out::Granted { token, key: key.into(), op, lease_ms, again: false }
    }

    /// The live holder of a lock.
    fn holder_of(&self, key: &str) -> Option<&MGrant> {
        self.grants.iter().find(|grant| grant.key == key && self.grant_lives(grant, self.at))
    }

    fn held_by(&self, key: &str) -> Vec<u64> {
        self.holder_of(key).map(|grant| grant.token).into_iter().collect()
    }

    fn end_grant(&mut self, token: u64) {
        let index = self.grants.iter().position(|grant| grant.token == token).expect("a grant ends once");
        let grant = self.grants.remove(index);
        self.sweep(&grant.key);
    }

    /// A grant whose own lease ran out ends, and its client is told.
    fn expire(&mut self, token: u64) {
        let grant = self.grants.iter().find(|grant| grant.token == token).expect("a grant ends once");
        let session = self.sessions.get_mut(&grant.session).expect("a grant has a session");
        if session.ended.is_none() {
            session.losses.push_back((self.op, token));
            if session.losses.len() > 64 {
                session.losses.pop_front();
            }
        }
        self.end_grant(token);
    }

    /// Takes a lock from a holder that is gone, and the dead from the head of its line; the first who lives gets it.
    fn sweep(&mut self, key: &str) {
        let gone = self.grants.iter().find(|grant| grant.key == key && !self.grant_lives(grant, self.at));
        if let Some(token) = gone.map(|grant| grant.token) {
            return self.expire(token);
        }
        loop {
            let Some(head) = self.waits.iter().find(|wait| wait.key == key).cloned() else { return };
            if !self.wait_lives(&head, self.at) {
                self.leave_line(head.op, Reason::Timeout);
                continue;
            }
            if self.grants.iter().any(|grant| grant.key == key) {
                return;
            }
            self.waits.retain(|wait| wait.op != head.op);
            let out = self.grant(head.session, &head.owner, key, head.lease_ms);
            self.settle(&head, out);
        }
    }

    fn leave_line(&mut self, op: u64, reason: Reason) {
        let index = self.waits.iter().position(|wait| wait.op == op).expect("a wait leaves its line once");
        let key = self.waits[index].key.clone();
        let position = self.waits[..=index].iter().filter(|wait| wait.key == key).count() as u64;
        let wait = self.waits.remove(index);
        let out = match reason {
            Reason::Cancelled => cancelled(),
            reason => Out::NotGranted { reason, position, held_by: self.held_by(&key) },
        };
        self.settle(&wait, out);
    }

    fn settle(&mut self, wait: &MWait, out: Out) {
        let session = self.sessions.get_mut(&wait.session).expect("a wait has a session");
        let answer = session.waits.get_mut(&wait.id).expect("its session remembers it");
        assert!(answer.outcome.is_none(), "a wait is answered once");
        answer.outcome = Some(out);
        self.settled.push((wait.session, wait.id));
    }

    /// A token acts for its own session, or for whoever names that session as holder.
    fn mine(&self, me: SessionId, holder: Option<SessionId>, token: u64) -> Result<&MGrant, Out> {
        let whose = holder.unwrap_or(me);
        let grant = self.grants.iter().find(|grant| grant.token == token && grant.session == whose);
        grant.filter(|grant| self.grant_lives(grant, self.at)).ok_or_else(|| refused("not_holder", ""))
    }

    fn holds(&self, me: SessionId, holder: Option<SessionId>, token: u64, key: &str) -> Result<(), Out> {
        match self.mine(me, holder, token)?.key == key {
            true => Ok(()),
            false => Err(refused("not_holder", "")),
        }
    }

    fn may_write(
        &self,
        me: SessionId,
        holder: Option<SessionId>,
        token: Option<u64>,
        key: &str,
    ) -> Result<(), Out> {
        if let Some(token) = token {
            self.mine(me, holder, token)?;
        }
        match (self.holder_of(key), token) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(refused("guarded", "")),
            (Some(grant), Some(token)) if grant.token == token => Ok(()),
            (Some(_), Some(_)) => Err(refused("not_holder", "")),
        }
    }

    fn has_version(&self, key: &str, if_version: Option<u64>) -> Result<(), Out> {
        let version = self.keys.get(key).map_or(0, |(_, version)| *version);
        match if_version {
            Some(asked) if asked != version => Err(refused("version_mismatch", version.to_string())),
            _ => Ok(()),
        }
    }

    fn set(&mut self, key: &str, value: &str, if_version: Option<u64>) -> Said {
        if value.len() as u64 > self.limits().value_bytes {
            return Err(refused("too_large", "value_bytes"));
        }
        self.has_version(key, if_version)?;
        if !self.keys.contains_key(key) && self.keys.len() as u64 >= self.limits().keys {
            return Err(refused("limit", "keys"));
        }
        let others = self.keys.iter().filter(|(name, _)| name.as_str() != key);
        let bytes: usize = others.map(|(name, (value, _))| name.len() + value.len()).sum();
        if (bytes + key.len() + value.len()) as u64 > self.limits().key_bytes {
            return Err(refused("limit", "key_bytes"));
        }
        self.keys.insert(key.into(), (value.into(), self.op));
        Ok(Out::Set { version: self.op })
    }

    fn may_create(&self, name: &str) -> Result<(), Out> {
        let clash = |other: &String| {
            other.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'))
                || name.strip_prefix(other.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        match self.files.keys().any(clash) {
            true => Err(refused("bad_name", "")),
            false => Ok(()),
        }
    }

    fn append(&mut self, name: &str, data: &[u8]) -> Said {
        if data.len() as u64 > self.limits().append_bytes {
            return Err(refused("too_large", "append_bytes"));
        }
        match self.files.get(name) {
            Some(file) if file.fault => return Err(refused("file_fault", "")),
            Some(_) => {}
            None => {
                self.may_create(name)?;
                if self.files.len() as u64 >= self.limits().files {
                    return Err(refused("limit", "files"));
                }
            }
        }
        let offset = self.files.get(name).map_or(0, |file| file.bytes.len()) as u64;
        let length = offset + data.len() as u64;
        if length > self.limits().file_bytes {
            return Err(refused("limit", "file_bytes"));
        }
        let generation = self.op;
        let file =
            self.files.entry(name.into()).or_insert(MFile { generation, bytes: Vec::new(), fault: false });
        file.bytes.extend_from_slice(data);
        Ok(Out::Appended { offset, length })
    }

    fn rotate(&mut self, name: &str, to: &str) -> Said {
        match self.files.get(name) {
            None => return Err(refused("not_found", "")),
            Some(file) if file.fault => return Err(refused("file_fault", "")),
            Some(_) if self.files.contains_key(to) => return Err(refused("invalid_params", "")),
            Some(_) => self.may_create(to)?,
        }
        let file = self.files.remove(name).expect("it was found");
        let generation = file.generation;
        self.files.insert(to.into(), file);
        Ok(Out::FileChanged { length: 0, generation })
    }

    fn repair(&mut self, name: &str, generation: u64, length: u64, checksum: u32) -> Said {
        let max = self.limits().file_bytes;
        let file = self.files.get_mut(name).ok_or_else(|| refused("not_found", ""))?;
        if !file.fault {
            return Ok(Out::FileChanged { length: file.bytes.len() as u64, generation: file.generation });
        }
        if file.generation != generation {
            return Err(refused("file_fault", ""));
        }
        if length > max {
            return Err(refused("limit", "file_bytes"));
        }
        file.bytes = Model::found_on_disk(length);
        assert_eq!(crc32c(&file.bytes), checksum, "the test finds on disk what it says");
        file.fault = false;
        Ok(Out::FileChanged { length, generation })
    }

    /// The bytes that a repair of that length finds.
    pub(crate) fn found_on_disk(length: u64) -> Vec<u8> {
        (0..length).map(|index| index as u8 ^ 0x55).collect()
    }

    pub(crate) fn grants(&self) -> &[MGrant] {
        &self.grants
    }

    pub(crate) fn live_grants(&self, now: u64) -> Vec<(u64, String, String)> {
        let live = self.grants.iter().filter(|grant| self.grant_lives(grant, now));
        live.map(|grant| (grant.token, grant.key.clone(), grant.owner.clone())).collect()
    }

    pub(crate) fn live_line(&self, key: &str, now: u64) -> Vec<u64> {
        let line = self.waits.iter().filter(|wait| wait.key == key && self.wait_lives(wait, now));
        line.map(|wait| wait.op).collect()
    }

    pub(crate) fn keys(&self) -> Vec<(String, String, u64)> {
        self.keys.iter().map(|(name, (value, version))| (name.clone(), value.clone(), *version)).collect()
    }

    pub(crate) fn files(&self) -> Vec<(String, u64, u64, u32, bool)> {
        let files = self.files.iter();
        files
            .map(|(name, file)| {
                (name.clone(), file.generation, file.bytes.len() as u64, crc32c(&file.bytes), file.fault)
            })
            .collect()
    }

    /// How many there are of what can be counted from outside: nothing is left over of what is gone.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 8] {
        let mut locks: Vec<_> = self.grants.iter().map(|grant| &grant.key).collect();
        locks.extend(self.waits.iter().map(|wait| &wait.key));
        locks.sort();
        locks.dedup();
        let key_bytes: usize = self.keys.iter().map(|(name, (value, _))| name.len() + value.len()).sum();
        [
            ("sessions", self.sessions.len() as u64),
            ("grants", self.grants.len() as u64),
            ("waits", self.waits.len() as u64),
            ("locks", locks.len() as u64),
            ("keys", self.keys.len() as u64),
            ("key_bytes", key_bytes as u64),
            ("files", self.files.len() as u64),
            ("leaving", 0),
        ]
    }
}

/// Whether two calls ask the same. What the server found on the disk for a repair is not asked by the client.
fn same(one: &Call, other: &Call) -> bool {
    match (one, other) {
        (
            Call::RepairFile { file, token, holder, .. },
            Call::RepairFile { file: other_file, token: other_token, holder: other_holder, .. },
        ) => (file, token, holder) == (other_file, other_token, other_holder),
        (one, other) => one == other,
    }
}

fn cancelled() -> Out {
    Out::NotGranted { reason: Reason::Cancelled, position: 0, held_by: Vec::new() }
}
