//! What every command has: where the server is, how results are written, and the lock it acts under.

use super::exit::{Failure, LOST, NOT_PERMITTED, Result, UNREACHABLE, USAGE};
use super::keep::{Keep, Kept};
use super::output::{Format, Output};
use super::{Global, duration};
use std::io::Stdout;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;
use tenure::client::{Client, Error, Fence};
use tenure::kind::Kind;

/// The port of the server where an address names none: it spells LOCK.
pub(crate) const PORT: u16 = 5625;

/// What every command has.
#[derive(Debug)]
pub(crate) struct Context {
    global: Global,
}

impl Context {
    pub(crate) fn new(global: Global) -> Context {
        Context { global }
    }

    /// The flags that make another command's context the same.
    pub(crate) fn flags(&self) -> Vec<String> {
        let Global { addr, output, timeout, home, quiet, verbose } = &self.global;
        let output = match output {
            Format::Json => "json",
            Format::Table => "table",
        };
        let mut flags = vec![format!("--addr={addr}"), format!("--output={output}")];
        flags.push(format!("--timeout={}ms", timeout.as_millis()));
        flags.extend(home.iter().map(|home| format!("--home={}", home.display())));
        flags.extend(quiet.then(|| "--quiet".into()));
        flags.extend((0..*verbose).map(|_| "--verbose".into()));
        flags
    }

    /// How results are written.
    pub(crate) fn format(&self) -> Format {
        self.global.output
    }

    /// Where results go.
    pub(crate) fn output(&self) -> Output<Stdout> {
        Output::stdout(self.global.output)
    }

    /// How long a request goes on without an answer.
    pub(crate) fn timeout(&self) -> Duration {
        self.global.timeout
    }

    /// Tells the person something that is no result.
    pub(crate) fn say(&self, text: &str) {
        if !self.global.quiet {
            eprintln!("{text}");
        }
    }

    /// Tells the person more than most want to know.
    pub(crate) fn detail(&self, text: &str) {
        if self.global.verbose > 0 {
            self.say(text);
        }
    }

    /// Whether [`say`](Context::say) says anything.
    pub(crate) fn is_quiet(&self) -> bool {
        self.global.quiet
    }

    /// The server's address.
    pub(crate) fn server(&self) -> Result<SocketAddr> {
        resolve(&self.global.addr)
    }

    /// A client for one command. Its session is opened when something is to be changed; reads need none.
    pub(crate) fn client(&self) -> Result<Client> {
        Ok(Client::builder().name("tenure").deadline(self.timeout()).lazy(true).connect(self.server()?)?)
    }

    /// The directory of the private files, if the command line names one.
    pub(crate) fn home(&self) -> Option<&Path> {
        self.global.home.as_deref()
    }

    /// The private files.
    pub(crate) fn keep(&self) -> Result<Keep> {
        Keep::at(self.global.home.as_deref())
    }

    /// The lock that `name` is written under, if an earlier command left it held; with a token, the one that has it.
    pub(crate) fn kept(&self, name: &str, token: Option<u64>) -> Result<Option<Kept>> {
        let server = self.server()?;
        match (self.keep(), token) {
            (Ok(keep), None) => keep.find(server, name),
            // Without a place for private files nothing was ever kept.
            (Err(_), None) => Ok(None),
            (keep, Some(token)) => match keep?.find_token(server, token)? {
                Some(kept) => Ok(Some(kept)),
                None => Err(Failure::new(
                    LOST,
                    format!(
                        "no lock with token {token} at {server} is kept here: it was released or lost, or acquired elsewhere"
                    ),
                )),
            },
        }
    }

    /// As [`kept`](Context::kept), for commands that make no sense without one.
    pub(crate) fn kept_surely(&self, name: &str, token: Option<u64>) -> Result<Kept> {
        let kept = self.kept(name, token)?;
        kept.ok_or_else(|| {
            Failure::new(
                LOST,
                format!(
                    "{name:?} is not held: no `tenure acquire` of this user left it so, or it was lost since"
                ),
            )
        })
    }

    /// Does something under a kept lock. If the server says that it is not held any more, what was kept is removed.
    pub(crate) fn under<T>(
        &self,
        client: &Client,
        kept: &Kept,
        work: impl FnOnce(&Fence) -> std::result::Result<T, Error>,
    ) -> Result<T> {
        work(&client.fence_of(kept.session, kept.token)).map_err(|error| self.explain(client, kept, error))
    }

    /// What a failed request under a kept lock means for that lock.
    pub(crate) fn explain(&self, client: &Client, kept: &Kept, error: Error) -> Failure {
        if !matches!(error.kind(), Some(Kind::NotHolder | Kind::NoSession)) {
            return error.into();
        }
        // `not_holder` is also the answer where the grant lives but is that of another lock.
        match client.lock_info(&kept.name) {
            Ok(info) if info.holders.iter().any(|holder| holder.token == kept.token) => Failure::new(
                NOT_PERMITTED,
                format!("the grant {} is of {:?} and guards nothing else: {error}", kept.token, kept.name),
            ),
            Ok(_) => self.lost(kept),
            Err(unknown) => {
                Failure::new(LOST, format!("{error}; whether {:?} is still held: {unknown}", kept.name))
            }
        }
    }

    /// The kept lock is lost: removes what was kept of it.
    pub(crate) fn lost(&self, kept: &Kept) -> Failure {
        if let Err(failure) = self.keep().and_then(|keep| keep.forget(kept)) {
            self.say(&format!("tenure: {failure}"));
        }
        Failure::new(
            LOST,
            format!(
                "{:?} is lost: the grant {} has ended (its TTL was {}); acquire it again",
                kept.name,
                kept.token,
                duration::show_ms(kept.ttl_ms)
            ),
        )
    }

    /// Ends the session that a command opened for itself. If that fails, its TTL ends it: nothing hangs on it.
    pub(crate) fn finish(&self, client: &Client) {
        if let Err(error) = client.close() {
            log::debug!("the session of this command was not closed: {error}");
        }
    }
}

/// An address from `host:port`, `host` or an IP address. Of a host's addresses an IPv4 one comes first, since that is
/// where a server listens that was told nothing else.
fn resolve(text: &str) -> Result<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, PORT));
    }
    let (host, port) = match text.rsplit_once(':') {
        None => (text, PORT),
        Some((host, port)) => match port.parse() {
            Ok(port) => (host, port),
            Err(_) => {
                return Err(Failure::new(
                    USAGE,
                    format!("--addr {text:?} is no address; write it as in 127.0.0.1:{PORT}"),
                ));
            }
        },
    };
    let mut found: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|error| {
            Failure::new(UNREACHABLE, format!("the server's name {host:?} has no address: {error}"))
        })?
        .collect();
    found.sort_by_key(|address| !address.is_ipv4());
    found
        .first()
        .copied()
        .ok_or_else(|| Failure::new(UNREACHABLE, format!("the server's name {host:?} has no address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_leave_the_port_out() {
        for (text, expected) in [
            ("127.0.0.1:7000", "127.0.0.1:7000"),
            ("127.0.0.1", "127.0.0.1:5625"),
            ("::1", "[::1]:5625"),
            ("[::1]:7000", "[::1]:7000"),
        ] {
            assert_eq!(resolve(text).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn a_port_that_is_none_is_a_usage_error() {
        for text in ["localhost:http", "127.0.0.1:99999", "127.0.0.1:"] {
            assert_eq!(resolve(text).unwrap_err().code, USAGE, "{text}");
        }
    }
}
