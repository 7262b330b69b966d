//! What happened, as the acks say, and what must follow from it: a naive model that knows nothing of how the broker does
//! it. One conversation is a list of deeds by seq; everything else is worked out by walking along it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Users are numbered from 0.
pub(super) type UserNo = usize;

/// What somebody did, that has a seq.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Message {
        text: String,
        mentions: Vec<UserNo>,
        expires: bool,
    },
    Edit {
        seq: u64,
        text: String,
    },
    Recall {
        seq: u64,
    },
    React {
        seq: u64,
        reaction: String,
    },
    Comes(UserNo),
    Goes(UserNo),
    /// A picture, a label: nothing that the model looks at.
    Says,
}

/// A deed and its author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) by: UserNo,
    pub(super) deed: Deed,
}

/// What whoever comes into a group may read of what was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Past {
    Nothing,
    Everything,
    Last(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Direct(UserNo, UserNo),
    Group(Past),
    Channel,
}

/// One conversation.
#[derive(Clone, Debug)]
pub(super) struct Talk {
    pub(super) kind: Kind,
    pub(super) deeds: BTreeMap<u64, Done>,
    /// Who joined a channel, and what its head was then.
    pub(super) readers: HashMap<UserNo, u64>,
    /// How far each has said to have read.
    marks: HashMap<UserNo, u64>,
    pub(super) hidden: HashMap<UserNo, BTreeSet<u64>>,
    pub(super) settings: HashMap<UserNo, Shown>,
}

/// How a user has a conversation shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) pinned: bool,
    pub(super) marked_unread: bool,
}

/// A message as it is to be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) by: UserNo,
    pub(super) text: String,
    pub(super) edited: bool,
    /// How many gave each reaction.
    pub(super) reactions: BTreeMap<String, u64>,
}

/// What is unread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unread {
    pub(super) messages: u64,
    pub(super) mentions: u64,
}

/// The seqs from and to which a user may read, both included.
pub(super) type Interval = (u64, u64);

impl Talk {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            deeds: BTreeMap::new(),
            readers: HashMap::new(),
            marks: HashMap::new(),
            hidden: HashMap::new(),
            settings: HashMap::new(),
        }
    }

    pub(super) fn head(&self) -> u64 {
        self.deeds.last_key_value().map_or(0, |(seq, _)| *seq)
    }

    /// Whether this user is in it after that seq.
    pub(super) fn has(&self, user: UserNo, seq: u64) -> bool {
        match self.kind {
            Kind::Direct(one, other) => user == one || user == other,
            Kind::Channel => self.readers.contains_key(&user),
            Kind::Group(_) => self
                .deeds
                .range(..=seq)
                .rev()
                .find_map(|(_, done)| match done.deed {
                    Deed::Comes(who) if who == user => Some(true),
                    Deed::Goes(who) if who == user => Some(false),
                    _ => None,
                })
                .unwrap_or(false),
        }
    }

    /// What this user may read, in rising order.
    pub(super) fn intervals(&self, user: UserNo) -> Vec<Interval> {
        let Kind::Group(past) = self.kind else {
            let may = matches!(self.kind, Kind::Channel) || self.has(user, u64::MAX);
            return if may { vec![(1, u64::MAX)] } else { Vec::new() };
        };
        let mut intervals: Vec<Interval> = Vec::new();
        for (seq, done) in &self.deeds {
            match done.deed {
                Deed::Comes(who) if who == user => {
                    let from = match past {
                        Past::Nothing => *seq,
                        Past::Everything => 1,
                        Past::Last(entries) => seq.saturating_sub(entries).max(1),
                    };
                    while intervals.last().is_some_and(|(_, to)| *to >= from) {
                        intervals.pop();
                    }
                    let from = intervals.last().map_or(from, |(_, to)| from.max(to + 1));
                    intervals.push((from, u64::MAX));
                }
                Deed::Goes(who) if who == user => {
                    if let Some(last) = intervals.last_mut() {
                        last.1 = *seq;
                    }
                }
                _ => {}
            }
        }
        intervals
    }

    /// Up to where what there is does not count as unread for this user: it was there before.
    pub(super) fn base(&self, user: UserNo) -> u64 {
        match self.kind {
            Kind::Direct(..) => 0,
            Kind::Channel => self.readers.get(&user).copied().unwrap_or_default(),
            Kind::Group(_) => {
                let last = self.deeds.iter().rev().find(|(_, done)| done.deed == Deed::Comes(user));
                last.map_or(0, |(seq, _)| *seq)
            }
        }
    }

    pub(super) fn set_mark(&mut self, user: UserNo, seq: u64) {
        let mark = self.marks.entry(user).or_default();
        *mark = seq.max(*mark);
        self.settings.entry(user).or_default().marked_unread = false;
    }

    /// How far this user has read: what was said last, or marked.
    pub(super) fn mark(&self, user: UserNo) -> u64 {
        let said = |done: &Done| done.by == user && matches!(done.deed, Deed::Message { .. });
        let own = self.deeds.iter().rev().find(|(_, done)| said(done)).map_or(0, |(seq, _)| *seq);
        own.max(self.marks.get(&user).copied().unwrap_or_default())
    }

    /// The messages that nobody is shown any more.
    fn gone(&self) -> BTreeSet<u64> {
        let gone = self.deeds.iter().filter_map(|(seq, done)| match done.deed {
            Deed::Message { expires: true, .. } => Some(*seq),
            Deed::Recall { seq } => Some(seq),
            _ => None,
        });
        gone.collect()
    }

    /// The messages that this user is shown once all that expires has expired.
    pub(super) fn lines(&self, user: UserNo) -> BTreeMap<u64, Line> {
        let (intervals, gone, nothing) = (self.intervals(user), self.gone(), BTreeSet::new());
        let hidden = self.hidden.get(&user).unwrap_or(&nothing);
        let mut lines: BTreeMap<u64, Line> = BTreeMap::new();
        let mut reacted: BTreeMap<(u64, UserNo), String> = BTreeMap::new();
        for (seq, done) in &self.deeds {
            match &done.deed {
                Deed::Message { text, .. } => {
                    let may = intervals.iter().any(|(from, to)| (from..=to).contains(&seq));
                    if may && !gone.contains(seq) && !hidden.contains(seq) {
                        lines.insert(*seq, Line { by: done.by, text: text.clone(), ..Line::default() });
                    }
                }
                Deed::Edit { seq: about, text } => {
                    if let Some(line) = lines.get_mut(about) {
                        (line.text, line.edited) = (text.clone(), true);
                    }
                }
                Deed::React { seq: about, reaction } => {
                    reacted.insert((*about, done.by), reaction.clone());
                }
                _ => {}
            }
        }
        for ((seq, _), reaction) in reacted {
            if let (Some(line), false) = (lines.get_mut(&seq), reaction.is_empty()) {
                *line.reactions.entry(reaction).or_default() += 1;
            }
        }
        lines
    }

    pub(super) fn unread(&self, user: UserNo) -> Unread {
        let above = self.mark(user).max(self.base(user));
        let mut unread = Unread::default();
        // Nobody edits mentions here, so an edited message mentions nobody any more.
        let edited = self.deeds.values().filter_map(|done| match done.deed {
            Deed::Edit { seq, .. } => Some(seq),
            _ => None,
        });
        let edited: BTreeSet<u64> = edited.collect();
        for seq in self.lines(user).range(above + 1..).map(|(seq, _)| seq) {
            unread.messages += 1;
            if edited.contains(seq) {
                continue;
            }
            if let Some(Done { deed: Deed::Message { mentions, .. }, .. }) = self.deeds.get(seq) {
                unread.mentions += u64::from(mentions.contains(&user));
            }
        }
        unread
    }

    /// What is wrong with the deeds themselves: a hole, something done by somebody who may not, or to what was not there.
    pub(super) fn fault(&self) -> Option<String> {
        let mut recalled = BTreeSet::new();
        for ((seq, done), expected) in self.deeds.iter().zip(1..) {
            if *seq != expected {
                return Some(format!("seq {expected} was acked to nobody: the next one is {seq}"));
            }
            let about = match &done.deed {
                Deed::Edit { seq, .. } | Deed::Recall { seq } | Deed::React { seq, .. } => Some(*seq),
                _ => None,
            };
            let speaks = about.is_some() || matches!(done.deed, Deed::Message { .. });
            if speaks && !matches!(self.kind, Kind::Channel) && !self.has(done.by, *seq) {
                return Some(format!("seq {seq}, {:?}, is of user {}, who was not in it", done.deed, done.by));
            }
            if let Some(about) = about {
                let message = self.deeds.get(&about).filter(|of| matches!(of.deed, Deed::Message { .. }));
                if message.is_none() || about >= *seq || recalled.contains(&about) {
                    return Some(format!("seq {seq}, {:?}, is about no message that was there", done.deed));
                }
                if matches!(done.deed, Deed::Edit { .. }) && message.is_some_and(|of| of.by != done.by) {
                    return Some(format!("seq {seq}: user {} edited what another one said", done.by));
                }
            }
            if let Deed::Recall { seq } = done.deed {
                recalled.insert(seq);
            }
        }
        None
    }
}

/// All conversations, by their ids.
#[derive(Debug, Default)]
pub(super) struct Chronicle {
    pub(super) talks: BTreeMap<u64, Talk>,
}

impl Chronicle {
    /// Writes a deed down; what is wrong with its seq, if something is.
    pub(super) fn note(&mut self, conversation: u64, seq: u64, by: UserNo, deed: Deed) -> Result<(), String> {
        let talk =
            self.talks.get_mut(&conversation).ok_or_else(|| format!("conversation {conversation} is unknown"))?;
        match talk.deeds.insert(seq, Done { by, deed }) {
            None => Ok(()),
            Some(earlier) => {
                Err(format!("conversation {conversation}: seq {seq} was acked twice: to {earlier:?} as well"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(past: Past, deeds: &[(UserNo, Deed)]) -> Talk {
        let mut talk = Talk::new(Kind::Group(past));
        for ((by, deed), seq) in deeds.iter().zip(1..) {
            talk.deeds.insert(seq, Done { by: *by, deed: deed.clone() });
        }
        talk
    }

    fn says(text: &str) -> Deed {
        Deed::Message { text: text.to_owned(), mentions: Vec::new(), expires: false }
    }

    #[test]
    fn whoever_was_away_in_between_reads_what_the_group_lets_it() {
        use Deed::{Comes, Goes};
        let deeds = [(0, Comes(0)), (0, Comes(1)), (0, says("a")), (0, Goes(1)), (0, says("b")), (0, Comes(1))];
        assert_eq!(group(Past::Nothing, &deeds).intervals(1), [(2, 4), (6, u64::MAX)]);
        assert_eq!(group(Past::Everything, &deeds).intervals(1), [(1, u64::MAX)]);
        assert_eq!(group(Past::Last(1), &deeds).intervals(1), [(1, 4), (5, u64::MAX)]);
        assert_eq!(group(Past::Nothing, &deeds).base(1), 6);
    }

    #[test]
    fn a_line_is_as_the_last_edit_and_counts_until_it_is_recalled() {
        use Deed::{Comes, Edit, React, Recall};
        let react = |reaction: &str| React { seq: 3, reaction: reaction.to_owned() };
        let mut deeds = vec![(0, Comes(0)), (0, Comes(1)), (0, says("a")), (1, react("x")), (0, react("x"))];
        deeds.push((0, Edit { seq: 3, text: "b".to_owned() }));
        let talk = group(Past::Nothing, &deeds);
        let reactions = BTreeMap::from([("x".to_owned(), 2)]);
        let line = Line { by: 0, text: "b".to_owned(), edited: true, reactions };
        assert_eq!(talk.lines(1), BTreeMap::from([(3, line)]));
        assert_eq!((talk.unread(1).messages, talk.unread(0).messages), (1, 0));
        deeds.push((0, Recall { seq: 3 }));
        let talk = group(Past::Nothing, &deeds);
        assert_eq!((talk.lines(1).len(), talk.unread(1).messages, talk.fault()), (0, 0, None));
    }

    #[test]
    fn what_cannot_have_happened_is_a_fault() {
        use Deed::{Comes, Goes};
        let gone = [(0, Comes(0)), (0, Comes(1)), (0, Goes(1)), (1, says("still here"))];
        assert!(group(Past::Nothing, &gone).fault().is_some());
        let mut hole = group(Past::Nothing, &[(0, Comes(0)), (0, says("a"))]);
        hole.deeds.remove(&1);
        assert!(hole.fault().is_some());
        let edits = [(0, Comes(0)), (0, Comes(1)), (0, says("a")), (1, Deed::Edit { seq: 3, text: "b".to_owned() })];
        assert!(group(Past::Nothing, &edits).fault().is_some());
        let mut chronicle = Chronicle::default();
        chronicle.talks.insert(7, Talk::new(Kind::Channel));
        assert!(chronicle.note(7, 1, 0, says("a")).is_ok() && chronicle.note(7, 1, 1, says("b")).is_err());
    }
}
