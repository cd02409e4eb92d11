//! The S3 family: AWS, what is compatible with it, and OSS, COS, OBS and GCS through their S3-compatible endpoints.
//! Our own small client, because keys have to arrive byte for byte and multipart uploads have to be resumed, and the
//! abstractions at hand do neither. What differs between services is in [`dialect`]. Nothing is retried here, except that a
//! server that refuses an unsigned payload or a checksum header is asked once more without.

pub mod dialect;
mod failure;
mod headers;
mod list;
mod sign;
pub(super) mod wire;
mod xml;

pub use sign::Credentials;
pub(super) use sign::write_hex;

use super::{
    Attributes, Body, Capabilities, Condition, Entry, Meta, Store, Upload, UploadedPart, Written, policy,
};
use async_trait::async_trait;
use base64::Engine;
use bytes::Bytes;
use dialect::{Checksum, Dialect};
use failure::Refusal;
use futures::stream::{self, BoxStream, StreamExt};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use list::PagePosition;
use md5::{Digest, Md5};
use rehome_part::{Error, ErrorKind, Result, Side};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wire::{Answer, Call, PATIENCE, Target, Wire};

/// Joining ten thousand parts takes a service its time.
const COMPLETION_PATIENCE: Duration = Duration::from_secs(600);

/// Where a bucket is and who asks.
#[derive(Debug, Clone)]
pub struct Settings {
    pub dialect: &'static Dialect,
    /// `https://host[:port][/path]`, without the bucket.
    pub endpoint: String,
    pub region: String,
    pub bucket: String,
    /// Empty, or what every key begins with (usually with a `/` at its end).
    pub prefix: String,
    pub path_style: bool,
    /// `None`: anonymous.
    pub credentials: Option<Credentials>,
    /// How the user knows the credentials ("`access_key` and `secret_key` of the source"); for hints.
    pub credentials_name: String,
    pub side: Option<Side>,
    /// For messages, like `s3://bucket/prefix`.
    pub address: String,
    /// Keys asked for in one page of a listing; services give up to 1,000.
    pub page_keys: u16,
}

/// One bucket, below one prefix.
#[derive(Debug, Clone)]
pub struct S3Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    capabilities: Capabilities,
    wire: Wire,
    /// A policy was read, or the server said that there is none: `?policy` means something to it.
    knows_policies: AtomicBool,
    /// This server wants payloads signed and no checksum headers: learned from its refusal.
    plain_form: AtomicBool,
}

impl S3Store {
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// `Unsupported` for an endpoint that is no address; `Network` without trusted authorities.
    pub fn new(settings: Settings) -> Result<Self> {
        let target = target(&settings)?;
        let signer =
            settings.credentials.clone().map(|credentials| sign::Signer::new(credentials, &settings.region));
        let wire = Wire::new(target, signer)?;
        let capabilities = settings.dialect.capabilities();
        Ok(Self {
            inner: Arc::new(Inner {
                settings,
                capabilities,
                wire,
                plain_form: AtomicBool::new(false),
                knows_policies: AtomicBool::new(false),
            }),
        })
    }
}

fn target(settings: &Settings) -> Result<Target> {
    let invalid = || {
        let text = format!("`{}` is not the address of a store", settings.endpoint);
        Error::permanent(ErrorKind::Unsupported, text).hint("write it like `https://s3.example.com`")
    };
    let endpoint: http::Uri = settings.endpoint.trim_end_matches('/').parse().map_err(|_| invalid())?;
    let scheme =
        endpoint.scheme().filter(|scheme| matches!(scheme.as_str(), "http" | "https")).ok_or_else(invalid)?;
    let authority = endpoint.authority().ok_or_else(invalid)?;
    if authority.as_str().contains('@') {
        return Err(invalid());
    }
    let mut base = endpoint.path().trim_end_matches('/').to_owned();
    base.push('/');
    let authority = if settings.path_style {
        sign::push_encoded(&mut base, &settings.bucket, false);
        base.push('/');
        authority.clone()
    } else {
        format!("{}.{authority}", settings.bucket).parse().map_err(|_| invalid())?
    };
    Ok(Target { scheme: scheme.clone(), authority, base })
}

impl Inner {
    fn error(&self, kind: ErrorKind, text: impl Into<String>) -> Error {
        self.at_side(Error::permanent(kind, text))
    }

    fn at_side(&self, error: Error) -> Error {
        match (error.side, self.settings.side) {
            (None, Some(side)) => error.on(side),
            _ => error,
        }
    }

    fn refused(&self, refusal: Refusal, doing: &str) -> Error {
        self.at_side(refusal.into_error(doing, &self.settings.credentials_name))
    }

    fn full_key(&self, key: &str) -> Result<String> {
        let full = format!("{}{key}", self.settings.prefix);
        match full.as_str() {
            "" => Err(self.error(ErrorKind::Unsupported, "an empty key cannot be an object")),
            long if long.len() > 1024 => {
                let text = format!("the key `{key}` has more than 1024 bytes");
                Err(self.error(ErrorKind::Unsupported, text))
            }
            _ => Ok(full),
        }
    }

    async fn send(&self, call: Call<'_>) -> Result<Answer> {
        self.wire.send(call).await.map_err(|error| self.at_side(error))
    }

    /// A call without content whose answer has to be a success.
    async fn ask(
        &self,
        method: Method,
        key: Option<&str>,
        query: &[(&str, &str)],
        doing: &str,
    ) -> Result<Answer, Failed> {
        let call = Call {
            method,
            key,
            query,
            headers: HeaderMap::new(),
            content: Bytes::new(),
            sign_payload: false,
            patience: PATIENCE,
            doing,
        };
        self.expect_success(self.send(call).await?, doing).await
    }

    async fn expect_success(&self, answer: Answer, doing: &str) -> Result<Answer, Failed> {
        if answer.is_success() {
            return Ok(answer);
        }
        Err(Failed::Refused(answer.refusal(doing).await.map_err(|error| self.at_side(error))?))
    }

    fn fail(&self, failed: Failed, doing: &str) -> Error {
        match failed {
            Failed::Refused(refusal) => self.refused(refusal, doing),
            Failed::Broken(error) => error,
        }
    }

    async fn document(&self, answer: Answer, doing: &str) -> Result<String> {
        answer.document(doing).await.map_err(|error| self.at_side(error))
    }

    async fn finish(&self, answer: Answer, doing: &str) -> Result<HeaderMap> {
        answer.finish(doing).await.map_err(|error| self.at_side(error))
    }

    /// A small document as the body; always with its MD5 and a signed payload, which some services demand.
    async fn send_document(
        &self,
        method: Method,
        key: Option<&str>,
        query: &[(&str, &str)],
        content: String,
        patience: Duration,
        doing: &str,
    ) -> Result<Answer, Failed> {
        let mut headers = HeaderMap::new();
        if !content.is_empty() {
            let digest = base64::engine::general_purpose::STANDARD.encode(Md5::digest(content.as_bytes()));
            let digest = HeaderValue::from_str(&digest).expect("base64 is plain ASCII");
            headers.insert("content-md5", digest);
        }
        let content = Bytes::from(content);
        let call = Call { method, key, query, headers, content, sign_payload: true, patience, doing };
        self.expect_success(self.send(call).await?, doing).await
    }

    /// A PUT of content in the form this server takes; the form is learned from the first refusal.
    async fn send_content(
        &self,
        key: &str,
        query: &[(&str, &str)],
        headers: HeaderMap,
        content: Bytes,
        with_checksum: bool,
        doing: &str,
    ) -> Result<Answer, Failed> {
        let plain = self.plain_form.load(Ordering::Relaxed);
        let first =
            self.put_once(key, query, headers.clone(), content.clone(), with_checksum, plain, doing).await;
        match first {
            Err(Failed::Refused(refusal))
                if !plain && refusal.dislikes_the_form() && (with_checksum || !self.wire.is_tls()) =>
            {
                let second = self.put_once(key, query, headers, content, with_checksum, true, doing).await;
                match second {
                    Ok(answer) => {
                        tracing::debug!(store = %self.settings.address, refusal = %refusal.code, "plain form from now on");
                        self.plain_form.store(true, Ordering::Relaxed);
                        Ok(answer)
                    }
                    Err(failed) => Err(failed),
                }
            }
            other => other,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one request, used in one place")]
    async fn put_once(
        &self,
        key: &str,
        query: &[(&str, &str)],
        mut headers: HeaderMap,
        content: Bytes,
        with_checksum: bool,
        plain: bool,
        doing: &str,
    ) -> Result<Answer, Failed> {
        if with_checksum && (!plain || self.settings.dialect.checksum == Checksum::Crc64Nvme) {
            let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &content);
            headers::checksum(&mut headers, crc);
        }
        let call = Call {
            method: Method::PUT,
            key: Some(key),
            query,
            headers,
            content,
            sign_payload: plain,
            patience: PATIENCE,
            doing,
        };
        self.expect_success(self.send(call).await?, doing).await
    }

    fn written(&self, headers: &HeaderMap) -> Written {
        Written {
            etag: headers::etag(headers),
            checksums: headers::checksums(headers, true, self.settings.dialect),
        }
    }

    fn read_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if self.settings.dialect.asks_for_checksums {
            headers.insert("x-amz-checksum-mode", HeaderValue::from_static("ENABLED"));
        }
        if self.settings.dialect.unpacks_gzip {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        }
        headers
    }

    fn without_policies(&self) -> Error {
        let text = format!("{} has no policies that can be set this way", self.settings.address);
        self.error(ErrorKind::Unsupported, text)
    }
}

/// A call that did not succeed.
#[derive(Debug)]
enum Failed {
    Refused(Refusal),
    Broken(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

fn quoted(tag: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(&format!("\"{tag}\""))
        .map_err(|_| Error::permanent(ErrorKind::Unsupported, "a tag that cannot be sent in a header"))
}

/// `bytes A-B/TOTAL` → the range and the total.
fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let (range, total) = headers::text(headers, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?, total.parse().ok()?))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers::text(headers, "content-length")?.parse().ok()
}

#[async_trait]
impl Store for S3Store {
    fn address(&self) -> &str {
        &self.inner.settings.address
    }

    fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    async fn check(&self) -> Result<()> {
        let position = PagePosition { prefix: self.inner.settings.prefix.clone(), ..PagePosition::default() };
        self.inner.page(position, 1).await.map(drop)
    }

    async fn create(&self) -> Result<bool> {
        let inner = &self.inner;
        match self.check().await {
            Ok(()) => return Ok(false),
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let doing = format!("create {}", inner.settings.address);
        let names_region = inner.settings.dialect.names_location && inner.settings.region != "us-east-1";
        let body = if names_region { xml::location(&inner.settings.region) } else { String::new() };
        let sent = inner.send_document(Method::PUT, None, &[], body, PATIENCE, &doing).await;
        match sent {
            Ok(answer) => {
                inner.finish(answer, &doing).await?;
                Ok(true)
            }
            Err(Failed::Refused(refusal)) if refusal.is("BucketAlreadyOwnedByYou") => Ok(false),
            Err(Failed::Refused(refusal)) if refusal.is("BucketAlreadyExists") => {
                let text = format!("{doing}: a bucket of that name belongs to somebody else");
                Err(inner.error(ErrorKind::Credentials, text).hint("choose another name"))
            }
            Err(failed) => Err(inner.fail(failed, &doing)),
        }
    }

    async fn remove(&self) -> Result<()> {
        let doing = format!("remove {}", self.inner.settings.address);
        let asked = self.inner.ask(Method::DELETE, None, &[], &doing).await;
        let answer = asked.map_err(|failed| self.inner.fail(failed, &doing))?;
        self.inner.finish(answer, &doing).await.map(drop)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'_, Result<Entry>> {
        let own = &self.inner.settings.prefix;
        let position = PagePosition {
            prefix: format!("{own}{prefix}"),
            after: after.map(|after| format!("{own}{after}")),
            token: None,
        };
        Arc::clone(&self.inner).pages(position)
    }

    async fn head(&self, key: &str) -> Result<Option<Meta>> {
        let inner = &self.inner;
        let full = inner.full_key(key)?;
        let doing = format!("look at {key}");
        let call = Call {
            method: Method::HEAD,
            key: Some(&full),
            query: &[],
            headers: inner.read_headers(),
            content: Bytes::new(),
            sign_payload: false,
            patience: PATIENCE,
            doing: &doing,
        };
        match inner.expect_success(inner.send(call).await?, &doing).await {
            Ok(answer) => {
                let size = content_length(&answer.headers).ok_or_else(|| {
                    inner.error(ErrorKind::Corrupt, format!("{doing}: the answer has no size"))
                })?;
                Ok(Some(headers::meta(&answer.headers, size, true, inner.settings.dialect)))
            }
            Err(Failed::Refused(refusal)) if refusal.is_missing_key() => Ok(None),
            Err(failed) => Err(inner.fail(failed, &doing)),
        }
    }

    async fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        if_match: Option<&str>,
    ) -> Result<Option<(Meta, Body)>> {
        let inner = &self.inner;
        if range.as_ref().is_some_and(Range::is_empty) {
            let meta = self.head(key).await?;
            return Ok(meta.map(|meta| (meta, stream::empty().boxed())));
        }
        let full = inner.full_key(key)?;
        let doing = format!("read {key}");
        let mut headers = inner.read_headers();
        if let Some(range) = &range {
            let text = format!("bytes={}-{}", range.start, range.end - 1);
            headers.insert(header::RANGE, HeaderValue::from_str(&text).expect("digits are plain ASCII"));
        }
        if let Some(tag) = if_match {
            headers.insert(header::IF_MATCH, quoted(tag)?);
        }
        let call = Call {
            method: Method::GET,
            key: Some(&full),
            query: &[],
            headers,
            content: Bytes::new(),
            sign_payload: false,
            patience: PATIENCE,
            doing: &doing,
        };
        let answer = match inner.expect_success(inner.send(call).await?, &doing).await {
            Ok(answer) => answer,
            Err(Failed::Refused(refusal)) if refusal.is_missing_key() => return Ok(None),
            Err(failed) => return Err(inner.fail(failed, &doing)),
        };
        let (size, length) = inner.sizes(&answer, range.as_ref(), &doing)?;
        let meta = headers::meta(&answer.headers, size, length == size, inner.settings.dialect);
        if let (Some(wanted), Some(found)) = (if_match, meta.etag.as_deref())
            && wanted != found
        {
            return Err(inner.error(ErrorKind::Changed, format!("{key} is another object now")));
        }
        let side = inner.settings.side;
        let body = answer.into_body(length, &doing).map(move |bytes| match side {
            Some(side) => bytes.map_err(|error| error.on(side)),
            None => bytes,
        });
        Ok(Some((meta, body.boxed())))
    }

    async fn put(
        &self,
        key: &str,
        attributes: &Attributes,
        content: Bytes,
        condition: Condition,
    ) -> Result<Written> {
        let inner = &self.inner;
        let full = inner.full_key(key)?;
        if content.len() as u64 > inner.capabilities.max_put {
            return Err(inner.error(ErrorKind::Unsupported, format!("{key} is too large for one put")));
        }
        let doing = format!("write {key}");
        let mut headers = HeaderMap::new();
        headers::write_attributes(&mut headers, attributes, inner.settings.dialect)
            .map_err(|error| inner.at_side(Error { text: format!("{doing}: {}", error.text), ..error }))?;
        match &condition {
            Condition::Always => {}
            Condition::Absent => _ = headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("*")),
            Condition::Matches(tag) => _ = headers.insert(header::IF_MATCH, quoted(tag)?),
        }
        let with_checksum = inner.settings.dialect.checksum != Checksum::None;
        match inner.send_content(&full, &[], headers, content, with_checksum, &doing).await {
            Ok(answer) => Ok(inner.written(&inner.finish(answer, &doing).await?)),
            // The object that was to match is not there at all.
            Err(Failed::Refused(refusal))
                if matches!(condition, Condition::Matches(_)) && refusal.is_missing_key() =>
            {
                Err(inner.error(ErrorKind::Changed, format!("{doing}: what was to be replaced is gone")))
            }
            Err(failed) => Err(inner.fail(failed, &doing)),
        }
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let full = self.inner.full_key(key)?;
        let doing = format!("delete {key}");
        match self.inner.ask(Method::DELETE, Some(&full), &[], &doing).await {
            Ok(answer) => self.inner.finish(answer, &doing).await.map(drop),
            Err(Failed::Refused(refusal)) if refusal.is_missing_key() => Ok(()),
            Err(failed) => Err(self.inner.fail(failed, &doing)),
        }
    }

    async fn begin_upload(&self, key: &str, attributes: &Attributes) -> Result<String> {
        let inner = &self.inner;
        let full = inner.full_key(key)?;
        let doing = format!("begin an upload of {key}");
        let mut headers = HeaderMap::new();
        headers::write_attributes(&mut headers, attributes, inner.settings.dialect)
            .map_err(|error| inner.at_side(Error { text: format!("{doing}: {}", error.text), ..error }))?;
        if inner.settings.dialect.checksum == Checksum::Crc64Nvme {
            headers.insert("x-amz-checksum-algorithm", HeaderValue::from_static("CRC64NVME"));
            headers.insert("x-amz-checksum-type", HeaderValue::from_static("FULL_OBJECT"));
        }
        let call = Call {
            method: Method::POST,
            key: Some(&full),
            query: &[("uploads", "")],
            headers,
            content: Bytes::new(),
            sign_payload: true,
            patience: PATIENCE,
            doing: &doing,
        };
        let answer = inner.expect_success(inner.send(call).await?, &doing).await;
        let document = inner.document(answer.map_err(|failed| inner.fail(failed, &doing))?, &doing).await?;
        let id = xml::element(&document, "UploadId").map_err(|error| inner.at_side(error))?;
        id.filter(|id| !id.is_empty())
            .ok_or_else(|| inner.error(ErrorKind::Corrupt, format!("{doing}: the answer names no upload")))
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        content: Bytes,
    ) -> Result<UploadedPart> {
        let inner = &self.inner;
        let full = inner.full_key(key)?;
        let doing = format!("write part {number} of {key}");
        let size = content.len() as u64;
        let number_text = number.to_string();
        let query = [("partNumber", number_text.as_str()), ("uploadId", upload)];
        let with_checksum = inner.settings.dialect.checksum == Checksum::Crc64Nvme;
        let sent = inner.send_content(&full, &query, HeaderMap::new(), content, with_checksum, &doing).await;
        let answer = sent.map_err(|failed| inner.fail(failed, &doing))?;
        let answered = inner.finish(answer, &doing).await?;
        let etag = headers::etag(&answered)
            .ok_or_else(|| inner.error(ErrorKind::Corrupt, format!("{doing}: the answer has no tag")))?;
        Ok(UploadedPart { number, etag, size })
    }

    async fn uploaded_parts(&self, key: &str, upload: &str) -> Result<Vec<UploadedPart>> {
        let inner = &self.inner;
        let full = inner.full_key(key)?;
        let doing = format!("list the parts of {key}");
        let mut parts = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut query = vec![("uploadId", upload)];
            query.extend(after.iter().map(|after| ("part-number-marker", after.as_str())));
            let asked = inner.ask(Method::GET, Some(&full), &query, &doing).await;
            let document =
                inner.document(asked.map_err(|failed| inner.fail(failed, &doing))?, &doing).await?;
            let page = xml::parts(&document).map_err(|error| inner.at_side(error))?;
            parts.extend(page.parts);
            match page.next {
                Some(next) if after.as_ref() != Some(&next) => after = Some(next),
                _ => return Ok(parts),
            }
        }
    }

    async fn complete_upload(&self, key: &str, upload: &str, parts: &[UploadedPart]) -> Result<Written> {
        let inner = &self.inner;
        let full = inner.full_key(key)?;
        let doing = format!("complete the upload of {key}");
        let query = [("uploadId", upload)];
        let body = xml::completion(parts);
        let sent =
            inner.send_document(Method::POST, Some(&full), &query, body, COMPLETION_PATIENCE, &doing).await;
        let answer = sent.map_err(|failed| inner.fail(failed, &doing))?;
        let mut written = inner.written(&answer.headers);
        let answered = answer.headers.clone();
        let document = inner.document(answer, &doing).await?;
        // The status is sent before the parts are joined: an error can still come in the body.
        if xml::failure(&document).is_some() {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return Err(inner.refused(Refusal::new(status, &answered, &document), &doing));
        }
        let tag = xml::element(&document, "ETag").map_err(|error| inner.at_side(error))?;
        let Some(tag) = tag.map(|tag| tag.trim_matches('"').to_owned()) else {
            let text = format!("{doing}: the answer does not say that it is done");
            return Err(inner.at_side(Error::temporary(ErrorKind::Network, text)));
        };
        written.etag = Some(tag);
        Ok(written)
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        let full = self.inner.full_key(key)?;
        let doing = format!("abort the upload of {key}");
        match self.inner.ask(Method::DELETE, Some(&full), &[("uploadId", upload)], &doing).await {
            Ok(answer) => self.inner.finish(answer, &doing).await.map(drop),
            Err(Failed::Refused(refusal)) if refusal.is("NoSuchUpload") || refusal.is_missing_key() => Ok(()),
            Err(failed) => Err(self.inner.fail(failed, &doing)),
        }
    }

    async fn open_uploads(&self) -> Result<Vec<Upload>> {
        let inner = &self.inner;
        let doing = format!("list the open uploads of {}", inner.settings.address);
        if !inner.settings.dialect.lists_uploads {
            let text = format!("{doing}: not documented for this kind of store");
            return Err(inner.error(ErrorKind::Unsupported, text));
        }
        let own = &inner.settings.prefix;
        let mut uploads = Vec::new();
        let mut after: Option<(String, String)> = None;
        loop {
            let mut query = vec![("uploads", ""), ("encoding-type", "url")];
            if !own.is_empty() {
                query.push(("prefix", own));
            }
            if let Some((key, id)) = &after {
                query.extend([("key-marker", key.as_str()), ("upload-id-marker", id.as_str())]);
            }
            let asked = inner.ask(Method::GET, None, &query, &doing).await;
            let document =
                inner.document(asked.map_err(|failed| inner.fail(failed, &doing))?, &doing).await?;
            let page = xml::uploads(&document).map_err(|error| inner.at_side(error))?;
            uploads.extend(page.uploads.into_iter().filter_map(|upload| {
                Some(Upload { key: upload.key.strip_prefix(own.as_str())?.to_owned(), ..upload })
            }));
            match page.next {
                Some(next) if after.as_ref() != Some(&next) => after = Some(next),
                _ => return Ok(uploads),
            }
        }
    }

    async fn policy(&self) -> Result<Option<String>> {
        let inner = &self.inner;
        if !inner.capabilities.policy {
            return Err(inner.without_policies());
        }
        let doing = format!("read the policy of {}", inner.settings.address);
        match inner.ask(Method::GET, None, &[("policy", "")], &doing).await {
            Ok(answer) => {
                let text = inner.document(answer, &doing).await?;
                match serde_json::from_str::<serde_json::Value>(&text) {
                    Ok(policy) if policy.is_object() => {
                        inner.knows_policies.store(true, Ordering::Relaxed);
                        Ok(Some(text))
                    }
                    _ if text.trim().is_empty() => Ok(None),
                    // A server that ignores `?policy` answers the listing of the bucket.
                    _ => Err(inner.without_policies()),
                }
            }
            Err(Failed::Refused(refusal)) if refusal.is("NoSuchBucketPolicy") => {
                inner.knows_policies.store(true, Ordering::Relaxed);
                Ok(None)
            }
            Err(failed) => Err(inner.fail(failed, &doing)),
        }
    }

    async fn set_policy(&self, policy: Option<&str>) -> Result<()> {
        let inner = &self.inner;
        if !inner.capabilities.policy {
            return Err(inner.without_policies());
        }
        let doing = format!("set the policy of {}", inner.settings.address);
        // To a server that does not know `?policy`, a PUT makes a bucket and a DELETE removes one: ask first, once.
        if !inner.knows_policies.load(Ordering::Relaxed) {
            self.policy().await?;
        }
        if !inner.knows_policies.load(Ordering::Relaxed) {
            return Err(inner.without_policies());
        }
        let query = [("policy", "")];
        let sent = match policy {
            Some(policy) => {
                inner.send_document(Method::PUT, None, &query, policy.to_owned(), PATIENCE, &doing).await
            }
            None => inner.ask(Method::DELETE, None, &query, &doing).await,
        };
        match sent {
            Ok(answer) => self.inner.finish(answer, &doing).await.map(drop),
            Err(Failed::Refused(refusal)) if policy.is_none() && refusal.is("NoSuchBucketPolicy") => Ok(()),
            Err(failed) => Err(inner.fail(failed, &doing)),
        }
    }

    fn fence_policy(&self, existing: Option<&str>, principal: &str) -> Result<String> {
        let Settings { dialect, bucket, prefix, .. } = &self.inner.settings;
        policy::fence(dialect.grammar, bucket, prefix, existing, principal)
            .map_err(|error| self.inner.at_side(error))
    }

    fn unfence_policy(&self, existing: &str) -> Result<Option<String>> {
        policy::unfence(existing, &self.inner.settings.prefix).map_err(|error| self.inner.at_side(error))
    }
}

impl Inner {
    /// The size of the whole object and the number of bytes this answer brings.
    fn sizes(&self, answer: &Answer, range: Option<&Range<u64>>, doing: &str) -> Result<(u64, u64)> {
        let corrupt = |what: &str| self.error(ErrorKind::Corrupt, format!("{doing}: {what}"));
        match (range, content_range(&answer.headers)) {
            (None, _) => {
                let size =
                    content_length(&answer.headers).ok_or_else(|| corrupt("the answer has no size"))?;
                Ok((size, size))
            }
            (Some(range), Some((got, total))) => {
                if got.start != range.start || got.end != range.end.min(total) {
                    return Err(corrupt("another range came than was asked for"));
                }
                Ok((total, got.end - got.start))
            }
            (Some(range), None) => {
                let size =
                    content_length(&answer.headers).ok_or_else(|| corrupt("the answer has no size"))?;
                if range.start == 0 && range.end >= size {
                    return Ok((size, size));
                }
                let text = format!("{doing}: the server ignores ranges");
                Err(self.error(ErrorKind::Unsupported, text))
            }
        }
    }
}
