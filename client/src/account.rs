//! What a user says of itself, keeps of others, and does with its devices.

use longwire_protocol::packet::{self, publish::Action, request, response};

use crate::error::{PublishError, RequestError};
use crate::handle::{Client, Publication};

impl Client {
    /// Shows this user so, to everyone who shares a conversation with it. In place of what was shown before.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn set_profile(&self, profile: packet::Profile) -> Result<Publication, PublishError> {
        self.act(0, Action::SetProfile(packet::SetProfile { profile: Some(profile) })).await
    }

    /// Keeps something of another user: what this one calls it, and whatever the application wants. In place of what was
    /// kept of it before.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn set_contact(
        &self,
        user: impl Into<String>,
        nick: impl Into<String>,
        data: impl Into<bytes::Bytes>,
    ) -> Result<Publication, PublishError> {
        let set = packet::SetContact { user: user.into(), nick: nick.into(), data: data.into(), remove: false };
        self.act(0, Action::SetContact(set)).await
    }

    /// Keeps nothing of another user any more.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn remove_contact(&self, user: impl Into<String>) -> Result<Publication, PublishError> {
        let set = packet::SetContact { user: user.into(), remove: true, ..Default::default() };
        self.act(0, Action::SetContact(set)).await
    }

    /// Takes nothing from another user any more: it cannot write to this one, add it to groups, or see how it is.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn block(&self, user: impl Into<String>) -> Result<Publication, PublishError> {
        self.act(0, Action::Block(packet::Block { user: user.into(), undo: false })).await
    }

    /// Ends [`Client::block`].
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn unblock(&self, user: impl Into<String>) -> Result<Publication, PublishError> {
        self.act(0, Action::Block(packet::Block { user: user.into(), undo: true })).await
    }

    /// Gives one of this user's devices a label.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn name_device(&self, device: u64, label: impl Into<String>) -> Result<Publication, PublishError> {
        self.act(0, Action::NameDevice(packet::NameDevice { device, label: label.into() })).await
    }

    /// Ends the session of one of this user's devices, at once, and the tokens that were made for it. Of this very device
    /// it means to log out: the answer comes, and then the client fails with *revoked*.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn revoke_device(&self, device: u64) -> Result<Publication, PublishError> {
        self.act(0, Action::RevokeDevice(packet::RevokeDevice { device })).await
    }

    /// For administrators: makes an account, gives it another password (by its hash: argon2id in the PHC string format),
    /// or closes it. Ends whatever that user was let in with.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn set_account(&self, set: packet::SetAccount) -> Result<Publication, PublishError> {
        self.act(0, Action::SetAccount(set)).await
    }

    /// For administrators: erases a user for good (SPEC 15.4). The answer says that it is begun.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn erase_user(&self, user: impl Into<String>) -> Result<Publication, PublishError> {
        self.act(0, Action::EraseUser(packet::EraseUser { user: user.into() })).await
    }

    /// How users (at most 50) show themselves: those that share a conversation with this one, and do not block it.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn profiles(&self, users: Vec<u64>) -> Result<Vec<packet::UserProfile>, RequestError> {
        match self.request(request::Op::Profiles(packet::ProfilesRequest { users })).await? {
            response::Result::Profiles(page) => Ok(page.profiles),
            _ => Err(RequestError::WrongAnswer),
        }
    }

    /// A page of this user's contacts; `before` is `next` of the page before, 0 for the first.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn contacts(&self, before: u64, limit: u32) -> Result<packet::ContactsPage, RequestError> {
        match self.request(request::Op::Contacts(packet::ContactsRequest { before, limit })).await? {
            response::Result::Contacts(page) => Ok(page),
            _ => Err(RequestError::WrongAnswer),
        }
    }

    /// A page of those whom this user blocks; `after_user` is `next` of the page before, 0 for the first.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn blocked(&self, after_user: u64, limit: u32) -> Result<packet::BlockedPage, RequestError> {
        match self.request(request::Op::Blocked(packet::BlockedRequest { after_user, limit })).await? {
            response::Result::Blocked(page) => Ok(page),
            _ => Err(RequestError::WrongAnswer),
        }
    }

    /// This user's devices.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn devices(&self) -> Result<Vec<packet::Device>, RequestError> {
        match self.request(request::Op::Devices(packet::DevicesRequest {})).await? {
            response::Result::Devices(page) => Ok(page.devices),
            _ => Err(RequestError::WrongAnswer),
        }
    }

    /// For administrators: a page of all users; `after_user` is `next` of the page before, 0 for the first. A page may
    /// have no users and yet a `next`.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn accounts(&self, after_user: u64, limit: u32) -> Result<packet::AccountsPage, RequestError> {
        match self.request(request::Op::Accounts(packet::AccountsRequest { after_user, limit })).await? {
            response::Result::Accounts(page) => Ok(page),
            _ => Err(RequestError::WrongAnswer),
        }
    }
}
