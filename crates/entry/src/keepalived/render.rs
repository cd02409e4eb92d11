//! The words of a keepalived.conf for one node of a pair, and of the kernel settings that go with it. Every choice has its reason
//! beside it, since the file is what people read at night.

use super::pair::{Node, Pair, SharedAddress, full_prefix};
use std::fmt::Write;
use std::path::Path;

/// How a file of ours begins.
pub const MARK: &str = "# Written by `rehome entry keepalived`";

/// Names in the configuration by which it is found again.
pub(crate) const INSTANCE: &str = "rehome";
pub(crate) const SCRIPT: &str = "rehome_alive";
pub(crate) const TRACK_FILE: &str = "rehome_hand_over";

/// The whole file of a node that runs Keepalived for nothing else. `beside`: the part of it that goes with the file of
/// somebody else, whose `global_defs` stay what they are.
pub fn config(pair: &Pair, node: Node, beside: bool) -> String {
    let mut text =
        format!("{MARK} for node {}. Take it out again: rehome entry keepalived remove\n", node.number());
    if !beside {
        let _ = write!(text, "{}", globals(pair, node));
    }
    let _ = write!(text, "{}{}{}", watching(pair), kept(pair), instance(pair, node));
    text
}

/// Below `/run`, so that an order does not outlive the machine.
pub fn hand_over_file(pair: &Pair) -> &Path {
    &pair.hand_over
}

/// Without these two a node that only keeps an address would tell the network that the address is here.
pub fn sysctl(pair: &Pair) -> Option<String> {
    if !needs_arp_settings(pair) {
        return None;
    }
    let interface = &pair.interface;
    // With slashes: the name of an interface may have dots.
    Some(format!(
        "{MARK}: both nodes keep the shared addresses on lo, and only the one that has them on {interface} says so.\n\
         net/ipv4/conf/{interface}/arp_ignore = 1\n\
         net/ipv4/conf/{interface}/arp_announce = 2\n"
    ))
}

/// IPv6 answers for the addresses of the interface that was asked on, and needs nothing.
pub(crate) fn needs_arp_settings(pair: &Pair) -> bool {
    pair.keep && pair.addresses.iter().any(|address| address.ip.is_ipv4())
}

fn globals(pair: &Pair, node: Node) -> String {
    format!(
        "\nglobal_defs {{\n    \
             router_id {INSTANCE}-{number}\n    \
             # The check runs without rights, and only if nobody else can change it.\n    \
             enable_script_security\n    \
             script_user {user}\n    \
             # A node that is busy must not look dead.\n    \
             vrrp_priority -20\n    \
             vrrp_no_swap\n\
         }}\n",
        number = node.number(),
        user = pair.user,
    )
}

fn watching(pair: &Pair) -> String {
    format!(
        "\n# Is the gateway of this node alive? It answers for itself: neither its lease nor any upstream is asked, and one that\n\
         # holds writes is alive. The check stays connected for most of a second, so it sees a death at once.\n\
         vrrp_script {SCRIPT} {{\n    \
             script \"{program} entry keepalived check {check}\"\n    \
             user {user}\n    \
             interval 1\n    \
             timeout 2\n    \
             fall 1\n    \
             rise 2\n    \
             init_fail\n\
         }}\n\n\
         # `rehome entry keepalived hand-over` writes 1 here: this node says good-bye and the other takes over.\n\
         track_file {TRACK_FILE} {{\n    \
             file \"{hand_over}\"\n    \
             weight 0\n    \
             init_file 0 overwrite\n\
         }}\n",
        program = pair.program.display(),
        check = pair.check,
        user = pair.user,
        hand_over = pair.hand_over.display(),
    )
}

fn kept(pair: &Pair) -> String {
    if !pair.keep {
        return String::new();
    }
    let lines = pair.addresses.iter().fold(String::new(), |mut lines, address| {
        let _ = writeln!(lines, "    {}/{} dev lo", address.ip, full_prefix(address.ip));
        lines
    });
    format!(
        "\n# On both nodes, always: whatever is under way when the addresses move is still answered from here. Nobody hears of\n\
         # these (arp_ignore 1, arp_announce 2).\n\
         static_ipaddress {{\n{lines}}}\n"
    )
}

fn instance(pair: &Pair, node: Node) -> String {
    let seconds = pair.advert.as_millis() as f64 / 1e3;
    let (first, others): (Vec<SharedAddress>, Vec<SharedAddress>) =
        pair.addresses.iter().partition(|address| address.ip.is_ipv4() == pair.nodes[0].is_ipv4());
    let mut text = format!(
        "\nvrrp_instance {INSTANCE} {{\n    \
             version 3\n    \
             # Both begin as BACKUP and neither takes the addresses from a node that serves: they move when they must.\n    \
             state BACKUP\n    \
             nopreempt\n    \
             interface {interface}\n    \
             virtual_router_id {router_id}\n    \
             # After the other's good-bye this node waits (256 - priority) / 256 of an interval: {skew:.1} ms.\n    \
             priority {priority}\n    \
             # It follows one that fell silent after three intervals and that wait: {silence} ms.\n    \
             advert_int {seconds}\n    \
             # Clouds carry no multicast.\n    \
             unicast_src_ip {own}\n    \
             check_unicast_src\n    \
             unicast_peer {{\n        \
                 {peer}\n    \
             }}\n    \
             # Neighbours are told at once, again after a second, and every ten seconds, in case they missed it.\n    \
             garp_master_repeat 5\n    \
             garp_master_delay 1\n    \
             garp_master_refresh 10\n    \
             garp_master_refresh_repeat 1\n    \
             garp_lower_prio_repeat 5\n    \
             garp_lower_prio_delay 1\n    \
             higher_prio_send_advert true\n    \
             track_script {{\n        \
                 {SCRIPT}\n    \
             }}\n    \
             track_file {{\n        \
                 {TRACK_FILE}\n    \
             }}\n",
        interface = pair.interface,
        router_id = pair.router_id,
        skew = pair.skew(node).as_secs_f64() * 1e3,
        priority = node.priority(),
        silence = pair.takes_over_after(node).as_millis(),
        own = pair.own(node),
        peer = pair.peer(node),
    );
    for (block, addresses) in [("virtual_ipaddress", first), ("virtual_ipaddress_excluded", others)] {
        if addresses.is_empty() {
            continue;
        }
        let _ = writeln!(text, "    {block} {{");
        for address in addresses {
            let _ = writeln!(text, "        {address} dev {}", pair.interface);
        }
        let _ = writeln!(text, "    }}");
    }
    text.push_str("}\n");
    text
}
