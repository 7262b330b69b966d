//! When which device is looked at: those whose conversations have news, once nobody acked them for a while; and all of
//! them after a start. One entry for each device with something open, so memory follows the devices that have themselves
//! told, and time is that of who drives it.

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::RandomState;
use longwire_protocol::{ConversationId, DeviceId, UserId};

use super::bell::Rung;
use super::look::{Look, Looked, News, Rules, heard, look};
use super::{Push, Told};
use crate::routing::reads::{Miss, Reads};
use crate::routing::registry::Registry;
use crate::routing::rows::Kind;
use crate::routing::view::{Reader, Rows as _};

/// A device and its user.
pub type Who = (UserId, DeviceId);

/// See the module.
#[derive(Debug)]
pub struct Ringer {
    rules: Rules,
    waiting: HashMap<Who, Waiting, RandomState>,
    due: BTreeSet<(u64, Who)>,
}

#[derive(Debug)]
struct Waiting {
    /// Where there may be news.
    news: News,
    /// When it is looked at, or, while it is under way, again.
    due_ms: u64,
    is_under_way: bool,
    /// How often in a row it could not be told.
    tries: u32,
}

/// A device that is to be looked at now.
#[derive(Debug)]
pub struct Errand {
    /// Which.
    pub who: Who,
    /// Where there may be news.
    pub news: News,
    /// How often in a row it could not be told.
    pub tries: u32,
}

/// What a device is to be told now, if anything.
#[derive(Debug)]
pub enum Next {
    /// It has itself told no more, or the operator took back with what it said so.
    Nowhere,
    /// Nothing for so many milliseconds: it is night.
    Quiet(u64),
    /// What a look found, and where it has itself told.
    Look(Push, Box<Look>),
}

impl Ringer {
    /// A ringer that has heard nothing yet.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self { rules, waiting: HashMap::default(), due: BTreeSet::new() }
    }

    /// After a start: every device may have something to be told.
    pub fn look_everywhere(&mut self, reads: Reads<'_>, now_ms: u64) -> Result<(), Miss> {
        let all: Vec<Who> = reads.rows(|rows| rows.state().pushes().iter().copied().collect())?;
        all.into_iter().for_each(|who| self.put(who, &News::Any, now_ms));
        Ok(())
    }

    /// Takes in what was left at the bell.
    ///
    /// # Errors
    /// When members cannot be read: then every device is looked at.
    pub fn hear(&mut self, rung: &Rung, reads: Reads<'_>, now_ms: u64) -> Result<(), Miss> {
        rung.set.iter().for_each(|who| self.put(*who, &News::Any, now_ms));
        let listeners = if rung.is_everywhere {
            Err(Miss::Disk)
        } else {
            rung.conversations.iter().try_fold(Vec::new(), |mut listeners, id| {
                listeners.extend(reads.rows(|rows| listeners_of(rows, *id))?.into_iter().map(|who| (who, *id)));
                Ok(listeners)
            })
        };
        let due_ms = now_ms + self.rules.after_ms;
        match listeners {
            Ok(listeners) => {
                for (who, conversation) in listeners {
                    self.put(who, &News::Of(BTreeSet::from([conversation])), due_ms);
                }
                Ok(())
            }
            Err(miss) => {
                self.look_everywhere(reads, due_ms)?;
                if rung.is_everywhere { Ok(()) } else { Err(miss) }
            }
        }
    }

    /// There may be news for a device, to be looked at then.
    fn put(&mut self, who: Who, news: &News, due_ms: u64) {
        let waiting = self.waiting.entry(who).or_insert(Waiting {
            news: News::NONE,
            due_ms: u64::MAX,
            is_under_way: false,
            tries: 0,
        });
        match news {
            News::Any => waiting.news = News::Any,
            News::Of(listed) => listed.iter().for_each(|conversation| waiting.news.add(*conversation)),
        }
        // Who could not be told is not tried sooner for news.
        let may_hurry = waiting.tries == 0 || waiting.due_ms == u64::MAX;
        if due_ms < waiting.due_ms && may_hurry {
            let before = std::mem::replace(&mut waiting.due_ms, due_ms);
            if !waiting.is_under_way {
                self.due.remove(&(before, who));
                self.due.insert((due_ms, who));
            }
        }
    }

    /// The devices whose time has come, at most so many; each is under way until [`Ringer::finish`].
    pub fn take_due(&mut self, now_ms: u64, most: usize) -> Vec<Errand> {
        let due: Vec<_> = self.due.iter().take_while(|(at, _)| *at <= now_ms).take(most).copied().collect();
        let take = |(at, who): (u64, Who)| {
            self.due.remove(&(at, who));
            let waiting = self.waiting.get_mut(&who)?;
            waiting.is_under_way = true;
            waiting.due_ms = u64::MAX;
            Some(Errand { who, news: std::mem::replace(&mut waiting.news, News::NONE), tries: waiting.tries })
        };
        due.into_iter().filter_map(take).collect()
    }

    /// A device was looked at. There is more to be told then, with `is_failed` because it could not be told.
    pub fn finish(&mut self, who: Who, again: Option<(u64, News)>, is_failed: bool) {
        let Some(waiting) = self.waiting.get_mut(&who) else { return };
        waiting.is_under_way = false;
        waiting.tries = if is_failed { waiting.tries.saturating_add(1) } else { 0 };
        match again {
            Some((due_ms, news)) => {
                // What came meanwhile waits for the provider too.
                let came = std::mem::replace(&mut waiting.due_ms, u64::MAX);
                self.put(who, &news, if is_failed { due_ms } else { due_ms.min(came) });
            }
            None if waiting.due_ms < u64::MAX => drop(self.due.insert((waiting.due_ms, who))),
            None => drop(self.waiting.remove(&who)),
        }
    }

    /// How many devices have something open.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// When the next device is due.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| *at)
    }
}

/// Looks what a device is to be told. `told` is what it was told since the row was written.
///
/// # Errors
/// When the store cannot be read.
pub fn next(
    reads: Reads<'_>,
    registry: &Registry,
    rules: &Rules,
    (user, device): Who,
    (news, told): (&News, Option<&Told>),
    unix_ms: u64,
) -> Result<Next, Miss> {
    let found = reads.rows(|rows| {
        let is_cut_off = rows.is_cut_off(user, device);
        let (push, kept) = (rows.push(user, device).filter(|_| !is_cut_off), rows.told(user, device));
        let heard = heard(rows, registry, user, device);
        push.map(|push| (push.clone(), kept.cloned().unwrap_or_default(), heard))
    })?;
    let Some((push, kept, heard)) = found else { return Ok(Next::Nowhere) };
    if let Some(quiet_ms) = push.quiet_for(unix_ms) {
        return Ok(Next::Quiet(quiet_ms));
    }
    let looked = Looked { user, device, push: &push, heard, news, rules };
    let look = look(reads, &looked, told.unwrap_or(&kept))?;
    Ok(Next::Look(push, Box::new(look)))
}

/// The devices that have themselves told and whose users are in a conversation. Costs a walk over the fewer.
fn listeners_of(rows: &Reader<'_>, id: ConversationId) -> Vec<Who> {
    let state = rows.state();
    let Some(conversation) = rows.conversation(id) else { return Vec::new() };
    let (a, b) = conversation.pair;
    match conversation.kind {
        Kind::Direct if a == b => Vec::new(),
        Kind::Direct => state.pushes_of(a).chain(state.pushes_of(b)).collect(),
        Kind::Group => {
            let members = rows.members(id);
            if members.len() <= state.pushes().len() {
                members.iter().flat_map(|user| state.pushes_of(*user)).collect()
            } else {
                state.pushes().iter().filter(|(user, _)| members.contains(user)).copied().collect()
            }
        }
        Kind::Channel | Kind::Inbox => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { after_ms: 5_000, collapse_ms: 30_000, expire_ms: 86_400_000 };
    const ADAS: Who = (UserId(1), DeviceId(1));
    const BENS: Who = (UserId(2), DeviceId(2));

    fn of(ids: &[u64]) -> News {
        News::Of(ids.iter().copied().map(ConversationId).collect())
    }

    /// What comes while a device is told waits until that is over, and is not forgotten.
    #[test]
    fn a_device_is_under_way_once() {
        let mut ringer = Ringer::new(RULES);
        ringer.put(ADAS, &of(&[1]), 100);
        ringer.put(ADAS, &of(&[2]), 200);
        ringer.put(BENS, &of(&[1]), 150);
        assert!(ringer.take_due(99, 10).is_empty());
        let due = ringer.take_due(150, 1);
        assert_eq!((due[0].who, &due[0].news), (ADAS, &of(&[1, 2])), "all there is, at the earlier time");
        ringer.put(ADAS, &of(&[3]), 120);
        assert_eq!(ringer.take_due(1_000, 10).iter().map(|errand| errand.who).collect::<Vec<_>>(), [BENS]);
        ringer.finish(BENS, None, false);
        ringer.finish(ADAS, None, false);
        let again = ringer.take_due(120, 10);
        assert_eq!((again[0].who, &again[0].news), (ADAS, &of(&[3])));
        ringer.finish(ADAS, None, false);
        assert_eq!((ringer.waiting(), ringer.next_due()), (0, None), "and nothing is kept");
    }

    /// A provider that is asked to be left alone is, whatever comes.
    #[test]
    fn who_could_not_be_told_is_not_tried_sooner_for_news() {
        let mut ringer = Ringer::new(RULES);
        ringer.put(ADAS, &of(&[1]), 100);
        let errand = ringer.take_due(100, 1).remove(0);
        ringer.put(ADAS, &of(&[2]), 200);
        ringer.finish(ADAS, Some((60_000, errand.news)), true);
        ringer.put(ADAS, &of(&[3]), 300);
        assert_eq!(ringer.next_due(), Some(60_000));
        let errand = ringer.take_due(60_000, 1).remove(0);
        assert_eq!((errand.news, errand.tries), (of(&[1, 2, 3]), 1));
    }
}
