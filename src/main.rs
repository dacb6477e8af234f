//! The `tenure` program.
use clap::Parser;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use tenure::command::Durability;
use tenure::server::{Config, run};

#[derive(Parser)]
enum Cli {
    /// Runs a server.
    Serve {
        #[arg(long, env = "TENURE_BIND", default_value = "127.0.0.1:5625")]
        bind: SocketAddr,
        #[arg(long, env = "TENURE_DATA_DIR", default_value = "tenure-data")]
        data_dir: PathBuf,
        #[arg(long, env = "TENURE_DURABILITY", value_enum, default_value = "sync")]
        durability: Durability,
    },
}

fn main() {
    env_logger::Builder::from_env(env_logger::Env::new().filter_or("TENURE_LOG", "info")).init();
    let Cli::Serve { bind, data_dir, durability } = Cli::parse();
    let config = Config {
        bind,
        data_dir,
        durability,
        limits: Default::default(),
        segment_bytes: 16 << 20,
        fold_segments: 1,
    };
    let ran = run(&config, &mut |address| {
        let mut out = std::io::stdout();
        let _ = writeln!(out, "listening on {address}");
        let _ = out.flush();
    });
    if let Err(sentence) = ran {
        let _ = writeln!(std::io::stderr(), "tenure: {sentence}");
        std::process::exit(1);
    }
}
