//! What a device is told was delivered to whom (SPEC R8-12 to R8-14): here by whom it is told, and of what it asked for; the
//! world holds it against what the others' devices have stored.

use longwire_protocol::packet::SignalKind;

use super::*;

/// Up to where a conversation is said to have been delivered to a user.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) conversation: u64,
    pub(crate) user: u64,
    pub(crate) seq: u64,
    /// It was asked for when everything had come to rest.
    pub(crate) is_final: bool,
}

/// What a device has ever stored, or was told that it does not get: no crash and no copy takes back what it acked of it.
#[derive(Debug, Default)]
pub(crate) struct Had {
    pub(crate) seqs: BTreeMap<u64, Stretches>,
    /// And everything up to these positions, in express and bulk.
    pub(crate) upto: [u64; 2],
}

impl Had {
    pub(super) fn add(&mut self, conversation: u64, from: u64, to: u64) {
        self.seqs.entry(conversation).or_default().add(from, to);
    }

    pub(super) fn raise(&mut self, upto: [u64; 2]) {
        self.upto.iter_mut().zip(upto).for_each(|(had, to)| *had = (*had).max(to));
    }
}

/// What it follows in this session, and what it was told of that.
#[derive(Debug, Default)]
pub(crate) struct Follows {
    /// The conversations that it ever asked to follow.
    asked: BTreeSet<u64>,
    /// Conversation and user, by the broker's word, and up to where it was told.
    pub(crate) told: BTreeMap<(u64, u64), u64>,
}

impl Device {
    pub(super) fn check_signal(&mut self, signal: &packet::Signal, wire: &mut Wire, around: &mut Around<'_>) {
        if signal.presence.is_some() {
            return around.coverage.count("changes of presence told");
        }
        if signal.kind() != SignalKind::Delivered {
            return around.coverage.count("signals heard");
        }
        around.coverage.count("deliveries told");
        let (id, user, seq) = (signal.conversation, signal.user, signal.seq);
        assert!(wire.follows.asked.contains(&id), "{}: {signal:?} was not asked for", self.name);
        assert_ne!(user, self.user_id, "{}: it is told of its own user", self.name);
        self.check_told(id, user, seq, around);
        if let Some(told) = wire.follows.told.get_mut(&(id, user)) {
            assert!(*told < seq, "{}: {signal:?} is no news after {told}", self.name);
            *told = seq;
        }
    }

    pub(super) fn check_receipts(
        &mut self,
        page: &packet::ReceiptsPage,
        asked: &packet::ReceiptsRequest,
        asked_at: u64,
        wire: &mut Wire,
        around: &mut Around<'_>,
    ) {
        let id = asked.conversation;
        if asked.stop {
            wire.follows.told.retain(|(known, _), _| *known != id);
            return assert_eq!(page.marks, [], "an end says nothing");
        }
        let conversation = &around.model.conversations[&id];
        assert!(matches!(conversation.kind, Kind::Direct | Kind::Group), "receipts of {:?}", conversation.kind);
        let own = conversation.members.get(&self.user_id);
        let was_in = own.is_some_and(|own| own.is_active() || own.left >= asked_at);
        assert!(was_in, "{}: the receipts of {id} are none of its affair", self.name);
        for mark in &page.marks {
            let of = conversation.members.get(&mark.user).expect("a receipt is a member's");
            assert_eq!(mark.conversation, id, "a page is of one conversation");
            assert!(mark.seq <= of.mark && mark.delivered >= mark.seq, "{}: nobody read that far: {mark:?}", self.name);
            self.check_told(id, mark.user, mark.delivered, around);
            if asked.follow && mark.user != self.user_id {
                wire.follows.told.entry((id, mark.user)).or_default();
            }
            // What a page says is not signalled again. Signals leave behind answers, so it was told no more than this before.
            if let Some(told) = wire.follows.told.get_mut(&(id, mark.user)) {
                *told = (*told).max(mark.delivered);
            }
        }
        if around.is_final {
            let active: Vec<_> = conversation.members.iter().filter(|(_, m)| m.is_active()).collect();
            let expected: Vec<_> = active.iter().map(|(user, member)| (**user, member.mark)).collect();
            let told: Vec<_> = page.marks.iter().map(|mark| (mark.user, mark.seq)).collect();
            assert_eq!(told, expected, "{}: the receipts of {id}", self.name);
        }
        around.coverage.count("pages of receipts");
    }

    /// It is told of a member of a conversation that it is in, or was in up to then.
    fn check_told(&mut self, conversation: u64, user: u64, seq: u64, around: &mut Around<'_>) {
        let of = around.model.conversations.get(&conversation).expect("a conversation that exists");
        let last = |user| of.members.get(&user).and_then(|member| member.intervals.last()).map_or(0, |(_, to)| *to);
        assert!(seq <= of.head(), "{}: {conversation}/{seq} is beyond the head", self.name);
        let own = last(self.user_id);
        assert!(seq <= own, "{}: it is told of {conversation}/{seq}, and was there up to {own}", self.name);
        let others = last(user);
        assert!(seq <= others, "{}: {conversation}/{seq} was delivered to {user}, there up to {others}", self.name);
        self.claims.push(Claim { conversation, user, seq, is_final: around.is_final });
    }
}

impl Wire {
    /// It asks who has what, or to be told of that.
    pub(super) fn note_follow(&mut self, op: &packet::request::Op) {
        if let packet::request::Op::Receipts(asked) = op
            && asked.follow
        {
            self.follows.asked.insert(asked.conversation);
        }
    }
}
