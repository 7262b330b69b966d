//! What can go wrong, said once: at the start, for a publish, for a request.

use longwire_protocol::reason::Refusal;

use crate::trust::TrustError;

/// Why a client could not be started. Nothing was sent.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StartError {
    /// The outbox cannot be used.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Why an outbox file cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OutboxError {
    /// Another process, or another client in this one, has it open.
    #[error("the outbox {0} is in use by another client")]
    InUse(String),
    /// It was written for another device, whose message ids would be mixed with this one's.
    #[error("the outbox {path} is that of device {device:?}")]
    OtherDevice {
        /// The file.
        path: String,
        /// The device it was written for.
        device: String,
    },
    /// It was written by a newer version.
    #[error("the outbox {path} has format {format}, this version reads {newest}")]
    Newer {
        /// The file.
        path: String,
        /// Its format.
        format: u64,
        /// The newest that this version reads.
        newest: u64,
    },
    /// The disk, or what is in the file.
    #[error("the outbox {path}: {why}")]
    Disk {
        /// The file.
        path: String,
        /// What happened.
        why: String,
    },
}

/// Why a client came to its end and will not connect again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The broker refused for good: the token is no good, a newer session of the device took over, …
    #[error("the broker refuses: {0}")]
    Refused(Refusal),
    /// No token could be had.
    #[error("no token: {0}")]
    Token(String),
    /// The outbox can no longer be written; what is in it is as it was.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// What the outbox holds was published as another user, or to another broker: it is not sent as this one.
    #[error("the outbox holds messages of another user, or for another broker")]
    OutboxOfAnother,
}

/// Why a publish has no ack.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PublishError {
    /// As much is unanswered as the outbox holds. Nothing was taken in; try again when something is acked.
    #[error("the outbox is full: {items} publishes, {bytes} bytes are not acked yet")]
    OutboxFull {
        /// How many publishes it holds.
        items: usize,
        /// How many bytes they are.
        bytes: usize,
    },
    /// The broker refused it for good; it is not stored.
    #[error("the broker refuses: {0}")]
    Refused(Refusal),
    /// Its message id lies below the broker's floor: it was answered before, in an earlier life of this program.
    #[error("message id {id} was answered before (the floor is {floor})")]
    Stale {
        /// The id.
        id: u64,
        /// The broker's first unanswered id.
        floor: u64,
    },
    /// A numbered publish with an id that is not above those before it.
    #[error("message id {id} is not above the last one: the next is at least {next}")]
    IdNotRising {
        /// The id.
        id: u64,
        /// The lowest that would do.
        next: u64,
    },
    /// The outbox was restored from a copy, and nobody can tell whether this is stored: it is not sent, and kept for
    /// the application to decide. See [`Client::doubtful`].
    ///
    /// [`Client::doubtful`]: crate::Client::doubtful
    #[error("message {id} may be stored or not: the outbox was restored from a copy")]
    Doubtful {
        /// Its message id.
        id: u64,
    },
    /// Nothing doubtful has this message id.
    #[error("message {id} is not among what is doubtful")]
    NotDoubtful {
        /// The id.
        id: u64,
    },
    /// It was given up before it was stored.
    #[error("given up")]
    GivenUp,
    /// The client came to its end first. What is in an outbox file is sent after a restart.
    #[error("the client is closed{}", .0.as_deref().map(|why| format!(": {why}")).unwrap_or_default())]
    Closed(Option<String>),
}

/// Why a request has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// The broker refused.
    #[error("the broker refuses: {0}")]
    Refused(Refusal),
    /// No answer within the request's time; the broker may be away.
    #[error("no answer in time")]
    Timeout,
    /// More requests wait than a client keeps (256).
    #[error("too many requests are waiting")]
    TooMany,
    /// The broker's answer is not one to this request.
    #[error("the broker answered something else")]
    WrongAnswer,
    /// The client came to its end first.
    #[error("the client is closed{}", .0.as_deref().map(|why| format!(": {why}")).unwrap_or_default())]
    Closed(Option<String>),
}

/// Why something cannot be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GiveUpError {
    /// It may be stored: it was sent and the answer is not here yet.
    #[error("it was sent, and may be stored")]
    MayBeStored,
    /// There is no unanswered publish with this id.
    #[error("no such message is waiting")]
    Unknown,
    /// The client came to its end first.
    #[error("the client is closed")]
    Closed,
}
