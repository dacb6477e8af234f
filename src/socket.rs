//! The server's socket: many datagrams with one call to the kernel, in each direction.
//!
//! A call costs about as much as the handling of a small request, so what waits is read up to 32 datagrams at a time
//! (`recvmmsg`), and replies are gathered and sent together (`sendmmsg`). Datagrams are handed out in the order in which the
//! kernel had them.

use crate::limits::DATAGRAM_MAX;
use crate::node::Transmit;
use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

/// Datagrams a call. (Beyond some 32 a call's own cost is lost among those of its datagrams.)
const BATCH: usize = 32;

/// The room for one datagram that comes: one byte more than may come, so that a longer one is seen to be.
const ROOM: usize = DATAGRAM_MAX + 1;

/// How far apart the rooms are: not 64 KiB, or the beginnings of all of them, which is all that most datagrams fill, would share
/// a few lines of the processor's caches.
const APART: usize = 65_536 + 320;

/// Bytes of replies that may be gathered.
const GATHERED_MAX: usize = 256 << 10;

/// So many datagrams are sent while the poll has nothing to do with the socket: see [`Socket::register`].
const CROWD: usize = 16;

/// A datagram socket that neither waits nor calls the kernel for each datagram.
pub struct Socket {
    socket: UdpSocket,
    registry: Registry,
    token: Token,
    registered: bool,
    /// Whether it was refused once. From then on it stays registered: whoever took the room would take it again.
    refused: bool,
    /// Whether each datagram goes in one piece: see [`send_whole`].
    whole: bool,
    heads: MultiHeaders<SockaddrStorage>,
    room: Vec<u8>,
    /// What was read and not handed out: how long, and from whom.
    read: Vec<(usize, SocketAddr)>,
    next: usize,
    /// Whether there was nothing behind that, as far as this turn knows.
    emptied: bool,
    out: Vec<Transmit>,
    out_bytes: usize,
    /// Rooms of datagrams that were sent.
    sent: Vec<Vec<u8>>,
    out_heads: MultiHeaders<SockaddrStorage>,
}

impl Socket {
    /// A socket that is bound and does not wait. The poll of this registry tells of it under that token, once it is registered.
    pub fn new(socket: UdpSocket, registry: Registry, token: Token) -> Socket {
        Socket {
            whole: send_whole(&socket),
            socket,
            registry,
            token,
            registered: false,
            refused: false,
            heads: MultiHeaders::preallocate(BATCH, None),
            room: vec![0; BATCH * APART],
            read: Vec::with_capacity(BATCH),
            next: 0,
            emptied: false,
            out: Vec::with_capacity(BATCH),
            out_bytes: 0,
            sent: Vec::with_capacity(BATCH),
            out_heads: MultiHeaders::preallocate(BATCH, None),
        }
    }

    /// The next datagram, and who sent it.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; any other is the socket's word on something that was sent.
    pub fn receive(&mut self) -> io::Result<(&[u8], SocketAddr)> {
        if !self.read_together() {
            // A single datagram, without which the loop would sleep, came alone in this turn: what comes behind it wakes the loop.
            // Where there were several, more have come meanwhile, and are better read at once.
            if std::mem::take(&mut self.emptied) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.fill()?;
            self.emptied = self.read.len() == 1;
        }
        let (bytes, from) = self.read[self.next];
        let start = self.next * APART;
        self.next += 1;
        Ok((&self.room[start..start + bytes], from))
    }

    /// Whether the next datagram was read together with the last one.
    pub fn read_together(&self) -> bool {
        self.next < self.read.len()
    }

    fn fill(&mut self) -> io::Result<()> {
        self.read.clear();
        self.next = 0;
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            self.room.chunks_exact_mut(APART).map(|room| [IoSliceMut::new(&mut room[..ROOM])]).collect();
        let fd = self.socket.as_raw_fd();
        let found = recvmmsg(fd, &mut self.heads, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
        // What has no address that can be answered keeps its place, with nothing in it.
        let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
        self.read.extend(found.map(|datagram| match datagram.address.and_then(address_of) {
            Some(from) => (datagram.bytes, from),
            None => (0, nobody),
        }));
        match self.read.is_empty() {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => Ok(()),
        }
    }

    /// Sends a datagram, at the latest with the next [`Socket::flush`]. One that the kernel does not take is lost.
    pub fn send(&mut self, transmit: Transmit) {
        self.out_bytes += transmit.bytes.len();
        self.out.push(transmit);
        if self.out.len() == BATCH || self.out_bytes >= GATHERED_MAX {
            self.flush();
        }
    }

    /// Lets the poll tell of what comes, and of what has come already. To be called before each wait that what comes may end.
    ///
    /// While a socket is registered the kernel looks at who polls it for each datagram that it sends, too, since there is room
    /// for another one then. So it is not while a crowd of them is sent.
    ///
    /// # Errors
    /// The system's, which has no room for that now. It may be tried again.
    pub fn register(&mut self) -> io::Result<()> {
        if self.registered {
            return Ok(());
        }
        let registered = self.registry.register(&mut self.socket, self.token, Interest::READABLE);
        self.registered = registered.is_ok();
        if registered.is_err() {
            self.refused = true;
            // Debug builds of mio would remember it as registered; that it is not is no news.
            let _ = self.registry.deregister(&mut self.socket);
        }
        registered
    }

    /// Sends what was gathered.
    pub fn flush(&mut self) {
        // A turn ends with this: the next one looks at the socket itself before it lets time pass.
        self.emptied = false;
        if self.registered && !self.refused && self.out.len() >= CROWD {
            match self.registry.deregister(&mut self.socket) {
                Ok(()) => self.registered = false,
                Err(error) => log::debug!("the socket stays registered: {error}"),
            }
        }
        let mut sent = 0;
        while sent < self.out.len() {
            let left = &self.out[sent..];
            let result = match left {
                [one] => self.socket.send_to(&one.bytes, one.to).map(|_| 1),
                _ => {
                    let slices: Vec<[IoSlice<'_>; 1]> =
                        left.iter().map(|transmit| [IoSlice::new(&transmit.bytes)]).collect();
                    let to: Vec<_> =
                        left.iter().map(|transmit| Some(SockaddrStorage::from(transmit.to))).collect();
                    let fd = self.socket.as_raw_fd();
                    let results = sendmmsg(fd, &mut self.out_heads, &slices, &to, [], MsgFlags::MSG_DONTWAIT);
                    results.map(Iterator::count).map_err(io::Error::from)
                }
            };
            // The call fails only if the first of them cannot be sent; the others may be.
            sent += match result {
                Ok(count) => count.max(1),
                Err(error) if error.raw_os_error() == Some(Errno::EINTR as i32) => 0,
                Err(error) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) && self.whole => {
                    self.whole = false;
                    let pieces = set_ip_mtu_discover(&self.socket, Ipv4PathMtuDiscovery::WANT);
                    log::debug!("a reply of {} bytes goes in pieces: {pieces:?}", left[0].bytes.len());
                    0
                }
                Err(error) => {
                    log::debug!("a reply to {} was not sent: {error}", left[0].to);
                    1
                }
            };
        }
        self.sent.extend(self.out.drain(..).map(|transmit| transmit.bytes));
        self.sent.truncate(BATCH);
        self.out_bytes = 0;
    }

    /// The room of a datagram that was sent, if there is one that nobody has taken yet.
    pub fn take_room(&mut self) -> Option<Vec<u8>> {
        self.sent.pop()
    }
}

/// Lets what is sent to this machine alone go in one piece: its loopback carries the largest datagram. Then the kernel neither
/// looks for the MTU of a path nor numbers the datagrams for the sake of their pieces (`IP_PMTUDISC_PROBE`, ip(7)). Whether
/// that is so now; where the loopback carries less, what it refuses goes in pieces after all, as by default (`IP_PMTUDISC_WANT`).
fn send_whole(socket: &UdpSocket) -> bool {
    let local = socket.local_addr();
    local.is_ok_and(|address| address.is_ipv4() && address.ip().is_loopback())
        && set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE).is_ok()
}

fn address_of(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4(SocketAddrV4::from(*address)));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::V6(SocketAddrV6::from(*address))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll};
    use std::time::Duration;

    /// A socket, the poll that tells of it, and somebody who sends to it.
    fn polled() -> (Socket, Poll, std::net::UdpSocket) {
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.connect(socket.local_addr().unwrap()).unwrap();
        let poll = Poll::new().unwrap();
        (Socket::new(socket, poll.registry().try_clone().unwrap(), Token(0)), poll, peer)
    }

    /// Sends so many datagrams at once.
    fn send(socket: &mut Socket, to: &std::net::UdpSocket, count: usize) {
        let to = to.local_addr().unwrap();
        (0..count).for_each(|_| socket.send(Transmit { to, bytes: vec![7; 10] }));
        socket.flush();
    }

    /// The loop is woken once for what came while it slept, and sleeps again when it is told that there is nothing more.
    #[test]
    fn whatever_comes_behind_a_datagram_that_came_alone_wakes_the_loop_again() {
        let (mut socket, mut poll, peer) = polled();
        let mut events = Events::with_capacity(4);
        for sent in [1, 1, 3, 1, 40, 2, 1] {
            for nth in 0..sent {
                peer.send(&[nth]).unwrap();
            }
            socket.register().unwrap();
            poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
            assert!(!events.is_empty(), "{sent} datagrams woke nobody");
            for nth in 0..sent {
                let (bytes, from) = socket.receive().unwrap();
                assert_eq!((bytes, from), (&[nth][..], peer.local_addr().unwrap()));
            }
            assert_eq!(socket.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn what_comes_while_a_crowd_is_sent_is_told_before_the_next_wait() {
        let (mut socket, mut poll, peer) = polled();
        let mut events = Events::with_capacity(4);
        for sent in [1, CROWD - 1, CROWD, BATCH, BATCH + 1, 1] {
            socket.register().unwrap();
            send(&mut socket, &peer, sent);
            peer.send(b"meanwhile").unwrap();
            poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            assert_eq!(events.is_empty(), sent >= CROWD, "{sent} were sent");
            if sent >= CROWD {
                socket.register().unwrap();
                poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
                assert!(!events.is_empty(), "nobody is told of what came while {sent} were sent");
            }
            assert_eq!(socket.receive().unwrap().0, b"meanwhile");
            assert!(socket.receive().is_err());
        }
    }

    /// Time passes a deadline once the socket was found empty behind it; in the turn before is not behind it.
    #[test]
    fn what_came_alone_in_one_turn_says_nothing_of_the_next() {
        let (mut socket, _poll, peer) = polled();
        for sent in [b"one", b"two"] {
            peer.send(sent).unwrap();
            assert_eq!(socket.receive().unwrap().0, sent);
            socket.flush();
        }
    }

    #[test]
    fn a_socket_that_was_refused_once_stays_registered_as_soon_as_it_is() {
        let (mut socket, mut poll, peer) = polled();
        let mut events = Events::with_capacity(4);
        let fd = socket.socket.as_raw_fd();
        poll.registry().register(&mut mio::unix::SourceFd(&fd), Token(1), Interest::READABLE).unwrap();
        assert_eq!(socket.register().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        socket.register().unwrap();
        send(&mut socket, &peer, CROWD);
        peer.send(b"told").unwrap();
        poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
        assert_eq!(events.iter().map(mio::event::Event::token).collect::<Vec<_>>(), [Token(0)]);
    }

    #[test]
    fn the_room_of_what_was_sent_can_be_taken_once() {
        let (mut socket, _poll, peer) = polled();
        for sent in [1, 3, BATCH] {
            send(&mut socket, &peer, sent);
            let rooms: Vec<Vec<u8>> = std::iter::from_fn(|| socket.take_room()).collect();
            assert_eq!(rooms, vec![vec![7; 10]; sent]);
        }
    }
}
