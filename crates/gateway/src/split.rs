//! Who a client is, and which share of the clients goes to the other side. Both are pure functions of the request, the same
//! in every gateway and after every restart: raising a weight moves clients one way only. Never keeps a key, only its hash.

use http::HeaderMap;
use http::header::{self, HeaderName};
use std::net::IpAddr;

/// What tells one client from another; the parsed form of [`rehome_spec::ClientKey`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeySource {
    Cookie(String),
    Header(HeaderName),
    Address,
}

impl KeySource {
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = || format!("`{text}` in clients is not one of cookie:NAME, header:NAME, address");
        match text.split_once(':') {
            None if text == "address" => Ok(Self::Address),
            Some(("cookie", name)) if !name.is_empty() => Ok(Self::Cookie(name.to_owned())),
            Some(("header", name)) => name.parse().map(Self::Header).map_err(|_| expected()),
            _ => Err(expected()),
        }
    }
}

/// A stable 64-bit hash of whatever identifies a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ClientId(pub u64);

impl ClientId {
    /// The first of `sources` that the request has; the address when none has.
    pub fn of(sources: &[KeySource], headers: &HeaderMap, address: IpAddr) -> Self {
        for source in sources {
            let found = match source {
                KeySource::Address => Some(Self::of_address(address)),
                KeySource::Header(name) => headers.get(name).map(|value| Self::hash(b'h', value.as_bytes())),
                KeySource::Cookie(name) => cookie(headers, name).map(|value| Self::hash(b'c', value)),
            };
            if let Some(id) = found {
                return id;
            }
        }
        Self::of_address(address)
    }

    pub fn of_address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::hash(b'4', &address.octets()),
            IpAddr::V6(address) => Self::hash(b'6', &address.octets()),
        }
    }

    /// FNV-1a with a final mix, so that near keys land far apart in every bit.
    fn hash(kind: u8, bytes: &[u8]) -> Self {
        let mut state = 0xcbf2_9ce4_8422_2325_u64;
        for byte in std::iter::once(&kind).chain(bytes) {
            state = (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(state ^ (state >> 31))
    }

    /// Is this client among the first `percent` of all clients?
    pub fn is_within(self, percent: u8) -> bool {
        self.0 % 10_000 < u64::from(percent) * 100
    }
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    for value in headers.get_all(header::COOKIE) {
        for pair in value.as_bytes().split(|byte| *byte == b';') {
            let pair = pair.trim_ascii();
            if let Some(rest) = pair.strip_prefix(name.as_bytes())
                && let Some(value) = rest.strip_prefix(b"=")
            {
                return Some(value);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sources(texts: &[&str]) -> Vec<KeySource> {
        texts.iter().map(|text| KeySource::parse(text).unwrap()).collect()
    }

    #[test]
    fn the_first_key_that_is_present_counts() {
        let sources = sources(&["cookie:sid", "header:authorization", "address"]);
        let here: IpAddr = "10.0.0.1".parse().unwrap();
        let there: IpAddr = "10.0.0.2".parse().unwrap();
        let mut headers = HeaderMap::new();
        assert_ne!(ClientId::of(&sources, &headers, here), ClientId::of(&sources, &headers, there));
        headers.insert(header::AUTHORIZATION, "token a".parse().unwrap());
        let by_header = ClientId::of(&sources, &headers, here);
        assert_eq!(by_header, ClientId::of(&sources, &headers, there));
        headers.append(header::COOKIE, "theme=dark; xsid=no; sid=1".parse().unwrap());
        let by_cookie = ClientId::of(&sources, &headers, here);
        assert_ne!(by_cookie, by_header);
        headers.insert(header::COOKIE, "sid=1".parse().unwrap());
        assert_eq!(by_cookie, ClientId::of(&sources, &headers, there), "other cookies do not matter");
    }

    #[test]
    fn a_mapped_address_is_the_same_client() {
        let plain: IpAddr = "10.0.0.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(ClientId::of_address(plain), ClientId::of_address(mapped));
    }

    #[test]
    fn keys_that_mean_nothing_are_refused() {
        for text in ["", "cookie:", "cookie", "header:", "header:a b", "ip", "address:1"] {
            assert!(KeySource::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_hash_never_changes_between_versions() {
        // Two gateways of different versions must agree, so these figures are part of the format.
        assert_eq!(ClientId::hash(b'h', b"alice").0, 12_818_063_694_018_774_249);
    }

    #[test]
    fn a_weight_moves_about_that_share() {
        let clients = (0..20_000).map(|n| ClientId::hash(b'h', format!("client-{n}").as_bytes()));
        let clients: Vec<_> = clients.collect();
        for percent in [1, 5, 25, 50, 99] {
            let moved = clients.iter().filter(|client| client.is_within(percent)).count() as f64 / 200.0;
            assert!((moved - f64::from(percent)).abs() < 1.5, "{percent} % moved {moved} %");
        }
    }

    proptest! {
        #[test]
        fn raising_the_weight_moves_clients_one_way(key in proptest::collection::vec(any::<u8>(), 0..40), low in 0u8..=100, high in 0u8..=100) {
            let client = ClientId::hash(b'h', &key);
            let (low, high) = (low.min(high), low.max(high));
            prop_assert!(!client.is_within(low) || client.is_within(high));
            prop_assert!(!client.is_within(0) && client.is_within(100));
        }
    }
}
