//! Breaks: grants that are ended from outside, at once or after their holder was asked to let go.
//!
//! An asking is part of the grant: it ends with it, and goes along when another session takes the grant over, so that
//! nobody gets out of a deadline by handing the lock around. Its deadline is one of log time like that of a lease.

use super::{Due, State};
use crate::identity::{SessionId, Token};
use crate::kind::{Kind, Refusal};
use crate::limits::SWEEP_MAX;
use crate::outcome::{Asked, Effect, LossReason, Outcome};

impl State {
    /// Ends a grant whether its holder agrees or not.
    pub(super) fn break_lock(
        &mut self,
        token: Token,
        reason: &str,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        self.still_live(token)?;
        self.sweep_locks_of(token, effects);
        self.lose_grant(token, LossReason::Broken, reason.into(), effects);
        self.end_grant(token, LossReason::Broken.into(), effects);
        Ok(Outcome::Broken { op: self.head.op })
    }

    /// Cleans the locks of a live grant of what is gone, before it goes to somebody else. Nothing is served.
    pub(super) fn sweep_locks_of(&mut self, token: Token, effects: &mut Vec<Effect>) {
        let mut left = SWEEP_MAX;
        for ask in &self.grants[token].asks.clone() {
            self.sweep_lock(&ask.key, &mut left, effects);
        }
    }

    /// Asks the holder of a grant to let go. Of several askings the newest stands.
    pub(super) fn ask_release(
        &mut self,
        session: SessionId,
        token: Token,
        reason: &str,
        deadline_ms: Option<u64>,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        self.still_live(token)?;
        self.forget_asked(token);
        let asked = Asked {
            client: self.sessions[&session].client,
            reason: reason.into(),
            deadline: deadline_ms.map(|ms| self.clock.after_ms(ms)),
            op: self.head.op,
        };
        if let Some(deadline) = asked.deadline {
            self.due.insert((deadline, Due::Break(token)));
        }
        let grant = self.grants.get_mut(token).expect("it was found");
        grant.rare_mut().asked = Some(asked);
        let session = grant.session;
        self.note_asked(token);
        effects.push(Effect::Asked { session, token });
        Ok(Outcome::ReleaseAsked { deadline_ms })
    }

    /// Puts the asking of a grant into the index of its session.
    pub(super) fn note_asked(&mut self, token: Token) {
        let grant = &self.grants[token];
        if let Some(asked) = grant.asked() {
            let session = self.sessions.get_mut(&grant.session).expect("a grant has a session");
            session.asked.insert((asked.op, token));
        }
    }

    /// Takes back the asking of a grant, with its deadline.
    pub(super) fn forget_asked(&mut self, token: Token) {
        let grant = self.grants.get_mut(token).expect("an asking is that of a grant");
        let Some(asked) = grant.rare_if_any().and_then(|rare| rare.asked.take()) else { return };
        let session = self.sessions.get_mut(&grant.session).expect("a grant has a session");
        session.asked.remove(&(asked.op, token));
        if let Some(deadline) = asked.deadline {
            self.due.remove(&(deadline, Due::Break(token)));
        }
    }

    fn still_live(&self, token: Token) -> Result<(), Refusal> {
        match self.live_grant(token) {
            Some(_) => Ok(()),
            None => {
                let text = format!(
                    "there is no live grant with token {token}: it has ended, or never was; `get_lock_info` tells who holds \
                     the lock now"
                );
                Err(Refusal::new(Kind::NotFound, text))
            }
        }
    }
}
