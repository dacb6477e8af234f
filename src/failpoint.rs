//! Failpoints: places where a test may let the process die, fail or sleep.
//!
//! `TENURE_FAILPOINT` names them, several with commas: `journal.before_sync=kill`, `=kill@3` at the third time,
//! `=error` and `=error@3` for an injected I/O error, `=nospace` for a full disk, `=sleep:500` for half a second each
//! time. The variable is read once. `TENURE_FAILPOINT_WHILE` may name a file: while it is not there no point acts or
//! counts, so that a test chooses the step that it kills in. Without debug assertions and without the feature
//! `failpoints` a [`hit`] is nothing.

use std::io;

/// Whether any place is more than nothing in this process.
#[inline]
pub fn is_armed() -> bool {
    #[cfg(any(debug_assertions, feature = "failpoints"))]
    return armed::any();
    #[cfg(not(any(debug_assertions, feature = "failpoints")))]
    false
}

/// Passes the place `name`.
///
/// # Errors
/// The injected one; in a release build none.
#[inline]
pub fn hit(name: &str) -> io::Result<()> {
    #[cfg(any(debug_assertions, feature = "failpoints"))]
    return armed::hit(name);
    #[cfg(not(any(debug_assertions, feature = "failpoints")))]
    {
        let _ = name;
        Ok(())
    }
}

#[cfg(any(debug_assertions, feature = "failpoints"))]
mod armed {
    use std::io;
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    struct Point {
        name: String,
        act: String,
        /// At which hit; 0 is each.
        at: u64,
        hits: AtomicU64,
    }

    static POINTS: LazyLock<Vec<Point>> =
        LazyLock::new(|| parse(&std::env::var("TENURE_FAILPOINT").unwrap_or_default()));

    static WHILE: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("TENURE_FAILPOINT_WHILE").map(PathBuf::from));

    pub(super) fn any() -> bool {
        !POINTS.is_empty()
    }

    fn parse(text: &str) -> Vec<Point> {
        let points = text.split(',').filter_map(|point| point.trim().split_once('='));
        points
            .map(|(name, act)| {
                let (act, at) = act.split_once('@').unwrap_or((act, "0"));
                Point {
                    name: name.into(),
                    act: act.into(),
                    at: at.parse().unwrap_or(0),
                    hits: AtomicU64::new(0),
                }
            })
            .collect()
    }

    pub(super) fn hit(name: &str) -> io::Result<()> {
        for point in POINTS.iter().filter(|point| point.name == name) {
            if WHILE.as_ref().is_some_and(|file| !file.exists()) {
                continue;
            }
            let hits = point.hits.fetch_add(1, Ordering::Relaxed) + 1;
            if point.at != 0 && point.at != hits {
                continue;
            }
            match point.act.as_str() {
                "kill" => {
                    let own = rustix::process::getpid();
                    let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
                }
                "error" => return Err(io::Error::other(format!("injected at {name}"))),
                "nospace" => return Err(rustix::io::Errno::NOSPC.into()),
                other => {
                    let millis = other.strip_prefix("sleep:").and_then(|millis| millis.parse().ok());
                    std::thread::sleep(Duration::from_millis(millis.unwrap_or(0)));
                }
            }
        }
        Ok(())
    }
}
