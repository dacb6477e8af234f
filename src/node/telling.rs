//! Tellings: answered waits whose replies have not been shown to have arrived, and when to send them again.

use crate::identity::SessionId;
use crate::time::Time;
use std::collections::{BTreeMap, BTreeSet};

/// First and longest gap between two copies of a reply, in milliseconds (`docs/protocol.md`, "Waits").
const FIRST_GAP_MS: u64 = 50;
const LONGEST_GAP_MS: u64 = 1_000;

#[derive(Debug, Default)]
pub(super) struct Tellings {
    open: BTreeMap<(SessionId, u64), Telling>,
    queue: BTreeSet<(Time, SessionId, u64)>,
}

#[derive(Debug)]
struct Telling {
    next: Time,
    gap_ms: u64,
    /// When the wait was answered; unknown if that was before this server started.
    since: Option<Time>,
}

impl Tellings {
    /// Begins to tell the outcome that a wait has got now; the first copy is due at once.
    pub(super) fn begin(&mut self, session: SessionId, id: u64, now: Time) {
        self.open(session, id, now, Some(now));
    }

    /// Begins to tell the outcome that a wait got before this server started.
    pub(super) fn begin_late(&mut self, session: SessionId, id: u64, now: Time) {
        self.open(session, id, now, None);
    }

    fn open(&mut self, session: SessionId, id: u64, now: Time, since: Option<Time>) {
        self.end(session, id);
        self.open.insert((session, id), Telling { next: now, gap_ms: FIRST_GAP_MS, since });
        self.queue.insert((now, session, id));
    }

    /// The reply has arrived: since when it was told, if it was told and that is known.
    pub(super) fn heard(&mut self, session: SessionId, id: u64) -> Option<Time> {
        let since = self.open.get(&(session, id)).and_then(|telling| telling.since);
        self.end(session, id);
        since
    }

    /// A copy was sent: the next one is due after the gap, which doubles.
    pub(super) fn told(&mut self, session: SessionId, id: u64, now: Time) {
        if let Some(telling) = self.open.get_mut(&(session, id)) {
            self.queue.remove(&(telling.next, session, id));
            telling.next = now.after_ms(telling.gap_ms);
            telling.gap_ms = (telling.gap_ms * 2).min(LONGEST_GAP_MS);
            self.queue.insert((telling.next, session, id));
        }
    }

    /// There is nothing or nobody to tell any more.
    pub(super) fn end(&mut self, session: SessionId, id: u64) {
        if let Some(telling) = self.open.remove(&(session, id)) {
            self.queue.remove(&(telling.next, session, id));
        }
    }

    /// The session has ended.
    pub(super) fn end_session(&mut self, session: SessionId) {
        let ids: Vec<u64> =
            self.open.range((session, 0)..=(session, u64::MAX)).map(|((_, id), _)| *id).collect();
        for id in ids {
            self.end(session, id);
        }
    }

    /// When the next copy is due.
    pub(super) fn next(&self) -> Option<Time> {
        self.queue.first().map(|(time, _, _)| *time)
    }

    /// A telling whose next copy is due at `now`. The caller says [`Tellings::told`] or [`Tellings::end`].
    pub(super) fn pop_due(&mut self, now: Time) -> Option<(SessionId, u64)> {
        match self.queue.first() {
            Some(&(time, session, id)) if time <= now => Some((session, id)),
            Some(_) | None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_go_out_after_50_ms_doubling_to_a_second_until_the_reply_was_got() {
        let (session, mut now, mut gaps) = (SessionId(1), Time::ZERO, Vec::new());
        let mut tellings = Tellings::default();
        tellings.begin(session, 7, now);
        assert_eq!(tellings.pop_due(now), Some((session, 7)));
        tellings.told(session, 7, now);
        for _ in 0..7 {
            let next = tellings.next().unwrap();
            gaps.push(next.ms_since(now));
            now = next;
            assert_eq!(tellings.pop_due(now), Some((session, 7)));
            tellings.told(session, 7, now);
        }
        assert_eq!(gaps, [50, 100, 200, 400, 800, 1_000, 1_000]);
        tellings.end(session, 7);
        assert_eq!(tellings.next(), None);
    }
}
