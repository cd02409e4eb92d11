//! Names and the record sets that an entry consists of (A, AAAA, CNAME), each in one spelling so that equal things compare equal.

use crate::EntryError;
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, RecordType};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A host's name: lower case, ASCII (other scripts as `xn--…`), without the dot at the end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(String);

impl DnsName {
    /// # Errors
    /// When it is no name of a host, or a wildcard.
    pub fn parse(text: &str) -> Result<Self, EntryError> {
        let wrong = |why: &str| {
            EntryError::unfit(
                format!("`{}` is no name this works with: {why}", text.escape_debug()),
                "write a host's name, as in shop.example.com",
            )
        };
        let name = Name::from_utf8(text.trim()).map_err(|error| wrong(&error.to_string()))?;
        let text = spelled(&name);
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if text.split('.').any(|label| label == "*") {
            return Err(wrong("a wildcard stands for many names"));
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !text.bytes().all(fits) {
            return Err(wrong("letters, digits, `-` and `_` only"));
        }
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_within(&self, zone: &Self) -> bool {
        self.0 == zone.0 || self.0.strip_suffix(&zone.0).is_some_and(|host| host.ends_with('.'))
    }

    /// As providers write it inside of a zone: `shop`, or `@` for the zone itself.
    pub fn relative_to(&self, zone: &Self) -> &str {
        match self.0.strip_suffix(&zone.0) {
            Some("") => "@",
            Some(host) => host.strip_suffix('.').unwrap_or(host),
            None => &self.0,
        }
    }

    /// The name itself, then every name above it but the root.
    pub fn and_above(&self) -> impl Iterator<Item = Self> {
        let mut rest = Some(self.0.as_str());
        std::iter::from_fn(move || {
            let this = rest?;
            rest = this.split_once('.').map(|(_, above)| above);
            Some(Self(this.to_owned()))
        })
    }

    pub(crate) fn to_wire(&self) -> Name {
        let mut name = Name::from_ascii(&self.0).expect("it was parsed by the same library");
        name.set_fqdn(true);
        name
    }
}

/// The text of a name as everything here compares it.
pub(crate) fn spelled(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for DnsName {
    type Error = EntryError;
    fn try_from(text: String) -> Result<Self, EntryError> {
        Self::parse(&text)
    }
}

impl From<DnsName> for String {
    fn from(name: DnsName) -> Self {
        name.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Kind {
    A,
    Aaaa,
    Cname,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::A, Self::Aaaa, Self::Cname];

    pub fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Cname => "CNAME",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name))
    }

    /// The value in the one spelling; `None` when it is none of this kind.
    pub fn canonical(self, value: &str) -> Option<String> {
        match self {
            Self::A => value.parse::<Ipv4Addr>().ok().map(|address| address.to_string()),
            Self::Aaaa => value.parse::<Ipv6Addr>().ok().map(|address| address.to_string()),
            Self::Cname => Name::from_utf8(value).ok().map(|name| spelled(&name)),
        }
    }

    pub(crate) fn record_type(self) -> RecordType {
        match self {
            Self::A => RecordType::A,
            Self::Aaaa => RecordType::AAAA,
            Self::Cname => RecordType::CNAME,
        }
    }

    pub(crate) fn to_wire(self, value: &str) -> Option<RData> {
        match self {
            Self::A => value.parse().ok().map(|address: Ipv4Addr| RData::A(A(address))),
            Self::Aaaa => value.parse().ok().map(|address: Ipv6Addr| RData::AAAA(AAAA(address))),
            Self::Cname => Name::from_ascii(value).ok().map(|mut name| {
                name.set_fqdn(true);
                RData::CNAME(CNAME(name))
            }),
        }
    }

    pub(crate) fn of_wire(data: &RData) -> Option<(Self, String)> {
        match data {
            RData::A(address) => Some((Self::A, address.0.to_string())),
            RData::AAAA(address) => Some((Self::Aaaa, address.0.to_string())),
            RData::CNAME(name) => Some((Self::Cname, spelled(&name.0))),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordSet {
    pub kind: Kind,
    /// Seconds.
    pub ttl: u32,
    pub values: BTreeSet<String>,
}

/// All address record sets of one name: at most one of each kind, none of them empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Entry(Vec<RecordSet>);

impl Entry {
    pub fn new(sets: impl IntoIterator<Item = RecordSet>) -> Self {
        let mut entry = Self::default();
        for set in sets {
            for value in set.values {
                entry.add(set.kind, set.ttl, value);
            }
        }
        entry
    }

    /// The first record of a kind says the time to live of its set.
    pub fn add(&mut self, kind: Kind, ttl: u32, value: String) {
        match self.0.binary_search_by_key(&kind, |set| set.kind) {
            Ok(place) => {
                self.0[place].values.insert(value);
            }
            Err(place) => self.0.insert(place, RecordSet { kind, ttl, values: BTreeSet::from([value]) }),
        }
    }

    /// What users are to be sent to: addresses, or one name.
    ///
    /// # Errors
    /// When the targets do not go together.
    pub fn to(targets: &[String], ttl: u32) -> Result<Self, EntryError> {
        let mut entry = Self::default();
        for target in targets {
            let kind = match target.parse() {
                Ok(std::net::IpAddr::V4(_)) => Kind::A,
                Ok(std::net::IpAddr::V6(_)) => Kind::Aaaa,
                Err(_) => Kind::Cname,
            };
            let value = match kind {
                Kind::Cname => DnsName::parse(target)?.0,
                _ => kind.canonical(target).expect("it was read as an address of this kind"),
            };
            entry.add(kind, ttl, value);
        }
        let names = entry.get(Kind::Cname).map_or(0, |set| set.values.len());
        if entry.is_empty() || names > 1 || (names == 1 && entry.0.len() > 1) {
            return Err(EntryError::unfit(
                "a name points to addresses, or to one other name",
                "give `--to ADDRESS` once for each address, or `--to NAME` once",
            ));
        }
        Ok(entry)
    }

    pub fn sets(&self) -> &[RecordSet] {
        &self.0
    }

    pub fn get(&self, kind: Kind) -> Option<&RecordSet> {
        self.0.iter().find(|set| set.kind == kind)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every record, as `(kind, value)`.
    pub fn records(&self) -> impl Iterator<Item = (Kind, &str)> {
        self.0.iter().flat_map(|set| set.values.iter().map(|value| (set.kind, value.as_str())))
    }

    #[must_use]
    pub fn with_ttl(&self, ttl: u32) -> Self {
        Self(self.0.iter().map(|set| RecordSet { ttl, ..set.clone() }).collect())
    }

    /// The same values, whatever their times to live.
    pub fn leads_where(&self, other: &Self) -> bool {
        self.with_ttl(0) == other.with_ttl(0)
    }

    /// How long a cache may keep it.
    pub fn longest_ttl(&self) -> u32 {
        self.0.iter().map(|set| set.ttl).max().unwrap_or(0)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing");
        }
        for (number, set) in self.0.iter().enumerate() {
            let values: Vec<&str> = set.values.iter().map(String::as_str).collect();
            let comma = if number > 0 { ", " } else { "" };
            write!(f, "{comma}{} {} (TTL {} s)", set.kind, values.join(" "), set.ttl)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_spelling() {
        assert_eq!(DnsName::parse("Shop.Example.COM.").unwrap().as_str(), "shop.example.com");
        assert_eq!(DnsName::parse("bücher.example").unwrap().as_str(), "xn--bcher-kva.example");
        for wrong in ["", ".", "*.example.com", "a b.example", "../etc/passwd", "a/b", "x\\.y", "a..b"] {
            assert!(DnsName::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_is_inside_of_its_zone_only() {
        let name = |text| DnsName::parse(text).unwrap();
        let zone = name("example.com");
        assert!(name("a.b.example.com").is_within(&zone) && zone.is_within(&zone));
        assert!(!name("badexample.com").is_within(&zone) && !name("com").is_within(&zone));
        assert_eq!(name("a.b.example.com").relative_to(&zone), "a.b");
        assert_eq!(zone.relative_to(&zone), "@");
        let above: Vec<String> = name("a.b.c").and_above().map(String::from).collect();
        assert_eq!(above, ["a.b.c", "b.c", "c"]);
    }

    #[test]
    fn values_have_one_spelling() {
        assert_eq!(Kind::Aaaa.canonical("2001:DB8:0:0::1").as_deref(), Some("2001:db8::1"));
        assert_eq!(Kind::Cname.canonical("LB.example.net.").as_deref(), Some("lb.example.net"));
        assert_eq!(Kind::A.canonical("2001:db8::1"), None);
        for (kind, value) in [(Kind::A, "192.0.2.1"), (Kind::Aaaa, "2001:db8::1"), (Kind::Cname, "a.b")] {
            let wire = kind.to_wire(value).unwrap();
            assert_eq!(Kind::of_wire(&wire), Some((kind, value.to_owned())));
        }
    }

    #[test]
    fn targets_are_addresses_or_one_name() {
        let to = |targets: &[&str]| {
            Entry::to(&targets.iter().map(|&text| text.to_owned()).collect::<Vec<_>>(), 60)
        };
        let both = to(&["192.0.2.2", "2001:db8::2", "192.0.2.1"]).unwrap();
        assert_eq!(both.to_string(), "A 192.0.2.1 192.0.2.2 (TTL 60 s), AAAA 2001:db8::2 (TTL 60 s)");
        assert!(to(&["lb.example.net"]).is_ok());
        for wrong in [&[][..], &["a.example", "b.example"], &["a.example", "192.0.2.1"], &["300.1.2.3/8"]] {
            assert!(to(wrong).is_err(), "{wrong:?}");
        }
        assert!(both.leads_where(&both.with_ttl(3600)) && both != both.with_ttl(3600));
    }

    #[test]
    fn it_survives_the_state_file() {
        let entry = Entry::to(&["192.0.2.2".into(), "2001:db8::2".into()], 60).unwrap();
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry);
    }
}
