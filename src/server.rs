//! The server: socket, event loop and threads around the node.

use crate::command::Durability;
use crate::limits::Limits;
use std::net::SocketAddr;
use std::path::PathBuf;

/// How a server runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Where its state lives.
    pub data_dir: PathBuf,
    /// What acknowledged means.
    pub durability: Durability,
    /// The cap on everything.
    pub limits: Limits,
    /// Bytes of a journal segment.
    pub segment_bytes: u64,
    /// How many closed segments are folded into the next snapshot at once.
    pub fold_segments: u64,
}

/// Runs the server until SIGTERM or Ctrl-C. Calls `on_ready` once, with the address, when it answers.
///
/// # Errors
/// A sentence that says what is wrong and what to do.
pub fn run(_config: &Config, _on_ready: &mut dyn FnMut(SocketAddr)) -> Result<(), String> {
    unimplemented!()
}
