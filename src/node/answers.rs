//! Answers: what a committed command caused, and how those who asked are told.

use super::assembly::Place;
use super::counts::Count;
use super::{Asked, FileWork, Node, SPARE_FLIGHTS, Tag, reads};
use crate::identity::{Op, SessionId};
use crate::outcome::{Effect, LossReason, Outcome};
use crate::state::Standing;
use crate::time::Time;
use crate::wire::{self, Id, encode_outcome, encode_result};
use serde::Serialize;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;

impl Node {
    /// Does what a command caused beside its outcome.
    pub(super) fn take_effect(&mut self, now: Time, effect: Effect) {
        match effect {
            Effect::Settled { session, id } => {
                if self.peers.contains_key(&session) {
                    self.tellings.begin(session, id, now);
                    self.tell(now, session, id);
                }
            }
            Effect::Lost { session, loss } => {
                self.counts.count(match loss.reason {
                    LossReason::LeaseExpired | LossReason::HeldTooLong => Count::GrantsExpired,
                    LossReason::Broken => Count::GrantsBroken,
                    LossReason::TakenOver => Count::GrantsTakenOver,
                });
                self.notify(session, "lost", &reads::lost_shown(&loss));
            }
            Effect::Opened { session } => {
                let ttl_ms = self.state.session(session).expect("it was opened").ttl_ms;
                self.leases.begin(session, ttl_ms, self.heard_at(now));
            }
            Effect::Ended { session } => {
                self.leases.end(session);
                self.tellings.end_session(session);
                self.peers.remove(&session);
            }
            Effect::Renewed => {
                let live: Vec<_> =
                    self.state.live_sessions(0).map(|(id, session)| (id, session.ttl_ms)).collect();
                for (session, ttl_ms) in live {
                    let ttl_ms =
                        if crate::bug::planted("quarter_ttl_after_restart") { ttl_ms / 4 } else { ttl_ms };
                    self.leases.begin(session, ttl_ms, self.heard_at(now));
                }
            }
            Effect::Asked { session, token } => {
                if let Some(asked) = self.asked_shown(self.heard_at(now), token) {
                    self.notify(session, "asked", &asked);
                }
            }
            Effect::Offered { session, token } => {
                if let Some(offered) = self.offered_shown(self.heard_at(now), token) {
                    self.notify(session, "offered", &offered);
                }
            }
            Effect::File(effect) => self.file_work.push_back(FileWork::Apply(effect)),
        }
    }

    /// Sends a hint to where a session was last heard of.
    fn notify<T: Serialize>(&mut self, session: SessionId, method: &str, params: &T) {
        if let Some(peer) = self.peers.get(&session) {
            let (address, sealed) = (peer.address, peer.sealed);
            let mut bytes = Vec::new();
            wire::encode_notification(&mut bytes, method, params);
            self.send(address, sealed, bytes);
        }
    }

    /// Tells the outcome of a command to whoever asked.
    pub(super) fn answer(&mut self, now: Time, tag: Tag, outcome: Outcome) {
        let place = tag.place;
        match tag.asked {
            Asked::Nobody => {}
            Asked::Request { session, id, fingerprint } => {
                let place = place.expect("a request has a place");
                self.land(session, id);
                match outcome {
                    Outcome::Void => {
                        let to = self.assemblies.address(place);
                        if !self.answer_from_state(now, to, place, session, id, fingerprint) {
                            panic!("request {id} of {session:?} took no effect and is new to the state");
                        }
                    }
                    Outcome::Waiting(_) => {
                        let (to, sealed) = (self.assemblies.address(place), self.assemblies.is_sealed(place));
                        let standing = self.state.session(session).map(|session| session.wait_standing(id));
                        let Some(Standing::InLine(op)) = standing else {
                            panic!("request {id} of {session:?} was put in line and stands nowhere");
                        };
                        self.send_pending(now, to, sealed, session, id, op);
                        self.assemblies.silence(place);
                    }
                    outcome => self.resolve_with(place, |out, id| encode_outcome(out, id, &outcome)),
                }
            }
            Asked::Outcome => {
                let place = place.expect("somebody asked");
                self.resolve_with(place, |out, id| encode_outcome(out, id, &outcome));
            }
            Asked::Close => {
                let place = place.expect("somebody asked");
                self.resolve_with(place, |out, id| encode_outcome(out, id, &Outcome::Done));
            }
            Asked::Kill => {
                let place = place.expect("somebody asked");
                let result = wire::Killed { killed: outcome == Outcome::Done };
                self.resolve_with(place, |out, id| encode_result(out, id, &result));
            }
        }
        if let Some(place) = place {
            self.go_on(now, place);
        }
    }

    /// Goes on with a message, one of whose elements was answered.
    pub(super) fn go_on(&mut self, now: Time, place: Place) {
        for (place, session, method) in self.assemblies.take_ready_reads(place.key) {
            self.handle_read_now(now, place, session, method);
        }
        self.finish(place.key);
    }

    /// Takes a request out of flight.
    pub(super) fn land(&mut self, session: SessionId, id: u64) {
        let Entry::Occupied(mut flights) = self.in_flight.entry(session) else {
            panic!("request {id} of {session:?} landed and was not in flight");
        };
        let flight = flights.get_mut().requests.remove(id).expect("a request lands once");
        flights.get_mut().waits -= u64::from(flight.may_wait);
        if flights.get().requests.is_empty() {
            let flights = flights.remove();
            assert_eq!(flights.waits, 0, "without requests in flight there is none that may wait");
            if self.spare_flights.len() < SPARE_FLIGHTS {
                self.spare_flights.push(flights);
            }
        }
    }

    /// Sends the outcome of an answered wait to where its session was last heard of.
    pub(super) fn tell(&mut self, now: Time, session: SessionId, id: u64) {
        let Some(peer) = self.peers.get(&session) else { return self.tellings.end(session, id) };
        let standing = self.state.session(session).map(|session| session.wait_standing(id));
        let Some(Standing::Kept(outcome)) = standing else { return self.tellings.end(session, id) };
        let mut bytes = Vec::new();
        encode_outcome(&mut bytes, &Id::number(id), outcome);
        self.send(peer.address, peer.sealed, bytes);
        self.tellings.told(session, id, now);
    }

    pub(super) fn send_pending(
        &mut self,
        now: Time,
        to: SocketAddr,
        sealed: bool,
        session: SessionId,
        id: u64,
        op: Op,
    ) {
        let blocked = self.state.why_waiting(op, now).expect("a wait in line is there");
        let client = self.state.session(session).expect("a wait has a session").client;
        let pending = wire::Pending {
            client,
            id,
            position: blocked.position,
            reason: blocked.reason,
            holders: blocked.holders.iter().map(wire::holder_shown).collect(),
            holders_total: blocked.holders_total,
            key: blocked.key.as_ref().map(|key| key.to_string()),
            ahead: blocked.ahead.as_ref().map(wire::ahead_shown),
            queue_total: blocked.queue_total,
            estimate_ms: blocked.estimate_ms,
            queue_max: Some(self.state.limits().lock_waits),
        };
        let mut bytes = Vec::new();
        wire::encode_notification(&mut bytes, "pending", &pending);
        self.send(to, sealed, bytes);
    }
}
