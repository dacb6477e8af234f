//! What the machine itself takes: a datagram there and back, and a sync of the disk.

use crate::common::load::{self, Client, Figures, Work};
use crate::common::machine::Cores;
use crate::common::server::cpu_micros;
use rustix::thread::gettid;
use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// The load against a thread that sends back what it receives.
pub(crate) fn echo(clients: usize, time: Duration, cores: &Cores) -> Result<Figures, String> {
    let socket = UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| {
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(socket)
        })
        .map_err(|error| format!("no socket for the echo: {error}"))?;
    let address = socket.local_addr().map_err(|error| error.to_string())?;
    let over = Arc::new(AtomicBool::new(false));
    let (tell, told) = mpsc::channel();
    let echo = cores.on_the_servers(|| {
        let over = over.clone();
        thread::spawn(move || {
            let _ = tell.send(gettid());
            let mut buffer = [0; 2048];
            while !over.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        })
    });
    let thread = told.recv().map_err(|_| "the echo did not start".to_owned())?;
    let stat = format!("/proc/self/task/{}/stat", thread.as_raw_nonzero());
    let mut clients = (0..clients)
        .map(|number| Client::open(address, Work::Echo, number))
        .collect::<Result<Vec<_>, _>>()?;
    let figures = load::run(&mut clients, time, &|| cpu_micros(&stat));
    over.store(true, Ordering::Relaxed);
    let _ = echo.join();
    figures
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
        Ok(load::quantile(&took, 0.5))
    };
    measure().map_err(|error| format!("the disk cannot be measured: {error}"))
}
