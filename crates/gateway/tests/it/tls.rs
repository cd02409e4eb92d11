//! TLS at the listener: names, protocols, certificates that are exchanged while connections are open, and clients that nobody
//! here wrote.

use crate::support::*;
use rehome_gateway::{Config, start};
use rehome_spec::{Certificate, Secret, Service};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Puts a new certificate for `names` into place; gives it back to be trusted and recognised.
fn certificate(folder: &Path, file: &str, names: &[&str]) -> (Certificate, CertificateDer<'static>) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let (chain, key) = (folder.join(format!("{file}.pem")), folder.join(format!("{file}.key")));
    std::fs::write(&chain, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (Certificate { chain, key: Secret(format!("file:{}", key.display())) }, made.cert.der().clone())
}

struct Client {
    trusted: Vec<CertificateDer<'static>>,
    protocols: Vec<&'static str>,
    versions: Vec<&'static SupportedProtocolVersion>,
}

impl Client {
    fn new(trusted: &[&CertificateDer<'static>], protocols: &[&'static str]) -> Self {
        let trusted = trusted.iter().map(|certificate| (*certificate).clone()).collect();
        Self { trusted, protocols: protocols.to_vec(), versions: rustls::ALL_VERSIONS.to_vec() }
    }

    async fn connect(&self, address: SocketAddr, name: &str) -> TlsStream<TcpStream> {
        self.over(TcpStream::connect(address).await.unwrap(), name).await
    }

    async fn over(&self, stream: TcpStream, name: &str) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        self.trusted.iter().for_each(|certificate| roots.add(certificate.clone()).unwrap());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_protocol_versions(&self.versions).unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = self.protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
        within("the handshake", handshake).await.unwrap()
    }
}

fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

async fn with_tls(
    source: &Upstream,
    target: &Upstream,
    tls: Vec<Certificate>,
    change: impl FnOnce(&mut Config),
) -> Gateway {
    let service = Service { tls, ..service(&source.url(), &target.url()) };
    Gateway::with(service, |config| {
        config.metrics = Some("127.0.0.1:0".parse().unwrap());
        change(config);
    })
    .await
}

#[tokio::test]
async fn the_name_chooses_the_certificate_and_both_ends_the_protocol() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let folder = TempDir::new().unwrap();
    let (first, first_shown) = certificate(folder.path(), "first", &["shop.example"]);
    let (second, second_shown) = certificate(folder.path(), "second", &["*.pages.example"]);
    let gateway = with_tls(&source, &target, vec![first, second], |_| {}).await;
    let trusted = [&first_shown, &second_shown];
    for (name, wanted) in [("shop.example", &first_shown), ("a.pages.example", &second_shown)] {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let client = Client { versions: vec![version], ..Client::new(&trusted, &["h2", "http/1.1"]) };
            let stream = client.connect(gateway.address, name).await;
            assert_eq!(&shown(&stream), wanted, "{name}");
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            let got = Caller::two(stream).await.get("/", &[("x-forwarded-proto", "http")]).await;
            assert_eq!((got.status.as_u16(), got.side()), (200, "source"));
            assert_eq!(source.last().headers["x-forwarded-proto"], "https");
        }
    }
    for protocols in [&["http/1.1"][..], &[]] {
        let stream = Client::new(&trusted, protocols).connect(gateway.address, "shop.example").await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), protocols.first().map(|name| name.as_bytes()));
        let mut caller = Caller::one(stream).await;
        let body = vec![7_u8; 2 << 20];
        assert_eq!(caller.post("/", &[], body).await.status, 200);
        assert_eq!(source.last().body.len(), 2 << 20);
        assert_eq!(caller.get("/large", &[]).await.body.len(), 3 << 20, "kept open, and large answers pass");
    }
}

#[tokio::test]
async fn certificates_are_exchanged_under_open_connections() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let folder = TempDir::new().unwrap();
    let (tls, before) = certificate(folder.path(), "shop", &["shop.example"]);
    let gateway = with_tls(&source, &target, vec![tls.clone()], |config| {
        // Only when it is told to.
        config.patience.certificates = Duration::from_secs(3600);
    })
    .await;
    let client = Client::new(&[&before], &["http/1.1"]);
    let mut one = Caller::one(client.connect(gateway.address, "shop.example").await).await;
    let mut two =
        Caller::two(Client::new(&[&before], &["h2"]).connect(gateway.address, "shop.example").await).await;
    assert_eq!(
        (one.get("/", &[]).await.status, two.get("/", &[]).await.status.as_u16()),
        (200.try_into().unwrap(), 200)
    );

    let (_, after) = certificate(folder.path(), "shop", &["shop.example"]);
    let client = Client::new(&[&before, &after], &["http/1.1"]);
    assert_eq!(
        shown(&client.connect(gateway.address, "shop.example").await),
        before,
        "nobody said anything yet"
    );
    gateway.running.reload().await;
    assert_eq!(shown(&client.connect(gateway.address, "shop.example").await), after);

    std::fs::write(&tls.chain, "-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n").unwrap();
    gateway.running.reload().await;
    assert_eq!(
        shown(&client.connect(gateway.address, "shop.example").await),
        after,
        "a bad one changes nothing"
    );
    assert_eq!((one.get("/", &[]).await.side(), two.get("/", &[]).await.side()), ("source", "source"));
}

#[tokio::test]
async fn changed_files_are_seen_without_a_word() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let folder = TempDir::new().unwrap();
    let (tls, before) = certificate(folder.path(), "shop", &["shop.example"]);
    let gateway = with_tls(&source, &target, vec![tls], |config| {
        config.patience.certificates = Duration::from_millis(10);
    })
    .await;
    let (_, after) = certificate(folder.path(), "shop", &["shop.example"]);
    let client = Client::new(&[&before, &after], &[]);
    eventually("the new certificate", || async {
        shown(&client.connect(gateway.address, "shop.example").await) == after
    })
    .await;
}

#[tokio::test]
async fn whoever_does_not_speak_tls_is_closed() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let folder = TempDir::new().unwrap();
    let (tls, trusted) = certificate(folder.path(), "shop", &["shop.example"]);
    let gateway = with_tls(&source, &target, vec![tls], |config| {
        config.patience.handshake = Duration::from_millis(300);
    })
    .await;
    let answer = raw(gateway.address, b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n").await;
    assert!(!answer.contains("HTTP/"), "{answer}");
    let answer = raw(gateway.address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(!answer.contains("HTTP/"), "{answer}");
    // A silent one, and one that begins well and stops.
    assert_eq!(raw(gateway.address, b"").await, "");
    assert_eq!(raw(gateway.address, b"\x16\x03\x01\x02\x00\x01").await, "");
    assert_eq!(gateway.turned_away("handshake").await, 4);
    let stream = Client::new(&[&trusted], &[]).connect(gateway.address, "shop.example").await;
    assert_eq!(Caller::one(stream).await.get("/", &[]).await.status, 200);
    eventually("their places are free", || async { gateway.status().await.held.connections <= 1 }).await;
}

#[tokio::test]
async fn a_proxy_header_comes_before_the_handshake() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let folder = TempDir::new().unwrap();
    let (tls, trusted) = certificate(folder.path(), "shop", &["shop.example"]);
    let gateway = with_tls(&source, &target, vec![tls], |config| {
        config.services[0].proxy_protocol = true;
        config.services[0].trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    })
    .await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"PROXY TCP4 192.0.2.77 198.51.100.1 5000 443\r\n").await.unwrap();
    let stream = Client::new(&[&trusted], &["h2"]).over(stream, "shop.example").await;
    assert_eq!(Caller::two(stream).await.get("/", &[]).await.status, 200);
    assert_eq!(source.last().headers["x-forwarded-for"], "192.0.2.77");
    assert_eq!(source.last().headers["x-forwarded-proto"], "https");
}

#[tokio::test]
async fn a_gateway_without_a_usable_certificate_does_not_start() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let folder = TempDir::new().unwrap();
    let (mut tls, _) = certificate(folder.path(), "shop", &["shop.example"]);
    let (other, _) = certificate(folder.path(), "other", &["shop.example"]);
    tls.key = other.key;
    let (state, socket) = (folder.path().join("state"), folder.path().join("control.sock"));
    let service = Service { tls: vec![tls], ..service(&source.url(), &target.url()) };
    let error =
        start(Config::new("edge-1", state, socket, SECRET, vec![service])).await.unwrap_err().to_string();
    assert!(error.contains("shop.pem") && error.contains("other.key"), "{error}");
}

async fn run(program: &str, arguments: &[&str], input: &str) -> Option<String> {
    use std::process::Stdio;
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // Not installed here; the clients above cover the same paths.
    let mut child = command.spawn().ok()?;
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = within(program, child.wait_with_output()).await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Some(format!("{}{errors}", String::from_utf8_lossy(&output.stdout)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_and_openssl_are_served() {
    let (source, target) = (Upstream::start("source").await, Upstream::start("target").await);
    let folder = TempDir::new().unwrap();
    let (tls, first) = certificate(folder.path(), "shop", &["shop.example"]);
    let authority = tls.chain.display().to_string();
    let gateway = with_tls(&source, &target, vec![tls], |_| {}).await;
    let port = gateway.address.port();
    let resolve = format!("shop.example:{port}:127.0.0.1");
    let url = format!("https://shop.example:{port}/hello");
    for (protocol, version) in [("--http2", "2"), ("--http1.1", "1.1"), ("--http1.0", "1")] {
        let arguments = [
            "-sS",
            "-m",
            "20",
            "--cacert",
            &authority,
            "--resolve",
            &resolve,
            "-w",
            "|%{http_code}|%{http_version}",
            protocol,
            &url,
        ];
        let Some(said) = run("curl", &arguments, "").await else { return };
        assert_eq!(said, format!("source|200|{version}"), "{protocol}");
    }
    let connect = gateway.address.to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        let arguments = [
            "s_client",
            "-connect",
            &connect,
            "-servername",
            "shop.example",
            "-CAfile",
            &authority,
            "-alpn",
            "h2,http/1.1",
            version,
        ];
        let Some(said) = run("openssl", &arguments, "").await else { return };
        let certificate =
            CertificateDer::from_pem_slice(said.as_bytes()).expect("openssl shows the certificate");
        assert_eq!(certificate, first, "{version}");
        assert!(said.contains("ALPN protocol: h2") && said.contains("Verify return code: 0 (ok)"), "{said}");
    }
    let arguments = ["s_client", "-connect", &connect, "-tls1_1"];
    let Some(said) = run("openssl", &arguments, "").await else { return };
    assert!(!said.contains("BEGIN CERTIFICATE"), "older versions are refused: {said}");
    // The end of a connection is said, not only done: a client can tell it from a cut.
    let stream = Client::new(&[&first], &[]).connect(gateway.address, "shop.example").await;
    let (mut stream, mut answer) = (stream, Vec::new());
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n").await.unwrap();
    within("the end", stream.read_to_end(&mut answer)).await.expect("ended with a close_notify");
    assert!(answer.ends_with(b"source"));
}
