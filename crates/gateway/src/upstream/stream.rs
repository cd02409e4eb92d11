//! The socket of an upstream. Looks into an idle one; never knows HTTP.

use crate::secured::MaybeTls;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::io;
use std::pin::Pin;
use std::task::{Context, Waker};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// An upstream's socket.
pub(crate) type Stream = MaybeTls<TcpStream, TlsStream<TcpStream>>;

impl Stream {
    /// Without TLS there is nothing to negotiate: whoever says so knows it beforehand (RFC 9113 section 3.3).
    pub fn speaks_http2(&self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    /// As far as the runtime has heard, which costs no system call: did nothing come on a connection where nobody was asked?
    pub fn seems_silent(&mut self) -> bool {
        let mut byte = [0_u8; 1];
        match self {
            Self::Plain(stream) => {
                matches!(stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            // What TLS says for itself (a ticket for the next time) is read and is no sign.
            Self::Tls(stream) => {
                let mut cx = Context::from_waker(Waker::noop());
                Pin::new(stream).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
            }
        }
    }

    /// Looks into the socket itself: an end, an error or bytes nobody asked for mean that it is of no use.
    pub fn is_silent(&mut self) -> bool {
        if !self.seems_silent() {
            return false;
        }
        let socket = match self {
            Self::Plain(stream) => &*stream,
            Self::Tls(stream) => stream.get_ref().0,
        };
        let mut byte = [0_u8; 1];
        let seen = recv(socket, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(seen, Err(Errno::AGAIN | Errno::INTR))
    }
}
