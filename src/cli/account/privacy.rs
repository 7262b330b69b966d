//! What a user shows of itself: who sees that it is there, and whether the other of a direct conversation sees what it read.

use std::io::{self, Write as _};

use clap::{Args as ClapArgs, ValueEnum};
use longwire_client::packet::Audience;

use super::super::Fail;
use super::super::connect::ConnectArgs;
use super::{connect, done};

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Presence {
    /// Whoever shares a conversation with this user, those of them who are its contacts, or nobody: then it sees nobody either
    #[arg(value_enum)]
    to: Option<To>,
    /// A line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: ConnectArgs,
}

/// Who sees a user's presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum To {
    Company,
    Contacts,
    Nobody,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Marks {
    /// Whether the other of a direct conversation is told what this user has read; who hides that is not told it either
    #[arg(value_enum)]
    are: Option<Are>,
    /// A line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: ConnectArgs,
}

/// What becomes of a user's marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Are {
    Shown,
    Hidden,
}

/// Prints who sees this user's presence, or says it.
pub(super) async fn presence(args: Presence) -> Result<(), Fail> {
    let client = connect(&args.connection).await?;
    let Some(to) = args.to else {
        let to = client.presence_shown_to().await?.as_str_name().to_ascii_lowercase();
        print("presence", &to, args.json)?;
        client.close().await;
        return Ok(());
    };
    let to = match to {
        To::Company => Audience::Company,
        To::Contacts => Audience::Contacts,
        To::Nobody => Audience::Nobody,
    };
    done(&client, client.show_presence(to).await).await
}

/// Prints whether this user's marks are shown, or says it.
pub(super) async fn marks(args: Marks) -> Result<(), Fail> {
    let client = connect(&args.connection).await?;
    let Some(are) = args.are else {
        let are = if client.hides_marks().await? { "hidden" } else { "shown" };
        print("marks", are, args.json)?;
        client.close().await;
        return Ok(());
    };
    done(&client, client.hide_marks(are == Are::Hidden).await).await
}

fn print(what: &str, is: &str, json: bool) -> Result<(), Fail> {
    let mut out = io::stdout();
    if json {
        writeln!(out, "{}", serde_json::json!({ what: is }))?;
    } else {
        writeln!(out, "{is}")?;
    }
    Ok(())
}
