//! The lab itself: nodes reach each other, a cable can be pulled, and nothing is left behind.

use rehome_testkit::namespaces::Lab;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

fn lab(nodes: &[&str]) -> Option<Lab> {
    match Lab::new(nodes) {
        Ok(lab) => Some(lab),
        Err(why) => {
            // What a machine allows is its owner's word; no tool can be installed against it.
            eprintln!("SKIPPED: no network namespaces: {why}");
            None
        }
    }
}

#[test]
fn nodes_reach_each_other_until_a_cable_is_pulled() {
    let Some(lab) = lab(&["one", "two"]) else { return };
    assert!(lab.has("two", IpAddr::V4(lab.address("two"))).unwrap());
    for address in [IpAddr::V4(lab.address("two")), IpAddr::V6(lab.address6("two"))] {
        let listener = lab.inside("two", || TcpListener::bind(SocketAddr::new(address, 0))).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(2));
        let mut client = lab.inside("one", connect).unwrap().unwrap();
        client.write_all(b"x").unwrap();
        let mut byte = [0];
        listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        let short = || TcpStream::connect_timeout(&address, Duration::from_millis(200));
        assert!(short().is_err(), "the machine itself does not see the lab");
        lab.cable("two", false).unwrap();
        assert!(lab.inside("one", short).unwrap().is_err());
        lab.cable("two", true).unwrap();
    }
}

#[test]
fn whatever_ran_inside_ends_with_the_lab() {
    let Some(lab) = lab(&["one"]) else { return };
    let mut child = lab.command("one", "sleep").arg("600").spawn().unwrap();
    let name = lab.namespace("one");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _lab = lab;
        panic!("a test that fails");
    }));
    assert!(panicked.is_err());
    assert!(!child.wait().unwrap().success(), "killed");
    assert!(!std::path::Path::new("/run/netns").join(name).exists());
}
