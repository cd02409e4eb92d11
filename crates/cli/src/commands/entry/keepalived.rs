//! `rehome entry keepalived`: a pair of gateways behind addresses that move. Thin: the driver knows Keepalived, the gateways know who
//! owns the writes, and this file only brings the two together for a hand-over.

use crate::arguments::Command;
use crate::commands::entry::Driver;
use crate::commands::{Context, gateway};
use crate::exit::{CliError, Exit, with_path};
use crate::printer::{Printer, style};
use clap::{Args, Subcommand};
use rehome_entry::keepalived::{
    Change, Installed, Moved, Node, Pair, Place, Undecided, Wish, answers, apply, arp_settings, config,
    has_addresses, plan_install, plan_removal, put_back_if_left, release, sysctl,
};
use rehome_gateway::client::Client;
use rehome_gateway::control::{Request, Response, Shedding};
use rehome_spec::Migration;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Let two gateways share addresses by Keepalived
///
/// Whichever node has the addresses proxies to the same owner, or holds: who has them is never a fence. See
/// docs/entry-keepalived.md.
#[derive(Debug, Args)]
pub struct KeepalivedArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Propose(ProposeArgs),
    Install(InstallArgs),
    Remove(RemoveArgs),
    Status(StatusArgs),
    HandOver(HandOverArgs),
    #[command(hide = true)]
    Check(CheckArgs),
}

/// Show the configuration of both nodes
#[derive(Debug, Args)]
struct ProposeArgs {
    #[command(flatten)]
    pair: PairArgs,
    /// Write the files into this folder, one folder below it for each node
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Put the configuration of one node in its place on this machine
///
/// Tested by Keepalived first, shown, and written whole. A keepalived.conf of yours stays and gets one `include` line. Nothing is
/// started or reloaded: the last lines say how.
#[derive(Debug, Args)]
struct InstallArgs {
    #[command(flatten)]
    pair: PairArgs,
    /// Which of the two nodes this machine is
    #[arg(long = "as", value_name = "1|2", value_parser = clap::value_parser!(u8).range(1..=2))]
    node: u8,
    #[command(flatten)]
    place: PlaceArgs,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Take it out again: every file and setting as it was
#[derive(Debug, Args)]
struct RemoveArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Also when somebody edited the files since
    #[arg(long)]
    edited: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// What is true of this node now
///
/// Exits 10 when something would keep it from serving or from standing in.
#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    place: PlaceArgs,
}

/// Give the addresses to the other node, planned
///
/// Clients are asked to come again first, so that few connections are open when the addresses move; what is under way then is
/// still answered. If the other node does not take over, this one has them again within a second or so.
#[derive(Debug, Args)]
struct HandOverArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Which `[[gateways]]` entry serves on this node, when there are several
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// How long clients are asked to come again before the addresses move
    #[arg(long, default_value_t = 3, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    window: u64,
    /// How long new connections wait outside just before: what is on its way then still arrives. The longest round trip of your
    /// clients is right. They try again after a second, so this many milliseconds of them are late
    #[arg(long, default_value_t = 20, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u64).range(0..=2000))]
    still: u64,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Is the gateway at this address alive? Asked by Keepalived every second; exits 0 or 1 within a second
#[derive(Debug, Args)]
struct CheckArgs {
    /// The gateway's `--metrics` address
    address: SocketAddr,
}

#[derive(Debug, Args)]
struct PairArgs {
    /// The interface that the nodes share, by the same name on both
    #[arg(long, value_name = "NAME")]
    interface: String,
    /// A node's own address; twice, the first node first
    #[arg(long = "node", value_name = "ADDRESS", required = true)]
    nodes: Vec<IpAddr>,
    /// An address that moves, with the length of its network (10.0.0.100/24); repeat it for more
    #[arg(long = "address", value_name = "ADDRESS/LENGTH", required = true)]
    addresses: Vec<String>,
    /// The number of this pair, 1 to 255; no other pair in the network has it
    #[arg(long, default_value_t = 51, value_name = "NUMBER")]
    router_id: u32,
    /// How often the serving node says that it is there. After three times that (and 4 ms) the other takes over
    #[arg(long, default_value_t = 300, value_name = "MILLISECONDS")]
    advert_ms: u64,
    /// Where each node's gateway answers for itself: its `--metrics` address
    #[arg(long, default_value = "127.0.0.1:9100", value_name = "ADDRESS")]
    check: SocketAddr,
    /// Whom the check runs as
    #[arg(long, default_value = "nobody", value_name = "USER")]
    user: String,
    /// Where the nodes have this program [default: where it is here]
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// The file that asks a node to hand over [default: /run/rehome-hand-over-NUMBER]
    #[arg(long, value_name = "PATH")]
    hand_over_file: Option<PathBuf>,
    /// Do not keep the addresses on the loopback of both nodes; what is under way when they move then breaks
    #[arg(long)]
    without_keeping: bool,
}

#[derive(Debug, Args)]
struct PlaceArgs {
    /// Keepalived's configuration
    #[arg(long, default_value = "/etc/keepalived/keepalived.conf", value_name = "PATH")]
    config: PathBuf,
    /// The file with the kernel settings that go with it
    #[arg(long, default_value = "/etc/sysctl.d/60-rehome-keepalived.conf", value_name = "PATH")]
    sysctl_file: PathBuf,
    /// Keepalived itself, for testing the configuration
    #[arg(long, default_value = "keepalived", value_name = "PROGRAM")]
    keepalived: PathBuf,
}

impl PlaceArgs {
    fn place(&self) -> Result<Place, CliError> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(with_path(path));
        Ok(Place {
            config: absolute(&self.config)?,
            sysctl: absolute(&self.sysctl_file)?,
            keepalived: self.keepalived.clone(),
        })
    }

    fn installed(&self) -> Result<Installed, CliError> {
        Ok(Installed::read(&self.place()?.read_pair()?)?)
    }
}

impl PairArgs {
    fn pair(&self) -> Result<Pair, CliError> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(with_path(Path::new("this program")))?,
        };
        let wish = Wish {
            interface: self.interface.clone(),
            nodes: self.nodes.clone(),
            addresses: self.addresses.clone(),
            router_id: self.router_id,
            advert: Duration::from_millis(self.advert_ms),
            check: self.check,
            user: self.user.clone(),
            program,
            hand_over: self.hand_over_file.clone(),
            keep: !self.without_keeping,
        };
        // What was typed does not fit: that is a matter of usage.
        Pair::check(wish).map_err(|error| CliError { exit: Exit::Usage, ..error.into() })
    }
}

/// The check runs every second on every node: before a runtime, a state folder or an audit line is needed.
pub fn at_once(command: &Command, printer: &Printer) -> Option<Exit> {
    let Command::Entry(entry) = command else { return None };
    let Driver::Keepalived(keepalived) = &entry.driver else { return None };
    let Verb::Check(args) = &keepalived.verb else { return None };
    Some(match answers(args.address) {
        Ok(()) => Exit::Done,
        Err(dead) => {
            printer.talk(&dead.to_string());
            Exit::Failed
        }
    })
}

pub async fn run(context: &Context<'_>, args: &KeepalivedArgs) -> Result<Exit, CliError> {
    match &args.verb {
        Verb::Propose(args) => propose(context, args),
        Verb::Install(args) => install(context, args).await,
        Verb::Remove(args) => remove(context, args),
        Verb::Status(args) => status(context, args).await,
        Verb::HandOver(args) => hand_over(context, args).await,
        Verb::Check(_) => Err(CliError::failed("the check runs before anything else")),
    }
}

fn propose(context: &Context<'_>, args: &ProposeArgs) -> Result<Exit, CliError> {
    let pair = args.pair.pair()?;
    warn_of_listeners(context, &args.pair.addresses);
    let files = |node| {
        let settings = sysctl(&pair).map(|text| ("60-rehome-keepalived.conf", text));
        [Some(("keepalived.conf", config(&pair, node, false))), settings].into_iter().flatten()
    };
    if let Some(folder) = &args.out {
        for node in Node::BOTH {
            let folder = folder.join(format!("node-{}", node.number()));
            std::fs::create_dir_all(&folder).map_err(with_path(&folder))?;
            for (name, text) in files(node) {
                let path = folder.join(name);
                crate::paths::write_private(&path, text.as_bytes())?;
                context.printer.talk(&format!("wrote {}", path.display()));
            }
        }
    }
    if context.printer.json {
        let node = |node: Node| {
            serde_json::json!({
                "node": node.number(), "address": pair.own(node), "priority": node.priority(),
                "takes_over_after_ms": pair.takes_over_after(node).as_secs_f64() * 1e3,
                "takes_over_after_good_bye_ms": pair.skew(node).as_secs_f64() * 1e3,
                "files": files(node).collect::<std::collections::BTreeMap<_, _>>(),
            })
        };
        context.printer.json(&serde_json::json!({
            "ui": "1.0", "advert_ms": pair.advert().as_millis(), "nodes": Node::BOTH.map(node),
        }));
    } else if args.out.is_none() {
        for node in Node::BOTH {
            for (name, text) in files(node) {
                context.printer.line(&format!("### node {}: {name}", node.number()));
                context.printer.line(&text);
            }
        }
    }
    context.printer.hint("put it in place on each node with `rehome entry keepalived install --as 1` (and 2) and the same words");
    Ok(Exit::Done)
}

/// Gateways that the shared addresses do not lead to.
fn warn_of_listeners(context: &Context<'_>, addresses: &[String]) {
    let Ok((_, migration)) = context.migration() else { return };
    for service in &migration.services {
        let Ok(listen) = service.listen.parse::<SocketAddr>() else { continue };
        let shared = addresses.iter().any(|one| one.split('/').next() == Some(&listen.ip().to_string()));
        if !listen.ip().is_unspecified() && !shared {
            context.printer.warning(&format!(
                "service {} listens on {listen} only; let it listen on 0.0.0.0:{} to be reached by the shared addresses",
                service.name,
                listen.port()
            ));
        }
    }
}

async fn install(context: &Context<'_>, args: &InstallArgs) -> Result<Exit, CliError> {
    let (pair, place) = (args.pair.pair()?, args.place.place()?);
    warn_of_listeners(context, &args.pair.addresses);
    let node = if args.node == 1 { Node::First } else { Node::Second };
    let change = Box::pin(plan_install(&pair, node, &place)).await?;
    make(context, &change, &place, "Put this in place?", args.yes)?;
    if !change.is_nothing() {
        context.printer.hint("begin with it: systemctl reload-or-restart keepalived");
        let check = args.pair.check;
        context.printer.hint(&format!("the gateway of this node must run with `--metrics {check}`"));
    }
    Ok(Exit::Done)
}

fn remove(context: &Context<'_>, args: &RemoveArgs) -> Result<Exit, CliError> {
    let place = args.place.place()?;
    let change = plan_removal(&place, args.edited).map_err(|error| {
        let edited = matches!(error, rehome_entry::EntryError::Changed { .. });
        let error = CliError::from(error);
        if edited {
            error.hint("look at what changed, then add `--edited` to put back what was there before")
        } else {
            error
        }
    })?;
    make(context, &change, &place, "Take it out?", args.yes)?;
    context.printer.hint(
        "end with it: systemctl reload-or-restart keepalived (or stop it, when it served nothing else)",
    );
    Ok(Exit::Done)
}

/// Shows a change, asks, makes it.
fn make(
    context: &Context<'_>,
    change: &Change,
    place: &Place,
    question: &str,
    yes: bool,
) -> Result<(), CliError> {
    if !context.printer.json {
        show(context.printer, change);
    }
    for remark in &change.remarks {
        context.printer.warning(remark);
    }
    if !change.is_nothing() {
        context.printer.confirm(question, yes)?;
    }
    // Also when nothing changes: what was there before is written down.
    apply(change, place)?;
    if context.printer.json {
        context
            .printer
            .json(&serde_json::json!({ "ui": "1.0", "changed": !change.is_nothing(), "change": change }));
    } else if change.is_nothing() {
        context.printer.talk("nothing to change");
    }
    Ok(())
}

/// Line by line what goes and what comes; these files are short.
fn show(printer: &Printer, change: &Change) {
    let lines = |text: &Option<String>| -> Vec<String> {
        text.iter().flat_map(|text| text.lines()).map(Into::into).collect()
    };
    for file in change.files.iter().filter(|file| file.before != file.after) {
        let what = match (&file.before, &file.after) {
            (None, _) => "new",
            (_, None) => "removed",
            _ => "changed",
        };
        printer.line(&format!("{}: {what}", file.path.display()));
        let (before, after) = (lines(&file.before), lines(&file.after));
        for line in before.iter().filter(|line| !after.contains(line)) {
            printer.line(&format!("{}- {line}{}", style::BAD, style::BAD.render_reset()));
        }
        for line in after.iter().filter(|line| !before.contains(line) || file.before.is_none()) {
            printer.line(&format!("{}+ {line}{}", style::GOOD, style::GOOD.render_reset()));
        }
    }
    for setting in change.settings.iter().filter(|setting| setting.before != setting.after) {
        printer.line(&format!("{}: {} -> {}", setting.path.display(), setting.before, setting.after));
    }
}

async fn status(context: &Context<'_>, args: &StatusArgs) -> Result<Exit, CliError> {
    let installed = args.place.installed()?;
    let serving = Box::pin(has_addresses(&installed.interface, &installed.addresses)).await?;
    let mut troubles = Vec::new();
    if serving.is_none() {
        troubles.push("it has some of the addresses and not all".to_owned());
    }
    let check = installed.check.as_deref().and_then(|text| text.parse::<SocketAddr>().ok());
    if let Some(address) = check {
        let asked = tokio::task::spawn_blocking(move || answers(address)).await;
        match asked {
            Ok(Ok(())) => {}
            Ok(Err(dead)) => troubles.push(format!("its gateway is dead to Keepalived: {dead}")),
            Err(error) => troubles.push(format!("its gateway could not be asked: {error}")),
        }
    }
    match std::fs::read_to_string(&installed.hand_over) {
        Ok(text) if text.trim() == "0" => {}
        Ok(_) => troubles.push(format!(
            "a hand-over was cut off and it stands in for nobody; write 0 into {}",
            installed.hand_over.display()
        )),
        Err(error) => {
            troubles.push(format!("{}: {error}; does Keepalived run?", installed.hand_over.display()))
        }
    }
    if installed.keeps && installed.addresses.iter().any(|address| address.ip.is_ipv4()) {
        for (path, wanted) in arp_settings(&installed.interface) {
            let found = std::fs::read_to_string(&path).map_err(with_path(&path))?;
            if found.trim() != wanted {
                troubles.push(format!("{} is {} and must be {wanted}", path.display(), found.trim()));
            }
        }
    }
    let addresses: Vec<String> = installed.addresses.iter().map(ToString::to_string).collect();
    if context.printer.json {
        context.printer.json(&serde_json::json!({
            "ui": "1.0", "interface": installed.interface, "router_id": installed.router_id,
            "addresses": addresses, "serving": serving, "troubles": troubles,
        }));
    } else {
        let word = if serving == Some(true) { "serving" } else { "standing by" };
        context.printer.line(&format!("{word}: {} on {}", addresses.join(", "), installed.interface));
        for trouble in &troubles {
            context.printer.line(&format!("{}look{} {trouble}", style::WARN, style::WARN.render_reset()));
        }
    }
    Ok(if troubles.is_empty() { Exit::Done } else { Exit::Differences })
}

async fn hand_over(context: &Context<'_>, args: &HandOverArgs) -> Result<Exit, CliError> {
    let installed = args.place.installed()?;
    if Box::pin(has_addresses(&installed.interface, &installed.addresses)).await? == Some(false) {
        let left = put_back_if_left(&installed)?;
        let text = if left {
            "this node does not have the shared addresses; an order that was left by an earlier hand-over is taken back"
        } else {
            "this node does not have the shared addresses"
        };
        return Err(CliError::failed(text).hint("run it on the node that has them"));
    }
    let local = match context.migration() {
        Ok((_, migration)) => Some(Local::of(context, &migration, args.name.as_deref())?),
        Err(error) if error.exit == Exit::NotFound && context.global.file.is_none() => {
            let text = "no migration file is at hand: neither is the other gateway asked first, nor are clients asked to come again";
            context.printer.warning(text);
            None
        }
        Err(error) => return Err(error),
    };
    if let Some(local) = &local {
        local.other_answers(context, &installed).await?;
    }
    let names: Vec<String> = installed.addresses.iter().map(|address| address.ip.to_string()).collect();
    context.printer.confirm(&format!("Give {} to the other node?", names.join(", ")), args.yes)?;
    let begun = Instant::now();
    let ended = tokio::select! {
        ended = Box::pin(steps(context, &installed, local.as_ref(), args)) => ended,
        _ = tokio::signal::ctrl_c() => Err(CliError::failed("interrupted; the order was taken back")),
    };
    if let Some(local) = &local
        && let Err(error) = local.shed(Shedding::Off).await
    {
        context
            .printer
            .warning(&format!("this gateway still asks its clients to come again: {}", error.text));
    }
    let (moved, open) = ended?;
    let milliseconds = |time: Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
    if context.printer.json {
        context.printer.json(&serde_json::json!({
            "ui": "1.0", "addresses": names, "released_after_ms": milliseconds(moved.released_after),
            "stayed_away_ms": milliseconds(moved.stayed_away), "connections_open": open,
            "seconds": begun.elapsed().as_secs_f64(),
        }));
    } else {
        let open = open.map(|open| format!(", {open} connections were open then")).unwrap_or_default();
        context.printer.line(&format!(
            "moved: {} left this node {:.0} ms after the order and stayed away for {:.1} s{open}",
            names.join(", "),
            milliseconds(moved.released_after),
            moved.stayed_away.as_secs_f64()
        ));
    }
    Ok(Exit::Done)
}

/// Clients first, then the addresses. With how many connections were open when they moved.
async fn steps(
    context: &Context<'_>,
    installed: &Installed,
    local: Option<&Local>,
    args: &HandOverArgs,
) -> Result<(Moved, Option<u64>), CliError> {
    let mut open = None;
    if let Some(local) = local {
        context.printer.talk(&format!("asking clients to come again, for {} s at most", args.window));
        local.shed(Shedding::Answers).await?;
        local.fewer(Duration::from_secs(args.window)).await?;
        local.shed(Shedding::Idle).await?;
        open = Some(local.fewer(Duration::from_millis(300)).await?);
    }
    if !installed.keeps {
        context.printer.warning("the addresses are not kept on lo: what is under way now breaks");
    }
    context.printer.talk("moving the addresses");
    let last = async {
        if let Some(local) = local.filter(|_| args.still > 0) {
            match local.shed(Shedding::Shut).await {
                Ok(()) => tokio::time::sleep(Duration::from_millis(args.still)).await,
                Err(error) => {
                    context.printer.warning(&format!("new connections are not kept outside: {}", error.text))
                }
            }
        }
    };
    let moved = release(installed, last).await.map_err(|error| match error {
        Undecided::Entry(error) => error.into(),
        Undecided::CameBack(_) => CliError::failed(error.to_string()).hint(
            "is its Keepalived running, and its gateway alive? Ask there: rehome entry keepalived status",
        ),
        Undecided::NotReleased(_) => {
            CliError::failed(error.to_string()).hint("see its log: journalctl -u keepalived")
        }
    })?;
    Ok((moved, open))
}

/// The gateway of this node.
struct Local {
    client: Client,
    listens: Vec<SocketAddr>,
}

impl Local {
    fn of(context: &Context<'_>, migration: &Migration, name: Option<&str>) -> Result<Self, CliError> {
        let gateways = migration.gateways_or_default(&context.home);
        let found = match (name, gateways.as_slice()) {
            (None, [only]) => only,
            (None, _) => {
                return Err(CliError::usage(
                    "the file has several gateways; say which serves here with `--name NAME`",
                ));
            }
            (Some(name), all) => all
                .iter()
                .find(|gateway| gateway.name == name)
                .ok_or_else(|| CliError::not_found(format!("the migration file has no gateway `{name}`")))?,
        };
        let client = Client::new(&found.control, gateway::secret(found)?, crate::audit::actor());
        let listens = migration.services.iter().filter_map(|service| service.listen.parse().ok()).collect();
        Ok(Self { client, listens })
    }

    async fn call(&self, request: Request) -> Result<Response, CliError> {
        match self.client.call(request).await {
            Ok(Response::Refused { text, .. }) => {
                Err(CliError::failed(format!("the gateway refused: {text}")))
            }
            Ok(response) => Ok(response),
            Err(error) => Err(CliError::new(Exit::Network, error.to_string())),
        }
    }

    async fn shed(&self, shedding: Shedding) -> Result<(), CliError> {
        self.call(Request::Shed { shedding }).await.map(drop)
    }

    /// Waits for connections to go, at most so long. How many are left.
    async fn fewer(&self, limit: Duration) -> Result<u64, CliError> {
        let begun = Instant::now();
        loop {
            let open = match self.call(Request::Status).await? {
                Response::Status(status) => status.held.connections,
                other => return Err(CliError::failed(format!("the gateway answered {other:?}"))),
            };
            let left = limit.saturating_sub(begun.elapsed());
            if open == 0 || left.is_zero() {
                return Ok(open);
            }
            tokio::time::sleep(left.min(Duration::from_millis(20))).await;
        }
    }

    /// Nobody gives an address away to a node whose gateway takes no connection.
    async fn other_answers(&self, context: &Context<'_>, installed: &Installed) -> Result<(), CliError> {
        let patience = Duration::from_secs(1);
        for (peer, listen) in
            installed.peers.iter().flat_map(|peer| self.listens.iter().map(move |one| (peer, one)))
        {
            if !listen.ip().is_unspecified() {
                context
                    .printer
                    .talk(&format!("the other node cannot be asked: the gateway listens on {listen} only"));
                continue;
            }
            let address = SocketAddr::new(*peer, listen.port());
            let connected = tokio::time::timeout(patience, tokio::net::TcpStream::connect(address)).await;
            let why = match connected {
                Ok(Ok(_)) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {patience:?}"),
            };
            return Err(CliError::new(
                Exit::Network,
                format!("the other node's gateway does not take connections at {address}: {why}"),
            )
            .hint("start it there first; nothing was changed"));
        }
        Ok(())
    }
}
