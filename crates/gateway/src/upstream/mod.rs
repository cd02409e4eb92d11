//! The way to the application: the addresses of a side, connections to them, and what may be said of the bytes that left.
//! Never decides which side a request goes to, and never repeats one.

mod budget;
mod dial;
mod group;
mod member;

pub(crate) use budget::Budget;
pub(crate) use dial::Dialing;
pub(crate) use group::Group;
pub(crate) use member::Member;

use crate::body::RequestBody;
use dial::Line;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};
use member::UnderWay;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) type Answer = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>;
pub(crate) type AnswerFuture = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// A connection in use by one request.
#[derive(Debug)]
pub(crate) struct Connection {
    kind: Kind,
    /// Did it serve a request before?
    pub reused: bool,
    under_way: UnderWay,
}

#[derive(Debug)]
enum Kind {
    /// HTTP/1.1: nobody else's until it is given back.
    Own(Line),
    /// A stream of an HTTP/2 connection.
    Shared(http2::SendRequest<RequestBody>),
}

impl Connection {
    pub fn member(&self) -> &Arc<Member> {
        self.under_way.member()
    }

    /// Sends a request; the answer ends with its head.
    pub async fn send(&mut self, request: Request<RequestBody>) -> Answer {
        match &mut self.kind {
            Kind::Own(line) => line.sender.try_send_request(request).await,
            Kind::Shared(sender) => sender.try_send_request(request).await,
        }
    }

    /// The same as a value of its own, for a request that has to outlive its client.
    pub fn send_owned(&mut self, request: Request<RequestBody>) -> AnswerFuture {
        match &mut self.kind {
            Kind::Own(line) => Box::pin(line.sender.try_send_request(request)),
            Kind::Shared(sender) => Box::pin(sender.try_send_request(request)),
        }
    }

    /// Waits until the whole of the last request was sent and answered, or the connection ended.
    pub async fn ready(&mut self) -> hyper::Result<()> {
        match &mut self.kind {
            Kind::Own(line) => line.sender.ready().await,
            Kind::Shared(sender) => sender.ready().await,
        }
    }

    /// The last answer was received completely: the next request may have the connection.
    pub fn give_back(self) {
        let Self { kind, under_way, .. } = self;
        if let Kind::Own(line) = kind {
            under_way.member().keep(line);
        }
    }

    /// Closes it whatever it is doing; dropped alone, it would first send the rest of a request's body. A stream among
    /// others ends by itself: its connection is not this request's to close.
    pub fn cut(self) {
        if let Kind::Own(line) = &self.kind {
            line.driver.abort();
        }
    }

    pub fn sent_bytes(&self) -> SentBytes {
        match &self.kind {
            Kind::Own(Line { sent, .. }) => {
                SentBytes::Counted { counter: sent.clone(), before: sent.load(Ordering::SeqCst) }
            }
            Kind::Shared(_) => SentBytes::AmongOthers,
        }
    }
}

/// Tells whether any byte of a request left.
#[derive(Debug)]
pub(crate) enum SentBytes {
    Counted {
        counter: Arc<AtomicU64>,
        before: u64,
    },
    /// Others use the connection, too.
    AmongOthers,
}

impl SentBytes {
    /// Can a byte have left? Where that cannot be told, yes.
    pub fn any(&self) -> bool {
        match self {
            Self::Counted { counter, before } => counter.load(Ordering::SeqCst) != *before,
            Self::AmongOthers => true,
        }
    }

    /// The connection handed the whole request back: did nothing of it leave? An HTTP/2 connection hands back only what
    /// never became a stream.
    pub fn none_of_what_came_back(&self) -> bool {
        matches!(self, Self::AmongOthers) || !self.any()
    }
}
