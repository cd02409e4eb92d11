//! The services of a migration file as the drivers of proxies want them: addresses, the gateway as the proxy reaches it, and
//! whether the gateway believes the proxy.

use crate::commands::Context;
use crate::exit::CliError;
use clap::Args;
use rehome_entry::address::Address;
use rehome_entry::quiet::{NoRun, Quiet};
use rehome_entry::service::Service;
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

/// Whether the run allows a change of the entry right now: never between ARMED and OPEN.
pub fn quiet(_: &Context<'_>) -> impl Quiet + use<> {
    NoRun
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
