//! Quantiles of recent durations in fixed memory and without locks: eight steps per doubling (at most 12 % off), two windows
//! that take turns. Never remembers a single value.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

const STEPS: usize = 8;
/// Up to 2^36 microseconds, 19 hours.
const BUCKETS: usize = 34 * STEPS;

/// Durations of the present window and the one before.
#[derive(Debug)]
pub(crate) struct Recent {
    windows: [Box<[AtomicU32]>; 2],
    present: AtomicU8,
}

impl Default for Recent {
    fn default() -> Self {
        let window = || (0..BUCKETS).map(|_| AtomicU32::new(0)).collect();
        Self { windows: [window(), window()], present: AtomicU8::new(0) }
    }
}

impl Recent {
    pub fn record(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let window = &self.windows[usize::from(self.present.load(Ordering::Relaxed))];
        window[bucket(micros)].fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets the older window and begins a new one.
    pub fn turn(&self) {
        let next = 1 - self.present.load(Ordering::Relaxed);
        for count in &self.windows[usize::from(next)] {
            count.store(0, Ordering::Relaxed);
        }
        self.present.store(next, Ordering::Relaxed);
    }

    /// The `share` (0..=1) quantile in milliseconds over both windows; `None` without values.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let counts: Vec<u64> = (0..BUCKETS)
            .map(|index| {
                self.windows.iter().map(|window| u64::from(window[index].load(Ordering::Relaxed))).sum()
            })
            .collect();
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return None;
        }
        let wanted = ((total as f64 * share).ceil() as u64).clamp(1, total);
        let mut seen = 0;
        let found = counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        found.map(|index| upper_micros(index) as f64 / 1_000.0)
    }
}

fn bucket(micros: u64) -> usize {
    if micros < STEPS as u64 {
        return micros as usize;
    }
    let exponent = 63 - micros.leading_zeros() as usize;
    let step = (micros >> (exponent - 3)) as usize & (STEPS - 1);
    ((exponent - 2) * STEPS + step).min(BUCKETS - 1)
}

/// The largest value that falls into a bucket, so that a quantile is never too small.
fn upper_micros(index: usize) -> u64 {
    if index < STEPS {
        return index as u64;
    }
    let (exponent, step) = (index / STEPS + 2, index % STEPS);
    (((STEPS + step + 1) as u64) << (exponent - 3)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_holds_its_values_within_an_eighth(micros in 0u64..1 << 35) {
            let upper = upper_micros(bucket(micros));
            prop_assert!(upper >= micros && upper as f64 <= micros as f64 * 1.126 + 1.0, "{micros} -> {upper}");
        }
    }

    #[test]
    fn quantiles_follow_the_values_and_old_ones_are_forgotten() {
        let recent = Recent::default();
        assert_eq!(recent.quantile_ms(0.5), None);
        for millis in 1..=1000 {
            recent.record(Duration::from_millis(millis));
        }
        let near = |share, expected: f64| {
            let found = recent.quantile_ms(share).unwrap();
            assert!((found / expected - 1.0).abs() < 0.13, "{share}: {found}");
        };
        near(0.5, 500.0);
        near(0.99, 990.0);
        near(0.999, 1000.0);
        recent.turn();
        near(0.5, 500.0);
        recent.turn();
        assert_eq!(recent.quantile_ms(0.5), None);
        recent.record(Duration::from_secs(1 << 40));
        assert!(recent.quantile_ms(1.0).unwrap() > 1e6);
    }
}
