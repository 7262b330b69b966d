//! What an application does with messages beside publishing them: what stands beside one, edits, recalls, reactions,
//! what it hides, what it sets for a conversation; and the reads that show what became of them.

use bytes::Bytes;
use longwire_protocol::packet::{self, publish::Action, request, response};

use crate::error::{PublishError, RequestError};
use crate::handle::{Client, Direction, Publication};

impl Client {
    /// Publishes a message with something beside its content: what it answers, whom it mentions, when it expires, what
    /// is attached. Otherwise as [`Client::publish`].
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn publish_with(
        &self,
        conversation: u64,
        content: impl Into<Bytes>,
        beside: packet::Beside,
    ) -> Result<Publication, PublishError> {
        let content = content.into();
        self.send(None, packet::Publish { conversation, content, beside: Some(Box::new(beside)), ..Default::default() })
            .await
    }

    /// Gives an own message another content; its mentions and attachments go. [`Client::edit_with`] says others
    /// (SPEC R5.6-4).
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn edit(
        &self,
        conversation: u64,
        seq: u64,
        content: impl Into<Bytes>,
    ) -> Result<Publication, PublishError> {
        let action = Some(Action::Edit(packet::Edit { seq }));
        self.send(None, packet::Publish { conversation, content: content.into(), action, ..Default::default() }).await
    }

    /// Gives an own message another content, and other mentions and attachments, in place of all that it had. It keeps what
    /// it answers, that it was forwarded, and when it expires: these `beside` must not say (SPEC R5.6-4).
    ///
    /// ```no_run
    /// # async fn example(client: longwire_client::Client, group: u64, seq: u64, bob: u64) -> Result<(), Box<dyn std::error::Error>> {
    /// use longwire_client::packet::Beside;
    ///
    /// let beside = Beside { mentions: vec![bob], ..Beside::default() };
    /// client.edit_with(group, seq, "lunch at noon, @bob?", beside).await?.await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn edit_with(
        &self,
        conversation: u64,
        seq: u64,
        content: impl Into<Bytes>,
        beside: packet::Beside,
    ) -> Result<Publication, PublishError> {
        let (action, beside) = (Some(Action::Edit(packet::Edit { seq })), Some(Box::new(beside)));
        let content = content.into();
        self.send(None, packet::Publish { conversation, content, action, beside, ..Default::default() }).await
    }

    /// Takes a message from everybody's sight (SPEC R5.6-5).
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn recall(&self, conversation: u64, seq: u64) -> Result<Publication, PublishError> {
        self.act(conversation, Action::Recall(packet::Recall { seq })).await
    }

    /// Gives this user's one reaction to a message; an empty one takes it back (SPEC R5.6-7).
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn react(
        &self,
        conversation: u64,
        seq: u64,
        reaction: impl Into<String>,
    ) -> Result<Publication, PublishError> {
        self.act(conversation, Action::React(packet::React { seq, reaction: reaction.into() })).await
    }

    /// Takes a message from this user's own sight, on all devices; with `undo`, gives it back (SPEC R5.6-8).
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn hide(&self, conversation: u64, seq: u64, undo: bool) -> Result<Publication, PublishError> {
        self.act(conversation, Action::Hide(packet::Hide { seq, undo })).await
    }

    /// Sets, in place of all that was set before, how this user has a conversation shown (SPEC R5.6-9).
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn set_settings(
        &self,
        conversation: u64,
        settings: packet::Settings,
    ) -> Result<Publication, PublishError> {
        self.act(conversation, Action::SetSettings(packet::SetSettings { settings: Some(settings) })).await
    }

    /// Says how much of a conversation this device is delivered from here on: everything, only that there is something,
    /// or that only together with something else. What is withheld comes as [`Item::Skipped`](crate::Item::Skipped) with the
    /// reason `WITHHELD`, and stands in history. Others, and this user's other devices, notice nothing (SPEC 6.6).
    ///
    /// ```no_run
    /// # async fn example(client: longwire_client::Client, group: u64) -> Result<(), Box<dyn std::error::Error>> {
    /// use longwire_client::packet::Level;
    ///
    /// client.set_level(group, Level::HeadsOnly).await?.await?;
    /// // Nobody looks at the device: groups are gathered, direct messages come as ever.
    /// client.set_background(true).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn set_level(&self, conversation: u64, level: packet::Level) -> Result<Publication, PublishError> {
        self.act(conversation, Action::SetLevel(packet::SetLevel { level: level.into() })).await
    }

    /// A page of history as it is to be shown: each message with its newest content and its reactions, what is recalled
    /// or hidden left out (SPEC R8-10). Otherwise as [`Client::history`].
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn history_compact(
        &self,
        conversation: u64,
        from_seq: u64,
        limit: u32,
        direction: Direction,
    ) -> Result<packet::HistoryPage, RequestError> {
        let backwards = direction == Direction::Backwards;
        self.page(packet::HistoryRequest { conversation, from_seq, limit, backwards, compact: true }).await
    }

    /// This user's conversations that changed since a page said `changes`; otherwise as [`Client::conversations`].
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn conversations_since(
        &self,
        since: u64,
        before: u64,
        limit: u32,
    ) -> Result<packet::ConversationsPage, RequestError> {
        let request = packet::ConversationsRequest { before, limit, since };
        match self.request(request::Op::Conversations(request)).await? {
            response::Result::Conversations(page) => Ok(page),
            _ => Err(RequestError::WrongAnswer),
        }
    }
}
