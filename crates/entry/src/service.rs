//! What a driver needs to know of a service: where it is, where its gateway is, and how long the gateway may keep a write.

use crate::EntryError;
use crate::address::{Address, HostPort, Names};
use crate::probe::{self, Place, Question};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(3);

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

/// Before anything is changed: does a gateway answer where requests are to go?
///
/// # Errors
/// When nobody answers there, or somebody else.
pub(crate) async fn gateways_answer(services: &[Service]) -> Result<(), EntryError> {
    for service in services {
        let host = service.gateway.host.as_str();
        let found =
            tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host, service.gateway.port))).await;
        // A name that nobody knows is the server's own to refuse, with its own words.
        let Some(address) = found.ok().and_then(Result::ok).and_then(|mut all| all.next()) else { continue };
        let seen = probe::ask(&Question {
            place: Place::Tcp(address),
            secure: service.gateway.secure,
            prior_knowledge: false,
            proxy_header: service.proxy_protocol,
            host: "localhost".into(),
            path: service.health.clone().unwrap_or_else(|| "/".into()),
        })
        .await;
        let what = match seen.answer {
            Err(why) => format!("no gateway answers at {}: {why}", service.gateway),
            // A refusal for a host or path that is none of its services' is its own answer and has no `Via`.
            Ok(status) if !seen.through_gateway && !matches!(status, 404 | 421) => {
                format!("what answers at {} is no rehome gateway", service.gateway)
            }
            Ok(_) => continue,
        };
        return Err(EntryError::unfit(what, "start it with `rehome gateway`; nothing was changed"));
    }
    Ok(())
}

/// Nothing leads to the source and nothing to the gateway: then there is nothing to install, and no proof to hope for.
pub(crate) fn nothing_leads_here(services: &[Service]) -> EntryError {
    let all = services.iter().flat_map(|service| &service.source);
    let all: Vec<String> = all.map(|address| address.authority()).collect();
    EntryError::unfit(
        format!("nothing in this configuration leads to the source ({})", all.join(", ")),
        "name the configuration with --config; `show` lists where its requests go",
    )
}
