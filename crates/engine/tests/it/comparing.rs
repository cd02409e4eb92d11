//! What the gateways measured holds a run back, lets it go on, or takes it back: comparison of reads, shares of reads, the soak.

use crate::rig::{Plan, Rig, Running};
use rehome_engine::ports::{ServiceStatus, ShadowStatus};
use rehome_engine::{Command, CommandError, Goal};
use rehome_journal::{Phase, RunView, Stage, Verdict};
use rehome_part::measure::{Histogram, Share};
use rehome_part::{Epoch, Side};
use std::time::Duration;

fn gate(view: &RunView, name: &str) -> Option<Verdict> {
    view.gates.iter().find(|gate| gate.name == name).map(|gate| gate.verdict)
}

fn compared(service: &mut ServiceStatus, compared: u64, different: u64) {
    service.shadow = ShadowStatus {
        share: 5,
        least: 50,
        allowed: 0.005,
        seen: 900,
        compared,
        different,
        ..Default::default()
    };
}

#[tokio::test(start_paused = true)]
async fn answers_that_differ_hold_the_run_until_they_do_not_or_a_person_says_yes() {
    let rig = Rig::new(Plan::Nothing);
    rig.gateways.measures(|service, _, _| compared(service, 200, 9));
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
    let view = rig.until("judged", |view| gate(view, "shadow").is_some()).await;
    assert_eq!((gate(&view, "shadow"), view.stage), (Some(Verdict::Fail), Stage::Verified));
    assert_eq!(view.shadow[0].shadow.different, 9);
    assert!(rig.gateways.compares(), "it goes on, from nothing");
    let refused = engine.command(Command::Switch { rehearse: false }).await;
    let Err(CommandError::GateNotMet { gates }) = refused else { panic!("{refused:?}") };
    assert_eq!(gates[0].name, "shadow");
    assert_eq!(rig.view().epoch, Epoch::FIRST);
    engine.command(Command::Accept { gate: "shadow".into() }).await.unwrap();
    rig.until_phase(Phase::Switched).await;
    assert!(!rig.gateways.compares());
    rig.check_promises();
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_compared_is_no_pass_and_what_nobody_reads_is() {
    let rig = Rig::new(Plan::Nothing);
    rig.gateways.measures(|service, _, _| compared(service, 0, 0));
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
    let view = rig.until("judged", |view| gate(view, "shadow").is_some()).await;
    assert_eq!((gate(&view, "shadow"), view.stage), (Some(Verdict::NoData), Stage::Verified));
    rig.gateways.measures(|service, _, _| {
        compared(service, 0, 0);
        service.shadow.seen = 0;
    });
    rig.until_phase(Phase::Switched).await;
}

/// Reads of one side: so many, so many of them failed, all with this time.
fn reads(service: &mut ServiceStatus, side: Side, (of, hits): (u64, u64), millis: u64) {
    let status = if side == Side::Source { &mut service.source } else { &mut service.target };
    let mut read_times = Histogram::default();
    (0..of).for_each(|_| read_times.record(Duration::from_millis(millis)));
    (status.reads, status.read_times) = (Share { hits, of }, read_times);
    (status.requests, status.failed) = (of, hits);
}

#[tokio::test(start_paused = true)]
async fn reads_that_take_too_long_on_the_other_side_go_back_to_the_owner() {
    let rig = Rig::new(Plan::Nothing);
    rig.gateways.measures(|service, looks, _| {
        reads(service, Side::Source, (looks * 40, 0), 10);
        reads(service, Side::Target, (looks * 10, 0), 900);
    });
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
    let view = rig.until("judged", |view| gate(view, "read-latency") == Some(Verdict::Fail)).await;
    assert_eq!(gate(&view, "reads"), Some(Verdict::Pass));
    let view = rig.until("back on the owner", |view| view.goal == Goal::Ready).await;
    assert_eq!((view.read_percent, view.epoch), (0, Epoch::FIRST));
    assert_eq!(rig.gateways.weight_now(), 0);
}

/// On the source one of a thousand fails; on the target every third.
fn worse_on_the_target(service: &mut ServiceStatus, looks: u64, owner: Side) {
    reads(service, Side::Source, (looks * 1_000, looks), 10);
    let failed = if owner == Side::Target { looks * 30 } else { 0 };
    reads(service, Side::Target, (looks * 100, failed), 10);
}

#[tokio::test(start_paused = true)]
async fn a_new_owner_that_does_worse_is_said() {
    let rig = Rig::new(Plan::Nothing);
    rig.gateways.measures(worse_on_the_target);
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
    rig.until_phase(Phase::Switched).await;
    assert_eq!(rig.view().baseline[0].name, "api", "it is kept for whoever is the engine then");
    let view =
        rig.until("said", |view| view.remarks.iter().any(|remark| remark.2.contains("does worse"))).await;
    assert_eq!((gate(&view, "soak-failures"), view.owner), (Some(Verdict::Fail), Side::Target));
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(rig.view().owner, Side::Target, "nobody asked for more");
    drop(engine);
}

#[tokio::test(start_paused = true)]
async fn where_it_was_asked_for_the_run_goes_back_once_and_stays() {
    let mut rig = Rig::new(Plan::Nothing);
    rig.settings.reverse_when_worse = true;
    rig.gateways.measures(worse_on_the_target);
    rig.start_traffic();
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
    rig.until_phase(Phase::Switched).await;
    rig.until_phase(Phase::Reversed).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let view = rig.view();
    assert_eq!((view.owner, view.epoch, view.goal), (Side::Source, Epoch(3), Goal::Following));
    assert_eq!(rig.stop_traffic().await.1, 0);
    rig.check_promises();
    drop(engine);
}

/// The way back is not open: it is said, and the target stays in charge.
#[tokio::test(start_paused = true)]
async fn a_way_back_whose_gates_are_not_met_is_not_taken() {
    let mut rig = Rig::new(Plan::Nothing);
    rig.settings.reverse_when_worse = true;
    rig.gateways.measures(worse_on_the_target);
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
    rig.until_phase(Phase::Switched).await;
    rig.world.behave(|behaviour| behaviour.lag_unknown = true);
    rig.until("tried", |view| gate(view, "lag") == Some(Verdict::NoData)).await;
    rig.until("said", |view| view.remarks.iter().any(|remark| remark.2.contains("is not made: lag"))).await;
    assert_eq!((rig.view().owner, rig.view().epoch), (Side::Target, Epoch(2)));
    drop(engine);
}

/// Somebody has the entry, so that the switch waits.
#[derive(Debug, Default)]
struct Taken(std::sync::atomic::AtomicBool);

impl rehome_engine::EntryPort for Taken {
    fn take(&self) -> Result<Option<rehome_engine::ports::EntryTaken>, rehome_part::Error> {
        let free = !self.0.load(std::sync::atomic::Ordering::Relaxed);
        Ok(free.then(|| Box::new(()) as rehome_engine::ports::EntryTaken))
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_armed_while_somebody_changes_the_entry() {
    let rig = Rig::new(Plan::Nothing);
    let entry = std::sync::Arc::new(Taken(true.into()));
    let world = rehome_engine::World { entry: entry.clone(), ..rig.world() };
    let engine = rehome_engine::Engine::create(rig.setup("engine 1"), "run_1", "shop", world).await.unwrap();
    let engine = Running::start(engine);
    engine.command(Command::Goal { goal: Goal::Ready }).await.unwrap();
    rig.until_phase(Phase::Ready).await;
    let refused = engine.command(Command::Switch { rehearse: false }).await;
    let Err(CommandError::GateNotMet { gates }) = refused else { panic!("{refused:?}") };
    assert_eq!((gates[0].name.as_str(), rig.view().epoch), ("entry", Epoch::FIRST));
    entry.0.store(false, std::sync::atomic::Ordering::Relaxed);
    engine.command(Command::Switch { rehearse: false }).await.unwrap();
    rig.until_phase(Phase::Switched).await;
}
