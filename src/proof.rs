//! Proof of address: what a server that speaks UDP asks before it sends much to anybody.
//!
//! A cookie is a keyed hash of the address, the port and the time, so nothing is kept for whoever asks. It is good for two
//! to four minutes. Who sends one back receives what is sent to that address (RFC 9000, section 8.1, has the same idea).
//! A loopback address needs no proof: it cannot be anybody else's.

use crate::identity::{Nonce, SessionId};
use crate::time::Time;
use siphasher::sip128::{Hasher128, SipHasher24};
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

/// How long one cookie secret is in use, in microseconds; cookies of the one before are still good.
const PERIOD_US: u64 = 120 * 1_000_000;

/// The secrets of one run of the server, drawn by the I/O rooms.
pub struct Secrets {
    /// For cookies.
    pub cookie: [u8; 16],
    /// For session ids.
    pub session: [u8; 16],
}

impl Secrets {
    /// The cookie of an address, 32 hex digits.
    pub fn cookie(&self, address: SocketAddr, now: Time) -> String {
        self.cookie_of(address, now.as_micros() / PERIOD_US)
    }

    /// Whether the address has proven that it receives.
    pub fn is_proven(&self, address: SocketAddr, cookie: Option<&str>, now: Time) -> bool {
        if is_loopback(address) {
            return true;
        }
        let period = now.as_micros() / PERIOD_US;
        cookie.is_some_and(|cookie| {
            same(cookie, &self.cookie_of(address, period))
                || period.checked_sub(1).is_some_and(|before| same(cookie, &self.cookie_of(address, before)))
        })
    }

    /// The id of a session that a nonce opens here: nobody can guess it. `draw` is another number each time, so that a
    /// nonce that comes again when its session has been forgotten does not bring back an id under which requests of then
    /// would be taken for new ones. (A retry gets the same session all the same: the first id applied wins.)
    pub fn session_id(&self, nonce: Nonce, draw: u64) -> SessionId {
        let mut hasher = SipHasher24::new_with_key(&self.session);
        hasher.write(&nonce.0.to_be_bytes());
        hasher.write(&draw.to_be_bytes());
        SessionId(hasher.finish128().as_u128())
    }

    fn cookie_of(&self, address: SocketAddr, period: u64) -> String {
        let mut hasher = SipHasher24::new_with_key(&self.cookie);
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => hasher.write(&ip.octets()),
            IpAddr::V6(ip) => hasher.write(&ip.octets()),
        }
        hasher.write(&address.port().to_be_bytes());
        hasher.write(&period.to_be_bytes());
        format!("{:032x}", hasher.finish128().as_u128())
    }
}

/// Whether datagrams from there cannot come from another machine.
pub fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Compares in a time that does not tell where the first difference is.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_cookie_proves_its_own_address_for_two_to_four_minutes() {
        let secrets = Secrets { cookie: [7; 16], session: [9; 16] };
        let here = address("192.0.2.1:1000");
        let start = Time::from_millis(1_000_000);
        let cookie = secrets.cookie(here, start);
        assert!(secrets.is_proven(here, Some(&cookie), start.after_ms(119_000)));
        assert!(!secrets.is_proven(here, Some(&cookie), start.after_ms(241_000)));
        assert!(!secrets.is_proven(here, None, start));
        for other in ["192.0.2.1:1001", "192.0.2.2:1000", "[::1:2]:1000"] {
            assert!(!secrets.is_proven(address(other), Some(&cookie), start), "{other}");
        }
        let another_run = Secrets { cookie: [8; 16], session: [9; 16] };
        assert!(!another_run.is_proven(here, Some(&cookie), start));
    }

    #[test]
    fn loopback_is_proven_by_itself() {
        let secrets = Secrets { cookie: [7; 16], session: [9; 16] };
        for text in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(secrets.is_proven(address(text), None, Time::ZERO), "{text}");
        }
    }
}
