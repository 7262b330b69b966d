//! One device of the evening: a client of the SDK, and what it keeps across its absences, as an app does on its disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use longwire_client::packet::{self, EntryKind, HeadReason, item::Kind};
use longwire_client::{Client, Config, Deliveries, Item, Start};
use tokio::task::JoinHandle;

use super::super::Fail;

/// What was heard of one conversation.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Entries of all kinds, by seq. `None`: it is there and told apart otherwise (an own one, or it has gone).
    pub(super) entries: BTreeMap<u64, Option<packet::Entry>>,
    /// What history has to be asked for.
    pub(super) skipped: BTreeSet<u64>,
    /// Messages of which a recall was heard.
    recalled: BTreeSet<u64>,
    /// Delivery begins behind this one, by the last `JOINED`.
    pub(super) joined: u64,
}

/// What a device keeps.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) heard: HashMap<u64, Heard>,
    /// What this device published, by conversation and seq.
    pub(super) own: BTreeSet<(u64, u64)>,
    pub(super) hidden: HashMap<u64, BTreeSet<u64>>,
    cursor: Option<Bytes>,
    /// The first thing that must not be.
    pub(super) wrong: Option<String>,
    pub(super) delivered: u64,
    /// How often it was told to page history instead.
    pub(super) resets: u64,
}

impl Notes {
    fn take(&mut self, items: Vec<Item>, cursor: Option<Bytes>) {
        for item in items {
            self.delivered += 1;
            match item {
                Item::Entry(entry) => self.take_entry(entry),
                Item::Own(own) => {
                    self.own.insert((own.conversation, own.seq));
                    self.heard.entry(own.conversation).or_default().entries.entry(own.seq).or_default();
                }
                Item::Skipped(head) => self.take_head(&head),
                Item::Reset(_) => self.resets += 1,
                _ => {}
            }
        }
        if cursor.is_some() {
            self.cursor = cursor;
        }
    }

    pub(super) fn take_entry(&mut self, entry: packet::Entry) {
        match entry.kind() {
            EntryKind::Joined => {
                let joined = entry.joined.unwrap_or_default();
                self.heard.entry(joined.conversation).or_default().joined = joined.seq;
                return;
            }
            EntryKind::Hidden => {
                let hidden = entry.hidden.unwrap_or_default();
                let of = self.hidden.entry(hidden.conversation).or_default();
                if hidden.undo {
                    of.remove(&hidden.seq)
                } else {
                    of.insert(hidden.seq)
                };
                return;
            }
            _ => {}
        }
        let heard = self.heard.entry(entry.conversation).or_default();
        if let Some(recall) = &entry.recall {
            // Whoever holds the content removes it.
            heard.recalled.insert(recall.seq);
            heard.entries.entry(recall.seq).and_modify(|entry| *entry = None);
        } else if heard.recalled.contains(&entry.seq) {
            self.wrong.get_or_insert(format!("seq {} of {} came after its recall", entry.seq, entry.conversation));
        }
        let known = heard.entries.get(&entry.seq).and_then(Option::as_ref);
        if let Some(known) = known.filter(|known| known.content != entry.content || known.sender != entry.sender) {
            self.wrong.get_or_insert(format!("one seq, two entries: {known:?} and {entry:?}"));
        }
        heard.skipped.remove(&entry.seq);
        heard.entries.insert(entry.seq, Some(entry));
    }

    pub(super) fn take_head(&mut self, head: &packet::Head) {
        let heard = self.heard.entry(head.conversation).or_default();
        for seq in head.from_seq..=head.to_seq {
            match head.reason() {
                HeadReason::Skipped | HeadReason::TooLarge => {
                    if !heard.entries.contains_key(&seq) {
                        heard.skipped.insert(seq);
                    }
                }
                HeadReason::HiddenByUser => {
                    heard.entries.entry(seq).or_default();
                    heard.skipped.remove(&seq);
                }
                _ => {
                    heard.entries.insert(seq, None);
                    heard.skipped.remove(&seq);
                }
            }
        }
    }

    /// Takes what history says.
    pub(super) fn take_page(&mut self, items: Vec<packet::Item>) {
        for item in items {
            match item.kind {
                Some(Kind::Entry(entry)) => self.take_entry(entry),
                Some(Kind::Own(packet::Own { entry: Some(entry), .. })) => self.take_entry(entry),
                Some(Kind::Head(head)) => self.take_head(&head),
                _ => {}
            }
        }
    }
}

/// See the module.
pub(super) struct Device {
    config: Config,
    notes: Arc<Mutex<Notes>>,
    client: Option<(Client, JoinHandle<()>)>,
}

fn lock(notes: &Mutex<Notes>) -> MutexGuard<'_, Notes> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read(mut deliveries: Deliveries, notes: Arc<Mutex<Notes>>) {
    while let Some(mut delivery) = deliveries.next().await {
        let (items, cursor) = (std::mem::take(&mut delivery.items), delivery.cursor.take());
        lock(&notes).take(items, cursor);
        delivery.stored();
    }
}

impl Device {
    pub(super) fn new(config: Config) -> Self {
        Self { config, notes: Arc::default(), client: None }
    }

    pub(super) fn notes(&self) -> MutexGuard<'_, Notes> {
        lock(&self.notes)
    }

    pub(super) fn client(&self) -> Option<&Client> {
        self.client.as_ref().map(|(client, _)| client)
    }

    /// Comes on line, and reads from where it was; waits until it is let in.
    pub(super) async fn come(&mut self) -> Result<packet::Connected, Fail> {
        let mut config = self.config.clone();
        config.start = self.notes().cursor.clone().map_or(Start::Stored, Start::Own);
        let (client, deliveries) = Client::start(config).map_err(|error| Fail::failed(error.to_string()))?;
        let reader = tokio::spawn(read(deliveries, Arc::clone(&self.notes)));
        let connected = client.connected().await.map_err(|state| Fail::failed(format!("a device ended: {state:?}")))?;
        self.client = Some((client, reader));
        Ok(connected)
    }

    /// Goes away.
    pub(super) async fn go(&mut self) {
        if let Some((client, reader)) = self.client.take() {
            client.close().await;
            // It ends with what it is given, and has kept all of that then.
            drop(reader.await);
        }
    }
}
