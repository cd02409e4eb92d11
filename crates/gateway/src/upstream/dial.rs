//! Making a connection to one address: TCP, TLS where the address says https, and the HTTP handshake. Sends nothing of a request.

use crate::body::RequestBody;
use crate::config::Upstream;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rehome_spec::UpstreamHttp;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::client::TlsStream;

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
    Http1(Line),
    /// Takes many at once.
    Http2(http2::SendRequest<RequestBody>),
}

/// An HTTP/1.1 connection: where requests go in, and what is known of the bytes behind it.
#[derive(Debug)]
pub(super) struct Line {
    pub sender: http1::SendRequest<RequestBody>,
    /// The task that reads and writes.
    pub driver: AbortHandle,
    /// The same socket, only for looking at what has arrived.
    pub probe: OwnedFd,
    /// Bytes handed on so far, before any encryption.
    pub sent: Arc<AtomicU64>,
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
    let probe = stream.as_fd().try_clone_to_owned()?;
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
    let sent = Arc::new(AtomicU64::new(0));
    let wire = TokioIo::new(Wire { stream, sent: sent.clone() });
    let dialed = match dialing.http {
        UpstreamHttp::One => {
            let shaken = handshake_http1(wire).await;
            shaken.map(|(sender, driver)| Dialed::Http1(Line { sender, driver, probe, sent }))
        }
        UpstreamHttp::Two => handshake_http2(wire).await.map(Dialed::Http2),
    };
    dialed.map_err(io::Error::other)
}

type Http1 = http1::SendRequest<RequestBody>;

async fn handshake_http1(wire: TokioIo<Wire>) -> hyper::Result<(Http1, AbortHandle)> {
    let (sender, connection) =
        http1::Builder::new().max_buf_size(crate::server::MAX_HEAD).handshake(wire).await?;
    let driver = tokio::spawn(async move {
        // Whoever uses the connection hears of its errors; here they only end the task.
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    Ok((sender, driver.abort_handle()))
}

async fn handshake_http2(wire: TokioIo<Wire>) -> hyper::Result<http2::SendRequest<RequestBody>> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(crate::server::MAX_HEAD as u32)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(wire)
        .await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    Ok(sender)
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Without TLS there is nothing to negotiate: whoever says so knows it beforehand (RFC 9113 section 3.3).
    fn speaks_http2(&self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
}

/// A socket that counts what it is given to send.
#[derive(Debug)]
struct Wire {
    stream: Stream,
    sent: Arc<AtomicU64>,
}

macro_rules! stream {
    ($this:ident, $stream:ident => $call:expr) => {
        match &mut $this.get_mut().stream {
            Stream::Plain($stream) => $call,
            Stream::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        stream!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.as_mut();
        let result = stream!(this, stream => Pin::new(stream).poll_write(cx, buf));
        self.count(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.as_mut();
        let result = stream!(this, stream => Pin::new(stream).poll_write_vectored(cx, bufs));
        self.count(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        stream!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        stream!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

impl Wire {
    fn count(&self, result: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = result {
            self.sent.fetch_add(*bytes as u64, Ordering::SeqCst);
        }
    }
}
