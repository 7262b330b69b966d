//! What a turn of catching up has to read: the conversations of a lane with news above where it stands, what of each its
//! session may see and is sent, and the marks. Looked up in rows alone, and at once; nothing is read of the log.

use longwire_protocol::{ConversationId, Seq, UserId};

use super::What;
use crate::mutation::Mutation;
use crate::routing::levels::{Levels, mentioning};
use crate::routing::outbox::Session;
use crate::routing::rights::{Tells, tells, tells_marks};
use crate::routing::rows::{Duty, KeptOfConversation, Kind, Member};
use crate::routing::stream::{News, Turn};
use crate::routing::view::{Reader, Rows as _};
use crate::store::Position;

/// Where a lane stands and what it looks for.
#[derive(Debug)]
pub struct Plan {
    pub(super) target: Position,
    pub(super) sent: Position,
    pub(super) candidates: Vec<Candidate>,
    pub(super) marks: Vec<(Position, ConversationId, What)>,
    pub(super) skips: bool,
}

/// A conversation that may have news.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) conversation: ConversationId,
    pub(super) from: Seq,
    pub(super) head: Seq,
    pub(super) head_position: Position,
    pub(super) intervals: Vec<(Seq, Seq)>,
    pub(super) joined: Position,
    /// What of it is reported in place of being sent.
    pub(super) reported: Option<Reported>,
    /// The label of a channel.
    pub(super) label: Option<Box<str>>,
    /// What is still kept.
    pub(super) kept: KeptOfConversation,
}

/// What a conversation is looked at by.
#[derive(Clone, Copy)]
struct Considered<'a> {
    is_express: bool,
    watching: &'a [(ConversationId, Seq)],
    /// Where not everything is sent.
    levels: Option<&'a Levels>,
    /// See [`crate::routing::outbox::Pending::lifted`].
    lifted: &'a [(ConversationId, Position)],
}

/// What of a conversation is reported in place of being sent.
#[derive(Debug)]
pub(super) struct Reported {
    /// All but these,
    pub(super) apart: Vec<Seq>,
    /// and nothing beyond.
    pub(super) until: Position,
}

impl Plan {
    /// Looks up, in the state, what a turn has to read. `skips` says that this is the backlog of a connect in mode
    /// *skip*.
    #[must_use]
    pub fn new(
        rows: &Reader<'_>,
        session: &Session,
        turn: &Turn,
        sent: Position,
        is_express: bool,
        skips: bool,
    ) -> Self {
        let target = turn.target.unwrap_or(rows.state().tail).max(sent);
        let mut plan = Self { target, sent, candidates: Vec::new(), marks: Vec::new(), skips };
        let (watching, levels, lifted) = {
            let mut pending = session.outbox.lock();
            (pending.watching.clone(), pending.withholds.then(|| pending.levels.clone()), pending.lifted())
        };
        let considered = Considered { is_express, watching: &watching, levels: levels.as_ref(), lifted: &lifted };
        let duties = rows.duties(session.user);
        match &turn.news {
            News::Any => {
                let watched = watching.iter().map(|(c, _)| *c).filter(|c| duties.get(*c).is_none());
                let all = duties.iter().map(|(id, _)| id).chain(watched);
                all.for_each(|conversation| plan.consider(rows, session, conversation, considered));
            }
            News::Of(news) => {
                news.iter().for_each(|conversation| plan.consider(rows, session, *conversation, considered));
            }
        }
        if is_express && turn.marks {
            for (conversation, _) in duties.iter() {
                let Some(member) = rows.member(conversation, session.user) else { continue };
                if member.mark_position > sent && member.mark_position <= target && member.is_active() {
                    let own = What::Mark { user: UserId(0), seq: member.mark, joined: Position(0) };
                    plan.marks.push((member.mark_position, conversation, own));
                }
            }
        }
        if turn.marks {
            duties.iter().for_each(|(id, duty)| plan.consider_marks(rows, session.user, id, duty, is_express));
        }
        plan
    }

    /// The marks of others.
    fn consider_marks(&mut self, rows: &Reader<'_>, user: UserId, id: ConversationId, duty: &Duty, is_express: bool) {
        let Some(conversation) = rows.conversation(id) else { return };
        let has_news = conversation.more.marked > self.sent && conversation.kind.is_express() == is_express;
        if !has_news || !tells_marks(conversation) || !rows.member(id, user).is_some_and(Member::is_active) {
            return;
        }
        let joined = if is_express { Position(0) } else { duty.joined };
        let pair = [conversation.pair.0, conversation.pair.1];
        let others: Vec<UserId> = match conversation.kind {
            Kind::Direct => pair.into(),
            _ => rows.members(id).iter().copied().collect(),
        };
        for other in others.into_iter().filter(|other| *other != user) {
            let Some(member) = rows.member(id, other).filter(|member| member.is_active()) else { continue };
            let is_news = member.mark_position > self.sent && member.mark_position <= self.target;
            if is_news && tells(rows, conversation, other, user) == Tells::Marks {
                let what = What::Mark { user: other, seq: member.mark, joined };
                self.marks.push((member.mark_position, id, what));
            }
        }
    }

    /// How many conversations have news.
    #[must_use]
    pub fn conversations(&self) -> usize {
        self.candidates.len()
    }

    fn consider(&mut self, rows: &Reader<'_>, session: &Session, id: ConversationId, considered: Considered<'_>) {
        let Considered { is_express, watching, levels, lifted } = considered;
        let (duty, member) = (rows.duties(session.user).get(id), rows.member(id, session.user));
        let Some(conversation) = rows.conversation(id) else { return };
        if conversation.kind.is_express() != is_express || conversation.head.position <= self.sent {
            return;
        }
        let is_readable = conversation.kind != Kind::Channel || session.grants.load().read.admit(&conversation.label);
        if !is_readable && !Mutation::CatchUpIgnoresPatterns.is_planted() {
            return;
        }
        let (head, head_position) = (conversation.head.seq, conversation.head.position);
        let mut reported = levels
            .and_then(|levels| levels.reported(session, rows, id, is_express))
            .map(|apart| Reported { apart, until: self.target });
        if reported.is_none() {
            let of = |known: ConversationId| known == id || (!known.is_some() && !is_express);
            let until = lifted.iter().filter(|(known, _)| of(*known)).map(|(_, until)| *until).max();
            let until = until.filter(|until| *until > self.sent);
            reported =
                until.map(|until| Reported { apart: mentioning(session, rows, id), until: until.min(self.target) });
        }
        let label = (conversation.kind == Kind::Channel).then(|| conversation.label.clone());
        let watched = watching.iter().find(|(watched, _)| *watched == id).map(|(_, since)| since.next());
        let watched = watched.map(|from| if Mutation::WatchedFromBefore.is_planted() { Seq(1) } else { from });
        let kept = conversation.more.kept;
        let candidate = match (duty, member) {
            (Some(duty), Some(member)) => {
                let intervals = member.intervals.iter().map(|i| (i.from, if i.to.is_some() { i.to } else { head }));
                let mut intervals: Vec<_> = intervals.collect();
                if Mutation::CatchUpIgnoresRights.is_planted() {
                    intervals = vec![(Seq(1), head)];
                }
                // Who left a channel and watches it now: what came before is still owed, and what comes is watched.
                if let Some(from) = watched.filter(|_| duty.closed) {
                    let left = intervals.last().map_or(Seq(0), |(_, to)| *to);
                    intervals.push((from.max(left.next()), head));
                }
                // Within express the order of the log does it; and the `joined` entry itself may have expired.
                let is_announced = is_express && !Mutation::WaitsForExpired.is_planted();
                let joined = if is_announced { Position(0) } else { duty.joined };
                let from = duty.since.next();
                Candidate { conversation: id, from, head, head_position, intervals, joined, reported, label, kept }
            }
            _ => {
                let Some(from) = watched else { return };
                let (intervals, joined) = (vec![(from, head)], Position(0));
                Candidate { conversation: id, from, head, head_position, intervals, joined, reported, label, kept }
            }
        };
        if candidate.intervals.iter().any(|(_, to)| *to >= candidate.from) {
            self.candidates.push(candidate);
        }
    }
}
