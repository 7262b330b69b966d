//! Wills: what a device leaves to be published when it is lost (SPEC 16.3). The will itself is a row; here is how it is
//! set and published, and which devices are gone and since when, which outlives no broker.

use std::collections::{BTreeSet, HashMap};

use arc_swap::ArcSwap;
use bytes::Bytes;
use longwire_protocol::limits::{WILL_AFTER_MS, WILL_AFTER_MS_MAX, WILL_AFTER_MS_MIN, WILL_BYTES_MAX};
use longwire_protocol::packet::{self, PublishAck};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, DeviceId, Incarnation, MessageId, SessionNumber};

use super::change::Change;
use super::draft::{Draft, No, Ticket};
use super::grants::{Grants, Patterns};
use super::outbox::Session;
use super::rights;
use super::rows::{Key, Kind, Row, Will};
use super::view::Rows as _;
use crate::mutation::Mutation;

/// What becomes of the will of a device that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It is published.
    Publish,
    /// It is taken away.
    Take,
}

/// Devices that are gone and have a will, each with when and what becomes of that.
#[derive(Debug, Default)]
pub struct Gone {
    devices: HashMap<DeviceId, (u64, Fate)>,
    due: BTreeSet<(u64, DeviceId)>,
}

impl Gone {
    /// The device is gone: this becomes of its will then, in place of what was said before.
    pub fn put(&mut self, device: DeviceId, due_ms: u64, fate: Fate) {
        self.back(device);
        self.devices.insert(device, (due_ms, fate));
        self.due.insert((due_ms, device));
    }

    /// The device is back. Gives what was to become of its will.
    pub fn back(&mut self, device: DeviceId) -> Option<Fate> {
        let (due_ms, fate) = self.devices.remove(&device)?;
        self.due.remove(&(due_ms, device));
        Some(fate)
    }

    /// Whether the device is known to be gone.
    #[must_use]
    pub fn has(&self, device: DeviceId) -> bool {
        self.devices.contains_key(&device)
    }

    /// Takes out whose time has come, at most so many.
    pub fn take_due(&mut self, now_ms: u64, most: usize) -> Vec<(DeviceId, Fate)> {
        let due: Vec<_> = self.due.iter().take_while(|(at, _)| *at <= now_ms).take(most).copied().collect();
        let take = |(at, device): (u64, DeviceId)| {
            self.due.remove(&(at, device));
            self.devices.remove(&device).map(|(_, fate)| (device, fate))
        };
        due.into_iter().filter_map(take).collect()
    }
}

impl Draft<'_, '_> {
    pub(super) fn set_will(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        conversation: ConversationId,
        content: &Bytes,
        after_ms: u32,
    ) -> Result<PublishAck, No> {
        let device = session.device;
        if !conversation.is_some() {
            if self.view.will_after(device).is_some() {
                self.change(&Change::WillTaken { device });
            }
            return Ok(self.answered(ticket, conversation, false));
        }
        if content.len() > WILL_BYTES_MAX {
            return Err(No(Reason::PayloadTooLarge, "a will is at most 4 KiB"));
        }
        let by_token = rights::may_publish(&self.view, session, conversation)?.kind == Kind::Channel;
        let after_ms = if after_ms == 0 { WILL_AFTER_MS } else { after_ms };
        let will = Will {
            user: session.user,
            conversation,
            content: content.to_vec().into(),
            after_ms: after_ms.clamp(WILL_AFTER_MS_MIN, WILL_AFTER_MS_MAX),
            by_token,
        };
        self.change(&Change::WillSet { device, will });
        Ok(self.answered(ticket, conversation, false))
    }

    /// Publishes a device's will, if it has one and still may, or only takes it away. Either way it has none any more.
    pub(super) fn end_will(&mut self, device: DeviceId, fate: Fate) {
        let Some(Row::Will(will)) = self.view.row(&Key::Will(device)).cloned() else { return };
        if fate == Fate::Take || !Mutation::WillStays.is_planted() {
            self.change(&Change::WillTaken { device });
        }
        // Nothing is said any more in the name of who is erased, whose rows go a step later, nor of who was cut off since.
        if fate == Fate::Take || self.view.is_erased(will.user) || self.view.is_cut_off(will.user, device) {
            return;
        }
        let label = self.view.conversation(will.conversation).map(|row| row.label.clone()).unwrap_or_default();
        let publish = packet::Publish {
            conversation: will.conversation.0,
            content: will.content.to_vec().into(),
            ..packet::Publish::default()
        };
        let session = std::sync::Arc::new(will.session(&label));
        // Who may not publish there any more has left nothing.
        let _forbidden = self.append(&session, publish, MessageId::NONE, 0, None);
    }
}

impl Will {
    /// Who publishes it: its user, from no device, with what the token that it was set with allowed there.
    fn session(&self, label: &str) -> Session {
        let publish = Patterns::new(self.by_token.then_some(label));
        Session {
            number: SessionNumber(0),
            user: self.user,
            device: DeviceId(0),
            incarnation: Incarnation(0),
            first_unanswered: MessageId::NONE,
            grants: ArcSwap::from_pointee(Grants { publish, ..Grants::default() }),
            hears_signals: false,
            is_background: false.into(),
            outbox: Default::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADAS: DeviceId = DeviceId(1);
    const BOBS: DeviceId = DeviceId(2);

    #[test]
    fn a_device_that_is_back_in_time_is_not_lost() {
        let mut gone = Gone::default();
        gone.put(ADAS, 100, Fate::Publish);
        gone.put(BOBS, 200, Fate::Publish);
        assert_eq!(gone.take_due(99, 10), []);
        gone.back(ADAS);
        assert_eq!(gone.take_due(1_000, 10), [(BOBS, Fate::Publish)]);
        assert_eq!(gone.take_due(1_000, 10), [], "once");
    }

    #[test]
    fn what_is_said_last_holds_and_the_rest_waits_its_turn() {
        let mut gone = Gone::default();
        gone.put(ADAS, 100, Fate::Publish);
        gone.put(ADAS, 50, Fate::Take);
        gone.put(BOBS, 60, Fate::Publish);
        assert_eq!(gone.take_due(70, 1), [(ADAS, Fate::Take)]);
        assert!(gone.has(BOBS) && !gone.has(ADAS));
        assert_eq!(gone.take_due(70, 1), [(BOBS, Fate::Publish)]);
    }
}
