//! Watching: what happens to keys, locks and files, without a gap and without anything twice.

use super::{Client, Error, Result};
use crate::wire::{EventShown, Events, Int, Params, WaitMs};
use std::time::{Duration, Instant};

/// How long one request waits at the server. After it the place has moved on, so that a server that starts again, or a
/// history that is short, costs nothing that was not told.
const POLL: Duration = Duration::from_secs(10);

/// The events of names that begin alike, as they happen. It has no end of its own; each call of `next` waits for one.
///
/// What it knows of its place is a cursor of the server, and the server knows nothing of it: lost datagrams, a server that
/// starts again and the end of a session change nothing, and it needs no session. Each event comes once, in the order of
/// `op`, and those of one `op` in the order in which they happened.
///
/// An error is an item too. After [`Error::Unreachable`] it can go on: the next call asks again, from the same place. After
/// [`Error::Compacted`] there is no going on without a gap, and it ends: read anew what is there, and watch from then on.
///
/// ```no_run
/// # fn main() -> Result<(), tenure::client::Error> {
/// # let client = tenure::client::Client::connect("127.0.0.1:5625")?;
/// let mut watch = client.watch("config/");
/// // From here on: what is read now is not older than what is told later.
/// watch.begin()?;
/// let known: Vec<_> = client.prefix("config/").collect();
/// for event in watch {
///     let event = event?;
///     println!("{} {}", event.event, event.name);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "nothing is asked before `begin` or the first event"]
pub struct Watch {
    client: Client,
    prefix: String,
    limit: Option<u64>,
    /// Where the events that are at hand begin, and how many of them were given.
    page: Option<Start>,
    given: u64,
    ready: std::vec::IntoIter<EventShown>,
    /// Where the next request begins, and how many events from there are known already.
    start: Option<Start>,
    skip: u64,
    op: u64,
    over: bool,
}

/// A place to begin at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Start {
    /// Behind an op.
    After(u64),
    /// At a cursor of the server.
    Cursor(String),
}

impl Watch {
    pub(super) fn new(client: Client, prefix: &str) -> Watch {
        Watch {
            client,
            prefix: prefix.into(),
            limit: None,
            page: None,
            given: 0,
            ready: Vec::new().into_iter(),
            start: None,
            skip: 0,
            op: 0,
            over: false,
        }
    }

    /// Begins behind what command `op` did: the `op` of a page of a list, or the version of a key. Without it, and without
    /// [`resume`](Watch::resume), it begins at the first call of [`begin`](Watch::begin) or of `next`.
    pub fn after(mut self, op: u64) -> Watch {
        self.start = Some(Start::After(op));
        self.skip = 0;
        self
    }

    /// Goes on at a place that [`place`](Watch::place) told, maybe of another program.
    ///
    /// # Errors
    /// [`Error::Invalid`] if that is no place.
    pub fn resume(mut self, place: &str) -> Result<Watch> {
        let invalid = || Error::Invalid(format!("{place:?} is no place of a watch"));
        let (start, skip) = place.split_once('+').unwrap_or((place, "0"));
        self.skip = skip.parse().map_err(|_| invalid())?;
        self.start = Some(match start.strip_prefix("op:") {
            Some(op) => Start::After(op.parse().map_err(|_| invalid())?),
            None if start.is_empty() => return Err(invalid()),
            None => Start::Cursor(start.into()),
        });
        Ok(self)
    }

    /// How many events one request is answered with, at most. The server gives fewer where they would not fit a datagram.
    pub fn page_limit(mut self, limit: u64) -> Watch {
        self.limit = Some(limit);
        self
    }

    /// Fixes the place where it begins, if that is not done yet. Gives the last command that the server had applied: what
    /// comes is what happened after it, unless it begins elsewhere.
    ///
    /// # Errors
    /// As `next`.
    pub fn begin(&mut self) -> Result<u64> {
        if self.start.is_none() {
            self.fetch(Duration::ZERO)?;
        }
        Ok(self.op)
    }

    /// The place behind the last event that was given: who [resumes](Watch::resume) there, misses nothing and gets nothing
    /// twice. None if it has not begun.
    pub fn place(&self) -> Option<String> {
        let text = |start: &Start, seen: u64| {
            let start = match start {
                Start::After(op) => format!("op:{op}"),
                Start::Cursor(cursor) => cursor.clone(),
            };
            if seen == 0 { start } else { format!("{start}+{seen}") }
        };
        match (&self.page, &self.start) {
            (Some(page), _) if self.ready.len() > 0 => Some(text(page, self.given)),
            (_, start) => start.as_ref().map(|start| text(start, self.skip)),
        }
    }

    /// The next event, if one comes in that time. (A server that does not answer may keep it waiting for the client's
    /// deadline on top.)
    ///
    /// # Errors
    /// As `next`; [`Error::Closed`] after the end.
    pub fn next_within(&mut self, span: Duration) -> Result<Option<EventShown>> {
        let begun = Instant::now();
        self.begin()?;
        loop {
            if let Some(event) = self.take() {
                return Ok(Some(event));
            }
            let left = span.saturating_sub(begun.elapsed());
            self.fetch(left.min(POLL))?;
            if left.is_zero() {
                return Ok(self.take());
            }
        }
    }

    fn take(&mut self) -> Option<EventShown> {
        let event = self.ready.next()?;
        self.given += 1;
        Some(event)
    }

    /// Asks once, and takes in what comes.
    fn fetch(&mut self, wait: Duration) -> Result<()> {
        if self.over {
            return Err(Error::Closed);
        }
        let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let mut params = Params {
            prefix: Some(self.prefix.clone()),
            limit: self.limit.map(Int),
            // Where nothing is known yet a reply that is lost must not cost what happened behind it.
            wait_ms: (millis > 0 && self.start.is_some()).then_some(WaitMs(Some(Int(millis)))),
            ..Params::default()
        };
        match &self.start {
            None => {}
            Some(Start::After(op)) => params.after = Some(Int(*op)),
            Some(Start::Cursor(cursor)) => params.cursor = Some(cursor.clone()),
        }
        let page: Events = match self.ask(params, wait) {
            Ok(page) => page,
            Err(error) => {
                self.over = !matches!(error, Error::Unreachable { .. });
                return Err(error);
            }
        };
        let known = self.skip.min(page.events.len() as u64);
        let mut events = page.events;
        events.drain(..usize::try_from(known).unwrap_or(usize::MAX));
        self.skip -= known;
        self.given = known;
        self.ready = events.into_iter();
        self.page = self.start.replace(Start::Cursor(page.next));
        self.op = page.op;
        Ok(())
    }

    fn ask(&self, params: Params, wait: Duration) -> Result<Events> {
        let within = wait + self.client.deadline();
        let answer = self.client.request("watch", params, Some(within), None);
        match answer.and_then(|answer| answer.read("watch")) {
            Err(Error::Refused { kind, message, data }) if kind == "compacted" => {
                Err(Error::Compacted { oldest: data.oldest.unwrap_or(0), message })
            }
            answer => answer,
        }
    }
}

impl Iterator for Watch {
    type Item = Result<EventShown>;

    /// The next event; waits until there is one. None after an error that cannot be gone on from.
    fn next(&mut self) -> Option<Result<EventShown>> {
        loop {
            if let Some(event) = self.take() {
                return Some(Ok(event));
            }
            if self.over {
                return None;
            }
            if let Err(error) = self.fetch(POLL) {
                return Some(Err(error));
            }
        }
    }
}

impl Client {
    /// What happens to keys, locks and files whose names begin with `prefix`. Needs no session.
    pub fn watch(&self, prefix: &str) -> Watch {
        Watch::new(self.clone(), prefix)
    }
}
