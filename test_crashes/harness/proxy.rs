//! A bad network between clients and server: it loses, doubles, delays and reorders datagrams, by a seed.
//!
//! What happens to the n-th datagram of a client in one direction depends on the seed, the client's number, the direction
//! and n alone, so that a run can be repeated as far as the programs themselves repeat what they send.

use super::mix;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the threads look whether they are to stop.
const TURN: Duration = Duration::from_millis(20);

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From a client to the server.
    ToServer,
    /// From the server to a client.
    ToClient,
}

/// What is done to the datagrams of one direction. Percentages; 0 is off.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// How many are lost.
    pub(crate) loss: u8,
    /// How many come twice, the second time later.
    pub(crate) double: u8,
    /// How many are held back, so that later ones overtake them.
    pub(crate) reorder: u8,
    /// By how many milliseconds each is delayed: from, to.
    pub(crate) delay_ms: (u64, u64),
}

/// How often each fault has happened in one direction.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Datagrams that arrived at the proxy.
    pub(crate) seen: AtomicU64,
    /// Lost.
    pub(crate) lost: AtomicU64,
    /// Sent twice.
    pub(crate) doubled: AtomicU64,
    /// Delayed.
    pub(crate) delayed: AtomicU64,
    /// Sent on after a datagram that had come later.
    pub(crate) overtaken: AtomicU64,
}

struct Shared {
    seed: u64,
    server: SocketAddr,
    front: UdpSocket,
    faults: Mutex<[Faults; 2]>,
    /// Faults that were on at any time, to be asked for at the end.
    wanted: Mutex<[Faults; 2]>,
    counts: [Counts; 2],
    /// The way to the server of each client, by the client's address.
    flows: Mutex<BTreeMap<SocketAddr, Arc<UdpSocket>>>,
    made: AtomicU64,
    stop: AtomicBool,
}

/// A datagram that waits to be sent on. The heap gives the one due first.
struct Held {
    due: Instant,
    number: u64,
    direction: Direction,
    client: SocketAddr,
    way: Arc<UdpSocket>,
    bytes: Vec<u8>,
}

impl PartialEq for Held {
    fn eq(&self, other: &Held) -> bool {
        (self.due, self.number) == (other.due, other.number)
    }
}
impl Eq for Held {}
impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Held) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Held {
    fn cmp(&self, other: &Held) -> std::cmp::Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

/// The proxy. Clients send to its [`address`](Proxy::address).
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// A proxy before a server, without faults.
    pub(crate) fn start(server: SocketAddr, seed: u64) -> Proxy {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        front.set_read_timeout(Some(TURN)).unwrap();
        let shared = Arc::new(Shared {
            seed,
            server,
            front,
            faults: Mutex::default(),
            wanted: Mutex::default(),
            counts: Default::default(),
            flows: Mutex::default(),
            made: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let (hold, held) = mpsc::channel::<Held>();
        let (for_front, for_sender) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            std::thread::spawn(move || for_front.carry_to_server(&hold)),
            std::thread::spawn(move || for_sender.send_when_due(&held)),
        ];
        Proxy { shared, threads }
    }

    /// Where clients are to send.
    pub(crate) fn address(&self) -> SocketAddr {
        self.shared.front.local_addr().unwrap()
    }

    /// Sets the faults of one direction from now on.
    pub(crate) fn set(&self, direction: Direction, faults: Faults) {
        self.shared.faults.lock().unwrap()[direction as usize] = faults;
        let wanted = &mut self.shared.wanted.lock().unwrap()[direction as usize];
        wanted.loss = wanted.loss.max(faults.loss);
        wanted.double = wanted.double.max(faults.double);
        wanted.reorder = wanted.reorder.max(faults.reorder);
        wanted.delay_ms.1 = wanted.delay_ms.1.max(faults.delay_ms.1);
    }

    /// Loses everything in one direction from now on.
    pub(crate) fn cut(&self, direction: Direction) {
        self.set(direction, Faults { loss: 100, ..Faults::default() });
    }

    /// Gives every client another port on the server's side from its next datagram on, as an address translator does.
    /// What comes back to the old port still arrives.
    pub(crate) fn change_ports(&self) {
        self.shared.flows.lock().unwrap().clear();
    }

    /// How often each fault has happened.
    pub(crate) fn counts(&self, direction: Direction) -> &Counts {
        &self.shared.counts[direction as usize]
    }

    /// Fails the test if a fault that was on has never happened: then the test tested nothing. Prints the counts.
    pub(crate) fn assert_fired(&self) {
        for direction in [Direction::ToServer, Direction::ToClient] {
            let wanted = self.shared.wanted.lock().unwrap()[direction as usize];
            let counts = self.counts(direction);
            println!("{direction:?}: {counts:?}");
            for (on, count, name) in [
                (wanted.loss > 0, &counts.lost, "loss"),
                (wanted.double > 0, &counts.doubled, "doubling"),
                (wanted.reorder > 0, &counts.overtaken, "reordering"),
                (wanted.delay_ms.1 > 0, &counts.delayed, "delay"),
            ] {
                assert!(
                    !on || count.load(Ordering::Relaxed) > 0,
                    "{name} {direction:?} was on and never happened"
                );
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there is printed there; here it must not hide the test's own.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn carry_to_server(self: &Arc<Shared>, hold: &Sender<Held>) {
        let mut ways = Vec::new();
        let mut numbers: BTreeMap<SocketAddr, (u64, fastrand::Rng)> = BTreeMap::new();
        let mut buffer = vec![0; 65_536];
        while !self.stop.load(Ordering::Relaxed) {
            let Ok((length, client)) = self.front.recv_from(&mut buffer) else { continue };
            let known = numbers.len() as u64;
            let (flow, rng) =
                numbers.entry(client).or_insert_with(|| (known, self.rng(known, Direction::ToServer)));
            let way = Arc::clone(self.flows.lock().unwrap().entry(client).or_insert_with(|| {
                let way = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
                way.set_read_timeout(Some(TURN)).unwrap();
                let (shared, hold, back, flow) = (Arc::clone(self), hold.clone(), Arc::clone(&way), *flow);
                ways.push(std::thread::spawn(move || shared.carry_to_client(&hold, &back, client, flow)));
                way
            }));
            self.judge(rng, hold, Direction::ToServer, client, &way, &buffer[..length]);
        }
        for thread in ways {
            thread.join().unwrap();
        }
    }

    fn carry_to_client(&self, hold: &Sender<Held>, way: &Arc<UdpSocket>, client: SocketAddr, flow: u64) {
        let mut rng = self.rng(flow, Direction::ToClient);
        let mut buffer = vec![0; 65_536];
        while !self.stop.load(Ordering::Relaxed) {
            let Ok((length, _)) = way.recv_from(&mut buffer) else { continue };
            self.judge(&mut rng, hold, Direction::ToClient, client, way, &buffer[..length]);
        }
    }

    fn rng(&self, flow: u64, direction: Direction) -> fastrand::Rng {
        fastrand::Rng::with_seed(mix(&[self.seed, flow, direction as u64]))
    }

    /// Decides what happens to a datagram. Draws the same numbers whatever is on, so that faults do not shift each other.
    fn judge(
        &self,
        rng: &mut fastrand::Rng,
        hold: &Sender<Held>,
        direction: Direction,
        client: SocketAddr,
        way: &Arc<UdpSocket>,
        bytes: &[u8],
    ) {
        let faults = self.faults.lock().unwrap()[direction as usize];
        let counts = &self.counts[direction as usize];
        counts.seen.fetch_add(1, Ordering::Relaxed);
        let [loss, double, reorder] = [rng.u8(0..100), rng.u8(0..100), rng.u8(0..100)];
        let (least, most) = faults.delay_ms;
        let mut delay =
            Duration::from_millis(least + rng.u64(0..=1 << 20) % (most.saturating_sub(least) + 1));
        if loss < faults.loss {
            counts.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if !delay.is_zero() {
            counts.delayed.fetch_add(1, Ordering::Relaxed);
        }
        if reorder < faults.reorder {
            delay += Duration::from_millis(most + 20);
        }
        let submit = |delay| {
            let number = self.made.fetch_add(1, Ordering::Relaxed);
            let (way, bytes) = (Arc::clone(way), bytes.to_vec());
            // If the sending thread is gone, the test is over.
            let _ = hold.send(Held { due: Instant::now() + delay, number, direction, client, way, bytes });
        };
        submit(delay);
        if double < faults.double {
            counts.doubled.fetch_add(1, Ordering::Relaxed);
            submit(delay + Duration::from_millis(most + 10));
        }
    }

    fn send_when_due(&self, held: &mpsc::Receiver<Held>) {
        let mut heap: BinaryHeap<Held> = BinaryHeap::new();
        let mut latest: BTreeMap<(SocketAddr, bool), u64> = BTreeMap::new();
        while !self.stop.load(Ordering::Relaxed) {
            let pause =
                heap.peek().map_or(TURN, |next| next.due.saturating_duration_since(Instant::now()).min(TURN));
            match held.recv_timeout(pause) {
                Ok(next) => heap.push(next),
                Err(RecvTimeoutError::Timeout) => {}
                // All carriers have ended.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while heap.peek().is_some_and(|next| next.due <= Instant::now()) {
                let next = heap.pop().expect("it was just seen");
                let to_server = next.direction == Direction::ToServer;
                let newest = latest.entry((next.client, to_server)).or_insert(0);
                if next.number < *newest {
                    self.counts[next.direction as usize].overtaken.fetch_add(1, Ordering::Relaxed);
                }
                *newest = next.number.max(*newest);
                // A datagram that could not be sent is a lost datagram.
                let _ = match to_server {
                    true => next.way.send_to(&next.bytes, self.server),
                    false => self.front.send_to(&next.bytes, next.client),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Sends `count` numbered datagrams through a proxy to a sink and gives the numbers in the order of their arrival.
    fn through(faults: Faults, seed: u64, count: u32) -> (Vec<u32>, Proxy) {
        let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
        sink.set_read_timeout(Some(Duration::from_millis(1_500))).unwrap();
        let proxy = Proxy::start(sink.local_addr().unwrap(), seed);
        proxy.set(Direction::ToServer, faults);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for number in 0..count {
            socket.send_to(&number.to_be_bytes(), proxy.address()).unwrap();
            std::thread::sleep(Duration::from_micros(500));
        }
        let mut buffer = [0; 4];
        let mut arrived = Vec::new();
        while sink.recv(&mut buffer).is_ok() {
            arrived.push(u32::from_be_bytes(buffer));
        }
        (arrived, proxy)
    }

    #[test]
    fn a_proxy_without_faults_passes_everything_on_in_order() {
        let (arrived, proxy) = through(Faults::default(), 1, 50);
        assert_eq!(arrived, (0..50).collect::<Vec<_>>());
        proxy.assert_fired();
    }

    #[test]
    fn a_proxy_loses_doubles_delays_and_reorders_what_it_was_told_to() {
        let faults = Faults { loss: 20, double: 20, reorder: 20, delay_ms: (1, 5) };
        let (arrived, proxy) = through(faults, 7, 200);
        proxy.assert_fired();
        let kinds: BTreeSet<u32> = arrived.iter().copied().collect();
        let counts = proxy.counts(Direction::ToServer);
        let (lost, doubled) = (counts.lost.load(Ordering::Relaxed), counts.doubled.load(Ordering::Relaxed));
        assert_eq!(kinds.len() as u64, 200 - lost);
        assert_eq!(arrived.len() as u64, 200 - lost + doubled);
        assert!(!arrived.is_sorted(), "nothing was overtaken");
    }

    #[test]
    fn a_proxy_loses_the_same_datagrams_again_under_the_same_seed() {
        let faults = Faults { loss: 30, ..Faults::default() };
        let lost = |seed| through(faults, seed, 60).0;
        assert_eq!(lost(3), lost(3));
        assert_ne!(lost(3), lost(4));
    }

    #[test]
    #[should_panic(expected = "loss ToServer was on and never happened")]
    fn a_fault_that_never_happened_fails_the_test() {
        through(Faults { loss: 1, ..Faults::default() }, 1, 0).1.assert_fired();
    }
}
