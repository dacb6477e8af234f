//! Admission: what a request is (done, in line, in flight, stale, reused, to be refused for now, or new), and whether the log
//! may have it.

use super::assembly::Place;
use super::counts::Count;
use super::{
    Asked, BUSY_RETRY_MS, FILE_BYTES_PENDING_MAX, FileTag, FileWork, Flight, GATHERED_BYTES_MAX,
    GATHERED_MAX, InFlight, Node, Tag,
};
use crate::command::{Call, Command, EndReason, Patience, Request};
use crate::event;
use crate::identity::SessionId;
use crate::kind::{Detail, Kind, Refusal};
use crate::log::Room;
use crate::outcome::Outcome;
use crate::proof::is_loopback;
use crate::state::{Standing, Window};
use crate::time::Time;
use crate::wire::{self, Element, Method, encode_error, encode_outcome, encode_result};
use std::net::SocketAddr;

/// Replies that a full window still takes for what the oldest open request of a session hangs on: its own, and that of what
/// takes it back.
const WINDOW_RESERVE: u64 = 2;

impl Node {
    pub(super) fn handle_element(
        &mut self,
        now: Time,
        from: SocketAddr,
        place: Place,
        request: Result<wire::Request, Refusal>,
        refusal: Option<&Refusal>,
        alone: bool,
    ) {
        let request = match request {
            Ok(request) => request,
            Err(refusal) => {
                self.counts.count(Count::Refused);
                log::debug!(target: event::TARGET, "{from} refused, {}", refusal.kind.as_str());
                return self.resolve_with(place, |out, id| encode_error(out, id, &refusal));
            }
        };
        let session = request.session;
        log::trace!(
            target: event::TARGET,
            "{from} {}",
            event::requested(&self.state, session, &request.method)
        );
        match request.method {
            Method::Logged { call: Call::BreakLock { .. } | Call::AskRelease { .. }, .. }
            | Method::KillSession { .. }
            | Method::ListSessions { .. }
                if !is_loopback(from) =>
            {
                let text = "this method is for operators: send it from the server's own machine";
                let refusal = Refusal::new(Kind::Forbidden, text);
                self.resolve_with(place, |out, id| encode_error(out, id, &refusal));
            }
            Method::Logged { id, ack, call } => {
                let session = session.expect("the wire asks for the session of a logged request");
                let request = Request { session, id, ack, got: request.got, call };
                self.admit(now, from, place, request, refusal);
            }
            Method::RepairFile { id, ack, file, token, holder } => {
                let session = session.expect("the wire asks for the session of a logged request");
                if !alone {
                    let text = "repair_file looks at the disk before it is logged: send it outside a batch";
                    let refusal = Refusal::new(Kind::Unsupported, text);
                    return self.resolve_with(place, |out, id| encode_error(out, id, &refusal));
                }
                let call = Call::RepairFile { file, generation: 0, length: 0, checksum: 0, token, holder };
                self.admit(now, from, place, Request { session, id, ack, got: request.got, call }, refusal);
            }
            Method::OpenSession { nonce, name, label, ttl_ms } => {
                if let Some((session, known)) = self.state.session_by_nonce(nonce) {
                    let outcome = Outcome::Opened { session, client: known.client, ttl_ms: known.ttl_ms };
                    return self.resolve_with(place, |out, id| encode_outcome(out, id, &outcome));
                }
                let ttl_ms = ttl_ms.unwrap_or(self.state.limits().default_ttl_ms);
                self.last_draw += 1;
                let session = self.secrets.session_id(nonce, self.last_draw);
                let command = Command::OpenSession { nonce, session, name, label, ttl_ms };
                self.submit_for(now, place, command, Asked::Outcome, refusal);
            }
            Method::CloseSession => {
                let session = session.expect("the wire asks for the session to close");
                if !self.state.session(session).is_some_and(|session| session.is_live()) {
                    return self.resolve_with(place, |out, id| encode_outcome(out, id, &Outcome::Done));
                }
                // A session whose end is refused for now lives on as before.
                if refusal.is_none() {
                    self.leases.lapse(session);
                }
                let term = self.state.head().term;
                let command = Command::EndSession { session, term, reason: EndReason::Closed };
                self.submit_for(now, place, command, Asked::Close, refusal);
            }
            Method::KillSession { client } => {
                let session = self
                    .state
                    .session_of(client)
                    .filter(|id| self.state.session(*id).is_some_and(|session| session.is_live()));
                let Some(session) = session else {
                    let result = wire::Killed { killed: false };
                    return self.resolve_with(place, |out, id| encode_result(out, id, &result));
                };
                if refusal.is_none() {
                    log::info!("client {client}: killed by an operator at {from}");
                    self.leases.lapse(session);
                }
                let term = self.state.head().term;
                let command = Command::EndSession { session, term, reason: EndReason::Killed };
                self.submit_for(now, place, command, Asked::Kill, refusal);
            }
            Method::CleanupExpiredLocks => {
                self.submit_for(now, place, Command::Tick, Asked::Outcome, refusal);
            }
            method => self.handle_read(now, place, session, method),
        }
    }

    /// Submits what needs no dedup of its own, unless it must be refused for now.
    pub(super) fn submit_for(
        &mut self,
        now: Time,
        place: Place,
        command: Command,
        asked: Asked,
        refusal: Option<&Refusal>,
    ) {
        match refusal {
            Some(refusal) => self.resolve_with(place, |out, id| encode_error(out, id, refusal)),
            None => {
                self.assemblies.await_log(place);
                if matches!(command, Command::Tick) {
                    self.tick_in_flight = true;
                }
                self.gather(now, command, Tag { place: Some(place), asked });
            }
        }
    }

    /// Decides what a logged request is: done, in line, in flight, stale, reused, to be refused for now, or new.
    pub(super) fn admit(
        &mut self,
        now: Time,
        from: SocketAddr,
        place: Place,
        request: Request,
        refusal: Option<&Refusal>,
    ) {
        let (session, id, fingerprint) = (request.session, request.id, request.call.fingerprint());
        if self.answer_from_state(now, from, place, session, id, fingerprint) {
            return;
        }
        let flight = self.in_flight.get(&session).and_then(|flights| flights.requests.get(id));
        if let Some(flight) = flight {
            if flight.fingerprint != fingerprint {
                return self.resolve_with(place, |out, reply_id| encode_error(out, reply_id, &reused(id)));
            }
            self.counts.count(Count::Duplicates);
            let first = flight.message;
            return self.assemblies.answer_with(place, first, from);
        }
        if let Some(refusal) = refusal {
            self.counts.count(Count::Refused);
            log::debug!(
                target: event::TARGET,
                "{}: refused for now, {}",
                event::requested_call(&self.state, &request),
                refusal.kind.as_str()
            );
            return self.resolve_with(place, |out, id| encode_error(out, id, refusal));
        }
        if let Call::RepairFile { file, .. } = &request.call
            && self.repairing.contains(file)
        {
            // What a second look finds could be old when its turn comes behind the first.
            let refusal = busy("a repair of this file is on its way");
            return self.resolve_with(place, |out, id| encode_error(out, id, &refusal));
        }
        let may_wait = self.takes_wait(session, &request.call);
        let spare = &mut self.spare_flights;
        let flights = self.in_flight.entry(session).or_insert_with(|| spare.pop().unwrap_or_default());
        flights.requests.insert(id, Flight { fingerprint, message: place.key, may_wait });
        flights.waits += u64::from(may_wait);
        self.assemblies.await_log(place);
        if let Call::RepairFile { file, token, holder, .. } = &request.call
            && let Some(found) = self.state.file(file).filter(|found| found.fault.is_some())
            && self.state.grant_of(session, *holder, *token).is_ok()
        {
            let (length, checksum, generation) = (found.length, found.checksum, found.generation);
            let file = file.clone();
            self.repairing.insert(file.clone());
            let tag = self.file_tag(FileTag::Repair { place, looked_at: generation, request });
            self.file_work.push_back(FileWork::Look { tag, file, generation, length, checksum });
            return;
        }
        let asked = Asked::Request { session, id, fingerprint };
        self.gather(now, Command::Request(request), Tag { place: Some(place), asked });
    }

    /// Answers a request that the state knows or can refuse by itself. False if it is new.
    pub(super) fn answer_from_state(
        &mut self,
        now: Time,
        from: SocketAddr,
        place: Place,
        session: SessionId,
        id: u64,
        fingerprint: u64,
    ) -> bool {
        let Some(known) = self.state.session(session) else {
            self.resolve_with(place, |out, reply_id| encode_error(out, reply_id, &no_session()));
            return true;
        };
        match known.standing(id, fingerprint) {
            Standing::Kept(outcome) => {
                let outcome = outcome.clone();
                self.counts.count(Count::Duplicates);
                self.resolve_with(place, |out, reply_id| encode_outcome(out, reply_id, &outcome));
            }
            Standing::InLine(op) => {
                self.counts.count(Count::Duplicates);
                self.send_pending(now, from, self.assemblies.is_sealed(place), session, id, op);
                self.assemblies.silence(place);
            }
            Standing::Reused => {
                self.resolve_with(place, |out, reply_id| encode_error(out, reply_id, &reused(id)));
            }
            Standing::Stale => {
                self.resolve_with(place, |out, reply_id| encode_error(out, reply_id, &stale(id)));
            }
            Standing::New if !known.is_live() => {
                self.resolve_with(place, |out, reply_id| encode_error(out, reply_id, &no_session()));
            }
            Standing::New => return false,
        }
        true
    }

    /// Why the logged elements of a message must all be refused for now, if they must: a batch is admitted whole.
    pub(super) fn refuse_batch(&self, elements: &[Element]) -> Option<Refusal> {
        // What of the session that was named last is under way and asked here: requests, and waits. A batch names few others.
        let mut asked: Option<(SessionId, u64, u64)> = None;
        let mut others: Vec<(SessionId, u64, u64)> = Vec::new();
        for request in elements.iter().filter_map(|element| element.request.as_ref().ok()) {
            let (id, ack, call) = match &request.method {
                Method::Logged { id, ack, call } => (*id, *ack, Some(call)),
                Method::RepairFile { id, ack, .. } => (*id, *ack, None),
                Method::OpenSession { .. } => {
                    if let Some(refusal) = self.refuse_all(false) {
                        return Some(refusal);
                    }
                    continue;
                }
                Method::CloseSession | Method::KillSession { .. } | Method::CleanupExpiredLocks => {
                    if let Some(refusal) = self.refuse_all(true) {
                        return Some(refusal);
                    }
                    continue;
                }
                _ => continue,
            };
            let Some(session) = request.session else { continue };
            if let Some(refusal) = self.refuse_all(call.is_some_and(Call::frees)) {
                return Some(refusal);
            }
            let writes_files = match call {
                Some(Call::AppendFile { .. }) => true,
                Some(Call::Release { token, .. }) => {
                    self.state.section(*token).is_some_and(|section| section.has_appends())
                }
                Some(_) | None => false,
            };
            if writes_files {
                if self.files_full {
                    let text = "the files' disk is full, and earlier appends wait for it; free some room, it goes on by itself";
                    return Some(Refusal::new(Kind::NoSpace, text).with(Detail::Again { retry_ms: 1_000 }));
                }
                if self.file_bytes_pending > FILE_BYTES_PENDING_MAX {
                    return Some(busy("the files' disk is behind"));
                }
            }
            let Some(known) = self.state.session(session) else { continue };
            others.extend(asked.take_if(|(known, ..)| *known != session));
            let (_, requests, waits) = asked.get_or_insert_with(|| {
                let known = others.iter().position(|(known, ..)| *known == session);
                known.map(|place| others.swap_remove(place)).unwrap_or_else(|| {
                    let under_way = |flights: &InFlight| (flights.requests.len() as u64, flights.waits);
                    let (requests, waits) = self.in_flight.get(&session).map_or((0, 0), under_way);
                    (session, requests, waits)
                })
            });
            let limits = self.state.limits();
            // What the client's oldest open request hangs on finds room in a small reserve: only its reply lets `ack` rise,
            // and later ones may have filled the window while its copies were lost.
            let cancels = matches!(call, Some(Call::CancelWait { wait }) if *wait == ack);
            let mut window = Window { replies: limits.replies, reply_bytes: limits.reply_bytes };
            if id == ack || cancels {
                window.replies = window.replies.saturating_add(WINDOW_RESERVE);
                window.reply_bytes = window.reply_bytes.saturating_mul(2);
            }
            if let Some((limit, max)) = known.full_window(ack, *requests, window) {
                let what = if limit == "replies" { "kept replies" } else { "bytes of kept replies" };
                let text = format!(
                    "the session has its {max} {what}; say with `ack` which have arrived, and repeat the request"
                );
                return Some(limit_again(limit, max, text));
            }
            *requests += 1;
            if call.is_some_and(|call| self.takes_wait(session, call)) {
                if !known.has_wait_window(ack, &request.got, *waits, limits) {
                    let text = format!(
                        "the session has its {} waits; name the answered ones in `got`, and repeat the request",
                        limits.session_waits
                    );
                    return Some(limit_again("session_waits", limits.session_waits, text));
                }
                *waits += 1;
            }
        }
        None
    }

    /// Whether a request may come to be remembered among the session's waits: an acquire that waits, or the cancel of an id
    /// that has not been seen.
    pub(super) fn takes_wait(&self, session: SessionId, call: &Call) -> bool {
        match call {
            Call::Acquire { wait, .. } | Call::Convert { wait, .. } => *wait != Patience::Try,
            Call::CancelWait { wait } => {
                let under_way =
                    self.in_flight.get(&session).is_some_and(|flights| flights.requests.contains(*wait));
                !under_way && self.state.session(session).is_some_and(|session| session.is_unseen(*wait))
            }
            Call::Release { .. }
            | Call::Abandon { .. }
            | Call::RenewLease { .. }
            | Call::Set { .. }
            | Call::Delete { .. }
            | Call::AppendFile { .. }
            | Call::DeleteFile { .. }
            | Call::RotateFile { .. }
            | Call::RepairFile { .. }
            | Call::HandOver { .. }
            | Call::TakeOver { .. }
            | Call::BreakLock { .. }
            | Call::AskRelease { .. }
            | Call::Transaction { .. } => false,
        }
    }

    /// Why nothing new may enter the log now, if it may not. `frees`: what it asks frees something.
    pub(super) fn refuse_all(&self, frees: bool) -> Option<Refusal> {
        if self.draining {
            let text = "the server is stopping; repeat the request when it is back";
            return Some(Refusal::new(Kind::Draining, text).with(Detail::Again { retry_ms: 1_000 }));
        }
        if self.room == Room::Full || (self.room == Room::Low && !frees) {
            let text = "the server's disk is full: nothing new can be made durable; free some room, it goes on by itself";
            return Some(Refusal::new(Kind::NoSpace, text).with(Detail::Again { retry_ms: 1_000 }));
        }
        if self.gathered.weight() > GATHERED_BYTES_MAX || self.gathered.len() >= GATHERED_MAX {
            return Some(busy("the log is behind"));
        }
        None
    }
}

pub(super) fn busy(what: &str) -> Refusal {
    Refusal::new(Kind::Busy, format!("{what}; repeat the request a little later"))
        .with(Detail::Again { retry_ms: BUSY_RETRY_MS })
}

fn limit_again(limit: &str, max: u64, text: String) -> Refusal {
    Refusal::new(Kind::Limit, text).with(Detail::LimitAgain { limit: limit.into(), max })
}

pub(super) fn no_session() -> Refusal {
    let text = "there is no such session: it was closed, it expired, or this server never had it; open another. This copy \
                of the request was not executed";
    Refusal::new(Kind::NoSession, text)
}

fn stale(id: u64) -> Refusal {
    let text = format!(
        "request {id} is below what was acknowledged, or has slid out of the window. This copy was not executed; an earlier \
         one may have been"
    );
    Refusal::new(Kind::StaleRequest, text)
}

fn reused(id: u64) -> Refusal {
    let text = format!("id {id} was used before for another request; ids rise, and each is used once");
    Refusal::new(Kind::RequestReused, text)
}
