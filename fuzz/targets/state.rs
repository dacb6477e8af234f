//! The state machine against the model of `tests/model`: the bytes are what a random test draws its commands, the time
//! between them, rebuilt twins, snapshots and crashes from.

use crate::reference::random::{Draw, Random};
use crate::reference::run::Run;

/// Commands of one input: more tell nothing that several inputs do not.
const COMMANDS_MAX: u64 = 400;

/// Takes bytes as the choices of a run.
pub(crate) fn run(bytes: &[u8]) {
    let mut run = Run::new("an input of the fuzzer".into(), Draw::new(Random::of_bytes(bytes)));
    for number in 0..COMMANDS_MAX {
        if run.draw.random.is_drawn() {
            return;
        }
        run.step(number);
    }
}
