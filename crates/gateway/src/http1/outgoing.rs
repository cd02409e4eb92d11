//! One message on its way out: the head in one buffer, the body behind it as it comes, and how many bytes were handed to the socket,
//! which decides what may be said of a request that failed. Buffers one piece of a body at most.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, header};
use http_body::{Body, Frame};
use std::cell::RefCell;
use std::error::Error;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Pieces up to this size are written in one stroke with what is before them.
const SMALL: usize = 4 << 10;
/// Room for a usual head.
const HEAD: usize = 768;

/// How the reader knows where the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// So many bytes are still to come; 0 also for no body.
    Length(u64),
    Chunked,
    /// The end of the connection is the end of the body.
    Close,
}

/// Buffers that a thread keeps for the next message: an idle connection has none, and a busy one need not ask for its own each time.
const MOST_SPARE: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
pub(crate) struct Outgoing<B> {
    /// Heads, chunk sizes and small pieces, not yet written.
    plain: BytesMut,
    /// A large piece behind `plain`, and what closes it.
    piece: Bytes,
    tail: BytesMut,
    /// `None` once all of it is in the buffers.
    body: Option<B>,
    ending: Ending,
    /// What `Trailer` announced; nothing else may follow a body.
    trailers: Vec<HeaderName>,
    /// Was anything taken out of the body?
    is_touched: bool,
    /// TLS may keep what it was given until it is told, and take its time then.
    is_flushed: bool,
    /// Bytes of this message that were handed to the socket.
    sent: u64,
}

/// Why a message could not be sent to its end.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// The socket takes no more. What the other end said before may still be there to be read.
    Socket(io::Error),
    /// The body broke off; the message can never be whole.
    Body(io::Error),
}

impl<B: Body<Data = Bytes, Error: Error + Send + Sync + 'static> + Unpin> Outgoing<B> {
    pub fn new() -> Self {
        Self {
            plain: BytesMut::new(),
            piece: Bytes::new(),
            tail: BytesMut::new(),
            body: None,
            ending: Ending::Length(0),
            trailers: Vec::new(),
            is_touched: false,
            is_flushed: true,
            sent: 0,
        }
    }

    /// Begins a message, and lends the buffer for its head; nothing is written yet. `body`: `None` when there is none, whatever the
    /// head says.
    pub fn begin(&mut self, ending: Ending, body: Option<B>) -> &mut BytesMut {
        debug_assert!(self.is_done(), "one message at a time");
        (self.sent, self.is_touched, self.is_flushed) = (0, false, false);
        // A small body goes out in one piece with its head.
        let small = body.as_ref().map_or(0, |body| body.size_hint().lower().min(SMALL as u64) as usize);
        (self.ending, self.body) = (ending, body);
        self.trailers.clear();
        if self.plain.capacity() == 0 {
            self.plain = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        self.plain.clear();
        self.plain.reserve(HEAD + small);
        &mut self.plain
    }

    /// Lets trailers through that the head announced.
    pub fn announce_trailers(&mut self, headers: &HeaderMap) {
        self.trailers.extend(announced(headers));
    }

    /// Was the whole message handed to the socket?
    pub fn is_done(&self) -> bool {
        self.body.is_none() && self.is_empty() && self.is_flushed
    }

    fn is_empty(&self) -> bool {
        // A tail without a piece is part of `plain`.
        self.plain.is_empty() && self.piece.is_empty()
    }

    /// Gives back the room that heads took.
    pub fn rest(&mut self) {
        if !self.is_done() || self.plain.capacity() == 0 {
            return;
        }
        let plain = std::mem::take(&mut self.plain);
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < MOST_SPARE && plain.capacity() <= 2 * SMALL {
                spare.push(plain);
            }
        });
    }

    pub fn ends_with_connection(&self) -> bool {
        self.ending == Ending::Close
    }

    /// Can any byte of this message have left?
    pub fn may_have_left(&self) -> bool {
        self.sent != 0
    }

    /// Can the message be sent as a whole once more: did not a byte of it leave, and was nothing taken out of its body?
    pub fn is_untouched(&self) -> bool {
        !self.may_have_left() && !self.is_touched
    }

    /// What is left of the body.
    pub fn take_body(&mut self) -> Option<B> {
        self.body.take()
    }

    /// Writes as much as can be written. Ready when all is.
    pub fn poll(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Stopped>> {
        loop {
            // A large piece is written before the next is asked for: the client feels the upstream's pace.
            if self.piece.is_empty() && self.plain.len() < SMALL {
                self.poll_body(cx).map_err(Stopped::Body)?;
            }
            if self.is_empty() {
                ready!(Pin::new(&mut *stream).poll_flush(cx)).map_err(Stopped::Socket)?;
                if self.body.is_some() {
                    return Poll::Pending;
                }
                self.is_flushed = true;
                return Poll::Ready(Ok(()));
            }
            let written = match self.piece.is_empty() {
                true => Pin::new(&mut *stream).poll_write(cx, &self.plain),
                false => {
                    let all = [&self.plain[..], &self.piece, &self.tail].map(IoSlice::new);
                    Pin::new(&mut *stream).poll_write_vectored(cx, &all)
                }
            };
            match ready!(written) {
                Ok(0) => return Poll::Ready(Err(Stopped::Socket(io::ErrorKind::WriteZero.into()))),
                Ok(bytes) => self.advance(bytes),
                Err(error) => return Poll::Ready(Err(Stopped::Socket(error))),
            }
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        let plain = bytes.min(self.plain.len());
        self.plain.advance(plain);
        let piece = (bytes - plain).min(self.piece.len());
        self.piece.advance(piece);
        self.tail.advance(bytes - plain - piece);
        if self.piece.is_empty() {
            self.plain.extend_from_slice(&std::mem::take(&mut self.tail));
        }
    }

    /// Takes the next pieces out of the body, until one is large or there is none.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.piece.is_empty() && self.plain.len() < SMALL {
            let Some(body) = &mut self.body else { return Ok(()) };
            let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else { return Ok(()) };
            self.is_touched = true;
            match frame {
                Some(Ok(frame)) => self.put(frame)?,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => self.end(&HeaderMap::new())?,
            }
        }
        Ok(())
    }

    fn put(&mut self, frame: Frame<Bytes>) -> io::Result<()> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return self.end(&frame.into_trailers().unwrap_or_default()),
        };
        if data.is_empty() {
            return Ok(());
        }
        match &mut self.ending {
            Ending::Length(left) => {
                let rest = left.checked_sub(data.len() as u64);
                *left = rest.ok_or_else(|| io::Error::other("the body is longer than it said"))?;
            }
            Ending::Chunked => {
                self.plain.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
            }
            Ending::Close => {}
        }
        let is_last = self.body.as_ref().is_some_and(Body::is_end_stream);
        match data.len() < SMALL {
            true => self.plain.extend_from_slice(&data),
            false => self.piece = data,
        }
        if self.ending == Ending::Chunked {
            self.append(b"\r\n");
        }
        if is_last { self.end(&HeaderMap::new()) } else { Ok(()) }
    }

    fn end(&mut self, trailers: &HeaderMap) -> io::Result<()> {
        self.body = None;
        match self.ending {
            Ending::Length(0) | Ending::Close => Ok(()),
            Ending::Length(_) => Err(io::Error::other("the body is shorter than it said")),
            Ending::Chunked => {
                let mut last = BytesMut::from(&b"0\r\n"[..]);
                for (name, value) in trailers {
                    if self.trailers.contains(name) && may_trail(name) {
                        put_line(&mut last, name.as_str().as_bytes(), value.as_bytes());
                    }
                }
                last.extend_from_slice(b"\r\n");
                self.append(&last);
                Ok(())
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        let last = if self.piece.is_empty() { &mut self.plain } else { &mut self.tail };
        last.extend_from_slice(bytes);
    }
}

/// Writes one line of a head; with one reservation, since there are many.
pub(crate) fn put_line(head: &mut BytesMut, name: &[u8], value: &[u8]) {
    head.reserve(name.len() + value.len() + 4);
    for piece in [name, b": ", value, b"\r\n"] {
        head.extend_from_slice(piece);
    }
}

fn announced(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    crate::headers::tokens(headers, &header::TRAILER).filter_map(|name| name.parse().ok())
}

/// What frames, routes, authenticates or describes the body is not for trailers (RFC 9110 section 6.5.1).
fn may_trail(name: &HeaderName) -> bool {
    !matches!(
        *name,
        header::AUTHORIZATION
            | header::CACHE_CONTROL
            | header::CONTENT_ENCODING
            | header::CONTENT_LENGTH
            | header::CONTENT_RANGE
            | header::CONTENT_TYPE
            | header::HOST
            | header::MAX_FORWARDS
            | header::SET_COOKIE
            | header::TRAILER
            | header::TRANSFER_ENCODING
            | header::TE
    )
}
