//! `longwire pub`: one message, the lines of stdin, or a file that is published exactly once however often it is killed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args as ClapArgs;
use indicatif::{ProgressBar, ProgressStyle};
use longwire_client::packet::{self, publish::Action};
use longwire_client::{Client, Outbox, Publication, PublishError, Start};
use longwire_protocol::limits::{EXPIRES_MS_MAX, MENTIONS_MAX, PAYLOAD_BYTES_MAX};
use longwire_protocol::reason::Reason;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::connect::{ConnectArgs, tell_states};
use super::target::Target;
use super::{Fail, keep};

const EXAMPLES: &str = "\
Examples:
  longwire pub @bob 'lunch at noon?'
  longwire pub @bob 'the code is 4711' --reply-to 17 --expires-in 10m --silent
  longwire pub 12289 'who comes, @bob?' --mention bob
  tail -f app.log | longwire pub '#logs' -l
  longwire pub '#readings' --from readings.txt     kill it, run it again: each line is stored once, in order

With --from, a small file FILE.longwire beside FILE remembers the counter of message ids; a message's id is its line
number. Do not change lines that were published; more may be added at the end.";

/// Publishes messages
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// @user, '#channel' or the number of a conversation
    conversation: Target,

    /// The message; without it, and without -l or --from, all of stdin is one message
    #[arg(conflicts_with_all = ["lines", "from"])]
    message: Option<String>,

    /// One message for each line of stdin
    #[arg(short, long)]
    lines: bool,

    /// One message for each line of FILE, exactly once, however often this is killed and run again
    #[arg(long, value_name = "FILE", conflicts_with = "lines")]
    from: Option<PathBuf>,

    /// The number of the message that this one answers
    #[arg(long, value_name = "SEQ", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "from")]
    reply_to: Option<u64>,

    /// It is shown for so long, 366 days at the most, and then to nobody any more
    #[arg(long, value_name = "TIME", value_parser = expiry, conflicts_with = "from")]
    expires_in: Option<Duration>,

    /// Nobody is disturbed for it: devices that are away are not told
    #[arg(long, conflicts_with = "from")]
    silent: bool,

    /// The name of a user in the conversation whose attention it asks for; may be given up to 50 times
    #[arg(long, value_name = "USER", conflicts_with = "from")]
    mention: Vec<String>,

    /// Asks for everybody's attention
    #[arg(long, conflicts_with = "from")]
    mention_all: bool,

    /// Print the ack of each message as a line of JSON: message_id, seq, time
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: ConnectArgs,
}

/// How many publishes are under way at once; the protocol's span of message ids.
const UNDER_WAY_MAX: usize = 256;
/// The most members that one page holds.
const PAGE: u32 = 200;
/// Lines read from stdin ahead of those published.
const LINES_AHEAD: usize = 256;

pub(super) async fn run(args: Args) -> Result<(), Fail> {
    match &args.from {
        Some(path) => publish_file(&args, path).await,
        None => publish_now(&args).await,
    }
}

/// How long a message is shown.
fn expiry(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time < Duration::from_millis(1) || time > Duration::from_millis(EXPIRES_MS_MAX) {
        return Err(format!("{text} is not between 1ms and {} days", EXPIRES_MS_MAX / 86_400_000));
    }
    Ok(time)
}

/// What stands beside each message; nothing where nothing is asked for.
async fn beside(args: &Args, client: &Client, conversation: u64) -> Result<Option<packet::Beside>, Fail> {
    let mentions = members_named(client, &args.conversation, conversation, &args.mention).await?;
    let beside = packet::Beside {
        reply_to: args.reply_to.unwrap_or(0),
        expires_in_ms: args.expires_in.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        silent: args.silent,
        mentions,
        mentions_all: args.mention_all,
        ..packet::Beside::default()
    };
    Ok(Some(beside).filter(|beside| *beside != packet::Beside::default()))
}

/// The ids of members, in the order of their names here.
async fn members_named(
    client: &Client,
    target: &Target,
    conversation: u64,
    names: &[String],
) -> Result<Vec<u64>, Fail> {
    if names.len() > MENTIONS_MAX {
        return Err(Fail::usage(format!("--mention: {} users are more than {MENTIONS_MAX}", names.len())));
    }
    let names: Vec<&str> = names.iter().map(|name| name.strip_prefix('@').unwrap_or(name)).collect();
    let (mut found, mut after) = (vec![0; names.len()], 0);
    while found.contains(&0) {
        let page = client.members(conversation, after, PAGE).await.map_err(|e| Fail::from(e).during("--mention"))?;
        for member in &page.members {
            let named = names.iter().zip(&mut found).filter(|(name, _)| **name == member.name);
            named.for_each(|(_, id)| *id = member.user);
        }
        after = page.next;
        if after == 0 {
            break;
        }
    }
    match names.iter().zip(&found).find(|(_, id)| **id == 0) {
        Some((name, _)) => {
            let hint = format!("longwire conversation members '{target}'");
            Err(Fail::usage(format!("--mention: {name:?} is not in {target}; who is, says {hint}")))
        }
        None => Ok(found),
    }
}

/// What stdin or the command line holds: gone if this is killed before the acks.
async fn publish_now(args: &Args) -> Result<(), Fail> {
    let device = args.connection.device("pub")?;
    let mut config = args.connection.config(&device.name)?;
    config.start = Start::Fresh;
    let (client, deliveries, _) = args.connection.connect(config).await?;
    drop(deliveries);
    tell_states(&client);
    let conversation = args.conversation.open(&client).await?;
    let beside = beside(args, &client, conversation).await?;
    let mut acks = Acks { under_way: VecDeque::new(), json: args.json };
    let mut messages = if args.lines { stdin_lines() } else { one_message(args.message.as_deref())? };
    while let Some(message) = messages.recv().await {
        let message = message?;
        acks.make_room().await?;
        let publication = match &beside {
            Some(beside) => client.publish_with(conversation, message, beside.clone()).await?,
            None => client.publish(conversation, message).await?,
        };
        acks.under_way.push_back(publication);
    }
    acks.all().await?;
    client.close().await;
    Ok(())
}

fn one_message(message: Option<&str>) -> Result<mpsc::Receiver<io::Result<Vec<u8>>>, Fail> {
    let message = match message {
        Some(message) => message.as_bytes().to_vec(),
        None => {
            let mut all = Vec::new();
            io::stdin().lock().take(u64::from(PAYLOAD_BYTES_MAX) + 1).read_to_end(&mut all)?;
            if all.len() > PAYLOAD_BYTES_MAX as usize {
                return Err(Fail::usage(format!("stdin is more than one message holds ({PAYLOAD_BYTES_MAX} bytes)")));
            }
            all
        }
    };
    let (sender, receiver) = mpsc::channel(1);
    // The channel is new and holds one.
    drop(sender.try_send(Ok(message)));
    Ok(receiver)
}

/// Reads stdin on a thread of its own: it blocks, and it ends with the process.
fn stdin_lines() -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(LINES_AHEAD);
    std::thread::spawn(move || {
        for line in io::stdin().lock().split(b'\n') {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Publishes without an answer yet, oldest first.
struct Acks {
    under_way: VecDeque<Publication>,
    json: bool,
}

impl Acks {
    async fn make_room(&mut self) -> Result<(), Fail> {
        while self.under_way.len() >= UNDER_WAY_MAX {
            self.next().await?;
        }
        Ok(())
    }

    async fn all(&mut self) -> Result<(), Fail> {
        while !self.under_way.is_empty() {
            self.next().await?;
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<(), Fail> {
        let Some(publication) = self.under_way.front_mut() else { return Ok(()) };
        let outcome = publication.await;
        self.under_way.pop_front();
        let ack = outcome?;
        if self.json {
            let line = serde_json::json!({ "message_id": ack.message_id, "seq": ack.seq, "time": ack.time });
            writeln!(io::stdout(), "{line}")?;
        }
        Ok(())
    }
}

// ---------------------------------------------------------------------------------------------- --from

/// Message ids up to this one are for what comes before the first line: line 1 has the next.
const SETUP_IDS: u64 = 16;
/// The id under which the conversation is opened.
const OPEN_ID: u64 = 1;

/// What `FILE.longwire` remembers of a published file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    /// The conversation as it was named.
    conversation: String,
    /// Its id, once it is known: no line is published before.
    id: u64,
    /// The life of the device's counter that the line numbers are ids of.
    incarnation: u64,
}

async fn publish_file(args: &Args, path: &Path) -> Result<(), Fail> {
    let mut lines = Lines::open(path)?;
    let state = keep::beside(path);
    let mut progress = keep::read::<Progress>(&state)?.unwrap_or_default();
    let name = args.conversation.to_string();
    if !progress.conversation.is_empty() && progress.conversation != name {
        let was = &progress.conversation;
        let state = state.display();
        return Err(Fail::usage(format!(
            "{} goes to {was}; to publish it again elsewhere, delete {state}",
            path.display()
        )));
    }
    progress.conversation = name;

    let device = args.connection.device_of_file("pub", path)?;
    let mut config = args.connection.config(&device)?;
    config.start = Start::Fresh;
    config.outbox = Outbox::Numbered { incarnation: progress.incarnation };
    let (client, deliveries, connected) = args.connection.connect(config).await?;
    drop(deliveries);
    tell_states(&client);
    if progress.incarnation != connected.incarnation {
        // From here on the ids have a meaning; nothing was sent under them before this is on disk.
        progress.incarnation = connected.incarnation;
        keep::write(&state, &progress)?;
        keep::sync_directory(&state)?;
    }
    if progress.id == 0 {
        progress.id = open(&client, &args.conversation).await?;
        keep::write(&state, &progress)?;
        keep::sync_directory(&state)?;
    }

    let first = connected.first_unanswered.saturating_sub(SETUP_IDS).max(1);
    lines.skip_to(first)?;
    let bar = progress_bar(lines.bytes);
    let mut under_way: VecDeque<(u64, Publication)> = VecDeque::new();
    let mut stored = 0_u64;
    while let Some((number, content)) = lines.next()? {
        while under_way.len() >= UNDER_WAY_MAX {
            stored += settle(&mut under_way).await?;
            bar.set_position(lines.at);
        }
        let publish = packet::Publish { conversation: progress.id, content: content.into(), ..Default::default() };
        match client.publish_numbered(number + SETUP_IDS, publish).await {
            Ok(publication) => under_way.push_back((number, publication)),
            // A reconnect may find the floor above it: it was answered.
            Err(PublishError::IdNotRising { .. }) => stored += 1,
            Err(error) => return Err(Fail::from(error).during(format!("line {number}"))),
        }
    }
    while !under_way.is_empty() {
        stored += settle(&mut under_way).await?;
    }
    bar.finish_and_clear();
    client.close().await;
    if args.json {
        let line = serde_json::json!({ "conversation": progress.id, "from_line": first, "lines": stored });
        writeln!(io::stdout(), "{line}")?;
    }
    Ok(())
}

/// Opens the conversation under a message id of the set-up, so that this too happens once.
async fn open(client: &Client, target: &Target) -> Result<u64, Fail> {
    let action = match target {
        Target::Id(id) => return Ok(*id),
        Target::Direct(user) => Action::OpenDirect(packet::OpenDirect { user: user.clone() }),
        Target::Channel(name) => Action::OpenChannel(packet::OpenChannel { name: name.clone() }),
    };
    let publish = packet::Publish { action: Some(action), ..Default::default() };
    let opening = || format!("opening {target}");
    let publication = client.publish_numbered(OPEN_ID, publish).await.map_err(|e| Fail::from(e).during(opening()))?;
    Ok(publication.await.map_err(|error| Fail::from(error).during(opening()))?.conversation)
}

/// Waits for the oldest; a stale id was stored in an earlier life of this command.
async fn settle(under_way: &mut VecDeque<(u64, Publication)>) -> Result<u64, Fail> {
    let Some((number, publication)) = under_way.front_mut() else { return Ok(0) };
    let (number, outcome) = (*number, publication.await);
    under_way.pop_front();
    match outcome {
        Ok(_) | Err(PublishError::Stale { .. }) => Ok(1),
        Err(PublishError::Refused(refusal)) if refusal.reason == Reason::StaleId => Ok(1),
        Err(error) => Err(Fail::from(error).during(format!("line {number}"))),
    }
}

/// The lines of a file, one at a time: memory holds one of them.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    /// The number of the line read last.
    number: u64,
    at: u64,
    bytes: u64,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, Fail> {
        let file = File::open(path).map_err(|error| Fail::failed(format!("{}: {error}", path.display())))?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), reader: BufReader::with_capacity(1 << 16, file), number: 0, at: 0, bytes })
    }

    /// Passes over the lines before this number.
    fn skip_to(&mut self, number: u64) -> Result<(), Fail> {
        while self.number + 1 < number {
            let passed = self.reader.skip_until(b'\n')?;
            if passed == 0 {
                let (path, has) = (self.path.display(), self.number);
                return Err(Fail::failed(format!(
                    "{path} has {has} lines, but line {} of it was published: it is not the file it was",
                    number - 1
                )));
            }
            self.number += 1;
            self.at += passed as u64;
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>, Fail> {
        let mut line = Vec::new();
        let limit = u64::from(PAYLOAD_BYTES_MAX) + 2;
        let read = (&mut self.reader).take(limit).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        self.at += read as u64;
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.len() > PAYLOAD_BYTES_MAX as usize {
            let (path, number) = (self.path.display(), self.number);
            return Err(Fail::failed(format!(
                "{path}: line {number} is longer than a message ({PAYLOAD_BYTES_MAX} bytes)"
            )));
        }
        Ok(Some((self.number, line)))
    }
}

/// On a terminal's stderr, and only there.
fn progress_bar(bytes: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}, {eta} left");
    ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(text: &[u8]) -> Lines {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lines");
        std::fs::write(&path, text).expect("a file");
        Lines::open(&path).expect("readable")
    }

    #[test]
    fn lines_are_numbered_and_whole() {
        let mut lines = lines_of(b"a\n\nccc");
        let mut all = Vec::new();
        while let Some((number, line)) = lines.next().expect("readable") {
            all.push((number, String::from_utf8(line).expect("text")));
        }
        assert_eq!(all, [(1, "a".to_owned()), (2, String::new()), (3, "ccc".to_owned())]);
        assert_eq!(lines.at, lines.bytes);
    }

    #[test]
    fn a_rerun_goes_on_where_it_was_and_notices_a_file_that_shrank() {
        let mut lines = lines_of(b"a\nb\nc\n");
        lines.skip_to(3).expect("there");
        assert_eq!(lines.next().expect("readable"), Some((3, b"c".to_vec())));
        let mut lines = lines_of(b"a\nb\nc\n");
        lines.skip_to(4).expect("all was published");
        assert_eq!(lines.next().expect("readable"), None);
        assert!(lines_of(b"a\nb\nc\n").skip_to(5).is_err());
    }

    #[test]
    fn a_line_longer_than_a_message_is_an_error() {
        let mut lines = lines_of(&[b'x'; PAYLOAD_BYTES_MAX as usize + 1]);
        assert!(lines.next().is_err());
        let mut lines = lines_of(&[b'x'; PAYLOAD_BYTES_MAX as usize]);
        assert!(lines.next().is_ok());
    }
}
