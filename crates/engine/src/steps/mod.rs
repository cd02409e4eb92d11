//! Finite steps: each has `apply`, `undo` and `observe` side by side. A step knows how to do one thing to the world, to take
//! it back, and to look whether it is there; it never journals and never decides what comes next.
//! All three may be called again at any time, by another process too.

mod entry;
mod fences;
mod stream;
mod target;

pub(crate) use entry::{ArmGateways, Enroll, HoldWrites, SettleGateways, StartWorkers, StopWorkers};
pub(crate) use fences::{FenceOwner, OpenOwner};
pub(crate) use stream::{CompareHot, Drain, ReadPosition, SealParts};
pub(crate) use target::{CloseTarget, PrepareTarget, Retire};

use crate::ports::HoldProof;
use crate::settings::{Settings, World};
use async_trait::async_trait;
use futures::future::join_all;
use rehome_part::{Epoch, Error, ErrorKind, Fence, Flow, Marker, Part, Position, Result, Side, Token};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What a look at the world says about a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Observed {
    Applied,
    NotApplied,
    /// The world cannot tell.
    Unknown,
}

/// What the steps of one attempt learn from each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes {
    /// Each part's position when the switch was armed.
    pub armed: BTreeMap<String, Position>,
    /// Each part's position read after the fence.
    pub fence: BTreeMap<String, Position>,
    pub reverse_starts: BTreeMap<String, Position>,
    pub hold: HoldProof,
    pub changes: u64,
    pub marker_seen: bool,
    /// Every part's fence was proved by a refused write.
    pub fence_proved: bool,
    /// Why the attempt is given up.
    pub reason: Option<Error>,
}

/// What a step works with. Cheap to clone; the notes are shared.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub world: Arc<World>,
    pub settings: Arc<Settings>,
    pub flow: Flow,
    /// The epoch that ends.
    pub epoch: Epoch,
    /// The epoch and owner that were decided, once they are.
    pub decided: (Epoch, Side),
    pub attempt: u64,
    pub token: Token,
    /// The longest round trip between us and a side.
    pub rtt: Duration,
    /// The predicted time to drain.
    pub drain: Duration,
    pub stop: CancellationToken,
    notes: Arc<Mutex<Notes>>,
}

impl Context {
    pub fn new(
        world: &Arc<World>,
        settings: &Settings,
        token: Token,
        flow: Flow,
        epoch: Epoch,
        attempt: u64,
    ) -> Self {
        Self {
            world: Arc::clone(world),
            settings: Arc::new(settings.clone()),
            flow,
            epoch,
            decided: (epoch, flow.from()),
            attempt,
            token,
            rtt: Duration::ZERO,
            drain: Duration::ZERO,
            stop: CancellationToken::new(),
            notes: Arc::default(),
        }
    }

    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the step under way, and every one after it, with this reason.
    pub fn give_up(&self, reason: Error) {
        self.notes().reason.get_or_insert(reason);
        self.stop.cancel();
    }

    pub fn reason(&self) -> Error {
        self.notes().reason.clone().unwrap_or_else(Error::cancelled)
    }

    pub fn marker(&self) -> Marker {
        Marker { epoch: self.epoch, nonce: format!("attempt-{}", self.attempt) }
    }

    /// A deadline inside the window: a floor, and twenty round trips for a slow line.
    fn window(&self, floor: Duration) -> Duration {
        floor + self.rtt * 20
    }

    pub fn sabotage(&self, name: &str) -> bool {
        self.world.faults.sabotage(name)
    }

    async fn each_part<T, F>(&self, work: impl Fn(Arc<dyn Part>) -> F) -> Result<Vec<T>>
    where
        F: Future<Output = Result<T>>,
    {
        each_part(&self.world.parts, work).await
    }

    /// Looks at the fences of `side` by trying to write; parts without a fence are left out.
    async fn probe_all(&self, side: Side) -> Result<Vec<(String, Fence)>> {
        let found = self
            .each_part(|part| async move { Ok((part.name().to_owned(), part.probe(side).await?)) })
            .await?;
        Ok(found.into_iter().filter(|(_, fence)| *fence != Fence::None).collect())
    }
}

/// Does the same to every part at once; the first failure, with the part's name, is the answer, after all have ended.
pub(crate) async fn each_part<T, F>(
    parts: &[Arc<dyn Part>],
    work: impl Fn(Arc<dyn Part>) -> F,
) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>>,
{
    let work = &work;
    let named = parts.iter().map(|part| async move {
        let name = part.name().to_owned();
        work(Arc::clone(part)).await.map_err(|mut error| {
            error.text = format!("{name}: {}", error.text);
            error
        })
    });
    join_all(named).await.into_iter().collect()
}

/// Round trips to the entry and to each side, one part's calls counted: parts go side by side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Trips {
    pub entry: u32,
    /// To the side that owned the data.
    pub from: u32,
    /// To the side that is to own it.
    pub to: u32,
}

impl Trips {
    /// Both at once.
    pub fn beside(self, other: Self) -> Self {
        Self {
            entry: self.entry.max(other.entry),
            from: self.from.max(other.from),
            to: self.to.max(other.to),
        }
    }
}

/// One finite step.
#[async_trait]
pub(crate) trait Step: Debug + Send + Sync {
    /// Stable; part of the journal, of the fault points, and the name of the runbook page.
    fn name(&self) -> &'static str;

    fn deadline(&self, context: &Context) -> Duration;

    /// The one side it works on, if there is only one: so that people know where to look when it does not answer.
    fn side(&self, _: &Context) -> Option<Side> {
        None
    }

    /// The calls it makes one after the other while writes wait and everything goes well; docs/design/write-pause.md says
    /// what each is for.
    fn trips(&self) -> Trips {
        Trips::default()
    }

    /// Is a success of `apply` an answer from the world that needs no other look?
    fn proves_itself(&self) -> bool {
        false
    }

    async fn apply(&self, context: &Context) -> Result<Value>;

    async fn undo(&self, context: &Context) -> Result<()>;

    async fn observe(&self, context: &Context) -> Result<Observed>;
}

fn past_deadline(what: &str) -> Error {
    Error::temporary(ErrorKind::Deadline, format!("{what} took longer than its deadline"))
}
