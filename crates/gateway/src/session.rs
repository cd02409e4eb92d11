//! Upgraded connections: after both sides agreed to another protocol, bytes pass both ways untouched until one side ends, the
//! process ends, or a switch closes the session. A session stays with the side that was the owner when it began.

use crate::body::ResponseBody;
use crate::exchange::{Exchange, Outcome};
use crate::headers;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

/// The client's half of an upgrade.
pub(crate) struct Wanted {
    client: OnUpgrade,
    protocol: HeaderValue,
}

impl Wanted {
    pub fn of(request: &mut Request<Incoming>) -> Self {
        let protocol = request.headers().get(header::UPGRADE).cloned();
        Self {
            client: hyper::upgrade::on(request),
            protocol: protocol.unwrap_or(HeaderValue::from_static("")),
        }
    }

    /// Puts back what every proxy removes and an upgrade needs.
    pub fn restore(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, self.protocol.clone());
    }
}

/// Passes the upstream's 101 on and joins both connections.
pub(crate) fn begin(
    mut exchange: Exchange,
    wanted: Wanted,
    mut response: Response<Incoming>,
) -> Response<ResponseBody> {
    exchange.become_session();
    let upstream = hyper::upgrade::on(&mut response);
    let (mut parts, _) = response.into_parts();
    let protocol = parts.headers.get(header::UPGRADE).cloned().unwrap_or_else(|| wanted.protocol.clone());
    headers::prepare_response(&mut parts.headers, parts.version);
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    parts.headers.insert(header::UPGRADE, protocol);
    parts.status = StatusCode::SWITCHING_PROTOCOLS;
    let service = exchange.service.clone();
    service.tasks.clone().spawn(async move {
        let end = exchange.session_end();
        let closed = async {
            match &end {
                Some(end) => end.cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = join(wanted.client, upstream) => {}
            () = closed => {}
            () = service.kill.cancelled() => {}
        }
        exchange.finish(Outcome::Answered);
    });
    Response::from_parts(parts, ResponseBody::empty())
}

async fn join(client: OnUpgrade, upstream: OnUpgrade) {
    let (client, upstream) = match tokio::try_join!(client, upstream) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "an upgrade did not come about"),
    };
    let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut upstream).await {
        tracing::debug!(%error, "a session ended");
    }
}
