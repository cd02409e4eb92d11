//! What an engine does first when it takes a run up: bring a switch under way to its end, and put the world outside a switch
//! back in line with the journal. It trusts what it sees, not what it remembers.

use crate::core::Core;
use crate::error::EngineError;
use crate::ports::GatewayStatus;
use crate::settings::World;
use crate::{reconcile, switch};
use rehome_journal::Register;
use rehome_journal::Stage;
use rehome_part::{Epoch, Error as PartError, ErrorKind, Fence, Side};
use std::path::Path;
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

fn disagree(what: impl Into<String>) -> EngineError {
    EngineError::Disagree { what: what.into() }
}

/// Who owns the data, when nobody is left to ask but the gateways, the register and the world: only if they all say the same.
pub(crate) async fn agreed(folder: &Path, world: &World) -> Result<(Epoch, Side), EngineError> {
    let gateways = world
        .gateways
        .status()
        .await
        .map_err(|error| disagree(format!("a gateway does not answer: {error}")))?;
    let (epoch, owner) = agreed_by(&gateways)?;
    if folder.join(rehome_journal::DECISION_FILE).exists() {
        let folder = folder.to_path_buf();
        let newest = crate::core::blocking(move || Register::open(&folder)?.newest()).await?;
        if let Some(newest) =
            newest.filter(|newest| newest.epoch >= epoch && (newest.epoch, newest.owner) != (epoch, owner))
        {
            return Err(disagree(format!(
                "the register decided epoch {} for the {}, and the gateways are at epoch {epoch} with the {owner}",
                newest.epoch, newest.owner
            )));
        }
    }
    for part in &world.parts {
        let name = part.name();
        match part.probe(owner).await {
            Ok(Fence::ProvedClosed) => {
                return Err(disagree(format!("{name}: the {owner} should own, and refuses writes")));
            }
            Ok(_) => {}
            Err(error) => return Err(disagree(format!("{name}: the {owner} cannot be tried: {error}"))),
        }
        match part.probe(owner.other()).await {
            Ok(Fence::Open) if epoch > Epoch::FIRST => {
                return Err(disagree(format!("{name}: both sides take writes")));
            }
            Ok(_) => {}
            // a target that was never prepared is no contradiction
            Err(error) if error.kind == ErrorKind::NotFound && owner == Side::Source => {}
            Err(error) => {
                return Err(disagree(format!("{name}: the {} cannot be tried: {error}", owner.other())));
            }
        }
    }
    Ok((epoch, owner))
}

/// Pure: what the gateways agree on.
fn agreed_by(gateways: &[GatewayStatus]) -> Result<(Epoch, Side), EngineError> {
    let first = gateways.first().ok_or_else(|| disagree("there is no gateway to ask"))?;
    for gateway in gateways {
        if (gateway.epoch, gateway.owner) != (first.epoch, first.owner) {
            return Err(disagree(format!(
                "{} says epoch {} belongs to the {}, {} says epoch {} belongs to the {}",
                first.name, first.epoch, first.owner, gateway.name, gateway.epoch, gateway.owner
            )));
        }
        if gateway.armed || gateway.holding {
            return Err(disagree(format!("{} is in the middle of a switch and holds writes", gateway.name)));
        }
        if gateway.intent.is_some_and(|intent| intent > gateway.epoch) {
            return Err(disagree(format!("{} was about to write under a later epoch", gateway.name)));
        }
    }
    Ok((first.epoch, first.owner))
}
