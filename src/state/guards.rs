//! Guards: who may write key N and file N while lock N is held (the table in `docs/guarantees.md`).

use super::lock::Lock;
use super::{State, not_holder};
use crate::command::Mode;
use crate::identity::{SessionId, Token};
use crate::kind::{Kind, Refusal};
use crate::name::Name;

/// What a lock says of the key and the file of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guarded {
    /// Nobody holds it, or only slots of it, which guard nothing.
    Free,
    /// This grant holds it exclusively.
    By(Token),
    /// It is held shared: nobody writes.
    Shared,
    /// It is closed for its lock-delay: nobody writes.
    Closed,
}

impl State {
    /// What lock `key` says of what it guards.
    pub(super) fn guarded(&self, key: &str) -> Guarded {
        let Some((key, lock)) = self.locks.get_key_value(key) else { return Guarded::Free };
        let mut live = lock.holders().iter().filter_map(|token| Some((*token, self.live_grant(*token)?)));
        // All live holders hold in modes that go together, so the first tells.
        match live.next().map(|(token, grant)| (token, grant.mode_of(key))) {
            Some((token, Mode::Exclusive)) => Guarded::By(token),
            Some((_, Mode::Shared)) => Guarded::Shared,
            _ if lock.closed_until().is_some_and(|until| self.head.at < until) => Guarded::Closed,
            // The delay of a tenure that is over begins when it is cleaned up; nobody slips in before.
            _ if self.is_about_to_close(lock) => Guarded::Closed,
            Some((_, Mode::Slot { .. })) | None => Guarded::Free,
        }
    }

    /// Whether a holder is gone and not cleaned up yet, and the lock will close for its lock-delay.
    fn is_about_to_close(&self, lock: &Lock) -> bool {
        let delays = |token: &Token| self.grants[*token].terms().lock_delay_ms > 0;
        lock.holders().iter().any(|token| delays(token) && self.live_grant(*token).is_none())
    }

    /// Whether the caller may write what the lock guards only under it: it holds it exclusively.
    pub(super) fn holds(
        &self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Token,
        key: &Name,
    ) -> Result<(), Refusal> {
        let grant = self.grant_of(session, holder, token)?;
        if self.guarded(key) == Guarded::By(token) {
            return Ok(());
        }
        match grant.asks.binary_search_by(|ask| ask.key.cmp(key)) {
            Ok(_) => Err(not_holder(format!(
                "token {token} holds lock {key:?}, but not exclusively; convert it first"
            ))),
            Err(_) => Err(not_holder(format!(
                "token {token} does not hold lock {key:?}; acquire it exclusively first"
            ))),
        }
    }

    /// Whether the caller may write key `key`: it holds the lock of that name exclusively, or nobody keeps it from writing.
    pub(super) fn may_write_key(
        &self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Option<Token>,
        key: &Name,
    ) -> Result<(), Refusal> {
        if token.is_some() && crate::bug::planted("stale_token_sets") {
            return Ok(());
        }
        if let Some(token) = token {
            self.grant_of(session, holder, token)?;
        }
        let kind = if token.is_some() { Kind::NotHolder } else { Kind::Guarded };
        let text = match (self.guarded(key), token) {
            (Guarded::Free, _) => return Ok(()),
            (Guarded::By(holder), Some(token)) if holder == token => return Ok(()),
            (Guarded::By(_), Some(token)) => {
                format!(
                    "lock {key:?} is held under another token than {token}; only its holder may write the key"
                )
            }
            (Guarded::By(token), None) => {
                let client = self.sessions[&self.grants[token].session].client;
                format!(
                    "key {key:?} is guarded: client {client} holds its lock; only the holder may write it, with its token"
                )
            }
            (Guarded::Shared, _) => {
                format!(
                    "key {key:?} is guarded: its lock is held shared, and so nobody writes it, not its holders either"
                )
            }
            (Guarded::Closed, _) => {
                format!("key {key:?} is guarded: its lock is closed for the lock-delay of its last tenure")
            }
        };
        Err(Refusal::new(kind, text))
    }

    /// Whether the caller may give a file the name `to`: the lock of that name is free or the caller's.
    pub(super) fn may_take_name(
        &self,
        session: SessionId,
        holder: Option<SessionId>,
        to: &Name,
    ) -> Result<(), Refusal> {
        let whose = holder.unwrap_or(session);
        let why = match self.guarded(to) {
            Guarded::Free => return Ok(()),
            Guarded::By(token) if self.grants[token].session == whose => {
                match self.section(token).is_some_and(|section| section.file(to).is_some()) {
                    true => "is held by a grant under which appends to that file are staged",
                    false => return Ok(()),
                }
            }
            Guarded::By(_) => "is held by another session",
            Guarded::Shared => "is held shared",
            Guarded::Closed => "is closed for the lock-delay of its last tenure",
        };
        Err(Refusal::new(Kind::Guarded, format!("lock {to:?} {why}")))
    }
}
