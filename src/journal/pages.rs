//! The last pages of a file, in memory that direct writes can be made from.
//!
//! A direct write begins and ends at whole pages, in the file and in memory. Batches do not: so the bytes of the page that is
//! not full yet are kept and written again with what follows them. Each 512 bytes of a disk hold, whatever becomes of such a
//! write, what was there or what it brings, and where they were synced before both are the same.

use crate::disk::PAGE;

/// Bytes that go into one write: a multiple of [`PAGE`].
const ROOM: usize = 1 << 20;

/// What stands at the end of a file, from the start of its last page that is not full, with room behind it.
pub(super) struct Pages {
    /// As long as needed for `ROOM` bytes at a multiple of [`PAGE`]. It never grows, so they stay there.
    memory: Vec<u8>,
    /// Where those begin.
    start: usize,
    used: usize,
}

impl Pages {
    /// Those of a file that ends with `last`: what its last page holds if that is not full, else nothing.
    pub(super) fn new(last: &[u8]) -> Pages {
        assert!(last.len() < PAGE, "{} bytes are the content of a page that is not full", last.len());
        // Fresh zeros take memory only where they are touched, and most writes are of some KiB.
        let memory = vec![0; ROOM + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        assert!(start < PAGE, "an address can be rounded up to a multiple of {PAGE}");
        let mut pages = Pages { memory, start, used: 0 };
        assert_eq!(pages.take(last), last.len(), "there is room for a page");
        pages
    }

    /// Takes bytes behind those that are there, as many as there is room for; gives how many.
    pub(super) fn take(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(ROOM - self.used);
        let from = self.start + self.used;
        self.memory[from..from + taken].copy_from_slice(&bytes[..taken]);
        self.used += taken;
        taken
    }

    /// All that is there, in whole pages: zeros behind it up to the end of the last.
    pub(super) fn whole(&mut self) -> &[u8] {
        let (end, whole) = (self.start + self.used, self.start + self.used.next_multiple_of(PAGE));
        self.memory[end..whole].fill(0);
        &self.memory[self.start..whole]
    }

    /// Forgets all full pages, which are written.
    pub(super) fn forget_full(&mut self) {
        let full = self.start + self.used / PAGE * PAGE;
        self.memory.copy_within(full..self.start + self.used, self.start);
        self.used %= PAGE;
    }

    /// How many bytes are there.
    pub(super) fn used(&self) -> usize {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appends pieces as a segment does, and gives the file that comes of it.
    fn written(first: &[u8], pieces: &[Vec<u8>]) -> Vec<u8> {
        let mut file = first.to_vec();
        let mut end = file.len();
        let mut pages = Pages::new(&first[first.len() / PAGE * PAGE..]);
        for piece in pieces {
            let mut rest = piece.as_slice();
            while !rest.is_empty() {
                let at = end - pages.used();
                let taken = pages.take(rest);
                let whole = pages.whole();
                assert_eq!(whole.as_ptr().align_offset(PAGE), 0, "memory begins at a page");
                assert_eq!((at % PAGE, whole.len() % PAGE), (0, 0), "so does the write, and ends there");
                file.resize(file.len().max(at + whole.len()), 0xee);
                file[at..at + whole.len()].copy_from_slice(whole);
                pages.forget_full();
                (end, rest) = (end + taken, &rest[taken..]);
            }
        }
        assert!(file[end..].iter().all(|&byte| byte == 0), "zeros to the end of the last page");
        file.truncate(end);
        file
    }

    #[test]
    fn pieces_of_any_length_stand_one_behind_the_other() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let edges = [1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, ROOM - 1, ROOM, ROOM + 1, 2 * ROOM + 7];
        for _ in 0..20 {
            let mut some = |most| (0..rng.usize(0..most)).map(|_| rng.u8(..)).collect::<Vec<u8>>();
            let first = some(2 * PAGE);
            let mut pieces: Vec<Vec<u8>> = (0..8).map(|_| some(3_000)).collect();
            pieces.push(vec![7; edges[rng.usize(0..edges.len())]]);
            pieces.push(vec![8; 100]);
            let expected = [first.clone(), pieces.concat()].concat();
            assert!(written(&first, &pieces) == expected, "seed {seed}");
        }
    }
}
