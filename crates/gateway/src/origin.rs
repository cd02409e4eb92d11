//! Where a request really comes from: the socket, the PROXY header, and `X-Forwarded-For`, each believed only from the proxies
//! that the service names. Pure; reads no socket.

use crate::headers::{self, FORWARDED_FOR};
use http::{HeaderMap, HeaderValue};
use rehome_spec::Network;
use std::net::{IpAddr, SocketAddr};

/// The proxies that are believed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trusted(pub Vec<Network>);

impl Trusted {
    pub fn holds(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// From the socket, or from the PROXY header of a trusted proxy.
    pub address: IpAddr,
    /// Came over TLS.
    pub secure: bool,
    /// The address as it is written into headers; made once, since every request wants it.
    pub shown: HeaderValue,
}

impl Peer {
    pub fn new(address: IpAddr, secure: bool) -> Self {
        let shown = HeaderValue::from_str(&address.to_canonical().to_string());
        Self { address, secure, shown: shown.expect("an address is visible ASCII") }
    }
}

/// Where one request comes from.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub peer: Peer,
    /// May the request's own words about its origin be believed?
    pub is_believed: bool,
    /// The last hop that nobody vouches for.
    pub client: IpAddr,
}

impl Origin {
    pub fn of(peer: Peer, trusted: &Trusted, headers: &HeaderMap) -> Self {
        let is_believed = trusted.holds(peer.address);
        let client = if is_believed { last_stranger(peer.address, trusted, headers) } else { peer.address };
        Self { peer, is_believed, client: client.to_canonical() }
    }
}

/// From the nearest hop to the farthest: each trusted proxy is believed about the one before it, and nobody else is.
fn last_stranger(peer: IpAddr, trusted: &Trusted, headers: &HeaderMap) -> IpAddr {
    let hops: Vec<&str> = headers::tokens(headers, &FORWARDED_FOR).collect();
    let mut client = peer;
    for hop in hops.into_iter().rev() {
        // What is no address (`unknown`) ends the chain: the hop that wrote it is the last one known.
        let Some(address) = address(hop) else { return client };
        client = address;
        if !trusted.holds(address) {
            return client;
        }
    }
    client
}

/// Some proxies write the port, too.
fn address(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    bare.parse().ok().or_else(|| hop.parse().ok().map(|socket: SocketAddr| socket.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, trusted: &[&str], forwarded_for: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in forwarded_for {
            headers.append(FORWARDED_FOR, line.parse().unwrap());
        }
        let trusted = Trusted(trusted.iter().map(|network| network.parse().unwrap()).collect());
        let peer = Peer::new(peer.parse().unwrap(), false);
        Origin::of(peer, &trusted, &headers).client.to_string()
    }

    #[test]
    fn a_stranger_is_who_the_socket_says() {
        assert_eq!(client("192.0.2.1", &[], &["10.9.9.9"]), "192.0.2.1");
        assert_eq!(client("192.0.2.1", &["10.0.0.0/8"], &["10.9.9.9"]), "192.0.2.1");
        assert_eq!(client("::ffff:192.0.2.1", &[], &[]), "192.0.2.1");
    }

    #[test]
    fn behind_proxies_the_last_stranger_counts() {
        let trusted = ["10.0.0.0/8", "fd00::/8"];
        assert_eq!(client("10.0.0.1", &trusted, &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1", &trusted, &["1.1.1.1, 198.51.100.7, 10.0.0.2"]), "198.51.100.7");
        assert_eq!(
            client("10.0.0.1", &trusted, &["1.1.1.1", "198.51.100.7:4711 , [fd00::2]:80"]),
            "198.51.100.7"
        );
        assert_eq!(client("10.0.0.1", &trusted, &["1.1.1.1, unknown, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(client("10.0.0.1", &trusted, &["10.0.0.3, 10.0.0.2"]), "10.0.0.3");
        assert_eq!(client("10.0.0.1", &trusted, &[]), "10.0.0.1");
    }
}
