//! The same updates to another server than BIND: Knot has its own mind about conditions and refusals.

use super::between::Between;
use super::bind::{NAME, SECRET, ZONE, free_port, program};
use super::{entry, name};
use rehome_entry::EntryError;
use rehome_entry::dns::rfc2136::Rfc2136;
use rehome_entry::dns::tsig::Key;
use rehome_entry::dns::{Clock, Entry, Zone, system_clock};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

struct Knot {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Knot {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Knot {
    fn start() -> Option<Self> {
        let program = program("knotd")?;
        for _ in 0..10 {
            let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
            let path = folder.path().display();
            let zone = "$TTL 300\n@ SOA ns1 root 1 2 1 3600 30\n@ NS ns1\nns1 A 127.0.0.1\nshop A 192.0.2.1\n\
                        mail A 192.0.2.25\nmail MX 10 shop\n";
            std::fs::write(folder.path().join("zone.db"), zone).unwrap();
            let text = format!(
                "server:\n    rundir: \"{path}\"\n    listen: 127.0.0.1@{port}\nlog:\n  - target: stdout\n    any: info\n\
                 database:\n    storage: \"{path}\"\nkey:\n  - id: move\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
                 acl:\n  - id: move\n    key: move\n    action: [query, update]\n\
                 zone:\n  - domain: {ZONE}\n    storage: \"{path}\"\n    file: zone.db\n    acl: move\n"
            );
            let configuration = folder.path().join("knot.conf");
            std::fs::write(&configuration, text).unwrap();
            let mut command = Command::new(&program);
            command
                .arg("-c")
                .arg(configuration)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
            let runs = lines.any(|line| line.contains("server started"));
            std::thread::spawn(move || lines.for_each(drop));
            let knot = Self { child, address: ([127, 0, 0, 1], port).into(), _folder: folder };
            if runs {
                return Some(knot);
            }
        }
        panic!("knotd did not run on ten ports");
    }

    fn zone_at(&self, server: SocketAddr, key: &str, secret: &str, clock: Clock) -> Rfc2136 {
        Rfc2136::new(server, name(ZONE), Key::new(key, "hmac-sha256", secret).unwrap(), clock)
    }

    fn zone(&self) -> Rfc2136 {
        self.zone_at(self.address, "move", SECRET, system_clock())
    }
}

fn there() -> Entry {
    entry(&["192.0.2.1"], 300)
}

#[tokio::test]
async fn an_update_changes_what_it_says() {
    let Some(knot) = Knot::start() else { return };
    let (zone, shop) = (knot.zone(), name(NAME));
    let mut now = there();
    for next in [
        entry(&["192.0.2.9", "2001:db8::9"], 60),
        entry(&["192.0.2.9", "2001:db8::9"], 30),
        entry(&["lb.example.net"], 60),
        there(),
        Entry::default(),
        there(),
    ] {
        zone.replace(&shop, &now, &next).await.unwrap();
        assert_eq!(zone.read(&shop).await.unwrap().entry, next);
        let stale = zone.replace(&shop, &entry(&["203.0.113.1"], 60), &now).await.unwrap_err();
        assert!(matches!(stale, EntryError::Changed { .. }), "{stale:?}");
        now = next;
    }
    // A CNAME beside mail: the condition stops it, and nothing is gone.
    let found = zone.read(&name("mail.example.test")).await.unwrap();
    assert_eq!(found.besides, ["MX"]);
    let refused =
        zone.replace(&name("mail.example.test"), &found.entry, &entry(&["a.example.net"], 60)).await;
    assert!(matches!(refused, Err(EntryError::Unfit { .. })), "{refused:?}");
    assert_eq!(zone.read(&name("mail.example.test")).await.unwrap(), found);
}

#[tokio::test]
async fn a_change_made_meanwhile_is_never_written_over() {
    let Some(knot) = Knot::start() else { return };
    let mut now = there();
    for theirs in [entry(&["192.0.2.7"], 300), entry(&["192.0.2.7"], 120)] {
        let (other, from, to) = (Arc::new(knot.zone()), now.clone(), theirs.clone());
        let before = Box::new(move || {
            let (other, from, to) = (other.clone(), from.clone(), to.clone());
            Box::pin(async move { other.replace(&name(NAME), &from, &to).await.unwrap() }) as _
        });
        let between = Between::start(knot.address, before, false).await;
        let zone = knot.zone_at(between.address, "move", SECRET, system_clock());
        let result = zone.replace(&name(NAME), &now, &entry(&["192.0.2.9"], 60)).await;
        assert!(matches!(result, Err(EntryError::Changed { .. })), "{result:?}");
        assert_eq!(knot.zone().read(&name(NAME)).await.unwrap().entry, theirs);
        now = theirs;
    }
}

#[tokio::test]
async fn a_refused_signature_says_why() {
    let Some(knot) = Knot::start() else { return };
    let late: Clock = Arc::new(|| jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1));
    for (key, secret, clock, word) in [
        ("nobody", SECRET, system_clock(), "BADKEY"),
        ("move", "aHVudGVyMg==", system_clock(), "BADSIG"),
        ("move", SECRET, late, "BADTIME"),
    ] {
        let error = knot.zone_at(knot.address, key, secret, clock).read(&name(NAME)).await.unwrap_err();
        assert!(matches!(error, EntryError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(word), "{error}");
    }
}
