//! From PLANNED to PREPARED: the target is made and closed, the gateways belong to the run. All or nothing: what fails for
//! good is taken back, and the world is as before.

use crate::core::Core;
use crate::error::{EngineError, Halt};
use crate::saga;
use crate::steps::{CloseTarget, Context, Enroll, PrepareTarget, Step};
use rehome_journal::Event;
use rehome_part::Flow;
use std::time::Duration;
use tokio::time::Instant;

const STEPS: [&dyn Step; 3] = [&Enroll, &PrepareTarget, &CloseTarget];

/// How long what is temporary is tried again before preparation is given up.
const PATIENCE: Duration = Duration::from_secs(10);

fn context(core: &Core) -> Context {
    let mut context =
        Context::new(&core.world, core.settings(), core.token(), Flow::Forward, core.state.epoch, 0);
    context.decided = (core.state.epoch, core.state.owner);
    context
}

pub(crate) async fn prepare(core: &mut Core) -> Result<(), EngineError> {
    let context = context(core);
    match forward(core, &context).await {
        Ok(()) => core.record_one(Event::Prepared).await,
        Err(Halt::Fatal(error)) => Err(error),
        Err(Halt::Failed { step, error }) => {
            take_back(core, &context).await?;
            Err(EngineError::Step { step, error })
        }
    }
}

async fn forward(core: &mut Core, context: &Context) -> Result<(), Halt> {
    for step in STEPS {
        let until = Instant::now() + PATIENCE;
        loop {
            match saga::apply(core, step, context, |_| Vec::new()).await {
                Ok(()) => break,
                Err(Halt::Failed { error, .. }) if error.is_temporary() && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                Err(halt) => return Err(halt),
            }
            if core.stop.is_cancelled() {
                return Err(EngineError::Stopped.into());
            }
        }
    }
    Ok(())
}

/// Undoes preparation: the target is opened, what was made is removed, the gateways are left.
pub(crate) async fn take_back(core: &mut Core, context: &Context) -> Result<(), EngineError> {
    for step in STEPS.into_iter().rev() {
        match saga::take_back_for_sure(core, step, context).await {
            Ok(()) => {}
            Err(Halt::Fatal(error)) => return Err(error),
            Err(Halt::Failed { step, error }) => return Err(EngineError::Step { step, error }),
        }
    }
    Ok(())
}

/// The same, from a run that is to be cancelled.
pub(crate) async fn unprepare(core: &mut Core) -> Result<(), EngineError> {
    let context = context(core);
    take_back(core, &context).await
}
