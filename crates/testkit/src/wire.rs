//! A small HTTP/1.1 client for one address that says truthfully what became of a request. It keeps connections open,
//! repeats a request only when it is safe to (RFC 9112, 9.3.1 and RFC 9110, 9.2.2), and never repeats a write.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Idle connections older than this are not used again for a write: the server may be closing them right now.
const FRESH_FOR_WRITES: Duration = Duration::from_millis(500);
const FRESH_FOR_READS: Duration = Duration::from_secs(20);
const MOST_IDLE: usize = 64;
const CONNECT: Duration = Duration::from_secs(10);
const DIAL_AGAIN: Duration = Duration::from_millis(20);

/// What became of a request that has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// Not a byte of it left this process.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It may have been carried out.
    #[error("no answer: {0}")]
    Unknown(String),
    #[error("no answer in time")]
    Late,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// May the request be sent twice?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    Never,
    /// Once more, when an idle connection turned out to be closed.
    WhenStale,
}

type Sender = SendRequest<Full<Bytes>>;

/// Connections to one address. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    address: SocketAddr,
    idle: Arc<Mutex<Vec<(Sender, Instant)>>>,
    /// How long a refused connection is tried again.
    insist: Duration,
    refused: Arc<AtomicU64>,
}

impl Wire {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, idle: Arc::default(), insist: Duration::ZERO, refused: Arc::default() }
    }

    /// Tries again for so long when nobody listens, as clients behind a service manager do. Nothing was sent yet, so
    /// nothing is sent twice.
    pub(crate) fn insisting(self, insist: Duration) -> Self {
        Self { insist, ..self }
    }

    /// Refused connections since the last call.
    pub(crate) fn take_refused(&self) -> u64 {
        self.refused.swap(0, Ordering::Relaxed)
    }

    /// Sends and reads the whole answer within `time`.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        repeat: Repeat,
        time: Duration,
    ) -> Result<Answer, NoAnswer> {
        let whole = async {
            let (head, body) = self.open(request.clone(), repeat).await?.into_parts();
            let collected = body.collect().await.map_err(|error| NoAnswer::Unknown(told(&error)))?;
            Ok(Answer { status: head.status, headers: head.headers, body: collected.to_bytes() })
        };
        tokio::time::timeout(time, whole).await.unwrap_or(Err(NoAnswer::Late))
    }

    /// Sends and returns as soon as the answer begins.
    pub(crate) async fn open(
        &self,
        request: Request<Full<Bytes>>,
        repeat: Repeat,
    ) -> Result<Response<Streaming>, NoAnswer> {
        let fresh = if repeat == Repeat::WhenStale { FRESH_FOR_READS } else { FRESH_FOR_WRITES };
        let mut next = request.clone();
        if let Some(mut sender) = self.take_idle(fresh) {
            match sender.try_send_request(next).await {
                Ok(response) => return Ok(self.streaming(response, sender)),
                Err(mut error) => match (error.take_message(), repeat) {
                    // Handed back: nothing of it was written.
                    (Some(unsent), _) => next = unsent,
                    (None, Repeat::WhenStale) => next = request,
                    (None, Repeat::Never) => return Err(NoAnswer::Unknown(told(error.error()))),
                },
            }
        }
        let mut sender = self.connect().await.map_err(NoAnswer::NotSent)?;
        match sender.try_send_request(next).await {
            Ok(response) => Ok(self.streaming(response, sender)),
            Err(mut error) => Err(match error.take_message() {
                Some(_) => NoAnswer::NotSent(told(error.error())),
                None => NoAnswer::Unknown(told(error.error())),
            }),
        }
    }

    fn streaming(&self, response: Response<Incoming>, sender: Sender) -> Response<Streaming> {
        response.map(|body| Streaming { body, lease: Some(Lease { sender, wire: self.clone() }) })
    }

    /// The connection used last; those idle for too long are closed.
    fn take_idle(&self, fresh: Duration) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((sender, since)) = idle.pop() {
            if since.elapsed() > fresh {
                // All others are older still.
                idle.clear();
                return None;
            }
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    async fn dial(&self) -> io::Result<TcpStream> {
        let until = Instant::now() + self.insist;
        loop {
            match TcpStream::connect(self.address).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < until => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(DIAL_AGAIN).await;
                }
                other => return other,
            }
        }
    }

    async fn connect(&self) -> Result<Sender, String> {
        let connected = async {
            let stream = self.dial().await.map_err(|error| error.to_string())?;
            stream.set_nodelay(true).map_err(|error| error.to_string())?;
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))
        };
        let (sender, connection) = tokio::time::timeout(CONNECT, connected)
            .await
            .map_err(|_| format!("{} does not accept", self.address))??;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%error, "client connection ended");
            }
        });
        Ok(sender)
    }
}

/// An answer's body; its connection is used again once the body has been read to the end.
#[derive(Debug)]
pub(crate) struct Streaming {
    body: Incoming,
    lease: Option<Lease>,
}

#[derive(Debug)]
struct Lease {
    sender: Sender,
    wire: Wire,
}

impl Lease {
    /// The connection becomes ready a moment after the last byte; waiting for that is another task's work.
    fn give_back(mut self) {
        tokio::spawn(async move {
            if self.sender.ready().await.is_ok() {
                let mut idle = self.wire.idle.lock().unwrap_or_else(PoisonError::into_inner);
                if idle.len() < MOST_IDLE {
                    idle.push((self.sender, Instant::now()));
                }
            }
        });
    }
}

impl Body for Streaming {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        // A server that knows the length asks no further than the last byte.
        let whole = frame.is_none() || self.body.is_end_stream();
        if let Some(lease) = self.lease.take_if(|_| whole) {
            lease.give_back();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // Asked for once more even when empty: that is what gives the connection back.
        self.lease.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An error with its cause: hyper's own text alone says little.
fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
