//! How much of something there may be in a stretch of time: what users make, since one publish can make a thousand members
//! and as many users, and the commit thread is everybody's; and, where an operator wants it, how many publishes there are of
//! a connection, of a user, and in a conversation. Pure: whoever asks says what time it is.

use std::collections::HashMap;
use std::hash::Hash;

use longwire_protocol::limits::GROUP_USERS_MAX;
use longwire_protocol::packet::{self, publish::Action};
use longwire_protocol::{ConversationId, Millis, UserId};

use super::limits::{MAKES_MAX, MAKES_PER_SECOND, RATE_AHEAD_SECONDS, READS_AHEAD_SECONDS};

/// How often those are forgotten who may do everything again.
const SWEEP_MS: u64 = 10_000;
/// The longest wait for what was done already.
const OWES_MS_MAX: u64 = 10_000;

/// So many a second, and how many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    per_second: u32,
    /// The time that one of them takes of what there may be.
    each_ns: u64,
    /// How far ahead of the time one may be.
    ahead_ns: u64,
}

fn nanos(time: Millis) -> u64 {
    time.0.saturating_mul(1_000_000)
}

impl Rate {
    /// At least one a second, at most a million.
    #[must_use]
    pub const fn new(per_second: u32, at_once: u32) -> Self {
        let each_ns = 1_000_000_000 / per_second as u64;
        Self { per_second, each_ns, ahead_ns: at_once as u64 * each_ns }
    }

    /// So many publishes a second, and as many at once as in [`RATE_AHEAD_SECONDS`].
    #[must_use]
    pub const fn of_publishes(per_second: u32) -> Self {
        Self::new(per_second, per_second.saturating_mul(RATE_AHEAD_SECONDS))
    }

    /// So many looks a second, and as many at once as in [`READS_AHEAD_SECONDS`] (SPEC R8-15).
    #[must_use]
    pub const fn of_reads(per_second: u32) -> Self {
        Self::new(per_second, per_second.saturating_mul(READS_AHEAD_SECONDS))
    }

    /// How many a second.
    #[must_use]
    pub const fn per_second(self) -> u64 {
        self.per_second as u64
    }

    /// When so many more will be paid for, in nanoseconds, where all before them are at `paid_at`.
    ///
    /// # Errors
    /// They are more than there may be now: after so many milliseconds they may.
    fn pays(self, paid_at: u64, many: u32, now: Millis) -> Result<u64, u32> {
        let now = nanos(now);
        let paid_at = paid_at.max(now).saturating_add(u64::from(many) * self.each_ns);
        match (paid_at - now).checked_sub(self.ahead_ns) {
            None | Some(0) => Ok(paid_at),
            Some(over) => Err(u32::try_from(over.div_ceil(1_000_000)).unwrap_or(u32::MAX)),
        }
    }
}

/// What publishes may come, and what may be read; `None`: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// From one connection.
    pub connection: Option<Rate>,
    /// From all devices of a user.
    pub user: Option<Rate>,
    /// Into one conversation, from whoever may know of it.
    pub conversation: Option<Rate>,
    /// What is looked at for the requests of a user, which is no publish: rows of state, and entries.
    pub reads: Option<Rate>,
}

/// The buckets of one rate. Holds only those of whom something is not paid for by time.
#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    /// When all of it will be paid for, in nanoseconds.
    paid_at: HashMap<K, u64>,
    swept: Millis,
}

impl<K: Eq + Hash + Copy> Buckets<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, paid_at: HashMap::new(), swept: Millis(0) }
    }

    fn pays(&mut self, of: K, many: u32, now: Millis) -> Result<u64, u32> {
        self.sweep(now);
        self.rate.pays(self.paid_at.get(&of).copied().unwrap_or_default(), many, now)
    }

    fn sweep(&mut self, now: Millis) {
        if now.since(self.swept) >= SWEEP_MS {
            self.swept = now;
            self.paid_at.retain(|_, paid_at| *paid_at > nanos(now));
        }
    }

    /// Charges what is done already, however much it is; nobody waits for longer than [`OWES_MS_MAX`] for it.
    fn owes(&mut self, of: K, many: u32, now: Millis) {
        self.sweep(now);
        let most = nanos(now.after(OWES_MS_MAX)).saturating_add(self.rate.ahead_ns);
        let paid_at = self.paid_at.entry(of).or_default();
        let from = (*paid_at).max(nanos(now));
        *paid_at = from.saturating_add(u64::from(many) * self.rate.each_ns).min(most);
    }

    /// When one is no further ahead of the time than one may be, if that is not now.
    fn waits(&self, of: K, now: Millis) -> Option<Millis> {
        let within_ns = self.paid_at.get(&of)?.saturating_sub(self.rate.ahead_ns);
        Some(Millis(within_ns.div_ceil(1_000_000))).filter(|at| *at > now)
    }
}

/// What a publish is refused for: it comes too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooEarly {
    /// Of what there is too much.
    pub of: Bucket,
    /// After so many milliseconds there is not.
    pub wait_ms: u32,
}

/// What has a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bucket {
    /// What a user makes.
    Makes,
    /// Publishes of a connection.
    Connection,
    /// Publishes of a user.
    User,
    /// Publishes into a conversation.
    Conversation,
}

impl Bucket {
    /// What is too much, for who is refused.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Makes => "the user makes too many conversations and members at once",
            Self::Connection => "the connection publishes too much",
            Self::User => "the user publishes too much",
            Self::Conversation => "too much is published in the conversation",
        }
    }
}

/// Who publishes what, as far as there may be too much of it.
#[derive(Debug)]
pub struct Charge<'a> {
    /// Who.
    pub user: UserId,
    /// Where, if it is somewhere that the user may know of.
    pub conversation: Option<ConversationId>,
    /// See [`makes`].
    pub makes: u32,
    /// When all that the connection published will be paid for, in nanoseconds; raised.
    pub connection_paid_at: &'a mut u64,
}

/// See the module.
#[derive(Debug)]
pub struct Allowance {
    makes: Buckets<UserId>,
    connection: Option<Rate>,
    users: Option<Buckets<UserId>>,
    conversations: Option<Buckets<ConversationId>>,
    reads: Option<Buckets<UserId>>,
}

impl Default for Allowance {
    fn default() -> Self {
        Self::new(Rates::default())
    }
}

/// How many conversations and users a publish makes, names or mentions: what it is charged with. Nothing for a group of more users
/// than may be named at once: that one is refused for good, and makes nothing.
#[must_use]
pub fn makes(publish: &packet::Publish) -> u32 {
    let mentions = publish.beside.as_ref().map_or(0, |beside| beside.mentions.len());
    match &publish.action {
        None | Some(Action::Edit(_)) => u32::try_from(mentions).unwrap_or(u32::MAX),
        Some(Action::CreateGroup(create)) if create.users.len() > GROUP_USERS_MAX => 0,
        Some(Action::CreateGroup(create)) => 1 + u32::try_from(create.users.len()).unwrap_or(u32::MAX - 1),
        Some(
            Action::OpenDirect(_)
            | Action::OpenChannel(_)
            | Action::SetRole(_)
            | Action::Join(_)
            | Action::Ban(_)
            | Action::SetLevel(_)
            | Action::ShowPresence(_)
            | Action::HideMarks(_)
            | Action::SetProfile(_)
            | Action::SetContact(_)
            | Action::Block(_)
            | Action::NameDevice(_)
            | Action::RevokeDevice(_),
        ) => 1,
        _ => 0,
    }
}

impl Allowance {
    /// With these rates of publishes.
    #[must_use]
    pub fn new(rates: Rates) -> Self {
        Self {
            makes: Buckets::new(Rate::new(MAKES_PER_SECOND, MAKES_MAX)),
            connection: rates.connection,
            users: rates.user.map(Buckets::new),
            conversations: rates.conversation.map(Buckets::new),
            reads: rates.reads.map(Buckets::new),
        }
    }

    /// When the next request of a user may be looked at, if that is not now.
    #[must_use]
    pub fn reads_at(&self, user: UserId, now: Millis) -> Option<Millis> {
        self.reads.as_ref()?.waits(user, now)
    }

    /// So much was looked at for a request of a user.
    pub fn has_read(&mut self, user: UserId, looks: u32, now: Millis) {
        if let Some(reads) = &mut self.reads {
            reads.owes(user, looks, now);
        }
    }

    /// Charges a publish to all that it counts for.
    ///
    /// # Errors
    /// There is too much of one of them now. Nothing is charged.
    pub fn charge(&mut self, charge: Charge<'_>, now: Millis) -> Result<(), TooEarly> {
        let Charge { user, conversation, makes, connection_paid_at } = charge;
        let too_early = |of| move |wait_ms| TooEarly { of, wait_ms };
        let made = match makes {
            0 => None,
            makes => Some(self.makes.pays(user, makes, now).map_err(too_early(Bucket::Makes))?),
        };
        let of_connection = self.connection.map(|rate| rate.pays(*connection_paid_at, 1, now)).transpose();
        let of_connection = of_connection.map_err(too_early(Bucket::Connection))?;
        let of_user = self.users.as_mut().map(|users| users.pays(user, 1, now)).transpose();
        let of_user = of_user.map_err(too_early(Bucket::User))?;
        if let (Some(buckets), Some(conversation)) = (&mut self.conversations, conversation) {
            let paid_at = buckets.pays(conversation, 1, now).map_err(too_early(Bucket::Conversation))?;
            buckets.paid_at.insert(conversation, paid_at);
        }
        if let Some(paid_at) = made {
            self.makes.paid_at.insert(user, paid_at);
        }
        if let Some(paid_at) = of_connection {
            *connection_paid_at = paid_at;
        }
        if let (Some(users), Some(paid_at)) = (&mut self.users, of_user) {
            users.paid_at.insert(user, paid_at);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: UserId = UserId(1);

    impl Allowance {
        /// Charges a user with what it makes; how long it has to wait.
        fn make(&mut self, user: UserId, makes: u32, now: Millis) -> Result<(), u32> {
            let charge = Charge { user, conversation: None, makes, connection_paid_at: &mut 0 };
            self.charge(charge, now).map_err(|too_early| too_early.wait_ms)
        }
    }

    #[test]
    fn what_is_made_at_once_is_bounded_and_comes_back_with_time() {
        let (mut allowance, now) = (Allowance::default(), Millis(5_000));
        for _ in 0..MAKES_MAX / 1_000 {
            allowance.make(ANN, 1_000, now).expect("at once");
        }
        assert_eq!(allowance.make(ANN, 1, now), Err(10));
        assert_eq!(allowance.make(ANN, 1_000, now), Err(10_000));
        allowance.make(UserId(2), MAKES_MAX, now).expect("another user's is its own");
        let later = now.after(10_000);
        allowance.make(ANN, 1_000, later).expect("it waited as long as it was told");
        assert_eq!(allowance.make(ANN, 1, later), Err(10), "what was refused was not charged");
    }

    /// SPEC R5.3-5: each has its own rate, and what is refused for one of them is charged to none.
    #[test]
    fn publishes_are_bounded_for_each_connection_user_and_conversation() {
        let rates = Rates {
            connection: Some(Rate::of_publishes(2)),
            user: Some(Rate::of_publishes(3)),
            conversation: Some(Rate::of_publishes(4)),
            ..Rates::default()
        };
        let (mut allowance, now) = (Allowance::new(rates), Millis(1_000));
        let mut publish = |user, conversation, connection_paid_at: &mut u64, now| {
            let conversation = Some(ConversationId(conversation));
            allowance.charge(Charge { user, conversation, makes: 0, connection_paid_at }, now)
        };
        let (mut first, mut second, mut third) = (0, 0, 0);
        let too_early = |of, wait_ms| Err(TooEarly { of, wait_ms });
        for _ in 0..20 {
            assert_eq!(publish(ANN, 7, &mut first, now), Ok(()));
        }
        assert_eq!(publish(ANN, 7, &mut first, now), too_early(Bucket::Connection, 500));
        for _ in 0..10 {
            assert_eq!(publish(ANN, 7, &mut second, now), Ok(()));
        }
        assert_eq!(publish(ANN, 7, &mut second, now), too_early(Bucket::User, 334));
        for _ in 0..10 {
            assert_eq!(publish(UserId(2), 7, &mut third, now), Ok(()));
        }
        assert_eq!(publish(UserId(2), 7, &mut third, now), too_early(Bucket::Conversation, 250));
        assert_eq!(publish(UserId(2), 8, &mut third, now), Ok(()));
        assert_eq!(publish(UserId(2), 7, &mut third, now.after(250)), Ok(()), "it waited as long as it was told");
        assert_eq!(publish(ANN, 9, &mut first, now.after(500)), Ok(()), "and so did this one");
    }

    /// SPEC R8-15: what was looked at is charged afterwards, however much it was, and the next one waits until that is paid.
    #[test]
    fn who_had_more_looked_at_than_it_may_waits_for_the_next() {
        let rates = Rates { reads: Some(Rate::of_reads(1_000)), ..Rates::default() };
        let (mut allowance, now) = (Allowance::new(rates), Millis(5_000));
        assert_eq!(allowance.reads_at(ANN, now), None);
        allowance.has_read(ANN, 2_000, now);
        assert_eq!(allowance.reads_at(ANN, now), None, "as much at once");
        allowance.has_read(ANN, 1, now);
        assert_eq!(allowance.reads_at(ANN, now), Some(now.after(1)));
        allowance.has_read(ANN, 9_000, now);
        assert_eq!(allowance.reads_at(ANN, now), Some(now.after(9_001)));
        allowance.has_read(ANN, u32::MAX, now);
        assert_eq!(allowance.reads_at(ANN, now), Some(now.after(10_000)), "nobody waits for longer");
        assert_eq!(allowance.reads_at(UserId(2), now), None, "another user's is its own");
        assert_eq!(allowance.reads_at(ANN, now.after(9_999)), Some(now.after(10_000)));
        assert_eq!(allowance.reads_at(ANN, now.after(10_000)), None, "it waited as long as it was told");
        allowance.has_read(UserId(2), 1, now.after(2 * SWEEP_MS));
        assert_eq!(allowance.reads.map(|reads| reads.paid_at.len()), Some(1), "nobody is kept who may do everything");
        let mut unbounded = Allowance::default();
        unbounded.has_read(ANN, u32::MAX, now);
        assert_eq!(unbounded.reads_at(ANN, now), None);
    }

    #[test]
    fn a_rate_is_what_was_asked_for() {
        for per_second in [1, 3, 80_000, 300_000, 999_999, 1_000_000] {
            let rate = Rate::new(per_second, per_second);
            assert_eq!(rate.per_second(), u64::from(per_second));
            let after_a_second = Millis(rate.pays(0, per_second, Millis(0)).expect("at once").div_ceil(1_000_000));
            assert!((999..=1_000).contains(&after_a_second.0), "{per_second}: {after_a_second:?}");
        }
    }

    /// SPEC R5.5-10.
    #[test]
    fn what_makes_nothing_else_counts_as_one_where_it_costs_others_something() {
        let of = |action| makes(&packet::Publish { action: Some(action), ..Default::default() });
        assert_eq!(of(Action::SetLevel(packet::SetLevel::default())), 1, "all that waits is looked at anew");
        assert_eq!(of(Action::Join(packet::Join::default())), 1);
        assert_eq!(of(Action::ShowPresence(packet::ShowPresence::default())), 1, "and so are all whom it is told of");
        assert_eq!(of(Action::SetMark(packet::SetMark::default())), 0);
    }

    /// It would be told to come again for ever, and all that it makes after it.
    #[test]
    fn a_group_of_more_users_than_there_may_be_is_left_to_be_refused_for_good() {
        let create = |users| {
            let create = packet::CreateGroup { users: vec!["ann".into(); users], ..Default::default() };
            makes(&packet::Publish { action: Some(Action::CreateGroup(create)), ..Default::default() })
        };
        assert_eq!((create(GROUP_USERS_MAX), create(GROUP_USERS_MAX + 1)), (GROUP_USERS_MAX as u32 + 1, 0));
    }

    #[test]
    fn nobody_is_kept_who_may_do_everything() {
        let mut allowance = Allowance::default();
        for user in 1..=1_000 {
            allowance.make(UserId(user), 1, Millis(0)).expect("its first");
        }
        allowance.make(ANN, 1, Millis(SWEEP_MS)).expect("its second");
        assert_eq!(allowance.makes.paid_at.len(), 1);
    }
}
