//! The life of a run's background process: make the world, take the run, answer on the socket, carry the engine to its end.

use super::launch::Extras;
use super::socket::{self, Answering};
use super::wire::{Order, Reply, Verb};
use super::world;
use crate::commands::{self, Context};
use crate::exit::{CliError, Exit};
use crate::paths::RunFolder;
use async_trait::async_trait;
use rehome_engine::{
    ACCEPTABLE, Command, CommandError, CommandMessage, CommandOutcome, DecisionAnswer, Engine, EngineError,
    Goal, RunEnd, Setup,
    guard::{self, GuardEnd},
};
use rehome_gateway::control::{Answer, Question, Refusal};
use rehome_journal::GateRecord;
use rehome_part::{Epoch, Side};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Carries the engine of `run` until the run is over, it is told to stop, or another engine takes the run over.
pub async fn carry(
    context: &Context<'_>,
    run: &RunFolder,
    extras: &Extras,
    goal: Option<Goal>,
) -> Result<Exit, CliError> {
    let migration = commands::load(&run.migration(), context.printer)?;
    let world = world::build(context, run, &migration, extras)?;
    let setup = setup(run, &migration, "engine");
    let engine = if run.exists() {
        Engine::open(setup, world).await
    } else {
        Engine::create(setup, &run.name(), &migration.migration.name, world).await
    };
    serve(run, engine.map_err(|error| cannot(&error))?, goal, extras).await
}

/// Begins the journal of `run` again from what gateways and world say, and lets go of it at once.
pub async fn recover(context: &Context<'_>, run: &RunFolder) -> Result<(Epoch, Side), CliError> {
    let migration = commands::load(&run.migration(), context.printer)?;
    let world = world::build(context, run, &migration, &Extras::default())?;
    let setup = setup(run, &migration, "recovery");
    let recovered = Engine::recover(setup, &run.name(), &migration.migration.name, world).await;
    let engine = recovered.map_err(|error| cannot(&error))?;
    let (epoch, owner) = (engine.state().epoch, engine.state().owner);
    let (_orders, commands) = mpsc::channel(1);
    let stop = CancellationToken::new();
    stop.cancel();
    Box::pin(engine.run(commands, stop)).await.map_err(|error| cannot(&error))?;
    Ok((epoch, owner))
}

/// Watches the engine of `run`; becomes the engine when that one falls silent.
pub async fn watch(context: &Context<'_>, run: &RunFolder, extras: &Extras) -> Result<Exit, CliError> {
    let migration = commands::load(&run.migration(), context.printer)?;
    let stop = CancellationToken::new();
    end_on_signals(&stop)?;
    // Gateways ask here when the engine's socket is silent; a guard answers questions, orders it refuses.
    let answers = Arc::new(Answers { folder: run.path.clone(), orders: None, stop: stop.clone() });
    let guard_stop = CancellationToken::new();
    socket::listen(&run.guard_socket(), run.read_secret()?, answers, guard_stop.clone()).await?;
    let world = world::build(context, run, &migration, extras)?;
    let watched = guard::watch(setup(run, &migration, "guard"), world, stop.clone()).await;
    guard_stop.cancel();
    match watched.map_err(|error| cannot(&error))? {
        GuardEnd::TookOver(engine) => {
            tracing::warn!("the engine was silent; this guard is the engine now");
            serve(run, *engine, None, extras).await
        }
        GuardEnd::Quiet => Ok(Exit::Done),
    }
}

fn setup(run: &RunFolder, migration: &rehome_spec::Migration, role: &str) -> Setup {
    Setup {
        folder: run.path.clone(),
        holder: format!("{role} pid {}", std::process::id()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        journal_copy: migration.migration.journal_copy.as_ref().map(|folder| folder.join(run.name())),
        settings: world::settings(migration),
    }
}

fn cannot(error: &EngineError) -> CliError {
    match error {
        EngineError::Held(lease) => CliError::failed(format!("the run is held by {}", lease.holder))
            .hint("its commands reach that engine; if it is dead, its lease ends within seconds"),
        error => CliError::failed(error.to_string()),
    }
}

fn end_on_signals(stop: &CancellationToken) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::failed(error.to_string());
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to end; the run goes on with the next engine");
        stop.cancel();
    });
    Ok(())
}

/// Fires `stop` when the process `pid` is gone.
fn end_with(pid: u32, stop: &CancellationToken) {
    let (stop, place) = (stop.clone(), PathBuf::from(format!("/proc/{pid}")));
    tokio::spawn(async move {
        while place.exists() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        stop.cancel();
    });
}

async fn serve(
    run: &RunFolder,
    engine: Engine,
    goal: Option<Goal>,
    extras: &Extras,
) -> Result<Exit, CliError> {
    let stop = CancellationToken::new();
    end_on_signals(&stop)?;
    if let Some(pid) = extras.end_with {
        end_with(pid, &stop);
    }
    let (orders, commands) = mpsc::channel(16);
    if let Some(goal) = goal {
        let (reply, _ignored) = oneshot::channel();
        let message = CommandMessage {
            command: Command::Goal { goal },
            actor: crate::audit::actor(),
            argv: std::env::args().skip(1).collect(),
            reply,
        };
        orders.send(message).await.map_err(|_| CliError::failed("the engine takes no orders"))?;
    }
    let answers = Arc::new(Answers { folder: run.path.clone(), orders: Some(orders), stop: stop.clone() });
    let listening = CancellationToken::new();
    socket::listen(&run.socket(), run.read_secret()?, answers, listening.clone()).await?;
    let ended = Box::pin(engine.run(commands, stop)).await;
    listening.cancel();
    match ended {
        Ok(RunEnd::Final(phase)) => {
            tracing::info!("the run is {phase}");
            Ok(Exit::Done)
        }
        Ok(RunEnd::Stopped) => Ok(Exit::Done),
        Err(error) => {
            tracing::error!("the engine ended: {error}");
            Err(cannot(&error))
        }
    }
}

/// What this process answers on its socket.
struct Answers {
    folder: PathBuf,
    /// `None` in a guard that only watches.
    orders: Option<mpsc::Sender<CommandMessage>>,
    stop: CancellationToken,
}

#[async_trait]
impl Answering for Answers {
    async fn question(&self, question: Question) -> Answer {
        let Question::Decision { epoch, .. } = question;
        let folder = self.folder.clone();
        let read = tokio::task::spawn_blocking(move || rehome_engine::decision(&folder, epoch)).await;
        match read {
            Ok(Ok(DecisionAnswer::Undecided)) => Answer::Undecided,
            Ok(Ok(DecisionAnswer::Settled { epoch, owner, token })) => {
                Answer::Settled { epoch, owner, token }
            }
            Ok(Err(error)) => Answer::Refused { why: Refusal::Failed, text: error.to_string() },
            Err(error) => Answer::Refused { why: Refusal::Failed, text: error.to_string() },
        }
    }

    async fn order(&self, order: Order) -> Reply {
        let Some(orders) = &self.orders else {
            return refused(Exit::Failed, "this is the guard, and the engine is alive", "ask the engine");
        };
        let command = match order.verb {
            Verb::Ping => return Reply::Done { outcome: CommandOutcome::Done },
            Verb::Stop => {
                self.stop.cancel();
                return Reply::Done { outcome: CommandOutcome::Done };
            }
            Verb::Give { command } => command,
        };
        let (reply, answer) = oneshot::channel();
        let message = CommandMessage { command, actor: order.actor, argv: order.arguments, reply };
        if orders.send(message).await.is_err() {
            return explain(CommandError::Stopped);
        }
        match answer.await {
            Ok(Ok(outcome)) => Reply::Done { outcome },
            Ok(Err(error)) => explain(error),
            Err(_) => explain(CommandError::Stopped),
        }
    }
}

fn refused(exit: Exit, text: &str, hint: &str) -> Reply {
    Reply::Refused { exit_code: exit.code(), text: text.to_owned(), hints: vec![hint.to_owned()] }
}

/// An engine's refusal in the words and exit codes of the command line.
fn explain(error: CommandError) -> Reply {
    let text = error.to_string();
    match error {
        CommandError::NotNow { hint, .. } => refused(Exit::Failed, &text, &hint),
        CommandError::GateNotMet { gates } => {
            let mut hints = vec!["nothing was changed; see `rehome status`".to_owned()];
            let can_be_answered = |gate: &GateRecord| ACCEPTABLE.contains(&gate.name.as_str());
            if gates.iter().all(can_be_answered) {
                let yes: Vec<String> = gates.iter().map(|gate| format!("--accept {}", gate.name)).collect();
                hints.push(format!("if you can answer for it: the same with `{}`", yes.join(" ")));
            }
            Reply::Refused { exit_code: Exit::GateNotMet.code(), text, hints }
        }
        CommandError::Aborted { .. } => refused(
            Exit::GateNotMet,
            &text,
            "the old owner serves as before; see `rehome report`, then try again",
        ),
        CommandError::Failed { error, .. } => {
            let failed = CliError::from(error);
            Reply::Refused { exit_code: failed.exit.code(), text, hints: failed.hints }
        }
        CommandError::Stuck { trouble } => refused(Exit::Stuck, &text, &trouble.how_to_fix),
        CommandError::Stopped => refused(Exit::Failed, &text, "see `rehome status`; `rehome apply` goes on"),
    }
}
