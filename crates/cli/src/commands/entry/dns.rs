//! `rehome entry dns`: lowers a name's TTL, points it at the new entry, puts it back. Thin: options in, plan and outcome out.
//! Secrets are references until the key is made of them.

use super::super::{Context, resolve};
use crate::exit::{CliError, Exit};
use crate::printer::{Printer, span};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use rehome_entry::dns::authority::{Authority, Resolver, Sight};
use rehome_entry::dns::http::Endpoint;
use rehome_entry::dns::rfc2136::Rfc2136;
use rehome_entry::dns::route53::{self, Route53};
use rehome_entry::dns::state::{State, StateFile, Verb};
use rehome_entry::dns::steps::{Outcome, Plan, Steps, Wish};
use rehome_entry::dns::tsig::Key;
use rehome_entry::dns::{Credentials, DnsName, Entry, Zone, alidns, dnspod, system_clock, usage};
use rehome_spec::Secret;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::time::timeout;

/// How often a vendor is asked whether a change is at all of its servers.
const VENDOR_POLL: Duration = Duration::from_secs(2);
/// How long the new entry may take to accept a connection.
const PROBE_TIME: Duration = Duration::from_secs(3);
/// How often `wait` says how long it still takes.
const WAIT_STEP: Duration = Duration::from_secs(60);
/// How long the old entry's requests are counted.
const COUNT_TIME: Duration = Duration::from_secs(10);

/// Move the name that users come by: lower its TTL, point it, put it back
///
/// DNS decides nothing: resolvers and programs keep old answers longer than they may, so the old entry goes on listening and
/// proxying to the new side until it gets nothing any more. In order: `lower-ttl` at least one old TTL ahead, `wait`, `point`,
/// `wait`, and in the end `finish` (or `back`, at any time before).
#[derive(Debug, Args)]
pub struct DnsArgs {
    #[command(subcommand)]
    pub verb: DnsVerb,
}

#[derive(Debug, Subcommand)]
pub enum DnsVerb {
    /// What each authoritative server says about the name, and what a resolver says
    Show(ShowArgs),
    /// Shorten the time that caches keep the name's addresses, ahead of `point`; the former one is remembered
    LowerTtl(LowerArgs),
    /// Give the name the addresses of the new entry, and wait until every authoritative server answers them
    Point(PointArgs),
    /// Put back what was there before the first change, TTL and all, unless someone else changed it meanwhile
    Back(ChangeArgs),
    /// Wait until the old answers have died out, and look what the old entry still gets
    Wait(WaitArgs),
    /// After the move: give the new records the former TTL, and forget the former ones
    Finish(ChangeArgs),
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    pub whom: WhomArgs,
}

#[derive(Debug, Args)]
pub struct LowerArgs {
    #[command(flatten)]
    pub change: ChangeArgs,
    /// The TTL in seconds; records with a shorter one keep it
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=604_800))]
    pub ttl: u32,
}

#[derive(Debug, Args)]
pub struct PointArgs {
    #[command(flatten)]
    pub change: ChangeArgs,
    /// An address of the new entry (again for each), or the name that it has
    #[arg(long, required = true, value_name = "ADDRESS")]
    pub to: Vec<String>,
    /// The name is a CNAME now, and that is meant to go
    #[arg(long)]
    pub replace_cname: bool,
    /// A port where the new entry has to accept a connection first [default: those of the migration file's services]
    #[arg(long, value_name = "PORT")]
    pub probe: Vec<u16>,
}

#[derive(Debug, Args)]
pub struct WaitArgs {
    #[command(flatten)]
    pub whom: WhomArgs,
    /// How long at most, in seconds; without it as long as it takes
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// The metrics page of the gateway at the old entry, http://HOST:PORT/metrics: says what it still gets
    #[arg(long, value_name = "URL")]
    pub old_entry: Option<String>,
}

#[derive(Debug, Args)]
pub struct ChangeArgs {
    #[command(flatten)]
    pub whom: WhomArgs,
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// Say yes to what would be asked
    #[arg(long)]
    pub yes: bool,
    /// How long all authoritative servers are waited for, in seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub patience: u64,
}

/// Which name, and whom to ask about it.
#[derive(Debug, Args)]
pub struct WhomArgs {
    /// The name that users come by [default: the one host of the migration file's services]
    pub name: Option<String>,
    /// The zone it is in [default: asked of the resolver]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// The resolver to ask [default: the system's]
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = address)]
    pub resolver: Option<SocketAddr>,
    /// The authoritative servers, again for each [default: what the zone names]
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = address)]
    pub authority: Vec<SocketAddr>,
    /// The port of the authoritative servers that the zone names
    #[arg(long, default_value_t = 53, value_name = "PORT")]
    pub port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Provider {
    /// A name server that takes dynamic updates: BIND, Knot, PowerDNS, …
    Rfc2136,
    /// Amazon Route 53 (untested against the service)
    Route53,
    /// Aliyun DNS (untested against the service)
    Alidns,
    /// Tencent DNSPod (untested against the service)
    Dnspod,
}

/// Where the zone is edited, and as whom. Secrets are references: `env:NAME`, `file:PATH` or `cmd:PROGRAM ARG …`.
#[derive(Debug, Args)]
pub struct ProviderArgs {
    #[arg(long, value_enum, default_value_t = Provider::Rfc2136, value_name = "KIND")]
    pub provider: Provider,
    /// rfc2136: the server that takes the updates [default: the primary that the zone's SOA names]
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = address)]
    pub server: Option<SocketAddr>,
    /// rfc2136: the name of the TSIG key
    #[arg(long, value_name = "NAME")]
    pub key_name: Option<String>,
    /// rfc2136: the secret of the TSIG key, in base64
    #[arg(long, value_name = "REFERENCE")]
    pub key: Option<String>,
    /// rfc2136: hmac-sha256, hmac-sha384 or hmac-sha512
    #[arg(long, default_value = "hmac-sha256", value_name = "NAME")]
    pub algorithm: String,
    /// route53, alidns, dnspod: the access key
    #[arg(long, value_name = "REFERENCE")]
    pub access_key: Option<String>,
    /// route53, alidns, dnspod: the secret key
    #[arg(long, value_name = "REFERENCE")]
    pub secret_key: Option<String>,
    /// route53, alidns, dnspod: the token of temporary credentials
    #[arg(long, value_name = "REFERENCE")]
    pub session_token: Option<String>,
    /// route53: which hosted zone, when several have the name
    #[arg(long, value_name = "ID")]
    pub zone_id: Option<String>,
    /// route53, alidns, dnspod: the service's address, when it is not the usual one
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
}

/// `192.0.2.53`, `192.0.2.53:5353`, `2001:db8::53`, `[2001:db8::53]:5353`.
fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, 53));
    }
    text.parse()
        .map_err(|_| "an address is wanted, with or without a port: 192.0.2.53, [2001:db8::53]:5353".into())
}

pub async fn run(context: &Context<'_>, args: &DnsArgs) -> Result<Exit, CliError> {
    match &args.verb {
        DnsVerb::Show(args) => show(context, args).await,
        DnsVerb::Wait(args) => wait(context, args).await,
        DnsVerb::LowerTtl(args) => change(context, &args.change, &Wish::Lower { ttl: args.ttl }, &[]).await,
        DnsVerb::Point(args) => {
            let wish = Wish::Point { to: args.to.clone(), replace_cname: args.replace_cname };
            change(context, &args.change, &wish, &ports(context, args)).await
        }
        DnsVerb::Back(args) => change(context, args, &Wish::Back, &[]).await,
        DnsVerb::Finish(args) => change(context, args, &Wish::Finish, &[]).await,
    }
}

/// The name, whom to ask, and where its state is.
struct Asked {
    name: DnsName,
    resolver: Resolver,
    authority: Authority,
    file: StateFile,
}

impl Asked {
    async fn of(context: &Context<'_>, args: &WhomArgs) -> Result<Self, CliError> {
        let name = match &args.name {
            Some(name) => DnsName::parse(name)?,
            None => only_host(context)?,
        };
        let clock = system_clock();
        let resolver = match args.resolver {
            Some(address) => Resolver::new(address, clock.clone()),
            None => Resolver::of_system(clock.clone()),
        };
        let zone = match &args.zone {
            Some(zone) => DnsName::parse(zone)?,
            None => resolver.zone_of(&name).await?,
        };
        let authority = match args.authority.as_slice() {
            [] => Authority::find(&resolver, zone, args.port, clock).await?,
            given => Authority::given(zone, given, clock),
        };
        let file = StateFile::new(&context.home.join("dns"), &name);
        Ok(Self { name, resolver, authority, file })
    }
}

/// What the services of the migration file answer for, when that is one name.
fn only_host(context: &Context<'_>) -> Result<DnsName, CliError> {
    let which = |text: String| CliError::usage(text).hint("name it: `rehome entry dns VERB NAME`");
    let Ok((path, migration)) = context.migration() else {
        return Err(which("which name? There is no migration file that says it".into()));
    };
    let mut hosts: Vec<&String> = migration.services.iter().flat_map(|service| &service.hosts).collect();
    hosts.sort();
    hosts.dedup();
    match hosts.as_slice() {
        [host] => Ok(DnsName::parse(host)?),
        several => {
            Err(which(format!("which name? The services of {} have {}", path.display(), several.len())))
        }
    }
}

/// Where the new entry has to answer.
fn ports(context: &Context<'_>, args: &PointArgs) -> Vec<u16> {
    if !args.probe.is_empty() || context.migration_path().is_err() {
        return args.probe.clone();
    }
    let Ok((_, migration)) = context.migration() else { return Vec::new() };
    let port = |listen: &String| listen.rsplit_once(':')?.1.parse().ok();
    let mut ports: Vec<u16> = migration.services.iter().filter_map(|service| port(&service.listen)).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn secret(reference: Option<&String>, option: &str) -> Result<String, CliError> {
    let Some(reference) = reference else {
        return Err(CliError::usage(format!("`{option}` is needed for this provider"))
            .hint("give a reference to it: env:NAME, file:PATH or cmd:PROGRAM"));
    };
    resolve(&Secret(reference.clone())).map_err(|error| {
        CliError::new(Exit::Credentials, format!("{option}: {error}"))
            .hint("secrets are given as env:NAME, file:PATH or cmd:PROGRAM, never themselves")
    })
}

async fn zone(args: &ProviderArgs, asked: &Asked, port: u16) -> Result<Box<dyn Zone>, CliError> {
    let (zone, clock) = (asked.authority.zone.clone(), system_clock());
    if args.provider == Provider::Rfc2136 {
        let Some(name) = &args.key_name else {
            return Err(CliError::usage("`--key-name` is needed: the name of the TSIG key")
                .hint("make one with `tsig-keygen NAME`, and let the server take updates with it"));
        };
        let key = Key::new(name, &args.algorithm, &secret(args.key.as_ref(), "--key")?)?;
        let server = match args.server {
            Some(server) => server,
            None => asked.resolver.primary_of(&zone, port).await?,
        };
        return Ok(Box::new(Rfc2136::new(server, zone, key, clock)));
    }
    let session_token = args.session_token.as_ref();
    let credentials = Credentials {
        access_key: secret(args.access_key.as_ref(), "--access-key")?,
        secret_key: secret(args.secret_key.as_ref(), "--secret-key")?,
        session_token: session_token.map(|token| secret(Some(token), "--session-token")).transpose()?,
    };
    let usual = match args.provider {
        Provider::Alidns => alidns::ENDPOINT,
        Provider::Dnspod => dnspod::ENDPOINT,
        Provider::Route53 | Provider::Rfc2136 => route53::ENDPOINT,
    };
    let endpoint = Endpoint::parse(args.endpoint.as_deref().unwrap_or(usual))?;
    Ok(match args.provider {
        Provider::Alidns => Box::new(alidns::Alidns::zone(zone, endpoint, credentials, clock, VENDOR_POLL)?),
        Provider::Dnspod => Box::new(dnspod::Dnspod::zone(zone, endpoint, credentials, clock, VENDOR_POLL)?),
        Provider::Route53 | Provider::Rfc2136 => {
            let id = args.zone_id.as_deref();
            Box::new(Route53::open(zone, id, endpoint, credentials, clock, VENDOR_POLL).await?)
        }
    })
}

async fn change(
    context: &Context<'_>,
    args: &ChangeArgs,
    wish: &Wish,
    ports: &[u16],
) -> Result<Exit, CliError> {
    let printer = context.printer;
    let asked = Asked::of(context, &args.whom).await?;
    let zone = zone(&args.provider, &asked, args.whom.port).await?;
    let can = zone.capabilities();
    if !can.tested {
        printer.warning(&format!(
            "{} is untested against the service: look after it yourself, too",
            zone.provider()
        ));
    }
    if !can.compares {
        let text =
            "it cannot compare and set: what someone else changes in the same second may be written over";
        printer.warning(&format!("{}: {text}", zone.provider()));
    }
    let say = |line: &str| printer.talk(line);
    let steps = Steps {
        zone: &*zone,
        authority: &asked.authority,
        name: asked.name.clone(),
        file: asked.file.clone(),
        clock: system_clock(),
        patience: Duration::from_secs(args.patience),
        say: &say,
    };
    let mut plan = steps.plan(wish).await?;
    if plan.before != plan.after && matches!(wish, Wish::Point { .. }) {
        plan.doubts.extend(silent(&plan.after, ports).await);
    }
    confirm(printer, &asked.name, &plan, args.yes)?;
    let verb = plan.verb;
    let outcome = steps.carry_out(plan).await?;
    report(printer, &asked.name, verb, &outcome);
    Ok(Exit::Done)
}

fn confirm(printer: &Printer, name: &DnsName, plan: &Plan, yes: bool) -> Result<(), CliError> {
    if plan.before == plan.after {
        printer.talk(&format!("{name}: {} (as it is now)", plan.before));
    } else {
        printer.talk(&format!("{name}: {}", plan.before));
        printer.talk(&format!("{} -> {}", " ".repeat(name.as_str().len().saturating_sub(2)), plan.after));
    }
    for note in &plan.notes {
        printer.talk(&format!("note: {note}"));
    }
    for doubt in &plan.doubts {
        printer.warning(doubt);
    }
    if plan.doubts.is_empty() {
        return Ok(());
    }
    printer.confirm("Do it all the same?", yes)
}

/// The addresses of the new entry that take no connection.
async fn silent(entry: &Entry, ports: &[u16]) -> Vec<String> {
    let mut silent = Vec::new();
    for (_, value) in entry.records() {
        for port in ports {
            let connected = timeout(PROBE_TIME, tokio::net::TcpStream::connect((value, *port))).await;
            let why = match connected {
                Ok(Ok(_)) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", PROBE_TIME.as_secs()),
            };
            silent.push(format!("the new entry does not answer at {value} port {port}: {why}"));
        }
    }
    silent
}

fn report(printer: &Printer, name: &DnsName, verb: Verb, outcome: &Outcome) {
    if printer.json {
        printer.json(&json!({
            "ui": "1.0", "name": name, "verb": verb, "changed": outcome.changed, "entry": outcome.entry,
            "former": outcome.former, "seen_at": outcome.seen_at, "older_gone": outcome.older_gone,
            "notes": outcome.notes,
        }));
        return;
    }
    let how = if outcome.changed { "is now" } else { "was already" };
    printer.line(&format!("{name} {how} {}", outcome.entry));
    let left = outcome.older_gone.as_second() - Timestamp::now().as_second();
    if left > 0 {
        let left = span(left as f64);
        printer.line(&format!(
            "caches that keep to the rules have nothing older from {} (in {left})",
            outcome.older_gone
        ));
    } else {
        printer
            .line(&format!("caches that keep to the rules have nothing older since {}", outcome.older_gone));
    }
    let next = match verb {
        Verb::LowerTtl => format!("then: rehome entry dns point {name} --to ADDRESS …"),
        Verb::Point => {
            printer.line(
                "keep the old entry listening and proxying to the new side, until then and until it gets nothing any more",
            );
            format!("to take it back: rehome entry dns back {name} …")
        }
        Verb::Back => "keep the new entry listening until then".into(),
        Verb::Finish => "the former records are forgotten".into(),
    };
    printer.line(&next);
}

async fn show(context: &Context<'_>, args: &ShowArgs) -> Result<Exit, CliError> {
    let asked = Asked::of(context, &args.whom).await?;
    let sights = asked.authority.look(&asked.name).await;
    let resolved = asked.resolver.entry(&asked.name).await.map_err(|error| error.to_string());
    let state = asked.file.load()?;
    let agree = sights.windows(2).all(|pair| match (&pair[0].view, &pair[1].view) {
        (Ok(one), Ok(other)) => one.entry == other.entry,
        _ => false,
    }) && sights.iter().all(|sight| sight.view.is_ok());
    let printer = context.printer;
    if printer.json {
        printer.json(&document(&asked, &sights, &resolved, state.as_ref(), agree));
        return Ok(Exit::Done);
    }
    printer.line(&format!("{} in the zone {}", asked.name, asked.authority.zone));
    for Sight { server, address, view } in &sights {
        match view {
            Ok(view) => {
                let signed = if view.signed { ", signed (DNSSEC)" } else { "" };
                printer
                    .line(&format!("  {server} ({address}): {}, serial {}{signed}", view.entry, view.serial));
                for obstacle in &view.obstacles {
                    printer.line(&format!("    not for rehome to change: {obstacle}"));
                }
            }
            Err(error) => printer.line(&format!("  {server} ({address}): {error}")),
        }
    }
    let address = asked.resolver.address;
    match &resolved {
        Ok(entry) => printer.line(&format!("  resolver {address}: {entry} (what is left of the TTL)")),
        Err(error) => printer.line(&format!("  resolver {address}: {error}")),
    }
    if !agree {
        printer.warning("not all authoritative servers answer the same");
    }
    if let Some(state) = &state {
        printer.line(&format!("  before rehome: {}", state.former));
        printer.line(&format!("  {}", standing(state)));
    }
    Ok(Exit::Done)
}

fn standing(state: &State) -> String {
    let verb = state.last().map_or_else(String::new, |last| word(last.verb).to_owned());
    match state.older_gone() {
        Some(gone) if gone <= Timestamp::now() => {
            format!("`{verb}` is done, older answers are gone since {gone}")
        }
        Some(gone) => format!("`{verb}` is done, older answers live until {gone}"),
        None => format!("`{verb}` was not seen at every server yet: run it again to go on"),
    }
}

fn word(verb: Verb) -> &'static str {
    match verb {
        Verb::LowerTtl => "lower-ttl",
        Verb::Point => "point",
        Verb::Back => "back",
        Verb::Finish => "finish",
    }
}

fn document(
    asked: &Asked,
    sights: &[Sight],
    resolved: &Result<Entry, String>,
    state: Option<&State>,
    agree: bool,
) -> Value {
    let servers: Vec<Value> = sights
        .iter()
        .map(|Sight { server, address, view }| match view {
            Ok(view) => json!({
                "server": server, "address": address, "entry": view.entry, "serial": view.serial, "signed": view.signed,
                "negative_ttl": view.negative_ttl, "obstacles": view.obstacles,
            }),
            Err(error) => json!({ "server": server, "address": address, "error": error }),
        })
        .collect();
    let resolver = match resolved {
        Ok(entry) => json!({ "address": asked.resolver.address, "entry": entry }),
        Err(error) => json!({ "address": asked.resolver.address, "error": error }),
    };
    json!({
        "ui": "1.0", "name": asked.name, "zone": asked.authority.zone, "agree": agree, "servers": servers,
        "resolver": resolver, "state": state, "older_gone": state.and_then(State::older_gone),
    })
}

async fn wait(context: &Context<'_>, args: &WaitArgs) -> Result<Exit, CliError> {
    let asked = Asked::of(context, &args.whom).await?;
    let Some(state) = asked.file.load()? else {
        return Err(CliError::not_found(format!("{} was not changed by rehome on this machine", asked.name))
            .hint("lower its TTL first: `rehome entry dns lower-ttl`"));
    };
    let (Some(gone), Some(last)) = (state.older_gone(), state.last()) else {
        return Err(CliError::new(Exit::GateNotMet, standing(&state)));
    };
    let before = match &args.old_entry {
        Some(url) => Some(usage::requests(url).await?),
        None => None,
    };
    let begun = tokio::time::Instant::now();
    let over = until(context.printer, gone, args.timeout.map(Duration::from_secs)).await;
    let resolved = asked.resolver.entry(&asked.name).await.map_err(|error| error.to_string());
    let kept_older = resolved.as_ref().is_ok_and(|entry| !entry.leads_where(&last.entry));
    if let (true, Ok(entry)) = (over && kept_older, &resolved) {
        let address = asked.resolver.address;
        context.printer.warning(&format!("resolver {address} keeps an older answer past its time: {entry}"));
    }
    let still = match (&args.old_entry, before) {
        (Some(url), Some(before)) => {
            // At least this long is counted, whether there was anything to wait for or not.
            tokio::time::sleep(COUNT_TIME.saturating_sub(begun.elapsed())).await;
            Some(usage::requests(url).await?.saturating_sub(before))
        }
        _ => None,
    };
    let counted = begun.elapsed().as_secs_f64();
    if context.printer.json {
        context.printer.json(&json!({
            "ui": "1.0", "name": asked.name, "verb": last.verb, "entry": last.entry, "older_gone": gone, "over": over,
            "resolver_keeps_older": kept_older, "old_entry_requests": still, "counted_seconds": counted.round(),
        }));
    } else {
        context.printer.line(&format!("{}: {}", asked.name, standing(&state)));
        if let Some(still) = still {
            context.printer.line(&format!("the old entry got {still} requests in {}", span(counted)));
        }
    }
    Ok(if over { Exit::Done } else { Exit::GateNotMet })
}

/// Waits for a time of the clock; false when the patience ended first.
async fn until(printer: &Printer, gone: Timestamp, patience: Option<Duration>) -> bool {
    let begun = tokio::time::Instant::now();
    loop {
        let left = Duration::try_from(gone.duration_since(Timestamp::now())).unwrap_or_default();
        let may = patience.map_or(Duration::MAX, |patience| patience.saturating_sub(begun.elapsed()));
        if left.is_zero() || may.is_zero() {
            return left.is_zero();
        }
        printer.talk(&format!("older answers live until {gone}, for another {}", span(left.as_secs_f64())));
        tokio::time::sleep(left.min(may).min(WAIT_STEP)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_a_port() {
        for (text, read) in [
            ("192.0.2.53", "192.0.2.53:53"),
            ("192.0.2.53:5353", "192.0.2.53:5353"),
            ("2001:db8::53", "[2001:db8::53]:53"),
            ("[2001:db8::53]:5353", "[2001:db8::53]:5353"),
        ] {
            assert_eq!(address(text).unwrap().to_string(), read);
        }
        assert!(address("ns1.example.com").is_err());
    }
}
