//! `get`, `set`, `delete`, `txn`, `range`, `prefix`.

use super::context::Context;
use super::exit::{Failure, REFUSED, Result, USAGE};
use super::keep::Kept;
use super::locks::{Most, Token};
use super::output::Format;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use std::io;
use std::time::Duration;
use tenure::client::{Client, Fence, Put, Transaction};
use tenure::wire::{ChangeAsk, CompareAsk, Int, KeyItem};

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
    life: Life,
    #[command(flatten)]
    token: Token,
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Life {
    /// The key goes after this time, 100ms to 365d; without it, it stays. Each set says it anew.
    #[arg(long = "ttl", env = "TENURE_KEY_TTL", value_name = "DURATION", value_parser = super::parse_key_ttl)]
    key_ttl: Option<Duration>,
    /// The key goes with the session of the kept lock of that name, or of --token: at its release, or when it is lost.
    #[arg(long, env = "TENURE_BOUND", value_parser = clap::builder::BoolishValueParser::new())]
    bound: bool,
}

/// Keys compared and changed together: all of it takes effect, or nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = TXN_HELP)]
pub(crate) struct Txn {
    /// The transaction as JSON; `-` or nothing at all reads it from stdin.
    #[arg(value_name = "JSON", conflicts_with_all = ["compare", "set", "delete"])]
    json: Option<String>,
    /// Only if the key has this version (0: only if it does not exist). May be repeated.
    #[arg(long, env = "TENURE_COMPARE", value_name = "KEY=VERSION", value_parser = parse_compare)]
    compare: Vec<CompareAsk>,
    /// Set the key to this JSON value. May be repeated.
    #[arg(long, env = "TENURE_SET", value_name = "KEY=VALUE", value_parser = parse_set)]
    set: Vec<ChangeAsk>,
    /// Delete the key. May be repeated.
    #[arg(long, env = "TENURE_DELETE", value_name = "KEY")]
    delete: Vec<String>,
    #[command(flatten)]
    life: Life,
    #[command(flatten)]
    token: Token,
}

const TXN_HELP: &str = r#"The JSON is what the method `transaction` takes:
  {"compare": [{"key": "a", "version": 7}, {"key": "b", "version": 0}],
   "apply": [{"key": "a", "value": 1}, {"key": "b", "value": 2, "ttl_ms": 5000}, {"key": "c", "delete": true}]}

  tenure txn --compare a=7 --set a=1 --set 'b={"n": 2}' --delete c"#;

/// A transaction as it is read.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    #[serde(default)]
    compare: Vec<CompareAsk>,
    #[serde(default)]
    apply: Vec<ChangeAsk>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_left_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bound_to: Option<u64>,
}

/// `tenure get`
pub(crate) fn get(context: &Context, args: &Get) -> Result<()> {
    let client = context.client()?;
    let entry = match context.kept(&args.key, None)? {
        // Under the lock that an earlier command left held, with what is staged there; its loss is no loss for a reader.
        Some(kept) => {
            let entry = client.fence_of(kept.session, kept.token).get(&args.key);
            let entry = entry.or_else(|_| client.get(&args.key));
            context.finish(&client);
            entry?
        }
        None => client.get(&args.key)?,
    };
    let Some(entry) = entry else { return Err(no_such_key(&args.key)) };
    let text = match args.raw.then(|| serde_json::from_str::<String>(entry.value.get())) {
        Some(Ok(text)) => text,
        // Not asked for, or no string: then the JSON text is the plainest form that it has.
        Some(Err(_)) | None => entry.value.get().to_owned(),
    };
    match context.format() {
        Format::Json => {
            let found = Found {
                key: &args.key,
                value: &entry.value,
                version: entry.version,
                ttl_left_ms: entry.ttl_left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
                bound_to: entry.bound_to,
            };
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
    let put = |mut put: Put| {
        if let Some(version) = args.expected.if_version {
            put = put.if_version(version);
        }
        if let Some(ttl) = args.life.key_ttl {
            put = put.ttl(ttl);
        }
        if args.life.bound { put.bound() } else { put }
    };
    let version = if args.life.bound {
        let kept = context.kept(&args.key, args.token.token)?.ok_or_else(nothing_to_bind_to)?;
        write_under(context, &kept, |fence| put(fence.put_raw(&args.key, &json)).send())
    } else {
        write(
            context,
            &args.key,
            args.token,
            |fence| put(fence.put_raw(&args.key, &json)).send(),
            |free| put(free.put_raw(&args.key, &json)).send(),
        )
    }?;
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

/// `tenure txn`
pub(crate) fn txn(context: &Context, args: &Txn) -> Result<()> {
    let mut asked = asked(args)?;
    for change in &mut asked.apply {
        if change.delete.is_none() {
            let ttl = args.life.key_ttl.map(|ttl| Int(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)));
            change.ttl_ms = change.ttl_ms.or(ttl);
            change.bound = change.bound.or(args.life.bound.then_some(true));
        }
    }
    let bound = asked.apply.iter().any(|change| change.bound == Some(true));
    let kept = kept_of_all(context, &asked.apply, args.token.token)?;
    let commit = |mut transaction: Transaction| {
        for CompareAsk { key, version } in &asked.compare {
            transaction = transaction.compare(key, version.0);
        }
        asked.apply.iter().cloned().fold(transaction, Transaction::apply).commit()
    };
    let version = match kept {
        Some(kept) => write_under(context, &kept, |fence| commit(fence.transaction()))?,
        None if bound => return Err(nothing_to_bind_to()),
        None => {
            let client = context.client()?;
            let version = commit(client.transaction());
            context.finish(&client);
            version?
        }
    };
    context.output().one(&json!({"applied": true, "version": version}), &version.to_string())
}

/// What a transaction asks, from the flags or as JSON.
fn asked(args: &Txn) -> Result<Asked> {
    let by_flags = !(args.compare.is_empty() && args.set.is_empty() && args.delete.is_empty());
    if by_flags && args.json.is_none() {
        let delete =
            |key: &String| ChangeAsk { key: key.clone(), delete: Some(true), ..ChangeAsk::default() };
        let apply = args.set.iter().cloned().chain(args.delete.iter().map(delete)).collect();
        return Ok(Asked { compare: args.compare.clone(), apply });
    }
    let text = match args.json.as_deref() {
        Some(json) if json != "-" => json.to_owned(),
        Some(_) | None => io::read_to_string(io::stdin())
            .map_err(|error| Failure::new(USAGE, format!("stdin could not be read: {error}")))?,
    };
    serde_json::from_str(&text).map_err(|error| {
        Failure::new(USAGE, format!("the transaction is not what `tenure txn --help` shows: {error}"))
    })
}

/// The kept lock under which a transaction changes its keys; none if none of their locks is kept. A transaction has one
/// token: with several to choose from, the caller says which.
fn kept_of_all(context: &Context, apply: &[ChangeAsk], token: Option<u64>) -> Result<Option<Kept>> {
    if let Some(token) = token {
        return context.kept("", Some(token));
    }
    let mut found: Option<Kept> = None;
    for change in apply {
        match (context.kept(&change.key, None)?, &found) {
            (Some(kept), Some(other)) if kept.token != other.token => {
                let sentence = format!(
                    "the locks {:?} and {:?} are kept under different grants, and a transaction acts under one: say \
                     --token, or write the keys one by one",
                    other.name, kept.name
                );
                return Err(Failure::new(USAGE, sentence));
            }
            (Some(kept), None) => found = Some(kept),
            (Some(_), Some(_)) | (None, _) => {}
        }
    }
    Ok(found)
}

fn parse_compare(text: &str) -> std::result::Result<CompareAsk, String> {
    match text.rsplit_once('=').map(|(key, version)| (key, version.parse())) {
        Some((key, Ok(version))) => Ok(CompareAsk { key: key.into(), version: Int(version) }),
        Some((_, Err(_))) | None => {
            Err("write KEY=VERSION, the version as a number (0: the key must not exist)".into())
        }
    }
}

fn parse_set(text: &str) -> std::result::Result<ChangeAsk, String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, the value as JSON")?;
    match RawValue::from_string(value.trim().to_owned()) {
        Ok(value) => Ok(ChangeAsk { key: key.into(), value: Some(value), ..ChangeAsk::default() }),
        Err(error) => Err(format!("the value is not JSON ({error}): quote it as in {key}='\"text\"'")),
    }
}

fn nothing_to_bind_to() -> Failure {
    let sentence = "a key is bound to a session that lives on, and that of this command ends with it: `tenure acquire` the \
                    lock of that name first, or name a kept lock with --token";
    Failure::new(USAGE, sentence)
}

/// Writes under a kept lock.
fn write_under<T>(
    context: &Context,
    kept: &Kept,
    write: impl FnOnce(&Fence) -> tenure::client::Result<T>,
) -> Result<T> {
    let client = context.client()?;
    let written = context.under(&client, kept, write);
    context.finish(&client);
    written
}

/// Writes under the lock of that name if it is kept, and else as anybody may.
fn write<T>(
    context: &Context,
    key: &str,
    token: Token,
    under: impl FnOnce(&Fence) -> tenure::client::Result<T>,
    free: impl FnOnce(&Client) -> tenure::client::Result<T>,
) -> Result<T> {
    if let Some(kept) = context.kept(key, token.token)? {
        return write_under(context, &kept, under);
    }
    let client = context.client()?;
    let written = free(&client).map_err(Failure::from);
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
