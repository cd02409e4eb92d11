//! What a planned hand-over of the address in front asks of a gateway: a word about its own life, and clients sent off politely.

use crate::support::{Caller, Gateway, Upstream, eventually, nowhere, service, within};
use http::StatusCode;
use rehome_gateway::control::{Mode, Request as Control, Shedding};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

async fn with_metrics(source: &str, target: &str) -> Gateway {
    Gateway::with(service(source, target), |config| config.metrics = Some("127.0.0.1:0".parse().unwrap()))
        .await
}

async fn healthz(gateway: std::net::SocketAddr) -> StatusCode {
    Caller::connect(gateway).await.get("/healthz", &[]).await.status
}

#[tokio::test]
async fn a_gateway_is_alive_whatever_its_sides_and_its_lease_are() {
    let (source, target) = (nowhere().await, nowhere().await);
    let gateway = with_metrics(&source, &target).await;
    let metrics = gateway.running.metrics.unwrap();
    assert_eq!(healthz(metrics).await, StatusCode::OK, "nobody listens on either side");
    gateway.done(Gateway::arm(1, 1)).await;
    eventually("the lease is over", || async { gateway.status().await.mode == Mode::Held }).await;
    assert_eq!(healthz(metrics).await, StatusCode::OK, "it holds");
    let mut caller = Caller::connect(metrics).await;
    assert_eq!(caller.get("/elsewhere", &[]).await.status, StatusCode::NOT_FOUND);
    assert_eq!(caller.post("/healthz", &[], "").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_gateway_that_drains_says_so_and_ends_the_connections_of_those_who_watch() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = with_metrics(&source.url(), &target.url()).await;
    let metrics = gateway.running.metrics.unwrap();
    let mut slow = gateway.caller().await;
    let slow = tokio::spawn(async move { slow.get("/wait", &[]).await });
    eventually("the request is under way", || async { source.count("GET") == 1 }).await;
    let mut watching = TcpStream::connect(metrics).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut watching, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    assert!(crate::support::read_head(&mut watching).await.starts_with("HTTP/1.1 200"));
    let address = gateway.address;
    let drained = tokio::spawn(gateway.running.drain(Duration::from_secs(20)));
    eventually("nobody listens", || async { TcpStream::connect(address).await.is_err() }).await;
    eventually("it says so", || async { healthz(metrics).await == StatusCode::SERVICE_UNAVAILABLE }).await;
    let mut kept = Caller::connect(metrics).await;
    let said = kept.get("/healthz", &[]).await;
    assert_eq!(said.headers.get("connection").map(|value| value.as_bytes()), Some(&b"close"[..]));
    within("the end of the one that watches", watching.read_to_end(&mut Vec::new())).await.unwrap();
    source.let_go(1);
    assert_eq!(within("the answer", slow).await.unwrap().status, StatusCode::OK);
    assert_eq!(within("the end", drained).await.unwrap().cut, 0);
}

#[tokio::test]
async fn clients_are_asked_to_come_again_and_may() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let close =
        |got: &crate::support::Got| got.headers.get("connection").is_some_and(|value| value == "close");
    let (mut asking, mut slow) = (gateway.caller().await, gateway.caller().await);
    assert!(!close(&asking.get("/", &[]).await));
    let mut idle = TcpStream::connect(gateway.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut idle, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let head = within("an answer", crate::support::read_head(&mut idle)).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let slow = tokio::spawn(async move { slow.get("/wait", &[]).await });
    eventually("the request is under way", || async { source.paths("GET").contains(&"/wait".into()) }).await;

    gateway.done(Control::Shed { shedding: Shedding::Answers }).await;
    assert!(close(&asking.get("/", &[]).await), "a kept connection ends with its answer");
    assert!(close(&gateway.caller().await.post("/", &[], "x").await), "a new one is served, once");

    let mut fresh = gateway.caller().await;
    let connections = || async { gateway.status().await.held.connections };
    eventually("it was taken", || async { connections().await == 3 }).await;
    gateway.done(Control::Shed { shedding: Shedding::Idle }).await;
    let mut rest = Vec::new();
    within("the idle one ends", idle.read_to_end(&mut rest)).await.unwrap();
    assert!(close(&fresh.get("/", &[]).await), "one that has not asked yet is answered");
    source.let_go(1);
    assert!(close(&within("the slow answer", slow).await.unwrap()), "what is under way is answered");
    assert!(close(&gateway.caller().await.get("/", &[]).await));

    gateway.done(Control::Shed { shedding: Shedding::Off }).await;
    let mut kept = gateway.caller().await;
    assert!(!close(&kept.get("/", &[]).await));
    assert!(!close(&kept.get("/", &[]).await), "connections are kept again");
}

#[tokio::test]
async fn http2_streams_are_finished_and_the_connection_ends() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let Caller::Two(sender) = Caller::connect_h2(gateway.address).await else { panic!("it is HTTP/2") };
    let mut first = Caller::Two(sender.clone());
    let slow = tokio::spawn(async move { first.get("/wait", &[]).await });
    eventually("the request is under way", || async { source.count("GET") == 1 }).await;
    gateway.done(Control::Shed { shedding: Shedding::Answers }).await;
    assert!(!sender.is_closed(), "its connections are told at the second step");
    gateway.done(Control::Shed { shedding: Shedding::Idle }).await;
    source.let_go(1);
    assert_eq!(within("the answer", slow).await.unwrap().status, StatusCode::OK);
    eventually("the connection ends", || async { sender.is_closed() }).await;
    assert_eq!(Caller::connect_h2(gateway.address).await.get("/", &[]).await.side(), "source");
}

#[tokio::test]
async fn newcomers_wait_outside_for_a_moment_and_nobody_else_does() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let (mut inside, address) = (gateway.caller().await, gateway.address);
    assert_eq!(inside.get("/", &[]).await.side(), "source");
    let shut = Control::Shed { shedding: Shedding::Shut };
    gateway.done(shut.clone()).await;
    assert_eq!(inside.get("/", &[]).await.side(), "source", "who is inside is served");
    let newcomer = tokio::spawn(TcpStream::connect(address));
    let soon = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await;
    assert!(soon.is_err(), "a newcomer waits");
    gateway.done(Control::Shed { shedding: Shedding::Off }).await;
    let newcomer = within("its second attempt", newcomer).await.unwrap().unwrap();
    assert_eq!(Caller::one(newcomer).await.get("/", &[]).await.side(), "source");
    let at_once = tokio::time::timeout(Duration::from_millis(900), TcpStream::connect(address)).await;
    assert!(at_once.is_ok(), "the door is open");

    // Whoever shut it is gone: it opens by itself.
    gateway.done(shut).await;
    within("the door", TcpStream::connect(address)).await.unwrap();
}
