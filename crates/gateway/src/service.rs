//! One service as it runs: its two sides, its weight and freshness, its counts. Chooses the side of a read; never sends
//! anything by itself.

use crate::access_log::AccessLog;
use crate::clock::ProcessClock;
use crate::config::{Plan, Sabotage};
use crate::control::{ServiceStatus, SideStatus};
use crate::freshness::{CLIENTS, LastWrites};
use crate::gate::Gate;
use crate::histogram::Recent;
use crate::limits::{Entrance, Patience};
use crate::shadow::Shadow;
use crate::split::ClientId;
use crate::upstream::{Budget, Group};
use rehome_part::Side;
use rehome_part::measure::Share;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a request is to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Read,
    Write,
    Session,
}

impl Class {
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Session];

    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Session => "session",
        }
    }
}

/// One side of a service.
#[derive(Debug)]
pub(crate) struct SideState {
    pub group: Group,
    /// By class.
    pub requests: [AtomicU64; 3],
    /// By class.
    pub failed: [AtomicU64; 3],
    /// From the request to the head of the answer: of reads, and of everything else.
    pub reads: Recent,
    pub others: Recent,
    pub connects: Recent,
}

impl SideState {
    fn new(group: Group) -> Self {
        Self {
            group,
            requests: Default::default(),
            failed: Default::default(),
            reads: Recent::default(),
            others: Recent::default(),
            connects: Recent::default(),
        }
    }

    pub fn healthy(&self) -> Option<bool> {
        self.group.healthy()
    }

    pub fn record_answer(&self, class: Class, took: Duration) {
        if class == Class::Read { self.reads.record(took) } else { self.others.record(took) }
    }

    pub fn failed(&self) -> u64 {
        self.failed.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Recent times to the head of an answer, of any class.
    pub fn answer_ms(&self, share: f64) -> Option<f64> {
        let mut answers = self.reads.recent();
        answers.add(&self.others.recent());
        answers.quantile(share).map(|quantile| quantile.value)
    }

    fn status(&self) -> SideStatus {
        let of_reads = |counts: &[AtomicU64; 3]| counts[Class::Read as usize].load(Ordering::Relaxed);
        SideStatus {
            healthy: self.healthy(),
            requests: self.requests.iter().map(|count| count.load(Ordering::Relaxed)).sum(),
            failed: self.failed(),
            reads: Share { hits: of_reads(&self.failed), of: of_reads(&self.requests) },
            read_times: self.reads.all(),
            p50_ms: self.answer_ms(0.5),
            p99_ms: self.answer_ms(0.99),
            connect_ms: self.connects.quantile_ms(0.5),
            upstreams: self.group.members().iter().map(|member| member.status()).collect(),
        }
    }
}

/// Everything that the requests of one service share.
#[derive(Debug)]
pub(crate) struct Service {
    pub plan: Plan,
    pub gate: Arc<Gate>,
    pub clock: ProcessClock,
    pub sabotage: Sabotage,
    /// Turns between the sides for `release-both`.
    pub sabotage_turn: AtomicBool,
    pub log: Option<AccessLog>,
    /// What outlives the request that began it.
    pub tasks: TaskTracker,
    /// Cancelled when the process gives up on open requests.
    pub kill: CancellationToken,
    pub patience: Patience,
    pub entrance: Arc<Entrance>,
    pub source: SideState,
    pub target: SideState,
    pub weight: AtomicU8,
    /// Writes before this moment can be read on both sides; 0: unknown.
    pub through: AtomicU64,
    pub last_writes: LastWrites,
    /// Reads that may be sent again.
    pub budget: Budget,
    pub repeated: AtomicU64,
    /// Reads that were not repeated because the budget was spent.
    pub not_repeated: AtomicU64,
    pub refused: AtomicU64,
    pub writes: AtomicU64,
    pub writes_unknown: AtomicU64,
    /// Whole time of a write at its upstream.
    pub write_times: Recent,
    pub held: AtomicU64,
    pub held_micros: AtomicU64,
    /// From a request's head to its being sent, without what it waited in a hold.
    pub added: Recent,
    pub shadow: Shadow,
}

/// What all services of a gateway have in common.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub gate: Arc<Gate>,
    pub clock: ProcessClock,
    pub sabotage: Sabotage,
    pub log: Option<AccessLog>,
    pub tasks: TaskTracker,
    pub kill: CancellationToken,
    pub patience: Patience,
    pub entrance: Arc<Entrance>,
}

impl Service {
    pub fn new(plan: Plan, shared: Shared) -> Self {
        let side = |upstreams: &[crate::config::Upstream]| {
            SideState::new(Group::new(upstreams, &plan.dialing, plan.upstream_idle))
        };
        Self {
            source: side(&plan.source),
            target: side(&plan.target),
            shadow: Shadow::new(&plan.shadow),
            plan,
            gate: shared.gate,
            clock: shared.clock,
            sabotage: shared.sabotage,
            sabotage_turn: AtomicBool::new(false),
            log: shared.log,
            tasks: shared.tasks,
            kill: shared.kill,
            patience: shared.patience,
            entrance: shared.entrance,
            weight: AtomicU8::new(0),
            through: AtomicU64::new(0),
            last_writes: LastWrites::new(CLIENTS),
            budget: Budget::default(),
            repeated: AtomicU64::new(0),
            not_repeated: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            writes_unknown: AtomicU64::new(0),
            write_times: Recent::default(),
            held: AtomicU64::new(0),
            held_micros: AtomicU64::new(0),
            added: Recent::default(),
        }
    }

    pub fn side(&self, side: Side) -> &SideState {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    /// How long ago the other side was known to have everything; `None`: unknown.
    pub fn lag_micros(&self) -> Option<u64> {
        match self.through.load(Ordering::Relaxed) {
            0 => None,
            through => Some(self.clock.micros().saturating_sub(through)),
        }
    }

    /// The share of reads that really goes to the side which is not the owner.
    pub fn weight_actual(&self) -> u8 {
        let wanted = self.weight.load(Ordering::Relaxed);
        if wanted == 0 {
            return 0;
        }
        let fresh =
            self.lag_micros().is_some_and(|lag| u128::from(lag) <= self.plan.max_staleness.as_micros());
        let well = self.side(self.gate.owner().other()).healthy() != Some(false);
        if fresh && well { wanted } else { 0 }
    }

    /// Where a read of this client goes. `fallback` is the client's address: an answer may have given it a new cookie.
    pub fn side_of_read(&self, client: ClientId, fallback: ClientId) -> Side {
        let owner = self.gate.owner();
        if !client.is_within(self.weight_actual()) {
            return owner;
        }
        let through = self.through.load(Ordering::Relaxed);
        let readable = |client| self.last_writes.is_readable(client, through);
        if readable(client) && (client == fallback || readable(fallback)) { owner.other() } else { owner }
    }

    /// A read broke and could be sent again: is there anything left to pay for it?
    pub fn may_repeat(&self) -> bool {
        let may = self.budget.spend();
        let count = if may { &self.repeated } else { &self.not_repeated };
        count.fetch_add(1, Ordering::Relaxed);
        may
    }

    /// The owner changed or a switch was given up: the measured freshness and the weight were about the old order.
    pub fn settle(&self) {
        self.weight.store(0, Ordering::Relaxed);
        self.through.store(0, Ordering::Relaxed);
    }

    pub fn status(&self, listen: String) -> ServiceStatus {
        ServiceStatus {
            name: self.plan.name.clone(),
            listen,
            weight_wanted: self.weight.load(Ordering::Relaxed),
            weight_actual: self.weight_actual(),
            lag_ms: self.lag_micros().map(|micros| micros / 1_000),
            source: self.source.status(),
            target: self.target.status(),
            refused: self.refused.load(Ordering::Relaxed),
            writes_total: self.writes.load(Ordering::Relaxed),
            writes_unknown: self.writes_unknown.load(Ordering::Relaxed),
            write_p999_ms: self.write_times.quantile_ms(0.999),
            added_ms: self.added.quantile_ms(0.5),
            shadow: self.shadow.status(),
        }
    }

    /// Begins a new window of every measurement.
    pub fn turn(&self) {
        for recent in [
            &self.source.reads,
            &self.source.others,
            &self.source.connects,
            &self.target.reads,
            &self.target.others,
            &self.target.connects,
            &self.write_times,
            &self.added,
        ] {
            recent.turn();
        }
    }
}
