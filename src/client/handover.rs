//! What others want of a grant: that its holder lets go, or that somebody takes it over; and the taking.

use super::guard::{Guard, millis, refused, thread_owner};
use super::socket::boot_time;
use super::{Client, Error, Result};
use crate::identity::SessionId;
use crate::time::Time;
use crate::wire::{Acquired, Broken, Int, KeyShown, Params, ReleaseAsked};
use std::time::Duration;

/// Somebody asks the holder of a grant to let go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asking {
    /// The grant.
    pub token: u64,
    /// The public number of the session that asks.
    pub client: u64,
    /// Why.
    pub reason: String,
    /// The command that asked.
    pub(super) op: u64,
    /// When the grant will be broken at the earliest, by this client's clock, if ever.
    pub(super) deadline: Option<Time>,
}

impl Asking {
    /// What is left, from now, until the grant is broken; `None` if it will not be.
    pub fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| Duration::from_micros(deadline.us_since(boot_time())))
    }
}

/// A grant of another session that this one may take over, with [`Client::take_over`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The grant.
    pub token: u64,
    /// Its locks.
    pub keys: Vec<KeyShown>,
    /// The public number of the session that holds it.
    pub client: u64,
    /// That session's name.
    pub name: String,
    /// The owner inside it.
    pub owner: String,
    /// The grant's label.
    pub label: String,
    /// The grant's own lease, if it has one; it begins anew with the take-over.
    pub lease: Option<Duration>,
}

/// A request to take a grant over, from [`Client::take_over`]: say how, then [`take`](TakeOver::take).
#[derive(Clone, Debug)]
#[must_use = "nothing is asked before `take`"]
pub struct TakeOver {
    client: Client,
    params: Params,
    deadline: Option<Duration>,
}

impl TakeOver {
    /// The session that holds the grant, for those who know its id: then no offer is needed.
    pub fn holder(mut self, holder: SessionId) -> TakeOver {
        self.params.holder = Some(holder);
        self
    }

    /// The owner inside the session; by default each thread is one. As in [`LockRequest::owner`](super::LockRequest::owner).
    pub fn owner(mut self, owner: impl Into<String>) -> TakeOver {
        self.params.owner = Some(owner.into());
        self
    }

    /// A note for people, in the place of the one that the grant had. At most 128 bytes.
    pub fn label(mut self, label: impl Into<String>) -> TakeOver {
        self.params.label = Some(label.into());
        self
    }

    /// How long to go on without an answer. By default the client's own deadline.
    pub fn deadline(mut self, deadline: Duration) -> TakeOver {
        self.deadline = Some(deadline);
        self
    }

    /// Takes the grant over and gives its guard. The locks never come free in between; the token is a new one, and the old
    /// one is fenced.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_holder` if the grant has ended or was not offered. [`Error::AlreadyHeld`] if this owner
    /// waits, or holds one of the locks. [`Error::OutcomeUnknown`] if no answer came: the client then takes the request back
    /// as soon as the server answers; if it took effect, the grant is released. Others as [`Error`] says.
    pub fn take(mut self) -> Result<Guard> {
        if self.params.owner.is_none() {
            self.params.owner = Some(thread_owner());
        }
        let within = Some(self.deadline.unwrap_or(self.client.deadline()));
        let answer = self.client.request("take_over", self.params, within, None).map_err(refused)?;
        let acquired: Acquired = answer.read("take_over")?;
        match (acquired.granted, answer.tenure) {
            (Some(true), Some(tenure)) => Ok(Guard::new(self.client, tenure, acquired.atomic)),
            _ => Err(Error::Protocol {
                method: "take_over".into(),
                message: "an answer without a grant".into(),
            }),
        }
    }
}

impl Client {
    /// Takes over a grant that was offered to this session, or whose session's id is known; see [`TakeOver`].
    pub fn take_over(&self, token: u64) -> TakeOver {
        let params = Params { token: Some(Int(token)), ..Params::default() };
        TakeOver { client: self.clone(), params, deadline: None }
    }

    /// Ends the grant with that token, whether its holder agrees or not; the holder is told the reason, of at most 256
    /// bytes. For operators: only from the server's own machine. Gives the place in the log.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_found` if there is no such live grant, or `forbidden`; others as [`Error`] says.
    pub fn break_lock(&self, token: u64, reason: &str) -> Result<u64> {
        let params = Params { token: Some(Int(token)), reason: Some(reason.into()), ..Params::default() };
        let broken: Broken = self.ask("break_lock", params)?;
        Ok(broken.op)
    }

    /// Asks the holder of the grant with that token to let go; past the deadline, if there is one, the grant is broken. For
    /// operators: only from the server's own machine. The deadline is in whole milliseconds, at most 24 h.
    ///
    /// # Errors
    /// As [`break_lock`](Client::break_lock).
    pub fn ask_release(&self, token: u64, reason: &str, deadline: Option<Duration>) -> Result<()> {
        let params = Params {
            token: Some(Int(token)),
            reason: Some(reason.into()),
            deadline_ms: deadline.map(|deadline| Int(millis(deadline))),
            ..Params::default()
        };
        self.ask::<ReleaseAsked>("ask_release", params).map(|_| ())
    }
}
