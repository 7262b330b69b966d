//! How a conversation is named on the command line.

use std::fmt;
use std::str::FromStr;

use longwire_client::Client;

use super::Fail;

/// `@user`, `#channel`, or the number of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The direct conversation with a user.
    Direct(String),
    /// A channel, by name.
    Channel(String),
    /// Any conversation, by number.
    Id(u64),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(user) = text.strip_prefix('@').filter(|user| !user.is_empty()) {
            return Ok(Self::Direct(user.to_owned()));
        }
        if let Some(name) = text.strip_prefix('#').filter(|name| !name.is_empty()) {
            return Ok(Self::Channel(name.to_owned()));
        }
        match text.parse() {
            Ok(id) if id != 0 => Ok(Self::Id(id)),
            _ => Err("a conversation is @user, '#channel' (in quotes), or a number".to_owned()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(user) => write!(f, "@{user}"),
            Self::Channel(name) => write!(f, "#{name}"),
            Self::Id(id) => id.fmt(f),
        }
    }
}

impl Target {
    /// The conversation's id; opens the conversation if it is named by what it is. Opening twice is opening once.
    pub(super) async fn open(&self, client: &Client) -> Result<u64, Fail> {
        let publication = match self {
            Self::Id(id) => return Ok(*id),
            Self::Direct(user) => client.open_direct(user).await?,
            Self::Channel(name) => client.open_channel(name).await?,
        };
        match publication.await {
            Ok(ack) => Ok(ack.conversation),
            Err(error) => Err(Fail::from(error).during(format!("opening {self}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_parses_to_the_same() {
        for text in ["@bob", "#news/today", "4097"] {
            assert_eq!(text.parse::<Target>().expect("a conversation").to_string(), text);
        }
        for text in ["", "@", "#", "0", "-1", "bob"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
