//! `rehome runs`: every run on this machine.

use super::Context;
use crate::exit::{CliError, Exit};
use crate::paths::{self, RunFolder};
use crate::printer::{span, style};
use crate::view::follow::now_ms;
use clap::Args;
use rehome_journal::{Now, RunView};

/// List the runs on this machine
#[derive(Debug, Args)]
pub struct RunsArgs {
    /// Names only
    #[arg(short, long)]
    pub quiet: bool,
}

/// Is this a run of the migration of that name?
pub fn belongs_to(run: &RunFolder, name: &str) -> bool {
    let folder = run.name();
    folder == name
        || folder
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|n| n.parse::<u32>().is_ok())
}

pub fn is_over(run: &RunFolder) -> bool {
    RunView::load(&run.path).is_ok_and(|view| view.stage.is_final())
}

pub fn run(context: &Context<'_>, args: &RunsArgs) -> Result<Exit, CliError> {
    let printer = context.printer;
    let runs = paths::all_runs(&context.home)?;
    if args.quiet && !printer.json {
        runs.iter().for_each(|run| printer.line(&run.name()));
        return Ok(Exit::Done);
    }
    let views: Vec<(RunFolder, Result<RunView, rehome_journal::Error>)> =
        runs.into_iter().map(|run| (run.clone(), RunView::load(&run.path))).collect();
    if printer.json {
        let rows = views.iter().map(|(run, view)| match view {
            Ok(view) => serde_json::json!({ "name": run.name(), "phase": view.phase, "owner": view.owner, "engine_alive": alive(view), "created_ms": view.created_ms, "next": view.next_action }),
            Err(error) => serde_json::json!({ "name": run.name(), "error": error.to_string() }),
        });
        printer.json(&serde_json::json!({ "ui": "1.0", "runs": rows.collect::<Vec<_>>() }));
        return Ok(Exit::Done);
    }
    if views.is_empty() {
        printer.talk("no runs yet");
        printer.hint("begin one with `rehome apply`, or look at `rehome demo`");
        return Ok(Exit::Done);
    }
    let bold = style::BOLD;
    printer.line(&format!(
        "{bold}{:<20} {:<11} {:<8} {:<8} {:<14} NEXT{}",
        "RUN",
        "PHASE",
        "OWNER",
        "ENGINE",
        "AGE",
        bold.render_reset()
    ));
    for (run, view) in &views {
        match view {
            Ok(view) => printer.line(&format!(
                "{:<20} {:<11} {:<8} {:<8} {:<14} {}",
                run.name(),
                view.phase.name(),
                view.owner.to_string(),
                if alive(view) { "alive" } else { "none" },
                span((now_ms() - view.created_ms).max(0) as f64 / 1e3),
                view.next_action
            )),
            Err(error) => printer.line(&format!("{:<20} cannot be read: {error}", run.name())),
        }
    }
    Ok(Exit::Done)
}

pub fn alive(view: &RunView) -> bool {
    view.lease.as_ref().is_some_and(|lease| lease.is_alive(&Now::read()))
}
