//! A pair of gateways with the addresses they share: what is asked for, checked before a line of it is written.

use crate::EntryError;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What one advertisement carries (RFC 5798 counts them in a byte, Keepalived stops at 20).
const MOST_ADDRESSES: usize = 20;
/// VRRPv3 counts in centiseconds, in twelve bits.
const LONGEST_ADVERT: Duration = Duration::from_millis(40_950);

/// One of the two nodes. Which is which says nothing about who serves: that is whoever came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    First,
    Second,
}

impl Node {
    pub const BOTH: [Self; 2] = [Self::First, Self::Second];

    pub fn number(self) -> u8 {
        match self {
            Self::First => 1,
            Self::Second => 2,
        }
    }

    /// As high as can be: the time a backup waits beyond the rule is `(256 - priority) / 256` of an advertisement's interval.
    pub fn priority(self) -> u8 {
        match self {
            Self::First => 254,
            Self::Second => 253,
        }
    }

    fn index(self) -> usize {
        usize::from(self.number() - 1)
    }
}

/// An address that moves, with the length of its network: `10.0.0.100/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedAddress {
    pub ip: IpAddr,
    pub prefix: u8,
}

impl fmt::Display for SharedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl FromStr for SharedAddress {
    type Err = EntryError;

    fn from_str(text: &str) -> Result<Self, EntryError> {
        let unfit = |what: String| EntryError::unfit(what, "write it like 10.0.0.100/24 or fd00::100/64");
        let (ip, prefix) = text
            .split_once('/')
            .ok_or_else(|| unfit(format!("`{text}` does not say how long its network is")))?;
        let ip: IpAddr = ip.parse().map_err(|_| unfit(format!("`{text}` is no address")))?;
        let longest = full_prefix(ip);
        match prefix.parse::<u8>() {
            Ok(prefix) if (1..=longest).contains(&prefix) => Ok(Self { ip, prefix }),
            _ => Err(unfit(format!("`{text}`: the network's length is a number from 1 to {longest}"))),
        }
    }
}

impl SharedAddress {
    pub(crate) fn is_alone(self) -> bool {
        self.prefix == full_prefix(self.ip)
    }

    /// Is `other` in the network of this address?
    pub(crate) fn reaches(self, other: IpAddr) -> bool {
        in_network(self.ip, self.prefix, other)
    }
}

pub(crate) fn full_prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

pub(crate) fn in_network(network: IpAddr, prefix: u8, other: IpAddr) -> bool {
    match (network, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            let shift = 32_u32.saturating_sub(prefix.into());
            (one.to_bits() ^ other.to_bits()).checked_shr(shift).unwrap_or(0) == 0
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            let shift = 128_u32.saturating_sub(prefix.into());
            (one.to_bits() ^ other.to_bits()).checked_shr(shift).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// What somebody wants, as it was typed.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The interface that the addresses are put on; the same name on both nodes.
    pub interface: String,
    /// The nodes' own addresses, by which they speak to each other.
    pub nodes: Vec<IpAddr>,
    pub addresses: Vec<String>,
    pub router_id: u32,
    pub advert: Duration,
    /// Where each node's gateway answers for itself (`rehome gateway --metrics`).
    pub check: SocketAddr,
    /// Whom the check runs as.
    pub user: String,
    /// This program, as the nodes have it.
    pub program: PathBuf,
    /// The file whose content asks a node to hand over; without one, a name below `/run`.
    pub hand_over: Option<PathBuf>,
    /// Keep the addresses on the loopback of both nodes, so that what is under way at a hand-over is answered.
    pub keep: bool,
}

/// A wish that can work.
#[derive(Debug, Clone)]
pub struct Pair {
    pub(crate) interface: String,
    pub(crate) nodes: [IpAddr; 2],
    pub(crate) addresses: Vec<SharedAddress>,
    pub(crate) router_id: u8,
    pub(crate) advert: Duration,
    pub(crate) check: SocketAddr,
    pub(crate) user: String,
    pub(crate) program: PathBuf,
    pub(crate) hand_over: PathBuf,
    pub(crate) keep: bool,
}

impl Pair {
    /// # Errors
    /// The first thing that cannot work, and what to write instead.
    pub fn check(wish: Wish) -> Result<Self, EntryError> {
        let router_id = router_id(wish.router_id)?;
        let nodes = nodes(&wish.nodes)?;
        let hand_over = wish.hand_over.unwrap_or_else(|| format!("/run/rehome-hand-over-{router_id}").into());
        plain_path(&wish.program, "the program")?;
        plain_path(&hand_over, "the hand-over file")?;
        Ok(Self {
            interface: interface(wish.interface)?,
            addresses: addresses(&wish.addresses, nodes)?,
            advert: advert(wish.advert)?,
            check: check_address(wish.check)?,
            user: user(wish.user)?,
            program: wish.program,
            keep: wish.keep,
            router_id,
            nodes,
            hand_over,
        })
    }

    pub fn own(&self, node: Node) -> IpAddr {
        self.nodes[node.index()]
    }

    pub fn peer(&self, node: Node) -> IpAddr {
        self.nodes[1 - node.index()]
    }

    pub fn advert(&self) -> Duration {
        self.advert
    }

    /// After how much silence this node takes over: three intervals and its skew (RFC 5798, section 6.1).
    pub fn takes_over_after(&self, node: Node) -> Duration {
        self.advert * 3 + self.skew(node)
    }

    /// How long after its peer's farewell (priority 0) this node takes over.
    pub fn skew(&self, node: Node) -> Duration {
        self.advert * (256 - u32::from(node.priority())) / 256
    }
}

fn router_id(wanted: u32) -> Result<u8, EntryError> {
    u8::try_from(wanted).ok().filter(|id| *id > 0).ok_or_else(|| {
        EntryError::unfit(
            format!("{wanted} is no virtual router id"),
            "choose a number from 1 to 255 that no other pair in this network has",
        )
    })
}

fn nodes(wanted: &[IpAddr]) -> Result<[IpAddr; 2], EntryError> {
    let hint = "name the two gateways' own addresses: --node 10.0.0.11 --node 10.0.0.12";
    let &[one, other] = wanted else {
        return Err(EntryError::unfit(format!("a pair has two nodes, not {}", wanted.len()), hint));
    };
    if one == other {
        return Err(EntryError::unfit(format!("both nodes have the address {one}"), hint));
    }
    if one.is_ipv4() != other.is_ipv4() {
        return Err(EntryError::unfit(format!("{one} and {other} cannot speak to each other"), hint));
    }
    match [one, other].into_iter().find(|ip| !is_a_machines_own(*ip)) {
        Some(ip) => Err(EntryError::unfit(format!("{ip} is no address of one machine"), hint)),
        None => Ok([one, other]),
    }
}

fn is_a_machines_own(ip: IpAddr) -> bool {
    let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local || broadcast)
}

fn addresses(wanted: &[String], nodes: [IpAddr; 2]) -> Result<Vec<SharedAddress>, EntryError> {
    let mut all: Vec<SharedAddress> = Vec::new();
    for text in wanted {
        let address: SharedAddress = text.parse()?;
        let wrong = |why: &str, hint: &str| Err(EntryError::unfit(format!("{address} {why}"), hint));
        if all.iter().any(|other| other.ip == address.ip) {
            return wrong("is named twice", "name every shared address once");
        }
        if nodes.contains(&address.ip) {
            return wrong(
                "is a node's own address",
                "choose one that no machine has: it moves between the nodes",
            );
        }
        if !is_a_machines_own(address.ip) || is_the_network_itself(address) {
            return wrong("is no address that a machine can have", "choose a free one of the nodes' network");
        }
        let same_family = address.ip.is_ipv4() == nodes[0].is_ipv4();
        if same_family && !address.is_alone() && !nodes.iter().all(|node| address.reaches(*node)) {
            let [one, other] = nodes;
            return Err(EntryError::unfit(
                format!("{address} is not in the network of {one} and {other}"),
                "a shared address moves within one network only; correct the address or the length of its network",
            ));
        }
        all.push(address);
    }
    if all.len() > MOST_ADDRESSES {
        let what = format!("{} shared addresses are more than an advertisement carries", all.len());
        return Err(EntryError::unfit(
            what,
            format!("at most {MOST_ADDRESSES}; make a second pair of the rest"),
        ));
    }
    if !all.iter().any(|address| address.ip.is_ipv4() == nodes[0].is_ipv4()) {
        return Err(EntryError::unfit(
            "no shared address is of the nodes' own kind",
            "Keepalived wants one at least: name the nodes by their IPv6 addresses when all shared ones are IPv6",
        ));
    }
    Ok(all)
}

/// Its network's first or last address.
fn is_the_network_itself(address: SharedAddress) -> bool {
    let IpAddr::V4(ip) = address.ip else { return false };
    let hosts = u32::MAX.checked_shr(address.prefix.into()).unwrap_or(0);
    address.prefix < 31 && (ip.to_bits() & hosts == 0 || ip.to_bits() & hosts == hosts)
}

fn interface(name: String) -> Result<String, EntryError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > 15 || !name.bytes().all(fits) || name.starts_with('.') {
        return Err(EntryError::unfit(
            format!("`{name}` is no interface's name"),
            "see which there are: ip -brief link",
        ));
    }
    if name == "lo" {
        return Err(EntryError::unfit(
            "lo reaches no other machine",
            "name the interface that the nodes share: ip -brief link",
        ));
    }
    Ok(name)
}

fn advert(wanted: Duration) -> Result<Duration, EntryError> {
    let whole = wanted.as_micros().is_multiple_of(10_000);
    if wanted.is_zero() || wanted > LONGEST_ADVERT || !whole {
        return Err(EntryError::unfit(
            format!("an interval of {wanted:?} cannot be advertised"),
            "VRRPv3 counts in steps of 10 ms, from 10ms to 40950ms; 300ms finds a dead node within a second",
        ));
    }
    Ok(wanted)
}

fn check_address(wanted: SocketAddr) -> Result<SocketAddr, EntryError> {
    if wanted.port() == 0 || wanted.ip().is_unspecified() {
        return Err(EntryError::unfit(
            format!("nobody can be asked at {wanted}"),
            "name the address of `rehome gateway --metrics`, such as 127.0.0.1:9100",
        ));
    }
    Ok(wanted)
}

fn user(name: String) -> Result<String, EntryError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if name.is_empty() || name.len() > 32 || !name.bytes().all(fits) || name.starts_with('-') {
        return Err(EntryError::unfit(
            format!("`{name}` is no user's name"),
            "a user without rights is best: nobody",
        ));
    }
    Ok(name)
}

/// Keepalived has quotes, and no way to put one inside them.
fn plain_path(path: &std::path::Path, what: &str) -> Result<(), EntryError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte);
    let plain = path.to_str().is_some_and(|text| text.bytes().all(fits) && text.len() <= 200);
    if !path.is_absolute() || !plain {
        return Err(EntryError::unfit(
            format!("{what} {} cannot be written into a keepalived.conf", path.display()),
            "name it from the root, with letters, digits and `._-+` only",
        ));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn wish() -> Wish {
        Wish {
            interface: "eth0".into(),
            nodes: vec!["10.0.0.11".parse().unwrap(), "10.0.0.12".parse().unwrap()],
            addresses: vec!["10.0.0.100/24".into(), "fd00::100/64".into()],
            router_id: 51,
            advert: Duration::from_millis(300),
            check: "127.0.0.1:9100".parse().unwrap(),
            user: "nobody".into(),
            program: "/usr/bin/rehome".into(),
            hand_over: None,
            keep: true,
        }
    }

    fn refused(change: impl FnOnce(&mut Wish)) -> String {
        let mut wish = wish();
        change(&mut wish);
        Pair::check(wish).unwrap_err().to_string()
    }

    #[test]
    fn times_follow_from_the_interval_and_the_priorities() {
        let pair = Pair::check(wish()).unwrap();
        assert_eq!(pair.takes_over_after(Node::First).as_micros(), 902_343);
        assert_eq!(pair.skew(Node::Second).as_micros(), 3_515);
        assert_eq!((pair.own(Node::Second), pair.peer(Node::Second)), (pair.nodes[1], pair.nodes[0]));
    }

    #[test]
    fn what_cannot_work_is_said_before_it_is_written() {
        let with = |address: &str| {
            let address = address.to_owned();
            refused(|wish| wish.addresses = vec![address])
        };
        for (text, part) in [
            ("10.0.0.100", "how long its network is"),
            ("10.0.0.100/33", "from 1 to 32"),
            ("10.0.0.100/0", "from 1 to 32"),
            ("10.0.0.x/24", "is no address"),
            ("10.0.1.100/24", "not in the network of 10.0.0.11"),
            ("10.0.0.11/24", "a node's own address"),
            ("10.0.0.255/24", "no address that a machine can have"),
            ("10.0.0.0/24", "no address that a machine can have"),
            ("127.0.0.1/8", "no address that a machine can have"),
            ("224.0.0.18/24", "no address that a machine can have"),
            ("fd00::100/64", "of the nodes' own kind"),
        ] {
            let said = with(text);
            assert!(said.contains(part), "{text}: {said}");
        }
        assert!(refused(|wish| wish.addresses.push("10.0.0.100/25".into())).contains("twice"));
        assert!(refused(|wish| wish.addresses.clear()).contains("nodes' own kind"));
        let many =
            |wish: &mut Wish| wish.addresses = (20..41).map(|last| format!("10.0.0.{last}/24")).collect();
        assert!(refused(many).contains("21 shared addresses"));
        for id in [0, 256, 70_000] {
            assert!(refused(|wish| wish.router_id = id).contains("no virtual router id"));
        }
        for millis in [0, 5, 305, 41_000] {
            assert!(
                refused(|wish| wish.advert = Duration::from_millis(millis)).contains("cannot be advertised")
            );
        }
        for nodes in
            [&["10.0.0.11"][..], &["10.0.0.11", "10.0.0.11"], &["10.0.0.11", "fd00::1"], &["::1", "fd00::1"]]
        {
            refused(|wish| wish.nodes = nodes.iter().map(|ip| ip.parse().unwrap()).collect());
        }
        for name in ["", "lo", "eth0 }", "a/b", "very-long-interface-name"] {
            refused(|wish| wish.interface = name.into());
        }
        assert!(refused(|wish| wish.user = "root }".into()).contains("no user's name"));
        assert!(refused(|wish| wish.program = "rehome".into()).contains("cannot be written"));
        assert!(refused(|wish| wish.program = "/opt/a \"b/rehome".into()).contains("cannot be written"));
        assert!(refused(|wish| wish.check = "0.0.0.0:9100".parse().unwrap()).contains("nobody can be asked"));
    }

    #[test]
    fn an_address_without_neighbours_and_pairs_of_ipv6_are_fine() {
        Pair::check(Wish { addresses: vec!["10.9.9.9/32".into()], ..wish() }).unwrap();
        let nodes = vec!["fd00::11".parse().unwrap(), "fd00::12".parse().unwrap()];
        Pair::check(Wish { nodes, ..wish() }).unwrap();
    }
}
