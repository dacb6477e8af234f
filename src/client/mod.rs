//! The client library: locks with guards, keys and files, over one UDP socket.
//!
//! ```no_run
//! use std::time::Duration;
//! use tenure::client::Client;
//!
//! # fn main() -> Result<(), tenure::client::Error> {
//! let client = Client::connect("127.0.0.1:5625")?;
//! let guard = client.lock("a").wait(Duration::from_secs(5)).acquire()?;
//! guard.append_file("a", "one line\n")?;
//! guard.release()?;
//! # Ok(()) }
//! ```
//!
//! A [`Client`] is one session, shared by any number of threads. Its background thread sends heartbeats, repeats what was not
//! answered, and watches the leases by a clock that counts suspend. [`engine`] is the same without socket, clock and
//! thread, for other ways to run it.

mod blocked;
mod conversion;
pub mod engine;
mod error;
mod guard;
mod handover;
mod keys;
mod lease;
#[cfg(test)]
mod live;
mod message;
#[cfg(test)]
mod random;
mod socket;
mod tenure;
#[cfg(test)]
mod tests;
mod timers;
mod transaction;
mod watch;

pub use crate::command::Mode;
pub use blocked::Blocked;
pub use conversion::{Conversion, Converted};
pub use error::Error;
pub use guard::{Attempt, Committed, Guard, LockRequest};
pub use handover::{Asking, Offer, TakeOver};
pub use keys::{Entry, Fence, FileChunk, Pages, Put};
pub use lease::{GrantState, LostCause, LostGrant, Span};
pub use transaction::Transaction;
pub use watch::Watch;

use crate::identity::{Nonce, SessionId};
use crate::wire::{KeyAsk, Params, Pending};
use crossbeam_channel::{Receiver, Sender};
use serde_json::value::RawValue;
use socket::{Answer, Core};
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

/// What calls of this library give.
pub type Result<T> = std::result::Result<T, Error>;

/// How a client is made.
#[derive(Clone, Debug)]
pub struct Builder {
    name: String,
    label: String,
    ttl: Option<Duration>,
    deadline: Duration,
    reopen: bool,
    lazy: bool,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            name: String::new(),
            label: String::new(),
            ttl: None,
            deadline: Duration::from_secs(10),
            reopen: true,
            lazy: false,
        }
    }
}

impl Builder {
    /// The client's name for itself, shown to others. At most 128 bytes.
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = name.into();
        self
    }

    /// A note for people. At most 128 bytes.
    pub fn label(mut self, label: impl Into<String>) -> Builder {
        self.label = label.into();
        self
    }

    /// How long the session lives without a sign of life: what others wait at most when this client dies. In whole
    /// milliseconds, 100 ms to 24 h; by default the server's choice (10 s).
    pub fn ttl(mut self, ttl: Duration) -> Builder {
        self.ttl = Some(ttl);
        self
    }

    /// How long a call goes on without an answer, 10 s by default. Waits for locks come on top.
    pub fn deadline(mut self, deadline: Duration) -> Builder {
        self.deadline = deadline;
        self
    }

    /// Whether a call after the end of the session opens a new one (it does by default). Grants never carry over; without
    /// it such calls give [`Error::SessionEnded`].
    pub fn reopen(mut self, reopen: bool) -> Builder {
        self.reopen = reopen;
        self
    }

    /// Opens the session at the first call that needs one, not in `connect`. Reads, `ping` and `status` need none.
    pub fn lazy(mut self, lazy: bool) -> Builder {
        self.lazy = lazy;
        self
    }

    /// Makes the client and, unless [`lazy`](Builder::lazy), opens its session. Of a name with several addresses the first
    /// of IPv4 is taken, if there is one: `localhost` means 127.0.0.1, where a server listens by default.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such address or no socket; [`Error::Unreachable`] if nobody answers;
    /// [`Error::Refused`] if the server takes no session.
    pub fn connect(self, server: impl ToSocketAddrs) -> Result<Client> {
        let addresses: Vec<SocketAddr> = server.to_socket_addrs()?.collect();
        let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
        let server = *first.ok_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::NotFound, "the server's name has no address")
        })?;
        let lazy = self.lazy;
        let client = Client { core: Arc::new(Core::start(self, server)?) };
        if !lazy {
            client.session()?;
        }
        Ok(client)
    }
}

/// One session at a server. Cheap to clone; all clones are the same session, which is closed when the last clone and the
/// last guard are gone.
#[derive(Clone)]
pub struct Client {
    core: Arc<Core>,
}

/// A session that was left open: who knows this can act for it until its TTL has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detached {
    /// The secret id.
    pub session: SessionId,
    /// The public number.
    pub client: u64,
    /// The nonce that opened it.
    pub nonce: Nonce,
    /// Its TTL.
    pub ttl: Duration,
}

impl fmt::Debug for Client {
    /// The server's address; the session is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("server", &self.core.server()).finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client with the defaults of [`Builder`] and opens its session.
    ///
    /// # Errors
    /// As [`Builder::connect`].
    pub fn connect(server: impl ToSocketAddrs) -> Result<Client> {
        Builder::default().connect(server)
    }

    /// A client to be made otherwise.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where requests go.
    pub fn server(&self) -> SocketAddr {
        self.core.server()
    }

    /// Sends requests elsewhere from now on: to a server that serves the same state. The session and its grants stay.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn set_server(&self, server: SocketAddr) -> Result<()> {
        self.core.set_server(server)
    }

    /// The deadline of a call.
    pub fn deadline(&self) -> Duration {
        self.core.deadline()
    }

    /// The secret id, the public number and the TTL of the session, which is opened if need be.
    ///
    /// # Errors
    /// As [`Builder::connect`]; [`Error::SessionEnded`] without [`Builder::reopen`].
    pub fn session(&self) -> Result<Detached> {
        self.core.session()
    }

    /// A channel that gives each grant that this session is offered, those of before included, as far as they are
    /// remembered. What does not fit it is dropped. It closes when the session ends: offers are made to the session's
    /// number. The session is opened if need be.
    ///
    /// # Errors
    /// As [`session`](Client::session).
    pub fn offers(&self) -> Result<Receiver<Offer>> {
        self.core.offers()
    }

    /// Asks for a lock; see [`LockRequest`].
    pub fn lock(&self, name: impl Into<String>) -> LockRequest {
        LockRequest::new(self.clone(), name.into())
    }

    /// Asks for several locks at once: all of them or none, under one token. Each is a name, or a name with its [`Mode`].
    ///
    /// ```no_run
    /// # use tenure::client::{Client, Mode};
    /// # fn main() -> Result<(), tenure::client::Error> {
    /// # let client = Client::connect("127.0.0.1:5625")?;
    /// let both = client.lock_all(["accounts/1", "accounts/2"]).wait_forever().acquire()?;
    /// let mixed = client.lock_all([("schema", Mode::Shared), ("job", Mode::Exclusive)]).acquire()?;
    /// # Ok(()) }
    /// ```
    pub fn lock_all<K: Into<KeyAsk>>(&self, names: impl IntoIterator<Item = K>) -> LockRequest {
        LockRequest::several(self.clone(), names.into_iter().map(Into::into).collect())
    }

    /// What can be done under a grant of this session, by its token.
    pub fn fence(&self, token: u64) -> Fence {
        Fence::new(self.clone(), Some(token), None)
    }

    /// What can be done under a grant of another session of the same user, by its token and that session's id.
    pub fn fence_of(&self, holder: SessionId, token: u64) -> Fence {
        Fence::new(self.clone(), Some(token), Some(holder))
    }

    /// Calls any method. What the method takes stands in `docs/protocol.md`; `session`, `ack`, `got` and `cookie` are added.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn call(&self, method: &str, params: Params) -> Result<Box<RawValue>> {
        self.call_within(method, params, self.deadline())
    }

    /// Calls any method with a deadline of its own.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn call_within(&self, method: &str, params: Params, within: Duration) -> Result<Box<RawValue>> {
        Ok(self.request(method, params, Some(within), None)?.raw)
    }

    /// Closes the session for all clones: every grant ends, every wait leaves its line. Waits for the answer.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if none came: the session then ends with its TTL.
    pub fn close(&self) -> Result<()> {
        self.core.close()
    }

    /// Leaves without closing the session: it goes on, with its grants, until its TTL has passed or somebody with its id
    /// keeps it alive ([`Client::heartbeat_for`]). All clones are closed by this.
    ///
    /// # Errors
    /// [`Error::Closed`]; others if there is no session and none can be opened.
    pub fn detach(&self) -> Result<Detached> {
        self.core.detach()
    }

    fn request(
        &self,
        method: &str,
        params: Params,
        within: Option<Duration>,
        progress: Option<Sender<Pending>>,
    ) -> Result<Answer> {
        self.core.request(method, params, within, progress)
    }
}
