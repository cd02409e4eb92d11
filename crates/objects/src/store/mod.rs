//! The [`Store`] trait: what the mover needs of a place that keeps objects, and nothing more. Keys are byte-exact.

mod address;
pub mod contract;
pub mod local;
pub mod memory;
mod opendal;
pub mod policy;
pub mod s3;

pub use address::{Address, Scheme, open};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use rehome_part::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub key: String,
    pub size: u64,
    /// The store's own tag of this content, without quotes; opaque, compare for equality on the same store only
    /// (a plain MD5 only when [`Capabilities::etag_is_md5`] and the tag has 32 hex digits).
    pub etag: Option<String>,
    /// Milliseconds since 1970.
    pub modified: Option<i64>,
}

/// What travels with the bytes. The modified time is carried in user metadata as `mtime` (seconds with fraction since
/// 1970, the key rclone uses), written only when it is not there already.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    pub content_language: Option<String>,
    pub content_disposition: Option<String>,
    pub cache_control: Option<String>,
    pub expires: Option<String>,
    /// Lower-case names without the vendor's prefix.
    pub user: BTreeMap<String, String>,
    /// Tags, storage class, ACL and what else was found and this trait does not carry: named, so that it is listed as a loss.
    pub not_carried: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub size: u64,
    pub etag: Option<String>,
    pub modified: Option<i64>,
    pub attributes: Attributes,
    /// Content checksums the store itself reports.
    pub checksums: Checksums,
}

/// Checksums of the whole content. CRCs as numbers, MD5 as 32 lower-case hex digits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksums {
    pub md5: Option<String>,
    pub crc64nvme: Option<u64>,
    pub crc64xz: Option<u64>,
    pub crc32c: Option<u32>,
}

impl Checksums {
    /// `Some(true)` when at least one kind is known on both sides and all of those agree, `Some(false)` when one differs.
    pub fn agree(&self, other: &Self) -> Option<bool> {
        let pairs = [
            self.md5.as_ref().zip(other.md5.as_ref()).map(|(a, b)| a == b),
            self.crc64nvme.zip(other.crc64nvme).map(|(a, b)| a == b),
            self.crc64xz.zip(other.crc64xz).map(|(a, b)| a == b),
            self.crc32c.zip(other.crc32c).map(|(a, b)| a == b),
        ];
        let known: Vec<bool> = pairs.into_iter().flatten().collect();
        if known.is_empty() { None } else { Some(known.into_iter().all(|same| same)) }
    }
}

pub type Body = BoxStream<'static, Result<Bytes>>;

/// Only write when …
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Condition {
    #[default]
    Always,
    /// … nothing is there.
    Absent,
    /// … what is there has this tag.
    Matches(String),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    pub etag: Option<String>,
    /// What the store says it took.
    pub checksums: Checksums,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    pub key: String,
    pub id: String,
    /// Milliseconds since 1970.
    pub begun: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadedPart {
    /// From 1.
    pub number: u32,
    pub etag: String,
    pub size: u64,
}

/// Legal differences between stores. The mover asks here, never for the vendor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Listings come in byte order of the keys; otherwise the mover sorts them on disk.
    pub sorted_listing: bool,
    pub etag_is_md5: bool,
    pub user_metadata: bool,
    pub content_headers: bool,
    /// `Condition::Absent` / `Matches` on put are honoured.
    pub conditional_put: bool,
    /// `if_match` on get is honoured.
    pub conditional_get: bool,
    /// Smallest part (all but the last), largest part, most parts; `None`: no multipart writes.
    pub multipart: Option<PartLimits>,
    /// Largest object in one put.
    pub max_put: u64,
    pub max_object: u64,
    /// A policy can deny writes to all but one principal.
    pub policy: bool,
    /// An object `p` and an object `p/q` can both exist, and keys may end with `/`.
    pub free_keys: bool,
    /// Has this driver met the real service, or only servers that speak its dialect? Shown by `doctor`.
    pub met_vendor: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartLimits {
    pub smallest: u64,
    pub largest: u64,
    pub count: u32,
}

/// A place that keeps objects: one bucket (or container, or folder), below one prefix; keys here are relative to the prefix.
///
/// Contract, checked by [`contract`] for every driver:
/// - keys are byte-exact: `+`, `%`, `//`, spaces, unicode, control characters where the store takes them, and a trailing slash
///   survive; a key the store cannot keep is refused with kind `Unsupported`, never altered;
/// - a read after a write that was acknowledged sees that write; a put is all or nothing;
/// - errors carry the right kind (`NotFound` for the bucket, `Credentials`, `Full`, `Network`, `Changed` when a
///   condition failed); a driver retries nothing by itself;
/// - `get` ends with an error when fewer bytes came than were announced.
#[async_trait]
pub trait Store: Debug + Send + Sync {
    /// The address without secrets, for messages.
    fn address(&self) -> &str;

    fn capabilities(&self) -> &Capabilities;

    /// Is the bucket there and may we list it?
    async fn check(&self) -> Result<()>;

    /// Creates the bucket; `Ok(false)` when it was there.
    async fn create(&self) -> Result<bool>;

    /// Removes the bucket if it is empty.
    async fn remove(&self) -> Result<()>;

    /// All keys that begin with `prefix` and come after `after` (in the store's order), page by page as they are read.
    /// An error of kind `Unsupported` is about one name that cannot be carried (a symbolic link, a name that is not
    /// UTF-8; the text names it) and the listing goes on after it; any other error ends the listing.
    fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'_, Result<Entry>>;

    /// `None` when there is no such key.
    async fn head(&self, key: &str) -> Result<Option<Meta>>;

    /// Content and meta in one round trip; `None` when there is no such key. `meta.size` is the size of the whole object.
    /// With `if_match`, kind `Changed` when the object is another one now (best effort where the store ignores it: check the etag).
    async fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        if_match: Option<&str>,
    ) -> Result<Option<(Meta, Body)>>;

    /// Writes a whole object from memory.
    async fn put(
        &self,
        key: &str,
        attributes: &Attributes,
        content: Bytes,
        condition: Condition,
    ) -> Result<Written>;

    /// `Ok` also when there was no such key.
    async fn delete(&self, key: &str) -> Result<()>;

    async fn begin_upload(&self, key: &str, attributes: &Attributes) -> Result<String>;
    async fn upload_part(&self, key: &str, upload: &str, number: u32, content: Bytes)
    -> Result<UploadedPart>;
    /// The parts the store already has, for going on after a kill. `Unsupported` where it cannot tell.
    async fn uploaded_parts(&self, key: &str, upload: &str) -> Result<Vec<UploadedPart>>;
    async fn complete_upload(&self, key: &str, upload: &str, parts: &[UploadedPart]) -> Result<Written>;
    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()>;
    /// Uploads that anybody began and did not finish. `Unsupported` where the store cannot tell.
    async fn open_uploads(&self) -> Result<Vec<Upload>>;

    /// The bucket policy as the store gives it; `None` when there is none. `Unsupported` without policies.
    async fn policy(&self) -> Result<Option<String>>;
    async fn set_policy(&self, policy: Option<&str>) -> Result<()>;
    /// The policy text that keeps everybody but `principal` from writing, in this store's dialect, added to `existing`.
    fn fence_policy(&self, existing: Option<&str>, principal: &str) -> Result<String>;
    /// `existing` without the fence and otherwise as it was, the very same text when no fence is in it; `None` when nothing is
    /// left (then the policy is to be removed).
    fn unfence_policy(&self, existing: &str) -> Result<Option<String>> {
        let _ = existing;
        let text = format!("{} has no policies", self.address());
        Err(rehome_part::Error::permanent(rehome_part::ErrorKind::Unsupported, text))
    }
}
