//! The two ends of a run: cancelled (before the commit: the world as before) and completed (the way back is given up).
//! Both were begun in the journal before the first effect, so that a killed end goes on.

use crate::core::Core;
use crate::error::{EngineError, Halt};
use crate::steps::{Context, Retire};
use crate::{preparation, saga};
use rehome_journal::{Event, Stage};

async fn stop_units(core: &mut Core) {
    core.units.stop_verify().await;
    core.units.stop_copies().await;
    core.units.stop_following().await;
}

pub(crate) async fn cancel(core: &mut Core) -> Result<(), EngineError> {
    stop_units(core).await;
    core.hold_lease().await?;
    if core.state.read_percent > 0 {
        let token = core.token();
        if let Err(error) = core.world.gateways.weight(None, 0, token).await {
            core.remark(true, "cancel", format!("the share of reads could not be set to 0: {error}")).await?;
        }
    }
    if core.state.stage >= Stage::Prepared || !core.state.steps.is_empty() {
        preparation::unprepare(core).await?;
    }
    core.record_one(Event::Cancelled).await
}

pub(crate) async fn complete(core: &mut Core) -> Result<(), EngineError> {
    core.units.stop_verify().await;
    crate::reconcile::sweep(core).await?;
    stop_units(core).await;
    let flow = core.state.flow();
    let mut context =
        Context::new(&core.world, core.settings(), core.token(), flow, core.state.epoch, core.state.attempts);
    context.decided = (core.state.epoch, core.state.owner);
    match saga::insist(core, &Retire, &context, None, |_| Vec::new()).await {
        Ok(()) => core.record_one(Event::Completed).await,
        Err(Halt::Fatal(error)) => Err(error),
        Err(Halt::Failed { step, error }) => Err(EngineError::Step { step, error }),
    }
}
