//! The state machine.
mod parts;
pub use parts::*;

use crate::command::Command;
use crate::identity::Op;
use crate::outcome::{Effect, Outcome};
use crate::time::Time;

/// The state. (Skeleton: the bodies are being written.)
pub struct State {}

impl State {
    /// The state before the first command.
    pub fn new() -> State {
        unimplemented!()
    }
    /// Applies command `op`; what it causes besides is added to `effects`.
    pub fn apply(&mut self, _op: Op, _at: Time, _command: &Command, _effects: &mut Vec<Effect>) -> Outcome {
        unimplemented!()
    }
    /// The last command applied.
    pub fn op(&self) -> Op {
        unimplemented!()
    }
    /// The log time of that command.
    pub fn at(&self) -> Time {
        unimplemented!()
    }
    /// The digest of all outcomes so far.
    pub fn digest(&self) -> u32 {
        unimplemented!()
    }
    /// Everything that a snapshot holds.
    pub fn parts(&self) -> Parts {
        unimplemented!()
    }
    /// Builds a state from its parts.
    ///
    /// # Errors
    /// A sentence, if parts contradict each other.
    pub fn from_parts(_parts: Parts) -> Result<State, String> {
        unimplemented!()
    }
}
