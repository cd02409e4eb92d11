//! The way to the application: several addresses of a side, HTTP/2, TLS, and what is sent a second time.

use crate::support::*;
use rehome_gateway::control::Request as Control;
use rehome_spec::UpstreamHttp;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

#[tokio::test]
async fn peers_share_the_work_and_one_that_dies_is_not_missed() {
    let (one, other) = (Upstream::start("one").await, Upstream::start("other").await);
    let target = Upstream::start("target").await;
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    // Serves ten requests and is gone: what it has accepted ends without an answer, and nobody listens any more.
    let mortal = raw_upstream_until(10, move |mut stream| {
        let count = count.clone();
        async move {
            while read_head(&mut stream).await.contains("HTTP/1.1") {
                if count.fetch_add(1, Ordering::SeqCst) >= 10 {
                    return;
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    let mut service = service(&one.url(), &target.url());
    service.source_peers = vec![mortal, other.url()];
    let gateway = Gateway::start(service).await;
    let mut callers = Vec::new();
    for _ in 0..6 {
        callers.push(gateway.caller().await);
    }
    for _ in 0..40 {
        let all = callers.iter_mut().map(|caller| caller.get("/", &[]));
        for got in futures::future::join_all(all).await {
            assert_eq!(got.status, 200, "reads go elsewhere");
        }
    }
    assert!(served.load(Ordering::SeqCst) >= 10);
    let (one, other) = (one.count("GET"), other.count("GET"));
    assert!(one.abs_diff(other) <= 40, "{one} and {other} are about the same");
    let upstreams = gateway.status().await.services[0].source.upstreams.clone();
    assert_eq!(upstreams.len(), 3);
    assert!(upstreams.iter().all(|upstream| upstream.under_way == 0), "{upstreams:?}");
}

#[tokio::test]
async fn a_write_goes_to_another_peer_when_the_first_was_never_reached() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let mut service = service(&nowhere().await, &target.url());
    service.source_peers = vec![source.url()];
    let gateway = Gateway::start(service).await;
    let mut caller = gateway.caller().await;
    for _ in 0..8 {
        assert_eq!(caller.post("/", &[], "x").await.status, 200);
    }
    assert_eq!(source.count("POST"), 8);
    let status = gateway.status().await;
    assert_eq!((status.services[0].source.failed, status.services[0].writes_unknown), (0, 0));
    assert!(status.services[0].source.upstreams[0].resting, "three failures in a row");
}

#[tokio::test]
async fn an_http2_upstream_gets_whole_addresses_trailers_and_one_connection() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let mut service = service(&source.url(), &target.url());
    service.upstream_http = UpstreamHttp::Two;
    service.health = Some("/healthz".into());
    let gateway = Gateway::start(service).await;
    let mut caller = gateway.caller().await;
    let got = caller.post("/orders?a=1", &[("te", "trailers")], "abc").await;
    assert_eq!((got.status.as_u16(), got.side()), (200, "source"));
    let seen = source.last();
    assert_eq!((seen.version, &seen.body[..]), (http::Version::HTTP_2, &b"abc"[..]));
    assert_eq!(seen.origin.as_deref(), Some("http://shop.example"), "the host that the client asked for");
    assert_eq!(seen.headers["te"], "trailers");
    assert!(!seen.headers.contains_key("host") && !seen.headers.contains_key("connection"));
    assert_eq!(caller.get("/trailers", &[]).await.status, 200);
    eventually("health by HTTP/2", || async {
        gateway.status().await.services[0].source.healthy == Some(true)
    })
    .await;
    let mut raw = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let upgrade = "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    raw.write_all(upgrade.as_bytes()).await.unwrap();
    assert!(within("a refusal", read_head(&mut raw)).await.starts_with("HTTP/1.1 501"));
}

#[tokio::test]
async fn writes_to_an_http2_upstream_are_held_and_released_like_any_other() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let mut service = service(&source.url(), &target.url());
    service.upstream_http = UpstreamHttp::Two;
    let gateway = Gateway::start(service).await;
    gateway.done(Gateway::arm(1, 30_000)).await;
    assert!(matches!(gateway.hold(1).await, rehome_gateway::control::Response::Held(_)));
    let mut caller = gateway.caller().await;
    let writer = tokio::spawn(async move { caller.post("/late", &[], "x").await });
    gateway.waiting(1).await;
    gateway.settle(2, rehome_part::Side::Target).await;
    assert_eq!(writer.await.unwrap().side(), "target");
    assert_eq!((source.count("POST"), target.count("POST")), (0, 1));
}

/// A certificate for localhost and the server that shows it.
fn tls() -> (String, TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (made.cert.pem(), TlsAcceptor::from(Arc::new(server)))
}

#[tokio::test]
async fn tls_to_the_upstream_is_verified() {
    let (pem, acceptor) = tls();
    let source = Upstream::with_tls("source", Some(acceptor)).await;
    let target = Upstream::start("target").await;
    let url = format!("https://localhost:{}", source.address.port());
    let mut ca = tempfile::NamedTempFile::new().unwrap();
    ca.write_all(pem.as_bytes()).unwrap();
    for (http, version) in
        [(UpstreamHttp::One, http::Version::HTTP_11), (UpstreamHttp::Two, http::Version::HTTP_2)]
    {
        let mut service = service(&url, &target.url());
        (service.upstream_http, service.upstream_ca) = (http, Some(ca.path().to_owned()));
        let gateway = Gateway::start(service).await;
        let mut caller = gateway.caller().await;
        for _ in 0..3 {
            assert_eq!(caller.post("/", &[], "secret").await.status, 200);
        }
        // More than the sockets take at once: what TLS keeps back must leave, too.
        assert_eq!(caller.post("/", &[], vec![7_u8; 5 << 20]).await.status, 200);
        assert_eq!((source.last().version, source.last().body.len()), (version, 5 << 20));
        assert_eq!(caller.get("/large", &[]).await.body.len(), 3 << 20);
    }
    let before = source.count("POST");
    let (other, _) = tls();
    let mut wrong = tempfile::NamedTempFile::new().unwrap();
    wrong.write_all(other.as_bytes()).unwrap();
    let mut service = service(&url, &target.url());
    service.upstream_ca = Some(wrong.path().to_owned());
    let gateway = Gateway::start(service).await;
    let got = gateway.caller().await.post("/", &[], "secret").await;
    assert_eq!((got.status.as_u16(), &got.headers["rehome-outcome"]), (503, &"not-sent".parse().unwrap()));
    assert_eq!(source.count("POST"), before, "nobody unproved gets anything");
}

#[tokio::test]
async fn what_is_repeated_is_bounded() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    // Answers the first request of a connection and breaks at the second: every kept connection is a trap.
    let source = raw_upstream(move |mut stream| {
        let count = count.clone();
        async move {
            if read_head(&mut stream).await.contains("HTTP/1.1") {
                count.fetch_add(1, Ordering::SeqCst);
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                if read_head(&mut stream).await.contains("HTTP/1.1") {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    })
    .await;
    let target = Upstream::start("target").await;
    let gateway = Gateway::start(service(&source, &target.url())).await;
    let mut caller = gateway.caller().await;
    let (mut good, mut broken) = (0, 0);
    for _ in 0..900 {
        match caller.get("/", &[]).await.status.as_u16() {
            200 => good += 1,
            502 => broken += 1,
            other => panic!("{other}"),
        }
    }
    let asked = asked.load(Ordering::SeqCst);
    assert!(broken > 0 && good > 400, "{good} good, {broken} broken");
    assert!(asked <= 900 + 900 / 5 + 300, "{asked} requests at an upstream that was asked for 900");
    gateway.done(Control::Weight { service: "api".into(), percent: 0, token: TOKEN }).await;
}

/// Sixteen clients wait in a hold; at the release none of them waits for a connection to be made.
#[tokio::test]
async fn the_way_to_the_new_owner_is_warm_before_the_release() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let busy = futures::future::join_all((0..16).map(|_| async {
        let mut caller = gateway.caller().await;
        caller.get("/wait", &[]).await
    }));
    let arm = async {
        eventually("all are under way", || async { source.count("GET") == 16 }).await;
        gateway.done(Gateway::arm(1, 60_000)).await;
        source.let_go(16);
    };
    tokio::join!(busy, arm);
    let opened = || async { target.connections.load(std::sync::atomic::Ordering::Relaxed) >= 16 };
    eventually("as many connections as the owner has", opened).await;
    assert!(target.seen.lock().unwrap().is_empty(), "nothing was said on them");
}
