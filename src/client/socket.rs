//! The background thread that owns the socket, the clock and the engine.

use super::{Builder, Client, Detached, Error, GrantState, LostGrant, Result};
use crate::wire::Params;
use crossbeam_channel::Receiver;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The caller's side of the background thread.
pub(super) struct Core {}

/// The answer to a request.
#[derive(Debug)]
pub(super) struct Answer {
    /// The result, as it came.
    pub(super) raw: Box<RawValue>,
    /// The grant that it made, if it made one.
    pub(super) tenure: Option<Arc<Tenure>>,
}

impl Answer {
    /// Reads the result as a type.
    pub(super) fn read<T: DeserializeOwned>(&self, method: &str) -> Result<T> {
        serde_json::from_str(self.raw.get())
            .map_err(|error| Error::Protocol { method: method.into(), message: error.to_string() })
    }
}

impl Core {
    pub(super) fn start(_builder: Builder, _server: SocketAddr) -> Result<Core> {
        unimplemented!()
    }
    pub(super) fn server(&self) -> SocketAddr {
        unimplemented!()
    }
    pub(super) fn set_server(&self, _server: SocketAddr) -> Result<()> {
        unimplemented!()
    }
    pub(super) fn deadline(&self) -> Duration {
        unimplemented!()
    }
    pub(super) fn session(&self) -> Result<Detached> {
        unimplemented!()
    }
    pub(super) fn close(&self) -> Result<()> {
        unimplemented!()
    }
    pub(super) fn detach(&self) -> Result<Detached> {
        unimplemented!()
    }
    pub(super) fn request(
        &self,
        _method: &str,
        _params: Params,
        _within: Option<Duration>,
    ) -> Result<Answer> {
        unimplemented!()
    }
}

/// What guard and background thread share about one grant.
#[derive(Debug)]
pub(super) struct Tenure {}

impl Tenure {
    pub(super) fn token(&self) -> u64 {
        unimplemented!()
    }
    pub(super) fn keys(&self) -> &[String] {
        unimplemented!()
    }
    pub(super) fn state(&self) -> GrantState {
        unimplemented!()
    }
    pub(super) fn remaining(&self) -> Duration {
        unimplemented!()
    }
    pub(super) fn loss(&self) -> Option<LostGrant> {
        unimplemented!()
    }
    pub(super) fn lost(&self) -> Receiver<LostGrant> {
        unimplemented!()
    }
    pub(super) fn on_change(&self, _call: Box<dyn Fn(GrantState) + Send>) {
        unimplemented!()
    }
    pub(super) fn forget(&self, _client: &Client) {
        unimplemented!()
    }
    pub(super) fn release_on_drop(&self, _client: &Client) {
        unimplemented!()
    }
}
