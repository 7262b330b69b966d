//! What anyone is sent, held against the oracle.

use std::collections::{BTreeMap, BTreeSet};

use longwire_protocol::packet::{
    self, ConversationKind, EntryKind, HeadReason, Item, PublishAck, Role, item, request, response,
};
use longwire_protocol::reason::{Reason, Refusal};

use super::oracle::{Act, Answer, Entry};
use super::peer::Peer;
use super::{History, Told};

impl History {
    // ------------------------------------------------------------------------------------------ answers

    pub(super) fn check_answer(&mut self, act: &Act, expected: Answer, answer: Result<PublishAck, Refusal>) {
        match (expected, answer) {
            (Answer::Done(seq), Ok(ack)) => assert_eq!(ack.seq, seq, "the seq of {act:?}"),
            (Answer::Unknown, Err(refusal)) => Self::check_unknown(&refusal),
            (Answer::Refused, Err(refusal)) => {
                let is_refused = matches!(refusal.reason, Reason::Forbidden | Reason::InvalidArgument);
                assert!(is_refused, "{act:?} is refused with {refusal:?}");
            }
            (expected, answer) => panic!("{act:?}: {answer:?}, and it should be {expected:?}"),
        }
    }

    /// What is none of the user's looks as if it were not there.
    pub(super) fn check_unknown(refusal: &Refusal) {
        let told = (refusal.reason, refusal.detail.as_ref(), refusal.retry_after_ms);
        assert_eq!(told, (Reason::UnknownConversation, "", 0), "it says more than that there is none");
    }

    // ------------------------------------------------------------------------------------------ items

    pub(super) fn check_item(&mut self, device: usize, peer: &Peer, item: &Item) {
        self.check_blocks_are_told_to_nobody(self.devices[device].user_id, item);
        self.note_had(device, item);
        match &item.kind {
            Some(item::Kind::Entry(entry)) => {
                self.check_delivered(device, peer, entry.conversation, entry.seq);
                self.check_level(device, entry.conversation, entry.seq);
                let is_gone = peer.gone.contains(&(entry.conversation, entry.seq));
                assert!(!is_gone, "{entry:?} was recalled before this connection");
                self.check_entry(device, entry);
                self.coverage.count("entries delivered");
            }
            Some(item::Kind::Own(own)) => {
                self.check_delivered(device, peer, own.conversation, own.seq);
                self.check_level(device, own.conversation, own.seq);
                let is_gone = peer.gone.contains(&(own.conversation, own.seq));
                assert!(!is_gone, "{own:?} was recalled before this connection");
                if let Some(entry) = &own.entry {
                    self.check_entry(device, entry);
                }
                self.coverage.count("own entries delivered");
            }
            Some(item::Kind::Head(head)) => {
                for seq in head.from_seq..=head.to_seq {
                    self.check_delivered(device, peer, head.conversation, seq);
                }
                self.check_reason(device, head);
            }
            Some(item::Kind::Mark(mark)) => {
                let user = self.devices[device].user_id;
                let conversation = self.oracle.conversations.get(&mark.conversation);
                let conversation = conversation.expect("a mark is in a conversation");
                let of = if mark.user == 0 { user } else { mark.user };
                let set = conversation.members.get(&of).map_or(0, |member| member.mark);
                assert!(mark.seq <= set, "a mark that nobody set: {mark:?}");
                if mark.user == 0 {
                    self.coverage.count("marks delivered");
                } else {
                    let own = conversation.members.get(&user).and_then(|member| member.stretches.last());
                    let last = own.expect("who is told of marks is a member, or was one").1;
                    assert!(last == 0 || mark.seq <= last, "a mark set after the user was removed: {mark:?}");
                    let kinds = [ConversationKind::Direct, ConversationKind::Group];
                    assert!(kinds.contains(&conversation.kind), "marks of {:?} reach nobody", conversation.kind);
                    if conversation.kind == ConversationKind::Direct && self.oracle.blocked.contains(&(of, user)) {
                        let last = self.oracle.last_marks[&(of, user)];
                        assert!(mark.seq <= last, "{user} is told of {mark:?}, and was blocked at {last}");
                    }
                    if self.oracle.hides_in(mark.conversation) {
                        let shown = self.oracle.shown_marks.get(&(mark.conversation, of)).copied().unwrap_or(0);
                        assert!(mark.seq <= shown, "{user} is told of {mark:?}, and marks are hidden from {shown} on");
                    }
                    self.coverage.count("marks of others delivered");
                }
            }
            Some(item::Kind::Progress(_) | item::Kind::CaughtUp(_)) => {}
            None => panic!("an item of no known kind"),
        }
    }

    /// Notes up to where a user was sent a conversation.
    fn note_had(&mut self, device: usize, item: &Item) {
        let (id, seq) = match &item.kind {
            Some(item::Kind::Entry(entry)) => (entry.conversation, entry.seq),
            Some(item::Kind::Own(own)) => (own.conversation, own.seq),
            Some(item::Kind::Head(head)) => (head.conversation, head.to_seq),
            _ => return,
        };
        let had = self.had.entry((self.devices[device].user_id, id)).or_default();
        *had = seq.max(*had);
    }

    /// Whether this may be sent to the device in its stream.
    fn check_delivered(&self, device: usize, peer: &Peer, id: u64, seq: u64) {
        let user = self.devices[device].user_id;
        let conversation = self.oracle.conversations.get(&id).unwrap_or_else(|| panic!("there is no {id}"));
        assert!(seq <= conversation.head(), "{id}/{seq} is not there yet");
        if conversation.kind != ConversationKind::Channel {
            let may = conversation.reads(user, &peer.grants, seq);
            return assert!(may, "{id}/{seq} is sent to user {user}, who may not see it: {conversation:?}");
        }
        // What was there before a token took the right away may have been on its way already.
        let may = peer.grants.reads(&conversation.label)
            || peer.before.iter().any(|(grants, heads)| {
                grants.reads(&conversation.label) && heads.iter().any(|(of, head)| *of == id && seq <= *head)
            });
        assert!(may, "{id}/{seq} of {} is sent to user {user} against the token", conversation.label);
        let is_watched = peer.watched.iter().any(|&(of, above, to)| of == id && above < seq && seq <= to);
        let is_owed = conversation.is_delivered(user, seq);
        assert!(is_watched || is_owed, "{id}/{seq} is sent to user {user}, who neither joined nor watches");
    }

    fn check_entry(&self, device: usize, entry: &packet::Entry) {
        let conversation = &self.oracle.conversations[&entry.conversation];
        let stored = &conversation.entries[entry.seq as usize - 1];
        let Entry { sender, kind, text, membership, about, target, banned, .. } = stored;
        assert_eq!((entry.sender, entry.kind()), (*sender, *kind), "an entry is what was published: {entry:?}");
        match kind {
            EntryKind::Message => {
                assert_eq!(&entry.content, text.as_bytes(), "and says what it said");
                let mentions = entry.beside.as_ref().map_or(&[][..], |beside| &beside.mentions);
                let expected: BTreeSet<u64> = stored.mentions.iter().copied().collect();
                assert_eq!(mentions.len(), expected.len(), "each once");
                assert_eq!(mentions.iter().copied().collect::<BTreeSet<_>>(), expected, "and whom it mentions");
            }
            EntryKind::Label => assert_eq!(&entry.label, text, "and says what it said"),
            EntryKind::Retention => assert_eq!(entry.retention, Some(stored.retention), "and says how long"),
            EntryKind::Membership => {
                let told = entry.membership.as_ref().expect("it says whose");
                assert_eq!((told.user, told.role()), *membership, "and says whose");
                assert_eq!(told.banned, *banned, "and whether it is kept out");
                assert_eq!(told.name, self.oracle.users[&told.user].1, "by the name");
            }
            EntryKind::Joined => {
                let told = entry.joined.as_ref().expect("it says what was joined");
                assert_eq!(told.conversation, *about, "and what was joined");
                let of = &self.oracle.conversations[about];
                let user = self.devices[device].user_id;
                let member = of.members.get(&user).expect("who joined was a member");
                assert_eq!(told.kind(), of.kind);
                assert!(member.stretches.iter().any(|(from, _)| *from == told.visible_from), "visible since a join");
                assert!(told.seq <= of.head(), "it covers what there is");
                if of.kind == ConversationKind::Direct {
                    let other = if of.pair.0 == user { of.pair.1 } else { of.pair.0 };
                    assert_eq!(told.label, self.oracle.users[&other].1, "by the other's name");
                }
            }
            EntryKind::Profile | EntryKind::Contact | EntryKind::Blocked | EntryKind::Device => {
                self.check_own(entry, stored);
            }
            EntryKind::Left => {
                let told = entry.left.expect("it says what was left");
                assert_eq!(told.conversation, *about, "and what was left");
            }
            EntryKind::Edit => {
                assert_eq!((entry.edit, &entry.content[..]), (*target, text.as_bytes()), "and says of what")
            }
            EntryKind::Recall => assert_eq!(entry.recall.map(|recall| recall.seq), Some(*target), "and says of what"),
            EntryKind::Reaction => {
                let told = entry.reaction.as_ref().expect("it says which");
                assert_eq!((told.seq, &told.reaction), (*target, text), "and says to what");
            }
            EntryKind::Info => {
                let told = entry.info.as_deref().expect("it says what");
                assert_eq!(told, &stored.info, "and says what it said");
            }
            EntryKind::Mentioned => {
                let told = entry.mentioned.expect("it says where");
                assert_eq!((told.conversation, told.seq), (*about, *target), "and where");
            }
            EntryKind::Settings => {
                let told = entry.settings.expect("it says where");
                assert_eq!((told.conversation, told.settings), (*about, Some(stored.settings)), "and what is set");
            }
            EntryKind::Hidden => {
                let told = entry.hidden.expect("it says what");
                assert_eq!((told.conversation, told.seq, told.undo), (*about, *target, text == "undone"), "and what");
            }
        }
    }

    // ------------------------------------------------------------------------------------------ requests

    pub(super) fn request(&mut self, device: usize, id: u64) {
        match self.rng.u8(0..11) {
            0..=3 => {
                let head = self.oracle.conversations.get(&id).map_or(0, super::oracle::Conversation::head);
                let (from, limit) = (self.rng.u64(0..head + 3), self.rng.u32(0..12));
                let backwards = self.rng.bool();
                self.ask_history(device, id, from, limit, backwards);
            }
            4 => self.ask_members(device, id),
            5 => self.ask_conversations(device),
            6 => self.ask_users(device),
            7 => self.ask_profiles(device),
            8 => self.ask_blocked(device),
            9 => self.ask_receipts(device, id),
            _ => {
                let channels = super::CHANNELS.map(|name| self.oracle.channel(name));
                let channel = channels[self.rng.usize(0..2)].filter(|_| self.rng.u8(0..5) > 0);
                self.watch(device, channel.unwrap_or(id));
            }
        }
    }

    pub(super) fn ask_history(&mut self, device: usize, id: u64, from_seq: u64, limit: u32, backwards: bool) {
        let asked = packet::HistoryRequest { conversation: id, from_seq, limit, backwards, compact: false };
        let (user, grants) = self.who(device);
        let told = self.ask(device, &request::Op::History(asked));
        let may = self.oracle.conversations.get(&id).is_some_and(|c| match c.kind {
            ConversationKind::Channel => grants.reads(&c.label),
            _ => c.members.contains_key(&user),
        });
        let page = match (told, may) {
            (Ok(response::Result::History(page)), true) => page,
            (Err(refusal), false) => return Self::check_unknown(&refusal),
            (told, _) => panic!("history of {id} for user {user}: {told:?}, and it should be {may}"),
        };
        self.coverage.count("pages of history");
        let conversation = &self.oracle.conversations[&id];
        let newest = if conversation.kind == ConversationKind::Channel {
            conversation.head()
        } else {
            conversation.newest(user)
        };
        assert_eq!(page.head_seq, newest, "the newest that the user may know of");
        let mut at = match (backwards, from_seq) {
            (true, 0) => newest,
            (true, from) => from.min(newest),
            (false, from) => from.max(1),
        };
        for item in &page.items {
            let (from, to) = match &item.kind {
                Some(item::Kind::Entry(entry)) => {
                    self.check_entry(device, entry);
                    (entry.seq, entry.seq)
                }
                Some(item::Kind::Own(own)) => {
                    self.check_entry(device, own.entry.as_ref().expect("history has the content"));
                    (own.seq, own.seq)
                }
                Some(item::Kind::Head(head)) => {
                    for seq in head.from_seq..=head.to_seq {
                        let is_gone = conversation.entries.get(seq as usize - 1).is_some_and(|entry| entry.is_gone);
                        let reads = conversation.reads(user, &grants, seq);
                        let is_right = match head.reason() {
                            HeadReason::NotYours => !reads,
                            HeadReason::Recalled => is_gone && reads,
                            HeadReason::Expired => seq < conversation.first,
                            HeadReason::Erased => reads && self.oracle.is_erased_at(id, seq),
                            HeadReason::HiddenByUser => reads && self.oracle.hidden.contains(&(user, id, seq)),
                            _ => false,
                        };
                        assert!(is_right, "{head:?} hides what is the user's");
                    }
                    (head.from_seq, head.to_seq)
                }
                other => panic!("history holds {other:?}"),
            };
            if !matches!(item.kind, Some(item::Kind::Head(_))) {
                assert!(!conversation.entries[from as usize - 1].is_gone, "history shows {from}, which was recalled");
                assert!(from >= conversation.first, "history shows {from}, which is kept no more");
                assert!(!self.oracle.is_erased_at(id, from), "history shows {from}, which is erased");
                assert!(!self.oracle.hidden.contains(&(user, id, from)), "history shows {from}, which is hidden");
                assert!(
                    conversation.reads(user, &grants, from),
                    "history of {id} shows {from} to user {user}: {conversation:?}"
                );
            }
            assert_eq!(if backwards { to } else { from }, at, "a page is without holes: {page:?}");
            at = if backwards { from - 1 } else { to + 1 };
        }
        if page.next_seq == 0 {
            let mut rest = if backwards { 1..=at } else { at..=conversation.head() };
            assert!(rest.all(|seq| !conversation.reads(user, &grants, seq)), "history of {id} ends at {at}: {page:?}");
        } else {
            assert_eq!(page.next_seq, at, "the next page goes on where this one ends");
        }
    }

    pub(super) fn ask_members(&mut self, device: usize, id: u64) {
        let (user, _) = self.who(device);
        let told = self
            .ask(device, &request::Op::Members(packet::MembersRequest { conversation: id, after_user: 0, limit: 200 }));
        let may = self.oracle.conversations.get(&id).is_some_and(|c| c.is_member(user));
        match (told, may) {
            (Ok(response::Result::Members(page)), true) => {
                let told: Vec<_> = page.members.iter().map(|m| (m.user, m.role())).collect();
                assert_eq!(told, self.oracle.conversations[&id].active(), "the members are those");
                for member in &page.members {
                    assert_eq!(member.name, self.oracle.users[&member.user].1, "by their names");
                }
                self.coverage.count("lists of members");
            }
            (Err(refusal), false) => Self::check_unknown(&refusal),
            (told, _) => panic!("members of {id} for user {user}: {told:?}, and it should be {may}"),
        }
    }

    /// Who has read what, up to where: but for who blocks, of whom the other learns nothing more.
    pub(super) fn ask_receipts(&mut self, device: usize, id: u64) {
        let (user, _) = self.who(device);
        let asked = packet::ReceiptsRequest { conversation: id, limit: 200, ..Default::default() };
        let told = self.ask(device, &request::Op::Receipts(asked));
        let of = self.oracle.conversations.get(&id).filter(|of| of.is_member(user));
        match (told, of) {
            (Ok(response::Result::Receipts(page)), Some(of)) => {
                let is_direct = of.kind == ConversationKind::Direct;
                assert!(is_direct || of.kind == ConversationKind::Group, "receipts of {:?}", of.kind);
                let is_hidden = self.oracle.hides_in(id);
                let expected = of.active().into_iter().map(|(other, _)| {
                    let is_kept_back = is_direct && self.oracle.blocked.contains(&(other, user));
                    let is_hidden = is_hidden && other != user;
                    let mark = if is_hidden { 0 } else { of.members[&other].mark };
                    let last = is_kept_back.then(|| if is_hidden { 0 } else { self.oracle.last_marks[&(other, user)] });
                    (other, last.unwrap_or(mark), last)
                });
                let expected: Vec<_> = expected.collect();
                let told = page.marks.iter().zip(&expected).map(|(mark, (.., last))| {
                    assert!(mark.delivered >= mark.seq && mark.delivered <= of.head(), "{mark:?}");
                    (mark.user, mark.seq, last.is_some().then_some(mark.delivered))
                });
                let told: Vec<_> = told.collect();
                assert_eq!(told, expected, "who has read what of {id}, for {user}");
                for mark in page.marks.iter().filter(|mark| is_hidden && mark.user != user) {
                    let had = self.had.get(&(mark.user, id)).copied().unwrap_or(0).max(of.first.saturating_sub(1));
                    assert!(mark.delivered <= had, "it was sent {had}, and {mark:?} tells what was read");
                    self.coverage.count("receipts of who hides its marks");
                }
                let is_kept_back = expected.iter().any(|(.., last)| last.is_some());
                self.coverage.count(if is_kept_back { "receipts kept back" } else { "receipts" });
            }
            (Err(refusal), Some(of)) => {
                let kinds = [ConversationKind::Channel, ConversationKind::Inbox];
                assert!(kinds.contains(&of.kind) && refusal.reason == Reason::Forbidden, "{refusal:?}");
            }
            (Err(refusal), None) => Self::check_unknown(&refusal),
            (told, _) => panic!("receipts of {id} for user {user}: {told:?}"),
        }
    }

    pub(super) fn ask_conversations(&mut self, device: usize) {
        let (user, _) = self.who(device);
        let told = self
            .ask(device, &request::Op::Conversations(packet::ConversationsRequest { before: 0, limit: 200, since: 0 }));
        let Ok(response::Result::Conversations(page)) = told else { panic!("conversations of {user}: {told:?}") };
        let (mut rows, gone) = (BTreeMap::new(), self.oracle.gone());
        for row in &page.conversations {
            let told = (row.kind(), row.role(), row.head_seq, row.mark, row.unread, row.members, row.visible_from);
            let level = self.devices[device].levels.get(&row.id).and_then(|levels| levels.last());
            assert_eq!(row.level(), level.map_or(packet::Level::Full, |(_, level)| *level), "the level of {}", row.id);
            assert_eq!(row.first_seq, self.oracle.conversations[&row.id].first, "the first of {} that is kept", row.id);
            let last = row.last.as_ref().map_or(0, |entry| entry.seq);
            assert!(!gone.contains(&(row.id, last)), "{}/{last} is listed, and gone", row.id);
            assert!(!self.oracle.hidden.contains(&(user, row.id, last)), "{}/{last} is listed, and hidden", row.id);
            let settings = self.oracle.settings.get(&(user, row.id)).copied().unwrap_or_default();
            assert_eq!(row.settings.unwrap_or_default(), settings, "what {user} set for {}", row.id);
            let info = &self.oracle.conversations[&row.id].info;
            let told_info = row.info.clone().unwrap_or_default();
            assert_eq!(told_info.description, info.description, "what {} says of itself", row.id);
            assert_eq!(told_info.policy.unwrap_or_default(), info.policy.unwrap_or_default(), "and lets do");
            rows.insert(row.id, (told, row.mentions, row.label.clone()));
        }
        let own = self.oracle.conversations.iter();
        let own = own.filter(|(_, c)| c.kind != ConversationKind::Inbox && c.is_member(user));
        let expected: BTreeMap<_, _> = own
            .map(|(id, c)| {
                let member = &c.members[&user];
                let label = match c.kind {
                    ConversationKind::Direct => {
                        let other = if c.pair.0 == user { c.pair.1 } else { c.pair.0 };
                        self.oracle.users[&other].1.clone()
                    }
                    _ => c.label.clone(),
                };
                let from = member.stretches.last().map_or(1, |(from, _)| *from);
                let members = c.active().len() as u64;
                let (unread, mentions) = self.oracle.unread(user, *id);
                let told = (c.kind, c.role(user), c.head(), member.mark, unread, members, from);
                (*id, (told, mentions, label))
            })
            .collect();
        assert_eq!(rows, expected, "the conversations of user {user}");
        let sums = rows.values().map(|(told, mentions, _)| (told.4, *mentions));
        let sums = sums.fold((0, 0), |sum, (unread, mentions)| (sum.0 + unread, sum.1 + mentions));
        assert_eq!((page.unread_total, page.mentions_total), sums, "the sums of user {user}");
        if sums.1 > 0 {
            self.coverage.count("mentions unread");
        }
        self.coverage.count("lists of conversations");
    }

    pub(super) fn ask_users(&mut self, device: usize) {
        let (user, _) = self.who(device);
        let mut users: Vec<u64> = self.oracle.users.keys().copied().collect();
        users.push(super::NOWHERE);
        let told: Told = self.ask(device, &request::Op::Users(packet::UsersRequest { users: users.clone() }));
        let Ok(response::Result::Users(page)) = told else { panic!("users for {user}: {told:?}") };
        let told: Vec<_> = page.users.iter().map(|row| (row.user, row.name.as_str(), row.role())).collect();
        let shared = self.oracle.users.iter().filter(|(other, _)| self.oracle.share(user, **other));
        let expected: Vec<_> = shared.map(|(other, (_, name))| (*other, name.as_str(), Role::None)).collect();
        assert_eq!(told, expected, "whom user {user} may know");
        self.coverage.count("lists of users");
    }

    fn watch(&mut self, device: usize, id: u64) {
        let (user, grants) = self.who(device);
        let stop = self.rng.u8(0..4) == 0;
        let told = self.ask(device, &request::Op::Watch(packet::WatchRequest { conversation: id, stop }));
        let conversation = self.oracle.conversations.get(&id);
        let may = conversation.is_some_and(|c| c.kind == ConversationKind::Channel && grants.reads(&c.label));
        match (told, may) {
            (Ok(response::Result::Watch(answer)), true) => {
                let head = conversation.expect("it may be watched").head();
                assert_eq!(answer.head_seq, head, "watched from its head on");
                let peer = self.devices[device].peer.as_mut().expect("it is online");
                let open = peer.watched.iter_mut().find(|(of, _, to)| *of == id && *to == u64::MAX);
                match (open, stop) {
                    // What is under way still comes.
                    (Some((_, _, to)), true) => *to = head,
                    (None, false) => peer.watched.push((id, head, u64::MAX)),
                    _ => {}
                }
                self.coverage.count("channels watched");
            }
            (Err(refusal), false) => Self::check_unknown(&refusal),
            (told, _) => panic!("user {user} watches {id}: {told:?}, and it should be {may}"),
        }
    }

    fn who(&self, device: usize) -> (u64, super::oracle::Grants) {
        let device = &self.devices[device];
        (device.user_id, device.peer.as_ref().expect("it is online").grants)
    }
}
