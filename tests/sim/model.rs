//! What must be so, naively: every committed frame is taken in record by record, without sharing a line with the
//! broker's own fold. What contradicts a promise is a panic, which names it.

mod erasing;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use longwire::routing::change::Change;
use longwire::routing::rows::Kind;
use longwire::store::{Frame, Origin, Record, StoredEntry};
use longwire_protocol::ConversationId;
use longwire_protocol::packet::{self, EntryKind, Level, Role, item};
use prost::Message as _;

pub(crate) use self::erasing::Erased;

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
    /// It is a message, an edit or a reaction: its sender's own words.
    pub(crate) is_written: bool,
    pub(crate) sender: u64,
    /// When it ceases to be shown; 0: never.
    pub(crate) expires: u64,
    /// The message that it is another content of; 0: none.
    pub(crate) edit: u64,
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
    /// What is shown to nobody any more, messages and edits, and the positions of the recalls.
    pub(crate) recalled: BTreeMap<u64, u64>,
    /// How long entries are kept, since when that was said.
    pub(crate) retention: (packet::Retention, u64),
    /// By position: from which seq on entries are kept since then.
    pub(crate) kept: BTreeMap<u64, u64>,
    /// By user and seq: since which position a message is hidden; 0 where it no longer is.
    pub(crate) hidden: BTreeMap<(u64, u64), u64>,
    reactions: BTreeMap<(u64, u64), String>,
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

    /// Whether an entry was recalled at this position, or before.
    pub(crate) fn is_recalled(&self, seq: u64, by: u64) -> bool {
        self.recalled.get(&seq).is_some_and(|position| *position <= by)
    }

    /// From which seq on entries were kept at this position.
    pub(crate) fn kept_from(&self, by: u64) -> u64 {
        self.kept.range(..=by).next_back().map_or(0, |(_, first)| *first)
    }

    /// Whether an entry was no longer to be shown at this time.
    pub(crate) fn has_ended(&self, seq: u64, time: u64) -> bool {
        self.entry(seq).is_some_and(|entry| entry.expires > 0 && entry.expires <= time)
    }

    /// Whether a user has been hiding a message since this position, or before.
    pub(crate) fn is_hidden(&self, user: u64, seq: u64, by: u64) -> bool {
        self.hidden.get(&(user, seq)).is_some_and(|since| *since > 0 && *since <= by)
    }

    /// The messages above the mark that are shown at this time, and kept from a position on, in the stretch that the user
    /// is in now; what the conversation itself keeps, as it was at another position.
    pub(crate) fn unread(&self, user: u64, (floor, by): (u64, u64), time: u64) -> u64 {
        let Some(member) = self.members.get(&user).filter(|m| m.is_active()) else { return 0 };
        let Some(&(from, _)) = member.intervals.last() else { return 0 };
        let above = from.max(member.mark + 1).max(self.kept_from(by));
        (above..=self.head())
            .filter(|seq| self.entry(*seq).is_some_and(|e| e.is_message && e.position >= floor))
            .filter(|seq| !self.recalled.contains_key(seq) && !self.has_ended(*seq, time))
            .filter(|seq| !self.is_hidden(user, *seq, u64::MAX))
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
    /// The same, of records that were lost since: what they let go of may be gone all the same.
    lost_floor: u64,
    /// Where each device stood, likewise: it has what it acked, whatever became of the record of it.
    lost_cursors: BTreeMap<u64, (u64, u64)>,
    /// The user of which a device administers.
    pub(crate) admin: Option<String>,
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
    /// What records took from everybody's sight that were lost since: it may be gone all the same.
    lost_gone: BTreeSet<(u64, u64)>,
    /// By position: what was taken from everybody's sight, of which conversations.
    pub(crate) recalls: BTreeMap<u64, Vec<(u64, Vec<u64>)>>,
    /// Who is erased, and how far that has come.
    pub(crate) erased: BTreeMap<u64, Erased>,
    /// What inboxes are still to be told: who is mentioned, where.
    pub(crate) mentions: BTreeSet<(u64, u64, u64)>,
    /// What each user set for a conversation.
    pub(crate) settings: BTreeMap<(u64, u64), packet::Settings>,
    /// When each device came.
    pub(crate) born: BTreeMap<u64, u64>,
    /// Where each device stands, by lane.
    pub(crate) cursors: BTreeMap<u64, (u64, u64)>,
    /// What each device set for a conversation, and at which positions.
    levels: BTreeMap<(u64, u64), Vec<(u64, Level)>>,
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
                    if let Change::LevelSet { device, conversation, level } = decoded {
                        let level = Level::try_from(level).expect("a level");
                        let levels = self.levels.entry((device.0, conversation.0)).or_default();
                        levels.push((change.position.0, level));
                    }
                    self.change(decoded, (change.position.0, frame.time.0));
                }
                Record::Rider(rider) => self.take_cursor(&rider.body),
            }
        }
        self.tail = frame.last().0;
        self.frames.push(frame.clone());
    }

    /// Takes in where devices stand by a frame, which may have been taken in before.
    pub(crate) fn take_cursors(&mut self, frame: &Frame) {
        for record in &frame.records {
            if let Record::Rider(rider) = record {
                self.take_cursor(&rider.body);
            }
        }
    }

    fn take_cursor(&mut self, rider: &[u8]) {
        if let Ok(Change::CursorStored { device, cursor }) = Change::decode(rider) {
            self.cursors.insert(device.0, (cursor.express.0, cursor.bulk.0));
        }
    }

    /// What lies below may be gone.
    pub(crate) fn gone_below(&self) -> u64 {
        self.floor.max(self.lost_floor)
    }

    /// The model of the frames up to a position: what lay beyond was lost.
    pub(crate) fn cut(&self, tail: u64) -> Self {
        let mut lost_cursors = self.lost_cursors.clone();
        lost_cursors.extend(&self.cursors);
        let lost = self.recalls.range(tail + 1..).flat_map(|(_, gone)| gone);
        let lost = lost.flat_map(|(id, seqs)| seqs.iter().map(|seq| (*id, *seq)));
        let lost_gone = lost.chain(self.lost_gone.iter().copied()).collect();
        let admin = self.admin.clone();
        let mut model = Self { lost_floor: self.gone_below(), lost_cursors, lost_gone, admin, ..Self::default() };
        for frame in self.frames.iter().filter(|frame| frame.last().0 <= tail) {
            model.take_in(frame);
        }
        model
    }

    /// Whether an entry may be gone by a record that was lost.
    pub(crate) fn may_be_gone(&self, id: u64, seq: u64) -> bool {
        self.lost_gone.contains(&(id, seq))
    }

    /// The levels that a device set for a conversation, and where.
    pub(crate) fn levels_of(&self, device: u64, conversation: u64) -> &[(u64, Level)] {
        self.levels.get(&(device, conversation)).map_or(&[], Vec::as_slice)
    }

    /// Which of them held at a position.
    pub(crate) fn level_at(&self, device: u64, conversation: u64, position: u64) -> Level {
        let levels = self.levels_of(device, conversation);
        let set = levels.iter().rev().find(|(at, _)| *at < position);
        set.map_or(Level::Full, |(_, level)| *level)
    }

    /// The conversations of which a device wants nothing.
    pub(crate) fn nothing_of(&self, device: u64) -> Vec<u64> {
        let of = self.levels.keys().filter(|(of, _)| *of == device).map(|(_, conversation)| *conversation);
        of.filter(|conversation| self.level_at(device, *conversation, u64::MAX) == Level::Nothing).collect()
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
            // An inbox has what was said about several conversations, each in its own order.
            if self.conversations[&id].kind != Kind::Inbox {
                self.in_order(&stored.origin, id);
            }
        }
        let is_will = stored.origin.device.0 == 0 && wire.sender != 0 && kind == EntryKind::Message;
        if is_will {
            let will = self.taken.take().expect("a message that no device published is a will that was there");
            assert_eq!(will, (wire.sender, id, wire.content.to_vec()), "and is what the device left");
            self.wills_published += 1;
        }
        self.taken = None;
        if wire.sender != 0 && !self.leaves_for_good(stored, &wire) {
            self.may_write(id, wire.sender, kind);
            self.may_alter(id, &wire);
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
            is_written: matches!(kind, EntryKind::Message | EntryKind::Edit | EntryKind::Reaction),
            sender: wire.sender,
            expires: wire.expires,
            edit: wire.edit,
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
                    conversation.label.clone_from(&wire.label);
                }
            }
            EntryKind::Membership => {
                let change = wire.membership.as_ref().expect("a membership entry says whose");
                self.set_role(id, change.user, change.role, stored.seq.0);
            }
            EntryKind::Joined => {
                let joined = wire.joined.as_ref().expect("a joined entry says what");
                let user = self.conversations[&id].pair.0;
                let about = &self.conversations[&joined.conversation];
                assert_eq!(joined.seq, about.head(), "a joined entry covers what there is");
                let member = about.members.get(&user).expect("who joined is a member");
                let from = member.intervals.last().map_or(1, |i| i.0);
                assert_eq!(joined.visible_from, from, "visible from where the stretch begins");
                self.covered.insert((user, joined.conversation), joined.seq);
                self.announced.insert((user, joined.conversation), stored.seq.0);
            }
            EntryKind::Recall => {
                let target = wire.recall.expect("a recall says of what").seq;
                let of = (1..).zip(&conversation.entries);
                let gone: Vec<u64> =
                    of.filter(|(seq, e)| *seq == target || e.edit == target).map(|(seq, _)| seq).collect();
                conversation.recalled.extend(gone.iter().map(|seq| (*seq, stored.position.0)));
                self.recalls.insert(stored.position.0, vec![(id, gone)]);
            }
            EntryKind::Reaction => {
                let react = wire.reaction.as_ref().expect("a reaction says which");
                conversation.reactions.insert((react.seq, wire.sender), react.reaction.clone());
            }
            EntryKind::Mentioned => {
                let (user, about) = (conversation.pair.0, wire.mentioned.expect("a mention says where"));
                let was_owed = self.mentions.remove(&(user, about.conversation, about.seq));
                assert!(was_owed, "user {user} is told twice, or of what mentions nobody: {about:?}");
            }
            EntryKind::Settings => {
                let (user, set) = (conversation.pair.0, wire.settings.expect("settings say of what"));
                self.settings.insert((user, set.conversation), set.settings.unwrap_or_default());
            }
            EntryKind::Hidden => {
                let (user, hidden) = (conversation.pair.0, wire.hidden.expect("it says what is hidden"));
                let about = self.conversations.get_mut(&hidden.conversation).expect("of a conversation that exists");
                let since = about.hidden.entry((user, hidden.seq)).or_default();
                *since = match (hidden.undo, *since) {
                    (true, _) => 0,
                    (false, 0) => stored.position.0,
                    (false, since) => since,
                };
            }
            EntryKind::Left | EntryKind::Edit => {}
            EntryKind::Profile | EntryKind::Contact | EntryKind::Blocked | EntryKind::Device => {}
            EntryKind::Retention => {
                conversation.retention = (wire.retention.expect("it says how long"), stored.time.0);
            }
            EntryKind::Info => panic!("nobody does this: {wire:?}"),
        }
        if matches!(kind, EntryKind::Message | EntryKind::Edit) {
            self.mention(id, stored.seq.0, &wire);
        }
    }

    fn answered(&mut self, origin: &Origin, answer: Answer) {
        let id = id_of(origin);
        let user = self.devices.get(&id.0).map(|(user, _)| *user);
        let is_erased = user.is_none_or(|user| self.erased.contains_key(&user));
        assert!(!is_erased, "publish {id:?} is of a device that is erased");
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

    /// Who is in the conversation and is mentioned is to be told, and nobody else.
    fn mention(&mut self, id: u64, seq: u64, wire: &packet::Entry) {
        let members = &self.conversations[&id].members;
        let mentioned = wire.beside.iter().flat_map(|beside| &beside.mentions);
        let told = mentioned.filter(|user| **user != wire.sender && members.get(user).is_some_and(Member::is_active));
        self.mentions.extend(told.map(|user| (*user, id, seq)));
    }

    /// What is said about an earlier message is said by who may, of one that is shown to them.
    fn may_alter(&self, id: u64, wire: &packet::Entry) {
        let (about, target, countable) = match (wire.kind(), &wire.recall, &wire.reaction, &wire.hidden) {
            (EntryKind::Edit, ..) => (id, wire.edit, None),
            (EntryKind::Recall, Some(recall), ..) => (id, recall.seq, Some(recall.countable)),
            (EntryKind::Reaction, _, Some(react), _) => (id, react.seq, None),
            (EntryKind::Hidden, _, _, Some(hidden)) => (hidden.conversation, hidden.seq, Some(hidden.countable)),
            _ => return,
        };
        let of = &self.conversations[&about];
        let entry = of.entry(target).unwrap_or_else(|| panic!("it is about nothing: {wire:?}"));
        let is_kept = target >= of.kept_from(u64::MAX) && !self.is_erased(about, target, self.tail);
        let is_shown =
            entry.is_message && is_kept && !of.recalled.contains_key(&target) && !of.has_ended(target, wire.time);
        assert!(is_shown, "it is about what is not shown: {wire:?}");
        let member = of.members.get(&wire.sender);
        let sees = of.kind == Kind::Channel || member.is_some_and(|member| member.sees(target));
        assert!(sees, "it is about what its sender does not see: {wire:?}");
        let is_admin = match of.kind {
            Kind::Group => member.is_some_and(|member| member.role >= Role::Admin as i32),
            // A channel is nobody's.
            Kind::Channel => self.admin.is_some() && self.name(wire.sender) == self.admin.as_deref(),
            Kind::Direct | Kind::Inbox => false,
        };
        let may = match wire.kind() {
            EntryKind::Edit => entry.sender == wire.sender,
            EntryKind::Recall => entry.sender == wire.sender || is_admin,
            EntryKind::Hidden => member.is_some_and(Member::is_active),
            _ => true,
        };
        assert!(may, "it is another's, and not its sender's to alter: {wire:?}");
        if let EntryKind::Edit = wire.kind() {
            assert_eq!(wire.expires, entry.expires, "an edit ends with its message");
        }
        if let Some(react) = &wire.reaction {
            let before = of.reactions.get(&(target, wire.sender)).map_or("", String::as_str);
            assert_ne!(before, react.reaction, "a reaction that was given already writes no entry");
        }
        if let Some(countable) = countable {
            let messages = of.entries[..target as usize].iter().filter(|entry| entry.is_message).count() as u64;
            assert_eq!(countable, messages, "the messages up to it: {wire:?}");
        }
    }

    fn may_write(&self, id: u64, user: u64, kind: EntryKind) {
        let conversation = &self.conversations[&id];
        let role = conversation.members.get(&user).map_or(0, |m| m.role);
        let may = match (conversation.kind, kind) {
            // A channel is nobody's.
            (Kind::Channel, EntryKind::Retention) => self.admin.is_some() && self.name(user) == self.admin.as_deref(),
            (Kind::Channel, _) => true,
            (Kind::Group, EntryKind::Retention) => role == Role::Owner as i32,
            (Kind::Group, EntryKind::Label) => role >= Role::Admin as i32,
            // The first entry makes its owner a member.
            (Kind::Group, EntryKind::Membership) => role >= Role::Member as i32 || conversation.head() == 0,
            (Kind::Group | Kind::Direct, EntryKind::Reaction) => role >= Role::Reader as i32,
            (Kind::Group | Kind::Direct, _) => role >= Role::Member as i32,
            (Kind::Inbox, EntryKind::Settings | EntryKind::Hidden) => conversation.pair.0 == user,
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

    fn change(&mut self, change: Change, (position, time): (u64, u64)) {
        match change {
            Change::UserCreated { user, name, inbox } => {
                assert!(self.users.insert(name.to_string(), user.0).is_none(), "user {name} is made twice");
                self.inboxes.insert(user.0, inbox.0);
                self.create(inbox.0, Kind::Inbox, "", (user.0, user.0));
                self.covered.insert((user.0, inbox.0), 0);
            }
            Change::DeviceCreated { device, user, name } => {
                self.born.insert(device.0, time);
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
                let id = conversation.0;
                let conversation = self.conversations.get_mut(&id).expect("a conversation that exists");
                assert!(seq.0 <= conversation.head(), "a mark is clamped to the head");
                let member = conversation.members.get_mut(&user.0).expect("a mark of a member");
                // What is shown as unread is so until the next mark, be it the same.
                let settings = self.settings.get_mut(&(user.0, id));
                let was_unread = settings.is_some_and(|settings| std::mem::take(&mut settings.marked_unread));
                assert!(seq.0 > member.mark || was_unread, "a mark only rises");
                member.mark = member.mark.max(seq.0);
            }
            Change::RoleSet { conversation, user, role } => {
                let head = self.conversations[&conversation.0].head();
                self.set_role(conversation.0, user.0, role, head);
            }
            Change::Retained { floor } => {
                assert!(floor.0 >= self.floor, "the floor never falls");
                self.floor = floor.0;
            }
            Change::KeptFrom { conversation, first, countable } => {
                self.let_go(conversation.0, first.0, countable, (position, time));
            }
            Change::EraseBegun { user } => self.erase_begun(user.0, position),
            Change::EraseOwn { user, .. } => self.erase_own(user.0),
            Change::EraseIn { user, conversations } => {
                self.settings.retain(|(of, id), _| *of != user.0 || !conversations.contains(&ConversationId(*id)));
            }
            Change::EraseCleared { user } => self.erase_cleared(user.0, position),
            Change::EraseDone { user } => self.erase_done(user.0),
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
            Change::AudienceSet { .. } | Change::MarksHidden { .. } | Change::Seen { .. } | Change::LevelSet { .. } => {
            }
            Change::FloorRaised { .. }
            | Change::CursorStored { .. }
            | Change::DeviceSeen { .. }
            | Change::DeviceReturned { .. }
            | Change::AccountSet { .. }
            | Change::InvitationUsed { .. }
            | Change::PushSet { .. }
            | Change::PushTaken { .. }
            | Change::PushTold { .. }
            | Change::Borne { .. } => {}
        }
    }

    /// Only what is old enough goes, or what every device of every member has.
    fn let_go(&mut self, id: u64, first: u64, countable: u64, (position, time): (u64, u64)) {
        let conversation = &self.conversations[&id];
        let before = conversation.kept_from(u64::MAX);
        assert!(first > before && first <= conversation.head() + 1, "{id} is kept from {first}, and was from {before}");
        let messages = conversation.entries[..first as usize - 1].iter().filter(|entry| entry.is_message).count();
        assert_eq!(countable, messages as u64, "what goes of {id} is counted");
        let (retention, since) = conversation.retention;
        if self.is_inbox_of_erased(id) {
            assert_eq!(first, conversation.head() + 1, "all of the inbox goes");
            let gone = (before.max(1)..first).collect();
            self.recalls.insert(position, vec![(id, gone)]);
            self.conversations.get_mut(&id).expect("looked up above").kept.insert(position, first);
            return;
        }
        let newest = conversation.entry(first - 1).expect("it goes");
        let is_old = newest.time.max(since) + retention.age_ms <= time;
        let may_be_delivered = retention.mode() == packet::RetentionMode::UntilDelivered;
        let has = |device: &u64| {
            let stood = [self.cursors.get(device), self.lost_cursors.get(device)];
            let mut stood = stood.into_iter().flatten().peekable();
            if stood.peek().is_none() {
                return newest.time < self.born[device];
            }
            stood.any(|(express, bulk)| newest.position <= if conversation.is_express() { *express } else { *bulk })
        };
        let members = conversation.members.iter().filter(|(_, member)| member.is_active());
        let have = members.map(|(user, _)| self.devices.iter().filter(move |(_, (of, _))| of == user));
        let is_delivered =
            may_be_delivered && have.into_iter().all(|mut devices| devices.all(|(device, _)| has(device)));
        let keeps = retention.mode() != packet::RetentionMode::Keep;
        assert!(keeps && (is_old || is_delivered), "{id}: {} goes at {time}, and is kept: {retention:?}", first - 1);
        let gone = (before.max(1)..first).collect();
        self.recalls.insert(position, vec![(id, gone)]);
        self.conversations.get_mut(&id).expect("looked up above").kept.insert(position, first);
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
        let conversation = Conversation {
            kind,
            label: label.to_owned(),
            pair,
            entries: Vec::new(),
            members,
            recalled: BTreeMap::new(),
            retention: Default::default(),
            kept: BTreeMap::new(),
            hidden: BTreeMap::new(),
            reactions: BTreeMap::new(),
        };
        assert!(self.conversations.insert(id, conversation).is_none(), "conversation {id} is made twice");
    }
}
