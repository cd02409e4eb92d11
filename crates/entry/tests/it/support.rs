//! Programs, an application, something that answers like a gateway, and clients that count what failed.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rehome_entry::address::Address;
use rehome_entry::service::Service;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

/// A program of the system; `None` (said loudly) where it is missing and not required.
pub fn tool(name: &str) -> Option<PathBuf> {
    let system = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&system).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    let found = places.map(|folder| folder.join(name)).find(|path| path.exists());
    if found.is_none() {
        assert!(
            std::env::var_os("REHOME_REQUIRE_TOOLS").is_none(),
            "{name} is missing: run scripts/tools.sh"
        );
        eprintln!("SKIPPED: {name} is missing; run scripts/tools.sh");
    }
    found
}

/// A port that nobody listens on right now. Programs that cannot choose one themselves get it.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub async fn until(what: &str, mut ready: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !ready().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what} did not come");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A program that ends with its test.
pub struct Program(pub Child);

impl Program {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.pid()).unwrap();
        // nginx and HAProxy end their workers on TERM, not on KILL.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One request as a server saw it.
#[derive(Debug, Clone)]
pub struct Got {
    pub method: Method,
    pub path: String,
    pub host: String,
    pub id: Option<String>,
}

/// A server that answers with its own name; as a gateway it adds what the gateway adds.
pub struct Origin {
    pub address: SocketAddr,
    pub got: Arc<Mutex<Vec<Got>>>,
    /// Answers 503 while set.
    pub broken: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Origin {
    pub async fn application(name: &'static str) -> Self {
        Self::start(name, false).await
    }

    pub async fn gateway() -> Self {
        Self::start("gateway", true).await
    }

    async fn start(name: &'static str, is_gateway: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (got, broken) = (Arc::<Mutex<Vec<Got>>>::default(), Arc::<AtomicBool>::default());
        let (seen, fails) = (Arc::clone(&got), Arc::clone(&broken));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, fails) = (Arc::clone(&seen), Arc::clone(&fails));
                let answer = move |request| {
                    answer(request, name, is_gateway, Arc::clone(&seen), fails.load(Ordering::SeqCst))
                };
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service_fn(answer)),
                );
            }
        });
        Self { address, got, broken, task }
    }

    pub fn url(&self) -> Address {
        Address::parse(&format!("http://{}", self.address)).unwrap()
    }

    pub fn count(&self, method: Method) -> usize {
        self.got.lock().unwrap().iter().filter(|got| got.method == method).count()
    }
}

async fn answer(
    request: Request<Incoming>,
    name: &'static str,
    is_gateway: bool,
    seen: Arc<Mutex<Vec<Got>>>,
    fails: bool,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let text =
        |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let id = text("x-request-id");
    let got = Got {
        method: request.method().clone(),
        path: request.uri().to_string(),
        host: text("host").unwrap_or_default(),
        id: id.clone(),
    };
    seen.lock().unwrap().push(got.clone());
    request.into_body().collect().await?;
    let mut response = Response::builder().status(if fails { 503 } else { 200 });
    if got.path.ends_with("/moved") {
        let to = format!("http://{}/there", got.host);
        response = response.status(StatusCode::FOUND).header(header::LOCATION, to);
    }
    if is_gateway {
        response = response.header(header::VIA, "1.1 rehome");
        if let Some(id) = id {
            response = response.header("x-request-id", id);
        }
    }
    Ok(response.body(Full::from(name)).unwrap())
}

/// A service between these, with the gateway believing the entry.
pub fn service(source: &Origin, target: &Origin, gateway: &Origin) -> Service {
    Service {
        name: "shop".into(),
        source: vec![source.url()],
        target: vec![target.url()],
        gateway: gateway.url(),
        health: None,
        hold_age: Duration::from_secs(15),
        hold_requests: 4_096,
        trusts_entry: Some(true),
        proxy_protocol: false,
        http2: false,
    }
}

/// One request on a connection of its own: status, headers, body.
pub async fn fetch(method: Method, address: &str, host: &str, path: &str) -> Result<Fetched, String> {
    let mut line = Line::open(address).await?;
    line.send(method, host, path).await
}

#[derive(Debug, Clone)]
pub struct Fetched {
    pub status: u16,
    pub location: Option<String>,
    pub body: String,
}

/// A kept connection.
pub struct Line(hyper::client::conn::http1::SendRequest<Full<Bytes>>);

impl Line {
    pub async fn open(address: &str) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    pub async fn send(&mut self, method: Method, host: &str, path: &str) -> Result<Fetched, String> {
        self.exchange(method, host, path, "").await
    }

    /// As a client with a name of its own.
    pub async fn send_as(&mut self, method: Method, client: &str) -> Result<Fetched, String> {
        self.exchange(method, "shop.example", "/", client).await
    }

    async fn exchange(
        &mut self,
        method: Method,
        host: &str,
        path: &str,
        client: &str,
    ) -> Result<Fetched, String> {
        self.0.ready().await.map_err(|error| error.to_string())?;
        let body = if method == Method::GET { Bytes::new() } else { Bytes::from_static(b"body") };
        let request = Request::builder().method(method).uri(path).header(header::HOST, host);
        let request = request.header("x-client", client).body(Full::from(body)).unwrap();
        let answered = tokio::time::timeout(Duration::from_secs(30), self.0.send_request(request)).await;
        let response = answered.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())?;
        let location =
            response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok(Fetched { status, location, body: String::from_utf8_lossy(&body).into_owned() })
    }

    /// Whether the server has closed it, as far as is known here.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

#[derive(Debug, Default)]
pub struct Tally {
    pub answered: AtomicU64,
    /// Answers of 500 and more.
    pub failed: AtomicU64,
    /// Connections that ended under a request.
    pub reset: AtomicU64,
}

/// Clients that ask without a pause over kept connections until stopped.
pub struct Load {
    pub tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    tasks: tokio::task::JoinSet<()>,
}

impl Load {
    pub fn start(address: SocketAddr, clients: usize, method: &Method) -> Self {
        let (tally, stop) = (Arc::<Tally>::default(), Arc::<AtomicBool>::default());
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..clients {
            let (tally, stop, method) = (Arc::clone(&tally), Arc::clone(&stop), method.clone());
            tasks.spawn(async move {
                let mut line = None;
                while !stop.load(Ordering::SeqCst) {
                    let mut open = match line.take() {
                        Some(line) => line,
                        None => match Line::open(&address.to_string()).await {
                            Ok(line) => line,
                            Err(_) => {
                                tally.reset.fetch_add(1, Ordering::SeqCst);
                                continue;
                            }
                        },
                    };
                    match open.send(method.clone(), "shop.example", "/").await {
                        Ok(answer) if answer.status < 500 => {
                            tally.answered.fetch_add(1, Ordering::SeqCst);
                            line = Some(open).filter(|line| !line.is_closed());
                        }
                        Ok(_) => {
                            tally.failed.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(_) => {
                            tally.reset.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
            });
        }
        Self { tally, stop, tasks }
    }

    pub fn answered(&self) -> u64 {
        self.tally.answered.load(Ordering::SeqCst)
    }

    pub async fn end(self) -> Arc<Tally> {
        self.stop.store(true, Ordering::SeqCst);
        self.tasks.join_all().await;
        self.tally
    }
}

pub fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}
