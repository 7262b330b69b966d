//! What happens to a message after it was published: edits, recalls, reactions, its end; and what a user alone sees of
//! it: a mention, a message hidden, the settings of a conversation. How each is read from an entry and folded into rows.

use longwire_protocol::packet::{self, EntryKind, HeadReason};
use longwire_protocol::{ConversationId, LogTime, Seq, UserId};
use prost::Message as _;

use super::limits::MENTIONS_KEPT_MAX;
use super::rows::{Altered, Conversation, Key, Member, Mention, MoreOfConversation, Personal, Row, Settings};
use super::tallies::{fold_expiring, fold_gone};
use super::view::{Rows, View};
use crate::mutation::Mutation;
use crate::store::{EntryMeta, Position};

/// Something about an earlier message of the same conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alteration {
    /// It has another content.
    Edit {
        /// Which.
        target: Seq,
        /// Who did it.
        sender: UserId,
        /// Whose attention that content asks for.
        mentions: Vec<u64>,
    },
    /// It is shown to nobody any more.
    Recall {
        /// Which.
        target: Seq,
        /// Its place among the countable entries.
        countable: u64,
    },
    /// A user's one reaction to it.
    Reaction {
        /// Which.
        target: Seq,
        /// Whose.
        user: UserId,
        /// Empty where it is taken back.
        reaction: Box<str>,
    },
}

impl Alteration {
    /// What an entry says; `None` where it says nothing of the kind.
    #[must_use]
    pub fn of(entry: &packet::Entry) -> Option<Self> {
        let sender = UserId(entry.sender);
        match entry.kind() {
            EntryKind::Edit => {
                let mentions = entry.beside.as_ref().map_or_else(Vec::new, |beside| beside.mentions.clone());
                Some(Self::Edit { target: Seq(entry.edit), sender, mentions })
            }
            EntryKind::Recall => entry
                .recall
                .as_ref()
                .map(|recall| Self::Recall { target: Seq(recall.seq), countable: recall.countable }),
            EntryKind::Reaction => entry.reaction.as_ref().map(|react| Self::Reaction {
                target: Seq(react.seq),
                user: sender,
                reaction: react.reaction.as_str().into(),
            }),
            _ => None,
        }
    }
}

/// Something in an inbox that concerns its user alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Personally {
    /// A message mentions the user.
    Mentioned(Seq),
    /// What the user set for a conversation.
    Settings(packet::Settings),
    /// The user hides a message, or shows it again.
    Hidden {
        /// Which.
        seq: Seq,
        /// Whether it is shown again.
        undo: bool,
        /// Its place among the countable entries.
        countable: u64,
    },
}

impl Personally {
    /// What an entry of an inbox says, and about which conversation; `None` where it says nothing of the kind.
    #[must_use]
    pub fn of(entry: &packet::Entry) -> Option<(ConversationId, Self)> {
        match (entry.kind(), &entry.mentioned, &entry.settings, &entry.hidden) {
            (EntryKind::Mentioned, Some(mentioned), _, _) => {
                Some((ConversationId(mentioned.conversation), Self::Mentioned(Seq(mentioned.seq))))
            }
            (EntryKind::Settings, _, Some(settled), _) => {
                Some((ConversationId(settled.conversation), Self::Settings(settled.settings.unwrap_or_default())))
            }
            (EntryKind::Hidden, _, _, Some(hidden)) => {
                let what = Self::Hidden { seq: Seq(hidden.seq), undo: hidden.undo, countable: hidden.countable };
                Some((ConversationId(hidden.conversation), what))
            }
            _ => None,
        }
    }
}

/// Why an entry is shown to nobody at this time; `None` while it is. The one rule that catch-up, retransmit and history
/// share (SPEC R5.6-6, R5.7-2, R15-22). `sender` finds whose it is, and is asked only while somebody is being erased. Costs nothing where nothing of the conversation is withheld near it.
pub fn withheld(
    rows: &impl Rows,
    conversation: &Conversation,
    id: ConversationId,
    seq: Seq,
    now: LogTime,
    sender: impl FnOnce() -> Option<UserId>,
) -> Option<HeadReason> {
    if is_erased(rows, sender) {
        return Some(HeadReason::Erased);
    }
    if !conversation.more.may_be_withheld(seq) || Mutation::RecalledShown.is_planted() {
        return None;
    }
    if seq < conversation.more.kept.first {
        return (!Mutation::UnkeptShown.is_planted()).then_some(HeadReason::Expired);
    }
    rows.altered(id, seq)?.withheld(now)
}

/// Whether the sender of an entry is being erased.
fn is_erased(rows: &impl Rows, sender: impl FnOnce() -> Option<UserId>) -> bool {
    let erased = rows.erased();
    !erased.is_empty() && sender().is_some_and(|sender| erased.contains(&sender)) && !Mutation::ErasedShown.is_planted()
}

/// Who published an entry that holds what people wrote, by the encoded item; `None` for every other: who came and went, and
/// what a group is called, are not the sender's alone.
#[must_use]
pub fn author(item: &[u8]) -> Option<UserId> {
    let entry = match packet::Item::decode(item).ok()?.kind? {
        packet::item::Kind::Entry(entry) => entry,
        packet::item::Kind::Own(own) => own.entry?,
        _ => return None,
    };
    let is_written = matches!(entry.kind(), EntryKind::Message | EntryKind::Edit | EntryKind::Reaction);
    is_written.then_some(UserId(entry.sender))
}

/// Folds what a message brings beside itself.
pub(super) fn fold_message(
    view: &mut View<'_>,
    meta: &EntryMeta,
    (position, time): (Position, LogTime),
    sender: UserId,
    mentions: &[u64],
    expires: LogTime,
) {
    mention(view, meta, position, sender, mentions);
    if expires.0 > 0 {
        alter(view, meta.conversation, meta.seq, |altered| altered.expires = expires);
        note(view, meta.conversation, |more| more.note_withheld(meta.seq));
        fold_expiring(view, meta.conversation, time, expires, meta.countable);
    }
}

/// Folds what happens to an earlier message.
pub(super) fn fold_alteration(
    view: &mut View<'_>,
    meta: &EntryMeta,
    position: Position,
    time: LogTime,
    alteration: &Alteration,
) {
    let id = meta.conversation;
    match alteration {
        Alteration::Edit { target, sender, mentions } => {
            alter(view, id, *target, |altered| altered.edits.push(meta.seq));
            let expires = view.altered(id, *target).map_or(LogTime(0), |altered| altered.expires);
            let edit = Altered { expires, edit_of: *target, ..Altered::default() };
            view.put(Key::Altered(id, meta.seq), Some(Row::Altered(edit)));
            note(view, id, |more| {
                more.note_altered(*target);
                more.note_altered(meta.seq);
                if expires.0 > 0 {
                    more.note_withheld(meta.seq);
                }
            });
            mention(view, meta, position, *sender, mentions);
        }
        Alteration::Recall { target, countable } => {
            let edits = view.altered(id, *target).map_or_else(Vec::new, |altered| altered.edits.clone());
            // What it said before and after is one: none of it is shown any more.
            for seq in edits.into_iter().chain([*target]) {
                alter(view, id, seq, |altered| {
                    altered.is_recalled = true;
                    altered.reactions.clear();
                });
                note(view, id, |more| more.note_withheld(seq));
            }
            if !Mutation::RecalledCounts.is_planted() {
                fold_gone(view, id, time, *countable);
            }
        }
        Alteration::Reaction { target, user, reaction } => {
            let before: Option<Box<str>> = view.reaction(id, *target, *user).map(Into::into);
            alter(view, id, *target, |altered| {
                if let Some(before) = &before {
                    count_reaction(&mut altered.reactions, before, false);
                }
                if !reaction.is_empty() {
                    count_reaction(&mut altered.reactions, reaction, true);
                }
            });
            note(view, id, |more| more.note_altered(*target));
            let row = (!reaction.is_empty()).then(|| Row::Reaction(reaction.clone()));
            view.put(Key::Reaction(id, *target, *user), row);
        }
    }
}

/// Folds what concerns one user alone.
pub(super) fn fold_personally(
    view: &mut View<'_>,
    user: UserId,
    conversation: ConversationId,
    what: &Personally,
    position: Position,
    source: Position,
) {
    match what {
        Personally::Mentioned(seq) => {
            view.put(Key::Crossing(source, user), None);
            personal(view, user, conversation, |personal| {
                if let Err(at) = personal.mentions.binary_search(seq) {
                    personal.mentions.insert(at, *seq);
                    if personal.mentions.len() > MENTIONS_KEPT_MAX {
                        personal.mentions.remove(0);
                    }
                }
            });
        }
        Personally::Settings(set) => {
            let row = Settings {
                muted_until: set.muted_until,
                is_pinned: set.pinned,
                is_archived: set.archived,
                marked_unread: if set.marked_unread { position } else { Position(0) },
                position,
            };
            view.put(Key::Settings(user, conversation), Some(Row::Settings(row)));
        }
        Personally::Hidden { seq, undo, countable } => personal(view, user, conversation, |personal| {
            personal.hid = position;
            match (personal.hidden.binary_search_by_key(seq, |(hidden, _)| *hidden), undo) {
                (Err(at), false) => personal.hidden.insert(at, (*seq, *countable)),
                (Ok(at), true) => drop(personal.hidden.remove(at)),
                _ => {}
            }
        }),
    }
}

/// The inboxes of members that a message mentions are to be told.
fn mention(view: &mut View<'_>, meta: &EntryMeta, position: Position, sender: UserId, mentions: &[u64]) {
    for user in mentions.iter().map(|user| UserId(*user)).filter(|user| *user != sender) {
        if view.member(meta.conversation, user).is_some_and(Member::is_active) {
            let mention = Mention { conversation: meta.conversation, seq: meta.seq };
            view.put(Key::Crossing(position, user), Some(Row::Mention(mention)));
        }
    }
}

fn alter(view: &mut View<'_>, id: ConversationId, seq: Seq, change: impl FnOnce(&mut Altered)) {
    let mut row = view.altered(id, seq).cloned().unwrap_or_default();
    change(&mut row);
    view.put(Key::Altered(id, seq), Some(Row::Altered(row)));
}

fn note(view: &mut View<'_>, id: ConversationId, change: impl FnOnce(&mut MoreOfConversation)) {
    view.update(Key::Conversation(id), |row| {
        if let Row::Conversation(row) = row {
            change(&mut row.more);
        }
    });
}

fn personal(view: &mut View<'_>, user: UserId, id: ConversationId, change: impl FnOnce(&mut Personal)) {
    let mut row = view.personal(user, id).cloned().unwrap_or_default();
    change(&mut row);
    view.put(Key::Personal(user, id), Some(Row::Personal(row)));
}

fn count_reaction(reactions: &mut Vec<(Box<str>, u64)>, reaction: &str, is_given: bool) {
    match reactions.iter().position(|(known, _)| &**known == reaction) {
        Some(at) if is_given => reactions[at].1 += 1,
        Some(at) => {
            reactions[at].1 -= 1;
            if reactions[at].1 == 0 {
                reactions.remove(at);
            }
        }
        None if is_given => reactions.push((reaction.into(), 1)),
        None => {}
    }
}
