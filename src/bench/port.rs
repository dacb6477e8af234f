//! A socket of the load, and the datagram that is being put together for it.

use crate::datagram;
use mio::net::UdpSocket;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// A batch is sent before it grows beyond this: it still fits a datagram with its checksum.
const DATAGRAM_FULL: usize = 60_000;

/// Room for the answers that come while the load does something else.
const RECEIVE_BUFFER: usize = 4 << 20;

pub(super) struct Port {
    pub(super) socket: UdpSocket,
    /// The next datagram.
    out: Vec<u8>,
    /// Requests in it.
    count: usize,
    /// The proof of its address; empty until the server asks for one.
    pub(super) cookie: Vec<u8>,
    /// Requests that have no answer yet.
    pub(super) awaited: u64,
    /// Requests that have one.
    pub(super) answered: u64,
}

impl Port {
    pub(super) fn connect(server: SocketAddr, shared: bool) -> io::Result<Port> {
        let any: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        if shared {
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)
                .or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER))?;
        }
        Ok(Port {
            socket,
            out: Vec::with_capacity(2_048),
            count: 0,
            cookie: Vec::new(),
            awaited: 0,
            answered: 0,
        })
    }

    /// Sends a request, or lays it beside others that go with it; `most` of them share a datagram.
    pub(super) fn put(&mut self, request: &[u8], most: usize) -> io::Result<()> {
        if most == 1 {
            self.out.clear();
            self.out.extend_from_slice(request);
            return self.send();
        }
        if self.out.len() + request.len() > DATAGRAM_FULL {
            self.flush()?;
        }
        self.out.push(if self.count == 0 { b'[' } else { b',' });
        self.out.extend_from_slice(request);
        self.count += 1;
        if self.count == most { self.flush() } else { Ok(()) }
    }

    /// Sends what lies there.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        self.out.push(b']');
        self.count = 0;
        let sent = self.send();
        self.out.clear();
        sent
    }

    fn send(&mut self) -> io::Result<()> {
        datagram::seal(&mut self.out);
        match self.socket.send(&self.out) {
            Ok(_) => Ok(()),
            // As good as lost: it is sent again like any other. A server that is not there answers nothing, either.
            Err(error) if is_a_loss(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Receives one datagram, if one is there.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.socket.recv(buffer) {
                Ok(length) => return Ok(Some(length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if is_a_loss(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_a_loss(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused | io::ErrorKind::Interrupted
    )
}
