//! Whole lives: to the target, back, again, and the ends; rehearsal, pause, gates, trouble.

use crate::rig::{LONG, Plan, Rig, Running};
use rehome_engine::{Command, CommandError, CommandOutcome, EngineError, Goal, RunEnd};
use rehome_journal::{Event, Phase, Reader, SwitchOutcome, Verdict};
use rehome_part::{Epoch, Error, ErrorKind, Flow, Side};
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn there_and_back_and_there_again_loses_nothing_and_fails_nothing() {
    let mut rig = Rig::new(Plan::Nothing);
    rig.start_traffic();
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
    let view = rig.until("following back", |view| view.switched_at_ms.is_some()).await;
    assert_eq!((view.owner, view.epoch), (Side::Target, Epoch(2)));
    let report = rig.until("reported", |view| view.last_switch.is_some()).await.last_switch.unwrap();
    assert_eq!(report.outcome, SwitchOutcome::Committed);
    assert!(report.one_writable_side_proved && report.drain_proved);
    assert!(report.pause_ms.is_some() && report.round_trips > 0);

    let CommandOutcome::Switched { report } =
        engine.command(Command::Reverse { rehearse: false }).await.unwrap()
    else {
        panic!("not switched back")
    };
    assert_eq!((report.flow, report.owner, report.epoch), (Flow::Reverse, Side::Source, Epoch(3)));
    rig.until_phase(Phase::Reversed).await;
    assert!(rig.gateways.fresh() > 0);

    engine.command(Command::Switch { rehearse: false }).await.unwrap();
    rig.until_phase(Phase::Switched).await;
    let (acknowledged, failed) = rig.stop_traffic().await;
    assert!(acknowledged > 20, "{acknowledged}");
    assert_eq!(failed, 0);
    rig.check_promises();

    engine.command(Command::Complete).await.unwrap();
    let end = tokio::time::timeout(LONG, engine.task).await.unwrap().unwrap().unwrap();
    assert_eq!(end, RunEnd::Final(Phase::Completed));
    assert_eq!(rig.view().phase, Phase::Completed);
    assert_eq!(rig.world.leftovers(), Vec::<String>::new());
    assert!(!rig.world.is_writable(Side::Source), "the old owner must stay closed");
}

#[tokio::test(start_paused = true)]
async fn a_goal_of_completed_waits_for_the_soak() {
    let mut rig = Rig::new(Plan::Nothing);
    rig.settings.soak = Duration::from_secs(30);
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Completed }).await.unwrap();
    rig.until_phase(Phase::Switched).await;
    let began = Instant::now();
    rig.until_phase(Phase::Completed).await;
    assert!(began.elapsed() >= Duration::from_secs(29), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_rehearsal_measures_the_pause_and_leaves_the_source_in_charge() {
    let mut rig = Rig::new(Plan::Nothing);
    rig.start_traffic();
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Ready }).await.unwrap();
    rig.until_phase(Phase::Ready).await;
    let outcome = engine.command(Command::Switch { rehearse: true }).await.unwrap();
    let CommandOutcome::Rehearsed { report } = outcome else { panic!("{outcome:?}") };
    assert!(report.pause_ms.is_some());
    assert_eq!((report.owner, report.epoch), (Side::Source, Epoch(2)));
    rig.until_phase(Phase::Ready).await;
    assert_eq!(rig.stop_traffic().await.1, 0);
    rig.check_promises();
    assert_eq!(rig.world.snapshot().sealed, []);
    assert_eq!(rig.workers.stopped(), []);
}

#[tokio::test(start_paused = true)]
async fn cancelling_leaves_the_world_as_it_was() {
    let rig = Rig::new(Plan::Nothing);
    let before = rig.world.snapshot();
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Ready }).await.unwrap();
    rig.until_phase(Phase::Ready).await;
    engine.command(Command::Shift { percent: 25, service: None }).await.unwrap();
    assert_eq!(rig.view().phase, Phase::Shifting);
    assert_eq!(rig.gateways.weight_now(), 25);
    engine.command(Command::Cancel).await.unwrap();
    assert_eq!(rig.view().phase, Phase::Cancelled);
    assert_eq!(rig.world.snapshot(), before);
    assert_eq!(rig.gateways.weight_now(), 0);
}

#[tokio::test(start_paused = true)]
async fn gates_that_are_not_met_hold_the_switch_back() {
    let rig = Rig::new(Plan::Nothing);
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Ready }).await.unwrap();
    rig.until_phase(Phase::Ready).await;
    rig.world.behave(|behaviour| behaviour.lag_unknown = true);
    let Err(CommandError::GateNotMet { gates }) = engine.command(Command::Switch { rehearse: false }).await
    else {
        panic!("it switched without knowing the lag")
    };
    assert!(gates.iter().any(|gate| gate.name == "lag" && gate.verdict == Verdict::NoData), "{gates:?}");
    assert_eq!((rig.view().phase, rig.view().epoch), (Phase::Ready, Epoch::FIRST));
    rig.world.behave(|behaviour| behaviour.lag_unknown = false);
    engine.command(Command::Switch { rehearse: false }).await.unwrap();
    rig.until_phase(Phase::Switched).await;
    rig.check_promises();
}

#[tokio::test(start_paused = true)]
async fn commands_that_do_not_fit_change_nothing() {
    let rig = Rig::new(Plan::Nothing);
    let engine = Running::start(rig.create().await.unwrap());
    for command in [
        Command::Switch { rehearse: false },
        Command::Reverse { rehearse: false },
        Command::Complete,
        Command::Verify,
        Command::Resume,
        Command::Shift { percent: 5, service: None },
    ] {
        let answer = engine.command(command.clone()).await;
        assert!(matches!(answer, Err(CommandError::NotNow { .. })), "{command:?}: {answer:?}");
    }
    assert_eq!(rig.view().phase, Phase::Planned);
    // every one of them left a line for the audit
    let reader = Reader::open(rig.folder.path()).unwrap();
    let audited =
        reader.events_since(0, 1_000).unwrap().iter().filter(|record| record.actor == "tester").count();
    assert_eq!(audited, 6);
}

#[tokio::test(start_paused = true)]
async fn a_pause_stops_following_and_a_resume_catches_up() {
    let mut rig = Rig::new(Plan::Nothing);
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Ready }).await.unwrap();
    rig.until_phase(Phase::Ready).await;
    engine.command(Command::Pause).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.start_traffic();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.world.read(Side::Target, "new-3"), None);
    engine.command(Command::Resume).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(rig.world.read(Side::Target, "new-3").is_some());
    rig.stop_traffic().await;
    rig.check_promises();
}

#[tokio::test(start_paused = true)]
async fn differences_are_found_before_the_switch_and_nothing_is_switched() {
    let rig = Rig::new(Plan::Nothing);
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Following }).await.unwrap();
    rig.until_phase(Phase::Following).await;
    rig.world.plant(Side::Target, "old-1", Some(b"rotten".to_vec()));
    engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
    let view = rig.until_phase(Phase::Stuck).await;
    let trouble = view.stuck.unwrap();
    assert_eq!(trouble.step, "verify");
    assert!(!trouble.what_is_true.is_empty() && !trouble.how_to_fix.is_empty());
    assert_eq!(view.epoch, Epoch::FIRST);
    rig.world.plant(Side::Target, "old-1", Some(b"old".to_vec()));
    rig.until_phase(Phase::Switched).await; // it goes on by itself once that is mended
    rig.check_promises();
}

#[tokio::test(start_paused = true)]
async fn a_follower_with_a_bug_is_caught_by_the_comparison_inside_the_window() {
    let rig = Rig::new(Plan::Nothing);
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Ready }).await.unwrap();
    rig.until_phase(Phase::Ready).await;
    rig.world.behave(|behaviour| {
        behaviour.lose_changes_of.insert("lost".into());
    });
    // written after ARMED: only the comparison inside the window can see it
    let gateways = rig.gateways.clone();
    let hang = rig.world.faults().hang("fence(source)");
    let answer = engine.send(Command::Switch { rehearse: false }).await;
    hang.reached().await;
    rig.world.write(Side::Source, "lost", "by the follower").unwrap();
    hang.release();
    let outcome = tokio::time::timeout(LONG, answer).await.unwrap().unwrap();
    let Err(CommandError::Aborted { why, .. }) = outcome else { panic!("{outcome:?}") };
    assert!(why.starts_with("compare"), "{why}");
    assert_eq!(gateways.standing(), Some((Epoch(2), Side::Source)));
    assert!(rig.world.is_writable(Side::Source));
}

/// Every gate of this name that was written down.
fn gates_named(rig: &Rig, name: &str) -> Vec<rehome_journal::GateRecord> {
    let events = Reader::open(rig.folder.path()).unwrap().events_since(0, 10_000).unwrap();
    let gates = events.into_iter().filter_map(|record| match record.event {
        Event::GateChecked { gate } if gate.name == name => Some(gate),
        _ => None,
    });
    gates.collect()
}

fn comparisons(rig: &Rig) -> usize {
    let events = Reader::open(rig.folder.path()).unwrap().events_since(0, 10_000).unwrap();
    events.iter().filter(|record| matches!(record.event, Event::VerifyFinished { .. })).count()
}

#[tokio::test(start_paused = true)]
async fn a_change_lost_after_the_comparison_is_found_before_the_switch_is_begun() {
    let rig = Rig::new(Plan::Nothing);
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Ready }).await.unwrap();
    rig.until_phase(Phase::Ready).await;
    rig.world.behave(|behaviour| {
        behaviour.lose_changes_of.insert("lost".into());
    });
    rig.world.write(Side::Source, "lost", "by the follower").unwrap();
    let answer = engine.command(Command::Switch { rehearse: false }).await;
    assert!(matches!(answer, Err(CommandError::GateNotMet { .. })), "{answer:?}");
    let first = gates_named(&rig, "recent-changes-equal").into_iter().next().unwrap();
    assert_eq!(first.verdict, Verdict::Fail, "{first:?}");
    let view = rig.view();
    assert_eq!((view.epoch, view.switches.len()), (Epoch::FIRST, 0), "no switch was begun");
    assert_eq!(rig.gateways.standing(), Some((Epoch::FIRST, Side::Source)));
    // once it is mended everything is compared again, and the switch goes through
    rig.world.plant(Side::Target, "lost", Some(b"by the follower".to_vec()));
    engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
    rig.until_phase(Phase::Switched).await;
    rig.check_promises();
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_saw_no_comparison_compares_everything_again_before_it_switches() {
    let rig = Rig::new(Plan::Nothing);
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Ready }).await.unwrap();
    rig.until_phase(Phase::Ready).await;
    engine.kill().await;
    assert_eq!(comparisons(&rig), 1);
    let engine = Running::start(rig.open().await);
    engine.command(Command::Switch { rehearse: false }).await.unwrap();
    let verdicts: Vec<Verdict> =
        gates_named(&rig, "recent-changes-equal").into_iter().map(|gate| gate.verdict).collect();
    assert_eq!((verdicts[0], verdicts.last()), (Verdict::NoData, Some(&Verdict::Pass)));
    assert_eq!(comparisons(&rig), 2);
    rig.check_promises();
}

#[tokio::test(start_paused = true)]
async fn wrong_credentials_end_the_run_with_the_world_as_before() {
    let rig = Rig::new(Plan::Nothing);
    let before = rig.world.snapshot();
    let wrong = Error::permanent(ErrorKind::Credentials, "signature does not match").on(Side::Target);
    rig.world.faults().fail("prepare", 1, wrong.clone());
    let engine = Running::start(rig.create().await.unwrap());
    drop(engine.send(Command::Goal { goal: Goal::Following }).await); // nobody waits for the answer
    let end = tokio::time::timeout(LONG, engine.task).await.unwrap().unwrap();
    let Err(EngineError::Step { step, error }) = end else { panic!("{end:?}") };
    assert_eq!((step.as_str(), error.kind), ("prepare", ErrorKind::Credentials));
    assert_eq!(rig.world.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn when_the_new_owner_cannot_be_opened_the_grant_is_taken_back() {
    let mut rig = Rig::new(Plan::Nothing);
    rig.start_traffic();
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Ready }).await.unwrap();
    rig.until_phase(Phase::Ready).await;
    let broken = Error::temporary(ErrorKind::Network, "no route").on(Side::Target);
    rig.world.faults().fail_always("unfence(target)", broken);
    let Err(CommandError::Aborted { why, report }) =
        engine.command(Command::Switch { rehearse: false }).await
    else {
        panic!("it claims to have switched")
    };
    assert!(why.contains("could not be opened"), "{why}");
    assert_eq!(report.unwrap().epoch, Epoch(3));
    rig.world.faults().clear_all();
    assert_eq!(rig.stop_traffic().await.1, 0);
    rig.check_promises();
    assert_eq!(rig.view().owner, Side::Source);
    engine.command(Command::Switch { rehearse: false }).await.unwrap();
    rig.check_promises();
}

#[tokio::test(start_paused = true)]
async fn a_fence_that_somebody_opens_is_closed_again_and_reported() {
    let rig = Rig::new(Plan::Nothing);
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Ready }).await.unwrap();
    rig.until_phase(Phase::Ready).await;
    let part = rehome_part::sim::SimPart::over("media", rig.world.clone());
    rehome_part::Part::unfence(&part, Side::Target).await.unwrap();
    assert!(rig.world.is_writable(Side::Target));
    let view = rig.until("reported", |view| !view.parts[0].findings.is_empty()).await;
    assert_eq!(view.parts[0].findings[0].id, "fence-repaired");
    assert!(!rig.world.is_writable(Side::Target));
    // and the owner, closed by a late effect of some older engine, is opened again
    rehome_part::Part::fence(&part, Side::Source).await.unwrap();
    rig.until("opened", |_| rig.world.is_writable(Side::Source)).await;
    drop(engine);
}

#[tokio::test(start_paused = true)]
async fn late_writes_on_the_old_owner_are_found_by_the_sweep() {
    let rig = Rig::new(Plan::Nothing);
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
    rig.until_phase(Phase::Switched).await;
    rig.world.write_late(Side::Source, "straggler", "late");
    let view = rig.until("found", |view| !view.parts[0].findings.is_empty()).await;
    assert_eq!(view.parts[0].findings[0].id, "late-write-copied");
    assert!(rig.world.read(Side::Target, "straggler").is_some());
    drop(engine);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_engine_gives_its_lease_back_at_once() {
    let rig = Rig::new(Plan::Nothing);
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Following }).await.unwrap();
    rig.until_phase(Phase::Following).await;
    assert_eq!(engine.end().await.unwrap(), RunEnd::Stopped);
    let began = Instant::now();
    let next = Running::start(rig.open().await);
    assert!(began.elapsed() < Duration::from_secs(1));
    // and while that one lives, nobody else gets in
    let refused = rehome_engine::Engine::open(rig.setup("third"), rig.world()).await;
    assert!(matches!(refused, Err(EngineError::Held(lease)) if lease.holder == "engine again"));
    drop(next);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_is_cut_off_aborts_the_switch_holds_by_itself_and_learns_the_decision_by_asking() {
    let mut rig = Rig::new(Plan::Nothing);
    rig.start_traffic();
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Ready }).await.unwrap();
    rig.until_phase(Phase::Ready).await;
    let hang = rig.world.faults().hang("fence(source)");
    let answer = engine.send(Command::Switch { rehearse: false }).await;
    hang.reached().await;
    rig.gateways.deafen(true); // it can still ask, but hears nothing
    let outcome = tokio::time::timeout(LONG, async {
        // it asks: the old owner was decided and takes writes, so it releases, while the engine still tries to tell it
        while rig.gateways.standing().is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(rig.gateways.standing(), Some((Epoch(2), Side::Source)));
        assert_eq!(rig.view().stage.name(), "RETURNED");
        rig.gateways.deafen(false);
        answer.await.unwrap()
    })
    .await
    .unwrap();
    assert!(matches!(outcome, Err(CommandError::Aborted { .. })), "{outcome:?}");
    assert_eq!(rig.stop_traffic().await.1, 0);
    rig.check_promises();
}

/// The test instruments have to do the harm they are named for, or the checks that find it prove nothing.
#[tokio::test(start_paused = true)]
async fn every_sabotage_does_its_harm_and_shows_in_the_report() {
    for name in ["skip-fence", "release-both", "drop-delta", "skip-marker"] {
        let mut rig = Rig::new(Plan::Nothing);
        rig.faults.sabotage.lock().unwrap().insert(name.into());
        rig.start_traffic();
        let engine = Running::start(rig.create().await.unwrap());
        engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
        let report = rig.until("reported", |view| view.last_switch.is_some()).await.last_switch.unwrap();
        rig.stop_traffic().await;
        assert_eq!(report.outcome, SwitchOutcome::Committed, "{name}");
        let both_open = rig.world.is_writable(Side::Source) && rig.world.is_writable(Side::Target);
        let lost = (0..).map(|n| format!("new-{n}")).take_while(|key| {
            rig.world.read(Side::Source, key).is_some() || rig.world.read(Side::Target, key).is_some()
        });
        let lost = lost.filter(|key| rig.world.read(Side::Target, key).is_none()).count();
        match name {
            "skip-fence" | "release-both" => {
                assert!(both_open && !report.one_writable_side_proved, "{name}");
                assert!(report.drain_proved && lost == 0, "{name}");
            }
            "drop-delta" => assert!(lost > 0 && !report.drain_proved && !both_open, "{name}: {lost} lost"),
            _ => assert!(lost == 0 && !report.drain_proved && report.one_writable_side_proved, "{name}"),
        }
    }
}
