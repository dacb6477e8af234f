//! `get`, `set`, `delete`, `range`, `prefix`.

use super::context::Context;
use super::exit::{Failure, REFUSED, Result, USAGE};
use super::locks::{Most, Token};
use super::output::Format;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use tenure::client::{Client, Fence};
use tenure::wire::KeyItem;

#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    /// The key.
    key: String,
    /// Print a value that is a JSON string as the text it stands for.
    #[arg(short, long, env = "TENURE_RAW", value_parser = clap::builder::BoolishValueParser::new())]
    raw: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Set {
    /// The key.
    key: String,
    /// The value: JSON, kept as the text that it is; with --string any text.
    #[arg(allow_negative_numbers = true)]
    value: String,
    /// Take the value as text and not as JSON.
    #[arg(short, long, env = "TENURE_STRING", value_parser = clap::builder::BoolishValueParser::new())]
    string: bool,
    #[command(flatten)]
    expected: Expected,
    #[command(flatten)]
    token: Token,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Delete {
    /// The key.
    key: String,
    #[command(flatten)]
    expected: Expected,
    #[command(flatten)]
    token: Token,
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Expected {
    /// Only if the key has this version (0: only if it does not exist).
    #[arg(long, env = "TENURE_IF_VERSION", value_name = "N")]
    if_version: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Range {
    /// The first key.
    from: String,
    /// The last key; it is part of the range.
    to: String,
    #[command(flatten)]
    shown: Shown,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Prefix {
    /// What the keys begin with; without it, all keys.
    #[arg(default_value = "")]
    prefix: String,
    #[command(flatten)]
    shown: Shown,
}

#[derive(Debug, clap::Args)]
struct Shown {
    #[command(flatten)]
    most: Most,
    /// Only the keys, one a line.
    #[arg(long, env = "TENURE_KEYS_ONLY", value_parser = clap::builder::BoolishValueParser::new())]
    keys_only: bool,
}

/// A key for programs.
#[derive(Serialize)]
struct Found<'a> {
    key: &'a str,
    value: &'a RawValue,
    version: u64,
}

/// `tenure get`
pub(crate) fn get(context: &Context, args: &Get) -> Result<()> {
    let Some(entry) = context.client()?.get(&args.key)? else {
        return Err(no_such_key(&args.key));
    };
    let text = match args.raw.then(|| serde_json::from_str::<String>(entry.value.get())) {
        Some(Ok(text)) => text,
        // Not asked for, or no string: then the JSON text is the plainest form that it has.
        Some(Err(_)) | None => entry.value.get().to_owned(),
    };
    match context.format() {
        Format::Json => {
            let found = Found { key: &args.key, value: &entry.value, version: entry.version };
            context.output().one(&found, "")
        }
        Format::Table => {
            let mut output = context.output();
            output.bytes(format!("{text}\n").as_bytes())?;
            output.flush()
        }
    }
}

/// `tenure set`
pub(crate) fn set(context: &Context, args: &Set) -> Result<()> {
    let json = if args.string {
        serde_json::to_string(&args.value)
            .map_err(|error| Failure::new(USAGE, format!("the value cannot be written as JSON: {error}")))?
    } else {
        if let Err(error) = serde_json::from_str::<&RawValue>(&args.value) {
            return Err(Failure::new(
                USAGE,
                format!("the value is not JSON ({error}): quote it as in '\"text\"', or say --string"),
            ));
        }
        args.value.clone()
    };
    let version = write(
        context,
        &args.key,
        args.token,
        |fence| fence.set_raw(&args.key, &json, args.expected.if_version),
        |free| free.set_raw(&args.key, &json, args.expected.if_version),
    )?;
    context.output().one(&json!({"key": args.key, "version": version}), &version.to_string())
}

/// `tenure delete`
pub(crate) fn delete(context: &Context, args: &Delete) -> Result<()> {
    let version = write(
        context,
        &args.key,
        args.token,
        |fence| match args.expected.if_version {
            Some(version) => fence.delete_if(&args.key, version),
            None => fence.delete(&args.key),
        },
        |free| match args.expected.if_version {
            Some(version) => free.delete_if(&args.key, version),
            None => free.delete(&args.key),
        },
    )?;
    let Some(version) = version else { return Err(no_such_key(&args.key)) };
    context.output().one(&json!({"key": args.key, "deleted": true, "version": version}), &version.to_string())
}

/// Writes under the lock of that name if it is kept, and else as anybody may.
fn write<T>(
    context: &Context,
    key: &str,
    token: Token,
    under: impl FnOnce(&Fence) -> tenure::client::Result<T>,
    free: impl FnOnce(&Client) -> tenure::client::Result<T>,
) -> Result<T> {
    let kept = context.kept(key, token.token)?;
    let client = context.client()?;
    let written = match &kept {
        Some(kept) => context.under(&client, kept, under),
        None => free(&client).map_err(Failure::from),
    };
    context.finish(&client);
    written
}

fn no_such_key(key: &str) -> Failure {
    Failure::new(REFUSED, format!("there is no key {key:?}"))
}

/// `tenure range`
pub(crate) fn range(context: &Context, args: &Range) -> Result<()> {
    list(context, context.client()?.range(&args.from, &args.to), &args.shown)
}

/// `tenure prefix`
pub(crate) fn prefix(context: &Context, args: &Prefix) -> Result<()> {
    list(context, context.client()?.prefix(&args.prefix), &args.shown)
}

fn list(
    context: &Context,
    items: impl Iterator<Item = tenure::client::Result<KeyItem>>,
    shown: &Shown,
) -> Result<()> {
    let limit = shown.most.limit;
    match (shown.keys_only, context.format()) {
        (false, _) => context.output().list(&["KEY", "VERSION", "VALUE"], items, limit, |item| {
            vec![item.key.clone(), item.version.to_string(), item.value.get().to_owned()]
        }),
        (true, Format::Table) => context.output().lines(items.map(|item| item.map(|item| item.key)), limit),
        (true, Format::Json) => {
            context.output().list(&[], items.map(|item| item.map(|item| item.key)), limit, |_| Vec::new())
        }
    }
}
