//! Explaining: who waits for whom and why, and which locks are waited for most.

use super::Node;
use super::reads::{fill, json_len};
use crate::command::Ask;
use crate::identity::Op;
use crate::limits::{HOLDERS_SHOWN, WAITS_LOOKED_AT};
use crate::outcome::Blocked;
use crate::state::{Figures, Wait};
use crate::time::Time;
use crate::wire::{self, ContentionItem, ContentionShown, Page, PageAsk, WaitItem, WaitsFor, page_bytes};

impl Node {
    /// A page of `list_waits`. To say why a wait waits can mean to look at all holders of its locks, and at a bounded number
    /// of waits before it, so the page also ends when [`WAITS_LOOKED_AT`] of these were looked at, even without an item.
    pub(super) fn waits_page(&self, now: Time, ask: &PageAsk) -> Page<WaitItem> {
        let after = ask.cursor.as_deref().and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
        let mut page = Page { items: Vec::new(), next: None, op: self.state.op() };
        let (mut bytes, mut last, mut looked) = (0, after, 0);
        for (op, wait) in self.state.live_waits(after) {
            let full = ask.limit.is_some_and(|limit| page.items.len() as u64 >= limit);
            let item = (wait.asks.iter().any(|it| it.key.starts_with(&ask.prefix)) && !full)
                .then(|| self.wait_item(now, op, wait));
            let more = item.as_ref().map_or(0, |item| json_len(item) + 1);
            if full || looked >= WAITS_LOOKED_AT || item.is_some() && !page_bytes(bytes, more) {
                page.next = Some(wire::encode_cursor(&last.to_string()));
                break;
            }
            looked += 1 + item.as_ref().map_or(0, |_| self.state.looks_of(&wait.asks));
            (bytes, last) = (bytes + more, op);
            page.items.extend(item);
        }
        page
    }

    fn wait_item(&self, now: Time, op: Op, wait: &Wait) -> WaitItem {
        let session = self.state.session(wait.session).expect("a wait has a session");
        let blocked = self.state.why_waiting(op, now).expect("a wait in line is there");
        WaitItem {
            op,
            client: session.client,
            name: session.name.to_string(),
            owner: wait.owner.to_string(),
            label: wait.terms.label.to_string(),
            wait: wait.id,
            keys: wire::keys_shown(&wait.asks),
            converts: wait.converts,
            position: blocked.position,
            reason: blocked.reason,
            key: blocked.key.as_ref().map(|key| key.to_string()),
            waits_for: self.waits_for(&wait.asks, &blocked),
            waited_ms: now.ms_since(wait.since),
            wait_left_ms: wait.deadline.map(|deadline| deadline.ms_until(now)),
            estimate_ms: blocked.estimate_ms,
        }
    }

    /// Whom a wait waits for: the holders in its way, and the nearest earlier request in its way.
    fn waits_for(&self, asks: &[Ask], blocked: &Blocked) -> Vec<WaitsFor> {
        let shared_key = |token| {
            let held = &self.state.live_grant(token)?.asks;
            let both = asks.iter().find(|ask| held.iter().any(|held| held.key == ask.key))?;
            Some(both.key.to_string())
        };
        let holders = blocked.holders.iter().map(|holder| WaitsFor {
            client: holder.client,
            name: holder.name.to_string(),
            owner: holder.owner.to_string(),
            label: holder.label.to_string(),
            key: shared_key(holder.token),
            token: Some(holder.token),
            ..WaitsFor::default()
        });
        let ahead = blocked.ahead.iter().map(|ahead| WaitsFor {
            client: ahead.client,
            name: ahead.name.to_string(),
            owner: ahead.owner.to_string(),
            label: ahead.label.to_string(),
            key: blocked.key.as_ref().map(|key| key.to_string()),
            ahead: true,
            converts: ahead.converts,
            ..WaitsFor::default()
        });
        // The earlier request is one; it has its place also where the holders alone are more than are shown.
        holders.take(HOLDERS_SHOWN - usize::from(blocked.ahead.is_some())).chain(ahead).collect()
    }

    /// A page of `list_contention`: what is waited for most comes first.
    pub(super) fn contention_page(&self, now: Time, ask: &PageAsk) -> Page<ContentionItem> {
        // The cursor is the rank of the last item: its weight and its name.
        let after = ask.cursor.as_deref().and_then(|cursor| cursor.split_once(' '));
        let after = after.and_then(|(weight, name)| Some((weight.parse().ok()?, name)));
        let items = self.state.contended(after, now).into_iter().map(|(weight, name, figures)| {
            let item = ContentionItem {
                key: name.to_string(),
                queue_total: self.state.lock(name, now).map_or(0, |lock| lock.queue_total),
                contention: self.contention_shown(now, name, figures),
            };
            (format!("{weight} {name}"), item)
        });
        fill(items, ask, self.state.op())
    }

    pub(super) fn contention_shown(&self, now: Time, key: &str, figures: &Figures) -> ContentionShown {
        let hand_off = self.hand_offs.get(key);
        ContentionShown {
            counted_ms: now.ms_since(figures.since),
            waits: figures.waits,
            waits_ended: figures.waits_ended,
            waited_us: figures.waited_us,
            longest_queue: figures.longest_queue,
            tenures: figures.tenures,
            held_us: figures.held_us,
            hold_us: figures.hold_us,
            hand_offs: hand_off.count,
            hand_off_us: hand_off.total_us,
        }
    }
}
