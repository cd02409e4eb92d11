//! A small HTTP client for change hooks, fence hooks and clock checks: verified TLS, bounded bodies, bounded time.
//! It never retries, follows no redirect, and never shows a token.

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rehome_part::{Error, ErrorKind, Result};
use std::fmt;
use std::time::Duration;

/// The largest answer that is read.
const LARGEST_ANSWER: usize = 8 << 20;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Connections idle longer are not used again: the server may be closing them.
const IDLE_LIMIT: Duration = Duration::from_secs(4);

/// An address with the token it wants.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub url: url::Url,
    pub token: Option<String>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "…");
        formatter.debug_struct("Endpoint").field("url", &self.url.as_str()).field("token", &token).finish()
    }
}

pub(crate) struct Answer {
    pub status: StatusCode,
    /// The server's clock, milliseconds since 1970.
    pub date: Option<i64>,
    pub body: Bytes,
}

#[derive(Clone)]
pub(crate) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl fmt::Debug for Http {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Http")
    }
}

impl Http {
    pub fn new() -> Result<Self> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_LIMIT));
        let provider = rustls::crypto::ring::default_provider();
        let builder = HttpsConnectorBuilder::new();
        let connector = match builder.with_provider_and_native_roots(provider.clone()) {
            Ok(builder) => builder.https_or_http().enable_http1().wrap_connector(connector),
            // A machine without certificates still reaches plain HTTP; TLS then fails with the reason.
            Err(error) => {
                tracing::warn!(%error, "no trusted certificates found; https addresses will be refused");
                let config = rustls::ClientConfig::builder_with_provider(provider.into())
                    .with_safe_default_protocol_versions()
                    .map_err(|e| Error::permanent(ErrorKind::Other, format!("TLS: {e}")))?
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth();
                HttpsConnectorBuilder::new()
                    .with_tls_config(config)
                    .https_or_http()
                    .enable_http1()
                    .wrap_connector(connector)
            }
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_LIMIT)
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .retry_canceled_requests(false)
            .build(connector);
        Ok(Self { client })
    }

    /// One request, answered within `limit`.
    pub async fn send(
        &self,
        method: Method,
        to: &Endpoint,
        query: &[(&str, String)],
        json: Option<String>,
        limit: Duration,
    ) -> Result<Answer> {
        let mut url = to.url.clone();
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = Request::builder().method(method).uri(url.as_str());
        if let Some(token) = &to.token {
            let mut value = header::HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                Error::permanent(ErrorKind::Credentials, "the token has characters no header takes")
            })?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        if json.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(json.unwrap_or_default())))
            .map_err(|e| Error::permanent(ErrorKind::Other, format!("{}: {e}", to.url)))?;
        let answered = tokio::time::timeout(limit, async {
            let answer = self.client.request(request).await.map_err(|e| unreachable_error(&to.url, &e))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, LARGEST_ANSWER).collect().await.map_err(|e| {
                Error::temporary(ErrorKind::Network, format!("{}: the answer broke off: {e}", to.url))
            })?;
            Ok(Answer {
                status: head.status,
                date: head.headers.get(header::DATE).and_then(date),
                body: body.to_bytes(),
            })
        });
        answered.await.unwrap_or_else(|_| {
            let text = format!("{} did not answer within {} ms", to.url, limit.as_millis());
            Err(Error::temporary(ErrorKind::Network, text))
        })
    }
}

fn date(value: &header::HeaderValue) -> Option<i64> {
    let text = value.to_str().ok()?;
    Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_millisecond())
}

fn unreachable_error(url: &url::Url, error: &hyper_util::client::legacy::Error) -> Error {
    use std::error::Error as _;
    let mut text = format!("cannot reach {url}: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    Error::temporary(ErrorKind::Network, text)
}

/// What a status other than success means for the caller.
pub(crate) fn refused(url: &url::Url, answer: &Answer) -> Error {
    let said: String = String::from_utf8_lossy(&answer.body).chars().take(200).collect();
    let text = format!("{url} answered {}: {said}", answer.status);
    match answer.status.as_u16() {
        401 | 403 => Error::permanent(ErrorKind::Credentials, text),
        404 => Error::permanent(ErrorKind::NotFound, text),
        408 | 425 | 429 | 500..=599 => Error::temporary(ErrorKind::Network, text),
        _ => Error::permanent(ErrorKind::Other, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_of_an_answer_is_read() {
        let value = header::HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date(&value), Some(784_111_777_000));
        assert_eq!(date(&header::HeaderValue::from_static("yesterday")), None);
    }
}
