//! `longwire user export`: what a store holds of one user, as lines of JSON, read from files that no broker has open: a
//! stopped broker's, or a backup's. It streams; memory holds the user's rows, and a page of entries at a time.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use clap::Args as ClapArgs;
use longwire_protocol::packet::{Item, Level, Shows, item};
use longwire_protocol::{ConversationId, DeviceId, Seq, UserId};
use prost::Message as _;
use serde_json::{Value, json};

use super::Fail;
use super::subscribe::json as entry_json;
use crate::broker::commit::recover;
use crate::routing::loading::read_blocking;
use crate::routing::rows::{Key, Kind, Row};
use crate::routing::state::State;
use crate::routing::view::{Reader, Rows as _};
use crate::store::{History, Log, PageLimit, Position, ReadError, RedbLog};

/// Rows in memory, about.
const STATE_BYTES: usize = 64 << 20;
/// Entries and bytes that are read at once.
const PAGE: PageLimit = PageLimit { entries: 1_000, bytes: 1 << 20 };

/// Reactions that are looked up at once.
const REACTIONS: usize = 1_000;

#[derive(Debug, ClapArgs)]
pub(super) struct Export {
    /// The user's name
    name: String,
    /// The folder of the store, which no broker has open
    #[arg(long, env = "LONGWIRE_STORE", value_name = "FOLDER")]
    store: PathBuf,
    /// The file to write, which must not exist; standard output unless given
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Writes all there is.
pub(super) fn run(args: &Export) -> Result<(), Fail> {
    let failed = |path: &Path, e: &dyn std::fmt::Display| Fail::failed(format!("{}: {e}", path.display()));
    let log = RedbLog::open_to_read(&args.store).map_err(|e| failed(&args.store, &e))?;
    let state = RwLock::new(recover(&log, STATE_BYTES).map_err(|e| failed(&args.store, &e))?);
    let mut out: Box<dyn Write> = match &args.out {
        Some(path) => {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            Box::new(file.map_err(|e| failed(path, &e))?)
        }
        None => Box::new(io::stdout()),
    };
    let mut out = BufWriter::new(&mut out);
    let read = |e: ReadError| failed(&args.store, &e);
    let user = read_blocking(&state, |rows| rows.user_named(&args.name)).map_err(read)?;
    let user = user.ok_or_else(|| Fail::failed(format!("the store knows no user {:?}", args.name)))?;
    for line in read_blocking(&state, |rows| own(rows, user)).map_err(read)? {
        writeln!(out, "{line}")?;
    }
    let history = log.history();
    for (id, reacted) in conversations(&log, &state, user).map_err(read)? {
        let about = read_blocking(&state, |rows| conversation(rows, user, id)).map_err(read)?;
        let Some((line, head)) = about else { continue };
        writeln!(out, "{line}")?;
        for some in reacted.chunks(REACTIONS) {
            for line in read_blocking(&state, |rows| reactions(rows, user, id, some)).map_err(read)? {
                writeln!(out, "{line}")?;
            }
        }
        published(&*history, log.birth_unix_ms(), user, (id, head), &mut out)?;
    }
    out.flush()?;
    Ok(())
}

/// What concerns the user itself.
fn own(rows: &Reader<'_>, user: UserId) -> Vec<Value> {
    let Some(row) = rows.user(user) else { return Vec::new() };
    let mut lines = vec![json!({
        "type": "user",
        "user": user.0,
        "name": row.name,
        "closed": row.is_closed,
        "erased": rows.erasure(user).is_some(),
        "last_seen": rows.seen(user).map(|time| time.0),
        "presence_shown_to": word(rows.audience(user).as_str_name()),
        "hides_marks": row.hides_marks,
    })];
    if let Some(profile) = rows.profile(user) {
        let (name, picture) = (&profile.display_name, &profile.picture);
        let data = String::from_utf8_lossy(&profile.data);
        lines.push(json!({ "type": "profile", "display_name": name, "picture": picture, "data": data }));
    }
    for id in &row.devices {
        let Some(device) = rows.device(*id) else { continue };
        let (name, label) = (&device.name, &device.label);
        let (created, seen) = (device.created.0, device.seen.0);
        let levels = device.levels.list().iter().map(|(id, _)| {
            let level: Level = device.levels.of(*id);
            json!({ "conversation": id.0, "level": word(level.as_str_name()) })
        });
        let levels: Vec<_> = levels.collect();
        lines.push(json!({
            "type": "device", "name": name, "label": label, "created": created, "seen": seen, "levels": levels,
        }));
        lines.extend(left(rows, user, *id, name));
    }
    let name_of = |other: UserId| rows.user(other).map(|row| row.name.clone());
    for slot in 0..row.contacts {
        let Some(other) = rows.contact_in(user, slot) else { continue };
        let Some(contact) = rows.contact(user, other) else { continue };
        let data = String::from_utf8_lossy(&contact.data);
        lines.push(json!({ "type": "contact", "name": name_of(other), "nick": contact.nick, "data": data }));
    }
    for other in rows.refusals(user).map_or(&[][..], |refuses| &refuses.users) {
        lines.push(json!({ "type": "blocked", "name": name_of(*other) }));
    }
    lines
}

/// What a device left to be done while it is away: its will, and where it has itself told. By what a provider calls it, and
/// by its keys, one could tell it something: these stay where they are.
fn left(rows: &Reader<'_>, user: UserId, device: DeviceId, name: &str) -> Vec<Value> {
    let mut lines = Vec::new();
    if let Some(Row::Will(will)) = rows.row(&Key::Will(device)) {
        let (content, after_ms) = (String::from_utf8_lossy(&will.content), will.after_ms);
        let conversation = will.conversation.0;
        lines.push(json!({
            "type": "will", "device": name, "conversation": conversation, "content": content, "after_ms": after_ms,
        }));
    }
    if let Some(push) = rows.push(user, device) {
        let (provider, (quiet_from, quiet_until)) = (push.provider.name(), push.quiet);
        let shows = word(Shows::try_from(push.shows).unwrap_or_default().as_str_name());
        lines.push(json!({
            "type": "push", "device": name, "provider": provider, "shows": shows,
            "quiet_from": quiet_from, "quiet_until": quiet_until,
        }));
    }
    lines
}

/// Where the user may have published something: where it is or was a member, and every channel. And to which messages there
/// it reacted, or did before it took that back.
fn conversations(
    log: &RedbLog,
    state: &RwLock<State>,
    user: UserId,
) -> Result<BTreeMap<ConversationId, Vec<Seq>>, ReadError> {
    let mut found: BTreeMap<ConversationId, Vec<Seq>> = BTreeMap::new();
    let mut note = |key: &Key, row: &Row| match (key, row) {
        (Key::Member(id, member), _) if *member == user => drop(found.entry(*id).or_default()),
        (Key::Conversation(id), Row::Conversation(row)) if row.kind == Kind::Channel => {
            found.entry(*id).or_default();
        }
        (Key::Reaction(id, seq, by), _) if *by == user => found.entry(*id).or_default().push(*seq),
        _ => {}
    };
    log.saved().each(&[], &mut |key, row| {
        if let (Ok(key), Ok(row)) = (Key::decode(key), Row::decode(row)) {
            note(&key, &row);
        }
    })?;
    let state = state.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    state.rows().for_each(|(key, row)| note(key, row));
    for seqs in found.values_mut() {
        seqs.sort_unstable();
        seqs.dedup();
    }
    Ok(found)
}

/// The reactions that the user gave to these messages, as they are now.
fn reactions(rows: &Reader<'_>, user: UserId, id: ConversationId, seqs: &[Seq]) -> Vec<Value> {
    let given = seqs.iter().filter_map(|seq| Some((seq.0, rows.reaction(id, *seq, user)?)));
    let line = |(seq, reaction)| json!({ "type": "reaction", "conversation": id.0, "seq": seq, "reaction": reaction });
    given.map(line).collect()
}

/// A name of the wire, as it is written in lines of JSON.
fn word(name: &str) -> String {
    name.to_ascii_lowercase()
}

/// What the user is and set in a conversation, and where that ends.
fn conversation(rows: &Reader<'_>, user: UserId, id: ConversationId) -> Option<(Value, Seq)> {
    let row = rows.conversation(id)?;
    let other = if row.pair.0 == user { row.pair.1 } else { row.pair.0 };
    let label = match row.kind {
        Kind::Direct => rows.user(other).map(|row| row.name.clone()),
        _ => Some(row.label.clone()),
    };
    let member = rows.member(id, user);
    let mark_position = member.map_or(Position(0), |member| member.mark_position);
    let settings = rows.settings(user, id).map(|settings| settings.wire(mark_position));
    let hidden = rows.personal(user, id).map_or(&[][..], |personal| &personal.hidden);
    let hidden: Vec<u64> = hidden.iter().map(|(seq, _)| seq.0).collect();
    let line = json!({
        "type": "conversation",
        "conversation": id.0,
        "kind": row.kind.wire().as_str_name().to_ascii_lowercase(),
        "label": label,
        "role": member.map(|member| member.role().as_str_name().to_ascii_lowercase()),
        "read_up_to": member.map(|member| member.mark.0),
        "pinned": settings.map(|settings| settings.pinned),
        "archived": settings.map(|settings| settings.archived),
        "muted_until": settings.map(|settings| settings.muted_until),
        "marked_unread": settings.map(|settings| settings.marked_unread),
        "hidden": hidden,
    });
    Some((line, row.head.seq))
}

/// What the user published in a conversation, as it was published, as far as the store still holds it.
fn published(
    history: &dyn History,
    birth_unix_ms: u64,
    user: UserId,
    (id, head): (ConversationId, Seq),
    out: &mut impl Write,
) -> Result<(), Fail> {
    let mut next = Seq(1);
    while next <= head {
        let page = history.range(id, next, head, false, PAGE).map_err(|e| Fail::failed(e.to_string()))?;
        let Some(last) = page.last().map(|entry| entry.seq) else { return Ok(()) };
        next = last.next();
        for stored in page {
            let decoded = Item::decode(&stored.item[..]).ok().and_then(|item| item.kind);
            let Some(item::Kind::Entry(entry)) = decoded.filter(|_| stored.conversation == id) else { continue };
            if entry.sender == user.0 {
                let mut line = entry_json(&entry);
                line["type"] = "entry".into();
                line["unix_ms"] = (birth_unix_ms + entry.time).into();
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(())
}
