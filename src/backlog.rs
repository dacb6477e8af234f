//! The backlog: datagrams that were read and wait, since there is more to do than a turn can.
//!
//! The kernel drops whatever does not fit the socket's buffer, a sign of life as soon as anything else. So when there is too
//! much to do the loop goes on reading: signs of life are taken in at once, the rest waits here in the order in which it
//! came, and what does not fit is dropped. Whoever sent it asks again, as after any loss.

use crate::time::Time;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Bytes that wait at most: as many as the socket's buffer holds.
const BYTES_MAX: usize = crate::turn::RECEIVE_BUFFER;

/// Datagrams that wait at most: some 30 ms of work for a core, well within the time after which clients ask again.
const DATAGRAMS_MAX: usize = 4_096;

/// Where a request says its method, if it says so at its beginning, as all clients do: behind the version and an id.
const METHOD_WITHIN: usize = 96;

/// A datagram that waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// When it was read.
    pub(crate) heard: Time,
    pub(crate) from: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// What waits, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

impl Backlog {
    /// Lets a datagram wait; false if there is no room.
    pub(crate) fn push(&mut self, heard: Time, from: SocketAddr, bytes: &[u8]) -> bool {
        if self.waiting.len() == DATAGRAMS_MAX || self.bytes + bytes.len() > BYTES_MAX {
            return false;
        }
        self.bytes += bytes.len();
        self.waiting.push_back(Waiting { heard, from, bytes: bytes.to_vec() });
        true
    }

    /// The oldest.
    pub(crate) fn pop(&mut self) -> Option<Waiting> {
        let oldest = self.waiting.pop_front()?;
        self.bytes -= oldest.bytes.len();
        Some(oldest)
    }

    /// When the oldest was read.
    pub(crate) fn since(&self) -> Option<Time> {
        self.waiting.front().map(|oldest| oldest.heard)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Whether a datagram looks like a heartbeat: it is taken in before others. Whatever else looks like one gains nothing but that.
pub(crate) fn is_sign_of_life(bytes: &[u8]) -> bool {
    const METHOD: &[u8] = br#""heartbeat""#;
    let beginning = &bytes[..bytes.len().min(METHOD_WITHIN)];
    memchr::memmem::find(beginning, METHOD).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 9))
    }

    #[test]
    fn what_waits_leaves_in_the_order_in_which_it_came() {
        let mut backlog = Backlog::default();
        for (ms, text) in [(1, "a"), (2, "b")] {
            assert!(backlog.push(Time::from_millis(ms), nobody(), text.as_bytes()));
        }
        assert_eq!(backlog.since(), Some(Time::from_millis(1)));
        let texts: Vec<_> = std::iter::from_fn(|| backlog.pop()).map(|waiting| waiting.bytes).collect();
        assert_eq!(texts, [b"a", b"b"]);
        assert!(backlog.is_empty() && backlog.since().is_none());
    }

    #[test]
    fn it_holds_so_many_datagrams_and_so_many_bytes() {
        let mut backlog = Backlog::default();
        let taken = |backlog: &mut Backlog, bytes: &[u8]| {
            (0..=DATAGRAMS_MAX).take_while(|_| backlog.push(Time::ZERO, nobody(), bytes)).count()
        };
        assert_eq!(taken(&mut backlog, b"short"), DATAGRAMS_MAX);
        while backlog.pop().is_some() {}
        assert_eq!(taken(&mut backlog, &[b'x'; 60_000]), BYTES_MAX / 60_000);
    }

    #[test]
    fn heartbeats_are_told_apart_by_their_beginning() {
        let request = |method: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","id":18446744073709551615,"method":"{method}","params":{{"session":"00"}}}}"#
            )
        };
        assert!(is_sign_of_life(request("heartbeat").as_bytes()));
        assert!(is_sign_of_life(format!("[{}]", request("heartbeat")).as_bytes()));
        assert!(!is_sign_of_life(request("acquire_lock").as_bytes()));
        assert!(!is_sign_of_life(format!("{}{}", request("set"), request("heartbeat")).as_bytes()));
        assert!(!is_sign_of_life(b""));
    }
}
