//! What people say of themselves, and whom they block: chapter 15 of SPEC.md, held against the broker like the rest.

use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, EntryKind, Role, item, request, response};
use longwire_protocol::reason::Reason;

use super::History;
use super::oracle::{Entry, Oracle};

impl Oracle {
    /// Whether a user takes nothing from another.
    pub(super) fn blocks(&self, user: u64, other: u64) -> bool {
        self.blocked.contains(&(user, other)) || (self.is_erased(user) && user != other)
    }

    /// A device was let in: the user's others are told of one that is new.
    pub(super) fn device(&mut self, user: u64, device: u64) {
        if self.devices.iter().any(|(_, known)| *known == device) {
            return;
        }
        if self.devices.iter().any(|(of, _)| *of == user) {
            self.push_own(user, 0, EntryKind::Device, "", device);
        }
        self.devices.push((user, device));
    }

    /// An entry in the inbox of `user`; gives its seq.
    pub(super) fn push_own(&mut self, user: u64, sender: u64, kind: EntryKind, text: &str, about: u64) -> u64 {
        let inbox = self.users[&user].0;
        let conversation = self.conversations.get_mut(&inbox).expect("everyone has an inbox");
        let membership = (0, Role::None);
        let text = text.to_owned();
        conversation.entries.push(Entry { sender, kind, text, membership, about, ..Entry::default() });
        conversation.head()
    }

    /// Blocks, or takes it back; gives the seq of the answer.
    fn block(&mut self, user: u64, other: u64, undo: bool) -> u64 {
        let changes = if undo { self.blocked.remove(&(user, other)) } else { self.blocked.insert((user, other)) };
        if changes && !undo {
            let member = self.direct(user, other).and_then(|id| self.conversations[&id].members.get(&user));
            self.last_marks.insert((user, other), member.map_or(0, |member| member.mark));
        }
        if changes {
            return self.push_own(user, user, EntryKind::Blocked, if undo { "undone" } else { "" }, other);
        }
        self.conversations[&self.users[&user].0].head()
    }

    /// Whose profile a user sees: of whom it shares a conversation with, and who does not block it.
    fn sees_profile(&self, user: u64, other: u64) -> bool {
        self.share(user, other) && !self.blocks(other, user)
    }
}

impl History {
    pub(super) fn own(&mut self, device: usize) {
        if self.rng.u8(0..4) == 0 {
            return self.show(device);
        }
        let user = self.devices[device].user_id;
        let (other, name) = self.anyone();
        let undo = self.rng.u8(0..3) == 0;
        let block = packet::Block { user: name.into(), undo };
        let publish = self.next(device, 0, Some(Action::Block(block)), "");
        if other == user {
            let refusal = self.publish(device, &publish).expect_err("nobody blocks itself");
            return assert_eq!(refusal.reason, Reason::InvalidArgument);
        }
        let seq = self.oracle.block(user, other, undo);
        let answer = self.publish(device, &publish);
        assert_eq!(answer.expect("whoever wants blocks").seq, seq, "the seq of a block");
        self.coverage.count(if undo { "blocks taken back" } else { "blocks" });
    }

    /// A user shows itself anew.
    fn show(&mut self, device: usize) {
        let user = self.devices[device].user_id;
        self.said += 1;
        let display_name = format!("shown {}", self.said);
        let profile = packet::Profile { display_name: display_name.clone(), ..packet::Profile::default() };
        let set = packet::SetProfile { profile: Some(profile) };
        let publish = self.next(device, 0, Some(Action::SetProfile(set)), "");
        let seq = self.oracle.push_own(user, user, EntryKind::Profile, &display_name, 0);
        self.oracle.profiles.insert(user, display_name);
        let answer = self.publish(device, &publish);
        assert_eq!(answer.expect("whoever wants shows itself").seq, seq, "the seq of a profile");
    }

    pub(super) fn ask_profiles(&mut self, device: usize) {
        let user = self.devices[device].user_id;
        let mut users: Vec<u64> = self.oracle.users.keys().copied().collect();
        users.push(super::NOWHERE);
        let told = self.ask(device, &request::Op::Profiles(packet::ProfilesRequest { users }));
        let Ok(response::Result::Profiles(page)) = told else { panic!("profiles for {user}: {told:?}") };
        let shown = |of: &packet::UserProfile| of.profile.as_ref().map(|profile| profile.display_name.clone());
        let told: Vec<_> = page.profiles.iter().map(|of| (of.user, of.name.clone(), shown(of))).collect();
        let seen = self.oracle.users.iter().filter(|(other, _)| self.oracle.sees_profile(user, **other));
        let expected: Vec<_> =
            seen.map(|(other, (_, name))| (*other, name.clone(), self.oracle.profiles.get(other).cloned())).collect();
        assert_eq!(told, expected, "whose profile user {user} sees");
        let is_kept_back = self.oracle.users.keys().any(|other| self.oracle.blocks(*other, user));
        self.coverage.count(if is_kept_back { "profiles kept back" } else { "lists of profiles" });
    }

    pub(super) fn ask_blocked(&mut self, device: usize) {
        let user = self.devices[device].user_id;
        let told = self.ask(device, &request::Op::Blocked(packet::BlockedRequest { after_user: 0, limit: 200 }));
        let Ok(response::Result::Blocked(page)) = told else { panic!("whom {user} blocks: {told:?}") };
        let told: Vec<_> = page.users.iter().map(|row| (user, row.user)).collect();
        let expected: Vec<_> = self.oracle.blocked.iter().filter(|(of, _)| *of == user).copied().collect();
        assert_eq!(told, expected, "whom user {user} blocks");
    }

    /// An entry that says something of its own user.
    pub(super) fn check_own(&self, entry: &packet::Entry, stored: &Entry) {
        match stored.kind {
            EntryKind::Blocked => {
                let told = entry.blocked.as_ref().expect("it says whom");
                assert_eq!((told.user, told.undone), (stored.about, stored.text == "undone"), "and whom");
                assert_eq!(told.name, self.oracle.users[&told.user].1, "by the name");
            }
            EntryKind::Profile => {
                let told = entry.profile.as_ref().expect("it says how");
                assert_eq!(told.display_name, stored.text, "and how it is shown");
            }
            EntryKind::Contact => {
                let told = entry.contact.as_ref().expect("it says of whom");
                assert_eq!((told.user, &told.nick), (stored.about, &stored.text), "and what is kept");
                assert_eq!((told.removed, &told.name), (stored.text.is_empty(), &self.oracle.users[&stored.about].1));
            }
            EntryKind::Device => {
                let told = entry.device.as_ref().expect("it says which");
                assert_eq!(told.device, stored.about, "and which device");
            }
            other => panic!("{other:?} says nothing of its user"),
        }
    }

    /// Whether an item tells of a block to anyone but who made it: never, since it stands in that one's inbox alone.
    pub(super) fn check_blocks_are_told_to_nobody(&self, user: u64, item: &packet::Item) {
        if let Some(item::Kind::Entry(entry)) = &item.kind
            && matches!(entry.kind(), EntryKind::Blocked | EntryKind::Contact)
        {
            assert_eq!(entry.sender, user, "a block or a contact is told to another");
        }
    }
}
