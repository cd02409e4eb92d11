use rehome_part::sim::{Guard, Happened, Refused, Seq, SimPart, SimWorld, Violation};
use rehome_part::{
    Capabilities, Epoch, Error, ErrorKind, Fence, Flow, FollowState, Follows, Marker, Part, Position,
    Progress, Scope, Side,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
struct Quiet;
impl Progress for Quiet {
    fn update(&self, _: u64, _: u64, _: Option<u64>, _: Option<u64>) {}
}

fn broken() -> Error {
    Error::temporary(ErrorKind::Network, "injected")
}

fn marker() -> Marker {
    Marker { epoch: Epoch::FIRST, nonce: "n-1".into() }
}

async fn copied() -> SimPart {
    let part = SimPart::new("media");
    for number in 0..5 {
        part.world().write(Side::Source, &format!("{number}"), "first").expect("the source is open");
    }
    part.prepare().await.expect("prepare");
    part.copy(Flow::Forward, Arc::new(Quiet), CancellationToken::new()).await.expect("copy");
    part
}

fn follow(part: &SimPart, flow: Flow) -> (CancellationToken, watch::Receiver<FollowState>) {
    let (report, state) = watch::channel(FollowState::default());
    let stop = CancellationToken::new();
    let (part, token) = (part.clone(), stop.clone());
    tokio::spawn(async move { part.follow(flow, report, token).await });
    (stop, state)
}

/// All steps of a switch, as an engine would take them.
async fn switch(part: &SimPart, flow: Flow) {
    let (stop, _) = follow(part, flow);
    part.fence(flow.from()).await.expect("fence");
    let position = part.head(flow).await.expect("head");
    part.mark(flow, &marker()).await.expect("mark");
    part.drain(flow, &position, &marker(), CancellationToken::new()).await.expect("drain");
    part.seal(flow).await.expect("seal");
    stop.cancel();
    part.unfence(flow.to()).await.expect("unfence");
}

#[tokio::test(start_paused = true)]
async fn a_right_switch_and_its_way_back_break_no_promise() {
    let part = copied().await;
    part.fence(Side::Target).await.expect("fence");
    part.world().write(Side::Source, "last", "content").expect("the source is open");
    switch(&part, Flow::Forward).await;
    part.world().write(Side::Target, "on-the-target", "content").expect("the target is open");
    assert_eq!(part.world().write(Side::Source, "x", "y"), Err(Refused::Closed));
    switch(&part, Flow::Reverse).await;
    part.world().write(Side::Source, "home", "again").expect("the source is open again");
    assert_eq!(part.world().violations(), []);
    assert_eq!(part.world().read(Side::Source, "on-the-target").as_deref(), Some(&b"content"[..]));
}

#[tokio::test(start_paused = true)]
async fn the_world_notices_two_writable_sides() {
    let part = copied().await;
    part.seal(Flow::Forward).await.expect("seal");
    part.world().write(Side::Target, "x", "y").expect("nobody fenced the target");
    assert_eq!(part.world().violations(), [Violation::BothSidesWritable { wrote: Side::Target }]);
}

#[tokio::test(start_paused = true)]
async fn the_world_notices_a_lost_write() {
    let part = copied().await;
    part.world().write(Side::Source, "3", "second").expect("the source is open");
    part.fence(Side::Source).await.expect("fence");
    part.seal(Flow::Forward).await.expect("seal");
    part.world().write(Side::Target, "x", "y").expect("nobody fenced the target");
    assert_eq!(part.world().violations(), [Violation::Lost { wrote: Side::Target, key: "3".into() }]);
}

#[tokio::test(start_paused = true)]
async fn the_world_notices_a_switch_without_a_way_back() {
    let part = copied().await;
    part.fence(Side::Source).await.expect("fence");
    part.world().write(Side::Target, "x", "y").expect("nobody fenced the target");
    assert_eq!(part.world().violations(), [Violation::NoWayBack { wrote: Side::Target }]);
}

#[tokio::test(start_paused = true)]
async fn an_abort_leaves_the_world_as_before() {
    let part = copied().await;
    part.fence(Side::Target).await.expect("fence");
    let before = part.world().snapshot();
    part.fence(Side::Source).await.expect("fence");
    part.mark(Flow::Forward, &marker()).await.expect("mark");
    part.seal(Flow::Forward).await.expect("seal");
    assert_ne!(part.world().snapshot(), before);
    part.unseal(Flow::Forward).await.expect("unseal");
    part.unfence(Side::Source).await.expect("unfence");
    assert_eq!(part.world().snapshot(), before);
    assert!(!part.world().leftovers().is_empty(), "the marker stays until retire");
}

#[tokio::test]
async fn faults_strike_the_call_they_were_set_for() {
    let part = SimPart::new("media");
    part.faults().fail("fence(source)", 2, broken());
    part.fence(Side::Source).await.expect("the first is let through");
    part.unfence(Side::Source).await.expect("unfence");
    assert_eq!(part.fence(Side::Source).await, Err(broken()));
    assert_eq!(part.world().guard(Side::Source), Guard::Open);
    assert!(part.faults().not_struck().is_empty());
    part.fence(Side::Source).await.expect("a numbered fault strikes once");
    let succeeded: Vec<_> =
        part.faults().calls().iter().map(|call| (call.to_string(), call.succeeded)).collect();
    assert_eq!(succeeded[2], ("fence(source)".to_owned(), Some(false)));
    assert_eq!(part.faults().count("fence"), 3);
}

#[tokio::test]
async fn a_lost_answer_leaves_the_effect() {
    let part = SimPart::new("media");
    part.faults().fail_after_effect("fence", 1, broken());
    assert_eq!(part.fence(Side::Source).await, Err(broken()));
    assert_eq!(part.world().guard(Side::Source), Guard::Fenced);
    assert_eq!(part.probe(Side::Source).await, Ok(Fence::ProvedClosed));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_call_goes_on_when_released() {
    let part = SimPart::new("media");
    let hang = part.faults().hang("prepare");
    let other = part.clone();
    let task = tokio::spawn(async move { other.prepare().await });
    hang.reached().await;
    assert!(!part.world().snapshot().target.exists);
    hang.release();
    task.await.expect("no panic").expect("prepare");
    assert!(part.world().snapshot().target.exists);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_is_seen_as_never_answered() {
    let part = SimPart::new("media");
    let _hang = part.faults().hang_after_effect("prepare", 1);
    tokio::time::timeout(Duration::from_secs(1), part.prepare()).await.expect_err("it hangs");
    assert!(part.world().snapshot().target.exists);
    assert_eq!(part.faults().calls()[0].succeeded, None);
}

#[tokio::test(start_paused = true)]
async fn slow_calls_take_their_time() {
    let part = SimPart::new("media");
    part.faults().slow("prepare", Duration::from_secs(7));
    let begun = tokio::time::Instant::now();
    part.prepare().await.expect("prepare");
    assert_eq!(begun.elapsed(), Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn a_follower_reports_backlog_lag_and_rate() {
    let part = copied().await;
    part.world().behave(|b| b.apply_time_per_change = Duration::from_millis(500));
    for number in 0..10 {
        part.world().write(Side::Source, &format!("{number}"), "second").expect("the source is open");
    }
    tokio::time::advance(Duration::from_secs(2)).await;
    let (stop, mut state) = follow(&part, Flow::Forward);
    let first = state.wait_for(|state| state.applied.is_some()).await.expect("it runs").clone();
    assert_eq!((first.backlog, first.lag_seconds, first.drain_seconds), (Some(10), Some(2.0), Some(5.0)));
    assert_eq!(first.apply_per_second, Some(2.0));
    let last = state.wait_for(|state| state.backlog == Some(0)).await.expect("it runs").clone();
    assert_eq!((last.lag_seconds, last.changes_applied), (Some(0.0), 10));
    assert_eq!(last.applied, Some(part.world().head(Side::Source).position()));

    part.world().behave(|b| b.link_down = true);
    let down = state.wait_for(|state| state.lag_seconds.is_none()).await.expect("it runs").clone();
    assert_eq!((down.backlog, down.apply_per_second), (None, None));
    part.world().write(Side::Source, "while-down", "content").expect("the source is open");
    part.world().behave(|b| b.link_down = false);
    state.wait_for(|state| state.changes_applied == 11).await.expect("it goes on");
    stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_new_part_over_the_same_world_goes_on() {
    let first = SimPart::new("media");
    for number in 0..5 {
        first.world().write(Side::Source, &format!("{number}"), "first").expect("the source is open");
    }
    first.prepare().await.expect("prepare");
    first.world().behave(|b| b.copy_time_per_object = Duration::from_secs(1));
    let world: SimWorld = first.world().clone();
    tokio::time::timeout(
        Duration::from_millis(2500),
        first.copy(Flow::Forward, Arc::new(Quiet), CancellationToken::new()),
    )
    .await
    .expect_err("killed half-way");
    drop(first);
    assert_eq!(world.snapshot().target.data.len(), 2);
    let second = SimPart::over("media", world);
    let summary = second.copy(Flow::Forward, Arc::new(Quiet), CancellationToken::new()).await.expect("copy");
    assert_eq!((summary.objects, summary.kept), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn unprepare_takes_back_only_what_prepare_made() {
    let part = copied().await;
    part.unprepare().await.expect("unprepare");
    assert!(!part.world().snapshot().target.exists);
    assert_eq!(part.world().write(Side::Target, "x", "y"), Err(Refused::Missing));
    part.world().found(Side::Target, Guard::ReadOnly);
    part.prepare().await.expect("prepare");
    part.fence(Side::Target).await.expect("fence");
    part.unfence(Side::Target).await.expect("unfence");
    part.unprepare().await.expect("unprepare");
    let target = part.world().snapshot().target;
    assert_eq!((target.exists, target.guard), (true, Guard::ReadOnly));
}

#[tokio::test]
async fn a_part_without_a_fence_says_so() {
    let without =
        Capabilities { follows: Follows::Feed, can_fence: false, can_probe: false, can_reverse: false };
    let part = SimPart::new("media").with(without);
    assert_eq!(part.probe(Side::Source).await, Ok(Fence::None));
    assert_eq!(part.fence(Side::Source).await.expect_err("no fence").kind, ErrorKind::Unsupported);
    part.prepare().await.expect("prepare");
    part.seal(Flow::Forward).await.expect("seal");
    let (report, _state) = watch::channel(FollowState::default());
    let refused =
        part.follow(Flow::Reverse, report, CancellationToken::new()).await.expect_err("no way back");
    assert_eq!(refused.kind, ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_foreign_position_is_never_taken_for_one_of_ours() {
    let part = copied().await;
    let foreign = Position("0/16B3748".into());
    let head = part.head(Flow::Forward).await.expect("head");
    assert!(!part.covers(&head, &foreign) && !part.covers(&foreign, &head));
    let refused =
        part.verify(Flow::Forward, Scope::Since(foreign), Arc::new(Quiet), CancellationToken::new()).await;
    assert_eq!(refused.expect_err("not ours").kind, ErrorKind::Corrupt);
}

#[tokio::test]
async fn the_order_of_events_is_kept() {
    let part = copied().await;
    part.world().write(Side::Source, "k", "v").expect("the source is open");
    part.fence(Side::Source).await.expect("fence");
    let _ = part.world().write(Side::Source, "k", "w");
    let events = part.world().happened();
    let tail = &events[events.len() - 2..];
    assert_eq!(tail[0], Happened::Fenced(Side::Source));
    assert_eq!(tail[1], Happened::Refused { side: Side::Source, key: "k".into() });
    assert_eq!(part.world().head(Side::Source), Seq(6));
}
