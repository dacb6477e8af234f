//! Many owners in a state without a server around it: who holds what, and who waits for it.

use tenure::command::{Ask, Call, Command, Durability, Mode, Patience, Request, Terms};
use tenure::identity::{Nonce, SessionId};
use tenure::limits::Limits;
use tenure::name::Name;
use tenure::outcome::Outcome;
use tenure::state::State;
use tenure::time::Time;

/// A state, and owners who have a session each.
pub(crate) struct Owners {
    state: State,
    /// The last request of each owner.
    ids: Vec<u64>,
}

impl Owners {
    /// So many owners who hold nothing.
    pub(crate) fn new(owners: usize) -> Owners {
        let mut all = Owners { state: State::new(), ids: vec![0; owners] };
        let limits = Limits::default();
        all.apply(&Command::NewTerm { term: 1, limits, durability: Durability::Sync, raised: false });
        for owner in 0..owners {
            all.apply(&Command::OpenSession {
                nonce: Nonce(owner as u128),
                session: SessionId(owner as u128),
                name: String::new(),
                label: String::new(),
                ttl_ms: 10_000,
            });
        }
        all
    }

    /// Chains of so many owners, one behind another in number: of each chain every owner holds lock *i* and waits for lock
    /// *i + 1*, which the next one holds; the last one waits for nothing.
    pub(crate) fn chains(lengths: &[usize]) -> Owners {
        let mut chains = Owners::new(lengths.iter().sum());
        let mut first = 0;
        for length in lengths {
            for owner in first..first + length {
                chains.hold(owner, &chain_lock(owner));
            }
            for owner in first + 1..first + length {
                chains.wait(owner - 1, &chain_lock(owner));
            }
            first += length;
        }
        chains
    }

    /// How many waits were allowed without having been checked to their end.
    pub(crate) fn unchecked_waits(&self) -> u64 {
        self.state.head().unchecked_waits
    }

    /// How much was looked at to find deadlocks, since the beginning.
    pub(crate) fn deadlock_steps(&self) -> u64 {
        self.state.deadlock_steps()
    }

    /// Lets an owner take a free lock.
    pub(crate) fn hold(&mut self, owner: usize, lock: &str) {
        let command = self.acquire(owner, lock);
        let outcome = self.apply(&command);
        assert!(matches!(outcome, Outcome::Granted { .. }), "owner {owner} and {lock}: {outcome:?}");
    }

    /// Lets an owner stand in line for a lock.
    pub(crate) fn wait(&mut self, owner: usize, lock: &str) {
        let command = self.acquire(owner, lock);
        let outcome = self.apply(&command);
        assert!(matches!(outcome, Outcome::Waiting(_)), "owner {owner} and {lock}: {outcome:?}");
    }

    /// Lets an owner give up the wait that it has just begun.
    pub(crate) fn give_up(&mut self, owner: usize) {
        let wait = self.ids[owner];
        let command = self.request(owner, Call::CancelWait { wait });
        self.apply(&command);
    }

    /// The next request of an owner: a lock for itself alone, waiting for it if need be.
    pub(crate) fn acquire(&mut self, owner: usize, lock: &str) -> Command {
        let key = Name::new(lock).expect("the name is good");
        let call = Call::Acquire {
            asks: Ask { key, mode: Mode::Exclusive }.into(),
            wait: Patience::Forever,
            owner: String::new(),
            terms: Terms::default(),
        };
        self.request(owner, call)
    }

    fn request(&mut self, owner: usize, call: Call) -> Command {
        self.ids[owner] += 1;
        let id = self.ids[owner];
        Command::Request(Request { session: SessionId(owner as u128), id, ack: id, got: vec![id - 1], call })
    }

    /// Applies one command.
    pub(crate) fn apply(&mut self, command: &Command) -> Outcome {
        self.state.apply(self.state.op() + 1, Time::ZERO, command, &mut Vec::new())
    }
}

/// The lock that this owner of a chain holds.
pub(crate) fn chain_lock(owner: usize) -> String {
    format!("chain/{owner:05}")
}
