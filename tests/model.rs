//! A random test of the state machine against a model of what it promises.
//!
//! Random commands of a few sessions, with few names and tiny limits, go to the state and to [`Model`], which was written
//! from the design and shares no code with the state: plain lists, searched from the front. Every outcome must be the one
//! that the model says, and so must every lock, line, key, file, loss and kept reply. Beside it run a twin, which is taken
//! apart and built anew again and again, and a snapshot with the commands behind it, which replaces the state at a crash.
//!
//! `TENURE_COMMANDS=1000000` runs longer, `TENURE_SEED=…` repeats a run, `TENURE_FAMILIES=modes,delay` draws nothing but
//! exclusive locks, keys, files and these families of commands.

#[path = "model/mod.rs"]
mod reference;

use reference::random::{self, Draw, Random};
use reference::run::Run;
use tenure::command::Command;
use tenure::state::State;
use tenure::time::Time;

/// How many commands a run has if nothing is said.
const COMMANDS: u64 = 20_000;

#[test]
fn the_state_machine_does_what_the_model_says() {
    let seed = std::env::var("TENURE_SEED").ok().map(|seed| seed.parse().expect("TENURE_SEED is a number"));
    let seed = seed.unwrap_or_else(random::fresh_seed);
    let commands =
        std::env::var("TENURE_COMMANDS").ok().map(|n| n.parse().expect("TENURE_COMMANDS is a number"));
    println!("TENURE_SEED={seed}");
    let mut run = Run::new(format!("TENURE_SEED={seed}"), Draw::new(Random::seeded(seed)));
    for number in 0..commands.unwrap_or(COMMANDS) {
        run.step(number);
    }
    println!("drawn: {}\nsaid: {:?}", run.draw.summary(), run.said);
}

/// A state that has more to sweep than one command may, when its afterlife is over, and one built from its parts at that
/// moment: both must forget the session at the same command.
#[test]
fn a_state_built_from_parts_forgets_an_ended_session_when_the_original_does() {
    let mut original = State::new();
    let mut op = 0;
    let mut apply = |state: &mut State, ms: u64, command: &Command| {
        op += 1;
        state.apply(op, Time::from_millis(ms), command, &mut Vec::new())
    };
    for command in random::many_grants(300) {
        apply(&mut original, 0, &command);
    }
    apply(&mut original, 0, &random::end_of_first_session());
    apply(&mut original, 60_000, &Command::Tick);
    let mut rebuilt = State::from_parts(original.parts()).unwrap();
    for _ in 0..3 {
        assert_eq!(original.next_due(), rebuilt.next_due(), "they wake up at other times");
        op += 1;
        original.apply(op, Time::from_millis(60_000), &Command::Tick, &mut Vec::new());
        rebuilt.apply(op, Time::from_millis(60_000), &Command::Tick, &mut Vec::new());
        assert_eq!(format!("{:?}", original.parts()), format!("{:?}", rebuilt.parts()));
    }
}
