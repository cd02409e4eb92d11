//! The two clocks of a gateway: boot time for leases (it runs on while the machine or the process sleeps) and moments of
//! this process for freshness. Tests can hold the boot clock; nothing here reads the wall clock.

use crate::control::Moment;
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// `CLOCK_BOOTTIME` in microseconds, or a hand that a test turns.
#[derive(Debug, Clone, Default)]
pub(crate) struct BootClock {
    hand: Option<Arc<AtomicU64>>,
}

impl BootClock {
    #[cfg(test)]
    pub fn held_at(micros: u64) -> (Self, Arc<AtomicU64>) {
        let hand = Arc::new(AtomicU64::new(micros));
        (Self { hand: Some(hand.clone()) }, hand)
    }

    pub fn micros(&self) -> u64 {
        if let Some(hand) = &self.hand {
            return hand.load(Ordering::SeqCst);
        }
        let now = clock_gettime(ClockId::Boottime);
        // Boot time is never negative; the sum overflows after half a million years.
        now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000
    }
}

/// Moments of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProcessClock {
    process: u64,
    started: Instant,
}

impl ProcessClock {
    pub fn start() -> Self {
        // Fits a JSON number that every reader keeps exact.
        Self { process: fastrand::u64(1..1 << 53), started: Instant::now() }
    }

    pub fn now(&self) -> Moment {
        Moment { process: self.process, micros: self.micros() }
    }

    /// Microseconds since the process started; at least 1, so that 0 can mean "never".
    pub fn micros(&self) -> u64 {
        (self.started.elapsed().as_micros() as u64).max(1)
    }

    /// The microseconds of a moment, if it is one of this process.
    pub fn own(&self, moment: Moment) -> Option<u64> {
        (moment.process == self.process).then_some(moment.micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_another_process_mean_nothing() {
        let clock = ProcessClock::start();
        let now = clock.now();
        assert_eq!(clock.own(now), Some(now.micros));
        assert_eq!(clock.own(Moment { process: now.process + 1, micros: now.micros }), None);
    }

    #[test]
    fn boot_time_moves_on() {
        let clock = BootClock::default();
        let first = clock.micros();
        assert!(first > 0 && clock.micros() >= first);
    }
}
