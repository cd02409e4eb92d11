//! Two watched stores in memory, feeds of what happens to them, and parts over them.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use rehome_objects::store::memory::MemoryStore;
use rehome_objects::store::{
    Attributes, Body, Capabilities, Checksums, Condition, Entry, Meta, Store, Upload, UploadedPart, Written,
};
use rehome_objects::{Change, Feed, FenceMeans, ObjectsPart, Page, RetryPolicy, Settings, Stores};
use rehome_part::{Flow, FollowState, Part, Position, Progress, Result, Side};
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const PATIENCE: Duration = Duration::from_secs(30);

/// The history of one bucket.
#[derive(Debug, Default)]
pub struct MemoryFeed {
    changes: Mutex<Vec<Change>>,
    /// Positions up to here are not kept any more.
    pub forgotten: AtomicU64,
    news: Notify,
}

impl MemoryFeed {
    pub fn tell(&self, key: &str, deleted: bool) {
        let mut changes = self.changes.lock().unwrap();
        // Not dense, as positions need not be.
        let position = changes.last().map_or(0, |change| change.position) + 1 + (changes.len() as u64 % 2);
        changes.push(Change { position, key: key.into(), deleted, request: None });
        drop(changes);
        self.news.notify_waiters();
    }

    pub fn newest(&self) -> u64 {
        self.changes.lock().unwrap().last().map_or(0, |change| change.position)
    }

    fn page(&self, after: u64, limit: usize) -> Page {
        let all = self.changes.lock().unwrap();
        let changes: Vec<Change> = all.iter().filter(|c| c.position > after).take(limit).cloned().collect();
        let position = changes.last().map_or(after, |change| change.position);
        Page { head: all.last().map_or(0, |change| change.position).max(after), position, changes }
    }
}

#[async_trait]
impl Feed for MemoryFeed {
    async fn head(&self) -> Result<u64> {
        Ok(self.newest())
    }

    async fn changes(&self, after: u64, limit: usize, wait: Duration) -> Result<Option<Page>> {
        if after < self.forgotten.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let news = self.news.notified();
        tokio::pin!(news);
        news.as_mut().enable();
        let page = self.page(after, limit);
        if !page.changes.is_empty() {
            return Ok(Some(page));
        }
        let _ = tokio::time::timeout(wait, news).await;
        Ok(Some(self.page(after, limit)))
    }
}

/// Bytes read and not yet written.
#[derive(Debug, Default)]
pub struct Scale {
    pub now: AtomicI64,
    pub most: AtomicI64,
}

impl Scale {
    fn add(&self, bytes: i64) {
        let now = self.now.fetch_add(bytes, Ordering::SeqCst) + bytes;
        self.most.fetch_max(now, Ordering::SeqCst);
    }
}

/// A store in memory whose writes are told to a feed, and whose content is weighed.
#[derive(Debug, Clone)]
pub struct Watched {
    pub inner: MemoryStore,
    pub feed: Arc<MemoryFeed>,
    pub scale: Arc<Scale>,
    /// What it says of itself, which may be a lie.
    claims: Capabilities,
    hide_checksums: bool,
}

#[async_trait]
impl Store for Watched {
    fn address(&self) -> &str {
        self.inner.address()
    }
    fn capabilities(&self) -> &Capabilities {
        &self.claims
    }
    async fn check(&self) -> Result<()> {
        self.inner.check().await
    }
    async fn create(&self) -> Result<bool> {
        self.inner.create().await
    }
    async fn remove(&self) -> Result<()> {
        self.inner.remove().await
    }
    fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'_, Result<Entry>> {
        self.inner.list(prefix, after)
    }
    async fn head(&self, key: &str) -> Result<Option<Meta>> {
        let mut meta = self.inner.head(key).await?;
        if let Some(meta) = meta.as_mut().filter(|_| self.hide_checksums) {
            meta.checksums = Checksums::default();
        }
        Ok(meta)
    }
    async fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        if_match: Option<&str>,
    ) -> Result<Option<(Meta, Body)>> {
        let mut got = self.inner.get(key, range.clone(), if_match).await?;
        if let Some((meta, _)) = got.as_mut().filter(|_| self.hide_checksums) {
            meta.checksums = Checksums::default();
        }
        if let Some((meta, _)) = &got {
            self.scale.add(range.map_or(meta.size, |range| range.end - range.start).cast_signed());
        }
        Ok(got)
    }
    async fn put(
        &self,
        key: &str,
        attributes: &Attributes,
        content: Bytes,
        condition: Condition,
    ) -> Result<Written> {
        let length = content.len() as i64;
        let mut written = self.inner.put(key, attributes, content, condition).await?;
        if self.hide_checksums {
            written.checksums = Checksums::default();
        }
        self.scale.add(-length);
        self.feed.tell(key, false);
        Ok(written)
    }
    async fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(key).await?;
        self.feed.tell(key, true);
        Ok(())
    }
    async fn begin_upload(&self, key: &str, attributes: &Attributes) -> Result<String> {
        self.inner.begin_upload(key, attributes).await
    }
    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        content: Bytes,
    ) -> Result<UploadedPart> {
        let length = content.len() as i64;
        let part = self.inner.upload_part(key, upload, number, content).await?;
        self.scale.add(-length);
        Ok(part)
    }
    async fn uploaded_parts(&self, key: &str, upload: &str) -> Result<Vec<UploadedPart>> {
        self.inner.uploaded_parts(key, upload).await
    }
    async fn complete_upload(&self, key: &str, upload: &str, parts: &[UploadedPart]) -> Result<Written> {
        let written = self.inner.complete_upload(key, upload, parts).await?;
        self.feed.tell(key, false);
        Ok(written)
    }
    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        self.inner.abort_upload(key, upload).await
    }
    async fn open_uploads(&self) -> Result<Vec<Upload>> {
        self.inner.open_uploads().await
    }
    async fn policy(&self) -> Result<Option<String>> {
        self.inner.policy().await
    }
    async fn set_policy(&self, policy: Option<&str>) -> Result<()> {
        self.inner.set_policy(policy).await
    }
    fn fence_policy(&self, existing: Option<&str>, principal: &str) -> Result<String> {
        self.inner.fence_policy(existing, principal)
    }
    fn unfence_policy(&self, existing: &str) -> Result<Option<String>> {
        self.inner.unfence_policy(existing)
    }
}

pub const MIGRATION: &str = "arn:aws:iam::1:user/rehome";
pub const APPLICATION: &str = "arn:aws:iam::1:user/shop";

/// One side: the bucket, its history, and the hands of the migration and of the application in it.
#[derive(Debug)]
pub struct Place {
    pub bucket: MemoryStore,
    pub feed: Arc<MemoryFeed>,
    pub scale: Arc<Scale>,
    /// Says that its listing is in order, whatever it is.
    pub claims_order: bool,
    /// Reports no checksum of anything.
    pub hide_checksums: bool,
}

impl Place {
    pub fn new(bucket: MemoryStore) -> Self {
        Self {
            bucket,
            feed: Arc::default(),
            scale: Arc::default(),
            claims_order: false,
            hide_checksums: false,
        }
    }

    fn hands(&self, principal: &str) -> Watched {
        let mut claims = self.bucket.capabilities().clone();
        claims.sorted_listing |= self.claims_order;
        Watched {
            claims,
            hide_checksums: self.hide_checksums,
            inner: self.bucket.acting_as(principal),
            feed: Arc::clone(&self.feed),
            scale: Arc::clone(&self.scale),
        }
    }

    pub fn migration(&self) -> Arc<dyn Store> {
        Arc::new(self.hands(MIGRATION))
    }

    pub fn application(&self) -> Arc<dyn Store> {
        Arc::new(self.hands(APPLICATION))
    }

    pub async fn write(&self, key: &str, content: &[u8]) -> Result<()> {
        let content = Bytes::copy_from_slice(content);
        let attributes = Attributes::default();
        self.application().put(key, &attributes, content, Condition::Always).await.map(drop)
    }

    pub async fn delete(&self, key: &str) -> Result<()> {
        self.application().delete(key).await
    }
}

pub fn quick_retry() -> RetryPolicy {
    RetryPolicy { attempts: 8, base: Duration::from_micros(100), cap: Duration::from_millis(2) }
}

pub fn quick_settings() -> Settings {
    Settings {
        retry: quick_retry(),
        listing_rest: Duration::from_millis(2),
        feed_wait: Duration::from_millis(200),
        settle_limit: Duration::from_secs(5),
        sort_memory_bytes: 2_000,
        ..Settings::default()
    }
}

/// Two places and a state folder.
#[derive(Debug)]
pub struct World {
    pub source: Place,
    pub target: Place,
    pub state: tempfile::TempDir,
    pub settings: Settings,
    pub fence: FenceMeans,
    pub with_feeds: bool,
}

impl World {
    pub fn new(with_feeds: bool) -> Self {
        Self {
            source: Place::new(MemoryStore::new("source").on(Side::Source)),
            target: Place::new(MemoryStore::new("target").on(Side::Target)),
            state: tempfile::tempdir().unwrap(),
            settings: quick_settings(),
            fence: FenceMeans::Policy {
                source_principal: Some(MIGRATION.into()),
                target_principal: Some(MIGRATION.into()),
            },
            with_feeds,
        }
    }

    pub fn place(&self, side: Side) -> &Place {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    pub fn stores(&self) -> Stores {
        let feed = |place: &Place| -> Option<Arc<dyn Feed>> {
            self.with_feeds.then(|| Arc::clone(&place.feed) as Arc<dyn Feed>)
        };
        Stores {
            source: self.source.migration(),
            target: self.target.migration(),
            source_application: Some(self.source.application()),
            target_application: Some(self.target.application()),
            source_feed: feed(&self.source),
            target_feed: feed(&self.target),
        }
    }

    pub fn part(&self) -> Arc<dyn Part> {
        self.part_of(self.stores())
    }

    pub fn part_of(&self, stores: Stores) -> Arc<dyn Part> {
        let (fence, settings) = (self.fence.clone(), self.settings.clone());
        Arc::new(ObjectsPart::with_stores("media", stores, fence, settings, self.state.path()).unwrap())
    }

    pub async fn copy(&self, flow: Flow) -> rehome_part::CopySummary {
        self.part().copy(flow, Arc::new(Quiet), CancellationToken::new()).await.unwrap()
    }

    pub fn follow(&self, flow: Flow) -> Following {
        let (report, state) = watch::channel(FollowState::default());
        let stop = CancellationToken::new();
        let (part, token) = (self.part(), stop.clone());
        let task = tokio::spawn(async move { part.follow(flow, report, token).await });
        Following { task, stop, state }
    }

    /// Waits until everything written so far is applied.
    pub async fn caught_up(&self, following: &mut Following, flow: Flow) -> Position {
        let part = self.part();
        let head = part.head(flow).await.unwrap();
        let applied = following
            .state
            .wait_for(|state| state.applied.as_ref().is_some_and(|applied| part.covers(applied, &head)));
        let state =
            tokio::time::timeout(PATIENCE, applied).await.expect("in time").expect("it lives").clone();
        state.applied.unwrap()
    }

    /// The application's keys with their content, per side.
    pub fn contents(place: &Place) -> Vec<(String, Bytes)> {
        let keys = place.bucket.keys().into_iter().filter(|key| !key.starts_with(".rehome/"));
        keys.map(|key| (key.clone(), place.bucket.content(&key).unwrap())).collect()
    }

    pub fn assert_equal(&self) {
        let (source, target) = (Self::contents(&self.source), Self::contents(&self.target));
        let keys = |side: &[(String, Bytes)]| side.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&source), keys(&target));
        for ((key, source), (_, target)) in source.iter().zip(&target) {
            assert!(source == target, "{key} differs");
        }
    }
}

/// A follower running in the background.
pub struct Following {
    pub task: JoinHandle<Result<()>>,
    pub stop: CancellationToken,
    pub state: watch::Receiver<FollowState>,
}

impl Following {
    pub async fn finish(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("in time")
            .expect("no panic")
            .expect("no error");
    }

    pub async fn until(&mut self, wanted: impl FnMut(&FollowState) -> bool) -> FollowState {
        tokio::time::timeout(PATIENCE, self.state.wait_for(wanted))
            .await
            .expect("in time")
            .expect("alive")
            .clone()
    }
}

#[derive(Debug)]
pub struct Quiet;

impl Progress for Quiet {
    fn update(&self, _: u64, _: u64, _: Option<u64>, _: Option<u64>) {}
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
