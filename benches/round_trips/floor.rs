//! What the machine itself takes: a datagram there and back, and a sync of the disk.

use crate::common;
use crate::common::machine::Cores;
use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tenure::bench::report::{Process, Report};
use tenure::bench::{Plan, Workload, process};

/// What a request has behind its id, and what takes its place in the answer.
const REQUEST: &[u8] = br#","method":"ping"}"#;
const ANSWER: &[u8] = br#","result":{}}"#;

/// Pings against a thread that answers with their id, and does nothing else.
pub(crate) fn echo(clients: usize, time: Duration, cores: &Cores) -> Result<Report, String> {
    let socket = UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| {
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(socket)
        })
        .map_err(|error| format!("no socket for the echo: {error}"))?;
    let address = socket.local_addr().map_err(|error| error.to_string())?;
    let over = Arc::new(AtomicBool::new(false));
    let echo = cores.on_the_servers(|| {
        let over = over.clone();
        thread::spawn(move || {
            let (mut buffer, mut answered) = ([0; 2048], 0_u64);
            while !over.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let request = &buffer[..length];
                let Some(end) = request.windows(REQUEST.len()).position(|part| part == REQUEST) else {
                    continue;
                };
                buffer[end..end + ANSWER.len()].copy_from_slice(ANSWER);
                let _ = socket.send_to(&buffer[..end + ANSWER.len()], from);
                answered += 1;
            }
            process::own_cpu() * 1e6 / answered.max(1) as f64
        })
    });
    let report = common::load(time, Plan { clients, ..Plan::new(address, Workload::Ping) });
    over.store(true, Ordering::Relaxed);
    let cpu_us = echo.join().map_err(|_| "the echo panicked".to_owned())?;
    let process = Process { cpu_us, cpu: f64::NAN, rss_before: 0, rss_ready: 0, rss_after: 0 };
    report.map(|report| Report { process: Some(process), ..report })
}

/// The median time to write 512 bytes over zeroes and sync them, in microseconds.
pub(crate) fn fdatasync(dir: &Path, times: usize) -> Result<f64, String> {
    let measure = || -> io::Result<f64> {
        let file: File = tempfile::tempfile_in(dir)?;
        file.write_all_at(&vec![0; 1 << 20], 0)?;
        file.sync_all()?;
        let mut took = Vec::with_capacity(times);
        for index in 0..times as u64 {
            let began = Instant::now();
            file.write_all_at(&[1; 512], index % 2048 * 512)?;
            file.sync_data()?;
            took.push(began.elapsed().as_nanos() as u64);
        }
        took.sort_unstable();
        Ok(took[took.len() / 2] as f64 / 1e3)
    };
    measure().map_err(|error| format!("the disk cannot be measured: {error}"))
}
