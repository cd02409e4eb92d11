//! The protocol itself: headers, upgrades, streams, smuggling, versions, metrics, the log, and a client that nobody here wrote.

use crate::support::*;
use rehome_gateway::control::{Refusal, Request as Control, Response as Reply, SessionRule};
use rehome_part::{Epoch, Side};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn hop_by_hop_headers_stay_on_their_hop() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let mut caller = gateway.caller().await;
    let headers = [
        ("connection", "x-private"),
        ("x-private", "1"),
        ("te", "gzip"),
        ("keep-alive", "timeout=9"),
        ("x-public", "2"),
        ("x-forwarded-for", "192.0.2.7"),
        ("x-request-id", "mine"),
    ];
    let got = caller.get("/path?query=1", &headers).await;
    let seen = source.last();
    for gone in ["connection", "x-private", "te", "keep-alive"] {
        assert!(!seen.headers.contains_key(gone), "{gone}");
    }
    assert_eq!(seen.headers["x-public"], "2");
    assert_eq!(seen.headers["host"], "shop.example");
    assert_eq!(seen.headers["x-forwarded-host"], "shop.example");
    assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1", "nobody is trusted here, so the claim is gone");
    assert_eq!(seen.headers["x-request-id"], "mine");
    assert_eq!(seen.headers["via"], "1.1 rehome");
    assert!(!got.headers.contains_key("keep-alive"));
    assert_eq!(
        (&got.headers["via"], &got.headers["x-request-id"]),
        (&"1.1 rehome".parse().unwrap(), &"mine".parse().unwrap())
    );
}

#[tokio::test]
async fn trailers_large_bodies_and_empty_answers_pass() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let mut caller = gateway.caller().await;
    let got = caller.get("/trailers", &[("te", "trailers")]).await;
    assert_eq!((&got.body[..], &got.trailers.unwrap()["x-sum"]), (&b"body"[..], &"42".parse().unwrap()));
    let got = caller.get("/large", &[]).await;
    assert_eq!(got.body.len(), 3 << 20);
    let got = caller.call("HEAD", "/large", &[], "").await;
    assert_eq!((got.headers["content-length"].to_str().unwrap(), got.body.len()), ("3145728", 0));
    let got = caller.post("/", &[], vec![7_u8; 5 << 20]).await;
    assert_eq!((got.status.as_u16(), source.last().body.len()), (200, 5 << 20));
    let mut two = Caller::connect_h2(gateway.address).await;
    let got = two.get("/trailers", &[("te", "trailers")]).await;
    assert_eq!(got.trailers.unwrap()["x-sum"], "42");
    let got = two.post("/", &[("cookie", "a=1"), ("cookie", "b=2")], vec![7_u8; 2 << 20]).await;
    assert_eq!((got.status.as_u16(), source.last().body.len()), (200, 2 << 20));
    assert_eq!(
        (&source.last().headers["cookie"], &source.last().headers["via"]),
        (&"a=1; b=2".parse().unwrap(), &"2 rehome".parse().unwrap())
    );
}

#[tokio::test]
async fn http_1_0_clients_are_served() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let answer = raw(gateway.address, b"GET /trailers HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK") && answer.ends_with("\r\n\r\nbody"), "{answer}");
    assert!(!answer.contains("transfer-encoding"), "{answer}");
}

async fn open_session(gateway: &Gateway) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let head = within("the switch of protocols", read_head(&mut stream)).await;
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: echo"), "{head}");
    let mut name = [0; 6];
    within("the greeting", stream.read_exact(&mut name)).await.unwrap();
    (stream, String::from_utf8_lossy(&name).into_owned())
}

async fn echo(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    let mut back = vec![0; bytes.len()];
    within("the echo", stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(back, bytes);
}

#[tokio::test]
async fn a_session_passes_every_byte_and_stays_with_its_owner() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.fresh().await;
    gateway.weight(100).await;
    let (mut stream, side) = open_session(&gateway).await;
    assert_eq!(side, "source", "sessions go to the owner, whatever the weight");
    let noise: Vec<u8> = (0..4000_u32).map(|n| (n * 7 % 256) as u8).collect();
    for _ in 0..20 {
        echo(&mut stream, &noise).await;
    }
    assert_eq!(gateway.status().await.held.sessions, 1);
    gateway.done(Gateway::arm(1, 30_000)).await;
    let hold = |sessions| Control::Hold { epoch: Epoch(1), in_flight_ms: 50, sessions, token: TOKEN };
    assert_eq!(gateway.refused(hold(SessionRule::Refuse)).await, Refusal::Sessions);
    assert_eq!(gateway.caller().await.post("/", &[], "").await.status, 200, "refused, so writes go on");
    assert_eq!(gateway.refused(hold(SessionRule::Wait)).await, Refusal::Sessions);
    echo(&mut stream, b"still here").await;
    assert!(matches!(gateway.call(hold(SessionRule::Close)).await, Reply::Held(held) if held.sessions == 0));
    let mut byte = [0; 1];
    assert!(matches!(within("the end of the session", stream.read(&mut byte)).await, Ok(0) | Err(_)));
    let next = tokio::spawn({
        let address = gateway.address;
        async move { raw_session(address).await }
    });
    gateway.waiting(1).await;
    gateway.settle(2, Side::Target).await;
    assert_eq!(within("the next session", next).await.unwrap(), "target");
}

async fn raw_session(address: std::net::SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    read_head(&mut stream).await;
    let mut name = [0; 6];
    stream.read_exact(&mut name).await.unwrap();
    String::from_utf8_lossy(&name).into_owned()
}

#[tokio::test]
async fn a_session_on_an_http2_stream_reaches_an_http1_upstream() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let mut caller = Caller::connect_h2(gateway.address).await;
    // The answer carries the gateway's settings, which allow the extended CONNECT.
    caller.get("/", &[]).await;
    let mut request = caller.request("CONNECT", "/upgrade", &[("sec-websocket-version", "13")], "");
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    let Caller::Two(sender) = &mut caller else { unreachable!() };
    let mut response = within("the answer", sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("upgrade"));
    let upgraded = within("the stream", hyper::upgrade::on(&mut response)).await.unwrap();
    let mut stream = hyper_util::rt::TokioIo::new(upgraded);
    let mut name = [0; 6];
    within("the greeting", stream.read_exact(&mut name)).await.unwrap();
    assert_eq!(&name, b"source");
    stream.write_all(b"over and back").await.unwrap();
    let mut back = [0; 13];
    within("the echo", stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"over and back");
    let seen = source.last();
    assert_eq!((seen.method.as_str(), seen.headers["sec-websocket-key"].len()), ("GET", 24));
    assert_eq!(gateway.status().await.held.sessions, 1);
    drop(stream);
    eventually("the session ended", || async { gateway.status().await.held.sessions == 0 }).await;
    drop(target);
}

#[tokio::test]
async fn an_offer_of_http2_by_upgrade_is_an_ordinary_request() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.weight(100).await;
    gateway.fresh().await;
    let headers =
        [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABk")];
    let got = gateway.caller().await.get("/", &headers).await;
    assert_eq!((got.status.as_u16(), got.side()), (200, "target"));
    assert!(!target.last().headers.contains_key("http2-settings"));
    drop(source);
}

#[tokio::test]
async fn a_stream_of_events_is_a_session() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = "GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    read_head(&mut stream).await;
    let mut first = vec![0; 256];
    let read = within("the first event", stream.read(&mut first)).await.unwrap();
    assert!(String::from_utf8_lossy(&first[..read]).contains("data: 1"));
    let status = gateway.status().await;
    assert_eq!((status.held.sessions, status.held.in_flight), (1, 0));
    gateway.done(Gateway::arm(1, 30_000)).await;
    let close =
        Control::Hold { epoch: Epoch(1), in_flight_ms: 10_000, sessions: SessionRule::Close, token: TOKEN };
    assert!(matches!(gateway.call(close).await, Reply::Held(_)));
    let mut rest = Vec::new();
    let _end = within("the stream was closed", stream.read_to_end(&mut rest)).await;
    assert!(!String::from_utf8_lossy(&rest).ends_with("0\r\n\r\n"), "cut, not ended as if it were complete");
}

#[tokio::test]
async fn smuggled_and_malformed_requests_are_refused() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = hidden.len();
    let cases = [
        format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: {length}\r\n\r\n{hidden}"
        ),
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, {length}\r\n\r\n{hidden}"),
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n{hidden}"),
        format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n{hidden}"),
        format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("POST / HTTP/1.1\r\nHost: a\r\nX-Folded: one\r\n two\r\nContent-Length: 0\r\n\r\n{hidden}"),
        format!("GET / HTTP/1.1\r\n\r\n{}", "X"),
        format!("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n{}", "X"),
        "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(80 << 10)),
        format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(300)),
    ];
    for case in cases {
        let shown: String = case.chars().take(120).collect();
        let answer = raw(gateway.address, case.as_bytes()).await;
        let status = answer.split(' ').nth(1).unwrap_or("closed");
        assert!(matches!(status, "400" | "431" | "closed"), "{shown:?}: {answer}");
        assert!(!answer.contains("200 OK"), "{shown:?}: {answer}");
    }
    assert!(source.seen.lock().unwrap().is_empty(), "{:?}", source.seen.lock().unwrap());
    assert!(target.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_body_with_a_bad_chunk_never_arrives_as_a_whole() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    for body in [
        "5\r\nhello\r\nzz\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\n",
        "5\nhello\n0\n\n",
    ] {
        let bytes = format!("POST /bad HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let answer = raw(gateway.address, bytes.as_bytes()).await;
        assert!(!answer.contains("200 OK"), "{body:?}: {answer}");
    }
    // The upstream collects whole bodies before it notes a request.
    assert!(source.seen.lock().unwrap().is_empty(), "{:?}", source.seen.lock().unwrap());
    eventually("nothing is left in flight", || async { gateway.status().await.held.in_flight == 0 }).await;
    let status = gateway.status().await;
    assert!(status.services[0].source.failed == 0, "the client's fault is not the side's");
    drop(target);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let bytes = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi\
                 GET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = raw(gateway.address, bytes.as_bytes()).await;
    assert_eq!(answer.matches("200 OK").count(), 3, "{answer}");
    let order: Vec<String> = source.seen.lock().unwrap().iter().map(|seen| seen.path.clone()).collect();
    assert_eq!(order, ["/1", "/2", "/3"]);
    drop(target);
}

#[tokio::test]
async fn the_log_and_the_metrics_tell_what_happened() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::with(service(&source.url(), &target.url()), |config| {
        config.access_log = Some(config.state_dir.with_file_name("access.log"));
        config.metrics = Some("127.0.0.1:0".parse().unwrap());
    })
    .await;
    let mut caller = gateway.caller().await;
    caller.get("/path?password=1", &[("authorization", "very secret"), ("x-request-id", "r-1")]).await;
    caller.post("/orders", &[], "").await;
    caller.get("/broken", &[]).await;
    let page = Caller::connect(gateway.running.metrics.unwrap()).await.get("/metrics", &[]).await;
    let page = String::from_utf8_lossy(&page.body).into_owned();
    for line in [
        "rehome_requests_total{service=\"api\",side=\"source\",class=\"read\"} 2",
        "rehome_requests_total{service=\"api\",side=\"source\",class=\"write\"} 1",
        "rehome_failures_total{service=\"api\",side=\"source\"} 1",
        "rehome_writes_unknown_total{service=\"api\"} 0",
        "rehome_weight_actual{service=\"api\"} 0",
        "rehome_epoch 1",
        "rehome_writes_in_flight 0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    assert!(!page.contains("rehome_lag_seconds{"), "unknown is absent, not 0");
    let path = gateway.config.access_log.clone().unwrap();
    gateway.running.drain(std::time::Duration::from_secs(10)).await;
    let log = std::fs::read_to_string(path).unwrap();
    assert!(!log.contains("password") && !log.contains("very secret"), "{log}");
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(
        (&lines[0]["id"], &lines[0]["path"], &lines[0]["side"]),
        (&"r-1".into(), &"/path".into(), &"source".into())
    );
    assert_eq!(
        (&lines[1]["class"], &lines[1]["epoch"], &lines[1]["outcome"]),
        (&"write".into(), &1.into(), &"answered".into())
    );
    assert_eq!(lines[2]["status"], 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_comes_through_a_hold_unharmed() {
    let curl = |arguments: Vec<String>| async move {
        let mut command = tokio::process::Command::new("curl");
        command
            .args(["-sS", "-m", "30", "-w", "|%{http_code}|%{http_version}"])
            .args(arguments)
            .kill_on_drop(true);
        command.output().await
    };
    if curl(vec!["--version".into()]).await.is_err() {
        // Not installed here; the raw sockets above cover the same paths.
        return;
    }
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    gateway.done(Gateway::arm(1, 60_000)).await;
    gateway.hold(1).await;
    let file = gateway.socket("upload");
    std::fs::write(&file, vec![b'u'; 3 << 20]).unwrap();
    let (url, upload) = (format!("http://{}/up", gateway.address), file.display().to_string());
    let plans: Vec<Vec<String>> = [
        vec!["--http1.1", "-T", &upload, &url],
        vec![
            "--http1.1",
            "-H",
            "Transfer-Encoding: chunked",
            "-H",
            "Expect: 100-continue",
            "-T",
            &upload,
            &url,
        ],
        vec!["--http2-prior-knowledge", "-T", &upload, &url],
        vec!["--http1.0", "-d", "small", &url],
    ]
    .iter()
    .map(|plan| plan.iter().map(|word| (*word).to_owned()).collect())
    .collect();
    let uploads: Vec<_> = plans.into_iter().map(|plan| tokio::spawn(curl(plan))).collect();
    gateway.waiting(4).await;
    gateway.settle(2, Side::Target).await;
    for upload in uploads {
        let output = within("curl", upload).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.starts_with("target|200|"), "{text} {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!((target.count("PUT"), target.count("POST"), source.count("PUT")), (3, 1, 0));
    assert!(
        target.seen.lock().unwrap().iter().all(|seen| seen.method == "POST" || seen.body.len() == 3 << 20)
    );
}
