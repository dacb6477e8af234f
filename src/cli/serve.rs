//! `serve`: the flags of the server.

use super::duration::parse_bytes;
use super::exit::{Failure, REFUSED, Result, USAGE};
use super::parse_ttl;
use crate::memory;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use tenure::busy_poll::BusyPoll;
use tenure::command::Durability;
use tenure::identity::INTEGER_MAX;
use tenure::limits::Limits;
use tenure::server::{self, Config};

/// The smallest and the largest segment: a batch fits the one, recovery reads the other into memory.
const SEGMENT_BYTES: RangeInclusive<u64> = 256 * 1024..=1 << 30;

/// What one datagram carries of a value or an append, with room for the rest of the request or reply around it.
const PAYLOAD_MAX: u64 = 48 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    /// Where to listen: an IP address and a port. Port 0 takes a free one.
    #[arg(long, env = "TENURE_BIND", value_name = "ADDR", default_value = "127.0.0.1:5625", value_parser = parse_bind)]
    bind: SocketAddr,
    /// Where the state lives. Made if it is not there; one server a directory.
    #[arg(long, env = "TENURE_DATA_DIR", value_name = "DIR", default_value = "./tenure-data")]
    data_dir: PathBuf,
    /// What acknowledged means.
    #[arg(long, env = "TENURE_DURABILITY", value_enum, value_name = "HOW", default_value = "sync")]
    durability: Durability,
    /// Listen where others reach it although there is no authentication yet: whoever can send to it can use it.
    #[arg(long, env = "TENURE_INSECURE", value_parser = clap::builder::BoolishValueParser::new())]
    insecure: bool,
    /// TTL of a session that asks for none.
    #[arg(long, env = "TENURE_DEFAULT_TTL", value_name = "DURATION", default_value = "10s", value_parser = parse_ttl)]
    default_ttl: Duration,
    /// Before it sleeps, look for something to do for so long: answers come sooner, and a core is kept busy that long after
    /// each request. `auto`: for a moment, as long as requests follow each other so closely that it pays; 0ms: never;
    /// without a value: 1ms, for a server with a core of its own.
    #[arg(
        long, env = "TENURE_BUSY_POLL", value_name = "auto|DURATION", num_args = 0..=1, require_equals = true,
        default_value = "auto", default_missing_value = "1ms", value_parser = parse_busy_poll
    )]
    busy_poll: BusyPoll,
    /// Bytes of a journal segment, allocated ahead: 256KiB to 1GiB.
    #[arg(long, env = "TENURE_SEGMENT_BYTES", value_name = "SIZE", default_value = "16MiB", value_parser = parse_segment)]
    segment_bytes: u64,
    /// A new snapshot is written when the journal has grown by so many segments.
    #[arg(
        long, env = "TENURE_SNAPSHOT_SEGMENTS", value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=1_000)
    )]
    snapshot_segments: u64,
    #[command(flatten)]
    caps: Caps,
}

macro_rules! caps {
    ($($(#[$doc:meta])* $flag:ident, $env:literal => $field:ident, $parse:expr;)*) => {
        /// One flag for each cap of [`Limits`], under the name that the error gives which meets the cap.
        #[derive(Debug, clap::Args)]
        #[command(next_help_heading = "Caps")]
        struct Caps {
            $(
                $(#[$doc])*
                #[arg(
                    long, env = $env, value_name = "N", value_parser = $parse,
                    default_value_t = Limits::default().$field
                )]
                $flag: u64,
            )*
        }

        impl Caps {
            /// All of them: a cap without a flag does not compile.
            fn limits(&self, default_ttl_ms: u64) -> Limits {
                Limits { default_ttl_ms, $($field: self.$flag,)* }
            }
        }
    };
}

caps! {
    /// Live sessions, and ended ones whose replies are still kept.
    max_sessions, "TENURE_MAX_SESSIONS" => sessions, parse_count;
    /// Kept replies of one session.
    max_replies, "TENURE_MAX_REPLIES" => replies, parse_count;
    /// Bytes of kept replies of one session.
    max_reply_bytes, "TENURE_MAX_REPLY_BYTES" => reply_bytes, parse_size;
    /// Waits of one session.
    max_session_waits, "TENURE_MAX_SESSION_WAITS" => session_waits, parse_count;
    /// Waits of all sessions.
    max_waits, "TENURE_MAX_WAITS" => waits, parse_count;
    /// Waits in the line of one lock.
    max_lock_waits, "TENURE_MAX_LOCK_WAITS" => lock_waits, parse_count;
    /// Live grants of all sessions.
    max_grants, "TENURE_MAX_GRANTS" => grants, parse_count;
    /// Keys.
    max_keys, "TENURE_MAX_KEYS" => keys, parse_count;
    /// Bytes of one value, at most 48KiB.
    max_value_bytes, "TENURE_MAX_VALUE_BYTES" => value_bytes, parse_payload;
    /// Bytes of all keys and values together.
    max_key_bytes, "TENURE_MAX_KEY_BYTES" => key_bytes, parse_size;
    /// Files.
    max_files, "TENURE_MAX_FILES" => files, parse_count;
    /// Bytes of one file.
    max_file_bytes, "TENURE_MAX_FILE_BYTES" => file_bytes, parse_size;
    /// Bytes of the data of one append, at most 48KiB.
    max_append_bytes, "TENURE_MAX_APPEND_BYTES" => append_bytes, parse_payload;
    /// Writes staged under one atomic grant.
    max_section_writes, "TENURE_MAX_SECTION_WRITES" => section_writes, parse_count;
    /// Bytes staged under one atomic grant: names, values, data, and 64 for each write.
    max_section_bytes, "TENURE_MAX_SECTION_BYTES" => section_bytes, parse_size;
    /// Bytes staged under all atomic grants.
    max_staged_bytes, "TENURE_MAX_STAGED_BYTES" => staged_bytes, parse_size;
    /// Events that are kept for watch.
    max_history_events, "TENURE_MAX_HISTORY_EVENTS" => history_events, parse_count;
    /// Bytes of the events that are kept for watch.
    max_history_bytes, "TENURE_MAX_HISTORY_BYTES" => history_bytes, parse_size;
}

fn parse_bind(text: &str) -> std::result::Result<SocketAddr, String> {
    text.parse().map_err(|_| "write an IP address and a port, as in 127.0.0.1:5625 or [::1]:5625".into())
}

fn parse_count(text: &str) -> std::result::Result<u64, String> {
    match text.parse() {
        Ok(count @ 1..=INTEGER_MAX) => Ok(count),
        Ok(_) | Err(_) => Err(format!("write a number from 1 to {INTEGER_MAX}")),
    }
}

fn parse_size(text: &str) -> std::result::Result<u64, String> {
    match parse_bytes(text)? {
        bytes @ 1..=INTEGER_MAX => Ok(bytes),
        _ => Err(format!("write a size from 1 to {INTEGER_MAX} bytes")),
    }
}

fn parse_payload(text: &str) -> std::result::Result<u64, String> {
    match parse_bytes(text)? {
        bytes @ 1..=PAYLOAD_MAX => Ok(bytes),
        _ => Err("write a size from 1 to 48KiB: it has to fit a datagram".into()),
    }
}

/// Longer than this no gap between requests is worth a core.
const BUSY_POLL_MAX: Duration = Duration::from_secs(1);

fn parse_busy_poll(text: &str) -> std::result::Result<BusyPoll, String> {
    if text == "auto" {
        return Ok(BusyPoll::Auto);
    }
    let time =
        super::duration::parse_duration(text).map_err(|error| format!("write auto, or a time: {error}"))?;
    if time > BUSY_POLL_MAX {
        return Err(format!("{text} is too long; it goes from 0ms to 1s, which is as good as always"));
    }
    Ok(BusyPoll::For(time))
}

fn parse_segment(text: &str) -> std::result::Result<u64, String> {
    let bytes = parse_bytes(text)?;
    if SEGMENT_BYTES.contains(&bytes) { Ok(bytes) } else { Err("write a size from 256KiB to 1GiB".into()) }
}

/// `tenure serve`
pub(crate) fn serve(args: &Serve) -> Result<()> {
    memory::keep_freed();
    let config = args.config()?;
    // A huge page is zeroed at once, in the turn of the loop that touches it first: 6 to 10 ms were measured on a virtual machine
    // (docs/performance.md, "Steps"). Small ones cost as much together, and no turn much.
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        log::debug!("the system keeps giving huge pages: {error}");
    }
    let mut told = Ok(());
    let served = server::run(&config, &mut |address| told = tell(address));
    // Whoever started the server and no longer reads that line may still want the server.
    if let Err(error) = told {
        log::warn!("the address could not be written to stdout: {error}");
    }
    served.map_err(|sentence| Failure::new(REFUSED, sentence))
}

/// The one line on stdout: whoever started the server waits for it, and learns the port from it.
fn tell(address: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "listening on {address}")?;
    out.flush()
}

impl Serve {
    fn config(&self) -> Result<Config> {
        if !self.bind.ip().is_loopback() && !self.insecure {
            return Err(Failure::new(
                USAGE,
                format!(
                    "--bind {} can be reached by others, and there is no authentication yet: whoever can send to it could \
                     take and break every lock. Bind 127.0.0.1, or say --insecure if the network is yours alone",
                    self.bind
                ),
            ));
        }
        let default_ttl_ms = u64::try_from(self.default_ttl.as_millis())
            .map_err(|_| Failure::new(USAGE, "--default-ttl is too long"))?;
        Ok(Config {
            bind: self.bind,
            data_dir: self.data_dir.clone(),
            durability: self.durability,
            limits: self.caps.limits(default_ttl_ms),
            segment_bytes: self.segment_bytes,
            fold_segments: self.snapshot_segments,
            busy_poll: self.busy_poll,
            give_memory_back: memory::give_back,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        serve: Serve,
    }

    fn config(args: &[&str]) -> Result<Config> {
        Only::try_parse_from([&["serve"], args].concat())
            .map_err(|error| Failure::new(USAGE, error.to_string()))
            .and_then(|only| only.serve.config())
    }

    #[test]
    fn without_flags_the_caps_are_those_of_the_library_and_the_address_is_local() {
        let config = config(&[]).unwrap();
        assert_eq!(config.limits, Limits::default());
        assert!(config.bind.ip().is_loopback());
        assert_eq!(config.durability, Durability::Sync);
    }

    #[test]
    fn every_address_but_loopback_needs_insecure() {
        for bind in ["0.0.0.0:0", "[::]:0", "192.0.2.1:5625"] {
            let failure = config(&["--bind", bind]).unwrap_err();
            assert_eq!(failure.code, USAGE);
            assert!(failure.sentence.contains("--insecure"));
            assert!(config(&["--bind", bind, "--insecure"]).is_ok());
        }
        assert!(config(&["--bind", "[::1]:0"]).is_ok());
    }

    #[test]
    fn busy_polling_is_asked_for_and_has_a_usual_length() {
        let busy_poll = |flags: &[&str]| config(flags).unwrap().busy_poll;
        assert_eq!(busy_poll(&[]), BusyPoll::Auto);
        assert_eq!(busy_poll(&["--busy-poll=auto"]), BusyPoll::Auto);
        assert_eq!(busy_poll(&["--busy-poll"]), BusyPoll::For(Duration::from_millis(1)));
        assert_eq!(busy_poll(&["--busy-poll=0ms"]), BusyPoll::For(Duration::ZERO));
        assert_eq!(busy_poll(&["--busy-poll=20ms"]), BusyPoll::For(Duration::from_millis(20)));
    }

    #[test]
    fn caps_have_flags_and_bounds() {
        let config = config(&["--max-keys", "5", "--max-key-bytes", "1MiB", "--default-ttl", "2s"]);
        let limits = config.unwrap().limits;
        assert_eq!((limits.keys, limits.key_bytes, limits.default_ttl_ms), (5, 1 << 20, 2_000));
        for bad in [
            ["--max-keys", "0"],
            ["--max-value-bytes", "49KiB"],
            ["--segment-bytes", "1KiB"],
            ["--busy-poll=2s", "--insecure"],
            ["--default-ttl", "1ms"],
        ] {
            assert!(self::config(&bad).is_err(), "{bad:?}");
        }
    }
}
