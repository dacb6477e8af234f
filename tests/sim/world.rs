//! The world: one seed, one queue of events, one clock that nothing but the queue moves.

#![expect(clippy::print_stdout, reason = "a trace is for whoever asked for it")]

use crate::checks::{Checks, Oracle};
use crate::client::{Client, Line, Proven, Scene};
use crate::disk::{Crash, Disk, DiskFaults};
use crate::lives::Lives;
use crate::plan::Plan;
use crate::server::{self, Refused, Server, ServerClock, THREADS, Thread};
use fastrand::Rng;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;
use tenure::datagram;
use tenure::disk::watch;
use tenure::log::Log;
use tenure::proof::Secrets;
use tenure::segment::Segment;

/// How long after the last fault everything may take to come to rest, beside the longest TTL, in microseconds: the two
/// seconds that are promised, and one more copy of a request that the last fault swallowed.
const SETTLE_US: u64 = 2_000_000 + 2_500_000;

/// How late a datagram may come, in microseconds.
const LATE_US: u64 = 3_000_000;

/// More events than any seed has: something spins.
const EVENTS_MAX: u64 = 3_000_000;

#[derive(Debug)]
enum Event {
    ToServer(Vec<u8>, SocketAddr, bool),
    ToClient(usize, SocketAddr, Vec<u8>),
    Client(usize),
    Loop(u64),
    Done(u64, Thread, u64),
    Threads(u64),
    Start,
    Started(u64),
    Fault(Fault),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Partition,
    Address,
    ClientKill,
    ClientPause,
    ServerKill,
    PowerCut,
    /// In this run of the server: while a batch is being written and synced.
    CutInWrite(u64),
    ServerStall,
    DiskFull,
    DiskRoom,
}

/// What a seed gave.
pub(crate) struct Outcome {
    pub(crate) violations: Vec<String>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) judged: BTreeMap<&'static str, u64>,
    pub(crate) simulated_us: u64,
    pub(crate) commands: u64,
    pub(crate) hash: u64,
    pub(crate) history: Vec<Line>,
    pub(crate) enabled: Vec<&'static str>,
}

struct World {
    rng: Rng,
    /// Draws power cuts at the worst of moments, in some of the seeds that have any: which draws nothing from the others.
    worst: Option<Rng>,
    plan: Plan,
    now: Rc<Cell<u64>>,
    queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
    disk: Disk,
    root: PathBuf,
    generation: u64,
    server: Option<Server>,
    /// Counts the runs of the server; events of an earlier one are void.
    run: u64,
    starting: bool,
    start_turn: Option<u64>,
    stalled_until: u64,
    clients: Vec<Client>,
    oracle: Rc<RefCell<Oracle>>,
    checks: Checks,
    lives: Lives,
    counts: BTreeMap<&'static str, u64>,
    history: Option<Vec<Line>>,
    old: VecDeque<(bool, usize, SocketAddr, Vec<u8>)>,
    /// Until when a client does not reach the server, and is not reached.
    cut_up: Vec<u64>,
    cut_down: Vec<u64>,
    rough: bool,
    origin: Instant,
    server_rate: u64,
    secrets_drawn: u64,
    refusals: u64,
    events: u64,
    /// Whose datagrams are printed.
    trace: Option<u64>,
    hash: u64,
}

/// Runs a seed.
pub(crate) fn run(seed: u64, root: &Path, keep_history: bool) -> Outcome {
    let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x7465_6e75_7265);
    let plan = Plan::draw(&mut rng);
    let mut worst = Rng::with_seed(seed);
    let worst = (plan.power_cut_every > 0 && worst.bool()).then_some(worst);
    let disk = Disk::new(rng.u64(..));
    let server_rate = if plan.clock_rates { rng.u64(900_000..=1_100_000) } else { 1_000_000 };
    let mut world = World {
        now: Rc::new(Cell::new(0)),
        queue: BTreeMap::new(),
        queued: 0,
        disk: disk.clone(),
        root: root.into(),
        generation: 0,
        server: None,
        run: 0,
        starting: false,
        start_turn: None,
        stalled_until: 0,
        clients: Vec::new(),
        oracle: Rc::new(RefCell::new(Oracle::new())),
        checks: Checks::default(),
        lives: Lives::new(server_rate),
        counts: BTreeMap::new(),
        history: keep_history.then(Vec::new),
        old: VecDeque::new(),
        cut_up: vec![0; plan.clients],
        cut_down: vec![0; plan.clients],
        rough: true,
        origin: Instant::now(),
        server_rate,
        secrets_drawn: 0,
        refusals: 0,
        events: 0,
        trace: std::env::var("TENURE_TRACE").ok().and_then(|number| number.parse().ok()),
        hash: 0xcbf2_9ce4_8422_2325,
        plan,
        rng,
        worst,
    };
    watch(Some(Rc::new(disk)));
    world.play();
    watch(None);
    world.outcome()
}

impl World {
    fn time(&self) -> u64 {
        self.now.get()
    }

    fn at(&mut self, time: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((time.max(self.time()), self.queued), event);
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn fail(&mut self, what: String) {
        let time = self.time();
        self.checks.violations.push(format!("at {}.{:06} s: {what}", time / 1_000_000, time % 1_000_000));
    }

    fn failed(&self) -> bool {
        !self.checks.violations.is_empty() || !self.oracle.borrow().violations.is_empty()
    }

    fn mix(&mut self, value: u64) {
        self.hash = (self.hash ^ value).wrapping_mul(0x0100_0000_01b3).rotate_left(17);
    }

    fn play(&mut self) {
        let plan = self.plan.clone();
        for number in 0..plan.clients {
            let address = self.address(number);
            let client = Client::new(number, &plan, &mut self.rng, address);
            self.clients.push(client);
            self.wake_client(number, 0);
        }
        self.set_disk(true);
        self.at(0, Event::Start);
        for (fault, every) in [
            (Fault::Partition, plan.partition_every),
            (Fault::Address, plan.address_every),
            (Fault::ClientKill, plan.client_kill_every),
            (Fault::ClientPause, plan.client_pause_every),
            (Fault::ServerKill, plan.server_kill_every),
            (Fault::PowerCut, plan.power_cut_every),
            (Fault::ServerStall, plan.server_stall_every),
            (Fault::DiskFull, plan.disk_full_every),
        ] {
            if every > 0 {
                self.next_fault(fault, every);
            }
        }
        self.go_until(plan.rough_us, false);
        if self.failed() {
            return;
        }
        self.come_to_rest();
        if !self.failed() {
            self.finish();
        }
    }

    /// Lets events happen until then, or until nothing is open any more.
    fn go_until(&mut self, end: u64, until_quiet: bool) {
        while let Some((&(time, number), _)) = self.queue.first_key_value() {
            if time > end || self.failed() {
                break;
            }
            let event = self.queue.remove(&(time, number)).expect("it was looked at");
            self.now.set(time);
            self.events += 1;
            if self.events > EVENTS_MAX {
                let standing = self.standing();
                return self.fail(format!("nothing comes to an end: {event:?}; {standing}"));
            }
            self.happen(event);
            if until_quiet
                && self
                    .clients
                    .iter()
                    .all(|client| client.is_quiet() && (!client.closing || client.is_closed()))
            {
                return;
            }
        }
        self.now.set(end.max(self.time()));
    }

    /// All faults stop. Who waits is served, or told why not.
    fn come_to_rest(&mut self) {
        self.rough = false;
        self.set_disk(false);
        let now = self.time();
        self.cut_up.fill(0);
        self.cut_down.fill(0);
        if self.server.is_none() && !self.starting {
            self.at(now, Event::Start);
        }
        for number in 0..self.clients.len() {
            let client = &mut self.clients[number];
            client.paused_until = client.paused_until.min(now);
            for owner in &mut client.owners {
                owner.think_at = owner.think_at.min(now + 1_000);
            }
            self.wake_client(number, now);
        }
        if let Some(server) = &mut self.server {
            server.out.stop_at_next = 0;
        }
        // A stall, a slow sync or a start with slow syncs that has begun goes on; the time to settle begins with its end.
        let slow = self.queue.iter().filter(|(_, event)| match event {
            Event::Done(run, ..) | Event::Started(run) => *run == self.run,
            _ => false,
        });
        let begun = slow.map(|((time, _), _)| *time).max().unwrap_or(now);
        self.go_until(now.max(self.stalled_until).max(begun), false);
        let now = self.time();
        let settled = self.settle_by();
        self.go_until(now + settled, true);
        let mut open: Vec<String> = Vec::new();
        for client in &self.clients {
            for call in client.calls.values() {
                open.push(format!("client {}: {:?} since {}", client.number, call.what, call.began));
            }
            if open.is_empty() && !client.is_quiet() {
                open.push(format!("client {} still holds: {:?}", client.number, client.owners));
            }
        }
        let waited = self.time() - now;
        if !open.is_empty() {
            open.push(self.standing());
        }
        self.checks.live(open.is_empty(), || {
            format!("{} ms after the last fault: {}", waited / 1_000, open.join("; "))
        });
        let longest = self.counts.entry("longest way to rest (ms)").or_default();
        *longest = (*longest).max(waited / 1_000);
    }

    /// What the server has, for who looks at a failure.
    fn standing(&self) -> String {
        let Some(server) = &self.server else { return "no server".into() };
        let parts = server.turn.node.state().parts();
        let mut out = format!("room {:?}, log time {:?};", server.out.log.file_log().room(), server.turn.now);
        out += &format!(
            " now {}, loop {:?}, slept {:?}, clock {:?}, stalled until {}, busy {:?}, starting {}, inbox {}, serving {}, idle {};",
            self.time(),
            server.loop_at,
            server.slept,
            server.turn.clock,
            self.stalled_until,
            server.busy,
            self.starting,
            server.out.inbox.len(),
            server.turn.node.is_serving(),
            server.turn.node.is_idle()
        );
        for grant in &parts.grants {
            out += &format!(
                " grant {} of {}/{} since {:?};",
                grant.token, grant.client, grant.owner, grant.since
            );
        }
        for wait in &parts.waits {
            out += &format!(" wait of {:?};", wait);
        }
        for session in parts.sessions.iter().filter(|session| session.ended.is_none()) {
            out += &format!(" session {} ({}) ttl {};", session.client, session.name, session.ttl_ms);
        }
        for client in &self.clients {
            out += &format!(" client {} is {:?} {:?};", client.number, client.public_number(), client.owners);
        }
        out
    }

    /// How long a rest may take to come.
    fn settle_by(&self) -> u64 {
        let waiting: u64 = self.clients.iter().map(|client| client.owners.len() as u64).sum();
        // Each hand-over costs a few round trips and syncs, and each end of a lease may start a lock-delay.
        let hand_overs = waiting * 8 * (self.plan.delay_us + self.plan.sync_us * 4 + 2_000);
        let delays = if self.plan.leases { waiting * 200_000 + 5_000_000 } else { 0 };
        self.plan.ttl_ms.1 * 1_250 + SETTLE_US + LATE_US + hand_overs + delays
    }

    /// Everybody leaves; the power goes once more; what is on the disk then is judged.
    fn finish(&mut self) {
        let now = self.time();
        for number in 0..self.clients.len() {
            self.clients[number].close(now);
            self.wake_client(number, now);
        }
        self.go_until(now + 5_000_000, true);
        // A sign of life of a client that is gone may still be on its way.
        let after = self.time() + self.plan.ttl_ms.1 * 1_250 + 1_000_000 + LATE_US;
        self.go_until(after, false);
        if self.failed() {
            return;
        }
        if let Some(server) = &self.server {
            let counts: BTreeMap<_, _> = server.turn.node.state().counts().into_iter().collect();
            let left = ["grants", "waits", "locks", "staged_bytes"].map(|name| counts[name]);
            let standing = self.standing();
            self.checks.live(left == [0; 4], || {
                format!("grants, waits, locks, staged bytes {left:?} are left: {standing}")
            });
            let keys = server.turn.node.state().parts().keys;
            let bound: Vec<_> = keys.iter().filter(|key| key.bound.is_some()).map(|key| &key.key).collect();
            self.checks.live(bound.is_empty(), || {
                format!("keys {bound:?} have outlived the sessions they are bound to")
            });
        }
        self.crash(Crash::PowerCut);
        self.start();
        let started = self.time() + 30_000_000;
        self.go_until(started, false);
        if self.failed() {
            return;
        }
        let Some(server) = &self.server else {
            return self.fail("there is no server at the end".into());
        };
        let parts = server.turn.node.state().parts();
        let disk = &self.disk;
        let files: BTreeMap<String, _> =
            parts.files.iter().map(|part| (part.file.as_str().to_owned(), part)).collect();
        let content = |file: &str| match files.get(file) {
            None => Some(Vec::new()),
            Some(part) if part.fault.is_some() => None,
            Some(_) => disk.read(&format!("files/{file}")).or(Some(b"gone".to_vec())),
        };
        let mut faults = Vec::new();
        for part in parts.files.iter().filter(|part| part.fault.is_none()) {
            let bytes = content(part.file.as_str()).unwrap_or_default();
            if (bytes.len() as u64, crc32c::crc32c(&bytes)) != (part.length, part.checksum) {
                faults.push(format!(
                    "{} has {} bytes on the disk, {} in the state",
                    part.file,
                    bytes.len(),
                    part.length
                ));
            }
        }
        self.checks.finish(content);
        self.checks.caps(None);
        let digest = server.turn.node.state().digest();
        for fault in faults {
            self.fail(fault);
        }
        self.mix(u64::from(digest));
    }

    fn outcome(self) -> Outcome {
        let mut violations = self.checks.violations;
        let oracle = self.oracle.borrow();
        violations.extend(oracle.violations.iter().cloned());
        let mut counts = self.counts;
        for (what, count) in self.disk.counts() {
            *counts.entry(what).or_default() += count;
        }
        *counts.entry("recoveries").or_default() += oracle.recoveries;
        *counts.entry("signs of life").or_default() += self.lives.heard;
        let plan = &self.plan;
        let enabled = [
            (plan.loss > 0, "lost datagram"),
            (plan.double > 0, "doubled datagram"),
            (plan.late > 0, "late datagram"),
            (plan.corrupt > 0, "corrupted datagram"),
            (plan.truncate > 0, "truncated datagram"),
            (plan.replay > 0, "replayed datagram"),
            (plan.partition_every > 0, "partition"),
            (plan.partition_every > 0, "one-way partition"),
            (plan.address_every > 0, "change of address"),
            (plan.client_kill_every > 0, "client killed"),
            (plan.client_pause_every > 0, "client paused"),
            (plan.server_kill_every > 0, "server killed"),
            (plan.power_cut_every > 0, "power cut"),
            (plan.power_cut_every > 0, "lost write"),
            (plan.power_cut_every > 0, "torn write"),
            (plan.power_cut_every > 0, "lost name"),
            (plan.server_stall_every > 0, "server stalled"),
            (plan.server_stall_every > 0, "server stalled in a turn"),
            (plan.server_stall_every > 0, "full receive buffer"),
            (plan.disk_full_every > 0, "no room"),
            (plan.disk_error_one_in > 0, "error of a sync"),
            (plan.disk_error_one_in > 0, "error of a write"),
            (plan.disk_error_one_in > 0, "error of another call"),
            (plan.slow_sync_one_in > 0, "slow sync"),
            (plan.bit_rot, "flipped bit"),
        ];
        Outcome {
            violations,
            judged: self.checks.judged,
            simulated_us: self.now.get(),
            commands: oracle.commands,
            hash: self.hash,
            history: self.history.unwrap_or_default(),
            enabled: enabled.into_iter().filter_map(|(on, what)| on.then_some(what)).collect(),
            counts,
        }
    }

    // What happens.

    fn happen(&mut self, event: Event) {
        match event {
            Event::ToServer(bytes, from, whole) => self.reach_server(bytes, from, whole),
            Event::ToClient(number, address, bytes) => {
                let client = &mut self.clients[number];
                if client.address == address {
                    client.inbox.push(bytes);
                    if client.paused_until <= self.now.get() {
                        self.run_client(number);
                    }
                }
            }
            Event::Client(number) => {
                let (now, client) = (self.now.get(), &mut self.clients[number]);
                if client.due_at.is_none_or(|at| at > now) {
                    return;
                }
                client.due_at = None;
                match client.paused_until {
                    until if until > now => self.wake_client(number, until),
                    _ => self.run_client(number),
                }
            }
            Event::Loop(run) => self.run_loop(run),
            Event::Done(run, thread, turn) => {
                if run != self.run {
                    return;
                }
                if self.stalled_until > self.time() {
                    return self.at(self.stalled_until, Event::Done(run, thread, turn));
                }
                self.disk.finish(turn);
                // What the journal does about the keeper's news is no part of another thread's turn.
                let turn = self.disk.begin();
                if let Some(server) = &mut self.server {
                    server.tell(thread);
                }
                self.disk.finish(turn);
                let one_in = if self.disk.has_unsynced_name(".seg") { 2 } else { 20 };
                if self.disk.has_unsynced_name("") && self.worst(one_in).is_some() {
                    self.count("power cut before a name is safe");
                    return self.cut_power();
                }
                let soon = self.time() + self.rng.u64(1..40);
                self.wake_loop(soon);
                self.run_threads();
            }
            Event::Threads(run) => {
                if run == self.run
                    && let Some(server) = &mut self.server
                    && server.threads_at.is_some_and(|at| at <= self.now.get())
                {
                    server.threads_at = None;
                    self.run_threads();
                }
            }
            Event::Start => {
                if self.server.is_none() && !self.starting {
                    self.start();
                }
            }
            Event::Started(run) => {
                if run == self.run {
                    self.starting = false;
                    if let Some(turn) = self.start_turn.take() {
                        self.disk.finish(turn);
                    }
                    self.oracle.borrow_mut().started();
                    self.begin_loop();
                }
            }
            Event::Fault(fault) => self.suffer(fault),
        }
    }

    fn address(&mut self, number: usize) -> SocketAddr {
        let port = self.rng.u16(1_024..);
        match self.plan.remote && number.is_multiple_of(2) {
            true => SocketAddr::from(([192, 0, 2, 1 + number as u8], port)),
            false => SocketAddr::from(([127, 0, 0, 1 + number as u8], port)),
        }
    }

    fn run_client(&mut self, number: usize) {
        let mut client = self.clients.remove(number);
        self.checks.now(self.now.get(), self.oracle.borrow().passed_durably);
        let mut proven = Vec::new();
        let mut scene = Scene {
            now: self.now.get(),
            plan: &self.plan,
            rough: self.rough,
            checks: &mut self.checks,
            proven: &mut proven,
            counts: &mut self.counts,
            history: self.history.as_mut(),
        };
        let sent = client.turn(&mut scene, &self.clients);
        proven.iter().for_each(|proven| self.judge_lease(proven));
        let (from, wake_at) = (client.address, client.wake_at);
        self.clients.insert(number, client);
        for bytes in sent {
            self.send(true, number, from, bytes);
        }
        if let Some(at) = wake_at {
            self.wake_client(number, at);
        }
    }

    /// A lease is as long on the server as it was told, counted from when the client sent what proves it. (The client gives it up
    /// at four fifths, which is for clocks that differ; so a lease that is only a little short would show in no belief.)
    fn judge_lease(&mut self, proven: &Proven) {
        // While the server stands still its clock shows what it will take back.
        let Some(server) = self.server.as_ref().filter(|_| self.stalled_until <= self.now.get()) else {
            return;
        };
        let Some(grant) = server.turn.node.state().live_grant(proven.token) else { return };
        let now = self.now.get();
        // Another renewal may have been applied since.
        if grant.terms().lease_ms != Some(proven.lease_ms) || grant.terms().max_hold_ms.is_some() {
            return;
        }
        let left_ms = grant.lease_left_ms(server.turn.clock.now()).unwrap_or_default();
        let passed_ms = now.saturating_sub(proven.sent) * self.server_rate / 1_000_000 / 1_000;
        self.checks.lease(proven.lease_ms <= left_ms + passed_ms + 2, || {
            let Proven { token, sent, lease_ms } = proven;
            format!("grant {token}: of {lease_ms} ms from {sent} us on, {left_ms} ms are left at {now} us")
        });
    }

    fn wake_client(&mut self, number: usize, at: u64) {
        let client = &mut self.clients[number];
        if client.due_at.is_none_or(|due| at < due) {
            client.due_at = Some(at);
            self.at(at, Event::Client(number));
        }
    }

    /// The network: a datagram on its way, up to the server or down to a client.
    fn send(&mut self, up: bool, number: usize, address: SocketAddr, bytes: Vec<u8>) {
        if self.trace == Some(number as u64) {
            let arrow = if up { "->" } else { "<-" };
            println!("{:>10} {number} {arrow} {address} {}", self.time(), String::from_utf8_lossy(&bytes));
        }
        self.count("datagrams");
        let now = self.time();
        let (plan, rough) = (self.plan.clone(), self.rough);
        let cut = if up { self.cut_up[number] } else { self.cut_down[number] };
        if cut > now {
            return self.count("datagram into a partition");
        }
        let mut chance = |per_mille: u64| rough && per_mille > 0 && self.rng.u64(0..1_000) < per_mille;
        let (lost, double) = (chance(plan.loss), chance(plan.double));
        let (late, corrupt, truncate) = (chance(plan.late), chance(plan.corrupt), chance(plan.truncate));
        let replay = chance(plan.replay);
        if rough && plan.replay > 0 {
            self.old.push_back((up, number, address, bytes.clone()));
            if self.old.len() > 200 {
                self.old.pop_front();
            }
        }
        if replay && !self.old.is_empty() {
            self.count("replayed datagram");
            let (up, number, address, bytes) = self.old[self.rng.usize(0..self.old.len())].clone();
            self.arrive(now + 1_000, up, number, address, bytes, true);
        }
        if lost {
            return self.count("lost datagram");
        }
        let mut copy = bytes;
        if corrupt && !copy.is_empty() {
            self.count("corrupted datagram");
            for _ in 0..self.rng.usize(1..=4) {
                let at = self.rng.usize(0..copy.len());
                copy[at] ^= 1 << self.rng.u8(0..8);
            }
        }
        if truncate {
            self.count("truncated datagram");
            let cut = self.rng.usize(0..=copy.len());
            // A request that is damaged and has lost exactly its checksum is one that a person could have typed.
            if !(corrupt && up && cut + datagram::TRAILER == copy.len()) {
                copy.truncate(cut);
            }
        }
        for _ in 0..=usize::from(double) {
            let most = if rough { plan.delay_us } else { plan.delay_us.min(2_000) };
            let mut delay = 50 + self.rng.u64(0..=most);
            if late {
                self.count("late datagram");
                delay += self.rng.u64(0..=LATE_US);
            }
            self.arrive(now + delay, up, number, address, copy.clone(), !corrupt && !truncate);
        }
        if double {
            self.count("doubled datagram");
        }
    }

    fn arrive(&mut self, at: u64, up: bool, number: usize, address: SocketAddr, bytes: Vec<u8>, whole: bool) {
        match up {
            true => self.at(at, Event::ToServer(bytes, address, whole)),
            false => self.at(at, Event::ToClient(number, address, bytes)),
        }
    }

    fn reach_server(&mut self, bytes: Vec<u8>, from: SocketAddr, whole: bool) {
        // Nobody listens on the port of a server that is not there, or is reading its journal.
        let Some(server) = self.server.as_mut().filter(|_| !self.starting) else { return };
        if server.out.inbox.len() >= self.plan.settings.buffer {
            return self.count("full receive buffer");
        }
        if whole && from.ip().is_loopback() {
            self.lives.arrives(self.now.get(), &bytes);
        }
        server.out.inbox.push_back((bytes, from));
        let soon = self.now.get() + self.rng.u64(1..60);
        self.wake_loop(soon);
    }

    // The server.

    fn wake_loop(&mut self, at: u64) {
        let at = at.max(self.stalled_until);
        let starting = self.starting;
        let Some(server) = self.server.as_mut().filter(|_| !starting) else { return };
        if server.loop_at.is_none_or(|known| at < known) {
            server.loop_at = Some(at);
            let run = self.run;
            self.at(at, Event::Loop(run));
        }
    }

    fn run_loop(&mut self, run: u64) {
        let now = self.time();
        if run != self.run {
            return;
        }
        let Some(server) = &mut self.server else { return };
        if server.loop_at.is_none_or(|at| at > now) {
            return;
        }
        if self.stalled_until > now {
            server.loop_at = None;
            return self.wake_loop(self.stalled_until);
        }
        server.loop_at = None;
        server.loops += 1;
        if server.loops > 300_000 {
            let (slept, log) = (server.slept, server.turn.clock.now());
            return self.fail(format!("the loop spins: {slept:?}, log time {log:?}"));
        }
        self.lives.wakes(now);
        {
            let mut oracle = self.oracle.borrow_mut();
            oracle.passed = self.checks.now(now, oracle.passed_durably);
        }
        let done = server.run_loop();
        let stopped = server.clock.take_stop();
        if stopped > 1_000 {
            *self.counts.entry("server stalled in a turn").or_default() += 1;
        }
        let sent = std::mem::take(&mut server.out.sent);
        let state = server.turn.node.state();
        let (op, digest) = (state.op(), state.digest());
        let counts = state.counts();
        let limits = state.limits().clone();
        {
            let mut oracle = self.oracle.borrow_mut();
            if oracle.state.op() == op && oracle.state.digest() != digest {
                oracle.violations.push(format!("two replays of the log to op {op} differ"));
            }
        }
        let words = std::mem::take(&mut self.oracle.borrow_mut().words);
        for word in words {
            let early = self.lives.submitted(now, word);
            self.checks.lived(early);
        }
        self.lives.stood(now, stopped);
        if server.turn.node.is_serving() {
            let caps = [
                ("sessions", limits.sessions),
                ("grants", limits.grants + limits.waits),
                ("waits", limits.waits),
                ("keys", limits.keys),
                ("key_bytes", limits.key_bytes),
                ("files", limits.files),
                ("staged_bytes", limits.staged_bytes),
            ];
            for (name, cap) in caps {
                let count = counts.iter().find(|(known, _)| *known == name).map_or(0, |(_, count)| *count);
                // What stood before the caps were lowered stays; here they never change.
                let over = (count > cap).then(|| format!("{count} {name}, at most {cap} are allowed"));
                self.checks.caps(over);
            }
        }
        self.mix(u64::from(digest) << 32 | op & 0xffff_ffff);
        if stopped > 0 {
            self.stalled_until = now + stopped;
            self.checks.stalls(now, self.stalled_until);
        }
        if let Err(why) = done {
            return self.end_server(&why);
        }
        for transmit in sent {
            self.mix(transmit.bytes.len() as u64);
            let to = transmit.to;
            let number = self.clients.iter().position(|client| client.address.ip() == to.ip());
            if let Some(number) = number {
                self.send(false, number, to, transmit.bytes);
            }
        }
        if let Some(micros) = self.server.as_ref().and_then(Server::wake_in) {
            self.wake_loop(now.max(self.stalled_until) + micros);
        }
        self.run_threads();
    }

    /// Lets the threads beside the loop begin what they have to do.
    fn run_threads(&mut self) {
        let now = self.time();
        if self.starting {
            return;
        }
        if self.stalled_until > now {
            let (at, run) = (self.stalled_until, self.run);
            if let Some(server) = &mut self.server
                && server.threads_at.is_none_or(|known| at < known)
            {
                server.threads_at = Some(at);
                self.at(at, Event::Threads(run));
            }
            return;
        }
        let run = self.run;
        for thread in THREADS {
            let Some(server) = &mut self.server else { return };
            if !server.can_run(thread) {
                continue;
            }
            let turn = self.disk.begin();
            server.run(thread);
            server.busy[thread as usize] = Some(turn);
            let mut cost = self.disk.cost() + self.rng.u64(1..20);
            if thread == Thread::Fold {
                cost += self.rng.u64(0..200_000);
            }
            self.at(now + cost, Event::Done(run, thread, turn));
            if thread == Thread::Journal
                && let Some(part) = self.worst(200)
            {
                self.at(now + cost * part / 1_000, Event::Fault(Fault::CutInWrite(run)));
            }
        }
        if let Some(server) = &mut self.server
            && let Some(due) = server.threads_due().map(|due| due.max(now + 1))
            && server.threads_at.is_none_or(|at| due < at)
        {
            server.threads_at = Some(due);
            self.at(due, Event::Threads(run));
        }
    }

    /// Once in so many: a number below 1,000, if this seed has the worst of moments.
    fn worst(&mut self, one_in: u64) -> Option<u64> {
        let rough = self.rough;
        let rng = self.worst.as_mut().filter(|_| rough)?;
        (rng.u64(0..one_in) == 0).then(|| rng.u64(0..1_000))
    }

    /// The power is cut, and comes back.
    fn cut_power(&mut self) {
        self.crash(Crash::PowerCut);
        let off = self.worst.as_mut().map_or(0, |rng| rng.u64(0..500_000));
        self.at(self.now.get() + 1_000 + off, Event::Start);
    }

    /// The server ended by itself: only an error of its disk may do that.
    fn end_server(&mut self, why: &str) {
        let saw_error = self.server.as_ref().is_some_and(|server| server.saw_error(&self.disk));
        if !saw_error {
            self.fail(format!("the server ended: {why}"));
        }
        self.count("server ended by an error of the disk");
        let crash = if self.rng.bool() { Crash::Kill } else { Crash::PowerCut };
        self.crash(crash);
        let back = self.time() + self.rng.u64(1_000..2_000_000);
        self.at(back, Event::Start);
    }

    fn crash(&mut self, crash: Crash) {
        let path = self.server.as_ref().map(|server| server.path.clone());
        self.server = None;
        self.starting = false;
        self.start_turn = None;
        self.stalled_until = 0;
        self.checks.down(self.now.get());
        self.run += 1;
        self.disk.crash(crash);
        if let Some(path) = path {
            let _ = std::fs::remove_dir_all(path);
        }
    }

    fn start(&mut self) {
        self.generation += 1;
        self.run += 1;
        let path = self.root.join(format!("{}", self.generation));
        if self.plan.bit_rot && self.rough && self.generation > 1 && self.rng.bool() {
            self.rot();
        }
        std::fs::create_dir_all(&path).expect("a directory for the server");
        self.disk.materialise(&path);
        let clock =
            Rc::new(ServerClock::new(self.now.clone(), self.server_rate, self.rng.u64(0..1_000_000_000)));
        self.secrets_drawn += 1;
        let mut secrets = Secrets { cookie: [0; 16], session: [0; 16] };
        secrets.cookie[..8].copy_from_slice(&self.secrets_drawn.to_le_bytes());
        secrets.session[..8].copy_from_slice(&self.secrets_drawn.to_le_bytes());
        let errors = self.disk.errors();
        let turn = self.disk.begin();
        let started =
            Server::start(&path, &self.disk, &self.plan.settings, clock, &self.oracle, self.origin, secrets);
        let cost = self.disk.cost() + 1_000;
        match started {
            Ok(server) => {
                self.count("starts");
                self.server = Some(server);
                self.starting = true;
                self.start_turn = Some(turn);
                let (at, run) = (self.time() + cost, self.run);
                self.at(at, Event::Started(run));
            }
            Err(Refused(why)) => {
                let full = why.contains("free space");
                if self.disk.errors() == errors && !full {
                    self.fail(format!("the server does not start: {why}"));
                }
                self.count(if full { "start without room" } else { "start ended by an error of the disk" });
                self.refusals += 1;
                self.crash(Crash::Kill);
                let _ = std::fs::remove_dir_all(&path);
                let back = self.time() + 500_000;
                self.at(back, Event::Start);
            }
        }
    }

    fn begin_loop(&mut self) {
        let Some(server) = &mut self.server else { return };
        let now = self.now.get();
        {
            let mut oracle = self.oracle.borrow_mut();
            oracle.passed = oracle.passed_durably;
            self.checks.up(now, oracle.passed);
        }
        // The first batch holds `new_term`.
        let done = server.turn.hand_over(&mut server.out);
        if let Err(why) = done {
            return self.end_server(&why);
        }
        let live = server.turn.node.state().live_sessions(0).map(|(id, session)| (id, session.ttl_ms));
        self.lives.term(now, live);
        self.oracle.borrow_mut().words.clear();
        self.run_threads();
        self.wake_loop(now + 10);
    }

    /// A bit of what is known to be synced is flipped: the server must say where, or come up with exactly what it had.
    fn rot(&mut self) {
        let path = self.root.join("rot");
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a directory to look into");
        self.disk.materialise(&path);
        watch(None);
        if let Some((file, bit)) = self.flip(&path) {
            self.count("flipped bit");
            let fault = match server::look(&path) {
                Err(Refused(why)) => {
                    self.count("flipped bit: refused");
                    (!why.contains(&file)).then(|| format!("a refusal that does not name {file}: {why}"))
                }
                Ok(recovered) => self.oracle.borrow().could_be(&recovered.state),
            };
            if let Some(fault) = fault {
                self.fail(format!("bit {bit} of {file} was flipped: {fault}"));
            }
        }
        watch(Some(Rc::new(self.disk.clone())));
        let _ = std::fs::remove_dir_all(&path);
    }

    fn flip(&mut self, path: &Path) -> Option<(String, usize)> {
        let mut found: Vec<(PathBuf, usize)> = Vec::new();
        for name in ["server_state.json", "server_state.json.previous"] {
            let file = path.join(name);
            let length = std::fs::metadata(&file).map_or(0, |found| found.len() as usize);
            found.extend((length > 0).then_some((file, length)));
        }
        let mut segments: Vec<PathBuf> =
            std::fs::read_dir(path.join("journal")).ok()?.flatten().map(|entry| entry.path()).collect();
        segments.retain(|file| file.extension().is_some_and(|ext| ext == "seg"));
        segments.sort();
        let last = segments.len();
        for (index, file) in segments.into_iter().enumerate() {
            let bytes = std::fs::read(&file).ok()?;
            let Ok(segment) = Segment::read(&bytes) else { continue };
            let synced = segment.batches.iter().map(|batch| batch.header.synced).max().unwrap_or(0);
            let mut below =
                segment.batches.iter().filter(|batch| index + 1 < last || batch.header.seq <= synced);
            let end = below.next_back().map(|batch| batch.offset + batch.header.bytes());
            found.push((file, end.unwrap_or(128)));
        }
        if found.is_empty() {
            return None;
        }
        let (file, length) = found[self.rng.usize(0..found.len())].clone();
        let bit = self.rng.usize(0..length * 8);
        let mut bytes = std::fs::read(&file).ok()?;
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&file, bytes).ok()?;
        Some((file.file_name()?.to_string_lossy().into_owned(), bit))
    }

    // Faults.

    fn next_fault(&mut self, fault: Fault, every: u64) {
        let at = self.time() + self.rng.u64(0..=2 * every);
        self.at(at, Event::Fault(fault));
    }

    fn set_disk(&mut self, rough: bool) {
        let plan = &self.plan;
        let faults = match rough {
            true => DiskFaults {
                error_one_in: plan.disk_error_one_in,
                full: false,
                sync_us: plan.sync_us,
                slow_one_in: plan.slow_sync_one_in,
                slow_us: plan.slow_sync_us,
            },
            false => DiskFaults { sync_us: plan.sync_us, ..DiskFaults::default() },
        };
        self.disk.set_faults(faults);
    }

    fn suffer(&mut self, fault: Fault) {
        if !self.rough {
            return;
        }
        let plan = self.plan.clone();
        let now = self.time();
        let number = self.rng.usize(0..plan.clients);
        let long = self.rng.u64(10_000..=2 * plan.ttl_ms.1 * 1_000);
        let every = match fault {
            Fault::Partition => {
                let all = self.rng.u8(0..4) == 0;
                let (up, down) = [(true, true), (true, false), (false, true)][self.rng.usize(0..3)];
                self.count(if up && down { "partition" } else { "one-way partition" });
                for client in 0..plan.clients {
                    if all || client == number {
                        self.cut_up[client] = if up { now + long } else { 0 };
                        self.cut_down[client] = if down { now + long } else { 0 };
                    }
                }
                plan.partition_every
            }
            Fault::Address => {
                self.count("change of address");
                let address = self.address(number);
                self.clients[number].address = address;
                plan.address_every
            }
            Fault::ClientKill => {
                self.count("client killed");
                let back = now + self.rng.u64(0..3_000_000);
                let mut scene = Scene {
                    now,
                    plan: &plan,
                    rough: true,
                    checks: &mut self.checks,
                    proven: &mut Vec::new(),
                    counts: &mut self.counts,
                    history: self.history.as_mut(),
                };
                self.clients[number].kill(&mut scene, back);
                self.wake_client(number, back);
                plan.client_kill_every
            }
            Fault::ClientPause => {
                self.count("client paused");
                self.clients[number].paused_until = now + long;
                self.wake_client(number, now + long);
                plan.client_pause_every
            }
            Fault::ServerKill | Fault::PowerCut => {
                if self.server.is_some() {
                    let (what, crash) = match fault {
                        Fault::ServerKill => ("server killed", Crash::Kill),
                        _ => ("power cut", Crash::PowerCut),
                    };
                    self.count(what);
                    self.crash(crash);
                    let back = now + self.rng.u64(1_000..3_000_000);
                    self.at(back, Event::Start);
                }
                if fault == Fault::ServerKill { plan.server_kill_every } else { plan.power_cut_every }
            }
            Fault::ServerStall => {
                let in_turn = self.rng.bool();
                if let Some(server) = self.server.as_mut().filter(|_| !self.starting) {
                    if in_turn {
                        server.out.stop_at_next = long;
                    } else {
                        let asked = server.asked_in();
                        self.lives.sleeps(now.max(self.stalled_until), asked);
                        self.stalled_until = self.stalled_until.max(now + long);
                        self.checks.stalls(now, self.stalled_until);
                        self.count("server stalled");
                    }
                }
                plan.server_stall_every
            }
            Fault::DiskFull => {
                self.disk.set_full(true);
                self.count("full disk");
                let room = now + self.rng.u64(100_000..5_000_000);
                self.at(room, Event::Fault(Fault::DiskRoom));
                plan.disk_full_every
            }
            Fault::CutInWrite(run) => {
                if self.run == run && self.server.is_some() {
                    self.count("power cut in a write");
                    self.cut_power();
                }
                return;
            }
            Fault::DiskRoom => return self.disk.set_full(false),
        };
        self.next_fault(fault, every);
    }
}
