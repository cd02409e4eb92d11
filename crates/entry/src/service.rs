//! What a driver needs to know of a service: where it is, where its gateway is, and how long the gateway may keep a write.

use crate::address::{Address, HostPort, Names};
use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Service {
    pub name: String,
    /// The addresses that the entry sends to today; the first one and its peers.
    pub source: Vec<Address>,
    pub target: Vec<Address>,
    /// Where the entry reaches the gateway.
    pub gateway: Address,
    /// A path that answers on a healthy side.
    pub health: Option<String>,
    /// The longest a write may wait in the gateway, and how many may.
    pub hold_age: Duration,
    pub hold_requests: u32,
    /// Whether the gateway believes what the entry says of a client's address; `None` where it is not known.
    pub trusts_entry: Option<bool>,
    /// The gateway wants a PROXY header on every connection.
    pub proxy_protocol: bool,
    /// The application is spoken to with HTTP/2, which gRPC needs.
    pub http2: bool,
}

/// Where an entry is to send requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Towards {
    Gateway,
    Target,
}

impl Service {
    pub(crate) fn destinations(&self, towards: Towards) -> &[Address] {
        match towards {
            Towards::Gateway => std::slice::from_ref(&self.gateway),
            Towards::Target => &self.target,
        }
    }

    pub(crate) fn is_source(&self, place: &HostPort, names: &Names) -> bool {
        self.source.iter().any(|address| names.is_same(&address.into(), place))
    }

    pub(crate) fn is_gateway(&self, place: &HostPort, names: &Names) -> bool {
        names.is_same(&(&self.gateway).into(), place)
    }

    /// An answer may take as long as before and the wait in the gateway on top.
    pub(crate) fn longest_wait(&self) -> Duration {
        self.hold_age + Duration::from_secs(5)
    }

    pub(crate) fn hosts(&self) -> impl Iterator<Item = String> + '_ {
        let all = self.source.iter().chain(&self.target).chain([&self.gateway]);
        all.map(|address| address.host.clone())
    }
}
