//! Keeps leases alive: the engine's own in the journal, and the gateways' while a switch is under way. It only renews and
//! reports; what a lost lease or a full hold means is decided by who listens.

use crate::core::{blocking, now_of};
use crate::error::EngineError;
use crate::ports::HoldProof;
use crate::settings::{Settings, World};
use crate::task::Task;
use rehome_journal::{Journal, Lease};
use rehome_part::{Epoch, Error as PartError, ErrorKind, Token};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// At this fullness of any bound the switch is given up.
pub(crate) const FULL: f64 = 0.7;

fn ticker(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Renews the engine's lease until it is dropped or the lease is lost.
#[derive(Debug)]
pub(crate) struct Renewer {
    /// Fires when somebody else is the engine.
    pub lost: CancellationToken,
    token: Token,
    length: Duration,
    until_boot_ms: Arc<AtomicU64>,
    _task: Task,
}

impl Renewer {
    pub fn start(journal: &Arc<Journal>, world: &Arc<World>, settings: &Settings, lease: &Lease) -> Self {
        let lost = CancellationToken::new();
        let until = Arc::new(AtomicU64::new(lease.expires_boot_ms));
        let (token, length, every) = (lease.token, settings.lease, settings.renew_every);
        let (journal, world, fires, shared) =
            (Arc::clone(journal), Arc::clone(world), lost.clone(), Arc::clone(&until));
        let task = Task::start(move |stop| async move {
            let mut ticks = ticker(every);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = ticks.tick() => {}
                }
                match renew(&journal, &world, token, length).await {
                    Ok(lease) => shared.store(lease.expires_boot_ms, Ordering::Release),
                    Err(EngineError::LeaseLost) => {
                        fires.cancel();
                        return;
                    }
                    Err(error) => tracing::warn!(%error, "the lease could not be renewed; trying again"),
                }
            }
        });
        Self { lost, token, length, until_boot_ms: until, _task: task }
    }

    /// Right away if our lease is running; otherwise asks the journal, and takes it up again if nobody else did.
    pub async fn check(&self, journal: &Arc<Journal>, world: &Arc<World>) -> Result<(), EngineError> {
        if self.lost.is_cancelled() {
            return Err(EngineError::LeaseLost);
        }
        if world.clock.boot_millis() < self.until_boot_ms.load(Ordering::Acquire) {
            return Ok(());
        }
        let outcome = renew(journal, world, self.token, self.length).await;
        if matches!(outcome, Err(EngineError::LeaseLost)) {
            self.lost.cancel();
        }
        self.until_boot_ms.store(outcome?.expires_boot_ms, Ordering::Release);
        Ok(())
    }
}

async fn renew(
    journal: &Arc<Journal>,
    world: &Arc<World>,
    token: Token,
    length: Duration,
) -> Result<Lease, EngineError> {
    let (journal, now) = (Arc::clone(journal), now_of(world));
    blocking(move || journal.renew(token, &now, length)).await
}

/// Where the gateways are in the switch, for the choice of message that renews their lease.
#[derive(Debug, Default)]
pub(crate) struct HoldStage {
    /// The hold was asked for: an unanswered renewal means nothing until it is answered.
    pub asking: AtomicBool,
    pub held: AtomicBool,
}

/// Renews the gateways' leases while a switch is under way.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub stage: Arc<HoldStage>,
    /// Why the switch must be given up, as soon as that is so.
    pub trouble: watch::Receiver<Option<PartError>>,
    pub most_waiting: Arc<AtomicU64>,
    _task: Task,
}

impl Keeper {
    pub fn start(world: &Arc<World>, settings: &Settings, epoch: Epoch, token: Token) -> Self {
        let stage = Arc::new(HoldStage::default());
        let most_waiting = Arc::new(AtomicU64::new(0));
        let (says, trouble) = watch::channel(None);
        let round = Round {
            world: Arc::clone(world),
            epoch,
            token,
            lease: settings.lease,
            stage: Arc::clone(&stage),
            most_waiting: Arc::clone(&most_waiting),
        };
        let every = settings.renew_every;
        let task = Task::start(move |stop| async move {
            let mut ticks = ticker(every);
            ticks.tick().await; // arming set the first lease
            let mut last_good = Instant::now();
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = ticks.tick() => {}
                }
                if let Some(error) = round.go(&mut last_good).await {
                    says.send_replace(Some(error));
                }
            }
        });
        Self { stage, trouble, most_waiting, _task: task }
    }

    /// Ends with the reason once the switch has to be given up.
    pub async fn gives_up(&self) -> PartError {
        let mut trouble = self.trouble.clone();
        let reason = trouble.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_else(|| {
            PartError::temporary(ErrorKind::Other, "the gateways' leases are not renewed any more")
        })
    }
}

struct Round {
    world: Arc<World>,
    epoch: Epoch,
    token: Token,
    lease: Duration,
    stage: Arc<HoldStage>,
    most_waiting: Arc<AtomicU64>,
}

impl Round {
    async fn go(&self, last_good: &mut Instant) -> Option<PartError> {
        let held = self.stage.held.load(Ordering::Acquire);
        let asking = self.stage.asking.load(Ordering::Acquire) && !held;
        let renewal = async {
            if held || asking {
                self.world.gateways.renew(self.epoch, self.lease, self.token).await
            } else {
                let armed = self.world.gateways.arm(self.epoch, self.lease, self.token).await;
                armed.map(|()| HoldProof::default())
            }
        };
        match tokio::time::timeout(self.lease, renewal).await {
            Ok(Ok(proof)) => {
                *last_good = Instant::now();
                self.most_waiting.fetch_max(proof.waiting, Ordering::AcqRel);
                (proof.fullness >= FULL).then(|| {
                    let text = format!(
                        "{} requests wait: the hold is {:.0} % full",
                        proof.waiting,
                        proof.fullness * 100.0
                    );
                    PartError::temporary(ErrorKind::Full, text)
                        .hint("raise [switch.hold], or switch when less is written")
                })
            }
            Ok(Err(error)) if !error.is_temporary() && !asking => Some(error),
            _ if asking => None,
            outcome if last_good.elapsed() >= self.lease => Some(match outcome {
                Ok(Err(error)) => error,
                _ => {
                    PartError::temporary(ErrorKind::Network, "a gateway does not answer; its lease has ended")
                }
            }),
            _ => None,
        }
    }
}
