//! Levels: how much of a conversation a device is delivered, and what that withholds (SPEC 6.6). What is withheld is
//! kept nowhere: its lane rests behind it, and reads on from the log when it is to be reported.

use std::sync::Arc;

use longwire_protocol::packet::{Level, PublishAck};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, Seq};

use super::change::Change;
use super::draft::{Draft, No, Ticket};
use super::limits::LEVELS_MAX;
use super::ops::Effect;
use super::outbox::{Pending, Session};
use super::rows::Kind;
use super::stream::Urgency;
use super::view::{Reader, Rows as _};
use crate::mutation::Mutation;
use crate::store::Position;

/// The levels that a device set, but for those that deliver everything. Clones share them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Levels(Option<Arc<Vec<(ConversationId, i32)>>>);

impl Levels {
    /// These, by conversation ascending.
    #[must_use]
    pub fn new(list: Vec<(ConversationId, i32)>) -> Self {
        Self((!list.is_empty()).then(|| Arc::new(list)))
    }

    /// All of them.
    #[must_use]
    pub fn list(&self) -> &[(ConversationId, i32)] {
        self.0.as_ref().map_or(&[], |list| list)
    }

    /// The level of a conversation.
    #[must_use]
    pub fn of(&self, id: ConversationId) -> Level {
        let list = self.list();
        let at = list.binary_search_by_key(&id, |(known, _)| *known);
        at.ok().and_then(|at| Level::try_from(list[at].1).ok()).unwrap_or_default()
    }

    /// The same, with another level for one conversation.
    #[must_use]
    pub fn with(&self, id: ConversationId, level: Level) -> Self {
        let mut list = self.list().to_vec();
        match (list.binary_search_by_key(&id, |(known, _)| *known), level) {
            (Ok(at), Level::Full) => drop(list.remove(at)),
            (Ok(at), level) => list[at].1 = level.into(),
            (Err(_), Level::Full) => {}
            (Err(at), level) => list.insert(at, (id, level.into())),
        }
        Self::new(list)
    }
}

impl Draft<'_, '_> {
    pub(super) fn set_level(
        &mut self,
        session: &Arc<Session>,
        ticket: &Ticket,
        id: ConversationId,
        level: i32,
    ) -> Result<PublishAck, No> {
        self.has_part(session, id)?;
        let level = Level::try_from(level).map_err(|_| No(Reason::InvalidArgument, "no such level"))?;
        if self.view.conversation(id).is_some_and(|row| row.kind == Kind::Inbox) {
            return Err(No(Reason::InvalidArgument, "an inbox is delivered whole"));
        }
        let levels = self.view.device(session.device).map(|row| row.levels.clone()).unwrap_or_default();
        if levels.of(id) != level {
            if level != Level::Full && levels.list().len() >= LEVELS_MAX && levels.of(id) == Level::Full {
                return Err(No(Reason::QuotaExceeded, "the device has as many levels as one may have"));
            }
            if level == Level::Full && session.outbox.lock().has_lifted_enough(id) {
                return Err(No(Reason::QuotaExceeded, "what as many other levels withheld is still to be reported"));
            }
            if !Mutation::LevelNotKept.is_planted() {
                self.change(&Change::LevelSet { device: session.device, conversation: id, level: level.into() });
            }
            // Before the answer: what is published once that has come is delivered so.
            self.effects.push(Effect::Levels(Arc::clone(session), levels.with(id, level)));
        }
        Ok(self.answered(ticket, id, false))
    }
}

impl Pending {
    /// The session's device has these levels from here on: what other ones withheld is reported.
    pub fn set_levels(&mut self, levels: Levels, session: &Session) {
        let before = std::mem::replace(&mut self.levels, levels);
        let lifted = before.list().iter().map(|(id, _)| *id).filter(|id| self.levels.of(*id) == Level::Full);
        lifted.collect::<Vec<_>>().into_iter().for_each(|id| self.lift(id));
        self.withholds = session.is_in_background() || !self.levels.list().is_empty();
        self.report();
    }

    /// The session's device is in the background from here on, or is not any more.
    pub fn set_background(&mut self, session: &Session) {
        if !session.is_in_background() {
            self.lift(ConversationId(0));
        }
        self.withholds = session.is_in_background() || !self.levels.list().is_empty();
        self.report();
    }

    /// What is withheld is reported now.
    pub fn report(&mut self) {
        self.express.stir();
        self.bulk.stir();
    }

    /// Of a conversation, or with 0 of all in bulk, everything is sent again: what was not so far is still reported.
    fn lift(&mut self, id: ConversationId) {
        let until = self.express.pushed().max(self.bulk.pushed());
        let lifted = self.lifted.get_or_insert_default();
        lifted.retain(|(known, _)| *known != id);
        lifted.push((id, until));
    }

    /// Whether no other conversation may be added to those of which something is still to be reported.
    fn has_lifted_enough(&mut self, id: ConversationId) -> bool {
        let lifted = self.lifted();
        lifted.len() >= LEVELS_MAX && lifted.iter().all(|(known, _)| *known != id)
    }

    /// Up to where what was withheld of which conversations is still to be reported; 0: of all in bulk.
    pub fn lifted(&mut self) -> Vec<(ConversationId, Position)> {
        let sent = self.express.sent().min(self.bulk.sent());
        let Some(lifted) = &mut self.lifted else { return Vec::new() };
        lifted.retain(|(_, until)| *until > sent);
        if lifted.is_empty() {
            self.lifted = None;
        }
        self.lifted.as_ref().map_or_else(Vec::new, |lifted| lifted.to_vec())
    }

    /// How long what is new in a conversation may wait to be reported in place of being sent; `None`: it is sent.
    #[must_use]
    pub fn withheld(&self, session: &Session, id: ConversationId, is_express: bool) -> Option<Urgency> {
        if self.withholds { self.levels.withheld(session, id, is_express) } else { None }
    }
}

impl Levels {
    fn withheld(&self, session: &Session, id: ConversationId, is_express: bool) -> Option<Urgency> {
        match self.of(id) {
            Level::Nothing => Some(Urgency::WithOthers),
            Level::HeadsOnly => Some(Urgency::Soon),
            Level::Full if session.is_in_background() && !is_express => Some(Urgency::Soon),
            Level::Full => None,
        }
    }

    /// Which entries of a conversation are reported in place of being sent: all but these. `None`: none are.
    #[must_use]
    pub fn reported(
        &self,
        session: &Session,
        rows: &Reader<'_>,
        id: ConversationId,
        is_express: bool,
    ) -> Option<Vec<Seq>> {
        self.withheld(session, id, is_express)?;
        Some(if self.of(id) == Level::Full { mentioning(session, rows, id) } else { Vec::new() })
    }
}

/// The messages of a conversation that mention the session's user.
#[must_use]
pub fn mentioning(session: &Session, rows: &Reader<'_>, id: ConversationId) -> Vec<Seq> {
    let personal = rows.personal(session.user, id).filter(|_| !Mutation::MentionsWithheld.is_planted());
    personal.map_or_else(Vec::new, |personal| personal.mentions.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_kept_in_order_and_only_where_they_say_something() {
        let id = ConversationId;
        let mut levels = Levels::default();
        for (conversation, level) in
            [(9, Level::Nothing), (3, Level::HeadsOnly), (5, Level::Full), (9, Level::HeadsOnly)]
        {
            levels = levels.with(id(conversation), level);
        }
        let both = [(id(3), Level::HeadsOnly.into()), (id(9), Level::HeadsOnly.into())];
        assert_eq!(levels.list(), both);
        assert_eq!([3, 5, 9].map(|n| levels.of(id(n))), [Level::HeadsOnly, Level::Full, Level::HeadsOnly]);
        let none = levels.with(id(3), Level::Full).with(id(9), Level::Full);
        assert_eq!(none, Levels::default());
    }

    /// R6.6-1: what is still to be reported of levels that were taken back is bounded, whoever takes back how many.
    #[test]
    fn levels_that_were_taken_back_are_bounded_until_they_are_reported() {
        let outbox = crate::routing::outbox::Outbox::default();
        let mut pending = outbox.lock();
        let until = Position(9);
        pending.lifted = Some(Box::new((1..=LEVELS_MAX as u64).map(|id| (ConversationId(id), until)).collect()));
        let other = ConversationId(LEVELS_MAX as u64 + 1);
        assert!(pending.has_lifted_enough(other), "one too many");
        assert!(!pending.has_lifted_enough(ConversationId(5)), "it takes the place of the one before");
        pending.express.start(until);
        assert!(pending.has_lifted_enough(other), "bulk has not sent it");
        pending.bulk.start(until);
        assert!(!pending.has_lifted_enough(other), "all of it was reported");
    }
}
