//! Clients and upstreams that misbehave: slow, silent, resetting, talking nonsense. Others are served meanwhile, memory and time
//! are bounded, the status tells the truth, and the counts tell of it.

use crate::strict::Recorder;
use crate::support::*;
use rehome_gateway::control::ServiceStatus;
use rehome_spec::Span;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A gateway whose source does with every connection what the test says; nobody is at the target.
async fn gateway_to<F, W>(work: W) -> Gateway
where
    W: Fn(TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut service = service(&raw_upstream(work).await, &nowhere().await);
    service.upstream_timeout = Span::from_millis(300);
    Gateway::with(service, |config| config.metrics = Some("127.0.0.1:0".parse().unwrap())).await
}

async fn counts(gateway: &Gateway) -> ServiceStatus {
    gateway.status().await.services.remove(0)
}

/// A write's status and what it says of its outcome.
fn outcome(got: &Got) -> (u16, &str) {
    (got.status.as_u16(), got.headers["rehome-outcome"].to_str().unwrap())
}

async fn metrics(gateway: &Gateway) -> String {
    let page = Caller::connect(gateway.running.metrics.unwrap()).await.get("/metrics", &[]).await;
    String::from_utf8_lossy(&page.body).into_owned()
}

/// Lets the clock of the runtime jump; everything whose time has come by then is over soon.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// The end of a connection, whatever comes before it.
async fn ended(stream: &mut TcpStream) {
    let mut answer = Vec::new();
    let _end = within("the gateway cuts it", stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(!answer.contains(" 200 "), "{answer}");
}

#[tokio::test]
async fn slow_clients_take_little_memory_disturb_nobody_and_are_cut() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    const SLOW: usize = 300;
    let before = resident();
    let mut slow = Vec::new();
    for number in 0..SLOW {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        let begun: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ",
            _ => b"PRI * HTTP/2.0\r\n\r\nS",
        };
        stream.write_all(begun).await.unwrap();
        slow.push(stream);
    }
    eventually("all are connected", || async { gateway.status().await.held.connections >= SLOW as u64 })
        .await;
    // A byte now and then does not buy more time.
    for _ in 0..4 {
        pass(Duration::from_secs(15)).await;
        for stream in slow.iter_mut().skip(1).step_by(3) {
            // It may be cut already.
            let _sent = stream.write_all(b"x").await;
        }
        let got = gateway.caller().await.post("/", &[], "beside").await;
        assert_eq!((got.status.as_u16(), got.side()), (200, "source"));
    }
    let taken = resident().saturating_sub(before);
    assert!(taken < SLOW as u64 * 100, "{taken} kB for {SLOW} slow clients");
    pass(Duration::from_secs(76)).await;
    for stream in &mut slow {
        ended(stream).await;
    }
    eventually("their places are free", || async { gateway.status().await.held.connections == 0 }).await;
    drop(target);
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_at_its_bound() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let gateway = Gateway::start(service(&source.url(), &target.url())).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut sent = 0;
    let endless = async {
        while writer.write_all(&[b'y'; 1024]).await.is_ok() {
            sent += 1024;
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        () = endless => {}
        _ = within("the refusal", reader.read_to_end(&mut answer)) => {}
    }
    // Also what the sockets between hold.
    assert!(sent < 8 << 20, "{sent} bytes of a head were taken");
    assert!(source.seen.lock().unwrap().is_empty());
    drop(target);
}

#[tokio::test]
async fn a_body_that_stops_coming_is_given_up() {
    let recorder = Recorder::start().await;
    let mut service = service(&recorder.url(), &nowhere().await);
    service.upstream_timeout = Span::from_millis(200);
    let gateway = Gateway::start(service).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
    let head = within("the answer", read_head(&mut stream)).await;
    assert!(head.starts_with("HTTP/1.1 504") && head.contains("rehome-outcome: unknown"), "{head}");
    ended(&mut stream).await;
    let [connection] = &recorder.take()[..] else { panic!("one connection") };
    eventually("the upstream is not left waiting", || async { connection.is_over() }).await;
    assert!(connection.text().ends_with("\r\n\r\nhalf"));
    assert_eq!(gateway.status().await.held.in_flight, 0);
}

#[tokio::test]
async fn an_upstream_that_resets_at_once() {
    let heads = Arc::new(AtomicUsize::new(0));
    let count = heads.clone();
    let gateway = gateway_to(move |mut stream| {
        let count = count.clone();
        async move {
            if read_head(&mut stream).await.starts_with("POST") {
                count.fetch_add(1, Ordering::SeqCst);
            }
            stream.set_zero_linger().unwrap();
        }
    })
    .await;
    let mut caller = gateway.caller().await;
    for number in 1..=3 {
        assert_eq!(outcome(&caller.post("/", &[], "x").await), (502, "unknown"));
        assert_eq!(heads.load(Ordering::SeqCst), number, "never sent twice");
    }
    assert_eq!(caller.get("/", &[]).await.status, 502);
    let counts = counts(&gateway).await;
    assert_eq!((counts.source.failed, counts.writes_total, counts.writes_unknown), (4, 3, 3));
    let page = metrics(&gateway).await;
    for line in [
        "rehome_failures_total{service=\"api\",side=\"source\"} 4",
        "rehome_writes_unknown_total{service=\"api\"} 3",
        "rehome_writes_in_flight 0",
    ] {
        assert!(page.lines().any(|other| other == line), "{line} is not in {page}");
    }
}

#[tokio::test]
async fn an_upstream_that_resets_before_it_reads_never_gets_a_write_twice() {
    let arrived = Arc::new(AtomicUsize::new(0));
    let count = arrived.clone();
    let gateway = gateway_to(move |stream| {
        let count = count.clone();
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            stream.set_zero_linger().unwrap();
        }
    })
    .await;
    let mut caller = gateway.caller().await;
    for _ in 0..20 {
        let before = arrived.load(Ordering::SeqCst);
        // Which of the two it is depends on who was faster; both are true.
        match outcome(&caller.post("/", &[], "x").await) {
            (502, "unknown") => assert_eq!(arrived.load(Ordering::SeqCst), before + 1),
            (503, "not-sent") => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(counts(&gateway).await.source.failed >= 20);
}

#[tokio::test]
async fn an_upstream_that_hangs_is_given_up_and_its_connection_with_it() {
    let (connections, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, end) = (connections.clone(), ends.clone());
    let gateway = gateway_to(move |mut stream| {
        count.fetch_add(1, Ordering::SeqCst);
        let end = end.clone();
        async move {
            while !read_head(&mut stream).await.is_empty() {}
            end.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let mut caller = gateway.caller().await;
    assert_eq!(outcome(&caller.post("/", &[], "").await), (504, "unknown"));
    assert_eq!(caller.get("/", &[]).await.status, 504);
    assert_eq!(connections.load(Ordering::SeqCst), 2, "what hangs is not used again");
    eventually("both are closed", || async { ends.load(Ordering::SeqCst) == 2 }).await;
    let counts = counts(&gateway).await;
    assert_eq!((counts.source.failed, counts.writes_unknown), (2, 1));
}

/// Half an answer, in each of the ways that bodies have an end.
const HALVES: [&str; 4] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nhalf",
    "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf",
];

#[tokio::test]
async fn half_an_answer_never_looks_whole() {
    for half in HALVES {
        let gateway = gateway_to(move |mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(half.as_bytes()).await.unwrap();
            let mut asked = [0; 1];
            // Reset only after the client has the half.
            let _go = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut asked)).await;
            stream.set_zero_linger().unwrap();
        })
        .await;
        for (method, http2) in [("GET", false), ("POST", false), ("GET", true), ("POST", true)] {
            let mut caller = match http2 {
                true => Caller::connect_h2(gateway.address).await,
                false => gateway.caller().await,
            };
            let request = caller.request(method, "/", &[], "");
            let got = within("the end", caller.send(request)).await;
            assert!(got.is_err(), "{half:?} looks whole to {method}: {got:?}");
        }
        eventually("each is counted", || async { counts(&gateway).await.source.failed == 4 }).await;
        assert_eq!(counts(&gateway).await.writes_unknown, 2);
        assert_eq!(gateway.status().await.held.in_flight, 0);
    }
}

#[tokio::test]
async fn nonsense_from_an_upstream_is_no_answer() {
    for nonsense in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nFolded: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
    ] {
        let gateway = gateway_to(move |mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(nonsense.as_bytes()).await.unwrap();
            let _end = stream.read(&mut [0; 1]).await;
        })
        .await;
        let mut caller = gateway.caller().await;
        let got = caller.post("/", &[], "").await;
        assert_eq!(got.status, 502, "{nonsense:?}");
        assert_eq!(outcome(&got), (502, "unknown"), "{nonsense:?}");
        assert_eq!(caller.get("/", &[]).await.status, 502, "{nonsense:?}");
        let counts = counts(&gateway).await;
        assert_eq!((counts.source.failed, counts.writes_unknown), (2, 1), "{nonsense:?}");
    }
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_is_nobodys_answer() {
    let gateway = gateway_to(|mut stream| async move {
        while !read_head(&mut stream).await.is_empty() {
            let twice = [OK, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"].concat();
            stream.write_all(&twice).await.unwrap();
        }
    })
    .await;
    let mut caller = gateway.caller().await;
    for _ in 0..30 {
        assert_eq!(&caller.get("/", &[]).await.body[..], b"ok");
        assert_eq!(&caller.post("/", &[], "").await.body[..], b"ok");
    }
}

#[tokio::test]
async fn interim_answers_are_not_the_answer() {
    let gateway = gateway_to(|mut stream| async move {
        while !read_head(&mut stream).await.is_empty() {
            let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
            for bytes in [&interim[..], b"HTTP/1.1 102 Processing\r\n\r\n", OK] {
                stream.write_all(bytes).await.unwrap();
            }
        }
    })
    .await;
    for mut caller in [gateway.caller().await, Caller::connect_h2(gateway.address).await] {
        for _ in 0..3 {
            let got = caller.post("/", &[], "").await;
            assert_eq!((got.status.as_u16(), &got.body[..]), (200, &b"ok"[..]));
        }
    }
    assert_eq!(counts(&gateway).await.source.failed, 0);
}

#[tokio::test]
async fn an_idle_connection_that_dies_costs_no_read_and_doubles_no_write() {
    let writes = Arc::new(AtomicUsize::new(0));
    let count = writes.clone();
    let gateway = gateway_to(move |mut stream| {
        let count = count.clone();
        async move {
            // One answer, then the connection ends under the next request.
            read_head(&mut stream).await;
            stream.write_all(OK).await.unwrap();
            if read_head(&mut stream).await.starts_with("POST") {
                count.fetch_add(1, Ordering::SeqCst);
            }
            stream.set_zero_linger().unwrap();
        }
    })
    .await;
    let mut caller = gateway.caller().await;
    for round in 1..=3 {
        assert_eq!(caller.get("/first", &[]).await.status, 200);
        assert_eq!(caller.get("/again", &[]).await.status, 200, "a read is sent again");
        assert_eq!(outcome(&caller.post("/", &[], "x").await), (502, "unknown"));
        assert_eq!(writes.load(Ordering::SeqCst), round, "a write is not");
    }
    let counts = counts(&gateway).await;
    assert_eq!((counts.writes_total, counts.writes_unknown), (3, 3));
}

#[tokio::test]
async fn an_answer_before_the_body_is_passed_on() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let gateway = gateway_to(move |mut stream| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            read_head(&mut stream).await;
            let answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nlarge";
            stream.write_all(answer).await.unwrap();
            // It reads nothing more and keeps the connection.
            std::future::pending::<()>().await;
        }
    })
    .await;
    for number in 1..=2 {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n\r\n").await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let sends = async {
            while writer.write_all(&[b'x'; 16384]).await.is_ok() {}
            std::future::pending::<()>().await;
        };
        let mut answer = Vec::new();
        let receives = async {
            while !answer.ends_with(b"\r\n\r\nlarge") {
                assert!(
                    reader.read_buf(&mut answer).await.unwrap() > 0,
                    "{}",
                    String::from_utf8_lossy(&answer)
                );
            }
        };
        tokio::select! {
            () = sends => {}
            () = within("the answer", receives) => {}
        }
        assert!(answer.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer));
        assert_eq!(connections.load(Ordering::SeqCst), number, "a half-used connection is not used again");
    }
    eventually("nothing is left of them", || async {
        let held = gateway.status().await.held;
        held.in_flight + held.connections == 0
    })
    .await;
    assert_eq!(counts(&gateway).await.source.failed, 0);
}
