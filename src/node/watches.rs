//! Watches: long polls that are parked until something happens or their time is over.
//!
//! A parked watch is memory of this node and nothing else: when the node is gone, the client asks again with the cursor that
//! it has, and another one answers. So nothing hangs on it, and a lost reply loses nothing but time. A watch is parked once
//! however often its datagram arrives, since an address uses an id for one request at a time.
//!
//! ```text
//!  watch ─┬─ events since the cursor, or not to wait: answered at once
//!         └─ else parked ─┬─ a commit brings an event of the prefix: answered behind its batch
//!                         ├─ time is over, or the server stops: an empty list, and a cursor that has moved on
//!                         └─ the same address uses the id for something else: gone
//! ```
//!
//! What a commit did is looked up by the prefixes of its names, so it costs as much with four thousand watches as with one.

use super::Node;
use super::assembly::Place;
use super::counts::Count;
use super::reads::json_len;
use crate::identity::{Op, Position};
use crate::kind::{Detail, Kind, Refusal};
use crate::limits::{ADDRESS_WATCHES_MAX, WATCH_SCAN_MAX, WATCHES_MAX};
use crate::map::HashMap;
use crate::time::Time;
use crate::wire::{self, Events, Id, WatchAsk, encode_cursor, encode_error, encode_result, page_bytes};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// A long poll that waits.
#[derive(Debug)]
struct Parked {
    to: SocketAddr,
    sealed: bool,
    id: Id,
    ask: WatchAsk,
    deadline: Time,
}

/// The long polls that wait, and by what they are found.
#[derive(Debug, Default)]
pub(super) struct Watches {
    last: u64,
    parked: BTreeMap<u64, Parked>,
    by_request: BTreeMap<(SocketAddr, Id), u64>,
    by_prefix: HashMap<String, BTreeSet<u64>>,
    /// How many of these prefixes have how many bytes.
    lengths: BTreeMap<usize, usize>,
    by_deadline: BTreeSet<(Time, u64)>,
    of_address: HashMap<SocketAddr, usize>,
    /// Those that a commit brought something for, and from where on that is.
    woken: Vec<(Parked, Position)>,
}

impl Watches {
    pub(super) fn len(&self) -> usize {
        self.parked.len()
    }

    /// When the next one has waited long enough.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.by_deadline.first().map(|(time, _)| *time)
    }

    /// What waits under that id of that address.
    fn find(&self, to: SocketAddr, id: &Id) -> Option<(u64, &WatchAsk)> {
        let number = *self.by_request.get(&(to, id.clone()))?;
        Some((number, &self.parked[&number].ask))
    }

    /// The cap that keeps one more from being parked, if one does.
    fn full(&self, to: SocketAddr) -> Option<(&'static str, usize)> {
        if self.parked.len() >= WATCHES_MAX {
            return Some(("watches", WATCHES_MAX));
        }
        let full = self.of_address.get(&to).is_some_and(|count| *count >= ADDRESS_WATCHES_MAX);
        full.then_some(("address_watches", ADDRESS_WATCHES_MAX))
    }

    fn park(&mut self, parked: Parked) {
        self.last += 1;
        let number = self.last;
        self.by_request.insert((parked.to, parked.id.clone()), number);
        self.by_deadline.insert((parked.deadline, number));
        *self.of_address.entry(parked.to).or_default() += 1;
        let alike = self.by_prefix.entry(parked.ask.prefix.clone()).or_default();
        if alike.is_empty() {
            *self.lengths.entry(parked.ask.prefix.len()).or_default() += 1;
        }
        alike.insert(number);
        self.parked.insert(number, parked);
    }

    fn take(&mut self, number: u64) -> Parked {
        let parked = self.parked.remove(&number).expect("a watch is taken once");
        self.by_request.remove(&(parked.to, parked.id.clone()));
        self.by_deadline.remove(&(parked.deadline, number));
        let of_address = self.of_address.get_mut(&parked.to).expect("a parked watch is counted");
        *of_address -= 1;
        if *of_address == 0 {
            self.of_address.remove(&parked.to);
        }
        let alike = self.by_prefix.get_mut(&parked.ask.prefix).expect("a parked watch has its prefix");
        alike.remove(&number);
        if alike.is_empty() {
            self.by_prefix.remove(&parked.ask.prefix);
            let length = parked.ask.prefix.len();
            let count = self.lengths.get_mut(&length).expect("each prefix is counted by its length");
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
        parked
    }

    fn take_due(&mut self, now: Time) -> Option<Parked> {
        let (time, number) = *self.by_deadline.first()?;
        (time <= now).then(|| self.take(number))
    }

    fn take_first(&mut self) -> Option<Parked> {
        let number = *self.parked.first_key_value()?.0;
        Some(self.take(number))
    }

    /// Wakes whoever waits for a name.
    fn wake(&mut self, name: &str, from: Position) {
        let fits = |length: &usize| name.is_char_boundary(*length);
        let numbers: Vec<u64> = self
            .lengths
            .range(..=name.len())
            .map(|(length, _)| *length)
            .filter(fits)
            .filter_map(|length| self.by_prefix.get(&name[..length]))
            .flatten()
            .copied()
            .collect();
        for number in numbers {
            let parked = self.take(number);
            self.woken.push((parked, from));
        }
    }
}

impl Node {
    /// Answers a watch, or parks it.
    pub(super) fn watch(&mut self, now: Time, place: Place, ask: WatchAsk) {
        if ask.wait_ms > 0 && self.assemblies.is_batch(place) {
            let text =
                "a watch in a batch is answered at once: leave `wait_ms` out, or send it outside a batch";
            return self.refuse(place, &Refusal::new(Kind::InvalidParams, text));
        }
        let (to, id) = (self.assemblies.address(place), self.assemblies.id(place).clone());
        match self.watches.find(to, &id) {
            Some((_, waits)) if *waits == ask => {
                self.counts.count(Count::Duplicates);
                return self.assemblies.silence(place);
            }
            // The client has given up the one before.
            Some((number, _)) => drop(self.watches.take(number)),
            None => {}
        }
        let from = ask.from.unwrap_or(Position::behind(self.state.op()));
        let page = match self.events_page(&ask, from) {
            Ok(page) => page,
            Err(refusal) => return self.refuse(place, &refusal),
        };
        let at_end = page.next == encode_cursor(&Position::behind(page.op).to_string());
        if ask.wait_ms == 0 || !page.events.is_empty() || !at_end {
            return self.reply(place, &page);
        }
        if self.draining {
            let text = "the server is stopping; repeat the request when it is back";
            let refusal = Refusal::new(Kind::Draining, text).with(Detail::Again { retry_ms: 1_000 });
            return self.refuse(place, &refusal);
        }
        if let Some((limit, max)) = self.watches.full(to) {
            let text =
                format!("{max} watches wait already; repeat the request later, or ask without `wait_ms`");
            let detail = Detail::LimitAgain { limit: limit.into(), max: max as u64 };
            return self.refuse(place, &Refusal::new(Kind::Limit, text).with(detail));
        }
        let (sealed, deadline) = (self.assemblies.is_sealed(place), now.after_ms(ask.wait_ms));
        self.watches.park(Parked { to, sealed, id, ask, deadline });
        self.assemblies.silence(place);
    }

    /// Wakes whoever waits for what command `op`, the last applied, has done.
    pub(super) fn wake_watches(&mut self, op: Op) {
        if self.watches.len() == 0 {
            return;
        }
        let from = Position { op, seen: 0 };
        if self.state.head().history_after >= op {
            // Some of what it did is gone already, and nobody can tell to whom.
            while let Some(parked) = self.watches.take_first() {
                self.watches.woken.push((parked, from));
            }
        }
        for event in self.state.events_of_last() {
            event.names().for_each(|name| self.watches.wake(name, from));
        }
    }

    /// Answers those who were woken.
    pub(super) fn answer_woken_watches(&mut self) {
        for (parked, from) in std::mem::take(&mut self.watches.woken) {
            self.answer_watch(&parked, from);
        }
    }

    /// Answers those who have waited long enough.
    pub(super) fn answer_due_watches(&mut self, now: Time) {
        while let Some(parked) = self.watches.take_due(now) {
            self.answer_watch(&parked, Position::behind(self.state.op()));
        }
    }

    /// Answers all: there is nothing to wait for any more.
    pub(super) fn answer_all_watches(&mut self) {
        while let Some(parked) = self.watches.take_first() {
            self.answer_watch(&parked, Position::behind(self.state.op()));
        }
    }

    fn answer_watch(&mut self, parked: &Parked, from: Position) {
        let mut bytes = Vec::new();
        match self.events_page(&parked.ask, from) {
            Ok(page) => encode_result(&mut bytes, &parked.id, &page),
            Err(refusal) => encode_error(&mut bytes, &parked.id, &refusal),
        }
        self.send(parked.to, parked.sealed, bytes);
    }

    /// As many events as fit a frame and the limit, at least one if there is one, and where to go on. That may be in the
    /// middle of what one command did.
    fn events_page(&self, ask: &WatchAsk, from: Position) -> Result<Events, Refusal> {
        let op = self.state.op();
        let (mut events, mut next, mut bytes) = (Vec::new(), Position::behind(op), 0);
        for (looked, (place, event)) in self.state.events_from(from)?.enumerate() {
            if looked >= WATCH_SCAN_MAX {
                next = place;
                break;
            }
            if !event.names().any(|name| name.starts_with(&ask.prefix)) {
                continue;
            }
            let shown = wire::event_shown(event);
            let more = json_len(&shown) + 1;
            let full = ask.limit.is_some_and(|limit| events.len() as u64 >= limit);
            if full || !page_bytes(bytes, more) {
                next = place;
                break;
            }
            bytes += more;
            events.push(shown);
        }
        Ok(Events { events, next: encode_cursor(&next.to_string()), op })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(port: u16, id: u64, prefix: &str) -> Parked {
        let ask = WatchAsk { prefix: prefix.into(), from: None, wait_ms: 1_000, limit: None };
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        Parked { to, sealed: false, id: Id::number(id), ask, deadline: Time::from_millis(id) }
    }

    fn woken(watches: &mut Watches) -> Vec<String> {
        let woken = std::mem::take(&mut watches.woken);
        let mut ids: Vec<_> = woken.iter().map(|(parked, _)| parked.id.as_json().to_owned()).collect();
        ids.sort();
        ids
    }

    #[test]
    fn a_name_wakes_those_whose_prefix_it_begins_with_and_nothing_is_left_of_them() {
        let mut watches = Watches::default();
        let prefixes = ["", "a", "a", "a/", "a/ü", "b", "a/b/c", "ü"];
        for (id, prefix) in (1..).zip(prefixes) {
            watches.park(parked(1, id, prefix));
        }
        let from = Position { op: 3, seen: 0 };
        watches.wake("c", from);
        assert_eq!(woken(&mut watches), ["1"]);
        watches.wake("a/ö", from);
        assert_eq!(woken(&mut watches), ["2", "3", "4"]);
        watches.wake("a/üb", from);
        assert_eq!(woken(&mut watches), ["5"]);
        watches.wake("a/b", from);
        assert_eq!(woken(&mut watches), [""; 0]);
        assert_eq!(watches.len(), 3);
        assert_eq!(watches.take_due(Time::from_millis(5)).map(|parked| parked.id), None);
        assert_eq!(watches.take_due(Time::from_millis(6)).map(|parked| parked.id), Some(Id::number(6)));
        while watches.take_first().is_some() {}
        let Watches { last: _, parked, by_request, by_prefix, lengths, by_deadline, of_address, woken } =
            watches;
        assert!(parked.is_empty() && by_request.is_empty() && by_prefix.is_empty() && lengths.is_empty());
        assert!(by_deadline.is_empty() && of_address.is_empty() && woken.is_empty());
    }

    #[test]
    fn watches_have_a_cap_of_one_address_and_one_of_all() {
        let mut watches = Watches::default();
        let to = |port| SocketAddr::from(([127, 0, 0, 1], port));
        for number in 0..WATCHES_MAX as u64 {
            let port = 1 + (number / ADDRESS_WATCHES_MAX as u64) as u16;
            assert_eq!(watches.full(to(port)), None);
            watches.park(parked(port, number, "k"));
            let of_address = number % ADDRESS_WATCHES_MAX as u64 == ADDRESS_WATCHES_MAX as u64 - 1;
            assert_eq!(watches.full(to(port)).is_some(), of_address);
        }
        assert_eq!(watches.full(to(60_000)), Some(("watches", WATCHES_MAX)));
    }
}
