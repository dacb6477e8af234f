//! Wrongly expired: a session whose signs of life have reached the server in time must not be ended for want of them.
//!
//! Counted in the time that may count: stalls of the server are taken out, as far as it is promised that they are.

use std::collections::BTreeMap;
use tenure::identity::SessionId;

/// What the log was asked to do about sessions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Word {
    Opened { session: SessionId, ttl_ms: u64 },
    Closed { session: SessionId },
    Expired { session: SessionId },
}

/// What is rounded, and what a turn takes, in microseconds.
const SLACK_US: u64 = 5_000;

#[derive(Debug, Default)]
pub(crate) struct Lives {
    /// TTL, and until when at least it lives, in active microseconds.
    sessions: BTreeMap<SessionId, (u64, i64)>,
    /// Stalls so far, and the time at which the clock stands still, if it does.
    stalled_us: u64,
    stands_at: Option<u64>,
    /// The latest that any of it was: a stall in a turn is taken out before it has passed.
    latest: i64,
    /// How much faster the server's clock runs, in millionths.
    rate: u64,
    pub(crate) heard: u64,
}

impl Lives {
    pub(crate) fn new(rate: u64) -> Lives {
        Lives { rate, ..Lives::default() }
    }

    fn active(&mut self, now: u64) -> i64 {
        let active = now.min(self.stands_at.unwrap_or(u64::MAX)) as i64 - self.stalled_us as i64;
        self.latest = self.latest.max(active);
        self.latest
    }

    fn until(&mut self, now: u64, ttl_ms: u64) -> i64 {
        self.active(now) + (ttl_ms * 1_000_000_000 / self.rate) as i64 - SLACK_US as i64
    }

    /// A term begins: each of these sessions gets its whole TTL.
    pub(crate) fn term(&mut self, now: u64, live: impl Iterator<Item = (SessionId, u64)>) {
        *self = Lives { heard: self.heard, ..Lives::new(self.rate) };
        for (session, ttl_ms) in live {
            let until = self.until(now, ttl_ms);
            self.sessions.insert(session, (ttl_ms, until));
        }
    }

    /// The server begins to stand still; it had asked to be woken in so many microseconds.
    pub(crate) fn sleeps(&mut self, now: u64, asked: Option<u64>) {
        self.stands_at.get_or_insert(now + asked.unwrap_or(u64::MAX / 2));
    }

    /// It goes on.
    pub(crate) fn wakes(&mut self, now: u64) {
        if let Some(at) = self.stands_at.take() {
            self.stalled_us += now.saturating_sub(at);
        }
    }

    /// It stood still for so long in the turn that began now, of which the first tenth of a second counts.
    pub(crate) fn stood(&mut self, now: u64, stopped: u64) {
        // What had passed before the turn has passed, and with it the leases that were over then.
        self.active(now);
        self.stalled_us += stopped.saturating_sub(100_000 * 1_000_000 / self.rate + SLACK_US);
    }

    /// A datagram has reached the socket as it was sent, from an address that needs no proof.
    pub(crate) fn arrives(&mut self, now: u64, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        if !text.contains("\"method\":\"heartbeat\"") {
            return;
        }
        let hex = text.split_once("\"session\":\"").and_then(|(_, rest)| rest.get(..32));
        let Some(number) = hex.and_then(|hex| u128::from_str_radix(hex, 16).ok()) else { return };
        let session = SessionId(number);
        let Some(&(ttl_ms, until)) = self.sessions.get(&session) else { return };
        if self.active(now) < until {
            self.heard += 1;
            let until = until.max(self.until(now, ttl_ms));
            self.sessions.insert(session, (ttl_ms, until));
        }
    }

    /// What the log was asked; gives what is wrong with it.
    pub(crate) fn submitted(&mut self, now: u64, word: Word) -> Option<String> {
        match word {
            Word::Opened { session, ttl_ms } => {
                let until = self.until(now, ttl_ms);
                self.sessions.entry(session).or_insert((ttl_ms, until));
                None
            }
            Word::Closed { session } => {
                self.sessions.remove(&session);
                None
            }
            Word::Expired { session } => {
                let (ttl_ms, until) = self.sessions.remove(&session)?;
                let early = until - self.active(now);
                (early > 0).then(|| {
                    format!("a session with a TTL of {ttl_ms} ms is ended {early} microseconds before its lease is over")
                })
            }
        }
    }
}

/// The judge believed a session alive again that had run out before the server stood still in a turn: what the stop was
/// taken out of had not been counted up to the turn first (seed 9777; a full disk kept the end of the session from the log).
#[test]
fn a_lease_that_was_over_before_a_stop_in_a_turn_is_not_alive_in_it() {
    let session = SessionId(7);
    let beat = format!("{{\"method\":\"heartbeat\",\"params\":{{\"session\":\"{:032x}\"}}}}", session.0);
    let mut lives = Lives::new(1_000_000);
    lives.term(0, [(session, 1_000)].into_iter());
    lives.stood(1_200_000, 5_000_000);
    lives.arrives(1_300_000, beat.as_bytes());
    assert_eq!(lives.heard, 0, "its lease was over after one second");
    assert!(lives.submitted(6_300_000, Word::Expired { session }).is_none());
    lives.term(10_000_000, [(session, 1_000)].into_iter());
    lives.stood(10_200_000, 5_000_000);
    lives.arrives(10_300_000, beat.as_bytes());
    assert_eq!(lives.heard, 1);
    assert!(lives.submitted(15_300_000, Word::Expired { session }).is_some(), "it was heard in the stop");
}
