//! A BIND primary on 127.0.0.1 and, where wanted, its secondary on [::1] (BIND listens on addresses that an interface has),
//! with one zone that takes updates by key.

use super::name;
use rehome_entry::dns::authority::{Authority, Resolver};
use rehome_entry::dns::rfc2136::Rfc2136;
use rehome_entry::dns::tsig::Key;
use rehome_entry::dns::{Clock, system_clock};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub const ZONE: &str = "example.test";
pub const NAME: &str = "shop.example.test";
pub const SECRET: &str = "cmVob21lLXRlc3Qtc2VjcmV0LW9mLTMyLWJ5dGVzISE=";
const ALGORITHM: &str = "hmac-sha256";

/// How the secondary hears of changes.
#[derive(Clone, Copy, PartialEq)]
pub enum Secondary {
    None,
    /// None, and the primary signs the zone (DNSSEC).
    NoneSigned,
    Notified,
    /// It asks by itself every few seconds.
    Late,
}

pub struct Named {
    child: Option<Child>,
    configuration: PathBuf,
}

impl Named {
    /// `None` when it ended before it ran, as it does when its port was taken meanwhile.
    fn start(configuration: &Path) -> Option<Self> {
        let mut child = Command::new(program("named").unwrap())
            .args(["-g", "-n", "1", "-c"])
            .arg(configuration)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = Vec::new();
        let runs = lines.by_ref().map_while(Result::ok).any(|line| {
            log.push(line.clone());
            line.ends_with(" running")
        });
        // Read on, so that it never waits for us.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let taken = log.iter().any(|line| line.contains("address in use"));
        let mut named = Self { child: Some(child), configuration: configuration.to_owned() };
        if !runs || taken {
            named.stop();
            assert!(taken, "{}", log.join("\n"));
            return None;
        }
        Some(named)
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn start_again(&mut self) {
        let folder = self.configuration.parent().unwrap();
        if folder.ends_with("secondary") {
            // It has to fetch the zone anew, and not when its own timer says so.
            let _ = std::fs::remove_file(folder.join("zone.db"));
        }
        *self = Self::start(&self.configuration).expect("its port is free");
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.stop();
    }
}

pub struct Bind {
    pub port: u16,
    pub primary: Named,
    pub secondary: Option<Named>,
    _folder: tempfile::TempDir,
}

#[allow(clippy::print_stderr, reason = "a test that did not run says so")]
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = folders.map(|folder: PathBuf| folder.join(name)).find(|path| path.exists());
    if found.is_none() {
        let required = std::env::var_os("REHOME_REQUIRE_TOOLS").is_some();
        assert!(!required, "{name} is missing: run scripts/tools.sh");
        eprintln!("SKIPPED: {name} is missing; run scripts/tools.sh");
    }
    found
}

/// A port that is free on both addresses, for UDP and TCP.
pub fn free_port() -> u16 {
    let free = |address: &str, port: u16| {
        let address: IpAddr = address.parse().unwrap();
        UdpSocket::bind((address, port)).is_ok() && TcpListener::bind((address, port)).is_ok()
    };
    let ports = (0..100).map(|_| {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        first.local_addr().unwrap().port()
    });
    let mut ports = ports.filter(|port| free("127.0.0.1", *port) && free("::1", *port));
    ports.next().expect("a port that is free on both addresses")
}

fn zone_file() -> String {
    let big: String = (1..=90).map(|host| format!("big A 192.0.2.{host}\n")).collect();
    format!(
        "$TTL 300\n@ SOA ns1 root 1 2 1 3600 30\n@ NS ns1\n@ NS ns2\nns1 A 127.0.0.1\nns2 AAAA ::1\n@ A 192.0.2.80\n\
         shop A 192.0.2.1\nshop A 192.0.2.2\nshop AAAA 2001:db8::1\nwww CNAME shop\nmail A 192.0.2.25\nmail MX 10 shop\n\
         *.wild A 192.0.2.99\nhinted A 192.0.2.3\nhinted HTTPS 1 . alpn=h2 ipv4hint=192.0.2.3\ngone DNAME example.net.\n\
         cut NS ns1.elsewhere.test.\nlocked A 192.0.2.4\n{big}"
    )
}

impl Bind {
    /// `None` where there is no BIND and none is required.
    pub fn start(secondary: Secondary) -> Option<Self> {
        program("named")?;
        for _ in 0..10 {
            let port = free_port();
            let folder = tempfile::tempdir().unwrap();
            let primary = Named::start(&primary_files(folder.path(), port, secondary));
            let Some(primary) = primary else { continue };
            let second = match secondary {
                Secondary::None | Secondary::NoneSigned => None,
                _ => match Named::start(&secondary_files(folder.path(), port)) {
                    None => continue,
                    started => started,
                },
            };
            return Some(Self { port, primary, secondary: second, _folder: folder });
        }
        panic!("ten ports were all taken");
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub fn zone(&self) -> Rfc2136 {
        self.zone_at(self.address(), SECRET, system_clock())
    }

    pub fn zone_at(&self, server: SocketAddr, secret: &str, clock: Clock) -> Rfc2136 {
        Rfc2136::new(server, name(ZONE), Key::new("move", ALGORITHM, secret).unwrap(), clock)
    }

    /// The servers that the zone itself names.
    pub async fn authority(&self) -> Authority {
        let resolver = Resolver::new(self.address(), system_clock());
        assert_eq!(resolver.zone_of(&name(NAME)).await.unwrap(), name(ZONE));
        assert_eq!(resolver.primary_of(&name(ZONE), self.port).await.unwrap(), self.address());
        let authority = Authority::find(&resolver, name(ZONE), self.port, system_clock()).await.unwrap();
        all_answer(&authority).await;
        authority
    }

    /// One server only, for tests that have no secondary.
    pub fn alone(&self) -> Authority {
        Authority::given(name(ZONE), &[self.address()], system_clock())
    }
}

/// A secondary that was just started has to fetch the zone first.
pub async fn all_answer(authority: &Authority) {
    for _ in 0..200 {
        if authority.look(&name(NAME)).await.iter().all(|sight| sight.view.is_ok()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{:?}", authority.look(&name(NAME)).await);
}

fn options(folder: &Path, v4: &str, v6: &str, port: u16) -> String {
    format!(
        "options {{ directory \"{}\"; pid-file none; session-keyfile none; lock-file none; \n\
         listen-on port {port} {{ {v4}; }}; listen-on-v6 port {port} {{ {v6}; }}; recursion no; dnssec-validation no; notify-delay 0; notify-rate 1000;\n\
         startup-notify-rate 1000; serial-query-rate 1000; }};\n\
         controls {{ }};\n",
        folder.display()
    )
}

fn primary_files(folder: &Path, port: u16, secondary: Secondary) -> PathBuf {
    let folder = folder.join("primary");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("zone.db"), zone_file()).unwrap();
    let notify = match secondary {
        Secondary::Notified => format!("notify explicit; also-notify {{ ::1 port {port}; }};"),
        Secondary::NoneSigned => "notify no; dnssec-policy default;".into(),
        _ => "notify no;".into(),
    };
    let text = format!(
        "{}key move {{ algorithm {ALGORITHM}; secret \"{SECRET}\"; }};\n\
         zone \"{ZONE}\" {{ type primary; file \"zone.db\"; {notify} allow-transfer {{ any; }};\n\
         update-policy {{ deny move name locked.{ZONE} ANY; grant move zonesub ANY; }}; }};\n",
        options(&folder, "127.0.0.1", "none", port)
    );
    let path = folder.join("named.conf");
    std::fs::write(&path, text).unwrap();
    path
}

fn secondary_files(folder: &Path, port: u16) -> PathBuf {
    let folder = folder.join("secondary");
    std::fs::create_dir(&folder).unwrap();
    let text = format!(
        "{}zone \"{ZONE}\" {{ type secondary; primaries {{ 127.0.0.1 port {port}; }}; file \"zone.db\"; notify no;\n\
         allow-notify {{ any; }}; min-refresh-time 1; max-refresh-time 3; }};\n",
        options(&folder, "none", "::1", port)
    );
    let path = folder.join("named.conf");
    std::fs::write(&path, text).unwrap();
    path
}
