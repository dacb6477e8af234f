//! Reads: answered from the state as it is, which is committed by the rules of the log.

use super::admission::{busy, no_session};
use super::assembly::Place;
use super::{FILE_READS_MAX, FileTag, FileWork, Node};
use crate::identity::{SessionId, Token};
use crate::kind::Refusal;
use crate::limits::{REPLY_PAGE, WAITS_LOOKED_AT};
use crate::name::Name;
use crate::outcome::Loss;
use crate::state::{File, Grant, Key, KeySeen, LockView, StagedFile, not_found};
use crate::time::Time;
use crate::wire::{
    self, AskedShown, AskerShown, FileInfo, FilePage, Got, GrantItem, Heartbeat, KeyItem, LifeShown,
    LockInfo, LockItem, Lost, Method, OfferedShown, Page, PageAsk, SessionItem, Status, Under, WaiterShown,
    encode_error, encode_result, holder_shown, page_bytes,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Bytes of a file that a page has if the request does not say.
const FILE_PAGE: u64 = 1_024;

/// Most bytes of a file in one page: in base64 they fit a reply.
const FILE_PAGE_MAX: u64 = 40 * 1024;

impl Node {
    /// Answers a read, or keeps it until what stands before it in its batch has been applied.
    pub(super) fn handle_read(
        &mut self,
        now: Time,
        place: Place,
        session: Option<SessionId>,
        method: Method,
    ) {
        if self.assemblies.is_behind_copy(place) {
            self.assemblies.silence(place);
        } else if self.assemblies.is_behind_log(place) {
            self.assemblies.await_others(place, session, method);
        } else {
            self.handle_read_now(now, place, session, method);
        }
    }

    pub(super) fn handle_read_now(
        &mut self,
        now: Time,
        place: Place,
        session: Option<SessionId>,
        method: Method,
    ) {
        // What is left of something is told from when it was asked, as the client counts it; whether something is over the state
        // judges by its own time, and the lease table by `judged`.
        let (judged, now) = (now, self.heard_at(now));
        match method {
            Method::Ping => self.reply(place, &ping()),
            Method::Status => {
                let status = self.status(now);
                self.reply(place, &status);
            }
            Method::Heartbeat { after } => self.heartbeat(judged, place, session, after),
            Method::IsLocked { key } => {
                let locked = self.state.lock(&key, now).is_some_and(|lock| lock.holders_total > 0);
                self.reply(place, &wire::Locked { locked });
            }
            Method::GetLockInfo { key, page } => {
                let info = self.lock_info(now, &key, &page);
                self.reply(place, &info);
            }
            Method::ListLocks { page } => {
                let locks = self.state.locks(&page.prefix, page.cursor.as_deref(), now);
                // What has ended and is not swept yet is held by nobody, and leaves no trace.
                let items = locks.filter(|lock| lock.holders_total > 0 || lock.queue_total > 0);
                let items = items.map(|lock| (lock.key.to_string(), self.lock_item(now, &lock)));
                let page = fill(items, &page, self.state.op());
                self.reply(place, &page);
            }
            Method::ListGrants { page } => {
                let after = page.cursor.as_deref().and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
                let grants = self
                    .state
                    .live_grants(after)
                    .filter(|(_, grant)| grant.asks.iter().any(|ask| ask.key.starts_with(&page.prefix)));
                let items =
                    grants.map(|(token, grant)| (token.to_string(), self.grant_item(now, token, grant)));
                let page = fill(items, &page, self.state.op());
                self.reply(place, &page);
            }
            Method::ListWaits { page } => {
                let page = self.waits_page(now, &page);
                self.reply(place, &page);
            }
            Method::ListContention { page } => {
                let page = self.contention_page(now, &page);
                self.reply(place, &page);
            }
            Method::ListSessions { page } => {
                let after = page.cursor.as_deref().and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
                let sessions = self
                    .state
                    .live_sessions(after)
                    .filter(|(_, session)| session.name.starts_with(&page.prefix));
                let items = sessions
                    .map(|(id, session)| (session.client.to_string(), self.session_item(now, id, session)));
                let page = fill(items, &page, self.state.op());
                self.reply(place, &page);
            }
            Method::ListFiles { page } => {
                let items = self.state.files(&page.prefix, page.cursor.as_deref());
                let items = items.map(|(name, file)| (name.to_string(), file_shown(name, file)));
                let page = fill(items, &page, self.state.op());
                self.reply(place, &page);
            }
            Method::Get { key, under } => match self.may_read(session, under) {
                Err(refusal) => self.refuse(place, &refusal),
                Ok(under) => {
                    let got = self.got(now, under, &key);
                    self.reply(place, &got);
                }
            },
            Method::Range { from, to, page, under } => match self.may_read(session, under) {
                Err(refusal) => self.refuse(place, &refusal),
                Ok(under) => {
                    let items = self.state.key_range_seen(under, &from, &to, page.cursor.as_deref());
                    let page = fill(items.map(|item| key_item(now, item)), &page, self.state.op());
                    self.reply(place, &page);
                }
            },
            Method::Prefix { page, under } => match self.may_read(session, under) {
                Err(refusal) => self.refuse(place, &refusal),
                Ok(under) => {
                    let items = self.state.keys_seen(under, &page.prefix, page.cursor.as_deref());
                    let page = fill(items.map(|item| key_item(now, item)), &page, self.state.op());
                    self.reply(place, &page);
                }
            },
            Method::FileInfo { file, under } => match self.may_read(session, under) {
                Err(refusal) => self.refuse(place, &refusal),
                Ok(under) => match self.file_info(under, &file) {
                    Some(info) => self.reply(place, &info),
                    None => self.refuse(place, &not_found(&file)),
                },
            },
            Method::ReadFile { file, offset, limit, under } => match self.may_read(session, under) {
                Err(refusal) => self.refuse(place, &refusal),
                Ok(under) => self.read_file(place, under, &file, offset, limit),
            },
            Method::Watch { ask } => self.watch(now, place, ask),
            Method::Logged { .. }
            | Method::RepairFile { .. }
            | Method::OpenSession { .. }
            | Method::CloseSession
            | Method::KillSession { .. }
            | Method::CleanupExpiredLocks => panic!("{method:?} is no read"),
        }
        self.finish(place.key);
    }

    pub(super) fn reply<T: Serialize>(&mut self, place: Place, result: &T) {
        self.resolve_with(place, |out, id| encode_result(out, id, result));
    }

    pub(super) fn refuse(&mut self, place: Place, refusal: &Refusal) {
        self.resolve_with(place, |out, id| encode_error(out, id, refusal));
    }

    /// Whether a read on behalf of a grant may go on: the grant must be live and the caller's. Gives the grant whose section
    /// is seen.
    fn may_read(&self, session: Option<SessionId>, under: Under) -> Result<Option<Token>, Refusal> {
        let Some(token) = under.token else { return Ok(None) };
        let session = session.ok_or_else(|| {
            let text = "a `token` goes with the `session` that holds it, or acts for its `holder`";
            Refusal::new(crate::kind::Kind::InvalidParams, text)
        })?;
        self.state.grant_of(session, under.holder, token).map(|_| Some(token))
    }

    fn heartbeat(&mut self, now: Time, place: Place, session: Option<SessionId>, after: u64) {
        let id = session.expect("the wire asks for the session of a heartbeat");
        if self.state.session(id).is_none_or(|session| !session.is_live()) {
            return self.refuse(place, &no_session());
        }
        if self.leases.is_lapsing(id, now) {
            return self.assemblies.silence(place);
        }
        let news = self.news(self.heard_at(now), id, after);
        self.reply(place, &news);
    }

    /// What a session has to know that happened after command `after`, as much as fits a page.
    fn news(&self, now: Time, id: SessionId, after: u64) -> Heartbeat {
        let mut reply = Heartbeat {
            op: self.state.op(),
            log_op: Some(self.given_op()).filter(|op| *op > self.state.op()),
            held: self.state.held_by(id),
            lost: Vec::new(),
            asked: Vec::new(),
            offered: Vec::new(),
            more: false,
        };
        let session = self.state.session(id).expect("the caller has looked it up");
        let mut losses = session.losses_after(after).peekable();
        let mut asked = session.asked_after(after).peekable();
        let mut offers = session.offers_after(after).peekable();
        let mut bytes = 0;
        // The client goes on behind an op, so what one op did to it is told together.
        while let Some(op) = [
            losses.peek().map(|loss| loss.op),
            asked.peek().map(|(op, _)| *op),
            offers.peek().map(|(op, _)| *op),
        ]
        .into_iter()
        .flatten()
        .min()
        {
            let lost: Vec<Lost> =
                std::iter::from_fn(|| losses.next_if(|loss| loss.op == op)).map(lost_shown).collect();
            let asked: Vec<AskedShown> = std::iter::from_fn(|| asked.next_if(|(of, _)| *of == op))
                .filter_map(|(_, token)| self.asked_shown(now, token))
                .collect();
            let offered: Vec<OfferedShown> = std::iter::from_fn(|| offers.next_if(|(of, _)| *of == op))
                .filter_map(|(_, token)| self.offered_shown(now, token))
                .collect();
            let more = json_len(&lost) + json_len(&asked) + json_len(&offered);
            if !page_bytes(bytes, more) {
                reply.more = true;
                break;
            }
            bytes += more;
            reply.lost.extend(lost);
            reply.asked.extend(asked);
            reply.offered.extend(offered);
        }
        reply
    }

    /// That the holder of a live grant is asked to let go, if it is.
    pub(super) fn asked_shown(&self, now: Time, token: Token) -> Option<AskedShown> {
        let grant = self.state.live_grant(token)?;
        let asked = grant.asked()?;
        Some(AskedShown {
            op: asked.op,
            token,
            keys: grant.asks.iter().map(|ask| ask.key.to_string()).collect(),
            client: asked.client,
            reason: asked.reason.to_string(),
            left_ms: asked.deadline.map(|deadline| deadline.ms_until(now)),
        })
    }

    /// A live grant that is offered to somebody, if it is.
    pub(super) fn offered_shown(&self, now: Time, token: Token) -> Option<OfferedShown> {
        let grant = self.state.live_grant(token)?;
        let holder = self.state.session(grant.session)?;
        Some(OfferedShown {
            op: grant.offered()?.op,
            token,
            keys: wire::keys_shown(&grant.asks),
            client: holder.client,
            name: holder.name.to_string(),
            owner: grant.owner.to_string(),
            label: grant.terms().label.to_string(),
            lease_ms: grant.terms().lease_ms,
            hold_left_ms: grant.hold_deadline().map(|deadline| deadline.ms_until(now)),
        })
    }

    fn status(&self, now: Time) -> Status {
        let head = self.state.head();
        let owned = |name: &str, value: &u64| (name.to_owned(), *value);
        let mut counts: BTreeMap<String, u64> =
            self.state.counts().iter().map(|(name, value)| owned(name, value)).collect();
        counts.extend(self.counts.iter().map(|(name, value)| owned(name, &value)));
        let (events, bytes) = self.state.history_size();
        counts.insert("history_events".into(), events);
        counts.insert("history_bytes".into(), bytes);
        counts.insert("watches".into(), self.watches.len() as u64);
        counts.extend(self.gauges.iter().map(|(name, value)| owned(name, value)));
        let limits = serde_json::to_value(&head.limits).ok();
        let limits = limits.and_then(|limits| serde_json::from_value(limits).ok()).unwrap_or_default();
        let mut drops: BTreeMap<String, u64> =
            crate::datagram::Dropped::ALL.iter().map(|cause| (cause.as_str().to_owned(), 0)).collect();
        drops.extend(self.drops.iter().map(|(name, value)| owned(name, value)));
        let durability = match head.durability {
            crate::command::Durability::Sync => "sync",
            crate::command::Durability::Os => "os",
            crate::command::Durability::None => "none",
        };
        Status {
            server_version: env!("CARGO_PKG_VERSION").into(),
            protocol: wire::PROTOCOL,
            term: head.term,
            op: head.op,
            uptime_ms: now.ms_since(self.serving_since),
            durability: durability.into(),
            counts,
            limits,
            drops,
        }
    }

    fn lock_info(&self, now: Time, key: &Name, page: &PageAsk) -> LockInfo {
        let view = self.state.lock(key, now);
        let mut info = LockInfo {
            key: key.to_string(),
            locked: view.as_ref().is_some_and(|view| view.holders_total > 0),
            holders: Vec::new(),
            holders_total: view.as_ref().map_or(0, |view| view.holders_total),
            queue: Vec::new(),
            queue_total: view.as_ref().map_or(0, |view| view.queue_total),
            queue_max: Some(self.state.limits().lock_waits),
            closed_ms: view.as_ref().map(|view| view.closed_ms).filter(|closed_ms| *closed_ms > 0),
            contention: self.state.contention(key).map(|figures| self.contention_shown(now, key, figures)),
            next: None,
            op: self.state.op(),
        };
        info.holders = view.map_or_else(Vec::new, |view| self.holders_shown(now, &view));
        // The cursor names the last wait shown: a place in line moves, the order of arrival does not. Conversions stand
        // before all others, so theirs are marked.
        let after = page.cursor.as_deref().and_then(place_of).unwrap_or((false, 0));
        let mut bytes = info.holders.iter().map(json_len).sum::<usize>();
        let line =
            self.state.line(key).enumerate().filter(|(_, (op, wait))| (wait.converts.is_none(), *op) > after);
        let (mut last, mut looked) = (after, 0);
        for (index, (op, wait)) in line {
            let session = self.state.session(wait.session).expect("a wait has a session");
            let blocked = self.state.why_waiting(op, now).expect("a wait in line is there");
            let shown = WaiterShown {
                position: index as u64 + 1,
                client: session.client,
                name: session.name.to_string(),
                owner: wait.owner.to_string(),
                label: wait.terms.label.to_string(),
                mode: wire::mode_shown(wait.mode_of(key)),
                wait: wait.id,
                waited_ms: now.ms_since(wait.since),
                wait_left_ms: wait.deadline.map(|deadline| deadline.ms_until(now)),
                reason: Some(blocked.reason),
                key: blocked.key.filter(|in_the_way| in_the_way != key).map(|key| key.to_string()),
                converts: wait.converts,
                estimate_ms: blocked.estimate_ms,
            };
            let more = json_len(&shown);
            let full = page.limit.is_some_and(|limit| info.queue.len() as u64 >= limit);
            // To say why one waits can mean to look at all holders of its locks.
            let full = full || looked >= WAITS_LOOKED_AT;
            if full || !page_bytes(bytes, more) && !info.queue.is_empty() {
                let (waits, op) = last;
                let cursor = if waits { op.to_string() } else { format!("c{op}") };
                info.next = Some(wire::encode_cursor(&cursor));
                break;
            }
            looked += 1 + self.state.looks_of(&wait.asks);
            bytes += more;
            last = (wait.converts.is_none(), op);
            info.queue.push(shown);
        }
        info
    }

    /// Holders with what their sessions have left, which only the lease table knows.
    fn holders_shown(&self, now: Time, view: &LockView<'_>) -> Vec<wire::HolderShown> {
        view.holders
            .iter()
            .map(|holder| {
                let mut shown = holder_shown(holder);
                let session = self.state.session_of(holder.client).expect("a holder has a session");
                let left = self.leases.left_ms(session, now);
                shown.lease_left_ms = [shown.lease_left_ms, left].into_iter().flatten().min();
                if let Some(grant) = self.state.live_grant(holder.token) {
                    self.show_ends(now, grant, &mut shown);
                }
                shown
            })
            .collect()
    }

    fn lock_item(&self, now: Time, lock: &LockView<'_>) -> LockItem {
        LockItem {
            key: lock.key.to_string(),
            locked: lock.holders_total > 0,
            holder: self.holders_shown(now, lock).into_iter().next(),
            holders_total: lock.holders_total,
            queue_total: lock.queue_total,
        }
    }

    fn grant_item(&self, now: Time, token: u64, grant: &Grant) -> GrantItem {
        let mut holder = holder_shown(&self.state.holder(token, grant, &grant.asks[0].key, now));
        let left = self.leases.left_ms(grant.session, now);
        holder.lease_left_ms = [holder.lease_left_ms, left].into_iter().flatten().min();
        self.show_ends(now, grant, &mut holder);
        GrantItem { keys: wire::keys_shown(&grant.asks), holder }
    }

    /// What may end a grant beside its lease, and who may take it over: for people who look.
    fn show_ends(&self, now: Time, grant: &Grant, shown: &mut wire::HolderShown) {
        shown.hold_left_ms = grant.hold_deadline().map(|deadline| deadline.ms_until(now));
        shown.asked = grant.asked().map(|asked| AskerShown {
            client: asked.client,
            reason: asked.reason.to_string(),
            left_ms: asked.deadline.map(|deadline| deadline.ms_until(now)),
        });
        let live = |client: &u64| {
            let session = self.state.session_of(*client).and_then(|id| self.state.session(id));
            session.is_some_and(|session| session.is_live())
        };
        shown.offered = grant.offered().map(|offer| offer.client).filter(live);
    }

    fn session_item(&self, now: Time, id: SessionId, session: &crate::state::Session) -> SessionItem {
        SessionItem {
            client: session.client,
            name: session.name.to_string(),
            label: session.label.to_string(),
            ttl_ms: session.ttl_ms,
            lease_left_ms: self.leases.left_ms(id, now).unwrap_or(0),
            open_ms: now.ms_since(session.opened),
            held: self.state.held_by(id),
            waiting: session.waiting(),
            address: self.peers.get(&id).map(|peer| peer.address.to_string()),
        }
    }

    fn got(&self, now: Time, under: Option<Token>, key: &str) -> Got {
        let hidden = |token| self.state.section(token).is_some_and(|section| section.key(key).is_some());
        match self.state.key_seen(under, key) {
            None => Got { staged: under.is_some_and(hidden), ..Got::default() },
            Some(seen) => {
                let KeyItem { value, version, life, staged, .. } = key_shown(now, key, seen);
                Got { found: true, value: Some(value), version: Some(version), life, staged }
            }
        }
    }

    /// What is staged of a file under the grant.
    fn staged_file(&self, under: Option<Token>, name: &Name) -> Option<&StagedFile> {
        self.state.section(under?)?.file(name)
    }

    fn file_info(&self, under: Option<Token>, name: &Name) -> Option<FileInfo> {
        let found = self.state.file(name);
        let Some(staged) = self.staged_file(under, name) else {
            return found.map(|found| file_shown(name, found));
        };
        Some(FileInfo {
            file: name.to_string(),
            length: staged.length(),
            generation: staged.generation,
            checksum: format!("{:08x}", staged.checksum(found.map_or(0, |found| found.checksum))),
            fault: found.and_then(|found| found.fault.clone()),
            staged: true,
        })
    }

    /// Reads from the file what is committed, and from memory what is staged behind it.
    fn read_file(
        &mut self,
        place: Place,
        under: Option<Token>,
        name: &Name,
        offset: u64,
        limit: Option<u64>,
    ) {
        let found = self.state.file(name).map(|file| (file.length, file.generation));
        let staged = self.staged_file(under, name);
        let (Some(length), committed) =
            (staged.map(StagedFile::length).or(found.map(|it| it.0)), found.map_or(0, |it| it.0))
        else {
            return self.refuse(place, &not_found(name));
        };
        let count = limit.unwrap_or(FILE_PAGE).min(FILE_PAGE_MAX).min(length.saturating_sub(offset));
        let end = offset.saturating_add(count);
        let from_disk = end.min(committed).saturating_sub(offset);
        let tail = staged.map(|staged| staged.slice(offset.max(committed), end));
        let (true, Some((_, generation))) = (from_disk > 0, found) else {
            let staged = tail.is_some();
            let page = file_page(tail.unwrap_or_default(), offset, count, length, staged);
            return self.reply(place, &page);
        };
        if self.file_tags.len() >= FILE_READS_MAX {
            return self.refuse(place, &busy("the files' disk is behind"));
        }
        self.assemblies.await_file(place);
        let tag = self.file_tag(FileTag::Read { place, offset, count, length, tail });
        self.file_work.push_back(FileWork::Read {
            tag,
            file: name.clone(),
            generation,
            offset,
            count: from_disk,
            length: committed,
        });
    }
}

/// The place in line that a cursor of `get_lock_info` names: whether it is behind the conversions, and its command.
fn place_of(cursor: &str) -> Option<(bool, u64)> {
    match cursor.strip_prefix('c') {
        Some(op) => Some((false, op.parse().ok()?)),
        None => Some((true, cursor.parse().ok()?)),
    }
}

/// The reply to `ping`.
pub(super) fn ping() -> wire::Ping {
    wire::Ping { server: "tenure".into(), server_version: env!("CARGO_PKG_VERSION").into() }
}

/// The bytes that were read, as text where they are text.
pub(super) fn file_page(mut bytes: Vec<u8>, offset: u64, count: u64, length: u64, staged: bool) -> FilePage {
    assert_eq!(bytes.len() as u64, count, "the files give what was asked for, or an error");
    // A page ends where a character ends, so that text stays text; the next page begins there.
    if let Err(error) = std::str::from_utf8(&bytes)
        && error.error_len().is_none()
        && error.valid_up_to() > 0
        && offset + count < length
    {
        bytes.truncate(error.valid_up_to());
    }
    let eof = offset + bytes.len() as u64 >= length;
    let base64 =
        |bytes: &[u8]| FilePage { data: None, data_b64: Some(STANDARD.encode(bytes)), length, eof, staged };
    match String::from_utf8(bytes) {
        // Escaping can make text six times as long; then base64 is the form that fits.
        Ok(text) if json_len(&text) > FILE_PAGE_MAX as usize * 4 / 3 => base64(text.as_bytes()),
        Ok(text) => FilePage { data: Some(text), data_b64: None, length, eof, staged },
        Err(error) => base64(error.as_bytes()),
    }
}

/// A loss as results show it.
pub(super) fn lost_shown(loss: &Loss) -> Lost {
    Lost {
        op: loss.op,
        token: loss.token,
        keys: loss.keys.iter().map(|key| key.to_string()).collect(),
        reason: loss.reason,
        note: loss.note.to_string(),
    }
}

fn file_shown(name: &Name, file: &File) -> FileInfo {
    FileInfo {
        file: name.to_string(),
        length: file.length,
        generation: file.generation,
        checksum: format!("{:08x}", file.checksum),
        fault: file.fault.clone(),
        staged: false,
    }
}

fn key_item(now: Time, (name, seen): (&Name, KeySeen<'_>)) -> (String, KeyItem) {
    (name.to_string(), key_shown(now, name, seen))
}

/// How long a key lives, as results show it.
fn life_shown(now: Time, key: &Key) -> LifeShown {
    LifeShown {
        ttl_left_ms: key.deadline.map(|deadline| deadline.ms_until(now)),
        bound: key.bound.is_some(),
        client: key.bound,
    }
}

fn key_shown(now: Time, name: &str, seen: KeySeen<'_>) -> KeyItem {
    let (value, version, life, staged) = match seen {
        KeySeen::Committed(key) => (&key.value, key.version, life_shown(now, key), false),
        KeySeen::Staged(key) => {
            let value = key.change.value.as_ref().expect("a key that is seen was not deleted");
            let life = key.change.life;
            let life = LifeShown { ttl_left_ms: life.ttl_ms, bound: life.bound, client: None };
            (value, key.version, life, true)
        }
    };
    let value = RawValue::from_string(value.to_string()).expect("a value was JSON when it was set");
    KeyItem { key: name.to_owned(), value, version, life, staged }
}

/// Fills a page: as many items as fit a frame and the limit, at least one, with a cursor if there are more.
pub(super) fn fill<T: Serialize>(
    items: impl Iterator<Item = (String, T)>,
    ask: &PageAsk,
    op: u64,
) -> Page<T> {
    let mut page = Page { items: Vec::new(), next: None, op };
    let (mut bytes, mut last) = (0, String::new());
    for (name, item) in items {
        let more = json_len(&item) + 1;
        let full = ask.limit.is_some_and(|limit| page.items.len() as u64 >= limit);
        if full || !page_bytes(bytes, more) {
            page.next = Some(wire::encode_cursor(&last));
            break;
        }
        bytes += more;
        last = name;
        page.items.push(item);
    }
    page
}

/// How many bytes something takes as JSON.
pub(super) fn json_len<T: Serialize>(value: &T) -> usize {
    serde_json::to_vec(value).map_or(REPLY_PAGE, |bytes| bytes.len())
}
