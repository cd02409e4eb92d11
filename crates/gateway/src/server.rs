//! Listeners, client connections and the life of the whole gateway: start, drain, end. Speaks HTTP/1.1 and HTTP/2 (prior
//! knowledge) on the same port. Never looks into a request; [`crate::forward`] does.

use crate::access_log::AccessLog;
use crate::asking;
use crate::body::ResponseBody;
use crate::clock::{BootClock, ProcessClock};
use crate::commands;
use crate::config::{self, Config, GatewayError, Sabotage};
use crate::core::Core;
use crate::forward;
use crate::framing::Watched;
use crate::gate::Gate;
use crate::grant::Grant;
use crate::health;
use crate::hold::{self, Bounds};
use crate::metrics;
use crate::service::{Service, Shared};
use crate::state_file::StateFile;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The largest head of a request or an answer, and the buffer of one connection.
pub(crate) const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 128;
/// How long a client may take to send a head, idle time on a kept connection included.
const HEAD_PATIENCE: Duration = Duration::from_secs(75);
/// How long a new connection may stay without a first byte.
const FIRST_BYTE_PATIENCE: Duration = Duration::from_secs(30);
const STREAMS: u32 = 512;
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const METRICS_CONNECTIONS: usize = 16;

/// A gateway that serves. Dropped, it ends at once; [`Running::drain`] is the polite way.
#[derive(Debug)]
pub struct Running {
    /// Where each service really listens (the kernel chose the port when `:0` was asked for).
    pub addresses: BTreeMap<String, SocketAddr>,
    /// Where the metrics are.
    pub metrics: Option<SocketAddr>,
    control: PathBuf,
    core: Arc<Core>,
    log: Option<AccessLog>,
    life: Life,
}

/// How a drain went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Client connections and sessions that were cut at the deadline.
    pub cut: usize,
}

/// The three steps of ending, and what must end at each.
#[derive(Debug, Clone, Default)]
struct Life {
    /// No new connections.
    closing: CancellationToken,
    /// Open requests are given up.
    kill: CancellationToken,
    /// Control socket, health, release: everything stops.
    stop: CancellationToken,
    traffic: TaskTracker,
    machinery: TaskTracker,
}

impl Life {
    /// Runs until the last step.
    fn keep(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.machinery.spawn(async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

/// Starts a gateway: reads its state, listens, and returns once everything is ready.
///
/// # Errors
/// A configuration that cannot work, an address or socket in use, a damaged epoch file.
pub async fn start(config: Config) -> Result<Running, GatewayError> {
    let plans = config::check(&config)?;
    let (file, saved) = StateFile::open(&config.state_dir)?;
    let grant = Grant::wake(saved);
    let (clock, boot, life) = (ProcessClock::start(), BootClock::default(), Life::default());
    let log = config.access_log.as_deref().map(AccessLog::open).transpose()?;
    let gate = Arc::new(Gate::new(&grant, boot.clone(), Bounds::from(&config.hold)));
    let shared = Shared {
        gate: gate.clone(),
        clock,
        sabotage: Sabotage::parse(&config.sabotage)?,
        log: log.clone(),
        tasks: life.traffic.clone(),
        kill: life.kill.clone(),
    };
    if shared.sabotage.any() {
        tracing::warn!(sabotage = ?shared.sabotage, "this gateway breaks its promises on purpose");
    }
    let mut services = Vec::new();
    let mut listeners = Vec::new();
    let mut addresses = BTreeMap::new();
    for plan in plans {
        let (listener, address) = bind(&format!("service `{}`", plan.name), &plan.listen).await?;
        addresses.insert(plan.name.clone(), address);
        let service = Arc::new(Service::new(plan, shared.clone()));
        listeners.push((listener, service.clone()));
        services.push((service, address.to_string()));
    }
    let metrics = match config.metrics {
        Some(address) => Some(bind("the metrics", &address.to_string()).await?),
        None => None,
    };
    let control = commands::listen(&config.control)?;
    tracing::info!(name = config.name, epoch = %grant.saved.epoch, owner = %grant.saved.owner, mode = ?grant.mode, "start");
    let core = Arc::new(Core::new(config.name.clone(), clock, boot, gate.clone(), services, file, grant));

    life.keep(commands::serve(control, core.clone(), config.secret.as_str().into()));
    life.keep(asking::ask_when_in_doubt(core.clone()));
    life.keep(health::watch(core.clone()));
    let intender = core.clone();
    life.keep(hold::release(gate, move || {
        let core = intender.clone();
        async move { core.intend().await }
    }));
    let metrics_address = metrics.as_ref().map(|(_, address)| *address);
    if let Some((listener, _)) = metrics {
        life.keep(serve_metrics(listener, core.clone()));
    }
    let places = Arc::new(Semaphore::new(config.hold.connections.max(1) as usize));
    for (listener, service) in listeners {
        life.traffic.spawn(accept(listener, service, places.clone(), life.clone()));
    }
    Ok(Running { addresses, metrics: metrics_address, control: config.control, core, log, life })
}

async fn bind(what: &str, address: &str) -> Result<(TcpListener, SocketAddr), GatewayError> {
    let error = |source| GatewayError::Listen { what: what.into(), address: address.into(), source };
    let listener = TcpListener::bind(address).await.map_err(error)?;
    let bound = listener.local_addr().map_err(error)?;
    Ok((listener, bound))
}

impl Running {
    /// The only service's address; handy where there is one.
    pub fn address(&self, service: &str) -> Option<SocketAddr> {
        self.addresses.get(service).copied()
    }

    /// What [`crate::control::Request::Status`] answers.
    pub async fn status(&self) -> crate::control::Status {
        self.core.status().await
    }

    /// Waits until the gateway was told to end and all client connections are gone.
    pub async fn wait(&self) {
        self.life.closing.cancelled().await;
        self.life.traffic.wait().await;
    }

    /// Ends politely: no new connections; open requests finish, also held ones that are released in time; what is left at the
    /// deadline is cut. The control socket answers until the last request is done.
    pub async fn drain(self, deadline: Duration) -> Drained {
        let life = self.life.clone();
        life.closing.cancel();
        life.traffic.close();
        let mut cut = 0;
        if tokio::time::timeout(deadline, life.traffic.wait()).await.is_err() {
            cut = self.core.gate.connections.load(Ordering::Relaxed) as usize;
            // Held writes get their 503 before their connections go.
            self.core.gate.line.dismiss();
            let _done = tokio::time::timeout(Duration::from_millis(200), life.traffic.wait()).await;
            life.kill.cancel();
            life.traffic.wait().await;
        }
        life.stop.cancel();
        life.machinery.close();
        life.machinery.wait().await;
        if let Some(log) = &self.log {
            log.close().await;
        }
        let _gone = std::fs::remove_file(&self.control);
        Drained { cut }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.life.closing.cancel();
        self.life.kill.cancel();
        self.life.stop.cancel();
    }
}

async fn accept(listener: TcpListener, service: Arc<Service>, places: Arc<Semaphore>, life: Life) {
    loop {
        let accepted = async {
            // At the bound nobody is accepted: new clients wait in the kernel's queue.
            let place = places.clone().acquire_owned().await.expect("this semaphore is never closed");
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = life.closing.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (service, life) = (service.clone(), life.clone());
                life.traffic.clone().spawn(async move {
                    let count = &service.gate.clone().connections;
                    count.fetch_add(1, Ordering::Relaxed);
                    if let Err(error) = client(stream, peer, service, &life).await {
                        tracing::debug!(%error, %peer, "a client connection ended");
                    }
                    count.fetch_sub(1, Ordering::Relaxed);
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

type Trouble = Box<dyn std::error::Error + Send + Sync>;

async fn client(
    stream: TcpStream,
    peer: SocketAddr,
    service: Arc<Service>,
    life: &Life,
) -> Result<(), Trouble> {
    stream.set_nodelay(true)?;
    let first = tokio::time::timeout(FIRST_BYTE_PATIENCE, speaks_http2(&stream));
    let is_http2 = tokio::select! {
        first = first => first??,
        () = life.closing.cancelled() => return Ok(()),
    };
    if is_http2 {
        client_http2(stream, peer, service, life).await
    } else {
        client_http1(stream, peer, service, life).await
    }
}

/// Looks at the first bytes without taking them: HTTP/2 with prior knowledge begins with a preface, which is no request. All
/// of it must come in time, since h2 waits for its end without a limit.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut first = [0_u8; PREFACE.len()];
    let mut pause = Duration::from_millis(1);
    loop {
        let seen = stream.peek(&mut first).await?;
        let seen = &first[..seen];
        if seen.len() == PREFACE.len() || !PREFACE.starts_with(seen) {
            return Ok(seen == PREFACE);
        }
        if seen.is_empty() {
            return Ok(false);
        }
        // Bytes that were seen count as ready for ever, so nothing wakes us up when more come.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

async fn client_http1(
    stream: TcpStream,
    peer: SocketAddr,
    service: Arc<Service>,
    life: &Life,
) -> Result<(), Trouble> {
    let (stream, framing) = Watched::new(stream);
    let handler = service_fn(move |request: Request<Incoming>| {
        let (service, framing) = (service.clone(), framing.clone());
        async move {
            if framing.next_is_ambiguous() {
                return Ok::<_, Infallible>(ambiguous());
            }
            let response = forward::serve(service, peer.ip(), request).await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                framing.stop();
            }
            Ok(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), handler)
        .with_upgrades();
    let mut connection = pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return Ok(result?),
        () = life.closing.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        result = connection => Ok(result?),
        () = life.kill.cancelled() => Ok(()),
    }
}

async fn client_http2(
    stream: TcpStream,
    peer: SocketAddr,
    service: Arc<Service>,
    life: &Life,
) -> Result<(), Trouble> {
    let handler = service_fn(move |request: Request<Incoming>| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(forward::serve(service, peer.ip(), request).await) }
    });
    let connection = http2::Builder::new(Streams(life.clone()))
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(Duration::from_secs(30))
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(stream), handler);
    let mut connection = pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return Ok(result?),
        () = life.closing.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        result = connection => Ok(result?),
        () = life.kill.cancelled() => Ok(()),
    }
}

/// Where the streams of an HTTP/2 connection run: they end with the process like everything else.
#[derive(Debug, Clone)]
struct Streams(Life);

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let kill = self.0.kill.clone();
        self.0.traffic.spawn(async move {
            tokio::select! {
                _ = stream => {}
                () = kill.cancelled() => {}
            }
        });
    }
}

/// RFC 9112 section 6.3: a request with two lengths is an attempt to smuggle another; the connection ends with it.
fn ambiguous() -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::text("a request has one length\n"));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn serve_metrics(listener: TcpListener, core: Arc<Core>) {
    let places = Arc::new(Semaphore::new(METRICS_CONNECTIONS));
    let mut callers = tokio::task::JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("this semaphore is never closed");
        while callers.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let core = core.clone();
        callers.spawn(async move {
            let handler = service_fn(|request: Request<Incoming>| {
                let response = metrics_page(&core, request.method(), request.uri().path());
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(FIRST_BYTE_PATIENCE)
                .serve_connection(TokioIo::new(stream), handler);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a metrics connection ended");
            }
            drop(place);
        });
    }
}

fn metrics_page(core: &Core, method: &Method, path: &str) -> Response<ResponseBody> {
    if !matches!(*method, Method::GET | Method::HEAD) || path != "/metrics" {
        let mut response = Response::new(ResponseBody::text("only GET /metrics is here\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let mut response = Response::new(ResponseBody::text(metrics::text(core)));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
