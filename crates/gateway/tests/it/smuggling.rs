//! Requests that two parsers could read differently. Each must be refused, or reach the upstream as one request that every
//! parser reads alike (RFC 9112 sections 5 and 6.3, RFC 9113 sections 8.2 and 8.3). The upstream here is a strict reader.

use crate::frames::Frames;
use crate::strict::{self, Read, Recorder};
use crate::support::*;
use rehome_spec::Span;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What must become of the bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// 400 or a closed connection; nothing whole at the upstream.
    Refused,
    /// One request with this body.
    One(&'static str),
}
use Fate::{One, Refused};

const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";

struct Edge {
    gateway: Gateway,
    recorder: Recorder,
    /// All that went wrong: one run shows every hole.
    wrong: Mutex<Vec<String>>,
}

impl Drop for Edge {
    fn drop(&mut self) {
        let wrong = self.wrong.lock().unwrap();
        assert!(wrong.is_empty() || std::thread::panicking(), "{}", wrong.join("\n"));
    }
}

/// The whole requests that a strict reader sees.
fn read_all(bytes: &[u8]) -> Result<Vec<strict::Request>, String> {
    let (mut requests, mut rest) = (Vec::new(), bytes);
    loop {
        match Read::next(rest) {
            Read::Whole(request, length) => {
                requests.push(request);
                rest = &rest[length..];
            }
            Read::Part => return Ok(requests),
            Read::Unclear(why) => return Err(format!("{why} in {:?}", String::from_utf8_lossy(rest))),
        }
    }
}

impl Edge {
    async fn start() -> Self {
        let recorder = Recorder::start().await;
        let mut service = service(&recorder.url(), &nowhere().await);
        // No connection serves twice: at its end everything that was sent on it is known.
        service.upstream_idle = Span::from_millis(0);
        let gateway = Gateway::start(service).await;
        Self { gateway, recorder, wrong: Mutex::default() }
    }

    /// Compares what the upstream got and what the client heard with what must be.
    async fn judge(&self, shown: &str, fate: Fate, answer: &str) {
        eventually("nothing is in flight", || async { self.gateway.status().await.held.in_flight == 0 })
            .await;
        let mut whole = Vec::new();
        for connection in self.recorder.take() {
            eventually("the gateway closed it", || async { connection.is_over() }).await;
            match read_all(&connection.bytes()) {
                Ok(requests) => whole.extend(requests),
                Err(why) => self.wrong(format!("{shown:?} reached the upstream: {why}")),
            }
        }
        let is_right = match (fate, &whole[..]) {
            (Refused, []) => matches!(answer, "400" | "505" | "closed"),
            (One(body), [request]) => {
                request.body == body && !request.line.contains("hidden") && answer == "200"
            }
            _ => false,
        };
        if !is_right {
            self.wrong(format!("{shown:?} must be {fate:?}: answered with {answer}, forwarded as {whole:?}"));
        }
    }

    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    /// Sends bytes and reads until the gateway closes; it must, and soon.
    async fn talk(&self, bytes: &[u8]) -> String {
        let answer = tokio::time::timeout(Duration::from_secs(2), raw(self.gateway.address, bytes)).await;
        answer.unwrap_or_else(|_| "the gateway is silent".into())
    }

    /// Sends one connection's bytes as HTTP/1 and judges.
    async fn send(&self, bytes: &[u8], fate: Fate) {
        let answer = self.talk(bytes).await;
        if answer.matches("HTTP/1.1 200").count() > 1 {
            self.wrong(format!("{:?} has two answers: {answer}", String::from_utf8_lossy(bytes)));
        }
        let status = answer.split(' ').nth(1).unwrap_or("closed");
        self.judge(&String::from_utf8_lossy(bytes), fate, status).await;
    }

    /// A `POST` with these header lines and this rest, which is the body and whatever is hidden behind it.
    async fn post(&self, lines: &str, rest: &str, fate: Fate) {
        let head = format!("POST /first HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}\r\n\r\n{rest}");
        self.send(head.as_bytes(), fate).await;
    }
}

#[tokio::test]
async fn a_request_with_two_lengths_is_refused() {
    let edge = Edge::start().await;
    let chunks = format!("0\r\n\r\n{HIDDEN}");
    for lines in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "content-length:0\r\nTRANSFER-ENCODING:\tchunked",
        "Content-Length: 3\r\nTransfer-Encoding: identity",
        "Content-Length: 3\r\nTransfer-Encoding:",
    ] {
        edge.post(lines, &chunks, Refused).await;
    }
    for lines in [
        "Content-Length: 0\r\nContent-Length: 33",
        "Content-Length: 33\r\nX: y\r\ncontent-length: 0",
        "Content-Length: 0, 33",
        "Content-Length: 0,0",
    ] {
        edge.post(lines, HIDDEN, Refused).await;
    }
}

#[tokio::test]
async fn a_length_that_is_no_plain_number_is_refused() {
    let edge = Edge::start().await;
    for length in ["+5", "-5", "0x5", "5 5", "5;", "\"5\"", "5.0", "0b1", "", "18446744073709551616", "५"] {
        edge.post(&format!("Content-Length: {length}"), &format!("hello{HIDDEN}"), Refused).await;
    }
    edge.post("Content-Length:\t5 ", "hello", One("hello")).await;
    edge.post(&format!("Content-Length:{}5", " ".repeat(200)), &format!("hello{HIDDEN}"), One("hello")).await;
}

#[tokio::test]
async fn an_encoding_that_hides_itself_is_refused() {
    let edge = Edge::start().await;
    let chunks = format!("0\r\n\r\n{HIDDEN}");
    for lines in [
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding: chunkeḋ",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        " Transfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: chunked\r\n , identity",
        "X: y\rTransfer-Encoding: chunked",
        "Transfer\0-Encoding: chunked",
    ] {
        edge.post(lines, &chunks, Refused).await;
    }
    // Sound by RFC 9112 section 6.1, but no upstream here knows more than `chunked`.
    for lines in
        ["Transfer-Encoding: gzip, chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"]
    {
        edge.post(lines, &chunks, Refused).await;
    }
    edge.post("Transfer-Encoding:\tchunked", "5\r\nhello\r\n0\r\n\r\n", One("hello")).await;
    edge.post("transfer-encoding: Chunked ", "5\r\nhello\r\n0\r\n\r\n", One("hello")).await;
}

#[tokio::test]
async fn http_1_0_has_no_chunks() {
    let edge = Edge::start().await;
    let bytes = format!("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}");
    edge.send(bytes.as_bytes(), Refused).await;
}

#[tokio::test]
async fn header_lines_that_can_be_read_in_two_ways_are_refused() {
    let edge = Edge::start().await;
    for lines in [
        "X-Folded: one\r\n two",
        "X-Folded: one\r\n\ttwo",
        "Content-Length : 0",
        "Content-Length\u{b}: 0",
        "X y: z",
        "X: a\0b",
        "X: a\rb",
        "X\r: b",
        "no colon here",
        ": nameless",
        "X: \u{1}",
    ] {
        edge.post(lines, HIDDEN, Refused).await;
    }
    let folded_first = format!("GET / HTTP/1.1\r\n Host: b\r\nHost: a\r\n\r\n{HIDDEN}");
    edge.send(folded_first.as_bytes(), Refused).await;
    // A line may end with a bare LF (RFC 9112 section 2.2); what is sent on has CR LF.
    let bare = "POST / HTTP/1.1\nHost: a\nConnection: close\nContent-Length: 5\n\nhello";
    edge.send(bare.as_bytes(), One("hello")).await;
    let mixed = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\nContent-Length: 3\r\n\r\n0\r\n\r\n{HIDDEN}"
    );
    edge.send(mixed.as_bytes(), Refused).await;
    let bare_cr = format!("POST / HTTP/1.1\rHost: a\rContent-Length: 0\r\r{HIDDEN}");
    edge.send(bare_cr.as_bytes(), Refused).await;
}

#[tokio::test]
async fn bad_chunks_end_the_request_and_its_connection() {
    let edge = Edge::start().await;
    for chunks in [
        "zz\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\nhello\n0\n\n",
        "5\rhello\r0\r\r",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
    ] {
        edge.post("Transfer-Encoding: chunked", &format!("{chunks}{HIDDEN}"), Refused).await;
    }
    // What an extension says is not passed on.
    edge.post("Transfer-Encoding: chunked", "5;a=\"b\"\r\nhello\r\n0;c\r\n\r\n", One("hello")).await;
}

#[tokio::test]
async fn a_long_chunk_size_hides_nothing() {
    let edge = Edge::start().await;
    // To a reader that stops counting digits this is the last chunk, and a long "body" hides the request with two lengths.
    let inside = "\r\n\r\nPOST /long HTTP/1.1\r\nContent-Length: 9999\r\n\r\n";
    let chunks = format!("{}{:x}\r\n{inside}\r\n0\r\n\r\n", "0".repeat(120), inside.len());
    let both = format!(
        "POST /hidden HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"
    );
    let bytes =
        format!("POST /first HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{both}");
    let answer = raw(edge.gateway.address, bytes.as_bytes()).await;
    assert!(answer.contains(" 400 "), "{answer}");
    let lines = edge.recorder.lines();
    assert!(!lines.iter().any(|line| line.contains("hidden")), "{lines:?}");
}

#[tokio::test]
async fn a_body_without_its_last_chunk_never_looks_whole() {
    let edge = Edge::start().await;
    for body in
        ["", "5\r\nhel", "5\r\nhello", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n", "5\r\nhello\r\n0\r\nX: y\r\n"]
    {
        let mut stream = TcpStream::connect(edge.gateway.address).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _end = within("the end", stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        edge.judge(body, Refused, answer.split(' ').nth(1).unwrap_or("closed")).await;
    }
}

#[tokio::test]
async fn the_target_of_a_request_is_one() {
    let edge = Edge::start().await;
    for line in [
        "GET other.example:80 HTTP/1.1",
        "GET path HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /a\tb HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / http/1.1",
        "GET /",
        "G@T / HTTP/1.1",
        "GET * HTTP/1.1",
        "GET ftp:///x HTTP/1.1",
    ] {
        edge.send(format!("{line}\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes(), Refused).await;
    }
    for host in
        ["Host: a\r\nHost: a", "Host: a, b", "Host: a b", "Host: a/b", "Host: x@a", "X: y", "Host : a"]
    {
        edge.send(format!("GET / HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n").as_bytes(), Refused).await;
    }
    // RFC 9112 section 3.2.2: the absolute form wins, and the upstream sees only it.
    let bytes = "GET http://real.example/x HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n";
    let answer = raw(edge.gateway.address, bytes.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = edge.recorder.take().remove(0).text();
    assert!(seen.starts_with("GET /x HTTP/1.1\r\n") && seen.contains("host: real.example\r\n"), "{seen}");
    assert!(!seen.contains("other.example"), "{seen}");
}

#[tokio::test]
async fn connection_cannot_take_away_what_the_upstream_needs() {
    let edge = Edge::start().await;
    for name in ["host", "Content-Length", "transfer-encoding"] {
        let bytes = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: close, {name}\r\nContent-Length: 5\r\n\r\nhello"
        );
        edge.send(bytes.as_bytes(), One("hello")).await;
    }
}

const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":authority", "a.example"), (":path", "/first")];

impl Edge {
    /// One HTTP/2 request on a connection of its own.
    async fn post_h2(&self, headers: &[(&str, &str)], body: &str, trailers: &[(&str, &str)], fate: Fate) {
        let mut frames = Frames::connect(self.gateway.address).await;
        frames.request(headers, body, trailers).await;
        let answer = frames.answer().await;
        // A stream or a connection error says the same as 400 (RFC 9113 section 8.1.1); 1 is PROTOCOL_ERROR.
        let answer = if matches!(answer.as_str(), "reset 1" | "goaway 1") { "400" } else { &answer };
        self.judge(&format!("{headers:?} {body:?} {trailers:?}"), fate, answer).await;
    }

    /// A sound request with one more or another header.
    async fn post_h2_with(&self, name: &str, value: &str, body: &str, fate: Fate) {
        let mut headers: Vec<(&str, &str)> = POST.iter().copied().filter(|header| header.0 != name).collect();
        if name.starts_with(':') {
            headers.insert(0, (name, value));
        } else {
            headers.push((name, value));
        }
        self.post_h2(&headers, body, &[], fate).await;
    }
}

#[tokio::test]
async fn an_http2_request_becomes_one_http1_request_or_none() {
    let edge = Edge::start().await;
    edge.post_h2(&POST, "hello", &[], One("hello")).await;
    edge.post_h2(&POST, "", &[], One("")).await;
    edge.post_h2_with("content-length", "5", "hello", One("hello")).await;
    for (name, value) in [
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("X-Upper", "1"),
        ("Content-Length", "5"),
        ("x y", "1"),
        ("x:y", "1"),
        ("x\r\nhost", "b"),
        ("", "1"),
        (":unknown", "1"),
    ] {
        edge.post_h2_with(name, value, "hello", Refused).await;
    }
}

#[tokio::test]
async fn an_http2_length_is_the_length_of_its_data() {
    let edge = Edge::start().await;
    for length in ["4", "6", "+5", "-5", "0x5", "5, 5", "5 ", "", "18446744073709551621"] {
        edge.post_h2_with("content-length", length, "hello", Refused).await;
        edge.post_h2_with("content-length", length, "", Refused).await;
    }
    for lengths in [["5", "5"], ["5", "7"], ["7", "5"], ["0", "5"]] {
        let mut headers = POST.to_vec();
        headers.extend(lengths.map(|length| ("content-length", length)));
        edge.post_h2(&headers, "hello", &[], Refused).await;
    }
}

#[tokio::test]
async fn an_http2_value_cannot_end_its_line() {
    let edge = Edge::start().await;
    let hidden = "x\r\n\r\nGET /hidden HTTP/1.1\r\nhost: a";
    for value in [hidden, "a\rb", "a\nb", "a\0b"] {
        for name in ["x", ":path", ":method", ":authority", ":scheme", "cookie", "x-request-id", "host"] {
            let path = format!("/{value}");
            let value = if name == ":path" { &path } else { value };
            edge.post_h2_with(name, value, "hello", Refused).await;
        }
    }
    for (name, value) in [
        (":path", "/first HTTP/1.1"),
        (":path", "first"),
        (":path", ""),
        (":path", "*"),
        (":path", "http://b/"),
        (":path", "@b/"),
        (":method", "POST /hidden HTTP/1.1"),
        (":method", ""),
        (":scheme", "ftp"),
        (":authority", "a/b"),
        (":authority", "a b"),
    ] {
        edge.post_h2_with(name, value, "hello", Refused).await;
    }
}

#[tokio::test]
async fn an_http2_request_names_one_host() {
    let edge = Edge::start().await;
    edge.post_h2_with("host", "b.example", "", Refused).await;
    edge.post_h2_with("host", "A.example", "", One("")).await;
    let twice = |name, value| [&POST[..], &[(name, value)]].concat();
    edge.post_h2(&[&[(":authority", "b.example")], &POST[..]].concat(), "", &[], Refused).await;
    edge.post_h2(&[&[(":path", "/hidden")], &POST[..]].concat(), "", &[], Refused).await;
    let mut hosts = twice("host", "a.example");
    hosts.push(("host", "a.example"));
    edge.post_h2(&hosts, "", &[], Refused).await;
    // Pseudo-headers come before all others (RFC 9113 section 8.3).
    edge.post_h2(&[&[("x", "y")], &POST[..]].concat(), "", &[], Refused).await;
}

#[tokio::test]
async fn trailers_bring_no_length_and_no_host() {
    let edge = Edge::start().await;
    for (name, value) in [("Upper", "1"), ("x", "a\r\n\r\nGET /hidden HTTP/1.1"), ("connection", "x")] {
        edge.post_h2(&POST, "hello", &[(name, value)], Refused).await;
    }
    // Malformed by RFC 9113 section 8.1, and h2 drops it without a word: still one request with one target.
    edge.post_h2(&POST, "hello", &[(":path", "/hidden")], One("hello")).await;
    for (name, value) in [("content-length", "5"), ("transfer-encoding", "chunked"), ("host", "b")] {
        let headers = [&POST[..], &[("trailer", name)]].concat();
        let mut frames = Frames::connect(edge.gateway.address).await;
        frames.request(&headers, "hello", &[(name, value)]).await;
        frames.answer().await;
        let chunks = format!("5\r\nhello\r\n0\r\n{name}: {value}\r\n\r\n");
        let head = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTrailer: {name}\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
        );
        edge.talk(head.as_bytes()).await;
        for connection in edge.recorder.take() {
            eventually("the gateway closed it", || async { connection.is_over() }).await;
            let text = connection.text().to_lowercase();
            let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            assert!(!body.contains(name), "{name} arrived as a trailer: {text:?}");
        }
    }
}
