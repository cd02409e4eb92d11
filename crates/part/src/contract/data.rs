//! Cases about data on its way: copy, follow, positions, verify; and all of it after the death of the process.
//! They never fence.

use super::{Context, Doing, NoProgress, Outcome, ensure};
use crate::{Flow, Position, Progress, Scope, Side, Verification};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_util::sync::CancellationToken;

pub(super) async fn copy_then_follow(context: &Context) -> Outcome {
    context.fill().await?;
    context.part().prepare().await.doing("prepare")?;
    let summary = context.copy(Flow::Forward).await?;
    ensure(summary.objects + summary.kept >= context.options.objects as u64, || {
        format!("copy speaks of {} objects of {}", summary.objects + summary.kept, context.options.objects)
    })?;
    ensure(summary.losses.is_empty(), || format!("copy lost something: {:?}", summary.losses))?;
    context.same_on_both(&[]).await?;
    let again = context.copy(Flow::Forward).await?;
    ensure(again.objects == 0, || format!("a second copy moved {} objects again", again.objects))?;

    // Between the copy and the follower: changed, new, deleted.
    context.write(Side::Source, &Context::key(1), "changed in between").await?;
    context.write(Side::Source, "new-in-between", "new").await?;
    context.rig.delete(Side::Source, &Context::key(2)).await.doing("the application's delete")?;
    let following = context.follow(Flow::Forward);
    context.arrives(Side::Target, &Context::key(1), Some("changed in between")).await?;
    context.arrives(Side::Target, "new-in-between", Some("new")).await?;
    context.arrives(Side::Target, &Context::key(2), None).await?;

    // While it runs.
    context.write(Side::Source, "new-while-following", "one").await?;
    context.write(Side::Source, "new-while-following", "two").await?;
    context.arrives(Side::Target, "new-while-following", Some("two")).await?;
    let head = context.part().head(Flow::Forward).await.doing("head")?;
    context.applied(&following, &head).await?;
    following.finish(context.options.patience).await?;
    context.same_on_both(&["new-in-between", "new-while-following"]).await
}

/// Asks the copy to be dropped once it has moved a few objects.
#[derive(Debug)]
struct UntilHalf {
    half: u64,
    seen: AtomicU64,
    reached: tokio::sync::Notify,
}

impl Progress for UntilHalf {
    fn update(&self, done: u64, _: u64, _: Option<u64>, _: Option<u64>) {
        self.seen.fetch_max(done, Ordering::Relaxed);
        if done >= self.half {
            self.reached.notify_one();
        }
    }
}

pub(super) async fn copy_goes_on_after_a_kill(context: &Context) -> Outcome {
    context.fill().await?;
    context.part().prepare().await.doing("prepare")?;
    let half = context.options.objects as u64 / 2;
    let progress = Arc::new(UntilHalf { half, seen: AtomicU64::new(0), reached: tokio::sync::Notify::new() });
    {
        let part = context.part();
        let copy = part.copy(Flow::Forward, progress.clone(), CancellationToken::new());
        // Dropped where it is: a kill gives no chance to tidy up.
        tokio::select! {
            biased;
            () = progress.reached.notified() => {}
            result = copy => drop(result.doing("copy")?),
            () = tokio::time::sleep(context.options.patience) => return Err("copy makes no progress".into()),
        }
    }
    // Falls between the start that the killed copy fixed and the second listing.
    context.write(Side::Source, &Context::key(0), "changed after the kill").await?;
    context.rig.delete(Side::Source, &Context::key(1)).await.doing("the application's delete")?;
    context.copy(Flow::Forward).await?;
    let following = context.follow(Flow::Forward);
    context.arrives(Side::Target, &Context::key(0), Some("changed after the kill")).await?;
    context.arrives(Side::Target, &Context::key(1), None).await?;
    following.finish(context.options.patience).await?;
    context.same_on_both(&[]).await?;
    copy_stops_when_asked(context).await
}

async fn copy_stops_when_asked(context: &Context) -> Outcome {
    context.write(Side::Source, "one-more", "content").await?;
    let stop = CancellationToken::new();
    stop.cancel();
    let part = context.part();
    let copy = part.copy(Flow::Forward, Arc::new(NoProgress), stop);
    let ended = tokio::time::timeout(context.options.patience, copy).await;
    // It may have been done already; what it must not do is go on for ever or fail with something else.
    match ended.doing("copy after stop, in time")? {
        Ok(_) => Ok(()),
        Err(error) if error.kind == crate::ErrorKind::Cancelled => Ok(()),
        Err(error) => {
            Err(format!("a copy that was stopped says `{error}` ({:?}), not Cancelled", error.kind))
        }
    }
}

pub(super) async fn follow_goes_on_after_a_kill(context: &Context) -> Outcome {
    context.copied().await?;
    let first = context.follow(Flow::Forward);
    context.write(Side::Source, "before-the-kill", "content").await?;
    context.arrives(Side::Target, "before-the-kill", Some("content")).await?;
    for number in 0..context.options.objects {
        context.write(Side::Source, &Context::key(number), &format!("second content of {number}")).await?;
    }
    first.kill().await;
    context.rig.delete(Side::Source, "before-the-kill").await.doing("the application's delete")?;
    context.write(Side::Source, "while-dead", "content").await?;
    let second = context.follow(Flow::Forward);
    context.arrives(Side::Target, "while-dead", Some("content")).await?;
    context.arrives(Side::Target, "before-the-kill", None).await?;
    let head = context.part().head(Flow::Forward).await.doing("head")?;
    context.applied(&second, &head).await?;
    second.finish(context.options.patience).await?;
    context.same_on_both(&["before-the-kill", "while-dead"]).await
}

pub(super) async fn positions_only_grow(context: &Context) -> Outcome {
    context.copied().await?;
    let following = context.follow(Flow::Forward);
    let part = context.part();
    let mut heads: Vec<Position> = Vec::new();
    let mut reported: Option<Position> = None;
    for round in 0..4 {
        context.write(Side::Source, "moving", &format!("round {round}")).await?;
        let head = context.part().head(Flow::Forward).await.doing("head")?;
        ensure(part.covers(&head, &head), || format!("{head} does not cover itself"))?;
        for earlier in &heads {
            ensure(part.covers(&head, earlier), || {
                format!("head {head} does not cover the earlier {earlier}")
            })?;
        }
        context.applied(&following, &head).await?;
        let applied = following.state.borrow().applied.clone();
        let grows = reported.as_ref().zip(applied.as_ref()).is_none_or(|(old, new)| part.covers(new, old));
        ensure(grows, || format!("the follower went back from {reported:?} to {applied:?}"))?;
        // Said to be applied means that it can be read.
        let content = context.rig.read(Side::Target, "moving").await;
        ensure(content.as_deref() == Some(format!("round {round}").as_bytes()), || {
            format!("{head} is reported as applied, but the write before it is not on the target")
        })?;
        reported = applied;
        heads.push(head);
    }
    following.finish(context.options.patience).await?;
    // With nobody following, a new write is ahead of everything that was applied.
    context.write(Side::Source, "moving", "ahead").await?;
    let head = context.part().head(Flow::Forward).await.doing("head")?;
    let applied = reported.ok_or("the follower never reported a position")?;
    ensure(!part.covers(&applied, &head), || format!("{applied} covers {head}, which holds a later write"))
}

pub(super) async fn verify_finds_planted_differences(context: &Context) -> Outcome {
    context.copied().await?;
    let following = context.follow(Flow::Forward);
    let head = context.part().head(Flow::Forward).await.doing("head")?;
    context.applied(&following, &head).await?;
    following.finish(context.options.patience).await?;
    let result = context.verify(Flow::Forward, Scope::Full).await?;
    expect_differences(&result, 0, "before anything was planted")?;
    ensure(result.compared >= context.options.objects as u64, || {
        format!("only {} compared", result.compared)
    })?;

    let victim = Context::key(4);
    let content =
        context.rig.read(Side::Target, &victim).await.ok_or("an object vanished from the target")?;
    context.rig.plant(Side::Target, &victim, None).await;
    expect_differences(&context.verify(Flow::Forward, Scope::Full).await?, 1, "with one object missing")?;
    let mut other = content.clone();
    other[0] ^= 1;
    context.rig.plant(Side::Target, &victim, Some(&other)).await;
    expect_differences(
        &context.verify(Flow::Forward, Scope::Full).await?,
        1,
        "with other bytes of the same size",
    )?;
    context.rig.plant(Side::Target, &victim, Some(&content)).await;
    context.rig.plant(Side::Target, "nobody-wrote-this", Some(b"extra")).await;
    expect_differences(&context.verify(Flow::Forward, Scope::Full).await?, 1, "with one object too many")?;
    context.rig.plant(Side::Target, "nobody-wrote-this", None).await;
    expect_differences(&context.verify(Flow::Forward, Scope::Full).await?, 0, "after all was put back")?;
    verify_since(context).await
}

/// The short comparison looks at what changed since a position.
async fn verify_since(context: &Context) -> Outcome {
    let since = context.part().head(Flow::Forward).await.doing("head")?;
    let following = context.follow(Flow::Forward);
    context.write(Side::Source, "recent", "content").await?;
    context.arrives(Side::Target, "recent", Some("content")).await?;
    let head = context.part().head(Flow::Forward).await.doing("head")?;
    context.applied(&following, &head).await?;
    following.finish(context.options.patience).await?;
    let scope = Scope::Since(since);
    expect_differences(&context.verify(Flow::Forward, scope.clone()).await?, 0, "since a position")?;
    context.rig.plant(Side::Target, "recent", Some(b"c0ntent")).await;
    expect_differences(&context.verify(Flow::Forward, scope).await?, 1, "since a position, with one changed")
}

fn expect_differences(result: &Verification, wanted: u64, when: &str) -> Outcome {
    ensure(result.differences_total == wanted && result.in_motion == 0, || {
        format!(
            "{when}, verify found {} differences ({} in motion) instead of {wanted}: {:?}",
            result.differences_total, result.in_motion, result.differences
        )
    })?;
    ensure(result.differences.len() as u64 == wanted.min(100) && result.is_equal() == (wanted == 0), || {
        format!("{when}, the list of differences does not match their number {wanted}")
    })
}
