//! Assemblies: the replies to one message, until all of them are there.
//!
//! Replies to a batch go out in arrays; a wait answers by itself, later. A read that stands behind something logged is
//! answered when that has been applied, so that a batch is seen in its order.

use crate::identity::SessionId;
use crate::limits::REPLY_MAX;
use crate::map::HashMap;
use crate::wire::{Id, Method};
use std::net::SocketAddr;

/// One element of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub key: u64,
    pub index: usize,
}

/// What is known of the reply to one element.
#[derive(Debug)]
pub(super) enum Slot {
    /// Not looked at yet.
    Open,
    /// A command is on its way through the log.
    Log,
    /// A file is being read.
    File,
    /// A read waits for what stands before it.
    Read(Option<SessionId>, Box<Method>),
    /// The reply.
    Ready(Vec<u8>),
    /// There is no reply here: a wait answers by itself.
    Silent,
    /// There is no reply here: the element is a copy of a request under way, which answers where that came in.
    Copy,
}

#[derive(Debug)]
struct Assembly {
    to: SocketAddr,
    sealed: bool,
    batch: bool,
    ids: Vec<Id>,
    slots: Vec<Slot>,
    /// How many of them are not done.
    open: usize,
    /// How many of them are reads that wait for what stands before them.
    reads: usize,
}

impl Slot {
    fn is_done(&self) -> bool {
        matches!(self, Slot::Ready(_) | Slot::Silent | Slot::Copy)
    }
}

impl Assembly {
    /// Puts another slot there; gives the one that was there before.
    fn put(&mut self, index: usize, slot: Slot) -> Slot {
        let reads = |slot: &Slot| usize::from(matches!(slot, Slot::Read(..)));
        let before = &self.slots[index];
        self.open = self.open + usize::from(!slot.is_done()) - usize::from(!before.is_done());
        self.reads = self.reads + reads(&slot) - reads(before);
        std::mem::replace(&mut self.slots[index], slot)
    }
}

/// The messages under way.
#[derive(Debug, Default)]
pub(super) struct Assemblies {
    last: u64,
    under_way: HashMap<u64, Assembly>,
    /// Which message will answer a request in flight.
    tied: HashMap<(SessionId, u64), u64>,
}

impl Assemblies {
    pub(super) fn begin(&mut self, to: SocketAddr, sealed: bool, batch: bool, elements: usize) -> u64 {
        self.last += 1;
        let slots = (0..elements).map(|_| Slot::Open).collect();
        let ids = vec![Id::null(); elements];
        let assembly = Assembly { to, sealed, batch, ids, slots, open: elements, reads: 0 };
        self.under_way.insert(self.last, assembly);
        self.last
    }

    pub(super) fn set_id(&mut self, place: Place, id: Id) {
        self.at(place).ids[place.index] = id;
    }

    pub(super) fn id(&self, place: Place) -> &Id {
        &self.under_way[&place.key].ids[place.index]
    }

    pub(super) fn address(&self, place: Place) -> SocketAddr {
        self.under_way[&place.key].to
    }

    pub(super) fn is_sealed(&self, place: Place) -> bool {
        self.under_way[&place.key].sealed
    }

    pub(super) fn is_batch(&self, place: Place) -> bool {
        self.under_way[&place.key].batch
    }

    pub(super) fn await_log(&mut self, place: Place) {
        self.resolve(place, Slot::Log);
    }

    pub(super) fn await_file(&mut self, place: Place) {
        self.resolve(place, Slot::File);
    }

    pub(super) fn silence(&mut self, place: Place) {
        self.resolve(place, Slot::Silent);
    }

    pub(super) fn resolve(&mut self, place: Place, slot: Slot) {
        self.at(place).put(place.index, slot);
    }

    /// Whether something before this element is still on its way through the log.
    pub(super) fn is_behind_log(&self, place: Place) -> bool {
        self.under_way[&place.key].slots[..place.index].iter().any(|slot| matches!(slot, Slot::Log))
    }

    /// Whether something before this element is a copy of a request under way: what is read behind it is read where the
    /// request came in first, or would show the state before the request.
    pub(super) fn is_behind_copy(&self, place: Place) -> bool {
        self.under_way[&place.key].slots[..place.index].iter().any(|slot| matches!(slot, Slot::Copy))
    }

    /// How many reads of a message wait for what stands before them.
    pub(super) fn reads_behind(&self, key: u64) -> usize {
        self.under_way.get(&key).map_or(0, |assembly| assembly.reads)
    }

    /// Remembers which message answers a request in flight.
    pub(super) fn tie(&mut self, place: Place, session: SessionId, id: u64) {
        self.tied.insert((session, id), place.key);
    }

    pub(super) fn untie(&mut self, session: SessionId, id: u64) {
        self.tied.remove(&(session, id));
    }

    /// A copy of a request in flight came from `from`: that is where its reply goes now.
    pub(super) fn follow(&mut self, session: SessionId, id: u64, from: SocketAddr) {
        if let Some(assembly) = self.tied.get(&(session, id)).and_then(|key| self.under_way.get_mut(key)) {
            assembly.to = from;
        }
    }

    /// The reads that nothing logged stands before any more.
    pub(super) fn take_ready_reads(&mut self, key: u64) -> Vec<(Place, Option<SessionId>, Method)> {
        let mut ready = Vec::new();
        let Some(assembly) = self.under_way.get_mut(&key).filter(|assembly| assembly.reads > 0) else {
            return ready;
        };
        for index in 0..assembly.slots.len() {
            match assembly.slots[index] {
                Slot::Log => break,
                Slot::Read(..) => {
                    if let Slot::Read(session, method) = assembly.put(index, Slot::Open) {
                        ready.push((Place { key, index }, session, *method));
                    }
                }
                Slot::Open | Slot::File | Slot::Ready(_) | Slot::Silent | Slot::Copy => {}
            }
        }
        ready
    }

    /// The datagrams of a message whose replies are all there; nothing otherwise.
    pub(super) fn finish(&mut self, key: u64) -> Vec<(SocketAddr, bool, Vec<u8>)> {
        if self.under_way.get(&key).is_none_or(|assembly| assembly.open > 0) {
            return Vec::new();
        }
        let assembly = self.under_way.remove(&key).expect("it was found");
        let replies = assembly.slots.into_iter().filter_map(|slot| match slot {
            Slot::Ready(bytes) => Some(bytes),
            Slot::Open | Slot::Log | Slot::File | Slot::Read(..) | Slot::Silent | Slot::Copy => None,
        });
        let datagrams = if assembly.batch { arrays(replies) } else { replies.collect() };
        datagrams.into_iter().map(|bytes| (assembly.to, assembly.sealed, bytes)).collect()
    }

    fn at(&mut self, place: Place) -> &mut Assembly {
        self.under_way.get_mut(&place.key).expect("a message under way has its assembly")
    }
}

/// Packs replies into arrays, each of which fits a datagram.
fn arrays(replies: impl Iterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut datagrams = Vec::new();
    let mut bytes = Vec::new();
    for reply in replies {
        if !bytes.is_empty() && bytes.len() + reply.len() + 2 > REPLY_MAX {
            bytes.push(b']');
            datagrams.push(std::mem::take(&mut bytes));
        }
        bytes.push(if bytes.is_empty() { b'[' } else { b',' });
        bytes.extend_from_slice(&reply);
    }
    if !bytes.is_empty() {
        bytes.push(b']');
        datagrams.push(bytes);
    }
    datagrams
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_to_a_batch_are_packed_into_arrays_that_fit() {
        let reply = vec![b'1'; REPLY_MAX / 3];
        let datagrams = arrays(std::iter::repeat_n(reply, 5));
        assert!(datagrams.len() > 1);
        for datagram in datagrams {
            assert!(datagram.len() <= REPLY_MAX);
            assert!(datagram.starts_with(b"[") && datagram.ends_with(b"]"));
        }
        assert!(arrays(std::iter::empty()).is_empty());
    }
}
