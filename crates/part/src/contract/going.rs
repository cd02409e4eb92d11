//! Cases about the switch itself and what follows it: drain, seal, the way back, the sweep, the end.
//! They act out what the engine does, in its order.

use super::{Context, Doing, Outcome, ensure};
use crate::{Drained, Epoch, ErrorKind, Flow, Marker, Position, Scope, Side};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

fn marker(nonce: &str) -> Marker {
    Marker { epoch: Epoch::FIRST, nonce: nonce.into() }
}

async fn fence(context: &Context, side: Side) -> Outcome {
    match context.capabilities().can_fence {
        true => context.part().fence(side).await.doing("fence"),
        false => Ok(()),
    }
}

async fn unfence(context: &Context, side: Side) -> Outcome {
    match context.capabilities().can_fence {
        true => context.part().unfence(side).await.doing("unfence"),
        false => Ok(()),
    }
}

struct Draining {
    task: JoinHandle<crate::Result<Drained>>,
    stop: CancellationToken,
}

fn drain(context: &Context, flow: Flow, fence: &Position, marker: &Marker) -> Draining {
    let stop = CancellationToken::new();
    let (part, fence, marker, token) = (context.part(), fence.clone(), marker.clone(), stop.clone());
    let task = tokio::spawn(async move { part.drain(flow, &fence, &marker, token).await });
    Draining { task, stop }
}

impl Draining {
    async fn must_wait(&mut self, context: &Context, why: &str) -> Outcome {
        match tokio::time::timeout(context.options.quiet, &mut self.task).await {
            Err(_) => Ok(()),
            Ok(ended) => Err(format!("drain ended {why}: {ended:?}")),
        }
    }

    async fn must_end(self, context: &Context) -> Outcome<Drained> {
        let ended = tokio::time::timeout(context.options.patience, self.task).await;
        ended.doing("drain in time")?.doing("drain (panicked)")?.doing("drain")
    }
}

pub(super) async fn drain_needs_position_and_marker(context: &Context) -> Outcome {
    context.copied().await?;
    fence(context, Side::Target).await?;
    let following = context.follow(Flow::Forward);
    context.write(Side::Source, "last-write", "content").await?;
    fence(context, Side::Source).await?;
    let position = context.part().head(Flow::Forward).await.doing("head")?;
    context.applied(&following, &position).await?;

    // All is applied and quiet, and still not drained: another marker is not this marker.
    context.part().mark(Flow::Forward, &marker("contract-other")).await.doing("mark")?;
    let wanted = marker("contract-wanted");
    let mut draining = drain(context, Flow::Forward, &position, &wanted);
    draining.must_wait(context, "without its marker").await?;
    context.part().mark(Flow::Forward, &wanted).await.doing("mark")?;
    let drained = draining.must_end(context).await?;
    ensure(drained.marker_seen, || "drain ended and says that it saw no marker".into())?;
    ensure(context.part().covers(&drained.applied, &position), || {
        format!("drain ended at {}, before the fence position {position}", drained.applied)
    })?;
    let again = drain(context, Flow::Forward, &position, &wanted).must_end(context).await?;
    ensure(again.marker_seen, || "a second drain does not see the marker".into())?;
    following.finish(context.options.patience).await?;
    context.same_on_both(&["last-write"]).await?;
    let result = context.verify(Flow::Forward, Scope::Full).await?;
    ensure(result.is_equal(), || format!("not equal after the drain: {:?}", result.differences))
}

pub(super) async fn drain_stops_when_asked(context: &Context) -> Outcome {
    context.copied().await?;
    let following = context.follow(Flow::Forward);
    let position = context.part().head(Flow::Forward).await.doing("head")?;
    let mut draining = drain(context, Flow::Forward, &position, &marker("contract-never"));
    draining.must_wait(context, "without its marker").await?;
    draining.stop.cancel();
    let ended = tokio::time::timeout(context.options.patience, draining.task).await;
    let ended = ended.doing("drain after stop, in time")?.doing("drain (panicked)")?;
    following.finish(context.options.patience).await?;
    match ended {
        Err(error) if error.kind == ErrorKind::Cancelled => Ok(()),
        other => Err(format!("a drain that was stopped says {other:?}, not Cancelled")),
    }
}

/// Copied, followed, fenced, drained and sealed; gives the fence position.
async fn switched(context: &Context) -> Outcome<Position> {
    context.copied().await?;
    fence(context, Side::Target).await?;
    let following = context.follow(Flow::Forward);
    context.write(Side::Source, "last-write", "content").await?;
    fence(context, Side::Source).await?;
    let position = context.part().head(Flow::Forward).await.doing("head")?;
    let wanted = marker("contract-switch");
    context.part().mark(Flow::Forward, &wanted).await.doing("mark")?;
    drain(context, Flow::Forward, &position, &wanted).must_end(context).await?;
    following.finish(context.options.patience).await?;
    context.part().seal(Flow::Forward).await.doing("seal")?;
    Ok(position)
}

pub(super) async fn seal_and_follow_back(context: &Context) -> Outcome {
    if !context.capabilities().can_reverse {
        return Ok(());
    }
    switched(context).await?;
    unfence(context, Side::Target).await?;
    // Before the reverse follower runs: only the start that seal captured can bring these back.
    context.write(Side::Target, "first-on-the-target", "content").await?;
    context.write(Side::Target, &Context::key(0), "changed on the target").await?;
    context.rig.delete(Side::Target, &Context::key(1)).await.doing("the application's delete")?;
    let first = context.part().seal(Flow::Forward).await.doing("seal, again after the target opened")?;
    let head = context.part().head(Flow::Reverse).await.doing("head of the target")?;
    ensure(!context.part().covers(&first.reverse_start, &head), || {
        "a second seal moved the start of the way back past writes of the target".into()
    })?;
    let following = context.follow(Flow::Reverse);
    context.arrives(Side::Source, "first-on-the-target", Some("content")).await?;
    context.arrives(Side::Source, &Context::key(0), Some("changed on the target")).await?;
    context.arrives(Side::Source, &Context::key(1), None).await?;
    following.kill().await;
    context.write(Side::Target, "while-dead", "content").await?;
    let following = context.follow(Flow::Reverse);
    context.arrives(Side::Source, "while-dead", Some("content")).await?;

    // And back: the same steps with the roles swapped.
    fence(context, Side::Target).await?;
    let position = context.part().head(Flow::Reverse).await.doing("head of the target")?;
    let wanted = marker("contract-back");
    context.part().mark(Flow::Reverse, &wanted).await.doing("mark on the target")?;
    drain(context, Flow::Reverse, &position, &wanted).must_end(context).await?;
    following.finish(context.options.patience).await?;
    let result = context.verify(Flow::Reverse, Scope::Full).await?;
    ensure(result.is_equal(), || format!("not equal after the way back: {:?}", result.differences))?;
    context.part().seal(Flow::Reverse).await.doing("seal of the way back")?;
    unfence(context, Side::Source).await?;
    context.write(Side::Source, "home-again", "content").await?;
    let following = context.follow(Flow::Forward);
    context.arrives(Side::Target, "home-again", Some("content")).await?;
    following.finish(context.options.patience).await?;
    context.same_on_both(&["first-on-the-target", "while-dead", "home-again"]).await
}

pub(super) async fn unseal_forgets(context: &Context) -> Outcome {
    context.part().prepare().await.doing("prepare")?;
    context.part().unseal(Flow::Forward).await.doing("unseal of what was not sealed")?;
    switched(context).await?;
    context.part().seal(Flow::Forward).await.doing("seal, the second time")?;
    context.part().unseal(Flow::Forward).await.doing("unseal")?;
    context.part().unseal(Flow::Forward).await.doing("unseal, the second time")?;
    unfence(context, Side::Source).await?;

    // The switch was given up: the source goes on, and the follower with it.
    let following = context.follow(Flow::Forward);
    context.write(Side::Source, "after-the-abort", "content").await?;
    context.arrives(Side::Target, "after-the-abort", Some("content")).await?;
    following.finish(context.options.patience).await?;
    if !context.capabilities().can_reverse {
        return Ok(());
    }
    // A new seal captures a new start, at or after everything that is on the target now.
    let head = context.part().head(Flow::Reverse).await.doing("head of the target")?;
    let seal = context.part().seal(Flow::Forward).await.doing("seal after unseal")?;
    ensure(context.part().covers(&seal.reverse_start, &head), || {
        format!("a new seal kept the old start {}; the target is at {head}", seal.reverse_start)
    })
}

pub(super) async fn sweep_finds_late_writes(context: &Context) -> Outcome {
    let position = switched(context).await?;
    unfence(context, Side::Target).await?;
    let clean = context.part().sweep(Flow::Forward, &position).await.doing("sweep")?;
    ensure(clean.is_empty(), || format!("a sweep without late writes found {clean:?}"))?;

    context.rig.write_late(Side::Source, "late", b"late content").await;
    context.rig.write_late(Side::Source, &Context::key(0), b"late, in conflict").await;
    context.write(Side::Target, &Context::key(0), "newer on the target").await?;
    for round in ["the first time", "the second time"] {
        let findings = context.part().sweep(Flow::Forward, &position).await.doing("sweep")?;
        let names_conflict = findings.iter().any(|finding| finding.text.contains(&Context::key(0)));
        ensure(names_conflict, || format!("sweep {round} does not name the conflict: {findings:?}"))?;
        let kept = context.rig.read(Side::Target, &Context::key(0)).await;
        ensure(kept.as_deref() == Some(b"newer on the target"), || {
            format!("sweep {round} overwrote a newer write of the new owner")
        })?;
        context.arrives(Side::Target, "late", Some("late content")).await?;
    }
    Ok(())
}

pub(super) async fn retire_leaves_nothing(context: &Context) -> Outcome {
    switched(context).await?;
    unfence(context, Side::Target).await?;
    context.write(Side::Target, "after", "content").await?;
    ensure(!context.rig.remains().await.is_empty(), || {
        "the rig sees no marker after a switch, so this case could not fail; mend `remains`".into()
    })?;
    let guard = context.rig.guard(Side::Source).await;
    context.part().retire(Side::Target).await.doing("retire")?;
    context.part().retire(Side::Target).await.doing("retire, the second time")?;
    let remains = context.rig.remains().await;
    ensure(remains.is_empty(), || format!("retire left {remains:?}"))?;
    ensure(guard == context.rig.guard(Side::Source).await, || "retire opened the old owner".into())?;
    if context.capabilities().can_fence {
        let write = context.rig.write(Side::Source, "after", b"on the old owner").await;
        ensure(write.is_err(), || "the old owner takes writes after retire".into())?;
    }
    context.write(Side::Target, "after", "more").await?;
    let last = context.rig.read(Side::Target, "last-write").await;
    ensure(last.as_deref() == Some(b"content"), || "retire removed data of the application".into())
}
