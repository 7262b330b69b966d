//! The end of the evening: what every device was told, what history and the list of conversations say, and the unread
//! counts, are held against the chronicle.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use longwire_client::packet::{self, EntryKind, item};
use longwire_client::{Client, Direction};

use super::super::Fail;
use super::chronicle::{Deed, Done, Kind, Line, Shown, Talk, UserNo};
use super::device::{Device, Heard, Notes};
use super::evening::{Person, World};

/// The last things may take so long to arrive.
const ARRIVE: Duration = Duration::from_secs(60);
const PAGE: u32 = 200;

/// What was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Checked {
    pub(super) lines: u64,
    pub(super) deliveries: u64,
    pub(super) unread: u64,
}

/// Holds all that a person was told and is told now against what happened.
pub(super) async fn check(person: &Person, world: &World) -> Result<Checked, Fail> {
    let talks = world.chronicle().talks.clone();
    let mut checked = Checked::default();
    let name = &world.names[person.no];
    for (number, device) in person.devices.iter().enumerate() {
        let client = device.client().ok_or_else(|| Fail::failed("a device is not there"))?;
        let told = check_device(person.no, device, client, world, &talks).await;
        checked.lines += told.map_err(|fail| fail.during(format!("{name}, device {number}")))?;
        checked.deliveries += device.notes().delivered;
    }
    let client = person.devices[0].client().ok_or_else(|| Fail::failed("a device is not there"))?;
    let listed = check_list(person.no, client, &talks).await;
    checked.unread += listed.map_err(|fail| fail.during(format!("{name}, the list")))?;
    for (id, talk) in talks.iter().filter(|(_, talk)| talk.has(person.no, u64::MAX)) {
        let shown = compact(client, *id, world).await?;
        same(&shown, &talk.lines(person.no))
            .map_err(|what| Fail::failed(format!("{name}, history of {id}: {what}")))?;
    }
    Ok(checked)
}

/// Waits until a device has all that it is owed, fetches what it was told to fetch, and compares.
async fn check_device(
    user: UserNo,
    device: &Device,
    client: &Client,
    world: &World,
    talks: &BTreeMap<u64, Talk>,
) -> Result<u64, Fail> {
    let began = Instant::now();
    loop {
        let Some(missing) = missing(user, &device.notes(), talks) else { break };
        if began.elapsed() > ARRIVE {
            return Err(Fail::failed(format!("{missing} neither came nor was explained")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut lines = 0;
    for (id, talk) in talks {
        let is_in = talk.has(user, u64::MAX);
        if is_in {
            fetch(user, *id, talk, device, client).await?;
        }
        let notes = device.notes();
        if let Some(wrong) = &notes.wrong {
            return Err(Fail::failed(wrong.clone()));
        }
        let Some(heard) = notes.heard.get(id) else {
            if is_in && talk.head() > 0 {
                return Err(Fail::failed(format!("never heard of conversation {id}")));
            }
            continue;
        };
        let about = |what: String| Fail::failed(format!("conversation {id}: {what}"));
        nothing_foreign(user, heard, talk, world).map_err(about)?;
        if is_in {
            let shown = as_shown(user, *id, heard, &notes, talk, world).lines(user);
            same(&shown, &talk.lines(user)).map_err(about)?;
            lines += shown.len() as u64;
        }
    }
    Ok(lines)
}

/// The first seq that a device was owed, and that neither came nor lies in a range that it was told of.
fn missing(user: UserNo, notes: &Notes, talks: &BTreeMap<u64, Talk>) -> Option<String> {
    talks.iter().find_map(|(id, talk)| {
        if !talk.has(user, u64::MAX) || talk.head() == 0 {
            return None;
        }
        let nothing = Heard::default();
        let heard = notes.heard.get(id).unwrap_or(&nothing);
        let from = talk.base(user).max(heard.joined) + 1;
        let mut owed = from..=talk.head();
        let seq = owed.find(|seq| !heard.entries.contains_key(seq) && !heard.skipped.contains(seq))?;
        Some(format!("seq {seq} of conversation {id}"))
    })
}

/// Asks history for what lies before the beginning of delivery, or was skipped.
async fn fetch(user: UserNo, id: u64, talk: &Talk, device: &Device, client: &Client) -> Result<(), Fail> {
    for (first, last) in talk.intervals(user) {
        let mut from = first;
        loop {
            let wanted = |notes: &Notes| {
                let mut seqs = from..=last.min(talk.head());
                seqs.find(|seq| notes.heard.get(&id).is_none_or(|heard| !heard.entries.contains_key(seq)))
            };
            let Some(seq) = wanted(&device.notes()) else { break };
            let page = client.history(id, seq, PAGE, Direction::Forwards).await?;
            let next = page.next_seq;
            device.notes().take_page(page.items);
            if next == 0 {
                break;
            }
            from = next;
        }
    }
    Ok(())
}

/// Everything that came with its content is what was published, and its reader was allowed to see it.
fn nothing_foreign(user: UserNo, heard: &Heard, talk: &Talk, world: &World) -> Result<(), String> {
    let intervals = talk.intervals(user);
    for (seq, entry) in heard.entries.iter().filter_map(|(seq, entry)| entry.as_ref().map(|entry| (seq, entry))) {
        if !intervals.iter().any(|(from, to)| (from..=to).contains(&seq)) {
            return Err(format!("seq {seq} was shown to who may not see it"));
        }
        let Some(done) = talk.deeds.get(seq) else { return Err(format!("seq {seq} was acked to nobody")) };
        let deed = deed_of(entry);
        if world.user(entry.sender) != done.by || deed.is_some_and(|deed| !is_same(&deed, &done.deed)) {
            return Err(format!("seq {seq} is {done:?}, and came as {entry:?}"));
        }
    }
    Ok(())
}

/// Whom a message mentions is not looked at: users have other numbers there.
fn is_same(told: &Deed, done: &Deed) -> bool {
    match (told, done) {
        (Deed::Message { text, expires, .. }, Deed::Message { text: said, expires: expected, .. }) => {
            text == said && expires == expected
        }
        _ => told == done,
    }
}

/// What an entry says was done; `None` for what is not about messages.
fn deed_of(entry: &packet::Entry) -> Option<Deed> {
    let text = || String::from_utf8_lossy(&entry.content).into_owned();
    Some(match entry.kind() {
        EntryKind::Message => Deed::Message { text: text(), mentions: Vec::new(), expires: entry.expires != 0 },
        EntryKind::Edit => Deed::Edit { seq: entry.edit, text: text() },
        EntryKind::Recall => Deed::Recall { seq: entry.recall.as_ref()?.seq },
        EntryKind::Reaction => {
            let packet::React { seq, reaction } = entry.reaction.clone()?;
            Deed::React { seq, reaction }
        }
        _ => return None,
    })
}

/// The conversation as an app shows it that has just what this device has.
fn as_shown(user: UserNo, id: u64, heard: &Heard, notes: &Notes, talk: &Talk, world: &World) -> Talk {
    let mut shown = Talk::new(Kind::Channel);
    for (seq, entry) in &heard.entries {
        let done = match entry {
            Some(entry) => deed_of(entry).map(|deed| Done { by: world.user(entry.sender), deed }),
            // What it published itself it has without being told.
            None if notes.own.contains(&(id, *seq)) => talk.deeds.get(seq).filter(|done| done.by == user).cloned(),
            None => None,
        };
        if let Some(done) = done {
            shown.deeds.insert(*seq, done);
        }
    }
    if let Some(hidden) = notes.hidden.get(&id) {
        shown.hidden.insert(user, hidden.clone());
    }
    shown
}

/// All of a conversation as the broker's compact view has it.
async fn compact(client: &Client, id: u64, world: &World) -> Result<BTreeMap<u64, Line>, Fail> {
    let (mut lines, mut from) = (BTreeMap::new(), 0);
    loop {
        let page = client.history_compact(id, from, PAGE, Direction::Forwards).await?;
        for item in page.items {
            let entry = match item.kind {
                Some(item::Kind::Entry(entry) | item::Kind::Own(packet::Own { entry: Some(entry), .. })) => entry,
                _ => continue,
            };
            if entry.kind() != EntryKind::Message {
                continue;
            }
            let compacted = entry.compacted.clone().unwrap_or_default();
            let reactions = compacted.reactions.into_iter().map(|count| (count.reaction, count.count)).collect();
            let text = String::from_utf8_lossy(&entry.content).into_owned();
            let line = Line { by: world.user(entry.sender), text, edited: compacted.edit != 0, reactions };
            lines.insert(entry.seq, line);
        }
        if page.next_seq == 0 {
            return Ok(lines);
        }
        from = page.next_seq;
    }
}

/// The list of conversations: who is in what, what is unread, what was set, and the sums. Returns what is unread in all.
async fn check_list(user: UserNo, client: &Client, talks: &BTreeMap<u64, Talk>) -> Result<u64, Fail> {
    let (mut listed, mut before, mut totals) = (BTreeMap::new(), 0, None);
    loop {
        let page = client.conversations(before, PAGE).await?;
        totals.get_or_insert((page.unread_total, page.mentions_total));
        listed.extend(page.conversations.into_iter().map(|one| (one.id, one)));
        if page.next == 0 {
            break;
        }
        before = page.next;
    }
    let (mut unread, mut mentions) = (0, 0);
    for (id, talk) in talks {
        let Some(one) = listed.remove(id) else {
            if talk.has(user, u64::MAX) {
                return Err(Fail::failed(format!("conversation {id} is missing")));
            }
            continue;
        };
        if !talk.has(user, u64::MAX) {
            return Err(Fail::failed(format!("conversation {id} is listed for who is not in it")));
        }
        let expected = talk.unread(user);
        if (one.unread, one.mentions) != (expected.messages, expected.mentions) {
            let told = (one.unread, one.mentions);
            return Err(Fail::failed(format!(
                "conversation {id}: unread and mentions are {expected:?}, told as {told:?}"
            )));
        }
        let settings = one.settings.unwrap_or_default();
        let shown = Shown { pinned: settings.pinned, marked_unread: settings.marked_unread };
        if shown != talk.settings.get(&user).copied().unwrap_or_default() {
            return Err(Fail::failed(format!(
                "conversation {id}: it is {:?}, told as {shown:?}",
                talk.settings.get(&user)
            )));
        }
        unread += expected.messages;
        mentions += expected.mentions;
    }
    match listed.keys().next() {
        Some(id) => Err(Fail::failed(format!("conversation {id} is listed, and nobody knows it"))),
        None if totals != Some((unread, mentions)) => {
            Err(Fail::failed(format!("unread in all are {unread}, with {mentions} mentions, told as {totals:?}")))
        }
        None => Ok(unread),
    }
}

/// The first line in which two views differ.
fn same(shown: &BTreeMap<u64, Line>, expected: &BTreeMap<u64, Line>) -> Result<(), String> {
    let seqs = expected.keys().chain(shown.keys());
    match seqs.into_iter().find(|seq| shown.get(seq) != expected.get(seq)) {
        Some(seq) => Err(format!("seq {seq} is {:?}, and is shown as {:?}", expected.get(seq), shown.get(seq))),
        None => Ok(()),
    }
}
