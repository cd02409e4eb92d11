//! A Redis server as a [`Part`]: the life of a part, told in terms of the link, the fence and the stream.
//! Each method is a few lines; the work is in the modules it calls.

use super::assess::{assess, fingerprint, fits};
use super::connect::Session;
use super::follow::{self, Late};
use super::info::{Info, Replication};
use super::link::Link;
use super::memory::{Matter, Memory};
use super::place::Place;
use super::verify::{self, quickest};
use super::{fence, sweep, tap};
use crate::end::{Ends, FenceMeans};
use crate::verify::{Compared, Options, Pair, Progress as Seen, What};
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use redis::Value;
use rehome_part::{
    Assessment, Capabilities, CopySummary, Drained, Error, ErrorKind, Fence, Finding, Flow, FollowReport,
    Follows, Marker, Part, Position, Progress, Result, Scope, Seal, Severity, Side, Verification,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// All our markers are in this one key of database 0.
pub(super) const MARKERS: &str = "rehome:markers";
/// The target keeps at least so much of its stream: the way back begins in it.
const BACKLOG: u64 = 64 << 20;
/// So long changes are counted in an assessment.
const WATCH: Duration = Duration::from_millis(500);
/// Between two looks at a full copy.
const COPY_LOOK: Duration = Duration::from_millis(50);
/// A replica that hears nothing for so long is told about.
const UNHEARD: Duration = Duration::from_secs(60);
/// Differences that are told, at most.
const TOLD: usize = 100;
/// Keys of each database that a short comparison picks by chance.
const SAMPLE: usize = 200;
/// Of those, none that takes more memory.
const SMALL: u64 = 64 << 10;
/// Keys that a short comparison looks at, at most.
const RECENT: usize = 5_000;
/// Looks at two counts that differ.
const COUNTS: usize = 5;
/// Looks of a drain: so far apart, so many on their way.
const DRAIN_LOOK: Duration = Duration::from_millis(4);
const LOOKS_UNDER_WAY: usize = 32;

/// One Redis server that moves, with all its databases.
#[derive(Debug)]
pub struct RedisPart {
    name: String,
    link: Link,
}

impl RedisPart {
    /// A part between two ends. Its memory is files `redis-NAME-….json` in `state_dir`, one of which may hold settings that are
    /// secrets of the servers (`masterauth`); only their owner can read them.
    ///
    /// # Errors
    /// What was written down before cannot be read.
    pub fn new(name: &str, ends: Ends, means: FenceMeans, state_dir: &Path) -> Result<Self> {
        let link = Link::new(ends, means, Memory::new(state_dir, name));
        for flow in [Flow::Forward, Flow::Reverse] {
            link.sealed(flow)?;
        }
        Ok(Self { name: name.to_owned(), link })
    }

    async fn head_of(&self, side: Side) -> Result<Place> {
        self.link.patiently(|| async { Ok(self.link.replication(side).await?.place()) }).await
    }

    async fn remove_markers(&self, side: Side) -> Result<()> {
        let session = self.link.session(side).await?;
        session.ask::<Value>("remove our markers", &["DEL", MARKERS]).await.map(drop)
    }

    fn pair(&self) -> Pair {
        let of = |side| (self.link.end(side).address.clone(), self.link.end(side).password.clone());
        Pair { source: of(Side::Source), target: of(Side::Target) }
    }

    /// Following begins with a full copy, which removes what is there: only where nothing is of others.
    async fn refuse_foreign_keys(&self, flow: Flow) -> Result<()> {
        if self.link.memory.get::<bool>(Matter::Copied(flow))?.is_some()
            || self.link.sealed(flow.back())?.is_some()
        {
            return Ok(());
        }
        let replica = self.link.replication(flow.to()).await?;
        if self.link.is_bound(flow, &replica) {
            return Ok(());
        }
        if replica.is_replica() {
            let text = format!("the {} follows another server", flow.to());
            return Err(Error::permanent(ErrorKind::Unsupported, text)
                .on(flow.to())
                .hint("end that with REPLICAOF NO ONE, or take another server"));
        }
        let keys = self.link.foreign_keys(flow.to()).await?;
        if keys > 0 {
            let text = format!("the {} holds {keys} key(s), which a copy would remove", flow.to());
            return Err(Error::permanent(ErrorKind::Unsupported, text)
                .on(flow.to())
                .hint("take an empty server, or FLUSHALL it yourself if nobody needs them"));
        }
        Ok(())
    }

    async fn report_copy(&self, flow: Flow, total: u64, progress: &dyn Progress) -> Result<bool> {
        let info = Info::read(&self.link.session(flow.to()).await?, "all").await?;
        let keys = info.keyspace().values().map(|(keys, _)| keys).sum();
        let read = info.number("master_sync_read_bytes").unwrap_or(0);
        let all = info.number("master_sync_total_bytes").filter(|bytes| *bytes > 0);
        progress.update(keys, read, Some(total), all);
        Ok(info.is("master_sync_in_progress", "1") || info.is("loading", "1"))
    }

    /// Keys written since a position; `None` where the stream does not reach back so far.
    async fn recent(&self, flow: Flow, since: &Position) -> Result<Option<BTreeMap<u32, BTreeSet<Vec<u8>>>>> {
        let Some(since) = Place::parse(since) else { return Ok(None) };
        sweep::written_keys(&self.link, flow.from(), &since, RECENT).await
    }

    async fn verify_since(
        &self,
        flow: Flow,
        since: &Position,
        stop: &CancellationToken,
    ) -> Result<Verification> {
        let (source, target) =
            tokio::try_join!(self.link.session(Side::Source), self.link.session(Side::Target))?;
        let mut result = Verification::default();
        let recent = async {
            let mut all = Vec::new();
            for (number, keys) in self.recent(flow, since).await?.unwrap_or_default() {
                all.push((number, self.compare_some(number, keys, stop).await?));
            }
            Ok(all)
        };
        let (mut all, counted) = tokio::try_join!(recent, self.compare_counts(&source, &target, stop))?;
        for number in counted.keys() {
            if !all.iter().any(|(compared, _)| compared == number) {
                all.push((*number, self.compare_some(*number, BTreeSet::new(), stop).await?));
            }
        }
        for (number, compared) in all {
            let counts = counted.get(&number).copied().unwrap_or((0, 0));
            tell_counts(number, counts, compared.differing, &mut result);
            tell(&compared, &mut result);
        }
        Ok(result)
    }

    /// Compares these keys of a database, and some by chance.
    async fn compare_some(
        &self,
        number: u32,
        mut keys: BTreeSet<Vec<u8>>,
        stop: &CancellationToken,
    ) -> Result<Compared> {
        let (source, target) = tokio::try_join!(
            self.link.session_in(Side::Source, number),
            self.link.session_in(Side::Target, number)
        )?;
        keys.extend(quickest(picked(&source), picked(&target)).await?);
        keys.retain(|key| !key.starts_with(super::RESERVED.as_bytes()));
        let options = Options { most_named: TOLD, ..Options::default() };
        verify::some_keys(&source, &target, number, keys.into_iter().collect(), &options, stop).await
    }

    /// Keys of each database on both sides; looked at again while they differ, since changes may be on their way.
    async fn compare_counts(
        &self,
        source: &Session,
        target: &Session,
        stop: &CancellationToken,
    ) -> Result<BTreeMap<u32, (u64, u64)>> {
        let mut both = BTreeMap::new();
        for _ in 0..COUNTS {
            let (ours, theirs) = tokio::try_join!(verify::keys_of(source), verify::keys_of(target))?;
            both.clear();
            for number in ours.keys().chain(theirs.keys()) {
                let of = |keys: &BTreeMap<u32, u64>| keys.get(number).copied().unwrap_or(0);
                both.insert(*number, (of(&ours), of(&theirs)));
            }
            if ours == theirs {
                break;
            }
            tokio::select! {
                () = stop.cancelled() => return Err(Error::cancelled()),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
        Ok(both)
    }
}

/// Some keys by chance; none that takes long to read, since writes wait.
async fn picked(session: &Session) -> Result<Vec<Vec<u8>>> {
    let pick: Vec<redis::Cmd> = (0..SAMPLE).map(|_| super::connect::command(&["RANDOMKEY"])).collect();
    let answers = session.answers("pick keys", &pick).await?;
    let mut keys: Vec<Vec<u8>> =
        answers.into_iter().filter_map(|key| redis::from_redis_value::<Vec<u8>>(key).ok()).collect();
    keys.sort_unstable();
    keys.dedup();
    let borrowed: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let sizes = verify::value::sizes(session, &borrowed).await?;
    Ok(keys.into_iter().zip(sizes).filter(|(_, size)| *size <= SMALL).map(|(key, _)| key).collect())
}

fn difference(id: &str, text: String) -> Finding {
    let remedy = "Compare again; if it stays, let the copy begin anew.";
    Finding {
        id: id.to_owned(),
        severity: Severity::Blocker,
        side: None,
        text,
        remedy: Some(remedy.to_owned()),
    }
}

/// A count that differs by more than the keys that were named. While others write, counts are never the same for long.
fn tell_counts(number: u32, (ours, theirs): (u64, u64), named: u64, result: &mut Verification) {
    let unnamed = ours.abs_diff(theirs).saturating_sub(named);
    if unnamed > 0 {
        result.differences_total += unnamed;
        let text = format!("database {number} has {ours} keys on the source and {theirs} on the target");
        result.differences.push(difference("key-count", text));
    }
}

fn tell(compared: &Compared, result: &mut Verification) {
    result.compared += compared.source_rows;
    result.in_motion += compared.unsettled;
    result.differences_total += compared.differing;
    for row in &compared.rows {
        let (id, what) = match row.what {
            What::OnlyOnSource => ("key-missing", "is on the source only"),
            What::OnlyOnTarget => ("key-extra", "is on the target only"),
            What::Differs => ("key-differs", "is not the same on both sides"),
        };
        if result.differences.len() < TOLD {
            let text = format!("`{}` of database {} {what}", row.key.join(" "), compared.table);
            result.differences.push(difference(id, text));
        }
    }
}

fn field(marker: &Marker) -> String {
    format!("{}-{}", marker.epoch, marker.nonce)
}

#[async_trait]
impl Part for RedisPart {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "redis"
    }

    fn capabilities(&self) -> Capabilities {
        let has_login = |side| !self.link.end(side).applications.is_empty();
        Capabilities {
            follows: Follows::Feed,
            can_fence: self.link.means != FenceMeans::None,
            can_probe: has_login(Side::Source) && has_login(Side::Target),
            can_reverse: true,
        }
    }

    async fn assess(&self) -> Result<Assessment> {
        let (source, target) =
            tokio::try_join!(self.link.session(Side::Source), self.link.session(Side::Target))?;
        let assessed = assess(&source, WATCH).await?;
        let target = fits(&assessed, &target).await?;
        let fingerprint = fingerprint(&assessed, &target);
        let mut findings = assessed.findings;
        if self.link.means == FenceMeans::None {
            // Without a fence it does not matter who we are.
            findings.retain(|finding| finding.id != "own-user");
        }
        findings.extend(target);
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Ok(Assessment {
            objects: assessed.keys,
            bytes: assessed.bytes,
            changes_per_second: assessed.watched.and_then(|watched| watched.changes_per_second),
            compressed_ratio: None,
            copy_seconds: None,
            findings,
            fingerprint,
        })
    }

    async fn prepare(&self) -> Result<()> {
        self.link
            .patiently(|| async {
                fence::make_users(&self.link).await?;
                let target = self.link.session(Side::Target).await?;
                let size =
                    super::link::setting(&target, "repl-backlog-size").await?.parse::<u64>().unwrap_or(0);
                if size < BACKLOG {
                    self.link.set(Side::Target, &[("repl-backlog-size", &BACKLOG.to_string())]).await?;
                }
                Ok(())
            })
            .await
    }

    async fn unprepare(&self) -> Result<()> {
        self.link
            .patiently(|| async {
                if self.link.is_bound(Flow::Forward, &self.link.replication(Side::Target).await?) {
                    self.link.promote(Side::Target).await?;
                }
                for side in [Side::Source, Side::Target] {
                    self.remove_markers(side).await?;
                    self.link.restore_settings(side).await?;
                }
                fence::remove_users(&self.link).await?;
                self.link.memory.forget(Matter::Copied(Flow::Forward))
            })
            .await
    }

    async fn copy(
        &self,
        flow: Flow,
        progress: Arc<dyn Progress>,
        stop: CancellationToken,
    ) -> Result<CopySummary> {
        if self.link.sealed(flow)?.is_some() {
            let text = format!("the {} is the owner, or is about to be", flow.to());
            return Err(Error::permanent(ErrorKind::Unsupported, text).on(flow.to()));
        }
        self.link.patiently(|| self.refuse_foreign_keys(flow)).await?;
        let had_it = self.link.patiently(|| follow::is_linked(&self.link, flow)).await?;
        self.link.memory.set(Matter::Copied(flow), &true)?;
        let total = self.link.foreign_keys(flow.from()).await?;
        let mut heard = Instant::now();
        loop {
            if stop.is_cancelled() {
                return Err(Error::cancelled());
            }
            let looked = self.link.patiently(|| follow::look(&self.link, flow)).await?;
            if self.report_copy(flow, total, progress.as_ref()).await? {
                heard = Instant::now();
            }
            if let Some((_, replica)) = looked {
                let (keys, bytes) =
                    (self.link.foreign_keys(flow.to()).await?, replica.0.number("master_sync_read_bytes"));
                progress.update(keys, bytes.unwrap_or(0), Some(keys), None);
                let moved = if had_it { 0 } else { keys };
                return Ok(CopySummary { objects: moved, bytes: 0, kept: keys - moved, losses: Vec::new() });
            }
            if heard.elapsed() > UNHEARD {
                let address = self.link.end(flow.from()).as_seen_by_other();
                let text = format!("the {} does not get through to {address}", flow.to());
                return Err(Error::temporary(ErrorKind::Network, text)
                    .on(flow.to())
                    .hint("see the log of the server that is to follow: it says what it hears from there"));
            }
            tokio::select! {
                () = stop.cancelled() => return Err(Error::cancelled()),
                () = tokio::time::sleep(COPY_LOOK) => {}
            }
        }
    }

    async fn follow(&self, flow: Flow, report: FollowReport, stop: CancellationToken) -> Result<()> {
        follow::follow(&self.link, flow, &report, &stop).await
    }

    async fn warm(&self, flow: Flow) -> Result<()> {
        let open = |side| async move {
            fence::warm(&self.link, side).await?;
            if side == flow.from() {
                let tap = tap::open_at(self.link.end(side), side).await.ok();
                self.link.warmed(side, |warmed| warmed.tap = tap);
            }
            let session = self.link.session(side).await?;
            let databases = verify::keys_of(&session).await?;
            let sessions = databases.keys().map(|number| self.link.session_in(side, *number));
            futures::future::try_join_all(sessions).await
        };
        tokio::try_join!(open(flow.from()), open(flow.to())).map(drop)
    }

    async fn head(&self, flow: Flow) -> Result<Position> {
        Ok(self.head_of(flow.from()).await?.position())
    }

    fn covers(&self, applied: &Position, wanted: &Position) -> bool {
        match (Place::parse(applied), Place::parse(wanted)) {
            (Some(applied), Some(wanted)) => applied.covers(&wanted),
            _ => false,
        }
    }

    async fn fence(&self, side: Side) -> Result<()> {
        self.link.patiently(|| fence::close(&self.link, side)).await
    }

    async fn unfence(&self, side: Side) -> Result<()> {
        self.link.patiently(|| fence::open(&self.link, side)).await
    }

    async fn probe(&self, side: Side) -> Result<Fence> {
        self.link.patiently(|| fence::probe(&self.link, side)).await
    }

    async fn mark(&self, flow: Flow, marker: &Marker) -> Result<()> {
        let field = field(marker);
        self.link
            .patiently(|| async {
                let session = self.link.session(flow.from()).await?;
                session.ask::<Value>("write the marker", &["HSET", MARKERS, &field, "1"]).await.map(drop)
            })
            .await
    }

    async fn drain(
        &self,
        flow: Flow,
        fence: &Position,
        marker: &Marker,
        stop: CancellationToken,
    ) -> Result<Drained> {
        let field = field(marker);
        let wanted = Place::parse(fence)
            .ok_or_else(|| Error::permanent(ErrorKind::Corrupt, format!("`{fence}` is no position")))?;
        let glance = || async {
            let session = self.link.session(flow.to()).await?;
            follow::glance(&session, MARKERS, &field).await
        };
        let mut before = None;
        // A look from far away takes its time: several are on their way, so that seeing it costs no round trip of its own.
        let (mut looks, mut next) = (FuturesUnordered::new(), tokio::time::interval(DRAIN_LOOK));
        next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let looked = tokio::select! {
                () = stop.cancelled() => return Err(Error::cancelled()),
                Some(looked) = looks.next(), if !looks.is_empty() => looked,
                _ = next.tick(), if looks.len() < LOOKS_UNDER_WAY => {
                    looks.push(self.link.patiently(glance));
                    continue;
                }
            };
            let (replica, marker_seen): (Replication, bool) = looked?;
            let place = replica.place();
            let began = *before.get_or_insert(place.offset);
            if marker_seen && place.covers(&wanted) {
                let changes = place.offset.saturating_sub(began);
                return Ok(Drained { applied: place.position(), marker_seen, changes });
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
        if let Scope::Since(position) = &scope {
            return self.verify_since(flow, position, &stop).await;
        }
        let options = Options { most_named: TOLD, ..Options::default() };
        let seen = Seen::default();
        let pair = self.pair();
        let mut comparing = Box::pin(verify::verify(&pair, &options, &seen, &stop));
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        let compared = loop {
            tokio::select! {
                compared = &mut comparing => break compared?,
                _ = tick.tick() => {
                    let read = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);
                    progress.update(read(&seen.rows), read(&seen.bytes), Some(read(&seen.rows_expected)), None);
                }
            }
        };
        let mut result =
            Verification { bytes: seen.bytes.load(Ordering::Relaxed), ..Verification::default() };
        compared.iter().for_each(|one| tell(one, &mut result));
        Ok(result)
    }

    async fn seal(&self, flow: Flow) -> Result<Seal> {
        let sealed = self.link.patiently(|| self.link.seal(flow)).await?;
        Ok(Seal { reverse_start: Position(sealed.start) })
    }

    async fn unseal(&self, flow: Flow) -> Result<()> {
        self.link.patiently(|| self.link.unseal(flow)).await
    }

    async fn sweep(&self, flow: Flow, since: &Position) -> Result<Vec<Finding>> {
        let end = match self.link.sealed(flow)? {
            Some(sealed) => sealed.frozen()?,
            None => Place::parse(since)
                .ok_or_else(|| Error::permanent(ErrorKind::Corrupt, format!("`{since}` is no position")))?,
        };
        let now: Replication = self.link.patiently(|| self.link.replication(flow.from())).await?;
        if now.is_replica() {
            let late: Option<Late> = self.link.memory.get(Matter::Late(flow))?;
            return Ok(late.unwrap_or_default().findings);
        }
        if now.place() == end {
            return Ok(Vec::new());
        }
        match sweep::resolve(&self.link, flow, &end, &now).await {
            Err(error) if error.kind == ErrorKind::Changed && !error.is_temporary() => {
                let text = error.text;
                let id = "late-writes-unknown".to_owned();
                let finding = Finding {
                    id,
                    severity: Severity::Warning,
                    side: Some(flow.from()),
                    text,
                    remedy: error.hint,
                };
                Ok(vec![finding])
            }
            swept => swept,
        }
    }

    async fn retire(&self, owner: Side) -> Result<()> {
        self.link
            .patiently(|| async {
                let away = Flow::leaving(owner);
                if self.link.is_bound(away, &self.link.replication(away.to()).await?) {
                    self.link.promote(away.to()).await?;
                }
                self.link.thaw(away.to()).await?;
                for side in [Side::Source, Side::Target] {
                    self.remove_markers(side).await?;
                    self.link.restore_settings(side).await?;
                }
                for flow in [Flow::Forward, Flow::Reverse] {
                    for matter in [Matter::Copied(flow), Matter::Sealed(flow), Matter::Late(flow)] {
                        self.link.memory.forget(matter)?;
                    }
                }
                Ok(())
            })
            .await
    }
}
