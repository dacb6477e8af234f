//! `sessions`.

use super::context::Context;
use super::duration::show_ms;
use super::exit::{Failure, REFUSED, Result};
use super::locks::Most;
use serde_json::json;
use tenure::wire::SessionItem;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Sessions {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    most: Most,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the sessions, as does `tenure sessions` alone.
    List(Most),
    /// End a session: all that it holds is released. Only from the machine of the server.
    Kill {
        /// The number of the session, as listed.
        client: u64,
    },
}

/// `tenure sessions`
pub(crate) fn sessions(context: &Context, args: &Sessions) -> Result<()> {
    match args.verb {
        None => list(context, args.most),
        Some(Verb::List(most)) => list(context, most),
        Some(Verb::Kill { client }) => {
            if !context.client()?.kill_session(client)? {
                return Err(Failure::new(REFUSED, format!("there is no session of client {client}")));
            }
            context.output().one(&json!({"client": client, "killed": true}), "")
        }
    }
}

fn list(context: &Context, most: Most) -> Result<()> {
    context.output().list(
        &["CLIENT", "NAME", "HOLDS", "WAITS", "TTL", "LEFT", "OPEN", "ADDRESS", "LABEL"],
        context.client()?.list_sessions(),
        most.limit,
        |item: &SessionItem| {
            vec![
                item.client.to_string(),
                item.name.clone(),
                item.held.to_string(),
                item.waiting.to_string(),
                show_ms(item.ttl_ms),
                show_ms(item.lease_left_ms),
                show_ms(item.open_ms),
                item.address.clone().unwrap_or_else(|| "-".into()),
                item.label.clone(),
            ]
        },
    )
}
