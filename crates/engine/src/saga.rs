//! How a finite step is run: intent before effect, a deadline around it, a look at the world after it, and the outcome into
//! the journal. Undo goes the same way, backwards. Nothing here knows what a step does.

use crate::core::Core;
use crate::error::{EngineError, Halt};
use crate::steps::{Context, Observed, Step};
use futures::future::join_all;
use rehome_journal::{Event, StepState};
use rehome_part::{Error as PartError, ErrorKind};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// The first pause after a failed try; it doubles up to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LAST: Duration = Duration::from_secs(2);

/// Applies a step once. `then` are events that are true as soon as it is done; they are written with its outcome.
pub(crate) async fn apply(
    core: &mut Core,
    step: &dyn Step,
    context: &Context,
    then: impl FnOnce(&Context) -> Vec<Event> + Send,
) -> Result<(), Halt> {
    let outcome = apply_on(core, step, context, then).await;
    core.record(Vec::new()).await?;
    outcome
}

/// Applies steps that do not need each other at once, and ends when all have ended. The first failure is the answer.
pub(crate) async fn apply_together(
    core: &mut Core,
    steps: &[&dyn Step],
    context: &Context,
    then: impl FnOnce(&Context) -> Vec<Event> + Send,
) -> Result<(), Halt> {
    let attempt = context.attempt;
    let intent = |step: &&dyn Step| Event::StepIntended {
        step: step.name().into(),
        attempt,
        input: input(core, context),
    };
    let intents = steps.iter().map(intent).collect();
    core.record(intents).await?;
    let outcomes = {
        let core: &Core = core;
        join_all(steps.iter().map(|step| effect(core, *step, context))).await
    };
    let mut halt = None;
    let mut events = Vec::new();
    for (step, outcome) in steps.iter().zip(outcomes) {
        let step = step.name().to_owned();
        match outcome {
            Ok(output) => events.push(Event::StepDone { step, attempt, output }),
            Err(Halt::Failed { error, .. }) => {
                tracing::info!(step, %error, "a step failed");
                events.push(Event::StepFailed { step: step.clone(), attempt, error: error.clone() });
                halt.get_or_insert(Halt::Failed { step, error });
            }
            Err(fatal) => return Err(fatal),
        }
    }
    if halt.is_none() {
        events.extend(then(context));
    }
    core.record(events).await?;
    halt.map_or(Ok(()), Err)
}

fn input(core: &Core, context: &Context) -> Value {
    let now = core.now();
    json!({ "epoch": context.epoch, "flow": context.flow, "boot_id": now.boot_id, "boot_ms": now.boot_ms })
}

/// The same as [`apply`], with another step right behind it: a success is written down with that one's intent.
pub(crate) async fn apply_on(
    core: &mut Core,
    step: &dyn Step,
    context: &Context,
    then: impl FnOnce(&Context) -> Vec<Event> + Send,
) -> Result<(), Halt> {
    let (name, attempt) = (step.name(), context.attempt);
    let input = input(core, context);
    core.record_one(Event::StepIntended { step: name.into(), attempt, input }).await?;
    match effect(core, step, context).await {
        Ok(output) => {
            core.defer(vec![Event::StepDone { step: name.into(), attempt, output }]);
            core.defer(then(context));
            Ok(())
        }
        Err(Halt::Failed { error, .. }) => {
            tracing::info!(step = name, %error, "a step failed");
            core.record_one(Event::StepFailed { step: name.into(), attempt, error: error.clone() }).await?;
            Err(Halt::failed(name, error))
        }
        Err(fatal) => Err(fatal),
    }
}

/// The effect between the two journal writes: guarded by our lease, and proved by a look.
async fn effect(core: &Core, step: &dyn Step, context: &Context) -> Result<Value, Halt> {
    let name = step.name();
    broken_in(core, "before", name).await?;
    core.hold_lease().await?;
    let deadline = step.deadline(context);
    let began = Instant::now();
    let work = async {
        let output = step.apply(context).await?;
        if context.sabotage(&format!("repeat:{name}")) {
            step.apply(context).await?;
        }
        tracing::debug!(step = name, ms = began.elapsed().as_millis() as u64, "applied");
        if step.proves_itself() {
            return Ok(output);
        }
        match step.observe(context).await? {
            Observed::NotApplied => Err(PartError::temporary(
                ErrorKind::Other,
                format!("{name} was done, and the world does not show it"),
            )),
            _ => Ok(output),
        }
    };
    let outcome = tokio::select! {
        biased;
        () = context.stop.cancelled() => Err(context.reason()),
        outcome = within(deadline, step, context, work) => outcome,
    };
    tracing::debug!(step = name, ms = began.elapsed().as_millis() as u64, "ended");
    let output = outcome.map_err(|error| Halt::failed(name, error))?;
    broken_in(core, "after", name).await?;
    Ok(output)
}

/// A fault point around a step makes the step fail, as if the world had.
async fn broken_in(core: &Core, when: &str, name: &str) -> Result<(), Halt> {
    core.world.faults.at(&format!("{when}:{name}")).await.map_err(|error| Halt::failed(name, error))
}

async fn within<T>(
    deadline: Duration,
    step: &dyn Step,
    context: &Context,
    work: impl Future<Output = Result<T, PartError>>,
) -> Result<T, PartError> {
    if let Ok(outcome) = tokio::time::timeout(deadline, work).await {
        return outcome;
    }
    let text = format!("{} took longer than {:.1} s", step.name(), deadline.as_secs_f64());
    let error = PartError::temporary(ErrorKind::Deadline, text);
    let whom = match (step.side(context), step.trips()) {
        (Some(side), _) => format!("the {side}"),
        (None, trips) if trips.from + trips.to > 0 => "one of the sides".to_owned(),
        _ => return Err(error),
    };
    let error = step.side(context).map_or(error.clone(), |side| error.on(side));
    Err(error.hint(format!(
        "{whom} does not answer in time: see that it runs and that its network is whole (`rehome doctor`); the run goes on by \
         itself as soon as it answers"
    )))
}

/// Takes a step back once.
async fn undo_once(core: &mut Core, step: &dyn Step, context: &Context) -> Result<(), Halt> {
    let (name, attempt) = (step.name(), context.attempt);
    core.record_one(Event::UndoIntended { step: name.into(), attempt }).await?;
    let outcome = undo_effect(core, step, context).await;
    match outcome {
        Ok(()) => {
            core.record_one(Event::UndoDone { step: name.into(), attempt }).await?;
            Ok(())
        }
        Err(Halt::Failed { error, .. }) => {
            core.record_one(Event::UndoFailed { step: name.into(), attempt, error: error.clone() }).await?;
            Err(Halt::failed(name, error))
        }
        Err(fatal) => Err(fatal),
    }
}

async fn undo_effect(core: &Core, step: &dyn Step, context: &Context) -> Result<(), Halt> {
    let name = step.name();
    broken_in(core, "before:undo", name).await?;
    core.hold_lease().await?;
    let work = async {
        step.undo(context).await?;
        if context.sabotage(&format!("repeat-undo:{name}")) {
            step.undo(context).await?;
        }
        Ok(())
    };
    let deadline = step.deadline(context).max(Duration::from_secs(1)) * 2;
    within(deadline, step, context, work).await.map_err(|error| Halt::failed(name, error))?;
    broken_in(core, "after:undo", name).await
}

/// What has to succeed is tried for ever: after `stuck_after` the run says `stuck` and goes on trying. It ends early only
/// when the engine is asked to stop, when the engine itself cannot go on, or at `until`.
struct Patience {
    began: Instant,
    pause: Duration,
    until: Option<Instant>,
}

impl Patience {
    fn new(until: Option<Instant>) -> Self {
        Self { began: Instant::now(), pause: PAUSE_FIRST, until }
    }

    /// Waits before the next try, or says that there is none.
    async fn next(&mut self, core: &mut Core, step: &str, error: PartError) -> Result<(), Halt> {
        if self.until.is_some_and(|until| Instant::now() + self.pause >= until) {
            return Err(Halt::failed(step, error));
        }
        if self.began.elapsed() >= core.settings().stuck_after {
            core.say_stuck(step, &error).await?;
            if core.stop.is_cancelled() {
                return Err(EngineError::Stopped.into());
            }
        }
        let lost = core.renewer.lost.clone();
        tokio::select! {
            () = lost.cancelled() => return Err(EngineError::LeaseLost.into()),
            () = tokio::time::sleep(self.pause) => {}
        }
        self.pause = (self.pause * 2).min(PAUSE_LAST);
        Ok(())
    }
}

/// Applies a step until it succeeds, or until `until`. Its success is written down with whatever is recorded next.
pub(crate) async fn insist(
    core: &mut Core,
    step: &dyn Step,
    context: &Context,
    until: Option<Instant>,
    then: impl Fn(&Context) -> Vec<Event> + Send + Sync,
) -> Result<(), Halt> {
    let mut patience = Patience::new(until);
    loop {
        match apply_on(core, step, context, &then).await {
            Ok(()) => return Ok(core.say_free(step.name()).await?),
            Err(Halt::Failed { error, .. }) => patience.next(core, step.name(), error).await?,
            Err(fatal) => return Err(fatal),
        }
    }
}

/// Tries once to take back what others need not wait for; was it possible?
pub(crate) async fn try_back(core: &mut Core, step: &dyn Step, context: &Context) -> Result<bool, Halt> {
    match undo_once(core, step, context).await {
        Ok(()) => Ok(true),
        Err(Halt::Failed { step, error }) => {
            tracing::warn!(step, %error, "not taken back yet; nobody waits for it");
            Ok(false)
        }
        Err(fatal) => Err(fatal),
    }
}

/// Was a step never begun, or is it taken back already?
pub(crate) fn is_back(core: &Core, step: &dyn Step, context: &Context) -> bool {
    matches!(core.state.step(step.name(), context.attempt), None | Some(StepState::Undone))
}

/// Takes a step back, and does not give up. Nothing to do when it was never begun or is taken back already.
pub(crate) async fn take_back(core: &mut Core, step: &dyn Step, context: &Context) -> Result<(), Halt> {
    if is_back(core, step, context) { Ok(()) } else { take_back_for_sure(core, step, context).await }
}

/// The same, whether the journal knows of it or not.
pub(crate) async fn take_back_for_sure(
    core: &mut Core,
    step: &dyn Step,
    context: &Context,
) -> Result<(), Halt> {
    let mut patience = Patience::new(None);
    loop {
        match undo_once(core, step, context).await {
            Ok(()) => return Ok(core.say_free(step.name()).await?),
            Err(Halt::Failed { error, .. }) => patience.next(core, step.name(), error).await?,
            Err(fatal) => return Err(fatal),
        }
    }
}
