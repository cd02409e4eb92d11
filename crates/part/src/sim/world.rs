//! The world a simulated part lives in: two sides with data, logs of writes and guards, and what happened, in order.
//! All state that must survive the death of an engine is here, never in [`super::SimPart`]. It decides nothing.

use super::{Faults, Violation};
use crate::{Finding, Flow, Marker, Position, Side};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Number of a write in one side's log, from 1; 0 is the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

impl Seq {
    pub fn position(self) -> Position {
        Position(self.0.to_string())
    }

    /// `None` when the position was not made by a simulated part.
    pub fn of(position: &Position) -> Option<Self> {
        position.0.parse().ok().map(Self)
    }
}

/// Why the application's write was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the side is closed to the application")]
    Closed,
    #[error("there is nothing to write into")]
    Missing,
}

/// Who made a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Writer {
    Application,
    /// The migration's own principal.
    Replicator,
}

/// What guards a side, like the policy of a bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Guard {
    #[default]
    Open,
    /// Closed by its owner, before we came.
    ReadOnly,
    /// Closed by the migration.
    Fenced,
}

/// One thing that happened, in the order it happened on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    Prepared,
    Unprepared,
    Wrote { side: Side, key: String, seq: Seq, by: Writer },
    Deleted { side: Side, key: String, seq: Seq, by: Writer },
    Refused { side: Side, key: String },
    Fenced(Side),
    Unfenced(Side),
    Marked { flow: Flow, seq: Seq },
    Drained(Flow),
    Sealed { flow: Flow, reverse_start: Seq },
    Unsealed(Flow),
    Retired { owner: Side },
}

/// What people and tests compare: the world as it was, as it is. Markers and logs are not in it ([`SimWorld::leftovers`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub source: SideSnapshot,
    pub target: SideSnapshot,
    /// Flows whose way back is sealed.
    pub sealed: Vec<Flow>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideSnapshot {
    pub exists: bool,
    pub guard: Guard,
    pub data: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: Option<String>,
    pub marker: Option<Marker>,
    pub by: Writer,
    pub at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct SideState {
    pub exists: bool,
    pub made_by_us: bool,
    pub guard: Guard,
    /// What `fence` found, until `unfence` puts it back.
    pub guard_before: Option<Guard>,
    pub lying_fence: bool,
    pub data: BTreeMap<String, Vec<u8>>,
    /// Entry `n` has the sequence number `n + 1`.
    pub log: Vec<Entry>,
    pub markers: BTreeSet<(u64, String)>,
}

impl SideState {
    pub fn head(&self) -> Seq {
        Seq(self.log.len() as u64)
    }

    /// Entries after `seq`, with their numbers.
    pub fn after(&self, seq: Seq) -> impl Iterator<Item = (Seq, &Entry)> {
        self.log.iter().enumerate().skip(seq.0 as usize).map(|(index, entry)| (Seq(index as u64 + 1), entry))
    }

    pub fn takes_application_writes(&self) -> bool {
        self.exists && (self.guard == Guard::Open || (self.guard == Guard::Fenced && self.lying_fence))
    }

    fn append(&mut self, key: Option<&str>, marker: Option<Marker>, by: Writer) -> Seq {
        self.log.push(Entry { key: key.map(String::from), marker, by, at: Instant::now() });
        self.head()
    }
}

#[derive(Debug, Default, Clone)]
pub(super) struct FlowState {
    pub applied: Option<Seq>,
    pub copied: bool,
    pub changes_applied: u64,
    pub bytes_applied: u64,
    /// The reverse start that `seal` of this flow captured on `flow.to()`.
    pub sealed: Option<Seq>,
}

/// How the simulated machinery behaves; may be changed at any time.
#[derive(Debug, Clone, PartialEq)]
pub struct Behaviour {
    pub copy_time_per_object: Duration,
    pub apply_time_per_change: Duration,
    /// One listing pass, for parts that follow by listing.
    pub listing_pass: Duration,
    /// The link between the sides is down: nothing is copied or applied, lag is unknown.
    pub link_down: bool,
    /// The follower works, but cannot say how far behind it is.
    pub lag_unknown: bool,
    /// Markers are accepted on the owner and never applied on the other side.
    pub lose_markers: bool,
    /// Changes of these keys are counted as applied and are not (a follower with a bug).
    pub lose_changes_of: BTreeSet<String>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            copy_time_per_object: Duration::ZERO,
            apply_time_per_change: Duration::ZERO,
            listing_pass: Duration::from_secs(5),
            link_down: false,
            lag_unknown: false,
            lose_markers: false,
            lose_changes_of: BTreeSet::new(),
        }
    }
}

pub(super) struct Inner {
    pub source: SideState,
    pub target: SideState,
    pub forward: FlowState,
    pub reverse: FlowState,
    pub behaviour: Behaviour,
    pub findings: Vec<Finding>,
    pub fingerprint_salt: u64,
    pub can_reverse: bool,
    happened: Vec<Happened>,
    violations: Vec<Violation>,
    /// The side that took the application's newest write.
    writer: Side,
}

impl Inner {
    pub fn side(&self, side: Side) -> &SideState {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    pub fn side_mut(&mut self, side: Side) -> &mut SideState {
        match side {
            Side::Source => &mut self.source,
            Side::Target => &mut self.target,
        }
    }

    pub fn flow(&self, flow: Flow) -> &FlowState {
        match flow {
            Flow::Forward => &self.forward,
            Flow::Reverse => &self.reverse,
        }
    }

    pub fn flow_mut(&mut self, flow: Flow) -> &mut FlowState {
        match flow {
            Flow::Forward => &mut self.forward,
            Flow::Reverse => &mut self.reverse,
        }
    }

    pub fn note(&mut self, what: Happened) {
        self.happened.push(what);
    }

    /// Writes (or deletes, with `None`) whatever guards the side; callers check the guard.
    pub fn put(&mut self, side: Side, key: &str, value: Option<Vec<u8>>, by: Writer) -> Seq {
        let state = self.side_mut(side);
        let deleted = value.is_none();
        match value {
            Some(value) => state.data.insert(key.into(), value),
            None => state.data.remove(key),
        };
        let seq = state.append(Some(key), None, by);
        let key = key.to_owned();
        self.note(match deleted {
            true => Happened::Deleted { side, key, seq, by },
            false => Happened::Wrote { side, key, seq, by },
        });
        seq
    }

    pub fn put_marker(&mut self, flow: Flow, marker: &Marker) -> Seq {
        let name = (marker.epoch.0, marker.nonce.clone());
        let from = self.side_mut(flow.from());
        from.markers.insert(name);
        let seq = from.append(None, Some(marker.clone()), Writer::Replicator);
        self.note(Happened::Marked { flow, seq });
        seq
    }

    /// Checks what must hold when the application's writes go to another side than before, and remembers the new one.
    fn before_application_write(&mut self, side: Side) {
        if side == self.writer {
            return;
        }
        let old = self.writer;
        let flow = Flow::leaving(old);
        let mut found = Vec::new();
        if self.side(old).takes_application_writes() {
            found.push(Violation::BothSidesWritable { wrote: side });
        }
        match self.flow(flow).sealed {
            None if self.can_reverse => found.push(Violation::NoWayBack { wrote: side }),
            Some(start) if self.side(side).after(start).any(|(_, entry)| entry.by == Writer::Application) => {
                found.push(Violation::NoWayBack { wrote: side });
            }
            _ => {}
        }
        let acknowledged: BTreeSet<&String> = self
            .side(old)
            .log
            .iter()
            .filter(|entry| entry.by == Writer::Application)
            .filter_map(|entry| entry.key.as_ref())
            .collect();
        for key in acknowledged {
            if self.side(old).data.get(key) != self.side(side).data.get(key) {
                found.push(Violation::Lost { wrote: side, key: key.clone() });
            }
        }
        self.violations.extend(found);
        self.writer = side;
    }
}

/// A cloneable handle on one simulated world; every clone is the same world.
#[derive(Clone)]
pub struct SimWorld {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<watch::Sender<u64>>,
    faults: Faults,
}

impl fmt::Debug for SimWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        f.debug_struct("SimWorld")
            .field("source_objects", &inner.source.data.len())
            .field("source_guard", &inner.source.guard)
            .field("target_objects", &inner.target.data.len())
            .field("target_guard", &inner.target.guard)
            .finish_non_exhaustive()
    }
}

impl Default for SimWorld {
    fn default() -> Self {
        Self::new()
    }
}

impl SimWorld {
    /// A source that exists and is open, and no target yet.
    pub fn new() -> Self {
        let inner = Inner {
            source: SideState { exists: true, ..SideState::default() },
            target: SideState::default(),
            forward: FlowState::default(),
            reverse: FlowState::default(),
            behaviour: Behaviour::default(),
            findings: Vec::new(),
            fingerprint_salt: 0,
            can_reverse: true,
            happened: Vec::new(),
            violations: Vec::new(),
            writer: Side::Source,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            changed: Arc::new(watch::Sender::new(0)),
            faults: Faults::default(),
        }
    }

    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Does what the application does: writes if the side lets it.
    pub fn write(&self, side: Side, key: &str, value: impl Into<Vec<u8>>) -> Result<Seq, Refused> {
        self.application(side, key, Some(value.into()))
    }

    /// The application deletes a key; a key that is not there is a write all the same.
    pub fn delete(&self, side: Side, key: &str) -> Result<Seq, Refused> {
        self.application(side, key, None)
    }

    fn application(&self, side: Side, key: &str, value: Option<Vec<u8>>) -> Result<Seq, Refused> {
        self.change(|inner| {
            let state = inner.side(side);
            if !state.takes_application_writes() {
                let why = if state.exists { Refused::Closed } else { Refused::Missing };
                inner.note(Happened::Refused { side, key: key.into() });
                return Err(why);
            }
            inner.before_application_write(side);
            Ok(inner.put(side, key, value, Writer::Application))
        })
    }

    pub fn read(&self, side: Side, key: &str) -> Option<Vec<u8>> {
        self.lock().side(side).data.get(key).cloned()
    }

    /// A write of the application that was under way when the fence closed and lands now, past the fence.
    pub fn write_late(&self, side: Side, key: &str, value: impl Into<Vec<u8>>) -> Seq {
        let value = value.into();
        self.change(|inner| inner.put(side, key, Some(value), Writer::Application))
    }

    /// Changes data behind everybody's back: past the guard and without an entry in the log (`None` removes).
    pub fn plant(&self, side: Side, key: &str, value: Option<Vec<u8>>) {
        self.change(|inner| {
            let data = &mut inner.side_mut(side).data;
            match value {
                Some(value) => data.insert(key.into(), value),
                None => data.remove(key),
            };
        });
    }

    /// Makes the place exist on a side before the migration comes, guarded as said.
    pub fn found(&self, side: Side, guard: Guard) {
        self.change(|inner| {
            let state = inner.side_mut(side);
            state.exists = true;
            state.made_by_us = false;
            state.guard = guard;
        });
    }

    /// From now on `fence` of this side succeeds and keeps nobody out; only the probe can tell.
    pub fn lying_fence(&self, side: Side, lying: bool) {
        self.change(|inner| inner.side_mut(side).lying_fence = lying);
    }

    pub fn guard(&self, side: Side) -> Guard {
        self.lock().side(side).guard
    }

    /// Would the application's write be taken now?
    pub fn is_writable(&self, side: Side) -> bool {
        self.lock().side(side).takes_application_writes()
    }

    pub fn head(&self, side: Side) -> Seq {
        self.lock().side(side).head()
    }

    /// How far the follower of `flow` is; `None` when neither `copy` nor `seal` fixed a start.
    pub fn applied(&self, flow: Flow) -> Option<Seq> {
        self.lock().flow(flow).applied
    }

    pub fn sealed(&self, flow: Flow) -> Option<Seq> {
        self.lock().flow(flow).sealed
    }

    pub fn snapshot(&self) -> Snapshot {
        let inner = self.lock();
        let side = |side: Side| {
            let state = inner.side(side);
            SideSnapshot { exists: state.exists, guard: state.guard, data: state.data.clone() }
        };
        let sealed =
            [Flow::Forward, Flow::Reverse].into_iter().filter(|flow| inner.flow(*flow).sealed.is_some());
        Snapshot { source: side(Side::Source), target: side(Side::Target), sealed: sealed.collect() }
    }

    /// What the migration left on the two sides besides data and guards: markers, follow state, seals.
    pub fn leftovers(&self) -> Vec<String> {
        let inner = self.lock();
        let mut left = Vec::new();
        for side in [Side::Source, Side::Target] {
            left.extend(
                inner
                    .side(side)
                    .markers
                    .iter()
                    .map(|(epoch, nonce)| format!("{side}: marker {epoch}-{nonce}")),
            );
        }
        for flow in [Flow::Forward, Flow::Reverse] {
            let state = inner.flow(flow);
            left.extend(state.applied.map(|seq| format!("{flow}: follow state at {}", seq.0)));
            left.extend(state.sealed.map(|seq| format!("{flow}: sealed at {}", seq.0)));
        }
        left
    }

    /// Everything that happened, in order.
    pub fn happened(&self) -> Vec<Happened> {
        self.lock().happened.clone()
    }

    /// Promises broken by the application's accepted writes so far; empty when all is well.
    pub fn violations(&self) -> Vec<Violation> {
        self.lock().violations.clone()
    }

    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        self.change(|inner| change(&mut inner.behaviour));
    }

    /// Adds a finding to every `assess` from now on.
    pub fn add_finding(&self, finding: Finding) {
        self.change(|inner| inner.findings.push(finding));
    }

    /// Makes the next `assess` see another world, so that a plan made before is stale.
    pub fn change_fingerprint(&self) {
        self.change(|inner| inner.fingerprint_salt += 1);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A test that panicked while it held the lock must not hide its own message behind a second panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the world and wakes everybody who waits for a change.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_modify(|number| *number += 1);
        result
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
