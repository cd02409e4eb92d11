//! A world for the engine: simulated parts (from `rehome_part::sim`), gateways that behave like the real ones as far as the
//! control protocol goes, workers, a clock on tokio time, and faults. Checks the promises of a switch at the end.

use async_trait::async_trait;
use rehome_engine::ports::{GatewayStatus, HoldProof, Moments, ServiceStatus, SideStatus};
use rehome_engine::{
    Clock, Command, CommandError, CommandMessage, CommandOutcome, DecisionAnswer, Engine, EngineError,
    Faults, Gateways, GuardPort, RunEnd, ServiceInfo, Settings, Setup, Workers, World, decision,
};
use rehome_journal::{Journal, Now, Options, Phase, RunView};
use rehome_part::sim::{SimPart, SimWorld};
use rehome_part::{Epoch, Error, ErrorKind, Side, Token};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Longer than anything may take here, in simulated time.
pub const LONG: Duration = Duration::from_secs(120);

/// In memory where the machine has such a place: these tests make thousands of durable writes.
pub fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

#[derive(Debug, Clone)]
pub struct SimClock(Instant);

impl Clock for SimClock {
    fn boot_millis(&self) -> u64 {
        1_000_000 + self.0.elapsed().as_millis() as u64
    }
    fn wall_millis(&self) -> i64 {
        1_700_000_000_000 + self.0.elapsed().as_millis() as i64
    }
}

// ── faults ──

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    Nothing,
    /// The first time this point is reached, it fails.
    Fail(String),
    /// Every time.
    FailAlways(String),
    /// At the n-th point whose name begins so, nothing goes on: the test then drops the engine, as a kill would.
    Kill(String, u64),
}

#[derive(Debug)]
pub struct TestFaults {
    plan: Mutex<Plan>,
    pub sabotage: Mutex<BTreeSet<String>>,
    pub points: Mutex<Vec<String>>,
    reached: AtomicU64,
    pub killed: tokio::sync::Notify,
}

impl TestFaults {
    pub fn new(plan: Plan) -> Arc<Self> {
        Arc::new(Self {
            plan: Mutex::new(plan),
            sabotage: Mutex::default(),
            points: Mutex::default(),
            reached: AtomicU64::new(0),
            killed: tokio::sync::Notify::new(),
        })
    }

    pub fn set(&self, plan: Plan) {
        *self.plan.lock().unwrap() = plan;
    }

    pub fn struck(&self) -> bool {
        *self.plan.lock().unwrap() == Plan::Nothing
    }
}

/// Written by the pace of time, not by what happens: a kill there is not worth a run.
const SAMPLES: [&str; 5] =
    ["lag_sampled", "traffic_sampled", "copy_progressed", "gate_checked", "diagnostic"];

#[async_trait]
impl Faults for TestFaults {
    async fn at(&self, point: &str) -> Result<(), Error> {
        self.points.lock().unwrap().push(point.to_owned());
        let plan = self.plan.lock().unwrap().clone();
        let broken = || Err(Error::permanent(ErrorKind::Other, format!("broken at {point}")));
        match plan {
            Plan::Fail(name) if name == point => {
                self.set(Plan::Nothing);
                broken()
            }
            Plan::FailAlways(name) if name == point => broken(),
            Plan::Kill(prefix, n)
                if point.starts_with(&prefix) && !SAMPLES.iter().any(|s| point.ends_with(s)) =>
            {
                if self.reached.fetch_add(1, Ordering::SeqCst) + 1 == n {
                    self.set(Plan::Nothing);
                    self.killed.notify_one();
                    std::future::pending::<()>().await;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn sabotage(&self, name: &str) -> bool {
        self.sabotage.lock().unwrap().contains(name)
    }
}

// ── gateways ──

#[derive(Debug, Clone, PartialEq)]
enum Mode {
    Standing,
    Armed(Instant),
    Held,
}

#[derive(Debug)]
struct Gate {
    epoch: Epoch,
    owner: Side,
    mode: Mode,
    token: Token,
    intent: Option<Epoch>,
    weight: u8,
    requests: u64,
    waiting: Vec<(String, oneshot::Sender<bool>)>,
    /// Which side every acknowledged write of an epoch went to.
    sides: BTreeMap<Epoch, BTreeSet<Side>>,
    fresh: u64,
    deaf: bool,
    /// Is the comparison of reads on?
    shadow: bool,
    /// How often the status was asked for, and what a test makes of it.
    looks: u64,
    measures: Option<Measures>,
}

/// Changes what a gateway says of its service; knows how often it was asked, and who owns the data.
pub type Measures = fn(&mut ServiceStatus, u64, Side);

/// One gateway in front of one simulated part.
#[derive(Debug, Clone)]
pub struct SimGateways {
    gate: Arc<Mutex<Gate>>,
    world: SimWorld,
    folder: PathBuf,
}

impl SimGateways {
    fn new(world: &SimWorld, folder: &Path) -> Self {
        let gate = Gate {
            epoch: Epoch::FIRST,
            owner: Side::Source,
            mode: Mode::Standing,
            token: Token(0),
            intent: None,
            weight: 0,
            requests: 0,
            waiting: Vec::new(),
            sides: BTreeMap::new(),
            fresh: 0,
            deaf: false,
            shadow: false,
            looks: 0,
            measures: None,
        };
        Self { gate: Arc::new(Mutex::new(gate)), world: world.clone(), folder: folder.into() }
    }

    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap()
    }

    pub fn standing(&self) -> Option<(Epoch, Side)> {
        let gate = self.lock();
        (gate.mode == Mode::Standing).then_some((gate.epoch, gate.owner))
    }

    pub fn fresh(&self) -> u64 {
        self.lock().fresh
    }

    pub fn measures(&self, measures: Measures) {
        self.lock().measures = Some(measures);
    }

    pub fn compares(&self) -> bool {
        self.lock().shadow
    }

    pub fn weight_now(&self) -> u8 {
        self.lock().weight
    }

    pub fn deafen(&self, deaf: bool) {
        self.lock().deaf = deaf;
    }

    fn forward(&self, gate: &mut Gate, key: &str) -> bool {
        gate.intent = Some(gate.epoch);
        let owner = gate.owner;
        let taken = self.world.write(owner, key, "value").is_ok();
        if taken {
            gate.sides.entry(gate.epoch).or_default().insert(owner);
        }
        taken
    }

    /// One write of a client: acknowledged (true), or refused by the side it was sent to.
    pub async fn write(&self, key: &str) -> bool {
        let wait = {
            let mut gate = self.lock();
            gate.requests += 1;
            let admitted = match gate.mode {
                Mode::Standing => true,
                Mode::Armed(until) => Instant::now() < until,
                Mode::Held => false,
            };
            if admitted {
                return self.forward(&mut gate, key);
            }
            let (answer, wait) = oneshot::channel();
            gate.waiting.push((key.to_owned(), answer));
            wait
        };
        wait.await.unwrap_or(false)
    }

    fn settle_now(&self, gate: &mut Gate, epoch: Epoch, owner: Side) {
        if epoch < gate.epoch || (epoch == gate.epoch && gate.mode != Mode::Standing && owner != gate.owner) {
            return;
        }
        (gate.epoch, gate.owner, gate.mode) = (epoch, owner, Mode::Standing);
        for (key, answer) in std::mem::take(&mut gate.waiting) {
            let taken = self.forward(gate, &key);
            let _ = answer.send(taken);
        }
    }

    /// What a gateway does by itself: when its lease has ended it holds, and asks.
    async fn live(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let asks = {
                let mut gate = self.lock();
                match gate.mode {
                    Mode::Armed(until) if Instant::now() >= until => {
                        gate.mode = Mode::Held;
                        Some(gate.epoch.next())
                    }
                    Mode::Held => Some(gate.epoch.next()),
                    _ => None,
                }
            };
            let Some(epoch) = asks else { continue };
            let folder = self.folder.clone();
            let answer = tokio::task::spawn_blocking(move || decision(&folder, epoch)).await.unwrap();
            if let Ok(DecisionAnswer::Settled { epoch, owner, .. }) = answer {
                let mut gate = self.lock();
                // the armed epoch itself is no answer
                if epoch > gate.epoch {
                    self.settle_now(&mut gate, epoch, owner);
                }
            }
        }
    }

    fn check(&self, token: Token) -> Result<MutexGuard<'_, Gate>, Error> {
        let mut gate = self.lock();
        if gate.deaf {
            return Err(Error::temporary(ErrorKind::Network, "the gateway does not answer"));
        }
        if token < gate.token {
            return Err(Error::permanent(ErrorKind::Other, "stale token"));
        }
        gate.token = token;
        Ok(gate)
    }
}

fn stale_epoch() -> Error {
    Error::permanent(ErrorKind::Other, "stale epoch")
}

#[async_trait]
impl Gateways for SimGateways {
    async fn enroll(&self, token: Token) -> Result<(), Error> {
        self.check(token).map(drop)
    }
    async fn leave(&self, token: Token) -> Result<(), Error> {
        self.check(token).map(drop)
    }
    async fn status(&self) -> Result<Vec<GatewayStatus>, Error> {
        let mut gate = self.lock();
        if gate.deaf {
            return Err(Error::temporary(ErrorKind::Network, "the gateway does not answer"));
        }
        gate.looks += 1;
        let mut service = service_status(gate.weight, gate.requests);
        if let Some(measures) = gate.measures {
            measures(&mut service, gate.looks, gate.owner);
        }
        Ok(vec![GatewayStatus {
            name: "edge".into(),
            epoch: gate.epoch,
            owner: gate.owner,
            holding: gate.mode == Mode::Held,
            armed: matches!(gate.mode, Mode::Armed(_)),
            intent: gate.intent,
            sessions: 0,
            slowest_ms: 0,
            slow: vec![],
            services: vec![service],
        }])
    }
    async fn weight(&self, _: Option<&str>, percent: u8, token: Token) -> Result<(), Error> {
        self.check(token)?.weight = percent;
        Ok(())
    }
    async fn shadow(&self, on: bool, token: Token) -> Result<(), Error> {
        self.check(token)?.shadow = on;
        Ok(())
    }
    async fn moment(&self) -> Result<Moments, Error> {
        Ok(Moments(vec![("edge".into(), 1, 1)]))
    }
    async fn freshness(&self, _: &str, through: Option<Moments>, token: Token) -> Result<(), Error> {
        self.check(token)?.fresh += u64::from(through.is_some());
        Ok(())
    }
    async fn arm(&self, epoch: Epoch, lease: Duration, token: Token) -> Result<(), Error> {
        let mut gate = self.check(token)?;
        if epoch != gate.epoch {
            return Err(stale_epoch());
        }
        if gate.mode != Mode::Held {
            gate.mode = Mode::Armed(Instant::now() + lease);
        }
        Ok(())
    }
    async fn hold(&self, epoch: Epoch, _: Duration, token: Token) -> Result<HoldProof, Error> {
        let mut gate = self.check(token)?;
        if epoch != gate.epoch || gate.mode == Mode::Standing {
            return Err(stale_epoch());
        }
        gate.mode = Mode::Held;
        Ok(HoldProof { gateways: 1, waiting: gate.waiting.len() as u64, ..HoldProof::default() })
    }
    async fn renew(&self, epoch: Epoch, lease: Duration, token: Token) -> Result<HoldProof, Error> {
        let mut gate = self.check(token)?;
        if epoch != gate.epoch || gate.mode == Mode::Standing {
            return Err(stale_epoch());
        }
        if let Mode::Armed(until) = &mut gate.mode {
            *until = Instant::now() + lease;
        }
        let waiting = gate.waiting.len() as u64;
        Ok(HoldProof { gateways: 1, waiting, fullness: waiting as f64 / 4_096.0, ..HoldProof::default() })
    }
    async fn settle(&self, epoch: Epoch, owner: Side, token: Token) -> Result<(), Error> {
        let mut gate = self.check(token)?;
        if epoch < gate.epoch {
            return Err(stale_epoch());
        }
        self.settle_now(&mut gate, epoch, owner);
        Ok(())
    }
    async fn revoke(&self, epoch: Epoch, token: Token) -> Result<(), Error> {
        let mut gate = self.check(token)?;
        if gate.intent >= Some(epoch) {
            return Err(Error::permanent(ErrorKind::Unsupported, "an intent is recorded"));
        }
        gate.mode = Mode::Held;
        Ok(())
    }
}

// ── workers, guard ──

#[derive(Debug, Default)]
pub struct SimWorkers {
    stopped: Mutex<BTreeSet<Side>>,
    pub calls: Mutex<Vec<String>>,
}

impl SimWorkers {
    pub fn stopped(&self) -> Vec<Side> {
        self.stopped.lock().unwrap().iter().copied().collect()
    }
}

#[async_trait]
impl Workers for SimWorkers {
    async fn stop(&self, side: Side) -> Result<(), Error> {
        self.calls.lock().unwrap().push(format!("stop {side}"));
        self.stopped.lock().unwrap().insert(side);
        Ok(())
    }
    async fn start(&self, side: Side) -> Result<(), Error> {
        self.calls.lock().unwrap().push(format!("start {side}"));
        self.stopped.lock().unwrap().remove(&side);
        Ok(())
    }
}

/// A guard that only beats: for tests in which nobody but a new engine may take over.
#[derive(Debug)]
struct BeatingGuard {
    folder: PathBuf,
    clock: SimClock,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[async_trait]
impl GuardPort for BeatingGuard {
    async fn start(&self) -> Result<(), Error> {
        let (folder, clock) = (self.folder.clone(), self.clock.clone());
        let task = tokio::spawn(async move {
            let journal = Arc::new(Journal::open(&folder, Options::default()).unwrap());
            loop {
                let now = Now { boot_id: clock.boot_id(), boot_ms: clock.boot_millis() };
                journal.beat_guard("guard", &now).unwrap();
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        });
        if let Some(before) = self.task.lock().unwrap().replace(task) {
            before.abort();
        }
        Ok(())
    }
}

impl Drop for BeatingGuard {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().unwrap().take() {
            task.abort();
        }
    }
}

// ── the rig ──

pub struct Rig {
    pub folder: TempDir,
    pub world: SimWorld,
    pub gateways: SimGateways,
    pub workers: Arc<SimWorkers>,
    pub faults: Arc<TestFaults>,
    pub clock: SimClock,
    pub settings: Settings,
    guard: Arc<dyn GuardPort>,
    stop: CancellationToken,
    traffic: Option<JoinHandle<(u64, u64)>>,
    traffic_stop: CancellationToken,
    acknowledged: Arc<Mutex<Vec<String>>>,
}

/// A running engine.
#[derive(Debug)]
pub struct Running {
    /// Dropped: killed.
    pub task: AbortOnDropHandle<Result<RunEnd, EngineError>>,
    pub commands: mpsc::Sender<CommandMessage>,
    pub stop: CancellationToken,
}

impl Running {
    pub fn start(engine: Engine) -> Self {
        let (commands, receive) = mpsc::channel(8);
        let stop = CancellationToken::new();
        let task = AbortOnDropHandle::new(tokio::spawn(engine.run(receive, stop.clone())));
        Self { task, commands, stop }
    }

    pub async fn send(&self, command: Command) -> oneshot::Receiver<Result<CommandOutcome, CommandError>> {
        let (reply, answer) = oneshot::channel();
        let argv = vec!["rehome".into(), command.name().into()];
        let message = CommandMessage { command, actor: "tester".into(), argv, reply };
        self.commands.send(message).await.expect("the engine runs");
        answer
    }

    pub async fn command(&self, command: Command) -> Result<CommandOutcome, CommandError> {
        let answer = self.send(command).await;
        tokio::time::timeout(LONG, answer)
            .await
            .expect("it is answered")
            .unwrap_or(Err(CommandError::Stopped))
    }

    /// As SIGKILL: nothing of the engine goes on.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub async fn end(self) -> Result<RunEnd, EngineError> {
        self.stop.cancel();
        tokio::time::timeout(LONG, self.task).await.expect("it ends").expect("it does not panic")
    }
}

impl Rig {
    pub fn new(plan: Plan) -> Self {
        let folder = folder();
        let world = SimWorld::new();
        for n in 0..5 {
            world.write(Side::Source, &format!("old-{n}"), "old").unwrap();
        }
        let gateways = SimGateways::new(&world, folder.path());
        let stop = CancellationToken::new();
        tokio::spawn(gateways.clone().live(stop.clone()));
        let clock = SimClock(Instant::now());
        let guard = Arc::new(BeatingGuard {
            folder: folder.path().into(),
            clock: clock.clone(),
            task: Mutex::new(None),
        });
        let settings = Settings {
            read_steps: vec![5, 50],
            read_step_time: Duration::from_millis(500),
            soak: Duration::from_secs(3_600),
            ..Settings::default()
        };
        Self {
            folder,
            world,
            gateways,
            workers: Arc::default(),
            faults: TestFaults::new(plan),
            clock,
            settings,
            guard,
            stop,
            traffic: None,
            traffic_stop: CancellationToken::new(),
            acknowledged: Arc::default(),
        }
    }

    pub fn guarded_by(&mut self, guard: Arc<dyn GuardPort>) {
        self.guard = guard;
    }

    pub fn world(&self) -> World {
        World {
            parts: vec![Arc::new(SimPart::over("media", self.world.clone()))],
            services: vec![ServiceInfo {
                name: "api".into(),
                uses: vec!["media".into()],
                max_staleness: Duration::from_secs(2),
            }],
            gateways: Arc::new(self.gateways.clone()),
            workers: Arc::clone(&self.workers) as Arc<dyn Workers>,
            clock: Arc::new(self.clock.clone()),
            faults: Arc::clone(&self.faults) as Arc<dyn Faults>,
            guard: Arc::clone(&self.guard),
            entry: Arc::new(rehome_engine::NoEntry),
        }
    }

    pub fn setup(&self, holder: &str) -> Setup {
        Setup {
            folder: self.folder.path().into(),
            holder: holder.into(),
            version: "test".into(),
            journal_copy: None,
            settings: self.settings.clone(),
        }
    }

    pub async fn create(&self) -> Result<Engine, EngineError> {
        Engine::create(self.setup("engine 1"), "run_1", "shop", self.world()).await
    }

    /// As `rehome apply` again: takes the run up once its last engine counts as dead; begins it when it was never begun.
    pub async fn open(&self) -> Engine {
        let until = Instant::now() + LONG;
        loop {
            match Engine::open(self.setup("engine again"), self.world()).await {
                Ok(engine) => return engine,
                Err(EngineError::Journal(rehome_journal::Error::NotFound(_))) => {
                    return self.create().await.unwrap();
                }
                Err(EngineError::Held(_)) if Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub fn view(&self) -> RunView {
        RunView::load(self.folder.path()).unwrap()
    }

    pub async fn until(&self, what: &str, condition: impl Fn(&RunView) -> bool) -> RunView {
        let end = Instant::now() + LONG;
        loop {
            if let Ok(view) = RunView::load(self.folder.path())
                && condition(&view)
            {
                return view;
            }
            assert!(Instant::now() < end, "never {what}: {:#?}", self.view());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub async fn until_phase(&self, phase: Phase) -> RunView {
        self.until(phase.name(), |view| view.phase == phase).await
    }

    /// A client that writes until it is stopped, and remembers what was acknowledged.
    pub fn start_traffic(&mut self) {
        let (gateways, stop, log) =
            (self.gateways.clone(), CancellationToken::new(), Arc::clone(&self.acknowledged));
        self.traffic_stop = stop.clone();
        let first = log.lock().unwrap().len();
        self.traffic = Some(tokio::spawn(async move {
            let (mut acknowledged, mut failed, mut n) = (0, 0, first);
            while !stop.is_cancelled() {
                let key = format!("new-{n}");
                n += 1;
                if gateways.write(&key).await {
                    acknowledged += 1;
                    log.lock().unwrap().push(key);
                } else {
                    failed += 1;
                }
                tokio::time::sleep(Duration::from_millis(37)).await;
            }
            (acknowledged, failed)
        }));
    }

    /// (acknowledged, failed)
    pub async fn stop_traffic(&mut self) -> (u64, u64) {
        self.traffic_stop.cancel();
        let traffic = self.traffic.take().expect("traffic runs");
        tokio::time::timeout(LONG, traffic).await.expect("no write waits for ever").unwrap()
    }

    /// The promises: nothing acknowledged is lost, one writable side per epoch, the world itself saw no violation, and the
    /// gateways stand with the owner the journal names.
    pub fn check_promises(&self) {
        assert_eq!(self.world.violations(), [], "the world saw a broken promise");
        let view = self.view();
        for key in self.acknowledged.lock().unwrap().iter() {
            assert!(
                self.world.read(view.owner, key).is_some(),
                "acknowledged {key} is not on the {}",
                view.owner
            );
        }
        for (epoch, sides) in &self.gateways.lock().sides {
            assert_eq!(sides.len(), 1, "epoch {epoch} was written on {sides:?}");
        }
        assert_eq!(self.gateways.standing(), Some((view.epoch, view.owner)));
        assert!(self.world.is_writable(view.owner), "the owner does not take writes");
        assert!(!self.world.is_writable(view.owner.other()), "both sides take writes");
        Journal::open(self.folder.path(), Options::default()).expect("the history is possible");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
        self.traffic_stop.cancel();
    }
}

pub fn side_status() -> SideStatus {
    SideStatus { healthy: Some(true), ..SideStatus::default() }
}

pub fn service_status(weight: u8, requests: u64) -> ServiceStatus {
    ServiceStatus {
        name: "api".into(),
        weight_wanted: weight,
        weight_actual: weight,
        lag_ms: Some(0),
        source: SideStatus { requests, ..side_status() },
        target: SideStatus { requests: requests / 10, ..side_status() },
        writes_total: requests,
        write_p999_ms: Some(5.0),
        ..ServiceStatus::default()
    }
}
