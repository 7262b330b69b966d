//! How rows are looked up: [`Reader`] over what is committed, [`View`] over a draft on top of it. A group's changes are
//! drafted in an [`Overlay`] and merged only once its frame is committed, so nothing is read before its commit and a
//! failed commit is undone by dropping the draft.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};

use elsa::FrozenMap;
use foldhash::fast::RandomState;
use longwire_protocol::packet::Audience;
use longwire_protocol::{ConversationId, DeviceId, LogTime, Seq, UserId};

use super::duties::Duties;
use super::grants::{Bearer, TakenBack};
use super::limits::Quotas;
use super::loading::{Kept, Want};
use super::push::{Push, Told};
use super::rows::{
    Altered, Contact, Conversation, Counted, Crossing, Device, Duty, Erasure, Info, Keeping, Key, Member, Mention,
    Personal, Profile, Refuses, Row, Secret, Settings, Tally, Uncounted, User,
};
use super::state::{Lookup, State};
use crate::store::{Position, ReadError};

/// Rows by key, whatever lies beneath.
pub trait Rows {
    /// The row under a key. `None` also while it is cold; see the implementations for what comes of that.
    fn row(&self, key: &Key) -> Option<&Row>;

    /// A user.
    fn user(&self, id: UserId) -> Option<&User> {
        if let Row::User(row) = self.row(&Key::User(id))? { Some(row) } else { None }
    }

    /// A user's id by name.
    fn user_named(&self, name: &str) -> Option<UserId> {
        if let Row::UserName(id) = self.row(&Key::UserName(name.into()))? { Some(*id) } else { None }
    }

    /// A device.
    fn device(&self, id: DeviceId) -> Option<&Device> {
        if let Row::Device(row) = self.row(&Key::Device(id))? { Some(row) } else { None }
    }

    /// A device's id by its user and name.
    fn device_named(&self, user: UserId, name: &str) -> Option<DeviceId> {
        if let Row::DeviceName(id) = self.row(&Key::DeviceName(user, name.into()))? { Some(*id) } else { None }
    }

    /// A conversation.
    fn conversation(&self, id: ConversationId) -> Option<&Conversation> {
        if let Row::Conversation(row) = self.row(&Key::Conversation(id))? { Some(row) } else { None }
    }

    /// A direct conversation's id by its two users.
    fn direct(&self, a: UserId, b: UserId) -> Option<ConversationId> {
        let row = self.row(&Key::Direct(a.min(b), a.max(b)))?;
        if let Row::ConversationName(id) = row { Some(*id) } else { None }
    }

    /// A channel's id by name.
    fn channel(&self, name: &str) -> Option<ConversationId> {
        if let Row::ConversationName(id) = self.row(&Key::Channel(name.into()))? { Some(*id) } else { None }
    }

    /// A member, past or present.
    fn member(&self, conversation: ConversationId, user: UserId) -> Option<&Member> {
        if let Row::Member(row) = self.row(&Key::Member(conversation, user))? { Some(row) } else { None }
    }

    /// The duty to deliver a conversation to a user.
    fn duty(&self, user: UserId, conversation: ConversationId) -> Option<&Duty> {
        if let Row::Duty(row) = self.row(&Key::Duty(user, conversation))? { Some(row) } else { None }
    }

    /// What became of an entry, where something did.
    fn altered(&self, conversation: ConversationId, seq: Seq) -> Option<&Altered> {
        if let Row::Altered(row) = self.row(&Key::Altered(conversation, seq))? { Some(row) } else { None }
    }

    /// A user's reaction to a message.
    fn reaction(&self, conversation: ConversationId, seq: Seq, user: UserId) -> Option<&str> {
        if let Row::Reaction(row) = self.row(&Key::Reaction(conversation, seq, user))? { Some(row) } else { None }
    }

    /// Which messages of a conversation count no more.
    fn uncounted(&self, conversation: ConversationId) -> Option<&Uncounted> {
        if let Row::Uncounted(row) = self.row(&Key::Uncounted(conversation))? { Some(row) } else { None }
    }

    /// Which of its messages count no more, of a level and one of it.
    fn tally(&self, conversation: ConversationId, level: u8, index: u64) -> Option<&Tally> {
        if let Row::Tally(row) = self.row(&Key::Tally(conversation, level, index))? { Some(row) } else { None }
    }

    /// What a user set for a conversation.
    fn settings(&self, user: UserId, conversation: ConversationId) -> Option<&Settings> {
        if let Row::Settings(row) = self.row(&Key::Settings(user, conversation))? { Some(row) } else { None }
    }

    /// What of a conversation concerns a user alone.
    fn personal(&self, user: UserId, conversation: ConversationId) -> Option<&Personal> {
        if let Row::Personal(row) = self.row(&Key::Personal(user, conversation))? { Some(row) } else { None }
    }

    /// What a group says of itself.
    fn info(&self, conversation: ConversationId) -> Option<&Info> {
        if let Row::Info(row) = self.row(&Key::Info(conversation))? { Some(row) } else { None }
    }

    /// Whether a user is kept out of a group.
    fn is_banned(&self, conversation: ConversationId, user: UserId) -> bool {
        self.row(&Key::Banned(conversation, user)).is_some()
    }

    /// With which token a device left what it left, if that is known.
    fn bearer(&self, user: UserId, device: DeviceId) -> Option<&Bearer> {
        if let Row::Bearer(row) = self.row(&Key::Bearer(user, device))? { Some(row) } else { None }
    }

    /// What the operator took back.
    fn taken_back(&self) -> &TakenBack;

    /// Whether the operator took back the token with which a device left something: a will, or where it has itself told.
    /// Where that is not known it counts as made before all others.
    fn is_cut_off(&self, user: UserId, device: DeviceId) -> bool {
        let bearer = self.bearer(user, device).cloned().unwrap_or_default();
        self.user(user).is_some_and(|row| self.taken_back().has(&row.name, &bearer))
    }

    /// How many users are kept out of a group; of those alone who were since it is counted.
    fn bans(&self, conversation: ConversationId) -> u32 {
        let Some(Row::Bans(count)) = self.row(&Key::Bans(conversation)) else { return 0 };
        *count
    }

    /// The group that was made for just these users, by the digest of their ids.
    fn participants(&self, digest: u128) -> Option<ConversationId> {
        let row = self.row(&Key::Participants(digest))?;
        if let Row::ConversationName(id) = row { Some(*id) } else { None }
    }

    /// A user's profile.
    fn profile(&self, id: UserId) -> Option<&Profile> {
        if let Row::Profile(row) = self.row(&Key::Profile(id))? { Some(row) } else { None }
    }

    /// What a user keeps of another.
    fn contact(&self, user: UserId, other: UserId) -> Option<&Contact> {
        if let Row::Contact(row) = self.row(&Key::Contact(user, other))? { Some(row) } else { None }
    }

    /// The contact in a user's slot.
    fn contact_in(&self, user: UserId, slot: u32) -> Option<UserId> {
        if let Row::ContactSlot(other) = self.row(&Key::ContactSlot(user, slot))? { Some(*other) } else { None }
    }

    /// Whom a user takes nothing from.
    fn refusals(&self, user: UserId) -> Option<&Refuses> {
        if let Row::Refuses(row) = self.row(&Key::Refuses(user))? { Some(row) } else { None }
    }

    /// Whether a user blocks another.
    fn blocks(&self, user: UserId, other: UserId) -> bool {
        self.refusals(user).is_some_and(|refuses| refuses.users.binary_search(&other).is_ok())
    }

    /// Whether a user takes nothing from another: it blocks it, or its account is closed.
    fn refuses(&self, user: UserId, other: UserId) -> bool {
        let refuses = self.refusals(user);
        refuses.is_some_and(|refuses| refuses.everyone || refuses.users.binary_search(&other).is_ok())
    }

    /// What a user's password is checked by.
    fn password(&self, user: UserId) -> Option<&Secret> {
        if let Row::Password(row) = self.row(&Key::Password(user))? { Some(row) } else { None }
    }

    /// To whom a user shows its presence.
    fn audience(&self, id: UserId) -> Audience {
        let Some(Row::Audience(audience)) = self.row(&Key::Audience(id)) else { return Audience::default() };
        Audience::try_from(*audience).unwrap_or_default()
    }

    /// Whether a user hides its marks in direct conversations.
    fn hides_marks(&self, id: UserId) -> bool {
        self.user(id).is_some_and(|row| row.hides_marks)
    }

    /// When a user's newest session ended, as far as is known.
    fn seen(&self, id: UserId) -> Option<LogTime> {
        if let Row::Seen(time) = self.row(&Key::Seen(id))? { Some(*time) } else { None }
    }

    /// How long a conversation's entries are kept.
    fn keeping(&self, id: ConversationId) -> Option<&Keeping> {
        if let Row::Keeping(row) = self.row(&Key::Keeping(id))? { Some(row) } else { None }
    }

    /// How far the erasure of a user has come, if it is erased.
    fn erasure(&self, id: UserId) -> Option<Erasure> {
        if let Row::Erasure(row) = self.row(&Key::Erasure(id))? { Some(*row) } else { None }
    }

    /// Whose entries are still in the files of the store, and shown to nobody.
    fn erased(&self) -> &BTreeSet<UserId>;

    /// Where a user's device has itself told.
    fn push(&self, user: UserId, device: DeviceId) -> Option<&Push> {
        if let Row::Push(row) = self.row(&Key::Push(user, device))? { Some(row) } else { None }
    }

    /// What it was told.
    fn told(&self, user: UserId, device: DeviceId) -> Option<&Told> {
        if let Row::Told(row) = self.row(&Key::Told(user, device))? { Some(row) } else { None }
    }

    /// The newest id given in a partition, without its partition; 0 while there is none.
    fn counter(&self, counted: Counted, partition: u16) -> u64 {
        if let Some(Row::Counter(n)) = self.row(&Key::Counter(counted, partition)) { *n } else { 0 }
    }
}

/// What an inbox is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tidings {
    /// That its user's membership changed.
    Membership(Crossing),
    /// That a message mentions its user.
    Mention(Mention),
}

/// Reads of what is committed. Something cold reads as if it were not there, and is noted: an answer holds only if
/// nothing was.
#[derive(Debug)]
pub struct Reader<'a> {
    state: &'a State,
    /// What was loaded for this read alone, where the state does not hold it.
    kept: Option<&'a Kept>,
    cold: RefCell<Vec<Want>>,
    /// How much was looked up.
    looks: Cell<u32>,
}

static NO_USERS: BTreeSet<UserId> = BTreeSet::new();
static NO_DUTIES: Duties = Duties::NONE;

impl<'a> Reader<'a> {
    /// A reader of a state.
    #[must_use]
    pub fn new(state: &'a State) -> Self {
        Self { state, kept: None, cold: RefCell::default(), looks: Cell::default() }
    }

    /// A reader of a state, and of what was loaded for it alone.
    pub(super) fn with(state: &'a State, kept: &'a Kept) -> Self {
        Self { kept: Some(kept), ..Self::new(state) }
    }

    /// The state itself.
    #[must_use]
    pub fn state(&self) -> &'a State {
        self.state
    }

    /// Who is or was a member of a conversation.
    #[must_use]
    pub fn members(&self, id: ConversationId) -> &'a BTreeSet<UserId> {
        self.known(self.state.members(id), |kept| kept.members(id), || Want::Members(id)).unwrap_or(&NO_USERS)
    }

    /// The conversations that are or were to be delivered to a user, and the duty in each.
    #[must_use]
    pub fn duties(&self, id: UserId) -> &'a Duties {
        self.known(self.state.duties(id), |kept| kept.duties(id), || Want::Duties(id)).unwrap_or(&NO_DUTIES)
    }

    /// How much was cold so far.
    #[must_use]
    pub fn cold(&self) -> usize {
        self.cold.borrow().len()
    }

    /// How many rows and lists were looked up so far.
    #[must_use]
    pub fn looks(&self) -> u32 {
        self.looks.get()
    }

    /// What was cold.
    #[must_use]
    pub fn into_cold(self) -> Vec<Want> {
        self.cold.into_inner()
    }

    fn known<T>(
        &self,
        found: Lookup<T>,
        keep: impl FnOnce(&'a Kept) -> Lookup<T>,
        want: impl FnOnce() -> Want,
    ) -> Option<T> {
        self.looks.set(self.looks.get().saturating_add(1));
        let found = match (found, self.kept) {
            (Lookup::Cold, Some(kept)) => keep(kept),
            (found, _) => found,
        };
        match found {
            Lookup::Known(value) => value,
            Lookup::Cold => {
                self.cold.borrow_mut().push(want());
                None
            }
        }
    }
}

impl Rows for Reader<'_> {
    fn erased(&self) -> &BTreeSet<UserId> {
        self.state.erased()
    }

    fn taken_back(&self) -> &TakenBack {
        &self.state.taken_back
    }

    fn row(&self, key: &Key) -> Option<&Row> {
        self.known(self.state.row(key), |kept| kept.row(key), || Want::Row(key.clone()))
    }
}

/// The rows that one group changed, drafted over the state.
#[derive(Default)]
pub struct Overlay {
    rows: HashMap<Key, Option<Row>, RandomState>,
    /// Users and conversations that there were not before.
    created: Vec<Key>,
    /// Rows that were cold when the group came to them, as they are saved.
    late: FrozenMap<Key, Box<Option<Row>>>,
    failed: RefCell<Option<ReadError>>,
    /// The newest position drafted; 0 while there is none.
    pub tail: Position,
    /// The time of the frame.
    pub time: LogTime,
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("rows", &self.rows).field("tail", &self.tail).finish_non_exhaustive()
    }
}

impl Overlay {
    /// Whether nothing is drafted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// What the rows that it changes take when they are saved.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.rows.values().flatten().map(|row| row.encode().len()).sum()
    }

    /// How many rows were cold when they were needed: each was a wait for the disk.
    #[must_use]
    pub fn late(&self) -> usize {
        self.late.len()
    }

    /// Why a row could not be read, if one could not: then the draft is void.
    pub fn take_failure(&mut self) -> Option<ReadError> {
        self.failed.get_mut().take()
    }

    /// For a planted bug: no device that the draft changes has an answer any more.
    pub fn forget_answers(&mut self) {
        for row in self.rows.values_mut() {
            if let Some(Row::Device(device)) = row {
                device.kept.clear();
            }
        }
    }

    /// Forgets the draft: the group was not committed.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Puts the draft into the state: the group is committed, or changed nothing.
    pub fn merge(&mut self, state: &mut State) {
        for key in self.created.drain(..) {
            state.begin_list(&key);
        }
        for (key, row) in self.rows.drain() {
            state.put(key, row);
        }
        if !self.late.is_empty() {
            for (key, row) in std::mem::take(&mut self.late).into_map() {
                state.install(key, *row);
            }
        }
        state.tail = state.tail.max(self.tail);
        state.time = state.time.max(self.time);
        self.tail = Position(0);
    }
}

/// The state as it will be once the group is committed: drafted rows first, committed ones below. A cold row is fetched
/// there and then, since a decision cannot wait; who rehearses a decision instead has it noted, see [`View::rehearsal`].
#[derive(Debug)]
pub struct View<'a> {
    committed: Reader<'a>,
    overlay: &'a mut Overlay,
    is_rehearsal: bool,
}

impl Rows for View<'_> {
    fn erased(&self) -> &BTreeSet<UserId> {
        self.committed.state.erased()
    }

    fn taken_back(&self) -> &TakenBack {
        &self.committed.state.taken_back
    }

    fn row(&self, key: &Key) -> Option<&Row> {
        if let Some(drafted) = self.overlay.rows.get(key) {
            return drafted.as_ref();
        }
        match self.committed.state.row(key) {
            Lookup::Known(row) => row,
            Lookup::Cold => self.cold(key),
        }
    }
}

impl<'a> View<'a> {
    /// Whether a user is being erased, be it since this group.
    #[must_use]
    pub fn is_erased(&self, user: UserId) -> bool {
        match self.overlay.rows.get(&Key::Erasure(user)) {
            Some(drafted) => drafted.is_some(),
            None => self.committed.state.erased().contains(&user),
        }
    }

    /// The view of a state and a draft over it.
    pub fn new(state: &'a State, overlay: &'a mut Overlay) -> Self {
        Self { committed: Reader::new(state), overlay, is_rehearsal: false }
    }

    /// A view that fetches nothing: what is cold reads as if it were not there, and is told by [`View::into_cold`].
    pub fn rehearsal(state: &'a State, overlay: &'a mut Overlay) -> Self {
        Self { committed: Reader::new(state), overlay, is_rehearsal: true }
    }

    /// What a rehearsal found cold.
    #[must_use]
    pub fn into_cold(self) -> Vec<Want> {
        self.committed.into_cold()
    }

    fn cold(&self, key: &Key) -> Option<&Row> {
        if self.is_rehearsal {
            return self.committed.row(key);
        }
        if let Some(row) = self.overlay.late.get(key) {
            return row.as_ref();
        }
        match self.committed.state.fetch(key) {
            Ok(row) => self.overlay.late.insert(key.clone(), Box::new(row)).as_ref(),
            Err(error) => {
                self.overlay.failed.borrow_mut().get_or_insert(error);
                None
            }
        }
    }

    /// How long a device is gone before its will is published, if it has one.
    #[must_use]
    pub fn will_after(&self, device: DeviceId) -> Option<u32> {
        match self.overlay.rows.get(&Key::Will(device)) {
            Some(Some(Row::Will(will))) => Some(will.after_ms),
            Some(_) => None,
            None => self.committed.state.wills().get(&device).copied(),
        }
    }

    /// What users may have.
    pub(super) fn quotas(&self) -> Quotas {
        self.committed.state.quotas
    }

    /// How much was cold, and noted.
    pub(super) fn noted(&self) -> usize {
        self.committed.cold()
    }

    /// How many conversations there are whose entries go after a time.
    pub(super) fn timed(&self) -> usize {
        self.committed.state.schedule().len()
    }

    /// Who is or was a member of a conversation, as far as it is at hand: members of this group are not among them. What is
    /// cold is told by [`View::into_cold`].
    pub(super) fn members(&self, id: ConversationId) -> &BTreeSet<UserId> {
        self.committed.members(id)
    }

    /// The conversations that are or were to be delivered to a user, likewise.
    pub(super) fn duties(&self, id: UserId) -> &Duties {
        self.committed.duties(id)
    }

    /// Whether a device has itself told anywhere.
    #[must_use]
    pub fn is_told(&self, user: UserId, device: DeviceId) -> bool {
        match self.overlay.rows.get(&Key::Push(user, device)) {
            Some(drafted) => drafted.is_some(),
            None => self.committed.state.pushes().contains(&(user, device)),
        }
    }

    /// What inboxes are to be told, oldest first.
    #[must_use]
    pub fn crossings(&self) -> Vec<(Position, UserId, Tidings)> {
        let mut all: BTreeMap<_, _> = self.committed.state.crossings().iter().map(|(key, row)| (*key, row)).collect();
        for (key, row) in &self.overlay.rows {
            if let Key::Crossing(position, user) = key {
                match row {
                    Some(row) => drop(all.insert((*position, *user), row)),
                    None => drop(all.remove(&(*position, *user))),
                }
            }
        }
        let crossing = |((position, user), row): ((Position, UserId), &Row)| match row {
            Row::Crossing(crossing) => Some((position, user, Tidings::Membership(*crossing))),
            Row::Mention(mention) => Some((position, user, Tidings::Mention(*mention))),
            _ => None,
        };
        all.into_iter().filter_map(crossing).collect()
    }

    /// Drafts a row in place of what is there; `None` removes it.
    pub fn put(&mut self, key: Key, row: Option<Row>) {
        self.overlay.rows.insert(key, row);
    }

    /// Drafts the row of a user or conversation that there was not before.
    pub fn create(&mut self, key: Key, row: Row) {
        self.overlay.created.push(key.clone());
        self.put(key, Some(row));
    }

    /// Drafts a change of the row under `key`, if there is one.
    pub fn update(&mut self, key: Key, change: impl FnOnce(&mut Row)) {
        if !self.overlay.rows.contains_key(&key) {
            let row = self.row(&key).cloned();
            self.overlay.rows.insert(key.clone(), row);
        }
        if let Some(Some(row)) = self.overlay.rows.get_mut(&key) {
            change(row);
        }
    }

    /// The draft reaches up to here.
    pub fn reach(&mut self, position: Position, time: LogTime) {
        self.overlay.tail = self.overlay.tail.max(position);
        self.overlay.time = self.overlay.time.max(time);
    }
}
