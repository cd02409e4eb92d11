//! The index of one cloud and its only critical section. Every change goes the same way: permission and conditions are
//! checked, the record is appended to the log, the record is applied to memory, all under one lock. So a policy that
//! is set has no late writer, the change feed has no gaps, and what a restart reads is what was answered.

use super::content::{Contents, Piece};
use super::policy::{Asked, Policy};
use super::record::{Attributes, Log, Meta, Record};
use super::{CloudError, FaultSwitch, Principal, S3Config};
use crate::moment::{monotonic_nanos, wall_millis};
use s3s::dto::ETagCondition;
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use tokio::sync::watch;

/// An object or a part of an upload, with its bytes.
#[derive(Debug)]
pub(super) struct Object {
    pub meta: Meta,
    pub pieces: Vec<Arc<Piece>>,
}

#[derive(Debug, Default)]
pub(super) struct Bucket {
    pub created_ms: i64,
    pub objects: BTreeMap<String, Arc<Object>>,
    pub policy: Option<(String, Policy)>,
}

#[derive(Debug, Clone)]
pub(super) struct Upload {
    pub by: Principal,
    pub bucket: String,
    pub key: String,
    pub begun_ms: i64,
    pub attributes: Attributes,
    pub algorithm: Option<String>,
    pub parts: BTreeMap<u32, Arc<Object>>,
}

/// One line of the change feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub position: u64,
    pub bucket: String,
    pub key: String,
    pub deleted: bool,
    /// The `x-request-id` that its writer named.
    pub request: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    pub buckets: BTreeMap<String, Bucket>,
    pub uploads: BTreeMap<String, Upload>,
    /// The position of the newest mutation.
    pub head: u64,
    pub feed: VecDeque<Change>,
}

#[derive(Debug)]
struct Locked {
    index: Index,
    log: Log,
}

#[derive(Debug)]
pub(super) struct Store {
    locked: RwLock<Locked>,
    head: watch::Sender<u64>,
    arns: [String; 2],
    feed_keep: usize,
    sync: bool,
    pub contents: Arc<Contents>,
    pub faults: FaultSwitch,
}

/// Who asks for what; every operation names its action.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim<'a> {
    pub by: Principal,
    pub action: &'static str,
    pub bucket: &'a str,
    pub key: Option<&'a str>,
    /// The request of its own that the writer names as the cause.
    pub request: Option<&'a str>,
}

/// `If-Match` and `If-None-Match` of a write.
#[derive(Debug, Clone, Default)]
pub(super) struct Conditions {
    pub if_match: Option<ETagCondition>,
    pub if_none_match: Option<ETagCondition>,
}

impl Conditions {
    fn check(&self, present: Option<&Arc<Object>>) -> S3Result {
        let same = |condition: &ETagCondition| match (condition, present) {
            (ETagCondition::Any, present) => present.is_some(),
            (ETagCondition::ETag(tag), Some(object)) => tag.value() == object.meta.etag,
            (ETagCondition::ETag(_), None) => false,
        };
        if self.if_match.as_ref().is_some_and(|condition| !same(condition)) {
            return Err(s3_error!(PreconditionFailed, "If-Match does not hold"));
        }
        if self.if_none_match.as_ref().is_some_and(same) {
            return Err(s3_error!(PreconditionFailed, "If-None-Match does not hold"));
        }
        Ok(())
    }
}

impl Store {
    pub(super) fn open(config: &S3Config) -> Result<Arc<Self>, CloudError> {
        let failed = |source| CloudError::Folder { path: config.directory.clone(), source };
        std::fs::create_dir_all(&config.directory).map_err(failed)?;
        let (contents, files) = Contents::open(config.directory.join("content")).map_err(failed)?;
        let mut index = Index::default();
        let mut known: HashMap<u64, Weak<Piece>> = HashMap::new();
        let log = Log::open(&config.directory, config.sync, |record| {
            let object = record.meta().map(|meta| {
                let pieces = meta.pieces.iter().map(|&(number, bytes)| {
                    contents.skip(number);
                    known.get(&number).and_then(Weak::upgrade).unwrap_or_else(|| {
                        let piece = contents.known(number, bytes);
                        known.insert(number, Arc::downgrade(&piece));
                        piece
                    })
                });
                Arc::new(Object { pieces: pieces.collect(), meta: meta.clone() })
            });
            index.apply(record, object, config.feed_keep);
        })
        .map_err(failed)?;
        for number in files {
            if known.get(&number).is_none_or(|piece| piece.strong_count() == 0) {
                let _ = contents.remove(number); // gone already when the object was replaced while reading the log
            }
        }
        let store = Self {
            head: watch::Sender::new(index.head),
            locked: RwLock::new(Locked { index, log }),
            arns: [config.app.principal.clone(), config.migration.principal.clone()],
            feed_keep: config.feed_keep,
            sync: config.sync,
            contents,
            faults: FaultSwitch::new(config.faults.clone()),
        };
        if !store.read().index.buckets.contains_key(&config.bucket) {
            store
                .create_bucket(&config.bucket)
                .map_err(|error| failed(io::Error::other(error.to_string())))?;
        }
        Ok(Arc::new(store))
    }

    fn read(&self) -> RwLockReadGuard<'_, Locked> {
        self.locked.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Locked> {
        self.locked.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn syncs(&self) -> bool {
        self.sync
    }

    pub(super) fn heads(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// Looks at the index when `claim` is not denied.
    pub(super) fn look<T>(&self, claim: Claim<'_>, look: impl FnOnce(&Bucket) -> S3Result<T>) -> S3Result<T> {
        let locked = self.read();
        self.permit(&locked.index, claim)?;
        look(locked.index.bucket(claim.bucket)?)
    }

    /// Looks at everything; for what is not inside one bucket.
    pub(super) fn survey<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&self.read().index)
    }

    pub(super) fn object(&self, claim: Claim<'_>) -> S3Result<Arc<Object>> {
        let key = claim.key.unwrap_or_default();
        self.look(claim, |bucket| bucket.objects.get(key).cloned().ok_or_else(|| s3_error!(NoSuchKey)))
    }

    pub(super) fn upload(&self, claim: Claim<'_>, id: &str) -> S3Result<Upload> {
        let locked = self.read();
        self.permit(&locked.index, claim)?;
        locked.index.upload(claim, id).cloned()
    }

    /// Would this write be refused right now? Asked before a long body is read; asked again when it is committed.
    pub(super) fn foresee(&self, claim: Claim<'_>, conditions: &Conditions) -> S3Result {
        self.look(claim, |bucket| conditions.check(bucket.objects.get(claim.key.unwrap_or_default())))
    }

    fn permit(&self, index: &Index, claim: Claim<'_>) -> S3Result {
        let Some(bucket) = index.buckets.get(claim.bucket) else { return Ok(()) };
        let Some((_, policy)) = &bucket.policy else { return Ok(()) };
        let principal = match claim.by {
            Principal::Application => &self.arns[0],
            Principal::Migration => &self.arns[1],
        };
        let asked = Asked { principal, action: claim.action, bucket: claim.bucket, key: claim.key };
        if policy.denies(asked) {
            return Err(s3_error!(AccessDenied, "the bucket policy denies {} to {principal}", claim.action));
        }
        Ok(())
    }

    /// Appends and applies, with the lock held by the caller.
    fn commit(&self, locked: &mut Locked, record: Record, object: Option<Arc<Object>>) -> S3Result {
        locked.log.append(&record).map_err(storage_failed)?;
        locked.index.apply(record, object, self.feed_keep);
        self.head.send_if_modified(|head| std::mem::replace(head, locked.index.head) != locked.index.head);
        Ok(())
    }

    fn create_bucket(&self, name: &str) -> S3Result {
        let mut locked = self.write();
        if locked.index.buckets.contains_key(name) {
            return Err(s3_error!(BucketAlreadyOwnedByYou));
        }
        self.commit(&mut locked, Record::Bucket { name: name.into(), created_ms: wall_millis() }, None)
    }

    pub(super) fn make_bucket(&self, claim: Claim<'_>) -> S3Result {
        self.permit(&self.read().index, claim)?;
        self.create_bucket(claim.bucket)
    }

    pub(super) fn drop_bucket(&self, claim: Claim<'_>) -> S3Result {
        let mut locked = self.write();
        self.permit(&locked.index, claim)?;
        if !locked.index.bucket(claim.bucket)?.objects.is_empty() {
            return Err(s3_error!(BucketNotEmpty));
        }
        self.commit(&mut locked, Record::DropBucket { name: claim.bucket.into() }, None)
    }

    /// When this returns, every write that the new policy denies and that was not committed before is refused.
    pub(super) fn set_policy(&self, claim: Claim<'_>, text: Option<String>) -> S3Result {
        if let Some(text) = &text {
            Policy::parse(text, claim.bucket).map_err(|why| s3_error!(MalformedPolicy, "{why}"))?;
        }
        let mut locked = self.write();
        self.permit(&locked.index, claim)?;
        locked.index.bucket(claim.bucket)?;
        self.commit(&mut locked, Record::Policy { bucket: claim.bucket.into(), text }, None)
    }

    pub(super) fn put(&self, claim: Claim<'_>, object: Arc<Object>, conditions: &Conditions) -> S3Result {
        let mut locked = self.write();
        self.permit(&locked.index, claim)?;
        self.put_locked(&mut locked, claim, object, conditions, None)
    }

    fn put_locked(
        &self,
        locked: &mut Locked,
        claim: Claim<'_>,
        object: Arc<Object>,
        conditions: &Conditions,
        upload: Option<String>,
    ) -> S3Result {
        let key = claim.key.unwrap_or_default().to_string();
        conditions.check(locked.index.bucket(claim.bucket)?.objects.get(&key))?;
        let record = Record::Put {
            position: locked.index.head + 1,
            nanos: monotonic_nanos(),
            by: claim.by,
            bucket: claim.bucket.into(),
            key,
            object: object.meta.clone(),
            upload,
            request: claim.request.map(String::from),
        };
        self.commit(locked, record, Some(object))
    }

    /// Removing what is not there succeeds and is no change.
    pub(super) fn delete(&self, claim: Claim<'_>) -> S3Result {
        let mut locked = self.write();
        self.permit(&locked.index, claim)?;
        let key = claim.key.unwrap_or_default();
        if !locked.index.bucket(claim.bucket)?.objects.contains_key(key) {
            return Ok(());
        }
        let record = Record::Delete {
            position: locked.index.head + 1,
            nanos: monotonic_nanos(),
            by: claim.by,
            bucket: claim.bucket.into(),
            key: key.into(),
            request: claim.request.map(String::from),
        };
        self.commit(&mut locked, record, None)
    }

    pub(super) fn begin_upload(
        &self,
        claim: Claim<'_>,
        attributes: Attributes,
        algorithm: Option<String>,
    ) -> S3Result<String> {
        let mut locked = self.write();
        self.permit(&locked.index, claim)?;
        locked.index.bucket(claim.bucket)?;
        let id = format!("{:032x}", fastrand::u128(..));
        let record = Record::Begin {
            id: id.clone(),
            by: claim.by,
            bucket: claim.bucket.into(),
            key: claim.key.unwrap_or_default().into(),
            begun_ms: wall_millis(),
            attributes,
            algorithm,
        };
        self.commit(&mut locked, record, None)?;
        Ok(id)
    }

    pub(super) fn add_part(&self, claim: Claim<'_>, id: &str, number: u32, part: Arc<Object>) -> S3Result {
        let mut locked = self.write();
        self.permit(&locked.index, claim)?;
        locked.index.upload(claim, id)?;
        self.commit(
            &mut locked,
            Record::Part { id: id.into(), number, object: part.meta.clone() },
            Some(part),
        )
    }

    /// Builds the object from the upload's parts and puts it, in one step.
    pub(super) fn complete_upload(
        &self,
        claim: Claim<'_>,
        id: &str,
        conditions: &Conditions,
        build: impl FnOnce(&Upload) -> S3Result<Object>,
    ) -> S3Result<Meta> {
        let mut locked = self.write();
        self.permit(&locked.index, claim)?;
        let object = build(locked.index.upload(claim, id)?)?;
        let meta = object.meta.clone();
        self.put_locked(&mut locked, claim, Arc::new(object), conditions, Some(id.into()))?;
        Ok(meta)
    }

    pub(super) fn abort_upload(&self, claim: Claim<'_>, id: &str) -> S3Result {
        let mut locked = self.write();
        self.permit(&locked.index, claim)?;
        locked.index.upload(claim, id)?;
        self.commit(&mut locked, Record::Abort { id: id.into() }, None)
    }
}

impl Index {
    pub(super) fn bucket(&self, name: &str) -> S3Result<&Bucket> {
        self.buckets.get(name).ok_or_else(|| s3_error!(NoSuchBucket))
    }

    fn upload(&self, claim: Claim<'_>, id: &str) -> S3Result<&Upload> {
        self.uploads
            .get(id)
            .filter(|upload| upload.bucket == claim.bucket && Some(upload.key.as_str()) == claim.key)
            .ok_or_else(|| s3_error!(NoSuchUpload))
    }

    /// The only place where the index changes; the same for a change of now and one read from the log.
    fn apply(&mut self, record: Record, object: Option<Arc<Object>>, feed_keep: usize) {
        match record {
            Record::Bucket { name, created_ms } => {
                self.buckets.insert(name, Bucket { created_ms, ..Bucket::default() });
            }
            Record::DropBucket { name } => {
                self.buckets.remove(&name);
                self.uploads.retain(|_, upload| upload.bucket != name || upload.forget());
            }
            Record::Policy { bucket: name, text } => {
                if let Some(bucket) = self.buckets.get_mut(&name) {
                    bucket.policy =
                        text.and_then(|text| Policy::parse(&text, &name).ok().map(|policy| (text, policy)));
                }
            }
            Record::Put { position, bucket: name, key, upload, request, .. } => {
                if let (Some(bucket), Some(object)) = (self.buckets.get_mut(&name), object) {
                    object.hold();
                    if let Some(old) = bucket.objects.insert(key.clone(), object) {
                        old.release();
                    }
                }
                self.end_upload(upload.as_deref());
                self.note(Change { position, bucket: name, key, deleted: false, request }, feed_keep);
            }
            Record::Delete { position, bucket: name, key, request, .. } => {
                if let Some(old) = self.buckets.get_mut(&name).and_then(|bucket| bucket.objects.remove(&key))
                {
                    old.release();
                }
                self.note(Change { position, bucket: name, key, deleted: true, request }, feed_keep);
            }
            Record::Begin { id, by, bucket, key, begun_ms, attributes, algorithm } => {
                let upload =
                    Upload { by, bucket, key, begun_ms, attributes, algorithm, parts: BTreeMap::new() };
                self.uploads.insert(id, upload);
            }
            Record::Part { id, number, .. } => {
                if let (Some(upload), Some(part)) = (self.uploads.get_mut(&id), object) {
                    part.hold();
                    if let Some(old) = upload.parts.insert(number, part) {
                        old.release();
                    }
                }
            }
            Record::Abort { id } => self.end_upload(Some(&id)),
        }
    }

    fn end_upload(&mut self, id: Option<&str>) {
        if let Some(upload) = id.and_then(|id| self.uploads.remove(id)) {
            upload.forget();
        }
    }

    fn note(&mut self, change: Change, feed_keep: usize) {
        self.head = change.position;
        self.feed.push_back(change);
        while self.feed.len() > feed_keep {
            self.feed.pop_front();
        }
    }
}

impl Upload {
    /// Lets go of all parts; always false, so that it fits into `retain`.
    fn forget(&self) -> bool {
        self.parts.values().for_each(|part| part.release());
        false
    }
}

impl Object {
    fn hold(&self) {
        self.pieces.iter().for_each(|piece| piece.hold());
    }

    fn release(&self) {
        self.pieces.iter().for_each(|piece| piece.release());
    }
}

impl Record {
    fn meta(&self) -> Option<&Meta> {
        match self {
            Self::Put { object, .. } | Self::Part { object, .. } => Some(object),
            _ => None,
        }
    }
}

/// What a client hears when this machine's disk fails it.
pub(super) fn storage_failed(error: io::Error) -> S3Error {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return out_of_space();
    }
    S3Error::with_source(S3ErrorCode::InternalError, Box::new(error))
}

pub(super) fn out_of_space() -> S3Error {
    let mut error =
        S3Error::with_message(S3ErrorCode::Custom("QuotaExceeded".into()), "no room left for this content");
    error.set_status_code(http::StatusCode::INSUFFICIENT_STORAGE);
    error
}
