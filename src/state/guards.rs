//! Guards: who may write key N and file N while lock N is held (the table in `docs/guarantees.md`).

use super::{State, not_holder};
use crate::identity::{SessionId, Token};
use crate::kind::{Kind, Refusal};
use crate::name::Name;

impl State {
    /// The token of the live grant that holds the lock exclusively.
    fn exclusive_holder(&self, key: &str) -> Option<Token> {
        let lock = self.locks.get(key)?;
        lock.holders.iter().copied().find(|token| self.live_grant(*token, self.head.at).is_some())
    }

    /// Whether the caller may write what the lock guards only under it: it holds it exclusively.
    pub(super) fn holds(
        &self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Token,
        key: &Name,
    ) -> Result<(), Refusal> {
        self.grant_of(session, holder, token, self.head.at)?;
        if self.exclusive_holder(key) == Some(token) {
            return Ok(());
        }
        Err(not_holder(format!("token {token} does not hold lock {key:?}; acquire it exclusively first")))
    }

    /// Whether the caller may write key `key`: it holds the lock of that name, or nobody does.
    pub(super) fn may_write_key(
        &self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Option<Token>,
        key: &Name,
    ) -> Result<(), Refusal> {
        if let Some(token) = token {
            self.grant_of(session, holder, token, self.head.at)?;
        }
        match (self.exclusive_holder(key), token) {
            (None, _) => Ok(()),
            (Some(holder), Some(token)) if holder == token => Ok(()),
            (Some(_), Some(token)) => Err(not_holder(format!(
                "lock {key:?} is held under another token than {token}; only its holder may write the key"
            ))),
            (Some(token), None) => {
                let held_by = self.holder(token, &self.grants[&token], self.head.at);
                Err(Refusal::new(
                    Kind::Guarded,
                    format!(
                        "key {key:?} is guarded: client {} holds its lock; only the holder may write it, with its token",
                        held_by.client
                    ),
                ))
            }
        }
    }

    /// Whether the caller may give a file the name `to`: nobody else holds the lock of that name.
    pub(super) fn may_take_name(
        &self,
        session: SessionId,
        holder: Option<SessionId>,
        to: &Name,
    ) -> Result<(), Refusal> {
        let whose = holder.unwrap_or(session);
        match self.exclusive_holder(to) {
            Some(token) if self.grants[&token].session != whose => {
                Err(Refusal::new(Kind::Guarded, format!("lock {to:?} is held by another session")))
            }
            Some(token) if self.section(token).is_some_and(|section| section.file(to).is_some()) => {
                let text = format!(
                    "appends to file {to:?} are staged under token {token}; rotate to another name, or release it first"
                );
                Err(Refusal::new(Kind::Guarded, text))
            }
            Some(_) | None => Ok(()),
        }
    }
}
