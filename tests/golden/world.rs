//! The world of a script: one node, its clients, its log, its files and its clock.

use crate::disk::Disk;
use crate::memory_log::MemoryLog;
use crate::request::{Asker, Short, build, micros, split};
use crate::show::{self, Names};
use goldenscript::{Argument, Command, Context};
use serde_json::Value;
use std::collections::BTreeMap;
use std::error::Error;
use std::net::SocketAddr;
use tenure::command::{self, Durability};
use tenure::datagram;
use tenure::identity::SessionId;
use tenure::limits::Limits;
use tenure::log::Room;
use tenure::name::Name;
use tenure::node::{FileWork, Node, Transmit};
use tenure::proof::Secrets;
use tenure::state::State;
use tenure::time::Time;

/// Everything that a script can touch.
pub(crate) struct World {
    now: Time,
    /// Where `advance` began, while it runs: lines then show how long after that they came.
    since: Option<Time>,
    node: Node,
    run: u8,
    limits: Limits,
    durability: Durability,
    log: MemoryLog,
    disk: Disk,
    clients: BTreeMap<String, Client>,
    names: Names,
    /// The last `next` that a page told.
    cursor: Option<String>,
    raw: bool,
    out: Vec<String>,
}

struct Client {
    address: SocketAddr,
    session: Option<SessionId>,
    number: u64,
    nonce: u32,
    cookie: Option<String>,
    next_id: u64,
    /// What was sent, by the id it was sent under.
    sent: BTreeMap<String, Vec<u8>>,
    last: Vec<u8>,
    /// Whether what comes now is lost on the way.
    deaf: bool,
    heard: bool,
}

/// How often the node may ask to be woken at one moment before that counts as spinning.
const SPINS_MAX: usize = 10_000;

impl World {
    pub(crate) fn new() -> World {
        let limits = Limits::default();
        let node = new_node(Time::ZERO, State::new(), &limits, Durability::Sync, false, 1);
        let mut world = World {
            now: Time::ZERO,
            since: None,
            node,
            run: 1,
            limits,
            durability: Durability::Sync,
            log: MemoryLog::new(),
            disk: Disk::default(),
            clients: BTreeMap::new(),
            names: Names::default(),
            cursor: None,
            raw: false,
            out: Vec::new(),
        };
        world.drain();
        world
    }

    fn execute(&mut self, command: &Command) -> Result<(), Box<dyn Error>> {
        if command.name.starts_with(|c: char| c.is_ascii_uppercase()) {
            return self.client(&command.name, &command.args);
        }
        let (places, named) = arguments(&command.args);
        let words: Vec<&str> = places.iter().map(String::as_str).collect();
        match (command.name.as_str(), &words[..]) {
            ("server", []) => self.server(&named)?,
            ("advance", [span]) => self.advance(micros(span)?),
            ("late", [span]) => self.now = self.now.after_us(micros(span)?),
            ("log", ["hold"]) => self.log.held = true,
            ("log", ["commit"]) => {
                let seq = self.log.commit().ok_or("nothing is in flight")?;
                self.node.handle_committed(self.now, seq);
            }
            ("log", ["flow"]) => {
                self.log.held = false;
                while let Some(seq) = self.log.commit() {
                    self.node.handle_committed(self.now, seq);
                    self.drain();
                }
            }
            ("snapshot", []) => self.log.take_snapshot(),
            ("crash", []) => self.start(named.contains_key("unclean")),
            ("restart", []) => {
                self.node.drain();
                self.drain();
                while let Some(seq) = self.log.commit() {
                    self.node.handle_committed(self.now, seq);
                    self.drain();
                }
                assert!(self.node.is_idle(), "a server that stops has finished what it took in");
                self.log.take_snapshot();
                self.start(false);
            }
            ("drain", []) => self.node.drain(),
            ("room", [room]) => {
                let room = match *room {
                    "ok" => Room::Ok,
                    "low" => Room::Low,
                    "full" => Room::Full,
                    other => return Err(format!("no such room: {other}").into()),
                };
                self.node.set_room(self.now, room);
            }
            ("files", ["full"]) => self.node.set_files_full(true),
            ("files", ["ok"]) => self.node.set_files_full(false),
            ("pending", [bytes]) => self.node.set_file_bytes_pending(bytes.parse()?),
            ("disk", []) => {
                let shown = self.disk.show();
                self.say(shown);
            }
            ("disk", ["fail", file]) => self.disk.fail(file),
            ("disk", ["heal", file]) => self.disk.heal(file),
            ("disk", ["edit", file, text]) => self.disk.edit(file, text),
            ("notice", [file]) => self.notice(file, "the file was changed by somebody else")?,
            ("state", []) => {
                let counts = self.node.state().counts();
                let counts: Vec<_> =
                    counts.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name}={n}")).collect();
                self.say(format!("op={} {}", self.node.state().op(), counts.join(" ")));
            }
            ("wake", []) => {
                let wake = match self.node.poll_timeout() {
                    Some(at) => format!("in {:?}", std::time::Duration::from_micros(at.us_since(self.now))),
                    None => "never".into(),
                };
                self.say(wake);
            }
            _ => return Err(format!("no such command: {command}").into()),
        }
        self.drain();
        Ok(())
    }

    /// A fresh server with limits of its own.
    fn server(&mut self, named: &BTreeMap<String, Vec<String>>) -> Result<(), Box<dyn Error>> {
        let mut limits = serde_json::to_value(Limits::default())?;
        for (name, values) in named {
            let known = limits.get_mut(name).ok_or_else(|| format!("no such limit: {name}"))?;
            *known = values[0].parse::<u64>()?.into();
        }
        *self = World::new();
        self.limits = serde_json::from_value(limits)?;
        self.log = MemoryLog::new();
        self.node = new_node(self.now, State::new(), &self.limits, self.durability, false, self.run);
        Ok(())
    }

    /// Starts a server again: what was in flight is gone, and log time goes on from the last record.
    fn start(&mut self, raised: bool) {
        let lost: usize = self.log.in_flight.iter().map(|batch| batch.entries.len()).sum();
        let state = self.log.recover();
        self.now = state.at();
        self.run += 1;
        self.log.held = false;
        self.node = new_node(self.now, state, &self.limits, self.durability, raised, self.run);
        if lost > 0 {
            self.say(format!("lost with the crash: {lost}"));
        }
        self.drain();
        let head = self.node.state().head().clone();
        self.say(format!(
            "term {} begins with op {}, {}s into the log",
            head.term,
            head.op,
            seconds(self.now)
        ));
    }

    /// Lets time pass, stopping where the node asks to be woken.
    fn advance(&mut self, micros: u64) {
        let target = self.now.after_us(micros);
        self.since = Some(self.now);
        let (mut spins, mut before) = (0, self.now);
        while let Some(wake) = self.node.poll_timeout().filter(|wake| *wake <= target) {
            self.now = self.now.max(wake);
            spins = if self.now > before { 0 } else { spins + 1 };
            before = self.now;
            assert!(spins < SPINS_MAX, "the node asks again and again to be woken at {}", self.now);
            self.node.handle_timeout(self.now);
            self.drain();
        }
        self.now = target;
        self.since = None;
    }

    fn client(&mut self, name: &str, args: &[Argument]) -> Result<(), Box<dyn Error>> {
        if !self.clients.contains_key(name) {
            let port = 1_001 + self.clients.len() as u16;
            let client = Client {
                address: SocketAddr::from(([127, 0, 0, 1], port)),
                session: None,
                number: 0,
                nonce: 0,
                cookie: None,
                next_id: 1,
                sent: BTreeMap::new(),
                last: Vec::new(),
                deaf: false,
                heard: false,
            };
            self.names.secrets.insert(client.address.to_string(), format!("{name}'s"));
            self.clients.insert(name.into(), client);
        }
        let (mut places, named) = arguments(args);
        if places.is_empty() {
            return Err("what does the client do?".into());
        }
        let mut short = Short { word: places.remove(0), places, named };
        let bytes = match (short.word.as_str(), &short.places[..]) {
            ("from", [address]) => {
                let client = self.clients.get_mut(name).expect("it is there");
                client.address = address.parse()?;
                self.names.secrets.insert(client.address.to_string(), format!("{name}'s"));
                return Ok(());
            }
            ("resend", places) => {
                let client = &self.clients[name];
                let mut bytes = match places.first() {
                    None => client.last.clone(),
                    Some(id) => {
                        client.sent.get(id).ok_or_else(|| format!("nothing was sent as {id}"))?.clone()
                    }
                };
                if let Some(bit) = short.named.get("flip") {
                    let bit: usize = bit[0].parse()?;
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
                bytes
            }
            ("bytes", [text]) => {
                text.chars().map(|c| u8::try_from(u32::from(c))).collect::<Result<_, _>>()?
            }
            ("send", [text]) => {
                let mut text = text.clone();
                for (name, client) in &self.clients {
                    if let Some(session) = client.session {
                        text = text.replace(&format!("${name}"), &session.to_string());
                    }
                }
                let mut bytes = text.into_bytes();
                if short.named.contains_key("sealed") {
                    datagram::seal(&mut bytes);
                }
                self.remember(name, "send", bytes)
            }
            ("batch", _) => {
                let elements = short.places.clone();
                let built: Result<Vec<_>, String> = elements
                    .iter()
                    .map(|element| self.build(name, &split(element)).map(|built| built.1))
                    .collect();
                let mut bytes = format!("[{}]", built?.join(",")).into_bytes();
                if short.named.contains_key("sealed") {
                    datagram::seal(&mut bytes);
                }
                self.remember(name, "batch", bytes)
            }
            ("repeat", [times, ..]) => return self.repeat(name, times.parse()?, &short),
            ("status", _) => return self.status(name, &short),
            ("lose", [id]) => {
                let bytes = self.clients[name]
                    .sent
                    .get(id)
                    .ok_or_else(|| format!("nothing was sent as {id}"))?
                    .clone();
                self.clients.get_mut(name).expect("it is there").deaf = true;
                bytes
            }
            ("lose", []) => {
                // Only what comes later is lost: the script says when the client hears again.
                self.clients.get_mut(name).expect("it is there").deaf = true;
                return Ok(());
            }
            ("hear", []) => {
                self.clients.get_mut(name).expect("it is there").deaf = false;
                return Ok(());
            }
            _ => {
                let sealed = short.named.remove("sealed").is_some();
                let renew = short.word == "open" && short.named.remove("anew").is_some();
                let client = self.clients.get_mut(name).expect("it is there");
                client.nonce += u32::from(renew);
                let (id, text) = self.build(name, &short)?;
                let mut bytes = text.into_bytes();
                if sealed {
                    datagram::seal(&mut bytes);
                }
                self.remember(name, &id, bytes)
            }
        };
        self.hand_over(name, &bytes);
        Ok(())
    }

    /// Sends a datagram, and says so if nothing comes back.
    fn hand_over(&mut self, name: &str, bytes: &[u8]) {
        let client = self.clients.get_mut(name).expect("it is there");
        client.heard = false;
        let address = client.address;
        self.node.handle_datagram(self.now, address, bytes);
        self.drain();
        if !self.clients[name].heard {
            self.say(format!("{name} hears nothing"));
        }
    }

    fn build(&mut self, name: &str, short: &Short) -> Result<(String, String), String> {
        let sessions = self
            .clients
            .iter()
            .filter_map(|(name, client)| Some((name.clone(), (client.session?, client.number))))
            .collect();
        let client = self.clients.get_mut(name).expect("it is there");
        let nonce = name.bytes().fold(u128::from(client.nonce), |nonce, byte| nonce << 8 | u128::from(byte));
        let mut asker = Asker {
            session: client.session,
            nonce: format!("{nonce:032x}"),
            cookie: client.cookie.clone(),
            next_id: &mut client.next_id,
            cursor: self.cursor.clone(),
            sessions,
        };
        let built = build(short, &mut asker)?;
        Ok((built.id.trim_matches('"').to_owned(), built.text))
    }

    fn remember(&mut self, name: &str, id: &str, bytes: Vec<u8>) -> Vec<u8> {
        let client = self.clients.get_mut(name).expect("it is there");
        client.sent.insert(id.to_owned(), bytes.clone());
        client.last = bytes.clone();
        bytes
    }

    /// Sends one short command many times under rising ids, and shows only the last answer.
    fn repeat(&mut self, name: &str, times: usize, short: &Short) -> Result<(), Box<dyn Error>> {
        let inner = Short {
            word: short.places[1].clone(),
            places: short.places[2..].to_vec(),
            named: short.named.clone(),
        };
        for time in 1..=times {
            // A `%` in an argument is the number of the repetition, so that names can differ.
            let mut inner = inner.clone();
            let named = inner.named.values_mut().flatten();
            inner
                .places
                .iter_mut()
                .chain(named)
                .for_each(|place| *place = place.replace('%', &time.to_string()));
            let (id, text) = self.build(name, &inner)?;
            let bytes = self.remember(name, &id, text.into_bytes());
            let shown = self.out.len();
            self.hand_over(name, &bytes);
            if time < times {
                self.out.truncate(shown);
            }
        }
        Ok(())
    }

    /// Shows the figures of `status` that the script names, as `counts.verify`.
    fn status(&mut self, name: &str, short: &Short) -> Result<(), Box<dyn Error>> {
        let address = self.clients[name].address;
        let text = br#"{"jsonrpc":"2.0","id":1,"method":"status","params":{}}"#;
        self.node.handle_datagram(self.now, address, text);
        let reply = self.node.poll_transmit().ok_or("status was not answered")?;
        let reply: Value = serde_json::from_slice(&reply.bytes)?;
        let figures: Vec<_> = short
            .places
            .iter()
            .map(|path| {
                let pointer = format!("/result/{}", path.replace('.', "/"));
                format!("{path}={}", reply.pointer(&pointer).unwrap_or(&Value::Null))
            })
            .collect();
        self.say(figures.join(" "));
        Ok(())
    }

    /// Somebody finds that a file is not what the log says.
    fn notice(&mut self, file: &str, reason: &str) -> Result<(), Box<dyn Error>> {
        let generation = self.node.state().file(file).ok_or("there is no such file")?.generation;
        let file = Name::file(file).map_err(|refusal| refusal.message)?;
        self.node.handle_file_fault(self.now, file, generation, reason.into());
        Ok(())
    }

    /// Takes everything out of the node and does it.
    fn drain(&mut self) {
        loop {
            if let Some(batch) = self.node.poll_batch() {
                if self.log.held {
                    let commands: Vec<_> = batch.entries.iter().map(|entry| word(&entry.command)).collect();
                    self.say(format!("the log holds op {}: {}", batch.first_op, shorten(&commands)));
                }
                self.log.submit(batch);
                if !self.log.held
                    && let Some(seq) = self.log.commit()
                {
                    self.node.handle_committed(self.now, seq);
                }
            } else if let Some(work) = self.node.poll_file_work() {
                self.work(work);
            } else if let Some(transmit) = self.node.poll_transmit() {
                self.receive(transmit);
            } else {
                return;
            }
        }
    }

    fn work(&mut self, work: FileWork) {
        match work {
            FileWork::Apply(effect) => {
                if let Err(reason) = self.disk.apply(&effect) {
                    self.say(format!("disk: {}: {reason}", effect.file));
                    self.node.handle_file_fault(self.now, effect.file, effect.generation, reason);
                }
            }
            FileWork::Read { tag, file, offset, count, .. } => {
                let read = self.disk.read(&file, offset, count);
                self.node.handle_file_read(tag, read);
            }
            FileWork::Look { tag, file, .. } => {
                let found = match self.disk.is_failing(&file) {
                    true => Err("the disk reports an input/output error".into()),
                    false => Ok(self.disk.mend(&file)),
                };
                self.say(format!("disk: somebody looks at {file}"));
                self.node.handle_file_look(self.now, tag, found);
            }
        }
    }

    /// A datagram arrives at whoever has that address.
    fn receive(&mut self, transmit: Transmit) {
        let opened = datagram::open(&transmit.bytes).expect("the server sends what it would read itself");
        let value: Value = serde_json::from_slice(opened.message).expect("the server sends JSON");
        let sealed = if opened.sealed { " (sealed)" } else { "" };
        let name = self
            .clients
            .iter()
            .find(|(_, client)| client.address == transmit.to)
            .map(|(name, _)| name.clone());
        let Some(name) = name else {
            for line in show::message(&value, &self.names) {
                self.say(format!("{} ✗ {line}", transmit.to));
            }
            return;
        };
        let deaf = self.clients[&name].deaf;
        if !deaf {
            match &value {
                Value::Array(elements) => elements.iter().for_each(|element| self.learn(&name, element)),
                value => self.learn(&name, value),
            }
        }
        let client = self.clients.get_mut(&name).expect("it is there");
        client.heard = true;
        let arrow = if deaf { "✗" } else { "←" };
        let lines = match self.raw {
            true => vec![String::from_utf8_lossy(&transmit.bytes).replace('\n', "\\n")],
            false => show::message(&value, &self.names),
        };
        for (index, line) in lines.into_iter().enumerate() {
            let sealed = if index == 0 { sealed } else { "" };
            self.say(format!("{name} {arrow}{sealed} {line}"));
        }
    }

    /// What a client remembers of a reply: its session, the cookie, where the next page begins.
    fn learn(&mut self, name: &str, reply: &Value) {
        if let (Some(session), Some(number)) =
            (reply.pointer("/result/session"), reply.pointer("/result/client"))
        {
            let text = session.as_str().expect("a session id is text");
            let client = self.clients.get_mut(name).expect("it is there");
            let session = text.parse().expect("a session id is hex");
            if client.session != Some(session) {
                client.session = Some(session);
                client.next_id = 1;
            }
            client.number = number.as_u64().expect("a client has a number");
            self.names.secrets.insert(text.into(), name.into());
            self.names.clients.insert(client.number, name.into());
        }
        if let Some(Value::String(cookie)) = reply.pointer("/error/data/cookie") {
            self.clients.get_mut(name).expect("it is there").cookie = Some(cookie.clone());
            self.names.secrets.insert(cookie.clone(), "…".into());
        }
        if let Some(Value::String(next)) = reply.pointer("/result/next") {
            self.cursor = Some(next.clone());
        }
    }

    fn say(&mut self, line: impl Into<String>) {
        let line = line.into();
        self.out.push(match self.since {
            Some(since) => format!("+{}s {line}", seconds(Time::from_micros(self.now.us_since(since)))),
            None => line,
        });
    }
}

impl goldenscript::Runner for World {
    type Command = Command;

    fn run(&mut self, command: &Command, context: &Context) -> Result<String, Box<dyn Error>> {
        self.raw = context.tags.contains("raw");
        self.execute(command)?;
        Ok(std::mem::take(&mut self.out).join("\n"))
    }
}

fn new_node(now: Time, state: State, limits: &Limits, durability: Durability, raised: bool, run: u8) -> Node {
    let secrets = Secrets { cookie: [run; 16], session: [run; 16] };
    Node::new(now, state, limits.clone(), durability, raised, secrets, 1 << 20)
}

fn arguments(args: &[Argument]) -> (Vec<String>, BTreeMap<String, Vec<String>>) {
    let (mut places, mut named) = (Vec::new(), BTreeMap::<String, Vec<String>>::new());
    for argument in args {
        match argument {
            Argument::Positional(value) => places.push(value.clone()),
            Argument::KeyValue(name, value) if name.contains('@') => places.push(format!("{name}={value}")),
            Argument::KeyValue(name, value) => named.entry(name.clone()).or_default().push(value.clone()),
            other => panic!("an argument that is neither: {other}"),
        }
    }
    (places, named)
}

/// What a command does, in a word.
fn word(command: &command::Command) -> &'static str {
    match command {
        command::Command::NewTerm { .. } => "new_term",
        command::Command::OpenSession { .. } => "open_session",
        command::Command::EndSession { .. } => "end_session",
        command::Command::Tick => "tick",
        command::Command::FileFault { .. } => "file_fault",
        command::Command::Request(request) => match &request.call {
            command::Call::Acquire { .. } => "acquire_lock",
            command::Call::CancelWait { .. } => "cancel_wait",
            command::Call::Release { .. } => "release_lock",
            command::Call::Abandon { .. } => "abandon",
            command::Call::RenewLease { .. } => "renew_lease",
            command::Call::Set { .. } => "set",
            command::Call::Delete { .. } => "delete",
            command::Call::AppendFile { .. } => "append_file",
            command::Call::DeleteFile { .. } => "delete_file",
            command::Call::RotateFile { .. } => "rotate_file",
            command::Call::RepairFile { .. } => "repair_file",
            command::Call::Convert { .. } => "convert_lock",
            command::Call::HandOver { .. } => "hand_over",
            command::Call::TakeOver { .. } => "take_over",
            command::Call::BreakLock { .. } => "break_lock",
            command::Call::AskRelease { .. } => "ask_release",
            command::Call::Transaction { .. } => "transaction",
        },
    }
}

/// A list of words, the long ones cut.
fn shorten(words: &[&str]) -> String {
    match words {
        [first, .., last] if words.len() > 6 => format!("{first} … {last}, {} commands", words.len()),
        words => words.join(", "),
    }
}

/// Seconds with as many digits as it takes.
fn seconds(time: Time) -> String {
    let text = time.to_string();
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
