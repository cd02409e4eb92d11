//! A client's HTTP/1.1 connection, shared between the task that serves it and the body of the request under way, which may outlive
//! its answer. Holds no buffer while nothing is under way.

use super::ClientStream;
use super::head::{self, Head, Refusal};
use crate::http1::{self, MAX_HEAD, Remaining, SMALLEST_READ, Taken, Upgraded, poll_read_some};
use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

#[derive(Debug)]
pub(super) struct Wire {
    /// `None` once it was given away.
    stream: Option<ClientStream>,
    /// What came and was not taken yet.
    read: BytesMut,
    /// So much of `read` is known not to hold a whole head.
    looked_at: usize,
    next_read: usize,
    /// Of the body of the request under way.
    remaining: Remaining,
    /// Will nobody read the rest of it?
    is_abandoned: bool,
    /// What is left to write of a 100 that the client waits for.
    continues: &'static [u8],
    /// Who serves the connection and waits for the body to be over.
    waiting: Option<Waker>,
    /// Where the stream goes after HTTP.
    upgrade: Option<oneshot::Sender<Upgraded<ClientStream>>>,
}

/// A [`Wire`] in more than one hand.
#[derive(Debug, Clone)]
pub(super) struct Shared(Arc<Mutex<Wire>>);

impl Shared {
    pub fn new(stream: ClientStream) -> Self {
        Self(Arc::new(Mutex::new(Wire {
            stream: Some(stream),
            read: BytesMut::new(),
            looked_at: 0,
            next_read: SMALLEST_READ,
            remaining: Remaining::Nothing,
            is_abandoned: false,
            continues: b"",
            waiting: None,
            upgrade: None,
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().expect("no code panics while it holds this lock")
    }

    /// The body of the request whose head was taken.
    pub fn incoming(&self) -> Incoming {
        Incoming(self.clone())
    }
}

impl Wire {
    /// Takes the next request's head out of what came.
    pub fn take_head(&mut self) -> Result<Option<Box<Head>>, Refusal> {
        if self.looked_at == 0 {
            head::skip_empty_lines(&mut self.read);
        }
        let is_news = self.read.get(self.looked_at..).is_some_and(|news| news.contains(&b'\n'));
        // The first piece is looked at in any case: what is no HTTP need not be waited for.
        if self.read.is_empty() || self.looked_at > 0 && !is_news && self.read.len() < MAX_HEAD {
            return Ok(None);
        }
        match head::head(&mut self.read)? {
            None => self.looked_at = self.read.len(),
            Some(head) => {
                self.looked_at = 0;
                self.next_read = SMALLEST_READ;
                (self.remaining, self.is_abandoned) = (head.body, false);
                self.upgrade = None;
                self.continues = if head.terms.expects { CONTINUE } else { b"" };
                return Ok(Some(head));
            }
        }
        Ok(None)
    }

    /// Did a head begin that is not whole?
    pub fn is_in_head(&self) -> bool {
        !self.read.is_empty()
    }

    /// Reads what there is; 0 at the end.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(0)) };
        poll_read_some(stream, cx, &mut self.read, SMALLEST_READ)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(0)) };
        http1::poll_fill(stream, cx, &mut self.read, self.remaining, &mut self.next_read)
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            let taken = match self.remaining.take(&mut self.read) {
                Ok(taken) => taken,
                Err(unclear) => return Poll::Ready(Some(Err(self.body_broke(unclear.into())))),
            };
            if self.remaining == Remaining::Nothing {
                self.wake();
            }
            match taken {
                Taken::Data(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Taken::Trailers(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Taken::End => return Poll::Ready(None),
                Taken::Missing => {}
            }
            if let Err(error) = ready!(self.poll_continue(cx)) {
                return Poll::Ready(Some(Err(self.body_broke(error))));
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) => {
                    let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the client's body broke off");
                    return Poll::Ready(Some(Err(self.body_broke(error))));
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(self.body_broke(error)))),
            }
        }
    }

    /// Somebody wants the body: a client that waits to be asked is asked.
    fn poll_continue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.continues.is_empty() {
            let Some(stream) = &mut self.stream else { break };
            match ready!(Pin::new(&mut *stream).poll_write(cx, self.continues))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.continues = &self.continues[written..],
            }
            if self.continues.is_empty() {
                ready!(Pin::new(stream).poll_flush(cx))?;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn body_broke(&mut self, error: io::Error) -> io::Error {
        self.abandon();
        error
    }

    fn abandon(&mut self) {
        self.is_abandoned = true;
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }

    /// Ready when the client has left, as far as that can be known: an end of its sending side looks the same. Nothing is read ahead
    /// of a body that is not here yet, and only a little of what a client sends before it was answered.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let body = match self.remaining {
            Remaining::Nothing => 0,
            Remaining::Length(left) => left,
            _ => u64::MAX,
        };
        if (self.read.len() as u64) < body {
            return self.wait(cx);
        }
        while self.read.len() as u64 == body && self.read.len() < SMALLEST_READ {
            match ready!(self.poll_read(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.waiting.as_ref().is_some_and(|waiting| waiting.will_wake(cx.waker())) {
            self.waiting = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The answer begins: a client that was not asked for its body by now is not asked any more. True when the rest of the body is not
    /// here and nobody wants it, so that the connection cannot go on.
    pub fn answer_begins(&mut self) -> bool {
        if self.continues.len() == CONTINUE.len() {
            self.continues = b"";
        }
        if self.is_abandoned {
            self.skip_body();
        }
        self.is_abandoned && self.remaining != Remaining::Nothing
    }

    /// Goes over what is here of a body that nobody wants.
    fn skip_body(&mut self) {
        while let Ok(Taken::Data(_) | Taken::Trailers(_)) = self.remaining.take(&mut self.read) {}
    }

    /// Ready when the request's body was read to its end, or will not be. False: where the next request begins is not known.
    pub fn poll_body_over(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.is_abandoned {
            self.skip_body();
            return Poll::Ready(self.remaining == Remaining::Nothing);
        }
        if self.remaining == Remaining::Nothing {
            return Poll::Ready(true);
        }
        self.wait(cx).map(|()| false)
    }

    /// Gives back what idle connections do not need.
    pub fn rest(&mut self) {
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
    }

    /// The answer that ends HTTP here was sent.
    pub fn upgrade(&mut self) {
        if let (Some(stream), Some(upgrade)) = (self.stream.take(), self.upgrade.take()) {
            let early = std::mem::take(&mut self.read);
            // Nobody waits any more: the connection is closed.
            let _closed = upgrade.send(Upgraded { stream, early });
        }
    }

    pub fn take_stream(&mut self) -> Option<ClientStream> {
        self.stream.take()
    }
}

/// Writes answers, locking the wire for each stroke only: an answer's body may belong to whoever reads the request's.
#[derive(Debug)]
pub(super) struct Writer<'a>(pub &'a Shared);

impl Writer<'_> {
    fn with<T>(
        &self,
        write: impl FnOnce(Pin<&mut ClientStream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut self.0.lock().stream {
            Some(stream) => write(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for Writer<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write_vectored(cx, bufs))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }
}

/// The body of the request under way, unread until somebody wants it.
#[derive(Debug)]
pub(crate) struct Incoming(Shared);

impl Incoming {
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.lock().poll_body(cx)
    }

    pub fn is_end_stream(&self) -> bool {
        self.0.lock().remaining == Remaining::Nothing
    }

    pub fn size_hint(&self) -> SizeHint {
        self.0.lock().remaining.size_hint()
    }

    /// The connection itself, once an answer ended HTTP on it.
    pub fn upgrade(&self) -> oneshot::Receiver<Upgraded<ClientStream>> {
        let (give, take) = oneshot::channel();
        self.0.lock().upgrade = Some(give);
        take
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let mut wire = self.0.lock();
        if wire.remaining != Remaining::Nothing {
            wire.abandon();
        }
    }
}
