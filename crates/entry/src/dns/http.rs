//! HTTPS to the vendors: certificates always verified, plain HTTP to this machine only, bounded answers, bounded time, no
//! redirect followed. Nothing is sent twice unless the service said that it did nothing the first time.

use crate::EntryError;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::error::Error as _;
use std::time::Duration;
use url::{Host, Url};

const CONNECT_TIME: Duration = Duration::from_secs(5);
const ANSWER_TIME: Duration = Duration::from_secs(20);
const LARGEST_ANSWER: usize = 4 << 20;
/// How often a service may say "not so fast" to one call; the pauses between double.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(300);

/// Where a service answers.
#[derive(Debug, Clone)]
pub struct Endpoint {
    base: String,
    /// As it stands in `Host`, which is signed.
    pub host: String,
}

impl Endpoint {
    /// # Errors
    /// When credentials would go there unencrypted, or it is no address.
    pub fn parse(text: &str) -> Result<Self, EntryError> {
        let unfit = |what: &str| {
            EntryError::unfit(format!("the endpoint `{text}` {what}"), "write https://HOST, or leave it out")
        };
        let url = Url::parse(text).map_err(|_| unfit("is no address"))?;
        let here = match url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            _ => false,
        };
        match url.scheme() {
            "https" => {}
            "http" if here => {}
            _ => return Err(unfit("is not https")),
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || !url.username().is_empty() {
            return Err(unfit("has more than a host and a port"));
        }
        let host = url.host_str().unwrap_or_default();
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Ok(Self { base: format!("{}://{host}", url.scheme()), host })
    }

    /// `path_and_query` begins with `/`.
    pub(crate) fn url(&self, path_and_query: &str) -> String {
        format!("{}{path_and_query}", self.base)
    }
}

pub(crate) struct Answer {
    pub status: u16,
    pub body: Bytes,
}

#[derive(Clone)]
pub struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Http")
    }
}

impl Http {
    /// # Errors
    /// When this machine trusts no certificates.
    pub fn new() -> Result<Self, EntryError> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_TIME));
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| {
                EntryError::unfit(
                    format!("this machine has no certificates to trust: {error}"),
                    "install the package ca-certificates",
                )
            })?
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .retry_canceled_requests(false)
            .build(connector);
        Ok(Self { client })
    }

    pub(crate) async fn send(&self, whom: &str, request: Request<Full<Bytes>>) -> Result<Answer, EntryError> {
        let failed = |text: String| EntryError::Unreachable { whom: whom.to_owned(), text };
        let answered = Box::pin(tokio::time::timeout(ANSWER_TIME, async {
            let answer = self.client.request(request).await.map_err(|error| failed(causes(&error)))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, LARGEST_ANSWER).collect().await;
            let body = body.map_err(|error| failed(format!("its answer broke off: {error}")))?.to_bytes();
            Ok(Answer { status: head.status.as_u16(), body })
        }));
        answered
            .await
            .unwrap_or_else(|_| Err(failed(format!("no answer within {} s", ANSWER_TIME.as_secs()))))
    }
}

fn causes(error: &hyper_util::client::legacy::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}

/// Why a call came to nothing.
pub(crate) enum Failure {
    /// The service did nothing because we are too fast: the same call may be made again.
    TooFast(String),
    Final(EntryError),
}

impl From<EntryError> for Failure {
    fn from(error: EntryError) -> Self {
        Self::Final(error)
    }
}

/// How a call is made again while the service says that it was too fast.
pub(crate) struct Patience {
    left: u32,
    pause: Duration,
}

impl Patience {
    pub fn new() -> Self {
        Self { left: ATTEMPTS, pause: FIRST_PAUSE }
    }

    /// Waits, and then the call may be made again; or it may not, and this is why.
    pub async fn heed(&mut self, whom: &str, failure: Failure) -> Result<(), EntryError> {
        self.left -= 1;
        match failure {
            Failure::Final(error) => Err(error),
            Failure::TooFast(text) if self.left == 0 => {
                Err(EntryError::Unreachable { whom: whom.to_owned(), text })
            }
            Failure::TooFast(_) => {
                // Others who were told so at the same moment come back at another.
                tokio::time::sleep(self.pause.mul_f64(0.5 + fastrand::f64())).await;
                self.pause *= 2;
                Ok(())
            }
        }
    }
}

/// What a service said, short enough for an error; control characters made visible.
pub(crate) fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(200).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_travel_encrypted_or_stay_here() {
        assert_eq!(Endpoint::parse("https://route53.amazonaws.com").unwrap().host, "route53.amazonaws.com");
        assert_eq!(
            Endpoint::parse("http://127.0.0.1:8080/").unwrap().url("/a?b"),
            "http://127.0.0.1:8080/a?b"
        );
        assert_eq!(Endpoint::parse("http://[::1]:8080").unwrap().host, "[::1]:8080");
        for wrong in [
            "http://example.com",
            "http://localhost",
            "ftp://127.0.0.1",
            "x",
            "https://a.example/path",
            "https://u:p@a.example",
        ] {
            assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
        }
    }
}
