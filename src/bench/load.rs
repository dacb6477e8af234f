//! The load: clients that ask, look at the answer, and ask again. What they make of answers is in `answers`.

mod answers;

use super::port::Port;
use super::process::{self, Cpu};
use super::report::{Acquired, Process, Report, Times};
use super::request::{self, Ask, Call, Script, Writer};
use super::{Failure, Plan, Sockets, Workload};
use crate::limits::DATAGRAM_MAX;
use mio::{Events, Interest, Poll, Token};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

/// A request without an answer is sent again after this, then after twice that, up to [`AGAIN_AT_MOST`].
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// See [`AGAIN_AFTER`]. So often a request that stands in line is repeated, too: a restarted server has to hear from it.
const AGAIN_AT_MOST: Duration = Duration::from_secs(2);

/// How often requests without an answer are looked for; the loop sleeps no longer than that.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Requests on their way before and after the work, so that a crowd fits the buffer of the server's socket.
const CROWD: usize = 1_024;

/// Replies kept for a client until it acknowledges them: far fewer than the server keeps.
const ACKNOWLEDGE_AFTER: u64 = 64;

/// Sockets that are asked one by one without sleeping.
const ASKED_IN_TURN: usize = 8;

/// Descriptors for anything but sockets.
const OTHER_FILES: u64 = 64;

/// Measures what is planned.
pub(super) fn run(plan: &Plan) -> Result<Report, Failure> {
    let mut load = Load::new(plan)?;
    load.sample(|process, _, memory| process.rss_before = memory)?;
    load.stage(Stage::Open)?;
    let began = Instant::now();
    load.stage(Stage::Prepare)?;
    if plan.workload == Workload::Heartbeat {
        let locks = (plan.names * plan.clients) as u64;
        let rate = locks as f64 / began.elapsed().as_secs_f64();
        load.report.acquired = Some(Acquired { locks, rate });
    }
    load.stage(Stage::Work)?;
    if !plan.leave {
        load.stage(Stage::Tidy)?;
        load.stage(Stage::Close)?;
    }
    Ok(load.report)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    Prepare,
    Work,
    Tidy,
    Close,
}

/// One session.
struct Client {
    port: usize,
    session: Vec<u8>,
    /// Logged requests since it acknowledged replies.
    unacknowledged: u64,
}

/// One request at a time of a client. The last ones are the clients' heartbeats.
struct Slot {
    client: usize,
    /// How far it is in the script, how often it has been through it in this stage, and which of its names is next.
    step: usize,
    lap: usize,
    turn: usize,
    call: Call,
    /// 0 if nothing is on its way.
    id: u64,
    request: Vec<u8>,
    /// When the operation began, and when the request was sent first.
    began: Instant,
    sent: Instant,
    /// When to send it again.
    due: Instant,
    copies: u32,
    /// How often it was refused for now.
    refused: u32,
    /// Whether it stands in line.
    in_line: bool,
    token: u64,
    /// The wait whose answer the server is to be told of.
    got: u64,
    /// How long its file is.
    length: u64,
}

/// What is being measured.
struct Window {
    began: Instant,
    own_cpu: f64,
    server_cpu: Option<Cpu>,
}

struct Load<'a> {
    plan: &'a Plan,
    script: Script,
    writer: Writer,
    nonce: u128,
    poll: Poll,
    ports: Vec<Port>,
    clients: Vec<Client>,
    slots: Vec<Slot>,
    /// Slots that are no heartbeat.
    workers: usize,
    /// Ids are this many times the number of slots, and the slot: unique on every socket, and rising.
    turn: u64,
    stage: Stage,
    /// Slots that have not begun in this stage, how many have and are not done, how many wait for the next round.
    queue: VecDeque<usize>,
    active: usize,
    parked: usize,
    /// At a given rate: slots that have nothing to do, and when the next operation is due.
    idle: VecDeque<usize>,
    due: Instant,
    /// No operation begins any more.
    draining: bool,
    /// Clients with a session, in the order in which their heartbeats are due.
    beats: VecDeque<(Instant, usize)>,
    /// When an answer came last.
    heard: Instant,
    released: Option<Instant>,
    random: u64,
    /// The numbers of the names that the next request asks for.
    names: Vec<usize>,
    window: Option<Window>,
    latency: Times,
    round_trip: Times,
    hand_off: Times,
    report: Report,
    failed: Option<Failure>,
}

impl<'a> Load<'a> {
    fn new(plan: &'a Plan) -> Result<Load<'a>, Failure> {
        let mut drawn = [0; 20];
        getrandom::fill(&mut drawn)
            .map_err(|error| Failure::Refused(format!("the system gives no random numbers: {error}")))?;
        let (nonce, run) = drawn.split_at(16);
        let nonce = u128::from_le_bytes(nonce.try_into().expect("16 bytes were cut off"));
        let run = u32::from_le_bytes(run.try_into().expect("4 bytes are left"));
        let sockets = match plan.sockets {
            Sockets::Each => plan.clients,
            Sockets::One => 1,
        };
        let open = || -> io::Result<(Poll, Vec<Port>)> {
            allow_files(sockets as u64 + OTHER_FILES)?;
            let poll = Poll::new()?;
            let mut ports = Vec::with_capacity(sockets);
            for number in 0..sockets {
                let mut port = Port::connect(plan.server, sockets == 1)?;
                poll.registry().register(&mut port.socket, Token(number), Interest::READABLE)?;
                ports.push(port);
            }
            Ok((poll, ports))
        };
        let (poll, ports) = open()
            .map_err(|error| Failure::Refused(format!("no {sockets} sockets to {}: {error}", plan.server)))?;
        let clients = (0..plan.clients)
            .map(|number| Client { port: number % sockets, session: Vec::new(), unacknowledged: 0 })
            .collect();
        let now = Instant::now();
        let workers = plan.clients * plan.in_flight;
        let slots = (0..workers + plan.clients)
            .map(|index| Slot {
                client: if index < workers { index / plan.in_flight } else { index - workers },
                step: 0,
                lap: 0,
                turn: 0,
                call: Call::Ping,
                id: 0,
                request: Vec::new(),
                began: now,
                sent: now,
                due: now,
                copies: 0,
                refused: 0,
                in_line: false,
                token: 0,
                got: 0,
                length: 0,
            })
            .collect();
        Ok(Load {
            plan,
            script: Script::of(plan.workload),
            writer: Writer::new(run, plan.value_bytes),
            nonce,
            poll,
            ports,
            clients,
            slots,
            workers,
            turn: 0,
            stage: Stage::Open,
            queue: VecDeque::new(),
            active: 0,
            parked: 0,
            idle: VecDeque::new(),
            due: now,
            draining: false,
            beats: VecDeque::new(),
            heard: now,
            released: None,
            random: u64::from(run),
            names: Vec::new(),
            window: None,
            latency: Times::new(),
            round_trip: Times::new(),
            hand_off: Times::new(),
            report: Report::of(plan),
            failed: None,
        })
    }

    // The stages.

    /// Goes through one stage.
    fn stage(&mut self, stage: Stage) -> Result<(), Failure> {
        self.stage = stage;
        self.draining = false;
        self.queue = (0..self.workers).collect();
        self.parked = 0;
        self.idle.clear();
        for slot in &mut self.slots {
            (slot.step, slot.lap, slot.turn) = (0, 0, 0);
        }
        let began = Instant::now();
        (self.heard, self.due) = (began, began);
        if stage == Stage::Close {
            self.forget(self.workers..self.slots.len());
        }
        if stage == Stage::Work && self.plan.workload == Workload::Heartbeat {
            // From now on evenly, whenever the sessions were opened.
            let part = |client| self.plan.every.mul_f64(client as f64 / self.plan.clients as f64);
            self.beats = (0..self.plan.clients).map(|client| (began + part(client), client)).collect();
        }
        self.drive(began)
            .map_err(|error| Failure::Refused(format!("a socket to {} failed: {error}", self.plan.server)))?
    }

    fn drive(&mut self, began: Instant) -> io::Result<Result<(), Failure>> {
        let work = self.stage == Stage::Work;
        let measure_at = began + self.plan.warm_up;
        let mut end_at = measure_at + self.plan.time;
        let mut events = Events::with_capacity(1_024);
        let mut buffer = vec![0; DATAGRAM_MAX];
        let mut looked = began;
        let mut now = began;
        loop {
            self.start(now)?;
            self.set_off(now)?;
            self.beat(now)?;
            self.flush()?;
            if self.draining || !work {
                if self.active == 0 && self.queue.is_empty() {
                    return Ok(Ok(()));
                }
                if self.draining && now >= end_at + self.plan.patience {
                    self.give_up();
                    return Ok(Ok(()));
                }
            } else if self.window.is_none() && now >= measure_at {
                if let Err(failure) = self.open_window() {
                    return Ok(Err(failure));
                }
                end_at = Instant::now() + self.plan.time;
            } else if self.window.is_some() && now >= end_at {
                if let Err(failure) = self.close_window() {
                    return Ok(Err(failure));
                }
                self.draining = true;
                end_at = now;
                continue;
            }
            self.listen(&mut events, &mut buffer, now)?;
            if let Some(failure) = self.failed.take() {
                return Ok(Err(failure));
            }
            now = Instant::now();
            if now - looked >= LOOK_EVERY {
                looked = now;
                self.send_again(now)?;
                if now - self.heard >= self.plan.patience && self.slots.iter().any(|slot| slot.id != 0) {
                    let (server, patience) = (self.plan.server, self.plan.patience);
                    return Ok(Err(Failure::Unreachable(format!(
                        "no answer from {server} for {patience:?}"
                    ))));
                }
            }
        }
    }

    /// Waits for answers and takes them.
    fn listen(&mut self, events: &mut Events, buffer: &mut [u8], now: Instant) -> io::Result<()> {
        if self.plan.spin && self.ports.len() <= ASKED_IN_TURN {
            return (0..self.ports.len()).try_for_each(|port| self.receive(port, buffer));
        }
        let beat = self.beats.front().map(|(due, _)| *due);
        let due = self.rate().map(|_| self.due);
        let sleep = match beat.into_iter().chain(due).min() {
            _ if self.plan.spin || !self.queue.is_empty() => Duration::ZERO,
            Some(due) => due.saturating_duration_since(now).min(LOOK_EVERY),
            None => LOOK_EVERY,
        };
        match self.poll.poll(events, Some(sleep)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        events.iter().try_for_each(|event| self.receive(event.token().0, buffer))
    }

    /// Lets slots begin that have not yet.
    fn start(&mut self, now: Instant) -> io::Result<()> {
        let most = if self.stage == Stage::Work { usize::MAX } else { CROWD };
        while self.active < most {
            let Some(slot) = self.queue.pop_front() else { break };
            self.active += 1;
            self.advance(slot, now)?;
        }
        Ok(())
    }

    /// The rate at which operations begin by the clock, if they do now.
    fn rate(&self) -> Option<f64> {
        self.plan.rate.filter(|_| self.stage == Stage::Work && !self.draining)
    }

    /// Lets the operations begin that are due. Those that no slot is free for do not.
    fn set_off(&mut self, now: Instant) -> io::Result<()> {
        let Some(rate) = self.rate() else { return Ok(()) };
        let pause = Duration::from_secs_f64(1.0 / rate);
        while self.due <= now {
            match self.idle.pop_front() {
                Some(index) => {
                    self.active += 1;
                    if let Some(call) = self.next(index) {
                        self.ask(index, call, now)?;
                        self.slots[index].began = self.due;
                    }
                }
                None => self.report.not_begun += u64::from(self.window.is_some()),
            }
            self.due += pause;
        }
        Ok(())
    }

    /// Nobody waits for the rest any longer.
    fn give_up(&mut self) {
        let unanswered = self.forget(0..self.workers);
        if unanswered > 0 {
            *self.report.errors.entry("unanswered".into()).or_default() += unanswered;
        }
        self.active = 0;
    }

    /// What these slots have on their way is no longer waited for; how many requests that were.
    fn forget(&mut self, slots: Range<usize>) -> u64 {
        let mut count = 0;
        for slot in self.slots[slots].iter_mut().filter(|slot| slot.id != 0) {
            slot.id = 0;
            self.ports[self.clients[slot.client].port].awaited -= 1;
            count += 1;
        }
        count
    }

    // What is measured.

    fn open_window(&mut self) -> Result<(), Failure> {
        let mut server_cpu = None;
        self.sample(|process, cpu, memory| {
            process.rss_ready = memory;
            server_cpu = Some(cpu);
        })?;
        for times in [&mut self.latency, &mut self.round_trip, &mut self.hand_off] {
            times.clear();
        }
        let report = &mut self.report;
        (report.operations, report.round_trips, report.stood_in_line, report.not_begun) = (0, 0, 0, 0);
        self.window = Some(Window { began: Instant::now(), own_cpu: process::own_cpu(), server_cpu });
        Ok(())
    }

    fn close_window(&mut self) -> Result<(), Failure> {
        let Some(Window { began, own_cpu, server_cpu }) = self.window.take() else { return Ok(()) };
        let seconds = began.elapsed().as_secs_f64();
        let operations = self.report.operations as f64;
        let load_busy = (process::own_cpu() - own_cpu) / seconds;
        self.sample(|process, cpu, memory| {
            let used = server_cpu.map_or(f64::NAN, |before| cpu.since(before));
            process.rss_after = memory;
            process.cpu = used / 1e6 / seconds;
            process.cpu_us = used / operations.max(1.0);
        })?;
        let report = &mut self.report;
        report.seconds = seconds;
        report.rate = operations / seconds;
        report.load_busy = load_busy;
        report.latency_us = self.latency.percentiles();
        report.round_trip_us =
            if self.script.operation.len() > 1 { self.round_trip.percentiles() } else { None };
        report.hand_off_us = self.hand_off.percentiles();
        Ok(())
    }

    /// Looks at the server's process, if it is known.
    fn sample(&mut self, note: impl FnOnce(&mut Process, Cpu, u64)) -> Result<(), Failure> {
        let Some(pid) = self.plan.server_pid else { return Ok(()) };
        let seen = process::cpu(pid).and_then(|cpu| Ok((cpu, process::memory(pid, "VmRSS")?)));
        let (cpu, memory) = seen.map_err(Failure::Plan)?;
        let none = Process { cpu_us: 0.0, cpu: 0.0, rss_before: 0, rss_ready: 0, rss_after: 0 };
        note(self.report.process.get_or_insert(none), cpu, memory);
        Ok(())
    }

    // Requests.

    /// A slot does what comes next, or is done.
    fn advance(&mut self, index: usize, now: Instant) -> io::Result<()> {
        if self.stage == Stage::Work && self.plan.workload.in_rounds() && self.at_beginning(index) {
            return self.park(now);
        }
        if self.rate().is_some() && self.at_beginning(index) {
            self.active -= 1;
            self.idle.push_back(index);
            return Ok(());
        }
        match self.next(index) {
            Some(call) => self.ask(index, call, now),
            None => {
                self.active -= 1;
                Ok(())
            }
        }
    }

    /// Whether a slot is between two operations.
    fn at_beginning(&self, index: usize) -> bool {
        [0, self.script.operation.len()].contains(&self.slots[index].step)
    }

    /// A slot waits for the others; the last one lets all begin.
    fn park(&mut self, now: Instant) -> io::Result<()> {
        self.active -= 1;
        self.parked += 1;
        if self.parked < self.workers || self.draining {
            return Ok(());
        }
        self.parked = 0;
        self.released = None;
        self.active += self.workers;
        for index in 0..self.workers {
            if let Some(call) = self.next(index) {
                self.ask(index, call, now)?;
            }
        }
        Ok(())
    }

    /// The next call of a slot in this stage.
    fn next(&mut self, index: usize) -> Option<Call> {
        let laps = self.laps(index);
        let slot = &mut self.slots[index];
        let is_first = index.is_multiple_of(self.plan.in_flight);
        let has_session = !self.clients[slot.client].session.is_empty();
        let calls = match self.stage {
            Stage::Open if is_first && !has_session && self.plan.workload != Workload::Ping => {
                return Some(Call::Open);
            }
            Stage::Close if is_first && has_session => return Some(Call::Close),
            Stage::Open | Stage::Close => return None,
            Stage::Prepare => self.script.prepare,
            Stage::Work => self.script.operation,
            Stage::Tidy => self.script.tidy,
        };
        if slot.step == calls.len() {
            slot.step = 0;
            slot.lap += 1;
            slot.turn = slot.lap % laps.max(1);
        }
        let is_over =
            if self.stage == Stage::Work { self.draining && slot.step == 0 } else { slot.lap >= laps };
        if calls.is_empty() || is_over {
            return None;
        }
        slot.step += 1;
        Some(calls[slot.step - 1])
    }

    /// How many names a slot has.
    fn laps(&self, index: usize) -> usize {
        match self.plan.workload {
            Workload::Heartbeat => {
                let (names, slots) = (self.plan.names, self.plan.in_flight);
                names / slots + usize::from(index % slots < names % slots)
            }
            Workload::HandOff | Workload::Several => 1,
            _ => self.plan.names,
        }
    }

    /// Puts the names that a slot asks for now into `names`.
    fn name(&mut self, index: usize) {
        self.names.clear();
        match self.plan.workload {
            Workload::HandOff => self.names.push(0),
            Workload::Several => {
                while self.names.len() < self.plan.together {
                    let name = self.draw() as usize % self.plan.names;
                    if !self.names.contains(&name) {
                        self.names.push(name);
                    }
                }
            }
            Workload::Heartbeat => {
                let most = self.plan.names.div_ceil(self.plan.in_flight);
                self.names.push(index * most + self.slots[index].turn);
            }
            _ => self.names.push(index * self.plan.names + self.slots[index].turn),
        }
    }

    /// A number like a random one (splitmix64).
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) >> 1
    }

    /// Sends a new request of a slot.
    fn ask(&mut self, index: usize, call: Call, now: Instant) -> io::Result<()> {
        self.turn += 1;
        let id = self.turn * self.slots.len() as u64 + index as u64;
        if index < self.workers {
            self.name(index);
        }
        let slot = &mut self.slots[index];
        (slot.call, slot.id, slot.sent, slot.in_line) = (call, id, now, false);
        (slot.copies, slot.refused) = (0, 0);
        slot.due = now + AGAIN_AFTER;
        if slot.step <= 1 && index < self.workers {
            slot.began = now;
        }
        let got = std::mem::take(&mut slot.got);
        let (owner, token) = (slot.client, slot.token);
        let ack = if call.is_logged() { self.acknowledge(owner, id) } else { 0 };
        if call == Call::Release && self.plan.workload == Workload::HandOff {
            self.released = Some(now);
        }
        let client = &self.clients[owner];
        let port = &mut self.ports[client.port];
        let wants_token =
            matches!(call, Call::Release | Call::Put | Call::Append | Call::Delete | Call::DeleteFile);
        let ask = Ask {
            call,
            id,
            session: &client.session,
            ack,
            got,
            names: &self.names,
            owner: (self.plan.in_flight > 1).then_some(index),
            token: if wants_token { token } else { 0 },
            nonce: self.nonce.wrapping_add(owner as u128),
            ttl_ms: u64::try_from(self.plan.ttl.as_millis()).unwrap_or(u64::MAX),
            cookie: &port.cookie,
        };
        let request = &mut self.slots[index].request;
        request.clear();
        self.writer.write(request, &ask);
        port.awaited += 1;
        port.put(request, self.plan.batch)
    }

    /// The `ack` of a request with this id; 0 for none.
    fn acknowledge(&mut self, client: usize, id: u64) -> u64 {
        let in_flight = self.plan.in_flight;
        let owner = &mut self.clients[client];
        owner.unacknowledged += 1;
        if owner.unacknowledged < ACKNOWLEDGE_AFTER.min(in_flight as u64) {
            return 0;
        }
        owner.unacknowledged = 0;
        self.oldest(client).unwrap_or(id)
    }

    /// The oldest logged request that a client has on its way: all before it may be acknowledged.
    fn oldest(&self, client: usize) -> Option<u64> {
        let slots = &self.slots[client * self.plan.in_flight..(client + 1) * self.plan.in_flight];
        slots.iter().filter(|slot| slot.id != 0 && slot.call.is_logged()).map(|slot| slot.id).min()
    }

    /// Sends the heartbeats that are due.
    fn beat(&mut self, now: Instant) -> io::Result<()> {
        let every = match self.plan.workload {
            Workload::Heartbeat => self.plan.every,
            _ => self.plan.ttl / 3,
        };
        while let Some(&(due, client)) = self.beats.front()
            && due <= now
        {
            self.beats.pop_front();
            self.beats.push_back((due + every, client));
            let index = self.workers + client;
            if self.slots[index].id != 0 {
                self.report.skipped += 1;
            } else if self.stage != Stage::Close {
                self.slots[index].began = due;
                self.ask(index, Call::Heartbeat, now)?;
            }
        }
        Ok(())
    }

    /// Sends again what has waited for too long.
    fn send_again(&mut self, now: Instant) -> io::Result<()> {
        for index in 0..self.slots.len() {
            if self.slots[index].id == 0 || self.slots[index].due > now {
                continue;
            }
            let later = 1.0 + (self.draw() % 256) as f64 / 1_024.0;
            let slot = &mut self.slots[index];
            slot.copies += 1;
            self.report.resent += u64::from(!slot.in_line);
            let wait = if slot.in_line { AGAIN_AT_MOST } else { AGAIN_AFTER * (1 << slot.copies.min(4)) };
            slot.due = now + wait.min(AGAIN_AT_MOST).mul_f64(later);
            // What the server keeps for this client may have no room for more until it hears which answers have arrived.
            if slot.refused > 0
                && slot.call.is_logged()
                && let Some(oldest) = self.oldest(self.slots[index].client)
            {
                request::acknowledge(&mut self.slots[index].request, oldest);
            }
            let slot = &self.slots[index];
            self.ports[self.clients[slot.client].port].put(&slot.request, self.plan.batch)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.plan.batch == 1 { Ok(()) } else { self.ports.iter_mut().try_for_each(Port::flush) }
    }
}

/// Lets this process have so many files open, if the system lets it.
fn allow_files(count: u64) -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < count) {
        let more = maximum.map_or(count, |maximum| maximum.min(count));
        setrlimit(Resource::Nofile, Rlimit { current: Some(more), maximum })?;
    }
    Ok(())
}
