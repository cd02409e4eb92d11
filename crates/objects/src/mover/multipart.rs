//! Large objects: ranged reads into the parts of a multipart write, several parts at once, each remembered when it is
//! written, so that a killed copy goes on with the next part. It never mixes two versions of the source object.

use super::Mover;
use super::decide::Deletes;
use super::digest::Digest;
use super::state::{OpenUpload, Seen};
use super::transfer::{Carried, carried_attributes, collect};
use crate::store::{Meta, PartLimits, UploadedPart};
use rehome_part::{Error, ErrorKind, Flow, Result};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Parts of one object under way at once; memory bounds them further.
const PARTS_AT_ONCE: usize = 8;
const MIB: u64 = 1 << 20;

type Parts = BTreeMap<u32, (UploadedPart, Digest)>;

/// The size of all parts but the last: what we prefer, or more where the store's number of parts would not suffice.
fn part_size(size: u64, preferred: u64, limits: PartLimits) -> Result<u64> {
    let needed = size.div_ceil(u64::from(limits.count)).div_ceil(MIB) * MIB;
    let part = preferred.max(limits.smallest).max(if size > preferred.saturating_mul(limits.count.into()) {
        needed
    } else {
        0
    });
    if part > limits.largest {
        return Err(Error::permanent(
            ErrorKind::Unsupported,
            format!("{size} bytes do not fit into {} parts of {} bytes", limits.count, limits.largest),
        ));
    }
    Ok(part)
}

/// Where a large copy goes on.
enum Begun {
    Open(OpenUpload, Parts),
    /// A copy that was killed had come to its end; this is what is there.
    Completed(Seen),
}

/// One part to carry.
struct Piece {
    number: u32,
    start: u64,
    end: u64,
}

fn pieces(size: u64, part: u64) -> impl Iterator<Item = Piece> {
    (0..size.div_ceil(part)).map(move |index| Piece {
        number: u32::try_from(index + 1).unwrap_or(u32::MAX),
        start: index * part,
        end: ((index + 1) * part).min(size),
    })
}

/// Bytes of the parts of one object that are on the other side already, added to a sum as long as this lives.
struct Written<'a> {
    sum: &'a AtomicU64,
    mine: u64,
}

impl<'a> Written<'a> {
    fn new(sum: &'a AtomicU64) -> Self {
        Self { sum, mine: 0 }
    }

    fn add(&mut self, bytes: u64) {
        self.mine += bytes;
        self.sum.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        self.sum.fetch_sub(self.mine, Ordering::Relaxed);
    }
}

impl Mover {
    pub(super) async fn carry_parts(
        self: &Arc<Self>,
        flow: Flow,
        key: &str,
        limit: u64,
        deletes: Deletes,
        stop: &CancellationToken,
    ) -> Result<Carried> {
        let side = flow.from();
        let meta = self.retry().run(|| self.store(side).head(key)).await.map_err(|e| e.on(side))?;
        let Some(meta) = meta else { return self.delete_too(flow, key, deletes).await };
        if meta.size <= limit {
            return Err(Error::permanent(ErrorKind::Changed, "it shrank").on(side));
        }
        let meta = Arc::new(meta);
        let (attributes, lost) = carried_attributes(&meta, self.store(flow.to()).capabilities());
        let (upload, mut parts) = match self.open_upload(flow, key, &meta, &attributes).await? {
            Begun::Open(upload, parts) => (upload, parts),
            Begun::Completed(there) => {
                self.state.upload_ended(flow.to(), key)?;
                self.remember(flow, key, &meta, there, &lost)?;
                return Ok(Carried::Copied(meta.size));
            }
        };
        // For progress only: gone again when this object is done, which then counts whole.
        let mut written = Written::new(&self.bytes_of_parts);
        written.add(parts.values().map(|(part, _)| part.size).sum());
        if let Err(error) =
            self.carry_missing(flow, key, &meta, &upload, &mut parts, &mut written, stop).await
        {
            match error.kind {
                ErrorKind::Changed => self.drop_upload(flow, key, &upload.id).await?,
                // The upload is not there any more: begin again.
                ErrorKind::NotFound => {
                    self.state.upload_ended(flow.to(), key)?;
                    return Err(Error { kind: ErrorKind::Changed, ..error });
                }
                _ => {}
            }
            return Err(error);
        }
        self.drop_buffers();
        self.finish_upload(flow, key, &meta, &upload, &parts, &lost).await?;
        Ok(Carried::Copied(meta.size))
    }

    /// The upload of a copy that was killed, if it is of the same version, or a new one.
    async fn open_upload(
        &self,
        flow: Flow,
        key: &str,
        meta: &Meta,
        attributes: &crate::store::Attributes,
    ) -> Result<Begun> {
        let side = flow.to();
        let to = self.store(side);
        let limits = to.capabilities().multipart.filter(|_| meta.size <= to.capabilities().max_object);
        let Some(limits) = limits else {
            let text = format!("{} bytes are more than {} takes", meta.size, to.address());
            return Err(Error::permanent(ErrorKind::Unsupported, text).on(side));
        };
        let part_size = part_size(meta.size, self.settings.part_bytes, limits).map_err(|e| e.on(side))?;
        if let Some(upload) = self.state.upload(side, key)? {
            let same = upload.size == meta.size
                && upload.part_size == part_size
                && upload.etag == meta.etag
                && (meta.etag.is_some() || upload.modified == meta.modified);
            if same {
                if let Some(parts) = self.parts_of(flow, key, &upload).await? {
                    return Ok(Begun::Open(upload, parts));
                }
                if let Some(there) = self.was_completed(flow, key, &upload).await? {
                    return Ok(Begun::Completed(there));
                }
            }
            self.drop_upload(flow, key, &upload.id).await?;
        }
        self.intend_one(key)?;
        let id = self.retry().run(|| to.begin_upload(key, attributes)).await.map_err(|e| e.on(side))?;
        let upload =
            OpenUpload { id, etag: meta.etag.clone(), modified: meta.modified, size: meta.size, part_size };
        self.state.upload_begun(side, key, &upload)?;
        Ok(Begun::Open(upload, Parts::new()))
    }

    /// The store does not know the upload any more: because a copy that was killed had completed it? Only its own checksum
    /// of the content, equal to that of all the parts we wrote, says so.
    async fn was_completed(&self, flow: Flow, key: &str, upload: &OpenUpload) -> Result<Option<Seen>> {
        let side = flow.to();
        let parts = self.state.parts(side, key)?;
        if parts.len() as u64 != upload.size.div_ceil(upload.part_size) {
            return Ok(None);
        }
        let ours = parts.iter().fold(Digest::default(), |whole, (_, part)| whole.join(part));
        let there = self.retry().run(|| self.store(side).head(key)).await.map_err(|e| e.on(side))?;
        let there = there.filter(|there| {
            there.size == upload.size && ours.checksums().agree(&there.checksums) == Some(true)
        });
        Ok(there.map(|there| Seen { etag: there.etag, size: Some(there.size), modified: None }))
    }

    /// The parts that both we and the store know; `None` when the store does not know the upload.
    async fn parts_of(&self, flow: Flow, key: &str, upload: &OpenUpload) -> Result<Option<Parts>> {
        let side = flow.to();
        let remembered = self.state.parts(side, key)?;
        let there = self.retry().run(|| self.store(side).uploaded_parts(key, &upload.id)).await;
        let there = match there {
            Ok(parts) => Some(parts),
            // It cannot tell; completing with a part it does not have fails, and then we begin again.
            Err(error) if error.kind == ErrorKind::Unsupported => None,
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.on(side)),
        };
        let kept = remembered.into_iter().filter(|(part, _)| {
            there.as_ref().is_none_or(|there| {
                there.iter().any(|t| t.number == part.number && t.etag == part.etag && t.size == part.size)
            })
        });
        Ok(Some(kept.map(|(part, digest)| (part.number, (part, digest))).collect()))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what one object is, what of it is done, and what stops it"
    )]
    async fn carry_missing(
        self: &Arc<Self>,
        flow: Flow,
        key: &str,
        meta: &Arc<Meta>,
        upload: &OpenUpload,
        parts: &mut Parts,
        written: &mut Written<'_>,
        stop: &CancellationToken,
    ) -> Result<()> {
        let missing: Vec<u32> = pieces(meta.size, upload.part_size)
            .map(|p| p.number)
            .filter(|n| !parts.contains_key(n))
            .collect();
        let mut missing = missing.into_iter();
        let mut running = JoinSet::new();
        loop {
            while running.len() < PARTS_AT_ONCE
                && let Some(number) = missing.next()
            {
                if stop.is_cancelled() {
                    return Err(Error::cancelled());
                }
                let (mover, key, meta, id) =
                    (Arc::clone(self), key.to_owned(), Arc::clone(meta), upload.id.clone());
                let start = u64::from(number - 1) * upload.part_size;
                let piece = Piece { number, start, end: (start + upload.part_size).min(meta.size) };
                running.spawn(async move { mover.carry_piece(flow, &key, &meta, &id, &piece).await });
            }
            let Some(ended) = running.join_next().await else { return Ok(()) };
            let (part, digest) = ended.map_err(|error| {
                Error::permanent(ErrorKind::Other, format!("a part's task died: {error}"))
            })??;
            written.add(part.size);
            parts.insert(part.number, (part, digest));
        }
    }

    async fn carry_piece(
        &self,
        flow: Flow,
        key: &str,
        meta: &Meta,
        upload: &str,
        piece: &Piece,
    ) -> Result<(UploadedPart, Digest)> {
        let length = piece.end - piece.start;
        let _memory = self.reserve(length).await;
        let content = self
            .retry()
            .run(|| async {
                let answer = self
                    .store(flow.from())
                    .get(key, Some(piece.start..piece.end), meta.etag.as_deref())
                    .await?;
                let changed = || Error::permanent(ErrorKind::Changed, format!("{key} is another object now"));
                let (now, body) = answer.ok_or_else(changed)?;
                // Best effort of the store is not enough: look ourselves.
                let same = now.size == meta.size
                    && now.etag == meta.etag
                    && (meta.etag.is_some() || now.modified == meta.modified);
                if same { collect(body, length, self.spare_buffer()).await } else { Err(changed()) }
            })
            .await
            .map_err(|e| e.on(flow.from()))?;
        let digest = Digest::of(&content);
        let to = self.store(flow.to());
        let part = self
            .retry()
            .run(|| to.upload_part(key, upload, piece.number, content.clone()))
            .await
            .map_err(|e| e.on(flow.to()))?;
        self.keep_buffer(content);
        let part = UploadedPart { size: length, ..part };
        self.state.part_uploaded(flow.to(), key, &part, &digest)?;
        Ok((part, digest))
    }

    /// Completes, and looks at what is there now.
    async fn finish_upload(
        &self,
        flow: Flow,
        key: &str,
        meta: &Meta,
        upload: &OpenUpload,
        parts: &Parts,
        lost: &[String],
    ) -> Result<()> {
        let side = flow.to();
        let to = self.store(side);
        let list: Vec<UploadedPart> = parts.values().map(|(part, _)| part.clone()).collect();
        let ours = parts.values().fold(Digest::default(), |whole, (_, part)| whole.join(part)).checksums();
        if ours.agree(&meta.checksums) == Some(false) {
            self.drop_upload(flow, key, &upload.id).await?;
            let text = format!("{key}: what was read does not have the checksum that its store reports");
            return Err(Error::permanent(ErrorKind::Corrupt, text).on(flow.from()));
        }
        let completed = self.retry().run(|| to.complete_upload(key, &upload.id, &list)).await;
        // Not found may mean that it was completed and the answer was lost; what is there decides.
        let lost_answer = completed.as_ref().is_err_and(|error| error.kind == ErrorKind::NotFound);
        let reported = match completed {
            Ok(written) => written.checksums,
            Err(_) if lost_answer => crate::store::Checksums::default(),
            Err(error) => return Err(error.on(side)),
        };
        let there = self.retry().run(|| to.head(key)).await.map_err(|e| e.on(side))?;
        let Some(there) = there.filter(|there| there.size == meta.size) else {
            self.state.upload_ended(side, key)?;
            let text = format!("{key} is not there after its upload was completed");
            return Err(Error::permanent(ErrorKind::Changed, text).on(side));
        };
        let verdict = ours.agree(&reported).or_else(|| ours.agree(&there.checksums));
        if verdict == Some(false) || (lost_answer && verdict.is_none()) {
            self.drop_upload(flow, key, &upload.id).await?;
            let text = format!("{key}: what was written does not have the checksum of what was sent");
            return Err(Error::permanent(ErrorKind::Corrupt, text).on(side));
        }
        if verdict.is_none() {
            self.unproved.fetch_add(1, Ordering::Relaxed);
        }
        self.state.upload_ended(side, key)?;
        self.remember(flow, key, meta, Seen { etag: there.etag, size: Some(meta.size), modified: None }, lost)
    }

    /// Aborts on the store as well as it can, and forgets.
    pub(crate) async fn drop_upload(&self, flow: Flow, key: &str, id: &str) -> Result<()> {
        if let Err(error) = self.store(flow.to()).abort_upload(key, id).await
            && error.kind != ErrorKind::NotFound
        {
            if error.is_temporary() {
                return Err(error.on(flow.to()));
            }
            tracing::warn!(key, %error, "an unfinished upload could not be removed");
        }
        self.state.upload_ended(flow.to(), key)
    }

    /// Aborts what earlier copies of keys that are gone (or small now) left; nothing may be under way.
    pub(crate) async fn drop_stale_uploads(&self, flow: Flow) -> Result<()> {
        for (key, id) in self.state.uploads(flow.to())? {
            self.drop_upload(flow, &key, &id).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S3: PartLimits = PartLimits { smallest: 5 << 20, largest: 5 << 30, count: 10_000 };

    #[test]
    fn parts_grow_so_that_ten_thousand_suffice() {
        for size in [17 * MIB, 5 << 30, 160 << 30, (5 << 40) - 1, 5 << 40, 48 << 40] {
            let part = part_size(size, 16 * MIB, S3).unwrap();
            assert!(part >= 16 * MIB && size.div_ceil(part) <= 10_000, "{size} in parts of {part}");
            let all: Vec<Piece> = pieces(size, part).collect();
            assert_eq!(all.iter().map(|piece| piece.end - piece.start).sum::<u64>(), size);
            assert!(
                all.windows(2).all(|two| two[0].end == two[1].start && two[0].number + 1 == two[1].number)
            );
        }
        assert_eq!(part_size(5 << 30, 16 * MIB, S3).unwrap(), 16 * MIB);
        assert_eq!(part_size(60 << 40, 16 * MIB, S3).unwrap_err().kind, ErrorKind::Unsupported);
    }
}
