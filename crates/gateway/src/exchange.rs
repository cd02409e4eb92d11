//! One request on its way through: what it holds (a ticket, a connection) and what is noted when it ends, however it ends.
//! Every request has exactly one exchange and every exchange finishes exactly once.

use crate::access_log::Entry;
use crate::answer::AnswerHead;
use crate::body::Progress;
use crate::gate::{Session, Ticket};
use crate::service::{Class, Service};
use crate::shadow::Tap;
use crate::split::ClientId;
use crate::upstream::{Connection, Failed};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode};
use rehome_part::Side;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};
use tokio_util::sync::CancellationToken;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered,
    /// Certainly no byte of it reached an upstream.
    NotSent,
    /// A byte may have left and no whole answer came.
    Unknown,
    /// The client went away.
    ClientLeft,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NotSent => "not-sent",
            Self::Unknown => "unknown",
            Self::ClientLeft => "client-left",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Exchange {
    pub service: Arc<Service>,
    pub class: Class,
    pub client: ClientId,
    pub address: ClientId,
    pub id: HeaderValue,
    pub method: Method,
    pub path: Option<PathAndQuery>,
    pub started: Instant,
    pub side: Option<Side>,
    pub status: StatusCode,
    pub ticket: Option<Ticket>,
    pub session: Option<Session>,
    pub connection: Option<Connection>,
    pub progress: Option<Arc<Progress>>,
    /// Takes a copy of the answer, to compare it with the other side's.
    pub tap: Option<Box<Tap>>,
    /// Was anything handed to an upstream?
    pub sent: bool,
    held: Option<Duration>,
    epoch: u64,
    finished: bool,
}

impl Exchange {
    pub fn new(
        service: Arc<Service>,
        class: Class,
        client: ClientId,
        address: ClientId,
        id: HeaderValue,
    ) -> Self {
        Self {
            epoch: service.gate.epoch().0,
            service,
            class,
            client,
            address,
            id,
            method: Method::GET,
            path: None,
            started: Instant::now(),
            side: None,
            status: StatusCode::BAD_GATEWAY,
            ticket: None,
            session: None,
            connection: None,
            progress: None,
            tap: None,
            sent: false,
            held: None,
            finished: false,
        }
    }

    /// May it change something? Also a session that began with a writing method.
    fn is_write(&self) -> bool {
        self.class == Class::Write
            || self.class == Class::Session && !self.service.plan.reads.contains(&self.method)
    }

    pub fn admitted(&mut self, ticket: Ticket) {
        self.epoch = ticket.epoch.0;
        if let Some(held) = ticket.held {
            self.held = Some(self.held.unwrap_or_default() + held);
        }
        self.ticket = Some(ticket);
    }

    /// Waits for the head of the answer, as long as it may take.
    pub async fn answer(&mut self) -> Option<Result<AnswerHead, Failed>> {
        let patience = self.service.plan.upstream_timeout;
        self.connection.as_mut()?.answer(patience, self.progress.as_ref()).await
    }

    /// The request is handed to `side` now.
    pub fn sending(&mut self, side: Side) {
        let state = self.service.side(side);
        state.requests[self.class as usize].fetch_add(1, Ordering::Relaxed);
        if self.is_write() {
            self.service.writes.fetch_add(1, Ordering::Relaxed);
        }
        self.side = Some(side);
        if !self.sent {
            let waited = self.held.unwrap_or_default();
            self.service.added.record(self.started.elapsed().saturating_sub(waited));
        }
        self.sent = true;
    }

    pub fn side_failed(&self, side: Side) {
        self.service.side(side).failed[self.class as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The upstream that has the request broke off, or did not answer in time.
    pub fn upstream_failed(&self) {
        if let Some(connection) = &self.connection {
            connection.member().failed();
        }
    }

    /// Did the client's side of the request's body break?
    pub fn client_broke_off(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| progress.has_failed())
    }

    /// The head of the answer is here. A write counts as acknowledged from now on: the client may see it any moment.
    pub fn answered(&mut self, status: StatusCode, took: Duration, sets_cookie: bool) {
        self.status = status;
        if let Some(progress) = &self.progress {
            progress.answer_began();
        }
        if let Some(side) = self.side {
            if let Some(connection) = &self.connection {
                connection.member().answered();
            }
            let state = self.service.side(side);
            state.record_answer(self.class, took);
            if status.is_server_error() {
                state.failed[self.class as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
        self.acknowledge(sets_cookie);
    }

    fn acknowledge(&self, sets_cookie: bool) {
        if self.class == Class::Read {
            return;
        }
        let service = &self.service;
        let (now, through) = (service.clock.micros(), service.through.load(Ordering::Relaxed));
        service.last_writes.acknowledge(self.client, now, through);
        if sets_cookie && self.address != self.client {
            service.last_writes.acknowledge(self.address, now, through);
        }
    }

    /// The answer turned out to have no end.
    pub fn become_session(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.session = Some(ticket.into_session());
        }
    }

    pub fn session_end(&self) -> Option<Arc<CancellationToken>> {
        self.session.as_ref().map(|session| session.end.clone())
    }

    /// Was the whole answer received?
    pub fn is_received(&self) -> bool {
        self.connection.as_ref().is_none_or(|connection| connection.is_end_stream())
    }

    /// The whole answer was received.
    pub fn complete(mut self) {
        if let Some(connection) = self.connection.take()
            && self.session.is_none()
        {
            let progress = self.progress.take();
            let is_sent = connection.is_sent() && progress.as_ref().is_none_or(|progress| progress.is_done());
            match is_sent {
                true => connection.give_back(),
                false => self.linger(connection, progress),
            }
        }
        self.finish(Outcome::Answered);
    }

    /// The answer came before the whole request was sent. The rest may follow as long as it moves, so that the client sees
    /// the answer and no reset; an upstream that takes no more of it must not keep both connections for ever.
    fn linger(&self, mut connection: Connection, progress: Option<Arc<Progress>>) {
        let service = self.service.clone();
        service.tasks.clone().spawn(async move {
            let patience = service.plan.upstream_timeout;
            tokio::select! {
                // All of this request was sent, or it is closed, or nothing moves.
                _ = in_time(connection.sent(), progress.as_ref(), patience) => {}
                () = service.kill.cancelled() => {}
            }
        });
    }

    /// The answer began and broke off.
    pub fn answer_broke(mut self) {
        if let Some(side) = self.side {
            self.side_failed(side);
        }
        self.finish(Outcome::Unknown);
    }

    /// The client did not wait for the whole answer. A write's answer is received to its end all the same, so that "in
    /// flight" stays true to its name.
    pub fn client_left(mut self) {
        if self.ticket.is_none() || tokio::runtime::Handle::try_current().is_err() {
            return self.finish(Outcome::ClientLeft);
        }
        let (service, patience) = (self.service.clone(), self.service.plan.upstream_timeout);
        service.tasks.clone().spawn(async move {
            let drained = async {
                match &mut self.connection {
                    Some(connection) => connection.drain().await,
                    None => Ok(()),
                }
            };
            tokio::select! {
                _ = tokio::time::timeout(patience, drained) => {}
                () = service.kill.cancelled() => {}
            }
            self.finish(Outcome::ClientLeft);
        });
    }

    /// Ends the exchange: counts, log, and whatever it held.
    pub fn finish(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let service = &self.service;
        if self.is_write() && self.sent {
            self.acknowledge(false);
            if let Some(ticket) = &self.ticket {
                service.write_times.record(ticket.started.elapsed());
            }
            if outcome == Outcome::Unknown {
                service.writes_unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let Some(held) = self.held {
            service.held.fetch_add(1, Ordering::Relaxed);
            service.held_micros.fetch_add(held.as_micros() as u64, Ordering::Relaxed);
        }
        if let Some(log) = &service.log {
            log.record(self.entry(outcome));
        }
        if let Some(tap) = self.tap.take() {
            if outcome == Outcome::Answered {
                tap.whole(&self.service, &self.id)
            } else {
                tap.cut(&self.service)
            }
        }
        self.connection = None;
        self.ticket = None;
        self.session = None;
    }

    fn entry(&self, outcome: Outcome) -> Entry {
        let millis = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Entry {
            time: time.as_millis() as u64,
            service: self.service.plan.name.clone(),
            id: String::from_utf8_lossy(self.id.as_bytes()).into_owned(),
            client: format!("{:016x}", self.client.0),
            method: self.method.to_string(),
            path: self.path.as_ref().map_or("/", |path| path.path()).to_owned(),
            class: self.class.name(),
            side: self.side.map(|side| if side == Side::Source { "source" } else { "target" }),
            epoch: self.epoch,
            status: self.status.as_u16(),
            millis: millis(self.started.elapsed()),
            held_ms: self.held.map(millis),
            outcome: outcome.name(),
        }
    }
}

/// Waits; the time runs anew while the request's body moves.
async fn in_time(work: impl Future<Output = ()>, progress: Option<&Arc<Progress>>, timeout: Duration) {
    let mut work = std::pin::pin!(work);
    let mut deadline = tokio::time::Instant::now() + timeout;
    while tokio::time::timeout_at(deadline, work.as_mut()).await.is_err() {
        let Some(progress) = progress else { return };
        let moved = tokio::time::Instant::from_std(progress.last()) + timeout;
        if moved <= deadline {
            return;
        }
        deadline = moved;
    }
}

impl Drop for Exchange {
    /// Dropped without an end: the client went away while the request waited or was under way.
    fn drop(&mut self) {
        self.finish(if self.sent && self.is_write() { Outcome::Unknown } else { Outcome::ClientLeft });
    }
}
