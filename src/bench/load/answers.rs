//! What the load makes of an answer: is it the one, is it right, and what did it complete.

use super::{AGAIN_AFTER, AGAIN_AT_MOST, Failure, Load, Stage};
use crate::bench::Workload;
use crate::bench::reply::{self, Reply};
use crate::bench::request::{self, Call};
use crate::datagram::{self, Dropped};
use std::io;
use std::time::{Duration, Instant};

/// A request that was refused for now, without saying for how long, is repeated after this.
const REFUSED_FOR: Duration = Duration::from_millis(100);

/// A proof of the address that is refused so often is none.
const PROOFS_MOST: u32 = 5;

/// A server that refuses one request so often while the load is prepared will not take it.
const REFUSALS_MOST: u32 = 100;

impl Load<'_> {
    /// Takes what has come to a socket. Once all that was awaited is there, it does not ask for more: what comes later is told
    /// by the next event.
    pub(super) fn receive(&mut self, number: usize, buffer: &mut [u8]) -> io::Result<()> {
        let port = &self.ports[number];
        let all = port.answered + port.awaited;
        while self.ports[number].answered < all
            && let Some(length) = self.ports[number].receive(buffer)?
        {
            let now = Instant::now();
            self.heard = now;
            match datagram::open(&buffer[..length]) {
                Ok(opened) => {
                    let mut taken = Ok(());
                    reply::each(opened.message, |reply| {
                        if taken.is_ok() {
                            taken = self.take(number, &reply, now);
                        }
                    });
                    taken?;
                }
                Err(Dropped::Damaged) => self.report.damaged += 1,
                Err(_) => self.wrong("unexpected", &buffer[..length]),
            }
        }
        Ok(())
    }

    fn take(&mut self, port: usize, reply: &Reply<'_>, now: Instant) -> io::Result<()> {
        if let Some(method) = reply.method {
            self.notice(method, reply.params.unwrap_or_default(), now);
            return Ok(());
        }
        let Some(id) = reply.id else {
            self.wrong("unexpected", reply.error.unwrap_or_default());
            return Ok(());
        };
        let index = (id % self.slots.len() as u64) as usize;
        if self.slots[index].id != id {
            self.report.doubled += 1;
            return Ok(());
        }
        let good = if let Some(result) = reply.result {
            self.answered(index, now);
            match self.judge(index, result, now) {
                Ok(()) => true,
                Err(kind) => {
                    self.wrong(kind, result);
                    false
                }
            }
        } else {
            let error = reply.error.unwrap_or_default();
            let data = reply::field(error, b"data").unwrap_or_default();
            if !reply::is_true(data, b"final") {
                return self.refused_for_now(port, index, error, now);
            }
            self.answered(index, now);
            let kind = reply::text_of(data, b"kind").unwrap_or(b"unexpected");
            let kind = String::from_utf8_lossy(kind);
            // A file that was never appended to need not be deleted.
            let nothing_to_tidy = self.stage == Stage::Tidy && kind == "not_found";
            if !nothing_to_tidy {
                self.wrong(&kind, error);
            }
            nothing_to_tidy
        };
        if index >= self.workers {
            return Ok(());
        }
        if good {
            if self.slots[index].call == Call::Await {
                self.slots[index].got = id;
            }
            self.count(index, now);
        } else if self.stage == Stage::Work {
            // The operation is given up; another begins.
            self.slots[index].step = self.script.operation.len();
        }
        self.advance(index, now)
    }

    /// The request of a slot has its answer.
    fn answered(&mut self, index: usize, now: Instant) {
        let slot = &mut self.slots[index];
        slot.id = 0;
        let port = &mut self.ports[self.clients[slot.client].port];
        port.awaited -= 1;
        port.answered += 1;
        if self.window.is_some() && index < self.workers {
            self.report.round_trips += 1;
            if self.script.operation.len() > 1 {
                self.round_trip.add(now - slot.sent);
            }
        }
    }

    /// A notification: that a request stands in line, or that a grant is lost.
    fn notice(&mut self, method: &[u8], params: &[u8], now: Instant) {
        match method {
            b"pending" => {
                let Some(id) = reply::number_of(params, b"id") else { return };
                let index = (id % self.slots.len() as u64) as usize;
                let slot = &mut self.slots[index];
                if slot.id == id {
                    self.report.stood_in_line += u64::from(!slot.in_line);
                    slot.in_line = true;
                    slot.due = now + AGAIN_AT_MOST;
                }
            }
            b"lost" => self.wrong("lost", params),
            _ => {}
        }
    }

    /// The server does not take a request now: it gets it again, later or with a proof.
    fn refused_for_now(&mut self, port: usize, index: usize, error: &[u8], now: Instant) -> io::Result<()> {
        let data = reply::field(error, b"data").unwrap_or_default();
        let slot = &mut self.slots[index];
        slot.refused += 1;
        let cookie = reply::text_of(data, b"cookie");
        if let Some(cookie) = cookie.filter(|_| slot.refused <= PROOFS_MOST) {
            let port = &mut self.ports[port];
            port.cookie = cookie.to_vec();
            request::prove(&mut slot.request, &port.cookie);
            slot.due = now + AGAIN_AFTER;
            return port.put(&slot.request, self.plan.batch);
        }
        let pause = reply::number_of(data, b"retry_ms").map_or(REFUSED_FOR, Duration::from_millis);
        slot.due = now + pause;
        // Before anything is measured a server may have too much to do for a while.
        let may_wait = matches!(self.stage, Stage::Open | Stage::Prepare) && slot.refused <= REFUSALS_MOST;
        if cookie.is_some() || !may_wait {
            let kind = reply::text_of(data, b"kind").unwrap_or(b"unexpected");
            self.wrong(&String::from_utf8_lossy(kind), error);
        }
        Ok(())
    }

    /// Looks at a result, and remembers what later requests need of it.
    fn judge(&mut self, index: usize, result: &[u8], now: Instant) -> Result<(), &'static str> {
        let slot = &mut self.slots[index];
        let so = |good: bool| if good { Ok(()) } else { Err("unexpected") };
        match slot.call {
            Call::Open => {
                let session = reply::text_of(result, b"session").filter(|session| session.len() == 32);
                self.clients[slot.client].session = session.ok_or("unexpected")?.to_vec();
                self.beats.push_back((now + self.plan.ttl / 3, slot.client));
                Ok(())
            }
            Call::Close => {
                self.clients[slot.client].session.clear();
                Ok(())
            }
            Call::Ping => Ok(()),
            Call::Heartbeat => {
                self.report.heartbeats += 1;
                let held = reply::number_of(result, b"held").ok_or("unexpected")?;
                let holds_all = self.plan.workload == Workload::Heartbeat && self.stage == Stage::Work;
                if reply::field(result, b"lost").is_some() || holds_all && held != self.plan.names as u64 {
                    return Err("lost");
                }
                if holds_all && self.window.is_some() {
                    self.report.operations += 1;
                    self.latency.add(now - slot.began);
                }
                Ok(())
            }
            Call::Acquire | Call::Await => {
                if !reply::is_true(result, b"granted") {
                    return Err("not_granted");
                }
                slot.token = reply::number_of(result, b"token").ok_or("unexpected")?;
                Ok(())
            }
            Call::Release => {
                slot.token = 0;
                so(reply::is_true(result, b"released"))
            }
            Call::Put => so(reply::number_of(result, b"version").is_some()),
            Call::Get => {
                let value = reply::field(result, b"value").unwrap_or_default();
                so(reply::is_true(result, b"found") && value.starts_with(&self.writer.value))
            }
            Call::Append => {
                let place = reply::number_of(result, b"offset").zip(reply::number_of(result, b"length"));
                let (offset, length) = place.ok_or("unexpected")?;
                // Of one file each byte is known: each append stands there once, behind the one before.
                let expected = if self.plan.workload == Workload::Append { slot.length } else { offset };
                slot.length = length;
                so(offset == expected && length - offset == self.plan.value_bytes as u64)
            }
            Call::Delete => so(reply::field(result, b"deleted").is_some()),
            Call::DeleteFile => so(reply::number_of(result, b"generation").is_some()),
        }
    }

    /// Counts what a good answer has completed.
    fn count(&mut self, index: usize, now: Instant) {
        let slot = &self.slots[index];
        let released = if slot.call == Call::Await { self.released.take() } else { None };
        if self.window.is_none() {
            return;
        }
        let since = if self.plan.workload.waits() {
            (slot.call == Call::Await).then_some(slot.began)
        } else {
            (slot.step == self.script.operation.len()).then_some(slot.began)
        };
        if let Some(since) = since {
            self.report.operations += 1;
            self.latency.add(now - since);
        }
        if let Some(released) = released {
            self.hand_off.add(now - released);
        }
    }

    /// An answer that should not have come. While nothing is measured yet, it is the end.
    fn wrong(&mut self, kind: &str, said: &[u8]) {
        *self.report.errors.entry(kind.into()).or_default() += 1;
        let before = matches!(self.stage, Stage::Open | Stage::Prepare);
        if before || kind == "no_session" {
            let said = String::from_utf8_lossy(&said[..said.len().min(400)]);
            let sentence = format!("the server at {} answered with {kind}: {said}", self.plan.server);
            self.failed.get_or_insert(Failure::Refused(sentence));
        }
    }
}
