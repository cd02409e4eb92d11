//! A fence that was given up because nothing answered: what was sent for it must not close the side later, behind the statement that
//! opened it.

use crate::support::*;
use rehome_databases::postgres::PostgresPart;
use rehome_databases::{Address, End, Ends, FenceMeans, Login, Tls};
use rehome_part::{Fence, Flow, Part, Side};
use rehome_testkit::delay;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_late_closes_nothing() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let number = port.to_string();
    let Some(source) = server(&[("listen_addresses", "127.0.0.1"), ("port", &number)]) else { return };
    let target = server(&[]).unwrap();
    for server in [&source, &target] {
        server.sql("postgres", "CREATE ROLE rehome SUPERUSER LOGIN").unwrap();
    }
    source.sql("postgres", "CREATE ROLE shop LOGIN").unwrap();
    source.sql("postgres", "CREATE DATABASE shop OWNER shop").unwrap();
    source.sql("shop", "SET ROLE shop; CREATE TABLE orders (id int PRIMARY KEY)").unwrap();
    let line = delay::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), Duration::ZERO).await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let end = |address| End {
        applications: vec![Login { user: "shop".into(), password: None }],
        ..End::new(address, None)
    };
    let here = Address {
        host: "127.0.0.1".into(),
        port: line.address.port(),
        tls: Tls::Off,
        ..address(&source, "rehome", "shop")
    };
    let ends = Ends { source: end(here), target: end(address(&target, "rehome", "shop")) };
    let part = PostgresPart::new("shop", ends, FenceMeans::Writes, folder.path()).unwrap();
    part.prepare().await.unwrap();
    part.warm(Flow::Forward).await.unwrap();
    assert_eq!(part.probe(Side::Source).await.unwrap(), Fence::Open);

    line.cut();
    let fenced = tokio::time::timeout(Duration::from_millis(500), part.fence(Side::Source)).await;
    assert!(fenced.is_err(), "nothing answers: {fenced:?}");
    // New connections come through first, as where the old ones are tried again more and more seldom.
    line.heal_for_new();
    tokio::time::timeout(Duration::from_secs(5), part.unfence(Side::Source)).await.unwrap().unwrap();
    line.heal();
    for _ in 0..30 {
        source.sql("shop", "BEGIN; SET ROLE shop; INSERT INTO orders VALUES (1); ROLLBACK").unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(part.probe(Side::Source).await.unwrap(), Fence::Open);
}
