//! A network of its own for a test: nodes in network namespaces on one bridge, each with its addresses, where real programs run and
//! cables can be pulled. Needs root and `ip`. Whatever was started inside ends with the [`Lab`], also after a panic.

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How namespaces of labs begin; the id of their process follows.
const PREFIX: &str = "rehome-lab-";
/// The namespace that holds the bridge.
const HUB: &str = "hub";
/// What every node calls its interface.
pub const INTERFACE: &str = "eth0";

static LABS: AtomicU32 = AtomicU32::new(0);

/// Why there is no lab.
#[derive(Debug, thiserror::Error)]
pub enum NoLab {
    #[error("network namespaces need root")]
    NotRoot,
    #[error("`ip {0}`: {1}")]
    Ip(String, String),
}

/// Nodes on one bridge: `10.77.0.11`, `.12`, … and `fd77::11`, `::12`, … in the order of their names, every lab the same since no
/// lab sees another.
#[derive(Debug)]
pub struct Lab {
    name: String,
    nodes: Vec<String>,
}

impl Lab {
    /// Nodes of these names (at most eight letters each).
    ///
    /// # Errors
    /// This machine cannot have one.
    pub fn new(nodes: &[&str]) -> Result<Self, NoLab> {
        if !rustix::process::geteuid().is_root() {
            return Err(NoLab::NotRoot);
        }
        clear_left_behind();
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        // From here on whatever exists is removed by the drop.
        let lab = Self { name, nodes: nodes.iter().map(ToString::to_string).collect() };
        let hub = lab.namespace(HUB);
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        for node in nodes {
            lab.add(node, &hub)?;
        }
        Ok(lab)
    }

    fn add(&self, node: &str, hub: &str) -> Result<(), NoLab> {
        let namespace = self.namespace(node);
        ip(&["netns", "add", &namespace])?;
        ip(&[
            "link", "add", INTERFACE, "netns", &namespace, "type", "veth", "peer", "name", node, "netns", hub,
        ])?;
        ip(&["-n", hub, "link", "set", node, "master", "br0", "up"])?;
        for interface in ["lo", INTERFACE] {
            ip(&["-n", &namespace, "link", "set", interface, "up"])?;
        }
        let (four, six) = (format!("{}/24", self.address(node)), format!("{}/64", self.address6(node)));
        ip(&["-n", &namespace, "address", "add", &four, "dev", INTERFACE])?;
        // Without the search for duplicates an address can be used at once.
        ip(&["-n", &namespace, "address", "add", &six, "dev", INTERFACE, "nodad"])
    }

    /// The name `ip netns` knows a node by.
    pub fn namespace(&self, node: &str) -> String {
        format!("{}-{node}", self.name)
    }

    fn number(&self, node: &str) -> u8 {
        let index =
            self.nodes.iter().position(|name| name == node).expect("a node that the lab was made with");
        11 + u8::try_from(index).expect("a lab has few nodes")
    }

    pub fn address(&self, node: &str) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number(node))
    }

    pub fn address6(&self, node: &str) -> Ipv6Addr {
        // `::11` reads like `.11`.
        let digits = u16::from(self.number(node));
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, digits / 10 * 16 + digits % 10)
    }

    /// A command that runs in a node. `ip` becomes that program, so the child's id is the program's.
    pub fn command(&self, node: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(node)]).arg(program).stdin(Stdio::null());
        command
    }

    /// Runs a closure in a thread that belongs to the node: sockets made there are the node's for ever, wherever they go.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    ///
    /// # Panics
    /// When the closure does.
    pub fn inside<T: Send>(&self, node: &str, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let namespace = File::open(format!("/run/netns/{}", self.namespace(node)))?;
        std::thread::scope(|scope| {
            let worker = scope.spawn(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(work())
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Pulls a node's cable out of the bridge, or puts it back.
    ///
    /// # Errors
    /// `ip` says no.
    pub fn cable(&self, node: &str, plugged: bool) -> Result<(), NoLab> {
        ip(&["-n", &self.namespace(HUB), "link", "set", node, if plugged { "up" } else { "down" }])
    }

    /// Takes a node off the bridge without its noticing: the cable stays in, and nothing comes through it.
    ///
    /// # Errors
    /// `ip` says no.
    pub fn isolate(&self, node: &str, isolated: bool) -> Result<(), NoLab> {
        let hub = self.namespace(HUB);
        let to: &[&str] = if isolated { &["nomaster"] } else { &["master", "br0"] };
        ip(&[&["-n", &hub, "link", "set", node], to].concat())
    }

    /// `ip` in a node.
    ///
    /// # Errors
    /// It says no.
    pub fn ip(&self, node: &str, arguments: &[&str]) -> Result<String, NoLab> {
        let namespace = self.namespace(node);
        let mut all = vec!["-n", namespace.as_str()];
        all.extend(arguments);
        ip_says(&all)
    }

    /// Has the node's [`INTERFACE`] this address?
    ///
    /// # Errors
    /// `ip` says no.
    pub fn has(&self, node: &str, address: IpAddr) -> Result<bool, NoLab> {
        let said = self.ip(node, &["-oneline", "address", "show", "dev", INTERFACE])?;
        let wanted = format!("{address}/");
        Ok(said.split_whitespace().any(|word| word.starts_with(&wanted)))
    }

    /// Binds a name to the hardware address of a node, so that what is sent there reaches that node and no other.
    ///
    /// # Errors
    /// `ip` says no.
    pub fn pin(&self, node: &str, address: IpAddr, to: &str) -> Result<(), NoLab> {
        let link = self.ip(to, &["-oneline", "link", "show", "dev", INTERFACE])?;
        let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
        let hardware = words.nth(1).unwrap_or_default().to_owned();
        let address = address.to_string();
        self.ip(
            node,
            &["neigh", "replace", &address, "lladdr", &hardware, "dev", INTERFACE, "nud", "permanent"],
        )
        .map(drop)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for node in self.nodes.iter().map(String::as_str).chain([HUB]) {
            remove(&self.namespace(node));
        }
    }
}

/// Ends what runs in a namespace and removes it. What cannot be removed is left; the next lab tries again.
fn remove(namespace: &str) {
    let begun = Instant::now();
    while let Ok(said) = ip_says(&["netns", "pids", namespace]) {
        let inside: Vec<Pid> =
            said.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect();
        if inside.is_empty() || begun.elapsed() > Duration::from_secs(5) {
            break;
        }
        for pid in inside {
            let _gone = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _left = ip(&["netns", "delete", namespace]);
}

/// Labs whose process was killed.
fn clear_left_behind() {
    let Ok(said) = ip_says(&["netns", "list"]) else { return };
    for name in said.lines().filter_map(|line| line.split_whitespace().next()) {
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let process = process.and_then(|pid| Pid::from_raw(pid.parse().ok()?));
        if process.is_some_and(|pid| rustix::process::test_kill_process(pid).is_err()) {
            remove(name);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), NoLab> {
    ip_says(arguments).map(drop)
}

fn ip_says(arguments: &[&str]) -> Result<String, NoLab> {
    let failed = |text: String| NoLab::Ip(arguments.join(" "), text);
    let Output { status, stdout, stderr } = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    match status.success() {
        true => Ok(String::from_utf8_lossy(&stdout).into_owned()),
        false => Err(failed(String::from_utf8_lossy(&stderr).trim().to_owned())),
    }
}
