//! The lines on a run's socket. First [`rehome_gateway::control::Hello`] with the run's secret; then either one question
//! of a gateway (see the gateway's control module) or orders of a command, one JSON line each, one [`Reply`] each.

use rehome_engine::{Command, CommandOutcome};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    pub verb: Verb,
    /// Who asks, for the journal: `user@host`.
    pub actor: String,
    /// The command as typed; no argument of rehome is ever a secret.
    pub arguments: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Verb {
    /// Is somebody there?
    Ping,
    /// End the engine in good order; the run goes on with the next one.
    Stop,
    Give {
        command: Command,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Done { outcome: CommandOutcome },
    Refused { exit_code: u8, text: String, hints: Vec<String> },
}
