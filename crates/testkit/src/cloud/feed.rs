//! The change hook: what was written and removed, in order, with positions that only grow. Read-only, behind a token.

use super::store::{Change, Store};
use crate::listen;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const MOST: usize = 10_000;
const LONGEST_WAIT: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize)]
struct Answer<'a> {
    head: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Vec<Line<'a>>>,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    position: String,
    key: &'a str,
    kind: &'static str,
    /// Empty: whoever wrote it named no request.
    request: &'a str,
}

/// What a reader asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Head,
    After { position: u64, limit: usize, wait: Duration },
}

pub(super) async fn serve(
    listener: TcpListener,
    store: Arc<Store>,
    bucket: String,
    token: String,
    shutdown: CancellationToken,
) {
    let expected: Arc<str> = format!("Bearer {token}").into();
    let bucket: Arc<str> = bucket.into();
    listen::serve(listener, shutdown.clone(), move |request: Request<hyper::body::Incoming>| {
        let (store, bucket, expected, shutdown) =
            (store.clone(), bucket.clone(), expected.clone(), shutdown.clone());
        async move {
            let shown =
                request.headers().get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
            if !same(shown, expected.as_bytes()) {
                return refuse(StatusCode::UNAUTHORIZED, "the token is missing or wrong");
            }
            if request.method() != Method::GET || request.uri().path() != "/changes" {
                return refuse(StatusCode::NOT_FOUND, "only GET /changes is here");
            }
            match parse(request.uri().query().unwrap_or("")) {
                Ok(Asked::Head) => {
                    let head = store.survey(|index| index.head);
                    json(StatusCode::OK, &Answer { head: head.to_string(), position: None, changes: None })
                }
                Ok(Asked::After { position, limit, wait }) => {
                    tokio::select! {
                        () = wait_for_more(&store, position, wait) => {}
                        () = shutdown.cancelled() => {}
                    }
                    changes(&store, &bucket, position, limit)
                }
                Err(why) => refuse(StatusCode::BAD_REQUEST, why),
            }
        }
    })
    .await;
}

async fn wait_for_more(store: &Store, position: u64, wait: Duration) {
    let mut heads = store.heads();
    let more = heads.wait_for(|head| *head != position);
    let _ = tokio::time::timeout(wait, more).await; // nothing new in time is an answer too
}

fn changes(store: &Store, bucket: &str, after: u64, limit: usize) -> Response<Full<Bytes>> {
    store.survey(|index| {
        let oldest = index.feed.front().map_or(index.head + 1, |change| change.position);
        if after > index.head || after + 1 < oldest {
            return refuse(StatusCode::GONE, "this position is not kept (any more)");
        }
        let skip = usize::try_from(after + 1 - oldest).unwrap_or(usize::MAX);
        let newer = index.feed.iter().skip(skip);
        let mut position = index.head;
        let mut lines = Vec::new();
        for change in newer.filter(|change| change.bucket == bucket) {
            if lines.len() == limit {
                break;
            }
            lines.push(line(change));
        }
        if lines.len() == limit {
            position = lines.last().and_then(|line| line.position.parse().ok()).unwrap_or(after);
        }
        json(
            StatusCode::OK,
            &Answer {
                head: index.head.to_string(),
                position: Some(position.to_string()),
                changes: Some(lines),
            },
        )
    })
}

fn line(change: &Change) -> Line<'_> {
    let kind = if change.deleted { "delete" } else { "put" };
    let request = change.request.as_deref().unwrap_or_default();
    Line { position: change.position.to_string(), key: &change.key, kind, request }
}

fn parse(query: &str) -> Result<Asked, &'static str> {
    let (mut position, mut limit, mut wait_ms) = (0, 1_000, 0);
    for (name, value) in query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    {
        match name {
            "head" if value == "true" => return Ok(Asked::Head),
            "after" => position = value.parse().map_err(|_| "after is not a position")?,
            "limit" => limit = value.parse().map_err(|_| "limit is not a number")?,
            "wait_ms" => wait_ms = value.parse().map_err(|_| "wait_ms is not a number")?,
            _ => return Err("unknown parameter"),
        }
    }
    let wait = Duration::from_millis(wait_ms).min(LONGEST_WAIT);
    Ok(Asked::After { position, limit: limit.clamp(1, MOST), wait })
}

/// Compares without telling by time where the difference is.
fn same(shown: &[u8], expected: &[u8]) -> bool {
    shown.len() == expected.len() && shown.iter().zip(expected).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
}

fn json(status: StatusCode, answer: &impl Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(answer).expect("plain structures of text serialize");
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn refuse(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    json(status, &serde_json::json!({ "error": why }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions() {
        assert_eq!(parse("head=true"), Ok(Asked::Head));
        let wait = Duration::from_millis(50);
        assert_eq!(parse("after=7&limit=2&wait_ms=50"), Ok(Asked::After { position: 7, limit: 2, wait }));
        assert_eq!(parse(""), Ok(Asked::After { position: 0, limit: 1_000, wait: Duration::ZERO }));
        assert!(parse("after=-1").is_err());
        assert!(parse("since=1").is_err());
    }
}
