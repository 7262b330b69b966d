//! Users that are erased (SPEC 15.4), as the oracle sees it: who is, how far that has come, and what may still be written
//! in the name of one.

use super::*;

/// A user that is erased.
#[derive(Clone, Debug)]
pub(crate) struct Erased {
    /// Where that began.
    pub(crate) at: u64,
    /// Its devices are gone.
    has_no_devices: bool,
    /// Nothing of it is left in the state, since this position.
    pub(crate) cleared: Option<u64>,
    /// Nor in the files.
    pub(crate) is_done: bool,
}

impl Model {
    /// Where the erasure of a user of this name began, if it has.
    pub(crate) fn erased_at(&self, name: &str) -> Option<u64> {
        self.erased.get(self.users.get(name)?).map(|erased| erased.at)
    }

    /// Whether an entry is what someone wrote who was being erased at this position.
    pub(crate) fn is_erased(&self, id: u64, seq: u64, by: u64) -> bool {
        let entry = self.conversations.get(&id).and_then(|of| of.entry(seq)).filter(|entry| entry.is_written);
        entry.and_then(|entry| self.erased.get(&entry.sender)).is_some_and(|erased| erased.at <= by)
    }

    /// What a user wrote: where, and the seqs.
    pub(crate) fn written_by(&self, user: u64) -> Vec<(u64, Vec<u64>)> {
        let of = |of: &Conversation| -> Vec<u64> {
            let all = (1..).zip(&of.entries).filter(|(_, entry)| entry.is_written && entry.sender == user);
            all.map(|(seq, _)| seq).collect()
        };
        let all = self.conversations.iter().map(|(id, conversation)| (*id, of(conversation)));
        all.filter(|(_, seqs)| !seqs.is_empty()).collect()
    }

    /// How many erasures were begun, are through with the state, and are done.
    pub(crate) fn erasures(&self) -> [usize; 3] {
        let cleared = self.erased.values().filter(|erased| erased.cleared.is_some()).count();
        let done = self.erased.values().filter(|erased| erased.is_done).count();
        [self.erased.len(), cleared, done]
    }

    pub(super) fn erase_begun(&mut self, user: u64, position: u64) {
        let erased = Erased { at: position, has_no_devices: false, cleared: None, is_done: false };
        assert!(self.erased.insert(user, erased).is_none(), "user {user} is erased twice");
        self.recalls.insert(position, self.written_by(user));
    }

    fn erasure(&mut self, user: u64) -> &mut Erased {
        self.erased.get_mut(&user).unwrap_or_else(|| panic!("nobody has user {user} erased"))
    }

    pub(super) fn erase_own(&mut self, user: u64) {
        self.erasure(user).has_no_devices = true;
        let own: Vec<u64> = self.devices.iter().filter(|(_, (of, _))| *of == user).map(|(device, _)| *device).collect();
        for device in own {
            self.devices.remove(&device);
            self.wills.remove(&device);
        }
    }

    pub(super) fn erase_cleared(&mut self, user: u64, position: u64) {
        let erased = self.erasure(user);
        assert!(erased.has_no_devices && erased.cleared.is_none(), "user {user} is cleared out of turn");
        erased.cleared = Some(position);
        for id in self.of_user.get(&user).into_iter().flatten() {
            let of = &self.conversations[id];
            let member = &of.members[&user];
            match of.kind {
                Kind::Group | Kind::Channel => assert!(!member.is_active(), "erased user {user} is still in {id}"),
                Kind::Inbox => {
                    let first = of.kept_from(u64::MAX);
                    assert!(of.head() < first || of.head() == 0, "the inbox {id} of erased user {user} is kept");
                }
                Kind::Direct => {}
            }
            let owners = of.members.values().filter(|member| member.role == Role::Owner as i32).count();
            let active = of.members.values().filter(|member| member.is_active()).count();
            assert!(of.kind != Kind::Group || owners == active.min(1), "group {id} has {owners} owners of {active}");
        }
        assert!(!self.settings.keys().any(|(of, _)| *of == user), "erased user {user} has settings");
    }

    pub(super) fn erase_done(&mut self, user: u64) {
        let erased = self.erasure(user);
        assert!(erased.cleared.is_some() && !erased.is_done, "user {user} is done out of turn");
        erased.is_done = true;
    }

    /// Who is erased says nothing more; the broker alone writes that it leaves, and who owns its groups from then on: the
    /// member with the highest role. Returns whether this entry does.
    pub(super) fn leaves_for_good(&self, stored: &StoredEntry, wire: &packet::Entry) -> bool {
        if !self.erased.contains_key(&wire.sender) {
            return false;
        }
        let id = stored.conversation.0;
        let membership = wire.membership.as_ref().filter(|_| stored.origin.device.0 == 0);
        let change = membership.unwrap_or_else(|| panic!("erased user {} says in {id}: {wire:?}", wire.sender));
        let members = &self.conversations[&id].members;
        let (role, highest) = (members[&change.user].role, members.values().map(|member| member.role).max());
        let may = if change.user == wire.sender {
            role != 0 && change.role == 0
        } else {
            highest == Some(role) && (1..Role::Owner as i32).contains(&role) && change.role == Role::Owner as i32
        };
        assert!(may, "erased user {} leaves {id} with {change:?}", wire.sender);
        true
    }

    /// All that is left of an erased user's inbox goes at once.
    pub(super) fn is_inbox_of_erased(&self, id: u64) -> bool {
        let of = &self.conversations[&id];
        of.kind == Kind::Inbox && self.erased.contains_key(&of.pair.0)
    }
}
