//! What can go wrong with an entry, by what the caller can do about it.

use std::path::PathBuf;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum EntryError {
    /// What was asked for, or what the configuration says, does not fit; nothing was changed. `hint` says what to do.
    #[error("{what}")]
    Unfit { what: String, hint: String },
    /// A switch is between ARMED and OPEN, or it is not known; nothing was changed, and later it may be.
    #[error("not now: {why}; nothing was changed")]
    NotNow { why: String },
    /// What was proposed is no longer what is there (someone edited it meanwhile); nothing was changed.
    #[error("{what} changed since it was read")]
    Changed { what: String },
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: std::io::Error },
    /// A program (nginx, haproxy, keepalived, ip, …) could not be started, ran too long, or said no.
    #[error("{program}: {text}")]
    Program { program: String, text: String },
    /// A server did not answer or the connection broke: trying again is right.
    #[error("{whom}: {text}")]
    Unreachable { whom: String, text: String },
    /// A server refused (credentials, rights, zone); trying again alone does not help.
    #[error("{whom} refused: {text}")]
    Refused { whom: String, text: String },
    /// The change was made, and the proof that it works failed. `undone` says whether the former state was put back.
    #[error("{what}{}", if *undone { "; the former configuration is back" } else { "" })]
    NotProven { what: String, undone: bool },
}

impl EntryError {
    pub fn unfit(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Unfit { what: what.into(), hint: hint.into() }
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::NotNow { .. })
    }
}
