//! The dispatcher: it owns the state, takes commands and reports, asks the pure `decide` what is next, and acts. Long finite
//! work runs inside `act`; commands that arrive meanwhile wait, except that cancelling or stopping interrupts a switch.

use crate::command::{ACCEPTABLE, Command, CommandError, CommandMessage, CommandOutcome};
use crate::core::{Beginning, Core, blocking, now_of};
use crate::decide::{Decision, Reads, Shadowing, Situation, decide};
use crate::error::{EngineError, RunEnd};
use crate::keeper::Renewer;
use crate::settings::{Setup, World};
use crate::switch::{self, SwitchEnd};
use crate::units::{Report, Units};
use crate::{ending, gates, preparation, reads, reconcile, recovery, shadow, soak};
use rehome_journal::{
    Actor, Event, GateRecord, Goal, Journal, NewRun, Options, PartInfo, Phase, Register, Stage, State,
    Verdict,
};
use rehome_part::{Error as PartError, Side, Token, Verification};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// How often the dispatcher looks up when nothing calls it.
const TICK: Duration = Duration::from_millis(50);
/// Between two looks at gates that are not met, and after an aborted attempt.
const GATE_EVERY: Duration = Duration::from_secs(1);
/// The slowest pace of samples.
const SELDOM: Duration = Duration::from_secs(15);

type Reply = oneshot::Sender<Result<CommandOutcome, CommandError>>;

#[derive(Debug)]
struct AskedSwitch {
    rehearse: bool,
    until: Instant,
    reply: Reply,
}

/// The engine of one run. Dropping it ends all its tasks at once, as a kill would.
#[derive(Debug)]
pub struct Engine {
    core: Core,
    reports: mpsc::UnboundedReceiver<Report>,
    queue: VecDeque<CommandMessage>,
    asked_switch: Option<AskedSwitch>,
    asked_verify: Vec<Reply>,
    /// When a failed copy is begun again, and how long the pause after the next failure is.
    copy_again: BTreeMap<String, (Instant, Duration)>,
    verify_again: Instant,
    verify_failures: u32,
    /// While reads are compared: until when, at least.
    shadowed_until: Option<Instant>,
    watch: Option<reads::Watch>,
    reads_done: usize,
    /// After the switch.
    soak: Option<soak::Watch>,
    attempt_again: Instant,
    aborted: u32,
    sampled: Sampled,
}

#[derive(Debug)]
struct Sampled {
    next: Instant,
    reconcile: Instant,
    sweep: Instant,
    last: BTreeMap<String, String>,
}

impl Engine {
    /// Begins a run in `setup.folder` and becomes its engine. `run` is its unique id, `name` the migration's.
    pub async fn create(setup: Setup, run: &str, name: &str, world: World) -> Result<Self, EngineError> {
        let new = new_run(&setup, run, name, &world, Token(0));
        let (folder, options) = (setup.folder.clone(), options(&setup));
        let journal = blocking(move || Journal::create(&folder, new, options)).await?;
        Self::take_up(setup, world, journal).await
    }

    /// Begins the journal of a run again after it was lost with its disk (and no copy is left): who owns the data is read from
    /// the gateways and tried on the world. Refused with [`EngineError::Disagree`] when these do not fit together or a switch
    /// is under way. `run` must be the id the gateways are enrolled under.
    pub async fn recover(setup: Setup, run: &str, name: &str, world: World) -> Result<Self, EngineError> {
        let (epoch, owner) = recovery::agreed(&setup.folder, &world).await?;
        // Tokens count takeovers, so the seconds since 1970 are above every one that was ever given.
        let floor = Token(world.clock.wall_millis().unsigned_abs() / 1_000);
        let new = new_run(&setup, run, name, &world, floor);
        let (folder, options) = (setup.folder.clone(), options(&setup));
        let journal = blocking(move || Journal::create(&folder, new, options)).await?;
        let mut engine = Self::take_up(setup, world, journal).await?;
        engine.core.record_one(Event::RunRecovered { epoch, owner }).await?;
        Ok(engine)
    }

    /// Takes up a run that exists. [`EngineError::Held`] when its engine is alive; a history that cannot have happened is
    /// refused with its sequence number. A switch under way is finished first thing in [`Engine::run`].
    pub async fn open(setup: Setup, world: World) -> Result<Self, EngineError> {
        let (folder, options) = (setup.folder.clone(), options(&setup));
        let journal = blocking(move || Journal::open(&folder, options)).await?;
        Self::take_up(setup, world, journal).await
    }

    async fn take_up(setup: Setup, world: World, journal: Journal) -> Result<Self, EngineError> {
        check_parts(&journal.state(), &world)?;
        let (journal, world, setup) = (Arc::new(journal), Arc::new(world), Arc::new(setup));
        let folder = setup.folder.clone();
        let register = Arc::new(blocking(move || Register::open(&folder)).await?);
        let (held, holder, now) = (Arc::clone(&journal), setup.holder.clone(), now_of(&world));
        let length = setup.settings.lease;
        let lease = blocking(move || held.acquire(&holder, &now, length)).await?;
        let renewer = Renewer::start(&journal, &world, &setup.settings, &lease);
        let (raised, token) = (Arc::clone(&register), lease.token);
        blocking(move || raised.raise(token)).await?;
        let (units, reports) = Units::new(&world);
        let actor = Actor { name: setup.holder.clone(), token };
        let mut core = Core::new(Beginning { journal, register, setup, world, actor, units, renewer });
        let version = core.setup.version.clone();
        core.record_one(Event::EngineStarted { token, version, pid: std::process::id() }).await?;
        let now = Instant::now();
        Ok(Self {
            core,
            reports,
            queue: VecDeque::new(),
            asked_switch: None,
            asked_verify: Vec::new(),
            copy_again: BTreeMap::new(),
            verify_again: now,
            verify_failures: 0,
            shadowed_until: None,
            watch: None,
            soak: None,
            reads_done: 0,
            attempt_again: now,
            aborted: 0,
            sampled: Sampled { next: now, reconcile: now, sweep: now, last: BTreeMap::new() },
        })
    }

    /// The state as of now; for tests and for the daemon's first answer.
    pub fn state(&self) -> &State {
        &self.core.state
    }

    /// Drives the run until it is final, until `stop` fires (a switch under way is given up or finished first), or until
    /// another engine has taken it over. Dropping the future is a kill: the next engine recovers.
    pub async fn run(
        mut self,
        mut commands: mpsc::Receiver<CommandMessage>,
        stop: CancellationToken,
    ) -> Result<RunEnd, EngineError> {
        self.core.stop = stop;
        let lost = self.core.renewer.lost.clone();
        let outcome = tokio::select! {
            biased;
            () = lost.cancelled() => Err(EngineError::LeaseLost),
            outcome = self.go(&mut commands) => outcome,
        };
        if !matches!(outcome, Err(EngineError::LeaseLost | EngineError::Fault { .. })) {
            self.leave().await;
        }
        outcome
    }

    async fn go(&mut self, commands: &mut mpsc::Receiver<CommandMessage>) -> Result<RunEnd, EngineError> {
        recovery::recover(&mut self.core).await?;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = true;
        loop {
            while let Some(message) = self.queue.pop_front() {
                self.take_command(message).await?;
            }
            // a unit reports before it ends: nothing is begun again while its report waits here
            while let Ok(report) = self.reports.try_recv() {
                self.take_report(report).await?;
            }
            let decision = decide(&self.core.state, &self.situation());
            if let Decision::End(phase) = decision {
                return Ok(RunEnd::Final(phase));
            }
            if self.core.stop.is_cancelled() {
                return Ok(RunEnd::Stopped);
            }
            if decision != Decision::Wait {
                tracing::debug!(?decision, "next");
                self.act(decision, commands).await?;
                continue;
            }
            let stop = self.core.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                message = commands.recv(), if open => match message {
                    Some(message) => self.queue.push_back(message),
                    None => open = false,
                },
                Some(report) = self.reports.recv() => self.take_report(report).await?,
                _ = ticks.tick() => self.look_around().await?,
            }
        }
    }

    /// An orderly end: followers stop where they are, the lease is free for the next engine.
    async fn leave(&mut self) {
        self.core.units.stop_verify().await;
        self.core.units.stop_copies().await;
        self.core.units.stop_following().await;
        let (journal, token) = (Arc::clone(&self.core.journal), self.core.token());
        let ended = blocking(move || {
            journal.settle_copy(Duration::from_secs(5));
            journal.release(token)
        });
        if let Err(error) = ended.await {
            tracing::warn!(%error, "the lease could not be released; it ends by itself");
        }
    }

    fn situation(&self) -> Situation {
        let (core, now) = (&self.core, Instant::now());
        let startable = |part: &String| {
            !core.state.copied.contains(part)
                && !core.units.is_copying(part)
                && self.copy_again.get(part).is_none_or(|(again, _)| now >= *again)
        };
        let steps = &core.settings().read_steps;
        let reads = match &self.watch {
            Some(watch) if now < watch.began + core.settings().read_step_time => Reads::Watching,
            Some(_) => Reads::Due,
            None => steps.get(self.reads_done).map_or(Reads::Done, |percent| Reads::Next(*percent)),
        };
        let shadowing = match self.shadowed_until {
            None => Shadowing::Open,
            Some(until) if now < until => Shadowing::Watching,
            Some(_) => Shadowing::Due,
        };
        Situation {
            shadowing,
            copy_startable: core.state.parts.iter().any(startable),
            units_run: core.units.follows_anything()
                || core.state.parts.iter().any(|part| core.units.is_copying(part)),
            following: core.units.is_following(core.state.flow()),
            verifying: core.units.is_verifying(),
            verify_due: now >= self.verify_again,
            verify_asked: !self.asked_verify.is_empty() || core.compare_again,
            reads,
            switch_asked: self.asked_switch.as_ref().map(|asked| asked.rehearse),
            attempt_due: now >= self.attempt_again,
            soak_over: self.sampled.soak_over(core),
        }
    }

    async fn act(
        &mut self,
        decision: Decision,
        commands: &mut mpsc::Receiver<CommandMessage>,
    ) -> Result<(), EngineError> {
        let core = &mut self.core;
        match decision {
            Decision::End(_) | Decision::Wait => Ok(()),
            Decision::Recover => switch::recover(core).await,
            Decision::Cancel => ending::cancel(core).await,
            Decision::Complete => ending::complete(core).await,
            Decision::BeginComplete => core.record_one(Event::CompleteBegan).await,
            Decision::StopUnits => {
                core.units.stop_verify().await;
                core.units.stop_copies().await;
                core.units.stop_following().await;
                Ok(())
            }
            Decision::Prepare => preparation::prepare(core).await,
            Decision::StartCopies => {
                self.start_copies();
                Ok(())
            }
            Decision::FinishCopy => {
                core.units.stop_copies().await;
                core.record_one(Event::Copied).await
            }
            Decision::Follow => {
                core.units.stop_following().await;
                core.units.start_following(core.state.flow());
                Ok(())
            }
            Decision::Verify => {
                core.compare_again = false;
                core.units.start_verify(core.state.flow());
                Ok(())
            }
            Decision::BecomeReady => core.record_one(Event::Verified).await,
            Decision::BeginShadow => {
                let watched = shadow::begin(core).await?;
                self.shadowed_until = watched.then(|| Instant::now() + core.settings().shadow_time);
                Ok(())
            }
            Decision::JudgeShadow { early } => self.judge_shadow(early).await,
            Decision::ShiftReads(percent) => {
                self.watch = Some(reads::shift(core, percent, None).await?);
                Ok(())
            }
            Decision::JudgeReads => self.judge_reads().await,
            Decision::PassCanary => {
                let note = match &*core.settings().read_steps {
                    [] => "no share of reads was to be watched".to_owned(),
                    steps => format!("shares of {steps:?} % were watched"),
                };
                core.record_one(Event::CanaryPassed { note }).await
            }
            Decision::TrySwitch { rehearse } => self.try_switch(rehearse, commands).await,
        }
    }

    fn start_copies(&mut self) {
        let now = Instant::now();
        for part in self.core.state.parts.clone() {
            let due = self.copy_again.get(&part).is_none_or(|(again, _)| now >= *again);
            if due && !self.core.state.copied.contains(&part) && !self.core.units.is_copying(&part) {
                self.core.units.start_copy(&part);
            }
        }
    }

    // ── reports ──

    async fn take_report(&mut self, report: Report) -> Result<(), EngineError> {
        match report {
            Report::Copied { part, summary } => {
                if self.core.state.stage != Stage::Prepared {
                    return Ok(());
                }
                let mut events: Vec<Event> = summary
                    .losses
                    .iter()
                    .take(100)
                    .map(|finding| Event::FindingSeen { part: part.clone(), finding: finding.clone() })
                    .collect();
                events.push(Event::PartCopied { part, summary });
                self.core.record(events).await?;
                self.core.say_free("copy").await
            }
            Report::CopyFailed { part, error } => {
                let (_, pause) =
                    self.copy_again.get(&part).copied().unwrap_or((Instant::now(), Duration::from_secs(1)));
                self.copy_again
                    .insert(part.clone(), (Instant::now() + pause, (pause * 2).min(Duration::from_secs(60))));
                if error.is_temporary() {
                    return self.remark_once("copy", &format!("{part}: {error}"), error.hint).await;
                }
                self.core.say_stuck("copy", &named(&part, error)).await
            }
            Report::FollowFailed { part, error } => {
                self.remark_once("follow", &format!("{part}: {error}"), error.hint).await
            }
            Report::Verified { outcome, flow, since } => {
                if outcome.as_ref().is_ok_and(Verification::is_equal) && flow == self.core.state.flow() {
                    self.core.compared = Some((flow, since));
                }
                self.take_verification(outcome).await
            }
        }
    }

    async fn remark_once(
        &mut self,
        source: &str,
        text: &str,
        hint: Option<String>,
    ) -> Result<(), EngineError> {
        if !self.core.remarks.is_news(source, text) {
            return Ok(());
        }
        let (source, text) = (source.to_owned(), text.to_owned());
        self.core.record_one(Event::Diagnostic { warning: true, source, text, hint }).await
    }

    async fn take_verification(
        &mut self,
        outcome: Result<Verification, PartError>,
    ) -> Result<(), EngineError> {
        let stage = self.core.state.stage;
        if stage.in_switch() || stage < Stage::Streaming || stage.is_final() {
            return Ok(());
        }
        let answer = match outcome {
            Ok(result) => {
                self.core
                    .record_one(Event::VerifyFinished {
                        compared: result.compared,
                        bytes: result.bytes,
                        differences_total: result.differences_total,
                        differences: result.differences.clone(),
                    })
                    .await?;
                if result.is_equal() {
                    self.verify_failures = 0;
                    self.core.say_free("verify").await?;
                } else {
                    let text = format!("{} objects differ", result.differences_total);
                    self.verify_failed(PartError::permanent(rehome_part::ErrorKind::Corrupt, text)).await?;
                }
                Ok(CommandOutcome::Verified {
                    compared: result.compared,
                    bytes: result.bytes,
                    differences_total: result.differences_total,
                    differences: result.differences,
                })
            }
            Err(error) => {
                self.verify_failed(error.clone()).await?;
                Err(CommandError::Failed { step: "verify".into(), error })
            }
        };
        for reply in self.asked_verify.drain(..) {
            let _ = reply.send(answer.clone()); // whoever asked may be gone
        }
        Ok(())
    }

    /// A comparison is made again after 2, 4, 8 … 60 s; after three in a row a human is needed.
    async fn verify_failed(&mut self, error: PartError) -> Result<(), EngineError> {
        self.verify_failures += 1;
        let pause = Duration::from_secs(1 << self.verify_failures.min(6)).min(Duration::from_secs(60));
        self.verify_again = Instant::now() + pause;
        if self.core.state.read_percent > 0 && self.core.state.owner == Side::Source {
            self.watch = None;
            self.reads_done = 0;
            reads::shift(&mut self.core, 0, None).await?;
        }
        if self.verify_failures < 3 {
            return self.remark_once("verify", &error.text, error.hint.clone()).await;
        }
        let hint = "compare the named objects on both sides; the comparison is repeated by itself";
        self.core.say_stuck("verify", &PartError { hint: Some(hint.into()), ..error }).await
    }

    // ── reads ──

    async fn judge_shadow(&mut self, early: bool) -> Result<(), EngineError> {
        let gate = shadow::judge(&mut self.core, early).await?;
        if gate.is_met() {
            self.shadowed_until = None;
            return Ok(());
        }
        self.attempt_again = Instant::now() + GATE_EVERY;
        if !early {
            self.shadowed_until = Some(Instant::now() + self.core.settings().shadow_time.max(GATE_EVERY));
        }
        self.refuse_switch_in_time(vec![gate]).await
    }

    /// Whoever asked for a switch is told what is not met when its patience is over.
    async fn refuse_switch_in_time(&mut self, unmet: Vec<GateRecord>) -> Result<(), EngineError> {
        let Some(asked) = self.asked_switch.take_if(|asked| Instant::now() >= asked.until) else {
            return Ok(());
        };
        let names: Vec<&str> = unmet.iter().map(|gate| gate.name.as_str()).collect();
        let text = format!("the switch that was asked for is not made: {} not met", names.join(", "));
        if asked.reply.send(Err(CommandError::GateNotMet { gates: unmet })).is_ok() {
            return Ok(());
        }
        self.remark_once("switch", &text, Some("see rehome status".into())).await
    }

    async fn judge_reads(&mut self) -> Result<(), EngineError> {
        let Some(watch) = self.watch.clone() else { return Ok(()) };
        let judgement = reads::judge(&mut self.core, &watch).await?;
        let last = self.reads_done + 1 >= self.core.settings().read_steps.len();
        match judgement.verdict() {
            Verdict::Fail => {
                self.watch = None;
                self.reads_done = 0;
                reads::shift(&mut self.core, 0, None).await?;
                self.core.record_one(Event::GoalSet { goal: Goal::Ready }).await?;
                let hint = "see what fails there, then: rehome apply --until switched".to_owned();
                let text = format!(
                    "reads on the other side do worse: {}; they are back on the owner",
                    judgement.why()
                );
                self.remark_once("reads", &text, Some(hint)).await
            }
            // At the last share somebody has to have read there, if anybody reads at all.
            Verdict::NoData if judgement.anybody_reads && (last || !judgement.nobody_there) => {
                self.watch = Some(watch.again());
                let text = "reads on the other side are too few to judge; waiting for more";
                self.remark_once("reads", text, None).await
            }
            _ => {
                self.watch = None;
                self.reads_done += 1;
                Ok(())
            }
        }
    }

    // ── the switch ──

    async fn try_switch(
        &mut self,
        rehearse: bool,
        commands: &mut mpsc::Receiver<CommandMessage>,
    ) -> Result<(), EngineError> {
        let look = gates::check(&mut self.core).await?;
        let unmet = look.unmet();
        if !unmet.is_empty() {
            self.core.compare_again |= self.core.state.verified && self.core.compared.is_none();
            if let Some(found) = look.differences {
                self.take_verification(Ok(found)).await?;
            }
            self.attempt_again = Instant::now() + GATE_EVERY;
            return self.refuse_switch_in_time(unmet).await;
        }
        // Held until the switch has ended either way.
        let entry = match self.core.world.entry.take() {
            Ok(Some(entry)) => entry,
            outcome => {
                let why = outcome.err().map_or_else(|| "somebody changes it".to_owned(), |error| error.text);
                let gate = GateRecord {
                    name: "entry".into(),
                    verdict: Verdict::Fail,
                    value: why,
                    limit: "nobody changes what stands in front of the gateways".into(),
                    accepted: false,
                };
                self.core.record_one(Event::GateChecked { gate: gate.clone() }).await?;
                self.attempt_again = Instant::now() + GATE_EVERY;
                return self.refuse_switch_in_time(vec![gate]).await;
            }
        };
        self.core.units.stop_verify().await;
        if self.core.state.owner == Side::Source && !look.baseline.is_empty() {
            self.core.record_one(Event::BaselineTaken { services: look.baseline.clone() }).await?;
        }
        let interrupt = self.core.stop.child_token();
        let core = &mut self.core;
        let queue = &mut self.queue;
        let end = {
            let work = switch::attempt(core, &look, rehearse, &interrupt);
            tokio::pin!(work);
            let mut open = true;
            loop {
                tokio::select! {
                    end = &mut work => break end?,
                    message = commands.recv(), if open => match message {
                        Some(message) => {
                            if matches!(message.command, Command::Cancel) {
                                interrupt.cancel();
                            }
                            queue.push_back(message);
                        }
                        None => open = false,
                    },
                }
            }
        };
        drop(entry);
        self.after_switch(end).await
    }

    async fn after_switch(&mut self, end: SwitchEnd) -> Result<(), EngineError> {
        self.attempt_again = Instant::now() + GATE_EVERY;
        self.watch = None;
        self.shadowed_until = None;
        self.soak = None;
        self.sampled.sweep = Instant::now() + self.core.settings().sweep_every;
        let asked = self.asked_switch.take();
        let by_goal = asked.is_none();
        let answer = match end {
            SwitchEnd::Committed(report) => {
                self.aborted = 0;
                Ok(CommandOutcome::Switched { report })
            }
            SwitchEnd::Rehearsed(report) => Ok(CommandOutcome::Rehearsed { report }),
            SwitchEnd::Aborted { why, report } => {
                self.aborted += 1;
                if by_goal && self.aborted >= self.core.settings().switch_attempts {
                    self.core.record_one(Event::GoalSet { goal: Goal::Ready }).await?;
                    let text = format!(
                        "the switch was aborted {} times, last by {why}; not trying again",
                        self.aborted
                    );
                    let hint = Some("see rehome report, then: rehome switch".to_owned());
                    self.remark_once("switch", &text, hint).await?;
                    self.aborted = 0;
                }
                Err(CommandError::Aborted { why, report: Some(report) })
            }
        };
        if let Some(asked) = asked {
            let _ = asked.reply.send(answer); // whoever asked may be gone
        }
        Ok(())
    }

    // ── commands ──

    async fn take_command(&mut self, message: CommandMessage) -> Result<(), EngineError> {
        let CommandMessage { command, actor, argv, reply } = message;
        let audit = Event::CommandReceived { command: command.name().into(), argv };
        let actor = Actor { name: actor, token: self.core.token() };
        self.core.record_as(actor, vec![audit]).await?;
        if let Some(refusal) = self.refusal(&command) {
            let _ = reply.send(Err(refusal));
            return Ok(());
        }
        let events = match command {
            Command::Switch { rehearse } | Command::Reverse { rehearse } => {
                let until = Instant::now() + self.core.settings().gate_patience;
                self.attempt_again = Instant::now();
                if matches!(command, Command::Reverse { .. }) && !rehearse {
                    // going back is a decision: the run must not switch again by itself
                    self.core.record_one(Event::GoalSet { goal: Goal::Following }).await?;
                }
                self.asked_switch = Some(AskedSwitch { rehearse, until, reply });
                return Ok(());
            }
            Command::Verify => {
                self.asked_verify.push(reply);
                return Ok(());
            }
            Command::Shift { percent, service } => {
                self.watch = None;
                reads::shift(&mut self.core, percent, service.as_deref()).await?;
                Vec::new()
            }
            Command::Goal { goal } => {
                self.aborted = 0;
                vec![Event::GoalSet { goal }]
            }
            Command::Pause => vec![Event::Paused],
            Command::Resume => vec![Event::Resumed],
            Command::Cancel => vec![Event::CancelBegan],
            Command::Complete => vec![Event::CompleteBegan],
            Command::Accept { gate } => vec![Event::GateAccepted { gate }],
        };
        self.core.record(events).await?;
        let answer = self.finish_command(&command_end(&self.core.state)).await?;
        let _ = reply.send(answer);
        Ok(())
    }

    /// Cancel and complete are answered when they have happened.
    async fn finish_command(
        &mut self,
        end: &Option<rehome_journal::Ending>,
    ) -> Result<Result<CommandOutcome, CommandError>, EngineError> {
        match end {
            Some(rehome_journal::Ending::Cancelling) => ending::cancel(&mut self.core).await?,
            Some(rehome_journal::Ending::Completing) => ending::complete(&mut self.core).await?,
            None => {}
        }
        Ok(Ok(CommandOutcome::Done))
    }

    /// Why a command does not fit here; pure.
    fn refusal(&self, command: &Command) -> Option<CommandError> {
        let state = &self.core.state;
        let phase = state.phase();
        let no =
            |why: &str, hint: &str| Some(CommandError::NotNow { phase, why: why.into(), hint: hint.into() });
        if state.stage.is_final() {
            return no("the run is over", "rehome report");
        }
        let following = state.stage >= Stage::Streaming;
        match command {
            Command::Switch { .. } | Command::Reverse { .. } if self.asked_switch.is_some() => {
                no("a switch is being prepared already", "rehome status --watch")
            }
            Command::Switch { .. } | Command::Reverse { .. } | Command::Shift { .. } | Command::Verify
                if state.paused =>
            {
                no("the run is paused", "rehome resume")
            }
            Command::Switch { .. } if state.owner == Side::Target => {
                no("the target owns the data already", "rehome reverse, or rehome complete")
            }
            Command::Switch { .. } if !state.verified || !following => {
                no("the sides were not compared yet", "rehome verify, or rehome apply --until ready")
            }
            Command::Reverse { .. } if state.owner == Side::Source => {
                no("the source owns the data", "rehome switch")
            }
            Command::Shift { percent, .. } if *percent > 100 => {
                no("a share is at most 100 %", "rehome shift 25%")
            }
            Command::Shift { .. } if !following || state.owner == Side::Target => {
                no("reads are shifted while following, before the switch", "rehome status")
            }
            Command::Verify if !following => no("nothing is copied yet", "rehome status --watch"),
            Command::Resume if !state.paused => no("the run is not paused", "rehome status"),
            Command::Cancel if state.owner == Side::Target => {
                no("the target owns the data", "rehome reverse first")
            }
            Command::Accept { gate } if !ACCEPTABLE.contains(&gate.as_str()) => no(
                &format!("no gate that a person can answer for is called `{gate}`"),
                &format!("one of {}", ACCEPTABLE.join(", ")),
            ),
            Command::Complete if phase != Phase::Switched => {
                no("only a switched run can be completed", "rehome switch")
            }
            _ => None,
        }
    }

    // ── ticks ──

    /// Samples for views, fences, sweep, and the health of the journal's copy; each at its own pace.
    async fn look_around(&mut self) -> Result<(), EngineError> {
        let now = Instant::now();
        let stage = self.core.state.stage;
        if stage >= Stage::Streaming
            && !stage.is_final()
            && self.core.state.owner == Side::Source
            && !self.core.state.paused
        {
            let (settings, flow, token) =
                (self.core.settings().clone(), self.core.state.flow(), self.core.token());
            self.core.units.start_freshness(&settings, flow, token);
        }
        if now >= self.sampled.next {
            self.sampled.next = now + self.sampled.pace(&self.core);
            self.sample().await?;
        }
        if now >= self.sampled.reconcile && !self.core.state.paused {
            reconcile::keep_fences(&mut self.core).await?;
            self.sampled.reconcile = Instant::now() + self.core.settings().reconcile_every;
        }
        if now >= self.sampled.sweep && stage == Stage::Reversing {
            reconcile::sweep(&mut self.core).await?;
            self.sampled.sweep = Instant::now() + self.core.settings().sweep_every;
        }
        if stage == Stage::Reversing && self.core.state.owner == Side::Target && !self.core.state.paused {
            self.watch_new_owner().await?;
        }
        Ok(())
    }

    /// Says when the new owner does worse than the old one did; goes back once if that was asked for.
    async fn watch_new_owner(&mut self) -> Result<(), EngineError> {
        let settings = self.core.settings();
        let watch = self.soak.get_or_insert_with(|| soak::Watch::begin(settings));
        if Instant::now() < watch.until {
            return Ok(());
        }
        let soak::Found::Worse { windows, text } = soak::look(&mut self.core, watch).await? else {
            return Ok(());
        };
        // Going back lowers the goal, so it happens once, also when the engine is another by then.
        let goes_back = self.core.settings().reverse_when_worse && self.core.state.goal >= Goal::Switched;
        let hint = if goes_back {
            "going back if that lasts"
        } else {
            "see what is slow or fails there, or: rehome reverse"
        };
        self.remark_once("soak", &format!("the new owner does worse: {text}"), Some(hint.into())).await?;
        if goes_back && windows >= soak::LASTING && self.asked_switch.is_none() {
            let text = "going back by itself, once, if the gates of the way back are met";
            self.remark_once("soak", text, None).await?;
            self.core.record_one(Event::GoalSet { goal: Goal::Following }).await?;
            let (reply, _) = oneshot::channel(); // nobody waits: the journal says what came of it
            let until = Instant::now() + self.core.settings().gate_patience;
            self.asked_switch = Some(AskedSwitch { rehearse: false, until, reply });
        }
        Ok(())
    }

    async fn sample(&mut self) -> Result<(), EngineError> {
        let mut events = Vec::new();
        for (part, (objects, bytes, total_objects, total_bytes)) in self.core.units.copy_totals() {
            events.push(Event::CopyProgressed { part, objects, bytes, total_objects, total_bytes });
        }
        if self.core.units.follows_anything() {
            let flow = self.core.state.flow();
            for part in self.core.state.parts.clone() {
                let follow = self.core.units.follow_state(&part);
                events.push(Event::LagSampled { part, flow, follow });
            }
        }
        if self.core.state.stage >= Stage::Prepared
            && let Ok(Ok(all)) = tokio::time::timeout(TICK * 10, self.core.world.gateways.status()).await
        {
            events.push(Event::TrafficSampled { services: reads::traffic(&all) });
        }
        events.retain(|event| self.sampled.is_new(event));
        self.watch_copy(&mut events);
        self.core.record(events).await
    }

    fn watch_copy(&mut self, events: &mut Vec<Event>) {
        let Some(health) = self.core.journal.copy_health() else { return };
        if health.error != self.core.copy_trouble {
            if let Some(error) = &health.error {
                events.push(Event::Diagnostic {
                    warning: true,
                    source: "journal-copy".into(),
                    text: format!("the copy of the journal failed: {error}"),
                    hint: Some(
                        "make the place named by `journal_copy` writable; the run itself goes on".into(),
                    ),
                });
            }
            self.core.copy_trouble = health.error;
        }
    }
}

impl Sampled {
    /// Often at the beginning of a state, seldom after hours in it: a soak of days must not fill the journal.
    fn pace(&self, core: &Core) -> Duration {
        let entered = core.stages.last().map_or(0, |(_, at)| core.boot_ms().saturating_sub(*at));
        Duration::from_millis(entered / 300).min(SELDOM).max(core.settings().sample_every)
    }

    /// A sample that says what the last one said is not worth a line.
    fn is_new(&mut self, event: &Event) -> bool {
        let key = match event {
            Event::CopyProgressed { part, .. } => format!("copy {part}"),
            Event::LagSampled { part, .. } => format!("lag {part}"),
            _ => event.kind(),
        };
        let text = serde_json::to_string(event).unwrap_or_default();
        self.last.insert(key, text.clone()) != Some(text)
    }

    fn soak_over(&self, core: &Core) -> bool {
        let Some((_, entered)) = core.stages.iter().rev().find(|(stage, _)| *stage == Stage::Reversing)
        else {
            // an engine that did not see the switch counts from its own beginning
            return core.started_at().elapsed() >= core.settings().soak;
        };
        Duration::from_millis(core.boot_ms().saturating_sub(*entered)) >= core.settings().soak
    }
}

fn command_end(state: &State) -> Option<rehome_journal::Ending> {
    state.ending
}

fn named(part: &str, mut error: PartError) -> PartError {
    error.text = format!("{part}: {}", error.text);
    error
}

fn new_run(setup: &Setup, run: &str, name: &str, world: &World, token_floor: Token) -> NewRun {
    let parts =
        world.parts.iter().map(|part| PartInfo { name: part.name().into(), kind: part.kind().into() });
    NewRun {
        run: run.into(),
        name: name.into(),
        parts: parts.collect(),
        services: world.services.iter().map(|service| service.name.clone()).collect(),
        tool_version: setup.version.clone(),
        actor: setup.holder.clone(),
        at_ms: world.clock.wall_millis(),
        token_floor,
    }
}

fn options(setup: &Setup) -> Options {
    Options { copy_to: setup.journal_copy.clone() }
}

fn check_parts(state: &State, world: &World) -> Result<(), EngineError> {
    let file: Vec<String> = world.parts.iter().map(|part| part.name().to_owned()).collect();
    let (mut a, mut b) = (state.parts.clone(), file);
    a.sort();
    b.sort();
    if a == b { Ok(()) } else { Err(EngineError::OtherParts { journal: a.join(", "), file: b.join(", ") }) }
}
