//! What is said to have been delivered was stored by a device of the user, and who follows is told of all of it in the end.

use super::*;

impl World {
    /// Nobody is told of more than what a device of the user has stored, or was told that it does not get.
    pub(super) fn check_claims(&mut self, device: usize) {
        for claim in std::mem::take(&mut self.devices[device].claims) {
            let name = &self.devices[device].name;
            assert!(self.has(claim.conversation, claim.user, claim.seq), "{name}: no device has that: {claim:?}");
            if claim.is_final && self.has_come(claim.user, claim.conversation) {
                let head = self.model.conversations[&claim.conversation].head();
                assert_eq!(claim.seq, head, "{name}: it has all of it: {claim:?}");
                self.coverage.count("deliveries that are whole");
            }
        }
    }

    /// Whether the newest of these entries that the user may see is there, on one of its devices; what has gone is.
    fn has(&self, id: u64, user: u64, seq: u64) -> bool {
        let conversation = &self.model.conversations[&id];
        let Some(member) = conversation.members.get(&user) else { return seq == 0 };
        let (floor, covered) = (conversation.kept_from(u64::MAX), self.covered(user, id));
        let is_owed = |seq: &u64| {
            let is_there = conversation.entry(*seq).is_some_and(|entry| entry.position >= self.model.gone_below());
            *seq > covered && member.sees(*seq) && *seq >= floor && is_there && !self.model.may_be_gone(id, *seq)
        };
        let Some(newest) = (1..=seq).rev().find(is_owed) else { return true };
        let lane = usize::from(!conversation.is_express());
        let position = conversation.entry(newest).map_or(0, |entry| entry.position);
        let has = |device: &Device| {
            let seqs = device.had.seqs.get(&id);
            seqs.is_some_and(|seqs| seqs.has(newest)) || position <= device.had.upto[lane]
        };
        newest <= member.mark || self.devices.iter().filter(|device| device.user_id == user).any(has)
    }

    /// Whether a device of the user is there, which has all there is, and something of it was delivered: not what its
    /// `JOINED` covers.
    fn has_come(&self, user: u64, id: u64) -> bool {
        // Of much that is withheld at once the first alone counts, until there is more.
        let has_all = |device: &Device| {
            let was_hidden = device.wire.as_ref().is_some_and(|wire| wire.was_in_background);
            !was_hidden && self.model.levels_of(device.device_id, id).is_empty()
        };
        let is_there =
            |device: &Device| device.user_id == user && !device.is_away && device.is_open() && has_all(device);
        let is_erased = self.model.name(user).is_none_or(|name| self.model.erased_at(name).is_some());
        !is_erased && self.model.conversations[&id].head() > self.covered(user, id) && self.devices.iter().any(is_there)
    }

    /// Up to where a conversation is history to a user.
    fn covered(&self, user: u64, id: u64) -> u64 {
        self.model.covered.get(&(user, id)).copied().unwrap_or_default()
    }

    /// At rest: who follows was told of everything.
    pub(super) fn check_followers(&mut self) {
        // Of one user no more than once in a second.
        for _ in 0..4 {
            self.pass(600);
            self.settle();
        }
        let mut told = 0;
        for device in self.devices.iter().filter(|device| !device.is_away) {
            let Some(wire) = device.wire.as_ref().filter(|wire| wire.connected.is_some()) else { continue };
            for ((id, user), seq) in &wire.follows.told {
                let conversation = &self.model.conversations[id];
                let is_in = |user: &u64| conversation.members.get(user).is_some_and(crate::model::Member::is_active);
                if is_in(&device.user_id) && is_in(user) && self.has_come(*user, *id) {
                    let head = conversation.head();
                    assert_eq!(*seq, head, "{}: {user} has {id}/{head}, and it was told {seq}", device.name);
                    told += 1;
                }
            }
        }
        (0..told).for_each(|_| self.coverage.count("followers told of everything"));
    }
}
