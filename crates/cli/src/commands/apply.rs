//! `rehome apply`: begins a run or goes on with it, starts its engine in the background, and shows it.

use super::{Context, plan, runs};
use crate::daemon::faults::Fault;
use crate::daemon::launch::{self, Extras};
use crate::daemon::{log, process};
use crate::exit::{CliError, Exit, with_path};
use crate::paths::{self, RunFolder};
use crate::view::follow::{self, Ended, journal_error};
use crate::view::lines;
use clap::{Args, ValueEnum};
use rehome_engine::Command;
use rehome_journal::{Goal, RunView, Stage};
use rehome_part::{Severity, Side};
use std::path::{Path, PathBuf};

/// Begin a migration, or go on with it
///
/// The work is done by an engine in the background; this command shows it. Ctrl-C leaves, the run goes on, and the same
/// command comes back to it. Killed at any point, `rehome apply` goes on where it was.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// A plan kept by `rehome plan -o`; refused when it is stale
    #[arg(value_name = "PLAN")]
    pub plan: Option<PathBuf>,
    /// How far to go
    #[arg(long, value_enum, default_value_t = Until::Switched, value_name = "STATE")]
    pub until: Until,
    /// Answer for a gate by its name, e.g. no-bypass; repeatable
    #[arg(long, value_name = "GATE", value_parser = super::steer::gate)]
    pub accept: Vec<String>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Start it and come back at once
    #[arg(long)]
    pub detach: bool,
    /// Carry the engine in this process, for systemd
    #[arg(long)]
    pub foreground: bool,
    #[command(flatten)]
    pub instruments: Instruments,
}

/// How far `apply` goes before it waits for further commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Until {
    /// Everything copied, changes followed
    Following,
    /// Verified, and only the switch is left
    Ready,
    /// The target owns the application, the way back is kept ready
    Switched,
}

impl Until {
    pub fn goal(self) -> Goal {
        match self {
            Self::Following => Goal::Following,
            Self::Ready => Goal::Ready,
            Self::Switched => Goal::Switched,
        }
    }
}

/// Test instruments; nothing of it is for users.
#[derive(Debug, Args, Default, Clone)]
pub struct Instruments {
    #[arg(long, hide = true)]
    pub fault: Vec<Fault>,
    #[arg(long, hide = true)]
    pub guard_fault: Vec<Fault>,
    #[arg(long, hide = true)]
    pub sabotage: Vec<String>,
    /// The engine ends when this process is gone
    #[arg(long, hide = true, value_name = "PID")]
    pub end_with: Option<u32>,
}

impl Instruments {
    pub fn extras(&self) -> Extras {
        Extras {
            faults: self.fault.clone(),
            guard_faults: self.guard_fault.clone(),
            sabotage: self.sabotage.clone(),
            end_with: self.end_with,
        }
    }
}

pub async fn run(context: &Context<'_>, args: &ApplyArgs) -> Result<Exit, CliError> {
    let run = match existing(context)? {
        Some(run) => {
            if let Some(path) = &args.plan {
                let text =
                    format!("run {} is under way already; {} is for a new one", run.name(), path.display());
                context.printer.warning(&text);
            }
            confirm(context, args, Some(&run))?;
            run
        }
        None => begin(context, args).await?,
    };
    if args.foreground {
        log::to_stderr();
        return process::carry(context, &run, &args.instruments.extras(), Some(args.until.goal())).await;
    }
    let from = RunView::load(&run.path).map_or(0, |view| view.last_seq);
    let mut engine = launch::ensure(context, &run, &args.instruments.extras()).await?;
    for gate in &args.accept {
        engine.give(Command::Accept { gate: gate.clone() }).await?;
    }
    engine.give(Command::Goal { goal: args.until.goal() }).await?;
    if args.detach {
        context.printer.talk(&format!("run {} goes on in the background", run.name()));
        context.printer.hint(&format!("watch it: `rehome status --watch --run {}`", run.name()));
        return Ok(Exit::Done);
    }
    watch(context, &run, from, args.until).await
}

/// The run that this command goes on with, if there is one that is not over.
fn existing(context: &Context<'_>) -> Result<Option<RunFolder>, CliError> {
    if context.global.run.is_some() {
        return context.run_folder().map(Some);
    }
    let (_, migration) = context.migration()?;
    let open = paths::all_runs(&context.home)?
        .into_iter()
        .find(|run| runs::belongs_to(run, &migration.migration.name) && !runs::is_over(run));
    Ok(open)
}

async fn begin(context: &Context<'_>, args: &ApplyArgs) -> Result<RunFolder, CliError> {
    let (path, migration) = context.migration()?;
    let now = plan::make(&path, &migration).await?;
    match &args.plan {
        Some(kept) => plan::check_fresh(&read_plan(kept)?, &now)?,
        None if !context.global.json => plan::show(context, &now),
        None => {}
    }
    let blockers: Vec<&str> = now
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Blocker)
        .map(|finding| finding.text.as_str())
        .collect();
    if !blockers.is_empty() {
        let text =
            format!("{} things are in the way, nothing was done: {}", blockers.len(), blockers.join("; "));
        return Err(CliError::failed(text).hint("see the remedies: `rehome doctor` and `rehome plan`"));
    }
    confirm(context, args, None)?;
    let run = RunFolder::new(&context.home, &free_name(context, &migration.migration.name)?);
    paths::private_folder(&context.home)?;
    run.create(&std::fs::read_to_string(&path).map_err(with_path(&path))?)?;
    Ok(run)
}

/// `shop`, then `shop-2`, `shop-3`, … once the former ones are over.
fn free_name(context: &Context<'_>, name: &str) -> Result<String, CliError> {
    let taken = |candidate: &str| RunFolder::new(&context.home, candidate).exists();
    if !taken(name) {
        return Ok(name.to_owned());
    }
    (2..10_000u32)
        .map(|number| format!("{name}-{number}"))
        .find(|candidate| !taken(candidate))
        .ok_or_else(|| CliError::failed(format!("there are too many runs of {name}; remove old ones")))
}

fn read_plan(path: &Path) -> Result<plan::Plan, CliError> {
    let text = std::fs::read_to_string(path).map_err(with_path(path))?;
    serde_json::from_str(&text).map_err(|error| {
        CliError::failed(format!("{}: not a plan: {error}", path.display()))
            .hint("make one: `rehome plan -o plan.json`")
    })
}

/// Going on with a run needs a yes only where it leads to a switch that was not said yes to before.
fn confirm(context: &Context<'_>, args: &ApplyArgs, run: Option<&RunFolder>) -> Result<(), CliError> {
    let agreed = run
        .and_then(|run| RunView::load(&run.path).ok())
        .is_some_and(|view| view.goal >= Goal::Switched || view.owner == Side::Target);
    if args.until != Until::Switched || agreed {
        return Ok(());
    }
    context
        .printer
        .confirm("This goes up to the switch: the target will own the application.", args.yes)
        .map_err(|error| error.hint("or stop before the switch: `rehome apply --until ready`"))
}

async fn watch(context: &Context<'_>, run: &RunFolder, from: u64, until: Until) -> Result<Exit, CliError> {
    let printer = context.printer;
    let ended =
        follow::until(printer, run, from, |view| has_reached(view, until) || has_given_up(view, until))
            .await?;
    let view = RunView::load(&run.path).map_err(|error| journal_error(&error))?;
    match ended {
        Ended::Detached => {
            printer.talk("left; the run goes on");
            printer.hint(&format!(
                "come back: `rehome apply --run {}`; stop it for a while: `rehome pause`",
                run.name()
            ));
            return Ok(Exit::Done);
        }
        Ended::Stuck => {
            let trouble = view.stuck.as_ref().map_or_else(String::new, |trouble| {
                format!("{}: {}; true now: {}", trouble.step, trouble.why, trouble.what_is_true)
            });
            let fix = view.stuck.map(|trouble| trouble.how_to_fix).unwrap_or_default();
            return Err(CliError::new(Exit::Stuck, format!("stuck at {trouble}")).hint(fix));
        }
        Ended::EngineGone => {
            return Err(CliError::failed("no engine is alive; users are served, but the run stands still")
                .hint("the same command goes on where it was")
                .hint(format!("what happened: {}", run.log().display())));
        }
        Ended::Reached => {}
    }
    if has_reached(&view, until) {
        if !printer.json {
            printer.hint(&format!("next: {}", view.next_action));
        }
        return Ok(Exit::Done);
    }
    if was_taken_back(&view) {
        let text = format!("run {} was taken back: the source owns the writes, and is followed", run.name());
        return Err(CliError::new(Exit::Reversed, text)
            .hint("go there again: `rehome switch`")
            .hint("leave it so: `rehome complete`"));
    }
    let why = view.last_switch.as_ref().map_or_else(|| unmet_gates(&view), lines::outcome);
    Err(CliError::new(Exit::GateNotMet, format!("{}: {why}", view.phase))
        .hint("see the gates: `rehome status`"))
}

fn unmet_gates(view: &RunView) -> String {
    let unmet: Vec<String> = view
        .gates
        .iter()
        .filter(|gate| !gate.is_met())
        .map(|gate| format!("gate {} is not met: {} (wanted {})", gate.name, gate.value, gate.limit))
        .collect();
    if unmet.is_empty() { "the goal was given up".into() } else { unmet.join("; ") }
}

fn has_reached(view: &RunView, until: Until) -> bool {
    let switched = matches!(view.stage, Stage::Reversing | Stage::Final) && view.owner == Side::Target;
    match until {
        Until::Following => view.stage >= Stage::Streaming,
        Until::Ready => {
            view.verified.is_some_and(|(_, _, differ)| differ == 0) && view.stage >= Stage::Verified
        }
        Until::Switched => switched,
    }
}

/// There and back again: the next time is a switch of the same run.
fn was_taken_back(view: &RunView) -> bool {
    view.stage == Stage::Reversing && view.owner == Side::Source
}

/// The engine took the goal up before we began to watch; now it is lower (gates that stay unmet, aborted attempts, a
/// cancel), so waiting longer is no use.
fn has_given_up(view: &RunView, until: Until) -> bool {
    view.stage == Stage::Cancelled
        || (until == Until::Switched && was_taken_back(view))
        || (view.goal < until.goal() && !view.stage.in_switch())
}
