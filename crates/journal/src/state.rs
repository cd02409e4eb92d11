//! The states of a run and the one pure function that leads from one to the next. It is used before every append and
//! again on load, so a history that cannot have happened is found with its sequence number. No clock, no file, no effect.

use crate::event::{Baseline, Event, Trouble};
use rehome_part::{Epoch, Flow, Position, Side, Token};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The states inside. Deadlines and undo of each are in the engine's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Before the first event.
    Nothing,
    Planned,
    Prepared,
    Streaming,
    Verified,
    Shadow,
    ReadCanary,
    Armed,
    Held,
    Fenced,
    Drained,
    Sealed,
    /// The new owner is decided; everything rolls forward from here.
    Committed,
    /// The new owner takes writes; gateways, workers and the way back are being settled.
    Open,
    /// The old owner is decided (again); the switch is being taken back.
    Aborting,
    /// The old owner takes writes; gateways and workers are being settled.
    Returned,
    /// After a switch: the way back is followed. Owner target: `switched`; owner source: `reversed`.
    Reversing,
    Final,
    Cancelled,
}

impl Stage {
    /// Between ARMED and the acknowledged end: gateways live under a lease.
    pub fn in_switch(self) -> bool {
        (Self::Armed..=Self::Returned).contains(&self)
    }

    /// Is nobody's right to write settled? Then gateways that ask are told to keep holding.
    pub fn is_undecided(self) -> bool {
        (Self::Armed..=Self::Committed).contains(&self) || self == Self::Aborting
    }

    pub fn is_final(self) -> bool {
        matches!(self, Self::Final | Self::Cancelled)
    }

    /// The name as in the design: `READ_CANARY`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "NOTHING",
            Self::Planned => "PLANNED",
            Self::Prepared => "PREPARED",
            Self::Streaming => "STREAMING",
            Self::Verified => "VERIFIED",
            Self::Shadow => "SHADOW",
            Self::ReadCanary => "READ_CANARY",
            Self::Armed => "ARMED",
            Self::Held => "HELD",
            Self::Fenced => "FENCED",
            Self::Drained => "DRAINED",
            Self::Sealed => "SEALED",
            Self::Committed => "COMMITTED",
            Self::Open => "OPEN",
            Self::Aborting => "ABORTING",
            Self::Returned => "RETURNED",
            Self::Reversing => "REVERSING",
            Self::Final => "FINAL",
            Self::Cancelled => "CANCELLED",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What people see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Planned,
    Copying,
    Following,
    Ready,
    Shifting,
    Switching,
    Switched,
    Completed,
    Reversed,
    Cancelled,
    Stuck,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Copying => "copying",
            Self::Following => "following",
            Self::Ready => "ready",
            Self::Shifting => "shifting",
            Self::Switching => "switching",
            Self::Switched => "switched",
            Self::Completed => "completed",
            Self::Reversed => "reversed",
            Self::Cancelled => "cancelled",
            Self::Stuck => "stuck",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How far the run is to go by itself. Ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Do nothing new by itself.
    Stay,
    Following,
    Ready,
    Switched,
    /// Switched, and after the soak completed.
    Completed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    Cancelling,
    Completing,
}

/// One attempt to switch, from ARMED to its end. It decides who owns `epoch.next()`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub number: u64,
    /// The epoch that ends.
    pub epoch: Epoch,
    pub flow: Flow,
    pub rehearsal: bool,
    pub came_from: Stage,
    /// Known from FENCED on.
    pub fences: BTreeMap<String, Position>,
    /// The last gateway has released its queue.
    pub released: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// The effect may or may not be there.
    Intended,
    Done,
    /// Refused or timed out; the effect may be there in part.
    Failed,
    UndoIntended,
    Undone,
}

/// The idempotency key of a step within its run.
pub fn step_key(step: &str, attempt: u64) -> String {
    format!("{step}#{attempt}")
}

/// Where a run stands, folded from its events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub stage: Stage,
    pub epoch: Epoch,
    pub owner: Side,
    /// The highest engine token that ever wrote here.
    pub token: Token,
    pub goal: Goal,
    pub parts: Vec<String>,
    /// Parts whose first full copy is finished.
    pub copied: BTreeSet<String>,
    /// The last full comparison found no difference, and nothing has put that in doubt.
    pub verified: bool,
    /// Share of reads on the side that is not the owner.
    pub read_percent: u8,
    /// The read shares were watched to the end; a retried switch need not repeat them.
    pub canary_passed: bool,
    /// How the services did on the owner that was left last.
    pub baseline: Vec<Baseline>,
    /// Where the late writes of the last committed switch would lie: its flow and each part's fence position.
    pub swept_from: Option<(Flow, BTreeMap<String, Position>)>,
    pub paused: bool,
    pub ending: Option<Ending>,
    pub stuck: Option<Trouble>,
    /// Attempts begun so far.
    pub attempts: u64,
    pub attempt: Option<Attempt>,
    /// Gates a person said yes to by name.
    pub accepted: BTreeSet<String>,
    /// Steps of the present attempt (and of preparation), by [`step_key`].
    pub steps: BTreeMap<String, StepState>,
}

/// An event that cannot happen in this state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{event}` cannot happen in {stage}: {why}")]
pub struct IllegalEvent {
    pub stage: Stage,
    pub event: String,
    pub why: String,
}

impl Default for State {
    fn default() -> Self {
        Self {
            stage: Stage::Nothing,
            epoch: Epoch::FIRST,
            owner: Side::Source,
            token: Token(0),
            goal: Goal::Stay,
            parts: Vec::new(),
            copied: BTreeSet::new(),
            verified: false,
            read_percent: 0,
            canary_passed: false,
            baseline: Vec::new(),
            swept_from: None,
            paused: false,
            ending: None,
            stuck: None,
            attempts: 0,
            attempt: None,
            accepted: BTreeSet::new(),
            steps: BTreeMap::new(),
        }
    }
}

impl State {
    pub fn phase(&self) -> Phase {
        match self.stage {
            Stage::Final => Phase::Completed,
            Stage::Cancelled => Phase::Cancelled,
            _ if self.stuck.is_some() => Phase::Stuck,
            Stage::Nothing | Stage::Planned => Phase::Planned,
            Stage::Prepared => Phase::Copying,
            Stage::Streaming => Phase::Following,
            Stage::Verified | Stage::Shadow => Phase::Ready,
            Stage::ReadCanary => Phase::Shifting,
            Stage::Armed
            | Stage::Held
            | Stage::Fenced
            | Stage::Drained
            | Stage::Sealed
            | Stage::Committed
            | Stage::Aborting
            | Stage::Returned => Phase::Switching,
            Stage::Open | Stage::Reversing if self.owner == Side::Target => Phase::Switched,
            Stage::Open | Stage::Reversing => Phase::Reversed,
        }
    }

    /// The direction data moves in while this owner takes the writes.
    pub fn flow(&self) -> Flow {
        Flow::leaving(self.owner)
    }

    pub fn step(&self, step: &str, attempt: u64) -> Option<StepState> {
        self.steps.get(&step_key(step, attempt)).copied()
    }

    /// The state after `event`, or why it cannot happen. Pure.
    pub fn next(&self, event: &Event) -> Result<Self, IllegalEvent> {
        let mut state = self.clone();
        let outcome = if let Event::RunCreated { parts, .. } = event {
            state.be_born(parts.iter().map(|part| part.name.clone()).collect())
        } else if self.stage == Stage::Nothing {
            Err("a run begins with run_created".to_owned())
        } else {
            match event {
                Event::StepIntended { .. }
                | Event::StepDone { .. }
                | Event::StepFailed { .. }
                | Event::UndoIntended { .. }
                | Event::UndoDone { .. }
                | Event::UndoFailed { .. } => state.follow_step(event),
                Event::SwitchArmed { .. }
                | Event::WritesHeld { .. }
                | Event::Fenced { .. }
                | Event::Drained { .. }
                | Event::Sealed { .. }
                | Event::Decided { .. }
                | Event::OwnerOpened { .. }
                | Event::WritesReleased { .. }
                | Event::ReverseFollowing { .. }
                | Event::SwitchAborted { .. } => state.follow_switch(event),
                _ => state.follow_life(event),
            }
        };
        match outcome {
            Ok(()) => Ok(state),
            Err(why) => Err(IllegalEvent { stage: self.stage, event: event.kind(), why }),
        }
    }

    fn be_born(&mut self, parts: Vec<String>) -> Result<(), String> {
        if self.stage != Stage::Nothing {
            return Err("the run exists already".into());
        }
        let distinct: BTreeSet<&String> = parts.iter().collect();
        if distinct.len() != parts.len() {
            return Err("two parts have the same name".into());
        }
        self.stage = Stage::Planned;
        self.parts = parts;
        Ok(())
    }

    fn require(&self, allowed: bool, why: &str) -> Result<(), String> {
        if allowed { Ok(()) } else { Err(why.to_owned()) }
    }

    fn step_to(&mut self, from: Stage, to: Stage) -> Result<(), String> {
        self.require(self.stage == from, &format!("it leads from {from} to {to}"))?;
        self.stage = to;
        Ok(())
    }

    fn follow_step(&mut self, event: &Event) -> Result<(), String> {
        let (step, attempt) = event.step().expect("only step events are sent here");
        let key = step_key(step, attempt);
        let before = self.steps.get(&key).copied();
        let after = match event {
            Event::StepIntended { .. } => StepState::Intended,
            Event::UndoIntended { .. } => StepState::UndoIntended,
            Event::StepDone { .. } if before == Some(StepState::Intended) => StepState::Done,
            Event::StepFailed { .. } if before == Some(StepState::Intended) => StepState::Failed,
            Event::UndoDone { .. } if before == Some(StepState::UndoIntended) => StepState::Undone,
            Event::UndoFailed { .. } if before == Some(StepState::UndoIntended) => StepState::UndoIntended,
            _ => return Err(format!("`{key}` has an outcome without an intent")),
        };
        self.require(!self.stage.is_final(), "the run is over")?;
        self.steps.insert(key, after);
        Ok(())
    }

    fn follow_life(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::EngineStarted { token, .. } => {
                self.require(*token > self.token, "the token is not higher than the one before")?;
                self.token = *token;
            }
            Event::RunRecovered { epoch, owner } => self.be_recovered(*epoch, *owner)?,
            Event::GoalSet { goal } => self.goal = *goal,
            Event::Prepared => self.step_to(Stage::Planned, Stage::Prepared)?,
            Event::PartCopied { part, .. } => {
                self.require(self.stage == Stage::Prepared, "copying is over or has not begun")?;
                self.require(self.parts.contains(part), "there is no such part")?;
                self.copied.insert(part.clone());
            }
            Event::Copied => {
                self.require(self.copied.len() == self.parts.len(), "not every part is copied")?;
                self.step_to(Stage::Prepared, Stage::Streaming)?;
            }
            Event::VerifyFinished { differences_total, .. } => self.finish_verify(*differences_total)?,
            Event::Verified => {
                self.require(self.verified, "no comparison stands")?;
                self.step_to(Stage::Streaming, Stage::Verified)?;
            }
            Event::ShadowPassed { .. } => self.step_to(Stage::Verified, Stage::Shadow)?,
            Event::ReadsShifted { percent, .. } => self.shift_reads(*percent)?,
            Event::CanaryPassed { .. } => self.canary_passed = true,
            Event::BaselineTaken { services } => self.baseline.clone_from(services),
            Event::GateAccepted { gate } => {
                self.accepted.insert(gate.clone());
            }
            Event::Paused | Event::Resumed => {
                self.require(!self.stage.in_switch(), "a switch is under way")?;
                self.require(!self.stage.is_final(), "the run is over")?;
                self.paused = *event == Event::Paused;
            }
            Event::CancelBegan | Event::Cancelled | Event::CompleteBegan | Event::Completed => {
                self.end(event)?
            }
            Event::Stuck { trouble } => {
                self.require(!self.stage.is_final(), "the run is over")?;
                self.stuck = Some(trouble.clone());
            }
            Event::Freed { .. } => {
                self.require(self.stuck.is_some(), "nothing was stuck")?;
                self.stuck = None;
            }
            _ => {} // samples, remarks, commands: they change nothing
        }
        Ok(())
    }

    /// The source owns: preparing and copying begin again and find what is there. The target owns: the way back is followed.
    fn be_recovered(&mut self, epoch: Epoch, owner: Side) -> Result<(), String> {
        let fresh = self.stage == Stage::Planned && self.epoch == Epoch::FIRST;
        let fresh = fresh && self.steps.is_empty() && self.ending.is_none();
        self.require(
            fresh && epoch >= Epoch::FIRST,
            "only a run that has not begun takes over another's place",
        )?;
        (self.epoch, self.owner) = (epoch, owner);
        if owner == Side::Target {
            self.copied = self.parts.iter().cloned().collect();
            self.stage = Stage::Reversing;
        }
        Ok(())
    }

    fn finish_verify(&mut self, differences: u64) -> Result<(), String> {
        let following = matches!(
            self.stage,
            Stage::Streaming | Stage::Verified | Stage::Shadow | Stage::ReadCanary | Stage::Reversing
        );
        self.require(following, "nothing is being followed")?;
        self.verified = differences == 0;
        self.canary_passed &= self.verified;
        if !self.verified && matches!(self.stage, Stage::Verified | Stage::Shadow) {
            self.stage = Stage::Streaming;
        }
        Ok(())
    }

    fn shift_reads(&mut self, percent: u8) -> Result<(), String> {
        self.require(percent <= 100, "a share is at most 100 %")?;
        match self.stage {
            Stage::Reversing => {}
            Stage::Streaming | Stage::Verified | Stage::Shadow | Stage::ReadCanary if percent > 0 => {
                self.stage = Stage::ReadCanary;
            }
            Stage::ReadCanary => self.stage = if self.verified { Stage::Shadow } else { Stage::Streaming },
            Stage::Streaming | Stage::Verified | Stage::Shadow => {}
            _ => return Err("reads are shifted only while following".into()),
        }
        self.read_percent = percent;
        Ok(())
    }

    fn end(&mut self, event: &Event) -> Result<(), String> {
        self.require(
            !self.stage.in_switch() && !self.stage.is_final(),
            "a switch is under way or the run is over",
        )?;
        match event {
            Event::CancelBegan => {
                self.require(self.owner == Side::Source, "the target owns the data; reverse first")?;
                self.require(self.ending != Some(Ending::Completing), "the run is being completed")?;
                self.ending = Some(Ending::Cancelling);
            }
            Event::Cancelled => {
                self.require(self.ending == Some(Ending::Cancelling), "it was not begun")?;
                (self.stage, self.ending, self.stuck, self.read_percent) = (Stage::Cancelled, None, None, 0);
            }
            Event::CompleteBegan => {
                let switched = self.stage == Stage::Reversing && self.owner == Side::Target;
                self.require(switched, "only a switched run can be completed")?;
                self.ending = Some(Ending::Completing);
            }
            _ => {
                self.require(self.ending == Some(Ending::Completing), "it was not begun")?;
                (self.stage, self.ending, self.stuck) = (Stage::Final, None, None);
            }
        }
        Ok(())
    }

    fn follow_switch(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::SwitchArmed { attempt, epoch, flow, rehearsal, .. } => {
                self.arm(*attempt, *epoch, *flow, *rehearsal)?;
            }
            Event::WritesHeld { .. } => self.step_to(Stage::Armed, Stage::Held)?,
            Event::Fenced { positions, .. } => {
                self.step_to(Stage::Held, Stage::Fenced)?;
                self.attempt.as_mut().ok_or("there is no attempt")?.fences.clone_from(positions);
            }
            Event::Drained { .. } => self.step_to(Stage::Fenced, Stage::Drained)?,
            Event::Sealed { .. } => self.step_to(Stage::Drained, Stage::Sealed)?,
            Event::Decided { epoch, owner, .. } => self.decide(*epoch, *owner)?,
            Event::OwnerOpened { epoch, owner, .. } => {
                self.require((*epoch, *owner) == (self.epoch, self.owner), "another owner was decided")?;
                match self.stage {
                    Stage::Committed => self.stage = Stage::Open,
                    Stage::Aborting => self.stage = Stage::Returned,
                    _ => return Err("no owner was decided".into()),
                }
            }
            Event::WritesReleased { epoch, owner, .. } => {
                self.require(
                    matches!(self.stage, Stage::Open | Stage::Returned),
                    "the owner does not take writes yet",
                )?;
                self.require((*epoch, *owner) == (self.epoch, self.owner), "another owner was decided")?;
                self.attempt.as_mut().ok_or("there is no attempt")?.released = true;
            }
            Event::ReverseFollowing { flow } => {
                self.require(*flow == self.flow(), "that is not the way back from the owner")?;
                self.step_to(Stage::Open, Stage::Reversing)?;
                let attempt = self.attempt.take().ok_or("there is no attempt")?;
                self.swept_from = Some((attempt.flow, attempt.fences));
                self.read_percent = 0;
            }
            Event::SwitchAborted { keep_verified, .. } => {
                self.require(self.stage == Stage::Returned, "the old owner does not take writes yet")?;
                let attempt = self.attempt.take().ok_or("there is no attempt")?;
                self.verified &= *keep_verified;
                self.read_percent = 0;
                self.stage =
                    if attempt.came_from == Stage::Reversing { Stage::Reversing } else { Stage::Streaming };
            }
            _ => return Err("it is no event of a switch".into()),
        }
        Ok(())
    }

    fn arm(&mut self, attempt: u64, epoch: Epoch, flow: Flow, rehearsal: bool) -> Result<(), String> {
        let from =
            matches!(self.stage, Stage::Verified | Stage::Shadow | Stage::ReadCanary | Stage::Reversing);
        self.require(from, "a switch begins from ready, shifting, switched or reversed")?;
        self.require(self.verified, "no comparison stands")?;
        self.require(!self.paused, "the run is paused")?;
        self.require(self.ending.is_none(), "the run is being ended")?;
        self.require(attempt == self.attempts + 1, "attempts are counted one by one")?;
        self.require(epoch == self.epoch, "it is not the present epoch")?;
        self.require(flow == self.flow(), "it does not lead away from the owner")?;
        self.attempts = attempt;
        self.attempt = Some(Attempt {
            number: attempt,
            epoch,
            flow,
            rehearsal,
            came_from: self.stage,
            fences: BTreeMap::new(),
            released: false,
        });
        self.steps.clear();
        self.stage = Stage::Armed;
        Ok(())
    }

    fn decide(&mut self, epoch: Epoch, owner: Side) -> Result<(), String> {
        let attempt = self.attempt.as_ref().ok_or("no switch is armed")?;
        let (from, to) = (attempt.flow.from(), attempt.flow.to());
        self.require(epoch == self.epoch.next(), "epochs are decided one by one")?;
        self.stage = match self.stage {
            Stage::Sealed if owner == to && !attempt.rehearsal => Stage::Committed,
            Stage::Armed | Stage::Held | Stage::Fenced | Stage::Drained | Stage::Sealed if owner == from => {
                Stage::Aborting
            }
            // the grant of the epoch before was taken back, and nobody had written under it
            Stage::Committed if owner == from => Stage::Aborting,
            _ => return Err(format!("the {owner} cannot become the owner here")),
        };
        (self.epoch, self.owner) = (epoch, owner);
        Ok(())
    }
}
