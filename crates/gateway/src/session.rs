//! Upgraded connections: after both sides agreed to another protocol, bytes pass both ways untouched until one side ends, the
//! process ends, or a switch closes the session. A session stays with the side that was the owner when it began.

use crate::body::ResponseBody;
use crate::downstream::{ClientBody, Upgrading};
use crate::exchange::{Exchange, Outcome};
use crate::headers::{self, Seen};
use crate::http1::Upgraded;
use crate::upstream::Stream;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, request, response};
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};

const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// Does an HTTP/2 client open a session on one of its streams (RFC 8441)?
pub(crate) fn is_extended_connect<B>(request: &Request<B>) -> bool {
    *request.method() == Method::CONNECT && request.extensions().get::<Protocol>().is_some()
}

/// The client's half of an upgrade.
pub(crate) struct Wanted {
    client: Upgrading,
    protocol: HeaderValue,
    /// Asked on an HTTP/2 stream: the upstream hears of it as HTTP/1.1, the client gets a plain 200.
    on_stream: bool,
}

impl Wanted {
    pub fn of(request: &mut Request<ClientBody>, seen: Seen) -> Option<Self> {
        let on_stream = is_extended_connect(request);
        let protocol = match request.extensions().get::<Protocol>() {
            Some(protocol) if on_stream => HeaderValue::from_str(protocol.as_str()).ok()?,
            _ if headers::wants_upgrade(request, seen) => request.headers().get(header::UPGRADE)?.clone(),
            _ => return None,
        };
        Some(Self { client: Upgrading::of(request), protocol, on_stream })
    }

    /// Puts back what every proxy removes and an upgrade needs.
    pub fn restore(&self, parts: &mut request::Parts) {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, self.protocol.clone());
        if self.on_stream {
            parts.method = Method::GET;
            parts.headers.entry(KEY).or_insert_with(websocket_key);
        }
    }
}

/// Sixteen random bytes in base64; a nonce, not a secret (RFC 6455 section 4.1).
fn websocket_key() -> HeaderValue {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut key: Vec<u8> = (0..21).map(|_| LETTERS[fastrand::usize(..64)]).collect();
    // The last letter carries two bits, the four below them are zero.
    key.push(LETTERS[fastrand::usize(..4) * 16]);
    key.extend_from_slice(b"==");
    HeaderValue::from_bytes(&key).expect("base64 is visible ASCII")
}

/// Passes the upstream's 101 on and joins both connections.
pub(crate) fn begin(
    mut exchange: Exchange,
    wanted: Wanted,
    mut parts: response::Parts,
) -> Response<ResponseBody> {
    exchange.become_session();
    let upstream = exchange.connection.as_mut().and_then(|connection| connection.upgraded());
    let protocol = parts.headers.get(header::UPGRADE).cloned().unwrap_or_else(|| wanted.protocol.clone());
    headers::prepare_response(&mut parts.headers, parts.version, &exchange.id);
    if wanted.on_stream {
        parts.headers.remove(ACCEPT);
        parts.status = StatusCode::OK;
    } else {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, protocol);
    }
    let service = exchange.service.clone();
    service.tasks.clone().spawn(async move {
        let end = exchange.session_end();
        let closed = async {
            match &end {
                Some(end) => end.cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = join(wanted.client, upstream) => {}
            () = closed => {}
            () = service.kill.cancelled() => {}
        }
        exchange.finish(Outcome::Answered);
    });
    Response::from_parts(parts, ResponseBody::empty())
}

async fn join(client: Upgrading, upstream: Option<Upgraded<Stream>>) {
    let Some(upstream) = upstream else { return tracing::debug!("an upgrade without a connection") };
    let joined = match client {
        Upgrading::Http1(client) => match client.await {
            Ok(client) => pass(client, upstream).await,
            // The client left before it had its answer.
            Err(never) => Err(io::Error::other(never)),
        },
        Upgrading::Http2(client) => match client.await {
            Ok(client) => pass(TokioIo::new(client), upstream).await,
            Err(error) => Err(io::Error::other(error)),
        },
    };
    if let Err(error) = joined {
        tracing::debug!(%error, "a session ended");
    }
}

async fn pass(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut upstream: Upgraded<Stream>,
) -> io::Result<()> {
    tokio::io::copy_bidirectional(&mut client, &mut upstream).await.map(drop)
}
