//! Where a device is told of what waits for it while it is away: said in its place, for gateways, tests and what has no
//! program of its own that says it.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use clap::{Args as ClapArgs, ValueEnum};
use longwire_client::Start;
use longwire_client::packet::{self, SetPush};
use serde::Deserialize;

use super::super::Fail;
use super::super::connect::ConnectArgs;
use super::done;

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Push {
    /// By whom the device that --device names is told. To say it for another device is to be that device: its session is taken
    /// over, and a will that it left is gone
    #[arg(value_enum)]
    provider: By,
    /// What the provider calls the device: its token, or the name that the gateway knows; not with webpush or off
    target: Option<String>,
    /// With webpush: a file with the browser's subscription, as JSON.stringify writes it
    #[arg(long, value_name = "FILE")]
    subscription: Option<PathBuf>,
    /// It is told nothing between these times of each day, in UTC
    #[arg(long, value_name = "HH:MM-HH:MM", value_parser = quiet_hours)]
    quiet: Option<(u32, u32)>,
    /// What a notification says beside that there is something
    #[arg(long, value_enum, default_value_t = Shows::Nothing)]
    shows: Shows,
    #[command(flatten)]
    connection: ConnectArgs,
}

/// By whom a device is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Webhook,
    Apns,
    Fcm,
    Webpush,
    /// By nobody any more
    Off,
}

impl By {
    /// The wire's word for it; nothing where nobody is to tell it.
    const fn name(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Apns => "apns",
            Self::Fcm => "fcm",
            Self::Webpush => "webpush",
            Self::Off => "",
        }
    }
}

/// What a notification says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shows {
    Nothing,
    /// Who wrote it, and what the conversation is called
    Names,
    /// The beginning of the message, too
    Content,
}

/// Says it for the device that is named.
pub(super) async fn push(args: Push) -> Result<(), Fail> {
    if args.connection.device.is_none() {
        return Err(Fail::usage("which device is to be told? name it with --device, as its own program does"));
    }
    let set = args.wanted()?;
    let device = args.connection.device("account")?;
    let mut config = args.connection.config(&device.name)?;
    config.start = Start::Stored;
    // Kept and not read: what waits for the device is its own program's, and is not acked in its place.
    let (client, deliveries, connected) = args.connection.connect(config).await?;
    if !set.provider.is_empty() && !connected.features.contains(&format!("push-{}", set.provider)) {
        eprintln!("longwire: the broker has no provider {:?}: until it has, nobody is told", set.provider);
    }
    done(&client, client.set_push(set).await).await?;
    drop(deliveries);
    Ok(())
}

impl Push {
    /// What the arguments say, if they go together.
    fn wanted(&self) -> Result<SetPush, Fail> {
        let provider = self.provider.name();
        let mut set = SetPush { provider: provider.to_owned(), ..SetPush::default() };
        match (self.provider, &self.target, &self.subscription) {
            (By::Off, None, None) => return Ok(set),
            (By::Off, ..) => return Err(Fail::usage("off takes neither a target nor a subscription")),
            (By::Webpush, None, Some(file)) => {
                let subscription = Subscription::read(file)?;
                (set.target, set.key, set.secret) =
                    (subscription.endpoint, subscription.keys.p256dh.0.into(), subscription.keys.auth.0.into());
            }
            (By::Webpush, ..) => {
                return Err(Fail::usage("webpush takes --subscription FILE in place of a target: it says keys, too"));
            }
            (_, Some(target), None) => set.target.clone_from(target),
            (_, None, _) => return Err(Fail::usage(format!("{provider} needs what it calls the device: a target"))),
            (_, Some(_), Some(_)) => return Err(Fail::usage("--subscription is for webpush alone")),
        }
        (set.quiet_from, set.quiet_until) = self.quiet.unwrap_or_default();
        set.set_shows(match self.shows {
            Shows::Nothing => packet::Shows::Nothing,
            Shows::Names => packet::Shows::Names,
            Shows::Content => packet::Shows::Content,
        });
        Ok(set)
    }
}

/// Two times of a day, as minutes.
fn quiet_hours(text: &str) -> Result<(u32, u32), String> {
    let minute = |time: &str| {
        let (hours, minutes) = time.split_once(':')?;
        let number = |text: &str, below: u32| {
            let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u32>().ok().filter(|n| is_number && *n < below)
        };
        Some(number(hours, 24)? * 60 + number(minutes, 60)?)
    };
    let both = text.split_once('-').and_then(|(from, until)| Some((minute(from)?, minute(until)?)));
    both.ok_or_else(|| "two times of a day, such as 22:00-07:00".to_owned())
}

/// What a browser says of itself.
#[derive(Deserialize)]
struct Subscription {
    endpoint: String,
    keys: Keys,
}

#[derive(Deserialize)]
struct Keys {
    p256dh: Base64,
    auth: Base64,
}

/// Bytes, written as base64url.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Base64(Vec<u8>);

impl TryFrom<String> for Base64 {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        // Browsers leave the padding out, other writers do not.
        let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let bytes = GeneralPurpose::new(&URL_SAFE, config).decode(text);
        bytes.map(Self).map_err(|_| "a key that is not base64url")
    }
}

impl Subscription {
    fn read(path: &Path) -> Result<Self, Fail> {
        let no = |why: String| Fail::usage(format!("{}: {why}", path.display()));
        let text = fs::read(path).map_err(|error| no(error.to_string()))?;
        serde_json::from_slice(&text).map_err(|error| no(format!("no subscription of a browser: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Push,
    }

    fn wanted(words: &[&str]) -> Result<SetPush, String> {
        let line = Line::try_parse_from(["push"].iter().chain(words)).map_err(|error| error.to_string())?;
        line.args.wanted().map_err(|fail| fail.to_string())
    }

    #[test]
    fn what_is_asked_for_goes_together_or_is_refused_with_what_would_be_right() {
        let set = wanted(&["fcm", "token", "--quiet", "22:30-07:00", "--shows", "names"]).expect("they go together");
        assert_eq!((set.provider.as_str(), set.target.as_str()), ("fcm", "token"));
        assert_eq!((set.quiet_from, set.quiet_until, set.shows()), (1_350, 420, packet::Shows::Names));
        assert_eq!(wanted(&["off"]), Ok(SetPush::default()));
        for (words, says) in [
            (&["fcm"][..], "fcm needs what it calls the device"),
            (&["off", "x"], "off takes neither"),
            (&["webpush", "https://x"], "--subscription FILE"),
            (&["webpush", "--subscription", "/nowhere"], "/nowhere: "),
            (&["fcm", "x", "--subscription", "f"], "for webpush alone"),
            (&["pigeon", "x"], "possible values: webhook, apns, fcm, webpush, off"),
            (&["fcm", "x", "--quiet", "22-7"], "22:00-07:00"),
            (&["fcm", "x", "--quiet", "24:00-07:00"], "22:00-07:00"),
        ] {
            let said = wanted(words).expect_err("they do not go together");
            assert!(said.contains(says), "{words:?}: {said}");
        }
    }

    #[test]
    fn a_browsers_subscription_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("subscription.json");
        let name = path.display().to_string();
        let words = ["webpush", "--subscription", &name];
        let keys = "\"keys\":{\"p256dh\":\"BP-_\",\"auth\":\"AQI=\"}";
        let text = format!("{{\"endpoint\":\"https://push.example.com/x\",\"expirationTime\":null,{keys}}}");
        fs::write(&path, &text).expect("written");
        let set = wanted(&words).expect("a subscription");
        assert_eq!(set.target, "https://push.example.com/x");
        assert_eq!((&set.key[..], &set.secret[..]), (&[4, 255, 191][..], &[1, 2][..]));
        for (wrong, says) in [(text.replace("BP-_", "B+/"), "base64url"), ("{}".to_owned(), "endpoint")] {
            fs::write(&path, wrong).expect("written");
            let said = wanted(&words).expect_err("no subscription");
            assert!(said.contains(says) && said.contains(&name), "{said}");
        }
    }
}
