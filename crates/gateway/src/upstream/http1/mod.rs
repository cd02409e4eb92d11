//! An HTTP/1.1 connection to an upstream, driven by whoever holds it: no task of its own, so a request costs no wake-up between
//! two. One request at a time; never repeats one, never decides whether it may be kept.

mod head;
mod request;
#[cfg(test)]
mod tests;

use super::Head;
use super::stream::Stream;
use crate::alarm::Alarm;
use crate::answer::AnswerHead;
use crate::body::RequestBody;
use crate::http1::{self, Outgoing, Remaining, SMALLEST_READ, Stopped, Taken, Upgraded};
use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body::{Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

/// Interim answers (1xx) before the answer.
const MOST_INTERIM: u32 = 100;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) struct Failed {
    pub error: io::Error,
    /// The request's body, when all of the request can be sent once more because not a byte of it left.
    pub unsent: Option<Box<RequestBody>>,
    /// Can a byte have left? Where that cannot be told, yes.
    pub may_have_left: bool,
}

impl From<io::Error> for Failed {
    /// Nothing better is known.
    fn from(error: io::Error) -> Self {
        Self { error, unsent: None, may_have_left: true }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Nothing was asked, or all was received.
    None,
    Awaited,
    Begun,
}

/// The connection and what is under way on it.
#[derive(Debug)]
pub(super) struct Line {
    stream: Stream,
    read: BytesMut,
    next_read: usize,
    sending: Outgoing<RequestBody>,
    /// Why nothing more of the request can be sent.
    stopped: Option<Stopped>,
    answer: Answer,
    remaining: Remaining,
    asked_head: bool,
    interim: u32,
    /// May it serve another request?
    keeps: bool,
    pub alarm: Alarm,
}

impl Line {
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
            next_read: SMALLEST_READ,
            sending: Outgoing::new(),
            stopped: None,
            answer: Answer::None,
            remaining: Remaining::Nothing,
            asked_head: false,
            interim: 0,
            keeps: true,
            alarm: Alarm::default(),
        }
    }

    pub fn begin(&mut self, head: &Head, body: RequestBody) {
        request::begin(&mut self.sending, head, body);
        (self.answer, self.remaining, self.keeps) = (Answer::Awaited, Remaining::Nothing, true);
        (self.asked_head, self.interim) = (head.parts.method == Method::HEAD, 0);
        self.next_read = SMALLEST_READ;
    }

    /// Gives back the room that a large message took; called for those that idle.
    pub fn rest(&mut self) {
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
        self.sending.rest();
    }

    /// As far as is known without asking the kernel: can it serve a request?
    pub fn seems_open(&mut self) -> bool {
        self.is_whole() && self.stream.seems_silent()
    }

    /// The kernel says so, too.
    pub fn is_open(&mut self) -> bool {
        self.is_whole() && self.stream.is_silent()
    }

    /// Was everything that was asked sent and answered, and nothing said besides?
    pub fn is_whole(&self) -> bool {
        self.keeps
            && self.answer == Answer::None
            && self.is_sent()
            && self.stopped.is_none()
            && self.read.is_empty()
    }

    /// Is there nothing more to send, for whatever reason?
    pub fn is_sent(&self) -> bool {
        self.stopped.is_some() || self.sending.is_done()
    }

    /// Sends; ready when nothing more can be sent.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_sent() {
            return Poll::Ready(());
        }
        if let Err(stopped) = ready!(self.sending.poll(&mut self.stream, cx)) {
            self.keeps = false;
            self.stopped = Some(stopped);
        }
        Poll::Ready(())
    }

    /// Sends the request and waits for the head of its answer.
    pub fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<AnswerHead, Failed>> {
        let _goes_on = self.poll_send(cx);
        match &self.stopped {
            // An upstream that refuses a body may have said so before it closed.
            Some(Stopped::Socket(_)) if self.sending.may_have_left() => {}
            None => {}
            Some(_) => return Poll::Ready(Err(self.failed(io::ErrorKind::BrokenPipe.into()))),
        }
        loop {
            match self.take_head() {
                Ok(Some(parts)) => return Poll::Ready(Ok(parts)),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(self.failed(error))),
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) => return Poll::Ready(Err(self.failed(io::ErrorKind::UnexpectedEof.into()))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(self.failed(error))),
            }
        }
    }

    fn failed(&mut self, error: io::Error) -> Failed {
        self.keeps = false;
        let error = match self.stopped.take() {
            Some(Stopped::Socket(first) | Stopped::Body(first)) => first,
            None => error,
        };
        let may_have_left = self.sending.may_have_left();
        let unsent =
            self.sending.is_untouched().then(|| self.sending.take_body().unwrap_or(RequestBody::Empty));
        Failed { error, unsent: unsent.map(Box::new), may_have_left }
    }

    /// The head of the answer, if all of it came; interim ones are gone over.
    fn take_head(&mut self) -> io::Result<Option<AnswerHead>> {
        while !self.read.is_empty() {
            let Some(head) = head::head(&mut self.read, self.asked_head)? else { return Ok(None) };
            let status = head.answer.status;
            if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                self.interim += 1;
                if self.interim > MOST_INTERIM {
                    return Err(io::Error::other("too many interim answers"));
                }
                continue;
            }
            self.keeps &= head.keeps;
            self.remaining = head.body;
            self.answer = Answer::Begun;
            self.note_end();
            return Ok(Some(head.answer));
        }
        Ok(None)
    }

    fn note_end(&mut self) {
        if self.remaining == Remaining::Nothing {
            self.answer = Answer::None;
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        http1::poll_fill(&mut self.stream, cx, &mut self.read, self.remaining, &mut self.next_read)
    }

    /// The next piece of the answer's body. The request goes on being sent beside it only where [`Http1`] sees to it.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            let taken = match self.remaining.take(&mut self.read) {
                Ok(taken) => taken,
                Err(unclear) => return Poll::Ready(Some(Err(self.broke(unclear.into())))),
            };
            self.note_end();
            match taken {
                Taken::Data(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Taken::Trailers(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Taken::End => return Poll::Ready(None),
                Taken::Missing => match ready!(self.poll_fill(cx)) {
                    Ok(0) if self.remaining == Remaining::UntilClosed => {
                        self.remaining = Remaining::Nothing;
                    }
                    Ok(0) => {
                        let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the answer broke off");
                        return Poll::Ready(Some(Err(self.broke(error))));
                    }
                    Ok(_) => {}
                    Err(error) => return Poll::Ready(Some(Err(self.broke(error)))),
                },
            }
        }
    }

    /// All of the body, if it has a length and came together with the head.
    pub fn take_whole(&mut self) -> Option<Bytes> {
        let Remaining::Length(length) = self.remaining else { return None };
        if (self.read.len() as u64) < length {
            return None;
        }
        self.remaining = Remaining::Nothing;
        self.answer = Answer::None;
        Some(self.read.split_to(length as usize).freeze())
    }

    fn broke(&mut self, error: io::Error) -> io::Error {
        self.keeps = false;
        self.remaining = Remaining::Nothing;
        error
    }

    pub fn is_end_stream(&self) -> bool {
        self.remaining == Remaining::Nothing
    }

    pub fn size_hint(&self) -> SizeHint {
        self.remaining.size_hint()
    }
}

/// A line in use. Most requests are sent before their answer begins, and one task does all; where an answer is early, another
/// task goes on sending, so that neither waits for the other.
#[derive(Debug)]
pub(super) enum Http1 {
    Whole(Box<Line>),
    Split(Split),
    /// Given up or given away.
    Gone,
}

#[derive(Debug)]
pub(super) struct Split {
    line: Arc<Mutex<Line>>,
    /// Sends the rest of the request.
    pump: tokio::task::JoinHandle<()>,
}

impl Split {
    fn start(line: Line) -> Self {
        let line = Arc::new(Mutex::new(line));
        let pumped = line.clone();
        let pump = tokio::spawn(std::future::poll_fn(move |cx| lock(&pumped).poll_send(cx)));
        Self { line, pump }
    }
}

impl Drop for Split {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

fn lock(line: &Mutex<Line>) -> MutexGuard<'_, Line> {
    line.lock().expect("no code panics while it holds this lock")
}

impl Http1 {
    pub fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<AnswerHead, Failed>> {
        let Self::Whole(line) = self else {
            return Poll::Ready(Err(io::Error::other("nothing was asked on this connection").into()));
        };
        let answer = ready!(line.poll_answer(cx));
        if answer.is_ok()
            && !line.is_sent()
            && let Self::Whole(line) = std::mem::replace(self, Self::Gone)
        {
            *self = Self::Split(Split::start(*line));
        }
        Poll::Ready(answer)
    }

    /// Does something with the line, if it is still here.
    fn with<T>(&mut self, otherwise: T, work: impl FnOnce(&mut Line) -> T) -> T {
        match self {
            Self::Whole(line) => work(line),
            Self::Split(split) => work(&mut lock(&split.line)),
            Self::Gone => otherwise,
        }
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.with(Poll::Ready(None), |line| line.poll_frame(cx))
    }

    pub fn take_whole(&mut self) -> Option<Bytes> {
        match self {
            Self::Whole(line) => line.take_whole(),
            _ => None,
        }
    }

    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(line) => line.is_end_stream(),
            Self::Split(split) => lock(&split.line).is_end_stream(),
            Self::Gone => true,
        }
    }

    pub fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(line) => line.size_hint(),
            Self::Split(split) => lock(&split.line).size_hint(),
            Self::Gone => SizeHint::with_exact(0),
        }
    }

    pub fn is_sent(&self) -> bool {
        match self {
            Self::Whole(line) => line.is_sent(),
            Self::Split(split) => lock(&split.line).is_sent(),
            Self::Gone => true,
        }
    }

    /// Waits until nothing more can be sent.
    pub async fn sent(&mut self) {
        std::future::poll_fn(|cx| match self {
            Self::Whole(line) => line.poll_send(cx),
            Self::Split(split) => Pin::new(&mut split.pump).poll(cx).map(|_ended| ()),
            Self::Gone => Poll::Ready(()),
        })
        .await;
    }

    /// The socket and what came of the new protocol, after an answer with 101.
    pub fn upgraded(&mut self) -> Option<Upgraded<Stream>> {
        match std::mem::replace(self, Self::Gone) {
            Self::Whole(line) => Some(Upgraded { stream: line.stream, early: line.read }),
            _ => None,
        }
    }
}
