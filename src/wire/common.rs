//! The common requests, read in one pass.
//!
//! Most datagrams are one of a few methods with plain parameters: no escapes in texts, no fractions, nothing unknown. Those
//! are read here, several times faster than by the general reader. Whatever is not plain, or is refused in the end, is `None`
//! here and the general reader's: it is the norm, and this must say what it says or nothing (`wire/tests.rs` and the fuzz
//! target `datagram` compare them).

use super::plain::{leading_number, plain_bytes};
use super::{Element, Id, Message, Method, Request, Under};
use crate::asks::Asks;
use crate::command::{Ask, Call, Life, Mode, Patience, Terms};
use crate::identity::{INTEGER_MAX, SessionId};
use crate::limits::{ASKS_MAX, BATCH_ELEMENTS_MAX, GOT_MAX, LABEL_MAX, TTL_MAX_MS, TTL_MIN_MS, WAIT_MAX_MS};
use crate::name::Name;
use arcstr::ArcStr;
use compact_str::CompactString;
use std::sync::Arc;

/// Reads a message all of whose elements are plain, into `room`; `None`: the general reader reads it.
pub(super) fn decode(room: Vec<Element>, message: &[u8]) -> Option<Message> {
    let mut elements = room;
    assert!(elements.is_empty(), "a message has its own elements only");
    let text = std::str::from_utf8(message).ok()?;
    let mut scan = Scan { text, at: 0, last: None };
    let read = match scan.next()? {
        b'{' => {
            elements.reserve_exact(1);
            scan.element(&mut elements)?;
            Message { elements, batch: false }
        }
        b'[' => {
            // As many as there would be of a short one.
            elements.reserve_exact(BATCH_ELEMENTS_MAX.min(text.len() / 64));
            scan.list(BATCH_ELEMENTS_MAX, |scan| {
                scan.open(b'{')?;
                scan.element(&mut elements)
            })?;
            (!elements.is_empty()).then_some(Message { elements, batch: true })?
        }
        _ => return None,
    };
    scan.skip_space();
    (scan.at == text.len()).then_some(read)
}

/// A place in a text.
struct Scan<'a> {
    text: &'a str,
    at: usize,
    /// The session that was read last: the requests of a batch mostly have one.
    last: Option<(&'a str, SessionId)>,
}

/// The parameters that are plain, as far as they are given.
#[derive(Default)]
struct Plain<'a> {
    /// The bits of those that are given.
    given: u32,
    session: Option<SessionId>,
    ack: u64,
    got: Vec<u64>,
    key: &'a str,
    keys: Option<Asks>,
    mode: &'a str,
    /// `None` is `null`.
    wait_ms: Option<u64>,
    lease_ms: u64,
    owner: &'a str,
    wait: u64,
    token: u64,
    after: u64,
    /// As it stands in the text.
    value: &'a str,
    if_version: u64,
    file: &'a str,
    data: &'a str,
}

// A bit for each parameter that is read here.
const SESSION: u32 = 1 << 0;
const ACK: u32 = 1 << 1;
const GOT: u32 = 1 << 2;
const KEY: u32 = 1 << 3;
const KEYS: u32 = 1 << 4;
const MODE: u32 = 1 << 5;
const WAIT_MS: u32 = 1 << 6;
const LEASE_MS: u32 = 1 << 7;
const OWNER: u32 = 1 << 8;
const WAIT: u32 = 1 << 9;
const TOKEN: u32 = 1 << 10;
const AFTER: u32 = 1 << 11;
const VALUE: u32 = 1 << 12;
const IF_VERSION: u32 = 1 << 13;
const FILE: u32 = 1 << 14;
const DATA: u32 = 1 << 15;

/// What every method takes.
const ALWAYS: u32 = SESSION | ACK | GOT;

impl<'a> Scan<'a> {
    fn skip_space(&mut self) {
        let bytes = self.text.as_bytes();
        while bytes.get(self.at).is_some_and(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// Passes over this text if it comes next.
    #[inline(always)]
    fn takes(&mut self, text: &str) -> Option<()> {
        let comes = self.text.as_bytes()[self.at..].starts_with(text.as_bytes());
        self.at += if comes { text.len() } else { 0 };
        comes.then_some(())
    }

    /// The next byte that is no space, passed over.
    fn next(&mut self) -> Option<u8> {
        self.skip_space();
        let byte = *self.text.as_bytes().get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn peek(&mut self) -> Option<u8> {
        self.skip_space();
        self.text.as_bytes().get(self.at).copied()
    }

    fn open(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// What follows an opening bracket, at most so many items.
    fn list(&mut self, most: usize, mut item: impl FnMut(&mut Scan<'a>) -> Option<()>) -> Option<()> {
        if self.peek()? == b']' {
            self.at += 1;
            return Some(());
        }
        for _ in 0..most {
            item(self)?;
            match self.next()? {
                b',' => {}
                b']' => return Some(()),
                _ => return None,
            }
        }
        None
    }

    /// What follows an opening brace: each member's name is given, its value is to be read.
    fn members(&mut self, mut member: impl FnMut(&mut Scan<'a>, &'a str) -> Option<()>) -> Option<()> {
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(());
        }
        loop {
            let name = self.string()?;
            self.open(b':')?;
            member(self, name)?;
            if self.ends()? {
                return Some(());
            }
        }
    }

    /// Whether the members end behind this one; another follows else.
    fn ends(&mut self) -> Option<bool> {
        match self.next()? {
            b',' => Some(false),
            b'}' => Some(true),
            _ => None,
        }
    }

    /// A string without escapes.
    fn string(&mut self) -> Option<&'a str> {
        self.open(b'"')?;
        let from = self.at;
        let to = from + plain_bytes(&self.text.as_bytes()[from..]);
        self.at = to;
        self.takes("\"").map(|()| &self.text[from..to])
    }

    /// The id of a session: a string of 32 bytes.
    fn session(&mut self) -> Option<SessionId> {
        self.open(b'"')?;
        let written = self.text.get(self.at..self.at + 32)?;
        let session = match self.last {
            Some((last, session)) if last == written => session,
            _ => written.parse().ok()?,
        };
        self.last = Some((written, session));
        self.at += 32;
        self.takes("\"").map(|()| session)
    }

    /// An integer from 0 to [`INTEGER_MAX`], written as one.
    fn integer(&mut self) -> Option<u64> {
        self.skip_space();
        let rest = &self.text.as_bytes()[self.at..];
        let (number, digits) = leading_number(rest);
        self.at += digits;
        let is_one = digits == 1 || digits > 1 && rest[0] != b'0';
        // What has more digits than were read is too large.
        let goes_on = matches!(rest.get(digits), Some(b'0'..=b'9' | b'.' | b'e' | b'E'));
        (is_one && !goes_on && number <= INTEGER_MAX).then_some(number)
    }

    /// A string without escapes, an integer, `true`, `false` or `null`, as it stands in the text.
    fn scalar(&mut self) -> Option<&'a str> {
        let first = self.peek()?;
        let from = self.at;
        match first {
            b'"' => drop(self.string()?),
            b'0'..=b'9' => drop(self.integer()?),
            _ => {
                let word =
                    ["true", "false", "null"].into_iter().find(|word| self.text[from..].starts_with(word))?;
                self.at += word.len();
            }
        }
        Some(&self.text[from..self.at])
    }

    /// A request, whose brace is passed over.
    #[inline(always)]
    fn element(&mut self, elements: &mut Vec<Element>) -> Option<()> {
        let from = self.at;
        let mut plain = Plain::default();
        let (id, number, method) = match self.usual_head(&mut plain) {
            Some(read) => {
                while !self.ends()? {
                    let name = self.string()?;
                    self.open(b':')?;
                    self.param(&mut plain, name)?;
                }
                self.open(b'}')?;
                read
            }
            None => {
                self.at = from;
                plain = Plain::default();
                self.any_members(&mut plain)?
            }
        };
        let session = plain.session;
        let (got, method) = plain.method(method, number)?;
        let request = Ok(Request { session, got, method });
        elements.push(Element { id: Id(CompactString::new(id)), cookie: None, request });
        Some(())
    }

    /// The id, as it stands in the text and as the number that it may be, and the method of a request that begins as most do: with
    /// all members in their order, no spaces but before values, and with the session and `ack`, if it is there, as its first parameters, up to
    /// which it is read. If it begins otherwise, `plain` may have a part of it.
    fn usual_head(&mut self, plain: &mut Plain<'a>) -> Option<(&'a str, Option<u64>, &'a str)> {
        self.takes(r#""jsonrpc":"2.0","id":"#)?;
        let (id, number) = self.id()?;
        self.takes(r#","method":"#)?;
        let method = self.string()?;
        self.takes(r#","params":{"session":"#)?;
        plain.session = Some(self.session()?);
        plain.given = SESSION;
        if self.takes(r#","ack":"#).is_some() {
            plain.ack = self.integer()?;
            plain.given |= ACK;
        }
        Some((id, number, method))
    }

    /// An id, as it stands in the text and as the number that it may be.
    fn id(&mut self) -> Option<(&'a str, Option<u64>)> {
        let first = self.peek()?;
        let from = self.at;
        let number = match first {
            b'"' => {
                self.string()?;
                None
            }
            _ => Some(self.integer()?),
        };
        let text = &self.text[from..self.at];
        // Two quotes and 64 bytes.
        (text.len() <= 66).then_some((text, number))
    }

    /// The id, as it stands in the text and as the number that it may be, and the method of a request with its members in any order.
    fn any_members(&mut self, plain: &mut Plain<'a>) -> Option<(&'a str, Option<u64>, &'a str)> {
        let (mut version, mut id, mut method, mut params) = (None, None, None, false);
        self.members(|scan, name| match name {
            "jsonrpc" if version.is_none() => {
                version = Some(scan.string()?);
                Some(())
            }
            "id" if id.is_none() => {
                id = Some(scan.id()?);
                Some(())
            }
            "method" if method.is_none() => {
                method = Some(scan.string()?);
                Some(())
            }
            "params" if !params => {
                params = true;
                scan.open(b'{')?;
                scan.members(|scan, name| scan.param(plain, name))
            }
            _ => None,
        })?;
        let (id, number) = id?;
        (version? == "2.0").then_some((id, number, method?))
    }

    fn param(&mut self, plain: &mut Plain<'a>, name: &str) -> Option<()> {
        match name {
            "session" if plain.gives(SESSION) => plain.session = Some(self.session()?),
            "ack" if plain.gives(ACK) => plain.ack = self.integer()?,
            "got" if plain.gives(GOT) => {
                self.open(b'[')?;
                let got = &mut plain.got;
                self.list(GOT_MAX, |scan| {
                    got.push(scan.integer()?);
                    Some(())
                })?;
            }
            "key" if plain.gives(KEY) => plain.key = self.string()?,
            "keys" if plain.gives(KEYS) => plain.keys = Some(self.asks()?),
            "mode" if plain.gives(MODE) => plain.mode = self.string()?,
            "wait_ms" if plain.gives(WAIT_MS) => {
                plain.wait_ms = match self.peek()? {
                    b'n' => {
                        (self.scalar()? == "null").then_some(())?;
                        None
                    }
                    _ => Some(self.integer()?),
                }
            }
            "lease_ms" if plain.gives(LEASE_MS) => plain.lease_ms = self.integer()?,
            "owner" if plain.gives(OWNER) => plain.owner = self.string()?,
            "wait" if plain.gives(WAIT) => plain.wait = self.integer()?,
            "token" if plain.gives(TOKEN) => plain.token = self.integer()?,
            "after" if plain.gives(AFTER) => plain.after = self.integer()?,
            "value" if plain.gives(VALUE) => plain.value = self.scalar()?,
            "if_version" if plain.gives(IF_VERSION) => plain.if_version = self.integer()?,
            "file" if plain.gives(FILE) => plain.file = self.string()?,
            "data" if plain.gives(DATA) => plain.data = self.string()?,
            _ => return None,
        }
        Some(())
    }

    /// Several locks, each by its name or with a mode.
    fn asks(&mut self) -> Option<Asks> {
        let mut asks = Vec::new();
        self.open(b'[')?;
        self.list(ASKS_MAX, |scan| {
            scan.open(b'{')?;
            let (mut key, mut mode) = (None, None);
            scan.members(|scan, name| {
                let place = match name {
                    "key" => &mut key,
                    "mode" => &mut mode,
                    _ => return None,
                };
                place.replace(scan.string()?).is_none().then_some(())
            })?;
            asks.push(Ask { key: Name::new(key?).ok()?, mode: plain_mode(mode?)? });
            Some(())
        })?;
        asks.sort();
        let twice = asks.windows(2).any(|pair| pair[0].key == pair[1].key);
        (!asks.is_empty() && !twice).then(|| asks.into())
    }
}

fn plain_mode(mode: &str) -> Option<Mode> {
    match mode {
        "exclusive" => Some(Mode::Exclusive),
        "shared" => Some(Mode::Shared),
        _ => None,
    }
}

impl Plain<'_> {
    /// Notes that a parameter is given; false if it was before.
    fn gives(&mut self, bit: u32) -> bool {
        let first = self.given & bit == 0;
        self.given |= bit;
        first
    }

    fn has(&self, bits: u32) -> bool {
        self.given & bits != 0
    }

    /// What is asked, and the waits whose replies have arrived.
    #[inline(always)]
    fn method(self, name: &str, number: Option<u64>) -> Option<(Vec<u64>, Method)> {
        // What a method takes beside what all take, and what of it must be there.
        let (takes, needs) = match name {
            "acquire_lock" => (KEY | KEYS | MODE | WAIT_MS | LEASE_MS | OWNER, 0),
            "release_lock" | "abandon" => (TOKEN, TOKEN),
            "cancel_wait" => (WAIT, WAIT),
            "renew_lease" => (TOKEN | LEASE_MS, TOKEN | LEASE_MS),
            "set" => (KEY | VALUE | IF_VERSION | TOKEN, KEY | VALUE),
            "delete" => (KEY | IF_VERSION | TOKEN, KEY),
            "append_file" => (FILE | DATA | TOKEN, FILE | DATA | TOKEN),
            "heartbeat" => (AFTER, 0),
            "get" => (KEY | TOKEN, KEY),
            "is_locked" => (KEY, KEY),
            _ => return None,
        };
        let reads = matches!(name, "get" | "is_locked");
        if self.given & !(ALWAYS | takes) != 0
            || self.given & needs != needs
            || self.session.is_none() && !reads
        {
            return None;
        }
        let token = self.has(TOKEN).then_some(self.token);
        let if_version = self.has(IF_VERSION).then_some(self.if_version);
        let lease_ms = self.has(LEASE_MS).then_some(self.lease_ms);
        if lease_ms.is_some_and(|ms| !(TTL_MIN_MS..=TTL_MAX_MS).contains(&ms)) {
            return None;
        }
        let key = || Name::new(self.key).ok();
        let call = match name {
            "acquire_lock" => {
                let asks = match (&self.keys, self.has(KEY)) {
                    (None, true) => {
                        let mode = if self.has(MODE) { plain_mode(self.mode)? } else { Mode::Exclusive };
                        Ask { key: key()?, mode }.into()
                    }
                    (Some(asks), false) if !self.has(MODE) => asks.clone(),
                    _ => return None,
                };
                let wait = match (self.has(WAIT_MS), self.wait_ms) {
                    (false, _) | (true, Some(0)) => Patience::Try,
                    (true, None) => Patience::Forever,
                    (true, Some(ms)) => Patience::Millis((ms <= WAIT_MAX_MS).then_some(ms)?),
                };
                let plain =
                    self.owner.is_empty() || self.owner.len() <= LABEL_MAX && Name::allows(self.owner);
                let owner = plain.then(|| self.owner.to_owned())?;
                Call::Acquire { asks, wait, owner, terms: Terms { lease_ms, ..Terms::PLAIN } }
            }
            "release_lock" => Call::Release { token: token?, holder: None },
            "abandon" => Call::Abandon { token: token?, holder: None },
            "cancel_wait" => {
                let wait = self.wait;
                (wait > 0 && wait < number?).then_some(())?;
                Call::CancelWait { wait }
            }
            "renew_lease" => Call::RenewLease { token: token?, holder: None, lease_ms: lease_ms? },
            "set" => Call::Set {
                key: key()?,
                value: ArcStr::from(self.value),
                if_version,
                life: Life::default(),
                token,
                holder: None,
            },
            "delete" => Call::Delete { key: key()?, if_version, token, holder: None },
            "append_file" => Call::AppendFile {
                file: Name::file(self.file).ok()?,
                data: Arc::from(self.data.as_bytes()),
                token: token?,
                holder: None,
            },
            "heartbeat" => return Some((self.got, Method::Heartbeat { after: self.after })),
            "get" => {
                let method = Method::Get { key: key()?, under: Under { token, holder: None } };
                return Some((self.got, method));
            }
            "is_locked" => {
                let method = Method::IsLocked { key: key()? };
                return Some((self.got, method));
            }
            _ => return None,
        };
        let id = number.filter(|id| *id >= 1 && self.ack <= *id)?;
        Some((self.got, Method::Logged { id, ack: self.ack, call }))
    }
}
