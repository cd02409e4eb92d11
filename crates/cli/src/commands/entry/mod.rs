//! `rehome entry DRIVER VERB`: what stands in front of the gateways and is not ours; a file per driver.

pub mod dns;
pub mod haproxy;
pub mod keepalived;
pub mod nginx;
mod services;
mod shown;

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
    Dns(Box<dns::DnsArgs>),
    Haproxy(Box<haproxy::HaproxyArgs>),
    Keepalived(Box<keepalived::KeepalivedArgs>),
    Nginx(Box<nginx::NginxArgs>),
}

pub async fn run(context: &Context<'_>, args: &EntryArgs) -> Result<Exit, CliError> {
    match &args.driver {
        Driver::Dns(args) => Box::pin(dns::run(context, args)).await,
        Driver::Haproxy(args) => Box::pin(haproxy::run(context, args)).await,
        Driver::Nginx(args) => Box::pin(nginx::run(context, args)).await,
        Driver::Keepalived(args) => keepalived::run(context, args).await,
    }
}

impl From<EntryError> for CliError {
    fn from(error: EntryError) -> Self {
        let exit = match &error {
            EntryError::Unreachable { .. } => Exit::Network,
            EntryError::Refused { .. } => Exit::Credentials,
            EntryError::NotNow { .. } => Exit::GateNotMet,
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
