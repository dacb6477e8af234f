//! What of a lock is taken: the one rule for which modes go together.

use crate::command::Mode;

/// What of a lock is taken, by those who hold it and those who are to be treated as though they did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    exclusive: u32,
    shared: u32,
    /// Slots taken, as the sum of weights.
    slots: u64,
}

impl Taken {
    /// What one takes who has it in that mode.
    pub(super) fn by(mode: Mode) -> Taken {
        let mut taken = Taken::default();
        taken.add(mode);
        taken
    }

    /// Whether one more may take the lock in that mode: shared goes with shared, slots with slots while they last, and
    /// nothing else with anything.
    pub(super) fn admits(self, mode: Mode) -> bool {
        match mode {
            Mode::Exclusive => self == Taken::default(),
            Mode::Shared if crate::bug::planted("shared_beside_exclusive") => self.slots == 0,
            Mode::Shared => self.exclusive == 0 && self.slots == 0,
            Mode::Slot { slots, weight } => {
                let slots = u64::from(slots) + u64::from(crate::bug::planted("one_slot_more"));
                self.exclusive == 0 && self.shared == 0 && self.slots + u64::from(weight) <= slots
            }
        }
    }

    /// Slots taken, as the sum of weights.
    pub(super) fn slots(self) -> u64 {
        self.slots
    }

    pub(super) fn add(&mut self, mode: Mode) {
        match mode {
            Mode::Exclusive => self.exclusive += 1,
            Mode::Shared => self.shared += 1,
            Mode::Slot { weight, .. } => self.slots += u64::from(weight),
        }
    }

    /// Takes back what was added before.
    pub(super) fn remove(&mut self, mode: Mode) {
        match mode {
            Mode::Exclusive => self.exclusive -= 1,
            Mode::Shared => self.shared -= 1,
            Mode::Slot { weight, .. } => self.slots -= u64::from(weight),
        }
    }
}

/// Whether two may not take the same lock at once, whoever else does. Slots do not conflict by themselves: they run out.
pub(super) fn conflict(a: Mode, b: Mode) -> bool {
    match (a, b) {
        (Mode::Shared, Mode::Shared) | (Mode::Slot { .. }, Mode::Slot { .. }) => false,
        (Mode::Exclusive | Mode::Shared | Mode::Slot { .. }, _) => true,
    }
}

/// Whether who holds a lock in mode `held` may have mode `asked` without anybody's leave: it takes nothing more.
pub(super) fn weaker(asked: Mode, held: Mode) -> bool {
    match (asked, held) {
        (_, Mode::Exclusive) | (Mode::Shared, Mode::Shared) => true,
        (Mode::Slot { slots, weight }, Mode::Slot { slots: of, weight: had }) => slots == of && weight <= had,
        (Mode::Exclusive | Mode::Shared | Mode::Slot { .. }, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: Mode = Mode::Exclusive;
    const S: Mode = Mode::Shared;

    fn slot(weight: u32, slots: u32) -> Mode {
        Mode::Slot { slots, weight }
    }

    #[test]
    fn shared_goes_with_shared_slots_with_slots_and_nothing_with_anything_else() {
        for (held, asked, goes) in [
            (X, X, false),
            (X, S, false),
            (X, slot(1, 3), false),
            (S, X, false),
            (S, S, true),
            (S, slot(1, 3), false),
            (slot(2, 3), X, false),
            (slot(2, 3), S, false),
            (slot(2, 3), slot(1, 3), true),
            (slot(2, 3), slot(2, 3), false),
        ] {
            let mut taken = Taken::default();
            assert!(taken.admits(held) && taken.admits(asked), "a free lock admits everybody");
            taken.add(held);
            assert_eq!(taken.admits(asked), goes, "{asked:?} beside {held:?}");
            taken.remove(held);
            assert_eq!(taken, Taken::default());
        }
    }

    #[test]
    fn a_weaker_mode_takes_nothing_more() {
        assert!(weaker(S, X) && weaker(slot(3, 3), X) && weaker(X, X) && weaker(S, S));
        assert!(weaker(slot(1, 3), slot(2, 3)) && !weaker(slot(2, 3), slot(1, 3)));
        assert!(!weaker(slot(1, 4), slot(2, 3)) && !weaker(X, S) && !weaker(S, slot(1, 3)));
    }
}
