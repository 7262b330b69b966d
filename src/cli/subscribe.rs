//! `longwire sub`: what is said in a conversation, on stdout at least once, in a file exactly once.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Args as ClapArgs;
use longwire_client::packet::{self, CatchUpMode, EntryKind, HeadReason, Window, item};
use longwire_client::{Client, Deliveries, Delivery, Direction, Item, Start};
use longwire_protocol::limits::{WINDOW_BYTES_MAX, WINDOW_ITEMS_MAX};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::connect::{ConnectArgs, tell_states};
use super::target::Target;
use super::{Fail, keep};

const EXAMPLES: &str = "\
Examples:
  longwire sub @bob
  longwire sub '#news' --out news.txt          exactly once: kill it, run it again, nothing is missing or twice
  longwire sub '#alarms' --count 1 --timeout 60s && wake-up
  longwire sub '#news' --json | jq .seq

A message is one line: its content as it is (use --json for contents with line breaks). On a terminal, what would steer
the terminal is shown as an escape instead, such as \\u{1b}; --raw leaves it. With --out, a small file
FILE.longwire beside FILE remembers how much of FILE counts, and where to go on.";

/// Prints or stores what is said in a conversation
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// @user, '#channel' or the number of a conversation
    conversation: Target,

    /// Append to FILE, exactly once over kills and restarts; without it stdout gets each message at least once
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Begin with the first entry that there is, instead of with what is said from now on; only where FILE is new
    #[arg(long)]
    from_start: bool,

    /// Whole entries as lines of JSON, also those that are not messages
    #[arg(long)]
    json: bool,

    /// Contents as they are on a terminal, too: whoever writes them can then steer it
    #[arg(long, conflicts_with = "out")]
    raw: bool,

    /// End after this many messages; with --out, once FILE holds as many
    #[arg(long, short = 'n')]
    count: Option<u64>,

    /// End after this time; exit code 1 if --count was not reached
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,

    #[command(flatten)]
    connection: ConnectArgs,
}

/// What may be gathered before it is made durable and acked.
const BATCH_BYTES: usize = 1 << 20;
/// The same in items: a quarter of the window, so that acks are on their way before it is full.
const BATCH_ITEMS: usize = WINDOW.items as usize / 4;
/// How long a batch for a file is gathered.
const PATIENCE: Duration = Duration::from_millis(50);
/// What may be on its way: much, since each ack waits for the disk.
const WINDOW: Window = Window { items: WINDOW_ITEMS_MAX, bytes: WINDOW_BYTES_MAX };
/// Entries of one page of history.
const PAGE: u32 = 200;

pub(super) async fn run(args: Args) -> Result<(), Fail> {
    let mut sink = match &args.out {
        Some(path) => Sink::file(path, &args.conversation)?,
        None => Sink::stdout(args.raw),
    };
    let device = match &args.out {
        Some(path) => args.connection.device_of_file("sub", path)?,
        None => String::new(),
    };
    // Held for as long as this runs: the name is this process's.
    let reserved = if device.is_empty() { Some(args.connection.device("sub")?) } else { None };
    let mut config = args.connection.config(reserved.as_ref().map_or(device.as_str(), |device| &device.name))?;
    config.catch_up = CatchUpMode::All;
    (config.express, config.bulk) = (WINDOW, WINDOW);
    config.start = match &sink.kept.cursor {
        Some(cursor) => Start::Own(Bytes::from(cursor.clone())),
        None => Start::Fresh,
    };
    let (client, deliveries, _) = args.connection.connect(config).await?;
    tell_states(&client);
    let conversation = args.conversation.open(&client).await?;
    if sink.kept.id != 0 && sink.kept.id != conversation {
        return Err(Fail::failed(format!("{} is another conversation on this broker", args.conversation)));
    }
    sink.kept.id = conversation;
    if matches!(args.conversation, Target::Channel(_)) {
        // A row of its own on the broker: what is said while this is away is kept for it.
        let joined = client.join(conversation).await?.await;
        joined.map_err(|error| Fail::from(error).during(format!("joining {}", args.conversation)))?;
    }
    // What FILE holds already counts: run again after a kill, the same command ends with the same FILE.
    let left = args.count.map(|count| count.saturating_sub(sink.kept.messages));
    if left == Some(0) {
        return Ok(());
    }
    let follower = Follower { client, conversation, sink, json: args.json, left };
    let until = args.timeout.map(|timeout| Instant::now() + timeout);
    follower.run(deliveries, until, args.from_start).await
}

/// Follows one conversation by its seqs: each is written once, and one that does not come is fetched or explained.
struct Follower {
    client: Client,
    conversation: u64,
    sink: Sink,
    json: bool,
    /// How many messages are still wanted, if that was said.
    left: Option<u64>,
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    More,
    Enough,
}

impl Follower {
    async fn run(mut self, mut deliveries: Deliveries, until: Option<Instant>, from_start: bool) -> Result<(), Fail> {
        let outcome = tokio::select! {
            outcome = self.follow(&mut deliveries, from_start) => outcome,
            () = at(until) => match self.left {
                Some(left) => Err(Fail::failed(format!("time is up, {left} messages are missing"))),
                None => Ok(()),
            },
        };
        self.sink.keep(None)?;
        self.client.close().await;
        outcome
    }

    async fn follow(&mut self, deliveries: &mut Deliveries, from_start: bool) -> Result<(), Fail> {
        if self.begin(from_start).await? == Flow::Enough {
            return Ok(());
        }
        loop {
            let Some(delivery) = deliveries.next().await else {
                return Err(Fail::ended(&self.client.states().borrow()));
            };
            // What comes within a moment is made durable at once: two fsyncs for many messages.
            let until = Instant::now() + self.sink.patience();
            let mut items = delivery.items.len();
            let mut held: Vec<Delivery> = Vec::new();
            let mut flow = self.take(&delivery).await?;
            held.push(delivery);
            while flow == Flow::More && self.sink.unkept < BATCH_BYTES && items < BATCH_ITEMS {
                let Ok(Some(next)) = timeout_at(until, deliveries.next()).await else { break };
                items += next.items.len();
                flow = self.take(&next).await?;
                held.push(next);
            }
            let cursor = if flow == Flow::More { held.iter().rev().find_map(|held| held.cursor.clone()) } else { None };
            self.sink.keep(cursor.as_deref())?;
            for delivery in held {
                delivery.stored();
            }
            if flow == Flow::Enough {
                return Ok(());
            }
        }
    }

    /// Where there is no place to go on from: at the first entry, or behind the newest.
    async fn begin(&mut self, from_start: bool) -> Result<Flow, Fail> {
        if self.sink.kept.next_seq != 0 {
            // With a cursor the stream begins there; without one it began at the broker's tail.
            return if self.sink.kept.cursor.is_some() { Ok(Flow::More) } else { self.fetch(u64::MAX).await };
        }
        let newest = self.client.history(self.conversation, 0, 1, Direction::Backwards).await?;
        self.sink.kept.next_seq = if from_start { 1 } else { newest.head_seq + 1 };
        self.sink.keep(None)?;
        self.fetch(newest.head_seq).await
    }

    async fn take(&mut self, delivery: &Delivery) -> Result<Flow, Fail> {
        for item in &delivery.items {
            let flow = match item {
                Item::Entry(entry) if entry.conversation == self.conversation => self.entry(entry).await?,
                Item::Own(own) if own.conversation == self.conversation => match &own.entry {
                    Some(entry) => self.entry(entry).await?,
                    None => self.fetch(own.seq).await?,
                },
                Item::Skipped(head) if head.conversation == self.conversation => self.fetch(head.to_seq).await?,
                // The broker went on from its tail: what lies between is in history.
                Item::Reset(_) => self.fetch(u64::MAX).await?,
                _ => Flow::More,
            };
            if flow == Flow::Enough {
                return Ok(flow);
            }
        }
        Ok(Flow::More)
    }

    async fn entry(&mut self, entry: &packet::Entry) -> Result<Flow, Fail> {
        if entry.seq > self.sink.kept.next_seq && self.fetch(entry.seq - 1).await? == Flow::Enough {
            return Ok(Flow::Enough);
        }
        if entry.seq < self.sink.kept.next_seq {
            return Ok(Flow::More);
        }
        self.write(entry)
    }

    /// Reads from history what lies between the last that was written and `to_seq`, that included.
    async fn fetch(&mut self, to_seq: u64) -> Result<Flow, Fail> {
        let mut to_seq = to_seq;
        while self.sink.kept.next_seq <= to_seq {
            let from = self.sink.kept.next_seq;
            let page = self.client.history(self.conversation, from, PAGE, Direction::Forwards).await?;
            to_seq = to_seq.min(page.head_seq);
            for item in page.items {
                let flow = match item.kind {
                    Some(item::Kind::Entry(entry)) if entry.seq >= self.sink.kept.next_seq => self.write(&entry)?,
                    Some(item::Kind::Own(own)) if own.seq >= self.sink.kept.next_seq => match &own.entry {
                        Some(entry) => self.write(entry)?,
                        None => Flow::More,
                    },
                    Some(item::Kind::Head(head)) => self.explain(&head),
                    _ => Flow::More,
                };
                if flow == Flow::Enough {
                    return Ok(flow);
                }
            }
            if page.next_seq == 0 || self.sink.kept.next_seq == from {
                break;
            }
        }
        Ok(Flow::More)
    }

    /// A range that is not to be had, and why: the file goes on behind it.
    fn explain(&mut self, head: &packet::Head) -> Flow {
        if head.to_seq >= self.sink.kept.next_seq {
            let why = match head.reason() {
                HeadReason::Skipped => "skipped",
                HeadReason::TooLarge => "too large",
                HeadReason::Expired => "expired",
                HeadReason::Recalled => "recalled",
                HeadReason::Erased => "erased",
                HeadReason::NotYours => "not yours",
                HeadReason::HiddenByUser => "hidden",
                HeadReason::Folded => "told with its message",
                HeadReason::Withheld => "withheld",
            };
            let from = head.from_seq.max(self.sink.kept.next_seq);
            if head.reason() != HeadReason::NotYours {
                eprintln!("longwire: {from} to {} is not there: {why}", head.to_seq);
            }
            self.sink.kept.next_seq = head.to_seq + 1;
        }
        Flow::More
    }

    fn write(&mut self, entry: &packet::Entry) -> Result<Flow, Fail> {
        let is_message = entry.kind() == EntryKind::Message;
        if self.json {
            let line = json(entry).to_string();
            self.sink.write(line.as_bytes())?;
        } else if is_message {
            self.sink.write(&entry.content)?;
        }
        self.sink.kept.next_seq = entry.seq + 1;
        self.sink.kept.messages += u64::from(is_message);
        if let Some(left) = self.left.as_mut().filter(|_| is_message) {
            *left = left.saturating_sub(1);
            if *left == 0 {
                return Ok(Flow::Enough);
            }
        }
        Ok(Flow::More)
    }
}

async fn at(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// An entry as scripts read it; content that is no text is in base 16.
pub(super) fn json(entry: &packet::Entry) -> serde_json::Value {
    let mut value = serde_json::json!({
        "conversation": entry.conversation,
        "seq": entry.seq,
        "sender": entry.sender,
        "time": entry.time,
        "kind": entry.kind().as_str_name().to_ascii_lowercase(),
    });
    match std::str::from_utf8(&entry.content) {
        Ok(text) => value["content"] = text.into(),
        Err(_) => {
            let hex: Vec<String> = entry.content.iter().map(|byte| format!("{byte:02x}")).collect();
            value["content_hex"] = hex.concat().into();
        }
    }
    if let Some(membership) = &entry.membership {
        value["user"] = membership.user.into();
        value["name"] = membership.name.clone().into();
        value["role"] = membership.role().as_str_name().to_ascii_lowercase().into();
    }
    if !entry.label.is_empty() {
        value["label"] = entry.label.clone().into();
    }
    if entry.edit != 0 {
        value["target"] = entry.edit.into();
    }
    if let Some(recall) = &entry.recall {
        value["target"] = recall.seq.into();
    }
    if let Some(reaction) = &entry.reaction {
        value["target"] = reaction.seq.into();
        value["reaction"] = reaction.reaction.clone().into();
    }
    if entry.expires != 0 {
        value["expires"] = entry.expires.into();
    }
    if let Some(beside) = entry.beside.as_deref() {
        let attachments = beside.attachments.iter().map(|one| {
            serde_json::json!({
                "reference": one.reference, "media_type": one.media_type, "name": one.name, "bytes": one.bytes,
            })
        });
        value["beside"] = serde_json::json!({
            "reply_to": beside.reply_to,
            "mentions": beside.mentions,
            "mentions_all": beside.mentions_all,
            "forwarded": beside.forwarded,
            "silent": beside.silent,
            "attachments": attachments.collect::<Vec<_>>(),
        });
    }
    if let Some(compacted) = entry.compacted.as_deref() {
        let reactions = compacted
            .reactions
            .iter()
            .map(|one| serde_json::json!({ "reaction": one.reaction, "count": one.count, "own": one.own }));
        value["edit"] = compacted.edit.into();
        value["reactions"] = reactions.collect::<Vec<_>>().into();
    }
    value
}

// ---------------------------------------------------------------------------------------------- where it goes

/// What `FILE.longwire` remembers: written whole, after what it speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// The conversation as it was named, and its id.
    conversation: String,
    id: u64,
    /// How many bytes of FILE count.
    length: u64,
    /// The first seq that is not among them; 0: not known yet.
    next_seq: u64,
    /// How many messages are among them.
    #[serde(default)]
    messages: u64,
    /// A place from which the broker goes on that is not behind them.
    cursor: Option<Vec<u8>>,
}

/// Where messages are written.
struct Sink {
    out: Out,
    kept: Kept,
    /// Bytes written since the last time they were kept.
    unkept: usize,
    /// Called between any two writes to the disk: where a test looks at what a kill would leave.
    #[cfg(test)]
    between_writes: Option<Box<dyn FnMut()>>,
}

enum Out {
    /// On a terminal each line leaves at once, and nothing in it steers the terminal.
    Stdout {
        buffer: Vec<u8>,
        lines: bool,
        shows: bool,
    },
    File {
        file: File,
        buffer: Vec<u8>,
        state: PathBuf,
        saved: Kept,
    },
}

/// A line as a terminal may show it: what would steer it, or change the direction of what stands beside it, as an
/// escape, and so what is no text.
fn shown(line: &[u8]) -> String {
    let mut out = String::with_capacity(line.len());
    for chunk in line.utf8_chunks() {
        for c in chunk.valid().chars() {
            let steers = c.is_control() && !matches!(c, '\n' | '\t');
            match steers || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
                true => out.extend(c.escape_unicode()),
                false => out.push(c),
            }
        }
        out.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    out
}

/// Written to the file at once.
const BUFFER_BYTES: usize = 1 << 16;

impl Sink {
    fn stdout(raw: bool) -> Self {
        let lines = io::stdout().is_terminal();
        Self::new(Out::Stdout { buffer: Vec::new(), lines, shows: lines && !raw }, Kept::default())
    }

    fn new(out: Out, kept: Kept) -> Self {
        Self {
            out,
            kept,
            unkept: 0,
            #[cfg(test)]
            between_writes: None,
        }
    }

    fn wrote(&mut self) {
        #[cfg(test)]
        if let Some(look) = &mut self.between_writes {
            look();
        }
    }

    /// Opens FILE and cuts off what does not count.
    fn file(path: &Path, target: &Target) -> Result<Self, Fail> {
        let told = |error: io::Error| Fail::failed(format!("{}: {error}", path.display()));
        let state = keep::beside(path);
        let name = target.to_string();
        let known = keep::read::<Kept>(&state)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(told)?;
        let length = file.metadata().map_err(told)?.len();
        let kept = match known {
            Some(kept) if kept.conversation != name => {
                let was = kept.conversation;
                return Err(Fail::usage(format!("{} is what was said in {was}", path.display())));
            }
            Some(kept) if kept.length > length => {
                let why = "it is shorter than what was written to it";
                return Err(Fail::failed(format!("{}: {why} ({length} of {} bytes)", path.display(), kept.length)));
            }
            Some(kept) => kept,
            None if length > 0 => {
                let why = "it is not empty, and not from this command";
                return Err(Fail::usage(format!("{}: {why} (no {})", path.display(), state.display())));
            }
            None => Kept { conversation: name, ..Kept::default() },
        };
        file.set_len(kept.length).map_err(told)?;
        file.seek(SeekFrom::Start(kept.length)).map_err(told)?;
        keep::sync_directory(path).map_err(told)?;
        let out = Out::File { file, buffer: Vec::new(), state, saved: Kept::default() };
        Ok(Self::new(out, kept))
    }

    /// How long to wait for more before what was written is kept.
    fn patience(&self) -> Duration {
        match self.out {
            Out::Stdout { .. } => Duration::ZERO,
            Out::File { .. } => PATIENCE,
        }
    }

    fn write(&mut self, line: &[u8]) -> Result<(), Fail> {
        self.unkept += line.len() + 1;
        let (buffer, now, shows) = match &mut self.out {
            Out::Stdout { buffer, lines, shows } => (buffer, *lines, *shows),
            Out::File { buffer, .. } => (buffer, false, false),
        };
        match shows {
            true => buffer.extend_from_slice(shown(line).as_bytes()),
            false => buffer.extend_from_slice(line),
        }
        buffer.push(b'\n');
        if now || buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Fail> {
        match &mut self.out {
            Out::Stdout { buffer, .. } => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(buffer).and_then(|()| stdout.flush())?;
                buffer.clear();
            }
            Out::File { file, buffer, .. } => {
                file.write_all(buffer)?;
                self.kept.length += buffer.len() as u64;
                buffer.clear();
            }
        }
        self.wrote();
        Ok(())
    }

    /// Makes what was written count: first the bytes are durable, then the file that says so. The cursor must not be
    /// behind what was written.
    fn keep(&mut self, cursor: Option<&[u8]>) -> Result<(), Fail> {
        self.flush()?;
        if let Some(cursor) = cursor {
            self.kept.cursor = Some(cursor.to_vec());
        }
        self.unkept = 0;
        if let Out::File { file, state, saved, .. } = &mut self.out
            && *saved != self.kept
        {
            if saved.length != self.kept.length {
                file.sync_data()?;
            }
            keep::write(state, &self.kept)?;
            saved.clone_from(&self.kept);
        }
        self.wrote();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_count_is_cut_off() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("out");
        let target = Target::Id(7);
        let mut sink = Sink::file(&path, &target).expect("new");
        sink.write(b"one").expect("written");
        sink.kept.next_seq = 2;
        sink.keep(Some(b"cursor")).expect("kept");
        sink.write(b"two").expect("written");
        sink.flush().expect("on its way to the disk");
        drop(sink);
        assert_eq!(std::fs::read(&path).expect("there"), b"one\ntwo\n");
        let sink = Sink::file(&path, &target).expect("known");
        assert_eq!(std::fs::read(&path).expect("there"), b"one\n");
        assert_eq!((sink.kept.next_seq, sink.kept.cursor), (2, Some(b"cursor".to_vec())));
    }

    #[test]
    fn files_of_others_are_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("out");
        std::fs::write(&path, b"precious").expect("written");
        assert!(Sink::file(&path, &Target::Id(7)).is_err());
        assert_eq!(std::fs::read(&path).expect("there"), b"precious");
        let path = directory.path().join("other");
        Sink::file(&path, &Target::Id(7)).and_then(|mut sink| sink.keep(None)).expect("new");
        assert!(Sink::file(&path, &Target::Id(8)).is_err(), "another conversation");
    }

    #[test]
    fn a_message_does_not_steer_the_terminal() {
        let title = "\u{1b}]0;title\u{7} \u{9b}2J\r\u{202e}";
        let text = shown(title.as_bytes());
        assert_eq!(text, r"\u{1b}]0;title\u{7} \u{9b}2J\u{d}\u{202e}");
        assert_eq!(shown(b"\x9b2J \xff"), r"\x9b2J \xff", "also where it is no text");
        for plain in ["", "one\n\ttwo", "Zoë’s 愛 👩\u{200d}🔬"] {
            assert_eq!(shown(plain.as_bytes()), plain);
        }
        // The same on its way out: a terminal gets it so, a file or pipe as it is.
        for (shows, expected) in [(true, text.as_bytes()), (false, title.as_bytes())] {
            let mut sink = Sink::new(Out::Stdout { buffer: Vec::new(), lines: false, shows }, Kept::default());
            sink.write(title.as_bytes()).expect("gathered");
            let Out::Stdout { buffer, .. } = &sink.out else { unreachable!("made so above") };
            assert_eq!(buffer, &[expected, b"\n"].concat());
        }
    }

    fn line(seq: u64) -> String {
        format!("{seq} {}", "x".repeat(usize::try_from(seq * 7919 % 4_000).expect("small")))
    }

    /// What [`Follower`] does with a sink, from wherever that stands to the end of 200 entries.
    fn write_the_rest(sink: &mut Sink) {
        for seq in sink.kept.next_seq.max(1)..=200 {
            sink.write(line(seq).as_bytes()).expect("written");
            sink.kept.next_seq = seq + 1;
            if seq % 13 == 0 {
                sink.keep(Some(&seq.to_be_bytes())).expect("kept");
            }
        }
        sink.keep(None).expect("kept");
    }

    /// Scenario S14: whatever `sub` had written when it was killed, it goes on so that each entry is there once.
    #[test]
    fn s14_sub_killed_at_every_write() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("out");
        let (out, state) = (path.clone(), keep::beside(&path));
        let kills = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let mut sink = Sink::file(&path, &Target::Id(7)).expect("new");
        let seen = std::rc::Rc::clone(&kills);
        sink.between_writes = Some(Box::new(move || {
            let file = std::fs::read(&out).expect("there");
            seen.borrow_mut().push((file, std::fs::read(&state).ok()));
        }));
        sink.keep(None).expect("kept before the first entry");
        write_the_rest(&mut sink);
        drop(sink);
        let whole = std::fs::read(&path).expect("there");
        let expected: String = (1..=200).map(|seq| line(seq) + "\n").collect();
        assert_eq!(whole, expected.as_bytes());

        let kills = kills.borrow();
        assert!(kills.len() > 20, "{} places to be killed at", kills.len());
        for (at, (file, state)) in kills.iter().enumerate() {
            let kept = state.as_ref().map_or(0, |state| {
                usize::try_from(serde_json::from_slice::<Kept>(state).expect("whole").length).expect("small")
            });
            // The last write itself may have come only half way.
            for length in [file.len(), kept + (file.len() - kept) / 2, kept] {
                let directory = tempfile::tempdir().expect("a directory");
                let path = directory.path().join("out");
                std::fs::write(&path, &file[..length]).expect("as the kill left it");
                if let Some(state) = state {
                    std::fs::write(keep::beside(&path), state).expect("as the kill left it");
                }
                let mut sink = Sink::file(&path, &Target::Id(7)).expect("opened again");
                write_the_rest(&mut sink);
                assert!(std::fs::read(&path).expect("there") == whole, "killed at write {at}, {length} bytes");
            }
        }
    }
}
