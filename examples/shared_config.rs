//! Shared configuration: many change it and lose nothing, many follow it and miss nothing.
//!
//! ```text
//! cargo run --release --example shared_config
//! ```
//!
//! No lock here. A change reads, changes, and writes if nobody else has: the version of the key tells. A lock would do as
//! well, but a writer that dies would keep the others waiting. Who follows watches the key and never polls.

#![allow(clippy::print_stdout, reason = "an example tells its story on stdout")]

mod harness;

use harness::{Result, expect, together};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use tenure::client::{Client, Error};
use tenure::kind::Kind;

/// What all share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Config {
    features: Vec<String>,
}

const CHANGES: u32 = 4;

fn main() -> ExitCode {
    harness::recipe(story)
}

fn story(addr: SocketAddr, place: &str) -> Result<()> {
    let key = format!("{place}/config");
    // Numbers 1 to 3 follow; the others change, all at the same time.
    let seen = together(1..=3 + CHANGES, |number| match number {
        1..=3 => follow(addr, &key, number).map(Some),
        _ => change(addr, &key, &format!("feature_{}", number - 3)).map(|()| None),
    })?;

    let config: Config =
        Client::builder().lazy(true).connect(addr)?.get_as(&key)?.ok_or("there is no configuration")?;
    println!("in the end it has {}", config.features.join(", "));
    expect(config.features.len() == CHANGES as usize, "no change was lost")?;
    let followers: Vec<Config> = seen.into_iter().flatten().collect();
    expect(followers == vec![config; 3], "all who follow have the same in the end")
}

/// Adds a feature, whatever others change meanwhile.
fn change(addr: SocketAddr, key: &str, feature: &str) -> Result<()> {
    let client = Client::builder().name(feature).connect(addr)?;
    loop {
        let entry = client.get(key)?;
        // Version 0: if the key does not exist. So two who begin with nothing do not overwrite each other either.
        let version = entry.as_ref().map_or(0, |entry| entry.version);
        let mut config: Config = entry.map_or(Ok(Config::default()), |entry| entry.parse())?;
        config.features.push(feature.to_owned());
        match client.set_if(key, &config, version) {
            Ok(version) => {
                println!("{feature} is added: version {version}");
                return Ok(());
            }
            // Whoever loses has read something old. Read again: some other writer won, so all together get on.
            Err(error) if error.kind() == Some(Kind::VersionMismatch) => {
                println!("{feature}: somebody was faster, once more");
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Follows the configuration until it has all changes. Gives what it then is.
fn follow(addr: SocketAddr, key: &str, number: u32) -> Result<Config> {
    let client = Client::builder().lazy(true).connect(addr)?;
    let mut watch = client.watch(key);
    // First the place, then the value: a change between the two is told too. The other way round it would be missed.
    watch.begin()?;
    let mut config: Config = client.get_as(key)?.unwrap_or_default();
    while config.features.len() < CHANGES as usize {
        let event = match watch.next_within(Duration::from_secs(10)) {
            Ok(event) => event.ok_or("no change came in 10 s")?,
            // Who sleeps longer than the server's history reaches is told so: read anew, and go on from there.
            Err(Error::Compacted { .. }) => {
                watch = client.watch(key);
                watch.begin()?;
                config = client.get_as(key)?.unwrap_or_default();
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // A watch is of names that begin so. An event tells that the value changed, and not the value: read it; it may be
        // newer than the event, and the event of that comes too and does no harm.
        if event.name == key && event.event == "key_set" {
            config = client.get_as(key)?.unwrap_or_default();
            println!(
                "  follower {number} is told of version {} and has {} features",
                event.version.unwrap_or_default(),
                config.features.len()
            );
        }
    }
    Ok(config)
}
