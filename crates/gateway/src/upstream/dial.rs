//! Making a connection to one address: TCP, TLS where the address says https, and the HTTP handshake. Sends nothing of a request.

use super::http1::Line;
use super::stream::Stream;
use crate::body::RequestBody;
use crate::config::Upstream;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rehome_spec::UpstreamHttp;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// How long a connection may take to be made, its TLS handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// An HTTP/2 connection that does not answer a ping is given up.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// How the addresses of a service are spoken to.
#[derive(Clone)]
pub(crate) struct Dialing {
    pub http: UpstreamHttp,
    /// For addresses with https.
    pub tls: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for Dialing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialing").field("http", &self.http).field("tls", &self.tls.is_some()).finish()
    }
}

/// What a handshake left.
#[derive(Debug)]
pub(super) enum Dialed {
    /// Takes one request at a time.
    Http1(Box<Line>),
    /// Takes many at once.
    Http2(http2::SendRequest<RequestBody>),
}

/// Makes a connection.
///
/// # Errors
/// Nobody answers there in time, or not as it should; nothing of a request was sent.
pub(super) async fn dial(upstream: &Upstream, dialing: &Dialing) -> io::Result<Dialed> {
    tokio::time::timeout(CONNECT_TIMEOUT, connect(upstream, dialing))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn connect(upstream: &Upstream, dialing: &Dialing) -> io::Result<Dialed> {
    let stream = TcpStream::connect((upstream.host.as_str(), upstream.port)).await?;
    stream.set_nodelay(true)?;
    let stream = match (&dialing.tls, upstream.secure) {
        (_, false) => Stream::Plain(stream),
        (Some(config), true) => {
            let name = ServerName::try_from(upstream.host.clone()).map_err(io::Error::other)?;
            let connector = tokio_rustls::TlsConnector::from(config.clone());
            Stream::Tls(Box::new(connector.connect(name, stream).await?))
        }
        (None, true) => return Err(io::Error::other("no TLS was set up for this address")),
    };
    if dialing.http == UpstreamHttp::Two && !stream.speaks_http2() {
        return Err(io::Error::other("the upstream does not offer HTTP/2 (ALPN h2)"));
    }
    match dialing.http {
        UpstreamHttp::One => Ok(Dialed::Http1(Box::new(Line::new(stream)))),
        UpstreamHttp::Two => {
            let shaken = handshake_http2(TokioIo::new(stream)).await;
            shaken.map(Dialed::Http2).map_err(io::Error::other)
        }
    }
}

async fn handshake_http2(stream: TokioIo<Stream>) -> hyper::Result<http2::SendRequest<RequestBody>> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(crate::http1::MAX_HEAD as u32)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(stream)
        .await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    Ok(sender)
}
