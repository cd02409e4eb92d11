//! What a person may ask of a running engine, and what it answers. One message, one answer.

use rehome_journal::{GateRecord, Goal, Phase, SwitchReport, Trouble};
use rehome_part::{Error as PartError, Finding};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// Gates that a person may answer for. The others guard what nobody can know better than the run.
pub const ACCEPTABLE: [&str; 9] = [
    "hold-capacity",
    "lag",
    "no-bypass",
    "predicted-pause",
    "read-latency",
    "reads",
    "shadow",
    "target-health",
    "way-back",
];

/// A command, in the words of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Go this far by yourself (`apply --until`). Answered at once; watch the journal for arrival.
    Goal {
        goal: Goal,
    },
    /// Compare everything now. Answered when the comparison has ended.
    Verify,
    /// Send this share of reads to the side that is not the owner; of one service, or of all.
    Shift {
        percent: u8,
        service: Option<String>,
    },
    /// Switch to the target; with `rehearse` only up to SEALED and back. Answered when it has ended either way.
    Switch {
        rehearse: bool,
    },
    /// Switch back to the source.
    Reverse {
        rehearse: bool,
    },
    /// Stop copying and following.
    Pause,
    Resume,
    /// Give the migration up: before the commit only.
    Cancel,
    /// End a switched migration: the way back is given up.
    Complete,
    /// Say yes to one of [`ACCEPTABLE`] by name, whatever its verdict.
    Accept {
        gate: String,
    },
}

impl Command {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Goal { .. } => "apply",
            Self::Verify => "verify",
            Self::Shift { .. } => "shift",
            Self::Switch { .. } => "switch",
            Self::Reverse { .. } => "reverse",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
            Self::Complete => "complete",
            Self::Accept { .. } => "accept",
        }
    }
}

/// A command on its way to the engine. `actor` and `argv` go into the audit trail as they are.
#[derive(Debug)]
pub struct CommandMessage {
    pub command: Command,
    pub actor: String,
    pub argv: Vec<String>,
    pub reply: oneshot::Sender<Result<CommandOutcome, CommandError>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum CommandOutcome {
    Done,
    Verified { compared: u64, bytes: u64, differences_total: u64, differences: Vec<Finding> },
    Switched { report: SwitchReport },
    Rehearsed { report: SwitchReport },
}

#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "refused", rename_all = "snake_case")]
pub enum CommandError {
    /// It does not fit where the run is; nothing was changed.
    #[error("not possible while {phase}: {why}")]
    NotNow { phase: Phase, why: String, hint: String },
    /// These gates are not met; nothing was changed.
    #[error("not met: {}", describe(gates))]
    GateNotMet { gates: Vec<GateRecord> },
    /// It was begun and taken back; the old owner serves as before.
    #[error("the switch was aborted: {why}")]
    Aborted { why: String, report: Option<SwitchReport> },
    /// Something outside failed.
    #[error("{step} failed: {error}")]
    Failed { step: String, error: PartError },
    /// A human is needed.
    #[error("stuck in {}: {}", trouble.step, trouble.why)]
    Stuck { trouble: Trouble },
    /// The engine ended before it could answer; the journal says how far it came.
    #[error("the engine stopped before it could answer")]
    Stopped,
}

fn describe(gates: &[GateRecord]) -> String {
    let texts: Vec<String> =
        gates.iter().map(|gate| format!("{} is {} (limit {})", gate.name, gate.value, gate.limit)).collect();
    texts.join("; ")
}
