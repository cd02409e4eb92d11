//! Units work beside the dispatcher and report to it: the full copy, the follower and the comparison of each part, and
//! the freshness of each service. They never write the journal and never change a state.

use crate::settings::{Settings, World};
use crate::task::Task;
use futures::future::join_all;
use rehome_part::{
    CopySummary, Error as PartError, ErrorKind, Flow, FollowState, Part, Position, Progress, Scope,
    Verification,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How long a unit may take to end when asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a unit says.
#[derive(Debug)]
pub(crate) enum Report {
    Copied {
        part: String,
        summary: CopySummary,
    },
    CopyFailed {
        part: String,
        error: PartError,
    },
    FollowFailed {
        part: String,
        error: PartError,
    },
    /// `since`: each part's position of `flow` before its comparison began.
    Verified {
        outcome: Result<Verification, PartError>,
        flow: Flow,
        since: BTreeMap<String, Position>,
    },
}

/// Totals of a copy: done objects, done bytes, expected objects, expected bytes.
pub(crate) type Totals = (u64, u64, Option<u64>, Option<u64>);

#[derive(Debug)]
struct Counter(watch::Sender<Totals>);

impl Progress for Counter {
    fn update(
        &self,
        done_objects: u64,
        done_bytes: u64,
        total_objects: Option<u64>,
        total_bytes: Option<u64>,
    ) {
        self.0.send_replace((done_objects, done_bytes, total_objects, total_bytes));
    }
}

/// Progress nobody looks at.
#[derive(Debug)]
pub(crate) struct Unseen;

impl Progress for Unseen {
    fn update(&self, _: u64, _: u64, _: Option<u64>, _: Option<u64>) {}
}

#[derive(Debug)]
pub(crate) struct Units {
    world: Arc<World>,
    says: mpsc::UnboundedSender<Report>,
    copies: BTreeMap<String, (Task, watch::Receiver<Totals>)>,
    follows: BTreeMap<String, (Flow, Task)>,
    /// One notebook per part for the whole run, so that readers outlive a follower.
    notebooks: BTreeMap<String, watch::Sender<FollowState>>,
    verify: Option<Task>,
    freshness: Vec<Task>,
}

impl Units {
    pub fn new(world: &Arc<World>) -> (Self, mpsc::UnboundedReceiver<Report>) {
        let (says, reports) = mpsc::unbounded_channel();
        let notebooks = world
            .parts
            .iter()
            .map(|part| (part.name().to_owned(), watch::Sender::new(FollowState::default())))
            .collect();
        let units = Self {
            world: Arc::clone(world),
            says,
            copies: BTreeMap::new(),
            follows: BTreeMap::new(),
            notebooks,
            verify: None,
            freshness: Vec::new(),
        };
        (units, reports)
    }

    fn part(&self, name: &str) -> Option<Arc<dyn Part>> {
        self.world.parts.iter().find(|part| part.name() == name).cloned()
    }

    /// The latest a follower of `part` knows; unknown when none runs.
    pub fn follow_state(&self, part: &str) -> FollowState {
        self.notebooks.get(part).map(|notebook| notebook.borrow().clone()).unwrap_or_default()
    }

    pub fn notebook(&self, part: &str) -> Option<watch::Receiver<FollowState>> {
        self.notebooks.get(part).map(watch::Sender::subscribe)
    }

    pub fn is_copying(&self, part: &str) -> bool {
        self.copies.get(part).is_some_and(|(task, _)| !task.is_finished())
    }

    pub fn copy_totals(&self) -> Vec<(String, Totals)> {
        self.copies.iter().map(|(part, (_, totals))| (part.clone(), *totals.borrow())).collect()
    }

    /// Begins (or goes on with) the first full copy of a part.
    pub fn start_copy(&mut self, name: &str) {
        let Some(part) = self.part(name) else { return };
        let (counter, totals) = watch::channel((0, 0, None, None));
        let (says, name_inside) = (self.says.clone(), name.to_owned());
        let task = Task::start(move |stop| async move {
            let outcome = part.copy(Flow::Forward, Arc::new(Counter(counter)), stop.clone()).await;
            let report = match outcome {
                Ok(summary) => Report::Copied { part: name_inside, summary },
                Err(_) if stop.is_cancelled() => return,
                Err(error) => Report::CopyFailed { part: name_inside, error },
            };
            let _ = says.send(report); // the dispatcher is gone: so is the reason to tell it
        });
        self.copies.insert(name.to_owned(), (task, totals));
    }

    pub async fn stop_copies(&mut self) {
        for (_, (task, _)) in std::mem::take(&mut self.copies) {
            task.end(PATIENCE).await;
        }
    }

    pub fn is_following(&self, flow: Flow) -> bool {
        self.follows.len() == self.world.parts.len()
            && self.follows.values().all(|(follows, _)| *follows == flow)
    }

    pub fn follows_anything(&self) -> bool {
        !self.follows.is_empty()
    }

    /// Makes every part follow `flow`; a follower of the other flow must have been stopped before.
    pub fn start_following(&mut self, flow: Flow) {
        for part in self.world.parts.clone() {
            let name = part.name().to_owned();
            if self.follows.contains_key(&name) {
                continue;
            }
            let Some(notebook) = self.notebooks.get(&name).cloned() else { continue };
            let says = self.says.clone();
            let task = Task::start(move |stop| keep_following(part, flow, notebook, says, stop));
            self.follows.insert(name, (flow, task));
        }
    }

    pub async fn stop_following(&mut self) {
        self.freshness.clear();
        let ending = std::mem::take(&mut self.follows).into_iter().map(|(name, (_, task))| async move {
            task.end(PATIENCE).await;
            name
        });
        for name in join_all(ending).await {
            if let Some(notebook) = self.notebooks.get(&name) {
                notebook.send_replace(FollowState::default());
            }
        }
    }

    pub fn is_verifying(&self) -> bool {
        self.verify.as_ref().is_some_and(|task| !task.is_finished())
    }

    /// Compares every part in full; one [`Report::Verified`] with the sums.
    pub fn start_verify(&mut self, flow: Flow) {
        let (says, parts) = (self.says.clone(), self.world.parts.clone());
        self.verify = Some(Task::start(move |stop| async move {
            let (mut sum, mut since) = (Verification::default(), BTreeMap::new());
            for part in parts {
                let compared = async {
                    since.insert(part.name().to_owned(), part.head(flow).await?);
                    part.verify(flow, Scope::Full, Arc::new(Unseen), stop.clone()).await
                };
                match compared.await {
                    Ok(result) => add(&mut sum, result),
                    Err(_) if stop.is_cancelled() => return,
                    Err(error) => {
                        let _ = says.send(Report::Verified { outcome: Err(error), flow, since });
                        return;
                    }
                }
            }
            let _ = says.send(Report::Verified { outcome: Ok(sum), flow, since });
        }));
    }

    pub async fn stop_verify(&mut self) {
        if let Some(task) = self.verify.take() {
            task.end(PATIENCE).await;
        }
    }

    /// Keeps the gateways told how fresh the other side is, one task per service.
    pub fn start_freshness(&mut self, settings: &Settings, flow: Flow, token: rehome_part::Token) {
        if !self.freshness.is_empty() {
            return;
        }
        for service in self.world.services.clone() {
            let uses: Option<Vec<_>> =
                service.uses.iter().map(|name| Some((self.part(name)?, self.notebook(name)?))).collect();
            let Some(uses) = uses.filter(|uses| !uses.is_empty()) else { continue };
            let loop_of = crate::reconcile::Freshness::new(
                &self.world,
                service.name,
                uses,
                flow,
                settings.freshness_every,
                token,
            );
            self.freshness.push(Task::start(move |stop| loop_of.run(stop)));
        }
    }
}

pub(crate) fn add(sum: &mut Verification, result: Verification) {
    sum.compared += result.compared;
    sum.bytes += result.bytes;
    sum.in_motion += result.in_motion;
    sum.differences_total += result.differences_total;
    sum.differences.extend(result.differences);
    sum.differences.truncate(100);
}

/// A reconciler around the part's own follower: whatever ends it, it is begun again, until asked to stop.
async fn keep_following(
    part: Arc<dyn Part>,
    flow: Flow,
    notebook: watch::Sender<FollowState>,
    says: mpsc::UnboundedSender<Report>,
    stop: tokio_util::sync::CancellationToken,
) {
    let name = part.name().to_owned();
    let mut pause = Duration::from_millis(200);
    loop {
        let began = tokio::time::Instant::now();
        let outcome = part.follow(flow, notebook.clone(), stop.clone()).await;
        notebook.send_replace(FollowState::default());
        if stop.is_cancelled() {
            return;
        }
        let error = outcome
            .err()
            .unwrap_or_else(|| PartError::temporary(ErrorKind::Other, "the follower ended by itself"));
        let _ = says.send(Report::FollowFailed { part: name.clone(), error });
        if began.elapsed() > Duration::from_secs(60) {
            pause = Duration::from_millis(200);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}
