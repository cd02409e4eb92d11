//! Reconcilers beside following: how fresh the other side is (for read-your-writes), and that fences stay as they must be.
//! They re-read the world every time and remember nothing.

use crate::core::Core;
use crate::error::EngineError;
use crate::ports::Moments;
use crate::settings::World;
use rehome_journal::{Event, Stage};
use rehome_part::{
    Error as PartError, Fence, Finding, Flow, FollowState, Part, Position, Severity, Side, Token,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

type Used = (Arc<dyn Part>, watch::Receiver<FollowState>);

/// Tells the gateways up to which moment every write that a service acknowledged can be read on the other side: a moment of
/// theirs is taken first, then the owner's position; once that is applied, the moment is given back. No clocks are compared.
pub(crate) struct Freshness {
    world: Arc<World>,
    service: String,
    uses: Vec<Used>,
    flow: Flow,
    every: Duration,
    token: Token,
}

impl Freshness {
    pub fn new(
        world: &Arc<World>,
        service: String,
        uses: Vec<Used>,
        flow: Flow,
        every: Duration,
        token: Token,
    ) -> Self {
        Self { world: Arc::clone(world), service, uses, flow, every, token }
    }

    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.one_round() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.every) => {}
            }
        }
    }

    async fn one_round(&mut self) {
        let through = self.look().await;
        if let Err(error) = self.world.gateways.freshness(&self.service, through, self.token).await {
            tracing::debug!(service = %self.service, %error, "the gateways could not be told how fresh the other side is");
        }
    }

    async fn look(&mut self) -> Option<Moments> {
        let moments = self.world.gateways.moment().await.ok()?;
        for (part, state) in &mut self.uses {
            let head = part.head(self.flow).await.ok()?;
            wait_until_applied(part.as_ref(), state, &head).await?;
        }
        Some(moments)
    }
}

/// `None` when the follower does not know how far it is.
async fn wait_until_applied(
    part: &dyn Part,
    state: &mut watch::Receiver<FollowState>,
    wanted: &Position,
) -> Option<()> {
    let seen = state
        .wait_for(|state| {
            state.lag_seconds.is_none()
                || state.applied.as_ref().is_some_and(|applied| part.covers(applied, wanted))
        })
        .await
        .ok()?;
    seen.applied.as_ref().is_some_and(|applied| part.covers(applied, wanted)).then_some(())
}

/// A look at a fence must not hold the dispatcher up.
const PATIENCE: Duration = Duration::from_secs(5);

async fn patiently<T>(call: impl Future<Output = Result<T, PartError>>) -> Option<T> {
    tokio::time::timeout(PATIENCE, call).await.ok().and_then(Result::ok)
}

/// Outside a switch: the side that is not the owner is closed, the owner is open. Repairs what differs and says so; this
/// also undoes late effects of an engine that woke up after its lease.
pub(crate) async fn keep_fences(core: &mut Core) -> Result<(), EngineError> {
    let sabotaged = ["skip-fence", "release-both"].iter().any(|name| core.world.faults.sabotage(name));
    if core.state.stage.in_switch()
        || core.state.stage < Stage::Prepared
        || core.state.stage.is_final()
        || sabotaged
    {
        return Ok(());
    }
    let owner = core.state.owner;
    for part in core.world.parts.clone() {
        if !part.capabilities().can_fence {
            continue;
        }
        core.hold_lease().await?;
        if patiently(part.probe(owner.other())).await == Some(Fence::Open) {
            let done = patiently(part.fence(owner.other())).await.is_some();
            report(
                core,
                part.name(),
                owner.other(),
                "took writes although it is not the owner",
                "closed",
                done,
            )
            .await?;
        }
        if patiently(part.probe(owner)).await == Some(Fence::ProvedClosed) {
            patiently(part.unfence(owner)).await;
            let open = patiently(part.probe(owner)).await == Some(Fence::Open);
            if open {
                report(core, part.name(), owner, "was closed although it is the owner", "opened", true)
                    .await?;
            }
        }
    }
    Ok(())
}

async fn report(
    core: &mut Core,
    part: &str,
    side: Side,
    what: &str,
    repair: &str,
    done: bool,
) -> Result<(), EngineError> {
    let fate = if done { format!("it was {repair}") } else { format!("it could not be {repair}") };
    let finding = Finding {
        id: "fence-repaired".into(),
        severity: Severity::Warning,
        side: Some(side),
        text: format!("the {side} {what}; {fate}"),
        remedy: Some(
            "find out who changed it; writes made there meanwhile are looked for by the straggler sweep"
                .into(),
        ),
    };
    core.record_one(Event::FindingSeen { part: part.into(), finding }).await
}

/// Looks for writes that reached the old owner after its fence position; each finding is reported once.
pub(crate) async fn sweep(core: &mut Core) -> Result<(), EngineError> {
    let Some((flow, positions)) = core.state.swept_from.clone() else { return Ok(()) };
    for part in core.world.parts.clone() {
        let Some(since) = positions.get(part.name()) else { continue };
        core.hold_lease().await?;
        let Some(findings) = patiently(part.sweep(flow, since)).await else { continue };
        for finding in findings {
            if core.remarks.is_news_ever(part.name(), &finding.text) {
                core.record_one(Event::FindingSeen { part: part.name().into(), finding }).await?;
            }
        }
    }
    Ok(())
}
