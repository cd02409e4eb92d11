//! One switch, from ARMED to its end, forward or back: the order of the steps, the one decision, rolling forward after it,
//! and taking everything back before it. Recovery and the guard come in through [`roll_forward`] and [`take_back`] too.

use crate::core::Core;
use crate::error::{EngineError, Halt};
use crate::gates::Look;
use crate::keeper::Keeper;
use crate::saga;
use crate::steps::{
    ArmGateways, CompareHot, Context, Drain, FenceOwner, HoldWrites, OpenOwner, ReadPosition, SealParts,
    SettleGateways, StartWorkers, Step, StopWorkers, Trips,
};
use rehome_journal::{Attempt, Event, Prediction, Stage, StateTime, StepState, SwitchOutcome, SwitchReport};
use rehome_part::{Error as PartError, ErrorKind, Fence, Position, Side};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Why a rehearsal is taken back.
const REHEARSAL: &str = "rehearsal";

/// Every step that runs while writes wait, in order; steps of one row run at once.
const WINDOW: [&[&dyn Step]; 8] = [
    &[&HoldWrites],
    &[&StopWorkers],
    &[&FenceOwner],
    &[&ReadPosition],
    &[&Drain],
    BEFORE_COMMIT,
    &[&OpenOwner],
    &[&SettleGateways],
];

/// Both need the drain and nothing of each other, and both must end before the commit.
const BEFORE_COMMIT: &[&dyn Step] = &[&CompareHot, &SealParts];

/// Durable writes on the way from the hold to the release: one before each row, SEALED, the decision and its record.
pub(crate) const WINDOW_APPENDS: u32 = WINDOW.len() as u32 + 3;

/// Round trips while writes wait, counted from the steps.
pub(crate) fn trips() -> Trips {
    trips_of(|_| true)
}

fn trips_of(counts: impl Fn(&dyn Step) -> bool) -> Trips {
    let mut sum = Trips::default();
    for row in WINDOW {
        let counted = row.iter().filter(|step| counts(**step)).map(|step| step.trips());
        let row = counted.fold(Trips::default(), Trips::beside);
        sum = Trips { entry: sum.entry + row.entry, from: sum.from + row.from, to: sum.to + row.to };
    }
    sum
}

/// How an attempt ended; its report is in the journal.
#[derive(Debug, Clone)]
pub(crate) enum SwitchEnd {
    Committed(SwitchReport),
    Rehearsed(SwitchReport),
    Aborted { why: String, report: SwitchReport },
}

fn context_of(core: &Core, attempt: &Attempt) -> Context {
    let mut context =
        Context::new(&core.world, core.settings(), core.token(), attempt.flow, attempt.epoch, attempt.number);
    context.decided = (core.state.epoch, core.state.owner);
    context
}

/// Makes one attempt. Its gates were met just now (`look`). `interrupt` gives it up, as long as nothing is decided.
pub(crate) async fn attempt(
    core: &mut Core,
    look: &Look,
    rehearsal: bool,
    interrupt: &CancellationToken,
) -> Result<SwitchEnd, EngineError> {
    core.hold_lease().await?;
    core.record_one(Event::SwitchArmed {
        attempt: core.state.attempts + 1,
        epoch: core.state.epoch,
        flow: core.state.flow(),
        rehearsal,
        predicted: look.prediction.clone(),
        positions: look.positions.clone(),
        boot_ms: core.boot_ms(),
    })
    .await?;
    let attempt = core.state.attempt.clone().expect("it was armed just now");
    core.propose(attempt.epoch.next()).await?;
    let mut context = context_of(core, &attempt);
    context.rtt = Duration::from_secs_f64(look.prediction.rtt_ms / 1e3);
    context.drain = Duration::from_secs_f64(look.prediction.drain_ms / 1e3);
    context.notes().armed = look.positions.clone();

    let keeper = Keeper::start(&core.world, core.settings(), attempt.epoch, core.token());
    let outcome = {
        let watch = async {
            tokio::select! {
                reason = keeper.gives_up() => context.give_up(reason),
                () = interrupt.cancelled() => {
                    context.give_up(PartError::permanent(ErrorKind::Cancelled, "given up as asked"));
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            outcome = forward(core, &context, &keeper) => outcome,
            () = watch => unreachable_watch(),
        }
    };
    let end = finish(core, &context, outcome, rehearsal).await;
    let waiting = keeper.most_waiting.load(Ordering::Acquire);
    conclude(core, &attempt, &context, &look.prediction, waiting, end?).await
}

fn unreachable_watch() -> Result<(), Halt> {
    Err(EngineError::Task("the watch over the switch ended".into()).into())
}

/// ARMED to SEALED.
async fn forward(core: &mut Core, context: &Context, keeper: &Keeper) -> Result<(), Halt> {
    saga::apply_on(core, &ArmGateways, context, |_| Vec::new()).await?;
    if context.sabotage("drop-delta") {
        core.units.stop_following().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    keeper.stage.asking.store(true, Ordering::Release);
    let clock = std::sync::Arc::clone(&core.world.clock);
    saga::apply_on(core, &HoldWrites, context, |context| {
        let hold = context.notes().hold.clone();
        vec![Event::WritesHeld {
            gateways: hold.gateways,
            waiting: hold.waiting,
            boot_ms: clock.boot_millis(),
        }]
    })
    .await?;
    keeper.stage.held.store(true, Ordering::Release);
    saga::apply_on(core, &StopWorkers, context, |_| Vec::new()).await?;
    saga::apply_on(core, &FenceOwner, context, |_| Vec::new()).await?;
    saga::apply_on(core, &ReadPosition, context, |context| {
        let notes = context.notes();
        let (positions, proved) = (notes.fence.clone(), notes.fence_proved);
        vec![Event::Fenced { positions, proved, boot_ms: clock.boot_millis() }]
    })
    .await?;
    saga::apply_on(core, &Drain, context, |context| {
        let notes = context.notes();
        let (changes, marker_seen) = (notes.changes, notes.marker_seen);
        vec![Event::Drained { changes, marker_seen, boot_ms: clock.boot_millis() }]
    })
    .await?;
    // From here no follower may write on the side that is about to become the owner.
    core.units.stop_following().await;
    saga::apply_together(core, BEFORE_COMMIT, context, |context| {
        let reverse_starts = context.notes().reverse_starts.clone();
        vec![Event::Sealed { reverse_starts, boot_ms: clock.boot_millis() }]
    })
    .await?;
    Ok(())
}

/// What came of an attempt, before its end is written down.
enum Fate {
    Committed,
    TakenBack { why: String, keep_verified: bool },
}

async fn finish(
    core: &mut Core,
    context: &Context,
    outcome: Result<(), Halt>,
    rehearsal: bool,
) -> Result<Fate, EngineError> {
    let (flow, epoch) = (context.flow, context.epoch.next());
    match outcome {
        Err(Halt::Fatal(error)) => Err(error),
        Ok(()) if rehearsal => abort(core, REHEARSAL, true).await,
        Ok(()) => {
            core.hold_lease().await?;
            let won = core.decide(epoch, flow.to()).await?.owner;
            decided(core, won, "sealed").await?;
            if won == flow.to() {
                roll_forward(core).await
            } else {
                take_back(core, "the guard was faster", true).await
            }
        }
        Err(Halt::Failed { step, error }) => {
            let keep = !(step == CompareHot.name() && error.kind == ErrorKind::Corrupt);
            abort(core, &format!("{step}: {error}"), keep).await
        }
    }
}

async fn decided(core: &mut Core, owner: Side, why: &str) -> Result<(), EngineError> {
    let (epoch, boot_ms) = (core.state.epoch.next(), core.boot_ms());
    core.record_one(Event::Decided { epoch, owner, why: why.into(), boot_ms }).await
}

/// Decides the armed epoch for the old owner, or finds that the new one won; finishes either way.
async fn abort(core: &mut Core, why: &str, keep_verified: bool) -> Result<Fate, EngineError> {
    let attempt = core.state.attempt.clone().expect("only an armed switch is aborted");
    let won = core.decide(attempt.epoch.next(), attempt.flow.from()).await?.owner;
    decided(core, won, why).await?;
    if won == attempt.flow.from() {
        take_back(core, why, keep_verified).await
    } else {
        roll_forward(core).await
    }
}

/// After the old owner was decided: everything back, the old owner opened, the queue released to it. Goes on from wherever an
/// earlier engine stopped.
async fn take_back(core: &mut Core, why: &str, keep_verified: bool) -> Result<Fate, EngineError> {
    match try_take_back(core).await {
        Ok(()) => Ok(Fate::TakenBack { why: why.to_owned(), keep_verified }),
        Err(Halt::Fatal(error)) => Err(error),
        Err(Halt::Failed { step, error }) => Err(EngineError::Step { step, error }),
    }
}

/// What an attempt left on the way to the decision, in the order in which it is taken back.
const BEFORE_DECISION: [&dyn Step; 4] = [&SealParts, &CompareHot, &Drain, &ReadPosition];

async fn try_take_back(core: &mut Core) -> Result<(), Halt> {
    let attempt = core.state.attempt.clone().expect("only an armed switch is taken back");
    let context = context_of(core, &attempt);
    let (epoch, owner) = context.decided;
    // The first decision of this attempt was for the old owner: nobody was ever told to open the other side.
    let never_opened = epoch == attempt.epoch.next();
    if core.state.stage == Stage::Aborting {
        core.units.stop_following().await;
        if never_opened {
            // Users do not wait for a side that was never theirs: if it does not answer, its turn comes after the release.
            let mut reached = saga::try_back(core, &OpenOwner, &context).await?;
            for step in BEFORE_DECISION {
                if reached && !saga::is_back(core, step, &context) {
                    reached = saga::try_back(core, step, &context).await?;
                }
            }
        } else {
            // the other side must be closed before the old owner opens, whatever the journal thinks was done
            saga::take_back_for_sure(core, &OpenOwner, &context).await?;
            take_back_all(core, &context).await?;
        }
        // an intent may have been lost with its engine: the old owner is opened for sure, too
        saga::take_back_for_sure(core, &FenceOwner, &context).await?;
        let boot_ms = core.boot_ms();
        core.record_one(Event::OwnerOpened { epoch, owner, boot_ms }).await?;
    }
    let held = core.state.step(HoldWrites.name(), attempt.number);
    saga::insist(core, &SettleGateways, &context, None, |_| Vec::new()).await?;
    if held.is_some() && !is_released(core) {
        let (pause_ms, boot_ms) = (pause(core).await?, core.boot_ms());
        core.record_one(Event::WritesReleased { epoch, owner, pause_ms, boot_ms }).await?;
    }
    saga::take_back(core, &StopWorkers, &context).await?;
    if core.state.step(OpenOwner.name(), attempt.number) != Some(StepState::Undone) {
        saga::take_back_for_sure(core, &OpenOwner, &context).await?;
    }
    take_back_all(core, &context).await
}

/// Skips what was never begun, and what is taken back already.
async fn take_back_all(core: &mut Core, context: &Context) -> Result<(), Halt> {
    for step in BEFORE_DECISION {
        saga::take_back(core, step, context).await?;
    }
    Ok(())
}

/// After the new owner was decided: open it, release the queue to it, start what was stopped, follow the way back. Goes on
/// from wherever an earlier engine stopped.
async fn roll_forward(core: &mut Core) -> Result<Fate, EngineError> {
    match try_roll_forward(core).await {
        Ok(fate) => Ok(fate),
        Err(Halt::Fatal(error)) => Err(error),
        Err(Halt::Failed { step, error }) => Err(EngineError::Step { step, error }),
    }
}

async fn try_roll_forward(core: &mut Core) -> Result<Fate, Halt> {
    let attempt = core.state.attempt.clone().expect("only an armed switch rolls forward");
    let context = context_of(core, &attempt);
    let (epoch, owner) = context.decided;
    core.units.stop_following().await;
    if core.state.stage == Stage::Committed {
        if let Some(why) = open_or_return(core, &context).await? {
            return Ok(Fate::TakenBack { why, keep_verified: true });
        }
        if context.sabotage("release-both") {
            open_the_old_owner_too(&context).await;
        }
    }
    saga::insist(core, &SettleGateways, &context, None, |_| Vec::new()).await?;
    if !is_released(core) {
        let (pause_ms, boot_ms) = (pause(core).await?, core.boot_ms());
        core.record_one(Event::WritesReleased { epoch, owner, pause_ms, boot_ms }).await?;
    }
    saga::insist(core, &StartWorkers, &context, None, |_| Vec::new()).await?;
    Ok(Fate::Committed)
}

/// The test instrument that must be found out by every check there is.
async fn open_the_old_owner_too(context: &Context) {
    for part in &context.world.parts {
        if let Err(error) = part.unfence(context.flow.from()).await {
            tracing::warn!(%error, "sabotage failed");
        }
    }
}

/// Opens the new owner. When that fails past its deadline and no gateway has recorded an intent to write under the new epoch,
/// the grant is taken back and the epoch after it decided for the old owner; then the answer says why. Otherwise it
/// is tried for ever.
async fn open_or_return(core: &mut Core, context: &Context) -> Result<Option<String>, Halt> {
    let (epoch, owner) = context.decided;
    let clock = std::sync::Arc::clone(&core.world.clock);
    let opened = move |_: &Context| vec![Event::OwnerOpened { epoch, owner, boot_ms: clock.boot_millis() }];
    loop {
        let until = Instant::now() + core.settings().open_deadline + context.rtt * 20;
        let error = match saga::insist(core, &OpenOwner, context, Some(until), opened.clone()).await {
            Ok(()) => return Ok(None),
            Err(Halt::Failed { error, .. }) => error,
            Err(fatal) => return Err(fatal),
        };
        core.hold_lease().await?;
        if let Err(refusal) = core.world.gateways.revoke(epoch, core.token()).await {
            tracing::warn!(%refusal, "the grant cannot be taken back; going on forward");
            core.say_stuck("open", &error).await?;
            if core.stop.is_cancelled() {
                return Err(EngineError::Stopped.into());
            }
            continue;
        }
        let won = core.decide(epoch.next(), context.flow.from()).await?.owner;
        let why = format!("the {owner} could not be opened: {error}");
        decided(core, won, &why).await?;
        core.say_free("open").await?;
        try_take_back(core).await?;
        return Ok(Some(why));
    }
}

/// From the hold being asked for until now, measured across engines by the boot clock.
async fn pause(core: &Core) -> Result<Option<u64>, EngineError> {
    let journal = std::sync::Arc::clone(&core.journal);
    let attempt = core.state.attempt.as_ref().map_or(0, |attempt| attempt.number);
    let step = crate::core::blocking(move || journal.step(HoldWrites.name(), attempt)).await?;
    let Some((input, _)) = step else { return Ok(None) };
    let now = core.now();
    let same_boot = input.get("boot_id").and_then(serde_json::Value::as_str) == Some(now.boot_id.as_str());
    let began = input.get("boot_ms").and_then(serde_json::Value::as_u64).filter(|_| same_boot);
    Ok(began.and_then(|began| now.boot_ms.checked_sub(began)))
}

fn is_released(core: &Core) -> bool {
    core.state.attempt.as_ref().is_some_and(|attempt| attempt.released)
}

/// How long this switch waited for writes in flight, at most: it cannot be more than ARMED lasted, and the prediction is the
/// 99.9th percentile of all writes, not of those that were under way.
fn in_flight_ms(states: &[StateTime], predicted: &Prediction) -> f64 {
    let armed = states.iter().find(|time| time.state == Stage::Armed.name());
    armed.map_or(predicted.in_flight_ms, |time| predicted.in_flight_ms.min(time.ms as f64))
}

/// Writes the end of an attempt and its report down, both or none, and begins to follow away from whoever owns the data now.
async fn conclude(
    core: &mut Core,
    attempt: &Attempt,
    context: &Context,
    predicted: &Prediction,
    most_waiting: u64,
    fate: Fate,
) -> Result<SwitchEnd, EngineError> {
    core.record(Vec::new()).await?;
    let pause_ms = last_pause(core).await?;
    let notes = context.notes().clone();
    let done = trips_of(|step| {
        core.state.step(step.name(), attempt.number).is_some_and(|s| s != StepState::Intended)
    });
    let states = core.state_times();
    let report = SwitchReport {
        attempt: attempt.number,
        epoch: core.state.epoch,
        flow: attempt.flow,
        owner: core.state.owner,
        rehearsal: attempt.rehearsal,
        outcome: match &fate {
            Fate::Committed => SwitchOutcome::Committed,
            Fate::TakenBack { why, .. } if why == REHEARSAL => SwitchOutcome::Rehearsed,
            Fate::TakenBack { why, .. } => SwitchOutcome::Aborted { why: why.clone() },
        },
        predicted: predicted.clone(),
        pause_ms,
        floor_ms: predicted.rtt_ms + in_flight_ms(&states, predicted),
        round_trips: predicted.round_trips.min(done.from + done.to),
        rtt_ms: predicted.rtt_ms,
        states,
        one_writable_side_proved: notes.fence_proved,
        drain_proved: notes.marker_seen,
        most_waiting: most_waiting.max(notes.hold.waiting),
    };
    let flow = core.state.flow();
    let end = match &fate {
        Fate::Committed => Event::ReverseFollowing { flow },
        Fate::TakenBack { why, keep_verified } => {
            Event::SwitchAborted { why: why.clone(), keep_verified: *keep_verified }
        }
    };
    if matches!(fate, Fate::Committed) {
        // what the window compared is equal up to the seal
        core.compared = (!notes.reverse_starts.is_empty()).then(|| (flow, notes.reverse_starts.clone()));
    }
    core.units.start_following(flow);
    core.record(vec![end, Event::SwitchReported { report: report.clone() }]).await?;
    Ok(match report.outcome.clone() {
        SwitchOutcome::Committed => SwitchEnd::Committed(report),
        SwitchOutcome::Rehearsed => SwitchEnd::Rehearsed(report),
        SwitchOutcome::Aborted { why } => SwitchEnd::Aborted { why, report },
    })
}

/// The pause that was written down when the last gateway had released its queue.
async fn last_pause(core: &Core) -> Result<Option<u64>, EngineError> {
    let journal = std::sync::Arc::clone(&core.journal);
    let after = journal.seq().saturating_sub(200);
    let events = crate::core::blocking(move || journal.events_since(after, 200)).await?;
    Ok(events
        .iter()
        .rev()
        .find_map(|record| match &record.event {
            Event::WritesReleased { pause_ms, .. } => Some(*pause_ms),
            Event::SwitchArmed { .. } => Some(None),
            _ => None,
        })
        .flatten())
}

/// Brings a switch that another engine began to its end: what was decided is finished, what was not is aborted.
pub(crate) async fn recover(core: &mut Core) -> Result<(), EngineError> {
    let Some(attempt) = core.state.attempt.clone() else { return Ok(()) };
    adopt_decisions(core, &attempt).await?;
    let fate = match core.state.stage {
        Stage::Committed | Stage::Open => roll_forward(core).await?,
        Stage::Aborting | Stage::Returned => take_back(core, "the engine was lost", true).await?,
        _ => abort(core, "the engine was lost", true).await?,
    };
    let context = context_of(core, &attempt);
    let (predicted, proved, drained, reverse_starts) = remembered(core, attempt.number).await?;
    context.notes().fence_proved = proved;
    context.notes().marker_seen = drained;
    context.notes().reverse_starts = reverse_starts;
    conclude(core, &attempt, &context, &predicted, 0, fate).await.map(drop)
}

/// The register may know more than the journal: a decision is written there first.
async fn adopt_decisions(core: &mut Core, attempt: &Attempt) -> Result<(), EngineError> {
    while core.state.stage.is_undecided() && core.state.stage != Stage::Aborting {
        let Some(decision) = core.decision(core.state.epoch.next()).await? else { return Ok(()) };
        tracing::info!(epoch = %decision.epoch, owner = %decision.owner, attempt = attempt.number, "the register had decided");
        decided(core, decision.owner, "found in the register").await?;
    }
    Ok(())
}

/// What the lost engine wrote down about its attempt: its prediction, whether fence and drain were proved, and the seal.
async fn remembered(
    core: &Core,
    number: u64,
) -> Result<(Prediction, bool, bool, BTreeMap<String, Position>), EngineError> {
    let journal = std::sync::Arc::clone(&core.journal);
    let after = journal.seq().saturating_sub(2_000);
    let events = crate::core::blocking(move || journal.events_since(after, 2_000)).await?;
    let mut found = (Prediction::default(), false, false, BTreeMap::new());
    for record in &events {
        match &record.event {
            Event::SwitchArmed { attempt, predicted, .. } if *attempt == number => {
                found = (predicted.clone(), false, false, BTreeMap::new());
            }
            Event::Fenced { proved, .. } => found.1 = *proved,
            Event::Drained { marker_seen, .. } => found.2 = *marker_seen,
            Event::Sealed { reverse_starts, .. } => found.3.clone_from(reverse_starts),
            _ => {}
        }
    }
    Ok(found)
}

/// Is this side closed to the application, as far as the parts can tell?
pub(crate) fn is_closed(found: &[(String, Fence)]) -> bool {
    found.iter().all(|(_, fence)| *fence != Fence::Open)
}
