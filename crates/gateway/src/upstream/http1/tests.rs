//! The connection against a peer that the test plays byte by byte.

use super::*;
use crate::upstream::Head;
use http::{HeaderValue, Request};
use std::future::poll_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

async fn pair() -> (Box<Line>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (Box::new(Line::new(Stream::Plain(near))), listener.accept().await.unwrap().0)
}

fn head(method: &str, lines: &[(&'static str, &'static str)]) -> Head {
    let mut request = Request::builder().method(method).uri("/path?x=1");
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    let added = vec![("via", HeaderValue::from_static("1.1 rehome"))];
    Head { parts: request.body(()).unwrap().into_parts().0, added }
}

async fn hears(peer: &mut TcpStream, until: &str) -> String {
    let mut heard = Vec::new();
    while !heard.ends_with(until.as_bytes()) {
        assert!(peer.read_buf(&mut heard).await.unwrap() > 0, "{}", String::from_utf8_lossy(&heard));
    }
    String::from_utf8(heard).unwrap()
}

#[tokio::test]
async fn one_request_after_another() {
    let (mut line, mut peer) = pair().await;
    for number in 0..3 {
        assert!(line.seems_open() && line.is_open());
        line.begin(&head("GET", &[("host", "a")]), RequestBody::Empty);
        let asked = async {
            assert_eq!(
                hears(&mut peer, "\r\n\r\n").await,
                "GET /path?x=1 HTTP/1.1\r\nhost: a\r\nvia: 1.1 rehome\r\n\r\n"
            );
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nbody {number}");
            peer.write_all(answer.as_bytes()).await.unwrap();
        };
        let (answer, ()) = tokio::join!(poll_fn(|cx| line.poll_answer(cx)), asked);
        assert_eq!(answer.unwrap().status, 200);
        let piece = poll_fn(|cx| line.poll_frame(cx)).await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(piece, format!("body {number}"));
        assert!(line.is_end_stream() && line.is_whole());
    }
    drop(peer);
    // The runtime has not heard of the end yet, perhaps; the kernel has.
    assert!(!line.is_open());
}

#[tokio::test]
async fn what_is_announced_is_what_follows() {
    let whole = |text: &'static str| RequestBody::Whole(Some(Bytes::from_static(text.as_bytes())));
    for (lines, body, wire) in [
        (
            &[("content-length", "9"), ("transfer-encoding", "chunked")][..],
            whole("hello"),
            "content-length: 5\r\n\r\nhello",
        ),
        (&[("content-length", "0")], RequestBody::Empty, "content-length: 0\r\n\r\n"),
        (&[("content-length", "7")], RequestBody::Empty, "content-length: 0\r\n\r\n"),
        (&[], RequestBody::Empty, "via: 1.1 rehome\r\n\r\n"),
    ] {
        let (mut line, mut peer) = pair().await;
        line.begin(&head("POST", lines), body);
        assert!(poll_fn(|cx| Poll::Ready(line.poll_answer(cx))).await.is_pending());
        let heard = hears(&mut peer, wire).await;
        assert_eq!(
            heard.matches("content-length").count(),
            wire.matches("content-length").count(),
            "{heard}"
        );
        assert!(!heard.contains("transfer-encoding"), "{heard}");
    }
}

#[tokio::test]
async fn a_request_comes_back_only_when_nothing_of_it_left() {
    let (mut line, peer) = pair().await;
    peer.set_zero_linger().unwrap();
    drop(peer);
    while line.seems_open() {
        tokio::task::yield_now().await;
    }
    line.begin(&head("POST", &[]), RequestBody::Empty);
    let failed = poll_fn(|cx| line.poll_answer(cx)).await.unwrap_err();
    // The kernel took the error away with the look into the socket, or not: either way it is told as it is.
    assert_eq!(failed.unsent.is_some(), !failed.may_have_left);

    let (mut line, mut peer) = pair().await;
    line.begin(&head("POST", &[]), RequestBody::Empty);
    let ends = async {
        hears(&mut peer, "\r\n\r\n").await;
        drop(peer);
    };
    let (answer, ()) = tokio::join!(poll_fn(|cx| line.poll_answer(cx)), ends);
    let failed = answer.unwrap_err();
    assert!(failed.may_have_left && failed.unsent.is_none());
    assert!(!line.is_whole());
}

#[tokio::test]
async fn interim_answers_have_a_bound() {
    let (mut line, mut peer) = pair().await;
    line.begin(&head("GET", &[]), RequestBody::Empty);
    let endless = async { while peer.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await.is_ok() {} };
    tokio::select! {
        answer = poll_fn(|cx| line.poll_answer(cx)) => assert!(answer.is_err()),
        () = endless => {}
    }
}

#[tokio::test]
async fn bytes_that_nobody_asked_for_end_a_connection() {
    let (mut line, mut peer) = pair().await;
    line.begin(&head("GET", &[]), RequestBody::Empty);
    peer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n").await.unwrap();
    poll_fn(|cx| line.poll_answer(cx)).await.unwrap();
    assert_eq!(line.take_whole().unwrap(), "ok");
    assert!(line.is_end_stream() && !line.is_whole());
}

/// A TLS connection to a peer that has the other end of it.
async fn secure_pair() -> (Box<Line>, tokio_rustls::server::TlsStream<TcpStream>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone());
    let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let server = server.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider);
    let client = client.with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();
    // Sockets that take little at once.
    let (listening, near) = (TcpSocket::new_v4().unwrap(), TcpSocket::new_v4().unwrap());
    listening.set_recv_buffer_size(8 << 10).unwrap();
    near.set_send_buffer_size(8 << 10).unwrap();
    listening.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listening.listen(1).unwrap();
    let near = near.connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let (near, far) = tokio::join!(
        tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, near),
        tokio_rustls::TlsAcceptor::from(Arc::new(server)).accept(far),
    );
    (Box::new(Line::new(Stream::Tls(Box::new(near.unwrap())))), far.unwrap())
}

#[tokio::test]
async fn what_tls_keeps_back_leaves_in_the_end() {
    // For some of these sizes the sockets are full just when TLS has taken the rest.
    for size in (1..32).map(|step| step << 13) {
        let (mut line, mut peer) = secure_pair().await;
        line.begin(&head("PUT", &[]), RequestBody::Whole(Some(Bytes::from(vec![7; size]))));
        assert!(poll_fn(|cx| Poll::Ready(line.poll_answer(cx))).await.is_pending());
        let hears = async {
            let mut heard = Vec::new();
            while !heard.ends_with(b"\r\n\r\n") {
                heard.push(peer.read_u8().await.unwrap());
            }
            peer.read_exact(&mut vec![0; size]).await.unwrap();
            peer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        };
        let both = async { tokio::join!(poll_fn(|cx| line.poll_answer(cx)), hears) };
        let both = tokio::time::timeout(std::time::Duration::from_secs(5), both).await;
        assert_eq!(both.expect("what was kept back is missing").0.unwrap().status, 200, "{size}");
        assert!(line.is_whole());
    }
}

#[tokio::test]
async fn a_ticket_for_the_next_time_is_no_sign_of_trouble() {
    let (mut line, mut peer) = secure_pair().await;
    // The server's tickets have come with the end of the handshake; nobody read them yet.
    peer.flush().await.unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(line.seems_open() && line.is_open());
    drop(peer);
    while line.seems_open() {
        tokio::task::yield_now().await;
    }
}
