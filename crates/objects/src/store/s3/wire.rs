//! Requests over the wire: one pooled HTTP/1.1 client per store, verified TLS, time limits on connecting, on the first byte
//! of an answer and on silence in between, and a limit on how much of an answer is read into memory.
//! It signs and sends once; what an answer means is [`super::failure`]'s business.

use super::failure::{self, Refusal};
use super::sign::{self, Signed, Signer};
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rehome_part::{Error, ErrorKind, Result};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// No answer, and no byte of the request taken, for this long.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// No further byte of an answer for this long.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// Below what servers and load balancers close at.
const IDLE_LIMIT: Duration = Duration::from_secs(20);
const MOST_IDLE_CONNECTIONS: usize = 256;
/// A page of a listing with 1,000 keys of 1,024 encoded bytes is above 3 MiB.
const LARGEST_DOCUMENT_BYTES: usize = 16 << 20;
/// One read from a connection. Fixed: the client's own growing buffer cost a third more CPU per byte when measured, and a
/// connection that waits keeps no more than this.
const READ_BYTES: usize = 128 << 10;
/// The step in which a body is handed to the connection, and with it how progress is seen.
const STEP_BYTES: usize = 256 << 10;

/// Where requests go.
#[derive(Debug)]
pub struct Target {
    pub scheme: http::uri::Scheme,
    pub authority: http::uri::Authority,
    /// What comes before the key: `/bucket/` or `/`, with the endpoint's own path if it has one; encoded.
    pub base: String,
}

#[derive(Debug)]
pub struct Wire {
    client: Connection,
    target: Target,
    host: HeaderValue,
    /// `None`: requests are anonymous.
    signer: Option<Signer>,
}

/// A pool of connections, plain or protected.
#[derive(Debug)]
pub enum Connection {
    Plain(Client<HttpConnector, Outgoing>),
    Tls(Client<HttpsConnector<HttpConnector>, Outgoing>),
}

impl Connection {
    /// # Errors
    /// `Network` when TLS is wanted and this machine has no trusted authorities.
    pub fn new(tls: bool) -> Result<Self> {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT_LIMIT));
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(30)));
        tcp.enforce_http(false);
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_LIMIT)
            .pool_max_idle_per_host(MOST_IDLE_CONNECTIONS)
            .http1_read_buf_exact_size(READ_BYTES);
        if !tls {
            return Ok(Self::Plain(builder.build(tcp)));
        }
        let protected = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| {
                let text = format!("no trusted certificate authorities on this machine: {error}");
                Error::permanent(ErrorKind::Network, text).hint("install the package ca-certificates")
            })?;
        Ok(Self::Tls(builder.build(protected.https_only().enable_http1().wrap_connector(tcp))))
    }

    /// Sends a request that needs nothing more, and waits for the head of the answer.
    pub async fn send(&self, request: Request<Outgoing>, doing: &str) -> Result<Response<Incoming>> {
        let progress = Arc::clone(&request.body().progress);
        self.exchange(request, PATIENCE, &progress, doing).await
    }

    async fn exchange(
        &self,
        request: Request<Outgoing>,
        patience: Duration,
        progress: &AtomicU64,
        doing: &str,
    ) -> Result<Response<Incoming>> {
        match self {
            Self::Plain(client) => wait(client.request(request), patience, progress, doing).await,
            Self::Tls(client) => wait(client.request(request), patience, progress, doing).await,
        }
    }
}

/// One request.
pub struct Call<'a> {
    pub method: Method,
    /// The whole key; `None` for the bucket itself.
    pub key: Option<&'a str>,
    pub query: &'a [(&'a str, &'a str)],
    pub headers: HeaderMap,
    pub content: Bytes,
    pub sign_payload: bool,
    /// How long the server may take to begin its answer.
    pub patience: Duration,
    /// "read media/a.jpg", for errors.
    pub doing: &'a str,
}

/// An answer whose body was not read yet.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
}

impl Wire {
    /// # Errors
    /// `Network` when TLS is wanted and this machine has no trusted authorities.
    pub fn new(target: Target, signer: Option<Signer>) -> Result<Self> {
        let client = Connection::new(target.scheme == http::uri::Scheme::HTTPS)?;
        let host = HeaderValue::from_str(&host_of(&target))
            .map_err(|_| Error::permanent(ErrorKind::Unsupported, "the endpoint's host cannot be sent"))?;
        Ok(Self { client, target, host, signer })
    }

    /// Is the connection protected, so that an unsigned payload cannot be changed on the way?
    pub fn is_tls(&self) -> bool {
        matches!(self.client, Connection::Tls(_))
    }

    /// Sends and waits for the head of the answer, whatever its status.
    pub async fn send(&self, call: Call<'_>) -> Result<Answer> {
        let Call { patience, doing, .. } = call;
        let progress = Arc::new(AtomicU64::new(0));
        let request = self.request(call, &progress)?;
        let answer = self.client.exchange(request, patience, &progress, doing).await?;
        let (head, body) = answer.into_parts();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    fn request(&self, call: Call<'_>, progress: &Arc<AtomicU64>) -> Result<Request<Outgoing>> {
        let Call { method, key, query, mut headers, content, sign_payload, doing, .. } = call;
        let invalid = |what: String| Error::permanent(ErrorKind::Unsupported, format!("{doing}: {what}"));
        let mut path = String::with_capacity(self.target.base.len() + 64 + key.map_or(0, str::len) * 3 / 2);
        path.push_str(&self.target.base);
        match key {
            Some(key) => sign::push_encoded(&mut path, key, true),
            // `/bucket`, not `/bucket/`: the latter is a key to some servers.
            None if path.len() > 1 => path.truncate(path.len() - 1),
            None => {}
        }
        let (sent_query, canonical_query) = queries(query);
        headers.insert(HOST, self.host.clone());
        if !content.is_empty() || matches!(method, Method::PUT | Method::POST) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(content.len()));
        }
        if let Some(signer) = &self.signer {
            let hash;
            let payload_hash = if content.is_empty() {
                sign::EMPTY_PAYLOAD
            } else if sign_payload {
                hash = sign::payload_hash(&content);
                &hash
            } else {
                sign::UNSIGNED_PAYLOAD
            };
            let now = jiff::Timestamp::now();
            let signed = Signed {
                method: method.as_str(),
                path: &path,
                canonical_query: &canonical_query,
                payload_hash,
                now,
            };
            signer.sign(&signed, &mut headers).map_err(invalid)?;
        }
        if !sent_query.is_empty() {
            path.push('?');
            path.push_str(&sent_query);
        }
        let uri = Uri::builder()
            .scheme(self.target.scheme.clone())
            .authority(self.target.authority.clone())
            .path_and_query(path)
            .build()
            .map_err(|error| invalid(error.to_string()))?;
        let mut request = Request::new(Outgoing { content, progress: Arc::clone(progress) });
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

/// The query as it is sent, and the same as it is signed (a name without a value has a `=` there).
fn queries(query: &[(&str, &str)]) -> (String, String) {
    if query.is_empty() {
        return (String::new(), String::new());
    }
    let mut pairs: Vec<(String, String)> = query
        .iter()
        .map(|(name, value)| {
            let (mut encoded_name, mut encoded_value) = (String::new(), String::with_capacity(value.len()));
            sign::push_encoded(&mut encoded_name, name, false);
            sign::push_encoded(&mut encoded_value, value, false);
            (encoded_name, encoded_value)
        })
        .collect();
    pairs.sort_unstable();
    let (mut sent, mut canonical) = (String::new(), String::new());
    for (name, value) in &pairs {
        if !sent.is_empty() {
            sent.push('&');
            canonical.push('&');
        }
        sent.push_str(name);
        canonical.push_str(name);
        canonical.push('=');
        if !value.is_empty() {
            sent.push('=');
            sent.push_str(value);
            canonical.push_str(value);
        }
    }
    (sent, canonical)
}

fn host_of(target: &Target) -> String {
    let default = if target.scheme == http::uri::Scheme::HTTPS { 443 } else { 80 };
    match target.authority.port_u16() {
        Some(port) if port != default => format!("{}:{port}", target.authority.host()),
        _ => target.authority.host().to_owned(),
    }
}

/// Waits for the head of an answer as long as the body still flows out, and then as long as `patience`.
async fn wait(
    answer: impl Future<Output = Result<Response<Incoming>, hyper_util::client::legacy::Error>>,
    patience: Duration,
    progress: &AtomicU64,
    doing: &str,
) -> Result<Response<Incoming>> {
    let mut answer = std::pin::pin!(answer);
    let mut sent_before = 0;
    loop {
        match tokio::time::timeout(patience, &mut answer).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => return Err(failure::transport(doing, &error)),
            Err(_) => {
                let sent = progress.load(Ordering::Relaxed);
                if sent == sent_before {
                    let text = format!("{doing}: no answer for {} s", patience.as_secs());
                    return Err(Error::temporary(ErrorKind::Network, text));
                }
                sent_before = sent;
            }
        }
    }
}

impl Answer {
    pub fn is_success(&self) -> bool {
        self.status.is_success()
    }

    /// The whole body as text.
    pub async fn document(self, doing: &str) -> Result<String> {
        let bytes = read_all(self.body, doing).await?;
        String::from_utf8(bytes.to_vec())
            .map_err(|_| Error::temporary(ErrorKind::Corrupt, format!("{doing}: the answer is not UTF-8")))
    }

    /// Reads what is left, so that the connection can serve the next request.
    pub async fn finish(self, doing: &str) -> Result<HeaderMap> {
        if !self.body.is_end_stream() {
            read_all(self.body, doing).await?;
        }
        Ok(self.headers)
    }

    pub async fn refusal(self, doing: &str) -> Result<Refusal> {
        let bytes = if self.body.is_end_stream() { Bytes::new() } else { read_all(self.body, doing).await? };
        Ok(Refusal::new(self.status, &self.headers, &String::from_utf8_lossy(&bytes)))
    }

    /// The body as a stream that ends with an error unless `length` bytes came.
    pub fn into_body(self, length: u64, doing: &str) -> Receiving {
        Receiving::new(self.body, length, doing)
    }
}

async fn read_all(body: Incoming, doing: &str) -> Result<Bytes> {
    use futures::StreamExt;
    let length = body.size_hint().exact();
    if length.is_some_and(|length| length > LARGEST_DOCUMENT_BYTES as u64) {
        return Err(too_large(doing));
    }
    let mut receiving = Receiving::new(body, length.unwrap_or(u64::MAX), doing);
    let mut whole = BytesMut::new();
    while let Some(bytes) = receiving.next().await {
        whole.extend_from_slice(&bytes?);
        if whole.len() > LARGEST_DOCUMENT_BYTES {
            return Err(too_large(doing));
        }
    }
    Ok(whole.freeze())
}

fn too_large(doing: &str) -> Error {
    Error::permanent(ErrorKind::Corrupt, format!("{doing}: the answer is larger than any answer should be"))
}

/// A request's body from memory, in steps.
#[derive(Debug)]
pub struct Outgoing {
    content: Bytes,
    progress: Arc<AtomicU64>,
}

impl Outgoing {
    pub fn new(content: Bytes) -> Self {
        Self { content, progress: Arc::default() }
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.content.is_empty() {
            return Poll::Ready(None);
        }
        let step = self.content.len().min(STEP_BYTES);
        self.progress.fetch_add(step as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(self.content.split_to(step)))))
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.content.len() as u64)
    }
}

/// An answer's body as it comes in. `left` above what comes means "until the end" only for `u64::MAX`.
#[derive(Debug)]
pub struct Receiving {
    incoming: Option<Incoming>,
    left: u64,
    silence: Option<Pin<Box<Sleep>>>,
    doing: Arc<str>,
}

impl Receiving {
    /// `length` is what was announced; `u64::MAX` when nothing was.
    pub fn new(incoming: Incoming, length: u64, doing: &str) -> Self {
        Self { incoming: Some(incoming), left: length, silence: None, doing: doing.into() }
    }

    fn fail(&mut self, error: Error) -> Poll<Option<Result<Bytes>>> {
        self.incoming = None;
        Poll::Ready(Some(Err(error)))
    }

    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        let silence = self.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL_LIMIT)));
        ready!(silence.as_mut().poll(context));
        let text = format!("{}: nothing came for {} s", self.doing, STALL_LIMIT.as_secs());
        self.fail(Error::temporary(ErrorKind::Network, text))
    }
}

impl futures::Stream for Receiving {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let this = &mut *self;
            let Some(incoming) = &mut this.incoming else { return Poll::Ready(None) };
            match Pin::new(incoming).poll_frame(context) {
                Poll::Pending => return this.poll_silence(context),
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(silence) = &mut this.silence {
                        silence.as_mut().reset(Instant::now() + STALL_LIMIT);
                    }
                    let Ok(bytes) = frame.into_data() else { continue };
                    let count = bytes.len() as u64;
                    if this.left != u64::MAX {
                        if count > this.left {
                            let text = format!("{}: more bytes came than were announced", this.doing);
                            return this.fail(Error::temporary(ErrorKind::Corrupt, text));
                        }
                        this.left -= count;
                    }
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Poll::Ready(Some(Err(error))) => {
                    let error = failure::transport(&this.doing, &error);
                    return this.fail(error);
                }
                Poll::Ready(None) => {
                    this.incoming = None;
                    if this.left == 0 || this.left == u64::MAX {
                        return Poll::Ready(None);
                    }
                    let text = format!("{}: the answer ended {} bytes too early", this.doing, this.left);
                    return Poll::Ready(Some(Err(Error::temporary(ErrorKind::Network, text))));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_sorted_and_encoded() {
        let (sent, canonical) = queries(&[("prefix", "a/b +"), ("list-type", "2"), ("uploads", "")]);
        assert_eq!(sent, "list-type=2&prefix=a%2Fb%20%2B&uploads");
        assert_eq!(canonical, "list-type=2&prefix=a%2Fb%20%2B&uploads=");
    }

    #[test]
    fn the_default_port_is_not_part_of_the_host() {
        let target = |scheme: &str, authority: &str| Target {
            scheme: scheme.parse().unwrap(),
            authority: authority.parse().unwrap(),
            base: "/".into(),
        };
        assert_eq!(host_of(&target("https", "h:443")), "h");
        assert_eq!(host_of(&target("http", "h:443")), "h:443");
        assert_eq!(host_of(&target("http", "[::1]:9000")), "[::1]:9000");
    }
}
