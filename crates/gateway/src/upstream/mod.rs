//! The way to the application: the addresses of a side, connections to them, and what may be said of the bytes that left.
//! Never decides which side a request goes to, and never repeats one.

mod budget;
mod dial;
mod group;
mod http1;
mod member;
mod stream;

pub(crate) use budget::Budget;
pub(crate) use dial::Dialing;
pub(crate) use group::Group;
pub(crate) use http1::Failed;
pub(crate) use member::Member;
pub(crate) use stream::Stream;

use crate::alarm::Alarm;
use crate::answer::AnswerHead;
use crate::body::{Progress, RequestBody};
use crate::headers::Added;
use crate::http1::Upgraded;
use bytes::Bytes;
use http::{Request, Response, request};
use http_body::{Body, Frame, SizeHint};
use http1::Http1;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};
use member::UnderWay;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

/// The head of a request.
#[derive(Debug)]
pub(crate) struct Head {
    pub parts: request::Parts,
    /// Lines besides those in `parts`.
    pub added: Added,
}

/// A connection in use by one request, and the answer that comes on it.
#[derive(Debug)]
pub(crate) struct Connection {
    kind: Kind,
    /// Did it serve a request before?
    pub reused: bool,
    under_way: UnderWay,
}

#[derive(Debug)]
enum Kind {
    /// Nobody else's until it is given back.
    Http1(Http1),
    /// A stream among others.
    Http2(Box<Http2>),
}

type Asking =
    Pin<Box<dyn Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + Send>>;

/// A stream of an HTTP/2 connection.
struct Http2 {
    sender: http2::SendRequest<RequestBody>,
    asking: Option<Asking>,
    body: Option<Incoming>,
    alarm: Alarm,
}

impl fmt::Debug for Http2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2").field("is_asking", &self.asking.is_some()).field("body", &self.body).finish()
    }
}

impl Http2 {
    fn new(sender: &http2::SendRequest<RequestBody>) -> Box<Self> {
        Box::new(Self { sender: sender.clone(), asking: None, body: None, alarm: Alarm::default() })
    }

    fn begin(&mut self, head: &Head, body: RequestBody) {
        let mut request = Request::from_parts(head.parts.clone(), body);
        for (name, value) in &head.added {
            request.headers_mut().append(*name, value.clone());
        }
        self.asking = Some(Box::pin(self.sender.try_send_request(request)));
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<AnswerHead, Failed>> {
        let asked = match &mut self.asking {
            Some(asking) => ready!(asking.as_mut().poll(cx)),
            None => return Poll::Ready(Err(io::Error::other("nothing was asked on this stream").into())),
        };
        self.asking = None;
        Poll::Ready(match asked {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                self.body = (!body.is_end_stream()).then_some(body);
                Ok(parts.into())
            }
            // Handed back is only what never became a stream.
            Err(mut error) => {
                let unsent = error.take_message().map(|request| Box::new(request.into_body()));
                let may_have_left = unsent.is_none();
                Err(Failed { error: io::Error::other(error.into_error()), unsent, may_have_left })
            }
        })
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        if body.is_end_stream() || !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
    }
}

impl Connection {
    pub fn member(&self) -> &Arc<Member> {
        self.under_way.member()
    }

    /// Hands a request over. Nothing is sent before [`Self::answer`] is polled; dropped in the middle, the connection is closed.
    pub fn begin(&mut self, head: &Head, body: RequestBody) {
        match &mut self.kind {
            Kind::Http1(Http1::Whole(line)) => line.begin(head, body),
            Kind::Http1(_) => {}
            Kind::Http2(stream) => stream.begin(head, body),
        }
    }

    /// Sends the request and waits for the head of its answer; `None` when it does not come in time. The time runs anew while
    /// the request's body moves. May be dropped and called again.
    pub async fn answer(
        &mut self,
        patience: Duration,
        progress: Option<&Arc<Progress>>,
    ) -> Option<Result<AnswerHead, Failed>> {
        let mut deadline = Instant::now() + patience;
        poll_fn(|cx| {
            if let Poll::Ready(answer) = self.poll_answer(cx) {
                return Poll::Ready(Some(answer));
            }
            loop {
                ready!(self.poll_alarm(deadline, cx));
                match progress.map(|progress| Instant::from_std(progress.last()) + patience) {
                    Some(moved) if moved > deadline => deadline = moved,
                    _ => return Poll::Ready(None),
                }
            }
        })
        .await
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<AnswerHead, Failed>> {
        match &mut self.kind {
            Kind::Http1(line) => line.poll_answer(cx),
            Kind::Http2(stream) => stream.poll_answer(cx),
        }
    }

    fn poll_alarm(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.kind {
            Kind::Http1(Http1::Whole(line)) => line.alarm.poll(deadline, cx),
            Kind::Http1(_) => Poll::Ready(()),
            Kind::Http2(stream) => stream.alarm.poll(deadline, cx),
        }
    }

    /// The next piece of the answer's body.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.kind {
            Kind::Http1(line) => line.poll_frame(cx),
            Kind::Http2(stream) => stream.poll_frame(cx),
        }
    }

    /// Is the answer over?
    pub fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Http1(line) => line.is_end_stream(),
            Kind::Http2(stream) => stream.body.is_none(),
        }
    }

    pub fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Http1(line) => line.size_hint(),
            Kind::Http2(stream) => {
                stream.body.as_ref().map_or(SizeHint::with_exact(0), |body| body.size_hint())
            }
        }
    }

    /// The whole body, if it came together with the head; then the answer is over.
    pub fn take_whole(&mut self) -> Option<Bytes> {
        match &mut self.kind {
            Kind::Http1(line) => line.take_whole(),
            Kind::Http2(_) => None,
        }
    }

    /// Receives what is left of the answer, whatever becomes of it.
    pub async fn drain(&mut self) -> io::Result<()> {
        while let Some(frame) = poll_fn(|cx| self.poll_frame(cx)).await {
            frame?;
        }
        Ok(())
    }

    /// Is nothing of the request left to send? Of an HTTP/2 stream only its body knows.
    pub fn is_sent(&self) -> bool {
        match &self.kind {
            Kind::Http1(line) => line.is_sent(),
            Kind::Http2(_) => true,
        }
    }

    /// Waits until the whole of the last request was sent, or the connection ended.
    pub async fn sent(&mut self) {
        match &mut self.kind {
            Kind::Http1(line) => line.sent().await,
            // An error means that it ended.
            Kind::Http2(stream) => drop(stream.sender.ready().await),
        }
    }

    /// The last answer was received completely: the next request may have the connection.
    pub fn give_back(self) {
        let Self { kind, under_way, .. } = self;
        if let Kind::Http1(Http1::Whole(line)) = kind {
            under_way.member().keep(line);
        }
    }

    /// The socket itself, after an answer that changed the protocol.
    pub fn upgraded(&mut self) -> Option<Upgraded<Stream>> {
        match &mut self.kind {
            Kind::Http1(line) => line.upgraded(),
            Kind::Http2(_) => None,
        }
    }
}
