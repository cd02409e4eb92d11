//! Durations, counted in fixed memory and without locks (buckets of [`rehome_part::measure`]): those of the last one or two windows,
//! and all since the beginning. Never remembers a single value.

use rehome_part::measure::{BUCKETS, Histogram, bucket};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Durations of the present window, the one before, and all that are older.
#[derive(Debug)]
pub(crate) struct Recent {
    windows: [Box<[AtomicU32]>; 2],
    present: AtomicU8,
    past: Box<[AtomicU64]>,
}

impl Default for Recent {
    fn default() -> Self {
        let window = || (0..BUCKETS).map(|_| AtomicU32::new(0)).collect();
        let past = (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Self { windows: [window(), window()], present: AtomicU8::new(0), past }
    }
}

impl Recent {
    pub fn record(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let window = &self.windows[usize::from(self.present.load(Ordering::Relaxed))];
        window[bucket(micros)].fetch_add(1, Ordering::Relaxed);
    }

    /// The older window becomes past, and a new one begins.
    pub fn turn(&self) {
        let next = 1 - self.present.load(Ordering::Relaxed);
        for (count, past) in self.windows[usize::from(next)].iter().zip(&self.past) {
            past.fetch_add(u64::from(count.swap(0, Ordering::Relaxed)), Ordering::Relaxed);
        }
        self.present.store(next, Ordering::Relaxed);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.windows.iter().flatten().for_each(|count| count.store(0, Ordering::Relaxed));
        self.past.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    }

    fn lately(&self, index: usize) -> u64 {
        self.windows.iter().map(|window| u64::from(window[index].load(Ordering::Relaxed))).sum()
    }

    /// Both windows.
    pub fn recent(&self) -> Histogram {
        Histogram::of_counts((0..BUCKETS).map(|index| self.lately(index)))
    }

    /// Everything since the beginning, or since [`Recent::clear`].
    pub fn all(&self) -> Histogram {
        let past = |index: usize| self.past[index].load(Ordering::Relaxed);
        Histogram::of_counts((0..BUCKETS).map(|index| past(index) + self.lately(index)))
    }

    /// The `share` (0..=1) quantile of both windows in milliseconds; `None` without values.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        self.recent().quantile(share).map(|quantile| quantile.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!((recent.quantile_ms(0.5), recent.all().total()), (None, 1_000), "old, and not forgotten");
        recent.record(Duration::from_secs(1 << 40));
        assert!(recent.quantile_ms(1.0).unwrap() > 1e6);
        recent.clear();
        assert_eq!(recent.all().total(), 0);
    }
}
