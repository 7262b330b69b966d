//! Who comes with a user name and a password, and goes on with the token that the broker makes.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longwire_protocol::packet;

/// A user name and a password, for [`TokenSource::Login`]. They are sent once; from then on the token is used that the
/// broker made for this device, and renewed in time. Keep it ([`Login::keeping`]) and start with it the next time
/// ([`Login::with_token`]): then the password is not needed. A clone is the same login.
///
/// [`TokenSource::Login`]: crate::TokenSource::Login
#[derive(Clone)]
pub struct Login {
    held: Arc<Mutex<Held>>,
    keep: Option<Keep>,
}

/// Takes each token that is to be kept.
type Keep = Arc<dyn Fn(&str) + Send + Sync>;

#[derive(Default)]
struct Held {
    login: packet::Login,
    token: Option<String>,
}

impl Login {
    /// A user's password.
    #[must_use]
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        let login = packet::Login { user: user.into(), password: password.into(), ..packet::Login::default() };
        Self { held: Arc::new(Mutex::new(Held { login, token: None })), keep: None }
    }

    /// The same, and the account is made first; `invitation` is empty where the broker asks for none.
    #[must_use]
    pub fn registering(self, invitation: impl Into<String>) -> Self {
        {
            let mut held = self.lock();
            held.login.register = true;
            held.login.invitation = invitation.into();
        }
        self
    }

    /// The same, and this is the password from now on: everything that the old one let in ends.
    #[must_use]
    pub fn changing_to(self, new_password: impl Into<String>) -> Self {
        self.lock().login.new_password = new_password.into();
        self
    }

    /// The same, beginning with a token that was kept. Where that is good no more, the password is used.
    #[must_use]
    pub fn with_token(self, token: impl Into<String>) -> Self {
        self.lock().token = Some(token.into());
        self
    }

    /// The same; `keep` is called with each token that the broker makes, and should be quick.
    #[must_use]
    pub fn keeping(self, keep: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { keep: Some(Arc::new(keep)), ..self }
    }

    /// The token, once there is one.
    #[must_use]
    pub fn token(&self) -> Option<String> {
        self.lock().token.clone()
    }

    /// What to say in place of a token.
    pub(crate) fn packet(&self) -> packet::Login {
        self.lock().login.clone()
    }

    /// The broker made a token: what was asked for once is done.
    pub(crate) fn take_token(&self, token: &str) {
        {
            let mut held = self.lock();
            held.token = Some(token.to_owned());
            held.login.register = false;
            held.login.invitation.clear();
            if !held.login.new_password.is_empty() {
                held.login.password = std::mem::take(&mut held.login.new_password);
            }
        }
        if let Some(keep) = &self.keep {
            keep(token);
        }
    }

    /// The token is good no more; says whether there was one, and a password to use instead.
    pub(crate) fn forget_token(&self) -> bool {
        let mut held = self.lock();
        held.token.take().is_some() && !held.login.password.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Whole after every step: a thread that panicked left nothing half done.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Login {
    /// Passwords and tokens are secrets: they are not printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.lock().login.user).finish_non_exhaustive()
    }
}
