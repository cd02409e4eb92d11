//! What can be made to go wrong in a cloud on purpose, and the counters that decide when.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// Faults of a cloud; the default is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Every nth S3 request is answered 503 `SlowDown` and not looked at.
    pub fail_every: Option<u64>,
    /// Every S3 request waits this long first.
    pub slow_ms: u64,
    /// Content beyond this many bytes is refused with 507 `QuotaExceeded`.
    pub capacity_bytes: Option<u64>,
    /// The content of every nth written object or part is damaged on its way in: what is stored, its tag and its checksums
    /// are those of the damaged bytes, and the checksums the client sent are not compared.
    pub damage_every: Option<u64>,
}

/// Faults that can be changed while the server runs.
#[derive(Debug, Default)]
pub struct FaultSwitch {
    now: RwLock<Faults>,
    requests: AtomicU64,
    writes: AtomicU64,
}

impl FaultSwitch {
    pub(super) fn new(faults: Faults) -> Self {
        Self { now: RwLock::new(faults), ..Self::default() }
    }

    pub fn set(&self, faults: Faults) {
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    fn read<T>(&self, look: impl FnOnce(&Faults) -> T) -> T {
        look(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How long the next request waits, and whether it fails then.
    pub(super) fn next_request(&self) -> (Duration, bool) {
        let (slow_ms, every) = self.read(|faults| (faults.slow_ms, faults.fail_every));
        (Duration::from_millis(slow_ms), due(&self.requests, every))
    }

    pub(super) fn next_write_is_damaged(&self) -> bool {
        due(&self.writes, self.read(|faults| faults.damage_every))
    }

    pub(super) fn capacity_bytes(&self) -> u64 {
        self.read(|faults| faults.capacity_bytes).unwrap_or(u64::MAX)
    }
}

fn due(counter: &AtomicU64, every: Option<u64>) -> bool {
    every
        .is_some_and(|every| every > 0 && (counter.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(every))
}
