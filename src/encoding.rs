//! Commands and outcomes as bytes, in the format of postcard (<https://postcard.jamesmunns.com/wire-format>): numbers in groups of
//! seven bits, the least first; texts and lists behind their length; the variant of an enum as its number.
//!
//! What most commands and outcomes are is written by hand, in a fraction of the time; the rest by postcard, which also reads all of
//! it. The derived form is the norm: debug builds compare each record and each outcome with it.

use crate::command::{Ask, Call, Command, Entry, Life, Mode, Patience, Request, Terms};
use crate::identity::SessionId;
use crate::outcome::Outcome;
use postcard::ser_flavors::Flavor;
use serde::Serialize;

/// What takes bytes.
pub(crate) trait Out {
    fn byte(&mut self, byte: u8);
    fn bytes(&mut self, bytes: &[u8]);
}

impl Out for Vec<u8> {
    #[inline]
    fn byte(&mut self, byte: u8) {
        self.push(byte);
    }

    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Adds an entry of the log.
pub(crate) fn entry(out: &mut Vec<u8>, entry: &Entry) {
    let start = out.len();
    match &entry.command {
        Command::Request(request) => {
            number(out, entry.at.as_micros());
            number(out, entry.ahead_us);
            out.byte(5);
            self::request(out, request);
        }
        Command::NewTerm { .. }
        | Command::OpenSession { .. }
        | Command::EndSession { .. }
        | Command::Tick
        | Command::FileFault { .. } => derived(out, entry),
    }
    debug_assert_eq!(Ok(&out[start..]), postcard::to_stdvec(entry).as_deref(), "{entry:?}");
}

fn request(out: &mut Vec<u8>, request: &Request) {
    let Request { session, id, ack, got, call } = request;
    self::session(out, *session);
    number(out, *id);
    number(out, *ack);
    length(out, got.len());
    got.iter().for_each(|id| number(out, *id));
    self::call(out, call);
}

/// Adds what is asked.
pub(crate) fn call<O: Out>(out: &mut O, call: &Call) {
    match call {
        Call::Acquire { asks, wait, owner, terms } => {
            out.byte(0);
            self::asks(out, asks);
            match wait {
                Patience::Try => out.byte(0),
                Patience::Millis(ms) => {
                    out.byte(1);
                    number(out, *ms);
                }
                Patience::Forever => out.byte(2),
            }
            text(out, owner);
            let Terms { label, lease_ms, atomic, lock_delay_ms, max_hold_ms } = terms;
            text(out, label);
            option(out, *lease_ms, number);
            flag(out, *atomic);
            number(out, *lock_delay_ms);
            option(out, *max_hold_ms, number);
        }
        Call::Release { token, holder } => {
            out.byte(2);
            number(out, *token);
            option(out, *holder, session);
        }
        Call::Set { key, value, if_version, life, token, holder } => {
            out.byte(5);
            text(out, key);
            text(out, value);
            option(out, *if_version, number);
            let Life { ttl_ms, bound } = life;
            option(out, *ttl_ms, number);
            flag(out, *bound);
            option(out, *token, number);
            option(out, *holder, session);
        }
        Call::AppendFile { file, data, token, holder } => {
            out.byte(7);
            text(out, file);
            length(out, data.len());
            out.bytes(data);
            number(out, *token);
            option(out, *holder, session);
        }
        Call::CancelWait { .. }
        | Call::Abandon { .. }
        | Call::RenewLease { .. }
        | Call::Delete { .. }
        | Call::DeleteFile { .. }
        | Call::RotateFile { .. }
        | Call::RepairFile { .. }
        | Call::Convert { .. }
        | Call::HandOver { .. }
        | Call::TakeOver { .. }
        | Call::BreakLock { .. }
        | Call::AskRelease { .. }
        | Call::Transaction { .. } => derived(out, call),
    }
}

/// Adds an outcome.
pub(crate) fn outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    let start = out.len();
    match outcome {
        Outcome::Granted { token, asks, op, lease_ms, again, lease_left_ms, hold_left_ms, atomic } => {
            out.byte(2);
            number(out, *token);
            self::asks(out, asks);
            number(out, *op);
            option(out, *lease_ms, number);
            flag(out, *again);
            // Left out where there is none.
            if lease_left_ms.is_some() {
                option(out, *lease_left_ms, number);
            }
            option(out, *hold_left_ms, number);
            flag(out, *atomic);
        }
        Outcome::Released { op, writes } => {
            out.byte(6);
            number(out, *op);
            number(out, *writes);
        }
        Outcome::Set { version, staged } => {
            out.byte(8);
            number(out, *version);
            flag(out, *staged);
        }
        Outcome::Appended { offset, length, staged } => {
            out.byte(10);
            number(out, *offset);
            number(out, *length);
            flag(out, *staged);
        }
        Outcome::Done
        | Outcome::Opened { .. }
        | Outcome::Waiting(_)
        | Outcome::NotGranted(_)
        | Outcome::Cancelled
        | Outcome::Renewed { .. }
        | Outcome::Deleted { .. }
        | Outcome::FileChanged { .. }
        | Outcome::Cleaned { .. }
        | Outcome::Refused(_)
        | Outcome::Void
        | Outcome::Offered { .. }
        | Outcome::Broken { .. }
        | Outcome::ReleaseAsked { .. }
        | Outcome::Applied { .. } => derived(out, outcome),
    }
    debug_assert_eq!(Ok(&out[start..]), postcard::to_stdvec(outcome).as_deref(), "{outcome:?}");
}

/// Adds a number.
pub(crate) fn number<O: Out>(out: &mut O, mut number: u64) {
    while number >= 0x80 {
        out.byte(number as u8 | 0x80);
        number >>= 7;
    }
    out.byte(number as u8);
}

fn length<O: Out>(out: &mut O, length: usize) {
    number(out, length as u64);
}

fn text<O: Out>(out: &mut O, text: &str) {
    length(out, text.len());
    out.bytes(text.as_bytes());
}

fn flag<O: Out>(out: &mut O, flag: bool) {
    out.byte(flag.into());
}

fn session<O: Out>(out: &mut O, session: SessionId) {
    out.bytes(&session.0.to_be_bytes());
}

fn option<O: Out, T>(out: &mut O, option: Option<T>, value: impl FnOnce(&mut O, T)) {
    flag(out, option.is_some());
    if let Some(some) = option {
        value(out, some);
    }
}

fn asks<O: Out>(out: &mut O, asks: &[Ask]) {
    length(out, asks.len());
    for Ask { key, mode } in asks {
        text(out, key);
        match mode {
            Mode::Exclusive => out.byte(0),
            Mode::Shared => out.byte(1),
            Mode::Slot { slots, weight } => {
                out.byte(2);
                number(out, u64::from(*slots));
                number(out, u64::from(*weight));
            }
        }
    }
}

/// What postcard makes of a value.
fn derived<O: Out, T: Serialize>(out: &mut O, value: &T) {
    struct Through<'a, O>(&'a mut O);

    impl<O: Out> Flavor for Through<'_, O> {
        type Output = ();

        fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
            self.0.byte(byte);
            Ok(())
        }

        fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
            self.0.bytes(bytes);
            Ok(())
        }

        fn finalize(self) -> postcard::Result<()> {
            Ok(())
        }
    }

    postcard::serialize_with_flavor(value, Through(out))
        .expect("commands and outcomes always encode: they have no maps or sequences of unknown length");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asks::Asks;
    use crate::name::Name;
    use crate::time::Time;
    use std::sync::Arc;

    const NUMBERS: [u64; 8] = [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, 1 << 53, u64::MAX];

    fn options() -> impl Iterator<Item = Option<u64>> {
        NUMBERS.into_iter().map(Some).chain([None])
    }

    fn some_asks() -> [Asks; 2] {
        let ask = |key, mode| Ask { key: Name::new(key).unwrap(), mode };
        let slot = Mode::Slot { slots: u32::MAX, weight: 300 };
        [
            ask("a", Mode::Exclusive).into(),
            vec![ask("ä", Mode::Shared), ask(&"n".repeat(200), slot), ask("z", Mode::Exclusive)].into(),
        ]
    }

    fn some_calls() -> Vec<Call> {
        let name = |text| Name::new(text).unwrap();
        let mut calls = vec![Call::CancelWait { wait: 300 }];
        for (number, option) in NUMBERS.into_iter().cycle().zip(options()) {
            let holder = option.map(|number| SessionId(u128::from(number) << 60 | 7));
            let flag = option.is_some();
            for asks in some_asks() {
                for wait in [Patience::Try, Patience::Millis(number), Patience::Forever] {
                    let (owner, label) = ("o".repeat(number.min(300) as usize), "läbel".into());
                    let (lease_ms, max_hold_ms) = (option, option.map(|ms| ms / 3));
                    let terms = Terms { label, lease_ms, atomic: flag, lock_delay_ms: number, max_hold_ms };
                    calls.push(Call::Acquire { asks: asks.clone(), wait, owner, terms });
                }
            }
            calls.push(Call::Release { token: number, holder });
            let (value, life) = ("\"värde\"".into(), Life { ttl_ms: option, bound: flag });
            let (if_version, token) = (option.map(|number| number / 3), option.map(|number| number / 5));
            calls.push(Call::Set { key: name("k"), value, if_version, life, token, holder });
            let data = Arc::from(vec![0xff; number.min(70_000) as usize]);
            calls.push(Call::AppendFile { file: name("f"), data, token: number, holder });
        }
        calls
    }

    /// Whoever reads them, and every fingerprint and digest that stands in a snapshot, knows postcard's form.
    #[test]
    fn what_is_written_by_hand_is_what_postcard_writes() {
        for call in some_calls() {
            let mut bytes = Vec::new();
            self::call(&mut bytes, &call);
            assert_eq!(bytes, postcard::to_stdvec(&call).unwrap(), "{call:?}");
            let command =
                Command::Request(Request { session: SessionId(5), id: 1, ack: 300, got: vec![2, 900], call });
            let entry = Entry { at: Time::from_micros(1 << 40), ahead_us: 200, command };
            bytes.clear();
            self::entry(&mut bytes, &entry);
            assert_eq!(bytes, postcard::to_stdvec(&entry).unwrap(), "{entry:?}");
        }
        for (number, option) in NUMBERS.into_iter().cycle().zip(options()) {
            let (staged, [one, several]) = (option.is_some(), some_asks());
            let granted = |asks, lease_left_ms| Outcome::Granted {
                token: number,
                asks,
                op: number / 2,
                lease_ms: option,
                again: staged,
                lease_left_ms,
                hold_left_ms: option.map(|ms| ms / 3),
                atomic: !staged,
            };
            let outcomes = [
                granted(one, option.map(|ms| ms / 5)),
                granted(several, None),
                Outcome::Released { op: number, writes: number / 3 },
                Outcome::Set { version: number, staged },
                Outcome::Appended { offset: number / 5, length: number, staged },
                Outcome::Cleaned { cleaned: number },
            ];
            for outcome in outcomes {
                let mut bytes = Vec::new();
                self::outcome(&mut bytes, &outcome);
                assert_eq!(bytes, postcard::to_stdvec(&outcome).unwrap(), "{outcome:?}");
            }
        }
    }

    #[test]
    fn a_fingerprint_is_that_of_the_same_bytes() {
        for call in some_calls() {
            let mut hasher = siphasher::sip::SipHasher13::new();
            std::hash::Hasher::write(&mut hasher, &postcard::to_stdvec(&call).unwrap());
            let whole = std::hash::Hasher::finish(&hasher);
            assert_eq!(call.fingerprint(), whole & crate::identity::INTEGER_MAX, "{call:?}");
        }
    }
}
