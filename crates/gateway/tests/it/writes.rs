//! A write is sent once, and what is not known is said to be unknown.

use crate::support::*;
use rehome_gateway::control::Response as Reply;
use rehome_part::Side;
use rehome_spec::Span;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_write_whose_connection_dies_is_unknown_and_never_repeated() {
    let arrived = Arc::new(AtomicUsize::new(0));
    let count = arrived.clone();
    let source = raw_upstream(move |mut stream| {
        let count = count.clone();
        async move {
            while read_head(&mut stream).await.contains("HTTP/1.1") {
                // Every second one dies: once on a fresh connection, once on one that served before.
                if count.fetch_add(1, Ordering::SeqCst) % 2 == 1 {
                    return;
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
        }
    })
    .await;
    let target = Upstream::start("target").await;
    let gateway = Gateway::start(service(&source, &target.url())).await;
    let mut caller = gateway.caller().await;
    for round in 1..=5 {
        assert_eq!(caller.post("/", &[], "x").await.status, 200);
        let got = caller.post("/", &[], "x").await;
        assert_eq!((got.status.as_u16(), &got.headers["rehome-outcome"]), (502, &"unknown".parse().unwrap()));
        assert_eq!(arrived.load(Ordering::SeqCst), 2 * round, "sent exactly once");
    }
    let status = gateway.status().await;
    assert_eq!((status.services[0].writes_unknown, status.services[0].writes_total), (5, 10));
    assert_eq!(status.services[0].refused, 0);
}

#[tokio::test]
async fn a_connection_that_ended_while_idle_never_costs_a_write() {
    let closed = Arc::new(AtomicUsize::new(0));
    let count = closed.clone();
    let source = raw_upstream(move |mut stream| {
        let count = count.clone();
        async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            drop(stream);
            count.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let target = Upstream::start("target").await;
    let gateway = Gateway::start(service(&source, &target.url())).await;
    let mut caller = gateway.caller().await;
    for round in 1..=100 {
        assert_eq!(caller.post("/", &[], "").await.status, 200, "round {round}");
        eventually("the upstream closed", || async { closed.load(Ordering::SeqCst) == round }).await;
    }
    assert_eq!(gateway.status().await.services[0].writes_unknown, 0);
}

#[tokio::test]
async fn connections_are_kept_and_used_again() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let source = raw_upstream(move |mut stream| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            while read_head(&mut stream).await.contains("HTTP/1.1") {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    let target = Upstream::start("target").await;
    let gateway = Gateway::start(service(&source, &target.url())).await;
    let mut caller = gateway.caller().await;
    for _ in 0..100 {
        assert_eq!(caller.post("/", &[], "").await.status, 200);
        assert_eq!(caller.get("/", &[]).await.status, 200);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_owner_that_cannot_be_reached_certainly_got_nothing() {
    let target = Upstream::start("target").await;
    let gateway = Gateway::start(service(&nowhere().await, &target.url())).await;
    let mut caller = gateway.caller().await;
    let got = caller.post("/", &[], "x").await;
    assert_eq!((got.status.as_u16(), &got.headers["rehome-outcome"]), (503, &"not-sent".parse().unwrap()));
    assert!(got.headers.contains_key("retry-after"));
    assert_eq!(caller.get("/", &[]).await.status, 502);
    assert_eq!(target.count("POST") + target.count("GET"), 0, "nothing of the owner goes to the other side");
    let status = gateway.status().await;
    assert_eq!((status.services[0].refused, status.services[0].writes_unknown), (2, 0));
}

#[tokio::test]
async fn an_upstream_that_says_nothing_is_given_up_in_time() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let mut service = service(&source.url(), &target.url());
    service.upstream_timeout = Span::from_millis(200);
    let gateway = Gateway::start(service).await;
    let mut caller = gateway.caller().await;
    let write = caller.post("/wait", &[], "").await;
    assert_eq!((write.status.as_u16(), &write.headers["rehome-outcome"]), (504, &"unknown".parse().unwrap()));
    let read = caller.get("/wait", &[]).await;
    assert_eq!(read.status, 504);
    assert!(!read.headers.contains_key("rehome-outcome"));
    assert_eq!((source.count("POST"), source.count("GET")), (1, 1), "a time-out is no reason to send again");
    assert_eq!(gateway.status().await.held.in_flight, 0);
}

#[tokio::test]
async fn a_body_that_keeps_coming_is_not_timed_out() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let mut service = service(&source.url(), &target.url());
    service.upstream_timeout = Span::from_millis(400);
    let gateway = Gateway::start(service).await;
    let mut stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n").await.unwrap();
    for _ in 0..8 {
        // The pace of a slow client, not a wait for something to happen.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        stream.write_all(b"x").await.unwrap();
    }
    let head = within("the answer", read_head(&mut stream)).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(&source.last().body[..], b"xxxxxxxx");
}

#[tokio::test]
async fn sabotage_really_breaks_the_promises() {
    for (name, at_source, at_target) in [("release-twice", 0, 8), ("release-both", 2, 2), ("", 0, 4)] {
        let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
        let gateway = Gateway::with(service(&source.url(), &target.url()), |config| {
            config.sabotage = if name.is_empty() { vec![] } else { vec![name.into()] };
        })
        .await;
        gateway.done(Gateway::arm(1, 30_000)).await;
        assert!(matches!(gateway.hold(1).await, Reply::Held(_)));
        let mut writers = Vec::new();
        for number in 0..4 {
            let mut caller = gateway.caller().await;
            writers.push(tokio::spawn(async move { caller.post(&format!("/{number}"), &[], "abc").await }));
        }
        gateway.waiting(4).await;
        gateway.settle(2, Side::Target).await;
        for writer in writers {
            assert_eq!(writer.await.unwrap().status, 200);
        }
        assert_eq!((source.count("POST"), target.count("POST")), (at_source, at_target), "{name}");
        assert!(target.seen.lock().unwrap().iter().all(|seen| &seen.body[..] == b"abc"));
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_at_the_client_too() {
    let source = raw_upstream(|mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
    })
    .await;
    let target = Upstream::start("target").await;
    let gateway = Gateway::start(service(&source, &target.url())).await;
    let mut stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    let head = within("the head", read_head(&mut stream)).await;
    assert!(head.contains("content-length: 100"), "{head}");
    let mut rest = Vec::new();
    let _end = within("the end", stream.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"half");
    eventually("it is counted", || async { gateway.status().await.services[0].writes_unknown == 1 }).await;
    assert_eq!(gateway.status().await.held.in_flight, 0);
}
