//! An independent comparison: both sides are listed anew and compared by what the stores report; where they report nothing
//! comparable, both contents are read. It never looks at what the copier remembers of a key's content.

use crate::doctor::SKEW_LIMIT_MILLIS;
use crate::follow::{Feed, Place};
use crate::listing::{is_out_of_order, is_reserved};
use crate::mover::digest::Digest;
use crate::mover::{Mover, both_md5, known_checksums};
use crate::store::{Entry, Meta};
use async_trait::async_trait;
use futures::StreamExt;
use rehome_part::{
    Error, ErrorKind, Finding, Flow, Position, Progress, Result, Severity, Side, Verification,
};
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Differences that are told one by one.
const DIFFERENCES_TOLD: usize = 100;
/// Candidates that are looked at again; more than that is not motion.
const CANDIDATES: usize = 10_000;
/// Looks at one key before it counts as moving.
const LOOKS: u32 = 4;
/// Looks at once for each object that may be under way at once: a look is a question and an answer, no content.
const LOOKS_FOR_EACH: usize = 4;
/// Changed keys held at once; more of them and a listing is cheaper.
const CHANGED_KEYS: usize = 200_000;

/// What is on the side written to only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extras {
    Differ,
    /// Differ, unless they were there before the migration.
    DifferIfOurs,
    Ignored,
}

/// What is known of changes under way.
#[async_trait]
pub(crate) trait Motion: Send + Sync {
    /// Waits, within limits, until whatever made `from` what it is has been applied if it ever will be. True when it may
    /// still be on its way.
    async fn is_moving(&self, from: Option<&Meta>) -> Result<bool>;
}

/// Nothing follows.
pub(crate) struct Still;

#[async_trait]
impl Motion for Still {
    async fn is_moving(&self, _: Option<&Meta>) -> Result<bool> {
        Ok(false)
    }
}

/// A follower that may be running, in this process or another.
pub(crate) struct Followed<'a> {
    pub mover: &'a Mover,
    pub flow: Flow,
    pub feed: Option<Arc<dyn Feed>>,
    /// Patience is for all keys together: ten thousand of them must not wait one after the other.
    pub end: OnceLock<tokio::time::Instant>,
}

#[async_trait]
impl Motion for Followed<'_> {
    async fn is_moving(&self, from: Option<&Meta>) -> Result<bool> {
        let state = &self.mover.state;
        let end = *self.end.get_or_init(|| tokio::time::Instant::now() + self.mover.settings.settle_limit);
        let wanted = match &self.feed {
            Some(feed) => Place::Feed(feed.head().await?),
            None => Place::Pass(state.newest_pass(self.flow)? + 1),
        };
        loop {
            let applied = state.applied(self.flow)?.map(|applied| applied.position);
            if applied.as_ref().is_some_and(|applied| Place::covers(applied, &wanted.position())) {
                return Ok(false);
            }
            // Without a feed: a pass that began after the object was written has seen it.
            if let (Some(Place::Pass(number)), Some(modified)) =
                (applied.as_ref().and_then(Place::parse), from.and_then(|meta| meta.modified))
                && state.pass_begun_at(self.flow, number)?.is_some_and(|begun| modified < begun)
            {
                return Ok(false);
            }
            if !state.is_followed(self.flow)? {
                return Ok(false);
            }
            if tokio::time::Instant::now() >= end {
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}

/// A key on both sides, looked at now.
pub(crate) struct Look {
    pub from: Option<Meta>,
    pub to: Option<Meta>,
    pub is_equal: bool,
}

impl Look {
    fn same_versions(&self, other: &Self) -> bool {
        let tag = |meta: &Option<Meta>| meta.as_ref().map(|m| (m.etag.clone(), m.size, m.modified));
        tag(&self.from) == tag(&other.from) && tag(&self.to) == tag(&other.to)
    }
}

/// HEADs both sides; where they report no comparable checksum, reads both contents.
pub(crate) async fn look(mover: &Mover, flow: Flow, key: &str) -> Result<Look> {
    let head = async |side| {
        mover.settings.retry.run(|| mover.store(side).head(key)).await.map_err(|e: Error| e.on(side))
    };
    let (from, to) = tokio::try_join!(head(flow.from()), head(flow.to()))?;
    let is_equal = match (&from, &to) {
        (None, None) => true,
        (Some(from), Some(to)) if from.size == to.size => {
            let known = |side, meta: &Meta| {
                known_checksums(mover.store(side).capabilities(), meta.etag.as_deref(), &meta.checksums)
            };
            match known(flow.from(), from).agree(&known(flow.to(), to)) {
                Some(verdict) => verdict,
                None => same_content(mover, flow, key, from, to).await?,
            }
        }
        _ => false,
    };
    Ok(Look { from, to, is_equal })
}

/// Reads, and compares against what the other side reports where that is enough.
async fn same_content(mover: &Mover, flow: Flow, key: &str, from: &Meta, to: &Meta) -> Result<bool> {
    tracing::debug!(key, "no checksum that both sides report; reading");
    let read = async |side| read_digest(mover, side, key).await;
    // One side's CRC is as good as its content.
    let first = read(flow.from()).await?;
    if let (Some(first), Some(verdict)) =
        (first, first.and_then(|digest| digest.checksums().agree(&to.checksums)))
    {
        return Ok(verdict && first.length == from.size);
    }
    let second = read(flow.to()).await?;
    Ok(first.is_some() && first == second)
}

async fn read_digest(mover: &Mover, side: Side, key: &str) -> Result<Option<Digest>> {
    let read = mover.settings.retry.run(|| async {
        let Some((_, mut body)) = mover.store(side).get(key, None, None).await? else { return Ok(None) };
        let mut digest = Digest::default();
        while let Some(chunk) = body.next().await {
            digest = digest.join(&Digest::of(&chunk?));
        }
        Ok(Some(digest))
    });
    read.await.map_err(|e: Error| e.on(side))
}

struct Verifying<'a> {
    mover: &'a Arc<Mover>,
    flow: Flow,
    extras: Extras,
    motion: &'a dyn Motion,
    progress: &'a dyn Progress,
    stop: &'a CancellationToken,
    tasks: JoinSet<(String, u64, Result<Look>)>,
    candidates: Vec<String>,
    result: Verification,
}

/// Compares everything.
pub(crate) async fn full(
    mover: &Arc<Mover>,
    flow: Flow,
    extras: Extras,
    motion: &dyn Motion,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<Verification> {
    compare_all(mover, flow, extras, motion, progress, stop, |_| true).await
}

async fn compare_all(
    mover: &Arc<Mover>,
    flow: Flow,
    extras: Extras,
    motion: &dyn Motion,
    progress: &dyn Progress,
    stop: &CancellationToken,
    is_recent: impl Fn(&Entry) -> bool,
) -> Result<Verification> {
    loop {
        let mut verifying = Verifying::new(mover, flow, extras, motion, progress, stop);
        match verifying.listings(&is_recent).await {
            Err(error) if is_out_of_order(&error) => tracing::warn!(%error, "sorting it here from now on"),
            Err(error) => return Err(error),
            Ok(()) => return verifying.settle().await,
        }
    }
}

/// Compares what changed since `position`, by the feed where there is one.
pub(crate) async fn since(
    mover: &Arc<Mover>,
    flow: Flow,
    position: &Position,
    feed: Option<Arc<dyn Feed>>,
    motion: &dyn Motion,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<Verification> {
    let extras = Extras::DifferIfOurs;
    let began = tokio::time::Instant::now();
    match (Place::parse(position), feed) {
        (Some(Place::Feed(after)), Some(feed)) => {
            let Some(keys) =
                changed_since(mover, feed.as_ref(), after).await.map_err(|e| e.on(flow.from()))?
            else {
                return full(mover, flow, extras, motion, progress, stop).await;
            };
            let (changed, asked) = (keys.len(), began.elapsed());
            let mut verifying = Verifying::new(mover, flow, extras, motion, progress, stop);
            for key in keys {
                verifying.begin_look(key, 0).await?;
            }
            let result = verifying.settle().await;
            let (asked_ms, ms) = (asked.as_millis() as u64, began.elapsed().as_millis() as u64);
            tracing::debug!(%flow, changed, asked_ms, ms, "compared what changed");
            result
        }
        // The position was asked for before its pass began, and after the one before it had: what was written in between
        // counts, too. The store's clock wrote the times and ours the beginning.
        (Some(Place::Pass(number)), None) => {
            match mover.state.pass_begun_at(flow, number.saturating_sub(1))? {
                Some(begun) => {
                    let since = begun - SKEW_LIMIT_MILLIS;
                    let is_recent = |entry: &Entry| entry.modified.is_none_or(|modified| modified >= since);
                    compare_all(mover, flow, extras, motion, progress, stop, is_recent).await
                }
                None => full(mover, flow, extras, motion, progress, stop).await,
            }
        }
        _ => full(mover, flow, extras, motion, progress, stop).await,
    }
}

/// The application's keys that changed after `after`; `None` when the feed cannot tell, or they are too many.
pub(crate) async fn changed_since(
    mover: &Mover,
    feed: &dyn Feed,
    after: u64,
) -> Result<Option<HashSet<String>>> {
    let retry = mover.settings.retry;
    let mut keys = HashSet::new();
    let mut position = after;
    let mut head = None;
    loop {
        let page = retry.run(|| feed.changes(position, 1_000, Duration::ZERO)).await?;
        let Some(page) = page else { return Ok(None) };
        // What was written after the first answer is for the next comparison.
        let head = *head.get_or_insert(page.head);
        if page.position <= position && position < head {
            let text = format!("the change feed ends at {position}, before its head {head}");
            return Err(Error::permanent(ErrorKind::Corrupt, text));
        }
        position = position.max(page.position);
        keys.extend(page.changes.into_iter().map(|change| change.key).filter(|key| !is_reserved(key)));
        if keys.len() > CHANGED_KEYS {
            return Ok(None);
        }
        if position >= head {
            break;
        }
    }
    Ok(Some(keys))
}

impl<'a> Verifying<'a> {
    fn new(
        mover: &'a Arc<Mover>,
        flow: Flow,
        extras: Extras,
        motion: &'a dyn Motion,
        progress: &'a dyn Progress,
        stop: &'a CancellationToken,
    ) -> Self {
        Self {
            mover,
            flow,
            extras,
            motion,
            progress,
            stop,
            tasks: JoinSet::new(),
            candidates: Vec::new(),
            result: Verification::default(),
        }
    }

    /// Walks both listings; what they do not settle is looked at key by key.
    async fn listings(&mut self, is_recent: &impl Fn(&Entry) -> bool) -> Result<()> {
        let mut merge = self.mover.merge(self.flow);
        while let Some(pair) = merge.next().await? {
            if self.stop.is_cancelled() {
                return Err(Error::cancelled());
            }
            if is_reserved(&pair.key) {
                continue;
            }
            match (&pair.from, &pair.to) {
                (Some(from), Some(to)) if from.size == to.size => {
                    if both_md5(self.mover, self.flow, from, to) == Some(true) || !is_recent(from) {
                        self.equal(from.size);
                    } else {
                        self.begin_look(pair.key, from.size).await?;
                    }
                }
                (None, Some(_)) if !self.counts_as_extra(&pair.key)? => {}
                _ => self.candidate(pair.key),
            }
        }
        Ok(())
    }

    fn counts_as_extra(&self, key: &str) -> Result<bool> {
        Ok(match self.extras {
            Extras::Differ => true,
            Extras::Ignored => false,
            Extras::DifferIfOurs => !self.mover.state.is_stranger(key)?,
        })
    }

    fn equal(&mut self, size: u64) {
        self.result.compared += 1;
        self.result.bytes += size;
        if self.result.compared.is_multiple_of(256) {
            self.progress.update(self.result.compared, self.result.bytes, None, None);
        }
    }

    fn candidate(&mut self, key: String) {
        if self.candidates.len() < CANDIDATES {
            self.candidates.push(key);
        } else {
            self.result.compared += 1;
            self.result.differences_total += 1;
        }
    }

    async fn begin_look(&mut self, key: String, size: u64) -> Result<()> {
        if self.stop.is_cancelled() {
            return Err(Error::cancelled());
        }
        while self.tasks.len() >= looks_at_once(self.mover) {
            self.end_look().await?;
        }
        let (mover, flow) = (Arc::clone(self.mover), self.flow);
        self.tasks.spawn(async move {
            let look = look(&mover, flow, &key).await;
            (key, size, look)
        });
        Ok(())
    }

    async fn end_look(&mut self) -> Result<()> {
        let Some(done) = self.tasks.join_next().await else { return Ok(()) };
        let (key, size, look) =
            done.map_err(|e| Error::permanent(ErrorKind::Other, format!("a comparing task died: {e}")))?;
        let look = look?;
        if look.is_equal {
            self.equal(look.from.map_or(size, |from| from.size));
        } else if look.from.is_some() || self.counts_as_extra(&key)? {
            self.candidate(key);
        }
        Ok(())
    }

    /// Looks at every candidate again, and tells what stays different.
    async fn settle(&mut self) -> Result<Verification> {
        while !self.tasks.is_empty() {
            self.end_look().await?;
        }
        let (mover, flow, motion, stop) = (self.mover, self.flow, self.motion, self.stop);
        let mut looks = futures::stream::iter(std::mem::take(&mut self.candidates))
            .map(|key| again(mover, flow, motion, stop, key))
            .buffer_unordered(looks_at_once(mover));
        let mut told = Vec::new();
        while let Some(settled) = looks.next().await {
            match settled? {
                Settled::Equal(size) => self.equal(size),
                Settled::Moving => self.result.in_motion += 1,
                Settled::Different(finding) => {
                    self.result.compared += 1;
                    self.result.differences_total += 1;
                    // The worst first, and bounded: some of each kind are enough.
                    if told.len() < DIFFERENCES_TOLD * 2 {
                        told.push(finding);
                    }
                }
            }
        }
        drop(looks);
        told.sort_by_key(|finding: &Finding| finding.id == "target-extra");
        told.truncate(DIFFERENCES_TOLD);
        self.result.differences = told;
        self.progress.update(
            self.result.compared,
            self.result.bytes,
            Some(self.result.compared),
            Some(self.result.bytes),
        );
        Ok(std::mem::take(&mut self.result))
    }
}

fn looks_at_once(mover: &Mover) -> usize {
    mover.settings.concurrency.max(1) * LOOKS_FOR_EACH
}

/// What a candidate turned out to be.
enum Settled {
    Equal(u64),
    Different(Finding),
    Moving,
}

/// Looks at one key until it is equal, stays different, or is found to be moving.
async fn again(
    mover: &Mover,
    flow: Flow,
    motion: &dyn Motion,
    stop: &CancellationToken,
    key: String,
) -> Result<Settled> {
    let mut before = look(mover, flow, &key).await?;
    for _ in 0..LOOKS {
        if stop.is_cancelled() {
            return Err(Error::cancelled());
        }
        if before.is_equal {
            return Ok(Settled::Equal(before.from.map_or(0, |from| from.size)));
        }
        if motion.is_moving(before.from.as_ref()).await? {
            break;
        }
        let now = look(mover, flow, &key).await?;
        if !now.is_equal && now.same_versions(&before) {
            return Ok(Settled::Different(difference(flow, &key, &now)));
        }
        before = now;
    }
    Ok(Settled::Moving)
}

fn difference(flow: Flow, key: &str, look: &Look) -> Finding {
    let (id, text, remedy) = match (&look.from, &look.to) {
        (Some(from), None) => (
            "object-missing",
            format!("{key}: {} bytes on the {}, nothing on the {}", from.size, flow.from(), flow.to()),
            "copy again; if it stays, see whether the key is listed as refused",
        ),
        (None, Some(to)) => (
            "target-extra",
            format!("{key}: {} bytes on the {} only", to.size, flow.to()),
            "remove it by hand if it is not wanted; rehome does not delete what it did not write",
        ),
        (Some(from), Some(to)) if from.size != to.size => (
            "size-differs",
            format!("{key}: {} bytes on the {}, {} on the {}", from.size, flow.from(), to.size, flow.to()),
            "see who writes on the side that should only be copied to",
        ),
        _ => (
            "content-differs",
            format!("{key}: same size, different content"),
            "see who writes on the side that should only be copied to",
        ),
    };
    Finding {
        id: id.into(),
        severity: Severity::Blocker,
        side: Some(flow.to()),
        text,
        remedy: Some(remedy.into()),
    }
}
