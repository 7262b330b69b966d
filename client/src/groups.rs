//! Groups beyond making one: what they say of themselves, who is kept out, the key with which they are joined.

use bytes::Bytes;
use longwire_protocol::packet::{self, publish::Action};

use crate::error::PublishError;
use crate::handle::{Client, Publication};

impl Client {
    /// Creates a group that says something of itself; with `distinct`, finds the one that was made so for just these
    /// users and has had them since (SPEC R7-13). Otherwise as [`Client::create_group`].
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn create_group_with(
        &self,
        label: impl Into<String>,
        users: impl IntoIterator<Item = impl Into<String>>,
        info: packet::Info,
        distinct: bool,
    ) -> Result<Publication, PublishError> {
        let users = users.into_iter().map(Into::into).collect();
        let create = packet::CreateGroup { label: label.into(), users, info: Some(Box::new(info)), distinct };
        self.act(0, Action::CreateGroup(create)).await
    }

    /// Joins a group with its key (SPEC R7-12).
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn join_group(&self, conversation: u64, key: impl Into<Bytes>) -> Result<Publication, PublishError> {
        self.act(conversation, Action::Join(packet::Join { key: key.into() })).await
    }

    /// Sets what a group says of itself and lets its members do, in place of all that was there before (SPEC R7-10).
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn set_info(&self, conversation: u64, info: packet::Info) -> Result<Publication, PublishError> {
        self.act(conversation, Action::SetInfo(packet::SetInfo { info: Some(Box::new(info)) })).await
    }

    /// Removes a user from a group and keeps it out; with `lift`, lets it in again (SPEC R7-11).
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn ban(
        &self,
        conversation: u64,
        user: impl Into<String>,
        lift: bool,
    ) -> Result<Publication, PublishError> {
        self.act(conversation, Action::Ban(packet::Ban { user: user.into(), lift })).await
    }

    /// Says how long a conversation keeps its entries from here on (SPEC 5.7).
    ///
    /// ```no_run
    /// # async fn example(client: longwire_client::Client, direct: u64) -> Result<(), Box<dyn std::error::Error>> {
    /// use longwire_client::packet::{Retention, RetentionMode};
    ///
    /// let week = 7 * 24 * 60 * 60 * 1_000;
    /// let retention = Retention { mode: RetentionMode::UntilDelivered.into(), age_ms: week };
    /// client.set_retention(direct, retention).await?.await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn set_retention(
        &self,
        conversation: u64,
        retention: packet::Retention,
    ) -> Result<Publication, PublishError> {
        let retention = Some(retention);
        self.act(conversation, Action::SetRetention(packet::SetRetention { retention })).await
    }

    /// Lets whoever has this key join a group, in place of any key before; an empty one closes it (SPEC R7-12).
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn set_join_key(&self, conversation: u64, key: impl Into<Bytes>) -> Result<Publication, PublishError> {
        self.act(conversation, Action::SetJoinKey(packet::SetJoinKey { key: key.into() })).await
    }
}
