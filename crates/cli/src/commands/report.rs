//! `rehome report`: what a run did, from its journal.

use super::Context;
use crate::exit::{CliError, Exit};
use crate::view::follow::journal_error;
use crate::view::report;
use clap::Args;
use rehome_journal::RunView;

/// Report what a run did: objects, pause beside its prediction, time per phase
#[derive(Debug, Args)]
pub struct ReportArgs {}

pub fn run(context: &Context<'_>, _: &ReportArgs) -> Result<Exit, CliError> {
    let run = context.run_folder()?;
    let view = RunView::load(&run.path).map_err(|error| journal_error(&error))?;
    report::show(context.printer, &view);
    Ok(Exit::Done)
}
