//! What a run may cost and how it goes there, and the world it acts on. Plain data; no defaults elsewhere.

use crate::ports::{Clock, EntryPort, Faults, Gateways, GuardPort, Workers};
use rehome_part::Part;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What becomes of upgraded and streaming connections when the switch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionRule {
    #[default]
    Wait,
    Close,
    /// A gate: not while there are any.
    Refuse,
}

/// Limits and deadlines. The first group comes from the migration file.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub max_pause: Duration,
    pub in_flight_deadline: Duration,
    /// Shares of reads sent to the target one after the other, in percent.
    pub read_steps: Vec<u8>,
    pub read_step_time: Duration,
    /// How long reads are compared before the first share.
    pub shadow_time: Duration,
    /// How much longer reads may take on the other side, at their median and their 99th percentile.
    pub max_added_latency: Duration,
    /// Go back once by itself when the new owner does worse than the old one; otherwise it is only said.
    pub reverse_when_worse: bool,
    pub soak: Duration,
    pub sessions: SessionRule,
    /// Requests that may wait at the gateways at once.
    pub hold_requests: u32,
    /// Gates that a person said yes to by name beforehand.
    pub accepted_gates: Vec<String>,

    /// The engine's lease and the gateways'; also how long an engine or guard may be silent.
    pub lease: Duration,
    pub renew_every: Duration,
    /// The most lag with which a switch may begin.
    pub max_lag: Duration,
    pub arm_deadline: Duration,
    /// Floors of the deadlines inside the window; twenty round trips are added to each.
    pub fence_deadline: Duration,
    pub drain_floor: Duration,
    pub seal_deadline: Duration,
    /// How long OPEN is tried before the grant is taken back where that is still possible.
    pub open_deadline: Duration,
    /// How long an undo or a step that must succeed may fail before the run says `stuck` (it goes on trying).
    pub stuck_after: Duration,
    /// How long a `switch` command waits for its gates before it answers "gate not met".
    pub gate_patience: Duration,
    /// Attempts that may fail before the goal is lowered to `ready`.
    pub switch_attempts: u32,
    pub freshness_every: Duration,
    pub sample_every: Duration,
    pub reconcile_every: Duration,
    pub sweep_every: Duration,
    /// A window of the soak: how the new owner does in it is compared with how the old one did.
    pub soak_every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        let millis = Duration::from_millis;
        Self {
            max_pause: seconds(2),
            in_flight_deadline: seconds(2),
            read_steps: vec![1, 5, 25, 50],
            read_step_time: seconds(60),
            shadow_time: seconds(60),
            max_added_latency: millis(250),
            reverse_when_worse: false,
            soak: seconds(24 * 3_600),
            sessions: SessionRule::Wait,
            hold_requests: 4_096,
            accepted_gates: Vec::new(),
            lease: seconds(2),
            renew_every: millis(500),
            max_lag: seconds(30),
            arm_deadline: seconds(10),
            fence_deadline: seconds(1),
            drain_floor: seconds(1),
            seal_deadline: seconds(1),
            open_deadline: seconds(3),
            stuck_after: seconds(10),
            gate_patience: seconds(10),
            switch_attempts: 3,
            freshness_every: millis(200),
            sample_every: seconds(1),
            reconcile_every: seconds(3),
            sweep_every: seconds(30),
            soak_every: seconds(30),
        }
    }
}

/// A service as far as the engine is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceInfo {
    pub name: String,
    /// Names of the parts whose data it shows.
    pub uses: Vec<String>,
    pub max_staleness: Duration,
}

/// Everything a run acts on.
#[derive(Debug, Clone)]
pub struct World {
    pub parts: Vec<Arc<dyn Part>>,
    pub services: Vec<ServiceInfo>,
    pub gateways: Arc<dyn Gateways>,
    pub workers: Arc<dyn Workers>,
    pub clock: Arc<dyn Clock>,
    pub faults: Arc<dyn Faults>,
    pub guard: Arc<dyn GuardPort>,
    pub entry: Arc<dyn EntryPort>,
}

/// Where a run lives and who drives it.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The run's folder: `journal.db` and `decision.db` are in it.
    pub folder: PathBuf,
    /// Who drives it, for people and the audit trail: `engine pid 123`, `guard pid 124`.
    pub holder: String,
    /// The program's version, for the journal.
    pub version: String,
    /// A second folder the journal and the register are copied to.
    pub journal_copy: Option<PathBuf>,
    pub settings: Settings,
}
