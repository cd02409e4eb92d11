//! `rehome entry nginx`: thin; the driver is `rehome_entry::nginx`.

use super::{services, shown};
use crate::commands::Context;
use crate::exit::{CliError, Exit};
use crate::paths;
use clap::{Args, Subcommand, ValueEnum};
use rehome_entry::change::To;
use rehome_entry::files::FileChange;
use rehome_entry::nginx::alone::{Alone, LIMITS};
use rehome_entry::nginx::{Nginx, Plan};
use rehome_entry::service::{Service, Towards};
use serde_json::json;
use std::path::PathBuf;

/// Put the gateway behind an nginx that serves already, and take it out again
///
/// Reads its configuration with everything it includes, shows the change as a diff, tries it with `nginx -t`, reloads once,
/// and proves by requests that they go through the gateway; without that proof everything is put back. Weights, hold and switch
/// are the gateway's and need no further reload.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  rehome entry nginx show\n  rehome entry nginx propose > change.diff\n  \
                        rehome entry nginx install\n  rehome entry nginx remove --to target"
)]
pub struct NginxArgs {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    which: services::Which,
}

#[derive(Debug, Args)]
struct Place {
    /// The main file of the configuration
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/nginx/nginx.conf")]
    config: PathBuf,
    /// nginx itself
    #[arg(long, global = true, value_name = "PROGRAM", default_value = "nginx")]
    nginx: PathBuf,
    /// The prefix it was started with (`-p`)
    #[arg(long, global = true, value_name = "DIR")]
    prefix: Option<PathBuf>,
    /// Its pid file, when that does not follow from the configuration
    #[arg(long, global = true, value_name = "FILE")]
    pid: Option<PathBuf>,
    /// How it is reloaded, when not by a signal: a program and its words, without a shell
    #[arg(long, global = true, value_name = "COMMAND")]
    reload: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Where requests go, and what a gateway in their way would change
    Show,
    /// The change as a unified diff; nothing is touched
    Propose,
    /// Make the change: shown, tried, reloaded, proven, or put back
    Install {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Take the gateway out again
    Remove {
        /// Whom users reach then: the source as it was, byte for byte, or the target
        #[arg(long, value_enum)]
        to: Side,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    Alone(AloneArgs),
}

/// Files for an nginx without the gateway: reads split by client, writes to the owner, a sample mirrored
///
/// Writes three files to include (in http, server and location) and reloads when they are included already. Every step is a
/// reload, nothing is held, and a read may be older than its client's own write: the gateway does all of that better.
#[derive(Debug, Args)]
struct AloneArgs {
    /// Where the files go
    #[arg(long, value_name = "DIR", default_value = "/etc/nginx/rehome")]
    folder: PathBuf,
    /// The share of reads that goes to the side that does not own
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=100))]
    percent: u8,
    /// Who gets all writes
    #[arg(long, value_enum, default_value_t = Side::Source)]
    owner: Side,
    /// The share of reads of which the target gets a copy
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=100))]
    mirror: u8,
    /// What tells one client from another, in nginx's variables
    #[arg(long, value_name = "VARIABLES", default_value = "$remote_addr")]
    key: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Side {
    Source,
    Target,
}

impl From<Side> for To {
    fn from(side: Side) -> Self {
        match side {
            Side::Source => Self::Source,
            Side::Target => Self::Target,
        }
    }
}

pub async fn run(context: &Context<'_>, args: &NginxArgs) -> Result<Exit, CliError> {
    let (migration, services) = services::of(context, &args.which)?;
    let nginx = driver(context, &args.place)?;
    match &args.verb {
        Verb::Show => show(context, &nginx, &services).await,
        Verb::Propose => propose(context, &nginx, &services).await,
        Verb::Install { yes } => install(context, &nginx, &services, *yes).await,
        Verb::Remove { to, yes } => remove(context, &nginx, &services, (*to).into(), *yes).await,
        Verb::Alone(alone) => {
            let [service] = services.as_slice() else {
                return Err(CliError::usage("one service at a time").hint("add `--service NAME`"));
            };
            let known = migration.services.iter().find(|known| known.name == service.name);
            let reads = known.map(|known| known.reads.clone()).unwrap_or_default();
            write_alone(context, &nginx, service, reads, alone).await
        }
    }
}

fn driver(context: &Context<'_>, place: &Place) -> Result<Nginx, CliError> {
    paths::private_folder(&context.home)?;
    Ok(Nginx {
        program: shown::program(&place.nginx)?,
        config: place.config.clone(),
        prefix: place.prefix.clone(),
        pid_file: place.pid.clone(),
        reload: shown::words(place.reload.as_ref()),
        state: context.home.clone(),
    })
}

async fn show(context: &Context<'_>, nginx: &Nginx, services: &[Service]) -> Result<Exit, CliError> {
    let plan = nginx.plan(services, Towards::Gateway).await?;
    let record = nginx.record()?;
    let printer = context.printer;
    if printer.json {
        printer.json(&json!({
            "ui": "1.0", "driver": "nginx", "config": nginx.config, "gateway": shown::stage(record.as_ref()),
            "routes": plan.routes, "findings": plan.findings, "links": plan.links, "diff": shown::diff_text(&plan.files),
        }));
        return Ok(Exit::Done);
    }
    for route in &plan.routes {
        let service = route.service.as_deref().map(|name| format!(" of {name}")).unwrap_or_default();
        let through =
            route.upstream.as_deref().map(|name| format!(" by upstream {name}")).unwrap_or_default();
        printer.line(&format!("{} {} -> {}{service}{through}", route.place, route.text, route.leads_to));
    }
    printer.line(&format!("the gateway is {}", shown::stage(record.as_ref())));
    shown::findings(&plan.findings, |line| printer.line(line));
    shown::unfinished(printer, record.as_ref());
    Ok(Exit::Done)
}

async fn propose(context: &Context<'_>, nginx: &Nginx, services: &[Service]) -> Result<Exit, CliError> {
    let plan = nginx.plan(services, Towards::Gateway).await?;
    let printer = context.printer;
    if printer.json {
        let diff = shown::diff_text(&plan.files);
        let document = json!({ "ui": "1.0", "driver": "nginx", "findings": plan.findings, "links": plan.links, "diff": diff });
        printer.json(&document);
    } else {
        shown::findings(&plan.findings, |line| printer.talk(line));
        shown::links(printer, &plan.links);
    }
    let plan = plan.unless_stopped()?;
    if !printer.json && !shown::diff(printer, &plan.files) {
        printer.talk("nothing leads to the source: nothing has to change");
    }
    Ok(Exit::Done)
}

async fn install(
    context: &Context<'_>,
    nginx: &Nginx,
    services: &[Service],
    yes: bool,
) -> Result<Exit, CliError> {
    let printer = context.printer;
    let record = nginx.record()?;
    shown::unfinished(printer, record.as_ref());
    let plan = nginx.plan(services, Towards::Gateway).await?;
    let plan = show_plan(context, plan)?;
    if !plan.files.is_empty() || record.as_ref().is_some_and(|_| shown::stage(record.as_ref()) != "in") {
        printer.confirm("nginx gets these files and reloads once.", yes)?;
    }
    let done = nginx.install(services, &plan, &services::quiet(context)).await?;
    shown::done(printer, "nginx", "the gateway is in", &done);
    Ok(Exit::Done)
}

fn show_plan(context: &Context<'_>, plan: Plan) -> Result<Plan, CliError> {
    let plan = plan.unless_stopped()?;
    if !context.printer.json {
        shown::findings(&plan.findings, |line| context.printer.talk(line));
        shown::links(context.printer, &plan.links);
        shown::diff(context.printer, &plan.files);
    }
    Ok(plan)
}

async fn remove(
    context: &Context<'_>,
    nginx: &Nginx,
    services: &[Service],
    to: To,
    yes: bool,
) -> Result<Exit, CliError> {
    let printer = context.printer;
    let Some(record) = nginx.record()? else {
        return nothing_to_remove(context, "nginx");
    };
    shown::unfinished(printer, Some(&record));
    let files: Vec<FileChange> = nginx.removal(services, to).await?;
    if !printer.json {
        shown::diff(printer, &files);
    }
    printer.confirm("nginx gets these files and reloads once.", yes)?;
    let done = nginx.remove(services, to, &services::quiet(context)).await?;
    shown::done(printer, "nginx", "the gateway is out", &done);
    Ok(Exit::Done)
}

pub(super) fn nothing_to_remove(context: &Context<'_>, driver: &str) -> Result<Exit, CliError> {
    if context.printer.json {
        context.printer.json(&json!({ "ui": "1.0", "driver": driver, "did": "nothing", "changed": false }));
    } else {
        context.printer.line("no gateway was put in here: nothing to take out");
    }
    Ok(Exit::Done)
}

async fn write_alone(
    context: &Context<'_>,
    nginx: &Nginx,
    service: &Service,
    reads: Vec<String>,
    args: &AloneArgs,
) -> Result<Exit, CliError> {
    let alone = Alone {
        service: service.name.clone(),
        source: service.source.clone(),
        target: service.target.clone(),
        target_owns: args.owner == Side::Target,
        percent: args.percent,
        reads,
        key: args.key.clone(),
        mirror: args.mirror,
    };
    let printer = context.printer;
    for limit in LIMITS.iter().filter(|_| !printer.json) {
        printer.talk(&format!("  {limit}"));
    }
    let pieces = alone.pieces()?;
    printer.confirm("nginx gets these files, and reloads if it includes them.", args.yes)?;
    let written = nginx.write_alone(&alone, &args.folder, &services::quiet(context)).await?;
    let (changed, taken_up) = written;
    if printer.json {
        printer.json(&json!({ "ui": "1.0", "driver": "nginx", "written": changed, "taken_up": taken_up, "limits": LIMITS }));
        return Ok(Exit::Done);
    }
    for piece in &pieces {
        printer.line(&format!(
            "{} (include it in {})",
            args.folder.join(&piece.name).display(),
            piece.goes_into
        ));
    }
    match taken_up {
        Some(taken_up) => shown::taken_up(printer, &taken_up),
        None => {
            printer.talk("nginx was not reloaded: nothing changed, or it does not include these files yet")
        }
    }
    Ok(Exit::Done)
}
