//! Converting a grant to other modes.

use super::guard::{Patience, millis, refused};
use super::tenure::Tenure;
use super::{Blocked, Client, Error, Result};
use crate::command::Mode;
use crate::identity::SessionId;
use crate::wire::{Acquired, Int, KeyAsk, KeyShown, Params, Pending};
use crossbeam_channel::Sender;
use std::sync::Arc;
use std::time::Duration;

/// A conversion, from [`Guard::convert`](super::Guard::convert) or [`Fence::convert`](super::Fence::convert): say how long
/// it may wait, then [`apply`](Conversion::apply).
///
/// To the same or a weaker mode it is done at once and the token stays. To a stronger one it is an upgrade: granted when
/// nobody else stands in the way, before all who wait for the lock, with a new token; the old token is over. Without
/// [`wait`](Conversion::wait) it is tried once. Whatever comes of it, the grant is never let go in between.
#[derive(Debug)]
#[must_use = "nothing is asked before `apply`"]
pub struct Conversion<'a> {
    client: &'a Client,
    target: Target<'a>,
    params: Params,
    wait: Patience,
    deadline: Option<Duration>,
    progress: Option<Sender<Pending>>,
}

/// What is converted.
#[derive(Debug)]
enum Target<'a> {
    /// The grant of a guard.
    Tenure(&'a Arc<Tenure>),
    /// A grant by its token.
    Token { token: Option<u64>, holder: Option<SessionId> },
}

/// What a conversion gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// The token that the grant has now.
    pub token: u64,
    /// All its locks, as they are held now.
    pub locks: Vec<KeyShown>,
}

impl<'a> Conversion<'a> {
    pub(super) fn of_guard(client: &'a Client, tenure: &'a Arc<Tenure>, mode: Mode) -> Conversion<'a> {
        let keys = tenure.keys().iter().map(|key| KeyAsk::from((key.clone(), mode))).collect();
        Conversion::new(client, Target::Tenure(tenure), keys)
    }

    pub(super) fn of_token(
        client: &'a Client,
        token: Option<u64>,
        holder: Option<SessionId>,
        keys: Vec<KeyAsk>,
    ) -> Conversion<'a> {
        Conversion::new(client, Target::Token { token, holder }, keys)
    }

    fn new(client: &'a Client, target: Target<'a>, keys: Vec<KeyAsk>) -> Conversion<'a> {
        let params = Params { keys: Some(keys), ..Params::default() };
        Conversion { client, target, params, wait: Patience::Try, deadline: None, progress: None }
    }

    /// Converts these locks of the grant, each to its mode, and leaves the others as they are.
    pub fn only<K: Into<String>>(mut self, keys: impl IntoIterator<Item = (K, Mode)>) -> Conversion<'a> {
        self.params.keys = Some(keys.into_iter().map(KeyAsk::from).collect());
        self
    }

    /// Waits for at most so long, the grant held meanwhile as it is. In whole milliseconds, at most 30 days.
    pub fn wait(mut self, limit: Duration) -> Conversion<'a> {
        self.wait = Patience::Within(limit);
        self
    }

    /// Waits until it is done, or refused because it could never be: two holders that both wait to upgrade are a deadlock.
    pub fn wait_forever(mut self) -> Conversion<'a> {
        self.wait = Patience::Forever;
        self
    }

    /// How long to go on without an answer, on top of the wait. By default the client's own deadline.
    pub fn deadline(mut self, deadline: Duration) -> Conversion<'a> {
        self.deadline = Some(deadline);
        self
    }

    /// Sends word each time that the server says the conversion waits, and for whom. What does not fit the channel is
    /// dropped.
    pub fn progress(mut self, to: Sender<Pending>) -> Conversion<'a> {
        self.progress = Some(to);
        self
    }

    /// Converts the grant. Gives its token and its locks as they are now.
    ///
    /// # Errors
    /// [`Error::NotGranted`] if somebody is in the way or the wait ended, and [`Error::Deadlock`] if waiting could never
    /// end: the grant is as it was. [`Error::Lost`] if it ended. [`Error::OutcomeUnknown`] if no answer came: the client
    /// then takes the conversion back, and if it was done already the guard goes on with what it gave. Others as [`Error`]
    /// says.
    pub fn apply(self) -> Result<Converted> {
        let mut params = self.params;
        params.wait_ms = self.wait.wait_ms();
        let within = self.wait.within(self.deadline.unwrap_or(self.client.deadline()));
        let answer = match self.target {
            Target::Tenure(tenure) => {
                self.client.core.request_of(tenure, "convert_lock", params, within, self.progress)
            }
            Target::Token { token, holder } => {
                params.token = token.map(Int);
                params.holder = holder;
                self.client.request("convert_lock", params, within, self.progress)
            }
        };
        if let Target::Tenure(tenure) = self.target
            && let Some(loss) = tenure.loss()
        {
            return Err(Error::Lost(loss));
        }
        let acquired: Acquired = answer.map_err(refused)?.read("convert_lock")?;
        match (acquired.granted, acquired.token) {
            (Some(true), Some(token)) => Ok(Converted { token, locks: acquired.keys }),
            (Some(true), None) => Err(Error::Protocol {
                method: "convert_lock".into(),
                message: "a grant without a token".into(),
            }),
            (Some(false) | None, _) => Err(Error::NotGranted(Box::new(Blocked::new(acquired)))),
        }
    }
}

impl Patience {
    /// As the wire has it.
    pub(super) fn wait_ms(self) -> Option<crate::wire::WaitMs> {
        match self {
            Patience::Try => None,
            Patience::Within(limit) => Some(crate::wire::WaitMs(Some(Int(millis(limit))))),
            Patience::Forever => Some(crate::wire::WaitMs(None)),
        }
    }

    /// How long a call may take that waits so.
    pub(super) fn within(self, answer_within: Duration) -> Option<Duration> {
        match self {
            Patience::Try => Some(answer_within),
            Patience::Within(limit) => Some(answer_within.saturating_add(limit)),
            Patience::Forever => None,
        }
    }
}
