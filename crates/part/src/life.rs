//! The life of a part. The engine knows this trait and nothing else of what it moves.

use crate::{
    Assessment, Capabilities, CopySummary, Drained, Fence, Finding, Flow, FollowState, Marker, Position,
    Result, Scope, Seal, Side, Verification, Writers,
};
use async_trait::async_trait;
use std::fmt::Debug;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Where long work reports to. Calls are cheap and never block; losing one is harmless.
pub trait Progress: Debug + Send + Sync {
    /// Totals so far and expected; `None` while the total is not known.
    fn update(
        &self,
        done_objects: u64,
        done_bytes: u64,
        total_objects: Option<u64>,
        total_bytes: Option<u64>,
    );
}

/// A follower's open notebook: it writes, the engine reads.
pub type FollowReport = watch::Sender<FollowState>;

/// One piece of the application, whatever it is made of.
///
/// Rules that hold for every method:
/// - calling it again after it succeeded succeeds again and changes nothing (the engine may be killed at any point);
/// - being dropped or killed half-way leaves a state from which the same call goes on;
/// - errors say which side failed and whether to retry (short retries are done inside, not by the engine);
/// - nothing is written outside the part's own places and the state folder it was built with.
#[async_trait]
pub trait Part: Debug + Send + Sync {
    /// The name from the migration file, unique in a run.
    fn name(&self) -> &str;

    /// What it is, for people: `objects`, `postgres`, …
    fn kind(&self) -> &'static str;

    fn capabilities(&self) -> Capabilities;

    /// Looks, changes nothing.
    async fn assess(&self) -> Result<Assessment>;

    /// Makes what must exist on the target. Does not fence.
    async fn prepare(&self) -> Result<()>;

    /// Takes back what `prepare` made, and only that; never removes anything that `prepare` found there.
    async fn unprepare(&self) -> Result<()>;

    /// First full copy. Resumable: a second call skips what is already equal. Before its first listing it fixes the position
    /// that `follow` begins from, so that no change falls between the two.
    async fn copy(
        &self,
        flow: Flow,
        progress: Arc<dyn Progress>,
        stop: CancellationToken,
    ) -> Result<CopySummary>;

    /// Keeps the other side's lag small until `stop` fires (then `Ok`). Begins where the last follower of this flow
    /// stopped, or where `copy` or `seal` fixed the start. Retries what is temporary for ever, and reports it as unknown lag.
    async fn follow(&self, flow: Flow, report: FollowReport, stop: CancellationToken) -> Result<()>;

    /// Shortly before a switch of `flow`: reads what may be read beforehand and opens the connections, on both sides, that the
    /// switch will use while writes wait. Changes nothing; without it the switch is only slower.
    async fn warm(&self, flow: Flow) -> Result<()> {
        let _ = flow;
        Ok(())
    }

    /// The newest position of `side`: every write acknowledged before this call is at or before it.
    async fn head(&self, flow: Flow) -> Result<Position>;

    /// Who wrote to `flow.from()` lately? `None`: nothing here can tell, and then a person has to. Answered from what `follow`
    /// has seen; asks nobody.
    async fn writers(&self, flow: Flow) -> Result<Option<Writers>> {
        let _ = flow;
        Ok(None)
    }

    /// Does having applied `applied` mean that everything up to `wanted` is applied?
    fn covers(&self, applied: &Position, wanted: &Position) -> bool;

    /// Closes `side` to every writer but the migration's own principal, remembering what was there before.
    async fn fence(&self, side: Side) -> Result<()>;

    /// Opens `side` again as it was before `fence`, but for what others changed meanwhile.
    async fn unfence(&self, side: Side) -> Result<()>;

    /// Tries a harmless write with the application's own credentials, and says what came of it.
    async fn probe(&self, side: Side) -> Result<Fence>;

    /// Writes the marker into the stream of writes of `flow.from()`, as the migration's principal.
    async fn mark(&self, flow: Flow, marker: &Marker) -> Result<()>;

    /// Waits, while `follow` runs, until `fence` is applied **and** the marker has been read back from `flow.to()` by a
    /// look of its own. Quiet is not drained. Ends with an error of kind `Cancelled` when `stop` fires.
    async fn drain(
        &self,
        flow: Flow,
        fence: &Position,
        marker: &Marker,
        stop: CancellationToken,
    ) -> Result<Drained>;

    /// Compares both sides without asking the copier.
    async fn verify(
        &self,
        flow: Flow,
        scope: Scope,
        progress: Arc<dyn Progress>,
        stop: CancellationToken,
    ) -> Result<Verification>;

    /// Just before the commit: sets what must be set on the new owner (sequences), and captures the position of
    /// `flow.to()` from which the way back will follow. The reverse follower is not started.
    async fn seal(&self, flow: Flow) -> Result<Seal>;

    /// Takes `seal` back after an abort: the reverse start is forgotten.
    async fn unseal(&self, flow: Flow) -> Result<()>;

    /// After the switch: looks for writes that reached the old owner (`flow.from()`) after its fence position. A conflict is
    /// reported; a late write is copied only where the new owner's copy is untouched.
    async fn sweep(&self, flow: Flow, since: &Position) -> Result<Vec<Finding>>;

    /// The end: removes what the migration left on both sides (markers, follow state); the old owner stays fenced.
    async fn retire(&self, owner: Side) -> Result<()>;
}
