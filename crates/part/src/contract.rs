//! The contract suite: what every driver of a [`Part`] must do, as code that every driver's tests run.
//! A driver supplies a [`Rig`]: one small world with both sides, the application's hands in it, and parts over it.
//! It never looks inside a part: it acts through the trait, and looks at the world through the rig.

mod data;
mod going;
mod guards;

use crate::{Capabilities, Flow, FollowState, Part, Position, Progress, Side};
use async_trait::async_trait;
use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The side said no to the application; the text is for the message only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused: {0}")]
pub struct Refused(pub String);

/// A fresh small world of one driver: an open source that exists, a target that can be made, no data.
/// Methods that cannot fail in a sound world may panic; keys are short ASCII with `/`.
#[async_trait]
pub trait Rig: Debug + Send + Sync {
    /// Another part over this same world, as a process that was just started would build it: nothing is shared with
    /// parts made before but the world and the state folder.
    fn part(&self) -> Arc<dyn Part>;

    /// Writes as the application does, with its credentials, so that the driver's change feed (if any) sees it.
    async fn write(&self, side: Side, key: &str, content: &[u8]) -> Result<(), Refused>;

    /// Deletes as the application does.
    async fn delete(&self, side: Side, key: &str) -> Result<(), Refused>;

    /// What is there now; `None` when nothing is. Also works on a fenced side.
    async fn read(&self, side: Side, key: &str) -> Option<Vec<u8>>;

    /// Changes data past guards and without a trace in any change feed (`None` removes).
    async fn plant(&self, side: Side, key: &str, content: Option<&[u8]>);

    /// A write of the application that was under way when the fence closed and lands now; the feed sees it.
    async fn write_late(&self, side: Side, key: &str, content: &[u8]);

    /// What guards the side (policy, roles, mode), as text to compare; and whether the place exists at all.
    async fn guard(&self, side: Side) -> String;

    /// Makes the target's place exist before the migration comes.
    async fn make_target(&self);

    /// Everything of the migration's own that can still be found on the two sides (markers, state), a line each;
    /// not the application's data and not the fence.
    async fn remains(&self) -> Vec<String>;
}

/// How patient the suite is.
#[derive(Debug, Clone)]
pub struct Options {
    /// The longest anything may take before it counts as never.
    pub patience: Duration,
    /// How long something that must not end is watched.
    pub quiet: Duration,
    /// Objects in the first copy.
    pub objects: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { patience: Duration::from_secs(30), quiet: Duration::from_millis(300), objects: 24 }
    }
}

/// Runs every case, each on a fresh rig; all that failed are in the message, one a line.
///
/// # Errors
/// The names of the cases that failed, with what was expected and what happened.
pub async fn check<R, F, M>(make: M, options: &Options) -> Result<(), String>
where
    R: Rig + 'static,
    F: Future<Output = R>,
    M: Fn() -> F,
{
    let mut failed = Vec::new();
    for case in Case::ALL {
        let context = Context { rig: Arc::new(make().await), options: options.clone() };
        if let Err(why) = case.run(&context).await {
            failed.push(format!("{}: {why}", case.name()));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

macro_rules! cases {
    ($($variant:ident => $function:path,)*) => {
        #[derive(Debug, Clone, Copy)]
        enum Case { $($variant),* }

        impl Case {
            const ALL: &[Self] = &[$(Self::$variant),*];

            fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($function)),* }
            }

            async fn run(self, context: &Context) -> Outcome {
                match self { $(Self::$variant => Box::pin($function(context)).await),* }
            }
        }
    };
}

cases! {
    PrepareAndBack => guards::prepare_and_back,
    PrepareKeepsWhatIsThere => guards::unprepare_keeps_what_was_found,
    AssessChangesNothing => guards::assess_changes_nothing,
    Fence => guards::fence_closes_and_unfence_restores,
    FenceAdmitsMarker => guards::fence_admits_the_marker,
    CopyThenFollow => data::copy_then_follow,
    InterruptedCopy => data::copy_goes_on_after_a_kill,
    InterruptedFollow => data::follow_goes_on_after_a_kill,
    Positions => data::positions_only_grow,
    Verify => data::verify_finds_planted_differences,
    DrainNeedsBoth => going::drain_needs_position_and_marker,
    DrainStops => going::drain_stops_when_asked,
    SealAndReverse => going::seal_and_follow_back,
    Unseal => going::unseal_forgets,
    Sweep => going::sweep_finds_late_writes,
    Retire => going::retire_leaves_nothing,
}

type Outcome<T = ()> = Result<T, String>;

fn ensure(condition: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if condition { Ok(()) } else { Err(otherwise()) }
}

/// Says which call failed.
trait Doing<T> {
    fn doing(self, what: &str) -> Outcome<T>;
}

impl<T, E: Display> Doing<T> for Result<T, E> {
    fn doing(self, what: &str) -> Outcome<T> {
        self.map_err(|error| format!("{what} failed: {error}"))
    }
}

#[derive(Debug)]
struct NoProgress;

impl Progress for NoProgress {
    fn update(&self, _: u64, _: u64, _: Option<u64>, _: Option<u64>) {}
}

/// One case's world and patience, with the comforts the cases share.
#[derive(Debug, Clone)]
struct Context {
    rig: Arc<dyn Rig>,
    options: Options,
}

/// A follower running in the background.
struct Following {
    task: JoinHandle<crate::Result<()>>,
    stop: CancellationToken,
    state: watch::Receiver<FollowState>,
}

impl Following {
    /// Stops it as the engine does.
    async fn finish(self, patience: Duration) -> Outcome {
        self.stop.cancel();
        match tokio::time::timeout(patience, self.task).await {
            Err(_) => Err("follow does not end after it was asked to stop".into()),
            Ok(Err(panic)) => Err(format!("follow panicked: {panic}")),
            Ok(Ok(result)) => result.doing("follow after stop"),
        }
    }

    /// Drops the future where it is, as the death of the engine does.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

impl Context {
    fn part(&self) -> Arc<dyn Part> {
        self.rig.part()
    }

    fn capabilities(&self) -> Capabilities {
        self.part().capabilities()
    }

    fn key(number: usize) -> String {
        // Some of them in a folder, so that drivers that list by level are exercised.
        if number.is_multiple_of(3) { format!("folder/{number:04}") } else { format!("{number:04}") }
    }

    async fn write(&self, side: Side, key: &str, content: &str) -> Outcome {
        self.rig
            .write(side, key, content.as_bytes())
            .await
            .doing(&format!("the application's write to the {side}"))
    }

    /// First objects on the source.
    async fn fill(&self) -> Outcome {
        for number in 0..self.options.objects {
            self.write(Side::Source, &Self::key(number), &format!("first content of {number}")).await?;
        }
        Ok(())
    }

    async fn copy(&self, flow: Flow) -> Outcome<crate::CopySummary> {
        let copy = self.part();
        let copy = copy.copy(flow, Arc::new(NoProgress), CancellationToken::new());
        tokio::time::timeout(self.options.patience, copy).await.doing("copy in time")?.doing("copy")
    }

    /// A world that is prepared and copied.
    async fn copied(&self) -> Outcome {
        self.fill().await?;
        self.part().prepare().await.doing("prepare")?;
        self.copy(Flow::Forward).await.map(drop)
    }

    fn follow(&self, flow: Flow) -> Following {
        let (report, state) = watch::channel(FollowState::default());
        let stop = CancellationToken::new();
        let (part, token) = (self.part(), stop.clone());
        let task = tokio::spawn(async move { part.follow(flow, report, token).await });
        Following { task, stop, state }
    }

    async fn verify(&self, flow: Flow, scope: crate::Scope) -> Outcome<crate::Verification> {
        let part = self.part();
        let verify = part.verify(flow, scope, Arc::new(NoProgress), CancellationToken::new());
        tokio::time::timeout(self.options.patience, verify).await.doing("verify in time")?.doing("verify")
    }

    /// Waits until `side` has `content` under `key`.
    async fn arrives(&self, side: Side, key: &str, content: Option<&str>) -> Outcome {
        let arrived = async || self.rig.read(side, key).await.as_deref() == content.map(str::as_bytes);
        self.eventually(arrived, || format!("`{key}` did not become {content:?} on the {side}")).await
    }

    async fn applied(&self, following: &Following, wanted: &Position) -> Outcome {
        let part = self.part();
        let covered = async || {
            let applied = following.state.borrow().applied.clone();
            applied.is_some_and(|applied| part.covers(&applied, wanted))
        };
        self.eventually(covered, || format!("the follower did not report {wanted} as applied")).await
    }

    async fn eventually(
        &self,
        condition: impl AsyncFn() -> bool,
        otherwise: impl FnOnce() -> String,
    ) -> Outcome {
        let end = tokio::time::Instant::now() + self.options.patience;
        while !condition().await {
            if tokio::time::Instant::now() >= end {
                return Err(otherwise());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Both sides hold the same under the keys of [`Context::fill`] and `more`.
    async fn same_on_both(&self, more: &[&str]) -> Outcome {
        let keys = (0..self.options.objects).map(Self::key).chain(more.iter().map(|key| (*key).to_owned()));
        for key in keys {
            let (source, target) =
                (self.rig.read(Side::Source, &key).await, self.rig.read(Side::Target, &key).await);
            ensure(source == target, || format!("`{key}` differs between the sides"))?;
        }
        Ok(())
    }
}
