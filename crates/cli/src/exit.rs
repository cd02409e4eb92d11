//! Exit codes (a public interface) and the one place where errors of all crates become `error: … / hint: …`.

use rehome_part::{ErrorKind, Finding};

/// How a command ended. The numbers are documented in docs/exit-codes.md and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    /// A confirmation was needed and none could be asked for; nothing changed.
    Confirmation = 3,
    NotFound = 4,
    Network = 5,
    Credentials = 6,
    /// A check found differences.
    Differences = 10,
    GateNotMet = 20,
    Reversed = 21,
    /// A person is needed.
    Stuck = 22,
}

impl Exit {
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// What the user reads when a command could not do what was asked.
#[derive(Debug, Clone)]
pub struct CliError {
    pub exit: Exit,
    /// A lower-case fragment without a full stop; may hold several lines (errors in the migration file).
    pub text: String,
    pub hints: Vec<String>,
    /// Already laid out, with its own `error:` lines.
    pub rendered: bool,
}

impl CliError {
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into(), hints: Vec::new(), rendered: false }
    }

    pub fn failed(text: impl Into<String>) -> Self {
        Self::new(Exit::Failed, text)
    }

    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text)
    }

    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, text)
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Says what was being done: `cannot read plan.json: …`.
    #[must_use]
    pub fn within(mut self, doing: &str) -> Self {
        self.text = format!("{doing}: {}", self.text);
        self
    }
}

impl From<rehome_part::Error> for CliError {
    fn from(error: rehome_part::Error) -> Self {
        let exit = match error.kind {
            ErrorKind::NotFound => Exit::NotFound,
            ErrorKind::Credentials => Exit::Credentials,
            ErrorKind::Network | ErrorKind::Deadline => Exit::Network,
            _ => Exit::Failed,
        };
        let text = match error.side {
            Some(side) => format!("{side}: {}", error.text),
            None => error.text,
        };
        Self { exit, text, hints: error.hint.into_iter().collect(), rendered: false }
    }
}

/// For calls on files: the message carries the path.
pub fn with_path(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> CliError + '_ {
    move |error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        CliError::new(exit, format!("{}: {error}", path.display()))
    }
}

/// The worst finding decides how a check ends.
pub fn of_findings(findings: &[Finding]) -> Exit {
    if findings.iter().any(|finding| finding.severity == rehome_part::Severity::Blocker) {
        Exit::Differences
    } else {
        Exit::Done
    }
}
