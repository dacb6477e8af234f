//! The program's allocator: what of its freed memory the process keeps, and when it gives it back to the system.
//!
//! By itself mimalloc takes freed memory for idle after a second, and then whichever thread allocates or frees next gives it
//! back. Beside 900 MB of keys that was the loop, which did nothing else for 400 calls, 47 ms and more. So a server keeps its
//! memory until a thread that nobody waits for gives it back ([`give_back`]).
//!
//! This is the one room with `unsafe` code: three functions of mimalloc that have no safe binding.

#![expect(unsafe_code, reason = "mimalloc's settings have no safe binding; each call says why it is sound")]

use libmimalloc_sys::{mi_collect, mi_option_get, mi_option_set, mi_option_t};
use std::ffi::c_long;

/// Each request allocates a handful of small pieces: this one gives and takes them back faster than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 3 (`mimalloc.h`, `enum mi_option_e`; the crate has no name for it): after so many
/// milliseconds freed memory is idle.
const PURGE_DELAY: mi_option_t = 15;

/// What it is unless somebody has set it (`options.c` of mimalloc 3).
const PURGE_DELAY_DEFAULT: c_long = 1_000;

/// Longer than ever passes between two calls of [`give_back`], and far from where milliseconds overflow. (Not -1: then no
/// memory would be marked to be given back.)
const KEPT_MS: c_long = 24 * 3_600 * 1_000;

/// From here on freed memory is kept until [`give_back`]. Whoever has set the delay (`MIMALLOC_PURGE_DELAY`) is left alone. To
/// be called before there are other threads.
pub(crate) fn keep_freed() {
    // SAFETY: the two read and write one integer in a table of mimalloc's, and refuse a number that is outside of it. The
    // table is no atomic; `tenure serve` calls this first of all, when no other thread could read it.
    unsafe {
        if mi_option_get(PURGE_DELAY) != PURGE_DELAY_DEFAULT {
            return;
        }
        mi_option_set(PURGE_DELAY, KEPT_MS);
    }
    // What was freed before is due after the old delay, and what is freed later beside it would go with it.
    give_back();
}

/// Gives back to the system what is free: some 0.1 ms for each MiB, in which other threads go on. Pages of a few objects that
/// another thread's heap keeps for its next ones stay with it.
pub(crate) fn give_back() {
    // SAFETY: it takes no pointer and frees nothing that is in use, and any thread may call it at any time (`mimalloc.h`).
    unsafe { mi_collect(true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of the option is not in the crate: another version might count otherwise.
    #[test]
    fn the_option_is_the_delay_of_purges() {
        // SAFETY: it reads an integer that nothing in the tests of the program writes.
        let delay = unsafe { mi_option_get(PURGE_DELAY) };
        let expected = std::env::var("MIMALLOC_PURGE_DELAY").ok().and_then(|text| text.parse().ok());
        assert_eq!(delay, expected.unwrap_or(PURGE_DELAY_DEFAULT), "mimalloc counts its options otherwise");
    }
}
