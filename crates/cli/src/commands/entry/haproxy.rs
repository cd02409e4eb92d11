//! `rehome entry haproxy`: thin; the driver is `rehome_entry::haproxy`.

use super::nginx::{Side, nothing_to_remove};
use super::{services, shown};
use crate::commands::Context;
use crate::exit::{CliError, Exit};
use crate::paths;
use clap::{Args, Subcommand, ValueEnum};
use rehome_entry::change::To;
use rehome_entry::haproxy::hold::{self, Hold};
use rehome_entry::haproxy::{Haproxy, Plan, Runtime, Way};
use rehome_entry::service::{Service, Towards};
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Put the gateway behind an HAProxy that serves already, and steer it by its runtime API
///
/// `install` gives its servers the gateway's address: at runtime where that is enough, so that no connection of a client is
/// closed, else in one reload; proven by requests, or put back. Weights, drain and hold are for those who go without a gateway.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  rehome entry haproxy show\n  rehome entry haproxy install\n  \
                        rehome entry haproxy weights app source=75 target=25")]
pub struct HaproxyArgs {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    which: services::Which,
}

#[derive(Debug, Args)]
struct Place {
    /// A file of the configuration, or a folder of *.cfg, in the order of HAProxy's own -f; repeatable
    #[arg(long, global = true, value_name = "PATH", default_value = "/etc/haproxy/haproxy.cfg")]
    config: Vec<PathBuf>,
    /// HAProxy itself
    #[arg(long, global = true, value_name = "PROGRAM", default_value = "haproxy")]
    haproxy: PathBuf,
    /// Its stats socket with `level admin`, a path or address:port [default: the configuration's]
    #[arg(long, global = true, value_name = "SOCKET")]
    socket: Option<String>,
    /// The pid file of its master (-W, -Ws), when that does not follow from the configuration
    #[arg(long, global = true, value_name = "FILE")]
    pid: Option<PathBuf>,
    /// How it is reloaded, when not by a signal: a program and its words, without a shell
    #[arg(long, global = true, value_name = "COMMAND")]
    reload: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Where requests go, what runs, and what a gateway in their way would change
    Show,
    /// The change as a unified diff; nothing is touched
    Propose,
    /// Make the change: shown, tried, taken up, proven, or put back
    Install {
        /// At runtime where addresses are all that changes, or by a reload
        #[arg(long, value_enum, default_value_t = By::Best)]
        by: By,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Take the gateway out again
    Remove {
        /// Whom users reach then: the source as it was, byte for byte, or the target
        #[arg(long, value_enum)]
        to: Side,
        /// At runtime where addresses are all that changes, or by a reload
        #[arg(long, value_enum, default_value_t = By::Best)]
        by: By,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Weights of servers of a backend, by name or by `source` and `target`; gone at the next reload
    Weights {
        backend: String,
        /// 0 to 256 each; the share is that of the sum
        #[arg(required = true, value_name = "SERVER=WEIGHT", value_parser = weight)]
        weights: Vec<(String, u32)>,
    },
    /// No new requests for a server; what it has goes on
    Drain {
        #[arg(value_name = "BACKEND/SERVER", value_parser = server)]
        server: (String, String),
    },
    /// Requests for that server again
    Ready {
        #[arg(value_name = "BACKEND/SERVER", value_parser = server)]
        server: (String, String),
    },
    Hold(HoldArgs),
    /// Let waiting writes go
    Release(HoldPlace),
}

/// Make writes wait in HAProxy itself, by a few lines of Lua; reads go on
///
/// For those who go without a gateway. It is no fence and proves nothing about what is under way, and a reload ends it.
#[derive(Debug, Args)]
struct HoldArgs {
    /// Write what it needs into the configuration, shown first, and reload once
    #[arg(long)]
    prepare: bool,
    #[command(flatten)]
    place: HoldPlace,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
struct HoldPlace {
    /// Where its script and map lie
    #[arg(long, value_name = "DIR", default_value = "/etc/haproxy")]
    folder: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Best,
    Reload,
}

impl From<By> for Way {
    fn from(by: By) -> Self {
        match by {
            By::Best => Self::Best,
            By::Reload => Self::Reload,
        }
    }
}

fn weight(text: &str) -> Result<(String, u32), String> {
    let wrong = || format!("`{text}` is no weight: write it like source=75");
    let (name, weight) = text.split_once('=').ok_or_else(wrong)?;
    Ok((name.to_owned(), weight.parse().map_err(|_| wrong())?))
}

fn server(text: &str) -> Result<(String, String), String> {
    let (backend, server) =
        text.split_once('/').ok_or_else(|| format!("`{text}` is no server: write it like app/one"))?;
    Ok((backend.to_owned(), server.to_owned()))
}

pub async fn run(context: &Context<'_>, args: &HaproxyArgs) -> Result<Exit, CliError> {
    let haproxy = driver(context, &args.place)?;
    match &args.verb {
        Verb::Show => show(context, &haproxy, &services::of(context, &args.which)?.1).await,
        Verb::Propose => propose(context, &haproxy, &services::of(context, &args.which)?.1).await,
        Verb::Install { by, yes } => {
            let (_, services) = services::of(context, &args.which)?;
            install(context, &haproxy, &services, (*by).into(), *yes).await
        }
        Verb::Remove { to, by, yes } => {
            let (_, services) = services::of(context, &args.which)?;
            remove(context, &haproxy, &services, (*to).into(), (*by).into(), *yes).await
        }
        Verb::Weights { backend, weights } => set_weights(context, args, &haproxy, backend, weights).await,
        Verb::Drain { server: (backend, server) } => {
            runtime(&haproxy)?.drain(backend, server).await?;
            after(context, &haproxy, backend).await
        }
        Verb::Ready { server: (backend, server) } => {
            runtime(&haproxy)?.ready(backend, server).await?;
            after(context, &haproxy, backend).await
        }
        Verb::Hold(hold) if hold.prepare => prepare(context, args, &haproxy, hold).await,
        Verb::Hold(hold) => set_hold(context, &haproxy, &hold.place, true).await,
        Verb::Release(place) => set_hold(context, &haproxy, place, false).await,
    }
}

fn driver(context: &Context<'_>, place: &Place) -> Result<Haproxy, CliError> {
    paths::private_folder(&context.home)?;
    let runtime = match &place.socket {
        Some(text) => Some(Runtime::parse(text)),
        None => Haproxy::socket_in(&place.config)?,
    };
    Ok(Haproxy {
        program: shown::program(&place.haproxy)?,
        configs: place.config.clone(),
        runtime,
        pid_file: place.pid.clone(),
        reload: shown::words(place.reload.as_ref()),
        state: context.home.clone(),
    })
}

fn runtime(haproxy: &Haproxy) -> Result<&Runtime, CliError> {
    haproxy.runtime.as_ref().ok_or_else(|| {
        CliError::not_found("the configuration names no stats socket with `level admin`")
            .hint("add `stats socket /run/haproxy/admin.sock mode 600 level admin` to `global`, or name one with `--socket`")
    })
}

async fn show(context: &Context<'_>, haproxy: &Haproxy, services: &[Service]) -> Result<Exit, CliError> {
    let plan = haproxy.plan(services, Towards::Gateway).await?;
    let record = haproxy.record()?;
    let printer = context.printer;
    let running = match &haproxy.runtime {
        Some(runtime) => Some(runtime.servers().await),
        None => None,
    };
    if printer.json {
        let running = running.and_then(Result::ok);
        printer.json(&json!({
            "ui": "1.0", "driver": "haproxy", "config": haproxy.configs, "gateway": shown::stage(record.as_ref()),
            "routes": plan.routes, "running": running, "findings": plan.findings, "links": plan.links,
            "diff": shown::diff_text(&plan.files), "only_addresses": plan.only_addresses,
        }));
        return Ok(Exit::Done);
    }
    for route in &plan.routes {
        let service = route.service.as_deref().map(|name| format!(" of {name}")).unwrap_or_default();
        printer.line(&format!(
            "{} {}/{} {} -> {}{service}",
            route.place, route.backend, route.server, route.address, route.leads_to
        ));
    }
    match running {
        None => printer.talk(
            "no stats socket with `level admin`: what runs cannot be shown, and every change is a reload",
        ),
        Some(Err(error)) => printer.warning(&error.to_string()),
        Some(Ok(servers)) => servers.iter().for_each(|server| show_server(context, server)),
    }
    printer.line(&format!("the gateway is {}", shown::stage(record.as_ref())));
    shown::findings(&plan.findings, |line| printer.line(line));
    shown::unfinished(printer, record.as_ref());
    Ok(Exit::Done)
}

fn show_server(context: &Context<'_>, server: &rehome_entry::haproxy::RunningServer) {
    context.printer.line(&format!(
        "running {}/{} {} {} weight {}, {} under way, {} waiting",
        server.backend,
        server.server,
        server.address,
        server.status,
        server.weight,
        server.current,
        server.queued
    ));
}

async fn propose(context: &Context<'_>, haproxy: &Haproxy, services: &[Service]) -> Result<Exit, CliError> {
    let plan = haproxy.plan(services, Towards::Gateway).await?;
    let printer = context.printer;
    if printer.json {
        let diff = shown::diff_text(&plan.files);
        printer.json(&json!({
            "ui": "1.0", "driver": "haproxy", "findings": plan.findings, "links": plan.links, "diff": diff,
            "only_addresses": plan.only_addresses,
        }));
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
    haproxy: &Haproxy,
    services: &[Service],
    way: Way,
    yes: bool,
) -> Result<Exit, CliError> {
    let printer = context.printer;
    let record = haproxy.record()?;
    shown::unfinished(printer, record.as_ref());
    let plan: Plan = haproxy.plan(services, Towards::Gateway).await?.unless_stopped()?;
    if !printer.json {
        shown::findings(&plan.findings, |line| printer.talk(line));
        shown::links(printer, &plan.links);
        shown::diff(printer, &plan.files);
    }
    if !plan.files.is_empty() || record.as_ref().is_some_and(|_| shown::stage(record.as_ref()) != "in") {
        printer.confirm(question(haproxy, way, plan.only_addresses), yes)?;
    }
    let done = haproxy.install(services, &plan, way, &services::quiet(context)).await?;
    shown::done(printer, "haproxy", "the gateway is in", &done);
    Ok(Exit::Done)
}

fn question(haproxy: &Haproxy, way: Way, only_addresses: bool) -> &'static str {
    if way == Way::Best && only_addresses && haproxy.runtime.is_some() {
        "HAProxy gets these files, and its servers their new addresses without a reload."
    } else {
        "HAProxy gets these files and reloads once."
    }
}

async fn remove(
    context: &Context<'_>,
    haproxy: &Haproxy,
    services: &[Service],
    to: To,
    way: Way,
    yes: bool,
) -> Result<Exit, CliError> {
    let printer = context.printer;
    let Some(record) = haproxy.record()? else {
        return nothing_to_remove(context, "haproxy");
    };
    shown::unfinished(printer, Some(&record));
    let files = haproxy.removal(services, to).await?;
    if !printer.json {
        shown::diff(printer, &files);
    }
    printer.confirm("HAProxy gets these files, at runtime or by one reload.", yes)?;
    let done = haproxy.remove(services, to, way, &services::quiet(context)).await?;
    shown::done(printer, "haproxy", "the gateway is out", &done);
    Ok(Exit::Done)
}

async fn set_weights(
    context: &Context<'_>,
    args: &HaproxyArgs,
    haproxy: &Haproxy,
    backend: &str,
    weights: &[(String, u32)],
) -> Result<Exit, CliError> {
    let runtime = runtime(haproxy)?;
    let running = runtime.servers().await?;
    let mut named = Vec::new();
    for (name, weight) in weights {
        let side = match name.as_str() {
            _ if running.iter().any(|server| server.backend == backend && server.server == *name) => None,
            "source" => Some(To::Source),
            "target" => Some(To::Target),
            _ => None,
        };
        let Some(side) = side else {
            named.push((name.clone(), *weight));
            continue;
        };
        let (_, services) = services::of(context, &args.which)?;
        let servers = haproxy.servers_of_side(runtime, &services, backend, side).await?;
        if servers.is_empty() {
            return Err(CliError::not_found(format!("no server of {backend} has an address of the {name}"))
                .hint("see `rehome entry haproxy show`"));
        }
        named.extend(servers.into_iter().map(|server| (server, *weight)));
    }
    let begun = Instant::now();
    runtime.weights(backend, &named).await?;
    let took = begun.elapsed();
    context.printer.talk(&format!("{} servers in {:.1} ms", named.len(), took.as_secs_f64() * 1e3));
    after(context, haproxy, backend).await
}

/// What runs now, and that it is not written anywhere.
async fn after(context: &Context<'_>, haproxy: &Haproxy, backend: &str) -> Result<Exit, CliError> {
    let mut servers = runtime(haproxy)?.servers().await?;
    servers.retain(|server| server.backend == backend);
    if context.printer.json {
        context
            .printer
            .json(&json!({ "ui": "1.0", "driver": "haproxy", "backend": backend, "running": servers }));
        return Ok(Exit::Done);
    }
    servers.iter().for_each(|server| show_server(context, server));
    context.printer.warning(
        "this is gone at the next reload: write it into the configuration, or keep a server-state file (show servers state)",
    );
    Ok(Exit::Done)
}

async fn prepare(
    context: &Context<'_>,
    args: &HaproxyArgs,
    haproxy: &Haproxy,
    place: &HoldArgs,
) -> Result<Exit, CliError> {
    let (migration, services) = services::of(context, &args.which)?;
    let reads = |service: &Service| {
        migration.services.iter().find(|known| known.name == service.name).map(|known| known.reads.clone())
    };
    let mut reads: Vec<Vec<String>> = services.iter().filter_map(reads).collect();
    reads.dedup();
    let [reads] = reads.as_slice() else {
        return Err(CliError::usage("services with different `reads` cannot share a hold")
            .hint("add `--service NAME`"));
    };
    let longest = services.iter().map(|service| service.hold_age).max().unwrap_or(Duration::from_secs(15));
    let hold = Hold {
        folder: place.place.folder.clone(),
        age: longest,
        requests: services.iter().map(|service| service.hold_requests).max().unwrap_or(4_096),
        reads: reads.clone(),
    };
    let changes = hold.plan(&haproxy.configs)?;
    if !context.printer.json {
        shown::diff(context.printer, &changes);
    }
    context.printer.confirm("HAProxy gets these lines, a script and a map, and reloads once.", place.yes)?;
    let taken_up = haproxy.prepare_hold(&hold, &services::quiet(context)).await?;
    if context.printer.json {
        context
            .printer
            .json(&json!({ "ui": "1.0", "driver": "haproxy", "did": "prepared", "taken_up": taken_up }));
    } else {
        shown::taken_up(context.printer, &taken_up);
        context.printer.line("the hold is prepared");
    }
    Ok(Exit::Done)
}

async fn set_hold(
    context: &Context<'_>,
    haproxy: &Haproxy,
    place: &HoldPlace,
    hold: bool,
) -> Result<Exit, CliError> {
    let map = place.folder.join("rehome-hold.map");
    let runtime = runtime(haproxy)?;
    hold::set(runtime, &map, hold).await?;
    let under_way: u64 = runtime.servers().await?.iter().map(|server| server.current).sum();
    if context.printer.json {
        context
            .printer
            .json(&json!({ "ui": "1.0", "driver": "haproxy", "held": hold, "under_way": under_way }));
    } else if hold {
        context
            .printer
            .line(&format!("writes wait; {under_way} requests (reads too) were under way a moment later"));
        context.printer.talk("this is no fence: a write that had passed may still be under way");
    } else {
        context.printer.line("writes go on");
    }
    Ok(Exit::Done)
}
