//! The guard: a second process that watches the engine through a switch. When the engine falls silent it takes the lease over
//! with a higher token and becomes an engine itself: the same recovery aborts or finishes what was under way.
//! While the engine lives it does nothing but beat.

use crate::core::{blocking, now_of};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::settings::{Setup, World};
use rehome_journal::{Journal, Options};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often the guard looks and beats.
const LOOK: Duration = Duration::from_millis(250);
/// Without a switch in this time there is nothing to guard.
const IDLE: Duration = Duration::from_secs(120);

/// How a watch ended.
#[derive(Debug)]
pub enum GuardEnd {
    /// The switch ended well, or none came, or the run is over.
    Quiet,
    /// The engine was silent and this process is the engine now: [`Engine::run`] finishes the switch and goes on. The
    /// register has not been asked yet; running it decides.
    TookOver(Box<Engine>),
}

/// Watches the run in `setup.folder` until its switch ended well, or takes over. `setup.holder` should say `guard pid …`.
pub async fn watch(setup: Setup, world: World, stop: CancellationToken) -> Result<GuardEnd, EngineError> {
    let folder = setup.folder.clone();
    let journal = Arc::new(blocking(move || Journal::open(&folder, Options::default())).await?);
    let began = Instant::now();
    let mut seen_switch = false;
    loop {
        beat(&journal, &setup, &world).await?;
        let looked = Arc::clone(&journal);
        let (state, lease) = blocking(move || Ok((looked.catch_up()?, looked.lease()?))).await?;
        let alive = lease.is_some_and(|lease| lease.is_alive(&now_of(&world)));
        let in_switch = state.stage.in_switch();
        if state.stage.is_final() || (seen_switch && !in_switch) || (!in_switch && began.elapsed() >= IDLE) {
            return Ok(GuardEnd::Quiet);
        }
        seen_switch |= in_switch;
        if in_switch && !alive {
            tracing::warn!(stage = %state.stage, "the engine is silent; taking the run over");
            match Engine::open(setup.clone(), world.clone()).await {
                Ok(engine) => return Ok(GuardEnd::TookOver(Box::new(engine))),
                Err(EngineError::Held(_) | EngineError::LeaseLost) => {} // it woke up, or another was faster
                Err(error) => return Err(error),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(GuardEnd::Quiet),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn beat(journal: &Arc<Journal>, setup: &Setup, world: &World) -> Result<(), EngineError> {
    let (journal, holder, now) = (Arc::clone(journal), setup.holder.clone(), now_of(world));
    blocking(move || journal.beat_guard(&holder, &now)).await
}
