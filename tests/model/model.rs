//! What the state machine promises, as plainly as it can be written: lists, searched from the front, and every question
//! asked of them anew. Nothing is counted ahead and nothing is remembered that can be found out.
//!
//! Three things are the state's own choice, and the model takes them from what it [saw](Seen), after it has made sure that
//! the choice is a right one: in which order those who are served by the same command get their tokens, which dead grants
//! and waits a command cleans up beside those it must, and which cycle of owners a deadlock lists.
//!
//! Nothing is swept in portions here: the runs are so small that one command of the state sweeps all there is.

use super::keys::{MFile, MKey};
use super::lines::Lines;
use std::collections::{BTreeMap, VecDeque};
use tenure::command::{Ask, Call, Command, EndReason, Entry, Request};
use tenure::identity::{Nonce, SessionId};
use tenure::kind::{CycleStep, Detail};
use tenure::limits::Limits;
use tenure::outcome::{Asked, Blocked, Effect, LossReason, Outcome, Reason};
use tenure::state::{GrantEnd, Standing, State, What};
use tenure::time::Time;

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
        asks: Vec<Ask>,
        op: u64,
        lease_ms: Option<u64>,
        again: bool,
        lease_left_ms: Option<u64>,
        hold_left_ms: Option<u64>,
        atomic: bool,
    },
    Waiting(Why),
    NotGranted(Why),
    Cancelled,
    Released {
        op: u64,
        writes: u64,
    },
    Renewed {
        left_ms: u64,
    },
    Set {
        version: u64,
        staged: bool,
    },
    Deleted {
        version: Option<u64>,
        staged: bool,
    },
    Appended {
        offset: u64,
        length: u64,
        staged: bool,
    },
    FileChanged {
        length: u64,
        generation: u64,
    },
    Cleaned,
    Offered {
        client: Option<u64>,
    },
    Broken {
        op: u64,
    },
    ReleaseAsked {
        deadline_ms: Option<u64>,
    },
    Applied {
        version: u64,
        staged: bool,
    },
    /// The kind, and what goes with it.
    Refused(String, String),
}

/// Why a request is not granted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Why {
    pub(crate) reason: Reason,
    pub(crate) key: Option<String>,
    pub(crate) position: u64,
    pub(crate) queue_total: u64,
    pub(crate) held_by: Vec<u64>,
}

impl Why {
    pub(crate) fn only(reason: Reason) -> Why {
        Why { reason, key: None, position: 0, queue_total: 0, held_by: Vec::new() }
    }

    /// Who stood in the way when a wait was given up is told as it was at that moment, in the middle of a command; it is
    /// not promised.
    pub(crate) fn of(blocked: &Blocked) -> Why {
        match blocked.reason {
            Reason::Held | Reason::Queued | Reason::Conversion | Reason::LockDelay => Why {
                reason: blocked.reason,
                key: blocked.key.as_ref().map(|key| key.to_string()),
                position: blocked.position,
                queue_total: blocked.queue_total,
                held_by: blocked.holders.iter().map(|holder| holder.token).collect(),
            },
            reason => Why::only(reason),
        }
    }
}

impl Out {
    /// What was said, in a word or two.
    pub(crate) fn word(&self) -> String {
        match self {
            Out::Refused(kind, detail) if kind == "limit" || kind == "too_large" => {
                format!("{kind} {detail}")
            }
            Out::Refused(kind, detail) if detail.starts_with("slots") => format!("{kind} slots"),
            Out::Refused(kind, _) => kind.clone(),
            Out::NotGranted(why) => format!("not granted, {:?}", why.reason),
            Out::Waiting(why) => format!("waiting, {:?}", why.reason),
            Out::Granted { again: true, .. } => "granted again".into(),
            Out::Set { staged: true, .. } => "set, staged".into(),
            Out::Deleted { staged: true, .. } => "deleted, staged".into(),
            Out::Appended { staged: true, .. } => "appended, staged".into(),
            Out::Applied { staged: true, .. } => "applied, staged".into(),
            Out::Released { writes: 1.., .. } => "released with writes".into(),
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
        Outcome::Granted { token, asks, op, lease_ms, again, lease_left_ms, hold_left_ms, atomic } => {
            let asks = asks.to_vec();
            Out::Granted { token, asks, op, lease_ms, again, lease_left_ms, hold_left_ms, atomic }
        }
        Outcome::Waiting(blocked) => Out::Waiting(Why::of(&blocked)),
        Outcome::NotGranted(blocked) => Out::NotGranted(Why::of(&blocked)),
        Outcome::Cancelled => Out::Cancelled,
        Outcome::Released { op, writes } => Out::Released { op, writes },
        Outcome::Renewed { lease_left_ms } => Out::Renewed { left_ms: lease_left_ms },
        Outcome::Set { version, staged } => Out::Set { version, staged },
        Outcome::Deleted { version, staged } => Out::Deleted { version, staged },
        Outcome::Appended { offset, length, staged } => Out::Appended { offset, length, staged },
        Outcome::FileChanged { length, generation } => Out::FileChanged { length, generation },
        Outcome::Cleaned { .. } => Out::Cleaned,
        Outcome::Offered { client } => Out::Offered { client },
        Outcome::Broken { op } => Out::Broken { op },
        Outcome::ReleaseAsked { deadline_ms } => Out::ReleaseAsked { deadline_ms },
        Outcome::Applied { version, staged } => Out::Applied { version, staged },
        Outcome::Refused(refusal) => Out::Refused(
            refusal.kind.as_str().into(),
            match refusal.detail {
                Detail::Limit { limit, .. } => limit,
                Detail::Version { version } => version.to_string(),
                Detail::VersionOf { key, version } => format!("{key} {version}"),
                Detail::Waits { wait } => format!("wait {wait}"),
                Detail::Held { tokens } => format!("tokens {tokens:?}"),
                Detail::Slots { slots } => format!("slots {slots}"),
                Detail::None | Detail::Cycle { .. } => String::new(),
                other => format!("{other:?}"),
            },
        ),
    }
}

/// What the state said and did, as far as it had a choice.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The token of the grant that the command itself was answered with.
    pub(crate) direct: Option<u64>,
    /// Waits that were granted, with their tokens.
    pub(crate) granted: BTreeMap<(SessionId, u64), u64>,
    /// Waits that were given up because of a deadline.
    pub(crate) given_up: Vec<(SessionId, u64)>,
    /// Conversions whose grants have ended.
    pub(crate) unconverted: Vec<(SessionId, u64)>,
    /// The wait that was cancelled.
    pub(crate) cancelled: Option<(SessionId, u64)>,
    /// Waits that were answered, and whose answer is gone already.
    pub(crate) forgotten: Vec<(SessionId, u64)>,
    /// Grants that sessions lost.
    pub(crate) lost: Vec<(u64, LossReason)>,
    /// The cycle of a deadlock, and how long it is in all.
    pub(crate) cycle: Option<(Vec<CycleStep>, u64)>,
}

impl Seen {
    pub(crate) fn new(state: &State, outcome: &Outcome, effects: &[Effect]) -> Seen {
        let mut seen = Seen::default();
        match outcome {
            Outcome::Granted { token, again: false, .. } => seen.direct = Some(*token),
            Outcome::Refused(refusal) => {
                if let Detail::Cycle { cycle, cycle_total } = &refusal.detail {
                    seen.cycle = Some((cycle.clone(), *cycle_total));
                }
            }
            _ => {}
        }
        for effect in effects {
            match effect {
                Effect::Settled { session, id } => {
                    let standing = state.session(*session).map(|session| session.wait_standing(*id));
                    match standing {
                        Some(Standing::Kept(Outcome::Granted { token, .. })) => {
                            seen.granted.insert((*session, *id), *token);
                        }
                        Some(Standing::Kept(Outcome::NotGranted(blocked)))
                            if blocked.reason == Reason::Timeout =>
                        {
                            seen.given_up.push((*session, *id));
                        }
                        Some(Standing::Kept(Outcome::NotGranted(blocked)))
                            if blocked.reason == Reason::GrantEnded =>
                        {
                            seen.unconverted.push((*session, *id));
                        }
                        Some(Standing::Kept(Outcome::NotGranted(blocked)))
                            if blocked.reason == Reason::Cancelled =>
                        {
                            seen.cancelled = Some((*session, *id));
                        }
                        // Answered, and at once let go of to make room for the next wait of the session.
                        Some(Standing::New | Standing::Stale) => seen.forgotten.push((*session, *id)),
                        _ => {}
                    }
                }
                Effect::Lost { loss, .. } => seen.lost.push((loss.token, loss.reason)),
                _ => {}
            }
        }
        seen
    }
}

#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) op: u64,
    pub(crate) at: u64,
    /// What the clock showed when the command was given: what it begins is counted from there.
    pub(crate) clock: u64,
    term: u64,
    limits: Option<Limits>,
    pub(crate) last_token: u64,
    last_client: u64,
    pub(crate) sessions: BTreeMap<SessionId, MSession>,
    pub(crate) lines: Lines,
    pub(crate) keys: BTreeMap<String, MKey>,
    pub(crate) files: BTreeMap<String, MFile>,
    /// What happened, in the order of the commands, the last of it.
    pub(crate) events: VecDeque<(u64, String, What)>,
    /// Waits that the last command answered.
    pub(crate) settled: Vec<(SessionId, u64)>,
    /// Tokens that it gave.
    pub(crate) new_tokens: Vec<u64>,
    /// What the state chose in it.
    pub(crate) seen: Seen,
    /// What is wrong with that, or with anything else that must always hold.
    pub(crate) faults: Vec<String>,
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
    pub(crate) losses: VecDeque<MLoss>,
}

/// The command, the token, why, the locks, and what was said of it.
pub(crate) type MLoss = (u64, u64, LossReason, Vec<String>, String);

/// A wait as its session remembers it.
#[derive(Debug)]
pub(crate) struct MAnswer {
    /// None for an id that was cancelled before it was seen.
    call: Option<Call>,
    pub(crate) outcome: Option<Out>,
    pub(crate) op: u64,
    got: bool,
}

pub(crate) type Said = Result<Out, Out>;

pub(crate) fn refused(kind: &str, detail: impl Into<String>) -> Out {
    Out::Refused(kind.into(), detail.into())
}

impl Model {
    pub(crate) fn apply(&mut self, op: u64, entry: &Entry, seen: Seen) -> Out {
        let command = &entry.command;
        (self.op, self.seen) = (op, seen);
        (self.at, self.clock) = (entry.at.as_micros(), entry.clock().as_micros());
        self.settled.clear();
        self.let_keys_go();
        let out = match command {
            Command::NewTerm { term, limits, raised, .. } => {
                self.term = *term;
                self.limits = Some(limits.clone());
                if *raised {
                    self.last_token += 1 << 32;
                    self.events.clear();
                }
                Out::Done
            }
            Command::OpenSession { nonce, session, .. } => self.open(*nonce, *session),
            Command::EndSession { session, term, reason } => {
                self.clean_up();
                self.end(*session, *term, *reason)
            }
            Command::Tick => {
                self.clean_up();
                self.tick()
            }
            Command::FileFault { file: name, generation, reason } => {
                match self.files.get_mut(name.as_str()) {
                    Some(file) if file.generation == *generation && !file.fault => {
                        file.fault = true;
                        let (generation, reason) = (*generation, reason.as_str().into());
                        self.happened(name, What::FileFault { generation, reason });
                        Out::Done
                    }
                    _ => Out::Void,
                }
            }
            Command::Request(request) => self.request(request),
        };
        self.serve();
        self.let_keys_go();
        self.invariants();
        self.take_tokens();
        out
    }

    pub(crate) fn happened(&mut self, name: &str, what: What) {
        self.events.push_back((self.op, name.to_owned(), what));
        if self.events.len() > 500 {
            self.events.pop_front();
        }
    }

    /// Tokens rise by one, from command to command and in each.
    fn take_tokens(&mut self) {
        let mut tokens = std::mem::take(&mut self.new_tokens);
        tokens.sort_unstable();
        let expected: Vec<u64> = (self.last_token + 1..).take(tokens.len()).collect();
        if tokens != expected {
            self.faults.push(format!("tokens {tokens:?} were given, and not {expected:?}"));
        }
        self.last_token += tokens.len() as u64;
    }

    pub(crate) fn limits(&self) -> &Limits {
        self.limits.as_ref().expect("a term comes first")
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

    /// Ends a session: its waits leave their lines, and its grants end.
    fn end(&mut self, id: SessionId, term: u64, reason: EndReason) -> Out {
        if term != self.term || !self.is_live(id) {
            return Out::Void;
        }
        self.sessions.get_mut(&id).expect("it is live").ended = Some(self.clock);
        while let Some(wait) = self.lines.waits.iter().find(|wait| wait.session == id) {
            self.leave_line(wait.op, Reason::SessionEnded);
        }
        while let Some(grant) = self.lines.grants.iter().find(|grant| grant.session == id) {
            self.end_grant(grant.token, Some(reason.into()));
        }
        self.drop_bound_keys(self.sessions[&id].client);
        Out::Done
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
        self.clean_up();
        let out = self.call(request).unwrap_or_else(|refusal| refusal);
        if !matches!(out, Out::Waiting(_)) {
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
            Call::Convert { .. } => self.convert(request),
            Call::CancelWait { wait } => self.cancel(me, *wait),
            Call::Release { token, holder } => {
                self.mine(me, *holder, *token)?;
                let writes = self.apply_section(*token)?;
                self.end_grant(*token, None);
                Ok(Out::Released { op: self.op, writes })
            }
            Call::Abandon { token, holder } => {
                self.mine(me, *holder, *token)?;
                self.end_grant(*token, Some(GrantEnd::Abandoned));
                Ok(Out::Released { op: self.op, writes: 0 })
            }
            Call::RenewLease { token, holder, lease_ms } => {
                self.mine(me, *holder, *token)?;
                let (clock, until) = (self.clock, self.clock + lease_ms * 1_000);
                let grant = self.grant_mut(*token);
                (grant.terms.lease_ms, grant.lease_until) = (Some(*lease_ms), Some(until));
                let hold_left = grant.hold_until.map(|until| until.saturating_sub(clock).div_ceil(1_000));
                Ok(Out::Renewed { left_ms: hold_left.map_or(*lease_ms, |left| left.min(*lease_ms)) })
            }
            Call::HandOver { token, holder, client } => {
                self.mine(me, *holder, *token)?;
                let live = |number: u64| {
                    self.sessions.values().any(|session| session.client == number && session.ended.is_none())
                };
                if client.is_some_and(|number| !live(number)) {
                    return Err(refused("not_found", ""));
                }
                self.grant_mut(*token).offered = client.map(|client| (client, self.op));
                Ok(Out::Offered { client: *client })
            }
            Call::TakeOver { token, holder, owner, label } => {
                self.take_over(me, *token, *holder, owner, label)
            }
            Call::BreakLock { token, reason } => {
                self.live_grant(*token)?;
                self.lose(*token, LossReason::Broken, reason);
                Ok(Out::Broken { op: self.op })
            }
            Call::AskRelease { token, reason, deadline_ms } => {
                self.live_grant(*token)?;
                let client = self.sessions[&me].client;
                let deadline = deadline_ms.map(|ms| Time::from_micros(self.clock + ms * 1_000));
                let asked = Asked { client, reason: reason.as_str().into(), deadline, op: self.op };
                self.grant_mut(*token).asked = Some(asked);
                Ok(Out::ReleaseAsked { deadline_ms: *deadline_ms })
            }
            Call::Transaction { .. }
            | Call::Set { .. }
            | Call::Delete { .. }
            | Call::AppendFile { .. }
            | Call::DeleteFile { .. }
            | Call::RotateFile { .. }
            | Call::RepairFile { .. } => self.write(me, &request.call),
        }
    }

    fn live_grant(&self, token: u64) -> Result<(), Out> {
        let found = self.lines.grants.iter().find(|grant| grant.token == token);
        match found.is_some_and(|grant| self.grant_lives(grant, self.at)) {
            true => Ok(()),
            false => Err(refused("not_found", "")),
        }
    }

    /// A grant goes on as another session's, under a new token: offered to it, or its holder's id is known to it.
    fn take_over(
        &mut self,
        me: SessionId,
        token: u64,
        holder: Option<SessionId>,
        owner: &str,
        label: &str,
    ) -> Said {
        self.live_grant(token).map_err(|_| refused("not_holder", ""))?;
        let grant = self.grant_mut(token).clone();
        let may = match holder {
            Some(holder) => holder == grant.session,
            None => grant.offered.is_some_and(|(client, _)| client == self.sessions[&me].client),
        };
        if !may {
            return Err(refused("not_holder", ""));
        }
        self.no_second_wait(me, owner)?;
        let tokens: Vec<u64> = self.held_of(me, owner, &grant.asks).iter().map(|grant| grant.token).collect();
        if !tokens.is_empty() {
            return Err(refused("already_held", format!("tokens {tokens:?}")));
        }
        let conversion =
            self.lines.waits.iter().find(|wait| wait.converts == Some(token)).map(|wait| wait.op);
        if let Some(op) = conversion {
            self.leave_line(op, Reason::GrantEnded);
        }
        self.is_lost(token, LossReason::TakenOver, "");
        let (before, after) = (self.sessions[&grant.session].client, self.sessions[&me].client);
        let reason = LossReason::TakenOver.into();
        for Ask { key, .. } in &grant.asks {
            self.happened(key, What::LockLost { token, client: before, reason });
        }
        let new = self.retoken(token, self.seen.direct);
        for Ask { key, mode } in &grant.asks {
            self.happened(key, What::LockGranted { token: new, client: after, mode: *mode });
        }
        let clock = self.clock;
        let grant = self.grant_mut(new);
        (grant.session, grant.owner, grant.terms.label) = (me, owner.into(), label.into());
        grant.lease_until = grant.terms.lease_ms.map(|ms| clock + ms * 1_000);
        let mut out = self.converted(new, false);
        if let Out::Granted { atomic, .. } = &mut out {
            *atomic = self.grant_mut(new).terms.atomic;
        }
        Ok(out)
    }

    pub(crate) fn begins_to_wait(&mut self, request: &Request) {
        let answer = MAnswer { call: Some(request.call.clone()), outcome: None, op: self.op, got: false };
        self.sessions.get_mut(&request.session).expect("it asks").waits.insert(request.id, answer);
    }

    /// Whoever never sends `ack` gets room by letting go of the oldest answered wait.
    pub(crate) fn make_room_for_a_wait(&mut self, me: SessionId) -> Result<(), Out> {
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
            Some(Out::NotGranted(_) | Out::Refused(..)) => Ok(Out::Cancelled),
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

    pub(crate) fn settle(&mut self, wait: &super::lines::MWait, out: Out) {
        let session = self.sessions.get_mut(&wait.session).expect("a wait has a session");
        let answer = session.waits.get_mut(&wait.id).expect("its session remembers it");
        assert!(answer.outcome.is_none(), "a wait is answered once");
        answer.outcome = Some(out);
        self.settled.push((wait.session, wait.id));
    }

    /// The live grants at `now`.
    pub(crate) fn live_grants(&self, now: u64) -> Vec<(u64, Vec<Ask>, String)> {
        let live = self.lines.grants.iter().filter(|grant| self.grant_lives(grant, now));
        live.map(|grant| (grant.token, grant.asks.clone(), grant.owner.clone())).collect()
    }

    /// The live waits of a lock at `now`: conversions first.
    pub(crate) fn live_line(&self, key: &str, now: u64) -> Vec<u64> {
        let line =
            self.lines.waits.iter().filter(|wait| wait.mode(key).is_some() && self.wait_lives(wait, now));
        let (converting, plain): (Vec<_>, Vec<_>) = line.partition(|wait| wait.converts.is_some());
        converting.into_iter().chain(plain).map(|wait| wait.op).collect()
    }

    /// How many there are of what can be counted from outside: nothing is left over of what is gone.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 6] {
        [
            ("sessions", self.sessions.len() as u64),
            ("grants", self.lines.grants.len() as u64),
            ("waits", self.lines.waits.len() as u64),
            ("files", self.files.len() as u64),
            ("staged_bytes", self.staged_bytes()),
            ("leaving", 0),
        ]
    }

    /// Locks that somebody holds or waits for, or that are closed: those that are past their lock-delay, and were not
    /// touched since, left out or not.
    pub(crate) fn locks(&self, past: bool) -> Vec<String> {
        let closed = self.lines.closed.iter().filter(|(_, until)| past || **until > self.at);
        let mut locks: Vec<String> = closed.map(|(key, _)| key.clone()).collect();
        locks.extend(self.lines.grants.iter().flat_map(|grant| &grant.asks).map(|ask| ask.key.to_string()));
        locks.extend(self.lines.waits.iter().flat_map(|wait| &wait.asks).map(|ask| ask.key.to_string()));
        locks.sort();
        locks.dedup();
        locks
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
    Out::NotGranted(Why::only(Reason::Cancelled))
}
