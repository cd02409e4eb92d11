//! Keeps the replica of a flow bound to its owner, and tells how far it is. The copying itself is Redis' own.
//! Nothing is written to measure lag: the owner's positions are noted with the time, and the replica's is looked up among them.

use super::connect::Session;
use super::fence;
use super::info::Replication;
use super::link::Link;
use super::memory::Matter;
use super::place::Place;
use super::sweep;
use rehome_part::{Error, ErrorKind, Finding, Flow, FollowReport, FollowState, Result, Severity};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_millis(50);
/// A look that takes longer says that nothing is known.
const SOON: Duration = Duration::from_secs(2);
const AFTER_TROUBLE: Duration = Duration::from_millis(500);
/// So long an owner's positions are remembered; a lag beyond is told as this long.
const NOTED: Duration = Duration::from_secs(600);
/// A rate is measured over so long.
const RATE: f64 = 1.0;

/// What was found on the old owner when it began to follow the new one.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Late {
    pub findings: Vec<Finding>,
}

/// Until `stop` fires.
pub(super) async fn follow(
    link: &Link,
    flow: Flow,
    report: &FollowReport,
    stop: &CancellationToken,
) -> Result<()> {
    let mut notes = Notes::default();
    loop {
        let mut looking = Box::pin(look(link, flow));
        let looked = loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                looked = &mut looking => break looked,
                () = tokio::time::sleep(SOON) => drop(report.send_replace(FollowState::default())),
            }
        };
        let pause = match looked {
            Ok(Some((owner, replica))) => {
                report.send_replace(notes.state(&owner, &replica));
                EVERY
            }
            Ok(None) => {
                report.send_replace(FollowState::default());
                EVERY
            }
            Err(error) if error.is_temporary() => {
                tracing::debug!(%flow, %error, "following is interrupted");
                report.send_replace(FollowState::default());
                AFTER_TROUBLE
            }
            Err(error) => return Err(error),
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Is the flow bound, and does its replica hear the owner?
pub(super) async fn is_linked(link: &Link, flow: Flow) -> Result<bool> {
    let replica = link.replication(flow.to()).await?;
    Ok(link.is_bound(flow, &replica) && replica.is_linked())
}

/// One round: binds what is not bound, and says how far both are; `None` while the replica hears nothing.
pub(super) async fn look(link: &Link, flow: Flow) -> Result<Option<(Replication, Replication)>> {
    let (owner, replica) = tokio::try_join!(link.replication(flow.from()), link.replication(flow.to()))?;
    if !link.is_bound(flow, &replica) {
        rebind(link, flow, &owner).await?;
        return Ok(None);
    }
    Ok(replica.is_linked().then_some((owner, replica)))
}

/// Binds a side that does not follow: it was never bound in this direction, or it was started anew.
async fn rebind(link: &Link, flow: Flow, owner: &Replication) -> Result<()> {
    if link.sealed(flow)?.is_some() {
        // It is about to become the owner, or is it already.
        return Ok(());
    }
    let back = flow.back();
    if link.sealed(back)?.is_none() {
        if link.memory.get::<bool>(Matter::Copied(flow))?.is_none() {
            let text = format!("nothing was copied from the {} to the {} yet", flow.from(), flow.to());
            return Err(Error::permanent(ErrorKind::Other, text).hint("copy first"));
        }
        refence(link, flow).await?;
        return link.bind(flow).await;
    }
    turn_round(link, flow, owner).await
}

/// Users may have been lost with a restart.
async fn refence(link: &Link, flow: Flow) -> Result<()> {
    if fence::is_set(link, flow.to())? { fence::close(link, flow.to()).await } else { Ok(()) }
}

/// The old owner of the last switch becomes the replica of the new one. What was written to it after its end is looked for first,
/// while it stands still: a full copy would wipe it unseen.
async fn turn_round(link: &Link, flow: Flow, owner: &Replication) -> Result<()> {
    let (old, back) = (flow.to(), flow.back());
    let Some(sealed) = link.sealed(back)? else { return Ok(()) };
    let known: Option<Late> = link.memory.get(Matter::Late(back))?;
    refence(link, flow).await?;
    let still = link.freeze(old).await?;
    let (now, end) = (still.place(), sealed.frozen()?);
    let mut late = known.clone().unwrap_or_default();
    if now.stream == end.stream && now.offset > end.offset {
        late.findings = sweep::resolve(link, back, &end, &still).await?;
    } else if known.is_some() && !owner.still_has(&now) {
        // It followed before, so it took nothing from anybody else until it ended.
        late.findings.push(restarted(old));
    } else if !owner.still_has(&now) && now.stream != end.stream {
        link.thaw(old).await?;
        let text = format!(
            "the {old} was started anew after the switch; what was written there since cannot be known"
        );
        return Err(Error::permanent(ErrorKind::Changed, text).on(old).hint(
            "compare both sides with `rehome db verify`, then make it a replica of the owner with REPLICAOF; following goes on from there",
        ));
    }
    link.memory.set(Matter::Late(back), &late)?;
    link.bind(flow).await?;
    link.thaw(old).await
}

fn restarted(side: rehome_part::Side) -> Finding {
    Finding {
        id: "replica-restarted".to_owned(),
        severity: Severity::Warning,
        side: Some(side),
        text: format!("the {side} was started anew without its stream, and was copied in full again"),
        remedy: Some(
            "See why it ended; let it save what it has (save, appendonly) before it is stopped.".to_owned(),
        ),
    }
}

/// What the follower saw, so that it can say how old and how fast.
#[derive(Debug, Default)]
struct Notes {
    /// The owner's positions and when they were read, oldest first.
    owner: VecDeque<(Instant, u64)>,
    began: Option<u64>,
    measured: Option<(Instant, u64)>,
    bytes_per_second: Option<f64>,
}

impl Notes {
    fn state(&mut self, owner: &Replication, replica: &Replication) -> FollowState {
        let (there, here, now) = (owner.place(), replica.place(), Instant::now());
        if there.stream != here.stream {
            return FollowState::default();
        }
        let backlog = there.offset.saturating_sub(here.offset);
        self.note(now, &there, &here, backlog);
        let began = *self.began.get_or_insert(here.offset);
        let lag = self.owner.iter().find(|(_, offset)| *offset > here.offset);
        let rate = self.bytes_per_second;
        FollowState {
            applied: Some(here.position()),
            backlog: Some(backlog),
            lag_seconds: Some(lag.map_or(0.0, |(at, _)| now.duration_since(*at).as_secs_f64())),
            apply_per_second: rate,
            drain_seconds: match (backlog, rate) {
                (0, _) => Some(0.0),
                (_, Some(rate)) if rate > 0.0 => Some(backlog as f64 / rate),
                _ => None,
            },
            changes_applied: here.offset.saturating_sub(began),
            bytes_applied: here.offset.saturating_sub(began),
        }
    }

    fn note(&mut self, now: Instant, there: &Place, here: &Place, backlog: u64) {
        if self.owner.back().is_some_and(|(_, offset)| *offset > there.offset) {
            self.owner.clear();
        }
        if self.owner.back().is_none_or(|(_, offset)| *offset < there.offset) {
            self.owner.push_back((now, there.offset));
        }
        while self
            .owner
            .front()
            .is_some_and(|(at, offset)| *offset <= here.offset || now.duration_since(*at) > NOTED)
        {
            self.owner.pop_front();
        }
        let (since, offset) = *self.measured.get_or_insert((now, here.offset));
        let seconds = now.duration_since(since).as_secs_f64();
        if seconds >= RATE {
            let rate = here.offset.saturating_sub(offset) as f64 / seconds;
            // Without a backlog it is the owner's pace, which a replica can surely keep.
            if backlog > 0 || self.bytes_per_second.is_none_or(|known| rate > known) {
                self.bytes_per_second = Some(rate);
            }
            self.measured = Some((now, here.offset));
        }
    }
}

/// One look at a replica for the drain: how far it is, and whether the marker is there.
pub(super) async fn glance(session: &Session, key: &str, field: &str) -> Result<(Replication, bool)> {
    let mut both = redis::Pipeline::new();
    // The position first: what it covers is there when the marker is looked for.
    both.cmd("INFO").arg("replication").cmd("HEXISTS").arg(key).arg(field);
    let (info, is_there): (String, bool) = session.ask_all("look for the marker", &both).await?;
    Ok((Replication(super::info::Info::parse(&info)), is_there))
}
