//! The clients' side of the gateway: their sockets, their requests' bodies, and HTTP/1.1 itself. HTTP/2 is hyper's. Never knows where
//! a request goes.

mod answer;
mod head;
pub(crate) mod http1;
mod wire;

use crate::http1::Upgraded;
use crate::limits::Paced;
use crate::secured::MaybeTls;
use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::server::TlsStream;

/// A client's socket.
pub(crate) type ClientStream = MaybeTls<Paced<TcpStream>, TlsStream<Paced<TcpStream>>>;

impl ClientStream {
    /// From now on closing it looks like a failure to the client, also where the end of the connection is the end of the answer.
    pub fn break_off(&self) {
        // With TLS the end that is not announced says so.
        if let Self::Plain(stream) = self {
            stream
                .get_ref()
                .set_zero_linger()
                .unwrap_or_else(|error| tracing::debug!(%error, "cannot reset"));
        }
    }
}

/// A request's body as it comes from a client.
#[derive(Debug)]
pub(crate) enum ClientBody {
    Http1(wire::Incoming),
    Http2(Incoming),
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Http1(body) => body.poll_frame(cx),
            Self::Http2(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(io::Error::other)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
        }
    }
}

/// A connection or stream of a client that is to leave HTTP behind, once the answer that allows it was sent.
#[derive(Debug)]
pub(crate) enum Upgrading {
    Http1(oneshot::Receiver<Upgraded<ClientStream>>),
    Http2(OnUpgrade),
}

impl Upgrading {
    pub fn of(request: &mut Request<ClientBody>) -> Self {
        match request.body() {
            ClientBody::Http1(body) => Self::Http1(body.upgrade()),
            ClientBody::Http2(_) => Self::Http2(hyper::upgrade::on(request)),
        }
    }
}
