//! What can go wrong with the record, told so that the caller knows what it can do.

use crate::{IllegalEvent, Lease};
use rehome_part::{Epoch, Token};
use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no run here.
    #[error("no journal at {}", .0.display())]
    NotFound(PathBuf),
    /// A run is here already; open it instead.
    #[error("a journal exists already at {}", .0.display())]
    Exists(PathBuf),
    /// Written by a newer program: use that one.
    #[error(
        "the journal was written by rehome {tool} in format {found_major}.{found_minor}; this program reads up to format \
         {known}: use the newer program"
    )]
    Newer { tool: String, found_major: u32, found_minor: u32, known: u32 },
    /// Older than anything this program can bring up to date.
    #[error("the journal is in format {found}, and this program has no way from there to format {known}")]
    TooOld { found: u32, known: u32 },
    /// The history on disk cannot have happened: the file was damaged or edited.
    #[error("impossible history at event {seq}: {why}")]
    Impossible { seq: u64, why: String },
    /// The event does not fit the state; nothing was written.
    #[error(transparent)]
    Illegal(#[from] IllegalEvent),
    /// Somebody else became the engine of this run; stop acting at once.
    #[error("the lease was taken over (ours {}, newest {})", .ours.0, .newest.0)]
    LeaseLost { ours: Token, newest: Token },
    /// An engine is alive; talk to it, or wait until its lease ends.
    #[error("the run is held by {} until its lease ends", .0.holder)]
    Held(Lease),
    /// A higher token has been seen by the register: we are not the engine any more.
    #[error("the register has seen a newer engine (ours {}, newest {})", .ours.0, .newest.0)]
    StaleToken { ours: Token, newest: Token },
    /// `decide` without `propose`.
    #[error("epoch {0} was never proposed")]
    NotProposed(Epoch),
    #[error("the journal's database failed: {0}")]
    Database(#[from] rusqlite::Error),
    #[error("the journal's folder failed: {0}")]
    Io(#[from] std::io::Error),
}

impl Error {
    /// Are we no longer the engine of this run?
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::LeaseLost { .. } | Self::StaleToken { .. })
    }
}
