//! What can go wrong in a part, told so that the caller knows what it can do about it.

use crate::Side;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// May the same call succeed if it is made again?
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// Making the call again cannot help; something outside has to change first.
    Permanent,
    /// The call may be made again after a short while.
    Temporary,
    /// It was temporary, and the retries are used up.
    Exhausted,
}

/// The question a caller asks of an error: what can I do?
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The thing named does not exist (bucket, key, table).
    NotFound,
    /// The credentials are wrong, expired, or not allowed to do this.
    Credentials,
    /// The endpoint cannot be reached or does not answer in time.
    Network,
    /// The other side has no room or no quota left.
    Full,
    /// The thing changed while it was read; read it again.
    Changed,
    /// This driver cannot carry what was asked; the text names it.
    Unsupported,
    /// What was read or written is not what it should be (checksum, torn state file).
    Corrupt,
    /// The call was stopped because its caller asked for that.
    Cancelled,
    /// A deadline passed.
    Deadline,
    /// Anything else; the text says what.
    Other,
}

/// A failure of one part, on one side (or ours), with a lower-case text fit for "failed to …: {error}".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{text}")]
pub struct Error {
    pub kind: ErrorKind,
    pub retry: Retry,
    /// The side that failed; `None` when the failure is ours (local disk, a bug).
    pub side: Option<Side>,
    pub text: String,
    /// What the user can do, as an imperative sentence without a full stop.
    pub hint: Option<String>,
}

impl Error {
    pub fn new(kind: ErrorKind, retry: Retry, text: impl Into<String>) -> Self {
        Self { kind, retry, side: None, text: text.into(), hint: None }
    }

    pub fn permanent(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self::new(kind, Retry::Permanent, text)
    }

    pub fn temporary(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self::new(kind, Retry::Temporary, text)
    }

    pub fn cancelled() -> Self {
        Self::permanent(ErrorKind::Cancelled, "stopped as asked")
    }

    #[must_use]
    pub fn on(mut self, side: Side) -> Self {
        self.side = Some(side);
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn is_temporary(&self) -> bool {
        self.retry == Retry::Temporary
    }
}
