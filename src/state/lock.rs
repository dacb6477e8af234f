//! A lock: who holds it, who waits for it, and what is taken of it.
//!
//! Most locks have one holder and nobody who waits. Those take no memory beside their entry and their name.

use super::taken::Taken;
use crate::command::Mode;
use crate::identity::{Op, Token};
use crate::name::Name;
use crate::time::Time;
use std::collections::VecDeque;

/// A lock that is held, waited for or closed.
#[derive(Debug)]
pub(super) struct Lock(Form);

#[derive(Debug)]
enum Form {
    /// It has one holder, exclusively or shared, and there is nothing else to know. (A word and a bit: with room for slots
    /// each lock would be a word larger.)
    Held {
        token: Token,
        shared: bool,
    },
    Contended(Box<Contended>),
}

/// What there is to know of a lock that others want too.
#[derive(Debug, Default)]
pub(super) struct Contended {
    /// Its holders, in the order of their tokens.
    pub(super) holders: Vec<Token>,
    /// Waits that convert a grant of it, in the order of their arrival.
    pub(super) converting: Vec<Op>,
    /// Its line: all other waits, in the order of their arrival.
    pub(super) line: VecDeque<Op>,
    /// How many waits at the head of the line are open here.
    pub(super) open: usize,
    /// What the holders take.
    pub(super) held: Taken,
    /// What holders, conversions and open waits take together.
    pub(super) taken: Taken,
    /// How many waits and conversions ask for slots.
    pub(super) slot_waits: u32,
    /// Until when it is closed for the lock-delay of its last tenure, if it is.
    pub(super) closed_until: Option<Time>,
}

fn plain_mode(shared: bool) -> Mode {
    if shared { Mode::Shared } else { Mode::Exclusive }
}

impl Contended {
    fn held_by(token: Token, mode: Mode) -> Contended {
        let taken = Taken::by(mode);
        Contended { holders: vec![token], held: taken, taken, ..Contended::default() }
    }

    /// Puts a hold on it, for which there is room.
    pub(super) fn hold(&mut self, key: &Name, mode: Mode, token: Token) {
        assert!(self.held.admits(mode), "lock {key:?} would be held by two who exclude each other");
        self.held.add(mode);
        self.holders.reserve_exact(1);
        self.holders.push(token);
    }
}

/// The line of a lock for which nobody waits.
static NOBODY: VecDeque<Op> = VecDeque::new();

impl Default for Lock {
    /// Held and wanted by nobody: the caller puts somebody there.
    fn default() -> Lock {
        Lock(Form::Contended(Box::default()))
    }
}

impl Lock {
    /// A lock with one holder.
    pub(super) fn held_by(token: Token, mode: Mode) -> Lock {
        match mode {
            Mode::Exclusive => Lock(Form::Held { token, shared: false }),
            Mode::Shared => Lock(Form::Held { token, shared: true }),
            Mode::Slot { .. } => Lock(Form::Contended(Box::new(Contended::held_by(token, mode)))),
        }
    }

    pub(super) fn holders(&self) -> &[Token] {
        match &self.0 {
            Form::Held { token, .. } => std::slice::from_ref(token),
            Form::Contended(lock) => &lock.holders,
        }
    }

    pub(super) fn converting(&self) -> &[Op] {
        self.contended_form().map_or(&[], |lock| &lock.converting)
    }

    pub(super) fn line(&self) -> &VecDeque<Op> {
        self.contended_form().map_or(&NOBODY, |lock| &lock.line)
    }

    pub(super) fn open(&self) -> usize {
        self.contended_form().map_or(0, |lock| lock.open)
    }

    pub(super) fn held(&self) -> Taken {
        match &self.0 {
            Form::Held { shared, .. } => Taken::by(plain_mode(*shared)),
            Form::Contended(lock) => lock.held,
        }
    }

    pub(super) fn taken(&self) -> Taken {
        match &self.0 {
            Form::Held { shared, .. } => Taken::by(plain_mode(*shared)),
            Form::Contended(lock) => lock.taken,
        }
    }

    pub(super) fn slot_waits(&self) -> u32 {
        self.contended_form().map_or(0, |lock| lock.slot_waits)
    }

    pub(super) fn closed_until(&self) -> Option<Time> {
        self.contended_form().and_then(|lock| lock.closed_until)
    }

    /// How many wait for it.
    pub(super) fn queue_len(&self) -> usize {
        self.converting().len() + self.line().len()
    }

    /// Whether a newcomer behind the line would be open here.
    pub(super) fn is_open(&self, mode: Mode) -> bool {
        self.closed_until().is_none() && self.open() == self.line().len() && self.taken().admits(mode)
    }

    /// Whether it is held, waited for and closed by nothing at all.
    pub(super) fn leaves_no_trace(&self) -> bool {
        self.holders().is_empty() && self.queue_len() == 0 && self.closed_until().is_none()
    }

    /// The one holder, if that is all there is to know.
    pub(super) fn sole_holder(&self) -> Option<Token> {
        match (self.holders(), self.queue_len(), self.closed_until()) {
            (&[token], 0, None) => Some(token),
            _ => None,
        }
    }

    /// The lock as one that others want too, to be changed.
    pub(super) fn contended(&mut self) -> &mut Contended {
        if let Form::Held { token, shared } = self.0 {
            self.0 = Form::Contended(Box::new(Contended::held_by(token, plain_mode(shared))));
        }
        match &mut self.0 {
            Form::Contended(lock) => lock,
            Form::Held { .. } => unreachable!("it has just been made so"),
        }
    }

    /// Whether it is kept as one that nobody but its holder wants.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.0, Form::Held { .. })
    }

    /// A holder goes on under another, younger token.
    pub(super) fn rename(&mut self, old: Token, new: Token) {
        match &mut self.0 {
            Form::Held { token, .. } => {
                assert!(*token == old, "a grant holds each of its locks");
                *token = new;
            }
            Form::Contended(lock) => {
                let place = lock.holders.binary_search(&old).expect("a grant holds each of its locks");
                lock.holders.remove(place);
                lock.holders.push(new);
            }
        }
    }

    fn contended_form(&self) -> Option<&Contended> {
        match &self.0 {
            Form::Held { .. } => None,
            Form::Contended(lock) => Some(lock),
        }
    }
}
