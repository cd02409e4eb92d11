//! The connection against a peer that the test plays byte by byte.

use super::*;
use crate::upstream::Head;
use http::{HeaderValue, Request};
use std::future::poll_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

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
