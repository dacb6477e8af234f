//! Keys, files, lists and what operators ask: calls that are one request each, and what can be done under a token.

use super::guard::millis;
use super::{Client, Conversion, Error, Mode, Result, Transaction};
use crate::identity::SessionId;
use crate::wire::{
    Appended, Cleaned, ContentionItem, Deleted, FileChanged, FileInfo, FilePage, Got, GrantItem, HandedOver,
    Heartbeat, Int, KeyAsk, KeyItem, Killed, LockInfo, LockItem, Locked, Page, Params, Ping, Released,
    Renewed, SessionItem, Status, WaitItem, Written,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::time::Duration;

/// What can be done under a token: that of a grant of this session, or, with its session's id, of another one.
///
/// It does not watch the grant (a [`Guard`](super::Guard) does): the server refuses what comes too late, with `not_holder`.
/// Every method documents success; in every error but [`Error::OutcomeUnknown`] and [`Error::Protocol`] nothing changed.
#[derive(Clone, Debug)]
pub struct Fence {
    client: Client,
    token: Option<u64>,
    holder: Option<SessionId>,
}

/// The value of a key.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The value, as the JSON text that was set.
    pub value: Box<RawValue>,
    /// The version: the number of the command that set it.
    pub version: u64,
    /// What its TTL has left, if it has one; nothing if only its lock keeps it.
    pub ttl_left: Option<Duration>,
    /// The public number of the session that it goes with, if it is bound to one.
    pub bound_to: Option<u64>,
}

/// A key that is to be set, with what is not usual about it: nothing is asked before [`send`](Put::send).
#[derive(Debug)]
#[must_use = "nothing is asked before `send`"]
pub struct Put {
    fence: Fence,
    /// What is asked, or why it cannot be.
    params: Result<Params>,
}

impl Put {
    /// The key goes after this time: in whole milliseconds, 100 ms to 365 days. Each set says anew how long a key lives.
    pub fn ttl(self, ttl: Duration) -> Put {
        self.with(|params| params.ttl_ms = Some(Int(millis(ttl))))
    }

    /// The key goes with the session: this one, or that of the grant which the [`Fence`] is for.
    pub fn bound(self) -> Put {
        self.with(|params| params.bound = Some(true))
    }

    /// Only if the key has this version; 0: only if it does not exist.
    pub fn if_version(self, version: u64) -> Put {
        self.with(|params| params.if_version = Some(Int(version)))
    }

    /// Asks for it. Gives the key's version.
    ///
    /// # Errors
    /// [`Error::Refused`] with `version_mismatch`, `not_holder` or `guarded`; [`Error::Invalid`] if the value cannot be
    /// written as JSON.
    pub fn send(self) -> Result<u64> {
        self.fence.ask("set", self.params?).map(|written: Written| written.version)
    }

    fn with(mut self, change: impl FnOnce(&mut Params)) -> Put {
        self.params.as_mut().ok().map(change);
        self
    }
}

impl Entry {
    /// Reads the value as a type.
    ///
    /// # Errors
    /// [`Error::Protocol`] if it is not of that type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(self.value.get())
            .map_err(|error| Error::Protocol { method: "get".into(), message: error.to_string() })
    }
}

/// A piece of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChunk {
    /// The bytes.
    pub data: Vec<u8>,
    /// How long the whole file was when it was read, in bytes.
    pub length: u64,
    /// Whether this piece reaches the end.
    pub eof: bool,
}

/// The items of a list, fetched page by page as they are asked for. Each page is one state; the list as a whole is not.
/// After an error it ends.
#[derive(Debug)]
#[must_use = "nothing is asked before the first item"]
pub struct Pages<T> {
    client: Client,
    method: &'static str,
    params: Params,
    ready: std::vec::IntoIter<T>,
    done: bool,
}

impl<T> Pages<T> {
    fn new(client: Client, method: &'static str, params: Params) -> Pages<T> {
        Pages { client, method, params, ready: Vec::new().into_iter(), done: false }
    }

    /// How many items a page is asked for, at most. The server gives fewer where they would not fit a datagram.
    pub fn page_limit(mut self, limit: u64) -> Pages<T> {
        self.params.limit = Some(Int(limit));
        self
    }
}

impl<T: DeserializeOwned> Iterator for Pages<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        loop {
            if let Some(item) = self.ready.next() {
                return Some(Ok(item));
            }
            if self.done {
                return None;
            }
            let page: Result<Page<T>> = self.client.ask(self.method, self.params.clone());
            match page {
                Ok(page) => {
                    self.done = page.next.is_none();
                    self.params.cursor = page.next;
                    self.ready = page.items.into_iter();
                }
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl Fence {
    /// Offers the grant to the session with that public number, in the place of an earlier offer.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_holder`, or with `not_found` if there is no such live session; others as [`Error`] says.
    pub fn offer_to(&self, client: u64) -> Result<()> {
        self.hand_over(Some(client))
    }

    /// Takes an offer back.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_holder`, also if the grant was taken over in the meantime; others as [`Error`] says.
    pub fn take_offer_back(&self) -> Result<()> {
        self.hand_over(None)
    }

    fn hand_over(&self, client: Option<u64>) -> Result<()> {
        let params = Params { client: client.map(Int), ..Params::default() };
        self.ask::<HandedOver>("hand_over", params).map(|_| ())
    }

    pub(super) fn new(client: Client, token: Option<u64>, holder: Option<SessionId>) -> Fence {
        Fence { client, token, holder }
    }

    /// Releases the grant. Gives the number of the command that did.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_holder` if it is not held any more.
    pub fn release(&self) -> Result<u64> {
        self.ask("release_lock", Params::default()).map(|released: Released| released.op)
    }

    /// Gives the grant up as lost: for after a doubt, where [`release`](Fence::release) would claim that all went well.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_holder` if it is not held any more.
    pub fn abandon(&self) -> Result<u64> {
        self.ask("abandon", Params::default()).map(|released: Released| released.op)
    }

    /// Sets the grant's own lease to end so long from now. In whole milliseconds, 100 ms to 24 h. Gives what it has left.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_holder` if it is not held any more.
    pub fn renew(&self, lease: Duration) -> Result<Duration> {
        let params = Params { lease_ms: Some(Int(millis(lease))), ..Params::default() };
        self.ask("renew_lease", params).map(|renewed: Renewed| Duration::from_millis(renewed.lease_left_ms))
    }

    /// Converts locks of the grant, each to its mode. See [`Conversion`]; after an upgrade this fence's token is over, and
    /// the new one is in the answer.
    pub fn convert<K: Into<String>>(&self, keys: impl IntoIterator<Item = (K, Mode)>) -> Conversion<'_> {
        let keys = keys.into_iter().map(KeyAsk::from).collect();
        Conversion::of_token(&self.client, self.token, self.holder, keys)
    }

    /// Reads a key; with a token also what a section has staged.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn get(&self, key: &str) -> Result<Option<Entry>> {
        let params = Params { key: Some(key.into()), ..Params::default() };
        let got: Got = self.ask("get", params)?;
        match (got.found, got.version) {
            (false, _) => Ok(None),
            (true, Some(version)) => Ok(Some(Entry {
                // A value of `null` comes as `null`, which a missing field cannot be told from.
                value: got.value.unwrap_or_else(|| RawValue::NULL.to_owned()),
                version,
                ttl_left: got.life.ttl_left_ms.map(Duration::from_millis),
                bound_to: got.life.client,
            })),
            (true, None) => Err(Error::Protocol {
                method: "get".into(),
                message: "a key that was found came without its version".into(),
            }),
        }
    }

    /// Sets a key. Gives its version.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_holder` or `guarded`.
    pub fn set<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<u64> {
        self.set_value(key, to_raw(value)?, None)
    }

    /// Sets a key if it has that version (0: if it does not exist). Gives its version.
    ///
    /// # Errors
    /// [`Error::Refused`] with `version_mismatch`, `not_holder` or `guarded`.
    pub fn set_if<T: Serialize + ?Sized>(&self, key: &str, value: &T, if_version: u64) -> Result<u64> {
        self.set_value(key, to_raw(value)?, Some(if_version))
    }

    /// Sets a key to JSON text, kept as it is. Gives its version.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is not JSON; [`Error::Refused`] as for [`set_if`](Fence::set_if).
    pub fn set_raw(&self, key: &str, json: &str, if_version: Option<u64>) -> Result<u64> {
        self.set_value(key, raw_json(json)?, if_version)
    }

    /// A key to set with a TTL, bound to the session, or under a condition.
    pub fn put<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Put {
        let params = to_raw(value).map(|value| set_params(key, value, None));
        Put { fence: self.clone(), params }
    }

    /// As [`put`](Fence::put), with JSON text that is kept as it is.
    pub fn put_raw(&self, key: &str, json: &str) -> Put {
        Put { fence: self.clone(), params: raw_json(json).map(|value| set_params(key, value, None)) }
    }

    /// A transaction under this grant.
    pub fn transaction(&self) -> Transaction {
        Transaction::new(self.clone())
    }

    /// Deletes a key. Gives the version removed, if there was one.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_holder` or `guarded`.
    pub fn delete(&self, key: &str) -> Result<Option<u64>> {
        self.delete_at(key, None)
    }

    /// Deletes a key if it has that version. Gives the version removed, if there was one.
    ///
    /// # Errors
    /// [`Error::Refused`] with `version_mismatch`, `not_holder` or `guarded`.
    pub fn delete_if(&self, key: &str, if_version: u64) -> Result<Option<u64>> {
        self.delete_at(key, Some(if_version))
    }

    /// Appends to a file, whole and once. Tells where.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_holder`, `bad_name` or `file_fault`.
    pub fn append_file(&self, file: &str, data: impl AsRef<[u8]>) -> Result<Appended> {
        let mut params = Params { file: Some(file.into()), ..Params::default() };
        match std::str::from_utf8(data.as_ref()) {
            Ok(text) if escaped_bytes(text) <= text.len() / 3 * 4 + 4 => params.data = Some(text.into()),
            // No text, or text that is longer with its escapes than in base64.
            Ok(_) | Err(_) => params.data_b64 = Some(STANDARD.encode(data.as_ref())),
        }
        self.ask("append_file", params)
    }

    /// Reads at most `limit` bytes of a file from `offset`; with a token also what a section has staged. The server gives fewer
    /// where they would not fit a datagram.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_found`; others as [`Error`] says.
    pub fn read_file(&self, file: &str, offset: u64, limit: Option<u64>) -> Result<FileChunk> {
        let params = Params {
            file: Some(file.into()),
            offset: Some(Int(offset)),
            limit: limit.map(Int),
            ..Params::default()
        };
        let page: FilePage = self.ask("read_file", params)?;
        let data = match (page.data, page.data_b64) {
            (Some(text), _) => text.into_bytes(),
            (None, Some(text)) => STANDARD.decode(text).map_err(|error| Error::Protocol {
                method: "read_file".into(),
                message: format!("`data_b64` is not base64: {error}"),
            })?,
            (None, None) => Vec::new(),
        };
        Ok(FileChunk { data, length: page.length, eof: page.eof })
    }

    /// Reads a file to its end, in as many requests as that takes: what is appended meanwhile may be in it or not.
    ///
    /// # Errors
    /// As [`read_file`](Fence::read_file).
    pub fn read_all(&self, file: &str) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        loop {
            let chunk = self.read_file(file, data.len() as u64, None)?;
            let empty = chunk.data.is_empty();
            data.extend_from_slice(&chunk.data);
            if chunk.eof || empty {
                return Ok(data);
            }
        }
    }

    /// Length, generation and checksum of a file.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_found`; others as [`Error`] says.
    pub fn file_info(&self, file: &str) -> Result<FileInfo> {
        self.ask("file_info", Params { file: Some(file.into()), ..Params::default() })
    }

    /// The keys that begin with `prefix`, in the order of their bytes; with a token also what a section has staged.
    pub fn prefix(&self, prefix: &str) -> Pages<KeyItem> {
        self.pages("prefix", Params { prefix: Some(prefix.into()), ..Params::default() })
    }

    /// The keys from one to another, both included, in the order of their bytes; with a token also what a section has staged.
    pub fn range(&self, from: &str, to: &str) -> Pages<KeyItem> {
        self.pages("range", Params { from: Some(from.into()), to: Some(to.into()), ..Params::default() })
    }

    /// Deletes a file: the next append begins a new generation.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_holder` or `not_found`.
    pub fn delete_file(&self, file: &str) -> Result<FileChanged> {
        self.ask("delete_file", Params { file: Some(file.into()), ..Params::default() })
    }

    /// Gives a file another name, which must be free.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_holder`, `not_found` or `bad_name`.
    pub fn rotate_file(&self, file: &str, to: &str) -> Result<FileChanged> {
        self.ask("rotate_file", Params { file: Some(file.into()), to: Some(to.into()), ..Params::default() })
    }

    /// Opens a file that has a fault to appends again.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_holder`, `not_found` or `file_fault`.
    pub fn repair_file(&self, file: &str) -> Result<FileChanged> {
        self.ask("repair_file", Params { file: Some(file.into()), ..Params::default() })
    }

    fn set_value(&self, key: &str, value: Box<RawValue>, if_version: Option<u64>) -> Result<u64> {
        self.ask("set", set_params(key, value, if_version)).map(|written: Written| written.version)
    }

    fn delete_at(&self, key: &str, if_version: Option<u64>) -> Result<Option<u64>> {
        let params = Params { key: Some(key.into()), if_version: if_version.map(Int), ..Params::default() };
        self.ask("delete", params).map(|deleted: Deleted| deleted.version)
    }

    fn pages<T>(&self, method: &'static str, params: Params) -> Pages<T> {
        let params = Params { token: self.token.map(Int), holder: self.holder, ..params };
        Pages::new(self.client.clone(), method, params)
    }

    pub(super) fn ask<T: DeserializeOwned>(&self, method: &str, mut params: Params) -> Result<T> {
        params.token = self.token.map(Int);
        params.holder = self.holder;
        self.client.ask(method, params)
    }
}

/// Calls without a grant.
impl Client {
    /// Asks whether a server is there. Needs no session.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    pub fn ping(&self) -> Result<Ping> {
        self.ask("ping", Params::default())
    }

    /// Asks for the server's counts, limits and drops. Needs no session.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    pub fn status(&self) -> Result<Status> {
        self.ask("status", Params::default())
    }

    /// Reads a key; `None` if it does not exist.
    ///
    /// # Errors
    /// As [`Error`] says; reads change nothing.
    pub fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.free().get(key)
    }

    /// Reads a key as a type; `None` if it does not exist.
    ///
    /// # Errors
    /// [`Error::Protocol`] if it is not of that type; others as [`Error`] says.
    pub fn get_as<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        self.get(key)?.map(|entry| entry.parse()).transpose()
    }

    /// Sets a key that nobody guards. Gives its version.
    ///
    /// # Errors
    /// [`Error::Refused`] with `guarded`.
    pub fn set<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<u64> {
        self.free().set(key, value)
    }

    /// Sets a key that nobody guards, if it has that version (0: if it does not exist). Gives its version.
    ///
    /// # Errors
    /// [`Error::Refused`] with `version_mismatch` or `guarded`.
    pub fn set_if<T: Serialize + ?Sized>(&self, key: &str, value: &T, if_version: u64) -> Result<u64> {
        self.free().set_if(key, value, if_version)
    }

    /// Sets a key that nobody guards to JSON text, kept as it is. Gives its version.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is not JSON; [`Error::Refused`] as for [`set_if`](Client::set_if).
    pub fn set_raw(&self, key: &str, json: &str, if_version: Option<u64>) -> Result<u64> {
        self.free().set_raw(key, json, if_version)
    }

    /// A key that nobody guards, to set with a TTL, bound to this session, or under a condition.
    pub fn put<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Put {
        self.free().put(key, value)
    }

    /// As [`put`](Client::put), with JSON text that is kept as it is.
    pub fn put_raw(&self, key: &str, json: &str) -> Put {
        self.free().put_raw(key, json)
    }

    /// A transaction on keys that nobody guards. With guarded ones: [`Fence::transaction`].
    pub fn transaction(&self) -> Transaction {
        self.free().transaction()
    }

    /// Deletes a key that nobody guards. Gives the version removed, if there was one.
    ///
    /// # Errors
    /// [`Error::Refused`] with `guarded`.
    pub fn delete(&self, key: &str) -> Result<Option<u64>> {
        self.free().delete(key)
    }

    /// Deletes a key that nobody guards, if it has that version. Gives the version removed, if there was one.
    ///
    /// # Errors
    /// [`Error::Refused`] with `version_mismatch` or `guarded`.
    pub fn delete_if(&self, key: &str, if_version: u64) -> Result<Option<u64>> {
        self.free().delete_if(key, if_version)
    }

    /// The keys from one to another, both included, in the order of their bytes.
    pub fn range(&self, from: &str, to: &str) -> Pages<KeyItem> {
        let params = Params { from: Some(from.into()), to: Some(to.into()), ..Params::default() };
        Pages::new(self.clone(), "range", params)
    }

    /// The keys that begin with `prefix`, in the order of their bytes.
    pub fn prefix(&self, prefix: &str) -> Pages<KeyItem> {
        self.list("prefix", prefix)
    }

    /// Reads at most `limit` bytes of a file from `offset`. The server gives fewer where they would not fit a datagram.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_found`; others as [`Error`] says.
    pub fn read_file(&self, file: &str, offset: u64, limit: Option<u64>) -> Result<FileChunk> {
        self.free().read_file(file, offset, limit)
    }

    /// Reads a file to its end, in as many requests as that takes: what is appended meanwhile may be in it or not.
    ///
    /// # Errors
    /// As [`read_file`](Client::read_file).
    pub fn read_all(&self, file: &str) -> Result<Vec<u8>> {
        self.free().read_all(file)
    }

    /// Length, generation and checksum of a file.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_found`; others as [`Error`] says.
    pub fn file_info(&self, file: &str) -> Result<FileInfo> {
        self.free().file_info(file)
    }

    /// The files whose names begin with `prefix`.
    pub fn list_files(&self, prefix: &str) -> Pages<FileInfo> {
        self.list("list_files", prefix)
    }

    /// Whether anybody holds a lock.
    ///
    /// # Errors
    /// As [`Error`] says; reads change nothing.
    pub fn is_locked(&self, key: &str) -> Result<bool> {
        let params = Params { key: Some(key.into()), ..Params::default() };
        self.ask("is_locked", params).map(|locked: Locked| locked.locked)
    }

    /// Who holds a lock, and the first page of who waits.
    ///
    /// # Errors
    /// As [`Error`] says; reads change nothing.
    pub fn lock_info(&self, key: &str) -> Result<LockInfo> {
        self.lock_info_page(key, None)
    }

    /// Who holds a lock, and the page of who waits that `cursor` (the `next` of the page before) names.
    ///
    /// # Errors
    /// As [`Error`] says; reads change nothing.
    pub fn lock_info_page(&self, key: &str, cursor: Option<&str>) -> Result<LockInfo> {
        let params = Params { key: Some(key.into()), cursor: cursor.map(str::to_owned), ..Params::default() };
        self.ask("get_lock_info", params)
    }

    /// The locks that are held or waited for, whose names begin with `prefix`.
    pub fn list_locks(&self, prefix: &str) -> Pages<LockItem> {
        self.list("list_locks", prefix)
    }

    /// The grants on locks whose names begin with `prefix`.
    pub fn list_grants(&self, prefix: &str) -> Pages<GrantItem> {
        self.list("list_grants", prefix)
    }

    /// The waits in line for locks whose names begin with `prefix`, in the order of their arrival, each with whom it waits
    /// for: together the graph of who waits for whom.
    pub fn list_waits(&self, prefix: &str) -> Pages<WaitItem> {
        self.list("list_waits", prefix)
    }

    /// The locks that are waited for most, the first of them first. The server keeps figures of at most 128 locks.
    pub fn list_contention(&self) -> Pages<ContentionItem> {
        Pages::new(self.clone(), "list_contention", Params::default())
    }

    /// The sessions.
    pub fn list_sessions(&self) -> Pages<SessionItem> {
        Pages::new(self.clone(), "list_sessions", Params::default())
    }

    /// Cleans up expired grants now, which the server also does by itself. Gives their number.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn cleanup_expired_locks(&self) -> Result<u64> {
        self.ask("cleanup_expired_locks", Params::default()).map(|cleaned: Cleaned| cleaned.cleaned)
    }

    /// Ends a session by its public number. Gives whether there was such a session.
    ///
    /// # Errors
    /// [`Error::Refused`] with `forbidden` from other machines.
    pub fn kill_session(&self, client: u64) -> Result<bool> {
        let params = Params { client: Some(Int(client)), ..Params::default() };
        self.ask("kill_session", params).map(|killed: Killed| killed.killed)
    }

    /// Keeps another session alive, one that was [`detached`](Client::detach). Gives what it holds.
    ///
    /// # Errors
    /// [`Error::Refused`] with `no_session` if it has ended.
    pub fn heartbeat_for(&self, session: SessionId) -> Result<Heartbeat> {
        self.ask("heartbeat", Params { session: Some(session), ..Params::default() })
    }

    /// A request and its answer, of the type that the method gives.
    pub(super) fn ask<T: DeserializeOwned>(&self, method: &str, params: Params) -> Result<T> {
        self.request(method, params, Some(self.deadline()), None)?.read(method)
    }

    fn free(&self) -> Fence {
        Fence::new(self.clone(), None, None)
    }

    fn list<T>(&self, method: &'static str, prefix: &str) -> Pages<T> {
        Pages::new(self.clone(), method, Params { prefix: Some(prefix.into()), ..Params::default() })
    }
}

fn set_params(key: &str, value: Box<RawValue>, if_version: Option<u64>) -> Params {
    Params { key: Some(key.into()), value: Some(value), if_version: if_version.map(Int), ..Params::default() }
}

fn raw_json(json: &str) -> Result<Box<RawValue>> {
    RawValue::from_string(json.trim().to_owned())
        .map_err(|error| Error::Invalid(format!("the value is not JSON: {error}")))
}

pub(super) fn to_raw<T: Serialize + ?Sized>(value: &T) -> Result<Box<RawValue>> {
    serde_json::value::to_raw_value(value)
        .map_err(|error| Error::Invalid(format!("the value cannot be written as JSON: {error}")))
}

/// How long a text is inside a JSON string.
fn escaped_bytes(text: &str) -> usize {
    let escaped = |byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0x00..=0x1f => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum()
}
