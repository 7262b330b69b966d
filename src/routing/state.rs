//! The live state: every row, readable by all, changed by the commit thread alone. A group's changes are drafted in an
//! [`Overlay`] and merged only once its frame is committed, so nothing is read before its commit and a failed commit
//! is undone by dropping the overlay.

use std::collections::{BTreeMap, HashMap};

use longwire_protocol::packet::EntryKind;
use longwire_protocol::{ConversationId, DeviceId, LogTime, UserId};

use super::rows::{Conversation, Counted, Crossing, Device, Duty, Key, Member, Row, User};
use crate::store::{Position, ReadError, StateDelta};

/// Every row that is committed, by table.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The newest position folded in.
    pub tail: Position,
    /// The time of the newest frame folded in.
    pub time: LogTime,
    /// Everything below is expired.
    pub floor: Position,
    users: HashMap<UserId, User>,
    user_names: HashMap<Box<str>, UserId>,
    devices: HashMap<DeviceId, Device>,
    device_names: HashMap<(UserId, Box<str>), DeviceId>,
    conversations: HashMap<ConversationId, Conversation>,
    directs: HashMap<(UserId, UserId), ConversationId>,
    channels: HashMap<Box<str>, ConversationId>,
    members: HashMap<ConversationId, BTreeMap<UserId, Member>>,
    duties: HashMap<UserId, BTreeMap<ConversationId, Duty>>,
    counters: HashMap<(Counted, u16), u64>,
    crossings: BTreeMap<(Position, UserId), Crossing>,
}

static NO_MEMBERS: BTreeMap<UserId, Member> = BTreeMap::new();
static NO_DUTIES: BTreeMap<ConversationId, Duty> = BTreeMap::new();

impl State {
    /// A user.
    #[must_use]
    pub fn user(&self, id: UserId) -> Option<&User> {
        self.users.get(&id)
    }

    /// A device.
    #[must_use]
    pub fn device(&self, id: DeviceId) -> Option<&Device> {
        self.devices.get(&id)
    }

    /// A conversation.
    #[must_use]
    pub fn conversation(&self, id: ConversationId) -> Option<&Conversation> {
        self.conversations.get(&id)
    }

    /// Everybody who is or was a member, by user.
    #[must_use]
    pub fn members(&self, id: ConversationId) -> &BTreeMap<UserId, Member> {
        self.members.get(&id).unwrap_or(&NO_MEMBERS)
    }

    /// A member, past or present.
    #[must_use]
    pub fn member(&self, conversation: ConversationId, user: UserId) -> Option<&Member> {
        self.members.get(&conversation)?.get(&user)
    }

    /// What is to be delivered to a user, by conversation.
    #[must_use]
    pub fn duties(&self, user: UserId) -> &BTreeMap<ConversationId, Duty> {
        self.duties.get(&user).unwrap_or(&NO_DUTIES)
    }

    /// The crossings under way, oldest first.
    #[must_use]
    pub fn crossings(&self) -> &BTreeMap<(Position, UserId), Crossing> {
        &self.crossings
    }

    /// Every conversation with its newest entry, for checks.
    pub fn conversations(&self) -> impl Iterator<Item = (ConversationId, &Conversation)> {
        self.conversations.iter().map(|(id, row)| (*id, row))
    }

    /// Puts in a row of the saved state.
    ///
    /// # Errors
    /// When the bytes are no row of this version.
    pub fn load(&mut self, key: &[u8], value: &[u8]) -> Result<(), ReadError> {
        let unreadable =
            |what: &str, error: postcard::Error| ReadError(format!("a {what} of the state is unreadable: {error}"));
        let key = key.get(2..).ok_or_else(|| ReadError("a key of the state is too short".into()))?;
        let key: Key = postcard::from_bytes(key).map_err(|e| unreadable("key", e))?;
        let row: Row = postcard::from_bytes(value).map_err(|e| unreadable("row", e))?;
        self.put(key, Some(row));
        Ok(())
    }

    fn get(&self, key: &Key) -> Option<Row> {
        Some(match key {
            Key::User(id) => Row::User(self.users.get(id)?.clone()),
            Key::UserName(name) => Row::UserName(*self.user_names.get(name)?),
            Key::Device(id) => Row::Device(self.devices.get(id)?.clone()),
            Key::DeviceName(user, name) => Row::DeviceName(*self.device_names.get(&(*user, name.clone()))?),
            Key::Conversation(id) => Row::Conversation(self.conversations.get(id)?.clone()),
            Key::Direct(a, b) => Row::ConversationName(*self.directs.get(&(*a, *b))?),
            Key::Channel(name) => Row::ConversationName(*self.channels.get(name)?),
            Key::Member(conversation, user) => Row::Member(self.member(*conversation, *user)?.clone()),
            Key::Duty(user, conversation) => Row::Duty(*self.duties.get(user)?.get(conversation)?),
            Key::Counter(counted, partition) => Row::Counter(*self.counters.get(&(*counted, *partition))?),
            Key::Crossing(position, user) => Row::Crossing(*self.crossings.get(&(*position, *user))?),
            Key::Floor => Row::Floor(self.floor),
        })
    }

    fn put(&mut self, key: Key, row: Option<Row>) {
        match (key, row) {
            (Key::User(id), Some(Row::User(row))) => drop(self.users.insert(id, row)),
            (Key::UserName(name), Some(Row::UserName(id))) => drop(self.user_names.insert(name, id)),
            (Key::Device(id), Some(Row::Device(row))) => drop(self.devices.insert(id, row)),
            (Key::DeviceName(user, name), Some(Row::DeviceName(id))) => {
                self.device_names.insert((user, name), id);
            }
            (Key::Conversation(id), Some(Row::Conversation(row))) => drop(self.conversations.insert(id, row)),
            (Key::Direct(a, b), Some(Row::ConversationName(id))) => drop(self.directs.insert((a, b), id)),
            (Key::Channel(name), Some(Row::ConversationName(id))) => drop(self.channels.insert(name, id)),
            (Key::Member(conversation, user), Some(Row::Member(row))) => {
                self.members.entry(conversation).or_default().insert(user, row);
            }
            (Key::Duty(user, conversation), Some(Row::Duty(row))) => {
                self.duties.entry(user).or_default().insert(conversation, row);
            }
            (Key::Counter(counted, partition), Some(Row::Counter(n))) => {
                self.counters.insert((counted, partition), n);
            }
            (Key::Crossing(position, user), Some(Row::Crossing(row))) => {
                self.crossings.insert((position, user), row);
            }
            (Key::Crossing(position, user), None) => drop(self.crossings.remove(&(position, user))),
            (Key::Floor, Some(Row::Floor(floor))) => self.floor = floor,
            (key, row) => unreachable!("row {row:?} under key {key:?}"),
        }
    }
}

/// The rows that one group changed, drafted over the state.
#[derive(Debug, Default)]
pub struct Overlay {
    rows: HashMap<Key, Option<Row>>,
    /// The newest position drafted; 0 while there is none.
    pub tail: Position,
    /// The time of the frame.
    pub time: LogTime,
}

/// The rows that changed since the memtable was last sealed.
#[derive(Debug, Default)]
pub struct Dirty {
    rows: HashMap<Key, Option<Row>>,
}

impl Overlay {
    /// Whether nothing is drafted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Forgets the draft: the group was not committed.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.tail = Position(0);
    }

    /// Puts the draft into the state: the group is committed.
    pub fn merge(&mut self, state: &mut State, dirty: &mut Dirty) {
        for (key, row) in self.rows.drain() {
            dirty.rows.insert(key.clone(), row.clone());
            state.put(key, row);
        }
        state.tail = state.tail.max(self.tail);
        state.time = state.time.max(self.time);
        self.tail = Position(0);
    }
}

impl StateDelta for Dirty {
    fn rows(&self, each: &mut dyn FnMut(&[u8], Option<&[u8]>)) {
        for (key, row) in &self.rows {
            let mut encoded = key.partition().to_be_bytes().to_vec();
            encoded = postcard::to_extend(key, encoded).expect("a key has no field that cannot be encoded");
            let value =
                row.as_ref().map(|row| postcard::to_stdvec(row).expect("a row has no field that cannot be encoded"));
            each(&encoded, value.as_deref());
        }
    }
}

/// The state as it will be once the group is committed: drafted rows first, committed ones below.
#[derive(Debug)]
pub struct View<'a> {
    state: &'a State,
    overlay: &'a mut Overlay,
}

macro_rules! lookup {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) -> $row:ident($out:ty), $key:expr, |$state:ident| $base:expr) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self, $($arg: $type),*) -> Option<&$out> {
            match self.overlay.rows.get(&$key) {
                Some(Some(Row::$row(row))) => Some(row),
                Some(_) => None,
                None => { let $state = self.state; $base }
            }
        }
    };
}

impl<'a> View<'a> {
    /// The view of a state and a draft over it.
    pub fn new(state: &'a State, overlay: &'a mut Overlay) -> Self {
        Self { state, overlay }
    }

    lookup!(/// A user.
        user(id: UserId) -> User(User), Key::User(id), |s| s.users.get(&id));
    lookup!(/// A user's id by name.
        user_named(name: &str) -> UserName(UserId), Key::UserName(name.into()), |s| s.user_names.get(name));
    lookup!(/// A device.
        device(id: DeviceId) -> Device(Device), Key::Device(id), |s| s.devices.get(&id));
    lookup!(/// A device's id by its user and name.
        device_named(user: UserId, name: &str) -> DeviceName(DeviceId), Key::DeviceName(user, name.into()),
        |s| s.device_names.get(&(user, Box::from(name))));
    lookup!(/// A conversation.
        conversation(id: ConversationId) -> Conversation(Conversation), Key::Conversation(id), |s| s.conversations.get(&id));
    lookup!(/// A direct conversation's id by its two users.
        direct(a: UserId, b: UserId) -> ConversationName(ConversationId), Key::Direct(a.min(b), a.max(b)),
        |s| s.directs.get(&(a.min(b), a.max(b))));
    lookup!(/// A channel's id by name.
        channel(name: &str) -> ConversationName(ConversationId), Key::Channel(name.into()), |s| s.channels.get(name));
    lookup!(/// A member, past or present.
        member(conversation: ConversationId, user: UserId) -> Member(Member), Key::Member(conversation, user),
        |s| s.member(conversation, user));
    lookup!(/// The duty to deliver a conversation to a user.
        duty(user: UserId, conversation: ConversationId) -> Duty(Duty), Key::Duty(user, conversation),
        |s| s.duties.get(&user)?.get(&conversation));
    lookup!(/// The newest id given in a partition, without its partition.
        counter(counted: Counted, partition: u16) -> Counter(u64), Key::Counter(counted, partition),
        |s| s.counters.get(&(counted, partition)));
    lookup!(/// A crossing under way.
        crossing(position: Position, user: UserId) -> Crossing(Crossing), Key::Crossing(position, user),
        |s| s.crossings.get(&(position, user)));

    /// The crossings under way, oldest first.
    #[must_use]
    pub fn crossings(&self) -> Vec<(Position, UserId, Crossing)> {
        let mut all: BTreeMap<_, _> = self.state.crossings.iter().map(|(key, row)| (*key, *row)).collect();
        for (key, row) in &self.overlay.rows {
            if let Key::Crossing(position, user) = key {
                match row {
                    Some(Row::Crossing(row)) => drop(all.insert((*position, *user), *row)),
                    _ => drop(all.remove(&(*position, *user))),
                }
            }
        }
        all.into_iter().map(|((position, user), row)| (position, user, row)).collect()
    }

    /// Drafts a row in place of what is there; `None` removes it.
    pub fn put(&mut self, key: Key, row: Option<Row>) {
        self.overlay.rows.insert(key, row);
    }

    /// Drafts a change of the row under `key`, if there is one.
    pub fn update(&mut self, key: Key, change: impl FnOnce(&mut Row)) {
        let state = self.state;
        let row = self.overlay.rows.entry(key).or_insert_with_key(|key| state.get(key));
        if let Some(row) = row {
            change(row);
        }
    }

    /// The draft reaches up to here.
    pub fn reach(&mut self, position: Position, time: LogTime) {
        self.overlay.tail = self.overlay.tail.max(position);
        self.overlay.time = self.overlay.time.max(time);
    }
}

/// Whether entries of this kind count as unread.
#[must_use]
pub fn is_countable(kind: EntryKind) -> bool {
    kind == EntryKind::Message
}
