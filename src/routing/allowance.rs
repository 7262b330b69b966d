//! What users may make in a stretch of time: one publish can make a thousand members and as many users, and the commit
//! thread is everybody's. Pure: whoever asks says what time it is.

use std::collections::HashMap;

use longwire_protocol::limits::GROUP_USERS_MAX;
use longwire_protocol::packet::{self, publish::Action};
use longwire_protocol::{Millis, UserId};

use super::limits::{MAKES_MAX, MAKES_PER_SECOND};

/// The time that one of them takes of what a user may.
const EACH_MS: u64 = 1_000 / MAKES_PER_SECOND as u64;
/// How far ahead a user may be.
const AHEAD_MS: u64 = MAKES_MAX as u64 * EACH_MS;
/// How often those are forgotten who may do everything again.
const SWEEP_MS: u64 = 10_000;

/// See the module. Holds only users who made something that is not paid for by time.
#[derive(Debug, Default)]
pub struct Allowance {
    /// When all that a user made will be paid for.
    paid_at: HashMap<UserId, Millis>,
    swept: Millis,
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
    /// Charges a user with so many.
    ///
    /// # Errors
    /// They are more than it may make now: after so many milliseconds it may. Nothing is charged.
    pub fn charge(&mut self, user: UserId, makes: u32, now: Millis) -> Result<(), u32> {
        if now.since(self.swept) >= SWEEP_MS {
            self.swept = now;
            self.paid_at.retain(|_, paid_at| *paid_at > now);
        }
        let paid_at = self.paid_at.get(&user).copied().unwrap_or(now).max(now).after(u64::from(makes) * EACH_MS);
        let ahead = paid_at.since(now);
        if ahead > AHEAD_MS {
            return Err(u32::try_from(ahead - AHEAD_MS).unwrap_or(u32::MAX));
        }
        self.paid_at.insert(user, paid_at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: UserId = UserId(1);

    #[test]
    fn what_is_made_at_once_is_bounded_and_comes_back_with_time() {
        let (mut allowance, now) = (Allowance::default(), Millis(5_000));
        for _ in 0..MAKES_MAX / 1_000 {
            allowance.charge(ANN, 1_000, now).expect("at once");
        }
        assert_eq!(allowance.charge(ANN, 1, now), Err(10));
        assert_eq!(allowance.charge(ANN, 1_000, now), Err(10_000));
        allowance.charge(UserId(2), MAKES_MAX, now).expect("another user's is its own");
        let later = now.after(10_000);
        allowance.charge(ANN, 1_000, later).expect("it waited as long as it was told");
        assert_eq!(allowance.charge(ANN, 1, later), Err(10), "what was refused was not charged");
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
            allowance.charge(UserId(user), 1, Millis(0)).expect("its first");
        }
        allowance.charge(ANN, 1, Millis(SWEEP_MS)).expect("its second");
        assert_eq!(allowance.paid_at.len(), 1);
    }
}
