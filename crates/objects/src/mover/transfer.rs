//! Carrying one key: its present state on one side becomes its state on the other. Small objects go whole, in one read and
//! one write; what was read and written is checked against every checksum that either store reports.

use super::decide::Deletes;
use super::digest;
use super::state::{Mark, Seen};
use super::{Mover, RetryPolicy};
use crate::listing::is_reserved;
use crate::store::{Attributes, Body, Capabilities, Checksums, Condition, Meta, Written};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use rehome_part::{Error, ErrorKind, Flow, Result, Retry, Side};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carried {
    /// Written; so many bytes.
    Copied(u64),
    /// It was gone, and is deleted on the other side too.
    Deleted,
    /// It was gone, and nothing of ours is on the other side.
    Gone,
    /// The other side cannot keep it; written down as a loss.
    Refused,
}

enum Read {
    Gone,
    /// Too large to be held whole.
    Large,
    Whole(Box<Meta>, Bytes, Option<OwnedSemaphorePermit>),
}

/// Tries that end in a wrong checksum before it is called a fault that stays.
const CORRUPT_TRIES: u32 = 3;

impl Mover {
    /// Makes `key` on the other side what it is on this one now. `expected` is the size from a listing, if there was one.
    ///
    /// # Errors
    /// Retries what is temporary; an object that changes faster than it can be read ends with kind `Changed`.
    pub async fn carry(
        self: &Arc<Self>,
        flow: Flow,
        key: &str,
        expected: Option<u64>,
        deletes: Deletes,
        stop: &CancellationToken,
    ) -> Result<Carried> {
        let mut expected = expected;
        let (mut changes, mut corruptions) = (0, 0);
        loop {
            if stop.is_cancelled() {
                return Err(Error::cancelled());
            }
            match self.carry_once(flow, key, expected, deletes, stop).await {
                Err(error) if error.kind == ErrorKind::Unsupported => {
                    let remedy = "rename or remove it on the source, or choose a target that can keep it";
                    let text = format!("{key}: {error}");
                    self.state.loss(key, "key-refused", &text, Some(remedy))?;
                    return Ok(Carried::Refused);
                }
                Err(error) if error.kind == ErrorKind::Changed => {
                    changes += 1;
                    if changes >= self.settings.retry.attempts {
                        return Err(Error {
                            retry: Retry::Exhausted,
                            text: format!("{key} changes faster than it can be read: {error}"),
                            ..error
                        });
                    }
                    expected = None;
                    tokio::time::sleep(self.settings.retry.wait(changes)).await;
                }
                Err(error) if error.kind == ErrorKind::Corrupt => {
                    corruptions += 1;
                    if corruptions >= CORRUPT_TRIES {
                        return Err(error);
                    }
                    tracing::warn!(key, %error, "copying again");
                }
                other => return other,
            }
        }
    }

    async fn carry_once(
        self: &Arc<Self>,
        flow: Flow,
        key: &str,
        expected: Option<u64>,
        deletes: Deletes,
        stop: &CancellationToken,
    ) -> Result<Carried> {
        let limit = self.whole_limit(flow.to());
        if expected.is_some_and(|size| size > limit) {
            return self.carry_parts(flow, key, limit, deletes, stop).await;
        }
        let side = flow.from();
        match self
            .retry()
            .run(|| self.read_whole(side, key, expected, limit))
            .await
            .map_err(|e| e.on(side))?
        {
            Read::Gone => self.delete_too(flow, key, deletes).await,
            Read::Large => self.carry_parts(flow, key, limit, deletes, stop).await,
            Read::Whole(meta, content, permit) => {
                let carried = self.write_whole(flow, key, &meta, content, Condition::Always).await;
                drop(permit);
                carried
            }
        }
    }

    pub(super) fn retry(&self) -> RetryPolicy {
        self.settings.retry
    }

    /// The largest object that goes whole. A store without multipart writes takes everything whole, within our memory.
    fn whole_limit(&self, to: Side) -> u64 {
        let capabilities = self.store(to).capabilities();
        match capabilities.multipart {
            Some(_) => self.settings.whole_bytes.min(self.settings.memory_bytes).min(capabilities.max_put),
            None => capabilities.max_put.min(self.settings.memory_bytes),
        }
    }

    async fn read_whole(&self, side: Side, key: &str, expected: Option<u64>, limit: u64) -> Result<Read> {
        // Nothing is held while we wait for memory, so those who wait cannot block each other.
        let mut expected = expected;
        loop {
            let mut permit = match expected {
                Some(bytes) if bytes > 0 => Some(self.reserve(bytes).await),
                _ => None,
            };
            let Some((meta, body)) = self.store(side).get(key, None, None).await? else {
                return Ok(Read::Gone);
            };
            if meta.size > limit {
                return Ok(Read::Large);
            }
            if meta.size > expected.unwrap_or(0) {
                if permit.is_some() {
                    // It grew since it was listed.
                    expected = Some(meta.size);
                    continue;
                }
                permit = Some(self.reserve(meta.size).await);
            }
            let content = collect(body, meta.size, BytesMut::new()).await?;
            return Ok(Read::Whole(Box::new(meta), content, permit));
        }
    }

    /// Copies one key on a condition about the other side, in one write or not at all.
    ///
    /// # Errors
    /// `Changed` when the condition does not hold; `Unsupported` where the store knows no conditions or the object is too
    /// large for one write.
    pub async fn carry_if(&self, flow: Flow, key: &str, condition: Condition) -> Result<Carried> {
        let side = flow.from();
        if !self.store(flow.to()).capabilities().conditional_put {
            let text = format!("{} cannot write on a condition", self.store(flow.to()).address());
            return Err(Error::permanent(ErrorKind::Unsupported, text).on(flow.to()));
        }
        let limit = self.whole_limit(flow.to());
        match self.retry().run(|| self.read_whole(side, key, None, limit)).await.map_err(|e| e.on(side))? {
            Read::Gone => Ok(Carried::Gone),
            Read::Large => {
                let text = format!("{key} is too large for one write on a condition");
                Err(Error::permanent(ErrorKind::Unsupported, text).on(flow.to()))
            }
            Read::Whole(meta, content, permit) => {
                let carried = self.write_whole(flow, key, &meta, content, condition).await;
                drop(permit);
                carried
            }
        }
    }

    async fn write_whole(
        &self,
        flow: Flow,
        key: &str,
        meta: &Meta,
        content: Bytes,
        condition: Condition,
    ) -> Result<Carried> {
        let side = flow.to();
        let to = self.store(side);
        let (attributes, lost) = carried_attributes(meta, to.capabilities());
        self.intend_one(key)?;
        let written = self
            .retry()
            .run(|| to.put(key, &attributes, content.clone(), condition.clone()))
            .await
            .map_err(|e| e.on(side))?;
        self.check_whole(flow, key, meta, &content, &written)?;
        let size = meta.size;
        let to_seen = Seen { etag: written.etag, size: Some(size), modified: None };
        self.remember(flow, key, meta, to_seen, &lost)?;
        Ok(Carried::Copied(size))
    }

    /// From now on the key is ours to delete.
    pub(super) fn intend_one(&self, key: &str) -> Result<()> {
        if is_reserved(key) || self.state.mark_of(key)?.is_some() { Ok(()) } else { self.state.intend([key]) }
    }

    fn check_whole(
        &self,
        flow: Flow,
        key: &str,
        meta: &Meta,
        content: &[u8],
        written: &Written,
    ) -> Result<()> {
        let wrong = |side: Side, what: &str| {
            Err(Error::permanent(ErrorKind::Corrupt, format!("{key}: {what}")).on(side))
        };
        let read =
            known_checksums(self.store(flow.from()).capabilities(), meta.etag.as_deref(), &meta.checksums);
        let kept = known_checksums(
            self.store(flow.to()).capabilities(),
            written.etag.as_deref(),
            &written.checksums,
        );
        if read.agree(&kept) == Some(true) {
            // End to end, by the two stores' own words.
            return Ok(());
        }
        if digest::agrees(content, &read) == Some(false) {
            return wrong(flow.from(), "what was read does not have the checksum that its store reports");
        }
        match digest::agrees(content, &kept) {
            Some(true) => Ok(()),
            Some(false) => wrong(flow.to(), "what was written does not have the checksum of what was sent"),
            None => {
                self.unproved.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Remembers that both versions are the same content, and what was lost on the way.
    pub(super) fn remember(
        &self,
        flow: Flow,
        key: &str,
        meta: &Meta,
        to: Seen,
        lost: &[String],
    ) -> Result<()> {
        if is_reserved(key) {
            return Ok(());
        }
        let from = Seen { etag: meta.etag.clone(), size: Some(meta.size), modified: meta.modified };
        self.state.mark(key, Mark::new(flow, from, to))?;
        if lost.is_empty() {
            return self.state.no_loss(key);
        }
        let text = format!("{key}: not carried: {}", lost.join(", "));
        self.state.loss(
            key,
            "attributes-lost",
            &text,
            Some("set these on the target by hand where they matter"),
        )
    }

    /// The object is gone where we copy from.
    pub(super) async fn delete_too(&self, flow: Flow, key: &str, deletes: Deletes) -> Result<Carried> {
        let ours = self.state.mark_of(key)?.is_some();
        let may = match deletes {
            Deletes::Never => false,
            Deletes::Ours => ours,
            Deletes::All => true,
        };
        if !may || is_reserved(key) {
            return Ok(Carried::Gone);
        }
        let side = flow.to();
        self.retry().run(|| self.store(side).delete(key)).await.map_err(|e| e.on(side))?;
        self.state.forget(key)?;
        Ok(Carried::Deleted)
    }
}

/// Reads exactly `size` bytes, into `spare` when it is large enough. One chunk is not copied again.
pub(super) async fn collect(mut body: Body, size: u64, spare: BytesMut) -> Result<Bytes> {
    let size = usize::try_from(size)
        .map_err(|_| Error::permanent(ErrorKind::Unsupported, "larger than the address space"))?;
    let mut first: Option<Bytes> = None;
    let mut rest: Option<BytesMut> = None;
    let mut spare = Some(spare).filter(|spare| spare.capacity() >= size);
    let mut length = 0;
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        length += chunk.len();
        if length > size {
            return Err(Error::temporary(
                ErrorKind::Network,
                format!("more than the {size} bytes announced came"),
            ));
        }
        if rest.is_none() && first.is_none() {
            first = Some(chunk);
            continue;
        }
        let buffer =
            rest.get_or_insert_with(|| spare.take().unwrap_or_else(|| BytesMut::with_capacity(size)));
        if let Some(first) = first.take() {
            buffer.extend_from_slice(&first);
        }
        buffer.extend_from_slice(&chunk);
    }
    if length < size {
        return Err(Error::temporary(ErrorKind::Network, format!("{length} of {size} bytes came")));
    }
    Ok(rest.map(BytesMut::freeze).or(first).unwrap_or_default())
}

/// The checksums a store reports, its tag included where that is a plain MD5.
pub(crate) fn known_checksums(
    capabilities: &Capabilities,
    etag: Option<&str>,
    reported: &Checksums,
) -> Checksums {
    let mut known = reported.clone();
    if known.md5.is_none() && capabilities.etag_is_md5 {
        known.md5 = etag.filter(|etag| digest::is_md5(etag)).map(str::to_ascii_lowercase);
    }
    known
}

/// What the target can keep of an object's attributes, and the names of what it cannot.
pub(super) fn carried_attributes(meta: &Meta, to: &Capabilities) -> (Attributes, Vec<String>) {
    let mut attributes = meta.attributes.clone();
    let mut lost = std::mem::take(&mut attributes.not_carried);
    if to.user_metadata {
        if let Some(modified) = meta.modified {
            attributes.user.entry("mtime".into()).or_insert_with(|| mtime(modified));
        }
    } else {
        // A time that we (or rclone) wrote is no loss by itself.
        lost.extend(
            attributes.user.keys().filter(|name| *name != "mtime").map(|name| format!("metadata {name}")),
        );
        attributes.user.clear();
    }
    if !to.content_headers {
        let Attributes {
            content_type,
            content_encoding,
            content_language,
            content_disposition,
            cache_control,
            expires,
            ..
        } = &mut attributes;
        // What stores say when nobody said anything is no loss.
        let is_default = |value: &str| {
            matches!(value, "application/octet-stream" | "binary/octet-stream" | "application/x-directory")
        };
        if content_type.take().is_some_and(|value| !is_default(&value)) {
            lost.push("Content-Type".into());
        }
        let others = [
            ("Content-Encoding", content_encoding),
            ("Content-Language", content_language),
            ("Content-Disposition", content_disposition),
            ("Cache-Control", cache_control),
            ("Expires", expires),
        ];
        lost.extend(others.into_iter().filter_map(|(name, value)| value.take().map(|_| name.to_owned())));
    }
    (attributes, lost)
}

/// Seconds since 1970 with the fraction that is there, as rclone writes them.
fn mtime(millis: i64) -> String {
    let sign = if millis < 0 { "-" } else { "" };
    let (seconds, fraction) = (millis.unsigned_abs() / 1_000, millis.unsigned_abs() % 1_000);
    if fraction == 0 {
        return format!("{sign}{seconds}");
    }
    format!("{sign}{seconds}.{fraction:03}").trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rclone_writes_them() {
        assert_eq!(mtime(1_700_000_000_000), "1700000000");
        assert_eq!(mtime(1_700_000_000_120), "1700000000.12");
        assert_eq!(mtime(-1_500), "-1.5");
        assert_eq!(mtime(7), "0.007");
    }

    #[tokio::test]
    async fn too_few_and_too_many_bytes_are_errors() {
        let body = |chunks: &'static [&'static [u8]]| -> Body {
            futures::stream::iter(chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk)))).boxed()
        };
        assert_eq!(collect(body(&[b"ab", b"c", b"de"]), 5, BytesMut::new()).await.unwrap(), "abcde");
        let spare = BytesMut::with_capacity(9);
        assert_eq!(collect(body(&[b"ab", b"c", b"de"]), 5, spare).await.unwrap(), "abcde");
        assert_eq!(collect(body(&[]), 0, BytesMut::new()).await.unwrap(), "");
        assert!(collect(body(&[b"ab"]), 3, BytesMut::new()).await.unwrap_err().is_temporary());
        assert!(collect(body(&[b"ab", b"cd"]), 3, BytesMut::new()).await.unwrap_err().is_temporary());
    }

    #[test]
    fn what_cannot_be_kept_is_named() {
        let store = crate::store::memory::MemoryStore::new("m").with_capabilities(|c| {
            c.user_metadata = false;
            c.content_headers = false;
        });
        let mut attributes = Attributes {
            content_type: Some("text/plain".into()),
            cache_control: Some("no-store".into()),
            not_carried: vec!["2 tags".into()],
            ..Attributes::default()
        };
        attributes.user.insert("owner".into(), "me".into());
        attributes.user.insert("mtime".into(), "1".into());
        let meta =
            Meta { size: 0, etag: None, modified: Some(1), attributes, checksums: Checksums::default() };
        use crate::store::Store;
        let (kept, lost) = carried_attributes(&meta, store.capabilities());
        assert_eq!(kept, Attributes::default());
        assert_eq!(lost, ["2 tags", "metadata owner", "Content-Type", "Cache-Control"]);
    }
}
