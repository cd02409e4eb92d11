//! `rehome entry DRIVER VERB`: what stands in front of the gateways and is not ours; a file per driver.

pub mod keepalived;

use super::Context;
use crate::exit::{CliError, Exit};
use clap::{Args, Subcommand};
use rehome_entry::EntryError;

/// Work with what stands in front of the gateways
///
/// Each driver reads what is there, shows a change before it makes it, proves it, and can take it back.
#[derive(Debug, Args)]
pub struct EntryArgs {
    #[command(subcommand)]
    pub driver: Driver,
}

#[derive(Debug, Subcommand)]
pub enum Driver {
    Keepalived(keepalived::KeepalivedArgs),
}

pub async fn run(context: &Context<'_>, args: &EntryArgs) -> Result<Exit, CliError> {
    match &args.driver {
        Driver::Keepalived(args) => keepalived::run(context, args).await,
    }
}

impl From<EntryError> for CliError {
    fn from(error: EntryError) -> Self {
        let exit = match &error {
            EntryError::Unreachable { .. } => Exit::Network,
            EntryError::Refused { .. } => Exit::Credentials,
            EntryError::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Exit::NotFound
            }
            _ => Exit::Failed,
        };
        let text = error.to_string();
        match error {
            EntryError::Unfit { hint, .. } => Self::new(exit, text).hint(hint),
            _ => Self::new(exit, text),
        }
    }
}
