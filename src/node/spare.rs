//! Room that was used and is used again. What was used last is in the caches; what an allocator gives next is mostly not.

/// How much room is kept.
const ROOMS_MAX: usize = 64;

/// The largest that is kept, in bytes: what a batch of 64 common replies takes.
const ROOM_BYTES_MAX: usize = 16 << 10;

/// Lists without anything in them.
#[derive(Debug)]
pub(super) struct Spare<T>(Vec<Vec<T>>);

impl<T> Default for Spare<T> {
    fn default() -> Spare<T> {
        Spare(Vec::new())
    }
}

impl<T> Spare<T> {
    /// An empty list with room for so many.
    pub(super) fn take(&mut self, capacity: usize) -> Vec<T> {
        let mut room = self.0.pop().unwrap_or_default();
        room.reserve_exact(capacity);
        room
    }

    /// Keeps the room of a list that is needed no more, unless that is much.
    pub(super) fn put(&mut self, mut room: Vec<T>) {
        if self.0.len() < ROOMS_MAX && room.capacity() * size_of::<T>() <= ROOM_BYTES_MAX {
            room.clear();
            self.0.push(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_last_is_taken_first_and_empty() {
        let mut spare = Spare::default();
        let places: Vec<_> = [b"a".to_vec(), b"b".to_vec()]
            .map(|room| {
                let place = room.as_ptr();
                spare.put(room);
                place
            })
            .into();
        let taken: Vec<Vec<u8>> = (0..3).map(|_| spare.take(1)).collect();
        assert_eq!((taken[0].as_ptr(), taken[1].as_ptr()), (places[1], places[0]));
        assert!(taken.iter().all(|room| room.is_empty() && room.capacity() >= 1));
    }

    #[test]
    fn no_more_is_kept_than_is_used_again() {
        let mut spare = Spare::default();
        spare.put(Vec::<u16>::with_capacity(ROOM_BYTES_MAX / 2 + 1));
        assert!(spare.0.is_empty());
        (0..100).for_each(|_| spare.put(Vec::with_capacity(ROOM_BYTES_MAX / 2)));
        assert_eq!(spare.0.len(), ROOMS_MAX);
    }
}
