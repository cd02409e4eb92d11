//! Cases about what must exist and who may write: prepare, fence, probe, and their ways back.
//! They never look at following.

use super::{Context, Doing, Outcome, ensure};
use crate::{Epoch, Fence, Flow, Marker, Side};

pub(super) async fn prepare_and_back(context: &Context) -> Outcome {
    context.fill().await?;
    let before = (context.rig.guard(Side::Source).await, context.rig.guard(Side::Target).await);
    context.part().unprepare().await.doing("unprepare before any prepare")?;
    context.part().prepare().await.doing("prepare")?;
    let prepared = context.rig.guard(Side::Target).await;
    context.part().prepare().await.doing("prepare, the second time")?;
    ensure(prepared == context.rig.guard(Side::Target).await, || {
        "a second prepare changed the target".into()
    })?;
    context.part().unprepare().await.doing("unprepare")?;
    context.part().unprepare().await.doing("unprepare, the second time")?;
    let after = (context.rig.guard(Side::Source).await, context.rig.guard(Side::Target).await);
    ensure(before == after, || format!("unprepare left {after:?}; before prepare there was {before:?}"))?;
    let remains = context.rig.remains().await;
    ensure(remains.is_empty(), || format!("unprepare left {remains:?}"))
}

pub(super) async fn unprepare_keeps_what_was_found(context: &Context) -> Outcome {
    context.rig.make_target().await;
    context.rig.plant(Side::Target, "was-here-before", Some(b"keep me")).await;
    let before = context.rig.guard(Side::Target).await;
    context.part().prepare().await.doing("prepare on a target that exists")?;
    context.part().unprepare().await.doing("unprepare")?;
    let kept = context.rig.read(Side::Target, "was-here-before").await;
    ensure(kept.as_deref() == Some(b"keep me"), || "unprepare removed what it found on the target".into())?;
    let after = context.rig.guard(Side::Target).await;
    ensure(before == after, || {
        format!("the target was {before:?} before prepare and is {after:?} after unprepare")
    })
}

pub(super) async fn assess_changes_nothing(context: &Context) -> Outcome {
    context.fill().await?;
    let before = (context.rig.guard(Side::Source).await, context.rig.guard(Side::Target).await);
    let first = context.part().assess().await.doing("assess")?;
    context.write(Side::Source, &Context::key(0), "ordinary traffic").await?;
    let second = context.part().assess().await.doing("assess, the second time")?;
    let after = (context.rig.guard(Side::Source).await, context.rig.guard(Side::Target).await);
    ensure(before == after, || format!("assess changed {before:?} to {after:?}"))?;
    let remains = context.rig.remains().await;
    ensure(remains.is_empty(), || format!("assess left {remains:?}"))?;
    ensure(first.objects == context.options.objects as u64, || {
        format!("assess counted {} objects of {}", first.objects, context.options.objects)
    })?;
    ensure(first.fingerprint == second.fingerprint, || "ordinary traffic changed the fingerprint".into())
}

pub(super) async fn fence_closes_and_unfence_restores(context: &Context) -> Outcome {
    context.fill().await?;
    context.part().prepare().await.doing("prepare")?;
    for side in [Side::Source, Side::Target] {
        if !context.capabilities().can_fence {
            let said = context.part().probe(side).await.doing("probe")?;
            ensure(said == Fence::None, || format!("without a fence, probe of the {side} says {said:?}"))?;
            continue;
        }
        fence_one(context, side).await?;
    }
    Ok(())
}

async fn fence_one(context: &Context, side: Side) -> Outcome {
    let before = context.rig.guard(side).await;
    context.part().unfence(side).await.doing("unfence of a side that is not fenced")?;
    ensure(before == context.rig.guard(side).await, || {
        format!("unfence changed the {side}, which was not fenced")
    })?;
    expect_probe(context, side, Fence::Open, "before the fence").await?;
    context.write(side, "guarded", "before the fence").await?;

    context.part().fence(side).await.doing("fence")?;
    context.part().fence(side).await.doing("fence, the second time")?;
    let closed = if context.capabilities().can_probe { Fence::ProvedClosed } else { Fence::Closed };
    expect_probe(context, side, closed, "behind the fence").await?;
    let write = context.rig.write(side, "guarded", b"behind the fence").await;
    ensure(write.is_err(), || format!("the fenced {side} took a write of the application"))?;
    let delete = context.rig.delete(side, "guarded").await;
    ensure(delete.is_err(), || format!("the fenced {side} let the application delete"))?;
    let content = context.rig.read(side, "guarded").await;
    ensure(content.as_deref() == Some(b"before the fence"), || {
        format!("data changed on the fenced {side}; the probe must be harmless")
    })?;

    // Another process takes the fence down, twice, as after a kill.
    context.part().unfence(side).await.doing("unfence")?;
    context.part().unfence(side).await.doing("unfence, the second time")?;
    let after = context.rig.guard(side).await;
    ensure(before == after, || {
        format!("unfence left {after:?} on the {side}; before the fence it was {before:?}")
    })?;
    expect_probe(context, side, Fence::Open, "after unfence").await?;
    context.write(side, "guarded", "after the fence").await
}

async fn expect_probe(context: &Context, side: Side, wanted: Fence, when: &str) -> Outcome {
    let said = context.part().probe(side).await.doing("probe")?;
    ensure(said == wanted, || format!("{when}, probe of the {side} says {said:?}, not {wanted:?}"))
}

pub(super) async fn fence_admits_the_marker(context: &Context) -> Outcome {
    context.fill().await?;
    context.part().prepare().await.doing("prepare")?;
    if context.capabilities().can_fence {
        context.part().fence(Side::Source).await.doing("fence")?;
        context.part().fence(Side::Target).await.doing("fence of the target")?;
    }
    let marker = Marker { epoch: Epoch::FIRST, nonce: "contract-1".into() };
    context.part().mark(Flow::Forward, &marker).await.doing("mark on the fenced source")?;
    context.part().mark(Flow::Forward, &marker).await.doing("mark, the second time")?;
    // The replicator passes the target's fence as well.
    context.copy(Flow::Forward).await?;
    context.same_on_both(&[]).await
}
