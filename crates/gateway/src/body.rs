//! The two bodies that pass through: a request's towards the upstream, with its progress noted, and an answer's towards the
//! client, whose end finishes the exchange. Both stream with backpressure; nothing is collected here.

use crate::downstream::ClientBody;
use crate::exchange::Exchange;
use crate::limits::{BodyLimits, Cut, RequestBodyError};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

/// How far a request's body is on its way.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    last_micros: AtomicU64,
    done: AtomicBool,
    failed: AtomicBool,
    answered: AtomicBool,
    cut: OnceLock<Cut>,
}

impl Progress {
    fn start() -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            last_micros: AtomicU64::new(0),
            done: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            cut: OnceLock::new(),
        })
    }

    /// When the last piece went by.
    pub fn last(&self) -> Instant {
        self.started + std::time::Duration::from_micros(self.last_micros.load(Ordering::Relaxed))
    }

    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Did the client's side of the body break?
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// What the body was cut for, if it was.
    pub fn cut(&self) -> Option<Cut> {
        self.cut.get().copied()
    }

    /// The head of the answer is here.
    pub fn answer_began(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }
}

/// A request's body on its way to the upstream.
#[derive(Debug)]
pub(crate) enum RequestBody {
    Empty,
    Whole(Option<Bytes>),
    Passing(ClientBody, Arc<Progress>, BodyLimits),
}

impl RequestBody {
    /// The client's body, unread until the upstream wants it.
    pub fn passing(
        incoming: ClientBody,
        limits: impl FnOnce() -> BodyLimits,
    ) -> (Self, Option<Arc<Progress>>) {
        if incoming.is_end_stream() {
            return (Self::Empty, None);
        }
        let progress = Progress::start();
        (Self::Passing(incoming, progress.clone(), limits()), Some(progress))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Passing(incoming, progress, limits) => {
                let frame = Pin::new(&mut *incoming).poll_frame(cx);
                if let Err(cut) = limits.look(&frame, progress.answered.load(Ordering::Relaxed), cx) {
                    // Only the first cut is the reason; nothing is read after it.
                    let _first = progress.cut.set(cut);
                    progress.failed.store(true, Ordering::Release);
                    return Poll::Ready(Some(Err(cut.into())));
                }
                let frame = ready!(frame);
                progress.last_micros.store(progress.started.elapsed().as_micros() as u64, Ordering::Relaxed);
                match &frame {
                    Some(Err(_)) => progress.failed.store(true, Ordering::Release),
                    None => progress.done.store(true, Ordering::Release),
                    // Nobody asks for more behind the trailers.
                    Some(Ok(frame)) if frame.is_trailers() || incoming.is_end_stream() => {
                        progress.done.store(true, Ordering::Release)
                    }
                    Some(Ok(_)) => {}
                }
                Poll::Ready(frame.map(|frame| frame.map_err(RequestBodyError::from)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_none(),
            Self::Passing(incoming, ..) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Passing(incoming, ..) => incoming.size_hint(),
        }
    }
}

/// Why an answer's body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the upstream's answer broke: {0}")]
    Upstream(#[from] io::Error),
    #[error("the session was closed for a switch")]
    Closed,
}

/// An answer's body on its way to the client.
#[derive(Debug)]
pub(crate) enum ResponseBody {
    Whole(Option<Bytes>),
    Passing(Box<Passing>),
}

#[derive(Debug)]
pub(crate) struct Passing {
    /// `None` once it ended.
    open: Option<Exchange>,
    /// Ends a streaming session.
    end: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// Why it ended early.
    broke: Option<BodyError>,
}

impl ResponseBody {
    pub fn empty() -> Self {
        Self::Whole(None)
    }

    pub fn text(text: impl Into<Bytes>) -> Self {
        Self::Whole(Some(text.into()))
    }

    /// The upstream's body; the exchange ends with it. A small one that is here already ends it at once.
    pub fn passing(mut exchange: Exchange) -> Self {
        let whole = exchange.connection.as_mut().and_then(|connection| connection.take_whole());
        if let (Some(tap), Some(whole)) = (&mut exchange.tap, &whole) {
            tap.piece(whole);
        }
        if exchange.is_received() {
            exchange.complete();
            return Self::Whole(whole);
        }
        let end = exchange.session_end().map(|end| Box::pin((*end).clone().cancelled_owned()));
        Self::Passing(Box::new(Passing { open: Some(exchange), end, broke: None }))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Passing(passing) => passing.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Passing(passing) => passing.open.is_none() && passing.broke.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Passing(passing) => {
                let connection = passing.open.as_ref().and_then(|exchange| exchange.connection.as_ref());
                connection.map_or(SizeHint::with_exact(0), |connection| connection.size_hint())
            }
        }
    }
}

impl Passing {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(exchange) = &mut self.open else { return Poll::Ready(self.broke.take().map(Err)) };
        if let Some(end) = &mut self.end
            && end.as_mut().poll(cx).is_ready()
        {
            if let Some(exchange) = self.open.take() {
                exchange.complete();
            }
            return Poll::Ready(Some(Err(BodyError::Closed)));
        }
        let frame = match &mut exchange.connection {
            Some(connection) => ready!(connection.poll_frame(cx)),
            None => None,
        };
        if let (Some(tap), Some(Ok(frame))) = (&mut exchange.tap, &frame)
            && let Some(piece) = frame.data_ref()
        {
            tap.piece(piece);
        }
        match &frame {
            Some(Ok(_)) if !exchange.is_received() => {}
            Some(Err(_)) => {
                if let Some(exchange) = self.open.take() {
                    exchange.answer_broke();
                }
                // What came before is sent before the connection ends: the server drops what it has not flushed.
                self.broke = frame.and_then(Result::err).map(BodyError::from);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // Finished together with the last piece: the next request may come before anybody polls again.
            Some(Ok(_)) | None => {
                if let Some(exchange) = self.open.take() {
                    exchange.complete();
                }
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if let Some(exchange) = self.open.take() {
            exchange.client_left();
        }
    }
}
