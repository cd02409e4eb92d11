//! `rehome recover`: a run whose journal is lost, rebuilt from its copy or from the gateways and the world; refused when they
//! disagree.

use super::Context;
use crate::exit::{CliError, Exit};
use clap::Args;
use std::path::PathBuf;

/// Rebuild a run whose journal was lost
///
/// From the copy that `journal_copy` keeps, if there is one; otherwise from what the gateways and both sides say. Refused,
/// with what each of them says, when they disagree.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The copy's folder, when it is not the one the migration file names
    #[arg(long, value_name = "DIR")]
    pub copy: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

pub async fn run(context: &Context<'_>, args: &RecoverArgs) -> Result<Exit, CliError> {
    crate::daemon::recover::run(context, args).await
}
