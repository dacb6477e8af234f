//! Random commands: few sessions, few names, spans of time around the deadlines, copies and clashes on purpose.

use super::keys::crc32c;
use super::model::Model;
use arcstr::ArcStr;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use tenure::command::{
    Ask, Call, Change, Command, Compare, Durability, EndReason, Life, Mode, Patience, Request, Terms,
};
use tenure::identity::{Nonce, SessionId};
use tenure::limits::Limits;
use tenure::name::Name;
use tenure::time::Time;

/// Names of locks, keys and files: one is a directory of another.
pub(crate) const NAMES: [&str; 5] = ["a", "a/x", "b", "c", "d"];

const OWNERS: [&str; 3] = ["", "w1", "w2"];

/// What can be drawn beside exclusive locks, keys and files, one word a family: `TENURE_FAMILIES=modes,delay` draws no other.
const FAMILIES: [&str; 13] = [
    "modes",
    "several",
    "convert",
    "delay",
    "hold",
    "break",
    "ask",
    "hand",
    "ttl",
    "bound",
    "transaction",
    "atomic",
    "lease",
];

/// A seed that no run had before.
pub(crate) fn fresh_seed() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// Where draws come from.
pub(crate) enum Random {
    /// SplitMix64: small, and the same everywhere (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
    Seeded(u64),
    /// Bytes, in their order; zeros when there are no more.
    Bytes {
        /// The bytes.
        bytes: Vec<u8>,
        /// How many were drawn.
        drawn: usize,
    },
}

impl Random {
    pub(crate) fn seeded(seed: u64) -> Random {
        Random::Seeded(seed)
    }

    pub(crate) fn of_bytes(bytes: &[u8]) -> Random {
        Random::Bytes { bytes: bytes.to_vec(), drawn: 0 }
    }

    /// Whether there is nothing more to draw from.
    pub(crate) fn is_drawn(&self) -> bool {
        match self {
            Random::Seeded(_) => false,
            Random::Bytes { bytes, drawn } => *drawn >= bytes.len(),
        }
    }

    /// A number of so many bytes.
    fn draw(&mut self, count: usize) -> u64 {
        match self {
            Random::Seeded(seed) => {
                *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *seed;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                z ^ (z >> 31)
            }
            Random::Bytes { bytes, drawn } => {
                let rest = bytes.get(*drawn..).unwrap_or_default();
                *drawn += count;
                rest.iter().take(count).fold(0, |number, byte| number << 8 | u64::from(*byte))
            }
        }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.draw(8)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        // As few bytes as can say it: then a changed byte is a changed choice.
        let count = if n <= 1 << 8 {
            1
        } else if n <= 1 << 16 {
            2
        } else {
            8
        };
        self.draw(count) % n
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// Draws commands, and remembers what was sent so that it can be sent again.
pub(crate) struct Draw {
    pub(crate) random: Random,
    families: Vec<String>,
    term: u64,
    draws: u128,
    next_ids: BTreeMap<SessionId, u64>,
    sent: Vec<Request>,
    told: BTreeMap<&'static str, u64>,
}

impl Draw {
    pub(crate) fn new(random: Random) -> Draw {
        Draw {
            random,
            families: families(),
            term: 0,
            draws: 0,
            next_ids: BTreeMap::new(),
            sent: Vec::new(),
            told: BTreeMap::new(),
        }
    }

    /// Whether a family is drawn, and now is the time for it.
    fn draws(&mut self, family: &str, one_in: u64) -> bool {
        assert!(FAMILIES.contains(&family), "{family} is listed");
        self.families.iter().any(|on| on == family) && self.random.one_in(one_in)
    }

    /// What was drawn how often.
    pub(crate) fn summary(&self) -> String {
        format!("{:?}", self.told)
    }

    /// The next moment: often the same, sometimes the very instant of a deadline or just beside it.
    pub(crate) fn time(&mut self, at: Time, due: Option<Time>) -> Time {
        let later = match self.random.below(40) {
            0..20 => at,
            20..30 => at.after_us(self.random.below(50_000)),
            30..34 => at.after_ms(self.random.below(600)),
            34..36 => due.unwrap_or(at),
            36 => due.map_or(at, |due| Time::from_micros(due.as_micros().saturating_sub(1))),
            37 => due.map_or(at, |due| due.after_us(1)),
            38 => at.after_ms(self.random.below(10_000)),
            _ if self.random.one_in(6) => at.after_ms(60_000),
            _ => at,
        };
        later.max(at)
    }

    pub(crate) fn command(&mut self, model: &Model) -> Command {
        if self.term == 0 {
            return self.new_term(false);
        }
        let (what, command) = match self.random.below(100) {
            0 if self.random.one_in(3) => ("new_term", {
                let raised = self.random.one_in(4);
                self.new_term(raised)
            }),
            0..4 => ("open_session", self.open()),
            8 => ("end_session", self.end(model)),
            9..18 => ("tick", Command::Tick),
            18..20 => ("file_fault", self.fault(model)),
            _ => match self.request(model) {
                Some(request) => ("request", Command::Request(request)),
                None => ("open_session", self.open()),
            },
        };
        *self.told.entry(what).or_default() += 1;
        command
    }

    fn new_term(&mut self, raised: bool) -> Command {
        self.term += 1;
        Command::NewTerm { term: self.term, limits: self.limits(), durability: Durability::Sync, raised }
    }

    /// Caps, some of which are met all the time and others never.
    pub(crate) fn limits(&mut self) -> Limits {
        let mut cap = |least: u64, more: u64| match self.random.one_in(2) {
            true => least + self.random.below(more),
            false => 4 * (least + more),
        };
        Limits {
            default_ttl_ms: 10_000,
            sessions: cap(3, 4),
            replies: cap(2, 6),
            // What a reply weighs is not promised; the window by bytes has golden scripts.
            reply_bytes: u64::MAX,
            session_waits: cap(1, 3),
            waits: cap(3, 4),
            lock_waits: cap(1, 3),
            grants: cap(3, 3),
            keys: cap(2, 2),
            value_bytes: 6,
            key_bytes: cap(10, 10),
            files: cap(2, 2),
            file_bytes: cap(20, 20),
            append_bytes: 9,
            section_writes: cap(2, 3),
            section_bytes: cap(150, 150),
            staged_bytes: cap(200, 200),
            history_events: cap(5, 20),
            history_bytes: cap(500, 2_000),
        }
    }

    fn open(&mut self) -> Command {
        self.draws += 1;
        Command::OpenSession {
            nonce: Nonce(u128::from(self.random.below(9))),
            session: SessionId(self.draws << 64 | u128::from(self.random.next())),
            name: "n".into(),
            label: String::new(),
            ttl_ms: 10_000,
        }
    }

    fn end(&mut self, model: &Model) -> Command {
        let session = self.session(model).unwrap_or(SessionId(0));
        let term = self.term - u64::from(self.random.one_in(4));
        Command::EndSession {
            session,
            term,
            reason: *self.random.pick(&[EndReason::Expired, EndReason::Closed]),
        }
    }

    fn fault(&mut self, model: &Model) -> Command {
        let file = self.name();
        let generation = model.files.get(file.as_str()).map_or(1, |file| file.generation);
        let generation = generation + u64::from(self.random.one_in(4));
        Command::FileFault { file, generation, reason: "somebody edited it".into() }
    }

    /// A session that is known, live or not; sometimes one that never was.
    fn session(&mut self, model: &Model) -> Option<SessionId> {
        if model.sessions.is_empty() {
            return None;
        }
        if self.random.one_in(200) {
            return Some(SessionId(1));
        }
        // Mostly one that holds something, and sometimes one that is gone.
        if !model.lines.grants.is_empty() && self.random.one_in(2) {
            return Some(self.random.pick(&model.lines.grants).session);
        }
        let all = self.random.one_in(10);
        let known = model.sessions.iter().filter(|(_, session)| all || session.ended.is_none());
        let known: Vec<_> = known.map(|(id, _)| *id).collect();
        (!known.is_empty()).then(|| *self.random.pick(&known))
    }

    fn request(&mut self, model: &Model) -> Option<Request> {
        if self.sent.len() > 60 {
            let gone = self.random.below(30) as usize;
            self.sent.remove(gone);
        }
        if !self.sent.is_empty() && self.random.one_in(12) {
            let mut copy = self.random.pick(&self.sent).clone();
            match self.random.below(10) {
                // The same id with another body.
                0 => copy.call = self.call(model, copy.session, copy.id),
                // The same request with another ack.
                1 => copy.ack = self.random.below(copy.id + 1),
                _ => {}
            }
            return Some(copy);
        }
        let session = self.session(model)?;
        let gap = self.random.below(16);
        let next = self.next_ids.entry(session).or_insert(1);
        let id = match gap {
            0 => *next + 2,
            1 => (*next).saturating_sub(3).max(1),
            _ => *next,
        };
        *next = (*next).max(id + 1);
        let ack = match self.random.below(12) {
            0 => id,
            1..4 => id.saturating_sub(self.random.below(6)),
            _ => 0,
        };
        // Some clients never send ack, so that their windows slide.
        let acks = session.0 >> 64 & 1 == 0;
        let got = (0..self.random.below(3)).map(|_| id.saturating_sub(self.random.below(8))).collect();
        let call = self.call(model, session, id);
        let request = Request { session, id, ack: if acks { ack } else { 0 }, got, call };
        self.sent.push(request.clone());
        Some(request)
    }

    fn name(&mut self) -> Name {
        let name: &str = self.random.pick::<&str>(&NAMES);
        Name::file(name).expect("the names are good")
    }

    /// A token: mostly one of a grant that there is, with the session that it belongs to.
    fn token(&mut self, model: &Model, session: SessionId, file: &Name) -> (u64, Option<SessionId>) {
        let grants = &model.lines.grants;
        let own: Vec<_> = grants.iter().filter(|grant| grant.session == session).collect();
        let of_file: Vec<_> = own.iter().copied().filter(|grant| grant.mode(file).is_some()).collect();
        let own = if of_file.is_empty() || self.random.one_in(8) { own } else { of_file };
        let own = (!own.is_empty()).then(|| *self.random.pick(&own));
        match self.random.below(10) {
            0 if self.random.one_in(2) => (self.random.below(model.last_token + 2), None),
            1 if !grants.is_empty() && self.random.one_in(2) => (self.random.pick(grants).token, None),
            2 if !grants.is_empty() => {
                let grant = self.random.pick(grants);
                (grant.token, Some(grant.session))
            }
            3 if self.random.one_in(3) => (own.map_or(1, |grant| grant.token), Some(SessionId(1))),
            _ => match own {
                Some(grant) => (grant.token, None),
                None => match grants.iter().find(|grant| grant.mode(file).is_some()) {
                    Some(grant) => (grant.token, Some(grant.session)),
                    None => (model.last_token, None),
                },
            },
        }
    }

    fn span(&mut self) -> u64 {
        100 + self.random.below(20) * 100
    }

    fn mode(&mut self) -> Mode {
        if !self.draws("modes", 1) {
            return Mode::Exclusive;
        }
        match self.random.below(10) {
            0..4 => Mode::Exclusive,
            4..7 => Mode::Shared,
            _ => {
                let slots = if self.random.one_in(10) { 4 } else { 3 };
                Mode::Slot { slots, weight: 1 + self.random.below(3) as u32 }
            }
        }
    }

    fn asks(&mut self, name: Name) -> Vec<Ask> {
        let mut names = vec![name];
        while names.len() < NAMES.len() && self.draws("several", 2) {
            names.push(self.name());
        }
        names.sort();
        names.dedup();
        names.into_iter().map(|key| Ask { key, mode: self.mode() }).collect()
    }

    fn patience(&mut self) -> Patience {
        match self.random.below(3) {
            0 => Patience::Try,
            1 => Patience::Millis(self.span()),
            _ => Patience::Forever,
        }
    }

    fn terms(&mut self) -> Terms {
        Terms {
            label: ArcStr::new(),
            lease_ms: self.draws("lease", 2).then(|| self.span()),
            atomic: self.draws("atomic", 3),
            lock_delay_ms: if self.draws("delay", 4) { self.span() } else { 0 },
            max_hold_ms: self.draws("hold", 5).then(|| self.span()),
        }
    }

    fn life(&mut self) -> Life {
        Life { ttl_ms: self.draws("ttl", 3).then(|| self.span()), bound: self.draws("bound", 4) }
    }

    /// A version: often the right one.
    fn version(&mut self, model: &Model, key: &str, token: u64) -> u64 {
        let token = if self.random.one_in(2) { Some(token) } else { None };
        match model.view(token).keys.get(key) {
            Some(key) if !self.random.one_in(4) => key.version,
            _ => self.random.below(3),
        }
    }

    fn value(&mut self) -> ArcStr {
        ArcStr::from("1".repeat(1 + self.random.below(7) as usize))
    }

    fn call(&mut self, model: &Model, session: SessionId, id: u64) -> Call {
        if let Some(call) = self.richer_call(model, session) {
            return call;
        }
        let name = self.name();
        let (token, holder) = self.token(model, session, &name);
        let version = self.version(model, &name, token);
        let if_version = self.random.one_in(3).then_some(version);
        let maybe = (!self.random.one_in(4)).then_some(token);
        match self.random.below(24) {
            0..9 => Call::Acquire {
                asks: self.asks(name).into(),
                wait: self.patience(),
                terms: self.terms(),
                owner: (*self.random.pick(&OWNERS)).into(),
            },
            9 if id > 1 => Call::CancelWait { wait: id.saturating_sub(1 + self.random.below(5)).max(1) },
            9..13 => Call::Release { token, holder },
            13 => Call::Abandon { token, holder },
            14 => Call::RenewLease { token, holder, lease_ms: self.span() },
            15..17 => Call::Set {
                key: name,
                value: self.value(),
                if_version,
                life: self.life(),
                token: maybe,
                holder,
            },
            17 => Call::Delete { key: name, if_version, token: maybe, holder },
            18..21 => {
                let data: Vec<u8> = (0..self.random.below(11)).map(|_| self.random.next() as u8).collect();
                Call::AppendFile { file: name, data: data.into(), token, holder }
            }
            21 => Call::DeleteFile { file: name, token, holder },
            22 => Call::RotateFile { file: name, to: self.name(), token, holder },
            _ => {
                let generation = model.files.get(name.as_str()).map_or(1, |file| file.generation);
                let found = Model::found_on_disk(self.random.below(45));
                Call::RepairFile {
                    file: name,
                    generation: if self.random.one_in(4) { 0 } else { generation },
                    length: found.len() as u64,
                    checksum: crc32c(&found),
                    token,
                    holder,
                }
            }
        }
    }

    /// A call of one of the families.
    fn richer_call(&mut self, model: &Model, session: SessionId) -> Option<Call> {
        let name = self.name();
        let (token, holder) = self.token(model, session, &name);
        if self.draws("convert", 8) {
            let grant = model.lines.grants.iter().find(|grant| grant.token == token);
            let mut names: Vec<Name> = grant
                .map_or(vec![name.clone()], |grant| grant.asks.iter().map(|ask| ask.key.clone()).collect());
            names.retain(|_| !self.random.one_in(3));
            if names.is_empty() || self.random.one_in(20) {
                names.push(name);
            }
            names.sort();
            names.dedup();
            let asks = names.into_iter().map(|key| Ask { key, mode: self.mode() }).collect();
            return Some(Call::Convert { token, holder, asks, wait: self.patience() });
        }
        let grants = &model.lines.grants;
        let any =
            if grants.is_empty() || self.random.one_in(8) { token } else { self.random.pick(grants).token };
        if self.draws("break", 40) {
            return Some(Call::BreakLock { token: any, reason: "stuck".into() });
        }
        if self.draws("ask", 20) {
            let deadline_ms = self.random.one_in(2).then(|| self.span());
            let reason = (*self.random.pick(&["please", "at once"])).into();
            return Some(Call::AskRelease { token: any, reason, deadline_ms });
        }
        if self.draws("hand", 16) {
            let clients: Vec<u64> = model.sessions.values().map(|session| session.client).collect();
            let client = (!self.random.one_in(6)).then(|| *self.random.pick(&clients));
            return Some(Call::HandOver { token, holder, client });
        }
        if self.draws("hand", 16) {
            let mine = model.sessions.get(&session).map_or(0, |session| session.client);
            let offered = grants
                .iter()
                .find(|grant| grant.offered.is_some_and(|(client, _)| client == mine))
                .filter(|_| !self.random.one_in(4));
            let token = offered.map_or(any, |grant| grant.token);
            let holder = grants.iter().find(|grant| grant.token == token).map(|grant| grant.session);
            let holder = holder.filter(|_| self.random.one_in(3));
            let owner = (*self.random.pick(&OWNERS)).into();
            return Some(Call::TakeOver { token, holder, owner, label: "new".into() });
        }
        if self.draws("transaction", 12) {
            return Some(self.transaction(model, token, holder));
        }
        None
    }

    fn transaction(&mut self, model: &Model, token: u64, holder: Option<SessionId>) -> Call {
        let names = |draw: &mut Draw, more: u64| {
            let mut names: Vec<Name> = (0..more + draw.random.below(3)).map(|_| draw.name()).collect();
            names.sort();
            names.dedup();
            names
        };
        let compare =
            names(self, 0).into_iter().map(|key| Compare { version: self.version(model, &key, token), key });
        let compare = compare.collect();
        let apply = names(self, 1).into_iter().map(|key| {
            let value = (!self.random.one_in(4)).then(|| self.value());
            let life = if value.is_some() { self.life() } else { Life::default() };
            Change { key, value, life }
        });
        let apply = apply.collect();
        let token = (!self.random.one_in(3)).then_some(token);
        Call::Transaction { compare, apply, token, holder: holder.filter(|_| token.is_some()) }
    }
}

fn families() -> Vec<String> {
    let Ok(chosen) = std::env::var("TENURE_FAMILIES") else {
        return FAMILIES.iter().map(|family| family.to_string()).collect();
    };
    let chosen: Vec<String> = chosen
        .split(',')
        .map(|family| family.trim().to_owned())
        .filter(|family| !family.is_empty())
        .collect();
    for family in &chosen {
        assert!(FAMILIES.contains(&family.as_str()), "there is no family {family:?}; there are {FAMILIES:?}");
    }
    chosen
}

/// The first term, one session, and so many grants of it.
pub(crate) fn many_grants(grants: u64) -> Vec<Command> {
    let mut commands = vec![
        Command::NewTerm { term: 1, limits: Limits::default(), durability: Durability::Sync, raised: false },
        Command::OpenSession {
            nonce: Nonce(1),
            session: SessionId(1),
            name: String::new(),
            label: String::new(),
            ttl_ms: 10_000,
        },
    ];
    commands.extend((1..=grants).map(|id| {
        let key = Name::new(&format!("lock-{id}")).expect("the name is good");
        Command::Request(Request {
            session: SessionId(1),
            id,
            ack: id,
            got: Vec::new(),
            call: Call::Acquire {
                asks: Ask { key, mode: Mode::Exclusive }.into(),
                wait: Patience::Try,
                terms: Terms::default(),
                owner: String::new(),
            },
        })
    }));
    commands
}

/// The end of the session of [`many_grants`].
pub(crate) fn end_of_first_session() -> Command {
    Command::EndSession { session: SessionId(1), term: 1, reason: EndReason::Closed }
}
