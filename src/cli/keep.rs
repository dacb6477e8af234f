//! The private files: how a lock outlives the command that acquired it.
//!
//! `tenure acquire` leaves its session open and writes down who it was: one file for each server address and lock, mode
//! 0600, in a directory of mode 0700. A session id is a secret, so it is in no argument, no variable and no output.
//!
//! Commands run side by side. A file is replaced by rename, so nobody reads half of one; storing and forgetting hold the
//! directory's lock file, and forgetting looks first whether the file is still the one that is meant: two commands of one
//! user may hand a lock to each other, and the loser must not remove what the winner wrote.

use super::exit::{Failure, LOST, REFUSED, Result};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tenure::identity::SessionId;

/// The version of the files.
const FORMAT: u32 = 1;

/// A file that nothing has touched for so long speaks of a lock that has long expired: TTLs end at one day.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A lock that a command acquired and left held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The version of this file.
    pub(crate) format: u32,
    /// The server.
    pub(crate) server: SocketAddr,
    /// The lock.
    pub(crate) name: String,
    /// All locks of the grant, if there are several: each has a file like this one.
    #[serde(default)]
    pub(crate) names: Vec<String>,
    /// The token of the grant.
    pub(crate) token: u64,
    /// The session that holds it: a secret.
    pub(crate) session: SessionId,
    /// The public number of the session.
    pub(crate) client: u64,
    /// The TTL of the session, in milliseconds.
    pub(crate) ttl_ms: u64,
    /// The grant's own lease in milliseconds, if it has one.
    pub(crate) lease_ms: Option<u64>,
}

impl Kept {
    /// What is to be written down of a lock.
    pub(crate) fn new(
        server: SocketAddr,
        names: &[String],
        token: u64,
        session: &tenure::client::Detached,
    ) -> Kept {
        Kept {
            format: FORMAT,
            server,
            name: names.first().cloned().unwrap_or_default(),
            names: names.to_vec(),
            token,
            session: session.session,
            client: session.client,
            ttl_ms: u64::try_from(session.ttl.as_millis()).unwrap_or(u64::MAX),
            lease_ms: None,
        }
    }

    /// All locks of the grant.
    pub(crate) fn all(&self) -> &[String] {
        if self.names.is_empty() { std::slice::from_ref(&self.name) } else { &self.names }
    }

    /// What is written down under each of its locks.
    fn each(&self) -> impl Iterator<Item = Kept> {
        self.all().iter().map(|name| Kept { name: name.clone(), ..self.clone() })
    }
}

/// The directory of the private files.
#[derive(Debug)]
pub(crate) struct Keep {
    dir: PathBuf,
}

impl Keep {
    /// The directory `home`, or the place that the system has for such files. Nothing is made yet.
    pub(crate) fn at(home: Option<&Path>) -> Result<Keep> {
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let dir = home
            .map(Path::to_owned)
            .or_else(|| variable("XDG_RUNTIME_DIR").map(|dir| dir.join("tenure")))
            .or_else(|| variable("HOME").map(|dir| dir.join(".local/state/tenure")))
            .ok_or_else(|| {
                Failure::new(
                    REFUSED,
                    "there is no place for private files: set TENURE_HOME to a directory of yours",
                )
            })?;
        Ok(Keep { dir })
    }

    /// Makes the directory, or checks that it is private.
    pub(crate) fn prepare(&self) -> Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|error| self.broken("make", &error))?;
        let found = fs::metadata(&self.dir).map_err(|error| self.broken("look at", &error))?;
        let mine = found.uid() == rustix::process::geteuid().as_raw();
        if !mine || found.mode() & 0o077 != 0 {
            return Err(Failure::new(
                REFUSED,
                format!(
                    "{} is open to others, and what is kept in it lets anybody act for this user: `chmod 700` it, or set \
                     TENURE_HOME to a directory of yours",
                    self.dir.display()
                ),
            ));
        }
        Ok(())
    }

    /// The lock of that name at that server, if a command of this user left it held.
    pub(crate) fn find(&self, server: SocketAddr, name: &str) -> Result<Option<Kept>> {
        let kept = self.read(&self.path(server, name))?;
        Ok(kept.filter(|kept| kept.server == server && kept.name == name))
    }

    /// The lock with that token at that server.
    pub(crate) fn find_token(&self, server: SocketAddr, token: u64) -> Result<Option<Kept>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.broken("read", &error)),
        };
        for entry in entries {
            let path = entry.map_err(|error| self.broken("read", &error))?.path();
            if !is_ours(&path) {
                continue;
            }
            // One file that cannot be read is no reason not to find another.
            if let Ok(Some(kept)) = self.read(&path)
                && kept.server == server
                && kept.token == token
            {
                return Ok(Some(kept));
            }
        }
        Ok(None)
    }

    /// Writes the locks of a grant down, in the place of earlier ones of those names.
    pub(crate) fn store(&self, kept: &Kept) -> Result<()> {
        let _locked = self.lock()?;
        self.sweep();
        for one in kept.each() {
            self.replace(&one).map_err(|error| self.broken("write to", &error))?;
        }
        Ok(())
    }

    /// Removes what was written of the locks of a grant, where no other grant has been written down since.
    pub(crate) fn forget(&self, kept: &Kept) -> Result<()> {
        let _locked = self.lock()?;
        for one in kept.each() {
            let same = |found: Kept| found.session == kept.session && found.token == kept.token;
            if !self.find(kept.server, &one.name)?.is_some_and(same) {
                continue;
            }
            match fs::remove_file(self.path(kept.server, &one.name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.broken("remove a file from", &error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The file of a lock. Names may be longer than file names and hold any character, so it is named by a hash; what is
    /// in it is compared, so a collision is a lock not found and never a wrong one.
    fn path(&self, server: SocketAddr, name: &str) -> PathBuf {
        let mut hasher = SipHasher13::new();
        hasher.write(server.to_string().as_bytes());
        hasher.write(b"\n");
        hasher.write(name.as_bytes());
        self.dir.join(format!("{:032x}.json", hasher.finish128().as_u128()))
    }

    fn read(&self, path: &Path) -> Result<Option<Kept>> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.broken("read", &error)),
        };
        match serde_json::from_slice::<Kept>(&text) {
            Ok(kept) if kept.format == FORMAT => Ok(Some(kept)),
            Ok(kept) => Err(Failure::new(
                LOST,
                format!(
                    "{} has format {}, which this version does not know; remove it",
                    path.display(),
                    kept.format
                ),
            )),
            Err(error) => {
                Err(Failure::new(LOST, format!("{} is damaged ({error}); remove it", path.display())))
            }
        }
    }

    fn replace(&self, kept: &Kept) -> io::Result<()> {
        let path = self.path(kept.server, &kept.name);
        // One name is enough: the directory's lock is held. What a killed command left there is overwritten.
        let fresh = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(serde_json::to_string_pretty(kept)?.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&fresh, &path)
    }

    /// Removes files that speak of locks long gone. A failure costs only the room that they take.
    fn sweep(&self) {
        for path in fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let age = fs::metadata(&path)
                .and_then(|found| found.modified())
                .map(|at| at.elapsed().unwrap_or_default());
            if is_ours(&path) && age.is_ok_and(|age| age > FORGOTTEN_AFTER) {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Holds the directory's lock file until the answer is dropped.
    fn lock(&self) -> Result<File> {
        self.prepare()?;
        let path = self.dir.join("lock");
        let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        let locked = open.and_then(|file| {
            flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        });
        locked.map_err(|error| self.broken("lock", &error))
    }

    fn broken(&self, doing: &str, error: &io::Error) -> Failure {
        Failure::new(REFUSED, format!("cannot {doing} {}, where locks are kept: {error}", self.dir.display()))
    }
}

fn is_ours(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json" || extension == "new")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn kept(name: &str, token: u64) -> Kept {
        Kept {
            format: FORMAT,
            server: "127.0.0.1:5625".parse().unwrap(),
            name: name.into(),
            names: vec![name.into()],
            token,
            session: SessionId(u128::from(token) << 64),
            client: token,
            ttl_ms: 30_000,
            lease_ms: None,
        }
    }

    fn fresh() -> (tempfile::TempDir, Keep) {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep::at(Some(&dir.path().join("kept"))).unwrap();
        (dir, keep)
    }

    #[test]
    fn a_lock_is_found_again_by_name_and_by_token_and_forgotten() {
        let (_dir, keep) = fresh();
        let (a, b) = (kept("a/b ü", 1), kept("b", 2));
        assert_eq!(keep.find(a.server, "a/b ü").unwrap(), None, "nothing is there and nothing is made");
        assert_eq!(keep.find_token(a.server, 1).unwrap(), None);
        keep.store(&a).unwrap();
        keep.store(&b).unwrap();
        assert_eq!(keep.find(a.server, "a/b ü").unwrap(), Some(a.clone()));
        assert_eq!(keep.find_token(a.server, 2).unwrap(), Some(b));
        assert_eq!(keep.find("127.0.0.1:1".parse().unwrap(), "a/b ü").unwrap(), None, "another server");
        keep.forget(&a).unwrap();
        keep.forget(&a).unwrap();
        assert_eq!(keep.find(a.server, "a/b ü").unwrap(), None);
    }

    #[test]
    fn forgetting_an_old_grant_leaves_the_new_one_of_that_name() {
        let (_dir, keep) = fresh();
        let (old, new) = (kept("a", 1), kept("a", 2));
        keep.store(&old).unwrap();
        keep.store(&new).unwrap();
        keep.forget(&old).unwrap();
        assert_eq!(keep.find(new.server, "a").unwrap(), Some(new));
    }

    #[test]
    fn a_grant_of_several_locks_is_found_under_each_and_forgotten_as_one() {
        let (_dir, keep) = fresh();
        let both = Kept { names: vec!["a".into(), "b".into()], ..kept("a", 1) };
        keep.store(&both).unwrap();
        let found = keep.find(both.server, "b").unwrap().unwrap();
        assert_eq!((found.name.as_str(), found.all()), ("b", both.all()));
        let other = kept("b", 2);
        keep.store(&other).unwrap();
        keep.forget(&found).unwrap();
        assert_eq!(keep.find(both.server, "a").unwrap(), None);
        assert_eq!(keep.find(both.server, "b").unwrap(), Some(other), "written down since");
    }

    #[test]
    fn what_was_written_before_there_were_several_locks_is_read() {
        let (_dir, keep) = fresh();
        let mut old = serde_json::to_value(kept("a", 1)).unwrap();
        old.as_object_mut().unwrap().remove("names");
        keep.prepare().unwrap();
        let server = kept("a", 1).server;
        fs::write(keep.path(server, "a"), old.to_string()).unwrap();
        assert_eq!(keep.find(server, "a").unwrap().unwrap().all(), ["a"]);
    }

    #[test]
    fn files_and_directory_are_private() {
        let (_dir, keep) = fresh();
        keep.store(&kept("a", 1)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&keep.dir), 0o700);
        for entry in fs::read_dir(&keep.dir).unwrap() {
            assert_eq!(mode(&entry.unwrap().path()), 0o600);
        }
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let (_dir, keep) = fresh();
        keep.prepare().unwrap();
        fs::set_permissions(&keep.dir, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(keep.store(&kept("a", 1)).unwrap_err().sentence.contains("chmod 700"));
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let (_dir, keep) = fresh();
        let a = kept("a", 1);
        keep.store(&a).unwrap();
        let path = keep.path(a.server, "a");
        fs::write(&path, "{\"format\": 1").unwrap();
        let failure = keep.find(a.server, "a").unwrap_err();
        assert!(failure.sentence.contains(path.to_str().unwrap()), "{failure}");
        keep.store(&kept("b", 2)).unwrap();
        assert!(keep.find_token(a.server, 2).unwrap().is_some(), "the other one is still found");
    }

    #[test]
    fn commands_side_by_side_leave_whole_files() {
        let (_dir, keep) = fresh();
        std::thread::scope(|scope| {
            for token in 1..=8 {
                let keep = &keep;
                scope.spawn(move || {
                    for _ in 0..20 {
                        keep.store(&kept("a", token)).unwrap();
                        assert!(keep.find(kept("a", token).server, "a").is_ok());
                        keep.forget(&kept("a", token)).unwrap();
                    }
                });
            }
        });
        assert_eq!(keep.find(kept("a", 1).server, "a").unwrap(), None);
    }
}
