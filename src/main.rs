//! The `tenure` program: the server, and a client for the shell. What it can do is in [`cli`].

mod cli;

use std::process::ExitCode;

/// Each request allocates a handful of small pieces: this one gives and takes them back faster.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
