//! Closed-loop clients over TCP in one thread: bytes there, bytes back, no crate of the peer's in between.

use crate::figures::{Figures, Meter, Time};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

/// How long nothing may come before the run is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The requests that one client makes, and what it does with the answers.
pub trait Player {
    /// Writes what an operation begins with.
    fn begin(&mut self, out: &mut Vec<u8>);

    /// Takes one answer from the front of what has come, if it is whole, and writes what follows it.
    ///
    /// # Errors
    /// A sentence, if it is not the answer that there should be.
    fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Taken, String>;
}

/// What an answer was.
#[derive(Default)]
pub struct Taken {
    /// How long it was; 0 if it is not whole yet.
    pub length: usize,
    /// Operations that it completed: their time ends here.
    pub completed: u64,
    /// Whether the client may begin again.
    pub over: bool,
}

/// When clients begin again.
#[derive(Clone, Copy, PartialEq)]
pub enum Rhythm {
    /// At once.
    Loop,
    /// All together, when all are through.
    Rounds,
    /// Each after this time, counted from its last beginning.
    Every(Duration),
}

struct Connection<P> {
    stream: TcpStream,
    player: P,
    input: Vec<u8>,
    out: Vec<u8>,
    began: Instant,
    due: Instant,
    waits: bool,
}

impl<P: Player> Connection<P> {
    fn begin(&mut self, now: Instant) -> Result<(), String> {
        (self.began, self.waits) = (now, false);
        self.player.begin(&mut self.out);
        self.send()
    }

    fn send(&mut self) -> Result<(), String> {
        let sent = self.stream.write_all(&self.out).map_err(|error| format!("cannot send: {error}"));
        self.out.clear();
        sent
    }
}

/// Measures what these clients do.
///
/// # Errors
/// A sentence, if an answer is wrong or none comes.
pub fn run<P: Player>(
    players: Vec<(std::net::TcpStream, P)>,
    rhythm: Rhythm,
    time: &Time,
    pid: u32,
) -> Result<Figures, String> {
    let sentence = |error: std::io::Error| format!("a connection failed: {error}");
    let mut poll = Poll::new().map_err(sentence)?;
    let mut events = Events::with_capacity(1_024);
    let mut connections = Vec::with_capacity(players.len());
    let began = Instant::now();
    let count = players.len();
    for (number, (stream, player)) in players.into_iter().enumerate() {
        stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).map_err(sentence)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(number), Interest::READABLE).map_err(sentence)?;
        let due = match rhythm {
            Rhythm::Every(pace) => began + pace.mul_f64(number as f64 / count as f64),
            Rhythm::Loop | Rhythm::Rounds => began,
        };
        connections.push(Connection {
            stream,
            player,
            input: Vec::new(),
            out: Vec::new(),
            began,
            due,
            waits: true,
        });
    }
    let mut meter = Meter::new(time, pid);
    let mut parked = if rhythm == Rhythm::Rounds { count } else { 0 };
    let mut heard = began;
    let mut buffer = vec![0; 65_536];
    loop {
        let now = Instant::now();
        if meter.is_over(now)? {
            return meter.figures();
        }
        if now - heard > PATIENCE {
            return Err(format!("no answer for {PATIENCE:?}"));
        }
        match rhythm {
            Rhythm::Rounds if parked == count => {
                parked = 0;
                connections.iter_mut().try_for_each(|connection| connection.begin(now))?;
            }
            Rhythm::Rounds => {}
            Rhythm::Loop => {
                for connection in connections.iter_mut().filter(|connection| connection.waits) {
                    connection.begin(now)?;
                }
            }
            Rhythm::Every(pace) => {
                for connection in
                    connections.iter_mut().filter(|connection| connection.waits && connection.due <= now)
                {
                    connection.due += pace;
                    connection.begin(now)?;
                }
            }
        }
        let sleep = match rhythm {
            _ if time.spin => Duration::ZERO,
            Rhythm::Every(_) => Duration::from_millis(1),
            Rhythm::Loop | Rhythm::Rounds => Duration::from_millis(20),
        };
        match poll.poll(&mut events, Some(sleep)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled.map_err(sentence)?,
        }
        for event in &events {
            let connection = &mut connections[event.token().0];
            loop {
                let length = match connection.stream.read(&mut buffer) {
                    Ok(0) => return Err("the server closed a connection".into()),
                    Ok(length) => length,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(sentence(error)),
                };
                connection.input.extend_from_slice(&buffer[..length]);
                if length < buffer.len() {
                    break;
                }
            }
            let now = Instant::now();
            heard = now;
            let mut read = 0;
            loop {
                let Connection { player, input, out, .. } = connection;
                let taken = player.take(&input[read..], out)?;
                if taken.length == 0 {
                    break;
                }
                read += taken.length;
                meter.add(now - connection.began, taken.completed);
                if taken.over {
                    match rhythm {
                        Rhythm::Loop => {
                            connection.began = now;
                            connection.player.begin(&mut connection.out);
                        }
                        Rhythm::Rounds => parked += 1,
                        Rhythm::Every(_) => connection.waits = true,
                    }
                }
            }
            connection.input.drain(..read);
            if !connection.out.is_empty() {
                connection.send()?;
            }
        }
    }
}
