//! Locks: asking for them, and how they are shown.

use super::lock::Lock;
use super::sessions::waits_already;
use super::{State, Wait};
use crate::command::{Ask, Mode, Patience, Terms};
use crate::identity::{Op, SessionId, Token};
use crate::kind::{Detail, Kind, Refusal};
use crate::limits::HOLDERS_SHOWN;
use crate::name::Name;
use crate::outcome::{Effect, Holder, Outcome};
use crate::state::parts::DelayPart;
use crate::time::Time;

/// A lock as it is shown: live holders only.
#[derive(Debug)]
pub struct LockView<'a> {
    /// The lock.
    pub key: &'a Name,
    /// Live holders, at most [`HOLDERS_SHOWN`].
    pub holders: Vec<Holder>,
    /// How many live holders there are.
    pub holders_total: u64,
    /// How many waits stand in line.
    pub queue_total: u64,
    /// How long it stays closed for its lock-delay, in milliseconds; 0 if it is not closed.
    pub closed_ms: u64,
}

/// What an acquire wants.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub session: SessionId,
    pub id: u64,
    pub fingerprint: u64,
    pub asks: &'a [Ask],
    pub owner: &'a str,
    pub terms: &'a Terms,
}

impl State {
    /// The lock as it is at `now`; none if nobody holds it or waits for it and it is not closed.
    pub fn lock(&self, key: &str, now: Time) -> Option<LockView<'_>> {
        let (key, lock) = self.locks.get_key_value(key)?;
        Some(self.view(key, lock, now))
    }

    /// Locks whose names begin with `prefix`, after the name `after`, in the order of their names.
    pub fn locks<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        now: Time,
    ) -> impl Iterator<Item = LockView<'a>> {
        super::keys::names_from(&self.locks, prefix, after).map(move |(key, lock)| self.view(key, lock, now))
    }

    /// The line of a lock, in the order in which it is served: conversions, then the others. Waits that are dead are left out.
    pub fn line<'a>(&'a self, key: &str) -> impl Iterator<Item = (Op, &'a Wait)> {
        let line = self.locks.get(key).map(|lock| lock.converting().iter().chain(lock.line()));
        line.into_iter()
            .flatten()
            .map(|op| (*op, &self.waits[op]))
            .filter(move |(_, wait)| self.wait_lives(wait))
    }

    fn view<'a>(&'a self, key: &'a Name, lock: &Lock, now: Time) -> LockView<'a> {
        let mut holders = Vec::new();
        let mut holders_total = 0;
        for token in lock.holders() {
            let Some(grant) = self.live_grant(*token) else { continue };
            holders_total += 1;
            if holders.len() < HOLDERS_SHOWN {
                holders.push(self.holder(*token, grant, key, now));
            }
        }
        LockView {
            key,
            holders,
            holders_total,
            queue_total: lock.queue_len() as u64,
            closed_ms: lock.closed_until().map_or(0, |until| until.ms_until(now)),
        }
    }

    pub(super) fn acquire(
        &mut self,
        wanted: &Wanted<'_>,
        patience: Patience,
        effects: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        self.refuse_second_wait(wanted.session, wanted.owner, effects)?;
        // Locks that nobody has to do with, which most are that somebody asks for, need no second look.
        let known = |ask: &Ask| self.locks.contains_key(&ask.key);
        let unknown = self.unserved.is_empty() && !wanted.asks.iter().any(known);
        if !unknown {
            self.clear(wanted.asks.iter().map(|ask| ask.key.clone()), effects);
            if let Some(outcome) = self.held_already(wanted)? {
                return Ok(outcome);
            }
            for ask in wanted.asks {
                self.same_slots(&ask.key, ask.mode, None)?;
            }
        }
        let passes = |lock: &Lock, mode| {
            crate::bug::planted("newcomer_passes_the_line")
                && lock.closed_until().is_none()
                && lock.taken().admits(mode)
        };
        let open = |ask: &Ask| {
            self.locks.get(&ask.key).is_none_or(|lock| lock.is_open(ask.mode) || passes(lock, ask.mode))
        };
        if unknown || wanted.asks.iter().all(open) {
            let max = self.head.limits.grants;
            if self.grants.len() as u64 >= max {
                let text = format!("the server has its {max} grants; release one, or raise --max-grants");
                return Err(Refusal::limit("grants", max, text));
            }
            return Ok(self.grant(wanted));
        }
        let now = self.head.at;
        let deadline = match patience {
            Patience::Try => {
                return Ok(Outcome::NotGranted(Box::new(self.why_not(wanted.asks, now))));
            }
            Patience::Millis(ms) => Some(self.clock.after_ms(ms)),
            Patience::Forever => None,
        };
        self.refuse_deadlock(wanted, None)?;
        self.stand_in_line(wanted, deadline, None)
    }

    /// Refuses an owner that waits already. A wait of its own that is past its limit is ended first.
    pub(super) fn refuse_second_wait(
        &mut self,
        session: SessionId,
        owner: &str,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let Some((id, op)) = self.wait_of(session, owner) else { return Ok(()) };
        if self.wait_lives(&self.waits[&op]) {
            return Err(waits_already(id));
        }
        self.give_up(op, effects);
        Ok(())
    }

    /// The wait of an owner, as the id of its request and the command that put it in line.
    pub(super) fn wait_of(&self, session: SessionId, owner: &str) -> Option<(u64, Op)> {
        let session = &self.sessions[&session];
        let id = *session.waiting.get(owner)?;
        match session.wait_standing(id) {
            super::Standing::InLine(op) => Some((id, op)),
            standing => panic!("a waiting owner has a wait that is {standing:?}"),
        }
    }

    /// The answer to an owner that holds some of what it asks for; none if it holds nothing of it.
    fn held_already(&self, wanted: &Wanted<'_>) -> Result<Option<Outcome>, Refusal> {
        let tokens = self.held_of(wanted.session, wanted.owner, wanted.asks);
        match tokens[..] {
            [] => Ok(None),
            // Who asks for a grant of the other kind must not take this one for it: its writes would take effect at once, or
            // not at all.
            [token]
                if *self.grants[token].asks == *wanted.asks
                    && self.grants[token].terms().atomic == wanted.terms.atomic =>
            {
                Ok(Some(self.granted(token, &self.grants[token], true)))
            }
            _ => {
                let text = "this owner holds some of these locks already; release them first, or name another `owner`";
                Err(Refusal::new(Kind::AlreadyHeld, text).with(Detail::Held { tokens }))
            }
        }
    }

    /// The live grants of an owner that hold any of these locks.
    pub(super) fn held_of(&self, session: SessionId, owner: &str, asks: &[Ask]) -> Vec<Token> {
        let of_owner = |token: Token| {
            self.live_grant(token)
                .filter(|grant| grant.session == session && *grant.owner == *owner)
                .map(|grant| (token, grant))
        };
        let locks = || asks.iter().filter_map(|ask| self.locks.get(&ask.key));
        let grants = &self.sessions[&session].grants;
        // The shorter list is searched: all grants of the session, or all holders of the locks.
        let holders: usize = locks().map(|lock| lock.holders().len()).sum();
        let mut tokens: Vec<Token> = if grants.len() < holders {
            let overlaps = |grant: &super::Grant| {
                asks.iter().any(|ask| grant.asks.binary_search_by(|held| held.key.cmp(&ask.key)).is_ok())
            };
            grants
                .iter()
                .filter_map(of_owner)
                .filter(|(_, grant)| overlaps(grant))
                .map(|(token, _)| token)
                .collect()
        } else {
            let holders = locks().flat_map(|lock| lock.holders().iter());
            holders.filter_map(|token| of_owner(*token)).map(|(token, _)| token).collect()
        };
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    /// Refuses to ask for another number of slots than is in force; `own` is a grant that does not count.
    pub(super) fn same_slots(&self, key: &Name, mode: Mode, own: Option<Token>) -> Result<(), Refusal> {
        let Mode::Slot { slots, .. } = mode else { return Ok(()) };
        let in_force = self.slots_in_force(key, own);
        match in_force {
            Some(in_force) if in_force != slots => {
                let text = format!(
                    "lock {key:?} has {in_force} slots as long as somebody holds or waits for one; {slots} were asked for"
                );
                Err(Refusal::new(Kind::InvalidParams, text).with(Detail::Slots { slots: in_force }))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn slots_in_force(&self, key: &Name, own: Option<Token>) -> Option<u32> {
        let lock = self.locks.get(key)?;
        let slots = |mode| match mode {
            Mode::Slot { slots, .. } => Some(slots),
            Mode::Exclusive | Mode::Shared => None,
        };
        let grants = lock.holders().iter().filter(|token| Some(**token) != own);
        // All live holders hold in modes that go together, so the first tells.
        let held = grants.filter_map(|token| self.live_grant(*token)).next();
        if let Some(slots) = held.and_then(|grant| slots(grant.mode_of(key))) {
            return Some(slots);
        }
        if lock.slot_waits() == 0 {
            return None;
        }
        let waits = lock.converting().iter().chain(lock.line()).map(|op| &self.waits[op]);
        waits.filter(|wait| self.wait_lives(wait)).find_map(|wait| slots(wait.mode_of(key)))
    }

    pub(super) fn delay_parts(&self) -> Vec<DelayPart> {
        let closed = |(key, lock): (&Name, &Lock)| {
            lock.closed_until().map(|until| DelayPart { key: key.clone(), until })
        };
        self.locks.iter().filter_map(closed).collect()
    }

    pub(super) fn add_delay(&mut self, part: DelayPart) -> Result<(), String> {
        let lock = self.locks.entry(part.key.clone()).or_default();
        if lock.contended().closed_until.replace(part.until).is_some() {
            return Err(format!("the delay of lock {:?} stands twice", part.key));
        }
        self.due.insert((part.until, super::Due::LockDelay(part.key)));
        Ok(())
    }
}
