//! How far others have read a conversation, and what was delivered to them: asked for once, or followed.

use longwire_protocol::packet::{self, request, response};
use tokio::sync::oneshot;

use crate::command::Command;
use crate::error::RequestError;
use crate::handle::Client;

impl Client {
    /// Who has read a conversation how far, and what was delivered to whom, by user id; `after_user` is `next` of the page before, 0 for the first
    /// (SPEC R8-12).
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn receipts(
        &self,
        conversation: u64,
        after_user: u64,
        limit: u32,
    ) -> Result<packet::ReceiptsPage, RequestError> {
        let receipts = packet::ReceiptsRequest { conversation, after_user, limit, ..Default::default() };
        match self.request(request::Op::Receipts(receipts)).await? {
            response::Result::Receipts(page) => Ok(page),
            _ => Err(RequestError::WrongAnswer),
        }
    }

    /// Tells how far who is in a conversation has read, and was delivered ([`Mark::delivered`](packet::Mark)): as it is
    /// now, and each delivery from here on as a [`Signal::Delivered`](crate::Signal), on the connections to come too, until
    /// [`Client::unfollow_receipts`]. For direct conversations and groups of at most 200; ask again when someone comes in
    /// (SPEC R8-14). What they read comes as [`Item::Mark`](crate::Item).
    ///
    /// ```no_run
    /// # async fn example(client: longwire_client::Client, direct: u64) -> Result<(), Box<dyn std::error::Error>> {
    /// use longwire_client::Signal;
    ///
    /// let mut signals = client.signals();
    /// for mark in client.follow_receipts(direct).await? {
    ///     println!("{} has {} and read {}", mark.user, mark.delivered, mark.seq);
    /// }
    /// while let Some(signal) = signals.next().await {
    ///     if let Signal::Delivered { user, seq, .. } = signal {
    ///         println!("two ticks up to {seq}, for {user}");
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn follow_receipts(&self, conversation: u64) -> Result<Vec<packet::Mark>, RequestError> {
        let (reply, answer) = oneshot::channel();
        match self.answer(Command::Follow { conversation, reply }, answer).await? {
            response::Result::Receipts(page) => Ok(page.marks),
            _ => Err(RequestError::WrongAnswer),
        }
    }

    /// Ends [`Client::follow_receipts`].
    pub async fn unfollow_receipts(&self, conversation: u64) {
        // A client that is gone is told nothing.
        drop(self.commands.send(Command::Unfollow { conversation }).await);
    }
}
