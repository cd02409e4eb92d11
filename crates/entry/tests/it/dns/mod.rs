//! The DNS driver against BIND, against liars, and against servers that answer as the vendors document it.

mod alidns;
mod between;
mod bind;
mod dnspod;
mod knot;
mod liars;
mod route53;
mod service;
mod story;
mod updates;

use rehome_entry::dns::{DnsName, Entry};

pub fn name(text: &str) -> DnsName {
    DnsName::parse(text).unwrap()
}

pub fn entry(targets: &[&str], ttl: u32) -> Entry {
    Entry::to(&targets.iter().map(|&text| text.to_owned()).collect::<Vec<_>>(), ttl).unwrap()
}
