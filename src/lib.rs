//! Tenure: a lock server that protects what it guards.
//!
//! Clients speak JSON-RPC over UDP. A lock lives on a lease that heartbeats keep alive; every grant carries a fencing
//! token; keys and files that a lock guards can only be changed under that grant, on the server; and nothing that was
//! acknowledged is lost or done twice, whatever is killed, dropped, delayed or repeated.
//!
//! This page is the tour: the modules in the order in which a request passes them. `docs/ARCHITECTURE.md` tells why the
//! house is built so, `docs/protocol.md` is the norm of the wire, `docs/guarantees.md` lists what is promised.
//!
//! ```text
//!  socket ─ datagram ─► wire ─ Request ─► node ─ command ─► log ══ committed ══► state ─ Outcome ─► wire ─► socket
//!                                          │ done: the kept reply   │ journal: one sync a batch   │
//!                                          │ in line: `pending`     │                             ├─ grants, waits
//!                                          └ stale: error                                         ├─ keys
//!                                                                                                 └─ files ─► image
//! ```
//!
//! **Pure rooms**: no clock, socket, file, thread or random number; `now` is an argument.
//! - [`datagram`]: bytes as received or sent, with the checksum that tells damage from content.
//! - [`wire`]: JSON-RPC text to requests, and replies to text.
//! - [`proof`]: whether an address has shown that it receives.
//! - [`node`]: joins everything below into one server: admission, reads, replies, waits told until they are heard.
//! - [`lease`]: until when each session lives without a sign of life.
//! - [`command`] and [`outcome`]: what the log orders, and what the state machine says to it.
//! - [`log`](mod@log): the seam between the node and what makes commands durable.
//! - [`state`]: the state machine: sessions, grants, waits, keys, files.
//! - [`record`], [`batch`], [`segment`], [`snapshot`]: commands and states as bytes.
//! - [`client::engine`]: the client's half of the protocol.
//!
//! **I/O rooms**: the only ones that read a clock or touch a disk or a socket.
//! - [`server`]: the mio loop. [`clock`]: log time. [`expiry`]: the alarm clock.
//! - [`journal`]: the thread that writes and syncs. [`storage`]: the data directory. [`recovery`]: from disk to state.
//!   [`fold`]: the next snapshot. [`image`]: the files on disk. [`inspect`]: a stopped directory, shown and checked.
//! - [`client`]: the blocking library.
//!
//! **Words** that all of them share: [`identity`], [`name`], [`kind`], [`limits`], [`time`]. [`event`] tells in lines for
//! people what a command did. [`failpoint`] is for crash tests and compiled out of a release.
//!
//! # Caveats
//! One node: a machine that is gone takes the service with it until it is back. No authentication yet: who can reach the
//! port can use it, so only loopback is bound unless told otherwise. Linux only.

/// The README's example of the library, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod batch;
pub mod client;
pub mod clock;
pub mod command;
pub mod datagram;
pub mod event;
pub mod expiry;
pub mod failpoint;
pub mod fold;
pub mod identity;
pub mod image;
pub mod inspect;
pub mod journal;
pub mod kind;
pub mod lease;
pub mod limits;
pub mod log;
pub mod name;
pub mod node;
pub mod outcome;
pub mod proof;
pub mod record;
pub mod recovery;
pub mod segment;
pub mod server;
pub mod snapshot;
pub mod state;
pub mod storage;
pub mod time;
pub mod wire;
