//! `append`, `cat`, `files`.

use super::context::Context;
use super::exit::{Failure, NOT_ACQUIRED, REFUSED, Result, USAGE};
use super::locks::{List, Token, Wait, close_on_signal, not_acquired};
use super::output::printable;
use super::parse_wait;
use serde_json::json;
use std::io::{self, Read};
use tenure::client::{Attempt, Client, Error, Fence, FileChunk};
use tenure::limits::DATAGRAM_MAX;
use tenure::wire::FileInfo;

#[derive(Debug, clap::Args)]
pub(crate) struct Append {
    /// The file.
    file: String,
    /// The text, after `--` if it begins with a hyphen; `-` or nothing takes it from stdin.
    text: Option<String>,
    /// Append no line feed. Without this, one is added where the data does not end with one.
    #[arg(short, long, env = "TENURE_NO_NEWLINE", value_parser = clap::builder::BoolishValueParser::new())]
    no_newline: bool,
    #[command(flatten)]
    guard: Guarded,
}

/// How the lock that guards a file is come by.
#[derive(Debug, clap::Args)]
struct Guarded {
    /// Where the lock comes from that guards the file.
    #[arg(long, env = "TENURE_LOCK", value_enum, value_name = "HOW", default_value = "auto")]
    lock: Source,
    /// Only under a kept lock: --lock kept.
    #[arg(long)]
    no_lock: bool,
    /// How long to stand in line for a lock that is not kept: a duration, `forever` or `no`.
    #[arg(short, long, env = "TENURE_WAIT", value_name = "DURATION", default_value = "10s", value_parser = parse_wait)]
    wait: Wait,
    /// The exit code if the lock was not acquired.
    #[arg(short = 'E', long, env = "TENURE_CONFLICT_EXIT_CODE", value_name = "CODE", default_value_t = NOT_ACQUIRED)]
    conflict_exit_code: u8,
    #[command(flatten)]
    token: Token,
}

/// Where the lock comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Source {
    /// The one that `tenure acquire` left held, or else acquired and released by this command.
    Auto,
    /// Only the one that `tenure acquire` left held.
    Kept,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Cat {
    /// The file.
    file: String,
    /// Where to begin, in bytes.
    #[arg(long, env = "TENURE_OFFSET", value_name = "BYTES", default_value_t = 0)]
    offset: u64,
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Files {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the files, as does `tenure files` alone.
    List(List),
    /// Show one file.
    Info {
        /// The file.
        file: String,
    },
    /// Delete a file; the next append begins a new one.
    Delete {
        /// The file.
        file: String,
        #[command(flatten)]
        guard: Guarded,
    },
    /// Give a file another name; the next append begins a new one.
    Rotate {
        /// The file.
        file: String,
        /// Its new name, which no file and no lock may have.
        to: String,
        #[command(flatten)]
        guard: Guarded,
    },
    /// Open a file to appends again after a fault, as it is on disk now.
    Repair {
        /// The file.
        file: String,
        #[command(flatten)]
        guard: Guarded,
    },
}

/// `tenure append`
pub(crate) fn append(context: &Context, args: &Append) -> Result<()> {
    let mut data = match args.text.as_deref() {
        None | Some("-") => stdin()?,
        Some(text) => text.as_bytes().to_vec(),
    };
    if !args.no_newline && data.last() != Some(&b'\n') {
        data.push(b'\n');
    }
    let appended = guarded(context, &args.file, &args.guard, |fence| fence.append_file(&args.file, &data))?;
    let shown = json!({"file": args.file, "offset": appended.offset, "length": appended.length});
    context.output().one(&shown, &appended.offset.to_string())
}

/// All of stdin, or as much as shows that it is too much: one append is one request.
fn stdin() -> Result<Vec<u8>> {
    let mut data = Vec::new();
    let most = DATAGRAM_MAX as u64;
    io::stdin()
        .take(most + 1)
        .read_to_end(&mut data)
        .map_err(|error| Failure::new(REFUSED, format!("stdin could not be read: {error}")))?;
    if data.len() as u64 > most {
        return Err(Failure::new(
            USAGE,
            format!(
                "stdin has over {most} bytes, more than one append takes: append it in pieces, under one lock"
            ),
        ));
    }
    Ok(data)
}

/// Does something with a file under its lock: the kept one, or one acquired for this.
fn guarded<T>(
    context: &Context,
    file: &str,
    args: &Guarded,
    work: impl FnOnce(&Fence) -> std::result::Result<T, Error>,
) -> Result<T> {
    let only_kept = args.no_lock || args.lock == Source::Kept;
    let kept = if only_kept {
        Some(context.kept_surely(file, args.token.token)?)
    } else {
        context.kept(file, args.token.token)?
    };
    let client = context.client()?;
    let done = match &kept {
        Some(kept) => context.under(&client, kept, work),
        None => under_own_lock(&client, file, args, work),
    };
    context.finish(&client);
    done
}

fn under_own_lock<T>(
    client: &Client,
    file: &str,
    args: &Guarded,
    work: impl FnOnce(&Fence) -> std::result::Result<T, Error>,
) -> Result<T> {
    let request = client.lock(file).label("tenure append");
    let request = match args.wait {
        Wait::No => request,
        Wait::Within(limit) => request.wait(limit),
        Wait::Forever => request.wait_forever(),
    };
    let interrupted = close_on_signal(client)?;
    let guard = match request.try_acquire().inspect_err(|_| interrupted.wait_for_the_end())? {
        Attempt::Granted(guard) => guard,
        Attempt::Refused(blocked) => {
            return Err(Failure::new(args.conflict_exit_code, not_acquired(&[file.to_string()], &blocked)));
        }
    };
    let done = work(&guard.fence()?);
    let released = guard.release();
    // What was asked for is done or not, whatever becomes of the lock, which this session's end gives back anyway.
    if let Err(error) = released {
        log::info!("the lock was not released by itself: {error}");
    }
    Ok(done?)
}

/// `tenure cat`: the bytes as they are, in both formats.
pub(crate) fn cat(context: &Context, args: &Cat) -> Result<()> {
    let client = context.client()?;
    let before = client.file_info(&args.file)?;
    let mut output = context.output();
    let mut offset = args.offset;
    while offset < before.length {
        let FileChunk { data, length, .. } = client.read_file(&args.file, offset, None)?;
        // Appends after the beginning are left out: this is the file as it was then, or at least that.
        let wanted = usize::try_from(before.length - offset).unwrap_or(usize::MAX).min(data.len());
        if wanted == 0 || length < before.length {
            return Err(replaced(&args.file));
        }
        output.bytes(&data[..wanted])?;
        offset += wanted as u64;
    }
    output.flush()?;
    // Pages of two generations must not pass for one file.
    match client.file_info(&args.file) {
        Ok(after) if after.generation == before.generation => Ok(()),
        Ok(_) => Err(replaced(&args.file)),
        Err(error) => Err(error.into()),
    }
}

fn replaced(file: &str) -> Failure {
    Failure::new(REFUSED, format!("{file:?} was deleted or rotated while it was read: read it again"))
}

/// `tenure files`
pub(crate) fn files(context: &Context, args: &Files) -> Result<()> {
    match &args.verb {
        None => list(context, &args.list),
        Some(Verb::List(which)) => list(context, which),
        Some(Verb::Info { file }) => info(context, file),
        Some(Verb::Delete { file, guard }) => {
            let changed = guarded(context, file, guard, |fence| fence.delete_file(file))?;
            context
                .output()
                .one(&json!({"file": file, "deleted": true, "generation": changed.generation}), "")
        }
        Some(Verb::Rotate { file, to, guard }) => {
            let changed = guarded(context, file, guard, |fence| fence.rotate_file(file, to))?;
            context.output().one(&json!({"file": file, "to": to, "generation": changed.generation}), "")
        }
        Some(Verb::Repair { file, guard }) => {
            let changed = guarded(context, file, guard, |fence| fence.repair_file(file))?;
            let shown = json!({"file": file, "generation": changed.generation, "length": changed.length});
            context.output().one(&shown, &changed.length.to_string())
        }
    }
}

fn list(context: &Context, which: &List) -> Result<()> {
    context.output().list(
        &["FILE", "BYTES", "GENERATION", "CRC-32C", "FAULT"],
        context.client()?.list_files(&which.prefix),
        which.most.limit,
        |file: &FileInfo| {
            vec![
                file.file.clone(),
                file.length.to_string(),
                file.generation.to_string(),
                file.checksum.clone(),
                file.fault.clone().unwrap_or_default(),
            ]
        },
    )
}

fn info(context: &Context, file: &str) -> Result<()> {
    let info = context.client()?.file_info(file)?;
    let mut plain = format!(
        "{}: {} bytes, generation {}, CRC-32C {}",
        printable(&info.file),
        info.length,
        info.generation,
        info.checksum
    );
    if let Some(fault) = &info.fault {
        plain.push_str(&format!("\nclosed to appends: {}", printable(fault)));
    }
    context.output().one(&info, &plain)
}
