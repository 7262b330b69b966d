//! The feed: every committed frame, in position order, into the lanes of who is online. Work is proportional to the
//! readers that are online; an item is encoded once, in the frame, and shared.

use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use longwire_protocol::packet::{self, item};
use longwire_protocol::{ConversationId, Seq, UserId};
use prost::Message as _;

use super::change::Change;
use super::outbox::{Pending, Session};
use super::registry::Registry;
use super::rows::Kind;
use super::state::State;
use super::stream::{Place, Ready};
use crate::mutation::Mutation;
use crate::store::{Frame, Record, StoredEntry};

/// See the module.
#[derive(Debug)]
pub struct Feed {
    state: Arc<RwLock<State>>,
    registry: Arc<Registry>,
    touched: Vec<Arc<Session>>,
}

impl Feed {
    /// A feed from the state's log into the registry's sessions.
    #[must_use]
    pub fn new(state: Arc<RwLock<State>>, registry: Arc<Registry>) -> Self {
        Self { state, registry, touched: Vec::new() }
    }

    /// Pushes what a frame holds, then wakes each touched connection once.
    pub fn feed(&mut self, frame: &Frame) {
        for record in &frame.records {
            match record {
                Record::Entry(entry) => self.entry(entry),
                Record::Change(change) => {
                    if let Ok(Change::MarkSet { user, conversation, seq, .. }) = Change::decode(&change.body) {
                        let place = Place { position: change.position, conversation: ConversationId(0), seq: Seq(0) };
                        let ready = Ready { place, item: mark_item(conversation, seq) };
                        let touched = &mut self.touched;
                        self.registry.each_of(user, |session| {
                            session.outbox.lock().express.push(ready.clone(), true);
                            touched.push(Arc::clone(session));
                        });
                    }
                }
                Record::Rider(_) => {}
            }
        }
        self.touched.sort_unstable_by_key(|session| session.number);
        self.touched.dedup_by_key(|session| session.number);
        for session in self.touched.drain(..) {
            session.outbox.wake();
        }
    }

    fn entry(&mut self, entry: &StoredEntry) {
        let Self { state, registry, touched } = self;
        let state = state.read().unwrap_or_else(PoisonError::into_inner);
        let Some(conversation) = state.conversation(entry.conversation) else { return };
        let mut to = |user: UserId| {
            let (member, duty) = (state.member(entry.conversation, user), state.duties(user).get(&entry.conversation));
            let (Some(member), Some(duty)) = (member, duty) else { return };
            let sees = member.sees(entry.seq) || Mutation::LiveIgnoresRights.is_planted();
            if !sees || entry.seq <= duty.since {
                return;
            }
            registry.each_of(user, |session| {
                if conversation.kind == Kind::Channel && !session.grants.load().read.admit(&conversation.label) {
                    return;
                }
                let mut pending = session.outbox.lock();
                let is_announced = pending.express.sent() >= duty.joined || Mutation::JoinedNotAwaited.is_planted();
                let admits = conversation.kind.is_express() || is_announced;
                push(&mut pending, session, entry, conversation.kind, admits);
                touched.push(Arc::clone(session));
            });
        };
        match conversation.kind {
            Kind::Direct | Kind::Inbox => {
                let (a, b) = conversation.pair;
                to(a);
                if b != a {
                    to(b);
                }
            }
            Kind::Group | Kind::Channel => {
                let members = state.members(entry.conversation);
                if members.len() <= registry.users_online().saturating_mul(2) {
                    members.keys().copied().for_each(&mut to);
                } else {
                    registry.online().into_iter().filter(|user| members.contains_key(user)).for_each(&mut to);
                }
            }
        }
        if conversation.kind == Kind::Channel {
            registry.each_watcher(entry.conversation, |session| {
                // A reader with a row gets it by its row.
                let has_row = state.duties(session.user).get(&entry.conversation).is_some_and(|duty| !duty.closed);
                if !has_row && session.grants.load().read.admit(&conversation.label) {
                    let mut pending = session.outbox.lock();
                    // What was there when watching began may be fed only now.
                    if pending.watched_since(entry.conversation).is_some_and(|since| entry.seq > since) {
                        push(&mut pending, session, entry, conversation.kind, true);
                        touched.push(Arc::clone(session));
                    }
                }
            });
        }
    }
}

fn push(pending: &mut Pending, session: &Session, entry: &StoredEntry, kind: Kind, admits: bool) {
    let item = item_for(pending, session, entry);
    let place = Place { position: entry.position, conversation: entry.conversation, seq: entry.seq };
    pending.lane(kind.is_express()).push(Ready { place, item }, admits);
}

/// What a session is sent for an entry: the shared bytes, or, if it is the device's own, an `Own`.
#[must_use]
pub fn item_for(pending: &Pending, session: &Session, entry: &StoredEntry) -> Bytes {
    if entry.origin.device == session.device {
        own_item(session, entry, pending.device_has(session, entry.origin.incarnation, entry.origin.message_id))
    } else {
        entry.item.clone()
    }
}

fn own_item(session: &Session, entry: &StoredEntry, device_has_content: bool) -> Bytes {
    let content = if device_has_content {
        None
    } else {
        match packet::Item::decode(entry.item.clone()) {
            Ok(packet::Item { kind: Some(item::Kind::Entry(content)) }) => Some(content),
            _ => None,
        }
    };
    let incarnation = entry.origin.incarnation;
    let own = packet::Own {
        conversation: entry.conversation.0,
        seq: entry.seq.0,
        message_id: entry.origin.message_id.0,
        time: entry.time.0,
        incarnation: if incarnation == session.incarnation { 0 } else { incarnation.0 },
        entry: content,
    };
    encode(item::Kind::Own(own))
}

/// A `Mark` of the device's own user.
#[must_use]
pub fn mark_item(conversation: ConversationId, seq: Seq) -> Bytes {
    encode(item::Kind::Mark(packet::Mark { conversation: conversation.0, user: 0, seq: seq.0 }))
}

/// A `Head`: a range that is not sent, and why.
#[must_use]
pub fn head_item(conversation: ConversationId, from: Seq, to: Seq, reason: packet::HeadReason, bytes: usize) -> Bytes {
    encode(item::Kind::Head(packet::Head {
        conversation: conversation.0,
        from_seq: from.0,
        to_seq: to.0,
        reason: reason.into(),
        item_bytes: bytes as u64,
    }))
}

/// The `CaughtUp` that ends a lane's backlog.
#[must_use]
pub fn caught_up_item() -> Bytes {
    encode(item::Kind::CaughtUp(packet::CaughtUp {}))
}

/// A `Progress`: nothing for this device up to here.
#[must_use]
pub fn progress_item() -> Bytes {
    encode(item::Kind::Progress(packet::Progress {}))
}

fn encode(kind: item::Kind) -> Bytes {
    packet::Item { kind: Some(kind) }.encode_to_vec().into()
}
