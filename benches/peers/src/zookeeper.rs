//! ZooKeeper's recipe for locks, spoken in its own bytes: an ephemeral node with a number for each who wants the lock; the
//! lowest number has it, every other one watches the node before its own.

use crate::figures::{Figures, Time};
use crate::tcp::{self, Player, Rhythm, Taken};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const CREATE: i32 = 1;
const DELETE: i32 = 2;
const EXISTS: i32 = 3;
const GET_CHILDREN: i32 = 8;

const PERSISTENT: i32 = 0;
const EPHEMERAL_SEQUENTIAL: i32 = 3;

/// The `xid` of an event.
const WATCH: i32 = -1;

/// The error of a node that is not there.
const NO_NODE: i32 = -101;

const SESSION_MS: i32 = 40_000;

const DIRECTORY: &str = "/peers";

/// A message being put together: its length comes first.
struct Message(Vec<u8>);

impl Message {
    fn new(xid: i32, kind: i32) -> Message {
        Message(vec![0; 4]).int(xid).int(kind)
    }

    fn int(mut self, number: i32) -> Message {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    fn long(mut self, number: i64) -> Message {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    fn flag(mut self, flag: bool) -> Message {
        self.0.push(u8::from(flag));
        self
    }

    fn bytes(self, bytes: &[u8]) -> Message {
        let mut message = self.int(bytes.len() as i32);
        message.0.extend_from_slice(bytes);
        message
    }

    fn end(mut self) -> Vec<u8> {
        let length = (self.0.len() - 4) as u32;
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

/// An answer being read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("an answer of ZooKeeper is cut off")?;
        self.0 = rest;
        Ok(taken)
    }

    fn int(&mut self) -> Result<i32, String> {
        Ok(i32::from_be_bytes(self.take(4)?.try_into().expect("4 bytes were taken")))
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = usize::try_from(self.int()?).map_err(|_| "a text without a length")?;
        std::str::from_utf8(self.take(length)?).map_err(|error| error.to_string())
    }
}

/// A message from the front of what has come, with its length, if it is whole.
fn message(input: &[u8]) -> Option<(&[u8], usize)> {
    let length = u32::from_be_bytes(input.get(..4)?.try_into().ok()?) as usize;
    Some((input.get(4..4 + length)?, 4 + length))
}

fn create(xid: i32, path: &str, flags: i32) -> Vec<u8> {
    // Anyone may do anything: one entry, all five permissions.
    let message = Message::new(xid, CREATE).bytes(path.as_bytes()).bytes(b"");
    message.int(1).int(31).bytes(b"world").bytes(b"anyone").int(flags).end()
}

/// A connection with a session.
fn connect(server: SocketAddr) -> Result<TcpStream, String> {
    let hello = Message(vec![0; 4]).int(0).long(0).int(SESSION_MS).long(0).bytes(&[0; 16]).flag(false).end();
    let stream = || -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(&hello)?;
        answer(&mut stream)?;
        Ok(stream)
    };
    stream().map_err(|error| format!("ZooKeeper opens no session: {error}"))
}

fn answer(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

enum Step {
    Create,
    List,
    Watch,
    /// Nothing is on its way: an event is awaited.
    Sleep,
    Delete,
}

/// One who wants the lock.
struct Contender {
    directory: String,
    step: Step,
    xid: i32,
    /// Its own node, with the whole path.
    node: String,
    /// The event came before the answer to what asked for it.
    woken: bool,
}

impl Contender {
    fn list(&mut self, out: &mut Vec<u8>) {
        self.step = Step::List;
        self.woken = false;
        self.send(out, GET_CHILDREN, &self.directory.clone(), |message| message.flag(false));
    }

    fn send(&mut self, out: &mut Vec<u8>, kind: i32, path: &str, rest: impl FnOnce(Message) -> Message) {
        self.xid += 1;
        out.extend(rest(Message::new(self.xid, kind).bytes(path.as_bytes())).end());
    }

    /// Looks who is first; whether it is this one.
    fn look(&mut self, body: &mut Reader<'_>, out: &mut Vec<u8>) -> Result<bool, String> {
        let mine = self.node[self.directory.len() + 1..].to_owned();
        let mut before: Option<&str> = None;
        for _ in 0..body.int()? {
            let child = body.text()?;
            if child < mine.as_str() && before.is_none_or(|other| other < child) {
                before = Some(child);
            }
        }
        match before {
            None => {
                self.step = Step::Delete;
                self.send(out, DELETE, &self.node.clone(), |message| message.int(-1));
                Ok(true)
            }
            Some(before) => {
                self.step = Step::Watch;
                let path = format!("{}/{before}", self.directory);
                self.send(out, EXISTS, &path, |message| message.flag(true));
                Ok(false)
            }
        }
    }
}

impl Player for Contender {
    fn begin(&mut self, out: &mut Vec<u8>) {
        self.step = Step::Create;
        self.xid += 1;
        out.extend(create(self.xid, &format!("{}/lock-", self.directory), EPHEMERAL_SEQUENTIAL));
    }

    fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Taken, String> {
        let Some((bytes, length)) = message(input) else { return Ok(Taken::default()) };
        let mut body = Reader(bytes);
        let (xid, _, error) = (body.int()?, body.take(8)?, body.int()?);
        let mut taken = Taken { length, completed: 0, over: false };
        if xid == WATCH {
            if let Step::Sleep = self.step {
                self.list(out);
            } else {
                self.woken = true;
            }
            return Ok(taken);
        }
        let gone = matches!(self.step, Step::Watch) && error == NO_NODE;
        if xid != self.xid || error != 0 && !gone {
            return Err(format!("ZooKeeper answered {xid} with error {error}, where {} was asked", self.xid));
        }
        match self.step {
            Step::Create => {
                self.node = body.text()?.to_owned();
                self.list(out);
            }
            Step::List => taken.completed = u64::from(self.look(&mut body, out)?),
            Step::Watch if gone || self.woken => self.list(out),
            Step::Watch => self.step = Step::Sleep,
            Step::Delete => taken.over = true,
            Step::Sleep => return Err("ZooKeeper answered what was not asked".into()),
        }
        Ok(taken)
    }
}

/// All clients want one lock, in rounds.
pub fn hand_off(server: SocketAddr, clients: usize, time: &Time, pid: u32) -> Result<Figures, String> {
    let mut setup = connect(server)?;
    let made = setup.write_all(&create(1, DIRECTORY, PERSISTENT)).and_then(|()| answer(&mut setup));
    made.map_err(|error| format!("ZooKeeper makes no node: {error}"))?;
    let players = (0..clients).map(|_| {
        let contender = Contender {
            directory: DIRECTORY.into(),
            step: Step::Create,
            xid: 1,
            node: String::new(),
            woken: false,
        };
        Ok((connect(server)?, contender))
    });
    tcp::run(players.collect::<Result<_, String>>()?, Rhythm::Rounds, time, pid)
}
