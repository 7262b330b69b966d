//! What a device holds the broker to where it wants less than everything (SPEC 6.6): what it gets, what it is told in place
//! of that, and that nothing overtakes what it is still to be told.

use super::*;
use longwire_protocol::packet::Level;

impl Device {
    /// An ack of a level: it is kept.
    pub(super) fn check_level_ack(&self, id: u64, set: &packet::SetLevel, sent: u64, model: &Model) {
        let was = model.level_at(self.device_id, id, sent);
        let mut since = model.levels_of(self.device_id, id).iter().filter(|(at, _)| *at > sent);
        let is_kept = was == set.level() || since.any(|(_, level)| *level == set.level());
        assert!(is_kept, "{}: {set:?} of {id} is acked, and not kept", self.name);
    }

    /// An entry is not what it said that it does not want.
    pub(super) fn check_wanted(&self, lane: Lane, id: u64, position: u64, item: &Item, wire: &Wire, model: &Model) {
        let levels = model.levels_of(self.device_id, id);
        let is_lifted = levels.iter().any(|(at, level)| *at > position && *level == Level::Full);
        let level = model.level_at(self.device_id, id, position);
        assert!(
            level == Level::Full || is_lifted,
            "{}: {id} at {position} is delivered, and the level is {level:?}",
            self.name
        );
        let mentions = match &item.kind {
            Some(item::Kind::Entry(entry)) => entry.beside.as_ref().is_some_and(|b| b.mentions.contains(&self.user_id)),
            _ => false,
        };
        let is_hidden = wire.background.is_some_and(|since| position > since) && lane == Lane::Bulk;
        assert!(!is_hidden || mentions, "{}: {id} at {position} is delivered into the background", self.name);
    }

    /// A `Head` says that the device does not want what it wants.
    pub(super) fn check_withheld(&self, head: &packet::Head, first: u64, wire: &Wire, around: &mut Around<'_>) {
        let (model, id) = (around.model, head.conversation);
        let mut later = model.levels_of(self.device_id, id).iter().filter(|(at, _)| *at > first);
        let was =
            model.level_at(self.device_id, id, first) != Level::Full || later.any(|(_, level)| *level != Level::Full);
        let is_bulk = !model.conversations[&id].is_express();
        let is_hidden = wire.was_in_background && is_bulk;
        assert!(was || is_hidden, "{}: {head:?} at {first} is withheld, and it wants it", self.name);
        around.coverage.count("heads of what is withheld");
        if head.to_seq > head.from_seq {
            around.coverage.count("heads of much that is withheld");
        }
    }

    /// Everything of the lane that stands before an item was sent, or was reported.
    pub(super) fn check_overtaken(&self, lane: Lane, position: u64, wire: &mut Wire, model: &Model) {
        let at = lane as usize;
        let Some(started) = wire.seen.started else { return };
        for id in model.of_user.get(&self.user_id).into_iter().flatten() {
            let conversation = &model.conversations[id];
            if conversation.is_express() != (lane == Lane::Express) {
                continue;
            }
            let next = wire.seen.next.get(id).copied().unwrap_or(1);
            let mut seq = wire.seen.told.get(id).copied().unwrap_or(1).max(next);
            while let Some(entry) = conversation.entry(seq).filter(|entry| entry.position < position) {
                let is_told = entry.position <= started[at]
                    || self.is_excused(*id, seq, model)
                    || wire.seen.heads.get(id).is_some_and(|heads| heads.has(seq));
                assert!(
                    is_told,
                    "{}: {id}/{seq} at {} is overtaken by what stands at {position} in {lane:?}",
                    self.name, entry.position
                );
                seq += 1;
            }
            wire.seen.told.insert(*id, seq);
        }
    }
}
