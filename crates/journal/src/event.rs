//! What can be written into a journal: events in the past tense, and the small records they carry.
//! Names and fields are part of the file format and of the JSON stream: adding is a minor version, changing a major one.

use crate::state::Goal;
use rehome_part::measure::{Histogram, Share};
use rehome_part::traffic::ShadowStatus;
use rehome_part::{
    CopySummary, Epoch, Error as PartError, Finding, Flow, FollowState, Position, Side, Token,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// 1, 2, 3, … without gaps.
    pub seq: u64,
    /// Milliseconds since 1970, by the writer's wall clock.
    pub at_ms: i64,
    /// Who caused it: `engine pid 12`, `guard pid 13`, or the person behind a command.
    pub actor: String,
    pub token: Token,
    pub event: Event,
}

/// Who writes, and with which right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    pub name: String,
    pub token: Token,
}

/// A part as the run knows it from the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartInfo {
    pub name: String,
    pub kind: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
    Fail,
    /// Nothing is known; never taken for a pass.
    NoData,
}

/// One look at one gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateRecord {
    /// Stable, in kebab case: `predicted-pause`.
    pub name: String,
    pub verdict: Verdict,
    /// What was found, with unit.
    pub value: String,
    /// What it is held against, with unit.
    pub limit: String,
    /// A person said yes to this gate by name, whatever the verdict.
    #[serde(default)]
    pub accepted: bool,
}

impl GateRecord {
    pub fn is_met(&self) -> bool {
        self.accepted || self.verdict == Verdict::Pass
    }
}

/// How long writes are expected to wait, and why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// 99.9th percentile of the time a write is in flight.
    pub in_flight_ms: f64,
    /// The slowest part's backlog over its apply rate, or its measured listing pass.
    pub drain_ms: f64,
    /// Round trips on the critical path, counted from the steps.
    pub round_trips: u32,
    pub rtt_ms: f64,
    /// Local work of the switch itself: journal writes on the critical path times their measured time.
    pub seal_ms: f64,
    pub total_ms: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "result")]
pub enum SwitchOutcome {
    Committed,
    Rehearsed,
    Aborted { why: String },
}

/// How long a switch stayed in one state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateTime {
    pub state: String,
    pub ms: u64,
}

/// The end of one switch attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SwitchReport {
    pub attempt: u64,
    /// The epoch this attempt decided.
    pub epoch: Epoch,
    pub flow: Flow,
    pub owner: Side,
    pub rehearsal: bool,
    pub outcome: SwitchOutcome,
    pub predicted: Prediction,
    /// From the hold request being sent to the last gateway having settled; `None` when writes were never held, or when
    /// the machine was restarted in between.
    pub pause_ms: Option<u64>,
    /// What no implementation could beat with these round trips: one RTT between the sides plus the writes in flight.
    pub floor_ms: f64,
    /// Round trips of the steps that were really executed while writes waited.
    pub round_trips: u32,
    pub rtt_ms: f64,
    pub states: Vec<StateTime>,
    /// False when a part had no fence or none that could be proved: "one writable side: not proven".
    pub one_writable_side_proved: bool,
    /// False when the drain ended without the marker having been read back on the other side.
    pub drain_proved: bool,
    /// Most requests seen waiting at the gateways.
    pub most_waiting: u64,
}

/// Why a human is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// The step or unit that cannot go on; names its runbook page.
    pub step: String,
    pub why: String,
    /// Who owns the data, what serves, what waits.
    pub what_is_true: String,
    /// An imperative sentence.
    pub how_to_fix: String,
    /// The part's own error, for exit codes.
    #[serde(default)]
    pub error: Option<PartError>,
}

/// What the gateways saw of one service, added up over gateways.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceTraffic {
    pub name: String,
    pub weight_wanted: u8,
    pub weight_actual: u8,
    pub lag_ms: Option<u64>,
    pub source_requests: u64,
    pub source_failed: u64,
    pub target_requests: u64,
    pub target_failed: u64,
    pub refused: u64,
    pub writes: u64,
    pub writes_unknown: u64,
    pub write_p999_ms: Option<f64>,
    /// Median times to the head of an answer, and of connecting; of the gateway that sees the longest.
    #[serde(default)]
    pub source_p50_ms: Option<f64>,
    #[serde(default)]
    pub target_p50_ms: Option<f64>,
    #[serde(default)]
    pub source_connect_ms: Option<f64>,
    #[serde(default)]
    pub target_connect_ms: Option<f64>,
    /// What the gateway itself adds.
    #[serde(default)]
    pub added_ms: Option<f64>,
}

/// What comparing the reads of one service has found, over all gateways.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ShadowReport {
    pub name: String,
    pub shadow: ShadowStatus,
}

/// How one service did on the old owner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    pub name: String,
    pub failed: Share,
    pub read_times: Histogram,
}

/// Everything that can happen in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    RunCreated {
        run: String,
        name: String,
        parts: Vec<PartInfo>,
        services: Vec<String>,
    },
    /// An engine (or a guard that became one) took the lease.
    EngineStarted {
        token: Token,
        version: String,
        pid: u32,
    },
    /// The journal was lost and begun again from what gateways and world agree on.
    RunRecovered {
        epoch: Epoch,
        owner: Side,
    },
    GoalSet {
        goal: Goal,
    },
    CommandReceived {
        command: String,
        argv: Vec<String>,
    },

    // finite steps: intent before effect
    StepIntended {
        step: String,
        attempt: u64,
        input: Value,
    },
    StepDone {
        step: String,
        attempt: u64,
        output: Value,
    },
    StepFailed {
        step: String,
        attempt: u64,
        error: PartError,
    },
    UndoIntended {
        step: String,
        attempt: u64,
    },
    UndoDone {
        step: String,
        attempt: u64,
    },
    UndoFailed {
        step: String,
        attempt: u64,
        error: PartError,
    },

    // towards readiness
    /// The target exists and is closed to everybody but us; the gateways belong to the run.
    Prepared,
    PartCopied {
        part: String,
        summary: CopySummary,
    },
    /// Every part is copied; from now on there is only following.
    Copied,
    VerifyFinished {
        compared: u64,
        bytes: u64,
        differences_total: u64,
        differences: Vec<Finding>,
    },
    /// The last full comparison stands: VERIFIED.
    Verified,
    ShadowPassed {
        compared: u64,
        note: String,
    },
    /// What comparing reads has found so far, by service.
    ShadowCompared {
        services: Vec<ShadowReport>,
    },
    /// How the owner did, just before it is left: what the soak compares with.
    BaselineTaken {
        services: Vec<Baseline>,
    },
    ReadsShifted {
        percent: u8,
        service: Option<String>,
    },

    /// Reads were watched at every share and nothing spoke against the other side; `None`s mean nobody was there to judge.
    CanaryPassed {
        note: String,
    },

    // the switch
    GateChecked {
        gate: GateRecord,
    },
    GateAccepted {
        gate: String,
    },
    SwitchArmed {
        attempt: u64,
        epoch: Epoch,
        flow: Flow,
        rehearsal: bool,
        predicted: Prediction,
        /// Each part's position when the switch was armed; the hot comparison begins there.
        positions: BTreeMap<String, Position>,
        /// Boot clock, for measuring across engines.
        boot_ms: u64,
    },
    WritesHeld {
        gateways: u32,
        waiting: u64,
        boot_ms: u64,
    },
    Fenced {
        positions: BTreeMap<String, Position>,
        proved: bool,
        boot_ms: u64,
    },
    Drained {
        changes: u64,
        marker_seen: bool,
        boot_ms: u64,
    },
    Sealed {
        reverse_starts: BTreeMap<String, Position>,
        boot_ms: u64,
    },
    /// The register was read back: this is who owns the epoch.
    Decided {
        epoch: Epoch,
        owner: Side,
        why: String,
        boot_ms: u64,
    },
    /// The owner takes writes, as far as it can be probed; gateways that ask are told from now on.
    OwnerOpened {
        epoch: Epoch,
        owner: Side,
        boot_ms: u64,
    },
    /// The last gateway has released its queue.
    WritesReleased {
        epoch: Epoch,
        owner: Side,
        pause_ms: Option<u64>,
        boot_ms: u64,
    },
    /// The way back is being followed.
    ReverseFollowing {
        flow: Flow,
    },
    SwitchAborted {
        why: String,
        keep_verified: bool,
    },
    SwitchReported {
        report: SwitchReport,
    },

    // ends and interruptions
    Paused,
    Resumed,
    CancelBegan,
    Cancelled,
    CompleteBegan,
    Completed,
    Stuck {
        trouble: Trouble,
    },
    /// What was stuck moves again.
    Freed {
        step: String,
    },

    // what was seen; these never change the state
    CopyProgressed {
        part: String,
        objects: u64,
        bytes: u64,
        total_objects: Option<u64>,
        total_bytes: Option<u64>,
    },
    LagSampled {
        part: String,
        flow: Flow,
        follow: FollowState,
    },
    TrafficSampled {
        services: Vec<ServiceTraffic>,
    },
    FindingSeen {
        part: String,
        finding: Finding,
    },
    /// Something a person may want to know; `hint` says what to do.
    Diagnostic {
        warning: bool,
        source: String,
        text: String,
        hint: Option<String>,
    },
}

impl Event {
    /// The name of the variant as it is stored, e.g. `switch_armed`.
    pub fn kind(&self) -> String {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => {
                fields.get("kind").and_then(Value::as_str).map_or_else(String::new, ToOwned::to_owned)
            }
            _ => String::new(),
        }
    }

    /// The finite step it belongs to, if any.
    pub fn step(&self) -> Option<(&str, u64)> {
        match self {
            Self::StepIntended { step, attempt, .. }
            | Self::StepDone { step, attempt, .. }
            | Self::StepFailed { step, attempt, .. }
            | Self::UndoIntended { step, attempt }
            | Self::UndoDone { step, attempt }
            | Self::UndoFailed { step, attempt, .. } => Some((step, *attempt)),
            _ => None,
        }
    }

    /// Samples and remarks: they change no state, and are not worth a copy of the journal of their own.
    pub fn is_sample(&self) -> bool {
        matches!(
            self,
            Self::CopyProgressed { .. }
                | Self::LagSampled { .. }
                | Self::TrafficSampled { .. }
                | Self::FindingSeen { .. }
                | Self::Diagnostic { .. }
                | Self::GateChecked { .. }
                | Self::ShadowCompared { .. }
        )
    }
}
