//! A small S3 client (path style, SigV4) for the shop, the seeding and the checker, so that none of them uses the code
//! of the mover they are there to try.

use crate::cloud::Keys;
use crate::wire::{Answer, NoAnswer, Repeat, Streaming, Wire};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use quick_xml::events::Event;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const PATH: &AsciiSet = &UNRESERVED.remove(b'/');
/// The id a gateway gives every request; a shop passes it on with what the request makes it write.
pub(crate) const REQUEST_HEADER: HeaderName = HeaderName::from_static("x-request-id");
const REGION: &str = "us-east-1";
/// Long enough for a slow cloud, short enough that a dead one is noticed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why an S3 request did not do what it should.
#[derive(Debug, Clone, thiserror::Error)]
pub enum S3Failure {
    /// The server said no; `code` is S3's (`AccessDenied`, `NoSuchKey`, …).
    #[error("{status} {code}: {message}")]
    Refused { status: StatusCode, code: String, message: String },
    /// Not a byte left this process.
    #[error("{0}")]
    NotSent(String),
    /// It may have been carried out.
    #[error("{0}")]
    Unknown(String),
    #[error("answer not understood: {0}")]
    Garbled(String),
}

impl S3Failure {
    /// S3's error code, when the server answered.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }
}

impl From<NoAnswer> for S3Failure {
    fn from(error: NoAnswer) -> Self {
        match error {
            NoAnswer::NotSent(why) => Self::NotSent(why),
            other => Self::Unknown(other.to_string()),
        }
    }
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub size: u64,
    pub etag: String,
}

/// One bucket as one principal sees it. Debug shows no secret. Clones share connections.
#[derive(Debug, Clone)]
pub struct S3 {
    wire: Wire,
    host: String,
    bucket: String,
    keys: Keys,
    /// Named in every call as its cause.
    request: Option<HeaderValue>,
}

impl S3 {
    pub fn new(address: SocketAddr, bucket: &str, keys: Keys) -> Self {
        Self {
            wire: Wire::new(address),
            host: address.to_string(),
            bucket: bucket.into(),
            keys,
            request: None,
        }
    }

    /// The same bucket, on behalf of the request with this id.
    #[must_use]
    pub fn for_request(&self, id: Option<&HeaderValue>) -> Self {
        Self { request: id.cloned(), ..self.clone() }
    }

    /// `headers` may carry content headers, `x-amz-meta-…`, conditions. Returns the tag.
    pub async fn put(&self, key: &str, headers: &HeaderMap, content: Bytes) -> Result<String, S3Failure> {
        let answer = self.send(Method::PUT, Some(key), &[], headers, content).await?;
        let answer = expect_success(answer)?;
        Ok(answer.header("etag").unwrap_or_default().trim_matches('"').to_string())
    }

    /// Headers and content; `None` when there is no such key.
    pub async fn get(&self, key: &str) -> Result<Option<(HeaderMap, Bytes)>, S3Failure> {
        let answer = self.send(Method::GET, Some(key), &[], &HeaderMap::new(), Bytes::new()).await?;
        absent_or(answer).map(|found| found.map(|answer| (answer.headers, answer.body)))
    }

    /// Headers with checksums; `None` when there is no such key.
    pub async fn head(&self, key: &str) -> Result<Option<HeaderMap>, S3Failure> {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-checksum-mode", HeaderValue::from_static("ENABLED"));
        let answer = self.send(Method::HEAD, Some(key), &[], &headers, Bytes::new()).await?;
        absent_or(answer).map(|found| found.map(|answer| answer.headers))
    }

    pub async fn delete(&self, key: &str) -> Result<(), S3Failure> {
        let answer = self.send(Method::DELETE, Some(key), &[], &HeaderMap::new(), Bytes::new()).await?;
        expect_success(answer).map(|_| ())
    }

    /// One page of at most `most` keys after `after`, and whether there is more.
    pub async fn list_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        most: u32,
    ) -> Result<(Vec<Listed>, bool), S3Failure> {
        let most = most.to_string();
        let mut query =
            vec![("encoding-type", "url"), ("list-type", "2"), ("max-keys", &most), ("prefix", prefix)];
        if let Some(after) = after {
            query.push(("start-after", after));
        }
        let answer = self.send(Method::GET, None, &query, &HeaderMap::new(), Bytes::new()).await?;
        let answer = expect_success(answer)?;
        parse_listing(&answer.body).map_err(S3Failure::Garbled)
    }

    /// Every key with this prefix, in the server's order.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Listed>, S3Failure> {
        let mut all: Vec<Listed> = Vec::new();
        loop {
            let after = all.last().map(|listed| listed.key.clone());
            let (page, more) = self.list_page(prefix, after.as_deref(), 1_000).await?;
            let empty = page.is_empty();
            all.extend(page);
            if !more || empty {
                return Ok(all);
            }
        }
    }

    /// Any request, answered whole. `key` is `None` for the bucket itself.
    pub async fn request(
        &self,
        method: Method,
        key: Option<&str>,
        query: &[(&str, &str)],
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<(StatusCode, HeaderMap, Bytes), S3Failure> {
        let answer = self.send(method, key, query, headers, body).await?;
        Ok((answer.status, answer.headers, answer.body))
    }

    /// GET whose content is read as it comes; error answers are as they are.
    pub(crate) async fn stream(
        &self,
        key: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Streaming>, S3Failure> {
        let request = self.signed(&Method::GET, Some(key), &[], headers, Bytes::new());
        Ok(self.wire.open(request, Repeat::WhenStale).await?)
    }

    async fn send(
        &self,
        method: Method,
        key: Option<&str>,
        query: &[(&str, &str)],
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Answer, S3Failure> {
        let repeat = if method.is_safe() { Repeat::WhenStale } else { Repeat::Never };
        let request = self.signed(&method, key, query, headers, body);
        Ok(self.wire.send(request, repeat, PATIENCE).await?)
    }

    /// Signature version 4 with the payload's hash in it.
    fn signed(
        &self,
        method: &Method,
        key: Option<&str>,
        query: &[(&str, &str)],
        headers: &HeaderMap,
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let path = match key {
            Some(key) => format!("/{}/{}", self.bucket, utf8_percent_encode(key, PATH)),
            None => format!("/{}", self.bucket),
        };
        let mut pairs: Vec<(String, String)> =
            query.iter().map(|(name, value)| (spelled(name), spelled(value))).collect();
        pairs.sort();
        let query: String =
            pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
        let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let payload = hex(&Sha256::digest(&body));
        let mut sent = headers.clone();
        if let Some(id) = &self.request {
            sent.insert(REQUEST_HEADER, id.clone());
        }
        let mut set = |name: &'static str, value: &str| {
            let value = HeaderValue::from_str(value).expect("host, date and hash are plain ASCII");
            sent.insert(HeaderName::from_static(name), value);
        };
        set("host", &self.host);
        set("x-amz-date", &stamp);
        set("x-amz-content-sha256", &payload);
        let authorization = self.authorization(method, &path, &query, &sent, &stamp, &payload);
        sent.insert(http::header::AUTHORIZATION, authorization);
        let target = if query.is_empty() { path } else { format!("{path}?{query}") };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method.clone();
        *request.uri_mut() = target.parse().expect("path and query are percent-encoded");
        *request.headers_mut() = sent;
        request
    }

    fn authorization(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        sent: &HeaderMap,
        stamp: &str,
        payload: &str,
    ) -> HeaderValue {
        let mut names: Vec<&str> = sent.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let signed_names = names.join(";");
        let mut canonical = format!("{method}\n{path}\n{query}\n").into_bytes();
        for name in &names {
            canonical.extend_from_slice(name.as_bytes());
            canonical.push(b':');
            let value = sent.get(*name).map_or(&b""[..], HeaderValue::as_bytes);
            canonical.extend_from_slice(value.trim_ascii());
            canonical.push(b'\n');
        }
        canonical.extend_from_slice(format!("\n{signed_names}\n{payload}").as_bytes());
        let date: String = stamp.chars().take(8).collect();
        let scope = format!("{date}/{REGION}/s3/aws4_request");
        let to_sign = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", hex(&Sha256::digest(&canonical)));
        let mut key = keyed(format!("AWS4{}", self.keys.secret_key).as_bytes(), &date);
        for step in [REGION, "s3", "aws4_request"] {
            key = keyed(&key, step);
        }
        let signature = hex(&keyed(&key, &to_sign));
        let access_key = &self.keys.access_key;
        let text = format!(
            "AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={signed_names}, Signature={signature}"
        );
        HeaderValue::from_str(&text).expect("access keys are plain ASCII")
    }
}

fn spelled(text: &str) -> String {
    utf8_percent_encode(text, UNRESERVED).to_string()
}

fn keyed(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

fn expect_success(answer: Answer) -> Result<Answer, S3Failure> {
    if answer.status.is_success() { Ok(answer) } else { Err(refused(&answer)) }
}

fn absent_or(answer: Answer) -> Result<Option<Answer>, S3Failure> {
    if answer.status == StatusCode::NOT_FOUND {
        // A missing bucket is not an absent key; HEAD has no body to tell them apart.
        return match refused(&answer) {
            S3Failure::Refused { code, .. } if code == "NoSuchKey" || code.is_empty() => Ok(None),
            other => Err(other),
        };
    }
    expect_success(answer).map(Some)
}

fn refused(answer: &Answer) -> S3Failure {
    let text = String::from_utf8_lossy(&answer.body);
    let between = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        rest.split_once(&format!("</{tag}>")).map(|(inside, _)| inside.to_string())
    };
    S3Failure::Refused {
        status: answer.status,
        code: between("Code").unwrap_or_default(),
        message: between("Message").unwrap_or_default(),
    }
}

fn parse_listing(body: &[u8]) -> Result<(Vec<Listed>, bool), String> {
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    let mut reader = quick_xml::Reader::from_str(text);
    let (mut listed, mut more, mut inside, mut value) = (Vec::new(), false, false, String::new());
    loop {
        match reader.read_event().map_err(|error| error.to_string())? {
            Event::Start(tag) => {
                value.clear();
                if tag.name().as_ref() == "Contents" {
                    inside = true;
                    listed.push(Listed { key: String::new(), size: 0, etag: String::new() });
                }
            }
            Event::Text(text) => value.push_str(&text.xml10_content()),
            Event::GeneralRef(reference) => value.push(match reference.resolve_char_ref() {
                Ok(Some(character)) => character,
                _ => match &*reference.xml10_content() {
                    "amp" => '&',
                    "lt" => '<',
                    "gt" => '>',
                    "apos" => '\'',
                    _ => '"',
                },
            }),
            Event::End(tag) => match (tag.name().as_ref(), inside, listed.last_mut()) {
                ("Contents", ..) => inside = false,
                ("Key", true, Some(line)) => line.key = decoded(&value)?,
                ("Size", true, Some(line)) => {
                    line.size = value.parse().map_err(|_| "a size is no number".to_string())?
                }
                ("ETag", true, Some(line)) => line.etag = value.trim_matches('"').to_string(),
                ("IsTruncated", false, _) => more = value == "true",
                _ => {}
            },
            Event::Eof => return Ok((listed, more)),
            _ => {}
        }
    }
}

fn decoded(text: &str) -> Result<String, String> {
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|error| error.to_string())
}
