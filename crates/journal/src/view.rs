//! What `status`, `report` and the JSON stream show: folds of the journal, read without an engine and without a lease.
//! It decides nothing and writes nothing.

use crate::database;
use crate::event::{
    Baseline, Event, GateRecord, Record, ServiceTraffic, ShadowReport, SwitchReport, Trouble,
};
use crate::journal::{DECISION_FILE, JOURNAL_FILE, read_events};
use crate::lease::{self, GuardBeat, Lease};
use crate::state::{Attempt, Ending, Goal, Phase, Stage, State};
use crate::{Error, Result};
use rehome_part::{CopySummary, Epoch, Finding, Flow, FollowState, Position, Side};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// One part, as a person wants to see it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PartView {
    pub name: String,
    pub kind: String,
    /// Of the first full copy: done and expected.
    pub objects: u64,
    pub bytes: u64,
    pub total_objects: Option<u64>,
    pub total_bytes: Option<u64>,
    /// Present once the first full copy is finished.
    pub copied: Option<CopySummary>,
    /// The latest sample of the follower, and the flow it follows.
    pub flow: Option<Flow>,
    pub follow: FollowState,
    pub fence_position: Option<Position>,
    pub reverse_start: Option<Position>,
    /// At most the newest 100.
    pub findings: Vec<Finding>,
}

/// One service, as the gateways saw it.
pub type ServiceView = ServiceTraffic;

/// How long the run was in a phase, in the order they were entered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    pub phase: Phase,
    pub entered_ms: i64,
    /// `None` while it lasts.
    pub left_ms: Option<i64>,
}

/// A run at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    pub run: String,
    pub name: String,
    pub phase: Phase,
    /// The state inside, e.g. `STREAMING`.
    pub state: String,
    pub stage: Stage,
    pub epoch: Epoch,
    pub owner: Side,
    pub flow: Flow,
    pub goal: Goal,
    pub paused: bool,
    pub ending: Option<Ending>,
    pub stuck: Option<Trouble>,
    pub attempt: Option<Attempt>,
    pub read_percent: u8,
    pub parts: Vec<PartView>,
    pub services: Vec<ServiceView>,
    /// What comparing reads found, at the last look.
    pub shadow: Vec<ShadowReport>,
    /// How the services did on the owner that was left.
    pub baseline: Vec<Baseline>,
    /// The latest look at every gate, by name.
    pub gates: Vec<GateRecord>,
    /// The last full comparison: compared, bytes, differences.
    pub verified: Option<(u64, u64, u64)>,
    /// The last attempt, whatever came of it; and all of them.
    pub last_switch: Option<SwitchReport>,
    pub switches: Vec<SwitchReport>,
    /// When the present switch-over was reached; the soak counts from here.
    pub switched_at_ms: Option<i64>,
    /// The newest 100 remarks: (time, warning, text, hint).
    pub remarks: Vec<(i64, bool, String, Option<String>)>,
    pub phases: Vec<PhaseTime>,
    pub created_ms: i64,
    pub updated_ms: i64,
    pub last_seq: u64,
    /// A command that makes sense now, e.g. `rehome switch`.
    pub next_action: String,
    /// The engine's lease and the guard's last beat, as they stand; compare with the boot clock.
    pub lease: Option<Lease>,
    pub guard: Option<GuardBeat>,
}

impl RunView {
    /// Reads a run's folder (or a copy of it) once.
    pub fn load(folder: &Path) -> Result<Self> {
        let mut reader = Reader::open(folder)?;
        reader.refresh()?;
        Ok(reader.view)
    }

    fn empty() -> Self {
        let state = State::default();
        Self {
            run: String::new(),
            name: String::new(),
            phase: state.phase(),
            state: state.stage.to_string(),
            stage: state.stage,
            epoch: state.epoch,
            owner: state.owner,
            flow: state.flow(),
            goal: state.goal,
            paused: false,
            ending: None,
            stuck: None,
            attempt: None,
            read_percent: 0,
            parts: Vec::new(),
            services: Vec::new(),
            shadow: Vec::new(),
            baseline: Vec::new(),
            gates: Vec::new(),
            verified: None,
            last_switch: None,
            switches: Vec::new(),
            switched_at_ms: None,
            remarks: Vec::new(),
            phases: Vec::new(),
            created_ms: 0,
            updated_ms: 0,
            last_seq: 0,
            next_action: String::new(),
            lease: None,
            guard: None,
        }
    }

    fn part(&mut self, name: &str) -> Option<&mut PartView> {
        self.parts.iter_mut().find(|part| part.name == name)
    }

    fn take_state(&mut self, state: &State, at_ms: i64) {
        let phase = state.phase();
        if self.phases.last().is_none_or(|last| last.phase != phase) {
            if let Some(last) = self.phases.last_mut() {
                last.left_ms = Some(at_ms);
            }
            self.phases.push(PhaseTime { phase, entered_ms: at_ms, left_ms: None });
        }
        self.phase = phase;
        self.state = state.stage.to_string();
        self.stage = state.stage;
        self.epoch = state.epoch;
        self.owner = state.owner;
        self.flow = state.flow();
        self.goal = state.goal;
        self.paused = state.paused;
        self.ending = state.ending;
        self.stuck.clone_from(&state.stuck);
        self.attempt.clone_from(&state.attempt);
        self.read_percent = state.read_percent;
        self.next_action = next_action(state);
        self.updated_ms = at_ms;
    }

    fn take_event(&mut self, record: &Record) {
        match &record.event {
            Event::RunCreated { run, name, parts, services } => {
                (self.run, self.name, self.created_ms) = (run.clone(), name.clone(), record.at_ms);
                self.parts = parts
                    .iter()
                    .map(|part| PartView {
                        name: part.name.clone(),
                        kind: part.kind.clone(),
                        ..PartView::default()
                    })
                    .collect();
                self.services = services
                    .iter()
                    .map(|name| ServiceTraffic { name: name.clone(), ..Default::default() })
                    .collect();
            }
            Event::TrafficSampled { services } => self.services.clone_from(services),
            Event::ShadowCompared { services } => self.shadow.clone_from(services),
            Event::BaselineTaken { services } => self.baseline.clone_from(services),
            Event::GateChecked { gate } => match self.gates.iter_mut().find(|seen| seen.name == gate.name) {
                Some(seen) => *seen = gate.clone(),
                None => self.gates.push(gate.clone()),
            },
            Event::VerifyFinished { compared, bytes, differences_total, .. } => {
                self.verified = Some((*compared, *bytes, *differences_total));
            }
            Event::SwitchReported { report } => {
                self.last_switch = Some(report.clone());
                self.switches.push(report.clone());
            }
            Event::ReverseFollowing { .. } => self.switched_at_ms = Some(record.at_ms),
            Event::Diagnostic { warning, text, hint, .. } => {
                self.remarks.push((record.at_ms, *warning, text.clone(), hint.clone()));
                keep_newest(&mut self.remarks);
            }
            event => self.take_part_event(event),
        }
    }

    fn take_part_event(&mut self, event: &Event) {
        match event {
            Event::PartCopied { part, summary } => {
                if let Some(view) = self.part(part) {
                    (view.objects, view.bytes) =
                        (summary.objects + summary.kept, view.bytes.max(summary.bytes));
                    view.copied = Some(summary.clone());
                }
            }
            Event::CopyProgressed { part, objects, bytes, total_objects, total_bytes } => {
                if let Some(view) = self.part(part) {
                    (view.objects, view.bytes) = (*objects, *bytes);
                    (view.total_objects, view.total_bytes) = (*total_objects, *total_bytes);
                }
            }
            Event::LagSampled { part, flow, follow } => {
                if let Some(view) = self.part(part) {
                    (view.flow, view.follow) = (Some(*flow), follow.clone());
                }
            }
            Event::FindingSeen { part, finding } => {
                if let Some(view) = self.part(part) {
                    view.findings.push(finding.clone());
                    keep_newest(&mut view.findings);
                }
            }
            Event::Fenced { positions, .. } => {
                for view in &mut self.parts {
                    view.fence_position = positions.get(&view.name).cloned();
                }
            }
            Event::Sealed { reverse_starts, .. } => {
                for view in &mut self.parts {
                    view.reverse_start = reverse_starts.get(&view.name).cloned();
                }
            }
            _ => {}
        }
    }

    /// Sums the time spent in each phase, the present one up to `now_ms`.
    pub fn time_per_phase(&self, now_ms: i64) -> BTreeMap<Phase, i64> {
        let mut sums = BTreeMap::new();
        for time in &self.phases {
            *sums.entry(time.phase).or_insert(0) += (time.left_ms.unwrap_or(now_ms) - time.entered_ms).max(0);
        }
        sums
    }
}

fn keep_newest<T>(list: &mut Vec<T>) {
    if list.len() > 100 {
        list.remove(0);
    }
}

/// The command a person would give next.
fn next_action(state: &State) -> String {
    if state.paused && !state.stage.is_final() {
        return "rehome resume".into();
    }
    match state.phase() {
        Phase::Planned | Phase::Copying => "rehome status --watch",
        Phase::Following => "rehome apply --until ready",
        Phase::Ready | Phase::Shifting => "rehome switch",
        Phase::Switching => "rehome status --watch",
        Phase::Switched => "rehome complete, or rehome reverse",
        Phase::Reversed => "rehome switch, or rehome cancel",
        Phase::Completed | Phase::Cancelled => "rehome report",
        Phase::Stuck => "do what `how to fix` says; the run goes on by itself",
    }
    .into()
}

/// Follows a journal while somebody else writes it.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    state: State,
    view: RunView,
}

impl Reader {
    /// Opens the record in `folder` without the right to write.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(JOURNAL_FILE);
        if !path.exists() {
            return Err(Error::NotFound(path));
        }
        let connection = database::connect_to_read(&path)?;
        database::check_format(&connection)?;
        Ok(Self { connection, state: State::default(), view: RunView::empty() })
    }

    /// Takes in what was written since the last call.
    pub fn refresh(&mut self) -> Result<&RunView> {
        loop {
            let records = read_events(&self.connection, self.view.last_seq, 1_000)?;
            if records.is_empty() {
                break;
            }
            for record in records {
                if record.seq != self.view.last_seq + 1 {
                    return Err(Error::Impossible {
                        seq: self.view.last_seq + 1,
                        why: "it is missing".into(),
                    });
                }
                self.state = self
                    .state
                    .next(&record.event)
                    .map_err(|illegal| Error::Impossible { seq: record.seq, why: illegal.to_string() })?;
                self.view.take_event(&record);
                self.view.take_state(&self.state, record.at_ms);
                self.view.last_seq = record.seq;
            }
        }
        self.view.lease = lease::read(&self.connection)?;
        self.view.guard = lease::guard(&self.connection)?;
        Ok(&self.view)
    }

    pub fn view(&self) -> &RunView {
        &self.view
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Events after `seq`, at most `limit`.
    pub fn events_since(&self, seq: u64, limit: usize) -> Result<Vec<Record>> {
        read_events(&self.connection, seq, limit)
    }

    /// Is there a register beside the journal?
    pub fn has_register(folder: &Path) -> bool {
        folder.join(DECISION_FILE).exists()
    }
}
