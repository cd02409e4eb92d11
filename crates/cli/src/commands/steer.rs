//! The commands that steer a run under way: each is one order to its engine, shown until it is done.

use super::Context;
use crate::daemon::gateways;
use crate::exit::{CliError, Exit};
use crate::printer::count;
use crate::view::follow::{self, journal_error};
use crate::view::lines;
use clap::Args;
use rehome_engine::{ACCEPTABLE, Command, CommandOutcome};
use rehome_gateway::control::ServiceStatus;
use rehome_journal::RunView;
use std::cell::Cell;
use std::time::Duration;

/// Compare both sides independently; exits 10 when they differ
#[derive(Debug, Args)]
pub struct VerifyArgs {}

/// Send a share of the reads to the other side
///
/// Takes effect within milliseconds, without a reload. Clients that wrote go on reading from the owner until their write
/// has arrived; nobody reads the other side while its lag is unknown or above the service's bound.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  rehome shift 25%\n  rehome shift 0")]
pub struct ShiftArgs {
    /// The share, e.g. 25%
    #[arg(value_name = "PERCENT", value_parser = percent)]
    pub percent: u8,
}

/// Move the ownership to the other side: hold, fence, drain, verify, seal, commit, open
#[derive(Debug, Args)]
pub struct SwitchArgs {
    /// Go up to the commit, take it back, and report how long writes waited
    #[arg(long)]
    pub rehearse: bool,
    /// Answer for a gate by its name, e.g. no-bypass; repeatable
    #[arg(long, value_name = "GATE", value_parser = gate)]
    pub accept: Vec<String>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// Switch back to the source, with everything written since
#[derive(Debug, Args)]
pub struct ReverseArgs {
    /// Answer for a gate by its name, e.g. no-bypass; repeatable
    #[arg(long, value_name = "GATE", value_parser = gate)]
    pub accept: Vec<String>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// Stop copying and following for a while; users are not affected
#[derive(Debug, Args)]
pub struct PauseArgs {}

/// Go on after a pause
#[derive(Debug, Args)]
pub struct ResumeArgs {}

/// Give the migration up and take back what was made on the target
///
/// Only while the source is the owner; after a switch, `rehome reverse` comes first.
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// End the migration: no way back from here
///
/// The source stays closed to writes and is left as it is. Refused while users still come through the gateway: take it out
/// of their path first.
#[derive(Debug, Args)]
pub struct CompleteArgs {
    /// Complete although requests still arrive at the gateway (it goes on sending them to the target)
    #[arg(long)]
    pub accept_traffic: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// A gate that a person can answer for.
pub fn gate(name: &str) -> Result<String, String> {
    if ACCEPTABLE.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(format!("no gate that you can answer for is called that; write one of {}", ACCEPTABLE.join(", ")))
}

/// Says yes to gates before the order that needs it; each yes stands in the journal.
async fn accept(context: &Context<'_>, gates: &[String]) -> Result<(), CliError> {
    for gate in gates {
        steer(context, Command::Accept { gate: gate.clone() }, true).await?;
    }
    Ok(())
}

fn percent(text: &str) -> Result<u8, String> {
    let number = text.trim().trim_end_matches('%').trim();
    number
        .parse::<u8>()
        .ok()
        .filter(|share| *share <= 100)
        .ok_or_else(|| "write a share from 0% to 100%, like 25%".to_owned())
}

/// Gives the order, shows what happens until it is done, and says how it ended.
async fn steer(context: &Context<'_>, command: Command, quiet: bool) -> Result<CommandOutcome, CliError> {
    let run = context.run_folder()?;
    let before = RunView::load(&run.path).map_err(|error| journal_error(&error))?;
    if before.stage.is_final() {
        return Err(CliError::failed(format!(
            "run {} is {}; there is nothing to steer",
            run.name(),
            before.phase
        ))
        .hint("see `rehome report`"));
    }
    let mut engine = context.engine(&run).await?;
    if quiet {
        return engine.give(command).await;
    }
    let answered = Cell::new(false);
    let order = async {
        let answer = engine.give(command).await;
        answered.set(true);
        answer
    };
    let (answer, watched) =
        tokio::join!(order, follow::until(context.printer, &run, before.last_seq, |_| answered.get()));
    watched?;
    answer
}

/// Asks, but only about a run that is there.
fn confirm(context: &Context<'_>, question: &str, yes: bool) -> Result<(), CliError> {
    let run = context.run_folder()?;
    context.printer.confirm(&format!("{}: {question}", run.name()), yes)
}

fn say(context: &Context<'_>, outcome: &CommandOutcome, done: &str) {
    let text = match outcome {
        CommandOutcome::Done => done.to_owned(),
        CommandOutcome::Verified { compared, differences_total, .. } => {
            format!("{} objects compared, {} differ", count(*compared), count(*differences_total))
        }
        CommandOutcome::Switched { report } | CommandOutcome::Rehearsed { report } => lines::outcome(report),
    };
    if context.global.json {
        context.printer.json(
            &serde_json::json!({ "type": "summary", "ui": "1.0", "message": text, "outcome": outcome }),
        );
    } else {
        context.printer.line(&text);
    }
}

pub async fn verify(context: &Context<'_>, _: &VerifyArgs) -> Result<Exit, CliError> {
    let outcome = steer(context, Command::Verify, false).await?;
    say(context, &outcome, "");
    let CommandOutcome::Verified { differences, differences_total, .. } = &outcome else {
        return Ok(Exit::Done);
    };
    if !context.global.json {
        differences.iter().for_each(|difference| context.printer.line(&super::doctor::line(difference)));
    }
    Ok(if *differences_total == 0 { Exit::Done } else { Exit::Differences })
}

pub async fn shift(context: &Context<'_>, args: &ShiftArgs) -> Result<Exit, CliError> {
    let outcome = steer(context, Command::Shift { percent: args.percent, service: None }, true).await?;
    say(context, &outcome, &format!("{} % of reads go to the other side", args.percent));
    Ok(Exit::Done)
}

pub async fn switch(context: &Context<'_>, args: &SwitchArgs) -> Result<Exit, CliError> {
    if !args.rehearse {
        confirm(context, "Writes will wait for a moment and then go to the other side.", args.yes)?;
    }
    accept(context, &args.accept).await?;
    let outcome = steer(context, Command::Switch { rehearse: args.rehearse }, false).await?;
    say(context, &outcome, "");
    Ok(Exit::Done)
}

pub async fn reverse(context: &Context<'_>, args: &ReverseArgs) -> Result<Exit, CliError> {
    confirm(context, "Writes will wait for a moment and then go to the source again.", args.yes)?;
    accept(context, &args.accept).await?;
    let outcome = steer(context, Command::Reverse { rehearse: false }, false).await?;
    say(context, &outcome, "");
    Ok(Exit::Reversed)
}

pub async fn pause(context: &Context<'_>, _: &PauseArgs) -> Result<Exit, CliError> {
    let outcome = steer(context, Command::Pause, true).await?;
    say(context, &outcome, "paused; `rehome resume` goes on");
    Ok(Exit::Done)
}

pub async fn resume(context: &Context<'_>, _: &ResumeArgs) -> Result<Exit, CliError> {
    let outcome = steer(context, Command::Resume, true).await?;
    say(context, &outcome, "going on");
    Ok(Exit::Done)
}

pub async fn cancel(context: &Context<'_>, args: &CancelArgs) -> Result<Exit, CliError> {
    confirm(
        context,
        "What was made on the target will be taken back; the source goes on as before.",
        args.yes,
    )?;
    let outcome = steer(context, Command::Cancel, false).await?;
    say(context, &outcome, "cancelled: the source goes on as before");
    Ok(Exit::Done)
}

pub async fn complete(context: &Context<'_>, args: &CompleteArgs) -> Result<Exit, CliError> {
    if !args.accept_traffic {
        refuse_while_used(context).await?;
    }
    confirm(context, "After this there is no way back: the target stays the owner.", args.yes)?;
    let outcome = steer(context, Command::Complete, false).await?;
    say(context, &outcome, "completed: the target owns the application");
    if let Ok((_, migration)) = context.migration() {
        migration.services.iter().for_each(|service| context.printer.hint(&way_out(service)));
    }
    Ok(Exit::Done)
}

/// How long the gateways are watched for requests before the run is completed.
const QUIET: Duration = Duration::from_secs(2);

/// Users that still come through a gateway would lose their way to the target with it.
async fn refuse_while_used(context: &Context<'_>) -> Result<(), CliError> {
    let run = context.run_folder()?;
    let migration = super::load(&run.migration(), context.printer)?;
    if migration.services.is_empty() {
        return Ok(());
    }
    let before = requests(context, &migration).await?;
    tokio::time::sleep(QUIET).await;
    let after = requests(context, &migration).await?;
    if after == before {
        return Ok(());
    }
    let text = format!(
        "{} requests arrived at the gateway within {} s; the run was not completed",
        count(after.saturating_sub(before)),
        QUIET.as_secs()
    );
    let mut refused = CliError::new(Exit::GateNotMet, text);
    for service in &migration.services {
        refused = refused.hint(way_out(service));
    }
    Err(refused.hint("if they are only health checks: `rehome complete --accept-traffic`"))
}

/// All requests that all gateways of the run ever took.
async fn requests(context: &Context<'_>, migration: &rehome_spec::Migration) -> Result<u64, CliError> {
    let mut sum = 0;
    for gateway in migration.gateways_or_default(&context.home) {
        let status = gateways::status(&gateway).await.map_err(|error| {
            CliError::new(Exit::Network, format!("gateway {} does not answer: {error}", gateway.name))
                .hint("start it, or say `--accept-traffic` when it is gone for good")
        })?;
        let of =
            |service: &ServiceStatus| service.source.requests + service.target.requests + service.refused;
        sum += status.services.iter().map(of).sum::<u64>();
    }
    Ok(sum)
}

/// How the gateway leaves the path.
fn way_out(service: &rehome_spec::Service) -> String {
    format!(
        "take the gateway out of the path: point users of {} at {} instead of {}, wait until its access log is quiet, \
         then stop it",
        service.name, service.target, service.listen
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_file_and_the_engine_know_the_same_gates() {
        let named = rehome_spec::AcceptedGate::ALL.map(|gate| gate.name());
        assert_eq!(named, rehome_engine::ACCEPTABLE);
        assert!(super::gate("verified").is_err(), "nobody can answer for that");
    }

    #[test]
    fn a_share_is_written_with_or_without_its_sign() {
        assert_eq!(super::percent("25%"), Ok(25));
        assert_eq!(super::percent("0"), Ok(0));
        assert!(super::percent("101%").is_err());
        assert!(super::percent("a quarter").is_err());
    }
}
