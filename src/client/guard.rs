//! Asking for a lock, and the guard that stands for the grant.

use super::tenure::Tenure;
use super::{Asking, Blocked, Client, Conversion, Error, Fence, FileChunk, GrantState, LostGrant, Result};
use crate::command::Mode;
use crate::wire::{
    Acquired, Appended, FileChanged, FileInfo, Int, KeyAsk, KeyMode, KeyShown, Params, Pending, Released,
};
use crossbeam_channel::{Receiver, Sender};
use serde::Serialize;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A request for a lock or for several at once, from [`Client::lock`] or [`Client::lock_all`]: say how, then
/// [`acquire`](LockRequest::acquire).
///
/// Without [`wait`](LockRequest::wait) it tries once. Without [`shared`](LockRequest::shared) or
/// [`slots`](LockRequest::slots) the lock is exclusive. Several locks are granted whole or not at all, under one token.
#[derive(Clone, Debug)]
#[must_use = "nothing is asked before `acquire`, `try_acquire` or `with`"]
pub struct LockRequest {
    client: Client,
    params: Params,
    wait: Patience,
    deadline: Option<Duration>,
    progress: Option<Sender<Pending>>,
}

/// How long to stand in line.
#[derive(Clone, Copy, Debug)]
pub(super) enum Patience {
    Try,
    Within(Duration),
    Forever,
}

/// What came of asking for a lock.
#[derive(Debug)]
pub enum Attempt {
    /// It is held.
    Granted(Guard),
    /// It is not, and here is why. Nothing changed.
    Refused(Box<Blocked>),
}

impl LockRequest {
    pub(super) fn new(client: Client, key: String) -> LockRequest {
        let params = Params { key: Some(key), ..Params::default() };
        LockRequest { client, params, wait: Patience::Try, deadline: None, progress: None }
    }

    pub(super) fn several(client: Client, keys: Vec<KeyAsk>) -> LockRequest {
        let params = Params { keys: Some(keys), ..Params::default() };
        LockRequest { client, params, wait: Patience::Try, deadline: None, progress: None }
    }

    /// Shared: beside any number of others that hold it shared, and beside nobody else. Of several locks, those that were
    /// given no mode of their own.
    pub fn shared(self) -> LockRequest {
        self.mode(Mode::Shared)
    }

    /// One slot of so many, as of a semaphore: beside others while the slots suffice. All who ask for the lock must say
    /// the same number. Of several locks, those that were given no mode of their own.
    pub fn slots(mut self, slots: u32) -> LockRequest {
        self.params.mode = Some("slot".into());
        self.params.slots = Some(Int(slots.into()));
        self
    }

    /// So many of the [`slots`](LockRequest::slots), and not one.
    pub fn weight(mut self, weight: u32) -> LockRequest {
        self.params.weight = Some(Int(weight.into()));
        self
    }

    /// The mode, by its value. Of several locks, those that were given no mode of their own.
    pub fn mode(mut self, mode: Mode) -> LockRequest {
        let KeyMode { mode, slots, weight, .. } = KeyMode::new(String::new(), mode);
        self.params.mode = mode;
        self.params.slots = slots;
        self.params.weight = weight;
        self
    }

    /// Stands in line for at most so long. In whole milliseconds, at most 30 days.
    pub fn wait(mut self, limit: Duration) -> LockRequest {
        self.wait = Patience::Within(limit);
        self
    }

    /// Stands in line until granted.
    pub fn wait_forever(mut self) -> LockRequest {
        self.wait = Patience::Forever;
        self
    }

    /// Gives the grant a lease of its own: it ends after that, unless [`renewed`](Guard::renew), even while the session's
    /// heartbeats go on. In whole milliseconds, 100 ms to 24 h.
    pub fn lease(mut self, lease: Duration) -> LockRequest {
        self.params.lease_ms = Some(Int(millis(lease)));
        self
    }

    /// Ends the grant after so long, whatever is renewed. In whole milliseconds, 100 ms to 24 h. The guard counts from when
    /// the grant can have been made at the earliest, and takes it for lost at 80 %, as with a lease.
    pub fn max_hold(mut self, longest: Duration) -> LockRequest {
        self.params.max_hold_ms = Some(Int(millis(longest)));
        self
    }

    /// Keeps the locks closed for so long after any end of the grant but a release, so that nobody is granted them while
    /// what this holder did last is still on its way. In whole milliseconds, at most 24 h.
    pub fn lock_delay(mut self, delay: Duration) -> LockRequest {
        self.params.lock_delay_ms = Some(Int(millis(delay)));
        self
    }

    /// Makes the grant an atomic section: what is written through the guard is staged, seen through the guard alone, and takes
    /// effect all at once with [`commit`](Guard::commit), or not at all. Dropping the guard rolls it back.
    pub fn atomic(mut self) -> LockRequest {
        self.params.atomic = Some(true);
        self
    }

    /// A note for people, shown to those who ask who holds the lock. At most 128 bytes.
    pub fn label(mut self, label: impl Into<String>) -> LockRequest {
        self.params.label = Some(label.into());
        self
    }

    /// The owner inside the session; by default each thread is one. Name one for a guard that is handed to another thread,
    /// or empty for the session itself. At most 128 bytes.
    pub fn owner(mut self, owner: impl Into<String>) -> LockRequest {
        self.params.owner = Some(owner.into());
        self
    }

    /// How long to go on without an answer, on top of the wait. By default the client's own deadline.
    pub fn deadline(mut self, deadline: Duration) -> LockRequest {
        self.deadline = Some(deadline);
        self
    }

    /// Sends word each time that the server says the request stands in line: where, and who is in the way. What does not
    /// fit the channel is dropped.
    pub fn progress(mut self, to: Sender<Pending>) -> LockRequest {
        self.progress = Some(to);
        self
    }

    /// Asks for the lock, and tells whether it was granted.
    ///
    /// # Errors
    /// [`Error::AlreadyHeld`] if this owner has it. [`Error::Deadlock`] if it could never be served. [`Error::OutcomeUnknown`] if no answer came: the client then takes the
    /// request back as soon as the server answers, so no grant is left behind. Others as [`Error`] says.
    pub fn try_acquire(self) -> Result<Attempt> {
        let mut params = self.params;
        let atomic = params.atomic == Some(true);
        params.wait_ms = self.wait.wait_ms();
        if params.owner.is_none() {
            params.owner = Some(thread_owner());
        }
        let within = self.wait.within(self.deadline.unwrap_or(self.client.deadline()));
        if within.is_none() {
            // Without a deadline of its own it must not hang on a server that was never there.
            self.client.session()?;
        }
        let answer = self.client.request("acquire_lock", params, within, self.progress).map_err(refused)?;
        let acquired: Acquired = answer.read("acquire_lock")?;
        match (acquired.granted, acquired.token, answer.tenure) {
            (Some(true), Some(token), _) if acquired.again => {
                Err(Error::AlreadyHeld { tokens: vec![token], wait: None })
            }
            (Some(true), Some(_), Some(tenure)) => {
                Ok(Attempt::Granted(Guard::new(self.client, tenure, atomic)))
            }
            (Some(true), ..) => Err(Error::Protocol {
                method: "acquire_lock".into(),
                message: "a grant without a token".into(),
            }),
            (Some(false) | None, ..) => Ok(Attempt::Refused(Box::new(Blocked::new(acquired)))),
        }
    }

    /// Asks for the lock and gives its guard.
    ///
    /// # Errors
    /// [`Error::NotGranted`] if somebody is in the way or the wait ended; else as [`try_acquire`](LockRequest::try_acquire).
    pub fn acquire(self) -> Result<Guard> {
        match self.try_acquire()? {
            Attempt::Granted(guard) => Ok(guard),
            Attempt::Refused(blocked) => Err(Error::NotGranted(blocked)),
        }
    }

    /// Runs `work` while holding the lock, and releases it.
    ///
    /// # Errors
    /// As [`acquire`](LockRequest::acquire): `work` did not run. As [`Guard::release`]: it did run, and with [`Error::Lost`]
    /// a part of it may have run without the lock (what it wrote through the guard did not).
    pub fn with<T>(self, work: impl FnOnce(&mut Guard) -> T) -> Result<T> {
        let mut guard = self.acquire()?;
        let value = work(&mut guard);
        guard.release()?;
        Ok(value)
    }
}

/// What a [`commit`](Guard::commit) did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The number of the command that released the grant: the version of every key that was written.
    pub op: u64,
    /// How many staged writes took effect with it.
    pub writes: u64,
}

/// A grant that is held. Dropping it releases it, as well as that can be done in a moment; [`release`](Guard::release)
/// does it surely. An [`atomic`](LockRequest::atomic) one that is dropped is rolled back.
///
/// Writes through the guard carry its token: after a loss the server refuses them, and so does the guard.
#[derive(Debug)]
#[must_use = "the lock is released when the guard is dropped"]
pub struct Guard {
    client: Client,
    tenure: Arc<Tenure>,
    /// Whether drop still has to release.
    held: bool,
    /// Whether what is written under it is staged.
    atomic: bool,
}

impl Guard {
    pub(super) fn new(client: Client, tenure: Arc<Tenure>, atomic: bool) -> Guard {
        Guard { client, tenure, held: true, atomic }
    }

    /// The fencing token, to be carried by everything that the lock protects.
    ///
    /// # Errors
    /// [`Error::Lost`] once the grant is lost by this client's own clock or the server's word.
    pub fn token(&self) -> Result<u64> {
        self.check()?;
        Ok(self.tenure.token())
    }

    /// The names of the locks held.
    pub fn keys(&self) -> &[String] {
        self.tenure.keys()
    }

    /// The locks held, each with the mode that it is held in now.
    pub fn locks(&self) -> Vec<KeyShown> {
        self.tenure.locks()
    }

    /// Converts all locks of the grant to a mode, or with [`Conversion::only`] some of them. After an upgrade the guard has
    /// another [`token`](Guard::token), and [`Fence`]s made before are over; a conversion that fails leaves the guard as
    /// it was.
    pub fn convert(&mut self, mode: Mode) -> Conversion<'_> {
        Conversion::of_guard(&self.client, &self.tenure, mode)
    }

    /// How sure it is that the grant is held, now.
    pub fn state(&self) -> GrantState {
        self.tenure.state()
    }

    /// How long the grant can still be relied on without further proof, from now; zero once it is lost.
    pub fn remaining(&self) -> Duration {
        self.tenure.remaining()
    }

    /// A channel that gives the loss when it happens, at once if it has. It closes without one when the grant is released.
    pub fn lost(&self) -> Receiver<LostGrant> {
        self.tenure.lost()
    }

    /// Blocks until the grant is lost, for at most so long.
    pub fn wait_lost(&self, within: Duration) -> Option<LostGrant> {
        self.lost().recv_timeout(within).ok()
    }

    /// Calls back at each change of [`state`](Guard::state), from the client's background thread: return soon, and do not
    /// call the client from it.
    pub fn on_change(&self, call: impl Fn(GrantState) + Send + 'static) {
        self.tenure.on_change(Box::new(call));
    }

    /// That somebody asks to have the lock, if so: the newest asking.
    pub fn asking(&self) -> Option<Asking> {
        self.tenure.asking()
    }

    /// A channel that gives each asking to let go, at once the one that stands. It closes when the grant ends. What does not
    /// fit it is dropped.
    pub fn asked(&self) -> Receiver<Asking> {
        self.tenure.asked()
    }

    /// Calls back for each asking to let go, at once for the one that stands, later from the client's background thread:
    /// return soon, and do not call the client from it.
    pub fn on_asked(&self, call: impl Fn(&Asking) + Send + 'static) {
        self.tenure.on_asked(Box::new(call));
    }

    /// Offers the grant to the session with that public number, in the place of an earlier offer. It stays held here until
    /// the other takes it ([`Client::take_over`]); then this guard is lost, with the reason `taken_over`.
    ///
    /// # Errors
    /// [`Error::Lost`]; [`Error::Refused`] with `not_found` if there is no such live session; others as [`Error`] says.
    pub fn offer_to(&self, client: u64) -> Result<()> {
        self.fence()?.offer_to(client).map_err(|error| self.explain(error))
    }

    /// Takes an offer back. It may have been taken in the meantime: then this guard is lost.
    ///
    /// # Errors
    /// [`Error::Lost`]; others as [`Error`] says.
    pub fn take_offer_back(&self) -> Result<()> {
        self.fence()?.take_offer_back().map_err(|error| self.explain(error))
    }

    /// The same token as a [`Fence`], for all that can be done under it.
    ///
    /// # Errors
    /// [`Error::Lost`] once the grant is lost.
    pub fn fence(&self) -> Result<Fence> {
        Ok(self.client.fence(self.token()?))
    }

    /// Sets the grant's own lease to end so long from now. In whole milliseconds, 100 ms to 24 h. Gives what it has left.
    ///
    /// # Errors
    /// [`Error::Lost`]; others as [`Error`] says. With an unknown outcome the earlier of both ends counts.
    pub fn renew(&self, lease: Duration) -> Result<Duration> {
        self.fence()?.renew(lease).map_err(|error| self.explain(error))
    }

    /// Sets the key of the same name as the first lock. Gives the key's version.
    ///
    /// # Errors
    /// [`Error::Lost`]; others as [`Error`] says.
    pub fn set_own<T: Serialize + ?Sized>(&self, value: &T) -> Result<u64> {
        self.set(self.own(), value)
    }

    /// Sets a key under this grant. Gives the key's version.
    ///
    /// # Errors
    /// [`Error::Lost`]; others as [`Error`] says.
    pub fn set<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<u64> {
        self.fence()?.set(key, value).map_err(|error| self.explain(error))
    }

    /// Sets a key to JSON text under this grant, if it has that version (0: if it does not exist). Gives its version.
    ///
    /// # Errors
    /// [`Error::Lost`]; [`Error::Refused`] with `version_mismatch`; others as [`Error`] says.
    pub fn set_raw(&self, key: &str, json: &str, if_version: Option<u64>) -> Result<u64> {
        self.fence()?.set_raw(key, json, if_version).map_err(|error| self.explain(error))
    }

    /// Reads a key on behalf of this grant.
    ///
    /// # Errors
    /// [`Error::Lost`]; others as [`Error`] says.
    pub fn get(&self, key: &str) -> Result<Option<super::Entry>> {
        self.fence()?.get(key).map_err(|error| self.explain(error))
    }

    /// Deletes a key under this grant. Gives the version removed, if there was one.
    ///
    /// # Errors
    /// [`Error::Lost`]; others as [`Error`] says.
    pub fn delete(&self, key: &str) -> Result<Option<u64>> {
        self.fence()?.delete(key).map_err(|error| self.explain(error))
    }

    /// Appends to the file of the same name as the first lock. Tells where.
    ///
    /// # Errors
    /// [`Error::Lost`]; others as [`Error`] says.
    pub fn append(&self, data: impl AsRef<[u8]>) -> Result<Appended> {
        self.append_file(self.own(), data)
    }

    /// Appends to a file, whole and once. Tells where.
    ///
    /// # Errors
    /// [`Error::Lost`]; others as [`Error`] says.
    pub fn append_file(&self, file: &str, data: impl AsRef<[u8]>) -> Result<Appended> {
        self.fence()?.append_file(file, data).map_err(|error| self.explain(error))
    }

    /// Deletes a file: the next append begins a new generation.
    ///
    /// # Errors
    /// [`Error::Lost`]; others as [`Error`] says.
    pub fn delete_file(&self, file: &str) -> Result<FileChanged> {
        self.fence()?.delete_file(file).map_err(|error| self.explain(error))
    }

    /// Gives a file another name, which must be free.
    ///
    /// # Errors
    /// [`Error::Lost`]; others as [`Error`] says.
    pub fn rotate_file(&self, file: &str, to: &str) -> Result<FileChanged> {
        self.fence()?.rotate_file(file, to).map_err(|error| self.explain(error))
    }

    /// Opens a file that has a fault to appends again.
    ///
    /// # Errors
    /// [`Error::Lost`]; others as [`Error`] says.
    pub fn repair_file(&self, file: &str) -> Result<FileChanged> {
        self.fence()?.repair_file(file).map_err(|error| self.explain(error))
    }

    /// Reads a piece of a file on behalf of this grant: see [`Client::read_file`].
    ///
    /// # Errors
    /// [`Error::Lost`]; others as [`Error`] says.
    pub fn read_file(&self, file: &str, offset: u64, limit: Option<u64>) -> Result<FileChunk> {
        self.fence()?.read_file(file, offset, limit).map_err(|error| self.explain(error))
    }

    /// Reads a file to its end on behalf of this grant: see [`Client::read_all`].
    ///
    /// # Errors
    /// [`Error::Lost`]; others as [`Error`] says.
    pub fn read_all(&self, file: &str) -> Result<Vec<u8>> {
        self.fence()?.read_all(file).map_err(|error| self.explain(error))
    }

    /// Length, generation and checksum of a file on behalf of this grant.
    ///
    /// # Errors
    /// [`Error::Lost`]; others as [`Error`] says.
    pub fn file_info(&self, file: &str) -> Result<FileInfo> {
        self.fence()?.file_info(file).map_err(|error| self.explain(error))
    }

    /// Releases the grant, and waits until that is so. An atomic one is committed: see [`commit`](Guard::commit).
    ///
    /// # Errors
    /// [`Error::Lost`] if it was lost before. [`Error::OutcomeUnknown`] if no answer came: the client goes on telling the
    /// server in the background. Either way the grant is not to be relied on any more.
    pub fn release(self) -> Result<()> {
        self.commit().map(|_| ())
    }

    /// Releases the grant, and with it lets everything take effect that was staged under an atomic one. Tells how much.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was lost before: nothing took effect. [`Error::Refused`] if a staged write cannot take effect
    /// (`file_fault`, `limit`, `bad_name`): then none did, and the section is rolled back. [`Error::OutcomeUnknown`] if no
    /// answer came: the client goes on telling the server in the background.
    pub fn commit(mut self) -> Result<Committed> {
        self.held = false;
        if let Err(lost) = self.check() {
            self.client.core.release_on_drop(&self.tenure, true);
            return Err(lost);
        }
        let within = Some(self.client.deadline());
        let answer =
            self.client.core.request_of(&self.tenure, "release_lock", Params::default(), within, None);
        match answer {
            Ok(answer) => {
                let released: Released = answer.read("release_lock")?;
                Ok(Committed { op: released.op, writes: released.writes })
            }
            Err(error) => {
                if self.atomic && matches!(error, Error::Refused { .. }) && self.tenure.loss().is_none() {
                    // The server has kept grant and section, for whoever wants to try again; the guard is used up.
                    self.client.core.release_on_drop(&self.tenure, true);
                }
                Err(self.explain(error))
            }
        }
    }

    /// Gives the grant up, and waits until that is so: what was staged under an atomic one is thrown away.
    ///
    /// # Errors
    /// As [`release`](Guard::release).
    pub fn abandon(mut self) -> Result<()> {
        self.held = false;
        if let Err(lost) = self.check() {
            self.client.core.release_on_drop(&self.tenure, true);
            return Err(lost);
        }
        let within = Some(self.client.deadline());
        let answer = self.client.core.request_of(&self.tenure, "abandon", Params::default(), within, None);
        answer.map(|_| ()).map_err(|error| self.explain(error))
    }

    /// Gives the token and keeps the grant: it lives on with the client's session until it is released by
    /// [`Client::fence`]. Nothing tells of its loss any more; the client still judges it by its own clock, and abandons it
    /// once it must take it for lost, as it does with a guard's.
    ///
    /// # Errors
    /// [`Error::Lost`] once the grant is lost.
    pub fn into_token(mut self) -> Result<u64> {
        let token = self.token()?;
        self.held = false;
        Ok(token)
    }

    fn own(&self) -> &str {
        self.tenure.keys().first().map_or("", String::as_str)
    }

    fn check(&self) -> Result<()> {
        match self.tenure.loss() {
            None => Ok(()),
            Some(loss) => Err(Error::Lost(loss)),
        }
    }

    /// A refusal for want of the grant is its loss.
    fn explain(&self, error: Error) -> Error {
        match (self.tenure.loss(), error) {
            (Some(loss), Error::Refused { kind, .. }) if kind == "not_holder" => Error::Lost(loss),
            (_, error) => error,
        }
    }
}

impl Drop for Guard {
    /// Releases in the background, and rolls back an atomic one; waits a moment for the answer. Never fails: an unanswered release is repeated as long as
    /// the client lives, and after that the session's TTL ends the grant.
    fn drop(&mut self) {
        if self.held {
            self.client.core.release_on_drop(&self.tenure, self.atomic);
        }
    }
}

/// The owner of the calling thread, one for each thread of the process.
pub(super) fn thread_owner() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static MINE: Cell<u64> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed)));
    format!("t{}", MINE.get())
}

/// Refusals of requests for locks that have an error of their own.
pub(super) fn refused(error: Error) -> Error {
    match error {
        Error::Refused { kind, data, .. } if kind == "already_held" => {
            Error::AlreadyHeld { tokens: data.tokens, wait: data.wait }
        }
        Error::Refused { kind, data, .. } if kind == "deadlock" => {
            let total = data.cycle_total.unwrap_or(data.cycle.len() as u64);
            Error::Deadlock { cycle: data.cycle, cycle_total: total }
        }
        error => error,
    }
}

/// Whole milliseconds, rounded up, so that a lease or wait is never 0 by rounding.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX).min(crate::identity::INTEGER_MAX)
}
