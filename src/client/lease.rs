//! What the client believes about its grants, by its own clock.
//!
//! ```text
//! send of the proof      2/3              80 %          100 % of TTL or lease
//!      ├── Safe ──────────┼── AtRisk ──────┼── Lost ──────┼── the server may grant it to another
//! ```
//!
//! The server counts from the arrival of what the client counts from the send of, and runs late, never early; the last
//! fifth is for clocks that run at different speeds and for a write that is already on its way.

use crate::time::Time;
use std::fmt;

/// How sure the client may be that it holds a grant, by its own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GrantState {
    /// Proven within two thirds of the lease.
    Safe,
    /// Still held, but unproven for two thirds of the lease: the server does not answer. Begin nothing long.
    AtRisk,
    /// Lost, for good: unproven for 80 % of the lease, or ended by the server.
    Lost,
}

/// The loss of a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostGrant {
    /// The token.
    pub token: u64,
    /// The locks.
    pub keys: Vec<String>,
    /// Why.
    pub cause: LostCause,
}

/// Why a grant is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LostCause {
    /// The server said so.
    Told {
        /// The reason, as in `lease_expired`, `broken` or `taken_over`.
        reason: String,
        /// What whoever ended it said of it; may be empty.
        note: String,
    },
    /// No answer proved it for 80 % of the session's TTL: the server may have given it to another by now.
    Unproven,
    /// Its own lease is over, or so nearly that it cannot be relied on.
    LeaseOver,
    /// It was held for as long as it may be, or so nearly that it cannot be relied on.
    HeldTooLong,
    /// The session has ended.
    SessionEnded,
    /// The server no longer counts it as held: somebody else released it.
    Gone,
}

impl fmt::Display for LostGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the grant {} of {} is lost: ", self.token, self.keys.join(", "))?;
        match &self.cause {
            LostCause::Told { reason, note } if note.is_empty() => {
                write!(f, "the server ended it ({reason})")
            }
            LostCause::Told { reason, note } => write!(f, "the server ended it ({reason}: {note})"),
            LostCause::Unproven => f.write_str("no answer has proved it for too long"),
            LostCause::LeaseOver => f.write_str("its lease is over and was not renewed"),
            LostCause::HeldTooLong => f.write_str("it was held for as long as it may be"),
            LostCause::SessionEnded => f.write_str("its session has ended"),
            LostCause::Gone => f.write_str("the server no longer counts it as held"),
        }
    }
}

/// The moments at which belief changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// From here [`GrantState::AtRisk`].
    pub at_risk: Time,
    /// From here [`GrantState::Lost`].
    pub lost: Time,
}

impl Span {
    /// Never at risk: what has no lease of its own.
    pub const ENDLESS: Span =
        Span { at_risk: Time::from_micros(u64::MAX), lost: Time::from_micros(u64::MAX) };

    /// The span of a lease whose proof was sent at `sent`.
    pub fn proven(sent: Time, lease_ms: u64) -> Span {
        let lease_us = lease_ms.saturating_mul(1_000);
        let lost =
            if crate::bug::planted("client_believes_too_long") { lease_us / 2 * 3 } else { lease_us / 5 * 4 };
        Span { at_risk: sent.after_us(lease_us / 3 * 2), lost: sent.after_us(lost) }
    }

    /// What both allow.
    pub fn and(self, other: Span) -> Span {
        Span { at_risk: self.at_risk.min(other.at_risk), lost: self.lost.min(other.lost) }
    }

    /// The state at a moment.
    pub fn state(self, now: Time) -> GrantState {
        if now >= self.lost {
            GrantState::Lost
        } else if now >= self.at_risk {
            GrantState::AtRisk
        } else {
            GrantState::Safe
        }
    }

    /// When the state next changes after `now`, if it does.
    pub fn next(self, now: Time) -> Option<Time> {
        [self.at_risk, self.lost].into_iter().find(|at| *at > now).filter(|at| *at < Span::ENDLESS.lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_at_risk_from_two_thirds_and_lost_from_four_fifths_to_the_microsecond() {
        let sent = Time::from_millis(1_000);
        let span = Span::proven(sent, 3_000);
        assert_eq!(span.state(sent), GrantState::Safe);
        assert_eq!(span.state(Time::from_micros(2_999_999)), GrantState::Safe);
        assert_eq!(span.state(Time::from_millis(3_000)), GrantState::AtRisk);
        assert_eq!(span.state(Time::from_micros(3_399_999)), GrantState::AtRisk);
        assert_eq!(span.state(Time::from_millis(3_400)), GrantState::Lost);
        assert_eq!(span.next(sent), Some(Time::from_millis(3_000)));
        assert_eq!(span.next(Time::from_millis(3_000)), Some(Time::from_millis(3_400)));
        assert_eq!(span.next(Time::from_millis(3_400)), None);
        assert_eq!(Span::ENDLESS.next(sent), None);
    }
}
