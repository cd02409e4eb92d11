//! The guard, and engines that are too late: killed in every state with a guard beside, and stopped past the lease and
//! woken, so that every late journal write, decision and effect on a gateway has to be refused.

use crate::rig::{LONG, Plan, Rig, Running};
use async_trait::async_trait;
use rehome_engine::guard::{self, GuardEnd};
use rehome_engine::{Command, Engine, EngineError, Faults, Goal, GuardPort, Setup, World};
use rehome_journal::{Phase, Register};
use rehome_part::{Epoch, Error, Side, Token};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

type Outcome = Result<GuardEnd, EngineError>;

/// A real guard in a task of its own, that outlives the engine; when it takes over, it goes on as the engine.
#[derive(Debug, Default)]
struct RealGuard {
    world: OnceLock<(Setup, World)>,
    running: Mutex<Option<tokio::task::JoinHandle<Option<Running>>>>,
}

impl RealGuard {
    /// Whoever took over, if the guard did.
    async fn successor(&self) -> Option<Running> {
        let task = self.running.lock().unwrap().take().expect("a guard was started");
        tokio::time::timeout(LONG, task).await.expect("the guard ends").unwrap()
    }
}

#[async_trait]
impl GuardPort for RealGuard {
    async fn start(&self) -> Result<(), Error> {
        let (setup, world) = self.world.get().expect("the rig is set up").clone();
        let task = tokio::spawn(async move {
            let end: Outcome = guard::watch(setup, world, CancellationToken::new()).await;
            match end.expect("the guard does not fail") {
                GuardEnd::Quiet => None,
                GuardEnd::TookOver(engine) => Some(Running::start(*engine)),
            }
        });
        *self.running.lock().unwrap() = Some(task);
        Ok(())
    }
}

fn guarded(plan: Plan) -> (Rig, Arc<RealGuard>) {
    let mut rig = Rig::new(plan);
    let guard = Arc::new(RealGuard::default());
    rig.guarded_by(Arc::clone(&guard) as Arc<dyn GuardPort>);
    let setup = Setup { holder: "guard 2".into(), ..rig.setup("guard 2") };
    guard.world.set((setup, rig.world())).unwrap();
    (rig, guard)
}

#[tokio::test(start_paused = true)]
async fn a_switch_that_ends_well_lets_the_guard_go() {
    let (rig, guard) = guarded(Plan::Nothing);
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
    rig.until_phase(Phase::Switched).await;
    assert!(guard.successor().await.is_none());
    rig.check_promises();
}

/// Kills the engine after this event; the guard has to settle everything by itself, within 10 s, without a failed request.
async fn killed_after(event: &str) {
    let (mut rig, guard) = guarded(Plan::Kill(format!("after:journal:{event}"), 1));
    rig.start_traffic();
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
    tokio::time::timeout(LONG, rig.faults.killed.notified()).await.expect(event);
    engine.kill().await;
    let killed = Instant::now();
    let settled = |view: &rehome_journal::RunView| {
        !view.stage.in_switch() && rig.gateways.standing() == Some((view.epoch, view.owner))
    };
    rig.until("settled", settled).await;
    assert!(killed.elapsed() < Duration::from_secs(10), "{event}: settled after {:?}", killed.elapsed());
    let successor = guard.successor().await.expect("the guard took over");
    // it goes on as the engine, up to the goal
    rig.until("switched", |view| view.switched_at_ms.is_some()).await;
    assert!(successor.end().await.is_ok());
    assert_eq!(rig.stop_traffic().await.1, 0, "{event}");
    rig.check_promises();
}

#[tokio::test(start_paused = true)]
async fn whatever_state_the_engine_dies_in_the_guard_finishes() {
    for event in [
        "switch_armed",
        "writes_held",
        "fenced",
        "drained",
        "sealed",
        "decided",
        "owner_opened",
        "writes_released",
    ] {
        killed_after(event).await;
    }
}

#[tokio::test(start_paused = true)]
async fn with_engine_and_guard_gone_writes_wait_and_reads_go_on_until_somebody_comes() {
    let mut rig = Rig::new(Plan::Kill("after:journal:fenced".into(), 1));
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
    tokio::time::timeout(LONG, rig.faults.killed.notified()).await.unwrap();
    engine.kill().await;
    rig.start_traffic();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(rig.gateways.standing(), None);
    assert_eq!(
        rig.world.read(Side::Source, "new-0"),
        None,
        "a write was admitted while nobody owned the epoch"
    );
    let again = Running::start(rig.open().await);
    rig.until("switched", |view| view.switched_at_ms.is_some()).await;
    assert_eq!(rig.stop_traffic().await.1, 0);
    assert!(rig.world.read(Side::Target, "new-0").is_some());
    rig.check_promises();
    drop(again);
}

// ── an engine that is stopped and wakes ──

/// Stops the whole thread of an engine at a point, as SIGSTOP would, until it is woken.
#[derive(Debug, Default)]
struct Freezer {
    point: String,
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Freezer {
    fn at(point: &str) -> Arc<Self> {
        Arc::new(Self { point: point.into(), ..Self::default() })
    }

    fn wait_frozen(&self) {
        let state = self.state.lock().unwrap();
        let (state, late) =
            self.changed.wait_timeout_while(state, Duration::from_secs(60), |(frozen, _)| !*frozen).unwrap();
        assert!(!late.timed_out(), "{} was never reached", self.point);
        drop(state);
    }

    fn wake(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

#[async_trait]
impl Faults for Freezer {
    async fn at(&self, point: &str) -> Result<(), Error> {
        if point == self.point {
            let mut state = self.state.lock().unwrap();
            if !state.0 {
                state.0 = true;
                self.changed.notify_all();
                // blocks the thread: nothing of this engine runs, its leases are not renewed
                let _woken = self.changed.wait_while(state, |(_, woken)| !*woken).unwrap();
            }
        }
        Ok(())
    }

    fn sabotage(&self, _: &str) -> bool {
        false
    }
}

/// Runs an engine up to `point`, stops it there, lets another take over and finish, wakes it, and looks what it does.
async fn too_late(point: &str, decided_for: Side) {
    let mut rig = Rig::new(Plan::Nothing);
    rig.settings.lease = Duration::from_millis(800);
    rig.settings.renew_every = Duration::from_millis(100);
    rig.settings.read_steps = vec![];
    let freezer = Freezer::at(point);
    let (setup, world) = (rig.setup("engine 1"), World { faults: freezer.clone(), ..rig.world() });
    // the engine has a thread and a runtime of its own, so that all of it can be stopped
    let engine = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let running = Running::start(Engine::create(setup, "run_1", "shop", world).await?);
            drop(running.send(Command::Goal { goal: Goal::Switched }).await); // nobody waits for the answer
            running.task.await.expect("it does not panic")
        })
    });
    let waits = Arc::clone(&freezer);
    tokio::task::spawn_blocking(move || waits.wait_frozen()).await.unwrap();

    let second = Running::start(rig.open().await);
    rig.until("switched by the second", |view| view.switched_at_ms.is_some()).await;
    freezer.wake();
    let late = tokio::task::spawn_blocking(move || engine.join().expect("it does not panic")).await.unwrap();
    assert!(matches!(late, Err(EngineError::LeaseLost)), "{point}: {late:?}");
    let register = Register::open(rig.folder.path()).unwrap();
    assert_eq!(register.decision(Epoch(2)).unwrap().unwrap().owner, decided_for, "{point}");
    assert!(register.decide(Epoch(9), Side::Source, Token(1)).is_err(), "a late decision was taken");
    assert!(second.end().await.is_ok());
    rig.check_promises();
}

#[tokio::test]
async fn an_engine_stopped_before_the_decision_cannot_decide_any_more() {
    too_late("before:decide", Side::Source).await;
}

#[tokio::test]
async fn an_engine_stopped_after_the_decision_finds_it_carried_out() {
    too_late("after:decide", Side::Target).await;
}

#[tokio::test]
async fn an_engine_stopped_around_its_effects_has_none_any_more() {
    too_late("before:fence", Side::Source).await;
    too_late("after:hold", Side::Source).await;
    too_late("before:journal:sealed", Side::Source).await;
}

#[tokio::test]
async fn an_engine_stopped_before_it_settles_the_gateways_is_refused() {
    too_late("before:settle", Side::Target).await;
}

// ── a journal that is lost ──

/// Switches (or only gets ready), then loses the journal's disk; answers with the rig and what became of a rebuild.
async fn rebuilt_after(goal: Goal, spoil: impl FnOnce(&Rig)) -> (Rig, Result<Engine, EngineError>) {
    let mut rig = Rig::new(Plan::Nothing);
    rig.start_traffic();
    let engine = Running::start(rig.create().await.unwrap());
    engine.command(Command::Goal { goal }).await.unwrap();
    rig.until("there", |view| {
        view.switched_at_ms.is_some() || (goal == Goal::Ready && view.phase == Phase::Ready)
    })
    .await;
    engine.end().await.unwrap();
    assert_eq!(rig.stop_traffic().await.1, 0);
    for file in std::fs::read_dir(rig.folder.path()).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    spoil(&rig);
    let rebuilt = Engine::recover(rig.setup("engine 9"), "run_1", "shop", rig.world()).await;
    (rig, rebuilt)
}

#[tokio::test(start_paused = true)]
async fn a_lost_journal_is_rebuilt_from_what_gateways_and_world_agree_on() {
    let (mut rig, rebuilt) = rebuilt_after(Goal::Switched, |_| {}).await;
    let engine = Running::start(rebuilt.unwrap());
    assert_eq!((rig.view().phase, rig.view().epoch), (Phase::Switched, Epoch(2)));
    rig.start_traffic();
    engine.command(Command::Verify).await.unwrap();
    engine.command(Command::Reverse { rehearse: false }).await.unwrap();
    assert_eq!(rig.stop_traffic().await.1, 0);
    assert_eq!(rig.view().phase, Phase::Reversed);
    rig.check_promises();

    let (rig, rebuilt) = rebuilt_after(Goal::Ready, |_| {}).await;
    let engine = Running::start(rebuilt.unwrap());
    engine.command(Command::Goal { goal: Goal::Switched }).await.unwrap();
    rig.until("switched", |view| view.switched_at_ms.is_some()).await;
    rig.check_promises();
}

#[tokio::test(start_paused = true)]
async fn a_lost_journal_is_not_rebuilt_from_a_contradiction() {
    let (_rig, both_open) = rebuilt_after(Goal::Switched, |rig| {
        rig.world.found(Side::Source, rehome_part::sim::Guard::Open);
        rig.world.lying_fence(Side::Source, true);
    })
    .await;
    assert!(
        matches!(&both_open, Err(EngineError::Disagree { what }) if what.contains("both sides")),
        "{both_open:?}"
    );
    let (_rig, deaf) = rebuilt_after(Goal::Switched, |rig| rig.gateways.deafen(true)).await;
    assert!(matches!(&deaf, Err(EngineError::Disagree { .. })), "{deaf:?}");
}
