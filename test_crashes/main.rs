//! Crash tests: the real server binary, killed, stopped, starved and lied to, checked from outside.
//!
//! `README.md` beside this file is the table of fault, promise and test. Nothing here uses the server's or the client
//! library's code: requests are built as text, replies are read as text, and the checks are written from the design.
//! Each test has a server of its own, on a fresh directory and a free port, and ends only processes that it started.
//!
//! Where a test sleeps, the sleep is the fault: it lets a lease run out or a stall last. Nothing waits for luck.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what it does and fails where it stands"
)]

mod harness;

mod client;
mod crowd;
mod disk;
mod input;
mod journal;
mod load;
mod locks;
mod lockset;
mod network;
mod partition;
mod power;
mod sections;
mod server;
mod stall;
mod table;
mod trace;
mod watch;
