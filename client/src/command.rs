//! What a handle wishes, on its way to the task.

use longwire_protocol::packet::{self, request};
use tokio::sync::oneshot;

use crate::error::GiveUpError;
use crate::outbox::{Answer, Saved};
use crate::requests::Reply;

pub(crate) enum Command {
    Publish { id: Option<u64>, publish: packet::Publish, saved: Saved, answer: Answer },
    GiveUp { id: u64, done: oneshot::Sender<Result<(), GiveUpError>> },
    SendAnyway { id: u64, saved: Saved, answer: Answer },
    Doubtful { reply: oneshot::Sender<Vec<(u64, packet::Publish)>> },
    Unanswered { reply: oneshot::Sender<Vec<(u64, packet::Publish)>> },
    Request { op: request::Op, reply: Reply },
    Watch { conversation: u64, reply: Reply },
    Unwatch { conversation: u64 },
    SubscribePresence { users: Vec<u64>, reply: Reply },
    UnsubscribePresence { users: Vec<u64> },
    Follow { conversation: u64, reply: Reply },
    Unfollow { conversation: u64 },
    Background { background: bool, reply: Reply },
    Signal(packet::Signal),
    ConnectNow,
    Close { done: oneshot::Sender<()> },
}
