//! One `listen` with all services behind it: what is settled once per connection (PROXY header, places, TLS, the protocol) and
//! which service each request goes to. Never looks further into a request; [`crate::forward`] does.

use crate::access_log::Entry;
use crate::body::ResponseBody;
use crate::config::GatewayError;
use crate::downstream::http1::{self, House};
use crate::downstream::{ClientBody, ClientStream};
use crate::forward::{self, Next};
use crate::gate::Gate;
use crate::headers::{self, Seen};
use crate::http1::MAX_HEAD;
use crate::limits::{Entrance, Linger, Paced, Patience, PerClient, Place, Reason};
use crate::origin::{Origin, Peer, Trusted};
use crate::proxy_protocol;
use crate::route::{NoRoute, Routes};
use crate::server::{FIRST_BYTE_PATIENCE, Life};
use crate::service::Service;
use crate::tls::{self, Certificates};
use futures::future::{BoxFuture, FutureExt};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

const STREAMS: u32 = 512;
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Listener {
    routes: Routes<Arc<Service>>,
    /// Any of them; for what concerns no single one.
    first: Arc<Service>,
    acceptor: Option<Acceptor>,
    proxy_protocol: bool,
    trusted: Trusted,
    per_client: Option<Arc<PerClient>>,
    patience: Patience,
    entrance: Arc<Entrance>,
}

/// [`TlsAcceptor`] has no `Debug` form.
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

/// The services of a configuration by the address they share, in the order of the file.
pub(crate) fn by_address(services: &[rehome_spec::Service]) -> Vec<(String, Vec<usize>)> {
    let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
    let address =
        |text: &str| text.parse::<SocketAddr>().map_or(text.to_owned(), |address| address.to_string());
    for (index, service) in services.iter().enumerate() {
        let listen = address(&service.listen);
        match groups.iter_mut().find(|(other, _)| *other == listen) {
            Some((_, members)) => members.push(index),
            None => groups.push((listen, vec![index])),
        }
    }
    groups
}

impl Listener {
    /// From the services that share an address, each as it is written and as it runs; never from none.
    ///
    /// # Errors
    /// Services that cannot share, certificates that cannot be used. Blocks while it reads those.
    pub fn new(
        members: &[(rehome_spec::Service, Arc<Service>)],
    ) -> Result<(Self, Option<Arc<Certificates>>), GatewayError> {
        let (written, first) = members.first().expect("a group of services has at least one");
        agree(members)?;
        let routes = Routes::new(
            members
                .iter()
                .map(|(written, service)| (&written.hosts[..], &written.paths[..], service.clone())),
        );
        if let Some(what) = routes.ambiguous() {
            let text = format!(
                "two services take {what} on {}: give each hosts or paths of its own",
                written.listen
            );
            return Err(GatewayError::Config(text));
        }
        let mut sources: Vec<rehome_spec::Certificate> = Vec::new();
        for source in members.iter().flat_map(|(written, _)| &written.tls) {
            if !sources.contains(source) {
                sources.push(source.clone());
            }
        }
        let entrance = first.entrance.clone();
        let certificates = match sources.is_empty() {
            true => None,
            false => Some(Certificates::open(sources, entrance.clone())?),
        };
        let acceptor =
            certificates.as_ref().map(|certificates| certificates.acceptor(tls::WEB)).transpose()?;
        let listener = Self {
            routes,
            first: first.clone(),
            acceptor: acceptor.map(Acceptor),
            proxy_protocol: written.proxy_protocol,
            trusted: Trusted(written.trusted_proxies.clone()),
            per_client: written.connections_per_client.map(PerClient::new),
            patience: first.patience,
            entrance,
        };
        Ok((listener, certificates))
    }

    /// What the socket's first bytes say about the client, if it may come in.
    async fn admit(&self, stream: &mut TcpStream, socket: IpAddr) -> Result<(Peer, Option<Place>), Trouble> {
        let mut address = socket;
        if self.proxy_protocol {
            let header = proxy_protocol::read(stream);
            let told = match tokio::time::timeout(self.patience.proxy_header, header).await {
                Ok(Ok(told)) => told,
                Ok(Err(error)) => return Err(self.turned_away(Reason::ProxyHeader, error)),
                Err(late) => return Err(self.turned_away(Reason::ProxyHeader, late)),
            };
            // Everybody sends the header, since whether it is there must not be guessed; strangers' is not believed.
            address = told.filter(|_| self.trusted.holds(socket)).unwrap_or(socket);
        }
        let bound = self.per_client.as_ref().filter(|_| !self.trusted.holds(address));
        let place = match bound.map(|bound| bound.take(address)) {
            Some(None) => {
                return Err(self.turned_away(Reason::ClientConnections, "the client has enough connections"));
            }
            place => place.flatten(),
        };
        Ok((Peer::new(address, self.acceptor.is_some()), place))
    }

    fn turned_away(&self, reason: Reason, error: impl Into<Trouble>) -> Trouble {
        self.entrance.turn_away(reason);
        error.into()
    }

    /// Looks at one request for the service that it is for.
    fn look_at(&self, peer: &Peer, request: Request<ClientBody>) -> Next {
        let origin = Origin::of(peer.clone(), &self.trusted, request.headers());
        match self.routes.find(&request) {
            Ok(service) => forward::look_at(service.clone(), origin, request),
            Err(none) => Next::answer(self.nobody(none, origin, request)),
        }
    }

    /// No service takes this request.
    fn nobody(&self, none: NoRoute, origin: Origin, request: Request<ClientBody>) -> Response<ResponseBody> {
        let (reason, status, text) = match none {
            // RFC 9110 section 15.5.20: a client that came for a certificate or by an old address may try elsewhere.
            NoRoute::Host => {
                (Reason::UnknownHost, StatusCode::MISDIRECTED_REQUEST, "no service here has this host\n")
            }
            NoRoute::Path => (Reason::UnknownPath, StatusCode::NOT_FOUND, "no service here has this path\n"),
            NoRoute::Climbs => {
                (Reason::ClimbingPath, StatusCode::BAD_REQUEST, "a path must not have dots for steps here\n")
            }
        };
        self.entrance.turn_away(reason);
        let id = headers::own_id(request.headers(), Seen::of(request.headers()));
        let id = id.unwrap_or_else(headers::random_id);
        if let Some(log) = &self.first.log {
            let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            log.record(Entry {
                time: time.as_millis() as u64,
                service: String::new(),
                id: String::from_utf8_lossy(id.as_bytes()).into_owned(),
                client: format!("{:016x}", crate::split::ClientId::of_address(origin.client).0),
                method: request.method().to_string(),
                path: request.uri().path().to_owned(),
                class: "none",
                side: None,
                epoch: self.first.gate.epoch().0,
                status: status.as_u16(),
                millis: 0.0,
                held_ms: None,
                outcome: reason.name(),
            });
        }
        let mut response = Response::new(ResponseBody::text(text));
        *response.status_mut() = status;
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response.headers_mut().insert(headers::REQUEST_ID, id);
        response
    }
}

/// What concerns the connection must be the same for all services of an address.
fn agree(members: &[(rehome_spec::Service, Arc<Service>)]) -> Result<(), GatewayError> {
    for pair in members.windows(2) {
        let [(one, _), (other, _)] = pair else { continue };
        let differs = if one.tls.is_empty() != other.tls.is_empty() {
            "tls"
        } else if one.proxy_protocol != other.proxy_protocol {
            "proxy_protocol"
        } else if one.connections_per_client != other.connections_per_client {
            "connections_per_client"
        } else if !same_networks(one, other) {
            "trusted_proxies"
        } else {
            continue;
        };
        let text = format!(
            "services `{}` and `{}` share {} and differ in {differs}: write the same for both",
            one.name, other.name, one.listen
        );
        return Err(GatewayError::Config(text));
    }
    Ok(())
}

fn same_networks(one: &rehome_spec::Service, other: &rehome_spec::Service) -> bool {
    let holds = |all: &rehome_spec::Service, some: &rehome_spec::Service| {
        some.trusted_proxies.iter().all(|network| all.trusted_proxies.contains(network))
    };
    holds(one, other) && holds(other, one)
}

/// Takes connections until the gateway ends.
pub(crate) async fn accept(
    socket: Arc<TcpListener>,
    listener: Arc<Listener>,
    places: Arc<Semaphore>,
    life: Life,
) {
    let serve = |stream, peer| {
        let (listener, life) = (listener.clone(), life.clone());
        async move { client(stream, peer, listener, &life).await }
    };
    take(&socket, &listener.first.gate, &places, &life, serve).await;
}

/// Gives every connection to `serve`, in a task of its own and counted, until the gateway ends.
pub(crate) async fn take<F>(
    socket: &TcpListener,
    gate: &Arc<Gate>,
    places: &Arc<Semaphore>,
    life: &Life,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = Result<(), Trouble>> + Send + 'static,
{
    loop {
        let accepted = async {
            // At the bound nobody is accepted: new clients wait in the kernel's queue.
            let place = places.clone().acquire_owned().await.expect("this semaphore is never closed");
            (place, socket.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = life.closing.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (gate, served) = (gate.clone(), serve(stream, peer));
                life.traffic.spawn(async move {
                    gate.connections.fetch_add(1, Ordering::Relaxed);
                    if let Err(error) = served.await {
                        tracing::debug!(%error, %peer, "a client connection ended");
                    }
                    gate.connections.fetch_sub(1, Ordering::Relaxed);
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

pub(crate) type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// One connection from its first byte to its last. Whatever is over is boxed: a connection does not carry for ever what it needed to
/// begin, nor the machinery of the other protocol.
async fn client(
    stream: TcpStream,
    socket: SocketAddr,
    listener: Arc<Listener>,
    life: &Life,
) -> Result<(), Trouble> {
    stream.set_nodelay(true)?;
    let begun = Box::pin(async {
        tokio::select! {
            visit = Visit::begin(stream, socket, &listener, life) => visit.map(Some),
            () = life.closing.cancelled() => Ok(None),
        }
    });
    let Some((visit, _place)) = begun.await? else { return Ok(()) };
    match visit.is_http2 {
        true => visit.http2().await,
        false => visit.http1().await,
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
        // A part of a preface is no request either; HTTP/1 says so.
        if stream.ready(Interest::READABLE).await?.is_read_closed() {
            return Ok(false);
        }
        // Bytes that were seen count as ready for ever, so nothing wakes us up when more come.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// A client that was let in.
struct Visit<'a> {
    stream: ClientStream,
    is_http2: bool,
    listener: &'a Listener,
    peer: Peer,
    linger: Linger,
    life: &'a Life,
}

impl<'a> Visit<'a> {
    /// Settles what is settled once: who it is, TLS, and the protocol.
    async fn begin(
        mut stream: TcpStream,
        socket: SocketAddr,
        listener: &'a Listener,
        life: &'a Life,
    ) -> Result<(Self, Option<Place>), Trouble> {
        let (peer, place) = listener.admit(&mut stream, socket.ip()).await?;
        let pace = |stream| Paced::new(stream, listener.patience.answer, listener.entrance.clone());
        let (stream, is_http2, linger) = match &listener.acceptor {
            None => {
                let is_http2 = tokio::time::timeout(FIRST_BYTE_PATIENCE, speaks_http2(&stream)).await??;
                let (stream, linger) = pace(stream);
                (ClientStream::Plain(stream), is_http2, linger)
            }
            Some(Acceptor(acceptor)) => {
                let (stream, linger) = pace(stream);
                let handshake = acceptor.accept(stream);
                let stream = match tokio::time::timeout(listener.patience.handshake, handshake).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => return Err(listener.turned_away(Reason::Handshake, error)),
                    Err(late) => return Err(listener.turned_away(Reason::Handshake, late)),
                };
                let is_http2 = tls::is_http2(&stream);
                (ClientStream::Tls(Box::new(stream)), is_http2, linger)
            }
        };
        Ok((Self { stream, is_http2, listener, peer, linger, life }, place))
    }

    fn http1(self) -> BoxFuture<'a, Result<(), Trouble>> {
        let Self { stream, listener, peer, linger, life, .. } = self;
        let house = House {
            head_patience: listener.patience.head,
            entrance: listener.entrance.clone(),
            shed: life.shed.clone(),
            linger,
        };
        let mut visit = http1::Visit::new(stream, house);
        let serve = async move {
            tokio::select! {
                served = visit.serve(|request| listener.look_at(&peer, request)) => Ok(served?),
                () = life.kill.cancelled() => Ok(()),
            }
        };
        serve.boxed()
    }

    fn http2(self) -> BoxFuture<'a, Result<(), Trouble>> {
        let Self { stream, listener, peer, life, .. } = self;
        let mut leaving = life.shed.leaving();
        let handler = service_fn(move |request: Request<Incoming>| {
            let next = listener.look_at(&peer, request.map(ClientBody::Http2));
            async move { Ok::<_, Infallible>(forward::serve(next).await.into_response()) }
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
        let mut connection = Box::pin(connection);
        let serve = async move {
            tokio::select! {
                result = connection.as_mut() => return Ok(result?),
                () = poll_fn(|cx| leaving.poll(true, cx)) => connection.as_mut().graceful_shutdown(),
            }
            tokio::select! {
                result = connection => Ok(result?),
                () = life.kill.cancelled() => Ok(()),
            }
        };
        serve.boxed()
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
