//! `rehome db VERB`: databases by themselves, without a migration; a file per verb.

pub mod assess;
pub mod verify;

use super::{Context, resolve};
use crate::exit::{CliError, Exit};
use clap::{Args, Subcommand};
use rehome_databases::{Address, Engine};
use rehome_spec::Secret;

/// Work with databases by themselves: what stands in the way of moving one, and whether two hold the same
///
/// PostgreSQL 12 to 18: postgres://user@host:port/database; MariaDB 10.5 and newer and MySQL: mysql://user@host:port/schema; Redis 6.0
/// to 7.4: redis://user@host:port. No password is written into an address; it is named by reference, and
/// without a reference PGPASSWORD, MYSQL_PWD or REDISCLI_AUTH is used if it is set. The certificate of a server on another machine is verified
/// (`?sslrootcert=FILE` names an authority, `?sslmode=disable` does without TLS). Only reads.
#[derive(Debug, Args)]
pub struct DbArgs {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    Assess(assess::AssessArgs),
    Verify(verify::VerifyArgs),
}

pub async fn run(context: &Context<'_>, args: &DbArgs) -> Result<Exit, CliError> {
    match &args.verb {
        Verb::Assess(args) => assess::run(context, args).await,
        Verb::Verify(args) => verify::run(context, args).await,
    }
}

/// An address, and its password if there is one.
fn end(text: &str, password: Option<&String>, what: &str) -> Result<(Address, Option<String>), CliError> {
    let address = Address::parse(text)
        .map_err(|error| CliError::usage(format!("{what}: {}", error.text)).hint(error.hint))?;
    let password = match password {
        Some(reference) => {
            let secret = Secret(reference.clone());
            Some(resolve(&secret).map_err(|why| CliError::new(Exit::Credentials, format!("{what}: {why}")))?)
        }
        None => std::env::var(variable(address.engine)).ok().filter(|password| !password.is_empty()),
    };
    Ok((address, password))
}

/// Where each engine's own tools look for a password.
fn variable(engine: Engine) -> &'static str {
    match engine {
        Engine::Postgres => "PGPASSWORD",
        Engine::Mysql => "MYSQL_PWD",
        Engine::Redis => "REDISCLI_AUTH",
    }
}
