//! The state machine without a server: no network, no disk, no clock. Whoever has a log of their own can drive it.
//!
//! ```text
//! cargo run --release --example in_process
//! ```

#![allow(clippy::print_stdout, reason = "an example tells its story on stdout")]

use tenure::command::{Ask, Call, Command, Life, Mode, Patience, Request, Terms};
use tenure::event::Event;
use tenure::identity::{Nonce, Op, SessionId};
use tenure::name::Name;
use tenure::outcome::Outcome;
use tenure::state::State;
use tenure::time::Time;

/// A state and how far its log is.
struct Local {
    state: State,
    now: Time,
}

impl Local {
    /// Gives a command the next place in the log, applies it, and tells what it did.
    fn apply(&mut self, command: &Command) -> Outcome {
        let (op, mut effects): (Op, _) = (self.state.op() + 1, Vec::new());
        let event = Event::of(&self.state, op, command);
        let outcome = self.state.apply(op, self.now, command, &mut effects);
        for line in event.lines(&self.state, &outcome, &effects) {
            println!("{:>6} ms  {line}", self.now.as_micros() / 1_000);
        }
        outcome
    }

    fn request(&mut self, session: SessionId, id: u64, call: Call) -> Outcome {
        self.apply(&Command::Request(Request { session, id, ack: 0, got: Vec::new(), call }))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut local = Local { state: State::new(), now: Time::ZERO };
    let (alice, bob) = (SessionId(1), SessionId(2));
    for (session, name) in [(alice, "alice"), (bob, "bob")] {
        let (nonce, label) = (Nonce(session.0), String::new());
        local.apply(&Command::OpenSession { nonce, session, name: name.into(), label, ttl_ms: 10_000 });
    }
    let jobs = Name::new("jobs")?;
    let acquire = |wait| Call::Acquire {
        asks: Ask { key: jobs.clone(), mode: Mode::Exclusive }.into(),
        wait,
        owner: String::new(),
        terms: Terms { lease_ms: Some(2_000), ..Terms::default() },
    };
    let Outcome::Granted { token, .. } = local.request(alice, 1, acquire(Patience::Try)) else {
        return Err("a free lock was not granted".into());
    };
    let set = |token| Call::Set {
        key: jobs.clone(),
        value: "\"mine\"".into(),
        if_version: None,
        life: Life::default(),
        token: Some(token),
        holder: None,
    };
    local.request(alice, 2, set(token));
    local.request(bob, 1, acquire(Patience::Forever));
    // Time is an argument: two seconds pass at once, and the lease is over.
    local.now = local.now.after_ms(2_000);
    let late = local.request(alice, 3, set(token));
    local.apply(&Command::Tick);
    let holder = local.state.lock("jobs", local.now).and_then(|lock| lock.holders.first().cloned());
    match (late, holder) {
        (Outcome::Refused(_), Some(holder)) if &*holder.name == "bob" && holder.token > token => Ok(()),
        (late, holder) => Err(format!("the late write: {late:?}; the holder: {holder:?}").into()),
    }
}
