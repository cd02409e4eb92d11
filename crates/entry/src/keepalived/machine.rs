//! What this machine has: addresses by `ip -json`, kernel settings by `/proc/sys`. Only reads.

use super::pair::{SharedAddress, in_network};
use crate::{EntryError, program};
use serde::Deserialize;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Deserialize)]
struct Link {
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Address {
    #[serde(rename = "local")]
    pub ip: IpAddr,
    #[serde(rename = "prefixlen")]
    pub prefix: u8,
}

/// The addresses of an interface.
pub(crate) async fn addresses(interface: &str) -> Result<Vec<Address>, EntryError> {
    let ran =
        program::run(Path::new("ip"), &["-json", "address", "show", "dev", interface], PATIENCE).await?;
    if !ran.status.success() {
        return Err(EntryError::unfit(
            format!("there is no interface {interface} here: {}", ran.complaint()),
            "see which there are: ip -brief link",
        ));
    }
    let links: Vec<Link> = serde_json::from_str(&ran.stdout).map_err(|error| EntryError::Program {
        program: "ip".into(),
        text: format!("cannot read what it says: {error}"),
    })?;
    Ok(links.into_iter().flat_map(|link| link.addr_info).collect())
}

/// Does the interface have all, some or none of these? `Some(true)`, `None`, `Some(false)`.
///
/// # Errors
/// There is no such interface, or `ip` cannot be asked.
pub async fn has_addresses(interface: &str, shared: &[SharedAddress]) -> Result<Option<bool>, EntryError> {
    let here = addresses(interface).await?;
    let found = shared.iter().filter(|one| here.iter().any(|address| address.ip == one.ip)).count();
    Ok(match found {
        0 => Some(false),
        all if all == shared.len() => Some(true),
        _ => None,
    })
}

/// Is this address in a network of the interface?
pub(crate) fn is_reached(here: &[Address], ip: IpAddr) -> bool {
    here.iter().any(|address| in_network(address.ip, address.prefix, ip) && address.ip != ip)
}

/// The two settings that keep an address on lo quiet, with what they are and what they should be.
pub fn arp_settings(interface: &str) -> [(PathBuf, &'static str); 2] {
    let folder = Path::new("/proc/sys/net/ipv4/conf").join(interface);
    [(folder.join("arp_ignore"), "1"), (folder.join("arp_announce"), "2")]
}
