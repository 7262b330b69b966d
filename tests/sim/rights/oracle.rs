//! Who may what, as chapter 7 of SPEC.md says it: written from there, over names and numbers, without a line of the
//! broker's. One thing happens after another, so every answer is known before it comes.

use std::collections::{BTreeMap, BTreeSet};

use longwire_protocol::packet::{self, ConversationKind, EntryKind, RetentionMode, Role};

/// What a token lets its user do with channels, by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grants {
    pub(super) read: &'static [&'static str],
    pub(super) publish: &'static [&'static str],
    pub(super) moderate: &'static [&'static str],
}

impl Grants {
    pub(super) fn reads(&self, channel: &str) -> bool {
        self.read.contains(&channel)
    }

    fn publishes(&self, channel: &str) -> bool {
        self.publish.contains(&channel)
    }

    fn sees(&self, channel: &str) -> bool {
        self.reads(channel) || self.publishes(channel)
    }
}

/// What a publish comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is acked with this seq.
    Done(u64),
    /// The conversation is none of the user's: the same as if there were none.
    Unknown,
    /// The user may see it and not do that.
    Refused,
}

/// What someone wants to do in a conversation.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// What, and whom it mentions.
    Say(String, Vec<u64>),
    /// With a key.
    Join(Option<u8>),
    Leave,
    SetRole(u64, Role),
    SetLabel(String),
    SetMark(u64),
    Edit(u64, String),
    Recall(u64),
    /// To which message, and what; nothing takes it back.
    React(u64, &'static str),
    /// Whom, and whether it is lifted.
    Ban(u64, bool),
    SetJoinKey(Option<u8>),
    SetRetention(packet::Retention),
    /// Which message, and whether it is taken back.
    Hide(u64, bool),
    SetSettings(packet::Settings),
    SetInfo(packet::Info),
}

/// One entry.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    pub(super) sender: u64,
    pub(super) kind: EntryKind,
    /// What a message says, or a label, or a reaction.
    pub(super) text: String,
    /// Whose membership, and what it became.
    pub(super) membership: (u64, Role),
    /// Which conversation an entry of an inbox is about.
    pub(super) about: u64,
    /// Which message is edited, recalled or reacted to.
    pub(super) target: u64,
    /// Who was removed is kept out.
    pub(super) banned: bool,
    /// It was recalled, or is an edit of what was.
    pub(super) is_gone: bool,
    /// When it was published.
    pub(super) at: u64,
    pub(super) retention: packet::Retention,
    /// Whom a message mentions.
    pub(super) mentions: Vec<u64>,
    pub(super) settings: packet::Settings,
    pub(super) info: packet::Info,
}

/// Someone who is or was in a conversation.
#[derive(Clone, Debug, Default)]
pub(super) struct Member {
    pub(super) role: Option<Role>,
    /// From and to, both included, what the user may read; `u64::MAX` while it is open.
    pub(super) stretches: Vec<(u64, u64)>,
    /// Above and up to: what is delivered to a reader of a channel.
    pub(super) joined: Vec<(u64, u64)>,
    pub(super) mark: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Conversation {
    pub(super) kind: ConversationKind,
    pub(super) label: String,
    pub(super) pair: (u64, u64),
    pub(super) members: BTreeMap<u64, Member>,
    pub(super) entries: Vec<Entry>,
    banned: BTreeSet<u64>,
    join_key: Option<u8>,
    /// What a group says of itself, and lets its members do.
    pub(super) info: packet::Info,
    /// How long entries are kept, and since when that is so.
    pub(super) retention: (packet::Retention, u64),
    /// The first that is kept.
    pub(super) first: u64,
}

impl Conversation {
    /// A new one, and its users.
    pub(super) fn new(kind: ConversationKind, label: &str, pair: (u64, u64)) -> Self {
        Self {
            kind,
            label: label.to_owned(),
            pair,
            members: BTreeMap::new(),
            entries: Vec::new(),
            banned: BTreeSet::new(),
            join_key: None,
            info: packet::Info::default(),
            retention: Default::default(),
            first: 0,
        }
    }

    pub(super) fn head(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) fn has_join_key(&self) -> bool {
        self.join_key.is_some()
    }

    /// The key of a group that keeps a user out.
    pub(super) fn key_in_vain(&self, user: u64) -> Option<u8> {
        self.join_key.filter(|_| self.banned.contains(&user))
    }

    pub(super) fn role(&self, user: u64) -> Role {
        self.members.get(&user).and_then(|member| member.role).unwrap_or(Role::None)
    }

    pub(super) fn is_member(&self, user: u64) -> bool {
        self.role(user) != Role::None
    }

    pub(super) fn active(&self) -> Vec<(u64, Role)> {
        let active = self.members.iter().filter_map(|(user, member)| Some((*user, member.role?)));
        active.collect()
    }

    /// Whether the user may read this seq; of a channel, what the token says.
    pub(super) fn reads(&self, user: u64, grants: &Grants, seq: u64) -> bool {
        if seq == 0 || seq > self.head() {
            return false;
        }
        match self.kind {
            ConversationKind::Channel => grants.reads(&self.label),
            _ => {
                self.members.get(&user).is_some_and(|m| m.stretches.iter().any(|&(from, to)| from <= seq && seq <= to))
            }
        }
    }

    /// Whether a reader of the channel is sent this seq.
    pub(super) fn is_delivered(&self, user: u64, seq: u64) -> bool {
        self.members.get(&user).is_some_and(|m| m.joined.iter().any(|&(above, to)| above < seq && seq <= to))
    }

    /// The newest seq that the user may know of.
    pub(super) fn newest(&self, user: u64) -> u64 {
        let last = self.members.get(&user).and_then(|member| member.stretches.last());
        last.map_or(0, |&(_, to)| to.min(self.head()))
    }

    /// Messages above the mark, in the stretch that the user is in.
    fn unread(&self, user: u64) -> Vec<u64> {
        let Some(member) = self.members.get(&user).filter(|member| member.role.is_some()) else { return Vec::new() };
        let Some(&(from, _)) = member.stretches.last() else { return Vec::new() };
        let from = from.max(self.first);
        let above = (1..).zip(&self.entries).filter(|(seq, _)| *seq >= from && *seq > member.mark);
        let unread = above.filter(|(_, entry)| entry.kind == EntryKind::Message && !entry.is_gone);
        unread.map(|(seq, _)| seq).collect()
    }

    pub(super) fn policy(&self) -> packet::Policy {
        self.info.policy.unwrap_or_default()
    }

    /// Whether a role is at least the one that the policy names, or this one where it names none.
    fn lets(role: Role, policy: Role, otherwise: Role) -> bool {
        role as i32 >= if policy == Role::None { otherwise } else { policy } as i32
    }
}

/// Everything there is.
#[derive(Clone, Debug, Default)]
pub(super) struct Oracle {
    pub(super) conversations: BTreeMap<u64, Conversation>,
    /// Inbox and name of each user.
    pub(super) users: BTreeMap<u64, (u64, String)>,
    /// Who blocks whom.
    pub(super) blocked: BTreeSet<(u64, u64)>,
    /// What who blocks had read, at the block, of the direct conversation with whom it blocks.
    pub(super) last_marks: BTreeMap<(u64, u64), u64>,
    /// Who hides its marks.
    pub(super) hides_marks: BTreeSet<u64>,
    /// In a direct conversation, the mark of a user when one of the two began to hide its own.
    pub(super) shown_marks: BTreeMap<(u64, u64), u64>,
    /// What users keep of others.
    pub(super) contacts: BTreeMap<(u64, u64), String>,
    /// To whom users show their presence.
    pub(super) audiences: BTreeMap<u64, packet::Audience>,
    /// How users show themselves.
    pub(super) profiles: BTreeMap<u64, String>,
    /// User and device of those that were let in.
    pub(super) devices: Vec<(u64, u64)>,
    /// Who administers.
    pub(super) admin: u64,
    pub(super) erased: BTreeSet<u64>,
    /// User, conversation and seq of what is hidden.
    pub(super) hidden: BTreeSet<(u64, u64, u64)>,
    /// What users set for conversations.
    pub(super) settings: BTreeMap<(u64, u64), packet::Settings>,
    /// User, conversation and seq of messages that mention it now, and that its inbox was told of.
    pub(super) mentions: BTreeSet<(u64, u64, u64)>,
    /// What the clock says.
    pub(super) now: u64,
}

impl Oracle {
    /// A user was let in for the first time.
    pub(super) fn user(&mut self, user: u64, inbox: u64, name: &str) {
        if self.users.insert(user, (inbox, name.to_owned())).is_some() {
            return;
        }
        let own = Member { role: Some(Role::Reader), stretches: vec![(1, u64::MAX)], ..Member::default() };
        let members = BTreeMap::from([(user, own)]);
        let of = Conversation { members, ..Conversation::new(ConversationKind::Inbox, "", (user, user)) };
        self.conversations.insert(inbox, of);
        if name == super::ADMIN {
            self.admin = user;
        }
    }

    pub(super) fn direct(&self, a: u64, b: u64) -> Option<u64> {
        let pair = (a.min(b), a.max(b));
        let is_it = |c: &Conversation| c.kind == ConversationKind::Direct && c.pair == pair;
        self.conversations.iter().find(|(_, c)| is_it(c)).map(|(id, _)| *id)
    }

    pub(super) fn channel(&self, name: &str) -> Option<u64> {
        let is_it = |c: &Conversation| c.kind == ConversationKind::Channel && c.label == name;
        self.conversations.iter().find(|(_, c)| is_it(c)).map(|(id, _)| *id)
    }

    /// A conversation was made, under the id that its maker was told.
    pub(super) fn make(&mut self, id: u64, kind: ConversationKind, label: &str, pair: (u64, u64)) {
        let conversation = Conversation::new(kind, label, (pair.0.min(pair.1), pair.0.max(pair.1)));
        assert!(self.conversations.insert(id, conversation).is_none(), "conversation {id} is made twice");
        if kind == ConversationKind::Direct {
            for user in BTreeSet::from([pair.0, pair.1]) {
                let member = Member { role: Some(Role::Member), stretches: vec![(1, u64::MAX)], ..Member::default() };
                self.of(id).members.insert(user, member);
                self.tell(user, id, EntryKind::Joined);
            }
        }
    }

    /// A group was made: its maker owns it, and these are its members.
    pub(super) fn make_group(&mut self, id: u64, label: &str, maker: u64, users: &[u64]) -> u64 {
        self.make(id, ConversationKind::Group, label, (0, 0));
        self.set_role(id, maker, maker, Role::Owner);
        for user in users {
            if !self.conversations[&id].is_member(*user) && !self.blocks(*user, maker) {
                self.set_role(id, maker, *user, Role::Member);
            }
        }
        for (user, _) in self.conversations[&id].active() {
            self.tell(user, id, EntryKind::Joined);
        }
        self.conversations[&id].head()
    }

    pub(super) fn of(&mut self, id: u64) -> &mut Conversation {
        self.conversations.get_mut(&id).expect("a conversation that exists")
    }

    pub(super) fn tell(&mut self, user: u64, about: u64, kind: EntryKind) {
        let inbox = self.users[&user].0;
        let entry = Entry { kind, about, at: self.now, ..Entry::default() };
        self.of(inbox).entries.push(entry);
    }

    /// A membership entry, and what it makes of the user.
    pub(super) fn set_role(&mut self, id: u64, by: u64, user: u64, role: Role) {
        let at = self.now;
        let conversation = self.of(id);
        let was = conversation.role(user);
        let banned = conversation.banned.contains(&user);
        let (kind, membership) = (EntryKind::Membership, (user, role));
        conversation.entries.push(Entry { sender: by, kind, membership, banned, at, ..Entry::default() });
        let seq = conversation.head();
        let member = conversation.members.entry(user).or_default();
        member.role = (role != Role::None).then_some(role);
        if was == Role::None && role != Role::None {
            member.stretches.push((seq, u64::MAX));
        }
        if was != Role::None && role == Role::None {
            member.stretches.last_mut().expect("it was a member").1 = seq;
        }
    }

    /// Whether the user may know that there is such a conversation.
    pub(super) fn sees(&self, user: u64, grants: &Grants, id: u64) -> bool {
        self.conversations.get(&id).is_some_and(|conversation| {
            conversation.is_member(user)
                || (conversation.kind == ConversationKind::Channel && grants.sees(&conversation.label))
        })
    }

    /// Whether a channel of this name may be opened.
    pub(super) fn may_open(grants: &Grants, name: &str) -> bool {
        grants.sees(name)
    }

    /// Does what a user wants, if that may be; gives the answer.
    pub(super) fn act(&mut self, user: u64, grants: &Grants, id: u64, act: &Act) -> Answer {
        use ConversationKind::{Channel, Direct, Group, Inbox};
        let group = self.conversations.get(&id).filter(|conversation| conversation.kind == Group);
        if let (Act::Join(key), Some(group)) = (act, group) {
            let is_right = key.is_some() && *key == group.join_key && !group.banned.contains(&user);
            if !group.is_member(user) {
                if !is_right {
                    return Answer::Unknown;
                }
                self.set_role(id, user, user, Role::Member);
                self.tell(user, id, EntryKind::Joined);
            }
            return Answer::Done(self.conversations[&id].head());
        }
        if !self.sees(user, grants, id) {
            return Answer::Unknown;
        }
        let conversation = &self.conversations[&id];
        let (kind, role, head) = (conversation.kind, conversation.role(user), conversation.head());
        let at = self.now;
        let others = conversation.active().iter().filter(|(other, _)| *other != user).count();
        let publishes = match kind {
            Direct => {
                let (a, b) = conversation.pair;
                !self.blocks(if a == user { b } else { a }, user)
            }
            Group => Conversation::lets(role, conversation.policy().publishes(), Role::Member),
            Channel => grants.publishes(&conversation.label),
            _ => false,
        };
        let informs = kind == Group && Conversation::lets(role, conversation.policy().informs(), Role::Admin);
        let is_admin = kind == Group && matches!(role, Role::Admin | Role::Owner);
        let message = |seq: u64| {
            let entry = conversation.entries.get((seq as usize).checked_sub(1)?)?;
            let is_kept = seq >= conversation.first && !self.is_erased_at(id, seq);
            (entry.kind == EntryKind::Message && is_kept && conversation.reads(user, grants, seq)).then_some(entry)
        };
        match act {
            Act::Edit(seq, text) => {
                let target = message(*seq).filter(|entry| !entry.is_gone && entry.sender == user);
                if !publishes || target.is_none() {
                    return Answer::Refused;
                }
                let (kind, text, target) = (EntryKind::Edit, text.clone(), *seq);
                // It mentions nobody, in place of whom the message did.
                self.mentions.retain(|(_, of, seq)| (*of, *seq) != (id, target));
                self.of(id).entries.push(Entry { sender: user, kind, text, target, at, ..Entry::default() });
                Answer::Done(head + 1)
            }
            Act::Recall(seq) => {
                let entry = (*seq as usize).checked_sub(1).and_then(|at| conversation.entries.get(at));
                if entry.is_some_and(|entry| entry.is_gone) && conversation.reads(user, grants, *seq) {
                    return Answer::Done(head);
                }
                let Some(target) = message(*seq) else { return Answer::Refused };
                // What one said oneself is taken back also from who blocks one.
                let is_in = kind == Direct || (kind == Channel && role != Role::None);
                let moderates =
                    kind == Channel && (user == self.admin || grants.moderate.contains(&conversation.label.as_str()));
                let may = is_admin || moderates || (target.sender == user && (publishes || is_in));
                if !may {
                    return Answer::Refused;
                }
                let (entries, target) = (&mut self.of(id).entries, *seq);
                for (_, entry) in (1..).zip(entries.iter_mut()).filter(|(at, e)| *at == target || e.target == target) {
                    entry.is_gone |= entry.kind == EntryKind::Message || entry.kind == EntryKind::Edit;
                }
                entries.push(Entry { sender: user, kind: EntryKind::Recall, target, at, ..Entry::default() });
                Answer::Done(head + 1)
            }
            Act::React(seq, reaction) => {
                // Whoever is in a group reacts, and whoever reads a channel that is joined.
                let is_in = matches!(kind, Direct | Group | Channel) && role != Role::None;
                let may = if kind == Direct && !reaction.is_empty() { publishes } else { is_in || publishes };
                if !may || message(*seq).is_none_or(|entry| entry.is_gone) {
                    return Answer::Refused;
                }
                let given =
                    conversation.entries.iter().rev().find(|entry| {
                        entry.kind == EntryKind::Reaction && entry.sender == user && entry.target == *seq
                    });
                if given.map_or("", |entry| entry.text.as_str()) == *reaction {
                    return Answer::Done(head);
                }
                let (kind, text, target) = (EntryKind::Reaction, (*reaction).to_owned(), *seq);
                self.of(id).entries.push(Entry { sender: user, kind, text, target, at, ..Entry::default() });
                Answer::Done(head + 1)
            }
            Act::Ban(whose, lifts) => {
                let was = conversation.role(*whose);
                let is_owners = matches!(was, Role::Admin | Role::Owner) && role != Role::Owner;
                if !is_admin || is_owners || *whose == user {
                    return Answer::Refused;
                }
                if *lifts {
                    self.of(id).banned.remove(whose);
                    return Answer::Done(head);
                }
                self.of(id).banned.insert(*whose);
                if was != Role::None {
                    self.set_role(id, user, *whose, Role::None);
                    self.tell(*whose, id, EntryKind::Left);
                }
                Answer::Done(self.conversations[&id].head())
            }
            Act::SetJoinKey(key) => {
                if !is_admin {
                    return Answer::Refused;
                }
                self.of(id).join_key = *key;
                Answer::Done(head)
            }
            Act::Say(text, mentions) => {
                if !publishes {
                    return Answer::Refused;
                }
                let conversation = self.of(id);
                let (kind, text, mut told) = (EntryKind::Message, text.clone(), mentions.clone());
                told.sort_unstable();
                told.dedup();
                let mentions = mentions.clone();
                conversation.entries.push(Entry { sender: user, kind, text, at, mentions, ..Entry::default() });
                let seq = conversation.head();
                if let Some(member) = conversation.members.get_mut(&user) {
                    member.mark = seq;
                }
                told.retain(|of| *of != user && conversation.is_member(*of));
                for of in told {
                    self.mentions.insert((of, id, seq));
                    self.tell(of, id, EntryKind::Mentioned);
                    let inbox = self.users[&of].0;
                    self.of(inbox).entries.last_mut().expect("it was told").target = seq;
                }
                Answer::Done(seq)
            }
            Act::Join(_) => {
                if kind != Channel || !grants.reads(&conversation.label) {
                    return Answer::Refused;
                }
                if role == Role::None {
                    let member = self.of(id).members.entry(user).or_default();
                    member.role = Some(Role::Reader);
                    member.stretches = vec![(1, u64::MAX)];
                    member.joined.push((head, u64::MAX));
                    member.mark = head;
                    self.tell(user, id, EntryKind::Joined);
                }
                Answer::Done(head)
            }
            Act::Leave => match kind {
                Direct | Inbox => Answer::Refused,
                Channel => {
                    if role != Role::None {
                        let member = self.of(id).members.get_mut(&user).expect("a reader");
                        member.role = None;
                        member.stretches.last_mut().expect("as above").1 = head;
                        member.joined.last_mut().expect("as above").1 = head;
                        self.tell(user, id, EntryKind::Left);
                    }
                    Answer::Done(head)
                }
                _ if role == Role::Owner && others > 0 => Answer::Refused,
                _ => {
                    self.set_role(id, user, user, Role::None);
                    self.tell(user, id, EntryKind::Left);
                    Answer::Done(self.conversations[&id].head())
                }
            },
            Act::SetRole(whose, to) => {
                let was = conversation.role(*whose);
                let concerns_admins = [was, *to].iter().any(|role| matches!(role, Role::Admin | Role::Owner));
                let adds = was == Role::None && *to != Role::None;
                let decides = match adds {
                    true => Conversation::lets(role, conversation.policy().adds(), Role::Admin),
                    false => is_admin,
                };
                let may = decides && (role == Role::Owner || !concerns_admins);
                if kind != Group || !may || *whose == user {
                    return Answer::Refused;
                }
                if was == Role::None && *to != Role::None && conversation.banned.contains(whose) {
                    return Answer::Refused;
                }
                if was == *to {
                    return Answer::Done(head);
                }
                if was == Role::None && self.blocks(*whose, user) {
                    return Answer::Refused;
                }
                if *to == Role::Owner {
                    self.set_role(id, user, user, Role::Admin);
                }
                self.set_role(id, user, *whose, *to);
                if was == Role::None {
                    self.tell(*whose, id, EntryKind::Joined);
                }
                if *to == Role::None {
                    self.tell(*whose, id, EntryKind::Left);
                }
                Answer::Done(self.conversations[&id].head())
            }
            Act::SetLabel(label) => {
                if !informs {
                    return Answer::Refused;
                }
                let conversation = self.of(id);
                let (kind, text) = (EntryKind::Label, label.clone());
                conversation.entries.push(Entry { sender: user, kind, text, at, ..Entry::default() });
                conversation.label.clone_from(label);
                Answer::Done(conversation.head())
            }
            Act::SetRetention(retention) => {
                let may = match kind {
                    Direct => publishes,
                    Group => role == Role::Owner,
                    Channel => user == self.admin && retention.mode() != RetentionMode::UntilDelivered,
                    _ => false,
                };
                if !may {
                    return Answer::Refused;
                }
                if conversation.retention.0 == *retention {
                    return Answer::Done(head);
                }
                let (kind, retention) = (EntryKind::Retention, *retention);
                let conversation = self.of(id);
                conversation.retention = (retention, at);
                conversation.entries.push(Entry { sender: user, kind, retention, at, ..Entry::default() });
                Answer::Done(head + 1)
            }
            Act::SetMark(seq) => {
                if role == Role::None {
                    return Answer::Refused;
                }
                let member = self.of(id).members.get_mut(&user).expect("a member");
                member.mark = member.mark.max((*seq).min(head));
                if let Some(settings) = self.settings.get_mut(&(user, id)) {
                    settings.marked_unread = false;
                }
                Answer::Done(head)
            }
            Act::Hide(seq, undo) => {
                // What one hides oneself is there to be given back.
                if role == Role::None || message(*seq).is_none_or(|entry| entry.is_gone) {
                    return Answer::Refused;
                }
                let (hidden, target) = ((user, id, *seq), *seq);
                let changes = if *undo { self.hidden.remove(&hidden) } else { self.hidden.insert(hidden) };
                let text = if *undo { "undone" } else { "" }.to_owned();
                let entry = Entry { kind: EntryKind::Hidden, target, text, ..Entry::default() };
                Answer::Done(self.tell_own(user, id, changes.then_some(entry)))
            }
            Act::SetSettings(settings) => {
                if role == Role::None {
                    return Answer::Refused;
                }
                let before = self.settings.insert((user, id), *settings).unwrap_or_default();
                let entry = Entry { kind: EntryKind::Settings, settings: *settings, ..Entry::default() };
                Answer::Done(self.tell_own(user, id, (before != *settings).then_some(entry)))
            }
            Act::SetInfo(info) => {
                let says = |info: &packet::Info| (info.description.clone(), info.policy.unwrap_or_default());
                let is_policy_new = conversation.policy() != info.policy.unwrap_or_default();
                if !informs || (is_policy_new && role != Role::Owner) {
                    return Answer::Refused;
                }
                if says(&conversation.info) == says(info) {
                    return Answer::Done(head);
                }
                let (kind, info) = (EntryKind::Info, info.clone());
                let conversation = self.of(id);
                conversation.info = info.clone();
                conversation.entries.push(Entry { sender: user, kind, info, at, ..Entry::default() });
                Answer::Done(head + 1)
            }
        }
    }

    /// Tells a user's inbox what it did for itself in a conversation, if that changes anything; the seq of the answer.
    fn tell_own(&mut self, user: u64, about: u64, entry: Option<Entry>) -> u64 {
        let (inbox, at) = (self.users[&user].0, self.now);
        let inbox = self.of(inbox);
        inbox.entries.extend(entry.map(|entry| Entry { sender: user, about, at, ..entry }));
        inbox.head()
    }

    /// How many messages a user has not read, and how many of these mention it.
    pub(super) fn unread(&self, user: u64, id: u64) -> (u64, u64) {
        let mut unread = self.conversations[&id].unread(user);
        unread.retain(|seq| !self.hidden.contains(&(user, id, *seq)));
        let mentions = unread.iter().filter(|seq| self.mentions.contains(&(user, id, **seq))).count();
        (unread.len() as u64, mentions as u64)
    }

    /// What nobody is shown any more.
    pub(super) fn gone(&self) -> BTreeSet<(u64, u64)> {
        let all =
            self.conversations.iter().flat_map(|(id, c)| (1..).zip(&c.entries).map(move |(seq, e)| ((*id, seq), e)));
        let is_gone = |&((id, seq), entry): &((u64, u64), &Entry)| {
            entry.is_gone || seq < self.conversations[&id].first || self.is_erased_at(id, seq)
        };
        all.filter(is_gone).map(|(at, _)| at).collect()
    }

    /// Whether the newest entry of a channel recalls this message of another.
    pub(super) fn is_moderated(&self, id: u64, seq: u64) -> bool {
        let conversation = &self.conversations[&id];
        let message = (seq as usize).checked_sub(1).and_then(|at| conversation.entries.get(at));
        let newest = conversation.entries.last().filter(|entry| entry.kind == EntryKind::Recall && entry.target == seq);
        let is_by_another = message.zip(newest).is_some_and(|(message, newest)| message.sender != newest.sender);
        conversation.kind == ConversationKind::Channel && is_by_another
    }

    /// Whether the two of a direct conversation are told of each other's marks.
    pub(super) fn hides_in(&self, id: u64) -> bool {
        let conversation = &self.conversations[&id];
        let (a, b) = conversation.pair;
        conversation.kind == ConversationKind::Direct && [a, b].iter().any(|user| self.hides_marks.contains(user))
    }

    /// Whether two users are in one conversation.
    pub(super) fn share(&self, a: u64, b: u64) -> bool {
        a == b || self.conversations.values().any(|c| c.is_member(a) && c.is_member(b))
    }
}
