//! What the world is told about a name: the zone's authoritative servers, each of them asked, and a resolver.
//! Reads only. An answer without authority is not counted as one.

use super::exchange::{exchange, question, unreachable};
use super::record::spelled;
use super::tsig::Key;
use super::{Clock, DnsName, Entry, Kind};
use crate::EntryError;
use futures::future::join_all;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::svcb::SvcParamKey;
use hickory_proto::rr::{RData, Record, RecordType};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// More name servers than any zone has.
const MAX_SERVERS: usize = 32;
const DNAME: u16 = 39;

/// What one server answers.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub entry: Entry,
    /// The zone's SOA record as this server has it.
    pub(crate) soa: Record,
    /// The number of the zone's version.
    pub serial: u32,
    /// How long a cache may keep that something is not there, in seconds.
    pub negative_ttl: u32,
    /// The answers came with DNSSEC signatures.
    pub signed: bool,
    /// What a plain record set would flatten, or what would still lead to the old address.
    pub obstacles: Vec<String>,
}

/// One address of one authoritative server, and what came of asking it.
#[derive(Debug, Clone)]
pub struct Sight {
    pub server: String,
    pub address: SocketAddr,
    /// Or why there is none, for people.
    pub view: Result<View, String>,
}

/// Asks one authoritative server for all that matters about a name. The SOA comes first: what is read after it is at
/// least as new, so that a change against this serial overwrites nothing that was not seen.
pub(crate) async fn view_of(
    server: SocketAddr,
    zone: &DnsName,
    name: &DnsName,
    key: Option<&Key>,
    clock: &Clock,
) -> Result<View, EntryError> {
    let ask = |of: &DnsName, kind| {
        let message = question(of.to_wire(), kind, false);
        async move { authoritative(server, exchange(server, message, key, clock).await?) }
    };
    let answer = ask(zone, RecordType::SOA).await?;
    let soa = answer
        .answers
        .iter()
        .find(|record| record.record_type() == RecordType::SOA && spelled(&record.name) == zone.as_str())
        .cloned()
        .ok_or_else(|| not_here(server, &format!("it does not serve the zone {zone}")))?;
    let RData::SOA(data) = &soa.data else { return Err(not_here(server, "its SOA record is none")) };
    let mut view = View {
        entry: Entry::default(),
        serial: data.serial,
        negative_ttl: data.minimum.min(soa.ttl),
        signed: false,
        obstacles: Vec::new(),
        soa,
    };
    for kind in [RecordType::A, RecordType::AAAA, RecordType::HTTPS] {
        view.take(name, &ask(name, kind).await?.answers);
    }
    view.obstacles.sort();
    view.obstacles.dedup();
    Ok(view)
}

impl View {
    fn take(&mut self, name: &DnsName, answers: &[Record]) {
        for record in answers {
            if u16::from(record.record_type()) == DNAME {
                self.obstacles.push(format!("it lies below the DNAME at {}", spelled(&record.name)));
            }
            if spelled(&record.name) != name.as_str() {
                continue;
            }
            self.signed |= record.record_type() == RecordType::RRSIG;
            if let Some((kind, value)) = Kind::of_wire(&record.data) {
                self.entry.add(kind, record.ttl, value);
            }
            if has_hints(&record.data) {
                let text = "its HTTPS record names addresses (ipv4hint, ipv6hint), and browsers go there";
                self.obstacles.push(text.into());
            }
        }
    }
}

fn has_hints(data: &RData) -> bool {
    let RData::HTTPS(https) = data else { return false };
    https.0.svc_params.iter().any(|(key, _)| matches!(key, SvcParamKey::Ipv4Hint | SvcParamKey::Ipv6Hint))
}

fn not_here(server: SocketAddr, text: &str) -> EntryError {
    EntryError::Refused { whom: format!("name server {server}"), text: text.to_owned() }
}

/// Only what a server answers from its own zone, and that a name is not there is an answer too.
pub(crate) fn authoritative(server: SocketAddr, answer: Message) -> Result<Message, EntryError> {
    match answer.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain if answer.authoritative => Ok(answer),
        ResponseCode::NoError | ResponseCode::NXDomain => Err(not_here(
            server,
            "it is not authoritative for this name (a resolver, or the name is in a zone of its own)",
        )),
        ResponseCode::Refused => {
            Err(not_here(server, "it does not answer questions about this zone (REFUSED)"))
        }
        ResponseCode::ServFail => Err(unreachable(server, "it cannot answer just now (SERVFAIL)")),
        code => Err(not_here(server, &code.to_string())),
    }
}

/// A resolver: finds zones and servers, and shows what users get.
#[derive(Clone)]
pub struct Resolver {
    pub address: SocketAddr,
    clock: Clock,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Resolver {
    pub fn new(address: SocketAddr, clock: Clock) -> Self {
        Self { address, clock }
    }

    /// The first one of `/etc/resolv.conf`, else this machine.
    pub fn of_system(clock: Clock) -> Self {
        let text = std::fs::read_to_string(Path::new("/etc/resolv.conf")).unwrap_or_default();
        Self::new(first_resolver(&text), clock)
    }

    async fn ask(&self, name: &DnsName, kind: RecordType) -> Result<Vec<Record>, EntryError> {
        let message = question(name.to_wire(), kind, true);
        let answer = exchange(self.address, message, None, &self.clock).await?;
        match answer.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer.answers),
            ResponseCode::ServFail => Err(unreachable(self.address, "it could not find out (SERVFAIL)")),
            code => Err(not_here(self.address, &format!("it does not resolve for us ({code})"))),
        }
    }

    /// The zone that a name is in.
    ///
    /// # Errors
    /// When the resolver does not answer or knows none.
    pub async fn zone_of(&self, name: &DnsName) -> Result<DnsName, EntryError> {
        for zone in name.and_above() {
            let answers = self.ask(&zone, RecordType::SOA).await?;
            let is_top = |record: &Record| {
                record.record_type() == RecordType::SOA && spelled(&record.name) == zone.as_str()
            };
            if answers.iter().any(is_top) {
                return Ok(zone);
            }
        }
        Err(EntryError::unfit(
            format!("resolver {} knows no zone that {name} is in", self.address),
            "name it with `--zone ZONE`, or another resolver with `--resolver ADDRESS`",
        ))
    }

    /// The server that a zone's SOA names as the one where it is edited.
    ///
    /// # Errors
    /// When it cannot be found.
    pub async fn primary_of(&self, zone: &DnsName, port: u16) -> Result<SocketAddr, EntryError> {
        let unknown = || {
            EntryError::unfit(
                format!("which server takes updates for {zone} does not follow from its SOA"),
                "name it with `--server ADDRESS`",
            )
        };
        let answers = self.ask(zone, RecordType::SOA).await?;
        let primary = answers.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => DnsName::parse(&spelled(&soa.mname)).ok(),
            _ => None,
        });
        let addresses = self.addresses(&primary.ok_or_else(unknown)?, port).await?;
        addresses.into_iter().next().ok_or_else(unknown)
    }

    async fn addresses(&self, host: &DnsName, port: u16) -> Result<Vec<SocketAddr>, EntryError> {
        let mut found = Vec::new();
        for kind in [RecordType::A, RecordType::AAAA] {
            for record in self.ask(host, kind).await? {
                let address = match &record.data {
                    RData::A(address) => IpAddr::V4(address.0),
                    RData::AAAA(address) => IpAddr::V6(address.0),
                    _ => continue,
                };
                found.push(SocketAddr::new(address, port));
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// What users of this resolver get, with the seconds it will still say so.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn entry(&self, name: &DnsName) -> Result<Entry, EntryError> {
        let mut entry = Entry::default();
        for kind in [RecordType::A, RecordType::AAAA] {
            for record in self.ask(name, kind).await? {
                if spelled(&record.name) == name.as_str()
                    && let Some((kind, value)) = Kind::of_wire(&record.data)
                {
                    entry.add(kind, record.ttl, value);
                }
            }
        }
        Ok(entry)
    }
}

fn first_resolver(text: &str) -> SocketAddr {
    let address = text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            return None;
        }
        words.next()?.parse().ok()
    });
    SocketAddr::new(address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)), 53)
}

/// The authoritative servers of a zone.
#[derive(Clone)]
pub struct Authority {
    pub zone: DnsName,
    servers: Vec<(String, SocketAddr)>,
    clock: Clock,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("zone", &self.zone)
            .field("servers", &self.servers)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// These servers and no others.
    pub fn given(zone: DnsName, servers: &[SocketAddr], clock: Clock) -> Self {
        let servers = servers.iter().map(|address| (address.to_string(), *address)).collect();
        Self { zone, servers, clock }
    }

    /// The servers that the zone's NS records name, each at all of its addresses.
    ///
    /// # Errors
    /// When one of them has no address, or there are none: then nothing could be said about all of them.
    pub async fn find(
        resolver: &Resolver,
        zone: DnsName,
        port: u16,
        clock: Clock,
    ) -> Result<Self, EntryError> {
        let unfit = |what: String| {
            EntryError::unfit(
                what,
                "name the authoritative servers with `--authority ADDRESS`, once for each",
            )
        };
        let answers = resolver.ask(&zone, RecordType::NS).await?;
        let mut names: Vec<String> = answers
            .iter()
            .filter_map(|record| match &record.data {
                RData::NS(host) => Some(spelled(&host.0)),
                _ => None,
            })
            .collect();
        names.sort();
        names.dedup();
        if names.is_empty() || names.len() > MAX_SERVERS {
            return Err(unfit(format!("the zone {zone} has {} name servers", names.len())));
        }
        let mut servers = Vec::new();
        for name in names {
            let addresses = match DnsName::parse(&name) {
                Ok(host) => resolver.addresses(&host, port).await?,
                Err(_) => Vec::new(),
            };
            if addresses.is_empty() {
                return Err(unfit(format!("the name server {name} of {zone} has no address")));
            }
            servers.extend(addresses.into_iter().map(|address| (name.clone(), address)));
        }
        Ok(Self { zone, servers, clock })
    }

    /// Every server is asked. An address that no way leads to from here (often IPv6) is left out where the same server
    /// answers at another one.
    pub async fn look(&self, name: &DnsName) -> Vec<Sight> {
        let asked = self.servers.iter().map(|(server, address)| async move {
            let has_way = has_way(*address).await;
            let view = match has_way {
                true => view_of(*address, &self.zone, name, None, &self.clock)
                    .await
                    .map_err(|error| error.to_string()),
                false => Err("no way leads there from this machine".to_owned()),
            };
            (Sight { server: server.clone(), address: *address, view }, has_way)
        });
        let all = join_all(asked).await;
        let answers =
            |server: &str| all.iter().any(|(sight, _)| sight.server == server && sight.view.is_ok());
        let counts = |(sight, has_way): &&(Sight, bool)| *has_way || !answers(&sight.server);
        all.iter().filter(counts).map(|(sight, _)| sight.clone()).collect()
    }
}

/// Whether the kernel has a route; sends nothing.
async fn has_way(address: SocketAddr) -> bool {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    match tokio::net::UdpSocket::bind(any).await {
        Ok(socket) => socket.connect(address).await.is_ok(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_s_resolver_is_the_first_one_named() {
        let text = "# a comment\nsearch example.com\nnameserver fe80::1%eth0\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n";
        assert_eq!(first_resolver(text).to_string(), "192.0.2.53:53");
        assert_eq!(first_resolver("").to_string(), "127.0.0.1:53");
    }
}
