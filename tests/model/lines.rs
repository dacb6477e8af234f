//! Locks, their holders and their lines, in the plainest way: two lists, and every question asked of them anew.

use super::model::{Model, Out, Said, Why, refused};
use std::collections::BTreeMap;
use tenure::command::{Ask, Call, Mode, Patience, Request, Terms};
use tenure::identity::SessionId;
use tenure::kind::CycleStep;
use tenure::limits::CYCLE_SHOWN;
use tenure::outcome::{Ahead, Asked, LossReason, Reason};
use tenure::state::{GrantEnd, What};

/// A grant. It is in the list until it was cleaned up, dead or not.
#[derive(Clone, Debug)]
pub(crate) struct MGrant {
    pub(crate) token: u64,
    pub(crate) session: SessionId,
    pub(crate) owner: String,
    pub(crate) asks: Vec<Ask>,
    pub(crate) op: u64,
    pub(crate) terms: Terms,
    /// When its own lease ends it.
    pub(crate) lease_until: Option<u64>,
    /// When its max hold ends it.
    pub(crate) hold_until: Option<u64>,
    /// That it is asked to let go, and when that ends it.
    pub(crate) asked: Option<Asked>,
    /// The number of the session to which it is offered, and the command that offered it.
    pub(crate) offered: Option<(u64, u64)>,
    /// What is staged under it.
    pub(crate) section: Vec<super::keys::Staged>,
}

/// A wait: for a grant, or for other modes of a grant that is held.
#[derive(Clone, Debug)]
pub(crate) struct MWait {
    pub(crate) op: u64,
    pub(crate) session: SessionId,
    pub(crate) id: u64,
    pub(crate) owner: String,
    pub(crate) asks: Vec<Ask>,
    pub(crate) terms: Terms,
    pub(crate) deadline: Option<u64>,
    /// The grant that it converts.
    pub(crate) converts: Option<u64>,
}

/// Everything that decides who is granted what.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines {
    /// In the order of their tokens.
    pub(crate) grants: Vec<MGrant>,
    /// In the order of their arrival.
    pub(crate) waits: Vec<MWait>,
    /// Until when a lock is closed.
    pub(crate) closed: BTreeMap<String, u64>,
}

impl MGrant {
    pub(crate) fn mode(&self, key: &str) -> Option<Mode> {
        mode(&self.asks, key)
    }

    /// When it ends whatever its client does, and what is told then; the first of all that may end it.
    pub(crate) fn ends(&self) -> Option<u64> {
        let asked = self.asked.as_ref().and_then(|asked| asked.deadline).map(|time| time.as_micros());
        [self.lease_until, self.hold_until, asked].into_iter().flatten().min()
    }
}

impl MWait {
    pub(crate) fn mode(&self, key: &str) -> Option<Mode> {
        mode(&self.asks, key)
    }

    /// Conversions stand before all others; beyond that who came first is first.
    fn stands_before(&self, other: &MWait) -> bool {
        (self.converts.is_none(), self.op) < (other.converts.is_none(), other.op)
    }
}

pub(crate) fn mode(asks: &[Ask], key: &str) -> Option<Mode> {
    asks.iter().find(|ask| ask.key.as_str() == key).map(|ask| ask.mode)
}

/// Whether one lock can be held in all these modes at once.
pub(crate) fn go_together(modes: &[Mode]) -> bool {
    let slots = |mode: &Mode| matches!(mode, Mode::Slot { .. });
    let weights = modes.iter().map(|mode| if let Mode::Slot { weight, .. } = mode { *weight } else { 0 });
    let fits =
        |mode: &Mode| matches!(mode, Mode::Slot { slots, .. } if weights.clone().sum::<u32>() <= *slots);
    modes.len() < 2
        || modes.iter().all(|mode| *mode == Mode::Shared)
        || modes.iter().all(slots) && modes.last().is_some_and(fits)
}

/// Whether the new mode is the same or weaker.
fn takes_no_more(new: Mode, old: Mode) -> bool {
    match (new, old) {
        (_, Mode::Exclusive) | (Mode::Shared, Mode::Shared) => true,
        (Mode::Slot { slots, weight }, Mode::Slot { slots: of, weight: had }) => slots == of && weight <= had,
        _ => false,
    }
}

impl Lines {
    /// The holders of a lock that are not the asker's own, with their modes.
    fn others<'a>(&'a self, wait: &'a MWait, key: &'a str) -> impl Iterator<Item = (&'a MGrant, Mode)> {
        let others = self.grants.iter().filter(|grant| Some(grant.token) != wait.converts);
        others.filter_map(move |grant| Some((grant, grant.mode(key)?)))
    }

    /// The waits that stand before this one at a lock, with their modes.
    fn before<'a>(&'a self, wait: &'a MWait, key: &'a str) -> impl Iterator<Item = (&'a MWait, Mode)> {
        let before = self.waits.iter().filter(|other| other.stands_before(wait));
        before.filter_map(move |other| Some((other, other.mode(key)?)))
    }

    /// Open: it goes with all holders and all earlier waits, as though these held.
    fn is_open(&self, wait: &MWait, ask: &Ask) -> bool {
        let key = ask.key.as_str();
        let mut modes: Vec<Mode> = self.others(wait, key).map(|(_, mode)| mode).collect();
        modes.extend(self.before(wait, key).map(|(_, mode)| mode));
        modes.push(ask.mode);
        !self.closed.contains_key(key) && go_together(&modes)
    }

    pub(crate) fn is_open_everywhere(&self, wait: &MWait) -> bool {
        wait.asks.iter().all(|ask| self.is_open(wait, ask))
    }

    /// Whether this wait would never be served: everybody who does not wait lets go of everything, and whoever can be
    /// served is served and lets go too, until nothing moves any more.
    fn never_served(mut self, asker: &MWait) -> bool {
        self.closed.clear();
        self.waits.push(asker.clone());
        loop {
            let Lines { grants, waits, .. } = &mut self;
            let waits_still = |grant: &MGrant| {
                waits.iter().any(|wait| wait.session == grant.session && wait.owner == grant.owner)
            };
            grants.retain(waits_still);
            let served = self.waits.iter().find(|wait| self.is_open_everywhere(wait)).map(|wait| wait.op);
            match served {
                None => return true,
                Some(op) if op == asker.op => return false,
                Some(op) => self.waits.retain(|wait| wait.op != op),
            }
        }
    }

    /// What is wrong with a cycle: each must wait for the next one, and the last one for the asker.
    fn not_a_cycle(
        &self,
        asker: &MWait,
        cycle: &[CycleStep],
        total: u64,
        client: impl Fn(SessionId) -> u64,
    ) -> Option<String> {
        let (shown, all) = (cycle.len(), cycle.len() as u64 == total);
        if shown == 0 || shown > CYCLE_SHOWN || (!all && (shown as u64) > total) {
            return Some(format!("{shown} steps of {total}"));
        }
        let links = if all { shown } else { shown - 1 };
        for (nth, step) in cycle.iter().take(links).enumerate() {
            let next = &cycle[(nth + 1) % shown];
            let is = |session: SessionId, owner: &str, step: &CycleStep| {
                client(session) == step.client && owner == &*step.owner
            };
            let waiter = match nth {
                0 => Some(asker),
                _ => self.waits.iter().find(|wait| is(wait.session, &wait.owner, step)),
            };
            let Some(waiter) = waiter.filter(|wait| is(wait.session, &wait.owner, step)) else {
                return Some(format!("step {nth} is none who waits"));
            };
            let Some(mode) = waiter.mode(&step.key) else {
                return Some(format!("step {nth} does not ask for {:?}", step.key));
            };
            let in_the_way = |other: Mode| {
                !go_together(&[other, mode])
                    || matches!((other, mode), (Mode::Slot { .. }, Mode::Slot { .. }))
            };
            let found = match step.token {
                Some(token) => self.others(waiter, &step.key).any(|(grant, held)| {
                    grant.token == token && is(grant.session, &grant.owner, next) && in_the_way(held)
                }),
                None => {
                    // The asker stands in no line yet, but where it would stand it is in the way of those behind.
                    let asked = asker.mode(&step.key).filter(|_| asker.stands_before(waiter));
                    let asked = asked.filter(|_| is(asker.session, &asker.owner, next));
                    asked.is_some_and(in_the_way)
                        || self
                            .before(waiter, &step.key)
                            .any(|(wait, asked)| is(wait.session, &wait.owner, next) && in_the_way(asked))
                }
            };
            if !found {
                return Some(format!("step {nth} does not wait for the next one"));
            }
        }
        None
    }
}

impl Model {
    pub(crate) fn is_live(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|session| session.ended.is_none())
    }

    /// What ends at a deadline is gone at the very instant of it.
    pub(crate) fn grant_lives(&self, grant: &MGrant, now: u64) -> bool {
        grant.ends().is_none_or(|deadline| now < deadline) && self.is_live(grant.session)
    }

    pub(crate) fn wait_lives(&self, wait: &MWait, now: u64) -> bool {
        let converts = |token| self.lines.grants.iter().find(|grant| grant.token == token);
        wait.deadline.is_none_or(|deadline| now < deadline)
            && self.is_live(wait.session)
            && wait
                .converts
                .is_none_or(|token| converts(token).is_some_and(|grant| self.grant_lives(grant, now)))
    }

    /// The live holders of a lock.
    pub(crate) fn holders(&self, key: &str, now: u64) -> Vec<(&MGrant, Mode)> {
        let live = self.lines.grants.iter().filter(|grant| self.grant_lives(grant, now));
        live.filter_map(|grant| Some((grant, grant.mode(key)?))).collect()
    }

    /// Whether a lock is closed: for a lock-delay that runs, or because one begins as soon as a dead holder is cleaned up.
    pub(crate) fn is_closed(&self, key: &str, now: u64) -> bool {
        let dead = |grant: &&MGrant| grant.mode(key).is_some() && !self.grant_lives(grant, now);
        self.lines.closed.get(key).is_some_and(|until| now < *until)
            || self.lines.grants.iter().filter(dead).any(|grant| grant.terms.lock_delay_ms > 0)
    }

    /// A token acts for its own session, or for whoever names that session as holder.
    pub(crate) fn mine(&self, me: SessionId, holder: Option<SessionId>, token: u64) -> Result<&MGrant, Out> {
        let whose = holder.unwrap_or(me);
        let grant = self.lines.grants.iter().find(|grant| grant.token == token && grant.session == whose);
        grant.filter(|grant| self.grant_lives(grant, self.at)).ok_or_else(|| refused("not_holder", ""))
    }

    pub(crate) fn grant_mut(&mut self, token: u64) -> &mut MGrant {
        self.lines.grants.iter_mut().find(|grant| grant.token == token).expect("it was found before")
    }

    /// The live wait of an owner.
    pub(crate) fn no_second_wait(&self, session: SessionId, owner: &str) -> Result<(), Out> {
        let mut own = self.lines.waits.iter().filter(|wait| wait.session == session && wait.owner == owner);
        match own.find(|wait| self.wait_lives(wait, self.at)) {
            Some(wait) => Err(refused("already_held", format!("wait {}", wait.id))),
            None => Ok(()),
        }
    }

    /// Live grants of an owner that hold any of these locks.
    pub(crate) fn held_of(&self, session: SessionId, owner: &str, asks: &[Ask]) -> Vec<&MGrant> {
        let own = self.lines.grants.iter().filter(|grant| grant.session == session && grant.owner == owner);
        let live = own.filter(|grant| self.grant_lives(grant, self.at));
        live.filter(|grant| asks.iter().any(|ask| grant.mode(&ask.key).is_some())).collect()
    }

    /// All who hold or wait for slots of a lock say the same number; `own` does not count.
    fn same_slots(&self, asks: &[Ask], own: Option<u64>) -> Result<(), Out> {
        for ask in asks {
            let Mode::Slot { slots, .. } = ask.mode else { continue };
            let holders = self.holders(&ask.key, self.at).into_iter();
            let held = holders.filter(|(grant, _)| Some(grant.token) != own).map(|(_, mode)| mode);
            let waits = self.lines.waits.iter().filter(|wait| self.wait_lives(wait, self.at));
            let modes = held.chain(waits.filter_map(|wait| wait.mode(&ask.key)));
            for mode in modes {
                if let Mode::Slot { slots: in_force, .. } = mode
                    && in_force != slots
                {
                    return Err(refused("invalid_params", format!("slots {in_force}")));
                }
            }
        }
        Ok(())
    }

    /// Nothing dead may be left at locks that a command names: it is cleaned up before anything is decided.
    fn touches(&mut self, asks: &[Ask]) {
        for ask in asks {
            let key = ask.key.as_str();
            if self.lines.closed.get(key).is_some_and(|until| *until <= self.at) {
                self.lines.closed.remove(key);
            }
            let holds = |grant: &&MGrant| grant.mode(key).is_some() && !self.grant_lives(grant, self.at);
            let left = self.lines.grants.iter().find(holds).map(|grant| format!("grant {}", grant.token));
            let waits = |wait: &&MWait| wait.mode(key).is_some() && !self.wait_lives(wait, self.at);
            let wait = self.lines.waits.iter().find(waits).map(|wait| format!("wait {}", wait.op));
            if let Some(left) = left.or(wait) {
                self.faults.push(format!("{key} is touched, and {left} is dead and still there"));
            }
        }
        self.serve();
    }

    pub(crate) fn acquire(&mut self, request: &Request) -> Said {
        let Call::Acquire { asks, wait, owner, terms } = &request.call else { panic!("no acquire") };
        let me = request.session;
        self.no_second_wait(me, owner)?;
        self.touches(asks);
        let held = self.held_of(me, owner, asks);
        match held[..] {
            [] => {}
            [grant] if grant.asks == **asks && grant.terms.atomic == terms.atomic => {
                return Ok(self.converted(grant.token, true));
            }
            _ => {
                let tokens: Vec<u64> = held.iter().map(|grant| grant.token).collect();
                return Err(refused("already_held", format!("tokens {tokens:?}")));
            }
        }
        self.same_slots(asks, None)?;
        let asker = MWait {
            op: self.op,
            session: me,
            id: request.id,
            owner: owner.clone(),
            asks: asks.to_vec(),
            terms: terms.clone(),
            deadline: None,
            converts: None,
        };
        if self.lines.is_open_everywhere(&asker) {
            if self.lines.grants.len() as u64 >= self.limits().grants {
                return Err(refused("limit", "grants"));
            }
            return Ok(self.grant(&asker, None));
        }
        self.wait_or_not(request, asker, *wait)
    }

    /// What becomes of a request that is not open: a try ends, a wait begins unless it could never end.
    fn wait_or_not(&mut self, request: &Request, mut asker: MWait, patience: Patience) -> Said {
        asker.deadline = match patience {
            Patience::Try => return Ok(Out::NotGranted(self.why(&asker))),
            Patience::Millis(ms) => Some(self.clock + ms * 1_000),
            Patience::Forever => None,
        };
        let mut world = self.lines.clone();
        world.grants.retain(|grant| self.grant_lives(grant, self.at));
        world.waits.retain(|wait| self.wait_lives(wait, self.at));
        if world.clone().never_served(&asker) {
            if let Some((cycle, total)) = &self.seen.cycle {
                let client = |session: SessionId| self.sessions[&session].client;
                if let Some(fault) = world.not_a_cycle(&asker, cycle, *total, client) {
                    self.faults.push(format!("{cycle:?} is no cycle: {fault}"));
                }
            }
            return Err(refused("deadlock", ""));
        }
        if self.lines.waits.len() as u64 >= self.limits().waits {
            return Err(refused("limit", "waits"));
        }
        let in_line =
            |ask: &Ask| self.lines.waits.iter().filter(|wait| wait.mode(&ask.key).is_some()).count();
        let longest = asker.asks.iter().map(in_line).max().unwrap_or(0) as u64;
        if longest >= self.limits().lock_waits {
            return Err(refused("limit", "lock_waits"));
        }
        self.make_room_for_a_wait(request.session)?;
        self.begins_to_wait(request);
        let why = self.why(&asker);
        self.lines.waits.push(asker);
        Ok(Out::Waiting(why))
    }

    /// Why a request is not granted: the first of its locks that is in the way, and who is in the way there.
    pub(crate) fn why(&self, asker: &MWait) -> Why {
        let place = |ask: &Ask| self.lines.before(asker, &ask.key).count() + 1;
        let position = asker.asks.iter().map(place).max().unwrap_or(1) as u64;
        let others = || self.lines.waits.iter().filter(|wait| wait.op != asker.op);
        let queue = |ask: &Ask| others().filter(|wait| wait.mode(&ask.key).is_some()).count();
        let queue_total = asker.asks.iter().map(queue).max().unwrap_or(0) as u64;
        let mut held_by = Vec::new();
        let mut found = None;
        for ask in &asker.asks {
            let key = ask.key.as_str();
            let held: Vec<_> = self.lines.others(asker, key).collect();
            let mut modes: Vec<Mode> = held.iter().map(|(_, mode)| *mode).collect();
            modes.push(ask.mode);
            let is_held = !go_together(&modes);
            if is_held {
                let tokens = held.iter().map(|(grant, _)| grant.token);
                held_by.extend(tokens.filter(|token| !held_by.contains(token)).collect::<Vec<_>>());
            }
            modes.pop();
            modes.extend(
                self.lines
                    .before(asker, key)
                    .filter(|(wait, _)| wait.converts.is_some())
                    .map(|(_, mode)| mode),
            );
            modes.push(ask.mode);
            let reason = if self.lines.closed.contains_key(key) {
                Reason::LockDelay
            } else if is_held {
                Reason::Held
            } else if !go_together(&modes) {
                Reason::Conversion
            } else if !self.lines.is_open(asker, ask) {
                Reason::Queued
            } else {
                continue;
            };
            found = found.or(Some((reason, key.to_owned())));
        }
        let (reason, key) = found.expect("somebody is in the way");
        Why { reason, key: Some(key), position, queue_total, held_by }
    }

    /// Whether everything that is dead was cleaned up.
    pub(crate) fn is_clean(&self) -> bool {
        self.lines.grants.iter().all(|grant| self.grant_lives(grant, self.at))
            && self.lines.waits.iter().all(|wait| self.wait_lives(wait, self.at))
            && self.lines.closed.values().all(|until| *until > self.at)
    }

    /// Whether an earlier wait that is told to stand in the way does.
    pub(crate) fn stands_ahead(&self, asker: &MWait, why: &Why, ahead: Option<&Ahead>) -> bool {
        let (Some(key), Some(ahead)) = (&why.key, ahead) else {
            return ahead.is_none() && !matches!(why.reason, Reason::Queued | Reason::Conversion);
        };
        self.lines.before(asker, key).any(|(wait, mode)| {
            let asked = asker.mode(key).expect("it asks for what it waits for");
            let slots = |mode: Mode| matches!(mode, Mode::Slot { .. });
            let client = self.sessions[&wait.session].client;
            (client, &*wait.owner, wait.converts, mode)
                == (ahead.client, &*ahead.owner, ahead.converts, ahead.mode)
                && (wait.converts.is_some() == (why.reason == Reason::Conversion))
                && (!go_together(&[mode, asked]) || slots(mode) && slots(asked))
        })
    }

    /// Makes a grant. The order in which those who are served together get their tokens is the state's choice.
    fn grant(&mut self, wait: &MWait, token: Option<u64>) -> Out {
        let token = token.or(self.seen.direct).unwrap_or(self.last_token + 1);
        self.new_tokens.push(token);
        let exclusive = wait.asks.iter().filter(|ask| ask.mode == Mode::Exclusive).cloned();
        self.change_hands(&exclusive.collect::<Vec<_>>());
        let client = self.sessions[&wait.session].client;
        for Ask { key, mode } in &wait.asks {
            self.happened(key, What::LockGranted { token, client, mode: *mode });
        }
        let lease_ms = wait.terms.lease_ms;
        let grant = MGrant {
            token,
            session: wait.session,
            owner: wait.owner.clone(),
            asks: wait.asks.clone(),
            op: self.op,
            terms: wait.terms.clone(),
            lease_until: lease_ms.map(|ms| self.clock + ms * 1_000),
            hold_until: wait.terms.max_hold_ms.map(|ms| self.clock + ms * 1_000),
            asked: None,
            offered: None,
            section: Vec::new(),
        };
        self.lines.grants.push(grant);
        self.lines.grants.sort_by_key(|grant| grant.token);
        self.converted(token, false)
    }

    pub(crate) fn convert(&mut self, request: &Request) -> Said {
        let Call::Convert { token, holder, asks, wait } = &request.call else { panic!("no conversion") };
        let grant = self.mine(request.session, *holder, *token)?.clone();
        if asks.iter().any(|ask| grant.mode(&ask.key).is_none()) {
            return Err(refused("invalid_params", ""));
        }
        if grant.session != request.session && *wait != Patience::Try {
            return Err(refused("invalid_params", ""));
        }
        let changed: Vec<Ask> =
            asks.iter().filter(|ask| grant.mode(&ask.key) != Some(ask.mode)).cloned().collect();
        if changed.iter().any(|ask| ask.mode != Mode::Exclusive && self.is_staged(*token, &ask.key)) {
            return Err(refused("invalid_params", ""));
        }
        self.no_second_wait(grant.session, &grant.owner)?;
        self.touches(&changed);
        self.same_slots(&changed, Some(*token))?;
        let weaker = |ask: &Ask| grant.mode(&ask.key).is_some_and(|held| takes_no_more(ask.mode, held));
        if changed.iter().all(weaker) {
            self.change_modes(*token, &changed);
            self.has_converted(*token, *token, &changed);
            let again = changed.is_empty();
            return Ok(self.converted(*token, again));
        }
        let asker = MWait {
            op: self.op,
            session: request.session,
            id: request.id,
            owner: grant.owner.clone(),
            asks: changed.clone(),
            terms: grant.terms.clone(),
            deadline: None,
            converts: Some(*token),
        };
        if self.lines.is_open_everywhere(&asker) {
            self.change_modes(*token, &changed);
            let new = self.retoken(*token, self.seen.direct);
            self.has_converted(*token, new, &changed);
            return Ok(self.converted(new, false));
        }
        if *wait != Patience::Try {
            self.same_slots(&changed, None)?;
        }
        self.wait_or_not(request, asker, *wait)
    }

    pub(crate) fn converted(&self, token: u64, again: bool) -> Out {
        let grant = self.lines.grants.iter().find(|grant| grant.token == token).expect("it was converted");
        let left = grant.lease_until.map(|until| until.saturating_sub(self.clock).div_ceil(1_000));
        Out::Granted {
            token,
            asks: grant.asks.clone(),
            op: grant.op,
            lease_ms: grant.terms.lease_ms,
            again,
            lease_left_ms: left.filter(|_| again || left != grant.terms.lease_ms),
            hold_left_ms: grant.hold_until.map(|until| until.saturating_sub(self.clock).div_ceil(1_000)),
            atomic: false,
        }
    }

    fn change_modes(&mut self, token: u64, asks: &[Ask]) {
        let before = self.grant_mut(token).asks.clone();
        let exclusive = |asks: &[Ask], key: &str| mode(asks, key) == Some(Mode::Exclusive);
        let begins =
            asks.iter().filter(|ask| exclusive(asks, &ask.key) && !exclusive(&before, &ask.key)).cloned();
        let ends =
            asks.iter().filter(|ask| !exclusive(asks, &ask.key) && exclusive(&before, &ask.key)).cloned();
        self.change_hands(&begins.collect::<Vec<_>>());
        for held in &mut self.grant_mut(token).asks {
            if let Some(mode) = mode(asks, &held.key) {
                held.mode = mode;
            }
        }
        self.change_hands(&ends.collect::<Vec<_>>());
    }

    /// What everybody hears of a conversion: under the same token what changed, under a new one all.
    fn has_converted(&mut self, before: u64, token: u64, changed: &[Ask]) {
        let grant = self.grant_mut(token).clone();
        let client = self.sessions[&grant.session].client;
        for Ask { key, mode } in if before == token { changed } else { &grant.asks } {
            self.happened(key, What::LockConverted { token, before, client, mode: *mode });
        }
    }

    /// A grant goes on under a new token.
    pub(crate) fn retoken(&mut self, old: u64, token: Option<u64>) -> u64 {
        let token = token.unwrap_or(self.last_token + 1);
        self.new_tokens.push(token);
        let place = self.lines.grants.iter().position(|grant| grant.token == old).expect("it is held");
        let mut grant = self.lines.grants.remove(place);
        (grant.token, grant.op, grant.offered) = (token, self.op, None);
        if let Some(asked) = &mut grant.asked {
            asked.op = self.op;
        }
        self.lines.grants.push(grant);
        self.lines.grants.sort_by_key(|grant| grant.token);
        token
    }

    /// Serves until nobody is left who is open everywhere.
    pub(crate) fn serve(&mut self) {
        let open = |model: &Model| {
            model.lines.waits.iter().find(|wait| model.lines.is_open_everywhere(wait)).cloned()
        };
        self.reopen_what_was_served();
        while let Some(wait) = open(self) {
            self.lines.waits.retain(|other| other.op != wait.op);
            let mut token = self.seen.granted.remove(&(wait.session, wait.id));
            if self.seen.forgotten.contains(&(wait.session, wait.id)) {
                let told: Vec<u64> = self.seen.granted.values().copied().chain(self.seen.direct).collect();
                let given = |token: &u64| told.contains(token) || self.new_tokens.contains(token);
                token = (self.last_token + 1..).find(|token| !given(token));
            }
            if token.is_none() {
                self.faults.push(format!("wait {} is open everywhere, and is not served", wait.op));
            }
            if !self.wait_lives(&wait, self.at) {
                self.faults.push(format!("wait {} is dead, and is served", wait.op));
            }
            let out = match wait.converts {
                None => self.grant(&wait, token),
                Some(old) => {
                    self.change_modes(old, &wait.asks);
                    let token = self.retoken(old, token);
                    self.has_converted(old, token, &wait.asks);
                    self.converted(token, false)
                }
            };
            self.settle(&wait, out);
        }
    }

    /// A lock-delay is over at its deadline for everybody who looks. When the line is served is the state's choice, but for
    /// what `touches` and a tick must do.
    fn reopen_what_was_served(&mut self) {
        let served = |wait: &&MWait| {
            let wait = (wait.session, wait.id);
            self.seen.granted.contains_key(&wait) || self.seen.forgotten.contains(&wait)
        };
        let keys: Vec<String> = self
            .lines
            .waits
            .iter()
            .filter(served)
            .flat_map(|wait| &wait.asks)
            .map(|ask| ask.key.to_string())
            .collect();
        self.lines.closed.retain(|key, until| *until > self.at || !keys.contains(key));
    }

    /// Ends a grant. All ends but a release close its locks for its lock-delay. Who is next is served when the command is
    /// done.
    pub(crate) fn end_grant(&mut self, token: u64, why: Option<GrantEnd>) {
        let conversion =
            self.lines.waits.iter().find(|wait| wait.converts == Some(token)).map(|wait| wait.op);
        if let Some(op) = conversion {
            let wait = self.lines.waits.iter().find(|wait| wait.op == op).expect("it was found");
            let cancelled = self.seen.cancelled == Some((wait.session, wait.id));
            self.leave_line(op, if cancelled { Reason::Cancelled } else { Reason::GrantEnded });
        }
        let place =
            self.lines.grants.iter().position(|grant| grant.token == token).expect("a grant ends once");
        let grant = self.lines.grants.remove(place);
        let client = self.sessions[&grant.session].client;
        for Ask { key, .. } in &grant.asks {
            let happened = match why {
                None => What::LockReleased { token, client },
                Some(reason) => What::LockLost { token, client, reason },
            };
            self.happened(key, happened);
        }
        let exclusive = grant.asks.iter().filter(|ask| ask.mode == Mode::Exclusive).cloned();
        self.change_hands(&exclusive.collect::<Vec<_>>());
        if why.is_some() && grant.terms.lock_delay_ms > 0 {
            let until = self.clock + grant.terms.lock_delay_ms * 1_000;
            for ask in &grant.asks {
                let closed = self.lines.closed.entry(ask.key.to_string()).or_default();
                *closed = until.max(*closed);
            }
        }
    }

    /// Ends a grant, and remembers that for its client.
    pub(crate) fn lose(&mut self, token: u64, reason: LossReason, note: &str) {
        self.is_lost(token, reason, note);
        self.end_grant(token, Some(reason.into()));
    }

    /// Remembers for the client of a grant that it loses it.
    pub(crate) fn is_lost(&mut self, token: u64, reason: LossReason, note: &str) {
        let grant = self.lines.grants.iter().find(|grant| grant.token == token).expect("a grant ends once");
        let keys: Vec<String> = grant.asks.iter().map(|ask| ask.key.to_string()).collect();
        let session = self.sessions.get_mut(&grant.session).expect("a grant has a session");
        session.losses.push_back((self.op, token, reason, keys, note.into()));
        if session.losses.len() > 64 {
            session.losses.pop_front();
        }
    }

    pub(crate) fn leave_line(&mut self, op: u64, reason: Reason) {
        let index =
            self.lines.waits.iter().position(|wait| wait.op == op).expect("a wait leaves its line once");
        let wait = self.lines.waits.remove(index);
        self.settle(&wait, Out::NotGranted(Why::only(reason)));
    }

    /// Cleans up what the state says it cleaned up, if it is dead. When that happens is the state's choice, but for what
    /// `touches` and a tick must do.
    pub(crate) fn clean_up(&mut self) {
        for forgotten in &self.seen.forgotten {
            let dead = |wait: &&super::lines::MWait| !self.wait_lives(wait, self.at);
            let wait =
                self.lines.waits.iter().filter(dead).find(|wait| (wait.session, wait.id) == *forgotten);
            // Of a reply that was forgotten in the same command nothing tells how its wait ended.
            match wait.map(|wait| wait.deadline.is_some_and(|deadline| deadline <= self.at)) {
                Some(true) => self.seen.given_up.push(*forgotten),
                Some(false) => self.seen.unconverted.push(*forgotten),
                None => {}
            }
        }
        for given_up in std::mem::take(&mut self.seen.given_up) {
            let wait = self.lines.waits.iter().find(|wait| (wait.session, wait.id) == given_up);
            match wait.filter(|wait| wait.deadline.is_some_and(|deadline| deadline <= self.at)) {
                Some(wait) => self.leave_line(wait.op, Reason::Timeout),
                None => self.faults.push(format!("{given_up:?} is given up before its time")),
            }
        }
        for wait in std::mem::take(&mut self.seen.unconverted) {
            let found = self.lines.waits.iter().find(|other| (other.session, other.id) == wait);
            if let Some(wait) = found.filter(|wait| !self.wait_lives(wait, self.at)) {
                self.leave_line(wait.op, Reason::GrantEnded);
            }
        }
        for (token, reason) in std::mem::take(&mut self.seen.lost) {
            let grant = self.lines.grants.iter().find(|grant| grant.token == token);
            // Of several deadlines the first has ended it.
            let first = grant.and_then(MGrant::ends);
            let due = |until: Option<u64>| until.is_some_and(|until| until <= self.at) && until == first;
            let said = match (grant, reason) {
                (Some(grant), LossReason::LeaseExpired) if due(grant.lease_until) => Some(String::new()),
                (Some(grant), LossReason::HeldTooLong) if due(grant.hold_until) => Some(String::new()),
                (Some(MGrant { asked: Some(asked), .. }), LossReason::Broken)
                    if due(asked.deadline.map(|time| time.as_micros())) =>
                {
                    Some(asked.reason.to_string())
                }
                _ => None,
            };
            // What is not dead ends by the command itself, if at all.
            if let Some(said) = said {
                self.lose(token, reason, &said);
            }
        }
    }

    /// What is due takes effect at a tick: nothing dead is left.
    pub(crate) fn tick(&mut self) -> Out {
        let left = self.lines.grants.iter().find(|grant| !self.grant_lives(grant, self.at));
        if let Some(grant) = left {
            self.faults.push(format!("grant {} is dead, and a tick leaves it", grant.token));
        }
        let left = self.lines.waits.iter().find(|wait| !self.wait_lives(wait, self.at));
        if let Some(wait) = left {
            self.faults.push(format!("wait {} is dead, and a tick leaves it", wait.op));
        }
        self.lines.closed.retain(|_, until| *until > self.at);
        self.tick_keys();
        self.sessions.retain(|_, session| session.ended.is_none_or(|ended| ended + 60_000_000 > self.at));
        Out::Cleaned
    }

    /// What must hold between commands, whatever they are.
    pub(crate) fn invariants(&mut self) {
        let mut keys: Vec<&str> = Vec::new();
        keys.extend(self.lines.grants.iter().flat_map(|grant| &grant.asks).map(|ask| ask.key.as_str()));
        keys.extend(self.lines.waits.iter().flat_map(|wait| &wait.asks).map(|ask| ask.key.as_str()));
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let held: Vec<Mode> = self.lines.grants.iter().filter_map(|grant| grant.mode(key)).collect();
            if !go_together(&held) {
                self.faults.push(format!("{key} is held as {held:?}"));
            }
            let waits = self.lines.waits.iter().filter_map(|wait| wait.mode(key));
            let mut slots = held.iter().copied().chain(waits).filter_map(|mode| match mode {
                Mode::Slot { slots, .. } => Some(slots),
                _ => None,
            });
            let first = slots.next();
            if slots.any(|slots| Some(slots) != first) {
                self.faults.push(format!("{key} has several numbers of slots"));
            }
        }
    }
}
