//! Ends: of calls, of the session, of the engine.

use super::{Alarm, Answered, BEAT, Call, CallId, Engine, Event, Failure, GRACE_MS, Purpose, Stage};
use crate::client::lease::LostCause;
use crate::client::message::Tag;
use crate::client::timers::Timers;
use crate::time::Time;
use crate::wire::{ErrorShown, Int, Params};
use serde_json::value::RawValue;

impl Engine {
    pub(super) fn tell_done(&mut self, call: CallId, result: Result<Answered, Failure>) {
        self.events.push_back(Event::Done { call, result });
    }

    /// Forgets a request without a word.
    pub(super) fn drop_call(&mut self, tag: Tag) -> Option<Call> {
        self.sends.clear(tag);
        self.alarms.clear(Alarm::Deadline(tag));
        self.enders.remove(&tag);
        self.blocked.remove(&tag);
        self.converting.remove(&tag);
        self.calls.remove(&tag)
    }

    /// Ends a request; a result without a value is for those that nobody asked for.
    pub(super) fn end(&mut self, tag: Tag, result: Result<(), Failure>) {
        if let (Some(call), Err(failure)) = (self.drop_call(tag), result)
            && call.asked
        {
            self.tell_done(call.handle(tag), Err(failure));
        }
    }

    pub(super) fn end_with(&mut self, tag: Tag, reply: Result<Box<RawValue>, Box<ErrorShown>>) {
        let Some(call) = self.drop_call(tag) else { return };
        if call.asked {
            let result = reply.map(|raw| Answered { raw, granted: None }).map_err(Failure::Refused);
            self.tell_done(call.handle(tag), result);
        }
    }

    pub(super) fn given_up(&self, tag: Tag) -> bool {
        matches!(
            self.calls.get(&tag).map(|call| &call.purpose),
            Some(Purpose::Acquire { cancel: Some(_), .. })
        )
    }

    /// The deadline of a call has passed, or nobody waits for it.
    pub(super) fn give_up_call(&mut self, now: Time, tag: Tag, what: &str) {
        let Some(call) = self.calls.get_mut(&tag) else { return };
        let why = match &call.last_refusal {
            Some(refusal) => format!("{what}; the server last said: {}", refusal.message),
            None => what.to_owned(),
        };
        if call.copies == 0 && !matches!(tag, Tag::Open(_)) {
            let releasing = matches!(call.purpose, Purpose::Release { .. });
            if !releasing {
                self.end(tag, Err(Failure::NotSent { why }));
                return self.after_end(now, tag);
            }
        }
        let (asked, handle, id) = (call.asked, call.handle(tag), tag.number());
        match &mut call.purpose {
            Purpose::Plain | Purpose::Renew { .. } => {
                let failure = match tag {
                    Tag::Logged(_) => Failure::Unknown { id, why },
                    Tag::Held(_) | Tag::Read(_) | Tag::Open(_) | Tag::Close(_) | Tag::Beat(_) => {
                        Failure::NoAnswer { why }
                    }
                };
                self.end(tag, Err(failure));
                self.after_end(now, tag);
            }
            Purpose::Cancel { .. } | Purpose::Release { .. } => {
                // The server must hear of it in any case: it goes on for as long as the session lives.
                call.asked = false;
                if asked {
                    self.tell_done(handle, Err(Failure::Unknown { id, why }));
                }
            }
            Purpose::Acquire { cancel: Some(_), .. } => {
                call.asked = false;
                if asked {
                    self.tell_done(handle, Err(Failure::Unknown { id, why }));
                }
            }
            Purpose::Acquire { .. } => self.take_back(now, tag),
        }
    }

    /// Takes a request for a lock back. Its copies stop; what the server did first, or will not do any more, is its result.
    pub(super) fn take_back(&mut self, now: Time, tag: Tag) {
        if !matches!(self.stage, Stage::Open) {
            // With its session it ends by itself.
            return self.end(
                tag,
                Err(Failure::SessionEnded { why: "no answer came before the session's end".into() }),
            );
        }
        self.sends.clear(tag);
        let params = Params { wait: Some(Int(tag.number())), ..Params::default() };
        if crate::bug::planted("wait_left_in_line") {
            return self.end(tag, Err(Failure::NotSent { why: "it is forgotten".into() }));
        }
        let taking = self.spawn(now, "cancel_wait", params, Purpose::Cancel { wait: tag });
        let Some(call) = self.calls.get_mut(&tag) else { return };
        if let Purpose::Acquire { cancel, .. } = &mut call.purpose {
            *cancel = Some(taking);
        }
        if call.asked {
            self.alarms.set(Alarm::Deadline(tag), now.after_ms(GRACE_MS));
        }
    }

    /// The session is no more. What was sent still asks for its answer, which the server keeps for a while.
    pub(super) fn session_ended(&mut self, now: Time, why: String) {
        match self.stage {
            Stage::Ended { .. } | Stage::Closed => return,
            Stage::Closing => return self.closed(true),
            Stage::Idle | Stage::Opening | Stage::Open => {}
        }
        self.stage = Stage::Ended { why: why.clone() };
        self.sends.clear(BEAT);
        self.alarms.clear(Alarm::Session);
        let tokens: Vec<u64> = self.grants.keys().copied().collect();
        for token in tokens {
            self.lose(now, token, LostCause::SessionEnded);
        }
        self.grants.clear();
        let over: Vec<Tag> = self
            .calls
            .iter()
            .filter(|(_, call)| call.in_session && (call.copies == 0 || !call.asked))
            .map(|(tag, _)| *tag)
            .collect();
        for tag in over {
            self.end(tag, Err(Failure::SessionEnded { why: why.clone() }));
        }
        self.events.push_back(Event::Ended { why });
    }

    /// Tells the server of the close once every release is answered: a section's release must not come second.
    pub(super) fn close_when_released(&mut self, now: Time) {
        let busy = |tag: &Tag, call: &Call| {
            matches!(call.purpose, Purpose::Release { .. }) || matches!(tag, Tag::Open(_) | Tag::Close(_))
        };
        if self.stage != Stage::Closing || self.calls.iter().any(|(tag, call)| busy(tag, call)) {
            return;
        }
        let tag = Tag::Close(self.next_echo());
        let mut call = Call::new("close_session", Params::default(), Purpose::Plain, false);
        call.in_session = true;
        self.insert(tag, call);
        self.sends.set(tag, now);
    }

    pub(super) fn closed(&mut self, answered: bool) {
        self.stage = Stage::Closed;
        let tags: Vec<Tag> = self.calls.keys().copied().collect();
        for tag in tags {
            // Of a request for a lock nothing is left after a close that was answered.
            let acquire =
                |call: &Call| matches!(call.purpose, Purpose::Acquire { .. } | Purpose::Cancel { .. });
            let sent =
                self.calls.get(&tag).is_some_and(|call| call.copies > 0 && !(answered && acquire(call)));
            let why = || "the client was closed before the answer came".to_owned();
            let failure = match (sent, tag) {
                (false, _) => Failure::Closed,
                (true, Tag::Logged(id)) => Failure::Unknown { id, why: why() },
                (true, Tag::Held(_) | Tag::Read(_) | Tag::Open(_) | Tag::Close(_) | Tag::Beat(_)) => {
                    Failure::NoAnswer { why: why() }
                }
            };
            self.end(tag, Err(failure));
        }
        let tokens: Vec<u64> = self.grants.keys().copied().collect();
        for token in tokens {
            let proving = self.grants.get_mut(&token).and_then(|grant| grant.proving.take());
            if let Some(proving) = proving {
                self.tell_done(proving.call, Err(Failure::Closed));
            }
        }
        self.grants.clear();
        self.proving.clear();
        self.sends = Timers::default();
        self.alarms = Timers::default();
        self.events.push_back(Event::Closed { answered });
    }
}
