//! Assemblies: the replies to one message, until all of them are there.
//!
//! Replies to a batch go out in arrays; a wait answers by itself, later. A read that stands behind something logged is
//! answered when that has been applied, so that a batch is seen in its order.

use super::REPLY_ROOM;
use super::spare::Spare;
use crate::identity::SessionId;
use crate::limits::REPLY_MAX;
use crate::wire::{Id, Method};
use slab::Slab;
use std::net::SocketAddr;
use std::ops::Range;

/// A message under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MessageKey {
    /// Where its assembly is, and where another one's will be.
    at: u32,
    /// Tells it from those; after 2^32 messages from the start again.
    serial: u32,
}

/// One element of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub key: MessageKey,
    pub index: usize,
}

/// A read that waits, and whose it is.
type Read = (Option<SessionId>, Method);

/// What is known of the reply to one element.
#[derive(Debug)]
enum Slot {
    /// Not looked at yet.
    Open,
    /// A command is on its way through the log.
    Log,
    /// A file is being read.
    File,
    /// A read waits for what stands before it.
    Read(Box<Read>),
    /// Where the reply stands among those of the message.
    Ready(Range<usize>),
    /// There is no reply here: a wait answers by itself.
    Silent,
    /// There is no reply here: the element is a copy of a request under way, which answers where that came in.
    Copy,
}

/// The replies to one message.
#[derive(Debug)]
pub(super) struct Assembly {
    /// Where they go.
    pub to: SocketAddr,
    /// Whether they get a checksum.
    pub sealed: bool,
    serial: u32,
    batch: bool,
    elements: Vec<(Id, Slot)>,
    /// In the order in which they were made.
    replies: Vec<u8>,
    /// How many elements are not done.
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
        let (_, before) = &mut self.elements[index];
        self.open = self.open + usize::from(!slot.is_done()) - usize::from(!before.is_done());
        self.reads = self.reads + reads(&slot) - reads(before);
        std::mem::replace(before, slot)
    }

    /// What stands before this element.
    fn before(&self, index: usize) -> impl Iterator<Item = &Slot> {
        self.elements[..index].iter().map(|(_, slot)| slot)
    }
}

/// The replies to a message, all of them.
pub(super) struct Finished {
    /// Where they go.
    pub to: SocketAddr,
    /// Whether they get a checksum.
    pub sealed: bool,
    /// The reply to a message that was no batch, if it has one.
    pub alone: Option<Vec<u8>>,
    /// Those to a batch, as datagrams.
    pub arrays: Vec<Vec<u8>>,
}

/// The messages under way.
#[derive(Debug, Default)]
pub(super) struct Assemblies {
    last: u32,
    under_way: Slab<Assembly>,
    element_room: Spare<(Id, Slot)>,
    reply_room: Spare<u8>,
}

impl Assemblies {
    pub(super) fn begin(
        &mut self,
        to: SocketAddr,
        sealed: bool,
        batch: bool,
        ids: impl ExactSizeIterator<Item = Id>,
    ) -> MessageKey {
        self.last = self.last.wrapping_add(1);
        let open = ids.len();
        let mut elements = self.element_room.take(open);
        elements.extend(ids.map(|id| (id, Slot::Open)));
        let replies = self.reply_room.take(open * REPLY_ROOM);
        let serial = self.last;
        let at =
            self.under_way.insert(Assembly { to, sealed, serial, batch, elements, replies, open, reads: 0 });
        let at = u32::try_from(at).expect("fewer messages are under way than 2^32");
        MessageKey { at, serial }
    }

    fn get(&self, key: MessageKey) -> Option<&Assembly> {
        self.under_way.get(key.at as usize).filter(|assembly| assembly.serial == key.serial)
    }

    fn get_mut(&mut self, key: MessageKey) -> Option<&mut Assembly> {
        self.under_way.get_mut(key.at as usize).filter(|assembly| assembly.serial == key.serial)
    }

    fn of(&self, place: Place) -> &Assembly {
        self.get(place.key).expect("a message under way has its assembly")
    }

    fn put(&mut self, place: Place, slot: Slot) {
        self.get_mut(place.key).expect("a message under way has its assembly").put(place.index, slot);
    }

    pub(super) fn id(&self, place: Place) -> &Id {
        &self.of(place).elements[place.index].0
    }

    pub(super) fn address(&self, place: Place) -> SocketAddr {
        self.of(place).to
    }

    pub(super) fn is_sealed(&self, place: Place) -> bool {
        self.of(place).sealed
    }

    pub(super) fn is_batch(&self, place: Place) -> bool {
        self.of(place).batch
    }

    pub(super) fn await_log(&mut self, place: Place) {
        self.put(place, Slot::Log);
    }

    pub(super) fn await_file(&mut self, place: Place) {
        self.put(place, Slot::File);
    }

    /// Keeps a read until nothing logged stands before it any more.
    pub(super) fn await_others(&mut self, place: Place, session: Option<SessionId>, method: Method) {
        self.put(place, Slot::Read(Box::new((session, method))));
    }

    pub(super) fn silence(&mut self, place: Place) {
        self.put(place, Slot::Silent);
    }

    /// Leaves an element to the message that will answer the same request, and that goes to `to` from here on.
    pub(super) fn answer_with(&mut self, place: Place, first: MessageKey, to: SocketAddr) {
        if let Some(first) = self.get_mut(first) {
            first.to = to;
        }
        self.put(place, Slot::Copy);
    }

    /// Takes in the reply to an element.
    pub(super) fn reply(&mut self, place: Place, encode: impl FnOnce(&mut Vec<u8>, &Id)) {
        let assembly = self.get_mut(place.key).expect("a message under way has its assembly");
        let from = assembly.replies.len();
        encode(&mut assembly.replies, &assembly.elements[place.index].0);
        let to = assembly.replies.len();
        assembly.put(place.index, Slot::Ready(from..to));
    }

    /// Whether something before this element is still on its way through the log.
    pub(super) fn is_behind_log(&self, place: Place) -> bool {
        self.of(place).before(place.index).any(|slot| matches!(slot, Slot::Log))
    }

    /// Whether something before this element is a copy of a request under way: what is read behind it is read where the
    /// request came in first, or would show the state before the request.
    pub(super) fn is_behind_copy(&self, place: Place) -> bool {
        self.of(place).before(place.index).any(|slot| matches!(slot, Slot::Copy))
    }

    /// How many reads of a message wait for what stands before them.
    pub(super) fn reads_behind(&self, key: MessageKey) -> usize {
        self.get(key).map_or(0, |assembly| assembly.reads)
    }

    /// The reads that nothing logged stands before any more.
    pub(super) fn take_ready_reads(&mut self, key: MessageKey) -> Vec<(Place, Option<SessionId>, Method)> {
        let mut ready = Vec::new();
        let Some(assembly) = self.get_mut(key).filter(|assembly| assembly.reads > 0) else {
            return ready;
        };
        for index in 0..assembly.elements.len() {
            match assembly.elements[index].1 {
                Slot::Log => break,
                Slot::Read(_) => {
                    if let Slot::Read(read) = assembly.put(index, Slot::Open) {
                        let (session, method) = *read;
                        ready.push((Place { key, index }, session, method));
                    }
                }
                Slot::Open | Slot::File | Slot::Ready(_) | Slot::Silent | Slot::Copy => {}
            }
        }
        ready
    }

    /// Ends a message whose replies are all there; nothing otherwise.
    pub(super) fn finish(&mut self, key: MessageKey) -> Option<Finished> {
        self.get(key).filter(|assembly| assembly.open == 0)?;
        let Assembly { to, sealed, batch, elements, replies, .. } = self.under_way.remove(key.at as usize);
        let ready = elements.iter().filter_map(|(_, slot)| match slot {
            Slot::Ready(range) => Some(&replies[range.clone()]),
            Slot::Open | Slot::Log | Slot::File | Slot::Read(_) | Slot::Silent | Slot::Copy => None,
        });
        let (mut alone, mut datagrams) = (None, Vec::new());
        if batch {
            let room = self.reply_room.take(REPLY_MAX.min(array_bytes(replies.len())));
            datagrams = arrays(ready, room);
            self.reply_room.put(replies);
        } else if !replies.is_empty() {
            alone = Some(replies);
        } else {
            self.reply_room.put(replies);
        }
        self.element_room.put(elements);
        Some(Finished { to, sealed, alone, arrays: datagrams })
    }

    /// Keeps the room of a reply that was sent, for others.
    pub(super) fn put_room(&mut self, room: Vec<u8>) {
        self.reply_room.put(room);
    }
}

/// About how many bytes an array of replies takes that have so many together.
fn array_bytes(together: usize) -> usize {
    together + together / 64 + 2
}

/// Packs replies into arrays, each of which fits a datagram; the first one into `bytes`, which is empty.
fn arrays<'a>(replies: impl Iterator<Item = &'a [u8]>, mut bytes: Vec<u8>) -> Vec<Vec<u8>> {
    let mut datagrams = Vec::new();
    for reply in replies {
        if !bytes.is_empty() && bytes.len() + reply.len() + 2 > REPLY_MAX {
            bytes.push(b']');
            datagrams.push(std::mem::take(&mut bytes));
        }
        bytes.push(if bytes.is_empty() { b'[' } else { b',' });
        bytes.extend_from_slice(reply);
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
        let datagrams = arrays(std::iter::repeat_n(reply.as_slice(), 5), Vec::new());
        assert!(datagrams.len() > 1);
        for datagram in datagrams {
            assert!(datagram.len() <= REPLY_MAX);
            assert!(datagram.starts_with(b"[") && datagram.ends_with(b"]"));
        }
        assert!(arrays(std::iter::empty(), Vec::new()).is_empty());
    }
}
