//! Azure Blob Storage and Google Cloud Storage with their own signatures, through OpenDAL.
//!
//! OpenDAL tidies paths up (spaces at the ends, `//`, a leading `/`): keys it would alter are refused. It writes no
//! `content-language` and no `expires`, some headers only to one of the two, and has no calls for the parts of an upload: parts
//! go through one writer in their order, and an upload does not outlive its process. Neither service was met; Azure only as Azurite.

mod transport;

use super::address::Address;
use super::s3::wire::Connection;
use super::{
    Attributes, Body, Capabilities, Checksums, Condition, Entry, Meta, PartLimits, Store, Upload,
    UploadedPart, Written,
};
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use opendal::options::{ListOptions, ReaderOptions, StatOptions, WriteOptions};
use opendal::{HttpTransporter, OperationContext};
use opendal::{Metadata, Operator, Writer};
use rehome_part::{Error, ErrorKind, Result, Side};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use transport::Transport;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    Azblob,
    Gcs,
}

/// One container or bucket, below one prefix.
pub struct OpendalStore {
    service: Service,
    operator: Operator,
    prefix: String,
    address: String,
    credentials_name: String,
    side: Option<Side>,
    capabilities: Capabilities,
    /// Uploads under way in this process.
    uploads: Mutex<HashMap<String, Arc<Pending>>>,
}

impl fmt::Debug for OpendalStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OpendalStore").field("address", &self.address).finish_non_exhaustive()
    }
}

/// An upload: parts come in any order and are written in theirs.
struct Pending {
    key: String,
    writer: tokio::sync::Mutex<Writer>,
    /// The number of the part whose turn it is; 0 after a failure.
    turn: watch::Sender<u32>,
    written: Mutex<Vec<UploadedPart>>,
}

pub(super) fn azblob(address: &Address) -> Result<OpendalStore> {
    let mut builder = opendal::services::Azblob::default().root("/").container(&address.bucket);
    let endpoint = match (&address.endpoint, &address.access_key) {
        (Some(endpoint), _) => endpoint.clone(),
        (None, Some(account)) => format!("https://{account}.blob.core.windows.net"),
        (None, None) => {
            return Err(Error::permanent(ErrorKind::Credentials, format!("{address} names no account"))
                .hint("set `access_key` to the storage account's name"));
        }
    };
    builder = builder.endpoint(&endpoint);
    builder = match (&address.access_key, &address.secret_key) {
        (Some(account), Some(key)) => builder.account_name(account).account_key(key),
        (Some(account), None) => builder.account_name(account).skip_signature(),
        _ => builder.skip_signature(),
    };
    let operator = Operator::new(builder).map_err(|error| not_opened(address, &error))?;
    OpendalStore::new(Service::Azblob, operator, &endpoint, address)
}

pub(super) fn gcs(address: &Address) -> Result<OpendalStore> {
    let mut builder = opendal::services::Gcs::default()
        .root("/")
        .bucket(&address.bucket)
        .disable_vm_metadata()
        .disable_config_load();
    let endpoint = address.endpoint.clone().unwrap_or_else(|| "https://storage.googleapis.com".into());
    builder = builder.endpoint(&endpoint);
    builder = match &address.secret_key {
        Some(json) if json.trim_start().starts_with('{') => builder.credential(&STANDARD.encode(json.trim())),
        Some(token) => builder.token(token.trim().to_owned()),
        None => builder.skip_signature(),
    };
    let operator = Operator::new(builder).map_err(|error| not_opened(address, &error))?;
    OpendalStore::new(Service::Gcs, operator, &endpoint, address)
}

fn not_opened(address: &Address, error: &opendal::Error) -> Error {
    Error::permanent(ErrorKind::Unsupported, format!("cannot open {address}: {}", error.message()))
}

impl OpendalStore {
    fn new(service: Service, operator: Operator, endpoint: &str, address: &Address) -> Result<Self> {
        let connection = Connection::new(endpoint.starts_with("https:"))?;
        let context =
            OperationContext::new().with_http_transport(HttpTransporter::new(Transport(connection)));
        let (limits, max_put, max_object) = match service {
            Service::Azblob => {
                let limits = PartLimits { smallest: 1, largest: 4_000 * MIB, count: 50_000 };
                (limits, 5_000 * MIB, 190 * 1024 * GIB)
            }
            Service::Gcs => {
                let limits = PartLimits { smallest: 5 * MIB, largest: 5 * GIB, count: 10_000 };
                (limits, 5 * GIB, 5 * 1024 * GIB)
            }
        };
        Ok(Self {
            service,
            operator: operator.with_context(context),
            prefix: address.prefix.clone(),
            address: address.to_string(),
            credentials_name: address.credentials_name.clone(),
            side: address.side,
            capabilities: Capabilities {
                // Azure promises an order, and not that it is the order of bytes.
                sorted_listing: service == Service::Gcs,
                etag_is_md5: false,
                user_metadata: true,
                content_headers: true,
                conditional_put: service == Service::Azblob,
                conditional_get: true,
                multipart: Some(limits),
                max_put,
                max_object,
                policy: false,
                free_keys: false,
                met_vendor: false,
            },
            uploads: Mutex::default(),
        })
    }

    fn error(&self, kind: ErrorKind, text: impl Into<String>) -> Error {
        self.at_side(Error::permanent(kind, text))
    }

    fn at_side(&self, error: Error) -> Error {
        match (error.side, self.side) {
            (None, Some(side)) => error.on(side),
            _ => error,
        }
    }

    fn failed(&self, doing: &str, error: &opendal::Error) -> Error {
        use opendal::ErrorKind as Kind;
        let first_line = error.message().lines().next().unwrap_or_default();
        let text = format!("{doing}: {}", first_line.chars().take(300).collect::<String>());
        let told = |kind| self.error(kind, text.clone());
        match error.kind() {
            Kind::NotFound => told(ErrorKind::NotFound),
            Kind::PermissionDenied => {
                told(ErrorKind::Credentials).hint(format!("check {}", self.credentials_name))
            }
            Kind::ConditionNotMatch | Kind::RangeNotSatisfied | Kind::AlreadyExists => {
                told(ErrorKind::Changed)
            }
            Kind::Unsupported | Kind::IsADirectory | Kind::NotADirectory => told(ErrorKind::Unsupported),
            Kind::RateLimited => self.at_side(Error::temporary(ErrorKind::Network, text)),
            _ if error.is_temporary() => self.at_side(Error::temporary(ErrorKind::Network, text)),
            _ => told(ErrorKind::Other),
        }
    }

    /// The whole key, when OpenDAL leaves it as it is.
    fn full_key(&self, key: &str) -> Result<String> {
        let full = format!("{}{key}", self.prefix);
        match altered(&full, self.service) {
            None => Ok(full),
            Some(why) => {
                let text = format!("the key `{}` cannot be kept by this driver: {why}", full.escape_debug());
                Err(self.error(ErrorKind::Unsupported, text))
            }
        }
    }

    /// `None` for a key that cannot be there.
    fn readable(&self, key: &str) -> Option<String> {
        self.full_key(key).ok()
    }

    fn write_options(
        &self,
        doing: &str,
        attributes: &Attributes,
        condition: &Condition,
    ) -> Result<WriteOptions> {
        let Attributes {
            content_type,
            content_encoding,
            content_language,
            content_disposition,
            cache_control,
            expires,
            user,
            not_carried: _,
        } = attributes;
        let azure = self.service == Service::Azblob;
        let lost = [
            ("content-language", content_language.is_some()),
            ("expires", expires.is_some()),
            ("content-disposition", content_disposition.is_some()),
            ("content-encoding", content_encoding.is_some() && azure),
        ];
        let lost: Vec<&str> = lost.into_iter().filter(|(_, lost)| *lost).map(|(name, _)| name).collect();
        if !lost.is_empty() {
            let text = format!("{doing}: {} cannot be written by this driver", lost.join(", "));
            return Err(self.error(ErrorKind::Unsupported, text));
        }
        if azure && let Some(name) = user.keys().find(|name| !is_identifier(name)) {
            let text =
                format!("{doing}: Azure takes no user metadata named `{name}` (letters, digits and _ only)");
            return Err(self.error(ErrorKind::Unsupported, text));
        }
        let pairs = || user.iter().map(|(name, text)| (name.clone(), text.clone())).collect();
        let mut options = WriteOptions {
            content_type: content_type.clone(),
            content_encoding: content_encoding.clone(),
            cache_control: cache_control.clone(),
            user_metadata: (!user.is_empty()).then(pairs),
            ..WriteOptions::default()
        };
        match condition {
            Condition::Always => {}
            Condition::Absent => options.if_not_exists = true,
            Condition::Matches(tag) if azure => options.if_match = Some(format!("\"{tag}\"")),
            Condition::Matches(_) => {
                let text = format!("{doing}: this driver cannot replace on a condition");
                return Err(self.error(ErrorKind::Unsupported, text));
            }
        }
        Ok(options)
    }

    async fn stat(&self, full: &str, doing: &str) -> Result<Option<Meta>> {
        match self.operator.stat_options(full, StatOptions::default()).await {
            Ok(metadata) => Ok(Some(meta(&metadata))),
            Err(error) if error.kind() == opendal::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(doing, &error)),
        }
    }

    /// A missing container looks like a missing key: only where it matters it is told apart.
    async fn none_or_no_bucket<T>(&self) -> Result<Option<T>> {
        self.check().await.map(|()| None)
    }

    fn line(&self, entry: &opendal::Entry, wanted: &str, after: Option<&str>) -> Option<Result<Entry>> {
        let path = entry.path();
        let wanted = path.starts_with(wanted) && after.is_none_or(|after| path > after);
        if !wanted {
            return None;
        }
        if entry.metadata().is_dir() {
            let text = format!("the key `{path}` ends with `/`: not carried by this driver");
            return Some(Err(self.error(ErrorKind::Unsupported, text)));
        }
        let metadata = entry.metadata();
        Some(Ok(Entry {
            key: path.strip_prefix(&self.prefix)?.to_owned(),
            size: metadata.content_length(),
            etag: metadata.etag().map(bare_tag),
            modified: modified(metadata),
        }))
    }

    fn pending(&self, key: &str, upload: &str) -> Result<Arc<Pending>> {
        let uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = uploads.get(upload).filter(|pending| pending.key == key).cloned();
        pending.ok_or_else(|| {
            self.error(ErrorKind::NotFound, format!("no upload {upload} of {key} in this process"))
        })
    }

    fn unsupported(&self, what: &str) -> Error {
        self.error(ErrorKind::Unsupported, format!("{}: {what}", self.address))
    }
}

/// Why OpenDAL or the service would make another key of this one.
fn altered(key: &str, service: Service) -> Option<&'static str> {
    if key.is_empty() {
        return Some("it is empty");
    }
    if key.trim() != key {
        return Some("it begins or ends with a space");
    }
    if key.ends_with('/') {
        return Some("it ends with `/`");
    }
    if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Some("it has an empty part, `.` or `..`");
    }
    if service == Service::Azblob && (key.contains('\\') || key.ends_with('.') || key.contains("./")) {
        return Some("Azure alters `\\` and dots at the end of a part");
    }
    if key.len() > 1024 {
        return Some("it has more than 1024 bytes");
    }
    None
}

fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn bare_tag(tag: &str) -> String {
    tag.trim_start_matches("W/").trim_matches('"').to_owned()
}

fn modified(metadata: &Metadata) -> Option<i64> {
    metadata.last_modified().map(|time| time.into_inner().as_millisecond())
}

fn meta(metadata: &Metadata) -> Meta {
    let user = metadata.user_metadata().into_iter().flatten();
    let md5 =
        metadata.content_md5().and_then(|text| STANDARD.decode(text).ok()).filter(|bytes| bytes.len() == 16);
    Meta {
        size: metadata.content_length(),
        etag: metadata.etag().map(bare_tag),
        modified: modified(metadata),
        attributes: Attributes {
            content_type: metadata.content_type().map(String::from),
            content_encoding: metadata.content_encoding().map(String::from),
            content_disposition: metadata.content_disposition().map(String::from),
            cache_control: metadata.cache_control().map(String::from),
            user: user.map(|(name, text)| (name.to_ascii_lowercase(), text.to_owned())).collect(),
            ..Attributes::default()
        },
        checksums: Checksums {
            md5: md5.map(|bytes| {
                let mut text = String::with_capacity(32);
                super::s3::write_hex(&mut text, &bytes);
                text
            }),
            ..Checksums::default()
        },
    }
}

#[async_trait]
impl Store for OpendalStore {
    fn address(&self) -> &str {
        &self.address
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn check(&self) -> Result<()> {
        let doing = format!("list {}", self.address);
        let options = ListOptions { recursive: true, limit: Some(1), ..ListOptions::default() };
        let lister = self.operator.lister_options("/", options).await;
        let mut lister = lister.map_err(|error| self.failed(&doing, &error))?;
        match lister.next().await {
            Some(Err(error)) => Err(self.failed(&doing, &error)),
            _ => Ok(()),
        }
    }

    async fn create(&self) -> Result<bool> {
        match self.check().await {
            Ok(()) => Ok(false),
            Err(error) if error.kind == ErrorKind::NotFound => {
                let text = format!("{} does not exist and this driver cannot create it", self.address);
                Err(self.error(ErrorKind::Unsupported, text).hint("create it with the vendor's own tools"))
            }
            Err(error) => Err(error),
        }
    }

    async fn remove(&self) -> Result<()> {
        Err(self.unsupported("this driver cannot remove containers"))
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'_, Result<Entry>> {
        let doing = format!("list {}", self.address);
        let wanted = format!("{}{prefix}", self.prefix);
        let after = after.map(|after| format!("{}{after}", self.prefix));
        // The folder that holds all that is wanted: OpenDAL would tidy up a prefix in the middle of a name.
        let folder = wanted.rfind('/').and_then(|slash| wanted.get(..=slash)).unwrap_or("/").to_owned();
        let start_after = after.clone().filter(|_| self.service == Service::Gcs);
        let options = ListOptions { recursive: true, start_after, ..ListOptions::default() };
        stream::once(async move {
            match self.operator.lister_options(&folder, options).await {
                Ok(lister) => lister
                    .filter_map(move |entry| {
                        let line = match entry {
                            Ok(entry) => self.line(&entry, &wanted, after.as_deref()),
                            Err(error) => Some(Err(self.failed(&doing, &error))),
                        };
                        std::future::ready(line)
                    })
                    .boxed(),
                Err(error) => stream::iter([Err(self.failed(&doing, &error))]).boxed(),
            }
        })
        .flatten()
        .boxed()
    }

    async fn head(&self, key: &str) -> Result<Option<Meta>> {
        let Some(full) = self.readable(key) else { return Ok(None) };
        self.stat(&full, &format!("look at {key}")).await
    }

    async fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        if_match: Option<&str>,
    ) -> Result<Option<(Meta, Body)>> {
        let Some(full) = self.readable(key) else { return Ok(None) };
        let doing = format!("read {key}");
        let Some(meta) = self.stat(&full, &doing).await? else { return self.none_or_no_bucket().await };
        if if_match.is_some() && if_match != meta.etag.as_deref() {
            return Err(self.error(ErrorKind::Changed, format!("{key} is another object now")));
        }
        let range = range.map_or(0..meta.size, |range| range.start..range.end.min(meta.size));
        if range.is_empty() {
            return match range.start > meta.size {
                true => {
                    Err(self.error(ErrorKind::Changed, format!("{key} ends before byte {}", range.start)))
                }
                false => Ok(Some((meta, stream::empty().boxed()))),
            };
        }
        // What is read is what was looked at: the second call names the tag of the first.
        let same =
            meta.etag.as_ref().filter(|_| self.service == Service::Azblob).map(|tag| format!("\"{tag}\""));
        let options = ReaderOptions {
            if_match: same,
            content_length_hint: Some(meta.size),
            ..ReaderOptions::default()
        };
        let reader = self.operator.reader_options(&full, options).await;
        let reader = reader.map_err(|error| self.failed(&doing, &error))?;
        let opened = reader.into_stream(range.clone()).await.map_err(|error| self.failed(&doing, &error))?;
        let side = self.side;
        let body = opened.map(move |item| {
            let error = |error: opendal::Error| {
                let kind = match error.kind() {
                    opendal::ErrorKind::ConditionNotMatch => ErrorKind::Changed,
                    _ => ErrorKind::Network,
                };
                let told = Error::temporary(kind, format!("{doing}: {}", error.message()));
                match side {
                    Some(side) => told.on(side),
                    None => told,
                }
            };
            item.map(|buffer| buffer.to_bytes()).map_err(error)
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
        let full = self.full_key(key)?;
        let doing = format!("write {key}");
        let options = self.write_options(&doing, attributes, &condition)?;
        let written = self.operator.write_options(&full, content, options).await;
        let metadata = written.map_err(|error| self.failed(&doing, &error))?;
        Ok(Written { etag: metadata.etag().map(bare_tag), checksums: meta(&metadata).checksums })
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let Some(full) = self.readable(key) else { return Ok(()) };
        match self.operator.delete(&full).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == opendal::ErrorKind::NotFound => self.check().await,
            Err(error) => Err(self.failed(&format!("delete {key}"), &error)),
        }
    }

    async fn begin_upload(&self, key: &str, attributes: &Attributes) -> Result<String> {
        let full = self.full_key(key)?;
        let doing = format!("begin an upload of {key}");
        let options = self.write_options(&doing, attributes, &Condition::Always)?;
        let writer = self.operator.writer_options(&full, options).await;
        let writer = writer.map_err(|error| self.failed(&doing, &error))?;
        let id = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let pending = Pending {
            key: key.into(),
            writer: tokio::sync::Mutex::new(writer),
            turn: watch::Sender::new(1),
            written: Mutex::default(),
        };
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), Arc::new(pending));
        Ok(id)
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        content: Bytes,
    ) -> Result<UploadedPart> {
        let pending = self.pending(key, upload)?;
        let doing = format!("write part {number} of {key}");
        let mut turn = pending.turn.subscribe();
        let now = *turn
            .wait_for(|turn| *turn >= number || *turn == 0)
            .await
            .map_err(|_| self.error(ErrorKind::Cancelled, format!("{doing}: the upload is gone")))?;
        if now != number {
            let text = format!("{doing}: this driver writes parts once, and in their order");
            return Err(self.error(ErrorKind::Unsupported, text).hint("begin the upload of this key again"));
        }
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &content);
        let part = UploadedPart { number, etag: format!("{crc:016x}"), size: content.len() as u64 };
        let wrote = pending.writer.lock().await.write(content).await;
        if wrote.is_ok() {
            pending.written.lock().unwrap_or_else(PoisonError::into_inner).push(part.clone());
        }
        pending.turn.send_replace(if wrote.is_ok() { number + 1 } else { 0 });
        wrote.map_err(|error| self.failed(&doing, &error))?;
        Ok(part)
    }

    async fn uploaded_parts(&self, key: &str, upload: &str) -> Result<Vec<UploadedPart>> {
        let pending = self.pending(key, upload)?;
        let written = pending.written.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(written.clone())
    }

    async fn complete_upload(&self, key: &str, upload: &str, parts: &[UploadedPart]) -> Result<Written> {
        let pending = self.pending(key, upload)?;
        let doing = format!("complete the upload of {key}");
        let as_written = *pending.written.lock().unwrap_or_else(PoisonError::into_inner) == parts;
        if parts.is_empty() || !as_written {
            let text = format!("{doing}: the parts named are not the parts that were written");
            return Err(self.error(ErrorKind::Corrupt, text));
        }
        let closed = pending.writer.lock().await.close().await;
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(upload);
        let metadata = closed.map_err(|error| self.failed(&doing, &error))?;
        Ok(Written { etag: metadata.etag().map(bare_tag), checksums: Checksums::default() })
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        let pending = self.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(upload);
        let Some(pending) = pending else { return Ok(()) };
        pending.turn.send_replace(0);
        let aborted = pending.writer.lock().await.abort().await;
        aborted.map_err(|error| self.failed(&format!("abort the upload of {key}"), &error))
    }

    async fn open_uploads(&self) -> Result<Vec<Upload>> {
        Err(self.unsupported("this driver cannot tell which uploads are open"))
    }

    async fn policy(&self) -> Result<Option<String>> {
        Err(self.unsupported("this driver knows no policies"))
    }

    async fn set_policy(&self, _policy: Option<&str>) -> Result<()> {
        Err(self.unsupported("this driver knows no policies"))
    }

    fn fence_policy(&self, _existing: Option<&str>, _principal: &str) -> Result<String> {
        Err(self.unsupported("this driver knows no policies").hint("fence with a command or a hook"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_would_be_altered_are_refused() {
        for key in ["", "/a", "a//b", "a/", " a", "a ", "a/../b", "./a"] {
            assert!(altered(key, Service::Gcs).is_some(), "{key:?}");
        }
        for key in ["a\\b", "a./b", "a."] {
            assert!(
                altered(key, Service::Azblob).is_some() && altered(key, Service::Gcs).is_none(),
                "{key:?}"
            );
        }
        assert_eq!(altered("ü/a b+%25.txt", Service::Azblob), None);
    }

    #[test]
    fn metadata_names_that_azure_takes() {
        assert!(is_identifier("mtime") && is_identifier("_a1"));
        assert!(!is_identifier("with-dash") && !is_identifier("1a") && !is_identifier(""));
    }
}
