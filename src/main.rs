//! The `tenure` program: the server, and a client for the shell. What it can do is in [`cli`].

mod cli;
mod memory;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
