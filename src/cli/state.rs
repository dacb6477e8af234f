//! `state show`, `state events`, `state check`, `state restore`: a stopped server's directory.

use super::context::Context;
use super::exit::{Failure, REFUSED, Result};
use super::output::Format;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tenure::inspect;
use tenure::storage::{DataDir, DiskError};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum State {
    /// Explain what a stopped directory holds. Secrets are masked.
    Show {
        #[command(flatten)]
        dir: Dir,
    },
    /// Tell what the commands in the journal of a stopped directory did: who took, lost and released what, and when.
    Events {
        #[command(flatten)]
        dir: Dir,
        /// At most so many lines, the last ones.
        #[arg(long, env = "TENURE_LAST", value_name = "N", default_value_t = 100)]
        last: usize,
    },
    /// Verify a stopped directory: snapshot, journal, files. Exit code 1 if anything is wrong.
    Check {
        #[command(flatten)]
        dir: Dir,
    },
    /// Make a directory that a server may serve from a backup: raises the counters by 2^32 and ends every session.
    Restore {
        /// The stopped directory or the copy of one.
        from: PathBuf,
        /// A new or empty directory to restore into; without it, in place.
        to: Option<PathBuf>,
        /// Take what is whole of a directory that a start would refuse.
        #[arg(long, env = "TENURE_TAKE_LOSS", value_parser = clap::builder::BoolishValueParser::new())]
        take_loss: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Dir {
    /// The server's directory.
    #[arg(env = "TENURE_DATA_DIR", default_value = "tenure-data")]
    data_dir: PathBuf,
}

/// `tenure state`
pub(crate) fn state(context: &Context, verb: &State) -> Result<()> {
    let mut out = BufWriter::new(Stdout::default());
    let done = match verb {
        State::Show { dir } => open(&dir.data_dir)
            .and_then(|dir| inspect::show(&dir, context.format() == Format::Json, &mut out))
            .map(|()| true),
        State::Events { dir, last } => open(&dir.data_dir)
            .and_then(|dir| inspect::events(&dir, *last, context.format() == Format::Json, &mut out))
            .map(|()| true),
        State::Check { dir } => open(&dir.data_dir).and_then(|dir| inspect::check(&dir, &mut out)),
        State::Restore { from, to, take_loss } => {
            inspect::restore(from, to.as_deref(), *take_loss, &mut out).map(|()| true)
        }
    };
    let flushed = out.flush();
    match (done, out.get_ref().gone) {
        // A reader that went away has what it wanted; see `exit`.
        (_, true) => Err(Failure::new(0, "")),
        (Err(error), false) => Err(Failure::new(REFUSED, error.to_string())),
        (Ok(good), false) => {
            flushed?;
            if good {
                Ok(())
            } else {
                Err(Failure::new(REFUSED, "the directory is not whole: see BAD above"))
            }
        }
    }
}

fn open(dir: &Path) -> std::result::Result<DataDir, DiskError> {
    DataDir::inspect(dir)
}

/// Stdout that remembers whether its reader went away, since the inspection tells errors as sentences.
#[derive(Default)]
struct Stdout {
    gone: bool,
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = io::stdout().write(bytes);
        self.gone |= written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}
