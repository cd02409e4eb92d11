//! Two nodes with a real gateway and a real keepalived each, a client and the application's two sides, all in a lab of their own.

use crate::harness::{Place, Ran, ran, wait_for};
use rehome_gateway::client::Client;
use rehome_gateway::control::{Request, Response, Status};
use rehome_testkit::namespaces::{INTERFACE, Lab};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const LIMIT: Duration = Duration::from_secs(30);
pub const NODES: [&str; 2] = ["one", "two"];

/// One side of the application: it writes down every write and answers after `/slow/MILLISECONDS`.
#[derive(Clone)]
pub struct Side {
    name: &'static str,
    writes: Arc<Mutex<Vec<String>>>,
}

impl Side {
    fn start(lab: &Lab, name: &'static str, port: u16) -> Self {
        let listener = lab.inside("app", || TcpListener::bind(("0.0.0.0", port))).unwrap().unwrap();
        let side = Self { name, writes: Arc::default() };
        let server = side.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let side = server.clone();
                std::thread::spawn(move || side.serve(stream));
            }
        });
        side
    }

    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let from = stream.peer_addr().ok()?.ip();
        loop {
            let head = read_head(&mut reader)?;
            let mut first = head.split(' ');
            let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
            std::io::copy(&mut (&mut reader).take(length(&head)), &mut std::io::sink()).ok()?;
            if method != "GET" {
                self.writes.lock().unwrap().push(path.clone());
            }
            if let Some(millis) = path.strip_prefix("/slow/").and_then(|rest| rest.split('/').next()) {
                std::thread::sleep(Duration::from_millis(millis.parse().ok()?));
            }
            let answer = format!(
                "HTTP/1.1 200 OK\r\nx-side: {}\r\nx-from: {from}\r\ncontent-length: 2\r\n\r\nok",
                self.name
            );
            stream.write_all(answer.as_bytes()).ok()?;
        }
    }

    pub fn writes(&self) -> Vec<String> {
        self.writes.lock().unwrap().clone()
    }
}

/// A head without its last empty line; `None` at the end.
pub fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    loop {
        match reader.read_line(&mut head).ok()? {
            0 => return None,
            2 if head.ends_with("\r\n") => return Some(head),
            _ => {}
        }
    }
}

pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .find_map(|line| line.split_once(": ").filter(|(found, _)| found.eq_ignore_ascii_case(name)))
        .map(|(_, value)| value)
}

pub fn length(head: &str) -> u64 {
    header(head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0)
}

pub struct Node {
    pub name: &'static str,
    pub folder: PathBuf,
    pub gateway: Option<Child>,
    pub keepalived: Option<Child>,
}

/// How the pair is set up.
#[derive(Clone, Copy)]
pub struct Setup {
    pub advert_ms: u32,
    pub keep: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { advert_ms: 300, keep: true }
    }
}

pub struct Rig {
    pub nodes: [Node; 2],
    pub source: Side,
    pub target: Side,
    setup: Setup,
    program: PathBuf,
    /// Holds the nodes' folders.
    _place: Place,
    // Last, so that it clears up whatever the others left.
    pub lab: Lab,
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for index in [0, 1] {
                eprintln!("keepalived of {}:\n{}", NODES[index], self.log(index));
            }
        }
        for child in
            self.nodes.iter_mut().flat_map(|node| [node.gateway.take(), node.keepalived.take()]).flatten()
        {
            end(child);
        }
    }
}

fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// `None` (said loudly) where there is no keepalived and none is required, and where the machine gives us no namespaces: that is its
/// owner's word, and no tool can be installed against it.
pub fn lab(nodes: &[&str]) -> Option<Lab> {
    let found = Command::new("keepalived").arg("--version").stderr(Stdio::null()).status().is_ok();
    assert!(
        found || std::env::var_os("REHOME_REQUIRE_TOOLS").is_none(),
        "keepalived is missing: run scripts/tools.sh"
    );
    match Lab::new(nodes) {
        Ok(lab) if found => return Some(lab),
        Ok(_) => eprintln!("SKIPPED: keepalived is missing; run scripts/tools.sh"),
        Err(why) => eprintln!("SKIPPED: {why}"),
    }
    None
}

impl Rig {
    /// Both gateways, then keepalived on the first node, then on the second: the first one has the addresses.
    pub fn start(setup: Setup) -> Option<Self> {
        let lab = lab(&["one", "two", "client", "other", "app"])?;
        let place = Place::new();
        // The check runs as nobody, who must be able to reach the program.
        std::fs::set_permissions(place.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = place.path("rehome");
        let built = env!("CARGO_BIN_EXE_rehome");
        if std::fs::hard_link(built, &program).is_err() {
            std::fs::copy(built, &program).unwrap();
        }
        let (source, target) = (Side::start(&lab, "source", 8001), Side::start(&lab, "target", 8002));
        let nodes =
            NODES.map(|name| Node { name, folder: place.path(name), gateway: None, keepalived: None });
        let mut rig = Self { nodes, source, target, setup, program, _place: place, lab };
        for index in 0..2 {
            rig.prepare(index);
            rig.start_gateway(index);
            let installed = rig.install(index);
            assert_eq!(installed.code, 0, "{}", installed.stderr);
            rig.start_keepalived(index);
            if index == 0 {
                rig.owner_is(0);
            }
        }
        wait_for("the second node stands by", LIMIT, || {
            rig.log(1).contains("Entering BACKUP STATE").then_some(())
        });
        Some(rig)
    }

    fn prepare(&self, index: usize) {
        let (node, app) = (&self.nodes[index], self.lab.address("app"));
        std::fs::create_dir_all(&node.folder).unwrap();
        let control = node.folder.join("control.sock").display().to_string();
        let file = format!(
            "[migration]\nname = \"shop\"\nsource = {{ cloud = \"a\" }}\ntarget = {{ cloud = \"b\" }}\n\n\
             [[services]]\nname = \"api\"\nlisten = \"[::]:8080\"\nsource = \"http://{app}:8001\"\n\
             target = \"http://{app}:8002\"\n\n[[gateways]]\nname = \"{}\"\ncontrol = \"{control}\"\n",
            node.name
        );
        std::fs::write(node.folder.join("rehome.toml"), file).unwrap();
    }

    /// The program in a node, with that node's own state and file.
    pub fn rehome(&self, index: usize, arguments: &[&str]) -> Command {
        let node = &self.nodes[index];
        let mut command = self.lab.command(node.name, &self.program);
        command
            .args(arguments)
            .current_dir(&node.folder)
            .env("HOME", &node.folder)
            .env("REHOME_STATE", node.folder.join("state"))
            .env("REHOME_FILE", node.folder.join("rehome.toml"));
        command
    }

    pub fn run(&self, index: usize, arguments: &[&str]) -> Ran {
        ran(self.rehome(index, arguments).output().unwrap())
    }

    /// `rehome entry keepalived VERB` with this node's files.
    pub fn entry(&self, index: usize, verb: &str, more: &[&str]) -> Ran {
        let folder = &self.nodes[index].folder;
        let (config, sysctl) = (folder.join("keepalived.conf"), folder.join("sysctl.conf"));
        let mut words = vec!["entry", "keepalived", verb, "--json"];
        words.extend(["--config", config.to_str().unwrap(), "--sysctl-file", sysctl.to_str().unwrap()]);
        words.extend(more);
        self.run(index, &words)
    }

    pub fn install(&self, index: usize) -> Ran {
        let file = self.nodes[index].folder.join("hand-over");
        let own = NODES.map(|name| self.lab.address(name).to_string());
        let mut words =
            vec!["--as", ["1", "2"][index], "--interface", INTERFACE, "--node", &own[0], "--node", &own[1]];
        words.extend(["--address", "10.77.0.100/24", "--address", "fd77::100/64"]);
        let advert = self.setup.advert_ms.to_string();
        words.extend(["--advert-ms", &advert, "--hand-over-file", file.to_str().unwrap(), "--yes"]);
        if !self.setup.keep {
            words.push("--without-keeping");
        }
        self.entry(index, "install", &words)
    }

    pub fn start_gateway(&mut self, index: usize) {
        let folder = self.nodes[index].folder.clone();
        let _before = std::fs::remove_file(folder.join("ready"));
        let log = File::options().create(true).append(true).open(folder.join("gateway.log")).unwrap();
        let ready = folder.join("ready").display().to_string();
        let words = ["gateway", "--metrics", "127.0.0.1:9100", "--ready", &ready, "--drain", "20"];
        let child = self.rehome(index, &words).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.nodes[index].gateway = Some(child);
        wait_for("the gateway listens", LIMIT, || folder.join("ready").exists().then_some(()));
    }

    pub fn start_keepalived(&mut self, index: usize) {
        let node = &self.nodes[index];
        let path = |name: &str| node.folder.join(name);
        // The id of a killed one may still be taken by its remains, or again by somebody else.
        for left in ["pid", "vrrp.pid"] {
            let _none = std::fs::remove_file(path(left));
        }
        let log = File::options().create(true).append(true).open(path("keepalived.log")).unwrap();
        let mut command = self.lab.command(node.name, "keepalived");
        command.args(["--vrrp", "--dont-fork", "--log-console", "--log-detail", "--no-syslog", "--use-file"]);
        command
            .arg(path("keepalived.conf"))
            .arg("--pid")
            .arg(path("pid"))
            .arg("--vrrp_pid")
            .arg(path("vrrp.pid"));
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.nodes[index].keepalived = Some(child);
    }

    pub fn log(&self, index: usize) -> String {
        std::fs::read_to_string(self.nodes[index].folder.join("keepalived.log")).unwrap_or_default()
    }

    pub fn signal_gateway(&self, index: usize, signal: Signal) {
        kill_process(pid_of(self.nodes[index].gateway.as_ref().unwrap()), signal).unwrap();
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill_gateway(&mut self, index: usize) {
        end(self.nodes[index].gateway.take().unwrap());
    }

    /// The process of keepalived that speaks VRRP.
    pub fn vrrp(&self, index: usize) -> Pid {
        let path = self.nodes[index].folder.join("vrrp.pid");
        wait_for("the id of the VRRP process", LIMIT, || {
            Pid::from_raw(std::fs::read_to_string(&path).ok()?.trim().parse().ok()?)
        })
    }

    /// SIGKILL for both processes: nobody takes the addresses off the interface.
    pub fn kill_keepalived(&mut self, index: usize) {
        self.kill_both_of_keepalived(index);
        end(self.nodes[index].keepalived.take().unwrap());
    }

    /// The parent first stands still: it would start its child again, and the child ends politely after it.
    pub fn kill_both_of_keepalived(&self, index: usize) {
        let parent = pid_of(self.nodes[index].keepalived.as_ref().unwrap());
        kill_process(parent, Signal::STOP).unwrap();
        kill_process(self.vrrp(index), Signal::KILL).unwrap();
        kill_process(parent, Signal::KILL).unwrap();
    }

    pub fn has(&self, index: usize) -> bool {
        self.lab.has(NODES[index], shared4()).unwrap() && self.lab.has(NODES[index], shared6()).unwrap()
    }

    /// Waits until this node has the addresses and the other has not.
    pub fn owner_is(&self, index: usize) {
        let other = 1 - index;
        wait_for(&format!("{} alone has the addresses", NODES[index]), LIMIT, || {
            let alone = self.has(index) && !self.lab.has(NODES[other], shared4()).unwrap();
            alone.then_some(())
        });
    }

    /// One request on a connection of its own, from a node: the gateway that it came through and the side that answered.
    pub fn ask(
        &self,
        from: &str,
        address: IpAddr,
        method: &str,
        path: &str,
    ) -> Result<(String, String), String> {
        let asked = self.lab.inside(from, || ask(SocketAddr::new(address, 8080), method, path)).unwrap();
        let (gateway, side) = asked?;
        let known = NODES.iter().find(|name| self.lab.address(name).to_string() == gateway);
        Ok((known.map_or(gateway, ToString::to_string), side))
    }

    /// A request to a gateway's control socket, as its engine would send it.
    pub fn control(&self, index: usize, request: Request) -> Response {
        let folder = &self.nodes[index].folder;
        let secret = std::fs::read_to_string(folder.join("control.secret")).unwrap();
        let client = Client::new(folder.join("control.sock"), secret.trim(), "test").with_timeout(LIMIT);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(client.call(request)).unwrap()
    }

    pub fn gateway(&self, index: usize) -> Status {
        match self.control(index, Request::Status) {
            Response::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }
}

pub fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed()).unwrap()
}

pub fn shared4() -> IpAddr {
    "10.77.0.100".parse().unwrap()
}

pub fn shared6() -> IpAddr {
    "fd77::100".parse().unwrap()
}

fn ask(address: SocketAddr, method: &str, path: &str) -> Result<(String, String), String> {
    let told = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).map_err(told)?;
    stream.set_read_timeout(Some(LIMIT)).map_err(told)?;
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: shop\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(told)?;
    let head = read_head(&mut BufReader::new(stream)).ok_or("it ended without an answer")?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(head);
    }
    let name = |header_name| header(&head, header_name).unwrap_or_default().to_owned();
    Ok((name("x-from"), name("x-side")))
}
