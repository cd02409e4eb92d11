//! Steps at the entry: gateways and workers. Gateways do what they are told under our token and decide nothing.

use super::{Context, Observed, Step, Trips};
use async_trait::async_trait;
use rehome_part::{Result, Side};
use serde_json::{Value, json};
use std::time::Duration;

/// Workers are other people's programs; they get this long to stop or start.
const WORKERS: Duration = Duration::from_secs(30);
/// One message to every gateway and its answer.
const MESSAGE: Duration = Duration::from_secs(2);

/// The gateways belong to this run.
#[derive(Debug)]
pub(crate) struct Enroll;

#[async_trait]
impl Step for Enroll {
    fn name(&self) -> &'static str {
        "enroll"
    }

    fn deadline(&self, context: &Context) -> Duration {
        context.settings.arm_deadline
    }

    async fn apply(&self, context: &Context) -> Result<Value> {
        context.world.gateways.enroll(context.token).await.map(|()| Value::Null)
    }

    async fn undo(&self, context: &Context) -> Result<()> {
        context.world.gateways.leave(context.token).await
    }

    async fn observe(&self, _: &Context) -> Result<Observed> {
        Ok(Observed::Unknown)
    }
}

/// From here gateways admit writes under a lease only.
#[derive(Debug)]
pub(crate) struct ArmGateways;

#[async_trait]
impl Step for ArmGateways {
    fn name(&self) -> &'static str {
        "arm"
    }

    fn deadline(&self, context: &Context) -> Duration {
        context.settings.arm_deadline
    }

    async fn apply(&self, context: &Context) -> Result<Value> {
        let lease = context.settings.lease;
        context.world.gateways.arm(context.epoch, lease, context.token).await.map(|()| Value::Null)
    }

    async fn undo(&self, context: &Context) -> Result<()> {
        settle(context).await
    }

    async fn observe(&self, context: &Context) -> Result<Observed> {
        let all = context.world.gateways.status().await?;
        Ok(yes_no(all.iter().all(|gateway| gateway.armed || gateway.holding)))
    }
}

fn yes_no(yes: bool) -> Observed {
    if yes { Observed::Applied } else { Observed::NotApplied }
}

/// Releases every gateway to the decided owner; each ends its share of reads on the other side with the old epoch. One that does
/// not answer keeps no other waiting.
async fn settle(context: &Context) -> Result<()> {
    let (epoch, owner) = context.decided;
    context.world.gateways.settle(epoch, owner, context.token).await
}

async fn is_settled(context: &Context) -> Result<bool> {
    let (epoch, owner) = context.decided;
    let all = context.world.gateways.status().await?;
    Ok(all.iter().all(|gateway| {
        gateway.epoch == epoch && gateway.owner == owner && !gateway.holding && !gateway.armed
    }))
}

/// Gateways stop forwarding writes; it ends when none is in flight.
#[derive(Debug)]
pub(crate) struct HoldWrites;

#[async_trait]
impl Step for HoldWrites {
    fn name(&self) -> &'static str {
        "hold"
    }

    fn deadline(&self, context: &Context) -> Duration {
        context.settings.in_flight_deadline + MESSAGE
    }

    fn trips(&self) -> Trips {
        Trips { entry: 1, ..Trips::default() }
    }

    /// Every gateway answered that it holds and that nothing is in flight.
    fn proves_itself(&self) -> bool {
        true
    }

    async fn apply(&self, context: &Context) -> Result<Value> {
        let in_flight = context.settings.in_flight_deadline;
        let proof = context.world.gateways.hold(context.epoch, in_flight, context.token).await?;
        context.notes().hold = proof.clone();
        Ok(json!({ "gateways": proof.gateways, "waiting": proof.waiting }))
    }

    async fn undo(&self, context: &Context) -> Result<()> {
        settle(context).await
    }

    async fn observe(&self, context: &Context) -> Result<Observed> {
        let all = context.world.gateways.status().await?;
        Ok(yes_no(all.iter().all(|gateway| gateway.holding)))
    }
}

/// Releases what waits to the decided owner.
#[derive(Debug)]
pub(crate) struct SettleGateways;

#[async_trait]
impl Step for SettleGateways {
    fn name(&self) -> &'static str {
        "settle"
    }

    fn deadline(&self, context: &Context) -> Duration {
        context.window(MESSAGE)
    }

    fn trips(&self) -> Trips {
        Trips { entry: 1, ..Trips::default() }
    }

    /// Every gateway answered that it has released what waited.
    fn proves_itself(&self) -> bool {
        true
    }

    async fn apply(&self, context: &Context) -> Result<Value> {
        settle(context).await.map(|()| Value::Null)
    }

    /// What was released cannot be held back; taking the whole switch back is another switch.
    async fn undo(&self, _: &Context) -> Result<()> {
        Ok(())
    }

    async fn observe(&self, context: &Context) -> Result<Observed> {
        is_settled(context).await.map(yes_no)
    }
}

async fn start(context: &Context, side: Side) -> Result<()> {
    context.world.workers.start(side).await
}

/// Stops the old owner's workers, proved by their own test.
#[derive(Debug)]
pub(crate) struct StopWorkers;

#[async_trait]
impl Step for StopWorkers {
    fn name(&self) -> &'static str {
        "stop-workers"
    }

    fn deadline(&self, _: &Context) -> Duration {
        WORKERS
    }

    async fn apply(&self, context: &Context) -> Result<Value> {
        context.world.workers.stop(context.flow.from()).await.map(|()| Value::Null)
    }

    async fn undo(&self, context: &Context) -> Result<()> {
        start(context, context.flow.from()).await
    }

    async fn observe(&self, _: &Context) -> Result<Observed> {
        Ok(Observed::Unknown) // stopping proved itself; there is no other look
    }
}

/// Starts the new owner's workers.
#[derive(Debug)]
pub(crate) struct StartWorkers;

#[async_trait]
impl Step for StartWorkers {
    fn name(&self) -> &'static str {
        "start-workers"
    }

    fn deadline(&self, _: &Context) -> Duration {
        WORKERS
    }

    async fn apply(&self, context: &Context) -> Result<Value> {
        start(context, context.flow.to()).await.map(|()| Value::Null)
    }

    async fn undo(&self, context: &Context) -> Result<()> {
        context.world.workers.stop(context.flow.to()).await
    }

    async fn observe(&self, _: &Context) -> Result<Observed> {
        Ok(Observed::Unknown)
    }
}
