//! How a command fails: with a sentence for people and an exit code for scripts.

use std::fmt;
use std::process::ExitCode;

use longwire_client::{Failure, PublishError, RequestError, StartError, State};
use longwire_protocol::reason::{Reason, Refusal};

/// The exit codes, after `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailKind {
    /// 1: it did not work.
    Failed,
    /// 2: it was asked for in a way that makes no sense.
    Usage,
    /// 69: the broker cannot be reached.
    Unavailable,
    /// 76: whoever answers cannot show that it is the broker.
    Untrusted,
    /// 77: the broker does not let this user in.
    NotAllowed,
    /// 130: interrupted from the keyboard.
    Interrupted,
}

impl FailKind {
    /// The process's exit code.
    #[must_use]
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unavailable => 69,
            Self::Untrusted => 76,
            Self::NotAllowed => 77,
            Self::Interrupted => 130,
        })
    }
}

/// A command's failure.
#[derive(Debug)]
pub struct Fail {
    kind: FailKind,
    text: String,
}

impl Fail {
    /// Exit code 1.
    #[must_use]
    pub fn failed(text: impl Into<String>) -> Self {
        Self { kind: FailKind::Failed, text: text.into() }
    }

    /// Exit code 2.
    #[must_use]
    pub fn usage(text: impl Into<String>) -> Self {
        Self { kind: FailKind::Usage, text: text.into() }
    }

    /// Exit code 69.
    #[must_use]
    pub fn unavailable(text: impl Into<String>) -> Self {
        Self { kind: FailKind::Unavailable, text: text.into() }
    }

    /// Exit code 76.
    #[must_use]
    pub fn untrusted(text: impl Into<String>) -> Self {
        Self { kind: FailKind::Untrusted, text: text.into() }
    }

    /// Exit code 130.
    #[must_use]
    pub const fn interrupted() -> Self {
        Self { kind: FailKind::Interrupted, text: String::new() }
    }

    /// What kind of failure it is.
    #[must_use]
    pub const fn kind(&self) -> FailKind {
        self.kind
    }

    /// A refusal: of who this is, or of what was asked.
    #[must_use]
    pub fn refused(refusal: &Refusal) -> Self {
        let kind = match refusal.reason {
            Reason::Unauthenticated | Reason::TokenExpired | Reason::Revoked => FailKind::NotAllowed,
            Reason::TooManyConnections | Reason::Draining => FailKind::Unavailable,
            _ => FailKind::Failed,
        };
        Self { kind, text: format!("the broker refuses: {refusal}") }
    }

    /// A client that came to its end.
    #[must_use]
    pub fn ended(state: &State) -> Self {
        match state {
            // It is about the connection: whatever the reason, who asked is not let in.
            State::Failed(Failure::Refused(refusal)) => Self { kind: FailKind::NotAllowed, ..Self::refused(refusal) },
            State::Failed(failure) => Self::failed(failure.to_string()),
            state => Self::failed(state.to_string()),
        }
    }

    /// The same, with words before it that say what was being done.
    #[must_use]
    pub fn during(self, doing: impl fmt::Display) -> Self {
        Self { text: format!("{doing}: {}", self.text), ..self }
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<StartError> for Fail {
    fn from(error: StartError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<PublishError> for Fail {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Refused(refusal) => Self::refused(&refusal),
            error => Self::failed(error.to_string()),
        }
    }
}

impl From<RequestError> for Fail {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Refused(refusal) => Self::refused(&refusal),
            RequestError::Timeout => Self::unavailable("the broker did not answer in time"),
            error => Self::failed(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Fail {
    fn from(error: std::io::Error) -> Self {
        // Whoever read the output has seen enough: that is nothing to complain about.
        let text = if error.kind() == std::io::ErrorKind::BrokenPipe { String::new() } else { error.to_string() };
        Self::failed(text)
    }
}
