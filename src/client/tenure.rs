//! What a guard and the background thread share about one grant.

use super::handover::Asking;
use super::lease::{GrantState, LostCause, LostGrant, Span};
use super::socket::boot_time;
use crate::time::Time;
use crate::wire::KeyShown;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is called when the holder is asked to let go.
type OnAsked = Box<dyn Fn(&Asking) + Send>;

/// A [`Span`] that one thread moves and others read.
///
/// The two moments are not read as one: each alone is a moment that was true, and the later ones only ever follow a proof.
#[derive(Debug)]
pub(super) struct Clock {
    at_risk: AtomicU64,
    lost: AtomicU64,
}

impl Clock {
    pub(super) fn new(span: Span) -> Clock {
        Clock {
            at_risk: AtomicU64::new(span.at_risk.as_micros()),
            lost: AtomicU64::new(span.lost.as_micros()),
        }
    }

    pub(super) fn set(&self, span: Span) {
        self.at_risk.store(span.at_risk.as_micros(), Ordering::Release);
        self.lost.store(span.lost.as_micros(), Ordering::Release);
    }

    fn span(&self) -> Span {
        Span {
            at_risk: Time::from_micros(self.at_risk.load(Ordering::Acquire)),
            lost: Time::from_micros(self.lost.load(Ordering::Acquire)),
        }
    }
}

/// One grant, as its guard sees it. It reads the clock itself: after a stall of the whole process it says lost before the
/// background thread has had its turn.
pub(super) struct Tenure {
    /// Another one after an upgrade.
    token: AtomicU64,
    keys: Vec<String>,
    session: Arc<Clock>,
    lease: Clock,
    /// What the bound on the tenure allows; never moves.
    hold: Span,
    shared: Mutex<Shared>,
}

/// Askings that wait in a channel for a listener. The newest stands, so a few are enough.
const ASKINGS_KEPT: usize = 16;

#[derive(Default)]
struct Shared {
    locks: Vec<KeyShown>,
    loss: Option<LostGrant>,
    over: bool,
    told: Option<GrantState>,
    watchers: Vec<Sender<LostGrant>>,
    callbacks: Vec<Box<dyn Fn(GrantState) + Send>>,
    asking: Option<Asking>,
    askers: Vec<Sender<Asking>>,
    asking_callbacks: Vec<OnAsked>,
}

impl fmt::Debug for Tenure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenure")
            .field("token", &self.token())
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl Tenure {
    pub(super) fn new(
        token: u64,
        locks: Vec<KeyShown>,
        session: Arc<Clock>,
        lease: Span,
        hold: Span,
    ) -> Tenure {
        let keys = locks.iter().map(|lock| lock.key.clone()).collect();
        let shared = Mutex::new(Shared { locks, ..Shared::default() });
        Tenure { token: AtomicU64::new(token), keys, session, lease: Clock::new(lease), hold, shared }
    }

    pub(super) fn token(&self) -> u64 {
        self.token.load(Ordering::Acquire)
    }

    /// The locks, as they are held now.
    pub(super) fn locks(&self) -> Vec<KeyShown> {
        self.shared().locks.clone()
    }

    /// It was converted.
    pub(super) fn converted(&self, token: u64, locks: Vec<KeyShown>) {
        self.token.store(token, Ordering::Release);
        self.shared().locks = locks;
    }

    pub(super) fn keys(&self) -> &[String] {
        &self.keys
    }

    pub(super) fn state(&self) -> GrantState {
        match self.loss() {
            Some(_) => GrantState::Lost,
            None => self.span().state(boot_time()),
        }
    }

    pub(super) fn remaining(&self) -> Duration {
        match self.loss() {
            Some(_) => Duration::ZERO,
            None => Duration::from_micros(self.span().lost.us_since(boot_time())),
        }
    }

    /// The loss, if it is lost; by the clock of this moment too, and then for good.
    pub(super) fn loss(&self) -> Option<LostGrant> {
        let now = boot_time();
        let lease = self.lease.span();
        let mut shared = self.shared();
        if shared.loss.is_none() && !shared.over && self.span().state(now) == GrantState::Lost {
            let cause = match (self.hold.state(now), lease.state(now)) {
                (GrantState::Lost, _) => LostCause::HeldTooLong,
                (_, GrantState::Lost) => LostCause::LeaseOver,
                _ => LostCause::Unproven,
            };
            shared.lose(LostGrant { token: self.token(), keys: self.keys.clone(), cause });
        }
        shared.loss.clone()
    }

    pub(super) fn lost(&self) -> Receiver<LostGrant> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let mut shared = self.shared();
        match (&shared.loss, shared.over) {
            // The channel is new and has room for one.
            (Some(loss), _) => drop(sender.try_send(loss.clone())),
            (None, true) => {}
            (None, false) => shared.watchers.push(sender),
        }
        receiver
    }

    pub(super) fn on_change(&self, call: Box<dyn Fn(GrantState) + Send>) {
        self.shared().callbacks.push(call);
    }

    pub(super) fn asking(&self) -> Option<Asking> {
        self.shared().asking.clone()
    }

    pub(super) fn asked(&self) -> Receiver<Asking> {
        let (sender, receiver) = crossbeam_channel::bounded(ASKINGS_KEPT);
        let mut shared = self.shared();
        if let Some(asking) = &shared.asking {
            // The channel is new and has room.
            drop(sender.try_send(asking.clone()));
        }
        if shared.loss.is_none() && !shared.over {
            shared.askers.push(sender);
        }
        receiver
    }

    pub(super) fn on_asked(&self, call: Box<dyn Fn(&Asking) + Send>) {
        if let Some(asking) = self.asking() {
            call(&asking);
        }
        self.shared().asking_callbacks.push(call);
    }

    /// Somebody asks the holder to let go. Calls back, from the background thread.
    pub(super) fn ask(&self, asking: Asking) {
        let mut shared = self.shared();
        shared.asking = Some(asking.clone());
        // Whoever is slow to listen misses some, and whoever is gone wants to know nothing.
        let full =
            |sent: &Result<(), TrySendError<Asking>>| matches!(sent, Ok(()) | Err(TrySendError::Full(_)));
        shared.askers.retain(|asker| full(&asker.try_send(asking.clone())));
        // Called without the lock held, so that a callback may ask the guard.
        let callbacks = std::mem::take(&mut shared.asking_callbacks);
        drop(shared);
        for call in &callbacks {
            call(&asking);
        }
        let mut shared = self.shared();
        let newer = std::mem::replace(&mut shared.asking_callbacks, callbacks);
        shared.asking_callbacks.extend(newer);
    }

    /// The server or the engine says that it is lost.
    pub(super) fn lose(&self, loss: LostGrant) {
        self.shared().lose(loss);
        self.changed(GrantState::Lost);
    }

    /// It was released: there is nothing to lose any more.
    pub(super) fn released(&self) {
        let mut shared = self.shared();
        shared.over = true;
        shared.watchers.clear();
        shared.callbacks.clear();
        shared.askers.clear();
        shared.asking_callbacks.clear();
    }

    pub(super) fn set_lease(&self, span: Span) {
        self.lease.set(span);
    }

    /// Calls back, from the background thread, if that is news.
    pub(super) fn changed(&self, state: GrantState) {
        let mut shared = self.shared();
        if shared.told.replace(state) == Some(state) {
            return;
        }
        // Called without the lock held, so that a callback may ask the guard.
        let callbacks = std::mem::take(&mut shared.callbacks);
        drop(shared);
        for call in &callbacks {
            call(state);
        }
        let mut shared = self.shared();
        let newer = std::mem::replace(&mut shared.callbacks, callbacks);
        shared.callbacks.extend(newer);
    }

    fn span(&self) -> Span {
        self.session.span().and(self.lease.span()).and(self.hold)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // What it guards is whole between any two statements, so a panic elsewhere has not harmed it.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn lose(&mut self, loss: LostGrant) {
        if self.loss.is_some() || self.over {
            return;
        }
        for watcher in self.watchers.drain(..) {
            // A watcher that is gone wants to know nothing.
            drop(watcher.try_send(loss.clone()));
        }
        self.askers.clear();
        self.loss = Some(loss);
    }
}
