//! Any server that takes dynamic updates (RFC 2136) signed with a TSIG key (RFC 8945): BIND, Knot, PowerDNS, Windows, …
//!
//! An update says what it was made of: every record set of the name as it was read, and the serial of the zone. When any of
//! it changed meanwhile the server refuses, and we look again. So nobody's change is ever written over, a mere TTL included.

use super::authority::{View, authoritative, view_of};
use super::exchange::{exchange, question, unreachable};
use super::tsig::Key;
use super::{Capabilities, Clock, DnsName, Entry, Found, Kind, Zone};
use crate::EntryError;
use async_trait::async_trait;
use futures::future::try_join_all;
use hickory_proto::op::{Message, OpCode, Query, ResponseCode, UpdateMessage};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use std::net::SocketAddr;

/// A busy zone has another serial with every change of anybody; after so many tries it is too busy.
const ATTEMPTS: u32 = 6;
/// PowerDNS' alias at a zone's top: a private type.
const ALIAS: RecordType = RecordType::Unknown(65_401);
/// What else may be at a name. They stay; where one of them is, no CNAME can be.
const BESIDES: [RecordType; 13] = [
    RecordType::MX,
    RecordType::TXT,
    RecordType::NS,
    RecordType::SRV,
    RecordType::CAA,
    RecordType::HTTPS,
    RecordType::SVCB,
    RecordType::NAPTR,
    RecordType::SSHFP,
    RecordType::TLSA,
    RecordType::HINFO,
    RecordType::DS,
    ALIAS,
];

pub struct Rfc2136 {
    server: SocketAddr,
    zone: DnsName,
    key: Key,
    clock: Clock,
}

impl std::fmt::Debug for Rfc2136 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rfc2136")
            .field("server", &self.server)
            .field("zone", &self.zone)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl Rfc2136 {
    pub fn new(server: SocketAddr, zone: DnsName, key: Key, clock: Clock) -> Self {
        Self { server, zone, key, clock }
    }

    async fn view(&self, name: &DnsName) -> Result<View, EntryError> {
        view_of(self.server, &self.zone, name, Some(&self.key), &self.clock).await
    }

    /// Which of the other types are at the name.
    async fn besides(&self, name: &DnsName) -> Result<Vec<RecordType>, EntryError> {
        let asked = BESIDES.map(|kind| async move {
            let message = question(name.to_wire(), kind, false);
            let answer = exchange(self.server, message, Some(&self.key), &self.clock).await?;
            let answer = authoritative(self.server, answer)?;
            Ok::<_, EntryError>(
                answer.answers.iter().any(|record| record.record_type() == kind).then_some(kind),
            )
        });
        let mut found: Vec<RecordType> = try_join_all(asked).await?.into_iter().flatten().collect();
        if name == &self.zone {
            found.push(RecordType::SOA);
        }
        Ok(found)
    }

    fn refusal(&self, code: ResponseCode) -> EntryError {
        let refused =
            |text: String| EntryError::Refused { whom: format!("name server {}", self.server), text };
        let (zone, key) = (&self.zone, self.key.name());
        match code {
            ResponseCode::Refused => refused(format!(
                "the key `{key}` may not change this name (REFUSED): allow it in the zone's update policy"
            )),
            ResponseCode::NotAuth => refused(format!(
                "it is not authoritative for {zone} (NOTAUTH): name the zone's primary with `--server`"
            )),
            ResponseCode::NotZone => refused(format!("the name is not in the zone {zone} (NOTZONE)")),
            ResponseCode::NotImp => refused("it takes no dynamic updates (NOTIMP)".into()),
            ResponseCode::ServFail => {
                unreachable(self.server, "it could not make the change (SERVFAIL); its log says why")
            }
            code => refused(format!("it answered {code} to the update")),
        }
    }

    async fn try_once(&self, name: &DnsName, change: &Change<'_>) -> Result<Tried, EntryError> {
        let message = change.message(&self.zone, name);
        match exchange(self.server, message, Some(&self.key), &self.clock).await {
            Ok(answer) => Ok(match answer.response_code {
                ResponseCode::NoError => Tried::Made,
                ResponseCode::NXRRSet
                | ResponseCode::YXRRSet
                | ResponseCode::NXDomain
                | ResponseCode::YXDomain => Tried::NotAsBefore,
                code => return Err(self.refusal(code)),
            }),
            // It may have been made, and only the answer was lost.
            Err(error) if error.is_retryable() => match self.view(name).await {
                Ok(view) if view.entry == *change.after => Ok(Tried::Made),
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }
}

enum Tried {
    Made,
    NotAsBefore,
}

/// An update as RFC 2136 has it: what must hold, and what is done then.
struct Change<'a> {
    before: &'a Entry,
    after: &'a Entry,
    /// The SOA as it was read, when the whole zone must be as it was.
    soa: Option<Record>,
}

impl Change<'_> {
    fn message(&self, zone: &DnsName, name: &DnsName) -> Message {
        let mut message = Message::query();
        message.metadata.op_code = OpCode::Update;
        message.metadata.recursion_desired = false;
        let mut section = Query::new();
        section.set_name(zone.to_wire()).set_query_class(DNSClass::IN).set_query_type(RecordType::SOA);
        message.add_zone(section);
        let owner = name.to_wire();
        if let Some(mut soa) = self.soa.clone() {
            soa.ttl = 0;
            message.add_pre_requisite(soa);
        }
        for kind in Kind::ALL {
            match self.before.get(kind) {
                Some(_) => records(self.before, kind, &owner, true).for_each(|record| {
                    message.add_pre_requisite(record);
                }),
                None => {
                    message.add_pre_requisite(empty(&owner, kind.record_type(), DNSClass::NONE));
                }
            }
        }
        if self.after.get(Kind::Cname).is_some() {
            for kind in BESIDES {
                message.add_pre_requisite(empty(&owner, kind, DNSClass::NONE));
            }
        }
        let differs = |kind: &Kind| self.before.get(*kind) != self.after.get(*kind);
        for kind in Kind::ALL.into_iter().filter(differs).filter(|kind| self.before.get(*kind).is_some()) {
            message.add_update(empty(&owner, kind.record_type(), DNSClass::ANY));
        }
        for kind in Kind::ALL.into_iter().filter(differs) {
            records(self.after, kind, &owner, false).for_each(|record| {
                message.add_update(record);
            });
        }
        message
    }
}

/// In a condition the time to live is 0.
fn records<'a>(
    entry: &'a Entry,
    kind: Kind,
    owner: &'a Name,
    condition: bool,
) -> impl Iterator<Item = Record> + 'a {
    entry.get(kind).into_iter().flat_map(move |set| {
        let ttl = if condition { 0 } else { set.ttl };
        let wire = set.values.iter().filter_map(move |value| kind.to_wire(value));
        wire.map(move |data| Record::from_rdata(owner.clone(), ttl, data))
    })
}

/// A record without data: "there is no such set" (class NONE) or "away with this set" (class ANY).
fn empty(owner: &Name, kind: RecordType, class: DNSClass) -> Record {
    let mut record = Record::update0(owner.clone(), 0, kind);
    record.dns_class = class;
    record
}

#[async_trait]
impl Zone for Rfc2136 {
    fn provider(&self) -> String {
        format!("rfc2136 at {}", self.server)
    }

    fn origin(&self) -> &DnsName {
        &self.zone
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { atomic: true, compares: true, tested: true }
    }

    async fn read(&self, name: &DnsName) -> Result<Found, EntryError> {
        let view = self.view(name).await?;
        let besides = self.besides(name).await?;
        let mut obstacles = view.obstacles;
        if besides.contains(&ALIAS) {
            obstacles.push("it is an alias that the server follows itself (ALIAS)".into());
        }
        let besides =
            besides.into_iter().filter(|kind| *kind != ALIAS).map(|kind| kind.to_string()).collect();
        Ok(Found { entry: view.entry, uneven: false, besides, obstacles })
    }

    async fn replace(&self, name: &DnsName, before: &Entry, after: &Entry) -> Result<(), EntryError> {
        let mut refused_at = None;
        for _ in 0..ATTEMPTS {
            let view = self.view(name).await?;
            if view.entry == *after {
                return Ok(());
            }
            if view.entry != *before {
                return Err(EntryError::Changed { what: name.to_string() });
            }
            // Refused, and yet nothing changed: then it is not the serial; some servers cannot compare an SOA.
            let whole_zone = refused_at != Some(view.serial);
            let change = Change { before, after, soa: whole_zone.then_some(view.soa) };
            match self.try_once(name, &change).await? {
                Tried::Made => return Ok(()),
                Tried::NotAsBefore if whole_zone => refused_at = Some(view.serial),
                Tried::NotAsBefore => {
                    return Err(EntryError::unfit(
                        format!(
                            "{name} is answered by {} from something else than its own records",
                            self.server
                        ),
                        "a wildcard, an ALIAS, a view or records of another type may be behind it: give the name plain \
                         records of its own first",
                    ));
                }
            }
        }
        Err(unreachable(
            self.server,
            &format!("the zone {} changed {ATTEMPTS} times while we tried", self.zone),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(targets: &[&str], ttl: u32) -> Entry {
        Entry::to(&targets.iter().map(|&text| text.to_owned()).collect::<Vec<_>>(), ttl).unwrap()
    }

    fn lines(records: &[Record]) -> Vec<String> {
        records
            .iter()
            .map(|record| {
                format!("{} {} {} {}", record.dns_class, record.ttl, record.record_type(), record.data)
            })
            .map(|line| line.trim().to_owned())
            .collect()
    }

    #[test]
    fn only_what_changes_is_touched_and_all_of_it_is_compared() {
        let (before, after) =
            (entry(&["192.0.2.1", "2001:db8::1"], 300), entry(&["192.0.2.9", "2001:db8::1"], 300));
        let name = DnsName::parse("shop.example.com").unwrap();
        let zone = DnsName::parse("example.com").unwrap();
        let message = Change { before: &before, after: &after, soa: None }.message(&zone, &name);
        let conditions = lines(&message.answers);
        assert_eq!(conditions.len(), 3, "{conditions:?}");
        assert!(conditions[0].starts_with("IN 0 A 192.0.2.1"), "{conditions:?}");
        assert!(conditions[1].starts_with("IN 0 AAAA 2001:db8::1"), "{conditions:?}");
        assert!(conditions[2].starts_with("NONE 0 CNAME"), "{conditions:?}");
        let updates = lines(&message.authorities);
        assert_eq!(updates.len(), 2, "{updates:?}");
        assert!(updates[0].starts_with("ANY 0 A"), "{updates:?}");
        assert!(updates[1].starts_with("IN 300 A 192.0.2.9"), "{updates:?}");
    }

    #[test]
    fn a_cname_comes_only_where_nothing_else_is() {
        let (before, after) = (entry(&["192.0.2.1"], 300), entry(&["lb.example.net"], 60));
        let name = DnsName::parse("shop.example.com").unwrap();
        let zone = DnsName::parse("example.com").unwrap();
        let message = Change { before: &before, after: &after, soa: None }.message(&zone, &name);
        let conditions = lines(&message.answers);
        assert!(conditions.iter().any(|line| line.starts_with("NONE 0 MX")), "{conditions:?}");
        let updates = lines(&message.authorities);
        assert!(
            updates[0].starts_with("ANY 0 A") && updates[1].starts_with("IN 60 CNAME lb.example.net."),
            "{updates:?}"
        );
    }
}
