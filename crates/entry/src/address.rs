//! Addresses of services as configurations write them, and whether two of them mean the same place.

use crate::EntryError;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(3);
/// More names than this in one configuration are not looked up.
const MAX_NAMES: usize = 1_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Spoken to with TLS.
    pub secure: bool,
    /// A name or an address; an IPv6 address without brackets.
    pub host: String,
    pub port: u16,
}

impl Address {
    /// # Errors
    /// When it is no `http://host:port` or `https://host:port`.
    pub fn parse(url: &str) -> Result<Self, EntryError> {
        let wrong =
            || EntryError::unfit(format!("`{url}` is no address"), "write it like http://10.0.0.5:8000");
        let parsed = url::Url::parse(url).map_err(|_| wrong())?;
        let secure = match parsed.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(wrong()),
        };
        let host = parsed.host_str().ok_or_else(wrong)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { secure, host, port: parsed.port_or_known_default().ok_or_else(wrong)? })
    }

    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    /// `host:port`, brackets where they are needed.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.scheme(), self.authority())
    }
}

/// A host with its port, as a configuration writes them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

impl HostPort {
    /// `host`, `host:port`, `[v6]:port`; `None` for everything else (sockets, variables).
    pub fn parse(text: &str, default_port: u16) -> Option<Self> {
        if text.contains('+') {
            return None;
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, after) = rest.split_once(']')?;
            match after.strip_prefix(':') {
                Some(port) => (host, port.parse().ok()?),
                None if after.is_empty() => (host, default_port),
                None => return None,
            }
        } else {
            match text.rsplit_once(':') {
                Some((host, port)) => (host, port.parse().ok()?),
                None => (text, default_port),
            }
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
        (!host.is_empty() && host.bytes().all(is_host)).then(|| Self { host: host.to_owned(), port })
    }
}

impl From<&Address> for HostPort {
    fn from(address: &Address) -> Self {
        Self { host: address.host.clone(), port: address.port }
    }
}

/// What the system makes of names: nginx and HAProxy ask it too, once, at their start.
#[derive(Debug, Clone, Default)]
pub struct Names(HashMap<String, BTreeSet<IpAddr>>);

impl Names {
    /// Looks up every name once, all at the same time. A name that nobody knows is like no other.
    pub async fn look_up(hosts: impl IntoIterator<Item = String>) -> Self {
        let mut asked = tokio::task::JoinSet::new();
        let hosts: BTreeSet<String> = hosts.into_iter().filter(|host| literal(host).is_none()).collect();
        for host in hosts.into_iter().take(MAX_NAMES) {
            asked.spawn(async move {
                let found = tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host.as_str(), 0))).await;
                let addresses = found.ok().and_then(Result::ok).into_iter().flatten();
                let addresses = addresses.map(|address: SocketAddr| address.ip().to_canonical()).collect();
                (host.to_ascii_lowercase(), addresses)
            });
        }
        let mut names = Self::default();
        while let Some(answer) = asked.join_next().await {
            names.0.extend(answer.ok());
        }
        names
    }

    pub fn is_same(&self, one: &HostPort, two: &HostPort) -> bool {
        if one.port != two.port {
            return false;
        }
        one.host.eq_ignore_ascii_case(&two.host)
            || !self.addresses(&one.host).is_disjoint(&self.addresses(&two.host))
    }

    pub(crate) fn first(&self, host: &str) -> Option<IpAddr> {
        self.addresses(host).into_iter().next()
    }

    fn addresses(&self, host: &str) -> BTreeSet<IpAddr> {
        match literal(host) {
            Some(address) => BTreeSet::from([address]),
            None => self.0.get(&host.to_ascii_lowercase()).cloned().unwrap_or_default(),
        }
    }
}

fn literal(host: &str) -> Option<IpAddr> {
    host.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let address = Address::parse("http://[::1]:8000").unwrap();
        assert_eq!((address.to_string(), address.host.as_str()), ("http://[::1]:8000".into(), "::1"));
        assert_eq!(Address::parse("https://a.example/").unwrap().port, 443);
        assert!(Address::parse("ftp://a").is_err() && Address::parse("10.0.0.5:80").is_err());
        let at = |text| HostPort::parse(text, 80).map(|found| (found.host, found.port));
        assert_eq!(at("a:81"), Some(("a".into(), 81)));
        assert_eq!(at("a"), Some(("a".into(), 80)));
        assert_eq!(at("[::1]:81"), Some(("::1".into(), 81)));
        assert_eq!(at("[::1]"), Some(("::1".into(), 80)));
        for text in ["", ":80", "a:x", "$name", "unix:/x", "a b", "[::1]x"] {
            assert_eq!(at(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn a_name_and_its_address_are_the_same_place() {
        let names = Names::look_up(["localhost".to_owned(), "no-such-name.invalid".to_owned()]).await;
        let at = |host: &str, port| HostPort { host: host.into(), port };
        assert!(names.is_same(&at("localhost", 1), &at("127.0.0.1", 1)));
        assert!(names.is_same(&at("LOCALHOST", 1), &at("localhost", 1)));
        assert!(names.is_same(&at("::ffff:10.0.0.5", 1), &at("10.0.0.5", 1)));
        assert!(!names.is_same(&at("localhost", 1), &at("127.0.0.1", 2)));
        assert!(!names.is_same(&at("no-such-name.invalid", 1), &at("127.0.0.1", 1)));
    }
}
