//! Following where there is no feed: passes over both listings, one after the other. Everything written before a pass
//! began is applied when it ends; its measured time is the time of a drain.

use super::{Place, REPORT_EVERY, may_pass};
use crate::mover::{Deletes, Mover, PassOptions, PassResult, pass};
use rehome_part::{Flow, FollowReport, FollowState, Progress, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

pub(crate) const LISTING_PASS: PassOptions = PassOptions {
    deletes: Deletes::Ours,
    dry_run: false,
    markers: true,
    leave_moving: false,
    note_strangers: false,
};

#[derive(Debug)]
struct Quiet;

impl Progress for Quiet {
    fn update(&self, _: u64, _: u64, _: Option<u64>, _: Option<u64>) {}
}

struct Passes<'a> {
    mover: &'a Arc<Mover>,
    flow: Flow,
    report: &'a FollowReport,
    /// When the last completed pass began, and how long it took.
    last: Option<(Instant, Duration)>,
    failures: u32,
    state: FollowState,
}

/// Follows until `stop` fires.
pub(crate) async fn follow_by_listing(
    mover: &Arc<Mover>,
    flow: Flow,
    report: &FollowReport,
    stop: &CancellationToken,
) -> Result<()> {
    let applied = mover.state.applied(flow)?.map(|applied| applied.position);
    let state = FollowState { applied, ..FollowState::default() };
    let mut passes = Passes { mover, flow, report, last: None, failures: 0, state };
    let ended = passes.run(stop).await;
    mover.state.end_beat(flow)?;
    ended
}

impl Passes<'_> {
    async fn run(&mut self, stop: &CancellationToken) -> Result<()> {
        let (mover, flow) = (self.mover, self.flow);
        while !stop.is_cancelled() {
            let (number, begun) = (mover.state.begin_pass(flow)?, Instant::now());
            match self.one(stop).await {
                Ok(done) => self.completed(number, begun, &done)?,
                Err(_) if stop.is_cancelled() => return Ok(()),
                Err(error) if may_pass(&error) => {
                    tracing::warn!(%error, number, "a listing pass failed; the next one tries again");
                    self.failures += 1;
                }
                Err(error) => return Err(error),
            }
            self.tell()?;
            let wait = match self.failures {
                0 => mover.settings.listing_rest,
                failures => mover.settings.retry.wait(failures).max(mover.settings.listing_rest),
            };
            self.rest(wait, stop).await?;
        }
        Ok(())
    }

    /// One pass, with reports on its way.
    async fn one(&self, stop: &CancellationToken) -> Result<PassResult> {
        let mut running = std::pin::pin!(pass(self.mover, self.flow, LISTING_PASS, &Quiet, stop));
        let mut tick = tokio::time::interval(REPORT_EVERY);
        loop {
            tokio::select! {
                biased;
                ended = &mut running => return ended,
                _ = tick.tick() => self.tell()?,
            }
        }
    }

    fn completed(&mut self, number: u64, begun: Instant, done: &PassResult) -> Result<()> {
        let position = Place::Pass(number).position();
        self.mover.state.set_applied(self.flow, &position, crate::mover::state::wall_millis())?;
        let took = begun.elapsed();
        self.last = Some((begun, took));
        self.failures = 0;
        self.state.applied = Some(position);
        self.state.changes_applied += done.copied + done.deleted;
        self.state.bytes_applied += done.copied_bytes;
        let rate = (done.copied + done.deleted) as f64 / took.as_secs_f64().max(1e-6);
        if rate > 0.0 {
            self.state.apply_per_second = Some(rate);
        }
        Ok(())
    }

    async fn rest(&self, wait: Duration, stop: &CancellationToken) -> Result<()> {
        let end = tokio::time::Instant::now() + wait;
        loop {
            let next = (tokio::time::Instant::now() + REPORT_EVERY).min(end);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(next) => self.tell()?,
            }
            if next >= end {
                return Ok(());
            }
        }
    }

    fn tell(&self) -> Result<()> {
        self.mover.state.beat(self.flow)?;
        let mut state = self.state.clone();
        if self.failures == 0
            && let Some((begun, took)) = self.last
        {
            // How many changes there are is unknown between two listings; how old the oldest can be is not.
            state.lag_seconds = Some(begun.elapsed().as_secs_f64());
            // The worst case: a pass has just begun, and only the one after it sees everything.
            let rest = self.mover.settings.listing_rest;
            state.drain_seconds = Some((took * 2 + rest).as_secs_f64());
        }
        self.report.send_replace(state);
        Ok(())
    }
}
