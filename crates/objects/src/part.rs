//! The objects of one bucket as a [`Part`]: the life of a part, told in terms of the mover, the followers and the fence.
//! Each method is a few lines; the work is in the modules it calls.

use crate::assess::assess;
use crate::copy::losses;
use crate::fence::{self, FenceMeans};
use crate::follow::{ByFeed, Feed, Place, follow_by_listing};
use crate::listing::RESERVED;
use crate::mover::state::wall_millis;
use crate::mover::{Deletes, Mover, PassOptions, Settings, pass};
use crate::store::{Attributes, Condition, Store};
use crate::sweep::sweep;
use crate::verify::{self, Extras, Followed};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rehome_part::{
    Assessment, Capabilities, CopySummary, Drained, Error, ErrorKind, Fence, Finding, Flow, FollowReport,
    Follows, Marker, Part, Position, Progress, Result, Scope, Seal, Side, Verification, Writers,
};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often a drain looks at what the follower wrote down; no call to a side.
const DRAIN_LOOK: Duration = Duration::from_millis(3);
/// The time between two looks for the marker on the other side, at least.
const MARKER_LOOK: Duration = Duration::from_millis(15);
/// Looks under way at once; with the time between them, enough for a quarter of a second to the other side.
const LOOKS_AT_ONCE: usize = 16;
/// Connections opened to each side before a switch, at most.
const WARM_CONNECTIONS: usize = 8;
/// A policy that was read longer ago is read again.
const READ_POLICY_AGE: Duration = Duration::from_secs(10);
const COPIED_ONCE: &str = "copied-once";
const CREATED: &str = "created-target";

/// What a part works with, on both sides.
#[derive(Debug, Clone)]
pub struct Stores {
    pub source: Arc<dyn Store>,
    pub target: Arc<dyn Store>,
    /// The same places under the application's own credentials, for the probe.
    pub source_application: Option<Arc<dyn Store>>,
    pub target_application: Option<Arc<dyn Store>>,
    /// Where changes can be read; listing otherwise.
    pub source_feed: Option<Arc<dyn Feed>>,
    pub target_feed: Option<Arc<dyn Feed>>,
}

impl Stores {
    /// Two stores and nothing else.
    pub fn new(source: Arc<dyn Store>, target: Arc<dyn Store>) -> Self {
        Self {
            source,
            target,
            source_application: None,
            target_application: None,
            source_feed: None,
            target_feed: None,
        }
    }
}

/// The part of one `[[objects]]` table.
#[derive(Debug)]
pub struct ObjectsPart {
    name: String,
    mover: Arc<Mover>,
    stores: Stores,
    fence: FenceMeans,
    /// The policies that the next switch will change, read beforehand; no more there once we set out to change them.
    read_policies: Mutex<HashMap<Side, ReadPolicy>>,
}

#[derive(Debug)]
struct ReadPolicy {
    policy: Option<String>,
    read: Instant,
}

impl ObjectsPart {
    /// A part over stores that are already open. Its memory is `objects-NAME.sqlite` in `state_dir`.
    ///
    /// # Errors
    /// When the state file cannot be opened, or was written by another version.
    pub fn with_stores(
        name: &str,
        stores: Stores,
        fence: FenceMeans,
        settings: Settings,
        state_dir: &Path,
    ) -> Result<Self> {
        let file = format!("objects-{name}.sqlite");
        let (source, target) = (Arc::clone(&stores.source), Arc::clone(&stores.target));
        let mover = Mover::new(source, target, settings, state_dir, &file)?;
        Ok(Self { name: name.into(), mover: Arc::new(mover), stores, fence, read_policies: Mutex::default() })
    }

    /// The feed of the side a flow comes from.
    fn feed(&self, flow: Flow) -> Option<Arc<dyn Feed>> {
        match flow.from() {
            Side::Source => self.stores.source_feed.clone(),
            Side::Target => self.stores.target_feed.clone(),
        }
    }

    fn application(&self, side: Side) -> Option<&Arc<dyn Store>> {
        match side {
            Side::Source => self.stores.source_application.as_ref(),
            Side::Target => self.stores.target_application.as_ref(),
        }
    }

    fn motion(&self, flow: Flow) -> Followed<'_> {
        Followed { mover: &self.mover, flow, feed: self.feed(flow), end: OnceLock::new() }
    }

    async fn feed_head(&self, flow: Flow, feed: &Arc<dyn Feed>) -> Result<Position> {
        let head = self.mover.settings.retry.run(|| feed.head()).await.map_err(|e| e.on(flow.from()))?;
        Ok(Place::Feed(head).position())
    }

    /// Opens connections with calls that change nothing; what fails here fails again, and is told, when it is needed.
    async fn open_connections(&self, side: Side) {
        let store = self.mover.store(side);
        let looks = (0..self.mover.settings.concurrency.min(WARM_CONNECTIONS))
            .map(|_| async move { store.head(".rehome/distance").await.map(drop) });
        let feed = async {
            match self.feed(Flow::leaving(side)) {
                Some(feed) => feed.head().await.map(drop),
                None => Ok(()),
            }
        };
        let (looks, _, feed) = tokio::join!(futures::future::join_all(looks), self.probe(side), feed);
        if let Some(error) = looks.into_iter().chain([feed]).find_map(Result::err) {
            tracing::debug!(%side, %error, "a connection could not be opened beforehand");
        }
    }

    async fn remember_policy(&self, side: Side) {
        if !matches!(self.fence, FenceMeans::Policy { .. }) {
            return;
        }
        // Its age counts from before the call: an edit during the call may be missing from the answer.
        let read = Instant::now();
        if let Ok(policy) = self.mover.store(side).policy().await {
            self.read_policies().insert(side, ReadPolicy { policy, read });
        }
    }

    /// Takes what was read of `side` away: whoever asks is about to change it.
    fn take_read_policy(&self, side: Side) -> Option<Option<String>> {
        let known = self.read_policies().remove(&side)?;
        (known.read.elapsed() <= READ_POLICY_AGE).then_some(known.policy)
    }

    fn read_policies(&self) -> MutexGuard<'_, HashMap<Side, ReadPolicy>> {
        self.read_policies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn remove_reserved(&self, side: Side) -> Result<()> {
        let store = self.mover.store(side);
        let retry = self.mover.settings.retry;
        let keys = retry.run(|| async {
            let mut keys = Vec::new();
            let mut listing = store.list(RESERVED, None);
            while let Some(entry) = listing.next().await {
                match entry {
                    Ok(entry) => keys.push(entry.key),
                    Err(error) if error.kind == ErrorKind::NotFound => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(keys)
        });
        for key in keys.await.map_err(|e| e.on(side))? {
            retry.run(|| store.delete(&key)).await.map_err(|e| e.on(side))?;
        }
        Ok(())
    }

    async fn drop_own_uploads(&self) -> Result<()> {
        for flow in [Flow::Forward, Flow::Reverse] {
            self.mover.drop_stale_uploads(flow).await?;
        }
        Ok(())
    }

    /// What the marker's object holds: its name, so that an object of another attempt is not taken for it.
    fn marker_content(marker: &Marker) -> Bytes {
        Bytes::from(format!("rehome marker, epoch {}, {}\n", marker.epoch, marker.nonce))
    }

    async fn is_marker_there(&self, side: Side, marker: &Marker) -> Result<bool> {
        let store = self.mover.store(side);
        let key = marker_key(marker);
        let wanted = Self::marker_content(marker);
        let content = self.mover.settings.retry.run(|| async {
            let Some((_, mut body)) = store.get(&key, None, None).await? else { return Ok(None) };
            let mut content = Vec::new();
            while let Some(chunk) = body.next().await {
                content.extend_from_slice(&chunk?);
                if content.len() > wanted.len() {
                    break;
                }
            }
            Ok(Some(content))
        });
        Ok(content.await.map_err(|e: Error| e.on(side))?.is_some_and(|content| content == wanted))
    }
}

fn marker_key(marker: &Marker) -> String {
    format!("{RESERVED}marker-{}-{}", marker.epoch, marker.nonce)
}

fn seal_fact(flow: Flow) -> &'static str {
    match flow {
        Flow::Forward => "seal:forward",
        Flow::Reverse => "seal:reverse",
    }
}

#[async_trait]
impl Part for ObjectsPart {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "objects"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            follows: if self.stores.source_feed.is_some() { Follows::Feed } else { Follows::Listing },
            can_fence: !matches!(self.fence, FenceMeans::None),
            can_probe: self.stores.source_application.is_some() && self.stores.target_application.is_some(),
            can_reverse: true,
        }
    }

    async fn assess(&self) -> Result<Assessment> {
        assess(&self.mover, self.stores.source_feed.as_ref()).await
    }

    async fn prepare(&self) -> Result<()> {
        let retry = self.mover.settings.retry;
        let target = &self.mover.target;
        let state = &self.mover.state;
        let missing = match retry.run(|| target.check()).await {
            Ok(()) => false,
            Err(error) if error.kind == ErrorKind::NotFound => true,
            Err(error) => return Err(error.on(Side::Target)),
        };
        if missing {
            // Before the act: a kill in between leaves a bucket that we know is ours.
            state.set_fact(CREATED, "true")?;
            retry.run(|| target.create()).await.map_err(|e| e.on(Side::Target))?;
        }
        Ok(())
    }

    async fn unprepare(&self) -> Result<()> {
        let retry = self.mover.settings.retry;
        let target = &self.mover.target;
        let exists = match retry.run(|| target.check()).await {
            Ok(()) => true,
            Err(error) if error.kind == ErrorKind::NotFound => false,
            Err(error) => return Err(error.on(Side::Target)),
        };
        if exists {
            self.mover.drop_stale_uploads(Flow::Forward).await?;
            self.remove_reserved(Side::Target).await?;
        }
        if self.mover.state.fact(CREATED)?.is_none() {
            return Ok(());
        }
        if exists {
            match retry.run(|| target.remove()).await {
                Ok(()) => {}
                Err(error) if matches!(error.kind, ErrorKind::Credentials | ErrorKind::Network) => {
                    return Err(error.on(Side::Target));
                }
                // What was copied is not ours to throw away unasked.
                Err(error) => tracing::info!(%error, "the bucket that prepare made stays: it is not empty"),
            }
        }
        self.mover.state.forget_fact(CREATED)
    }

    async fn copy(
        &self,
        flow: Flow,
        progress: Arc<dyn Progress>,
        stop: CancellationToken,
    ) -> Result<CopySummary> {
        let state = &self.mover.state;
        let feed = self.feed(flow);
        let listing_pass = match &feed {
            Some(feed) => {
                let has_start = state
                    .applied(flow)?
                    .is_some_and(|applied| matches!(Place::parse(&applied.position), Some(Place::Feed(_))));
                if !has_start {
                    let start = self.feed_head(flow, feed).await?;
                    state.set_applied(flow, &start, wall_millis())?;
                    state.settle_on_disk()?;
                }
                None
            }
            None => Some(state.begin_pass(flow)?),
        };
        let options = PassOptions {
            deletes: Deletes::Ours,
            dry_run: false,
            markers: false,
            // A feed brings what moved; a listing must not say that it saw it.
            leave_moving: feed.is_some(),
            note_strangers: flow == Flow::Forward && state.fact(COPIED_ONCE)?.is_none(),
        };
        let done = pass(&self.mover, flow, options, progress.as_ref(), &stop).await?;
        self.mover.drop_stale_uploads(flow).await?;
        if let Some(number) = listing_pass {
            state.set_applied(flow, &Place::Pass(number).position(), wall_millis())?;
        }
        state.set_fact(COPIED_ONCE, "true")?;
        Ok(CopySummary {
            objects: done.copied,
            bytes: done.copied_bytes,
            kept: done.kept,
            losses: losses(&self.mover)?,
        })
    }

    async fn follow(&self, flow: Flow, report: FollowReport, stop: CancellationToken) -> Result<()> {
        match self.feed(flow) {
            Some(feed) => ByFeed::new(&self.mover, flow, feed, &report, &stop).await?.run().await,
            None => follow_by_listing(&self.mover, flow, &report, &stop).await,
        }
    }

    async fn warm(&self, flow: Flow) -> Result<()> {
        tokio::join!(
            self.remember_policy(flow.from()),
            self.remember_policy(flow.to()),
            self.open_connections(flow.from()),
            self.open_connections(flow.to())
        );
        // What is written down while writes wait then has little to bring to the disk.
        self.mover.state.settle_on_disk()
    }

    async fn head(&self, flow: Flow) -> Result<Position> {
        match self.feed(flow) {
            Some(feed) => self.feed_head(flow, &feed).await,
            // The next pass to begin is the first that sees everything written before now.
            None => Ok(Place::Pass(self.mover.state.newest_pass(flow)? + 1).position()),
        }
    }

    async fn writers(&self, flow: Flow) -> Result<Option<Writers>> {
        Ok(self.mover.writers(flow).lately(Instant::now()))
    }

    fn covers(&self, applied: &Position, wanted: &Position) -> bool {
        Place::covers(applied, wanted)
    }

    async fn fence(&self, side: Side) -> Result<()> {
        fence::close(&self.mover, &self.fence, side, self.take_read_policy(side)).await
    }

    async fn unfence(&self, side: Side) -> Result<()> {
        fence::open(&self.mover, &self.fence, side, self.take_read_policy(side)).await
    }

    async fn probe(&self, side: Side) -> Result<Fence> {
        fence::probe(&self.mover, &self.fence, self.application(side), side).await
    }

    async fn mark(&self, flow: Flow, marker: &Marker) -> Result<()> {
        let attributes = Attributes { content_type: Some("text/plain".into()), ..Attributes::default() };
        let (key, content) = (marker_key(marker), Self::marker_content(marker));
        let store = self.mover.store(flow.from());
        let put = || store.put(&key, &attributes, content.clone(), Condition::Always);
        self.mover.settings.retry.run(put).await.map(drop).map_err(|e| e.on(flow.from()))
    }

    async fn drain(
        &self,
        flow: Flow,
        fence: &Position,
        marker: &Marker,
        stop: CancellationToken,
    ) -> Result<Drained> {
        let applied_now = || Ok::<_, Error>(self.mover.state.applied(flow)?.map(|applied| applied.position));
        let before = applied_now()?;
        let began = Instant::now();
        let mut looks = FuturesUnordered::new();
        let mut looked_at = None;
        let mut marker_seen = false;
        loop {
            if stop.is_cancelled() {
                return Err(Error::cancelled());
            }
            let applied = applied_now()?.filter(|applied| Place::covers(applied, fence));
            if marker_seen && let Some(applied) = applied {
                let changes = changes_between(before.as_ref(), &applied);
                return Ok(Drained { applied, marker_seen, changes });
            }
            // A look is not waited for before the next one begins: waiting for the follower's word, or for a look that came
            // too early, would cost a round trip while writes wait. Far apart when the drain is long anyway.
            let pause = MARKER_LOOK.max(began.elapsed() / 8);
            let is_due = looked_at.is_none_or(|at: Instant| at.elapsed() >= pause);
            if !marker_seen && is_due && looks.len() < LOOKS_AT_ONCE {
                looks.push(self.is_marker_there(flow.to(), marker));
                looked_at = Some(Instant::now());
            }
            tokio::select! {
                () = stop.cancelled() => {}
                Some(seen) = looks.next(), if !looks.is_empty() => marker_seen |= seen?,
                () = tokio::time::sleep(DRAIN_LOOK) => {}
            }
        }
    }

    async fn verify(
        &self,
        flow: Flow,
        scope: Scope,
        progress: Arc<dyn Progress>,
        stop: CancellationToken,
    ) -> Result<Verification> {
        let motion = self.motion(flow);
        let progress = progress.as_ref();
        match scope {
            Scope::Full => {
                verify::full(&self.mover, flow, Extras::DifferIfOurs, &motion, progress, &stop).await
            }
            Scope::Since(position) => {
                verify::since(&self.mover, flow, &position, self.feed(flow), &motion, progress, &stop).await
            }
        }
    }

    async fn seal(&self, flow: Flow) -> Result<Seal> {
        let state = &self.mover.state;
        let back = flow.back();
        if let Some(sealed) = state.fact(seal_fact(flow))? {
            return Ok(Seal { reverse_start: Position(sealed) });
        }
        let start = match self.feed(back) {
            Some(feed) => self.feed_head(back, &feed).await?,
            // Both sides are equal now, so a pass that began and ended here would have had nothing to do.
            None => Place::Pass(state.begin_pass(back)?).position(),
        };
        state.set_applied(back, &start, wall_millis())?;
        // The seal of the switch before this one is history.
        if state.fact(seal_fact(back))?.is_some() {
            state.forget_fact(seal_fact(back))?;
        }
        state.set_fact(seal_fact(flow), &start.0)?;
        Ok(Seal { reverse_start: start })
    }

    async fn unseal(&self, flow: Flow) -> Result<()> {
        let state = &self.mover.state;
        if state.fact(seal_fact(flow))?.is_some() {
            state.forget_applied(flow.back())?;
            state.forget_fact(seal_fact(flow))?;
        }
        Ok(())
    }

    async fn sweep(&self, flow: Flow, since: &Position) -> Result<Vec<Finding>> {
        sweep(&self.mover, flow, since, self.feed(flow)).await
    }

    async fn retire(&self, _owner: Side) -> Result<()> {
        self.drop_own_uploads().await?;
        for side in [Side::Source, Side::Target] {
            self.remove_reserved(side).await?;
        }
        for flow in [Flow::Forward, Flow::Reverse] {
            self.mover.state.forget_applied(flow)?;
            self.mover.state.forget_fact(seal_fact(flow))?;
        }
        Ok(())
    }
}

/// Changes (or passes) between two positions.
fn changes_between(before: Option<&Position>, after: &Position) -> u64 {
    match (before.and_then(Place::parse), Place::parse(after)) {
        (Some(Place::Feed(before)), Some(Place::Feed(after)))
        | (Some(Place::Pass(before)), Some(Place::Pass(after))) => after.saturating_sub(before),
        _ => 0,
    }
}
