//! What must be so, naively: every committed frame is taken in record by record, without sharing a line with the
//! broker's own fold. What contradicts a promise is a panic, which names it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use longwire::routing::change::Change;
use longwire::routing::rows::Kind;
use longwire::store::{Frame, Origin, Record, StoredEntry};
use longwire_protocol::packet::{self, EntryKind, Role, item};
use prost::Message as _;

/// Seqs that are accounted for: stretches that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stretches(BTreeMap<u64, u64>);

impl Stretches {
    pub(crate) fn add(&mut self, from: u64, to: u64) {
        if from > to {
            return;
        }
        let (mut from, mut to) = (from, to);
        while let Some((&f, &t)) = self.0.range(..=to.saturating_add(1)).next_back() {
            if t.saturating_add(1) < from {
                break;
            }
            self.0.remove(&f);
            from = from.min(f);
            to = to.max(t);
        }
        self.0.insert(from, to);
    }

    pub(crate) fn has(&self, seq: u64) -> bool {
        self.0.range(..=seq).next_back().is_some_and(|(_, &to)| seq <= to)
    }

    pub(crate) fn cut_above(&mut self, seq: u64) {
        self.0.retain(|from, _| *from <= seq);
        self.0.values_mut().for_each(|to| *to = (*to).min(seq));
    }
}

/// One committed entry.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) position: u64,
    pub(crate) time: u64,
    pub(crate) origin: Origin,
    pub(crate) is_message: bool,
    pub(crate) item: Bytes,
}

/// Someone who is or was in a conversation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Member {
    pub(crate) role: i32,
    /// From and to, both included; `u64::MAX` while it is open.
    pub(crate) intervals: Vec<(u64, u64)>,
    pub(crate) mark: u64,
    /// The log's tail, at least, when the user was last out of it.
    pub(crate) left: u64,
}

impl Member {
    pub(crate) fn sees(&self, seq: u64) -> bool {
        self.intervals.iter().any(|&(from, to)| from <= seq && seq <= to)
    }

    pub(crate) fn is_active(&self) -> bool {
        self.role != 0
    }
}

/// A conversation and everything in it.
#[derive(Clone, Debug)]
pub(crate) struct Conversation {
    pub(crate) kind: Kind,
    pub(crate) label: String,
    pub(crate) pair: (u64, u64),
    pub(crate) entries: Vec<Entry>,
    pub(crate) members: BTreeMap<u64, Member>,
}

impl Conversation {
    pub(crate) fn head(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(crate) fn entry(&self, seq: u64) -> Option<&Entry> {
        self.entries.get((seq as usize).checked_sub(1)?)
    }

    pub(crate) fn is_express(&self) -> bool {
        matches!(self.kind, Kind::Direct | Kind::Inbox)
    }

    /// The messages above the mark, and kept from a position on, in the stretch that the user is in now.
    pub(crate) fn unread(&self, user: u64, floor: u64) -> u64 {
        let Some(member) = self.members.get(&user).filter(|m| m.is_active()) else { return 0 };
        let Some(&(from, _)) = member.intervals.last() else { return 0 };
        let above = from.max(member.mark + 1);
        (above..=self.head())
            .filter(|seq| self.entry(*seq).is_some_and(|e| e.is_message && e.position >= floor))
            .count() as u64
    }
}

/// The answer that a publish has, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) conversation: u64,
    pub(crate) seq: u64,
    pub(crate) time: u64,
}

/// Whose publish: device, incarnation, message id.
pub(crate) type Id = (u64, u64, u64);

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) frames: Vec<Frame>,
    pub(crate) tail: u64,
    pub(crate) time: u64,
    pub(crate) floor: u64,
    pub(crate) users: BTreeMap<String, u64>,
    pub(crate) inboxes: BTreeMap<u64, u64>,
    /// User and name of each device.
    pub(crate) devices: BTreeMap<u64, (u64, String)>,
    pub(crate) conversations: BTreeMap<u64, Conversation>,
    pub(crate) channels: BTreeMap<String, u64>,
    pub(crate) answers: BTreeMap<Id, Answer>,
    /// Of each user and conversation: the seq up to which a `JOINED` covers everything.
    pub(crate) covered: BTreeMap<(u64, u64), u64>,
    /// And the seq of that `JOINED` in the inbox.
    pub(crate) announced: BTreeMap<(u64, u64), u64>,
    /// Conversations of each user, past ones too.
    pub(crate) of_user: BTreeMap<u64, BTreeSet<u64>>,
    /// How many wills were published.
    pub(crate) wills_published: u64,
    /// What each device leaves: whose, where, what.
    pub(crate) wills: BTreeMap<u64, (u64, u64, Vec<u8>)>,
    /// A will was taken away just now: the next entry may be it.
    taken: Option<(u64, u64, Vec<u8>)>,
    newest_id: BTreeMap<(u64, u64, u64), u64>,
    /// An owner has become an admin: the next entry there makes another the owner.
    handing: Option<(u64, u64)>,
}

fn id_of(origin: &Origin) -> Id {
    (origin.device.0, origin.incarnation.0, origin.message_id.0)
}

impl Model {
    /// Takes in a frame that is committed.
    pub(crate) fn take_in(&mut self, frame: &Frame) {
        assert_eq!(frame.first.0, self.tail + 1, "frames follow each other");
        assert!(frame.time.0 >= self.time, "the log's time goes back from {} to {:?}", self.time, frame.time);
        self.time = frame.time.0;
        for record in &frame.records {
            match record {
                Record::Entry(entry) => self.entry(entry),
                Record::Change(change) => {
                    let decoded = Change::decode(&change.body).expect("a change of the log reads back");
                    self.change(decoded, frame.time.0);
                }
                Record::Rider(_) => {}
            }
        }
        self.tail = frame.last().0;
        self.frames.push(frame.clone());
    }

    /// The model of the frames up to a position: what lay beyond was lost.
    pub(crate) fn cut(&self, tail: u64) -> Self {
        let mut model = Self::default();
        for frame in self.frames.iter().filter(|frame| frame.last().0 <= tail) {
            model.take_in(frame);
        }
        model
    }

    /// A user's name.
    pub(crate) fn name(&self, user: u64) -> Option<&str> {
        self.users.iter().find(|(_, id)| **id == user).map(|(name, _)| name.as_str())
    }

    fn entry(&mut self, stored: &StoredEntry) {
        let id = stored.conversation.0;
        let conversation = self.conversations.get(&id).expect("an entry of a conversation that exists");
        assert_eq!(stored.seq.0, conversation.head() + 1, "seqs of conversation {id} are without a hole");
        let decoded = packet::Item::decode(stored.item.clone()).expect("an item reads back");
        let Some(item::Kind::Entry(wire)) = decoded.kind else { panic!("an entry of the log is an entry") };
        assert_eq!((wire.conversation, wire.seq, wire.time), (id, stored.seq.0, stored.time.0), "an item's own head");
        let kind = wire.kind();
        if stored.origin.device.0 != 0 {
            let (user, _) = self.devices.get(&stored.origin.device.0).expect("a device that exists");
            assert_eq!(*user, wire.sender, "the sender is the device's user");
            self.answered(&stored.origin, Answer { conversation: id, seq: stored.seq.0, time: stored.time.0 });
            self.in_order(&stored.origin, id);
        }
        let is_will = stored.origin.device.0 == 0 && wire.sender != 0 && kind == EntryKind::Message;
        if is_will {
            let will = self.taken.take().expect("a message that no device published is a will that was there");
            assert_eq!(will, (wire.sender, id, wire.content.to_vec()), "and is what the device left");
            self.wills_published += 1;
        }
        self.taken = None;
        if wire.sender != 0 {
            self.may_write(id, wire.sender, kind);
            if let Some(membership) = &wire.membership {
                self.may_decide(id, wire.sender, membership.user, membership.role);
            }
        }
        let conversation = self.conversations.get_mut(&id).expect("looked up above");
        conversation.entries.push(Entry {
            position: stored.position.0,
            time: stored.time.0,
            origin: stored.origin,
            is_message: kind == EntryKind::Message,
            item: stored.item.clone(),
        });
        match kind {
            EntryKind::Message | EntryKind::Label => {
                // The own mark goes along with what someone writes; with a label too.
                // A will is nobody's writing.
                if let Some(member) = conversation.members.get_mut(&wire.sender)
                    && kind == EntryKind::Message
                    && !is_will
                {
                    member.mark = stored.seq.0;
                }
                if kind == EntryKind::Label {
                    conversation.label = wire.label;
                }
            }
            EntryKind::Membership => {
                let change = wire.membership.expect("a membership entry says whose");
                self.set_role(id, change.user, change.role, stored.seq.0);
            }
            EntryKind::Joined => {
                let joined = wire.joined.expect("a joined entry says what");
                let user = self.conversations[&id].pair.0;
                let about = &self.conversations[&joined.conversation];
                assert_eq!(joined.seq, about.head(), "a joined entry covers what there is");
                let member = about.members.get(&user).expect("who joined is a member");
                let from = member.intervals.last().map_or(1, |i| i.0);
                assert_eq!(joined.visible_from, from, "visible from where the stretch begins");
                self.covered.insert((user, joined.conversation), joined.seq);
                self.announced.insert((user, joined.conversation), stored.seq.0);
            }
            EntryKind::Left | EntryKind::Profile | EntryKind::Contact | EntryKind::Blocked | EntryKind::Device => {}
            EntryKind::Edit
            | EntryKind::Recall
            | EntryKind::Reaction
            | EntryKind::Info
            | EntryKind::Mentioned
            | EntryKind::Settings
            | EntryKind::Hidden => panic!("nobody does this: {wire:?}"),
        }
    }

    fn answered(&mut self, origin: &Origin, answer: Answer) {
        let id = id_of(origin);
        if let Some(before) = self.answers.insert(id, answer) {
            panic!("publish {id:?} is stored twice: {before:?} and {answer:?}");
        }
    }

    /// The ids of a device rise in each conversation.
    fn in_order(&mut self, origin: &Origin, conversation: u64) {
        let (device, incarnation, message_id) = id_of(origin);
        let newest = self.newest_id.entry((device, incarnation, conversation)).or_default();
        assert!(*newest < message_id, "device {device} stored id {message_id} of {conversation} after {newest}");
        *newest = message_id;
    }

    fn may_write(&self, id: u64, user: u64, kind: EntryKind) {
        let conversation = &self.conversations[&id];
        let role = conversation.members.get(&user).map_or(0, |m| m.role);
        let may = match (conversation.kind, kind) {
            (Kind::Channel, _) => true,
            (Kind::Group, EntryKind::Label) => role >= Role::Admin as i32,
            // The first entry makes its owner a member.
            (Kind::Group, EntryKind::Membership) => role >= Role::Member as i32 || conversation.head() == 0,
            (Kind::Group | Kind::Direct, _) => role >= Role::Member as i32,
            // What the user says about itself.
            (Kind::Inbox, EntryKind::Profile | EntryKind::Contact | EntryKind::Blocked | EntryKind::Device) => {
                conversation.pair.0 == user
            }
            (Kind::Inbox, _) => false,
        };
        assert!(may, "user {user} with role {role} writes {kind:?} into conversation {id}");
    }

    /// Members leave; admins decide about members, and the owner about all, and hands over to one other.
    fn may_decide(&mut self, id: u64, by: u64, user: u64, to: i32) {
        let (admin, owner) = (Role::Admin as i32, Role::Owner as i32);
        let conversation = &self.conversations[&id];
        let role = |user: u64| conversation.members.get(&user).map_or(0, |m| m.role);
        let others = conversation.members.iter().filter(|(other, m)| **other != by && m.is_active()).count();
        let (own, was, is_handing) = (role(by), role(user), self.handing == Some((id, by)));
        self.handing = None;
        let may = if conversation.head() == 0 {
            by == user && to == owner
        } else if is_handing {
            user != by && to == owner
        } else if user == by {
            let hands_over = own == owner && to == admin;
            self.handing = hands_over.then_some((id, by));
            hands_over || (to == 0 && (own != owner || others == 0))
        } else {
            own == owner && to != owner || (own == admin && was < admin && to < admin)
        };
        assert!(may, "user {by} with role {own} makes {user} of {was} a {to} in {id}");
    }

    fn set_role(&mut self, id: u64, user: u64, role: i32, seq: u64) {
        let conversation = self.conversations.get_mut(&id).expect("a conversation that exists");
        let head = conversation.head();
        let is_channel = conversation.kind == Kind::Channel;
        let tail = self.tail;
        let member = conversation.members.entry(user).or_default();
        let was_active = member.is_active();
        member.role = role;
        match (was_active, role != 0) {
            (false, true) if is_channel => {
                member.intervals = vec![(1, u64::MAX)];
                member.mark = head;
            }
            (false, true) => member.intervals.push((seq, u64::MAX)),
            (true, false) => {
                // The frame under way stands above the tail.
                member.left = tail + 1;
                if let Some(last) = member.intervals.last_mut() {
                    last.1 = seq;
                }
            }
            _ => {}
        }
        self.of_user.entry(user).or_default().insert(id);
    }

    fn change(&mut self, change: Change, time: u64) {
        match change {
            Change::UserCreated { user, name, inbox } => {
                assert!(self.users.insert(name.to_string(), user.0).is_none(), "user {name} is made twice");
                self.inboxes.insert(user.0, inbox.0);
                self.create(inbox.0, Kind::Inbox, "", (user.0, user.0));
                self.covered.insert((user.0, inbox.0), 0);
            }
            Change::DeviceCreated { device, user, name } => {
                let known = self.devices.insert(device.0, (user.0, name.to_string()));
                assert!(known.is_none(), "device {device} is made twice");
            }
            Change::ConversationCreated { conversation, kind, label, pair } => {
                self.create(conversation.0, kind, &label, (pair.0.0, pair.1.0));
                if kind == Kind::Channel {
                    let known = self.channels.insert(label.to_string(), conversation.0);
                    assert!(known.is_none(), "channel {label} is made twice");
                }
            }
            Change::Answered { origin, conversation, seq, .. } => {
                self.answered(&origin, Answer { conversation: conversation.0, seq: seq.0, time });
            }
            Change::MarkSet { user, conversation, seq, .. } => {
                let conversation = self.conversations.get_mut(&conversation.0).expect("a conversation that exists");
                assert!(seq.0 <= conversation.head(), "a mark is clamped to the head");
                let member = conversation.members.get_mut(&user.0).expect("a mark of a member");
                assert!(seq.0 > member.mark, "a mark only rises");
                member.mark = seq.0;
            }
            Change::RoleSet { conversation, user, role } => {
                let head = self.conversations[&conversation.0].head();
                self.set_role(conversation.0, user.0, role, head);
            }
            Change::Retained { floor } => {
                assert!(floor.0 >= self.floor, "the floor never falls");
                self.floor = floor.0;
            }
            Change::BanSet { .. } | Change::JoinKeySet { .. } | Change::ParticipantsSet { .. } => {
                panic!("nobody does this: {change:?}")
            }
            Change::WillSet { device, will } => {
                let (user, _) = self.devices.get(&device.0).expect("a device that exists");
                assert_eq!(*user, will.user.0, "a will of the device's user");
                self.may_write(will.conversation.0, will.user.0, EntryKind::Message);
                self.wills.insert(device.0, (will.user.0, will.conversation.0, will.content.to_vec()));
            }
            Change::WillTaken { device } => {
                self.taken = self.wills.remove(&device.0);
                assert!(self.taken.is_some(), "a will is taken from who has one");
            }
            Change::IncarnationGiven { device, .. } => drop(self.wills.remove(&device.0)),
            Change::AudienceSet { .. } | Change::Seen { .. } => {}
            Change::FloorRaised { .. }
            | Change::CursorStored { .. }
            | Change::DeviceSeen { .. }
            | Change::DeviceReturned { .. }
            | Change::AccountSet { .. }
            | Change::InvitationUsed { .. } => {}
        }
    }

    fn create(&mut self, id: u64, kind: Kind, label: &str, pair: (u64, u64)) {
        let mut members = BTreeMap::new();
        if matches!(kind, Kind::Direct | Kind::Inbox) {
            let role = if kind == Kind::Direct { Role::Member } else { Role::Reader } as i32;
            for user in [pair.0, pair.1] {
                members.insert(user, Member { role, intervals: vec![(1, u64::MAX)], ..Member::default() });
                self.of_user.entry(user).or_default().insert(id);
            }
        }
        let conversation = Conversation { kind, label: label.to_owned(), pair, entries: Vec::new(), members };
        assert!(self.conversations.insert(id, conversation).is_none(), "conversation {id} is made twice");
    }
}
