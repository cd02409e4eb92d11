//! The services of a migration file as the drivers of proxies want them: addresses, the gateway as the proxy reaches it, and
//! whether the gateway believes the proxy.

use crate::commands::{Context, runs};
use crate::daemon::ports::EntryLock;
use crate::exit::CliError;
use crate::paths::{self, RunFolder};
use async_trait::async_trait;
use clap::Args;
use rehome_engine::EntryPort;
use rehome_entry::address::Address;
use rehome_entry::quiet::{Guard, Quiet};
use rehome_entry::service::Service;
use rehome_journal::RunView;
use rehome_spec::{Migration, UpstreamHttp};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

#[derive(Debug, Args)]
pub struct Which {
    /// The service, when not all of the migration file are meant; repeatable
    #[arg(long = "service", global = true, value_name = "NAME")]
    names: Vec<String>,
    /// Where this machine reaches the gateway, when it does not follow from `listen` (one service only)
    #[arg(long, global = true, value_name = "URL")]
    gateway: Option<String>,
}

/// Whether the runs of this migration allow a change of the entry right now: never between ARMED and OPEN. A run on another machine
/// cannot be asked.
pub fn quiet(context: &Context<'_>) -> impl Quiet + use<> {
    let name = context.migration().map(|(_, migration)| migration.migration.name).unwrap_or_default();
    let runs = paths::all_runs(&context.home).unwrap_or_default();
    let own = runs.into_iter().filter(|run| runs::belongs_to(run, &name) && !runs::is_over(run));
    Runs(own.collect())
}

/// Runs that are under way, with the lock that a switch of theirs holds.
#[derive(Debug)]
struct Runs(Vec<RunFolder>);

#[async_trait]
impl Quiet for Runs {
    async fn may_change_now(&self) -> Result<Guard, String> {
        let mut taken = Vec::new();
        for run in &self.0 {
            let lock = EntryLock { path: run.entry_lock() };
            let entry = lock.take().map_err(|error| error.text)?;
            taken
                .push(entry.ok_or_else(|| format!("run {} is switching, or changes its entry", run.name()))?);
            // Taken first, looked at then: a switch whose engine died holds no lock, and is a switch all the same.
            let view = RunView::load(&run.path)
                .map_err(|error| format!("the state of run {} cannot be read: {error}", run.name()))?;
            if view.stage.in_switch() {
                return Err(format!("run {} is in {}", run.name(), view.state));
            }
        }
        Ok(Guard::holding(taken))
    }
}

/// The services that are meant, with the part of the migration file that they came from.
pub fn of(context: &Context<'_>, which: &Which) -> Result<(Migration, Vec<Service>), CliError> {
    let (_, migration) = context.migration()?;
    if let Some(unknown) =
        which.names.iter().find(|name| !migration.services.iter().any(|service| service.name == **name))
    {
        let names: Vec<&str> = migration.services.iter().map(|service| service.name.as_str()).collect();
        return Err(CliError::not_found(format!("the migration file has no service `{unknown}`"))
            .hint(format!("it has {}", names.join(", "))));
    }
    let meant: Vec<&rehome_spec::Service> = migration
        .services
        .iter()
        .filter(|service| which.names.is_empty() || which.names.contains(&service.name))
        .collect();
    if meant.is_empty() {
        return Err(CliError::not_found("the migration file has no service, so nothing leads to a gateway")
            .hint("add a `[[services]]` table: name, listen, source, target"));
    }
    if which.gateway.is_some() && meant.len() > 1 {
        return Err(CliError::usage("`--gateway` is one service's, and several are meant")
            .hint("add `--service NAME`"));
    }
    let services: Result<Vec<Service>, CliError> =
        meant.into_iter().map(|service| one(service, &migration, which)).collect();
    let services = services?;
    Ok((migration, services))
}

fn one(service: &rehome_spec::Service, migration: &Migration, which: &Which) -> Result<Service, CliError> {
    let all = |first: &String, peers: &[String]| -> Result<Vec<Address>, CliError> {
        let addresses = std::iter::once(first).chain(peers).map(|text| Address::parse(text));
        Ok(addresses.collect::<Result<_, _>>()?)
    };
    let gateway = match &which.gateway {
        Some(url) => Address::parse(url)?,
        None => reached_at(service)?,
    };
    let hold = &migration.switch.hold;
    Ok(Service {
        name: service.name.clone(),
        source: all(&service.source, &service.source_peers)?,
        target: all(&service.target, &service.target_peers)?,
        trusts_entry: trusts(service, &gateway),
        gateway,
        health: service.health.clone(),
        hold_age: hold.age.0,
        hold_requests: hold.requests,
        proxy_protocol: service.proxy_protocol,
        http2: service.upstream_http == UpstreamHttp::Two,
    })
}

/// `listen` as a client of this machine reaches it: every address of it means the loopback one.
fn reached_at(service: &rehome_spec::Service) -> Result<Address, CliError> {
    let secure = !service.tls.is_empty();
    let scheme = if secure { "https" } else { "http" };
    let Ok(listen) = service.listen.parse::<SocketAddr>() else {
        return Ok(Address::parse(&format!("{scheme}://{}", service.listen))?);
    };
    let ip: IpAddr = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(Address { secure, host: ip.to_string(), port: listen.port() })
}

/// Whether the address that this machine shows to the gateway is among those that it believes.
fn trusts(service: &rehome_spec::Service, gateway: &Address) -> Option<bool> {
    if service.trusted_proxies.is_empty() {
        return Some(false);
    }
    let own = own_address(gateway)?;
    Some(service.trusted_proxies.iter().any(|network| network.contains(own)))
}

/// Nothing is sent: the system only chooses the way.
fn own_address(gateway: &Address) -> Option<IpAddr> {
    let to = SocketAddr::new(gateway.host.parse().ok()?, gateway.port);
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
