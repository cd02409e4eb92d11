//! The engine's own hold on a run: journal, register, lease, and the state after the last append. Everything that is written
//! goes through here, with a fault point before and after. It decides nothing.

use crate::error::EngineError;
use crate::keeper::Renewer;
use crate::settings::{Settings, Setup, World};
use crate::units::Units;
use rehome_journal::{Actor, Decision, Event, Journal, Now, Register, Stage, State, StateTime, Trouble};
use rehome_part::{Epoch, Error as PartError, Flow, Position, Side, Token};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub(crate) struct Core {
    pub journal: Arc<Journal>,
    pub register: Arc<Register>,
    pub setup: Arc<Setup>,
    pub world: Arc<World>,
    pub actor: Actor,
    pub state: State,
    pub units: Units,
    pub renewer: Renewer,
    /// Fires when the engine is asked to end.
    pub stop: CancellationToken,
    /// When each stage of the present switch was entered, by the boot clock; only what this engine saw itself.
    pub stages: Vec<(Stage, u64)>,
    /// Events that are true already and go into the journal with the next one: while writes wait, an fsync is worth saving.
    deferred: Vec<Event>,
    /// Everything that was written before these positions of this flow was compared and found equal.
    pub compared: Option<(Flow, BTreeMap<String, Position>)>,
    /// A full comparison is wanted although the last one stands.
    pub compare_again: bool,
    pub remarks: Remarks,
    pub started: Instant,
    /// The last trouble with the journal's copy that was reported.
    pub copy_trouble: Option<String>,
}

/// What was said already, so that something that fails again and again does not fill the journal.
#[derive(Debug, Default)]
pub(crate) struct Remarks {
    last: BTreeMap<String, (String, Instant)>,
    ever: BTreeSet<(String, String)>,
}

impl Remarks {
    /// Is this text about `what` new, or said more than a minute ago?
    pub fn is_news(&mut self, what: &str, text: &str) -> bool {
        let now = Instant::now();
        let old = self
            .last
            .get(what)
            .is_some_and(|(last, at)| last == text && now.duration_since(*at) < Duration::from_secs(60));
        if !old {
            self.last.insert(what.to_owned(), (text.to_owned(), now));
        }
        !old
    }

    /// Was this never said by this engine? Remembers at most a thousand.
    pub fn is_news_ever(&mut self, what: &str, text: &str) -> bool {
        if self.ever.len() >= 1_000 {
            return false;
        }
        self.ever.insert((what.to_owned(), text.to_owned()))
    }
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, rehome_journal::Error> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => Ok(outcome?),
        Err(error) => Err(EngineError::Task(error.to_string())),
    }
}

pub(crate) fn now_of(world: &World) -> Now {
    Now { boot_id: world.clock.boot_id(), boot_ms: world.clock.boot_millis() }
}

/// What an engine begins with; the rest of [`Core`] fills itself.
pub(crate) struct Beginning {
    pub journal: Arc<Journal>,
    pub register: Arc<Register>,
    pub setup: Arc<Setup>,
    pub world: Arc<World>,
    pub actor: Actor,
    pub units: Units,
    pub renewer: Renewer,
}

impl Core {
    pub fn new(beginning: Beginning) -> Self {
        let Beginning { journal, register, setup, world, actor, units, renewer } = beginning;
        Self {
            state: journal.state(),
            actor,
            journal,
            register,
            setup,
            world,
            units,
            renewer,
            stop: CancellationToken::new(),
            stages: Vec::new(),
            deferred: Vec::new(),
            compared: None,
            compare_again: false,
            remarks: Remarks::default(),
            started: Instant::now(),
            copy_trouble: None,
        }
    }

    pub fn settings(&self) -> &Settings {
        &self.setup.settings
    }

    /// Did a person say yes to this gate by name?
    pub fn is_accepted(&self, gate: &str) -> bool {
        self.state.accepted.contains(gate) || self.settings().accepted_gates.iter().any(|name| name == gate)
    }

    pub fn token(&self) -> Token {
        self.actor.token
    }

    pub fn started_at(&self) -> Instant {
        self.started
    }

    pub fn boot_ms(&self) -> u64 {
        self.world.clock.boot_millis()
    }

    pub fn now(&self) -> Now {
        now_of(&self.world)
    }

    /// A point where a test can break in.
    pub async fn fault_point(&self, point: &str) -> Result<(), EngineError> {
        let outcome = self.world.faults.at(point).await;
        outcome.map_err(|error| EngineError::Fault { point: point.to_owned(), error })
    }

    /// Writes events as the engine, all or none, and takes over the state after them.
    pub async fn record(&mut self, events: Vec<Event>) -> Result<(), EngineError> {
        let actor = self.actor.clone();
        let mut all = std::mem::take(&mut self.deferred);
        all.extend(events);
        self.append(actor, all).await
    }

    /// Leaves events to the next append, which is never far. Until then a kill makes them unknown: only for what the next
    /// engine takes for possible anyway, such as the outcome of a step whose intent is written.
    pub fn defer(&mut self, events: Vec<Event>) {
        self.deferred.extend(events);
    }

    pub async fn record_one(&mut self, event: Event) -> Result<(), EngineError> {
        self.record(vec![event]).await
    }

    /// The same in somebody's name (a command's sender); the right to write is always the engine's.
    pub async fn record_as(&mut self, actor: Actor, events: Vec<Event>) -> Result<(), EngineError> {
        self.record(Vec::new()).await?;
        self.append(actor, events).await
    }

    async fn append(&mut self, actor: Actor, events: Vec<Event>) -> Result<(), EngineError> {
        let Some(kind) = events.last().map(Event::kind) else { return Ok(()) };
        let mut kinds: Vec<String> = events.iter().map(Event::kind).collect();
        kinds.dedup();
        for kind in &kinds {
            self.fault_point(&format!("before:journal:{kind}")).await?;
        }
        let (journal, began) = (Arc::clone(&self.journal), Instant::now());
        let at_ms = self.world.clock.wall_millis();
        let outcome = blocking(move || journal.append(&actor, at_ms, &events)).await;
        if matches!(outcome, Err(EngineError::LeaseLost)) {
            self.renewer.lost.cancel();
        }
        let state = outcome?;
        tracing::debug!(kind, ms = began.elapsed().as_millis() as u64, "written down");
        if state.stage != self.state.stage {
            tracing::info!(from = %self.state.stage, to = %state.stage, "state");
            if state.stage == Stage::Armed {
                self.stages.clear();
            }
            self.stages.push((state.stage, self.boot_ms()));
        }
        self.state = state;
        for kind in &kinds {
            self.fault_point(&format!("after:journal:{kind}")).await?;
        }
        Ok(())
    }

    pub async fn remark(
        &mut self,
        warning: bool,
        source: &str,
        text: impl Into<String>,
    ) -> Result<(), EngineError> {
        self.record_one(Event::Diagnostic { warning, source: source.into(), text: text.into(), hint: None })
            .await
    }

    /// Fails unless our lease is still running: nobody else can be the engine then. An engine that slept notices here.
    pub async fn hold_lease(&self) -> Result<(), EngineError> {
        self.renewer.check(&self.journal, &self.world).await
    }

    pub async fn propose(&self, epoch: Epoch) -> Result<(), EngineError> {
        let (register, token) = (Arc::clone(&self.register), self.token());
        blocking(move || register.propose(epoch, token)).await
    }

    /// Puts the question of `epoch` to the register; answers who won, whoever that is. Not journaled here.
    pub async fn decide(&self, epoch: Epoch, owner: Side) -> Result<Decision, EngineError> {
        self.fault_point("before:decide").await?;
        let (register, token) = (Arc::clone(&self.register), self.token());
        let decision = blocking(move || match register.decide(epoch, owner, token) {
            Err(rehome_journal::Error::NotProposed(_)) => {
                register.propose(epoch, token)?;
                register.decide(epoch, owner, token)
            }
            outcome => outcome,
        })
        .await?;
        self.fault_point("after:decide").await?;
        self.journal.copy_now();
        Ok(decision)
    }

    pub async fn decision(&self, epoch: Epoch) -> Result<Option<Decision>, EngineError> {
        let register = Arc::clone(&self.register);
        blocking(move || register.decision(epoch)).await
    }

    /// Says that a human is needed, once per trouble; the caller goes on trying.
    pub async fn say_stuck(&mut self, step: &str, error: &PartError) -> Result<(), EngineError> {
        if self.state.stuck.as_ref().is_some_and(|trouble| trouble.step == step && trouble.why == error.text)
        {
            return Ok(());
        }
        let trouble = Trouble {
            step: step.into(),
            why: error.text.clone(),
            what_is_true: self.what_is_true(),
            how_to_fix: error
                .hint
                .clone()
                .unwrap_or_else(|| format!("see the runbook page for `{step}`; the run goes on by itself")),
            error: Some(error.clone()),
        };
        self.record_one(Event::Stuck { trouble }).await
    }

    pub async fn say_free(&mut self, step: &str) -> Result<(), EngineError> {
        if self.state.stuck.as_ref().is_some_and(|trouble| trouble.step == step) {
            self.record_one(Event::Freed { step: step.into() }).await?;
        }
        Ok(())
    }

    fn what_is_true(&self) -> String {
        let (owner, epoch) = (self.state.owner, self.state.epoch);
        match self.state.stage {
            stage if stage.is_undecided() => {
                format!(
                    "reads are served; the {owner} owns the data in epoch {epoch}; writes wait at the gateways"
                )
            }
            Stage::Returned if self.state.attempt.as_ref().is_some_and(|attempt| attempt.released) => {
                format!(
                    "the {owner} owns the data in epoch {epoch} and serves reads and writes as before; what the attempt left on the \
                 {} is not taken back yet",
                    owner.other()
                )
            }
            Stage::Open | Stage::Returned => format!(
                "reads are served; the {owner} owns the data in epoch {epoch} and takes writes; gateways that did not answer \
                 still hold theirs"
            ),
            _ => format!("the {owner} owns the data in epoch {epoch} and serves reads and writes as before"),
        }
    }

    /// Time in each state of the present switch so far.
    pub fn state_times(&self) -> Vec<StateTime> {
        let ends = self.stages.iter().skip(1).map(|(_, at)| *at).chain([self.boot_ms()]);
        self.stages
            .iter()
            .zip(ends)
            .map(|((stage, at), end)| StateTime { state: stage.to_string(), ms: end.saturating_sub(*at) })
            .collect()
    }
}
