//! A simulated part: a real [`Part`] over an in-memory [`SimWorld`], with faults on purpose ([`Faults`]).
//! Engines are proved against it: the world outlives any engine, keeps the order of all that happened, and notices broken
//! promises by itself. It works under paused tokio time. It never touches a disk or a network.

mod faults;
mod world;

pub use faults::{Call, Faults, Hang};
pub use world::{Behaviour, Guard, Happened, Refused, Seq, SideSnapshot, SimWorld, Snapshot, Writer};

use crate::{
    Assessment, Capabilities, CopySummary, Drained, Error, ErrorKind, Fence, Finding, Flow, FollowReport,
    FollowState, Follows, Marker, Part, Position, Progress, Result, Scope, Seal, Severity, Side,
    Verification, Writers,
};
use async_trait::async_trait;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use world::Inner;

/// A promise that an accepted write of the application showed to be broken. Checked when its writes change sides.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("{wrote} took a write while {} was open as well", wrote.other())]
    BothSidesWritable { wrote: Side },
    #[error("{wrote} took its first write before the start of the way back was captured")]
    NoWayBack { wrote: Side },
    #[error("{wrote} took its first write while an acknowledged write of {key:?} on {} was not there", wrote.other())]
    Lost { wrote: Side, key: String },
}

/// One simulated part. A second one over the same world is what a restarted engine or a guard holds.
#[derive(Debug, Clone)]
pub struct SimPart {
    name: String,
    world: SimWorld,
    capabilities: Capabilities,
}

impl SimPart {
    /// A part in a world of its own.
    pub fn new(name: &str) -> Self {
        Self::over(name, SimWorld::new())
    }

    /// A part in a world that is there already.
    pub fn over(name: &str, world: SimWorld) -> Self {
        let capabilities =
            Capabilities { follows: Follows::Feed, can_fence: true, can_probe: true, can_reverse: true };
        Self { name: name.into(), world, capabilities }
    }

    #[must_use]
    pub fn with(mut self, capabilities: Capabilities) -> Self {
        self.world.change(|inner| inner.can_reverse = capabilities.can_reverse);
        self.capabilities = capabilities;
        self
    }

    pub fn world(&self) -> &SimWorld {
        &self.world
    }

    pub fn faults(&self) -> &Faults {
        self.world.faults()
    }

    /// Waits out the link and the time one object takes, then does `act` on the world; `None` when stopped before.
    async fn take_turn<T>(
        &self,
        time: impl Fn(&Behaviour) -> Duration,
        stop: &CancellationToken,
        act: impl FnOnce(&mut Inner) -> T,
    ) -> Option<T> {
        self.wait_for_link(stop).await?;
        let time = time(&self.world.lock().behaviour);
        if !time.is_zero() {
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(time) => {}
            }
        }
        // Lets others run between two turns even when a turn takes no time.
        tokio::task::yield_now().await;
        if stop.is_cancelled() { None } else { Some(self.world.change(act)) }
    }

    async fn wait_for_link(&self, stop: &CancellationToken) -> Option<()> {
        self.wait_until(stop, |inner| !inner.behaviour.link_down).await
    }

    async fn wait_until(&self, stop: &CancellationToken, condition: impl Fn(&Inner) -> bool) -> Option<()> {
        let mut changes = self.world.changes();
        loop {
            changes.borrow_and_update();
            if condition(&self.world.lock()) {
                return Some(());
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                // The world in `self` holds the sender, so this cannot fail.
                _ = changes.changed() => {}
            }
        }
    }

    async fn run_copy(
        &self,
        flow: Flow,
        progress: &dyn Progress,
        stop: &CancellationToken,
    ) -> Result<CopySummary> {
        let keys: Vec<String> = self.world.change(|inner| {
            must_exist(inner, flow.from())?;
            must_exist(inner, flow.to())?;
            let head = inner.side(flow.from()).head();
            inner.flow_mut(flow).applied.get_or_insert(head);
            Ok::<_, Error>(inner.side(flow.from()).data.keys().cloned().collect())
        })?;
        let mut summary = CopySummary::default();
        for key in &keys {
            let copied =
                self.take_turn(|b| b.copy_time_per_object, stop, |inner| copy_one(inner, flow, key)).await;
            match copied.ok_or_else(Error::cancelled)? {
                Copied::Moved(bytes) => {
                    summary.objects += 1;
                    summary.bytes += bytes;
                }
                Copied::Kept => summary.kept += 1,
                Copied::Gone => {}
            }
            progress.update(summary.objects + summary.kept, summary.bytes, Some(keys.len() as u64), None);
        }
        self.world.change(|inner| inner.flow_mut(flow).copied = true);
        Ok(summary)
    }

    async fn run_follow(&self, flow: Flow, report: &FollowReport, stop: &CancellationToken) -> Result<()> {
        if flow == Flow::Reverse && !self.capabilities.can_reverse {
            return Err(Error::permanent(ErrorKind::Unsupported, "this part cannot follow backwards"));
        }
        if self.world.applied(flow).is_none() {
            return Err(Error::permanent(ErrorKind::Other, "nothing fixed the position to follow from")
                .hint("copy first, or seal for the way back"));
        }
        loop {
            let mut changes = self.world.changes();
            report.send_replace(self.follow_state(flow));
            if !self.has_work(flow) {
                // Any change wakes it, also one of behaviour: that belongs into the report.
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    _ = changes.changed() => continue,
                }
            }
            let done = match self.capabilities.follows {
                Follows::Feed => {
                    self.take_turn(|b| b.apply_time_per_change, stop, |inner| apply_next(inner, flow)).await
                }
                Follows::Listing => {
                    self.take_turn(|b| b.listing_pass, stop, |inner| apply_all(inner, flow)).await
                }
            };
            if done.is_none() {
                return Ok(());
            }
        }
    }

    fn has_work(&self, flow: Flow) -> bool {
        let inner = self.world.lock();
        !inner.behaviour.link_down && next_due(&inner, flow).is_some()
    }

    fn follow_state(&self, flow: Flow) -> FollowState {
        let inner = self.world.lock();
        let state = inner.flow(flow);
        let known = !inner.behaviour.link_down && !inner.behaviour.lag_unknown;
        let pending: Vec<_> = pending(&inner, flow).collect();
        let (backlog, oldest) = (pending.len() as u64, pending.first().copied());
        let per_second = match inner.behaviour.apply_time_per_change.as_secs_f64() {
            // Applying takes no time here; a figure that is finite and large.
            0.0 => 1e6,
            seconds => 1.0 / seconds,
        };
        let listing = self.capabilities.follows == Follows::Listing;
        FollowState {
            applied: state.applied.map(Seq::position),
            backlog: (known && !listing).then_some(backlog),
            lag_seconds: known.then(|| oldest.map_or(0.0, |at| at.elapsed().as_secs_f64())),
            apply_per_second: (known && !listing).then_some(per_second),
            drain_seconds: known.then(|| match listing {
                true => inner.behaviour.listing_pass.as_secs_f64(),
                false => backlog as f64 / per_second,
            }),
            changes_applied: state.changes_applied,
            bytes_applied: state.bytes_applied,
        }
    }

    async fn run_drain(
        &self,
        flow: Flow,
        fence: &Position,
        marker: &Marker,
        stop: &CancellationToken,
    ) -> Result<Drained> {
        let wanted = number_of(fence)?;
        let name = (marker.epoch.0, marker.nonce.clone());
        let before = self.world.lock().flow(flow).changes_applied;
        let drained = |inner: &Inner| {
            inner.flow(flow).applied.is_some_and(|applied| applied >= wanted)
                && inner.side(flow.to()).markers.contains(&name)
        };
        self.wait_until(stop, drained).await.ok_or_else(Error::cancelled)?;
        Ok(self.world.change(|inner| {
            inner.note(Happened::Drained(flow));
            let state = inner.flow(flow);
            let applied = state.applied.unwrap_or(wanted).position();
            Drained { applied, marker_seen: true, changes: state.changes_applied - before }
        }))
    }
}

enum Copied {
    Moved(u64),
    Kept,
    Gone,
}

fn must_exist(inner: &Inner, side: Side) -> Result<()> {
    if inner.side(side).exists {
        return Ok(());
    }
    Err(Error::permanent(ErrorKind::NotFound, "there is no place to keep the data")
        .on(side)
        .hint("prepare first"))
}

fn number_of(position: &Position) -> Result<Seq> {
    Seq::of(position).ok_or_else(|| {
        Error::permanent(ErrorKind::Corrupt, format!("`{position}` is not a position of this part"))
    })
}

fn copy_one(inner: &mut Inner, flow: Flow, key: &str) -> Copied {
    let Some(value) = inner.side(flow.from()).data.get(key).cloned() else { return Copied::Gone };
    if inner.side(flow.to()).data.get(key) == Some(&value) {
        return Copied::Kept;
    }
    let bytes = value.len() as u64;
    inner.put(flow.to(), key, Some(value), Writer::Replicator);
    Copied::Moved(bytes)
}

/// When each change that is not applied yet was made; what the replicator itself wrote is no change.
fn pending(inner: &Inner, flow: Flow) -> impl Iterator<Item = tokio::time::Instant> {
    let applied = inner.flow(flow).applied.unwrap_or_default();
    inner.side(flow.from()).after(applied).filter(|(_, entry)| counts(entry)).map(|(_, entry)| entry.at)
}

fn counts(entry: &world::Entry) -> bool {
    entry.by == Writer::Application || entry.marker.is_some()
}

fn next_due(inner: &Inner, flow: Flow) -> Option<Seq> {
    let applied = inner.flow(flow).applied?;
    inner.side(flow.from()).after(applied).next().map(|(seq, _)| seq)
}

/// Applies the next entry of the owner's log: like a store's feed, an entry says what changed and the content is read now.
fn apply_next(inner: &mut Inner, flow: Flow) {
    let Some(seq) = next_due(inner, flow) else { return };
    let entry = inner.side(flow.from()).log[seq.0 as usize - 1].clone();
    if let Some(marker) = &entry.marker {
        if !inner.behaviour.lose_markers {
            inner.side_mut(flow.to()).markers.insert((marker.epoch.0, marker.nonce.clone()));
        }
    } else if let Some(key) = entry.key.as_ref().filter(|_| entry.by == Writer::Application) {
        let value = inner.side(flow.from()).data.get(key).cloned();
        let same = inner.side(flow.to()).data.get(key) == value.as_ref();
        inner.flow_mut(flow).bytes_applied += value.as_ref().map_or(0, Vec::len) as u64;
        if !same && !inner.behaviour.lose_changes_of.contains(key) {
            inner.put(flow.to(), key, value, Writer::Replicator);
        }
    }
    let state = inner.flow_mut(flow);
    state.applied = Some(seq);
    state.changes_applied += u64::from(entry.by == Writer::Application);
}

fn apply_all(inner: &mut Inner, flow: Flow) {
    while next_due(inner, flow).is_some() {
        apply_next(inner, flow);
    }
}

fn seal(inner: &mut Inner, flow: Flow) -> Seal {
    if let Some(start) = inner.flow(flow).sealed {
        return Seal { reverse_start: start.position() };
    }
    let start = inner.side(flow.to()).head();
    inner.flow_mut(flow).sealed = Some(start);
    let back = inner.flow_mut(flow.back());
    // A seal of the other direction belongs to the switch before this one.
    back.sealed = None;
    back.applied = Some(start);
    back.copied = true;
    inner.note(Happened::Sealed { flow, reverse_start: start });
    Seal { reverse_start: start.position() }
}

fn unseal(inner: &mut Inner, flow: Flow) {
    if inner.flow_mut(flow).sealed.take().is_some() {
        inner.flow_mut(flow.back()).applied = None;
        inner.note(Happened::Unsealed(flow));
    }
}

fn unprepare(inner: &mut Inner) {
    let ours = std::mem::take(&mut inner.target.made_by_us);
    if !ours {
        return;
    }
    inner.target.exists = false;
    inner.target.guard = Guard::Open;
    inner.target.guard_before = None;
    inner.target.data.clear();
    inner.target.markers.clear();
    inner.forward = Default::default();
    inner.reverse = Default::default();
    inner.note(Happened::Unprepared);
}

fn compare(inner: &Inner, flow: Flow, scope: &Scope) -> Result<Verification> {
    let (from, to) = (inner.side(flow.from()), inner.side(flow.to()));
    let keys: BTreeSet<&String> = match scope {
        Scope::Full => from.data.keys().chain(to.data.keys()).collect(),
        Scope::Since(position) => {
            from.after(number_of(position)?).filter_map(|(_, entry)| entry.key.as_ref()).collect()
        }
    };
    let applied = inner.flow(flow).applied.unwrap_or_default();
    let moving: BTreeSet<&String> = from.after(applied).filter_map(|(_, entry)| entry.key.as_ref()).collect();
    let mut result = Verification::default();
    for key in keys {
        result.compared += 1;
        result.bytes += from.data.get(key).map_or(0, Vec::len) as u64;
        let id = match (from.data.get(key), to.data.get(key)) {
            (a, b) if a == b => continue,
            (Some(_), None) => "missing",
            (None, _) => "extra",
            (Some(_), Some(_)) => "different",
        };
        if moving.contains(key) {
            result.in_motion += 1;
            continue;
        }
        note_difference(&mut result, id, flow.to(), format!("`{key}` is {id} on the {}", flow.to()));
    }
    if matches!(scope, Scope::Since(_)) && moving.is_empty() && from.data.len() != to.data.len() {
        let text = format!("{} objects on the {}, {} expected", to.data.len(), flow.to(), from.data.len());
        note_difference(&mut result, "count", flow.to(), text);
    }
    Ok(result)
}

fn note_difference(result: &mut Verification, id: &str, side: Side, text: String) {
    result.differences_total += 1;
    if result.differences.len() < 100 {
        let remedy = Some("copy again and verify".to_owned());
        result.differences.push(Finding {
            id: id.into(),
            severity: Severity::Blocker,
            side: Some(side),
            text,
            remedy,
        });
    }
}

/// Late writes are reported by every sweep, also when an earlier one copied them already: its answer may have been lost.
fn sweep(inner: &mut Inner, flow: Flow, since: Seq) -> Vec<Finding> {
    let late: BTreeSet<String> = inner
        .side(flow.from())
        .after(since)
        .filter(|(_, entry)| entry.by == Writer::Application)
        .filter_map(|(_, entry)| entry.key.clone())
        .collect();
    let opened = inner.flow(flow).sealed.unwrap_or_default();
    let mut findings = Vec::new();
    for key in late {
        let value = inner.side(flow.from()).data.get(&key).cloned();
        let touched = inner
            .side(flow.to())
            .after(opened)
            .any(|(_, entry)| entry.by == Writer::Application && entry.key.as_ref() == Some(&key));
        let same = inner.side(flow.to()).data.get(&key) == value.as_ref();
        if !touched && !same {
            inner.put(flow.to(), &key, value, Writer::Replicator);
        }
        let (id, fate, remedy) = match touched {
            true => (
                "late-write-conflict",
                "was not copied: the new owner has a newer write",
                Some("decide by hand"),
            ),
            false => ("late-write-copied", "was copied", None),
        };
        findings.push(Finding {
            id: id.into(),
            severity: Severity::Warning,
            side: Some(flow.from()),
            text: format!("a late write of `{key}` on the {} {fate}", flow.from()),
            remedy: remedy.map(String::from),
        });
    }
    findings
}

/// `source`, `target`: arguments in [`Call`]s.
fn word_of_side(side: Side) -> &'static str {
    match side {
        Side::Source => "source",
        Side::Target => "target",
    }
}

/// `forward`, `reverse`: arguments in [`Call`]s.
fn word_of_flow(flow: Flow) -> &'static str {
    match flow {
        Flow::Forward => "forward",
        Flow::Reverse => "reverse",
    }
}

#[async_trait]
impl Part for SimPart {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "simulated"
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn assess(&self) -> Result<Assessment> {
        let look = async {
            let inner = self.world.lock();
            must_exist(&inner, Side::Source)?;
            let found_target = inner.target.exists && !inner.target.made_by_us;
            Ok(Assessment {
                objects: inner.source.data.len() as u64,
                bytes: inner.source.data.values().map(|value| value.len() as u64).sum(),
                copy_seconds: Some(
                    inner.behaviour.copy_time_per_object.as_secs_f64() * inner.source.data.len() as f64,
                ),
                findings: inner.findings.clone(),
                fingerprint: format!("{}:{found_target}:{}", self.name, inner.fingerprint_salt),
                ..Assessment::default()
            })
        };
        self.faults().around("assess", "", look).await
    }

    async fn prepare(&self) -> Result<()> {
        let make = async {
            self.world.change(|inner| {
                if !inner.target.exists {
                    inner.target.exists = true;
                    inner.target.made_by_us = true;
                    inner.note(Happened::Prepared);
                }
            });
            Ok(())
        };
        self.faults().around("prepare", "", make).await
    }

    async fn unprepare(&self) -> Result<()> {
        let undo = async {
            self.world.change(unprepare);
            Ok(())
        };
        self.faults().around("unprepare", "", undo).await
    }

    async fn copy(
        &self,
        flow: Flow,
        progress: Arc<dyn Progress>,
        stop: CancellationToken,
    ) -> Result<CopySummary> {
        self.faults().around("copy", word_of_flow(flow), self.run_copy(flow, &*progress, &stop)).await
    }

    async fn follow(&self, flow: Flow, report: FollowReport, stop: CancellationToken) -> Result<()> {
        self.faults().around("follow", word_of_flow(flow), self.run_follow(flow, &report, &stop)).await
    }

    async fn head(&self, flow: Flow) -> Result<Position> {
        let look = async {
            let inner = self.world.lock();
            must_exist(&inner, flow.from())?;
            Ok(inner.side(flow.from()).head().position())
        };
        self.faults().around("head", word_of_flow(flow), look).await
    }

    fn covers(&self, applied: &Position, wanted: &Position) -> bool {
        // A position nobody made is covered by nothing and covers nothing.
        Seq::of(applied).zip(Seq::of(wanted)).is_some_and(|(applied, wanted)| applied >= wanted)
    }

    async fn fence(&self, side: Side) -> Result<()> {
        let close = async {
            if !self.capabilities.can_fence {
                return Err(Error::permanent(ErrorKind::Unsupported, "this part has no fence").on(side));
            }
            self.world.change(|inner| {
                must_exist(inner, side)?;
                let state = inner.side_mut(side);
                if state.guard_before.is_none() {
                    state.guard_before = Some(state.guard);
                    state.guard = Guard::Fenced;
                    inner.note(Happened::Fenced(side));
                }
                Ok(())
            })
        };
        self.faults().around("fence", word_of_side(side), close).await
    }

    async fn unfence(&self, side: Side) -> Result<()> {
        let open = async {
            self.world.change(|inner| {
                if let Some(before) = inner.side_mut(side).guard_before.take() {
                    inner.side_mut(side).guard = before;
                    inner.note(Happened::Unfenced(side));
                }
            });
            Ok(())
        };
        self.faults().around("unfence", word_of_side(side), open).await
    }

    async fn writers(&self, _: Flow) -> Result<Option<Writers>> {
        // Its application writes where the test says; nothing here could come past a gateway.
        Ok(Some(Writers { watched_seconds: 60, ..Writers::default() }))
    }

    async fn probe(&self, side: Side) -> Result<Fence> {
        let attempt = async {
            let inner = self.world.lock();
            must_exist(&inner, side)?;
            let open = inner.side(side).takes_application_writes();
            Ok(match (self.capabilities.can_fence, self.capabilities.can_probe) {
                (false, _) => Fence::None,
                (true, true) if open => Fence::Open,
                (true, true) => Fence::ProvedClosed,
                (true, false) if inner.side(side).guard == Guard::Open => Fence::Open,
                (true, false) => Fence::Closed,
            })
        };
        self.faults().around("probe", word_of_side(side), attempt).await
    }

    async fn mark(&self, flow: Flow, marker: &Marker) -> Result<()> {
        let write = async {
            self.world.change(|inner| {
                must_exist(inner, flow.from())?;
                if !inner.side(flow.from()).markers.contains(&(marker.epoch.0, marker.nonce.clone())) {
                    inner.put_marker(flow, marker);
                }
                Ok(())
            })
        };
        self.faults().around("mark", word_of_flow(flow), write).await
    }

    async fn drain(
        &self,
        flow: Flow,
        fence: &Position,
        marker: &Marker,
        stop: CancellationToken,
    ) -> Result<Drained> {
        self.faults().around("drain", word_of_flow(flow), self.run_drain(flow, fence, marker, &stop)).await
    }

    async fn verify(
        &self,
        flow: Flow,
        scope: Scope,
        progress: Arc<dyn Progress>,
        stop: CancellationToken,
    ) -> Result<Verification> {
        let look = async {
            self.wait_for_link(&stop).await.ok_or_else(Error::cancelled)?;
            let result = compare(&self.world.lock(), flow, &scope)?;
            progress.update(result.compared, result.bytes, Some(result.compared), Some(result.bytes));
            Ok(result)
        };
        self.faults().around("verify", word_of_flow(flow), look).await
    }

    async fn seal(&self, flow: Flow) -> Result<Seal> {
        let capture = async {
            self.world.change(|inner| {
                must_exist(inner, flow.to())?;
                Ok(seal(inner, flow))
            })
        };
        self.faults().around("seal", word_of_flow(flow), capture).await
    }

    async fn unseal(&self, flow: Flow) -> Result<()> {
        let forget = async {
            self.world.change(|inner| unseal(inner, flow));
            Ok(())
        };
        self.faults().around("unseal", word_of_flow(flow), forget).await
    }

    async fn sweep(&self, flow: Flow, since: &Position) -> Result<Vec<Finding>> {
        let look = async {
            let since = number_of(since)?;
            Ok(self.world.change(|inner| sweep(inner, flow, since)))
        };
        self.faults().around("sweep", word_of_flow(flow), look).await
    }

    async fn retire(&self, owner: Side) -> Result<()> {
        let end = async {
            self.world.change(|inner| {
                for side in [Side::Source, Side::Target] {
                    inner.side_mut(side).markers.clear();
                }
                inner.forward = Default::default();
                inner.reverse = Default::default();
                inner.note(Happened::Retired { owner });
            });
            Ok(())
        };
        self.faults().around("retire", word_of_side(owner), end).await
    }
}
