//! The life of the whole gateway: start, reload, drain, end; and its metrics page. Client connections are
//! [`crate::listener`]'s.

use crate::access_log::AccessLog;
use crate::asking;
use crate::body::ResponseBody;
use crate::clock::{BootClock, ProcessClock};
use crate::commands;
use crate::config::{self, Config, GatewayError, Sabotage};
use crate::core::{Behind, Core};
use crate::descriptors;
use crate::gate::Gate;
use crate::grant::Grant;
use crate::health;
use crate::hold::{self, Bounds};
use crate::limits::Entrance;
use crate::listener::{self, Listener};
use crate::metrics;
use crate::pgbouncer::Driver;
use crate::postgres;
use crate::remote;
use crate::service::{Service, Shared};
use crate::shed::Shed;
use crate::state_file::StateFile;
use crate::tls::Certificates;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
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
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a new connection may stay without a first byte.
pub(crate) const FIRST_BYTE_PATIENCE: Duration = Duration::from_secs(30);
const METRICS_CONNECTIONS: usize = 16;
/// Clients that wait to be accepted; the kernel's own limit (`net.core.somaxconn`) is 4096 where nobody changed it.
const BACKLOG: u32 = 4096;

/// A gateway that serves. Dropped, it ends at once; [`Running::drain`] is the polite way.
#[derive(Debug)]
pub struct Running {
    /// Where each service really listens (the kernel chose the port when `:0` was asked for).
    pub addresses: BTreeMap<String, SocketAddr>,
    /// Where the metrics are.
    pub metrics: Option<SocketAddr>,
    /// Where an engine on another machine is listened to.
    pub remote: Option<SocketAddr>,
    control: PathBuf,
    core: Arc<Core>,
    log: Option<AccessLog>,
    /// By listener that speaks TLS.
    certificates: Vec<Arc<Certificates>>,
    life: Life,
}

/// How a drain went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Client connections and sessions that were cut at the deadline.
    pub cut: usize,
}

/// The three steps of ending, and what must end at each.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    /// No new connections.
    pub closing: CancellationToken,
    /// Open requests are given up.
    pub kill: CancellationToken,
    /// Control socket, health, release: everything stops.
    pub stop: CancellationToken,
    /// Before all of them: clients are asked to come again, and may.
    pub shed: Arc<Shed>,
    pub traffic: TaskTracker,
    pub machinery: TaskTracker,
}

impl Life {
    fn new() -> Self {
        let closing = CancellationToken::new();
        Self {
            shed: Arc::new(Shed::new(&closing)),
            closing,
            kill: CancellationToken::new(),
            stop: CancellationToken::new(),
            traffic: TaskTracker::new(),
            machinery: TaskTracker::new(),
        }
    }

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
    descriptors::make_room(config.hold.connections);
    let (file, saved) = StateFile::open(&config.state_dir)?;
    let grant = Grant::wake(saved);
    let (clock, boot, life) = (ProcessClock::start(), BootClock::default(), Life::new());
    let log = config.access_log.as_deref().map(AccessLog::open).transpose()?;
    let gate = Arc::new(Gate::new(&grant, boot.clone(), Bounds::from(&config.hold)));
    let shared = shared(&config, &gate, clock, log.clone(), &life)?;
    let running: Vec<_> =
        plans.into_iter().map(|plan| Arc::new(Service::new(plan, shared.clone()))).collect();
    let doors = open_doors(&config, &running).await?;
    let (mut addresses, services) = where_they_are(&running, &doors);
    let remote = match &config.remote {
        Some(remote) => Some(remote::Door::open(remote, shared.entrance.clone()).await?),
        None => None,
    };
    let mut certificates: Vec<_> = doors.iter().filter_map(|door| door.certificates.clone()).collect();
    certificates.extend(remote.as_ref().map(|door| door.certificates.clone()));
    let metrics = match config.metrics {
        Some(address) => Some(bind("the metrics", &address.to_string()).await?),
        None => None,
    };
    let control = commands::listen(&config.control)?;
    tracing::info!(name = config.name, epoch = %grant.saved.epoch, owner = %grant.saved.owner, mode = ?grant.mode, "start");
    let (name, clocks, shed) = (config.name.clone(), (clock, boot), life.shed.clone());
    let bouncers: Vec<_> =
        config.bouncers.iter().cloned().map(|one| Arc::new(Driver::new(one, gate.clone()))).collect();
    let front = open_front_doors(&config, &gate, &shared.entrance).await?;
    addresses.extend(front.iter().map(|(_, door)| door.place()));
    certificates.extend(front.iter().filter_map(|(_, door)| door.certificates.clone()));
    let front_doors = front.iter().map(|(_, door)| door.clone()).collect();
    let behind = Behind { services, bouncers: bouncers.clone(), doors: front_doors };
    let core = Arc::new(Core::new(name, clocks, gate.clone(), behind, shed, file, grant));

    life.keep(commands::serve(control, core.clone(), config.secret.as_str().into()));
    let remote_address = remote.as_ref().map(|door| door.address);
    if let Some(door) = remote {
        life.keep(commands::serve_remote(door, core.clone(), config.secret.as_str().into()));
    }
    life.keep(asking::ask_when_in_doubt(core.clone()));
    life.keep(health::watch(core.clone()));
    for bouncer in bouncers {
        life.keep(bouncer.run());
    }
    life.keep(health::keep_warm(core.clone()));
    life.keep(watch_certificates(certificates.clone(), config.patience.certificates));
    let intender = core.clone();
    life.keep(hold::release(gate, move || {
        let core = intender.clone();
        async move { core.intend().await }
    }));
    let metrics_address = metrics.as_ref().map(|(_, address)| *address);
    if let Some((listener, _)) = metrics {
        life.keep(serve_metrics(listener, core.clone(), life.closing.clone()));
    }
    let places = Arc::new(Semaphore::new(config.hold.connections.max(1) as usize));
    for Door { socket, listener, .. } in doors {
        let socket = Arc::new(socket);
        life.shed.watch(&socket);
        life.traffic.spawn(listener::accept(socket, listener, places.clone(), life.clone()));
    }
    for (socket, door) in front {
        let socket = Arc::new(socket);
        life.shed.watch(&socket);
        life.keep(door.clone().look());
        life.traffic.spawn(door.accept(socket, places.clone(), life.clone()));
    }
    Ok(Running {
        addresses,
        metrics: metrics_address,
        remote: remote_address,
        control: config.control,
        core,
        log,
        certificates,
        life,
    })
}

/// What all services have in common.
fn shared(
    config: &Config,
    gate: &Arc<Gate>,
    clock: ProcessClock,
    log: Option<AccessLog>,
    life: &Life,
) -> Result<Shared, GatewayError> {
    let sabotage = Sabotage::parse(&config.sabotage)?;
    if sabotage.any() {
        tracing::warn!(?sabotage, "this gateway breaks its promises on purpose");
    }
    Ok(Shared {
        gate: gate.clone(),
        clock,
        sabotage,
        log,
        tasks: life.traffic.clone(),
        kill: life.kill.clone(),
        patience: config.patience,
        entrance: Arc::<Entrance>::default(),
    })
}

/// A listener that is bound.
struct Door {
    socket: TcpListener,
    address: SocketAddr,
    listener: Arc<Listener>,
    /// Indices of its services.
    members: Vec<usize>,
    certificates: Option<Arc<Certificates>>,
}

/// Makes every listener before the first one is bound.
async fn open_doors(config: &Config, running: &[Arc<Service>]) -> Result<Vec<Door>, GatewayError> {
    let mut made = Vec::new();
    for (listen, members) in listener::by_address(&config.services) {
        let here: Vec<_> =
            members.iter().map(|index| (config.services[*index].clone(), running[*index].clone())).collect();
        let opened = tokio::task::spawn_blocking(move || Listener::new(&here)).await;
        let (listener, certificates) = opened.map_err(|error| GatewayError::Config(error.to_string()))??;
        made.push((listen, members, Arc::new(listener), certificates));
    }
    let mut doors = Vec::new();
    for (listen, members, listener, certificates) in made {
        let names: Vec<String> =
            members.iter().map(|index| format!("`{}`", running[*index].plan.name)).collect();
        let (socket, address) = bind(&format!("service {}", names.join(", ")), &listen).await?;
        doors.push(Door { socket, address, listener, members, certificates });
    }
    Ok(doors)
}

/// Binds the doors for clients of databases.
async fn open_front_doors(
    config: &Config,
    gate: &Arc<Gate>,
    entrance: &Arc<Entrance>,
) -> Result<Vec<(TcpListener, Arc<postgres::Door>)>, GatewayError> {
    let mut doors = Vec::new();
    for plan in config.front_doors.clone() {
        let (socket, address) = bind(&format!("clients of database `{}`", plan.name), &plan.listen).await?;
        let (gate, entrance) = (gate.clone(), entrance.clone());
        let opened =
            tokio::task::spawn_blocking(move || postgres::Door::new(plan, address, gate, entrance)).await;
        let door = opened.map_err(|error| GatewayError::Config(error.to_string()))??;
        doors.push((socket, Arc::new(door)));
    }
    Ok(doors)
}

type Places = (BTreeMap<String, SocketAddr>, Vec<(Arc<Service>, String)>);

/// Each service with the address it really listens on, in the order of the file.
fn where_they_are(running: &[Arc<Service>], doors: &[Door]) -> Places {
    let address = |index: usize| {
        let mut doors = doors.iter().filter(|door| door.members.contains(&index));
        doors.next().expect("every service is behind one door").address
    };
    let places = running.iter().enumerate().map(|(index, service)| (service.clone(), address(index)));
    let by_name = places.clone().map(|(service, address)| (service.plan.name.clone(), address)).collect();
    (by_name, places.map(|(service, address)| (service, address.to_string())).collect())
}

/// Sees new certificate files without being told.
async fn watch_certificates(all: Vec<Arc<Certificates>>, period: Duration) {
    if all.is_empty() {
        return;
    }
    loop {
        tokio::time::sleep(period).await;
        let all = all.clone();
        // It fails only when the process ends.
        let _ended =
            tokio::task::spawn_blocking(move || all.iter().for_each(|one| one.reload_if_changed())).await;
    }
}

async fn bind(what: &str, address: &str) -> Result<(TcpListener, SocketAddr), GatewayError> {
    let error = |source| GatewayError::Listen { what: what.into(), address: address.into(), source };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for found in tokio::net::lookup_host(address).await.map_err(error)? {
        match listen(found).and_then(|listener| Ok((listener.local_addr()?, listener))) {
            Ok((bound, listener)) => return Ok((listener, bound)),
            Err(failed) => last = failed,
        }
    }
    Err(error(last))
}

/// With a longer queue than the runtime's own of 128: a burst of clients that does not fit is partly reset by the kernel.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Running {
    /// The only service's address; handy where there is one.
    pub fn address(&self, service: &str) -> Option<SocketAddr> {
        self.addresses.get(service).copied()
    }

    /// Reads all certificates again. Open connections go on; new handshakes get the new ones. A pair that cannot be used is
    /// warned of, and the one before it stays.
    pub async fn reload(&self) {
        let all = self.certificates.clone();
        // It fails only when the process ends.
        let _ended = tokio::task::spawn_blocking(move || all.iter().for_each(|one| one.reload())).await;
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

async fn serve_metrics(listener: TcpListener, core: Arc<Core>, closing: CancellationToken) {
    let places = Arc::new(Semaphore::new(METRICS_CONNECTIONS));
    let mut callers = tokio::task::JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("this semaphore is never closed");
        while callers.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (core, closing) = (core.clone(), closing.clone());
        callers.spawn(async move {
            let handler = service_fn(|request: Request<Incoming>| {
                let response = metrics_page(&core, request.method(), request.uri().path(), &closing);
                async move { Ok::<_, Infallible>(response) }
            });
            let draining = closing.is_cancelled();
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(FIRST_BYTE_PATIENCE)
                .keep_alive(!draining)
                .serve_connection(TokioIo::new(stream), handler);
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                // Who watches a kept connection learns at once that this gateway takes no more clients.
                () = closing.cancelled(), if !draining => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a metrics connection ended");
            }
            drop(place);
        });
    }
}

fn metrics_page(
    core: &Core,
    method: &Method,
    path: &str,
    closing: &CancellationToken,
) -> Response<ResponseBody> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(ResponseBody::text(text));
        *response.status_mut() = status;
        response
    };
    match (path, closing.is_cancelled()) {
        _ if !matches!(*method, Method::GET | Method::HEAD) => {
            return plain(StatusCode::NOT_FOUND, "only GET is understood here\n");
        }
        ("/metrics", _) => {}
        // About this process alone: neither the lease nor any upstream is asked, and a gateway that holds writes is alive.
        ("/healthz", false) => return plain(StatusCode::OK, "alive\n"),
        ("/healthz", true) => return plain(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        _ => return plain(StatusCode::NOT_FOUND, "only /metrics and /healthz are here\n"),
    }
    let mut response = Response::new(ResponseBody::text(metrics::text(core)));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
