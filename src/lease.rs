//! The lease table: until when each session lives without a sign of life. In memory only; never logged.
//!
//! A sign of life moves one number. The queue keeps one entry a session, made when the session was last looked at; it is
//! moved on when it comes due and the session has been heard of since. So the work is one step a TTL, not a heartbeat.

use crate::identity::SessionId;
use crate::map::HashMap;
use crate::time::Time;
use std::collections::BTreeSet;

/// Deadlines of sessions. A session lives while `now < deadline`.
#[derive(Debug, Default)]
pub struct LeaseTable {
    leases: HashMap<SessionId, Lease>,
    /// When to look at which session: never later than its deadline.
    queue: BTreeSet<(Time, SessionId)>,
    /// Up to when [`LeaseTable::pass`] has looked.
    passed: Time,
}

#[derive(Debug)]
struct Lease {
    ttl_ms: u64,
    deadline: Time,
    /// Its entry in the queue.
    queued: Time,
    /// Its end is submitted: no sign of life helps any more.
    lapsing: bool,
}

impl LeaseTable {
    /// Begins a lease, or gives the session its full TTL once more.
    pub fn begin(&mut self, session: SessionId, ttl_ms: u64, now: Time) {
        self.end(session);
        let deadline = now.after_ms(ttl_ms);
        self.leases.insert(session, Lease { ttl_ms, deadline, queued: deadline, lapsing: false });
        self.queue.insert((deadline, session));
    }

    /// Ends a lease.
    pub fn end(&mut self, session: SessionId) {
        if let Some(lease) = self.leases.remove(&session) {
            self.queue.remove(&(lease.queued, session));
        }
    }

    /// Takes a sign of life that was read at `heard`: the lease runs from there. False if there is no such lease, it has run
    /// out at `now` or it is lapsing: then nothing was extended.
    pub fn renew(&mut self, session: SessionId, now: Time, heard: Time) -> bool {
        match self.leases.get_mut(&session) {
            Some(lease) if !lease.lapsing && now < lease.deadline => {
                if !crate::bug::planted("heartbeat_extends_nothing") {
                    lease.deadline = lease.deadline.max(heard.after_ms(lease.ttl_ms));
                }
                true
            }
            Some(_) if crate::bug::planted("lapsed_session_told_it_lives") => true,
            Some(_) | None => false,
        }
    }

    /// Marks that the end of the session is submitted.
    pub fn lapse(&mut self, session: SessionId) {
        if let Some(lease) = self.leases.get_mut(&session) {
            lease.lapsing = true;
            self.queue.remove(&(lease.queued, session));
        }
    }

    /// Whether the end of the session is submitted, or due: on a full disk it cannot be submitted yet.
    pub fn is_lapsing(&self, session: SessionId, now: Time) -> bool {
        self.leases.get(&session).is_some_and(|lease| lease.lapsing || lease.deadline <= now)
    }

    /// What the session has left at `now`, in milliseconds; none if there is no such lease.
    pub fn left_ms(&self, session: SessionId, now: Time) -> Option<u64> {
        self.leases.get(&session).map(|lease| lease.deadline.ms_until(now))
    }

    /// When to look again: never later than the earliest deadline.
    pub fn next_look(&self) -> Option<Time> {
        self.queue.first().map(|(time, _)| *time)
    }

    /// Looks at who is due at `now` while nobody can be ended: who has been heard of since is moved on, the others stay for
    /// [`LeaseTable::pop_lapsed`]. Gives when to look again: nobody alive has a deadline between `now` and then.
    pub fn pass(&mut self, now: Time) -> Option<Time> {
        let (from, behind) = (self.passed.min(now), now.after_us(1));
        let due: Vec<_> = self.queue.range((from, SessionId(0))..(behind, SessionId(0))).copied().collect();
        for (time, session) in due {
            let lease = self.leases.get_mut(&session).expect("a queued session has a lease");
            if lease.deadline > now {
                lease.queued = lease.deadline;
                self.queue.remove(&(time, session));
                self.queue.insert((lease.deadline, session));
            }
        }
        self.passed = behind;
        self.queue.range((behind, SessionId(0))..).next().map(|(time, _)| *time)
    }

    /// A session whose deadline has passed at `now`; it is marked as lapsing.
    pub fn pop_lapsed(&mut self, now: Time) -> Option<SessionId> {
        while let Some(&(time, session)) = self.queue.first() {
            if now < time {
                return None;
            }
            self.queue.pop_first();
            let lease = self.leases.get_mut(&session).expect("a queued session has a lease");
            if lease.deadline <= now {
                lease.lapsing = true;
                return Some(session);
            }
            lease.queued = lease.deadline;
            self.queue.insert((lease.deadline, session));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);

    fn at(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    #[test]
    fn a_lease_ends_at_its_deadline_and_not_a_microsecond_before() {
        let mut table = LeaseTable::default();
        table.begin(A, 100, at(0));
        assert_eq!(table.pop_lapsed(Time::from_micros(99_999)), None);
        assert_eq!(table.pop_lapsed(at(100)), Some(A));
        assert_eq!(table.pop_lapsed(at(100)), None, "it lapses once");
    }

    #[test]
    fn a_sign_of_life_extends_and_one_after_the_end_does_not() {
        let mut table = LeaseTable::default();
        table.begin(A, 100, at(0));
        table.begin(B, 100, at(0));
        assert!(table.renew(A, at(90), at(90)));
        assert_eq!(table.next_look(), Some(at(100)));
        assert_eq!(table.pop_lapsed(at(150)), Some(B));
        assert_eq!(table.pop_lapsed(at(189)), None);
        assert_eq!(table.pop_lapsed(at(190)), Some(A));
        assert!(!table.renew(A, at(190), at(190)), "a lapsing session is not revived");
        assert!(table.is_lapsing(A, at(190)));
    }

    #[test]
    fn what_has_run_out_is_not_revived_before_its_end_is_submitted() {
        let mut table = LeaseTable::default();
        table.begin(A, 100, at(0));
        assert!(!table.renew(A, at(100), at(100)));
        assert!(table.is_lapsing(A, at(100)) && !table.is_lapsing(A, at(99)));
        assert_eq!(table.pop_lapsed(at(100)), Some(A));
    }

    #[test]
    fn a_lease_is_judged_at_one_moment_and_runs_from_the_one_at_which_its_sign_of_life_was_read() {
        let mut table = LeaseTable::default();
        table.begin(A, 100, at(0));
        assert!(table.renew(A, at(99), at(150)), "it waited in the socket, and was read late");
        assert_eq!(table.pop_lapsed(Time::from_micros(249_999)), None);
        assert_eq!(table.pop_lapsed(at(250)), Some(A));
    }

    #[test]
    fn while_nobody_can_be_ended_each_deadline_to_come_is_told_once_and_nobody_is_forgotten() {
        let mut table = LeaseTable::default();
        table.begin(A, 100, at(0));
        table.begin(B, 150, at(0));
        table.renew(A, at(90), at(90));
        assert_eq!(table.pass(at(50)), Some(at(100)));
        assert_eq!(table.pass(at(100)), Some(at(150)), "A was heard of: its deadline is 190");
        assert_eq!(table.pass(at(150)), Some(at(190)), "B is over, and stays");
        assert!(table.renew(A, at(160), at(160)) && !table.renew(B, at(160), at(160)));
        assert_eq!(table.pass(at(190)), Some(at(260)));
        assert_eq!(table.pass(at(260)), None);
        assert_eq!((table.pop_lapsed(at(260)), table.pop_lapsed(at(260))), (Some(B), Some(A)));
    }

    #[test]
    fn once_its_end_is_submitted_a_session_is_lapsing_and_not_ended_again() {
        let mut table = LeaseTable::default();
        table.begin(A, 100, at(0));
        for session in [A, A, B] {
            table.lapse(session);
        }
        assert!(table.is_lapsing(A, at(0)) && !table.renew(A, at(1), at(1)));
        assert_eq!((table.next_look(), table.pop_lapsed(at(1_000))), (None, None));
    }

    #[test]
    fn an_older_sign_of_life_never_shortens_a_lease() {
        let mut table = LeaseTable::default();
        table.begin(A, 100, at(50));
        table.renew(A, at(10), at(10));
        assert_eq!(table.left_ms(A, at(50)), Some(100));
    }

    #[test]
    fn heartbeats_leave_no_trace_in_the_queue() {
        let mut table = LeaseTable::default();
        table.begin(A, 100, at(0));
        for ms in 0..10_000 {
            table.renew(A, at(ms), at(ms));
            assert_eq!(table.pop_lapsed(at(ms)), None);
            assert_eq!(table.queue.len(), 1);
        }
        table.end(A);
        assert!(table.queue.is_empty() && table.next_look().is_none());
    }
}
