//! One pass over everything: both sides listed, merged, decided key by key, and what differs carried over in shuffled order
//! by a bounded number of tasks. Memory does not depend on the number of objects. A stopped pass lets its tasks end.

use super::Mover;
use super::decide::{Action, Deletes, decide, is_marker};
use super::transfer::Carried;
use crate::listing::{Merge, Pair, is_out_of_order, is_reserved};
use rehome_part::{Error, ErrorKind, Flow, Progress, Result, Retry};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Keys decided before they are written down as ours in one transaction.
const INTENT_BATCH: usize = 256;
/// Failed keys that are remembered by text.
const FAILURES_TOLD: usize = 20;
/// So many failures without a success in between: it is not the keys.
const FAILURES_IN_A_ROW: u32 = 32;
const TICK: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy)]
pub(crate) struct PassOptions {
    pub deletes: Deletes,
    pub dry_run: bool,
    /// Carry markers too (while following by listing).
    pub markers: bool,
    /// Keys that change faster than they can be read are left to the follower.
    pub leave_moving: bool,
    /// Write down which keys were on the other side before us.
    pub note_strangers: bool,
}

/// What a pass did, or would do when it is dry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PassResult {
    pub copied: u64,
    pub copied_bytes: u64,
    pub kept: u64,
    pub kept_bytes: u64,
    pub deleted: u64,
    pub refused: u64,
    /// On the other side only, and not ours to delete.
    pub extra: u64,
    /// The first of them.
    pub extra_keys: Vec<String>,
    /// Left to the follower.
    pub moving: u64,
}

#[derive(Debug)]
struct Job {
    key: String,
    expected: Option<u64>,
}

/// Runs a pass; begins again when a listing broke its promise of order.
pub(crate) async fn pass(
    mover: &Arc<Mover>,
    flow: Flow,
    options: PassOptions,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<PassResult> {
    loop {
        let mut running = Running::new(mover, flow, options, progress, stop);
        match running.run().await {
            Err(error) if is_out_of_order(&error) => tracing::warn!(%error, "sorting it here from now on"),
            other => return other,
        }
    }
}

struct Running<'a> {
    mover: &'a Arc<Mover>,
    flow: Flow,
    options: PassOptions,
    progress: &'a dyn Progress,
    stop: &'a CancellationToken,
    merge: Option<Merge>,
    /// Decided, not yet written down as ours.
    decided: Vec<Job>,
    /// Written down, to be started in random order.
    waiting: Vec<Job>,
    /// Found on the other side only, not yet written down.
    strangers: Vec<String>,
    tasks: JoinSet<(Job, Result<Carried>)>,
    result: PassResult,
    listed: u64,
    listed_bytes: u64,
    failures: Vec<Error>,
    failed: u64,
    in_a_row: u32,
}

impl<'a> Running<'a> {
    fn new(
        mover: &'a Arc<Mover>,
        flow: Flow,
        options: PassOptions,
        progress: &'a dyn Progress,
        stop: &'a CancellationToken,
    ) -> Self {
        Self {
            mover,
            flow,
            options,
            progress,
            stop,
            merge: Some(if options.dry_run { mover.merge_before(flow) } else { mover.merge(flow) }),
            decided: Vec::new(),
            waiting: Vec::new(),
            strangers: Vec::new(),
            tasks: JoinSet::new(),
            result: PassResult::default(),
            listed: 0,
            listed_bytes: 0,
            failures: Vec::new(),
            failed: 0,
            in_a_row: 0,
        }
    }

    async fn run(&mut self) -> Result<PassResult> {
        let ended = self.work().await;
        // What was started is not torn off: a write that lands after we said "stopped" could undo a later one.
        self.stop_listing();
        while let Some(done) = self.tasks.join_next().await {
            let kept = self.finished(done);
            if ended.is_ok() {
                kept?;
            }
        }
        self.note_strangers()?;
        self.mover.state.settle()?;
        self.tell();
        ended?;
        self.verdict()
    }

    async fn work(&mut self) -> Result<()> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            self.start()?;
            let idle = self.merge.is_none() && self.tasks.is_empty();
            if idle && self.waiting.is_empty() && self.decided.is_empty() {
                return Ok(());
            }
            let room = self.waiting.len() + self.decided.len() < self.mover.settings.shuffle_keys;
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Error::cancelled()),
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => self.finished(done)?,
                pair = next_pair(&mut self.merge), if room && self.merge.is_some() => match pair? {
                    Some(pair) => self.decide(pair)?,
                    None => self.stop_listing(),
                },
                _ = tick.tick() => {
                    self.mover.state.settle()?;
                    self.tell();
                }
            }
        }
    }

    fn stop_listing(&mut self) {
        self.merge = None;
    }

    fn decide(&mut self, pair: Pair) -> Result<()> {
        let counted = pair.from.as_ref().filter(|_| !is_reserved(&pair.key));
        if let Some(from) = counted {
            self.listed += 1;
            self.listed_bytes += from.size;
        }
        let action = decide(self.mover, self.flow, self.options.deletes, &pair)?;
        match action {
            Action::Skip => {}
            Action::Keep => self.keep(&pair),
            Action::Adopt(mark) => {
                if !self.options.dry_run {
                    self.mover.state.mark(&pair.key, mark)?;
                }
                self.keep(&pair);
            }
            Action::Extra => {
                self.result.extra += 1;
                if self.options.note_strangers {
                    self.strangers.push(pair.key.clone());
                    if self.strangers.len() >= INTENT_BATCH {
                        self.note_strangers()?;
                    }
                }
                if self.result.extra_keys.len() < FAILURES_TOLD {
                    self.result.extra_keys.push(pair.key);
                }
            }
            Action::Copy(_) if is_marker(&pair.key) && !self.options.markers => {}
            Action::Copy(size) if self.options.dry_run => {
                self.result.copied += 1;
                self.result.copied_bytes += size;
            }
            Action::Delete if self.options.dry_run => self.result.deleted += 1,
            Action::Copy(size) => self.decided.push(Job { key: pair.key, expected: Some(size) }),
            // The task looks once more whether it is really gone.
            Action::Delete => self.waiting.push(Job { key: pair.key, expected: None }),
        }
        Ok(())
    }

    fn note_strangers(&mut self) -> Result<()> {
        self.mover.state.strangers(self.strangers.drain(..).collect::<Vec<_>>().iter().map(String::as_str))
    }

    fn keep(&mut self, pair: &Pair) {
        self.result.kept += 1;
        self.result.kept_bytes += pair.from.as_ref().map_or(0, |from| from.size);
    }

    /// Starts what may be started.
    fn start(&mut self) -> Result<()> {
        let concurrency = self.mover.settings.concurrency.max(1);
        let hungry = self.tasks.len() < concurrency && self.waiting.len() < concurrency;
        if self.decided.len() >= INTENT_BATCH || (hungry && !self.decided.is_empty()) {
            self.mover
                .state
                .intend(self.decided.iter().map(|job| job.key.as_str()).filter(|k| !is_reserved(k)))?;
            self.waiting.append(&mut self.decided);
        }
        while self.tasks.len() < concurrency && !self.waiting.is_empty() {
            let job = self.waiting.swap_remove(fastrand::usize(..self.waiting.len()));
            let (mover, flow, deletes) = (Arc::clone(self.mover), self.flow, self.options.deletes);
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                let carried = mover.carry(flow, &job.key, job.expected, deletes, &stop).await;
                (job, carried)
            });
        }
        Ok(())
    }

    fn finished(&mut self, done: Result<(Job, Result<Carried>), tokio::task::JoinError>) -> Result<()> {
        let (job, carried) =
            done.map_err(|e| Error::permanent(ErrorKind::Other, format!("a copying task died: {e}")))?;
        match carried {
            Ok(carried) => {
                self.in_a_row = 0;
                self.count(&job, carried);
                self.tell();
                Ok(())
            }
            Err(error) if error.kind == ErrorKind::Changed && self.options.leave_moving => {
                self.result.moving += 1;
                Ok(())
            }
            Err(error) => self.fail(&job, error),
        }
    }

    fn count(&mut self, job: &Job, carried: Carried) {
        match carried {
            Carried::Copied(bytes) if !is_reserved(&job.key) => {
                self.result.copied += 1;
                self.result.copied_bytes += bytes;
            }
            Carried::Deleted => self.result.deleted += 1,
            Carried::Refused => self.result.refused += 1,
            Carried::Copied(_) | Carried::Gone => {}
        }
    }

    /// One key that fails does not end the pass; what would fail every key does.
    fn fail(&mut self, job: &Job, error: Error) -> Result<()> {
        let hopeless = matches!(error.kind, ErrorKind::Credentials | ErrorKind::Full | ErrorKind::Cancelled)
            || (error.kind == ErrorKind::NotFound && error.retry == Retry::Permanent)
            || error.side.is_none();
        self.in_a_row += 1;
        if hopeless || self.in_a_row >= FAILURES_IN_A_ROW {
            return Err(error);
        }
        tracing::warn!(key = job.key, %error, "not copied");
        self.failed += 1;
        if self.failures.len() < FAILURES_TOLD {
            let text = format!("{}: {error}", job.key);
            self.failures.push(Error { text, ..error });
        }
        Ok(())
    }

    fn verdict(&mut self) -> Result<PassResult> {
        match self.failures.drain(..).next() {
            None => Ok(std::mem::take(&mut self.result)),
            Some(first) => Err(Error {
                text: format!("{} objects could not be copied; the first: {first}", self.failed),
                ..first
            }
            .hint("run it again: what is done is not done twice")),
        }
    }

    fn tell(&self) {
        let done = self.result.copied + self.result.kept + self.result.refused;
        let parts = self.mover.bytes_of_parts.load(Ordering::Relaxed);
        let bytes = self.result.copied_bytes + self.result.kept_bytes + parts;
        let known = self.merge.is_none();
        self.progress.update(
            done,
            bytes,
            known.then_some(self.listed.max(done)),
            known.then_some(self.listed_bytes.max(bytes)),
        );
    }
}

/// Cancel-safe, as [`Merge::next`] is.
async fn next_pair(merge: &mut Option<Merge>) -> Result<Option<Pair>> {
    match merge {
        Some(merge) => merge.next().await,
        None => Ok(None),
    }
}
