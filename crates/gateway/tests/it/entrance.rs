//! Who comes in and where to: several services on one port, PROXY headers, believed proxies, and what one client may cost.

use crate::support::*;
use rehome_gateway::{Config, start};
use rehome_spec::{ClientKey, Service, Size};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A gateway of one service with its metrics.
async fn gateway(source: &Upstream, change: impl FnOnce(&mut Config)) -> Gateway {
    Gateway::with(service(&source.url(), &nowhere().await), |config| {
        config.metrics = Some("127.0.0.1:0".parse().unwrap());
        change(config);
    })
    .await
}

async fn ask(caller: &mut Caller, host: &str, path: &str) -> (u16, String) {
    let request = match caller {
        Caller::One(_) => caller.request("GET", path, &[], ""),
        Caller::Two(_) => caller.request("GET", path, &[], ""),
    };
    let (mut parts, body) = request.into_parts();
    match caller {
        Caller::One(_) => drop(parts.headers.insert("host", host.parse().unwrap())),
        Caller::Two(_) => parts.uri = format!("http://{host}{path}").parse().unwrap(),
    }
    let got = within(path, caller.send(http::Request::from_parts(parts, body))).await.unwrap();
    (got.status.as_u16(), got.side().to_owned())
}

#[tokio::test]
async fn services_share_a_port_by_host_and_path() {
    let (pages, api) = (Upstream::start("pages").await, Upstream::start("api").await);
    let other = nowhere().await;
    let gateway = gateway(&pages, |config| {
        config.access_log = Some(config.state_dir.with_file_name("access.log"));
        config.services[0].hosts = texts(&["shop.example", "*.shop.example"]);
        config.services.push(Service {
            name: "calls".into(),
            hosts: texts(&["Shop.Example", "only-api.example"]),
            paths: texts(&["/api/"]),
            ..service(&api.url(), &other)
        });
    })
    .await;
    assert_eq!(gateway.running.address("api"), gateway.running.address("calls"));
    let mut one = gateway.caller().await;
    let mut two = Caller::connect_h2(gateway.address).await;
    for (host, path, wanted) in [
        ("shop.example", "/", (200, "pages")),
        ("SHOP.example:8080", "/api", (200, "api")),
        ("shop.example", "/api/x?y=1", (200, "api")),
        ("shop.example", "/%61pi/x", (200, "api")),
        ("shop.example", "/apix", (200, "pages")),
        ("www.shop.example", "/api/x", (200, "pages")),
        ("only-api.example", "/api", (200, "api")),
        ("only-api.example", "/", (404, "")),
        ("other.example", "/", (421, "")),
        ("a.b.shop.example", "/", (421, "")),
        ("shop.example", "/x/%2e%2e/api", (400, "")),
        ("shop.example", "/x/..%2Fapi", (400, "")),
    ] {
        let wanted = (wanted.0, wanted.1.to_owned());
        assert_eq!(ask(&mut one, host, path).await, wanted, "HTTP/1.1 {host}{path}");
        assert_eq!(ask(&mut two, host, path).await, wanted, "HTTP/2 {host}{path}");
    }
    for (reason, count) in [("unknown-host", 4), ("unknown-path", 2), ("climbing-path", 4)] {
        assert_eq!(gateway.turned_away(reason).await, count, "{reason}");
    }
    let status = gateway.status().await;
    let names: Vec<_> =
        status.services.iter().map(|service| (service.name.as_str(), &service.listen)).collect();
    let listen = gateway.address.to_string();
    assert_eq!(names, [("api", &listen), ("calls", &listen)]);
    let path = gateway.config.access_log.clone().unwrap();
    drop((one, two));
    gateway.running.drain(Duration::from_secs(10)).await;
    let log = std::fs::read_to_string(path).unwrap();
    let refused = log.lines().filter(|line| line.contains("\"outcome\":\"unknown-host\"")).count();
    assert_eq!((refused, log.lines().count()), (4, 24), "{log}");
}

#[tokio::test]
async fn services_that_cannot_share_a_port_do_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let side = nowhere().await;
    let first = service(&side, &side);
    for (other, word) in [
        (Service { name: "b".into(), ..first.clone() }, "every host"),
        (
            Service { name: "b".into(), paths: texts(&["/b"]), proxy_protocol: true, ..first.clone() },
            "proxy_protocol",
        ),
        (
            Service {
                name: "b".into(),
                paths: texts(&["/b"]),
                connections_per_client: Some(1),
                ..first.clone()
            },
            "connections",
        ),
    ] {
        let (state, socket) = (folder.path().join("state"), folder.path().join("control.sock"));
        let error =
            start(Config::new("e", state, socket, SECRET, vec![first.clone(), other])).await.unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}

const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x09\xc6\x33\x64\x01\x10\x00\x01\xbb";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.5\r\nConnection: close\r\n\r\n";

fn behind_a_balancer(trusted: &str) -> impl FnOnce(&mut Config) {
    let trusted = trusted.parse().unwrap();
    move |config| {
        config.patience.proxy_header = Duration::from_millis(300);
        config.services[0].proxy_protocol = true;
        config.services[0].trusted_proxies = vec![trusted];
    }
}

#[tokio::test]
async fn a_proxy_header_names_the_client() {
    let source = Upstream::start("source").await;
    let gateway = gateway(&source, behind_a_balancer("127.0.0.0/8")).await;
    for (header, forwarded_for) in [
        (&b"PROXY TCP4 192.0.2.7 198.51.100.1 5000 80\r\n"[..], "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 ::1 5000 80\r\n", "2001:db8::7"),
        (BINARY, "192.0.2.9"),
        // The balancer speaks for itself, and as a trusted proxy about others.
        (b"PROXY UNKNOWN\r\n", "203.0.113.5, 127.0.0.1"),
        (LOCAL, "203.0.113.5, 127.0.0.1"),
    ] {
        let answer = raw(gateway.address, &[header, GET].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(source.last().headers["x-forwarded-for"], forwarded_for);
    }
    // HTTP/2 with prior knowledge behind it.
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(BINARY).await.unwrap();
    assert_eq!(Caller::two(stream).await.get("/", &[]).await.status, 200);
    assert_eq!(source.last().headers["x-forwarded-for"], "192.0.2.9");
    let seen = source.seen.lock().unwrap().len();
    for wrong in [&b""[..], b"PROXY TCP4 192.0.2.7", b"PROXY TCP4 192.0.2.7 x 1 2\r\n", b"PROXY "] {
        assert_eq!(raw(gateway.address, &[wrong, GET].concat()).await, "");
    }
    assert_eq!(raw(gateway.address, b"").await, "", "closed when its time is over");
    assert_eq!(gateway.turned_away("proxy-header").await, 5);
    assert_eq!(source.seen.lock().unwrap().len(), seen);
}

#[tokio::test]
async fn a_strangers_proxy_header_is_read_and_not_believed() {
    let source = Upstream::start("source").await;
    let gateway = gateway(&source, behind_a_balancer("10.0.0.0/8")).await;
    let answer = raw(gateway.address, &[BINARY, GET].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(source.last().headers["x-forwarded-for"], "127.0.0.1");
}

#[tokio::test]
async fn only_trusted_proxies_say_where_a_request_came_from() {
    let source = Upstream::start("source").await;
    let claims = [
        ("x-forwarded-for", "192.0.2.1, 198.51.100.7, 10.0.0.2"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "www.example"),
    ];
    let by_address = |config: &mut Config| {
        config.services[0].clients = vec![ClientKey("address".into())];
        config.access_log = Some(config.state_dir.with_file_name("access.log"));
    };
    let trusting = gateway(&source, |config| {
        by_address(config);
        config.services[0].trusted_proxies =
            ["127.0.0.1", "10.0.0.0/8"].map(|text| text.parse().unwrap()).to_vec();
    })
    .await;
    let mut caller = trusting.caller().await;
    caller.get("/", &claims).await;
    let seen = source.last().headers;
    assert_eq!(seen["x-forwarded-for"], "192.0.2.1, 198.51.100.7, 10.0.0.2, 127.0.0.1");
    assert_eq!(
        (&seen["x-forwarded-proto"], &seen["x-forwarded-host"]),
        (&"https".parse().unwrap(), &"www.example".parse().unwrap())
    );
    caller.get("/", &[("x-forwarded-for", "198.51.100.7")]).await;
    caller.get("/", &[("x-forwarded-for", "198.51.100.8")]).await;
    drop(caller);
    let clients = clients(trusting).await;
    assert!(
        clients[0] == clients[1] && clients[1] != clients[2],
        "the last stranger is the client: {clients:?}"
    );

    let wary = gateway(&source, by_address).await;
    let mut caller = wary.caller().await;
    caller.get("/", &claims).await;
    let seen = source.last().headers;
    assert_eq!(
        (&seen["x-forwarded-for"], &seen["x-forwarded-proto"]),
        (&"127.0.0.1".parse().unwrap(), &"http".parse().unwrap())
    );
    assert_eq!(seen["x-forwarded-host"], "shop.example");
    caller.get("/", &[]).await;
    drop(caller);
    let clients = self::clients(wary).await;
    assert_eq!(clients[0], clients[1]);
}

/// Ends the gateway and reads from its log who asked.
async fn clients(gateway: Gateway) -> Vec<String> {
    let path = gateway.config.access_log.clone().unwrap();
    gateway.running.drain(Duration::from_secs(10)).await;
    let log = std::fs::read_to_string(path).unwrap();
    log.lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["client"].to_string())
        .collect()
}

#[tokio::test]
async fn larger_bodies_are_refused_before_or_while_they_come() {
    let source = Upstream::start("source").await;
    let gateway = gateway(&source, |config| config.services[0].max_body = Some(Size(100_000))).await;
    for caller in [&mut gateway.caller().await, &mut Caller::connect_h2(gateway.address).await] {
        assert_eq!(caller.post("/", &[], vec![1_u8; 100_000]).await.status, 200);
    }
    assert_eq!(gateway.caller().await.post("/", &[], vec![1_u8; 100_001]).await.status, 413);
    assert_eq!(
        Caller::connect_h2(gateway.address).await.post("/", &[], vec![1_u8; 3 << 20]).await.status,
        413
    );
    let head = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("{:x}\r\n{}\r\n", 50_000, "x".repeat(50_000));
    let answer = raw(gateway.address, format!("{head}{chunk}{chunk}0\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "exactly so much: {answer}");
    let answer = raw(gateway.address, format!("{head}{chunk}{chunk}1\r\nx\r\n0\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(gateway.turned_away("body-size").await, 3);
    assert_eq!(source.count("POST"), 3, "no part of a larger one counts as a whole");
    assert_eq!(gateway.status().await.services[0].source.failed, 0, "the client's fault is not the side's");
}

#[tokio::test]
async fn curl_does_not_send_what_would_be_refused() {
    let source = Upstream::start("source").await;
    let gateway = gateway(&source, |config| config.services[0].max_body = Some(Size(1_000))).await;
    let file = gateway.socket("upload");
    std::fs::write(&file, vec![b'u'; 3 << 20]).unwrap();
    for (protocol, wanted) in [("--http1.1", "413|0"), ("--http2-prior-knowledge", "413|")] {
        let mut command = tokio::process::Command::new("curl");
        command.args(
            "-sS -m 20 -o /dev/null -w %{http_code}|%{size_upload} -H Expect:100-continue -T".split(' '),
        );
        command.arg(&file).arg(protocol).arg(format!("http://{}/up", gateway.address)).kill_on_drop(true);
        // Not installed here; the test before covers the same path.
        let Ok(output) = command.output().await else { return };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.starts_with(wanted), "{protocol}: {said} {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!((source.count("PUT"), gateway.turned_away("body-size").await), (0, 2));
}

#[tokio::test]
async fn slow_heads_and_bodies_end() {
    let source = Upstream::start("source").await;
    let gateway = gateway(&source, |config| {
        config.patience.head = Duration::from_millis(200);
        config.patience.body = Duration::from_millis(200);
    })
    .await;
    assert_eq!(raw(gateway.address, b"GET / HTTP/1.1\r\nHost: a\r\n").await, "");
    // A kept connection may idle longer than a head may take.
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let head = within("the first answer", read_head(&mut stream)).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let answer = raw(gateway.address, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf").await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    stream.read_exact(&mut [0; 6]).await.unwrap();
    stream.write_all(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let head = within("the second answer", read_head(&mut stream)).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    stream.read_exact(&mut [0; 6]).await.unwrap();
    stream.write_all(b"GET /3 HTTP").await.unwrap();
    let mut rest = Vec::new();
    let _end = within("the end of a late head", stream.read_to_end(&mut rest)).await;
    assert_eq!((gateway.turned_away("slow-head").await, gateway.turned_away("slow-body").await), (2, 1));
    assert_eq!((source.count("GET"), source.count("POST"), rest.len()), (2, 0, 0));
}

#[tokio::test]
async fn a_held_body_is_never_too_slow() {
    let source = Upstream::start("source").await;
    let gateway = gateway(&source, |config| config.patience.body = Duration::from_millis(50)).await;
    gateway.done(Gateway::arm(1, 60_000)).await;
    gateway.hold(1).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nhalf").await.unwrap();
    gateway.waiting(1).await;
    let held = std::time::Instant::now();
    eventually("longer than a body may take", || async { held.elapsed() > Duration::from_millis(150) }).await;
    stream.write_all(b"half").await.unwrap();
    gateway.settle(2, rehome_part::Side::Source).await;
    let head = within("the answer", read_head(&mut stream)).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(gateway.turned_away("slow-body").await, 0);
}

#[tokio::test]
async fn an_answer_that_is_not_taken_is_cut() {
    let source = Upstream::start("source").await;
    let gateway = gateway(&source, |config| config.patience.answer = Duration::from_millis(200)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(gateway.address).await.unwrap();
    let get = "GET /large HTTP/1.1\r\nHost: a\r\n\r\n";
    stream.write_all(get.repeat(8).as_bytes()).await.unwrap();
    eventually("it is cut", || async { gateway.turned_away("slow-reader").await == 1 }).await;
    eventually("its place is free", || async { gateway.status().await.held.connections == 0 }).await;
    drop(stream);
}

async fn is_served(address: SocketAddr) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The gateway may have closed already.
    let _sent = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = within("an answer or an end", read_head(&mut stream)).await;
    head.starts_with("HTTP/1.1 200").then_some(stream)
}

#[tokio::test]
async fn one_client_has_so_many_connections() {
    let source = Upstream::start("source").await;
    let gateway = gateway(&source, |config| config.services[0].connections_per_client = Some(2)).await;
    let first = is_served(gateway.address).await.unwrap();
    let second = is_served(gateway.address).await.unwrap();
    assert!(is_served(gateway.address).await.is_none());
    assert_eq!(gateway.turned_away("client-connections").await, 1);
    drop(first);
    eventually("the place is given back", || async { is_served(gateway.address).await.is_some() }).await;
    drop(second);
}

#[tokio::test]
async fn trusted_proxies_have_as_many_connections_as_they_like() {
    let source = Upstream::start("source").await;
    let gateway = gateway(&source, |config| {
        config.services[0].connections_per_client = Some(1);
        config.services[0].trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    })
    .await;
    let (first, second) = (is_served(gateway.address).await, is_served(gateway.address).await);
    assert!(first.is_some() && second.is_some());
}
