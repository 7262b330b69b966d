//! Letting in by password. Checking one is meant to be dear, so it is done at a low priority, one for each core at a time,
//! with a pause after each that was wrong, and how many may wait is bounded; before that it is counted who tries, and how
//! often.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longwire_protocol::limits::{PASSWORD_BYTES_MAX, PASSWORD_BYTES_MIN};
use longwire_protocol::packet;
use longwire_protocol::reason::{Reason, Refusal};
use zeroize::Zeroize as _;

use super::{Shared, spread};
use crate::auth::{Accounts, Guesses, Registration, password};
use crate::metrics::words::Bucket;
use crate::routing::core::{NO_LOGIN, NO_REGISTRATION};
use crate::routing::loading::read_blocking;
use crate::routing::ops::Proof;
use crate::routing::rows::Secret;
use crate::routing::view::Rows as _;
use crate::tasks::Task;

/// Logins that may wait for their turn: at 20 ms each, what a core does in two seconds, or in eight if all are wrong.
const WAITING_MAX: usize = 100;
/// How long a core looks at no password after one that was wrong. The answer does not wait for it. Low priority alone
/// leaves the others the processor, but not the memory that each look goes through.
const PAUSE: Duration = Duration::from_millis(60);

/// What logging in shares among connections.
#[derive(Default)]
pub struct Logins {
    turns: Mutex<Turns>,
    guesses: Mutex<Guesses>,
}

#[derive(Default)]
struct Turns {
    running: usize,
    waiting: VecDeque<Work>,
}

/// Looks at a login and says whether it is let in.
type Work = Box<dyn FnOnce() -> bool + Send>;

/// What comes of a login: how the device is known to be its user's, or why not.
pub(super) type Outcome = Result<Proof, Refusal>;

/// Begins to look at a login; the outcome comes with the task.
///
/// # Errors
/// What is refused without a look at the password.
pub(super) fn begin(shared: &Arc<Shared>, login: packet::Login, address: IpAddr) -> Result<Task<Outcome>, Refusal> {
    let login = Overwritten(login);
    let Some(accounts) = shared.authority.accounts() else {
        return Err(Refusal::connection(Reason::Unauthenticated).because(NO_LOGIN));
    };
    let is_new = login.register || !login.new_password.is_empty();
    let new = if login.register { &login.password } else { &login.new_password };
    if is_new && !(PASSWORD_BYTES_MIN..=PASSWORD_BYTES_MAX).contains(&new.len()) {
        let refusal = Refusal::connection(Reason::InvalidArgument);
        return Err(refusal.because("a new password has 8 to 256 bytes"));
    }
    let invitation = if login.register { invitation(shared, accounts, &login)? } else { None };
    let now = shared.clock.now();
    if let Err(wait_ms) = shared.logins.guesses().charge(&login.user, address, now) {
        shared.metrics.rate_limited[Bucket::Passwords].inc();
        let refusal = Refusal::connection(Reason::RateLimited).because("passwords are tried too often");
        return Err(refusal.retry_after(wait_ms));
    }
    let shared_too = Arc::clone(shared);
    shared.logins.run(shared, move || {
        let outcome = check(&shared_too, &login, invitation);
        if outcome.is_ok() {
            shared_too.logins.guesses().forgive(&login.user, address);
        }
        outcome
    })
}

/// A login whose passwords are overwritten when it is done with.
struct Overwritten(packet::Login);

impl Deref for Overwritten {
    type Target = packet::Login;

    fn deref(&self) -> &packet::Login {
        &self.0
    }
}

impl Drop for Overwritten {
    fn drop(&mut self) {
        self.0.password.zeroize();
        self.0.new_password.zeroize();
    }
}

/// The invitation of whoever wants to make an account, where one is asked for.
fn invitation(shared: &Shared, accounts: &Accounts, login: &packet::Login) -> Result<Option<(Box<str>, u64)>, Refusal> {
    let refused = || Refusal::connection(Reason::Forbidden).because(NO_REGISTRATION);
    match accounts.settings().registration {
        Registration::Open => Ok(None),
        Registration::Closed => Err(refused()),
        Registration::Invitation => {
            let now = shared.clock.unix_ms() / 1_000;
            let verified = shared.authority.verify_invitation(&login.invitation, &login.user, now);
            verified.map(Some).map_err(|_| refused())
        }
    }
}

/// Does what is dear. The same for a user that there is not, and the answer says no more.
fn check(shared: &Shared, login: &packet::Login, invitation: Option<(Box<str>, u64)>) -> Outcome {
    let internal = || Refusal::connection(Reason::Internal);
    let accounts = shared.authority.accounts().ok_or_else(internal)?;
    let hash = |password: &str| {
        password::hash(password, accounts.settings().cost).map(|hash| Secret(hash.into())).map_err(|error| {
            tracing::error!(error, "no password can be hashed");
            internal()
        })
    };
    if login.register {
        return Ok(Proof::Registration { password: hash(&login.password)?, invitation });
    }
    let stored = read_blocking(&shared.state, |rows| {
        let user = rows.user_named(&login.user);
        user.and_then(|user| rows.password(user)).cloned()
    });
    let stored = stored.map_err(|error| {
        tracing::error!(%error, "rows of state cannot be read");
        internal()
    })?;
    let is_right = accounts.verify(&login.password, stored.as_ref().map(|stored| &*stored.0));
    match stored.filter(|_| is_right) {
        Some(checked) if login.new_password.is_empty() => Ok(Proof::Password { checked, new: None }),
        Some(checked) => Ok(Proof::Password { checked, new: Some(hash(&login.new_password)?) }),
        None => Err(Refusal::connection(Reason::Unauthenticated).because(NO_LOGIN)),
    }
}

impl Logins {
    /// Has this done when it is its turn.
    fn run(
        &self,
        shared: &Arc<Shared>,
        look: impl FnOnce() -> Outcome + Send + 'static,
    ) -> Result<Task<Outcome>, Refusal> {
        let (give, task) = tokio::sync::oneshot::channel();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut turns = self.turns();
        if turns.waiting.len() >= WAITING_MAX {
            return Err(Refusal::connection(Reason::Overloaded).retry_after(spread(2_000, 6_000)));
        }
        turns.waiting.push_back(Box::new(move || {
            let outcome = look();
            let is_let_in = outcome.is_ok();
            // Nobody may wait for it any more.
            drop(give.send(outcome));
            is_let_in
        }));
        if turns.running < cores {
            turns.running += 1;
            drop(turns);
            let worker = Worker { shared: Arc::clone(shared), is_done: false };
            shared.tasks.run_low(move || worker.work());
        }
        Ok(task)
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guesses(&self) -> MutexGuard<'_, Guesses> {
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of those that are running. Where the machine gives it no thread it is dropped, and counts no more.
struct Worker {
    shared: Arc<Shared>,
    is_done: bool,
}

impl Worker {
    /// Works until nobody waits.
    fn work(mut self) {
        while let Some(work) = self.next() {
            // Whoever waits for it is told that it failed; the others have their turns all the same.
            let is_let_in = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            if is_let_in.is_err() {
                tracing::error!("a login failed");
            }
            if !is_let_in.unwrap_or_default() {
                self.shared.tasks.pause(PAUSE);
            }
        }
    }

    /// Whose turn it is; with nobody, this one is done.
    fn next(&mut self) -> Option<Work> {
        let mut turns = self.shared.logins.turns();
        let next = turns.waiting.pop_front();
        if next.is_none() {
            turns.running -= 1;
            self.is_done = true;
        }
        next
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let waiting = {
            let mut turns = self.shared.logins.turns();
            turns.running -= 1;
            // Nobody is left to do it: whoever waits is told so, and does not wait in vain.
            if turns.running == 0 { std::mem::take(&mut turns.waiting) } else { VecDeque::new() }
        };
        drop(waiting);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;
    use crate::net::testing::shared;
    use crate::store::MemoryLog;
    use crate::tasks::Tasks;

    /// Where there was no thread for a login, or for one a core, those that come later have their turns.
    #[test]
    fn a_login_without_a_thread_takes_nobodys_turn() {
        let mut shared = shared(&MemoryLog::new(0, usize::MAX));
        Arc::get_mut(&mut shared).expect("nobody else has it").tasks = Tasks::ByHand(Default::default());
        let Tasks::ByHand(threads) = &shared.tasks else { unreachable!("made so above") };
        let look = || Err(Refusal::connection(Reason::Unauthenticated));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..cores {
            let mut outcome = shared.logins.run(&shared, look).expect("there is room");
            threads.forget();
            let told = outcome.try_recv().expect_err("nobody does it");
            assert_eq!(told, TryRecvError::Closed, "and who waits knows");
        }
        let mut outcome = shared.logins.run(&shared, look).expect("there is room");
        threads.run(0);
        assert_eq!(outcome.try_recv().expect("its turn came").err(), look().err());
        assert_eq!(shared.logins.turns().running, 0);
    }
}
