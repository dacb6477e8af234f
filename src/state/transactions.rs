//! Transactions: several keys compared and changed by one command, or none of them.

use super::State;
use super::keys::version_mismatch;
use crate::command::{Change, Compare};
use crate::identity::{SessionId, Token};
use crate::kind::{Detail, Refusal};
use crate::outcome::Outcome;

impl State {
    /// Compares all, then looks whether the caller may write each key, then at the caps, and only then changes anything.
    pub(super) fn transaction(
        &mut self,
        session: SessionId,
        holder: Option<SessionId>,
        token: Option<Token>,
        compare: &[Compare],
        apply: &[Change],
    ) -> Result<Outcome, Refusal> {
        // Whoever lost the grant is to be told that, and not that others have gone on meanwhile.
        if let Some(token) = token {
            self.grant_of(session, holder, token)?;
        }
        let compare = if crate::bug::planted("transaction_compares_nothing") { &[] } else { compare };
        for Compare { key, version: asked } in compare {
            let version = self.key(key).map_or(0, |key| key.version);
            if version != *asked {
                return Err(version_mismatch(key, version, *asked)
                    .with(Detail::VersionOf { key: key.clone(), version }));
            }
        }
        for change in apply {
            self.may_write_key(session, holder, token, &change.key)?;
        }
        for change in apply {
            self.check_value(change)?;
        }
        self.check_caps(apply)?;
        let client = self.binding(session, holder, apply)?;
        let half = if crate::bug::planted("half_a_transaction") { 1 } else { usize::MAX };
        for change in apply.iter().take(half) {
            self.apply_change(change, client);
        }
        Ok(Outcome::Applied { version: self.head.op, staged: false })
    }
}
