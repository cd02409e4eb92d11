//! A real pair behind real keepalived: what moves the addresses, what that costs, and that two owners harm nobody.

mod figures;
mod load;
mod rig;

use crate::harness::wait_for;
use load::{Probed, Written, probe, write};
use rehome_gateway::control::{Mode, Request, Response, SessionRule};
use rehome_part::{Epoch, Side, Token};
use rehome_testkit::namespaces::INTERFACE;
use rig::{LIMIT, NODES, Rig, Setup, lab, shared4, shared6};
use rustix::process::{Signal, kill_process};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Probes and keeping writers on the shared address while `events` happen.
fn under_load<T>(rig: &Rig, pace: Duration, events: impl FnOnce() -> T) -> (T, Vec<Probed>, Written) {
    let (enough, to) = (AtomicBool::new(false), SocketAddr::new(shared4(), 8080));
    std::thread::scope(|scope| {
        let probes = scope.spawn(|| probe(rig, to, pace, &enough));
        let writer = |path: &'static str| {
            let (enough, rig) = (&enough, &rig);
            scope.spawn(move || write(rig, "client", to, path, Duration::from_millis(3), enough))
        };
        let writers = [writer("/a"), writer("/b"), writer("/slow/30/c"), writer("/slow/30/d")];
        // Ends the others also when the events panic.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(events));
        enough.store(true, Ordering::Relaxed);
        let mut written = Written::default();
        for one in writers {
            let one = one.join().unwrap();
            written.acknowledged.extend(one.acknowledged);
            written.failed.extend(one.failed);
        }
        let done = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (done, probes.join().unwrap(), written)
    })
}

fn failures(probes: &[Probed]) -> Vec<&String> {
    probes.iter().filter_map(|probe| probe.failed.as_ref()).collect()
}

/// Every acknowledged write is on the source once, nothing is there twice, and the target has none.
fn written_once(rig: &Rig, written: &Written) {
    let mut there = rig.source.writes();
    there.sort();
    let all = there.len();
    there.dedup();
    assert_eq!(there.len(), all, "nothing is written twice");
    for path in &written.acknowledged {
        assert!(there.binary_search(path).is_ok(), "{path} was acknowledged and is not there");
    }
    assert_eq!(rig.target.writes(), Vec::<String>::new());
}

#[test]
fn a_planned_hand_over_and_back_fails_nobody() {
    let Some(rig) = Rig::start(Setup::default()) else { return };
    let status = rig.entry(0, "status", &[]);
    assert_eq!((status.code, &status.last_json()["serving"]), (0, &true.into()), "{}", status.stdout);
    let ((), probes, written) = under_load(&rig, Duration::from_millis(5), || {
        for (from, to) in [(0, 1), (1, 0)] {
            let moved = rig.entry(from, "hand-over", &["--yes", "--window", "1"]);
            assert_eq!(moved.code, 0, "{}\n{}", moved.stdout, moved.stderr);
            rig.owner_is(to);
            // Both kinds of addresses lead to the new node, also with the old one keeping them on its loopback.
            for address in [shared4(), shared6()] {
                let answered = rig.ask("other", address, "GET", "/").unwrap();
                assert_eq!(answered, (NODES[to].to_owned(), "source".to_owned()), "{address}");
            }
            let again = rig.entry(from, "hand-over", &["--yes"]);
            assert_eq!(again.code, 1);
            assert!(again.stderr.contains("does not have the shared addresses"), "{}", again.stderr);
        }
    });
    assert!(probes.len() > 100 && written.acknowledged.len() > 100);
    assert_eq!(failures(&probes), Vec::<&String>::new());
    assert_eq!(written.failed, Vec::<String>::new(), "kept connections and slow requests, too");
    written_once(&rig, &written);
    for index in [0, 1] {
        let status = rig.entry(index, "status", &[]);
        assert_eq!(
            (status.code, &status.last_json()["serving"]),
            (0, &(index == 0).into()),
            "{}",
            status.stdout
        );
    }
}

#[test]
fn nobody_is_left_without_the_address_when_the_other_node_does_not_take_it() {
    let Some(mut rig) = Rig::start(Setup::default()) else { return };
    rig.kill_gateway(1);
    let refused = rig.entry(0, "hand-over", &["--yes", "--window", "0"]);
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    assert!(refused.stderr.contains("does not take connections at 10.77.0.12:8080"), "{}", refused.stderr);
    assert!(rig.has(0), "nothing was changed");
    rig.start_gateway(1);
    // Its keepalived is gone: that shows only when nobody takes over.
    rig.kill_keepalived(1);
    let (came_back, _, written) = under_load(&rig, Duration::from_millis(20), || {
        rig.entry(0, "hand-over", &["--yes", "--window", "0"])
    });
    assert_eq!(came_back.code, 1, "{}", came_back.stderr);
    assert!(came_back.stderr.contains("did not take over"), "{}", came_back.stderr);
    rig.owner_is(0);
    assert_eq!(rig.ask("client", shared4(), "GET", "/").unwrap().0, "one");
    written_once(&rig, &written);
    let status = rig.entry(0, "status", &[]);
    assert_eq!(status.code, 0, "no order is left: {}", status.stdout);
}

#[test]
fn a_gateway_that_dies_hangs_or_drains_loses_the_addresses_and_one_that_holds_does_not() {
    let Some(mut rig) = Rig::start(Setup::default()) else { return };
    let asked = |rig: &Rig, name: &str| {
        wait_for("the other gateway answers", LIMIT, || {
            (rig.ask("client", shared4(), "GET", "/").ok()?.0 == name).then_some(())
        });
    };
    rig.kill_gateway(0);
    rig.owner_is(1);
    asked(&rig, "two");
    rig.start_gateway(0);
    let ready = |rig: &Rig, index: usize| {
        wait_for("it stands by again", LIMIT, || {
            (rig.log(index).rsplit("Entering ").next()?.starts_with("BACKUP")).then_some(())
        });
        assert!(rig.has(1 - index), "and takes nothing from a node that serves");
    };
    ready(&rig, 0);

    rig.signal_gateway(1, Signal::STOP);
    rig.owner_is(0);
    asked(&rig, "one");
    rig.signal_gateway(1, Signal::CONT);
    ready(&rig, 1);

    // A gateway that is told to end gives the addresses away while it still finishes what it has.
    let slow = std::thread::scope(|scope| {
        let slow = scope.spawn(|| rig.ask("client", rig.lab.address("one").into(), "POST", "/slow/4000/x"));
        wait_for("the slow write is under way", LIMIT, || (!rig.source.writes().is_empty()).then_some(()));
        rig.signal_gateway(0, Signal::TERM);
        rig.owner_is(1);
        slow.join().unwrap()
    });
    assert_eq!(slow.unwrap().1, "source");
    asked(&rig, "two");
}

fn token() -> Token {
    Token(7)
}

fn both(rig: &Rig, request: Request) {
    for index in [0, 1] {
        let answer = rig.control(index, request.clone());
        assert!(matches!(answer, Response::Done | Response::Held(_)), "{answer:?} from {}", NODES[index]);
    }
}

fn arm(epoch: u64) -> Request {
    Request::Arm {
        epoch: Epoch(epoch),
        lease_ms: 60_000,
        ask: vec![],
        ask_secret: "ask".into(),
        token: token(),
    }
}

/// The VRRP process of the serving node stands still: the other takes over, and both have the addresses. One client is made to reach
/// each end; they write all the time, through a switch as well.
#[test]
fn two_owners_write_to_one_side() {
    let Some(rig) = Rig::start(Setup::default()) else { return };
    both(&rig, Request::Enroll { run: "shop".into(), token: token() });
    kill_process(rig.vrrp(0), Signal::STOP).unwrap();
    wait_for("both have the addresses", LIMIT, || (rig.has(0) && rig.has(1)).then_some(()));
    for (client, node) in [("client", "one"), ("other", "two")] {
        rig.lab.pin(client, shared4(), node).unwrap();
        assert_eq!(rig.ask(client, shared4(), "GET", "/").unwrap().0, node, "each client has its own owner");
    }
    let (enough, to) = (AtomicBool::new(false), SocketAddr::new(shared4(), 8080));
    let written = std::thread::scope(|scope| {
        let writers = ["client", "other"].map(|node| {
            let (rig, enough) = (&rig, &enough);
            let path = format!("/{node}");
            scope.spawn(move || write(rig, node, to, &path, Duration::from_millis(2), enough))
        });
        let switched =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| switch_under_two_owners(&rig)));
        enough.store(true, Ordering::Relaxed);
        let written = writers.map(|writer| writer.join().unwrap());
        switched.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written
    });
    let (source, target) = (rig.source.writes(), rig.target.writes());
    for (one, name) in written.iter().zip(["client", "other"]) {
        assert_eq!(one.failed, Vec::<String>::new(), "{name}");
        assert!(one.acknowledged.len() > 50, "{name} wrote {}", one.acknowledged.len());
        for path in &one.acknowledged {
            let times = source.iter().chain(&target).filter(|there| *there == path).count();
            assert_eq!(times, 1, "{path}");
        }
    }
    kill_process(rig.vrrp(0), Signal::CONT).unwrap();
    // The first node has the higher priority, so the second gives way.
    rig.owner_is(0);
}

/// Writes at the source through both ends, then a hold of both, then the target for both.
fn switch_under_two_owners(rig: &Rig) {
    let many = |side: &rig::Side, what: &str| {
        let from = |name: &str| side.writes().iter().filter(|path| path.starts_with(name)).count();
        wait_for(what, LIMIT, || (from("/client") > 100 && from("/other") > 100).then_some(()));
    };
    many(&rig.source, "both ends write to the source");
    assert_eq!(rig.target.writes(), Vec::<String>::new(), "and none to the target");
    both(rig, arm(1));
    let sessions = SessionRule::Wait;
    both(rig, Request::Hold { epoch: Epoch(1), in_flight_ms: 10_000, sessions, token: token() });
    // What the pair has written to the source until here is all that it ever gets.
    let fenced = rig.source.writes().len();
    for index in [0, 1] {
        wait_for("a write waits at each end", LIMIT, || (rig.gateway(index).held.waiting > 0).then_some(()));
        assert_eq!(rig.gateway(index).mode, Mode::Held);
        let status = rig.entry(index, "status", &[]);
        assert_eq!(status.code, 0, "a gateway that holds is alive to Keepalived: {}", status.stdout);
    }
    both(rig, Request::Settle { epoch: Epoch(2), owner: Side::Target, token: token() });
    many(&rig.target, "both ends write to the target");
    assert_eq!(rig.source.writes().len(), fenced, "and none to the source any more");
}

#[test]
fn keepalived_killed_and_cables_pulled() {
    let Some(mut rig) = Rig::start(Setup::default()) else { return };
    // Killed with both processes: the addresses stay on the first node, and the second takes them, too.
    rig.kill_keepalived(0);
    wait_for("both have the addresses", LIMIT, || (rig.has(0) && rig.has(1)).then_some(()));
    let written = {
        let ((), _, written) =
            under_load(&rig, Duration::from_millis(20), || std::thread::sleep(Duration::from_secs(1)));
        written
    };
    assert_eq!(written.failed, Vec::<String>::new());
    written_once(&rig, &written);
    rig.start_keepalived(0);
    wait_for("one has them again", LIMIT, || (rig.has(0) != rig.has(1)).then_some(()));
    let (owner, other) = if rig.has(0) { (0, 1) } else { (1, 0) };

    // A pulled cable is seen by its own node, too.
    rig.lab.cable(NODES[owner], false).unwrap();
    rig.owner_is(other);
    assert_eq!(rig.ask("client", shared4(), "GET", "/").unwrap().0, NODES[other]);
    rig.lab.cable(NODES[owner], true).unwrap();
    wait_for("it stands by again", LIMIT, || {
        (rig.log(owner).rsplit("Entering ").next()?.starts_with("BACKUP")).then_some(())
    });
    assert!(rig.has(other), "a node that comes back takes nothing");

    // A network that is cut is not: both have the addresses until it is whole again.
    rig.lab.isolate(NODES[other], true).unwrap();
    wait_for("both have the addresses", LIMIT, || (rig.has(0) && rig.has(1)).then_some(()));
    assert_eq!(rig.ask("client", shared4(), "GET", "/").unwrap().0, NODES[owner]);
    rig.lab.isolate(NODES[other], false).unwrap();
    wait_for("one has them again", LIMIT, || (rig.has(0) != rig.has(1)).then_some(()));
    assert_eq!(rig.ask("other", shared4(), "GET", "/").unwrap().1, "source");
}

#[test]
fn an_installation_beside_a_configuration_of_others_and_its_way_back() {
    let Some(lab) = lab(&["one", "two"]) else { return };
    let place = crate::harness::Place::new();
    let theirs = "global_defs {\n    enable_script_security\n}\n\nvrrp_instance theirs {\n    state BACKUP\n    interface eth0\n    \
                  virtual_router_id 51\n    priority 100\n    advert_int 1\n    virtual_ipaddress {\n        10.77.0.9/24\n    }\n}\n";
    let config = place.write("keepalived.conf", theirs);
    let run = |verb: &str, more: &[&str]| {
        let mut command = lab.command("one", env!("CARGO_BIN_EXE_rehome"));
        command.args(["entry", "keepalived", verb, "--yes", "--config"]).arg(&config);
        command.arg("--sysctl-file").arg(place.path("sysctl.conf")).args(more);
        command.env("REHOME_STATE", place.path("state")).current_dir(place.folder.path());
        crate::harness::ran(command.output().unwrap())
    };
    let install = |more: &[&str]| {
        let words = ["--as", "1", "--interface", INTERFACE, "--node", "10.77.0.11", "--node", "10.77.0.12"];
        run("install", &[&words[..], more].concat())
    };
    let arp_ignore = || {
        let read = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/arp_ignore");
        lab.inside("one", read).unwrap().unwrap().trim().to_owned()
    };
    let same = install(&["--address", "10.77.0.100/24"]);
    assert_eq!(same.code, 1);
    assert!(same.stderr.contains("theirs already has the virtual router id 51"), "{}", same.stderr);
    let stray = install(&["--address", "10.78.0.100/32", "--router-id", "52"]);
    assert!(stray.stderr.contains("is in no network that eth0 has here"), "{}", stray.stderr);
    assert_eq!(std::fs::read_to_string(&config).unwrap(), theirs);

    // A pair that speaks IPv6: Keepalived's own test takes it.
    let six = ["--as", "1", "--interface", INTERFACE, "--node", "fd77::11", "--node", "fd77::12"];
    let shown = run("install", &[&six[..], &["--address", "fd77::100/64", "--router-id", "53"]].concat());
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    let removed = run("remove", &[]);
    assert_eq!(
        (removed.code, std::fs::read_to_string(&config).unwrap()),
        (0, theirs.to_owned()),
        "{}",
        removed.stderr
    );

    let installed = install(&["--address", "10.77.0.100/24", "--router-id", "52"]);
    assert_eq!(installed.code, 0, "{}", installed.stderr);
    let now = std::fs::read_to_string(&config).unwrap();
    assert!(now.starts_with(theirs) && now.contains("\ninclude /"), "{now}");
    assert!(std::fs::read_to_string(place.path("rehome.conf")).unwrap().contains("virtual_router_id 52"));
    assert_eq!(arp_ignore(), "1");
    let again = install(&["--address", "10.77.0.100/24", "--router-id", "52"]);
    assert!(again.code == 0 && again.stderr.contains("nothing to change"), "{}", again.stderr);

    // They go on editing theirs; only our line leaves it.
    std::fs::write(&config, now.replace("priority 100", "priority 90")).unwrap();
    let removed = run("remove", &[]);
    assert_eq!(removed.code, 0, "{}", removed.stderr);
    let left = std::fs::read_to_string(&config).unwrap();
    assert_eq!(left, theirs.replace("priority 100", "priority 90"));
    assert_eq!(arp_ignore(), "0");
    assert!(!place.path("rehome.conf").exists() && !place.path("sysctl.conf").exists());
    assert_eq!(run("remove", &[]).code, 1, "there is nothing left to take out");
}

#[test]
fn proposals_and_the_check_need_nobody() {
    let place = crate::harness::Place::new();
    let words = ["entry", "keepalived", "propose", "--interface", "eth0", "--program", "/usr/bin/rehome"];
    let nodes = ["--node", "10.0.0.11", "--node", "10.0.0.12"];
    let propose = |more: &[&str]| place.run(&[&words[..], &nodes, more].concat());
    let proposed = propose(&["--address", "10.0.0.100/24", "--json"]).last_json();
    assert_eq!((&proposed["ui"], &proposed["advert_ms"]), (&"1.0".into(), &300.into()));
    for (index, node) in ["10.0.0.11", "10.0.0.12"].iter().enumerate() {
        assert_eq!(proposed["nodes"][index]["address"], *node);
        let config = proposed["nodes"][index]["files"]["keepalived.conf"].as_str().unwrap();
        assert!(config.contains(&format!("unicast_src_ip {node}\n")), "{config}");
    }
    let written = propose(&["--address", "10.0.0.100/24", "--out", "pair"]);
    assert_eq!(written.code, 0, "{}", written.stderr);
    assert!(place.path("pair/node-2/keepalived.conf").exists());
    let wrong = propose(&["--address", "10.0.1.100/24"]);
    assert_eq!(wrong.code, 2, "{}", wrong.stderr);
    assert!(
        wrong.stderr.contains("is not in the network of") && wrong.stderr.contains("hint:"),
        "{}",
        wrong.stderr
    );

    // Without a home, a state folder or a file, as Keepalived starts it.
    let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_rehome"));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ran = check.env_clear().args(["entry", "keepalived", "check", &nobody.to_string()]).output().unwrap();
    assert_eq!(ran.status.code(), Some(1), "{}", String::from_utf8_lossy(&ran.stderr));
}
