//! Upstreams, clients and a gateway for the tests. Every port is the kernel's choice; every wait is for a condition.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rehome_gateway::client::Client;
use rehome_gateway::control::{Refusal, Request as Control, Response as Reply, Status};
use rehome_gateway::{Config, Running, start};
use rehome_part::{Epoch, Side, Token};
use rehome_spec::{ClientKey, Service, Span};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

pub const SECRET: &str = "a secret of the tests";
pub const TOKEN: Token = Token(7);
const PATIENCE: Duration = Duration::from_secs(20);

/// Is this one of the long runs?
pub fn long() -> bool {
    std::env::var_os("REHOME_LONG").is_some()
}

/// Waits for a condition, not for time.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let waited = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

pub async fn within<F: Future>(what: &str, work: F) -> F::Output {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("took too long: {what}"))
}

/// What an upstream saw.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub version: http::Version,
    /// `scheme://authority`, where the request's address had one.
    pub origin: Option<String>,
}

/// A side of a service. Paths: `/wait…` answers when [`Upstream::let_go`] allows it, `/events` streams without end,
/// `/upgrade` switches to an echo, `/trailers` ends with trailers, `/login` sets a cookie, `/page` is one for browsers,
/// everything else answers at once.
pub struct Upstream {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    /// That were made to it.
    pub connections: Arc<AtomicUsize>,
    permits: Arc<Semaphore>,
}

impl Upstream {
    pub async fn start(name: &'static str) -> Self {
        Self::with_tls(name, None).await
    }

    /// Speaks HTTP/1.1 and HTTP/2, whichever a client begins with.
    pub async fn with_tls(name: &'static str, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let permits = Arc::new(Semaphore::new(0));
        let shared = (seen.clone(), permits.clone());
        let connections = Arc::<AtomicUsize>::default();
        let count = connections.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                count.fetch_add(1, Ordering::Relaxed);
                let shared = shared.clone();
                let tls = tls.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(name, request, shared.clone()));
                    let server = auto::Builder::new(TokioExecutor::new());
                    // How a connection ends is its client's concern.
                    let _ended = match tls {
                        None => server.serve_connection_with_upgrades(TokioIo::new(stream), service).await,
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            server.serve_connection_with_upgrades(TokioIo::new(stream), service).await
                        }
                    };
                });
            }
        });
        Self { address, seen, connections, permits }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn let_go(&self, count: usize) {
        self.permits.add_permits(count);
    }

    pub fn count(&self, method: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| seen.method == method).count()
    }

    pub fn paths(&self, method: &str) -> Vec<String> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|seen| seen.method == method)
            .map(|seen| seen.path.clone())
            .collect()
    }

    pub fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().expect("a request came").clone()
    }
}

/// Writes and reads as a page does, and says what it was told.
const PAGE: &str = r#"<!doctype html><title>orders</title><body><script>
const told = answer => answer.text().then(text => `${answer.status} ${text}`);
const write = fetch("/orders", { method: "POST", body: "one" }).then(told);
const read = fetch("/orders").then(told);
const events = new Promise(done => {
  const source = new EventSource("/events");
  source.onmessage = event => { done(event.data); source.close(); };
});
Promise.all([read, write, events]).then(all => { document.body.textContent = all.join("; "); });
</script>"#;

type Shared = (Arc<Mutex<Vec<Seen>>>, Arc<Semaphore>);

async fn answer(
    name: &'static str,
    mut request: Request<Incoming>,
    (seen, permits): Shared,
) -> Result<Response<BoxBody<Bytes, Infallible>>, hyper::Error> {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let (headers, version) = (request.headers().clone(), request.version());
    let origin = request.uri().scheme_str().zip(request.uri().authority());
    let origin = origin.map(|(scheme, authority)| format!("{scheme}://{authority}"));
    let upgrade = headers.contains_key("upgrade").then(|| hyper::upgrade::on(&mut request));
    let body = request.into_body().collect().await?.to_bytes();
    seen.lock().unwrap().push(Seen { method, path: path.clone(), headers, body, version, origin });
    if path.starts_with("/wait") {
        permits.acquire().await.unwrap().forget();
    }
    let response = Response::builder().header("x-side", name).header("keep-alive", "timeout=5");
    let whole = |text: &'static str| Full::new(Bytes::from_static(text.as_bytes())).boxed();
    let response = match (path.as_str(), upgrade) {
        ("/upgrade", Some(upgrade)) => {
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgrade.await.unwrap());
                io.write_all(name.as_bytes()).await.unwrap();
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = io.read(&mut buffer).await {
                    io.write_all(&buffer[..read]).await.unwrap();
                }
            });
            response.status(101).header("connection", "upgrade").header("upgrade", "echo").body(whole(""))
        }
        ("/events", _) => {
            let first = futures::stream::once(async { Ok(Frame::data(Bytes::from_static(b"data: 1\n\n"))) });
            let stream = futures::StreamExt::chain(first, futures::stream::pending());
            response.header("content-type", "text/event-stream").body(BodyExt::boxed(StreamBody::new(stream)))
        }
        ("/trailers", _) => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "42".parse().unwrap());
            let frames = [Ok(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(trailers))];
            let stream = futures::stream::iter(frames);
            response.header("trailer", "x-sum").body(BodyExt::boxed(StreamBody::new(stream)))
        }
        ("/page", _) => response.header("content-type", "text/html").body(whole(PAGE)),
        ("/login", _) => response.header("set-cookie", "sid=new").body(whole(name)),
        ("/broken", _) => response.status(500).body(whole(name)),
        ("/large", _) => response.body(Full::new(Bytes::from(vec![b'x'; 3 << 20])).boxed()),
        _ => response.body(whole(name)),
    };
    Ok(response.unwrap())
}

/// An upstream that does with every connection what the test says.
pub async fn raw_upstream<F, W>(work: W) -> String
where
    W: Fn(TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    raw_upstream_until(usize::MAX, work).await
}

/// The same for so many connections; afterwards nobody listens there.
pub async fn raw_upstream_until<F, W>(connections: usize, work: W) -> String
where
    W: Fn(TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for _ in 0..connections {
            let Ok((stream, _)) = listener.accept().await else { return };
            tokio::spawn(work(stream));
        }
    });
    format!("http://{address}")
}

/// Reads a request's head from a raw connection; empty when the peer is gone.
pub async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0; 1];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte).await {
            Ok(1) => head.push(byte[0]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// An address where nobody listens. It stays taken: a freed port would be given to the next listener, perhaps to the gateway
/// under test, which would then be its own upstream.
pub async fn nowhere() -> String {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let socket = Box::leak(Box::new(socket));
    format!("http://{}", socket.local_addr().unwrap())
}

pub fn service(source: &str, target: &str) -> Service {
    Service {
        name: "api".into(),
        listen: "127.0.0.1:0".into(),
        source: source.into(),
        target: target.into(),
        source_peers: Vec::new(),
        target_peers: Vec::new(),
        upstream_http: rehome_spec::UpstreamHttp::One,
        upstream_ca: None,
        health: None,
        reads: ["GET", "HEAD", "OPTIONS"].map(String::from).to_vec(),
        uses: vec!["media".into()],
        max_staleness: Span::from_millis(60_000),
        clients: ["header:authorization", "header:cookie", "address"]
            .map(|key| ClientKey(key.into()))
            .to_vec(),
        upstream_idle: Span::from_millis(4_000),
        upstream_timeout: Span::from_millis(20_000),
        tls: vec![],
        hosts: vec![],
        paths: vec![],
        proxy_protocol: false,
        trusted_proxies: vec![],
        max_body: None,
        connections_per_client: None,
        shadow: rehome_spec::Shadow::default(),
    }
}

/// A gateway with its control client.
pub struct Gateway {
    pub running: Running,
    pub control: Client,
    pub address: SocketAddr,
    pub config: Config,
    pub folder: Arc<TempDir>,
}

impl Gateway {
    pub async fn start(service: Service) -> Self {
        Self::with(service, |_| {}).await
    }

    pub async fn with(service: Service, change: impl FnOnce(&mut Config)) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let (state, socket) = (folder.path().join("state"), folder.path().join("control.sock"));
        let mut config = Config::new("edge-1", state, socket, SECRET, vec![service]);
        change(&mut config);
        let gateway = Self::again(config, folder).await;
        gateway.done(Control::Enroll { run: "shop".into(), token: TOKEN }).await;
        gateway
    }

    /// Starts on a folder that may hold the state of one before.
    pub async fn again(config: Config, folder: Arc<TempDir>) -> Self {
        let running = start(config.clone()).await.unwrap();
        let control = Client::connect(&config.control, SECRET, "test").await.unwrap();
        let control = control.with_timeout(PATIENCE);
        let address = running.address("api").or(running.addresses.values().next().copied()).unwrap();
        Self { address, running, control, config, folder }
    }

    /// Ends this process's gateway at once and starts the next on the same folder.
    pub async fn restart(self) -> Self {
        let (config, folder) = (self.config.clone(), self.folder.clone());
        self.running.drain(Duration::ZERO).await;
        Self::again(config, folder).await
    }

    pub async fn call(&self, request: Control) -> Reply {
        self.control.call(request).await.unwrap()
    }

    pub async fn done(&self, request: Control) {
        let shown = format!("{request:?}");
        assert_eq!(self.call(request).await, Reply::Done, "{shown}");
    }

    pub async fn refused(&self, request: Control) -> Refusal {
        let shown = format!("{request:?}");
        match self.call(request).await {
            Reply::Refused { why, .. } => why,
            other => panic!("{shown} was answered with {other:?}"),
        }
    }

    pub async fn status(&self) -> Status {
        match self.call(Control::Status).await {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub async fn weight(&self, percent: u8) {
        self.done(Control::Weight { service: "api".into(), percent, token: TOKEN }).await;
    }

    /// The other side has every write acknowledged until now.
    pub async fn fresh(&self) {
        let through = Some(self.status().await.now);
        self.done(Control::Freshness { service: "api".into(), through, token: TOKEN }).await;
    }

    pub fn arm(epoch: u64, lease_ms: u64) -> Control {
        Control::Arm { epoch: Epoch(epoch), lease_ms, ask: vec![], ask_secret: "ask".into(), token: TOKEN }
    }

    pub async fn hold(&self, epoch: u64) -> Reply {
        self.hold_for(epoch, 10_000).await
    }

    pub async fn hold_for(&self, epoch: u64, in_flight_ms: u64) -> Reply {
        let sessions = rehome_gateway::control::SessionRule::Wait;
        self.call(Control::Hold { epoch: Epoch(epoch), in_flight_ms, sessions, token: TOKEN }).await
    }

    pub async fn settle(&self, epoch: u64, owner: Side) {
        self.done(Control::Settle { epoch: Epoch(epoch), owner, token: TOKEN }).await;
    }

    pub async fn waiting(&self, count: u64) {
        eventually("so many writes wait", || async move { self.status().await.held.waiting == count }).await;
    }

    /// How many were turned away for this reason; needs `config.metrics`.
    pub async fn turned_away(&self, reason: &str) -> u64 {
        let begin = format!("rehome_turned_away_total{{reason=\"{reason}\"}} ");
        let page = Caller::connect(self.running.metrics.unwrap()).await.get("/metrics", &[]).await;
        let page = String::from_utf8_lossy(&page.body).into_owned();
        let count = page.lines().find_map(|line| line.strip_prefix(&begin));
        count.unwrap_or_else(|| panic!("no {begin} in {page}")).parse().unwrap()
    }

    pub async fn caller(&self) -> Caller {
        Caller::connect(self.address).await
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// What a client got.
#[derive(Debug, Clone)]
pub struct Got {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Got {
    pub fn side(&self) -> &str {
        self.headers.get("x-side").map_or("", |value| value.to_str().unwrap())
    }
}

/// One HTTP/1.1 or HTTP/2 connection of a client.
pub enum Caller {
    One(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    Two(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
}

impl Caller {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::one(TcpStream::connect(address).await.unwrap()).await
    }

    pub async fn connect_h2(address: SocketAddr) -> Self {
        Self::two(TcpStream::connect(address).await.unwrap()).await
    }

    /// HTTP/1.1 on a stream of one's own.
    pub async fn one<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Self {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Self::One(sender)
    }

    /// HTTP/2 on a stream of one's own.
    pub async fn two<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Self {
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        Self::Two(sender)
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Got, hyper::Error> {
        let response = match self {
            Self::One(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Two(sender) => sender.clone().send_request(request).await?,
        };
        let (parts, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        Ok(Got { status: parts.status, headers: parts.headers, body: body.to_bytes(), trailers })
    }

    pub async fn call(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Got {
        let request = self.request(method, path, headers, body);
        within(path, self.send(request)).await.unwrap()
    }

    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::builder().method(method);
        request = match self {
            Self::One(_) => request.uri(path).header("host", "shop.example"),
            Self::Two(_) => request.uri(format!("http://shop.example{path}")),
        };
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(body.into())).unwrap()
    }

    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Got {
        self.call("GET", path, headers, "").await
    }

    pub async fn post(&mut self, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Got {
        self.call("POST", path, headers, body).await
    }
}

/// Sends bytes and reads until the peer closes.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _end = within("the end of a raw connection", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Kilobytes of this process in memory, clients of the test included.
pub fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
