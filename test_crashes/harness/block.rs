//! A disk with a cache that a power cut empties.
//!
//! It does what a disk promises and no more: a sector that was written before a flush is there after it; of what was
//! written since the last flush each sector may or may not be there, in any order. A cut comes between two operations:
//! from then on every one fails, so that nothing can become durable, and be told of, behind the moment of the cut.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Bytes of a block of memory here; no property of the disk.
const BLOCK: usize = 4096;

type Block = [u8; BLOCK];

/// A disk. Cheap to ask for what a cut leaves: blocks are shared.
#[derive(Debug)]
pub(crate) struct Disk {
    state: Mutex<State>,
    cut: Condvar,
    /// What a disk writes whole or not at all, in bytes.
    sector: usize,
}

#[derive(Debug)]
struct State {
    /// What is read: everything that was written.
    seen: Vec<Option<Arc<Block>>>,
    /// What is safe.
    durable: Vec<Option<Arc<Block>>>,
    /// Writes since the last flush, in their order.
    pending: Vec<(usize, Vec<u8>)>,
    /// How many more operations are done before the cut; none if there is to be no cut.
    left: Option<u64>,
    /// Whether only flushes count among them.
    flushes_only: bool,
    counts: Counts,
}

/// What has happened to a disk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Writes that it took.
    pub(crate) writes: u64,
    /// Flushes.
    pub(crate) flushes: u64,
}

/// What a cut did to the sectors that were in the cache.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lost {
    /// Sectors that are not there.
    pub(crate) lost: u64,
    /// Sectors that happen to be there.
    pub(crate) kept: u64,
    /// Writes of which a part is there.
    pub(crate) torn: u64,
}

/// Which of the cached sectors a cut leaves.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// None.
    Nothing,
    /// The first of them in the order of writing, the last write torn.
    Prefix,
    /// Some writes, each whole.
    Writes,
    /// Some sectors.
    Sectors,
    /// All: the cut came before the flush and the cache was written all the same.
    All,
}

impl Disk {
    /// A disk with a content. `sector` is what it writes whole or not at all.
    pub(crate) fn new(content: &[u8], sector: usize) -> Disk {
        let blocks = content.chunks(BLOCK).map(|chunk| {
            let mut block = [0; BLOCK];
            block[..chunk.len()].copy_from_slice(chunk);
            (block != [0; BLOCK]).then(|| Arc::new(block))
        });
        Disk::of(blocks.collect(), sector)
    }

    fn of(blocks: Vec<Option<Arc<Block>>>, sector: usize) -> Disk {
        let state = State {
            seen: blocks.clone(),
            durable: blocks,
            pending: Vec::new(),
            left: None,
            flushes_only: false,
            counts: Counts::default(),
        };
        Disk { state: Mutex::new(state), cut: Condvar::new(), sector }
    }

    /// Its size in bytes.
    pub(crate) fn size(&self) -> usize {
        self.state.lock().unwrap().seen.len() * BLOCK
    }

    /// Reads; `None` without power.
    pub(crate) fn read(&self, offset: usize, length: usize) -> Option<Vec<u8>> {
        let state = self.state.lock().unwrap();
        if state.left == Some(0) {
            return None;
        }
        let end = (offset + length).min(state.seen.len() * BLOCK);
        let mut out = Vec::with_capacity(length);
        let mut at = offset;
        while at < end {
            let upto = (BLOCK - at % BLOCK).min(end - at);
            match &state.seen[at / BLOCK] {
                Some(block) => out.extend_from_slice(&block[at % BLOCK..at % BLOCK + upto]),
                None => out.resize(out.len() + upto, 0),
            }
            at += upto;
        }
        Some(out)
    }

    /// Writes into the cache; `None` without power.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> Option<()> {
        let mut state = self.state.lock().unwrap();
        Disk::step(&self.cut, &mut state, false)?;
        state.counts.writes += 1;
        put(&mut state.seen, offset, bytes);
        state.pending.push((offset, bytes.to_vec()));
        Some(())
    }

    /// Makes durable what was written; `None` without power.
    pub(crate) fn flush(&self) -> Option<()> {
        let mut state = self.state.lock().unwrap();
        Disk::step(&self.cut, &mut state, true)?;
        state.counts.flushes += 1;
        for (offset, bytes) in std::mem::take(&mut state.pending) {
            for number in offset / BLOCK..(offset + bytes.len()).div_ceil(BLOCK) {
                state.durable[number] = state.seen[number].clone();
            }
        }
        Some(())
    }

    /// One operation more, if there is power for it.
    fn step(cut: &Condvar, state: &mut State, flush: bool) -> Option<()> {
        match &mut state.left {
            None => Some(()),
            Some(0) => None,
            Some(_) if state.flushes_only && !flush => Some(()),
            Some(left) => {
                *left -= 1;
                if *left == 0 {
                    cut.notify_all();
                    return None;
                }
                Some(())
            }
        }
    }

    /// Cuts the power in the place of the operation, or of the flush, so many from now; 0 is now.
    pub(crate) fn cut_at(&self, operation: u64, flushes_only: bool) {
        let mut state = self.state.lock().unwrap();
        state.left = Some(operation);
        state.flushes_only = flushes_only;
    }

    /// Waits for the cut; after that time without one it comes now.
    pub(crate) fn await_cut(&self, span: Duration) {
        let state = self.state.lock().unwrap();
        let waited = self.cut.wait_timeout_while(state, span, |state| state.left != Some(0));
        waited.unwrap().0.left = Some(0);
    }

    /// What has happened so far.
    pub(crate) fn counts(&self) -> Counts {
        self.state.lock().unwrap().counts
    }

    /// The disk as the cut leaves it.
    pub(crate) fn after_cut(&self, rng: &mut fastrand::Rng) -> (Disk, Lost) {
        let state = self.state.lock().unwrap();
        assert_eq!(state.left, Some(0), "the power is still on");
        let mut blocks = state.durable.clone();
        let fate = [Fate::Nothing, Fate::Prefix, Fate::Writes, Fate::Sectors, Fate::All][rng.usize(0..5)];
        let chance = rng.u8(1..100);
        let all: usize = state.pending.iter().map(|(_, bytes)| bytes.len().div_ceil(self.sector)).sum();
        let first = rng.usize(0..=all);
        let (mut lost, mut number) = (Lost::default(), 0);
        for (offset, bytes) in &state.pending {
            let whole = rng.u8(0..100) < chance;
            let (before, kept_before) = (lost.lost, lost.kept);
            for (part, sector) in bytes.chunks(self.sector).enumerate() {
                let keep = match fate {
                    Fate::Nothing => false,
                    Fate::Prefix => number < first,
                    Fate::Writes => whole,
                    Fate::Sectors => rng.u8(0..100) < chance,
                    Fate::All => true,
                };
                number += 1;
                if keep {
                    lost.kept += 1;
                    put(&mut blocks, offset + part * self.sector, sector);
                } else {
                    lost.lost += 1;
                }
            }
            lost.torn += u64::from(lost.lost > before && lost.kept > kept_before);
        }
        (Disk::of(blocks, self.sector), lost)
    }
}

fn put(blocks: &mut [Option<Arc<Block>>], offset: usize, bytes: &[u8]) {
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let upto = (BLOCK - at % BLOCK).min(rest.len());
        let block = blocks[at / BLOCK].get_or_insert_with(|| Arc::new([0; BLOCK]));
        Arc::make_mut(block)[at % BLOCK..at % BLOCK + upto].copy_from_slice(&rest[..upto]);
        at += upto;
        rest = &rest[upto..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(disk: &Disk, seed: u64) -> (Disk, Lost) {
        disk.cut_at(0, false);
        disk.after_cut(&mut fastrand::Rng::with_seed(seed))
    }

    #[test]
    fn what_was_flushed_is_there_after_a_cut_and_what_was_not_may_be() {
        let (mut gone, mut there, mut torn) = (0, 0, 0);
        for seed in 0..50 {
            let disk = Disk::new(&[0; 64 << 10], 512);
            disk.write(1000, &[1; 3000]).unwrap();
            disk.flush().unwrap();
            disk.write(512, &[2; 4096]).unwrap();
            assert_eq!(disk.read(512, 2).unwrap(), [2, 2], "what is cached is read");
            let (after, lost) = cut(&disk, seed);
            assert_eq!(lost.lost + lost.kept, 8);
            assert_eq!(disk.read(0, 1), None, "there is no power");
            let bytes = after.read(0, 5000).unwrap();
            assert!(bytes[1000..4000].iter().all(|byte| *byte != 0), "a flushed byte is gone");
            gone += lost.lost;
            there += lost.kept;
            torn += lost.torn;
        }
        assert!(gone > 0 && there > 0 && torn > 0);
    }

    #[test]
    fn a_cut_comes_in_the_place_of_the_operation_that_was_named() {
        let disk = Disk::new(&[0; BLOCK], 512);
        disk.cut_at(2, false);
        disk.write(0, &[1]).unwrap();
        assert_eq!(disk.flush(), None);
        disk.await_cut(Duration::ZERO);
        assert_eq!(disk.counts().flushes, 0);
    }
}
