//! What the disk alone allows: records written in groups, each group synced before the next.

use crate::figures::{Figures, Time};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

/// What is written over, again and again: its blocks exist, so a sync writes data and nothing else.
const ROOM: u64 = 16 << 20;

/// Records a second, if so many of them share a sync: what no journal on this disk can pass with that many clients.
pub fn group_commit(dir: &Path, records: usize, bytes: usize, time: &Time) -> Result<Figures, String> {
    let measure = || -> std::io::Result<Figures> {
        let file = tempfile::tempfile_in(dir)?;
        for at in (0..ROOM).step_by(1 << 20) {
            file.write_all_at(&vec![0; 1 << 20], at)?;
        }
        file.sync_all()?;
        let group = vec![b'x'; records * bytes];
        let mut times = Vec::new();
        let (began, mut at) = (Instant::now(), 0);
        while began.elapsed() < time.measured {
            let one = Instant::now();
            file.write_all_at(&group, at)?;
            file.sync_data()?;
            times.push(one.elapsed().as_secs_f64() * 1e6);
            at = (at + group.len() as u64) % (ROOM - group.len() as u64);
        }
        let seconds = began.elapsed().as_secs_f64();
        times.sort_by(f64::total_cmp);
        let at = |part: f64| times[((times.len() as f64 * part) as usize).min(times.len() - 1)];
        let rate = (times.len() * records) as f64 / seconds;
        Ok(Figures { rate, p50_us: at(0.5), p99_us: at(0.99), ..Figures::NONE })
    };
    measure().map_err(|error| format!("the disk cannot be measured: {error}"))
}
