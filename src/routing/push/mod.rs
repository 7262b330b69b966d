//! What devices that are away are told by others: where each has itself told (SPEC 17), what is yet to be told
//! ([`look`]), and when that is looked at ([`ringer`]). Nothing is written for a message: what is to be told is derived
//! from acks and the log, and only what was told is kept.

pub mod bell;
pub mod look;
#[cfg(test)]
mod model_tests;
pub mod ringer;

use longwire_protocol::limits::PUSH_TARGET_BYTES_MAX;
use longwire_protocol::packet::{self, PublishAck, Shows};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, DeviceId, LogTime, UserId};
use serde::{Deserialize, Serialize};

use super::change::Change;
use super::draft::{Draft, No, Ticket};
use super::ops::Effect;
use super::outbox::Session;
use super::rows::{Key, Row};
use super::view::{Rows as _, View};
use crate::store::Position;

/// Whom the broker can ask to tell a device something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Provider {
    /// The operator's own gateway.
    Webhook,
    /// Apple's.
    Apns,
    /// Google's.
    Fcm,
    /// The endpoint that a browser or a UnifiedPush distributor gave the client.
    WebPush,
}

impl Provider {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Webhook, Self::Apns, Self::Fcm, Self::WebPush];

    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Apns => "apns",
            Self::Fcm => "fcm",
            Self::WebPush => "webpush",
        }
    }

    /// What a broker announces that has it.
    #[must_use]
    pub fn feature(self) -> String {
        format!("push-{}", self.name())
    }
}

/// Where a device has itself told, and how.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// By whom.
    pub provider: Provider,
    /// What the provider calls it.
    pub target: Box<str>,
    /// The public key of a Web Push subscription.
    pub key: Box<[u8]>,
    /// Its secret.
    pub secret: Box<[u8]>,
    /// The minutes of the day, in UTC, between which it is told nothing.
    pub quiet: (u16, u16),
    /// What of a message the provider is told, as on the wire.
    pub shows: i32,
}

impl std::fmt::Debug for Push {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Push").field("provider", &self.provider).finish_non_exhaustive()
    }
}

impl Push {
    /// How long it is quiet yet, in milliseconds; `None` where it is not.
    #[must_use]
    pub fn quiet_for(&self, unix_ms: u64) -> Option<u64> {
        const DAY_MS: u64 = 86_400_000;
        let (from, until) = (u64::from(self.quiet.0) * 60_000, u64::from(self.quiet.1) * 60_000);
        let at = unix_ms % DAY_MS;
        let is_quiet = if from <= until { from <= at && at < until } else { at >= from || at < until };
        is_quiet.then(|| (until + DAY_MS - at) % DAY_MS)
    }
}

/// What a device was told. What it acked since is left out as soon as something else is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Everything up to here was told, or is not to be.
    pub upto: Position,
    /// Conversations in which more was; at most [`super::limits::PUSH_TOLD_MAX`].
    pub beyond: Vec<ToldOf>,
}

/// What a device was told of one conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldOf {
    /// Which.
    pub conversation: ConversationId,
    /// Up to here.
    pub upto: Position,
    /// When; 0 where nothing of it was to be told.
    pub time: LogTime,
}

impl Told {
    /// Up to where a conversation was told, and when, if that is known.
    #[must_use]
    pub fn of(&self, conversation: ConversationId) -> (Position, LogTime) {
        let told = self.beyond.iter().find(|told| told.conversation == conversation);
        told.map_or((self.upto, LogTime(0)), |told| (told.upto.max(self.upto), told.time))
    }

    /// A conversation was told up to here.
    pub fn note(&mut self, conversation: ConversationId, upto: Position, time: LogTime) {
        self.beyond.retain(|told| told.conversation != conversation);
        self.beyond.push(ToldOf { conversation, upto, time });
    }
}

/// What became of telling a device, for the commit thread to make durable.
#[derive(Clone, Debug)]
pub struct Settling {
    /// Whose the device is.
    pub user: UserId,
    /// Which.
    pub device: DeviceId,
    /// What.
    pub what: Settled,
}

/// See [`Settling`].
#[derive(Clone, Debug)]
pub enum Settled {
    /// It was told this much.
    Told(Told),
    /// The provider does not know this target any more.
    Gone(Box<str>),
}

impl Draft<'_, '_> {
    pub(super) fn set_push(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        set: packet::SetPush,
    ) -> Result<PublishAck, No> {
        let (user, device) = (session.user, session.device);
        let push = valid(set)?;
        let known = self.view.push(user, device);
        if known != push.as_ref() {
            let change = match push {
                Some(push) => Change::PushSet { user, device, push },
                None => Change::PushTaken { user, device },
            };
            self.change(&change);
            let is_told = matches!(change, Change::PushSet { .. });
            self.effects.push(Effect::PushSet(user, device, is_told));
        }
        Ok(self.answered(ticket, ConversationId(0), false))
    }

    /// Makes durable what became of telling a device, if it still wants to be told.
    pub(super) fn settle_push(&mut self, settling: Settling) {
        let Settling { user, device, what } = &settling;
        let (user, device) = (*user, *device);
        let is_done = self.writable;
        if is_done && let Some(push) = self.view.push(user, device) {
            match what {
                Settled::Told(told) => {
                    let change = Change::PushTold { user, device, told: told.clone() };
                    self.frame.push_rider(|out| change.encode(out));
                    super::fold::fold_change(&mut self.view, Position(0), self.frame.time(), &change);
                }
                Settled::Gone(target) if push.target == *target => self.change(&Change::PushTaken { user, device }),
                Settled::Gone(_) => {}
            }
        }
        self.effects.push(Effect::PushSettled(user, device, is_done));
    }
}

/// What a device asks for; `None` where it is to be told nothing.
fn valid(set: packet::SetPush) -> Result<Option<Push>, No> {
    if set.provider.is_empty() {
        return Ok(None);
    }
    let no = |why| Err(No(Reason::InvalidArgument, why));
    let Some(provider) = Provider::ALL.into_iter().find(|provider| provider.name() == set.provider) else {
        return no("no such provider");
    };
    if set.target.is_empty() || set.target.len() > PUSH_TARGET_BYTES_MAX || !set.target.chars().all(is_plain) {
        return no("a target has 1 to 2,048 bytes, all of them visible ASCII");
    }
    let has_keys = match provider {
        Provider::WebPush => set.key.len() == 65 && set.key[0] == 4 && set.secret.len() == 16,
        _ => set.key.is_empty() && set.secret.is_empty(),
    };
    if !has_keys {
        return no("a Web Push subscription has a key of 65 bytes and a secret of 16, others have none");
    }
    if provider == Provider::WebPush && !set.target.starts_with("https://") {
        return no("an endpoint of Web Push is an https URL");
    }
    if set.quiet_from >= MINUTES || set.quiet_until >= MINUTES || Shows::try_from(set.shows).is_err() {
        return no("quiet hours are minutes of a day, and what is shown is one of three");
    }
    Ok(Some(Push {
        provider,
        target: set.target.into(),
        key: set.key.to_vec().into(),
        secret: set.secret.to_vec().into(),
        quiet: (set.quiet_from as u16, set.quiet_until as u16),
        shows: set.shows,
    }))
}

/// Minutes of a day.
const MINUTES: u32 = 24 * 60;

fn is_plain(c: char) -> bool {
    c.is_ascii_graphic()
}

/// Folds what a device has itself told. What came before it said so is not told.
pub(super) fn fold_push_set(view: &mut View<'_>, (user, device): (UserId, DeviceId), push: &Push, position: Position) {
    if view.told(user, device).is_none() {
        let told = Told { upto: position, beyond: Vec::new() };
        view.put(Key::Told(user, device), Some(Row::Told(told)));
    }
    view.put(Key::Push(user, device), Some(Row::Push(push.clone())));
}

/// Folds that a device is told nothing any more.
pub(super) fn fold_push_taken(view: &mut View<'_>, user: UserId, device: DeviceId) {
    if view.is_told(user, device) {
        view.put(Key::Push(user, device), None);
        view.put(Key::Told(user, device), None);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::routing::state::State;
    use crate::store::{ReadError, SavedState};

    /// Rows that were saved.
    struct Saved(BTreeMap<Vec<u8>, Vec<u8>>);

    impl SavedState for Saved {
        fn get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, ReadError> {
            Ok(keys.iter().map(|key| self.0.get(key).cloned()).collect())
        }

        fn each(&self, prefix: &[u8], each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ReadError> {
            let rows = self.0.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
            rows.for_each(|(key, row)| each(key, row));
            Ok(())
        }
    }

    /// Who has itself told is known from the start on, wherever its row lies.
    #[test]
    fn a_start_finds_every_device_that_has_itself_told() {
        let whose = [1, 127, 128, 4_095, 4_096, 300_000, u64::MAX].map(|id| (UserId(id), DeviceId(id)));
        let mut rows = BTreeMap::new();
        for (user, device) in whose {
            rows.insert(Key::Push(user, device).encode(), Row::Push(quiet(0, 0)).encode());
            rows.insert(Key::Told(user, device).encode(), Row::Told(Told::default()).encode());
            rows.insert(Key::Seen(user).encode(), Row::Seen(LogTime(1)).encode());
        }
        let state = State::over(Arc::new(Saved(rows)), Position(0), usize::MAX).expect("reads");
        assert_eq!(state.pushes().iter().copied().collect::<Vec<_>>(), whose);
        assert_eq!(state.pushes_of(UserId(4_096)).collect::<Vec<_>>(), [whose[4]]);
        assert_eq!(state.pushes_of(UserId(2)).count(), 0);
    }

    fn quiet(from: u16, until: u16) -> Push {
        let (target, key, secret) = ("t".into(), [].into(), [].into());
        Push { provider: Provider::Webhook, target, key, secret, quiet: (from, until), shows: 0 }
    }

    #[test]
    fn quiet_hours_may_pass_midnight() {
        let at = |push: &Push, minute: u64| push.quiet_for(5 * 86_400_000 + minute * 60_000).map(|ms| ms / 60_000);
        let night = quiet(22 * 60, 7 * 60);
        assert_eq!(at(&night, 23 * 60), Some(8 * 60));
        assert_eq!(at(&night, 6 * 60 + 59), Some(1));
        assert_eq!((at(&night, 7 * 60), at(&night, 21 * 60 + 59)), (None, None));
        let noon = quiet(12 * 60, 13 * 60);
        assert_eq!((at(&noon, 12 * 60), at(&noon, 13 * 60), at(&noon, 0)), (Some(60), None, None));
        let never = quiet(5, 5);
        assert!((0..1_440).all(|minute| at(&never, minute).is_none()));
    }
}
