//! How a run of the engine ends.

use rehome_journal::{Lease, Phase};
use rehome_part::Error as PartError;

/// Why [`crate::Engine::run`] returned without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEnd {
    /// Completed or cancelled: there is nothing left to do.
    Final(Phase),
    /// Stopped as asked; the journal goes on later.
    Stopped,
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Another engine or a guard took the run over; nothing was done since.
    #[error("another engine took the run over")]
    LeaseLost,
    /// An engine is alive: talk to it.
    #[error("the run is held by {}", .0.holder)]
    Held(Lease),
    /// A finite step failed for good, and what it did was taken back.
    #[error("{step} failed: {error}")]
    Step { step: String, error: PartError },
    /// The migration file names other parts than the journal.
    #[error("the journal is about the parts {journal}, and the migration file names {file}")]
    OtherParts { journal: String, file: String },
    /// A lost journal cannot be rebuilt: what gateways, register and world say does not fit together.
    #[error("cannot rebuild the journal: {what}")]
    Disagree { what: String },
    #[error(transparent)]
    Journal(rehome_journal::Error),
    /// A fault point broke in (tests only).
    #[error("interrupted at {point}: {error}")]
    Fault { point: String, error: PartError },
    /// A thread of ours died.
    #[error("a worker of the engine failed: {0}")]
    Task(String),
    /// Stopped as asked in the middle of something that does not succeed.
    #[error("stopped as asked")]
    Stopped,
}

impl From<rehome_journal::Error> for EngineError {
    fn from(error: rehome_journal::Error) -> Self {
        match error {
            rehome_journal::Error::Held(lease) => Self::Held(lease),
            error if error.is_lost() => Self::LeaseLost,
            error => Self::Journal(error),
        }
    }
}

/// Why a sequence of steps did not go on.
#[derive(Debug)]
pub(crate) enum Halt {
    /// A step failed; the sequence is to be taken back.
    Failed { step: String, error: PartError },
    /// The engine itself cannot go on.
    Fatal(EngineError),
}

impl From<EngineError> for Halt {
    fn from(error: EngineError) -> Self {
        Self::Fatal(error)
    }
}

impl Halt {
    pub fn failed(step: &str, error: PartError) -> Self {
        Self::Failed { step: step.to_owned(), error }
    }
}
