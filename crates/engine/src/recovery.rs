//! What an engine does first when it takes a run up: bring a switch under way to its end, and put the world outside a switch
//! back in line with the journal. It trusts what it sees, not what it remembers.

use crate::core::Core;
use crate::error::EngineError;
use crate::{reconcile, switch};
use rehome_journal::Stage;
use rehome_part::Error as PartError;
use std::time::Duration;

/// Gateways that do not answer are settled by their own question later.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) async fn recover(core: &mut Core) -> Result<(), EngineError> {
    if core.state.stage.in_switch() {
        tracing::info!(stage = %core.state.stage, "a switch was under way; bringing it to its end");
        switch::recover(core).await?;
    }
    if core.state.stage < Stage::Prepared || core.state.stage.is_final() {
        return Ok(());
    }
    heal_gateways(core).await?;
    reconcile::keep_fences(core).await
}

/// Tells every gateway who we are, who owns the data, and which share of reads is wanted; all of it is idempotent.
async fn heal_gateways(core: &mut Core) -> Result<(), EngineError> {
    core.hold_lease().await?;
    let (epoch, owner, token) = (core.state.epoch, core.state.owner, core.token());
    let percent = core.state.read_percent;
    let gateways = std::sync::Arc::clone(&core.world.gateways);
    let healing = async {
        gateways.enroll(token).await?;
        gateways.settle(epoch, owner, token).await?;
        gateways.weight(None, percent, token).await
    };
    let outcome: Result<(), PartError> = match tokio::time::timeout(PATIENCE, healing).await {
        Ok(outcome) => outcome,
        Err(_) => Err(PartError::temporary(rehome_part::ErrorKind::Deadline, "no answer in 5 s")),
    };
    match outcome {
        Ok(()) => Ok(()),
        Err(error) => {
            core.remark(true, "gateways", format!("not every gateway could be reached: {error}")).await
        }
    }
}
