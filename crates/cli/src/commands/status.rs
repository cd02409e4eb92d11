//! `rehome status`: where a run stands, from its journal, with or without an engine.

use super::{Context, runs};
use crate::exit::{CliError, Exit};
use crate::view::follow::{self, Ended, journal_error, now_ms};
use crate::view::tree;
use clap::Args;
use rehome_journal::{Phase, RunView};

/// Show where a run stands
///
/// Works without an engine too: the journal is all it reads. Exits 22 when the run is stuck.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Keep showing it until the run ends
    #[arg(short, long)]
    pub watch: bool,
}

pub async fn run(context: &Context<'_>, args: &StatusArgs) -> Result<Exit, CliError> {
    let printer = context.printer;
    let run = context.run_folder()?;
    let view = RunView::load(&run.path).map_err(|error| journal_error(&error))?;
    if args.watch {
        let ended = follow::until(printer, &run, view.last_seq, |view| view.stage.is_final()).await?;
        return Ok(if ended == Ended::Stuck { Exit::Stuck } else { Exit::Done });
    }
    let alive = runs::alive(&view);
    if printer.json {
        printer
            .json(&serde_json::json!({ "type": "status", "ui": "1.0", "engine_alive": alive, "view": view }));
    } else {
        tree::draw(&view, now_ms(), "").iter().for_each(|line| printer.line(line));
        for gate in view.gates.iter().filter(|gate| !gate.is_met()) {
            printer.line(&format!("   gate {}: {} (wanted {})", gate.name, gate.value, gate.limit));
        }
        if !alive && !view.stage.is_final() {
            printer.warning("no engine is alive; users are served all the same, but nothing follows");
            printer.hint(&format!("go on with `rehome apply --run {}`", run.name()));
        } else {
            printer.hint(&format!("next: {}", view.next_action));
        }
    }
    Ok(if view.phase == Phase::Stuck { Exit::Stuck } else { Exit::Done })
}
