//! HTTP/1.1 with a client: one request after another, each answered in the connection's own task. What is under way is made for it and
//! gone with it, so that an idle connection costs little more than its socket.

use super::head::{Head, Refusal, Terms};
use super::wire::{Shared, Writer};
use super::{ClientBody, ClientStream, answer};
use crate::alarm::Alarm;
use crate::answer::Answer;
use crate::body::ResponseBody;
use crate::forward::{self, Next};
use crate::http1::{Outgoing, Stopped};
use crate::limits::{Entrance, Linger, Reason};
use crate::server::FIRST_BYTE_PATIENCE;
use crate::shed::{Leaving, Shed};
use http::{Request, Response, StatusCode, Version};
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

/// How long a kept connection may idle; a head that began has less time.
const IDLE: Duration = Duration::from_secs(75);

/// What a connection needs of the gateway.
#[derive(Debug)]
pub(crate) struct House {
    /// How long a head may take from its first byte on.
    pub head_patience: Duration,
    pub entrance: Arc<Entrance>,
    pub shed: Arc<Shed>,
    pub linger: Linger,
}

/// Why a connection ends before its client wanted it to.
enum End {
    /// What came is no request.
    Refused(Refusal),
    Broken(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// A client's connection from its first request to its last.
pub(crate) struct Visit {
    wire: Shared,
    house: House,
    leaving: Leaving,
    alarm: Alarm,
    outgoing: Outgoing<ResponseBody>,
    was_served: bool,
}

impl Visit {
    pub fn new(stream: ClientStream, house: House) -> Self {
        Self {
            wire: Shared::new(stream),
            leaving: house.shed.leaving(),
            house,
            alarm: Alarm::default(),
            outgoing: Outgoing::new(),
            was_served: false,
        }
    }

    /// Serves the client to the end of its connection. `look_at` says what becomes of a request.
    ///
    /// # Errors
    /// The client broke off, or was too slow.
    pub async fn serve(&mut self, look_at: impl Fn(Request<ClientBody>) -> Next) -> io::Result<()> {
        loop {
            let goes_on = match self.next().await {
                // Boxed: made for this request and gone with it.
                Ok(Some(head)) => Box::pin(self.answer(head, &look_at)).await?,
                Ok(None) => false,
                Err(End::Refused(refusal)) => Box::pin(self.refuse(refusal)).await?,
                Err(End::Broken(error)) => return Err(error),
            };
            if !goes_on {
                break;
            }
        }
        let stream = self.wire.lock().take_stream();
        match stream {
            Some(mut stream) => stream.shutdown().await,
            // It left HTTP behind.
            None => Ok(()),
        }
    }

    /// The head of the next request; `None` when there is none to come.
    async fn next(&mut self) -> Result<Option<Box<Head>>, End> {
        let Self { wire, house, leaving, alarm, outgoing, was_served } = self;
        // Set when it has to be waited for.
        let mut deadline: Option<(Instant, bool)> = None;
        poll_fn(|cx| {
            let mut wire = wire.lock();
            loop {
                match wire.take_head() {
                    Ok(None) => {}
                    Ok(head) => return Poll::Ready(Ok(head)),
                    Err(refusal) => return Poll::Ready(Err(End::Refused(refusal))),
                }
                match wire.poll_read(cx)? {
                    Poll::Ready(0) => return Poll::Ready(Ok(None)),
                    Poll::Ready(_) => {}
                    Poll::Pending => break,
                }
            }
            let in_head = wire.is_in_head();
            if !in_head {
                wire.rest();
                outgoing.rest();
                if leaving.poll(*was_served, cx).is_ready() {
                    return Poll::Ready(Ok(None));
                }
            }
            let until = match deadline {
                Some((until, was_in_head)) if was_in_head || !in_head => until,
                _ => {
                    let patience = match (in_head, *was_served) {
                        (true, _) => house.head_patience,
                        (false, true) => IDLE,
                        (false, false) => FIRST_BYTE_PATIENCE,
                    };
                    let until = Instant::now() + patience;
                    deadline = Some((until, in_head));
                    until
                }
            };
            if alarm.poll(until, cx).is_pending() {
                return Poll::Pending;
            }
            if !in_head {
                return Poll::Ready(Ok(None));
            }
            house.entrance.turn_away(Reason::SlowHead);
            let late = io::Error::new(io::ErrorKind::TimedOut, "the request's head came too slowly");
            Poll::Ready(Err(late.into()))
        })
        .await
    }

    /// Answers one request. False when the connection ends with it.
    async fn answer(
        &mut self,
        head: Box<Head>,
        look_at: &impl Fn(Request<ClientBody>) -> Next,
    ) -> io::Result<bool> {
        let Head { parts, terms, .. } = *head;
        self.was_served = true;
        let body = ClientBody::Http1(self.wire.incoming());
        let next = look_at(Request::from_parts(parts, body));
        let answer = match next {
            Next::Answer(response) => Answer::Ready(*response),
            Next::Forward(_) => {
                let mut serving = pin!(forward::serve(next));
                let answered = poll_fn(|cx| match serving.as_mut().poll(cx) {
                    Poll::Ready(answer) => Poll::Ready(Some(answer)),
                    Poll::Pending => self.wire.lock().poll_gone(cx).map(|()| None),
                });
                match answered.await {
                    Some(answer) => answer,
                    None => return Err(left()),
                }
            }
        };
        self.send(answer, terms).await
    }

    /// What came is no request, so where the next one would begin is not known.
    async fn refuse(&mut self, refusal: Refusal) -> io::Result<bool> {
        self.house.entrance.turn_away(Reason::Malformed);
        self.house.linger.ask();
        let mut response = Response::new(ResponseBody::text(format!("{}\n", refusal.text)));
        *response.status_mut() = refusal.status;
        let terms = Terms {
            version: Version::HTTP_11,
            is_head: false,
            keeps: false,
            expects: false,
            takes_trailers: false,
        };
        self.send(response.into(), terms).await
    }

    /// Sends an answer to its end. False when the connection ends with it.
    async fn send(&mut self, answer: Answer, terms: Terms) -> io::Result<bool> {
        let status = answer.status();
        if matches!(status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
            self.house.linger.ask();
        }
        let is_body_lost = self.wire.lock().answer_begins();
        let ends = is_body_lost || self.house.shed.ends_with_answer() || self.leaving.is_asked();
        let keeps = answer::begin(&mut self.outgoing, answer, terms, !ends);
        let (wire, outgoing) = (&self.wire, &mut self.outgoing);
        let sent = poll_fn(|cx| match outgoing.poll(&mut Writer(wire), cx) {
            Poll::Ready(sent) => Poll::Ready(Some(sent)),
            Poll::Pending => wire.lock().poll_gone(cx).map(|()| None),
        });
        match sent.await {
            Some(Ok(())) => {}
            Some(Err(Stopped::Socket(error))) => return Err(error),
            Some(Err(Stopped::Body(error))) => {
                if let Some(stream) = self.wire.lock().take_stream()
                    && outgoing.ends_with_connection()
                {
                    stream.break_off();
                }
                return Err(error);
            }
            None => return Err(left()),
        }
        if status == StatusCode::SWITCHING_PROTOCOLS {
            self.wire.lock().upgrade();
            return Ok(false);
        }
        let is_over = poll_fn(|cx| self.wire.lock().poll_body_over(cx)).await;
        if !is_over {
            // It may still send; what it was told must not be lost for that.
            self.house.linger.ask();
        }
        Ok(keeps && is_over)
    }
}

fn left() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the client left before it was answered")
}
