//! HTTP/1.1 with clients, byte by byte: when a body is asked for, what ends a connection and what keeps it, answers without bodies.

use crate::support::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn connect(gateway: &Gateway, bytes: &str) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream
}

/// The head of the next answer and a body of so many bytes.
async fn answer(stream: &mut TcpStream, length: usize) -> (String, String) {
    let head = within("a head", read_head(stream)).await;
    let mut body = vec![0; length];
    within("a body", stream.read_exact(&mut body)).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

async fn rest(mut stream: TcpStream) -> std::io::Result<String> {
    let mut rest = String::new();
    within("the end", stream.read_to_string(&mut rest)).await.map(|_| rest)
}

#[tokio::test]
async fn a_body_is_asked_for_when_it_is_wanted() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let mut stream = connect(&gateway, head).await;
    assert_eq!(answer(&mut stream, 0).await.0, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    assert!(answer(&mut stream, 6).await.0.starts_with("HTTP/1.1 200"));
    assert_eq!(source.last().body, "hello");
    // Sent without being asked for, it is not asked for.
    stream.write_all(format!("{head}hello").as_bytes()).await.unwrap();
    assert!(answer(&mut stream, 6).await.0.starts_with("HTTP/1.1 200"), "the connection is kept");
    // A refusal before the body is wanted: what the client makes of its body is not known, so the connection ends.
    let lost = head.replace("Host: a", "Host: a\r\nHost: b");
    stream.write_all(lost.as_bytes()).await.unwrap();
    let rest = rest(stream).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 400") && rest.contains("\r\nconnection: close\r\n"), "{rest}");
}

#[tokio::test]
async fn a_body_that_nobody_wants_does_not_hide_the_next_request() {
    let source = Upstream::start("source").await;
    let mut service = service(&source.url(), &nowhere().await);
    service.paths = vec!["/api".to_owned()];
    let gateway = Gateway::start(service).await;
    let unwanted = "POST /elsewhere HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    let next = "GET /api HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut stream = connect(&gateway, &format!("{unwanted}hello{next}")).await;
    let (head, _) = answer(&mut stream, "no service here has this path\n".len()).await;
    assert!(head.starts_with("HTTP/1.1 404") && !head.contains("connection: close"), "{head}");
    assert_eq!(answer(&mut stream, 6).await.1, "source");
    // Not all of it is here: nobody waits for the rest, and the client is told.
    stream.write_all(format!("{unwanted}he").as_bytes()).await.unwrap();
    let rest = rest(stream).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 404") && rest.contains("\r\nconnection: close\r\n"), "{rest}");
}

#[tokio::test]
async fn http_1_0_keeps_a_connection_only_when_it_asks() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let mut stream = connect(&gateway, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    let (head, body) = answer(&mut stream, 6).await;
    assert!(head.starts_with("HTTP/1.0 200") && head.contains("\r\nconnection: keep-alive\r\n"), "{head}");
    assert!(head.contains("\r\ncontent-length: 6\r\n") && body == "source", "{head}");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let rest = rest(stream).await.unwrap();
    assert!(rest.contains("\r\nconnection: close\r\n") && rest.ends_with("source"), "{rest}");
    drop(target);
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_and_breaks_off_is_a_reset() {
    let url = raw_upstream(|mut stream| async move {
        read_head(&mut stream).await;
        let half = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
        stream.write_all(half.as_bytes()).await.unwrap();
        let _go = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut [0; 1])).await;
    })
    .await;
    let gateway = Gateway::start(service(&url, &nowhere().await)).await;
    let stream = connect(&gateway, "GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(rest(stream).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn answers_without_bodies_end_with_their_heads() {
    let url = raw_upstream(|mut stream| async move {
        loop {
            let head = read_head(&mut stream).await;
            let answer = match head.split(' ').nth(1) {
                Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
                Some("/304") => "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n",
                Some("/head") => "HTTP/1.1 200 Fine\r\nContent-Length: 99\r\nDate: then\r\n\r\n",
                Some("/unknown") => "HTTP/1.1 200 OK\r\n\r\n",
                Some(_) => "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast",
                None => return,
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let gateway = Gateway::start(service(&url, &nowhere().await)).await;
    let ask = |method, path| format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let asked = [("GET", "/204"), ("GET", "/304"), ("HEAD", "/head"), ("HEAD", "/unknown"), ("GET", "/last")];
    let mut stream = connect(&gateway, &asked.map(|(method, path)| ask(method, path)).concat()).await;
    let mut heads = Vec::new();
    for (_, path) in asked {
        let head = answer(&mut stream, if path == "/last" { 4 } else { 0 }).await.0;
        // Lines go as the upstream wrote them.
        let head = head.replace("\r\nDate: ", "\r\ndate: ").replace("Content-Length", "content-length");
        assert_eq!(head.matches("\r\ndate: ").count(), 1, "{head}");
        heads.push(head);
    }
    let length =
        |head: &str| head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let lengths: Vec<Option<u32>> = heads.iter().map(|head| length(head)).collect();
    assert_eq!(lengths, [None, Some(99), Some(99), None, Some(4)]);
    assert!(heads[2].starts_with("HTTP/1.1 200 Fine\r\n") && heads[2].contains("\r\ndate: then\r\n"));
}

#[tokio::test]
async fn what_an_upstream_says_of_its_own_connection_stays_there() {
    let ordinary = "HTTP/1.1 200 OK\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nTE: x\r\n\
        Connection: keep-alive\r\nX-Request-Id: theirs\r\nContent-Length: 2\r\n\r\nok";
    let named = "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\nVia: 1.0 other\r\n\
        Upgrade: h2c\r\nX-Own: 1\r\nContent-Length: 2\r\n\r\nok";
    let url = raw_upstream(move |mut stream| async move {
        while let Some(path) = read_head(&mut stream).await.split(' ').nth(1) {
            let answer = if path == "/named" { named } else { ordinary };
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let gateway = Gateway::start(service(&url, &nowhere().await)).await;
    let mut stream =
        connect(&gateway, "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /named HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let lines = |head: String| {
        let mut lines: Vec<String> = head.trim_end().lines().map(str::to_lowercase).collect();
        lines.retain(|line| !line.starts_with("date: "));
        lines.sort();
        lines
    };
    let ok = "http/1.1 200 ok";
    let first = lines(answer(&mut stream, 2).await.0);
    assert_eq!(first, ["content-length: 2", ok, "via: 1.1 rehome", "x-own: 1", "x-request-id: theirs"]);
    let mut second = lines(answer(&mut stream, 2).await.0);
    second.retain(|line| !line.starts_with("x-request-id: "));
    assert_eq!(second, ["content-length: 2", ok, "via: 1.0 other, 1.1 rehome", "x-own: 1"]);
}

#[tokio::test]
async fn what_comes_with_an_upgrade_is_not_lost() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let head = "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    let mut stream = connect(&gateway, &format!("{head}early")).await;
    let (head, greeting) = answer(&mut stream, 6).await;
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("\r\nconnection: upgrade\r\n"), "{head}");
    assert_eq!(greeting, "source");
    let mut early = [0; 5];
    within("the early bytes", stream.read_exact(&mut early)).await.unwrap();
    assert_eq!(&early, b"early");
    drop(target);
}

#[tokio::test]
async fn empty_lines_before_a_request_are_gone_over() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let mut stream = connect(&gateway, "\r\n\r\n\nGET /1 HTTP/1.1\r\nHost: a\r\n\r\n\r\n").await;
    assert_eq!(answer(&mut stream, 6).await.1, "source");
    stream.write_all(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(answer(&mut stream, 6).await.1, "source");
    drop(target);
}

#[tokio::test]
async fn what_is_no_http_is_told_so_and_counted() {
    let source = Upstream::start("source").await;
    let gateway = Gateway::with(service(&source.url(), &nowhere().await), |config| {
        config.metrics = Some("127.0.0.1:0".parse().unwrap());
    })
    .await;
    for (bytes, status) in [
        // The beginning of a TLS handshake: there is no line to wait for.
        ("\u{16}\u{3}\u{1}\u{2}", "400"),
        ("GET / HTTP/3.0\r\n\r\n", "505"),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        ("GET /\u{7f} HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
    ] {
        let said = raw(gateway.address, bytes.as_bytes()).await;
        assert_eq!(said.split(' ').nth(1), Some(status), "{bytes:?}: {said}");
    }
    // A client that leaves in the middle of HTTP/2's first words is not waited for.
    let mut stream = connect(&gateway, "PRI * HTTP/2.0\r\n\r\nS").await;
    stream.shutdown().await.unwrap();
    assert!(rest(stream).await.unwrap().starts_with("HTTP/1.1 "));
    assert_eq!(gateway.turned_away("malformed").await, 5);
    assert_eq!(source.count("GET"), 0);
}
