//! Partitions in the kernel: the server in a network namespace of its own, a pair of virtual interfaces between it and the
//! clients, and `nftables` rules that drop what one side is sent, or the other, or both.

use crate::harness::{
    Life, Oracle, Raw, Sent, Server, Setup, Worker, can_unshare, has, let_pass, mix, poll_until, run_inside,
    seed, skip,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[test]
fn partitions_one_way_and_both_end_leases_when_they_should_and_double_nothing() {
    let tools = ["ip", "nft", "nsenter"].iter().try_for_each(|tool| has(tool));
    match tools.and_then(|()| can_unshare(&["--net"])) {
        Ok(()) => run_inside("partition::in_its_own_network", &["--net"]),
        Err(lack) => skip("partitions in a network namespace", &lack),
    }
}

const CLIENT: &str = "10.77.0.1";
const SERVER: &str = "10.77.0.2";
/// A client that no partition cuts off.
const OTHER: &str = "10.77.0.3";
const TTL_MS: u64 = 2_000;

/// What is lost between the client and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Requests,
    Replies,
    Both,
}

const CUTS: [Cut; 3] = [Cut::Requests, Cut::Replies, Cut::Both];

#[test]
#[ignore = "the test above runs it in namespaces of its own"]
fn in_its_own_network() {
    let network = match Network::make() {
        Ok(network) => network,
        Err(why) => return println!("SKIP: partitions: this machine does not allow them: {why}"),
    };
    let run_by = ["nsenter", "--net", "--target", &network.there.id().to_string(), "--"].map(str::to_owned);
    let setup =
        Setup { log: "info", run_by: run_by.to_vec(), args: vec!["--insecure".into()], ..Setup::default() };
    let mut server = Server::prepare(setup);
    let at: SocketAddr = format!("{SERVER}:0").parse().unwrap();
    server.launch_at(at).unwrap_or_else(|exit| panic!("{}", exit.stderr));
    for cut in CUTS {
        shorter_than_the_lease(&server, &network, cut);
        longer_than_the_lease(&server, &network, cut);
        println!("{cut:?}: leases as they should be");
    }
    soak(&server, &network);
}

/// The server has its replies on this machine go in one piece, which the loopback of most machines takes.
#[test]
fn replies_larger_than_the_loopback_takes_go_in_pieces() {
    match has("ip").and_then(|()| can_unshare(&["--net"])) {
        Ok(()) => run_inside("partition::on_a_narrow_loopback", &["--net"]),
        Err(lack) => skip("a loopback that takes little, in a network namespace", &lack),
    }
}

#[test]
#[ignore = "the test above runs it in namespaces of its own"]
fn on_a_narrow_loopback() {
    let narrow = |mtu: usize| {
        let line = format!("ip link set lo mtu {mtu} up");
        run(Command::new("env").args(line.split(' ')), &line)
    };
    if let Err(why) = narrow(65_536) {
        return println!("SKIP: a loopback that takes little: this machine does not allow it: {why}");
    }
    let value = json!("x".repeat(20_000));
    for together in [1, 20] {
        narrow(65_536).unwrap();
        let server = Server::with(Setup::default());
        let mut raw = server.client(60_000);
        raw.set("large", value.clone());
        narrow(1_500).unwrap();
        // The server finds them all, so that the replies leave together, the large one in their midst. None is asked for again.
        let reads: Vec<Sent> = (0..together)
            .map(|at| raw.prepare("get", json!({"key": if at == together / 2 { "large" } else { "none" }})))
            .collect();
        server.signal(Signal::STOP);
        reads.iter().for_each(|read| raw.send(read));
        server.signal(Signal::CONT);
        for (at, read) in reads.iter().enumerate() {
            let found = if at == together / 2 { &value } else { &Value::Null };
            let reply = raw.listen(read, Duration::from_secs(30)).expect("a reply is lost");
            assert_eq!(&reply.ok()["value"], found, "{at} of {together}");
        }
    }
}

/// A client on one side, with heartbeats and a lock; the file that the lock guards is named like it.
fn holder(server: &Server, lock: &str) -> (Raw, crate::harness::Beats, u64) {
    let mut raw = Raw::bound(server.address(), format!("{CLIENT}:0").parse().unwrap());
    raw.open_session(TTL_MS);
    let beats = raw.beats(Duration::from_millis(TTL_MS / 10));
    let token = raw.acquire(lock);
    raw.append(lock, token, "before\n");
    (raw, beats, token)
}

fn other(server: &Server) -> Raw {
    let mut raw = Raw::bound(server.address(), format!("{OTHER}:0").parse().unwrap());
    raw.open_session(60_000);
    raw
}

/// Half a lease of partition costs nobody anything.
fn shorter_than_the_lease(server: &Server, network: &Network, cut: Cut) {
    let lock = format!("short-{cut:?}");
    let (mut raw, _beats, token) = holder(server, &lock);
    let mut other = other(server);
    network.cut(cut);
    let sent = raw.start("append_file", json!({"file": lock, "token": token, "data": "during\n"}));
    assert_eq!(raw.listen(&sent, Duration::from_millis(TTL_MS / 2)), None);
    network.heal();
    assert_eq!(raw.finish(&sent).ok()["offset"], 7, "the holder still holds");
    assert_eq!(other.read(&lock), "before\nduring\n");
    raw.release(token);
}

/// Who cannot be heard loses its lease, not earlier than it should; who only cannot hear does not.
fn longer_than_the_lease(server: &Server, network: &Network, cut: Cut) {
    let lock = format!("long-{cut:?}");
    let (mut raw, _beats, token) = holder(server, &lock);
    let mut other = other(server);
    let wait = other.stand_in_line(&lock);
    network.cut(cut);
    let began = Instant::now();
    let sent = raw.start("append_file", json!({"file": lock, "token": token, "data": "during\n"}));
    if cut == Cut::Replies {
        assert_eq!(raw.listen(&sent, Duration::from_millis(TTL_MS * 2)), None);
        assert_eq!(other.queue(&lock), [other.client], "a client whose requests arrive lives");
        network.heal();
        assert_eq!(raw.finish(&sent).ok()["offset"], 7, "the outcome of then is told, and once is enough");
        raw.release(token);
        assert!(other.granted(&wait) > token);
        assert_eq!(other.read(&lock), "before\nduring\n");
        return;
    }
    let next = other.granted(&wait);
    let took = began.elapsed();
    assert!(next > token);
    // The last heartbeat before the cut may have come a tenth of a lease earlier.
    assert!(took >= Duration::from_millis(TTL_MS * 4 / 5), "the lease ended after {took:?}");
    other.append(&lock, next, "next\n");
    network.heal();
    let late = raw.finish(&sent);
    assert!(["no_session", "not_holder"].contains(&late.kind().unwrap()), "{}", late.0);
    assert_eq!(other.read(&lock), "before\nnext\n", "the old holder wrote");
    other.release(next);
}

/// Clients that work without pause while partitions of all kinds come and go.
fn soak(server: &Server, network: &Network) {
    const PARTITIONS: usize = 12;
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    let oracle = Arc::new(Oracle::default());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 1..=4 {
            let mut worker = Worker::new(server.address(), &oracle, &["a", "b"], mix(&[seed, number]));
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    worker.section(Life::Long);
                }
            });
        }
        let _guard = StopAtEnd(&stop);
        for number in 0..PARTITIONS {
            let before = oracle.acked_so_far();
            poll_until("progress between partitions", || (oracle.acked_so_far() > before + 10).then_some(()));
            network.cut(CUTS[number % 3]);
            let_pass(rng.u64(200..1_200));
            network.heal();
        }
        let before = oracle.acked_so_far();
        poll_until("progress after the last", || (oracle.acked_so_far() > before + 20).then_some(()));
    });
    let mut raw = other(server);
    let files: BTreeMap<String, String> =
        oracle.files().into_iter().map(|file| (file.clone(), raw.read(&file))).collect();
    let counted = oracle.counters().into_iter();
    let keys = counted.map(|key| (key.clone(), raw.value(&key).as_u64().unwrap_or(0))).collect();
    print!("{PARTITIONS} partitions: ");
    oracle.judge(&files, &keys).assert_clean();
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The two sides. All of it goes with the namespaces.
struct Network {
    /// A process that keeps the server's network.
    there: Child,
}

impl Network {
    fn make() -> Result<Network, String> {
        let there = Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn();
        let network = Network { there: there.map_err(|error| error.to_string())? };
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let of_it = format!("/proc/{}/ns/net", network.there.id());
        poll_until("a network of the server's own", || {
            (std::fs::read_link(&of_it).ok()? != own).then_some(())
        });
        let pid = network.there.id();
        network.here(&format!("ip link add here type veth peer name there netns {pid}"))?;
        for address in [CLIENT, OTHER] {
            network.here(&format!("ip address add {address}/24 dev here"))?;
        }
        network.here("ip link set here up")?;
        network.over_there(&format!("ip address add {SERVER}/24 dev there"))?;
        network.over_there("ip link set lo up")?;
        network.over_there("ip link set there up")?;
        for table in
            ["nft add table ip cut", "nft add chain ip cut in { type filter hook input priority 0 ; }"]
        {
            network.here(table)?;
            network.over_there(table)?;
        }
        Ok(network)
    }

    /// Drops silently, where it arrives, what the client sends or is sent.
    fn cut(&self, cut: Cut) {
        if cut != Cut::Replies {
            self.over_there(&format!("nft add rule ip cut in ip saddr {CLIENT} counter drop")).unwrap();
        }
        if cut != Cut::Requests {
            self.here(&format!("nft add rule ip cut in ip daddr {CLIENT} counter drop")).unwrap();
        }
    }

    /// Takes the rules away; they must have dropped something. Where no request arrives there is no reply to drop.
    fn heal(&self) {
        let sides = [self.here("nft list chain ip cut in"), self.over_there("nft list chain ip cut in")];
        let rules = sides.map(Result::unwrap).concat();
        let dropped = rules.split(" packets ").skip(1).any(|counted| !counted.starts_with("0 "));
        assert!(dropped, "a partition cut nothing off: {rules}");
        self.here("nft flush chain ip cut in").unwrap();
        self.over_there("nft flush chain ip cut in").unwrap();
    }

    fn here(&self, line: &str) -> Result<String, String> {
        run(Command::new("env").args(line.split(' ')), line)
    }

    fn over_there(&self, line: &str) -> Result<String, String> {
        let target = self.there.id().to_string();
        run(Command::new("nsenter").args(["--net", "--target", &target]).args(line.split(' ')), line)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.there.kill();
        let _ = self.there.wait();
    }
}

fn run(command: &mut Command, line: &str) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{line}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
