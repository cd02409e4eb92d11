//! Hidden commands: the background processes of a run, and of the demo's clouds. People never type them.

use super::Context;
use crate::daemon::faults::Fault;
use crate::daemon::launch::Extras;
use crate::daemon::{log, process};
use crate::exit::{CliError, Exit};
use crate::paths::RunFolder;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct EngineArgs {
    pub run: String,
    #[arg(long)]
    pub fault: Vec<Fault>,
    #[arg(long)]
    pub guard_fault: Vec<Fault>,
    #[arg(long)]
    pub sabotage: Vec<String>,
    #[arg(long)]
    pub end_with: Option<u32>,
}

#[derive(Debug, Args)]
pub struct GuardArgs {
    pub run: String,
    #[arg(long)]
    pub fault: Vec<Fault>,
    #[arg(long)]
    pub sabotage: Vec<String>,
    #[arg(long)]
    pub end_with: Option<u32>,
}

#[derive(Debug, Args)]
pub struct CloudArgs {
    #[arg(value_parser = ["s3", "shop", "postgres", "delay"])]
    pub what: String,
    pub config: PathBuf,
}

/// Leaves the terminal's session, so that neither Ctrl-C nor its end reaches this process.
fn detach() {
    // Fails only when this process leads a group already, and then it has left.
    let _ = rustix::process::setsid();
}

pub async fn engine(context: &Context<'_>, args: &EngineArgs) -> Result<Exit, CliError> {
    detach();
    let run = RunFolder::new(&context.home, &args.run);
    log::to_file(&run.log())?;
    let extras = Extras {
        faults: args.fault.clone(),
        guard_faults: args.guard_fault.clone(),
        sabotage: args.sabotage.clone(),
        end_with: args.end_with,
    };
    process::carry(context, &run, &extras, None).await
}

pub async fn guard(context: &Context<'_>, args: &GuardArgs) -> Result<Exit, CliError> {
    detach();
    let run = RunFolder::new(&context.home, &args.run);
    log::to_file(&run.guard_log())?;
    let extras = Extras {
        faults: args.fault.clone(),
        guard_faults: Vec::new(),
        sabotage: args.sabotage.clone(),
        end_with: args.end_with,
    };
    process::watch(context, &run, &extras).await
}

pub async fn cloud(_: &Context<'_>, args: &CloudArgs) -> Result<Exit, CliError> {
    log::to_stderr();
    let served = rehome_testkit::process(&args.what, &args.config).await;
    served.map_err(|error| CliError::failed(error.to_string()))?;
    Ok(Exit::Done)
}
