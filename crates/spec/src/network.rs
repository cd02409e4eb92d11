//! Networks as they are written in the migration file: `10.0.0.0/8`, `192.168.1.4`, `fd00::/8`. Looks no name up.

use crate::shape::text_with_unit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// One address or a block of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Never an IPv4 address in the clothes of IPv6.
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Is this address one of them? IPv4 written as IPv6 (`::ffff:10.0.0.1`) counts as IPv4.
    pub fn contains(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && first(address, self.prefix) == self.address
    }

    /// Everybody, that is.
    pub(crate) fn is_all(self) -> bool {
        self.prefix == 0
    }
}

/// The first address of the block of this size that `address` is in.
fn first(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

/// The text after the first colon of an error says what to write.
pub(crate) fn parse_network(text: &str) -> Result<Network, String> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let unfit = || {
        format!(
            "`{text}` is not an address or a network: write it like \"10.0.0.0/8\", \"192.168.1.4\" or \"fd00::/8\""
        )
    };
    let address = address.parse::<IpAddr>().map_err(|_| unfit())?.to_canonical();
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => longest,
        Some(digits) if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Err(unfit());
        }
        Some(digits) => digits.parse().map_err(|_| unfit())?,
    };
    if prefix > longest {
        return Err(format!(
            "a network of `{address}` has at most {longest} bits: write \"{address}/{longest}\""
        ));
    }
    let begin = first(address, prefix);
    if begin != address {
        return Err(format!("`{text}` has bits set beyond its length: write \"{begin}/{prefix}\""));
    }
    Ok(Network { address, prefix })
}

fn show_network(network: Network) -> String {
    let longest = if network.address.is_ipv4() { 32 } else { 128 };
    match network.prefix == longest {
        true => network.address.to_string(),
        false => format!("{}/{}", network.address, network.prefix),
    }
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_network(text)
    }
}

text_with_unit!(Network, parse_network, show_network, r"^[0-9a-fA-F:.]+(/[0-9]{1,3})?$", "10.0.0.0/8");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_holds_its_own_and_nobody_else() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(network("10.0.0.0/8").contains(ip("10.255.0.1")));
        assert!(network("10.0.0.0/8").contains(ip("::ffff:10.1.1.1")));
        assert!(!network("10.0.0.0/8").contains(ip("11.0.0.0")));
        assert!(!network("10.0.0.0/8").contains(ip("a00::1")));
        assert!(network("192.168.1.4").contains(ip("192.168.1.4")));
        assert!(!network("192.168.1.4").contains(ip("192.168.1.5")));
        assert!(network("fd00::/8").contains(ip("fdff::1")));
        assert!(network("0.0.0.0/0").contains(ip("255.255.255.255")));
        assert!(network("::/0").contains(ip("1::")) && !network("::/0").contains(ip("1.1.1.1")));
    }

    #[test]
    fn what_is_no_network_is_refused_with_the_right_one() {
        for (text, advice) in [
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("10.0.0.0/33", "10.0.0.0/32"),
            ("10.0.0.0/", "fd00::/8"),
            ("10.0.0.0/+8", "fd00::/8"),
            ("lb.example.com", "192.168.1.4"),
            ("", "192.168.1.4"),
        ] {
            let error = parse_network(text).unwrap_err();
            assert!(error.contains(": write ") && error.contains(advice), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_network_survives_being_written(bits in any::<u128>(), four in any::<bool>(), prefix in 0u8..=128) {
            let address = if four { IpAddr::V4((bits as u32).into()) } else { IpAddr::V6(bits.into()).to_canonical() };
            let prefix = prefix.min(if address.is_ipv4() { 32 } else { 128 });
            let network = Network { address: first(address, prefix), prefix };
            prop_assert_eq!(parse_network(&show_network(network)), Ok(network));
            prop_assert!(network.contains(address));
        }
    }
}
