//! The four saga loops over every step: repeat each apply, fail each apply, repeat and fail each undo, and kill at every
//! journal write and go on.

use crate::rig::{LONG, Plan, Rig, Running};
use rehome_engine::{Command, CommandError, EngineError, Goal};
use rehome_journal::{Event, Phase, Reader, RunView, SwitchOutcome};
use rehome_part::sim::Snapshot;
use rehome_part::{Epoch, Error, ErrorKind, Side};

const PREPARATION: [&str; 3] = ["enroll", "prepare", "close-target"];
const BEFORE_COMMIT: [&str; 8] =
    ["arm", "hold", "stop-workers", "fence", "position", "drain", "compare", "seal"];
const AFTER_COMMIT: [&str; 3] = ["open", "settle", "start-workers"];

/// Every step there is has to be in one of the lists: a new one must not slip past these tests.
fn assert_all_steps_are_listed(rig: &Rig) {
    let known: Vec<&str> =
        PREPARATION.into_iter().chain(BEFORE_COMMIT).chain(AFTER_COMMIT).chain(["retire"]).collect();
    let reader = Reader::open(rig.folder.path()).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for record in reader.events_since(0, 10_000).unwrap() {
        if let Event::StepIntended { step, .. } = &record.event {
            assert!(known.contains(&step.as_str()), "`{step}` is in no list");
            seen.insert(step.clone());
        }
    }
    assert_eq!(seen.len(), known.len(), "{seen:?}");
}

async fn ready(rig: &Rig) -> Running {
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Ready }).await.unwrap();
    rig.until_phase(Phase::Ready).await;
    engine
}

/// The whole way with `change` applied first; the end is checked.
async fn whole_life(change: impl FnOnce(&Rig)) {
    let mut rig = Rig::new(Plan::Nothing);
    change(&rig);
    rig.start_traffic();
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
    rig.until("switched", |view| view.switched_at_ms.is_some()).await;
    assert_eq!(rig.stop_traffic().await.1, 0);
    rig.check_promises();
    assert_eq!(rig.workers.stopped(), [Side::Source]);
    engine.command(Command::Complete).await.unwrap();
    assert_eq!(rig.view().phase, Phase::Completed);
    assert_eq!(rig.world.leftovers(), Vec::<String>::new());
    assert_all_steps_are_listed(&rig);
}

#[tokio::test(start_paused = true)]
async fn every_apply_may_be_repeated() {
    for step in PREPARATION.into_iter().chain(BEFORE_COMMIT).chain(AFTER_COMMIT).chain(["retire"]) {
        whole_life(|rig| {
            rig.faults.sabotage.lock().unwrap().insert(format!("repeat:{step}"));
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_preparation_that_fails_anywhere_leaves_the_world_as_it_was() {
    for step in PREPARATION {
        for when in ["before", "after"] {
            let rig = Rig::new(Plan::Fail(format!("{when}:{step}")));
            let before = rig.world.snapshot();
            let engine = Running::start(rig.create().await.unwrap());
            drop(engine.send(Command::Goal { goal: Goal::Following }).await); // nobody waits for the answer
            let end = tokio::time::timeout(LONG, engine.task).await.unwrap().unwrap();
            assert!(matches!(&end, Err(EngineError::Step { step: failed, .. }) if failed == step), "{end:?}");
            assert!(rig.faults.struck());
            assert_eq!(rig.world.snapshot(), before, "{when}:{step}");
            // and the next `apply` goes through
            let again = Running::start(rig.open().await);
            rig.until_phase(Phase::Following).await;
            drop(again);
        }
    }
}

fn assert_as_before(rig: &Rig, before: &Snapshot, what: &str) {
    assert_eq!(&rig.world.snapshot(), before, "{what}");
    assert_eq!(rig.gateways.standing(), Some((Epoch(2), Side::Source)), "{what}");
    assert_eq!(rig.workers.stopped(), [], "{what}");
    assert_eq!(rig.gateways.weight_now(), 0, "{what}");
    assert_eq!(rig.view().owner, Side::Source, "{what}");
}

#[tokio::test(start_paused = true)]
async fn a_switch_that_fails_anywhere_before_the_commit_leaves_the_world_as_it_was() {
    for step in BEFORE_COMMIT {
        for when in ["before", "after"] {
            let what = format!("{when}:{step}");
            let rig = Rig::new(Plan::Nothing);
            let engine = ready(&rig).await;
            let before = rig.world.snapshot();
            rig.faults.set(Plan::Fail(what.clone()));
            let answer = engine.command(Command::Switch { rehearse: false }).await;
            let Err(CommandError::Aborted { why, report: Some(report) }) = answer else {
                panic!("{what}: {answer:?}")
            };
            assert!(why.starts_with(step), "{why}");
            assert!(matches!(report.outcome, SwitchOutcome::Aborted { .. }));
            assert!(rig.faults.struck());
            assert_as_before(&rig, &before, &what);
            engine.command(Command::Switch { rehearse: false }).await.unwrap();
            rig.check_promises();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn after_the_commit_every_failure_rolls_forward() {
    for step in AFTER_COMMIT {
        for when in ["before", "after"] {
            let rig = Rig::new(Plan::Nothing);
            let engine = ready(&rig).await;
            rig.faults.set(Plan::Fail(format!("{when}:{step}")));
            engine.command(Command::Switch { rehearse: false }).await.unwrap();
            assert!(rig.faults.struck());
            assert_eq!((rig.view().owner, rig.view().epoch), (Side::Target, Epoch(2)));
            rig.check_promises();
        }
    }
}

/// Fails at the last moment before the commit, so that everything has to be taken back.
async fn abort_at_the_end(rig: &Rig, what: &str) {
    let engine = ready(rig).await;
    let before = rig.world.snapshot();
    let lost = Error::temporary(ErrorKind::Network, "the answer was lost");
    rig.world.faults().fail_after_effect("seal(forward)", 1, lost);
    let answer = engine.command(Command::Switch { rehearse: false }).await;
    assert!(matches!(answer, Err(CommandError::Aborted { .. })), "{what}: {answer:?}");
    assert_as_before(rig, &before, what);
    drop(engine);
}

#[tokio::test(start_paused = true)]
async fn every_undo_may_be_repeated_and_may_fail_first() {
    for step in ["open", "seal", "compare", "drain", "position", "fence", "stop-workers"] {
        let rig = Rig::new(Plan::Nothing);
        rig.faults.sabotage.lock().unwrap().insert(format!("repeat-undo:{step}"));
        abort_at_the_end(&rig, step).await;
        for when in ["before:undo", "after:undo"] {
            let rig = Rig::new(Plan::Fail(format!("{when}:{step}")));
            abort_at_the_end(&rig, step).await;
            assert!(rig.faults.struck(), "{when}:{step} was never reached");
        }
    }
    for step in PREPARATION {
        let rig = Rig::new(Plan::Nothing);
        let before = rig.world.snapshot();
        rig.faults.sabotage.lock().unwrap().insert(format!("repeat-undo:{step}"));
        let engine = ready(&rig).await;
        rig.faults.set(Plan::Fail(format!("before:undo:{step}")));
        engine.command(Command::Cancel).await.unwrap();
        assert!(rig.faults.struck());
        assert_eq!(rig.world.snapshot(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_never_succeeds_is_said_and_never_called_a_success() {
    let rig = Rig::new(Plan::Nothing);
    let engine = ready(&rig).await;
    rig.faults.set(Plan::FailAlways("before:undo:fence".into()));
    rig.world.faults().fail("seal(forward)", 1, Error::temporary(ErrorKind::Network, "gone"));
    let answer = engine.send(Command::Switch { rehearse: false }).await;
    let view = rig.until_phase(Phase::Stuck).await;
    let trouble = view.stuck.unwrap();
    assert_eq!(trouble.step, "fence");
    assert!(trouble.what_is_true.contains("writes wait"), "{}", trouble.what_is_true);
    rig.faults.set(Plan::Nothing);
    let answer = tokio::time::timeout(LONG, answer).await.unwrap().unwrap();
    assert!(matches!(answer, Err(CommandError::Aborted { .. })), "{answer:?}");
    rig.check_promises();
    assert_ne!(rig.view().phase, Phase::Stuck);
}

/// A side that never was the owner keeps nobody waiting when an attempt is given up, however long it does not answer; and no engine
/// that comes later takes the writes back.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_side_that_never_was_the_owner() {
    for undo in ["open", "seal"] {
        let rig = Rig::new(Plan::Nothing);
        let engine = ready(&rig).await;
        rig.faults.set(Plan::FailAlways(format!("before:undo:{undo}")));
        rig.world.faults().fail("seal(forward)", 1, Error::temporary(ErrorKind::Network, "gone"));
        drop(engine.send(Command::Switch { rehearse: false }).await);
        let released = |view: &RunView| view.attempt.as_ref().is_some_and(|attempt| attempt.released);
        let view = rig.until("released", released).await;
        assert_eq!((view.owner, &*view.state), (Side::Source, "RETURNED"), "{undo}");
        let trouble = rig.until_phase(Phase::Stuck).await.stuck.unwrap();
        assert_eq!(trouble.step, undo);
        assert!(trouble.what_is_true.contains("serves reads and writes"), "{}", trouble.what_is_true);
        engine.kill().await;
        let engine = Running::start(rig.open().await);
        assert!(released(&rig.view()));
        rig.faults.set(Plan::Nothing);
        rig.until("taken back", |view| view.attempt.is_none() && view.stuck.is_none()).await;
        rig.check_promises();
        drop(engine);
    }
}

/// One run that is killed at the n-th point; false when it came to its end without reaching that many.
async fn killed_at(prefix: &str, n: u64) -> bool {
    let mut rig = Rig::new(Plan::Kill(prefix.into(), n));
    rig.start_traffic();
    let life = async {
        let engine = Running::start(rig.create().await.unwrap());
        drop(engine.send(Command::Goal { goal: Goal::Switched }).await); // nobody waits for the answer
        let reported =
            rig.until("switched", |view| view.last_switch.is_some() && view.switched_at_ms.is_some());
        tokio::select! {
            _ = reported => {}
            () = rig.faults.killed.notified() => {
                engine.kill().await;
                return true;
            }
        }
        engine.kill().await;
        false
    };
    let killed = tokio::select! {
        killed = life => killed,
        () = rig.faults.killed.notified() => true, // while it was being created
    };
    if killed {
        let engine = Running::start(rig.open().await);
        engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
        let view =
            rig.until("switched", |view| view.switched_at_ms.is_some() && view.last_switch.is_some()).await;
        assert_eq!((view.phase, view.owner), (Phase::Switched, Side::Target), "{prefix}{n}");
        assert!(engine.end().await.is_ok());
    }
    assert_eq!(rig.stop_traffic().await.1, 0, "{prefix}{n}: requests failed");
    rig.check_promises();
    killed
}

/// Kills at every point with this prefix whose number is `first` modulo `step`.
async fn kill_at_every(prefix: &str, first: u64, step: u64, at_least: u64) {
    let mut n = first;
    while killed_at(prefix, n).await {
        n += step;
    }
    assert!(n > at_least, "only {n} points with {prefix}");
}

#[tokio::test(start_paused = true)]
async fn killed_before_every_odd_journal_write_it_ends_the_same() {
    kill_at_every("before:journal:", 1, 2, 40).await;
}

#[tokio::test(start_paused = true)]
async fn killed_before_every_even_journal_write_it_ends_the_same() {
    kill_at_every("before:journal:", 2, 2, 40).await;
}

#[tokio::test(start_paused = true)]
async fn killed_after_every_odd_journal_write_it_ends_the_same() {
    kill_at_every("after:journal:", 1, 2, 40).await;
}

#[tokio::test(start_paused = true)]
async fn killed_after_every_even_journal_write_it_ends_the_same() {
    kill_at_every("after:journal:", 2, 2, 40).await;
}

#[tokio::test(start_paused = true)]
async fn killed_around_the_decision_it_ends_the_same() {
    kill_at_every("before:decide", 1, 1, 1).await;
    kill_at_every("after:decide", 1, 1, 1).await;
}
