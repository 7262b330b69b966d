//! Where the commit thread and the feed leave word for the ringer: which conversations have news, which devices asked to
//! be told, and what was made durable. Bounded, and nobody waits at it. While nobody is told anything it is a look at one
//! flag for each frame.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use foldhash::fast::RandomState;
use longwire_protocol::{ConversationId, DeviceId, UserId};

use super::Provider;
use crate::store::{Frame, Record};

/// Conversations with news between two looks; beyond, every device is looked at.
const CONVERSATIONS_MAX: usize = 1 << 16;

/// See the module.
#[derive(Debug, Default)]
pub struct Bell {
    /// Whether someone is there to hear it, and any device is told anything.
    is_heard: AtomicBool,
    providers: OnceLock<Vec<Provider>>,
    rung: Mutex<Rung>,
}

/// What was left since it was last taken.
#[derive(Debug, Default)]
pub struct Rung {
    /// Conversations with news.
    pub conversations: HashSet<ConversationId, RandomState>,
    /// They are too many to list.
    pub is_everywhere: bool,
    /// Devices that set where they are told.
    pub set: Vec<(UserId, DeviceId)>,
    /// Devices of which something was made durable, or could not be.
    pub settled: Vec<(UserId, DeviceId, bool)>,
}

impl Bell {
    /// Someone hears it who has these providers. Once.
    pub fn serve(&self, providers: Vec<Provider>) {
        let _ = self.providers.set(providers);
    }

    /// The providers there are.
    #[must_use]
    pub fn providers(&self) -> &[Provider] {
        self.providers.get().map_or(&[], Vec::as_slice)
    }

    /// Whether news are of interest to anybody.
    pub fn listen(&self, is_heard: bool) {
        self.is_heard.store(is_heard, Ordering::Relaxed);
    }

    /// The entries of a committed frame are news.
    pub fn note(&self, frame: &Frame) {
        if !self.is_heard.load(Ordering::Relaxed) {
            return;
        }
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        for record in &frame.records {
            let Record::Entry(entry) = record else { continue };
            if rung.conversations.len() < CONVERSATIONS_MAX {
                rung.conversations.insert(entry.conversation);
            } else {
                rung.is_everywhere |= !rung.conversations.contains(&entry.conversation);
            }
        }
    }

    /// A device set where it is told.
    pub fn set(&self, user: UserId, device: DeviceId) {
        if !self.providers().is_empty() {
            self.rung.lock().unwrap_or_else(PoisonError::into_inner).set.push((user, device));
        }
    }

    /// What became of telling a device is durable, or could not be made so.
    pub fn settled(&self, user: UserId, device: DeviceId, is_done: bool) {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner).settled.push((user, device, is_done));
    }

    /// Takes what was left.
    pub fn take(&self) -> Rung {
        std::mem::take(&mut *self.rung.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use longwire_protocol::{LogTime, Seq};

    use super::*;
    use crate::store::{EntryMeta, FrameBuilder, Position, SegmentId};

    fn frame_of(conversations: impl IntoIterator<Item = u64>) -> Frame {
        let mut frame = FrameBuilder::new(SegmentId(1), Position(1), LogTime(0));
        for conversation in conversations {
            let meta = EntryMeta { conversation: ConversationId(conversation), seq: Seq(1), ..EntryMeta::default() };
            frame.push_entry(&meta, |_| {});
        }
        frame.finish()
    }

    #[test]
    fn which_conversations_have_news_is_listed_while_they_are_few() {
        let bell = Bell::default();
        bell.note(&frame_of([1, 2]));
        assert!(bell.take().conversations.is_empty(), "nobody hears it");
        bell.listen(true);
        bell.note(&frame_of([3, 5, 3]));
        let rung = bell.take();
        let listed: std::collections::BTreeSet<_> = rung.conversations.into_iter().collect();
        assert_eq!((listed, rung.is_everywhere), ([ConversationId(3), ConversationId(5)].into(), false));
        let most = CONVERSATIONS_MAX as u64;
        bell.note(&frame_of(0..most));
        bell.note(&frame_of([7]));
        let rung = bell.take();
        assert_eq!((rung.conversations.len(), rung.is_everywhere), (CONVERSATIONS_MAX, false));
        bell.note(&frame_of(0..=most));
        let rung = bell.take();
        assert_eq!((rung.conversations.len(), rung.is_everywhere), (CONVERSATIONS_MAX, true));
    }
}
