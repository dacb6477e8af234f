//! What a seed turns on: a random part of the faults, at random strength, and random sizes.

use crate::server::Settings;
use fastrand::Rng;
use tenure::command::Durability;
use tenure::journal::Way;
use tenure::limits::Limits;
use tenure::turn::Pace;

/// Everything random about a seed that is decided before it runs. Times in microseconds, chances in one of so many.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) clients: usize,
    pub(crate) owners: usize,
    pub(crate) names: usize,
    pub(crate) ttl_ms: (u64, u64),
    /// How long faults happen.
    pub(crate) rough_us: u64,
    pub(crate) think_us: u64,
    pub(crate) settings: Settings,
    // The network, in a thousand datagrams each.
    pub(crate) loss: u64,
    pub(crate) double: u64,
    pub(crate) delay_us: u64,
    pub(crate) late: u64,
    pub(crate) corrupt: u64,
    pub(crate) truncate: u64,
    pub(crate) replay: u64,
    /// Mean time between faults of each kind; 0: never.
    pub(crate) partition_every: u64,
    pub(crate) address_every: u64,
    pub(crate) client_kill_every: u64,
    pub(crate) client_pause_every: u64,
    pub(crate) server_kill_every: u64,
    pub(crate) power_cut_every: u64,
    pub(crate) server_stall_every: u64,
    pub(crate) disk_full_every: u64,
    pub(crate) disk_error_one_in: u64,
    pub(crate) sync_us: u64,
    pub(crate) slow_sync_one_in: u64,
    pub(crate) slow_sync_us: u64,
    pub(crate) bit_rot: bool,
    pub(crate) clock_rates: bool,
    pub(crate) remote: bool,
    // What the clients do.
    pub(crate) modes: bool,
    pub(crate) several: bool,
    pub(crate) nested: bool,
    pub(crate) sections: bool,
    pub(crate) leases: bool,
    /// Keys with TTLs, keys bound to sessions, grants that end after a while whatever their holder does.
    pub(crate) mortal: bool,
}

impl Plan {
    pub(crate) fn draw(rng: &mut Rng) -> Plan {
        let on = |rng: &mut Rng, value: u64| if rng.u8(0..100) < 45 { value } else { 0 };
        let second = 1_000_000;
        let clients = match rng.u8(0..10) {
            0 => rng.usize(15..=40),
            1..=3 => rng.usize(6..=12),
            _ => rng.usize(1..=5),
        };
        let ttl = [(200, 1_000), (1_000, 5_000), (2_000, 10_000), (10_000, 30_000)][rng.usize(0..4)];
        let mut limits = Limits::default();
        if rng.u8(0..4) == 0 {
            limits.sessions = rng.u64(2..=clients as u64 * 3 + 4);
            limits.lock_waits = rng.u64(1..=8);
            limits.waits = rng.u64(2..=20);
            limits.grants = rng.u64(2..=20);
            limits.keys = rng.u64(2..=10);
            limits.files = rng.u64(1..=4);
            limits.replies = rng.u64(4..=40);
            limits.section_writes = rng.u64(1..=6);
            limits.history_events = rng.u64(1..=100);
        }
        let segment_bytes = [16 << 10, 32 << 10, 64 << 10, 256 << 10][rng.usize(0..4)];
        let settings = Settings {
            limits,
            durability: Durability::Sync,
            way: Way::Cached,
            segment_bytes,
            fold_ops: [5, 20, 100, 500][rng.usize(0..4)],
            buffer: [92, 256, 4_096][rng.usize(0..3)],
            pace: Pace::default(),
        };
        let mut plan = Plan {
            clients,
            owners: rng.usize(1..=3),
            names: rng.usize(1..=5),
            ttl_ms: ttl,
            rough_us: rng.u64(5..=40) * second,
            think_us: [2_000, 20_000, 200_000, 1_000_000][rng.usize(0..4)] * (1 + clients as u64 / 8),
            settings,
            loss: on(rng, 10) * rng.u64(0..=30),
            double: on(rng, 10) * rng.u64(0..=20),
            delay_us: [200, 2_000, 20_000, 200_000][rng.usize(0..4)],
            late: on(rng, 100),
            corrupt: on(rng, 20),
            truncate: on(rng, 20),
            replay: on(rng, 20),
            partition_every: on(rng, 6 * second),
            address_every: on(rng, 4 * second),
            client_kill_every: on(rng, 6 * second),
            client_pause_every: on(rng, 4 * second),
            server_kill_every: on(rng, 5 * second),
            power_cut_every: on(rng, 5 * second),
            server_stall_every: on(rng, 5 * second),
            disk_full_every: on(rng, 10 * second),
            disk_error_one_in: if rng.u8(0..5) == 0 { rng.u64(300..=3_000) } else { 0 },
            sync_us: [50, 500, 5_000][rng.usize(0..3)],
            slow_sync_one_in: on(rng, 50),
            slow_sync_us: [100_000, 1_000_000, 5_000_000][rng.usize(0..3)],
            bit_rot: rng.u8(0..3) == 0,
            clock_rates: rng.bool(),
            remote: rng.u8(0..3) == 0,
            modes: rng.bool(),
            several: rng.bool(),
            nested: rng.bool(),
            sections: rng.bool(),
            leases: rng.bool(),
            mortal: false,
        };
        // What was added later is drawn beside, so that the seeds without it go as they did before there was such a thing.
        let mut beside = rng.clone().fork();
        plan.mortal = beside.bool();
        let few = [1, 3, 1_024];
        let (datagrams, commands) = (few[beside.usize(0..3)], few[beside.usize(0..3)]);
        plan.settings.pace = Pace { datagrams, commands, copied: [0, 20, 4_096][beside.usize(0..3)] };
        plan.settings.way = [Way::Cached, Way::Direct][beside.usize(0..2)];
        plan
    }
}
