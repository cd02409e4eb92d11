//! The entry by name: lowers a TTL ahead of time, points a name at the new entry, puts it back, and says how long the old
//! answer lives on. One trait, [`Zone`], and a driver per kind of provider.
//!
//! DNS never decides anything: resolvers and programs keep old answers longer than they may, so the old entry goes on
//! listening and proxying to the new side. Nothing here knows who owns the writes.

pub mod alidns;
pub mod authority;
pub mod dnspod;
pub mod edits;
pub mod exchange;
pub mod http;
pub mod record;
pub mod rfc2136;
pub mod route53;
mod signature;
pub mod state;
pub mod steps;
pub mod tsig;
pub mod usage;

pub use record::{DnsName, Entry, Kind, RecordSet};
pub use signature::Credentials;

use crate::EntryError;
use async_trait::async_trait;
use std::fmt::Debug;
use std::sync::Arc;

/// Where the time comes from; tests bring their own.
pub type Clock = Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>;

pub fn system_clock() -> Clock {
    Arc::new(jiff::Timestamp::now)
}

/// What a provider can promise about a change. The steps ask, and the user is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// All record sets of a name change at one moment, or none does.
    pub atomic: bool,
    /// The provider itself refuses a change when someone else was faster; otherwise it is looked at just before.
    pub compares: bool,
    /// Proved against the real thing, not only against its documented requests and answers.
    pub tested: bool,
}

/// What the provider has for a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The record sets an entry consists of.
    pub entry: Entry,
    /// Records of one kind have different times to live, which one record set cannot have.
    pub uneven: bool,
    /// Other types at the name (`MX`, `TXT`): they stay, and they forbid a CNAME.
    pub besides: Vec<String>,
    /// What a plain record set would flatten (weights, places, aliases, …): with any, nothing is changed.
    pub obstacles: Vec<String>,
}

/// A zone at its provider.
#[async_trait]
pub trait Zone: Debug + Send + Sync {
    /// For people and for the state file: `rfc2136 at 192.0.2.53:53`.
    fn provider(&self) -> String;

    /// The zone's name.
    fn origin(&self) -> &DnsName;

    fn capabilities(&self) -> Capabilities;

    /// What the provider holds now, past every cache. A name it does not know is an empty [`Found`], not an error.
    async fn read(&self, name: &DnsName) -> Result<Found, EntryError>;

    /// Makes `after` of `before`, times to live included, and leaves everything else of the name alone. `before` is what was
    /// read: [`EntryError::Changed`] when it is no longer there, and then nothing was changed. After any other error the
    /// outcome is to be read. Calling it again when `after` is there already is no error.
    async fn replace(&self, name: &DnsName, before: &Entry, after: &Entry) -> Result<(), EntryError>;
}
