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
//! - [`node`]: joins everything below into one server: admission, reads, replies, waits told until they are heard, watches.
//! - [`lease`]: until when each session lives without a sign of life. `backlog`: what was read and waits.
//! - [`command`] and [`outcome`]: what the log orders, and what the state machine says to it.
//! - [`log`](mod@log): the seam between the node and what makes commands durable.
//! - [`state`]: the state machine: sessions, locks and their lines, deadlocks, grants, sections, keys, files, history.
//! - [`record`], [`batch`], [`segment`], [`snapshot`]: commands and states as bytes; `encoding`: the common ones by hand.
//! - [`client::engine`]: the client's half of the protocol.
//!
//! **I/O rooms**: the only ones that read a clock or touch a disk or a socket.
//! - [`server`]: the mio loop. [`busy_poll`]: whether it looks for work before it sleeps. [`clock`]: log time. [`expiry`]: the alarm clock.
//! - [`journal`]: the thread that writes and syncs. [`storage`]: the data directory. [`recovery`]: from disk to state.
//!   [`fold`]: the next snapshot. [`image`]: the files on disk. [`inspect`]: a stopped directory, shown and checked.
//! - [`client`]: the blocking library. [`bench`](mod@bench): the load behind `tenure bench`.
//!
//! **Words** that all of them share: [`identity`], [`name`], [`kind`], [`limits`], [`time`]; `rising`: a map of ids that rise;
//! `map`: one in which values are only looked up. [`event`] tells in lines for people what a command
//! did. [`failpoint`] is for crash tests and compiled out of a release.
//!
//! # Locks
//! A lock is held exclusively, shared, or by slots. A request names one lock or several, each in its mode: it is granted
//! whole or not at all, under one token, and stands in all its lines from one moment. Nobody is passed by a later request
//! that is in its way; a wait that could never end, because of a cycle of owners, is refused with the cycle. A grant can be
//! converted without letting go, handed to another session, taken away by an operator, and bounded in time apart from its
//! session. Under an atomic one writes are staged until its release. `docs/guarantees.md` says what each of that promises.
//!
//! ```
//! use std::time::Duration;
//! use tenure::client::{Client, Mode};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let config = tenure::server::Config {
//! #     bind: "127.0.0.1:0".parse()?,
//! #     data_dir: dir.path().join("data"),
//! #     durability: tenure::command::Durability::Sync,
//! #     limits: tenure::limits::Limits::default(),
//! #     segment_bytes: 1 << 20,
//! #     fold_segments: 1,
//! #     busy_poll: tenure::busy_poll::BusyPoll::Auto,
//! #     give_memory_back: || (),
//! # };
//! # let (tell, told) = std::sync::mpsc::channel();
//! # std::thread::spawn(move || tenure::server::run(&config, &mut |addr| tell.send(addr).unwrap()).unwrap());
//! # let server = told.recv()?;
//! let client = Client::connect(server)?;
//! client.transaction().set("anna", &100).set("ben", &100).commit()?;
//! let mut watch = client.watch("");
//! watch.begin()?;
//!
//! // Both accounts or none, in any order; the rates shared, beside other readers; and one of four places to work.
//! let four = Mode::Slot { slots: 4, weight: 1 };
//! let asks = [("ben", Mode::Exclusive), ("anna", Mode::Exclusive), ("rates", Mode::Shared), ("places", four)];
//! let guard = client.lock_all(asks).atomic().wait(Duration::from_secs(5)).acquire()?;
//! guard.set("anna", &80)?;
//! guard.set("ben", &120)?;
//! assert_eq!(client.get_as("anna")?, Some(100)); // nobody else sees it yet
//! guard.commit()?;
//! assert_eq!((client.get_as("anna")?, client.get_as("ben")?), (Some(80), Some(120)));
//!
//! // From shared to exclusive without letting go: nobody can come in between. The token is another one.
//! let mut guard = client.lock("rates").shared().lease(Duration::from_secs(10)).acquire()?;
//! let before = guard.token()?;
//! guard.convert(Mode::Exclusive).wait_forever().apply()?;
//! assert!(guard.token()? > before);
//!
//! // Handed to another session, it is never free in between either.
//! let successor = Client::connect(server)?;
//! guard.offer_to(successor.session()?.client)?;
//! let theirs = successor.take_over(guard.token()?).take()?;
//! theirs.release()?;
//!
//! let first = watch.next_within(Duration::from_secs(5))?.ok_or("no event")?;
//! assert_eq!((first.event.as_str(), first.name.as_str()), ("lock_granted", "anna"));
//! # Ok(()) }
//! ```
//!
//! # Caveats
//! One node: a machine that is gone takes the service with it until it is back. No authentication yet: who can reach the
//! port can use it, so only loopback is bound unless told otherwise. Linux only.
//!
//! Slots and shared grants guard nothing: while N is held shared nobody writes key or file N, while it is held by slots
//! anybody writes key N. A file takes appends only under an exclusive grant of its name. Keys, the history of events and
//! what is staged live in memory, and have caps.

#![forbid(unsafe_code)]

/// The README's example of the library, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod asks;
mod backlog;
pub mod batch;
pub mod bench;
pub mod bug;
pub mod busy_poll;
pub mod client;
pub mod clock;
pub mod command;
pub mod datagram;
pub mod disk;
mod encoding;
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
mod map;
pub mod name;
pub mod node;
pub mod outcome;
pub mod proof;
pub mod record;
pub mod recovery;
mod rising;
pub mod segment;
pub mod server;
pub mod snapshot;
pub mod socket;
pub mod state;
pub mod storage;
pub mod time;
pub mod turn;
mod turn_cpu;
pub mod wire;
