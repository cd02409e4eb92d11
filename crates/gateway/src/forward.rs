//! One request from its head to the head of its answer: class, side, the wait at the gate, the send, and what the client hears
//! when it fails. A write is handed to an upstream at most once; a read without a body may be sent again.

use crate::answer::{Answer, AnswerHead, Headers, Passed};
use crate::body::{RequestBody, ResponseBody};
use crate::config::host_value;
use crate::downstream::ClientBody;
use crate::exchange::{Exchange, Outcome};
use crate::gate::Label;
use crate::headers::{self, Seen};
use crate::hold::Full;
use crate::http1::{MAX_HEAD, Unclear};
use crate::limits::{self, BodyLimits, Cut, Reason};
use crate::origin::Origin;
use crate::service::{Class, Service};
use crate::session;
use crate::split::ClientId;
use crate::upstream::{Connection, Failed, Head, Member};
use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Version, request};
use http_body::Body;
use rehome_part::Side;
use rehome_spec::UpstreamHttp;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What a waiting write's body may take at most: it is left unread, but the connection's own buffer may fill.
const BODY_BUFFER: u64 = 64 << 10;
/// How often a read is sent again to the same side.
const REPEATS: u32 = 2;

/// Answers one request that was looked at.
pub(crate) async fn serve(next: Next) -> Answer {
    match next {
        Next::Answer(response) => (*response).into(),
        Next::Forward(asked) if asked.exchange.class == Class::Read => read(asked).await,
        // Boxed: a connection keeps room for what its future may hold, also while it idles.
        Next::Forward(asked) => Box::pin(write(asked)).await,
    }
}

/// What becomes of a request. Small, because futures are moved with all they hold.
pub(crate) enum Next {
    Forward(Box<Asked>),
    Answer(Box<Response<ResponseBody>>),
}

impl Next {
    pub fn answer(response: Response<ResponseBody>) -> Self {
        Self::Answer(Box::new(response))
    }
}

/// A request that may be forwarded.
pub(crate) struct Asked {
    exchange: Exchange,
    head: Head,
    /// `None` once it was handed over.
    body: Option<RequestBody>,
    waiting_bytes: u64,
    upgrade: Option<session::Wanted>,
}

/// Looks at a request, and makes of it what an upstream gets.
pub(crate) fn look_at(service: Arc<Service>, origin: Origin, mut request: Request<ClientBody>) -> Next {
    let seen = Seen::of(request.headers());
    let class = classify(&service, &request, seen);
    let address = ClientId::of_address(origin.client);
    let client = ClientId::of(&service.plan.clients, request.headers(), origin.client);
    let own_id = headers::own_id(request.headers(), seen);
    let has_own_id = own_id.is_some();
    let id = own_id.unwrap_or_else(headers::random_id);
    let mut exchange = Exchange::new(service, class, client, address, id);
    exchange.method = request.method().clone();
    exchange.path = request.uri().path_and_query().cloned();
    let head_bytes = head_bytes(&request);
    if let Err((status, text)) = check(&request, seen, head_bytes) {
        let mut response = refuse(exchange, status, text, Outcome::NotSent);
        if request.version() <= Version::HTTP_11 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        return Next::answer(response);
    }
    if exchange.service.plan.max_body.is_some_and(|largest| request.body().size_hint().lower() > largest) {
        exchange.service.entrance.turn_away(Reason::BodySize);
        let (status, text) = fault(Some(Cut::TooLarge));
        if request.version() == Version::HTTP_2 {
            limits::keep_a_moment(&exchange.service, request.into_body());
        }
        return Next::answer(refuse(exchange, status, text, Outcome::NotSent));
    }
    let upgrade = session::Wanted::of(&mut request, seen);
    if upgrade.is_none() && *request.method() == Method::CONNECT {
        let text = "CONNECT is not offered here\n";
        return Next::answer(refuse(exchange, StatusCode::METHOD_NOT_ALLOWED, text, Outcome::NotSent));
    }
    let body_bytes = request.body().size_hint().upper().unwrap_or(BODY_BUFFER).min(BODY_BUFFER);
    let waiting_bytes = head_bytes + body_bytes;
    let (mut parts, body) = request.into_parts();
    let host = match (parts.uri.authority().and_then(host_value), parts.headers.contains_key(header::HOST)) {
        (None, false) => first_authority(&exchange.service),
        (host, _) => host,
    };
    let new_id = (!has_own_id).then(|| exchange.id.clone());
    let added = headers::prepare_request(&mut parts.headers, seen, parts.version, &origin, host, new_id);
    if upgrade.is_some() && exchange.service.plan.dialing.http == UpstreamHttp::Two {
        let text = "this service is spoken to with HTTP/2, which has no upgrades\n";
        return Next::answer(refuse(exchange, StatusCode::NOT_IMPLEMENTED, text, Outcome::NotSent));
    }
    let (body, progress) = RequestBody::passing(body, || body_limits(&exchange.service, &parts));
    address_upstream(&exchange.service, &mut parts, &exchange.path);
    exchange.progress = progress;
    if let Some(wanted) = &upgrade {
        wanted.restore(&mut parts);
    }
    let head = Head { parts, added };
    Next::Forward(Box::new(Asked { exchange, head, body: Some(body), waiting_bytes, upgrade }))
}

/// What an HTTP/1.0 client left out and HTTP/1.1 wants.
fn first_authority(service: &Service) -> Option<HeaderValue> {
    service.plan.source.first().and_then(|upstream| HeaderValue::from_str(&upstream.authority).ok())
}

/// Puts path, host and version into the form in which an HTTP/2 upstream is spoken to; over HTTP/1.1 the path is all it needs.
fn address_upstream(service: &Service, parts: &mut request::Parts, path: &Option<PathAndQuery>) {
    if service.plan.dialing.http == UpstreamHttp::One {
        parts.version = Version::HTTP_11;
        return;
    }
    let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    parts.uri = service.plan.upstream_uri(path.clone(), host, service.plan.dialing.tls.is_some());
    parts.headers.remove(header::HOST);
    parts.version = Version::HTTP_2;
}

/// Calls that stream both ways may be silent for long; everything else is sent in one go.
fn body_limits(service: &Service, parts: &request::Parts) -> BodyLimits {
    let patience = (!headers::is_stream(&parts.headers)).then_some(service.patience.body);
    BodyLimits::new(service.plan.max_body, patience, service.entrance.clone())
}

/// What the client hears when its own body is the trouble.
fn fault(cut: Option<Cut>) -> (StatusCode, &'static str) {
    match cut {
        Some(Cut::TooLarge) => {
            (StatusCode::PAYLOAD_TOO_LARGE, "the request's body is larger than this service takes\n")
        }
        Some(Cut::TooSlow) => (StatusCode::REQUEST_TIMEOUT, "the request's body came too slowly\n"),
        None => (StatusCode::BAD_REQUEST, "the request's body broke off\n"),
    }
}

fn classify<B>(service: &Service, request: &Request<B>, seen: Seen) -> Class {
    let asks = headers::wants_upgrade(request, seen) || session::is_extended_connect(request);
    if asks || headers::wants_events(request.headers(), seen) {
        Class::Session
    } else if service.plan.reads.contains(request.method()) {
        Class::Read
    } else {
        Class::Write
    }
}

/// What must not be forwarded and the parser below (ours, or hyper's for HTTP/2) lets pass.
fn check<B>(request: &Request<B>, seen: Seen, head_bytes: u64) -> Result<(), (StatusCode, &'static str)> {
    if head_bytes > MAX_HEAD as u64 {
        return Err((StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's head is too large\n"));
    }
    headers::ambiguity(request, seen).map_or(Ok(()), |text| Err((StatusCode::BAD_REQUEST, text)))
}

/// The memory a request's head takes, roughly.
fn head_bytes<B>(request: &Request<B>) -> u64 {
    let headers: usize =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    (headers + path) as u64
}

/// A read: to the side its client belongs to; what cannot connect there goes to the owner.
async fn read(mut asked: Box<Asked>) -> Answer {
    let service = asked.exchange.service.clone();
    let mut side = service.side_of_read(asked.exchange.client, asked.exchange.address);
    let is_empty = asked.body.as_ref().is_none_or(Body::is_end_stream);
    let repeatable = headers::is_repeatable(&asked.head.parts.method) && is_empty;
    if side == service.gate.owner() {
        asked.exchange.tap = service.shadow.choose(&asked.head, !is_empty);
    }
    let mut fresh: Option<Arc<Member>> = None;
    let mut repeats = 0;
    service.budget.earn();
    loop {
        let state = service.side(side);
        let taken = match &fresh {
            Some(broken) => state.group.connect(Some(broken)).await,
            None => state.group.take(false).await,
        };
        let (connection, connecting) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                tracing::debug!(%error, %side, "cannot connect");
                asked.exchange.side_failed(side);
                if side != service.gate.owner() {
                    (side, fresh) = (service.gate.owner(), None);
                    continue;
                }
                let text = "the service cannot be reached\n";
                return refuse(asked.exchange, StatusCode::BAD_GATEWAY, text, Outcome::NotSent).into();
            }
        };
        if let Some(took) = connecting {
            state.connects.record(took);
        }
        // Another try: on a fresh connection when an old one broke, with a peer when there is one, on the owner when the other
        // side broke.
        let here = repeats < REPEATS && (connection.reused || state.group.members().len() > 1);
        let again = match (here, side != service.gate.owner()) {
            (true, _) => Some((side, Some(connection.member().clone()))),
            (false, true) => Some((service.gate.owner(), None)),
            (false, false) => None,
        };
        let again = again.filter(|_| repeatable);
        if repeatable {
            asked.body = Some(RequestBody::Empty);
        }
        match send_read(&mut asked, side, connection).await {
            Ok(answer) => return respond(asked.exchange, answer),
            Err(Failure::TimedOut) => {
                asked.exchange.side_failed(side);
                let text = "the service did not answer\n";
                return refuse(asked.exchange, StatusCode::GATEWAY_TIMEOUT, text, Outcome::Unknown).into();
            }
            Err(Failure::Broken) => match again {
                Some(next) if service.may_repeat() => {
                    (side, fresh) = next;
                    repeats += 1;
                }
                _ => return broken_read(asked.exchange, side).into(),
            },
        }
        asked.exchange.side_failed(side);
    }
}

fn broken_read(exchange: Exchange, side: Side) -> Response<ResponseBody> {
    if let Some(progress) = exchange.progress.as_ref().filter(|progress| progress.has_failed()) {
        let (status, text) = fault(progress.cut());
        return refuse(exchange, status, text, Outcome::ClientLeft);
    }
    exchange.side_failed(side);
    refuse(exchange, StatusCode::BAD_GATEWAY, "the service broke off\n", Outcome::Unknown)
}

enum Failure {
    TimedOut,
    Broken,
}

async fn send_read(asked: &mut Asked, side: Side, mut connection: Connection) -> Result<AnswerHead, Failure> {
    let Some(body) = asked.body.take() else { return Err(Failure::Broken) };
    let exchange = &mut asked.exchange;
    exchange.sending(side);
    let sent_at = Instant::now();
    let timeout = exchange.service.plan.upstream_timeout;
    connection.begin(&asked.head, body);
    match connection.answer(timeout, exchange.progress.as_ref()).await {
        Some(Ok(answer)) if is_upgrade(answer.status) => {
            tracing::debug!(%side, "an upgrade that nobody asked for");
            Err(Failure::Broken)
        }
        Some(Ok(answer)) => {
            exchange.connection = Some(connection);
            let took = sent_at.elapsed();
            if let Some(tap) = &mut exchange.tap {
                tap.took(took);
            }
            exchange.answered(answer.status, took, false);
            Ok(answer)
        }
        Some(Err(failed)) => {
            tracing::debug!(error = %failed.error, %side, "no answer to a read");
            // A kept connection may have ended of old age; only a young one says something about its upstream.
            if !connection.reused && !exchange.client_broke_off() {
                connection.member().failed();
            }
            Err(Failure::Broken)
        }
        None => {
            connection.member().failed();
            Err(Failure::TimedOut)
        }
    }
}

/// A write or a session: through the gate, to the owner, once.
async fn write(mut asked: Box<Asked>) -> Answer {
    let service = asked.exchange.service.clone();
    let (side, connection) = loop {
        let exchange = &mut asked.exchange;
        let label = Label::Request { method: exchange.method.clone(), path: exchange.path.clone() };
        match service.gate.enter(label, asked.waiting_bytes).await {
            Ok(ticket) => exchange.admitted(ticket),
            Err(full) => return full_response(asked.exchange, full).into(),
        }
        let side = side_of_write(exchange);
        let taken = service.side(side).group.take(true).await;
        if exchange.ticket.as_ref().is_some_and(|ticket| ticket.is_stale()) {
            // The lease ended while a connection was made; nothing was sent, so it waits like the others.
            exchange.ticket = None;
            continue;
        }
        match taken {
            Ok((connection, connecting)) => {
                if let Some(took) = connecting {
                    service.side(side).connects.record(took);
                }
                break (side, connection);
            }
            Err(error) => return unreachable_write(asked.exchange, side, &error).into(),
        }
    };
    let was_held = asked.exchange.ticket.as_ref().is_some_and(|ticket| ticket.held.is_some());
    if service.sabotage.release_twice
        && was_held
        && let Some(body) = asked.body.take()
    {
        asked.body = Some(Box::pin(crate::sabotage::send_once_more(&service, side, &asked.head, body)).await);
    }
    send_write(asked, side, connection).await
}

fn side_of_write(exchange: &Exchange) -> Side {
    let service = &exchange.service;
    let Some(ticket) = &exchange.ticket else { return service.gate.owner() };
    if service.sabotage.release_both
        && ticket.held.is_some()
        && service.sabotage_turn.fetch_xor(true, Ordering::Relaxed)
    {
        return ticket.owner.other();
    }
    ticket.owner
}

async fn send_write(mut asked: Box<Asked>, side: Side, mut connection: Connection) -> Answer {
    asked.exchange.sending(side);
    loop {
        let sent_at = Instant::now();
        // Handed over once, and here again only when not a byte of it left.
        let Some(body) = asked.body.take() else { return internal().into() };
        connection.begin(&asked.head, body);
        asked.exchange.connection = Some(connection);
        let mut following = Following(Some(asked));
        let answer = following.answer().await;
        let Some(back) = following.0.take() else { return internal().into() };
        asked = back;
        let exchange = &mut asked.exchange;
        match answer {
            // To pass it on would end HTTP on a connection whose client goes on with it.
            Some(Ok(answer)) if asked.upgrade.is_none() && is_upgrade(answer.status) => {
                exchange.side_failed(side);
                let text = "the service changed the protocol unasked; whether it did the work is not known\n";
                return refuse(asked.exchange, StatusCode::BAD_GATEWAY, text, Outcome::Unknown).into();
            }
            Some(Ok(answer)) => {
                let sets_cookie = answer.sets_cookie();
                exchange.answered(answer.status, sent_at.elapsed(), sets_cookie);
                let Asked { exchange, upgrade, .. } = *asked;
                return match upgrade {
                    Some(wanted) if is_upgrade(answer.status) => match answer.into_parts() {
                        Ok(parts) => session::begin(exchange, wanted, parts).into(),
                        Err(unclear) => unclear_answer(exchange, unclear).into(),
                    },
                    _ => respond(exchange, answer),
                };
            }
            Some(Err(Failed { unsent: Some(unsent), error, .. })) => {
                tracing::debug!(%error, %side, "a write could not be begun");
                // The connection had ended before it took a byte of the request, so a fresh one may.
                match fresh_for(exchange, side).await {
                    Ok(_) if exchange.ticket.as_ref().is_some_and(|ticket| ticket.is_stale()) => {
                        let text = "the gateway lost its lease; nothing was sent, please try again\n";
                        let status = StatusCode::SERVICE_UNAVAILABLE;
                        return refuse(asked.exchange, status, text, Outcome::NotSent).into();
                    }
                    Ok((fresh, _)) => (asked.body, connection) = (Some(*unsent), fresh),
                    Err(error) => return unreachable_write(asked.exchange, side, &error).into(),
                }
            }
            Some(Err(failed)) => return broken_write(asked.exchange, side, &failed).into(),
            None => {
                exchange.side_failed(side);
                exchange.upstream_failed();
                let text = "the service did not answer in time; whether it did the work is not known\n";
                return refuse(asked.exchange, StatusCode::GATEWAY_TIMEOUT, text, Outcome::Unknown).into();
            }
        }
    }
}

/// A new connection for a write whose old one ended before it took anything.
fn fresh_for(
    exchange: &Exchange,
    side: Side,
) -> impl Future<Output = std::io::Result<(Connection, Option<Duration>)>> + Send + use<> {
    let service = exchange.service.clone();
    let broken = exchange.connection.as_ref().map(|connection| connection.member().clone());
    async move { service.side(side).group.connect(broken.as_ref()).await }
}

fn is_upgrade(status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS
}

/// Keeps a write's answer awaited when the client goes away: the upstream works on it all the same, and until it answered
/// (or its time is over) the write is in flight.
struct Following(Option<Box<Asked>>);

impl Following {
    async fn answer(&mut self) -> Option<Result<AnswerHead, Failed>> {
        self.0.as_mut()?.exchange.answer().await
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let Some(asked) = self.0.take() else { return };
        let mut exchange = asked.exchange;
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let service = exchange.service.clone();
        let tasks = service.tasks.clone();
        tasks.spawn(async move {
            tokio::select! {
                answer = exchange.answer() => {
                    if let Some(Ok(answer)) = answer
                        && !is_upgrade(answer.status)
                        && !answer.is_stream()
                    {
                        exchange.status = answer.status;
                        return exchange.client_left();
                    }
                }
                () = service.kill.cancelled() => {}
            }
            exchange.finish(Outcome::Unknown);
        });
    }
}

/// The head and body of an answer, as the client gets them.
fn respond(mut exchange: Exchange, head: AnswerHead) -> Answer {
    if exchange.class != Class::Read && head.is_stream() {
        exchange.become_session();
    }
    let AnswerHead { status, version, reason, headers } = head;
    let head = match headers {
        Headers::Lines(lines) if exchange.tap.is_none() && Passed::suits(&lines) => {
            let id = exchange.id.clone();
            let body = ResponseBody::passing(exchange);
            return Answer::Passed(Passed { status, version, reason, lines, id, body });
        }
        headers => AnswerHead { status, version, reason, headers },
    };
    let parts = match head.into_prepared(&exchange.id) {
        Ok(parts) => parts,
        Err(unclear) => return unclear_answer(exchange, unclear).into(),
    };
    if let Some(tap) = &mut exchange.tap {
        tap.head(&parts);
    }
    Response::from_parts(parts, ResponseBody::passing(exchange)).into()
}

fn unclear_answer(exchange: Exchange, unclear: Unclear) -> Response<ResponseBody> {
    let text = format!("the service's answer makes no sense: {unclear}\n");
    refuse(exchange, StatusCode::BAD_GATEWAY, text, Outcome::Unknown)
}

fn full_response(exchange: Exchange, full: Full) -> Response<ResponseBody> {
    let text = format!("{full}; nothing was sent, please try again\n");
    refuse(exchange, StatusCode::SERVICE_UNAVAILABLE, text, Outcome::NotSent)
}

fn unreachable_write(exchange: Exchange, side: Side, error: &std::io::Error) -> Response<ResponseBody> {
    tracing::debug!(%error, %side, "cannot connect for a write");
    exchange.side_failed(side);
    let text = "the service cannot be reached; nothing was sent, please try again\n";
    refuse(exchange, StatusCode::SERVICE_UNAVAILABLE, text, Outcome::NotSent)
}

fn broken_write(exchange: Exchange, side: Side, failed: &Failed) -> Response<ResponseBody> {
    tracing::debug!(error = %failed.error, %side, "no answer to a write");
    if let Some(progress) = exchange.progress.as_ref().filter(|progress| progress.has_failed()) {
        let outcome = if failed.may_have_left { Outcome::Unknown } else { Outcome::NotSent };
        let (status, text) = fault(progress.cut());
        return refuse(exchange, status, text, outcome);
    }
    if !failed.may_have_left {
        let text = "the connection to the service ended; nothing was sent, please try again\n";
        exchange.side_failed(side);
        return refuse(exchange, StatusCode::SERVICE_UNAVAILABLE, text, Outcome::NotSent);
    }
    exchange.side_failed(side);
    exchange.upstream_failed();
    let text = "the connection to the service broke; whether it did the work is not known\n";
    refuse(exchange, StatusCode::BAD_GATEWAY, text, Outcome::Unknown)
}

/// Unreachable in practice: the future above always hands its exchange back.
fn internal() -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::text("the gateway lost track of this request\n"));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

/// An answer of the gateway's own; ends the exchange.
pub(crate) fn refuse(
    mut exchange: Exchange,
    status: StatusCode,
    text: impl Into<bytes::Bytes>,
    outcome: Outcome,
) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::text(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(headers::REQUEST_ID, exchange.id.clone());
    if exchange.class != Class::Read {
        headers.insert(headers::OUTCOME, HeaderValue::from_static(outcome.name()));
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if outcome == Outcome::NotSent && status.is_server_error() {
        exchange.service.refused.fetch_add(1, Ordering::Relaxed);
    }
    exchange.status = status;
    exchange.sent &= outcome != Outcome::NotSent;
    exchange.finish(outcome);
    response
}
