//! The words every crate shares: sides, flows, epochs, positions, markers, and what a part says of itself.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One of the two places an application lives in. The names never swap: after a switch the owner is the target, and a
/// reverse is a switch whose [`Flow`] runs from the target to the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Source,
    Target,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Source => Self::Target,
            Self::Target => Self::Source,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

/// The direction data moves in: from the owner of today to the owner of tomorrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flow {
    /// Source to target: the migration.
    Forward,
    /// Target to source: the way back.
    Reverse,
}

impl Flow {
    pub fn from(self) -> Side {
        match self {
            Self::Forward => Side::Source,
            Self::Reverse => Side::Target,
        }
    }

    pub fn to(self) -> Side {
        self.from().other()
    }

    pub fn back(self) -> Self {
        match self {
            Self::Forward => Self::Reverse,
            Self::Reverse => Self::Forward,
        }
    }

    /// The flow that leads away from `owner`.
    pub fn leaving(owner: Side) -> Self {
        match owner {
            Side::Source => Self::Forward,
            Side::Target => Self::Reverse,
        }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "source -> target",
            Self::Reverse => "target -> source",
        })
    }
}

/// Counts the owners: every switch attempt, committed or aborted, decides who owns the next epoch. Starts at 1 (source).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    pub const FIRST: Self = Self(1);

    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Orders the engines of one run: whoever takes the lease over gets a higher token, and everybody who acts for an engine
/// (gateway, journal, register) refuses a token lower than the highest it has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub u64);

/// A place in one side's history of writes, meaningful to the part that made it and to nobody else (a feed offset, an
/// LSN, the number of a listing pass). Compare two of them with [`crate::Part::covers`] only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub String);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A write of our own, put into the owner's stream of writes after the fence: when it is seen on the other side, all
/// that came before it is there too.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Marker {
    /// The epoch that is being ended.
    pub epoch: Epoch,
    /// Distinguishes two attempts of the same epoch; letters, digits and `-` only.
    pub nonce: String,
}

/// How a part finds out about changes on the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Follows {
    /// A feed with positions: lag is known, the drain is as short as the backlog.
    Feed,
    /// Only by listing everything again: the drain takes as long as a listing pass.
    Listing,
}

/// Legal differences between parts. The engine and the plan ask here; nobody asks for the kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    pub follows: Follows,
    /// False with `fence = "none"`: the report says "one writable side: not proven".
    pub can_fence: bool,
    /// False where nothing that the application's own credentials do can prove the fence.
    pub can_probe: bool,
    pub can_reverse: bool,
}

/// Writes of the application that its owner's side took lately, and how many of them no gateway had passed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writers {
    pub writes: u64,
    /// Of these, the ones that name no request of a gateway.
    pub past_gateways: u64,
    /// How long was watched, at most the last minute.
    pub watched_seconds: u64,
}

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    /// The move goes on; a person should know.
    Warning,
    /// The move does not start until this is dealt with.
    Blocker,
}

/// One thing found by `assess`, `doctor`, `verify` or the straggler sweep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable id in kebab case, e.g. `target-not-empty`; the runbook and `doctor` use it.
    pub id: String,
    pub severity: Severity,
    pub side: Option<Side>,
    /// What was found, with figures.
    pub text: String,
    /// What to do, as an imperative sentence.
    pub remedy: Option<String>,
}

/// What `assess` learned without changing anything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Assessment {
    pub objects: u64,
    pub bytes: u64,
    /// Writes per second seen on the owner, if it can be known.
    pub changes_per_second: Option<f64>,
    /// Compressed size over plain size of a sample, 0..=1.
    pub compressed_ratio: Option<f64>,
    /// How long the first full copy is expected to take.
    pub copy_seconds: Option<f64>,
    pub findings: Vec<Finding>,
    /// Identifies what was observed; a plan is stale when this changes. Must not change through ordinary traffic.
    pub fingerprint: String,
}

/// The end of a full copy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopySummary {
    pub objects: u64,
    pub bytes: u64,
    /// Already equal on the other side, or finished before an interruption.
    pub kept: u64,
    /// What could not be carried, per key, with the reason; never silent.
    pub losses: Vec<Finding>,
}

/// What a follower knows right now. `None` means unknown, and unknown is never taken for good.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FollowState {
    /// All of the owner's writes up to here are on the other side.
    pub applied: Option<Position>,
    /// Changes known and not yet applied.
    pub backlog: Option<u64>,
    /// Age of the oldest change not yet applied; 0 when there is none.
    pub lag_seconds: Option<f64>,
    /// Changes applied per second, measured while there was a backlog.
    pub apply_per_second: Option<f64>,
    /// How long a drain would take from here, by measurement (backlog over rate, or the last listing pass).
    pub drain_seconds: Option<f64>,
    pub changes_applied: u64,
    pub bytes_applied: u64,
}

/// Is a side closed to every writer but the migration's own principal?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fence {
    /// A write with the application's credentials was refused.
    ProvedClosed,
    /// The fence is set, but nothing could be tried that proves it.
    Closed,
    Open,
    /// This part has no fence.
    None,
}

/// The end of a drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    pub applied: Position,
    pub marker_seen: bool,
    /// Changes applied between the fence and now.
    pub changes: u64,
}

/// How thorough a comparison is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Everything, by content checksums the mover did not compute where the store offers them.
    Full,
    /// What changed since the position, plus a count: short enough for the window of a switch.
    Since(Position),
}

/// The result of an independent comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    pub compared: u64,
    pub bytes: u64,
    /// Differences that changes under way explain, compared again later.
    pub in_motion: u64,
    /// The first differences (at most 100), worst first.
    pub differences: Vec<Finding>,
    pub differences_total: u64,
}

impl Verification {
    pub fn is_equal(&self) -> bool {
        self.differences_total == 0
    }
}

/// What `seal` captured: from here the way back begins, before the new owner's first write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    pub reverse_start: Position,
}
